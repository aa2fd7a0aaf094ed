/* fastcgi.c - serves a folder to nginx, lighttpd or Apache, by FastCGI.
 *
 *   fastcgi SOCKET DIR      serves DIR on the UNIX socket SOCKET, which must not exist
 *   fastcgi PORT DIR        ... on 127.0.0.1:PORT; 0 lets the system pick
 *
 *   location / { fastcgi_pass unix:SOCKET; include fastcgi_params; }         # nginx
 *
 * The loop is as in offload.c: it calls a handler when a descriptor is readable. sendgate takes the connection's bytes
 * apart, and sends the answers in FastCGI's records: what takes no waiting at once, the rest by its sender's thread.
 *
 * System calls per request on a kept connection, besides epoll_wait and recv: openat2, fstat and close of the file; and
 *   304, HEAD                  send
 *   body up to 16 KiB          preadv2, which asks the page cache; pread, send
 *   larger                     fcntl, preadv2 for a few places; send and sendfile for each record of 65535 bytes, pread
 *                              and send for the last one if it is short
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <sendgate.h>

struct watch {
    int fd;
    void (*on_readable)(struct watch *w);
};

static int epoll_fd, dir;
static sendgate_sender *sender;

static int loop_add(struct watch *w)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = w};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, w->fd, &ev);
}

static void loop_run(void)
{
    struct epoll_event ev;
    for (int n; (n = epoll_wait(epoll_fd, &ev, 1, -1)) == 1 || (n < 0 && errno == EINTR);)
        if (n == 1) {
            struct watch *w = ev.data.ptr;
            w->on_readable(w);
        }
}

/* A connection of the front server. The loop watches it, but not while the sender's thread answers. */
struct front {
    struct watch watch; /* first, so that it leads to the connection */
    sendgate_fcgi *fcgi;
    /* The request, as far as the answer depends on it: params are only valid until the next feed. */
    char path[4096], text[4096];
    sendgate_request req;
    size_t used; /* of text */
};

static void front_close(struct front *f)
{
    close(f->watch.fd);
    sendgate_fcgi_free(f->fcgi);
    free(f);
}

/* A copy that stays. Too long: as if it were not there, which is a plain request for all of the file. */
static sendgate_str keep(struct front *f, sendgate_str value)
{
    sendgate_str kept = {0};
    if (value.ptr != NULL && value.len <= sizeof f->text - f->used) {
        kept.ptr = memcpy(f->text + f->used, value.ptr, value.len);
        kept.len = value.len;
        f->used += value.len;
    }
    return kept;
}

static void on_params(struct front *f, const sendgate_fcgi_event *event)
{
    sendgate_request req = {.size = sizeof req};
    size_t len = 0;
    f->used = 0;
    /* Which of them has the path depends on the front server; together they are it, already decoded. */
    for (const char *const *name = (const char *const[]){"SCRIPT_NAME", "PATH_INFO", NULL}; *name != NULL; name++)
        for (size_t i = 0; i < event->n_params; i++) {
            const sendgate_field *p = &event->params[i];
            if (p->name.len == strlen(*name) && memcmp(p->name.ptr, *name, p->name.len) == 0
                && p->value.len < sizeof f->path - len) {
                memcpy(f->path + len, p->value.ptr, p->value.len);
                len += p->value.len;
            }
        }
    f->path[len] = '\0';
    if (strlen(f->path) != len)
        f->path[0] = '\0'; /* a NUL in it: no file has such a name */
    sendgate_request_from_params(&req, event->params, event->n_params);
    f->req = (sendgate_request){.size = sizeof f->req, .version = req.version};
    f->req.method = keep(f, req.method);
    f->req.if_match = keep(f, req.if_match);
    f->req.if_none_match = keep(f, req.if_none_match);
    f->req.if_modified_since = keep(f, req.if_modified_since);
    f->req.if_unmodified_since = keep(f, req.if_unmodified_since);
    f->req.if_range = keep(f, req.if_range);
    f->req.range = keep(f, req.range);
}

/* Send the answer, or hand it over: see offload.c. Returns as sendgate_sender_submit does. */
static sendgate_status submit(struct front *f, const sendgate_fcgi_event *event, sendgate_result *result)
{
    char etag[SENDGATE_ETAG_MAX];
    sendgate_rep rep = {.size = sizeof rep};
    sendgate_exchange ex = {.size = sizeof ex, .request = &f->req, .rep = &rep, .head = SENDGATE_HEAD_CGI};
    sendgate_sink sink = {.size = sizeof sink, .fd = f->watch.fd, .idle_timeout_ms = 30000};
    sink.fcgi_request_id = event->request_id;
    /* TRY_NOW: changing threads costs several times as much as sending a small file. */
    sink.flags = SENDGATE_SINK_TRY_NOW | SENDGATE_SINK_SIGPIPE_IGNORED;
    if (event->keep_conn)
        sink.flags |= SENDGATE_SINK_FCGI_KEEP;
    int fd = -1;
    if (sendgate_open(dir, f->path + strspn(f->path, "/"), 0, etag, sizeof etag, &fd, &rep, NULL) != SENDGATE_OK) {
        rep = (sendgate_rep){.size = sizeof rep, .kind = SENDGATE_REP_MEMORY, .memory = "Not found\n", .length = 10};
        ex.http_status = 404;
    }
    sendgate_status rc = sendgate_sender_submit(sender, &ex, &sink, f, NULL, result);
    if (fd >= 0)
        close(fd);
    return rc;
}

static void on_front(struct watch *w)
{
    struct front *f = (struct front *)w;
    uint8_t in[16384];
    sendgate_fcgi_event event = {.size = sizeof event};
    ssize_t n = recv(w->fd, in, sizeof in, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN)
            front_close(f);
        return;
    }
    int answering = 0;
    for (size_t at = 0, used = 0; at < (size_t)n; at += used) {
        sendgate_status rc = sendgate_fcgi_feed(f->fcgi, in + at, (size_t)n - at, &used, &event);
        if (rc == SENDGATE_WANT_READ)
            return;
        if (answering) {
            shutdown(w->fd, SHUT_RDWR); /* it does send more: on_done will hear of that */
            return;
        }
        if (rc == SENDGATE_OK && event.kind == SENDGATE_FCGI_PARAMS)
            on_params(f, &event);
        if (rc == SENDGATE_OK && event.kind == SENDGATE_FCGI_STDIN && event.data.len == 0) {
            sendgate_result result = {.size = sizeof result};
            rc = submit(f, &event, &result);
            if (rc == SENDGATE_PENDING) {
                /* A front server sends no more before it has the answer, but for what its last record is padded with.
                 * on_done goes on with the connection. */
                epoll_ctl(epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
                answering = 1;
                continue;
            }
            if (rc != SENDGATE_OK || result.connection != SENDGATE_CONN_REUSABLE) {
                front_close(f);
                return;
            }
            sendgate_fcgi_end(f->fcgi);
            continue;
        }
        /* What a Responder refuses, or is asked; short, so that it fits into any socket. */
        int sent = 1;
        if (rc == SENDGATE_OK && event.kind == SENDGATE_FCGI_REPLY)
            sent = send(w->fd, event.data.ptr, event.data.len, MSG_NOSIGNAL) == (ssize_t)event.data.len && event.keep_conn;
        if (rc < 0 || event.kind == SENDGATE_FCGI_ABORT || !sent) {
            front_close(f);
            return;
        }
    }
}

static void on_done(struct watch *w)
{
    sendgate_completion done[64];
    size_t n = 0;
    (void)w;
    sendgate_sender_take(sender, done, 64, &n);
    for (size_t i = 0; i < n; i++) {
        struct front *f = done[i].token;
        sendgate_fcgi_end(f->fcgi);
        if (done[i].connection != SENDGATE_CONN_REUSABLE || loop_add(&f->watch) < 0)
            front_close(f);
    }
}

static void on_connection(struct watch *w)
{
    int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct front *f = fd >= 0 ? calloc(1, sizeof *f) : NULL;
    if (f != NULL && sendgate_fcgi_new(NULL, &f->fcgi) == SENDGATE_OK) {
        f->watch = (struct watch){fd, on_front};
        if (loop_add(&f->watch) == 0)
            return;
        sendgate_fcgi_free(f->fcgi);
    }
    free(f);
    if (fd >= 0)
        close(fd);
}

/* A listening socket, and what to tell about it. */
static int listen_at(const char *where, char *told, size_t cap)
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    socklen_t len = sizeof in;
    int fd, is_path = where[strspn(where, "0123456789")] != '\0';
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    in.sin_port = htons((uint16_t)atoi(where));
    if (strlen(where) >= sizeof un.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(un.sun_path, where);
    fd = socket(is_path ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, is_path ? (void *)&un : (void *)&in, is_path ? sizeof un : sizeof in) < 0
        || listen(fd, SOMAXCONN) < 0)
        return -1;
    if (is_path)
        snprintf(told, cap, "%s", where);
    else if (getsockname(fd, (struct sockaddr *)&in, &len) == 0)
        snprintf(told, cap, "127.0.0.1:%d", ntohs(in.sin_port));
    return fd;
}

int main(int argc, char **argv)
{
    char where[128] = "";
    struct watch listener = {argc == 3 ? listen_at(argv[1], where, sizeof where) : -1, on_connection};
    if (listener.fd < 0 || (dir = open(argv[2], O_RDONLY | O_DIRECTORY)) < 0) {
        perror("usage: fastcgi SOCKET|PORT DIR");
        return 1;
    }
    signal(SIGPIPE, SIG_IGN); /* and tell each sink, which saves it a system call per sendfile */
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (sendgate_sender_new(NULL, &sender, NULL) != SENDGATE_OK)
        return 1;
    struct watch ended = {sendgate_sender_fd(sender), on_done};
    if (loop_add(&ended) < 0 || loop_add(&listener) < 0)
        return 1;
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    printf("listening on %s\n", where);
    loop_run();
    return 1;
}
