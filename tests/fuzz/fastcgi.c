/* What a front server may send: any bytes. A parser that gets them at once and one that gets them in pieces say the
 * same, the pointers they give are within what they were given, and nothing of it is remembered afterwards.
 */
#include <sendgate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct seen {
    uint8_t *bytes;
    size_t len;
    uint32_t last;
};

static void put(struct seen *seen, const void *bytes, size_t len)
{
    memcpy(seen->bytes + seen->len, bytes, len);
    seen->len += len;
}

static void must(int ok)
{
    if (!ok)
        abort();
}

/* Appends what has happened. Content in several pieces counts as one. */
static void see(struct seen *seen, sendgate_fcgi *fcgi, const sendgate_fcgi_event *event)
{
    if (!(event->kind == SENDGATE_FCGI_STDIN && event->data.len > 0 && seen->last == SENDGATE_FCGI_STDIN))
        put(seen, &event->kind, sizeof event->kind);
    seen->last = event->kind == SENDGATE_FCGI_STDIN && event->data.len == 0 ? 0 : event->kind;
    put(seen, event->data.ptr, event->data.len);
    for (size_t i = 0; i < event->n_params; i++) {
        put(seen, event->params[i].name.ptr, event->params[i].name.len);
        put(seen, event->params[i].value.ptr, event->params[i].value.len);
    }
    if (event->kind == SENDGATE_FCGI_PARAMS) {
        sendgate_request req;
        memset(&req, 0, sizeof req);
        req.size = sizeof req;
        must(sendgate_request_from_params(&req, event->params, event->n_params) == SENDGATE_OK);
    }
    if (event->kind == SENDGATE_FCGI_ABORT || (event->kind == SENDGATE_FCGI_STDIN && event->data.len == 0))
        must(sendgate_fcgi_end(fcgi) == SENDGATE_OK);
}

static void parse(const uint8_t *data, size_t size, uint32_t seed, struct seen *seen)
{
    sendgate_fcgi_options options;
    sendgate_fcgi *fcgi = NULL;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.max_params = 500;
    must(sendgate_fcgi_new(&options, &fcgi) == SENDGATE_OK);
    for (size_t at = 0; at < size;) {
        seed = seed * 1664525u + 1013904223u;
        size_t piece = seed == 0 || (seed >> 24) == 0 ? size - at : (seed >> 24) % 40 + 1;
        piece = piece < size - at ? piece : size - at;
        /* In a block of its own, so that what reads past it is noticed. */
        uint8_t *copy = malloc(piece);
        memcpy(copy, data + at, piece);
        for (size_t done = 0; done < piece;) {
            sendgate_fcgi_event event;
            memset(&event, 0, sizeof event);
            event.size = sizeof event;
            size_t used = 0;
            sendgate_status rc = sendgate_fcgi_feed(fcgi, copy + done, piece - done, &used, &event);
            if (rc == SENDGATE_ERR_FASTCGI) {
                put(seen, "malformed", 9);
                free(copy);
                sendgate_fcgi_free(fcgi);
                return;
            }
            must(rc >= 0 && used > 0 && used <= piece - done);
            if (rc == SENDGATE_OK)
                see(seen, fcgi, &event);
            else
                must(used == piece - done && event.kind == SENDGATE_FCGI_NOTHING);
            done += used;
        }
        free(copy);
        at += piece;
    }
    sendgate_fcgi_free(fcgi);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t seed = 1;
    size_t n = 0;
    if (size < 4)
        return 0;
    memcpy(&seed, data, 4);
    data += 4;
    size -= 4;
    /* Each event costs at least 8 bytes of input, and a reply is at most 128. */
    struct seen whole = {malloc(size * 20 + 200), 0, 0}, pieces = {malloc(size * 20 + 200), 0, 0};
    parse(data, size, 0xffffffffu - 0xffffffffu, &whole);
    parse(data, size, seed | 1, &pieces);
    must(whole.len == pieces.len && memcmp(whole.bytes, pieces.bytes, whole.len) == 0);
    free(whole.bytes);
    free(pieces.bytes);
    /* And as a stream of parameters: what is read is written as it may be. */
    sendgate_status rc = sendgate_fcgi_decode_params(data, size, NULL, 0, &n);
    if (rc == SENDGATE_ERR_NO_SPACE) {
        sendgate_field *params = malloc(n * sizeof *params);
        uint8_t *again = malloc(size);
        size_t len = 0;
        must(sendgate_fcgi_decode_params(data, size, params, n, &n) == SENDGATE_OK);
        must(sendgate_fcgi_encode_params(params, n, again, size, &len) == SENDGATE_OK && len <= size);
        free(again);
        free(params);
    }
    return 0;
}
