//! When to let connections gather before they are accepted, as a network card gathers packets before it interrupts.
//!
//! A wake-up of the master and of a worker costs more than accepting. When connections come close upon each other,
//! waiting a fraction of a millisecond lets one wake-up serve several. When they are rare, or come one after the
//! other because each client waits for its answer, waiting would only add delay: then there is none. Pure: times
//! and counts come in, a wait goes out.

use std::time::{Duration, Instant};

/// How long connections may gather.
const HOLD: Duration = Duration::from_micros(400);
/// They gather only while the mean gap between two is at most this, so that at least two are to be expected.
const DENSE: Duration = Duration::from_micros(200);
/// Holds in a row that brought one connection or none before holding is given up,
const PATIENCE: u32 = 8;
/// and for how long.
const REST: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug)]
pub struct Moderation {
    /// When connections last came.
    last: Instant,
    /// The mean gap between two, smoothed.
    gap: Duration,
    held: bool,
    fruitless: u32,
    rest_until: Instant,
}

impl Moderation {
    /// Nothing has come yet.
    pub fn new(now: Instant) -> Moderation {
        Moderation { last: now, gap: Duration::from_secs(1), held: false, fruitless: 0, rest_until: now }
    }

    /// A turn of the loop has accepted `count` connections. How long to let the next ones gather; `None` = not.
    pub fn after_turn(&mut self, count: u32, now: Instant) -> Option<Duration> {
        let held = std::mem::take(&mut self.held);
        if held && count < 2 {
            self.fruitless += 1;
        } else if held {
            self.fruitless = 0;
        }
        if count == 0 {
            return None;
        }
        let gap = now.saturating_duration_since(self.last) / count;
        self.last = now;
        // A pause says nothing about how close they come after it, but one is not a burst.
        self.gap = (self.gap.min(4 * DENSE) * 7 + gap.min(8 * DENSE)) / 8;
        if self.fruitless >= PATIENCE {
            self.fruitless = 0;
            self.rest_until = now + REST;
        }
        self.held = self.gap <= DENSE && now >= self.rest_until;
        self.held.then_some(HOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets `count` connections come every `gap_us` microseconds for `turns` turns; how many turns were held.
    fn run(moderation: &mut Moderation, start: Instant, count: u32, gap_us: u64, turns: u32) -> (u32, Instant) {
        let mut now = start;
        let mut held = 0;
        for _ in 0..turns {
            now += Duration::from_micros(gap_us);
            held += u32::from(moderation.after_turn(count, now).is_some());
        }
        (held, now)
    }

    #[test]
    fn rare_connections_are_never_held() {
        let start = Instant::now();
        let mut moderation = Moderation::new(start);
        assert_eq!(run(&mut moderation, start, 1, 1000, 1000).0, 0);
        assert_eq!(run(&mut moderation, start, 3, 10_000, 1000).0, 0);
    }

    #[test]
    fn dense_ones_are_held_as_long_as_that_brings_several_at_once() {
        let start = Instant::now();
        let mut moderation = Moderation::new(start);
        let (_, now) = run(&mut moderation, start, 1, 50, 15);
        let (held, _) = run(&mut moderation, now, 8, 400, 1000);
        assert_eq!(held, 1000);
    }

    #[test]
    fn holding_is_given_up_where_it_brings_nothing() {
        let start = Instant::now();
        let mut moderation = Moderation::new(start);
        // One client after the other: dense while it is not held, one at a time when it is.
        let mut now = start;
        let (mut held, mut turns) = (0, 0);
        while now < start + Duration::from_secs(4) {
            now += if moderation.held { HOLD + Duration::from_micros(100) } else { Duration::from_micros(100) };
            held += u32::from(moderation.after_turn(1, now).is_some());
            turns += 1;
        }
        assert!(held < turns / 100, "{held} of {turns}");
    }

    #[test]
    fn turns_without_connections_change_nothing_but_the_patience() {
        let start = Instant::now();
        let mut moderation = Moderation::new(start);
        assert_eq!(run(&mut moderation, start, 0, 10, 1000).0, 0);
    }
}
