/* Ten thousand downloads whose clients read nothing, in one sender: what each takes of memory, what they cost a fresh
 * request, and that all of them end when they are told to.
 *
 *   sender_many [DOWNLOADS [REQUESTS]]      prints the figures as a line of JSON, and then how many checks passed
 *
 * The clients are in a child process, so that neither process needs a descriptor for both ends. It is made before the
 * sender, as the header asks. Times are printed and not judged here: that is for a benchmark on a quiet machine.
 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MANY 10000
#define LENGTH (100u << 20) /* of what is downloaded */
#define SMALL 1024
#define REQUESTS 2000
/* What a download in flight may take of malloc's memory. */
#define MOST 1024
/* Those that are not for downloads. */
#define SPARE_DESCRIPTORS 200
/* As many as that connect at a time: what doesn't fit into the listener's queue tries again a second later. */
#define AT_ONCE 64
/* Clients connect from several addresses: a port is not free again at once. */
#define PER_ADDRESS 2000

/* ---- The clients ---- */

/* Small buffers at both ends: what waits in them is the kernel's memory, which is limited too. */
static void small_buffer(int sock, int name)
{
    int size = 4096;
    MUST(setsockopt(sock, SOL_SOCKET, name, &size, sizeof size) == 0);
}

/* A close that sends a reset at once: nothing of ten thousand connections stays behind. */
static void close_at_once(int sock)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    MUST(setsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
}

/* Connects once for each byte that comes from `permits`, and leaves at its end. */
static void clients_main(const struct sockaddr_in *server, int permits)
{
    char byte;
    for (unsigned i = 0; read(permits, &byte, 1) == 1; i++) {
        struct sockaddr_in from;
        memset(&from, 0, sizeof from);
        from.sin_family = AF_INET;
        from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + i / PER_ADDRESS);
        int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        MUST(sock >= 0);
        small_buffer(sock, SO_RCVBUF);
        close_at_once(sock);
        MUST(bind(sock, (const struct sockaddr *)&from, sizeof from) == 0);
        MUST(connect(sock, (const struct sockaddr *)server, sizeof *server) == 0);
    }
}

/* ---- Figures ---- */

static size_t malloc_bytes(void)
{
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

/* The sanitizers and Valgrind have a malloc of their own, about which libc's figures say nothing. */
static int malloc_is_libc(void)
{
    void *(*volatile allocate)(size_t) = malloc; /* or the compiler leaves it out */
    size_t before = malloc_bytes();
    void *memory = allocate(LENGTH);
    size_t bytes = malloc_bytes() - before;
    free(memory);
    return bytes >= LENGTH;
}

/* A number from a file of procfs: behind `key`, and then behind `word`. */
static long number_in(const char *path, const char *key, const char *word)
{
    char line[300];
    long number = -1;
    FILE *file = fopen(path, "r");
    MUST(file != NULL);
    while (number < 0 && fgets(line, sizeof line, file) != NULL) {
        const char *at = strncmp(line, key, strlen(key)) == 0 ? strstr(line, word) : NULL;
        if (at != NULL)
            number = atol(at + strlen(word));
    }
    fclose(file);
    return number;
}

static double now_us(void)
{
    struct timespec now;
    MUST(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value that `share` of them are not above. Sorts them. */
static double quantile(double *values, size_t n, double share)
{
    qsort(values, n, sizeof *values, by_size);
    return values[(size_t)((double)(n - 1) * share)];
}

/* ---- The downloads ---- */

static sendgate_sender *sender_for(unsigned in_flight)
{
    sendgate_sender_options options;
    sendgate_sender *sender = NULL;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.max_in_flight = in_flight;
    MUST(sendgate_sender_new(&options, &sender, NULL) == SENDGATE_OK);
    return sender;
}

/* Accepts a client and submits its download. Its own descriptor is not needed any more then. */
static void begin_download(sendgate_sender *sender, int listener, int file, uintptr_t number, uint64_t *id)
{
    struct ask ask;
    int sock = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    MUST(sock >= 0);
    small_buffer(sock, SO_SNDBUF);
    close_at_once(sock);
    ask_file(&ask, file, sock);
    ask.sink.idle_timeout_ms = 3600 * 1000;
    CHECK_STATUS(sendgate_sender_submit(sender, &ask.exchange, &ask.sink, (void *)number, id, NULL), SENDGATE_PENDING);
    close(sock);
}

/* One request for SMALL bytes; from submit to the last byte at the client, in microseconds. */
static double request(sendgate_sender *sender, int file, const int sockets[2])
{
    char got[4 * SMALL];
    size_t len = 0;
    struct answer answer;
    struct ask ask;
    sendgate_completion done;
    memset(&answer, 0, sizeof answer);
    ask_file(&ask, file, sockets[0]);
    double begun = now_us();
    CHECK_STATUS(sendgate_sender_submit(sender, &ask.exchange, &ask.sink, &ask, NULL, NULL), SENDGATE_PENDING);
    while (len < sizeof got && (answer.status == 0 || answer.body_len < SMALL)) {
        ssize_t n = recv(sockets[1], got + len, sizeof got - len, 0);
        MUST(n > 0);
        len += (size_t)n;
        answer_of(&answer, got, len);
    }
    double time = now_us() - begun;
    CHECK_INT(answer.status, 200);
    CHECK(answer.body_len == SMALL && is_pattern(answer.body, SMALL, 0));
    struct pollfd news = {.fd = sendgate_sender_fd(sender), .events = POLLIN};
    MUST(poll(&news, 1, 60000) == 1);
    size_t n = 0;
    CHECK_STATUS(sendgate_sender_take(sender, &done, 1, &n), SENDGATE_OK);
    CHECK(n == 1 && done.token == &ask && done.status == SENDGATE_OK);
    return time;
}

/* All that are in flight end now, each once. */
static void cancel_all(sendgate_sender *sender, const uint64_t *ids, unsigned n)
{
    uint8_t *reports = calloc(n, 1);
    MUST(reports != NULL);
    for (unsigned i = 0; i < n; i++)
        CHECK_STATUS(sendgate_sender_cancel(sender, ids[i]), SENDGATE_OK);
    for (unsigned left = n; left > 0;) {
        sendgate_completion done[64];
        size_t taken = 0;
        struct pollfd news = {.fd = sendgate_sender_fd(sender), .events = POLLIN};
        if (!CHECK_INT(poll(&news, 1, 60000), 1))
            break;
        CHECK_STATUS(sendgate_sender_take(sender, done, sizeof done / sizeof *done, &taken), SENDGATE_OK);
        CHECK(taken > 0 && taken <= left);
        for (size_t i = 0; i < taken; i++) {
            uintptr_t number = (uintptr_t)done[i].token;
            MUST(number < n);
            CHECK_INT(reports[number]++, 0);
            CHECK_INT(done[i].id, ids[number]);
            CHECK_STATUS(done[i].status, SENDGATE_ERR_CANCELLED);
            CHECK_INT(done[i].connection, SENDGATE_CONN_BROKEN);
            CHECK(done[i].body_sent > 0 && done[i].body_sent < LENGTH);
            CHECK_INT(done[i].body_length, LENGTH);
        }
        left -= (unsigned)taken;
    }
    free(reports);
}

/* ---- */

/* How many downloads the limit of descriptors allows; it is raised as far as that may be. */
static unsigned allowed(unsigned wanted)
{
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    rlim_t needed = wanted + SPARE_DESCRIPTORS;
    if (limit.rlim_cur < needed) {
        struct rlimit raised = {.rlim_cur = needed, .rlim_max = limit.rlim_max < needed ? needed : limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) != 0) {
            int error = errno;
            raised.rlim_cur = raised.rlim_max = limit.rlim_max;
            MUST(setrlimit(RLIMIT_NOFILE, &raised) == 0);
            wanted = (unsigned)limit.rlim_max - SPARE_DESCRIPTORS;
            printf("skipped: more than %u downloads: no more than %lu descriptors: %s\n", wanted,
                   (unsigned long)limit.rlim_max, strerror(error));
        }
    }
    return wanted;
}

struct figures {
    double malloc_each, rss_each, kernel_pages_each;
    double p50_loaded, p99_loaded, p50_idle, p99_idle;
};

/* Where clients come from. */
struct door {
    int listener;
    int permits; /* a byte for each that may come */
    pid_t child;
};

static struct figures measure(sendgate_sender *sender, const struct door *door, unsigned n, unsigned requests,
                              uint64_t *ids)
{
    struct figures figures;
    int small = file_make("small", SMALL);
    int large = open("large", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    MUST(large >= 0 && ftruncate(large, LENGTH) == 0); /* of zeros, and takes no room on the disk */
    int loaded[2], idle[2];
    make_pair(TCP_PAIR, 1, loaded);
    make_pair(TCP_PAIR, 1, idle);
    sendgate_sender *other = sender_for(1);
    double *times_loaded = malloc(requests * sizeof *times_loaded), *times_idle = malloc(requests * sizeof *times_idle);
    MUST(times_loaded != NULL && times_idle != NULL);
    /* Once, so that neither has anything to do for the first time. */
    request(sender, small, loaded);
    request(other, small, idle);

    check_case("%u downloads", n);
    size_t malloc_before = malloc_bytes();
    long rss_before = number_in("/proc/self/status", "RssAnon:", "RssAnon:");
    long pages_before = number_in("/proc/net/sockstat", "TCP:", " mem ");
    for (unsigned i = 0; i < n; i++) {
        char permits[AT_ONCE] = {0};
        unsigned more = n - i < AT_ONCE ? n - i : AT_ONCE;
        if (i % AT_ONCE == 0)
            MUST(write(door->permits, permits, more) == (ssize_t)more);
        begin_download(sender, door->listener, large, i, &ids[i]);
    }
    /* When it answers this one, it has had all before it. */
    request(sender, small, loaded);
    figures.malloc_each = ((double)malloc_bytes() - (double)malloc_before) / n;
    figures.rss_each = (double)(number_in("/proc/self/status", "RssAnon:", "RssAnon:") - rss_before) * 1024 / n;
    figures.kernel_pages_each = (double)(number_in("/proc/net/sockstat", "TCP:", " mem ") - pages_before) / n;
    if (malloc_is_libc()) {
        CHECK(figures.malloc_each > 0 && figures.malloc_each <= MOST);
    } else {
        puts("skipped: what a download takes of memory: malloc is not libc's here");
    }

    check_case("requests beside %u downloads", n);
    for (unsigned i = 0; i < requests; i++) {
        times_loaded[i] = request(sender, small, loaded);
        times_idle[i] = request(other, small, idle);
    }
    figures.p50_loaded = quantile(times_loaded, requests, 0.5);
    figures.p99_loaded = quantile(times_loaded, requests, 0.99);
    figures.p50_idle = quantile(times_idle, requests, 0.5);
    figures.p99_idle = quantile(times_idle, requests, 0.99);

    sendgate_sender_free(other);
    free(times_loaded);
    free(times_idle);
    for (int i = 0; i < 2; i++) {
        close(loaded[i]);
        close(idle[i]);
    }
    close(small);
    close(large);
    return figures;
}

static void print(const struct figures *figures, unsigned n, unsigned requests)
{
    printf("{\"downloads\": %u, \"malloc_bytes_each\": %.1f, \"rss_anon_bytes_each\": %.1f, "
           "\"kernel_pages_each\": %.2f, \"requests\": %u, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"idle_p50_us\": %.1f, \"idle_p99_us\": %.1f, \"p50_ratio\": %.3f, \"p99_ratio\": %.3f}\n",
           n, figures->malloc_each, figures->rss_each, figures->kernel_pages_each, requests, figures->p50_loaded,
           figures->p99_loaded, figures->p50_idle, figures->p99_idle, figures->p50_loaded / figures->p50_idle,
           figures->p99_loaded / figures->p99_idle);
}

static struct door open_door(void)
{
    struct door door;
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    int pipes[2];
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    door.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(door.listener >= 0 && pipe(pipes) == 0);
    MUST(bind(door.listener, (struct sockaddr *)&address, sizeof address) == 0);
    MUST(listen(door.listener, 2 * AT_ONCE) == 0);
    MUST(getsockname(door.listener, (struct sockaddr *)&address, &len) == 0);
    door.permits = pipes[1];
    door.child = fork();
    MUST(door.child >= 0);
    if (door.child == 0) {
        close(pipes[1]);
        close(door.listener);
        clients_main(&address, pipes[0]);
        _exit(0);
    }
    close(pipes[0]);
    return door;
}

/* The clients leave. */
static void close_door(const struct door *door)
{
    int status = -1;
    close(door->listener);
    close(door->permits);
    MUST(waitpid(door->child, &status, 0) == door->child);
    CHECK_INT(status, 0);
}

/* All threads on one processor. Otherwise the scheduler puts one sender's thread beside the one that asks, and the
 * other's elsewhere, and waking an idle processor, on a virtual machine, takes five times as long as the answer.
 */
static void use_one_processor(void)
{
    cpu_set_t allowed_ones, one;
    MUST(sched_getaffinity(0, sizeof allowed_ones, &allowed_ones) == 0);
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &allowed_ones)) {
            CPU_SET(cpu, &one);
            break;
        }
    }
    MUST(sched_setaffinity(0, sizeof one, &one) == 0);
}

int main(int argc, char **argv)
{
    int slow = getenv("SENDGATE_TEST_SLOW") != NULL;
    unsigned n = slow ? 300 : MANY, requests = slow ? 100 : REQUESTS;
    unsigned *const numbers[] = {&n, &requests};
    size_t given = 0;
    for (int i = 1; i < argc; i++) {
        if (given < 2 && atoi(argv[i]) > 0) {
            *numbers[given++] = (unsigned)atoi(argv[i]);
        } else {
            fprintf(stderr, "usage: %s [DOWNLOADS [REQUESTS]]\n", argv[0]);
            return 2;
        }
    }
    check_begin();
    n = allowed(n);
    int fds = open_fds();

    struct door door = open_door();
    use_one_processor();
    uint64_t *ids = malloc(n * sizeof *ids);
    MUST(ids != NULL);
    sendgate_sender *sender = sender_for(n + 1);
    struct figures figures = measure(sender, &door, n, requests, ids);
    check_case("the end of %u downloads", n);
    cancel_all(sender, ids, n);
    CHECK_STATUS(sendgate_sender_stop(sender, 60000), SENDGATE_OK);
    sendgate_sender_free(sender);
    free(ids);
    close_door(&door);
    CHECK_INT(open_fds(), fds);
    print(&figures, n, requests);
    return check_end();
}
