//! Structs that grow, and borrowed bytes: the one place that knows that sizes differ.

use super::Error;
use super::status::*;
use super::types::*;
use std::ffi::{CStr, c_char};

/// A struct whose first member is its `size`.
///
/// # Safety
/// `repr(C)`, begins with a `usize`, has no padding, and any bytes (all zero among them) are a valid value.
pub(crate) unsafe trait CStruct: Copy {
    /// The sizes accepted, beside any larger one: up to the end of a member, beginning with those without which
    /// nothing can be done.
    const ENDS: &'static [usize];
}

macro_rules! c_struct {
    ($($name:ident: $($member:ident)*;)*) => {
        // SAFETY: all of these are repr(C), begin with `size`, have no padding (the C tests compile
        // with -Wpadded), and consist of integers, pointers and optional function pointers.
        $(unsafe impl CStruct for $name {
            const ENDS: &'static [usize] = {
                const fn end<T>(start: usize, _: &T) -> usize { start + size_of::<T>() }
                // SAFETY: see above: zeros are a valid value.
                const ZERO: $name = unsafe { std::mem::zeroed() };
                &[$(end(std::mem::offset_of!($name, $member), &ZERO.$member)),*]
            };
        })*
    };
}

// Each from the last of the members without which nothing can be done.
c_struct! {
    sendgate_request: method version flags connection if_match if_none_match if_modified_since
        if_unmodified_since if_range range target;
    sendgate_rep: length memory mtime etag content_type;
    sendgate_exchange: rep headers n_headers now seed head head_flags max_ranges http_status
        head_text;
    sendgate_decision: keep_alive content_length body_length n_ranges framing reserved;
    sendgate_sink: flags idle_timeout_ms total_timeout_ms min_rate fcgi_request_id reserved;
    sendgate_result: connection head_sent body_sent body_length;
    sendgate_source: flags idle_timeout_ms total_timeout_ms min_rate;
    sendgate_received: received stored;
    sendgate_sender_options: turn_bytes on_ready user;
    sendgate_fcgi_options: max_params max_connections max_requests reserved;
    sendgate_fcgi_event: data;
}

/// A struct of zeros, with its size.
pub(crate) fn zeroed<T: CStruct>() -> T {
    // SAFETY: `CStruct` promises that zeros are a valid value.
    unsafe { std::mem::zeroed() }
}

/// Copies a caller's struct: a short one is completed with zeros, a long one must end in zeros.
///
/// # Safety
/// `p` is NULL, or readable for as many bytes as its first member says.
pub(crate) unsafe fn read_struct<T: CStruct>(p: *const T) -> Result<T, Error> {
    // SAFETY: the same promise.
    let size = unsafe { read_size(p) }?;
    if size == size_of::<T>() {
        // SAFETY: readable by the promise, and any bytes are a valid T.
        return Ok(unsafe { p.read_unaligned() });
    }
    let known = size.min(size_of::<T>());
    let mut value = zeroed::<T>();
    // SAFETY: `known` bytes are readable by the promise, and within `value`; any bytes are a valid T.
    unsafe { std::ptr::copy_nonoverlapping(p.cast::<u8>(), (&raw mut value).cast::<u8>(), known) };
    if size > known {
        // SAFETY: within what is readable by the promise.
        let tail = unsafe { p.cast::<u8>().add(known) };
        // SAFETY: readable up to `size` by the promise, which is at most a page.
        let tail = unsafe { std::slice::from_raw_parts(tail, size - known) };
        if tail.iter().any(|byte| *byte != 0) {
            return Err(Error::new(SENDGATE_ERR_SIZE));
        }
    }
    Ok(value)
}

/// The struct's own word for its size.
///
/// # Safety
/// As `read_struct`.
unsafe fn read_size<T: CStruct>(p: *const T) -> Result<usize, Error> {
    if p.is_null() {
        return Err(Error::INVALID);
    }
    // SAFETY: every `CStruct` starts with its size, which the caller promises is readable.
    let size = unsafe { p.cast::<usize>().read_unaligned() };
    // A size within a member would cut it in two. And nobody has a struct of a page: that is uninitialised memory.
    let known = size == size_of::<T>() || T::ENDS.contains(&size) || (size_of::<T>()..=4096).contains(&size);
    if known { Ok(size) } else { Err(Error::new(SENDGATE_ERR_SIZE)) }
}

/// Whether `write_struct` will be able to write to `p`, to be asked before anything is done.
///
/// # Safety
/// As `read_struct`.
pub(crate) unsafe fn check_out<T: CStruct>(p: *const T) -> Result<(), Error> {
    // SAFETY: the same promise.
    unsafe { read_size(p) }.map(|_| ())
}

/// Writes `value` to a caller's struct, as far as it reaches, and leaves its size as it is.
///
/// # Safety
/// As `read_struct`, and writable.
pub(crate) unsafe fn write_struct<T: CStruct>(p: *mut T, value: &T) -> Result<(), Error> {
    // SAFETY: the same promise.
    let size = unsafe { read_size(p) }?;
    let known = size.min(size_of::<T>()) - size_of::<usize>();
    // SAFETY: both are `known` bytes behind the first member.
    let from = unsafe { std::ptr::from_ref(value).cast::<u8>().add(size_of::<usize>()) };
    // SAFETY: as above.
    let to = unsafe { p.cast::<u8>().add(size_of::<usize>()) };
    // SAFETY: `known` bytes are within both, and `value` is ours.
    unsafe { std::ptr::copy_nonoverlapping(from, to, known) };
    Ok(())
}

/// Writes `value` unless `p` is NULL.
///
/// # Safety
/// `p` is NULL or writable.
pub(crate) unsafe fn write_optional<T>(p: *mut T, value: T) {
    if !p.is_null() {
        // SAFETY: the caller promises that it is writable.
        unsafe { p.write(value) };
    }
}

/// An array of the caller's; NULL is the empty one.
///
/// # Safety
/// `p` is NULL, or readable for `n` elements during `'a`.
pub(crate) unsafe fn slice<'a, T>(p: *const T, n: usize) -> Result<&'a [T], Error> {
    if p.is_null() {
        return if n == 0 { Ok(&[]) } else { Err(Error::INVALID) };
    }
    if !p.is_aligned() || n > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Error::INVALID);
    }
    // SAFETY: not NULL, aligned, not too long, and readable by the promise.
    Ok(unsafe { std::slice::from_raw_parts(p, n) })
}

/// A buffer of the caller's; NULL is the empty one, whatever `cap` says.
///
/// # Safety
/// `p` is NULL, or writable for `cap` elements during `'a`, and not used in another way meanwhile.
pub(crate) unsafe fn slice_mut<'a, T>(p: *mut T, cap: usize) -> Result<&'a mut [T], Error> {
    if p.is_null() {
        return Ok(&mut []);
    }
    if !p.is_aligned() || cap > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Error::INVALID);
    }
    // SAFETY: not NULL, aligned, not too long, and writable by the promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(p, cap) })
}

/// Borrowed bytes; NULL is absent.
///
/// # Safety
/// As `slice`.
pub(crate) unsafe fn bytes<'a>(text: sendgate_str) -> Result<Option<&'a [u8]>, Error> {
    if text.ptr.is_null() {
        return if text.len == 0 { Ok(None) } else { Err(Error::INVALID) };
    }
    // SAFETY: the same promise.
    unsafe { slice(text.ptr.cast::<u8>(), text.len) }.map(Some)
}

/// A NUL-terminated string; NULL is absent.
///
/// # Safety
/// `p` is NULL or NUL-terminated, and readable during `'a`.
pub(crate) unsafe fn c_string<'a>(p: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the same promise.
    (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) })
}

/// What `bytes` reads back.
pub(crate) fn to_str(bytes: Option<&[u8]>) -> sendgate_str {
    match bytes {
        Some(bytes) => sendgate_str { ptr: bytes.as_ptr().cast(), len: bytes.len() },
        None => sendgate_str { ptr: std::ptr::null(), len: 0 },
    }
}

pub(crate) fn to_field(name: &[u8], value: &[u8]) -> sendgate_field {
    sendgate_field { name: to_str(Some(name)), value: to_str(Some(value)) }
}
