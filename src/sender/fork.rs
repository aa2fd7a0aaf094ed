//! Whether this process is the one that something was made in, or a child made by fork(2).

use crate::io::syscall;
use std::sync::atomic::{AtomicU8, Ordering};

/// Made in a process; knows whether it is still in it.
#[derive(Debug)]
pub(super) struct Origin {
    /// A page that the kernel gives to a child as zeros (madvise(2), MADV_WIPEONFORK); here it holds a 1. NULL: the
    /// kernel can't do that. Process numbers are only second best: in a new namespace a child has the number 1,
    /// as its parent may have.
    page: *mut AtomicU8,
    pid: libc::pid_t,
}

// SAFETY: the page is only read, and by an atomic.
unsafe impl Send for Origin {}
// SAFETY: as above.
unsafe impl Sync for Origin {}

/// The least that can be mapped.
const PAGE: usize = 4096;

impl Origin {
    pub(super) fn new() -> Self {
        Self { page: marked_page().unwrap_or(std::ptr::null_mut()), pid: pid() }
    }

    pub(super) fn is_here(&self) -> bool {
        if self.page.is_null() {
            return pid() == self.pid;
        }
        // SAFETY: mapped until `drop`.
        unsafe { &*self.page }.load(Ordering::Relaxed) == 1
    }
}

fn pid() -> libc::pid_t {
    // SAFETY: always successful.
    unsafe { libc::getpid() }
}

fn marked_page() -> Option<*mut AtomicU8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, wherever the kernel likes.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    if syscall!(madvise(page, PAGE, libc::MADV_WIPEONFORK)).is_err() {
        // SAFETY: the mapping that was just made.
        unsafe { libc::munmap(page, PAGE) };
        return None;
    }
    let page = page.cast::<AtomicU8>();
    // SAFETY: mapped, writable, and nobody else knows of it.
    unsafe { &*page }.store(1, Ordering::Relaxed);
    Some(page)
}

impl Drop for Origin {
    fn drop(&mut self) {
        if !self.page.is_null() {
            // SAFETY: our own mapping, or the child's copy of it.
            unsafe { libc::munmap(self.page.cast(), PAGE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_not_here() {
        for page in [true, false] {
            let mut origin = Origin::new();
            assert!(!origin.page.is_null() && origin.is_here());
            if !page {
                // SAFETY: our own mapping, not used again.
                unsafe { libc::munmap(origin.page.cast(), PAGE) };
                origin.page = std::ptr::null_mut();
            }
            // SAFETY: the child does nothing but look and exit.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: ends the child, with no destructor.
                unsafe { libc::_exit(i32::from(origin.is_here())) };
            }
            let mut status = -1;
            // SAFETY: `status` is writable.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "with a page: {page}");
            assert!(origin.is_here());
        }
    }
}
