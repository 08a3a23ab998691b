//! Accepting in the place of a master that has died: a worker takes connections off the listening sockets that it keeps,
//! and serves them itself, until another master takes over or the worker finishes. And taking in those that the master
//! had accepted and not passed on.
//!
//! All orphans of a master wait on the same sockets, and each is woken by each connection. So one takes a few at a
//! time and looks at what else it has before it takes more, which leaves some to the others.
//!
//! Nobody has copies of these connections, and no record says how they stand: they end with this worker if it dies.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use ipc::accept::{Accepted, accept};
use ipc::message::{Kept, Passed, Task};
use ipc::origin::Origin;
use ipc::snapshot::{ListenerId, Snapshot};
use ipc::tcp_info;
use log::{debug, warn};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::socket_cookie;

use crate::room;
use crate::worker::Worker;

/// The token of the first listening socket, behind those of all other things.
const FIRST: usize = usize::MAX - (1 << 20);
/// Listening sockets at most.
const MOST: usize = 1 << 16;
/// Connections taken from one socket before the others have their turn.
const BURST: usize = 4;
/// How long to wait when there is no room for a connection, unless something ends before.
const WAIT_MS: u64 = 10;
/// Warnings come no more often.
const WARN_MS: u64 = 1000;

/// A listening socket on which it accepts.
#[derive(Debug)]
struct Queue {
    /// Which of those that are kept it is.
    kept: usize,
    listener: ListenerId,
    /// Somebody may be waiting there.
    ready: bool,
}

/// See the module's description. Empty while there is a master.
#[derive(Debug, Default)]
pub(crate) struct Accepting {
    queues: Vec<Queue>,
    /// Those that are ready, by their index.
    ready: VecDeque<usize>,
    /// How many were accepted.
    accepted: u32,
    /// Nothing is accepted before then.
    again_ms: u64,
    warned_ms: Option<u64>,
}

impl Accepting {
    /// Watches those of the `kept` sockets on which the present configuration listens.
    pub(crate) fn start(&mut self, kept: &[(Kept, OwnedFd)], snapshot: &Snapshot, registry: &Registry) {
        for (at, (Kept { listener, bound }, fd)) in kept.iter().enumerate().take(MOST) {
            // The master may have died before it told of the configuration that these belong to.
            let there = snapshot.listeners.get(usize::from(*listener));
            if !there.is_some_and(|there| there.bind == bound.address && !there.removed) {
                continue;
            }
            let token = Token(FIRST + self.queues.len());
            if let Err(error) = registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE) {
                warn!("{}: cannot accept in the master's place: {error}", bound.address);
                continue;
            }
            self.queues.push(Queue { kept: at, listener: *listener, ready: false });
        }
    }

    /// Accepts no more on the `kept` sockets. Others have copies of them, so that closing ours would leave them
    /// watched.
    pub(crate) fn stop(&mut self, kept: &[(Kept, OwnedFd)], registry: &Registry) {
        for (_, fd) in self.queues.drain(..).filter_map(|queue| kept.get(queue.kept)) {
            let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        self.ready.clear();
    }

    /// An event with this token has come: somebody may be waiting, if it is one of its sockets'.
    pub(crate) fn on_event(&mut self, token: Token) {
        let Some(at) = token.0.checked_sub(FIRST) else { return };
        if let Some(queue) = self.queues.get_mut(at)
            && !queue.ready
        {
            queue.ready = true;
            self.ready.push_back(at);
        }
    }

    /// When it is to go on; `None` while nobody waits.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        (!self.ready.is_empty()).then_some(self.again_ms)
    }

    /// A number for a connection that has no record: they are counted down from the highest, where no layout has any.
    fn number(&mut self) -> u32 {
        self.accepted = self.accepted.wrapping_add(1) % (u32::MAX / 2);
        u32::MAX - self.accepted
    }

    /// There was no room for a connection, and this is why.
    fn pause(&mut self, now_ms: u64, why: &dyn std::fmt::Display) {
        self.again_ms = now_ms + WAIT_MS;
        if self.warned_ms.is_none_or(|warned_ms| now_ms >= warned_ms + WARN_MS) {
            self.warned_ms = Some(now_ms);
            warn!("cannot accept in the master's place: {why}; new connections wait in the kernel's queue");
        }
    }
}

impl Worker {
    /// Takes what waits on the listening sockets, as much as is this worker's share of a turn.
    pub(crate) fn accept_in_masters_place(&mut self) {
        if self.accepting.due_ms().is_none_or(|due_ms| due_ms > self.cx.clock.now_ms) {
            return;
        }
        for _ in 0..self.accepting.ready.len() {
            let Some(at) = self.accepting.ready.pop_front() else { return };
            if self.accept_burst(at) {
                self.accepting.ready.push_back(at);
            } else if let Some(queue) = self.accepting.queues.get_mut(at) {
                queue.ready = false;
            }
        }
    }

    /// Takes a few connections off one queue; false when nobody waits there any more.
    fn accept_burst(&mut self, at: usize) -> bool {
        for _ in 0..BURST {
            let now_ms = self.cx.clock.now_ms;
            if !self.has_place() {
                self.accepting.pause(now_ms, &"this worker has all the connections that it can have");
                return true;
            }
            let Some(queue) = self.accepting.queues.get(at) else { return false };
            let Some((_, socket)) = self.succession.listeners.get(queue.kept) else { return false };
            let listener = queue.listener;
            match accept(socket) {
                Accepted::Connection(fd, peer) => self.take_in(fd, peer, listener),
                Accepted::Empty => return false,
                Accepted::Exhausted(errno) => {
                    self.free_descriptors(room::BATCH);
                    self.accepting.pause(now_ms, &std::io::Error::from(errno));
                    return true;
                }
                // It listens no more.
                Accepted::Lost(Errno::INVAL) => return false,
                Accepted::Lost(errno) => debug!("a connection was lost: {}", std::io::Error::from(errno)),
            }
        }
        true
    }

    /// Whether there is room for another client, if need be after closing what is idle.
    fn has_place(&mut self) -> bool {
        if self.clients.len() >= self.cx.control.records() {
            self.give_way(room::BATCH);
        }
        self.make_room();
        self.clients.len() < self.cx.control.records() && self.cx.descriptors_left() > 0
    }

    /// Takes in connections that the master had accepted before it died, each at its listener. Of those that it may have
    /// sent, the ones that are here already are known by the kernel's number of their socket, and the ones that have been
    /// served by their end.
    pub(crate) fn inherit(&mut self, listeners: &[ListenerId], fds: Vec<OwnedFd>, perhaps_sent: bool) {
        let cookies: Vec<u64> = if perhaps_sent {
            self.clients.iter().filter_map(|(_, client)| socket_cookie(&client.socket).ok()).collect()
        } else {
            Vec::new()
        };
        let is_here = |fd: &OwnedFd| socket_cookie(fd).is_ok_and(|cookie| cookies.contains(&cookie));
        for (&listener, fd) in listeners.iter().zip(fds) {
            if perhaps_sent && (is_here(&fd) || is_over(&fd)) {
                continue;
            }
            if !self.has_place() {
                self.accepting.pause(self.cx.clock.now_ms, &"this worker has all the connections that it can have");
                continue;
            }
            let peer = rustix::net::getpeername(&fd).ok().flatten().and_then(|peer| SocketAddr::try_from(peer).ok());
            self.take_in(fd, peer, listener);
        }
    }

    fn take_in(&mut self, fd: OwnedFd, peer: Option<SocketAddr>, listener: ListenerId) {
        let ip = peer.map(|peer| peer.ip());
        let snapshot = &self.cx.site.snapshot;
        let Some(configured) = snapshot.listeners.get(usize::from(listener)) else { return };
        let awaited = configured.proxy_protocol.is_expected(ip);
        let origin = if awaited { Origin::Awaited } else { Origin::Direct };
        let over = |limit: u32| ip.is_some_and(|ip| !awaited && self.connected_from(ip) >= limit as usize);
        let task = match snapshot.limits.connections_per_address {
            Some(limit) if over(limit) => Task::Refuse,
            Some(_) | None => Task::Serve,
        };
        let id = self.accepting.number();
        self.take_up(Passed { id, listener, peer, origin, task, kept: false }, fd, Vec::new());
    }

    /// How many clients of this worker have connected from an address, as far as no proxy in front brings them. A look
    /// at all of them: this is not for the time in which there is a master.
    fn connected_from(&self, ip: IpAddr) -> usize {
        let ip = ip.to_canonical();
        let is_from = |peer: SocketAddr| peer.ip().to_canonical() == ip;
        let direct = self.clients.iter().filter(|(_, client)| client.destination.is_none());
        direct.filter(|(_, client)| client.peer.is_some_and(is_from)).count()
    }
}

/// Whether one side has ended a connection that has just been accepted, and nothing is left to be read from it.
fn is_over(fd: &OwnedFd) -> bool {
    let nothing_comes = || {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(fd, &mut [0_u8; 1], flags), Ok((0, _)) | Err(Errno::CONNRESET))
    };
    tcp_info::counters(fd).map_or_else(|_| nothing_comes(), |counters| counters.shut_down)
}
