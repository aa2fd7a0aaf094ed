//! Sending: blocking and resumable.

#![allow(non_camel_case_types)]

use super::input::{Input, Sink};
use super::status::*;
use super::structs::{check_out, slice_mut, write_struct};
use super::types::*;
use super::{Error, guard};
use crate::http::HeaderList;
use crate::io::callback::Callback;
use crate::io::file::{self, Body};
use crate::io::nonblocking::Nonblocking;
use crate::io::socket::Socket;
use crate::io::{Fault, Interest, status_flags};
use crate::respond::{self, Timeouts};
use crate::transfer::{Failure, Step, Transfer};
use std::cell::UnsafeCell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, Ordering};

/// Blocking: decide, send head and body, and return when the response is complete or has failed.
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
        let input = unsafe { Input::read(ex) }?;
        // SAFETY: the header asks for a valid sink.
        let (sink, timeouts) = unsafe { Sink::read(sink) }?;
        Ok(respond_to(&input, sink, timeouts))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, call) }
}

/// Runs a call that ends in a result, and writes it whatever happens.
///
/// # Safety
/// `out` is NULL or a result with its size set.
pub(super) unsafe fn report(
    out: *mut sendgate_result,
    body: impl FnOnce() -> Result<sendgate_result, Error>,
) -> sendgate_status {
    let mut result = sendgate_result::default();
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
pub(super) fn respond_to<H: HeaderList>(input: &Input<'_, H>, sink: Sink, timeouts: Timeouts) -> sendgate_result {
    let mut transfer = Transfer::new();
    let ended = run(input, sink, timeouts, &mut transfer);
    result(&transfer, ended.map(|()| SENDGATE_OK))
}

fn run<H: HeaderList>(
    input: &Input<'_, H>,
    sink: Sink,
    timeouts: Timeouts,
    transfer: &mut Transfer,
) -> Result<(), Error> {
    begin(input, transfer)?;
    let body = input.body;
    match sink {
        Sink::Socket { fd, sigpipe_ignored } => {
            let mut nonblocking = None;
            if let Body::File { fd: file, .. } = body
                && transfer.uses_sendfile()
            {
                file::check_readable(file).map_err(Failure::System)?;
                nonblocking = Some(Nonblocking::new(fd).map_err(|error| Error::io(&error))?);
            }
            let io = || Socket::new(fd, body, sigpipe_ignored);
            let ended = respond::drive(transfer, Some(fd), timeouts, body.memory(), io);
            drop(nonblocking);
            Ok(ended?)
        }
        Sink::Callback { write, fd } => {
            let io = || Callback { write: |bytes: &[u8]| write.call(bytes), body };
            Ok(respond::drive(transfer, fd, timeouts, body.memory(), io)?)
        }
    }
}

/// Decides and lays out; sends nothing.
fn begin<H: HeaderList>(input: &Input<'_, H>, transfer: &mut Transfer) -> Result<(), Error> {
    let mut stamp = None;
    if input.check && matches!(input.body, Body::File { .. }) {
        let now = file::stamp(&input.body).map_err(|fault| match fault {
            Fault::System(errno) => Error { status: SENDGATE_ERR_IO, errno },
            _ => Error::INVALID,
        })?;
        // The file may have changed since its metadata were taken.
        if input.representation.modified.is_some_and(|modified| modified != now.modified) {
            return Err(Failure::Changed.into());
        }
        stamp = Some(now);
    }
    Ok(transfer.start(&input.exchange(), input.form, input.copy, stamp)?)
}

/// What `transfer` has come to. `status`: of the call that has just ended.
fn result(transfer: &Transfer, status: Result<sendgate_status, Error>) -> sendgate_result {
    let plan = transfer.plan();
    let decided = transfer.http_status != 0;
    let (status, sys_errno) = status.map_or_else(|error| (error.status, error.errno), |status| (status, 0));
    let (head_sent, body_sent, body_length) =
        if decided { (plan.head_sent(), plan.body_sent(), plan.body_length()) } else { (0, 0, 0) };
    let connection = match (status, head_sent + body_sent) {
        (SENDGATE_OK, _) if transfer.keep_alive => SENDGATE_CONN_REUSABLE,
        (SENDGATE_OK, _) => SENDGATE_CONN_CLOSE,
        (_, 0) => SENDGATE_CONN_UNTOUCHED,
        _ => SENDGATE_CONN_BROKEN,
    };
    sendgate_result {
        size: 0,
        status,
        sys_errno,
        http_status: u32::from(transfer.http_status),
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
pub struct sendgate_transfer {
    state: AtomicU8,
    inner: UnsafeCell<Inner>,
}

const IDLE: u8 = 0;
const IN_CALL: u8 = 1;
/// A call panicked: what is inside may make no sense.
const DEAD: u8 = 2;

#[derive(Debug)]
struct Inner {
    transfer: Transfer,
    /// None: not started, or to be pulled from.
    sink: Option<Sink>,
    /// What is sent. Memory is the caller's, who promises that it stays until the response is done.
    body: Body<'static>,
    started: bool,
    /// Descriptor numbers that were found to be fit, so that a kept connection and a
    /// cached file are not asked again for each response.
    nonblocking_socket: RawFd,
    readable_file: RawFd,
}

/// Exclusive use of a handle's inside, until it is dropped.
struct Entered<'a> {
    handle: &'a sendgate_transfer,
    inner: &'a mut Inner,
}

impl<'a> Entered<'a> {
    /// # Safety
    /// `p` is NULL or a handle that stays valid during `'a`.
    unsafe fn new(p: *mut sendgate_transfer) -> Result<Self, Error> {
        // SAFETY: the same promise. Several threads may be here: the struct is only read, but for its atomic.
        let handle = unsafe { p.as_ref::<'a>() }.ok_or(Error::INVALID)?;
        match handle.state.compare_exchange(IDLE, IN_CALL, Ordering::Acquire, Ordering::Relaxed) {
            // SAFETY: IN_CALL belongs to whoever has set it, until `drop` resets it.
            Ok(_) => Ok(Self { handle, inner: unsafe { &mut *handle.inner.get() } }),
            Err(DEAD) => Err(Error::new(SENDGATE_ERR_INTERNAL)),
            Err(_) => Err(Error::new(SENDGATE_ERR_BUSY)),
        }
    }
}

impl Entered<'_> {
    /// There is a response in progress, or one that has ended.
    fn started(self) -> Result<Self, Error> {
        if self.inner.started { Ok(self) } else { Err(Error::INVALID) }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let state = if std::thread::panicking() { DEAD } else { IDLE };
        self.handle.state.store(state, Ordering::Release);
    }
}

/// Make an idle handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_new(out: *mut *mut sendgate_transfer) -> sendgate_status {
    guard(|| {
        if out.is_null() {
            return Err(Error::INVALID);
        }
        let inner = Inner {
            transfer: Transfer::new(),
            sink: None,
            body: Body::Memory(&[]),
            started: false,
            nonblocking_socket: -1,
            readable_file: -1,
        };
        let handle = Box::new(sendgate_transfer { state: AtomicU8::new(IDLE), inner: UnsafeCell::new(inner) });
        // SAFETY: not NULL, and the header asks for a writable pointer.
        unsafe { out.write(Box::into_raw(handle)) };
        Ok(SENDGATE_OK)
    })
}

/// Decide and get ready to send; writes nothing yet. Ends whatever the handle did before. On error
/// the connection is untouched and the handle idle. The sink's socket must have O_NONBLOCK
/// (SENDGATE_ERR_BLOCKING), which is looked at when the handle first sees that descriptor number.
/// sink NULL: the bytes are to be pulled. Timeouts are the caller's: the sink's are ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_start(
    transfer: *mut sendgate_transfer,
    ex: *const sendgate_exchange,
    sink: *const sendgate_sink,
) -> sendgate_status {
    guard(|| {
        // SAFETY: the header asks for a handle of sendgate_transfer_new.
        let entered = unsafe { Entered::new(transfer) }?;
        let inner = &mut *entered.inner;
        inner.started = false;
        // SAFETY: the header asks for a valid exchange whose members live during the call, and whose
        // memory lives until the response is done.
        let input = unsafe { Input::<'static>::read(ex) }?;
        inner.sink = if sink.is_null() {
            None
        } else {
            // SAFETY: the header asks for a valid sink.
            Some(unsafe { Sink::read(sink) }?.0)
        };
        inner.body = input.body;
        begin(&input, &mut inner.transfer)?;
        inner.check_descriptors()?;
        inner.started = true;
        Ok(SENDGATE_OK)
    })
}

impl Inner {
    fn check_descriptors(&mut self) -> Result<(), Error> {
        let Some(Sink::Socket { fd: socket, .. }) = self.sink else { return Ok(()) };
        if self.nonblocking_socket != socket {
            let flags = status_flags(socket).map_err(|error| Error::io(&error))?;
            if flags & libc::O_NONBLOCK == 0 {
                return Err(Error::new(SENDGATE_ERR_BLOCKING));
            }
            self.nonblocking_socket = socket;
        }
        if let Body::File { fd: file, .. } = self.body
            && self.transfer.uses_sendfile()
            && self.readable_file != file
        {
            file::check_readable(file).map_err(Failure::System)?;
            self.readable_file = file;
        }
        Ok(())
    }

    fn step(&mut self, budget: u64) -> Result<sendgate_status, Error> {
        let (body, memory) = (self.body, self.body.memory());
        let step = match self.sink {
            Some(Sink::Socket { fd, sigpipe_ignored }) => {
                self.transfer.step(&mut Socket::new(fd, body, sigpipe_ignored), memory, budget)
            }
            Some(Sink::Callback { write, .. }) => {
                let mut io = Callback { write: |bytes: &[u8]| write.call(bytes), body };
                self.transfer.step(&mut io, memory, budget)
            }
            None => return Err(Error::INVALID),
        };
        Ok(match step? {
            Step::Done => SENDGATE_OK,
            Step::Wait(Interest::Write) => SENDGATE_WANT_WRITE,
            Step::Wait(Interest::Read) => SENDGATE_WANT_READ,
            Step::Yield => SENDGATE_YIELD,
        })
    }

    /// Fills `space`, and says how far that came.
    fn pull(&mut self, space: &mut [u8]) -> Result<(sendgate_status, usize), Error> {
        if self.sink.is_some() || space.is_empty() {
            return Err(Error::INVALID);
        }
        let (body, memory) = (self.body, self.body.memory());
        let (mut filled, capacity) = (0, space.len());
        let write = |bytes: &[u8]| {
            // The budget is the capacity, so `bytes` fit.
            space[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
            Ok(bytes.len())
        };
        let step = self.transfer.step(&mut Callback { write, body }, memory, capacity as u64)?;
        let status = if step == Step::Done { SENDGATE_OK } else { SENDGATE_YIELD };
        Ok((status, filled))
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
        let entered = unsafe { Entered::new(transfer) }?.started()?;
        let status = entered.inner.step(budget);
        Ok(result(&entered.inner.transfer, status))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, call) }
}

/// Instead of a step, for a caller that writes the bytes itself (TLS, HTTP/2, another library's
/// buffers): put the next bytes of head and body into buf, cap of them unless the end comes first.
/// SENDGATE_YIELD: more follows. SENDGATE_OK: these were the last; *len may be 0. Bytes put there
/// count as sent. The transfer was started with sink NULL. out may be NULL.
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
        let entered = unsafe { Entered::new(transfer) }?.started()?;
        // SAFETY: the header asks for `cap` writable bytes.
        let space = unsafe { slice_mut(buf, cap) }?;
        if len.is_null() {
            return Err(Error::INVALID);
        }
        let pulled = entered.inner.pull(space);
        // SAFETY: not NULL, and the header asks for a writable size.
        unsafe { len.write(pulled.map_or(0, |(_, filled)| filled)) };
        Ok(result(&entered.inner.transfer, pulled.map(|(status, _)| status)))
    };
    // SAFETY: the header asks for NULL or a result with its size set.
    unsafe { report(out, call) }
}

/// Free the handle; NULL is fine. Closes nothing. Not while another call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendgate_transfer_free(transfer: *mut sendgate_transfer) {
    guard(|| {
        if !transfer.is_null() {
            // SAFETY: the header asks for a handle of sendgate_transfer_new, freed once.
            drop(unsafe { Box::from_raw(transfer) });
        }
        Ok(SENDGATE_OK)
    });
}
