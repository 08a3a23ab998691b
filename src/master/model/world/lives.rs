//! How masters and workers begin, take their turns, and end; and which connections may be lost when they do.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;

use ipc::fault::{self, Killed};
use mio::Events;

use super::open::waiting;
use super::{Life, MasterSlot, WorkerSlot, World};
use crate::config::{Names, Options};
use crate::master::model::processes::{Handle, KILLED, Role, Spawner};
use crate::master::{Before, Course, Master};
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
            let formers = match former {
                Some(channel) => vec![Former::master(channel)?.with_workers_behind(Some(&control))],
                None => takeover::orphans_in(&dir, &loaded.snapshot, Some(&control), |_, _| {
                    for (at, slot) in workers.iter_mut().enumerate() {
                        if turns.iter().all(|(other, _, end)| *other != at || end.is_none()) {
                            let before: Vec<u16> = ports(slot).collect();
                            turns.push((at, before, turn(slot, ahead, None)));
                        }
                    }
                    Ok(())
                })?,
            };
            let mut before = Before { program: Program::present(), formers, lent: Vec::new(), spawn };
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
                    forgotten: false,
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
                control.die();
            }
        }
        let succeeds = handle.is_some() && master.announced;
        let takes_over = master.announced && !master.formers.is_empty();
        if takes_over && killed {
            let masters = &self.masters;
            let orphan = |slot: &&mut WorkerSlot| masters.iter().all(|one| one.number != slot.parent);
            for slot in self.workers.iter_mut().filter(|slot| slot.parent != number).filter(orphan) {
                slot.forgotten = true;
            }
        }
        drop(master);
        if let Some(handle) = handle {
            handle.die(if killed { KILLED } else { End::Exited(0) });
        }
        if !killed {
            return;
        }
        // Nobody else takes what a former master has not yet given.
        // It may not have heard yet that it has a successor.
        let former = self.masters.iter().find(|slot| succeeds && slot.master.successor.is_some());
        if let Some(MasterSlot { master, .. }) = former {
            let tables = master.seats.iter().filter_map(|seat| seat.worker.as_ref());
            let connections =
                tables.flat_map(|worker| worker.table.entries().map(|entry| entry.2)).chain(&master.homeless);
            let ports: Vec<u16> = connections.filter_map(|connection| Some(connection.peer?.port())).collect();
            self.excuse(&ports, "not yet given to a successor that was killed");
        }
        if takes_over {
            // Those it took over from were told to give everything, and may not have noticed that nobody takes it.
            let orphans = self.workers.iter().filter(|slot| self.masters.iter().all(|one| one.number != slot.parent));
            let ports: Vec<u16> = orphans.flat_map(ports).collect();
            self.excuse(&ports, "about to be given to a master that was killed");
        }
        self.excuse_the_lost("in the hands of a master that was killed");
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
        let mut had: Vec<u16> = ports(&slot).collect();
        let parent = self.masters.iter().find(|master| master.number == slot.parent);
        let orphan = parent.is_none();
        if let Some(MasterSlot { master, .. }) = parent {
            let seats = master.seats.iter().filter_map(|seat| seat.worker.as_ref());
            let tables = seats.filter(|worker| worker.pid == slot.handle.pid()).map(|worker| &worker.table);
            had.extend(
                tables.flat_map(|table| table.entries().map(|entry| entry.2)).filter_map(|c| Some(c.peer?.port())),
            );
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
        // It may have been the last that kept the listening sockets, too.
        if orphan || self.running().is_none() {
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
        let mut owned: HashSet<u16> = self.workers.iter().flat_map(ports).collect();
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
        Life::Running(worker) => worker
            .connections()
            .filter_map(|(_, fd)| rustix::net::getpeername(fd).ok()??.try_into().ok())
            .map(|addr: std::net::SocketAddr| addr.port())
            .collect(),
    };
    ports.into_iter()
}
