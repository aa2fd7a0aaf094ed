//! A plan and a place for its bytes, step by step.

use crate::http::{self, Exchange, HeadForm, MAX_RANGES, Span};
use crate::io::file::Stamp;
use crate::io::{Fault, Interest, Io};
use crate::plan::{OutOfMemory, Plan, Segment};
use std::mem::MaybeUninit;

/// Up to that many bytes of a file are read and sent together with the head in one send; above it,
/// sendfile. Measured: below, pread and one send cost 0.6 to 0.84 of MSG_MORE and sendfile on
/// TCP and UNIX sockets alike, above they cost up to 2.7 times as much.
pub(crate) const SMALL: u64 = 16 * 1024;

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
    /// The file ended before the length announced.
    Truncated,
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
}

impl From<http::Error> for Refusal {
    fn from(error: http::Error) -> Self {
        Self::Exchange(error)
    }
}

impl From<OutOfMemory> for Refusal {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// One response, and how far it is. Can be started again for the next.
#[derive(Debug)]
pub(crate) struct Transfer {
    plan: Plan,
    /// 0 until a decision was reached.
    pub(crate) http_status: u16,
    pub(crate) keep_alive: bool,
    /// Copy the file through memory: asked for, or found to be the only way.
    copy: bool,
    /// What the file has to look like before each step, if that is to be checked.
    stamp: Option<Stamp>,
    /// How it ended. Every later step says the same.
    ended: Option<Result<(), Failure>>,
}

impl Transfer {
    pub(crate) fn new() -> Self {
        Self { plan: Plan::new(), http_status: 0, keep_alive: false, copy: false, stamp: None, ended: Some(Ok(())) }
    }

    /// Decides and lays out the response; sends nothing.
    pub(crate) fn start(
        &mut self,
        ex: &Exchange<'_>,
        form: HeadForm,
        copy: bool,
        stamp: Option<Stamp>,
    ) -> Result<(), Refusal> {
        self.http_status = 0;
        self.ended = Some(Ok(()));
        let mut spans = [Span::default(); MAX_RANGES];
        let decision = http::decide(ex, &mut spans)?;
        self.plan.lay_out(ex, &decision, &spans, form)?;
        self.http_status = decision.status;
        self.keep_alive = decision.keep_alive;
        self.copy = copy;
        self.stamp = stamp.filter(|_| decision.body_length > 0);
        self.ended = None;
        Ok(())
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
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
        if memory.is_none() && self.uses_sendfile() && self.plan.has_long_parts(SMALL) {
            io.hold_back();
        }
        while self.plan.left() > 0 {
            if budget == 0 {
                return Ok(Step::Yield);
            }
            match self.send_some(io, memory, budget) {
                Ok(sent) => {
                    self.plan.advance(sent);
                    budget = budget.saturating_sub(sent);
                }
                Err(Stop::Truncated) => return Err(Failure::Truncated),
                Err(Stop::Fault(Fault::Interrupted)) => {}
                // Only sendfile is unsupported; reading and sending takes its place for good.
                Err(Stop::Fault(Fault::Unsupported)) if !self.copy => self.copy = true,
                Err(Stop::Fault(Fault::Wait(interest))) => return Ok(Step::Wait(interest)),
                Err(Stop::Fault(fault)) => return Err(failure(fault)),
            }
        }
        Ok(Step::Done)
    }

    /// One call that sends, of what is at the cursor.
    fn send_some(&self, io: &mut impl Io, memory: Option<&[u8]>, budget: u64) -> Result<u64, Stop> {
        let mut segments = self.plan.segments();
        let (first, second) = (segments.next(), segments.next());
        let alone = |span| self.goes_alone(span, memory);
        match (first, second) {
            (Some(Segment::Span(span)), _) if alone(span) => {
                let length = span.length.min(budget);
                if let Some(memory) = memory {
                    let bytes = part_of(memory, Span { length, ..span })?;
                    return Ok(io.send(bytes, self.more(bytes.len(), budget))? as u64);
                }
                match io.send_file(span.offset, length)? {
                    // The file is shorter than when the head was made. Waiting would be for ever.
                    0 => Err(Stop::Truncated),
                    sent => Ok(sent as u64),
                }
            }
            // Text with nothing that can be joined to it needs no copy.
            (Some(Segment::Text(text)), None) => self.send_text(io, text, budget),
            (Some(Segment::Text(text)), Some(Segment::Span(span))) if alone(span) => self.send_text(io, text, budget),
            (Some(_), _) => self.gather(io, memory, budget),
            (None, _) => Ok(0),
        }
    }

    fn send_text(&self, io: &mut impl Io, text: &[u8], budget: u64) -> Result<u64, Stop> {
        let text = &text[..clamp(text.len(), budget)];
        Ok(io.send(text, self.more(text.len(), budget))? as u64)
    }

    /// A span that goes out by itself: from where it is in memory, or by sendfile.
    fn goes_alone(&self, span: Span, memory: Option<&[u8]>) -> bool {
        span.length > SMALL && (memory.is_some() || !self.copy)
    }

    /// Whether more follows at once after `count` bytes.
    fn more(&self, count: usize, budget: u64) -> bool {
        let count = count as u64;
        self.plan.left() > count && budget > count
    }

    /// Puts text and short spans together, and sends them with one call.
    #[inline(never)] // Its scratch is most of a step's stack; the other ways don't need it.
    fn gather(&self, io: &mut impl Io, memory: Option<&[u8]>, budget: u64) -> Result<u64, Stop> {
        let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH];
        let room = clamp(SCRATCH, budget);
        let mut filled = 0;
        for segment in self.plan.segments() {
            if filled == room {
                break;
            }
            match segment {
                Segment::Text(text) => {
                    let count = text.len().min(room - filled);
                    scratch[filled..filled + count].write_copy_of_slice(&text[..count]);
                    filled += count;
                }
                Segment::Span(span) => {
                    if self.goes_alone(span, memory) {
                        break;
                    }
                    let count = clamp(room - filled, span.length);
                    let place = &mut scratch[filled..filled + count];
                    if let Some(memory) = memory {
                        place.write_copy_of_slice(part_of(memory, Span { length: count as u64, ..span })?);
                    } else {
                        fill(io, place, span.offset)?;
                    }
                    filled += count;
                }
            }
        }
        // SAFETY: each branch above has written the bytes that it counted.
        let bytes = unsafe { scratch[..filled].assume_init_ref() };
        Ok(io.send(bytes, self.more(filled, budget))? as u64)
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

fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Closed(number) => Failure::PeerClosed(number),
        Fault::System(number) => Failure::System(number),
        Fault::Callback(status) => Failure::Callback(status),
        // The loop deals with the other two, and "unsupported" comes only from what it stops using.
        Fault::Wait(_) | Fault::Interrupted | Fault::Unsupported => Failure::System(libc::EINVAL),
    }
}

/// `length`, or less if `limit` is.
fn clamp(length: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(length, |limit| length.min(limit))
}
