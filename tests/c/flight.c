#include "flight.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

sendgate_sender *sender_make(const sendgate_sender_options *options)
{
    sendgate_sender *sender = NULL;
    int32_t error = 0;
    sendgate_status status = sendgate_sender_new(options, &sender, &error);
    errno = error;
    MUST(status == SENDGATE_OK && sender != NULL);
    return sender;
}

void sender_next(sendgate_sender *sender, sendgate_completion *completion)
{
    size_t n = 0;
    for (;;) {
        struct pollfd wait = {sendgate_sender_fd(sender), POLLIN, 0};
        int ready = poll(&wait, 1, 60000);
        if (ready < 0 && errno == EINTR)
            continue;
        MUST(ready == 1 && wait.revents == POLLIN);
        /* Another thread may have been faster. */
        sendgate_status status = sendgate_sender_take(sender, completion, 1, &n);
        if (status == SENDGATE_OK)
            break;
        MUST(status == SENDGATE_EMPTY);
    }
    CHECK_INT(n, 1);
}

void check_sender_empty(sendgate_sender *sender)
{
    sendgate_completion completion;
    size_t n = 1;
    struct pollfd look = {sendgate_sender_fd(sender), POLLIN, 0};
    CHECK_INT(poll(&look, 1, 0), 0);
    CHECK_STATUS(sendgate_sender_take(sender, &completion, 1, &n), SENDGATE_EMPTY);
    CHECK_INT(n, 0);
}

void check_completion(const sendgate_completion *completion, sendgate_status status, uint32_t http_status,
                      uint32_t connection)
{
    CHECK_STATUS(completion->status, status);
    CHECK_INT(completion->http_status, http_status);
    CHECK_INT(completion->connection, connection);
    CHECK(completion->body_sent <= completion->body_length);
    CHECK(completion->elapsed_ns > 0);
    if (status != SENDGATE_OK)
        CHECK((completion->connection == SENDGATE_CONN_UNTOUCHED) ==
              (completion->head_sent + completion->body_sent == 0));
    if (status != SENDGATE_ERR_IO && status != SENDGATE_ERR_PEER_CLOSED)
        CHECK_INT(completion->sys_errno, 0);
    if (status == SENDGATE_OK)
        CHECK_INT(completion->body_sent, completion->body_length);
}

void flight_open(struct flight *flight, enum kind kind, int nonblocking)
{
    int sockets[2];
    memset(flight, 0, sizeof *flight);
    make_pair(kind, nonblocking, sockets);
    flight->sock = sockets[0];
    peer_init(&flight->peer, sockets[1]);
}

void flight_read(struct flight *flight)
{
    peer_start(&flight->peer);
    flight->reading = 1;
}

void flight_submit(struct flight *flight, sendgate_sender *sender)
{
    sendgate_result *result = &flight->ask.result;
    CHECK_STATUS(sendgate_sender_submit(sender, &flight->ask.exchange, &flight->ask.sink, flight, &flight->id, result),
                 SENDGATE_PENDING);
    CHECK_STATUS(result->status, SENDGATE_PENDING);
    CHECK_INT(result->head_sent + result->body_sent, 0);
    CHECK(flight->id != 0);
}

void flight_send(struct flight *flight, sendgate_sender *sender, int file)
{
    ask_file(&flight->ask, file, flight->sock);
    flight_submit(flight, sender);
    close(file);
}

void flight_hang_up(struct flight *flight)
{
    if (flight->sock >= 0)
        close(flight->sock);
    flight->sock = -1;
}

void flight_join(struct flight *flight)
{
    flight_hang_up(flight);
    if (!flight->reading)
        flight_read(flight);
    peer_join(&flight->peer);
    flight->reading = 0;
}

void flight_free(struct flight *flight)
{
    peer_free(&flight->peer);
}

struct flight *flight_collect(sendgate_sender *sender, size_t n)
{
    struct flight *flight = NULL;
    for (; n > 0; n--) {
        sendgate_completion completion;
        sender_next(sender, &completion);
        flight = completion.token;
        CHECK_INT(completion.id, flight->id);
        CHECK_INT(flight->reported++, 0);
        flight->done = completion;
    }
    return flight;
}

void flight_check(const struct flight *flight, uint64_t from)
{
    struct answer answer;
    CHECK_INT(flight->peer.len, flight->done.head_sent + flight->done.body_sent);
    answer_of(&answer, flight->peer.data, flight->peer.len);
    if (flight->done.body_sent > 0) {
        CHECK_INT(answer.head_len, flight->done.head_sent);
        CHECK(is_pattern(answer.body, answer.body_len, from));
    }
}

void flight_check_whole(struct flight *flight, size_t len)
{
    struct answer answer;
    check_completion(&flight->done, SENDGATE_OK, 200, SENDGATE_CONN_REUSABLE);
    flight_join(flight);
    flight_check(flight, 0);
    answer_of(&answer, flight->peer.data, flight->peer.len);
    CHECK_INT(answer.status, 200);
    CHECK_INT(answer_number(&answer, "Content-Length"), len);
    CHECK_INT(answer.body_len, len);
    flight_free(flight);
}

void check_sender_works(sendgate_sender *sender)
{
    struct flight flight;
    flight_open(&flight, UNIX_PAIR, 1);
    flight_send(&flight, sender, file_new("works", 20000));
    flight_collect(sender, 1);
    flight_check_whole(&flight, 20000);
}

void flight_check_refused(struct flight *flight, sendgate_sender *sender, sendgate_status status, int sys_errno)
{
    char byte;
    int before = open_fds();
    uint64_t id = 42;
    sendgate_result *result = &flight->ask.result;
    CHECK_STATUS(sendgate_sender_submit(sender, &flight->ask.exchange, &flight->ask.sink, flight, &id, result), status);
    CHECK_STATUS(result->status, status);
    CHECK_INT(result->sys_errno, sys_errno);
    CHECK_INT(result->connection, SENDGATE_CONN_UNTOUCHED);
    CHECK_INT(result->head_sent + result->body_sent, 0);
    CHECK_INT(id, 42);
    CHECK_INT(peer_take(flight->peer.fd, &byte, 1), 0);
    CHECK_INT(open_fds(), before);
}
