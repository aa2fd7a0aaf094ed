/* Each system call that a sender makes fails once in turn, on its thread and in submit: what was accepted is reported
 * exactly once all the same, the right one is the one that fails, and nothing leaks.
 *
 * This program has functions of its own under the names of libc's that the library calls. They count, pass the call on,
 * and let the one fail that `fault` names. So: 1. the functions, 2. a scenario with a response of every kind,
 * 3. the scenario with every fault, 4. what fails in other ways.
 */
#include "interpose.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* ---- 1. libc's functions ---- */

enum call {
    SEND, SENDMSG, SENDFILE, PREAD, PREADV2, FADVISE, FSTAT, EPOLL_WAIT, EPOLL_CTL, EPOLL_CREATE1, EVENTFD, READ, WRITE,
    FCNTL, IOCTL, GETSOCKOPT, SETSOCKOPT, PTHREAD_CREATE, ALLOCATE, N_CALLS
};

static const char *const call_names[N_CALLS] = {
    "send", "sendmsg", "sendfile", "pread", "preadv2", "posix_fadvise", "fstat", "epoll_wait", "epoll_ctl",
    "epoll_create1", "eventfd", "read", "write", "fcntl", "ioctl", "getsockopt", "setsockopt", "pthread_create",
    "an allocation",
};

/* Who makes a call. A thread that says nothing is the sender's. */
enum place { SENDER, NEW, SUBMIT, TAKE, NOT_COUNTED, N_PLACES };
static const char *const place_names[N_PLACES] = {"the sender's thread", "new", "submit", "take", "the test"};
static __thread enum place place;

static const struct fault {
    enum place place;
    enum call call;
    int error; /* 0: not a failure, but at most so many bytes: */
    size_t at_most;
    unsigned long first, last; /* those of the calls that fail; first 0: none */
    unsigned long cold;        /* besides, the first so many looks at the page cache find nothing there */
} no_fault;
static struct fault fault;

#ifndef F_DUPFD_QUERY
#define F_DUPFD_QUERY 1027 /* Linux 6.10 */
#endif

/* How many descriptors are kept track of. */
#define FDS 1024

static unsigned long counts[N_PLACES][N_CALLS];
static struct {
    unsigned long times; /* how many calls have failed */
    int transfer;        /* whose descriptor it was, in the last of them; -1: none's */
    int operation;       /* of epoll_ctl or fcntl */
} hit;
/* The response that is being submitted, and those for which descriptors were duplicated. */
static int submitting = -1, owners[FDS];
/* What epoll was asked to tell about a descriptor. */
static struct {
    int epoll;
    struct epoll_event event;
} registered[FDS];
/* epoll_wait was called with time to wait: the thread has begun, and had nothing to do. */
static int asleep;
static pthread_mutex_t asleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asleep_now = PTHREAD_COND_INITIALIZER;
/* Called, in the place of the test, where a call fails. */
static void (*meanwhile)(void);

static int real_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    static int (*real)(int, int, int, struct epoll_event *);
    FIND(real, "epoll_ctl");
    return real(epoll, operation, fd, event);
}

/* Counts a call. Whether it is one that fails: then errno is set, or if it is only shortened, *most. */
static int fails_with(enum call call, int fd, int operation, size_t *most)
{
    if (place == NOT_COUNTED)
        return 0;
    unsigned long n = __atomic_add_fetch(&counts[place][call], 1, __ATOMIC_SEQ_CST);
    unsigned long first = __atomic_load_n(&fault.first, __ATOMIC_SEQ_CST);
    if (place != fault.place || call != fault.call || first == 0 || n < first || n > fault.last)
        return 0;
    hit.times++;
    hit.transfer = place == SUBMIT ? submitting : fd >= 0 && fd < FDS ? owners[fd] : -1;
    hit.operation = operation;
    if (fault.error == 0) {
        if (most != NULL && *most > fault.at_most)
            *most = fault.at_most;
        return 0;
    }
    if (fault.error == EAGAIN && fd >= 0 && fd < FDS && registered[fd].epoll > 0) {
        /* A kernel that says EAGAIN tells when the socket has room again. This one always had. */
        MUST(real_epoll_ctl(registered[fd].epoll, EPOLL_CTL_MOD, fd, &registered[fd].event) == 0);
    }
    if (meanwhile != NULL) {
        enum place here = place;
        place = NOT_COUNTED;
        meanwhile();
        place = here;
    }
    errno = fault.error;
    return 1;
}

static int fails(enum call call, int fd)
{
    return fails_with(call, fd, 0, NULL);
}

INTERPOSE(ssize_t, send, (int fd, const void *bytes, size_t len, int flags),
          fails_with(SEND, fd, 0, &len), -1, (fd, bytes, len, flags))

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, const struct msghdr *, int);
    FIND(real, "sendmsg");
    size_t most = SIZE_MAX;
    if (fails_with(SENDMSG, fd, 0, &most))
        return -1;
    if (most == SIZE_MAX)
        return real(fd, message, flags);
    size_t i = 0;
    while (i + 1 < message->msg_iovlen && message->msg_iov[i].iov_len == 0)
        i++;
    struct msghdr shorter = *message;
    struct iovec piece = message->msg_iov[i];
    if (piece.iov_len > most)
        piece.iov_len = most;
    shorter.msg_iov = &piece;
    shorter.msg_iovlen = 1;
    return real(fd, &shorter, flags);
}

INTERPOSE(ssize_t, sendfile, (int fd, int file, off_t *offset, size_t len),
          fails_with(SENDFILE, fd, 0, &len), -1, (fd, file, offset, len))
INTERPOSE(ssize_t, pread, (int fd, void *bytes, size_t len, off_t offset),
          fails_with(PREAD, fd, 0, &len), -1, (fd, bytes, len, offset))

static ssize_t look(int fd, const struct iovec *pieces, int n, off_t offset, int flags)
{
    size_t most = SIZE_MAX;
    if (fails_with(PREADV2, fd, 0, &most))
        return -1;
    if (place == SENDER && counts[SENDER][PREADV2] <= fault.cold) {
        errno = EAGAIN;
        return -1;
    }
    return most == 0 ? 0 : preadv2(fd, pieces, n, offset, flags);
}
INTERPOSE_PREADV2(look)

INTERPOSE(int, posix_fadvise, (int fd, off_t offset, off_t len, int advice),
          fails(FADVISE, fd), errno, (fd, offset, len, advice))
INTERPOSE(int, fstat, (int fd, struct stat *status), fails(FSTAT, fd), -1, (fd, status))

int epoll_wait(int fd, struct epoll_event *events, int n, int timeout)
{
    static int (*real)(int, struct epoll_event *, int, int);
    FIND(real, "epoll_wait");
    if (fails(EPOLL_WAIT, -1))
        return -1;
    if (timeout != 0 && !__atomic_load_n(&asleep, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&asleep_lock);
        __atomic_store_n(&asleep, 1, __ATOMIC_SEQ_CST);
        pthread_cond_signal(&asleep_now);
        pthread_mutex_unlock(&asleep_lock);
    }
    return real(fd, events, n, timeout);
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    if (fails_with(EPOLL_CTL, fd, operation, NULL))
        return -1;
    int done = real_epoll_ctl(epoll, operation, fd, event);
    if (done == 0 && fd < FDS) {
        registered[fd].epoll = operation == EPOLL_CTL_DEL ? 0 : epoll;
        if (event != NULL)
            registered[fd].event = *event;
    }
    return done;
}

INTERPOSE(int, epoll_create1, (int flags), fails(EPOLL_CREATE1, -1), -1, (flags))
INTERPOSE(int, eventfd, (unsigned count, int flags), fails(EVENTFD, -1), -1, (count, flags))
INTERPOSE(ssize_t, read, (int fd, void *bytes, size_t len), fails(READ, fd), -1, (fd, bytes, len))
INTERPOSE(ssize_t, write, (int fd, const void *bytes, size_t len), fails(WRITE, fd), -1, (fd, bytes, len))

int fcntl(int fd, int operation, ...)
{
    static int (*real)(int, int, ...);
    FIND(real, "fcntl");
    va_list args;
    va_start(args, operation);
    void *argument = va_arg(args, void *);
    va_end(args);
    /* F_GETFD: Rust's standard library looks at what it closes, in a debug build. */
    if (operation != F_GETFD && fails_with(FCNTL, fd, operation, NULL))
        return -1;
    int done = real(fd, operation, argument);
    if (place == SUBMIT && operation == F_DUPFD_CLOEXEC && done >= 0 && done < FDS) {
        owners[done] = submitting;
        registered[done].epoll = 0;
    }
    return done;
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, ...);
    FIND(real, "ioctl");
    va_list args;
    va_start(args, request);
    void *argument = va_arg(args, void *);
    va_end(args);
    return fails(IOCTL, fd) ? -1 : real(fd, request, argument);
}

INTERPOSE(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *len),
          fails(GETSOCKOPT, fd), -1, (fd, level, name, value, len))
INTERPOSE(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t len),
          fails(SETSOCKOPT, fd), -1, (fd, level, name, value, len))
INTERPOSE(int, pthread_create,
          (pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument),
          fails(PTHREAD_CREATE, -1), errno, (thread, attributes, function, argument))

/* An allocation fails with ENOMEM. Those that a thread's start takes are not the library's. */
static int allocation_fails(void)
{
    return (place != SENDER || __atomic_load_n(&asleep, __ATOMIC_SEQ_CST)) && fails(ALLOCATE, -1);
}

INTERPOSE(void *, malloc, (size_t size), allocation_fails(), NULL, (size))
INTERPOSE(void *, calloc, (size_t n, size_t size), allocation_fails(), NULL, (n, size))
INTERPOSE(void *, realloc, (void *old, size_t size), allocation_fails(), NULL, (old, size))
INTERPOSE(int, posix_memalign, (void **place_of_it, size_t alignment, size_t size),
          allocation_fails(), ENOMEM, (place_of_it, alignment, size))

/* ---- 2. A scenario ---- */

#define SMALL 1000
#define LONG 150000
#define NOW 1700000000

static const struct wanted {
    const char *name;
    size_t length;
    const char *range; /* multipart, if there is one */
    uint32_t rep_kind, rep_flags, sink_flags;
    enum kind kind;
    int blocking;
    int slow;         /* the client reads nothing until the others have ended */
    int writer;       /* a write function */
    uint32_t timeout; /* in milliseconds; the client reads nothing before the end */
    int cancel;       /* the client reads nothing before the end */
    sendgate_status status;
} all_wanted[] = {
    {.name = "small", .length = SMALL, .kind = TCP_PAIR},
    {.name = "large", .length = LONG, .slow = 1},
    {.name = "large, to a blocking socket", .length = LONG, .slow = 1, .blocking = 1},
    {.name = "larger, over TCP", .length = 300000, .kind = TCP_PAIR},
    {.name = "multipart", .length = LONG, .slow = 1, .range = "bytes=0-9,100-199,1000-60000,100000-100009"},
    {.name = "memory", .length = LONG, .slow = 1, .rep_kind = SENDGATE_REP_MEMORY},
    {.name = "copied", .length = LONG, .slow = 1, .rep_flags = SENDGATE_REP_COPY},
    {.name = "checked", .length = LONG, .slow = 1, .rep_flags = SENDGATE_REP_CHECK},
    {.name = "by a write function", .length = LONG, .slow = 1, .writer = 1},
    {.name = "at once", .length = SMALL, .sink_flags = SENDGATE_SINK_TRY_NOW},
    {.name = "at once as far as it goes", .length = LONG, .slow = 1, .sink_flags = SENDGATE_SINK_TRY_NOW},
    {.name = "cancelled", .length = LONG, .cancel = 1, .status = SENDGATE_ERR_CANCELLED},
    {.name = "too slow", .length = LONG, .timeout = 2, .status = SENDGATE_ERR_TIMEOUT},
};
#define N_WANTED (sizeof all_wanted / sizeof *all_wanted)

/* What is the same in every run. */
static struct {
    int files[N_WANTED];
    void *memory;
    uint8_t *answers[N_WANTED];
    size_t lengths[N_WANTED];
} constant;

static struct transfer {
    const struct wanted *wanted;
    size_t number;
    int sockets[2];
    struct ask ask;
    sendgate_status submitted;
    uint64_t id;
    int reports;
    sendgate_completion completion;
    uint8_t *got;
    size_t got_len;
    int is_open; /* the client's socket */
    int at_end;
} transfers[N_WANTED];

static char running[200];

static void now_running(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void now_running(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(running, sizeof running, format, args);
    va_end(args);
    check_case("%s", running);
}

/* The watchdog: something hangs, and this says where. */
static void too_long(int signal_number)
{
    (void)signal_number;
    static const char what[] = "hangs: ";
    place = NOT_COUNTED;
    _exit(write(2, what, sizeof what - 1) < 0 || write(2, running, strlen(running)) < 0 ? 4 : 3);
}

static int slow_mode(void)
{
    return getenv("SENDGATE_TEST_SLOW") != NULL;
}

static sendgate_status write_to_socket(void *user, const uint8_t *bytes, size_t len, size_t *written)
{
    const struct transfer *transfer = user;
    enum place here = place;
    place = NOT_COUNTED;
    ssize_t n = send(transfer->sockets[0], bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    place = here;
    if (n < 0)
        return errno == EAGAIN ? SENDGATE_WANT_WRITE : SENDGATE_ERR_IO;
    *written = (size_t)n;
    return SENDGATE_OK;
}

static void ask_for(struct ask *ask, size_t number, int sock)
{
    const struct wanted *wanted = &all_wanted[number];
    if (wanted->rep_kind == SENDGATE_REP_MEMORY) {
        ask_memory(ask, constant.memory, wanted->length, sock);
    } else {
        ask_file(ask, constant.files[number], sock);
    }
    if (wanted->range != NULL)
        ask->request.range = text(wanted->range);
    ask->rep.flags |= wanted->rep_flags;
    ask->exchange.now = NOW;
    ask->exchange.seed = 1;
    ask->sink.flags = wanted->sink_flags;
    ask->sink.idle_timeout_ms = wanted->timeout;
}

/* All bytes of an answer, from a transfer that nothing fails for. */
static void make_constant(size_t number)
{
    const struct wanted *wanted = &all_wanted[number];
    struct ask ask;
    struct answer answer;
    sendgate_transfer *transfer;
    char name[20];
    now_running("the right answer: %s", wanted->name);
    snprintf(name, sizeof name, "file-%zu", number);
    /* Two responses send from one open file. */
    constant.files[number] = wanted->blocking ? constant.files[number - 1] : file_make(name, wanted->length);
    size_t cap = wanted->length + 4096;
    constant.answers[number] = malloc(cap);
    MUST(constant.answers[number] != NULL);
    ask_for(&ask, number, -1);
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    MUST(sendgate_transfer_start(transfer, &ask.exchange, NULL) == SENDGATE_OK);
    MUST(sendgate_transfer_pull(transfer, constant.answers[number], cap, &constant.lengths[number], &ask.result)
         == SENDGATE_OK);
    sendgate_transfer_free(transfer);
    answer_of(&answer, (const char *)constant.answers[number], constant.lengths[number]);
    if (wanted->range != NULL) {
        static const sendgate_range parts[] = {{0, 10}, {100, 100}, {1000, 59001}, {100000, 10}};
        CHECK_INT(answer.status, 206);
        check_multipart(&answer, parts, sizeof parts / sizeof *parts, wanted->length);
    } else {
        CHECK_INT(answer.status, 200);
        CHECK_INT(answer.body_len, wanted->length);
        CHECK(is_pattern(answer.body, answer.body_len, 0));
    }
}

static void make_constants(void)
{
    constant.memory = malloc(LONG);
    MUST(constant.memory != NULL);
    pattern_fill(constant.memory, LONG);
    for (size_t i = 0; i < N_WANTED; i++)
        make_constant(i);
}

static void free_constants(void)
{
    for (size_t i = 0; i < N_WANTED; i++) {
        free(constant.answers[i]);
        free(transfers[i].got);
        if (!all_wanted[i].blocking)
            close(constant.files[i]);
    }
    free(constant.memory);
}

/* Reads what is there. */
static void client_reads(struct transfer *transfer)
{
    size_t cap = constant.lengths[transfer->number] + 1; /* so that a byte too many shows */
    while (!transfer->at_end && transfer->got_len < cap) {
        ssize_t n =
            recv(transfer->sockets[1], transfer->got + transfer->got_len, cap - transfer->got_len, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            break;
        MUST(n >= 0);
        transfer->got_len += (size_t)n;
        transfer->at_end = n == 0;
    }
}

static sendgate_sender *sender_new(void)
{
    sendgate_sender *sender = NULL;
    memset(counts, 0, sizeof counts);
    memset(&hit, 0, sizeof hit);
    asleep = 0;
    place = NEW;
    sendgate_status status = sendgate_sender_new(NULL, &sender, NULL);
    place = NOT_COUNTED;
    MUST(status == SENDGATE_OK);
    return sender;
}

/* What the fault does to the response whose call it hit. SENDGATE_OK: nothing. */
static sendgate_status effect(void)
{
    int peer_gone = fault.error == EPIPE || fault.error == ECONNRESET;
    switch (fault.call) {
    case SENDFILE:
        /* No sendfile for this file or socket: it is copied. */
        if (fault.error == EINVAL || fault.error == ENOSYS || fault.error == EOPNOTSUPP)
            return SENDGATE_OK;
        /* fall through */
    case SEND:
    case SENDMSG:
        if (fault.error == EAGAIN)
            return SENDGATE_OK;
        /* fall through */
    case PREAD:
        if (fault.error == EINTR || (fault.error == 0 && fault.at_most > 0))
            return SENDGATE_OK;
        if (fault.error == 0)
            return SENDGATE_ERR_TRUNCATED;
        return peer_gone ? SENDGATE_ERR_PEER_CLOSED : SENDGATE_ERR_IO;
    case FSTAT:
        return SENDGATE_ERR_IO;
    case EPOLL_CTL:
        return hit.operation == EPOLL_CTL_DEL ? SENDGATE_OK : SENDGATE_ERR_IO;
    case FCNTL:
        /* On the thread it only puts flags back. In submit, to ask if two descriptors are one file can fail. */
        return fault.place == SUBMIT && hit.operation != F_DUPFD_QUERY ? SENDGATE_ERR_IO : SENDGATE_OK;
    case WRITE:
        /* EAGAIN: the count that wakes the thread is at its end, and can be read. */
        return fault.place == SUBMIT && fault.error != EAGAIN ? SENDGATE_ERR_IO : SENDGATE_OK;
    case ALLOCATE:
        return SENDGATE_ERR_NO_MEMORY;
    default:
        return SENDGATE_OK;
    }
}

static void wait_until_asleep(void)
{
    pthread_mutex_lock(&asleep_lock);
    while (!asleep)
        pthread_cond_wait(&asleep_now, &asleep_lock);
    pthread_mutex_unlock(&asleep_lock);
}

/* None has been submitted. */
static void forget_transfers(void)
{
    for (size_t i = 0; i < N_WANTED; i++)
        transfers[i].submitted = SENDGATE_OK;
}

static void submit(sendgate_sender *sender, struct transfer *transfer)
{
    submitting = (int)transfer->number;
    place = SUBMIT;
    transfer->submitted = sendgate_sender_submit(sender, &transfer->ask.exchange, &transfer->ask.sink, transfer,
                                                 &transfer->id, &transfer->ask.result);
    place = NOT_COUNTED;
    submitting = -1;
}

static void begin(sendgate_sender *sender, size_t number)
{
    struct transfer *transfer = &transfers[number];
    const struct wanted *wanted = &all_wanted[number];
    uint8_t *got = transfer->got;
    memset(transfer, 0, sizeof *transfer);
    transfer->wanted = wanted;
    transfer->number = number;
    transfer->is_open = 1;
    transfer->got = got != NULL ? got : malloc(constant.lengths[number] + 1);
    MUST(transfer->got != NULL);
    make_pair(wanted->kind, !wanted->blocking, transfer->sockets);
    if (wanted->kind == UNIX_PAIR) {
        /* So that what is large has to wait several times. */
        int size = 16384;
        MUST(setsockopt(transfer->sockets[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
    }
    ask_for(&transfer->ask, number, transfer->sockets[0]);
    if (wanted->writer) {
        transfer->ask.sink.write = write_to_socket;
        transfer->ask.sink.user = transfer;
    }
    submit(sender, transfer);
    if (wanted->cancel && transfer->submitted == SENDGATE_PENDING) {
        unsigned long before = hit.times;
        place = SUBMIT;
        sendgate_status status = sendgate_sender_cancel(sender, transfer->id);
        place = NOT_COUNTED;
        if (status != SENDGATE_OK) {
            CHECK(fault.place == SUBMIT && hit.times > before);
            CHECK_STATUS(status, effect());
            CHECK_STATUS(sendgate_sender_cancel(sender, transfer->id), SENDGATE_OK);
        }
    }
}

/* Takes what has ended; how many. */
static size_t take(sendgate_sender *sender)
{
    sendgate_completion done[4];
    size_t n = SIZE_MAX, taken = 0;
    for (;;) {
        place = TAKE;
        sendgate_status status = sendgate_sender_take(sender, done, sizeof done / sizeof *done, &n);
        place = NOT_COUNTED;
        if (status == SENDGATE_EMPTY)
            return taken;
        if (!CHECK_STATUS(status, SENDGATE_OK) || !CHECK(n >= 1 && n <= sizeof done / sizeof *done))
            return taken;
        for (size_t i = 0; i < n; i++) {
            struct transfer *transfer = done[i].token;
            MUST(transfer >= transfers && transfer < transfers + N_WANTED);
            transfer->completion = done[i];
            transfer->reports++;
        }
        taken += n;
    }
}

static size_t missing(int slow_too)
{
    size_t n = 0;
    for (size_t i = 0; i < N_WANTED; i++) {
        const struct transfer *transfer = &transfers[i];
        n += (slow_too || !all_wanted[i].slow) && transfer->submitted == SENDGATE_PENDING && transfer->reports == 0;
    }
    return n;
}

static int has_news(sendgate_sender *sender)
{
    struct pollfd news = {.fd = sendgate_sender_fd(sender), .events = POLLIN};
    MUST(poll(&news, 1, 0) >= 0);
    return news.revents != 0;
}

/* Reads, and takes when there is news, until all are reported. */
static void serve(sendgate_sender *sender)
{
    int64_t end = now_ms() + (slow_mode() ? 100000 : 20000);
    while (missing(1) > 0) {
        struct pollfd fds[N_WANTED + 1];
        nfds_t n = 0;
        int slow_ones_read = missing(0) == 0;
        fds[n].fd = sendgate_sender_fd(sender);
        fds[n++].events = POLLIN;
        for (size_t i = 0; i < N_WANTED; i++) {
            const struct wanted *wanted = &all_wanted[i];
            int reads = !wanted->cancel && wanted->timeout == 0 && (slow_ones_read || !wanted->slow);
            if (reads && transfers[i].is_open && !transfers[i].at_end && transfers[i].got_len <= constant.lengths[i]) {
                client_reads(&transfers[i]);
                fds[n].fd = transfers[i].sockets[1];
                fds[n++].events = POLLIN;
            }
        }
        if (now_ms() > end) {
            for (size_t i = 0; i < N_WANTED; i++)
                if (transfers[i].submitted == SENDGATE_PENDING && transfers[i].reports == 0)
                    fprintf(stderr, "never reported: %s\n", all_wanted[i].name);
            CHECK_INT(missing(1), 0);
            return;
        }
        MUST(poll(fds, n, 1000) >= 0);
        if (fds[0].revents != 0)
            take(sender);
    }
}

/* One response, after all is over. */
static void check_transfer(struct transfer *transfer)
{
    const struct wanted *wanted = transfer->wanted;
    const sendgate_result *result = &transfer->ask.result;
    /* Whose memory it was that the thread could not get is not known. */
    int is_hit = hit.times > 0 && effect() != SENDGATE_OK
                 && (hit.transfer == (int)transfer->number || (fault.call == ALLOCATE && fault.place == SENDER));
    int pending = transfer->submitted == SENDGATE_PENDING;
    CHECK_INT(transfer->reports, pending);
    CHECK_STATUS(result->status, transfer->submitted);
    /* What became of it, and how much of it was sent. */
    sendgate_status status = transfer->submitted;
    int32_t sys_errno = result->sys_errno;
    uint64_t sent = result->head_sent + result->body_sent;
    uint32_t connection = result->connection;
    if (pending && transfer->reports > 0) {
        const sendgate_completion *completion = &transfer->completion;
        CHECK_INT(completion->id, transfer->id);
        status = completion->status;
        sys_errno = completion->sys_errno;
        sent = completion->head_sent + completion->body_sent;
        connection = completion->connection;
    }
    if (is_hit && fault.place == SUBMIT) {
        CHECK_STATUS(status, effect());
        CHECK(!pending);
    } else if (is_hit) {
        /* It may have been over already for its own reason. */
        int other = wanted->status != SENDGATE_OK || fault.call == ALLOCATE;
        CHECK(status == effect() || (other && status == wanted->status));
    } else {
        CHECK(pending || (wanted->sink_flags & SENDGATE_SINK_TRY_NOW) != 0);
        CHECK_STATUS(status, wanted->status);
    }
    CHECK_INT(sys_errno, status == SENDGATE_ERR_IO || status == SENDGATE_ERR_PEER_CLOSED ? fault.error : 0);
    if (wanted->blocking) {
        /* As it was, unless that is what failed. */
        int left = fault.place == SENDER && fault.call == FCNTL && hit.times > 0;
        CHECK_INT(fcntl(transfer->sockets[0], F_GETFL) & O_NONBLOCK, left ? O_NONBLOCK : 0);
    }
    close(transfer->sockets[0]);
    struct timeval patience = {.tv_sec = 10, .tv_usec = 0};
    MUST(setsockopt(transfer->sockets[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
    for (char byte; !transfer->at_end && transfer->got_len <= constant.lengths[transfer->number];) {
        client_reads(transfer);
        if (!transfer->at_end && recv(transfer->sockets[1], &byte, 1, MSG_PEEK) < 0) {
            CHECK_INT(errno, 0); /* somebody still has the socket open */
            break;
        }
    }
    close(transfer->sockets[1]);
    transfer->is_open = 0;
    CHECK_INT(transfer->got_len, sent);
    CHECK(transfer->got_len <= constant.lengths[transfer->number]
          && memcmp(transfer->got, constant.answers[transfer->number], transfer->got_len) == 0);
    if (status == SENDGATE_OK) {
        CHECK_INT(sent, constant.lengths[transfer->number]);
        CHECK_INT(connection, SENDGATE_CONN_REUSABLE);
    } else {
        CHECK_INT(connection, sent == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
    }
}

/* One more, while nothing fails any more: the sender is as good as before. */
static void check_further(sendgate_sender *sender)
{
    forget_transfers();
    begin(sender, 1);
    CHECK_STATUS(transfers[1].submitted, SENDGATE_PENDING);
    serve(sender);
    check_transfer(&transfers[1]);
}

/* All of it, with a fault. Whether that came. */
static int run(const struct fault *wanted)
{
    int fds = open_fds();
    fault = *wanted;
    sendgate_sender *sender = sender_new();
    if (fault.place == SUBMIT || fault.call == ALLOCATE)
        wait_until_asleep(); /* so that it has to be woken, and its start is over */
    for (size_t i = 0; i < N_WANTED; i++)
        begin(sender, i);
    serve(sender);
    __atomic_store_n(&fault.first, 0, __ATOMIC_SEQ_CST);
    CHECK_INT(take(sender), 0);
    CHECK(!has_news(sender));
    for (size_t i = 0; i < N_WANTED; i++)
        check_transfer(&transfers[i]);
    unsigned long times = hit.times;
    hit.times = 0;
    check_further(sender);
    sendgate_sender_free(sender);
    CHECK_INT(open_fds(), fds);
    fault = no_fault;
    return times > 0;
}

/* ---- 3. Every fault ---- */

static const struct row {
    enum place place;
    enum call call;
    int errors[6];
    unsigned long cold;
} rows[] = {
    {SENDER, SEND, {EINTR, EAGAIN, EPIPE, ECONNRESET, ENOBUFS}, 0},
    {SENDER, SENDMSG, {EINTR, EAGAIN, EPIPE, EFAULT}, 0},
    {SENDER, SENDFILE, {EINTR, EAGAIN, EPIPE, EIO, EINVAL, ENOSYS}, 0},
    {SENDER, PREAD, {EINTR, EIO}, 0},
    {SENDER, PREADV2, {EAGAIN, EOPNOTSUPP}, 0},
    {SENDER, FADVISE, {EIO}, 10},
    {SENDER, FSTAT, {EIO}, 0},
    {SENDER, EPOLL_WAIT, {EINTR, ENOMEM, EBADF}, 0},
    {SENDER, EPOLL_CTL, {ENOMEM, ENOSPC}, 0},
    {SENDER, WRITE, {EINTR, EAGAIN, EIO}, 0},
    {SENDER, FCNTL, {EINVAL}, 0},
    {SENDER, IOCTL, {EINVAL}, 0},
    {SENDER, GETSOCKOPT, {ENOPROTOOPT}, 0},
    {SENDER, SETSOCKOPT, {ENOPROTOOPT}, 0},
    {SUBMIT, SEND, {EINTR, EAGAIN, EPIPE, ECONNRESET, ENOBUFS}, 0},
    {SUBMIT, SENDFILE, {EINTR, EAGAIN, EPIPE, EIO, EINVAL}, 0},
    {SUBMIT, PREAD, {EINTR, EIO}, 0},
    {SUBMIT, PREADV2, {EAGAIN, EOPNOTSUPP}, 0},
    {SUBMIT, FSTAT, {EIO}, 0},
    {SUBMIT, FCNTL, {EMFILE, EINVAL}, 0},
    {SUBMIT, WRITE, {EINTR, EAGAIN, EIO}, 0},
    {TAKE, READ, {EINTR, EIO}, 0},
};
#define N_ROWS (sizeof rows / sizeof *rows)

/* The fault of each call in turn; how often it came. */
static unsigned long sweep(struct fault wanted, const char *what)
{
    unsigned long n = 0, step = 1;
    do {
        wanted.first = wanted.last = n += step;
        now_running("%s of %s, the %luth call: %s", call_names[wanted.call], place_names[wanted.place], n, what);
        if (slow_mode())
            step = n; /* 1, 2, 4, 8, ... */
    } while (run(&wanted));
    return n - 1;
}

static void every_call_fails_once(void)
{
    now_running("no fault");
    CHECK_INT(run(&no_fault), 0);
    for (int i = SENDER; i <= TAKE; i++) {
        for (int j = 0; j < N_CALLS; j++) {
            size_t k = 0;
            while (k < N_ROWS && ((int)rows[k].place != i || (int)rows[k].call != j))
                k++;
            /* What `new` does comes later, and so do allocations. */
            if (!CHECK(counts[i][j] == 0 || k < N_ROWS || i == NEW || j == ALLOCATE))
                fprintf(stderr, "%s of %s is called, but never fails here\n", call_names[j], place_names[i]);
        }
    }
    for (size_t i = 0; i < N_ROWS; i++) {
        for (size_t j = 0; j < sizeof rows[i].errors / sizeof *rows[i].errors && rows[i].errors[j] != 0; j++) {
            struct fault wanted = {
                .place = rows[i].place, .call = rows[i].call, .error = rows[i].errors[j], .cold = rows[i].cold};
            CHECK(sweep(wanted, strerror(wanted.error)) > 0);
        }
    }
}

/* ---- 4. Other ways to fail ---- */

/* Calls that do some of what they are asked, once each; and calls that never do better. */
static void short_counts(void)
{
    static const struct {
        enum place place;
        enum call call;
        size_t at_most;
    } cases[] = {
        {SENDER, SEND, 1}, {SENDER, SENDMSG, 1}, {SENDER, SENDFILE, 1}, {SENDER, PREAD, 1}, {SUBMIT, SEND, 1},
        {SUBMIT, SENDFILE, 1}, {SUBMIT, PREAD, 1},
        /* The end of the file. */
        {SENDER, SENDFILE, 0}, {SENDER, PREAD, 0}, {SUBMIT, SENDFILE, 0}, {SUBMIT, PREAD, 0},
        /* The page cache has nothing to say. */
        {SENDER, PREADV2, 0}, {SUBMIT, PREADV2, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fault wanted = {.place = cases[i].place, .call = cases[i].call, .at_most = cases[i].at_most};
        CHECK(sweep(wanted, cases[i].at_most == 0 ? "0 bytes" : "1 byte") > 0);
    }
    static const enum call calls[] = {SEND, SENDMSG, SENDFILE, PREAD};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        struct fault wanted = {.place = SENDER, .call = calls[i], .at_most = 997, .first = 1, .last = ULONG_MAX};
        now_running("%s never does more than 997 bytes", call_names[calls[i]]);
        CHECK(run(&wanted));
    }
    now_running("nothing ever comes into the page cache");
    CHECK(run(&(struct fault){.place = SENDER, .call = PREADV2, .error = EAGAIN, .first = 1, .last = ULONG_MAX}));
}

/* Whether the allocations of this program go through its own functions. */
static int allocations_are_seen(void)
{
    /* The compiler knows what malloc does, and would leave out what it doesn't. */
    void *(*volatile allocate)(size_t) = malloc;
    unsigned long before = counts[SUBMIT][ALLOCATE];
    place = SUBMIT;
    free(allocate(1));
    place = NOT_COUNTED;
    return counts[SUBMIT][ALLOCATE] > before;
}

static void every_allocation_fails_once(void)
{
    now_running("allocations");
    if (!allocations_are_seen()) {
        puts("skipped: failing allocations: Valgrind replaces this program's malloc too");
        return;
    }
    static const enum place places[] = {SUBMIT, SENDER};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        struct fault wanted = {.place = places[i], .call = ALLOCATE, .error = ENOMEM};
        CHECK(sweep(wanted, "no memory") > 0);
    }
}

/* A sender that can't be made leaves nothing behind. */
static void new_fails(void)
{
    static const struct {
        enum call call;
        int error;
    } cases[] = {
        {EVENTFD, EMFILE}, {EVENTFD, ENOMEM}, {EPOLL_CREATE1, EMFILE}, {EPOLL_CREATE1, ENFILE}, {EPOLL_CTL, ENOMEM},
        {EPOLL_CTL, ENOSPC}, {PTHREAD_CREATE, EAGAIN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (unsigned long n = 1;; n++) {
            now_running("%s of new, the %luth call: %s", call_names[cases[i].call], n, strerror(cases[i].error));
            int fds = open_fds();
            int32_t sys_errno = -1;
            sendgate_sender *sender = NULL;
            memset(counts, 0, sizeof counts);
            memset(&hit, 0, sizeof hit);
            fault =
                (struct fault){.place = NEW, .call = cases[i].call, .error = cases[i].error, .first = n, .last = n};
            place = NEW;
            sendgate_status status = sendgate_sender_new(NULL, &sender, &sys_errno);
            place = NOT_COUNTED;
            fault = no_fault;
            if (hit.times == 0) {
                CHECK(n > 1);
                CHECK_STATUS(status, SENDGATE_OK);
                sendgate_sender_free(sender);
                CHECK_INT(open_fds(), fds);
                break;
            }
            CHECK_STATUS(status, SENDGATE_ERR_IO);
            CHECK_INT(sys_errno, cases[i].error);
            CHECK(sender == NULL);
            CHECK_INT(open_fds(), fds);
        }
    }
}

/* The client goes away, and is not looked at. */
static void close_pair(struct transfer *transfer)
{
    close(transfer->sockets[0]);
    close(transfer->sockets[1]);
    transfer->is_open = 0;
}

/* When epoll_wait never works again there is no event loop: what waits for its socket fails, and the sender ends. */
static void the_event_loop_breaks(void)
{
    static const unsigned long later[] = {1, 2, 10};
    static const size_t waiting[] = {1, 4, 6}; /* for clients that read nothing */
    for (size_t i = 0; i < sizeof later / sizeof *later; i++) {
        now_running("epoll_wait fails %lu calls later, and from then on", later[i]);
        int fds = open_fds();
        fault = (struct fault){.place = SENDER, .call = EPOLL_WAIT, .error = EBADF, .last = ULONG_MAX};
        sendgate_sender *sender = sender_new();
        forget_transfers();
        for (size_t j = 0; j < sizeof waiting / sizeof *waiting; j++) {
            begin(sender, waiting[j]);
            CHECK_STATUS(transfers[waiting[j]].submitted, SENDGATE_PENDING);
        }
        unsigned long first = __atomic_load_n(&counts[SENDER][EPOLL_WAIT], __ATOMIC_SEQ_CST) + later[i];
        __atomic_store_n(&fault.first, first, __ATOMIC_SEQ_CST);
        for (int64_t end = now_ms() + 60000; missing(1) > 0 && now_ms() < end;) {
            sendgate_sender_cancel(sender, 12345); /* an id of nobody's: it wakes the thread */
            struct pollfd news = {.fd = sendgate_sender_fd(sender), .events = POLLIN};
            MUST(poll(&news, 1, 1) >= 0);
            take(sender);
        }
        for (size_t j = 0; j < sizeof waiting / sizeof *waiting; j++) {
            struct transfer *transfer = &transfers[waiting[j]];
            CHECK_INT(transfer->reports, 1);
            CHECK_STATUS(transfer->completion.status, SENDGATE_ERR_IO);
            CHECK_INT(transfer->completion.sys_errno, EBADF);
            close_pair(transfer);
        }
        /* The thread has ended, or is about to. */
        forget_transfers();
        begin(sender, 1);
        if (transfers[1].submitted == SENDGATE_PENDING) {
            serve(sender);
            CHECK(transfers[1].completion.status < 0);
        } else {
            CHECK_STATUS(transfers[1].submitted, SENDGATE_ERR_CANCELLED);
        }
        sendgate_sender_stop(sender, 60000);
        CHECK(counts[SENDER][EPOLL_WAIT] < first + 200); /* it has not tried for ever */
        close_pair(&transfers[1]);
        begin(sender, 0);
        CHECK_STATUS(transfers[0].submitted, SENDGATE_ERR_CANCELLED);
        close_pair(&transfers[0]);
        sendgate_sender_free(sender);
        CHECK_INT(open_fds(), fds);
    }
}

/* Starts a sender whose thread is asleep, and can't be woken by the next `times` tries. */
static sendgate_sender *hard_to_wake(unsigned long times)
{
    fault = no_fault;
    sendgate_sender *sender = sender_new();
    wait_until_asleep();
    forget_transfers();
    fault = (struct fault){.place = SUBMIT, .call = WRITE, .error = EIO, .first = 1, .last = times};
    return sender;
}

/* Another thread that submits while a wake-up fails. */
static struct {
    sendgate_sender *sender;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t ended_now;
    int ended;
} other = {.lock = PTHREAD_MUTEX_INITIALIZER, .ended_now = PTHREAD_COND_INITIALIZER};

static void *other_main(void *argument)
{
    (void)argument;
    place = NOT_COUNTED;
    begin(other.sender, 1);
    pthread_mutex_lock(&other.lock);
    other.ended = 1;
    pthread_cond_signal(&other.ended_now);
    pthread_mutex_unlock(&other.lock);
    return NULL;
}

static void submit_meanwhile(void)
{
    struct timespec end;
    MUST(pthread_create(&other.thread, NULL, other_main, NULL) == 0);
    MUST(clock_gettime(CLOCK_REALTIME, &end) == 0);
    end.tv_nsec += 100000000;
    end.tv_sec += end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    /* It may have to wait for the one that fails; so the one that fails doesn't wait for it for ever. */
    pthread_mutex_lock(&other.lock);
    while (!other.ended && pthread_cond_timedwait(&other.ended_now, &other.lock, &end) == 0)
        ;
    pthread_mutex_unlock(&other.lock);
}

/* One that sees that the thread is being woken leaves it at that; if the other then can't, it is woken all the same. */
static void a_wake_that_fails_is_not_relied_on(void)
{
    for (int by_cancel = 0; by_cancel < 2; by_cancel++) {
        now_running("submit while %s fails to wake the thread", by_cancel ? "cancel" : "another submit");
        int fds = open_fds();
        sendgate_sender *sender = other.sender = hard_to_wake(1);
        other.ended = 0;
        meanwhile = submit_meanwhile;
        if (by_cancel) {
            place = SUBMIT;
            CHECK_STATUS(sendgate_sender_cancel(sender, 12345), SENDGATE_ERR_IO);
            place = NOT_COUNTED;
        } else {
            begin(sender, 0);
            CHECK_STATUS(transfers[0].submitted, SENDGATE_ERR_IO);
            CHECK_INT(transfers[0].ask.result.sys_errno, EIO);
            CHECK_INT(transfers[0].ask.result.connection, SENDGATE_CONN_UNTOUCHED);
            close_pair(&transfers[0]);
        }
        meanwhile = NULL;
        MUST(pthread_join(other.thread, NULL) == 0);
        CHECK_INT(hit.times, 1);
        CHECK_STATUS(transfers[1].submitted, SENDGATE_PENDING);
        hit.times = 0;
        serve(sender);
        check_transfer(&transfers[1]);
        CHECK_INT(take(sender), 0);
        sendgate_sender_free(sender);
        CHECK_INT(open_fds(), fds);
    }
}

/* To stop a sender its thread has to be woken. */
static void stop_tries_again(void)
{
    now_running("stop fails to wake the thread five times");
    int fds = open_fds();
    sendgate_sender *sender = hard_to_wake(5);
    place = SUBMIT;
    CHECK_STATUS(sendgate_sender_stop(sender, 0), SENDGATE_OK);
    place = NOT_COUNTED;
    CHECK_INT(hit.times, 5);
    sendgate_sender_free(sender);
    CHECK_INT(open_fds(), fds);
}

int main(void)
{
    place = NOT_COUNTED;
    signal(SIGALRM, too_long);
    check_begin();
    make_constants();
    every_call_fails_once();
    short_counts();
    every_allocation_fails_once();
    new_fails();
    the_event_loop_breaks();
    a_wake_that_fails_is_not_relied_on();
    stop_tries_again();
    free_constants();
    return check_end();
}
