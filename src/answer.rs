//! One answer to give: what is said, what is sent, and where it goes. The drivers (`respond`, `resumable`) take it.

use crate::http::{Exchange, HeadForm, HeaderList, Representation, Request};
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
    pub(crate) form: HeadForm,
    pub(crate) close: bool,
    pub(crate) max_ranges: usize,
    pub(crate) status: u16,
    pub(crate) evaluate: bool,
    /// Copy the file through memory.
    pub(crate) copy: bool,
    /// fstat before each step.
    pub(crate) check: bool,
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
        transfer.start(&self.exchange(), self.form, self.copy, stamp)
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
