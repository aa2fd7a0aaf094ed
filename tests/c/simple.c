/* The calls without structs of one's own: response_file_fd, _fd_range and _conditional, and the flat respond_fd. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define SIZE 1000
#define LARGE (1 << 20)

static int sockets[2];
static sendgate_sink sink;
static sendgate_result result;
static char data[LARGE + 100000];
static size_t len;
static struct answer answer;

/* What the last call sent. */
static void receive(void)
{
    len = 0;
    for (long n; (n = peer_take(sockets[1], data + len, sizeof data - len)) > 0;)
        len += (size_t)n;
    answer_of(&answer, data, len);
}

static sendgate_field field_of(const char *name, const char *value)
{
    sendgate_field field;
    field.name = text(name);
    field.value = text(value);
    return field;
}

static int has(const char *name, const char *want)
{
    char value[200];
    int n = answer_field(&answer, name, value, sizeof value);
    return want == NULL ? n == 0 : n == 1 && strcmp(value, want) == 0;
}

static int is_closed(int fd)
{
    return fcntl(fd, F_GETFD) == -1 && errno == EBADF;
}

/* An open descriptor that the call will close. */
static int given(const char *name)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0);
    return fd;
}

static void file_fd(void)
{
    sendgate_field fields[3];
    fields[0] = field_of("Content-Type", "text/x-test");
    fields[1] = field_of("ETag", "\"app\"");
    fields[2] = field_of("X-Test", "1");

    check_case("response_file_fd");
    int fd = given("answer");
    MUST(lseek(fd, 500, SEEK_SET) == 500); /* the whole file all the same */
    CHECK_STATUS(sendgate_response_file_fd(&sink, NULL, 200, fields, 3, fd, &result), SENDGATE_OK);
    CHECK(is_closed(fd));
    check_result(&result, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
    receive();
    CHECK_INT(answer.status, 200);
    CHECK(answer.body_len == SIZE && is_pattern(answer.body, SIZE, 0));
    CHECK(has("Content-Type", "text/x-test") && has("ETag", "\"app\"") && has("X-Test", "1"));
    CHECK(has("Content-Length", "1000"));

    check_case("response_file_fd with a status and conditions that don't count");
    sendgate_request request;
    memset(&request, 0, sizeof request);
    request.size = sizeof request;
    request.method = text("GET");
    request.if_none_match = text("*");
    request.range = text("bytes=0-9");
    CHECK_STATUS(sendgate_response_file_fd(&sink, &request, 404, fields, 1, given("answer"), &result), SENDGATE_OK);
    check_result(&result, SENDGATE_OK, 404, SENDGATE_CONN_REUSABLE);
    receive();
    CHECK(answer.status == 404 && answer.body_len == SIZE);
    CHECK_STATUS(sendgate_response_file_fd(&sink, &request, 200, fields, 2, given("answer"), &result), SENDGATE_OK);
    receive();
    CHECK(answer.status == 200 && answer.body_len == SIZE);

    check_case("response_file_fd for HEAD, HTTP/1.0");
    request.method = text("HEAD");
    request.version = 10;
    CHECK_STATUS(sendgate_response_file_fd(&sink, &request, 200, NULL, 0, given("answer"), &result), SENDGATE_OK);
    check_result(&result, SENDGATE_OK, 200, SENDGATE_CONN_CLOSE);
    receive();
    CHECK(answer.status == 200 && answer.body_len == 0 && has("Content-Length", "1000"));

    check_case("response_file_fd with an empty file");
    CHECK_STATUS(sendgate_response_file_fd(&sink, NULL, 200, NULL, 0, given("empty"), &result), SENDGATE_OK);
    receive();
    CHECK(answer.status == 200 && answer.body_len == 0 && has("Content-Length", "0"));

    check_case("response_file_fd fails");
    int before = open_fds();
    struct stat same;
    static const uint32_t statuses[] = {99, 100, 199, 1000};
    for (size_t i = 0; i < N(statuses); i++) {
        CHECK_STATUS(sendgate_response_file_fd(&sink, NULL, statuses[i], NULL, 0, given("answer"), &result),
                     SENDGATE_ERR_INVALID);
        check_result(&result, SENDGATE_ERR_INVALID, result.http_status, SENDGATE_CONN_UNTOUCHED);
    }
    CHECK_STATUS(sendgate_response_file_fd(&sink, NULL, 200, NULL, 0, given("."), &result), SENDGATE_ERR_NOT_REGULAR);
    CHECK_INT(result.connection, SENDGATE_CONN_UNTOUCHED);
    CHECK_STATUS(sendgate_response_file_fd(&sink, NULL, 200, NULL, 0, -1, &result), SENDGATE_ERR_INVALID);
    sendgate_sink none = sink;
    none.fd = -1;
    CHECK(sendgate_response_file_fd(&none, NULL, 200, NULL, 0, given("answer"), &result) < 0);
    none.size = 4;
    CHECK_STATUS(sendgate_response_file_fd(&none, NULL, 200, NULL, 0, given("answer"), &result), SENDGATE_ERR_SIZE);
    CHECK_INT(open_fds(), before);
    CHECK(fstat(sockets[0], &same) == 0);
    receive();
    CHECK_INT(len, 0);
}

static void file_fd_range(void)
{
    check_case("response_file_fd_range");
    int fd = given("answer");
    CHECK_STATUS(sendgate_response_file_fd_range(&sink, NULL, 206, NULL, 0, fd, 100, 200, &result), SENDGATE_OK);
    CHECK(is_closed(fd));
    check_result(&result, SENDGATE_OK, 206, SENDGATE_CONN_REUSABLE);
    receive();
    CHECK(answer.status == 206 && answer.body_len == 100 && is_pattern(answer.body, 100, 100));
    CHECK(has("Content-Range", "bytes 100-199/1000") && has("Content-Length", "100"));

    check_case("response_file_fd_range, the last byte");
    CHECK_STATUS(sendgate_response_file_fd_range(&sink, NULL, 206, NULL, 0, given("answer"), 999, 1000, &result),
                 SENDGATE_OK);
    receive();
    CHECK(answer.body_len == 1 && is_pattern(answer.body, 1, 999) && has("Content-Range", "bytes 999-999/1000"));

    check_case("response_file_fd_range, a Content-Range of one's own");
    sendgate_field own = field_of("Content-Range", "bytes 5-14/77");
    CHECK_STATUS(sendgate_response_file_fd_range(&sink, NULL, 206, &own, 1, given("answer"), 100, 110, &result),
                 SENDGATE_OK);
    receive();
    CHECK(answer.body_len == 10 && has("Content-Range", "bytes 5-14/77"));

    check_case("response_file_fd_range, status 200");
    CHECK_STATUS(sendgate_response_file_fd_range(&sink, NULL, 200, NULL, 0, given("answer"), 100, 110, &result),
                 SENDGATE_OK);
    receive();
    CHECK(answer.status == 200 && answer.body_len == 10 && has("Content-Range", NULL));
    CHECK(is_pattern(answer.body, 10, 100));

    static const struct refusal {
        uint64_t start, end;
        sendgate_status status;
    } refusals[] = {
        {0, 0, SENDGATE_ERR_INVALID},
        {10, 10, SENDGATE_ERR_INVALID},
        {10, 9, SENDGATE_ERR_INVALID},
        {UINT64_MAX, 0, SENDGATE_ERR_INVALID},
        {0, UINT64_MAX, SENDGATE_ERR_TRUNCATED},
        {0, (uint64_t)INT64_MAX + 1, SENDGATE_ERR_TRUNCATED},
        {0, 1001, SENDGATE_ERR_TRUNCATED},
        {999, 1001, SENDGATE_ERR_TRUNCATED},
        {1000, 1001, SENDGATE_ERR_TRUNCATED},
        {2000, 3000, SENDGATE_ERR_TRUNCATED},
        {0, INT64_MAX, SENDGATE_ERR_TRUNCATED},
    };
    int before = open_fds();
    /* Too large to be read before the head goes out: the end has to be compared with the size. */
    check_case("response_file_fd_range past the end of a large file");
    CHECK_STATUS(sendgate_response_file_fd_range(&sink, NULL, 206, NULL, 0, given("large"), 1, LARGE + 1, &result),
                 SENDGATE_ERR_TRUNCATED);
    check_result(&result, SENDGATE_ERR_TRUNCATED, result.http_status, SENDGATE_CONN_UNTOUCHED);
    for (size_t i = 0; i < N(refusals); i++) {
        check_case("response_file_fd_range from %llu to %llu", (unsigned long long)refusals[i].start,
                   (unsigned long long)refusals[i].end);
        CHECK_STATUS(sendgate_response_file_fd_range(&sink, NULL, 206, NULL, 0, given("answer"), refusals[i].start,
                                                     refusals[i].end, &result),
                     refusals[i].status);
        check_result(&result, refusals[i].status, result.http_status, SENDGATE_CONN_UNTOUCHED);
    }
    CHECK_INT(open_fds(), before);
    receive();
    CHECK_INT(len, 0);
}

/* When file_make says that its files were last changed. */
#define DATE "Sun, 13 Sep 2020 12:26:40 GMT"

static void conditional(void)
{
    char etag[64];
    snprintf(etag, sizeof etag, "\"%llx-%x\"", 1600000000123456789ULL, SIZE);
    static const struct row {
        const char *name, *file, *if_none_match, *if_modified_since, *range, *if_range;
        int status;
        size_t from, n;
    } rows[] = {
        {"200", "answer", NULL, NULL, NULL, NULL, 200, 0, SIZE},
        {"200, another tag", "answer", "\"other\"", NULL, NULL, NULL, 200, 0, SIZE},
        {"206", "answer", NULL, NULL, "bytes=10-19", NULL, 206, 10, 10},
        {"206, If-Range matches", "answer", NULL, NULL, "bytes=-10", "{etag}", 206, 990, 10},
        {"200, If-Range does not", "answer", NULL, NULL, "bytes=-10", "\"other\"", 200, 0, SIZE},
        {"304 by tag", "answer", "{etag}", NULL, NULL, NULL, 304, 0, 0},
        {"304 by tag, whatever the range", "answer", "{etag}", NULL, "bytes=0-9", NULL, 304, 0, 0},
        {"304 by date", "answer", NULL, DATE, NULL, NULL, 304, 0, 0},
        {"200, the tag counts before the date", "answer", "\"other\"", DATE, NULL, NULL, 200, 0, SIZE},
        {"416", "answer", NULL, NULL, "bytes=1000-", NULL, 416, 0, 0},
        {"404", "missing", NULL, NULL, NULL, NULL, 404, 0, 0},
        {"404, whatever the conditions", "missing", "*", NULL, "bytes=0-9", NULL, 404, 0, 0},
        {"404 beneath a file", "answer/x", NULL, NULL, NULL, NULL, 404, 0, 0},
    };
    for (size_t i = 0; i < N(rows); i++) {
        const struct row *row = &rows[i];
        check_case("response_file_conditional: %s", row->name);
        const char *tag = row->if_none_match && row->if_none_match[0] == '{' ? etag : row->if_none_match;
        const char *range_tag = row->if_range && row->if_range[0] == '{' ? etag : row->if_range;
        sendgate_field own = field_of("X-Test", "1");
        int before = open_fds();
        CHECK_STATUS(sendgate_response_file_conditional(&sink, NULL, 200, &own, 1, row->file, tag,
                                                        row->if_modified_since, row->range, range_tag, &result),
                     SENDGATE_OK);
        check_result(&result, SENDGATE_OK, (uint32_t)row->status, SENDGATE_CONN_REUSABLE);
        CHECK_INT(open_fds(), before);
        receive();
        CHECK_INT(answer.status, row->status);
        CHECK_INT(answer.body_len, row->n);
        CHECK(is_pattern(answer.body, answer.body_len, row->from));
        if (row->status == 200 || row->status == 206) {
            CHECK(has("ETag", etag) && has("Last-Modified", DATE) && has("Accept-Ranges", "bytes") && has("X-Test", "1"));
        } else if (row->status == 304) {
            CHECK(has("ETag", etag) && has("Content-Length", NULL));
        } else if (row->status == 416) {
            CHECK(has("Content-Range", "bytes */1000") && has("Content-Length", "0"));
        } else {
            CHECK(has("Content-Length", "0") && has("ETag", NULL) && has("Last-Modified", NULL));
        }
    }

    check_case("response_file_conditional: the application's own validators");
    sendgate_field own[2];
    own[0] = field_of("etag", "\"app\"");
    own[1] = field_of("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
    CHECK_STATUS(sendgate_response_file_conditional(&sink, NULL, 200, own, 2, "answer", "\"app\"", NULL, NULL, NULL,
                                                    &result),
                 SENDGATE_OK);
    receive();
    CHECK(answer.status == 304 && has("ETag", "\"app\""));
    CHECK_STATUS(sendgate_response_file_conditional(&sink, NULL, 200, own, 2, "answer", etag, NULL, NULL, NULL, &result),
                 SENDGATE_OK);
    receive();
    CHECK(answer.status == 200 && has("ETag", "\"app\"") && has("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"));
    CHECK_STATUS(sendgate_response_file_conditional(&sink, NULL, 200, own + 1, 1, "answer", NULL,
                                                    "Sun, 06 Nov 1994 08:49:37 GMT", NULL, NULL, &result),
                 SENDGATE_OK);
    receive();
    CHECK_INT(answer.status, 304);

    check_case("response_file_conditional: the request's own conditions are ignored");
    sendgate_request request;
    memset(&request, 0, sizeof request);
    request.size = sizeof request;
    request.method = text("HEAD");
    request.if_none_match = text("*");
    request.if_match = text("\"other\"");
    request.range = text("bytes=0-0");
    CHECK_STATUS(sendgate_response_file_conditional(&sink, &request, 200, NULL, 0, "answer", NULL, NULL, NULL, NULL,
                                                    &result),
                 SENDGATE_OK);
    receive();
    CHECK(answer.status == 200 && answer.body_len == 0 && has("Content-Length", "1000"));

    check_case("response_file_conditional: another status than 200");
    CHECK_STATUS(sendgate_response_file_conditional(&sink, NULL, 403, NULL, 0, "answer", "*", NULL, "bytes=0-0", NULL,
                                                    &result),
                 SENDGATE_OK);
    receive();
    CHECK(answer.status == 403 && answer.body_len == SIZE);

    check_case("response_file_conditional: neither a directory nor a FIFO is sent, or waited for");
    static const char *const odd[] = {".", "fifo", "/dev/zero"};
    for (size_t i = 0; i < N(odd); i++) {
        int64_t start = now_ms();
        sendgate_status status = sendgate_response_file_conditional(&sink, NULL, 200, NULL, 0, odd[i], NULL, NULL, NULL,
                                                                    NULL, &result);
        CHECK(now_ms() - start < 5000);
        receive();
        if (status == SENDGATE_OK)
            CHECK(answer.status == 404 && answer.body_len == 0);
        else
            CHECK(status == SENDGATE_ERR_NOT_REGULAR && len == 0 && result.connection == SENDGATE_CONN_UNTOUCHED);
    }
}

static void flat(void)
{
    uint32_t status = 0, connection = 99;
    uint64_t sent = 99;
    int fd = given("answer");

    check_case("respond_fd");
    CHECK_STATUS(sendgate_respond_fd(sockets[0], fd, "GET", 11,
                                     "Host: localhost\r\nRange: bytes=0-9\r\nX-Other: 1\r\n",
                                     "Content-Type: text/x-test\r\nETag: \"app\"\r\n", 1000, &status, &connection, &sent),
                 SENDGATE_OK);
    CHECK(status == 206 && connection == SENDGATE_CONN_REUSABLE && sent == 10);
    receive();
    CHECK(answer.status == 206 && answer.body_len == 10 && is_pattern(answer.body, 10, 0));
    CHECK(has("Content-Type", "text/x-test") && has("ETag", "\"app\"") && has("Content-Range", "bytes 0-9/1000"));

    check_case("respond_fd: 412, 304, 416, HEAD, HTTP/1.0, several lines");
    CHECK_STATUS(sendgate_respond_fd(sockets[0], fd, NULL, 0, "If-Match: \"x\"\r\n", NULL, 0, &status, &connection, &sent),
                 SENDGATE_OK);
    CHECK(status == 412 && sent == 0);
    CHECK_STATUS(sendgate_respond_fd(sockets[0], fd, NULL, 0, "if-none-match: \"x\"\r\nIF-NONE-MATCH: *\r\n", NULL, 0,
                                     &status, NULL, NULL),
                 SENDGATE_OK);
    CHECK_STATUS(sendgate_respond_fd(sockets[0], fd, NULL, 0, "Range: bytes=1000-\r\n", NULL, 0, &status, NULL, NULL),
                 SENDGATE_OK);
    CHECK_INT(status, 416);
    CHECK_STATUS(sendgate_respond_fd(sockets[0], fd, "HEAD", 10, NULL, NULL, 0, &status, &connection, &sent),
                 SENDGATE_OK);
    CHECK(status == 200 && connection == SENDGATE_CONN_CLOSE && sent == 0);
    CHECK_STATUS(sendgate_respond_fd(sockets[0], fd, NULL, 0, "Connection: close\r\n", NULL, 0, &status, &connection, NULL),
                 SENDGATE_OK);
    CHECK_INT(connection, SENDGATE_CONN_CLOSE);
    receive();

    /* Both lines count: the second alone would be a good range (RFC 9110 5.3). */
    CHECK_STATUS(sendgate_respond_fd(sockets[0], fd, NULL, 0, "Range: bytes=0-1\r\nRange: bytes=3-4\r\n", NULL, 0, &status,
                                     NULL, NULL),
                 SENDGATE_OK);
    CHECK_INT(status, 200);
    receive();

    check_case("respond_fd: the descriptor stays open and its position where it was");
    CHECK(!is_closed(fd));
    CHECK_INT(lseek(fd, 0, SEEK_CUR), 0);

    check_case("respond_fd fails");
    int pipes[2];
    MUST(pipe(pipes) == 0);
    CHECK_STATUS(sendgate_respond_fd(sockets[0], pipes[0], NULL, 0, NULL, NULL, 0, &status, &connection, &sent),
                 SENDGATE_ERR_NOT_REGULAR);
    close(pipes[0]);
    close(pipes[1]);
    receive();
    CHECK_INT(len, 0);

    check_case("respond_fd: a peer that does not read");
    int large = file_make("larger", 16 << 20), pair[2];
    make_pair(UNIX_PAIR, 0, pair);
    int64_t start = now_ms();
    CHECK_STATUS(sendgate_respond_fd(pair[0], large, NULL, 0, NULL, NULL, 200, NULL, NULL, NULL), SENDGATE_ERR_TIMEOUT);
    int64_t took = now_ms() - start;
    CHECK(took >= 190 && took < 10000);
    close(pair[1]);
    check_case("respond_fd: a peer that is gone");
    CHECK_STATUS(sendgate_respond_fd(pair[0], large, NULL, 0, NULL, NULL, 200, NULL, NULL, NULL),
                 SENDGATE_ERR_PEER_CLOSED);
    close(pair[0]);
    close(large);
    close(fd);
}

/* What a program asks that may be older than its library, or newer. */
static void library(void)
{
    check_case("library");
    const uint32_t header = (uint32_t)SENDGATE_VERSION_MAJOR << 16 | SENDGATE_VERSION_MINOR << 8 | SENDGATE_VERSION_PATCH;
    CHECK(sendgate_version() >= header && sendgate_version() >> 16 == SENDGATE_VERSION_MAJOR);
    CHECK((sendgate_features() & SENDGATE_FEATURE_SENDFILE) != 0);
    CHECK(strcmp(sendgate_status_message(SENDGATE_ERR_TRUNCATED), sendgate_status_message(SENDGATE_OK)) != 0);
}

int main(void)
{
    check_begin();
    library();
    MUST(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    close(file_make("answer", SIZE));
    close(file_make("empty", 0));
    close(file_make("large", LARGE));
    MUST(mkfifo("fifo", 0666) == 0);
    make_pair(UNIX_PAIR, 0, sockets);
    memset(&sink, 0, sizeof sink);
    sink.size = sizeof sink;
    sink.fd = sockets[0];
    memset(&result, 0, sizeof result);
    result.size = sizeof result;
    int before = open_fds();
    file_fd();
    file_fd_range();
    conditional();
    flat();
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    close(sockets[0]);
    close(sockets[1]);
    return check_end();
}
