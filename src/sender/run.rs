//! The sender's thread.

use super::handle::{Life, Shared, slot_of};
use super::job::{Job, Place};
use super::timers::Timers;
use super::{Completion, End, Ready, Refused};
use crate::io::callback::Writer;
use crate::io::{Interest, errno};
use crate::memory::{OutOfMemory, try_grow};
use crate::respond::Cut;
use crate::transfer::{Failure, Step};
use mio::unix::SourceFd;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes that all jobs together send between two looks at what is new.
const ROUND: u64 = 1 << 20;

/// Failures of epoll_wait in a row after which there is no point in going on.
const GIVE_UP: u32 = 100;

/// Events that one epoll_wait tells of.
const EVENTS: usize = 256;

/// How long the thread works before it offers its processor to others. A scheduler may let it have its whole slice,
/// 4 ms with a tick of 250 Hz, before an event loop that has become ready on the same processor. After each
/// turn would be too often: whoever computes all the time takes a slice for each offer.
const OFFER: Duration = Duration::from_micros(500);

/// When to try again what should not have failed.
const AGAIN: Duration = Duration::from_millis(10);

pub(super) struct Loop<W: 'static> {
    shared: &'static Shared<W>,
    poll: mio::Poll,
    events: mio::Events,
    turn: u64,
    on_ready: Option<Ready>,
    /// Emptied, and exchanged for those in `State`: none is allocated anew.
    incoming: VecDeque<Box<Job<W>>>,
    cancelled: Vec<u64>,
    /// By slot.
    jobs: Vec<Option<Box<Job<W>>>>,
    n_jobs: usize,
    /// Slots of jobs by their place. A job is in the one queue that its place says, and leaves it only at its turn.
    fresh: VecDeque<u32>,
    ready: VecDeque<u32>,
    disk: VecDeque<u32>,
    timers: Timers,
    stop_at: Option<Instant>,
    /// `done` has something that on_ready was not told of.
    announce: bool,
    /// epoll_wait failed that often in a row.
    failures: u32,
    /// When the processor was last offered to others.
    offered: Instant,
}

/// What the callers have asked for since the last time.
enum Asked {
    GoOn,
    End,
}

impl<W: Writer + Copy> Loop<W> {
    pub(super) const WAKER: mio::Token = mio::Token(usize::MAX);

    pub(super) fn new(
        shared: &'static Shared<W>,
        poll: mio::Poll,
        turn: u64,
        on_ready: Option<Ready>,
    ) -> Result<Self, Refused> {
        // mio's own can't fail, so it is made sure before that there is memory for it, and some more.
        Vec::<u8>::new().try_reserve_exact(64 * EVENTS).map_err(OutOfMemory::from)?;
        Ok(Self {
            shared,
            poll,
            events: mio::Events::with_capacity(EVENTS),
            turn,
            on_ready,
            incoming: VecDeque::new(),
            cancelled: Vec::new(),
            jobs: Vec::new(),
            n_jobs: 0,
            fresh: VecDeque::new(),
            ready: VecDeque::new(),
            disk: VecDeque::new(),
            timers: Timers::default(),
            stop_at: None,
            announce: false,
            failures: 0,
            offered: Instant::now(),
        })
    }

    pub(super) fn run(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        // Whatever happened: all that was submitted is reported.
        let end = if ended.is_ok() { End::Cancelled } else { End::Broken };
        {
            let mut state = self.shared.lock();
            state.life = if ended.is_ok() { Life::Ended } else { Life::Broken };
        }
        for slot in 0..self.jobs.len() {
            if let Some(job) = self.jobs[slot].take() {
                self.report(job, Err(end));
            }
        }
        while let Some(job) = self.incoming.pop_front().or_else(|| self.shared.lock().incoming.pop_front()) {
            self.report(job, Err(end));
        }
        self.tell();
        self.shared.over.store(true, Ordering::Release);
    }

    fn serve(&mut self) {
        loop {
            if let Asked::End = self.look() {
                return;
            }
            self.stop_and_expire();
            self.round();
            self.tell();
            if let Err(errno) = self.wait() {
                // There is no event loop any more.
                for slot in 0..self.jobs.len() {
                    self.end(slot as u32, Err(Failure::System(errno).into())); // Slots are u32.
                }
                self.shared.lock().stop_at = Some(Instant::now());
            }
        }
    }

    /// Takes what callers have left.
    fn look(&mut self) -> Asked {
        let mut state = self.shared.lock();
        state.awake = true;
        self.stop_at = state.stop_at;
        if self.n_jobs == 0 && state.incoming.is_empty() && state.stop_at.is_some() {
            state.life = Life::Ended;
            return Asked::End;
        }
        std::mem::swap(&mut self.incoming, &mut state.incoming);
        std::mem::swap(&mut self.cancelled, &mut state.cancelled);
        drop(state);
        while let Some(job) = self.incoming.pop_front() {
            self.admit(job);
        }
        while let Some(id) = self.cancelled.pop() {
            self.cancel(id);
        }
        Asked::GoOn
    }

    fn admit(&mut self, job: Box<Job<W>>) {
        let slot = slot_of(job.id);
        if self.reserve(slot as usize + 1).is_err() {
            return self.report(job, Err(Cut::from(OutOfMemory).into()));
        }
        self.n_jobs += 1;
        self.fresh.push_back(slot);
        self.jobs[slot as usize] = Some(job);
    }

    /// Room for that many slots in everything that they can be in.
    fn reserve(&mut self, slots: usize) -> Result<(), OutOfMemory> {
        if slots > self.jobs.len() {
            try_grow(&mut self.fresh, slots)?;
            try_grow(&mut self.ready, slots)?;
            try_grow(&mut self.disk, slots)?;
            self.timers.reserve(slots)?;
            try_grow(&mut self.jobs, slots)?;
            self.jobs.resize_with(slots, || None);
        }
        Ok(())
    }

    fn cancel(&mut self, id: u64) {
        let slot = slot_of(id);
        if self.jobs.get(slot as usize).and_then(Option::as_ref).is_some_and(|job| job.id == id) {
            self.end(slot, Err(End::Cancelled));
        }
    }

    fn stop_and_expire(&mut self) {
        let now = Instant::now();
        if self.stop_at.is_some_and(|at| now >= at) && self.n_jobs > 0 {
            self.shared.lock().cut_short = true;
            for queue in [&mut self.fresh, &mut self.ready, &mut self.disk] {
                queue.clear();
            }
            for slot in 0..self.jobs.len() {
                self.end(slot as u32, Err(End::Cancelled)); // Slots are u32.
            }
        }
        while let Some((at, slot)) = self.timers.first()
            && at <= now
        {
            self.timers.remove(slot);
            let Some(job) = &mut self.jobs[slot as usize] else { continue };
            match job.place {
                Place::Waiting => match job.wait(now) {
                    Some(until) => {
                        self.timers.set(slot, until);
                        self.ask_again(slot);
                    }
                    None => self.end(slot, Err(Cut::Timeout.into())),
                },
                Place::Paused => self.make_ready(slot),
                Place::Disk if job.deadline.is_over(now) => self.end(slot, Err(Cut::Timeout.into())),
                // It goes on, and sets its time anew when it waits again.
                Place::Disk | Place::Fresh | Place::Ready => {}
            }
        }
    }

    /// Of a job that has waited for a while: a host that enlarges the socket's buffer makes room of which epoll does
    /// not tell, unless it is asked.
    fn ask_again(&mut self, slot: u32) {
        let Some(job) = &self.jobs[slot as usize] else { return };
        if let (Some(interest), Some(socket)) = (job.registered, &job.socket)
            && let Err(error) = register(self.poll.registry(), slot, socket, interest, true)
        {
            self.end(slot, Err(Failure::System(errno(&error)).into()));
        }
    }

    fn make_ready(&mut self, slot: u32) {
        if let Some(job) = &mut self.jobs[slot as usize] {
            job.place = Place::Ready;
            self.ready.push_back(slot);
        }
    }

    /// Turns for jobs, the fresh ones and the others by turns; then one in which the thread may wait for the disk.
    fn round(&mut self) {
        let mut sent = 0;
        let mut fresh_next = true;
        while sent < ROUND {
            let (first, second) =
                if fresh_next { (&mut self.fresh, &mut self.ready) } else { (&mut self.ready, &mut self.fresh) };
            let Some(slot) = first.pop_front().or_else(|| second.pop_front()) else { break };
            fresh_next = !fresh_next;
            // A turn in which little is sent costs something too.
            sent += self.turn(slot, false).max(4 << 10);
            let now = Instant::now();
            if now - self.offered >= OFFER {
                self.offered = now;
                // SAFETY: always successful.
                unsafe { libc::sched_yield() };
            }
        }
        if let Some(slot) = self.disk.pop_front() {
            self.turn(slot, true);
        }
    }

    /// Lets a job send. Returns how many bytes it sent.
    fn turn(&mut self, slot: u32, may_wait_for_disk: bool) -> u64 {
        let Some(job) = &mut self.jobs[slot as usize] else { return 0 };
        let Some(budget) = job.budget(self.turn, may_wait_for_disk) else {
            self.pause(slot);
            return 0;
        };
        let before = job.sent();
        let step = job.step(budget);
        let sent = job.sent() - before;
        match step {
            Ok(Step::Done) => self.end(slot, Ok(())),
            Ok(Step::Yield) if job.deadline.is_over(Instant::now()) => self.end(slot, Err(Cut::Timeout.into())),
            Ok(Step::Yield) => self.make_ready(slot),
            Ok(Step::Wait(interest)) => self.park(slot, interest),
            Err(failure) => self.end(slot, Err(failure.into())),
        }
        sent
    }

    /// What the job would send is not in the page cache.
    fn pause(&mut self, slot: u32) {
        let Some(job) = &mut self.jobs[slot as usize] else { return };
        let now = Instant::now();
        if job.deadline.is_over(now) {
            return self.end(slot, Err(Cut::Timeout.into()));
        }
        if let Some(pause) = job.cool_down() {
            job.place = Place::Paused;
            self.timers.set(slot, now + pause);
        } else {
            job.place = Place::Disk;
            self.disk.push_back(slot);
            match job.deadline.end() {
                Some(end) => self.timers.set(slot, end),
                None => self.timers.remove(slot),
            }
        }
    }

    /// The job waits for its socket.
    fn park(&mut self, slot: u32, interest: Interest) {
        let Some(job) = &mut self.jobs[slot as usize] else { return };
        let now = Instant::now();
        let Some(until) = job.wait(now) else { return self.end(slot, Err(Cut::Timeout.into())) };
        let Some(socket) = &job.socket else { return self.end(slot, Err(Cut::NoDescriptor.into())) };
        // Edge-triggered: after the kernel has said EAGAIN it tells when there is room again. A write function's
        // word is not the kernel's, so then it is asked anew each time.
        let is_known = job.registered.is_some();
        if (!is_known || job.is_to_writer())
            && let Err(error) = register(self.poll.registry(), slot, socket, interest, is_known)
        {
            return self.end(slot, Err(Failure::System(errno(&error)).into()));
        }
        job.registered = Some(interest);
        if job.park(now) && job.is_to_writer() {
            // It wants to wait for what is there already.
            job.place = Place::Paused;
            self.timers.set(slot, until.min(now + AGAIN));
        } else {
            job.place = Place::Waiting;
            self.timers.set_at_latest(slot, until);
        }
    }

    /// The job is over.
    fn end(&mut self, slot: u32, ended: Result<(), End>) {
        let Some(job) = self.jobs[slot as usize].take() else { return };
        let queue = match job.place {
            Place::Fresh => Some(&mut self.fresh),
            Place::Ready => Some(&mut self.ready),
            Place::Disk => Some(&mut self.disk),
            Place::Paused | Place::Waiting => None,
        };
        // At its turn it has left the queue already.
        if let Some(queue) = queue
            && let Err(End::Cancelled | End::Cut(Cut::Timeout)) = ended
            && let Some(at) = queue.iter().position(|queued| *queued == slot)
        {
            queue.remove(at);
        }
        self.timers.remove(slot);
        self.n_jobs -= 1;
        self.report(job, ended);
    }

    /// Lets go of all that the job has, and then tells.
    fn report(&mut self, job: Box<Job<W>>, ended: Result<(), End>) {
        if job.registered.is_some()
            && let Some(socket) = &job.socket
        {
            // The caller's descriptor keeps the socket open, and with it the registration.
            let _ = self.poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd()));
        }
        let completion =
            Completion { token: job.token, id: job.id, ended, outcome: job.outcome(), elapsed_ns: job.elapsed_ns() };
        drop(job);
        self.announce |= self.shared.finish(completion);
    }

    /// Tells on_ready, with no lock held.
    fn tell(&mut self) {
        if std::mem::take(&mut self.announce)
            && let Some(Ready { function, user }) = self.on_ready
        {
            // SAFETY: whoever made the sender has promised that it may be called, with that, on this thread.
            unsafe { function(user) };
        }
    }

    /// Waits for sockets and callers, unless there is something to do.
    fn wait(&mut self) -> Result<(), i32> {
        let queued = !(self.fresh.is_empty() && self.ready.is_empty() && self.disk.is_empty());
        // When all has ended that there was when it was stopped, so does the thread.
        let queued = queued || self.stop_at.is_some() && self.n_jobs == 0;
        let mut timeout = queued.then_some(Duration::ZERO);
        if !queued {
            let mut state = self.shared.lock();
            if !self.shared.signal(&mut state) {
                timeout = Some(AGAIN);
            }
            if state.incoming.is_empty() && state.cancelled.is_empty() && state.stop_at == self.stop_at {
                state.awake = false;
            } else {
                timeout = Some(Duration::ZERO);
            }
            drop(state);
            let next = self.timers.first().map(|(at, _)| at).into_iter().chain(self.stop_at).min();
            if let Some(at) = next {
                let left = at.saturating_duration_since(Instant::now());
                timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
            }
        }
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => self.failures = 0,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => {
                self.failures += 1;
                if self.failures > GIVE_UP {
                    return Err(errno(&error));
                }
                std::thread::sleep(Duration::from_millis(1));
                return Ok(());
            }
        }
        let now = Instant::now();
        if timeout != Some(Duration::ZERO) {
            // It has waited, so others have had their chance.
            self.offered = now;
        }
        for event in &self.events {
            let slot = event.token().0;
            // An event of a job that has ended may come to the next in its slot: that one then asks for nothing.
            let Some(job) = self.jobs.get_mut(slot).and_then(Option::as_mut) else { continue };
            if job.place == Place::Waiting {
                job.wake(now);
                job.place = Place::Ready;
                self.ready.push_back(slot as u32); // Slots are u32.
            }
        }
        Ok(())
    }
}

/// Tells epoll to tell when the socket is ready, once, or `again`.
fn register(
    registry: &mio::Registry,
    slot: u32,
    socket: &OwnedFd,
    interest: Interest,
    again: bool,
) -> std::io::Result<()> {
    let interest = match interest {
        Interest::Write => mio::Interest::WRITABLE,
        Interest::Read => mio::Interest::READABLE,
    };
    let (fd, token) = (socket.as_raw_fd(), mio::Token(slot as usize));
    if again {
        registry.reregister(&mut SourceFd(&fd), token, interest)
    } else {
        registry.register(&mut SourceFd(&fd), token, interest)
    }
}
