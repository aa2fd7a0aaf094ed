//! A function of the caller's as the place where bytes go: TLS in user space.

use super::file::{self, Body, Stamp};
use super::{Fault, Io};
use std::mem::MaybeUninit;

/// Takes bytes: 1 to all of those that it is given, or says why not.
pub(crate) trait Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Fault>;
}

impl<F: FnMut(&[u8]) -> Result<usize, Fault>> Writer for F {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        self(bytes)
    }
}

/// A writer, and what is sent to it.
#[derive(Debug)]
pub(crate) struct Callback<'a, W> {
    pub(crate) writer: W,
    pub(crate) body: Body<'a>,
}

impl<W: Writer> Io for Callback<'_, W> {
    fn send(&mut self, bytes: &[u8], _more: bool) -> Result<usize, Fault> {
        self.writer.write(bytes)
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
