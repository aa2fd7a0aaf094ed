/* lws.c - a file server on libwebsockets, which parses requests and keeps connections; what is answered, and how it
 * gets onto the socket, is sendgate's business.
 *
 *   lws PORT DIR          serves DIR on 127.0.0.1:PORT; port 0 lets the system pick
 *
 * One thread, libwebsockets' own loop. The response is stepped on the connection's own socket: lws says when that is
 * writable, and goes on to the next request at lws_http_transaction_completed.
 */
#include <signal.h>
#include <sys/epoll.h>

#include <libwebsockets.h>

#include "../site.h"

enum {
    STEP_BYTES = 1 << 20, /* bytes per turn: what a fast client may take before the others are asked */
    STALL_SECONDS = 60,   /* for a client to take a byte */
    N_FIELDS = 256,       /* more than lws keeps of a request */
    HEAD_MAX = 16384,
};

static int dir, writable;
static volatile sig_atomic_t ended;
static struct lws_context *context;

/* lws keeps one for each request: the response under way. */
struct download {
    sendgate_transfer *transfer; /* NULL: there is none */
    int file;                    /* -1: the answer has none */
    bool at_once;                /* what the socket doesn't take at once is not sent */
};

static void download_end(struct download *d)
{
    if (d->transfer != NULL && d->file >= 0)
        close(d->file);
    sendgate_transfer_free(d->transfer);
    d->transfer = NULL;
}

/* lws's lines, as sendgate wants them; it has them by number. Returns how many there are. */
static size_t fields_of(struct lws *wsi, sendgate_field fields[N_FIELDS], char text[HEAD_MAX])
{
    static const struct {
        enum lws_token_indexes token;
        const char *name;
    } wanted[] = {
        {WSI_TOKEN_CONNECTION, "Connection"},
        {WSI_TOKEN_HTTP_CONTENT_LENGTH, "Content-Length"},
        {WSI_TOKEN_HTTP_TRANSFER_ENCODING, "Transfer-Encoding"},
        {WSI_TOKEN_HTTP_IF_MATCH, "If-Match"},
        {WSI_TOKEN_HTTP_IF_NONE_MATCH, "If-None-Match"},
        {WSI_TOKEN_HTTP_IF_MODIFIED_SINCE, "If-Modified-Since"},
        {WSI_TOKEN_HTTP_IF_UNMODIFIED_SINCE, "If-Unmodified-Since"},
        {WSI_TOKEN_HTTP_IF_RANGE, "If-Range"},
        {WSI_TOKEN_HTTP_RANGE, "Range"},
    };
    size_t n = 0, used = 0;
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        for (int line = 0, len; n < N_FIELDS; line++, used += (size_t)len) {
            len = lws_hdr_copy_fragment(wsi, text + used, (int)(HEAD_MAX - used), wanted[i].token, line);
            if (len < 0)
                break;
            fields[n++] = (sendgate_field){site_str(wanted[i].name), {text + used, (size_t)len}};
        }
    return n;
}

/* lws has decoded a part of the target, and cut it at each "&" and ";" that wasn't encoded: back to what site.h wants. */
static size_t encode(struct lws *wsi, enum lws_token_indexes token, char *target)
{
    static const char plain[] = "/=-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    char piece[HEAD_MAX];
    size_t n = 0;
    for (int line = 0, len; (len = lws_hdr_copy_fragment(wsi, piece, sizeof piece, token, line)) >= 0; line++) {
        if (line > 0)
            target[n++] = '&'; /* or was it ";"? */
        for (int i = 0; i < len; i++)
            if (piece[i] != '\0' && strchr(plain, piece[i]) != NULL)
                target[n++] = piece[i];
            else
                n += (size_t)sprintf(target + n, "%%%02x", (unsigned char)piece[i]);
    }
    return n;
}

/* Both parts were in one head: together they are no longer than it. */
static sendgate_str target_of(struct lws *wsi, enum lws_token_indexes path, char target[3 * HEAD_MAX])
{
    size_t n = encode(wsi, path, target), query = encode(wsi, WSI_TOKEN_HTTP_URI_ARGS, target + n + 1);
    if (query > 0) {
        target[n] = '?';
        n += 1 + query;
    }
    return (sendgate_str){target, n};
}

/* lws goes on polling for input, which it doesn't read before the response is over: with a request that is already
 * there, or a client that has shut down its side, it would poll again and again. With input turned off it doesn't tell
 * of writability either. So the sockets that are full are waited for in an epoll set of our own, and lws polls that. */
static int wait_writable(struct lws *wsi)
{
    struct epoll_event full = {.events = EPOLLOUT | EPOLLONESHOT, .data.ptr = wsi};
    int fd = lws_get_socket_fd(wsi);
    if (epoll_ctl(writable, EPOLL_CTL_MOD, fd, &full) < 0 && epoll_ctl(writable, EPOLL_CTL_ADD, fd, &full) < 0)
        return -1;
    return lws_rx_flow_control(wsi, 0);
}

/* One of them can take more. One at a time, as its turn may close others. */
static int on_writable(void)
{
    struct epoll_event event;
    if (epoll_wait(writable, &event, 1, 0) == 1) {
        lws_rx_flow_control(event.data.ptr, 1);
        lws_callback_on_writable(event.data.ptr);
    }
    return 0;
}

/* A turn of the response. Returns as a callback does: -1 closes the connection. */
static int step(struct lws *wsi, struct download *d)
{
    sendgate_result result = {.size = sizeof result};
    sendgate_status rc = sendgate_transfer_step(d->transfer, STEP_BYTES, &result);
    if (rc == SENDGATE_WANT_WRITE || rc == SENDGATE_YIELD) { /* the others have their turn meanwhile */
        lws_set_timeout(wsi, PENDING_TIMEOUT_USER_REASON_BASE, STALL_SECONDS);
        return d->at_once ? -1 : wait_writable(wsi);
    }
    download_end(d);
    if (result.connection != SENDGATE_CONN_REUSABLE)
        return -1;
    /* This frees *d: there is another one for the next request. */
    return lws_http_transaction_completed(wsi) ? -1 : 0;
}

/* Whether lws will keep the connection after a request by HTTP/1.0, which it reads less closely than sendgate. */
static bool is_kept(struct lws *wsi)
{
    char connection[25] = "";
    return lws_hdr_copy(wsi, connection, sizeof connection - 1, WSI_TOKEN_CONNECTION) > 0
           && strcasecmp(connection, "keep-alive") == 0;
}

static int on_request(struct lws *wsi, struct download *d)
{
    char text[HEAD_MAX], scratch[HEAD_MAX], target[3 * HEAD_MAX], version[9] = "", *path;
    sendgate_field fields[N_FIELDS];
    sendgate_request request = {.size = sizeof request};
    /* lws_create_context has made the process ignore SIGPIPE. */
    sendgate_sink sink = {.size = sizeof sink, .fd = lws_get_socket_fd(wsi), .flags = SENDGATE_SINK_SIGPIPE_IGNORED};
    struct site_answer answer;
    int path_len, method = lws_http_get_uri_and_method(wsi, &path, &path_len);
    bool is_head = method == LWSHUMETH_HEAD, is_other = method != LWSHUMETH_GET && !is_head;
    request.method = site_str(is_other ? "OTHER" : is_head ? "HEAD" : "GET");
    lws_hdr_copy(wsi, version, sizeof version, WSI_TOKEN_HTTP);
    request.version = strcmp(version, "HTTP/1.1") == 0 ? 11 : 10;
    if (sendgate_request_from_fields(&request, fields, fields_of(wsi, fields, text), scratch, sizeof scratch, NULL)
        != SENDGATE_OK) {
        lws_return_http_status(wsi, HTTP_STATUS_INTERNAL_SERVER_ERROR, NULL);
        return -1;
    }
    site_answer(&answer, dir, &request, target_of(wsi, is_head ? WSI_TOKEN_HEAD_URI : WSI_TOKEN_GET_URI, target));
    /* Of other methods lws waits for content that need not come. */
    if (is_other || (request.version == 10 && !is_kept(wsi)))
        answer.ex.head_flags = SENDGATE_HEAD_CLOSE;
    d->file = answer.fd;
    /* lws 4.1 never returns from reading content that came, and more behind it, together with an earlier request. So it
     * must not begin with that: what the socket takes at once is the answer, and then the connection ends, to which
     * SENDGATE_REQUEST_HAS_BODY leads. */
    d->at_once = request.flags & SENDGATE_REQUEST_HAS_BODY;
    if (sendgate_transfer_new(&d->transfer) != SENDGATE_OK
        || sendgate_transfer_start(d->transfer, &answer.ex, &sink) != SENDGATE_OK) {
        sendgate_transfer_free(d->transfer);
        d->transfer = NULL;
        if (answer.fd >= 0)
            close(answer.fd);
        lws_return_http_status(wsi, HTTP_STATUS_SERVICE_UNAVAILABLE, NULL);
        return -1;
    }
    return step(wsi, d);
}

static int callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len)
{
    struct download *d = user;
    (void)in, (void)len;
    switch (reason) {
    case LWS_CALLBACK_HTTP: return on_request(wsi, d);
    case LWS_CALLBACK_RAW_RX_FILE: return on_writable();
    case LWS_CALLBACK_HTTP_WRITEABLE: return d->transfer != NULL ? step(wsi, d) : 0;
    case LWS_CALLBACK_HTTP_DROP_PROTOCOL: /* the connection is closed: by a client that left, or by a timeout */
    case LWS_CALLBACK_CLOSED_HTTP:
        if (d != NULL)
            download_end(d);
        return 0;
    case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE: /* WebSocket and HTTP/2: there would be no socket for each request */
    case LWS_CALLBACK_RAW_ADOPT:            /* CONNECT */
        return -1;
    default: return 0;
    }
}

static void on_signal(int number)
{
    (void)number;
    ended = 1;
    lws_cancel_service(context);
}

int main(int argc, char **argv)
{
    static const struct lws_protocols protocols[] = {{"http", callback, sizeof(struct download), 0, 0, NULL, 0},
                                                     {NULL, NULL, 0, 0, 0, NULL, 0}};
    struct lws_context_creation_info info = {0};
    struct lws_vhost *host = NULL;
    dir = site_directory(argc, argv, "usage: lws PORT DIR");
    lws_set_log_level(0, NULL); /* else standard error tells whenever a client is wrong or leaves */
    info.options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS;
    info.port = atoi(argv[1]);
    info.iface = "127.0.0.1";
    info.protocols = protocols;
    info.max_http_header_data = HEAD_MAX;
    info.timeout_secs = info.keepalive_timeout = STALL_SECONDS;
    context = lws_create_context(&info);
    if (context == NULL || (host = lws_create_vhost(context, &info)) == NULL) {
        perror("lws: listen");
        return 1;
    }
    writable = epoll_create1(EPOLL_CLOEXEC);
    lws_sock_file_fd_type set = {.filefd = writable};
    if (lws_adopt_descriptor_vhost(host, LWS_ADOPT_RAW_FILE_DESC, set, "http", NULL) == NULL) {
        perror("lws: epoll");
        return 1;
    }
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    printf("listening on 127.0.0.1:%d\n", lws_get_vhost_listen_port(host));
    fflush(stdout);
    while (!ended && lws_service(context, 0) >= 0)
        ;
    lws_context_destroy(context);
    close(dir);
    return 0;
}
