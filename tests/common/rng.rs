//! Random numbers that a failed test can be run with again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The variable that sets the seed.
const SEED: &str = "SEED";

/// xorshift64*: small, and good enough to choose instants and sizes.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// From 0 to `below`, `below` itself excluded.
    pub fn below(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    /// One time in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Up to so many microseconds.
    pub fn pause(&mut self, most_us: u64) -> Duration {
        Duration::from_micros(self.below(most_us + 1))
    }
}

/// The seed of one test: a new one each time, or the variable's. Says on failure which it was.
#[derive(Debug)]
pub struct Seed(pub u64);

impl Seed {
    pub fn new() -> Seed {
        let set = std::env::var(SEED).ok().map(|text| text.parse().unwrap());
        Seed(set.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            now.as_nanos() as u64 % 1_000_000_007
        }))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to choose the same instants and sizes again: {SEED}={}", self.0);
        }
    }
}
