//! A byte relay between a client and a server: a TCP connection, or a tunnel after a 101.
//!
//! Bytes move by `splice(2)` and never enter this process, but for those that had been read before a tunnel
//! began. The end of one direction is passed on when everything before it has been; the other goes on.

use ipc::snapshot::{GroupId, Mode};
use ipc::state::Phase;
use log::debug;

use crate::access_log::Entry;
use crate::backend::{Upstream, UpstreamState};
use crate::backend::{connect, upstream};
use crate::buffer::Pending;
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Owner, Work};
use crate::exchange::MAX_TRIES;
use crate::exchange::carry::{report_failure, report_success, source_of};
use crate::exchange::{CLIENT_GONE, Reason};
use crate::io::socket::{Io, Socket};
use crate::io::splice::Pipe;
use crate::slab::Key;
use crate::worker::Worker;

/// Bytes moved in one direction in one turn at most.
const TURN_BYTES: usize = 1024 * 1024;
/// Bytes moved into the pipe at a time.
const FILL_BYTES: usize = 1024 * 1024;

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Bytes read before the relay began; they go first.
    early: Pending,
    /// A pipe and the bytes in it; `None` while nothing is on its way.
    pipe: Option<(Pipe, usize)>,
    /// The sender has sent its last byte.
    ended: bool,
    /// The receiver has been told so.
    passed_on: bool,
    /// Bytes moved.
    moved: u64,
}

/// What moving one direction came to.
enum Moved {
    /// Nothing more can move now.
    Blocked,
    /// It used up its share of this turn.
    Again,
    /// The connection from the sender is broken.
    FromBroken,
    /// The connection to the receiver is broken.
    ToBroken,
}

impl Flow {
    fn pump(&mut self, from: &mut Socket, to: &mut Socket, cx: &mut Ctx) -> Moved {
        let mut budget = TURN_BYTES;
        loop {
            while !self.early.is_empty() {
                match to.send(self.early.rest(), &[]) {
                    Io::Moved(n) => {
                        self.moved += n as u64;
                        self.early.advance(n, &mut cx.buffers);
                    }
                    Io::Blocked | Io::Eof => return Moved::Blocked,
                    Io::Broken(_) => return Moved::ToBroken,
                }
            }
            while let Some((pipe, held)) = &mut self.pipe {
                match to.splice_out(pipe, *held) {
                    Io::Moved(n) => {
                        self.moved += n as u64;
                        *held -= n;
                        if *held == 0
                            && let Some((pipe, _)) = self.pipe.take()
                        {
                            cx.pipes.put(pipe);
                        }
                    }
                    Io::Blocked | Io::Eof => return Moved::Blocked,
                    Io::Broken(_) => return Moved::ToBroken,
                }
            }
            if self.ended {
                if !self.passed_on {
                    self.passed_on = true;
                    to.shutdown_write();
                }
                return Moved::Blocked;
            }
            if !from.is_readable() {
                return Moved::Blocked;
            }
            if budget == 0 {
                return Moved::Again;
            }
            let pipe = match cx.pipes.take() {
                Ok(pipe) => pipe,
                Err(_) => return Moved::FromBroken,
            };
            match from.splice_in(&pipe, FILL_BYTES) {
                Io::Moved(n) => {
                    budget = budget.saturating_sub(n);
                    self.pipe = Some((pipe, n));
                }
                Io::Blocked => {
                    cx.pipes.put(pipe);
                    return Moved::Blocked;
                }
                Io::Eof => {
                    cx.pipes.put(pipe);
                    self.ended = true;
                }
                Io::Broken(_) => {
                    cx.pipes.put(pipe);
                    return Moved::FromBroken;
                }
            }
        }
    }

    fn release(&mut self, cx: &mut Ctx) {
        self.early.clear(&mut cx.buffers);
        // A pipe with bytes in it is dropped with them.
        self.pipe = None;
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Relay {
    client: Key<Client>,
    upstream: Option<Key<Upstream>>,
    group: GroupId,
    server: u16,
    tried: Vec<u16>,
    connect_ms: u32,
    tunnel_ms: u32,
    to_server: Flow,
    to_client: Flow,
    began_us: u64,
    connected_us: u64,
    /// Whether it belongs to a TCP listener and has a line of its own in the access log.
    tcp: bool,
}

impl Worker {
    /// Begins to relay a connection of a TCP listener.
    pub(crate) fn begin_relay(&mut self, client: Key<Client>, group: GroupId) {
        let Some(connection) = self.clients.get(client) else { return };
        let listener = &self.cx.site.snapshot.listeners[usize::from(connection.listener)];
        let timeouts = listener.timeouts.with(&self.cx.site.snapshot.groups[usize::from(group)].timeouts);
        let relay = Relay {
            client,
            upstream: None,
            group,
            server: 0,
            tried: Vec::new(),
            connect_ms: timeouts.connect_ms,
            tunnel_ms: timeouts.tunnel_ms,
            to_server: Flow::default(),
            to_client: Flow::default(),
            began_us: self.cx.clock.now_us,
            connected_us: 0,
            tcp: true,
        };
        connection.publish(Phase::Relay, &self.cx);
        let Ok(key) = self.relays.insert(relay) else { return self.close_client(client) };
        if let Some(connection) = self.clients.get_mut(client) {
            connection.state = ClientState::Relay(key);
        }
        self.connect_relay(key);
    }

    /// Goes on with two connections that an exchange has upgraded.
    pub(crate) fn relay_tunnel(
        &mut self,
        client: Key<Client>,
        upstream: Key<Upstream>,
        request_end: usize,
        to_client: Pending,
        tunnel_ms: u32,
    ) {
        let (Some(connection), Some(server)) = (self.clients.get_mut(client), self.upstreams.get_mut(upstream)) else {
            return self.close_client(client);
        };
        let mut early = Pending::default();
        early.push(connection.input_from(request_end, &self.cx.arena), &mut self.cx.buffers);
        connection.publish(Phase::Relay, &self.cx);
        connection.release_input(&mut self.cx);
        let relay = Relay {
            client,
            upstream: Some(upstream),
            group: server.group,
            server: server.server,
            tried: Vec::new(),
            connect_ms: 0,
            tunnel_ms,
            to_server: Flow { early, ..Flow::default() },
            to_client: Flow { early: to_client, ..Flow::default() },
            began_us: self.cx.clock.now_us,
            connected_us: self.cx.clock.now_us,
            tcp: false,
        };
        let Ok(key) = self.relays.insert(relay) else { return self.close_client(client) };
        connection.state = ClientState::Relay(key);
        server.state = UpstreamState::Relay(key);
        server.socket.deadline.due_ms = u64::MAX;
        self.drive_relay(key);
    }

    /// Connects to the next server; ends the relay when there is none.
    fn connect_relay(&mut self, key: Key<Relay>) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let site = std::rc::Rc::clone(&self.cx.site);
        let settings = &site.snapshot.groups[usize::from(relay.group)];
        let source = source_of(self.clients.get(relay.client).and_then(|client| client.peer));
        let tries = usize::from(settings.tries).clamp(1, MAX_TRIES);
        while relay.tried.len() < tries {
            let now_ms = self.cx.clock.now_ms;
            let Some(server) = self.cx.pools.pick(relay.group, source, now_ms, &relay.tried) else { break };
            relay.server = server;
            let connecting = match connect::open(&settings.servers[usize::from(server)].address) {
                Ok(connecting) => connecting,
                Err(errno) => {
                    debug!("{}: cannot connect: {errno}", settings.servers[usize::from(server)].name);
                    relay.tried.push(server);
                    report_failure(&mut self.cx.pools, &site.snapshot, relay.group, server, now_ms);
                    continue;
                }
            };
            let upstream = Upstream {
                socket: connecting.socket,
                group: relay.group,
                server,
                state: UpstreamState::Relay(key),
                connecting: !connecting.done,
                reused: false,
                partial: Vec::new(),
            };
            let (group, connect_ms, done) = (relay.group, relay.connect_ms, connecting.done);
            let Some(upstream) = upstream::add(&mut self.upstreams, upstream, &mut self.cx) else {
                return self.end_relay(key, Some(Reason::Text("no room")));
            };
            self.cx.pools.balance(group).began(server);
            if let Some(relay) = self.relays.get_mut(key) {
                relay.upstream = Some(upstream);
            }
            if let Some(connection) = self.upstreams.get_mut(upstream) {
                let due_ms = now_ms + u64::from(connect_ms);
                self.cx.arm(&mut connection.socket, Owner::Upstream(upstream), due_ms);
            }
            if done {
                self.relay_connected(key);
            }
            return;
        }
        self.end_relay(key, Some(Reason::Text("no server of the group could be connected to")));
    }

    fn relay_connected(&mut self, key: Key<Relay>) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.connected_us = self.cx.clock.now_us;
        report_success(&mut self.cx.pools, &self.cx.site.snapshot, relay.group, relay.server);
        if let Some(upstream) = relay.upstream.and_then(|key| self.upstreams.get_mut(key)) {
            upstream.connecting = false;
            upstream.socket.deadline.due_ms = u64::MAX;
        }
        self.drive_relay(key);
    }

    /// The connection to the server failed or took too long: the next one.
    pub(crate) fn relay_connect_failed(&mut self, key: Key<Relay>) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.tried.push(relay.server);
        let (group, server) = (relay.group, relay.server);
        report_failure(&mut self.cx.pools, &self.cx.site.snapshot, group, server, self.cx.clock.now_ms);
        if let Some(upstream) = relay.upstream.take() {
            self.cx.pools.balance(group).ended(server);
            self.close_upstream(upstream);
        }
        self.connect_relay(key);
    }

    /// An event on the server's connection of a relay.
    pub(crate) fn on_relay_upstream(&mut self, key: Key<Relay>, upstream: Key<Upstream>) {
        let Some(connection) = self.upstreams.get_mut(upstream) else { return };
        if !connection.connecting {
            return self.drive_relay(key);
        }
        if let Some(errno) = connection.socket.take_error() {
            debug!("cannot connect to a server: {errno}");
            self.relay_connect_failed(key);
        } else if connection.socket.is_writable() {
            self.relay_connected(key);
        }
    }

    /// Moves bytes both ways as far as they go now.
    pub(crate) fn drive_relay(&mut self, key: Key<Relay>) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let Some(client) = self.clients.get_mut(relay.client) else { return };
        let Some(upstream) = relay.upstream.and_then(|key| self.upstreams.get_mut(key)) else { return };
        if upstream.connecting {
            if client.socket.is_gone() {
                self.end_relay(key, Some(CLIENT_GONE));
            }
            return;
        }
        let before = relay.to_server.moved + relay.to_client.moved;
        let up = relay.to_server.pump(&mut client.socket, &mut upstream.socket, &mut self.cx);
        let down = relay.to_client.pump(&mut upstream.socket, &mut client.socket, &mut self.cx);
        let after = relay.to_server.moved + relay.to_client.moved;
        if after != before || client.socket.deadline.due_ms == u64::MAX {
            let due_ms = self.cx.clock.now_ms + u64::from(relay.tunnel_ms);
            self.cx.arm(&mut client.socket, Owner::Client(relay.client), due_ms);
        }
        let done = relay.to_server.passed_on && relay.to_client.passed_on;
        match (up, down) {
            (Moved::FromBroken, _) | (_, Moved::ToBroken) => {
                self.end_relay(key, Some(Reason::Text("the client's connection broke")))
            }
            (Moved::ToBroken, _) | (_, Moved::FromBroken) => {
                self.end_relay(key, Some(Reason::Text("the server's connection broke")))
            }
            (Moved::Blocked, Moved::Blocked) if done => self.end_relay(key, None),
            (Moved::Blocked, Moved::Blocked) => {}
            (Moved::Again, Moved::Blocked | Moved::Again) | (Moved::Blocked, Moved::Again) => {
                self.cx.work.push_back(Work::Relay(key));
            }
        }
    }

    /// Ends a relay. With a `reason` both connections are reset, so that neither side takes what it has for all.
    pub(crate) fn end_relay(&mut self, key: Key<Relay>, reason: Option<Reason>) {
        let Some(mut relay) = self.relays.remove(key) else { return };
        relay.to_server.release(&mut self.cx);
        relay.to_client.release(&mut self.cx);
        if let (true, Some(log)) = (relay.tcp, &mut self.cx.log) {
            let settings = self.cx.site.snapshot.groups.get(usize::from(relay.group));
            let server = settings.and_then(|group| group.servers.get(usize::from(relay.server)));
            let reason = reason.map(|reason| reason.to_string());
            let entry = Entry {
                client: self.clients.get(relay.client).and_then(|client| client.peer),
                backend: server.map(|server| server.name.as_str()),
                bytes_in: relay.to_server.moved,
                bytes_out: relay.to_client.moved,
                connect_us: relay.connected_us.checked_sub(relay.began_us),
                total_us: Some(self.cx.clock.now_us - relay.began_us),
                retries: u32::try_from(relay.tried.len()).unwrap_or(0),
                reason: reason.as_deref(),
                ..Entry::new(Mode::Tcp, self.cx.clock.unix_ms, self.cx.index)
            };
            log.record(&entry, self.cx.clock.now_ms);
        }
        if let Some(upstream) = relay.upstream {
            self.cx.pools.balance(relay.group).ended(relay.server);
            if let Some(connection) = self.upstreams.get_mut(upstream)
                && reason.is_some()
            {
                connection.socket.reset();
            }
            self.close_upstream(upstream);
        }
        if let Some(client) = self.clients.get_mut(relay.client)
            && reason.is_some()
        {
            client.socket.reset();
        }
        self.close_client(relay.client);
    }
}
