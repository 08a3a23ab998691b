//! For workers that leave anything in their memory: all of them die at once.

use std::os::fd::OwnedFd;

use ipc::message::{Layout, Task};

use super::World;
use crate::master::model::clients::Client;
use crate::master::model::processes::KILLED;
use crate::supervise::Worker;

impl World {
    /// The workers of the one master, as it knows them, in their order.
    pub(in crate::master::model) fn known_workers(&self) -> impl Iterator<Item = &Worker> {
        self.masters[0].master.seats.iter().filter_map(|seat| seat.worker.as_ref())
    }

    /// The bytes of requests that the one master carries to its workers.
    pub(in crate::master::model) fn carried(&self) -> impl Iterator<Item = &Vec<u8>> {
        let tables = self.known_workers().flat_map(|worker| worker.table.entries().map(|entry| entry.2));
        tables.chain(&self.masters[0].master.homeless).filter_map(|connection| match &connection.task {
            Task::Resume(bytes) => Some(bytes),
            Task::Serve | Task::Fail(_) | Task::Refuse | Task::Relay { .. } => None,
        })
    }

    /// Kills all workers, and has the master take over from each; `check` comes before it passes anything on. The
    /// regions of the dead are in `spoilt` then.
    pub(in crate::master::model) fn kill_workers_with(&mut self, check: impl Fn(&World)) {
        let copy = |worker: &Worker| (rustix::io::fcntl_dupfd_cloexec(&worker.region, 3).unwrap(), worker.layout);
        self.spoilt = self.known_workers().map(copy).collect();
        let now = self.now();
        while let Some(slot) = self.workers.pop() {
            drop(slot.life);
            slot.handle.die(KILLED);
        }
        let master = &mut self.masters[0].master;
        for at in 0..master.seats.len() {
            let end = master.seats[at].worker.as_ref().and_then(|worker| worker.reap());
            if let Some(end) = end {
                master.bury(at, end, now);
            }
        }
        check(self);
        self.check();
        self.spoilt.clear();
    }

    /// Regions of dead workers, as long as they are looked at.
    pub(in crate::master::model) fn spoilt(&self) -> &[(OwnedFd, Layout)] {
        &self.spoilt
    }

    /// All clients go away.
    pub(in crate::master::model) fn abandon_all(&mut self) {
        self.clients.iter_mut().for_each(Client::abandon);
    }
}
