//! Lists of response fields that can be frozen.

#![allow(non_camel_case_types)]

use super::handle::{Exclusive, give, handle, take_back};
use super::input::RawHeaders;
use super::status::*;
use super::structs::{slice, to_field, to_str};
use super::types::*;
use super::{Error, guard};
use crate::headers::Headers;
use crate::http::{Header, HeaderList, Rule};
use crate::memory::OutOfMemory;
use std::ffi::c_char;

/// The fields of a response, while several parties have a say in them: a list for
/// sendgate_exchange.headers, in which fields can be frozen. A frozen field is sent as it was when it
/// was frozen; one that was absent then stays absent, and the library's own of that name isn't sent
/// either. What tries to change it gets SENDGATE_ERR_FROZEN, which a caller may ignore: the list is
/// as it was.
///
/// Names are compared without case. Names and values are copied. Used by one thread at a time.
/// Freed by sendgate_headers_free.
#[derive(Debug)]
pub struct sendgate_headers(Exclusive<List>);

#[derive(Debug, Default)]
struct List {
    headers: Headers,
    /// For C: points into `headers`. Made anew whenever it is asked for.
    array: Vec<sendgate_header>,
}

// SAFETY: the pointers lead to memory of the same struct.
unsafe impl Send for List {}

/// Make an empty list.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_new(out: *mut *mut sendgate_headers) -> sendgate_status {
    // SAFETY: the header asks for a writable pointer.
    guard(|| unsafe { give(out, sendgate_headers(Exclusive::new(List::default()))) })
}

/// # Safety
/// `header` is NULL, or valid with all that it points to.
unsafe fn change(
    headers: *mut sendgate_headers,
    header: *const sendgate_header,
    how: impl FnOnce(&mut Headers, &Header<'_>) -> Result<(), crate::headers::Refused>,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_headers_new.
        let mut list = unsafe { handle(headers) }?.0.enter()?;
        if header.is_null() {
            return Err(Error::INVALID);
        }
        // SAFETY: the same promise.
        let read = unsafe { RawHeaders::read(header, 1) }?;
        let mut header = read.get(0);
        if header.rule == Rule::Remove {
            // It isn't sent, so it isn't looked at.
            header.value = b"";
        }
        how(&mut list.headers, &header)?;
        Ok(SENDGATE_OK)
    })
}

/// One line in the place of all lines of its name, where the first of them was. header->rule says
/// who wins against the library's field of that name; with SENDGATE_RULE_FROZEN it is frozen at once.
/// SENDGATE_ERR_FIELD: malformed. SENDGATE_ERR_FROZEN: not changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_set(
    headers: *mut sendgate_headers,
    header: *const sendgate_header,
) -> sendgate_status {
    // SAFETY: the header asks for a valid field.
    unsafe { change(headers, header, Headers::set) }
}

/// As sendgate_headers_set, but the lines that are there stay: Set-Cookie, Vary, Link. Only one with
/// SENDGATE_RULE_REMOVE goes. With SENDGATE_RULE_FROZEN all of them are frozen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_add(
    headers: *mut sendgate_headers,
    header: *const sendgate_header,
) -> sendgate_status {
    // SAFETY: the header asks for a valid field.
    unsafe { change(headers, header, Headers::add) }
}

/// # Safety
/// `name_ptr` is readable for `name_len` bytes.
unsafe fn change_all(
    headers: *mut sendgate_headers,
    name_ptr: *const c_char,
    name_len: usize,
    how: impl FnOnce(&mut Headers, &[u8]) -> Result<(), crate::headers::Refused>,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_headers_new.
        let mut list = unsafe { handle(headers) }?.0.enter()?;
        // SAFETY: the same promise.
        how(&mut list.headers, unsafe { name(name_ptr, name_len) }?)?;
        Ok(SENDGATE_OK)
    })
}

/// # Safety
/// `name` is readable for `len` bytes.
unsafe fn name<'a>(name: *const c_char, len: usize) -> Result<&'a [u8], Error> {
    // SAFETY: the same promise.
    unsafe { slice(name.cast::<u8>(), len) }
}

/// Take all lines of a name away; that there is none is no error. SENDGATE_ERR_FIELD: no name.
/// SENDGATE_ERR_FROZEN: not changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_remove(
    headers: *mut sendgate_headers,
    name_ptr: *const c_char,
    name_len: usize,
) -> sendgate_status {
    // SAFETY: the header asks for `name_len` readable bytes.
    unsafe { change_all(headers, name_ptr, name_len, Headers::remove) }
}

/// From now on the lines of this name, or that there is none, are not changed. Again is no error.
/// There is no way back. SENDGATE_ERR_FIELD: no name; or there is no line of it, and it is the
/// library's to decide whether it is sent: Content-Length, Content-Range, Transfer-Encoding,
/// Connection, Keep-Alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_freeze(
    headers: *mut sendgate_headers,
    name_ptr: *const c_char,
    name_len: usize,
) -> sendgate_status {
    // SAFETY: the header asks for `name_len` readable bytes.
    unsafe { change_all(headers, name_ptr, name_len, Headers::freeze) }
}

/// Set *frozen to 1 if the field, or that it is absent, is frozen, else to 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_is_frozen(
    headers: *mut sendgate_headers,
    name_ptr: *const c_char,
    name_len: usize,
    frozen: *mut u32,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_headers_new.
        let list = unsafe { handle(headers) }?.0.enter()?;
        // SAFETY: the header asks for `name_len` readable bytes.
        let is_frozen = list.headers.is_frozen(unsafe { name(name_ptr, name_len) }?);
        if frozen.is_null() {
            return Err(Error::INVALID);
        }
        // SAFETY: not NULL, and the header asks for a writable integer.
        unsafe { frozen.write(u32::from(is_frozen)) };
        Ok(SENDGATE_OK)
    })
}

/// The value of a field: of its line with this index, counted from 0. It points into the list, and
/// is valid until that is changed or freed. SENDGATE_EMPTY: it has no such line; *value is untouched.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_get(
    headers: *mut sendgate_headers,
    name_ptr: *const c_char,
    name_len: usize,
    index: usize,
    value: *mut sendgate_str,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_headers_new.
        let list = unsafe { handle(headers) }?.0.enter()?;
        // SAFETY: the header asks for `name_len` readable bytes.
        let name = unsafe { name(name_ptr, name_len) }?;
        if value.is_null() {
            return Err(Error::INVALID);
        }
        let mut lines = (0..list.headers.len())
            .map(|index| list.headers.get(index))
            .filter(|header| header.rule != Rule::Remove && header.name.eq_ignore_ascii_case(name));
        let Some(header) = lines.nth(index) else { return Ok(SENDGATE_EMPTY) };
        // SAFETY: not NULL, and the header asks for a writable string.
        unsafe { value.write(to_str(Some(header.value))) };
        Ok(SENDGATE_OK)
    })
}

/// The list as sendgate_exchange.headers and n_headers want it. Valid until it is changed, freed, or
/// asked for again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_list(
    headers: *mut sendgate_headers,
    out: *mut *const sendgate_header,
    n_headers: *mut usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_headers_new.
        let mut list = unsafe { handle(headers) }?.0.enter()?;
        if out.is_null() || n_headers.is_null() {
            return Err(Error::INVALID);
        }
        let List { headers, array } = &mut *list;
        array.clear();
        array.try_reserve(headers.len()).map_err(OutOfMemory::from)?;
        for index in 0..headers.len() {
            let Header { name, value, rule, frozen } = headers.get(index);
            let rule = match rule {
                Rule::Default => SENDGATE_RULE_DEFAULT,
                Rule::Override => SENDGATE_RULE_OVERRIDE,
                Rule::Append => SENDGATE_RULE_APPEND,
                Rule::Remove => SENDGATE_RULE_REMOVE,
            };
            array.push(sendgate_header {
                field: to_field(name, value),
                rule: rule | if frozen { SENDGATE_RULE_FROZEN } else { 0 },
                reserved: 0,
            });
        }
        // SAFETY: not NULL, and the header asks for a writable pointer.
        unsafe { out.write(array.as_ptr()) };
        // SAFETY: as above.
        unsafe { n_headers.write(array.len()) };
        Ok(SENDGATE_OK)
    })
}

/// Free the list; NULL is fine. Not while another call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_headers_free(headers: *mut sendgate_headers) {
    // SAFETY: the header asks for a handle of sendgate_headers_new, freed once.
    guard(|| unsafe { take_back(headers) });
}
