/* Structs of other sizes than this header's, NULL in every place, lengths that can't be, bits nobody knows. */
#include "flight.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define EXTRA 64

static int file, writable, dir, sockets[2];
static struct ask ask;
static sendgate_sender *sender;

static void fresh(void)
{
    peer_drain(sockets[1]);
    ask_file(&ask, file, sockets[0]);
}

/* ---- Sizes ---- */

enum input { REQUEST, REP, EXCHANGE, SINK, OPTIONS, SOURCE, N_INPUTS };
static const char *const input_names[] = {"request", "rep", "exchange", "sink", "sender options", "source"};
/* What 0.1.0 has, and the least it takes: up to the members without which nothing can be done. Both are
 * accepted for ever, and between them what ends with a member. */
static const size_t sizes_now[] = {160, 88, 88, 56, 32, 48};
static const size_t least_sizes[] = {24, 40, 24, 32, 16, 32};

/* Whether a struct that now has `now` bytes may have `size`: no member is cut in two. */
static int is_size(size_t now, size_t least, size_t size)
{
    if (size < least)
        return 0;
    if (size >= now)
        return 1;
    if (now == sizeof(sendgate_request))
        return size < 32 ? size % 4 == 0 : size % 16 == 0;
    /* The exchange, which is as long as the representation, but needs less of it. */
    if (now == sizeof(sendgate_exchange) && least == 24)
        return size <= 72 && size % (size < 56 ? 8 : 4) == 0;
    if (now == sizeof(sendgate_rep))
        return size == 40 || size == 48 || size == 56 || size == 72;
    /* The decision ends with two numbers of 4 bytes. */
    if (now == sizeof(sendgate_decision) && least == 16)
        return size % 8 == 0 || size == 44;
    /* The sink and the source, the only ones that need 32 bytes, have two times between them and 40, and the sink two
     * numbers behind 48. */
    return size % (least == 32 && (size < 40 || size > 48) ? 4 : 8) == 0;
}

/* In the background, and to its end; the status with which it was refused or ended. */
static sendgate_status submit(const sendgate_exchange *exchange, const sendgate_sink *sink)
{
    uint64_t id = 0;
    sendgate_completion completion;
    sendgate_status status = sendgate_sender_submit(sender, exchange, sink, NULL, &id, NULL);
    if (status != SENDGATE_PENDING)
        return status;
    sender_next(sender, &completion);
    CHECK_INT(completion.id, id);
    return completion.status;
}

/* Call everything that reads the struct, with `copy` in its place; the last status. */
static sendgate_status with_input(enum input input, void *copy)
{
    static char head[2000], scratch[2000];
    size_t len = 0, n = 0;
    sendgate_field fields[32];
    sendgate_decision decision;
    memset(&decision, 0, sizeof decision);
    decision.size = sizeof decision;
    const sendgate_exchange *exchange = &ask.exchange;
    const sendgate_sink *sink = &ask.sink;
    switch (input) {
    case REQUEST:
        ask.exchange.request = copy;
        break;
    case REP:
        ask.exchange.rep = copy;
        break;
    case EXCHANGE:
        exchange = copy;
        break;
    case OPTIONS: {
        sendgate_sender *made = NULL;
        sendgate_status status = sendgate_sender_new(copy, &made, NULL);
        CHECK((made != NULL) == (status == SENDGATE_OK));
        sendgate_sender_free(made);
        return status;
    }
    case SOURCE: {
        uint8_t byte;
        MUST(send(sockets[1], "ab", 2, 0) == 2);
        sendgate_status status = sendgate_receive(copy, &byte, 1, NULL);
        CHECK_STATUS(sendgate_receive_file(copy, writable, 0, 1, NULL), status);
        char rest[2];
        CHECK_INT(recv(sockets[0], rest, 2, MSG_DONTWAIT), status == SENDGATE_OK ? -1 : 2);
        return status;
    }
    default:
        sink = copy;
    }
    sendgate_status status = sendgate_respond(exchange, sink, &ask.result);
    sendgate_transfer *transfer = NULL;
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_start(transfer, exchange, sink), status);
    sendgate_transfer_free(transfer);
    CHECK_STATUS(submit(exchange, sink), status);
    if (input != SINK) {
        CHECK_STATUS(sendgate_decide(exchange, NULL, 0, &decision), status);
        CHECK_STATUS(sendgate_head_bytes(exchange, head, sizeof head, &len), status);
        CHECK_STATUS(sendgate_head_fields(exchange, fields, N(fields), scratch, sizeof scratch, &n, &len), status);
    }
    if (input == REQUEST || input == SINK) {
        const sendgate_request *request = input == REQUEST ? copy : NULL;
        CHECK_STATUS(sendgate_response_file_fd(sink, request, 200, NULL, 0, dup(file), NULL), status);
        CHECK_STATUS(sendgate_response_file_fd_range(sink, request, 206, NULL, 0, dup(file), 0, 10, NULL), status);
        CHECK_STATUS(sendgate_response_file_conditional(sink, request, 200, NULL, 0, "answer", NULL, NULL, NULL, NULL,
                                                        NULL),
                     status);
    }
    return status;
}

static void input_sizes(void)
{
    sendgate_sender_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    sendgate_source source;
    memset(&source, 0, sizeof source);
    source.size = sizeof source;
    source.fd = sockets[0];
    for (int input = 0; input < N_INPUTS; input++) {
        size_t now = sizes_now[input], least = least_sizes[input];
        size_t sizes[] = {sizeof(size_t), least - 1, least, least + 1, least + 4, least + 8, now - 16, now - 8, now - 1, now, now + 1, now + 8, 4096};
        for (size_t i = 0; i < N(sizes); i++) {
            /* The tail beyond what is known here: zero, then not zero in its last byte. */
            for (int garbage = 0; garbage < 2; garbage++) {
                size_t size = sizes[i];
                if (size <= now && garbage)
                    continue;
                fresh();
                const void *original[] = {&ask.request, &ask.rep, &ask.exchange, &ask.sink, &options, &source};
                check_case("%s of %zu bytes%s", input_names[input], size, garbage ? ", unknown members set" : "");
                /* An allocation of exactly that size: reading on is seen by ASan and Valgrind. */
                char *copy = calloc(1, size);
                MUST(copy != NULL);
                memcpy(copy, original[input], size < now ? size : now);
                memcpy(copy, &size, sizeof size);
                if (garbage)
                    copy[size - 1] = 1;
                sendgate_status want = !is_size(now, least, size) || garbage ? SENDGATE_ERR_SIZE : SENDGATE_OK;
                CHECK_STATUS(with_input((enum input)input, copy), want);
                if (want != SENDGATE_OK) {
                    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
                    CHECK_INT(peer_drain(sockets[1]), 0);
                }
                free(copy);
            }
        }
        static const size_t impossible[] = {0, 1, 7, (size_t)PTRDIFF_MAX + 1, SIZE_MAX};
        for (size_t i = 0; i < N(impossible); i++) {
            fresh();
            const void *original[] = {&ask.request, &ask.rep, &ask.exchange, &ask.sink, &options, &source};
            check_case("%s of %zu bytes", input_names[input], impossible[i]);
            char *copy = malloc(now);
            MUST(copy != NULL);
            memcpy(copy, original[input], now);
            memcpy(copy, &impossible[i], sizeof(size_t));
            CHECK_STATUS(with_input((enum input)input, copy), SENDGATE_ERR_SIZE);
            free(copy);
        }
    }
}

/* A member that a shorter struct does not have reads as zero, whatever lies behind the struct. */
static void missing_members(void)
{
    check_case("members behind the size are not read");
    fresh();
    ask.request.size = offsetof(sendgate_request, if_none_match);
    ask.request.if_none_match = text("*");
    ask.request.range = text("bytes=0-9");
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    CHECK_INT(ask.result.http_status, 200);
    ask.request.size = offsetof(sendgate_request, range);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    CHECK_INT(ask.result.http_status, 304);
    ask.exchange.http_status = 404;
    ask.exchange.size = offsetof(sendgate_exchange, http_status);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    CHECK_INT(ask.result.http_status, 304);
    peer_drain(sockets[1]);
    ask.exchange.size = offsetof(sendgate_exchange, head_text);
    ask.exchange.head_text = text("mine");
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    CHECK_INT(ask.result.http_status, 404);
    char head[12];
    CHECK(peer_take(sockets[1], head, sizeof head) == sizeof head && memcmp(head, "HTTP/1.1 404", sizeof head) == 0);
    /* An answer without any head is nobody's wish. */
    ask.exchange.head = SENDGATE_HEAD_GIVEN;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_INVALID);
}

/* A program that was built before the decision had `framing` gets what it knew. */
static void old_decision(void)
{
    check_case("a decision of 40 bytes");
    fresh();
    ask.request.range = text("bytes=1-2");
    uint64_t *old = malloc(40);
    MUST(old != NULL);
    memset(old, 0xff, 40);
    old[0] = 40;
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, (sendgate_decision *)(void *)old), SENDGATE_OK);
    uint32_t numbers[2];
    memcpy(numbers, &old[1], sizeof numbers);
    CHECK(numbers[0] == 206 && numbers[1] == 1 && old[2] == 2 && old[3] == 2 && old[4] == 1);
    free(old);
    check_case("the framing in a decision of 48 bytes");
    sendgate_decision decision;
    memset(&decision, 0xff, sizeof decision);
    decision.size = sizeof decision;
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, &decision), SENDGATE_OK);
    CHECK(decision.framing == SENDGATE_FRAMING_LENGTH && decision.reserved == 0);
    ask.request.range = text_of(NULL, 0);
    ask.request.if_none_match = text("*");
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, &decision), SENDGATE_OK);
    CHECK(decision.framing == SENDGATE_FRAMING_NONE && decision.reserved == 0);
}

/* A struct that is written, with a guard behind it. `call` fills it. */
static void output_size(const char *name, size_t now, size_t least, sendgate_status (*call)(void *out))
{
    size_t sizes[] = {sizeof(size_t), least - 1, least, least + 1, now - 8, now - 4, now, now + 8, now + EXTRA};
    for (size_t i = 0; i < N(sizes); i++) {
        size_t size = sizes[i], room = now + 2 * EXTRA;
        check_case("%s of %zu bytes", name, size);
        fresh();
        unsigned char *out = malloc(room), *untouched = malloc(room), *exact = calloc(1, size);
        MUST(out != NULL && untouched != NULL && exact != NULL);
        memset(untouched, 0xa5, room);
        memset(untouched, 0, size);
        memcpy(untouched, &size, sizeof size);
        memcpy(out, untouched, room);
        int before = open_fds();
        CHECK_STATUS(call(out), is_size(now, least, size) ? SENDGATE_OK : SENDGATE_ERR_SIZE);
        CHECK_INT(open_fds(), before); /* a descriptor given away is closed in any case */
        /* Never past its size; and with a size that can't be not at all. */
        size_t from = is_size(now, least, size) ? size : 0;
        CHECK(memcmp(out + from, untouched + from, room - from) == 0);
        CHECK(memcmp(out, untouched, sizeof size) == 0);
        /* Again, with nothing behind it. */
        memcpy(exact, &size, sizeof size);
        fresh();
        CHECK_STATUS(call(exact), is_size(now, least, size) ? SENDGATE_OK : SENDGATE_ERR_SIZE);
        free(out);
        free(untouched);
        free(exact);
    }
    check_case("%s of 0 and SIZE_MAX bytes", name);
    static const size_t impossible[] = {0, (size_t)PTRDIFF_MAX + 1, SIZE_MAX};
    for (size_t i = 0; i < N(impossible); i++) {
        size_t *out = calloc(1, now);
        MUST(out != NULL);
        *out = impossible[i];
        fresh();
        CHECK_STATUS(call(out), SENDGATE_ERR_SIZE);
        free(out);
    }
}

static sendgate_status fill_decision(void *out)
{
    return sendgate_decide(&ask.exchange, NULL, 0, out);
}

static sendgate_status fill_rep(void *out)
{
    return sendgate_rep_from_fd(out, file, 0, NULL, 0, NULL);
}

static sendgate_status fill_opened_rep(void *out)
{
    int32_t fd = -1;
    sendgate_status status = sendgate_open(dir, "answer", 0, NULL, 0, &fd, out, NULL);
    CHECK((fd >= 0) == (status == SENDGATE_OK));
    if (fd >= 0)
        close(fd);
    return status;
}

static sendgate_status fill_request(void *out)
{
    sendgate_field field;
    field.name = text("Range");
    field.value = text("bytes=0-9");
    return sendgate_request_from_fields(out, &field, 1, NULL, 0, NULL);
}

static sendgate_status fill_parsed_request(void *out)
{
    static const char head[] = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    size_t len = 0;
    return sendgate_request_from_head(out, head, sizeof head - 1, NULL, 0, NULL, &len);
}

static sendgate_status fill_result(void *out)
{
    return sendgate_respond(&ask.exchange, &ask.sink, out);
}

static sendgate_status fill_submit_result(void *out)
{
    ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    return sendgate_sender_submit(sender, &ask.exchange, &ask.sink, NULL, NULL, out);
}

static sendgate_status fill_step_result(void *out)
{
    sendgate_transfer *transfer = NULL;
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    MUST(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink) == SENDGATE_OK);
    sendgate_status status = sendgate_transfer_step(transfer, 0, out);
    sendgate_transfer_free(transfer);
    return status;
}

static sendgate_status fill_pull_result(void *out)
{
    static uint8_t buf[20000];
    size_t len;
    sendgate_transfer *transfer = NULL;
    sendgate_status status;
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    MUST(sendgate_transfer_start(transfer, &ask.exchange, NULL) == SENDGATE_OK);
    do
        status = sendgate_transfer_pull(transfer, buf, sizeof buf, &len, out);
    while (status == SENDGATE_YIELD);
    sendgate_transfer_free(transfer);
    return status;
}

/* A stream of ten bytes that was started; its decision goes to `out`. */
static sendgate_status start_stream(sendgate_stream **stream, void *out)
{
    ask.rep.kind = SENDGATE_REP_STREAM;
    ask.rep.length = 10;
    MUST(sendgate_stream_new(stream) == SENDGATE_OK);
    return sendgate_stream_start(*stream, &ask.exchange, &ask.sink, out);
}

static sendgate_status fill_stream_decision(void *out)
{
    sendgate_stream *stream = NULL;
    sendgate_status status = start_stream(&stream, out);
    sendgate_stream_free(stream);
    return status;
}

static sendgate_status fill_write_result(void *out)
{
    sendgate_stream *stream = NULL;
    size_t written = 99;
    MUST(start_stream(&stream, NULL) == SENDGATE_OK);
    sendgate_status status = sendgate_stream_write(stream, (const uint8_t *)"0123456789", 10, &written, out);
    CHECK_INT(written, status == SENDGATE_OK ? 10 : 0);
    CHECK_INT(peer_drain(sockets[1]) > 10, status == SENDGATE_OK);
    sendgate_stream_free(stream);
    return status;
}

static sendgate_status fill_end_result(void *out)
{
    sendgate_stream *stream = NULL;
    MUST(start_stream(&stream, NULL) == SENDGATE_OK);
    MUST(sendgate_stream_write(stream, (const uint8_t *)"0123456789", 10, NULL, NULL) == SENDGATE_OK);
    sendgate_status status = sendgate_stream_end(stream, NULL, 0, out);
    /* Refused, it can be ended all the same. */
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_OK);
    sendgate_stream_free(stream);
    return status;
}

static sendgate_status fill_received(void *out)
{
    uint8_t byte;
    sendgate_source source;
    memset(&source, 0, sizeof source);
    source.size = sizeof source;
    source.fd = sockets[0];
    MUST(send(sockets[1], "a", 1, 0) == 1);
    sendgate_status status = sendgate_receive(&source, &byte, 1, out);
    /* Refused: it is still there. */
    CHECK_INT(recv(sockets[0], &byte, 1, MSG_DONTWAIT), status == SENDGATE_OK ? -1 : 1);
    return status;
}

static sendgate_status fill_file_result(void *out)
{
    return sendgate_response_file_fd(&ask.sink, NULL, 200, NULL, 0, dup(file), out);
}

static sendgate_status fill_range_result(void *out)
{
    return sendgate_response_file_fd_range(&ask.sink, NULL, 206, NULL, 0, dup(file), 0, 10, out);
}

static sendgate_status fill_conditional_result(void *out)
{
    return sendgate_response_file_conditional(&ask.sink, NULL, 200, NULL, 0, "answer", NULL, NULL, NULL, NULL, out);
}

static void output_sizes(void)
{
    output_size("decision", 48, 16, fill_decision);
    output_size("decision of a stream", 48, 16, fill_stream_decision);
    output_size("rep", 88, 40, fill_rep);
    output_size("rep of sendgate_open", 88, 40, fill_opened_rep);
    output_size("request", 160, 24, fill_request);
    output_size("request from a head", 160, 24, fill_parsed_request);
    output_size("result of respond", 48, 24, fill_result);
    output_size("result of submit", 48, 24, fill_submit_result);
    output_size("result of step", 48, 24, fill_step_result);
    output_size("result of pull", 48, 24, fill_pull_result);
    output_size("result of stream_write", 48, 24, fill_write_result);
    output_size("result of stream_end", 48, 24, fill_end_result);
    output_size("received", 32, 24, fill_received);
    output_size("result of response_file_fd", 48, 24, fill_file_result);
    output_size("result of response_file_fd_range", 48, 24, fill_range_result);
    output_size("result of response_file_conditional", 48, 24, fill_conditional_result);
}

/* ---- NULL ---- */

/* A buffer of NULL has no room, whatever its capacity is said to be. */
static void nulls(void)
{
    char buf[2000], scratch[2000];
    size_t len = 0, n = 0;
    int32_t fd = -1, error = 0;
    sendgate_field fields[32], field;
    sendgate_decision decision;
    field.name = text("Range");
    field.value = text("bytes=0-9");
    memset(&decision, 0, sizeof decision);
    decision.size = sizeof decision;
    const char *head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    check_case("NULL: request_from_fields");
    fresh();
    CHECK_STATUS(sendgate_request_from_fields(NULL, &field, 1, buf, sizeof buf, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_request_from_fields(&ask.request, NULL, 1, buf, sizeof buf, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_request_from_fields(&ask.request, NULL, 0, buf, sizeof buf, &n), SENDGATE_OK);
    CHECK_STATUS(sendgate_request_from_fields(&ask.request, &field, 1, NULL, 0, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_request_from_fields(&ask.request, &field, 1, NULL, 10, NULL), SENDGATE_OK);

    check_case("NULL: request_from_head");
    CHECK_STATUS(sendgate_request_from_head(NULL, head, strlen(head), buf, sizeof buf, &n, &len), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_request_from_head(&ask.request, NULL, 10, buf, sizeof buf, &n, &len), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_request_from_head(&ask.request, NULL, 0, buf, sizeof buf, &n, &len), SENDGATE_WANT_READ);
    CHECK_STATUS(sendgate_request_from_head(&ask.request, head, strlen(head), buf, sizeof buf, &n, NULL),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_request_from_head(&ask.request, head, strlen(head), NULL, 0, NULL, &len), SENDGATE_OK);
    CHECK_STATUS(sendgate_request_from_head(&ask.request, head, strlen(head), NULL, 9, NULL, &len), SENDGATE_OK);

    check_case("NULL: rep_from_fd");
    fresh();
    CHECK_STATUS(sendgate_rep_from_fd(NULL, file, 0, buf, sizeof buf, &error), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_rep_from_fd(&ask.rep, file, 0, NULL, 0, NULL), SENDGATE_OK);
    CHECK(ask.rep.etag.ptr == NULL);
    CHECK_STATUS(sendgate_rep_from_fd(&ask.rep, 1000, 0, buf, sizeof buf, NULL), SENDGATE_ERR_IO);
    CHECK_STATUS(sendgate_rep_from_fd(&ask.rep, file, 0, buf, 5, NULL), SENDGATE_ERR_NO_SPACE);

    check_case("NULL: open");
    CHECK_STATUS(sendgate_open(dir, NULL, 0, NULL, 0, &fd, NULL, &error), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_open(dir, "answer", 0, NULL, 0, NULL, NULL, &error), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_open(dir, "missing", 0, NULL, 0, &fd, NULL, NULL), SENDGATE_ERR_IO);
    CHECK_INT(fd, -1);
    CHECK_STATUS(sendgate_open(dir, "answer", 0, NULL, 0, &fd, NULL, NULL), SENDGATE_OK);
    close(fd);

    check_case("NULL: decide");
    fresh();
    CHECK_STATUS(sendgate_decide(NULL, NULL, 0, &decision), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 5, &decision), SENDGATE_OK);
    ask.exchange.request = NULL;
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, &decision), SENDGATE_OK);
    ask.exchange.rep = NULL;
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, &decision), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    fresh();
    ask.exchange.n_headers = 1;
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, &decision), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, buf, sizeof buf, &len), SENDGATE_ERR_INVALID);

    check_case("NULL: ranges without room for them");
    fresh();
    ask.request.range = text("bytes=0-0,5-5,9-9");
    sendgate_range ranges[3];
    memset(ranges, 0xff, sizeof ranges);
    /* NULL: the caller does not want them. */
    CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, &decision), SENDGATE_OK);
    CHECK_INT(decision.n_ranges, 3);
    CHECK_INT(decision.http_status, 206);
    decision.n_ranges = 0;
    CHECK_STATUS(sendgate_decide(&ask.exchange, ranges, 2, &decision), SENDGATE_ERR_NO_SPACE);
    CHECK_INT(decision.n_ranges, 3);
    CHECK(ranges[2].offset == UINT64_MAX && ranges[2].length == UINT64_MAX);
    CHECK_STATUS(sendgate_decide(&ask.exchange, ranges, 3, &decision), SENDGATE_OK);
    CHECK(ranges[2].offset == 9 && ranges[2].length == 1);

    check_case("NULL: head_bytes");
    fresh();
    CHECK_STATUS(sendgate_head_bytes(NULL, buf, sizeof buf, &len), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, buf, sizeof buf, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, NULL, 10, &len), SENDGATE_ERR_NO_SPACE);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, NULL, 4096, &len), SENDGATE_ERR_NO_SPACE);
    len = 0;
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, NULL, 0, &len), SENDGATE_ERR_NO_SPACE);
    CHECK(len > 50);
    /* Exactly what was asked for is enough; a byte less is not, and nothing is written behind it. */
    char *exact = malloc(len);
    MUST(exact != NULL);
    size_t again = 0;
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, exact, len - 1, &again), SENDGATE_ERR_NO_SPACE);
    CHECK_INT(again, len);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, exact, len, &again), SENDGATE_OK);
    CHECK_INT(again, len);
    CHECK(memcmp(exact + len - 4, "\r\n\r\n", 4) == 0);
    free(exact);

    check_case("NULL: head_fields");
    size_t needed = 0;
    CHECK_STATUS(sendgate_head_fields(NULL, fields, N(fields), scratch, sizeof scratch, &n, &needed),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, fields, N(fields), scratch, sizeof scratch, NULL, &needed),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, NULL, 5, scratch, sizeof scratch, &n, &needed),
                 SENDGATE_ERR_NO_SPACE);
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, fields, N(fields), NULL, 5, &n, &needed), SENDGATE_ERR_NO_SPACE);
    n = needed = 0;
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, NULL, 0, NULL, 0, &n, &needed), SENDGATE_ERR_NO_SPACE);
    CHECK(n > 3 && n <= N(fields) && needed > 0);
    sendgate_field *exact_fields = malloc(n * sizeof *exact_fields);
    exact = malloc(needed);
    MUST(exact_fields != NULL && exact != NULL);
    size_t n_again = 0, needed_again = 0;
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, exact_fields, n - 1, exact, needed, &n_again, &needed_again),
                 SENDGATE_ERR_NO_SPACE);
    CHECK_INT(n_again, n);
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, exact_fields, n, exact, needed - 1, &n_again, &needed_again),
                 SENDGATE_ERR_NO_SPACE);
    CHECK_INT(needed_again, needed);
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, exact_fields, n, exact, needed, &n_again, &needed_again),
                 SENDGATE_OK);
    CHECK_INT(n_again, n);
    free(exact_fields);
    free(exact);

    check_case("NULL: respond and transfer");
    fresh();
    CHECK_STATUS(sendgate_respond(NULL, &ask.sink, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_respond(&ask.exchange, NULL, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_STATUS(ask.result.status, SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_respond(NULL, NULL, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_transfer_new(NULL), SENDGATE_ERR_INVALID);
    sendgate_transfer *transfer = NULL;
    uint8_t byte;
    CHECK_STATUS(sendgate_transfer_new(&transfer), SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_start(NULL, &ask.exchange, &ask.sink), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_transfer_start(transfer, NULL, &ask.sink), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_transfer_step(NULL, 0, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_STATUS(ask.result.status, SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_transfer_pull(NULL, &byte, 1, &len, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_pull(transfer, NULL, 1, &len, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_transfer_pull(transfer, &byte, 1, NULL, NULL), SENDGATE_ERR_INVALID);
    sendgate_transfer_free(transfer);

    check_case("NULL: response_file_fd and its kin");
    fresh();
    int before = open_fds();
    CHECK_STATUS(sendgate_response_file_fd(NULL, NULL, 200, NULL, 0, dup(file), &ask.result), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_response_file_fd(&ask.sink, NULL, 200, NULL, 1, dup(file), &ask.result),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_response_file_fd_range(NULL, NULL, 206, NULL, 0, dup(file), 0, 1, &ask.result),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_response_file_fd_range(&ask.sink, NULL, 206, NULL, 1, dup(file), 0, 1, NULL),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_response_file_conditional(NULL, NULL, 200, NULL, 0, "answer", NULL, NULL, NULL, NULL, NULL),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_response_file_conditional(&ask.sink, NULL, 200, NULL, 1, "answer", NULL, NULL, NULL, NULL,
                                                    NULL),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_response_file_conditional(&ask.sink, NULL, 200, NULL, 0, NULL, NULL, NULL, NULL, NULL,
                                                    &ask.result),
                 SENDGATE_ERR_INVALID);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    CHECK_INT(open_fds(), before);
    CHECK_INT(peer_take(sockets[1], buf, sizeof buf), 0);

    check_case("NULL: respond_fd");
    CHECK_STATUS(sendgate_respond_fd(sockets[0], file, NULL, 0, NULL, NULL, 0, NULL, NULL, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_respond_fd(sockets[0], file, "", 0, "", "", 0, NULL, NULL, NULL), SENDGATE_OK);
    CHECK(sendgate_respond_fd(-1, file, NULL, 0, NULL, NULL, 0, NULL, NULL, NULL) < 0);
    CHECK(sendgate_respond_fd(sockets[0], -1, NULL, 0, NULL, NULL, 0, NULL, NULL, NULL) < 0);

    check_case("texts of unknown codes");
    static const sendgate_status unknown[] = {INT32_MIN, -1000, -20, 6, 1000, INT32_MAX};
    for (size_t i = 0; i < N(unknown); i++) {
        CHECK(strlen(sendgate_status_name(unknown[i])) > 0);
        CHECK(strlen(sendgate_status_message(unknown[i])) > 0);
    }
}

/* A length without a pointer is as absent as a pointer of NULL says it is, or refused; it is not followed. */
static void absent_strings(void)
{
    check_case("ptr NULL with a length");
    sendgate_header header;
    for (int i = 0; i < 12; i++) {
        fresh();
        memset(&header, 0, sizeof header);
        header.field.name = text("X-Test");
        header.field.value = text("value");
        sendgate_str *strings[] = {
            &ask.request.method,       &ask.request.connection,          &ask.request.if_match,
            &ask.request.if_none_match, &ask.request.if_modified_since,   &ask.request.if_unmodified_since,
            &ask.request.if_range,     &ask.request.range,               &ask.rep.etag,
            &ask.rep.content_type,     &header.field.name,               &header.field.value,
        };
        ask.exchange.headers = &header;
        ask.exchange.n_headers = 1;
        *strings[i] = text_of(NULL, 5);
        sendgate_status status = sendgate_respond(&ask.exchange, &ask.sink, &ask.result);
        CHECK(status == SENDGATE_OK || status == SENDGATE_ERR_INVALID || status == SENDGATE_ERR_FIELD);
    }
    check_case("memory NULL with a length");
    fresh();
    ask.rep.kind = SENDGATE_REP_MEMORY;
    ask.rep.memory = NULL;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_INVALID);
    ask.rep.length = 0;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
}

/* ---- Lengths and numbers that can't be ---- */

static void refused_exchange(sendgate_status want)
{
    char byte;
    sendgate_transfer *transfer = NULL;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), want);
    CHECK_STATUS(ask.result.status, want);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, &ask.sink), want);
    sendgate_transfer_free(transfer);
    CHECK_STATUS(sendgate_sender_submit(sender, &ask.exchange, &ask.sink, NULL, NULL, &ask.result), want);
    CHECK_STATUS(ask.result.status, want);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    CHECK_INT(peer_take(sockets[1], &byte, 1), 0);
}

static void lengths(void)
{
    const size_t too_long = (size_t)PTRDIFF_MAX + 1;
    char buf[2000];
    size_t len = 0, n = 0;
    sendgate_field fields[2];
    sendgate_header header;
    sendgate_decision decision;
    sendgate_range ranges[2];
    memset(&decision, 0, sizeof decision);
    decision.size = sizeof decision;

    for (int i = 0; i < 12; i++) {
        check_case("string %d longer than PTRDIFF_MAX", i);
        fresh();
        memset(&header, 0, sizeof header);
        header.field.name = text("X-Test");
        header.field.value = text("value");
        sendgate_str *strings[] = {
            &ask.request.method,        &ask.request.connection,        &ask.request.if_match,
            &ask.request.if_none_match, &ask.request.if_modified_since, &ask.request.if_unmodified_since,
            &ask.request.if_range,      &ask.request.range,             &ask.rep.etag,
            &ask.rep.content_type,      &header.field.name,             &header.field.value,
        };
        ask.exchange.headers = &header;
        ask.exchange.n_headers = 1;
        *strings[i] = text_of("x", i % 2 ? too_long : SIZE_MAX);
        refused_exchange(SENDGATE_ERR_INVALID);
    }

    static const size_t counts[] = {(size_t)PTRDIFF_MAX + 1, SIZE_MAX, SIZE_MAX / sizeof(sendgate_header) + 1,
                                    (size_t)PTRDIFF_MAX / sizeof(sendgate_header) + 1};
    for (size_t i = 0; i < N(counts); i++) {
        check_case("%zu headers or fields", counts[i]);
        fresh();
        ask.exchange.headers = &header;
        ask.exchange.n_headers = counts[i];
        refused_exchange(SENDGATE_ERR_INVALID);
        fields[0].name = text("Range");
        fields[0].value = text("bytes=0-9");
        fields[1] = fields[0];
        if (counts[i] > (size_t)PTRDIFF_MAX / sizeof *fields) {
            CHECK_STATUS(sendgate_request_from_fields(&ask.request, fields, counts[i], buf, sizeof buf, &n),
                         SENDGATE_ERR_INVALID);
            int before = open_fds();
            CHECK_STATUS(sendgate_response_file_fd(&ask.sink, NULL, 200, fields, counts[i], dup(file), NULL),
                         SENDGATE_ERR_INVALID);
            CHECK_INT(open_fds(), before);
        }
    }

    check_case("capacities above PTRDIFF_MAX");
    fresh();
    CHECK_STATUS(sendgate_request_from_head(&ask.request, "x", too_long, buf, sizeof buf, &n, &len),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_request_from_head(&ask.request, "x", 1, buf, too_long, &n, &len), SENDGATE_ERR_INVALID);
    fields[0].name = text("Range");
    fields[0].value = text_of("x", too_long);
    CHECK_STATUS(sendgate_request_from_fields(&ask.request, fields, 1, buf, sizeof buf, &n), SENDGATE_ERR_INVALID);
    fields[0].value = text("x");
    CHECK_STATUS(sendgate_request_from_fields(&ask.request, fields, 1, buf, SIZE_MAX, &n), SENDGATE_ERR_INVALID);
    fresh();
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, buf, SIZE_MAX, &len), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, fields, SIZE_MAX, buf, sizeof buf, &n, &len),
                 SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, fields, 2, buf, too_long, &n, &len), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_decide(&ask.exchange, ranges, SIZE_MAX, &decision), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_rep_from_fd(&ask.rep, file, 0, buf, too_long, NULL), SENDGATE_ERR_INVALID);
    sendgate_transfer *transfer = NULL;
    uint8_t pulled[1];
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_pull(transfer, pulled, SIZE_MAX, &len, NULL), SENDGATE_ERR_INVALID);
    sendgate_transfer_free(transfer);
}

static void unknown_bits(void)
{
    char buf[100];
    int32_t fd = -1;
    sendgate_header header;
#define REFUSED(assignment)                                                                                            \
    do {                                                                                                               \
        check_case("%s", #assignment);                                                                                 \
        fresh();                                                                                                       \
        memset(&header, 0, sizeof header);                                                                             \
        header.field.name = text("X-Test");                                                                            \
        header.field.value = text("value");                                                                            \
        ask.exchange.headers = &header;                                                                                \
        ask.exchange.n_headers = 1;                                                                                    \
        assignment;                                                                                                    \
        refused_exchange(SENDGATE_ERR_INVALID);                                                                        \
    } while (0)
    REFUSED(ask.request.version = 9);
    REFUSED(ask.request.version = 20);
    REFUSED(ask.request.flags = 0x2);
    REFUSED(ask.request.flags = 0x80000000);
    REFUSED(ask.rep.kind = 3);
    REFUSED(ask.rep.kind = UINT32_MAX);
    REFUSED(ask.rep.flags = 0x10);
    REFUSED(ask.rep.flags = 0x20);
    REFUSED(ask.rep.flags = 0x40);
    REFUSED((ask.rep.kind = SENDGATE_REP_STREAM, ask.rep.flags = 0x40));
    REFUSED(ask.rep.flags |= 0x80000000);
    REFUSED(ask.rep.mtime_nsec = 1000000000);
    REFUSED(ask.rep.offset = UINT64_MAX);
    REFUSED(ask.rep.offset = (uint64_t)INT64_MAX + 1);
    REFUSED(ask.rep.length = UINT64_MAX);
    REFUSED(ask.rep.length = (uint64_t)INT64_MAX + 1);
    REFUSED((ask.rep.offset = INT64_MAX, ask.rep.length = 2));
    REFUSED(ask.exchange.head = 4);
    REFUSED(ask.exchange.head = SENDGATE_HEAD_GIVEN);
    REFUSED((ask.exchange.head = SENDGATE_HEAD_GIVEN, ask.exchange.head_text = text_of(NULL, 1)));
    REFUSED((ask.exchange.head = SENDGATE_HEAD_GIVEN, ask.exchange.head_text = text_of("x", (size_t)PTRDIFF_MAX + 1)));
    REFUSED((ask.exchange.head = SENDGATE_HEAD_GIVEN, ask.exchange.head_text = text_of("x", SIZE_MAX)));
    REFUSED(ask.exchange.head_text = text("x"));
    REFUSED(ask.exchange.head_text = text(""));
    REFUSED(ask.exchange.head_text = text_of(NULL, 1));
    REFUSED((ask.exchange.head = SENDGATE_HEAD_CGI, ask.exchange.head_text = text("x")));
    REFUSED((ask.exchange.head = SENDGATE_HEAD_NONE, ask.exchange.head_text = text("x")));
    REFUSED(ask.exchange.head_flags = 2);
    REFUSED(ask.exchange.http_status = 199);
    REFUSED(ask.exchange.http_status = 1000);
    REFUSED(ask.exchange.http_status = 1);
    REFUSED(header.rule = 4);
    REFUSED(header.rule = SENDGATE_RULE_FROZEN | 4);
    REFUSED(header.rule = 32);
    REFUSED(header.rule = UINT32_MAX);
    REFUSED(header.reserved = 1);
    REFUSED(ask.sink.flags = 4);
    REFUSED(ask.sink.flags = 0x80000000);
#undef REFUSED

    check_case("unknown flags of rep_from_fd and open");
    CHECK_STATUS(sendgate_rep_from_fd(&ask.rep, file, 4, buf, sizeof buf, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_open(dir, "answer", 0x20, NULL, 0, &fd, NULL, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_open(dir, "answer", 0x80000000, NULL, 0, &fd, NULL, NULL), SENDGATE_ERR_INVALID);
    CHECK_INT(fd, -1);
    check_case("unknown version in the flat call");
    CHECK_STATUS(sendgate_respond_fd(sockets[0], file, NULL, 9, NULL, NULL, 0, NULL, NULL, NULL),
                 SENDGATE_ERR_INVALID);
}

int main(void)
{
    check_begin();
    file = file_make("answer", 1000);
    writable = open("written", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    MUST(writable >= 0);
    dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(dir >= 0);
    make_pair(UNIX_PAIR, 1, sockets);
    sender = sender_make(NULL);
    int before = open_fds();
    input_sizes();
    missing_members();
    output_sizes();
    old_decision();
    nulls();
    absent_strings();
    lengths();
    unknown_bits();
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    close(file);
    close(writable);
    close(dir);
    close(sockets[0]);
    close(sockets[1]);
    sendgate_sender_free(sender);
    return check_end();
}
