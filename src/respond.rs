//! A transfer driven to its end: poll(2) and deadlines.

use crate::answer::{Answer, Sink};
use crate::deadline::{Deadline, Limits};
use crate::http::HeaderList;
use crate::io::callback::{Callback, Writer};
use crate::io::file::{self, Body};
use crate::io::nonblocking::Nonblocking;
use crate::io::socket::{Socket, queued};
use crate::io::{Interest, Io, errno, syscall};
use crate::memory::OutOfMemory;
use crate::transfer::{Failure, Refusal, Step, Transfer};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Bytes between two looks at the clock, for a client that never makes us wait.
const BUDGET: u64 = 4 << 20;

/// The same for a writer, which may itself wait.
pub(crate) const WRITER_BUDGET: u64 = 64 << 10;

/// Why a response ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It was not begun.
    Refusal(Refusal),
    Failure(Failure),
    Timeout,
    /// There is nothing to wait on.
    NoDescriptor,
}

impl From<Refusal> for Cut {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl From<Failure> for Cut {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<OutOfMemory> for Cut {
    fn from(_: OutOfMemory) -> Self {
        Self::Refusal(Refusal::OutOfMemory)
    }
}

/// Decides and sends, to the end. `transfer` then tells how far it came.
pub(crate) fn respond<H: HeaderList, W: Writer + Copy>(
    answer: &Answer<'_, H>,
    sink: Sink<W>,
    limits: Limits,
    transfer: &mut Transfer,
) -> Result<(), Cut> {
    answer.begin(transfer)?;
    let body = answer.body;
    match sink {
        Sink::Socket { fd, sigpipe_ignored } => {
            let mut nonblocking = None;
            if let Body::File { fd: file, .. } = body
                && transfer.uses_sendfile()
            {
                file::check_readable(file).map_err(Failure::System)?;
                nonblocking = Some(Nonblocking::new(fd).map_err(|error| Failure::System(errno(&error)))?);
            }
            let io = || Socket::new(fd, body, sigpipe_ignored);
            let ended = drive(transfer, Some(fd), limits, BUDGET, body.memory(), io);
            drop(nonblocking);
            ended
        }
        Sink::Writer { writer, fd } => {
            transfer.copy_only();
            drive(transfer, fd, limits, WRITER_BUDGET, body.memory(), || Callback { writer, body })
        }
    }
}

/// Steps `transfer` until it is done, waiting on `fd`. `io` makes the sink anew for each step, so that
/// what a step changes for its own time (signal mask, TCP_CORK) is not changed while it waits.
fn drive<I: Io>(
    transfer: &mut Transfer,
    fd: Option<RawFd>,
    limits: Limits,
    budget: u64,
    memory: Option<&[u8]>,
    mut io: impl FnMut() -> I,
) -> Result<(), Cut> {
    // The common answer leaves in one step, and asks for no time unless that is limited.
    let mut deadline = limits.total.map(|_| Deadline::new(limits, Instant::now()));
    let budget = if limits.total.is_some() { budget } else { u64::MAX };
    let mut poll = Poll::default();
    loop {
        let step = transfer.step(&mut io(), memory, budget)?;
        if step == Step::Done {
            return Ok(());
        }
        let now = Instant::now();
        let deadline = deadline.get_or_insert_with(|| Deadline::new(limits, now));
        if deadline.is_over(now) {
            return Err(Cut::Timeout);
        }
        let Step::Wait(interest) = step else { continue };
        let sent = transfer.plan().sent();
        let until = deadline.wait(now, sent, || fd.map_or(0, queued)).ok_or(Cut::Timeout)?;
        poll.wait(fd.ok_or(Cut::NoDescriptor)?, interest, until - now)?;
    }
}

/// Longest sleep where poll(2) doesn't.
const NAP: Duration = Duration::from_millis(10);

/// Waits for one socket.
#[derive(Debug, Default)]
pub(crate) struct Poll {
    /// An error was all that it had the last time.
    had_error: bool,
}

impl Poll {
    /// A signal, an error on the socket and the end of the time all mean: try again and see.
    pub(crate) fn wait(&mut self, fd: RawFd, interest: Interest, time: Duration) -> Result<(), Cut> {
        if self.had_error {
            // Trying again did not find it, so it is not the connection's: the error queue has something for the
            // caller (MSG_ZEROCOPY, time stamps), and poll(2) returns at once until he takes that.
            std::thread::sleep(time.min(NAP));
        }
        let events = match interest {
            Interest::Write => libc::POLLOUT,
            Interest::Read => libc::POLLIN,
        };
        let mut entry = libc::pollfd { fd, events, revents: 0 };
        // Rounded up: half a millisecond must not become a busy loop.
        let milliseconds = i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        match syscall!(poll(&raw mut entry, 1, milliseconds)) {
            Ok(_) => {}
            Err(error) if errno(&error) == libc::EINTR => {}
            Err(error) => return Err(Cut::Failure(Failure::System(errno(&error)))),
        }
        if entry.revents & libc::POLLNVAL != 0 {
            return Err(Cut::Failure(Failure::System(libc::EBADF)));
        }
        self.had_error = entry.revents == libc::POLLERR;
        Ok(())
    }
}
