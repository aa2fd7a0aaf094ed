//! Status codes: number, name and sentence. A code without a row in `TABLE` fails a test.

#![allow(non_camel_case_types)]

use std::ffi::{CStr, c_char};

/// 0 is done, negative is an error, positive is not finished yet. Fixed width and open-ended:
/// expect codes that you do not know. A number is never reused.
pub type sendgate_status = i32;

/// Done.
pub const SENDGATE_OK: sendgate_status = 0;
/// Would block: call again when the socket is writable.
pub const SENDGATE_WANT_WRITE: sendgate_status = 1;
/// From a sendgate_write_fn or sendgate_read_fn, or with SENDGATE_SOURCE_TRY_NOW: again when the
/// socket is readable. From sendgate_request_from_head: the head is not complete. From
/// sendgate_fcgi_feed: nothing has happened yet.
pub const SENDGATE_WANT_READ: sendgate_status = 2;
/// Budget spent: call again, without waiting first.
pub const SENDGATE_YIELD: sendgate_status = 3;

/// sendgate_sender_take: nothing has finished. sendgate_headers_get: there is no such line.
pub const SENDGATE_EMPTY: sendgate_status = 4;
/// sendgate_sender_submit: on its way; sendgate_sender_take will report how it ended.
pub const SENDGATE_PENDING: sendgate_status = 5;

/// NULL or out-of-range argument.
pub const SENDGATE_ERR_INVALID: sendgate_status = -1;
/// Struct too small, or larger with unknown members set.
pub const SENDGATE_ERR_SIZE: sendgate_status = -2;
/// Buffer too small. Where there is an output for it, it says how long the buffer has to be.
pub const SENDGATE_ERR_NO_SPACE: sendgate_status = -3;
/// CR, LF or NUL in a response field, a bad name, or a field against its rule.
pub const SENDGATE_ERR_FIELD: sendgate_status = -4;
/// Out of memory.
pub const SENDGATE_ERR_NO_MEMORY: sendgate_status = -5;
/// A system call failed: see sys_errno.
pub const SENDGATE_ERR_IO: sendgate_status = -6;
/// EPIPE or ECONNRESET; no SIGPIPE is ever raised.
pub const SENDGATE_ERR_PEER_CLOSED: sendgate_status = -7;
/// No progress within idle_timeout_ms, slower than min_rate, or not complete within
/// total_timeout_ms.
pub const SENDGATE_ERR_TIMEOUT: sendgate_status = -8;
/// The file, or the content of a sendgate_stream, was shorter than the length announced.
pub const SENDGATE_ERR_TRUNCATED: sendgate_status = -9;
/// Not a regular file of known length: a directory, FIFO, device, or made up by the kernel
/// (procfs).
pub const SENDGATE_ERR_NOT_REGULAR: sendgate_status = -10;
/// sendgate_transfer needs O_NONBLOCK and the socket lacks it; or there is nothing to wait on.
pub const SENDGATE_ERR_BLOCKING: sendgate_status = -11;
/// The handle is already in a call; or max_in_flight of a sender is reached.
pub const SENDGATE_ERR_BUSY: sendgate_status = -12;
/// Ended by sendgate_sender_cancel, _stop or _free; or submitted to a sender that was stopped.
pub const SENDGATE_ERR_CANCELLED: sendgate_status = -13;
/// Not in this build, or not on this system.
pub const SENDGATE_ERR_UNSUPPORTED: sendgate_status = -14;
/// A bug here, contained: only free the handle now.
pub const SENDGATE_ERR_INTERNAL: sendgate_status = -15;
/// SENDGATE_REP_CHECK: the file's size or modification time changed while it was sent.
pub const SENDGATE_ERR_CHANGED: sendgate_status = -16;
/// Not a request head of HTTP/1: answer 400 and close.
pub const SENDGATE_ERR_REQUEST: sendgate_status = -17;
/// The sender's thread is in the process that made it, and this is a child of that process
/// (fork(2)): make a new one here.
pub const SENDGATE_ERR_FORKED: sendgate_status = -18;
/// sendgate_receive: the peer has ended before all that was asked for had come.
pub const SENDGATE_ERR_INCOMPLETE: sendgate_status = -19;
/// sendgate_headers: the field is frozen, and was not changed.
pub const SENDGATE_ERR_FROZEN: sendgate_status = -20;
/// sendgate_stream: more content than was announced.
pub const SENDGATE_ERR_EXCESS: sendgate_status = -21;
/// Not FastCGI, or against its rules: close the connection.
pub const SENDGATE_ERR_FASTCGI: sendgate_status = -22;
// Last added: -22, and 5.

const fn c_str(with_nul: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(with_nul.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a status text contains NUL"),
    }
}

macro_rules! table {
    ($($name:ident $text:literal,)*) => {
        &[$(($name, c_str(concat!(stringify!($name), "\0")), c_str(concat!($text, "\0"))),)*]
    };
}

const TABLE: &[(sendgate_status, &CStr, &CStr)] = table![
    SENDGATE_OK "Done.",
    SENDGATE_WANT_WRITE "Would block: call again when the socket is writable.",
    SENDGATE_WANT_READ "Incomplete: call again when there is more to read.",
    SENDGATE_YIELD "The budget is spent: call again.",
    SENDGATE_EMPTY "There is none.",
    SENDGATE_PENDING "On its way; the sender will report how it ended.",
    SENDGATE_ERR_INVALID "An argument is NULL, out of range or contradicts another.",
    SENDGATE_ERR_SIZE "A struct's size is smaller than any version's, or has unknown members set.",
    SENDGATE_ERR_NO_SPACE "The buffer is too small.",
    SENDGATE_ERR_FIELD "A response field has a bad name, holds CR, LF or NUL, or breaks the rule for its name.",
    SENDGATE_ERR_NO_MEMORY "Out of memory.",
    SENDGATE_ERR_IO "A system call failed.",
    SENDGATE_ERR_PEER_CLOSED "The peer closed the connection.",
    SENDGATE_ERR_TIMEOUT "The peer took too long.",
    SENDGATE_ERR_TRUNCATED "The content became shorter than the length announced.",
    SENDGATE_ERR_NOT_REGULAR "Not a regular file of known length.",
    SENDGATE_ERR_BLOCKING "The socket is blocking; set O_NONBLOCK, or use the blocking call.",
    SENDGATE_ERR_BUSY "The handle is already in a call, or the sender has as many responses in flight as it may.",
    SENDGATE_ERR_CANCELLED "Cancelled, or the sender was stopped.",
    SENDGATE_ERR_UNSUPPORTED "Not supported by this build or system.",
    SENDGATE_ERR_INTERNAL "A bug in sendgate, contained: free the handle and report it.",
    SENDGATE_ERR_CHANGED "The file changed while it was sent.",
    SENDGATE_ERR_REQUEST "Not a request head of HTTP/1.",
    SENDGATE_ERR_FORKED "The sender belongs to the parent process: make a new one after fork.",
    SENDGATE_ERR_INCOMPLETE "The peer ended before all of it had come.",
    SENDGATE_ERR_FROZEN "The field is frozen, and was not changed.",
    SENDGATE_ERR_EXCESS "There is more content than was announced.",
    SENDGATE_ERR_FASTCGI "Not FastCGI, or against its rules.",
];

fn row(status: sendgate_status) -> Option<&'static (sendgate_status, &'static CStr, &'static CStr)> {
    TABLE.iter().find(|row| row.0 == status)
}

/// The code's name, "SENDGATE_ERR_IO". Static, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn sendgate_status_name(status: sendgate_status) -> *const c_char {
    row(status).map_or(c"SENDGATE_UNKNOWN", |row| row.1).as_ptr()
}

/// One English sentence for the code. Static, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn sendgate_status_message(status: sendgate_status) -> *const c_char {
    row(status).map_or(c"Unknown status; a newer library may know it.", |row| row.2).as_ptr()
}
