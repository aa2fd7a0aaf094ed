//! The head: who wins where library and application have the same field, and what 304, 412 and 416 drop.

use super::conditions::Validators;
use super::decide::Decision;
use super::etag::EntityTag;
use super::fields::{is_name, is_token, is_value, trim};
use super::multipart::{self, Boundary};
use super::range::Span;
use super::validator::ETAG_MAX;
use super::{Error, Exchange, Method, Rule, date};

/// Bytes written into a space that may be too small: then they are only counted.
#[derive(Debug)]
pub struct Buffer<'a> {
    space: &'a mut [u8],
    needed: usize,
}

impl<'a> Buffer<'a> {
    /// Writes into `space`.
    pub fn new(space: &'a mut [u8]) -> Self {
        Self { space, needed: 0 }
    }

    /// Only counts.
    pub fn counting() -> Self {
        Self { space: &mut [], needed: 0 }
    }

    /// Adds `bytes`, or, from the first that doesn't fit on, only their number.
    #[inline(always)] // Most of what is pushed is a literal: then its length is known, and the copy two moves.
    pub fn push(&mut self, bytes: &[u8]) {
        self.place(bytes.len(), |place| place.copy_from_slice(bytes));
    }

    /// How long all of it is, whether it fits or not.
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// What was written: empty if it did not fit.
    pub fn written(&self) -> &[u8] {
        self.space.get(..self.needed).unwrap_or_default()
    }

    /// Adds room for `count` bytes and gives it to `fill`, or only counts them.
    #[inline(always)] // As `push`: most counts are known.
    fn place(&mut self, count: usize, fill: impl FnOnce(&mut [u8])) {
        let end = self.needed.saturating_add(count);
        if let Some(place) = self.space.get_mut(self.needed..end) {
            fill(place);
        } else {
            self.space = &mut [];
        }
        self.needed = end;
    }

    pub(super) fn decimal(&mut self, mut number: u64) {
        let count = number.checked_ilog10().unwrap_or(0) as usize + 1;
        self.place(count, |place| {
            let mut pairs = place.rchunks_exact_mut(2);
            for pair in &mut pairs {
                pair.copy_from_slice(&date::TWO_DIGITS[(number % 100) as usize]);
                number /= 100;
            }
            if let [first] = pairs.into_remainder() {
                *first = b'0' + number as u8;
            }
        });
    }

    /// At least `width` digits.
    pub(super) fn hexadecimal(&mut self, mut number: u64, width: usize) {
        let count = (64 - number.leading_zeros() as usize).div_ceil(4).max(width);
        self.place(count, |place| {
            for digit in place.iter_mut().rev() {
                *digit = b"0123456789abcdef"[(number & 15) as usize];
                number >>= 4;
            }
        });
    }
}

/// How the head begins, and whether it has the fields that belong to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadForm {
    /// `HTTP/1.1 200 OK`, with Date and Connection.
    Http1,
    /// `Status: 200 OK`: the front server writes Date and Connection (RFC 3875 6.3).
    Cgi,
    /// The caller sends the head itself, Date and Connection with it.
    None,
}

/// Where a field's value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// On the stack, until the call returns.
    Made,
    /// In what the exchange borrows.
    Borrowed,
}

/// Takes the fields of a head, one by one. Names are borrowed from the exchange, or static.
pub trait FieldSink {
    /// One field.
    fn field(&mut self, name: &[u8], value: &[u8], source: Source);
}

impl FieldSink for Buffer<'_> {
    #[inline(always)] // As `push`.
    fn field(&mut self, name: &[u8], value: &[u8], _: Source) {
        self.push(name);
        self.push(b": ");
        self.push(value);
        self.push(b"\r\n");
    }
}

/// What a field's name means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Has a slot of its own: the library may produce it.
    Slot(SlotName),
    ContentLength,
    ContentRange,
    /// Transfer-Encoding and Connection: never the application's.
    Framing,
    /// Describes the content as a whole: not for a part of it, and not without it.
    WholeContent,
    /// Describes the content: pointless without it (RFC 9110 15.4.5).
    Content,
    /// As `Content`, but a 304 must have it, to update what the client stored (RFC 9110 15.4.5).
    Stored,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotName {
    Date,
    ContentType,
    LastModified,
    ETag,
    AcceptRanges,
}

/// The kind of a name, and a bit of its own for names that may occur only once (else 0).
fn classify(name: &[u8]) -> (Kind, u32) {
    const NAMES: [(&[u8], Kind, u32); 26] = [
        (b"Age", Kind::Other, 1),
        (b"Date", Kind::Slot(SlotName::Date), 1 << 1),
        (b"ETag", Kind::Slot(SlotName::ETag), 1 << 2),
        (b"Digest", Kind::Content, 0),
        (b"Server", Kind::Other, 1 << 3),
        (b"Expires", Kind::Stored, 1 << 4),
        (b"Location", Kind::Other, 1 << 5),
        (b"Connection", Kind::Framing, 0),
        (b"Content-MD5", Kind::WholeContent, 1 << 6),
        (b"Repr-Digest", Kind::Content, 0),
        (b"Retry-After", Kind::Other, 1 << 7),
        (b"Content-Type", Kind::Slot(SlotName::ContentType), 1 << 8),
        (b"Accept-Ranges", Kind::Slot(SlotName::AcceptRanges), 1 << 9),
        (b"Cache-Control", Kind::Stored, 0),
        (b"Content-Range", Kind::ContentRange, 1 << 10),
        (b"Last-Modified", Kind::Slot(SlotName::LastModified), 1 << 11),
        (b"Content-Digest", Kind::WholeContent, 0),
        (b"Content-Length", Kind::ContentLength, 1 << 12),
        (b"Content-Encoding", Kind::Content, 0),
        (b"Content-Language", Kind::Content, 0),
        (b"Content-Location", Kind::Stored, 1 << 13),
        (b"Transfer-Encoding", Kind::Framing, 0),
        (b"Content-Disposition", Kind::Content, 1 << 14),
        (b"Upgrade", Kind::Other, 0),
        (b"Trailer", Kind::Other, 0),
        (b"Keep-Alive", Kind::Framing, 0),
    ];
    // Most names are of the application's own making: the length alone rules most of them out.
    for (known, kind, once) in &NAMES {
        if is_name(name, known) {
            return (*kind, *once);
        }
    }
    (Kind::Other, 0)
}

/// Who provides a field that the library may produce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Slot {
    #[default]
    Library,
    /// The application's field with this index.
    App {
        index: u16,
        frozen: bool,
    },
    Removed,
}

impl Slot {
    pub(super) fn is_library(self) -> bool {
        self == Self::Library
    }

    pub(super) fn app_value<'a>(self, ex: &'a Exchange<'a>) -> Option<&'a [u8]> {
        match self {
            Self::App { index, .. } => Some(ex.headers.get(usize::from(index)).value),
            Self::Library | Self::Removed => None,
        }
    }

    /// The value that counts, if the library's is `library`.
    pub(super) fn value<'a>(self, ex: &'a Exchange<'a>, library: Option<&'a [u8]>) -> Option<&'a [u8]> {
        if self.is_library() { library } else { self.app_value(ex) }
    }

    fn is_frozen(self) -> bool {
        matches!(self, Self::App { frozen: true, .. })
    }
}

/// Who provides each field that the library may produce.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slots {
    date: Slot,
    content_type: Slot,
    pub(super) last_modified: Slot,
    pub(super) etag: Slot,
    accept_ranges: Slot,
}

impl Slots {
    /// Checks all of the application's fields, and finds those that stand in for the library's.
    pub(super) fn read(ex: &Exchange<'_>) -> Result<Self, Error> {
        let mut slots = Self::default();
        let mut seen = 0;
        // Nobody sends that many; the limit keeps the slots small.
        let count = u16::try_from(ex.headers.len()).map_err(|_| Error::Invalid)?;
        for index in 0..count {
            let header = ex.headers.get(usize::from(index));
            if !is_token(header.name) || header.rule != Rule::Remove && !is_value(header.value) {
                return Err(Error::Field);
            }
            let (kind, once) = classify(header.name);
            if once != 0 && (seen & once != 0 || header.rule == Rule::Append) {
                return Err(Error::Field);
            }
            seen |= once;
            match kind {
                Kind::Framing => return Err(Error::Field),
                // With a status of its own the application may know what part it sends.
                Kind::ContentRange if ex.is_evaluated() => return Err(Error::Field),
                Kind::ContentLength => {
                    let digits = header.value;
                    let number = digits.iter().try_fold(0u64, |number, b| {
                        if !b.is_ascii_digit() {
                            return None;
                        }
                        number.checked_mul(10)?.checked_add(u64::from(b - b'0'))
                    });
                    if digits.is_empty() || number != Some(ex.representation.length) {
                        return Err(Error::Field);
                    }
                }
                // RFC 9110 8.8.3. A tag that no client can send back would disable every condition silently.
                Kind::Slot(SlotName::ETag)
                    if header.rule != Rule::Remove && EntityTag::parse(header.value).is_none() =>
                {
                    return Err(Error::Field);
                }
                Kind::Slot(name) => {
                    let produced = match name {
                        SlotName::Date => true,
                        SlotName::ContentType => ex.representation.content_type.is_some(),
                        SlotName::LastModified => {
                            ex.representation.modified.is_some_and(|m| date::is_representable(m.seconds))
                        }
                        SlotName::ETag => ex.representation.etag.is_some(),
                        SlotName::AcceptRanges => ex.is_evaluated(),
                    };
                    *slots.get_mut(name) = match header.rule {
                        Rule::Remove => Slot::Removed,
                        Rule::Default if produced => Slot::Library,
                        Rule::Default | Rule::Override | Rule::Append => Slot::App { index, frozen: header.frozen },
                    };
                }
                Kind::ContentRange | Kind::WholeContent | Kind::Content | Kind::Stored | Kind::Other => {}
            }
        }
        Ok(slots)
    }

    fn get_mut(&mut self, name: SlotName) -> &mut Slot {
        match name {
            SlotName::Date => &mut self.date,
            SlotName::ContentType => &mut self.content_type,
            SlotName::LastModified => &mut self.last_modified,
            SlotName::ETag => &mut self.etag,
            SlotName::AcceptRanges => &mut self.accept_ranges,
        }
    }
}

/// The Content-Type of the whole representation, which is that of each part of a multipart too.
pub(super) fn content_type<'a>(ex: &'a Exchange<'a>, slots: &Slots) -> Option<&'a [u8]> {
    slots.content_type.value(ex, ex.representation.content_type)
}

/// `bytes 0-9/100`, or `bytes */100` (RFC 9110 14.4).
pub(super) fn content_range(out: &mut Buffer<'_>, span: Option<Span>, length: u64) {
    out.push(b"bytes ");
    match span {
        Some(span) => {
            out.decimal(span.offset);
            out.push(b"-");
            out.decimal(span.offset + (span.length - 1));
        }
        None => out.push(b"*"),
    }
    out.push(b"/");
    out.decimal(length);
}

/// The value of a Content-Range for `count` bytes, at least one, from `offset` on.
pub fn write_content_range(out: &mut Buffer<'_>, offset: u64, count: u64, length: u64) {
    content_range(out, Some(Span { offset, length: count }), length);
}

/// The whole head: status line, fields and the empty line. `spans` are those that `decide` wrote.
pub fn write_head(ex: &Exchange<'_>, decision: &Decision<'_>, spans: &[Span], form: HeadForm, out: &mut Buffer<'_>) {
    out.push(match form {
        HeadForm::Http1 => b"HTTP/1.1 ",
        HeadForm::Cgi => b"Status: ",
        HeadForm::None => return,
    });
    match decision.status {
        200 => out.push(b"200 OK\r\n"),
        206 => out.push(b"206 Partial Content\r\n"),
        304 => out.push(b"304 Not Modified\r\n"),
        status => {
            out.decimal(u64::from(status));
            out.push(b" ");
            out.push(reason(status));
            out.push(b"\r\n");
        }
    }
    write_fields(ex, decision, spans, form, out);
    out.push(b"\r\n");
}

/// The fields of the head, in the order in which they are sent.
pub fn write_fields(
    ex: &Exchange<'_>,
    decision: &Decision<'_>,
    spans: &[Span],
    form: HeadForm,
    out: &mut impl FieldSink,
) {
    use Source::{Borrowed, Made};
    let slots = &decision.slots;
    let own_status = !ex.is_evaluated();
    let has_content = own_status || matches!(decision.status, 200 | 206);
    // What isn't sent without content is still sent if the application froze it.
    let wanted = |slot: Slot| has_content || slot.is_frozen();

    if form == HeadForm::Http1 {
        // RFC 9110 6.6.1.
        match slots.date {
            Slot::Library => out.field(b"Date", &date::format(ex.now), Made),
            slot => app(ex, b"Date", slot, out),
        }
    }
    if decision.n_ranges > 1 {
        let mut space = [0; 64];
        let mut value = Buffer::new(&mut space);
        value.push(b"multipart/byteranges; boundary=");
        value.push(&Boundary::new(ex.seed).0);
        out.field(b"Content-Type", value.written(), Made);
    } else if wanted(slots.content_type)
        && let Some(value) = content_type(ex, slots)
    {
        out.field(b"Content-Type", value, Borrowed);
    }
    // RFC 9110 8.6: none in a 204, and none in a 304 rather than a wrong one.
    if !matches!(decision.status, 204 | 304) {
        let mut digits = [0; 20];
        let mut number = Buffer::new(&mut digits);
        number.decimal(decision.content_length);
        out.field(b"Content-Length", number.written(), Made);
    }
    write_validators(ex, decision, has_content, out);
    match slots.accept_ranges {
        Slot::Library => {
            let get_or_head = matches!(decision.method, Method::Get | Method::Head);
            if has_content && !own_status && get_or_head {
                out.field(b"Accept-Ranges", b"bytes", Made);
            }
        }
        slot if wanted(slot) => app(ex, b"Accept-Ranges", slot, out),
        _ => {}
    }
    if !own_status && (decision.n_ranges == 1 || decision.status == 416) {
        let mut space = [0; 72];
        let mut value = Buffer::new(&mut space);
        content_range(&mut value, spans.first().copied().filter(|_| decision.n_ranges == 1), ex.representation.length);
        out.field(b"Content-Range", value.written(), Made);
    }
    for index in 0..ex.headers.len() {
        let header = ex.headers.get(index);
        let sent = header.rule != Rule::Remove
            && match classify(header.name).0 {
                Kind::Slot(_) | Kind::ContentLength | Kind::Framing => false,
                Kind::WholeContent => header.frozen || has_content && decision.n_ranges == 0,
                Kind::Content => header.frozen || has_content,
                Kind::Stored => header.frozen || has_content || decision.status == 304,
                Kind::ContentRange | Kind::Other => true,
            };
        if sent {
            out.field(header.name, header.value, Borrowed);
        }
    }
    if form == HeadForm::Http1 {
        // RFC 9112 9.6, 9.3 (HTTP/1.0).
        if !decision.keep_alive {
            out.field(b"Connection", b"close", Made);
        } else if ex.request.http10 {
            out.field(b"Connection", b"keep-alive", Made);
        }
    }
}

/// ETag and Last-Modified. RFC 9110 15.4.5: a 304 has the ETag, and Last-Modified only without one.
fn write_validators(ex: &Exchange<'_>, decision: &Decision<'_>, has_content: bool, out: &mut impl FieldSink) {
    use Source::{Borrowed, Made};
    let slots = &decision.slots;
    let Validators { etag, last_modified, .. } = decision.validators;
    let is_304 = decision.status == 304;
    if has_content || is_304 && etag.is_none() || slots.last_modified.is_frozen() {
        match (slots.last_modified.app_value(ex), last_modified) {
            // What isn't a date is sent as it is: the application asked for it. RFC 9110 8.8.2.1: one in the
            // future is replaced by the date of the answer, unless it is frozen.
            (Some(value), modified) => match modified {
                Some(modified)
                    if modified == ex.now
                        && !slots.last_modified.is_frozen()
                        && date::parse(value, ex.now).is_some_and(|date| date > ex.now) =>
                {
                    out.field(b"Last-Modified", &date::format(modified), Made);
                }
                _ => out.field(b"Last-Modified", value, Borrowed),
            },
            (None, Some(modified)) => out.field(b"Last-Modified", &date::format(modified), Made),
            (None, None) => {}
        }
    }
    if has_content || is_304 || slots.etag.is_frozen() {
        match (slots.etag.app_value(ex), etag) {
            (Some(value), _) => out.field(b"ETag", value, Borrowed),
            (None, Some(EntityTag { weak, opaque })) => {
                let given = ex.representation.etag.map(trim).unwrap_or_default();
                if weak && given.len() == opaque.len() {
                    let mut space = [0; ETAG_MAX + 2];
                    let mut value = Buffer::new(&mut space);
                    value.push(b"W/");
                    value.push(opaque);
                    out.field(b"ETag", value.written(), Made);
                } else {
                    out.field(b"ETag", given, Borrowed);
                }
            }
            (None, None) => {}
        }
    }
}

/// The application's field in the place of the library's.
fn app(ex: &Exchange<'_>, name: &[u8], slot: Slot, out: &mut impl FieldSink) {
    if let Some(value) = slot.app_value(ex) {
        out.field(name, value, Source::Borrowed);
    }
}

/// Everything of the body that is not the representation's: what stands before part `index` of a
/// multipart, and, for the index behind the last, its end. Empty if the body has only one part.
pub fn write_body_text(ex: &Exchange<'_>, decision: &Decision<'_>, spans: &[Span], index: usize, out: &mut Buffer<'_>) {
    if decision.n_ranges < 2 {
        return;
    }
    let boundary = Boundary::new(ex.seed);
    match spans.get(index) {
        Some(span) if index < decision.n_ranges => {
            let content_type = content_type(ex, &decision.slots);
            multipart::part_head(out, &boundary, index == 0, content_type, *span, ex.representation.length);
        }
        _ => multipart::closing(out, &boundary),
    }
}

/// The reason phrase of RFC 9110 section 15 (and 6585, 7725), empty for a status without one. The three
/// most common are in `write_head`.
fn reason(status: u16) -> &'static [u8] {
    match status {
        201 => b"Created",
        202 => b"Accepted",
        203 => b"Non-Authoritative Information",
        204 => b"No Content",
        205 => b"Reset Content",
        300 => b"Multiple Choices",
        301 => b"Moved Permanently",
        302 => b"Found",
        303 => b"See Other",
        307 => b"Temporary Redirect",
        308 => b"Permanent Redirect",
        400 => b"Bad Request",
        401 => b"Unauthorized",
        402 => b"Payment Required",
        403 => b"Forbidden",
        404 => b"Not Found",
        405 => b"Method Not Allowed",
        406 => b"Not Acceptable",
        408 => b"Request Timeout",
        409 => b"Conflict",
        410 => b"Gone",
        411 => b"Length Required",
        412 => b"Precondition Failed",
        413 => b"Content Too Large",
        414 => b"URI Too Long",
        415 => b"Unsupported Media Type",
        416 => b"Range Not Satisfiable",
        417 => b"Expectation Failed",
        421 => b"Misdirected Request",
        422 => b"Unprocessable Content",
        425 => b"Too Early",
        426 => b"Upgrade Required",
        428 => b"Precondition Required",
        429 => b"Too Many Requests",
        431 => b"Request Header Fields Too Large",
        451 => b"Unavailable For Legal Reasons",
        500 => b"Internal Server Error",
        501 => b"Not Implemented",
        502 => b"Bad Gateway",
        503 => b"Service Unavailable",
        504 => b"Gateway Timeout",
        505 => b"HTTP Version Not Supported",
        507 => b"Insufficient Storage",
        511 => b"Network Authentication Required",
        _ => b"",
    }
}
