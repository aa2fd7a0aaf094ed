//! FastCGI 1.0, the Responder's side of one connection. Pure: bytes in, bytes out.
//!
//! ```text
//! record   version type id(2) content length(2) padding length reserved | content | padding
//! request  BEGIN_REQUEST  PARAMS ... PARAMS(0)  STDIN ... STDIN(0)
//! answer   STDOUT ... STDOUT(0)  END_REQUEST
//! ```
//! Numbers are big-endian. Section numbers are those of the FastCGI Specification of 1996.

#![forbid(unsafe_code)]

pub(crate) mod pairs;
pub(crate) mod parser;
pub(crate) mod records;

/// Of the specification, which has no other (3.3).
const VERSION: u8 = 1;

/// Bytes of a record's header.
pub(crate) const HEADER: usize = 8;

/// The most content that a record can have.
pub(crate) const CONTENT_MAX: u64 = 65535;

pub(crate) const BEGIN_REQUEST: u8 = 1;
pub(crate) const ABORT_REQUEST: u8 = 2;
pub(crate) const END_REQUEST: u8 = 3;
pub(crate) const PARAMS: u8 = 4;
pub(crate) const STDIN: u8 = 5;
pub(crate) const STDOUT: u8 = 6;
pub(crate) const GET_VALUES: u8 = 9;
pub(crate) const GET_VALUES_RESULT: u8 = 10;
pub(crate) const UNKNOWN_TYPE: u8 = 11;

/// Protocol statuses of END_REQUEST (5.5).
pub(crate) const REQUEST_COMPLETE: u8 = 0;
pub(crate) const CANT_MPX_CONN: u8 = 1;
pub(crate) const UNKNOWN_ROLE: u8 = 3;

/// A record's header, without padding.
pub(crate) fn header(kind: u8, id: u16, length: u16) -> [u8; HEADER] {
    let ([i, d], [l, n]) = (id.to_be_bytes(), length.to_be_bytes());
    [VERSION, kind, i, d, l, n, 0, 0]
}

/// An END_REQUEST record (5.5).
pub(crate) fn end_request(id: u16, app_status: u32, protocol_status: u8) -> [u8; 16] {
    let mut record = [0; 16];
    let (head, body) = record.split_at_mut(HEADER);
    head.copy_from_slice(&header(END_REQUEST, id, 8));
    body[..4].copy_from_slice(&app_status.to_be_bytes());
    body[4] = protocol_status;
    record
}
