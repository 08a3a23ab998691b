//! The connections the master still holds: its own copy of every client's socket, until the worker reports
//! the connection finished.
//!
//! One [`Table`] per worker process; its index is the connection's id, which is also the index of the record
//! in that worker's shared region. Nothing here makes system calls, and nothing reads a client's bytes.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ipc::forward::Tunnel;
use ipc::message::{MAX_CARRIED_BYTES, Passed, Relaying, Task};
use ipc::origin::Origin;
use ipc::snapshot::ListenerId;

use crate::hands::Held;
use crate::lending::Lender;

/// Where a worker's own counters begin, in bytes since the connection was accepted.
///
/// A worker counts from 0 when it takes a connection up. Bytes carried to it in [`Task::Resume`] count as
/// consumed by it, from 0 on, although its predecessor took them from the socket: so `consumed` is what all
/// processes have taken from the socket, less the carried bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Base {
    /// See the type.
    pub consumed: u64,
    /// What had been written to the socket.
    pub written: u64,
}

/// One connection. `F` is the socket; tests put something countable in its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Connection<F = Held> {
    /// The master's copy of the socket.
    pub fd: F,
    /// The address of its other end; `None` on a Unix listener.
    pub peer: Option<SocketAddr>,
    /// Where it was accepted.
    pub listener: ListenerId,
    /// What a proxy in front says of it.
    pub origin: Origin,
    /// What the worker is told to do with it.
    pub task: Task,
    /// Where that worker's counters begin.
    pub base: Base,
    /// Workers that died over the request at `base.consumed`.
    pub strikes: u8,
    /// What a successor needs to go on with its relay, once it is relayed.
    pub relay: Option<Relay<F>>,
    /// Whether our copies are kept once it is sent. Without them it ends with its worker.
    pub keep: bool,
    /// The worker that has given it back and still keeps it, in case this process is killed before it passes it on.
    pub lender: Option<Lender>,
}

/// Our copies of what a relay consists of, besides the client's socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Relay<F = Held> {
    /// The connection to the server.
    pub server_fd: F,
    /// Which server that is.
    pub server: Option<u64>,
    /// The connection that takes what comes from the server, where that is not the client's.
    pub reply_fd: Option<F>,
    /// Reading ends of the pipes that a dead worker left bytes in, by direction: to the server, to the client.
    pub pipes: [Option<F>; 2],
    /// Of a forward listener: what a worker that goes on with it must know. Ours to keep, not to believe.
    pub tunnel: Option<Box<Tunnel>>,
}

impl<F> Relay<F> {
    /// From what comes along with `task`, behind the client's socket; `None` when that is no relay.
    pub fn new(task: &Task, fds: &mut impl Iterator<Item = F>) -> Option<Relay<F>> {
        let Task::Relay { server, reply, to_server, to_client, tunnel } = task else { return None };
        let server_fd = fds.next()?;
        let [reply_fd, up, down] = [reply, to_server, to_client].map(|there| if *there { fds.next() } else { None });
        let tunnel = tunnel.clone().filter(|tunnel| tunnel.is_sound());
        Some(Relay { server_fd, server: *server, reply_fd, pipes: [up, down], tunnel })
    }

    /// From what a worker says of a relay that begins, and the descriptors that come with it; `None` when they do not.
    pub fn begun(relaying: Relaying, fds: &mut impl Iterator<Item = F>) -> Option<Relay<F>> {
        let server_fd = fds.next()?;
        let reply_fd = if relaying.reply { Some(fds.next()?) } else { None };
        let tunnel = relaying.tunnel.filter(|tunnel| tunnel.is_sound());
        Some(Relay { server_fd, server: relaying.server, reply_fd, pipes: [None, None], tunnel })
    }

    /// All copies, in the order in which messages have them.
    pub fn descriptors(&self) -> impl Iterator<Item = &F> {
        std::iter::once(&self.server_fd).chain(&self.reply_fd).chain(self.pipes.iter().flatten())
    }

    /// What whoever goes on with it is told.
    pub fn task(&self) -> Task {
        let [to_server, to_client] = self.pipes.each_ref().map(Option::is_some);
        let (server, tunnel) = (self.server, self.tunnel.clone());
        Task::Relay { server, reply: self.reply_fd.is_some(), to_server, to_client, tunnel }
    }
}

impl<F> Connection<F> {
    /// One just accepted.
    pub fn new(fd: F, peer: Option<SocketAddr>, listener: ListenerId) -> Connection<F> {
        Connection {
            fd,
            peer,
            listener,
            origin: Origin::Direct,
            task: Task::Serve,
            base: Base::default(),
            strikes: 0,
            relay: None,
            keep: true,
            lender: None,
        }
    }

    /// It is this process's alone from now on.
    pub fn release(&mut self) {
        if let Some(lender) = self.lender.take() {
            lender.release();
        }
    }

    /// What is left to know of it without our copies.
    pub fn bare(self) -> Connection<()> {
        self.with_socket((), None)
    }

    /// The same connection with this socket.
    fn with_socket<G>(self, fd: G, relay: Option<Relay<G>>) -> Connection<G> {
        let Connection { peer, listener, origin, base, strikes, keep, lender, .. } = self;
        Connection { fd, peer, listener, origin, task: Task::Serve, base, strikes, relay, keep, lender }
    }

    /// Whether it can be served by whoever knows only the listener: nothing is under way, and nothing has been said of it.
    pub fn is_like_new(&self) -> bool {
        self.task == Task::Serve && self.origin == Origin::Direct
    }

    /// The client's address as far as it is known, for the log.
    pub fn client(&self) -> Option<SocketAddr> {
        match self.origin {
            Origin::Told(Some(ends)) => Some(ends.source),
            Origin::Direct | Origin::Awaited | Origin::Told(None) => self.peer,
        }
    }

    /// The address that it counts under where the connections of one are bounded. A proxy in front brings those of
    /// many clients.
    pub fn counted(&self) -> Option<SocketAddr> {
        // One that is turned away takes no place, or a client that tries again would keep itself out.
        if self.task == Task::Refuse {
            return None;
        }
        match self.origin {
            Origin::Direct => self.peer,
            Origin::Awaited | Origin::Told(_) => None,
        }
    }

    /// Bytes of an unanswered request that go with it, to be run.
    pub fn carried_bytes(&self) -> usize {
        match &self.task {
            Task::Resume(bytes) => bytes.len(),
            Task::Serve | Task::Fail(_) | Task::Refuse | Task::Relay { .. } => 0,
        }
    }

    /// The descriptors that go with its task, in the order the message wants.
    pub fn descriptors(&self) -> impl Iterator<Item = &F> {
        let relay = self.relay.as_ref().filter(|_| matches!(self.task, Task::Relay { .. }));
        std::iter::once(&self.fd).chain(relay.into_iter().flat_map(Relay::descriptors))
    }
}

impl Connection<()> {
    /// It has come back, with its descriptors.
    pub fn with_copies<F>(self, fd: F, relay: Option<Relay<F>>) -> Connection<F> {
        self.with_socket(fd, relay)
    }
}

#[derive(Debug)]
enum Place<F> {
    Free,
    Queued(Connection<F>),
    Passed(Connection<F>),
    /// Sent, and no copy was kept.
    Bare(Connection<()>),
}

/// Why a report of a finished connection was not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownId(pub u32);

/// The connections of one worker process.
///
/// At most `capacity` are held. Each is queued (chosen for this worker, not yet sent) or passed (sent). Ids
/// are reused last freed, first used, so that the records touched stay few.
#[derive(Debug)]
pub struct Table<F = Held> {
    places: Vec<Place<F>>,
    free: Vec<u32>,
    queued: VecDeque<u32>,
    carrying: Vec<u32>,
    capacity: u32,
    live: u32,
    passed: u64,
    unprotected: u32,
}

impl<F> Table<F> {
    /// An empty one for at most `capacity` connections.
    pub fn new(capacity: u32) -> Table<F> {
        Table {
            places: Vec::new(),
            free: Vec::new(),
            queued: VecDeque::new(),
            carrying: Vec::new(),
            capacity,
            live: 0,
            passed: 0,
            unprotected: 0,
        }
    }

    /// How many more connections fit.
    pub fn room(&self) -> u32 {
        self.capacity.saturating_sub(self.live)
    }

    /// Holds at most `capacity` from now on, fewer than it holds now perhaps. Never more than it was made for.
    pub fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity;
    }

    /// Of every connection, where it was accepted and the address that it counts under.
    pub fn connections(&self) -> impl Iterator<Item = (ListenerId, Option<SocketAddr>)> {
        self.places.iter().filter_map(|place| match place {
            Place::Free => None,
            Place::Queued(connection) | Place::Passed(connection) => Some((connection.listener, connection.counted())),
            Place::Bare(connection) => Some((connection.listener, connection.counted())),
        })
    }

    /// How many of those sent end with the worker, should it die.
    pub fn unprotected(&self) -> u32 {
        self.unprotected
    }

    /// How many are held.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// How many are waiting to be sent.
    pub fn queued(&self) -> usize {
        self.queued.len()
    }

    /// How many have been sent in all.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Takes a connection in and queues it to be sent, giving it its id; gives it back when the table is full.
    ///
    /// The large error is the connection itself, which must not get lost.
    #[allow(clippy::result_large_err)]
    pub fn enqueue(&mut self, connection: Connection<F>) -> Result<u32, Connection<F>> {
        if self.live >= self.capacity {
            return Err(connection);
        }
        let id = match self.free.pop() {
            Some(id) => id,
            None => match u32::try_from(self.places.len()) {
                Ok(id) => {
                    self.places.push(Place::Free);
                    id
                }
                Err(_) => return Err(connection),
            },
        };
        if connection.task.carried_bytes() > 0 {
            self.carrying.push(id);
        }
        self.live += 1;
        self.places[id as usize] = Place::Queued(connection);
        self.queued.push_back(id);
        Ok(id)
    }

    /// The next connections to send, oldest first: at most `most` descriptors, and no more carried bytes than a
    /// message may have, but at least one connection. They stay queued until [`Table::mark_passed`].
    pub fn next_batch(&self, most: usize) -> (Vec<Passed>, Vec<&F>) {
        let mut bytes = 0;
        let mut batch = (Vec::new(), Vec::new());
        for &id in &self.queued {
            let Some(Place::Queued(connection)) = self.places.get(id as usize) else { continue };
            bytes += connection.task.carried_bytes();
            let fds = batch.1.len() + connection.task.descriptors();
            if (bytes > MAX_CARRIED_BYTES || fds > most) && !batch.0.is_empty() {
                break;
            }
            batch.0.push(Passed {
                id,
                listener: connection.listener,
                peer: connection.peer,
                origin: connection.origin,
                task: connection.task.clone(),
                kept: connection.keep,
            });
            batch.1.extend(connection.descriptors());
        }
        batch
    }

    /// The first `count` queued connections have been sent. Those that are not to be kept are closed here.
    pub fn mark_passed(&mut self, count: usize) {
        for id in self.queued.drain(..count.min(self.queued.len())) {
            let place = &mut self.places[id as usize];
            if let Place::Queued(connection) = std::mem::replace(place, Place::Free) {
                self.unprotected += u32::from(!connection.keep);
                *place = if connection.keep { Place::Passed(connection) } else { Place::Bare(connection.bare()) };
                self.passed += 1;
            }
        }
    }

    /// A connection that the worker was sent.
    pub fn get_passed(&mut self, id: u32) -> Option<&mut Connection<F>> {
        match self.places.get_mut(id as usize) {
            Some(Place::Passed(connection)) => Some(connection),
            Some(Place::Queued(_) | Place::Bare(_) | Place::Free) | None => None,
        }
    }

    /// What is kept of a connection that was sent does not suffice for a successor. False when there is no such.
    pub fn unprotect(&mut self, id: u32) -> bool {
        let Some(connection) = self.get_passed(id).filter(|connection| connection.keep) else { return false };
        connection.keep = false;
        self.unprotected += 1;
        true
    }

    /// As [`Table::finish`], for a connection of which no copy was kept.
    pub fn finish_bare(&mut self, id: u32) -> Option<Connection<()>> {
        let place = self.places.get_mut(id as usize)?;
        match std::mem::replace(place, Place::Free) {
            Place::Bare(connection) => {
                self.live -= 1;
                self.unprotected -= 1;
                self.free.push(id);
                Some(connection)
            }
            other @ (Place::Free | Place::Queued(_) | Place::Passed(_)) => {
                *place = other;
                None
            }
        }
    }

    /// After the worker's death, and before [`Table::take_all`]: the connections that ended with it.
    pub fn take_bare(&mut self) -> Vec<Connection<()>> {
        let lost = self.places.iter_mut().filter_map(|place| match std::mem::replace(place, Place::Free) {
            Place::Bare(connection) => Some(connection),
            other @ (Place::Free | Place::Queued(_) | Place::Passed(_)) => {
                *place = other;
                None
            }
        });
        lost.collect()
    }

    /// The worker says `id` is over. Its word counts only for a connection that it was sent.
    pub fn finish(&mut self, id: u32) -> Result<Connection<F>, UnknownId> {
        let place = self.places.get_mut(id as usize).ok_or(UnknownId(id))?;
        match std::mem::replace(place, Place::Free) {
            Place::Passed(connection) => {
                self.live -= 1;
                self.unprotected -= u32::from(!connection.keep);
                self.free.push(id);
                Ok(connection)
            }
            other @ (Place::Free | Place::Queued(_) | Place::Bare(_)) => {
                *place = other;
                Err(UnknownId(id))
            }
        }
    }

    /// Drops copies of carried bytes whose connection the worker has taken up.
    pub fn forget_carried(&mut self, taken_up: impl Fn(u32) -> bool) {
        let places = &mut self.places;
        self.carrying.retain(|&id| match places.get_mut(id as usize) {
            Some(Place::Passed(connection)) if taken_up(id) => {
                match &mut connection.task {
                    Task::Resume(_) => connection.task = Task::Serve,
                    Task::Fail(lost) => lost.beginning = Vec::new(),
                    Task::Serve | Task::Refuse | Task::Relay { .. } => {}
                }
                false
            }
            Some(Place::Passed(_) | Place::Queued(_)) => true,
            Some(Place::Bare(_) | Place::Free) | None => false,
        });
    }

    /// Whether carried bytes are held for connections already sent or queued.
    pub fn is_carrying(&self) -> bool {
        !self.carrying.is_empty()
    }

    /// Empties the table after the worker's death: every connection with its id, and whether it was sent.
    pub fn take_all(&mut self) -> Vec<(u32, bool, Connection<F>)> {
        let places = std::mem::take(&mut self.places);
        (self.free, self.queued, self.carrying, self.live, self.unprotected) = Default::default();
        (0u32..)
            .zip(places)
            .filter_map(|(id, place)| match place {
                Place::Free | Place::Bare(_) => None,
                Place::Queued(connection) => Some((id, false, connection)),
                Place::Passed(connection) => Some((id, true, connection)),
            })
            .collect()
    }
}

#[cfg(test)]
impl<F> Table<F> {
    /// Every connection: its id, whether it was sent.
    pub fn entries(&self) -> impl Iterator<Item = (u32, bool, &Connection<F>)> {
        (0u32..).zip(&self.places).filter_map(|(id, place)| match place {
            Place::Free | Place::Bare(_) => None,
            Place::Queued(connection) => Some((id, false, connection)),
            Place::Passed(connection) => Some((id, true, connection)),
        })
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::message::Lost;

    fn connection(fd: u32) -> Connection<u32> {
        Connection::new(fd, None, 0)
    }

    #[test]
    fn ids_are_given_up_to_the_capacity_and_reused() {
        let mut table = Table::new(2);
        assert_eq!(table.enqueue(connection(10)), Ok(0));
        assert_eq!(table.enqueue(connection(11)), Ok(1));
        assert_eq!(table.enqueue(connection(12)).unwrap_err().fd, 12);
        table.mark_passed(2);
        assert_eq!(table.finish(0).unwrap().fd, 10);
        assert_eq!(table.room(), 1);
        assert_eq!(table.enqueue(connection(12)), Ok(0));
    }

    #[test]
    fn a_report_counts_once_and_only_for_what_was_sent() {
        let mut table = Table::new(4);
        let id = table.enqueue(connection(1)).unwrap();
        assert_eq!(table.finish(id), Err(UnknownId(id)));
        table.mark_passed(1);
        assert!(table.finish(id).is_ok());
        assert_eq!(table.finish(id), Err(UnknownId(id)));
        assert_eq!(table.finish(u32::MAX), Err(UnknownId(u32::MAX)));
        assert_eq!((table.live(), table.passed()), (0, 1));
    }

    #[test]
    fn a_batch_is_bounded_in_descriptors_and_in_carried_bytes() {
        let mut table = Table::new(10);
        for fd in 0..5 {
            let mut connection = connection(fd);
            connection.task = Task::Resume(vec![0; MAX_CARRIED_BYTES / 2]);
            table.enqueue(connection).unwrap();
        }
        let (passed, fds) = table.next_batch(10);
        assert_eq!((passed.len(), fds), (2, vec![&0, &1]));
        assert_eq!(table.next_batch(1).0.len(), 1);
        table.mark_passed(2);
        assert_eq!(table.next_batch(10).1, vec![&2, &3]);
    }

    #[test]
    fn what_is_known_of_tunnels_counts_in_a_batch_and_what_is_too_long_is_not_kept() {
        let relay = |length| Task::Relay {
            server: None,
            reply: false,
            to_server: false,
            to_client: false,
            tunnel: Some(Box::new(Tunnel {
                spoken: ipc::forward::Spoken::Connect,
                target: "x".repeat(length),
                user: None,
                rule: None,
                began_us: 0,
                connected_us: 0,
                lifetime_ms: None,
                delivery: None,
            })),
        };
        let mut table = Table::new(100);
        for fd in 0..100 {
            let mut connection = connection(fd);
            connection.task = relay(900);
            table.enqueue(connection).unwrap();
        }
        let count = table.next_batch(1000).0.len();
        assert!((60..80).contains(&count), "{count}");
        let kept = |length| Relay::new(&relay(length), &mut std::iter::once(1)).unwrap().tunnel.is_some();
        assert_eq!((kept(900), kept(5000)), (true, false));
    }

    #[test]
    fn a_relay_has_its_descriptors_in_the_order_of_its_task_whatever_there_is_of_it() {
        let there = [false, true];
        for (reply, up, down) in
            there.into_iter().flat_map(|a| there.map(|b| (a, b))).flat_map(|(a, b)| there.map(|c| (a, b, c)))
        {
            let task = Task::Relay { server: Some(7), reply, to_server: up, to_client: down, tunnel: None };
            let mut one = connection(0);
            one.relay = Relay::new(&task, &mut (1..));
            let relay = one.relay.as_ref().unwrap();
            assert_eq!((relay.task(), relay.reply_fd.is_some()), (task.clone(), reply));
            assert_eq!((relay.pipes[0].is_some(), relay.pipes[1].is_some()), (up, down));
            one.task = task;
            assert_eq!(
                one.descriptors().copied().collect::<Vec<_>>(),
                (0..).take(one.task.descriptors()).collect::<Vec<_>>()
            );
        }
        for reply in there {
            let relaying = || Relaying { id: 0, server: None, reply, tunnel: None };
            let begun = Relay::begun(relaying(), &mut (1..)).unwrap();
            assert_eq!(begun.descriptors().count(), relaying().descriptors());
            assert!(Relay::begun(relaying(), &mut (1..relaying().descriptors())).is_none(), "one is missing");
        }
    }

    #[test]
    fn carried_bytes_are_kept_until_the_connection_is_taken_up() {
        let mut table = Table::new(10);
        let mut resumed = connection(1);
        resumed.task = Task::Resume(b"GET".to_vec());
        table.enqueue(resumed).unwrap();
        table.forget_carried(|_| true);
        assert!(table.is_carrying());
        table.mark_passed(1);
        table.forget_carried(|_| false);
        assert!(table.is_carrying());
        table.forget_carried(|_| true);
        assert!(!table.is_carrying());
        assert_eq!(table.take_all()[0].2.task, Task::Serve);
    }

    #[test]
    fn what_is_left_of_a_lost_request_counts_and_is_forgotten_like_what_is_carried() {
        let mut table = Table::new(10);
        for fd in 0..9 {
            let mut lost = connection(fd);
            lost.task = Task::Fail(Lost { beginning: vec![0; MAX_CARRIED_BYTES / 8], server: Some(3) });
            table.enqueue(lost).unwrap();
        }
        assert_eq!(table.next_batch(10).0.len(), 8);
        table.mark_passed(9);
        table.forget_carried(|_| true);
        assert!(
            table.take_all().iter().all(
                |(_, _, connection)| connection.task == Task::Fail(Lost { beginning: Vec::new(), server: Some(3) })
            )
        );
    }

    #[test]
    fn what_is_not_kept_is_closed_when_sent_and_known_until_it_ends() {
        let mut table = Table::new(4);
        let socket = std::rc::Rc::new(());
        for keep in [true, false, false] {
            let mut connection = Connection::new(std::rc::Rc::clone(&socket), "192.0.2.1:1".parse().ok(), 7);
            connection.keep = keep;
            table.enqueue(connection).unwrap();
        }
        assert_eq!((std::rc::Rc::strong_count(&socket), table.unprotected()), (4, 0));
        assert_eq!(table.finish_bare(1), None, "not sent yet");
        assert_eq!(table.next_batch(9).0.iter().map(|passed| passed.kept).collect::<Vec<_>>(), [true, false, false]);
        table.mark_passed(3);
        assert_eq!((std::rc::Rc::strong_count(&socket), table.unprotected(), table.live()), (2, 2, 3));
        assert_eq!(table.connections().filter(|&(listener, peer)| listener == 7 && peer.is_some()).count(), 3);
        assert!(table.finish(1).is_err() && table.finish_bare(0).is_none());
        let back = table.finish_bare(1).unwrap().with_copies(std::rc::Rc::clone(&socket), None);
        assert_eq!((back.listener, back.task, table.unprotected(), table.live()), (7, Task::Serve, 1, 2));
        assert!(table.unprotect(0) && !table.unprotect(0) && !table.unprotect(2));
        assert_eq!(table.unprotected(), 2);
        assert_eq!(table.take_bare().len(), 1);
        assert_eq!(table.take_all().len(), 1);
        assert_eq!((table.unprotected(), table.live()), (0, 0));
    }
}
