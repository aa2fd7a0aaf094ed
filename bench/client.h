/* client.h - what the load programs of `make bench` have in common. */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline void die(const char *what)
{
    fprintf(stderr, "%s: %s%s%s\n", program_invocation_short_name, what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* The request head that comes on standard input, up to its empty line. Returns its length. */
static inline size_t read_request(char *request, size_t room)
{
    size_t len = 0;
    while (len < 4 || memcmp(request + len - 4, "\r\n\r\n", 4) != 0)
        if (len == room || read(0, request + len++, 1) != 1)
            die("no complete request on standard input");
    return len;
}

/* Tells whoever started us that all is set up, and waits for a line from there. */
static inline void ready_and_go(void)
{
    char go;
    printf("ready\n");
    fflush(stdout);
    if (read(0, &go, 1) != 1)
        die("nobody said go");
}

/* Waits until whoever started us has nothing more to say. */
static inline void wait_for_end(void)
{
    char rest;
    while (read(0, &rest, 1) == 1)
        ;
}

/* A connection to 127.0.0.1. receive_buffer 0: as the system makes it. The caller's congestion control, checked. */
static inline int connect_to(int port, const char *congestion, int receive_buffer)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char found[16] = "";
    socklen_t found_len = sizeof found - 1;
    /* Before connect: a socket that began with a pacing algorithm keeps pacing after a later change, and the
     * receive buffer decides what window is offered first. */
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion)) < 0
        || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0
        || (receive_buffer > 0 && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer) < 0)
        || connect(fd, (struct sockaddr *)&to, sizeof to) < 0
        || getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, found, &found_len) < 0)
        die("connect");
    if (strcmp(found, congestion) != 0)
        die("our end has another congestion control");
    return fd;
}

static inline void set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        die("O_NONBLOCK");
}

/* Whether a head, NUL-terminated and with its end at `end`, has this status and, unless it is -1, this length. */
static inline const char *head_fault(const char *head, const char *end, int status, long long length)
{
    if (strncmp(head, "HTTP/1.1 ", 9) != 0 || atoi(head + 9) != status)
        return "another status";
    if (length < 0)
        return NULL;
    for (const char *p = head; (p = strstr(p, "\r\n")) != NULL && p < end; p += 2)
        if (strncasecmp(p + 2, "Content-Length:", 15) == 0)
            return atoll(p + 17) == length ? NULL : "another Content-Length";
    return "no Content-Length";
}

#endif
