//! The head: the order of its fields, and what 304, 412 and 416 drop.

use super::conditions::Validators;
use super::decide::{Decision, Framing};
use super::etag::EntityTag;
use super::fields::trim;
use super::multipart::{self, Boundary};
use super::range::{Span, content_range};
use super::rules::{Kind, Slot, classify, content_type};
use super::validator::ETAG_MAX;
use super::{Buffer, Exchange, Method, Rule, date};

/// How the head begins, and whether it has the fields that belong to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadForm<'a> {
    /// `HTTP/1.1 200 OK`, with Date and Connection.
    Http1,
    /// `Status: 200 OK`: the front server writes Date and Connection (RFC 3875 6.3).
    Cgi,
    /// The caller sends the head itself, Date and Connection with it.
    None,
    /// These bytes, which the caller has made: they are not looked at.
    Given(&'a [u8]),
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

/// The whole head: status line, fields and the empty line, or what was given in its place. `spans` are those that `decide` wrote.
pub fn write_head(
    ex: &Exchange<'_>,
    decision: &Decision<'_>,
    spans: &[Span],
    form: HeadForm<'_>,
    out: &mut Buffer<'_>,
) {
    out.push(match form {
        HeadForm::Http1 => b"HTTP/1.1 ",
        HeadForm::Cgi => b"Status: ",
        HeadForm::None => return,
        HeadForm::Given(text) => return out.push(text),
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
    form: HeadForm<'_>,
    out: &mut impl FieldSink,
) {
    use Source::{Borrowed, Made};
    let slots = &decision.slots;
    let own_status = !ex.is_evaluated();
    let has_content = own_status || matches!(decision.status, 200 | 206);
    // What isn't sent without content is still sent if the application froze it.
    let wanted = |slot: Slot| has_content || slot.is_frozen();

    match slots.date {
        // RFC 9110 6.6.1.
        Slot::Library if form == HeadForm::Http1 => out.field(b"Date", &date::format(ex.now), Made),
        slot if form == HeadForm::Http1 || slot.is_frozen() => app(ex, b"Date", slot, out),
        _ => {}
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
    let framing = decision.framing(form);
    if framing == Framing::Length {
        let mut digits = [0; 20];
        let mut number = Buffer::new(&mut digits);
        number.decimal(decision.content_length);
        out.field(b"Content-Length", number.written(), Made);
    } else if framing == Framing::Chunked {
        out.field(b"Transfer-Encoding", b"chunked", Borrowed);
    }
    write_validators(ex, decision, has_content, out);
    match slots.accept_ranges {
        Slot::Library => {
            let get_or_head = matches!(decision.method, Method::Get | Method::Head);
            if has_content && ex.has_ranges() && get_or_head {
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
