/* FastCGI from C: what a front server sends, cut anywhere; and answers in records by every call that sends, put
 * together again by a reader of this test's own.
 */
#include "flight.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define ID 0x1234

/* ---- What a front server sends ---------------------------------------------------------------- */

struct bytes {
    uint8_t data[8192];
    size_t len;
};

static void put(struct bytes *to, const void *data, size_t len)
{
    MUST(to->len + len <= sizeof to->data);
    memcpy(to->data + to->len, data, len);
    to->len += len;
}

static void put_record(struct bytes *to, uint32_t type, uint32_t id, const void *content, size_t len, int padded)
{
    static const uint8_t zeros[8];
    uint8_t head[8];
    uint32_t padding = 0;
    MUST(sendgate_fcgi_header(head, type, id, (uint32_t)len, padded ? &padding : NULL) == SENDGATE_OK);
    put(to, head, sizeof head);
    put(to, content, len);
    put(to, zeros, padding);
}

static void put_begin(struct bytes *to, uint32_t id, uint8_t role, uint8_t flags)
{
    uint8_t body[8] = {0};
    body[1] = role;
    body[2] = flags;
    put_record(to, SENDGATE_FCGI_TYPE_BEGIN_REQUEST, id, body, sizeof body, 0);
}

static const sendgate_field params[] = {
    {{"REQUEST_METHOD", 14}, {"GET", 3}},
    {{"SERVER_PROTOCOL", 15}, {"HTTP/1.0", 8}},
    {{"HTTP_RANGE", 10}, {"bytes=1-2", 9}},
    {{"HTTP_IF_RANGE", 13}, {"\"a\"", 3}},
    {{"HTTP_IF_MATCH", 13}, {"\"b\"", 3}},
    {{"HTTP_IF_NONE_MATCH", 18}, {"\"c\"", 3}},
    {{"HTTP_IF_MODIFIED_SINCE", 22}, {"d", 1}},
    {{"HTTP_IF_UNMODIFIED_SINCE", 24}, {"e", 1}},
    {{"HTTP_CONNECTION", 15}, {"close", 5}},
    {{"EMPTY", 5}, {"", 0}},
    {{"\xff", 1}, {"\xfe\0\xfd", 3}},
};

static void put_request(struct bytes *to, uint32_t id, uint8_t flags, const char *content)
{
    uint8_t encoded[1000];
    size_t len = 0;
    MUST(sendgate_fcgi_encode_params(params, N(params), encoded, sizeof encoded, &len) == SENDGATE_OK);
    put_begin(to, id, 1, flags);
    put_record(to, SENDGATE_FCGI_TYPE_PARAMS, id, encoded, 10, 1);
    put_record(to, SENDGATE_FCGI_TYPE_PARAMS, id, encoded + 10, len - 10, 0);
    put_record(to, SENDGATE_FCGI_TYPE_PARAMS, id, "", 0, 0);
    put_record(to, SENDGATE_FCGI_TYPE_STDIN, id, content, strlen(content), 1);
    put_record(to, SENDGATE_FCGI_TYPE_STDIN, id, "", 0, 0);
}

/* What was made of it, as text: one word for each event, content as it is. */
struct seen {
    char words[2000];
    size_t len;
    int in_content;
};

static void see(struct seen *seen, const char *format, const void *data, size_t len)
{
    MUST(seen->len + len + 100 < sizeof seen->words);
    seen->len += (size_t)sprintf(seen->words + seen->len, "%s", format);
    memcpy(seen->words + seen->len, data, len);
    seen->len += len;
    seen->words[seen->len] = '\0';
}

static int same(sendgate_str a, sendgate_str b)
{
    return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0;
}

/* Feeds bytes; returns the last status. A request that has come is answered at once. */
static sendgate_status feed(sendgate_fcgi *fcgi, const uint8_t *data, size_t len, struct seen *seen)
{
    sendgate_status rc = SENDGATE_WANT_READ;
    for (size_t at = 0; at < len;) {
        sendgate_fcgi_event event;
        memset(&event, 0, sizeof event);
        event.size = sizeof event;
        size_t used = 0;
        /* From a block of just that length, so that a sanitizer sees what reads past it. */
        uint8_t *exact = malloc(len - at);
        MUST(exact != NULL);
        memcpy(exact, data + at, len - at);
        rc = sendgate_fcgi_feed(fcgi, exact, len - at, &used, &event);
        if (rc < 0) {
            free(exact);
            return rc;
        }
        CHECK(used > 0 && used <= len - at);
        if (rc == SENDGATE_WANT_READ)
            CHECK(event.kind == SENDGATE_FCGI_NOTHING && used == len - at);
        else if (event.kind == SENDGATE_FCGI_PARAMS) {
            CHECK_INT(event.n_params, N(params));
            for (size_t i = 0; i < event.n_params && i < N(params); i++)
                CHECK(same(event.params[i].name, params[i].name) && same(event.params[i].value, params[i].value));
            see(seen, event.keep_conn ? " params+" : " params", "", 0);
            CHECK_INT(event.request_id, ID);
        } else if (event.kind == SENDGATE_FCGI_STDIN && event.data.len > 0) {
            see(seen, seen->in_content ? "" : " ", event.data.ptr, event.data.len);
            CHECK(event.data.ptr >= (const char *)exact && event.data.ptr + event.data.len <= (const char *)exact + len - at);
        } else if (event.kind == SENDGATE_FCGI_STDIN) {
            see(seen, " end", "", 0);
            CHECK_STATUS(sendgate_fcgi_end(fcgi), SENDGATE_OK);
        } else if (event.kind == SENDGATE_FCGI_ABORT) {
            see(seen, " abort", "", 0);
            CHECK_STATUS(sendgate_fcgi_end(fcgi), SENDGATE_OK);
        } else if (event.kind == SENDGATE_FCGI_REPLY) {
            char what[40];
            snprintf(what, sizeof what, " reply%s:%d/%d", event.keep_conn ? "+" : "", event.data.ptr[1],
                     event.data.len > 12 ? event.data.ptr[12] : -1);
            see(seen, what, "", 0);
        }
        seen->in_content = rc == SENDGATE_WANT_READ ? seen->in_content : event.kind == SENDGATE_FCGI_STDIN;
        at += used;
        free(exact);
    }
    return rc;
}

static sendgate_fcgi *fcgi_make(uint32_t max_params)
{
    sendgate_fcgi_options options;
    sendgate_fcgi *fcgi = NULL;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.max_params = max_params;
    MUST(sendgate_fcgi_new(max_params != 0 ? &options : NULL, &fcgi) == SENDGATE_OK);
    return fcgi;
}

static void cut_anywhere(void)
{
    struct bytes stream = {.len = 0};
    put_request(&stream, ID, 1, "some content");
    put_record(&stream, 77, 0, "x", 1, 1);
    put_begin(&stream, 5, 2, 1);
    put_record(&stream, SENDGATE_FCGI_TYPE_GET_VALUES, 0, "\x0e\0FCGI_MAX_CONNS", 16, 0);
    put_begin(&stream, ID, 1, 0);
    put_record(&stream, SENDGATE_FCGI_TYPE_ABORT_REQUEST, ID, "", 0, 0);
    put_request(&stream, ID, 0, "");
    const char *want = " params+ some content end reply+:11/0 reply+:3/3 reply+:10/71 reply:3/0 params end";
    for (size_t cut = 0; cut <= stream.len; cut++) {
        check_case("cut at %zu", cut);
        struct seen seen = {.len = 0};
        sendgate_fcgi *fcgi = fcgi_make(0);
        if (cut < stream.len && cut > 0) {
            feed(fcgi, stream.data, cut, &seen);
            feed(fcgi, stream.data + cut, stream.len - cut, &seen);
        } else if (cut == 0) {
            feed(fcgi, stream.data, stream.len, &seen);
        } else {
            for (size_t i = 0; i < stream.len; i++)
                feed(fcgi, stream.data + i, 1, &seen);
        }
        CHECK(strcmp(seen.words, want) == 0);
        if (strcmp(seen.words, want) != 0)
            fprintf(stderr, "%s\n%s\n", seen.words, want);
        sendgate_fcgi_free(fcgi);
    }
}

static void limits_and_mistakes(void)
{
    check_case("too many parameters");
    struct bytes stream = {.len = 0};
    struct seen seen = {.len = 0};
    sendgate_fcgi *fcgi = fcgi_make(100);
    put_request(&stream, ID, 1, "");
    CHECK_STATUS(feed(fcgi, stream.data, stream.len, &seen), SENDGATE_WANT_READ);
    CHECK(strncmp(seen.words, " reply+:6/", 10) == 0 && strstr(seen.words, "params") == NULL);
    sendgate_fcgi_free(fcgi);

    check_case("HTTP");
    fcgi = fcgi_make(0);
    for (int i = 0; i < 3; i++)
        CHECK_STATUS(feed(fcgi, (const uint8_t *)"GET / HTTP/1.1\r\n\r\n", 18, &seen), SENDGATE_ERR_FASTCGI);
    sendgate_fcgi_free(fcgi);

    check_case("misuse");
    sendgate_fcgi_event event;
    memset(&event, 0, sizeof event);
    event.size = sizeof event;
    size_t used = 0;
    fcgi = fcgi_make(0);
    CHECK_STATUS(sendgate_fcgi_new(NULL, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_feed(NULL, (const uint8_t *)"", 0, &used, &event), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_feed(fcgi, NULL, 1, &used, &event), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_feed(fcgi, (const uint8_t *)"", 0, NULL, &event), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_feed(fcgi, (const uint8_t *)"", 0, &used, NULL), SENDGATE_ERR_INVALID);
    event.size = 3;
    CHECK_STATUS(sendgate_fcgi_feed(fcgi, (const uint8_t *)"", 0, &used, &event), SENDGATE_ERR_SIZE);
    event.size = sizeof event;
    CHECK_STATUS(sendgate_fcgi_feed(fcgi, NULL, 0, &used, &event), SENDGATE_WANT_READ);
    sendgate_fcgi_options reserved;
    sendgate_fcgi *none = NULL;
    memset(&reserved, 0, sizeof reserved);
    reserved.size = sizeof reserved;
    reserved.reserved = 1;
    CHECK_STATUS(sendgate_fcgi_new(&reserved, &none), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_end(NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_end(fcgi), SENDGATE_OK);
    sendgate_fcgi_free(fcgi);
    sendgate_fcgi_free(NULL);
}

static void records_and_parameters(void)
{
    check_case("headers");
    uint8_t out[16];
    uint32_t padding = 9;
    for (uint32_t len = 0; len <= 65535; len += len < 20 ? 1 : 1021) {
        CHECK_STATUS(sendgate_fcgi_header(out, 6, ID, len, &padding), SENDGATE_OK);
        CHECK((len + padding) % 8 == 0 && padding < 8 && out[6] == padding && out[4] * 256u + out[5] == len);
    }
    CHECK_STATUS(sendgate_fcgi_header(out, 255, 65535, 65535, NULL), SENDGATE_OK);
    CHECK(memcmp(out, "\1\xff\xff\xff\xff\xff\0\0", 8) == 0);
    CHECK_STATUS(sendgate_fcgi_header(out, 256, 1, 0, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_header(out, 1, 65536, 0, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_header(out, 1, 1, 65536, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_header(NULL, 1, 1, 0, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_end_request(out, 1, 0x01020304, SENDGATE_FCGI_STATUS_OVERLOADED), SENDGATE_OK);
    CHECK(memcmp(out, "\1\3\0\1\0\10\0\0\1\2\3\4\2\0\0\0", 16) == 0);
    CHECK_STATUS(sendgate_fcgi_end_request(out, 65536, 0, 0), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_end_request(out, 1, 0, 256), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_end_request(NULL, 1, 0, 0), SENDGATE_ERR_INVALID);

    check_case("parameters");
    char *longer = calloc(1, 70000);
    MUST(longer != NULL);
    sendgate_field pairs[] = {{text("A"), text_of(longer, 70000)}, {text_of(longer, 128), text("b")}, {text(""), text("")}};
    size_t len = 0, n = 0;
    CHECK_STATUS(sendgate_fcgi_encode_params(pairs, 3, NULL, 0, &len), SENDGATE_ERR_NO_SPACE);
    CHECK_INT(len, 5 + 1 + 70000 + 5 + 128 + 1 + 2);
    uint8_t *encoded = malloc(len);
    MUST(encoded != NULL);
    CHECK_STATUS(sendgate_fcgi_encode_params(pairs, 3, encoded, len, &len), SENDGATE_OK);
    sendgate_field decoded[3];
    CHECK_STATUS(sendgate_fcgi_decode_params(encoded, len, decoded, 2, &n), SENDGATE_ERR_NO_SPACE);
    CHECK_INT(n, 3);
    CHECK_STATUS(sendgate_fcgi_decode_params(encoded, len, decoded, 3, &n), SENDGATE_OK);
    for (size_t i = 0; i < 3; i++)
        CHECK(same(decoded[i].name, pairs[i].name) && same(decoded[i].value, pairs[i].value));
    CHECK_STATUS(sendgate_fcgi_decode_params(encoded, len - 1, decoded, 3, &n), SENDGATE_ERR_FASTCGI);
    CHECK_STATUS(sendgate_fcgi_decode_params(NULL, 0, NULL, 0, &n), SENDGATE_OK);
    CHECK_INT(n, 0);
    CHECK_STATUS(sendgate_fcgi_decode_params(encoded, len, decoded, 3, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_fcgi_encode_params(pairs, 3, encoded, len, NULL), SENDGATE_ERR_INVALID);
    free(encoded);
    free(longer);

    check_case("a request");
    sendgate_request req;
    memset(&req, 0, sizeof req);
    req.size = sizeof req;
    req.target = text("/kept");
    CHECK_STATUS(sendgate_request_from_params(&req, params, N(params)), SENDGATE_OK);
    CHECK(same(req.method, text("GET")) && req.version == 10 && req.flags == 0 && same(req.connection, text("close")));
    CHECK(same(req.range, text("bytes=1-2")) && same(req.if_range, text("\"a\"")) && same(req.if_match, text("\"b\"")));
    CHECK(same(req.if_none_match, text("\"c\"")) && same(req.if_modified_since, text("d")));
    CHECK(same(req.if_unmodified_since, text("e")) && same(req.target, text("/kept")));
    CHECK_STATUS(sendgate_request_from_params(&req, NULL, 0), SENDGATE_OK);
    CHECK(req.method.ptr == NULL && req.version == 11 && req.range.ptr == NULL);
    CHECK_STATUS(sendgate_request_from_params(NULL, NULL, 0), SENDGATE_ERR_INVALID);
}

/* ---- Answers in records ----------------------------------------------------------------------- */

#define LARGE 200000

static int file, sockets[2];

/* Takes records apart, in place. Returns the length of what they hold; -1: they are not as they should be. */
static long unframe(char *data, size_t len, int ends)
{
    size_t at = 0, out = 0;
    int ended = 0;
    while (len - at >= 8) {
        const uint8_t *head = (const uint8_t *)data + at;
        size_t content = head[4] * 256u + head[5];
        if (ended == 2 || head[0] != 1 || head[2] * 256 + head[3] != ID || head[6] != 0 || at + 8 + content > len)
            return -1;
        if (head[1] == SENDGATE_FCGI_TYPE_STDOUT && ended == 0) {
            ended = content == 0;
            memmove(data + out, data + at + 8, content);
            out += content;
        } else if (head[1] == SENDGATE_FCGI_TYPE_END_REQUEST && ended == 1 && content == 8) {
            ended = 2;
        } else {
            return -1;
        }
        at += 8 + content;
    }
    return at == len && ended == (ends ? 2 : 0) ? (long)out : -1;
}

/* What the peer has got is the answer that was asked for: the head that the library makes, and the content. */
static void check_framed(struct peer *peer, const struct ask *ask, const sendgate_decision *decision)
{
    char head[2000];
    size_t head_len = 0;
    long len = unframe(peer->data, peer->len, 1);
    CHECK(len >= 0);
    MUST(sendgate_head_bytes(&ask->exchange, head, sizeof head, &head_len) == SENDGATE_OK);
    CHECK_INT(len, (long long)(head_len + decision->body_length));
    CHECK(len >= (long)head_len && memcmp(peer->data, head, head_len) == 0);
    if (decision->n_ranges < 2 && len > (long)head_len)
        CHECK(is_pattern(peer->data + head_len, (size_t)len - head_len, decision->http_status == 206 ? 5000 : 0));
}

static const struct {
    const char *name, *range, *method;
    size_t len;
} answers[] = {
    {"small", NULL, "GET", 1000}, {"head", NULL, "HEAD", 1000},          {"16 KiB", NULL, "GET", 16384},
    {"large", NULL, "GET", LARGE}, {"a range", "bytes=5000-", "GET", LARGE}, {"ranges", "bytes=0-9,5000-150000,-1", "GET", LARGE},
    {"one record", NULL, "GET", 65000}, {"none", "bytes=999999-", "GET", LARGE}, {"empty", NULL, "GET", 0},
};

enum way { RESPOND, STEP, SUBMIT, TRY_NOW, STREAM, N_WAYS };

static void answer_by(enum way way, struct ask *ask, int in_memory, const char *content, size_t len)
{
    sendgate_transfer *transfer = NULL;
    sendgate_sender *sender = NULL;
    sendgate_stream *stream = NULL;
    sendgate_completion done;
    sendgate_status rc = SENDGATE_OK;
    switch (way) {
    case RESPOND:
        rc = sendgate_respond(&ask->exchange, &ask->sink, &ask->result);
        break;
    case STEP:
        MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
        MUST(sendgate_transfer_start(transfer, &ask->exchange, &ask->sink) == SENDGATE_OK);
        while ((rc = sendgate_transfer_step(transfer, 10000, &ask->result)) > 0)
            if (rc == SENDGATE_WANT_WRITE)
                usleep(100);
        sendgate_transfer_free(transfer);
        break;
    case SUBMIT:
    case TRY_NOW:
        sender = sender_make(NULL);
        ask->sink.flags |= way == TRY_NOW ? SENDGATE_SINK_TRY_NOW : 0;
        rc = sendgate_sender_submit(sender, &ask->exchange, &ask->sink, NULL, NULL, &ask->result);
        if (rc == SENDGATE_PENDING) {
            sender_next(sender, &done);
            rc = done.status;
            ask->result.connection = done.connection;
        }
        sendgate_sender_free(sender);
        break;
    default:
        (void)in_memory;
        ask->rep.kind = SENDGATE_REP_STREAM;
        ask->rep.flags = ask->rep.flags | SENDGATE_REP_SEEKABLE;
        MUST(sendgate_stream_new(&stream) == SENDGATE_OK);
        MUST(sendgate_stream_start(stream, &ask->exchange, &ask->sink, NULL) == SENDGATE_OK);
        for (sendgate_range next; sendgate_stream_next(stream, &next) == SENDGATE_OK && next.length > 0;) {
            MUST(next.offset + next.length <= len);
            CHECK_STATUS(sendgate_stream_write(stream, (const uint8_t *)content + next.offset,
                                               next.length < 70001 ? next.length : 70001, NULL, NULL),
                         SENDGATE_OK);
        }
        rc = sendgate_stream_end(stream, NULL, 0, &ask->result);
        sendgate_stream_free(stream);
    }
    CHECK_STATUS(rc, SENDGATE_OK);
}

static void all_ways(void)
{
    static char content[LARGE];
    pattern_fill(content, sizeof content);
    for (size_t i = 0; i < N(answers); i++)
        for (int keep = 0; keep < 2; keep++)
            for (int in_memory = 0; in_memory < 2; in_memory++)
                for (int kind = 0; kind < 2; kind++)
                    for (int way = 0; way < N_WAYS; way++) {
                        check_case("%s, keep %d, memory %d, %s, way %d", answers[i].name, keep, in_memory,
                                   kind_name(kind), way);
                        struct peer peer;
                        struct ask ask;
                        sendgate_decision decision;
                        int fd = file_make("content", answers[i].len);
                        make_pair(kind, way == STEP || way == TRY_NOW, sockets);
                        peer_init(&peer, sockets[1]);
                        peer_start(&peer);
                        if (in_memory)
                            ask_memory(&ask, content, answers[i].len, sockets[0]);
                        else
                            ask_file(&ask, fd, sockets[0]);
                        ask.exchange.head = SENDGATE_HEAD_CGI;
                        ask.exchange.now = 1700000000;
                        ask.exchange.seed = 5;
                        ask.request.method = text(answers[i].method);
                        if (answers[i].range != NULL)
                            ask.request.range = text(answers[i].range);
                        ask.sink.fcgi_request_id = ID;
                        ask.sink.flags |= keep ? SENDGATE_SINK_FCGI_KEEP : 0;
                        memset(&decision, 0, sizeof decision);
                        decision.size = sizeof decision;
                        MUST(sendgate_decide(&ask.exchange, NULL, 0, &decision) == SENDGATE_OK);
                        answer_by((enum way)way, &ask, in_memory, content, answers[i].len);
                        CHECK_INT(ask.result.connection, keep ? SENDGATE_CONN_REUSABLE : SENDGATE_CONN_CLOSE);
                        close(sockets[0]);
                        peer_join(&peer);
                        check_framed(&peer, &ask, &decision);
                        peer_free(&peer);
                        close(fd);
                    }
}

/* Half a megabyte, so that the peer can be where it should be. */
#define LONG 524288

static void a_file_that_ends_early(void)
{
    for (int ends_short = 0; ends_short < 2; ends_short++)
        for (int kind = 0; kind < 2; kind++) {
            check_case("ends short %d, %s", ends_short, kind_name(kind));
            struct peer peer;
            struct ask ask;
            int fd = file_make("short", LONG);
            make_pair(kind, 0, sockets);
            peer_init(&peer, sockets[1]);
            peer_start(&peer);
            ask_file(&ask, fd, sockets[0]);
            ask.exchange.head = SENDGATE_HEAD_CGI;
            ask.sink.fcgi_request_id = ID;
            ask.sink.flags |= ends_short ? SENDGATE_SINK_FCGI_END_SHORT : 0;
            MUST(truncate("short", LONG / 2 + 1) == 0);
            CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_TRUNCATED);
            CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN);
            close(sockets[0]);
            peer_join(&peer);
            /* Whole records and a proper end, or in the midst of a record. */
            long len = unframe(peer.data, peer.len, 1);
            CHECK(ends_short ? len > 0 && len % 65535 == 0 : len == -1);
            peer_free(&peer);
            close(fd);
        }
    check_case("before anything was sent");
    struct ask ask;
    int fd = file_make("short", 100);
    make_pair(UNIX_PAIR, 0, sockets);
    ask_file(&ask, fd, sockets[0]);
    ask.exchange.head = SENDGATE_HEAD_CGI;
    ask.sink.fcgi_request_id = ID;
    ask.sink.flags |= SENDGATE_SINK_FCGI_END_SHORT;
    MUST(truncate("short", 50) == 0);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_TRUNCATED);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    CHECK_INT(peer_drain(sockets[1]), 0);
    close(sockets[0]);
    close(sockets[1]);
    close(fd);
}

static void simple_calls(void)
{
    sendgate_field own = {text("X"), text("y")};
    for (int call = 0; call < 3; call++) {
        check_case("simple call %d", call);
        struct peer peer;
        struct ask ask;
        int fd = file_make("simple", 1000);
        make_pair(UNIX_PAIR, 0, sockets);
        peer_init(&peer, sockets[1]);
        peer_start(&peer);
        ask_file(&ask, fd, sockets[0]);
        ask.sink.fcgi_request_id = ID;
        const char *status = "Status: 200 OK\r\n";
        if (call == 0) {
            CHECK_STATUS(sendgate_response_file_fd(&ask.sink, NULL, 200, &own, 1, fd, &ask.result), SENDGATE_OK);
        } else if (call == 1) {
            status = "Status: 206 Partial Content\r\n";
            CHECK_STATUS(sendgate_response_file_fd_range(&ask.sink, NULL, 206, &own, 1, fd, 0, 10, &ask.result),
                         SENDGATE_OK);
        } else {
            status = "Status: 404 Not Found\r\n";
            close(fd);
            CHECK_STATUS(sendgate_response_file_conditional(&ask.sink, NULL, 200, &own, 1, "none", NULL, NULL, NULL,
                                                            NULL, &ask.result),
                         SENDGATE_OK);
        }
        CHECK_INT(ask.result.connection, SENDGATE_CONN_CLOSE);
        close(sockets[0]);
        peer_join(&peer);
        CHECK(unframe(peer.data, peer.len, 1) > 0 && strncmp(peer.data, status, strlen(status)) == 0);
        peer_free(&peer);
    }
}

/* Nagle's algorithm holds the end of an answer back until what sendfile has pushed out is acknowledged, which a peer may
 * put off. The kernel tells what has not left.
 */
static void the_end_leaves_at_once(void)
{
    int fd = file_make("nagle", 40000), off = 0, held = 0;
    make_pair(TCP_PAIR, 0, sockets);
    check_case("Nagle's algorithm holds back what is just sent");
    for (int i = 0; i < 100 && held == 0; i++) {
        MUST(setsockopt(sockets[1], IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off) == 0);
        MUST(send(sockets[0], "x", 1, 0) == 1);
        MUST(ioctl(sockets[0], SIOCOUTQNSD, &held) == 0);
    }
    CHECK(held > 0);
    for (int i = 0; i < 20; i++) {
        check_case("end of answer %d", i);
        int queued = 1, unsent = -1;
        while (queued > 0) {
            peer_drain(sockets[1]);
            MUST(ioctl(sockets[0], SIOCOUTQ, &queued) == 0);
        }
        MUST(setsockopt(sockets[1], IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off) == 0);
        struct ask ask;
        ask_file(&ask, fd, sockets[0]);
        ask.exchange.head = SENDGATE_HEAD_CGI;
        ask.sink.fcgi_request_id = ID;
        CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
        MUST(ioctl(sockets[0], SIOCOUTQNSD, &unsent) == 0);
        CHECK_INT(unsent, 0);
    }
    close(sockets[0]);
    close(sockets[1]);
    close(fd);
}

/* How the content ends, whoever makes the head, and what becomes of the connection. */
static void streams_of_unknown_length(void)
{
    static const uint32_t heads[] = {SENDGATE_HEAD_CGI, SENDGATE_HEAD_NONE, SENDGATE_HEAD_GIVEN};
    for (size_t i = 0; i < N(heads); i++)
        for (int framed = 0; framed < 2; framed++) {
            check_case("head %d, in records %d", (int)heads[i], framed);
            struct ask ask;
            char got[500];
            sendgate_stream *stream;
            sendgate_decision decision;
            memset(&decision, 0, sizeof decision);
            decision.size = sizeof decision;
            make_pair(UNIX_PAIR, 0, sockets);
            ask_memory(&ask, "", 0, sockets[0]);
            ask.rep.kind = SENDGATE_REP_STREAM;
            ask.rep.flags = SENDGATE_REP_UNSIZED;
            ask.exchange.head = heads[i];
            if (heads[i] == SENDGATE_HEAD_GIVEN)
                ask.exchange.head_text = text("given\r\n\r\n");
            ask.sink.fcgi_request_id = framed ? ID : 0;
            ask.sink.flags |= framed ? SENDGATE_SINK_FCGI_KEEP : 0;
            MUST(sendgate_stream_new(&stream) == SENDGATE_OK);
            CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, &decision), SENDGATE_OK);
            int closes = framed || heads[i] == SENDGATE_HEAD_CGI;
            CHECK_INT(decision.framing, closes ? SENDGATE_FRAMING_CLOSE : SENDGATE_FRAMING_CHUNKED);
            CHECK_STATUS(sendgate_stream_write(stream, (const uint8_t *)"content", 7, NULL, NULL), SENDGATE_OK);
            CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_OK);
            CHECK_INT(ask.result.connection, closes && !framed ? SENDGATE_CONN_CLOSE : SENDGATE_CONN_REUSABLE);
            long n = peer_take(sockets[1], got, sizeof got);
            if (framed)
                n = unframe(got, (size_t)n, 1);
            CHECK(n > 0 && contains(got, (size_t)n, closes ? "content" : "7\r\ncontent\r\n0\r\n\r\n"));
            CHECK(!closes || !contains(got, (size_t)n, "7\r\ncontent"));
            sendgate_stream_free(stream);
            close(sockets[0]);
            close(sockets[1]);
        }
}

static void refused(void)
{
    struct ask ask;
    make_pair(UNIX_PAIR, 0, sockets);
    ask_file(&ask, file, sockets[0]);
    check_case("a status line");
    ask.sink.fcgi_request_id = ID;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    ask.exchange.head = SENDGATE_HEAD_CGI;
    check_case("an id that is too long");
    ask.sink.fcgi_request_id = 65536;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_INVALID);
    check_case("flags without an id");
    ask.sink.fcgi_request_id = 0;
    ask.sink.flags |= SENDGATE_SINK_FCGI_KEEP;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_INVALID);
    check_case("reserved");
    ask.sink.flags = 0;
    ask.sink.reserved = 1;
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_INT(peer_drain(sockets[1]), 0);
    close(sockets[0]);
    close(sockets[1]);
}

int main(void)
{
    check_begin();
    file = file_make("file", 1000);
    cut_anywhere();
    limits_and_mistakes();
    records_and_parameters();
    int before = open_fds();
    all_ways();
    a_file_that_ends_early();
    simple_calls();
    the_end_leaves_at_once();
    streams_of_unknown_length();
    refused();
    CHECK_INT(open_fds(), before);
    return check_end();
}
