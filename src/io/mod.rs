//! System calls: what a transfer needs from the outside, and who provides it.

pub(crate) mod callback;
pub(crate) mod file;
pub(crate) mod nonblocking;
pub(crate) mod sigpipe;
pub(crate) mod socket;
pub(crate) mod source;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Why a call to the outside took no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Again once the socket is writable, or readable.
    Wait(Interest),
    /// EINTR: again at once.
    Interrupted,
    /// This file and this sink can't do that: use `read` and `send`.
    Unsupported,
    /// EPIPE or ECONNRESET.
    Closed(i32),
    /// Any other errno.
    System(i32),
    /// What a callback said: an error code of its own.
    Callback(i32),
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// The socket can take more.
    Write,
    /// The peer has sent something. When sending, a write callback said so: TLS renegotiates.
    Read,
}

/// Bytes that leave together: what stands before a record, a head, what stands before a chunk, the chunk, and what stands
/// behind it.
pub(crate) type Parts<'a> = [&'a [u8]; 5];

/// Where bytes come from and where they go: the kernel, a callback, or a test's script.
pub(crate) trait Io {
    /// Sends some of `bytes`. `more` follow at once, so what is sent may wait for them.
    fn send(&mut self, bytes: &[u8], more: bool) -> Result<usize, Fault>;

    /// The most bytes that are put together for one `send`.
    const CHUNK: usize = usize::MAX;

    /// Sends some of `parts`, one behind the other, with one call if it can. Some of them may be empty, but not all.
    fn send_parts(&mut self, parts: &Parts<'_>, more: bool) -> Result<usize, Fault> {
        let mut parts = parts.iter().filter(|part| !part.is_empty());
        let first = parts.next().copied().unwrap_or_default();
        self.send(first, more || parts.next().is_some())
    }

    /// Sends up to `length` bytes of the file from `offset` without copying them. Ok(0): its end.
    fn send_file(&mut self, offset: u64, length: u64) -> Result<usize, Fault>;

    /// Reads some bytes of the file from `offset` to the start of `space`. Ok(0): its end.
    fn read(&mut self, space: &mut [MaybeUninit<u8>], offset: u64) -> Result<usize, Fault>;

    /// How many bytes the file has from `offset` on, as far as anybody can tell.
    fn rest_of_file(&mut self, offset: u64) -> Result<u64, Fault>;

    /// Size and time of modification of the file.
    fn file_stamp(&mut self) -> Result<file::Stamp, Fault>;

    /// From now on, and until this is dropped, small pieces wait for each other.
    fn hold_back(&mut self) {}

    /// What was sent leaves now, and doesn't wait for what the peer has yet to acknowledge.
    fn push(&mut self) {}
}

/// Turns -1 into an error, and everything else into what it is.
pub(crate) fn check<T: TryInto<usize> + PartialOrd + Default>(returned: T) -> io::Result<usize> {
    if returned < T::default() {
        return Err(io::Error::last_os_error());
    }
    returned.try_into().map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

/// Calls a libc function, with -1 as an error: one place for the `unsafe` of a plain system call.
macro_rules! syscall {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: every pointer among the arguments is valid for what the call does with it; see the caller.
        $crate::io::check(unsafe { libc::$function($($argument),*) })
    }};
}
pub(crate) use syscall;

/// The errno of `error`.
pub(crate) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// A descriptor of our own for what `fd` stands for, whatever that number means later.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // Not 0 to 2, which a daemon may have closed: whatever is printed to stderr would go to a client.
    let number = syscall!(fcntl(fd, libc::F_DUPFD_CLOEXEC, 3))?;
    let number = RawFd::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))?;
    // SAFETY: the call has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The status flags of an open file description (fcntl(2), F_GETFL).
pub(crate) fn status_flags(fd: RawFd) -> io::Result<i32> {
    let flags = syscall!(fcntl(fd, libc::F_GETFL))?;
    Ok(i32::try_from(flags).unwrap_or(0))
}
