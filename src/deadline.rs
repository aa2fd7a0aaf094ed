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

    /// So long since the last wait it was not the peer that we waited for: that is no time of its rate's.
    pub(crate) fn delayed(&mut self, time: Duration) {
        self.period.0 += time;
    }

    /// So long nobody wanted to send anything: that is no time of the peer's.
    pub(crate) fn paused(&mut self, time: Duration) {
        self.delayed(time);
        self.progress += time;
    }

    /// When that time is over.
    pub(crate) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// `sent` bytes were sent, and the socket takes no more now: until when to wait before asking again. None: too
    /// long already. `queued` tells how many bytes the kernel holds that the peer has not taken: a slow
    /// client with a large socket buffer makes progress for minutes before the socket takes more.
    pub(crate) fn wait(&mut self, now: Instant, sent: u64, queued: impl FnOnce() -> u64) -> Option<Instant> {
        if self.is_over(now) {
            return None;
        }
        let Limits { idle, min_rate, .. } = self.limits;
        let period_is_over = min_rate > 0 && now >= self.period.0 + idle;
        let is_judged = period_is_over || now >= self.progress + idle;
        let look = match self.look {
            Some(look) if look.sent == sent && now < look.at + idle / LOOKS && !is_judged => look,
            before => {
                let taken = i64::try_from(sent).unwrap_or(i64::MAX) - i64::try_from(queued()).unwrap_or(i64::MAX);
                if before.is_none_or(|before| sent > before.sent || taken > before.taken) {
                    self.progress = now;
                }
                if before.is_none_or(|before| taken >= i64::try_from(before.sent).unwrap_or(i64::MAX)) {
                    // It had nothing left to take: the delay was ours, and begins no period of its own.
                    self.period = (now, taken);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A response as it would be driven: when the wait is over it is looked at again, and ends when there is no more
    /// waiting. `peer` tells for a time in milliseconds how many bytes were sent, and how many of them the peer has
    /// taken. Returns when it ended.
    fn ends_after(limits: Limits, peer: impl Fn(u64) -> (u64, u64)) -> Option<u64> {
        let zero = Instant::now();
        let mut deadline = Deadline::new(limits, zero);
        let mut now = 0;
        while now < 100_000 {
            let (sent, taken) = peer(now);
            let Some(until) = deadline.wait(zero + ms(now), sent, || sent - taken) else { return Some(now) };
            let next = (until - zero).as_millis() as u64;
            assert!(next > now, "a wait that is no wait at {now}");
            // Timers are late, never early.
            now = next + 1;
        }
        None
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    const LIMITS: Limits = Limits { idle: Duration::from_millis(1000), total: None, min_rate: 0 };

    #[test]
    fn a_peer_that_takes_nothing_is_given_up_after_the_idle_time() {
        assert_eq!(ends_after(LIMITS, |_| (5000, 0)), Some(1001));
    }

    #[test]
    fn a_peer_that_stops_is_noticed_a_quarter_later_at_most() {
        for stop in [1, 249, 250, 251, 999, 1500] {
            let end = ends_after(LIMITS, |now| (5000, now.min(stop))).unwrap();
            assert!((stop + 1000..=stop + 1254).contains(&end), "stops at {stop}, given up at {end}");
        }
    }

    #[test]
    fn a_piece_within_each_idle_time_is_enough() {
        for every in [1, 300, 700, 760, 800, 900, 990, 998] {
            assert_eq!(ends_after(LIMITS, |now| (1 << 40, now / every * 100)), None, "every {every} ms");
        }
    }

    #[test]
    fn bytes_that_the_peer_takes_are_progress_though_the_socket_takes_none() {
        assert_eq!(ends_after(LIMITS, |now| (1 << 40, now)), None);
    }

    #[test]
    fn bytes_of_earlier_responses_count_as_well() {
        // More is queued than was sent: what is left of the response before.
        let zero = Instant::now();
        let mut deadline = Deadline::new(LIMITS, zero);
        for now in (0..10_000).step_by(250) {
            assert!(deadline.wait(zero + ms(now), 10, || 1_000_000 - now).is_some(), "{now}");
        }
    }

    #[test]
    fn the_total_time_holds_whatever_the_progress() {
        let limits = Limits { total: Some(ms(3333)), ..LIMITS };
        assert_eq!(ends_after(limits, |now| (now * 1000, now * 900)), Some(3334));
        let zero = Instant::now();
        assert!(!Deadline::new(limits, zero).is_over(zero + ms(3332)));
        assert!(Deadline::new(limits, zero).is_over(zero + ms(3333)));
    }

    #[test]
    fn a_peer_that_has_taken_all_is_not_blamed_for_a_pause_of_ours() {
        let zero = Instant::now();
        let mut deadline = Deadline::new(Limits { min_rate: 1000, ..LIMITS }, zero);
        // Ten seconds before the first byte, and then ten seconds each between pieces that are taken at once.
        for pause in 1..5 {
            let now = zero + ms(pause * 10_000);
            assert!(deadline.wait(now, pause * 500, || 400).is_some(), "{pause}");
            assert!(deadline.wait(now + ms(2), pause * 500, || 0).is_some(), "{pause}");
        }
    }

    #[test]
    fn a_pause_of_ours_is_no_time_of_the_peers() {
        let zero = Instant::now();
        let mut deadline = Deadline::new(Limits { min_rate: 1000, ..LIMITS }, zero);
        // It has taken nothing of the last piece when the next comes, ten seconds later, but had no call to.
        for piece in 0..5u64 {
            let now = zero + ms(piece * 10_900);
            assert!(deadline.wait(now, 100_000, || 100_000 - piece * 900).is_some(), "{piece}");
            assert!(deadline.wait(now + ms(900), 100_000, || 99_100 - piece * 900).is_some(), "{piece}");
            deadline.paused(ms(10_000));
        }
        // But what it takes meanwhile counts, and that it takes too little.
        let now = zero + ms(5 * 10_900 + 1000);
        assert!(deadline.wait(now, 100_000, || 95_500).is_none());
    }

    #[test]
    fn a_delay_of_ours_does_not_count_for_the_rate() {
        let limits = Limits { min_rate: 1000, ..LIMITS };
        for (delay, fast_enough) in [(0, false), (8900, false), (9100, true), (10_000, true)] {
            let zero = Instant::now();
            let mut deadline = Deadline::new(limits, zero);
            assert!(deadline.wait(zero, 100_000, || 100_000).is_some());
            deadline.delayed(ms(delay));
            // A thousand bytes in ten seconds, but for the delay.
            let now = zero + ms(10_000);
            assert_eq!(deadline.wait(now, 100_000, || 99_000).is_some(), fast_enough, "{delay}");
        }
    }

    #[test]
    fn a_peer_below_the_least_rate_is_given_up_after_one_period() {
        let limits = Limits { min_rate: 1000, ..LIMITS };
        // One byte per millisecond is just enough.
        assert_eq!(ends_after(limits, |now| (1 << 40, now)), None);
        let end = ends_after(limits, |now| (1 << 40, now * 9 / 10)).unwrap();
        assert!((1000..=1254).contains(&end), "{end}");
        // What it took in earlier periods does not help.
        let end = ends_after(limits, |now| (1 << 40, if now < 5000 { now * 10 } else { 50_000 + (now - 5000) / 10 }));
        assert!(end.is_some_and(|end| (6000..=7260).contains(&end)), "{end:?}");
    }
}
