//! Entity tags: parsing, strong and weak comparison, lists of them (RFC 9110 section 8.8.3).

use super::fields::trim;

/// An entity tag. The opaque part keeps its quotes, which makes comparing one slice comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntityTag<'a> {
    pub(crate) weak: bool,
    pub(crate) opaque: &'a [u8],
}

/// RFC 9110 8.8.3: `etagc`. A comma is one, a backslash is one (there are no escapes), and so is any
/// byte above 0x7F; white space, quotes and control characters are not.
const ETAGC: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte <= 0x20 {
        table[byte] = false;
        byte += 1;
    }
    table[b'"' as usize] = false;
    table[0x7f] = false;
    table
};

impl<'a> EntityTag<'a> {
    /// The tag at the start of `input`, and what is behind it. `W/` is case-sensitive.
    fn parse_prefix(input: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (weak, rest) = match input {
            [b'W', b'/', rest @ ..] => (true, rest),
            _ => (false, input),
        };
        let [b'"', inner @ ..] = rest else { return None };
        let length = inner.iter().position(|b| !ETAGC[usize::from(*b)])?;
        if inner[length] != b'"' {
            return None;
        }
        let (opaque, behind) = rest.split_at(length + 2);
        Some((Self { weak, opaque }, behind))
    }

    /// A value that is one entity tag and nothing else.
    pub(crate) fn parse(value: &'a [u8]) -> Option<Self> {
        match Self::parse_prefix(trim(value)) {
            Some((tag, [])) => Some(tag),
            _ => None,
        }
    }

    /// Strong comparison (RFC 9110 8.8.3.2): equal, and neither is weak.
    pub(crate) fn strong_eq(&self, other: &EntityTag<'_>) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }

    /// Weak comparison (RFC 9110 8.8.3.2): equal, weak or not.
    pub(crate) fn weak_eq(&self, other: &EntityTag<'_>) -> bool {
        self.opaque == other.opaque
    }
}

/// What If-Match and If-None-Match hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tags {
    /// The bare `*`.
    Any,
    /// A list of tags, and whether the predicate held for one.
    List { matched: bool },
    /// Neither: also an empty list, and a `*` among tags. The conditions then take their "otherwise" branch.
    Invalid,
}

/// Looks for a tag that `matches` in the list `value`. The whole list is read even after a match,
/// because a list with a mistake in it is no list. Empty elements are skipped (RFC 9110 5.6.1.2).
pub(crate) fn scan(value: &[u8], matches: impl Fn(&EntityTag<'_>) -> bool) -> Tags {
    let mut rest = trim(value);
    if rest == b"*" {
        return Tags::Any;
    }
    let (mut matched, mut empty) = (false, true);
    loop {
        rest = trim(rest);
        match rest {
            [] => break,
            [b',', behind @ ..] => rest = behind,
            _ => {
                let Some((tag, behind)) = EntityTag::parse_prefix(rest) else { return Tags::Invalid };
                matched |= matches(&tag);
                empty = false;
                rest = trim(behind);
                if !matches!(rest, [] | [b',', ..]) {
                    return Tags::Invalid;
                }
            }
        }
    }
    if empty { Tags::Invalid } else { Tags::List { matched } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tag() {
        assert_eq!(EntityTag::parse(b" \"a\" "), Some(EntityTag { weak: false, opaque: b"\"a\"" }));
        assert_eq!(EntityTag::parse(b"W/\"\""), Some(EntityTag { weak: true, opaque: b"\"\"" }));
        for bad in [
            &b""[..],
            b"a",
            b"\"a",
            b"a\"",
            b"w/\"a\"",
            b"W/ \"a\"",
            b"W/W/\"a\"",
            b"\"a b\"",
            b"\"a\"\"b\"",
            b"\"a\", \"b\"",
            b"*",
        ] {
            assert_eq!(EntityTag::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn comparison_is_the_table_of_rfc_9110() {
        let (w1, w2, s1) = (EntityTag::parse(b"W/\"1\""), EntityTag::parse(b"W/\"2\""), EntityTag::parse(b"\"1\""));
        let (w1, w2, s1) = (w1.unwrap(), w2.unwrap(), s1.unwrap());
        assert!(!w1.strong_eq(&w1) && w1.weak_eq(&w1));
        assert!(!w1.strong_eq(&w2) && !w1.weak_eq(&w2));
        assert!(!w1.strong_eq(&s1) && w1.weak_eq(&s1));
        assert!(s1.strong_eq(&s1) && s1.weak_eq(&s1));
    }

    #[test]
    fn lists() {
        let find = |value: &[u8]| scan(value, |tag| tag.opaque == b"\"x\"");
        assert_eq!(find(b"*"), Tags::Any);
        assert_eq!(find(b"\t* "), Tags::Any);
        for value in [&b"\"x\""[..], b", ,\"a,b\",,W/\"x\" ,", b"\"a\",\"x\"", b"\"x\"\t,\t\"\""] {
            assert_eq!(find(value), Tags::List { matched: true }, "{value:?}");
        }
        for value in [&b"\"y\""[..], b"\",\"x\",\"", b"\"*\""] {
            // The second is a tag of one comma, then an x without quotes: invalid.
            let expect = if value.len() > 5 { Tags::Invalid } else { Tags::List { matched: false } };
            assert_eq!(find(value), expect, "{value:?}");
        }
        for value in [&b""[..], b" , ,", b"x", b"\"x\", *", b"*, \"x\"", b"\"x\" \"y\"", b"\"x\", \"y", b"\"x\"y"] {
            assert_eq!(find(value), Tags::Invalid, "{value:?}");
        }
    }
}
