/* sendgate_receive and sendgate_receive_file on real sockets: every way that bytes come and stop coming, into memory,
 * a mapping and a file; what they leave of the caller's descriptors; and that every byte that was taken is counted.
 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
/* What a file gets through a pipe, and what is copied. */
#define LARGE (1024 * 1024 + 17)
#define SMALL 70000
/* What the peer sends behind the content: the next request. */
#define BEHIND 100

/* ---- The peer ---- */

enum end { STAYS, ENDS, RESETS };

/* A peer that sends the pattern, in a thread of its own. */
struct feeder {
    int fd;
    pthread_t thread;
    size_t len;        /* all of it */
    size_t piece;      /* at once; 0: as many as go */
    unsigned pause_us; /* before each piece */
    enum end end;
};

static void *feed(void *arg)
{
    struct feeder *feeder = arg;
    uint8_t *bytes = malloc(feeder->len + 1);
    MUST(bytes != NULL);
    pattern_fill(bytes, feeder->len);
    for (size_t done = 0; done < feeder->len;) {
        size_t most = feeder->len - done;
        if (feeder->piece != 0 && most > feeder->piece)
            most = feeder->piece;
        if (feeder->pause_us != 0)
            usleep(feeder->pause_us);
        ssize_t n = send(feeder->fd, bytes + done, most, MSG_NOSIGNAL);
        if (n < 0)
            break; /* the other end has had enough */
        done += (size_t)n;
    }
    free(bytes);
    if (feeder->end == ENDS)
        shutdown(feeder->fd, SHUT_WR);
    if (feeder->end == RESETS) {
        struct linger linger = {1, 0};
        MUST(setsockopt(feeder->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
        close(feeder->fd);
    }
    return NULL;
}

/* One connection, and what is received from it. */
struct upload {
    int sock;
    struct feeder feeder;
    sendgate_source source;
    sendgate_received got;
    int flags; /* of the socket, at the beginning */
    int before; /* descriptors, without the connection */
};

static void upload_open(struct upload *upload, enum kind kind, int nonblocking, size_t len)
{
    int sockets[2], one = 1;
    memset(upload, 0, sizeof *upload);
    upload->before = open_fds();
    make_pair(kind, nonblocking, sockets);
    upload->sock = sockets[0];
    upload->flags = fcntl(sockets[0], F_GETFL);
    upload->feeder.fd = sockets[1];
    upload->feeder.len = len;
    if (kind == TCP_PAIR)
        MUST(setsockopt(sockets[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    upload->source.size = sizeof upload->source;
    upload->source.fd = upload->sock;
    upload->got.size = sizeof upload->got;
}

static void upload_start(struct upload *upload)
{
    MUST(pthread_create(&upload->feeder.thread, NULL, feed, &upload->feeder) == 0);
}

/* The outcome agrees with itself. */
static void check_got(const struct upload *upload, sendgate_status status, uint64_t received, int sys_errno)
{
    CHECK_STATUS(upload->got.status, status);
    CHECK_INT(upload->got.received, received);
    CHECK_INT(upload->got.sys_errno, sys_errno);
    CHECK_INT(upload->got.size, sizeof upload->got);
}

/* The socket is as it was, and what was not taken is still in it, from there on. */
static void check_rest(struct upload *upload, uint64_t from, size_t len)
{
    uint8_t *rest = malloc(len + 1);
    MUST(rest != NULL);
    CHECK_INT(fcntl(upload->sock, F_GETFL), upload->flags);
    MUST(fcntl(upload->sock, F_SETFL, upload->flags & ~O_NONBLOCK) == 0);
    if (len > 0)
        CHECK_INT(recv(upload->sock, rest, len, MSG_WAITALL), len);
    CHECK(is_pattern(rest, len, from));
    CHECK(recv(upload->sock, rest, 1, MSG_DONTWAIT) <= 0);
    free(rest);
}

static void upload_close(struct upload *upload, int started)
{
    close(upload->sock);
    if (started)
        MUST(pthread_join(upload->feeder.thread, NULL) == 0);
    if (!started || upload->feeder.end != RESETS)
        close(upload->feeder.fd);
    CHECK_INT(open_fds(), upload->before);
}

/* ---- Where it goes ---- */

enum place { MEMORY, MAPPING, IN_FILE, N_PLACES };
static const char *const place_names[] = {"memory", "mapping", "file"};
#define OFFSET 12345 /* in the file: somewhere within a page */

/* A place for `len` bytes. */
struct place_of {
    enum place place;
    int file; /* with something before and behind, and a position of its own */
    uint8_t *bytes;
    size_t len;
};

static int file_open(size_t size)
{
    int file = open("upload", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    MUST(file >= 0 && ftruncate(file, (off_t)size) == 0);
    MUST(pwrite(file, "before", 6, 0) == 6 && lseek(file, 777, SEEK_SET) == 777);
    return file;
}

static void place_make(struct place_of *to, enum place place, size_t len)
{
    memset(to, 0, sizeof *to);
    to->place = place;
    to->len = len;
    to->file = -1;
    if (place == MEMORY) {
        to->bytes = malloc(len == 0 ? 1 : len);
        MUST(to->bytes != NULL);
        return;
    }
    to->file = file_open(place == IN_FILE ? 0 : len + 1);
    if (place == MAPPING) {
        to->bytes = mmap(NULL, len + 1, PROT_READ | PROT_WRITE, MAP_SHARED, to->file, 0);
        MUST(to->bytes != MAP_FAILED);
    }
}

/* From `done` on, as a call that goes on does. */
static sendgate_status receive(struct upload *upload, const struct place_of *to, size_t done)
{
    if (to->place == IN_FILE)
        return sendgate_receive_file(&upload->source, to->file, OFFSET + done, to->len - done, &upload->got);
    return sendgate_receive(&upload->source, to->bytes + done, to->len - done, &upload->got);
}

/* The first `len` bytes are there, and nothing else was touched. */
static void place_check(const struct place_of *to, size_t len)
{
    if (to->place != IN_FILE) {
        CHECK(is_pattern(to->bytes, len, 0));
        return;
    }
    struct stat status;
    char before[6];
    uint8_t *bytes = malloc(len + 1);
    MUST(bytes != NULL && fstat(to->file, &status) == 0);
    CHECK_INT(status.st_size, len == 0 ? 6 : OFFSET + len);
    CHECK_INT(pread(to->file, bytes, len, OFFSET), len);
    CHECK(is_pattern(bytes, len, 0));
    CHECK(pread(to->file, before, 6, 0) == 6 && memcmp(before, "before", 6) == 0);
    CHECK_INT(lseek(to->file, 0, SEEK_CUR), 777);
    free(bytes);
}

static void place_free(struct place_of *to)
{
    if (to->place == MEMORY)
        free(to->bytes);
    if (to->place == MAPPING)
        munmap(to->bytes, to->len + 1);
    if (to->file >= 0)
        close(to->file);
}

/* ---- Bytes that come ---- */

/* Each length from each kind of socket to each place: exactly so many bytes are taken, and the rest stays. */
static void every_length(void)
{
    static const size_t lengths[] = {0, 1, 4096, SMALL, 524287, 524288, LARGE, 5 * LARGE};
    for (int variant = 0; variant < 4 * N_PLACES; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0;
        enum place place = (enum place)(variant / 4);
        for (size_t i = 0; i < N(lengths); i++) {
            check_case("%zu bytes, %s, %s, to a %s", lengths[i], kind_name(kind),
                       nonblocking ? "non-blocking" : "blocking", place_names[place]);
            struct upload upload;
            struct place_of to;
            upload_open(&upload, kind, nonblocking, lengths[i] + BEHIND);
            place_make(&to, place, lengths[i]);
            upload_start(&upload);
            CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_OK);
            check_got(&upload, SENDGATE_OK, lengths[i], 0);
            CHECK_INT(upload.got.stored, lengths[i]);
            place_check(&to, lengths[i]);
            check_rest(&upload, lengths[i], BEHIND);
            place_free(&to);
            upload_close(&upload, 1);
        }
    }
}

/* Pieces of a byte and a few more, each sent by itself. */
static void in_pieces(void)
{
    static const struct {
        size_t piece, len;
        unsigned pause_us;
    } ways[] = {{1, 3000, 0}, {7, 20000, 0}, {1448, LARGE, 0}, {50000, LARGE, 300}, {1, 200, 500}};
    for (size_t i = 0; i < N(ways); i++) {
        for (int variant = 0; variant < 2 * N_PLACES; variant++) {
            enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
            enum place place = (enum place)(variant / 2);
            check_case("%zu bytes in pieces of %zu, %s, to a %s", ways[i].len, ways[i].piece, kind_name(kind),
                       place_names[place]);
            struct upload upload;
            struct place_of to;
            upload_open(&upload, kind, 0, ways[i].len + BEHIND);
            upload.feeder.piece = ways[i].piece;
            upload.feeder.pause_us = ways[i].pause_us;
            place_make(&to, place, ways[i].len);
            upload_start(&upload);
            CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_OK);
            check_got(&upload, SENDGATE_OK, ways[i].len, 0);
            place_check(&to, ways[i].len);
            check_rest(&upload, ways[i].len, BEHIND);
            place_free(&to);
            upload_close(&upload, 1);
        }
    }
}

/* From an event loop: a call never waits, whatever the socket's mode, and the next one goes on. */
static void without_waiting(void)
{
    static const size_t lengths[] = {1, SMALL, LARGE};
    for (int variant = 0; variant < 4 * N_PLACES; variant++) {
        for (size_t i = 0; i < N(lengths); i++) {
            enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
            int nonblocking = (variant & 2) != 0;
            enum place place = (enum place)(variant / 4);
            check_case("without waiting: %zu bytes, %s, %s, to a %s", lengths[i], kind_name(kind),
                       nonblocking ? "non-blocking" : "blocking", place_names[place]);
            struct upload upload;
            struct place_of to;
            upload_open(&upload, kind, nonblocking, lengths[i] + BEHIND);
            upload.source.flags = SENDGATE_SOURCE_TRY_NOW;
            /* These are the caller's, and don't hold. */
            upload.source.idle_timeout_ms = upload.source.total_timeout_ms = 1;
            upload.source.min_rate = UINT64_MAX;
            place_make(&to, place, lengths[i]);
            CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_WANT_READ);
            check_got(&upload, SENDGATE_WANT_READ, 0, 0);
            upload.feeder.piece = 30000;
            upload.feeder.pause_us = 100;
            upload_start(&upload);
            size_t done = 0;
            sendgate_status status;
            while ((status = receive(&upload, &to, done)) == SENDGATE_WANT_READ) {
                CHECK_INT(upload.got.stored, upload.got.received);
                CHECK_INT(fcntl(upload.sock, F_GETFL), upload.flags);
                done += upload.got.received;
                MUST(done < lengths[i]);
                struct pollfd wait = {upload.sock, POLLIN, 0};
                MUST(poll(&wait, 1, 60000) == 1);
            }
            check_got(&upload, SENDGATE_OK, lengths[i] - done, 0);
            CHECK_STATUS(status, SENDGATE_OK);
            place_check(&to, lengths[i]);
            check_rest(&upload, lengths[i], BEHIND);
            place_free(&to);
            upload_close(&upload, 1);
        }
    }
}

/* Sends a part of the pattern, a byte of urgent data (which is not in the stream), and the rest of the pattern. */
static void *feed_urgently(void *arg)
{
    const struct feeder *feeder = arg;
    uint8_t *bytes = malloc(feeder->len);
    MUST(bytes != NULL);
    pattern_fill(bytes, feeder->len);
    for (size_t done = feeder->piece; done < feeder->len;) {
        ssize_t n = send(feeder->fd, bytes + done, feeder->len - done, MSG_NOSIGNAL);
        MUST(n > 0);
        done += (size_t)n;
    }
    free(bytes);
    if (feeder->end == ENDS)
        shutdown(feeder->fd, SHUT_WR);
    return NULL;
}

/* splice stops in front of urgent data for ever, and poll says that there is something to be read. */
static void urgent_data(void)
{
    /* Where it comes, and how many bytes are behind it. */
    static const struct {
        size_t at, behind;
    } ways[] = {{0, LARGE}, {1000, 3000}, {1000, LARGE}, {30000, LARGE}};
    for (int variant = 0; variant < 4; variant++) {
        for (size_t i = 0; i < N(ways); i++) {
            int try_now = variant & 1, ends = (variant & 2) != 0;
            size_t sent = ways[i].at + ways[i].behind, len = sent < LARGE ? LARGE : sent;
            check_case("urgent data after %zu of %zu bytes%s%s", ways[i].at, sent, try_now ? ", without waiting" : "",
                       ends ? ", then the end" : "");
            struct upload upload;
            struct place_of to;
            upload_open(&upload, TCP_PAIR, 0, sent);
            upload.feeder.end = ends ? ENDS : STAYS;
            upload.feeder.piece = ways[i].at;
            place_make(&to, IN_FILE, len);
            /* All of this is there when the call begins: the mark is in the way, and not just passing by. */
            uint8_t *first = malloc(ways[i].at + 1);
            MUST(first != NULL);
            pattern_fill(first, ways[i].at);
            MUST(send(upload.feeder.fd, first, ways[i].at, 0) == (ssize_t)ways[i].at);
            MUST(send(upload.feeder.fd, "!", 1, MSG_OOB) == 1);
            free(first);
            MUST(pthread_create(&upload.feeder.thread, NULL, feed_urgently, &upload.feeder) == 0);
            UNTIL(recv(upload.sock, (uint8_t[1]){0}, 1, MSG_OOB | MSG_PEEK) == 1);
            upload.source.idle_timeout_ms = sent < len ? 1000 : 30000;
            upload.source.flags = try_now ? SENDGATE_SOURCE_TRY_NOW : 0;
            sendgate_status status, last = ends ? SENDGATE_ERR_INCOMPLETE : SENDGATE_ERR_TIMEOUT;
            if (sent == len)
                last = SENDGATE_OK;
            size_t done = 0, calls = 0;
            while ((status = receive(&upload, &to, done)) == SENDGATE_WANT_READ) {
                done += upload.got.received;
                struct pollfd wait = {upload.sock, POLLIN, 0};
                /* What poll says is there is taken, or it would be a busy loop. */
                calls = upload.got.received > 0 ? 0 : calls + 1;
                MUST(calls < 1000);
                if (poll(&wait, 1, sent < len && !ends ? 1000 : 30000) == 0) {
                    upload.got.received = 0;
                    status = SENDGATE_ERR_TIMEOUT;
                    break;
                }
            }
            CHECK_STATUS(status, last);
            CHECK_INT(done + upload.got.received, sent);
            place_check(&to, done + upload.got.received);
            place_free(&to);
            upload_close(&upload, 1);
        }
    }
}

/* ---- Bytes that don't come ---- */

/* The peer ends, or resets the connection, after some bytes: those are where they belong. */
static void peers_that_stop(void)
{
    static const size_t at[] = {0, 1, 4096, SMALL - 1, 200000, LARGE - 1};
    for (int variant = 0; variant < 4 * N_PLACES; variant++) {
        for (size_t i = 0; i < N(at); i++) {
            enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
            int resets = (variant & 2) != 0;
            enum place place = (enum place)(variant / 4);
            if (resets && kind == UNIX_PAIR)
                continue;
            size_t len = at[i] < SMALL ? SMALL : LARGE;
            check_case("%s %s after %zu of %zu bytes, to a %s", kind_name(kind), resets ? "resets" : "ends", at[i],
                       len, place_names[place]);
            struct upload upload;
            struct place_of to;
            upload_open(&upload, kind, 0, at[i]);
            upload.feeder.end = resets ? RESETS : ENDS;
            place_make(&to, place, len);
            upload_start(&upload);
            sendgate_status status = receive(&upload, &to, 0);
            if (resets) {
                CHECK_STATUS(status, SENDGATE_ERR_PEER_CLOSED);
                CHECK(upload.got.received <= at[i]);
                check_got(&upload, SENDGATE_ERR_PEER_CLOSED, upload.got.received, ECONNRESET);
            } else {
                CHECK_STATUS(status, SENDGATE_ERR_INCOMPLETE);
                check_got(&upload, SENDGATE_ERR_INCOMPLETE, at[i], 0);
            }
            CHECK_INT(upload.got.stored, upload.got.received);
            CHECK_INT(fcntl(upload.sock, F_GETFL), upload.flags);
            place_check(&to, upload.got.received);
            /* It stays like that. */
            CHECK_STATUS(receive(&upload, &to, upload.got.received), SENDGATE_ERR_INCOMPLETE);
            CHECK_INT(upload.got.received, 0);
            place_free(&to);
            upload_close(&upload, 1);
        }
    }
    check_case("a peer of a UNIX socket that closes with unread bytes");
    int sockets[2];
    uint8_t bytes[10];
    make_pair(UNIX_PAIR, 0, sockets);
    MUST(send(sockets[0], "unread", 6, 0) == 6);
    close(sockets[1]);
    sendgate_source source = {.size = sizeof source, .fd = sockets[0]};
    sendgate_received got = {.size = sizeof got};
    CHECK_STATUS(sendgate_receive(&source, bytes, sizeof bytes, &got), SENDGATE_ERR_PEER_CLOSED);
    CHECK_INT(got.sys_errno, ECONNRESET);
    close(sockets[0]);
}

static void timeouts(void)
{
    for (int variant = 0; variant < 4 * N_PLACES; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0;
        enum place place = (enum place)(variant / 4);
        struct upload upload;
        struct place_of to;

        check_case("a peer that stops, %s, %s, to a %s", kind_name(kind), nonblocking ? "non-blocking" : "blocking",
                   place_names[place]);
        upload_open(&upload, kind, nonblocking, 200000);
        upload.source.idle_timeout_ms = 200;
        place_make(&to, place, LARGE);
        upload_start(&upload);
        int64_t start = now_ms();
        CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_ERR_TIMEOUT);
        int64_t took = now_ms() - start;
        CHECK(took >= 190 && took < 10000);
        check_got(&upload, SENDGATE_ERR_TIMEOUT, 200000, 0);
        place_check(&to, 200000);
        check_rest(&upload, 200000, 0);
        place_free(&to);
        upload_close(&upload, 1);

        check_case("the total timeout, %s, %s, to a %s", kind_name(kind), nonblocking ? "non-blocking" : "blocking",
                   place_names[place]);
        upload_open(&upload, kind, nonblocking, LARGE);
        upload.feeder.piece = 10;
        upload.feeder.pause_us = 10000;
        upload.source.total_timeout_ms = 200;
        place_make(&to, place, LARGE);
        upload_start(&upload);
        start = now_ms();
        CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_ERR_TIMEOUT);
        took = now_ms() - start;
        CHECK(took >= 190 && took < 10000);
        CHECK_INT(upload.got.stored, upload.got.received);
        place_check(&to, upload.got.received);
        place_free(&to);
        upload_close(&upload, 1);
    }

    /* Ten bytes in each hundredth of a second are at most 1000 a second. */
    for (int enough = 0; enough < 2; enough++) {
        check_case("a peer that is %s", enough ? "slow within min_rate" : "slower than min_rate");
        struct upload upload;
        struct place_of to;
        /* What is enough takes longer than the idle timeout. */
        size_t length = enough ? 2500 : 800;
        upload_open(&upload, UNIX_PAIR, 0, length);
        upload.feeder.piece = 10;
        upload.feeder.pause_us = 10000;
        upload.source.idle_timeout_ms = enough ? 1500 : 300;
        upload.source.min_rate = enough ? 1 : 100000;
        place_make(&to, MEMORY, length);
        upload_start(&upload);
        CHECK_STATUS(receive(&upload, &to, 0), enough ? SENDGATE_OK : SENDGATE_ERR_TIMEOUT);
        place_check(&to, upload.got.received);
        place_free(&to);
        upload_close(&upload, 1);
    }

    check_case("pauses within the idle timeout that are longer together");
    struct upload upload;
    struct place_of to;
    upload_open(&upload, UNIX_PAIR, 0, 30);
    upload.feeder.piece = 1;
    upload.feeder.pause_us = 50000;
    upload.source.idle_timeout_ms = 1200;
    place_make(&to, IN_FILE, 30);
    upload_start(&upload);
    int64_t start = now_ms();
    CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_OK);
    CHECK(now_ms() - start > 1200);
    place_free(&to);
    upload_close(&upload, 1);
}

static volatile sig_atomic_t signals;

static void on_signal(int number)
{
    (void)number;
    signals++;
}

/* Signal handlers run, and the call goes on. */
static void interrupted(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal; /* without SA_RESTART */
    MUST(sigaction(SIGUSR1, &action, NULL) == 0);
    timer_t timer;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    struct itimerspec every = {{0, 3000000}, {0, 3000000}};
    for (int place = 0; place < N_PLACES; place++) {
        check_case("signals, to a %s", place_names[place]);
        struct upload upload;
        struct place_of to;
        upload_open(&upload, UNIX_PAIR, 0, LARGE + BEHIND);
        upload.feeder.piece = 20000;
        upload.feeder.pause_us = 4000;
        place_make(&to, (enum place)place, LARGE);
        /* The peer doesn't take them: they would cut its own calls short. */
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        MUST(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
        upload_start(&upload);
        MUST(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
        signals = 0;
        MUST(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &every, NULL) == 0);
        CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_OK);
        MUST(timer_delete(timer) == 0);
        CHECK(signals > 0);
        place_check(&to, LARGE);
        check_rest(&upload, LARGE, BEHIND);
        place_free(&to);
        upload_close(&upload, 1);
    }
}

/* ---- A read function in place of the socket ---- */

struct reader {
    size_t len;     /* bytes there are; then the end */
    size_t at_most; /* per call */
    size_t done;
    size_t fail_at;         /* once so many are done, */
    sendgate_status answer; /* answer this, */
    size_t claim;           /* and claim to have put so many there; SIZE_MAX: one more than there is room for */
    int times;              /* as often */
};

static sendgate_status read_some(void *user, uint8_t *data, size_t cap, size_t *len)
{
    struct reader *reader = user;
    MUST(cap > 0);
    if (reader->times > 0 && reader->done >= reader->fail_at) {
        reader->times--;
        *len = reader->claim == SIZE_MAX ? cap + 1 : reader->claim;
        return reader->answer;
    }
    size_t n = reader->len - reader->done;
    n = n < cap ? n : cap;
    n = n < reader->at_most ? n : reader->at_most;
    uint8_t *all = malloc(reader->len + 1);
    MUST(all != NULL);
    pattern_fill(all, reader->len);
    memcpy(data, all + reader->done, n);
    free(all);
    reader->done += n;
    *len = n;
    return SENDGATE_OK;
}

static void read_functions(void)
{
    struct upload upload;
    struct place_of to;
    static const struct {
        size_t at_most, len;
    } steps[] = {{1, 500}, {7, 5000}, {16384, LARGE}, {SIZE_MAX, LARGE}};
    for (int place = 0; place < N_PLACES; place++) {
        for (size_t i = 0; i < N(steps); i++) {
            check_case("a read function that gives %zu bytes, to a %s", steps[i].at_most, place_names[place]);
            struct reader reader = {.len = steps[i].len + BEHIND, .at_most = steps[i].at_most};
            upload_open(&upload, UNIX_PAIR, 0, 0);
            upload.source.read = read_some;
            upload.source.user = &reader;
            upload.source.fd = -1;
            place_make(&to, (enum place)place, steps[i].len);
            CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_OK);
            check_got(&upload, SENDGATE_OK, steps[i].len, 0);
            CHECK_INT(reader.done, steps[i].len);
            place_check(&to, steps[i].len);
            place_free(&to);
            upload_close(&upload, 0);
        }
    }
    static const struct {
        const char *name;
        sendgate_status answer;
        size_t claim;
        sendgate_status status;
    } bad[] = {
        {"ends", SENDGATE_OK, 0, SENDGATE_ERR_INCOMPLETE},
        {"claims more than there was room for", SENDGATE_OK, SIZE_MAX, SENDGATE_ERR_INVALID},
        {"wants to read, with nothing to wait on", SENDGATE_WANT_READ, 0, SENDGATE_ERR_BLOCKING},
        {"wants to write, with nothing to wait on", SENDGATE_WANT_WRITE, 5, SENDGATE_ERR_BLOCKING},
        {"loses its peer", SENDGATE_ERR_PEER_CLOSED, 5, SENDGATE_ERR_PEER_CLOSED},
        {"fails", SENDGATE_ERR_IO, 0, SENDGATE_ERR_IO},
        {"answers SENDGATE_YIELD", SENDGATE_YIELD, 5, SENDGATE_ERR_INVALID},
    };
    for (int place = 0; place < N_PLACES; place++) {
        for (size_t i = 0; i < N(bad); i++) {
            for (int late = 0; late < 2; late++) {
                check_case("a read function that %s%s, to a %s", bad[i].name, late ? " after 20000 bytes" : "",
                           place_names[place]);
                struct reader reader = {.len = LARGE, .at_most = 5000, .fail_at = late ? 20000 : 0, .times = 1};
                reader.answer = bad[i].answer;
                reader.claim = bad[i].claim;
                upload_open(&upload, UNIX_PAIR, 0, 0);
                upload.source.read = read_some;
                upload.source.user = &reader;
                upload.source.fd = -1;
                place_make(&to, (enum place)place, LARGE);
                CHECK_STATUS(receive(&upload, &to, 0), bad[i].status);
                check_got(&upload, bad[i].status, late ? 20000 : 0, 0);
                place_check(&to, late ? 20000 : 0);
                place_free(&to);
                upload_close(&upload, 0);
            }
        }
    }
    for (int try_now = 0; try_now < 2; try_now++) {
        check_case("a read function that wants to write first%s", try_now ? ", without waiting" : "");
        struct reader reader = {.len = 10, .at_most = 10, .answer = SENDGATE_WANT_WRITE, .times = 1};
        upload_open(&upload, UNIX_PAIR, 0, 0); /* it can be written to at once */
        upload.source.read = read_some;
        upload.source.user = &reader;
        upload.source.flags = try_now ? SENDGATE_SOURCE_TRY_NOW : 0;
        place_make(&to, MEMORY, 10);
        CHECK_STATUS(receive(&upload, &to, 0), try_now ? SENDGATE_WANT_WRITE : SENDGATE_OK);
        CHECK_STATUS(receive(&upload, &to, 0), try_now ? SENDGATE_OK : SENDGATE_ERR_INCOMPLETE);
        place_free(&to);
        upload_close(&upload, 0);
    }
    check_case("a read function that never gets anything: the idle timeout holds");
    struct reader reader = {.len = 10, .at_most = 10, .answer = SENDGATE_WANT_READ, .times = 1000000};
    upload_open(&upload, UNIX_PAIR, 0, 0);
    upload.source.read = read_some;
    upload.source.user = &reader;
    upload.source.idle_timeout_ms = 100;
    place_make(&to, MEMORY, 10);
    CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_ERR_TIMEOUT);
    place_free(&to);
    upload_close(&upload, 0);
}

static sendgate_status read_slowly(void *user, uint8_t *data, size_t cap, size_t *len)
{
    (void)user;
    usleep(1000);
    data[0] = 0;
    *len = cap > 0;
    return SENDGATE_OK;
}

/* Bytes that come all the time, but too few of them. */
static void never_waiting(void)
{
    for (int place = 0; place < N_PLACES; place++) {
        check_case("a read function that is slow: the total timeout holds, to a %s", place_names[place]);
        struct upload upload;
        struct place_of to;
        upload_open(&upload, UNIX_PAIR, 0, 0);
        upload.source.read = read_slowly;
        upload.source.total_timeout_ms = 100;
        place_make(&to, (enum place)place, 3000);
        int64_t start = now_ms();
        CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_ERR_TIMEOUT);
        CHECK(now_ms() - start >= 90);
        CHECK(upload.got.received > 0 && upload.got.received < 3000);
        CHECK_INT(upload.got.stored, upload.got.received);
        place_free(&to);
        upload_close(&upload, 0);
    }
}

/* ---- What is refused ---- */

/* Refused before anything is taken. */
static void refused(struct upload *upload, const struct place_of *to, sendgate_status status, int sys_errno)
{
    upload->got.received = upload->got.stored = 42;
    CHECK_STATUS(receive(upload, to, 0), status);
    check_got(upload, status, 0, sys_errno);
    CHECK_INT(upload->got.stored, 0);
    CHECK_INT(fcntl(upload->sock, F_GETFL), upload->flags);
    char here[20];
    CHECK_INT(recv(upload->sock, here, sizeof here, MSG_PEEK | MSG_DONTWAIT), 5);
}

static void arguments(void)
{
    struct upload upload;
    struct place_of to;
    upload_open(&upload, UNIX_PAIR, 0, 0);
    MUST(send(upload.feeder.fd, "hello", 5, 0) == 5);
    for (int place = MEMORY; place <= IN_FILE; place += IN_FILE) {
        place_make(&to, (enum place)place, 5);
#define REFUSED(assignment)                                                                                            \
    do {                                                                                                               \
        check_case("%s, to a %s", #assignment, place_names[place]);                                                    \
        const sendgate_source original = upload.source;                                                                \
        assignment;                                                                                                    \
        refused(&upload, &to, SENDGATE_ERR_INVALID, 0);                                                                \
        upload.source = original;                                                                                      \
    } while (0)
        REFUSED(upload.source.flags = 2);
        REFUSED(upload.source.flags = 0x80000000);
        REFUSED(upload.source.fd = -1);
        REFUSED(upload.source.fd = -2);
        REFUSED((upload.source.fd = -2, upload.source.read = read_some));
#undef REFUSED
        place_free(&to);
    }

    check_case("no source, no buffer, no result");
    uint8_t bytes[5];
    CHECK_STATUS(sendgate_receive(NULL, bytes, 5, &upload.got), SENDGATE_ERR_INVALID);
    check_got(&upload, SENDGATE_ERR_INVALID, 0, 0);
    CHECK_STATUS(sendgate_receive(&upload.source, NULL, 5, &upload.got), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_receive(&upload.source, bytes, (size_t)PTRDIFF_MAX + 1, &upload.got), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_receive(&upload.source, bytes, SIZE_MAX, &upload.got), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_receive(&upload.source, NULL, 0, &upload.got), SENDGATE_OK);
    CHECK_STATUS(sendgate_receive(NULL, bytes, 5, NULL), SENDGATE_ERR_INVALID);
    place_make(&to, IN_FILE, 5);
    CHECK_STATUS(sendgate_receive_file(NULL, to.file, 0, 5, &upload.got), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_receive_file(&upload.source, -1, 0, 5, &upload.got), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_receive_file(&upload.source, to.file, (uint64_t)INT64_MAX, 1, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_receive_file(&upload.source, to.file, UINT64_MAX, 5, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_receive_file(&upload.source, to.file, 0, UINT64_MAX, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_receive_file(&upload.source, to.file, 0, 0, NULL), SENDGATE_OK);

    check_case("files that can't be written to at an offset");
    int good = to.file;
    static const struct {
        const char *path;
        int flags;
        sendgate_status status;
        int sys_errno;
    } files[] = {
        {".", O_RDONLY, SENDGATE_ERR_NOT_REGULAR, EISDIR},
        {"/dev/full", O_WRONLY, SENDGATE_ERR_NOT_REGULAR, ENODEV},
        {"fifo", O_RDWR, SENDGATE_ERR_NOT_REGULAR, ESPIPE},
        {"upload", O_RDONLY, SENDGATE_ERR_IO, EBADF},
        {"upload", O_PATH, SENDGATE_ERR_IO, EBADF},
        {"upload", O_RDWR | O_APPEND, SENDGATE_ERR_IO, EINVAL},
        {"upload", O_RDWR | O_DIRECT, SENDGATE_ERR_IO, EINVAL},
    };
    MUST(mkfifo("fifo", 0600) == 0);
    for (size_t i = 0; i < N(files); i++) {
        check_case("%s with flags %#x", files[i].path, (unsigned)files[i].flags);
        to.file = open(files[i].path, files[i].flags | O_CLOEXEC);
        if (to.file < 0 && errno == EINVAL && (files[i].flags & O_DIRECT) != 0) {
            printf("skipped: O_DIRECT: this file system has none\n");
            continue;
        }
        MUST(to.file >= 0);
        refused(&upload, &to, files[i].status, files[i].sys_errno);
        close(to.file);
    }
    check_case("descriptors that aren't open");
    refused(&upload, &to, SENDGATE_ERR_IO, EBADF);
    to.file = good;
    upload.source.fd = 1000;
    refused(&upload, &to, SENDGATE_ERR_IO, EBADF);
    check_case("a descriptor that is no socket");
    upload.source.fd = good;
    refused(&upload, &to, SENDGATE_ERR_IO, ENOTSOCK);
    to.len = LARGE; /* by splice, which would take from a file as well, and move its position */
    refused(&upload, &to, SENDGATE_ERR_IO, ENOTSOCK);
    CHECK_INT(lseek(good, 0, SEEK_CUR), 777);
    upload.source.fd = upload.sock;
    to.len = 5;

    /* A program that doesn't know of the limit's signal dies of it. */
    check_case("a file beyond RLIMIT_FSIZE");
    struct rlimit limit, low;
    MUST(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    low = limit;
    low.rlim_cur = OFFSET + 4;
    MUST(setrlimit(RLIMIT_FSIZE, &low) == 0);
    refused(&upload, &to, SENDGATE_ERR_IO, EFBIG);
    to.len = LARGE;
    refused(&upload, &to, SENDGATE_ERR_IO, EFBIG);
    to.len = 4;
    CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_OK);
    MUST(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    place_free(&to);
    upload_close(&upload, 0);
}

/* ---- Places that fail ---- */

/* What the file has, what was taken and what is still there make up all that the peer has sent. */
static void check_failed(struct upload *upload, int file, size_t stored_at_most, int sys_errno)
{
    check_got(upload, SENDGATE_ERR_IO, upload->got.received, sys_errno);
    CHECK(upload->got.stored <= stored_at_most && upload->got.stored < upload->got.received);
    uint8_t *bytes = malloc(stored_at_most + 1);
    MUST(bytes != NULL);
    CHECK_INT(pread(file, bytes, upload->got.stored, 0), upload->got.stored);
    CHECK(is_pattern(bytes, upload->got.stored, 0));
    free(bytes);
    check_rest(upload, upload->got.received, upload->feeder.len - upload->got.received);
}

/* A file system of a megabyte. */
static void disk_full(void)
{
    /* In a child, which has mounts of its own. */
    fflush(stdout);
    pid_t child = fork();
    MUST(child >= 0);
    if (child > 0) {
        int status;
        MUST(waitpid(child, &status, 0) == child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
            printf("skipped: a full file system: only root may mount one\n");
        else
            CHECK_INT(status, 0);
        return;
    }
    check_begin();
    MUST(mkdir("small", 0700) == 0);
    if (unshare(CLONE_NEWNS) < 0 ||
        mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", "small", "tmpfs", 0, "size=1m") < 0)
        _exit(77);
    for (int variant = 0; variant < 4; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        /* Through the pipe, and copied from a read function. */
        int copied = (variant & 2) != 0;
        check_case("a full file system, %s%s", kind_name(kind), copied ? ", copied" : "");
        struct upload upload;
        upload_open(&upload, kind, 0, 3 << 20);
        struct reader reader = {.len = upload.feeder.len, .at_most = 100000};
        if (copied) {
            upload.source.read = read_some;
            upload.source.user = &reader;
        }
        int file = open("small/file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        MUST(file >= 0);
        if (!copied)
            upload_start(&upload);
        CHECK_STATUS(sendgate_receive_file(&upload.source, file, 0, 3 << 20, &upload.got), SENDGATE_ERR_IO);
        if (copied) {
            check_got(&upload, SENDGATE_ERR_IO, reader.done, ENOSPC);
            CHECK(upload.got.stored > 0 && upload.got.stored <= 1 << 20);
        } else {
            check_failed(&upload, file, 1 << 20, ENOSPC);
        }
        close(file);
        upload_close(&upload, !copied);
    }
    _exit(check_end() == 0 ? 0 : 1);
}

/* A file that may not become longer fails within a write, and doesn't take bytes from a pipe. */
static void sealed_file(void)
{
    static const size_t lengths[] = {SMALL, LARGE};
    for (size_t i = 0; i < N(lengths); i++) {
        check_case("a sealed file that has room for half of %zu bytes", lengths[i]);
        struct upload upload;
        size_t room = lengths[i] / 2;
        upload_open(&upload, UNIX_PAIR, 0, lengths[i]);
        int file = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        MUST(file >= 0 && ftruncate(file, (off_t)room) == 0 && fcntl(file, F_ADD_SEALS, F_SEAL_GROW) == 0);
        upload_start(&upload);
        CHECK_STATUS(sendgate_receive_file(&upload.source, file, 0, lengths[i], &upload.got), SENDGATE_ERR_IO);
        check_failed(&upload, file, room, EPERM);
        close(file);
        upload_close(&upload, 1);
    }
}

/* A mapping of a file that is cut short: an error, not a signal. */
static void mapping_cut_short(void)
{
    check_case("a mapping of a file that was cut short");
    struct upload upload;
    struct place_of to;
    upload_open(&upload, UNIX_PAIR, 0, 100000);
    place_make(&to, MAPPING, 100000);
    MUST(ftruncate(to.file, 40960) == 0);
    upload_start(&upload);
    CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_ERR_IO);
    check_got(&upload, SENDGATE_ERR_IO, upload.got.received, EFAULT);
    CHECK(upload.got.received <= 40960 && upload.got.stored == upload.got.received);
    CHECK(is_pattern(to.bytes, upload.got.received, 0));
    place_free(&to);
    upload_close(&upload, 1);
}

/* ---- Descriptors ---- */

/* No descriptor is left for a pipe: then the bytes are copied. */
static void without_a_pipe(void)
{
    check_case("no descriptor left");
    struct upload upload;
    struct place_of to;
    upload_open(&upload, UNIX_PAIR, 0, LARGE + BEHIND);
    place_make(&to, IN_FILE, LARGE);
    upload_start(&upload);
    struct rlimit limit, low;
    MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    low = limit;
    low.rlim_cur = 3;
    MUST(setrlimit(RLIMIT_NOFILE, &low) == 0);
    CHECK_STATUS(receive(&upload, &to, 0), SENDGATE_OK);
    MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    place_check(&to, LARGE);
    check_rest(&upload, LARGE, BEHIND);
    place_free(&to);
    upload_close(&upload, 1);
}

int main(void)
{
    check_begin();
    int before = open_fds();
    every_length();
    in_pieces();
    without_waiting();
    urgent_data();
    peers_that_stop();
    timeouts();
    interrupted();
    read_functions();
    never_waiting();
    arguments();
    disk_full();
    sealed_file();
    mapping_cut_short();
    without_a_pipe();
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    return check_end();
}
