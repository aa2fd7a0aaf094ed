//! Requests, representations, decisions and heads.
use std::ffi::c_char;
use super::status::*;
use super::types::*;

/// The loaded library: major << 16 | minor << 8 | patch.
#[unsafe(no_mangle)]
pub extern "C" fn sendgate_version() -> u32 { todo!() }

/// The loaded library's SENDGATE_FEATURE_ bits. Every symbol always links; without its feature it
/// returns SENDGATE_ERR_UNSUPPORTED.
#[unsafe(no_mangle)]
pub extern "C" fn sendgate_features() -> u64 { todo!() }

/// Fill the members after `version`, but not `target`, from parsed fields, which req then
/// borrows. Fields sent on several lines are joined in scratch, each into one value, so that none is
/// lost: scratch as long as all field values plus 2 bytes for each is always enough. flags gets
/// SENDGATE_REQUEST_HAS_BODY if Transfer-Encoding, or a Content-Length other than 0, is there.
/// SENDGATE_ERR_NO_SPACE: *needed is the scratch_cap to call with. needed may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_request_from_fields(
    req: *mut sendgate_request, fields: *const sendgate_field, n_fields: usize,
    scratch: *mut c_char, scratch_cap: usize, needed: *mut usize,
) -> sendgate_status { todo!() }

/// Parse a raw HTTP/1 request head as received, request line included, and fill all of req,
/// which then borrows from head and scratch. *head_len is where the head ends: content or the next
/// request begin there. Fields on several lines are joined as by sendgate_request_from_fields, and so is scratch sized.
/// SENDGATE_WANT_READ: no empty line yet, read more and call again. SENDGATE_ERR_REQUEST: malformed
/// (RFC 9112 2 and 3, bare CR, folded lines, bad names, space before the colon), or ambiguous about where it ends
/// (Transfer-Encoding with Content-Length, two different lengths: RFC 9112 6.3). needed may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_request_from_head(
    req: *mut sendgate_request, head: *const c_char, len: usize, scratch: *mut c_char, scratch_cap: usize,
    needed: *mut usize, head_len: *mut usize,
) -> sendgate_status { todo!() }

/// One fstat(2): fill all of rep but content_type, for the whole file. Sets SENDGATE_REP_HAS_MTIME. The entity tag,
/// "<mtime_ns hex>-<size hex>", goes to etag_buf (SENDGATE_ETAG_MAX bytes; NULL: none), which rep
/// borrows, with SENDGATE_REP_ETAG_FROM_MTIME. flags: SENDGATE_ETAG_INODE, SENDGATE_ETAG_CTIME.
/// SENDGATE_ERR_NOT_REGULAR: a directory, FIFO, socket or device, or a file of the kernel's own
/// making that says it is empty but is not. SENDGATE_ERR_IO: *sys_errno (may be NULL) tells.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_rep_from_fd(
    rep: *mut sendgate_rep, fd: i32, flags: u32, etag_buf: *mut c_char, etag_cap: usize, sys_errno: *mut i32,
) -> sendgate_status { todo!() }

/// Open a file beneath the directory dir_fd for reading, and do sendgate_rep_from_fd with it (rep
/// NULL: only the check). path is relative, NUL-terminated and already percent-decoded; it can't lead out
/// of the directory, neither by ".." nor by a symbolic link, unless flags has SENDGATE_OPEN_OUTSIDE.
/// Never waits, whatever it finds (FIFO). You close *fd. SENDGATE_ERR_NOT_REGULAR: *sys_errno is EISDIR for a directory.
/// SENDGATE_ERR_IO: *sys_errno tells (ENOENT, EACCES; EXDEV or ELOOP: leads out). sys_errno may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_open(
    dir_fd: i32, path: *const c_char, flags: u32, etag_buf: *mut c_char, etag_cap: usize,
    fd: *mut i32, rep: *mut sendgate_rep, sys_errno: *mut i32,
) -> sendgate_status { todo!() }

/// Conditions and ranges: RFC 9110 sections 13.2.2 and 14.2. No I/O (but for the clock, if ex->now is
/// 0), no allocation. ranges may be NULL; with fewer than out->n_ranges of room: SENDGATE_ERR_NO_SPACE, and out is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_decide(
    ex: *const sendgate_exchange, ranges: *mut sendgate_range, cap: usize, out: *mut sendgate_decision,
) -> sendgate_status { todo!() }

/// The head as bytes, ending in an empty line. Not NUL-terminated. SENDGATE_ERR_NO_SPACE: *len is what is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_head_bytes(
    ex: *const sendgate_exchange, buf: *mut c_char, cap: usize, len: *mut usize,
) -> sendgate_status { todo!() }

/// The head as fields, for a server that writes it itself; Date and Connection are among them only with SENDGATE_HEAD_HTTP1. The fields point into scratch and into what ex borrows.
/// SENDGATE_ERR_NO_SPACE: *n_fields and *needed are what is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_head_fields(
    ex: *const sendgate_exchange, fields: *mut sendgate_field, cap: usize, scratch: *mut c_char, scratch_cap: usize,
    n_fields: *mut usize, needed: *mut usize,
) -> sendgate_status { todo!() }
