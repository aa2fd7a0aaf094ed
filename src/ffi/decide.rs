//! Requests, representations, decisions and heads.

use super::input::{Input, RawFields};
use super::status::*;
use super::structs::{
    c_string, check_out, read_struct, slice, slice_mut, to_field, to_str, write_optional, write_struct, zeroed,
};
use super::types::*;
use super::{Error, guard};
use crate::http::request::{self, HeadError};
use crate::http::{self, Buffer, Decision, FieldSink, Framing, HeadForm, Request, Source, Spans, validator};
use crate::io::file::{Metadata, open_beneath};
use std::ffi::c_char;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

/// The loaded library's version: major << 16 | minor << 8 | patch.
#[unsafe(no_mangle)]
pub extern "C" fn sendgate_version() -> u32 {
    SENDGATE_VERSION_MAJOR << 16 | SENDGATE_VERSION_MINOR << 8 | SENDGATE_VERSION_PATCH
}

/// The loaded library's SENDGATE_FEATURE_ bits. Every symbol always links; without its feature it
/// returns SENDGATE_ERR_UNSUPPORTED.
#[unsafe(no_mangle)]
pub extern "C" fn sendgate_features() -> u64 {
    SENDGATE_FEATURE_SENDFILE | if cfg!(feature = "sender") { SENDGATE_FEATURE_SENDER } else { 0 }
}

/// Fill the members after `version`, but not `target`, from parsed fields, which req then borrows.
/// Fields sent on several lines are joined in scratch, each into one value, so that none is lost:
/// scratch as long as all field values plus 2 bytes for each is always enough. flags gets
/// SENDGATE_REQUEST_HAS_BODY if Transfer-Encoding, or a Content-Length other than 0, is there.
/// SENDGATE_ERR_NO_SPACE: *needed is the scratch_cap to call with. needed may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_request_from_fields(
    req: *mut sendgate_request,
    fields: *const sendgate_field,
    n_fields: usize,
    scratch: *mut c_char,
    scratch_cap: usize,
    needed: *mut usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a request with its size set.
        let mut out = unsafe { read_struct(req) }?;
        // SAFETY: the header asks for `n_fields` valid fields.
        let fields = unsafe { RawFields::read(fields, n_fields) }?;
        // SAFETY: the header asks for `scratch_cap` writable bytes.
        let scratch = unsafe { slice_mut(scratch.cast::<u8>(), scratch_cap) }?;
        let found = request::from_fields(fields.iter(), scratch);
        // SAFETY: the header asks for NULL or a writable size.
        unsafe { write_optional(needed, found.as_ref().map_or_else(|needed| *needed, |found| found.used)) };
        let found = found.map_err(|_| Error::new(SENDGATE_ERR_NO_SPACE))?;
        fill_request(&mut out, &found.request);
        // SAFETY: as above.
        unsafe { write_struct(req, &out) }?;
        Ok(SENDGATE_OK)
    })
}

/// Parse a raw HTTP/1 request head as received, request line included, and fill all of req, which
/// then borrows from head and scratch. *head_len is where the head ends: content or the next
/// request begin there. Fields on several lines are joined as by sendgate_request_from_fields.
/// SENDGATE_WANT_READ: no empty line yet, read more and call again with all of it.
/// SENDGATE_ERR_REQUEST: malformed (RFC 9112 2 and 3: bare CR, folded lines, bad names, space
/// before the colon, a bad Host or none in HTTP/1.1), or ambiguous about where it ends
/// (Transfer-Encoding with Content-Length, two different lengths, a last transfer coding other than
/// chunked: RFC 9112 6.3). SENDGATE_ERR_NO_SPACE: *needed is the scratch_cap to call with; a scratch
/// as long as the head is always enough. needed may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_request_from_head(
    req: *mut sendgate_request,
    head: *const c_char,
    len: usize,
    scratch: *mut c_char,
    scratch_cap: usize,
    needed: *mut usize,
    head_len: *mut usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a request with its size set.
        let mut out = unsafe { read_struct(req) }?;
        // SAFETY: the header asks for `len` readable bytes.
        let head = unsafe { slice(head.cast::<u8>(), len) }?;
        // SAFETY: the header asks for `scratch_cap` writable bytes.
        let scratch = unsafe { slice_mut(scratch.cast::<u8>(), scratch_cap) }?;
        if head_len.is_null() {
            return Err(Error::INVALID);
        }
        let head = match request::from_head(head, scratch) {
            Ok(head) => head,
            Err(HeadError::Incomplete) => return Ok(SENDGATE_WANT_READ),
            Err(HeadError::Malformed) => return Err(Error::new(SENDGATE_ERR_REQUEST)),
            Err(HeadError::Scratch(length)) => {
                // SAFETY: the header asks for NULL or a writable size.
                unsafe { write_optional(needed, length) };
                return Err(Error::new(SENDGATE_ERR_NO_SPACE));
            }
        };
        fill_request(&mut out, &head.request);
        out.method = to_str(Some(head.request.method));
        out.version = if head.request.http10 { 10 } else { 11 };
        out.target = to_str(Some(head.target));
        // SAFETY: as above.
        unsafe { write_struct(req, &out) }?;
        // SAFETY: the header asks for NULL or a writable size.
        unsafe { write_optional(needed, head.used) };
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { head_len.write(head.length) };
        Ok(SENDGATE_OK)
    })
}

/// All that `request` knows but method and version.
pub(super) fn fill_request(out: &mut sendgate_request, request: &Request<'_>) {
    out.flags = if request.has_body { SENDGATE_REQUEST_HAS_BODY } else { 0 };
    out.connection = to_str(request.connection);
    out.if_match = to_str(request.if_match);
    out.if_none_match = to_str(request.if_none_match);
    out.if_modified_since = to_str(request.if_modified_since);
    out.if_unmodified_since = to_str(request.if_unmodified_since);
    out.if_range = to_str(request.if_range);
    out.range = to_str(request.range);
}

/// Describe the whole file fd, by one fstat(2): fill all of rep but content_type. Sets
/// SENDGATE_REP_HAS_MTIME. The entity tag, "<mtime_ns hex>-<size hex>", goes to etag_buf
/// (SENDGATE_ETAG_MAX bytes; NULL: none), which rep borrows, with SENDGATE_REP_ETAG_FROM_MTIME.
/// flags: SENDGATE_ETAG_INODE, SENDGATE_ETAG_CTIME. SENDGATE_ERR_NOT_REGULAR: a directory, FIFO,
/// socket or device, or a file of the kernel's own making that says it is empty but is not.
/// SENDGATE_ERR_IO: *sys_errno (may be NULL) tells; it is also set with SENDGATE_ERR_NOT_REGULAR:
/// EISDIR for a directory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_rep_from_fd(
    rep: *mut sendgate_rep,
    fd: i32,
    flags: u32,
    etag_buf: *mut c_char,
    etag_cap: usize,
    sys_errno: *mut i32,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a representation with its size set.
        let mut out = unsafe { read_struct(rep) }?;
        if flags & !(SENDGATE_ETAG_INODE | SENDGATE_ETAG_CTIME) != 0 || fd < 0 {
            return Err(Error::INVALID);
        }
        let metadata = Metadata::of(fd).map_err(Error::from).inspect_err(|error| {
            // SAFETY: the header asks for NULL or a writable integer.
            unsafe { write_optional(sys_errno, error.errno) };
        })?;
        // SAFETY: the header asks for `etag_cap` writable bytes.
        let etag = unsafe { slice_mut(etag_buf.cast::<u8>(), etag_cap) }?;
        fill_rep(&mut out, fd, flags, &metadata, (!etag_buf.is_null()).then_some(etag))?;
        // SAFETY: as above.
        unsafe { write_struct(rep, &out) }?;
        Ok(SENDGATE_OK)
    })
}

fn fill_rep(
    out: &mut sendgate_rep,
    fd: i32,
    flags: u32,
    metadata: &Metadata,
    etag: Option<&mut [u8]>,
) -> Result<(), Error> {
    let keep = out.content_type;
    *out = zeroed();
    out.content_type = keep;
    out.kind = SENDGATE_REP_FILE;
    out.flags = SENDGATE_REP_HAS_MTIME;
    out.fd = fd;
    out.length = metadata.size;
    out.mtime = metadata.modified.seconds;
    out.mtime_nsec = metadata.modified.nanoseconds;
    if let Some(etag) = etag {
        let inputs = metadata.tag_inputs(flags & SENDGATE_ETAG_INODE != 0, flags & SENDGATE_ETAG_CTIME != 0);
        let mut text = Buffer::new(etag);
        validator::entity_tag(&inputs, &mut text);
        if text.written().is_empty() {
            return Err(Error::new(SENDGATE_ERR_NO_SPACE));
        }
        out.flags |= SENDGATE_REP_ETAG_FROM_MTIME;
        out.etag = to_str(Some(text.written()));
    }
    Ok(())
}

/// Open a file beneath the directory dir_fd (or AT_FDCWD) for reading, and do sendgate_rep_from_fd
/// with it (rep NULL: only the check). path is relative, NUL-terminated and already
/// percent-decoded; it can't lead out of the directory, neither by ".." nor by a symbolic link;
/// SENDGATE_OPEN_OUTSIDE allows the link. flags: that and SENDGATE_ETAG_. Never waits, whatever it
/// finds (FIFO). You close *fd. SENDGATE_ERR_NOT_REGULAR: *sys_errno is EISDIR for a directory.
/// SENDGATE_ERR_IO: *sys_errno tells (ENOENT, EACCES; EXDEV or ELOOP: leads out). sys_errno may be
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_open(
    dir_fd: i32,
    path: *const c_char,
    flags: u32,
    etag_buf: *mut c_char,
    etag_cap: usize,
    fd: *mut i32,
    rep: *mut sendgate_rep,
    sys_errno: *mut i32,
) -> sendgate_status {
    guard(|| {
        let known = SENDGATE_ETAG_INODE | SENDGATE_ETAG_CTIME | SENDGATE_OPEN_OUTSIDE;
        // SAFETY: the header asks for a NUL-terminated string.
        let path = unsafe { c_string(path) }.ok_or(Error::INVALID)?;
        if flags & !known != 0 || dir_fd < 0 && dir_fd != libc::AT_FDCWD || fd.is_null() {
            return Err(Error::INVALID);
        }
        // SAFETY: the header asks for NULL or a representation with its size set.
        let mut out = if rep.is_null() { zeroed() } else { unsafe { read_struct(rep) }? };
        // SAFETY: the header asks for `etag_cap` writable bytes.
        let etag = unsafe { slice_mut(etag_buf.cast::<u8>(), etag_cap) }?;
        // SAFETY: the caller's directory stays open during the call.
        let dir = unsafe { BorrowedFd::borrow_raw(dir_fd) };
        let opened = open_beneath(dir, path, flags & SENDGATE_OPEN_OUTSIDE != 0).map_err(|error| Error::io(&error));
        let found = opened.and_then(|file| Ok((Metadata::of(file.as_raw_fd())?, file)));
        let (metadata, file) = found.inspect_err(|error| {
            // SAFETY: the header asks for NULL or a writable integer.
            unsafe { write_optional(sys_errno, error.errno) };
        })?;
        if !rep.is_null() {
            fill_rep(&mut out, file.as_raw_fd(), flags, &metadata, (!etag_buf.is_null()).then_some(etag))?;
            // SAFETY: as above.
            unsafe { write_struct(rep, &out) }?;
        }
        // SAFETY: not NULL, and the header asks for a writable integer.
        unsafe { fd.write(file.into_raw_fd()) };
        Ok(SENDGATE_OK)
    })
}

/// Evaluate conditions and ranges: RFC 9110 sections 13.2.2 and 14.2. No I/O (but for the clock, if
/// ex->now is 0), no allocation. ranges may be NULL, to leave them out; with less room than for
/// out->n_ranges the first cap are written and the answer is SENDGATE_ERR_NO_SPACE, with out
/// written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_decide(
    ex: *const sendgate_exchange,
    ranges: *mut sendgate_range,
    cap: usize,
    out: *mut sendgate_decision,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a valid exchange whose members live during the call.
        let input = unsafe { Input::read(ex) }?;
        // SAFETY: the header asks for a decision with its size set.
        unsafe { check_out(out) }?;
        // SAFETY: the header asks for `cap` writable ranges.
        let ranges_out = unsafe { slice_mut(ranges, cap) }?;
        let mut spans = Spans::new();
        let exchange = input.exchange();
        let decision = http::decide(&exchange, &mut spans)?;
        for (place, span) in ranges_out.iter_mut().zip(spans.iter()) {
            *place = sendgate_range { offset: span.offset, length: span.length };
        }
        // SAFETY: checked above.
        unsafe { write_struct(out, &c_decision(&decision, decision.framing(input.form))) }?;
        let room = ranges.is_null() || cap >= decision.n_ranges;
        Ok(if room { SENDGATE_OK } else { SENDGATE_ERR_NO_SPACE })
    })
}

/// A decision for C, and how the content will be framed.
pub(super) fn c_decision(decision: &Decision<'_>, framing: Framing) -> sendgate_decision {
    sendgate_decision {
        size: 0,
        http_status: u32::from(decision.status),
        keep_alive: u32::from(decision.keep_alive && framing != Framing::Close),
        content_length: decision.content_length,
        body_length: decision.body_length,
        n_ranges: decision.n_ranges,
        framing: match framing {
            Framing::None => SENDGATE_FRAMING_NONE,
            Framing::Length => SENDGATE_FRAMING_LENGTH,
            Framing::Chunked => SENDGATE_FRAMING_CHUNKED,
            Framing::Close => SENDGATE_FRAMING_CLOSE,
        },
        reserved: 0,
    }
}

/// The head as bytes, ending in an empty line. Not NUL-terminated. SENDGATE_ERR_NO_SPACE: *len is
/// what is needed. With SENDGATE_HEAD_GIVEN it is head_text. SENDGATE_HEAD_NONE is
/// SENDGATE_ERR_INVALID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_head_bytes(
    ex: *const sendgate_exchange,
    buf: *mut c_char,
    cap: usize,
    len: *mut usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a valid exchange whose members live during the call.
        let input = unsafe { Input::read(ex) }?;
        // SAFETY: the header asks for `cap` writable bytes.
        let buf = unsafe { slice_mut(buf.cast::<u8>(), cap) }?;
        if len.is_null() || input.form == HeadForm::None {
            return Err(Error::INVALID);
        }
        let mut spans = Spans::new();
        let exchange = input.exchange();
        let decision = http::decide(&exchange, &mut spans)?;
        let room = buf.len();
        let mut out = Buffer::new(buf);
        http::write_head(&exchange, &decision, &spans, input.form, &mut out);
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { len.write(out.needed()) };
        Ok(if out.needed() <= room { SENDGATE_OK } else { SENDGATE_ERR_NO_SPACE })
    })
}

/// The head as fields, for a server that writes it itself; Date and Connection are among them only
/// with SENDGATE_HEAD_HTTP1, and Transfer-Encoding is not with SENDGATE_HEAD_CGI, which is for servers
/// that frame what they get (HTTP/2). The fields point into scratch and into what ex borrows.
/// SENDGATE_ERR_NO_SPACE: *n_fields and *needed are what is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_head_fields(
    ex: *const sendgate_exchange,
    fields: *mut sendgate_field,
    cap: usize,
    scratch: *mut c_char,
    scratch_cap: usize,
    n_fields: *mut usize,
    needed: *mut usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a valid exchange whose members live during the call.
        let input = unsafe { Input::read(ex) }?;
        if n_fields.is_null() {
            return Err(Error::INVALID);
        }
        let mut out = FieldArray {
            // SAFETY: the header asks for `cap` writable fields.
            fields: unsafe { slice_mut(fields, cap) }?,
            // SAFETY: the header asks for `scratch_cap` writable bytes.
            scratch: unsafe { slice_mut(scratch.cast::<u8>(), scratch_cap) }?,
            n_fields: 0,
            needed: 0,
        };
        let mut spans = Spans::new();
        let exchange = input.exchange();
        let decision = http::decide(&exchange, &mut spans)?;
        http::write_fields(&exchange, &decision, &spans, input.form, &mut out);
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { n_fields.write(out.n_fields) };
        // SAFETY: the header asks for NULL or a writable size.
        unsafe { write_optional(needed, out.needed) };
        let room = out.n_fields <= out.fields.len() && out.needed <= out.scratch.len();
        Ok(if room { SENDGATE_OK } else { SENDGATE_ERR_NO_SPACE })
    })
}

/// Fields into the caller's array; what lies on our stack is copied to the caller's scratch.
struct FieldArray<'a> {
    fields: &'a mut [sendgate_field],
    scratch: &'a mut [u8],
    n_fields: usize,
    needed: usize,
}

impl FieldSink for FieldArray<'_> {
    fn field(&mut self, name: &[u8], value: &[u8], source: Source) {
        let mut kept = value;
        if source == Source::Made {
            let end = self.needed + value.len();
            kept = match self.scratch.get_mut(self.needed..end) {
                Some(place) => {
                    place.copy_from_slice(value);
                    place
                }
                None => &[],
            };
            self.needed = end;
        }
        if let Some(place) = self.fields.get_mut(self.n_fields) {
            *place = to_field(name, kept);
        }
        self.n_fields += 1;
    }
}
