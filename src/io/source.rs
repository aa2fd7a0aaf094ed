//! Where content comes from, and the file that it goes to.

use super::{Fault, Interest, errno, syscall};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Gives bytes.
pub(crate) trait Reader {
    /// Puts some bytes at the start of `space`, which isn't empty. Ok(0): the peer has ended.
    fn read(&mut self, space: &mut [MaybeUninit<u8>]) -> Result<usize, Fault>;
}

/// A stream socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream(pub(crate) RawFd);

impl Reader for Stream {
    fn read(&mut self, space: &mut [MaybeUninit<u8>]) -> Result<usize, Fault> {
        syscall!(recv(self.0, space.as_mut_ptr().cast(), space.len(), libc::MSG_DONTWAIT))
            .map_err(|error| fault(&error))
    }
}

/// splice takes from anything, and of a file it would move the position; recv then says what is wrong.
pub(crate) fn is_socket(fd: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut size = size_of_val(&kind) as libc::socklen_t;
    syscall!(getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut size)).is_ok()
}

/// How many bytes it has that can be taken now; 0 also if that can't be told.
pub(crate) fn unread(fd: RawFd) -> usize {
    let mut count: libc::c_int = 0;
    let told = syscall!(ioctl(fd, libc::FIONREAD, &raw mut count));
    told.ok().and_then(|_| usize::try_from(count).ok()).unwrap_or(0)
}

fn fault(error: &io::Error) -> Fault {
    match errno(error) {
        // Linux has one number for EAGAIN and EWOULDBLOCK.
        libc::EAGAIN => Fault::Wait(Interest::Read),
        libc::EINTR => Fault::Interrupted,
        number @ (libc::EPIPE | libc::ECONNRESET) => Fault::Closed(number),
        number => Fault::System(number),
    }
}

/// A file, and the offset that the next byte goes to. The file's own position stays where it is.
#[derive(Debug)]
pub(crate) struct Target {
    fd: RawFd,
    at: libc::off_t,
}

impl Target {
    /// `offset` and all that will be written from there on is an offset of libc's, and `check_writable` has agreed.
    pub(crate) fn new(fd: RawFd, offset: libc::off_t) -> Self {
        Self { fd, at: offset }
    }

    fn advance(&mut self, written: usize, stored: &mut u64) {
        self.at += written as libc::off_t;
        *stored += written as u64;
    }

    /// Writes all of `bytes`, and adds what was written to `stored`; the errno if that isn't all.
    pub(crate) fn write(&mut self, mut bytes: &[u8], stored: &mut u64) -> Result<(), i32> {
        while !bytes.is_empty() {
            match syscall!(pwrite(self.fd, bytes.as_ptr().cast(), bytes.len(), self.at)) {
                // Nothing says why, and trying again would be for ever.
                Ok(0) => return Err(libc::EIO),
                Ok(written) => {
                    self.advance(written, stored);
                    bytes = &bytes[written..];
                }
                Err(error) if errno(&error) == libc::EINTR => {}
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(())
    }
}

/// A pipe, through which the kernel moves bytes from a socket to a file (splice(2)): they are copied once, into the
/// page cache, and don't pass through this process.
#[derive(Debug)]
pub(crate) struct Pipe {
    outlet: OwnedFd,
    inlet: OwnedFd,
    /// Bytes in it.
    held: usize,
}

/// A slot for each 4 KiB takes what came in one segment, be that as short as it may. An unprivileged user has 64 MiB of
/// them for all pipes (pipe(7)), which other programs need as well.
const PIPE: libc::c_int = 256 << 10;

/// Bytes that are moved at once. More in one write cost ext4 two to four times as much (Linux 6.18).
pub(crate) const PIECE: usize = 128 << 10;

/// Why a pipe wasn't emptied.
#[derive(Debug)]
pub(crate) enum Stuck {
    /// This file doesn't take bytes from pipes.
    Unsupported,
    System(i32),
}

impl Pipe {
    pub(crate) fn new() -> io::Result<Self> {
        let mut ends = [-1; 2];
        syscall!(pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        // SAFETY: the call has just opened it, for us alone.
        let [outlet, inlet] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        if ends.iter().any(|fd| *fd <= libc::STDERR_FILENO) {
            // A daemon has closed these: whatever is printed would go into the file.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        // Where that is refused, a pipe may have as few as two slots.
        syscall!(fcntl(inlet.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE))?;
        Ok(Self { outlet, inlet, held: 0 })
    }

    /// Takes up to `length` bytes from the socket, which has O_NONBLOCK. Nothing, Ok(0) or Wait, is what an empty socket
    /// answers, and one that has urgent data next; a full pipe too, so only while nothing is held.
    pub(crate) fn fill(&mut self, socket: RawFd, length: u64) -> Result<usize, Fault> {
        let null = std::ptr::null_mut::<libc::off_t>();
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(PIECE);
        let inlet = self.inlet.as_raw_fd();
        let taken = syscall!(splice(socket, null, inlet, null, length, libc::SPLICE_F_NONBLOCK)).map_err(|error| {
            match errno(&error) {
                // This kind of socket can't.
                libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM => Fault::Unsupported,
                _ => fault(&error),
            }
        })?;
        self.held = taken;
        Ok(taken)
    }

    /// Moves what is held to the file, and adds what was moved to `stored`.
    pub(crate) fn empty_into(&mut self, file: &mut Target, stored: &mut u64) -> Result<(), Stuck> {
        while self.held > 0 {
            let null = std::ptr::null_mut::<libc::off_t>();
            let mut at = file.at;
            match syscall!(splice(self.outlet.as_raw_fd(), null, file.fd, &raw mut at, self.held, 0)) {
                Ok(0) => return Err(Stuck::System(libc::EIO)),
                Ok(moved) => {
                    self.held -= moved;
                    file.advance(moved, stored);
                }
                Err(error) => match errno(&error) {
                    libc::EINTR => {}
                    libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM => return Err(Stuck::Unsupported),
                    number => return Err(Stuck::System(number)),
                },
            }
        }
        Ok(())
    }

    /// Takes some of what is held out again. Ok(0): nothing is held.
    pub(crate) fn read(&mut self, space: &mut [MaybeUninit<u8>]) -> Result<usize, i32> {
        let length = space.len().min(self.held);
        if length == 0 {
            return Ok(0);
        }
        loop {
            match syscall!(read(self.outlet.as_raw_fd(), space.as_mut_ptr().cast(), length)) {
                Ok(taken) => {
                    self.held -= taken;
                    return if taken == 0 { Err(libc::EIO) } else { Ok(taken) };
                }
                Err(error) if errno(&error) == libc::EINTR => {}
                Err(error) => return Err(errno(&error)),
            }
        }
    }
}
