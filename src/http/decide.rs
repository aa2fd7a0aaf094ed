//! Request and representation in, decision out (RFC 9110 sections 13.2 and 14.2).

use super::conditions::{self, Outcome, Validators};
use super::etag::EntityTag;
use super::fields::{has_token, is_token, is_value, trim};
use super::multipart::{self, Boundary};
use super::range::{MAX_RANGES, Ranges, Spans};
use super::rules::{self, Slots};
use super::{Error, Exchange, HeadForm, Method, date, validator};

/// How the client tells where the content ends (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has none, and no length is told: 204, 304, and HEAD of what nobody knows the length of.
    None,
    /// Content-Length.
    Length,
    /// Transfer-Encoding: chunked.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// What the answer is: all that its head and its body depend on, beside the exchange and the spans.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// 200, 206, 304, 412, 416, or the application's own.
    pub status: u16,
    /// The head will allow the connection to be used again.
    pub keep_alive: bool,
    /// Announced length in bytes, multipart framing included.
    pub content_length: u64,
    /// Bytes after the head: 0 for HEAD and where there is no content.
    pub body_length: u64,
    /// How many spans were written: 0 unless `status` is 206 by our own decision.
    pub n_ranges: usize,
    /// As the head will say it, but for CGI's: see `framing`.
    pub(super) framed: Framing,
    pub(super) method: Method,
    pub(super) validators: Validators<'a>,
    pub(super) slots: Slots,
}

/// Decides. The spans of a 206 go to `spans`.
pub fn decide<'a>(ex: &'a Exchange<'a>, spans: &mut Spans) -> Result<Decision<'a>, Error> {
    let (request, representation) = (&ex.request, &ex.representation);
    spans.clear();
    if !(200..=999).contains(&ex.status) || ex.max_ranges > MAX_RANGES || !is_token(request.method) {
        return Err(Error::Invalid);
    }
    // A Date has four digits for the year (RFC 9110 5.6.7).
    if !date::is_representable(ex.now) {
        return Err(Error::Invalid);
    }
    if representation.modified.is_some_and(|modified| modified.nanoseconds > 999_999_999) {
        return Err(Error::Invalid);
    }
    if representation.content_type.is_some_and(|value| !is_value(value)) {
        return Err(Error::Field);
    }
    let method = Method::new(request.method);
    let slots = Slots::read(ex)?;
    let mut decision = Decision {
        status: ex.status,
        keep_alive: keep_alive(ex),
        content_length: representation.length,
        body_length: 0,
        n_ranges: 0,
        framed: Framing::Length,
        method,
        validators: validators(ex, &slots)?,
        slots,
    };
    if !ex.is_evaluated() {
        // RFC 9110 15.3.5, 15.3.6, 15.4.5.
        if matches!(ex.status, 204 | 205 | 304) {
            decision.content_length = 0;
        }
    } else {
        match conditions::evaluate(request, method, ex.now, &decision.validators) {
            Outcome::NotModified => decision.empty(304),
            Outcome::PreconditionFailed => decision.empty(412),
            Outcome::Proceed => apply_range(ex, spans, &mut decision),
        }
    }
    if method != Method::Head {
        decision.body_length = decision.content_length;
    }
    decision.framed = framing(ex, &decision);
    // RFC 9112 9.3.
    decision.keep_alive &= decision.framed != Framing::Close;
    Ok(decision)
}

fn framing(ex: &Exchange<'_>, decision: &Decision<'_>) -> Framing {
    // RFC 9110 8.6: none in a 204, and none in a 304 rather than a wrong one.
    if matches!(decision.status, 204 | 304) {
        return Framing::None;
    }
    let is_whole = if ex.is_evaluated() { decision.status == 200 } else { decision.status != 205 };
    match (ex.representation.is_unsized && is_whole, decision.method) {
        (false, _) => Framing::Length,
        (true, Method::Head) => Framing::None,
        // RFC 9112 6.1: not to HTTP/1.0, which doesn't know it.
        (true, _) if ex.request.http10 => Framing::Close,
        (true, _) => Framing::Chunked,
    }
}

impl Decision<'_> {
    /// How the content ends. CGI has no framing of its own: it ends with the response (RFC 3875 6).
    pub fn framing(&self, form: HeadForm<'_>) -> Framing {
        match self.framed {
            Framing::Chunked if form == HeadForm::Cgi => Framing::Close,
            framing => framing,
        }
    }

    fn empty(&mut self, status: u16) {
        self.status = status;
        self.content_length = 0;
    }
}

/// RFC 9110 14.2: GET is the only method for which Range is defined.
fn apply_range<'a>(ex: &Exchange<'a>, spans: &mut Spans, decision: &mut Decision<'a>) {
    let (request, representation) = (&ex.request, &ex.representation);
    let Some(value) = request.range else { return };
    if decision.method != Method::Get
        || !ex.has_ranges()
        || !conditions::range_applies(request, ex.now, &decision.validators)
    {
        return;
    }
    match spans.parse(trim(value), representation.length, ex.max_ranges) {
        Ranges::Ignored => {}
        Ranges::Unsatisfiable => decision.empty(416),
        Ranges::Satisfiable(1) => {
            decision.status = 206;
            decision.n_ranges = 1;
            decision.content_length = spans[0].length;
        }
        Ranges::Satisfiable(n) => {
            let boundary = Boundary::new(ex.seed);
            decision.status = 206;
            decision.n_ranges = n;
            decision.content_length = multipart::body_length(
                &boundary,
                rules::content_type(ex, &decision.slots),
                spans,
                representation.length,
            );
        }
    }
}

/// The application's ETag and Last-Modified win over the representation's, here as in the head.
fn validators<'a>(ex: &'a Exchange<'a>, slots: &Slots) -> Result<Validators<'a>, Error> {
    let (representation, now) = (&ex.representation, ex.now);
    let mut have = Validators::default();
    if let Some(value) = slots.etag.value(ex, representation.etag) {
        let mut tag = EntityTag::parse(value).ok_or(Error::Field)?;
        if slots.etag.is_library() && representation.etag_from_mtime {
            if value.len() > validator::ETAG_MAX {
                return Err(Error::Invalid);
            }
            tag.weak |= representation.modified.is_none_or(|modified| validator::is_fresh(modified, now));
        }
        have.etag = Some(tag);
    }
    if let Some(value) = slots.last_modified.app_value(ex) {
        have.last_modified = date::parse(value, now).map(|modified| modified.min(now));
        have.last_modified_strong = have.last_modified.is_some_and(|modified| modified < now);
    } else if slots.last_modified.is_library()
        && let Some(modified) = representation.modified
        && date::is_representable(modified.seconds)
    {
        // RFC 9110 8.8.2.1: never later than Date.
        have.last_modified = Some(modified.seconds.min(now));
        have.last_modified_strong = !validator::is_fresh(modified, now);
    }
    Ok(have)
}

/// RFC 9112 9.3. That the content may end with the connection is not looked at here.
fn keep_alive(ex: &Exchange<'_>) -> bool {
    let option = |token| ex.request.connection.is_some_and(|value| has_token(value, token));
    let wanted = if ex.request.http10 { option(b"keep-alive") } else { true };
    wanted && !option(b"close") && !ex.close && !ex.request.has_body
}
