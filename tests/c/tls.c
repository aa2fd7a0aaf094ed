/* TLS with OpenSSL, on top of each of the three ways to send: in user space by a write function, and in the kernel,
 * where it has that, with sendfile. The client is a thread with an SSL of its own; what it decrypts is compared byte by
 * byte.
 */
#include "check.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SMALL 1000
#define RECORD 16384 /* bytes in a record of TLS */
#define NOW 1700000000

static size_t large = 3 * 1024 * 1024 + 17; /* less where all is slow */

static const struct wanted {
    const char *name;
    size_t length; /* of the representation; 0: `large` */
    const char *method, *range, *if_none_match;
    uint32_t status;
} answers[] = {
    {"200 small", SMALL, "GET", NULL, NULL, 200},
    {"200 of a record", RECORD, "GET", NULL, NULL, 200},
    {"200 of a record and a byte", RECORD + 1, "GET", NULL, NULL, 200},
    {"200 large", 0, "GET", NULL, NULL, 200},
    {"206", 0, "GET", "bytes=70000-170000", NULL, 206},
    {"multipart small", SMALL, "GET", "bytes=0-0,-1", NULL, 206},
    {"multipart", 0, "GET", "bytes=0-9,100000-199999,20-30000,40000-49999,60000-97000,205000-229998,-100", NULL, 206},
    {"304", SMALL, "GET", NULL, "*", 304},
    {"416", SMALL, "GET", "bytes=1000-", NULL, 416},
    {"HEAD", 0, "HEAD", NULL, NULL, 200},
};
#define N_ANSWERS (sizeof answers / sizeof *answers)

/* What is the same on every connection. */
static struct {
    SSL_CTX *server;
    SSL_CTX *client;
    BIO_METHOD *stubborn;
    int files[N_ANSWERS];
    void *memory;
} constant;

/* ---- The server's end ---- */

enum stubborn { NEVER, EVERY_TIME, AT_RANDOM };

struct connection {
    SSL *ssl;
    int sock;
    int reads;              /* looks for what the client says, before each write */
    int tells;              /* a descriptor: gets a byte when a write first waits for the client; 0: none */
    enum stubborn stubborn; /* which writes have to be tried twice */
    uint32_t random;
    int refuse;         /* the next write of the BIO is refused */
    size_t outstanding; /* bytes of a write that has to be tried again */
    unsigned long writes, want_write, want_read, shrunk;
    unsigned long key_updates; /* sent */
};

/* A BIO above that of the socket, which says "try again" if it is told to. */
static int stubborn_write(BIO *bio, const char *bytes, size_t len, size_t *written)
{
    struct connection *connection = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (connection->refuse) {
        connection->refuse = 0;
        BIO_set_retry_write(bio);
        return 0;
    }
    int done = BIO_write_ex(BIO_next(bio), bytes, len, written);
    BIO_copy_next_retry(bio);
    return done;
}

static long stubborn_control(BIO *bio, int command, long number, void *argument)
{
    return BIO_ctrl(BIO_next(bio), command, number, argument);
}

static int stubborn_create(BIO *bio)
{
    BIO_set_init(bio, 1);
    return 1;
}

/* A library's user has a function like this one. */
static sendgate_status tls_write(void *user, const uint8_t *bytes, size_t len, size_t *written)
{
    struct connection *connection = user;
    connection->writes++;
    /* OpenSSL wants at least what it was offered before. */
    connection->shrunk += len < connection->outstanding;
    int again = connection->outstanding > 0;
    connection->random = connection->random * 1664525 + 1013904223;
    connection->refuse = !again && connection->stubborn != NEVER
                         && (connection->stubborn == EVERY_TIME || connection->random >> 31 != 0);
    connection->outstanding = 0;
    ERR_clear_error();
    if (connection->reads && !again) {
        char byte;
        size_t n;
        /* Deals with what is not the application's: key updates, renegotiation. (There are no requests.) Not between a
         * write and its retry: the handshake would write something else in its place. */
        SSL_peek_ex(connection->ssl, &byte, 1, &n);
        ERR_clear_error();
    }
    errno = 0;
    int done = SSL_write_ex(connection->ssl, bytes, len, written);
    if (done == 1)
        return SENDGATE_OK;
    switch (SSL_get_error(connection->ssl, done)) {
    case SSL_ERROR_WANT_WRITE:
        connection->outstanding = len;
        connection->want_write++;
        return SENDGATE_WANT_WRITE;
    case SSL_ERROR_WANT_READ:
        connection->outstanding = len;
        if (connection->want_read++ == 0 && connection->tells != 0)
            MUST(write(connection->tells, "", 1) == 1);
        return SENDGATE_WANT_READ;
    default:
        return errno == EPIPE || errno == ECONNRESET ? SENDGATE_ERR_PEER_CLOSED : SENDGATE_ERR_IO;
    }
}

/* What has to be waited for before OpenSSL is asked again; 0: nothing helps. */
static short events_for(SSL *ssl, int done)
{
    int error = SSL_get_error(ssl, done);
    return error == SSL_ERROR_WANT_READ ? POLLIN : error == SSL_ERROR_WANT_WRITE ? POLLOUT : 0;
}

static void wait_for(int fd, short events)
{
    struct pollfd entry = {.fd = fd, .events = events};
    MUST(poll(&entry, 1, 60000) == 1);
}

static void count_key_updates(int sent, int version, int type, const void *bytes, size_t len, SSL *ssl, void *argument)
{
    (void)version;
    (void)ssl;
    struct connection *connection = argument;
    if (sent && type == SSL3_RT_HANDSHAKE && len > 0 && *(const uint8_t *)bytes == SSL3_MT_KEY_UPDATE)
        connection->key_updates++;
}

static void accept_tls(struct connection *connection, int sock)
{
    memset(connection, 0, sizeof *connection);
    connection->sock = sock;
    connection->ssl = SSL_new(constant.server);
    MUST(connection->ssl != NULL && SSL_set_fd(connection->ssl, sock) == 1);
    SSL_set_accept_state(connection->ssl);
    SSL_set_msg_callback(connection->ssl, count_key_updates);
    SSL_set_msg_callback_arg(connection->ssl, connection);
    for (int done; (done = SSL_do_handshake(connection->ssl)) != 1;) {
        short events = events_for(connection->ssl, done);
        MUST(events != 0);
        wait_for(sock, events);
    }
}

static void make_stubborn(struct connection *connection, enum stubborn stubborn)
{
    BIO *filter = BIO_new(constant.stubborn), *socket_bio = SSL_get_wbio(connection->ssl);
    MUST(filter != NULL && BIO_up_ref(socket_bio) == 1);
    BIO_set_data(filter, connection);
    SSL_set0_wbio(connection->ssl, BIO_push(filter, socket_bio));
    connection->stubborn = stubborn;
}

/* Says that no more comes, waits for the client to close, and closes. */
static void close_tls(struct connection *connection, int in_order)
{
    connection->stubborn = NEVER;
    for (int done; in_order && (done = SSL_shutdown(connection->ssl)) != 1;) {
        short events = done == 0 ? POLLIN : events_for(connection->ssl, done);
        if (events == 0)
            break; /* the client has closed without a word of its own */
        wait_for(connection->sock, events);
    }
    SSL_free(connection->ssl);
    ERR_clear_error();
    close(connection->sock);
}

/* ---- The client ---- */

struct client {
    int fd;
    pthread_t thread;
    char *data;
    size_t len, cap;
    size_t stop_at;        /* go away after this many bytes; 0: at the end */
    size_t update_every;   /* after so many bytes new keys, of both ends */
    size_t renegotiate_at; /* after so many bytes a new handshake, */
    int goes_on;           /* in which it waits for a byte from this descriptor before its last words */
    int slow;              /* pauses now and then */
    int held;              /* a descriptor: reads nothing before that is at its end; 0: at once */
    int in_order;          /* the server has said that it was all */
};

/* The server has said all that it has to say before the client's turn. */
static void wait_in_handshake(int sent, int version, int type, const void *bytes, size_t len, SSL *ssl, void *argument)
{
    (void)version;
    (void)ssl;
    const struct client *client = argument;
    char byte;
    if (!sent && type == SSL3_RT_HANDSHAKE && len > 0 && *(const uint8_t *)bytes == SSL3_MT_SERVER_DONE)
        MUST(read(client->goes_on, &byte, 1) == 1);
}

static void *client_main(void *argument)
{
    struct client *client = argument;
    SSL *ssl = SSL_new(constant.client);
    MUST(ssl != NULL && SSL_set_fd(ssl, client->fd) == 1);
    MUST(SSL_connect(ssl) == 1);
    size_t update_at = client->update_every, n;
    char byte;
    if (client->held != 0)
        MUST(read(client->held, &byte, 1) == 0);
    for (unsigned reads = 0; client->stop_at == 0 || client->len < client->stop_at; reads++) {
        if (client->cap - client->len < RECORD) {
            client->cap = client->cap * 2 + 4 * RECORD;
            client->data = realloc(client->data, client->cap);
            MUST(client->data != NULL);
        }
        if (client->slow && reads % 4 == 0)
            usleep(1000);
        int done = SSL_read_ex(ssl, client->data + client->len, client->cap - client->len, &n);
        if (done != 1) {
            client->in_order = SSL_get_error(ssl, done) == SSL_ERROR_ZERO_RETURN;
            break;
        }
        client->len += n;
        if (client->update_every != 0 && client->len >= update_at) {
            update_at += client->update_every;
            MUST(SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED) == 1 && SSL_do_handshake(ssl) == 1);
        }
        if (client->renegotiate_at != 0 && client->len >= client->renegotiate_at) {
            client->renegotiate_at = 0;
            SSL_set_msg_callback(ssl, wait_in_handshake);
            SSL_set_msg_callback_arg(ssl, client);
            MUST(SSL_renegotiate(ssl) == 1); /* begins with the next read */
        }
    }
    if (client->in_order)
        SSL_shutdown(ssl);
    SSL_free(ssl);
    ERR_clear_error();
    close(client->fd);
    return NULL;
}

/* Connects the two. */
static void connect_tls(enum kind kind, struct connection *connection, struct client *client)
{
    int sockets[2];
    make_pair(kind, 1, sockets);
    if (kind == UNIX_PAIR || client->stop_at != 0) {
        /* So that what is large has to wait. (TCP then waits for acknowledgements that are late, and takes long.) */
        int size = 32768;
        MUST(setsockopt(sockets[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
        MUST(setsockopt(sockets[1], SOL_SOCKET, SO_RCVBUF, &size, sizeof size) == 0);
    }
    client->fd = sockets[1];
    MUST(pthread_create(&client->thread, NULL, client_main, client) == 0);
    accept_tls(connection, sockets[0]);
}

/* ---- The three ways to send ---- */

enum way { RESPOND, STEP, STEP_OF_A_BUDGET, SUBMIT, N_WAYS };
static const char *const way_names[N_WAYS] = {"respond", "step", "step of 20000 bytes", "submit"};

static void steps(struct ask *ask, uint64_t budget)
{
    sendgate_transfer *transfer;
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    sendgate_status status = sendgate_transfer_start(transfer, &ask->exchange, &ask->sink);
    CHECK_STATUS(status, SENDGATE_OK);
    while (status >= 0) {
        status = sendgate_transfer_step(transfer, budget, &ask->result);
        if (status == SENDGATE_OK)
            break;
        if (status == SENDGATE_WANT_WRITE || status == SENDGATE_WANT_READ)
            wait_for(ask->sink.fd, status == SENDGATE_WANT_WRITE ? POLLOUT : POLLIN);
    }
    sendgate_transfer_free(transfer);
}

static void submit(struct ask *ask)
{
    sendgate_sender *sender;
    sendgate_completion done;
    size_t n;
    uint64_t id;
    MUST(sendgate_sender_new(NULL, &sender, NULL) == SENDGATE_OK);
    if (CHECK_STATUS(sendgate_sender_submit(sender, &ask->exchange, &ask->sink, ask, &id, &ask->result),
                     SENDGATE_PENDING)) {
        wait_for(sendgate_sender_fd(sender), POLLIN);
        CHECK_STATUS(sendgate_sender_take(sender, &done, 1, &n), SENDGATE_OK);
        CHECK(done.token == ask);
        CHECK_INT(done.id, id);
        ask->result.status = done.status;
        ask->result.sys_errno = done.sys_errno;
        ask->result.http_status = done.http_status;
        ask->result.connection = done.connection;
        ask->result.head_sent = done.head_sent;
        ask->result.body_sent = done.body_sent;
        ask->result.body_length = done.body_length;
    }
    sendgate_sender_free(sender);
}

/* Sends an answer, and leaves in ask->result how it ended. */
static void send_answer(struct ask *ask, enum way way)
{
    switch (way) {
    case RESPOND:
        sendgate_respond(&ask->exchange, &ask->sink, &ask->result);
        break;
    case STEP:
    case STEP_OF_A_BUDGET:
        steps(ask, way == STEP ? 0 : 20000);
        break;
    default:
        submit(ask);
    }
}

static size_t length_of(const struct wanted *wanted)
{
    return wanted->length == 0 ? large : wanted->length;
}

/* From a file, only one of `answers`. */
static void ask_for(struct ask *ask, const struct wanted *wanted, int from_memory, struct connection *connection,
                    int by_kernel)
{
    int sock = connection != NULL ? connection->sock : -1;
    if (from_memory) {
        ask_memory(ask, constant.memory, length_of(wanted), sock);
    } else {
        ask_file(ask, constant.files[wanted - answers], sock);
    }
    ask->request.method = text(wanted->method);
    if (wanted->range != NULL)
        ask->request.range = text(wanted->range);
    if (wanted->if_none_match != NULL)
        ask->request.if_none_match = text(wanted->if_none_match);
    ask->exchange.now = NOW;
    ask->exchange.seed = 1;
    if (connection != NULL && !by_kernel) {
        ask->sink.write = tls_write;
        ask->sink.user = connection;
    }
}

/* Appends all bytes of an answer, without TLS. */
static void append_right(const struct wanted *wanted, int from_memory, char **right, size_t *len)
{
    struct ask ask;
    sendgate_transfer *transfer;
    size_t cap = large + 4096, n;
    *right = realloc(*right, *len + cap);
    MUST(*right != NULL);
    ask_for(&ask, wanted, from_memory, NULL, 0);
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    MUST(sendgate_transfer_start(transfer, &ask.exchange, NULL) == SENDGATE_OK);
    MUST(sendgate_transfer_pull(transfer, (uint8_t *)*right + *len, cap, &n, NULL) == SENDGATE_OK);
    sendgate_transfer_free(transfer);
    *len += n;
}

/* ---- The tests ---- */

/* Answers, one after the other, on one connection, which is closed then. */
static void converse(enum way way, struct connection *connection, struct client *client, const struct wanted *wanted,
                     size_t n, int from_memory, int by_kernel)
{
    char *right = NULL;
    size_t right_len = 0;
    for (size_t i = 0; i < n; i++) {
        struct ask ask;
        ask_for(&ask, &wanted[i], from_memory, connection, by_kernel);
        send_answer(&ask, way);
        if (!CHECK_STATUS(ask.result.status, SENDGATE_OK)) {
            fprintf(stderr, "that was: %s\n", wanted[i].name);
            break;
        }
        check_result(&ask.result, SENDGATE_OK, wanted[i].status, SENDGATE_CONN_REUSABLE);
        append_right(&wanted[i], from_memory, &right, &right_len);
    }
    CHECK_INT(connection->shrunk, 0);
    close_tls(connection, 1);
    MUST(pthread_join(client->thread, NULL) == 0);
    CHECK(client->in_order);
    CHECK(client->len == right_len && memcmp(client->data, right, right_len) == 0);
    free(client->data);
    free(right);
}

static void every_answer(void)
{
    for (int from_memory = 0; from_memory < 2; from_memory++) {
        for (enum way way = RESPOND; way < N_WAYS; way++) {
            for (int how = 0; how < 4; how++) {
                static const char *const names[] = {"", ", to a slow client", ", each write twice",
                                                    ", some writes twice"};
                enum kind kind = how % 2 == 0 ? TCP_PAIR : UNIX_PAIR;
                check_case("%s, from %s, %s%s", way_names[way], from_memory ? "memory" : "a file", kind_name(kind),
                           names[how]);
                struct connection connection;
                struct client client = {.slow = how == 1};
                connect_tls(kind, &connection, &client);
                if (how >= 2)
                    make_stubborn(&connection, how == 2 ? EVERY_TIME : AT_RANDOM);
                converse(way, &connection, &client, answers, N_ANSWERS, from_memory, 0);
                /* On a busy machine the server may be slower than the slow client. These wait for certain. */
                if (how >= 2)
                    CHECK(connection.want_write >= connection.writes / 4);
            }
        }
    }
}

/* A part of a multipart begins where a step has any number of bytes left, and the writes there have to be repeated. */
static void parts_at_the_end_of_a_step(void)
{
    enum { N = 64 };
    static struct wanted wanted[N];
    static char ranges[N][50];
    for (size_t i = 0; i < N; i++) {
        snprintf(ranges[i], sizeof ranges[i], "bytes=0-%zu,200000-299999", 1000 + 2001 * i);
        wanted[i] = (struct wanted){ranges[i], 0, "GET", ranges[i], NULL, 206};
    }
    for (enum way way = RESPOND; way < N_WAYS; way++) {
        check_case("parts at the end of a step: %s", way_names[way]);
        struct connection connection;
        struct client client = {.fd = -1};
        connect_tls(UNIX_PAIR, &connection, &client);
        make_stubborn(&connection, AT_RANDOM);
        converse(way, &connection, &client, wanted, N, 1, 0);
    }
}

/* The client wants new keys of both ends, again and again. */
static void key_updates(void)
{
    for (enum way way = RESPOND; way < N_WAYS; way++) {
        for (int stubborn = 0; stubborn < 2; stubborn++) {
            check_case("key updates: %s%s", way_names[way], stubborn ? ", each write twice" : "");
            struct connection connection;
            struct client client = {.update_every = large / 10};
            connect_tls(UNIX_PAIR, &connection, &client);
            CHECK_INT(SSL_version(connection.ssl), TLS1_3_VERSION);
            connection.reads = 1;
            if (stubborn)
                make_stubborn(&connection, EVERY_TIME);
            converse(way, &connection, &client, answers, N_ANSWERS, 0, 0);
            CHECK(connection.key_updates > 0);
        }
    }
}

/* TLS 1.2: the client begins a new handshake while it is sent something, and that goes on after it. */
static void renegotiation(void)
{
    SSL_CTX_set_max_proto_version(constant.client, TLS1_2_VERSION);
    for (enum way way = RESPOND; way < N_WAYS; way++) {
        check_case("renegotiation: %s", way_names[way]);
        int pipes[2];
        MUST(pipe(pipes) == 0);
        struct connection connection;
        struct client client = {.renegotiate_at = large / 3, .goes_on = pipes[0]};
        connect_tls(UNIX_PAIR, &connection, &client);
        CHECK_INT(SSL_version(connection.ssl), TLS1_2_VERSION);
        SSL_set_options(connection.ssl, SSL_OP_ALLOW_CLIENT_RENEGOTIATION);
        connection.reads = 1;
        connection.tells = pipes[1];
        long before = SSL_CTX_sess_accept_renegotiate(constant.server);
        converse(way, &connection, &client, answers, N_ANSWERS, 0, 0);
        CHECK(SSL_CTX_sess_accept_renegotiate(constant.server) > before);
        CHECK(connection.want_read > 0);
        close(pipes[0]);
        close(pipes[1]);
    }
    SSL_CTX_set_max_proto_version(constant.client, 0);
}

/* The client goes away when it has had some records; the buffers of both ends don't hold the rest. */
static void client_goes(void)
{
    for (int i = 0; i < 2 * N_WAYS; i++) {
        enum way way = (enum way)(i / 2);
        enum kind kind = i % 2 == 0 ? TCP_PAIR : UNIX_PAIR;
        check_case("the client goes away: %s, %s", way_names[way], kind_name(kind));
        struct connection connection;
        struct client client = {.stop_at = 3 * RECORD};
        connect_tls(kind, &connection, &client);
        struct ask ask;
        ask_for(&ask, &answers[3], 0, &connection, 0);
        send_answer(&ask, way);
        CHECK_STATUS(ask.result.status, SENDGATE_ERR_PEER_CLOSED);
        CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN);
        CHECK(ask.result.body_sent < ask.result.body_length);
        close_tls(&connection, 0);
        MUST(pthread_join(client.thread, NULL) == 0);
        /* A prefix of the answer. */
        struct answer answer;
        answer_of(&answer, client.data, client.len);
        CHECK_INT(answer.status, 200);
        CHECK(answer.body_len > 0 && is_pattern(answer.body, answer.body_len, 0));
        free(client.data);
    }
}

/* A client that reads nothing is given up. */
static void client_stalls(void)
{
    for (int i = 0; i < 2; i++) {
        enum way way = i == 0 ? RESPOND : SUBMIT; /* those that wait themselves */
        check_case("the client stalls: %s", way_names[way]);
        struct connection connection;
        int held[2];
        MUST(pipe(held) == 0);
        struct client client = {.stop_at = 1, .held = held[0]};
        connect_tls(UNIX_PAIR, &connection, &client);
        struct ask ask;
        ask_for(&ask, &answers[3], 0, &connection, 0);
        ask.sink.idle_timeout_ms = 100;
        send_answer(&ask, way);
        CHECK_STATUS(ask.result.status, SENDGATE_ERR_TIMEOUT);
        CHECK_INT(ask.result.connection, SENDGATE_CONN_BROKEN);
        close(held[1]);
        close_tls(&connection, 0);
        MUST(pthread_join(client.thread, NULL) == 0);
        close(held[0]);
        free(client.data);
    }
}

/* TLS by the kernel: the library gets the socket, and needs to know nothing. */
static void in_the_kernel(void)
{
    check_case("kTLS");
    SSL_CTX_set_options(constant.server, SSL_OP_ENABLE_KTLS);
    int ran = 0;
    for (int from_memory = 0; from_memory < 2; from_memory++) {
        for (enum way way = RESPOND; way < N_WAYS; way++) {
            check_case("kTLS: %s, from %s", way_names[way], from_memory ? "memory" : "a file");
            struct connection connection;
            struct client client = {.fd = -1};
            connect_tls(TCP_PAIR, &connection, &client);
            if (BIO_get_ktls_send(SSL_get_wbio(connection.ssl))) {
                converse(way, &connection, &client, answers, N_ANSWERS, from_memory, 1);
                ran++;
            } else {
                close_tls(&connection, 1);
                MUST(pthread_join(client.thread, NULL) == 0);
                free(client.data);
            }
        }
    }
    SSL_CTX_clear_options(constant.server, SSL_OP_ENABLE_KTLS);
    if (ran > 0) {
        CHECK_INT(ran, 2 * N_WAYS);
        return;
    }
    int sockets[2];
    make_pair(TCP_PAIR, 0, sockets);
    if (setsockopt(sockets[0], IPPROTO_TCP, TCP_ULP, "tls", 4) == 0) {
        printf("skipped: kTLS: the kernel has it, but %s does not use it\n", OpenSSL_version(OPENSSL_VERSION));
    } else {
        printf("skipped: kTLS: this kernel has no TLS: setsockopt TCP_ULP: %s\n", strerror(errno));
    }
    close(sockets[0]);
    close(sockets[1]);
}

/* ---- */

/* A key, and a certificate that is signed with it. */
static void make_certificate(EVP_PKEY **key, X509 **certificate)
{
    *key = EVP_EC_gen("P-256");
    *certificate = X509_new();
    MUST(*key != NULL && *certificate != NULL);
    X509_NAME *name = X509_get_subject_name(*certificate);
    MUST(X509_set_version(*certificate, X509_VERSION_3) == 1);
    MUST(ASN1_INTEGER_set(X509_get_serialNumber(*certificate), 1) == 1);
    MUST(X509_gmtime_adj(X509_getm_notBefore(*certificate), -3600) != NULL);
    MUST(X509_gmtime_adj(X509_getm_notAfter(*certificate), 3600) != NULL);
    MUST(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0) == 1);
    MUST(X509_set_issuer_name(*certificate, name) == 1);
    MUST(X509_set_pubkey(*certificate, *key) == 1);
    MUST(X509_sign(*certificate, *key, EVP_sha256()) > 0);
}

static void make_constants(void)
{
    EVP_PKEY *key;
    X509 *certificate;
    make_certificate(&key, &certificate);
    constant.server = SSL_CTX_new(TLS_server_method());
    constant.client = SSL_CTX_new(TLS_client_method());
    MUST(constant.server != NULL && constant.client != NULL);
    /* Partial: take a record and say so. Moving: a retry may come from another address, with the same bytes. */
    SSL_CTX_set_mode(constant.server, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    MUST(SSL_CTX_use_certificate(constant.server, certificate) == 1);
    MUST(SSL_CTX_use_PrivateKey(constant.server, key) == 1);
    SSL_CTX_set_verify(constant.client, SSL_VERIFY_PEER, NULL);
    MUST(X509_STORE_add_cert(SSL_CTX_get_cert_store(constant.client), certificate) == 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
    constant.stubborn = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_FILTER, "stubborn");
    MUST(constant.stubborn != NULL);
    MUST(BIO_meth_set_write_ex(constant.stubborn, stubborn_write) == 1);
    MUST(BIO_meth_set_ctrl(constant.stubborn, stubborn_control) == 1);
    MUST(BIO_meth_set_create(constant.stubborn, stubborn_create) == 1);
    for (size_t i = 0; i < N_ANSWERS; i++) {
        char name[20];
        snprintf(name, sizeof name, "file-%zu", i);
        constant.files[i] = file_make(name, length_of(&answers[i]));
    }
    constant.memory = malloc(large);
    MUST(constant.memory != NULL);
    pattern_fill(constant.memory, large);
}

static void free_constants(void)
{
    for (size_t i = 0; i < N_ANSWERS; i++)
        close(constant.files[i]);
    free(constant.memory);
    BIO_meth_free(constant.stubborn);
    SSL_CTX_free(constant.client);
    SSL_CTX_free(constant.server);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes with write(2) */
    check_begin();
    if (getenv("SENDGATE_TEST_SLOW") != NULL)
        large = 400 * 1024 + 17;
    make_constants();
    every_answer();
    parts_at_the_end_of_a_step();
    key_updates();
    renegotiation();
    client_goes();
    client_stalls();
    in_the_kernel();
    free_constants();
    return check_end();
}
