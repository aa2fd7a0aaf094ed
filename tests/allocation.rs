//! Deciding, writing a head and sending allocate nothing: counted by the allocator.

use sendgate::ffi::decide::{sendgate_decide, sendgate_head_bytes, sendgate_head_fields, sendgate_rep_from_fd};
use sendgate::ffi::receive::{sendgate_receive, sendgate_receive_file};
use sendgate::ffi::send::{
    sendgate_respond, sendgate_transfer, sendgate_transfer_free, sendgate_transfer_new, sendgate_transfer_start,
    sendgate_transfer_step,
};
use sendgate::ffi::sender::{
    sendgate_sender, sendgate_sender_fd, sendgate_sender_free, sendgate_sender_new, sendgate_sender_submit,
    sendgate_sender_take,
};
use sendgate::ffi::status::{SENDGATE_OK, SENDGATE_PENDING, SENDGATE_WANT_WRITE};
use sendgate::ffi::types::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The system's allocator, counting what this thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

fn text(text: &str) -> sendgate_str {
    sendgate_str { ptr: text.as_ptr().cast(), len: text.len() }
}

/// A struct of zeros that knows its size, as a C program makes it.
fn zeroed<T>() -> T {
    // SAFETY: the structs of the ABI consist of integers and pointers, for which zero is valid.
    let mut value: T = unsafe { std::mem::zeroed() };
    // SAFETY: their first member is their size.
    unsafe { (&raw mut value).cast::<usize>().write(size_of::<T>()) };
    value
}

/// Runs `check` with exchanges for every kind of answer from a file of `length` bytes.
fn exchanges(length: usize, mut check: impl FnMut(&str, &sendgate_exchange)) {
    let mut file = tempfile();
    file.write_all(&vec![7; length]).unwrap();
    let mut etag = [0; SENDGATE_ETAG_MAX];
    let mut rep: sendgate_rep = zeroed();
    let fd = file.as_raw_fd();
    // SAFETY: valid pointers, and the sizes that belong to them.
    let status =
        unsafe { sendgate_rep_from_fd(&raw mut rep, fd, 0, etag.as_mut_ptr(), etag.len(), std::ptr::null_mut()) };
    assert_eq!(status, SENDGATE_OK);
    rep.content_type = text("text/plain");
    rep.mtime = 784_111_777;
    let headers = [sendgate_header {
        field: sendgate_field { name: text("Cache-Control"), value: text("max-age=60") },
        rule: SENDGATE_RULE_OVERRIDE,
        reserved: 0,
    }];
    let (none, star) = (sendgate_str { ptr: std::ptr::null(), len: 0 }, text("*"));
    for (method, if_none_match, if_match, range) in [
        ("GET", none, none, none),
        ("HEAD", none, none, none),
        ("GET", star, none, none),
        ("GET", none, text("\"other\""), none),
        ("GET", none, none, text("bytes=1-500")),
        ("GET", none, none, text("bytes=9999999-")),
    ] {
        let mut request: sendgate_request = zeroed();
        request.method = text(method);
        request.if_none_match = if_none_match;
        request.if_match = if_match;
        request.range = range;
        let mut ex: sendgate_exchange = zeroed();
        ex.request = &raw const request;
        ex.rep = &raw const rep;
        ex.headers = headers.as_ptr();
        ex.n_headers = headers.len();
        check(method, &ex);
        ex.head = SENDGATE_HEAD_GIVEN;
        ex.head_text = text("HTTP/1.1 299 Mine\r\n\r\n");
        check("with a head of the caller's", &ex);
    }
}

fn tempfile() -> std::fs::File {
    // SAFETY: a NUL-terminated name.
    let fd = unsafe { libc::memfd_create(c"sendgate".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: it was just made, for us alone.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

/// The allocator does count.
#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn deciding_and_heads() {
    exchanges(100_000, |what, ex| {
        let mut ranges = [sendgate_range::default(); 64];
        let mut decision: sendgate_decision = zeroed();
        let (mut head, mut length) = ([0; 1024], 0);
        let mut fields = [sendgate_field { name: text(""), value: text("") }; 16];
        let (mut scratch, mut n_fields, mut needed) = ([0; 512], 0, 0);
        let count = allocations(|| {
            // SAFETY: valid pointers, and the sizes that belong to them.
            let decided = unsafe { sendgate_decide(ex, ranges.as_mut_ptr(), ranges.len(), &raw mut decision) };
            // SAFETY: as above.
            let written = unsafe { sendgate_head_bytes(ex, head.as_mut_ptr(), head.len(), &raw mut length) };
            let (place, cap) = (fields.as_mut_ptr(), fields.len());
            // SAFETY: as above.
            let listed = unsafe {
                let scratch = scratch.as_mut_ptr();
                sendgate_head_fields(ex, place, cap, scratch, 512, &raw mut n_fields, &raw mut needed)
            };
            assert_eq!((decided, written, listed), (SENDGATE_OK, SENDGATE_OK, SENDGATE_OK));
        });
        assert_eq!(count, 0, "{what}");
    });
}

/// Sends with both drivers on a socket pair that a thread reads from.
#[test]
fn sending() {
    for length in [1000, 16_384, 300_000] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let reader = std::thread::spawn(move || std::io::copy(&mut theirs, &mut std::io::sink()));
        let mut sink: sendgate_sink = zeroed();
        sink.fd = ours.as_raw_fd();
        let mut transfer: *mut sendgate_transfer = std::ptr::null_mut();
        // SAFETY: a writable pointer.
        assert_eq!(unsafe { sendgate_transfer_new(&raw mut transfer) }, SENDGATE_OK);
        exchanges(length, |what, ex| {
            let mut result: sendgate_result = zeroed();
            let count = allocations(|| {
                // SAFETY: valid structs, and a handle of our own.
                let started = unsafe { sendgate_transfer_start(transfer, ex, &raw const sink) };
                assert_eq!(started, SENDGATE_OK);
                // SAFETY: as above.
                while unsafe { sendgate_transfer_step(transfer, 0, &raw mut result) } == SENDGATE_WANT_WRITE {
                    std::thread::yield_now();
                }
                assert_eq!((result.status, result.connection), (SENDGATE_OK, SENDGATE_CONN_REUSABLE));
            });
            assert_eq!(count, 0, "{what} of {length}");
            let count = allocations(|| {
                // SAFETY: valid structs.
                let status = unsafe { sendgate_respond(ex, &raw const sink, &raw mut result) };
                assert_eq!(status, SENDGATE_OK);
            });
            assert_eq!(count, 0, "{what} of {length}, blocking");
        });
        // SAFETY: a handle of our own, freed once.
        unsafe { sendgate_transfer_free(transfer) };
        drop(ours);
        reader.join().unwrap().unwrap();
    }
}

/// What is handed to a sender costs two allocations, the job and its head; what leaves at once costs none.
#[test]
fn handing_over() {
    let mut sender: *mut sendgate_sender = std::ptr::null_mut();
    // SAFETY: a writable pointer; the others may be NULL.
    let made = unsafe { sendgate_sender_new(std::ptr::null(), &raw mut sender, std::ptr::null_mut()) };
    assert_eq!(made, SENDGATE_OK);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut theirs, &mut std::io::sink()));
    let mut sink: sendgate_sink = zeroed();
    sink.fd = ours.as_raw_fd();
    // The first one makes the tables that the others find.
    for (round, try_now) in [false, false, true].into_iter().enumerate() {
        exchanges(1000, |what, ex| {
            sink.flags = if try_now { SENDGATE_SINK_TRY_NOW } else { 0 };
            let mut result: sendgate_result = zeroed();
            let (mut status, mut id, token) = (0, 0, std::ptr::null_mut());
            let count = allocations(|| {
                // SAFETY: valid structs, and a sender of our own.
                status = unsafe {
                    let id = &raw mut id;
                    sendgate_sender_submit(sender, ex, &raw const sink, token, id, &raw mut result)
                };
            });
            if try_now {
                assert_eq!((status, result.connection), (SENDGATE_OK, SENDGATE_CONN_REUSABLE), "{what}");
                assert_eq!(count, 0, "{what}, at once");
                return;
            }
            assert_eq!(status, SENDGATE_PENDING, "{what}");
            assert!(round == 0 || count == 2, "{what}: {count}");
            // SAFETY: a sender of our own.
            let fd = unsafe { sendgate_sender_fd(sender) };
            let mut news = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry.
            assert_eq!(unsafe { libc::poll(&raw mut news, 1, 10_000) }, 1, "{what}");
            let mut completion = std::mem::MaybeUninit::<sendgate_completion>::uninit();
            let (place, mut n) = (completion.as_mut_ptr(), 0);
            // SAFETY: room for one, and a writable size.
            assert_eq!(unsafe { sendgate_sender_take(sender, place, 1, &raw mut n) }, SENDGATE_OK);
            // SAFETY: one was written.
            let completion = unsafe { completion.assume_init() };
            assert_eq!((n, completion.status, completion.id), (1, SENDGATE_OK, id), "{what}");
        });
    }
    // SAFETY: freed once.
    unsafe { sendgate_sender_free(sender) };
    drop(ours);
    reader.join().unwrap().unwrap();
}

/// Into memory, and through a pipe into a file; only a copy to a file needs room for a piece.
#[test]
fn receiving() {
    for (length, of_file) in [(100_000, 1), (600_000, 0)] {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let sender = std::thread::spawn(move || peer.write_all(&vec![7; 2 * length]));
        let mut source: sendgate_source = zeroed();
        source.fd = ours.as_raw_fd();
        let mut buffer = vec![0; length];
        let count = allocations(|| {
            let (source, out) = (&raw const source, std::ptr::null_mut());
            // SAFETY: valid structs, and a buffer of that length.
            assert_eq!(unsafe { sendgate_receive(source, buffer.as_mut_ptr(), length, out) }, SENDGATE_OK);
        });
        assert_eq!(count, 0, "{length} bytes into memory");
        let file = tempfile();
        let count = allocations(|| {
            let (source, out) = (&raw const source, std::ptr::null_mut());
            // SAFETY: valid structs.
            let status = unsafe { sendgate_receive_file(source, file.as_raw_fd(), 0, length as u64, out) };
            assert_eq!(status, SENDGATE_OK);
        });
        assert_eq!(count, of_file, "{length} bytes into a file");
        sender.join().unwrap().unwrap();
    }
}
