//! A function of the caller's as the place where bytes go: TLS in user space.

use super::file::{self, Body, Stamp};
use super::{Fault, Io, Parts};
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

/// What a TLS record holds.
const RECORD: usize = 16 * 1024;

impl<W: Writer> Io for Callback<'_, W> {
    const CHUNK: usize = RECORD;

    /// Together, as far as they fit into one record. Never less because more is there: after it had to wait, OpenSSL
    /// takes no fewer bytes than before.
    fn send_parts(&mut self, parts: &Parts<'_>, more: bool) -> Result<usize, Fault> {
        let mut filled = parts.iter().filter(|part| !part.is_empty());
        let first = filled.next().copied().unwrap_or_default();
        if first.len() >= RECORD || filled.next().is_none() {
            return self.send(first, more);
        }
        let mut record = [MaybeUninit::<u8>::uninit(); RECORD];
        let mut length = 0;
        for part in parts {
            let count = part.len().min(RECORD - length);
            record[length..length + count].write_copy_of_slice(&part[..count]);
            length += count;
        }
        // SAFETY: so many have just been written there.
        self.send(unsafe { record[..length].assume_init_ref() }, more)
    }

    fn send(&mut self, bytes: &[u8], _more: bool) -> Result<usize, Fault> {
        self.writer.write(bytes)
    }

    fn send_file(&mut self, _offset: u64, _length: u64) -> Result<usize, Fault> {
        Err(Fault::Unsupported)
    }

    fn read(&mut self, space: &mut [MaybeUninit<u8>], offset: u64) -> Result<usize, Fault> {
        file::read(&self.body, space, offset)
    }

    fn rest_of_file(&mut self, offset: u64) -> Result<u64, Fault> {
        file::rest(&self.body, offset)
    }

    fn file_stamp(&mut self) -> Result<Stamp, Fault> {
        file::stamp(&self.body)
    }
}
