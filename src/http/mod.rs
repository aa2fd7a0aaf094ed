//! The decision: values in, values out. No I/O, no clock, no allocation, no unsafe.

#![forbid(unsafe_code)]

mod buffer;
pub(crate) mod conditions;
pub(crate) mod date;
mod decide;
pub(crate) mod etag;
mod fields;
mod head;
pub(crate) mod multipart;
mod range;
pub mod request;
mod rules;
pub mod validator;

pub use buffer::Buffer;
pub use decide::{Decision, Framing, decide};
pub use fields::{is_field, trim};
pub use head::{FieldSink, HeadForm, Source, write_body_text, write_fields, write_head};
pub use range::{MAX_RANGES, Span, Spans, write_content_range};
pub(crate) use rules::{is_framing, may_be_trailer};

/// Why an exchange is refused. Nothing has been written then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// An argument out of range, or against another.
    Invalid,
    /// A response field with CR, LF or NUL, a bad name, or against the rule for its name.
    Field,
}

/// The request's method, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    /// OPTIONS, TRACE, CONNECT: conditions are ignored (RFC 9110 13.2.1).
    Unconditional,
    Other,
}

impl Method {
    /// Methods are case-sensitive (RFC 9110 9.1).
    fn new(method: &[u8]) -> Self {
        match method {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"OPTIONS" | b"TRACE" | b"CONNECT" => Self::Unconditional,
            _ => Self::Other,
        }
    }
}

/// The fields of a request that the answer depends on. A field sent on several lines is one value,
/// joined with ", "; `None` is absent, and not the same as empty.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // Each is the field of its name.
pub struct Request<'a> {
    pub method: &'a [u8],
    /// The client speaks HTTP/1.0.
    pub http10: bool,
    /// Content was announced and not read.
    pub has_body: bool,
    pub connection: Option<&'a [u8]>,
    pub if_match: Option<&'a [u8]>,
    pub if_none_match: Option<&'a [u8]>,
    pub if_modified_since: Option<&'a [u8]>,
    pub if_unmodified_since: Option<&'a [u8]>,
    pub if_range: Option<&'a [u8]>,
    pub range: Option<&'a [u8]>,
}

/// A time of modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modified {
    /// Since 1970; may be negative.
    pub seconds: i64,
    /// 0 to 999999999.
    pub nanoseconds: u32,
}

/// What is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Representation<'a> {
    /// In bytes; 0 if it `is_unsized`.
    pub length: u64,
    /// Nobody knows how long it will be.
    pub is_unsized: bool,
    /// Only all of it can be had, from its start to its end.
    pub is_unseekable: bool,
    /// Last-Modified, and the age of `etag`.
    pub modified: Option<Modified>,
    /// With its quotes, and `W/` if weak.
    pub etag: Option<&'a [u8]>,
    /// `etag` was made from `modified`, and is weak while that is too recent.
    pub etag_from_mtime: bool,
    /// Content-Type.
    pub content_type: Option<&'a [u8]>,
}

/// Who wins if the library produces the same field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The library.
    Default,
    /// The application.
    Override,
    /// Both are sent.
    Append,
    /// Neither is sent.
    Remove,
}

/// A field that the application adds to the response.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// A token.
    pub name: &'a [u8],
    /// Without CR, LF, NUL.
    pub value: &'a [u8],
    /// Who wins.
    pub rule: Rule,
    /// Sent even where a 304, 412 or 416 would drop it.
    pub frozen: bool,
}

/// The application's fields, wherever they lie. An index below `len` always gives a header.
pub trait HeaderList {
    /// How many there are.
    fn len(&self) -> usize;
    /// The one with this index.
    fn get(&self, index: usize) -> Header<'_>;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl HeaderList for [Header<'_>] {
    fn len(&self) -> usize {
        <[Header<'_>]>::len(self)
    }
    fn get(&self, index: usize) -> Header<'_> {
        self[index]
    }
}

impl<const N: usize> HeaderList for [Header<'_>; N] {
    fn len(&self) -> usize {
        N
    }
    fn get(&self, index: usize) -> Header<'_> {
        self[index]
    }
}

/// One request, one representation, and how to answer.
#[derive(Clone, Copy)]
pub struct Exchange<'a> {
    /// The request.
    pub request: Request<'a>,
    /// The representation.
    pub representation: Representation<'a>,
    /// The application's fields.
    pub headers: &'a dyn HeaderList,
    /// The clock, in seconds since 1970, up to the year 9999.
    pub now: i64,
    /// Of multipart boundaries.
    pub seed: u64,
    /// The application's own status.
    pub status: u16,
    /// Conditions and ranges count; only with status 200.
    pub evaluate: bool,
    /// Announce `Connection: close`.
    pub close: bool,
    /// More parts than that: the whole is sent. At most `MAX_RANGES`.
    pub max_ranges: usize,
}

impl Exchange<'_> {
    /// RFC 9110 13.2.1: conditions only count where the answer without them would be a success;
    /// with a status other than 200 the application has made up its mind.
    pub(crate) fn is_evaluated(&self) -> bool {
        self.evaluate && self.status == 200
    }

    /// Whether a part of it can be sent (RFC 9110 14.2).
    pub(crate) fn has_ranges(&self) -> bool {
        let Representation { is_unsized, is_unseekable, .. } = self.representation;
        self.is_evaluated() && !is_unsized && !is_unseekable
    }
}

impl std::fmt::Debug for Exchange<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("request", &self.request)
            .field("representation", &self.representation)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
