/* fileserver.c - a complete static file server on libsendgate.
 *
 *   fileserver [--offload] PORT DIR        serves DIR on 127.0.0.1:PORT; port 0 lets the system pick
 *
 * One thread, one epoll. It shows how a server with an event loop of its own uses the library:
 *
 *   what the server does itself                        what it leaves to sendgate
 *   ------------------------------------------------   -----------------------------------------------
 *   accept, wait, read, time out, close                sendgate_request_from_head: parse the request
 *   map a target to a path (site.h)                    sendgate_open: open it, safely beneath DIR
 *   keep files open between requests                   sendgate_rep_from_fd: size, time, entity tag
 *   decide when it is whose turn                       sendgate_transfer_start, _step: conditions,
 *                                                      ranges, head, body
 *
 * System calls per request on a warm connection, besides epoll_wait and recv:
 *   304, HEAD                  fstat, send
 *   body up to 16 KiB          fstat, pread, send
 *   larger                     fstat, send, sendfile for each time the socket has room (from 256 KiB on between
 *                              getsockopt, setsockopt and setsockopt, for TCP_CORK)
 *
 * With --offload the files are sent by a sendgate_sender: by its thread, or at once if that takes no waiting. Then a
 * large file that has to come from the disk holds nobody up. What differs is in part 4. System calls on a warm
 * connection, besides epoll_wait, recv and a few that ask the page cache or a descriptor's flags:
 *   304, HEAD, up to 1 MiB     as above
 *   larger                     fstat, fcntl to dup the socket and the file, write if the sender's thread is asleep;
 *                              read of an eventfd, once for all that have ended meanwhile
 *     on the sender's thread   send, sendfile for each time the socket has room, as above; close of both, write of the
 *                              eventfd
 *
 * Start reading at `serve` in part 3.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "site.h"

enum {
    HEAD_MAX = 8192,        /* bytes of a request head; longer ones are answered 431 */
    STEP_BYTES = 2 << 20,   /* bytes per turn: what a fast client may take before the others are asked */
    DRAIN_MAX = 1 << 20,    /* bytes read and thrown away before a close */
    IDLE_SECONDS = 60,      /* for a request head to arrive whole, and for a stalled client to take a byte */
    LINGER_SECONDS = 5,     /* for the client to close after we have */
    STOP_SECONDS = 5,       /* for downloads to end when the server is told to */
    MIN_RATE = 100,         /* bytes per second that a client has to take from the sender, on average */
    FILE_SECONDS = 10,      /* a file not asked for in this time is closed */
    N_FILES = 1024,         /* files kept open; a power of two */
    N_EVENTS = 128,
};

static int64_t tick, wall; /* seconds, read once per turn of the loop; tick never goes back, wall is what Date shows */
static int dir_fd, epoll_fd;
static sendgate_sender *sender; /* NULL: responses are sent by this loop */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- 1. Lists --------------------------------------------------------------------------------- */

/* A connection is in exactly one list, which says what it waits for. */
struct link {
    struct link *prev, *next;
};

static struct link waiting = {&waiting, &waiting};     /* for the client; longest wait first */
static struct link ready = {&ready, &ready};           /* for nothing: has used up its turn */
static struct link offloaded = {&offloaded, &offloaded}; /* for the sender, which has its response */
static struct link lingering = {&lingering, &lingering}; /* answered and shut; for the client to close */
static struct link dead = {&dead, &dead};              /* closed; freed when this round's events are done */

static void link_remove(struct link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
}

static void link_append(struct link *list, struct link *l)
{
    l->prev = list->prev;
    l->next = list;
    l->prev->next = l;
    list->prev = l;
}

/* ---- 2. Files kept open ----------------------------------------------------------------------- */

/* Opening a file costs more than sending a small one, so files stay open, each under its path. What could go
 * stale then:
 *   its content, size and time   never do: every request asks the open file (one fstat in sendgate_rep_from_fd)
 *   which file the path means    is looked up again at most once a second. So for up to one second after
 *                                a file was replaced by rename, or removed, the old one is still served, whole
 *                                and with its own entity tag. (nginx calls this open_file_cache_valid;
 *                                its default is 60 seconds. The link count can't replace it: a file
 *                                that is renamed or has another name keeps it.)
 *   that there is no such file   is never remembered.
 * The table holds one file per hash value; a second one with the same value takes the place of the first. */
struct file {
    uint32_t refs;         /* the table's, and one for each response under way */
    uint32_t hash;
    int fd;
    dev_t dev;
    ino_t ino;
    int64_t checked, used; /* ticks */
    const char *type;
    char path[];
};

static struct file *files[N_FILES];

static void file_release(struct file *f)
{
    if (f != NULL && --f->refs == 0) {
        close(f->fd);
        free(f);
    }
}

static void file_forget(uint32_t slot)
{
    file_release(files[slot]);
    files[slot] = NULL;
}

/* Does the path still lead to this file? */
static bool file_is_current(struct file *f)
{
    if (f->checked == tick)
        return true;
    struct stat st;
    /* Only compared, never opened: it does not matter that this follows links anywhere. */
    if (fstatat(dir_fd, f->path, &st, 0) < 0 || st.st_dev != f->dev || st.st_ino != f->ino)
        return false;
    f->checked = tick;
    return true;
}

/* FNV-1a. */
static uint32_t hash_of(const char *path)
{
    uint32_t hash = 2166136261u;
    while (*path != '\0')
        hash = (hash ^ (unsigned char)*path++) * 16777619u;
    return hash;
}

/* The file at path (relative to dir_fd, percent-decoded), from the table or opened now. The caller gives it back with
 * file_release. NULL: *error is an errno, EISDIR for a directory. */
static struct file *file_get(const char *path, int *error)
{
    uint32_t hash = hash_of(path);
    uint32_t slot = hash % N_FILES;
    struct file *f = files[slot];
    if (f != NULL && f->hash == hash && strcmp(f->path, path) == 0) {
        if (file_is_current(f)) {
            f->used = tick;
            f->refs++;
            return f;
        }
        file_forget(slot);
    }

    int fd;
    int32_t sys_errno = 0;
    sendgate_status rc = sendgate_open(dir_fd, path, 0, NULL, 0, &fd, NULL, &sys_errno);
    if (rc != SENDGATE_OK) {
        /* A FIFO or device is nothing to download: as good as absent. */
        *error = sys_errno != 0 ? sys_errno : rc == SENDGATE_ERR_NOT_REGULAR ? ENOENT : EIO;
        return NULL;
    }
    struct stat st;
    size_t size = strlen(path) + 1;
    if (fstat(fd, &st) < 0 || (f = malloc(sizeof *f + size)) == NULL) {
        *error = errno;
        close(fd);
        return NULL;
    }
    *f = (struct file){.refs = 2, .hash = hash, .fd = fd, .dev = st.st_dev, .ino = st.st_ino,
                       .checked = tick, .used = tick, .type = site_type(path)};
    memcpy(f->path, path, size);
    file_forget(slot);
    files[slot] = f;
    return f;
}

/* Close the files that were not asked for since that tick: an open file keeps its place on the disk when deleted. */
static void files_close_unused(int64_t since)
{
    for (uint32_t i = 0; i < N_FILES; i++)
        if (files[i] != NULL && files[i]->used < since)
            file_forget(i);
}

/* ---- 3. A connection's life ------------------------------------------------------------------- */

struct conn {
    struct link link;            /* first, so that a list's links are connections */
    struct link *list;           /* the one it is in */
    int fd;
    bool readable, ended;        /* recv may find something; may find the end: events tell each only once */
    bool sending;                /* a response is under way, sent by this loop */
    int64_t since;               /* tick of entering `waiting`, or of the last progress there */
    sendgate_transfer *transfer; /* made once, started for each request */
    struct file *file;           /* of the response under way */
    uint64_t id;                 /* the sender's, of the response in its hands */
    size_t drained;              /* bytes thrown away while lingering */
    size_t begin, end;           /* the bytes received and not used yet: buf[begin..end] */
    size_t searched;             /* up to here there is no end of a head */
    char buf[HEAD_MAX];
};

/* Where a field sent on several lines is joined; enough for every request that fits conn.buf. */
static char scratch[HEAD_MAX];

static void conn_move(struct conn *c, struct link *list)
{
    link_remove(&c->link);
    link_append(list, &c->link);
    c->list = list;
    c->since = tick;
}

/* In `waiting`, with the time starting anew. Within the same second it stays where it is. */
static void conn_wait(struct conn *c)
{
    if (c->list != &waiting || c->since != tick)
        conn_move(c, &waiting);
}

/* Events of this round may still point here, so the memory is freed only after them. */
static void conn_close(struct conn *c)
{
    close(c->fd);
    c->fd = -1;
    file_release(c->file);
    c->file = NULL;
    conn_move(c, &dead);
}

/* Closing a socket with unread bytes in it makes the kernel send a reset, and that can destroy the answer before the
 * client has read it. So: say that no more will come, and read until the client closes too (RFC 9112 9.6). */
static void conn_linger(struct conn *c)
{
    if (c->list != &lingering) {
        shutdown(c->fd, SHUT_WR);
        conn_move(c, &lingering);
    }
    ssize_t n;
    while ((n = recv(c->fd, c->buf, sizeof c->buf, 0)) > 0 && c->drained < DRAIN_MAX)
        c->drained += (size_t)n;
    if (n >= 0 || errno != EAGAIN)
        conn_close(c);
}

/* A response has ended. true: the connection is free for the next request. */
static bool conn_answered(struct conn *c, uint32_t connection)
{
    c->sending = false;
    file_release(c->file);
    c->file = NULL;
    if (connection == SENDGATE_CONN_REUSABLE) {
        conn_wait(c);
        return true;
    }
    if (connection == SENDGATE_CONN_CLOSE)
        conn_linger(c);
    else /* cut short: the client went away, or the file became shorter */
        conn_close(c);
    return false;
}

/* What there is to do for a connection after a request was looked for in its buffer. */
enum next {
    GO_ON,   /* send the response if one is under way, and look for the next request */
    RECEIVE, /* there is no whole request yet */
    LEAVE,   /* nothing now: it is with the sender, or lingers, or is closed */
};

static enum next transfer_start(struct conn *c, const sendgate_exchange *ex)
{
    sendgate_sink sink = {.size = sizeof sink, .fd = c->fd, .flags = SENDGATE_SINK_SIGPIPE_IGNORED};
    c->sending = sendgate_transfer_start(c->transfer, ex, &sink) == SENDGATE_OK;
    if (c->sending)
        return GO_ON;
    conn_close(c);
    return LEAVE;
}

/* An answer without a file: its body is the status. header may be NULL. request is NULL if it could not be read; then
 * the connection can't go on either. */
static enum next answer_status(struct conn *c, const sendgate_request *request, unsigned status,
                               const sendgate_header *header)
{
    sendgate_rep rep = site_text(status);
    sendgate_exchange ex = {.size = sizeof ex, .request = request, .rep = &rep, .headers = header,
                            .n_headers = header != NULL, .now = wall, .http_status = status,
                            .head_flags = request == NULL ? SENDGATE_HEAD_CLOSE : 0};
    return transfer_start(c, &ex);
}

static enum next offload(struct conn *c, const sendgate_exchange *ex); /* in part 4 */

/* Start the answer to one request. */
static enum next answer(struct conn *c, const sendgate_request *request)
{
    if (!site_is(request->method, "GET") && !site_is(request->method, "HEAD")) {
        sendgate_header allow = {.field = {site_str("Allow"), site_str("GET, HEAD")}};
        return answer_status(c, request, 405, &allow);
    }
    char path[PATH_MAX];
    unsigned status = site_path(request->target, path);
    if (status != 0)
        return answer_status(c, request, status, NULL);

    int error = 0;
    struct file *f = file_get(path, &error);
    if (f == NULL) {
        char buf[HEAD_MAX + 8];
        sendgate_header header = {.field = {site_str("Location"), site_location(request->target, buf, sizeof buf)}};
        if (error == EISDIR && header.field.value.ptr != NULL)
            return answer_status(c, request, 301, &header);
        return answer_status(c, request, site_status(error), NULL);
    }

    sendgate_rep rep = {.size = sizeof rep}; /* filled from the file as it is now, not as it was when opened */
    char etag[SENDGATE_ETAG_MAX];
    if (sendgate_rep_from_fd(&rep, f->fd, 0, etag, sizeof etag, NULL) != SENDGATE_OK) {
        file_release(f);
        return answer_status(c, request, 500, NULL);
    }
    rep.content_type = site_str(f->type);
    sendgate_exchange ex = {.size = sizeof ex, .request = request, .rep = &rep, .now = wall};
    c->file = f;
    return sender != NULL ? offload(c, &ex) : transfer_start(c, &ex);
}

/* Send on. true: the response is complete, and the connection free for the next request. */
static bool serve_send(struct conn *c)
{
    sendgate_result result = {.size = sizeof result};
    switch (sendgate_transfer_step(c->transfer, STEP_BYTES, &result)) {
    case SENDGATE_WANT_WRITE:
        conn_wait(c);
        return false;
    case SENDGATE_YIELD:
        conn_move(c, &ready);
        return false;
    default: /* done, or an error */
        return conn_answered(c, result.connection);
    }
}

/* Start the answer to the next request in the buffer, if it is there as a whole. */
static enum next serve_request(struct conn *c)
{
    /* A head can only be complete where a line end has come: slowly arriving bytes are not parsed each time. */
    bool line = memchr(c->buf + c->searched, '\n', c->end - c->searched) != NULL;
    c->searched = c->end;
    sendgate_request request = {.size = sizeof request};
    size_t head_len = 0;
    sendgate_status rc = SENDGATE_WANT_READ;
    if (line)
        rc = sendgate_request_from_head(&request, c->buf + c->begin, c->end - c->begin, scratch, sizeof scratch, NULL,
                                        &head_len);
    if (rc == SENDGATE_OK) {
        c->searched = c->begin += head_len;
        return answer(c, &request);
    }
    if (rc != SENDGATE_WANT_READ)
        return answer_status(c, NULL, 400, NULL);
    if (c->end - c->begin == sizeof c->buf)
        return answer_status(c, NULL, 431, NULL);
    return RECEIVE;
}

/* Receive once. true: something came. */
static bool serve_receive(struct conn *c)
{
    if (c->begin > 0) {
        memmove(c->buf, c->buf + c->begin, c->end - c->begin);
        c->end -= c->begin;
        c->searched -= c->begin;
        c->begin = 0;
    }
    size_t room = sizeof c->buf - c->end;
    ssize_t n = recv(c->fd, c->buf + c->end, room, 0);
    if (n > 0) {
        c->end += (size_t)n;
        /* Fewer bytes than there was room for: that was all, and the next ones make a new event. It saves the call
         * that would say EAGAIN. Only the end of the stream makes no second event. */
        if ((size_t)n < room)
            c->readable = c->ended;
        return true;
    }
    c->readable = false;
    if (n == 0 || errno != EAGAIN)
        conn_close(c);
    return false;
}

/* All that can be done for a connection without waiting: finish the response under way, answer the requests that are in
 * the buffer (a client may send several ahead: each waits there for its turn), receive more. */
static void serve(struct conn *c)
{
    bool received = false;
    for (;;) {
        if (c->sending && !serve_send(c))
            return;
        enum next next = serve_request(c);
        if (next == GO_ON)
            continue;
        if (next == LEAVE || !c->readable)
            return;
        if (received) { /* a client that never stops sending gets its next turn after the others */
            conn_move(c, &ready);
            return;
        }
        if (!serve_receive(c))
            return;
        received = true;
    }
}

/* ---- 4. Offloading ------------------------------------------------------------------------------ */

/* With a sender this loop decides what is sent, and the sender's thread sends it:
 *
 *   offload          hands a file's response over, and leaves the connection alone
 *   offloaded_event  meanwhile: requests wait in the socket; only a client that is gone is of interest
 *   offloaded_done   goes on with the connection, when the sender's descriptor says so
 *   offload_stop     lets the downloads under way end, and then the sender
 *
 * Until its completion is taken, a connection that was handed over is neither written to nor freed. What the server
 * makes up itself (404 and the like) is a few bytes in memory, and goes on leaving by the connection's own transfer. */

static enum next offload(struct conn *c, const sendgate_exchange *ex)
{
    /* TRY_NOW: what takes no more than a moment is sent here and at once, as far as the socket takes it. Changing
     * threads would cost more. */
    sendgate_sink sink = {.size = sizeof sink, .fd = c->fd,
                          .flags = SENDGATE_SINK_SIGPIPE_IGNORED | SENDGATE_SINK_TRY_NOW,
                          .idle_timeout_ms = IDLE_SECONDS * 1000, .min_rate = MIN_RATE};
    sendgate_result result = {.size = sizeof result};
    sendgate_status rc = sendgate_sender_submit(sender, ex, &sink, c, &c->id, &result);
    if (rc == SENDGATE_PENDING) {
        file_release(c->file); /* the sender has a descriptor of its own */
        c->file = NULL;
        conn_move(c, &offloaded); /* where this loop has no timeout for it: the sender has */
        return LEAVE;
    }
    if (rc < 0 && result.connection == SENDGATE_CONN_UNTOUCHED) {
        /* It has as many responses as it takes, or there are no descriptors left. Waiting for one to end would look
         * kinder, but the clients that hold the places may do so for hours, and nobody could tell this server from a
         * dead one. With a 503 the client, or the proxy in front, knows at once. */
        sendgate_header later = {.field = {site_str("Retry-After"), site_str("5")}};
        return answer_status(c, ex->request, 503, &later);
    }
    return conn_answered(c, result.connection) ? GO_ON : LEAVE;
}

static void offloaded_event(struct conn *c, uint32_t events)
{
    /* Reset. EPOLLRDHUP alone says only that the client will send no more: it may well wait for the rest of its answer.
     * (If it has closed, the next bytes that it gets are answered with a reset.) EPOLLOUT comes here too, once for some
     * megabytes; to change the registration for each response would cost more. */
    if (events & (EPOLLHUP | EPOLLERR))
        sendgate_sender_cancel(sender, c->id);
}

/* Take what has ended; false: nothing had. With more than N_EVENTS the descriptor stays readable. */
static bool offloaded_done(bool go_on)
{
    sendgate_completion done[N_EVENTS];
    size_t n = 0;
    if (sendgate_sender_take(sender, done, N_EVENTS, &n) != SENDGATE_OK)
        return false;
    for (size_t i = 0; i < n; i++) {
        struct conn *c = done[i].token;
        if (!conn_answered(c, done[i].connection))
            continue;
        if (go_on)
            serve(c); /* requests that came in the meantime */
        else
            conn_linger(c);
    }
    return true;
}

/* All connections but those that are with the sender are closed. */
static void offload_stop(void)
{
    sendgate_sender_stop(sender, STOP_SECONDS * 1000); /* waits; what is not complete by then is cut short */
    while (offloaded_done(false))
        ;
    sendgate_sender_free(sender);
}

static void offload_start(uint64_t descriptors)
{
    /* A download takes two descriptors, its connection's and the sender's own of the same socket. (A file has one more
     * with the sender, however many download it.) With these many at most, a fifth is left to accept connections and
     * to answer them with 503, and for files. */
    uint64_t most = descriptors * 2 / 5 < 1 << 24 ? descriptors * 2 / 5 : 1 << 24;
    sendgate_sender_options options = {.size = sizeof options, .max_in_flight = (uint32_t)most};
    int32_t sys_errno = 0;
    sendgate_status rc = sendgate_sender_new(&options, &sender, &sys_errno);
    if (rc != SENDGATE_OK) {
        fprintf(stderr, "fileserver: sender: %s\n",
                rc == SENDGATE_ERR_IO ? strerror(sys_errno) : sendgate_status_message(rc));
        exit(1);
    }
    /* Not edge-triggered: then one batch per turn of the loop is enough, and the other connections get their turn. */
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &sender};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, sendgate_sender_fd(sender), &ev) < 0)
        die("fileserver: epoll");
}

/* ---- 5. The loop ------------------------------------------------------------------------------ */

static void conn_event(struct conn *c, uint32_t events)
{
    if (c->fd < 0)
        return; /* closed earlier in this round */
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        c->readable = true;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        c->ended = true;
    if (c->list == &lingering)
        conn_linger(c);
    else if (c->list == &offloaded)
        offloaded_event(c, events);
    else if (!c->sending || events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        serve(c);
}

static bool conn_new(int fd)
{
    struct conn *c = malloc(sizeof *c);
    if (c == NULL)
        return false;
    memset(c, 0, offsetof(struct conn, buf));
    c->fd = fd;
    /* All events at once and edge-triggered: epoll is never told anything again about this connection. */
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (sendgate_transfer_new(&c->transfer) != SENDGATE_OK || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0) {
        sendgate_transfer_free(c->transfer);
        free(c);
        return false;
    }
    c->link.prev = c->link.next = &c->link; /* in no list yet */
    conn_move(c, &waiting);
    return true;
}

static void conns_free_dead(void)
{
    while (dead.next != &dead) {
        struct conn *c = (struct conn *)dead.next;
        link_remove(&c->link);
        sendgate_transfer_free(c->transfer);
        free(c);
    }
}

static void conns_close_older(struct link *list, int64_t since)
{
    while (list->next != list && ((struct conn *)list->next)->since < since)
        conn_close((struct conn *)list->next);
}

/* Accept all that wait. false: no descriptors or memory left; the kernel keeps the clients waiting. */
static bool accept_all(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0 && !conn_new(fd)) {
            close(fd);
            return false;
        }
        if (fd >= 0 || errno == EINTR || errno == ECONNABORTED)
            continue;
        if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS)
            return true;
        files_close_unused(INT64_MAX);
        return false;
    }
}

static int listen_on(uint16_t port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof at;
    /* Accepted sockets inherit TCP_NODELAY. Without it the end of an answer can wait 40 ms for the client's delayed
     * acknowledgement of the one before. */
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0
        || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0
        || bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, SOMAXCONN) < 0
        || getsockname(fd, (struct sockaddr *)&at, &len) < 0)
        die("fileserver: listen");
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port));
    fflush(stdout);
    return fd;
}

/* Ctrl-C and SIGTERM as a descriptor in the loop: nothing is ever interrupted half-way. */
static int signals_open(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    signal(SIGPIPE, SIG_IGN); /* and tell each sink, which saves it two system calls per sendfile */
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        die("fileserver: sigprocmask");
    int fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (fd < 0)
        die("fileserver: signalfd");
    return fd;
}

static void read_clocks(void)
{
    struct timespec t; /* coarse: no system call, and seconds are all that is needed */
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    tick = t.tv_sec;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    wall = t.tv_sec;
}

static void loop(const int *listener, const int *signals)
{
    for (bool accepting = true;;) {
        int64_t before = tick;
        struct epoll_event events[N_EVENTS];
        int n = epoll_wait(epoll_fd, events, N_EVENTS, ready.next != &ready ? 0 : 1000);
        if (n < 0 && errno != EINTR)
            die("fileserver: epoll_wait");
        read_clocks();

        /* Those that had used up their turn, as they stand now: one that does so again goes behind `last`. */
        for (struct link *last = ready.prev, *l = ready.next, *next; l != &ready; l = next) {
            next = l == last ? &ready : l->next;
            conn_wait((struct conn *)l);
            serve((struct conn *)l);
        }
        for (int i = 0; i < n; i++) {
            void *what = events[i].data.ptr;
            if (what == listener)
                accepting = accept_all(*listener);
            else if (what == signals)
                return;
            else if (what == &sender)
                offloaded_done(true);
            else
                conn_event(what, events[i].events);
        }
        if (tick != before) { /* once a second */
            conns_close_older(&waiting, tick - IDLE_SECONDS);
            conns_close_older(&lingering, tick - LINGER_SECONDS);
            files_close_unused(tick - FILE_SECONDS);
            if (!accepting)
                accepting = accept_all(*listener);
        }
        conns_free_dead();
    }
}

int main(int argc, char **argv)
{
    bool offloads = argc > 1 && strcmp(argv[1], "--offload") == 0;
    argv += offloads;
    argc -= offloads;
    char *rest = NULL;
    long port = argc == 3 ? strtol(argv[1], &rest, 10) : -1;
    if (port < 0 || port > 65535 || rest == argv[1] || *rest != '\0') {
        fprintf(stderr, "usage: fileserver [--offload] PORT DIR\n");
        return 2;
    }
    if ((dir_fd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        die(argv[2]);
    struct rlimit limit = {1024, 1024}; /* as many connections as the system lets us have */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){limit.rlim_max, limit.rlim_max});
    read_clocks();
    int signals = signals_open();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("fileserver: epoll");
    if (offloads)
        offload_start(limit.rlim_max);
    int listener = listen_on((uint16_t)port);
    /* Edge-triggered as well: a listener that can't be emptied for want of descriptors must not spin the loop. */
    struct epoll_event on_accept = {.events = EPOLLIN | EPOLLET, .data.ptr = &listener};
    struct epoll_event on_signal = {.events = EPOLLIN, .data.ptr = &signals};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &on_accept) < 0
        || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, signals, &on_signal) < 0)
        die("fileserver: epoll");

    loop(&listener, &signals);
    close(listener); /* first, so that new clients go elsewhere */
    conns_close_older(&waiting, INT64_MAX);
    conns_close_older(&ready, INT64_MAX);
    if (offloads)
        offload_stop();
    conns_close_older(&lingering, INT64_MAX);
    conns_free_dead();
    files_close_unused(INT64_MAX);
    close(signals);
    close(epoll_fd);
    close(dir_fd);
    return 0;
}
