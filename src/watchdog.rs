//! Whether a worker still moves. Pure: what its shared counters say comes in, a verdict goes out.
//!
//! A worker's loop writes its heartbeat at every turn, and turns at least when the master asks it to. One that has
//! connections waiting and takes none up is behind: it gets no more until it does. One that answers pings late for a
//! while is slow. One that does not turn at all for the configured time is stuck, in an endless loop or stopped, and is
//! treated as dead.

use std::time::{Duration, Instant};

/// A worker that takes up nothing for so long, though something waits, gets nothing new.
const BEHIND: Duration = Duration::from_millis(50);

/// A ping that is under way for so long or longer, in milliseconds, is late;
const LATE_MS: u64 = 50;
/// one that takes less than this is in time. Between the two it says nothing.
const IN_TIME_MS: u64 = 20;
/// So many more late ones than timely ones make a worker slow, as many the other way make it fast again.
const STEPS: u8 = 4;

/// Whether a worker's loop keeps up. What one ping says counts little, so that a single long turn, or a single short
/// one, changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    score: u8,
    slow: bool,
}

impl Pace {
    /// A ping was, or has been so far, `lag_ms` milliseconds under way. True when that has changed the verdict.
    pub fn note(&mut self, lag_ms: u64) -> bool {
        if lag_ms >= LATE_MS {
            self.score = (self.score + 1).min(STEPS);
        } else if lag_ms < IN_TIME_MS {
            self.score = self.score.saturating_sub(1);
        }
        let before = self.slow;
        self.slow = if self.slow { self.score > 0 } else { self.score == STEPS };
        before != self.slow
    }

    /// The verdict.
    pub fn is_slow(&self) -> bool {
        self.slow
    }
}

/// What is remembered of one worker.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// Whether it keeps up.
    pub pace: Pace,
    /// When it was last pinged, in milliseconds of the monotonic clock; 0 = never.
    pub pinged_ms: u64,
    /// Whether that had arrived when it was last looked at.
    pub answered: bool,
    taken: u64,
    /// Since when something has been waiting without any being taken up.
    waiting_since: Option<Instant>,
    heartbeat: u64,
    moved_at: Instant,
}

impl Watch {
    /// A worker that has just become ready.
    pub fn new(now: Instant) -> Watch {
        Watch {
            pace: Pace::default(),
            pinged_ms: 0,
            answered: true,
            taken: 0,
            waiting_since: None,
            heartbeat: 0,
            moved_at: now,
        }
    }

    /// Whether it is behind, having been passed `passed` connections and taken up `taken`.
    pub fn is_behind(&mut self, passed: u64, taken: u64, now: Instant) -> bool {
        if passed <= taken || taken != self.taken || self.waiting_since.is_none() {
            self.taken = taken;
            self.waiting_since = (passed > taken).then_some(now);
        }
        self.waiting_since.is_some_and(|since| now.saturating_duration_since(since) >= BEHIND)
    }

    /// Whether it is stuck: its heartbeat has stood still for `timeout`, during which it was asked to move.
    pub fn is_stuck(&mut self, heartbeat: u64, timeout: Duration, now: Instant) -> bool {
        if heartbeat != self.heartbeat {
            (self.heartbeat, self.moved_at) = (heartbeat, now);
        }
        now.saturating_duration_since(self.moved_at) >= timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_behind_only_while_something_waits_and_none_is_taken() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watch = Watch::new(start);
        assert!(!watch.is_behind(0, 0, at(0)));
        assert!(!watch.is_behind(5, 0, at(1000)));
        assert!(!watch.is_behind(9, 0, at(1049)));
        assert!(watch.is_behind(9, 0, at(1050)));
        assert!(!watch.is_behind(9, 1, at(1060)));
        assert!(!watch.is_behind(9, 1, at(1109)));
        assert!(watch.is_behind(9, 1, at(1110)));
        assert!(!watch.is_behind(9, 9, at(1111)));
        assert!(!watch.is_behind(10, 9, at(9000)));
    }

    #[test]
    fn a_worker_is_slow_after_several_late_answers_and_fast_after_as_many_timely_ones() {
        let mut pace = Pace::default();
        let mut note = |lags: &[u64]| {
            let changes = lags.iter().filter(|&&lag_ms| pace.note(lag_ms)).count();
            (pace.is_slow(), changes)
        };
        assert_eq!(note(&[500, 500, 500]), (false, 0));
        assert_eq!(note(&[0, 30, 30, 60]), (false, 0));
        assert_eq!(note(&[50]), (true, 1));
        assert_eq!(note(&[50; 99]), (true, 0));
        // One that goes back and forth stays what it is.
        assert_eq!(note(&[0, 0, 0, 60, 0, 60, 0, 60]), (true, 0));
        assert_eq!(note(&[0, 19, 0, 49]), (false, 1));
        assert_eq!(note(&[60, 0, 60, 0, 60, 60, 60, 0, 0, 0, 60, 60]), (false, 0));
    }

    #[test]
    fn a_worker_is_stuck_when_its_heart_stands_still() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let timeout = Duration::from_secs(10);
        let mut watch = Watch::new(start);
        assert!(!watch.is_stuck(0, timeout, at(9)));
        assert!(!watch.is_stuck(77, timeout, at(10)));
        assert!(!watch.is_stuck(77, timeout, at(19)));
        assert!(watch.is_stuck(77, timeout, at(20)));
    }
}
