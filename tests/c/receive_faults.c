/* Each system call that receiving makes fails in turn, with each error that it may have, or does less than it was asked
 * for: what was taken from the socket is counted, what is counted as stored is there, all else is still in the socket,
 * and nothing leaks.
 *
 * This program has functions of its own under the names of libc's that the library calls. They count, pass the call on,
 * and let the one fail that `fault` names.
 */
#include "interpose.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)

/* ---- libc's functions ---- */

enum call { RECV, TAKE, GIVE, READ, PWRITE, PIPE2, POLL, FCNTL, FSTAT, GETRLIMIT, GETSOCKOPT, ALLOCATE, N_CALLS };
static const char *const call_names[N_CALLS] = {
    "recv", "splice from the socket", "splice to the file", "read", "pwrite", "pipe2", "poll", "fcntl", "fstat",
    "getrlimit", "getsockopt", "an allocation",
};

static struct fault {
    enum call call;
    int error;           /* 0: not a failure, but at most so many bytes: */
    size_t at_most;
    unsigned long first; /* this one of the calls; 0: none */
    unsigned long last;
    int pipes_are_useless; /* besides, the file takes nothing from a pipe */
    unsigned delay_us;     /* besides, the first write takes so long */
} fault;
static unsigned long counts[N_CALLS], hits;
/* Within a call of the library, in the thread that makes it. */
static __thread int inside;
static int operation_hit; /* of fcntl, in the last call that failed */
static int closed = -1;   /* this descriptor is closed before the call */
static sendgate_source limits; /* of the time that the call may take */

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

INTERPOSE(ssize_t, recv, (int fd, void *bytes, size_t len, int flags), fails(RECV, &len), -1, (fd, bytes, len, flags))

ssize_t splice(int from, off64_t *from_at, int to, off64_t *to_at, size_t len, unsigned flags)
{
    static ssize_t (*real)(int, off64_t *, int, off64_t *, size_t, unsigned);
    FIND(real, "splice");
    if (fails(to_at != NULL ? GIVE : TAKE, &len))
        return -1;
    if (inside && to_at != NULL && fault.pipes_are_useless) {
        errno = EINVAL;
        return -1;
    }
    return real(from, from_at, to, to_at, len, flags);
}

INTERPOSE(ssize_t, read, (int fd, void *bytes, size_t len), fails(READ, &len), -1, (fd, bytes, len))

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset)
{
    static ssize_t (*real)(int, const void *, size_t, off_t);
    FIND(real, "pwrite");
    if (inside && fault.delay_us != 0 && counts[PWRITE] == 0)
        usleep(fault.delay_us);
    return fails(PWRITE, &len) ? -1 : real(fd, bytes, len, offset);
}

INTERPOSE(int, pipe2, (int ends[2], int flags), fails(PIPE2, NULL), -1, (ends, flags))
INTERPOSE(int, poll, (struct pollfd *entries, nfds_t n, int timeout), fails(POLL, NULL), -1, (entries, n, timeout))

int fcntl(int fd, int operation, ...)
{
    static int (*real)(int, int, ...);
    FIND(real, "fcntl");
    va_list args;
    va_start(args, operation);
    void *argument = va_arg(args, void *);
    va_end(args);
    /* F_GETFD: Rust's standard library looks at what it closes, in a debug build. */
    unsigned long before = hits;
    int failed = operation != F_GETFD && fails(FCNTL, NULL);
    if (hits != before)
        operation_hit = operation;
    return failed ? -1 : real(fd, operation, argument);
}

INTERPOSE(int, fstat, (int fd, struct stat *status), fails(FSTAT, NULL), -1, (fd, status))
INTERPOSE(int, getrlimit, (__rlimit_resource_t resource, struct rlimit *limit),
          fails(GETRLIMIT, NULL), -1, (resource, limit))
INTERPOSE(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *len),
          fails(GETSOCKOPT, NULL), -1, (fd, level, name, value, len))
INTERPOSE(void *, malloc, (size_t size), fails(ALLOCATE, NULL), NULL, (size))
INTERPOSE(void *, realloc, (void *old, size_t size), fails(ALLOCATE, NULL), NULL, (old, size))

/* ---- One upload ---- */

#define BEHIND 100
static const struct way {
    const char *name;
    size_t len;
    int file;
    int pipes_are_useless;
} ways[] = {
    {"to memory", 150000, 0, 0},
    {"to a file, copied", 100000, 1, 0},
    {"to a file, through a pipe", 700000, 1, 0},
    {"to a file that takes nothing from a pipe", 700000, 1, 1},
};
static uint8_t *content;

struct feeder {
    int fd;
    size_t len;
};

static void *feed(void *arg)
{
    struct feeder *feeder = arg;
    for (size_t done = 0; done < feeder->len;) {
        size_t most = feeder->len - done < 50000 ? feeder->len - done : 50000;
        ssize_t n = send(feeder->fd, content + done, most, MSG_NOSIGNAL);
        MUST(n > 0);
        done += (size_t)n;
    }
    return NULL;
}

/* Receives with the fault as it is, checks all that holds whatever happens, and returns the outcome. */
static sendgate_status run(const struct way *way, sendgate_received *got)
{
    static uint8_t bytes[700000 + BEHIND];
    int sockets[2], before = open_fds();
    make_pair(UNIX_PAIR, 0, sockets);
    int flags = fcntl(sockets[0], F_GETFL);
    int file = open("upload", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(file >= 0);
    struct feeder feeder = {sockets[1], way->len + BEHIND};
    pthread_t thread;
    memset(got, 0, sizeof *got);
    got->size = sizeof *got;
    sendgate_source source = {.size = sizeof source, .fd = sockets[0], .idle_timeout_ms = 30000};
    if (limits.idle_timeout_ms != 0) {
        source.idle_timeout_ms = limits.idle_timeout_ms;
        source.total_timeout_ms = limits.total_timeout_ms;
        source.min_rate = limits.min_rate;
    }
    memset(bytes, 0, way->len);
    /* Nothing is there at first, so that there is something to wait for. */
    source.flags = SENDGATE_SOURCE_TRY_NOW;
    MUST(sendgate_receive(&source, bytes, way->len, NULL) == SENDGATE_WANT_READ);
    source.flags = 0;
    memset(counts, 0, sizeof counts);
    hits = 0;
    fault.pipes_are_useless = way->pipes_are_useless;
    MUST(pthread_create(&thread, NULL, feed, &feeder) == 0);
    if (closed >= 0)
        close(closed);
    inside = 1;
    sendgate_status status = way->file ? sendgate_receive_file(&source, file, 0, way->len, got)
                                       : sendgate_receive(&source, bytes, way->len, got);
    inside = 0;

    CHECK_STATUS(got->status, status);
    CHECK((status == SENDGATE_OK) == (got->stored == way->len));
    CHECK(got->stored <= got->received && got->received <= way->len);
    CHECK(way->file || got->stored == got->received);
    if (way->file)
        CHECK_INT(pread(file, bytes, way->len, 0), got->stored);
    CHECK(is_pattern(bytes, got->stored, 0));
    if (!(hits > 0 && fault.call == FCNTL))
        CHECK_INT(fcntl(sockets[0], F_GETFL), flags);
    MUST(fcntl(sockets[0], F_SETFL, flags) == 0);
    size_t left = way->len + BEHIND - got->received;
    CHECK_INT(recv(sockets[0], bytes, left, MSG_WAITALL), left);
    CHECK(is_pattern(bytes, left, got->received));
    MUST(pthread_join(thread, NULL) == 0);
    close(file);
    close(sockets[0]);
    close(sockets[1]);
    CHECK_INT(open_fds(), before - (closed >= 0));
    return status;
}

/* Whether the outcome of this failure has to be that there was none. */
static int is_harmless(enum call call, int error)
{
    switch (call) {
    case RECV:
        return error == EINTR || error == EAGAIN;
    case TAKE:
        return error == EINTR || error == EAGAIN || error == EINVAL || error == EPERM;
    case GIVE:
        return error == EINTR || error == EINVAL || error == EPERM;
    case READ:
    case PWRITE:
    case POLL:
        return error == EINTR;
    case PIPE2:      /* then it is copied */
    case GETSOCKOPT: /* the same */
    case GETRLIMIT:  /* then there is no limit */
        return 1;
    case FCNTL:
        /* The mode of the socket, and the size of the pipe; but not the flags of the file. */
        return operation_hit == F_SETPIPE_SZ || operation_hit == F_SETFL || counts[FCNTL] > 1;
    default:
        return 0;
    }
}

static void every_call_fails(void)
{
    static const int errors[] = {EINTR, EAGAIN, EIO, EINVAL, EPERM, ENOMEM, ENOSPC, EMFILE};
    sendgate_received got;
    for (size_t w = 0; w < N(ways); w++) {
        memset(&fault, 0, sizeof fault);
        check_case("%s, no fault", ways[w].name);
        CHECK_STATUS(run(&ways[w], &got), SENDGATE_OK);
        /* It takes the way that it is named after. */
        CHECK_INT(counts[TAKE] > 0, ways[w].len == 700000);
        CHECK_INT(counts[GIVE] > 0, ways[w].len == 700000);
        /* Through a pipe too if bytes come just when there was nothing. */
        if (ways[w].len == 100000 || ways[w].pipes_are_useless)
            CHECK(counts[PWRITE] > 0);
        CHECK_INT(counts[READ] > 0, ways[w].pipes_are_useless);
        if (ways[w].pipes_are_useless)
            CHECK_INT(counts[GIVE], 1); /* is not tried again */
        for (int call = 0; call < N_CALLS; call++) {
            for (size_t e = 0; e < N(errors); e++) {
                if (call == ALLOCATE && errors[e] != ENOMEM)
                    continue;
                /* How many calls there are differs from run to run: until there is none that fails. */
                for (unsigned long n = 1; n <= 6; n++) {
                    memset(&fault, 0, sizeof fault);
                    fault.call = (enum call)call;
                    fault.error = errors[e];
                    fault.first = fault.last = n;
                    check_case("%s, %s number %lu fails: %s", ways[w].name, call_names[call], n, strerror(errors[e]));
                    sendgate_status status = run(&ways[w], &got);
                    if (hits == 0)
                        break;
                    if (is_harmless((enum call)call, errors[e])) {
                        CHECK_STATUS(status, SENDGATE_OK);
                    } else if (call == ALLOCATE) {
                        CHECK(status == SENDGATE_ERR_NO_MEMORY || (status == SENDGATE_ERR_IO && got.sys_errno == ENOMEM));
                    } else {
                        CHECK_STATUS(status, SENDGATE_ERR_IO);
                        CHECK_INT(got.sys_errno, errors[e]);
                    }
                }
            }
        }
    }
}

/* Each call does no more than a part of what it was asked for. */
static void short_counts(void)
{
    static const size_t most[] = {1, 999, 4097};
    static const enum call calls[] = {RECV, TAKE, GIVE, READ, PWRITE};
    sendgate_received got;
    for (size_t w = 0; w < N(ways); w++) {
        for (size_t c = 0; c < N(calls); c++) {
            for (size_t m = 0; m < N(most); m++) {
                memset(&fault, 0, sizeof fault);
                fault.call = calls[c];
                fault.at_most = most[m];
                fault.first = 1;
                /* A byte at a time for a while; then all at once. */
                fault.last = most[m] == 1 ? 2000 : (unsigned long)-1;
                check_case("%s, %s of at most %zu bytes", ways[w].name, call_names[calls[c]], most[m]);
                CHECK_STATUS(run(&ways[w], &got), SENDGATE_OK);
            }
        }
    }
}

/* What never happens, but would otherwise be tried for ever: a file that takes nothing and says nothing. */
static void files_that_take_nothing(void)
{
    sendgate_received got;
    for (size_t w = 1; w < N(ways); w++) {
        static const enum call calls[] = {PWRITE, GIVE};
        for (size_t c = 0; c < N(calls); c++) {
            memset(&fault, 0, sizeof fault);
            fault.call = calls[c];
            fault.first = 2;
            fault.last = 2;
            check_case("%s, %s takes nothing", ways[w].name, call_names[calls[c]]);
            sendgate_status status = run(&ways[w], &got);
            if (hits > 0 && !ways[w].pipes_are_useless) {
                CHECK_STATUS(status, SENDGATE_ERR_IO);
                CHECK_INT(got.sys_errno, EIO);
            }
        }
    }
}

/* A daemon has closed standard input, output and error: a pipe with their numbers would take what is printed. */
static void no_pipe_below_3(void)
{
    for (int fd = 0; fd < 3; fd++) {
        sendgate_received got;
        memset(&fault, 0, sizeof fault);
        check_case("descriptor %d is closed", fd);
        int kept = dup(fd);
        MUST(kept >= 0);
        /* What the test opens itself must not take its place. */
        closed = fd;
        sendgate_status status = run(&ways[2], &got);
        closed = -1;
        MUST(dup2(kept, fd) == fd);
        close(kept);
        CHECK_STATUS(status, SENDGATE_OK);
        CHECK_INT(counts[PIPE2], 1);
        CHECK_INT(counts[TAKE], 0);
    }
}

/* Who doesn't wait calls for few bytes at a time: these are not worth a pipe. */
static void a_pipe_only_for_many(void)
{
    static const size_t there[] = {0, 1, 1000, 131071, 131072, 180000};
    for (size_t i = 0; i < N(there); i++) {
        check_case("%zu bytes are there, without waiting", there[i]);
        int sockets[2], room = 1 << 20;
        make_pair(UNIX_PAIR, 0, sockets);
        MUST(setsockopt(sockets[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
        MUST(send(sockets[1], content, there[i], MSG_DONTWAIT) == (ssize_t)there[i]);
        int file = open("upload", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        MUST(file >= 0);
        memset(&fault, 0, sizeof fault);
        memset(counts, 0, sizeof counts);
        sendgate_source source = {.size = sizeof source, .fd = sockets[0], .flags = SENDGATE_SOURCE_TRY_NOW};
        sendgate_received got = {.size = sizeof got};
        inside = 1;
        sendgate_status status = sendgate_receive_file(&source, file, 0, 700000, &got);
        inside = 0;
        CHECK_STATUS(status, SENDGATE_WANT_READ);
        CHECK_INT(got.stored, there[i]);
        CHECK_INT(counts[PIPE2], there[i] >= 131072);
        CHECK_INT(counts[FCNTL] == 1, there[i] < 131072); /* the flags of the file */
        close(file);
        close(sockets[0]);
        close(sockets[1]);
    }
}

/* While the file takes its time the peer can do nothing. */
static void a_slow_file(void)
{
    check_case("a file that takes longer than a period of min_rate");
    struct way way = {"to a slow file", 450000, 1, 0};
    sendgate_received got;
    memset(&fault, 0, sizeof fault);
    fault.delay_us = 3000000;
    limits = (sendgate_source){.idle_timeout_ms = 2000, .total_timeout_ms = 60000, .min_rate = 100000};
    CHECK_STATUS(run(&way, &got), SENDGATE_OK);
    memset(&limits, 0, sizeof limits);
}

/* The error queue of a socket has something for the caller, so poll returns at once: that is no busy loop. */
static void an_error_that_stays(void)
{
    check_case("an error queue that isn't empty");
    int sockets[2], one = 1;
    static uint8_t bytes[20000];
    make_pair(TCP_PAIR, 0, sockets);
    if (setsockopt(sockets[0], SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) < 0) {
        printf("skipped: an error queue: no SO_ZEROCOPY\n");
    } else {
        MUST(send(sockets[0], bytes, sizeof bytes, MSG_ZEROCOPY) == (ssize_t)sizeof bytes);
        MUST(recv(sockets[1], bytes, sizeof bytes, MSG_WAITALL) == (ssize_t)sizeof bytes);
        struct pollfd queue = {sockets[0], 0, 0};
        MUST(poll(&queue, 1, 60000) == 1 && queue.revents == POLLERR);
        memset(&fault, 0, sizeof fault);
        memset(counts, 0, sizeof counts);
        sendgate_source source = {.size = sizeof source, .fd = sockets[0], .idle_timeout_ms = 500};
        inside = 1;
        sendgate_status status = sendgate_receive(&source, bytes, 10, NULL);
        inside = 0;
        CHECK_STATUS(status, SENDGATE_ERR_TIMEOUT);
        CHECK(counts[POLL] >= 2 && counts[POLL] < 100);
    }
    close(sockets[0]);
    close(sockets[1]);
}

int main(void)
{
    check_begin();
    content = malloc(800000);
    MUST(content != NULL);
    pattern_fill(content, 800000);
    every_call_fails();
    short_counts();
    files_that_take_nothing();
    no_pipe_below_3();
    a_pipe_only_for_many();
    a_slow_file();
    an_error_that_stays();
    free(content);
    return check_end();
}
