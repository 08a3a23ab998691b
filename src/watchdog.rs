//! Whether a worker still moves. Pure: what its shared counters say comes in, a verdict goes out.
//!
//! A worker's loop writes its heartbeat at every turn, and turns at least when the master asks it to. One that has
//! connections waiting and takes none up is behind: it gets no more until it does. One that does not turn at all
//! for the configured time is stuck, in an endless loop or stopped, and is treated as dead.

use std::time::{Duration, Instant};

/// A worker that takes up nothing for so long, though something waits, gets nothing new.
const BEHIND: Duration = Duration::from_millis(50);

/// What is remembered of one worker.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    taken: u64,
    /// Since when something has been waiting without any being taken up.
    waiting_since: Option<Instant>,
    heartbeat: u64,
    moved_at: Instant,
}

impl Watch {
    /// A worker that has just become ready.
    pub fn new(now: Instant) -> Watch {
        Watch { taken: 0, waiting_since: None, heartbeat: 0, moved_at: now }
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
