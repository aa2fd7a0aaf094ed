/* Each system call that a stream makes fails in turn, with each error that it may have, or does less than it was asked
 * for: the peer gets the beginning of the right bytes or all of them, the outcome says which, and nothing leaks.
 *
 * This program has functions of its own under the names of libc's that the library calls. They count, pass the call on,
 * and let the one fail that `fault` names.
 */
#include "interpose.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)

/* ---- libc's functions ---- */

enum call { SENDMSG, SEND, POLL, IOCTL, GETSOCKOPT, SETSOCKOPT, ALLOCATE, N_CALLS };
static const char *const call_names[N_CALLS] = {"sendmsg", "send",       "poll",         "ioctl",
                                                "getsockopt", "setsockopt", "an allocation"};

static struct fault {
    enum call call;
    int error;      /* 0: not a failure, but at most so many bytes: */
    size_t at_most;
    unsigned long first, last; /* those of the calls that fail; first 0: none */
} fault;
static unsigned long counts[N_CALLS], hits;
/* Within a call of the library, in the thread that makes it. */
static __thread int inside;

/* Counts a call. Whether it is one that fails: then errno is set, or if it is only shortened, *most. */
static int fails(enum call call, size_t *most)
{
    if (!inside)
        return 0;
    unsigned long n = ++counts[call];
    if (call != fault.call || fault.first == 0 || n < fault.first || n > fault.last)
        return 0;
    hits++;
    if (fault.error == 0) {
        if (most != NULL && *most > fault.at_most)
            *most = fault.at_most;
        return 0;
    }
    errno = fault.error;
    return 1;
}

INTERPOSE(ssize_t, send, (int fd, const void *bytes, size_t len, int flags),
          fails(SEND, &len), -1, (fd, bytes, len, flags))

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, const struct msghdr *, int);
    FIND(real, "sendmsg");
    size_t most = SIZE_MAX;
    if (fails(SENDMSG, &most))
        return -1;
    struct iovec pieces[8];
    struct msghdr cut = *message;
    MUST(message->msg_iovlen <= N(pieces));
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        pieces[i] = message->msg_iov[i];
        if (pieces[i].iov_len > most)
            pieces[i].iov_len = most;
        most -= pieces[i].iov_len;
    }
    cut.msg_iov = pieces;
    return real(fd, &cut, flags);
}

/* The peer begins to read when somebody waits for it: so there is something to wait for. */
static struct peer *idle;

static void begin_to_read(void)
{
    int was_inside = inside;
    inside = 0;
    if (idle != NULL)
        peer_start(idle);
    idle = NULL;
    inside = was_inside;
}

int poll(struct pollfd *entries, nfds_t n, int timeout)
{
    static int (*real)(struct pollfd *, nfds_t, int);
    FIND(real, "poll");
    begin_to_read();
    return fails(POLL, NULL) ? -1 : real(entries, n, timeout);
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, ...);
    FIND(real, "ioctl");
    va_list args;
    va_start(args, request);
    void *argument = va_arg(args, void *);
    va_end(args);
    return fails(IOCTL, NULL) ? -1 : real(fd, request, argument);
}

INTERPOSE(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *len),
          fails(GETSOCKOPT, NULL), -1, (fd, level, name, value, len))
INTERPOSE(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t len),
          fails(SETSOCKOPT, NULL), -1, (fd, level, name, value, len))
INTERPOSE(void *, malloc, (size_t size), fails(ALLOCATE, NULL), NULL, (size))
INTERPOSE(void *, realloc, (void *old, size_t size), fails(ALLOCATE, NULL), NULL, (old, size))

/* ---- One response ---- */

#define LENGTH 150000
#define PIECE 60000
static uint8_t *content;

static const struct way {
    const char *name;
    enum kind kind;
    long long length; /* -1: unknown */
    uint32_t version;
    const char *range;
    int waits;
    sendgate_range parts[2];
} ways[] = {
    {"counted", UNIX_PAIR, LENGTH, 11, NULL, 1, {{0, LENGTH}, {0, 0}}},
    {"counted, TCP", TCP_PAIR, LENGTH, 11, NULL, 1, {{0, LENGTH}, {0, 0}}},
    {"several parts", TCP_PAIR, LENGTH, 11, "bytes=100000-,0-49999", 1, {{100000, 50000}, {0, 50000}}},
    {"in chunks", TCP_PAIR, -1, 11, NULL, 1, {{0, LENGTH}, {0, 0}}},
    {"in chunks, without waiting", UNIX_PAIR, -1, 11, NULL, 0, {{0, LENGTH}, {0, 0}}},
    {"up to the end of the connection", UNIX_PAIR, -1, 10, NULL, 1, {{0, LENGTH}, {0, 0}}},
};

static void wait_for(sendgate_status wanted, int sock)
{
    struct pollfd wait = {sock, wanted == SENDGATE_WANT_WRITE ? POLLOUT : POLLIN, 0};
    MUST(poll(&wait, 1, 60000) == 1);
}

/* The response with the fault as it is; what the peer got is in *peer. */
static sendgate_status run(const struct way *way, struct peer *peer, sendgate_result *result)
{
    static const sendgate_field trailer = {{"X-End", 5}, {"yes", 3}};
    int sockets[2], size = 4096, before = open_fds();
    char long_value[1000]; /* so that the head doesn't fit into what a handle has room for */
    sendgate_header header;
    struct ask ask;
    make_pair(way->kind, 0, sockets);
    MUST(setsockopt(sockets[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    ask_memory(&ask, NULL, 0, sockets[0]);
    ask.rep.kind = SENDGATE_REP_STREAM;
    ask.rep.length = way->length < 0 ? 0 : (uint64_t)way->length;
    ask.rep.flags = way->length < 0 ? SENDGATE_REP_UNSIZED : SENDGATE_REP_SEEKABLE;
    ask.request.version = way->version;
    if (way->range != NULL)
        ask.request.range = text(way->range);
    memset(&header, 0, sizeof header);
    memset(long_value, 'v', sizeof long_value);
    header.field.name = text("X-Long");
    header.field.value = text_of(long_value, sizeof long_value);
    header.rule = SENDGATE_RULE_APPEND;
    ask.exchange.headers = &header;
    ask.exchange.n_headers = 1;
    ask.exchange.now = 1700000000;
    ask.exchange.seed = 7;
    ask.sink.flags = way->waits ? 0 : SENDGATE_SINK_TRY_NOW;
    memset(counts, 0, sizeof counts);
    hits = 0;
    peer_init(peer, sockets[1]);
    idle = peer;

    sendgate_stream *stream = NULL;
    inside = 1;
    sendgate_status status = sendgate_stream_new(&stream);
    if (status == SENDGATE_OK)
        status = sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL);
    int started = status == SENDGATE_OK;
    unsigned long allocations = counts[ALLOCATE];
    for (size_t part = 0; part < 2; part++) {
        size_t written;
        for (size_t at = 0, end = 0; status == SENDGATE_OK && at < way->parts[part].length; at += written) {
            size_t left = (size_t)way->parts[part].length - at;
            if (at == end)
                end = at + (left < PIECE ? left : PIECE);
            status = sendgate_stream_write(stream, content + way->parts[part].offset + at, end - at, &written, &ask.result);
            if (status == SENDGATE_WANT_WRITE) {
                inside = 0;
                wait_for(status, sockets[0]);
                inside = 1;
                status = SENDGATE_OK;
                if (at + written == end) {
                    /* What stands behind the chunk is left. */
                    status = sendgate_stream_write(stream, NULL, 0, NULL, &ask.result);
                    status = status == SENDGATE_WANT_WRITE ? SENDGATE_OK : status;
                }
            }
        }
    }
    /* No write allocates. */
    CHECK_INT(counts[ALLOCATE], allocations);
    if (status == SENDGATE_OK) {
        while ((status = sendgate_stream_end(stream, &trailer, 1, &ask.result)) == SENDGATE_WANT_WRITE) {
            inside = 0;
            wait_for(status, sockets[0]);
            inside = 1;
        }
    }
    if (started && status != SENDGATE_OK) {
        /* For good, whatever the system would say now. */
        unsigned long calls = counts[SENDMSG];
        CHECK_STATUS(sendgate_stream_write(stream, content, 1, NULL, NULL), status);
        CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), status);
        CHECK_INT(counts[SENDMSG], calls);
    }
    sendgate_stream_free(stream);
    inside = 0;

    int nodelay = 0;
    socklen_t len = sizeof nodelay;
    if (way->kind == TCP_PAIR && !(hits > 0 && fault.call == SETSOCKOPT))
        CHECK(getsockopt(sockets[0], IPPROTO_TCP, TCP_NODELAY, &nodelay, &len) == 0 && nodelay == 0);
    close(sockets[0]);
    begin_to_read();
    peer_join(peer);
    CHECK_INT(open_fds(), before);
    *result = ask.result;
    if (started)
        CHECK_STATUS(result->status, status);
    else
        CHECK_INT(peer->len, 0);
    return status;
}

/* The bytes that the peer has got are those, or the beginning of them. */
static void check_bytes(const struct peer *got, const struct peer *whole, sendgate_status status,
                        const sendgate_result *result)
{
    CHECK(got->len <= whole->len && (got->len == 0 || memcmp(got->data, whole->data, got->len) == 0));
    CHECK_INT(got->len == whole->len, status == SENDGATE_OK);
    if (status != SENDGATE_OK)
        CHECK_INT(result->connection, got->len == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
}

static int is_harmless(enum call call, int error)
{
    switch (call) {
    case SENDMSG:
    case SEND:
        return error == EINTR || error == EAGAIN;
    case POLL:
        return error == EINTR;
    case IOCTL:      /* then nobody knows what the peer has taken, and times are counted by what was sent */
    case GETSOCKOPT: /* then Nagle's algorithm is left alone */
    case SETSOCKOPT:
        return 1;
    default:
        return 0;
    }
}

static void every_call_fails(const struct way *way, const struct peer *whole)
{
    static const int errors[] = {EINTR, EAGAIN, EIO, EPIPE, ECONNRESET, ENOBUFS, ENOMEM, EINVAL, EBADF};
    for (int call = 0; call < N_CALLS; call++) {
        for (size_t e = 0; e < N(errors); e++) {
            if (call == ALLOCATE && errors[e] != ENOMEM)
                continue;
            /* How many calls there are differs from run to run: until there is none that fails. */
            for (unsigned long n = 1; n <= 12; n++) {
                struct peer peer;
                sendgate_result result;
                memset(&fault, 0, sizeof fault);
                fault.call = (enum call)call;
                fault.error = errors[e];
                fault.first = fault.last = n;
                check_case("%s, %s number %lu fails: %s", way->name, call_names[call], n, strerror(errors[e]));
                sendgate_status status = run(way, &peer, &result);
                int was_hit = hits > 0;
                if (!was_hit || is_harmless((enum call)call, errors[e])) {
                    CHECK_STATUS(status, SENDGATE_OK);
                } else if (call == ALLOCATE) {
                    CHECK_STATUS(status, SENDGATE_ERR_NO_MEMORY);
                } else {
                    int closed = call == SENDMSG && (errors[e] == EPIPE || errors[e] == ECONNRESET);
                    CHECK_STATUS(status, closed ? SENDGATE_ERR_PEER_CLOSED : SENDGATE_ERR_IO);
                    CHECK_INT(result.sys_errno, errors[e]);
                }
                if (call == ALLOCATE && peer.len == 0)
                    result.connection = SENDGATE_CONN_UNTOUCHED; /* there may have been no handle to tell */
                check_bytes(&peer, whole, status, &result);
                peer_free(&peer);
                if (!was_hit)
                    break;
            }
        }
    }
}

static void short_counts(const struct way *way, const struct peer *whole)
{
    static const size_t most[] = {1, 999, 60001};
    for (size_t m = 0; m < N(most); m++) {
        struct peer peer;
        sendgate_result result;
        memset(&fault, 0, sizeof fault);
        fault.call = SENDMSG;
        fault.at_most = most[m];
        fault.first = 1;
        /* A byte at a time through the head and beyond; then all at once. */
        fault.last = most[m] == 1 ? 3000 : (unsigned long)-1;
        check_case("%s, sendmsg of at most %zu bytes", way->name, most[m]);
        sendgate_status status = run(way, &peer, &result);
        CHECK_STATUS(status, SENDGATE_OK);
        check_bytes(&peer, whole, status, &result);
        peer_free(&peer);
    }
}

int main(void)
{
    check_begin();
    content = malloc(LENGTH);
    MUST(content != NULL);
    pattern_fill(content, LENGTH);
    for (size_t w = 0; w < N(ways); w++) {
        struct peer whole;
        sendgate_result result;
        memset(&fault, 0, sizeof fault);
        check_case("%s, no fault", ways[w].name);
        CHECK_STATUS(run(&ways[w], &whole, &result), SENDGATE_OK);
        CHECK(whole.len > 100000);
        /* Valgrind has a malloc of its own. */
        CHECK(counts[ALLOCATE] > 1 || getenv("SENDGATE_TEST_SLOW") != NULL);
        CHECK_INT(counts[POLL] > 0, ways[w].waits);
        every_call_fails(&ways[w], &whole);
        short_counts(&ways[w], &whole);
        peer_free(&whole);
    }
    free(content);
    return check_end();
}
