//! Replacing workers that a new configuration cannot be put into force in: a process keeps the memory it was started
//! with, and the user it runs as. Part of the master's loop; owns only which one is being replaced.
//!
//! One at a time: first the new process, and when that is ready, the old one gives back what it has and leaves. Until
//! the new one is ready nothing has changed, however long that takes.

use std::time::Instant;

use log::info;

use super::lifecycle::drain_worker;
use super::{Course, Master, unwatch};
use crate::supervise::{Made, Seat, Worker};
use std::os::fd::AsFd;

/// Which worker is being replaced: the places of two seats with the same number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    old: usize,
    new: usize,
}

impl Master {
    /// What a worker that starts now could not change later.
    pub(super) fn made(&self) -> Made {
        Made { identity: self.identity, connections: self.config.snapshot.limits.connections }
    }

    /// Whether the configuration in force needs another process than this.
    pub(super) fn is_outdated(&self, worker: &Worker) -> bool {
        let Made { identity, connections } = worker.made;
        worker.layout.slot_bytes < self.layout.slot_bytes
            || identity != self.identity
            || connections != self.config.snapshot.limits.connections && worker.layout.records < self.layout.records
    }

    /// Whether the seat at `at` is one of the two with the same number.
    pub(super) fn is_renewing(&self, at: usize) -> bool {
        self.renewal.is_some_and(|renewal| renewal.old == at || renewal.new == at)
    }

    /// The lowest number that no seat has.
    pub(super) fn free_index(&self) -> Option<u16> {
        (0..=u16::MAX).find(|index| self.seats.iter().all(|seat| seat.index != *index))
    }

    /// Goes on with replacing workers, if there is anything to replace.
    pub(super) fn renew(&mut self, now: Instant) {
        if self.course != Course::Running || !self.announced || self.successor.is_some() {
            return;
        }
        match self.renewal {
            None => self.begin_renewal(now),
            Some(renewal) => self.go_on_with(renewal, now),
        }
    }

    fn begin_renewal(&mut self, now: Instant) {
        let outdated = |seat: &Seat| {
            seat.wanted && seat.worker.as_ref().is_some_and(|one| one.is_ready() && self.is_outdated(one))
        };
        let Some(old) = self.seats.iter().position(outdated) else { return };
        let index = self.seats[old].index;
        info!("worker {index} is replaced, as the configuration wants");
        // The new one counts in its place from now on.
        self.seats[old].wanted = false;
        self.seats.push(Seat::new(index, now));
        self.renewal = Some(Renewal { old, new: self.seats.len() - 1 });
    }

    fn go_on_with(&mut self, Renewal { old, new }: Renewal, now: Instant) {
        let timeout_ms = self.config.snapshot.shutdown_timeout_ms;
        let new_ready = self.seats[new].worker.as_ref().is_some_and(Worker::is_ready);
        let ready = self.seats[old].worker.as_ref().filter(|worker| worker.is_ready());
        if ready.is_some_and(|worker| !self.is_outdated(worker))
            && !new_ready
            && !self.seats[old].wanted
            && self.seats[new].wanted
        {
            // Yet another configuration does with the old one.
            self.seats[old].wanted = true;
            let seat = &mut self.seats[new];
            (seat.wanted, seat.start_at) = (false, None);
            if let Some(worker) = seat.worker.as_mut() {
                drain_worker(worker, timeout_ms, true, now);
            }
        } else if new_ready || !self.seats[new].wanted {
            let seat = &mut self.seats[old];
            if let Some(worker) = seat.worker.as_mut().filter(|worker| !seat.wanted && worker.is_ready()) {
                drain_worker(worker, timeout_ms, true, now);
            }
        }
        let [old_stays, new_stays] = [old, new].map(|at| self.seats[at].wanted || self.seats[at].worker.is_some());
        if !(old_stays && new_stays) {
            self.end_renewal(Renewal { old, new }, now);
        }
    }

    /// One of the two seats is empty: it goes.
    fn end_renewal(&mut self, Renewal { old, new }: Renewal, now: Instant) {
        self.renewal = None;
        if self.seats[old].worker.is_none() && !self.seats[old].wanted {
            if let Some(worker) = &self.seats[new].worker {
                unwatch(&self.poll, worker.channel.as_fd());
                unwatch(&self.poll, worker.pidfd());
            }
            self.seats.swap(old, new);
            if let Some(worker) = self.seats[old].worker.as_mut() {
                worker.readable = true;
                if let Err(failed) = Master::watch_worker(&self.poll, old, worker) {
                    log::error!("cannot watch a worker: {failed}; killing it");
                    worker.kill(now);
                }
            }
        }
        if new + 1 == self.seats.len() {
            self.seats.pop();
        } else if let Some(index) = self.free_index() {
            self.seats[new].index = index;
        }
        if !self.seats.iter().filter_map(|seat| seat.worker.as_ref()).any(|worker| self.is_outdated(worker)) {
            info!("all workers are as the configuration wants them");
        }
    }
}
