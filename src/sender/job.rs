//! One response in flight: what it needs to be sent, owned.

use super::Refused;
use super::files::{File, Files};
use crate::answer::{Answer, Kept, Sink};
use crate::deadline::{Deadline, Limits};
use crate::io::callback::{Callback, Writer};
use crate::io::file::{self, Body, Cached};
use crate::io::nonblocking::Nonblocking;
use crate::io::socket::{Socket, queued};
use crate::io::{Interest, duplicate, errno, status_flags};
use crate::memory::try_box;
use crate::respond::{Cut, WRITER_BUDGET};
use crate::transfer::{Failure, Outcome, SMALL, Step, Transfer};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// What is read at once of a file that may have to come from the disk.
pub(super) const COLD: u64 = 128 << 10;

/// What is read ahead behind that for a peer that takes it as fast as it comes.
const AHEAD: u64 = 2 << 20;

/// A peer that makes room in its socket within that time is such a one.
const EAGER: Duration = Duration::from_millis(20);

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the queue of those that have not had a turn.
    Fresh,
    /// In the queue of those that can go on.
    Ready,
    /// Until its time: its file is being read ahead, or its write function wants to be left alone.
    Paused,
    /// In the queue of those that have to wait for the disk, one after the other.
    Disk,
    /// For the socket.
    Waiting,
}

/// How long a file may take to come into the page cache by being read ahead, before the thread waits for it.
const PATIENCE: Duration = Duration::from_millis(64);

/// A write function that asks to wait, and is ready again within that time having taken nothing, is asked less often.
const IN_NO_TIME: Duration = Duration::from_millis(1);

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
    /// What epoll was asked for.
    pub(super) registered: Option<Interest>,
    /// When it last had to wait for its socket, and what had been sent by then.
    parked: Option<(Instant, u64)>,
    /// Its peer takes what it gets at once.
    is_eager: bool,
    /// How long it has been waiting for its file.
    cold_for: Duration,
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
        files: &'static Files,
        token: usize,
        begun: Instant,
    ) -> Result<Box<Self>, Refused> {
        let file = match answer.body {
            Body::File { fd, .. } if transfer.plan().body_length() > 0 => Some(files.open(fd)?),
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
        } else if let (Some(socket), Some(file)) = (&socket, &file)
            && transfer.uses_sendfile()
        {
            file::check_readable(file.fd()).map_err(|errno| Cut::Failure(Failure::System(errno)))?;
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
            registered: None,
            parked: None,
            is_eager: false,
            cold_for: Duration::ZERO,
            can_tell: true,
        })?)
    }

    pub(super) fn is_to_writer(&self) -> bool {
        self.writer.is_some()
    }

    /// How many bytes may be sent in this turn: about `turn` of the file, as far as they are in the page cache; what
    /// is not is read ahead from now on. None: the next ones are not. Unless the thread `may_wait` for the disk:
    /// then for one piece of them.
    pub(super) fn budget(&mut self, turn: u64, may_wait: bool) -> Option<u64> {
        let Kept::File { fd, offset } = self.body else { return Some(turn) };
        let (mut budget, mut room) = (0, turn);
        // What is known to be there ends with the first piece that is not; further ones are only read ahead.
        let mut ended = None;
        for (text, span) in self.transfer.plan().pieces() {
            if ended.is_none() {
                budget += text.len() as u64;
            }
            if span.length == 0 {
                continue;
            }
            // A short rest goes along.
            let length = if span.length <= room + SMALL { span.length } else { room };
            let at = offset.saturating_add(span.offset);
            let cached = if self.can_tell { file::read_ahead(fd, at, length) } else { Cached::Unknown };
            if self.is_eager && length < span.length && cached != Cached::Unknown {
                file::prefetch(fd, at.saturating_add(length), (span.length - length).min(AHEAD));
            }
            match (ended, cached) {
                (None, Cached::Yes) => budget += length,
                (None, _) => ended = Some((cached, budget, length.min(COLD))),
                (Some(_), _) => {}
            }
            room = room.saturating_sub(length);
            if room == 0 || cached == Cached::Unknown {
                break;
            }
        }
        let text = self.transfer.plan().current().0.len() as u64;
        let Some((cached, before, length)) = ended else {
            self.cold_for = Duration::ZERO;
            return Some(budget);
        };
        self.can_tell = cached != Cached::Unknown;
        if before > text {
            self.cold_for = Duration::ZERO;
            return Some(before);
        }
        // It begins with what is not there, or of which the kernel does not know.
        (cached == Cached::Unknown || may_wait).then_some(before + length)
    }

    /// What is next is not in the page cache: how long to leave it alone. None: it has been long enough, and stays so
    /// until reading ahead is found to help.
    pub(super) fn cool_down(&mut self) -> Option<Duration> {
        if self.cold_for >= PATIENCE {
            return None;
        }
        // 1, 1, 2, 4, ... milliseconds.
        let pause = self.cold_for.max(Duration::from_millis(1));
        self.cold_for += pause;
        Some(pause)
    }

    /// It has to wait for its socket. Whether it has to again, having sent nothing since a moment ago.
    pub(super) fn park(&mut self, now: Instant) -> bool {
        let sent = self.sent();
        let before = self.parked.replace((now, sent));
        before.is_some_and(|(at, before)| before == sent && now.saturating_duration_since(at) < IN_NO_TIME)
    }

    /// Sends at most `budget` bytes.
    pub(super) fn step(&mut self, budget: u64) -> Result<Step, Failure> {
        // SAFETY: gone at the end of this function, and whoever submitted it has promised the rest.
        let body = unsafe { self.body.body(self.transfer.has_ended()) };
        let memory = body.memory();
        let step = match (self.writer, &self.socket) {
            (Some(writer), _) => self.transfer.step(&mut Callback { writer, body }, memory, budget.min(WRITER_BUDGET)),
            (None, Some(socket)) => {
                // The signal is blocked in this thread for good, so nobody has to guard against it.
                self.transfer.step(&mut Socket::new(socket.as_raw_fd(), body, true), memory, budget)
            }
            // One of them is always there.
            (None, None) => Err(Failure::System(libc::EBADF)),
        };
        self.is_eager |= step == Ok(Step::Yield);
        step
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

    /// The socket takes something again.
    pub(super) fn wake(&mut self, now: Instant) {
        self.is_eager = self.parked.is_some_and(|(at, _)| now.saturating_duration_since(at) < EAGER);
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.transfer.outcome()
    }

    pub(super) fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Up to that much of a file is sent by sendfile in the caller's thread, if it asks for that. Measured on loopback, out
/// of the page cache: 1 MiB takes 50 to 70 us of CPU time, and handing it over another 20.
const NOW: u64 = 1 << 20;

/// The same for what is copied, which takes longer: memory, and a file that sendfile is not to send. Memory may be a
/// mapping of a file that has to come from the disk first, and nobody can tell: of a file that is another user's
/// mincore(2) says that all of it is there (seen on Linux 6.18).
const NOW_COPIED: u64 = 64 << 10;

/// A file is looked for in the page cache in pieces of that many bytes, at both ends of each (0.2 us an end).
const LOOK: usize = 128 << 10;

/// Sends what can be sent without waiting. `Step::Yield`: not begun, because it could take longer than a moment.
pub(super) fn send_now<W, const N: usize>(
    transfer: &mut Transfer<N>,
    body: Body<'_>,
    sink: &Sink<W>,
) -> Result<Step, Cut> {
    let Sink::Socket { fd, sigpipe_ignored } = *sink else { return Ok(Step::Yield) };
    let length = transfer.plan().body_length();
    let by_sendfile = matches!(body, Body::File { .. }) && transfer.uses_sendfile();
    // Each part of a multipart could be somewhere else on the disk.
    if length > if by_sendfile { NOW } else { NOW_COPIED } || transfer.plan().is_multipart() {
        return Ok(Step::Yield);
    }
    // sendfile would wait on a socket without it.
    if by_sendfile && status_flags(fd).map_err(|error| Failure::System(errno(&error)))? & libc::O_NONBLOCK == 0 {
        return Ok(Step::Yield);
    }
    if let Body::File { fd: file, offset } = body
        && length > 0
    {
        let at = offset.saturating_add(transfer.next_span().offset);
        for begin in (0..length).step_by(LOOK) {
            match file::read_ahead(file, at.saturating_add(begin), (LOOK as u64).min(length - begin)) {
                Cached::Yes => {}
                // One read of a few pages, as any server does that knows nothing of page caches.
                Cached::Unknown if length <= SMALL => {}
                Cached::Unknown | Cached::No => return Ok(Step::Yield),
            }
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
        assert!(size_of::<Job<Plain>>() <= 480, "{}", size_of::<Job<Plain>>());
    }
}
