/* Requests: raw heads, whole, cut anywhere and malformed; parsed fields; and everything thrown at the parsers,
 * against a page that can't be read.
 */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)

/* ---- Bytes that end where memory ends ---- */

static char *guard; /* the first byte that can't be read */
static size_t guarded;

static void guard_init(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    guarded = 16 * page;
    char *map = mmap(NULL, guarded + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(map != MAP_FAILED);
    guard = map + guarded;
    MUST(mprotect(guard, page, PROT_NONE) == 0);
}

static char *at_guard(const char *bytes, size_t len)
{
    MUST(len <= guarded);
    return memcpy(guard - len, bytes, len);
}

static int same(sendgate_str got, const char *want)
{
    if (want == NULL)
        return got.ptr == NULL;
    return got.ptr != NULL && got.len == strlen(want) && memcmp(got.ptr, want, got.len) == 0;
}

static sendgate_request request;

static sendgate_status parse(const char *head, size_t len, char *scratch, size_t cap, size_t *needed, size_t *head_len)
{
    memset(&request, 0, sizeof request);
    request.size = sizeof request;
    return sendgate_request_from_head(&request, head, len, scratch, cap, needed, head_len);
}

/* ---- Raw heads ---- */

static const char full[] = "GET /a%20b?c HTTP/1.1\r\n"
                           "Host: localhost\r\n"
                           "If-None-Match: \"a\", \"b\"\r\n"
                           "CONNECTION:close\r\n"
                           "if-modified-since:\t Sun, 06 Nov 1994 08:49:37 GMT \t\r\n"
                           "If-Match: *\r\n"
                           "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                           "If-Range: \"a\"\r\n"
                           "If-None-Match: W/\"c\"\r\n"
                           "Range: bytes=0-9\r\n"
                           "X-Empty:\r\n"
                           "\r\n";

static void check_full(void)
{
    CHECK(same(request.method, "GET"));
    CHECK(same(request.target, "/a%20b?c"));
    CHECK_INT(request.version, 11);
    CHECK_INT(request.flags, 0);
    CHECK(same(request.connection, "close"));
    CHECK(same(request.if_match, "*"));
    CHECK(same(request.if_none_match, "\"a\", \"b\", W/\"c\""));
    CHECK(same(request.if_modified_since, "Sun, 06 Nov 1994 08:49:37 GMT"));
    CHECK(same(request.if_unmodified_since, "Sun, 06 Nov 1994 08:49:37 GMT"));
    CHECK(same(request.if_range, "\"a\""));
    CHECK(same(request.range, "bytes=0-9"));
}

static void whole_and_cut(void)
{
    char scratch[200];
    size_t len = sizeof full - 1, needed = 0, head_len = 0;
    check_case("a head");
    CHECK_STATUS(parse(at_guard(full, len), len, scratch, sizeof scratch, &needed, &head_len), SENDGATE_OK);
    CHECK_INT(head_len, len);
    check_full();

    /* Outputs are written only when the head is complete. */
    for (size_t cut = 0; cut < len; cut++) {
        check_case("a head cut after %zu bytes", cut);
        head_len = 12345;
        CHECK_STATUS(parse(at_guard(full, cut), cut, scratch, sizeof scratch, &needed, &head_len), SENDGATE_WANT_READ);
        CHECK(request.method.ptr == NULL || head_len != 12345 || request.size == sizeof request);
    }

    check_case("a head and what follows it");
    char more[sizeof full + 30];
    memcpy(more, full, len);
    memcpy(more + len, "GET / HTTP/1.0\r\n\r\n", 18);
    CHECK_STATUS(parse(at_guard(more, len + 18), len + 18, scratch, sizeof scratch, &needed, &head_len), SENDGATE_OK);
    CHECK_INT(head_len, len);
    CHECK_STATUS(parse(more + head_len, 18, scratch, sizeof scratch, &needed, &head_len), SENDGATE_OK);
    CHECK_INT(head_len, 18);
    CHECK(same(request.target, "/") && same(request.range, NULL));

    check_case("scratch too small");
    needed = 0;
    CHECK_STATUS(parse(full, len, NULL, 0, &needed, &head_len), SENDGATE_ERR_NO_SPACE);
    CHECK(needed > 0 && needed <= len);
    size_t enough = needed;
    for (size_t cap = 0; cap < enough; cap++) {
        char *exact = malloc(cap ? cap : 1);
        MUST(exact != NULL);
        CHECK_STATUS(parse(full, len, exact, cap, &needed, &head_len), SENDGATE_ERR_NO_SPACE);
        CHECK_INT(needed, enough);
        CHECK_STATUS(parse(full, len, exact, cap, NULL, &head_len), SENDGATE_ERR_NO_SPACE);
        free(exact);
    }
    char *exact = malloc(enough);
    MUST(exact != NULL);
    CHECK_STATUS(parse(full, len, exact, enough, &needed, &head_len), SENDGATE_OK);
    check_full();
    free(exact);

    /* With each field once there is nothing to join. */
    check_case("no scratch needed");
    static const char once[] = "HEAD / HTTP/1.0\r\nRange: bytes=0-9\r\nIf-Match: \"a\"\r\n\r\n";
    CHECK_STATUS(parse(once, sizeof once - 1, NULL, 0, NULL, &head_len), SENDGATE_OK);
    CHECK_INT(request.version, 10);
    CHECK(same(request.method, "HEAD") && same(request.range, "bytes=0-9") && same(request.if_match, "\"a\""));
}

static const struct head {
    const char *text;
    sendgate_status status;
    uint32_t flags;
} heads[] = {
    /* RFC 9112 3: the request line. */
    {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_OK, 0},
    {"G!#$%&'*+-.^_`|~9 * HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_OK, 0},
    {"GET / HTTP/1.1\r\nHost:\r\n\r\n", SENDGATE_OK, 0},
    /* RFC 9112 3.2: HTTP/1.1 has one Host. */
    {"GET / HTTP/1.1\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.0\r\n\r\n", SENDGATE_OK, 0},
    {"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {" GET / HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET /\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/0.9\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / http/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/11\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET /\rX HTTP/1.1\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    /* RFC 9112 5: field lines. */
    {"GET / HTTP/1.1\r\nX : a\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\n: a\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\nno colon\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\nX: a\r\n folded\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\nX: a\r\n\tfolded\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\nX: a\rb\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\nX: a\r\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\nX\x80: a\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"GET / HTTP/1.1\r\nHost: a\r\nX: \x80\xff\r\n\r\n", SENDGATE_OK, 0},
    {"GET / HTTP/1.1\r\nX: a\x01" "b\r\nHost: a\r\n\r\n", SENDGATE_OK, 0}, /* RFC 9110 5.5: may be kept */
    /* RFC 9112 6.3: where it ends. */
    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", SENDGATE_OK, 0},
    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", SENDGATE_OK, SENDGATE_REQUEST_HAS_BODY},
    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\n\r\n", SENDGATE_OK, 0},
    {"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", SENDGATE_OK, SENDGATE_REQUEST_HAS_BODY},
    {"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"POST / HTTP/1.1\r\nContent-Length: 5, 6\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"POST / HTTP/1.1\r\nContent-Length: +5\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"POST / HTTP/1.1\r\nContent-Length: -5\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"POST / HTTP/1.1\r\nContent-Length: 5x\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"POST / HTTP/1.1\r\nContent-Length:\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\nHost: a\r\n\r\n", SENDGATE_OK, SENDGATE_REQUEST_HAS_BODY},
    {"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
    {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\nHost: a\r\n\r\n", SENDGATE_ERR_REQUEST, 0},
};

static void malformed(void)
{
    for (size_t i = 0; i < N(heads); i++) {
        char scratch[200];
        size_t len = strlen(heads[i].text), needed = 0, head_len = 0;
        check_case("head %zu, line %.*s", i, (int)strcspn(heads[i].text, "\r"), heads[i].text);
        CHECK_STATUS(parse(at_guard(heads[i].text, len), len, scratch, sizeof scratch, &needed, &head_len),
                     heads[i].status);
        if (heads[i].status == SENDGATE_OK) {
            CHECK_INT(request.flags, heads[i].flags);
            CHECK_INT(head_len, len);
        }
        /* Cut, it is incomplete or already malformed, never complete; and malformed stays so. */
        int bad = 0;
        for (size_t cut = 0; cut < len; cut++) {
            sendgate_status status = parse(at_guard(heads[i].text, cut), cut, scratch, sizeof scratch, NULL, &head_len);
            if (heads[i].status == SENDGATE_OK)
                CHECK_STATUS(status, SENDGATE_WANT_READ);
            else
                CHECK(status == SENDGATE_ERR_REQUEST || (status == SENDGATE_WANT_READ && !bad));
            bad = status == SENDGATE_ERR_REQUEST;
        }
    }
    check_case("NUL in a head");
    static const char nul[] = "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n";
    size_t head_len;
    CHECK_STATUS(parse(nul, sizeof nul - 1, NULL, 0, NULL, &head_len), SENDGATE_ERR_REQUEST);
}

/* ---- Parsed fields ---- */

static void from_fields(void)
{
    static const char *const lines[][2] = {
        {"range", "bytes=0-9"},    {"If-Match", "\"a\""}, {"RANGE", "5-6"}, {"Other", "x"},
        {"If-Match", ""},          {"if-match", "W/\"b\""}, {"If-Range", "\"r\""}, {"Connection", "keep-alive"},
        {"Connection", "upgrade"}, {"Range", "7-8"},
    };
    sendgate_field fields[N(lines)];
    size_t values = 0, needed = 0;
    char scratch[200];
    for (size_t i = 0; i < N(lines); i++) {
        fields[i].name = text(lines[i][0]);
        fields[i].value = text(lines[i][1]);
        values += strlen(lines[i][1]) + 2;
    }
    check_case("fields on several lines");
    memset(&request, 0, sizeof request);
    request.size = sizeof request;
    request.method = text("HEAD");
    request.version = 10;
    request.target = text("/kept");
    MUST(values <= sizeof scratch);
    /* The size that the header promises is always enough. */
    CHECK_STATUS(sendgate_request_from_fields(&request, fields, N(fields), scratch, values, &needed), SENDGATE_OK);
    CHECK(same(request.range, "bytes=0-9, 5-6, 7-8"));
    CHECK(same(request.if_match, "\"a\", , W/\"b\"") || same(request.if_match, "\"a\", W/\"b\""));
    CHECK(same(request.if_range, "\"r\""));
    CHECK(same(request.connection, "keep-alive, upgrade"));
    CHECK(same(request.if_none_match, NULL) && same(request.if_modified_since, NULL));
    CHECK(same(request.method, "HEAD") && request.version == 10 && same(request.target, "/kept"));
    CHECK(request.if_range.ptr == lines[6][1]);

    check_case("fields, scratch too small");
    needed = 0;
    CHECK_STATUS(sendgate_request_from_fields(&request, fields, N(fields), NULL, 0, &needed), SENDGATE_ERR_NO_SPACE);
    CHECK(needed > 0 && needed <= values);
    char *exact = malloc(needed);
    size_t again = 0;
    MUST(exact != NULL);
    CHECK_STATUS(sendgate_request_from_fields(&request, fields, N(fields), exact, needed - 1, &again),
                 SENDGATE_ERR_NO_SPACE);
    CHECK_INT(again, needed);
    CHECK_STATUS(sendgate_request_from_fields(&request, fields, N(fields), exact, needed, &again), SENDGATE_OK);
    CHECK(same(request.range, "bytes=0-9, 5-6, 7-8"));
    free(exact);

    check_case("present and empty is not absent");
    fields[0].name = text("If-None-Match");
    fields[0].value = text("");
    CHECK_STATUS(sendgate_request_from_fields(&request, fields, 1, NULL, 0, NULL), SENDGATE_OK);
    CHECK(same(request.if_none_match, ""));
    CHECK(same(request.range, NULL));

    static const struct announced {
        const char *name, *value;
        uint32_t flags;
    } announced[] = {
        {"Content-Length", "5", SENDGATE_REQUEST_HAS_BODY},
        {"content-length", "0", 0},
        {"TRANSFER-ENCODING", "chunked", SENDGATE_REQUEST_HAS_BODY},
        {"Content-Lengths", "5", 0},
    };
    for (size_t i = 0; i < N(announced); i++) {
        check_case("%s: %s", announced[i].name, announced[i].value);
        fields[0].name = text(announced[i].name);
        fields[0].value = text(announced[i].value);
        CHECK_STATUS(sendgate_request_from_fields(&request, fields, 1, NULL, 0, NULL), SENDGATE_OK);
        CHECK_INT(request.flags, announced[i].flags);
    }
}

/* ---- Everything else ---- */

static uint64_t state = 88172645463325252ULL;

/* Knuth's MMIX generator; the same numbers in every run. */
static uint32_t random_below(uint32_t bound)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(state >> 33) % bound;
}

/* Replace, insert, remove or repeat a few bytes. */
static size_t mutate(char *bytes, size_t len, size_t cap)
{
    static const char interesting[] = "\r\n\t :,;=-*\"W/\0019\x80\xff" "bytes=GMT0";
    for (uint32_t changes = 1 + random_below(4); changes > 0; changes--) {
        size_t at = len == 0 ? 0 : random_below((uint32_t)len);
        char byte = random_below(4) == 0 ? (char)random_below(256) : interesting[random_below(sizeof interesting)];
        switch (random_below(4)) {
        case 0:
            if (len > 0)
                bytes[at] = byte;
            break;
        case 1:
            if (len < cap) {
                memmove(bytes + at + 1, bytes + at, len - at);
                bytes[at] = byte;
                len++;
            }
            break;
        case 2:
            if (len > 0) {
                memmove(bytes + at, bytes + at + 1, len - at - 1);
                len--;
            }
            break;
        default: {
            size_t n = random_below(20);
            if (len + n <= cap && at + n <= len) {
                memmove(bytes + at + n, bytes + at, len - at);
                len += n;
            }
        }
        }
    }
    return len;
}

/* What must hold for any request: a sane decision, or a refusal. */
static void check_decision(const sendgate_request *asked, uint64_t length)
{
    static const char etag[] = "\"17c7a1e0-3e8\"";
    sendgate_rep rep;
    sendgate_exchange exchange;
    sendgate_decision decision;
    sendgate_range ranges[64];
    memset(&rep, 0, sizeof rep);
    rep.size = sizeof rep;
    rep.kind = SENDGATE_REP_FILE;
    rep.length = length;
    rep.flags = SENDGATE_REP_HAS_MTIME;
    rep.mtime = 784111777;
    rep.etag = text(etag);
    memset(&exchange, 0, sizeof exchange);
    exchange.size = sizeof exchange;
    exchange.request = asked;
    exchange.rep = &rep;
    exchange.now = 1700000000;
    exchange.seed = 1;
    memset(&decision, 0, sizeof decision);
    decision.size = sizeof decision;
    sendgate_status status = sendgate_decide(&exchange, ranges, 64, &decision);
    if (status != SENDGATE_OK) {
        CHECK_STATUS(status, SENDGATE_ERR_INVALID);
        return;
    }
    uint64_t sum = 0;
    switch (decision.http_status) {
    case 200:
        CHECK(decision.n_ranges == 0 && decision.content_length == length);
        break;
    case 206:
        CHECK(decision.n_ranges >= 1 && decision.n_ranges <= 64);
        for (size_t i = 0; i < decision.n_ranges; i++) {
            CHECK(ranges[i].length > 0 && ranges[i].length <= length);
            CHECK(ranges[i].offset < length && length - ranges[i].offset >= ranges[i].length);
            sum += ranges[i].length;
        }
        CHECK(sum <= length && decision.body_length >= sum);
        break;
    case 304:
    case 412:
    case 416:
        CHECK(decision.n_ranges == 0 && decision.body_length == 0);
        break;
    default:
        CHECK_INT(decision.http_status, 200);
    }
    /* The head tells the same. */
    char head[1000];
    size_t len = 0;
    if (CHECK_STATUS(sendgate_head_bytes(&exchange, head, sizeof head, &len), SENDGATE_OK)) {
        struct answer answer;
        answer_of(&answer, head, len);
        CHECK_INT(answer.status, decision.http_status);
        CHECK_INT(answer.body_len, 0);
    }
}

static void fuzz(void)
{
    static const char *const seeds[] = {
        full,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nRange: bytes=0-0,-1\r\nRange: bytes=5-\r\n\r\nhello",
        "GET / HTTP/1.0\r\nIf-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\nRange: bytes=0-1,3-4,6-7,9-\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: W/\"17c7a1e0-3e8\", \"x,y\", *\r\nTransfer-Encoding: chunked\r\n\r\n",
    };
    static const char *const values[] = {
        "bytes=0-9,20-29,-5,18446744073709551615-,0-18446744073709551616",
        "bytes=0-0,1-1,2-2,4-4,6-6,8-8,10-10,12-12,14-14,16-16,18-18,20-20,22-22,24-24,26-26,28-28",
        "\"17c7a1e0-3e8\", W/\"17c7a1e0-3e8\", \"\", *",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 GMT",
    };
    /* Valgrind is some thirty times slower. */
    int rounds = getenv("SENDGATE_TEST_SLOW") != NULL ? 10000 : 200000;
    for (int round = 0; round < rounds; round++) {
        check_case("fuzz round %d", round);
        char bytes[1000], scratch[1200];
        size_t needed = 0, head_len = 0;
        const char *seed = seeds[random_below(N(seeds))];
        size_t len = mutate(memcpy(bytes, seed, strlen(seed)), strlen(seed), sizeof bytes);
        char *head = at_guard(bytes, len);
        sendgate_status status = parse(head, len, scratch, sizeof scratch, &needed, &head_len);
        if (status == SENDGATE_OK) {
            CHECK(head_len <= len && head_len >= 2 && head[head_len - 1] == '\n');
            check_decision(&request, random_below(2000));
        } else {
            CHECK(status == SENDGATE_WANT_READ || status == SENDGATE_ERR_REQUEST);
        }

        const char *value = values[random_below(N(values))];
        len = mutate(memcpy(bytes, value, strlen(value)), strlen(value), sizeof bytes);
        memset(&request, 0, sizeof request);
        request.size = sizeof request;
        request.method = text("GET");
        sendgate_str *members[] = {&request.range, &request.if_none_match, &request.if_match, &request.if_range,
                                   &request.if_modified_since, &request.if_unmodified_since, &request.connection};
        sendgate_str *member = members[random_below(N(members))];
        if (member == &request.if_range)
            request.range = text("bytes=1-2");
        *member = text_of(at_guard(bytes, len), len);
        check_decision(&request, random_below(8) == 0 ? INT64_MAX : random_below(200));
    }
}

int main(void)
{
    check_begin();
    guard_init();
    whole_and_cut();
    malformed();
    from_fields();
    fuzz();
    return check_end();
}
