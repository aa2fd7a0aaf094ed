//! One response in flight: what it needs to be sent, owned.

use super::Refused;
use super::files::{File, Files};
use crate::answer::{Answer, Kept, Sink};
use crate::deadline::{Deadline, Limits};
use crate::io::callback::{Callback, Writer};
use crate::io::file::{self, Body, Cached};
use crate::io::nonblocking::Nonblocking;
use crate::io::socket::{Socket, queued};
use crate::io::{duplicate, errno, status_flags};
use crate::memory::try_box;
use crate::respond::{Cut, WRITER_BUDGET};
use crate::transfer::{Failure, Outcome, SMALL, Step, Transfer};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// What is read at once of a file that may have to come from the disk.
pub(super) const COLD: u64 = 128 << 10;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the queue of those that have not had a turn.
    Fresh,
    /// In the queue of those that can go on.
    Ready,
    /// In the queue of those whose file is being read ahead.
    Cold,
    /// For the socket.
    Waiting,
}

#[derive(Debug)]
pub(super) struct Job<W> {
    pub(super) id: u64,
    pub(super) token: usize,
    transfer: Transfer<0>,
    body: Kept,
    /// None: to the socket itself.
    writer: Option<W>,
    /// Dropped before `socket`, whose number it has.
    _nonblocking: Option<Nonblocking>,
    /// A dup of the caller's, so that its number can't come to mean another client's connection meanwhile.
    pub(super) socket: Option<OwnedFd>,
    /// One of our own for the same reason. `body` has its number.
    _file: Option<File>,
    pub(super) deadline: Deadline,
    begun: Instant,
    pub(super) place: Place,
    pub(super) cancelled: bool,
    pub(super) registered: bool,
    /// Whether the kernel can tell what is in the page cache.
    can_tell: bool,
}

impl<W: Writer + Copy> Job<W> {
    /// Takes over what is left of `transfer`. It belongs to `answer`, and was begun.
    pub(super) fn new<H, const N: usize>(
        transfer: &mut Transfer<N>,
        answer: &Answer<'_, H>,
        sink: Sink<W>,
        limits: Limits,
        files: &Arc<Files>,
        token: usize,
        begun: Instant,
    ) -> Result<Box<Self>, Refused> {
        let file = match answer.body {
            Body::File { fd, .. } if transfer.plan().body_length() > 0 => Some(Files::open(files, fd)?),
            // Without a body the file is not looked at any more.
            _ => None,
        };
        let (socket, writer) = match sink {
            Sink::Socket { fd, .. } => (Some(fd), None),
            Sink::Writer { writer, fd } => (fd, Some(writer)),
        };
        let socket = socket.map(duplicate).transpose()?;
        let mut nonblocking = None;
        if writer.is_some() {
            transfer.copy_only();
        } else if let Some(socket) = &socket
            && transfer.uses_sendfile()
        {
            if let Body::File { fd, .. } = answer.body {
                file::check_readable(fd).map_err(|errno| Cut::Failure(Failure::System(errno)))?;
            }
            nonblocking = Some(Nonblocking::new(socket.as_raw_fd())?);
        }
        let body = match (answer.body, &file) {
            (Body::File { offset, .. }, Some(file)) => Body::File { fd: file.fd(), offset },
            (body, _) => body,
        };
        Ok(try_box(Self {
            id: 0,
            token,
            transfer: transfer.pack()?,
            body: body.into(),
            writer,
            _nonblocking: nonblocking,
            socket,
            _file: file,
            deadline: Deadline::new(limits, begun),
            begun,
            place: Place::Fresh,
            cancelled: false,
            registered: false,
            can_tell: true,
        })?)
    }

    pub(super) fn is_to_writer(&self) -> bool {
        self.writer.is_some()
    }

    /// Whether what comes next is in memory. If not, it is read ahead from now on.
    pub(super) fn is_cold(&mut self, turn: u64) -> Cached {
        let Kept::File { fd, offset } = self.body else { return Cached::Yes };
        let span = self.transfer.next_span();
        if span.length == 0 {
            return Cached::Yes;
        }
        if !self.can_tell {
            return Cached::Unknown;
        }
        let Some(offset) = offset.checked_add(span.offset) else { return Cached::Unknown };
        let cached = file::read_ahead(fd, offset, span.length.min(turn));
        self.can_tell = cached != Cached::Unknown;
        cached
    }

    /// Sends at most `budget` bytes.
    pub(super) fn step(&mut self, budget: u64) -> Result<Step, Failure> {
        // SAFETY: gone at the end of this function, and whoever submitted it has promised the rest.
        let body = unsafe { self.body.body(self.transfer.has_ended()) };
        let memory = body.memory();
        match (self.writer, &self.socket) {
            (Some(writer), _) => self.transfer.step(&mut Callback { writer, body }, memory, budget.min(WRITER_BUDGET)),
            (None, Some(socket)) => {
                // The signal is blocked in this thread for good, so nobody has to guard against it.
                self.transfer.step(&mut Socket::new(socket.as_raw_fd(), body, true), memory, budget)
            }
            // One of them is always there.
            (None, None) => Err(Failure::System(libc::EBADF)),
        }
    }

    /// Until when to wait for the socket; None: it has been too long.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Instant> {
        let sent = self.sent();
        let socket = self.socket.as_ref();
        self.deadline.wait(now, sent, || socket.map_or(0, |socket| queued(socket.as_raw_fd())))
    }

    /// Bytes, head and body.
    pub(super) fn sent(&self) -> u64 {
        self.transfer.plan().sent()
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.transfer.outcome()
    }

    pub(super) fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Up to that much is sent in the caller's thread, if it asks for that.
const NOW: u64 = 64 << 10;

/// Sends what can be sent without waiting. `Step::Yield`: not begun, because it could take longer than a moment.
pub(super) fn send_now<W, const N: usize>(
    transfer: &mut Transfer<N>,
    body: Body<'_>,
    sink: &Sink<W>,
) -> Result<Step, Cut> {
    let Sink::Socket { fd, sigpipe_ignored } = *sink else { return Ok(Step::Yield) };
    let length = transfer.plan().body_length();
    // Each part of a multipart could be somewhere else on the disk.
    if length > NOW || transfer.plan().is_multipart() {
        return Ok(Step::Yield);
    }
    if let Body::File { fd: file, offset } = body
        && length > 0
    {
        let at = offset.saturating_add(transfer.next_span().offset);
        match file::read_ahead(file, at, length) {
            Cached::Yes => {}
            // One read of a few pages, as any server does that knows nothing of page caches.
            Cached::Unknown if length <= SMALL => {}
            Cached::Unknown | Cached::No => return Ok(Step::Yield),
        }
        if transfer.uses_sendfile() {
            let system = |error| Failure::System(errno(&error));
            // sendfile would wait on a socket without it.
            if status_flags(fd).map_err(system)? & libc::O_NONBLOCK == 0 {
                return Ok(Step::Yield);
            }
            file::check_readable(file).map_err(Failure::System)?;
        }
    }
    Ok(transfer.step(&mut Socket::new(fd, body, sigpipe_ignored), body.memory(), u64::MAX)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand stalled downloads are to cost less than a KiB each: this, a head of some 300 bytes, and what the
    /// tables hold.
    #[test]
    fn a_job_is_small() {
        type Plain = fn(&[u8]) -> Result<usize, crate::io::Fault>;
        assert!(size_of::<Job<Plain>>() <= 432, "{}", size_of::<Job<Plain>>());
    }
}
