//! Streams: content that the caller produces while it is sent.

#![allow(non_camel_case_types)]

use super::decide::c_decision;
use super::handle::{Exclusive, give, handle, take_back};
use super::input::{Callback, Input, RawFields, SinkInput, read_sink};
use super::send::{report, result, status_of};
use super::status::*;
use super::structs::{check_out, slice, write_optional, write_struct, zeroed};
use super::types::*;
use super::{Error, guard};
use crate::respond::Cut;
use crate::stream::Stream;
use crate::transfer::Step;

/// A response whose content is produced while it is sent. Make one per connection, and for each
/// request start it, write each piece as soon as there is one, and end it. A response that was begun
/// and is not ended is cut short: close its connection, which is how the client notices. With
/// SENDGATE_FRAMING_CLOSE that is how it ends anyway: then only a reset tells (SO_LINGER, 0 seconds). Used by one thread at a time. Freed by sendgate_stream_free.
#[derive(Debug)]
pub struct sendgate_stream(Exclusive<Stream<Callback>>);

/// Make an idle handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_stream_new(out: *mut *mut sendgate_stream) -> sendgate_status {
    // SAFETY: the header asks for a writable pointer.
    guard(|| unsafe { give(out, sendgate_stream(Exclusive::new(Stream::new()))) })
}

/// Decide and get ready to send; writes nothing yet. Ends whatever the handle did before. ex->rep is
/// a SENDGATE_REP_STREAM. Its ETag and Last-Modified, or those among the headers, count in the
/// decision: 304 or 412 have no content, and what is produced nevertheless is discarded, as for HEAD.
/// out (may be NULL) tells. Of a stream that is SENDGATE_REP_SEEKABLE, 206 or 416 may be the answer:
/// sendgate_stream_next then tells which bytes are to be written.
///
/// Of the sink, all counts as in sendgate_respond. Between two calls no time passes for idle_timeout_ms
/// and min_rate; total_timeout_ms is from here to the end. SENDGATE_SINK_TRY_NOW: the calls don't wait, and times are the caller's. The
/// socket may be blocking or not. With SENDGATE_HEAD_NONE and _GIVEN, content of unknown length is
/// framed as the decision says. On error the connection is untouched and the handle idle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_stream_start(
    stream: *mut sendgate_stream,
    ex: *const sendgate_exchange,
    sink: *const sendgate_sink,
    out: *mut sendgate_decision,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_stream_new.
        let mut entered = unsafe { handle(stream) }?.0.enter()?;
        entered.stop();
        // SAFETY: the header asks for a valid exchange whose members live during the call.
        let mut input = unsafe { Input::read(ex) }?;
        // SAFETY: the header asks for a valid sink.
        let SinkInput { sink, limits, try_now, records } = unsafe { read_sink(sink) }?;
        input.records = records;
        if !out.is_null() {
            // SAFETY: the header asks for NULL or a decision with its size set.
            unsafe { check_out(out) }?;
        }
        let mut decided = zeroed::<sendgate_decision>();
        entered.start(&input, sink, limits, try_now, |decision, framing| decided = c_decision(decision, framing))?;
        if !out.is_null() {
            // SAFETY: as above.
            unsafe { write_struct(out, &decided) }?;
        }
        Ok(SENDGATE_OK)
    })
}

/// Which bytes of the representation are to be written next: length of them, from offset on. A length
/// of 0: none any more, or none at all. UINT64_MAX: up to the end, wherever that is. Several ranges
/// come one after the other; a write may go on from one to the next. SENDGATE_ERR_INVALID: not
/// started, or ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_stream_next(
    stream: *mut sendgate_stream,
    out: *mut sendgate_range,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_stream_new.
        let entered = unsafe { handle(stream) }?.0.enter()?;
        if out.is_null() {
            return Err(Error::INVALID);
        }
        let span = entered.next()?;
        // SAFETY: not NULL, and the header asks for a writable range.
        unsafe { out.write(sendgate_range { offset: span.offset, length: span.length }) };
        Ok(SENDGATE_OK)
    })
}

/// What a stream has come to. `ended`: the call that was made, or why it was not.
fn outcome(stream: &Stream<Callback>, ended: Result<Result<Step, Cut>, Error>) -> sendgate_result {
    let ended = ended.and_then(|ended| ended.map(status_of).map_err(Error::from));
    let mut result = result(&stream.outcome(), ended);
    if !stream.is_complete() {
        let touched = stream.outcome().touched;
        result.connection = if touched { SENDGATE_CONN_BROKEN } else { SENDGATE_CONN_UNTOUCHED };
    }
    result
}

/// Send the next bytes of the content; they are on their way to the peer when this returns
/// SENDGATE_OK. The first bytes take the head with them; len 0 sends the head alone. Waits as the
/// sink says. *written (may be NULL) is how many bytes were taken, always.
///
/// SENDGATE_WANT_WRITE, SENDGATE_WANT_READ (SENDGATE_SINK_TRY_NOW): once the socket is ready, call
/// again with the rest of the same bytes, of which there may be none left. They have been announced
/// as one chunk: to end before that is SENDGATE_ERR_TRUNCATED.
///
/// SENDGATE_ERR_EXCESS: more than was announced. Nothing of it was sent, and nothing is any more.
/// After an error every further call returns the same. SENDGATE_ERR_INVALID: not started, or ended.
/// out may be NULL; until the response is complete, its connection is UNTOUCHED or BROKEN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_stream_write(
    stream: *mut sendgate_stream,
    data: *const u8,
    len: usize,
    written: *mut usize,
    out: *mut sendgate_result,
) -> sendgate_status {
    let mut count = 0;
    let call = || {
        // SAFETY: the header asks for a handle of sendgate_stream_new.
        let mut entered = unsafe { handle(stream) }?.0.enter()?;
        // SAFETY: the header asks for `len` readable bytes.
        let ended = unsafe { slice(data, len) }.and_then(|data| {
            let (taken, ended) = entered.write(data)?;
            count = taken;
            Ok(ended)
        });
        Ok(outcome(&entered, ended))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    let status = unsafe { report(out, SENDGATE_CONN_BROKEN, call) };
    // SAFETY: the header asks for NULL or a writable size.
    unsafe { write_optional(written, count) };
    status
}

/// No more content: send what is left of the framing, and the head if it hasn't been sent. trailers
/// are sent behind content in chunks, and dropped otherwise, as any recipient may do (RFC 9110 6.5.1);
/// they are read with the first call. SENDGATE_ERR_FIELD: one that is malformed, or that has to be
/// known before the content, such as Content-Length; the stream is as before.
///
/// SENDGATE_ERR_TRUNCATED: less content than was announced; the connection has to be closed, unless
/// nothing was sent. SENDGATE_WANT_WRITE, SENDGATE_WANT_READ: call again once the socket is ready.
/// After SENDGATE_OK the response is complete, and out (may be NULL) tells whether the connection is
/// reusable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_stream_end(
    stream: *mut sendgate_stream,
    trailers: *const sendgate_field,
    n_trailers: usize,
    out: *mut sendgate_result,
) -> sendgate_status {
    let call = || {
        // SAFETY: the header asks for a handle of sendgate_stream_new.
        let mut entered = unsafe { handle(stream) }?.0.enter()?;
        // SAFETY: the header asks for `n_trailers` valid fields.
        let trailers = unsafe { RawFields::read(trailers, n_trailers) };
        let ended = trailers.and_then(|trailers| Ok(entered.end(trailers.iter())?));
        Ok(outcome(&entered, ended))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, SENDGATE_CONN_BROKEN, call) }
}

/// Free the handle; NULL is fine. Closes nothing. Not while another call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_stream_free(stream: *mut sendgate_stream) {
    // SAFETY: the header asks for a handle of sendgate_stream_new, freed once.
    guard(|| unsafe { take_back(stream) });
}
