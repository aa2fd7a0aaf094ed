/* The rows of tests/cases through the C calls. tests/c.rs reads them and hands them over on stdin, one thing a
 * line; the answers go to stdout in the same manner, for it to judge.
 *
 *   in:  row NAME                          out:  row NAME
 *        method BYTES                            error NAME, or
 *        version 10|11                           answer STATUS KEEP_ALIVE CONTENT_LENGTH BODY_LENGTH
 *        field NAME VALUE     (request)          range OFFSET LENGTH   (any number)
 *        header RULE NAME VALUE                  head BYTES
 *        body|length|mtime|nsec|now|status|max_ranges|close NUMBER
 *        etag|type BYTES                         end
 *        end
 *
 * BYTES, NAME of a field and VALUE are in hexadecimal, "-" for none, so that nothing needs quoting.
 */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FIELDS 4096
#define MAX_HEADERS 64
#define BYTES 400000

static struct row {
    char name[200];
    sendgate_str method, etag, type;
    long long version, body, length, mtime, nsec, now, status, max_ranges, close;
    sendgate_field fields[MAX_FIELDS];
    size_t n_fields;
    sendgate_header headers[MAX_HEADERS];
    size_t n_headers;
    char bytes[BYTES];
    size_t used;
} row;

static int digit(char c)
{
    return c >= 'a' ? c - 'a' + 10 : c - '0';
}

/* The next word of the line, out of hexadecimal. */
static sendgate_str next_bytes(void)
{
    const char *word = strtok(NULL, " ");
    MUST(word != NULL);
    char *to = row.bytes + row.used;
    size_t len = 0;
    if (strcmp(word, "-") != 0) {
        for (; word[0] != '\0' && word[1] != '\0'; word += 2) {
            MUST(row.used + len < BYTES);
            to[len++] = (char)(digit(word[0]) * 16 + digit(word[1]));
        }
    }
    row.used += len;
    return text_of(to, len);
}

static long long next_number(void)
{
    const char *word = strtok(NULL, " ");
    MUST(word != NULL);
    return strtoll(word, NULL, 10);
}

static void read_line(const char *key)
{
    const struct number {
        const char *key;
        long long *to;
    } numbers[] = {
        {"version", &row.version}, {"body", &row.body}, {"length", &row.length},
        {"mtime", &row.mtime},     {"nsec", &row.nsec}, {"now", &row.now},
        {"status", &row.status},   {"close", &row.close}, {"max_ranges", &row.max_ranges},
    };
    const struct text {
        const char *key;
        sendgate_str *to;
    } texts[] = {{"method", &row.method}, {"etag", &row.etag}, {"type", &row.type}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(key, numbers[i].key) == 0) {
            *numbers[i].to = next_number();
            return;
        }
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(key, texts[i].key) == 0) {
            *texts[i].to = next_bytes();
            return;
        }
    }
    if (strcmp(key, "field") == 0) {
        MUST(row.n_fields < MAX_FIELDS);
        sendgate_field *field = &row.fields[row.n_fields++];
        field->name = next_bytes();
        field->value = next_bytes();
    } else {
        MUST(strcmp(key, "header") == 0 && row.n_headers < MAX_HEADERS);
        sendgate_header *header = &row.headers[row.n_headers++];
        header->rule = (uint32_t)next_number();
        header->field.name = next_bytes();
        header->field.value = next_bytes();
    }
}

/* The head as bytes and the head as fields are one head, and CGI's has the same fields but two. */
static void check_heads(sendgate_exchange *exchange, const char *head, size_t len)
{
    static char scratch[BYTES], joined[BYTES], cgi[BYTES];
    static sendgate_field fields[MAX_HEADERS + 20];
    size_t n = 0, needed = 0, used = 0, cgi_len = 0;
    if (!CHECK_STATUS(sendgate_head_fields(exchange, fields, sizeof fields / sizeof *fields, scratch, sizeof scratch, &n,
                                           &needed),
                      SENDGATE_OK))
        return;
    struct answer answer;
    answer_of(&answer, head, len);
    CHECK(answer.status != 0 && answer.body_len == 0);
    const char *first = memchr(head, '\n', len);
    MUST(first != NULL);
    for (size_t i = 0; i < n; i++) {
        used += (size_t)snprintf(joined + used, sizeof joined - used, "%.*s: ", (int)fields[i].name.len,
                                 fields[i].name.ptr);
        MUST(used + fields[i].value.len + 4 < sizeof joined);
        memcpy(joined + used, fields[i].value.ptr, fields[i].value.len);
        used += fields[i].value.len;
        memcpy(joined + used, "\r\n", 2);
        used += 2;
    }
    memcpy(joined + used, "\r\n", 2);
    used += 2;
    size_t behind = len - (size_t)(first + 1 - head);
    CHECK(used == behind && memcmp(joined, first + 1, behind) == 0);

    exchange->head = SENDGATE_HEAD_CGI;
    CHECK_STATUS(sendgate_head_bytes(exchange, cgi, sizeof cgi, &cgi_len), SENDGATE_OK);
    char status_line[20];
    snprintf(status_line, sizeof status_line, "Status: %d ", answer.status);
    CHECK(cgi_len > strlen(status_line) && memcmp(cgi, status_line, strlen(status_line)) == 0);
    CHECK(!contains(cgi, cgi_len, "\r\nDate: ") && !contains(cgi, cgi_len, "\r\nConnection: "));
    for (size_t i = 0; i < n; i++) {
        snprintf(joined, sizeof joined, "\r\n%.*s: %.*s\r\n", (int)fields[i].name.len, fields[i].name.ptr,
                 (int)fields[i].value.len, fields[i].value.ptr);
        if (strncmp(joined, "\r\nDate: ", 8) != 0 && strncmp(joined, "\r\nConnection: ", 14) != 0)
            CHECK(contains(cgi, cgi_len, joined));
    }
    exchange->head = SENDGATE_HEAD_HTTP1;
}

/* ---- A stream and memory ---- */

#ifdef SENDGATE_REP_STREAM /* not in the first version's header */

#define MAX_CONTENT 100000

struct collected {
    char bytes[BYTES + MAX_CONTENT];
    size_t len;
};

static sendgate_status collect(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct collected *collected = user;
    MUST(collected->len + len <= sizeof collected->bytes);
    memcpy(collected->bytes + collected->len, data, len);
    collected->len += len;
    *written = len;
    return SENDGATE_OK;
}

static unsigned long agreed;

/* A stream that can seek, and is given just what it asks for, sends the same bytes as memory does. */
static void check_stream(struct ask *ask)
{
    static struct collected from_memory, from_stream;
    static uint8_t content[MAX_CONTENT];
    sendgate_stream *stream = NULL;
    sendgate_result result;
    if (row.length > MAX_CONTENT)
        return;
    pattern_fill(content, sizeof content);
    from_memory.len = from_stream.len = 0;
    memset(&result, 0, sizeof result);
    result.size = sizeof result;
    ask->rep.kind = SENDGATE_REP_MEMORY;
    ask->rep.memory = content;
    ask->sink.write = collect;
    ask->sink.user = &from_memory;
    sendgate_status status = sendgate_respond(&ask->exchange, &ask->sink, &ask->result);
    ask->rep.kind = SENDGATE_REP_STREAM;
    ask->rep.flags |= SENDGATE_REP_SEEKABLE;
    ask->rep.memory = NULL;
    ask->sink.user = &from_stream;
    MUST(sendgate_stream_new(&stream) == SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_start(stream, &ask->exchange, &ask->sink, NULL), status);
    if (status == SENDGATE_OK) {
        sendgate_range next;
        size_t written;
        while (CHECK_STATUS(sendgate_stream_next(stream, &next), SENDGATE_OK) && next.length > 0) {
            static size_t turn;
            const size_t most[] = {1, 100, 3, 4096, 20};
            size_t n = most[turn++ % (sizeof most / sizeof *most)];
            n = next.length < n ? (size_t)next.length : n;
            if (!CHECK(next.offset + n <= (uint64_t)row.length) ||
                !CHECK_STATUS(sendgate_stream_write(stream, content + next.offset, n, &written, NULL), SENDGATE_OK))
                break;
            CHECK_INT(written, n);
        }
        CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, &result), SENDGATE_OK);
        CHECK(memcmp(&result, &ask->result, sizeof result) == 0);
        CHECK(from_memory.len == from_stream.len &&
              memcmp(from_memory.bytes, from_stream.bytes, from_stream.len) == 0);
        agreed++;
    }
    sendgate_stream_free(stream);
}
#else
static void check_stream(struct ask *ask)
{
    (void)ask;
}
#endif

static void run_row(void)
{
    static char scratch[BYTES], head[BYTES];
    static sendgate_range ranges[64];
    sendgate_field fields[1];
    size_t needed = 0, len = 0, n = 0;
    struct ask ask;
    sendgate_decision decision;
    ask_memory(&ask, NULL, 0, -1);
    memset(&decision, 0, sizeof decision);
    decision.size = sizeof decision;
    CHECK_STATUS(sendgate_request_from_fields(&ask.request, row.fields, row.n_fields, scratch, sizeof scratch, &needed),
                 SENDGATE_OK);
    ask.request.method = row.method;
    ask.request.version = (uint32_t)row.version;
    if (row.body)
        ask.request.flags |= SENDGATE_REQUEST_HAS_BODY;
    /* A file, whose descriptor nothing here uses. */
    ask.rep.kind = SENDGATE_REP_FILE;
    ask.rep.fd = 0;
    ask.rep.flags = SENDGATE_REP_HAS_MTIME | SENDGATE_REP_ETAG_FROM_MTIME;
    ask.rep.length = (uint64_t)row.length;
    ask.rep.mtime = row.mtime;
    ask.rep.mtime_nsec = (uint32_t)row.nsec;
    ask.rep.etag = row.etag;
    ask.rep.content_type = row.type;
    ask.exchange.headers = row.headers;
    ask.exchange.n_headers = row.n_headers;
    ask.exchange.now = row.now;
    ask.exchange.seed = 1;
    ask.exchange.head_flags = row.close ? SENDGATE_HEAD_CLOSE : 0;
    ask.exchange.max_ranges = (uint32_t)row.max_ranges;
    ask.exchange.http_status = (uint32_t)row.status;

    printf("row %s\n", row.name);
    sendgate_status status = sendgate_decide(&ask.exchange, ranges, 64, &decision);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, head, sizeof head, &len), status);
    if (status != SENDGATE_OK) {
        CHECK_STATUS(sendgate_head_fields(&ask.exchange, fields, 1, scratch, sizeof scratch, &n, &needed), status);
        printf("error %s\nend\n", sendgate_status_name(status));
        check_stream(&ask);
        return;
    }
    printf("answer %u %u %llu %llu\n", (unsigned)decision.http_status, (unsigned)decision.keep_alive,
           (unsigned long long)decision.content_length, (unsigned long long)decision.body_length);
    for (size_t i = 0; i < decision.n_ranges; i++)
        printf("range %llu %llu\n", (unsigned long long)ranges[i].offset, (unsigned long long)ranges[i].length);
    printf("head ");
    for (size_t i = 0; i < len; i++)
        printf("%02x", (unsigned char)head[i]);
    printf("\nend\n");
    check_heads(&ask.exchange, head, len);
    check_stream(&ask);
}

int main(void)
{
    check_begin();
    char *line = NULL;
    size_t cap = 0;
    for (ssize_t len; (len = getline(&line, &cap, stdin)) > 0;) {
        line[strcspn(line, "\n")] = '\0';
        const char *key = strtok(line, " ");
        MUST(key != NULL);
        if (strcmp(key, "row") == 0) {
            const char *name = strtok(NULL, " ");
            MUST(name != NULL);
            memset(&row, 0, offsetof(struct row, bytes));
            row.used = 0;
            snprintf(row.name, sizeof row.name, "%s", name);
            check_case("%s", name);
        } else if (strcmp(key, "end") == 0) {
            run_row();
        } else {
            read_line(key);
        }
    }
    free(line);
#ifdef SENDGATE_REP_STREAM
    check_case("streams");
    CHECK(agreed > 200);
#endif
    return check_end();
}
