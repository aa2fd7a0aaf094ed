/* evhttp.c - a file server on libevent's HTTP server, which parses requests and keeps connections; what is answered,
 * and how it gets onto the socket, is sendgate's business.
 *
 *   evhttp PORT DIR       serves DIR on 127.0.0.1:PORT; port 0 lets the system pick
 *
 * One thread, one event_base. The response is stepped on the connection's own socket: evhttp doesn't look at that while
 * a request is being answered, and goes on to the next one at evhttp_send_reply_end.
 */
#include <arpa/inet.h>
#include <signal.h>
#include <sys/queue.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>

#include "../site.h"

enum {
    STEP_BYTES = 1 << 20, /* bytes per turn: what a fast client may take before the others are asked */
    STALL_SECONDS = 60,   /* for a client to take a byte */
    N_FIELDS = 256,       /* of a request; further ones are not looked at */
    HEAD_MAX = 16384,
};

static int dir;
static struct event_base *base;

/* A response under way. */
struct download {
    LIST_ENTRY(download) downloads;
    struct evhttp_request *http;
    struct event *writable;
    sendgate_transfer *transfer;
    int file; /* -1: the answer has none */
};

static LIST_HEAD(, download) downloads = LIST_HEAD_INITIALIZER(downloads);

static void download_end(struct download *d, sendgate_status rc, uint32_t connection)
{
    struct evhttp_request *http = d->http;
    LIST_REMOVE(d, downloads);
    if (d->file >= 0)
        close(d->file);
    event_free(d->writable);
    sendgate_transfer_free(d->transfer);
    free(d);
    if (rc != SENDGATE_OK && connection == SENDGATE_CONN_UNTOUCHED && rc != SENDGATE_ERR_PEER_CLOSED) {
        evhttp_send_error(http, HTTP_INTERNAL, NULL); /* the file became shorter before a byte of it was sent */
        return;
    }
    if (rc != SENDGATE_OK) { /* cut short: the client is gone, or the file became shorter */
        evhttp_connection_free(evhttp_request_get_connection(http));
        return;
    }
    /* evhttp goes by the request's own field, which it reads less closely than sendgate: it has to do what the answer
     * has announced. */
    struct evkeyvalq *fields = evhttp_request_get_input_headers(http);
    evhttp_remove_header(fields, "Connection");
    evhttp_add_header(fields, "Connection", connection == SENDGATE_CONN_CLOSE ? "close" : "keep-alive");
    http->flags &= ~EVHTTP_PROXY_REQUEST; /* for a target in absolute form it would go by Proxy-Connection */
    http->chunked = 0;           /* that was the request's content: else "0" would be sent, the end of an answer's */
    evhttp_send_reply_end(http); /* without a start: nothing is sent, and the next request is read */
}

static void on_writable(evutil_socket_t fd, short what, void *user)
{
    static const struct timeval stall = {STALL_SECONDS, 0};
    struct download *d = user;
    sendgate_result result = {.size = sizeof result, .connection = SENDGATE_CONN_BROKEN};
    sendgate_status rc = SENDGATE_ERR_TIMEOUT;
    (void)fd;
    if (!(what & EV_TIMEOUT))
        rc = sendgate_transfer_step(d->transfer, STEP_BYTES, &result);
    if (rc == SENDGATE_WANT_WRITE)
        event_add(d->writable, &stall);
    else if (rc == SENDGATE_YIELD)
        event_active(d->writable, EV_WRITE, 0); /* once the others have had their turn */
    else
        download_end(d, rc, result.connection);
}

/* evhttp's names and values, as sendgate wants them. Returns their number. */
static size_t fields_of(struct evhttp_request *http, sendgate_field fields[N_FIELDS])
{
    size_t n = 0;
    const struct evkeyval *header;
    TAILQ_FOREACH (header, evhttp_request_get_input_headers(http), next)
        if (n < N_FIELDS)
            fields[n++] = (sendgate_field){site_str(header->key), site_str(header->value)};
    return n;
}

static const char *method_of(struct evhttp_request *http)
{
    switch (evhttp_request_get_command(http)) {
    case EVHTTP_REQ_GET: return "GET";
    case EVHTTP_REQ_HEAD: return "HEAD";
    default: return "OTHER"; /* as far as this server is concerned */
    }
}

static void on_request(struct evhttp_request *http, void *user)
{
    struct bufferevent *bufev = evhttp_connection_get_bufferevent(evhttp_request_get_connection(http));
    sendgate_field fields[N_FIELDS];
    char scratch[HEAD_MAX];
    sendgate_request request = {.size = sizeof request, .method = site_str(method_of(http))};
    sendgate_sink sink = {.size = sizeof sink, .fd = bufferevent_getfd(bufev), .flags = SENDGATE_SINK_SIGPIPE_IGNORED};
    struct site_answer answer;
    struct download *d = calloc(1, sizeof *d);
    (void)user;
    request.version = (uint32_t)(http->major * 10 + http->minor);
    if (d == NULL || sendgate_request_from_fields(&request, fields, fields_of(http, fields), scratch, sizeof scratch, NULL)
                         != SENDGATE_OK) {
        free(d);
        evhttp_send_error(http, HTTP_INTERNAL, NULL);
        return;
    }
    request.flags &= ~SENDGATE_REQUEST_HAS_BODY; /* evhttp has read it */
    site_answer(&answer, dir, &request, site_str(evhttp_request_get_uri(http)));
    d->http = http;
    d->file = answer.fd;
    d->writable = event_new(base, sink.fd, EV_WRITE, on_writable, d);
    if (d->writable == NULL || sendgate_transfer_new(&d->transfer) != SENDGATE_OK
        || sendgate_transfer_start(d->transfer, &answer.ex, &sink) != SENDGATE_OK) {
        if (d->writable != NULL)
            event_free(d->writable);
        sendgate_transfer_free(d->transfer);
        if (d->file >= 0)
            close(d->file);
        free(d);
        evhttp_send_error(http, HTTP_SERVUNAVAIL, NULL);
        return;
    }
    LIST_INSERT_HEAD(&downloads, d, downloads);
    on_writable(sink.fd, EV_WRITE, d);
}

static void on_signal(evutil_socket_t number, short what, void *user)
{
    (void)number, (void)what, (void)user;
    event_base_loopbreak(base);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at;
    socklen_t at_len = sizeof at;
    struct evhttp_bound_socket *bound = NULL;
    dir = site_directory(argc, argv, "usage: evhttp PORT DIR");
    signal(SIGPIPE, SIG_IGN); /* sendgate raises none, but evhttp does when it writes an answer of its own */
    base = event_base_new();
    struct evhttp *http = evhttp_new(base);
    evhttp_set_allowed_methods(http, 0xffff); /* all that it knows: what isn't GET or HEAD is answered 405 */
    evhttp_set_max_headers_size(http, HEAD_MAX / 2);
    evhttp_set_max_body_size(http, 1 << 20);
    evhttp_set_timeout(http, STALL_SECONDS);
    evhttp_set_gencb(http, on_request, NULL);
    bound = evhttp_bind_socket_with_handle(http, "127.0.0.1", (unsigned short)atoi(argv[1]));
    if (bound == NULL || getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&at, &at_len) < 0) {
        perror("evhttp: listen");
        return 1;
    }
    struct event *terminate = evsignal_new(base, SIGTERM, on_signal, NULL);
    struct event *interrupt = evsignal_new(base, SIGINT, on_signal, NULL);
    event_add(terminate, NULL);
    event_add(interrupt, NULL);
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port));
    fflush(stdout);
    event_base_dispatch(base);
    while (!LIST_EMPTY(&downloads)) /* before evhttp_free, which frees their requests under them */
        download_end(LIST_FIRST(&downloads), SENDGATE_ERR_CANCELLED, SENDGATE_CONN_BROKEN);
    event_free(terminate);
    event_free(interrupt);
    evhttp_free(http);
    event_base_free(base);
    close(dir);
    return 0;
}
