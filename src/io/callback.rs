//! A function of the caller's as the place where bytes go: TLS in user space.

use super::file::{self, Body, Stamp};
use super::{Fault, Io};
use std::mem::MaybeUninit;

/// Calls `write` for every byte. It takes 1 to all of what it is given, or says why not.
pub(crate) struct Callback<'a, F> {
    pub(crate) write: F,
    pub(crate) body: Body<'a>,
}

impl<F: FnMut(&[u8]) -> Result<usize, Fault>> Io for Callback<'_, F> {
    fn send(&mut self, bytes: &[u8], _more: bool) -> Result<usize, Fault> {
        (self.write)(bytes)
    }

    fn send_file(&mut self, _offset: u64, _length: u64) -> Result<usize, Fault> {
        Err(Fault::Unsupported)
    }

    fn read(&mut self, space: &mut [MaybeUninit<u8>], offset: u64) -> Result<usize, Fault> {
        file::read(&self.body, space, offset)
    }

    fn file_stamp(&mut self) -> Result<Stamp, Fault> {
        file::stamp(&self.body)
    }
}
