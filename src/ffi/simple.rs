//! One call for one answer: the three `response_file` calls, and one without structs.
use std::ffi::c_char;
use super::status::*;
use super::types::*;

/// Answer with the whole file fd, as the application says: http_status and headers are sent as given, with
/// Content-Length added; no condition or range is evaluated. Takes fd over: it is closed before this returns,
/// whatever the outcome, so pass a dup(2) to keep yours. req (NULL: GET, HTTP/1.1) tells HEAD and keep-alive.
/// Headers follow SENDGATE_RULE_OVERRIDE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_response_file_fd(
    sink: *const sendgate_sink, req: *const sendgate_request, http_status: u32,
    headers: *const sendgate_field, n_headers: usize, fd: i32, out: *mut sendgate_result,
) -> sendgate_status { todo!() }

/// As sendgate_response_file_fd, with the bytes from start to before end only. start >= end is SENDGATE_ERR_INVALID; an end
/// past the file is SENDGATE_ERR_TRUNCATED with nothing sent. A 206 without a Content-Range of yours gets one.
/// Takes fd over: it is closed before this returns, whatever the outcome.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_response_file_fd_range(
    sink: *const sendgate_sink, req: *const sendgate_request, http_status: u32,
    headers: *const sendgate_field, n_headers: usize, fd: i32, start: u64, end: u64, out: *mut sendgate_result,
) -> sendgate_status { todo!() }

/// Open file (a NUL-terminated path), fstat it once, decide and answer from the same descriptor: 200,
/// 206, 304 or 416. The conditions are these four (NUL-terminated values, NULL if the request has none), and those in req are ignored. ETag, Last-Modified and
/// Accept-Ranges are added unless headers has them: an ETag or Last-Modified of the application's wins, also in the comparison. A file that can't be opened is
/// answered 404 with an empty body. http_status is that of the full answer; with any but 200 nothing is evaluated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_response_file_conditional(
    sink: *const sendgate_sink, req: *const sendgate_request, http_status: u32,
    headers: *const sendgate_field, n_headers: usize, file: *const c_char,
    if_none_match: *const c_char, if_modified_since: *const c_char, range: *const c_char, if_range: *const c_char,
    out: *mut sendgate_result,
) -> sendgate_status { todo!() }

/// Everything in one call without structs, for ctypes and the like: answer on the stream socket sock with the file fd (borrowed).
/// Strings are NUL-terminated; NULL or "" is absent. method NULL is "GET". version is 10 or 11 (0: 11). request_headers: the request's header
/// lines as received, "Range: bytes=0-9\r\nIf-Match: ...\r\n", others are ignored; response_headers in the same form replace the library's own.
/// timeout_ms is the longest wait without progress (0: 60000). The outputs may be NULL: *connection is a SENDGATE_CONN_.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_respond_fd(
    sock: i32, fd: i32, method: *const c_char, version: u32, request_headers: *const c_char,
    response_headers: *const c_char, timeout_ms: u32,
    http_status: *mut u32, connection: *mut u32, body_sent: *mut u64,
) -> sendgate_status { todo!() }
