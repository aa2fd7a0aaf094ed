/* Response splitting: a CR, LF or NUL in anything that reaches a head is refused, and nothing is written. */
#include "check.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)

#define ATTACK(name, bytes) {name, {bytes, sizeof(bytes) - 1}}
static const struct attack {
    const char *name;
    sendgate_str bytes;
} attacks[] = {
    ATTACK("CR", "a\rb"),
    ATTACK("LF", "a\nb"),
    ATTACK("NUL", "a\0b"),
    ATTACK("only CR", "\r"),
    ATTACK("only LF", "\n"),
    ATTACK("only NUL", "\0"),
    ATTACK("CRLF and a field", "a\r\nInjected: 1"),
    ATTACK("LF and a field", "a\nInjected: 1"),
    ATTACK("CR and a field", "a\rInjected: 1"),
    ATTACK("an answer", "a\r\n\r\nHTTP/1.1 200 OK\r\nInjected: 1"),
    ATTACK("leading CRLF", "\r\nInjected: 1"),
    ATTACK("trailing CRLF", "a\r\n"),
    ATTACK("a folded line", "a\r\n Injected: 1"),
};

/* Names that are no token (RFC 9110 5.1), besides those. */
static const char *const bad_names[] = {"", " X", "X ", "X Y", "X:", ":", "X\tY", "(X)", "X/Y", "X,Y", "\"X\"", "X\x7f", "\xc3\xa9", "X\x01"};

static int file, sockets[2];

static void nothing_written(void)
{
    CHECK_INT(peer_drain(sockets[1]), 0);
}

/* The exchange is refused at every door. */
static void refused(struct ask *ask)
{
    char head[4000], scratch[4000];
    size_t len = 0, n = 0, needed = 0;
    sendgate_field fields[64];
    sendgate_transfer *transfer;
    ask->sink.fd = sockets[0];
    CHECK_STATUS(sendgate_head_bytes(&ask->exchange, head, sizeof head, &len), SENDGATE_ERR_FIELD);
    CHECK_STATUS(sendgate_head_fields(&ask->exchange, fields, N(fields), scratch, sizeof scratch, &n, &needed),
                 SENDGATE_ERR_FIELD);
    CHECK_STATUS(sendgate_respond(&ask->exchange, &ask->sink, &ask->result), SENDGATE_ERR_FIELD);
    check_result(&ask->result, SENDGATE_ERR_FIELD, ask->result.http_status, SENDGATE_CONN_UNTOUCHED);
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask->exchange, &ask->sink), SENDGATE_ERR_FIELD);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask->exchange, NULL), SENDGATE_ERR_FIELD);
    sendgate_transfer_free(transfer);
    nothing_written();
}

/* The same through the calls that answer with a list of fields. */
static void refused_field(const sendgate_field *field)
{
    struct ask ask;
    ask_file(&ask, file, sockets[0]);
    sendgate_field fields[2];
    fields[0].name = text("X-Good");
    fields[0].value = text("1");
    fields[1] = *field;
    sendgate_result *result = &ask.result;
    CHECK_STATUS(sendgate_response_file_fd(&ask.sink, NULL, 200, fields, 2, dup(file), result), SENDGATE_ERR_FIELD);
    CHECK_INT(result->connection, SENDGATE_CONN_UNTOUCHED);
    CHECK_STATUS(sendgate_response_file_fd_range(&ask.sink, NULL, 206, fields, 2, dup(file), 0, 10, result),
                 SENDGATE_ERR_FIELD);
    CHECK_STATUS(sendgate_response_file_conditional(&ask.sink, NULL, 200, fields, 2, "answer", NULL, NULL, NULL, NULL,
                                                    result),
                 SENDGATE_ERR_FIELD);
    CHECK_INT(result->connection, SENDGATE_CONN_UNTOUCHED);
    /* A 304, a 416 and a 404 drop fields: not before they are looked at. */
    CHECK_STATUS(sendgate_response_file_conditional(&ask.sink, NULL, 200, fields, 2, "answer", "*", NULL, NULL, NULL,
                                                    result),
                 SENDGATE_ERR_FIELD);
    CHECK_STATUS(sendgate_response_file_conditional(&ask.sink, NULL, 200, fields, 2, "answer", NULL, NULL,
                                                    "bytes=999999-", NULL, result),
                 SENDGATE_ERR_FIELD);
    CHECK_STATUS(sendgate_response_file_conditional(&ask.sink, NULL, 200, fields, 2, "missing", NULL, NULL, NULL, NULL,
                                                    result),
                 SENDGATE_ERR_FIELD);
    nothing_written();
}

static const uint32_t rules[] = {
    SENDGATE_RULE_DEFAULT,
    SENDGATE_RULE_OVERRIDE,
    SENDGATE_RULE_APPEND,
    SENDGATE_RULE_REMOVE,
    SENDGATE_RULE_DEFAULT | SENDGATE_RULE_FROZEN,
    SENDGATE_RULE_OVERRIDE | SENDGATE_RULE_FROZEN,
    SENDGATE_RULE_APPEND | SENDGATE_RULE_FROZEN,
};

static void one_header(struct ask *ask, sendgate_header *header, sendgate_str name, sendgate_str value, uint32_t rule)
{
    memset(header, 0, sizeof *header);
    header->field.name = name;
    header->field.value = value;
    header->rule = rule;
    ask_file(ask, file, sockets[0]);
    ask->exchange.headers = header;
    ask->exchange.n_headers = 1;
}

static void headers(void)
{
    static const char *const names[] = {"X-Test", "Content-Type", "ETag", "Last-Modified", "Vary", "Set-Cookie", "Date",
                                        "Content-Length", "Accept-Ranges", "Content-Encoding", "Connection", "Location"};
    struct ask ask;
    sendgate_header header;
    for (size_t r = 0; r < N(rules); r++) {
        for (size_t i = 0; i < N(attacks); i++) {
            check_case("name with %s, rule %u", attacks[i].name, (unsigned)rules[r]);
            one_header(&ask, &header, attacks[i].bytes, text("value"), rules[r]);
            refused(&ask);
            refused_field(&header.field);
            for (size_t n = 0; n < N(names); n++) {
                check_case("%s with %s, rule %u", names[n], attacks[i].name, (unsigned)rules[r]);
                one_header(&ask, &header, text(names[n]), attacks[i].bytes, rules[r]);
                if (rules[r] == SENDGATE_RULE_REMOVE) {
                    /* The value is ignored: sent it must not be. */
                    char head[2000];
                    size_t len = 0;
                    if (sendgate_head_bytes(&ask.exchange, head, sizeof head, &len) == SENDGATE_OK) {
                        CHECK(!contains(head, len, "Injected"));
                        CHECK(memchr(head, '\0', len) == NULL);
                    }
                    continue;
                }
                refused(&ask);
                /* The statuses that would drop the field. */
                ask.request.if_none_match = text("*");
                refused(&ask);
                ask.request.if_none_match = text_of(NULL, 0);
                ask.request.range = text("bytes=999999-");
                refused(&ask);
                if (r == 1)
                    refused_field(&header.field);
            }
        }
        for (size_t i = 0; i < N(bad_names); i++) {
            check_case("bad name %zu, rule %u", i, (unsigned)rules[r]);
            one_header(&ask, &header, text(bad_names[i]), text("value"), rules[r]);
            refused(&ask);
            if (r == 1)
                refused_field(&header.field);
        }
    }
    check_case("the second of two headers");
    sendgate_header two[2];
    one_header(&ask, &two[1], text("X-Test"), attacks[6].bytes, SENDGATE_RULE_DEFAULT);
    memset(&two[0], 0, sizeof two[0]);
    two[0].field.name = text("X-Good");
    two[0].field.value = text("1");
    ask.exchange.headers = two;
    ask.exchange.n_headers = 2;
    refused(&ask);
}

static void members(void)
{
    struct ask ask;
    for (size_t i = 0; i < N(attacks); i++) {
        check_case("content_type with %s", attacks[i].name);
        ask_file(&ask, file, sockets[0]);
        ask.rep.content_type = attacks[i].bytes;
        refused(&ask);
        /* In the parts of a multipart it would be in the body. */
        ask.request.range = text("bytes=0-0,5-5");
        refused(&ask);

        check_case("etag with %s", attacks[i].name);
        char etag[100];
        memset(etag, '"', sizeof etag);
        memcpy(etag + 1, attacks[i].bytes.ptr, attacks[i].bytes.len);
        ask_file(&ask, file, sockets[0]);
        ask.rep.etag = attacks[i].bytes;
        refused(&ask);
        ask.rep.etag = text_of(etag, attacks[i].bytes.len + 2);
        refused(&ask);
    }
}

/* What is the library's own: an application that sets it would announce something else than is sent. */
static void framing(void)
{
    static const char *const fields[][2] = {
        {"Content-Range", "bytes 0-9/10"}, {"Transfer-Encoding", "chunked"}, {"Connection", "keep-alive"},
        {"Content-Length", "999"},         {"Content-Length", "-1"},         {"Content-Length", "1000, 1000"},
        {"Content-Length", ""},            {"content-length", "01e3"},       {"TRANSFER-ENCODING", "identity"},
    };
    struct ask ask;
    sendgate_header header;
    for (size_t i = 0; i < N(fields); i++) {
        for (size_t r = 0; r < N(rules); r++) {
            if (rules[r] == SENDGATE_RULE_REMOVE && i >= 3 && i <= 7)
                continue; /* the value is ignored, and removing Content-Length is no lie */
            check_case("%s: %s, rule %u", fields[i][0], fields[i][1], (unsigned)rules[r]);
            one_header(&ask, &header, text(fields[i][0]), text(fields[i][1]), rules[r]);
            refused(&ask);
        }
    }
    check_case("the length that is announced anyway");
    char head[2000], value[100];
    size_t len = 0;
    one_header(&ask, &header, text("Content-Length"), text("1000"), SENDGATE_RULE_OVERRIDE);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, head, sizeof head, &len), SENDGATE_OK);
    struct answer answer;
    answer_of(&answer, head, len);
    CHECK_INT(answer_field(&answer, "Content-Length", value, sizeof value), 1);
}

/* Nothing of the request reaches a head. */
static void requests(void)
{
    char head[4000];
    size_t len;
    for (size_t i = 0; i < N(attacks); i++) {
        for (int method = 0; method < 2; method++) {
            check_case("a request with %s%s", attacks[i].name, method ? " in its method too" : "");
            struct ask ask;
            ask_file(&ask, file, sockets[0]);
            sendgate_request *request = &ask.request;
            request->connection = request->if_match = request->if_none_match = request->if_modified_since = attacks[i].bytes;
            request->if_unmodified_since = request->if_range = request->range = request->target = attacks[i].bytes;
            if (method)
                request->method = attacks[i].bytes;
            len = 0;
            if (sendgate_head_bytes(&ask.exchange, head, sizeof head, &len) == SENDGATE_OK) {
                CHECK(!contains(head, len, "Injected"));
                CHECK(memchr(head, '\0', len) == NULL);
                struct answer answer;
                answer_of(&answer, head, len);
                CHECK(answer.status != 0 && answer.body_len == 0);
            }
        }
    }
}

/* The flat call takes header lines, so that one line more is no attack; but each must be a field. */
static void flat(void)
{
    static const char *const bad[] = {
        "X: a\rb\r\n",
        "X: a\nb\r\n",
        "X: a\nInjected: 1\r\n",
        "X: a\rInjected: 1\r\n",
        "X: a\r\n\r\nHTTP/1.1 200 OK\r\nInjected: 1\r\n",
        "\r\nInjected: 1\r\n",
        "X: a\r\n Injected: 1\r\n",
        "X: a\r\n\tInjected: 1\r\n",
        " X: a\r\n",
        "X : a\r\n",
        "X\r\n",
        ": a\r\n",
        "X Y: a\r\n",
        "X: a\r\nno field\r\n",
        "X: a\r\r\n",
        "\n",
        "\r",
        "Transfer-Encoding: chunked\r\n",
        "Content-Range: bytes 0-1/2\r\n",
        "Content-Length: 5\r\n",
        "Connection: close\r\n",
        "ETag: not quoted\r\n",
    };
    for (size_t i = 0; i < N(bad); i++) {
        check_case("flat call, response headers %zu, \"%.*s...\"", i, (int)strcspn(bad[i], "\r\n"), bad[i]);
        uint32_t status = 0, connection = 99;
        uint64_t sent = 99;
        CHECK_STATUS(sendgate_respond_fd(sockets[0], file, "GET", 11, NULL, bad[i], 1000, &status, &connection, &sent),
                     SENDGATE_ERR_FIELD);
        nothing_written();
    }
}

/* The attacks are refused for what they are: the same calls with a harmless value work. */
static void harmless(void)
{
    check_case("harmless");
    struct ask ask;
    sendgate_header header;
    char head[2000];
    size_t len = 0;
    for (size_t r = 0; r < N(rules); r++) {
        one_header(&ask, &header, text("X-Test"), text("a\tb \x80\xff"), rules[r]);
        ask.rep.content_type = text("text/plain; charset=utf-8");
        CHECK_STATUS(sendgate_head_bytes(&ask.exchange, head, sizeof head, &len), SENDGATE_OK);
        CHECK_INT(contains(head, len, "\r\nX-Test: a\tb \x80\xff\r\n"), rules[r] != SENDGATE_RULE_REMOVE);
    }
    static const char *const good[] = {"X: a\r\n", "X: a\r\nY: b\r\n", "X: a", "X:a\r\n", "", NULL};
    for (size_t i = 0; i < N(good); i++) {
        static char received[4000];
        CHECK_STATUS(sendgate_respond_fd(sockets[0], file, NULL, 0, NULL, good[i], 0, NULL, NULL, NULL), SENDGATE_OK);
        len = 0;
        for (long n; (n = peer_take(sockets[1], received + len, sizeof received - len)) > 0;)
            len += (size_t)n;
        CHECK_INT(contains(received, len, "\r\nX: a\r\n"), i < 4);
    }
}

int main(void)
{
    check_begin();
    file = file_make("answer", 1000);
    make_pair(UNIX_PAIR, 1, sockets);
    int before = open_fds();
    headers();
    members();
    framing();
    requests();
    flat();
    harmless();
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    close(file);
    close(sockets[0]);
    close(sockets[1]);
    return check_end();
}
