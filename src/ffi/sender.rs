//! Sending in the background.

#![allow(non_camel_case_types)]

use super::handle::give;
use super::input::{Callback, Input, SinkInput, read_sink};
use super::send::{report, result};
use super::status::*;
use super::structs::{read_struct, slice_mut, write_optional, zeroed};
use super::types::*;
use super::{Error, guard};
use crate::sender::{Completion, End, Options, Ready, Refused, Sender, Submitted};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::time::Duration;

/// Sends responses on one thread of its own, any number at once, so that no thread of yours waits
/// for a slow client. Freed by sendgate_sender_free.
///
/// Threads may share it: submit, take and cancel may be called by any of them at the same time, and
/// what one thread has submitted another may take. Make it after fork(2): in a child of the process
/// that made it every call is SENDGATE_ERR_FORKED, and _free does nothing. Such a child has the
/// descriptors of all that was in flight, until it calls exec or ends, and keeps these connections
/// open; shutdown(2) ends them all the same.
///
/// A response sends at most turn_bytes before the others have their turn, and a new one does not
/// queue up behind those that are under way. What is not in the page cache is read ahead while
/// others are served; only if that takes longer than 64 ms, or the file system can't tell, the thread
/// itself reads, one piece of at most 128 KiB before the others have their turn. (Memory that is a
/// mapping of a file is not looked at in this way.)
#[derive(Debug)]
pub struct sendgate_sender {
    inner: Sender<Callback>,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Cut(cut) => cut.into(),
            Refused::OutOfMemory => Self::new(SENDGATE_ERR_NO_MEMORY),
            Refused::System(errno) => Self { status: SENDGATE_ERR_IO, errno },
            Refused::Busy => Self::new(SENDGATE_ERR_BUSY),
            Refused::Stopped => Self::new(SENDGATE_ERR_CANCELLED),
            Refused::Forked => Self::new(SENDGATE_ERR_FORKED),
            Refused::Unsupported => Self::new(SENDGATE_ERR_UNSUPPORTED),
            Refused::Broken => Self::new(SENDGATE_ERR_INTERNAL),
        }
    }
}

impl From<End> for Error {
    fn from(end: End) -> Self {
        match end {
            End::Cut(cut) => cut.into(),
            End::Cancelled => Self::new(SENDGATE_ERR_CANCELLED),
            End::Broken => Self::new(SENDGATE_ERR_INTERNAL),
        }
    }
}

/// # Safety
/// `p` is NULL, or a sender that stays valid during `'a`.
unsafe fn sender<'a>(p: *const sendgate_sender) -> Result<&'a Sender<Callback>, Error> {
    // SAFETY: the same promise. What is inside may be shared.
    unsafe { p.as_ref() }.map(|sender| &sender.inner).ok_or(Error::INVALID)
}

/// Make a sender and start its thread. options may be NULL. SENDGATE_ERR_IO: *sys_errno (may be
/// NULL) tells, EMFILE or EAGAIN for instance. It needs three descriptors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_sender_new(
    options: *const sendgate_sender_options,
    out: *mut *mut sendgate_sender,
    sys_errno: *mut i32,
) -> sendgate_status {
    guard(|| {
        let options = if options.is_null() {
            zeroed::<sendgate_sender_options>()
        } else {
            // SAFETY: the header asks for NULL or options with their size set.
            unsafe { read_struct(options) }?
        };
        if out.is_null() || options.max_in_flight > 1 << 24 {
            return Err(Error::INVALID);
        }
        let made = make(&options).inspect_err(|error| {
            // SAFETY: the header asks for NULL or a writable integer.
            unsafe { write_optional(sys_errno, error.errno) };
        })?;
        // SAFETY: the header asks for a writable pointer.
        unsafe { give(out, made) }
    })
}

fn make(options: &sendgate_sender_options) -> Result<sendgate_sender, Error> {
    let or = |value: u32, default| if value == 0 { default } else { value };
    let options = Options {
        max_in_flight: or(options.max_in_flight, 1024) as usize,
        turn: u64::from(or(options.turn_bytes, 512 << 10).max(16 << 10)),
        // The header asks for a function that may be called on the sender's thread until it is freed.
        on_ready: options.on_ready.map(|function| Ready { function, user: options.user }),
    };
    Ok(sendgate_sender { inner: Sender::new(options)? })
}

const fn is_shared_by_threads<T: Send + Sync>() {}
const _: () = is_shared_by_threads::<sendgate_sender>();

/// Readable while sendgate_sender_take has something: wait for it with poll(2), select(2) or
/// epoll(7). Don't read it and don't close it. Edge-triggered, it tells again only after take has
/// said SENDGATE_EMPTY. -1: no sender, or none of this process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_sender_fd(sender: *const sendgate_sender) -> i32 {
    // SAFETY: the header asks for NULL or a sender.
    let sender = unsafe { self::sender(sender) };
    sender.ok().and_then(|sender| sender.fd().ok()).unwrap_or(-1)
}

/// Decide, and hand the response to the sender's thread. Never waits. out may be NULL.
///
/// SENDGATE_PENDING: sendgate_sender_take will report it, exactly once, with token and *id (which may
/// be NULL); only then does the connection get its next byte from you. The sender has its own
/// descriptors of socket and file (one of a file that several responses send from), so yours may
/// be closed, and their numbers come to mean something else, at once. rep->memory and what write
/// uses stay yours to keep until it is reported; nothing else does. A blocking socket has O_NONBLOCK
/// until then.
///
/// If you close yours before that, the sender's is the last, with what close(2) then does: with
/// unread input it resets the connection, and with SO_LINGER and a time it waits, and all others
/// with it. And closing any descriptor of a file ends all locks of fcntl(2), F_SETLK, that the
/// process has on it: lock what you send with flock(2), or not at all.
///
/// SENDGATE_OK, only with SENDGATE_SINK_TRY_NOW: it is complete, and out tells how. It will not be
/// reported.
///
/// An error: it will not be reported. SENDGATE_ERR_BUSY: max_in_flight is reached; take, or answer
/// 503 (what SENDGATE_SINK_TRY_NOW sends at once takes no place). SENDGATE_ERR_CANCELLED: the sender
/// was stopped. SENDGATE_ERR_IO with EMFILE: no descriptor left to dup to. out->connection tells
/// whether a byte was sent, which only SENDGATE_SINK_TRY_NOW can cause.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_sender_submit(
    sender: *mut sendgate_sender,
    ex: *const sendgate_exchange,
    sink: *const sendgate_sink,
    token: *mut c_void,
    id: *mut u64,
    out: *mut sendgate_result,
) -> sendgate_status {
    let call = || {
        // SAFETY: the header asks for a sender.
        let sender = unsafe { self::sender(sender) }?;
        // SAFETY: the header asks for a valid exchange whose members live during the call.
        let mut input = unsafe { Input::read(ex) };
        // By reference: it is too large to be moved out for nothing.
        let input = input.as_mut().map_err(|error| *error)?;
        // SAFETY: the header asks for a valid sink.
        let SinkInput { sink, limits, try_now, records } = unsafe { read_sink(sink) }?;
        input.records = records;
        // SAFETY: the header asks for memory, and a write function, that live until it is reported.
        let submitted = unsafe { sender.submit(input, sink, limits, try_now, token.expose_provenance()) };
        Ok(match submitted {
            Ok(Submitted::Done(outcome)) => result(&outcome, Ok(SENDGATE_OK)),
            Ok(Submitted::Pending(given, outcome)) => {
                // SAFETY: the header asks for NULL or a writable integer.
                unsafe { write_optional(id, given) };
                result(&outcome, Ok(SENDGATE_PENDING))
            }
            Err((refused, outcome)) => result(&outcome, Err(refused.into())),
        })
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, SENDGATE_CONN_UNTOUCHED, call) }
}

/// What has ended since the last call: up to cap completions, in the order in which they ended.
/// SENDGATE_OK: *n, 1 or more, were written. SENDGATE_EMPTY: none has ended; *n is 0. The descriptors
/// that were dup(2)ed for them are closed, and a socket has its O_NONBLOCK back as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_sender_take(
    sender: *mut sendgate_sender,
    out: *mut sendgate_completion,
    cap: usize,
    n: *mut usize,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a sender.
        let sender = unsafe { self::sender(sender) }?;
        // SAFETY: the header asks for `cap` writable completions.
        let space = unsafe { slice_mut(out.cast::<MaybeUninit<sendgate_completion>>(), cap) }?;
        if n.is_null() || space.is_empty() {
            return Err(Error::INVALID);
        }
        let mut places = space.iter_mut();
        let taken = sender.take(cap, |completion| {
            if let Some(place) = places.next() {
                place.write(to_c(&completion));
            }
        })?;
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { n.write(taken) };
        Ok(if taken == 0 { SENDGATE_EMPTY } else { SENDGATE_OK })
    })
}

fn to_c(completion: &Completion) -> sendgate_completion {
    let ended = completion.ended.map(|()| SENDGATE_OK).map_err(Error::from);
    let result = result(&completion.outcome, ended);
    sendgate_completion {
        token: std::ptr::with_exposed_provenance_mut(completion.token),
        id: completion.id,
        status: result.status,
        sys_errno: result.sys_errno,
        http_status: result.http_status,
        connection: result.connection,
        head_sent: result.head_sent,
        body_sent: result.body_sent,
        body_length: result.body_length,
        elapsed_ns: completion.elapsed_ns,
    }
}

/// End a response early: sendgate_sender_take will report it with SENDGATE_ERR_CANCELLED, unless it
/// has ended in another way before that. Does not wait for it; until it is reported some bytes may
/// still be sent. An id that has ended is harmless.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_sender_cancel(sender: *mut sendgate_sender, id: u64) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a sender.
        unsafe { self::sender(sender) }?.cancel(id)?;
        Ok(SENDGATE_OK)
    })
}

/// Take no more, wait until all that is in flight has ended, but no longer than timeout_ms, then
/// cancel the rest and end the thread. What has ended can still be taken. SENDGATE_ERR_TIMEOUT:
/// something was cancelled. SENDGATE_ERR_BUSY: called on the sender's own thread. A write
/// function that never returns holds it up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_sender_stop(sender: *mut sendgate_sender, timeout_ms: u32) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a sender.
        let complete = unsafe { self::sender(sender) }?.stop(Duration::from_millis(u64::from(timeout_ms)))?;
        if complete { Ok(SENDGATE_OK) } else { Err(Error::new(SENDGATE_ERR_TIMEOUT)) }
    })
}

/// sendgate_sender_stop with a timeout of 0, then free it with what was not taken; NULL is fine. Not
/// while another call uses it, nor on its own thread, where it does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_sender_free(sender: *mut sendgate_sender) {
    guard(|| {
        // SAFETY: the header asks for NULL or a sender.
        let Ok(inner) = (unsafe { self::sender(sender) }) else { return Ok(SENDGATE_OK) };
        match inner.stop(Duration::ZERO) {
            // Freed under its own feet; a leak is the lesser evil.
            Err(Refused::Busy) => {}
            // SAFETY: the header asks for a sender of sendgate_sender_new, freed once.
            _ => drop(unsafe { Box::from_raw(sender) }),
        }
        Ok(SENDGATE_OK)
    });
}
