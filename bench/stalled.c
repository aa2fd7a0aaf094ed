/* stalled.c - clients that ask for a file and then don't read: `make bench-slow`.
 *
 *   stalled PORT CLIENTS RECEIVE_BUFFER CONTENT_LENGTH CONGESTION < request
 *
 * The request is read from standard input up to its empty line. Each client connects, sends it, and waits until the
 * head of the answer is there, which is looked at and left in the receive buffer. "ready" goes to standard output
 * when all of them have that. At the next line on standard input every connection is looked at once more, and one
 * line of JSON tells how many are still there:
 *   {"clients": N, "gone": N}
 * Then it waits for the end of standard input. A wrong answer, or none within 60 s, ends it with a message and status 1.
 */
#include "client.h"

#include <poll.h>
#include <sys/epoll.h>

/* Clients that wait for the head of their answer at the same time: fewer than fit in any server's listen queue. */
enum { ASKING = 64, HEAD_MAX = 2048, PATIENCE_MS = 60000 };

static char request[8192];
static size_t request_len;
static long long want_length;

/* Whether the head of the answer is there. The receive buffer holds all of it, or a server that stops before. */
static int has_answer(int fd)
{
    char head[HEAD_MAX + 1];
    ssize_t n = recv(fd, head, HEAD_MAX, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        die("connection closed before the answer");
    head[n] = 0;
    const char *end = strstr(head, "\r\n\r\n");
    if (end == NULL)
        return 0;
    const char *fault = head_fault(head, end, 200, want_length);
    errno = 0;
    if (fault != NULL)
        die(fault);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: stalled PORT CLIENTS RECEIVE_BUFFER CONTENT_LENGTH CONGESTION\n");
        return 2;
    }
    int clients = atoi(argv[2]), started = 0, answered = 0;
    want_length = atoll(argv[4]);
    request_len = read_request(request, sizeof request);
    struct pollfd *fds = calloc((size_t)clients, sizeof *fds);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    if (fds == NULL || ep < 0)
        die("set-up");
    while (answered < clients) {
        for (; started < clients && started - answered < ASKING; started++) {
            int fd = connect_to(atoi(argv[1]), argv[5], atoi(argv[3]));
            struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
            if (send(fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len
                || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) < 0)
                die("send");
            fds[started] = (struct pollfd){.fd = fd, .events = POLLRDHUP};
        }
        struct epoll_event evs[ASKING];
        int n = epoll_wait(ep, evs, ASKING, PATIENCE_MS);
        if (n <= 0)
            die("no answer for 60 s");
        for (int i = 0; i < n; i++)
            if (has_answer(evs[i].data.fd)) {
                answered++;
                epoll_ctl(ep, EPOLL_CTL_DEL, evs[i].data.fd, NULL);
            }
    }
    ready_and_go();
    int gone = poll(fds, (nfds_t)clients, 0);
    if (gone < 0)
        die("poll");
    printf("{\"clients\": %d, \"gone\": %d}\n", clients, gone);
    fflush(stdout);
    wait_for_end();
    /* What is unread makes the kernel reset each connection, which ends the download at the server. */
    for (int i = 0; i < clients; i++)
        close(fds[i].fd);
    close(ep);
    free(fds);
    return 0;
}
