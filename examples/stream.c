/* stream.c - a server whose answers are produced while they are sent.
 *
 *   stream PORT [MILLISECONDS]      on 127.0.0.1:PORT; port 0 lets the system pick
 *
 *   /clock     what time it is, every so many milliseconds (1000), until the client leaves
 *   /primes    those below a million, as they are found, and behind them how many there were
 *   /squares   of a known length
 *   /table     16 GB that exist nowhere; any part of them can be asked for
 *
 * A client has a thread, and each page is a function that writes to a stream. What is written is on its way when the
 * call returns. The functions know nothing of HTTP: whether content is sent in chunks, up to the end of the connection
 * or not at all, and which part of it, is decided when the stream is started.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <sendgate.h>

static long milliseconds = 1000;

/* ---- Pages ------------------------------------------------------------------------------------ */

/* Whether content is wanted, and from where on. HEAD and 304 have none, and a page may go on for ever. */
static bool wanted(sendgate_stream *s, sendgate_range *next)
{
    return sendgate_stream_next(s, next) == SENDGATE_OK && next->length > 0;
}

static sendgate_status write_text(sendgate_stream *s, const char *text, int len)
{
    return sendgate_stream_write(s, (const uint8_t *)text, (size_t)len, NULL, NULL);
}

static sendgate_status write_clock(sendgate_stream *s)
{
    sendgate_status rc = SENDGATE_OK;
    for (sendgate_range next; rc == SENDGATE_OK && wanted(s, &next);) {
        char line[40];
        struct timespec now, pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
        clock_gettime(CLOCK_REALTIME, &now);
        rc = write_text(s, line, snprintf(line, sizeof line, "%lld.%06ld\n", (long long)now.tv_sec, now.tv_nsec / 1000));
        if (rc == SENDGATE_OK)
            nanosleep(&pause, NULL);
    }
    return rc; /* of a client that has left: SENDGATE_ERR_PEER_CLOSED */
}

#define BELOW 1000000

static sendgate_status write_primes(sendgate_stream *s)
{
    static const int piece = 16000; /* a write for each prime would be a packet for each */
    char *composite = calloc(BELOW, 1), *text = malloc((size_t)piece + 20), count[20];
    int len = 0, found = 0;
    sendgate_status rc = composite != NULL && text != NULL ? SENDGATE_OK : SENDGATE_ERR_NO_MEMORY;
    for (long n = 2; n < BELOW && rc == SENDGATE_OK; n++) {
        if (composite[n])
            continue;
        for (long k = n * n; k < BELOW; k += n)
            composite[k] = 1;
        found++;
        len += sprintf(text + len, "%ld\n", n);
        if (len >= piece) {
            rc = write_text(s, text, len);
            len = 0;
        }
    }
    if (rc == SENDGATE_OK && len > 0)
        rc = write_text(s, text, len);
    free(composite);
    free(text);
    if (rc != SENDGATE_OK)
        return rc;
    sendgate_field trailer = {{"Prime-Count", 11}, {count, (size_t)sprintf(count, "%d", found)}};
    return sendgate_stream_end(s, &trailer, 1, NULL);
}

#define SQUARES 10000
#define SQUARE_LEN 10

static sendgate_status write_squares(sendgate_stream *s)
{
    sendgate_status rc = SENDGATE_OK;
    for (int n = 1; n <= SQUARES && rc == SENDGATE_OK; n++) {
        char line[20];
        rc = write_text(s, line, snprintf(line, sizeof line, "%9d\n", n * n));
    }
    return rc;
}

#define ROWS 1000000000
#define ROW_LEN 16

/* Which bytes are wanted is asked before each write: all of them, one range, or one after the other. */
static sendgate_status write_table(sendgate_stream *s)
{
    sendgate_status rc = SENDGATE_OK;
    for (sendgate_range next; rc == SENDGATE_OK && wanted(s, &next);) {
        char text[4096 + ROW_LEN + 1];
        uint64_t row = next.offset / ROW_LEN, skipped = next.offset % ROW_LEN;
        for (size_t len = 0; len < sizeof text - 1; len += ROW_LEN, row++)
            snprintf(text + len, ROW_LEN + 1, "row %011llu\n", (unsigned long long)row);
        uint64_t len = 4096 < next.length ? 4096 : next.length;
        rc = write_text(s, text + skipped, (int)len);
    }
    return rc;
}

static const struct page {
    const char *path;
    uint32_t flags;
    uint64_t length;
    const char *etag;
    sendgate_status (*write)(sendgate_stream *s);
} pages[] = {
    {"/clock", SENDGATE_REP_UNSIZED, 0, NULL, write_clock},
    {"/primes", SENDGATE_REP_UNSIZED, 0, "\"primes\"", write_primes},
    {"/squares", 0, (uint64_t)SQUARES * SQUARE_LEN, "\"squares\"", write_squares},
    {"/table", SENDGATE_REP_SEEKABLE, (uint64_t)ROWS * ROW_LEN, "\"table\"", write_table},
};

/* ---- The server ------------------------------------------------------------------------------- */

static sendgate_str str(const char *s)
{
    return (sendgate_str){s, s != NULL ? strlen(s) : 0};
}

/* Answer a request. Returns what is to become of the connection. */
static uint32_t answer(sendgate_stream *s, int sock, const sendgate_request *req)
{
    sendgate_rep rep = {.size = sizeof rep, .kind = SENDGATE_REP_MEMORY, .memory = "Not found\n", .length = 10};
    sendgate_exchange ex = {.size = sizeof ex, .request = req, .rep = &rep, .http_status = 404};
    sendgate_sink sink = {.size = sizeof sink, .fd = sock, .idle_timeout_ms = 30000};
    sendgate_result result = {.size = sizeof result};
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        const struct page *page = &pages[i];
        if (req->target.len != strlen(page->path) || memcmp(req->target.ptr, page->path, req->target.len) != 0)
            continue;
        rep = (sendgate_rep){.size = sizeof rep, .kind = SENDGATE_REP_STREAM, .flags = page->flags,
                             .length = page->length, .etag = str(page->etag), .content_type = str("text/plain")};
        ex.http_status = 0;
        sendgate_status rc = sendgate_stream_start(s, &ex, &sink, NULL);
        if (rc == SENDGATE_OK)
            rc = page->write(s);
        if (rc == SENDGATE_OK)
            rc = sendgate_stream_end(s, NULL, 0, &result); /* again does nothing, if the page has ended it itself */
        printf("%s: %s\n", page->path, sendgate_status_name(rc));
        return rc == SENDGATE_OK ? result.connection : SENDGATE_CONN_BROKEN; /* the client notices what it didn't get */
    }
    sendgate_respond(&ex, &sink, &result);
    return result.connection;
}

static void *serve(void *arg)
{
    int sock = (int)(intptr_t)arg;
    char in[8192], scratch[sizeof in];
    size_t have = 0, head_len = 0;
    sendgate_stream *s = NULL;
    uint32_t connection = sendgate_stream_new(&s) == SENDGATE_OK ? SENDGATE_CONN_REUSABLE : SENDGATE_CONN_CLOSE;
    while (connection == SENDGATE_CONN_REUSABLE) {
        sendgate_request req = {.size = sizeof req};
        sendgate_status rc = sendgate_request_from_head(&req, in, have, scratch, sizeof scratch, NULL, &head_len);
        if (rc == SENDGATE_WANT_READ && have < sizeof in) {
            ssize_t n = recv(sock, in + have, sizeof in - have, 0);
            if (n <= 0)
                break;
            have += (size_t)n;
        } else if (rc == SENDGATE_OK) {
            connection = answer(s, sock, &req);
            memmove(in, in + head_len, have -= head_len);
        } else {
            break; /* a real server answers 400 or 431 */
        }
    }
    sendgate_stream_free(s);
    close(sock);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t at_len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0));
    if (argc > 2)
        milliseconds = atol(argv[2]);
    if (argc < 2 || argc > 3 || milliseconds <= 0 || bind(listener, (struct sockaddr *)&at, sizeof at) < 0
        || listen(listener, SOMAXCONN) < 0 || getsockname(listener, (struct sockaddr *)&at, &at_len) < 0) {
        perror("usage: stream PORT [MILLISECONDS]");
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port));
    for (;;) {
        pthread_t thread;
        int sock = accept(listener, NULL, NULL);
        if (sock < 0)
            continue;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)sock) == 0)
            pthread_detach(thread);
        else
            close(sock);
    }
}
