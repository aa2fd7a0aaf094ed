//! A plan and a place for its bytes, step by step.

use crate::fastcgi::CONTENT_MAX;
use crate::fastcgi::records::{Records, TEXT_MAX};
use crate::http::{self, Exchange, HeadForm, Span, Spans};
use crate::io::file::Stamp;
use crate::io::{Fault, Interest, Io};
use crate::memory::OutOfMemory;
use crate::plan::{INLINE_TEXT, Plan};
use std::mem::MaybeUninit;

/// Up to that many bytes of a file are read and sent together with the head in one send; above it,
/// sendfile. Measured: below, pread and one send cost 0.6 to 0.84 of MSG_MORE and sendfile on
/// TCP and UNIX sockets alike, above they cost up to 2.7 times as much.
pub(crate) const SMALL: u64 = 16 * 1024;

/// From that many bytes of a file in one piece on, TCP holds partial segments back until the step is over.
/// Otherwise acknowledgements that come in while sendfile runs push them out. Measured against sendfile
/// alone, with the three calls that it takes: 1.07 of the CPU time at 128 KiB, 0.92 at 256 KiB, 0.84 at 1 MiB.
const LONG: u64 = 256 * 1024;

/// Room for `SMALL` bytes of body and the head before them. On the stack, so not much more.
const SCRATCH: usize = 17 * 1024;

/// How far a step came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    Wait(Interest),
    /// The budget is spent.
    Yield,
}

/// Why a response was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The content ended before the length announced.
    Truncated,
    /// There is more content than was announced.
    Excess,
    /// The file is not the one that the head describes any more.
    Changed,
    /// EPIPE or ECONNRESET.
    PeerClosed(i32),
    /// Any other errno.
    System(i32),
    /// What a write callback said.
    Callback(i32),
}

/// Why no response was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Exchange(http::Error),
    OutOfMemory,
    /// The file is not what it was, or can't be read.
    File(Failure),
    /// The socket lacks O_NONBLOCK.
    Blocking,
}

impl From<http::Error> for Refusal {
    fn from(error: http::Error) -> Self {
        Self::Exchange(error)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::File(failure)
    }
}

impl From<OutOfMemory> for Refusal {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// What a response has come to. Zeros until a decision was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) http_status: u16,
    pub(crate) keep_alive: bool,
    pub(crate) head_sent: u64,
    pub(crate) body_sent: u64,
    pub(crate) body_length: u64,
    /// Something was sent.
    pub(crate) touched: bool,
}

/// One response, and how far it is. Can be started again for the next. Heads up to `N` bytes are kept inside.
#[derive(Debug)]
pub(crate) struct Transfer<const N: usize = INLINE_TEXT> {
    plan: Plan<N>,
    /// 0 until a decision was reached.
    http_status: u16,
    keep_alive: bool,
    /// Copy the file through memory: asked for, or found to be the only way.
    copy: bool,
    /// What the file has to look like before each step, if that is to be checked.
    stamp: Option<Stamp>,
    records: Option<Records>,
    /// How it is going to end, once what ends the records was sent.
    cut_short: bool,
    /// How it ended. Every later step says the same.
    ended: Option<Result<(), Failure>>,
}

impl<const N: usize> Transfer<N> {
    pub(crate) fn new() -> Self {
        Self {
            plan: Plan::new(),
            http_status: 0,
            keep_alive: false,
            copy: false,
            stamp: None,
            records: None,
            cut_short: false,
            ended: Some(Ok(())),
        }
    }

    /// Decides and lays out the response; sends nothing.
    pub(crate) fn start(
        &mut self,
        ex: &Exchange<'_>,
        form: HeadForm<'_>,
        copy: bool,
        stamp: Option<Stamp>,
        records: Option<Records>,
    ) -> Result<(), Refusal> {
        self.http_status = 0;
        self.ended = Some(Ok(()));
        let mut spans = Spans::new();
        // By reference: it is too large to be moved out for nothing.
        let decision = http::decide(ex, &mut spans);
        let decision = decision.as_ref().map_err(|error| *error)?;
        self.plan.lay_out(ex, decision, &spans, form)?;
        self.http_status = decision.status;
        // What the client's connection allows is the front server's business.
        self.keep_alive = records.map_or(decision.keep_alive, |records| records.ending.keep);
        self.copy = copy;
        self.stamp = stamp.filter(|_| decision.body_length > 0);
        (self.records, self.cut_short) = (records, false);
        self.ended = None;
        Ok(())
    }

    pub(crate) fn plan(&self) -> &Plan<N> {
        &self.plan
    }

    pub(crate) fn outcome(&self) -> Outcome {
        if self.http_status == 0 {
            return Outcome::default();
        }
        Outcome {
            http_status: self.http_status,
            keep_alive: self.keep_alive,
            head_sent: self.plan.head_sent(),
            body_sent: self.plan.body_sent(),
            body_length: self.plan.body_length(),
            touched: self.plan.sent() > 0 || self.records.is_some_and(|records| records.is_touched()),
        }
    }

    /// The same in as little memory as possible. Nothing is left to do here afterwards.
    pub(crate) fn pack(&mut self) -> Result<Transfer<0>, OutOfMemory> {
        let plan = self.plan.pack()?;
        let Self { http_status, keep_alive, copy, stamp, records, cut_short, ended, .. } = *self;
        self.ended = Some(Ok(()));
        Ok(Transfer { plan, http_status, keep_alive, copy, stamp, records, cut_short, ended })
    }

    /// The span of the representation that is sent next. May be empty.
    pub(crate) fn next_span(&self) -> Span {
        self.plan.current().1
    }

    /// There is no sendfile where this goes.
    pub(crate) fn copy_only(&mut self) {
        self.copy = true;
    }

    /// Whether every further step says the same.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether a step would call sendfile.
    pub(crate) fn uses_sendfile(&self) -> bool {
        !self.copy && self.plan.has_long_span(SMALL)
    }

    /// Sends at most `budget` bytes, until `io` would block. `memory` is the representation, if it is not a file.
    pub(crate) fn step(&mut self, io: &mut impl Io, memory: Option<&[u8]>, budget: u64) -> Result<Step, Failure> {
        match self.ended {
            Some(Ok(())) => return Ok(Step::Done),
            Some(Err(failure)) => return Err(failure),
            None => {}
        }
        let step = self.run(io, memory, budget);
        match step {
            Ok(Step::Done) => self.ended = Some(Ok(())),
            Ok(Step::Wait(_) | Step::Yield) => {}
            Err(failure) => self.ended = Some(Err(failure)),
        }
        step
    }

    fn run(&mut self, io: &mut impl Io, memory: Option<&[u8]>, mut budget: u64) -> Result<Step, Failure> {
        if let Some(stamp) = self.stamp {
            match io.file_stamp() {
                Ok(now) if now == stamp => {}
                Ok(_) => return Err(Failure::Changed),
                Err(fault) => return Err(failure(fault)),
            }
        }
        // What ends the records would wait, by Nagle's algorithm, until what sendfile has pushed out is acknowledged.
        let framed = self.records.is_some() && self.plan.has_long_span(SMALL);
        let long = framed || self.plan.has_long_parts(SMALL) || budget >= LONG && self.plan.has_long_span(LONG);
        if memory.is_none() && !self.copy && long {
            io.hold_back();
        }
        while self.is_unfinished() {
            // What ends the records goes along.
            if budget == 0 && self.plan.left() > 0 {
                return Ok(Step::Yield);
            }
            match self.begin_record(io, memory).and_then(|()| self.send_some(io, memory, budget)) {
                Ok(sent) => budget = budget.saturating_sub(self.advance(sent)),
                Err(Stop::Truncated) => self.cut_short()?,
                Err(Stop::Fault(Fault::Interrupted)) => {}
                // Only sendfile is unsupported; reading and sending takes its place for good.
                Err(Stop::Fault(Fault::Unsupported)) if !self.copy => self.copy = true,
                Err(Stop::Fault(Fault::Wait(interest))) => return Ok(Step::Wait(interest)),
                Err(Stop::Fault(fault)) => return Err(failure(fault)),
            }
        }
        if self.cut_short { Err(Failure::Truncated) } else { Ok(Step::Done) }
    }

    fn is_unfinished(&self) -> bool {
        match &self.records {
            None => self.plan.left() > 0,
            Some(records) => !records.has_ended(),
        }
    }

    /// Begins a record, or ends them all, if it is time to.
    fn begin_record(&mut self, io: &mut impl Io, memory: Option<&[u8]>) -> Result<(), Stop> {
        let Some(records) = &mut self.records else { return Ok(()) };
        let left = self.plan.left();
        if !records.is_between() {
            return Ok(());
        }
        if left == 0 {
            records.finish();
            return Ok(());
        }
        if records.ending.ends_short && memory.is_none() && self.plan.sent() > 0 {
            // Within a record nothing can be ended any more, so look before it begins.
            let (mut room, mut last) = (left.min(CONTENT_MAX), Span::default());
            for (text, span) in self.plan.pieces() {
                room = room.saturating_sub(text.len() as u64);
                let length = span.length.min(room);
                room -= length;
                if length > 0 && span.offset + length > last.offset + last.length {
                    last = Span { length, ..span };
                }
            }
            // It is one file: long enough for each if it is for the one that ends last.
            if last.length > 0 && io.rest_of_file(last.offset)? < last.length {
                return Err(Stop::Truncated);
            }
        }
        records.begin(left);
        Ok(())
    }

    /// The file has ended early. Where that can be said properly, it is.
    fn cut_short(&mut self) -> Result<(), Failure> {
        if let Some(records) = &mut self.records
            && records.ending.ends_short
            && self.plan.sent() > 0
        {
            records.take_back();
            if records.is_between() {
                records.finish();
                self.cut_short = true;
                return Ok(());
            }
        }
        Err(Failure::Truncated)
    }

    /// So many bytes were sent. Returns how many of them are not the records'.
    fn advance(&mut self, sent: usize) -> u64 {
        let content = self.records.as_mut().map_or(sent, |records| records.pass(sent)) as u64;
        self.plan.advance(content);
        content
    }

    /// One call that sends, of what is at the cursor.
    fn send_some(&self, io: &mut impl Io, memory: Option<&[u8]>, budget: u64) -> Result<usize, Stop> {
        let mut space = [0; TEXT_MAX];
        let around = Around::new(self.records.as_ref(), &mut space);
        let (text, span, is_last) = self.plan.current();
        let limit = budget.min(around.room);
        if limit == 0 {
            return Ok(io.send(around.before, false)?);
        }
        if let Some(memory) = memory {
            // Never copied here: a mapping of a file that was cut short is an error of send, but would be a
            // SIGBUS for us.
            let text = up_to(text, limit);
            let length = span.length.min(limit - text.len() as u64);
            let bytes = part_of(memory, Span { length, ..span })?;
            let count = text.len() + bytes.len();
            let parts = [around.before, text, &[], bytes, around.after(self.is_rest(count))];
            return Ok(io.send_parts(&parts, self.more(count, budget))?);
        }
        let alone = self.goes_alone(span);
        if !text.is_empty() && (alone || span.length == 0 && is_last) {
            // Nothing can be joined to it, so it needs no copy.
            let text = up_to(text, limit);
            let (after, more) = (around.after(self.is_rest(text.len())), self.more(text.len(), budget));
            if around.before.is_empty() && after.is_empty() {
                return Ok(io.send(text, more)?);
            }
            return Ok(io.send_parts(&[around.before, text, &[], &[], after], more)?);
        }
        if !text.is_empty() || !alone {
            return self.gather(io, budget, &around);
        }
        if !around.before.is_empty() {
            return Ok(io.send(around.before, true)?);
        }
        match io.send_file(span.offset, span.length.min(limit))? {
            // The file is shorter than when the head was made. Waiting would be for ever.
            0 => Err(Stop::Truncated),
            sent => Ok(sent),
        }
    }

    /// Whether so many bytes are all that is left.
    fn is_rest(&self, count: usize) -> bool {
        self.plan.left() == count as u64
    }

    /// A span of the file that is left to sendfile.
    fn goes_alone(&self, span: Span) -> bool {
        span.length > SMALL && !self.copy
    }

    /// Whether more follows at once after `count` bytes.
    fn more(&self, count: usize, budget: u64) -> bool {
        let count = count as u64;
        self.plan.left() > count && budget > count
    }

    /// Puts text and short spans together, and sends them with one call.
    #[inline(never)] // Its scratch is most of a step's stack; the other ways don't need it.
    fn gather<I: Io>(&self, io: &mut I, budget: u64, around: &Around<'_>) -> Result<usize, Stop> {
        let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH];
        let before = around.before.len();
        scratch[..before].write_copy_of_slice(around.before);
        let space = SCRATCH.min(I::CHUNK);
        let room = before + clamp(space - before, budget.min(around.room));
        let mut filled = before;
        for (text, span) in self.plan.pieces() {
            let count = text.len().min(room - filled);
            scratch[filled..filled + count].write_copy_of_slice(&text[..count]);
            filled += count;
            if filled == room || self.goes_alone(span) {
                break;
            }
            let count = clamp(room - filled, span.length);
            fill(io, &mut scratch[filled..filled + count], span.offset)?;
            filled += count;
        }
        let content = filled - before;
        let after = around.after(self.is_rest(content));
        if let Some(place) = scratch[..space].get_mut(filled..filled + after.len()) {
            place.write_copy_of_slice(after);
            filled += after.len();
        }
        // SAFETY: all that was counted above was written.
        let bytes = unsafe { scratch[..filled].assume_init_ref() };
        Ok(io.send(bytes, self.more(content, budget))?)
    }
}

/// What stands around content in FastCGI's records; otherwise nothing does.
struct Around<'a> {
    before: &'a [u8],
    /// How many bytes of content may follow.
    room: u64,
    tail: Option<[u8; TEXT_MAX]>,
}

impl<'a> Around<'a> {
    fn new(records: Option<&Records>, space: &'a mut [u8; TEXT_MAX]) -> Self {
        match records {
            None => Self { before: &[], room: u64::MAX, tail: None },
            Some(records) => Self { before: records.text(space), room: records.left(), tail: Some(records.tail()) },
        }
    }

    /// What stands behind content that is all there is left.
    fn after(&self, is_rest: bool) -> &[u8] {
        self.tail.as_ref().filter(|_| is_rest).map_or(&[], |tail| tail)
    }
}

/// Fills all of `space` with the file from `offset` on.
fn fill(io: &mut impl Io, space: &mut [MaybeUninit<u8>], offset: u64) -> Result<(), Stop> {
    let mut filled = 0;
    while filled < space.len() {
        match io.read(&mut space[filled..], offset + filled as u64) {
            Ok(0) => return Err(Stop::Truncated),
            Ok(count) => filled += count,
            Err(Fault::Interrupted) => {}
            Err(fault) => return Err(Stop::Fault(fault)),
        }
    }
    Ok(())
}

/// The span's bytes. The plan has the memory's length; if not, that is what a shorter file is.
fn part_of(memory: &[u8], span: Span) -> Result<&[u8], Stop> {
    let from = usize::try_from(span.offset).ok();
    let length = usize::try_from(span.length).ok();
    from.zip(length).and_then(|(from, length)| memory.get(from..)?.get(..length)).ok_or(Stop::Truncated)
}

/// Why nothing was sent.
enum Stop {
    Truncated,
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Why a fault that can't be dealt with ends a response.
pub(crate) fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Closed(number) => Failure::PeerClosed(number),
        Fault::System(number) => Failure::System(number),
        Fault::Callback(status) => Failure::Callback(status),
        // The loop deals with the other two, and "unsupported" comes only from what it stops using.
        Fault::Wait(_) | Fault::Interrupted | Fault::Unsupported => Failure::System(libc::EINVAL),
    }
}

/// The first `limit` bytes, or all.
pub(crate) fn up_to(bytes: &[u8], limit: u64) -> &[u8] {
    &bytes[..clamp(bytes.len(), limit)]
}

/// `length`, or less if `limit` is.
fn clamp(length: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(length, |limit| length.min(limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fastcgi::records::Ending;
    use crate::http::{Header, MAX_RANGES, Modified, Representation, Request, Rule};
    use proptest::prelude::*;

    /// What a script lets a call do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Act {
        /// At most that many bytes, at least one.
        Take(usize),
        Fault(Fault),
    }

    /// A file and a socket that do what a script says, call by call.
    struct Script<'a> {
        file: &'a [u8],
        act: Box<dyn FnMut(usize, Call) -> Act + 'a>,
        calls: usize,
        out: Vec<u8>,
        /// The last send said that more follows, and it has not followed yet.
        owes_more: bool,
        held_back: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Call {
        Send,
        SendFile,
        Read,
        Stamp,
    }

    impl<'a> Script<'a> {
        fn new(file: &'a [u8], act: impl FnMut(usize, Call) -> Act + 'a) -> Self {
            Self { file, act: Box::new(act), calls: 0, out: Vec::new(), owes_more: false, held_back: false }
        }

        fn ask(&mut self, call: Call) -> Result<usize, Fault> {
            self.calls += 1;
            match (self.act)(self.calls - 1, call) {
                Act::Take(count) => Ok(count),
                Act::Fault(fault) => Err(fault),
            }
        }
    }

    impl Io for Script<'_> {
        fn send(&mut self, bytes: &[u8], more: bool) -> Result<usize, Fault> {
            assert!(!bytes.is_empty(), "an empty send");
            let count = self.ask(Call::Send)?.min(bytes.len());
            self.out.extend(&bytes[..count]);
            self.owes_more = more && count == bytes.len();
            Ok(count)
        }

        fn send_file(&mut self, offset: u64, length: u64) -> Result<usize, Fault> {
            assert!(length > 0, "an empty sendfile");
            let limit = self.ask(Call::SendFile)?;
            let offset = (offset as usize).min(self.file.len());
            let count = limit.min(length as usize).min(self.file.len() - offset);
            self.out.extend(&self.file[offset..offset + count]);
            self.owes_more = false;
            Ok(count)
        }

        fn read(&mut self, space: &mut [MaybeUninit<u8>], offset: u64) -> Result<usize, Fault> {
            let limit = self.ask(Call::Read)?;
            let offset = (offset as usize).min(self.file.len());
            let count = limit.min(space.len()).min(self.file.len() - offset);
            space[..count].write_copy_of_slice(&self.file[offset..offset + count]);
            Ok(count)
        }

        fn rest_of_file(&mut self, offset: u64) -> Result<u64, Fault> {
            self.ask(Call::Stamp)?;
            Ok((self.file.len() as u64).saturating_sub(offset))
        }

        fn file_stamp(&mut self) -> Result<Stamp, Fault> {
            self.ask(Call::Stamp)?;
            Ok(stamp_of(self.file))
        }

        fn hold_back(&mut self) {
            self.held_back = true;
        }
    }

    fn stamp_of(file: &[u8]) -> Stamp {
        Stamp { size: file.len() as u64, modified: Modified { seconds: 1, nanoseconds: 2 } }
    }

    fn content(length: usize) -> Vec<u8> {
        (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    /// One way to answer.
    #[derive(Clone, Debug)]
    struct Answer {
        method: &'static [u8],
        length: usize,
        range: Option<&'static [u8]>,
        if_none_match: Option<&'static [u8]>,
        long_head: bool,
        /// A head of the caller's, of that length.
        given: Option<usize>,
        copy: bool,
        memory: bool,
        /// In FastCGI's records.
        records: Option<Ending>,
    }

    const KEPT: Ending = Ending { keep: true, ends_short: false };
    const ENDS_SHORT: Ending = Ending { keep: false, ends_short: true };

    fn answers() -> Vec<Answer> {
        let base = Answer {
            method: b"GET",
            length: 1000,
            range: None,
            if_none_match: None,
            long_head: false,
            given: None,
            copy: false,
            memory: false,
            records: None,
        };
        let mut all = vec![
            base.clone(),
            Answer { method: b"HEAD", ..base.clone() },
            Answer { length: 0, ..base.clone() },
            Answer { if_none_match: Some(b"\"t\""), ..base.clone() },
            Answer { range: Some(b"bytes=5000-"), ..base.clone() },
            Answer { long_head: true, ..base.clone() },
            Answer { given: Some(300), ..base.clone() },
            Answer { given: Some(SCRATCH + 1), ..base.clone() },
            Answer { given: Some(300), method: b"HEAD", ..base.clone() },
        ];
        for (copy, memory) in [(false, false), (true, false), (false, true)] {
            let base = Answer { copy, memory, ..base.clone() };
            let large = Answer { length: 100_000, ..base.clone() };
            all.extend([
                Answer { length: SMALL as usize, ..base.clone() },
                Answer { length: SMALL as usize + 1, ..base.clone() },
                large.clone(),
                Answer { long_head: true, ..large.clone() },
                Answer { given: Some(SCRATCH + 1), ..large.clone() },
                Answer { given: Some(0), ..large.clone() },
                Answer { range: Some(b"bytes=1-1"), ..large.clone() },
                Answer { range: Some(b"bytes=70000-99998"), ..large.clone() },
                Answer { range: Some(b"bytes=0-9,500-999,-1"), ..large.clone() },
                Answer { range: Some(b"bytes=60000-99999,0-9,100-20000,30000-50000"), ..large.clone() },
            ]);
        }
        let framed = Answer { records: Some(KEPT), ..base.clone() };
        let large = Answer { length: 150_000, ..framed.clone() };
        all.extend([
            framed.clone(),
            Answer { method: b"HEAD", ..framed.clone() },
            Answer { if_none_match: Some(b"\"t\""), ..framed.clone() },
            Answer { length: SMALL as usize, ..framed.clone() },
            Answer { given: Some(SCRATCH + 1), ..framed.clone() },
            Answer { given: Some(0), length: 0, ..framed },
            large.clone(),
            Answer { copy: true, ..large.clone() },
            Answer { memory: true, ..large.clone() },
            Answer { records: Some(ENDS_SHORT), ..large.clone() },
            Answer { range: Some(b"bytes=0-9,500-999,-1"), ..large.clone() },
            Answer { range: Some(b"bytes=60000-99999,0-9,100-20000,30000-50000"), ..large },
        ]);
        all
    }

    /// A transfer that is about to begin, and the bytes that it has to send.
    fn start(answer: &Answer, check: bool) -> (Transfer, Vec<u8>, Vec<u8>) {
        let file = content(answer.length);
        let value = [b'v'; 3000];
        let value = if answer.long_head { &value[..] } else { b"v" };
        let headers = [Header { name: b"X", value, rule: Rule::Append, frozen: false }];
        let ex = Exchange {
            request: Request {
                method: answer.method,
                range: answer.range,
                if_none_match: answer.if_none_match,
                ..Request::default()
            },
            representation: Representation {
                length: file.len() as u64,
                etag: Some(b"\"t\""),
                content_type: Some(b"text/plain"),
                ..Representation::default()
            },
            headers: &headers,
            now: 1_700_000_000,
            seed: 3,
            status: 200,
            evaluate: true,
            close: false,
            max_ranges: MAX_RANGES,
        };
        let mut transfer = Transfer::new();
        let given = answer.given.map(|length| vec![b'g'; length]);
        let own = if answer.records.is_some() { HeadForm::Cgi } else { HeadForm::Http1 };
        let form = given.as_deref().map_or(own, HeadForm::Given);
        let records = answer.records.map(|ending| Records::new(0x0102, ending));
        transfer.start(&ex, form, answer.copy, check.then(|| stamp_of(&file)), records).unwrap();
        let mut whole = Vec::new();
        for (text, span) in transfer.plan.pieces() {
            whole.extend(text);
            whole.extend(&file[span.offset as usize..][..span.length as usize]);
        }
        if answer.records.is_some() {
            whole = in_records(&whole);
        }
        (transfer, file, whole)
    }

    /// In the simplest way.
    fn in_records(whole: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for content in whole.chunks(65535).chain([&[][..]]) {
            let [high, low] = (content.len() as u16).to_be_bytes();
            out.extend([1, 6, 1, 2, high, low, 0, 0]);
            out.extend(content);
        }
        out.extend([1, 3, 1, 2, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out
    }

    /// Steps to the end. What a socket would have waited for is simply there.
    fn run(transfer: &mut Transfer, answer: &Answer, script: &mut Script<'_>, budget: u64) -> Result<(), Failure> {
        let memory = answer.memory.then(|| script.file.to_vec());
        for _ in 0..1_000_000 {
            let before = script.out.len();
            let step = transfer.step(script, memory.as_deref(), budget);
            if answer.records.is_none() {
                assert!((script.out.len() - before) as u64 <= budget, "over budget");
                assert_eq!(transfer.plan.sent(), script.out.len() as u64);
            }
            match step? {
                Step::Done => {
                    assert!(!script.owes_more, "the last bytes wait for more");
                    return Ok(());
                }
                Step::Yield => assert!(!script.owes_more, "bytes wait for another step"),
                Step::Wait(_) => {}
            }
        }
        panic!("no end in sight");
    }

    #[test]
    fn whole_and_in_pieces() {
        for answer in answers() {
            for piece in [usize::MAX, 1, 7, 4096, 16_384] {
                for budget in [u64::MAX, 1, 1000, 20_000] {
                    let (mut transfer, file, whole) = start(&answer, false);
                    if whole.len() > 5_000 && (piece < 100 || budget < 100) {
                        continue; // Millions of calls that show nothing new.
                    }
                    let mut script = Script::new(&file, |_, _| Act::Take(piece));
                    assert_eq!(run(&mut transfer, &answer, &mut script, budget), Ok(()));
                    assert!(script.out == whole, "{answer:?} in pieces of {piece}, budget {budget}");
                    assert_eq!(transfer.step(&mut script, None, 0), Ok(Step::Done));
                }
            }
        }
    }

    #[test]
    fn the_fewest_calls() {
        use Call::{Read, Send, SendFile};
        for (answer, calls) in answers().iter().zip([
            &[Read, Send][..],
            &[Send],
            &[Send],
            &[Send],
            &[Send],
            &[Read, Send],
            // A head of the caller's: short, longer than what it is put together in, alone.
            &[Read, Send],
            &[Send, Read, Send],
            &[Send],
            // File: up to SMALL, above it, 100 KB, with a long head, with a longer one, without one, one byte, much, three small parts, large parts.
            &[Read, Send],
            &[Send, SendFile],
            &[Send, SendFile],
            &[Send, SendFile],
            &[Send, SendFile],
            &[SendFile],
            &[Read, Send],
            &[Send, SendFile],
            &[Read, Read, Read, Send],
            &[Send, SendFile, Read, Send, SendFile, Send, SendFile, Send],
        ]) {
            let (mut transfer, file, _) = start(answer, false);
            let mut made = Vec::new();
            let mut script = Script::new(&file, |_, call| {
                made.push(call);
                Act::Take(usize::MAX)
            });
            run(&mut transfer, answer, &mut script, u64::MAX).unwrap();
            let held_back = script.held_back;
            drop(script);
            assert_eq!(made, calls, "{answer:?}");
            assert_eq!(held_back, calls.iter().filter(|call| **call == SendFile).count() > 1);
        }
    }

    #[test]
    fn a_fault_at_every_call() {
        for answer in answers() {
            for piece in [usize::MAX, 5000] {
                let (mut transfer, file, whole) = start(&answer, true);
                let mut script = Script::new(&file, |_, _| Act::Take(piece));
                run(&mut transfer, &answer, &mut script, u64::MAX).unwrap();
                for at in 0..script.calls {
                    for fault in [
                        Fault::Interrupted,
                        Fault::Wait(Interest::Write),
                        Fault::Closed(libc::EPIPE),
                        Fault::System(libc::EIO),
                        Fault::Callback(-6),
                    ] {
                        let (mut transfer, _, _) = start(&answer, true);
                        let mut at_read = false;
                        let mut script = Script::new(&file, |call, kind| {
                            if call != at {
                                return Act::Take(piece);
                            }
                            at_read = matches!(kind, Call::Read | Call::Stamp);
                            Act::Fault(fault)
                        });
                        let ended = run(&mut transfer, &answer, &mut script, u64::MAX);
                        let out = std::mem::take(&mut script.out);
                        drop(script);
                        let what = format!("{answer:?} {fault:?} at {at}");
                        match fault {
                            // A file neither waits nor is it interrupted while fstat looks at it.
                            Fault::Wait(_) | Fault::Interrupted if at_read && ended.is_err() => {}
                            Fault::Interrupted | Fault::Wait(_) => assert!(ended == Ok(()) && out == whole, "{what}"),
                            _ => {
                                let failure = ended.unwrap_err();
                                assert_eq!(failure, super::failure(fault), "{what}");
                                assert!(whole.starts_with(&out), "{what}");
                                // It stays so, and nothing more is tried.
                                let mut never = Script::new(&[], |_, _| panic!("a call after the end"));
                                assert_eq!(transfer.step(&mut never, None, u64::MAX), Err(failure));
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_sendfile_the_bytes_are_the_same() {
        for answer in answers() {
            for after in 0..3 {
                let (mut transfer, file, whole) = start(&answer, false);
                let mut seen = 0;
                let mut script = Script::new(&file, |_, call| {
                    seen += usize::from(call == Call::SendFile);
                    if call == Call::SendFile && seen > after {
                        Act::Fault(Fault::Unsupported)
                    } else {
                        Act::Take(9000)
                    }
                });
                assert_eq!(run(&mut transfer, &answer, &mut script, u64::MAX), Ok(()));
                assert!(script.out == whole, "{answer:?}");
            }
        }
    }

    #[test]
    fn a_shorter_file_is_noticed_and_nothing_is_invented() {
        for answer in answers() {
            for cut in [0, 1, 500, 999, 16_000, 50_000, 99_999] {
                let (mut transfer, file, whole) = start(&answer, false);
                let short = &file[..cut.min(file.len())];
                let mut script = Script::new(short, |_, _| Act::Take(3000));
                let ended = run(&mut transfer, &answer, &mut script, u64::MAX);
                let mut out = &script.out[..];
                if answer.records == Some(ENDS_SHORT) && ended.is_err() {
                    // What is there ends as if it were all.
                    let tail = &whole[whole.len() - TEXT_MAX..];
                    assert_eq!(out.strip_suffix(tail).is_some(), cut == 99_999, "{cut}");
                    out = out.strip_suffix(tail).unwrap_or(out);
                    assert!(cut < 99_999 || out.len() == 65_535 + 8, "{}", out.len());
                }
                assert!(whole.starts_with(out), "{answer:?} {cut}");
                match ended {
                    Ok(()) => assert!(script.out == whole),
                    Err(failure) => assert_eq!(failure, Failure::Truncated),
                }
                // What needs the missing bytes can't have succeeded.
                let needs_last = answer.method == b"GET" && answer.if_none_match.is_none() && answer.range.is_none();
                assert!(ended.is_err() || !needs_last || cut >= file.len(), "{answer:?} {cut}");
            }
        }
    }

    #[test]
    fn a_small_answer_from_a_shorter_file_leaves_the_connection_untouched() {
        let answer = &answers()[0];
        let (mut transfer, file, _) = start(answer, false);
        let mut script = Script::new(&file[..500], |_, _| Act::Take(usize::MAX));
        assert_eq!(run(&mut transfer, answer, &mut script, u64::MAX), Err(Failure::Truncated));
        assert!(script.out.is_empty());
    }

    #[test]
    fn a_changed_file_is_noticed_between_steps() {
        let answer = Answer { length: 100_000, ..answers()[0].clone() };
        let (mut transfer, file, _) = start(&answer, true);
        let mut script = Script::new(&file, |_, _| Act::Take(usize::MAX));
        assert_eq!(transfer.step(&mut script, None, 50_000), Ok(Step::Yield));
        let grown = content(100_001);
        let mut script = Script::new(&grown, |_, _| Act::Take(usize::MAX));
        assert_eq!(transfer.step(&mut script, None, 50_000), Err(Failure::Changed));
    }

    proptest! {
        #[test]
        fn random_cuts(
            which in 0..answers().len(), seed in any::<u64>(), budget in prop_oneof![Just(u64::MAX), 1u64..40_000],
        ) {
            let answer = &answers()[which];
            let (mut transfer, file, whole) = start(answer, false);
            let mut state = seed;
            let mut script = Script::new(&file, |_, call| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                match state >> 61 {
                    0 => Act::Fault(Fault::Interrupted),
                    1 if call != Call::Read => Act::Fault(Fault::Wait(Interest::Write)),
                    2 => Act::Take(usize::MAX),
                    _ => Act::Take(1 + (state >> 32) as usize % 9000),
                }
            });
            prop_assert_eq!(run(&mut transfer, answer, &mut script, budget), Ok(()));
            prop_assert!(script.out == whole);
        }
    }
}
