/* fcgi_load.c - the load generator of fastcgi.py: what a front server does, and nothing besides.
 *
 *   fcgi_load SOCKET CONNECTIONS WARMUP REQUESTS HOW STATUS LENGTH < request
 *
 * SOCKET is a UNIX socket. The request comes on standard input, as its length in decimal, a newline, and its bytes. Every
 * connection sends it, reads the whole answer, checks it, and sends again; for the rest see load.c. HOW is
 *   kept    FastCGI, all requests of a connection on one socket
 *   closed  FastCGI, a new socket for each request, which the other side closes
 *   http    HTTP/1.1, on one socket
 * STATUS is what the answer's head begins with ("Status: 304", "HTTP/1.1 304"), LENGTH its bytes, head and content,
 * without FastCGI's records. Anything else ends it with a message and status 1.
 */
#include "client.h"

#include <sys/epoll.h>
#include <sys/un.h>

enum { EVENTS = 64, STDOUT = 6, END_REQUEST = 3 };
enum how { KEPT, CLOSED, HTTP };

struct conn {
    int fd;
    int ended;                /* its END_REQUEST has come */
    uint8_t header[8];        /* of the record under way */
    size_t have;              /* bytes of that */
    size_t content, padding;  /* bytes of the record that are still to come */
    size_t seen;              /* bytes of the answer */
};

static char request[8192], status[64];
static size_t request_len, want;
static struct sockaddr_un server = {.sun_family = AF_UNIX};
static enum how how;
static int ep;
static long long started, finished, goal; /* requests */

static void connect_anew(struct conn *c)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.ptr = c};
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0)
        die("connect");
    set_nonblocking(c->fd);
    if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev) < 0)
        die("epoll");
}

static void ask(struct conn *c)
{
    if (started >= goal)
        return;
    started++;
    *c = (struct conn){.fd = c->fd};
    if (how == CLOSED)
        connect_anew(c);
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len)
        die("send");
}

static void answer_bytes(struct conn *c, const uint8_t *at, size_t n)
{
    for (size_t i = c->seen; i < strlen(status) && i - c->seen < n; i++)
        if (at[i - c->seen] != (uint8_t)status[i])
            die("another status");
    c->seen += n;
    if (c->seen > want)
        die("a longer answer");
}

/* What has come, taken apart into records. */
static void records(struct conn *c, const uint8_t *at, size_t n)
{
    while (n > 0) {
        size_t part;
        if (c->ended && c->content + c->padding == 0)
            die("more than an answer");
        if (c->have < sizeof c->header) {
            part = sizeof c->header - c->have < n ? sizeof c->header - c->have : n;
            memcpy(c->header + c->have, at, part);
            c->have += part;
            if (c->have == sizeof c->header) {
                int type = c->header[1];
                if (c->header[0] != 1 || c->header[2] != 0 || c->header[3] != 1 || (type != STDOUT && type != END_REQUEST))
                    die("another record");
                c->content = (size_t)c->header[4] << 8 | c->header[5];
                c->padding = c->header[6];
                c->ended = type == END_REQUEST;
            }
        } else if (c->content > 0) {
            part = c->content < n ? c->content : n;
            if (!c->ended)
                answer_bytes(c, at, part);
            c->content -= part;
        } else {
            part = c->padding < n ? c->padding : n;
            c->padding -= part;
        }
        if (c->have == sizeof c->header && c->content + c->padding == 0 && !c->ended)
            c->have = 0;
        at += part;
        n -= part;
    }
}

/* One receive. Returns 0 if nothing more is there. */
static int receive(struct conn *c)
{
    static uint8_t in[1 << 18];
    ssize_t n = recv(c->fd, in, sizeof in, 0);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n < 0)
        die("recv");
    if (how == HTTP)
        answer_bytes(c, in, (size_t)n);
    else
        records(c, in, (size_t)n);
    int whole = how == HTTP ? c->seen == want : c->ended && c->have == sizeof c->header && c->content + c->padding == 0;
    if (n == 0 && (how != CLOSED || !whole))
        die("connection closed");
    if (!whole || (how == CLOSED && n > 0))
        return 1;
    if (c->seen != want)
        die("a shorter answer");
    if (how == CLOSED)
        close(c->fd);
    finished++;
    ask(c);
    return 0; /* the answer to that comes with the next event */
}

static void run(struct conn *conns, int n_conns, long long requests)
{
    goal += requests;
    for (int i = 0; i < n_conns; i++)
        ask(&conns[i]);
    double last = now();
    while (finished < goal) {
        struct epoll_event evs[EVENTS];
        int n = epoll_wait(ep, evs, EVENTS, 0); /* without waiting: see load.c */
        if (n > 0)
            last = now();
        else if (now() - last > 30)
            die("no answer for 30 s");
        for (int i = 0; i < n; i++)
            while (receive(evs[i].data.ptr))
                ;
    }
}

static void read_counted_request(void)
{
    char c;
    while (read(0, &c, 1) == 1 && c != '\n')
        request_len = request_len * 10 + (size_t)(c - '0');
    if (request_len > sizeof request)
        die("a request too long");
    for (size_t have = 0; have < request_len; have++)
        if (read(0, request + have, 1) != 1)
            die("no complete request on standard input");
}

int main(int argc, char **argv)
{
    if (argc != 8 || strlen(argv[1]) >= sizeof server.sun_path || strlen(argv[6]) >= sizeof status) {
        fprintf(stderr, "usage: fcgi_load SOCKET CONNECTIONS WARMUP REQUESTS kept|closed|http STATUS LENGTH\n");
        return 2;
    }
    strcpy(server.sun_path, argv[1]);
    strcpy(status, argv[6]);
    int n_conns = atoi(argv[2]);
    long long warmup = atoll(argv[3]), requests = atoll(argv[4]);
    how = strcmp(argv[5], "kept") == 0 ? KEPT : strcmp(argv[5], "closed") == 0 ? CLOSED : HTTP;
    want = (size_t)atoll(argv[7]);
    read_counted_request();

    struct conn *conns = calloc((size_t)n_conns, sizeof *conns);
    ep = epoll_create1(EPOLL_CLOEXEC);
    if (conns == NULL || ep < 0)
        die("set-up");
    for (int i = 0; how != CLOSED && i < n_conns; i++)
        connect_anew(&conns[i]);
    run(conns, n_conns, warmup);
    ready_and_go();
    double begin = now();
    run(conns, n_conns, requests);
    double end = now();
    for (int i = 0; how != CLOSED && i < n_conns; i++)
        close(conns[i].fd);
    close(ep);
    free(conns);
    printf("{\"requests\": %lld, \"seconds\": %.9f}\n", requests, end - begin);
    return 0;
}
