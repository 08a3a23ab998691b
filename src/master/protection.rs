//! Which connections the master keeps copies of when its descriptors run short, and how many it does without. Part of
//! the master's loop; owns only the counters.
//!
//! Nobody is refused for want of a copy. A connection that comes when all descriptors below a mark are in use is
//! closed here once it has been sent: it is served like any other, and ends with its worker should that die.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use ipc::control::Unprotected;
use log::{info, warn};

use super::Master;
use crate::keeper::{Connection, Relay};
use crate::privilege::{self, Kept};
use crate::supervise::Worker;

/// Warnings come no more often.
const WARN: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Protection {
    kept: Kept,
    /// Connections sent without a copy kept.
    pub(super) total: u64,
    /// Those of them that ended with a worker that died.
    pub(super) lost: u64,
    /// `total` at the last warning.
    said: u64,
    warned: Option<Instant>,
    /// Whether the last word was a warning.
    short: bool,
}

impl Protection {
    /// Under a limit of `nofile` open files, with so many workers.
    pub(super) fn new(nofile: u64, workers: u16) -> Protection {
        Protection { kept: privilege::kept(nofile, workers), total: 0, lost: 0, said: 0, warned: None, short: false }
    }

    /// There are so many workers from now on. What is kept already stays.
    pub(super) fn adapt(&mut self, nofile: u64, workers: u16) {
        self.kept = privilege::kept(nofile, workers);
    }

    /// Whether the copies of a connection about to be sent are kept.
    pub(super) fn keeps(&self, connection: &Connection) -> bool {
        let mut others = connection.relay.iter().flat_map(Relay::descriptors);
        connection.fd.as_raw_fd() < self.kept.clients && others.all(|fd| self.keeps_other(fd))
    }

    /// Whether a copy of something else that a worker has sent is kept.
    pub(super) fn keeps_other(&self, fd: impl AsFd) -> bool {
        fd.as_fd().as_raw_fd() < self.kept.all
    }
}

impl Master {
    /// How many connections there are without copies here.
    pub(super) fn count_unprotected(&self) -> Unprotected {
        let workers = self.seats.iter().filter_map(|seat| seat.worker.as_ref());
        let now = workers.map(|worker| u64::from(worker.table.unprotected())).sum();
        Unprotected { now, total: self.protection.total, lost: self.protection.lost }
    }

    /// Whether connections of which no copy is to be kept wait for a worker: workers that give back what they have are
    /// not heard meanwhile, so that what comes with it does not take the last descriptors.
    pub(super) fn is_holding(&self) -> bool {
        self.seats.iter().filter_map(|seat| seat.worker.as_ref()).any(Worker::is_draining)
            && self.homeless.iter().any(|connection| !self.protection.keeps(connection))
    }

    /// Says once a second at most that there are such connections, and when there are none any more.
    pub(super) fn warn_of_unprotected(&mut self, now: Instant) {
        let Protection { total, said, warned, short, .. } = self.protection;
        if total == said && !short || warned.is_some_and(|warned| now.saturating_duration_since(warned) < WARN) {
            return;
        }
        let present = self.count_unprotected().now;
        if total > said {
            warn!(
                "descriptors are short: of {} more connections no copy was kept, of {present} now; they end with their \
                 worker if it dies; raise the limit of open files (`ulimit -n`, or LimitNOFILE= in systemd)",
                total - said
            );
            (self.protection.said, self.protection.warned, self.protection.short) = (total, Some(now), true);
        } else if present == 0 {
            info!("every connection outlives its worker again");
            self.protection.short = false;
        }
    }
}
