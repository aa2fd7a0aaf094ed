//! A stream socket as the place where bytes go.

use super::file::{self, Body, Stamp};
use super::sigpipe::Guard;
use super::{Fault, Interest, Io, Parts, errno, syscall};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

/// One call moves at most that (sendfile(2)), whatever is asked for.
const SENDFILE_MAX: u64 = 0x7fff_f000;

/// A socket and what is sent on it, for the length of one step.
#[derive(Debug)]
pub(crate) struct Socket<'a> {
    pub(crate) fd: RawFd,
    pub(crate) body: Body<'a>,
    /// The host ignores SIGPIPE, and says so.
    pub(crate) sigpipe_ignored: bool,
    guard: Option<Guard>,
    /// A sendfile was cut short, perhaps by a peer that went away: then it has raised SIGPIPE, and says only how
    /// much went before.
    cut_short: bool,
    /// A call has found that the peer went away.
    peer_closed: bool,
    corked: bool,
}

impl<'a> Socket<'a> {
    pub(crate) fn new(fd: RawFd, body: Body<'a>, sigpipe_ignored: bool) -> Self {
        Self { fd, body, sigpipe_ignored, guard: None, cut_short: false, peer_closed: false, corked: false }
    }
}

impl Socket<'_> {
    fn fault(&mut self, error: &io::Error) -> Fault {
        match errno(error) {
            // Linux has one number for EAGAIN and EWOULDBLOCK.
            libc::EAGAIN => Fault::Wait(Interest::Write),
            libc::EINTR => Fault::Interrupted,
            number @ (libc::EPIPE | libc::ECONNRESET) => {
                self.peer_closed = true;
                Fault::Closed(number)
            }
            number => Fault::System(number),
        }
    }
}

/// MSG_MORE only if the rest follows at once: alone, Linux holds the bytes back for 200 ms.
fn send_flags(more: bool) -> libc::c_int {
    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 }
}

impl Io for Socket<'_> {
    fn send(&mut self, bytes: &[u8], more: bool) -> Result<usize, Fault> {
        syscall!(send(self.fd, bytes.as_ptr().cast(), bytes.len(), send_flags(more)))
            .map_err(|error| self.fault(&error))
    }

    fn send_parts(&mut self, parts: &Parts<'_>, more: bool) -> Result<usize, Fault> {
        let mut pieces =
            parts.map(|bytes| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        // SAFETY: a struct of integers and pointers, for which zero is a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len();
        syscall!(sendmsg(self.fd, &raw const message, send_flags(more))).map_err(|error| self.fault(&error))
    }

    fn send_file(&mut self, offset: u64, length: u64) -> Result<usize, Fault> {
        let Body::File { fd: file, .. } = self.body else { return Err(Fault::Unsupported) };
        let mut offset = self.body.file_offset(offset).ok_or(Fault::System(libc::EOVERFLOW))?;
        if !self.sigpipe_ignored && self.guard.is_none() {
            self.guard = Some(Guard::new());
        }
        let length = length.min(SENDFILE_MAX) as usize; // Below 2^31.
        // The offset is ours: the file's own position stays where it is, and other threads can send
        // from the same descriptor.
        let sent = syscall!(sendfile(self.fd, file, &raw mut offset, length)).map_err(|error| match errno(&error) {
            // The kernel has no way to map this file, or no way into this socket. EINVAL also
            // comes from some of procfs; EIO and others are errors of the file.
            libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ESPIPE | libc::EPERM => Fault::Unsupported,
            _ => self.fault(&error),
        })?;
        self.cut_short |= sent < length;
        Ok(sent)
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

    /// sendfile pushes its last partial segment out, so several parts of a file would leave as many
    /// small segments, and with Nagle's algorithm wait 40 ms for each other. A socket that
    /// isn't TCP has no such option, and needs none.
    fn hold_back(&mut self) {
        self.corked = !self.corked
            && option(self.fd, libc::TCP_CORK) == Some(0)
            && set_option(self.fd, libc::TCP_CORK, 1).is_ok();
    }

    /// Nagle's algorithm keeps a small segment until all before it is acknowledged, which takes 40 ms with a peer that
    /// delays that. Most hosts have switched it off. If not, setting TCP_NODELAY sends what waits (tcp(7)), and then the
    /// host has its setting back.
    fn push(&mut self) {
        if option(self.fd, libc::TCP_NODELAY) == Some(0) && set_option(self.fd, libc::TCP_NODELAY, 1).is_ok() {
            let _ = set_option(self.fd, libc::TCP_NODELAY, 0);
        }
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        if self.corked {
            let _ = set_option(self.fd, libc::TCP_CORK, 0);
        }
        if (self.cut_short || self.peer_closed)
            && let Some(guard) = &self.guard
        {
            guard.consume(self.peer_closed);
        }
    }
}

/// How many bytes the kernel holds that the peer has not taken yet (tcp(7) and unix(7), SIOCOUTQ); 0 if it
/// can't be told. On UNIX sockets they count with what the kernel spends on them.
pub(crate) fn queued(fd: RawFd) -> u64 {
    let mut count: libc::c_int = 0;
    let told = syscall!(ioctl(fd, libc::TIOCOUTQ, &raw mut count));
    told.ok().and_then(|_| u64::try_from(count).ok()).unwrap_or(0)
}

/// An option of tcp(7); None if the socket isn't TCP.
fn option(fd: RawFd, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = size_of_val(&value) as libc::socklen_t;
    syscall!(getsockopt(fd, libc::IPPROTO_TCP, name, (&raw mut value).cast(), &raw mut size)).ok()?;
    Some(value)
}

fn set_option(fd: RawFd, name: libc::c_int, value: libc::c_int) -> io::Result<usize> {
    let size = size_of_val(&value) as libc::socklen_t;
    syscall!(setsockopt(fd, libc::IPPROTO_TCP, name, (&raw const value).cast(), size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    /// sendfile moves 64 KiB at a time. If the peer goes away between two of them, SIGPIPE is raised, and the call
    /// still says how much was sent; if little is left then, the next call is a send.
    #[test]
    fn a_signal_left_by_a_short_sendfile_is_taken_back() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let length = file.metadata().unwrap().len();
        let (ours, peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        // SAFETY: Rust's runtime ignores it, and the guard would have nothing to do.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let mut socket = Socket::new(ours.as_raw_fd(), Body::File { fd: file.as_raw_fd(), offset: 0 }, false);
        assert!(socket.send_file(0, length).is_ok_and(|sent| (sent as u64) < length));
        // SAFETY: blocked by the guard, so it only becomes pending.
        unsafe { libc::raise(libc::SIGPIPE) };
        drop(peer);
        assert!(matches!(socket.send(b"tail", false), Err(Fault::Closed(_))));
        drop(socket); // The end of the process, if the signal were still there.
        // SAFETY: as the runtime had it.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    }
}
