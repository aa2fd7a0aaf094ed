//! Answers an HTTP request with a file: conditions, ranges, sendfile (RFC 9110 sections 13 and 14).
//!
//! Each layer knows only those above it:
//!
//! 1. [`http`] decides: values in, values out.
//! 2. `plan` lays the answer out as segments, with a cursor.
//! 3. `transfer` moves it step by step through `io`. Three drivers give an `answer` with it: `respond` waits
//!    until it is done, `resumable` is stepped by the caller, `sender` does any number of them on a thread of its own.
//!    `deadline` says how long that may take.
//!    `stream` sends content that the caller produces meanwhile; `headers` is a list of fields of which some are frozen.
//!    The other way, `receive` takes what a peer sends.
//! 4. [`ffi`] is the C ABI: `include/sendgate.h`.

#![cfg_attr(not(feature = "sender"), allow(dead_code, reason = "what only the sender uses"))]

pub(crate) mod answer;
pub(crate) mod deadline;
pub(crate) mod fastcgi;
pub mod ffi;
pub(crate) mod headers;
pub mod http;
pub(crate) mod io;
pub(crate) mod memory;
pub(crate) mod plan;
pub(crate) mod receive;
pub(crate) mod respond;
pub(crate) mod resumable;
pub(crate) mod sender;
pub(crate) mod stream;
pub(crate) mod transfer;
