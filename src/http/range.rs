//! Range: parsing, clamping, merging, limiting (RFC 9110 sections 14.1.1, 14.1.2 and 14.2). Content-Range (14.4).

use super::Buffer;
use super::fields::trim;

/// Bytes of a representation. Never empty where it stands for a range that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte, from 0.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Span {
    fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// The most parts that one answer may have.
pub const MAX_RANGES: usize = 64;

/// The spans of a 206, in the order in which they are sent. Empty until `decide` puts some there.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    count: usize,
    /// Where one range was asked for.
    one: [Span; 1],
    /// Where several were: a kilobyte that other answers don't pay for.
    several: Option<[Span; MAX_RANGES]>,
}

impl Spans {
    /// None yet.
    pub const fn new() -> Self {
        Self { count: 0, one: [Span { offset: 0, length: 0 }], several: None }
    }

    /// Reads a Range field into this, as `parse` does.
    pub(crate) fn parse(&mut self, value: &[u8], length: u64, limit: usize) -> Ranges {
        let ranges = match one_range(value, length) {
            Some(span) if limit > 0 => {
                self.several = None;
                self.one = [span];
                Ranges::Satisfiable(1)
            }
            _ => parse(value, length, limit, self.several.insert([Span::default(); MAX_RANGES])),
        };
        self.count = if let Ranges::Satisfiable(count) = ranges { count } else { 0 };
        ranges
    }

    /// None any more.
    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }
}

impl std::ops::Deref for Spans {
    type Target = [Span];

    fn deref(&self) -> &[Span] {
        let places = self.several.as_ref().map_or(&self.one[..], |places| &places[..]);
        places.get(..self.count).unwrap_or_default()
    }
}

/// More range specs than that are not looked at: the whole is sent. Bounds the time that one
/// request can cost (RFC 9110 17.15), at more than any honest client asks for.
const MAX_SPECS: usize = 1024;

/// What a Range field comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// As if there were none: another unit, a mistake anywhere, too many parts.
    Ignored,
    /// Valid, and no byte of it exists: 416.
    Unsatisfiable,
    /// That many spans were written.
    Satisfiable(usize),
}

/// Digits only, and saturating: RFC 9110 14.1.1 puts no limit on their number.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut number = 0u64;
    for b in digits {
        let digit = b.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.saturating_mul(10).saturating_add(u64::from(digit));
    }
    Some(number)
}

/// Whether one number is less than another, however many digits they have.
fn is_less(a: &[u8], b: &[u8]) -> bool {
    let significant = |digits: &[u8]| digits.iter().position(|b| *b != b'0').unwrap_or(digits.len());
    let (a, b) = (&a[significant(a)..], &b[significant(b)..]);
    (a.len(), a) < (b.len(), b)
}

/// One range-spec: None if it is invalid; Some(None) if it names no byte of the representation.
fn spec(spec: &[u8], length: u64) -> Option<Option<Span>> {
    let dash = spec.iter().position(|b| *b == b'-')?;
    let (first, last) = (&spec[..dash], &spec[dash + 1..]);
    if first.is_empty() {
        // RFC 9110 14.1.2: a suffix longer than the representation is all of it.
        let suffix = number(last)?.min(length);
        return Some((suffix > 0).then(|| Span { offset: length - suffix, length: suffix }));
    }
    let (first_digits, last_digits) = (first, last);
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    // RFC 9110 14.1.1: then it is invalid, and with it the whole field. Numbers that were cut
    // off at the same value are compared as they were written.
    let saturated = first == u64::MAX && last == u64::MAX && !last_digits.is_empty();
    if first > last || saturated && is_less(last_digits, first_digits) {
        return None;
    }
    // `last` may be u64::MAX; below `length` both ends can be computed with.
    Some((first < length).then(|| Span { offset: first, length: last.min(length - 1) - first + 1 }))
}

/// Puts `new` among the first `n` of `spans`, which are disjoint and don't touch. Those that it
/// overlaps or touches become one with it, in the place of the first of them. None: no room.
fn merge(spans: &mut [Span], n: usize, new: Span) -> Option<usize> {
    let mut merged: Option<usize> = None;
    let mut kept = 0;
    for i in 0..n {
        let span = spans[i];
        if span.offset <= new.end() && new.offset <= span.end() {
            // What touches `new` is one piece with it, so nothing else can touch the union that
            // does not touch `new` itself: one pass is enough.
            let into = *merged.get_or_insert(kept);
            let union = if into == kept { join(span, new) } else { join(spans[into], span) };
            spans[into] = union;
            if into == kept {
                kept += 1;
            }
        } else {
            spans[kept] = span;
            kept += 1;
        }
    }
    if merged.is_none() {
        *spans.get_mut(kept)? = new;
        kept += 1;
    }
    Some(kept)
}

fn join(a: Span, b: Span) -> Span {
    let offset = a.offset.min(b.offset);
    Span { offset, length: a.end().max(b.end()) - offset }
}

/// `bytes=`, one range that is satisfiable, and nothing else: what nearly every Range field is. None says
/// nothing about the others.
fn one_range(value: &[u8], length: u64) -> Option<Span> {
    spec(value.strip_prefix(b"bytes=")?, length)?
}

/// Reads the field `value` for a representation of `length` bytes into `spans`, in the order asked
/// for, merged where they overlap or touch. So they never add up to more than `length`. More than
/// `limit`, or at any time more than `spans` has room for, is `Ignored`, never a subset.
fn parse(value: &[u8], length: u64, limit: usize, spans: &mut [Span]) -> Ranges {
    // RFC 9110 14.1: range units are case-insensitive. 14.2: an unknown one must be ignored.
    let Some((unit, set)) = value.split_at_checked(6) else { return Ranges::Ignored };
    let is_bytes = unit == b"bytes=" || unit.eq_ignore_ascii_case(b"bytes=");
    if !is_bytes || length == 0 {
        // RFC 9110 14.2 lets an empty representation ignore Range, and 14.4 has no Content-Range for it.
        return Ranges::Ignored;
    }
    let (mut n, mut seen) = (0, 0);
    for element in set.split(|b| *b == b',') {
        let element = trim(element);
        // RFC 9110 5.6.1.2: empty list elements are skipped.
        if element.is_empty() {
            continue;
        }
        seen += 1;
        let Some(span) = spec(element, length).filter(|_| seen <= MAX_SPECS) else { return Ranges::Ignored };
        if let Some(span) = span {
            let Some(kept) = merge(spans, n, span) else { return Ranges::Ignored };
            n = kept;
        }
    }
    match (seen, n) {
        (0, _) => Ranges::Ignored,
        (_, 0) => Ranges::Unsatisfiable,
        (_, n) if n > limit => Ranges::Ignored,
        _ => Ranges::Satisfiable(n),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(value: &str, length: u64) -> Result<Vec<(u64, u64)>, Ranges> {
        let mut spans = [Span::default(); MAX_RANGES];
        match parse(value.as_bytes(), length, spans.len(), &mut spans) {
            Ranges::Satisfiable(n) => Ok(spans[..n].iter().map(|s| (s.offset, s.end() - 1)).collect()),
            other => Err(other),
        }
    }

    #[test]
    fn merging_keeps_the_place_of_the_first() {
        assert_eq!(run("bytes=0-9,20-29,5-24", 100), Ok(vec![(0, 29)]));
        assert_eq!(run("bytes=50-59,0-9,20-29,10-19", 100), Ok(vec![(50, 59), (0, 29)]));
        assert_eq!(run("bytes=20-29,0-9,10-15", 100), Ok(vec![(20, 29), (0, 15)]));
        assert_eq!(run("bytes=5-5,3-3,1-1,2-2", 100), Ok(vec![(5, 5), (1, 3)]));
    }

    #[test]
    fn numbers_of_any_length_are_compared() {
        let huge = "18446744073709551625";
        assert_eq!(run(&format!("bytes=0-{huge}"), 10), Ok(vec![(0, 9)]));
        assert_eq!(run(&format!("bytes=1{huge}-{huge}"), 10), Err(Ranges::Ignored));
        assert_eq!(run(&format!("bytes={huge}-{huge}"), 10), Err(Ranges::Unsatisfiable));
        assert_eq!(run("bytes=0000000000000000000000005-6", 10), Ok(vec![(5, 6)]));
    }

    #[test]
    fn one_range_is_what_parse_makes_of_it() {
        for value in ["bytes=0-0", "bytes=5-", "bytes=-3", "bytes=0-99", "bytes=9-12", "bytes=007-8"] {
            let span = one_range(value.as_bytes(), 10).unwrap();
            assert_eq!(run(value, 10), Ok(vec![(span.offset, span.end() - 1)]), "{value}");
        }
        for value in
            ["bytes=0-0,2-2", "bytes= 0-0", "bytes=10-", "bytes=-0", "bytes=3-2", "bytes=", "Bytes=0-0", "bytes=-"]
        {
            assert_eq!(one_range(value.as_bytes(), 10), None, "{value}");
        }
        assert_eq!(one_range(b"bytes=0-", 0), None);
        assert_eq!(one_range(b"bytes=-5", 0), None);
    }

    #[test]
    fn limits() {
        let specs = |n: u64| (0..n).map(|i| format!("{0}-{0}", i * 2)).collect::<Vec<_>>().join(",");
        assert_eq!(run(&format!("bytes={}", specs(64)), 1000).map(|r| r.len()), Ok(64));
        assert_eq!(run(&format!("bytes={}", specs(65)), 1000), Err(Ranges::Ignored));
        assert_eq!(run(&format!("bytes={}", vec!["0-0"; 1024].join(",")), 1000), Ok(vec![(0, 0)]));
        assert_eq!(run(&format!("bytes={}", vec!["0-0"; 1025].join(",")), 1000), Err(Ranges::Ignored));
    }

    /// The oracle: mark bytes; a part is a run of marked bytes, ordered by the first spec that touches it.
    fn naive(specs: &[(u8, u8)], length: u64) -> Vec<(u64, u64)> {
        let mut marked = vec![false; length as usize + 1];
        for (a, b) in specs {
            for byte in u64::from(*a)..=u64::from(*b) {
                if byte < length {
                    marked[byte as usize] = true;
                }
            }
        }
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for (a, _) in specs {
            let a = u64::from(*a);
            if a < length && !parts.iter().any(|part| part.0 <= a && a <= part.1) {
                let first = (0..=a).rev().take_while(|i| marked[*i as usize]).last().unwrap();
                let last = (a..length).take_while(|i| marked[*i as usize]).last().unwrap();
                parts.push((first, last));
            }
        }
        parts
    }

    proptest! {
        #[test]
        fn agrees_with_marking_bytes(
            specs in proptest::collection::vec((0u8..60, 0u8..12).prop_map(|(a, n)| (a, a + n)), 1..12), length in 1u64..70,
        ) {
            let text = specs.iter().map(|(a, b)| format!("{a}-{b}")).collect::<Vec<_>>().join(" ,");
            let expect = naive(&specs, length);
            match run(&format!("Bytes={text}"), length) {
                Ok(parts) => prop_assert_eq!(parts, expect),
                Err(error) => prop_assert!(error == Ranges::Unsatisfiable && expect.is_empty()),
            }
        }

        #[test]
        fn never_panics_and_never_exceeds(value in "bytes=[-0-9, ]{0,60}", length in any::<u64>()) {
            let mut spans = [Span::default(); 4];
            if let Ranges::Satisfiable(n) = parse(value.as_bytes(), length, spans.len(), &mut spans) {
                let sum: u128 = spans[..n].iter().map(|s| u128::from(s.length)).sum();
                prop_assert!(n > 0 && sum <= u128::from(length));
                for span in &spans[..n] {
                    prop_assert!(span.length > 0 && span.offset < length && span.length <= length - span.offset);
                }
            }
        }
    }
}
