//! Conditional requests (RFC 9110 section 13): one function owns their order.

use super::date;
use super::etag::{self, EntityTag, Tags};
use super::{Method, Request};

/// What a representation can be compared by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Validators<'a> {
    /// The entity tag, the application's if it set one.
    pub(crate) etag: Option<EntityTag<'a>>,
    /// Last-Modified in seconds, never later than now.
    pub(crate) last_modified: Option<i64>,
    /// Last-Modified is long enough ago to tell two changes apart (RFC 9110 8.8.2.2).
    pub(crate) last_modified_strong: bool,
}

/// What the conditions come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Proceed,
    NotModified,
    PreconditionFailed,
}

/// Evaluates the preconditions in the order of RFC 9110 13.2.2:
///
/// 1. If-Match, if present: false is 412.
/// 2. Otherwise If-Unmodified-Since: false is 412.
/// 3. If-None-Match, if present: false is 304 for GET and HEAD, 412 for other methods.
/// 4. Otherwise If-Modified-Since, for GET and HEAD: false is 304.
/// 5. Range and If-Range: see `range_applies`.
///
/// A date that isn't one is ignored (13.1.3, 13.1.4), as is any date if there is none to compare with.
pub(crate) fn evaluate(request: &Request<'_>, method: Method, now: i64, have: &Validators<'_>) -> Outcome {
    if method == Method::Unconditional {
        // RFC 9110 13.2.1: methods that don't select or change a representation.
        return Outcome::Proceed;
    }
    if let Some(value) = request.if_match {
        // 13.1.1: strong comparison. Any current representation matches "*", tag or not.
        match etag::scan(value, |tag| have.etag.is_some_and(|etag| etag.strong_eq(tag))) {
            Tags::Any | Tags::List { matched: true } => {}
            Tags::List { matched: false } | Tags::Invalid => return Outcome::PreconditionFailed,
        }
    } else if let Some(date) = request.if_unmodified_since.and_then(|value| date::parse(value, now))
        && have.last_modified.is_some_and(|modified| modified > date)
    {
        return Outcome::PreconditionFailed;
    }
    let get_or_head = matches!(method, Method::Get | Method::Head);
    if let Some(value) = request.if_none_match {
        // 13.1.2: weak comparison.
        match etag::scan(value, |tag| have.etag.is_some_and(|etag| etag.weak_eq(tag))) {
            Tags::Any | Tags::List { matched: true } if get_or_head => Outcome::NotModified,
            Tags::Any | Tags::List { matched: true } => Outcome::PreconditionFailed,
            Tags::List { matched: false } | Tags::Invalid => Outcome::Proceed,
        }
    } else if get_or_head
        && let Some(date) = request.if_modified_since.and_then(|value| date::parse(value, now))
        && have.last_modified.is_some_and(|modified| modified <= date)
    {
        Outcome::NotModified
    } else {
        Outcome::Proceed
    }
}

/// RFC 9110 13.1.5: whether Range is to be looked at: without If-Range always, else only if its one
/// validator matches, exactly, and is strong.
pub(crate) fn range_applies(request: &Request<'_>, now: i64, have: &Validators<'_>) -> bool {
    let Some(value) = request.if_range else { return true };
    if let Some(tag) = EntityTag::parse(value) {
        return have.etag.is_some_and(|etag| etag.strong_eq(&tag));
    }
    let date = date::parse(value, now);
    date.is_some() && date == have.last_modified && have.last_modified_strong
}
