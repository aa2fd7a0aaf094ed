/* The background sender on real sockets: every kind of answer, what it leaves of the caller's descriptors,
 * completions and how they are told, write functions, cancelling, and limits.
 */
#include "flight.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define SMALL 1000
#define LARGE (3 * 1024 * 1024 + 17)
/* More than all buffers between two sockets hold. */
#define HUGE_FILE (16 << 20)
#define MAX_PARTS 4

/* Under Valgrind: fewer rounds of the same. */
static int slow;

/* ---- Arguments ---- */

static void arguments(void)
{
    struct flight flight;
    sendgate_completion done;
    sendgate_sender *sender = NULL;
    sendgate_sender_options options;
    size_t n = 42;
    int32_t error = 42;
    int before = open_fds();

    check_case("sender_new");
    CHECK_STATUS(sendgate_sender_new(NULL, NULL, &error), SENDGATE_ERR_INVALID);
    CHECK_INT(open_fds(), before);
    memset(&options, 0, sizeof options);
    CHECK_STATUS(sendgate_sender_new(&options, &sender, NULL), SENDGATE_ERR_SIZE);
    options.size = sizeof options;
    options.max_in_flight = 16777217;
    CHECK_STATUS(sendgate_sender_new(&options, &sender, NULL), SENDGATE_ERR_INVALID);
    options.max_in_flight = UINT32_MAX;
    CHECK_STATUS(sendgate_sender_new(&options, &sender, NULL), SENDGATE_ERR_INVALID);
    CHECK(sender == NULL);
    CHECK_INT(open_fds(), before);
    static const uint32_t turn_sizes[] = {1, 16383, 16384, UINT32_MAX};
    for (size_t i = 0; i < N(turn_sizes); i++) {
        check_case("turn_bytes %u, max_in_flight 16777216", (unsigned)turn_sizes[i]);
        options.max_in_flight = 16777216;
        options.turn_bytes = turn_sizes[i];
        sender = sender_make(&options);
        check_sender_works(sender);
        sendgate_sender_free(sender);
    }

    check_case("no sender");
    struct ask ask;
    ask_memory(&ask, "hello", 5, 0);
    CHECK_INT(sendgate_sender_fd(NULL), -1);
    CHECK_STATUS(sendgate_sender_submit(NULL, &ask.exchange, &ask.sink, NULL, NULL, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_STATUS(ask.result.status, SENDGATE_ERR_INVALID);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    CHECK_STATUS(sendgate_sender_take(NULL, &done, 1, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_sender_cancel(NULL, 1), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_sender_stop(NULL, 0), SENDGATE_ERR_INVALID);

    check_case("take");
    sender = sender_make(NULL);
    CHECK_STATUS(sendgate_sender_take(sender, NULL, 1, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_sender_take(sender, &done, 0, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_sender_take(sender, &done, 1, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_sender_take(sender, &done, SIZE_MAX, &n), SENDGATE_ERR_INVALID);
    CHECK_INT(n, 42);
    /* Nothing is lost by it. */
    flight_open(&flight, UNIX_PAIR, 1);
    flight_send(&flight, sender, file_new("answer", SMALL));
    struct pollfd news = {sendgate_sender_fd(sender), POLLIN, 0};
    MUST(poll(&news, 1, 60000) == 1);
    CHECK_STATUS(sendgate_sender_take(sender, NULL, 1, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_sender_take(sender, &done, 0, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_sender_take(sender, &done, 1, NULL), SENDGATE_ERR_INVALID);
    flight_collect(sender, 1);
    flight_check_whole(&flight, SMALL);

    int file = file_new("answer", LARGE);
    static const char *const names[] = {"no exchange", "no sink", "no size of the sink", "an unknown flag", "no socket", "no file",
                                        "a closed socket", "a closed file", "a file that can't be read", "a bad field"};
    for (size_t i = 0; i < N(names); i++) {
        check_case("submit with %s", names[i]);
        flight_open(&flight, UNIX_PAIR, 0);
        before = open_fds();
        ask_file(&flight.ask, file, flight.sock);
        sendgate_result *result = &flight.ask.result;
        const sendgate_exchange *exchange = &flight.ask.exchange;
        const sendgate_sink *sink = &flight.ask.sink;
        sendgate_header header = {.field = {text("Bad Name"), text("x")}, .rule = 0};
        sendgate_status want = SENDGATE_ERR_INVALID;
        int write_only = open("answer", O_WRONLY | O_CLOEXEC);
        MUST(write_only >= 0);
        switch (i) {
        case 0:
            exchange = NULL;
            break;
        case 1:
            sink = NULL;
            break;
        case 2:
            flight.ask.sink.size = 0;
            want = SENDGATE_ERR_SIZE;
            break;
        case 3:
            flight.ask.sink.flags = 0x4;
            break;
        case 4:
            flight.ask.sink.fd = -1;
            break;
        case 5:
            flight.ask.rep.fd = -1;
            break;
        case 6:
            flight.ask.sink.fd = 1000;
            want = SENDGATE_ERR_IO;
            break;
        case 7:
            flight.ask.rep.fd = 1000;
            want = SENDGATE_ERR_IO;
            break;
        case 8:
            flight.ask.rep.fd = write_only;
            want = SENDGATE_ERR_IO;
            break;
        default:
            flight.ask.exchange.headers = &header;
            flight.ask.exchange.n_headers = 1;
            want = SENDGATE_ERR_FIELD;
        }
        flight.id = 42;
        CHECK_STATUS(sendgate_sender_submit(sender, exchange, sink, NULL, &flight.id, result), want);
        CHECK_STATUS(result->status, want);
        CHECK_INT(result->sys_errno, want == SENDGATE_ERR_IO ? EBADF : 0);
        CHECK_INT(result->connection, SENDGATE_CONN_UNTOUCHED);
        CHECK_INT(flight.id, 42);
        close(write_only);
        CHECK_INT(open_fds(), before);
        CHECK_INT(fcntl(flight.sock, F_GETFL) & O_NONBLOCK, 0);
        check_sender_empty(sender);
        flight_join(&flight);
        CHECK_INT(flight.peer.len, 0);
        flight_free(&flight);
    }
    close(file);
    check_sender_works(sender);
    sendgate_sender_free(sender);
}

/* ---- Complete answers ---- */

static const struct wanted {
    const char *name;
    size_t file;
    const char *method;
    const char *range;
    const char *if_none_match;
    uint32_t rep_flags;
    uint32_t version;
    uint32_t own_status;
    uint32_t status;
    uint32_t connection;
    size_t n;
    sendgate_range parts[MAX_PARTS];
} answers[] = {
    {"200 of nothing", 0, "GET", NULL, NULL, 0, 11, 0, 200, SENDGATE_CONN_REUSABLE, 0, {{0, 0}}},
    {"200 small", SMALL, "GET", NULL, NULL, 0, 11, 0, 200, SENDGATE_CONN_REUSABLE, 1, {{0, SMALL}}},
    {"200 of 16 KiB", 16384, "GET", NULL, NULL, 0, 11, 0, 200, SENDGATE_CONN_REUSABLE, 1, {{0, 16384}}},
    {"200 of 16 KiB and a byte", 16385, "GET", NULL, NULL, 0, 11, 0, 200, SENDGATE_CONN_REUSABLE, 1, {{0, 16385}}},
    {"200 large", LARGE, "GET", NULL, NULL, 0, 11, 0, 200, SENDGATE_CONN_REUSABLE, 1, {{0, LARGE}}},
    {"200 large, copied", LARGE, "GET", NULL, NULL, SENDGATE_REP_COPY, 11, 0, 200, SENDGATE_CONN_REUSABLE, 1, {{0, LARGE}}},
    {"200 large, checked", LARGE, "GET", NULL, NULL, SENDGATE_REP_CHECK, 11, 0, 200, SENDGATE_CONN_REUSABLE, 1, {{0, LARGE}}},
    {"206 small", LARGE, "GET", "bytes=100000-100099", NULL, 0, 11, 0, 206, SENDGATE_CONN_REUSABLE, 1, {{100000, 100}}},
    {"206 large", LARGE, "GET", "bytes=1-2000000", NULL, 0, 11, 0, 206, SENDGATE_CONN_REUSABLE, 1, {{1, 2000000}}},
    {"multipart small", SMALL, "GET", "bytes=0-0,-1", NULL, 0, 11, 0, 206, SENDGATE_CONN_REUSABLE, 2, {{0, 1}, {SMALL - 1, 1}}},
    {"multipart large",
     LARGE,
     "GET",
     "bytes=2000000-2999999,5-9,100000-1100000",
     NULL,
     0,
     11,
     0,
     206,
     SENDGATE_CONN_REUSABLE,
     3,
     {{2000000, 1000000}, {5, 5}, {100000, 1000001}}},
    {"304", SMALL, "GET", NULL, "*", 0, 11, 0, 304, SENDGATE_CONN_REUSABLE, 0, {{0, 0}}},
    {"416", SMALL, "GET", "bytes=1000-", NULL, 0, 11, 0, 416, SENDGATE_CONN_REUSABLE, 0, {{0, 0}}},
    {"HEAD", LARGE, "HEAD", NULL, NULL, 0, 11, 0, 200, SENDGATE_CONN_REUSABLE, 0, {{0, 0}}},
    {"HTTP/1.0", LARGE, "GET", NULL, NULL, 0, 10, 0, 200, SENDGATE_CONN_CLOSE, 1, {{0, LARGE}}},
    {"404 of the caller's own", SMALL, "GET", "bytes=0-9", "*", 0, 11, 404, 404, SENDGATE_CONN_REUSABLE, 1, {{0, SMALL}}},
};

static void ask_for(struct ask *ask, const struct wanted *wanted)
{
    ask->request.method = text(wanted->method);
    ask->request.version = wanted->version;
    if (wanted->range != NULL)
        ask->request.range = text(wanted->range);
    if (wanted->if_none_match != NULL)
        ask->request.if_none_match = text(wanted->if_none_match);
    ask->rep.flags |= wanted->rep_flags;
    ask->exchange.http_status = wanted->own_status;
}

static void check_answer(const struct wanted *wanted, const struct flight *flight)
{
    struct answer answer;
    const sendgate_completion *done = &flight->done;
    check_completion(done, SENDGATE_OK, wanted->status, wanted->connection);
    answer_of(&answer, flight->peer.data, flight->peer.len);
    if (!CHECK_INT(answer.status, wanted->status))
        return;
    CHECK_INT(done->head_sent, answer.head_len);
    CHECK_INT(done->body_sent, answer.body_len);
    CHECK_INT(done->body_length, answer.body_len);
    if (wanted->status == 206 || wanted->n == 1)
        CHECK_INT(answer_number(&answer, "Content-Length"), answer.body_len);
    check_content(&answer, wanted->parts, wanted->n, wanted->file);
}

static int tcp_option(int sock, int option)
{
    int value = -1;
    socklen_t len = sizeof value;
    MUST(getsockopt(sock, IPPROTO_TCP, option, &value, &len) == 0);
    return value;
}

/* All answers in flight at the same time on connections of one kind. Nothing of the caller's is changed: neither the
 * socket's flags and options nor the file's position; nor is anything of the caller's needed, in the variants in which
 * all is closed as soon as it is submitted. */
static void every_answer(void)
{
    static struct flight flights[N(answers)];
    int files[N(answers)], flags[N(answers)], one = 1;
    char *memory = malloc(LARGE);
    MUST(memory != NULL);
    pattern_fill(memory, LARGE);
    for (int variant = 0; variant < 16; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0, keep = (variant & 4) != 0, from_memory = (variant & 8) != 0;
        sendgate_sender_options options = {.size = sizeof options, .turn_bytes = keep ? 16384 : 0};
        sendgate_sender *sender = sender_make(&options);
        size_t n = 0;
        for (size_t i = 0; i < N(answers); i++) {
            const struct wanted *wanted = &answers[i];
            struct flight *flight = &flights[i];
            check_case("%s of %s, %s, %s", wanted->name, from_memory ? "memory" : "a file", kind_name(kind),
                       nonblocking ? "non-blocking" : "blocking");
            flight_open(flight, kind, nonblocking);
            flags[i] = fcntl(flight->sock, F_GETFL);
            if (keep && kind == TCP_PAIR) {
                MUST(setsockopt(flight->sock, IPPROTO_TCP, TCP_CORK, &one, sizeof one) == 0);
                MUST(setsockopt(flight->sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
            }
            if (from_memory) {
                files[i] = -1;
                ask_memory(&flight->ask, memory, wanted->file, flight->sock);
            } else {
                char name[32];
                snprintf(name, sizeof name, "answer%zu", wanted->file);
                files[i] = file_new(name, wanted->file);
                MUST(lseek(files[i], 123, SEEK_SET) == 123);
                ask_file(&flight->ask, files[i], flight->sock);
            }
            ask_for(&flight->ask, wanted);
            if (from_memory)
                flight->ask.rep.flags = 0; /* the others are for files only */
            flight_submit(flight, sender);
            if (!keep) {
                flight_hang_up(flight);
                close(files[i]);
            }
            flight_read(flight);
            n++;
        }
        check_case("%s, %s, %s", from_memory ? "memory" : "files", kind_name(kind), nonblocking ? "non-blocking" : "blocking");
        flight_collect(sender, n);
        check_sender_empty(sender);
        for (size_t i = 0; i < N(answers); i++) {
            struct flight *flight = &flights[i];
            check_case("%s of %s, %s, %s, ended", answers[i].name, from_memory ? "memory" : "a file", kind_name(kind),
                       nonblocking ? "non-blocking" : "blocking");
            if (keep) {
                CHECK_INT(fcntl(flight->sock, F_GETFL), flags[i]);
                if (kind == TCP_PAIR) {
                    CHECK_INT(tcp_option(flight->sock, TCP_CORK), 1);
                    CHECK_INT(tcp_option(flight->sock, TCP_NODELAY), 1);
                }
                if (!from_memory) {
                    CHECK_INT(lseek(files[i], 0, SEEK_CUR), 123);
                    close(files[i]);
                }
            }
            flight_join(flight);
            check_answer(&answers[i], flight);
            flight_free(flight);
        }
        sendgate_sender_free(sender);
    }
    free(memory);
}

/* A blocking socket has O_NONBLOCK while it is sent to, and not when it is reported. */
static void blocking_sockets(void)
{
    sendgate_sender *sender = sender_make(NULL);
    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("a blocking socket in flight, %s", kind_name((enum kind)kind));
        struct flight flight;
        flight_open(&flight, (enum kind)kind, 0);
        int flags = fcntl(flight.sock, F_GETFL);
        flight_send(&flight, sender, file_new("answer", HUGE_FILE));
        CHECK_INT(fcntl(flight.sock, F_GETFL), flags | O_NONBLOCK);
        /* Without an owner that it would send a signal to. */
        MUST(fcntl(flight.sock, F_SETFL, flags | O_NONBLOCK | O_ASYNC) == 0);
        flight_read(&flight);
        flight_collect(sender, 1);
        /* What the caller has changed in the meantime stays. */
        CHECK_INT(fcntl(flight.sock, F_GETFL), flags | O_ASYNC);
        flight_check_whole(&flight, HUGE_FILE);
    }
    sendgate_sender_free(sender);
}

/* Several responses one after the other on one connection, each when the one before was reported. */
static void keep_alive(void)
{
    check_case("three answers on one connection");
    sendgate_sender *sender = sender_make(NULL);
    struct flight flight;
    flight_open(&flight, TCP_PAIR, 1);
    flight_read(&flight);
    size_t sent = 0;
    uint64_t ids[3];
    for (int i = 0; i < 3; i++) {
        flight_send(&flight, sender, file_new("answer", 100000));
        flight_collect(sender, 1);
        flight.reported = 0;
        check_completion(&flight.done, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
        sent += (size_t)(flight.done.head_sent + flight.done.body_sent);
        ids[i] = flight.id;
    }
    CHECK(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    flight_join(&flight);
    CHECK_INT(flight.peer.len, sent);
    const char *data = flight.peer.data;
    for (size_t left = flight.peer.len; left > 0;) {
        struct answer answer;
        answer_of(&answer, data, left);
        if (!CHECK_INT(answer.status, 200) || !CHECK(answer.body_len >= 100000))
            break;
        CHECK(is_pattern(answer.body, 100000, 0));
        data = answer.body + 100000;
        left = answer.body_len - 100000;
    }
    flight_free(&flight);
    sendgate_sender_free(sender);
}

/* Each of these is in memory of its own, which is gone when submit has returned. */
static void inputs_are_not_kept(void)
{
    for (int round = 0; round < 2; round++) {
        check_case("inputs freed after submit%s", round ? ", one after the other" : "");
        sendgate_sender *sender = sender_make(NULL);
        struct flight flight;
        flight_open(&flight, UNIX_PAIR, 1);
        struct ask *ask = malloc(sizeof *ask);
        sendgate_header *header = calloc(1, sizeof *header);
        char *value = malloc(2000), *range = strdup("bytes=0-8999,10000-19999"), *memory = malloc(20000);
        MUST(ask != NULL && header != NULL && value != NULL && range != NULL && memory != NULL);
        memset(value, 'v', 2000);
        pattern_fill(memory, 20000);
        ask_memory(ask, memory, 20000, flight.sock);
        ask->request.range = text(range);
        header->field.name = text("X-Test");
        header->field.value = text_of(value, 2000);
        ask->exchange.headers = header;
        ask->exchange.n_headers = 1;
        CHECK_STATUS(sendgate_sender_submit(sender, &ask->exchange, &ask->sink, &flight, &flight.id, NULL),
                     SENDGATE_PENDING);
        memset(ask, 0xa5, sizeof *ask);
        memset(value, 0xa5, 2000);
        memset(range, 0xa5, 20);
        free(ask);
        free(header);
        free(value);
        free(range);
        flight_collect(sender, 1);
        /* Only now it is not needed any more. */
        free(memory);
        check_completion(&flight.done, SENDGATE_OK, 206, SENDGATE_CONN_REUSABLE);
        flight_join(&flight);
        struct answer answer;
        answer_of(&answer, flight.peer.data, flight.peer.len);
        char received[2100];
        CHECK_INT(answer_field(&answer, "X-Test", received, sizeof received), 1);
        CHECK_INT(strlen(received), 2000);
        static const sendgate_range parts[] = {{0, 9000}, {10000, 10000}};
        check_multipart(&answer, parts, 2, 20000);
        flight_free(&flight);
        sendgate_sender_free(sender);
    }
}

/* ---- Taking ---- */

static void order_and_capacity(void)
{
    static struct flight flights[10];
    sendgate_completion done[8];
    size_t n = 0;
    check_case("completions in the order in which they ended");
    sendgate_sender *sender = sender_make(NULL);
    check_sender_empty(sender);
    struct pollfd news = {sendgate_sender_fd(sender), POLLIN, 0};
    int file = file_new("answer", 50000);
    for (size_t i = 0; i < N(flights); i++) {
        flight_open(&flights[i], i % 2 ? TCP_PAIR : UNIX_PAIR, 1);
        ask_file(&flights[i].ask, file, flights[i].sock);
        flight_submit(&flights[i], sender);
        /* When the peer sees the end of the connection, the sender has let go of it. */
        flight_join(&flights[i]);
        if (i == 0)
            MUST(poll(&news, 1, 60000) == 1);
    }
    close(file);
    /* So that the last one is there as well. */
    CHECK_STATUS(sendgate_sender_stop(sender, 60000), SENDGATE_OK);
    static const size_t caps[] = {1, 1, 4, 8};
    static const size_t counts[] = {1, 1, 4, 4};
    size_t next = 0;
    for (size_t i = 0; i < N(caps); i++) {
        check_case("take with room for %zu", caps[i]);
        CHECK_INT(poll(&news, 1, 0), 1);
        CHECK_STATUS(sendgate_sender_take(sender, done, caps[i], &n), SENDGATE_OK);
        if (!CHECK_INT(n, counts[i]))
            break;
        for (size_t j = 0; j < n; j++, next++) {
            CHECK(done[j].token == &flights[next]);
            CHECK_INT(done[j].id, flights[next].id);
            check_completion(&done[j], SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
            flights[next].done = done[j];
            flight_check(&flights[next], 0);
            flight_free(&flights[next]);
        }
    }
    check_sender_empty(sender);
    sendgate_sender_free(sender);

    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("one that can go on is not held up by one that can't, %s", kind_name((enum kind)kind));
        sender = sender_make(NULL);
        flight_open(&flights[0], (enum kind)kind, 1);
        flight_send(&flights[0], sender, file_new("answer", HUGE_FILE));
        UNTIL(socket_is_full(flights[0].sock));
        for (size_t i = 1; i < N(flights); i++) {
            flight_open(&flights[i], (enum kind)kind, 1);
            flight_read(&flights[i]);
            flight_send(&flights[i], sender, file_new("other", LARGE));
            CHECK(flight_collect(sender, 1) == &flights[i]);
            flight_check_whole(&flights[i], LARGE);
        }
        check_sender_empty(sender);
        flight_read(&flights[0]);
        CHECK(flight_collect(sender, 1) == &flights[0]);
        flight_check_whole(&flights[0], HUGE_FILE);
        sendgate_sender_free(sender);
    }
}

/* The descriptor becomes readable again whenever something ends after take has said SENDGATE_EMPTY. */
static void edges(void)
{
    check_case("EPOLLET");
    sendgate_sender *sender = sender_make(NULL);
    int sockets[2], epoll = epoll_create1(EPOLL_CLOEXEC);
    MUST(epoll >= 0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.u64 = 7}};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, sendgate_sender_fd(sender), &event) == 0);
    make_pair(UNIX_PAIR, 1, sockets);
    struct ask ask;
    ask_memory(&ask, "hello", 5, sockets[0]);
    for (int round = 0; round < (slow ? 50 : 2000); round++) {
        size_t left = 1 + (size_t)round % 5, n = 0;
        for (size_t i = 0; i < left; i++)
            CHECK_STATUS(sendgate_sender_submit(sender, &ask.exchange, &ask.sink, NULL, NULL, NULL), SENDGATE_PENDING);
        while (left > 0) {
            sendgate_completion done[2];
            sendgate_status status;
            int woken = epoll_wait(epoll, &event, 1, 60000);
            MUST(woken == 1 && event.data.u64 == 7);
            while ((status = sendgate_sender_take(sender, done, 1 + (size_t)round % 2, &n)) == SENDGATE_OK)
                left -= n;
            CHECK_STATUS(status, SENDGATE_EMPTY);
        }
        peer_drain(sockets[1]);
    }
    close(epoll);
    close(sockets[0]);
    close(sockets[1]);
    sendgate_sender_free(sender);
}

/* ---- Write functions ---- */

/* Sends to a socket by itself, in odd sizes. */
struct writer {
    int sock; /* -1: to nowhere */
    unsigned calls;
    sendgate_status answer; /* after fail_at bytes, once */
    size_t fail_at;
    size_t done;
    size_t claim; /* SIZE_MAX: one more than there were */
    int readable; /* the peer's end, written to before SENDGATE_WANT_READ */
    size_t offered; /* what was offered when it was to be tried again */
    int shorter; /* it was offered less then */
    pthread_t thread;
};

static sendgate_status write_odd(void *user, const uint8_t *data, size_t len, size_t *written)
{
    static const size_t sizes[] = {1, 7, 16384, 1000, 3, 5000};
    struct writer *writer = user;
    size_t n = sizes[writer->calls++ % N(sizes)];
    writer->thread = pthread_self();
    if (len < writer->offered)
        writer->shorter = 1;
    writer->offered = 0;
    if (n > len)
        n = len;
    if (writer->answer != SENDGATE_OK && writer->done >= writer->fail_at) {
        sendgate_status answer = writer->answer;
        writer->answer = SENDGATE_OK;
        writer->offered = len;
        *written = writer->claim == SIZE_MAX ? len + 1 : writer->claim;
        if (answer == SENDGATE_WANT_READ && writer->readable >= 0)
            MUST(send(writer->readable, "x", 1, 0) == 1);
        return answer == SENDGATE_YIELD ? SENDGATE_OK : answer;
    }
    if (writer->sock >= 0) {
        ssize_t sent = send(writer->sock, data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            writer->offered = len;
            return errno == EAGAIN ? SENDGATE_WANT_WRITE : SENDGATE_ERR_PEER_CLOSED;
        }
        n = (size_t)sent;
    }
    writer->done += n;
    *written = n;
    return SENDGATE_OK;
}

static sendgate_status write_never(void *user, const uint8_t *data, size_t len, size_t *written)
{
    (void)data;
    (void)len;
    (void)written;
    ++*(unsigned *)user;
    return SENDGATE_WANT_WRITE;
}

static void write_functions(void)
{
    sendgate_sender *sender = sender_make(NULL);
    static struct flight flights[4];
    struct writer *writers[N(flights)];
    for (size_t i = 0; i < N(flights); i++) {
        enum kind kind = i % 2 ? TCP_PAIR : UNIX_PAIR;
        check_case("a write function that sends to a %s socket", kind_name(kind));
        struct flight *flight = &flights[i];
        /* Of its own, and freed when it is reported: a call after that is seen by ASan and Valgrind. */
        writers[i] = calloc(1, sizeof *writers[i]);
        MUST(writers[i] != NULL);
        flight_open(flight, kind, 1);
        int file = file_new("answer", LARGE);
        ask_file(&flight->ask, file, flight->sock);
        flight->ask.sink.write = write_odd;
        flight->ask.sink.user = writers[i];
        writers[i]->sock = flight->sock;
        if (i >= 2) {
            writers[i]->answer = SENDGATE_WANT_READ;
            writers[i]->fail_at = 100000;
            writers[i]->readable = flight->peer.fd;
        }
        flight_submit(flight, sender);
        close(file);
    }
    UNTIL(socket_is_full(flights[0].sock));
    for (size_t i = 0; i < N(flights); i++)
        flight_read(&flights[i]);
    flight_collect(sender, N(flights));
    for (size_t i = 0; i < N(flights); i++) {
        CHECK_INT(writers[i]->shorter, 0);
        CHECK(!pthread_equal(writers[i]->thread, pthread_self()));
        CHECK_INT(writers[i]->done, flights[i].done.head_sent + flights[i].done.body_sent);
        free(writers[i]);
        if (i >= 2)
            CHECK_INT(peer_drain(flights[i].sock), 1);
        flight_check_whole(&flights[i], LARGE);
    }

    static const struct bad {
        const char *name;
        sendgate_status answer;
        size_t claim;
        sendgate_status status;
    } bad[] = {
        /* SENDGATE_YIELD stands for SENDGATE_OK: see write_odd. */
        {"claims nothing", SENDGATE_YIELD, 0, SENDGATE_ERR_INVALID},
        {"claims more than there was", SENDGATE_YIELD, SIZE_MAX, SENDGATE_ERR_INVALID},
        {"wants to write, with nothing to wait on", SENDGATE_WANT_WRITE, 0, SENDGATE_ERR_BLOCKING},
        {"wants to read, with nothing to wait on", SENDGATE_WANT_READ, 0, SENDGATE_ERR_BLOCKING},
        {"loses its peer", SENDGATE_ERR_PEER_CLOSED, 0, SENDGATE_ERR_PEER_CLOSED},
        {"fails", SENDGATE_ERR_IO, 0, SENDGATE_ERR_IO},
        {"is not answered by anybody", SENDGATE_ERR_TIMEOUT, 0, SENDGATE_ERR_TIMEOUT},
    };
    for (size_t i = 0; i < 2 * N(bad); i++) {
        int late = i % 2;
        struct writer writer = {.sock = -1, .readable = -1};
        struct flight flight;
        check_case("a write function that %s%s", bad[i / 2].name, late ? ", after 20000 bytes" : "");
        memset(&flight, 0, sizeof flight);
        writer.answer = bad[i / 2].answer;
        writer.claim = bad[i / 2].claim;
        writer.fail_at = late ? 20000 : 0;
        int file = file_new("answer", 100000);
        ask_file(&flight.ask, file, -1);
        flight.ask.sink.write = write_odd;
        flight.ask.sink.user = &writer;
        flight_submit(&flight, sender);
        close(file);
        flight_collect(sender, 1);
        check_completion(&flight.done, bad[i / 2].status, 200, late ? SENDGATE_CONN_BROKEN : SENDGATE_CONN_UNTOUCHED);
        CHECK_INT(flight.done.head_sent + flight.done.body_sent, writer.done);
    }

    check_case("a write function that always wants to write ends by the idle time");
    struct writer writer = {.sock = -1, .readable = -1};
    struct flight flight;
    flight_open(&flight, UNIX_PAIR, 1);
    writer.sock = flight.sock;
    flight_send(&flight, sender, file_new("answer", HUGE_FILE));
    UNTIL(socket_is_full(flight.sock));
    struct flight second;
    memset(&second, 0, sizeof second);
    int file = file_new("other", 100000);
    ask_file(&second.ask, file, flight.sock);
    second.ask.sink.write = write_odd;
    second.ask.sink.user = &writer;
    second.ask.sink.idle_timeout_ms = 200;
    flight_submit(&second, sender);
    close(file);
    CHECK(flight_collect(sender, 1) == &second);
    check_completion(&second.done, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_UNTOUCHED);
    flight_read(&flight);
    flight_collect(sender, 1);
    flight_check_whole(&flight, HUGE_FILE);

    /* Nothing is in its way, so it is ready again at once, each time. */
    check_case("a write function that always wants to write, to a socket that is writable, is not asked without end");
    flight_open(&flight, UNIX_PAIR, 1);
    ask_memory(&flight.ask, "hello", 5, flight.sock);
    unsigned calls = 0;
    flight.ask.sink.write = write_never;
    flight.ask.sink.user = &calls;
    flight.ask.sink.idle_timeout_ms = 500;
    flight_submit(&flight, sender);
    flight_collect(sender, 1);
    check_completion(&flight.done, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_UNTOUCHED);
    CHECK(calls >= 1 && calls < 200);
    flight_join(&flight);
    flight_free(&flight);
    check_sender_empty(sender);
    sendgate_sender_free(sender);
}

/* ---- SENDGATE_SINK_TRY_NOW ---- */

static int is_cached(int file, off_t offset)
{
    char byte;
    struct iovec place = {&byte, 1};
    return preadv2(file, &place, 1, offset, RWF_NOWAIT) == 1;
}

/* Whether the file system here tells what is in the page cache (tmpfs and overlayfs don't). */
static int cache_is_known(int file)
{
    return is_cached(file, 0);
}

static void check_at_once(struct flight *flight, sendgate_sender *sender, size_t len)
{
    sendgate_result *result = &flight->ask.result;
    struct answer answer;
    CHECK_STATUS(sendgate_sender_submit(sender, &flight->ask.exchange, &flight->ask.sink, flight, &flight->id, result),
                 SENDGATE_OK);
    check_result(result, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
    check_sender_empty(sender);
    flight_join(flight);
    answer_of(&answer, flight->peer.data, flight->peer.len);
    CHECK_INT(answer.head_len, result->head_sent);
    CHECK_INT(answer.body_len, len);
    CHECK(is_pattern(answer.body, answer.body_len, 0));
    flight_free(flight);
}

static void at_once(void)
{
    /* One place, so that one that was complete at once and still counted would be in the way of the next. */
    sendgate_sender_options options = {.size = sizeof options, .max_in_flight = 1};
    sendgate_sender *sender = sender_make(&options);
    struct flight flight;
    char *memory = malloc(65537);
    MUST(memory != NULL);
    pattern_fill(memory, 65537);
    static const size_t sizes[] = {0, 1, SMALL, 16384, 16385, 65536, 65537};
    for (size_t i = 0; i < 8 * N(sizes); i++) {
        enum kind kind = i & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (i & 2) != 0, from_memory = (i & 4) != 0, file = -1;
        size_t size = sizes[i / 8];
        check_case("%zu bytes of %s at once, %s, %s", size, from_memory ? "memory" : "a file", kind_name(kind),
                   nonblocking ? "non-blocking" : "blocking");
        flight_open(&flight, kind, nonblocking);
        if (from_memory) {
            ask_memory(&flight.ask, memory, size, flight.sock);
        } else {
            file = file_new("answer", size);
            ask_file(&flight.ask, file, flight.sock);
        }
        flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        if (from_memory ? size <= 65536 : size <= 16384 || (nonblocking && cache_is_known(file))) {
            check_at_once(&flight, sender, size);
        } else {
            /* sendfile would wait on a blocking socket; of memory it is too much. */
            flight_submit(&flight, sender);
            flight_collect(sender, 1);
            flight_check_whole(&flight, size);
        }
        if (file >= 0)
            close(file);
    }

    for (int variant = 0; variant < 4; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0;
        const char *how = nonblocking ? "non-blocking" : "blocking";
        check_case("large at once, %s, %s", kind_name(kind), how);
        flight_open(&flight, kind, nonblocking);
        int file = file_new("answer", LARGE);
        ask_file(&flight.ask, file, flight.sock);
        flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        flight_submit(&flight, sender);
        flight_read(&flight);
        flight_collect(sender, 1);
        flight_check_whole(&flight, LARGE);

        check_case("multipart at once, %s, %s", kind_name(kind), how);
        static const sendgate_range parts[] = {{0, 10}, {1000000, 20000}};
        flight_open(&flight, kind, nonblocking);
        ask_file(&flight.ask, file, flight.sock);
        flight.ask.request.range = text("bytes=0-9,1000000-1019999");
        flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        sendgate_status status = sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, &flight, &flight.id,
                                                        NULL);
        CHECK(status == SENDGATE_OK || status == SENDGATE_PENDING);
        if (status == SENDGATE_PENDING)
            flight_collect(sender, 1);
        flight_join(&flight);
        struct answer answer;
        answer_of(&answer, flight.peer.data, flight.peer.len);
        CHECK_INT(answer.status, 206);
        check_multipart(&answer, parts, 2, LARGE);
        flight_free(&flight);
        close(file);

        check_case("at once to a full socket, %s, %s", kind_name(kind), how);
        flight_open(&flight, kind, nonblocking);
        sendgate_result *result = &flight.ask.result;
        size_t before = 0;
        for (ssize_t n; (n = send(flight.sock, memory, 65536, MSG_DONTWAIT)) > 0;)
            before += (size_t)n;
        file = file_new("answer", SMALL);
        ask_file(&flight.ask, file, flight.sock);
        flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        status = sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, &flight, &flight.id, result);
        close(file);
        flight_read(&flight);
        uint64_t sent = result->head_sent + result->body_sent;
        /* TCP may have moved some bytes to the peer's end since, and have room again. */
        if (status != SENDGATE_OK || kind != TCP_PAIR) {
            CHECK_STATUS(status, SENDGATE_PENDING);
            CHECK_INT(sent, 0);
            flight_collect(sender, 1);
            check_completion(&flight.done, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
            sent = flight.done.head_sent + flight.done.body_sent;
        }
        flight_join(&flight);
        if (CHECK_INT(flight.peer.len, before + sent)) {
            answer_of(&answer, flight.peer.data + before, flight.peer.len - before);
            CHECK(answer.body_len == SMALL && is_pattern(answer.body, SMALL, 0));
        }
        flight_free(&flight);

        check_case("at once to a peer that is gone, %s, %s", kind_name(kind), how);
        flight_open(&flight, kind, nonblocking);
        struct linger linger = {1, 0};
        if (kind == TCP_PAIR)
            MUST(setsockopt(flight.peer.fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
        close(flight.peer.fd);
        ask_memory(&flight.ask, memory, SMALL, flight.sock);
        flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        CHECK_STATUS(sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, NULL, NULL, result),
                     SENDGATE_ERR_PEER_CLOSED);
        check_result(result, SENDGATE_ERR_PEER_CLOSED, 200, SENDGATE_CONN_UNTOUCHED);
        CHECK(result->sys_errno == EPIPE || result->sys_errno == ECONNRESET);
        check_sender_empty(sender);
        /* By sendfile at once, since the head is not the library's: it raises SIGPIPE, which must not be seen. */
        file = file_new("answer", 65536);
        ask_file(&flight.ask, file, flight.sock);
        flight.ask.exchange.head = SENDGATE_HEAD_NONE;
        flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        status = sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, &flight, &flight.id, result);
        if (nonblocking && cache_is_known(file)) {
            CHECK_STATUS(status, SENDGATE_ERR_PEER_CLOSED);
            check_sender_empty(sender);
        } else {
            CHECK_STATUS(status, SENDGATE_PENDING);
            flight_collect(sender, 1);
            check_completion(&flight.done, SENDGATE_ERR_PEER_CLOSED, 200, SENDGATE_CONN_UNTOUCHED);
        }
        close(file);
        flight_hang_up(&flight);
    }

    check_case("a part at once");
    int small = 1;
    flight_open(&flight, UNIX_PAIR, 1);
    MUST(setsockopt(flight.sock, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    ask_memory(&flight.ask, memory, 65536, flight.sock);
    flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    CHECK_STATUS(sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, &flight, &flight.id,
                                        &flight.ask.result),
                 SENDGATE_PENDING);
    CHECK_STATUS(flight.ask.result.status, SENDGATE_PENDING);
    CHECK(flight.ask.result.head_sent > 0 && flight.ask.result.body_sent < 65536);
    CHECK_INT(flight.ask.result.connection, SENDGATE_CONN_BROKEN);
    flight_read(&flight);
    flight_collect(sender, 1);
    flight_check_whole(&flight, 65536);

    check_case("a part of a file at once");
    int file = file_new("answer", 1 << 20);
    flight_open(&flight, UNIX_PAIR, 1);
    ask_file(&flight.ask, file, flight.sock);
    flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    if (cache_is_known(file)) {
        CHECK_STATUS(sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, &flight, &flight.id,
                                            &flight.ask.result),
                     SENDGATE_PENDING);
        CHECK(flight.ask.result.body_sent > 0 && flight.ask.result.body_sent < 1 << 20);
    } else {
        flight_submit(&flight, sender);
    }
    flight_read(&flight);
    flight_collect(sender, 1);
    flight_check_whole(&flight, 1 << 20);

    check_case("a file of which the middle is not in the page cache");
    MUST(fsync(file) == 0);
    MUST(posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) == 0);
    /* The ends come back alone. */
    MUST(posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM) == 0);
    MUST(pread(file, memory, 1, 0) == 1 && pread(file, memory, 1, (1 << 20) - 1) == 1);
    if (cache_is_known(file) && is_cached(file, (1 << 20) - 1) && !is_cached(file, 512 << 10)) {
        flight_open(&flight, UNIX_PAIR, 1);
        ask_file(&flight.ask, file, flight.sock);
        flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        flight_submit(&flight, sender);
        flight_read(&flight);
        flight_collect(sender, 1);
        flight_check_whole(&flight, 1 << 20);
    } else {
        printf("skipped: a file of which the middle is not in the page cache: this file system can't tell\n");
    }
    close(file);

    check_case("not for a write function");
    struct writer writer = {.sock = -1, .readable = -1};
    memset(&flight, 0, sizeof flight);
    ask_memory(&flight.ask, memory, 100, -1);
    flight.ask.sink.write = write_odd;
    flight.ask.sink.user = &writer;
    flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    flight_submit(&flight, sender);
    flight_collect(sender, 1);
    check_completion(&flight.done, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
    CHECK(!pthread_equal(writer.thread, pthread_self()));
    free(memory);
    sendgate_sender_free(sender);
}

/* ---- Cancelling ---- */

/* Holds up the sender's thread until it is opened. */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int inside, open;
    struct flight flight;
};

static sendgate_status write_gate(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct gate *gate = user;
    (void)data;
    MUST(pthread_mutex_lock(&gate->lock) == 0);
    gate->inside = 1;
    MUST(pthread_cond_broadcast(&gate->changed) == 0);
    while (!gate->open)
        MUST(pthread_cond_wait(&gate->changed, &gate->lock) == 0);
    MUST(pthread_mutex_unlock(&gate->lock) == 0);
    *written = len;
    return SENDGATE_OK;
}

/* When it returns, the sender's thread is held up. */
static void gate_shut(struct gate *gate, sendgate_sender *sender)
{
    memset(gate, 0, sizeof *gate);
    MUST(pthread_mutex_init(&gate->lock, NULL) == 0 && pthread_cond_init(&gate->changed, NULL) == 0);
    ask_memory(&gate->flight.ask, "gate", 4, -1);
    gate->flight.ask.sink.write = write_gate;
    gate->flight.ask.sink.user = gate;
    flight_submit(&gate->flight, sender);
    MUST(pthread_mutex_lock(&gate->lock) == 0);
    while (!gate->inside)
        MUST(pthread_cond_wait(&gate->changed, &gate->lock) == 0);
    MUST(pthread_mutex_unlock(&gate->lock) == 0);
}

static void gate_open(struct gate *gate)
{
    MUST(pthread_mutex_lock(&gate->lock) == 0);
    gate->open = 1;
    MUST(pthread_cond_broadcast(&gate->changed) == 0);
    MUST(pthread_mutex_unlock(&gate->lock) == 0);
}

/* Less than the first look at a peer that stopped, which is after a quarter of the idle time. */
#define SOON_NS 10000000000u

static void cancelling(void)
{
    static char buf[65536];
    sendgate_sender *sender = sender_make(NULL);
    struct flight flight;
    struct gate gate;
    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("cancel one that waits, %s", kind_name((enum kind)kind));
        flight_open(&flight, (enum kind)kind, 0);
        flight_send(&flight, sender, file_new("answer", HUGE_FILE));
        UNTIL(socket_is_full(flight.sock));
        CHECK_STATUS(sendgate_sender_cancel(sender, flight.id), SENDGATE_OK);
        CHECK_STATUS(sendgate_sender_cancel(sender, flight.id), SENDGATE_OK);
        flight_collect(sender, 1);
        check_completion(&flight.done, SENDGATE_ERR_CANCELLED, 200, SENDGATE_CONN_BROKEN);
        CHECK(flight.done.elapsed_ns < SOON_NS);
        CHECK(!(fcntl(flight.sock, F_GETFL) & O_NONBLOCK));
        flight_join(&flight);
        flight_check(&flight, 0);
        flight_free(&flight);
        CHECK_STATUS(sendgate_sender_cancel(sender, flight.id), SENDGATE_OK);

        check_case("cancel one that runs, %s", kind_name((enum kind)kind));
        flight_open(&flight, (enum kind)kind, 1);
        flight_send(&flight, sender, file_sparse("sparse", (off_t)1 << 40));
        flight_hang_up(&flight);
        uint64_t got = 0;
        for (ssize_t n; (n = recv(flight.peer.fd, buf, sizeof buf, 0)) > 0; got += (uint64_t)n) {
            if (got < 1 << 20 && got + (uint64_t)n >= 1 << 20)
                CHECK_STATUS(sendgate_sender_cancel(sender, flight.id), SENDGATE_OK);
        }
        flight_collect(sender, 1);
        check_completion(&flight.done, SENDGATE_ERR_CANCELLED, 200, SENDGATE_CONN_BROKEN);
        CHECK_INT(got, flight.done.head_sent + flight.done.body_sent);
        close(flight.peer.fd);
        unlink("sparse");

        check_case("cancel one that was not begun, %s", kind_name((enum kind)kind));
        gate_shut(&gate, sender);
        flight_open(&flight, (enum kind)kind, 1);
        flight_send(&flight, sender, file_new("answer", LARGE));
        CHECK_STATUS(sendgate_sender_cancel(sender, flight.id), SENDGATE_OK);
        check_sender_empty(sender);
        gate_open(&gate);
        flight_collect(sender, 2);
        check_completion(&gate.flight.done, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
        check_completion(&flight.done, SENDGATE_ERR_CANCELLED, 200, SENDGATE_CONN_UNTOUCHED);
        flight_join(&flight);
        CHECK_INT(flight.peer.len, 0);
        flight_free(&flight);

        check_case("old ids and ids that never were, %s", kind_name((enum kind)kind));
        uint64_t old[] = {0, 1, UINT64_MAX, flight.id, gate.flight.id, flight.id + ((uint64_t)1 << 40)};
        flight_open(&flight, (enum kind)kind, 1);
        flight_send(&flight, sender, file_new("answer", HUGE_FILE));
        for (size_t i = 0; i < N(old); i++)
            CHECK_STATUS(sendgate_sender_cancel(sender, old[i]), SENDGATE_OK);
        flight_read(&flight);
        flight_collect(sender, 1);
        flight_check_whole(&flight, HUGE_FILE);
    }

    int cancelled = 0;
    for (int round = 0; round < (slow ? 20 : 300); round++) {
        check_case("cancel at about the time that it ends, round %d", round);
        flight_open(&flight, round % 2 ? TCP_PAIR : UNIX_PAIR, 1);
        flight_read(&flight);
        flight_send(&flight, sender, file_new("answer", round % 3 ? 100000 : SMALL));
        for (volatile int i = 0; i < round * 300; i++) {
        }
        CHECK_STATUS(sendgate_sender_cancel(sender, flight.id), SENDGATE_OK);
        flight_collect(sender, 1);
        if (flight.done.status == SENDGATE_OK) {
            flight_check_whole(&flight, round % 3 ? 100000 : SMALL);
            continue;
        }
        cancelled++;
        check_completion(&flight.done, SENDGATE_ERR_CANCELLED, 200,
                         flight.done.head_sent == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
        flight_join(&flight);
        flight_check(&flight, 0);
        flight_free(&flight);
    }
    check_sender_empty(sender);
    sendgate_sender_free(sender);
}

/* ---- Limits ---- */

static void in_flight(void)
{
    static struct flight flights[3];
    struct flight other;
    char *memory = malloc(65536);
    MUST(memory != NULL);
    pattern_fill(memory, 65536);
    check_case("max_in_flight");
    sendgate_sender_options options = {.size = sizeof options, .max_in_flight = 3};
    sendgate_sender *sender = sender_make(&options);
    for (size_t i = 0; i < N(flights); i++) {
        flight_open(&flights[i], i % 2 ? TCP_PAIR : UNIX_PAIR, i > 1);
        flight_send(&flights[i], sender, file_new("answer", HUGE_FILE));
    }
    int file = file_new("answer", HUGE_FILE);
    flight_open(&other, UNIX_PAIR, 0);
    ask_file(&other.ask, file, other.sock);
    flight_check_refused(&other, sender, SENDGATE_ERR_BUSY, 0);
    other.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    flight_check_refused(&other, sender, SENDGATE_ERR_BUSY, 0);

    check_case("what leaves at once takes no place");
    other.ask.rep.length = SMALL;
    CHECK_STATUS(sendgate_sender_submit(sender, &other.ask.exchange, &other.ask.sink, NULL, NULL, NULL), SENDGATE_OK);
    CHECK(peer_drain(other.peer.fd) > SMALL);

    check_case("what leaves in part needs one, and the result tells that it was begun");
    int small = 1;
    struct flight begun;
    flight_open(&begun, UNIX_PAIR, 1);
    MUST(setsockopt(begun.sock, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    ask_memory(&begun.ask, memory, 65536, begun.sock);
    begun.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    CHECK_STATUS(sendgate_sender_submit(sender, &begun.ask.exchange, &begun.ask.sink, NULL, NULL, &begun.ask.result),
                 SENDGATE_ERR_BUSY);
    check_result(&begun.ask.result, SENDGATE_ERR_BUSY, 200, SENDGATE_CONN_BROKEN);
    flight_join(&begun);
    CHECK_INT(begun.peer.len, begun.ask.result.head_sent + begun.ask.result.body_sent);
    flight_free(&begun);

    check_case("ended, but not taken");
    CHECK_STATUS(sendgate_sender_cancel(sender, flights[1].id), SENDGATE_OK);
    struct pollfd news = {sendgate_sender_fd(sender), POLLIN, 0};
    MUST(poll(&news, 1, 60000) == 1);
    ask_file(&other.ask, file, other.sock);
    flight_check_refused(&other, sender, SENDGATE_ERR_BUSY, 0);

    check_case("taken: room for one again");
    CHECK(flight_collect(sender, 1) == &flights[1]);
    flight_submit(&other, sender);
    close(flights[1].peer.fd);
    flight_hang_up(&flights[1]);
    flight_open(&flights[1], TCP_PAIR, 0);
    ask_file(&flights[1].ask, file, flights[1].sock);
    flight_check_refused(&flights[1], sender, SENDGATE_ERR_BUSY, 0);
    close(flights[1].peer.fd);
    flight_hang_up(&flights[1]);
    flight_read(&flights[0]);
    flight_read(&flights[2]);
    flight_read(&other);
    flight_collect(sender, 3);
    flight_check_whole(&flights[0], HUGE_FILE);
    flight_check_whole(&flights[2], HUGE_FILE);
    flight_check_whole(&other, HUGE_FILE);
    close(file);
    free(memory);
    sendgate_sender_free(sender);
}

/* Leaves only that many descriptors to be had; those that fill the rest go to `filler`. */
static size_t descriptors_left(size_t left, int *filler, size_t cap, struct rlimit *before)
{
    struct rlimit limit;
    size_t n = 0;
    MUST(getrlimit(RLIMIT_NOFILE, before) == 0);
    limit = *before;
    limit.rlim_cur = cap;
    MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int fd; (fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;) {
        MUST(n < cap);
        filler[n++] = fd;
    }
    MUST(errno == EMFILE && n >= left);
    for (; left > 0; left--)
        close(filler[--n]);
    return n;
}

static void descriptors_back(const int *filler, size_t n, const struct rlimit *before)
{
    for (size_t i = 0; i < n; i++)
        close(filler[i]);
    MUST(setrlimit(RLIMIT_NOFILE, before) == 0);
}

static void out_of_descriptors(void)
{
    static int filler[256];
    struct rlimit limit;
    struct flight flight;
    int all = open_fds();
    sendgate_sender *sender = sender_make(NULL);
    int of_sender = open_fds() - all;
    for (size_t left = 0; left < 2; left++) {
        check_case("%zu descriptors left for a submit that needs two", left);
        flight_open(&flight, TCP_PAIR, 0);
        int file = file_new("answer", LARGE), before = open_fds(), flags = fcntl(flight.sock, F_GETFL);
        ask_file(&flight.ask, file, flight.sock);
        size_t n = descriptors_left(left, filler, N(filler), &limit);
        sendgate_status status = sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, NULL, &flight.id,
                                                        &flight.ask.result);
        descriptors_back(filler, n, &limit);
        CHECK_STATUS(status, SENDGATE_ERR_IO);
        CHECK_INT(flight.ask.result.sys_errno, EMFILE);
        CHECK_INT(flight.ask.result.connection, SENDGATE_CONN_UNTOUCHED);
        CHECK_INT(flight.id, 0);
        CHECK_INT(open_fds(), before);
        CHECK_INT(fcntl(flight.sock, F_GETFL), flags);
        check_sender_empty(sender);
        /* Nothing stands in the way of the next try. */
        flight_submit(&flight, sender);
        close(file);
        flight_read(&flight);
        flight_collect(sender, 1);
        flight_check_whole(&flight, LARGE);
    }

    check_case("no descriptor left for one that needs none");
    flight_open(&flight, UNIX_PAIR, 1);
    ask_memory(&flight.ask, "hello", 5, flight.sock);
    flight.ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    size_t n = descriptors_left(0, filler, N(filler), &limit);
    CHECK_STATUS(sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, NULL, NULL, NULL), SENDGATE_OK);
    descriptors_back(filler, n, &limit);
    flight_join(&flight);
    flight_free(&flight);
    sendgate_sender_free(sender);
    CHECK_INT(open_fds(), all);

    CHECK(of_sender > 0);
    for (int left = 0; left <= of_sender; left++) {
        check_case("%d descriptors left for a sender that needs %d", left, of_sender);
        int32_t error = 0;
        sender = NULL;
        n = descriptors_left((size_t)left, filler, N(filler), &limit);
        sendgate_status status = sendgate_sender_new(NULL, &sender, &error);
        descriptors_back(filler, n, &limit);
        if (left == of_sender) {
            CHECK_STATUS(status, SENDGATE_OK);
            check_sender_works(sender);
        } else {
            CHECK_STATUS(status, SENDGATE_ERR_IO);
            CHECK_INT(error, EMFILE);
            CHECK(sender == NULL);
        }
        sendgate_sender_free(sender);
        CHECK_INT(open_fds(), all);
    }
}

/* Nothing of the sender's is left open by an exec of the host's. */
static void close_on_exec(void)
{
    check_case("all descriptors of the sender's have FD_CLOEXEC");
    int before[256], found = 0;
    struct flight flight;
    flight_open(&flight, TCP_PAIR, 1);
    int file = file_new("answer", HUGE_FILE);
    for (int fd = 0; fd < 256; fd++)
        before[fd] = fcntl(fd, F_GETFD);
    sendgate_sender *sender = sender_make(NULL);
    ask_file(&flight.ask, file, flight.sock);
    flight_submit(&flight, sender);
    for (int fd = 0; fd < 256; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags < 0 || before[fd] >= 0)
            continue;
        found++;
        CHECK(flags & FD_CLOEXEC);
    }
    CHECK(found >= 3);
    close(file);
    sendgate_sender_free(sender);
    flight_hang_up(&flight);
    close(flight.peer.fd);
}

int main(void)
{
    check_begin();
    slow = getenv("SENDGATE_TEST_SLOW") != NULL;
    /* A SIGPIPE that the library let through would be the end of this. */
    MUST(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    static void (*const tests[])(void) = {
        arguments, every_answer, blocking_sockets, keep_alive, inputs_are_not_kept, order_and_capacity, edges, write_functions, at_once, cancelling, in_flight, out_of_descriptors, close_on_exec,
    };
    for (size_t i = 0; i < N(tests); i++) {
        int before = open_fds();
        tests[i]();
        CHECK_INT(open_fds(), before);
    }
    return check_end();
}
