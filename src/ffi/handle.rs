//! What is behind an opaque handle: used by one call at a time, and not at all after a panic.

use super::Error;
use super::status::*;
use crate::memory::try_box;
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const IN_CALL: u8 = 1;
/// A call panicked: what is inside may make no sense.
const DEAD: u8 = 2;

/// A handle's inside.
#[derive(Debug)]
pub struct Exclusive<T> {
    state: AtomicU8,
    inner: UnsafeCell<T>,
}

impl<T> Exclusive<T> {
    pub(super) const fn new(inner: T) -> Self {
        Self { state: AtomicU8::new(IDLE), inner: UnsafeCell::new(inner) }
    }

    /// Exclusive use, until what this returns is dropped.
    pub(super) fn enter(&self) -> Result<Entered<'_, T>, Error> {
        match self.state.compare_exchange(IDLE, IN_CALL, Ordering::Acquire, Ordering::Relaxed) {
            // SAFETY: IN_CALL belongs to whoever has set it, until `drop` resets it.
            Ok(_) => Ok(Entered { handle: self, inner: unsafe { &mut *self.inner.get() } }),
            Err(DEAD) => Err(Error::new(SENDGATE_ERR_INTERNAL)),
            Err(_) => Err(Error::new(SENDGATE_ERR_BUSY)),
        }
    }
}

/// Exclusive use of a handle's inside.
pub(super) struct Entered<'a, T> {
    handle: &'a Exclusive<T>,
    inner: &'a mut T,
}

impl<T> Deref for Entered<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.inner
    }
}

impl<T> DerefMut for Entered<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner
    }
}

impl<T> Drop for Entered<'_, T> {
    fn drop(&mut self) {
        let state = if std::thread::panicking() { DEAD } else { IDLE };
        self.handle.state.store(state, Ordering::Release);
    }
}

/// The handle behind a pointer of the caller's.
///
/// # Safety
/// `p` is NULL or a handle that stays valid during `'a`. Several threads may be here: it is only read.
pub(super) unsafe fn handle<'a, H>(p: *const H) -> Result<&'a H, Error> {
    // SAFETY: the same promise.
    unsafe { p.as_ref::<'a>() }.ok_or(Error::INVALID)
}

/// Gives the caller a handle of his own.
///
/// # Safety
/// `out` is NULL or writable.
pub(super) unsafe fn give<H>(out: *mut *mut H, handle: H) -> Result<sendgate_status, Error> {
    if out.is_null() {
        return Err(Error::INVALID);
    }
    // SAFETY: not NULL, and writable by the promise.
    unsafe { out.write(Box::into_raw(try_box(handle)?)) };
    Ok(SENDGATE_OK)
}

/// Takes a handle back.
///
/// # Safety
/// `p` is NULL, or came from `give`, and nobody uses it any more.
pub(super) unsafe fn take_back<H>(p: *mut H) -> Result<sendgate_status, Error> {
    if !p.is_null() {
        // SAFETY: the same promise.
        drop(unsafe { Box::from_raw(p) });
    }
    Ok(SENDGATE_OK)
}
