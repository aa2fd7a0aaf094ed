//! How long a response may take, and whether its peer is still taking bytes. Pure: the clock is an argument.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// What the caller allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest time without progress.
    pub(crate) idle: Duration,
    /// For all of the response.
    pub(crate) total: Option<Duration>,
    /// Bytes per second, over each period of `idle`; 0: any.
    pub(crate) min_rate: u64,
}

/// How often in a period of `idle` it is looked at whether the peer has taken something.
const LOOKS: u32 = 4;

/// One response against its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    limits: Limits,
    end: Option<Instant>,
    /// When the peer was last known to have taken something.
    progress: Instant,
    look: Option<Look>,
    /// Where the rate is counted from.
    period: (Instant, i64),
}

/// What was seen when it was last looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    sent: u64,
    /// Bytes that the peer has taken. Negative while the kernel still holds some of earlier responses.
    taken: i64,
}

impl Deadline {
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        let end = limits.total.and_then(|total| now.checked_add(total));
        Self { limits, end, progress: now, look: None, period: (now, 0) }
    }

    /// The time for all of the response is over.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.end.is_some_and(|end| now >= end)
    }

    /// `sent` bytes were sent, and the socket takes no more now: until when to wait before asking again. None: too
    /// long already. `queued` tells how many bytes the kernel holds that the peer has not taken: a slow
    /// client with a large socket buffer makes progress for minutes before the socket takes more.
    pub(crate) fn wait(&mut self, now: Instant, sent: u64, queued: impl FnOnce() -> u64) -> Option<Instant> {
        if self.is_over(now) {
            return None;
        }
        let Limits { idle, min_rate, .. } = self.limits;
        let look = match self.look {
            Some(look) if look.sent == sent && now < look.at + idle / LOOKS => look,
            before => {
                let taken = i64::try_from(sent).unwrap_or(i64::MAX) - i64::try_from(queued()).unwrap_or(i64::MAX);
                if before.is_none_or(|before| sent > before.sent || taken > before.taken) {
                    self.progress = now;
                }
                if before.is_none() {
                    self.period.1 = taken.min(0);
                }
                *self.look.insert(Look { at: now, sent, taken })
            }
        };
        if now >= self.progress + idle {
            return None;
        }
        let mut until = (look.at + idle / LOOKS).min(self.progress + idle);
        if min_rate > 0 {
            let period = now - self.period.0;
            if period >= idle {
                if i128::from(look.taken - self.period.1) * 1000 < i128::from(min_rate) * period.as_millis() as i128 {
                    return None;
                }
                self.period = (now, look.taken);
            }
            until = until.min(self.period.0 + idle);
        }
        // At least a moment: what was just looked at is not looked at again at once.
        Some(self.end.map_or(until, |end| until.min(end)).max(now + Duration::from_millis(1)))
    }
}
