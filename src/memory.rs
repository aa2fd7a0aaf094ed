//! Memory that may not be there: an error of ours, and not the end of the host, which is what `Box` and `push` make of it.

use std::collections::{TryReserveError, VecDeque};

/// There was no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfMemory;

impl From<TryReserveError> for OutOfMemory {
    fn from(_: TryReserveError) -> Self {
        Self
    }
}

/// A box of `value`.
pub(crate) fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    let mut place = Vec::new();
    place.try_reserve_exact(1)?;
    place.push(value);
    let boxed: *mut [T] = Box::into_raw(place.into_boxed_slice());
    // SAFETY: a slice of one `T` has the layout of a `T`, and was allocated by the same allocator.
    Ok(unsafe { Box::from_raw(boxed.cast::<T>()) })
}

/// Something that `try_grow` gives room to.
pub(crate) trait Room {
    fn length(&self) -> usize;
    fn room(&self) -> usize;
    fn more(&mut self, additional: usize) -> Result<(), TryReserveError>;
}

impl<T> Room for Vec<T> {
    fn length(&self) -> usize {
        self.len()
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn more(&mut self, additional: usize) -> Result<(), TryReserveError> {
        self.try_reserve_exact(additional)
    }
}

impl<T> Room for VecDeque<T> {
    fn length(&self) -> usize {
        self.len()
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn more(&mut self, additional: usize) -> Result<(), TryReserveError> {
        self.try_reserve_exact(additional)
    }
}

/// Room for `count` elements in all. Grows by a quarter at a time: doubling wastes up to half of what is long-lived.
pub(crate) fn try_grow(place: &mut impl Room, count: usize) -> Result<(), OutOfMemory> {
    if count > place.room() {
        place.more(count + count / 4 + 8 - place.length())?;
    }
    Ok(())
}
