/* microhttpd.c - a file server on GNU libmicrohttpd, which parses requests, keeps connections, and sends heads and
 * files; what is answered is sendgate's business.
 *
 *   microhttpd PORT DIR       serves DIR on 127.0.0.1:PORT; port 0 lets the system pick
 *
 * Two threads of libmicrohttpd's, each with its own epoll. A file, or one range of it, leaves by libmicrohttpd's
 * sendfile; several ranges, and what is in memory, are pulled.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <sys/queue.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include <microhttpd.h>

#include "../site.h"

enum {
    STALL_SECONDS = 60,   /* for a client to take a byte */
    N_FIELDS = 256,       /* of a request; further ones are not looked at */
    HEAD_MAX = 32768,     /* what libmicrohttpd has for a connection: request and response have to fit */
    PULL_BYTES = 1 << 16, /* at once */
};

static int dir;

/* A request, from its first line to the end of its answer. */
struct request {
    LIST_ENTRY(request) sending;
    int socket, file; /* -1: it is not among those that are being sent */
    uint64_t end;     /* so long has the file to be */
    bool begun;       /* its head was seen */
    char target[];
};

/* Whose files libmicrohttpd sends: see watch_files. */
static LIST_HEAD(, request) sending = LIST_HEAD_INITIALIZER(sending);
static pthread_mutex_t sending_lock = PTHREAD_MUTEX_INITIALIZER;

/* libmicrohttpd (0.9.75) goes on for ever when sendfile finds a file shorter than it was: close the connection, which
 * is how the client notices. */
static void watch_files(void)
{
    struct request *r;
    struct stat now;
    pthread_mutex_lock(&sending_lock);
    LIST_FOREACH (r, &sending, sending)
        if (fstat(r->file, &now) < 0 || (uint64_t)now.st_size < r->end)
            shutdown(r->socket, SHUT_RDWR);
    pthread_mutex_unlock(&sending_lock);
}

/* A response that is pulled. */
struct download {
    sendgate_transfer *transfer;
    int file; /* -1: the answer has none */
};

static ssize_t pull(void *user, uint64_t offset, char *buf, size_t cap)
{
    struct download *d = user;
    size_t len;
    (void)offset; /* where the last call has ended */
    sendgate_status rc = sendgate_transfer_pull(d->transfer, (uint8_t *)buf, cap, &len, NULL);
    return rc >= 0 ? (ssize_t)len : MHD_CONTENT_READER_END_WITH_ERROR; /* that closes the connection */
}

static void pull_end(void *user)
{
    struct download *d = user;
    sendgate_transfer_free(d->transfer);
    if (d->file >= 0)
        close(d->file);
    free(d);
}

/* Takes the file over if it succeeds, as MHD_create_response_from_fd does. */
static struct MHD_Response *pulled(const sendgate_exchange *ex, uint64_t length, int file)
{
    struct MHD_Response *response = NULL;
    struct download *d = calloc(1, sizeof *d);
    if (d == NULL)
        return NULL;
    d->file = -1;
    if (sendgate_transfer_new(&d->transfer) == SENDGATE_OK
        && sendgate_transfer_start(d->transfer, ex, NULL) == SENDGATE_OK)
        response = MHD_create_response_from_callback(length, PULL_BYTES, pull, d, pull_end);
    if (response == NULL)
        pull_end(d);
    else
        d->file = file;
    return response;
}

/* The answer's fields, but for those that libmicrohttpd sends by itself: Content-Length, Date, Connection. */
static bool add_fields(struct MHD_Response *response, const sendgate_field *fields, size_t n, bool keep_alive)
{
    char name[64], value[PATH_MAX + 64];
    for (size_t i = 0; i < n; i++) {
        const sendgate_field *f = &fields[i];
        if (site_is(f->name, "Content-Length"))
            continue;
        if (f->name.len >= sizeof name || f->value.len >= sizeof value)
            return false;
        snprintf(name, sizeof name, "%.*s", (int)f->name.len, f->name.ptr);
        snprintf(value, sizeof value, "%.*s", (int)f->value.len, f->value.ptr);
        if (MHD_add_response_header(response, name, value) != MHD_YES)
            return false;
    }
    return keep_alive || MHD_add_response_header(response, "Connection", "close") == MHD_YES;
}

/* The response to a request, or NULL; *http_status is its status. */
static struct MHD_Response *response_to(struct request *r, const sendgate_request *request, uint32_t *http_status)
{
    struct site_answer a;
    sendgate_decision decision = {.size = sizeof decision};
    sendgate_range range = {0, 0};
    sendgate_field fields[32];
    char scratch[1024];
    size_t n, needed;
    struct MHD_Response *response = NULL;
    site_answer(&a, dir, request, site_str(r->target));
    /* Several calls that have to say the same: one clock, one boundary of a multipart. */
    a.ex.head = SENDGATE_HEAD_NONE;
    a.ex.now = time(NULL);
    bool ok = getrandom(&a.ex.seed, sizeof a.ex.seed, 0) == sizeof a.ex.seed;
    a.ex.seed |= 1; /* 0 would be another one in each call */
    sendgate_status rc = sendgate_decide(&a.ex, &range, 1, &decision); /* NO_SPACE: there are several, for the pull */
    ok = ok && (rc == SENDGATE_OK || rc == SENDGATE_ERR_NO_SPACE)
        && sendgate_head_fields(&a.ex, fields, 32, scratch, sizeof scratch, &n, &needed) == SENDGATE_OK;
    *http_status = decision.http_status;
    /* libmicrohttpd sends a Content-Length with a 304 too, which then must be that of a 200 (RFC 9110 8.6). */
    uint64_t length = *http_status == 304 ? a.rep.length : decision.content_length;
    if (ok && a.fd >= 0 && decision.n_ranges < 2)
        response = MHD_create_response_from_fd_at_offset64(length, a.fd, a.rep.offset + range.offset);
    else if (ok)
        response = pulled(&a.ex, length, a.fd);
    if (response == NULL) {
        if (a.fd >= 0)
            close(a.fd);
    } else if (!add_fields(response, fields, n, decision.keep_alive)) {
        MHD_destroy_response(response); /* and the file with it */
        response = NULL;
    } else if (a.fd >= 0 && decision.n_ranges < 2 && decision.body_length > 0) {
        r->file = a.fd;
        r->end = a.rep.offset + range.offset + decision.body_length;
        pthread_mutex_lock(&sending_lock);
        LIST_INSERT_HEAD(&sending, r, sending);
        pthread_mutex_unlock(&sending_lock);
    }
    return response;
}

struct fields {
    sendgate_field list[N_FIELDS];
    size_t n;
};

static enum MHD_Result on_field(void *user, enum MHD_ValueKind kind, const char *name, size_t name_len,
                                const char *value, size_t value_len)
{
    struct fields *fields = user;
    (void)kind;
    if (fields->n < N_FIELDS)
        fields->list[fields->n++] = (sendgate_field){{name, name_len}, {value, value_len}};
    return MHD_YES;
}

/* The target as it was sent: what on_request is given has been decoded, and has lost its query. */
static void *on_target(void *user, const char *target, struct MHD_Connection *conn)
{
    size_t len = strlen(target) + 1;
    struct request *r = malloc(sizeof *r + len);
    (void)user;
    if (r == NULL)
        return NULL;
    *r = (struct request){.file = -1};
    r->socket = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    memcpy(r->target, target, len);
    return r;
}

/* Called when the head is there, for each piece of content, and when all is there. MHD_NO closes the connection. */
static enum MHD_Result on_request(void *user, struct MHD_Connection *conn, const char *path, const char *method,
                                  const char *version, const char *content, size_t *content_len, void **state)
{
    struct request *r = *state;
    (void)user, (void)path, (void)content;
    if (r == NULL)
        return MHD_NO;
    if (!r->begun || *content_len > 0) { /* an answer now would leave the content unread, and end the connection */
        r->begun = true;
        *content_len = 0;
        return MHD_YES;
    }
    struct fields fields = {.n = 0};
    char scratch[HEAD_MAX];
    sendgate_request request = {.size = sizeof request, .method = site_str(method)};
    uint32_t http_status;
    request.version = strcmp(version, "HTTP/1.0") == 0 ? 10 : 11;
    MHD_get_connection_values_n(conn, MHD_HEADER_KIND, on_field, &fields);
    if (sendgate_request_from_fields(&request, fields.list, fields.n, scratch, sizeof scratch, NULL) != SENDGATE_OK)
        return MHD_NO;
    request.flags &= ~SENDGATE_REQUEST_HAS_BODY; /* libmicrohttpd has read it */
    struct MHD_Response *response = response_to(r, &request, &http_status);
    if (response == NULL)
        return MHD_NO;
    enum MHD_Result result = MHD_queue_response(conn, http_status, response);
    MHD_destroy_response(response); /* the connection has its own reference */
    return result;
}

/* The answer has been sent, or never will be; the socket is still open. If the file isn't, watch_files may have shut down
 * what is ending anyway. */
static void on_completed(void *user, struct MHD_Connection *conn, void **state, enum MHD_RequestTerminationCode code)
{
    struct request *r = *state;
    (void)user, (void)conn, (void)code;
    if (r != NULL && r->file >= 0) {
        pthread_mutex_lock(&sending_lock);
        LIST_REMOVE(r, sending);
        pthread_mutex_unlock(&sending_lock);
    }
    free(r);
}

int main(int argc, char **argv)
{
    static const struct timespec second = {1, 0};
    struct sockaddr_in at = {.sin_family = AF_INET};
    sigset_t ends;
    dir = site_directory(argc, argv, "usage: microhttpd PORT DIR");
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons((uint16_t)atoi(argv[1]));
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ends, NULL); /* in libmicrohttpd's threads too, which don't get SIGPIPE anyway */
    struct MHD_Daemon *daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, NULL, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&at,
        MHD_OPTION_THREAD_POOL_SIZE, 2u, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)STALL_SECONDS,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEAD_MAX, MHD_OPTION_URI_LOG_CALLBACK, on_target, NULL,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_END);
    if (daemon == NULL) {
        perror("microhttpd: listen");
        return 1;
    }
    printf("listening on 127.0.0.1:%d\n", MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_BIND_PORT)->port);
    fflush(stdout);
    while (sigtimedwait(&ends, NULL, &second) < 0)
        watch_files();
    MHD_stop_daemon(daemon);
    close(dir);
    return 0;
}
