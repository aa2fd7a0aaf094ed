/* drain.c - clients that download one file at the same time, as fast as it comes: `make bench-stall`.
 *
 *   drain PORT CLIENTS SECONDS CONTENT_LENGTH CONGESTION < request
 *
 * The request is read from standard input up to its empty line. All connect; "ready" goes to standard output. From the
 * next line on standard input on one after the other asks, all within half a second or half of SECONDS: together they
 * would measure how fast a server takes a burst of requests. They read until SECONDS are over, and ask again when they
 * have it all. The result is one line of JSON: body bytes of all, of the client that got least and of the one that
 * got most.
 *   {"seconds": S, "bytes": N, "least": N, "most": N}
 * They hang up when standard input ends. A wrong answer, or no byte for 30 s, ends it with a message and status 1.
 */
#include "client.h"

#include <sys/epoll.h>

enum { HEAD_MAX = 2048, EVENTS = 64 };

struct conn {
    int fd;
    size_t have;      /* bytes of the head in head */
    long long left;   /* of this answer's body; 0: the head is not whole yet */
    long long body;   /* bytes seen of all bodies */
    char head[HEAD_MAX + 1];
};

static char request[8192];
static size_t request_len;
static long long want_length;

static void ask(struct conn *c)
{
    c->have = 0;
    c->left = 0;
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
        die("send");
}

static void receive_head(struct conn *c)
{
    ssize_t n = recv(c->fd, c->head + c->have, HEAD_MAX - c->have, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        die("connection closed before the answer");
    c->have += (size_t)n;
    c->head[c->have] = 0;
    const char *end = strstr(c->head, "\r\n\r\n");
    if (end == NULL)
        return;
    const char *fault = head_fault(c->head, end, 200, want_length);
    errno = 0;
    if (fault != NULL)
        die(fault);
    long long came_with_it = (long long)c->have - (end + 4 - c->head);
    c->body += came_with_it;
    c->left = want_length - came_with_it;
}

/* One receive of what is there. */
static void receive(struct conn *c)
{
    static char sink[1 << 20];
    if (c->left == 0) {
        receive_head(c);
        return;
    }
    size_t most = c->left < (long long)sizeof sink ? (size_t)c->left : sizeof sink;
    /* MSG_TRUNC on TCP throws the bytes away without copying them: the client must not be the bottleneck. */
    ssize_t n = recv(c->fd, sink, most, MSG_TRUNC);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        die("connection closed in the middle");
    c->left -= n;
    c->body += n;
    if (c->left == 0)
        ask(c);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: drain PORT CLIENTS SECONDS CONTENT_LENGTH CONGESTION\n");
        return 2;
    }
    int clients = atoi(argv[2]);
    double seconds = atof(argv[3]);
    want_length = atoll(argv[4]);
    request_len = read_request(request, sizeof request);
    struct conn *conns = calloc((size_t)clients, sizeof *conns);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    if (conns == NULL || ep < 0)
        die("set-up");
    for (int i = 0; i < clients; i++) {
        /* Level-triggered: one receive for each event, so that all have their turn. */
        struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &conns[i]};
        conns[i].fd = connect_to(atoi(argv[1]), argv[5], 0);
        set_nonblocking(conns[i].fd);
        if (epoll_ctl(ep, EPOLL_CTL_ADD, conns[i].fd, &ev) < 0)
            die("set-up");
    }
    ready_and_go();
    double begin = now(), end = begin, last = begin, pause = (seconds < 1 ? seconds : 1) / 2 / clients;
    int asking = 0;
    while ((end = now()) - begin < seconds) {
        while (asking < clients && end - begin >= asking * pause)
            ask(&conns[asking++]);
        struct epoll_event evs[EVENTS];
        /* Sleeps, unlike load.c: if both processors of a virtual machine are busy all the time, its host may take them
         * away for a while, and that holds up everything in it. Not for long, because the next may have to ask. */
        int n = epoll_wait(ep, evs, EVENTS, 1);
        if (n > 0)
            last = end;
        else if (end - last > 30)
            die("no byte for 30 s");
        for (int i = 0; i < n; i++)
            receive(evs[i].data.ptr);
    }
    long long all = 0, least = conns[0].body, most = conns[0].body;
    for (int i = 0; i < clients; i++) {
        long long body = conns[i].body;
        all += body;
        least = body < least ? body : least;
        most = body > most ? body : most;
    }
    printf("{\"seconds\": %.9f, \"bytes\": %lld, \"least\": %lld, \"most\": %lld}\n", end - begin, all, least, most);
    fflush(stdout);
    wait_for_end();
    for (int i = 0; i < clients; i++)
        close(conns[i].fd);
    close(ep);
    free(conns);
    return 0;
}
