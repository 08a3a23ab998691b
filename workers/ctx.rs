//! What every connection of a worker shares: the configuration, buffers, clock, timers, pools and the log.
//!
//! It owns no connection. Functions that serve one get it as `&mut Ctx` beside the connection itself.

use std::collections::VecDeque;
use std::hash::{Hash as _, Hasher as _};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use ipc::channel::Channel;
use ipc::message::ToMaster;
use ipc::shm::{Arena, Control};
use ipc::snapshot::{Address, ListenerId, Mode, Snapshot};
use log::warn;
use mio::{Interest, Registry, Token, unix::SourceFd};
use rustix::event::epoll::{self, EventData, EventFlags};
use std::os::fd::{AsFd, AsRawFd};

use crate::access_log::AccessLog;
use crate::backend::names::{Names, Waiter};
use crate::backend::pool::Pools;
use crate::buffer::Buffers;
use crate::client::Client;
use crate::date::DateCache;
use crate::dns::{Resolving, Wire};
use crate::drain::Returned;
use crate::exchange::Exchange;
use crate::exchange::rewrite::VIA_NAME;
use crate::forward::auth::users::Users;
use crate::forward::origins::Origins;
use crate::forward::share::Share;
use crate::forward::special::Own;
use crate::io::socket::{Socket, Watch};
use crate::io::splice::{Pipe, Pipes};
use crate::proto::h1::head::{HeadLimits, RequestHead, ResponseHead};
use crate::relay::Relay;
use crate::room::{Descriptors, GivenWay};
use crate::route::Router;
use crate::slab::Key;
use crate::timers::{Armed, Timers};

/// Bytes read from a socket at a time. One buffer serves all connections of the worker.
pub const SCRATCH_BYTES: usize = 64 * 1024;

/// One configuration, compiled. Requests in progress keep the one they began with.
#[derive(Debug)]
pub struct Site {
    /// As checked by the master.
    pub snapshot: Snapshot,
    /// Its routes.
    pub router: Router,
    /// Each listener's address, for requests that name no host.
    pub listener_names: Vec<String>,
    /// Bounds of heads. For those of requests see [`Site::request_limits`].
    pub head_limits: HeadLimits,
    /// Who may prove to be whom.
    pub users: Users,
    /// Where this proxy listens.
    pub own: Own,
    /// The name in Via on forward listeners, by which a request is known that comes back.
    pub via: String,
}

/// A name for this proxy that others do not have: of the machine's name and the addresses it listens on, so that all
/// workers have the same.
fn via_name(snapshot: &Snapshot) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    rustix::system::uname().nodename().to_bytes().hash(&mut hasher);
    for listener in &snapshot.listeners {
        listener.bind.hash(&mut hasher);
    }
    format!("{VIA_NAME}-{:016x}", hasher.finish())
}

impl Site {
    /// Compiles a snapshot, for a worker whose buffers have `slot_bytes` each: longer heads than these were made for
    /// cannot be allowed.
    #[must_use]
    pub fn new(snapshot: Snapshot, slot_bytes: u32) -> Site {
        let name = |bind: &Address| match bind {
            Address::Inet(addr) => addr.to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        Site {
            router: Router::new(&snapshot.routes),
            listener_names: snapshot.listeners.iter().map(|listener| name(&listener.bind)).collect(),
            head_limits: HeadLimits {
                bytes: snapshot.limits.head_bytes.min(Snapshot::head_bytes_within(slot_bytes)) as usize,
                fields: usize::from(snapshot.limits.head_fields),
                by_target: false,
            },
            users: Users::new(&snapshot.users),
            own: Own::new(&snapshot),
            via: via_name(&snapshot),
            snapshot,
        }
    }

    /// What is asked of the heads of requests to this listener.
    #[must_use]
    pub fn request_limits(&self, listener: ListenerId) -> HeadLimits {
        let mode = self.snapshot.listeners.get(usize::from(listener)).map(|listener| listener.mode);
        HeadLimits { by_target: mode == Some(Mode::Forward), ..self.head_limits }
    }
}

/// Something to go on with before the next wait for events: its readiness is known, no event would come.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Look for the next request.
    Client(Key<Client>),
    /// It used up its share of a turn.
    Exchange(Key<Exchange>),
    /// It used up its share of a turn.
    Relay(Key<Relay>),
}

/// The worker's clock, read once per turn of the loop.
#[derive(Debug)]
pub struct Clock {
    /// Microseconds of the monotonic clock.
    pub now_us: u64,
    /// Milliseconds of the same.
    pub now_ms: u64,
    /// Milliseconds since 1970, advanced by the monotonic clock and set right once a second.
    pub unix_ms: u64,
    wall_read_ms: u64,
    wall_ms: u64,
    /// How far it goes ahead of the system's, in microseconds: 0 but in tests, which need not wait then.
    pub ahead_us: u64,
}

impl Clock {
    /// Reads both clocks.
    #[must_use]
    pub fn new() -> Clock {
        let mut clock = Clock { now_us: 0, now_ms: 0, unix_ms: 0, wall_read_ms: 0, wall_ms: 0, ahead_us: 0 };
        clock.read();
        clock
    }

    /// Reads the clock anew.
    pub fn read(&mut self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        self.now_us = seconds * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000 + self.ahead_us;
        self.now_ms = self.now_us / 1000;
        if self.wall_read_ms == 0 || self.now_ms >= self.wall_read_ms + 1000 {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            self.wall_ms = u64::try_from(wall).unwrap_or(0);
            self.wall_read_ms = self.now_ms;
        }
        self.unix_ms = self.wall_ms + (self.now_ms - self.wall_read_ms);
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Ctx {
    /// The worker's number, from 0.
    pub index: u16,
    /// Its process id.
    pub pid: u32,
    /// What its random choices begin with.
    pub seed: u64,
    /// How long its buffers for requests are.
    pub slot_bytes: u32,
    /// The present configuration.
    pub site: Rc<Site>,
    /// Server choice and kept connections, by group.
    pub pools: Pools,
    /// What workers count together.
    pub share: Rc<Share>,
    /// Kept connections to targets that clients have named.
    pub origins: Origins,
    /// What the names of servers stand for.
    pub names: Names,
    /// The resolver. Whoever looks something up waits as a [`Waiter`].
    pub dns: Resolving<Waiter>,
    /// The resolver's entry in the timer wheel.
    pub dns_timer: Option<Armed>,
    /// Counters and connection records shared with the master.
    pub control: Control,
    /// Buffers for requests not yet answered, readable by the master after this process's death.
    pub arena: Arena,
    /// The way to the master.
    pub channel: Channel,
    /// Where sockets are registered.
    pub registry: Registry,
    /// All time limits.
    pub timers: Timers,
    /// The clock.
    pub clock: Clock,
    /// The clock as text.
    pub date: DateCache,
    /// What was last read from any socket.
    pub scratch: Box<[u8]>,
    /// What is about to be written to any socket.
    pub out: Vec<u8>,
    /// The request head last parsed.
    pub request: RequestHead,
    /// The response head last parsed.
    pub response: ResponseHead,
    /// Buffers for stuck bytes.
    pub buffers: Buffers,
    /// Pipes for splicing.
    pub pipes: Pipes,
    /// How many descriptors there may be.
    pub descriptors: Descriptors,
    /// Connections to clients and servers.
    pub sockets: usize,
    /// Whether there may be more events than this turn looks at.
    pub events_left: bool,
    /// Descriptors kept open for the case that the master dies.
    pub kept: usize,
    /// What was closed to make room, to be warned of.
    pub given_way: GivenWay,
    /// Requests that wait for a descriptor.
    pub awaiting: VecDeque<Key<Exchange>>,
    /// The access log, if there is one.
    pub log: Option<AccessLog>,
    /// To be gone on with in this turn.
    pub work: VecDeque<Work>,
    /// Connections closed and not yet reported to the master.
    pub finished: Vec<u32>,
    /// When the first of them was closed.
    pub finished_since_ms: u64,
    /// Relays whose server's connection the master has not got yet: they begin when it has.
    pub to_hand_over: Vec<Key<Relay>>,
    /// Until when those wait that the master had no room for; `None` = it had.
    pub hand_over_until_ms: Option<u64>,
    /// The configuration that the master has not been told of yet.
    pub reloaded: Option<u64>,
    /// Whether the worker finishes what it has and takes nothing new.
    pub draining: bool,
    /// Whether the master has died: nobody holds copies any more.
    pub orphan: bool,
    /// Whether what can be served elsewhere is then given back to the master.
    pub giving_back: bool,
    /// Connections let go of and not yet reported so.
    pub given_back: Vec<Returned>,
    /// Those reported that the master has not passed on yet, the earliest first.
    pub returned: VecDeque<Returned>,
}

/// Token kinds, in the two bits that a key leaves free.
const KIND_SHIFT: u32 = 62;
const KIND_CLIENT: u64 = 0;
const KIND_UPSTREAM: u64 = 1;
const KIND_DNS: u64 = 2;
/// No key is this: no slot has such an index.
const TIMER: u64 = (1 << KIND_SHIFT) - 1;

/// Whose event or timer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A client connection.
    Client(Key<Client>),
    /// A connection to a server.
    Upstream(Key<crate::backend::Upstream>),
    /// A socket of the resolver.
    Dns(Key<Wire>),
    /// The resolver's timer.
    DnsTimer,
}

impl Owner {
    /// As a number for epoll and the timer wheel.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        match self {
            Owner::Client(key) => key.to_bits() | KIND_CLIENT << KIND_SHIFT,
            Owner::Upstream(key) => key.to_bits() | KIND_UPSTREAM << KIND_SHIFT,
            Owner::Dns(key) => key.to_bits() | KIND_DNS << KIND_SHIFT,
            Owner::DnsTimer => TIMER | KIND_DNS << KIND_SHIFT,
        }
    }

    /// As epoll wants it.
    #[must_use]
    pub fn token(self) -> Token {
        #[allow(clippy::cast_possible_truncation, reason = "usize has 64 bits on every target with epoll we build for")]
        Token(self.to_bits() as usize)
    }

    /// Back again; `None` for the numbers of other things.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Owner> {
        let key = bits & ((1 << KIND_SHIFT) - 1);
        match bits >> KIND_SHIFT {
            KIND_CLIENT => Some(Owner::Client(Key::from_bits(key))),
            KIND_UPSTREAM => Some(Owner::Upstream(Key::from_bits(key))),
            KIND_DNS if key == TIMER => Some(Owner::DnsTimer),
            KIND_DNS => Some(Owner::Dns(Key::from_bits(key))),
            _ => None,
        }
    }
}

impl Ctx {
    /// Registers a socket for both directions, once for its life; it may be registered already. A client's is
    /// registered only when it must be waited for: one that is answered and closed at once never is.
    ///
    /// # Errors
    /// When the kernel has no room for it.
    pub fn register(&self, socket: &mut Socket, owner: Owner) -> std::io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let fd = socket.as_fd().as_raw_fd();
        match socket.watch {
            Watch::On => {}
            Watch::Off => self.registry.register(&mut SourceFd(&fd), owner.token(), interest)?,
            Watch::Once | Watch::Spent => self.registry.reregister(&mut SourceFd(&fd), owner.token(), interest)?,
        }
        socket.watch = Watch::On;
        Ok(())
    }

    /// As [`Ctx::register`], and whether it could be done. A socket that cannot be watched is marked as gone, so that
    /// it is let go of by whoever looks at it next; where nobody does before a long time is over, the caller has to.
    pub fn watch(&self, socket: &mut Socket, owner: Owner) -> bool {
        let watched = self.register(socket, owner);
        if let Err(error) = &watched {
            warn!("cannot watch a connection: {error}");
            socket.give_up();
        }
        watched.is_ok()
    }

    /// Has one event told when something can be read from a client of which nothing has been read. Most often that is its
    /// only request, and then closing costs a call less: no more events come, so that it may stay entered until the
    /// last copy is closed.
    pub fn watch_once(&self, socket: &mut Socket, owner: Owner) {
        match socket.watch {
            Watch::On | Watch::Once => {}
            Watch::Spent => {
                self.watch(socket, owner);
            }
            Watch::Off => {
                let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET | EventFlags::ONESHOT;
                let data = EventData::new_u64(owner.to_bits());
                match epoll::add(&self.registry, socket.as_fd(), data, flags) {
                    Ok(()) => socket.watch = Watch::Once,
                    Err(errno) => {
                        warn!("cannot watch a connection: {errno}");
                        socket.give_up();
                    }
                }
            }
        }
    }

    /// Takes a socket out of epoll.
    pub fn deregister(&self, socket: &mut Socket) {
        if socket.watch != Watch::Off {
            socket.watch = Watch::Off;
            // Fails only for a descriptor that is not registered.
            let _ = self.registry.deregister(&mut SourceFd(&socket.as_fd().as_raw_fd()));
        }
    }

    /// Sets a socket's time limit to `due_ms` (absolute). Usually only a store: the wheel's entry follows lazily.
    pub fn arm(&mut self, socket: &mut Socket, owner: Owner, due_ms: u64) {
        let deadline = &mut socket.deadline;
        deadline.due_ms = due_ms;
        if due_ms != u64::MAX {
            deadline.armed = Some(self.timers.rearm(owner.to_bits(), deadline.armed, due_ms));
        }
    }

    /// A wheel entry has fired. Whether the socket's time limit has really passed; if not, the entry is put where
    /// it belongs now.
    pub fn is_due(&mut self, socket: &mut Socket, owner: Owner, fired: Armed) -> bool {
        if socket.deadline.armed != Some(fired) {
            return false;
        }
        socket.deadline.armed = None;
        let due_ms = socket.deadline.due_ms;
        if due_ms > self.clock.now_ms {
            self.arm(socket, owner, due_ms);
            return false;
        }
        true
    }

    /// Lets go of a socket, of whose connection another process may have a copy: nothing that happens on it from now
    /// on wakes this worker. With both ends of stream exchanged nothing does, and a call is saved.
    pub fn forget(&mut self, socket: &mut Socket) {
        if socket.is_watched() && !socket.is_over() {
            self.deregister(socket);
        }
        self.forget_own(socket);
    }

    /// Lets go of a socket of which nobody has a copy: closing it takes it out of epoll.
    pub fn forget_own(&mut self, socket: &mut Socket) {
        self.sockets -= 1;
        if let Some(armed) = socket.deadline.armed.take() {
            self.timers.cancel(armed);
        }
    }

    /// An empty pipe that the master knows; `None` when there is none to be had.
    pub fn take_pipe(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.pipes.take() {
            return Some(pipe);
        }
        if self.descriptors_left() < 2 {
            return None;
        }
        let pipe = self.pipes.make().ok()?;
        // Before a byte goes in: a death right after that must find the master with its copy.
        let told = match pipe.number() {
            Some(number) => self.orphan || self.channel.send(&ToMaster::Pipe { number }, &[pipe.reading_end()]).is_ok(),
            None => false,
        };
        if told {
            return Some(pipe);
        }
        self.pipes.discard(pipe);
        None
    }

    /// Has the master told of finished connections at the end of this turn: it waits for their room.
    pub fn report_at_once(&mut self) {
        self.finished_since_ms = 0;
    }

    /// A client connection is closed here; the master is told in a batch.
    pub fn report_finished(&mut self, id: u32) {
        if self.finished.is_empty() {
            self.finished_since_ms = self.clock.now_ms;
        }
        self.finished.push(id);
        self.control.stats().finished.add(1);
    }
}
