//! How masters and workers begin, take their turns, and end; and which connections may be lost when they do.

use std::collections::HashSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;

use ipc::fault::{self, Killed};
use mio::Events;

use super::open::waiting;
use super::{Life, MasterSlot, WorkerSlot, World};
use crate::config::{Names, Options};
use crate::control::beside::Sockets;
use crate::master::model::processes::{Handle, KILLED, Role, Spawner};
use crate::master::{Before, Course, Heritage, Master};
use crate::process::End;
use crate::reload::Recipe;
use crate::takeover::{self, Former};
use crate::upgrade::Program;

/// Runs `step`, killed at the instant that comes after `fault` others; `None` when it was killed.
pub(super) fn mortal<T>(fault: Option<u64>, step: impl FnOnce() -> T) -> Option<T> {
    fault::kill_after(fault);
    let result = catch_unwind(AssertUnwindSafe(step));
    fault::kill_after(None);
    match result {
        Ok(result) => Some(result),
        Err(panic) if panic.is::<Killed>() => None,
        Err(panic) => resume_unwind(panic),
    }
}

/// One turn of a worker, or its start. How it ended, if it did.
pub(super) fn turn(slot: &mut WorkerSlot, ahead: Duration, fault: Option<u64>) -> Option<End> {
    if slot.handle.is_killed() {
        return Some(KILLED);
    }
    let index = slot.index;
    let life = &mut slot.life;
    let lived = mortal(fault, || match life {
        Life::Newborn(channel) => {
            let channel = rustix::io::fcntl_dupfd_cloexec(&*channel, 3).unwrap();
            match workers::begin(channel, index) {
                Ok(worker) => {
                    *life = Life::Running(Box::new(worker));
                    None
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => Some(End::Exited(0)),
                Err(error) => panic!("worker {index} does not begin: {error}"),
            }
        }
        Life::Running(worker) => {
            let mut events = Events::with_capacity(64);
            worker.set_clock_ahead(u64::try_from(ahead.as_micros()).unwrap());
            worker.wait(&mut events, Some(Duration::ZERO)).unwrap();
            worker.turn(&events).unwrap().map(|_| End::Exited(0))
        }
    });
    lived.unwrap_or(Some(KILLED))
}

impl World {
    /// The master that accepts, if there is one.
    pub(super) fn running(&self) -> Option<usize> {
        self.masters.iter().rposition(|slot| slot.master.course == Course::Running)
    }

    pub(super) fn recipe(&self) -> Recipe {
        Recipe { file: Some(self.dir.join("pointsman.toml")), options: Options::default(), demo: false }
    }

    /// Starts a master: the successor of one that `channel` leads to, or one that follows those that were killed.
    /// It may be killed meanwhile. False when none has come up.
    pub(super) fn begin_master(
        &mut self,
        former: Option<OwnedFd>,
        handle: Option<Rc<Handle>>,
        fault: Option<u64>,
    ) -> bool {
        let number = self.masters_started;
        self.masters_started += 1;
        let recipe = self.recipe();
        let mut names = Names::default();
        let loaded = recipe.gather(&mut names).unwrap_or_else(|report| panic!("{}", report.render(false)));
        let spawn = Box::new(Spawner { parent: number, cradle: Rc::clone(&self.cradle) });
        let (control, dir) = (self.control(), self.dir.clone());
        let (workers, ahead) = (&mut self.workers, self.ahead);
        let mut turns: Vec<(usize, Vec<u16>, Option<End>)> = Vec::new();
        let started = mortal(fault, || {
            let doors = Sockets::of(&control);
            let formers = match former {
                Some(channel) => vec![Former::master(channel)?.with_workers_behind(Some(&doors))],
                None => takeover::orphans_in(
                    &dir,
                    &loaded.snapshot,
                    Some(&doors),
                    |_| false,
                    |_, _| {
                        for (at, slot) in workers.iter_mut().enumerate() {
                            if turns.iter().all(|(other, _, end)| *other != at || end.is_none()) {
                                let before: Vec<u16> = ports(slot).collect();
                                turns.push((at, before, turn(slot, ahead, None)));
                            }
                        }
                        Ok(())
                    },
                )?,
            };
            let mut before = Before {
                program: Program::present(),
                formers,
                doors: Some(doors),
                lent: Vec::new(),
                spawn,
                heritage: Heritage::default(),
            };
            Master::start(loaded, recipe, names, None, None, &mut before)
        });
        turns.sort_by_key(|(at, _, end)| (end.is_some(), std::cmp::Reverse(*at)));
        for (at, before, end) in turns {
            self.after_turn(at, &before, end);
        }
        match started {
            None => {
                self.note(format!("master {number} killed at its start"));
                false
            }
            Some(Err(why)) => {
                self.note(format!("master {number} does not come up: {why}"));
                if let Some(handle) = handle {
                    handle.die(End::Exited(1));
                }
                false
            }
            Some(Ok(master)) => {
                self.note(format!("master {number} started"));
                self.masters.push(MasterSlot { number, master, handle });
                true
            }
        }
    }

    pub(in crate::master::model) fn start_master(&mut self, fault: Option<u64>) -> bool {
        self.begin_master(None, None, fault)
    }

    pub(in crate::master::model) fn start_successor(&mut self, fault: Option<u64>) {
        let newborn = self.successors.remove(0);
        let Role::Successor { channel } = newborn.role else { panic!("a worker is no successor") };
        if newborn.handle.is_killed() {
            return newborn.handle.die(KILLED);
        }
        if !self.begin_master(Some(channel), Some(Rc::clone(&newborn.handle)), fault) && !newborn.handle.has_ended() {
            newborn.handle.die(KILLED);
        }
    }

    /// One turn of a master.
    pub(in crate::master::model) fn run_master(&mut self, at: usize, fault: Option<u64>) {
        let now = self.now();
        let slot = &mut self.masters[at];
        if slot.handle.as_ref().is_some_and(|handle| handle.is_killed()) {
            return self.bury_master(at, true);
        }
        let before = slot.master.course;
        let lived = mortal(fault, || {
            slot.master.fill_seats(now);
            if slot.master.is_over() {
                return true;
            }
            let mut events = Events::with_capacity(256);
            slot.master.wait(&mut events, Some(Duration::ZERO)).unwrap();
            let _ = slot.master.turn(&events, now);
            false
        });
        self.take_newborn();
        match lived {
            Some(false) if before != Course::Stopping && self.masters[at].master.course == Course::Stopping => {
                self.excuse_the_lost("in the hands of a master whose successor was killed");
            }
            Some(false) => {}
            Some(true) => self.bury_master(at, false),
            None => self.bury_master(at, true),
        }
    }

    /// One turn of every master.
    pub(in crate::master::model) fn run_masters(&mut self) {
        for at in (0..self.masters.len()).rev() {
            self.run_master(at, None);
        }
    }

    /// One turn of every worker.
    pub(in crate::master::model) fn run_workers(&mut self) {
        for at in (0..self.workers.len()).rev() {
            self.run_worker(at, None);
        }
    }

    /// One turn of everything that is the proxy's.
    pub(in crate::master::model) fn run_all_but_clients(&mut self) {
        self.run_masters();
        self.run_workers();
        self.check();
    }

    /// One turn of a master and of its own workers, but of no others'.
    pub(in crate::master::model) fn run_own_of(&mut self, at: usize) {
        let number = self.masters[at].number;
        self.run_master(at, None);
        for at in (0..self.workers.len()).rev() {
            if self.workers[at].parent == number {
                self.run_worker(at, None);
            }
        }
        self.check();
    }

    /// Runs the one master and all workers but the one with this `index` that the master with this `number` had, which has
    /// been killed, until nothing is left of that master's but this worker.
    pub(in crate::master::model) fn run_while_one_is_stopped(&mut self, number: usize, index: u16) {
        for _ in 0..200 {
            let master = &self.masters[0].master;
            let left = self.workers.iter().filter(|slot| slot.parent == number).count();
            if master.announced && left == 1 && !master.formers.iter().any(Former::is_met) {
                return;
            }
            self.servers.act_all();
            self.run_master(0, None);
            for at in (0..self.workers.len()).rev() {
                let slot = &self.workers[at];
                if (slot.parent, slot.index) != (number, index) {
                    self.run_worker(at, None);
                }
            }
        }
        panic!("nothing comes of the worker that is not stopped");
    }

    /// Kills every master that there is, one after the other.
    pub(in crate::master::model) fn kill_masters(&mut self) {
        while !self.masters.is_empty() {
            self.bury_master(0, true);
        }
    }

    /// Workers that run or are about to.
    pub(in crate::master::model) fn workers(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn take_newborn(&mut self) {
        for newborn in self.cradle.take() {
            match newborn.role {
                Role::Worker { index, channel } => self.workers.push(WorkerSlot {
                    parent: newborn.parent,
                    index,
                    handle: newborn.handle,
                    life: Life::Newborn(channel),
                }),
                Role::Successor { .. } => self.successors.push(newborn),
            }
        }
    }

    /// A master has ended: by itself, or killed.
    pub(in crate::master::model) fn bury_master(&mut self, at: usize, killed: bool) {
        let MasterSlot { number, mut master, handle } = self.masters.remove(at);
        self.note(format!("master {number} {}", if killed { "killed" } else { "ended" }));
        if killed {
            for socket in &mut master.sockets {
                socket.keep_file();
            }
            if let Some(control) = master.control.take() {
                control.leave();
            }
        }
        drop(master);
        if let Some(handle) = handle {
            handle.die(if killed { KILLED } else { End::Exited(0) });
        }
        if killed {
            self.excuse_the_lost("in the hands of a master that was killed");
        }
    }

    // --- workers

    pub(in crate::master::model) fn run_worker(&mut self, at: usize, fault: Option<u64>) {
        let before: Vec<u16> = ports(&self.workers[at]).collect();
        let end = turn(&mut self.workers[at], self.ahead, fault);
        self.after_turn(at, &before, end);
    }

    pub(super) fn after_turn(&mut self, at: usize, before: &[u16], end: Option<End>) {
        if let Life::Running(worker) = &self.workers[at].life
            && worker.is_forsaken()
        {
            let mut had = before.to_vec();
            had.extend(ports(&self.workers[at]));
            self.excuse(&had, "its worker finishes without a master");
            // It keeps no listening sockets any more, and may have been the last that did.
            self.excuse_the_lost("its worker finishes without a master");
        }
        if let Some(end) = end {
            self.bury_worker(at, end);
        }
    }

    /// A worker has ended: what it had open is closed, and then its master learns of it.
    pub(super) fn bury_worker(&mut self, at: usize, end: End) {
        let slot = self.workers.remove(at);
        self.note(format!("worker {} of master {}: {end:?}", slot.index, slot.parent));
        let mut had: Vec<u16> = ports(&slot).chain(unsent(&slot)).collect();
        let parent = self.masters.iter().find(|master| master.number == slot.parent);
        let seats = parent.into_iter().flat_map(|parent| &parent.master.seats);
        let known = seats.filter_map(|seat| seat.worker.as_ref()).find(|worker| worker.pid == slot.handle.pid());
        // A master whose successor was killed may be there still, and have let go of its workers.
        let orphan = known.is_none();
        if let Some(worker) = known {
            had.extend(worker.table.entries().filter_map(|entry| Some(entry.2.peer?.port())));
        }
        if end == KILLED && orphan {
            self.excuse(&had, "its worker died without a master");
        } else if end == KILLED {
            for client in self.clients.iter_mut().filter(|client| had.contains(&client.port)) {
                client.on_death();
            }
        }
        drop(slot.life);
        slot.handle.die(end);
        // It may have been the last that kept the listening sockets, too. What a living master has been sent comes to it.
        if self.running().is_none() {
            self.excuse_the_lost("on the way from a worker that ended without a master");
        }
    }

    pub(super) fn excuse(&mut self, ports: &[u16], why: &'static str) {
        for client in self.clients.iter_mut().filter(|client| ports.contains(&client.port)) {
            client.excuse(why);
        }
    }

    /// Excuses connections that nobody has who lives.
    pub(super) fn excuse_the_lost(&mut self, why: &'static str) {
        for slot in &mut self.workers {
            if let Life::Running(worker) = &mut slot.life {
                worker.hear_taken();
            }
        }
        let held = |slot| ports(slot).chain(unsent(slot)).chain(untaken(slot));
        let mut owned: HashSet<u16> = self.workers.iter().flat_map(held).collect();
        owned.extend(waiting());
        for slot in &self.masters {
            let tables = slot.master.seats.iter().filter_map(|seat| seat.worker.as_ref());
            let connections =
                tables.flat_map(|worker| worker.table.entries().map(|entry| entry.2)).chain(&slot.master.homeless);
            owned.extend(connections.filter_map(|connection| Some(connection.peer?.port())));
        }
        for client in &mut self.clients {
            if !owned.contains(&client.port) {
                client.excuse(why);
            }
        }
    }
}

/// The ports of the clients that a worker has.
pub(super) fn ports(slot: &WorkerSlot) -> impl Iterator<Item = u16> {
    let ports: Vec<u16> = match &slot.life {
        Life::Newborn(_) => Vec::new(),
        Life::Running(worker) => worker.connections().filter_map(|(_, fd)| port(fd)).collect(),
    };
    ports.into_iter()
}

/// The ports of the clients that a worker is about to give to another master.
fn unsent(slot: &WorkerSlot) -> impl Iterator<Item = u16> {
    let ports: Vec<u16> = match &slot.life {
        Life::Newborn(_) => Vec::new(),
        Life::Running(worker) => worker.on_their_way().filter_map(port).collect(),
    };
    ports.into_iter()
}

/// The ports of the clients that a worker has sent to another master, and keeps as long as that has not taken them.
fn untaken(slot: &WorkerSlot) -> impl Iterator<Item = u16> {
    let ports: Vec<u16> = match &slot.life {
        Life::Newborn(_) => Vec::new(),
        Life::Running(worker) => worker.untaken().filter_map(port).collect(),
    };
    ports.into_iter()
}

fn port(fd: BorrowedFd<'_>) -> Option<u16> {
    let peer: std::net::SocketAddr = rustix::net::getpeername(fd).ok()??.try_into().ok()?;
    Some(peer.port())
}
