/* sendgate_respond on real sockets: every kind of answer, what it leaves of the caller's descriptors and
 * signals, and everything that can go wrong on the way.
 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SMALL 1000
#define LARGE (3 * 1024 * 1024 + 17)
#define MAX_PARTS 4

static const struct wanted {
    const char *name;
    size_t file;
    const char *method;
    const char *range;
    const char *if_none_match;
    uint32_t rep_flags;
    uint32_t status;
    size_t n;
    sendgate_range parts[MAX_PARTS];
} answers[] = {
    {"200 of one byte", 1, "GET", NULL, NULL, 0, 200, 1, {{0, 1}}},
    {"200 of nothing", 0, "GET", NULL, NULL, 0, 200, 0, {{0, 0}}},
    {"200 small", SMALL, "GET", NULL, NULL, 0, 200, 1, {{0, SMALL}}},
    {"200 of 16 KiB", 16384, "GET", NULL, NULL, 0, 200, 1, {{0, 16384}}},
    {"200 of 16 KiB and a byte", 16385, "GET", NULL, NULL, 0, 200, 1, {{0, 16385}}},
    {"200 large", LARGE, "GET", NULL, NULL, 0, 200, 1, {{0, LARGE}}},
    {"200 large, copied", LARGE, "GET", NULL, NULL, SENDGATE_REP_COPY, 200, 1, {{0, LARGE}}},
    {"200 large, checked", LARGE, "GET", NULL, NULL, SENDGATE_REP_CHECK, 200, 1, {{0, LARGE}}},
    {"206 small", LARGE, "GET", "bytes=100000-100099", NULL, 0, 206, 1, {{100000, 100}}},
    {"206 large", LARGE, "GET", "bytes=1-2000000", NULL, 0, 206, 1, {{1, 2000000}}},
    {"206 suffix", SMALL, "GET", "bytes=-1", NULL, 0, 206, 1, {{SMALL - 1, 1}}},
    {"multipart small", SMALL, "GET", "bytes=0-0,-1", NULL, 0, 206, 2, {{0, 1}, {SMALL - 1, 1}}},
    {"multipart large",
     LARGE,
     "GET",
     "bytes=2000000-2999999,5-9,100000-1100000",
     NULL,
     0,
     206,
     3,
     {{2000000, 1000000}, {5, 5}, {100000, 1000001}}},
    {"multipart large, copied", LARGE, "GET", "bytes=0-999999,2000000-2999999", NULL, SENDGATE_REP_COPY, 206, 2, {{0, 1000000}, {2000000, 1000000}}},
    {"304", SMALL, "GET", NULL, "*", 0, 304, 0, {{0, 0}}},
    {"416", SMALL, "GET", "bytes=1000-", NULL, 0, 416, 0, {{0, 0}}},
    {"HEAD small", SMALL, "HEAD", NULL, NULL, 0, 200, 0, {{0, 0}}},
    {"HEAD large", LARGE, "HEAD", "bytes=0-9", NULL, 0, 200, 0, {{0, 0}}},
};

static int cork_of(int sock)
{
    int cork = -1;
    socklen_t len = sizeof cork;
    MUST(getsockopt(sock, IPPROTO_TCP, TCP_CORK, &cork, &len) == 0);
    return cork;
}

/* The bytes that the peer got are this answer. */
static void check_answer(const struct wanted *wanted, const struct peer *peer, const sendgate_result *result)
{
    struct answer answer;
    char value[200];
    answer_of(&answer, peer->data, peer->len);
    if (!CHECK_INT(answer.status, wanted->status))
        return;
    CHECK_INT(result->head_sent, answer.head_len);
    CHECK_INT(result->body_sent, answer.body_len);
    CHECK_INT(answer_field(&answer, "Date", value, sizeof value), 1);
    if (wanted->status == 200) {
        CHECK_INT(answer_number(&answer, "Content-Length"), wanted->file);
    } else if (wanted->status == 206) {
        CHECK_INT(answer_number(&answer, "Content-Length"), answer.body_len);
    }
    check_content(&answer, wanted->parts, wanted->n, wanted->file);
}

static void ask_for(struct ask *ask, const struct wanted *wanted, int file, int sock)
{
    ask_file(ask, file, sock);
    ask->request.method = text(wanted->method);
    if (wanted->range != NULL)
        ask->request.range = text(wanted->range);
    if (wanted->if_none_match != NULL)
        ask->request.if_none_match = text(wanted->if_none_match);
    ask->rep.flags |= wanted->rep_flags;
}

/* Each answer on each kind of socket; and the caller's descriptors are left as they were. */
static void every_answer(void)
{
    for (int variant = 0; variant < 8; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0, corked = (variant & 4) != 0;
        if (corked && kind == UNIX_PAIR)
            continue;
        for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
            const struct wanted *wanted = &answers[i];
            check_case("%s, %s%s, %s", kind_name(kind), nonblocking ? "non-blocking" : "blocking",
                       corked ? ", corked" : "", wanted->name);
            int sockets[2], one = 1;
            int file = file_make("answer", wanted->file);
            make_pair(kind, nonblocking, sockets);
            if (corked)
                MUST(setsockopt(sockets[0], IPPROTO_TCP, TCP_CORK, &one, sizeof one) == 0);
            struct peer peer;
            peer_init(&peer, sockets[1]);
            peer_start(&peer);
            int flags = fcntl(sockets[0], F_GETFL);
            MUST(lseek(file, 123, SEEK_SET) == 123);

            struct ask ask;
            ask_for(&ask, wanted, file, sockets[0]);
            CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
            check_result(&ask.result, SENDGATE_OK, wanted->status, SENDGATE_CONN_REUSABLE);

            CHECK_INT(fcntl(sockets[0], F_GETFL), flags);
            CHECK_INT(lseek(file, 0, SEEK_CUR), 123);
            if (kind == TCP_PAIR)
                CHECK_INT(cork_of(sockets[0]), corked);
            close(sockets[0]);
            close(file);
            peer_join(&peer);
            check_answer(wanted, &peer, &ask.result);
            peer_free(&peer);
        }
    }
}

/* Without a result, and twice on one connection. */
static void keep_alive(void)
{
    check_case("two answers on one connection");
    int sockets[2], file = file_make("answer", SMALL);
    make_pair(TCP_PAIR, 0, sockets);
    struct peer peer;
    peer_init(&peer, sockets[1]);
    peer_start(&peer);
    struct ask ask;
    ask_file(&ask, file, sockets[0]);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    ask.exchange.head_flags = SENDGATE_HEAD_CLOSE;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    check_result(&ask.result, SENDGATE_OK, 200, SENDGATE_CONN_CLOSE);
    close(sockets[0]);
    close(file);
    peer_join(&peer);
    struct answer answer;
    const char *data = peer.data;
    size_t left = peer.len;
    char value[32];
    for (int i = 0; i < 3; i++) {
        answer_of(&answer, data, left);
        if (!CHECK_INT(answer.status, 200) || !CHECK(answer.body_len >= SMALL))
            break;
        CHECK(is_pattern(answer.body, SMALL, 0));
        int announced = answer_field(&answer, "Connection", value, sizeof value);
        CHECK(i == 2 ? announced == 1 && strcmp(value, "close") == 0 : announced == 0);
        data = answer.body + SMALL;
        left = answer.body_len - SMALL;
    }
    CHECK_INT(left, 0);
    peer_free(&peer);
}

/* A span of a file whose numbers are not the file's own, and offsets beyond 4 GiB. */
static void spans(void)
{
    int sockets[2];
    struct ask ask;
    struct peer peer;
    struct answer answer;

    check_case("a span of a file");
    int file = file_make("answer", 100000);
    make_pair(UNIX_PAIR, 0, sockets);
    peer_init(&peer, sockets[1]);
    peer_start(&peer);
    ask_file(&ask, file, sockets[0]);
    ask.rep.offset = 30000;
    ask.rep.length = 50000;
    ask.request.range = text("bytes=-20000");
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    close(sockets[0]);
    close(file);
    peer_join(&peer);
    answer_of(&answer, peer.data, peer.len);
    char value[100];
    answer_field(&answer, "Content-Range", value, sizeof value);
    CHECK(strcmp(value, "bytes 30000-49999/50000") == 0);
    CHECK_INT(answer.body_len, 20000);
    CHECK(is_pattern(answer.body, answer.body_len, 60000));
    peer_free(&peer);

    check_case("a file of 6 GiB");
    file = open("big", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    MUST(file >= 0 && ftruncate(file, (off_t)6 << 30) == 0);
    MUST(pwrite(file, "end", 3, ((off_t)6 << 30) - 3) == 3);
    make_pair(UNIX_PAIR, 0, sockets);
    peer_init(&peer, sockets[1]);
    peer_start(&peer);
    ask_file(&ask, file, sockets[0]);
    ask.request.range = text("bytes=6442400000-");
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    close(sockets[0]);
    close(file);
    unlink("big");
    peer_join(&peer);
    answer_of(&answer, peer.data, peer.len);
    answer_field(&answer, "Content-Range", value, sizeof value);
    CHECK(strcmp(value, "bytes 6442400000-6442450943/6442450944") == 0);
    CHECK_INT(answer.body_len, 50944);
    CHECK(answer.body_len == 50944 && memcmp(answer.body + 50941, "end", 3) == 0);
    peer_free(&peer);
}

static void memory_bodies(void)
{
    void *memory = malloc(LARGE);
    MUST(memory != NULL);
    pattern_fill(memory, LARGE);
    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
            const struct wanted *wanted = &answers[i];
            if (wanted->rep_flags != 0)
                continue;
            check_case("memory, %s, %s", kind_name((enum kind)kind), wanted->name);
            int sockets[2];
            make_pair((enum kind)kind, 0, sockets);
            struct peer peer;
            peer_init(&peer, sockets[1]);
            peer_start(&peer);
            struct ask ask;
            ask_memory(&ask, memory, wanted->file, sockets[0]);
            ask.request.method = text(wanted->method);
            if (wanted->range != NULL)
                ask.request.range = text(wanted->range);
            if (wanted->if_none_match != NULL)
                ask.request.if_none_match = text(wanted->if_none_match);
            CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
            check_result(&ask.result, SENDGATE_OK, wanted->status, SENDGATE_CONN_REUSABLE);
            close(sockets[0]);
            peer_join(&peer);
            check_answer(wanted, &peer, &ask.result);
            peer_free(&peer);
        }
    }
    free(memory);
}

/* ---- A write function in place of the socket ---- */

struct writer {
    char data[200000];
    size_t len;
    size_t at_most;         /* per call */
    size_t fail_at;         /* once this many bytes are there, ... */
    sendgate_status answer; /* ... answer this, */
    size_t claim;           /* or, with SENDGATE_OK, claim to have written that */
    int times;              /* as often */
    int sock;               /* for an answer of SENDGATE_WANT_READ: make this readable */
};

static sendgate_status write_some(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct writer *writer = user;
    if (writer->times > 0 && writer->len >= writer->fail_at) {
        writer->times--;
        *written = writer->claim == SIZE_MAX ? len + 1 : writer->claim;
        if (writer->answer == SENDGATE_WANT_READ && writer->sock >= 0)
            MUST(send(writer->sock, "x", 1, 0) == 1);
        return writer->answer;
    }
    size_t n = len < writer->at_most ? len : writer->at_most;
    MUST(n > 0 && writer->len + n <= sizeof writer->data);
    memcpy(writer->data + writer->len, data, n);
    writer->len += n;
    *written = n;
    return SENDGATE_OK;
}

static void write_functions(void)
{
    static struct writer writer;
    struct ask ask;
    struct answer answer;
    int file = file_make("answer", 100000);
    static const size_t steps[] = {7, 1000, 1 << 30};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        check_case("a write function that takes %zu bytes", steps[i]);
        memset(&writer, 0, sizeof writer);
        writer.at_most = steps[i];
        ask_file(&ask, file, -1);
        ask.sink.write = write_some;
        ask.sink.user = &writer;
        CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
        check_result(&ask.result, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
        answer_of(&answer, writer.data, writer.len);
        CHECK_INT(answer.status, 200);
        CHECK_INT(answer.body_len, 100000);
        CHECK(is_pattern(answer.body, answer.body_len, 0));
        CHECK_INT(ask.result.head_sent, answer.head_len);
    }

    static const struct bad {
        const char *name;
        sendgate_status answer;
        size_t claim;
        sendgate_status status;
    } bad[] = {
        {"claims nothing", SENDGATE_OK, 0, SENDGATE_ERR_INVALID},
        {"claims more than there was", SENDGATE_OK, SIZE_MAX, SENDGATE_ERR_INVALID},
        {"wants to write, with nothing to wait on", SENDGATE_WANT_WRITE, 0, SENDGATE_ERR_BLOCKING},
        {"wants to read, with nothing to wait on", SENDGATE_WANT_READ, 0, SENDGATE_ERR_BLOCKING},
        {"loses its peer", SENDGATE_ERR_PEER_CLOSED, 0, SENDGATE_ERR_PEER_CLOSED},
        {"fails", SENDGATE_ERR_IO, 0, SENDGATE_ERR_IO},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        for (int late = 0; late < 2; late++) {
            check_case("a write function that %s%s", bad[i].name, late ? ", after 20000 bytes" : "");
            memset(&writer, 0, sizeof writer);
            writer.at_most = 999;
            writer.fail_at = late ? 20000 : 0;
            writer.answer = bad[i].answer;
            writer.claim = bad[i].claim;
            writer.times = 1;
            writer.sock = -1;
            ask_file(&ask, file, -1);
            ask.sink.write = write_some;
            ask.sink.user = &writer;
            CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), bad[i].status);
            check_result(&ask.result, bad[i].status, 200, late ? SENDGATE_CONN_BROKEN : SENDGATE_CONN_UNTOUCHED);
            CHECK_INT(ask.result.head_sent + ask.result.body_sent, writer.len);
            CHECK_INT(writer.times, 0);
        }
    }

    /* A number that is neither done, nor waiting, nor an error must not be taken for success. */
    check_case("a write function that answers SENDGATE_YIELD");
    memset(&writer, 0, sizeof writer);
    writer.answer = SENDGATE_YIELD;
    writer.times = 1;
    writer.at_most = 999;
    ask_file(&ask, file, -1);
    ask.sink.write = write_some;
    ask.sink.user = &writer;
    CHECK(sendgate_respond(&ask.exchange, &ask.sink, &ask.result) < 0);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);

    for (int reads = 0; reads < 2; reads++) {
        check_case("a write function that wants to %s, with a socket to wait on", reads ? "read" : "write");
        int sockets[2];
        make_pair(UNIX_PAIR, 1, sockets);
        memset(&writer, 0, sizeof writer);
        writer.at_most = 999;
        writer.fail_at = 5000;
        writer.answer = reads ? SENDGATE_WANT_READ : SENDGATE_WANT_WRITE;
        writer.times = 3;
        writer.sock = sockets[1];
        ask_file(&ask, file, sockets[0]);
        ask.sink.write = write_some;
        ask.sink.user = &writer;
        CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
        answer_of(&answer, writer.data, writer.len);
        CHECK(answer.body_len == 100000 && is_pattern(answer.body, answer.body_len, 0));
        char byte;
        CHECK_INT(peer_take(sockets[1], &byte, 1), 0);
        close(sockets[0]);
        close(sockets[1]);
    }
    close(file);
}

/* ---- Timeouts ---- */

/* Takes all it is given, slowly; remembers the largest and the first piece. */
struct slow_writer {
    long pause_ns;
    size_t first, largest;
};

static sendgate_status write_slowly(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct slow_writer *writer = user;
    (void)data;
    struct timespec pause = {.tv_sec = 0, .tv_nsec = writer->pause_ns};
    nanosleep(&pause, NULL);
    if (writer->first == 0)
        writer->first = len;
    if (len > writer->largest)
        writer->largest = len;
    *written = len;
    return SENDGATE_OK;
}

static void slow_writers(void)
{
    struct ask ask;
    int file = file_make("answer", 16 << 20);
    check_case("a write function that blocks: the total timeout holds");
    struct slow_writer writer = {.pause_ns = 20000000};
    ask_file(&ask, file, -1);
    ask.sink.write = write_slowly;
    ask.sink.user = &writer;
    ask.sink.total_timeout_ms = 200;
    int64_t start = now_ms();
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_TIMEOUT);
    int64_t took = now_ms() - start;
    CHECK(took >= 190 && took < 5000);
    check_result(&ask.result, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_BROKEN);

    check_case("a write function gets TLS records: the head with the first bytes, 16 KiB at most");
    writer = (struct slow_writer){.pause_ns = 0};
    ask.sink.total_timeout_ms = 0;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    CHECK_INT(writer.first, 16384);
    CHECK_INT(writer.largest, 16384);
    close(file);
}

/* Memory that is a mapping of a file cut short: an error, not a signal. */
static void memory_cut_short(void)
{
    struct ask ask;
    int sockets[2], file = file_make("mapped", 100000);
    static const size_t lengths[] = {4000, 100000};
    for (size_t i = 0; i < 2; i++) {
        check_case("%zu bytes of a mapping of a file that was cut short", lengths[i]);
        MUST(truncate("mapped", 100000) == 0);
        void *mapping = mmap(NULL, lengths[i], PROT_READ, MAP_SHARED, file, 0);
        MUST(mapping != MAP_FAILED);
        MUST(truncate("mapped", 0) == 0);
        make_pair(UNIX_PAIR, 1, sockets);
        ask_memory(&ask, mapping, lengths[i], sockets[0]);
        CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_IO);
        CHECK_INT(ask.result.sys_errno, EFAULT);
        munmap(mapping, lengths[i]);
        close(sockets[0]);
        close(sockets[1]);
    }
    close(file);
}

static void timeouts(void)
{
    struct ask ask;
    int sockets[2], file = file_make("answer", 16 << 20);
    for (int variant = 0; variant < 4; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0;
        check_case("a peer that never reads, %s, %s", kind_name(kind), nonblocking ? "non-blocking" : "blocking");
        make_pair(kind, nonblocking, sockets);
        int flags = fcntl(sockets[0], F_GETFL);
        ask_file(&ask, file, sockets[0]);
        ask.sink.idle_timeout_ms = 200;
        int64_t start = now_ms();
        CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_TIMEOUT);
        int64_t took = now_ms() - start;
        CHECK(took >= 190 && took < 10000);
        check_result(&ask.result, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_BROKEN);
        CHECK_INT(fcntl(sockets[0], F_GETFL), flags);
        close(sockets[0]);
        close(sockets[1]);
    }

    /* Each pause of the peer is shorter than the idle timeout; all of them together are not. */
    check_case("a slow peer within the idle timeout");
    struct peer peer;
    make_pair(UNIX_PAIR, 0, sockets);
    peer_init(&peer, sockets[1]);
    peer.pause_ms = 10;
    peer_start(&peer);
    ask_file(&ask, file, sockets[0]);
    ask.rep.length = 8 << 20;
    ask.sink.idle_timeout_ms = 1000;
    int64_t start = now_ms();
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    CHECK(now_ms() - start > 1000);
    close(sockets[0]);
    peer_join(&peer);
    CHECK_INT(peer.len, ask.result.head_sent + ask.result.body_sent);
    peer_free(&peer);

    check_case("a slow peer beyond the total timeout");
    make_pair(UNIX_PAIR, 0, sockets);
    peer_init(&peer, sockets[1]);
    peer.pause_ms = 50;
    peer_start(&peer);
    ask_file(&ask, file, sockets[0]);
    ask.sink.total_timeout_ms = 400;
    start = now_ms();
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_TIMEOUT);
    int64_t took = now_ms() - start;
    CHECK(took >= 390 && took < 10000);
    check_result(&ask.result, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_BROKEN);
    close(sockets[0]);
    peer_join(&peer);
    CHECK_INT(peer.len, ask.result.head_sent + ask.result.body_sent);
    peer_free(&peer);
    close(file);
}

/* ---- A peer that goes away, and SIGPIPE ---- */

static volatile sig_atomic_t handled;

static void on_sigpipe(int signal)
{
    (void)signal;
    handled++;
}

static int pending(void)
{
    sigset_t set;
    MUST(sigpending(&set) == 0);
    return sigismember(&set, SIGPIPE);
}

static int blocked(void)
{
    sigset_t set;
    MUST(pthread_sigmask(SIG_SETMASK, NULL, &set) == 0);
    return sigismember(&set, SIGPIPE);
}

static void disposition(void (*handler)(int))
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    MUST(sigaction(SIGPIPE, &action, NULL) == 0);
}

/* The answer to a peer that closes: before it, or in the middle of it. `step` uses a handle. */
static void to_closing_peer(enum kind kind, int early, size_t size, int step)
{
    int sockets[2], file = file_make("answer", size);
    struct ask ask;
    make_pair(kind, step, sockets);
    ask_file(&ask, file, sockets[0]);
    /* An unread request and no lingering make a TCP close a reset. */
    struct linger linger = {1, 0};
    if (kind == TCP_PAIR)
        MUST(setsockopt(sockets[1], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    sendgate_status status;
    if (step) {
        sendgate_transfer *transfer;
        MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
        CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
        if (!early)
            CHECK_STATUS(sendgate_transfer_step(transfer, 0, &ask.result), SENDGATE_WANT_WRITE);
        close(sockets[1]);
        status = sendgate_transfer_step(transfer, 0, &ask.result);
        /* The failure is kept; it must not be tried again. */
        CHECK_STATUS(sendgate_transfer_step(transfer, 0, &ask.result), status);
        sendgate_transfer_free(transfer);
    } else {
        struct peer peer;
        peer_init(&peer, sockets[1]);
        peer.stop_at = early ? 0 : 300000;
        if (early) {
            close(sockets[1]);
        } else {
            peer_start(&peer);
        }
        ask.sink.idle_timeout_ms = 20000;
        status = sendgate_respond(&ask.exchange, &ask.sink, &ask.result);
        if (!early)
            peer_join(&peer);
        peer_free(&peer);
    }
    CHECK_STATUS(status, SENDGATE_ERR_PEER_CLOSED);
    check_result(&ask.result, SENDGATE_ERR_PEER_CLOSED, 200,
                 ask.result.head_sent == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
    CHECK(ask.result.sys_errno == EPIPE || ask.result.sys_errno == ECONNRESET);
    close(sockets[0]);
    close(file);
}

enum signals { DEFAULT, HANDLED, IGNORED, BLOCKED, PENDING_THREAD, PENDING_PROCESS, N_SIGNALS };
static const char *const signal_names[] = {
    "SIGPIPE at its default", "SIGPIPE handled",   "SIGPIPE ignored",
    "SIGPIPE blocked",        "SIGPIPE pending",   "SIGPIPE pending for the process",
};

/* Dies of SIGPIPE if the library lets it through. */
static void closed_peers(void)
{
    sigset_t sigpipe;
    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    for (int signals = 0; signals < N_SIGNALS; signals++) {
        for (int variant = 0; variant < 16; variant++) {
            enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
            int early = (variant & 2) != 0, step = (variant & 4) != 0;
            size_t size = variant & 8 ? SMALL : 16 << 20;
            if (size == SMALL && !early)
                continue; /* it is out before the peer is gone */
            check_case("%s closed %s %zu bytes, %s, %s", kind_name(kind), early ? "before" : "within", size,
                       step ? "step" : "respond", signal_names[signals]);
            void (*handler)(int) = signals == HANDLED ? on_sigpipe : signals == IGNORED ? SIG_IGN : SIG_DFL;
            disposition(handler);
            handled = 0;
            if (signals >= BLOCKED)
                MUST(pthread_sigmask(SIG_BLOCK, &sigpipe, NULL) == 0);
            if (signals == PENDING_THREAD)
                MUST(pthread_kill(pthread_self(), SIGPIPE) == 0);
            if (signals == PENDING_PROCESS)
                MUST(kill(getpid(), SIGPIPE) == 0);

            to_closing_peer(kind, early, size, step);

            struct sigaction action;
            MUST(sigaction(SIGPIPE, NULL, &action) == 0);
            CHECK(action.sa_handler == handler);
            CHECK_INT(blocked(), signals >= BLOCKED);
            CHECK_INT(pending(), signals >= PENDING_THREAD);
            CHECK_INT(handled, 0);
            /* The caller's one is all there is. */
            struct timespec none = {0, 0};
            int found = 0;
            while (pending() && sigtimedwait(&sigpipe, NULL, &none) == SIGPIPE)
                found++;
            CHECK_INT(found, signals >= PENDING_THREAD);
            MUST(pthread_sigmask(SIG_UNBLOCK, &sigpipe, NULL) == 0);
        }
    }
    disposition(SIG_IGN);
    check_case("SENDGATE_SINK_SIGPIPE_IGNORED");
    int sockets[2], file = file_make("answer", 16 << 20);
    make_pair(UNIX_PAIR, 0, sockets);
    struct peer peer;
    peer_init(&peer, sockets[1]);
    peer.stop_at = 300000;
    peer_start(&peer);
    struct ask ask;
    ask_file(&ask, file, sockets[0]);
    ask.sink.flags = SENDGATE_SINK_SIGPIPE_IGNORED;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_PEER_CLOSED);
    close(sockets[0]);
    close(file);
    peer_join(&peer);
    peer_free(&peer);
    disposition(SIG_DFL);
}

/* ---- Files that shrink ---- */

static void truncated_files(void)
{
    struct ask ask;
    struct peer peer;
    struct answer answer;
    int sockets[2];
    static const struct shrink {
        const char *name;
        const char *range;
        uint32_t flags;
    } shrinks[] = {
        {"sendfile", NULL, 0},
        {"copy", NULL, SENDGATE_REP_COPY},
        {"multipart", "bytes=0-9,100-16777215", 0},
    };
    for (size_t i = 0; i < sizeof shrinks / sizeof *shrinks; i++) {
        for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
            check_case("truncated half-way, %s, %s", shrinks[i].name, nonblocking ? "non-blocking" : "blocking");
            int file = file_make("answer", 16 << 20);
            int writable = open("answer", O_WRONLY | O_CLOEXEC);
            MUST(writable >= 0);
            make_pair(UNIX_PAIR, nonblocking, sockets);
            peer_init(&peer, sockets[1]);
            peer.stop_at = 2000000;
            peer.truncate_fd = writable;
            peer.truncate_to = 1000000;
            peer_start(&peer);
            ask_file(&ask, file, sockets[0]);
            if (shrinks[i].range != NULL)
                ask.request.range = text(shrinks[i].range);
            ask.rep.flags |= shrinks[i].flags;
            CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_TRUNCATED);
            check_result(&ask.result, SENDGATE_ERR_TRUNCATED, shrinks[i].range ? 206 : 200, SENDGATE_CONN_BROKEN);
            CHECK(ask.result.body_sent < ask.result.body_length);
            close(sockets[0]);
            peer_join(&peer);
            CHECK_INT(peer.len, ask.result.head_sent + ask.result.body_sent);
            answer_of(&answer, peer.data, peer.len);
            /* sendfile refers to the file's pages, which the truncation empties; a copy must be right. */
            if (shrinks[i].flags == SENDGATE_REP_COPY)
                CHECK(is_pattern(answer.body, answer.body_len, 0));
            else if (shrinks[i].range == NULL)
                CHECK(is_pattern(answer.body, answer.body_len < 1000000 ? answer.body_len : 1000000, 0));
            peer_free(&peer);
            close(writable);
            close(file);
        }
    }

    static const size_t sizes[] = {SMALL, 16384, 1 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (off_t rest = 0; rest <= 500; rest += 500) {
            check_case("%zu bytes truncated to %d before anything was sent", sizes[i], (int)rest);
            int file = file_make("answer", sizes[i]);
            make_pair(UNIX_PAIR, 0, sockets);
            ask_file(&ask, file, sockets[0]);
            MUST(truncate("answer", rest) == 0);
            CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_TRUNCATED);
            check_result(&ask.result, SENDGATE_ERR_TRUNCATED, 200,
                         sizes[i] <= 16384 ? SENDGATE_CONN_UNTOUCHED : ask.result.connection);
            CHECK(ask.result.connection == SENDGATE_CONN_UNTOUCHED || ask.result.connection == SENDGATE_CONN_BROKEN);
            char received[1];
            if (ask.result.connection == SENDGATE_CONN_UNTOUCHED)
                CHECK_INT(peer_take(sockets[1], received, 1), 0);
            close(sockets[0]);
            close(sockets[1]);
            close(file);
        }
    }

    check_case("a file that grows is sent as long as announced");
    int file = file_make("answer", SMALL);
    make_pair(UNIX_PAIR, 0, sockets);
    ask_file(&ask, file, sockets[0]);
    MUST(truncate("answer", 2 * SMALL) == 0);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    CHECK_INT(ask.result.body_sent, SMALL);
    close(file);

    check_case("SENDGATE_REP_CHECK notices a change");
    file = file_make("answer", SMALL);
    ask_file(&ask, file, sockets[0]);
    ask.rep.flags |= SENDGATE_REP_CHECK;
    int writable = open("answer", O_WRONLY | O_CLOEXEC);
    MUST(writable >= 0 && pwrite(writable, "x", 1, 0) == 1);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_CHANGED);
    check_result(&ask.result, SENDGATE_ERR_CHANGED, ask.result.http_status, SENDGATE_CONN_UNTOUCHED);
    close(writable);
    close(file);
    close(sockets[0]);
    close(sockets[1]);
}

/* ---- Descriptors that can't be sent ---- */

/* Open as it is, and say what sendgate_rep_from_fd and sendgate_respond do with it. */
static void check_descriptor(const char *name, int fd, int fstat_tells)
{
    check_case("%s", name);
    MUST(fd >= 0);
    sendgate_rep rep;
    memset(&rep, 0, sizeof rep);
    rep.size = sizeof rep;
    int32_t error = 0;
    char etag[SENDGATE_ETAG_MAX];
    if (fstat_tells)
        CHECK_STATUS(sendgate_rep_from_fd(&rep, fd, 0, etag, sizeof etag, &error), SENDGATE_ERR_NOT_REGULAR);
    static const uint64_t lengths[] = {100, 100000};
    for (int i = 0; i < 2; i++) {
        for (int copy = 0; copy < 2; copy++) {
            int sockets[2];
            struct ask ask;
            make_pair(UNIX_PAIR, 0, sockets);
            ask_memory(&ask, NULL, 0, sockets[0]);
            ask.rep.kind = SENDGATE_REP_FILE;
            ask.rep.flags = copy ? SENDGATE_REP_COPY : 0;
            ask.rep.fd = fd;
            ask.rep.length = lengths[i];
            ask.sink.idle_timeout_ms = 2000;
            int64_t start = now_ms();
            sendgate_status status = sendgate_respond(&ask.exchange, &ask.sink, &ask.result);
            CHECK(now_ms() - start < 2000);
            CHECK(status == SENDGATE_ERR_NOT_REGULAR || status == SENDGATE_ERR_IO || status == SENDGATE_ERR_TRUNCATED);
            CHECK((status == SENDGATE_ERR_IO) == (ask.result.sys_errno != 0));
            CHECK_INT(ask.result.body_sent, 0);
            CHECK(ask.result.connection == SENDGATE_CONN_UNTOUCHED || ask.result.connection == SENDGATE_CONN_BROKEN);
            char received[1];
            if (ask.result.connection == SENDGATE_CONN_UNTOUCHED)
                CHECK_INT(peer_take(sockets[1], received, 1), 0);
            close(sockets[0]);
            close(sockets[1]);
        }
    }
    close(fd);
}

static void wrong_descriptors(void)
{
    int pipes[2], sockets[2];
    struct stat of;
    MUST(mkfifo("fifo", 0666) == 0);
    close(file_make("answer", 200000));
    MUST(pipe(pipes) == 0);
    make_pair(UNIX_PAIR, 0, sockets);
    check_descriptor("a FIFO without a writer", open("fifo", O_RDONLY | O_NONBLOCK), 1);
    check_descriptor("a FIFO with a writer", open("fifo", O_RDWR), 1);
    check_descriptor("a pipe", pipes[0], 1);
    check_descriptor("a socket", sockets[0], 1);
    check_descriptor("a directory", open(".", O_RDONLY), 1);
    /* fstat takes an O_PATH or O_WRONLY descriptor of a regular file as one. */
    check_descriptor("O_PATH", open("answer", O_PATH), 0);
    check_descriptor("O_WRONLY", open("answer", O_WRONLY), 0);
    close(pipes[1]);
    close(sockets[1]);

    /* Readable like files, so that only fstat tells. */
    static const char *const procfs[] = {"/dev/zero", "/dev/null", "/proc/self/status", "/proc/self/maps", "/proc/cpuinfo", "/proc/version"};
    for (size_t i = 0; i < sizeof procfs / sizeof *procfs; i++) {
        check_case("%s", procfs[i]);
        int fd = open(procfs[i], O_RDONLY);
        sendgate_rep rep;
        memset(&rep, 0, sizeof rep);
        rep.size = sizeof rep;
        MUST(fd >= 0);
        CHECK_STATUS(sendgate_rep_from_fd(&rep, fd, 0, NULL, 0, NULL), SENDGATE_ERR_NOT_REGULAR);
        close(fd);
    }

    /* A sysfs file says 4096 bytes and has a few: it must not be padded, and nothing may hang. */
    check_case("/sys/kernel/mm/transparent_hugepage/enabled and the like");
    static const char *const sysfs[] = {"/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/uevent_seqnum",
                                        "/sys/devices/system/cpu/online"};
    int seen = 0;
    for (size_t i = 0; i < sizeof sysfs / sizeof *sysfs; i++) {
        int fd = open(sysfs[i], O_RDONLY);
        if (fd < 0)
            continue;
        if (fstat(fd, &of) == 0 && of.st_size == 4096) {
            struct ask ask;
            seen++;
            make_pair(UNIX_PAIR, 0, sockets);
            ask_memory(&ask, NULL, 0, sockets[0]);
            ask.rep.kind = SENDGATE_REP_FILE;
            sendgate_status status = sendgate_rep_from_fd(&ask.rep, fd, 0, NULL, 0, NULL);
            if (status == SENDGATE_OK)
                status = sendgate_respond(&ask.exchange, &ask.sink, &ask.result);
            CHECK(status == SENDGATE_ERR_NOT_REGULAR || status == SENDGATE_ERR_TRUNCATED);
            char received[1];
            CHECK_INT(peer_take(sockets[1], received, 1), 0);
            close(sockets[0]);
            close(sockets[1]);
        }
        close(fd);
    }
    if (seen == 0)
        printf("skipped: no sysfs file here says that it has 4096 bytes\n");

    /* An empty file is not one of the kernel's making. */
    check_case("an empty file");
    sendgate_rep rep;
    memset(&rep, 0, sizeof rep);
    rep.size = sizeof rep;
    int empty = file_make("empty", 0);
    CHECK_STATUS(sendgate_rep_from_fd(&rep, empty, 0, NULL, 0, NULL), SENDGATE_OK);
    CHECK_INT(rep.length, 0);
    close(empty);

    check_case("descriptor -1");
    int32_t error = 0;
    CHECK_STATUS(sendgate_rep_from_fd(&rep, -1, 0, NULL, 0, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_rep_from_fd(&rep, 1000, 0, NULL, 0, &error), SENDGATE_ERR_IO);
    CHECK_INT(error, EBADF);
    struct ask ask;
    make_pair(UNIX_PAIR, 0, sockets);
    int file = file_make("answer", SMALL);
    ask_file(&ask, file, sockets[0]);
    ask.rep.fd = -1;
    sendgate_status status = sendgate_respond(&ask.exchange, &ask.sink, &ask.result);
    CHECK_STATUS(status, SENDGATE_ERR_INVALID);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    ask_file(&ask, file, -1);
    status = sendgate_respond(&ask.exchange, &ask.sink, &ask.result);
    CHECK_STATUS(status, SENDGATE_ERR_INVALID);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    check_case("a closed socket");
    ask_file(&ask, file, sockets[0]);
    close(sockets[0]);
    status = sendgate_respond(&ask.exchange, &ask.sink, &ask.result);
    CHECK_STATUS(status, SENDGATE_ERR_IO);
    CHECK_INT(ask.result.sys_errno, EBADF);
    check_case("a file in place of a socket");
    ask_file(&ask, file, file);
    status = sendgate_respond(&ask.exchange, &ask.sink, &ask.result);
    CHECK_STATUS(status, SENDGATE_ERR_IO);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    close(sockets[1]);
    close(file);
}

int main(void)
{
    check_begin();
    int before = open_fds();
    disposition(SIG_DFL);
    every_answer();
    keep_alive();
    spans();
    memory_bodies();
    write_functions();
    timeouts();
    slow_writers();
    memory_cut_short();
    closed_peers();
    truncated_files();
    wrong_descriptors();
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    return check_end();
}
