//! The caller's side of a sender: submit, take, cancel, stop.

use super::files::Files;
use super::fork::Origin;
use super::job::{Job, send_now};
use super::run::Loop;
use super::{Completion, Options, Refused, Submitted};
use crate::answer::{Answer, Sink};
use crate::deadline::Limits;
use crate::http::HeaderList;
use crate::io::callback::Writer;
use crate::io::{errno, syscall};
use crate::memory::{try_box, try_grow};
use crate::respond::Cut;
use crate::transfer::{Outcome, Step, Transfer};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bits of an id that are its slot; the others count up, so that an old id names nothing.
const SLOT_BITS: u32 = 24;

/// What caller and thread share.
pub(super) struct State<W> {
    /// Submitted and not seen by the thread.
    pub(super) incoming: VecDeque<Box<Job<W>>>,
    /// Ids to cancel.
    pub(super) cancelled: Vec<u64>,
    /// When to cancel what is left.
    pub(super) stop_at: Option<Instant>,
    /// Something was cancelled because of `stop_at`.
    pub(super) cut_short: bool,
    /// The thread will look at all this before it waits, so it need not be woken.
    pub(super) awake: bool,
    pub(super) life: Life,
    pub(super) done: VecDeque<Completion>,
    /// `news` is readable.
    signalled: bool,
    /// Places in the thread's table that are free, and how many there are in all.
    free_slots: Vec<u32>,
    slots: u32,
    serial: u64,
    in_flight: usize,
}

/// What the thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// It looks at nothing any more.
    Ended,
    /// By a bug.
    Broken,
}

/// Lives until the thread has been waited for.
pub(super) struct Shared<W> {
    state: Mutex<State<W>>,
    waker: mio::Waker,
    /// An eventfd: readable while there is something in `done`.
    news: OwnedFd,
    files: Files,
    /// The thread runs no function of the host's any more; from then on its pthread_t may be another thread's.
    pub(super) over: AtomicBool,
}

impl<W> Shared<W> {
    /// Nobody panics while it is locked; if somebody did, what is in it would still be whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to `done`, which has room for it. Says whether it is news; if the news could not be told, `signal` has to
    /// be called again.
    pub(super) fn finish(&self, completion: Completion) -> bool {
        let mut state = self.lock();
        // Never more than there are slots, for which room was made.
        state.free_slots.push(slot_of(completion.id));
        state.done.push_back(completion);
        let is_news = state.done.len() == 1;
        self.signal(&mut state);
        is_news
    }

    /// Makes `news` readable if it has to be. Returns whether it is as it should be.
    pub(super) fn signal(&self, state: &mut State<W>) -> bool {
        if !state.signalled && !state.done.is_empty() {
            let one = 1u64.to_ne_bytes();
            state.signalled = syscall!(write(self.news.as_raw_fd(), one.as_ptr().cast(), one.len())).is_ok();
            return state.signalled;
        }
        true
    }

    /// Undoes `signal`.
    fn unsignal(&self, state: &mut State<W>) {
        let mut count = [0u8; 8];
        if state.signalled {
            // If it fails it stays readable, and the next take finds nothing and tries again.
            let read = syscall!(read(self.news.as_raw_fd(), count.as_mut_ptr().cast(), count.len()));
            state.signalled = read.is_err_and(|error| errno(&error) != libc::EAGAIN);
        }
    }
}

/// The handle. May be shared by threads.
pub(crate) struct Sender<W: 'static> {
    /// Ours. The thread has it too, but has ended before it is freed.
    shared: NonNull<Shared<W>>,
    /// None: it has ended, and was waited for.
    thread: Mutex<Option<libc::pthread_t>>,
    pthread: libc::pthread_t,
    max_in_flight: usize,
    /// The process that the thread is in.
    origin: Origin,
}

// SAFETY: `shared` is behind a lock, or made to be shared; jobs may be sent to another thread.
unsafe impl<W: Send> Send for Sender<W> {}
// SAFETY: as above.
unsafe impl<W: Send> Sync for Sender<W> {}

impl<W> std::fmt::Debug for Sender<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl<W: Writer + Copy + Send + 'static> Sender<W> {
    pub(crate) fn new(options: Options) -> Result<Self, Refused> {
        let news = syscall!(eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
        // SAFETY: the call has just made it, for us alone.
        let news = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(news).map_err(|_| Refused::System(libc::EMFILE))?) };
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), Loop::<W>::WAKER)?;
        let state = State {
            incoming: VecDeque::new(),
            cancelled: Vec::new(),
            stop_at: None,
            cut_short: false,
            awake: true,
            life: Life::Running,
            done: VecDeque::new(),
            signalled: false,
            free_slots: Vec::new(),
            slots: 0,
            serial: 0,
            in_flight: 0,
        };
        let (files, over) = (Files::default(), AtomicBool::new(false));
        let shared = NonNull::from(Box::leak(try_box(Shared { state: Mutex::new(state), waker, news, files, over })?));
        // SAFETY: freed only when the thread, which is all that this is for, has been waited for.
        let of_thread = unsafe { shared.as_ref() };
        let of_thread = Loop::new(of_thread, poll, options.turn, options.on_ready).and_then(|made| Ok(try_box(made)?));
        let pthread = of_thread.and_then(spawn).inspect_err(|_| {
            // SAFETY: made from a box above, and there is no thread.
            drop(unsafe { Box::from_raw(shared.as_ptr()) });
        })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(pthread)),
            pthread,
            max_in_flight: options.max_in_flight,
            origin: Origin::new(),
        })
    }

    /// Decides, and hands over. With `try_now`, sends here first what can be sent without waiting. What has been sent
    /// when it is refused is said too.
    ///
    /// # Safety
    /// The memory of `answer` and what `sink` writes to stay valid until it is reported, if it is pending.
    pub(crate) unsafe fn submit<H: HeaderList>(
        &self,
        answer: &Answer<'_, H>,
        sink: Sink<W>,
        limits: Limits,
        try_now: bool,
        token: usize,
    ) -> Result<Submitted, (Refused, Outcome)> {
        let shared = self.here().map_err(|refused| (refused, Outcome::default()))?;
        let mut transfer = Transfer::new();
        let submitted = self.submit_to(shared, answer, sink, limits, try_now, token, &mut transfer);
        submitted.map_err(|refused| (refused, transfer.outcome()))
    }

    #[expect(clippy::too_many_arguments, reason = "submit's, and what it has made")]
    fn submit_to<H: HeaderList>(
        &self,
        shared: &'static Shared<W>,
        answer: &Answer<'_, H>,
        sink: Sink<W>,
        limits: Limits,
        try_now: bool,
        token: usize,
        transfer: &mut Transfer,
    ) -> Result<Submitted, Refused> {
        let begun = Instant::now();
        answer.begin(transfer).map_err(Cut::from)?;
        let mut place = InFlight::new(shared, self.max_in_flight);
        if try_now && matches!(place, Ok(_) | Err(Refused::Busy)) {
            match send_now(transfer, answer.body, &sink)? {
                Step::Done => return Ok(Submitted::Done(transfer.outcome())),
                // Only what stays needs a place, and one may have become free.
                Step::Wait(_) | Step::Yield if place.is_err() => place = InFlight::new(shared, self.max_in_flight),
                Step::Wait(_) | Step::Yield => {}
            }
        }
        let place = place?;
        let outcome = transfer.outcome();
        let mut job = Job::new(transfer, answer, sink, limits, &shared.files, token, begun)?;
        let mut state = shared.lock();
        // It may have been stopped since.
        state.check_running()?;
        let room = state.incoming.len() + 1;
        try_grow(&mut state.incoming, room)?;
        // With the lock held: whoever comes next relies on it that the thread was woken.
        shared.wake(&mut state)?;
        let id = state.new_id();
        job.id = id;
        state.incoming.push_back(job);
        drop(state);
        place.keep();
        Ok(Submitted::Pending(id, outcome))
    }
}

impl<W> Sender<W> {
    /// A child made by fork has the memory, and perhaps a lock that nobody will ever open, but no thread.
    fn here(&self) -> Result<&'static Shared<W>, Refused> {
        // SAFETY: it lives as long as this handle, and nobody keeps it longer but jobs, which end before.
        if self.origin.is_here() { Ok(unsafe { self.shared.as_ref() }) } else { Err(Refused::Forked) }
    }

    /// Readable while `take` has something.
    pub(crate) fn fd(&self) -> Result<RawFd, Refused> {
        Ok(self.here()?.news.as_raw_fd())
    }

    /// Hands up to `limit` completions to `each`, the oldest first; how many.
    pub(crate) fn take(&self, limit: usize, mut each: impl FnMut(Completion)) -> Result<usize, Refused> {
        let shared = self.here()?;
        let mut state = shared.lock();
        let count = limit.min(state.done.len());
        state.in_flight -= count;
        state.done.drain(..count).for_each(&mut each);
        if state.done.is_empty() {
            shared.unsignal(&mut state);
        }
        Ok(count)
    }

    /// The job with this id, if there is one, ends soon.
    pub(crate) fn cancel(&self, id: u64) -> Result<(), Refused> {
        let shared = self.here()?;
        let mut state = shared.lock();
        if state.life != Life::Running {
            return Ok(());
        }
        let room = state.cancelled.len() + 1;
        try_grow(&mut state.cancelled, room)?;
        shared.wake(&mut state)?;
        state.cancelled.push(id);
        Ok(())
    }

    /// Takes no more, waits that long for what is in flight, cancels the rest, and waits for the thread. Whether
    /// nothing had to be cancelled.
    pub(crate) fn stop(&self, time: Duration) -> Result<bool, Refused> {
        let shared = self.here()?;
        // SAFETY: always successful.
        let this = unsafe { libc::pthread_self() };
        if this == self.pthread && !shared.over.load(Ordering::Acquire) {
            return Err(Refused::Busy);
        }
        let mut state = shared.lock();
        let at = Instant::now() + time;
        state.stop_at = Some(state.stop_at.map_or(at, |before| before.min(at)));
        while state.life == Life::Running && shared.wake(&mut state).is_err() {
            drop(state);
            std::thread::sleep(Duration::from_millis(1));
            state = shared.lock();
        }
        drop(state);
        // Whoever comes second waits here for the first.
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // SAFETY: our own thread, waited for once.
            unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
        }
        Ok(!shared.lock().cut_short)
    }
}

impl<W> Shared<W> {
    /// Makes the thread look at `state`, once it is unlocked.
    fn wake(&self, state: &mut State<W>) -> Result<(), Refused> {
        if !state.awake {
            self.waker.wake()?;
            state.awake = true;
        }
        Ok(())
    }
}

impl<W> State<W> {
    fn check_running(&self) -> Result<(), Refused> {
        match self.life {
            Life::Running if self.stop_at.is_none() => Ok(()),
            Life::Running | Life::Ended => Err(Refused::Stopped),
            Life::Broken => Err(Refused::Broken),
        }
    }

    fn new_id(&mut self) -> u64 {
        // `InFlight::new` has made room in `free_slots` for all of them.
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.serial += 1;
        self.serial << SLOT_BITS | u64::from(slot)
    }
}

pub(super) fn slot_of(id: u64) -> u32 {
    (id & ((1 << SLOT_BITS) - 1)) as u32 // SLOT_BITS of them.
}

/// One of the places that there are for jobs in flight, given back unless it is kept.
struct InFlight<'a, W> {
    shared: &'a Shared<W>,
}

impl<'a, W> InFlight<'a, W> {
    fn new(shared: &'a Shared<W>, max: usize) -> Result<Self, Refused> {
        let mut state = shared.lock();
        state.check_running()?;
        if state.in_flight >= max {
            return Err(Refused::Busy);
        }
        let count = state.in_flight + 1;
        // So that whatever happens to it, there is room to report it, and for its slot.
        try_grow(&mut state.done, count)?;
        try_grow(&mut state.free_slots, count)?;
        state.in_flight = count;
        Ok(Self { shared })
    }

    fn keep(self) {
        std::mem::forget(self);
    }
}

impl<W> Drop for InFlight<'_, W> {
    fn drop(&mut self) {
        self.shared.lock().in_flight -= 1;
    }
}

impl<W> Drop for Sender<W> {
    /// In a forked child there is no thread, and what it had in hand at the time of the fork may be half-done; the
    /// descriptors may have been closed, and their numbers be anybody's. So nothing is touched there.
    fn drop(&mut self) {
        if self.stop(Duration::ZERO).is_ok() {
            // SAFETY: made by `new` from a box, and the thread has ended.
            drop(unsafe { Box::from_raw(self.shared.as_ptr()) });
        }
    }
}

/// Room for TLS libraries in write functions; their stacks are what the host's threads have too.
const STACK: usize = 1 << 20;

/// Starts a thread in which no signal of the host's is handled, but for those that its own faults cause: blocked,
/// they would end the process without the host's handler.
///
/// Not by std::thread, which allocates what it can't do without, and leaves a destructor in the calling thread.
fn spawn<W: Writer + Copy + Send + 'static>(of_thread: Box<Loop<W>>) -> Result<libc::pthread_t, Refused> {
    extern "C" fn run<W: Writer + Copy + Send + 'static>(argument: *mut c_void) -> *mut c_void {
        // SAFETY: below it was made from a box, for this.
        let of_thread = unsafe { Box::from_raw(argument.cast::<Loop<W>>()) };
        // Nothing is left to do for a panic of the last words.
        let _ = catch_unwind(AssertUnwindSafe(|| of_thread.run()));
        std::ptr::null_mut()
    }
    let mut block = MaybeUninit::uninit();
    // SAFETY: `block` is writable.
    unsafe { libc::sigfillset(block.as_mut_ptr()) };
    // SAFETY: sigfillset has initialised it.
    let mut block = unsafe { block.assume_init() };
    for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS] {
        // SAFETY: a valid set and signal number.
        unsafe { libc::sigdelset(&raw mut block, fault) };
    }
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: writable.
    succeed(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) })?;
    // SAFETY: initialised by the call above. If the size is refused, it is the system's own.
    unsafe { libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK) };
    // A thread begins with the mask of the one that makes it.
    let mut before = MaybeUninit::uninit();
    // SAFETY: both sets are valid; the call writes the old mask to the second.
    let blocked = succeed(unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const block, before.as_mut_ptr()) });
    let made = blocked.and_then(|()| {
        let argument = Box::into_raw(of_thread);
        let mut thread = MaybeUninit::uninit();
        // SAFETY: valid attributes, and a function that takes what it is given.
        let made = succeed(unsafe {
            libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), run::<W>, argument.cast())
        });
        // SAFETY: pthread_sigmask has written it.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
        if made.is_err() {
            // SAFETY: nobody else has got it.
            drop(unsafe { Box::from_raw(argument) });
        }
        // SAFETY: the call has written it, if it succeeded.
        made.map(|()| unsafe { thread.assume_init() })
    });
    // SAFETY: initialised above, not used again.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    made.inspect(|thread| {
        // For whoever looks at the process. At most 15 bytes.
        // SAFETY: a thread that has not been waited for.
        unsafe { libc::pthread_setname_np(*thread, c"sendgate".as_ptr()) };
    })
}

/// The pthread_ functions return what others leave in errno.
fn succeed(returned: libc::c_int) -> Result<(), Refused> {
    if returned == 0 { Ok(()) } else { Err(Refused::System(returned)) }
}
