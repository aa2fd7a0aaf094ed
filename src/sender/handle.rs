//! The caller's side of a sender: submit, take, cancel, stop.

use super::files::Files;
use super::job::{Job, send_now};
use super::run::Loop;
use super::{Completion, Options, Refused, Submitted};
use crate::answer::{Answer, Sink};
use crate::deadline::Limits;
use crate::http::HeaderList;
use crate::io::callback::Writer;
use crate::io::{errno, syscall};
use crate::memory::{OutOfMemory, try_grow};
use crate::respond::Cut;
use crate::transfer::{Outcome, Step, Transfer};
use std::collections::VecDeque;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
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
    /// The thread will look at all this before it waits, so it need not be woken.
    pub(super) awake: bool,
    /// The thread is there.
    pub(super) alive: bool,
    /// The thread has ended by a bug.
    pub(super) broken: bool,
    /// Something was cancelled because of `stop_at`.
    pub(super) cut_short: bool,
    pub(super) done: VecDeque<Completion>,
    /// `news` is readable.
    pub(super) signalled: bool,
    /// Places in the thread's table that are free, and how many there are in all.
    pub(super) free_slots: Vec<u32>,
    slots: u32,
    serial: u64,
    in_flight: usize,
}

pub(super) struct Shared<W> {
    state: Mutex<State<W>>,
    waker: ManuallyDrop<mio::Waker>,
    /// An eventfd: readable while there is something in `done`.
    news: OwnedFd,
    files: Arc<Files>,
    /// The thread's epoll descriptor, for a forked child to close; -1 when it is no longer open.
    epoll: AtomicI32,
    /// The thread is about to end: from then on its pthread_t may be another thread's.
    over: AtomicBool,
}

impl<W> Shared<W> {
    /// Nobody panics while it is locked; if somebody did, what is in it would still be whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to `done`, which has room for it. Says whether it is news; if the news could not be told, `signal` has to
    /// be called again.
    pub(super) fn finish(&self, completion: Completion, slot: u32) -> bool {
        let mut state = self.lock();
        // Never more than there are slots, for which room was made.
        state.free_slots.push(slot);
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

    /// The last that the thread says.
    pub(super) fn say_goodbye(&self) {
        self.epoll.store(-1, Ordering::Release);
        self.over.store(true, Ordering::Release);
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
pub(crate) struct Sender<W> {
    shared: ManuallyDrop<Arc<Shared<W>>>,
    /// None: it has ended, and was waited for.
    thread: Mutex<Option<JoinHandle<()>>>,
    pthread: libc::pthread_t,
    max_in_flight: usize,
    /// The process that the thread is in.
    pid: libc::pid_t,
}

impl<W> std::fmt::Debug for Sender<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("pid", &self.pid).finish_non_exhaustive()
    }
}

fn pid() -> libc::pid_t {
    // SAFETY: always successful.
    unsafe { libc::getpid() }
}

impl<W: Writer + Copy + Send + 'static> Sender<W> {
    pub(crate) fn new(options: Options) -> Result<Self, Refused> {
        let news = syscall!(eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
        // SAFETY: the call has just made it, for us alone.
        let news = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(news).map_err(|_| Refused::System(libc::EMFILE))?) };
        let poll = mio::Poll::new()?;
        let epoll = AtomicI32::new(poll.as_raw_fd());
        let waker = ManuallyDrop::new(mio::Waker::new(poll.registry(), Loop::<W>::WAKER)?);
        let state = State {
            incoming: VecDeque::new(),
            cancelled: Vec::new(),
            stop_at: None,
            awake: true,
            alive: true,
            broken: false,
            cut_short: false,
            done: VecDeque::new(),
            signalled: false,
            free_slots: Vec::new(),
            slots: 0,
            serial: 0,
            in_flight: 0,
        };
        let (files, over) = (Arc::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { state: Mutex::new(state), waker, news, files, epoll, over });
        let of_thread = Loop::new(Arc::clone(&shared), poll, options.turn, options.on_ready);
        let thread = spawn(move || of_thread.run())?;
        Ok(Self {
            shared: ManuallyDrop::new(shared),
            pthread: thread.as_pthread_t(),
            thread: Mutex::new(Some(thread)),
            max_in_flight: options.max_in_flight,
            pid: pid(),
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
        shared: &Shared<W>,
        answer: &Answer<'_, H>,
        sink: Sink<W>,
        limits: Limits,
        try_now: bool,
        token: usize,
        transfer: &mut Transfer,
    ) -> Result<Submitted, Refused> {
        let begun = Instant::now();
        answer.begin(transfer).map_err(Cut::from)?;
        if try_now {
            shared.lock().check_alive()?;
            if send_now(transfer, answer.body, &sink)? == Step::Done {
                return Ok(Submitted::Done(transfer.outcome()));
            }
        }
        let outcome = transfer.outcome();
        // Only what stays needs a place. What was begun gets one in any case: it can't be refused any more.
        let max = if transfer.plan().sent() > 0 { usize::MAX } else { self.max_in_flight };
        let place = InFlight::new(shared, max)?;
        let mut job = Job::new(transfer, answer, sink, limits, &shared.files, token, begun)?;
        let mut state = shared.lock();
        // It may have been stopped since.
        state.check_alive()?;
        let room = state.incoming.len() + 1;
        try_grow(&mut state.incoming, room)?;
        let id = state.new_id();
        job.id = id;
        state.incoming.push_back(job);
        if let Err(error) = shared.wake(state) {
            let mut state = shared.lock();
            // Unless the thread has come by in the meantime, nobody will ever look at it.
            if let Some(at) = state.incoming.iter().position(|job| job.id == id) {
                state.incoming.remove(at);
                state.free_slots.push(slot_of(id));
                return Err(error);
            }
        }
        place.keep();
        Ok(Submitted::Pending(id, outcome))
    }
}

impl<W> Sender<W> {
    /// A child made by fork has the memory, and perhaps a lock that nobody will ever open, but no thread.
    fn here(&self) -> Result<&Shared<W>, Refused> {
        if pid() == self.pid { Ok(&self.shared) } else { Err(Refused::Forked) }
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
        if !state.alive {
            return Ok(());
        }
        let room = state.cancelled.len() + 1;
        try_grow(&mut state.cancelled, room)?;
        state.cancelled.push(id);
        shared.wake(state)
    }

    /// Takes no more, waits that long for what is in flight, cancels the rest, and waits for the thread. Whether
    /// nothing had to be cancelled.
    pub(crate) fn stop(&self, time: Duration) -> Result<bool, Refused> {
        let shared = self.here()?;
        // SAFETY: always successful. (std's own way would leave something in each thread that asks.)
        let this = unsafe { libc::pthread_self() };
        if this == self.pthread && !shared.over.load(Ordering::Acquire) {
            return Err(Refused::Busy);
        }
        let mut state = shared.lock();
        let at = Instant::now() + time;
        state.stop_at = Some(state.stop_at.map_or(at, |before| before.min(at)));
        let mut woken = shared.wake(state);
        while woken.is_err() {
            std::thread::sleep(Duration::from_millis(1));
            woken = shared.wake(shared.lock());
        }
        // Whoever comes second waits here for the first.
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
        Ok(!shared.lock().cut_short)
    }
}

impl<W> Shared<W> {
    /// Makes the thread look at `state`.
    fn wake(&self, mut state: MutexGuard<'_, State<W>>) -> Result<(), Refused> {
        let wake = !std::mem::replace(&mut state.awake, true);
        drop(state);
        if !wake {
            return Ok(());
        }
        // Others rely on this wake-up while it is under way, so it is not given up at once.
        let woken = self.waker.wake().or_else(|_| self.waker.wake());
        if woken.is_err() {
            self.lock().awake = false;
        }
        Ok(woken?)
    }
}

impl<W> State<W> {
    fn check_alive(&self) -> Result<(), Refused> {
        if self.broken {
            return Err(Refused::Broken);
        }
        if self.stop_at.is_some() || !self.alive { Err(Refused::Stopped) } else { Ok(()) }
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
        state.check_alive()?;
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

impl<W> Drop for Shared<W> {
    fn drop(&mut self) {
        // SAFETY: not used again.
        unsafe { ManuallyDrop::drop(&mut self.waker) };
    }
}

impl<W> Drop for Sender<W> {
    /// In a forked child there is no thread, and what it had in hand at the time of the fork
    /// may be half-done: only the descriptors that are known are closed.
    fn drop(&mut self) {
        if pid() == self.pid {
            let _ = self.stop(Duration::ZERO);
            // SAFETY: not used again.
            unsafe { ManuallyDrop::drop(&mut self.shared) };
            return;
        }
        for fd in [self.shared.news.as_raw_fd(), self.shared.epoll.load(Ordering::Acquire)] {
            // SAFETY: this process's own copies, and nobody is left to use them.
            unsafe { libc::close(fd) };
        }
        if let Some(thread) = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // Dropping it would detach a thread that isn't there.
            std::mem::forget(thread);
        }
    }
}

/// Starts a thread in which no signal of the host's is handled, but for those that its own faults cause: blocked,
/// they would end the process without the host's handler.
fn spawn(run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Refused> {
    let mut block = MaybeUninit::uninit();
    // SAFETY: `block` is writable.
    unsafe { libc::sigfillset(block.as_mut_ptr()) };
    // SAFETY: sigfillset has initialised it.
    let mut block = unsafe { block.assume_init() };
    for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS] {
        // SAFETY: a valid set and signal number.
        unsafe { libc::sigdelset(&raw mut block, fault) };
    }
    // A thread begins with the mask of the one that makes it.
    let mut before = MaybeUninit::uninit();
    // SAFETY: both sets are valid; the call writes the old mask to the second.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const block, before.as_mut_ptr()) };
    if blocked != 0 {
        return Err(Refused::System(blocked));
    }
    let thread = std::thread::Builder::new().name("sendgate".to_owned()).spawn(run);
    // SAFETY: the call above has written it.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    Ok(thread?)
}

impl From<OutOfMemory> for Cut {
    fn from(_: OutOfMemory) -> Self {
        Self::Refusal(crate::transfer::Refusal::OutOfMemory)
    }
}
