//! The representation as the kernel has it: metadata, reading, opening.

use super::{Fault, errno, status_flags, syscall};
use crate::http::Modified;
use crate::http::validator::TagInputs;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    /// A file, from this offset on.
    File { fd: RawFd, offset: u64 },
    /// Memory of the caller's.
    Memory(&'a [u8]),
}

impl Body<'_> {
    pub(crate) fn memory(&self) -> Option<&[u8]> {
        match self {
            Self::Memory(bytes) => Some(bytes),
            Self::File { .. } => None,
        }
    }

    /// Where byte `offset` of the representation is in the file.
    pub(crate) fn file_offset(&self, offset: u64) -> Option<libc::off_t> {
        match self {
            Self::File { offset: start, .. } => libc::off_t::try_from(start.checked_add(offset)?).ok(),
            Self::Memory(_) => None,
        }
    }
}

/// pread(2) of the representation.
pub(crate) fn read(body: &Body<'_>, space: &mut [MaybeUninit<u8>], offset: u64) -> Result<usize, Fault> {
    let Body::File { fd, .. } = *body else { return Err(Fault::Unsupported) };
    let offset = body.file_offset(offset).ok_or(Fault::System(libc::EOVERFLOW))?;
    syscall!(pread(fd, space.as_mut_ptr().cast(), space.len(), offset)).map_err(|error| match errno(&error) {
        libc::EINTR => Fault::Interrupted,
        number => Fault::System(number),
    })
}

/// What a file that does not change keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    pub(crate) modified: Modified,
}

pub(crate) fn stamp(body: &Body<'_>) -> Result<Stamp, Fault> {
    let Body::File { fd, .. } = *body else { return Err(Fault::Unsupported) };
    let status = fstat(fd).map_err(|error| Fault::System(errno(&error)))?;
    Ok(Stamp { size: status.st_size.unsigned_abs(), modified: modified(&status) })
}

/// How many bytes there are from `offset` of the representation on.
pub(crate) fn rest(body: &Body<'_>, offset: u64) -> Result<u64, Fault> {
    let start = body.file_offset(offset).and_then(|start| u64::try_from(start).ok()).ok_or(Fault::Unsupported)?;
    Ok(stamp(body)?.size.saturating_sub(start))
}

fn fstat(fd: RawFd) -> io::Result<libc::stat> {
    let mut status = MaybeUninit::uninit();
    syscall!(fstat(fd, status.as_mut_ptr()))?;
    // SAFETY: the call succeeded, so it has written all of it.
    Ok(unsafe { status.assume_init() })
}

fn modified(status: &libc::stat) -> Modified {
    Modified { seconds: status.st_mtime, nanoseconds: u32::try_from(status.st_mtime_nsec).unwrap_or(0) }
}

/// Why a descriptor can't be sent from.
#[derive(Debug)]
pub(crate) enum FileError {
    /// Not a regular file of known length. The errno says more where it can: EISDIR.
    NotRegular(i32),
    /// A system call failed.
    System(io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// fstat(2) of a regular file.
fn regular(fd: RawFd) -> Result<libc::stat, FileError> {
    let status = fstat(fd)?;
    match status.st_mode & libc::S_IFMT {
        libc::S_IFREG => Ok(status),
        libc::S_IFDIR => Err(FileError::NotRegular(libc::EISDIR)),
        libc::S_IFIFO | libc::S_IFSOCK => Err(FileError::NotRegular(libc::ESPIPE)),
        _ => Err(FileError::NotRegular(libc::ENODEV)),
    }
}

/// Whether bytes can be written to this file at an offset: what a write would find too late, when they have been taken
/// from where they were. `end`: the offset behind the last of them.
pub(crate) fn check_writable(fd: RawFd, end: u64) -> Result<(), FileError> {
    regular(fd)?;
    let refuse = |number| Err(FileError::System(io::Error::from_raw_os_error(number)));
    let flags = status_flags(fd)?;
    if flags & libc::O_PATH != 0 || flags & libc::O_ACCMODE == libc::O_RDONLY {
        return refuse(libc::EBADF);
    }
    // pwrite(2), BUGS: with O_APPEND Linux appends, whatever the offset. O_DIRECT takes nothing but whole blocks.
    if flags & (libc::O_APPEND | libc::O_DIRECT) != 0 {
        return refuse(libc::EINVAL);
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // A write beyond this limit raises SIGXFSZ, which ends a process that doesn't expect it.
    if syscall!(getrlimit(libc::RLIMIT_FSIZE, &raw mut limit)).is_ok() && end > limit.rlim_cur {
        return refuse(libc::EFBIG);
    }
    Ok(())
}

/// A file's metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metadata {
    /// In bytes.
    pub(crate) size: u64,
    /// Time of modification.
    pub(crate) modified: Modified,
    inode: u64,
    changed: Modified,
}

impl Metadata {
    /// One fstat(2), and for a file that says it is empty a pread(2) to see whether it is.
    pub(crate) fn of(fd: RawFd) -> Result<Self, FileError> {
        let status = regular(fd)?;
        let size = u64::try_from(status.st_size).map_err(|_| FileError::NotRegular(libc::EOVERFLOW))?;
        if size == 0 {
            // Nearly all of procfs says that it is a regular file of length 0, and has content.
            let mut byte = 0u8;
            if syscall!(pread(fd, (&raw mut byte).cast(), 1, 0))? != 0 {
                return Err(FileError::NotRegular(libc::ENODATA));
            }
        }
        Ok(Self {
            size,
            modified: modified(&status),
            inode: status.st_ino,
            changed: Modified {
                seconds: status.st_ctime,
                nanoseconds: u32::try_from(status.st_ctime_nsec).unwrap_or(0),
            },
        })
    }

    /// What an entity tag of this file is made from.
    pub(crate) fn tag_inputs(&self, inode: bool, changed: bool) -> TagInputs {
        TagInputs {
            modified: self.modified,
            size: self.size,
            inode: inode.then_some(self.inode),
            changed: changed.then_some(self.changed),
        }
    }
}

/// Whether sendfile can be tried on this file: the error is found before a head has promised its
/// content, and not after. (pread finds it by itself.)
pub(crate) fn check_readable(fd: RawFd) -> Result<(), i32> {
    let flags = status_flags(fd).map_err(|error| errno(&error))?;
    if flags & libc::O_PATH != 0 || flags & libc::O_ACCMODE == libc::O_WRONLY {
        return Err(libc::EBADF);
    }
    Ok(())
}

/// Whether a part of a file can be read without waiting for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    Yes,
    No,
    /// The file system can't tell (tmpfs, overlayfs, FUSE).
    Unknown,
}

/// Whether `length` bytes from `offset` on are in the page cache; if not, the kernel is asked to read them, and not
/// waited for. Looks at both ends, because what was read was read from one end to the other.
pub(crate) fn read_ahead(fd: RawFd, offset: u64, length: u64) -> Cached {
    let end = offset.saturating_add(length.saturating_sub(1));
    let (Ok(start), Ok(last)) = (libc::off_t::try_from(offset), libc::off_t::try_from(end)) else {
        return Cached::Unknown;
    };
    // Within the smallest page that there is, one byte is as good as all.
    let cached = match byte_is_cached(fd, start) {
        Cached::Yes if start / 4096 != last / 4096 => byte_is_cached(fd, last),
        cached => cached,
    };
    if cached == Cached::No {
        will_need(fd, start, last - start + 1);
    }
    cached
}

/// Asks the kernel to read `length` bytes from `offset` on, unless the last of them is there already.
pub(crate) fn prefetch(fd: RawFd, offset: u64, length: u64) {
    let end = offset.saturating_add(length.saturating_sub(1));
    if let (Ok(start), Ok(last)) = (libc::off_t::try_from(offset), libc::off_t::try_from(end))
        && byte_is_cached(fd, last) == Cached::No
    {
        will_need(fd, start, last - start + 1);
    }
}

fn will_need(fd: RawFd, offset: libc::off_t, length: libc::off_t) {
    // SAFETY: no pointer is passed. An error means that it will be slower.
    unsafe { libc::posix_fadvise(fd, offset, length, libc::POSIX_FADV_WILLNEED) };
}

/// preadv2(2) of one byte with RWF_NOWAIT. By its number: glibc before 2.26 and musl before 1.2.5 have no function for it.
fn byte_is_cached(fd: RawFd, offset: libc::off_t) -> Cached {
    let mut byte = 0u8;
    let place = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // The kernel takes the offset in two longs, and ignores the high one where the low one has all the bits.
    let (low, high) = (offset as libc::c_long, (offset >> 32) as libc::c_long);
    match syscall!(syscall(libc::SYS_preadv2, fd, &raw const place, 1, low, high, libc::RWF_NOWAIT)) {
        // 0 can mean that the file has become shorter, and on Linux 5.9 also nothing; sending will tell.
        Ok(0) => Cached::Unknown,
        Ok(_) => Cached::Yes,
        Err(error) if errno(&error) == libc::EAGAIN => Cached::No,
        Err(_) => Cached::Unknown,
    }
}

/// Without waiting for the other end of a FIFO, and without becoming a terminal's process.
const OPEN_FLAGS: libc::c_int = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens `path` beneath `dir` for reading. With `outside`, symbolic links may lead out of `dir`; the
/// path itself never may.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &CStr, outside: bool) -> io::Result<OwnedFd> {
    let leads_out =
        path.to_bytes().starts_with(b"/") || path.to_bytes().split(|b| *b == b'/').any(|part| part == b"..");
    if outside {
        if leads_out {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        return own(syscall!(openat(dir.as_raw_fd(), path.as_ptr(), OPEN_FLAGS)));
    }
    match openat2(dir, path) {
        // EPERM: seccomp filters older than the call.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            if leads_out {
                return Err(io::Error::from_raw_os_error(libc::EXDEV));
            }
            open_step_by_step(dir, path)
        }
        result => result,
    }
}

/// Opens a file anywhere.
pub(crate) fn open_for_reading(path: &CStr) -> io::Result<OwnedFd> {
    own(syscall!(open(path.as_ptr(), OPEN_FLAGS)))
}

fn own(opened: io::Result<usize>) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(opened?).map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))?;
    // SAFETY: the call that returned it has just opened it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn openat2(dir: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: a struct of integers, for which zero is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from(OPEN_FLAGS.unsigned_abs());
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    // A rename during the look-up makes it give up with EAGAIN rather than be fooled.
    for _ in 0..8 {
        let opened = syscall!(syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        ));
        match opened {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            opened => return own(opened),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// Where openat2(2) is missing: one component after the other, and no symbolic link at all.
fn open_step_by_step(dir: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    let path = path.to_bytes();
    if path.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    let mut at: Option<OwnedFd> = None;
    let mut parts = path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).peekable();
    while let Some(part) = parts.next() {
        let mut name = [0u8; 256];
        let Some(place) = name.get_mut(..part.len()).filter(|place| place.len() < 256) else {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        };
        place.copy_from_slice(part);
        let is_directory = parts.peek().is_some() || path.ends_with(b"/");
        let flags = OPEN_FLAGS | libc::O_NOFOLLOW | if is_directory { libc::O_DIRECTORY } else { 0 };
        let from = at.as_ref().map_or(dir.as_raw_fd(), AsRawFd::as_raw_fd);
        let opened = own(syscall!(openat(from, name.as_ptr().cast(), flags)));
        at = Some(opened.map_err(|error| {
            // With O_DIRECTORY a link is "not a directory"; what it is says more.
            let link = error.raw_os_error() == Some(libc::ENOTDIR) && is_link(from, &name);
            if link { io::Error::from_raw_os_error(libc::ELOOP) } else { error }
        })?);
    }
    match at {
        Some(file) => Ok(file),
        None => own(syscall!(openat(dir.as_raw_fd(), c".".as_ptr(), OPEN_FLAGS))),
    }
}

fn is_link(dir: RawFd, name: &[u8; 256]) -> bool {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    if syscall!(fstatat(dir, name.as_ptr().cast(), status.as_mut_ptr(), flags)).is_err() {
        return false;
    }
    // SAFETY: the call succeeded, so it has written all of it.
    let status = unsafe { status.assume_init() };
    status.st_mode & libc::S_IFMT == libc::S_IFLNK
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    /// Both ways to open agree, except that the one without openat2 follows no link.
    #[test]
    fn opening_stays_beneath() {
        let place = tempdir();
        let dir = std::fs::File::open(&place).unwrap();
        std::fs::create_dir(place.join("d")).unwrap();
        std::fs::write(place.join("d/f"), "x").unwrap();
        symlink("f", place.join("d/inside")).unwrap();
        symlink("../..", place.join("d/outside")).unwrap();
        symlink("/etc/passwd", place.join("absolute")).unwrap();
        let open = |path: &str, how: u8| {
            let path = CString::new(path).unwrap();
            let opened = match how {
                0 => open_beneath(dir.as_fd(), &path, false),
                1 => open_step_by_step(dir.as_fd(), &path),
                _ => open_beneath(dir.as_fd(), &path, true),
            };
            opened.map(|_| ()).map_err(|error| errno(&error))
        };
        for how in 0..3 {
            assert_eq!(open("d/f", how), Ok(()));
            assert_eq!(open("d//./f", how), Ok(()));
            assert_eq!(open("", how), Err(libc::ENOENT));
            assert_eq!(open(".", how), Ok(()));
            assert_eq!(open("d/f/", how), Err(libc::ENOTDIR));
            assert_eq!(open("d/", how), Ok(()));
            assert_eq!(open("nothing", how), Err(libc::ENOENT));
            assert_eq!(open("d/f/g", how), Err(libc::ENOTDIR));
        }
        for how in [0, 2] {
            assert_eq!(open("../etc/passwd", how), Err(libc::EXDEV));
            assert_eq!(open("/etc/passwd", how), Err(libc::EXDEV));
        }
        assert_eq!(open("d/inside", 0), Ok(()));
        assert_eq!(open("d/inside", 1), Err(libc::ELOOP));
        assert_eq!(open("absolute", 0), Err(libc::EXDEV));
        assert_eq!(open("d/outside", 0), Err(libc::EXDEV));
        assert_eq!(open("d/outside", 1), Err(libc::ELOOP));
        assert_eq!(open("d/outside/x", 1), Err(libc::ELOOP));
        assert_eq!(open("absolute", 2), Ok(()));
        std::fs::remove_dir_all(place).unwrap();
    }

    fn tempdir() -> std::path::PathBuf {
        let mut name = *b"/tmp/sendgate-open-XXXXXX\0";
        // SAFETY: a NUL-terminated template that the call may write to.
        assert!(!unsafe { libc::mkdtemp(name.as_mut_ptr().cast()) }.is_null());
        std::str::from_utf8(&name[..name.len() - 1]).unwrap().into()
    }
}
