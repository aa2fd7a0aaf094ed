/* civetweb.c - a file server on CivetWeb, which parses requests and keeps connections; what is answered is sendgate's
 * business, and every byte of it goes through mg_write.
 *
 *   civetweb PORT DIR         serves DIR on 127.0.0.1:PORT; port 0 lets the system pick
 *
 * A connection has a thread of CivetWeb's for as long as it is open, with a stack of 100 KiB in Debian's library.
 */
#include <pthread.h>
#include <signal.h>

#include <civetweb.h>

#include "../site.h"

enum { HEAD_MAX = 8192 }; /* of a request */

static int dir;

/* A sendgate_write_fn. mg_write waits, and takes all of it unless the client is gone or has stalled. */
static sendgate_status write_some(void *user, const uint8_t *data, size_t len, size_t *written)
{
    int n = mg_write(user, data, len < INT_MAX ? len : INT_MAX);
    if (n <= 0)
        return SENDGATE_ERR_PEER_CLOSED;
    *written = (size_t)n;
    return SENDGATE_OK;
}

/* Returns the status, for CivetWeb's log; 0 would mean that it has to answer itself. */
static int on_request(struct mg_connection *conn)
{
    const struct mg_request_info *info = mg_get_request_info(conn);
    const char *query = info->query_string, *connection = mg_get_header(conn, "Connection");
    sendgate_field fields[MG_MAX_HEADERS];
    size_t n_fields = (size_t)info->num_headers;
    char scratch[HEAD_MAX], target[HEAD_MAX];
    sendgate_request request = {.size = sizeof request, .method = site_str(info->request_method)};
    sendgate_sink sink = {.size = sizeof sink, .write = write_some, .user = conn, .fd = -1};
    sendgate_result result = {.size = sizeof result};
    struct site_answer answer;
    int n;
    while ((n = mg_read(conn, scratch, sizeof scratch)) > 0)
        ; /* content, which nobody wants; below 0: it is malformed, or cut off */
    request.version = strcmp(info->http_version, "1.0") == 0 ? 10 : 11;
    for (size_t i = 0; i < n_fields; i++)
        fields[i] = (sendgate_field){site_str(info->http_headers[i].name), site_str(info->http_headers[i].value)};
    if (sendgate_request_from_fields(&request, fields, n_fields, scratch, sizeof scratch, NULL) != SENDGATE_OK) {
        mg_send_http_error(conn, 500, "%s", "");
        return 500;
    }
    request.flags &= ~SENDGATE_REQUEST_HAS_BODY; /* it was read */
    /* As it was sent, because of decode_url below; but CivetWeb has cut the query off. */
    snprintf(target, sizeof target, "%s%s%s", info->request_uri, query != NULL ? "?" : "", query != NULL ? query : "");
    site_answer(&answer, dir, &request, site_str(target));
    /* CivetWeb keeps a connection by the first of these fields, which it reads less closely than sendgate. This is the
     * only value of which both say the same. */
    if (n < 0 || (connection != NULL && strcasecmp(connection, "keep-alive") != 0))
        answer.ex.head_flags = SENDGATE_HEAD_CLOSE;
    sendgate_respond(&answer.ex, &sink, &result);
    if (answer.fd >= 0)
        close(answer.fd);
    if (result.connection == SENDGATE_CONN_UNTOUCHED) {
        mg_send_http_error(conn, 500, "%s", ""); /* and that closes it */
        return 500;
    }
    if (result.connection != SENDGATE_CONN_REUSABLE)
        mg_disable_connection_keep_alive(conn);
    return (int)result.http_status;
}

int main(int argc, char **argv)
{
    char port[32], head_max[16];
    const char *options[] = {
        "listening_ports", port,
        "num_threads", "20", /* so many clients at the same time, slow and idle ones included */
        "enable_keep_alive", "yes",
        "keep_alive_timeout_ms", "5000",
        "request_timeout_ms", "60000", /* for a client to send a request, and to take some bytes */
        "max_request_size", head_max,
        "tcp_nodelay", "1", /* no end of a file waits until what is before it has been acknowledged */
        "decode_url", "no",
        "enable_auth_domain_check", "no", /* else "GET http://HOST/" is taken for some domain's of its own alone */
        NULL};
    struct mg_callbacks callbacks = {.begin_request = on_request};
    struct mg_server_port bound;
    sigset_t ends;
    int number;
    dir = site_directory(argc, argv, "usage: civetweb PORT DIR");
    snprintf(port, sizeof port, "127.0.0.1:%d", atoi(argv[1]));
    snprintf(head_max, sizeof head_max, "%d", HEAD_MAX);
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ends, NULL); /* in CivetWeb's threads too */
    mg_init_library(0);
    struct mg_context *context = mg_start(&callbacks, NULL, options);
    if (context == NULL || mg_get_server_ports(context, 1, &bound) != 1) {
        fprintf(stderr, "civetweb: can't listen on %s\n", port);
        return 1;
    }
    printf("listening on 127.0.0.1:%d\n", bound.port);
    fflush(stdout);
    sigwait(&ends, &number);
    mg_stop(context);
    mg_exit_library();
    close(dir);
    return 0;
}
