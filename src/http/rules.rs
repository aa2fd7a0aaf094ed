//! The application's fields: what they may be, and who wins where the library has the same field.

use super::etag::EntityTag;
use super::fields::{is_name, is_token, is_value};
use super::{Error, Exchange, Representation, Rule, date};

/// What a field's name means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Has a slot of its own: the library may produce it.
    Slot(SlotName),
    ContentLength,
    ContentRange,
    /// Transfer-Encoding, Connection and Keep-Alive: never the application's.
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
pub(super) enum SlotName {
    Date,
    ContentType,
    LastModified,
    ETag,
    AcceptRanges,
}

/// The kind of a name, and a bit of its own for names that may occur only once (else 0).
pub(super) fn classify(name: &[u8]) -> (Kind, u32) {
    const NAMES: [(&[u8], Kind, u32); 24] = [
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

/// Whether a field is the library's own, with which an answer says where it ends, or what part it is.
pub(crate) fn is_framing(name: &[u8]) -> bool {
    matches!(classify(name).0, Kind::Framing | Kind::ContentLength | Kind::ContentRange)
}

/// RFC 9110 6.5.1: not what has to be known before the content: framing, routing, authentication, response controls,
/// the content's format.
pub(crate) fn may_be_trailer(name: &[u8]) -> bool {
    const BEFORE: [&[u8]; 25] = [
        b"TE",
        b"Age",
        b"Date",
        b"Host",
        b"Vary",
        b"Expires",
        b"Trailer",
        b"Upgrade",
        b"Location",
        b"Connection",
        b"Keep-Alive",
        b"Set-Cookie",
        b"Retry-After",
        b"Content-Type",
        b"Accept-Ranges",
        b"Cache-Control",
        b"Content-Range",
        b"Content-Length",
        b"Content-Encoding",
        b"Content-Location",
        b"WWW-Authenticate",
        b"Proxy-Connection",
        b"Transfer-Encoding",
        b"Proxy-Authenticate",
        b"Content-Disposition",
    ];
    !BEFORE.iter().any(|before| is_name(name, before))
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

    pub(super) fn is_frozen(self) -> bool {
        matches!(self, Self::App { frozen: true, .. })
    }
}

/// Who provides each field that the library may produce.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slots {
    pub(super) date: Slot,
    pub(super) content_type: Slot,
    pub(super) last_modified: Slot,
    pub(super) etag: Slot,
    pub(super) accept_ranges: Slot,
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
                    let Representation { length, is_unsized, .. } = ex.representation;
                    if digits.is_empty() || number != Some(length) || is_unsized {
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
                        SlotName::AcceptRanges => ex.has_ranges(),
                    };
                    *slots.get_mut(name) = match header.rule {
                        Rule::Remove => Slot::Removed,
                        Rule::Default if produced && !header.frozen => Slot::Library,
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
