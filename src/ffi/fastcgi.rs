//! FastCGI: what a front server sends, and the records of the answer.

#![allow(non_camel_case_types)]

use super::decide::fill_request;
use super::handle::{Exclusive, give, handle, take_back};
use super::input::RawFields;
use super::status::*;
use super::structs::{
    bytes, check_out, read_struct, slice, slice_mut, to_field, to_str, write_optional, write_struct, zeroed,
};
use super::types::*;
use super::{Error, guard};
use crate::fastcgi::pairs::{Pairs, lengths};
use crate::fastcgi::parser::{Event, Limits, Parser};
use crate::fastcgi::{self, end_request};
use crate::http::request;
use crate::memory::OutOfMemory;

/// One connection of a front server, as far as it has been read: it takes the bytes that come, cut
/// anywhere, and tells what they are. Does no I/O. One request at a time: a second one that is begun
/// before the first is over is refused with FCGI_CANT_MPX_CONN. Used by one thread at a time. Freed
/// by sendgate_fcgi_free.
#[derive(Debug)]
pub struct sendgate_fcgi(Exclusive<Connection>);

#[derive(Debug)]
struct Connection {
    parser: Parser,
    /// For C: points into the parser.
    params: Vec<sendgate_field>,
}

// SAFETY: the pointers lead to memory of the same struct.
unsafe impl Send for Connection {}

/// Make a handle for a new connection. options NULL: zeros.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_fcgi_new(
    options: *const sendgate_fcgi_options,
    out: *mut *mut sendgate_fcgi,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for NULL or options with their size set.
        let options = if options.is_null() { zeroed() } else { unsafe { read_struct(options) }? };
        if options.reserved != 0 {
            return Err(Error::INVALID);
        }
        let or = |number: u32, default: u32| if number == 0 { default } else { number };
        let limits = Limits {
            params: or(options.max_params, 256 << 10) as usize,
            connections: or(options.max_connections, 1),
            requests: or(options.max_requests, or(options.max_connections, 1)),
        };
        let connection = Connection { parser: Parser::new(limits), params: Vec::new() };
        // SAFETY: the header asks for a writable pointer.
        unsafe { give(out, sendgate_fcgi(Exclusive::new(connection))) }
    })
}

/// Take bytes that have come, up to the next event. *used is how many were taken; the others are for
/// the next call. SENDGATE_OK: out tells what has happened. SENDGATE_WANT_READ: nothing yet, and all
/// bytes were taken. What out points to is valid until the next call, and its data points into data
/// if it is content. SENDGATE_ERR_FASTCGI: what came is no FastCGI, or against its rules; close the
/// connection. Every further call says the same, as after SENDGATE_ERR_NO_MEMORY.
///
/// A front server begins its next request once it has the end of the last answer, which may be before
/// you know that it was sent, and have called sendgate_fcgi_end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_fcgi_feed(
    fcgi: *mut sendgate_fcgi,
    data: *const u8,
    len: usize,
    used: *mut usize,
    out: *mut sendgate_fcgi_event,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_fcgi_new.
        let mut connection = unsafe { handle(fcgi) }?.0.enter()?;
        // SAFETY: the header asks for `len` readable bytes.
        let data = unsafe { slice(data, len) }?;
        if used.is_null() {
            return Err(Error::INVALID);
        }
        // SAFETY: the header asks for an event with its size set.
        unsafe { check_out(out) }?;
        let Connection { parser, params } = &mut *connection;
        let (taken, event) = parser.feed(data)?;
        let mut told = zeroed::<sendgate_fcgi_event>();
        let mut keep = false;
        if let Some(current) = parser.current() {
            told.request_id = u32::from(current.id);
            keep = current.keep;
        }
        let mut content = None;
        told.kind = match event {
            Event::More => SENDGATE_FCGI_NOTHING,
            Event::Abort => SENDGATE_FCGI_ABORT,
            Event::Stdin(piece) => {
                content = Some(piece);
                SENDGATE_FCGI_STDIN
            }
            Event::Reply => {
                let (reply, keeps) = parser.reply();
                (content, keep) = (Some(reply), keeps);
                SENDGATE_FCGI_REPLY
            }
            Event::Params => {
                params.clear();
                if let Err(memory) = params.try_reserve(parser.params().count()) {
                    // The bytes are gone.
                    parser.fail(OutOfMemory::from(memory).into());
                    return Err(OutOfMemory.into());
                }
                // They were found to be well-formed.
                let fields = parser.params().map_while(Result::ok);
                params.extend(fields.map(|(name, value)| to_field(name, value)));
                told.params = params.as_ptr();
                told.n_params = params.len();
                SENDGATE_FCGI_PARAMS
            }
        };
        told.keep_conn = u32::from(keep);
        told.data = to_str(content);
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { used.write(taken) };
        // SAFETY: checked above.
        unsafe { write_struct(out, &told) }?;
        Ok(if event == Event::More { SENDGATE_WANT_READ } else { SENDGATE_OK })
    })
}

/// The answer to the request was sent: from now on another one may begin. What is still to come of
/// its content is skipped. Call it once for each request, also after SENDGATE_FCGI_ABORT, when its
/// END_REQUEST was sent (sendgate_fcgi_end_request, if no answer was begun; close the connection if
/// one was cut short). Without FCGI_KEEP_CONN, close the connection instead, but not while there are
/// bytes to be read: the kernel would take the end of the answer away from the peer. Read on to the
/// end of the content, or shutdown(2) with SHUT_WR and read until the peer closes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_fcgi_end(fcgi: *mut sendgate_fcgi) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_fcgi_new.
        unsafe { handle(fcgi) }?.0.enter()?.parser.end();
        Ok(SENDGATE_OK)
    })
}

/// Free the handle; NULL is fine. Not while another call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_fcgi_free(fcgi: *mut sendgate_fcgi) {
    // SAFETY: the header asks for a handle of sendgate_fcgi_new, freed once.
    guard(|| unsafe { take_back(fcgi) });
}

/// Fill all of req but target from a request's parameters, or a CGI program's environment (RFC 3875
/// 4.1): REQUEST_METHOD, SERVER_PROTOCOL, and HTTP_ and a field's name. req borrows them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_request_from_params(
    req: *mut sendgate_request,
    params: *const sendgate_field,
    n_params: usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a request with its size set.
        let mut out = unsafe { read_struct(req) }?;
        // SAFETY: the header asks for `n_params` valid fields.
        let params = unsafe { RawFields::read(params, n_params) }?;
        let request = request::from_params(params.iter());
        fill_request(&mut out, &request);
        out.method = to_str(Some(request.method).filter(|method| !method.is_empty()));
        out.version = if request.http10 { 10 } else { 11 };
        // SAFETY: as above.
        unsafe { write_struct(req, &out) }?;
        Ok(SENDGATE_OK)
    })
}

/// Write a record's header to out, 8 bytes: record_type is a SENDGATE_FCGI_TYPE_ or another up to 255,
/// request_id and content_len are at most 65535. content_len bytes have to follow, and then *padding
/// bytes (0 to 7; any value), so that the next record begins at a multiple of 8. padding NULL: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_fcgi_header(
    out: *mut u8,
    record_type: u32,
    request_id: u32,
    content_len: u32,
    padding: *mut u32,
) -> sendgate_status {
    guard(|| {
        let kind = u8::try_from(record_type).map_err(|_| Error::INVALID)?;
        let id = u16::try_from(request_id).map_err(|_| Error::INVALID)?;
        let length = u16::try_from(content_len).map_err(|_| Error::INVALID)?;
        let mut header = fastcgi::header(kind, id, length);
        if !padding.is_null() {
            header[6] = (length.wrapping_neg() % 8) as u8; // Below 8.
        }
        // SAFETY: the header asks for NULL or a writable integer.
        unsafe { write_optional(padding, u32::from(header[6])) };
        // SAFETY: the header asks for 8 writable bytes.
        write_all(unsafe { slice_mut(out, header.len()) }?, &header)
    })
}

/// Write an END_REQUEST record to out, 16 bytes. protocol_status is a SENDGATE_FCGI_STATUS_.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_fcgi_end_request(
    out: *mut u8,
    request_id: u32,
    app_status: u32,
    protocol_status: u32,
) -> sendgate_status {
    guard(|| {
        let id = u16::try_from(request_id).map_err(|_| Error::INVALID)?;
        let status = u8::try_from(protocol_status).map_err(|_| Error::INVALID)?;
        let record = end_request(id, app_status, status);
        // SAFETY: the header asks for 16 writable bytes.
        write_all(unsafe { slice_mut(out, record.len()) }?, &record)
    })
}

fn write_all(place: &mut [u8], bytes: &[u8]) -> Result<sendgate_status, Error> {
    if place.len() != bytes.len() {
        return Err(Error::INVALID);
    }
    place.copy_from_slice(bytes);
    Ok(SENDGATE_OK)
}

/// The name-value pairs of a stream of parameters, all of it (FastCGI 1.0, 3.4), as fields that point
/// into data. SENDGATE_ERR_NO_SPACE: *n_params is the cap to call with. SENDGATE_ERR_FASTCGI: a length
/// leads past the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_fcgi_decode_params(
    data: *const u8,
    len: usize,
    params: *mut sendgate_field,
    cap: usize,
    n_params: *mut usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for `len` readable bytes.
        let data = unsafe { slice(data, len) }?;
        // SAFETY: the header asks for `cap` writable fields.
        let places = unsafe { slice_mut(params, cap) }?;
        if n_params.is_null() {
            return Err(Error::INVALID);
        }
        let mut count = 0;
        for pair in Pairs::new(data) {
            let (name, value) = pair.map_err(|_| Error::new(SENDGATE_ERR_FASTCGI))?;
            if let Some(place) = places.get_mut(count) {
                *place = to_field(name, value);
            }
            count += 1;
        }
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { n_params.write(count) };
        Ok(if count <= places.len() { SENDGATE_OK } else { SENDGATE_ERR_NO_SPACE })
    })
}

/// Name-value pairs as one stream of bytes, which sendgate_fcgi_decode_params reads.
/// SENDGATE_ERR_NO_SPACE: *len is the cap to call with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_fcgi_encode_params(
    params: *const sendgate_field,
    n_params: usize,
    buf: *mut u8,
    cap: usize,
    len: *mut usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for `n_params` fields.
        let params = unsafe { slice(params, n_params) }?;
        // SAFETY: the header asks for `cap` writable bytes.
        let space = unsafe { slice_mut(buf, cap) }?;
        if len.is_null() {
            return Err(Error::INVALID);
        }
        let mut needed = 0usize;
        for param in params {
            // SAFETY: the header asks for valid fields.
            let name = unsafe { bytes(param.name) }?.unwrap_or_default();
            // SAFETY: as above.
            let value = unsafe { bytes(param.value) }?.unwrap_or_default();
            let (head, head_length) = lengths(name.len(), value.len()).ok_or(Error::INVALID)?;
            for piece in [&head[..head_length], name, value] {
                let end = needed.checked_add(piece.len()).ok_or(Error::INVALID)?;
                if let Some(place) = space.get_mut(needed..end) {
                    place.copy_from_slice(piece);
                }
                needed = end;
            }
        }
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { len.write(needed) };
        Ok(if needed <= space.len() { SENDGATE_OK } else { SENDGATE_ERR_NO_SPACE })
    })
}
