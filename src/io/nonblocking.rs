//! sendfile without blocking on a blocking socket.

use std::os::fd::RawFd;

/// O_NONBLOCK, for as long as this lives, on a socket that lacks it. `respond` and `sender` use it, and only
/// for bodies that sendfile sends: everything else has MSG_DONTWAIT, but sendfile (and splice) have
/// no such flag, and a call that blocks can't keep a timeout.
///
/// O_NONBLOCK belongs to the open file description, so other descriptors of the same socket see it too.
#[derive(Debug)]
pub(crate) struct Nonblocking {
    restore: Option<RawFd>,
}

impl Nonblocking {
    pub(crate) fn new(fd: RawFd) -> std::io::Result<Self> {
        let flags = super::status_flags(fd)?;
        if flags & libc::O_NONBLOCK != 0 {
            return Ok(Self { restore: None });
        }
        super::syscall!(fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))?;
        Ok(Self { restore: Some(fd) })
    }
}

impl Drop for Nonblocking {
    fn drop(&mut self) {
        // What else the host has changed in the meantime (O_ASYNC) stays. Neither call can fail for a descriptor
        // on which it has just succeeded.
        if let Some(fd) = self.restore
            && let Ok(flags) = super::status_flags(fd)
        {
            let _ = super::syscall!(fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK));
        }
    }
}
