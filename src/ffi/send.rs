//! Sending: blocking and resumable.

#![allow(non_camel_case_types)]

use super::handle::{Exclusive, give, handle, take_back};
use super::input::{Callback, Input, SinkInput, read_sink};
use super::status::*;
use super::structs::{check_out, slice_mut, write_struct};
use super::types::*;
use super::{Error, guard};
use crate::answer::{Answer, Sink};
use crate::deadline::Limits;
use crate::http::HeaderList;
use crate::io::Interest;
use crate::respond;
use crate::resumable::Resumable;
use crate::transfer::{Outcome, Step, Transfer};

/// Decide, send head and body, and return when the response is complete or has failed.
/// The socket may be blocking or not; waiting is done in poll(2), never longer than the sink's
/// timeouts. Nothing is written unless the whole exchange is valid. While a body above 16 KiB is
/// sent, a blocking socket has O_NONBLOCK. out may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_respond(
    ex: *const sendgate_exchange,
    sink: *const sendgate_sink,
    out: *mut sendgate_result,
) -> sendgate_status {
    let call = || {
        // SAFETY: the header asks for a valid exchange whose members live during the call.
        let mut input = unsafe { Input::read(ex) }?;
        // SAFETY: the header asks for a valid sink.
        let SinkInput { sink, limits, records, .. } = unsafe { read_sink(sink) }?;
        input.records = records;
        Ok(respond_to(&input, sink, limits))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, SENDGATE_CONN_UNTOUCHED, call) }
}

/// Runs a call that ends in a result, and writes it whatever happens. `connection` is what became
/// of it if the call was refused.
///
/// # Safety
/// `out` is NULL or a result with its size set.
pub(super) unsafe fn report(
    out: *mut sendgate_result,
    connection: u32,
    body: impl FnOnce() -> Result<sendgate_result, Error>,
) -> sendgate_status {
    let mut result = sendgate_result { connection, ..sendgate_result::default() };
    let status = guard(|| {
        if !out.is_null() {
            // SAFETY: the same promise.
            unsafe { check_out(out) }?;
        }
        match body() {
            Ok(ended) => result = ended,
            Err(error) => {
                result.status = error.status;
                result.sys_errno = error.errno;
            }
        }
        Ok(result.status)
    });
    if status == SENDGATE_ERR_INTERNAL {
        // Nothing is known about the connection any more.
        result.connection = SENDGATE_CONN_BROKEN;
    }
    result.status = status;
    if !out.is_null() {
        // Fails only if the size is wrong, which the status says already.
        // SAFETY: the same promise.
        let _ = unsafe { write_struct(out, &result) };
    }
    status
}

/// The blocking call, for any list of headers.
pub(super) fn respond_to<H: HeaderList>(
    answer: &Answer<'_, H>,
    sink: Sink<Callback>,
    limits: Limits,
) -> sendgate_result {
    let mut transfer = Transfer::new();
    let ended = respond::respond(answer, sink, limits, &mut transfer);
    result(&transfer.outcome(), ended.map(|()| SENDGATE_OK).map_err(Error::from))
}

/// What a response has come to. `status`: of the call that has just ended.
pub(super) fn result(outcome: &Outcome, status: Result<sendgate_status, Error>) -> sendgate_result {
    let Outcome { http_status, keep_alive, head_sent, body_sent, body_length, touched } = *outcome;
    let (status, sys_errno) = status.map_or_else(|error| (error.status, error.errno), |status| (status, 0));
    let connection = match status {
        SENDGATE_OK if keep_alive => SENDGATE_CONN_REUSABLE,
        SENDGATE_OK => SENDGATE_CONN_CLOSE,
        // What was submitted is no longer in the caller's hands.
        SENDGATE_PENDING => SENDGATE_CONN_BROKEN,
        _ if touched => SENDGATE_CONN_BROKEN,
        _ => SENDGATE_CONN_UNTOUCHED,
    };
    sendgate_result {
        size: 0,
        status,
        sys_errno,
        http_status: u32::from(http_status),
        connection,
        head_sent,
        body_sent,
        body_length,
    }
}

/// A response in progress, for a caller with an event loop. Make one per connection, and for each
/// request start it and step it to the end: only _new allocates, unless a head is longer than 512
/// bytes or the answer is a multipart. The descriptors and memory of the exchange stay in use until
/// the response is done. Used by one thread at a time. Freed by sendgate_transfer_free.
#[derive(Debug)]
pub struct sendgate_transfer(Exclusive<Resumable<Callback>>);

/// Make an idle handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_new(out: *mut *mut sendgate_transfer) -> sendgate_status {
    // SAFETY: the header asks for a writable pointer.
    guard(|| unsafe { give(out, sendgate_transfer(Exclusive::new(Resumable::new()))) })
}

/// Decide and get ready to send; writes nothing yet. Ends whatever the handle did before. On error
/// the connection is untouched and the handle idle. The sink's socket must have O_NONBLOCK
/// (SENDGATE_ERR_BLOCKING), which is looked at when the handle first sees that descriptor number:
/// so make a new handle for a new connection. sink NULL: the bytes are to be pulled. Timeouts are
/// the caller's: the sink's are ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_start(
    transfer: *mut sendgate_transfer,
    ex: *const sendgate_exchange,
    sink: *const sendgate_sink,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_transfer_new.
        let mut entered = unsafe { handle(transfer) }?.0.enter()?;
        entered.stop();
        // SAFETY: the header asks for a valid exchange whose members live during the call.
        let mut input = unsafe { Input::read(ex) };
        // By reference: it is too large to be moved out for nothing.
        let input = input.as_mut().map_err(|error| *error)?;
        let sink = if sink.is_null() {
            None
        } else {
            // SAFETY: the header asks for NULL or a valid sink.
            let SinkInput { sink, records, .. } = unsafe { read_sink(sink) }?;
            input.records = records;
            Some(sink)
        };
        // SAFETY: the header asks for memory that lives until the response is done.
        unsafe { entered.start(input, sink) }?;
        Ok(SENDGATE_OK)
    })
}

pub(super) fn status_of(step: Step) -> sendgate_status {
    match step {
        Step::Done => SENDGATE_OK,
        Step::Wait(Interest::Write) => SENDGATE_WANT_WRITE,
        Step::Wait(Interest::Read) => SENDGATE_WANT_READ,
        Step::Yield => SENDGATE_YIELD,
    }
}

/// Send at most budget bytes (0: until it would block). SENDGATE_WANT_WRITE, SENDGATE_WANT_READ:
/// wait, then step again. SENDGATE_YIELD: step again. After SENDGATE_OK or an error every further
/// step returns the same, until the next start. SENDGATE_ERR_INVALID: not started, or to be pulled.
/// out may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_step(
    transfer: *mut sendgate_transfer,
    budget: u64,
    out: *mut sendgate_result,
) -> sendgate_status {
    let budget = if budget == 0 { u64::MAX } else { budget };
    let call = || {
        // SAFETY: the header asks for a handle of sendgate_transfer_new.
        let mut entered = unsafe { handle(transfer) }?.0.enter()?;
        let step = entered.step(budget)?;
        Ok(result(&entered.transfer.outcome(), step.map(status_of).map_err(Error::from)))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, SENDGATE_CONN_BROKEN, call) }
}

/// Instead of a step, for a caller that writes the bytes itself (TLS, HTTP/2, another library's
/// buffers): put the next bytes of head and body into buf, cap of them unless the end comes first.
/// SENDGATE_YIELD: more follows. SENDGATE_OK: these were the last; *len may be 0. After a failure
/// *len counts too. Bytes put there count as sent. The transfer was started with sink NULL. out may
/// be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_pull(
    transfer: *mut sendgate_transfer,
    buf: *mut u8,
    cap: usize,
    len: *mut usize,
    out: *mut sendgate_result,
) -> sendgate_status {
    let call = || {
        // SAFETY: the header asks for a handle of sendgate_transfer_new.
        let mut entered = unsafe { handle(transfer) }?.0.enter()?;
        // SAFETY: the header asks for `cap` writable bytes.
        let space = unsafe { slice_mut(buf, cap) }?;
        if len.is_null() {
            return Err(Error::INVALID);
        }
        let (step, filled) = entered.pull(space)?;
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { len.write(filled) };
        let status = step.map(status_of).map_err(Error::from);
        Ok(result(&entered.transfer.outcome(), status))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, SENDGATE_CONN_BROKEN, call) }
}

/// Free the handle; NULL is fine. Closes nothing. Not while another call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_free(transfer: *mut sendgate_transfer) {
    // SAFETY: the header asks for a handle of sendgate_transfer_new, freed once.
    guard(|| unsafe { take_back(transfer) });
}
