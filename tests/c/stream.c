/* Streams on real sockets: every way in which content ends, each piece with the peer before the next is made, and all
 * that can go wrong on the way. What the peer gets is read by this program's own reader.
 */
#include "flight.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define LENGTH 10000
#define ETAG "\"tag\""
#define DATE "Sun, 06 Nov 1994 08:49:37 GMT"
#define MTIME 784111777

static uint8_t content[1 << 20];

static sendgate_stream *new_stream(void)
{
    sendgate_stream *stream = NULL;
    MUST(sendgate_stream_new(&stream) == SENDGATE_OK && stream != NULL);
    return stream;
}

/* GET for a stream of `length` bytes; -1: nobody knows how many. */
static void ask_stream(struct ask *ask, long long length, int sock)
{
    ask_memory(ask, NULL, 0, sock);
    ask->rep.kind = SENDGATE_REP_STREAM;
    ask->rep.length = length < 0 ? 0 : (uint64_t)length;
    ask->rep.flags = length < 0 ? SENDGATE_REP_UNSIZED : 0;
    ask->exchange.now = 1700000000;
    ask->exchange.seed = 7;
}

/* As check_result. The length of what nobody knows the length of is 0 until it is complete. */
static void check_outcome(const sendgate_result *result, sendgate_status status, uint32_t http_status,
                          uint32_t connection)
{
    sendgate_result known = *result;
    if (status != SENDGATE_OK && known.body_length == 0)
        known.body_length = known.body_sent;
    check_result(&known, status, http_status, connection);
}

/* ---- The other end ---- */

struct wire {
    int fd;
    char data[1 << 20];
    size_t len;
};
static struct wire wire;

/* Read until so many bytes are there, and no more. */
static void wire_read(size_t until)
{
    while (wire.len < until) {
        MUST(until <= sizeof wire.data);
        ssize_t n = recv(wire.fd, wire.data + wire.len, sizeof wire.data - wire.len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (!CHECK(n > 0))
            return;
        wire.len += (size_t)n;
    }
    CHECK_INT(wire.len, until);
    char byte;
    CHECK_INT(peer_take(wire.fd, &byte, 1), 0);
}

/* Read to the end of the connection. */
static void wire_read_all(void)
{
    for (ssize_t n; (n = recv(wire.fd, wire.data + wire.len, sizeof wire.data - wire.len, 0)) > 0;)
        wire.len += (size_t)n;
}

static const char *find(const char *from, const char *end, const char *bytes)
{
    return memmem(from, (size_t)(end - from), bytes, strlen(bytes));
}

/* Takes content in chunks apart. What the chunks hold goes to `out`, their sizes to `sizes`; returns what is behind
 * the last chunk's line, the trailers, or NULL if it is malformed.
 */
static const char *dechunk(const char *at, const char *end, char *out, size_t *out_len, size_t *sizes, size_t *n_sizes)
{
    *out_len = *n_sizes = 0;
    for (;;) {
        size_t size = 0;
        const char *digits = at;
        for (; at < end && *at != '\r'; at++) {
            const char *found = strchr("0123456789abcdef", *at);
            if (found == NULL || *at == '\0')
                return NULL;
            size = size * 16 + (size_t)(found - "0123456789abcdef");
        }
        /* No leading zeros, and no extensions. */
        if (at == digits || end - at < 2 || at[1] != '\n' || (*digits == '0' && at - digits > 1))
            return NULL;
        at += 2;
        if (size == 0)
            return at;
        if ((size_t)(end - at) < size + 2 || memcmp(at + size, "\r\n", 2) != 0)
            return NULL;
        memcpy(out + *out_len, at, size);
        *out_len += size;
        sizes[(*n_sizes)++] = size;
        at += size + 2;
    }
}

static size_t digits_of(size_t number)
{
    char text[20];
    return (size_t)snprintf(text, sizeof text, "%zx", number);
}

/* ---- Every way in which content ends ---- */

static const struct shape {
    const char *name;
    const char *method;
    uint32_t version;
    long long length;
    int seekable;
    const char *range;
    const char *if_none_match;
    const char *if_match;
    uint32_t own_status;
    uint32_t head;
    uint32_t status;
    uint32_t framing;
    uint32_t connection;
    size_t n;
    sendgate_range parts[3];
} shapes[] = {
    {"counted", "GET", 11, LENGTH, 0, NULL, NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_LENGTH, 1, 1, {{0, LENGTH}}},
    {"counted, HTTP/1.0", "GET", 10, LENGTH, 0, NULL, NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_LENGTH, 2, 1, {{0, LENGTH}}},
    {"empty", "GET", 11, 0, 0, NULL, NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_LENGTH, 1, 0, {{0, 0}}},
    {"counted, can't seek", "GET", 11, LENGTH, 0, "bytes=0-9", NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_LENGTH, 1, 1, {{0, LENGTH}}},
    {"counted, HEAD", "HEAD", 11, LENGTH, 1, "bytes=0-9", NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_LENGTH, 1, 0, {{0, 0}}},
    {"counted, 304", "GET", 11, LENGTH, 0, NULL, ETAG, NULL, 0, 0, 304, SENDGATE_FRAMING_NONE, 1, 0, {{0, 0}}},
    {"counted, 412", "GET", 11, LENGTH, 0, NULL, NULL, "\"other\"", 0, 0, 412, SENDGATE_FRAMING_LENGTH, 1, 0, {{0, 0}}},
    {"counted, CGI", "GET", 11, LENGTH, 0, NULL, NULL, NULL, 0, SENDGATE_HEAD_CGI, 200, SENDGATE_FRAMING_LENGTH, 1, 1, {{0, LENGTH}}},
    {"counted, no head", "GET", 11, LENGTH, 0, NULL, NULL, NULL, 0, SENDGATE_HEAD_NONE, 200, SENDGATE_FRAMING_LENGTH, 1, 1, {{0, LENGTH}}},
    {"counted, own status", "GET", 11, LENGTH, 1, "bytes=0-9", ETAG, NULL, 404, 0, 404, SENDGATE_FRAMING_LENGTH, 1, 1, {{0, LENGTH}}},
    {"a part", "GET", 11, LENGTH, 1, "bytes=5000-6999", NULL, NULL, 0, 0, 206, SENDGATE_FRAMING_LENGTH, 1, 1, {{5000, 2000}}},
    {"several parts", "GET", 11, LENGTH, 1, "bytes=9000-,5-9,2000-3999", NULL, NULL, 0, 0, 206, SENDGATE_FRAMING_LENGTH, 1, 3,
     {{9000, 1000}, {5, 5}, {2000, 2000}}},
    {"416", "GET", 11, LENGTH, 1, "bytes=10000-", NULL, NULL, 0, 0, 416, SENDGATE_FRAMING_LENGTH, 1, 0, {{0, 0}}},
    {"unsized", "GET", 11, -1, 0, NULL, NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_CHUNKED, 1, 1, {{0, LENGTH}}},
    {"unsized, a range", "GET", 11, -1, 0, "bytes=0-9", NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_CHUNKED, 1, 1, {{0, LENGTH}}},
    {"unsized, HTTP/1.0", "GET", 10, -1, 0, NULL, NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_CLOSE, 2, 1, {{0, LENGTH}}},
    {"unsized, HEAD", "HEAD", 11, -1, 0, NULL, NULL, NULL, 0, 0, 200, SENDGATE_FRAMING_NONE, 1, 0, {{0, 0}}},
    {"unsized, 304", "GET", 11, -1, 0, NULL, ETAG, NULL, 0, 0, 304, SENDGATE_FRAMING_NONE, 1, 0, {{0, 0}}},
    {"unsized, 412", "GET", 11, -1, 0, NULL, NULL, "\"other\"", 0, 0, 412, SENDGATE_FRAMING_LENGTH, 1, 0, {{0, 0}}},
    {"unsized, CGI", "GET", 11, -1, 0, NULL, NULL, NULL, 0, SENDGATE_HEAD_CGI, 200, SENDGATE_FRAMING_CLOSE, 2, 1, {{0, LENGTH}}},
    {"unsized, no head", "GET", 11, -1, 0, NULL, NULL, NULL, 0, SENDGATE_HEAD_NONE, 200, SENDGATE_FRAMING_CHUNKED, 1, 1, {{0, LENGTH}}},
    {"unsized, own status", "POST", 11, -1, 0, NULL, ETAG, NULL, 500, 0, 500, SENDGATE_FRAMING_CHUNKED, 1, 1, {{0, LENGTH}}},
    {"unsized, 204", "DELETE", 11, -1, 0, NULL, NULL, NULL, 204, 0, 204, SENDGATE_FRAMING_NONE, 1, 0, {{0, 0}}},
    {"unsized, 205", "POST", 11, -1, 0, NULL, NULL, NULL, 205, 0, 205, SENDGATE_FRAMING_LENGTH, 1, 0, {{0, 0}}},
};

static void ask_shape(struct ask *ask, const struct shape *shape, int sock)
{
    ask_stream(ask, shape->length, sock);
    ask->request.method = text(shape->method);
    ask->request.version = shape->version;
    if (shape->range != NULL)
        ask->request.range = text(shape->range);
    if (shape->if_none_match != NULL)
        ask->request.if_none_match = text(shape->if_none_match);
    if (shape->if_match != NULL)
        ask->request.if_match = text(shape->if_match);
    if (shape->seekable)
        ask->rep.flags |= SENDGATE_REP_SEEKABLE;
    ask->rep.etag = text(ETAG);
    ask->rep.flags |= SENDGATE_REP_HAS_MTIME;
    ask->rep.mtime = MTIME;
    ask->rep.content_type = text("text/x-test");
    ask->exchange.http_status = shape->own_status;
    ask->exchange.head = shape->head;
}

/* The head says what the shape says. */
static void check_head(const struct shape *shape, const struct answer *answer)
{
    char value[200];
    int lengths = answer_field(answer, "Content-Length", value, sizeof value);
    int codings = answer_field(answer, "Transfer-Encoding", value, sizeof value);
    CHECK_INT(lengths, shape->framing == SENDGATE_FRAMING_LENGTH);
    CHECK_INT(codings, shape->framing == SENDGATE_FRAMING_CHUNKED);
    if (codings == 1)
        CHECK(strcmp(value, "chunked") == 0);
    CHECK_INT(answer->status, shape->status);
    answer_field(answer, "Connection", value, sizeof value);
    CHECK_INT(strcmp(value, "close") == 0, shape->connection == SENDGATE_CONN_CLOSE && shape->head != SENDGATE_HEAD_CGI);
    int has_tag = answer_field(answer, "ETag", value, sizeof value);
    if (shape->status == 200 || shape->status == 206 || shape->status == 304)
        CHECK(has_tag == 1 && strcmp(value, ETAG) == 0);
    if (shape->status == 200 || shape->status == 206)
        CHECK(answer_field(answer, "Last-Modified", value, sizeof value) == 1 && strcmp(value, DATE) == 0);
    if (shape->status == 200)
        CHECK_INT(answer_field(answer, "Accept-Ranges", value, sizeof value), shape->seekable);
}

/* All that the peer has got is this answer, and its content in chunks is what was written. */
static void check_wire(const struct shape *shape, const sendgate_result *result, const char *trailers)
{
    static char flat[LENGTH + 1000], head[2000];
    static size_t sizes[LENGTH];
    size_t n_sizes = 0, flat_len = 0;
    struct answer answer;
    const char *end = wire.data + wire.len;
    memset(&answer, 0, sizeof answer);
    if (shape->head == SENDGATE_HEAD_CGI) {
        const char *empty = find(wire.data, end, "\r\n\r\n");
        char line[20];
        if (!CHECK(empty != NULL))
            return;
        snprintf(line, sizeof line, "Status: %u ", (unsigned)shape->status);
        CHECK(strncmp(wire.data, line, strlen(line)) == 0);
        answer.status = (int)shape->status;
        answer.head = wire.data;
        answer.head_len = (size_t)(empty - wire.data) + 4;
    } else if (shape->head == SENDGATE_HEAD_NONE) {
        answer.status = (int)shape->status;
        answer.head = head;
    } else {
        answer_of(&answer, wire.data, wire.len);
    }
    if (!CHECK(answer.status != 0))
        return;
    if (shape->head != SENDGATE_HEAD_NONE)
        check_head(shape, &answer);
    CHECK_INT(result->head_sent, answer.head_len);
    answer.body = wire.data + answer.head_len;
    answer.body_len = wire.len - answer.head_len;
    if (shape->framing == SENDGATE_FRAMING_CHUNKED) {
        const char *behind = dechunk(answer.body, end, flat, &flat_len, sizes, &n_sizes);
        if (!CHECK(behind != NULL))
            return;
        CHECK((size_t)(end - behind) == strlen(trailers) && memcmp(behind, trailers, strlen(trailers)) == 0);
        answer.body = flat;
        answer.body_len = flat_len;
    } else if (shape->framing == SENDGATE_FRAMING_LENGTH && strcmp(shape->method, "HEAD") != 0 &&
               shape->head != SENDGATE_HEAD_NONE) {
        CHECK_INT(answer_number(&answer, "Content-Length"), answer.body_len);
    }
    CHECK_INT(result->body_sent, answer.body_len);
    if (shape->head == SENDGATE_HEAD_NONE)
        CHECK(answer.body_len == LENGTH && is_pattern(answer.body, LENGTH, 0));
    else
        check_content(&answer, shape->parts, shape->n, LENGTH);
}

static const sendgate_field trailers[] = {
    {{"Content-Digest", 14}, {"sha-256=:x:", 11}},
    {{"X-Empty", 7}, {NULL, 0}},
};
static const char trailer_lines[] = "Content-Digest: sha-256=:x:\r\nX-Empty: \r\n\r\n";

/* What the stream asks for next. */
static sendgate_range next_of(sendgate_stream *stream)
{
    sendgate_range next = {99, 99};
    CHECK_STATUS(sendgate_stream_next(stream, &next), SENDGATE_OK);
    return next;
}

/* The whole of it, in pieces of this size, each with the peer before the next is made. */
static void run_shape(sendgate_stream *stream, struct ask *ask, const struct shape *shape, size_t piece, int with_trailers)
{
    sendgate_decision decision;
    size_t written, framing = 0, made = 0, before = wire.len;
    MUST(before == 0);
    memset(&decision, 0, sizeof decision);
    decision.size = sizeof decision;
    if (!CHECK_STATUS(sendgate_stream_start(stream, &ask->exchange, &ask->sink, &decision), SENDGATE_OK))
        return;
    CHECK_INT(decision.http_status, shape->status);
    CHECK_INT(decision.framing, shape->framing);
    CHECK_INT(decision.reserved, 0);
    CHECK_INT(decision.n_ranges, shape->status == 206 ? shape->n : 0);
    CHECK_INT(decision.keep_alive, shape->connection == SENDGATE_CONN_REUSABLE);
    wire_read(0);
    int unsized_ = shape->framing == SENDGATE_FRAMING_CHUNKED || shape->framing == SENDGATE_FRAMING_CLOSE;
    for (size_t part = 0; part < shape->n; part++) {
        for (size_t at = 0; at < shape->parts[part].length;) {
            size_t from = (size_t)shape->parts[part].offset + at, left = (size_t)shape->parts[part].length - at;
            size_t n = left < piece ? left : piece;
            sendgate_range next = next_of(stream);
            CHECK_INT(next.offset, from);
            CHECK(next.length == (unsized_ ? UINT64_MAX : left));
            CHECK_STATUS(sendgate_stream_write(stream, content + from, n, &written, &ask->result), SENDGATE_OK);
            CHECK_INT(written, n);
            CHECK_INT(ask->result.connection, SENDGATE_CONN_BROKEN);
            at += n;
            made += n;
            if (shape->framing == SENDGATE_FRAMING_CHUNKED)
                framing += digits_of(n) + 4;
            if (shape->n < 2)
                CHECK_INT(ask->result.body_sent, made);
            CHECK_INT(ask->result.body_length, unsized_ ? 0 : decision.body_length);
            wire_read((size_t)(ask->result.head_sent + ask->result.body_sent) + framing);
            CHECK(made == 0 || memcmp(wire.data + wire.len - (decision.body_length == ask->result.body_sent && shape->n > 1
                                                                  ? 0
                                                                  : n + (framing ? 2 : 0)),
                                      content + from,
                                      decision.body_length == ask->result.body_sent && shape->n > 1 ? 0 : n) == 0);
        }
    }
    CHECK(next_of(stream).length == (unsized_ ? UINT64_MAX : 0));
    if (shape->n == 0 && shape->length != 0) {
        /* What is produced although there is no content in this answer. */
        CHECK_STATUS(sendgate_stream_write(stream, content, 3 * LENGTH, &written, &ask->result), SENDGATE_OK);
        CHECK_INT(written, 3 * LENGTH);
        CHECK_INT(ask->result.body_sent, 0);
        wire_read((size_t)ask->result.head_sent);
    }
    CHECK_STATUS(sendgate_stream_end(stream, trailers, with_trailers ? 2 : 0, &ask->result), SENDGATE_OK);
    check_outcome(&ask->result, SENDGATE_OK, shape->status, shape->connection);
    const char *tail = with_trailers ? trailer_lines : "\r\n";
    if (shape->framing == SENDGATE_FRAMING_CHUNKED)
        framing += 3 + strlen(tail);
    wire_read((size_t)(ask->result.head_sent + ask->result.body_sent) + framing);
    check_wire(shape, &ask->result, tail);
    /* Once more says the same, and sends nothing. */
    sendgate_result again = ask->result;
    CHECK_STATUS(sendgate_stream_end(stream, trailers, 2, &again), SENDGATE_OK);
    CHECK(memcmp(&again, &ask->result, sizeof again) == 0);
    CHECK_STATUS(sendgate_stream_write(stream, content, 1, &written, NULL), SENDGATE_ERR_INVALID);
    CHECK_INT(written, 0);
    wire_read(wire.len);
}

struct options {
    int flags, nodelay, cork;
};

static int tcp_option(int sock, int name)
{
    int value = -1;
    socklen_t len = sizeof value;
    MUST(getsockopt(sock, IPPROTO_TCP, name, &value, &len) == 0);
    return value;
}

static struct options options_of(enum kind kind, int sock)
{
    struct options options = {fcntl(sock, F_GETFL), 0, 0};
    if (kind == TCP_PAIR) {
        options.nodelay = tcp_option(sock, TCP_NODELAY);
        options.cork = tcp_option(sock, TCP_CORK);
    }
    return options;
}

static void every_shape(void)
{
    sendgate_stream *stream = new_stream();
    for (int variant = 0; variant < 12; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0, option = variant / 4, one = 1;
        if (kind == UNIX_PAIR && option != 0)
            continue;
        for (size_t i = 0; i < N(shapes); i++) {
            static const size_t pieces[] = {LENGTH, 997, 4096};
            int sockets[2];
            struct ask ask;
            check_case("%s, %s, option %d, %s", kind_name(kind), nonblocking ? "non-blocking" : "blocking", option,
                       shapes[i].name);
            make_pair(kind, nonblocking, sockets);
            if (option != 0)
                MUST(setsockopt(sockets[0], IPPROTO_TCP, option == 1 ? TCP_NODELAY : TCP_CORK, &one, sizeof one) == 0);
            struct options before = options_of(kind, sockets[0]);
            wire.fd = sockets[1];
            wire.len = 0;
            ask_shape(&ask, &shapes[i], sockets[0]);
            run_shape(stream, &ask, &shapes[i], pieces[(i + (size_t)variant) % N(pieces)], variant & 2);
            struct options after = options_of(kind, sockets[0]);
            CHECK(memcmp(&before, &after, sizeof before) == 0);
            close(sockets[0]);
            close(sockets[1]);
        }
    }
    /* A write that goes on from one part to the next, and one that is all of them. */
    static const size_t cuts[] = {1500, 3005};
    for (size_t c = 0; c < N(cuts); c++) {
        const struct shape *shape = NULL;
        for (size_t i = 0; i < N(shapes); i++)
            if (shapes[i].n == 3)
                shape = &shapes[i];
        MUST(shape != NULL);
        check_case("several parts, written across their ends, %zu bytes", cuts[c]);
        int sockets[2];
        struct ask ask;
        uint8_t flat[3005];
        memcpy(flat, content + 9000, 1000);
        memcpy(flat + 1000, content + 5, 5);
        memcpy(flat + 1005, content + 2000, 2000);
        make_pair(TCP_PAIR, 0, sockets);
        wire.fd = sockets[1];
        wire.len = 0;
        ask_shape(&ask, shape, sockets[0]);
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
        CHECK_STATUS(sendgate_stream_write(stream, flat, cuts[c], NULL, &ask.result), SENDGATE_OK);
        wire_read((size_t)(ask.result.head_sent + ask.result.body_sent));
        if (cuts[c] < sizeof flat) {
            CHECK(memcmp(wire.data + wire.len - 495, flat + 1005, 495) == 0);
            CHECK_INT(next_of(stream).offset, 2495);
            CHECK_INT(next_of(stream).length, 1505);
            CHECK_STATUS(sendgate_stream_write(stream, flat + cuts[c], sizeof flat - cuts[c], NULL, &ask.result), SENDGATE_OK);
        }
        CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_OK);
        wire_read((size_t)(ask.result.head_sent + ask.result.body_sent));
        check_wire(shape, &ask.result, "");
        close(sockets[0]);
        close(sockets[1]);
    }
    sendgate_stream_free(stream);
}

/* ---- On its way when the call returns ---- */

static int queued(int sock, unsigned long which)
{
    int bytes = -1;
    MUST(ioctl(sock, which, &bytes) == 0);
    return bytes;
}

/* Nagle's algorithm keeps a small segment back until the one before is acknowledged, which a peer delays. The kernel
 * tells what has not left, so no time has to be measured.
 */
static void nothing_is_held_back(void)
{
    int sockets[2], off = 0, one = 1, held = 0;
    struct ask ask;
    check_case("Nagle's algorithm holds back what is just sent");
    make_pair(TCP_PAIR, 0, sockets);
    for (int i = 0; i < 100 && !held; i++) {
        MUST(setsockopt(sockets[1], IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off) == 0);
        MUST(send(sockets[0], "x", 1, 0) == 1);
        held = queued(sockets[0], SIOCOUTQNSD) > 0;
    }
    CHECK(held);
    close(sockets[0]);
    close(sockets[1]);

    sendgate_stream *stream = new_stream();
    for (int option = 0; option < 3; option++) {
        for (size_t i = 0; i < N(shapes); i++) {
            const struct shape *shape = &shapes[i];
            if (shape->n != 1)
                continue;
            check_case("many small writes, option %d, %s", option, shape->name);
            make_pair(TCP_PAIR, 0, sockets);
            if (option != 0)
                MUST(setsockopt(sockets[0], IPPROTO_TCP, option == 1 ? TCP_NODELAY : TCP_CORK, &one, sizeof one) == 0);
            ask_shape(&ask, shape, sockets[0]);
            CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
            size_t from = (size_t)shape->parts[0].offset;
            size_t all = (size_t)shape->parts[0].length;
            for (size_t at = 0; at < all; at += at < 200 ? 1 : all - 200) {
                /* Fewer segments than may be under way at first; then all is taken and acknowledged. */
                if (at % 5 == 0) {
                    peer_drain(sockets[1]);
                    MUST(setsockopt(sockets[1], IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one) == 0);
                    UNTIL(queued(sockets[0], SIOCOUTQ) == 0);
                }
                MUST(setsockopt(sockets[1], IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off) == 0);
                CHECK_STATUS(sendgate_stream_write(stream, content + from + at, at < 200 ? 1 : all - 200, NULL, NULL),
                             SENDGATE_OK);
                CHECK_INT(queued(sockets[0], SIOCOUTQNSD), 0);
            }
            CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_OK);
            CHECK_INT(queued(sockets[0], SIOCOUTQNSD), 0);
            CHECK_INT(tcp_option(sockets[0], TCP_NODELAY), option == 1);
            CHECK_INT(tcp_option(sockets[0], TCP_CORK), option == 2);
            close(sockets[0]);
            close(sockets[1]);
        }
    }
    sendgate_stream_free(stream);
}

/* ---- The head alone ---- */

static void head_alone(void)
{
    sendgate_stream *stream = new_stream();
    for (size_t i = 0; i < N(shapes); i++) {
        const struct shape *shape = &shapes[i];
        int sockets[2];
        size_t written = 99;
        struct ask ask;
        check_case("the head before any content: %s", shape->name);
        make_pair(UNIX_PAIR, 0, sockets);
        wire.fd = sockets[1];
        wire.len = 0;
        ask_shape(&ask, shape, sockets[0]);
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
        for (int again = 0; again < 2; again++) {
            CHECK_STATUS(sendgate_stream_write(stream, NULL, 0, &written, &ask.result), SENDGATE_OK);
            CHECK_INT(written, 0);
            CHECK_INT(ask.result.head_sent > 0, shape->head != SENDGATE_HEAD_NONE);
            /* The head of the first part is content to HTTP. */
            wire_read((size_t)(ask.result.head_sent + ask.result.body_sent));
            if (shape->n < 2)
                CHECK_INT(ask.result.body_sent, 0);
        }
        for (size_t part = 0; part < shape->n; part++)
            CHECK_STATUS(sendgate_stream_write(stream, content + shape->parts[part].offset,
                                               (size_t)shape->parts[part].length, NULL, NULL),
                         SENDGATE_OK);
        CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_OK);
        close(sockets[0]);
        wire_read_all();
        check_wire(shape, &ask.result, "\r\n");
        close(sockets[1]);
    }
    sendgate_stream_free(stream);
}

/* ---- Trailers ---- */

static void refused_trailers(void)
{
    static const char *const names[] = {
        "TE", "Age", "Date", "Host", "Vary", "Expires", "Trailer", "Upgrade", "Location", "Connection", "Keep-Alive",
        "Set-Cookie", "Retry-After", "Content-Type", "Accept-Ranges", "Cache-Control", "Content-Range",
        "Content-Length", "Content-Encoding", "Content-Location", "WWW-Authenticate", "Proxy-Connection",
        "Transfer-Encoding", "Proxy-Authenticate", "Content-Disposition", "content-length", "TRANSFER-ENCODING",
        "", "a b", "a:", "a\r\nb",
    };
    static const char *const values[] = {"1\r\nX: 2", "1\n", "a\rb"};
    sendgate_stream *stream = new_stream();
    for (size_t i = 0; i < N(shapes); i++) {
        const struct shape *shape = &shapes[i];
        if (shape->n != 1)
            continue;
        int sockets[2];
        struct ask ask;
        make_pair(UNIX_PAIR, 0, sockets);
        wire.fd = sockets[1];
        wire.len = 0;
        ask_shape(&ask, shape, sockets[0]);
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
        CHECK_STATUS(sendgate_stream_write(stream, content + shape->parts[0].offset, 100, NULL, NULL), SENDGATE_OK);
        for (size_t n = 0; n < N(names) + N(values); n++) {
            sendgate_field fields[2] = {trailers[0], trailers[0]};
            if (n < N(names))
                fields[1].name = text(names[n]);
            else
                fields[1].value = text(values[n - N(names)]);
            check_case("%s, trailer %zu may not be one", shape->name, n);
            CHECK_STATUS(sendgate_stream_end(stream, fields, 2, &ask.result), SENDGATE_ERR_FIELD);
            CHECK_STATUS(ask.result.status, SENDGATE_ERR_FIELD);
            CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN);
        }
        check_case("%s, after trailers that may not be", shape->name);
        CHECK_STATUS(sendgate_stream_write(stream, content + shape->parts[0].offset + 100,
                                           (size_t)shape->parts[0].length - 100, NULL, NULL),
                     SENDGATE_OK);
        CHECK_STATUS(sendgate_stream_end(stream, NULL, 1, NULL), SENDGATE_ERR_INVALID);
        CHECK_STATUS(sendgate_stream_end(stream, trailers, 2, &ask.result), SENDGATE_OK);
        close(sockets[0]);
        wire_read_all();
        check_wire(shape, &ask.result, trailer_lines);
        close(sockets[1]);
    }
    sendgate_stream_free(stream);
}

/* ---- More or less than was announced ---- */

static void excess(void)
{
    sendgate_stream *stream = new_stream();
    for (size_t i = 0; i < N(shapes); i++) {
        const struct shape *shape = &shapes[i];
        if (shape->length <= 0 || shape->n == 0)
            continue;
        size_t all = 0, written = 99;
        for (size_t part = 0; part < shape->n; part++)
            all += (size_t)shape->parts[part].length;
        for (int early = 0; early < 3; early++) {
            int sockets[2];
            struct ask ask;
            check_case("a byte too many %s: %s", early == 2 ? "at once" : early ? "in the middle" : "at the end",
                       shape->name);
            make_pair(UNIX_PAIR, 0, sockets);
            wire.fd = sockets[1];
            wire.len = 0;
            ask_shape(&ask, shape, sockets[0]);
            CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
            size_t first = early == 2 ? 0 : early ? all / 2 : all;
            if (first > 0)
                CHECK_STATUS(sendgate_stream_write(stream, content, first, NULL, &ask.result), SENDGATE_OK);
            size_t sent = early == 2 ? 0 : (size_t)(ask.result.head_sent + ask.result.body_sent);
            CHECK_STATUS(sendgate_stream_write(stream, content, all - first + 1, &written, &ask.result),
                         SENDGATE_ERR_EXCESS);
            CHECK_INT(written, 0);
            check_outcome(&ask.result, SENDGATE_ERR_EXCESS, shape->status,
                         early == 2 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
            /* For good. */
            sendgate_range next;
            CHECK_STATUS(sendgate_stream_write(stream, content, 1, &written, NULL), SENDGATE_ERR_EXCESS);
            CHECK_STATUS(sendgate_stream_write(stream, NULL, 0, &written, NULL), SENDGATE_ERR_EXCESS);
            CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_ERR_EXCESS);
            CHECK_STATUS(sendgate_stream_next(stream, &next), SENDGATE_ERR_INVALID);
            wire_read(sent);
            close(sockets[0]);
            close(sockets[1]);
        }
    }
    check_case("content for an announced length of 0");
    int sockets[2];
    struct ask ask;
    make_pair(UNIX_PAIR, 0, sockets);
    ask_stream(&ask, 0, sockets[0]);
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_write(stream, content, 1, NULL, &ask.result), SENDGATE_ERR_EXCESS);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED);
    close(sockets[0]);
    close(sockets[1]);
    sendgate_stream_free(stream);
}

static void truncated(void)
{
    sendgate_stream *stream = new_stream();
    for (size_t i = 0; i < N(shapes); i++) {
        const struct shape *shape = &shapes[i];
        if (shape->length <= 0 || shape->n == 0)
            continue;
        size_t all = 0;
        for (size_t part = 0; part < shape->n; part++)
            all += (size_t)shape->parts[part].length;
        for (int begun = 0; begun < 3; begun++) {
            int sockets[2];
            struct ask ask;
            check_case("%s: %s", begun == 2 ? "a byte is missing" : begun ? "only the head" : "nothing", shape->name);
            make_pair(UNIX_PAIR, 0, sockets);
            wire.fd = sockets[1];
            wire.len = 0;
            ask_shape(&ask, shape, sockets[0]);
            CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
            size_t sent = 0;
            if (begun != 0) {
                CHECK_STATUS(sendgate_stream_write(stream, content, begun == 2 ? all - 1 : 0, NULL, &ask.result),
                             SENDGATE_OK);
                sent = (size_t)(ask.result.head_sent + ask.result.body_sent);
            }
            CHECK_STATUS(sendgate_stream_end(stream, trailers, 2, &ask.result), SENDGATE_ERR_TRUNCATED);
            check_outcome(&ask.result, SENDGATE_ERR_TRUNCATED, shape->status,
                         sent == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
            CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_ERR_TRUNCATED);
            CHECK_STATUS(sendgate_stream_write(stream, content, 1, NULL, NULL), SENDGATE_ERR_TRUNCATED);
            wire_read(sent);
            close(sockets[0]);
            close(sockets[1]);
        }
    }
    sendgate_stream_free(stream);
}

/* ---- Without waiting ---- */

#define MUCH 400000

static void small_buffer(int sock)
{
    int size = 4096;
    MUST(setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
}

/* Read what is there now. */
static void wire_drain(void)
{
    for (long n; (n = peer_take(wire.fd, wire.data + wire.len, sizeof wire.data - wire.len)) > 0;)
        wire.len += (size_t)n;
}

/* Wait until the socket takes bytes again, which on TCP takes until the peer has told that it has room. */
static void wait_writable(int sock)
{
    struct pollfd wait = {sock, POLLOUT, 0};
    while (poll(&wait, 1, 10) == 0)
        wire_drain();
}

static void try_now(void)
{
    static char flat[MUCH + 10];
    static size_t sizes[MUCH];
    sendgate_stream *stream = new_stream();
    for (int variant = 0; variant < 12; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0, framing = 1 + variant / 4;
        int sockets[2];
        struct ask ask;
        size_t written, done = 0, waits = 0, calls = 0, flat_len = 0, n_sizes = 0;
        check_case("without waiting, %s, %s, framing %d", kind_name(kind), nonblocking ? "non-blocking" : "blocking",
                   framing);
        make_pair(kind, nonblocking, sockets);
        small_buffer(sockets[0]);
        wire.fd = sockets[1];
        wire.len = 0;
        ask_stream(&ask, framing == SENDGATE_FRAMING_LENGTH ? MUCH : -1, sockets[0]);
        ask.request.version = framing == SENDGATE_FRAMING_CLOSE ? 10 : 11;
        ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        ask.sink.total_timeout_ms = 1; /* counts for nothing */
        ask.sink.idle_timeout_ms = 1;
        int flags = fcntl(sockets[0], F_GETFL);
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
        usleep(2000);
        /* Pieces of which each is the rest of the one before, until that is all there. */
        size_t chunks = 0;
        while (done < MUCH) {
            size_t end = done + 100000;
            chunks++;
            sendgate_status status;
            do {
                status = sendgate_stream_write(stream, content + done, end - done, &written, &ask.result);
                calls++;
                MUST(written <= end - done);
                done += written;
                CHECK_STATUS(ask.result.status, status);
                CHECK_INT(ask.result.body_sent, done);
                if (status == SENDGATE_WANT_WRITE) {
                    waits++;
                    CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN);
                    /* Still full: nothing is taken, and it says so again. */
                    if (socket_is_full(sockets[0])) {
                        CHECK_STATUS(sendgate_stream_write(stream, content + done, end - done, &written, NULL),
                                     SENDGATE_WANT_WRITE);
                        MUST(written <= end - done);
                        done += written;
                    }
                    wait_writable(sockets[0]);
                }
            } while (status == SENDGATE_WANT_WRITE);
            if (!CHECK_STATUS(status, SENDGATE_OK))
                break;
            CHECK_INT(done, end);
        }
        CHECK(waits > 3);
        sendgate_status status;
        while ((status = sendgate_stream_end(stream, trailers, 2, &ask.result)) == SENDGATE_WANT_WRITE)
            wait_writable(sockets[0]);
        CHECK_STATUS(status, SENDGATE_OK);
        check_outcome(&ask.result, SENDGATE_OK, 200, framing == SENDGATE_FRAMING_CLOSE ? SENDGATE_CONN_CLOSE : SENDGATE_CONN_REUSABLE);
        CHECK_INT(ask.result.body_length, MUCH);
        CHECK_INT(fcntl(sockets[0], F_GETFL), flags);
        close(sockets[0]);
        wire_read_all();
        const char *body = wire.data + ask.result.head_sent;
        if (framing == SENDGATE_FRAMING_CHUNKED) {
            const char *behind = dechunk(body, wire.data + wire.len, flat, &flat_len, sizes, &n_sizes);
            CHECK(behind != NULL && wire.data + wire.len - behind == (long)strlen(trailer_lines));
            /* One chunk for each piece, however often its rest was written. */
            CHECK_INT(n_sizes, chunks);
            body = flat;
        } else {
            flat_len = wire.len - (size_t)ask.result.head_sent;
        }
        CHECK(flat_len == MUCH && is_pattern(body, MUCH, 0));
        close(sockets[1]);
    }

    check_case("an end in the middle of a chunk");
    int sockets[2];
    struct ask ask;
    size_t written = 0;
    make_pair(UNIX_PAIR, 1, sockets);
    small_buffer(sockets[0]);
    wire.fd = sockets[1];
    wire.len = 0;
    ask_stream(&ask, -1, sockets[0]);
    ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_write(stream, content, MUCH, &written, NULL), SENDGATE_WANT_WRITE);
    CHECK(written > 0 && written < MUCH);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_ERR_TRUNCATED);
    check_outcome(&ask.result, SENDGATE_ERR_TRUNCATED, 200, SENDGATE_CONN_BROKEN);
    close(sockets[0]);
    wire_read_all();
    CHECK(!contains(wire.data, wire.len, "\r\n0\r\n\r\n"));
    close(sockets[1]);

    check_case("more than the rest begins a chunk of its own, and less goes on with it");
    make_pair(UNIX_PAIR, 1, sockets);
    small_buffer(sockets[0]);
    wire.fd = sockets[1];
    wire.len = 0;
    ask.sink.fd = sockets[0];
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    size_t done = 0, n_sizes = 0, flat_len = 0, wants = 0;
    while (done < 100000) {
        size_t most = wants % 3 == 0 ? 200000 - done : wants % 3 == 1 && done < 99990 ? 10 : 100000 - done;
        if (done == 0)
            most = 100000;
        sendgate_status status = sendgate_stream_write(stream, content + done, most, &written, NULL);
        done += written;
        if (status == SENDGATE_WANT_WRITE) {
            wants++;
            wait_writable(sockets[0]);
        } else if (!CHECK_STATUS(status, SENDGATE_OK)) {
            break;
        }
    }
    sendgate_status status;
    while (done < 200000 && (status = sendgate_stream_write(stream, content + done, 200000 - done, &written, NULL),
                             status == SENDGATE_WANT_WRITE || status == SENDGATE_OK)) {
        done += written;
        wait_writable(sockets[0]);
    }
    while ((status = sendgate_stream_end(stream, NULL, 0, &ask.result)) == SENDGATE_WANT_WRITE)
        wait_writable(sockets[0]);
    CHECK_STATUS(status, SENDGATE_OK);
    close(sockets[0]);
    wire_read_all();
    CHECK(dechunk(wire.data + ask.result.head_sent, wire.data + wire.len, flat, &flat_len, sizes, &n_sizes) != NULL);
    CHECK(flat_len == 200000 && is_pattern(flat, flat_len, 0));
    CHECK(n_sizes >= 2 && sizes[0] == 100000);
    close(sockets[1]);
    sendgate_stream_free(stream);
}

/* ---- Times ---- */

/* Writes until it fails; how it did. */
static sendgate_status write_until(sendgate_stream *stream, struct ask *ask, size_t piece, size_t most, size_t *done)
{
    sendgate_status status = SENDGATE_OK;
    *done = 0;
    while (status == SENDGATE_OK && *done < most) {
        size_t written = 0;
        status = sendgate_stream_write(stream, content + *done % LENGTH, piece, &written, &ask->result);
        *done += written;
    }
    return status;
}

static void times(void)
{
    sendgate_stream *stream = new_stream();
    for (int variant = 0; variant < 8; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0, total = (variant & 4) != 0;
        int sockets[2];
        size_t done;
        struct ask ask;
        check_case("a peer that never reads, %s, %s, %s", kind_name(kind), nonblocking ? "non-blocking" : "blocking",
                   total ? "total" : "idle");
        make_pair(kind, nonblocking, sockets);
        small_buffer(sockets[0]);
        int flags = fcntl(sockets[0], F_GETFL);
        ask_stream(&ask, -1, sockets[0]);
        *(total ? &ask.sink.total_timeout_ms : &ask.sink.idle_timeout_ms) = 200;
        int64_t start = now_ms();
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
        CHECK_STATUS(write_until(stream, &ask, 50000, SIZE_MAX, &done), SENDGATE_ERR_TIMEOUT);
        int64_t took = now_ms() - start;
        CHECK(took >= 150 && took < 10000);
        check_outcome(&ask.result, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_BROKEN);
        CHECK_INT(ask.result.body_sent, done);
        CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_ERR_TIMEOUT);
        CHECK_INT(fcntl(sockets[0], F_GETFL), flags);
        close(sockets[0]);
        close(sockets[1]);
    }

    int sockets[2];
    size_t done;
    struct ask ask;
    struct peer peer;
    check_case("the total time is over before the next piece is there");
    make_pair(UNIX_PAIR, 0, sockets);
    ask_stream(&ask, -1, sockets[0]);
    ask.sink.total_timeout_ms = 20;
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    usleep(30000);
    CHECK_STATUS(sendgate_stream_write(stream, content, 10, NULL, &ask.result), SENDGATE_ERR_TIMEOUT);
    check_outcome(&ask.result, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_UNTOUCHED);
    CHECK_INT(peer_drain(sockets[1]), 0);
    check_case("what the producer takes is not the peer's time");
    ask.sink.total_timeout_ms = 0;
    ask.sink.idle_timeout_ms = 20;
    ask.sink.min_rate = 1000000;
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    for (int i = 0; i < 3; i++) {
        CHECK_STATUS(sendgate_stream_write(stream, content, 10, NULL, &ask.result), SENDGATE_OK);
        usleep(30000);
    }
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_OK);
    close(sockets[0]);
    close(sockets[1]);

    /* Each pause of the peer is shorter than the idle timeout. */
    check_case("a slow peer within the idle timeout");
    make_pair(UNIX_PAIR, 0, sockets);
    small_buffer(sockets[0]);
    peer_init(&peer, sockets[1]);
    peer.pause_ms = 5;
    peer_start(&peer);
    ask_stream(&ask, 2000000, sockets[0]);
    ask.sink.idle_timeout_ms = 2000;
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(write_until(stream, &ask, 100000, 2000000, &done), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_OK);
    close(sockets[0]);
    peer_join(&peer);
    CHECK_INT(peer.len, ask.result.head_sent + 2000000);
    peer_free(&peer);

    /* Also if no single call waits for long. */
    static const size_t pieces[] = {5000, sizeof content - LENGTH};
    for (size_t i = 0; i < N(pieces); i++) {
        check_case("a peer that is slower than min_rate, %zu bytes a piece", pieces[i]);
        make_pair(UNIX_PAIR, 0, sockets);
        small_buffer(sockets[0]);
        peer_init(&peer, sockets[1]);
        peer.rate = 50000;
        peer.chunk = 1000;
        peer_start(&peer);
        ask_stream(&ask, -1, sockets[0]);
        ask.sink.idle_timeout_ms = 500;
        ask.sink.min_rate = 10000000;
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
        CHECK_STATUS(write_until(stream, &ask, pieces[i], 4 << 20, &done), SENDGATE_ERR_TIMEOUT);
        check_outcome(&ask.result, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_BROKEN);
        close(sockets[0]);
        __atomic_store_n(&peer.rate, 0, __ATOMIC_RELAXED);
        peer_join(&peer);
        peer_free(&peer);
    }
    sendgate_stream_free(stream);
}

/* ---- A peer that goes away ---- */

/* SIGPIPE has its default action here: were it raised, the program would end. */
static void peers_that_leave(void)
{
    struct sigaction action;
    MUST(sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
    sendgate_stream *stream = new_stream();
    for (int variant = 0; variant < 16; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int late = (variant & 2) != 0, waits = (variant & 4) == 0, declared = (variant & 8) != 0;
        int sockets[2];
        size_t done = 0;
        struct ask ask;
        check_case("a peer that is reset, %s, %s, %s", kind_name(kind), late ? "late" : "early", waits ? "waiting" : "not");
        make_pair(kind, 0, sockets);
        ask_stream(&ask, -1, sockets[0]);
        if (!waits)
            ask.sink.flags = SENDGATE_SINK_TRY_NOW;
        if (declared)
            ask.sink.flags |= SENDGATE_SINK_SIGPIPE_IGNORED; /* a lie, which costs a stream nothing */
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
        if (late)
            CHECK_STATUS(sendgate_stream_write(stream, content, 100, NULL, NULL), SENDGATE_OK);
        struct linger linger = {1, 0};
        MUST(setsockopt(sockets[1], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
        close(sockets[1]);
        CHECK_STATUS(write_until(stream, &ask, 50000, SIZE_MAX, &done), SENDGATE_ERR_PEER_CLOSED);
        check_outcome(&ask.result, SENDGATE_ERR_PEER_CLOSED, 200, late ? SENDGATE_CONN_BROKEN : SENDGATE_CONN_UNTOUCHED);
        CHECK(ask.result.sys_errno == EPIPE || ask.result.sys_errno == ECONNRESET);
        CHECK_STATUS(sendgate_stream_write(stream, content, 1, NULL, NULL), SENDGATE_ERR_PEER_CLOSED);
        CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_ERR_PEER_CLOSED);
        close(sockets[0]);
    }

    check_case("a peer that resets while a write waits for it");
    int sockets[2];
    size_t done;
    struct ask ask;
    struct peer peer;
    make_pair(TCP_PAIR, 0, sockets);
    small_buffer(sockets[0]);
    peer_init(&peer, sockets[1]);
    peer.stop_at = 300000;
    peer.reset = 1;
    peer_start(&peer);
    ask_stream(&ask, -1, sockets[0]);
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(write_until(stream, &ask, 500000, SIZE_MAX, &done), SENDGATE_ERR_PEER_CLOSED);
    CHECK_INT(ask.result.body_sent, done);
    close(sockets[0]);
    peer_join(&peer);
    peer_free(&peer);

    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("a peer that has nothing more to say, %s", kind_name((enum kind)kind));
        make_pair((enum kind)kind, 0, sockets);
        wire.fd = sockets[1];
        wire.len = 0;
        MUST(shutdown(sockets[1], SHUT_WR) == 0);
        ask_shape(&ask, &shapes[0], sockets[0]);
        run_shape(stream, &ask, &shapes[0], 997, 0);
        close(sockets[0]);
        close(sockets[1]);
    }
    sendgate_stream_free(stream);
}

/* ---- A write function in place of the socket ---- */

struct writer {
    char data[1 << 17];
    size_t len;
    size_t at_most;         /* per call */
    size_t calls;
    size_t fail_at;         /* this call ... */
    sendgate_status answer; /* ... answers this, */
    size_t claim;           /* and claims that */
    int fails;
};

static sendgate_status write_some(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct writer *writer = user;
    if (writer->calls++ == writer->fail_at && writer->fails) {
        *written = writer->claim == SIZE_MAX ? len + 1 : writer->claim;
        return writer->answer;
    }
    size_t n = len < writer->at_most ? len : writer->at_most;
    MUST(n > 0 && writer->len + n <= sizeof writer->data);
    memcpy(writer->data + writer->len, data, n);
    writer->len += n;
    *written = n;
    return SENDGATE_OK;
}

/* A shape through the function, in pieces; the first status that isn't OK. */
static sendgate_status through(sendgate_stream *stream, struct writer *writer, struct ask *ask, const struct shape *shape,
                               int descriptor)
{
    size_t written;
    sendgate_status status;
    ask_shape(ask, shape, descriptor);
    ask->sink.write = write_some;
    ask->sink.user = writer;
    CHECK_STATUS(sendgate_stream_start(stream, &ask->exchange, &ask->sink, NULL), SENDGATE_OK);
    for (size_t part = 0; part < shape->n; part++) {
        for (size_t at = 0; at < shape->parts[part].length; at += written) {
            size_t left = (size_t)shape->parts[part].length - at, n = left < 3000 ? left : 3000;
            status = sendgate_stream_write(stream, content + shape->parts[part].offset + at, n, &written, &ask->result);
            CHECK_STATUS(ask->result.status, status);
            if (status != SENDGATE_OK)
                return status;
            CHECK_INT(written, n);
        }
    }
    return sendgate_stream_end(stream, trailers, 2, &ask->result);
}

static void write_functions(void)
{
    static struct writer writer;
    static const size_t steps[] = {1, 7, 1000, 1 << 30};
    struct ask ask;
    sendgate_stream *stream = new_stream();
    for (size_t i = 0; i < N(shapes); i++) {
        for (size_t s = 0; s < N(steps); s++) {
            check_case("a write function that takes %zu bytes, %s", steps[s], shapes[i].name);
            memset(&writer, 0, offsetof(struct writer, len));
            memset(&writer.len, 0, sizeof writer - offsetof(struct writer, len));
            writer.at_most = steps[s];
            CHECK_STATUS(through(stream, &writer, &ask, &shapes[i], -1), SENDGATE_OK);
            check_outcome(&ask.result, SENDGATE_OK, shapes[i].status, shapes[i].connection);
            memcpy(wire.data, writer.data, writer.len);
            wire.len = writer.len;
            check_wire(&shapes[i], &ask.result, trailer_lines);
        }
    }

    static const struct bad {
        const char *name;
        sendgate_status answer;
        size_t claim;
        sendgate_status status; /* SENDGATE_OK: it waits, and goes on */
    } bad[] = {
        {"claims nothing", SENDGATE_OK, 0, SENDGATE_ERR_INVALID},
        {"claims more than there was", SENDGATE_OK, SIZE_MAX, SENDGATE_ERR_INVALID},
        {"wants to write, with nothing to wait on", SENDGATE_WANT_WRITE, 0, SENDGATE_ERR_BLOCKING},
        {"wants to read, with nothing to wait on", SENDGATE_WANT_READ, 0, SENDGATE_ERR_BLOCKING},
        {"loses its peer", SENDGATE_ERR_PEER_CLOSED, 0, SENDGATE_ERR_PEER_CLOSED},
        {"fails", SENDGATE_ERR_IO, 0, SENDGATE_ERR_IO},
    };
    for (size_t i = 0; i < N(shapes); i++) {
        for (size_t b = 0; b < N(bad); b++) {
            for (size_t at = 0;; at++) {
                check_case("a write function that %s at call %zu, %s", bad[b].name, at, shapes[i].name);
                memset(&writer.len, 0, sizeof writer - offsetof(struct writer, len));
                writer.at_most = 700;
                writer.fail_at = at;
                writer.fails = 1;
                writer.answer = bad[b].answer;
                writer.claim = bad[b].claim;
                sendgate_status status = through(stream, &writer, &ask, &shapes[i], -1);
                if (writer.calls <= at) {
                    CHECK_STATUS(status, SENDGATE_OK);
                    break;
                }
                CHECK_STATUS(status, bad[b].status);
                check_outcome(&ask.result, status, shapes[i].status, at == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
                /* It is not called again. */
                size_t calls = writer.calls;
                CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), status);
                CHECK_INT(writer.calls, calls);
            }
        }
    }

    int sockets[2];
    make_pair(UNIX_PAIR, 1, sockets);
    MUST(send(sockets[1], "x", 1, 0) == 1); /* readable and writable */
    for (size_t i = 0; i < N(shapes); i++) {
        for (size_t at = 0;; at++) {
            check_case("a write function that waits at call %zu, %s", at, shapes[i].name);
            memset(&writer.len, 0, sizeof writer - offsetof(struct writer, len));
            writer.at_most = 700;
            writer.fail_at = at;
            writer.fails = 1;
            writer.answer = at % 2 ? SENDGATE_WANT_READ : SENDGATE_WANT_WRITE;
            CHECK_STATUS(through(stream, &writer, &ask, &shapes[i], sockets[0]), SENDGATE_OK);
            memcpy(wire.data, writer.data, writer.len);
            wire.len = writer.len;
            check_wire(&shapes[i], &ask.result, trailer_lines);
            if (writer.calls <= at)
                break;
        }
    }
    check_case("a write function that wants to read, without waiting");
    memset(&writer.len, 0, sizeof writer - offsetof(struct writer, len));
    writer.at_most = 700;
    writer.fails = 1;
    writer.answer = SENDGATE_WANT_READ;
    ask_stream(&ask, -1, -1);
    ask.sink.write = write_some;
    ask.sink.user = &writer;
    ask.sink.flags = SENDGATE_SINK_TRY_NOW;
    size_t written = 99;
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_write(stream, content, 10, &written, &ask.result), SENDGATE_WANT_READ);
    CHECK_INT(written, 0);
    check_outcome(&ask.result, SENDGATE_WANT_READ, 200, SENDGATE_CONN_UNTOUCHED);
    CHECK_STATUS(sendgate_stream_write(stream, content, 10, &written, &ask.result), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_OK);
    CHECK(contains(writer.data, writer.len, "\r\na\r\n"));

    for (int more = 0; more < 2; more++) {
        check_case("only the end of the chunk is left, and then comes %s", more ? "a new piece" : "nothing");
        memset(&writer.len, 0, sizeof writer - offsetof(struct writer, len));
        writer.at_most = SIZE_MAX;
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
        CHECK_STATUS(sendgate_stream_write(stream, NULL, 0, &written, NULL), SENDGATE_OK);
        size_t head = writer.len;
        writer.at_most = 13; /* "a", a line end, and ten bytes */
        writer.fail_at = 2;
        writer.fails = 1;
        writer.answer = SENDGATE_WANT_WRITE;
        CHECK_STATUS(sendgate_stream_write(stream, content + '0', 10, &written, NULL), SENDGATE_WANT_WRITE);
        CHECK_INT(written, 10);
        CHECK_INT(writer.len, head + 13);
        writer.fails = 0;
        writer.at_most = SIZE_MAX;
        CHECK_STATUS(sendgate_stream_write(stream, (const uint8_t *)"end", more ? 3 : 0, &written, NULL), SENDGATE_OK);
        CHECK_INT(written, more ? 3 : 0);
        CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_OK);
        const char *want = more ? "\r\n3\r\nend\r\n0\r\n\r\n" : "\r\n0\r\n\r\n";
        CHECK(writer.len == head + 13 + strlen(want) && memcmp(writer.data + head + 13, want, strlen(want)) == 0);
    }

    check_case("the head leaves with the first piece in one call, and in one record");
    memset(&writer.len, 0, sizeof writer - offsetof(struct writer, len));
    writer.at_most = SIZE_MAX;
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_write(stream, content, 10, NULL, NULL), SENDGATE_OK);
    CHECK_INT(writer.calls, 1);
    CHECK_STATUS(sendgate_stream_write(stream, content, 10, NULL, NULL), SENDGATE_OK);
    CHECK_INT(writer.calls, 2);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_OK);
    CHECK_INT(writer.calls, 3);
    close(sockets[0]);
    close(sockets[1]);
    sendgate_stream_free(stream);
}

/* ---- Misuse ---- */

static void not_a_stream(struct ask *ask, sendgate_status want)
{
    sendgate_transfer *transfer = NULL;
    sendgate_sender *sender = sender_make(NULL);
    uint64_t id = 0;
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    CHECK_STATUS(sendgate_respond(&ask->exchange, &ask->sink, &ask->result), want);
    CHECK_INT(ask->result.connection, SENDGATE_CONN_UNTOUCHED);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask->exchange, &ask->sink), want);
    CHECK_STATUS(sendgate_transfer_start(transfer, &ask->exchange, NULL), want);
    CHECK_STATUS(sendgate_sender_submit(sender, &ask->exchange, &ask->sink, NULL, &id, &ask->result), want);
    check_sender_empty(sender);
    sendgate_transfer_free(transfer);
    sendgate_sender_free(sender);
}

static void misuse(void)
{
    struct ask ask;
    int sockets[2], file = file_make("answer", 1000);
    size_t written = 99;
    sendgate_range next = {99, 99};
    sendgate_stream *stream = new_stream();
    sendgate_decision decision;
    make_pair(UNIX_PAIR, 1, sockets);

    check_case("not started");
    ask_stream(&ask, 10, sockets[0]);
    CHECK_STATUS(sendgate_stream_next(stream, &next), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_write(stream, content, 1, &written, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_INT(written, 0);
    CHECK_STATUS(ask.result.status, SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_ERR_INVALID);

    check_case("NULL");
    CHECK_STATUS(sendgate_stream_new(NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_start(NULL, &ask.exchange, &ask.sink, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_start(stream, NULL, &ask.sink, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, NULL, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_next(NULL, &next), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_write(NULL, content, 1, &written, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_end(NULL, NULL, 0, NULL), SENDGATE_ERR_INVALID);
    sendgate_stream_free(NULL);
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_next(stream, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_write(stream, NULL, 1, &written, &ask.result), SENDGATE_ERR_INVALID);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_UNTOUCHED); /* another answer may still be sent */
    CHECK_STATUS(sendgate_stream_write(stream, content, SIZE_MAX, &written, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 1, NULL), SENDGATE_ERR_INVALID);
    CHECK_INT(peer_drain(sockets[1]), 0);

    check_case("structs whose size is wrong");
    memset(&decision, 0, sizeof decision);
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, &decision), SENDGATE_ERR_SIZE);
    CHECK_STATUS(sendgate_stream_next(stream, &next), SENDGATE_ERR_INVALID); /* and it is idle */
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    ask.result.size = 3;
    CHECK_STATUS(sendgate_stream_write(stream, content, 1, &written, &ask.result), SENDGATE_ERR_SIZE);
    CHECK_INT(written, 0);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_ERR_SIZE);
    ask.result.size = sizeof ask.result;
    CHECK_INT(peer_drain(sockets[1]), 0);

    /* Nothing of that was harmful. */
    check_case("after all this");
    CHECK_STATUS(sendgate_stream_write(stream, content, 10, &written, &ask.result), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_OK);
    CHECK(peer_drain(sockets[1]) > 10);
    CHECK_STATUS(sendgate_stream_next(stream, &next), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_stream_write(stream, content, 0, &written, &ask.result), SENDGATE_ERR_INVALID);

    check_case("started again in the middle, and a failed start");
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_write(stream, content, 5, &written, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_next(stream, &next), SENDGATE_OK);
    CHECK(next.offset == 0 && next.length == 10);
    ask.exchange.http_status = 1000;
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_ERR_INVALID);
    ask.exchange.http_status = 0;
    CHECK_STATUS(sendgate_stream_next(stream, &next), SENDGATE_ERR_INVALID);
    peer_drain(sockets[1]);

    static const struct rep {
        const char *name;
        uint32_t kind, flags;
        uint64_t offset, length;
        sendgate_status decides, starts;
    } reps[] = {
        {"a length", 2, 0, 0, 10, SENDGATE_OK, SENDGATE_OK},
        {"of unknown length", 2, 16, 0, 0, SENDGATE_OK, SENDGATE_OK},
        {"that can seek", 2, 32, 0, 10, SENDGATE_OK, SENDGATE_OK},
        {"that can seek, empty", 2, 32, 0, 0, SENDGATE_OK, SENDGATE_OK},
        {"with flags of others", 2, 2 | 4 | 8, 0, 10, SENDGATE_OK, SENDGATE_OK},
        {"of 2^63 - 1 bytes", 2, 0, 0, INT64_MAX, SENDGATE_OK, SENDGATE_OK},
        {"of 2^63 bytes", 2, 0, 0, (uint64_t)INT64_MAX + 1, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"of unknown length, with one", 2, 16, 0, 1, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"of unknown length that can seek", 2, 48, 0, 0, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"with an offset", 2, 0, 1, 10, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"with a flag that there isn't", 2, 64, 0, 10, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"of a kind that there isn't", 3, 0, 0, 10, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"a file of unknown length", 0, 16, 0, 0, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"a file that can seek", 0, 32, 0, 10, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"memory that can seek", 1, 32, 0, 10, SENDGATE_ERR_INVALID, SENDGATE_ERR_INVALID},
        {"a file", 0, 0, 0, 10, SENDGATE_OK, SENDGATE_ERR_INVALID},
        {"memory", 1, 0, 0, 10, SENDGATE_OK, SENDGATE_ERR_INVALID},
    };
    for (size_t i = 0; i < N(reps); i++) {
        check_case("a representation: %s", reps[i].name);
        ask_stream(&ask, 0, sockets[0]);
        ask.rep.kind = reps[i].kind;
        ask.rep.flags = reps[i].flags;
        ask.rep.offset = reps[i].offset;
        ask.rep.length = reps[i].length;
        ask.rep.fd = file;
        ask.rep.memory = content;
        decision.size = sizeof decision;
        CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, &decision), reps[i].decides);
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), reps[i].starts);
        if (reps[i].starts == SENDGATE_OK)
            not_a_stream(&ask, SENDGATE_ERR_INVALID);
        CHECK_INT(peer_drain(sockets[1]), 0);
    }

    check_case("fields that contradict the framing");
    static const struct contradiction {
        const char *name, *value;
        long long length;
        sendgate_status status;
    } contradictions[] = {
        {"Content-Length", "10", 10, SENDGATE_OK},
        {"Content-Length", "11", 10, SENDGATE_ERR_FIELD},
        {"Content-Length", "10", -1, SENDGATE_ERR_FIELD},
        {"Content-Length", "0", -1, SENDGATE_ERR_FIELD},
        {"Transfer-Encoding", "chunked", -1, SENDGATE_ERR_FIELD},
        {"Transfer-Encoding", "chunked", 10, SENDGATE_ERR_FIELD},
        {"Content-Range", "bytes 0-1/2", 10, SENDGATE_ERR_FIELD},
    };
    for (size_t i = 0; i < N(contradictions); i++) {
        sendgate_header header;
        memset(&header, 0, sizeof header);
        header.rule = SENDGATE_RULE_OVERRIDE;
        header.field.name = text(contradictions[i].name);
        header.field.value = text(contradictions[i].value);
        ask_stream(&ask, contradictions[i].length, sockets[0]);
        ask.exchange.headers = &header;
        ask.exchange.n_headers = 1;
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), contradictions[i].status);
    }

    check_case("a descriptor that isn't a socket");
    ask_stream(&ask, 10, file);
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_write(stream, content, 10, &written, &ask.result), SENDGATE_ERR_IO);
    check_outcome(&ask.result, SENDGATE_ERR_IO, 200, SENDGATE_CONN_UNTOUCHED);
    CHECK_INT(ask.result.sys_errno, ENOTSOCK);

    check_case("freed in the middle");
    ask_stream(&ask, -1, sockets[0]);
    CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_write(stream, content, 10, &written, &ask.result), SENDGATE_OK);
    sendgate_stream_free(stream);
    CHECK(fcntl(sockets[0], F_GETFD) >= 0);
    close(sockets[0]);
    close(sockets[1]);
    close(file);
}

/* Everything but the sink's function and descriptor may go once start has returned. */
static void inputs_are_not_kept(void)
{
    check_case("inputs freed after start");
    static char bytes[3000];
    int sockets[2];
    struct ask *ask = malloc(sizeof *ask);
    sendgate_header *header = calloc(1, sizeof *header);
    char *value = malloc(1000), *tag = malloc(5), *range = malloc(14);
    MUST(ask != NULL && header != NULL && value != NULL && tag != NULL && range != NULL);
    make_pair(UNIX_PAIR, 0, sockets);
    memset(value, 'v', 1000);
    memcpy(tag, ETAG, 5);
    memcpy(range, "bytes=0-4,9-12", 14);
    ask_stream(ask, 20, sockets[0]);
    ask->rep.flags = SENDGATE_REP_SEEKABLE;
    ask->rep.etag = text_of(tag, 5);
    ask->request.range = text_of(range, 14);
    header->field.name = text("X-Long");
    header->field.value = text_of(value, 1000);
    header->rule = SENDGATE_RULE_APPEND;
    ask->exchange.headers = header;
    ask->exchange.n_headers = 1;
    sendgate_stream *stream = new_stream();
    CHECK_STATUS(sendgate_stream_start(stream, &ask->exchange, &ask->sink, NULL), SENDGATE_OK);
    free(ask);
    free(header);
    free(value);
    free(tag);
    free(range);
    CHECK_STATUS(sendgate_stream_write(stream, content, 5, NULL, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_write(stream, content + 9, 4, NULL, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_OK);
    long got = peer_take(sockets[1], bytes, sizeof bytes);
    struct answer answer;
    static const sendgate_range parts[] = {{0, 5}, {9, 4}};
    answer_of(&answer, bytes, (size_t)got);
    CHECK_INT(answer.status, 206);
    CHECK(contains(answer.head, answer.head_len, "ETag: " ETAG "\r\n"));
    check_multipart(&answer, parts, 2, 20);
    sendgate_stream_free(stream);
    close(sockets[0]);
    close(sockets[1]);
}

/* ---- One connection ---- */

/* One handle for many responses on one connection, which the peer reads one behind the other. */
static void many_responses(void)
{
    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        int sockets[2];
        struct ask ask;
        struct peer peer;
        sendgate_stream *stream = new_stream();
        uint64_t lengths[N(shapes) * 3];
        size_t n = 0;
        check_case("many responses on one connection, %s", kind_name((enum kind)kind));
        make_pair((enum kind)kind, 0, sockets);
        peer_init(&peer, sockets[1]);
        peer_start(&peer);
        for (size_t i = 0; i < N(shapes) * 3; i++) {
            const struct shape *shape = &shapes[i % N(shapes)];
            if (shape->connection != SENDGATE_CONN_REUSABLE || shape->head != SENDGATE_HEAD_HTTP1)
                continue;
            ask_shape(&ask, shape, sockets[0]);
            CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
            size_t framing = shape->framing == SENDGATE_FRAMING_CHUNKED ? 5 : 0;
            for (size_t part = 0; part < shape->n; part++) {
                size_t len = (size_t)shape->parts[part].length;
                CHECK_STATUS(sendgate_stream_write(stream, content + shape->parts[part].offset, len, NULL, NULL), SENDGATE_OK);
                framing += framing ? digits_of(len) + 4 : 0;
            }
            CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &ask.result), SENDGATE_OK);
            check_outcome(&ask.result, SENDGATE_OK, shape->status, SENDGATE_CONN_REUSABLE);
            lengths[n++] = ask.result.head_sent + ask.result.body_sent + framing;
        }
        sendgate_stream_free(stream);
        close(sockets[0]);
        peer_join(&peer);
        size_t at = 0, k = 0;
        for (size_t i = 0; i < N(shapes) * 3; i++) {
            const struct shape *shape = &shapes[i % N(shapes)];
            if (shape->connection != SENDGATE_CONN_REUSABLE || shape->head != SENDGATE_HEAD_HTTP1)
                continue;
            if (!CHECK(at + lengths[k] <= peer.len))
                break;
            memcpy(wire.data, peer.data + at, lengths[k]);
            wire.len = (size_t)lengths[k];
            const char *empty = find(wire.data, wire.data + wire.len, "\r\n\r\n");
            MUST(empty != NULL);
            sendgate_result result;
            memset(&result, 0, sizeof result);
            result.head_sent = (uint64_t)(empty + 4 - wire.data);
            result.body_sent = shape->framing == SENDGATE_FRAMING_CHUNKED ? LENGTH : lengths[k] - result.head_sent;
            check_wire(shape, &result, "\r\n");
            at += (size_t)lengths[k++];
        }
        CHECK_INT(at, peer.len);
        CHECK(k > 40);
        peer_free(&peer);
    }
}

/* ---- Threads ---- */

struct meeting {
    sendgate_stream *stream;
    pthread_barrier_t inside, leave;
    int calls;
};

/* Is inside the handle's write until the other thread has tried it too. */
static sendgate_status write_and_meet(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct meeting *meeting = user;
    (void)data;
    if (meeting->calls++ == 0) {
        /* From within the call itself it is just as forbidden, and as harmless. */
        CHECK_STATUS(sendgate_stream_write(meeting->stream, content, 1, NULL, NULL), SENDGATE_ERR_BUSY);
        pthread_barrier_wait(&meeting->inside);
        pthread_barrier_wait(&meeting->leave);
    }
    *written = len;
    return SENDGATE_OK;
}

static void *write_ten(void *user)
{
    struct meeting *meeting = user;
    return (void *)(intptr_t)(sendgate_stream_write(meeting->stream, content, 10, NULL, NULL) == SENDGATE_OK);
}

static void threads(void)
{
    check_case("two threads on one handle");
    struct meeting meeting;
    memset(&meeting, 0, sizeof meeting);
    MUST(pthread_barrier_init(&meeting.inside, NULL, 2) == 0 && pthread_barrier_init(&meeting.leave, NULL, 2) == 0);
    struct ask ask;
    ask_stream(&ask, 10, -1);
    ask.sink.write = write_and_meet;
    ask.sink.user = &meeting;
    meeting.stream = new_stream();
    /* Started here and written there: a handle may move. */
    CHECK_STATUS(sendgate_stream_start(meeting.stream, &ask.exchange, &ask.sink, NULL), SENDGATE_OK);
    pthread_t other;
    void *ok = NULL;
    sendgate_range next;
    size_t written = 99;
    MUST(pthread_create(&other, NULL, write_ten, &meeting) == 0);
    pthread_barrier_wait(&meeting.inside);
    CHECK_STATUS(sendgate_stream_write(meeting.stream, content, 1, &written, &ask.result), SENDGATE_ERR_BUSY);
    CHECK_INT(written, 0);
    CHECK_STATUS(ask.result.status, SENDGATE_ERR_BUSY);
    CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN); /* a response is in progress on it */
    CHECK_STATUS(sendgate_stream_next(meeting.stream, &next), SENDGATE_ERR_BUSY);
    CHECK_STATUS(sendgate_stream_end(meeting.stream, NULL, 0, &ask.result), SENDGATE_ERR_BUSY);
    CHECK_STATUS(sendgate_stream_start(meeting.stream, &ask.exchange, &ask.sink, NULL), SENDGATE_ERR_BUSY);
    pthread_barrier_wait(&meeting.leave);
    MUST(pthread_join(other, &ok) == 0);
    CHECK(ok != NULL);
    CHECK_STATUS(sendgate_stream_end(meeting.stream, NULL, 0, &ask.result), SENDGATE_OK);
    CHECK_INT(ask.result.body_sent, 10);
    sendgate_stream_free(meeting.stream);
    pthread_barrier_destroy(&meeting.inside);
    pthread_barrier_destroy(&meeting.leave);
}

int main(void)
{
    check_begin();
    int before = open_fds();
    pattern_fill(content, sizeof content);
    every_shape();
    nothing_is_held_back();
    head_alone();
    refused_trailers();
    excess();
    truncated();
    try_now();
    times();
    peers_that_leave();
    write_functions();
    misuse();
    inputs_are_not_kept();
    many_responses();
    threads();
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    return check_end();
}
