//! A decision as segments, with a cursor: text of ours, spans of the representation. Pure: no
//! descriptor, no system call.
//!
//! ```text
//! pieces   head        span    | part head  span | closing  (empty span)
//! text     [.................................................]  one buffer
//! ```

#![forbid(unsafe_code)]

use crate::http::{self, Buffer, Decision, Exchange, HeadForm, Span};
use crate::memory::OutOfMemory;

/// Heads up to that many bytes are kept in the plan itself; longer ones in memory of their own.
pub(crate) const INLINE_TEXT: usize = 512;

/// Some text, then a span; either may be empty.
#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    text: usize,
    span: Span,
}

/// What an answer consists of, and how much of it has been sent. Text up to `N` bytes is kept inside.
#[derive(Debug)]
pub(crate) struct Plan<const N: usize = INLINE_TEXT> {
    inline: [u8; N],
    /// Used if the text is longer than `inline`. Kept for the next answer.
    spill: Vec<u8>,
    first: Piece,
    /// The others, of a multipart. Kept for the next answer.
    rest: Vec<Piece>,
    text_length: usize,
    head_length: u64,
    body_length: u64,
    /// The piece under the cursor, with what is left of it, and where its text begins.
    at: usize,
    now: Piece,
    text_at: usize,
    sent: u64,
}

impl<const N: usize> Plan<N> {
    pub(crate) fn new() -> Self {
        Self {
            inline: [0; N],
            spill: Vec::new(),
            first: Piece::default(),
            rest: Vec::new(),
            text_length: 0,
            head_length: 0,
            body_length: 0,
            at: 0,
            now: Piece::default(),
            text_at: 0,
            sent: 0,
        }
    }

    /// Lays out the answer, with the cursor at its start. Allocates only for a multipart, or a head
    /// longer than `INLINE_TEXT`.
    pub(crate) fn lay_out(
        &mut self,
        ex: &Exchange<'_>,
        decision: &Decision<'_>,
        spans: &[Span],
        form: HeadForm<'_>,
    ) -> Result<(), OutOfMemory> {
        let has_body = decision.body_length > 0;
        let multipart = spans.len() > 1 && has_body;
        let write = |out: &mut Buffer<'_>, rest: Option<&mut Vec<Piece>>| {
            http::write_head(ex, decision, spans, form, out);
            let head = out.needed();
            if multipart {
                let mut start = 0;
                let mut pieces = rest;
                for index in 0..=spans.len() {
                    http::write_body_text(ex, decision, spans, index, out);
                    if let Some(pieces) = &mut pieces {
                        let span = spans.get(index).copied().unwrap_or_default();
                        pieces.push(Piece { text: out.needed() - start, span });
                    }
                    start = out.needed();
                }
            }
            head
        };
        self.rest.clear();
        if multipart {
            self.rest.try_reserve(spans.len() + 1)?;
        }
        let mut out = Buffer::new(&mut self.inline);
        let mut head = write(&mut out, Some(&mut self.rest));
        self.text_length = out.needed();
        if self.text_length > N {
            self.spill.clear();
            self.spill.try_reserve(self.text_length)?;
            self.spill.resize(self.text_length, 0);
            head = write(&mut Buffer::new(&mut self.spill), None);
        }
        self.first = if multipart {
            // The first piece of `rest` has the head before its own text.
            self.rest.remove(0)
        } else {
            let span = match (has_body, spans) {
                (false, _) => Span::default(),
                (true, [span]) => *span,
                (true, _) => Span { offset: 0, length: ex.representation.length },
            };
            Piece { text: head, span }
        };
        self.head_length = head as u64;
        self.body_length = decision.body_length;
        self.rewind();
        Ok(())
    }

    /// The same in as little memory as possible, with the cursor where it is. Empty afterwards.
    pub(crate) fn pack(&mut self) -> Result<Plan<0>, OutOfMemory> {
        let mut spill = Vec::new();
        spill.try_reserve_exact(self.text_length)?;
        spill.extend_from_slice(self.text());
        let mut rest = Vec::new();
        rest.try_reserve_exact(self.rest.len())?;
        rest.append(&mut self.rest);
        let Self { first, text_length, head_length, body_length, at, now, text_at, sent, .. } = *self;
        Ok(Plan { inline: [], spill, first, rest, text_length, head_length, body_length, at, now, text_at, sent })
    }

    fn rewind(&mut self) {
        self.at = 0;
        self.now = self.first;
        self.text_at = 0;
        self.sent = 0;
    }

    /// Bytes left to send.
    pub(crate) fn left(&self) -> u64 {
        self.head_length + self.body_length - self.sent
    }

    /// Bytes sent, head and body.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    pub(crate) fn head_sent(&self) -> u64 {
        self.sent.min(self.head_length)
    }

    pub(crate) fn body_sent(&self) -> u64 {
        self.sent - self.head_sent()
    }

    pub(crate) fn body_length(&self) -> u64 {
        self.body_length
    }

    pub(crate) fn is_multipart(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Whether a file span longer than `limit` is among several parts: then each would be pushed
    /// out in a segment of its own if nothing held it back.
    pub(crate) fn has_long_parts(&self, limit: u64) -> bool {
        self.is_multipart()
            && (self.first.span.length > limit || self.rest.iter().any(|piece| piece.span.length > limit))
    }

    /// Whether any span is longer than `limit`.
    pub(crate) fn has_long_span(&self, limit: u64) -> bool {
        self.first.span.length > limit || self.has_long_parts(limit)
    }

    fn text(&self) -> &[u8] {
        if self.text_length > N { &self.spill } else { &self.inline[..self.text_length] }
    }

    /// What is left of the piece under the cursor, and whether it is the last.
    pub(crate) fn current(&self) -> (&[u8], Span, bool) {
        (&self.text()[self.text_at..][..self.now.text], self.now.span, self.at >= self.rest.len())
    }

    /// What is left, from the cursor on: some text and the span behind it, again and again.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (&[u8], Span)> {
        let mut rest = &self.text()[self.text_at..];
        let pieces = std::iter::once(&self.now).chain(&self.rest[self.at.min(self.rest.len())..]);
        pieces.map(move |piece| {
            let (text, behind) = rest.split_at(piece.text);
            rest = behind;
            (text, piece.span)
        })
    }

    /// The cursor moves over `count` bytes, at most what is left.
    pub(crate) fn advance(&mut self, count: u64) {
        let mut count = count.min(self.left());
        self.sent += count;
        loop {
            let text = count.min(self.now.text as u64);
            self.now.text -= text as usize; // At most a usize, by the line above.
            self.text_at += text as usize;
            count -= text;
            let span = count.min(self.now.span.length);
            self.now.span.offset += span;
            self.now.span.length -= span;
            count -= span;
            if self.now.text > 0 || self.now.span.length > 0 {
                return;
            }
            let Some(next) = self.rest.get(self.at) else { return };
            self.now = *next;
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Header, MAX_RANGES, Representation, Request, Spans, decide};

    const SHORT: [Header<'_>; 1] = [Header { name: b"X", value: b"y", rule: crate::http::Rule::Append, frozen: false }];

    fn plan(range: &[u8], length: u64, headers: &[Header<'_>; 1], form: HeadForm<'_>) -> (Plan, Vec<u8>) {
        let request = Request { method: b"GET", range: Some(range), ..Request::default() };
        let representation = Representation { length, content_type: Some(b"text/plain"), ..Representation::default() };
        let ex = Exchange {
            request,
            representation,
            headers,
            now: 1_700_000_000,
            seed: 7,
            status: 200,
            evaluate: true,
            close: false,
            max_ranges: MAX_RANGES,
        };
        let mut spans = Spans::new();
        let decision = decide(&ex, &mut spans).unwrap();
        let mut plan: Plan = Plan::new();
        plan.lay_out(&ex, &decision, &spans, form).unwrap();
        let mut text = vec![0; 20_000];
        let mut out = Buffer::new(&mut text);
        http::write_head(&ex, &decision, &spans, form, &mut out);
        let mut whole = out.written().to_vec();
        if decision.n_ranges < 2 {
            let length = decision.body_length;
            let span = spans.first().copied().unwrap_or(Span { offset: 0, length });
            whole.extend((span.offset..span.offset + span.length).map(content));
            return (plan, whole);
        }
        for index in 0..=spans.len() {
            let mut text = [0; 1000];
            let mut out = Buffer::new(&mut text);
            http::write_body_text(&ex, &decision, &spans, index, &mut out);
            whole.extend(out.written());
            if let Some(span) = spans.get(index) {
                whole.extend((span.offset..span.offset + span.length).map(content));
            }
        }
        (plan, whole)
    }

    fn content(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    fn rest<const N: usize>(plan: &Plan<N>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (text, span) in plan.pieces() {
            bytes.extend(text);
            bytes.extend((span.offset..span.offset + span.length).map(content));
        }
        bytes
    }

    #[test]
    fn the_cursor_can_stop_anywhere() {
        let value = [b'v'; 700];
        let long = [Header { value: &value, ..SHORT[0] }];
        for (headers, form) in [
            (&SHORT, HeadForm::Http1),
            (&long, HeadForm::Http1),
            (&SHORT, HeadForm::None),
            (&SHORT, HeadForm::Given(b"HTTP/1.1 200 OK\r\n\r\n")),
            (&SHORT, HeadForm::Given(&value)),
        ] {
            for range in [&b""[..], b"bytes=5-9", b"bytes=0-9,20-29,15-15", b"bytes=1000-"] {
                let (_, whole) = plan(range, 60, headers, form);
                for stop in 0..=whole.len() {
                    let (mut plan, _) = plan(range, 60, headers, form);
                    assert_eq!(plan.left(), whole.len() as u64);
                    plan.advance(stop as u64);
                    assert_eq!(rest(&plan), &whole[stop..], "{stop}");
                    let mut plan = plan.pack().unwrap();
                    assert_eq!(rest(&plan), &whole[stop..], "{stop}, packed");
                    for _ in stop..whole.len() {
                        plan.advance(1);
                    }
                    assert_eq!((plan.left(), rest(&plan)), (0, Vec::new()));
                    assert_eq!(plan.current(), (&b""[..], plan.current().1, true));
                }
            }
        }
    }

    #[test]
    fn given_bytes_stand_in_the_place_of_the_head() {
        for length in [0, 1, INLINE_TEXT - 1, INLINE_TEXT, INLINE_TEXT + 1, 19_000] {
            let text = vec![b'g'; length];
            for range in [&b""[..], b"bytes=5-9", b"bytes=0-9,20-29,15-15", b"bytes=1000-"] {
                let (_, body) = plan(range, 60, &SHORT, HeadForm::None);
                let (mut plan, _) = plan(range, 60, &SHORT, HeadForm::Given(&text));
                assert_eq!(rest(&plan), [&text[..], &body].concat());
                plan.advance(u64::MAX);
                assert_eq!((plan.head_sent(), plan.body_sent()), (length as u64, body.len() as u64));
            }
        }
    }
}
