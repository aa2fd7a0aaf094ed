//! Content that a peer sends, into memory or a file of the caller's: poll(2) and deadlines.

use crate::deadline::{Deadline, Limits};
use crate::io::nonblocking::Nonblocking;
use crate::io::source::{PIECE, Pipe, Reader, Stream, Stuck, Target, is_socket, unread};
use crate::io::{Fault, Interest};
use crate::memory::OutOfMemory;
use crate::respond::{self, Poll};
use crate::transfer::Failure;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::time::Instant;

/// Where bytes come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<R> {
    Socket(RawFd),
    /// From a reader of the caller's; `fd` is only waited on.
    Reader {
        reader: R,
        fd: Option<RawFd>,
    },
}

impl<R> Source<R> {
    fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Socket(fd) => Some(*fd),
            Self::Reader { fd, .. } => *fd,
        }
    }
}

impl<R: Reader> Reader for Source<R> {
    fn read(&mut self, space: &mut [MaybeUninit<u8>]) -> Result<usize, Fault> {
        match self {
            Self::Socket(fd) => Stream(*fd).read(space),
            Self::Reader { reader, .. } => reader.read(space),
        }
    }
}

/// How far it came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    /// Bytes that were taken from the source.
    pub(crate) received: u64,
    /// Those of them that are where they belong. The others are lost.
    pub(crate) stored: u64,
    /// Whether the time matters that storing takes.
    timed: bool,
    /// When the last of them were taken, if it does.
    since: Option<Instant>,
}

impl Count {
    fn taken(&mut self, bytes: usize) {
        self.received += bytes as u64;
        self.since = self.timed.then(Instant::now);
    }
}

/// Why it ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The peer has ended before.
    Incomplete,
    Other(respond::Cut),
}

impl From<respond::Cut> for Cut {
    fn from(cut: respond::Cut) -> Self {
        Self::Other(cut)
    }
}

impl From<Failure> for Cut {
    fn from(failure: Failure) -> Self {
        Self::Other(failure.into())
    }
}

impl From<OutOfMemory> for Cut {
    fn from(error: OutOfMemory) -> Self {
        Self::Other(error.into())
    }
}

/// Fills `space`. Without limits it doesn't wait: then what there would be to wait for is returned, None at the end.
/// `count` tells how far it came, whatever is returned.
pub(crate) fn to_memory<R: Reader>(
    mut source: Source<R>,
    space: &mut [MaybeUninit<u8>],
    limits: Option<Limits>,
    count: &mut Count,
) -> Result<Option<Interest>, Cut> {
    let mut filled = 0;
    drive(source.fd(), limits, space.len() as u64, count, |count| {
        let taken = source.read(&mut space[filled..])?;
        filled += taken;
        count.received = filled as u64;
        count.stored = filled as u64;
        Ok(taken)
    })
}

/// From how many bytes on a pipe is made: it costs some system calls (bench/receive.c).
const PIPE_FROM: u64 = 512 << 10;

/// Bytes that are copied at once.
const CHUNK: u64 = 64 << 10;

/// The same where a pipe got nothing, and it isn't sure that there is nothing.
const FEW: usize = 4096;

/// As `to_memory`, with `length` bytes that go to a file.
pub(crate) fn to_file<R: Reader>(
    mut source: Source<R>,
    mut file: Target,
    length: u64,
    limits: Option<Limits>,
    count: &mut Count,
) -> Result<Option<Interest>, Cut> {
    let mut pipe = None;
    let mut nonblocking = None;
    if let Source::Socket(fd) = source
        && length >= PIPE_FROM
        // Who doesn't wait calls often, for a few bytes each time.
        && (limits.is_some() || unread(fd) >= PIECE)
        && is_socket(fd)
    {
        // splice has no flag against waiting for a socket.
        nonblocking = Nonblocking::new(fd).ok();
        pipe = nonblocking.as_ref().and_then(|_| Pipe::new().ok()).map(|pipe| (fd, pipe));
    }
    count.timed = limits.is_some_and(|limits| limits.min_rate > 0);
    let mut buffer = Vec::new();
    if pipe.is_none() {
        make(&mut buffer, length)?;
    }
    let ended = drive(source.fd(), limits, length, count, |count| {
        if let Some((fd, open)) = &mut pipe {
            match open.fill(*fd, length - count.received) {
                Err(Fault::Unsupported) => pipe = None,
                // splice says this in front of urgent data (send(2), MSG_OOB) too, for ever; recv goes on behind them.
                Ok(0) | Err(Fault::Wait(_)) => {
                    let mut few = [MaybeUninit::uninit(); FEW];
                    return copy(&mut source, &mut file, &mut few, length, count);
                }
                Err(fault) => return Err(fault),
                Ok(taken) => {
                    count.taken(taken);
                    match open.empty_into(&mut file, &mut count.stored) {
                        Ok(()) => return Ok(taken),
                        Err(Stuck::System(number)) => return Err(Fault::System(number)),
                        Err(Stuck::Unsupported) => {}
                    }
                    // What is in the pipe goes the other way as well.
                    let space = make(&mut buffer, length).map_err(|_| Fault::System(libc::ENOMEM))?;
                    loop {
                        let held = open.read(space).map_err(Fault::System)?;
                        if held == 0 {
                            break;
                        }
                        store(&mut file, &space[..held], count)?;
                    }
                    pipe = None;
                    return Ok(taken);
                }
            }
        }
        let space = make(&mut buffer, length).map_err(|_| Fault::System(libc::ENOMEM))?;
        copy(&mut source, &mut file, space, length, count)
    });
    drop(nonblocking);
    ended
}

/// Reads once, and writes that.
fn copy<R: Reader>(
    source: &mut Source<R>,
    file: &mut Target,
    space: &mut [MaybeUninit<u8>],
    length: u64,
    count: &mut Count,
) -> Result<usize, Fault> {
    let left = usize::try_from(length - count.received).unwrap_or(usize::MAX).min(space.len());
    let taken = source.read(&mut space[..left])?;
    count.taken(taken);
    store(file, &space[..taken], count)?;
    Ok(taken)
}

/// Room for a piece of `length` bytes, made once.
fn make(buffer: &mut Vec<u8>, length: u64) -> Result<&mut [MaybeUninit<u8>], OutOfMemory> {
    buffer.try_reserve_exact(length.min(CHUNK) as usize)?; // At most `CHUNK`.
    Ok(buffer.spare_capacity_mut())
}

/// Writes what a read has put into `space`.
fn store(file: &mut Target, space: &[MaybeUninit<u8>], count: &mut Count) -> Result<(), Fault> {
    // SAFETY: the caller passes what was filled.
    let bytes = unsafe { space.assume_init_ref() };
    file.write(bytes, &mut count.stored).map_err(Fault::System)
}

/// Takes until there are `length` bytes, waiting on `fd` within `limits`. `take` adds to the count, and returns 0 if the
/// peer has ended.
fn drive(
    fd: Option<RawFd>,
    limits: Option<Limits>,
    length: u64,
    count: &mut Count,
    mut take: impl FnMut(&mut Count) -> Result<usize, Fault>,
) -> Result<Option<Interest>, Cut> {
    // What is there already asks for no time, unless that is limited.
    let total = limits.filter(|limits| limits.total.is_some());
    let mut deadline = total.map(|limits| Deadline::new(limits, Instant::now()));
    let mut poll = Poll::default();
    while count.received < length {
        let interest = match take(count) {
            Ok(0) => return Err(Cut::Incomplete),
            Ok(_) | Err(Fault::Interrupted) => None,
            Err(Fault::Wait(interest)) => Some(interest),
            Err(Fault::Closed(number)) => return Err(Failure::PeerClosed(number).into()),
            Err(Fault::System(number)) => return Err(Failure::System(number).into()),
            Err(Fault::Callback(status)) => return Err(Failure::Callback(status).into()),
            Err(Fault::Unsupported) => return Err(Failure::System(libc::EOPNOTSUPP).into()),
        };
        if let (Some(since), Some(deadline)) = (count.since.take(), &mut deadline) {
            deadline.delayed(since.elapsed());
        }
        let Some(limits) = limits else {
            if interest.is_some() {
                return Ok(interest);
            }
            continue;
        };
        if interest.is_none() && total.is_none() {
            continue;
        }
        let now = Instant::now();
        let deadline = deadline.get_or_insert_with(|| Deadline::new(limits, now));
        let Some(interest) = interest else {
            if deadline.is_over(now) && count.received < length {
                return Err(respond::Cut::Timeout.into());
            }
            continue;
        };
        // `length` bytes are due, and those that haven't come are what the peer still has.
        let until = deadline.wait(now, length, || length - count.received).ok_or(respond::Cut::Timeout)?;
        poll.wait(fd.ok_or(respond::Cut::NoDescriptor)?, interest, until - now)?;
    }
    Ok(None)
}
