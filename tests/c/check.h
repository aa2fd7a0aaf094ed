/* What the programs in this directory share: checks that say what failed, files of a known content,
 * socket pairs, a peer that reads, and the bytes it read taken apart.
 *
 * The programs make their files in the current directory; tests/c.rs runs each in an empty one.
 */
#ifndef CHECK_H
#define CHECK_H

#include <pthread.h>
#include <sendgate.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

/* A check that fails is printed and counted, and the program goes on. */
#define CHECK(condition) check_true((condition) ? 1 : 0, #condition, __FILE__, __LINE__)
#define CHECK_INT(got, want) check_int((long long)(got), (long long)(want), #got, __FILE__, __LINE__)
#define CHECK_STATUS(got, want) check_status(got, want, #got, __FILE__, __LINE__)
/* What the test itself needs: without it there is nothing to check, so the program ends. */
#define MUST(condition) must((condition) ? 1 : 0, #condition, __FILE__, __LINE__)

/* Waits for what only looking can tell. */
#define UNTIL(condition)                                                                                               \
    do {                                                                                                               \
        int64_t until_ = now_ms() + 60000;                                                                             \
        while (!(condition)) {                                                                                         \
            MUST(now_ms() < until_);                                                                                   \
            usleep(500);                                                                                               \
        }                                                                                                              \
    } while (0)

int check_true(int ok, const char *what, const char *file, int line);
int check_int(long long got, long long want, const char *what, const char *file, int line);
int check_status(sendgate_status got, sendgate_status want, const char *what, const char *file, int line);
void must(int ok, const char *what, const char *file, int line);
/* Printed with each failure from now on: the case that is being run. */
void check_case(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Starts the watchdog: a program that hangs dies of SIGALRM instead. */
void check_begin(void);
/* What main returns. Says how many checks passed; tests/c.rs looks for that line. */
int check_end(void);

/* A string literal with the NULs in it, and a NUL-terminated string. */
#define LITERAL(text) text_of(text, sizeof(text) - 1)
sendgate_str text_of(const char *bytes, size_t len);
sendgate_str text(const char *string);

/* The content of all files here is one pattern. Whether the bytes are those from `offset` on. */
int is_pattern(const void *bytes, size_t len, uint64_t offset);
/* The first `len` bytes of it. */
void pattern_fill(void *bytes, size_t len);
/* Make or replace the file `name` with `len` bytes of the pattern, last changed in 2020 (old enough
 * for a strong entity tag), and open it for reading. */
int file_make(const char *name, size_t len);
/* The same as a new file in place of the one of that name, which others may still be reading. */
int file_new(const char *name, size_t len);
/* Make or replace the file `name` with `len` bytes like this one, or as many more as make it whole pages. */
void file_fill(const char *name, char byte, size_t len);
/* Make or replace a file of zeros that takes no room, open for reading and writing. */
int file_sparse(const char *name, off_t len);
/* How many descriptors this process has open. */
int open_fds(void);
/* Milliseconds of the monotonic clock. */
int64_t now_ms(void);

enum kind { UNIX_PAIR, TCP_PAIR };
/* Two connected stream sockets: ours first, the peer's second. */
void make_pair(enum kind kind, int nonblocking, int sockets[2]);
const char *kind_name(enum kind kind);
/* Nothing can be written to it now. Another descriptor of the same socket will do. */
int socket_is_full(int sock);

/* A peer that reads, in a thread of its own, until the connection ends. */
struct peer {
    int fd;
    pthread_t thread;
    char *data;
    size_t len;
    size_t cap;
    size_t stop_at; /* close, without reading on, after this many bytes; 0: at the end */
    int truncate_fd; /* with stop_at: do not close but ftruncate this to truncate_to, and read on */
    int64_t truncate_to;
    unsigned pause_ms; /* before each read, of at most 64 KiB */
    size_t chunk; /* read at most that much at once, instead of 64 KiB */
    size_t rate; /* read at most that many bytes a second, evenly; 0: as many as there are */
    int64_t longest_ms; /* between two reads: how evenly it was */
    int reset; /* with stop_at: close with a reset */
};
/* Zeroed, but for the fd, which the peer will close. */
void peer_init(struct peer *peer, int fd);
void peer_start(struct peer *peer);
/* Waits for the end of the connection. */
void peer_join(struct peer *peer);
/* Ends the peer where it is. */
void peer_abandon(struct peer *peer);
void peer_free(struct peer *peer);
/* Read what is there now without waiting: how many bytes; -1 at the end of the connection. */
long peer_take(int fd, char *buf, size_t cap);
/* Read all that is there now and throw it away: how many bytes. */
size_t peer_drain(int fd);

/* An answer taken apart; points into the bytes it was made from. */
struct answer {
    int status; /* 0: not an answer of HTTP/1.1 */
    const char *head;
    size_t head_len; /* with the empty line */
    const char *body;
    size_t body_len;
};
void answer_of(struct answer *answer, const char *data, size_t len);
/* How often the field occurs; its first value, NUL-terminated, goes to `value`. */
int answer_field(const struct answer *answer, const char *name, char *value, size_t cap);
/* The first value as a number; -1: not there. */
long long answer_number(const struct answer *answer, const char *name);
/* Whether `needle` occurs in the bytes. */
int contains(const char *data, size_t len, const char *needle);
/* The body is multipart/byteranges with just these parts of the pattern of a file of `total` bytes. */
void check_multipart(const struct answer *answer, const sendgate_range *ranges, size_t n, uint64_t total);
/* Content-Range and the body are right for these parts of that pattern: none, one, or several as multipart/byteranges. */
void check_content(const struct answer *answer, const sendgate_range *ranges, size_t n, uint64_t total);

/* One exchange with all its structs, which point at each other: do not copy. */
struct ask {
    sendgate_request request;
    sendgate_rep rep;
    sendgate_exchange exchange;
    sendgate_sink sink;
    sendgate_result result;
    char etag[SENDGATE_ETAG_MAX];
};
/* GET for the whole open file, to be sent to `sock`. */
void ask_file(struct ask *ask, int file, int sock);
/* GET for memory, without validators. */
void ask_memory(struct ask *ask, const void *memory, size_t len, int sock);
/* The result is for this status and outcome, and agrees with itself. */
void check_result(const sendgate_result *result, sendgate_status status, uint32_t http_status, uint32_t connection);

#endif
