/* load.c - the load generator of `make bench`: keep-alive connections in a closed loop.
 *
 *   load PORT CONNECTIONS WARMUP REQUESTS STATUS CONTENT_LENGTH BODY CONGESTION < request
 *
 * The request (a complete head) is read from standard input up to its empty line. Every connection sends it, reads
 * the whole answer, checks it, and sends again, until WARMUP answers have come in; then "ready" goes to
 * standard output and a further line is awaited on standard input, so that whoever started us can read
 * the server's CPU clock while nothing is under way. Then REQUESTS answers more, and one line of JSON:
 *   {"requests": N, "seconds": S}
 * Anything that is not right ends it with a message and status 1: an answer with another STATUS or
 * Content-Length (-1: not looked at), more or fewer bytes than BODY, a closed connection, a socket whose
 * congestion control is not CONGESTION.
 */
#include "client.h"

#include <sys/epoll.h>

enum { HEAD_MAX = 2048, EVENTS = 64 };

struct conn {
    int fd;
    int in_body;
    size_t have;       /* bytes of the head, and what came with it, in buf */
    long long body;    /* body bytes seen */
    char buf[HEAD_MAX + 1];
};

static char request[8192];
static size_t request_len;
static int want_status;
static long long want_length, want_body;
static long long started, finished, goal; /* requests */

static void wrong(const char *what, const struct conn *c)
{
    fprintf(stderr, "load: %s; the answer begins:\n%.*s\n", what, (int)c->have, c->buf);
    exit(1);
}

static void ask(struct conn *c)
{
    if (started >= goal)
        return;
    started++;
    c->have = 0;
    c->body = 0;
    c->in_body = 0;
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
        die("send");
}

/* One receive. Returns 0 if nothing more is there. */
static int receive(struct conn *c)
{
    static char sink[1 << 20];
    ssize_t n;
    if (c->in_body) {
        /* MSG_TRUNC on TCP throws the bytes away without copying them: the client must not be the bottleneck. */
        n = recv(c->fd, sink, sizeof sink, MSG_TRUNC);
        if (n > 0)
            c->body += n;
    } else {
        n = recv(c->fd, c->buf + c->have, HEAD_MAX - c->have, 0);
        if (n > 0) {
            c->have += (size_t)n;
            c->buf[c->have] = 0;
            const char *end = strstr(c->buf, "\r\n\r\n");
            if (end != NULL) {
                const char *fault = head_fault(c->buf, end, want_status, want_length);
                if (fault != NULL)
                    wrong(fault, c);
                c->in_body = 1;
                c->body = (long long)c->have - (end + 4 - c->buf);
            } else if (c->have == HEAD_MAX) {
                wrong("head too long", c);
            }
        }
    }
    if (n == 0)
        wrong("connection closed", c);
    if (n < 0) {
        if (errno == EAGAIN)
            return 0;
        die("recv");
    }
    if (!c->in_body)
        return 1;
    if (c->body > want_body)
        wrong("more bytes than announced", c);
    if (c->body < want_body)
        return 1;
    finished++;
    ask(c);
    return 0; /* the answer to that comes with the next event */
}

static void run(int ep, struct conn *conns, int n_conns, long long requests)
{
    goal += requests;
    for (int i = 0; i < n_conns; i++)
        ask(&conns[i]);
    double last = now();
    while (finished < goal) {
        struct epoll_event evs[EVENTS];
        /* Asks without waiting. If we slept, the server's send would have to wake us, a cost (an interrupt to another
         * processor) that no client across a network causes, and that falls on whoever is slower than we are. */
        int n = epoll_wait(ep, evs, EVENTS, 0);
        if (n > 0)
            last = now();
        else if (now() - last > 30)
            die("no answer for 30 s");
        for (int i = 0; i < n; i++)
            while (receive(evs[i].data.ptr))
                ;
    }
}

int main(int argc, char **argv)
{
    if (argc != 9) {
        fprintf(stderr, "usage: load PORT CONNECTIONS WARMUP REQUESTS STATUS CONTENT_LENGTH BODY CONGESTION\n");
        return 2;
    }
    int n_conns = atoi(argv[2]);
    long long warmup = atoll(argv[3]), requests = atoll(argv[4]);
    want_status = atoi(argv[5]);
    want_length = atoll(argv[6]);
    want_body = atoll(argv[7]);
    request_len = read_request(request, sizeof request);

    struct conn *conns = calloc((size_t)n_conns, sizeof *conns);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    if (conns == NULL || ep < 0)
        die("set-up");
    for (int i = 0; i < n_conns; i++) {
        struct conn *c = &conns[i];
        struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.ptr = c};
        c->fd = connect_to(atoi(argv[1]), argv[8], 0);
        set_nonblocking(c->fd);
        if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev) < 0)
            die("set-up");
    }
    run(ep, conns, n_conns, warmup);
    ready_and_go();
    double begin = now();
    run(ep, conns, n_conns, requests);
    double end = now();
    for (int i = 0; i < n_conns; i++)
        close(conns[i].fd);
    close(ep);
    free(conns);
    printf("{\"requests\": %lld, \"seconds\": %.9f}\n", requests, end - begin);
    return 0;
}
