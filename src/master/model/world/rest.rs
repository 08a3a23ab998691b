//! The end of a run: nothing more happens, and everything must come to rest.

use std::time::Duration;

use super::lives::ports;
use super::log::LOG;
use super::open::kinds;
use super::{Life, World};
use crate::master::Course;

/// Rounds in which everything must come to its end, once nothing more happens, and the time that each takes.
const ROUNDS: usize = 2500;
const ROUND: Duration = Duration::from_millis(40);

impl World {
    /// Runs everything in turn, and lets time pass, until `done`.
    pub(super) fn run_all_until(&mut self, done: impl Fn(&World) -> bool, what: &str) {
        for _ in 0..ROUNDS {
            if done(self) {
                return;
            }
            if !self.successors.is_empty() {
                self.start_successor(None);
            } else if self.running().is_none() {
                self.start_master(None);
            }
            self.run_masters();
            self.run_workers();
            for client in &mut self.clients {
                client.finish(&self.servers);
            }
            self.clients.retain(|client| !client.is_over());
            self.servers.act_all();
            self.ahead += ROUND;
            self.check();
        }
        panic!("this never comes about: {what}");
    }

    /// One master that runs, all its workers ready, and nothing else.
    pub(super) fn is_at_rest(&self) -> bool {
        let [slot] = &self.masters[..] else { return false };
        let master = &slot.master;
        let ready = |seat: &crate::supervise::Seat| {
            let worker = seat.worker.as_ref();
            if seat.wanted { worker.is_some_and(|worker| worker.is_ready()) } else { worker.is_none() }
        };
        let wanted = master.seats.iter().filter(|seat| seat.wanted).count();
        master.course == Course::Running
            && master.announced
            && master.formers.is_empty()
            && master.homeless.is_empty()
            && master.successor.is_none()
            && master.seats.iter().all(ready)
            && self.workers.len() == wanted
            && self.workers.iter().all(|slot| matches!(slot.life, Life::Running(_)))
            && master.seats.iter().filter_map(|seat| seat.worker.as_ref()).all(|worker| worker.table.live() == 0)
            && self.successors.is_empty()
    }

    /// Nothing more happens to anybody: every connection comes to its end, and nothing is left over.
    pub(in crate::master::model) fn settle(&mut self) {
        self.note("settling");
        self.run_all_until(|world| world.clients.is_empty(), "every client has what it waits for");
        self.run_all_until(|world| world.is_at_rest(), "nothing is left but one master and its workers");
        self.write_config(2);
        self.rest_with_two_workers();
        self.servers.close();
        // Workers find out that the servers' connections have ended, and let go of what lingers.
        for _ in 0..ROUNDS {
            if self.is_at_rest() && kinds() == self.at_rest {
                return;
            }
            self.run_masters();
            self.run_workers();
            self.servers.close();
            self.ahead += ROUND;
        }
        assert_eq!(kinds(), self.at_rest, "descriptors are left open, or were closed too often");
    }

    /// Makes the workers two, whatever is configured, and waits for rest.
    pub(super) fn rest_with_two_workers(&mut self) {
        let now = self.now();
        let master = &mut self.masters[0].master;
        master.set_workers(2, now);
        self.run_all_until(|world| world.is_at_rest(), "two workers are left");
    }

    pub fn describe(&self) -> String {
        let mut text = format!("{:?} ahead\n", self.ahead);
        for slot in &self.masters {
            let master = &slot.master;
            text += &format!(
                "master {}: {:?}, announced {}, {} homeless, {} formers, successor {}\n",
                slot.number,
                master.course,
                master.announced,
                master.homeless.len(),
                master.formers.len(),
                master.successor.is_some()
            );
            for (seat, worker) in master.seats.iter().filter_map(|seat| Some((seat, seat.worker.as_ref()?))) {
                text += &format!(
                    "  worker {} (wanted {}): {:?}, {} live, {} queued, {} passed, {} taken, {} finished\n",
                    seat.index,
                    seat.wanted,
                    worker.stage,
                    worker.table.live(),
                    worker.table.queued(),
                    worker.table.passed(),
                    worker.control.stats().taken.get(),
                    worker.control.stats().finished.get(),
                );
            }
        }
        for slot in &self.workers {
            let ports: Vec<u16> = ports(slot).collect();
            text += &format!("worker {} of master {}, {:?}: {ports:?}\n", slot.index, slot.parent, slot.handle.pid());
        }
        for client in &self.clients {
            text += &format!("client: {}\n", client.describe());
        }
        LOG.with(|log| {
            let log = log.borrow();
            for (level, line) in &log[log.len().saturating_sub(400)..] {
                text += &format!("log: {level} {line}\n");
            }
        });
        text
    }
}
