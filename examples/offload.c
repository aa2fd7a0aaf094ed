/* offload.c - a background sender in an event loop that knows nothing of sendgate.
 *
 *   offload PORT DIR        serves DIR on 127.0.0.1:PORT; port 0 lets the system pick
 *
 * Any loop will do that can wait until a descriptor is readable: libevent's, libuv's, GLib's, your own. The one here
 * calls a handler when there is something to read. Three handlers make the server:
 *
 *   on_connection   accepts a client
 *   on_request      receives a request, and hands its response to the sender
 *   on_done         takes the responses that have ended, and lets their clients ask for more
 *
 * No handler waits: the sender's thread waits for clients that take their time, and for files on a slow disk.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sendgate.h>

/* ---- Someone else's loop ---------------------------------------------------------------------- */

struct watch {
    int fd;
    void (*on_readable)(struct watch *w);
};

static int epoll_fd;

static int loop_add(struct watch *w)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = w};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, w->fd, &ev);
}

static void loop_remove(struct watch *w)
{
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
}

static void loop_run(void)
{
    /* One at a time: a handler may free any watch, also one that has an event in the same batch. */
    struct epoll_event ev;
    for (int n; (n = epoll_wait(epoll_fd, &ev, 1, -1)) == 1 || (n < 0 && errno == EINTR);)
        if (n == 1) {
            struct watch *w = ev.data.ptr;
            w->on_readable(w);
        }
}

/* ---- The server ------------------------------------------------------------------------------- */

/* The loop watches a client while a request is awaited, and not while the sender has its response. */
struct client {
    struct watch watch; /* first, so that it leads to the client */
    size_t have;        /* bytes in `in`: more than a request, if the client sent the next one already */
    char in[8192];
};

static sendgate_sender *sender;
static int dir;

static void client_close(struct client *c)
{
    close(c->watch.fd); /* which also takes it out of the loop */
    free(c);
}

/* Hand the response to the request over. Only the socket and the content are used after this, and both belong to the
 * sender then: it has dup(2)ed the descriptors. What is in memory ("Not found") has to stay. */
static sendgate_status submit(struct client *c, const sendgate_request *req)
{
    char path[sizeof c->in], etag[SENDGATE_ETAG_MAX];
    sendgate_rep rep = {.size = sizeof rep};
    sendgate_exchange ex = {.size = sizeof ex, .request = req, .rep = &rep};
    sendgate_sink sink = {.size = sizeof sink, .fd = c->watch.fd, .idle_timeout_ms = 30000};
    int fd = -1;
    /* A real server also decodes %XX, and answers 405 to methods other than GET and HEAD. */
    snprintf(path, sizeof path, "%.*s", (int)req->target.len, req->target.ptr);
    path[strcspn(path, "?")] = '\0';
    if (sendgate_open(dir, path + strspn(path, "/"), 0, etag, sizeof etag, &fd, &rep, NULL) != SENDGATE_OK) {
        rep = (sendgate_rep){.size = sizeof rep, .kind = SENDGATE_REP_MEMORY, .memory = "Not found\n", .length = 10};
        ex.http_status = 404;
    }
    sendgate_status rc = sendgate_sender_submit(sender, &ex, &sink, c, NULL, NULL);
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Answer the request in the buffer, if it is there as a whole. */
static void client_serve(struct client *c)
{
    char scratch[sizeof c->in];
    size_t head_len = 0;
    sendgate_request req = {.size = sizeof req};
    sendgate_status rc = sendgate_request_from_head(&req, c->in, c->have, scratch, sizeof scratch, NULL, &head_len);
    if (rc == SENDGATE_WANT_READ && c->have < sizeof c->in)
        return;
    if (rc == SENDGATE_OK) {
        loop_remove(&c->watch);
        rc = submit(c, &req);
        memmove(c->in, c->in + head_len, c->have -= head_len);
    }
    if (rc != SENDGATE_PENDING) /* a real server answers 400, 431, or 503 if it is SENDGATE_ERR_BUSY */
        client_close(c);
}

static void on_request(struct watch *w)
{
    struct client *c = (struct client *)w;
    ssize_t n = recv(w->fd, c->in + c->have, sizeof c->in - c->have, 0);
    if (n > 0) {
        c->have += (size_t)n;
        client_serve(c);
    } else if (n == 0 || errno != EAGAIN) {
        client_close(c);
    }
}

static void on_done(struct watch *w)
{
    (void)w; /* is not read: sendgate_sender_take does that */
    sendgate_completion done[64];
    size_t n = 0;
    sendgate_sender_take(sender, done, 64, &n); /* if there are more, this handler is called again */
    for (size_t i = 0; i < n; i++) {
        struct client *c = done[i].token;
        printf("%u, %llu bytes in %llu us, %s\n", done[i].http_status, (unsigned long long)done[i].body_sent,
               (unsigned long long)done[i].elapsed_ns / 1000, sendgate_status_name(done[i].status));
        if (done[i].connection == SENDGATE_CONN_REUSABLE && loop_add(&c->watch) == 0)
            client_serve(c); /* with what has come already */
        else
            client_close(c);
    }
}

static void on_connection(struct watch *w)
{
    int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct client *c = fd >= 0 ? malloc(sizeof *c) : NULL;
    if (c != NULL) {
        c->watch = (struct watch){fd, on_request};
        c->have = 0;
    }
    if (fd >= 0 && (c == NULL || loop_add(&c->watch) < 0)) {
        free(c);
        close(fd);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t at_len = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons((uint16_t)(argc == 3 ? atoi(argv[1]) : 0));
    struct watch listener = {socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on_connection};
    if (argc != 3 || (dir = open(argv[2], O_RDONLY | O_DIRECTORY)) < 0
        || bind(listener.fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener.fd, SOMAXCONN) < 0
        || getsockname(listener.fd, (struct sockaddr *)&at, &at_len) < 0) {
        perror("usage: offload PORT DIR");
        return 1;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (sendgate_sender_new(NULL, &sender, NULL) != SENDGATE_OK)
        return 1;
    struct watch ended = {sendgate_sender_fd(sender), on_done};
    if (loop_add(&ended) < 0 || loop_add(&listener) < 0)
        return 1;
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port));
    loop_run();
    return 1;
}
