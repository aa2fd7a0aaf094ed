//! A transfer stepped by the caller's event loop.

use crate::answer::{Answer, Kept, Sink};
use crate::http::{HeaderList, Modified};
use crate::io::callback::{Callback, Writer};
use crate::io::file::{self, Body};
use crate::io::socket::Socket;
use crate::io::{errno, status_flags};
use crate::transfer::{Failure, Refusal, Step, Transfer};
use std::os::fd::RawFd;

/// One response after the other, on one connection.
#[derive(Debug)]
pub(crate) struct Resumable<W> {
    pub(crate) transfer: Transfer,
    /// None: to be pulled from.
    sink: Option<Sink<W>>,
    body: Kept,
    started: bool,
    /// Descriptors that were found to be fit, so that a kept connection and a cached file are not asked again
    /// for each response.
    nonblocking_socket: RawFd,
    readable_file: Option<KnownFile>,
}

/// A file as far as it is known: numbers are used again, but hardly for one with the same time and length.
type KnownFile = (RawFd, Option<Modified>, u64);

/// Not started; or a step of what is to be pulled from, or the other way round; or no room.
#[derive(Debug)]
pub(crate) struct Misused;

impl<W: Writer + Copy> Resumable<W> {
    pub(crate) fn new() -> Self {
        Self {
            transfer: Transfer::new(),
            sink: None,
            body: Kept::Memory(&[]),
            started: false,
            nonblocking_socket: -1,
            readable_file: None,
        }
    }

    /// Ends whatever was going on.
    pub(crate) fn stop(&mut self) {
        self.started = false;
    }

    /// Decides, and gets ready to send. Sends nothing. Without a sink, the bytes are to be pulled.
    ///
    /// # Safety
    /// The memory of `answer` stays valid until the response is done, or stopped, or another is started.
    pub(crate) unsafe fn start<H: HeaderList>(
        &mut self,
        answer: &Answer<'_, H>,
        sink: Option<Sink<W>>,
    ) -> Result<(), Refusal> {
        self.stop();
        answer.begin(&mut self.transfer)?;
        if let Some(Sink::Socket { fd, .. }) = sink {
            self.check_socket(fd)?;
            if let Body::File { fd: file, .. } = answer.body {
                self.check_file((file, answer.representation.modified, answer.representation.length))?;
            }
        } else {
            self.transfer.copy_only();
        }
        self.sink = sink;
        self.body = answer.body.into();
        self.started = true;
        Ok(())
    }

    fn check_socket(&mut self, fd: RawFd) -> Result<(), Refusal> {
        if self.nonblocking_socket != fd {
            let flags = status_flags(fd).map_err(|error| Failure::System(errno(&error)))?;
            if flags & libc::O_NONBLOCK == 0 {
                return Err(Refusal::Blocking);
            }
            self.nonblocking_socket = fd;
        }
        Ok(())
    }

    fn check_file(&mut self, file: KnownFile) -> Result<(), Refusal> {
        if self.transfer.uses_sendfile() && self.readable_file != Some(file) {
            file::check_readable(file.0).map_err(Failure::System)?;
            self.readable_file = Some(file);
        }
        Ok(())
    }

    /// Sends at most `budget` bytes.
    pub(crate) fn step(&mut self, budget: u64) -> Result<Result<Step, Failure>, Misused> {
        let sink = self.sink.filter(|_| self.started).ok_or(Misused)?;
        // SAFETY: it is gone at the end of this function, and `start` was promised the rest.
        let body = unsafe { self.body.body(self.transfer.has_ended()) };
        Ok(match sink {
            Sink::Socket { fd, sigpipe_ignored } => {
                self.transfer.step(&mut Socket::new(fd, body, sigpipe_ignored), body.memory(), budget)
            }
            Sink::Writer { writer, .. } => self.transfer.step(&mut Callback { writer, body }, body.memory(), budget),
        })
    }

    /// Fills `space` unless the end or a failure comes first, and says how far that came.
    pub(crate) fn pull(&mut self, space: &mut [u8]) -> Result<(Result<Step, Failure>, usize), Misused> {
        if !self.started || self.sink.is_some() || space.is_empty() {
            return Err(Misused);
        }
        // SAFETY: it is gone at the end of this function, and `start` was promised the rest.
        let body = unsafe { self.body.body(self.transfer.has_ended()) };
        let (mut filled, capacity) = (0, space.len());
        let writer = |bytes: &[u8]| {
            // The budget is the capacity, so `bytes` fit.
            space[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
            Ok(bytes.len())
        };
        let step = self.transfer.step(&mut Callback { writer, body }, body.memory(), capacity as u64);
        Ok((step, filled))
    }
}
