//! The way of connections between the master and its workers: choosing, sending, hearing that they are over,
//! and what becomes of them when a worker dies. Part of the master's loop; owns nothing.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use ipc::channel::{RecvError, SendError};
use ipc::message::{GivenBack, Lost, MAX_LOST_BYTES, Task, ToMaster, ToWorker};
use ipc::origin::{Origin, OriginCell};
use ipc::shm;
use ipc::snapshot::Mode;
use ipc::state::{Direction, Image, Phase, Record};
use ipc::tcp_info;
use log::{debug, error, info, warn};

use super::names::Resolved;
use super::protection::Protection;
use super::{Course, Master, SWEEP};
use crate::dispatch::Candidate;
use crate::keeper::{Addresses, Connection, Relay};
use crate::lending::Lender;
use crate::pipes::{Contradiction, Leftovers};
use crate::salvage::{self, MAX_STRIKES, Remains, Salvage};
use crate::supervise::{Errand, Stage, Worker};
use crate::watchdog::Watch;

/// Messages heard from one worker in one turn, so that a talkative one does not hold up the rest.
const HEARD_PER_TURN: usize = 64;

/// What a record holds before its connection is sent: nothing has been done yet.
const PASSED: Image = Image { phase: Phase::Passed, slot: None, offset: 0, consumed: 0, written: 0 };

/// What became of a dead worker's connections.
#[derive(Debug, Default)]
struct Tally {
    passed_on: usize,
    failed: usize,
    cut: usize,
    lost: usize,
}

impl Master {
    /// Looks how much each worker has and may get.
    pub(super) fn measure(&mut self, now: Instant) {
        let old: u32 = self.candidates.iter().map(|candidate| candidate.room).sum();
        self.candidates.clear();
        self.candidates.extend(self.seats.iter_mut().map(|seat| match &mut seat.worker {
            Some(worker) if worker.is_ready() => {
                let (table, stats) = (&worker.table, worker.control.stats());
                let taken = stats.taken.get();
                let behind = worker.watch.is_behind(table.passed(), taken, now);
                // What cannot be sent on is left in the kernel's queue, which outlives this process.
                let room = if behind || worker.blocked { 0 } else { table.room() };
                Candidate::new(table.passed(), table.queued(), room, taken, stats.finished.get())
            }
            Some(_) | None => Candidate::default(),
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

    /// Takes back what a dead worker had. Reports of finished connections that it still sent come first.
    pub(super) fn take_over(&mut self, index: u16, worker: &mut Worker, now: Instant) {
        // A Ready among them comes too late. The kernel bounds what can be queued in the channel.
        worker.stage = Stage::Dying { deadline: now };
        worker.readable = true;
        let mut returned = Vec::new();
        let mut resolved = Resolved::new();
        while worker.readable {
            let (addresses, protection) = (&mut self.addresses, &mut self.protection);
            let mut ear = Ear { addresses, protection, resolved: &mut resolved, now, lends: false };
            ear.hear(worker, index, &mut returned, HEARD_PER_TURN);
        }
        self.learn(resolved, now);
        let mut tally = Tally::default();
        for connection in returned {
            self.settle(Verdict::Pass(connection), &mut tally);
        }
        for lost in worker.table.take_bare() {
            tally.lost += 1;
            self.addresses.leave(lost.counted());
        }
        self.protection.lost += tally.lost as u64;
        let mut left = worker.pipes.leftovers(&worker.control);
        let mut claims = Claims::default();
        let mut verdicts = Vec::new();
        for (id, was_sent, connection) in worker.table.take_all() {
            verdicts.push(match was_sent {
                true => judge(worker, id, connection, &mut left, &mut claims),
                false => (Verdict::Pass(connection), None),
            });
        }
        for (verdict, slot) in verdicts {
            self.settle(claims.hold(verdict, slot), &mut tally);
        }
        self.gate.freed();
        if tally.lost > 0 {
            warn!("worker {index}: {} connections of which there was no copy ended with it", tally.lost);
        }
        if tally.passed_on + tally.failed + tally.cut > 0 {
            info!(
                "worker {index}: {} connections passed on, {} to be answered 502, {} cut",
                tally.passed_on, tally.failed, tally.cut
            );
        }
    }

    fn settle(&mut self, verdict: Verdict, tally: &mut Tally) {
        let is_relay = |connection: &Connection| {
            self.config.snapshot.listeners.get(usize::from(connection.listener)).is_none_or(|l| l.mode == Mode::Tcp)
        };
        match verdict {
            Verdict::Over(connection) => self.addresses.leave(connection.counted()),
            // There is no 502 in a byte stream.
            Verdict::Pass(connection) if !matches!(connection.task, Task::Fail(_)) || !is_relay(&connection) => {
                if matches!(self.course, Course::Draining | Course::Stopping) {
                    tally.cut += 1;
                    return self.cut(connection);
                }
                if matches!(connection.task, Task::Fail(_)) {
                    tally.failed += 1
                } else {
                    tally.passed_on += 1
                }
                self.homeless.push_back(connection);
            }
            Verdict::Pass(connection) | Verdict::Cut(connection) => {
                tally.cut += 1;
                self.cut(connection);
            }
        }
    }

    /// Ends a connection so that its client sees that something is missing: with a reset where there is one.
    pub(super) fn cut(&mut self, mut connection: Connection) {
        connection.release();
        self.addresses.leave(connection.counted());
        if connection.peer.is_some() {
            // The worker's copies are gone with it, so that closing ours closes the connection.
            let _ = rustix::net::sockopt::set_socket_linger(&connection.fd, Some(std::time::Duration::ZERO));
        }
        if let Some(relay) = &connection.relay {
            let _ = rustix::net::sockopt::set_socket_linger(&relay.server_fd, Some(std::time::Duration::ZERO));
        }
    }
}

enum Verdict {
    Pass(Connection),
    Cut(Connection),
    Over(Connection),
}

/// How many connections of a dead worker have their unanswered bytes in each slot: more than one never do.
#[derive(Debug, Default)]
struct Claims(HashMap<u32, u32>);

impl Claims {
    fn note(&mut self, slot: u32) {
        *self.0.entry(slot).or_default() += 1;
    }

    /// The verdict, unless another connection claims its slot, too. Then the bytes may be the other's: nothing is run,
    /// as nobody's request may be run for somebody else.
    fn hold(&self, verdict: Verdict, slot: Option<u32>) -> Verdict {
        let doubtful = slot.is_some_and(|slot| self.0.get(&slot).is_some_and(|&count| count > 1));
        match verdict {
            Verdict::Pass(mut connection) if doubtful => {
                connection.base.consumed = connection.base.consumed.saturating_add(connection.carried_bytes() as u64);
                connection.task = Task::Fail(Lost::default());
                Verdict::Pass(connection)
            }
            other @ (Verdict::Pass(_) | Verdict::Cut(_) | Verdict::Over(_)) => other,
        }
    }
}

/// What becomes of one connection that its dead worker had been sent, and the slot from which its unanswered bytes were
/// read, if they were.
fn judge(
    worker: &Worker,
    id: u32,
    mut connection: Connection,
    left: &mut Leftovers,
    claims: &mut Claims,
) -> (Verdict, Option<u32>) {
    let record = worker.control.record(id);
    let counters = tcp_info::counters(&connection.fd).ok();
    let mut header = 0;
    if connection.origin == Origin::Awaited
        && let Some(counters) = &counters
        && let Some((length, ends)) = worker.control.origin(id).and_then(OriginCell::read)
        && salvage::header_taken(connection.base, counters, length)
    {
        header = length;
        connection.origin = Origin::Told(ends);
    }
    if counters.is_none() && !is_unix_client_known(worker, record, id, &mut connection) {
        debug!("a Unix client: cut; {:?}", record.and_then(Record::read));
        return (Verdict::Cut(connection), None);
    }
    // Whoever awaits a header takes nothing before it.
    let sound = connection.origin != Origin::Awaited
        || counters.is_none_or(|counters| counters.consumed == connection.base.consumed);
    let remains = Remains {
        image: record.filter(|_| sound).and_then(Record::read),
        former: record.and_then(Record::read_former),
        task: &connection.task,
        base: connection.base,
        header,
        counters,
    };
    let image = remains.standing();
    let mut from = None;
    let verdict = remains.salvage(|slot, offset, len| {
        claims.note(slot);
        from = Some(slot);
        shm::read_slot(&worker.region, &worker.layout, slot, offset, len)
    });
    let failed = verdict == Salvage::Fail;
    let lost = if failed { find_lost(worker, record, &remains, claims, &mut from) } else { Lost::default() };
    let mut rebase = |carried| {
        if let Some(counters) = &counters {
            connection.base = salvage::successor_base(counters, carried);
        }
    };
    if matches!(verdict, Salvage::Serve | Salvage::Resume(_) | Salvage::Fail) {
        // A relay that was about to begin begins anew, with another connection to a server.
        connection.relay = None;
    }
    match verdict {
        Salvage::Again => {
            if image.is_none_or(|image| image.phase != Phase::Passed) {
                rebase(0);
            }
        }
        Salvage::Serve => {
            rebase(0);
            connection.task = Task::Serve;
            connection.strikes = 0;
        }
        Salvage::Resume(mut bytes) => {
            connection.strikes = salvage::strikes(connection.strikes, image.as_ref());
            if connection.strikes >= MAX_STRIKES && !salvage::begins_as_http(&bytes) {
                warn!(
                    "{:?}: {MAX_STRIKES} workers died over it; cut, since it does not speak HTTP",
                    connection.client()
                );
                return (Verdict::Cut(connection), from);
            }
            if connection.strikes >= MAX_STRIKES {
                rebase(0);
                bytes.truncate(MAX_LOST_BYTES);
                connection.task = Task::Fail(Lost { beginning: bytes, server: None });
                match connection.client() {
                    Some(peer) => warn!("{peer}: {MAX_STRIKES} workers died over its request; answering 502"),
                    None => warn!("a Unix client: {MAX_STRIKES} workers died over its request; answering 502"),
                }
            } else {
                rebase(bytes.len());
                connection.task = Task::Resume(bytes);
            }
        }
        Salvage::Relay => {
            rebase(0);
            match resume_relay(&mut connection, id, left) {
                Ok(task) => connection.task = task,
                Err(Contradiction) => return (Verdict::Cut(connection), from),
            }
        }
        Salvage::Fail => {
            rebase(0);
            connection.task = Task::Fail(lost);
        }
        Salvage::Cut => {
            debug!("{:?}: cut; {image:?}, {:?}, {counters:?}", connection.peer, connection.base);
            return (Verdict::Cut(connection), from);
        }
        Salvage::Done => return (Verdict::Over(connection), from),
    }
    (Verdict::Pass(connection), from)
}

/// What a dead worker left of a request that is not run again. A slot looked into is claimed, and noted in `from`.
fn find_lost(
    worker: &Worker,
    record: Option<&Record>,
    remains: &Remains<'_>,
    claims: &mut Claims,
    from: &mut Option<u32>,
) -> Lost {
    let committed = remains.standing().is_some_and(|image| image.phase == Phase::Committed);
    let server = record.filter(|_| committed).and_then(Record::server);
    let Some((slot, offset, len)) = remains.lost() else { return Lost { beginning: Vec::new(), server } };
    if from.is_none() {
        claims.note(slot);
        *from = Some(slot);
    }
    // More was read than a slot holds.
    let len = len.min((worker.layout.slot_bytes as usize).saturating_sub(offset as usize));
    let beginning = shm::read_slot(&worker.region, &worker.layout, slot, offset, len).unwrap_or_default();
    Lost { beginning, server }
}

/// Where the kernel counts nothing: whether a connection said to be at rest can be, and whether its PROXY header, if
/// one was awaited, has been taken.
fn is_unix_client_known(worker: &Worker, record: Option<&Record>, id: u32, connection: &mut Connection) -> bool {
    let Some(image) = record.and_then(Record::read).filter(|image| image.phase == Phase::Resting) else { return true };
    if connection.peer.is_some() {
        return false;
    }
    if connection.origin == Origin::Awaited
        && let Some((length, ends)) = worker.control.origin(id).and_then(OriginCell::read)
    {
        // What it says was published before it was taken, and this image, if it counts it, after that.
        if image.consumed < length.into() {
            return false;
        }
        connection.origin = Origin::Told(ends);
    }
    true
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
                let fds: Vec<_> = fds.into_iter().map(std::os::fd::AsFd::as_fd).collect();
                worker.channel.send(&ToWorker::Pass(connections), &fds)?;
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
            let mut fds = own.into_iter();
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
        Some(Task::Relay { server, to_server, to_client, tunnel }) => {
            Task::Relay { server, to_server, to_client, tunnel: tunnel.filter(|tunnel| tunnel.is_sound()) }
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

/// What a successor must be told of a relay. Takes over the pipes in which the former worker left bytes.
fn resume_relay(connection: &mut Connection, id: u32, left: &mut Leftovers) -> Result<Task, Contradiction> {
    let relay = connection.relay.as_mut().ok_or(Contradiction)?;
    for (direction, pipe) in [Direction::ToServer, Direction::ToClient].into_iter().zip(&mut relay.pipes) {
        *pipe = left.take(id, direction, pipe.take())?;
    }
    let [to_server, to_client] = relay.pipes.each_ref().map(Option::is_some);
    Ok(Task::Relay { server: relay.server, to_server, to_client, tunnel: relay.tunnel.clone() })
}

/// What is needed to hear a worker.
struct Ear<'a> {
    addresses: &'a mut Addresses,
    protection: &'a mut Protection,
    resolved: &'a mut Resolved,
    now: Instant,
    /// Workers keep what they give back until it is passed on. Not where one of them may have to end first, so that another
    /// has room for it; nor where the connection's number could be given to another meanwhile.
    lends: bool,
}

impl Ear<'_> {
    /// Receives up to `most` messages. Connections given back are appended to `returned`.
    fn hear(&mut self, worker: &mut Worker, index: u16, returned: &mut Vec<Connection>, most: usize) {
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
                            Some(Verdict::Pass(connection)) => returned.push(Connection { lender, ..connection }),
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
                Ok(ToMaster::Relaying(relays)) => {
                    let mut unkept = Vec::new();
                    for (relaying, fd) in relays.into_iter().zip(fds.drain(..)) {
                        if !self.protection.keeps_other(&fd) {
                            if worker.table.unprotect(relaying.id) {
                                self.protection.total += 1;
                                unkept.push(relaying.id);
                            }
                        } else if let Some(connection) = worker.table.get_passed(relaying.id) {
                            let tunnel = relaying.tunnel.filter(|tunnel| tunnel.is_sound());
                            let relay = Relay { server_fd: fd, server: relaying.server, pipes: [None, None], tunnel };
                            connection.relay = Some(relay);
                        }
                    }
                    if !unkept.is_empty() {
                        let message = ToWorker::Unkept { ids: unkept };
                        worker.errands.push(Errand { message, fds: Vec::new(), after_connections: false });
                    }
                }
                Ok(ToMaster::Resolved(standing)) => self.resolved.push(standing),
                Ok(ToMaster::Pipe { number }) => match fds.pop() {
                    Some(end) if self.protection.keeps_other(&end) => worker.pipes.put(number, end),
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
