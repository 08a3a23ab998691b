//! What becomes of a dead worker's connections: record and kernel decide (`crate::salvage`), and each is passed on, answered
//! or cut. Part of the master's loop; owns nothing.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Instant;

use ipc::message::{Lost, MAX_LOST_BYTES, Task};
use ipc::origin::{Origin, OriginCell};
use ipc::shm;
use ipc::snapshot::Mode;
use ipc::state::{Direction, Phase, Record};
use ipc::tcp_info;
use log::{debug, info, warn};

use super::names::Resolved;
use super::passing::{Ear, HEARD_PER_TURN};
use super::{Course, Master};
use crate::keeper::Connection;
use crate::pipes::{Contradiction, Leftovers};
use crate::salvage::{self, MAX_STRIKES, Remains, Salvage};
use crate::supervise::{Stage, Worker};

/// What became of a dead worker's connections.
#[derive(Debug, Default)]
struct Tally {
    passed_on: usize,
    failed: usize,
    cut: usize,
    lost: usize,
}

impl Master {
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
            Verdict::Over(connection) => {
                // All has been written, and goes out in order with the end.
                let _ = rustix::net::sockopt::set_socket_linger(&connection.fd, None);
                self.addresses.leave(connection.counted());
            }
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
                if connection.is_like_new() {
                    connection.fd.alone(connection.listener);
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
        // The worker's copies are gone with it, so that closing ours closes the connection.
        if connection.peer.is_some() {
            reset_when_closed(&connection.fd);
        }
        if let Some(relay) = &connection.relay {
            std::iter::once(&relay.server_fd).chain(&relay.reply_fd).for_each(reset_when_closed);
        }
    }
}

/// Has closing this socket reset the connection, behind what has been written and perhaps held back for more to follow
/// (`MSG_MORE`): of an answer that has begun its reader is to see the beginning.
fn reset_when_closed(fd: impl AsFd) {
    // Whatever it was before, it sends what is held back (tcp(7), `TCP_NODELAY`).
    let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
    let _ = rustix::net::sockopt::set_socket_linger(&fd, Some(std::time::Duration::ZERO));
}

pub(super) enum Verdict {
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

/// What a successor must be told of a relay. Takes over the pipes in which the former worker left bytes.
pub(super) fn resume_relay(connection: &mut Connection, id: u32, left: &mut Leftovers) -> Result<Task, Contradiction> {
    let relay = connection.relay.as_mut().ok_or(Contradiction)?;
    for (direction, pipe) in [Direction::ToServer, Direction::ToClient].into_iter().zip(&mut relay.pipes) {
        *pipe = left.take(id, direction, pipe.take())?;
    }
    Ok(relay.task())
}
