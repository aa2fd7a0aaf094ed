//! No SIGPIPE from sendfile, which has no flag against it as send has MSG_NOSIGNAL.
//!
//! The signal goes to the thread that makes the call. So: block it in this thread, and if the call
//! raised it, take it back before unblocking. Dispositions are never changed, and what the host
//! had pending or blocked stays so. (Linux 6.18: EPIPE raises it, ECONNRESET does not.)

use std::mem::MaybeUninit;

/// SIGPIPE can't reach the host while this lives.
#[derive(Debug)]
pub(crate) struct Guard {
    /// What to go back to; None if the host ignores the signal and nothing had to be done.
    restore: Option<Restore>,
}

struct Restore {
    mask: libc::sigset_t,
    /// The host's own SIGPIPE was pending before: it must stay.
    was_pending: bool,
}

impl std::fmt::Debug for Restore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restore").field("was_pending", &self.was_pending).finish_non_exhaustive()
    }
}

fn sigpipe() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is writable, and SIGPIPE is a signal number.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised it.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: as above.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGPIPE) };
    set
}

/// Whether SIGPIPE's disposition is "ignore", in which case none can be raised.
fn is_ignored() -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with a NULL new action the call only writes the old one.
    let queried = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr()) };
    if queried != 0 {
        return false;
    }
    // SAFETY: the call succeeded, so it has written all of it.
    let action = unsafe { action.assume_init() };
    action.sa_sigaction == libc::SIG_IGN
}

impl Guard {
    /// One system call where the host ignores SIGPIPE, else two or three, and one at the end.
    pub(crate) fn new() -> Self {
        if is_ignored() {
            return Self { restore: None };
        }
        let block = sigpipe();
        let mut mask = MaybeUninit::uninit();
        // SAFETY: both sets are valid; the call writes the old mask to the second.
        if unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const block, mask.as_mut_ptr()) } != 0 {
            return Self { restore: None };
        }
        // SAFETY: the call succeeded, so it has written all of it.
        let mask = unsafe { mask.assume_init() };
        // SAFETY: `mask` is a valid set.
        let was_blocked = unsafe { libc::sigismember(&raw const mask, libc::SIGPIPE) } == 1;
        // Only a signal that was blocked before can have been pending before.
        let was_pending = was_blocked && is_pending();
        Self { restore: Some(Restore { mask, was_pending }) }
    }

    /// A call may have raised the signal, so that one of ours is pending for this thread: take it back. It is
    /// `certain` if a call has told that the peer is gone; without that, a signal of the host's own is left alone.
    pub(crate) fn consume(&self, certain: bool) {
        let Some(restore) = self.restore.as_ref().filter(|restore| certain || !restore.was_pending) else { return };
        // Signals don't queue, and a thread's own is taken before one that is for the whole process.
        take_pending();
        if restore.was_pending && !is_pending() {
            // What was pending before was this thread's too, and ours had become one with it.
            // SAFETY: raise is for the calling thread. The signal is blocked, so it only becomes pending again.
            unsafe { libc::raise(libc::SIGPIPE) };
        }
    }
}

fn take_pending() {
    let set = sigpipe();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        // SAFETY: a valid set, no place for details, a valid time of zero.
        let taken = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) };
        if taken != -1 || super::errno(&std::io::Error::last_os_error()) != libc::EINTR {
            return;
        }
    }
}

fn is_pending() -> bool {
    let mut pending = MaybeUninit::uninit();
    // SAFETY: the call writes the set.
    if unsafe { libc::sigpending(pending.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call succeeded, so it has written all of it.
    let pending = unsafe { pending.assume_init() };
    // SAFETY: `pending` is a valid set.
    unsafe { libc::sigismember(&raw const pending, libc::SIGPIPE) == 1 }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(restore) = &self.restore {
            // SAFETY: the mask that this thread had before.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const restore.mask, std::ptr::null_mut()) };
        }
    }
}
