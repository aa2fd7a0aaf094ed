/* The background sender and what others do meanwhile: descriptor numbers that come to mean something else, peers that go
 * away or are slow, files that change, and responses that must not hold each other up.
 */
#include "flight.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define SMALL 1000
#define LARGE (3 * 1024 * 1024 + 17)
/* More than all buffers between two sockets hold. */
#define HUGE_FILE (16 << 20)

/* Under Valgrind: fewer rounds of the same. */
static int slow;

/* ---- Numbers that come to mean something else ---- */

/* A's socket and file are closed while its response is in flight, and their numbers become B's connection and a secret
 * file. A gets its own file, and B nothing; or, if B is answered as well, the secret. */
static void reused_numbers(void)
{
    file_fill("secret", 'S', HUGE_FILE);
    for (int variant = 0; variant < 8; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0, answered = (variant & 4) != 0;
        check_case("numbers used again, %s, %s, the second %s", kind_name(kind),
                   nonblocking ? "non-blocking" : "blocking", answered ? "answered" : "idle");
        int before = open_fds();
        sendgate_sender *sender = sender_make(NULL);
        struct flight a, b;
        flight_open(&a, kind, nonblocking);
        flight_open(&b, kind, !nonblocking);
        int file = file_new("public", HUGE_FILE), secret = open("secret", O_RDONLY | O_CLOEXEC);
        MUST(secret >= 0);
        ask_file(&a.ask, file, a.sock);
        flight_submit(&a, sender);
        /* dup2 closes what had the number. */
        MUST(dup2(b.sock, a.sock) == a.sock && dup2(secret, file) == file);
        close(b.sock);
        close(secret);
        b.sock = a.sock;
        a.sock = -1;
        int flags = fcntl(b.sock, F_GETFL);
        if (answered) {
            ask_file(&b.ask, file, b.sock);
            flight_submit(&b, sender);
            flight_read(&b);
        }
        flight_read(&a);
        flight_collect(sender, answered ? 2 : 1);
        /* A sees the end of the connection, since its caller has closed it: check_whole waits for that. */
        flight_check_whole(&a, HUGE_FILE);
        CHECK_INT(fcntl(b.sock, F_GETFL), flags);
        flight_join(&b);
        if (answered) {
            struct answer answer;
            check_completion(&b.done, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
            answer_of(&answer, b.peer.data, b.peer.len);
            CHECK_INT(answer.body_len, HUGE_FILE);
            size_t same = 0;
            while (same < answer.body_len && answer.body[same] == 'S')
                same++;
            CHECK_INT(same, HUGE_FILE);
        } else {
            CHECK_INT(b.peer.len, 0);
        }
        flight_free(&b);
        close(file);
        sendgate_sender_free(sender);
        CHECK_INT(open_fds(), before);
    }
}

/* ---- Peers that go away ---- */

enum going { BEFORE, STALLED, MIDDLE, N_GOINGS };

static void peers_that_close(void)
{
    static const char *const names[] = {"before anything was sent", "while stalled", "in the middle"};
    for (int variant = 0; variant < 4 * N_GOINGS; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int nonblocking = (variant & 2) != 0;
        enum going going = (enum going)(variant / 4);
        check_case("a peer that goes %s, %s, %s", names[going], kind_name(kind), nonblocking ? "non-blocking" : "blocking");
        sendgate_sender *sender = sender_make(NULL);
        struct flight flight, other;
        struct linger linger = {1, 0};
        flight_open(&flight, kind, nonblocking);
        flight_open(&other, kind, nonblocking);
        if (kind == TCP_PAIR)
            MUST(setsockopt(flight.peer.fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
        if (going == BEFORE)
            close(flight.peer.fd);
        flight_send(&flight, sender, file_new("answer", HUGE_FILE));
        flight_send(&other, sender, file_new("other", HUGE_FILE));
        if (going == STALLED) {
            UNTIL(socket_is_full(flight.sock));
            close(flight.peer.fd);
        } else if (going == MIDDLE) {
            flight.peer.stop_at = 1000000;
            flight_read(&flight);
        }
        CHECK(flight_collect(sender, 1) == &flight);
        const sendgate_completion *done = &flight.done;
        check_completion(done, SENDGATE_ERR_PEER_CLOSED, 200,
                         going == BEFORE && done->head_sent == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN);
        CHECK(done->sys_errno == EPIPE || done->sys_errno == ECONNRESET);
        if (going == MIDDLE) {
            peer_join(&flight.peer);
            CHECK(flight.peer.len >= 1000000 && flight.peer.len <= done->head_sent + done->body_sent);
        }
        flight_free(&flight);
        flight_hang_up(&flight);
        /* Nothing of this is the other's business. */
        flight_read(&other);
        CHECK(flight_collect(sender, 1) == &other);
        flight_check_whole(&other, HUGE_FILE);
        sendgate_sender_free(sender);
    }
}

/* A peer that has said all it has to say still listens. */
static void half_closed(void)
{
    for (int variant = 0; variant < 4; variant++) {
        enum kind kind = variant & 1 ? TCP_PAIR : UNIX_PAIR;
        int early = (variant & 2) != 0;
        check_case("a peer that closes its half %s, %s", early ? "before" : "while stalled", kind_name(kind));
        sendgate_sender *sender = sender_make(NULL);
        struct flight flight;
        flight_open(&flight, kind, 1);
        if (early)
            MUST(shutdown(flight.peer.fd, SHUT_WR) == 0);
        flight_send(&flight, sender, file_new("answer", HUGE_FILE));
        UNTIL(socket_is_full(flight.sock));
        if (!early)
            MUST(shutdown(flight.peer.fd, SHUT_WR) == 0);
        flight_read(&flight);
        flight_collect(sender, 1);
        flight_check_whole(&flight, HUGE_FILE);
        sendgate_sender_free(sender);
    }
}

/* ---- Peers that are slow ---- */

/* A TCP connection with segments of an Ethernet's size and a small window: on the loopback as it is, what the peer takes
 * shows only every 64 KiB. */
static void flight_open_narrow(struct flight *flight)
{
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    int segment = 1460, window = 8192, ours, peer, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(flight, 0, sizeof *flight);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    MUST(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    MUST(setsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment) == 0);
    MUST(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&address, &len) == 0);
    peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(peer >= 0 && setsockopt(peer, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment) == 0);
    MUST(setsockopt(peer, SOL_SOCKET, SO_RCVBUF, &window, sizeof window) == 0);
    MUST(connect(peer, (struct sockaddr *)&address, sizeof address) == 0);
    ours = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    MUST(ours >= 0);
    close(listener);
    flight->sock = ours;
    peer_init(&flight->peer, peer);
}

enum manner { STOPS, ONE_BYTE, BELOW_RATE, ABOVE_RATE, STEADY, N_MANNERS };
static const char *const manner_names[] = {
    "takes nothing more", "takes a byte a second", "is slower than min_rate", "is faster than min_rate",
    "takes so little that the socket never becomes writable within the idle time",
};
/* Of those that are given up, and of those that must not be. */
#define IDLE_MS 500
#define LONG_IDLE_MS 1500

static void slow_begin(struct flight *flight, enum manner manner, enum kind kind, sendgate_sender *sender)
{
    if (manner == STEADY && kind == TCP_PAIR)
        flight_open_narrow(flight);
    else
        flight_open(flight, kind, 1);
    struct peer *peer = &flight->peer;
    int file = file_new("answer", HUGE_FILE), size = 1000000;
    socklen_t len = sizeof size;
    ask_file(&flight->ask, file, flight->sock);
    sendgate_sink *sink = &flight->ask.sink;
    sink->idle_timeout_ms = IDLE_MS;
    switch (manner) {
    case ONE_BYTE:
        sink->idle_timeout_ms = 0;
        sink->total_timeout_ms = IDLE_MS;
        peer->chunk = 1;
        peer->pause_ms = 1000;
        break;
    case BELOW_RATE:
        /* Never idle for that long. */
        peer->rate = 1000000;
        sink->min_rate = 1 << 30;
        break;
    case ABOVE_RATE:
        sink->idle_timeout_ms = LONG_IDLE_MS;
        sink->min_rate = 100000;
        peer->rate = HUGE_FILE / 3;
        break;
    case STEADY:
        sink->idle_timeout_ms = LONG_IDLE_MS;
        MUST(setsockopt(flight->sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
        MUST(getsockopt(flight->sock, SOL_SOCKET, SO_SNDBUF, &size, &len) == 0);
        /* Writable again when a third (TCP) or three quarters (UNIX) of it have been taken: so not for more than twice
         * the idle time. */
        peer->rate = (size_t)size / (kind == TCP_PAIR ? 6 : 5) * 1000 / (2 * LONG_IDLE_MS);
        flight->ask.rep.length = (uint64_t)size * 5 / 4;
        /* In pieces of 17 KiB; sendfile makes some of 64 KiB, and on a UNIX socket they count until all of them has been
         * taken. */
        flight->ask.rep.flags |= SENDGATE_REP_COPY;
        break;
    default:
        break;
    }
    flight_submit(flight, sender);
    close(file);
    if (manner != STOPS)
        flight_read(flight);
}

/* Returns whether a peer was held up by this machine, and not as it was meant to be, for so long that giving it up was
 * right. */
static int slow_end(struct flight *flight, enum manner manner)
{
    const sendgate_completion *done = &flight->done;
    int starved = 0;
    if (manner == ABOVE_RATE || manner == STEADY) {
        starved = done->status == SENDGATE_ERR_TIMEOUT && flight->peer.longest_ms > LONG_IDLE_MS / 4;
        if (!starved) {
            flight_check_whole(flight, (size_t)flight->ask.rep.length);
            return 0;
        }
    } else {
        CHECK(done->elapsed_ns >= IDLE_MS * 1000000ull && done->elapsed_ns < 20 * 1000000000ull);
    }
    check_completion(done, SENDGATE_ERR_TIMEOUT, 200, SENDGATE_CONN_BROKEN);
    CHECK(done->body_sent > 0 && done->body_sent < done->body_length);
    if (manner == ONE_BYTE) {
        /* It would take days to the end. */
        flight_hang_up(flight);
        peer_abandon(&flight->peer);
        CHECK(flight->peer.len > 0 && flight->peer.len < 30);
    } else {
        __atomic_store_n(&flight->peer.rate, 0, __ATOMIC_RELAXED);
        flight_join(flight);
        flight_check(flight, 0);
    }
    flight_free(flight);
    return starved;
}

/* All at the same time in one sender, through which others go undisturbed meanwhile. */
static int slow_round(void)
{
    static struct flight flights[2 * N_MANNERS];
    static const size_t sizes[] = {SMALL, 100000, LARGE};
    sendgate_sender *sender = sender_make(NULL);
    for (size_t i = 0; i < N(flights); i++) {
        enum kind kind = i % 2 ? TCP_PAIR : UNIX_PAIR;
        check_case("a peer that %s, %s", manner_names[i / 2], kind_name(kind));
        slow_begin(&flights[i], (enum manner)(i / 2), kind, sender);
    }
    size_t left = N(flights), others = 0;
    int64_t start = 0;
    struct flight *steady = &flights[2 * STEADY];
    while (left > 0) {
        struct flight other;
        size_t size = sizes[others % N(sizes)];
        check_case("%zu bytes while others are slow", size);
        flight_open(&other, others % 2 ? TCP_PAIR : UNIX_PAIR, 1);
        flight_read(&other);
        flight_send(&other, sender, file_new("other", size));
        while (!other.reported)
            left -= flight_collect(sender, 1) != &other;
        flight_check_whole(&other, size);
        others++;
        /* When the steady ones have been so for long enough, they take the rest. */
        if (start == 0 && socket_is_full(steady[0].sock) && socket_is_full(steady[1].sock))
            start = now_ms();
        for (int kind = 0; kind < 2 && start != 0 && now_ms() - start >= 2 * LONG_IDLE_MS; kind++) {
            check_case("%s, %s, taken from for long", manner_names[STEADY], kind_name((enum kind)kind));
            if (steady[kind].peer.rate != 0 && !steady[kind].reported)
                CHECK(socket_is_full(steady[kind].sock));
            __atomic_store_n(&steady[kind].peer.rate, 0, __ATOMIC_RELAXED);
        }
        usleep(10000);
    }
    CHECK(others > 10);
    int starved = 0;
    for (size_t i = 0; i < N(flights); i++) {
        check_case("a peer that %s, %s, ended", manner_names[i / 2], kind_name(i % 2 ? TCP_PAIR : UNIX_PAIR));
        starved += slow_end(&flights[i], (enum manner)(i / 2));
    }
    check_sender_empty(sender);
    sendgate_sender_free(sender);
    return starved;
}

static void slow_peers(void)
{
    /* Again, if the machine was so busy that the peers were slower than they were meant to be. */
    int rounds = 1;
    while (slow_round() > 0 && rounds < 5)
        rounds++;
    CHECK(rounds < 5);
}

/* ---- Files that change ---- */

static void files_that_change(void)
{
    sendgate_sender *sender = sender_make(NULL);
    static const struct shrink {
        const char *name;
        const char *range;
        uint32_t flags;
    } shrinks[] = {
        {"sendfile", NULL, 0},
        {"copy", NULL, SENDGATE_REP_COPY},
        {"multipart", "bytes=0-9,100-16777215", 0},
    };
    for (size_t i = 0; i < 2 * N(shrinks); i++) {
        const struct shrink *shrink = &shrinks[i / 2];
        enum kind kind = i % 2 ? TCP_PAIR : UNIX_PAIR;
        check_case("truncated half-way, %s, %s", shrink->name, kind_name(kind));
        struct flight flight;
        struct answer answer;
        int file = file_new("answer", HUGE_FILE), writable = open("answer", O_WRONLY | O_CLOEXEC);
        MUST(writable >= 0);
        flight_open(&flight, kind, 1);
        ask_file(&flight.ask, file, flight.sock);
        if (shrink->range != NULL)
            flight.ask.request.range = text(shrink->range);
        flight.ask.rep.flags |= shrink->flags;
        flight_submit(&flight, sender);
        close(file);
        UNTIL(socket_is_full(flight.sock));
        flight.peer.stop_at = 1;
        flight.peer.truncate_fd = writable;
        flight.peer.truncate_to = 50000;
        flight_read(&flight);
        flight_collect(sender, 1);
        check_completion(&flight.done, SENDGATE_ERR_TRUNCATED, shrink->range ? 206 : 200, SENDGATE_CONN_BROKEN);
        CHECK(flight.done.body_sent < flight.done.body_length);
        flight_join(&flight);
        CHECK_INT(flight.peer.len, flight.done.head_sent + flight.done.body_sent);
        answer_of(&answer, flight.peer.data, flight.peer.len);
        /* sendfile refers to the file's pages, which the truncation empties; a copy must be right. */
        if (shrink->flags == SENDGATE_REP_COPY)
            CHECK(is_pattern(answer.body, answer.body_len, 0));
        else if (shrink->range == NULL)
            CHECK(is_pattern(answer.body, answer.body_len < 50000 ? answer.body_len : 50000, 0));
        flight_free(&flight);
        close(writable);
    }

    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("replaced by another file, %s", kind_name((enum kind)kind));
        struct flight flight;
        flight_open(&flight, (enum kind)kind, 1);
        flight_send(&flight, sender, file_new("answer", HUGE_FILE));
        file_fill("new", 'N', 4096);
        MUST(rename("new", "answer") == 0);
        flight_read(&flight);
        flight_collect(sender, 1);
        flight_check_whole(&flight, HUGE_FILE);

        check_case("SENDGATE_REP_CHECK and a file that is written to, %s", kind_name((enum kind)kind));
        int file = file_new("answer", HUGE_FILE), writable = open("answer", O_WRONLY | O_CLOEXEC);
        flight_open(&flight, (enum kind)kind, 1);
        ask_file(&flight.ask, file, flight.sock);
        flight.ask.rep.flags |= SENDGATE_REP_CHECK;
        flight_submit(&flight, sender);
        UNTIL(socket_is_full(flight.sock));
        MUST(writable >= 0 && pwrite(writable, "x", 1, HUGE_FILE - 1) == 1);
        flight_read(&flight);
        flight_collect(sender, 1);
        check_completion(&flight.done, SENDGATE_ERR_CHANGED, 200, SENDGATE_CONN_BROKEN);
        flight_join(&flight);
        flight_check(&flight, 0);
        CHECK(flight.done.body_sent > 0 && flight.done.body_sent < HUGE_FILE);
        flight_free(&flight);

        check_case("SENDGATE_REP_CHECK and a file that was written to before, %s", kind_name((enum kind)kind));
        flight_open(&flight, (enum kind)kind, 1);
        ask_file(&flight.ask, file, flight.sock);
        flight.ask.rep.flags |= SENDGATE_REP_CHECK;
        MUST(ftruncate(writable, HUGE_FILE - 1) == 0);
        CHECK_STATUS(sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, NULL, NULL, &flight.ask.result),
                     SENDGATE_ERR_CHANGED);
        CHECK_INT(flight.ask.result.connection, SENDGATE_CONN_UNTOUCHED);
        flight_join(&flight);
        CHECK_INT(flight.peer.len, 0);
        flight_free(&flight);
        close(writable);
        close(file);
    }

    /* An error, and not a signal, which would be the sender's own. */
    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("memory that is a mapping of a file that was cut short, %s", kind_name((enum kind)kind));
        struct flight flight;
        int file = file_new("mapped", 100000);
        void *mapping = mmap(NULL, 100000, PROT_READ, MAP_SHARED, file, 0);
        MUST(mapping != MAP_FAILED && truncate("mapped", 0) == 0);
        flight_open(&flight, (enum kind)kind, 1);
        ask_memory(&flight.ask, mapping, 100000, flight.sock);
        flight_submit(&flight, sender);
        flight_collect(sender, 1);
        CHECK_STATUS(flight.done.status, SENDGATE_ERR_IO);
        CHECK_INT(flight.done.sys_errno, EFAULT);
        CHECK_INT(flight.done.body_sent, 0);
        MUST(munmap(mapping, 100000) == 0);
        close(file);
        flight_join(&flight);
        CHECK_INT(flight.peer.len, flight.done.head_sent);
        flight_free(&flight);
    }
    check_sender_empty(sender);
    sendgate_sender_free(sender);
}

/* ---- Turns ---- */

/* Reads zeros as fast as it can. Half-way it waits until it is told that all the others were submitted. */
struct bulk {
    int fd, go;
    uint64_t len, half;
    int all_zero;
};

static void *bulk_main(void *arg)
{
    static char buf[1 << 18];
    static const char zeros[sizeof buf];
    struct bulk *bulk = arg;
    char byte;
    bulk->all_zero = 1;
    for (ssize_t n; (n = recv(bulk->fd, buf, sizeof buf, 0)) > 0; bulk->len += (uint64_t)n) {
        if (memcmp(buf, zeros, (size_t)n) != 0)
            bulk->all_zero = 0;
        if (bulk->len < bulk->half && bulk->len + (uint64_t)n >= bulk->half)
            MUST(read(bulk->go, &byte, 1) == 1);
    }
    close(bulk->fd);
    return NULL;
}

static void turns(void)
{
    static struct flight small[50];
    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("50 small ones while one is large and its client fast, %s", kind_name((enum kind)kind));
        uint64_t size = slow ? 64 << 20 : kind == UNIX_PAIR ? 1 << 30 : 256 << 20;
        sendgate_sender *sender = sender_make(NULL);
        struct flight large;
        struct bulk bulk = {.half = size / 2};
        pthread_t thread;
        int go[2];
        flight_open(&large, (enum kind)kind, 1);
        MUST(pipe(go) == 0);
        bulk.fd = large.peer.fd;
        bulk.go = go[0];
        int file = file_sparse("sparse", (off_t)size);
        ask_file(&large.ask, file, large.sock);
        large.ask.exchange.head = SENDGATE_HEAD_NONE;
        MUST(pthread_create(&thread, NULL, bulk_main, &bulk) == 0);
        flight_submit(&large, sender);
        close(file);
        flight_hang_up(&large);
        for (size_t i = 0; i < N(small); i++) {
            flight_open(&small[i], (enum kind)kind, 1);
            flight_send(&small[i], sender, file_new("answer", i % 2 ? SMALL : 20000));
        }
        MUST(write(go[1], "x", 1) == 1);
        for (size_t i = 0; i < N(small); i++)
            CHECK(flight_collect(sender, 1) != &large);
        CHECK(flight_collect(sender, 1) == &large);
        MUST(pthread_join(thread, NULL) == 0);
        check_completion(&large.done, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
        CHECK_INT(large.done.body_sent, size);
        CHECK_INT(bulk.len, size);
        CHECK(bulk.all_zero);
        for (size_t i = 0; i < N(small); i++)
            flight_check_whole(&small[i], i % 2 ? SMALL : 20000);
        unlink("sparse");
        close(go[0]);
        close(go[1]);
        sendgate_sender_free(sender);
    }
}

int main(void)
{
    check_begin();
    slow = getenv("SENDGATE_TEST_SLOW") != NULL;
    /* A SIGPIPE that the library let through would be the end of this. */
    MUST(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    static void (*const tests[])(void) = {
        reused_numbers, peers_that_close, half_closed, slow_peers, files_that_change, turns,
    };
    for (size_t i = 0; i < N(tests); i++) {
        int before = open_fds();
        tests[i]();
        CHECK_INT(open_fds(), before);
    }
    return check_end();
}
