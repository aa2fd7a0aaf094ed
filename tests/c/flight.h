/* flight.h - responses in the background, for the tests of senders. */
#ifndef FLIGHT_H
#define FLIGHT_H

#include "check.h"

/* A sender; NULL: the default options. */
sendgate_sender *sender_make(const sendgate_sender_options *options);
/* Wait for the next completion. */
void sender_next(sendgate_sender *sender, sendgate_completion *completion);
/* Nothing is there to be taken, and the sender's descriptor says so. */
void check_sender_empty(sendgate_sender *sender);
/* The completion is for this status and outcome, and agrees with itself. */
void check_completion(const sendgate_completion *completion, sendgate_status status, uint32_t http_status,
                      uint32_t connection);

/* One response in the background: our end of a connection, the peer, and what was asked for. */
struct flight {
    int sock; /* ours; -1: closed */
    struct peer peer;
    int reading; /* the peer's thread runs */
    struct ask ask;
    uint64_t id;
    int reported;
    sendgate_completion done;
};
/* Makes the connection. The peer does not read yet. */
void flight_open(struct flight *flight, enum kind kind, int nonblocking);
/* The peer reads from now on. */
void flight_read(struct flight *flight);
/* What was asked for goes to the sender's thread. */
void flight_submit(struct flight *flight, sendgate_sender *sender);
/* The same with a GET for the open file, which is closed at once. */
void flight_send(struct flight *flight, sendgate_sender *sender, int file);
/* Takes that many completions, and gives each to its flight, once. Returns the last. */
struct flight *flight_collect(sendgate_sender *sender, size_t n);
/* Closes our end. */
void flight_hang_up(struct flight *flight);
/* Closes our end, and waits until the peer has read to the end of the connection. */
void flight_join(struct flight *flight);
/* The peer got just what was counted: a head, and the beginning of the pattern from `from` on. */
void flight_check(const struct flight *flight, uint64_t from);
/* The peer got a 200 with all of a file of `len` bytes. Joins and frees. */
void flight_check_whole(struct flight *flight, size_t len);
/* Submitting is refused like this: nothing is sent, written or opened. */
void flight_check_refused(struct flight *flight, sendgate_sender *sender, sendgate_status status, int sys_errno);
void flight_free(struct flight *flight);
/* A response through this sender, from its beginning to its end: it still works. */
void check_sender_works(sendgate_sender *sender);

#endif
