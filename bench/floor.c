/* floor.c - the least that answering with a file can cost: the yardstick of `make bench`.
 *
 *   floor PORT DIR
 *
 * One thread, edge-triggered epoll, keep-alive. Every answer's head is made once, at the start, and every file
 * stays open; a request is only looked at as far as its path and its first letter. Per request, besides
 * epoll_wait and recv:
 *   304, HEAD             fstat, send
 *   body up to 16 KiB     fstat, pread behind the head, one send
 *   body above            fstat, send with MSG_MORE, sendfile
 * The fstat is there because no server can vouch for a file's validators without it.
 *
 * It parses nothing, decides nothing and answers one request at a time per connection: not a server to
 * use, but what is left of one when all of that is free. The files of DIR are those that run.py makes.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COPY_MAX = 16384, HEAD_MAX = 512, REQUEST_MAX = 4096, EVENTS = 64 };

/* One fixed answer. */
struct answer {
    const char *path;
    int status;
    off_t offset;     /* of the body in the file */
    size_t length;    /* of the body, in bytes */
    int fd;
    size_t head_len;
    char head[HEAD_MAX];
};

static struct answer answers[] = {
    {.path = "/304.bin ", .status = 304},
    {.path = "/1k.bin ", .status = 200, .length = 1024},
    {.path = "/16k.bin ", .status = 200, .length = 16384},
    {.path = "/64k.bin ", .status = 200, .length = 65536},
    {.path = "/1m.bin ", .status = 200, .length = 1048576},
    {.path = "/r1k.bin ", .status = 206, .offset = 500000, .length = 1024},
    {.path = "/r100k.bin ", .status = 206, .offset = 500000, .length = 102400},
};
enum { N_ANSWERS = sizeof answers / sizeof answers[0] };

struct conn {
    int fd;
    int file;         /* being sent from, while left > 0 */
    off_t offset;
    size_t left;
    size_t have;      /* request bytes in buf */
    char buf[REQUEST_MAX];
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void prepare(struct answer *a, const char *dir)
{
    char name[4096];
    size_t len = strlen(a->path) - 1; /* without the blank that ends it in a request line */
    snprintf(name, sizeof name, "%s%.*s", dir, (int)len, a->path);
    a->fd = open(name, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (a->fd < 0 || fstat(a->fd, &st) < 0)
        die(name);
    char range[96] = "";
    if (a->status == 206)
        snprintf(range, sizeof range, "Content-Range: bytes %lld-%lld/%lld\r\n", (long long)a->offset,
                 (long long)a->offset + (long long)a->length - 1, (long long)st.st_size);
    char content[160] = "";
    if (a->status != 304)
        snprintf(content, sizeof content, "%sContent-Type: application/octet-stream\r\nContent-Length: %zu\r\n",
                 range, a->length);
    const char *reason = a->status == 304 ? "Not Modified" : a->status == 206 ? "Partial Content" : "OK";
    a->head_len = (size_t)snprintf(a->head, sizeof a->head,
                                   "HTTP/1.1 %d %s\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                                   "ETag: \"15f8b3c2a4d6e800-%llx\"\r\n"
                                   "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nAccept-Ranges: bytes\r\n"
                                   "%s\r\n",
                                   a->status, reason, (unsigned long long)st.st_size, content);
}

/* 1: all sent; 0: the socket is full; -1: close. */
static int send_file(struct conn *c)
{
    while (c->left > 0) {
        ssize_t n = sendfile(c->fd, c->file, &c->offset, c->left);
        if (n <= 0)
            return n < 0 && errno == EAGAIN ? 0 : -1;
        c->left -= (size_t)n;
    }
    return 1;
}

static int answer(struct conn *c)
{
    const char *path = memchr(c->buf, '/', c->have);
    if (path == NULL)
        return -1;
    size_t rest = c->have - (size_t)(path - c->buf);
    struct answer *a = NULL;
    for (int i = 0; i < N_ANSWERS && a == NULL; i++) {
        size_t len = strlen(answers[i].path);
        if (len <= rest && memcmp(path, answers[i].path, len) == 0)
            a = &answers[i];
    }
    struct stat st;
    if (a == NULL || fstat(a->fd, &st) < 0)
        return -1;
    size_t body = c->buf[0] == 'H' || a->status == 304 ? 0 : a->length;
    c->have = 0;
    if (body <= COPY_MAX) {
        char out[HEAD_MAX + COPY_MAX];
        memcpy(out, a->head, a->head_len);
        if (body > 0 && pread(a->fd, out + a->head_len, body, a->offset) != (ssize_t)body)
            return -1;
        /* One answer fits any socket buffer, and the client waits for it before it asks again. */
        return send(c->fd, out, a->head_len + body, MSG_NOSIGNAL) == (ssize_t)(a->head_len + body) ? 1 : -1;
    }
    if (send(c->fd, a->head, a->head_len, MSG_NOSIGNAL | MSG_MORE) != (ssize_t)a->head_len)
        return -1;
    c->file = a->fd;
    c->offset = a->offset;
    c->left = body;
    return send_file(c);
}

static int readable(struct conn *c)
{
    ssize_t n = recv(c->fd, c->buf + c->have, sizeof c->buf - c->have, 0);
    if (n <= 0)
        return n < 0 && errno == EAGAIN ? 0 : -1;
    c->have += (size_t)n;
    if (c->have < 4 || memcmp(c->buf + c->have - 4, "\r\n\r\n", 4) != 0)
        return c->have < sizeof c->buf ? 0 : -1;
    return answer(c);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: floor PORT DIR\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < N_ANSWERS; i++)
        prepare(&answers[i], argv[2]);
    int one = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t at_len = sizeof at;
    int lis = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (lis < 0 || setsockopt(lis, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0
        || setsockopt(lis, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0
        || bind(lis, (struct sockaddr *)&at, sizeof at) < 0 || listen(lis, SOMAXCONN) < 0
        || getsockname(lis, (struct sockaddr *)&at, &at_len) < 0)
        die("listen");
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN};
    if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, lis, &ev) < 0)
        die("epoll");
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event evs[EVENTS];
        int n = epoll_wait(ep, evs, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = evs[i].data.ptr;
            if (c == NULL) {
                int fd = accept4(lis, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd < 0)
                    continue;
                c = calloc(1, sizeof *c);
                if (c == NULL)
                    die("calloc");
                c->fd = fd;
                ev.events = EPOLLIN | EPOLLOUT | EPOLLET;
                ev.data.ptr = c;
                if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) < 0)
                    die("epoll_ctl");
                continue;
            }
            int rc = c->left > 0 ? send_file(c) : 1;
            if (rc > 0 && (evs[i].events & ~(uint32_t)EPOLLOUT))
                rc = readable(c);
            if (rc < 0) {
                close(c->fd);
                free(c);
            }
        }
    }
}
