/* The header by itself: it is the first include, so that it must bring what it needs, and it is included
 * twice. tests/c.rs compiles this file as every supported C and C++ with every warning an error, -Wpadded
 * included: hidden padding would be bytes that nobody sets and that a later member could not use.
 *
 * Sizes and offsets are those of 0.1.0. They never change; new members only come behind these.
 */
#include <sendgate.h>
#include <sendgate.h>

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* A declaration that does not compile if the condition is false: C99 has no _Static_assert. */
#define ASSERT(name, condition) extern int assert_##name[(condition) ? 1 : -1]
#define OFFSET(type, member, at) ASSERT(type##_##member, offsetof(type, member) == (at))

#if UINTPTR_MAX == 0xffffffffffffffff
ASSERT(sendgate_str_size, sizeof(struct sendgate_str) == 16);
OFFSET(sendgate_str, ptr, 0);
OFFSET(sendgate_str, len, 8);

ASSERT(sendgate_request_size, sizeof(struct sendgate_request) == 160);
OFFSET(sendgate_request, size, 0);
OFFSET(sendgate_request, method, 8);
OFFSET(sendgate_request, version, 24);
OFFSET(sendgate_request, flags, 28);
OFFSET(sendgate_request, connection, 32);
OFFSET(sendgate_request, if_match, 48);
OFFSET(sendgate_request, if_none_match, 64);
OFFSET(sendgate_request, if_modified_since, 80);
OFFSET(sendgate_request, if_unmodified_since, 96);
OFFSET(sendgate_request, if_range, 112);
OFFSET(sendgate_request, range, 128);
OFFSET(sendgate_request, target, 144);

ASSERT(sendgate_field_size, sizeof(struct sendgate_field) == 32);
OFFSET(sendgate_field, name, 0);
OFFSET(sendgate_field, value, 16);

ASSERT(sendgate_rep_size, sizeof(struct sendgate_rep) == 88);
OFFSET(sendgate_rep, size, 0);
OFFSET(sendgate_rep, kind, 8);
OFFSET(sendgate_rep, flags, 12);
OFFSET(sendgate_rep, fd, 16);
OFFSET(sendgate_rep, mtime_nsec, 20);
OFFSET(sendgate_rep, offset, 24);
OFFSET(sendgate_rep, length, 32);
OFFSET(sendgate_rep, memory, 40);
OFFSET(sendgate_rep, mtime, 48);
OFFSET(sendgate_rep, etag, 56);
OFFSET(sendgate_rep, content_type, 72);

ASSERT(sendgate_header_size, sizeof(struct sendgate_header) == 40);
OFFSET(sendgate_header, field, 0);
OFFSET(sendgate_header, rule, 32);
OFFSET(sendgate_header, reserved, 36);

ASSERT(sendgate_exchange_size, sizeof(struct sendgate_exchange) == 88);
OFFSET(sendgate_exchange, size, 0);
OFFSET(sendgate_exchange, request, 8);
OFFSET(sendgate_exchange, rep, 16);
OFFSET(sendgate_exchange, headers, 24);
OFFSET(sendgate_exchange, n_headers, 32);
OFFSET(sendgate_exchange, now, 40);
OFFSET(sendgate_exchange, seed, 48);
OFFSET(sendgate_exchange, head, 56);
OFFSET(sendgate_exchange, head_flags, 60);
OFFSET(sendgate_exchange, max_ranges, 64);
OFFSET(sendgate_exchange, http_status, 68);
OFFSET(sendgate_exchange, head_text, 72);

ASSERT(sendgate_range_size, sizeof(struct sendgate_range) == 16);
OFFSET(sendgate_range, offset, 0);
OFFSET(sendgate_range, length, 8);

ASSERT(sendgate_decision_size, sizeof(struct sendgate_decision) == 48);
OFFSET(sendgate_decision, size, 0);
OFFSET(sendgate_decision, http_status, 8);
OFFSET(sendgate_decision, keep_alive, 12);
OFFSET(sendgate_decision, content_length, 16);
OFFSET(sendgate_decision, body_length, 24);
OFFSET(sendgate_decision, n_ranges, 32);
OFFSET(sendgate_decision, framing, 40);
OFFSET(sendgate_decision, reserved, 44);

ASSERT(sendgate_sink_size, sizeof(struct sendgate_sink) == 56);
OFFSET(sendgate_sink, size, 0);
OFFSET(sendgate_sink, write, 8);
OFFSET(sendgate_sink, user, 16);
OFFSET(sendgate_sink, fd, 24);
OFFSET(sendgate_sink, flags, 28);
OFFSET(sendgate_sink, idle_timeout_ms, 32);
OFFSET(sendgate_sink, total_timeout_ms, 36);
OFFSET(sendgate_sink, min_rate, 40);
OFFSET(sendgate_sink, fcgi_request_id, 48);
OFFSET(sendgate_sink, reserved, 52);

ASSERT(sendgate_source_size, sizeof(struct sendgate_source) == 48);
OFFSET(sendgate_source, size, 0);
OFFSET(sendgate_source, read, 8);
OFFSET(sendgate_source, user, 16);
OFFSET(sendgate_source, fd, 24);
OFFSET(sendgate_source, flags, 28);
OFFSET(sendgate_source, idle_timeout_ms, 32);
OFFSET(sendgate_source, total_timeout_ms, 36);
OFFSET(sendgate_source, min_rate, 40);

ASSERT(sendgate_received_size, sizeof(struct sendgate_received) == 32);
OFFSET(sendgate_received, size, 0);
OFFSET(sendgate_received, status, 8);
OFFSET(sendgate_received, sys_errno, 12);
OFFSET(sendgate_received, received, 16);
OFFSET(sendgate_received, stored, 24);

ASSERT(sendgate_sender_options_size, sizeof(struct sendgate_sender_options) == 32);
OFFSET(sendgate_sender_options, size, 0);
OFFSET(sendgate_sender_options, max_in_flight, 8);
OFFSET(sendgate_sender_options, turn_bytes, 12);
OFFSET(sendgate_sender_options, on_ready, 16);
OFFSET(sendgate_sender_options, user, 24);

ASSERT(sendgate_completion_size, sizeof(struct sendgate_completion) == 64);
OFFSET(sendgate_completion, token, 0);
OFFSET(sendgate_completion, id, 8);
OFFSET(sendgate_completion, status, 16);
OFFSET(sendgate_completion, sys_errno, 20);
OFFSET(sendgate_completion, http_status, 24);
OFFSET(sendgate_completion, connection, 28);
OFFSET(sendgate_completion, head_sent, 32);
OFFSET(sendgate_completion, body_sent, 40);
OFFSET(sendgate_completion, body_length, 48);
OFFSET(sendgate_completion, elapsed_ns, 56);

ASSERT(sendgate_result_size, sizeof(struct sendgate_result) == 48);
OFFSET(sendgate_result, size, 0);
OFFSET(sendgate_result, status, 8);
OFFSET(sendgate_result, sys_errno, 12);
OFFSET(sendgate_result, http_status, 16);
OFFSET(sendgate_result, connection, 20);
OFFSET(sendgate_result, head_sent, 24);
OFFSET(sendgate_result, body_sent, 32);
OFFSET(sendgate_result, body_length, 40);

#endif

ASSERT(status_width, sizeof(sendgate_status) == 4);
/* Signed: errors are negative. */
ASSERT(status_sign, SENDGATE_ERR_INVALID < SENDGATE_OK && SENDGATE_OK < SENDGATE_WANT_WRITE);

/* "{0}" is not every C++ compiler's favourite; static storage is zero in both languages. */
static sendgate_exchange exchange;
static sendgate_rep rep;
static sendgate_decision decision;

int main(void)
{
    uint32_t version = (uint32_t)SENDGATE_VERSION_MAJOR << 16 | SENDGATE_VERSION_MINOR << 8 | SENDGATE_VERSION_PATCH;
    if (sendgate_version() != version) {
        fprintf(stderr, "header is %x, library is %x\n", (unsigned)version, (unsigned)sendgate_version());
        return 1;
    }
#ifdef __linux__
    const uint64_t features = SENDGATE_FEATURE_SENDFILE | SENDGATE_FEATURE_SENDER;
    if ((sendgate_features() & features) != features) {
        fprintf(stderr, "features: %llx\n", (unsigned long long)sendgate_features());
        return 1;
    }
#endif
    exchange.size = sizeof exchange;
    exchange.rep = &rep;
    rep.size = sizeof rep;
    rep.kind = SENDGATE_REP_MEMORY;
    rep.memory = "hello";
    rep.length = 5;
    decision.size = sizeof decision;
    sendgate_status status = sendgate_decide(&exchange, NULL, 0, &decision);
    if (status != SENDGATE_OK || decision.http_status != 200 || decision.content_length != 5) {
        fprintf(stderr, "%s: %s\n", sendgate_status_name(status), sendgate_status_message(status));
        return 1;
    }
    puts("3 checks passed, 0 failed");
    return 0;
}
