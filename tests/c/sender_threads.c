/* One sender and many threads at random: some submit, some take, one cancels, and the peers read fast or slowly, stall, go
 * away or reset, on TCP and UNIX connections. Whatever happens, each response is reported once, each peer gets the bytes
 * that were counted and no others, and in the end nothing is left: no descriptor, and no place that is taken.
 *
 * SENDGATE_TEST_SEED repeats a run as far as the threads let it; SENDGATE_TEST_SECONDS makes it a long one.
 */
#include "flight.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define N_SUBMITTERS 4
#define N_TAKERS 3
#define N_PEERS 3
#define N_JOBS 128
/* Fewer than there are jobs, so that now and then there is no place. */
#define MAX_IN_FLIGHT 64
#define FILE_SIZE (4 << 20)

/* ---- Random numbers: one sequence for each thread ---- */

static uint64_t seed;

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

/* At least `from` and at most `to`. */
static uint64_t between(uint64_t *state, uint64_t from, uint64_t to)
{
    return from + next_random(state) % (to - from + 1);
}

static int one_in(uint64_t *state, uint64_t n)
{
    return next_random(state) % n == 0;
}

/* ---- Responses ---- */

enum manner { FAST, SLOW, STALLS, LEAVES, RESETS, N_MANNERS };
static const char *const manner_names[] = {"fast", "slow", "stalling", "leaving", "resetting"};

/* One response and its connection. The submitter, the taker and the peer each have a part in it, and whoever is the last
 * checks it. */
struct job {
    enum kind kind;
    enum manner manner;
    struct ask ask;
    char range[64];
    int sock; /* ours */
    int keeps_sock; /* until it is reported */
    int parts; /* of the three; atomic */
    uint64_t from, length; /* of the body, in the file */
    uint32_t http_status;
    uint64_t id; /* atomic */
    int reported; /* how often; atomic */
    int pending; /* it was submitted, and has to be reported */
    sendgate_completion done;
    /* The peer's. */
    int peer;
    uint64_t stop_at; /* LEAVES, RESETS: after that many bytes */
    size_t chunk;
    int64_t pause_ms, next_ms;
    char head[1024];
    size_t head_len;
    int in_body;
    uint64_t got, body_got;
    int bad; /* a byte was not the right one */
    struct job *next; /* in a list */
};

static struct job jobs[N_JOBS];

struct list {
    pthread_mutex_t lock;
    struct job *first;
};

static struct list unused = {PTHREAD_MUTEX_INITIALIZER, NULL};
static struct list arriving[N_PEERS] = {
    {PTHREAD_MUTEX_INITIALIZER, NULL}, {PTHREAD_MUTEX_INITIALIZER, NULL}, {PTHREAD_MUTEX_INITIALIZER, NULL}};

static void list_push(struct list *list, struct job *job)
{
    MUST(pthread_mutex_lock(&list->lock) == 0);
    job->next = list->first;
    list->first = job;
    MUST(pthread_mutex_unlock(&list->lock) == 0);
}

static struct job *list_pop(struct list *list)
{
    MUST(pthread_mutex_lock(&list->lock) == 0);
    struct job *job = list->first;
    if (job != NULL)
        list->first = job->next;
    MUST(pthread_mutex_unlock(&list->lock) == 0);
    return job;
}

/* ---- What all threads share ---- */

static sendgate_sender *sender;
static const uint8_t *memory; /* the file's content */
static int shared_file;
static int no_more; /* submitters end; atomic */
static int peers_end, takers_end; /* atomic */
static int to_report; /* submitted and not reported; atomic */
static int in_use; /* jobs; atomic */
static unsigned long counts[32]; /* by status, from -16 on */
static pthread_mutex_t checking = PTHREAD_MUTEX_INITIALIZER;

static int get(const int *number)
{
    return __atomic_load_n(number, __ATOMIC_SEQ_CST);
}

static void set(int *number, int value)
{
    __atomic_store_n(number, value, __ATOMIC_SEQ_CST);
}

static int add(int *number, int value)
{
    return __atomic_add_fetch(number, value, __ATOMIC_SEQ_CST);
}

/* All three have done their part. */
static void check_job(const struct job *job)
{
    const sendgate_completion *done = &job->done;
    sendgate_status status = done->status;
    uint64_t sent = done->head_sent + done->body_sent;
    MUST(pthread_mutex_lock(&checking) == 0);
    check_case("seed %llu: a %s peer, %s, %llu bytes from %llu", (unsigned long long)seed, manner_names[job->manner],
               kind_name(job->kind), (unsigned long long)job->length, (unsigned long long)job->from);
    CHECK_INT(job->reported, job->pending);
    CHECK_INT(job->bad, 0);
    if (job->pending) {
        CHECK_INT(done->id, job->id);
        uint32_t connection = status == SENDGATE_OK ? SENDGATE_CONN_REUSABLE : sent == 0 ? SENDGATE_CONN_UNTOUCHED : SENDGATE_CONN_BROKEN;
        check_completion(done, status, job->http_status, connection);
        CHECK_INT(done->body_length, job->length);
    } else {
        CHECK(status == SENDGATE_OK || status == SENDGATE_ERR_BUSY || status == SENDGATE_ERR_CANCELLED ||
              status == SENDGATE_ERR_PEER_CLOSED);
    }
    switch (job->manner) {
    case FAST:
    case SLOW:
        CHECK(status == SENDGATE_OK || status == SENDGATE_ERR_CANCELLED || status == SENDGATE_ERR_BUSY);
        break;
    case STALLS:
        CHECK(status == SENDGATE_OK || status == SENDGATE_ERR_CANCELLED || status == SENDGATE_ERR_BUSY ||
              status == SENDGATE_ERR_TIMEOUT);
        break;
    default:
        CHECK(status == SENDGATE_OK || status == SENDGATE_ERR_CANCELLED || status == SENDGATE_ERR_BUSY ||
              status == SENDGATE_ERR_PEER_CLOSED);
    }
    /* One that went away has not seen all. */
    if (job->stop_at == 0 || job->got < job->stop_at)
        CHECK_INT(job->got, sent);
    else
        CHECK(job->got <= sent);
    if (status == SENDGATE_OK)
        CHECK_INT(done->body_sent, job->length);
    if (job->in_body && job->stop_at == 0)
        CHECK_INT(job->body_got, done->body_sent);
    counts[status + 16]++;
    MUST(pthread_mutex_unlock(&checking) == 0);
}

static void part_done(struct job *job)
{
    if (add(&job->parts, -1) > 0)
        return;
    check_job(job);
    list_push(&unused, job);
    add(&in_use, -1);
}

/* ---- The peers: each thread has some ---- */

/* Some bytes have come. */
static void peer_got(struct job *job, const char *data, size_t len)
{
    job->got += len;
    while (!job->in_body && len > 0) {
        if (job->head_len == sizeof job->head) {
            job->bad = 1;
            return;
        }
        job->head[job->head_len++] = *data++;
        len--;
        job->in_body = job->head_len >= 4 && memcmp(job->head + job->head_len - 4, "\r\n\r\n", 4) == 0;
    }
    if (len > job->length - job->body_got || !is_pattern(data, len, job->from + job->body_got))
        job->bad = 1;
    job->body_got += len;
}

/* Reads once. Whether the connection is over. */
static int peer_step(struct job *job)
{
    char buf[65536];
    ssize_t n = recv(job->peer, buf, job->chunk, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n > 0) {
        peer_got(job, buf, (size_t)n);
        job->next_ms = now_ms() + job->pause_ms;
        if (job->stop_at == 0 || job->got < job->stop_at)
            return 0;
        struct linger linger = {1, 0};
        if (job->manner == RESETS)
            MUST(setsockopt(job->peer, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    }
    close(job->peer);
    return 1;
}

static void *peer_thread(void *arg)
{
    struct list *mine = arg;
    struct job *here[N_JOBS];
    struct pollfd waits[N_JOBS];
    size_t n = 0;
    while (n > 0 || !get(&peers_end)) {
        for (struct job *job; (job = list_pop(mine)) != NULL;)
            here[n++] = job;
        int64_t now = now_ms();
        for (size_t i = 0; i < n; i++) {
            /* One that stalls reads on when the response is over. */
            int reads = now >= here[i]->next_ms && (here[i]->manner != STALLS || get(&here[i]->parts) == 1);
            waits[i] = (struct pollfd){reads ? here[i]->peer : -1, POLLIN, 0};
        }
        MUST(poll(waits, (nfds_t)n, 1) >= 0);
        for (size_t i = n; i-- > 0;) {
            if (waits[i].revents != 0 && peer_step(here[i])) {
                part_done(here[i]);
                here[i] = here[--n];
            }
        }
    }
    return NULL;
}

/* ---- Submitting ---- */

/* Instead of the socket: a function that sends to it in odd sizes. */
static sendgate_status write_some(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct job *job = user;
    MUST(get(&job->reported) == 0);
    size_t n = len > 5000 ? len - 4999 : len;
    ssize_t sent = send(job->sock, data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        return errno == EAGAIN ? SENDGATE_WANT_WRITE : SENDGATE_ERR_PEER_CLOSED;
    *written = (size_t)sent;
    return SENDGATE_OK;
}

/* What is asked for. Returns a descriptor to close after submitting, or -1. */
static int ask_at_random(struct job *job, uint64_t *state)
{
    int file = -1;
    int small = one_in(state, 2);
    job->http_status = 200;
    job->from = 0;
    job->length = FILE_SIZE;
    if (one_in(state, 4)) {
        job->length = small ? between(state, 0, 70000) : between(state, 70000, FILE_SIZE);
        ask_memory(&job->ask, memory, (size_t)job->length, job->sock);
    } else {
        file = one_in(state, 2) ? shared_file : open("content", O_RDONLY | O_CLOEXEC);
        MUST(file >= 0);
        ask_file(&job->ask, file, job->sock);
        if (!one_in(state, 8)) {
            job->http_status = 206;
            job->length = small ? between(state, 1, 70000) : between(state, 70000, FILE_SIZE);
            job->from = between(state, 0, FILE_SIZE - job->length);
            snprintf(job->range, sizeof job->range, "bytes=%llu-%llu", (unsigned long long)job->from,
                     (unsigned long long)(job->from + job->length - 1));
            job->ask.request.range = text(job->range);
        }
        if (one_in(state, 4))
            job->ask.rep.flags |= SENDGATE_REP_COPY;
        if (one_in(state, 4))
            job->ask.rep.flags |= SENDGATE_REP_CHECK;
    }
    sendgate_sink *sink = &job->ask.sink;
    if (job->manner == STALLS)
        sink->idle_timeout_ms = (uint32_t)between(state, 20, 200);
    if (one_in(state, 4)) {
        sink->flags |= SENDGATE_SINK_TRY_NOW;
    } else if (one_in(state, 6)) {
        sink->write = write_some;
        sink->user = job;
        job->keeps_sock = 1;
    }
    return file == shared_file ? -1 : file;
}

static void job_begin(struct job *job, uint64_t *state)
{
    int sockets[2];
    memset(job, 0, sizeof *job);
    job->kind = one_in(state, 2) ? TCP_PAIR : UNIX_PAIR;
    /* Most are fast, or else all places would soon be taken by those that are not. */
    job->manner = one_in(state, 2) ? FAST : (enum manner)between(state, 0, N_MANNERS - 1);
    make_pair(job->kind, one_in(state, 2), sockets);
    job->sock = sockets[0];
    job->peer = sockets[1];
    job->keeps_sock = one_in(state, 2);
    job->chunk = one_in(state, 4) ? between(state, 1, 65536) : 65536;
    if (job->manner == SLOW) {
        job->pause_ms = (int64_t)between(state, 1, 5);
        job->chunk = 65536;
    }
    if (job->manner == LEAVES || job->manner == RESETS)
        job->stop_at = between(state, 1, one_in(state, 2) ? 300 : 2000000);
    job->parts = 3;
    add(&in_use, 1);
}

static void *submit_thread(void *arg)
{
    uint64_t state = seed + (uint64_t)(uintptr_t)arg;
    while (!get(&no_more)) {
        struct job *job = list_pop(&unused);
        if (job == NULL) {
            usleep(200);
            continue;
        }
        job_begin(job, &state);
        int file = ask_at_random(job, &state), keeps = job->keeps_sock, sock = job->sock;
        list_push(&arriving[between(&state, 0, N_PEERS - 1)], job);
        uint64_t id = 0;
        add(&to_report, 1);
        sendgate_result *result = &job->ask.result;
        sendgate_status status = sendgate_sender_submit(sender, &job->ask.exchange, &job->ask.sink, job, &id, result);
        if (file >= 0)
            close(file);
        if (status == SENDGATE_PENDING) {
            job->pending = 1;
            __atomic_store_n(&job->id, id, __ATOMIC_SEQ_CST);
            if (!keeps)
                close(sock);
        } else {
            /* It is over, and nobody will take it. */
            add(&to_report, -1);
            job->done.status = status;
            job->done.head_sent = result->head_sent;
            job->done.body_sent = result->body_sent;
            close(sock);
            part_done(job);
        }
        part_done(job);
        if (status == SENDGATE_ERR_CANCELLED)
            break;
        if (status == SENDGATE_ERR_BUSY || one_in(&state, 64))
            usleep((useconds_t)between(&state, 0, 3000));
    }
    return NULL;
}

/* ---- Taking, and cancelling ---- */

static void take_all(size_t cap)
{
    sendgate_completion done[8];
    size_t n = 0;
    sendgate_status status;
    while ((status = sendgate_sender_take(sender, done, cap, &n)) == SENDGATE_OK) {
        for (size_t i = 0; i < n; i++) {
            struct job *job = done[i].token;
            job->done = done[i];
            if (add(&job->reported, 1) > 1) {
                MUST(!"reported twice");
            }
            if (job->keeps_sock)
                close(job->sock);
            part_done(job);
        }
        add(&to_report, -(int)n);
    }
    MUST(status == SENDGATE_EMPTY && n == 0);
}

static void *take_thread(void *arg)
{
    uint64_t state = seed + 1000 + (uint64_t)(uintptr_t)arg;
    while (!get(&takers_end)) {
        struct pollfd news = {sendgate_sender_fd(sender), POLLIN, 0};
        MUST(poll(&news, 1, 20) >= 0);
        take_all((size_t)between(&state, 1, 8));
        if (one_in(&state, 50))
            usleep((useconds_t)between(&state, 0, 5000));
    }
    return NULL;
}

static pthread_mutex_t is_made = PTHREAD_MUTEX_INITIALIZER;

static void take_inside(void *user)
{
    (void)user;
    /* Not before `sender` is known. */
    MUST(pthread_mutex_lock(&is_made) == 0);
    MUST(pthread_mutex_unlock(&is_made) == 0);
    take_all(3);
}

static void *cancel_thread(void *arg)
{
    uint64_t state = seed + 2000;
    (void)arg;
    while (!get(&takers_end)) {
        /* Of one in flight, of one that was, or of none. */
        uint64_t id = __atomic_load_n(&jobs[between(&state, 0, N_JOBS - 1)].id, __ATOMIC_SEQ_CST);
        if (one_in(&state, 10))
            id = next_random(&state);
        MUST(sendgate_sender_cancel(sender, id) == SENDGATE_OK);
        usleep((useconds_t)between(&state, 0, 4000));
    }
    return NULL;
}

/* ---- Rounds ---- */

/* All places can be taken again: none was lost. */
static void check_places(void)
{
    static struct flight flights[MAX_IN_FLIGHT + 1];
    for (size_t i = 0; i <= MAX_IN_FLIGHT; i++) {
        flight_open(&flights[i], UNIX_PAIR, 1);
        ask_file(&flights[i].ask, shared_file, flights[i].sock);
        if (i < MAX_IN_FLIGHT)
            flight_submit(&flights[i], sender);
        else
            flight_check_refused(&flights[i], sender, SENDGATE_ERR_BUSY, 0);
    }
    for (size_t i = 0; i < MAX_IN_FLIGHT; i++)
        CHECK_STATUS(sendgate_sender_cancel(sender, flights[i].id), SENDGATE_OK);
    flight_collect(sender, MAX_IN_FLIGHT);
    for (size_t i = 0; i <= MAX_IN_FLIGHT; i++) {
        flight_hang_up(&flights[i]);
        close(flights[i].peer.fd);
    }
    check_sender_empty(sender);
}

/* One sender, for that long. In the end everybody finishes what he has begun, or it is stopped while they go on. */
static void run(unsigned round, int64_t ms)
{
    uint64_t state = seed + 3000 + round;
    pthread_t submitters[N_SUBMITTERS], takers[N_TAKERS], peers[N_PEERS], canceller;
    sendgate_sender_options options = {.size = sizeof options, .max_in_flight = MAX_IN_FLIGHT};
    int stopped = round % 2;
    options.turn_bytes = round % 3 == 2 ? 16384 : 0;
    options.on_ready = round % 4 > 1 ? take_inside : NULL;
    set(&no_more, 0);
    set(&peers_end, 0);
    set(&takers_end, 0);
    MUST(pthread_mutex_lock(&is_made) == 0);
    sender = sender_make(&options);
    MUST(pthread_mutex_unlock(&is_made) == 0);
    for (size_t i = 0; i < N_PEERS; i++)
        MUST(pthread_create(&peers[i], NULL, peer_thread, &arriving[i]) == 0);
    for (size_t i = 0; i < N_TAKERS; i++)
        MUST(pthread_create(&takers[i], NULL, take_thread, (void *)(uintptr_t)i) == 0);
    MUST(pthread_create(&canceller, NULL, cancel_thread, NULL) == 0);
    for (size_t i = 0; i < N_SUBMITTERS; i++)
        MUST(pthread_create(&submitters[i], NULL, submit_thread, (void *)(uintptr_t)(round * 100 + i)) == 0);
    usleep((useconds_t)ms * 1000);
    sendgate_status status = SENDGATE_OK;
    if (stopped)
        status = sendgate_sender_stop(sender, (uint32_t)between(&state, 0, 100));
    set(&no_more, 1);
    for (size_t i = 0; i < N_SUBMITTERS; i++)
        MUST(pthread_join(submitters[i], NULL) == 0);
    UNTIL(get(&to_report) == 0);
    set(&takers_end, 1);
    for (size_t i = 0; i < N_TAKERS; i++)
        MUST(pthread_join(takers[i], NULL) == 0);
    MUST(pthread_join(canceller, NULL) == 0);
    UNTIL(get(&in_use) == 0);
    set(&peers_end, 1);
    for (size_t i = 0; i < N_PEERS; i++)
        MUST(pthread_join(peers[i], NULL) == 0);

    check_case("seed %llu: round %u is over", (unsigned long long)seed, round);
    CHECK(status == SENDGATE_OK || status == SENDGATE_ERR_TIMEOUT);
    check_sender_empty(sender);
    if (!stopped && options.on_ready == NULL)
        check_places();
    sendgate_sender_free(sender);
}

int main(void)
{
    check_begin();
    int slow = getenv("SENDGATE_TEST_SLOW") != NULL;
    const char *chosen = getenv("SENDGATE_TEST_SEED"), *seconds = getenv("SENDGATE_TEST_SECONDS");
    seed = chosen != NULL ? strtoull(chosen, NULL, 10) : 20260731;
    int64_t ms = seconds != NULL ? atoll(seconds) * 1000 : slow ? 6000 : 4000;
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    alarm((unsigned)(ms / 1000) + 280);
    MUST(signal(SIGPIPE, SIG_DFL) != SIG_ERR);

    uint8_t *content = malloc(FILE_SIZE);
    MUST(content != NULL);
    pattern_fill(content, FILE_SIZE);
    memory = content;
    shared_file = file_make("content", FILE_SIZE);
    for (size_t i = 0; i < N_JOBS; i++)
        list_push(&unused, &jobs[i]);
    int before = open_fds();
    int64_t end = now_ms() + ms;
    unsigned rounds = 0;
    while (now_ms() < end || rounds < 4) {
        run(rounds, slow ? 1000 : 500);
        rounds++;
        CHECK_INT(open_fds(), before);
    }
    check_case("seed %llu: all of it", (unsigned long long)seed);
    unsigned long all = 0;
    for (size_t i = 0; i < N(counts); i++) {
        all += counts[i];
        if (counts[i] > 0)
            printf("%lu times %s\n", counts[i], sendgate_status_name((sendgate_status)i - 16));
    }
    printf("%u senders, %lu responses\n", rounds, all);
    CHECK(counts[16 + SENDGATE_OK] > 0 && counts[16 + SENDGATE_ERR_CANCELLED] > 0);
    CHECK(counts[16 + SENDGATE_ERR_PEER_CLOSED] > 0);
    free(content);
    close(shared_file);
    return check_end();
}
