//! A response whose content the caller produces, piece by piece, while it is sent.
//!
//! ```text
//! Length    head  content                              | part head  content | closing
//! Chunked   head  size CRLF content CRLF               | size CRLF content CRLF | 0 CRLF trailers CRLF
//! Close     head  content                              | content
//! ```
//! What stands between two bars leaves with one call if the socket takes it, and isn't held back for what follows.

use crate::answer::{Answer, Sink};
use crate::deadline::{Deadline, Limits};
use crate::fastcgi::records::{Records, TEXT_MAX};
use crate::http::{self, Buffer, Decision, Framing, HeaderList, Span, Spans, is_field, may_be_trailer};
use crate::io::callback::{Callback, Writer};
use crate::io::file::Body;
use crate::io::socket::{Socket, queued};
use crate::io::{Fault, Io};
use crate::memory::OutOfMemory;
use crate::plan::Plan;
use crate::respond::{Cut, Poll};
use crate::resumable::Misused;
use crate::transfer::{Failure, Outcome, Refusal, Step, failure, up_to};
use std::time::Instant;

/// One response after the other, on one connection.
#[derive(Debug)]
pub(crate) struct Stream<W> {
    /// The head, and all that isn't content where the length is known.
    plan: Plan,
    sink: Option<Sink<W>>,
    /// None: don't wait.
    deadline: Option<Deadline>,
    /// When the last call ended: what is between two calls is the caller's time, not the peer's.
    left_at: Option<Instant>,
    http_status: u16,
    keep_alive: bool,
    framing: Framing,
    /// Content is produced, but the answer has none.
    discards: bool,
    /// Bytes of content that are still to come, if their number is known.
    left: Option<u64>,
    /// Bytes of content that were sent.
    content_sent: u64,
    /// Of the chunk whose size was told, those that are still to come.
    chunk_left: u64,
    /// What stands between chunks, and how much of it was sent.
    frame: Vec<u8>,
    frame_sent: usize,
    /// For FastCGI.
    records: Option<Records>,
    /// All bytes that were sent.
    sent: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Open,
    /// The end was announced, and perhaps not sent yet.
    Ending,
    Ended(Result<(), Cut>),
}

/// Why there was nothing to be done.
#[derive(Debug)]
pub(crate) enum Refused {
    Misused,
    /// A trailer that is malformed, or may not be one.
    Field,
}

impl From<Misused> for Refused {
    fn from(_: Misused) -> Self {
        Self::Misused
    }
}

/// How many bytes of the content a call has taken, and how it ended.
pub(crate) type Taken = (usize, Result<Step, Cut>);

/// A chunk's size, with its line ends.
const SIZE_LINE: usize = 2 + 16 + 2;

impl<W: Writer + Copy> Stream<W> {
    pub(crate) fn new() -> Self {
        Self {
            plan: Plan::new(),
            sink: None,
            deadline: None,
            left_at: None,
            http_status: 0,
            keep_alive: false,
            framing: Framing::None,
            discards: false,
            left: Some(0),
            content_sent: 0,
            chunk_left: 0,
            frame: Vec::new(),
            frame_sent: 0,
            records: None,
            sent: 0,
            state: State::Idle,
        }
    }

    /// Ends whatever was going on.
    pub(crate) fn stop(&mut self) {
        self.state = State::Idle;
        self.http_status = 0;
        (self.sent, self.content_sent) = (0, 0);
    }

    /// Decides, and gets ready to send. Sends nothing. `tell` gets the decision, and how the content will be framed.
    pub(crate) fn start<H: HeaderList>(
        &mut self,
        answer: &Answer<'_, H>,
        sink: Sink<W>,
        limits: Limits,
        try_now: bool,
        tell: impl FnOnce(&Decision<'_>, Framing),
    ) -> Result<(), Refusal> {
        self.stop();
        if !answer.is_stream {
            return Err(http::Error::Invalid.into());
        }
        answer.check_form()?;
        let ex = answer.exchange();
        let mut spans = Spans::new();
        let decision = http::decide(&ex, &mut spans)?;
        self.plan.lay_out(&ex, &decision, &spans, answer.form)?;
        self.frame.clear();
        self.frame.try_reserve(SIZE_LINE + 2).map_err(OutOfMemory::from)?;
        self.framing = match decision.framing(answer.form) {
            // Whoever makes the head: the records tell where the content ends.
            Framing::Chunked if answer.records.is_some() => Framing::Close,
            framing => framing,
        };
        let representation = &answer.representation;
        self.left = match self.framing {
            Framing::Chunked | Framing::Close => None,
            Framing::Length | Framing::None if spans.is_empty() => Some(decision.body_length),
            Framing::Length | Framing::None => Some(spans.iter().map(|span| span.length).sum()),
        };
        self.discards = decision.body_length == 0
            && self.left.is_some()
            && (representation.is_unsized || representation.length > 0);
        self.http_status = decision.status;
        self.records = answer.records;
        // RFC 9112 9.3; where records are, it is they that end.
        let keep_alive = decision.keep_alive && self.framing != Framing::Close;
        self.keep_alive = self.records.map_or(keep_alive, |records| records.ending.keep);
        (self.chunk_left, self.frame_sent) = (0, 0);
        self.sink = Some(sink);
        self.deadline = (!try_now).then(|| Deadline::new(limits, Instant::now()));
        self.left_at = None;
        self.state = State::Open;
        tell(&decision, self.framing);
        Ok(())
    }

    /// The span of the representation that has to come next. Empty: none.
    pub(crate) fn next(&self) -> Result<Span, Misused> {
        if self.state != State::Open {
            return Err(Misused);
        }
        let Some(left) = self.left else {
            return Ok(Span { offset: self.content_sent, length: u64::MAX });
        };
        if self.discards || left == 0 {
            return Ok(Span::default());
        }
        Ok(self.plan.pieces().map(|(_, span)| span).find(|span| span.length > 0).unwrap_or_default())
    }

    /// Sends `data`; without any, the head, if it hasn't been sent.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<Taken, Misused> {
        match self.state {
            State::Open => {}
            State::Ended(Err(cut)) => return Ok((0, Err(cut))),
            State::Idle | State::Ending | State::Ended(Ok(())) => return Err(Misused),
        }
        if self.discards {
            let (_, ended) = self.drive(&[], true);
            let taken = if ended.is_ok() { data.len() } else { 0 };
            return Ok((taken, ended));
        }
        if self.left.is_some_and(|left| left < data.len() as u64) {
            return Ok((0, self.fail(Failure::Excess.into())));
        }
        Ok(self.drive(data, data.is_empty()))
    }

    /// No more content. Trailers are sent where the framing has a place for them.
    pub(crate) fn end<'a>(
        &mut self,
        trailers: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    ) -> Result<Result<Step, Cut>, Refused> {
        match self.state {
            State::Open => {
                if !trailers.clone().all(|(name, value)| is_field(name, value) && may_be_trailer(name)) {
                    return Err(Refused::Field);
                }
                let is_owed = self.chunk_left > 0 || self.records.is_some_and(|records| records.left() > 0);
                if is_owed || !self.discards && self.left.is_some_and(|left| left > 0) {
                    return Ok(self.cut_short());
                }
                if self.framing == Framing::Chunked {
                    let write = |out: &mut Buffer<'_>| {
                        out.push(b"0\r\n");
                        for (name, value) in trailers.clone() {
                            http::FieldSink::field(out, name, value, http::Source::Borrowed);
                        }
                        out.push(b"\r\n");
                    };
                    if let Err(memory) = append(&mut self.frame, write) {
                        return Ok(self.fail(memory.into()));
                    }
                }
                self.state = State::Ending;
            }
            State::Ending => {}
            State::Ended(ended) => return Ok(ended.map(|()| Step::Done)),
            State::Idle => return Err(Misused.into()),
        }
        let (_, ended) = self.drive(&[], true);
        if ended == Ok(Step::Done) {
            self.state = State::Ended(Ok(()));
        }
        Ok(ended)
    }

    /// Whether the response is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.state == State::Ended(Ok(()))
    }

    pub(crate) fn outcome(&self) -> Outcome {
        if self.http_status == 0 {
            return Outcome::default();
        }
        let (body_sent, body_length) = match self.framing {
            Framing::None | Framing::Length => (self.plan.body_sent(), self.plan.body_length()),
            Framing::Chunked | Framing::Close => {
                (self.content_sent, if self.is_complete() { self.content_sent } else { 0 })
            }
        };
        Outcome {
            http_status: self.http_status,
            keep_alive: self.keep_alive,
            head_sent: self.plan.head_sent(),
            body_sent,
            body_length,
            touched: self.sent > 0,
        }
    }

    /// Less has come than was announced. Where that can be said properly, it is.
    fn cut_short(&mut self) -> Result<Step, Cut> {
        if let Some(records) = &mut self.records
            && records.ending.ends_short
            && self.sent > 0
            && records.is_between()
        {
            records.finish();
            // If that doesn't leave at once, closing the connection has to be enough.
            self.drive(&[], true).1?;
        }
        self.fail(Failure::Truncated.into())
    }

    fn fail(&mut self, cut: Cut) -> Result<Step, Cut> {
        self.state = State::Ended(Err(cut));
        Err(cut)
    }

    fn drive(&mut self, data: &[u8], flush: bool) -> Taken {
        if let (Some(deadline), Some(left_at)) = (&mut self.deadline, self.left_at) {
            deadline.paused(left_at.elapsed());
        }
        let body = Body::Memory(&[]);
        let (taken, ended) = match self.sink {
            // Nothing here raises SIGPIPE: there is no sendfile.
            Some(Sink::Socket { fd, .. }) => self.run(&mut Socket::new(fd, body, true), Some(fd), data, flush),
            Some(Sink::Writer { writer, fd }) => self.run(&mut Callback { writer, body }, fd, data, flush),
            None => (0, Err(Cut::NoDescriptor)),
        };
        self.left_at = self.deadline.is_some().then(Instant::now);
        (taken, ended.or_else(|cut| self.fail(cut)))
    }

    /// Sends until all of it is on its way, waiting on `fd` unless it isn't to be waited.
    fn run(&mut self, io: &mut impl Io, fd: Option<i32>, data: &[u8], flush: bool) -> Taken {
        let (mut taken, before) = (0, self.sent);
        let mut poll = Poll::default();
        loop {
            // The clock is only looked at if it has to be.
            let is_over = |deadline: &Deadline| deadline.end().is_some() && deadline.is_over(Instant::now());
            if self.deadline.as_ref().is_some_and(is_over) {
                return (taken, Err(Cut::Timeout));
            }
            match self.send_some(io, &data[taken..], flush) {
                Ok(Some(count)) => taken += count,
                Ok(None) => {
                    if self.sent > before {
                        io.push();
                    }
                    return (taken, Ok(Step::Done));
                }
                Err(Fault::Interrupted) => {}
                Err(Fault::Wait(interest)) => {
                    let Some(deadline) = &mut self.deadline else { return (taken, Ok(Step::Wait(interest))) };
                    let Some(fd) = fd else { return (taken, Err(Cut::NoDescriptor)) };
                    let now = Instant::now();
                    let Some(until) = deadline.wait(now, self.sent, || queued(fd)) else {
                        return (taken, Err(Cut::Timeout));
                    };
                    if let Err(cut) = poll.wait(fd, interest, until - now) {
                        return (taken, Err(cut));
                    }
                }
                Err(fault) => return (taken, Err(failure(fault).into())),
            }
        }
    }

    /// One call that sends. How many bytes of `data` it took; None: there is nothing to send any more.
    fn send_some(&mut self, io: &mut impl Io, data: &[u8], flush: bool) -> Result<Option<usize>, Fault> {
        let counted = self.left.is_some();
        let ending = self.state == State::Ending;
        if self.framing == Framing::Chunked && self.chunk_left == 0 && !data.is_empty() {
            self.begin_chunk(data.len() as u64);
        }
        let (mut text, span, is_last) = self.plan.current();
        // A part's head waits for its content.
        if data.is_empty() && self.frame_sent == self.frame.len() && !flush && (text.is_empty() || span.length > 0) {
            return Ok(None);
        }
        let limit = match self.framing {
            Framing::Length | Framing::None => span.length,
            Framing::Chunked => self.chunk_left,
            Framing::Close => u64::MAX,
        };
        let mut piece = up_to(data, limit);
        let ends_chunk = self.framing == Framing::Chunked && !piece.is_empty() && piece.len() as u64 == self.chunk_left;
        let mut after: &[u8] = if ends_chunk { b"\r\n" } else { b"" };
        let (mut space, mut before) = ([0; TEXT_MAX], &[][..]);
        let tail = self.records.map(|records| records.tail());
        if let (Some(records), Some(tail)) = (&mut self.records, &tail) {
            let whole = text.len();
            if whole + piece.len() > 0 {
                records.begin((whole + piece.len()) as u64);
            } else if ending {
                records.finish();
            }
            before = records.text(&mut space);
            text = up_to(text, records.left());
            piece = up_to(piece, records.left() - text.len() as u64);
            if ending && whole > 0 && text.len() == whole && is_last {
                after = tail;
            }
        }
        let parts = [before, text, &self.frame[self.frame_sent..], piece, after];
        if parts.iter().all(|part| part.is_empty()) {
            return Ok(None);
        }
        // Of a multipart, the closing text follows the last content at once.
        let closes = self.left == Some(piece.len() as u64) && !is_last;
        let mut rest = io.send_parts(&parts, data.len() > piece.len() || closes)?;
        let lengths = parts.map(<[u8]>::len);
        self.sent += rest as u64;
        let mut taken = [0; 5];
        for (taken, length) in taken.iter_mut().zip(lengths) {
            *taken = rest.min(length);
            rest -= *taken;
        }
        let [before, text, frame, piece, after] = taken;
        if let Some(records) = &mut self.records {
            // Records are the framing then: there are no chunks.
            records.pass(before + text + piece + after);
        }
        self.plan.advance((text + if counted { piece } else { 0 }) as u64);
        self.frame_sent += frame;
        self.content_sent += piece as u64;
        self.left = self.left.map(|left| left - piece as u64);
        if self.framing == Framing::Chunked {
            self.chunk_left -= piece as u64;
            if ends_chunk && piece == lengths[3] && after < lengths[4] {
                self.frame.clear();
                self.frame.extend_from_slice(b"\r\n");
                self.frame_sent = after;
            }
        }
        if self.frame_sent == self.frame.len() {
            self.frame.clear();
            self.frame_sent = 0;
        }
        Ok(Some(piece))
    }

    /// The size of a chunk, behind what is left of the one before. There is room for it since the start.
    fn begin_chunk(&mut self, length: u64) {
        self.frame.drain(..self.frame_sent);
        self.frame_sent = 0;
        let mut space = [0; SIZE_LINE];
        let mut line = Buffer::new(&mut space);
        line.hexadecimal(length, 1);
        line.push(b"\r\n");
        self.frame.extend_from_slice(line.written());
        self.chunk_left = length;
    }
}

/// What `write` writes, behind what is there.
fn append(frame: &mut Vec<u8>, write: impl Fn(&mut Buffer<'_>)) -> Result<(), OutOfMemory> {
    let mut counter = Buffer::counting();
    write(&mut counter);
    let (length, start) = (counter.needed(), frame.len());
    frame.try_reserve(length)?;
    frame.resize(start + length, 0);
    write(&mut Buffer::new(&mut frame[start..]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fastcgi::records::Ending;
    use crate::http::{HeadForm, Header, MAX_RANGES, Representation, Request, Rule};
    use crate::io::Interest;
    use std::cell::RefCell;
    use std::time::Duration;

    const LENGTH: u64 = 60;
    const HEADERS: [Header<'_>; 1] = [Header { name: b"X", value: b"y", rule: Rule::Append, frozen: false }];
    const ENDING: Ending = Ending { keep: true, ends_short: false };
    const LIMITS: Limits = Limits { idle: Duration::from_secs(1), total: None, min_rate: 0 };

    #[derive(Clone, Copy, Debug)]
    struct Case {
        method: &'static [u8],
        http10: bool,
        range: &'static [u8],
        if_none_match: Option<&'static [u8]>,
        is_unsized: bool,
        form: HeadForm<'static>,
        status: u16,
        records: Option<Ending>,
    }

    fn cases() -> Vec<Case> {
        let base = Case {
            method: b"GET",
            http10: false,
            range: b"",
            if_none_match: None,
            is_unsized: false,
            form: HeadForm::Http1,
            status: 200,
            records: None,
        };
        let unsized_ = Case { is_unsized: true, ..base };
        [
            base,
            Case { range: b"bytes=5-9", ..base },
            Case { range: b"bytes=0-9,20-29,50-50", ..base },
            Case { range: b"bytes=100-", ..base },
            Case { method: b"HEAD", ..base },
            Case { if_none_match: Some(b"\"t\""), ..base },
            Case { form: HeadForm::None, ..base },
            Case { status: 404, range: b"bytes=5-9", ..base },
            unsized_,
            Case { http10: true, ..unsized_ },
            Case { method: b"HEAD", ..unsized_ },
            Case { if_none_match: Some(b"\"t\""), ..unsized_ },
            Case { range: b"bytes=5-9", ..unsized_ },
            Case { form: HeadForm::Cgi, ..unsized_ },
            Case { form: HeadForm::None, ..unsized_ },
            Case { form: HeadForm::Given(b"HTTP/1.1 200 OK\r\n\r\n"), ..unsized_ },
            Case { status: 204, ..unsized_ },
            Case { status: 500, ..unsized_ },
        ]
        .into_iter()
        .flat_map(|case| {
            let framed = Case { records: Some(ENDING), form: HeadForm::Cgi, ..case };
            [Some(case), Some(framed).filter(|_| case.form == HeadForm::Http1)]
        })
        .flatten()
        .collect()
    }

    fn content(span: Span) -> Vec<u8> {
        (span.offset..span.offset + span.length).map(|offset| b'0' + offset as u8).collect()
    }

    impl Case {
        fn answer(&self) -> Answer<'static, [Header<'static>; 1]> {
            Answer {
                request: Request {
                    method: self.method,
                    http10: self.http10,
                    range: Some(self.range),
                    if_none_match: self.if_none_match,
                    ..Request::default()
                },
                representation: Representation {
                    length: if self.is_unsized { 0 } else { LENGTH },
                    is_unsized: self.is_unsized,
                    is_unseekable: self.is_unsized,
                    etag: Some(b"\"t\""),
                    content_type: Some(b"text/plain"),
                    ..Representation::default()
                },
                body: Body::Memory(&[]),
                headers: HEADERS,
                now: 1_700_000_000,
                seed: 7,
                form: self.form,
                close: false,
                max_ranges: MAX_RANGES,
                status: self.status,
                evaluate: true,
                copy: false,
                check: false,
                records: self.records.map(|ending| Records::new(7, ending)),
                is_stream: true,
            }
        }

        /// All bytes, put together in the simplest way. `pieces` are what is written.
        fn whole(&self, pieces: &[Vec<u8>], trailers: &[(&[u8], &[u8])]) -> Vec<u8> {
            let answer = self.answer();
            let ex = answer.exchange();
            let mut spans = Spans::new();
            let decision = http::decide(&ex, &mut spans).unwrap();
            let mut space = vec![0; 4000];
            let mut text = |index: Option<usize>| {
                let mut out = Buffer::new(&mut space);
                match index {
                    None => http::write_head(&ex, &decision, &spans, self.form, &mut out),
                    Some(index) => http::write_body_text(&ex, &decision, &spans, index, &mut out),
                }
                out.written().to_vec()
            };
            let mut whole = text(None);
            match decision.framing(self.form) {
                Framing::None => {}
                Framing::Length if decision.body_length == 0 => {}
                Framing::Length if spans.is_empty() => whole.extend(content(Span { offset: 0, length: LENGTH })),
                Framing::Length => {
                    for (index, span) in spans.iter().enumerate() {
                        whole.extend(text(Some(index)));
                        whole.extend(content(*span));
                    }
                    whole.extend(text(Some(spans.len())));
                }
                Framing::Close => whole.extend(pieces.concat()),
                Framing::Chunked => {
                    for piece in pieces {
                        whole.extend(format!("{:x}\r\n", piece.len()).bytes());
                        whole.extend(piece);
                        whole.extend(b"\r\n");
                    }
                    whole.extend(b"0\r\n");
                    for (name, value) in trailers {
                        whole.extend([name, &b": "[..], value, b"\r\n"].concat());
                    }
                    whole.extend(b"\r\n");
                }
            }
            whole
        }
    }

    /// What was sent, without the records around it, of which the last may be incomplete. `ends`: they have to end properly.
    fn unframed(case: &Case, sent: &[u8], ends: bool) -> Vec<u8> {
        if case.records.is_none() {
            return sent.to_vec();
        }
        let (mut rest, mut out, mut ended) = (sent, Vec::new(), false);
        while let Some((head, body)) = rest.split_at_checked(8) {
            assert!(!ended, "something behind the end");
            assert_eq!((head[0], &head[2..4], &head[6..]), (1, &[0, 7][..], &[0, 0][..]));
            let length = usize::from(u16::from_be_bytes([head[4], head[5]])).min(body.len());
            if head[1] == 3 {
                assert!(!ends || body == [0; 8]);
                ended = true;
            } else {
                assert_eq!(head[1], 6);
                out.extend(&body[..length]);
            }
            rest = &body[length..];
        }
        assert!(!ends || ended && sent[sent.len() - 24..].starts_with(&[1, 6, 0, 7, 0, 0, 0, 0]));
        out
    }

    /// Where the bytes go: call by call as a script says.
    struct Script<'a> {
        act: Box<dyn FnMut(usize) -> Result<usize, Fault> + 'a>,
        calls: usize,
        out: Vec<u8>,
    }

    #[derive(Clone, Copy)]
    struct Scripted<'a, 's>(&'a RefCell<Script<'s>>);

    impl Writer for Scripted<'_, '_> {
        fn write(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
            let mut script = self.0.borrow_mut();
            assert!(!bytes.is_empty());
            script.calls += 1;
            let call = script.calls - 1;
            let count = (script.act)(call)?.min(bytes.len());
            script.out.extend(&bytes[..count]);
            Ok(count)
        }
    }

    fn script<'a>(act: impl FnMut(usize) -> Result<usize, Fault> + 'a) -> RefCell<Script<'a>> {
        RefCell::new(Script { act: Box::new(act), calls: 0, out: Vec::new() })
    }

    fn start<'a, 's>(case: &Case, script: &'a RefCell<Script<'s>>) -> Stream<Scripted<'a, 's>> {
        let mut stream = Stream::new();
        let sink = Sink::Writer { writer: Scripted(script), fd: None };
        stream.start(&case.answer(), sink, LIMITS, true, |_, _| {}).unwrap();
        stream
    }

    /// Content in pieces of `size`, of what the stream asks for.
    fn pieces<W: Writer + Copy>(stream: &Stream<W>, case: &Case, size: usize) -> Vec<Vec<u8>> {
        let mut spans = Spans::new();
        let answer = case.answer();
        let ex = answer.exchange();
        http::decide(&ex, &mut spans).unwrap();
        let next = stream.next().unwrap();
        let all = match (next.length, spans.is_empty()) {
            (0, _) => Vec::new(),
            (_, true) => content(Span { offset: 0, length: LENGTH }),
            (_, false) => {
                assert_eq!(next, spans[0]);
                spans.iter().flat_map(|span| content(*span)).collect()
            }
        };
        all.chunks(size).map(<[u8]>::to_vec).collect()
    }

    /// Writes all of it, again and again where the script lets it wait.
    fn run<W: Writer + Copy>(
        stream: &mut Stream<W>,
        pieces: &[Vec<u8>],
        trailers: &[(&[u8], &[u8])],
    ) -> Result<(), Cut> {
        for piece in pieces {
            let mut rest = &piece[..];
            loop {
                let (taken, step) = stream.write(rest).unwrap();
                rest = &rest[taken..];
                if step? == Step::Done {
                    break;
                }
            }
            assert!(rest.is_empty());
        }
        while stream.end(trailers.iter().copied()).unwrap()? != Step::Done {}
        Ok(())
    }

    const TRAILERS: [(&[u8], &[u8]); 2] = [(b"Content-Digest", b"x"), (b"X-End", b"")];

    #[test]
    fn all_of_it_leaves_whatever_the_pieces_and_the_socket_take() {
        for case in cases() {
            for size in [1, 7, 59, 60, 61] {
                for step in [1, 2, 3, 5, 17, 1000] {
                    for trailers in [&TRAILERS[..], &[]] {
                        let script =
                            script(|call| if call % 3 == 2 { Err(Fault::Wait(Interest::Write)) } else { Ok(step) });
                        let mut stream = start(&case, &script);
                        let pieces = pieces(&stream, &case, size);
                        assert_eq!(run(&mut stream, &pieces, trailers), Ok(()), "{case:?}");
                        let whole = case.whole(&pieces, trailers);
                        let sent = &script.borrow().out;
                        assert_eq!(
                            String::from_utf8_lossy(&unframed(&case, sent, true)),
                            String::from_utf8_lossy(&whole),
                            "{case:?}, pieces of {size}, {step} at a time"
                        );
                        assert!(stream.is_complete());
                        assert_eq!(stream.sent, sent.len() as u64);
                        let outcome = stream.outcome();
                        assert_eq!(outcome.body_sent, outcome.body_length);
                        // Again says the same, and sends nothing.
                        assert_eq!(stream.end(std::iter::empty()).unwrap(), Ok(Step::Done));
                        assert!(stream.write(b"x").is_err());
                    }
                }
            }
        }
    }

    #[test]
    fn a_piece_is_on_its_way_when_write_returns() {
        for case in cases().into_iter().filter(|case| case.range.is_empty()) {
            let script = script(|_| Ok(usize::MAX));
            let mut stream = start(&case, &script);
            let pieces = pieces(&stream, &case, 20);
            let whole = String::from_utf8(case.whole(&pieces, &[])).unwrap();
            for piece in &pieces {
                assert_eq!(stream.write(piece).unwrap(), (20, Ok(Step::Done)));
                let end = whole.find(std::str::from_utf8(piece).unwrap()).unwrap() + 20;
                let end = end + if stream.framing == Framing::Chunked { 2 } else { 0 };
                assert_eq!(unframed(&case, &script.borrow().out, false), whole.as_bytes()[..end], "{case:?}");
            }
        }
    }

    #[test]
    fn the_head_alone_leaves_if_it_is_asked_for() {
        for case in cases().into_iter().filter(|case| case.form == HeadForm::Http1) {
            let script = script(|_| Ok(usize::MAX));
            let mut stream = start(&case, &script);
            assert!(!stream.outcome().touched);
            assert_eq!(stream.write(b"").unwrap(), (0, Ok(Step::Done)));
            assert!(script.borrow().out.windows(4).any(|window| window == b"\r\n\r\n"), "{case:?}");
            let pieces = pieces(&stream, &case, 60);
            assert_eq!(run(&mut stream, &pieces, &[]), Ok(()));
            assert_eq!(script.borrow().out, case.whole(&pieces, &[]), "{case:?}");
        }
    }

    #[test]
    fn a_fault_at_any_call_ends_it_for_good() {
        for case in cases() {
            for at in 0.. {
                let script = script(|call| if call == at { Err(Fault::System(libc::EIO)) } else { Ok(3) });
                let mut stream = start(&case, &script);
                let pieces = pieces(&stream, &case, 25);
                let whole = case.whole(&pieces, &[]);
                let ended = run(&mut stream, &pieces, &[]);
                assert!(whole.starts_with(&unframed(&case, &script.borrow().out, ended.is_ok())), "{case:?}");
                if ended.is_ok() {
                    assert!(at > 2 || matches!(case.form, HeadForm::None));
                    break;
                }
                let calls = script.borrow().calls;
                assert_eq!(ended, Err(Failure::System(libc::EIO).into()));
                assert_eq!(stream.write(b"x").unwrap(), (0, ended.map(|()| Step::Done)));
                assert_eq!(stream.end(std::iter::empty()).unwrap(), ended.map(|()| Step::Done));
                assert_eq!(script.borrow().calls, calls);
                assert_eq!(!stream.outcome().touched, at == 0);
            }
        }
    }

    #[test]
    fn more_than_was_announced_is_not_sent() {
        for case in cases().into_iter().filter(|case| !case.is_unsized) {
            let script = script(|_| Ok(usize::MAX));
            let mut stream = start(&case, &script);
            let all = pieces(&stream, &case, 60).concat();
            if stream.discards {
                assert_eq!(stream.write(&[b'x'; 1000]).unwrap(), (1000, Ok(Step::Done)));
                continue;
            }
            let excess = Err(Failure::Excess.into());
            let more = [&all[..], b"x"].concat();
            assert_eq!(stream.write(&more).unwrap(), (0, excess), "{case:?}");
            assert!(!stream.outcome().touched && script.borrow().out.is_empty());
            let mut stream = start(&case, &script);
            assert_eq!(stream.write(&all).unwrap().1, Ok(Step::Done));
            assert_eq!(stream.next().unwrap(), Span::default());
            let length = script.borrow().out.len();
            assert_eq!(stream.write(b"x").unwrap(), (0, excess));
            assert_eq!(script.borrow().out.len(), length);
            assert_eq!(stream.end(std::iter::empty()).unwrap(), excess);
        }
    }

    #[test]
    fn less_than_was_announced_is_an_error() {
        for case in cases().into_iter().filter(|case| !case.is_unsized) {
            let script = script(|_| Ok(usize::MAX));
            let mut stream = start(&case, &script);
            let all = pieces(&stream, &case, 60).concat();
            if stream.discards {
                continue;
            }
            let truncated = Err(Failure::Truncated.into());
            assert_eq!(stream.end(std::iter::empty()).unwrap(), truncated);
            assert!(!stream.outcome().touched);
            let mut stream = start(&case, &script);
            stream.write(&all[..all.len() - 1]).unwrap().1.unwrap();
            assert_eq!(stream.end(std::iter::empty()).unwrap(), truncated);
            assert!(stream.outcome().touched && !stream.is_complete());
        }
    }

    #[test]
    fn a_chunk_that_was_announced_has_to_be_written() {
        let case = cases().into_iter().find(|case| case.is_unsized).unwrap();
        let stop = RefCell::new(false);
        let script =
            script(|call| if call > 0 && !*stop.borrow() { Err(Fault::Wait(Interest::Write)) } else { Ok(usize::MAX) });
        let mut stream = start(&case, &script);
        // The first call takes the head, and perhaps a part; the others nothing.
        let long = vec![b'x'; 40_000];
        let (taken, step) = stream.write(&long).unwrap();
        assert_eq!(step, Ok(Step::Wait(Interest::Write)));
        assert!(taken > 0 && taken < long.len());
        *stop.borrow_mut() = true;
        // More than the rest begins a chunk of its own.
        let more = [&long[taken..], b"end"].concat();
        assert_eq!(stream.write(&more).unwrap(), (more.len(), Ok(Step::Done)));
        assert_eq!(run(&mut stream, &[], &[]), Ok(()));
        let whole = case.whole(&[long.clone(), b"end".to_vec()], &[]);
        assert_eq!(script.borrow().out, whole);

        *stop.borrow_mut() = false;
        script.borrow_mut().calls = 0;
        let mut stream = start(&case, &script);
        stream.write(&long).unwrap().1.unwrap();
        assert_eq!(stream.end(std::iter::empty()).unwrap(), Err(Failure::Truncated.into()));
    }

    #[test]
    fn what_has_to_be_known_before_is_no_trailer() {
        let case = cases().into_iter().find(|case| case.is_unsized).unwrap();
        let script = script(|_| Ok(usize::MAX));
        let mut stream = start(&case, &script);
        for name in [&b"content-length"[..], b"Transfer-Encoding", b"Set-Cookie", b"a b", b"Trailer", b"Host"] {
            let refused = stream.end([(name, &b"1"[..])].into_iter());
            assert!(matches!(refused, Err(Refused::Field)), "{name:?}");
        }
        assert!(matches!(stream.end([(&b"A"[..], &b"1\r\nB: 2"[..])].into_iter()), Err(Refused::Field)));
        assert!(!stream.outcome().touched);
        assert_eq!(run(&mut stream, &[], &TRAILERS), Ok(()));
    }

    #[test]
    fn nothing_can_be_done_with_one_that_is_not_started() {
        let mut stream: Stream<Scripted<'_, '_>> = Stream::new();
        assert!(stream.write(b"x").is_err() && stream.next().is_err());
        assert!(stream.end(std::iter::empty()).is_err());
        assert_eq!(stream.outcome(), Outcome::default());
    }
}
