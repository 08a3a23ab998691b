//! The way of connections between the master and its workers: choosing, sending, hearing that they are over. Part of the
//! master's loop; owns nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use ipc::channel::{RecvError, SendError};
use ipc::message::{GivenBack, Relaying, Task, ToMaster, ToWorker};
use ipc::origin::{Origin, OriginCell};
use ipc::state::{Image, Phase, Record};
use ipc::tcp_info;
use log::{error, info, warn};

use super::deaths::{Verdict, resume_relay};
use super::names::Resolved;
use super::protection::Protection;
use super::{Course, Master, SWEEP};
use crate::addresses::Addresses;
use crate::dispatch::Candidate;
use crate::hands::{Held, Taking};
use crate::keeper::{Connection, Relay};
use crate::lending::Lender;
use crate::pipes::{Contradiction, Leftovers};
use crate::salvage;
use crate::supervise::{Errand, Stage, Worker};
use crate::watchdog::Watch;

/// Messages heard from one worker in one turn, so that a talkative one does not hold up the rest.
pub(super) const HEARD_PER_TURN: usize = 64;

/// What a record holds before its connection is sent: nothing has been done yet.
const PASSED: Image = Image { phase: Phase::Passed, slot: None, offset: 0, consumed: 0, written: 0 };

impl Master {
    /// Looks how much each worker has and may get.
    pub(super) fn measure(&mut self, now: Instant) {
        let old: u32 = self.candidates.iter().map(|candidate| candidate.room).sum();
        self.candidates.clear();
        self.candidates.extend(self.seats.iter_mut().map(|seat| match &mut seat.worker {
            Some(worker) if worker.is_ready() => {
                worker.taking.get_or_insert_with(|| Taking::over(&worker.channel));
                let (table, stats) = (&worker.table, worker.control.stats());
                let taken = stats.taken.get();
                let behind = worker.watch.is_behind(table.passed(), taken, now);
                // What cannot be sent on is left in the kernel's queue, which outlives this process.
                let room = if behind || worker.blocked { 0 } else { table.room() };
                Candidate::new(table.passed(), table.queued(), room, taken, stats.finished.get())
            }
            Some(worker) => {
                worker.taking = None;
                Candidate::default()
            }
            None => Candidate::default(),
        }));
        self.prefer_fast();
        self.watch_closely(now);
        if old == 0 && self.has_room() {
            self.retry.reset();
        }
    }

    /// Gives a connection to a worker with room; without one it waits among the homeless.
    pub(super) fn give(&mut self, mut connection: Connection) {
        connection.keep = self.protection.keeps(&connection);
        let worker = self.chooser.choose(&mut self.candidates).and_then(|seat| self.seats[seat].worker.as_mut());
        let Some(worker) = worker else { return self.homeless.push_back(connection) };
        connection.release();
        if connection.is_like_new() {
            connection.fd.alone(connection.listener);
        }
        let (awaited, kept) = (connection.origin == Origin::Awaited, connection.keep);
        match worker.table.enqueue(connection) {
            Ok(id) => {
                self.protection.total += u64::from(!kept);
                if awaited && let Some(cell) = worker.control.origin(id) {
                    cell.clear();
                }
                if let Some(record) = worker.control.record(id) {
                    record.publish(&PASSED);
                }
            }
            Err(connection) => self.homeless.push_back(connection),
        }
    }

    /// Finds new workers for connections that lost theirs.
    pub(super) fn rehome(&mut self) {
        for _ in 0..self.homeless.len() {
            if !self.has_room() {
                return;
            }
            if let Some(connection) = self.homeless.pop_front() {
                self.give(connection);
            }
        }
    }

    /// Sends what a full channel had no room for, so that it is known who can be given more.
    pub(super) fn send_left(&mut self, now: Instant) {
        for seat in &mut self.seats {
            if let Some(worker) = seat.worker.as_mut().filter(|worker| worker.blocked) {
                worker.blocked = !send_all(worker, seat.index, self.batch, now);
            }
        }
    }

    /// Sends the connections that have just been accepted. A worker whose channel is full gets no more of them.
    pub(super) fn send_accepted(&mut self, now: Instant) {
        for (seat, candidate) in self.seats.iter_mut().zip(&mut self.candidates) {
            let Some(worker) = seat.worker.as_mut().filter(|worker| worker.table.queued() > 0) else { continue };
            worker.blocked = !send_all(worker, seat.index, self.batch, now);
            if worker.blocked {
                candidate.room = 0;
            }
        }
    }

    /// Sends every worker what is queued for it, and sees to it that whatever could not be done is tried again.
    pub(super) fn send(&mut self, now: Instant) {
        let mut stuck = false;
        let mut carrying = false;
        for seat in &mut self.seats {
            let Some(worker) = seat.worker.as_mut() else { continue };
            worker.blocked = !send_all(worker, seat.index, self.batch, now);
            stuck |= worker.blocked;
            carrying |= worker.table.is_carrying();
        }
        // Room appears without an event when a worker takes connections up; its counters must be asked.
        let waiting = !self.homeless.is_empty() || self.sockets.iter().any(|socket| socket.ready);
        let under_way = || {
            let ready = self.seats.iter().filter_map(|seat| seat.worker.as_ref()).filter(|worker| worker.is_ready());
            ready.into_iter().any(|worker| worker.table.passed() > worker.control.stats().taken.get())
        };
        self.retry_at = (stuck || waiting && !self.has_room() && under_way()).then(|| now + self.retry.next());
        if carrying {
            self.sweep_at.get_or_insert(now + SWEEP);
        }
    }

    /// Drops copies of carried requests that workers have taken up.
    pub(super) fn sweep(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        self.sweep_at = None;
        for worker in self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut()) {
            let control = &worker.control;
            let image = |id| control.record(id).and_then(Record::read);
            worker.table.forget_carried(|id| image(id).is_some_and(|image| image.phase != Phase::Passed));
        }
    }

    /// Receives what workers have to say.
    pub(super) fn hear_workers(&mut self, now: Instant) {
        let mut resolved = Resolved::new();
        let holding = self.is_holding();
        let lends = self.course == Course::HandingOver;
        for seat in &mut self.seats {
            let heard = |worker: &&mut Worker| worker.readable && !(holding && worker.is_draining());
            let Some(worker) = seat.worker.as_mut().filter(heard) else { continue };
            let before = worker.table.live();
            let mut returned = Vec::new();
            let (addresses, protection) = (&mut self.addresses, &mut self.protection);
            let mut ear = Ear { addresses, protection, resolved: &mut resolved, now, lends };
            ear.hear(worker, seat.index, &mut returned, HEARD_PER_TURN);
            self.homeless.extend(returned);
            if worker.table.live() < before {
                self.gate.freed();
            }
        }
        self.learn(resolved, now);
        // Also when the one that was waited for is not wanted any more.
        self.announce();
        if self.reload.pending.is_some() {
            self.check_acknowledged();
        }
    }
}

/// Sends a worker all that is for it; `false` when its channel had no room.
fn send_all(worker: &mut Worker, index: u16, batch: usize, now: Instant) -> bool {
    if matches!(worker.stage, Stage::Starting { .. } | Stage::Dying { .. }) {
        return true;
    }
    let sent = send_errands(worker, false)
        .and_then(|()| {
            while worker.table.queued() > 0 {
                let (connections, fds) = worker.table.next_batch(batch);
                let count = connections.len();
                let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
                fds.iter().for_each(|fd| fd.sending(&worker.channel));
                worker.channel.send(&ToWorker::Pass(connections), &borrowed)?;
                fds.iter().for_each(|fd| fd.sent());
                worker.table.mark_passed(count);
            }
            Ok(())
        })
        .and_then(|()| send_errands(worker, true));
    match sent {
        Ok(()) => true,
        Err(SendError::Full) => false,
        // Its end shows at the pidfd.
        Err(SendError::Closed) => {
            worker.hung_up(now);
            true
        }
        Err(failed @ (SendError::TooLarge | SendError::Io(_))) => {
            error!("worker {index}: cannot send it connections: {failed}; killing it");
            worker.kill(now);
            true
        }
    }
}

fn send_errands(worker: &mut Worker, after_connections: bool) -> Result<(), SendError> {
    while let Some(at) = worker.errands.iter().position(|errand| errand.after_connections == after_connections) {
        let errand = &worker.errands[at];
        let fds: Vec<_> = errand.fds.iter().map(|fd| fd.as_fd()).collect();
        worker.channel.send(&errand.message, &fds)?;
        worker.errands.remove(at);
    }
    Ok(())
}

/// A connection that its worker gives back, ready to be passed on; `None` when it cannot be. `own`: its descriptors,
/// where there is no copy.
fn take_back(worker: &mut Worker, given: GivenBack, own: Vec<OwnedFd>, left: &mut Leftovers) -> Option<Verdict> {
    let relayed =
        worker.control.record(given.id).and_then(Record::read).is_some_and(|image| image.phase == Phase::Relay);
    let mut connection = match &given.own {
        Some(task) => {
            let bare = worker.table.finish_bare(given.id).or_else(|| {
                // Copies were kept of part of it: those that come now are the same.
                worker.table.get_passed(given.id).is_some_and(|kept| !kept.keep).then_some(())?;
                worker.table.finish(given.id).ok().map(Connection::bare)
            })?;
            let mut fds = own.into_iter().map(Held::from);
            let fd = fds.next()?;
            let relay = Relay::new(task, &mut fds);
            bare.with_copies(fd, relay)
        }
        None => worker.table.finish(given.id).ok()?,
    };
    if let Ok(counters) = tcp_info::counters(&connection.fd) {
        connection.base = salvage::successor_base(&counters, given.carried.len());
    }
    // A living worker that has said what the header says has also taken it.
    if let (Origin::Awaited, Some((_, ends))) =
        (connection.origin, worker.control.origin(given.id).and_then(OriginCell::read))
    {
        connection.origin = Origin::Told(ends);
    }
    connection.strikes = 0;
    connection.task = match given.own {
        Some(Task::Relay { server, reply, to_server, to_client, tunnel }) => {
            Task::Relay { server, reply, to_server, to_client, tunnel: tunnel.filter(|tunnel| tunnel.is_sound()) }
        }
        None if relayed => match resume_relay(&mut connection, given.id, left) {
            Ok(task) => task,
            Err(Contradiction) => return Some(Verdict::Cut(connection)),
        },
        Some(Task::Serve | Task::Resume(_) | Task::Fail(_) | Task::Refuse) | None if given.carried.is_empty() => {
            Task::Serve
        }
        Some(Task::Serve | Task::Resume(_) | Task::Fail(_) | Task::Refuse) | None => Task::Resume(given.carried),
    };
    Some(Verdict::Pass(connection))
}

/// What is needed to hear a worker.
pub(super) struct Ear<'a> {
    pub(super) addresses: &'a mut Addresses,
    pub(super) protection: &'a mut Protection,
    pub(super) resolved: &'a mut Resolved,
    pub(super) now: Instant,
    /// Workers keep what they give back until it is passed on. Not where one of them may have to end first, so that another
    /// has room for it; nor where the connection's number could be given to another meanwhile.
    pub(super) lends: bool,
}

impl Ear<'_> {
    /// Keeps copies of what belongs to relays that begin, where there is room for all of it.
    fn keep_relays(&mut self, worker: &mut Worker, relays: Vec<Relaying>, mut fds: impl Iterator<Item = Held>) {
        let mut unkept = Vec::new();
        for relaying in relays {
            let id = relaying.id;
            let Some(relay) = Relay::begun(relaying, &mut fds) else { break };
            if !relay.descriptors().all(|fd| self.protection.keeps_other(fd)) {
                if worker.table.unprotect(id) {
                    self.protection.total += 1;
                    unkept.push(id);
                }
            } else if let Some(connection) = worker.table.get_passed(id) {
                connection.relay = Some(relay);
            }
        }
        if !unkept.is_empty() {
            let message = ToWorker::Unkept { ids: unkept };
            worker.errands.push(Errand { message, fds: Vec::new(), after_connections: false });
        }
    }

    /// Receives up to `most` messages. Connections given back are appended to `returned`.
    pub(super) fn hear(&mut self, worker: &mut Worker, index: u16, returned: &mut Vec<Connection>, most: usize) {
        let now = self.now;
        let mut fds = Vec::new();
        for _ in 0..most {
            match worker.channel.recv::<ToMaster>(&mut fds) {
                Ok(ToMaster::Ready) => {
                    if matches!(worker.stage, Stage::Starting { .. }) {
                        worker.stage = Stage::Ready;
                        worker.ready_since = Some(now);
                        worker.watch = Watch::new(now);
                        info!("worker {index} (pid {}) ready", worker.pid);
                    }
                }
                Ok(ToMaster::Reloaded { generation }) => worker.generation = generation,
                Ok(ToMaster::Finished(ids)) => {
                    let mut unknown = 0;
                    for id in ids {
                        let bare = worker.table.finish_bare(id).map(|bare| bare.counted());
                        match bare.or_else(|| worker.table.finish(id).ok().map(|connection| connection.counted())) {
                            Some(counted) => self.addresses.leave(counted),
                            None => unknown += 1,
                        }
                    }
                    if unknown > 0 {
                        warn!("worker {index} reported {unknown} connections finished that it does not have; ignored");
                    }
                }
                Ok(ToMaster::GaveBack(given)) => {
                    let brings = !fds.is_empty();
                    let mut own = fds.drain(..);
                    let mut left = worker.pipes.leftovers(&worker.control);
                    for one in given {
                        let count = one.own.as_ref().map_or(0, Task::descriptors);
                        let lender = Lender::new(Rc::clone(&worker.control), one.id);
                        let verdict = take_back(worker, one, own.by_ref().take(count).collect(), &mut left);
                        let lender = if self.lends {
                            Some(lender)
                        } else {
                            lender.release();
                            None
                        };
                        match verdict {
                            Some(Verdict::Pass(connection)) => {
                                // Right behind the word that the worker has it no more.
                                if lender.is_none() && connection.is_like_new() {
                                    connection.fd.alone(connection.listener);
                                }
                                returned.push(Connection { lender, ..connection });
                            }
                            Some(Verdict::Cut(mut connection) | Verdict::Over(mut connection)) => {
                                connection.lender = lender;
                                connection.release();
                                self.addresses.leave(connection.counted());
                            }
                            None => warn!("worker {index} gave back a connection that it does not have; ignored"),
                        }
                    }
                    worker.pipes.put_back(left);
                    // Descriptors are short, or none would come: these find workers first.
                    if brings {
                        break;
                    }
                }
                Ok(ToMaster::Relaying(relays)) => self.keep_relays(worker, relays, fds.drain(..).map(Held::from)),
                Ok(ToMaster::Resolved(standing)) => self.resolved.push(standing),
                Ok(ToMaster::Pipe { number }) => match fds.pop() {
                    Some(end) if self.protection.keeps_other(&end) => worker.pipes.put(number, Held::from(end)),
                    Some(_) | None => worker.pipes.forget(number),
                },
                Err(lost @ RecvError::DescriptorsLost) => {
                    warn!("worker {index}: {lost}; some relays will not outlive it; raise the limit with `ulimit -n`");
                    worker.pipes.lose();
                }
                Err(RecvError::Empty) => {
                    worker.readable = false;
                    break;
                }
                Err(RecvError::Closed) => {
                    worker.hung_up(now);
                    break;
                }
                Err(failed @ (RecvError::Malformed(_) | RecvError::Io(_))) => {
                    warn!("worker {index} (pid {}): {failed}; killing it", worker.pid);
                    worker.readable = false;
                    worker.kill(now);
                    break;
                }
            }
        }
    }
}
