//! One answer to give: what is said, what is sent, and where it goes. The drivers
//! (`respond`, `resumable`, `sender`, `stream`) take it.

use crate::fastcgi::records::Records;
use crate::http::{self, Exchange, HeadForm, HeaderList, Representation, Request};
use crate::io::Fault;
use crate::io::file::{self, Body};
use crate::transfer::{Failure, Refusal, Transfer};
use std::os::fd::RawFd;

/// A request, a representation with its bytes, and how to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a, H> {
    pub(crate) request: Request<'a>,
    pub(crate) representation: Representation<'a>,
    pub(crate) body: Body<'a>,
    pub(crate) headers: H,
    pub(crate) now: i64,
    pub(crate) seed: u64,
    pub(crate) form: HeadForm<'a>,
    pub(crate) close: bool,
    pub(crate) max_ranges: usize,
    pub(crate) status: u16,
    pub(crate) evaluate: bool,
    /// Copy the file through memory.
    pub(crate) copy: bool,
    /// fstat before each step.
    pub(crate) check: bool,
    /// Framed as FastCGI's records.
    pub(crate) records: Option<Records>,
    /// Its content comes from the caller, piece by piece: `body` has none.
    pub(crate) is_stream: bool,
}

impl<H: HeaderList> Answer<'_, H> {
    /// What the decision depends on.
    pub(crate) fn exchange(&self) -> Exchange<'_> {
        Exchange {
            request: self.request,
            representation: self.representation,
            headers: &self.headers,
            now: self.now,
            seed: self.seed,
            status: self.status,
            evaluate: self.evaluate,
            close: self.close,
            max_ranges: self.max_ranges,
        }
    }

    /// Decides, and gets `transfer` ready. Sends nothing.
    pub(crate) fn begin(&self, transfer: &mut Transfer) -> Result<(), Refusal> {
        if self.is_stream {
            return Err(http::Error::Invalid.into());
        }
        self.check_form()?;
        let mut stamp = None;
        if self.check && matches!(self.body, Body::File { .. }) {
            let now = file::stamp(&self.body).map_err(|fault| match fault {
                Fault::System(errno) => Failure::System(errno),
                _ => Failure::System(libc::EINVAL),
            })?;
            // The file may have changed since its metadata were taken.
            if self.representation.modified.is_some_and(|modified| modified != now.modified) {
                return Err(Failure::Changed.into());
            }
            stamp = Some(now);
        }
        transfer.start(&self.exchange(), self.form, self.copy, stamp, self.records)
    }

    /// Front servers take a status line for content, and answer 200 or 500.
    pub(crate) fn check_form(&self) -> Result<(), Refusal> {
        if self.records.is_some() && self.form == HeadForm::Http1 {
            return Err(http::Error::Invalid.into());
        }
        Ok(())
    }
}

/// Where bytes go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sink<W> {
    Socket {
        fd: RawFd,
        /// The host ignores SIGPIPE, and says so.
        sigpipe_ignored: bool,
    },
    /// To a writer of the caller's; `fd` is only waited on.
    Writer { writer: W, fd: Option<RawFd> },
}

/// The bytes to send, as they are kept between steps: a reference would have to be valid for as long as its keeper
/// is, but memory is the caller's own again when the response is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept {
    File { fd: RawFd, offset: u64 },
    Memory(*const [u8]),
}

// SAFETY: the memory is only read, and the caller leaves it as it is until the response is done, wherever that is.
unsafe impl Send for Kept {}

impl From<Body<'_>> for Kept {
    fn from(body: Body<'_>) -> Self {
        match body {
            Body::File { fd, offset } => Self::File { fd, offset },
            Body::Memory(bytes) => Self::Memory(bytes),
        }
    }
}

impl Kept {
    /// The bytes to send. Once the response `has_ended` there are none, and the memory is not looked at.
    ///
    /// # Safety
    /// What this returns is used for one step only, and the memory is valid until the response has ended.
    pub(crate) unsafe fn body<'b>(self, has_ended: bool) -> Body<'b> {
        match self {
            Self::File { fd, offset } => Body::File { fd, offset },
            Self::Memory(_) if has_ended => Body::Memory(&[]),
            // SAFETY: the same promise.
            Self::Memory(bytes) => Body::Memory(unsafe { &*bytes }),
        }
    }
}
