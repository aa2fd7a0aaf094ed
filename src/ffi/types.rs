//! The C structs and constants of `include/sendgate.h`, under their C names.
//!
//! Comments here are written for the C reader: cbindgen copies them into the header.

#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void};

// ---- Version and features ----

/// The version this header belongs to; `sendgate_version` tells the loaded library's.
pub const SENDGATE_VERSION_MAJOR: u32 = 0;
/// See SENDGATE_VERSION_MAJOR.
pub const SENDGATE_VERSION_MINOR: u32 = 1;
/// See SENDGATE_VERSION_MAJOR.
pub const SENDGATE_VERSION_PATCH: u32 = 0;

/// Files leave by a copy inside the kernel; without it, by pread and send.
pub const SENDGATE_FEATURE_SENDFILE: u64 = 0x1;
/// The background sender is in this build.
pub const SENDGATE_FEATURE_SENDER: u64 = 0x2;

// ---- Values: these four never change ----

/// Borrowed bytes. ptr NULL is absent; ptr set with len 0 is present and empty.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_str {
    /// First byte; not NUL-terminated.
    pub ptr: *const c_char,
    /// Number of bytes.
    pub len: usize,
}

/// One header field, laid out as picohttpparser's phr_header is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_field {
    /// A token (RFC 9110 5.1); case does not matter.
    pub name: sendgate_str,
    /// Without CR, LF and NUL.
    pub value: sendgate_str,
}

/// A span of the representation, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct sendgate_range {
    /// First byte, counted from 0.
    pub offset: u64,
    /// Number of bytes, never 0.
    pub length: u64,
}

/// A field of the response, and who wins when the library produces the same field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_header {
    /// Name and value; CR, LF, NUL or a name that is no token is SENDGATE_ERR_FIELD.
    pub field: sendgate_field,
    /// One SENDGATE_RULE_, optionally with SENDGATE_RULE_FROZEN.
    pub rule: u32,
    /// Zero.
    pub reserved: u32,
}

/// The library's field wins if it produces one, otherwise this one is sent.
///
/// For every rule: Content-Range, Transfer-Encoding, Connection and Keep-Alive are the library's
/// own, and naming one is SENDGATE_ERR_FIELD, as is a Content-Length other than the
/// representation's length, or a field twice that may occur only once. (With a status of your own
/// other than 200 a Content-Range of yours is sent as it is.)
pub const SENDGATE_RULE_DEFAULT: u32 = 0;
/// This field replaces the library's: an ETag or Last-Modified is then also the one that the
/// request's conditions are compared with. A malformed ETag is SENDGATE_ERR_FIELD.
pub const SENDGATE_RULE_OVERRIDE: u32 = 1;
/// Both are sent: Set-Cookie, Vary, Link. SENDGATE_ERR_FIELD for fields that may occur only once.
pub const SENDGATE_RULE_APPEND: u32 = 2;
/// Neither is sent; the value is ignored.
pub const SENDGATE_RULE_REMOVE: u32 = 3;
/// A flag: sent unchanged, whatever the library has, and even where a 304, 412 or 416 would drop it
/// (Date also with SENDGATE_HEAD_CGI).
pub const SENDGATE_RULE_FROZEN: u32 = 0x10;

// ---- The request ----

/// The request announces content that has not been read: the connection is not reused after the
/// answer, because the unread content would be taken for the next request.
pub const SENDGATE_REQUEST_HAS_BODY: u32 = 0x1;

/// What the decision depends on. A field sent on several lines is one value, joined with ", "
/// (RFC 9110 5.3); sendgate_request_from_fields does that.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_request {
    /// sizeof(sendgate_request).
    pub size: usize,
    /// "GET"; case-sensitive. Conditions apply as RFC 9110 13.2.2 says, ranges to GET only, and
    /// no body follows HEAD.
    pub method: sendgate_str,
    /// 10 is HTTP/1.0, 11 is HTTP/1.1; 0 means 11.
    pub version: u32,
    /// SENDGATE_REQUEST_HAS_BODY.
    pub flags: u32,
    /// Decides whether the connection may be reused.
    pub connection: sendgate_str,
    /// If-Match, RFC 9110 13.1.1.
    pub if_match: sendgate_str,
    /// If-None-Match, RFC 9110 13.1.2.
    pub if_none_match: sendgate_str,
    /// If-Modified-Since, RFC 9110 13.1.3.
    pub if_modified_since: sendgate_str,
    /// If-Unmodified-Since, RFC 9110 13.1.4.
    pub if_unmodified_since: sendgate_str,
    /// If-Range, RFC 9110 13.1.5.
    pub if_range: sendgate_str,
    /// Range, RFC 9110 14.2.
    pub range: sendgate_str,
    /// The request target as received. Only sendgate_request_from_head fills it; nothing reads it.
    pub target: sendgate_str,
}

// ---- The representation ----

/// The representation is a span of a file.
pub const SENDGATE_REP_FILE: u32 = 0;
/// The representation is memory of the caller's.
pub const SENDGATE_REP_MEMORY: u32 = 1;
/// The representation is produced by the caller while it is sent: for sendgate_stream_start, and to
/// decide. length is that of all of it.
pub const SENDGATE_REP_STREAM: u32 = 2;

/// mtime and mtime_nsec are set.
pub const SENDGATE_REP_HAS_MTIME: u32 = 0x1;
/// The entity tag was made from the modification time, so it is weak while that time is too
/// recent to tell two changes apart: for 1 second, or 2 where mtime_nsec is 0 (RFC 9110 8.8.1).
pub const SENDGATE_REP_ETAG_FROM_MTIME: u32 = 0x2;
/// Copy the file through memory instead of sendfile, which sends later in-place writes and
/// truncations of the file even for bytes already handed over.
pub const SENDGATE_REP_COPY: u32 = 0x4;
/// fstat before each step, and SENDGATE_ERR_CHANGED if size or modification time differ.
pub const SENDGATE_REP_CHECK: u32 = 0x8;
/// STREAM: nobody knows how long it will be; length is 0. It is sent in chunks, or to HTTP/1.0 up
/// to the end of the connection.
pub const SENDGATE_REP_UNSIZED: u32 = 0x10;
/// STREAM: the caller can produce any part of it, so ranges are answered. Not with
/// SENDGATE_REP_UNSIZED.
pub const SENDGATE_REP_SEEKABLE: u32 = 0x20;

/// Enough for every entity tag that sendgate_rep_from_fd makes.
pub const SENDGATE_ETAG_MAX: usize = 96;
/// Put the inode number into the entity tag: notices a replaced file whose time and size were
/// kept, but differs between the servers of a cluster.
pub const SENDGATE_ETAG_INODE: u32 = 0x1;
/// Put the status change time into the entity tag: notices a restored modification time, but
/// differs between the servers of a cluster.
pub const SENDGATE_ETAG_CTIME: u32 = 0x2;
/// sendgate_open: follow symbolic links that lead out of the directory.
pub const SENDGATE_OPEN_OUTSIDE: u32 = 0x10;

/// What is sent, and its validators.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_rep {
    /// sizeof(sendgate_rep).
    pub size: usize,
    /// SENDGATE_REP_FILE, _MEMORY or _STREAM.
    pub kind: u32,
    /// SENDGATE_REP_ flags.
    pub flags: u32,
    /// FILE: a regular file opened for reading.
    pub fd: i32,
    /// Nanoseconds within mtime, 0 to 999999999.
    pub mtime_nsec: u32,
    /// FILE: first byte of the representation within the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// MEMORY: unchanged until the response is done. A mapping of a file that is cut short
    /// meanwhile is an error on a socket; a pull or a write function touches it in user space,
    /// where that is SIGBUS.
    pub memory: *const c_void,
    /// Seconds since 1970, UTC; negative: before, and then Last-Modified is left out.
    pub mtime: i64,
    /// With its quotes, and W/ if weak; absent: no entity tag.
    pub etag: sendgate_str,
    /// Content-Type; absent: none is sent.
    pub content_type: sendgate_str,
}

// ---- The exchange ----

/// "HTTP/1.1 206 Partial Content".
pub const SENDGATE_HEAD_HTTP1: u32 = 0;
/// "Status: 206 Partial Content", without Date and Connection: CGI and FastCGI (RFC 3875 6.3).
pub const SENDGATE_HEAD_CGI: u32 = 1;
/// Body only: the caller sends the head itself.
pub const SENDGATE_HEAD_NONE: u32 = 2;
/// head_text in the head's place: for a caller that makes its heads itself, and has them sent with
/// the body.
pub const SENDGATE_HEAD_GIVEN: u32 = 3;
/// Announce Connection: close.
pub const SENDGATE_HEAD_CLOSE: u32 = 0x1;

/// One request, one representation, and how to say it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_exchange {
    /// sizeof(sendgate_exchange).
    pub size: usize,
    /// NULL: GET, HTTP/1.1, no conditions.
    pub request: *const sendgate_request,
    /// Required.
    pub rep: *const sendgate_rep,
    /// Sent in this order, after the library's own.
    pub headers: *const sendgate_header,
    /// Number of headers.
    pub n_headers: usize,
    /// Seconds since 1970, up to the year 9999; for Date and the age of validators. 0: the clock.
    pub now: i64,
    /// Of multipart boundaries; 0 is random. Set now and seed if one call makes the head and
    /// another the body.
    pub seed: u64,
    /// SENDGATE_HEAD_HTTP1, _CGI, _NONE or _GIVEN.
    pub head: u32,
    /// SENDGATE_HEAD_CLOSE.
    pub head_flags: u32,
    /// Parts after merging, at most 64; more than that send all of it, 200, as do more than 64
    /// before the last are merged, and more than 1024 ranges at all. 0 means 64.
    pub max_ranges: u32,
    /// Your own status, 200 to 999; 0 is 200. With any but 200 neither conditions nor ranges are
    /// evaluated. 204, 205 and 304 have no body.
    pub http_status: u32,
    /// With SENDGATE_HEAD_GIVEN: sent as it is where the head would be, and not looked at. Required
    /// (it may be empty), and of any length. sendgate_transfer_start and sendgate_sender_submit copy
    /// it. Which bytes follow it is decided as ever, from request, rep, headers and http_status: it
    /// has to say the same. With another head it must be absent.
    pub head_text: sendgate_str,
}

/// No content follows, and no length is told: 204, 304, and HEAD of a stream of unknown length.
pub const SENDGATE_FRAMING_NONE: u32 = 0;
/// Content-Length tells where the content ends (RFC 9112 6.2).
pub const SENDGATE_FRAMING_LENGTH: u32 = 1;
/// Transfer-Encoding: chunked (RFC 9112 7.1): a stream of unknown length.
pub const SENDGATE_FRAMING_CHUNKED: u32 = 2;
/// The content ends with the connection, or for SENDGATE_HEAD_CGI with the response: a stream of
/// unknown length to a client that speaks HTTP/1.0, or behind a front server. (In FastCGI's records
/// whatever the head is, which only sendgate_stream_start knows.)
pub const SENDGATE_FRAMING_CLOSE: u32 = 3;

/// What the answer will be.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct sendgate_decision {
    /// sizeof(sendgate_decision).
    pub size: usize,
    /// 200, 206, 304, 412 or 416, or the exchange's own.
    pub http_status: u32,
    /// 1 if the head will allow reuse of the connection, else 0.
    pub keep_alive: u32,
    /// Announced length in bytes, multipart framing included; 0 for 304, and if it isn't known.
    pub content_length: u64,
    /// Bytes after the head; 0 for HEAD, 304, 412 and 416, and if their number isn't known.
    pub body_length: u64,
    /// 0 unless 206; 2 or more means multipart/byteranges.
    pub n_ranges: usize,
    /// SENDGATE_FRAMING_.
    pub framing: u32,
    /// Zero.
    pub reserved: u32,
}

// ---- Where the bytes go ----

/// Where the bytes go, instead of the socket: for TLS in user space (kernel TLS needs only fd).
///
/// Take up to len bytes, set *written and return SENDGATE_OK; or take none and return
/// SENDGATE_WANT_WRITE, SENDGATE_WANT_READ or an error. A *written of 0 or above len is
/// SENDGATE_ERR_INVALID, never believed. Must neither use the same handle nor unwind. Gets at most
/// 16 KiB of a file at once.
///
/// SIGPIPE and what else happens inside is the host's business. OpenSSL refuses a retry with fewer
/// bytes: don't lower the budget between a SENDGATE_WANT_ and the next step. One that waits can't
/// be interrupted: only the total timeout holds, between two calls.
pub type sendgate_write_fn = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        data: *const u8,
        len: usize,
        written: *mut usize,
    ) -> super::status::sendgate_status,
>;

/// The host ignores or handles SIGPIPE: saves asking the kernel before each sendfile.
pub const SENDGATE_SINK_SIGPIPE_IGNORED: u32 = 0x1;
/// For sendgate_sender_submit: send what can be sent at once in the calling thread, without waiting
/// for the socket or the disk: up to 1 MiB of a file that is in the page cache, to a socket with
/// O_NONBLOCK (or up to 16 KiB to any); up to 64 KiB of memory, or of a file with SENDGATE_REP_COPY.
/// All else, multiparts, and what the socket does not take go to the background. Where the file
/// system can't tell what is in the page cache (overlayfs, network file systems), up to 16 KiB are
/// read, from wherever they are. Memory is taken to be there: for a mapping of a file that is not,
/// the calling thread waits. Not for a write function.
///
/// For sendgate_stream_start: its calls don't wait. SENDGATE_WANT_WRITE says that the rest has to be
/// written once the socket is writable; timeouts are then the caller's.
pub const SENDGATE_SINK_TRY_NOW: u32 = 0x2;
/// FastCGI: the request came with FCGI_KEEP_CONN, so a complete answer leaves the connection
/// reusable.
pub const SENDGATE_SINK_FCGI_KEEP: u32 = 0x4;
/// FastCGI: content that turns out to be shorter than announced is ended properly, if it ends
/// between two records: for nginx without kept connections, which waits for the end and notices what
/// is missing. lighttpd, and nginx with kept connections, notice that only if the connection is
/// closed without it. The call fails with SENDGATE_ERR_TRUNCATED either way.
pub const SENDGATE_SINK_FCGI_END_SHORT: u32 = 0x8;

/// Where the bytes go, and how long that may take.
///
/// Times and rates count bytes as the peer takes them: those that wait in the socket's own buffer
/// are not progress, and a slow client that takes some of them has not stalled. They hold for
/// sendgate_respond, sendgate_sender_submit and sendgate_stream; a caller that steps keeps its own. What a peer takes
/// is seen in pieces of up to 64 KiB (UNIX sockets, loopback) or of a segment: idle_timeout_ms has
/// to be long enough for some of them, and so has min_rate times idle_timeout_ms to be large enough.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_sink {
    /// sizeof(sendgate_sink).
    pub size: usize,
    /// Set: used for every byte; fd is then only waited on, and -1 means never wait: an answer
    /// of SENDGATE_WANT_WRITE or _READ makes sendgate_respond, a sender, and a stream that waits
    /// fail with SENDGATE_ERR_BLOCKING.
    pub write: sendgate_write_fn,
    /// Passed to write.
    pub user: *mut c_void,
    /// A stream socket: TCP or UNIX.
    pub fd: i32,
    /// SENDGATE_SINK_ flags.
    pub flags: u32,
    /// Longest time without progress, in milliseconds; 0 means 60000. Noticed at most a quarter
    /// later.
    pub idle_timeout_ms: u32,
    /// For the whole response, in milliseconds; 0 means no limit.
    pub total_timeout_ms: u32,
    /// The least that the peer has to take in each period of idle_timeout_ms, in bytes per second;
    /// 0 means any. Less is SENDGATE_ERR_TIMEOUT.
    pub min_rate: u64,
    /// Not 0: the answer is to a request with this id, at most 65535, on a FastCGI connection. It is
    /// sent in STDOUT records, and ended (FastCGI 1.0, 5.3 and 5.5): records of your own, such as
    /// STDERR's, go before it. A budget doesn't count what frames it. With SENDGATE_HEAD_CGI, or
    /// _NONE or _GIVEN if your own head says the same; with _HTTP1 it is SENDGATE_ERR_INVALID.
    pub fcgi_request_id: u32,
    /// Zero.
    pub reserved: u32,
}

/// No byte was written by this library: another answer may still be sent, unless you have sent a
/// head of your own (SENDGATE_HEAD_NONE).
pub const SENDGATE_CONN_UNTOUCHED: u32 = 0;
/// Complete: read the next request.
pub const SENDGATE_CONN_REUSABLE: u32 = 1;
/// Complete: close it.
pub const SENDGATE_CONN_CLOSE: u32 = 2;
/// Cut short, or not finished yet: close it, and send nothing more.
pub const SENDGATE_CONN_BROKEN: u32 = 3;

/// What happened. Written by every call that takes one, also when it fails.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct sendgate_result {
    /// sizeof(sendgate_result).
    pub size: usize,
    /// As returned.
    pub status: super::status::sendgate_status,
    /// For SENDGATE_ERR_IO and SENDGATE_ERR_PEER_CLOSED, else 0.
    pub sys_errno: i32,
    /// 0 if the decision was not reached.
    pub http_status: u32,
    /// SENDGATE_CONN_.
    pub connection: u32,
    /// Bytes of the head that were sent.
    pub head_sent: u64,
    /// Bytes after the head that were sent, the framing of chunks excluded.
    pub body_sent: u64,
    /// Bytes after the head, all of them. Of a stream of unknown length 0, until it is complete.
    pub body_length: u64,
}

// ---- Where content comes from ----

/// Where the content comes from, instead of the socket: for TLS in user space (kernel TLS needs
/// only fd).
///
/// Put up to cap bytes into data, set *len and return SENDGATE_OK, where a *len of 0 is the end of
/// the stream; or put none there and return SENDGATE_WANT_READ, SENDGATE_WANT_WRITE or an error. A
/// *len above cap is SENDGATE_ERR_INVALID, never believed. Must not unwind.
///
/// One that waits can't be interrupted: only the total timeout holds, between two calls.
pub type sendgate_read_fn = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        data: *mut u8,
        cap: usize,
        len: *mut usize,
    ) -> super::status::sendgate_status,
>;

/// Take what is there, and don't wait for more: SENDGATE_WANT_READ or _WRITE says what to wait for
/// before the call is made again, for the rest. Timeouts are then the caller's.
pub const SENDGATE_SOURCE_TRY_NOW: u32 = 0x1;

/// Where the content of a request comes from, and how long that may take. Times and rates count
/// bytes as they are taken from the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_source {
    /// sizeof(sendgate_source).
    pub size: usize,
    /// Set: used for every byte; fd is then only waited on, and -1 means never wait: an answer
    /// of SENDGATE_WANT_READ or _WRITE is SENDGATE_ERR_BLOCKING, but with SENDGATE_SOURCE_TRY_NOW
    /// it is returned.
    pub read: sendgate_read_fn,
    /// Passed to read.
    pub user: *mut c_void,
    /// A stream socket: TCP or UNIX.
    pub fd: i32,
    /// SENDGATE_SOURCE_ flags.
    pub flags: u32,
    /// Longest time in which nothing comes, in milliseconds; 0 means 60000. Noticed at most a
    /// quarter later.
    pub idle_timeout_ms: u32,
    /// For all that was asked for, in milliseconds; 0 means no limit.
    pub total_timeout_ms: u32,
    /// The least that has to come in each period of idle_timeout_ms, in bytes per second; 0 means
    /// any. Less is SENDGATE_ERR_TIMEOUT.
    pub min_rate: u64,
}

/// What came. Written by every call that takes one, also when it fails.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct sendgate_received {
    /// sizeof(sendgate_received).
    pub size: usize,
    /// As returned.
    pub status: super::status::sendgate_status,
    /// For SENDGATE_ERR_IO, SENDGATE_ERR_PEER_CLOSED and SENDGATE_ERR_NOT_REGULAR, else 0.
    pub sys_errno: i32,
    /// Bytes that this call has taken from the source.
    pub received: u64,
    /// Those of them that are in the buffer or the file, from its start or offset on. Fewer than
    /// received only if a file has failed: the others are lost.
    pub stored: u64,
}

// ---- FastCGI ----

/// Types of records (FastCGI 1.0, 8).
pub const SENDGATE_FCGI_TYPE_BEGIN_REQUEST: u32 = 1;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_ABORT_REQUEST: u32 = 2;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_END_REQUEST: u32 = 3;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_PARAMS: u32 = 4;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_STDIN: u32 = 5;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_STDOUT: u32 = 6;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_STDERR: u32 = 7;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_DATA: u32 = 8;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_GET_VALUES: u32 = 9;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_GET_VALUES_RESULT: u32 = 10;
/// See SENDGATE_FCGI_TYPE_BEGIN_REQUEST.
pub const SENDGATE_FCGI_TYPE_UNKNOWN_TYPE: u32 = 11;

/// How a request ended (FastCGI 1.0, 5.5): it was answered.
pub const SENDGATE_FCGI_STATUS_REQUEST_COMPLETE: u32 = 0;
/// Refused: another one is under way on this connection.
pub const SENDGATE_FCGI_STATUS_CANT_MPX_CONN: u32 = 1;
/// Refused: there is too much to do.
pub const SENDGATE_FCGI_STATUS_OVERLOADED: u32 = 2;
/// Refused: not a Responder's.
pub const SENDGATE_FCGI_STATUS_UNKNOWN_ROLE: u32 = 3;

/// sendgate_fcgi_feed: all bytes were taken, and nothing has happened yet.
pub const SENDGATE_FCGI_NOTHING: u32 = 0;
/// A request has begun, and these are all of its parameters.
pub const SENDGATE_FCGI_PARAMS: u32 = 1;
/// Some of the request's content; an empty one is its end. It may be answered at any time from
/// SENDGATE_FCGI_PARAMS on.
pub const SENDGATE_FCGI_STDIN: u32 = 2;
/// The front server doesn't want the answer any more: stop, and end the request; see
/// sendgate_fcgi_end.
pub const SENDGATE_FCGI_ABORT: u32 = 3;
/// data has to be sent, before anything that follows, and not within an answer's record: a request
/// was refused, or the front server has asked for something. With keep_conn 0 close the connection
/// then, as sendgate_fcgi_end says.
pub const SENDGATE_FCGI_REPLY: u32 = 4;

/// What a connection may bring. NULL in place of it means zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_fcgi_options {
    /// sizeof(sendgate_fcgi_options).
    pub size: usize,
    /// Bytes of a request's parameters, as they are encoded; one with more is answered with 431. 0
    /// means 262144.
    pub max_params: u32,
    /// What a front server is told that asks for FCGI_MAX_CONNS; 0 means 1.
    pub max_connections: u32,
    /// What a front server is told that asks for FCGI_MAX_REQS; 0 means as max_connections.
    pub max_requests: u32,
    /// Zero.
    pub reserved: u32,
}

/// What has come on a FastCGI connection.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_fcgi_event {
    /// sizeof(sendgate_fcgi_event).
    pub size: usize,
    /// SENDGATE_FCGI_NOTHING, _PARAMS, _STDIN, _ABORT or _REPLY.
    pub kind: u32,
    /// Of the request that is under way; 0: there is none.
    pub request_id: u32,
    /// 1: the connection is to be kept afterwards, else 0.
    pub keep_conn: u32,
    /// Zero.
    pub reserved: u32,
    /// PARAMS: names and values, as they came: in this order in one block of memory, and never with a
    /// ptr of NULL. Valid until the next call.
    pub params: *const sendgate_field,
    /// PARAMS: how many.
    pub n_params: usize,
    /// STDIN: content. REPLY: what has to be sent.
    pub data: sendgate_str,
}

// ---- The background sender ----

/// How a sender works. NULL in place of it means zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_sender_options {
    /// sizeof(sendgate_sender_options).
    pub size: usize,
    /// Responses submitted and not yet taken, at most 16777216; one more is SENDGATE_ERR_BUSY.
    /// 0 means 1024.
    pub max_in_flight: u32,
    /// Bytes that a response may send before the others have their turn; 0 means 524288. Less than
    /// 16384 is taken for 16384.
    pub turn_bytes: u32,
    /// NULL: none.
    pub on_ready: sendgate_ready_fn,
    /// Passed to on_ready.
    pub user: *mut c_void,
}

/// Called on the sender's thread when there is something to take and there was nothing. All signals
/// but those of faults are blocked there. May use the sender, but not stop or free it; must not
/// block or unwind.
pub type sendgate_ready_fn = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// How a submitted response ended. Never changes, so that an array of them can be filled.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct sendgate_completion {
    /// As given to sendgate_sender_submit.
    pub token: *mut c_void,
    /// As sendgate_sender_submit gave it.
    pub id: u64,
    /// SENDGATE_OK, or why it was cut short.
    pub status: super::status::sendgate_status,
    /// For SENDGATE_ERR_IO and SENDGATE_ERR_PEER_CLOSED, else 0.
    pub sys_errno: i32,
    /// 200, 206, 304, 412 or 416, or the exchange's own.
    pub http_status: u32,
    /// SENDGATE_CONN_.
    pub connection: u32,
    /// Bytes of the head that were sent.
    pub head_sent: u64,
    /// Bytes after the head that were sent.
    pub body_sent: u64,
    /// Bytes after the head, all of them.
    pub body_length: u64,
    /// From submit to the end, in nanoseconds.
    pub elapsed_ns: u64,
}

#[cfg(target_pointer_width = "64")]
mod layout {
    //! The sizes that the C tests assert as well: a change here is a change of the ABI.
    use super::*;
    use std::mem::size_of;
    const _: () = assert!(size_of::<sendgate_str>() == 16);
    const _: () = assert!(size_of::<sendgate_field>() == 32);
    const _: () = assert!(size_of::<sendgate_range>() == 16);
    const _: () = assert!(size_of::<sendgate_header>() == 40);
    const _: () = assert!(size_of::<sendgate_request>() == 160);
    const _: () = assert!(size_of::<sendgate_rep>() == 88);
    const _: () = assert!(size_of::<sendgate_exchange>() == 88);
    const _: () = assert!(size_of::<sendgate_decision>() == 48);
    const _: () = assert!(size_of::<sendgate_sink>() == 56);
    const _: () = assert!(size_of::<sendgate_result>() == 48);
    const _: () = assert!(size_of::<sendgate_source>() == 48);
    const _: () = assert!(size_of::<sendgate_received>() == 32);
    const _: () = assert!(size_of::<sendgate_sender_options>() == 32);
    const _: () = assert!(size_of::<sendgate_completion>() == 64);
    const _: () = assert!(size_of::<sendgate_fcgi_options>() == 24);
    const _: () = assert!(size_of::<sendgate_fcgi_event>() == 56);
}
