//! What a caller passes in, checked and in Rust's terms.

use super::Error;
use super::status::*;
use super::structs::{bytes, read_struct, slice};
use super::types::*;
use crate::answer::{Answer, Sink};
use crate::deadline::Limits;
use crate::fastcgi::records::{Ending, Records};
use crate::http::{HeadForm, Header, HeaderList, MAX_RANGES, Modified, Representation, Request, Rule};
use crate::io::Fault;
use crate::io::callback::Writer;
use crate::io::file::Body;
use std::time::Duration;

/// An answer with the caller's headers, valid during `'a`.
pub(crate) type Input<'a> = Answer<'a, RawHeaders<'a>>;

impl<'a> Input<'a> {
    /// Reads and checks all of an exchange.
    ///
    /// # Safety
    /// As the header asks: everything that `ex` points to is valid during `'a`.
    pub(crate) unsafe fn read(ex: *const sendgate_exchange) -> Result<Self, Error> {
        // SAFETY: the same promise.
        let ex = unsafe { read_struct(ex) }?;
        // SAFETY: the same promise.
        let request = unsafe { read_request(ex.request) }?;
        // SAFETY: the same promise.
        let rep = unsafe { read_struct(ex.rep) }?;
        // SAFETY: the same promise.
        let headers = unsafe { RawHeaders::read(ex.headers, ex.n_headers) }?;
        let status = if ex.http_status == 0 { 200 } else { ex.http_status };
        let max_ranges = if ex.max_ranges == 0 { MAX_RANGES } else { ex.max_ranges as usize };
        if ex.head_flags & !SENDGATE_HEAD_CLOSE != 0 || max_ranges > MAX_RANGES {
            return Err(Error::INVALID);
        }
        // SAFETY: the same promise.
        let (representation, body) = unsafe { read_rep(&rep) }?;
        // SAFETY: the same promise.
        let head_text = unsafe { bytes(ex.head_text) }?;
        Ok(Self {
            request,
            representation,
            body,
            headers,
            now: if ex.now == 0 { clock() } else { ex.now },
            seed: seed(ex.seed, &request),
            form: match (ex.head, head_text) {
                (SENDGATE_HEAD_HTTP1, None) => HeadForm::Http1,
                (SENDGATE_HEAD_CGI, None) => HeadForm::Cgi,
                (SENDGATE_HEAD_NONE, None) => HeadForm::None,
                // Not without any: a struct that is too old to have it would send content without a head.
                (SENDGATE_HEAD_GIVEN, Some(text)) => HeadForm::Given(text),
                _ => return Err(Error::INVALID),
            },
            close: ex.head_flags & SENDGATE_HEAD_CLOSE != 0,
            max_ranges,
            status: u16::try_from(status).map_err(|_| Error::INVALID)?,
            evaluate: true,
            copy: rep.flags & SENDGATE_REP_COPY != 0,
            check: rep.flags & SENDGATE_REP_CHECK != 0,
            records: None,
            is_stream: rep.kind == SENDGATE_REP_STREAM,
        })
    }
}

/// # Safety
/// `p` is NULL, or a request whose members are valid during `'a`.
pub(crate) unsafe fn read_request<'a>(p: *const sendgate_request) -> Result<Request<'a>, Error> {
    if p.is_null() {
        return Ok(Request { method: b"GET", ..Request::default() });
    }
    // SAFETY: the same promise.
    let req = unsafe { read_struct(p) }?;
    if req.flags & !SENDGATE_REQUEST_HAS_BODY != 0 {
        return Err(Error::INVALID);
    }
    // SAFETY: the same promise, for each member.
    let text = |text| unsafe { bytes(text) };
    Ok(Request {
        method: text(req.method)?.unwrap_or(b"GET"),
        http10: match req.version {
            0 | 11 => false,
            10 => true,
            _ => return Err(Error::INVALID),
        },
        has_body: req.flags & SENDGATE_REQUEST_HAS_BODY != 0,
        connection: text(req.connection)?,
        if_match: text(req.if_match)?,
        if_none_match: text(req.if_none_match)?,
        if_modified_since: text(req.if_modified_since)?,
        if_unmodified_since: text(req.if_unmodified_since)?,
        if_range: text(req.if_range)?,
        range: text(req.range)?,
    })
}

/// # Safety
/// The members of `rep` are valid during `'a`.
unsafe fn read_rep<'a>(rep: &sendgate_rep) -> Result<(Representation<'a>, Body<'a>), Error> {
    const FLAGS: u32 = SENDGATE_REP_HAS_MTIME | SENDGATE_REP_ETAG_FROM_MTIME | SENDGATE_REP_COPY | SENDGATE_REP_CHECK;
    const STREAM: u32 = SENDGATE_REP_UNSIZED | SENDGATE_REP_SEEKABLE;
    let flags = if rep.kind == SENDGATE_REP_STREAM { FLAGS | STREAM } else { FLAGS };
    if rep.flags & !flags != 0 || rep.mtime_nsec > 999_999_999 {
        return Err(Error::INVALID);
    }
    let body = match rep.kind {
        SENDGATE_REP_FILE => {
            let end = rep.offset.checked_add(rep.length);
            if rep.fd < 0 || end.is_none_or(|end| i64::try_from(end).is_err()) {
                return Err(Error::INVALID);
            }
            Body::File { fd: rep.fd, offset: rep.offset }
        }
        SENDGATE_REP_MEMORY => {
            let length = usize::try_from(rep.length).map_err(|_| Error::INVALID)?;
            if rep.offset != 0 {
                return Err(Error::INVALID);
            }
            // SAFETY: the header asks for `length` readable bytes.
            Body::Memory(unsafe { slice(rep.memory.cast::<u8>(), length) }?)
        }
        SENDGATE_REP_STREAM => {
            let length_fits = i64::try_from(rep.length).is_ok();
            let unsized_fits =
                rep.flags & SENDGATE_REP_UNSIZED == 0 || rep.length == 0 && rep.flags & SENDGATE_REP_SEEKABLE == 0;
            if !length_fits || !unsized_fits || rep.offset != 0 {
                return Err(Error::INVALID);
            }
            Body::Memory(&[])
        }
        _ => return Err(Error::INVALID),
    };
    let modified = Modified { seconds: rep.mtime, nanoseconds: rep.mtime_nsec };
    let representation = Representation {
        length: rep.length,
        is_unsized: rep.flags & SENDGATE_REP_UNSIZED != 0,
        is_unseekable: rep.kind == SENDGATE_REP_STREAM && rep.flags & SENDGATE_REP_SEEKABLE == 0,
        modified: (rep.flags & SENDGATE_REP_HAS_MTIME != 0).then_some(modified),
        // SAFETY: the same promise.
        etag: unsafe { bytes(rep.etag) }?,
        etag_from_mtime: rep.flags & SENDGATE_REP_ETAG_FROM_MTIME != 0,
        // SAFETY: the same promise.
        content_type: unsafe { bytes(rep.content_type) }?,
    };
    Ok((representation, body))
}

/// Seconds since 1970.
pub(crate) fn clock() -> i64 {
    // SAFETY: NULL: the time is only returned.
    unsafe { libc::time(std::ptr::null_mut()) }
}

/// A seed of the caller's, or a random one if there may be a boundary to make.
pub(crate) fn seed(given: u64, request: &Request<'_>) -> u64 {
    if given != 0 || !request.range.is_some_and(|range| range.contains(&b',')) {
        return given;
    }
    let mut seed = 0u64;
    // By its number: glibc before 2.25 has no function for it.
    // SAFETY: `seed` is writable for its size.
    let got = unsafe { libc::syscall(libc::SYS_getrandom, &raw mut seed, size_of_val(&seed), 0) };
    if got == size_of_val(&seed) as libc::c_long {
        return seed;
    }
    // A kernel without it, or a sandbox: a boundary must be unlikely, not secret.
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_nsec.unsigned_abs() << 32) ^ time.tv_sec.unsigned_abs() ^ (&raw const seed as u64)
}

/// The caller's array of headers, each of them checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawHeaders<'a>(&'a [sendgate_header]);

impl<'a> RawHeaders<'a> {
    /// # Safety
    /// `p` is NULL, or `n` headers, valid during `'a` with all that they point to.
    pub(crate) unsafe fn read(p: *const sendgate_header, n: usize) -> Result<Self, Error> {
        // SAFETY: the same promise.
        let headers = unsafe { slice::<'a>(p, n) }?;
        for header in headers {
            if header.reserved != 0 || header.rule & !SENDGATE_RULE_FROZEN > SENDGATE_RULE_REMOVE {
                return Err(Error::INVALID);
            }
            // SAFETY: the same promise.
            unsafe { read_field(&header.field) }?;
        }
        Ok(Self(headers))
    }
}

/// A field's name and value; an absent value is empty.
///
/// # Safety
/// The members are valid during `'a`.
unsafe fn read_field<'a>(field: &sendgate_field) -> Result<(&'a [u8], &'a [u8]), Error> {
    // SAFETY: the same promise.
    let name = unsafe { bytes(field.name) }?;
    // SAFETY: the same promise.
    let value = unsafe { bytes(field.value) }?;
    Ok((name.unwrap_or_default(), value.unwrap_or_default()))
}

impl HeaderList for RawHeaders<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, index: usize) -> Header<'_> {
        let header = &self.0[index];
        // SAFETY: `read` has been promised that they are valid as long as `self`, and found them to be readable.
        let (name, value) = unsafe { read_field(&header.field) }.unwrap_or_default();
        let rule = match header.rule & !SENDGATE_RULE_FROZEN {
            SENDGATE_RULE_OVERRIDE => Rule::Override,
            SENDGATE_RULE_APPEND => Rule::Append,
            SENDGATE_RULE_REMOVE => Rule::Remove,
            _ => Rule::Default,
        };
        Header { name, value, rule, frozen: header.rule & SENDGATE_RULE_FROZEN != 0 }
    }
}

/// An array of fields, each of them checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawFields<'a>(&'a [sendgate_field]);

impl<'a> RawFields<'a> {
    /// # Safety
    /// `p` is NULL, or `n` fields, valid during `'a` with all that they point to.
    pub(crate) unsafe fn read(p: *const sendgate_field, n: usize) -> Result<Self, Error> {
        // SAFETY: the same promise.
        let fields = unsafe { slice::<'a>(p, n) }?;
        for field in fields {
            // SAFETY: the same promise.
            unsafe { read_field(field) }?;
        }
        Ok(Self(fields))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get(&self, index: usize) -> Option<(&'a [u8], &'a [u8])> {
        // SAFETY: as for `iter`.
        self.0.get(index).map(|field| unsafe { read_field(field) }.unwrap_or_default())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone + use<'a> {
        let fields = self.0;
        // SAFETY: `read` has been promised that they are valid during `'a`, and found them to be readable.
        fields.iter().map(|field| unsafe { read_field(field) }.unwrap_or_default())
    }
}

/// A write function of the caller's, with its argument.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callback {
    function: unsafe extern "C" fn(*mut std::ffi::c_void, *const u8, usize, *mut usize) -> i32,
    user: *mut std::ffi::c_void,
}

// SAFETY: the header says that a sender calls the function, with `user`, on its own thread.
unsafe impl Send for Callback {}

impl Writer for Callback {
    /// Passes `bytes` on. What comes back is checked: a count that isn't 1 to the length would lose
    /// bytes, or loop for ever.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut written = 0;
        // SAFETY: the header asks for a function that may be called with `user` until the response is done.
        let status = unsafe { (self.function)(self.user, bytes.as_ptr(), bytes.len(), &raw mut written) };
        match status {
            SENDGATE_OK if (1..=bytes.len()).contains(&written) => Ok(written),
            SENDGATE_WANT_WRITE => Err(Fault::Wait(crate::io::Interest::Write)),
            SENDGATE_WANT_READ => Err(Fault::Wait(crate::io::Interest::Read)),
            error if error < 0 => Err(Fault::Callback(error)),
            _ => Err(Fault::Callback(SENDGATE_ERR_INVALID)),
        }
    }
}

/// Where bytes go, and how long that may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SinkInput {
    pub(crate) sink: Sink<Callback>,
    pub(crate) limits: Limits,
    pub(crate) try_now: bool,
    /// Framed as FastCGI's records.
    pub(crate) records: Option<Records>,
}

/// # Safety
/// As the header asks.
pub(crate) unsafe fn read_sink(p: *const sendgate_sink) -> Result<SinkInput, Error> {
    // SAFETY: the same promise.
    let sink = unsafe { read_struct(p) }?;
    const FCGI: u32 = SENDGATE_SINK_FCGI_KEEP | SENDGATE_SINK_FCGI_END_SHORT;
    let flags =
        SENDGATE_SINK_SIGPIPE_IGNORED | SENDGATE_SINK_TRY_NOW | if sink.fcgi_request_id == 0 { 0 } else { FCGI };
    if sink.flags & !flags != 0 || sink.fd < -1 || sink.reserved != 0 {
        return Err(Error::INVALID);
    }
    let records = match u16::try_from(sink.fcgi_request_id).map_err(|_| Error::INVALID)? {
        0 => None,
        id => Some(Records::new(
            id,
            Ending {
                keep: sink.flags & SENDGATE_SINK_FCGI_KEEP != 0,
                ends_short: sink.flags & SENDGATE_SINK_FCGI_END_SHORT != 0,
            },
        )),
    };
    let limits = limits(sink.idle_timeout_ms, sink.total_timeout_ms, sink.min_rate);
    let try_now = sink.flags & SENDGATE_SINK_TRY_NOW != 0;
    let sigpipe_ignored = sink.flags & SENDGATE_SINK_SIGPIPE_IGNORED != 0;
    let fd = (sink.fd >= 0).then_some(sink.fd);
    let sink = match (sink.write, fd) {
        (Some(function), fd) => Sink::Writer { writer: Callback { function, user: sink.user }, fd },
        (None, Some(fd)) => Sink::Socket { fd, sigpipe_ignored },
        (None, None) => return Err(Error::INVALID),
    };
    Ok(SinkInput { sink, limits, try_now, records })
}

/// What a sink or a source says of time.
pub(crate) fn limits(idle_ms: u32, total_ms: u32, min_rate: u64) -> Limits {
    let milliseconds = |number: u32| Duration::from_millis(u64::from(number));
    Limits {
        idle: milliseconds(if idle_ms == 0 { 60_000 } else { idle_ms }),
        total: (total_ms != 0).then(|| milliseconds(total_ms)),
        min_rate,
    }
}
