//! The C ABI: reads C structs, calls one safe function, writes C structs.
//!
//! The contract of every exported function is its comment, which cbindgen copies into
//! `include/sendgate.h`; rustdoc's "Safety" headings would be noise there.

#![expect(clippy::missing_safety_doc)]

pub mod decide;
pub mod fastcgi;
pub mod headers;
pub mod receive;
pub mod send;
pub mod sender;
pub mod simple;
pub mod status;
pub mod stream;
pub mod types;

mod handle;
mod input;
mod structs;

use crate::fastcgi::parser;
use crate::headers as list;
use crate::http;
use crate::io::file::FileError;
use crate::memory::OutOfMemory;
use crate::respond::Cut;
use crate::resumable::Misused;
use crate::stream as stream_engine;
use crate::transfer::{Failure, Refusal};
use status::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// An error code, with the errno behind it if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    status: sendgate_status,
    errno: i32,
}

impl Error {
    const INVALID: Self = Self::new(SENDGATE_ERR_INVALID);

    const fn new(status: sendgate_status) -> Self {
        Self { status, errno: 0 }
    }

    fn io(error: &std::io::Error) -> Self {
        Self { status: SENDGATE_ERR_IO, errno: crate::io::errno(error) }
    }
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Self::new(SENDGATE_ERR_NO_MEMORY)
    }
}

impl From<http::Error> for Error {
    fn from(error: http::Error) -> Self {
        Self::new(match error {
            http::Error::Invalid => SENDGATE_ERR_INVALID,
            http::Error::Field => SENDGATE_ERR_FIELD,
        })
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Exchange(error) => error.into(),
            Refusal::OutOfMemory => OutOfMemory.into(),
            Refusal::File(failure) => failure.into(),
            Refusal::Blocking => Self::new(SENDGATE_ERR_BLOCKING),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Truncated => Self::new(SENDGATE_ERR_TRUNCATED),
            Failure::Excess => Self::new(SENDGATE_ERR_EXCESS),
            Failure::Changed => Self::new(SENDGATE_ERR_CHANGED),
            Failure::PeerClosed(errno) => Self { status: SENDGATE_ERR_PEER_CLOSED, errno },
            Failure::System(errno) => Self { status: SENDGATE_ERR_IO, errno },
            Failure::Callback(status) => Self::new(status),
        }
    }
}

impl From<Cut> for Error {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Refusal(refusal) => refusal.into(),
            Cut::Failure(failure) => failure.into(),
            Cut::Timeout => Self::new(SENDGATE_ERR_TIMEOUT),
            Cut::NoDescriptor => Self::new(SENDGATE_ERR_BLOCKING),
        }
    }
}

impl From<crate::receive::Cut> for Error {
    fn from(cut: crate::receive::Cut) -> Self {
        match cut {
            crate::receive::Cut::Incomplete => Self::new(SENDGATE_ERR_INCOMPLETE),
            crate::receive::Cut::Other(cut) => cut.into(),
        }
    }
}

impl From<Misused> for Error {
    fn from(_: Misused) -> Self {
        Self::INVALID
    }
}

impl From<stream_engine::Refused> for Error {
    fn from(refused: stream_engine::Refused) -> Self {
        match refused {
            stream_engine::Refused::Misused => Self::INVALID,
            stream_engine::Refused::Field => Self::new(SENDGATE_ERR_FIELD),
        }
    }
}

impl From<parser::Error> for Error {
    fn from(error: parser::Error) -> Self {
        match error {
            parser::Error::Malformed => Self::new(SENDGATE_ERR_FASTCGI),
            parser::Error::OutOfMemory => OutOfMemory.into(),
        }
    }
}

impl From<list::Refused> for Error {
    fn from(refused: list::Refused) -> Self {
        match refused {
            list::Refused::Malformed => Self::new(SENDGATE_ERR_FIELD),
            list::Refused::Frozen => Self::new(SENDGATE_ERR_FROZEN),
            list::Refused::OutOfMemory => OutOfMemory.into(),
        }
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        match error {
            FileError::NotRegular(errno) => Self { status: SENDGATE_ERR_NOT_REGULAR, errno },
            FileError::System(error) => Self::io(&error),
        }
    }
}

/// Runs `body` and turns its outcome into a status. A panic is a bug of ours; it must not unwind
/// into C, and must not end the host either.
fn guard(body: impl FnOnce() -> Result<sendgate_status, Error>) -> sendgate_status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => error.status,
        Err(_) => SENDGATE_ERR_INTERNAL,
    }
}
