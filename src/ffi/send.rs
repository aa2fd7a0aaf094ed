//! Sending: blocking and resumable.
use super::status::*;
use super::types::*;

/// Blocking: decide, send head and body, and return when the response is complete or has failed.
/// The socket may be blocking or not; waiting is done in poll(2), never longer than the sink's
/// timeouts. Nothing is written unless the whole exchange is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_respond(
    ex: *const sendgate_exchange, sink: *const sendgate_sink, out: *mut sendgate_result,
) -> sendgate_status { todo!() }

/// A response in progress, for a caller with an event loop. Make one per connection, and for each
/// request start it and step it to the end: only _new allocates, unless a head is longer than 512 bytes.
/// May outlive nothing: the descriptors and memory of the exchange stay in use until the response is done.
/// Used by one thread at a time. Freed by sendgate_transfer_free.
#[derive(Debug)]
pub struct sendgate_transfer { _p: () }

/// Make an idle handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_new(out: *mut *mut sendgate_transfer) -> sendgate_status { todo!() }

/// Decide and get ready to send; writes nothing yet. Ends whatever the handle did before. On error the
/// connection is untouched and the handle idle. The sink's socket must have O_NONBLOCK
/// (SENDGATE_ERR_BLOCKING), which is looked at when the handle first sees that descriptor number.
/// Timeouts are the caller's: the sink's are ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_start(
    transfer: *mut sendgate_transfer, ex: *const sendgate_exchange, sink: *const sendgate_sink,
) -> sendgate_status { todo!() }

/// Send at most budget bytes (0: until it would block). SENDGATE_WANT_WRITE, SENDGATE_WANT_READ: wait, then
/// step again. SENDGATE_YIELD: step again. After SENDGATE_OK or an error every further step
/// returns the same, until the next start. SENDGATE_ERR_INVALID: not started.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_step(
    transfer: *mut sendgate_transfer, budget: u64, out: *mut sendgate_result,
) -> sendgate_status { todo!() }

/// Instead of a step, for a caller that writes the bytes itself (TLS, HTTP/2, another library's
/// buffers): put the next bytes of head and body into buf. *len is 0 only at the end, with SENDGATE_OK;
/// until then SENDGATE_YIELD. Bytes put there count as sent. The transfer was started with sink NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_pull(
    transfer: *mut sendgate_transfer, buf: *mut u8, cap: usize, len: *mut usize, out: *mut sendgate_result,
) -> sendgate_status { todo!() }

/// Free the handle. Closes nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_free(transfer: *mut sendgate_transfer) { todo!() }
