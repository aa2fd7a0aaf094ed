#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Far above what any program takes, Valgrind included. */
#define WATCHDOG_SECONDS 300

static unsigned long passed, failed;
static char current[200] = "start";

static void report(const char *file, int line)
{
    failed++;
    fprintf(stderr, "%s:%d: [%s] ", file, line, current);
}

int check_true(int ok, const char *what, const char *file, int line)
{
    if (ok) {
        passed++;
    } else {
        report(file, line);
        fprintf(stderr, "false: %s\n", what);
    }
    return ok;
}

int check_int(long long got, long long want, const char *what, const char *file, int line)
{
    if (got == want) {
        passed++;
    } else {
        report(file, line);
        fprintf(stderr, "%s is %lld, not %lld\n", what, got, want);
    }
    return got == want;
}

int check_status(sendgate_status got, sendgate_status want, const char *what, const char *file, int line)
{
    if (got == want) {
        passed++;
    } else {
        report(file, line);
        fprintf(stderr, "%s is %s (%d), not %s\n", what, sendgate_status_name(got), (int)got,
                sendgate_status_name(want));
    }
    return got == want;
}

void must(int ok, const char *what, const char *file, int line)
{
    if (!ok) {
        int error = errno;
        report(file, line);
        fprintf(stderr, "can't go on: %s (%s)\n", what, strerror(error));
        exit(2);
    }
}

void check_case(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(current, sizeof current, format, args);
    va_end(args);
}

void check_begin(void)
{
    alarm(WATCHDOG_SECONDS);
}

int check_end(void)
{
    printf("%lu checks passed, %lu failed\n", passed, failed);
    return failed != 0 || passed == 0;
}

sendgate_str text_of(const char *bytes, size_t len)
{
    sendgate_str made;
    made.ptr = bytes;
    made.len = len;
    return made;
}

sendgate_str text(const char *string)
{
    return text_of(string, strlen(string));
}

/* At least `len` bytes of the pattern, made once: Valgrind would take long to make them for each file. */
static const uint8_t *pattern_bytes(size_t len)
{
    static uint8_t *bytes;
    static size_t have;
    if (len > have) {
        bytes = realloc(bytes, len);
        MUST(bytes != NULL);
        /* Depends on all of the position, so that a wrong offset shows. */
        for (; have < len; have++)
            bytes[have] = (uint8_t)(have ^ (have >> 8) * 7 ^ (have >> 16) * 31);
    }
    return bytes;
}

int is_pattern(const void *bytes, size_t len, uint64_t offset)
{
    return len == 0 || memcmp(bytes, pattern_bytes((size_t)offset + len) + offset, len) == 0;
}

void pattern_fill(void *bytes, size_t len)
{
    if (len != 0)
        memcpy(bytes, pattern_bytes(len), len);
}

int file_make(const char *name, size_t len)
{
    const uint8_t *bytes = pattern_bytes(len);
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    MUST(fd >= 0);
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, bytes + done, len - done);
        MUST(n > 0);
        done += (size_t)n;
    }
    struct timespec times[2];
    memset(times, 0, sizeof times);
    times[0].tv_sec = times[1].tv_sec = 1600000000;
    times[1].tv_nsec = 123456789;
    MUST(futimens(fd, times) == 0);
    close(fd);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0);
    return fd;
}

int file_new(const char *name, size_t len)
{
    MUST(unlink(name) == 0 || errno == ENOENT);
    return file_make(name, len);
}

void file_fill(const char *name, char byte, size_t len)
{
    FILE *file = fopen(name, "wb");
    char buf[4096];
    memset(buf, byte, sizeof buf);
    MUST(file != NULL);
    for (size_t done = 0; done < len; done += sizeof buf)
        MUST(fwrite(buf, sizeof buf, 1, file) == 1);
    MUST(fclose(file) == 0);
}

int file_sparse(const char *name, off_t len)
{
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    MUST(file >= 0 && ftruncate(file, len) == 0);
    return file;
}

int open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    MUST(dir != NULL);
    int n = 0;
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n;
}

int64_t now_ms(void)
{
    struct timespec now;
    MUST(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

const char *kind_name(enum kind kind)
{
    return kind == UNIX_PAIR ? "unix" : "tcp";
}

void make_pair(enum kind kind, int nonblocking, int sockets[2])
{
    if (kind == UNIX_PAIR) {
        MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0);
    } else {
        struct sockaddr_in address;
        socklen_t len = sizeof address;
        memset(&address, 0, sizeof address);
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        MUST(listener >= 0);
        MUST(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
        MUST(listen(listener, 1) == 0);
        MUST(getsockname(listener, (struct sockaddr *)&address, &len) == 0);
        sockets[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        MUST(sockets[1] >= 0);
        MUST(connect(sockets[1], (struct sockaddr *)&address, sizeof address) == 0);
        sockets[0] = accept(listener, NULL, NULL);
        MUST(sockets[0] >= 0);
        close(listener);
    }
    if (nonblocking)
        MUST(fcntl(sockets[0], F_SETFL, fcntl(sockets[0], F_GETFL) | O_NONBLOCK) == 0);
}

static void *peer_main(void *arg)
{
    struct peer *peer = arg;
    int64_t start = now_ms(), last = start;
    for (;;) {
        size_t most = peer->chunk != 0 ? peer->chunk : 65536;
        if (peer->stop_at != 0 && peer->len >= peer->stop_at) {
            struct linger linger = {1, 0};
            if (peer->reset)
                MUST(setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
            if (peer->truncate_fd < 0)
                break;
            MUST(ftruncate(peer->truncate_fd, (off_t)peer->truncate_to) == 0);
            peer->stop_at = 0;
        }
        if (peer->cap - peer->len < 65536) {
            peer->cap = peer->cap * 2 + 65536;
            peer->data = realloc(peer->data, peer->cap);
            MUST(peer->data != NULL);
        }
        if (peer->pause_ms != 0)
            usleep(peer->pause_ms * 1000);
        size_t rate = __atomic_load_n(&peer->rate, __ATOMIC_RELAXED);
        if (rate != 0) {
            /* By the clock: a nap that was too long is made up for. */
            size_t due = rate * (size_t)(now_ms() - start) / 1000;
            if (due <= peer->len) {
                usleep(2000);
                continue;
            }
            if (due - peer->len < most)
                most = due - peer->len;
        }
        int64_t now = now_ms();
        if (now - last > peer->longest_ms)
            peer->longest_ms = now - last;
        ssize_t n = read(peer->fd, peer->data + peer->len, most);
        last = now_ms();
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        peer->len += (size_t)n;
    }
    close(peer->fd);
    return NULL;
}

void peer_init(struct peer *peer, int fd)
{
    memset(peer, 0, sizeof *peer);
    peer->fd = fd;
    peer->truncate_fd = -1;
}

void peer_start(struct peer *peer)
{
    MUST(pthread_create(&peer->thread, NULL, peer_main, peer) == 0);
}

void peer_join(struct peer *peer)
{
    MUST(pthread_join(peer->thread, NULL) == 0);
}

void peer_abandon(struct peer *peer)
{
    MUST(pthread_cancel(peer->thread) == 0);
    peer_join(peer);
    close(peer->fd);
}

void peer_free(struct peer *peer)
{
    free(peer->data);
    peer->data = NULL;
}

long peer_take(int fd, char *buf, size_t cap)
{
    ssize_t n = recv(fd, buf, cap, MSG_DONTWAIT);
    if (n == 0)
        return -1;
    if (n < 0) {
        MUST(errno == EAGAIN || errno == ECONNRESET);
        return errno == EAGAIN ? 0 : -1;
    }
    return (long)n;
}

size_t peer_drain(int fd)
{
    char buf[4096];
    size_t drained = 0;
    for (long n; (n = peer_take(fd, buf, sizeof buf)) > 0;)
        drained += (size_t)n;
    return drained;
}

int contains(const char *data, size_t len, const char *needle)
{
    return memmem(data, len, needle, strlen(needle)) != NULL;
}

void answer_of(struct answer *answer, const char *data, size_t len)
{
    memset(answer, 0, sizeof *answer);
    if (data == NULL || len < 13 || memcmp(data, "HTTP/1.1 ", 9) != 0)
        return;
    const char *end = memmem(data, len, "\r\n\r\n", 4);
    if (end == NULL)
        return;
    answer->status = (data[9] - '0') * 100 + (data[10] - '0') * 10 + (data[11] - '0');
    answer->head = data;
    answer->head_len = (size_t)(end - data) + 4;
    answer->body = data + answer->head_len;
    answer->body_len = len - answer->head_len;
}

int answer_field(const struct answer *answer, const char *name, char *value, size_t cap)
{
    int n = 0;
    size_t name_len = strlen(name);
    const char *end = answer->head + answer->head_len;
    value[0] = '\0';
    for (const char *line = answer->head; line != NULL && line < end;) {
        const char *eol = memmem(line, (size_t)(end - line), "\r\n", 2);
        if (eol == NULL)
            break;
        if ((size_t)(eol - line) > name_len && line[name_len] == ':' && strncasecmp(line, name, name_len) == 0) {
            const char *from = line + name_len + 1;
            while (from < eol && *from == ' ')
                from++;
            if (n++ == 0)
                snprintf(value, cap, "%.*s", (int)(eol - from), from);
        }
        line = eol + 2;
    }
    return n;
}

long long answer_number(const struct answer *answer, const char *name)
{
    char value[32];
    return answer_field(answer, name, value, sizeof value) == 1 ? atoll(value) : -1;
}

/* Whether `bytes` occurs at *at, which then moves behind it. */
static int take(const char **at, const char *end, const char *bytes)
{
    size_t len = strlen(bytes);
    if ((size_t)(end - *at) < len || memcmp(*at, bytes, len) != 0)
        return 0;
    *at += len;
    return 1;
}

void check_multipart(const struct answer *answer, const sendgate_range *ranges, size_t n, uint64_t total)
{
    char type[200], delimiter[100], content_range[100];
    CHECK_INT(answer_field(answer, "Content-Type", type, sizeof type), 1);
    static const char prefix[] = "multipart/byteranges; boundary=";
    if (!CHECK(strncmp(type, prefix, sizeof prefix - 1) == 0))
        return;
    snprintf(delimiter, sizeof delimiter, "--%.70s", type + sizeof prefix - 1);
    const char *at = answer->body, *end = answer->body + answer->body_len;
    for (size_t i = 0; i < n; i++) {
        CHECK(i == 0 || take(&at, end, "\r\n"));
        CHECK(take(&at, end, delimiter) && take(&at, end, "\r\n"));
        const char *empty = memmem(at, (size_t)(end - at), "\r\n\r\n", 4);
        if (!CHECK(empty != NULL))
            return;
        snprintf(content_range, sizeof content_range, "Content-Range: bytes %llu-%llu/%llu\r\n",
                 (unsigned long long)ranges[i].offset, (unsigned long long)(ranges[i].offset + ranges[i].length - 1),
                 (unsigned long long)total);
        CHECK(contains(at, (size_t)(empty + 2 - at), content_range));
        at = empty + 4;
        if (!CHECK((uint64_t)(end - at) >= ranges[i].length))
            return;
        CHECK(is_pattern(at, (size_t)ranges[i].length, ranges[i].offset));
        at += ranges[i].length;
    }
    CHECK(take(&at, end, "\r\n") && take(&at, end, delimiter) && take(&at, end, "--\r\n"));
    CHECK(at == end);
}

void check_content(const struct answer *answer, const sendgate_range *ranges, size_t n, uint64_t total)
{
    char value[200], expected[200];
    int lines = answer_field(answer, "Content-Range", value, sizeof value);
    if (answer->status == 416) {
        snprintf(expected, sizeof expected, "bytes */%llu", (unsigned long long)total);
        CHECK(lines == 1 && strcmp(value, expected) == 0);
    } else if (answer->status == 206 && n == 1) {
        snprintf(expected, sizeof expected, "bytes %llu-%llu/%llu", (unsigned long long)ranges[0].offset,
                 (unsigned long long)(ranges[0].offset + ranges[0].length - 1), (unsigned long long)total);
        CHECK(lines == 1 && strcmp(value, expected) == 0);
    } else {
        CHECK_INT(lines, 0);
    }
    if (n == 0) {
        CHECK_INT(answer->body_len, 0);
    } else if (n == 1) {
        CHECK_INT(answer->body_len, ranges[0].length);
        CHECK(is_pattern(answer->body, answer->body_len, ranges[0].offset));
    } else {
        check_multipart(answer, ranges, n, total);
    }
}

static void ask_init(struct ask *ask, int sock)
{
    memset(ask, 0, sizeof *ask);
    ask->request.size = sizeof ask->request;
    ask->request.method = text("GET");
    ask->rep.size = sizeof ask->rep;
    ask->exchange.size = sizeof ask->exchange;
    ask->exchange.request = &ask->request;
    ask->exchange.rep = &ask->rep;
    ask->sink.size = sizeof ask->sink;
    ask->sink.fd = sock;
    ask->result.size = sizeof ask->result;
}

void ask_file(struct ask *ask, int file, int sock)
{
    ask_init(ask, sock);
    MUST(sendgate_rep_from_fd(&ask->rep, file, 0, ask->etag, sizeof ask->etag, NULL) == SENDGATE_OK);
}

void ask_memory(struct ask *ask, const void *memory, size_t len, int sock)
{
    ask_init(ask, sock);
    ask->rep.kind = SENDGATE_REP_MEMORY;
    ask->rep.fd = -1;
    ask->rep.memory = memory;
    ask->rep.length = len;
}

void check_result(const sendgate_result *result, sendgate_status status, uint32_t http_status, uint32_t connection)
{
    CHECK_STATUS(result->status, status);
    CHECK_INT(result->http_status, http_status);
    CHECK_INT(result->connection, connection);
    CHECK(result->body_sent <= result->body_length);
    if (status != SENDGATE_OK)
        CHECK((result->connection == SENDGATE_CONN_UNTOUCHED) == (result->head_sent + result->body_sent == 0));
    if (status != SENDGATE_ERR_IO && status != SENDGATE_ERR_PEER_CLOSED)
        CHECK_INT(result->sys_errno, 0);
    if (status == SENDGATE_OK)
        CHECK_INT(result->body_sent, result->body_length);
}

int socket_is_full(int sock)
{
    struct pollfd look = {sock, POLLOUT, 0};
    return poll(&look, 1, 0) == 0;
}
