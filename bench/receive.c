/* receive.c - CPU time of receiving an upload into a file: is splice worth its pipe, and how large are the pieces?
 *
 *   cc -std=c99 -D_GNU_SOURCE -O2 -Iinclude bench/receive.c target/release/libsendgate.a -lpthread -ldl -lm -o receive
 *   ./receive DIR...        # for each directory (one on tmpfs, one on a disk) and each kind of peer a table
 *
 * A thread sends bodies over loopback; the other receives them into a new file, in one of several ways. What is shown is
 * the receiving thread's CPU time in microseconds per MiB, the median of the rounds. The ways take turns within a round, each
 * round beginning with another, so that all of them see the same machine.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sendgate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)

enum { ROUNDS = 9 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- The peer ---- */

struct peer {
    int fd;
    size_t piece; /* bytes per send */
};

/* Answers each request, which is the length of a body, with so many bytes. */
static void *peer_main(void *arg)
{
    struct peer *peer = arg;
    char *bytes = calloc(1, peer->piece);
    uint64_t length;
    while (recv(peer->fd, &length, sizeof length, MSG_WAITALL) == sizeof length) {
        while (length > 0) {
            size_t most = length < peer->piece ? (size_t)length : peer->piece;
            ssize_t n = send(peer->fd, bytes, most, MSG_NOSIGNAL);
            if (n < 0)
                die("send");
            length -= (uint64_t)n;
        }
    }
    free(bytes);
    close(peer->fd);
    return NULL;
}

static int connect_to_peer(struct peer *peer, pthread_t *thread)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, len) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &len) < 0 ||
        connect(fd, (struct sockaddr *)&address, len) < 0 || (peer->fd = accept(listener, NULL, NULL)) < 0)
        die("a connection");
    close(listener);
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (pthread_create(thread, NULL, peer_main, peer) != 0)
        die("a thread");
    return fd;
}

/* ---- Ways to receive ---- */

static void wait_for(int sock)
{
    struct pollfd wait = {sock, POLLIN, 0};
    if (poll(&wait, 1, 20000) != 1)
        die("poll");
}

static void by_recv(int sock, int file, size_t length, size_t piece)
{
    char *bytes = malloc(piece);
    for (size_t done = 0; done < length;) {
        size_t most = length - done < piece ? length - done : piece;
        ssize_t n = recv(sock, bytes, most, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            wait_for(sock);
            continue;
        }
        if (n <= 0 || pwrite(file, bytes, (size_t)n, (off_t)done) != n)
            die("recv and pwrite");
        done += (size_t)n;
    }
    free(bytes);
}

/* Through a pipe of 256 KiB, or as much as a piece. */
static void by_splice(int sock, int file, size_t length, size_t size)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0 || fcntl(ends[1], F_SETPIPE_SZ, (int)(size < 256 * KIB ? 256 * KIB : size)) < 0)
        die("pipe");
    fcntl(sock, F_SETFL, fcntl(sock, F_GETFL) | O_NONBLOCK);
    for (size_t done = 0; done < length;) {
        size_t most = length - done < size ? length - done : size;
        ssize_t n = splice(sock, NULL, ends[1], NULL, most, SPLICE_F_NONBLOCK);
        if (n < 0 && errno == EAGAIN) {
            wait_for(sock);
            continue;
        }
        if (n <= 0)
            die("splice from the socket");
        loff_t at = (loff_t)done;
        done += (size_t)n;
        for (ssize_t moved; n > 0; n -= moved)
            if ((moved = splice(ends[0], NULL, file, &at, (size_t)n, 0)) <= 0)
                die("splice to the file");
    }
    fcntl(sock, F_SETFL, fcntl(sock, F_GETFL) & ~O_NONBLOCK);
    close(ends[0]);
    close(ends[1]);
}

/* Straight into the page cache, as sendgate_receive does with a mapping. */
static void by_mapping(int sock, int file, size_t length, size_t unused)
{
    (void)unused;
    if (ftruncate(file, (off_t)length) < 0)
        die("ftruncate");
    char *bytes = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED)
        die("mmap");
    sendgate_source source = {.size = sizeof source, .fd = sock};
    if (sendgate_receive(&source, (uint8_t *)bytes, length, NULL) != SENDGATE_OK)
        die("sendgate_receive");
    munmap(bytes, length);
}

static void by_sendgate(int sock, int file, size_t length, size_t unused)
{
    (void)unused;
    sendgate_source source = {.size = sizeof source, .fd = sock};
    if (sendgate_receive_file(&source, file, 0, length, NULL) != SENDGATE_OK)
        die("sendgate_receive_file");
}

static const struct way {
    const char *name;
    void (*receive)(int sock, int file, size_t length, size_t piece);
    size_t piece;
} ways[] = {
    {"recv, pwrite: 16 KiB", by_recv, 16 * KIB},
    {"recv, pwrite: 64 KiB", by_recv, 64 * KIB},
    {"recv, pwrite: 256 KiB", by_recv, 256 * KIB},
    {"splice: 64 KiB", by_splice, 64 * KIB},
    {"splice: 128 KiB", by_splice, 128 * KIB},
    {"splice: 256 KiB", by_splice, 256 * KIB},
    {"splice: 1 MiB", by_splice, MIB},
    {"recv into a mapping", by_mapping, 0},
    {"sendgate_receive_file", by_sendgate, 0},
};
enum { WAYS = sizeof ways / sizeof *ways };

static const size_t lengths[] = {64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

/* ---- Measuring ---- */

static double cpu_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* Microseconds per MiB, over as many bodies as make 32 MiB. */
static double measure(const struct way *way, int sock, const char *path, size_t length)
{
    double used = 0;
    size_t times = length < 32 * MIB ? 32 * MIB / length : 1;
    uint64_t request = length;
    for (size_t i = 0; i < times; i++) {
        int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (file < 0 || send(sock, &request, sizeof request, 0) != sizeof request)
            die(path);
        /* The first bytes are there: what is measured is not how a thread goes to sleep. */
        wait_for(sock);
        double start = cpu_us();
        way->receive(sock, file, length, way->piece);
        used += cpu_us() - start;
        close(file);
        unlink(path);
    }
    return used / ((double)(times * length) / (double)MIB);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static double taken[WAYS][LENGTHS][ROUNDS];
    static struct peer peers[] = {{.piece = 256 * KIB}, {.piece = 1448}};
    for (int dir = 1; dir < argc; dir++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/sendgate-receive-%ld", argv[dir], (long)getpid());
        for (size_t kind = 0; kind < 2; kind++) {
            pthread_t thread;
            int sock = connect_to_peer(&peers[kind], &thread);
            for (int round = 0; round < ROUNDS; round++)
                for (int length = 0; length < LENGTHS; length++)
                    for (int turn = 0; turn < WAYS; turn++) {
                        int way = (turn + round) % WAYS;
                        taken[way][length][round] = measure(&ways[way], sock, path, lengths[length]);
                    }
            printf("\n%s, a peer that sends %zu bytes at once: CPU time in us per MiB\n\n| |", argv[dir],
                   peers[kind].piece);
            for (int length = 0; length < LENGTHS; length++)
                printf(" %zu KiB |", lengths[length] / KIB);
            printf("\n| --- |");
            for (int length = 0; length < LENGTHS; length++)
                printf(" ---: |");
            for (int way = 0; way < WAYS; way++) {
                printf("\n| %s |", ways[way].name);
                for (int length = 0; length < LENGTHS; length++) {
                    qsort(taken[way][length], ROUNDS, sizeof(double), by_value);
                    printf(" %.0f |", taken[way][length][ROUNDS / 2]);
                }
            }
            printf("\n");
            fflush(stdout);
            close(sock);
            pthread_join(thread, NULL);
        }
    }
    return 0;
}
