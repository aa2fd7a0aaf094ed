/* probe.c - how long one small request takes at two servers by turns: `make bench-slow`.
 *
 *   probe PORT_A PORT_B WARMUP REQUESTS CONTENT_LENGTH CONGESTION < request
 *
 * Each request has a connection of its own: connect, send, receive the whole answer, close. The time of one is from
 * before the connect to the answer's last byte. Once to A, once to B, then the other way round, and so on, so that
 * whatever else goes on meets both. After WARMUP of them to each, "ready" goes to standard output and a line on
 * standard input is awaited; then REQUESTS to each are timed. The result is one line of JSON, in nanoseconds:
 *   {"a": [..], "b": [..]}
 */
#include "client.h"

enum { ANSWER_MAX = 65536, PATIENCE_S = 30 };

static char request[8192];
static size_t request_len;
static long long want_length;
static const char *congestion;

static double ask(int port)
{
    static char answer[ANSWER_MAX + 1];
    size_t have = 0, need = 0;
    double begin = now();
    int fd = connect_to(port, congestion, 0);
    if (send(fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
        die("send");
    while (need == 0 || have < need) {
        /* Asks without waiting, so that waking us is no part of what is measured. */
        ssize_t n = recv(fd, answer + have, ANSWER_MAX - have, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            if (now() - begin > PATIENCE_S)
                die("no answer for 30 s");
            continue;
        }
        if (n <= 0)
            die("connection closed before the answer was whole");
        have += (size_t)n;
        answer[have] = 0;
        const char *end = need == 0 ? strstr(answer, "\r\n\r\n") : NULL;
        if (end != NULL) {
            const char *fault = head_fault(answer, end, 200, want_length);
            errno = 0;
            if (fault != NULL)
                die(fault);
            need = (size_t)(end + 4 - answer) + (size_t)want_length;
            if (need > ANSWER_MAX)
                die("answer too long");
        }
    }
    double end = now();
    if (have > need)
        die("more bytes than announced");
    close(fd);
    return end - begin;
}

static void run(const int ports[2], double *times[2], int requests)
{
    for (int i = 0; i < requests; i++)
        for (int turn = 0; turn < 2; turn++) {
            int which = (turn + i) % 2;
            times[which][i] = ask(ports[which]);
        }
}

static void print(const char *name, const double *times, int n)
{
    printf("\"%s\": [", name);
    for (int i = 0; i < n; i++)
        printf("%s%.0f", i > 0 ? ", " : "", times[i] * 1e9);
    printf("]");
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: probe PORT_A PORT_B WARMUP REQUESTS CONTENT_LENGTH CONGESTION\n");
        return 2;
    }
    int ports[2] = {atoi(argv[1]), atoi(argv[2])}, warmup = atoi(argv[3]), requests = atoi(argv[4]);
    int most = warmup > requests ? warmup : requests;
    want_length = atoll(argv[5]);
    congestion = argv[6];
    request_len = read_request(request, sizeof request);
    double *times[2] = {calloc((size_t)most, sizeof(double)), calloc((size_t)most, sizeof(double))};
    if (times[0] == NULL || times[1] == NULL)
        die("memory");
    run(ports, times, warmup);
    ready_and_go();
    run(ports, times, requests);
    printf("{");
    print("a", times[0], requests);
    printf(", ");
    print("b", times[1], requests);
    printf("}\n");
    free(times[0]);
    free(times[1]);
    return 0;
}
