//! Putting another configuration into force, and telling those who asked for it. Part of the master's loop; owns
//! nothing.
//!
//! Everything that can fail comes first: sockets are bound, the access log is opened, the workers' snapshot is made.
//! From then on the new configuration holds as a whole; before, nothing of it does.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use ipc::control::{Answer, Reloaded, Request, STATUS_LISTENERS, Status, Who, WorkerStatus, bounded};
use ipc::message::{Layout, ToWorker};
use ipc::snapshot::{Address, Mode, Snapshot};
use log::{error, info, warn};
use mio::{Interest, Token};

use super::opening::open_access_log;
use super::{Course, LISTENERS, MAX_SLOTS, Master, unwatch, watch};
use crate::addresses::Addresses;
use crate::config::{Loaded, ProcessSettings};
use crate::control::{Asker, ClientId, ask};
use crate::dispatch::Chooser;
use crate::listen::{self, Socket};
use crate::notify;
use crate::privilege::{self, Identity};
use crate::reload::plan::{Change, Left, Plan, plan};
use crate::reload::{ACKNOWLEDGE, Pending, Refusal};
use crate::supervise::{Errand, Stage, Worker};

/// All that a new configuration needs and may not get.
struct Ready {
    plan: Plan,
    bound: Vec<Socket>,
    access_log: Option<Rc<OwnedFd>>,
    sealed: Rc<OwnedFd>,
    identity: Identity,
}

impl Master {
    /// Begins to read the configuration again.
    pub(super) fn ask_reload(&mut self, who: Option<Asker>) {
        if let Some(text) = self.leaving() {
            warn!("configuration not reloaded: {text}");
            return self.tell(who, &Answer::Busy { text });
        }
        if !std::mem::replace(&mut self.reloading, true) {
            notify::tell(notify::State::Reloading);
        }
        if let Err(failed) = self.reload.ask(who) {
            let text = format!("cannot read the configuration: {failed}");
            error!("configuration not reloaded: {text}");
            self.tell(who, &Answer::Busy { text });
        }
    }

    /// Does what is to be done when a reading of the configuration is over.
    pub(super) fn take_reading(&mut self, now: Instant) {
        while let Some(outcome) = self.reload.take_outcome() {
            let applied = match (outcome.loaded, self.leaving()) {
                (Ok(_), Some(text)) => Err(Refusal::Text(text)),
                (Ok(loaded), None) => self.apply(loaded, now),
                (Err(refusal), _) => Err(refusal),
            };
            match applied {
                Ok(reloaded) => {
                    let mut asked = outcome.asked;
                    // Whoever waits for the one before hears of this one: it stands above it.
                    asked.extend(self.reload.pending.take().into_iter().flat_map(|pending| pending.asked));
                    self.reload.pending = Some(Pending { reloaded, deadline: now + ACKNOWLEDGE, asked });
                    self.check_acknowledged();
                }
                Err(refusal) => {
                    for line in refusal.lines() {
                        error!("configuration not reloaded: {line}");
                    }
                    for asker in outcome.asked {
                        self.tell(Some(asker), &Answer::Refused { text: bounded(refusal.render(asker.color)) });
                    }
                }
            }
        }
    }

    /// Tells those who wait when every worker goes by the configuration in force.
    pub(super) fn check_acknowledged(&mut self) {
        let generation = self.config.snapshot.generation;
        let lags = |worker: &Worker| {
            matches!(worker.stage, Stage::Starting { .. } | Stage::Ready) && worker.generation < generation
        };
        if self.seats.iter().filter_map(|seat| seat.worker.as_ref()).any(lags) {
            return;
        }
        if let Some(pending) = self.reload.pending.take() {
            let reloaded = self.count_workers(pending.reloaded);
            info!("{}; {}", ask::summary(&reloaded), ask::acknowledged(reloaded.workers));
            for asker in pending.asked {
                self.tell(Some(asker), &Answer::Reloaded(reloaded.clone()));
            }
        }
    }

    /// Says so when workers do not take the new configuration in time.
    pub(super) fn check_stuck(&mut self, now: Instant) {
        let Some(pending) = self.reload.pending.take_if(|pending| pending.deadline <= now) else { return };
        let generation = self.config.snapshot.generation;
        let workers: Vec<Who> = self
            .seats
            .iter()
            .filter_map(|seat| seat.worker.as_ref().map(|worker| (seat.index, worker)))
            .filter(|(_, worker)| matches!(worker.stage, Stage::Starting { .. } | Stage::Ready))
            .filter(|(_, worker)| worker.generation < generation)
            .map(|(index, worker)| Who { index, pid: worker.pid.as_raw_nonzero().get() })
            .collect();
        let reloaded = self.count_workers(pending.reloaded);
        warn!("{}; {}", ask::summary(&reloaded), ask::stuck(&workers));
        for asker in pending.asked {
            self.tell(Some(asker), &Answer::Stuck { reloaded: reloaded.clone(), workers: workers.clone() });
        }
    }

    fn count_workers(&self, reloaded: Reloaded) -> Reloaded {
        let generation = self.config.snapshot.generation;
        let workers = self.seats.iter().filter(|seat| seat.wanted).filter_map(|seat| seat.worker.as_ref());
        let count = workers.filter(|worker| worker.generation == generation).count();
        Reloaded { workers: u32::try_from(count).unwrap_or(u32::MAX), ..reloaded }
    }

    fn tell(&mut self, who: Option<Asker>, answer: &Answer) {
        if let (Some(Asker { client, .. }), Some(control)) = (who, &mut self.control) {
            control.answer(client, answer);
        }
    }

    /// Hears what the client in `slot` of the control socket wants.
    pub(super) fn hear_client(&mut self, slot: usize, now: Instant) {
        let Some((client, request)) = self.control.as_mut().and_then(|control| control.hear(slot)) else { return };
        match request {
            Request::Reload { color } => self.ask_reload(Some(Asker { client, color })),
            Request::Status => self.tell_status(client, now),
            Request::Upgrade => self.upgrade(Some(client)),
            Request::TakeOver => {
                let text = "this master lives; `master upgrade` replaces it".to_owned();
                self.tell(Some(Asker { client, color: false }), &Answer::Busy { text });
            }
        }
    }

    fn tell_status(&mut self, client: ClientId, now: Instant) {
        let worker = |index: u16, worker: &Worker| WorkerStatus {
            who: Who { index, pid: worker.pid.as_raw_nonzero().get() },
            stage: worker.stage.name().to_owned(),
            generation: worker.generation,
            connections: worker.table.live(),
            requests: worker.control.stats().requests.get(),
            active_requests: worker.control.stats().active_requests.get(),
        };
        let sockets = self.sockets.iter().filter(|socket| socket.leaving.is_none());
        let (names, names_in_all) = self.names_status(now);
        let status = Status {
            generation: self.config.snapshot.generation,
            accepting: self.course == Course::Running,
            listeners: sockets.take(STATUS_LISTENERS).map(|socket| socket.address.to_string()).collect(),
            workers: self
                .seats
                .iter()
                .filter_map(|seat| seat.worker.as_ref().map(|one| worker(seat.index, one)))
                .collect(),
            unprotected: self.count_unprotected(),
            names,
            names_in_all,
        };
        if let Some(control) = &mut self.control {
            control.answer(client, &Answer::Status(status));
        }
    }

    /// Puts a configuration into force, or changes nothing.
    fn apply(&mut self, loaded: Loaded, now: Instant) -> Result<Reloaded, Refusal> {
        for line in loaded.warnings.lines() {
            warn!("configuration: {line}");
        }
        let Loaded { snapshot, process, warnings } = loaded;
        let ready = self.prepare(snapshot, &process).map_err(Refusal::Text)?;
        let mut notes = warnings.render(false);
        for note in self.later(&ready.plan.snapshot, &process, ready.identity) {
            warn!("configuration: {note}");
            notes.push_str(&format!("note: {note}\n"));
        }
        let old = std::mem::replace(&mut self.config.snapshot, ready.plan.snapshot);
        self.config.process = process;
        self.config.warnings = warnings;
        self.reload.next_number = ready.plan.next_number;
        (self.access_log, self.sealed, self.identity) = (ready.access_log, ready.sealed, ready.identity);
        self.change_sockets(&ready.plan.changes, ready.bound, now);
        self.change_bounds(&old);
        self.resolver_files.doubt();
        self.forget_lookups();
        self.remember_names();
        self.hand_out();
        self.set_workers(self.config.snapshot.workers, now);
        self.keep_for_orphans();
        let snapshot = &self.config.snapshot;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Reloaded {
            generation: snapshot.generation,
            listeners: count(snapshot.listeners.iter().filter(|listener| !listener.removed).count()),
            groups: count(snapshot.groups.iter().filter(|group| !group.removed).count()),
            workers: 0,
            notes: bounded(notes),
        })
    }

    /// All that can fail.
    fn prepare(&mut self, snapshot: Snapshot, process: &ProcessSettings) -> Result<Ready, String> {
        let identity = Identity::new(process)?;
        let connected = self.connected_listeners();
        let left = |id| {
            let socket = self.sockets.iter().find(|socket| socket.id == id);
            let connected = connected.get(usize::from(id)).copied().unwrap_or(false);
            let can_stay = socket.is_some_and(Socket::can_stay);
            // Who is accepted there from now on is as good as connected.
            Left { socket: can_stay, connections: connected || socket.is_some() && !can_stay }
        };
        let mut plan = plan(&self.config.snapshot, snapshot, left, self.reload.next_number)?;
        let closing = |socket: &&Socket| plan.changes.contains(&Change::Close(socket.id));
        let leaving: Vec<&Socket> = self.sockets.iter().filter(closing).collect();
        let mut bound = Vec::new();
        for change in &plan.changes {
            if let Change::Bind(id) = *change {
                let listener = &plan.snapshot.listeners[usize::from(id)];
                let socket = listen::bind_beside(id, listener, permissions(process, &listener.bind), &leaving)?;
                // Dropping the socket takes it out again.
                watch(&self.poll, socket.as_fd(), Token(LISTENERS + usize::from(id)), Interest::READABLE)
                    .map_err(|failed| format!("cannot watch {}: {failed}", socket.address))?;
                bound.push(socket);
            }
        }
        // Those about to be closed, too: they listen for a while yet.
        plan.snapshot.listening = listen::addresses(self.sockets.iter().chain(&bound));
        let target = &plan.snapshot.access_log.to;
        let access_log = if *target == self.config.snapshot.access_log.to {
            self.access_log.clone()
        } else {
            open_access_log(target)?
        };
        let sealed = ipc::sealed::write(&plan.snapshot)
            .map_err(|failed| format!("cannot make the workers' configuration: {failed}"))?;
        Ok(Ready { plan, bound, access_log, sealed: Rc::new(sealed), identity })
    }

    /// By listener: whether connections accepted there are left.
    fn connected_listeners(&self) -> Vec<bool> {
        let mut connected = vec![false; self.config.snapshot.listeners.len()];
        let tables = self.seats.iter().filter_map(|seat| seat.worker.as_ref()).flat_map(|one| one.table.connections());
        let homeless = self.homeless.iter().map(|connection| (connection.listener, connection.counted()));
        for (listener, _) in tables.chain(homeless) {
            if let Some(connected) = connected.get_mut(usize::from(listener)) {
                *connected = true;
            }
        }
        connected
    }

    /// What of the new configuration is not in force at once.
    fn later(&self, new: &Snapshot, process: &ProcessSettings, identity: Identity) -> Vec<String> {
        let workers = || self.seats.iter().filter_map(|seat| seat.worker.as_ref());
        let mut wanting = Vec::new();
        let least = workers().map(|worker| worker.layout.slot_bytes).min().unwrap_or(u32::MAX);
        if least < new.slot_bytes() {
            wanting.push("`limits.head`");
        }
        let (new_room, _) = room(self.nofile, new, self.sockets.len());
        let records = workers().map(|worker| worker.layout.records).min().unwrap_or(u32::MAX);
        if new.limits.connections != self.config.snapshot.limits.connections && records < new_room.records {
            wanting.push("`limits.connections`");
        }
        if identity != self.identity {
            wanting.push("`user` and `group`");
        }
        let mut notes = Vec::new();
        if !wanting.is_empty() {
            notes.push(format!(
                "{} can only change with the process: the workers are replaced one by one, which takes connections \
                 along; until then the former value holds in each",
                wanting.join(" and ")
            ));
        }
        if process.control != self.config.process.control {
            notes.push("`control` holds from the master's next start on".to_owned());
        }
        notes
    }

    fn change_sockets(&mut self, changes: &[Change], bound: Vec<Socket>, now: Instant) {
        for socket in &bound {
            info!("listening on {} ({})", socket.address, mode_name(socket.mode));
        }
        // A number may pass from one socket to another, so all are looked for among the former ones.
        let mut former = std::mem::replace(&mut self.sockets, bound);
        for change in changes {
            let (from, to) = match *change {
                Change::Keep(id) | Change::Close(id) => (id, id),
                Change::Turn { from, to } => (from, to),
                Change::Bind(_) => continue,
            };
            let Some(at) = former.iter().position(|socket| socket.id == from) else { continue };
            let mut socket = former.swap_remove(at);
            let listener = &self.config.snapshot.listeners[usize::from(to)];
            if listener.removed {
                if socket.leaving.is_none() {
                    info!("no longer listening on {}", socket.address);
                }
                socket.leave(now);
            } else if let Err(failed) = socket.adopt(to, listener, permissions(&self.config.process, &listener.bind)) {
                warn!("configuration: {failed}; it listens all the same");
            }
            if from != to {
                info!("listening on {} ({})", socket.address, mode_name(socket.mode));
                unwatch(&self.poll, socket.as_fd());
                let token = Token(LISTENERS + usize::from(to));
                if let Err(failed) = watch(&self.poll, socket.as_fd(), token, Interest::READABLE) {
                    error!("cannot watch {}: {failed}; nothing is accepted there", socket.address);
                }
            }
            self.sockets.push(socket);
        }
        // Those that the plan does not know are being emptied.
        self.sockets.extend(former);
        self.sockets.sort_by_key(|socket| socket.id);
    }

    /// Limits that hold in the master.
    fn change_bounds(&mut self, old: &Snapshot) {
        let new = &self.config.snapshot;
        if new.dispatch != old.dispatch {
            self.chooser = Chooser::new(new.dispatch);
        }
        if new.limits.connections_per_address != old.limits.connections_per_address {
            self.addresses = Addresses::new(new.limits.connections_per_address);
            let tables = self.seats.iter().filter_map(|seat| seat.worker.as_ref());
            let homeless = self.homeless.iter().map(|connection| (connection.listener, connection.counted()));
            for (_, counted) in tables.flat_map(|worker| worker.table.connections()).chain(homeless) {
                self.addresses.enter(counted);
            }
        }
        let (layout, batch) = room(self.nofile, new, self.sockets.len());
        (self.layout, self.batch) = (layout, batch);
        self.protection.adapt(self.nofile, new.workers);
        for worker in self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut()) {
            worker.table.set_capacity(layout.records.min(worker.layout.records));
        }
    }

    /// Gives every worker that stays the configuration in force. One that has not got the last one yet gets only
    /// this.
    pub(super) fn hand_out(&mut self) {
        let generation = self.config.snapshot.generation;
        for worker in self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut()) {
            if matches!(worker.stage, Stage::Starting { .. } | Stage::Ready) {
                worker.errands.retain(|errand| !matches!(errand.message, ToWorker::Reload { .. }));
                let fds = std::iter::once(Rc::clone(&self.sealed)).chain(self.access_log.clone()).collect();
                let message = ToWorker::Reload { generation };
                worker.errands.push(Errand { message, fds, after_connections: false });
            }
        }
    }
}

/// Permission bits of a Unix socket, where set.
pub(super) fn permissions(process: &ProcessSettings, bind: &Address) -> Option<u32> {
    match bind {
        Address::Unix(path) => process.unix_permissions.get(path).copied(),
        Address::Inet(_) => None,
    }
}

/// What is spoken, in a word.
pub(super) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Http => "http",
        Mode::Tcp => "tcp",
        Mode::Forward => "forward",
    }
}

/// What a worker that starts under `snapshot` has room for, and how many descriptors go into one message.
pub(super) fn room(nofile: u64, snapshot: &Snapshot, sockets: usize) -> (Layout, usize) {
    let relays = snapshot.listeners.iter().any(|listener| listener.mode != Mode::Http);
    let capacity = privilege::capacity(nofile, sockets, snapshot.limits.connections, relays);
    // One more than can be in use: moving a request to another slot takes two for a moment.
    let slots = (capacity.records + 1).min(MAX_SLOTS);
    (Layout { records: capacity.records, slots, slot_bytes: snapshot.slot_bytes() }, capacity.batch)
}
