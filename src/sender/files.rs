//! The sender's own descriptors of the files that are being sent: one for each open file, however many responses send
//! from it. Ten thousand downloads of one file would otherwise need ten thousand descriptors for it.

use super::Refused;
use crate::io::{check, duplicate, syscall};
use crate::memory::{OutOfMemory, try_grow};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// The files in use.
#[derive(Debug, Default)]
pub(super) struct Files(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Where the file is that a caller's descriptor was last, by its number. A hint: looked at, and not believed.
    hints: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    fd: OwnedFd,
    uses: u32,
}

/// A file in use, until this is dropped.
#[derive(Debug)]
pub(super) struct File {
    files: &'static Files,
    index: u32,
    fd: RawFd,
}

impl Files {
    /// A descriptor of the open file that the caller's `fd` stands for now, whatever that number means later.
    pub(super) fn open(&'static self, fd: RawFd) -> Result<File, Refused> {
        let (index, own) = self.0.lock().unwrap_or_else(PoisonError::into_inner).open(fd)?;
        Ok(File { files: self, index, fd: own })
    }
}

impl Table {
    fn open(&mut self, fd: RawFd) -> Result<(u32, RawFd), Refused> {
        let number = usize::try_from(fd).map_err(|_| Refused::System(libc::EBADF))?;
        let index = self.hints.get(number).copied().unwrap_or_default();
        if let Some(Some(entry)) = self.entries.get_mut(index as usize)
            && let Some(uses) = entry.uses.checked_add(1)
            && is_same_open_file(entry.fd.as_raw_fd(), fd)
        {
            entry.uses = uses;
            return Ok((index, entry.fd.as_raw_fd()));
        }
        let index = self.free_index()?;
        if self.hints.len() <= number {
            try_grow(&mut self.hints, number + 1)?;
            self.hints.resize(number + 1, 0);
        }
        let own = duplicate(fd)?;
        let fd = own.as_raw_fd();
        self.entries[index as usize] = Some(Entry { fd: own, uses: 1 });
        self.free.pop();
        self.hints[number] = index;
        Ok((index, fd))
    }

    /// The last of `free`, still in it.
    fn free_index(&mut self) -> Result<u32, OutOfMemory> {
        if let Some(index) = self.free.last() {
            return Ok(*index);
        }
        let count = self.entries.len() + 1;
        try_grow(&mut self.entries, count)?;
        // Room for all of them, so that giving one back can't fail.
        try_grow(&mut self.free, count)?;
        self.entries.push(None);
        let index = self.entries.len() as u32 - 1; // At most one for each job in flight.
        self.free.push(index);
        Ok(index)
    }

    fn close(&mut self, index: u32) -> Option<OwnedFd> {
        let place = &mut self.entries[index as usize];
        let entry = place.as_mut()?;
        entry.uses -= 1;
        if entry.uses > 0 {
            return None;
        }
        self.free.push(index);
        place.take().map(|entry| entry.fd)
    }
}

impl File {
    pub(super) fn fd(&self) -> RawFd {
        self.fd
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let closed = self.files.0.lock().unwrap_or_else(PoisonError::into_inner).close(self.index);
        // The lock is open again: closing can take a while on some file systems.
        drop(closed);
    }
}

/// Whether two descriptors are one open file, as dup(2) makes them. Two files opened at one path are not the same:
/// a file system may treat each in its own way. If the kernel can't tell, they are not.
fn is_same_open_file(ours: RawFd, theirs: RawFd) -> bool {
    // Linux 6.10; libc does not know it yet.
    const F_DUPFD_QUERY: libc::c_int = 1027;
    const KCMP_FILE: libc::c_int = 0;
    match syscall!(fcntl(ours, F_DUPFD_QUERY, theirs)) {
        Ok(answer) => answer == 1,
        Err(_) => {
            // SAFETY: always successful.
            let pid = unsafe { libc::getpid() };
            // SAFETY: no pointer is passed.
            let order = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, ours, theirs) };
            check(order).is_ok_and(|order| order == 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_descriptor_for_one_open_file() {
        let files: &'static Files = Box::leak(Box::default());
        let open = || std::fs::File::open("/proc/self/exe").unwrap();
        let (first, second) = (open(), open());
        let a = files.open(first.as_raw_fd()).unwrap();
        let b = files.open(first.as_raw_fd()).unwrap();
        let c = files.open(second.as_raw_fd()).unwrap();
        assert_eq!(a.fd(), b.fd());
        assert_ne!(a.fd(), c.fd(), "the same path, but opened twice");
        // The number comes to mean another file.
        let number = first.as_raw_fd();
        // SAFETY: both are open; the first is replaced.
        assert_eq!(unsafe { libc::dup2(second.as_raw_fd(), number) }, number);
        let d = files.open(number).unwrap();
        assert_ne!(a.fd(), d.fd());
        let fd = a.fd();
        drop(a);
        assert!(crate::io::status_flags(fd).is_ok(), "closed while in use");
        drop(b);
        assert!(files.0.lock().unwrap().entries[0].is_none());
        let e = files.open(second.as_raw_fd()).unwrap();
        assert_eq!(e.fd(), c.fd());
        drop((c, d, e));
        let table = files.0.lock().unwrap();
        assert!(table.entries.iter().all(Option::is_none) && table.free.len() == table.entries.len());
    }
}
