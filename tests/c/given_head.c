/* Heads that the host has made itself: head and body leave together, whoever sends them.
 *
 * send, sendmsg and sendfile are this program's own, for the library too: they write down that they were called.
 */
#include "flight.h"
#include "interpose.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define SMALL 1000
#define LARGE (3 * 1024 * 1024 + 17)

/* ---- What was called ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* A letter for each: s send, S sendmsg, m and M the same with MSG_MORE, f sendfile. */
static char calls[100];
static size_t n_calls;

static void note(char call)
{
    pthread_mutex_lock(&lock);
    if (n_calls + 1 < sizeof calls)
        calls[n_calls++] = call;
    pthread_mutex_unlock(&lock);
}

ssize_t send(int fd, const void *data, size_t len, int flags)
{
    static ssize_t (*real)(int, const void *, size_t, int);
    FIND(real, "send");
    note((flags & MSG_MORE) != 0 ? 'm' : 's');
    return real(fd, data, len, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, const struct msghdr *, int);
    FIND(real, "sendmsg");
    note((flags & MSG_MORE) != 0 ? 'M' : 'S');
    return real(fd, message, flags);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t len)
{
    static ssize_t (*real)(int, int, off_t *, size_t);
    FIND(real, "sendfile");
    note('f');
    return real(out, in, offset, len);
}

/* The calls were these; with a plus behind them, more followed: how many depends on the room in the socket. */
static void check_calls(const char *want)
{
    size_t len = strcspn(want, "+");
    pthread_mutex_lock(&lock);
    if (!CHECK((want[len] == '+' ? n_calls >= len : n_calls == len) && memcmp(calls, want, len) == 0))
        printf("%.*s instead of %s\n", (int)n_calls, calls, want);
    pthread_mutex_unlock(&lock);
}

/* ---- Every way to send it ---- */

/* A head as the library would never write it. */
static char *head_make(size_t len)
{
    static const char line[] = "HTTP/1.1 200 Mine\r\nx-mine: ";
    char *head = malloc(len ? len : 1);
    MUST(head != NULL);
    memset(head, 'v', len);
    memcpy(head, line, len < sizeof line - 1 ? len : sizeof line - 1);
    if (len >= sizeof line + 3)
        memcpy(head + len - 4, "\r\n\r\n", 4);
    return head;
}

enum driver { RESPOND, STEP, BACKGROUND, AT_ONCE, N_DRIVERS };
static const char *const driver_names[] = {"respond", "step", "in the background", "at once"};

static const struct wanted {
    const char *name;
    size_t head;
    size_t size; /* of the file or the memory */
    int memory;
    uint32_t rep_flags;
    const char *method;
    const char *range;
    const char *if_none_match;
    uint32_t version;
    uint32_t status;
    sendgate_range part; /* length 0: no body */
    const char *calls;
} answers[] = {
    {"a small file", 100, SMALL, 0, 0, "GET", NULL, NULL, 11, 200, {0, SMALL}, "s"},
    {"a head longer than a handle has room for", 513, SMALL, 0, 0, "GET", NULL, NULL, 11, 200, {0, SMALL}, "s"},
    {"a head longer than what it is put together in", 20000, SMALL, 0, 0, "GET", NULL, NULL, 11, 200, {0, SMALL}, "ms"},
    {"a large file", 100, LARGE, 0, 0, "GET", NULL, NULL, 11, 200, {0, LARGE}, "mf+"},
    {"a large file behind a long head", 20000, LARGE, 0, 0, "GET", NULL, NULL, 11, 200, {0, LARGE}, "mf+"},
    {"a large file, copied", 100, 50000, 0, SENDGATE_REP_COPY, "GET", NULL, NULL, 11, 200, {0, 50000}, "m+"},
    {"memory", 100, SMALL, 1, 0, "GET", NULL, NULL, 11, 200, {0, SMALL}, "S"},
    {"memory behind a long head", 20000, SMALL, 1, 0, "GET", NULL, NULL, 11, 200, {0, SMALL}, "S"},
    {"much memory", 100, LARGE, 1, 0, "GET", NULL, NULL, 11, 200, {0, LARGE}, "S+"},
    {"a part", 100, LARGE, 0, 0, "GET", "bytes=100000-100099", NULL, 11, 206, {100000, 100}, "s"},
    {"nothing", 100, 0, 0, 0, "GET", NULL, NULL, 11, 200, {0, 0}, "s"},
    {"HEAD", 100, LARGE, 0, 0, "HEAD", NULL, NULL, 11, 200, {0, 0}, "s"},
    {"HEAD with a long head", 20000, SMALL, 1, 0, "HEAD", NULL, NULL, 11, 200, {0, 0}, "S"},
    {"304", 100, SMALL, 0, 0, "GET", NULL, "*", 11, 304, {0, 0}, "s"},
    {"416", 100, SMALL, 0, 0, "GET", "bytes=1000-", NULL, 11, 416, {0, 0}, "s"},
    {"HTTP/1.0", 100, SMALL, 0, 0, "GET", NULL, NULL, 10, 200, {0, SMALL}, "s"},
    {"an empty head", 0, SMALL, 0, 0, "GET", NULL, NULL, 11, 200, {0, SMALL}, "s"},
    {"an empty head before a large file", 0, LARGE, 0, 0, "GET", NULL, NULL, 11, 200, {0, LARGE}, "f+"},
    {"an empty head, and no body", 0, SMALL, 0, 0, "HEAD", NULL, NULL, 11, 200, {0, 0}, ""},
};

static char *memory;

static void ask_for(struct ask *ask, const struct wanted *wanted, int file, int sock, const char *head)
{
    if (wanted->memory)
        ask_memory(ask, memory, wanted->size, sock);
    else
        ask_file(ask, file, sock);
    ask->rep.flags |= wanted->rep_flags;
    ask->request.method = text(wanted->method);
    ask->request.version = wanted->version;
    if (wanted->range != NULL)
        ask->request.range = text(wanted->range);
    if (wanted->if_none_match != NULL)
        ask->request.if_none_match = text(wanted->if_none_match);
    ask->exchange.head = SENDGATE_HEAD_GIVEN;
    ask->exchange.head_text = text_of(head, wanted->head);
}

/* Sends it, and the head goes away as soon as it may. */
static void answer_by(enum driver driver, sendgate_sender *sender, struct flight *flight, char *head)
{
    struct ask *ask = &flight->ask;
    sendgate_status status;
    if (driver == RESPOND) {
        CHECK_STATUS(sendgate_respond(&ask->exchange, &ask->sink, &ask->result), SENDGATE_OK);
        free(head);
    } else if (driver == STEP) {
        sendgate_transfer *transfer = NULL;
        MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
        CHECK_STATUS(sendgate_transfer_start(transfer, &ask->exchange, &ask->sink), SENDGATE_OK);
        free(head);
        while ((status = sendgate_transfer_step(transfer, 0, &ask->result)) == SENDGATE_WANT_WRITE) {
            struct pollfd wait = {flight->sock, POLLOUT, 0};
            MUST(poll(&wait, 1, 60000) == 1);
        }
        CHECK_STATUS(status, SENDGATE_OK);
        sendgate_transfer_free(transfer);
    } else {
        ask->sink.flags = driver == AT_ONCE ? SENDGATE_SINK_TRY_NOW : 0;
        status = sendgate_sender_submit(sender, &ask->exchange, &ask->sink, flight, &flight->id, &ask->result);
        free(head);
        if (status == SENDGATE_PENDING) {
            flight_collect(sender, 1);
            const sendgate_completion *done = &flight->done;
            ask->result = (sendgate_result){sizeof ask->result, done->status, done->sys_errno, done->http_status,
                                            done->connection, done->head_sent, done->body_sent, done->body_length};
        } else {
            CHECK(driver == AT_ONCE);
            CHECK_STATUS(status, SENDGATE_OK);
        }
    }
}

static void every_answer(void)
{
    sendgate_sender *sender = sender_make(NULL);
    for (size_t i = 0; i < N(answers); i++) {
        const struct wanted *wanted = &answers[i];
        for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
            for (int driver = 0; driver < N_DRIVERS; driver++) {
                check_case("%s, %s, %s", wanted->name, kind_name((enum kind)kind), driver_names[driver]);
                struct flight flight;
                int file = file_new("answer", wanted->size);
                char *head = head_make(wanted->head), *same = head_make(wanted->head);
                flight_open(&flight, (enum kind)kind, driver != RESPOND);
                flight_read(&flight);
                ask_for(&flight.ask, wanted, file, flight.sock, head);
                n_calls = 0;
                answer_by((enum driver)driver, sender, &flight, head);
                check_calls(wanted->calls);
                check_result(&flight.ask.result, SENDGATE_OK, wanted->status,
                             wanted->version == 10 ? SENDGATE_CONN_CLOSE : SENDGATE_CONN_REUSABLE);
                CHECK_INT(flight.ask.result.head_sent, wanted->head);
                CHECK_INT(flight.ask.result.body_sent, wanted->part.length);
                flight_join(&flight);
                const struct peer *peer = &flight.peer;
                if (CHECK_INT(peer->len, wanted->head + wanted->part.length)) {
                    CHECK(wanted->head == 0 || memcmp(peer->data, same, wanted->head) == 0);
                    CHECK(is_pattern(peer->data + wanted->head, (size_t)wanted->part.length, wanted->part.offset));
                }
                free(same);
                close(file);
                flight_free(&flight);
            }
        }
    }
    sendgate_sender_free(sender);
}

/* ---- The other calls ---- */

/* What the library itself would say, given back to it, is the same answer, of several parts too. */
static void the_librarys_own(void)
{
    static const char *const ranges[] = {NULL, "bytes=5-9999", "bytes=0-9,10000-19998", "bytes=20000-"};
    static char heads[2][2000], bodies[2][30000];
    int file = file_new("answer", 20000);
    sendgate_transfer *transfer = NULL;
    MUST(sendgate_transfer_new(&transfer) == SENDGATE_OK);
    for (size_t r = 0; r < N(ranges); r++) {
        check_case("the library's own head, %s", ranges[r] ? ranges[r] : "all");
        struct ask ask;
        sendgate_decision decisions[2];
        size_t head_lens[2], lens[2] = {0, 0};
        memset(decisions, 0, sizeof decisions);
        ask_file(&ask, file, -1);
        ask.exchange.now = 1700000000;
        ask.exchange.seed = 42;
        if (ranges[r] != NULL)
            ask.request.range = text(ranges[r]);
        for (int given = 0; given < 2; given++) {
            if (given) {
                ask.exchange.head = SENDGATE_HEAD_GIVEN;
                ask.exchange.head_text = text_of(heads[0], head_lens[0]);
            }
            decisions[given].size = sizeof decisions[given];
            CHECK_STATUS(sendgate_decide(&ask.exchange, NULL, 0, &decisions[given]), SENDGATE_OK);
            CHECK_STATUS(sendgate_head_bytes(&ask.exchange, heads[given], sizeof heads[given], &head_lens[given]),
                         SENDGATE_OK);
            CHECK_STATUS(sendgate_transfer_start(transfer, &ask.exchange, NULL), SENDGATE_OK);
            size_t len;
            sendgate_status status;
            do {
                len = 0;
                status = sendgate_transfer_pull(transfer, (uint8_t *)bodies[given] + lens[given],
                                                sizeof bodies[given] - lens[given], &len, &ask.result);
                lens[given] += len;
            } while (status == SENDGATE_YIELD || (status == SENDGATE_OK && len > 0));
            CHECK_STATUS(status, SENDGATE_OK);
            CHECK_INT(ask.result.head_sent, head_lens[0]);
        }
        CHECK(memcmp(&decisions[0], &decisions[1], sizeof *decisions) == 0);
        CHECK(head_lens[0] == head_lens[1] && memcmp(heads[0], heads[1], head_lens[0]) == 0);
        CHECK(lens[0] == lens[1] && memcmp(bodies[0], bodies[1], lens[0]) == 0);
    }
    sendgate_transfer_free(transfer);
    close(file);
}

/* It is not looked at: anything may be in it. And its bytes are what sendgate_head_bytes gives, if there is room. */
static void head_bytes(void)
{
    static const char anything[] = "\0\r\n\xff" "no head at all";
    struct ask ask;
    char out[sizeof anything - 1];
    size_t len = 0;
    sendgate_field fields[20];
    char scratch[500];
    size_t n[2] = {0, 0};
    check_case("head_bytes");
    ask_memory(&ask, "content", 7, -1);
    ask.exchange.head = SENDGATE_HEAD_GIVEN;
    ask.exchange.head_text = text_of(anything, sizeof out);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, out, sizeof out - 1, &len), SENDGATE_ERR_NO_SPACE);
    CHECK_INT(len, sizeof out);
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, out, sizeof out, &len), SENDGATE_OK);
    CHECK(len == sizeof out && memcmp(out, anything, sizeof out) == 0);
    ask.exchange.head_text = text("");
    CHECK_STATUS(sendgate_head_bytes(&ask.exchange, out, sizeof out, &len), SENDGATE_OK);
    CHECK_INT(len, 0);

    check_case("head_fields: the library's, as without a head");
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, fields, N(fields), scratch, sizeof scratch, &n[0], NULL), SENDGATE_OK);
    ask.exchange.head = SENDGATE_HEAD_NONE;
    ask.exchange.head_text = text_of(NULL, 0);
    CHECK_STATUS(sendgate_head_fields(&ask.exchange, fields, N(fields), scratch, sizeof scratch, &n[1], NULL), SENDGATE_OK);
    CHECK(n[0] > 0 && n[0] == n[1]);
}

struct written {
    unsigned calls;
    char data[2 * SMALL];
    size_t len;
};

static sendgate_status write_down(void *user, const uint8_t *data, size_t len, size_t *written)
{
    struct written *to = user;
    MUST(to->len + len <= sizeof to->data);
    memcpy(to->data + to->len, data, len);
    to->len += len;
    to->calls++;
    *written = len;
    return SENDGATE_OK;
}

static void write_functions(void)
{
    check_case("a write function gets head and body in one call");
    static struct written written;
    struct ask ask;
    int file = file_new("answer", SMALL);
    char *head = head_make(100);
    ask_file(&ask, file, -1);
    ask.sink.write = write_down;
    ask.sink.user = &written;
    ask.exchange.head = SENDGATE_HEAD_GIVEN;
    ask.exchange.head_text = text_of(head, 100);
    CHECK_STATUS(sendgate_respond(&ask.exchange, &ask.sink, &ask.result), SENDGATE_OK);
    CHECK_INT(written.calls, 1);
    CHECK_INT(written.len, 100 + SMALL);
    CHECK(memcmp(written.data, head, 100) == 0 && is_pattern(written.data + 100, SMALL, 0));
    free(head);
    close(file);
}

int main(void)
{
    check_begin();
    int before = open_fds();
    memory = malloc(LARGE);
    MUST(memory != NULL);
    pattern_fill(memory, LARGE);
    every_answer();
    the_librarys_own();
    head_bytes();
    write_functions();
    free(memory);
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    return check_end();
}
