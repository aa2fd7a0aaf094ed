//! Any number of transfers, driven by one thread with an event loop of its own.
//!
//! ```text
//! caller's threads                 State (one lock)             the sender's thread
//! submit: decide, dup, pack  --->  incoming, cancelled  --->    jobs: fresh, ready, cold, waiting
//! take                       <---  done                 <---    step, wait (epoll), time out
//!          eventfd: readable while there is something in done
//! ```
//!
//! Everything that a job needs is allocated before submit says yes, so that from then on it can end in many ways
//! but not be lost: it is reported exactly once.

#[cfg(not(feature = "sender"))]
mod absent;
#[cfg(feature = "sender")]
mod files;
#[cfg(feature = "sender")]
mod fork;
#[cfg(feature = "sender")]
mod handle;
#[cfg(feature = "sender")]
mod job;
#[cfg(feature = "sender")]
mod run;
#[cfg(feature = "sender")]
mod timers;

#[cfg(not(feature = "sender"))]
pub(crate) use absent::Sender;
#[cfg(feature = "sender")]
pub(crate) use handle::Sender;

use crate::memory::OutOfMemory;
use crate::respond::Cut;
use crate::transfer::Outcome;
use std::ffi::c_void;

/// How a sender works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Submitted and not taken.
    pub(crate) max_in_flight: usize,
    /// Bytes that a job sends before the others have their turn.
    pub(crate) turn: u64,
    /// Called on the sender's thread when `done` is no longer empty.
    pub(crate) on_ready: Option<Ready>,
}

/// A function of the caller's, and its argument.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) function: unsafe extern "C" fn(*mut c_void),
    pub(crate) user: *mut c_void,
}

// SAFETY: whoever makes one promises that the function may be called on the sender's thread.
unsafe impl Send for Ready {}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// As for `respond`.
    Cut(Cut),
    OutOfMemory,
    /// A system call failed.
    System(i32),
    /// Too many in flight; or the sender's own thread can't wait for itself.
    Busy,
    Stopped,
    /// This is a child of the process that the thread is in.
    Forked,
    #[cfg_attr(feature = "sender", expect(dead_code, reason = "said by a build without it"))]
    Unsupported,
    /// The thread has ended by a bug.
    Broken,
}

impl From<Cut> for Refused {
    fn from(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}

impl From<OutOfMemory> for Refused {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self::System(crate::io::errno(&error))
    }
}

/// What became of what was submitted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Submitted {
    /// Complete already.
    Done(Outcome),
    /// In flight under this id; what has been sent so far.
    Pending(u64, Outcome),
}

/// How a job ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) token: usize,
    pub(crate) id: u64,
    pub(crate) ended: Result<(), End>,
    pub(crate) outcome: Outcome,
    pub(crate) elapsed_ns: u64,
}

/// Why a job was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Cut(Cut),
    Cancelled,
    /// A bug here.
    Broken,
}

impl<T: Into<Cut>> From<T> for End {
    fn from(cut: T) -> Self {
        Self::Cut(cut.into())
    }
}
