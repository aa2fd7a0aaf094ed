/* Lists of fields that can be frozen: the rows of tests/header_lists.toml, which tests/c.rs hands over on stdin, and
 * what becomes of a list in an answer.
 *
 *   case NAME                       then steps, each with its error, then what there is afterwards:
 *   set|add NAME VALUE STATUS       line NAME VALUE
 *   remove|freeze NAME STATUS       frozen|open NAME
 *   end
 *
 * NAME of a field and VALUE are in hexadecimal, "-" for none.
 */
#include "interpose.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N(array) (sizeof array / sizeof *array)

/* ---- malloc, which can fail ---- */

static unsigned long allocations, fail_at;
static __thread int inside;

static int fails(void)
{
    if (!inside || ++allocations != fail_at)
        return 0;
    errno = ENOMEM;
    return 1;
}

INTERPOSE(void *, malloc, (size_t size), fails(), NULL, (size))
INTERPOSE(void *, realloc, (void *old, size_t size), fails(), NULL, (old, size))

/* ---- What the tests do with a list ---- */

static sendgate_headers *new_list(void)
{
    sendgate_headers *list = NULL;
    MUST(sendgate_headers_new(&list) == SENDGATE_OK && list != NULL);
    return list;
}

static sendgate_header header_of(const char *name, const char *value, uint32_t rule)
{
    sendgate_header header;
    memset(&header, 0, sizeof header);
    header.field.name = text(name);
    header.field.value = text(value);
    header.rule = rule;
    return header;
}

static sendgate_status set(sendgate_headers *list, const char *name, const char *value)
{
    sendgate_header header = header_of(name, value, SENDGATE_RULE_OVERRIDE);
    return sendgate_headers_set(list, &header);
}

static sendgate_status add(sendgate_headers *list, const char *name, const char *value, uint32_t rule)
{
    sendgate_header header = header_of(name, value, rule);
    return sendgate_headers_add(list, &header);
}

static sendgate_status freeze(sendgate_headers *list, const char *name)
{
    return sendgate_headers_freeze(list, name, strlen(name));
}

static int is_frozen(sendgate_headers *list, const char *name)
{
    uint32_t frozen = 99;
    CHECK_STATUS(sendgate_headers_is_frozen(list, name, strlen(name), &frozen), SENDGATE_OK);
    return (int)frozen;
}

static int same(sendgate_str a, sendgate_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

/* The list goes into the exchange. */
static void use(sendgate_headers *list, struct ask *ask)
{
    CHECK_STATUS(sendgate_headers_list(list, &ask->exchange.headers, &ask->exchange.n_headers), SENDGATE_OK);
}

/* ---- The rows ---- */

#define MAX_LINES 100

static struct row {
    char name[200];
    sendgate_headers *list;
    sendgate_field lines[MAX_LINES];
    size_t n_lines;
    char bytes[100000];
    size_t used;
} row;
static unsigned rows;

static const char *next_word(void)
{
    const char *word = strtok(NULL, " ");
    MUST(word != NULL);
    return word;
}

static int digit(char c)
{
    return c >= 'a' ? c - 'a' + 10 : c - '0';
}

static sendgate_str next_bytes(void)
{
    const char *word = next_word();
    char *to = row.bytes + row.used;
    size_t len = 0;
    if (strcmp(word, "-") != 0) {
        for (; word[0] != '\0' && word[1] != '\0'; word += 2) {
            MUST(row.used + len < sizeof row.bytes);
            to[len++] = (char)(digit(word[0]) * 16 + digit(word[1]));
        }
    }
    row.used += len;
    return text_of(to, len);
}

/* The lines are what the row says: one by one, by name, and by name and index. */
static void check_lines(void)
{
    const sendgate_header *headers = NULL;
    size_t n = 99, k = 0;
    CHECK_STATUS(sendgate_headers_list(row.list, &headers, &n), SENDGATE_OK);
    for (size_t i = 0; i < n; i++) {
        if ((headers[i].rule & ~(uint32_t)SENDGATE_RULE_FROZEN) == SENDGATE_RULE_REMOVE)
            continue;
        if (!CHECK(k < row.n_lines))
            return;
        CHECK(same(headers[i].field.name, row.lines[k].name) && same(headers[i].field.value, row.lines[k].value));
        CHECK_INT(headers[i].reserved, 0);
        k++;
    }
    CHECK_INT(k, row.n_lines);
    for (size_t i = 0; i < row.n_lines; i++) {
        size_t index = 0;
        for (size_t before = 0; before < i; before++) {
            const sendgate_str a = row.lines[before].name, b = row.lines[i].name;
            index += a.len == b.len && strncasecmp(a.ptr, b.ptr, a.len) == 0;
        }
        sendgate_str value = {NULL, 99};
        CHECK_STATUS(sendgate_headers_get(row.list, row.lines[i].name.ptr, row.lines[i].name.len, index, &value),
                     SENDGATE_OK);
        CHECK(same(value, row.lines[i].value));
        CHECK_STATUS(sendgate_headers_get(row.list, row.lines[i].name.ptr, row.lines[i].name.len, row.n_lines, &value),
                     SENDGATE_EMPTY);
    }
}

static void read_line(const char *key)
{
    if (strcmp(key, "line") == 0) {
        MUST(row.n_lines < MAX_LINES);
        row.lines[row.n_lines].name = next_bytes();
        row.lines[row.n_lines++].value = next_bytes();
        return;
    }
    sendgate_header header = header_of("", "", SENDGATE_RULE_OVERRIDE);
    sendgate_str name = next_bytes();
    header.field.name = name;
    sendgate_status status = SENDGATE_ERR_INTERNAL;
    if (strcmp(key, "frozen") == 0 || strcmp(key, "open") == 0) {
        uint32_t frozen = 99;
        CHECK_STATUS(sendgate_headers_is_frozen(row.list, name.ptr, name.len, &frozen), SENDGATE_OK);
        CHECK_INT(frozen, *key == 'f');
        return;
    }
    if (strcmp(key, "set") == 0) {
        header.field.value = next_bytes();
        status = sendgate_headers_set(row.list, &header);
    } else if (strcmp(key, "add") == 0) {
        header.field.value = next_bytes();
        status = sendgate_headers_add(row.list, &header);
    } else if (strcmp(key, "remove") == 0) {
        status = sendgate_headers_remove(row.list, name.ptr, name.len);
    } else {
        MUST(strcmp(key, "freeze") == 0);
        status = sendgate_headers_freeze(row.list, name.ptr, name.len);
    }
    CHECK(strcmp(sendgate_status_name(status), next_word()) == 0);
}

static void every_row(void)
{
    char *line = NULL;
    size_t cap = 0;
    for (ssize_t len; (len = getline(&line, &cap, stdin)) > 0;) {
        line[strcspn(line, "\n")] = '\0';
        const char *key = strtok(line, " ");
        MUST(key != NULL);
        if (strcmp(key, "case") == 0) {
            memset(&row, 0, sizeof row);
            snprintf(row.name, sizeof row.name, "%s", next_word());
            row.list = new_list();
            check_case("%s", row.name);
        } else if (strcmp(key, "end") == 0) {
            check_lines();
            sendgate_headers_free(row.list);
            rows++;
        } else {
            read_line(key);
        }
    }
    free(line);
    printf("%u rows\n", rows);
}

/* ---- In an answer ---- */

#define ETAG "\"tag\""

static void head_of(struct ask *ask, struct answer *answer)
{
    static char head[8000];
    size_t len = 0;
    CHECK_STATUS(sendgate_head_bytes(&ask->exchange, head, sizeof head, &len), SENDGATE_OK);
    answer_of(answer, head, len);
    CHECK(answer->status != 0);
}

static void ask_tagged(struct ask *ask)
{
    ask_memory(ask, "0123456789", 10, -1);
    ask->rep.etag = text(ETAG);
    ask->rep.flags = SENDGATE_REP_HAS_MTIME;
    ask->rep.mtime = 784111777;
    ask->rep.content_type = text("text/plain");
}

static void absences(void)
{
    struct ask ask;
    struct answer answer;
    char value[100];
    sendgate_headers *list = new_list();

    check_case("a frozen absence of ETag: none is sent, and no condition is evaluated with it");
    ask_tagged(&ask);
    ask.request.if_none_match = text(ETAG);
    use(list, &ask);
    head_of(&ask, &answer);
    CHECK_INT(answer.status, 304);
    CHECK_STATUS(freeze(list, "ETag"), SENDGATE_OK);
    CHECK_STATUS(set(list, "ETag", "\"late\""), SENDGATE_ERR_FROZEN);
    use(list, &ask);
    head_of(&ask, &answer);
    CHECK_INT(answer.status, 200);
    CHECK_INT(answer_field(&answer, "ETag", value, sizeof value), 0);
    /* The other validator is still there, and is compared with. */
    CHECK_INT(answer_field(&answer, "Last-Modified", value, sizeof value), 1);
    ask.request.if_none_match = text_of(NULL, 0);
    ask.request.if_modified_since = text("Sun, 06 Nov 1994 08:49:37 GMT");
    head_of(&ask, &answer);
    CHECK_INT(answer.status, 304);
    CHECK_STATUS(freeze(list, "Last-Modified"), SENDGATE_OK);
    CHECK_STATUS(freeze(list, "content-type"), SENDGATE_OK);
    use(list, &ask);
    head_of(&ask, &answer);
    CHECK_INT(answer.status, 200);
    CHECK_INT(answer_field(&answer, "Last-Modified", value, sizeof value), 0);
    CHECK_INT(answer_field(&answer, "Content-Type", value, sizeof value), 0);
    sendgate_headers_free(list);

    check_case("the same for a stream");
    list = new_list();
    sendgate_stream *stream = NULL;
    sendgate_decision decision;
    memset(&decision, 0, sizeof decision);
    decision.size = sizeof decision;
    int sockets[2];
    make_pair(UNIX_PAIR, 0, sockets);
    MUST(sendgate_stream_new(&stream) == SENDGATE_OK);
    ask_tagged(&ask);
    ask.rep.kind = SENDGATE_REP_STREAM;
    ask.sink.fd = sockets[0];
    ask.request.if_none_match = text(ETAG);
    for (int frozen = 0; frozen < 2; frozen++) {
        use(list, &ask);
        CHECK_STATUS(sendgate_stream_start(stream, &ask.exchange, &ask.sink, &decision), SENDGATE_OK);
        CHECK_INT(decision.http_status, frozen ? 200 : 304);
        CHECK_STATUS(freeze(list, "ETag"), SENDGATE_OK);
    }
    /* The stream has made its head: what becomes of the list is nothing to it. */
    sendgate_headers_free(list);
    CHECK_STATUS(sendgate_stream_write(stream, (const uint8_t *)"0123456789", 10, NULL, NULL), SENDGATE_OK);
    CHECK_STATUS(sendgate_stream_end(stream, NULL, 0, NULL), SENDGATE_OK);
    char bytes[1000];
    long got = peer_take(sockets[1], bytes, sizeof bytes);
    answer_of(&answer, bytes, got > 0 ? (size_t)got : 0);
    CHECK_INT(answer.status, 200);
    CHECK_INT(answer_field(&answer, "ETag", value, sizeof value), 0);
    sendgate_stream_free(stream);
    close(sockets[0]);
    close(sockets[1]);
}

static void frozen_fields(void)
{
    static const struct wanted {
        int status;
        const char *if_none_match, *if_match, *range;
    } answers[] = {
        {200, NULL, NULL, NULL},
        {206, NULL, NULL, "bytes=2-4"},
        {304, "\"mine\"", NULL, NULL},
        {412, NULL, "\"other\"", NULL},
        {416, NULL, NULL, "bytes=10-"},
    };
    struct ask ask;
    struct answer answer;
    char value[100];
    for (int frozen = 0; frozen < 2; frozen++) {
        sendgate_headers *list = new_list();
        CHECK_STATUS(set(list, "ETag", "\"mine\""), SENDGATE_OK);
        CHECK_STATUS(set(list, "Content-Language", "de"), SENDGATE_OK);
        CHECK_STATUS(add(list, "X-Two", "1", SENDGATE_RULE_APPEND), SENDGATE_OK);
        CHECK_STATUS(add(list, "X-Two", "2", SENDGATE_RULE_APPEND), SENDGATE_OK);
        if (frozen) {
            CHECK_STATUS(freeze(list, "etag"), SENDGATE_OK);
            CHECK_STATUS(freeze(list, "content-language"), SENDGATE_OK);
            CHECK_STATUS(freeze(list, "x-two"), SENDGATE_OK);
        }
        CHECK_INT(is_frozen(list, "ETag"), frozen);
        CHECK_STATUS(set(list, "ETag", "\"yours\""), frozen ? SENDGATE_ERR_FROZEN : SENDGATE_OK);
        if (!frozen)
            CHECK_STATUS(set(list, "ETag", "\"mine\""), SENDGATE_OK);
        for (size_t i = 0; i < N(answers); i++) {
            check_case("%s fields in a %d", frozen ? "frozen" : "free", answers[i].status);
            ask_tagged(&ask);
            if (answers[i].if_none_match != NULL)
                ask.request.if_none_match = text(answers[i].if_none_match);
            if (answers[i].if_match != NULL)
                ask.request.if_match = text(answers[i].if_match);
            if (answers[i].range != NULL)
                ask.request.range = text(answers[i].range);
            use(list, &ask);
            head_of(&ask, &answer);
            CHECK_INT(answer.status, answers[i].status);
            int has_content = answers[i].status == 200 || answers[i].status == 206;
            /* A 304 tells the validator whether it is frozen or not (RFC 9110 15.4.5). */
            CHECK_INT(answer_field(&answer, "ETag", value, sizeof value), frozen || has_content || answers[i].status == 304);
            if (value[0] != '\0')
                CHECK(strcmp(value, "\"mine\"") == 0);
            CHECK_INT(answer_field(&answer, "Content-Language", value, sizeof value), frozen || has_content);
            if (frozen)
                CHECK_INT(answer_field(&answer, "X-Two", value, sizeof value), 2);
        }
        sendgate_headers_free(list);
    }
}

/* Rules go through a list as they are. */
static void rules(void)
{
    static const uint32_t all[] = {SENDGATE_RULE_DEFAULT, SENDGATE_RULE_OVERRIDE, SENDGATE_RULE_APPEND,
                                   SENDGATE_RULE_REMOVE};
    const sendgate_header *headers = NULL;
    size_t n = 0;
    for (size_t i = 0; i < N(all); i++) {
        for (uint32_t frozen = 0; frozen <= SENDGATE_RULE_FROZEN; frozen += SENDGATE_RULE_FROZEN) {
            check_case("rule %u", (unsigned)(all[i] | frozen));
            sendgate_headers *list = new_list();
            CHECK_STATUS(add(list, "Server", "x", all[i] | frozen), SENDGATE_OK);
            CHECK_STATUS(sendgate_headers_list(list, &headers, &n), SENDGATE_OK);
            CHECK(n == 1 && headers[0].rule == (all[i] | frozen));
            CHECK_INT(is_frozen(list, "SERVER"), frozen != 0);
            CHECK_STATUS(set(list, "Server", "y"), frozen ? SENDGATE_ERR_FROZEN : SENDGATE_OK);
            sendgate_headers_free(list);
        }
    }
    check_case("a line that is to remove gives way to one that is added");
    sendgate_headers *lines = new_list();
    CHECK_STATUS(add(lines, "ETag", "", SENDGATE_RULE_REMOVE), SENDGATE_OK);
    CHECK_STATUS(add(lines, "etag", "\"a\"", SENDGATE_RULE_OVERRIDE), SENDGATE_OK);
    CHECK_STATUS(sendgate_headers_list(lines, &headers, &n), SENDGATE_OK);
    CHECK(n == 1 && headers[0].rule == SENDGATE_RULE_OVERRIDE);
    check_case("a frozen line freezes all of its name");
    CHECK_STATUS(add(lines, "Link", "1", SENDGATE_RULE_APPEND), SENDGATE_OK);
    CHECK_STATUS(add(lines, "link", "2", SENDGATE_RULE_APPEND | SENDGATE_RULE_FROZEN), SENDGATE_OK);
    CHECK_STATUS(sendgate_headers_list(lines, &headers, &n), SENDGATE_OK);
    CHECK(n == 3 && headers[1].rule == (SENDGATE_RULE_APPEND | SENDGATE_RULE_FROZEN) && headers[2].rule == headers[1].rule);
    sendgate_headers_free(lines);

    check_case("that there is no framing can't be frozen, what the application says of it can");
    static const char *const framing[] = {"Content-Length", "content-range", "Transfer-Encoding", "Connection", "Keep-Alive"};
    lines = new_list();
    for (size_t i = 0; i < N(framing); i++) {
        CHECK_STATUS(freeze(lines, framing[i]), SENDGATE_ERR_FIELD);
        CHECK_INT(is_frozen(lines, framing[i]), 0);
    }
    CHECK_STATUS(set(lines, "Content-Length", "10"), SENDGATE_OK);
    CHECK_STATUS(freeze(lines, "content-length"), SENDGATE_OK);
    CHECK_STATUS(set(lines, "Content-Length", "11"), SENDGATE_ERR_FROZEN);
    sendgate_headers_free(lines);

    check_case("a rule that there isn't");
    sendgate_headers *list = new_list();
    CHECK_STATUS(add(list, "A", "1", 4), SENDGATE_ERR_INVALID);
    CHECK_STATUS(add(list, "A", "1", 32), SENDGATE_ERR_INVALID);
    sendgate_header header = header_of("A", "1", SENDGATE_RULE_APPEND);
    header.reserved = 1;
    CHECK_STATUS(sendgate_headers_set(list, &header), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_add(list, &header), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_list(list, &headers, &n), SENDGATE_OK);
    CHECK_INT(n, 0);
    sendgate_headers_free(list);
}

/* Pointers into the list hold until it is changed, whatever is asked of it; all of it is copied. */
static void what_is_kept(void)
{
    check_case("copies, and pointers into the list");
    sendgate_headers *list = new_list();
    char *name = strdup("ETag"), *value = strdup(ETAG);
    MUST(name != NULL && value != NULL);
    CHECK_STATUS(set(list, name, value), SENDGATE_OK);
    free(name);
    free(value);
    const sendgate_header *headers = NULL;
    size_t n = 0;
    sendgate_str got = {NULL, 0};
    CHECK_STATUS(sendgate_headers_get(list, "etag", 4, 0, &got), SENDGATE_OK);
    CHECK_STATUS(sendgate_headers_list(list, &headers, &n), SENDGATE_OK);
    CHECK_INT(is_frozen(list, "A"), 0);
    CHECK_STATUS(set(list, "B", "\n"), SENDGATE_ERR_FIELD); /* is no change */
    CHECK(n == 1 && same(headers[0].field.name, text("ETag")) && same(headers[0].field.value, text(ETAG)));
    CHECK(same(got, text(ETAG)));
    got = text("kept");
    CHECK_STATUS(sendgate_headers_get(list, "etag", 4, 1, &got), SENDGATE_EMPTY);
    CHECK_STATUS(sendgate_headers_get(list, "A", 1, 0, &got), SENDGATE_EMPTY);
    CHECK_STATUS(sendgate_headers_get(list, NULL, 0, 0, &got), SENDGATE_EMPTY);
    CHECK(same(got, text("kept")));
    /* Many lines, so that all that grows has grown. */
    for (int i = 0; i < 1000; i++) {
        char number[20];
        snprintf(number, sizeof number, "%d", i);
        CHECK_STATUS(add(list, "Set-Cookie", number, SENDGATE_RULE_APPEND), SENDGATE_OK);
    }
    CHECK_STATUS(sendgate_headers_list(list, &headers, &n), SENDGATE_OK);
    CHECK(n == 1001 && same(headers[1000].field.value, text("999")));
    CHECK_STATUS(sendgate_headers_get(list, "set-cookie", 10, 500, &got), SENDGATE_OK);
    CHECK(same(got, text("500")));
    sendgate_headers_free(list);
}

static void misuse(void)
{
    check_case("NULL");
    sendgate_headers *list = new_list();
    sendgate_header header = header_of("A", "1", SENDGATE_RULE_OVERRIDE);
    const sendgate_header *headers = NULL;
    size_t n = 99;
    uint32_t frozen = 99;
    sendgate_str got = {NULL, 0};
    CHECK_STATUS(sendgate_headers_new(NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_set(NULL, &header), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_set(list, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_add(NULL, &header), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_add(list, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_remove(NULL, "A", 1), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_remove(list, NULL, 1), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_remove(list, NULL, 0), SENDGATE_ERR_FIELD);
    CHECK_STATUS(sendgate_headers_freeze(NULL, "A", 1), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_freeze(list, NULL, 1), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_freeze(list, "A", SIZE_MAX), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_is_frozen(NULL, "A", 1, &frozen), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_is_frozen(list, NULL, 1, &frozen), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_is_frozen(list, "A", 1, NULL), SENDGATE_ERR_INVALID);
    CHECK_INT(frozen, 99);
    CHECK_STATUS(sendgate_headers_get(NULL, "A", 1, 0, &got), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_get(list, "A", 1, 0, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_list(NULL, &headers, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_list(list, NULL, &n), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_list(list, &headers, NULL), SENDGATE_ERR_INVALID);
    header.field.value = text_of(NULL, 1);
    CHECK_STATUS(sendgate_headers_set(list, &header), SENDGATE_ERR_INVALID);
    header.field.value = text_of("x", SIZE_MAX);
    CHECK_STATUS(sendgate_headers_add(list, &header), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_headers_list(list, &headers, &n), SENDGATE_OK);
    CHECK_INT(n, 0);
    /* An empty list is one to the exchange, too. */
    struct ask ask;
    struct answer answer;
    ask_tagged(&ask);
    use(list, &ask);
    head_of(&ask, &answer);
    CHECK_INT(answer.status, 200);
    sendgate_headers_free(list);
    sendgate_headers_free(NULL);
}

/* Each allocation fails once: the call says so, and the list is as it was. */
static void out_of_memory(void)
{
    int failed = 0;
    for (unsigned long at = 1;; at++) {
        check_case("allocation %lu fails", at);
        sendgate_headers *list = NULL;
        const sendgate_header *headers = NULL;
        size_t n = 0, lines = 0;
        sendgate_status status;
        allocations = 0;
        fail_at = at;
        inside = 1;
        status = sendgate_headers_new(&list);
        for (size_t i = 0; status == SENDGATE_OK && i < 40; i++) {
            status = i % 3 == 0 ? set(list, i % 2 ? "A" : "B", "a value") : i == 10 ? freeze(list, "None")
                                                                                   : add(list, "C", "1", SENDGATE_RULE_APPEND);
            lines += status == SENDGATE_OK && (i % 3 != 0 || i == 0 || i == 3);
            if (status == SENDGATE_OK)
                status = sendgate_headers_list(list, &headers, &n);
            if (status == SENDGATE_OK)
                CHECK_INT(n, lines);
        }
        inside = 0;
        if (allocations < at) {
            CHECK_STATUS(status, SENDGATE_OK);
            sendgate_headers_free(list);
            break;
        }
        failed++;
        CHECK_STATUS(status, SENDGATE_ERR_NO_MEMORY);
        if (list != NULL) {
            CHECK_STATUS(sendgate_headers_list(list, &headers, &n), SENDGATE_OK);
            CHECK_INT(n, lines);
            sendgate_headers_free(list);
            continue;
        }
        CHECK_INT(at, 1);
    }
    fail_at = 0;
    /* Valgrind has a malloc of its own. */
    CHECK(failed > 40 || getenv("SENDGATE_TEST_SLOW") != NULL);
}

int main(void)
{
    check_begin();
    absences();
    frozen_fields();
    rules();
    what_is_kept();
    misuse();
    out_of_memory();
    every_row();
    return check_end();
}
