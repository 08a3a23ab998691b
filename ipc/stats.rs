//! Counters that one process writes and another reads, in shared memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with a single writer: increments are a plain load and store.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning process may call this.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
    }

    /// Sets the value. Only the owning process may call this.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Release);
    }

    /// The value, as last written.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What a worker tells of itself. The worker writes, the master reads; it believes none of it blindly.
#[derive(Debug, Default)]
#[repr(C)]
pub struct WorkerStats {
    /// Connections taken up from the channel.
    pub taken: Counter,
    /// Connections finished here, reported to the master or about to be.
    pub finished: Counter,
    /// Requests begun.
    pub requests: Counter,
    /// Requests in progress now.
    pub active_requests: Counter,
    /// Milliseconds of the monotonic clock at the latest turn of the loop.
    pub heartbeat_ms: Counter,
    /// How many milliseconds the latest ping was under way.
    pub lag_ms: Counter,
    /// Which ping that was: when it was sent. Written after `lag_ms`.
    pub pinged_ms: Counter,
}
