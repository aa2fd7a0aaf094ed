//! A build without the feature "sender": none can be made.

use super::{Completion, Options, Refused, Submitted};
use crate::answer::{Answer, Sink};
use crate::deadline::Limits;
use crate::http::HeaderList;
use crate::transfer::Outcome;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::time::Duration;

/// There is none.
#[derive(Debug)]
pub(crate) struct Sender<W>(std::convert::Infallible, PhantomData<fn() -> W>);

#[allow(clippy::unused_self)] // The same functions as those of the real one.
impl<W> Sender<W> {
    pub(crate) fn new(_: Options) -> Result<Self, Refused> {
        Err(Refused::Unsupported)
    }

    pub(crate) fn fd(&self) -> Result<RawFd, Refused> {
        match self.0 {}
    }

    pub(crate) unsafe fn submit<H: HeaderList>(
        &self,
        _: &Answer<'_, H>,
        _: Sink<W>,
        _: Limits,
        _: bool,
        _: usize,
    ) -> Result<Submitted, (Refused, Outcome)> {
        match self.0 {}
    }

    pub(crate) fn take(&self, _: usize, _: impl FnMut(Completion)) -> Result<usize, Refused> {
        match self.0 {}
    }

    pub(crate) fn cancel(&self, _: u64) -> Result<(), Refused> {
        match self.0 {}
    }

    pub(crate) fn stop(&self, _: Duration) -> Result<bool, Refused> {
        match self.0 {}
    }
}
