/* hello.c - the smallest file server on libsendgate: one connection at a time, one request each.
 *
 *   hello PORT DIR        serves DIR on 127.0.0.1:PORT; port 0 lets the system pick
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sendgate.h>

static void answer(int sock, int dir)
{
    char head[8192], scratch[sizeof head], path[sizeof head], etag[SENDGATE_ETAG_MAX];
    size_t len = 0, head_len;
    sendgate_request req = {.size = sizeof req};
    sendgate_status rc = SENDGATE_WANT_READ;
    ssize_t n;
    while (rc == SENDGATE_WANT_READ && (n = recv(sock, head + len, sizeof head - len, 0)) > 0) {
        len += (size_t)n;
        rc = sendgate_request_from_head(&req, head, len, scratch, sizeof scratch, NULL, &head_len);
    }
    if (rc != SENDGATE_OK)
        return;

    /* "/docs/a.txt?x=1" is the file docs/a.txt in DIR; that nothing outside DIR is opened, sendgate_open sees to. */
    snprintf(path, sizeof path, "%.*s", (int)req.target.len, req.target.ptr);
    path[strcspn(path, "?")] = '\0';
    sendgate_rep rep = {.size = sizeof rep};
    sendgate_exchange ex = {.size = sizeof ex, .request = &req, .rep = &rep, .head_flags = SENDGATE_HEAD_CLOSE};
    sendgate_sink sink = {.size = sizeof sink, .fd = sock};
    int fd = -1;
    if (sendgate_open(dir, path + strspn(path, "/"), 0, etag, sizeof etag, &fd, &rep, NULL) != SENDGATE_OK) {
        rep = (sendgate_rep){.size = sizeof rep, .kind = SENDGATE_REP_MEMORY, .memory = "Not found\n", .length = 10};
        ex.http_status = 404;
    }
    sendgate_result result = {.size = sizeof result};
    rc = sendgate_respond(&ex, &sink, &result); /* conditions, ranges, head, body */
    printf("%s: %u, %s\n", path, result.http_status, sendgate_status_name(rc));
    if (fd >= 0)
        close(fd);
}

int main(int argc, char **argv)
{
    int dir = argc == 3 ? open(argv[2], O_RDONLY | O_DIRECTORY) : -1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t at_len = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons((uint16_t)(argc == 3 ? atoi(argv[1]) : 0));
    if (dir < 0 || bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 16) < 0
        || getsockname(listener, (struct sockaddr *)&at, &at_len) < 0) {
        perror("usage: hello PORT DIR");
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port));
    for (int sock; (sock = accept(listener, NULL, NULL)) >= 0; close(sock))
        answer(sock, dir);
    return 1;
}
