//! Accepting in bursts, and what happens when descriptors run out. Chooses no worker. The call itself is in
//! `ipc::accept`.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use log::warn;
use rustix::io::Errno;

use crate::dispatch::Wait;

/// Connections accepted from one listener in one turn of the loop, before the others have theirs.
pub const BURST: usize = 64;

/// Connections accepted and not yet sent to a worker, at most: if the master is killed just then they wait for its heir.
/// With fewer, each message to a worker would carry so few that sending costs more than accepting.
pub const IN_HAND: usize = 8;

/// The order in which `count` listeners have their bursts: each turn begins with another one.
pub fn turns(next: &mut usize, count: usize) -> impl Iterator<Item = usize> + use<> {
    let first = if *next < count { *next } else { 0 };
    *next = first + 1;
    (first..count).chain(0..first)
}

/// Holds accepting back while descriptors are short.
///
/// Connections are left in the kernel's queue, where they keep waiting, rather than accepted and closed.
#[derive(Debug)]
pub struct Gate {
    closed_until: Option<Instant>,
    wait: Wait,
    warned: Option<Instant>,
}

impl Gate {
    /// Open.
    pub fn new() -> Gate {
        Gate { closed_until: None, wait: Wait::new(Duration::from_millis(5), Duration::from_millis(200)), warned: None }
    }

    /// When it opens again, if it is closed at `now`.
    pub fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.closed_until.filter(|&until| until > now)
    }

    /// Accepting failed for want of descriptors or memory. Warns once a second.
    pub fn exhausted(&mut self, now: Instant, errno: Errno) {
        self.closed_until = Some(now + self.wait.next());
        if self.warned.is_none_or(|warned| now.duration_since(warned) >= Duration::from_secs(1)) {
            self.warned = Some(now);
            let remedy = match errno {
                Errno::MFILE => "raise the limit of open files (`ulimit -n`, or LimitNOFILE= in systemd)",
                Errno::NFILE => "raise the system's limit of open files (sysctl fs.file-max)",
                _ => "the system is short of memory",
            };
            warn!(
                "cannot accept: {}; new connections wait in the kernel's queue until idle ones have given way; {remedy}",
                std::io::Error::from(errno)
            );
        }
    }

    /// A connection was accepted.
    pub fn succeeded(&mut self) {
        self.wait.reset();
    }

    /// A descriptor has become free: no need to wait longer.
    pub fn freed(&mut self) {
        self.closed_until = None;
    }
}

/// Connections turned away because their address has as many as it may.
#[derive(Debug, Default)]
pub struct TurnedAway {
    count: u64,
    warned: Option<Instant>,
}

impl TurnedAway {
    /// One from `client` was. Warns once a second.
    pub fn note(&mut self, client: IpAddr, limit: u32, now: Instant) {
        self.count += 1;
        if self.warned.is_some_and(|warned| now.duration_since(warned) < Duration::from_secs(1)) {
            return;
        }
        let count = std::mem::take(&mut self.count);
        self.warned = Some(now);
        warn!(
            "refused {count} connections, the last from {client}: an address may have {limit} \
             (limits.connections_per_address)"
        );
    }
}

/// A few descriptors kept aside, so that a worker can be started when all others are in use.
#[derive(Debug, Default)]
pub struct Reserve(Vec<OwnedFd>);

impl Reserve {
    /// What starting one worker takes at most: its channel's two ends, its memory file, its pidfd, and what the
    /// standard library opens to see whether the program could be run.
    const SIZE: usize = 8;

    /// Fills it up, as far as there are descriptors.
    pub fn fill(&mut self) {
        while self.0.len() < Self::SIZE {
            let spare = match self.0.first() {
                Some(first) => rustix::io::fcntl_dupfd_cloexec(first, 3),
                None => rustix::fs::open("/dev/null", rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty()),
            };
            match spare {
                Ok(fd) => self.0.push(fd),
                Err(_) => return,
            }
        }
    }

    /// Gives all of it up for what comes next.
    pub fn release(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_is_first_in_turn_and_none_at_all_is_fine() {
        let mut next = 0;
        let mut turn = |count| turns(&mut next, count).collect::<Vec<_>>();
        assert_eq!([turn(3), turn(3), turn(3), turn(3)], [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
        assert_eq!(turn(0), [0; 0]);
        assert_eq!(turn(1), [0]);
    }

    #[test]
    fn the_gate_stays_closed_longer_each_time_until_a_success() {
        let start = Instant::now();
        let mut gate = Gate::new();
        let ms = Duration::from_millis;
        for expected in [5, 10, 20, 40, 80, 160, 200, 200] {
            gate.exhausted(start, Errno::MFILE);
            assert_eq!(gate.closed_until(start), Some(start + ms(expected)));
        }
        assert_eq!(gate.closed_until(start + ms(200)), None);
        gate.succeeded();
        gate.exhausted(start, Errno::NFILE);
        assert_eq!(gate.closed_until(start), Some(start + ms(5)));
        gate.freed();
        assert_eq!(gate.closed_until(start), None);
    }
}
