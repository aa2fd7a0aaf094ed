//! Receiving the content of a request.

use super::input::limits;
use super::status::*;
use super::structs::{check_out, read_struct, slice_mut, write_struct};
use super::types::*;
use super::{Error, guard};
use crate::deadline::Limits;
use crate::io::source::{Reader, Target};
use crate::io::{Fault, Interest, file};
use crate::receive::{Count, Cut, Source, to_file, to_memory};
use std::mem::MaybeUninit;

/// A read function of the caller's, with its argument.
#[derive(Clone, Copy, Debug)]
struct Callback {
    function: unsafe extern "C" fn(*mut std::ffi::c_void, *mut u8, usize, *mut usize) -> sendgate_status,
    user: *mut std::ffi::c_void,
}

impl Reader for Callback {
    /// What comes back is checked: a count above the room for it would be bytes that aren't there.
    fn read(&mut self, space: &mut [MaybeUninit<u8>]) -> Result<usize, Fault> {
        let mut length = 0;
        let place = space.as_mut_ptr().cast();
        // SAFETY: the header asks for a function that may be called with `user` during the call.
        let status = unsafe { (self.function)(self.user, place, space.len(), &raw mut length) };
        match status {
            SENDGATE_OK if length <= space.len() => Ok(length),
            SENDGATE_WANT_READ => Err(Fault::Wait(Interest::Read)),
            SENDGATE_WANT_WRITE => Err(Fault::Wait(Interest::Write)),
            error if error < 0 => Err(Fault::Callback(error)),
            _ => Err(Fault::Callback(SENDGATE_ERR_INVALID)),
        }
    }
}

/// # Safety
/// As the header asks.
unsafe fn read_source(p: *const sendgate_source) -> Result<(Source<Callback>, Option<Limits>), Error> {
    // SAFETY: the same promise.
    let source = unsafe { read_struct(p) }?;
    if source.flags & !SENDGATE_SOURCE_TRY_NOW != 0 || source.fd < -1 {
        return Err(Error::INVALID);
    }
    let waits = source.flags & SENDGATE_SOURCE_TRY_NOW == 0;
    let limits = waits.then(|| limits(source.idle_timeout_ms, source.total_timeout_ms, source.min_rate));
    let fd = (source.fd >= 0).then_some(source.fd);
    let source = match (source.read, fd) {
        (Some(function), fd) => Source::Reader { reader: Callback { function, user: source.user }, fd },
        (None, Some(fd)) => Source::Socket(fd),
        (None, None) => return Err(Error::INVALID),
    };
    Ok((source, limits))
}

/// Runs a call that counts what came, and writes that whatever happens.
///
/// # Safety
/// `out` is NULL or a struct with its size set.
unsafe fn report(
    out: *mut sendgate_received,
    body: impl FnOnce(&mut Count) -> Result<Result<Option<Interest>, Cut>, Error>,
) -> sendgate_status {
    let mut count = Count::default();
    let mut sys_errno = 0;
    let status = guard(|| {
        if !out.is_null() {
            // SAFETY: the same promise.
            unsafe { check_out(out) }?;
        }
        let ended = body(&mut count).and_then(|ended| ended.map_err(Error::from));
        let interest = ended.inspect_err(|error| sys_errno = error.errno)?;
        Ok(match interest {
            None => SENDGATE_OK,
            Some(Interest::Read) => SENDGATE_WANT_READ,
            Some(Interest::Write) => SENDGATE_WANT_WRITE,
        })
    });
    if !out.is_null() {
        let Count { received, stored, .. } = count;
        // Fails only if the size is wrong, which the status says already.
        // SAFETY: the same promise.
        let _ = unsafe { write_struct(out, &sendgate_received { size: 0, status, sys_errno, received, stored }) };
    }
    status
}

/// Take len bytes of a request's content from the source and put them into buf: any memory, a
/// mapping of a file too. Nothing behind them is taken. Blocking, unless SENDGATE_SOURCE_TRY_NOW is
/// set; the socket may be blocking or not. Whatever is returned, the first out->received bytes of buf
/// are what came, and another call can go on behind them. out may be NULL.
///
/// What was read together with the request's head is the caller's to put there first. Content in
/// chunks (Transfer-Encoding) is taken as it comes. SENDGATE_ERR_INCOMPLETE: the peer has ended.
/// SENDGATE_ERR_PEER_CLOSED: a reset. SENDGATE_ERR_IO with EFAULT: buf can't be written, or is a
/// mapping of a file that was cut short; a read function writes from user space, where that is
/// SIGBUS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_receive(
    source: *const sendgate_source,
    buf: *mut u8,
    len: usize,
    out: *mut sendgate_received,
) -> sendgate_status {
    let call = |count: &mut Count| {
        // SAFETY: the header asks for a valid source.
        let (source, limits) = unsafe { read_source(source) }?;
        // SAFETY: the header asks for `len` writable bytes.
        let space = unsafe { slice_mut(buf.cast::<MaybeUninit<u8>>(), len) }?;
        if space.len() != len {
            return Err(Error::INVALID);
        }
        Ok(to_memory(source, space, limits, count))
    };
    // SAFETY: the header asks for NULL or a struct with its size set.
    unsafe { report(out, call) }
}

/// As sendgate_receive, into a regular file: len bytes from offset on, whatever was there. From 512
/// KiB on the kernel moves them there without passing them to this process (splice), if it can, and
/// a blocking socket has O_NONBLOCK meanwhile; with SENDGATE_SOURCE_TRY_NOW only if 128 KiB are there
/// already. The call has a pipe of 256 KiB then, also while it waits: above 64 MiB of them a user's
/// pipes are smaller (pipe-user-pages-soft), and the bytes are copied. The file's own position stays
/// where it is.
///
/// Before anything is taken: SENDGATE_ERR_NOT_REGULAR; SENDGATE_ERR_NO_MEMORY; SENDGATE_ERR_IO with
/// EBADF (the file is not open for writing), EINVAL (it has O_APPEND or O_DIRECT) or EFBIG
/// (RLIMIT_FSIZE; no SIGXFSZ is raised). Later SENDGATE_ERR_IO with ENOSPC, EDQUOT, EIO, ENOMEM and
/// the like: the file has out->stored bytes of it, and the out->received - out->stored bytes that
/// were taken but not written are lost. What the peer has yet to send is len - out->received bytes.
/// Time that the file takes is not counted against min_rate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_receive_file(
    source: *const sendgate_source,
    fd: i32,
    offset: u64,
    len: u64,
    out: *mut sendgate_received,
) -> sendgate_status {
    let call = |count: &mut Count| {
        // SAFETY: the header asks for a valid source.
        let (source, limits) = unsafe { read_source(source) }?;
        let end = offset.checked_add(len).filter(|end| libc::off_t::try_from(*end).is_ok()).ok_or(Error::INVALID)?;
        let start = libc::off_t::try_from(offset).map_err(|_| Error::INVALID)?;
        if fd < 0 {
            return Err(Error::INVALID);
        }
        file::check_writable(fd, end)?;
        Ok(to_file(source, Target::new(fd, start), len, limits, count))
    };
    // SAFETY: the header asks for NULL or a struct with its size set.
    unsafe { report(out, call) }
}
