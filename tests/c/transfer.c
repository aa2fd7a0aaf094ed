/* A handle: start, step, pull, start again; budgets, waiting, threads. */
#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static sendgate_transfer *new_transfer(void)
{
    sendgate_transfer *transfer = NULL;
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK && transfer != NULL);
    return transfer;
}

/* Step to the end, waiting where told to, and check each step: how much at most, and what it says meanwhile. */
static sendgate_status drive(sendgate_transfer *transfer, struct ask *ask, uint64_t budget, unsigned *waits)
{
    uint64_t sent = 0;
    *waits = 0;
    for (;;) {
        sendgate_status status = sendgate_transfer_step(transfer, budget, &ask->result);
        uint64_t now = ask->result.head_sent + ask->result.body_sent;
        CHECK_STATUS(ask->result.status, status);
        CHECK(now >= sent && (budget == 0 || now - sent <= budget));
        if (status == SENDGATE_YIELD) {
            if (!CHECK(budget != 0 && now - sent == budget))
                return status;
        }
        if (status == SENDGATE_YIELD || status == SENDGATE_WANT_WRITE) {
            CHECK_INT(ask->result.connection, now == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
        }
        if (status == SENDGATE_WANT_WRITE) {
            struct pollfd wait = {ask->sink.fd, POLLOUT, 0};
            ++*waits;
            MUST(poll(&wait, 1, 60000) == 1);
        } else if (status != SENDGATE_YIELD) {
            return status;
        }
        sent = now;
    }
}

static void budgets(void)
{
    static const struct run {
        size_t size;
        uint64_t budget;
        const char *range;
    } runs[] = {
        {10, 1, NULL},
        {10, 0, NULL},
        {1000, 1, "bytes=0-9,-10"},
        {5000000, 0, NULL},
        {5000000, 1, "bytes=4999990-"},
        {5000000, 1009, "bytes=100000-199999"},
        {5000000, 65536, NULL},
        {5000000, 1 << 20, "bytes=0-1999999,3000000-3000000,3500000-4999999"},
        {5000000, UINT64_MAX, NULL},
    };
    static const sendgate_range parts[] = {{0, 2000000}, {3000000, 1}, {3500000, 1500000}};
    static const sendgate_range small[] = {{0, 10}, {990, 10}};
    /* One handle for all: restarted each time, over sockets whose numbers come back. */
    sendgate_transfer *transfer = new_transfer();
    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
            const struct run *run = &runs[i];
            check_case("%s, %zu bytes, budget %llu, %s", kind_name((enum kind)kind), run->size,
                       (unsigned long long)run->budget, run->range ? run->range : "all");
            int sockets[2], file = file_make("answer", run->size);
            make_pair((enum kind)kind, 1, sockets);
            struct peer peer;
            peer_init(&peer, sockets[1]);
            peer_start(&peer);
            struct ask ask;
            unsigned waits;
            ask_file(&ask, file, sockets[0]);
            if (run->range != NULL)
                ask.request.range = text(run->range);
            CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
            CHECK_STATUS(drive(transfer, &ask, run->budget, &waits), SENDGATE_OK);
            check_result(&ask.result, SENDGATE_OK, run->range ? 206 : 200, SENDGATE_CONN_REUSABLE);
            sendgate_result before = ask.result;
            CHECK_STATUS(sendgate_transfer_step(transfer, run->budget, &ask.result), SENDGATE_OK);
            CHECK(memcmp(&before, &ask.result, sizeof before) == 0);
            close(sockets[0]);
            close(file);
            peer_join(&peer);
            struct answer answer;
            answer_of(&answer, peer.data, peer.len);
            CHECK_INT(answer.head_len, ask.result.head_sent);
            CHECK_INT(answer.body_len, ask.result.body_sent);
            CHECK_INT(answer_number(&answer, "Content-Length"), answer.body_len);
            if (run->range == NULL)
                CHECK(answer.body_len == run->size && is_pattern(answer.body, answer.body_len, 0));
            else if (run->size == 1000)
                check_multipart(&answer, small, 2, 1000);
            else if (strchr(run->range, ',') != NULL)
                check_multipart(&answer, parts, 3, run->size);
            else
                CHECK(is_pattern(answer.body, answer.body_len, (uint64_t)atoll(run->range + 6)));
            peer_free(&peer);
        }
    }
    sendgate_transfer_free(transfer);
}

/* A peer that reads only when the transfer wants to wait: every stop is one, and each is resumed. */
static void want_write(void)
{
    for (int multipart = 0; multipart < 2; multipart++) {
        check_case("resumed after each SENDGATE_WANT_WRITE, %s", multipart ? "multipart" : "one part");
        size_t size = 5000000, got = 0, cap = size + 10000;
        char *data = malloc(cap);
        int sockets[2], file = file_make("answer", size);
        MUST(data != NULL);
        make_pair(UNIX_PAIR, 1, sockets);
        struct ask ask;
        ask_file(&ask, file, sockets[0]);
        if (multipart)
            ask.request.range = text("bytes=0-999999,1500000-1500009,2000000-2999999");
        sendgate_transfer *transfer = new_transfer();
        CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
        unsigned waits = 0;
        sendgate_status status;
        while ((status = sendgate_transfer_step(transfer, 0, &ask.result)) == SENDGATE_WANT_WRITE) {
            waits++;
            /* Still full: a step sends nothing, and says so again. */
            CHECK_STATUS(sendgate_transfer_step(transfer, 0, NULL), SENDGATE_WANT_WRITE);
            for (long n; (n = peer_take(sockets[1], data + got, cap - got)) > 0;)
                got += (size_t)n;
        }
        CHECK_STATUS(status, SENDGATE_OK);
        CHECK(waits > 3);
        close(sockets[0]);
        for (long n; (n = peer_take(sockets[1], data + got, cap - got)) > 0;)
            got += (size_t)n;
        CHECK_INT(got, ask.result.head_sent + ask.result.body_sent);
        struct answer answer;
        answer_of(&answer, data, got);
        static const sendgate_range parts[] = {{0, 1000000}, {1500000, 10}, {2000000, 1000000}};
        if (multipart)
            check_multipart(&answer, parts, 3, size);
        else
            CHECK(answer.body_len == size && is_pattern(answer.body, size, 0));
        sendgate_transfer_free(transfer);
        close(sockets[1]);
        close(file);
        free(data);
    }
}

/* A copy of the bytes that free_all frees, so that a use after the call is one that ASan and Valgrind see. */
static void *copies[32];
static size_t n_copies;

static void *copy_of(const void *bytes, size_t len)
{
    void *copy = malloc(len ? len : 1);
    MUST(copy != NULL && n_copies < sizeof copies / sizeof *copies);
    memcpy(copy, bytes, len);
    copies[n_copies++] = copy;
    return copy;
}

static sendgate_str copied(const char *string)
{
    return text_of(copy_of(string, strlen(string)), strlen(string));
}

static void free_all(void)
{
    while (n_copies > 0)
        free(copies[--n_copies]);
}

/* Everything but descriptors and rep->memory may go once start has returned. */
static void inputs_are_not_kept(void)
{
    for (int n_headers = 0; n_headers <= 8; n_headers += 4) {
        check_case("inputs freed after start, %d headers", n_headers);
        static char memory[20000], data[40000];
        int sockets[2], file = file_make("answer", 1000);
        memset(memory, 'm', sizeof memory);
        make_pair(UNIX_PAIR, 1, sockets);
        struct ask ask;
        ask_memory(&ask, memory, sizeof memory, sockets[0]);
        char name[32], value[1000];
        sendgate_header headers[8];
        memset(headers, 0, sizeof headers);
        memset(value, 'v', sizeof value - 1);
        value[sizeof value - 1] = '\0';
        for (int i = 0; i < n_headers; i++) {
            snprintf(name, sizeof name, "X-Field-%d", i);
            headers[i].field.name = copied(name);
            headers[i].field.value = copied(value);
        }
        ask.request.range = copied("bytes=0-8999,10000-19999");
        ask.request.connection = copied("keep-alive");
        ask.rep.etag = copied("\"tag\"");
        ask.rep.content_type = copied("text/x-test");
        ask.exchange.request = copy_of(&ask.request, sizeof ask.request);
        ask.exchange.rep = copy_of(&ask.rep, sizeof ask.rep);
        ask.exchange.headers = copy_of(headers, sizeof headers);
        ask.exchange.n_headers = (size_t)n_headers;
        sendgate_exchange *exchange = copy_of(&ask.exchange, sizeof ask.exchange);
        sendgate_sink *sink = copy_of(&ask.sink, sizeof ask.sink);
        sendgate_transfer *transfer = new_transfer();
        CHECK_STATUS(sendgate_transfer_start(transfer, exchange, sink), SENDGATE_OK);
        free_all();
        sendgate_status status;
        while ((status = sendgate_transfer_step(transfer, 100, &ask.result)) == SENDGATE_YIELD) {
        }
        CHECK_STATUS(status, SENDGATE_OK);
        long got = peer_take(sockets[1], data, sizeof data);
        struct answer answer;
        answer_of(&answer, data, (size_t)got);
        CHECK_INT(answer.status, 206);
        for (int i = 0; i < n_headers; i++) {
            char received[1100];
            snprintf(name, sizeof name, "X-Field-%d", i);
            CHECK_INT(answer_field(&answer, name, received, sizeof received), 1);
            CHECK(strcmp(received, value) == 0);
        }
        CHECK(contains(answer.head, answer.head_len, "ETag: \"tag\"\r\n"));
        CHECK(contains(answer.body, answer.body_len, "text/x-test"));
        CHECK(contains(answer.body, answer.body_len, "bytes 10000-19999/20000"));
        sendgate_transfer_free(transfer);
        close(sockets[0]);
        close(sockets[1]);
        close(file);
    }
}

/* The same bytes as on a socket, into buffers of every size. */
static void pulls(void)
{
    static const size_t sizes[] = {1, 7, 4096, 1 << 20};
    static const char *const ranges[] = {NULL, "bytes=5-9999", "bytes=0-9,10000-19998"};
    int file = file_make("answer", 20000);
    sendgate_transfer *transfer = new_transfer();
    for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            check_case("pull %zu bytes at a time, %s", sizes[i], ranges[r] ? ranges[r] : "all");
            struct ask ask;
            ask_file(&ask, file, -1);
            ask.exchange.now = 1700000000;
            ask.exchange.seed = 42;
            if (ranges[r] != NULL)
                ask.request.range = text(ranges[r]);
            char head[2000];
            size_t head_len = 0;
            CHECK_STATUS(sendgate_head_bytes(&ask.exchange, head, sizeof head, &head_len), SENDGATE_OK);
            CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, NULL), SENDGATE_OK);
            static char data[30000];
            size_t got = 0, len = 0;
            uint8_t *buf = malloc(sizes[i]); /* of its own, so that an overrun shows */
            MUST(buf != NULL);
            sendgate_status status;
            while ((status = sendgate_transfer_pull(transfer, buf, sizes[i], &len, &ask.result)) == SENDGATE_YIELD ||
                   (status == SENDGATE_OK && len > 0)) {
                if (!CHECK(len > 0 && len <= sizes[i] && got + len <= sizeof data))
                    break;
                memcpy(data + got, buf, len);
                got += len;
                CHECK_INT(ask.result.head_sent + ask.result.body_sent, got);
            }
            CHECK_STATUS(status, SENDGATE_OK);
            check_result(&ask.result, SENDGATE_OK, ranges[r] ? 206 : 200, SENDGATE_CONN_REUSABLE);
            CHECK_STATUS(sendgate_transfer_pull(transfer, buf, sizes[i], &len, NULL), SENDGATE_OK);
            CHECK_INT(len, 0);
            free(buf);
            CHECK(got >= head_len && memcmp(data, head, head_len) == 0);
            struct answer answer;
            answer_of(&answer, data, got);
            static const sendgate_range parts[] = {{0, 10}, {10000, 9999}};
            if (r == 0)
                CHECK(answer.body_len == 20000 && is_pattern(answer.body, 20000, 0));
            else if (r == 1)
                CHECK(answer.body_len == 9995 && is_pattern(answer.body, 9995, 5));
            else
                check_multipart(&answer, parts, 2, 20000);
        }
    }
    check_case("pull from a file that shrank");
    struct ask ask;
    static uint8_t buf[30000];
    size_t len = 0;
    ask_file(&ask, file, -1);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_pull(transfer, buf, 1000, &len, &ask.result), SENDGATE_YIELD);
    MUST(truncate("answer", 5000) == 0);
    sendgate_status status;
    while ((status = sendgate_transfer_pull(transfer, buf, sizeof buf, &len, &ask.result)) == SENDGATE_YIELD && len > 0) {
    }
    CHECK_STATUS(status, SENDGATE_ERR_TRUNCATED);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN);
    CHECK(ask.result.body_sent <= 5000);
    CHECK_STATUS(sendgate_transfer_pull(transfer, buf, sizeof buf, &len, &ask.result), SENDGATE_ERR_TRUNCATED);
    sendgate_transfer_free(transfer);
    close(file);
}

static void states(void)
{
    struct ask ask;
    int sockets[2], file = file_make("answer", 8 << 20);
    uint8_t buf[10];
    size_t len = 0;
    sendgate_transfer *transfer = new_transfer();

    check_case("not started");
    ask_memory(&ask, "", 0, -1);
    CHECK_STATUS(sendgate_transfer_step(transfer, 0, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_STATUS(ask.result.status, SENDGATE_ERR_INVALID);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN); /* what the handle did before isn't known here */
    CHECK_STATUS(sendgate_transfer_pull(transfer, buf, sizeof buf, &len, NULL), SENDGATE_ERR_INVALID);

    check_case("a blocking socket");
    make_pair(UNIX_PAIR, 0, sockets);
    ask_file(&ask, file, sockets[0]);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_ERR_BLOCKING);
    CHECK_STATUS(sendgate_transfer_step(transfer, 0, NULL), SENDGATE_ERR_INVALID);

    check_case("the wrong one of step and pull");
    MUST(fcntl(sockets[0], F_SETFL, O_NONBLOCK) == 0);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_pull(transfer, buf, sizeof buf, &len, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_step(transfer, 0, NULL), SENDGATE_ERR_INVALID);

    check_case("a failed start leaves the handle idle");
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
    ask.exchange.http_status = 1000;
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_transfer_step(transfer, 0, NULL), SENDGATE_ERR_INVALID);
    ask.exchange.http_status = 0;
    CHECK_INT(peer_take(sockets[1], (char *)buf, 1), 0);

    check_case("start writes nothing");
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
    CHECK_INT(peer_take(sockets[1], (char *)buf, 1), 0);

    check_case("started again in the middle");
    CHECK_STATUS(sendgate_transfer_step(transfer, 100, &ask.result), SENDGATE_YIELD);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN);
    int others[2];
    make_pair(TCP_PAIR, 1, others);
    struct peer peer;
    peer_init(&peer, others[1]);
    peer_start(&peer);
    ask.sink.fd = others[0];
    unsigned waits;
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
    CHECK_STATUS(drive(transfer, &ask, 0, &waits), SENDGATE_OK);
    close(others[0]);
    peer_join(&peer);
    struct answer answer;
    answer_of(&answer, peer.data, peer.len);
    CHECK(answer.body_len == 8 << 20 && is_pattern(answer.body, answer.body_len, 0));
    peer_free(&peer);

    check_case("an error is kept");
    ask.sink.fd = sockets[0];
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_step(transfer, 0, &ask.result), SENDGATE_WANT_WRITE);
    MUST(truncate("answer", 1000) == 0);
    char drained[65536];
    sendgate_status status;
    do {
        while (peer_take(sockets[1], drained, sizeof drained) > 0) {
        }
        status = sendgate_transfer_step(transfer, 0, &ask.result);
    } while (status == SENDGATE_WANT_WRITE);
    CHECK_STATUS(status, SENDGATE_ERR_TRUNCATED);
    check_result(&ask.result, SENDGATE_ERR_TRUNCATED, 200, SENDGATE_CONN_BROKEN);
    sendgate_result before = ask.result;
    MUST(truncate("answer", 8 << 20) == 0);
    CHECK_STATUS(sendgate_transfer_step(transfer, 0, &ask.result), SENDGATE_ERR_TRUNCATED);
    CHECK(memcmp(&before, &ask.result, sizeof before) == 0);
    sendgate_transfer_free(transfer);

    check_case("freed in the middle, and NULL");
    transfer = new_transfer();
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
    sendgate_transfer_step(transfer, 1, NULL);
    sendgate_transfer_free(transfer);
    sendgate_transfer_free(NULL);
    CHECK(fcntl(sockets[0], F_GETFD) >= 0 && fcntl(file, F_GETFD) >= 0);
    close(sockets[0]);
    close(sockets[1]);
    close(file);
}

/* ---- Threads ---- */

struct meeting {
    sendgate_transfer *transfer;
    pthread_barrier_t inside, leave;
    int calls;
};

/* Is inside the handle's step until the other thread has tried it too. */
static sendgate_status write_and_meet(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct meeting *meeting = user;
    (void)data;
    if (meeting->calls++ == 0) {
        /* From within the step itself it is just as forbidden, and as harmless. */
        CHECK_STATUS(sendgate_transfer_step(meeting->transfer, 0, NULL), SENDGATE_ERR_BUSY);
        pthread_barrier_wait(&meeting->inside);
        pthread_barrier_wait(&meeting->leave);
    }
    *written = len;
    return SENDGATE_OK;
}

static void *step_all(void *user)
{
    struct meeting *meeting = user;
    sendgate_status status;
    do
        status = sendgate_transfer_step(meeting->transfer, 0, NULL);
    while (status == SENDGATE_YIELD);
    return (void *)(intptr_t)(status == SENDGATE_OK);
}

static void threads(void)
{
    check_case("two threads on one handle");
    struct meeting meeting;
    memset(&meeting, 0, sizeof meeting);
    MUST(pthread_barrier_init(&meeting.inside, NULL, 2) == 0 && pthread_barrier_init(&meeting.leave, NULL, 2) == 0);
    struct ask ask;
    int file = file_make("answer", 100000);
    ask_file(&ask, file, -1);
    ask.sink.write = write_and_meet;
    ask.sink.user = &meeting;
    meeting.transfer = new_transfer();
    /* Started here and stepped there: a handle may move. */
    CHECK_STATUS(sendgate_transfer_start(meeting.transfer, &ask.exchange, &ask.sink), SENDGATE_OK);
    pthread_t other;
    void *ok = NULL;
    MUST(pthread_create(&other, NULL, step_all, &meeting) == 0);
    pthread_barrier_wait(&meeting.inside);
    uint8_t buf[10];
    size_t len;
    ask.result.connection = 99;
    CHECK_STATUS(sendgate_transfer_step(meeting.transfer, 0, &ask.result), SENDGATE_ERR_BUSY);
    CHECK_STATUS(ask.result.status, SENDGATE_ERR_BUSY);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN); /* a response is in progress on it */
    CHECK_STATUS(sendgate_transfer_start(meeting.transfer, &ask.exchange, &ask.sink), SENDGATE_ERR_BUSY);
    CHECK_STATUS(sendgate_transfer_pull(meeting.transfer, buf, sizeof buf, &len, NULL), SENDGATE_ERR_BUSY);
    pthread_barrier_wait(&meeting.leave);
    MUST(pthread_join(other, &ok) == 0);
    CHECK(ok != NULL);
    CHECK_STATUS(sendgate_transfer_step(meeting.transfer, 0, &ask.result), SENDGATE_OK);
    CHECK_INT(ask.result.body_sent, 100000);
    sendgate_transfer_free(meeting.transfer);
    pthread_barrier_destroy(&meeting.inside);
    pthread_barrier_destroy(&meeting.leave);
    close(file);
}

int main(void)
{
    check_begin();
    int before = open_fds();
    budgets();
    want_write();
    inputs_are_not_kept();
    pulls();
    states();
    threads();
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    return check_end();
}
