/* Files that are not in the page cache: the sender's thread serves others while the disk is at work.
 *
 * The disk is this program's: the calls that tell what is in the page cache, ask for it and read from it are ours, for
 * the library too. Bytes are in blocks of 128 KiB. A block comes into the page cache `latency_ms` after it was asked
 * for, by posix_fadvise or by reading it; reading it before that blocks until then, and is counted.
 */
#include "flight.h"
#include "interpose.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BLOCK = 128 << 10, BLOCKS = 4096 };

static struct {
    pthread_mutex_t lock;
    int on;
    int latency_ms;
    int silent;    /* errno of preadv2 with RWF_NOWAIT, if the file system can't tell */
    int deaf;      /* posix_fadvise does nothing */
    int64_t ready[BLOCKS]; /* milliseconds of the clock; 0: not asked for */
    int blocked;   /* reads that had to wait */
    int blocked_here; /* those of the main thread */
    size_t longest; /* bytes of the longest read that had to wait */
    int patient;   /* what the main thread sends to is waited for: its sockets take all */
    uint64_t sent_here, sent_elsewhere; /* bytes sent by the main thread, and by others */
    int sendfiles_here; /* calls of sendfile by the main thread */
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER};
static pthread_t main_thread;

static int is_here(void)
{
    return pthread_equal(pthread_self(), main_thread) != 0;
}

static void disk_begin(int latency_ms)
{
    pthread_mutex_lock(&disk.lock);
    memset(disk.ready, 0, sizeof disk.ready);
    disk.on = 1;
    disk.latency_ms = latency_ms;
    disk.silent = disk.deaf = disk.blocked = disk.blocked_here = disk.patient = 0;
    disk.longest = 0;
    disk.sent_here = disk.sent_elsewhere = 0;
    disk.sendfiles_here = 0;
    pthread_mutex_unlock(&disk.lock);
}

/* All blocks are there, but for that one; -1: all of them. */
static void disk_warm(int but)
{
    pthread_mutex_lock(&disk.lock);
    for (int block = 0; block < BLOCKS; block++)
        disk.ready[block] = block != but;
    pthread_mutex_unlock(&disk.lock);
}

/* With the lock held. */
static void ask_for(off_t offset, off_t len)
{
    int64_t at = now_ms() + disk.latency_ms;
    for (off_t block = offset / BLOCK; block * BLOCK < offset + len && block < BLOCKS; block++)
        if (disk.ready[block] == 0)
            disk.ready[block] = at;
}

/* Before a read: as long as the disk takes. */
static void wait_for(off_t offset, size_t len)
{
    pthread_mutex_lock(&disk.lock);
    int64_t left = 0;
    if (disk.on && len > 0) {
        ask_for(offset, (off_t)len);
        for (off_t block = offset / BLOCK; block * BLOCK < offset + (off_t)len && block < BLOCKS; block++)
            if (disk.ready[block] - now_ms() > left)
                left = disk.ready[block] - now_ms();
        if (left > 0) {
            disk.blocked++;
            disk.blocked_here += is_here();
            if (len > disk.longest)
                disk.longest = len;
        }
    }
    pthread_mutex_unlock(&disk.lock);
    if (left > 0)
        poll(NULL, 0, (int)left);
}

static ssize_t look(int fd, const struct iovec *pieces, int n, off_t offset, int flags)
{
    int error = 0;
    pthread_mutex_lock(&disk.lock);
    if (disk.on && (flags & RWF_NOWAIT) != 0) {
        int64_t ready = offset / BLOCK < BLOCKS ? disk.ready[offset / BLOCK] : 1;
        error = disk.silent != 0 ? disk.silent : ready == 0 || ready > now_ms() ? EAGAIN : 0;
    }
    pthread_mutex_unlock(&disk.lock);
    if (error != 0) {
        errno = error;
        return -1;
    }
    return preadv2(fd, pieces, n, offset, flags);
}
INTERPOSE_PREADV2(look)

int posix_fadvise(int fd, off_t offset, off_t len, int advice)
{
    static int (*real)(int, off_t, off_t, int);
    FIND(real, "posix_fadvise");
    pthread_mutex_lock(&disk.lock);
    if (disk.on && advice == POSIX_FADV_WILLNEED && !disk.deaf)
        ask_for(offset, len);
    pthread_mutex_unlock(&disk.lock);
    return real(fd, offset, len, advice);
}

ssize_t pread(int fd, void *bytes, size_t len, off_t offset)
{
    static ssize_t (*real)(int, void *, size_t, off_t);
    FIND(real, "pread");
    wait_for(offset, len);
    return real(fd, bytes, len, offset);
}

static void before_send(int sock)
{
    struct pollfd writable = {.fd = sock, .events = POLLOUT};
    if (is_here() && disk.patient)
        MUST(poll(&writable, 1, -1) == 1);
}

static ssize_t after_send(ssize_t sent)
{
    if (sent > 0) {
        pthread_mutex_lock(&disk.lock);
        *(is_here() ? &disk.sent_here : &disk.sent_elsewhere) += (uint64_t)sent;
        pthread_mutex_unlock(&disk.lock);
    }
    return sent;
}

ssize_t sendfile(int sock, int fd, off_t *offset, size_t len)
{
    static ssize_t (*real)(int, int, off_t *, size_t);
    FIND(real, "sendfile");
    before_send(sock);
    disk.sendfiles_here += is_here();
    wait_for(*offset, len);
    return after_send(real(sock, fd, offset, len));
}

ssize_t send(int sock, const void *bytes, size_t len, int flags)
{
    static ssize_t (*real)(int, const void *, size_t, int);
    FIND(real, "send");
    before_send(sock);
    return after_send(real(sock, bytes, len, flags));
}

ssize_t sendmsg(int sock, const struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, const struct msghdr *, int);
    FIND(real, "sendmsg");
    before_send(sock);
    return after_send(real(sock, message, flags));
}

/* The same calls under the names that they have where off_t can have two widths. */
int posix_fadvise64(int fd, off_t offset, off_t len, int advice)
{
    return posix_fadvise(fd, offset, len, advice);
}

ssize_t pread64(int fd, void *bytes, size_t len, off_t offset)
{
    return pread(fd, bytes, len, offset);
}

ssize_t sendfile64(int sock, int fd, off_t *offset, size_t len)
{
    return sendfile(sock, fd, offset, len);
}

/* ---- What the cases share ---- */

enum { LENGTH = 4 << 20 };

static sendgate_sender *sender;
static int file, empty;

static void submit(struct ask *ask, uintptr_t token, uint64_t *id)
{
    sendgate_status status = sendgate_sender_submit(sender, &ask->exchange, &ask->sink, (void *)token, id, &ask->result);
    CHECK_STATUS(status, SENDGATE_PENDING);
}

static sendgate_completion take(void)
{
    sendgate_completion completion = {0};
    struct pollfd news = {.fd = sendgate_sender_fd(sender), .events = POLLIN};
    size_t n = 0;
    MUST(poll(&news, 1, -1) == 1);
    MUST(sendgate_sender_take(sender, &completion, 1, &n) == SENDGATE_OK && n == 1);
    return completion;
}

/* A peer that reads all, and what is submitted for it. */
struct client {
    int socket;
    struct peer peer;
    struct ask ask;
};

/* One that doesn't read yet. */
static void client_connect(struct client *client, enum kind kind, int nonblocking)
{
    int pair[2];
    make_pair(kind, nonblocking, pair);
    client->socket = pair[0];
    peer_init(&client->peer, pair[1]);
    ask_file(&client->ask, file, pair[0]);
}

static void client_begin(struct client *client, enum kind kind)
{
    client_connect(client, kind, 1);
    peer_start(&client->peer);
}

/* Returns the body that it got. */
static struct answer client_end(struct client *client)
{
    struct answer answer;
    close(client->socket);
    peer_join(&client->peer);
    answer_of(&answer, client->peer.data, client->peer.len);
    return answer;
}

/* ---- The cases ---- */

/* What is read ahead in time is never waited for, and others are answered meanwhile. */
static void a_cold_file_is_read_ahead(enum kind kind)
{
    check_case("a cold file is read ahead, %s", kind_name(kind));
    struct client client, other;
    client_begin(&client, kind);
    client_begin(&other, kind);
    ask_file(&other.ask, empty, other.socket);
    disk_begin(60);
    submit(&client.ask, 1, NULL);
    int others = 0;
    for (int done = 0; !done;) {
        submit(&other.ask, 2, NULL);
        uintptr_t last;
        do {
            sendgate_completion completion = take();
            last = (uintptr_t)completion.token;
            CHECK_STATUS(completion.status, SENDGATE_OK);
            done |= last == 1;
        } while (last != 2);
        others++;
    }
    CHECK_INT(disk.blocked, 0);
    /* The disk takes 60 ms at the least. */
    CHECK(others > 1);
    struct answer answer = client_end(&client);
    CHECK_INT(answer.body_len, LENGTH);
    CHECK(is_pattern(answer.body, answer.body_len, 0));
    peer_free(&client.peer);
    client_end(&other);
    peer_free(&other.peer);
}

/* Each part of a multipart may be somewhere else on the disk: they are all read ahead at once. */
static void parts_are_read_ahead(size_t length)
{
    check_case("parts of %zu bytes are read ahead", length);
    enum { PARTS = 30 };
    struct client client;
    sendgate_range ranges[PARTS];
    char range[PARTS * 20] = "bytes=";
    for (size_t i = 0; i < PARTS; i++) {
        ranges[i] = (sendgate_range){.offset = i * BLOCK + 1000, .length = length};
        snprintf(range + strlen(range), 20, "%s%zu-%zu", i > 0 ? "," : "", (size_t)ranges[i].offset,
                 (size_t)ranges[i].offset + length - 1);
    }
    disk_begin(15);
    client_begin(&client, TCP_PAIR);
    client.ask.request.range = text(range);
    submit(&client.ask, 1, NULL);
    CHECK_STATUS(take().status, SENDGATE_OK);
    CHECK_INT(disk.blocked, 0);
    struct answer answer = client_end(&client);
    CHECK_INT(answer.status, 206);
    check_multipart(&answer, ranges, PARTS, LENGTH);
    peer_free(&client.peer);
}

/* Reading ahead does not help, or the file system can't tell: one piece of 128 KiB at a time is waited for. */
static void the_disk_is_waited_for_in_pieces(int silent, int deaf)
{
    check_case("the disk is waited for in pieces: preadv2 says %d, posix_fadvise %s", silent,
               deaf ? "does nothing" : "reads");
    struct client client;
    disk_begin(silent != 0 || deaf ? 2 : 300);
    disk.silent = silent;
    disk.deaf = deaf;
    client_begin(&client, TCP_PAIR);
    client.ask.rep.length = LENGTH / 4;
    submit(&client.ask, 1, NULL);
    CHECK_STATUS(take().status, SENDGATE_OK);
    CHECK(disk.blocked > 0);
    CHECK(disk.longest <= BLOCK);
    struct answer answer = client_end(&client);
    CHECK_INT(answer.body_len, LENGTH / 4);
    CHECK(is_pattern(answer.body, answer.body_len, 0));
    peer_free(&client.peer);
}

/* Cancelling, and the total time, don't wait until it is a cold file's turn. */
static void cold_ones_end_when_they_should(void)
{
    check_case("cold ones end when they should");
    enum { CLIENTS = 20, CANCELLED = 18, LATE = 19 };
    static struct client clients[CLIENTS];
    uint64_t ids[CLIENTS];
    int reported[CLIENTS] = {0}, complete = 0;
    /* Reading ahead never helps, so each waits for the disk in turn, for a second in all. */
    disk_begin(50);
    disk.silent = EAGAIN;
    disk.deaf = 1;
    for (size_t i = 0; i < CLIENTS; i++) {
        client_begin(&clients[i], UNIX_PAIR);
        clients[i].ask.rep.offset = i * BLOCK;
        clients[i].ask.rep.length = BLOCK;
        if (i == LATE)
            clients[i].ask.sink.total_timeout_ms = 100;
        submit(&clients[i].ask, i, &ids[i]);
    }
    CHECK_STATUS(sendgate_sender_cancel(sender, ids[CANCELLED]), SENDGATE_OK);
    for (int n = 0; n < CLIENTS; n++) {
        sendgate_completion completion = take();
        uintptr_t i = (uintptr_t)completion.token;
        MUST(i < CLIENTS);
        reported[i]++;
        if (i == CANCELLED || i == LATE) {
            CHECK_STATUS(completion.status, i == LATE ? SENDGATE_ERR_TIMEOUT : SENDGATE_ERR_CANCELLED);
            CHECK_INT(completion.connection, SENDGATE_CONN_UNTOUCHED);
            CHECK(complete < CLIENTS / 2);
        } else {
            CHECK_STATUS(completion.status, SENDGATE_OK);
            complete++;
        }
    }
    for (size_t i = 0; i < CLIENTS; i++) {
        CHECK_INT(reported[i], 1);
        struct answer answer = client_end(&clients[i]);
        CHECK_INT(answer.body_len, i == CANCELLED || i == LATE ? 0 : BLOCK);
        CHECK(is_pattern(answer.body, answer.body_len, i * BLOCK));
        peer_free(&clients[i].peer);
    }
}

/* ---- SENDGATE_SINK_TRY_NOW ---- */

static sendgate_status submit_now(struct client *client)
{
    struct ask *ask = &client->ask;
    ask->sink.flags = SENDGATE_SINK_TRY_NOW;
    return sendgate_sender_submit(sender, &ask->exchange, &ask->sink, NULL, NULL, &ask->result);
}

/* The client has got these bytes of the file. */
static void check_got(struct client *client, size_t offset, size_t length)
{
    struct answer answer = client_end(client);
    CHECK_INT(answer.status, 200);
    CHECK_INT(answer.body_len, length);
    CHECK(is_pattern(answer.body, answer.body_len, offset));
    peer_free(&client->peer);
}

/* What has to come from the disk is handed over, be it one piece of 128 KiB; the caller has sent nothing, and has not
 * waited. */
static void the_caller_never_waits(void)
{
    static const struct {
        size_t offset, length;
        int cold; /* the only block that is; -1: all are there; -2: none is */
    } cases[] = {
        {0, 1000, -1},           {0, 16 << 10, -1},        {0, 60 << 10, -1},        {0, 1 << 20, -1},
        {0, 1000, -2},           {0, 16 << 10, -2},        {0, 60 << 10, -2},        {0, 1 << 20, -2},
        {0, 1 << 20, 0},         {0, 1 << 20, 1},          {0, 1 << 20, 2},          {0, 1 << 20, 3},
        {0, 1 << 20, 4},         {0, 1 << 20, 5},          {0, 1 << 20, 6},          {0, 1 << 20, 7},
        {0, 1 << 20, 8},         {5000, 1 << 20, 0},       {5000, 1 << 20, 4},       {5000, 1 << 20, 8},
        {5000, 1 << 20, 9},      {BLOCK, 1 << 20, 0},      {BLOCK, 3 * BLOCK, 2},    {BLOCK - 1, BLOCK, 0},
        {BLOCK - 1, BLOCK, 1},   {BLOCK, BLOCK - 5000, 1}, {BLOCK, BLOCK - 5000, 2}, {BLOCK, BLOCK + 1, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t offset = cases[i].offset, length = cases[i].length;
        int cold = cases[i].cold, warm = 1;
        if (cold != -1)
            warm = cold != -2 && !(offset / BLOCK <= (size_t)cold && (size_t)cold <= (offset + length - 1) / BLOCK);
        check_case("%zu bytes from %zu on at once, cold: %d", length, offset, cold);
        struct client client;
        disk_begin(20);
        if (cold != -2)
            disk_warm(cold);
        disk.patient = 1;
        client_begin(&client, i & 1 ? TCP_PAIR : UNIX_PAIR);
        client.ask.rep.offset = offset;
        client.ask.rep.length = length;
        sendgate_status status = submit_now(&client);
        CHECK_STATUS(status, warm ? SENDGATE_OK : SENDGATE_PENDING);
        CHECK_INT(client.ask.result.head_sent > 0, warm);
        CHECK_INT(client.ask.result.body_sent, warm ? length : 0);
        if (status == SENDGATE_PENDING)
            CHECK_STATUS(take().status, SENDGATE_OK);
        check_sender_empty(sender);
        CHECK_INT(disk.blocked_here, 0);
        CHECK_INT(disk.sent_here, client.ask.result.head_sent + client.ask.result.body_sent);
        check_got(&client, offset, length);
    }
}

/* More than that is handed over, though all of it is there and the socket would take it. */
static void the_caller_sends_only_so_much(void)
{
    enum { MUCH = 1 << 20, LESS = 64 << 10 };
    uint8_t *memory = malloc(LESS + 1);
    MUST(memory != NULL);
    pattern_fill(memory, LESS + 1);
    static const struct {
        const char *what;
        size_t most;
        uint32_t flags;
        int blocking, by_sendfile;
    } cases[] = {
        {"a file", MUCH, 0, 0, 1},
        {"a checked file", MUCH, SENDGATE_REP_CHECK, 0, 1},
        {"a file to a blocking socket", 16 << 10, 0, 1, 0},
        {"a copied file", LESS, SENDGATE_REP_COPY, 0, 0},
        {"a copied file to a blocking socket", LESS, SENDGATE_REP_COPY, 1, 0},
        {"memory", LESS, 0, 0, 0},
        {"memory to a blocking socket", LESS, 0, 1, 0},
    };
    for (size_t i = 0; i < 4 * (sizeof cases / sizeof cases[0]); i++) {
        const size_t which = i / 4, more = i & 1;
        const enum kind kind = i & 2 ? TCP_PAIR : UNIX_PAIR;
        const size_t length = cases[which].most + more;
        check_case("%zu bytes of %s at once, %s", length, cases[which].what, kind_name(kind));
        struct client client;
        disk_begin(20);
        disk_warm(-1);
        disk.patient = 1;
        client_connect(&client, kind, !cases[which].blocking);
        if (strncmp(cases[which].what, "memory", 6) == 0)
            ask_memory(&client.ask, memory, length, client.socket);
        client.ask.rep.length = length;
        client.ask.rep.flags |= cases[which].flags;
        peer_start(&client.peer);
        sendgate_status status = submit_now(&client);
        CHECK_STATUS(status, more ? SENDGATE_PENDING : SENDGATE_OK);
        CHECK_INT(client.ask.result.head_sent == 0, more);
        CHECK_INT(client.ask.result.body_sent, more ? 0 : length);
        if (status == SENDGATE_PENDING) {
            sendgate_completion completion = take();
            CHECK_STATUS(completion.status, SENDGATE_OK);
            CHECK_INT(completion.body_sent, length);
        }
        check_sender_empty(sender);
        CHECK_INT(disk.sent_here, client.ask.result.head_sent + client.ask.result.body_sent);
        CHECK_INT(disk.sendfiles_here > 0, cases[which].by_sendfile && !more);
        check_got(&client, 0, length);
    }
    free(memory);
}

/* What the socket does not take goes on in the background, and the counts are those of both. */
static void the_rest_goes_on(enum kind kind)
{
    check_case("the rest goes on, %s", kind_name(kind));
    enum { LEN = 1 << 20, OFFSET = 12345 };
    const int small = 1;
    struct client client;
    disk_begin(20);
    disk_warm(-1);
    client_connect(&client, kind, 1);
    MUST(setsockopt(client.socket, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    client.ask.rep.offset = OFFSET;
    client.ask.rep.length = LEN;
    MUST(submit_now(&client) == SENDGATE_PENDING);
    const sendgate_result *result = &client.ask.result;
    CHECK_STATUS(result->status, SENDGATE_PENDING);
    CHECK(result->head_sent > 0 && result->body_sent > 0 && result->body_sent < LEN);
    CHECK_INT(result->connection, SENDGATE_CONN_BROKEN);
    CHECK_INT(disk.sent_here, result->head_sent + result->body_sent);
    CHECK(disk.sendfiles_here > 0);
    peer_start(&client.peer);
    sendgate_completion completion = take();
    CHECK_STATUS(completion.status, SENDGATE_OK);
    CHECK_INT(completion.connection, SENDGATE_CONN_REUSABLE);
    CHECK_INT(completion.head_sent, result->head_sent);
    CHECK_INT(completion.body_sent, LEN);
    CHECK_INT(disk.sent_here, result->head_sent + result->body_sent);
    CHECK_INT(disk.sent_here + disk.sent_elsewhere, completion.head_sent + LEN);
    CHECK_INT(disk.blocked, 0);
    check_got(&client, OFFSET, LEN);
}

int main(void)
{
    check_begin();
    main_thread = pthread_self();
    file = file_make("file", LENGTH);
    empty = file_make("empty", 0);
    int fds = open_fds();
    MUST(sendgate_sender_new(NULL, &sender, NULL) == SENDGATE_OK);
    a_cold_file_is_read_ahead(TCP_PAIR);
    a_cold_file_is_read_ahead(UNIX_PAIR);
    parts_are_read_ahead(100);
    parts_are_read_ahead(20000);
    the_disk_is_waited_for_in_pieces(0, 0);
    the_disk_is_waited_for_in_pieces(0, 1);
    the_disk_is_waited_for_in_pieces(EOPNOTSUPP, 0);
    cold_ones_end_when_they_should();
    the_caller_never_waits();
    the_caller_sends_only_so_much();
    the_rest_goes_on(TCP_PAIR);
    the_rest_goes_on(UNIX_PAIR);
    disk.on = 0;
    sendgate_sender_free(sender);
    CHECK_INT(open_fds(), fds);
    return check_end();
}
