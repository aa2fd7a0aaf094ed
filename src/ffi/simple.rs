//! One call for one answer: the three `response_file` calls, and one without structs.

use super::input::{RawFields, SinkInput, clock, read_request, read_sink, seed};
use super::send::{report, respond_to};
use super::status::*;
use super::structs::{c_string, to_str, write_optional, zeroed};
use super::types::*;
use super::{Error, guard};
use crate::answer::Answer;
use crate::fastcgi::records::Records;
use crate::http::request;
use crate::http::validator::{self, ETAG_MAX};
use crate::http::{Buffer, HeadForm, Header, HeaderList, MAX_RANGES, Representation, Request, Rule, is_field, trim};
use crate::io::file::{Body, Metadata, open_for_reading};
use libc::{EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};
use std::ffi::{CStr, c_char};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Fields that stand in for the library's own, and perhaps one more.
#[derive(Clone, Copy)]
struct Overrides<'a> {
    fields: RawFields<'a>,
    extra: Option<Header<'a>>,
}

impl<'a> Overrides<'a> {
    fn has(&self, name: &[u8]) -> bool {
        self.fields.iter().any(|field| field.0.eq_ignore_ascii_case(name))
    }
}

impl HeaderList for Overrides<'_> {
    fn len(&self) -> usize {
        self.fields.len() + usize::from(self.extra.is_some())
    }

    fn get(&self, index: usize) -> Header<'_> {
        match (self.fields.get(index), self.extra) {
            (Some((name, value)), _) => Header { name, value, rule: Rule::Override, frozen: false },
            (None, Some(extra)) => extra,
            (None, None) => Header { name: b"", value: b"", rule: Rule::Remove, frozen: false },
        }
    }
}

/// An answer from a file, before anything of it is known but that.
fn new_answer<'a, H>(
    request: Request<'a>,
    body: Body<'a>,
    headers: H,
    status: u32,
    records: Option<Records>,
) -> Result<Answer<'a, H>, Error> {
    let status = u16::try_from(if status == 0 { 200 } else { status }).map_err(|_| Error::INVALID)?;
    Ok(Answer {
        request,
        representation: Representation::default(),
        body,
        headers,
        now: clock(),
        seed: seed(0, &request),
        form: if records.is_some() { HeadForm::Cgi } else { HeadForm::Http1 },
        close: false,
        max_ranges: MAX_RANGES,
        status,
        evaluate: true,
        copy: false,
        check: false,
        records,
        is_stream: false,
    })
}

/// Takes a descriptor over: it is closed with what this returns.
///
/// # Safety
/// Nobody else closes `fd`.
unsafe fn take(fd: RawFd) -> Result<OwnedFd, Error> {
    // SAFETY: the same promise; not -1.
    if fd < 0 { Err(Error::INVALID) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// Answer with the whole file fd, as the application says: http_status and headers are sent as
/// given, with Content-Length and Date added; no condition or range is evaluated. Takes fd over: it
/// is closed before this returns, whatever the outcome, so pass a dup(2) to keep yours. req (NULL:
/// GET, HTTP/1.1) tells HEAD and keep-alive. http_status 0 is 200. out may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_response_file_fd(
    sink: *const sendgate_sink,
    req: *const sendgate_request,
    http_status: u32,
    headers: *const sendgate_field,
    n_headers: usize,
    fd: i32,
    out: *mut sendgate_result,
) -> sendgate_status {
    // SAFETY: the header says that it is ours from here on, whatever is wrong with the rest.
    let file = unsafe { take(fd) };
    let call = || {
        let file = file?;
        let size = Metadata::of(fd)?.size;
        // SAFETY: the header asks for arguments that are valid during the call.
        unsafe { response_span(sink, req, http_status, headers, n_headers, &file, (0, size), size) }
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, SENDGATE_CONN_UNTOUCHED, call) }
}

/// As sendgate_response_file_fd, with the bytes from start to before end only. start >= end is
/// SENDGATE_ERR_INVALID; any end past the file is SENDGATE_ERR_TRUNCATED, with nothing sent. A 206
/// without a Content-Range of yours gets one. Takes fd over: it is closed before this returns,
/// whatever the outcome.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_response_file_fd_range(
    sink: *const sendgate_sink,
    req: *const sendgate_request,
    http_status: u32,
    headers: *const sendgate_field,
    n_headers: usize,
    fd: i32,
    start: u64,
    end: u64,
    out: *mut sendgate_result,
) -> sendgate_status {
    // SAFETY: the header says that it is ours from here on, whatever is wrong with the rest.
    let file = unsafe { take(fd) };
    let call = || {
        let file = file?;
        if start >= end {
            return Err(Error::INVALID);
        }
        let size = Metadata::of(fd)?.size;
        if end > size {
            return Err(Error::new(SENDGATE_ERR_TRUNCATED));
        }
        // SAFETY: the header asks for arguments that are valid during the call.
        unsafe { response_span(sink, req, http_status, headers, n_headers, &file, (start, end), size) }
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, SENDGATE_CONN_UNTOUCHED, call) }
}

/// Sends a span of a file, with the application's status and fields as they are.
///
/// # Safety
/// As the header asks of the two calls above.
#[expect(clippy::too_many_arguments)] // They are the two calls' own.
unsafe fn response_span(
    sink: *const sendgate_sink,
    req: *const sendgate_request,
    http_status: u32,
    headers: *const sendgate_field,
    n_headers: usize,
    file: &OwnedFd,
    (start, end): (u64, u64),
    size: u64,
) -> Result<sendgate_result, Error> {
    // SAFETY: the same promise.
    let SinkInput { sink, limits, records, .. } = unsafe { read_sink(sink) }?;
    // SAFETY: the same promise.
    let request = unsafe { read_request(req) }?;
    // SAFETY: the same promise.
    let fields = unsafe { RawFields::read(headers, n_headers) }?;
    let mut text = [0; 72];
    let mut content_range = Buffer::new(&mut text);
    let mut headers = Overrides { fields, extra: None };
    if http_status == 206 && !headers.has(b"Content-Range") {
        crate::http::write_content_range(&mut content_range, start, end - start, size);
        let value = content_range.written();
        headers.extra = Some(Header { name: b"Content-Range", value, rule: Rule::Override, frozen: false });
    }
    let body = Body::File { fd: file.as_raw_fd(), offset: start };
    let mut answer = new_answer(request, body, headers, http_status, records)?;
    answer.representation.length = end - start;
    answer.evaluate = false;
    Ok(respond_to(&answer, sink, limits))
}

/// Open file (a NUL-terminated path), fstat it once, decide and answer from the same descriptor:
/// 200, 206, 304 or 416. The conditions are these four (NUL-terminated values, NULL if the request
/// has none); those in req are ignored. ETag, Last-Modified and Accept-Ranges are added unless
/// headers has them: an ETag or Last-Modified of the application's wins, in the comparison too.
/// Several ranges are answered as multipart/byteranges. A file that doesn't exist or may not be
/// read is answered 404 with an empty body; one that can't be opened for another reason is
/// SENDGATE_ERR_IO. http_status (0: 200) is that of the full answer; with any but 200 nothing is
/// evaluated. out may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_response_file_conditional(
    sink: *const sendgate_sink,
    req: *const sendgate_request,
    http_status: u32,
    headers: *const sendgate_field,
    n_headers: usize,
    file: *const c_char,
    if_none_match: *const c_char,
    if_modified_since: *const c_char,
    range: *const c_char,
    if_range: *const c_char,
    out: *mut sendgate_result,
) -> sendgate_status {
    let call = || {
        // SAFETY: the header asks for a valid sink.
        let SinkInput { sink, limits, records, .. } = unsafe { read_sink(sink) }?;
        // SAFETY: the header asks for NULL or a valid request.
        let given = unsafe { read_request(req) }?;
        // SAFETY: the header asks for NULL or a NUL-terminated string, for each of the five.
        let text = |text| unsafe { c_string(text) };
        let value = |p| text(p).map(CStr::to_bytes);
        let request = Request {
            if_match: None,
            if_none_match: value(if_none_match),
            if_modified_since: value(if_modified_since),
            if_unmodified_since: None,
            if_range: value(if_range),
            range: value(range),
            ..given
        };
        // SAFETY: the header asks for `n_headers` valid fields.
        let fields = unsafe { RawFields::read(headers, n_headers) }?;
        let path = text(file).ok_or(Error::INVALID)?;
        if !fields.iter().all(|(name, value)| is_field(name, value)) {
            return Err(Error::new(SENDGATE_ERR_FIELD));
        }
        let opened = open_for_reading(path);
        if let Err(error) = &opened
            && !matches!(crate::io::errno(error), ENOENT | ENOTDIR | EACCES | ELOOP | ENAMETOOLONG)
        {
            // Not the file's fault: caches must not learn that it is gone.
            return Err(Error::io(error));
        }
        let Ok(file) = opened else {
            let mut answer = new_answer(request, Body::Memory(&[]), [] as [Header<'_>; 0], 404, records)?;
            answer.evaluate = false;
            return Ok(respond_to(&answer, sink, limits));
        };
        let metadata = Metadata::of(file.as_raw_fd())?;
        let mut tag = [0; ETAG_MAX];
        let mut answer = new_answer(
            request,
            Body::File { fd: file.as_raw_fd(), offset: 0 },
            Overrides { fields, extra: None },
            http_status,
            records,
        )?;
        answer.representation = representation(&metadata, &mut tag);
        Ok(respond_to(&answer, sink, limits))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, SENDGATE_CONN_UNTOUCHED, call) }
}

fn representation<'a>(metadata: &Metadata, tag: &'a mut [u8; ETAG_MAX]) -> Representation<'a> {
    let length = {
        let mut text = Buffer::new(&mut tag[..]);
        validator::entity_tag(&metadata.tag_inputs(false, false), &mut text);
        text.needed()
    };
    Representation {
        length: metadata.size,
        modified: Some(metadata.modified),
        etag: Some(&tag[..length]),
        etag_from_mtime: true,
        ..Representation::default()
    }
}

/// Header lines in one string: "Name: value\r\n" again and again. What is no such line becomes a
/// field without a name, which is refused; so is a lone CR or LF, being part of a value.
#[derive(Clone, Copy)]
struct Lines<'a>(&'a [u8]);

impl<'a> Lines<'a> {
    fn iter(&self) -> LineIter<'a> {
        LineIter(self.0)
    }

    fn is_valid(&self) -> bool {
        self.iter().all(|(name, value)| is_field(name, value))
    }
}

#[derive(Clone)]
struct LineIter<'a>(&'a [u8]);

impl<'a> Iterator for LineIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let text = self.0;
        let end = text.windows(2).position(|pair| pair == b"\r\n").unwrap_or(text.len());
        self.0 = text.get(end + 2..).unwrap_or_default();
        let line = &text[..end];
        Some(match line.iter().position(|b| *b == b':') {
            Some(colon) => (&line[..colon], trim(&line[colon + 1..])),
            None => (b"", line),
        })
    }
}

impl HeaderList for Lines<'_> {
    fn len(&self) -> usize {
        self.iter().count()
    }

    fn get(&self, index: usize) -> Header<'_> {
        let (name, value) = self.iter().nth(index).unwrap_or_default();
        Header { name, value, rule: Rule::Override, frozen: false }
    }
}

/// Everything in one call without structs, for ctypes and the like: answer on the stream socket
/// sock with the file fd (borrowed).
///
/// Strings are NUL-terminated; NULL or "" is absent. method NULL is "GET". version is 10 or 11 (0:
/// 11). request_headers: the request's header lines as received, "Range: bytes=0-9\r\nIf-Match:
/// ...\r\n". Those that don't matter are ignored. What is no header line is SENDGATE_ERR_REQUEST,
/// and so are lines of one field that add up to more than 1024 bytes.
///
/// response_headers, in the same form, replace the library's own of the same name; what is no
/// header line is SENDGATE_ERR_FIELD. timeout_ms is the longest wait without progress (0: 60000).
///
/// The outputs may be NULL, and are written on errors too: *connection is a SENDGATE_CONN_.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_respond_fd(
    sock: i32,
    fd: i32,
    method: *const c_char,
    version: u32,
    request_headers: *const c_char,
    response_headers: *const c_char,
    timeout_ms: u32,
    http_status: *mut u32,
    connection: *mut u32,
    body_sent: *mut u64,
) -> sendgate_status {
    let mut result = zeroed::<sendgate_result>();
    let status = guard(|| {
        // SAFETY: the header asks for NULL or a NUL-terminated string, for each of the three.
        let text = |p| unsafe { c_string(p) }.map(CStr::to_bytes).unwrap_or_default();
        let lines = text(request_headers);
        // As received, they may end with the empty line of their head.
        let lines = Lines(lines.strip_suffix(b"\r\n").filter(|rest| rest.ends_with(b"\r\n")).unwrap_or(lines));
        if !lines.is_valid() {
            return Err(Error::new(SENDGATE_ERR_REQUEST));
        }
        // For fields on several lines, which hardly anyone sends; longer ones than this are refused.
        let mut scratch = [0; 1024];
        let found = request::from_fields(lines.iter(), &mut scratch).map_err(|_| Error::new(SENDGATE_ERR_REQUEST))?;
        let mut req = zeroed::<sendgate_request>();
        req.size = size_of::<sendgate_request>();
        req.method = to_str(Some(text(method)).filter(|method| !method.is_empty()));
        req.version = version;
        // SAFETY: what it points to was just made.
        let base = unsafe { read_request(&raw const req) }?;
        let request = Request { method: base.method, http10: base.http10, ..found.request };
        let mut sink = zeroed::<sendgate_sink>();
        sink.size = size_of::<sendgate_sink>();
        sink.fd = sock;
        sink.idle_timeout_ms = timeout_ms;
        // SAFETY: as above.
        let SinkInput { sink, limits, .. } = unsafe { read_sink(&raw const sink) }?;
        if fd < 0 {
            return Err(Error::INVALID);
        }
        let metadata = Metadata::of(fd)?;
        let mut tag = [0; ETAG_MAX];
        let mut answer = new_answer(request, Body::File { fd, offset: 0 }, Lines(text(response_headers)), 200, None)?;
        answer.representation = representation(&metadata, &mut tag);
        result = respond_to(&answer, sink, limits);
        Ok(result.status)
    });
    // SAFETY: the header asks for NULL or a writable integer, for each of the three.
    unsafe { write_optional(http_status, result.http_status) };
    // SAFETY: as above.
    unsafe {
        write_optional(
            connection,
            if status == SENDGATE_ERR_INTERNAL { SENDGATE_CONN_BROKEN } else { result.connection },
        )
    };
    // SAFETY: as above.
    unsafe { write_optional(body_sent, result.body_sent) };
    status
}
