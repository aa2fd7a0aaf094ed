//! multipart/byteranges (RFC 9110 section 14.6, RFC 2046 section 5.1.1).
//!
//! ```text
//! --<boundary>CRLF
//! Content-Type: text/plainCRLF
//! Content-Range: bytes 0-9/100CRLF
//! CRLF
//! <ten bytes>
//! CRLF--<boundary>CRLF
//! ...
//! CRLF--<boundary>--CRLF
//! ```

use super::Buffer;
use super::range::{Span, content_range};

/// 32 random characters: content that holds them is not to be found by chance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boundary(pub(crate) [u8; 32]);

impl Boundary {
    /// The same seed makes the same boundary, so that a head and a body made by two calls agree.
    pub(crate) fn new(seed: u64) -> Self {
        // SplitMix64: each output is a bijection of its state, so no bit of the seed is lost.
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let bits = (u128::from(next()) << 64) | u128::from(next());
        Self(std::array::from_fn(|i| b"0123456789abcdef"[(bits >> (4 * i)) as usize & 15]))
    }
}

/// What stands before a part: `first` tells whether it is the first of all.
pub(crate) fn part_head(
    out: &mut Buffer<'_>,
    boundary: &Boundary,
    first: bool,
    content_type: Option<&[u8]>,
    span: Span,
    length: u64,
) {
    out.push(if first { b"--" } else { b"\r\n--" });
    out.push(&boundary.0);
    out.push(b"\r\n");
    if let Some(content_type) = content_type {
        out.push(b"Content-Type: ");
        out.push(content_type);
        out.push(b"\r\n");
    }
    out.push(b"Content-Range: ");
    content_range(out, Some(span), length);
    out.push(b"\r\n\r\n");
}

/// What stands behind the last part.
pub(crate) fn closing(out: &mut Buffer<'_>, boundary: &Boundary) {
    out.push(b"\r\n--");
    out.push(&boundary.0);
    out.push(b"--\r\n");
}

/// Length in bytes of the whole body. The spans add up to at most `length`, so the sum can't overflow.
pub(crate) fn body_length(boundary: &Boundary, content_type: Option<&[u8]>, spans: &[Span], length: u64) -> u64 {
    let mut framing = Buffer::counting();
    for (i, span) in spans.iter().enumerate() {
        part_head(&mut framing, boundary, i == 0, content_type, *span, length);
    }
    closing(&mut framing, boundary);
    spans.iter().map(|span| span.length).sum::<u64>().saturating_add(framing.needed() as u64)
}
