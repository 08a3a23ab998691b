//! How a relay begins: with a connection to a server, with a protocol switched to, or with what a former worker left.

use std::os::fd::OwnedFd;

use ipc::forward::Tunnel;
use ipc::state::Phase;
use log::{debug, warn};

use crate::backend::pool::{GONE, Place};
use crate::backend::{Upstream, UpstreamState, connect, upstream};
use crate::buffer::Pending;
use crate::client::{Client, ClientState};
use crate::ctx::Owner;
use crate::exchange::carry::source_of;
use crate::exchange::{MAX_TRIES, Reason};
use crate::forward::Pass;
use crate::io::socket::{Io, Socket};
use crate::relay::Relay;
use crate::relay::delivery::Delivery;
use crate::relay::flow::Flow;
use crate::relay::line::Opened;
use crate::room::{self, is_shortage};
use crate::slab::Key;
use crate::worker::Worker;

const UNWATCHED: &str = "the kernel had no room to watch the client's connection";
const NO_SERVER: &str = "no server of the group can take the connection";
const FULL: &str = "the group's servers have as many connections as max_per_server allows";

impl Relay {
    fn new(client: Key<Client>, tunnel_ms: u32, now_us: u64) -> Relay {
        Relay {
            client,
            upstream: None,
            delivery: None,
            pool: None,
            place: None,
            gone_server: None,
            send_proxy: None,
            tried: Vec::new(),
            passed_over: 0,
            last_failure: None,
            connect_ms: 0,
            tunnel_ms,
            to_server: Flow::default(),
            to_client: Flow::default(),
            begun: false,
            handed_over: false,
            phase: Phase::Open,
            began_us: now_us,
            connected_us: now_us,
            queued: false,
            look_again: false,
            tcp: false,
            pass: None,
            opened: None,
            own_bytes: 0,
            adopted: false,
        }
    }
}

/// What a tunnel begins with, besides its connections.
#[derive(Debug)]
pub(crate) struct NewTunnel {
    /// Where what follows the request lies in the client's slot.
    pub(crate) request_end: usize,
    /// What the client gets first,
    pub(crate) to_client: Pending,
    /// of which so many bytes are no part of the tunnel.
    pub(crate) own_bytes: u64,
    /// How long nothing may move.
    pub(crate) tunnel_ms: u32,
    /// On a forward listener, what was allowed.
    pub(crate) pass: Option<Box<Pass>>,
    /// What is logged of the request that it was.
    pub(crate) opened: Option<Box<Opened>>,
}

/// What is known of a relay that a former worker left.
#[derive(Debug)]
pub(crate) struct Left {
    /// The number of its server.
    pub(crate) server: Option<u64>,
    /// Whether its answer goes elsewhere.
    pub(crate) reply: bool,
    /// Whether there is a pipe, by direction.
    pub(crate) pipes: [bool; 2],
    /// Of a forward listener: what its former worker knew.
    pub(crate) tunnel: Option<Box<Tunnel>>,
}

impl Worker {
    /// Begins to relay a connection of a TCP listener.
    pub(crate) fn begin_relay(&mut self, client: Key<Client>, group: ipc::snapshot::GroupId) {
        let Some(connection) = self.clients.get_mut(client) else { return };
        let listener = &self.cx.site.snapshot.listeners[usize::from(connection.listener)];
        let timeouts = listener.timeouts.with(&self.cx.site.snapshot.groups[usize::from(group)].timeouts);
        let relay = Relay {
            connect_ms: timeouts.connect_ms,
            connected_us: 0,
            tcp: true,
            pool: self.cx.pools.id(&self.cx.site, group),
            ..Relay::new(client, timeouts.tunnel_ms, self.cx.clock.now_us)
        };
        let Ok(key) = self.relays.insert(relay) else { return self.close_client(client) };
        connection.state = ClientState::Relay(key);
        if !self.cx.watch(&mut connection.socket, Owner::Client(client)) {
            return self.end_relay(key, Some(Reason::Text(UNWATCHED)));
        }
        self.connect_relay(key);
    }

    /// Goes on with two connections that an exchange has upgraded. Until the master has the server's connection
    /// nothing moves, so that up to then a successor would simply run the request again.
    pub(crate) fn relay_tunnel(&mut self, client: Key<Client>, upstream: Key<Upstream>, tunnel: NewTunnel) {
        let (Some(connection), Some(server)) = (self.clients.get_mut(client), self.upstreams.get_mut(upstream)) else {
            return self.close_client(client);
        };
        let mut early = Pending::default();
        early.push(connection.input_from(tunnel.request_end, &self.cx.arena), &mut self.cx.buffers);
        let mut relay = Relay::new(client, tunnel.tunnel_ms, self.cx.clock.now_us);
        (relay.pass, relay.opened, relay.own_bytes) = (tunnel.pass, tunnel.opened, tunnel.own_bytes);
        relay.upstream = Some(upstream);
        relay.place = server.place;
        relay.pool = server.place.map(Place::group);
        relay.to_server.early = early;
        relay.to_client.early = tunnel.to_client;
        if let Some(reply_to) = relay.pass.as_ref().and_then(|pass| pass.reply_to) {
            relay.to_client.holds_end = true;
            relay.delivery = Some(Delivery::to(&reply_to));
        }
        // Without a socket for its answer nobody is to go on with it.
        let nowhere = relay.delivery.as_ref().is_some_and(|delivery| delivery.unwatched().is_none());
        let Ok(key) = self.relays.insert(relay) else { return self.close_client(client) };
        connection.state = ClientState::Relay(key);
        let watched = self.cx.watch(&mut connection.socket, Owner::Client(client));
        server.state = UpstreamState::Relay(key);
        server.socket.deadline.due_ms = u64::MAX;
        connection.socket.deadline.due_ms = u64::MAX;
        if !watched {
            return self.end_relay(key, Some(Reason::Text(UNWATCHED)));
        }
        if nowhere {
            return self.connect_reply(key);
        }
        self.cx.to_hand_over.push(key);
    }

    /// Goes on with a relay that a former worker left: `rest` is the server's connection, the one that takes the answer if
    /// there is one, then the pipes.
    pub(crate) fn adopt_relay(&mut self, client: Key<Client>, left: Left, rest: Vec<OwnedFd>) {
        let Left { server, reply, pipes: [to_server, _], tunnel } = left;
        let mut fds = rest.into_iter();
        let Some(socket) = fds.next().map(Socket::of_either_kind) else { return self.close_client(client) };
        let reply = if reply { fds.next().map(Socket::new) } else { None };
        let (socket, reply) = match reply {
            Some(reply) if self.has_been_told(client) => return self.end_told(client, socket, reply),
            reply => (socket, reply),
        };
        let Some(connection) = self.clients.get_mut(client) else { return };
        let place = server.and_then(|number| self.cx.pools.find(number));
        let pool = place.map(Place::group);
        let listener = &self.cx.site.snapshot.listeners[usize::from(connection.listener)];
        let over = pool.map(|pool| self.cx.pools.settings(pool).timeouts);
        let timeouts = listener.timeouts.with(&over.unwrap_or_default());
        let tcp = listener.mode == ipc::snapshot::Mode::Tcp;
        let mut relay = Relay::new(client, timeouts.tunnel_ms, self.cx.clock.now_us);
        (relay.place, relay.pool, relay.tcp, relay.adopted) = (place, pool, tcp, true);
        let forward = listener.forward.as_ref();
        (relay.begun, relay.handed_over) = (true, connection.protected);
        if let Some(forward) = forward {
            let mut pass = Pass::taken_over(tunnel, forward, self.cx.clock.now_us);
            pass.address = socket.peer_addr().or(pass.address);
            if let Some(rules) = forward.rules.as_ref().filter(|rules| pass.is_under(&rules.name)) {
                let peer = connection.peer.map(|peer| peer.ip());
                pass.lease = self.forward.uses.take_over(rules, pass.user.as_deref(), peer);
            }
            relay.pass = Some(Box::new(pass));
        }
        relay.delivery = Delivery::left(reply, relay.pass.as_ref().and_then(|pass| pass.reply_to));
        relay.to_client.holds_end = relay.delivery.is_some();
        for (flow, fd) in
            [&mut relay.to_server, &mut relay.to_client].into_iter().skip(usize::from(!to_server)).zip(fds)
        {
            match self.cx.pipes.inherit(fd) {
                Ok((pipe, held @ 1..)) => flow.pipe = Some((pipe, held)),
                Ok((pipe, 0)) => self.cx.pipes.discard(pipe),
                Err(errno) => warn!("what came as a pipe of a former worker is none: {errno}"),
            }
        }
        if self.cx.log.is_some() {
            relay.count_former(connection);
        }
        let Ok(key) = self.relays.insert(relay) else { return self.close_client(client) };
        connection.state = ClientState::Relay(key);
        let watched = self.cx.watch(&mut connection.socket, Owner::Client(client));
        let upstream = Upstream {
            socket,
            place,
            state: UpstreamState::Relay(key),
            connecting: false,
            reused: false,
            private: false,
            partial: Vec::new(),
            answers_at_length: false,
        };
        let Some(upstream) = upstream::add(&mut self.upstreams, upstream, &mut self.cx) else {
            return self.end_relay(key, Some(Reason::Text("the worker has no room for a connection")));
        };
        if let Some(place) = place {
            self.cx.pools.began(place);
        }
        if let (Some(relay), Some(connection)) = (self.relays.get_mut(key), self.clients.get_mut(client)) {
            relay.upstream = Some(upstream);
            relay.publish(connection, false, &self.cx);
        }
        if !watched {
            return self.end_relay(key, Some(Reason::Text(UNWATCHED)));
        }
        self.connect_reply(key);
        self.drive_relay(key);
    }

    /// Connects to the next server; ends the relay when there is none.
    fn connect_relay(&mut self, key: Key<Relay>) {
        self.make_room();
        let mut made_room = false;
        let Some(mut relay) = self.relays.get_mut(key) else { return };
        let Some(pool) = relay.pool else {
            return self.end_relay(key, Some(Reason::Text("its backend group was removed")));
        };
        let source = source_of(self.clients.get(relay.client).and_then(|client| client.peer));
        let tries = usize::from(self.cx.pools.settings(pool).tries).clamp(1, MAX_TRIES);
        while relay.tried.len() < tries + relay.passed_over {
            let now_ms = self.cx.clock.now_ms;
            let Some(place) = self.cx.pools.pick(pool, source, now_ms, &relay.tried) else { break };
            relay.place = Some(place);
            relay.gone_server = None;
            relay.send_proxy = self.cx.pools.settings(pool).send_proxy;
            let connecting = match connect::open(&self.cx.pools.server(place).address) {
                Ok(connecting) => connecting,
                // None of the server's doing.
                Err(errno) if is_shortage(errno) => {
                    if made_room || self.free_descriptors(room::BATCH) == 0 {
                        return self
                            .end_relay(key, Some(Reason::Text("the worker has no descriptor for a connection")));
                    }
                    made_room = true;
                    relay = match self.relays.get_mut(key) {
                        Some(relay) => relay,
                        None => return,
                    };
                    continue;
                }
                Err(errno) => {
                    debug!("{}: cannot connect: {errno}", self.cx.pools.server(place).name);
                    relay.tried.push(place.server());
                    if connect::is_without_way(&self.cx.pools.server(place).address, errno)
                        && relay.passed_over < connect::PASSED_OVER_MAX
                    {
                        relay.passed_over += 1;
                    }
                    relay.last_failure = Some(Reason::Connect(errno));
                    self.cx.pools.failed(place, &Reason::Connect(errno), now_ms);
                    continue;
                }
            };
            let upstream = Upstream {
                socket: connecting.socket,
                place: Some(place),
                state: UpstreamState::Relay(key),
                connecting: !connecting.done,
                reused: false,
                private: relay.send_proxy.is_some(),
                partial: Vec::new(),
                answers_at_length: false,
            };
            let connect_ms = relay.connect_ms;
            let Some(upstream) = upstream::add(&mut self.upstreams, upstream, &mut self.cx) else {
                return self.end_relay(key, Some(Reason::Text("the worker has no room for a connection")));
            };
            self.cx.pools.began(place);
            relay.upstream = Some(upstream);
            if let Some(connection) = self.upstreams.get_mut(upstream) {
                let due_ms = now_ms + u64::from(connect_ms);
                self.cx.arm(&mut connection.socket, Owner::Upstream(upstream), due_ms);
            }
            if connecting.done {
                self.relay_connected(key);
            }
            return;
        }
        let nobody = if self.cx.pools.is_full(pool) { FULL } else { NO_SERVER };
        let last = self.relays.get(key).and_then(|relay| relay.last_failure);
        self.end_relay(key, Some(last.unwrap_or(Reason::Text(nobody))));
    }

    fn relay_connected(&mut self, key: Key<Relay>) {
        if !self.introduce_client(key) {
            return self.relay_connect_failed(key, Reason::Text("the server did not take the PROXY header"));
        }
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.connected_us = self.cx.clock.now_us;
        if let Some(place) = relay.place {
            self.cx.pools.succeeded(place);
        }
        if let Some(upstream) = relay.upstream.and_then(|key| self.upstreams.get_mut(key)) {
            upstream.connecting = false;
            upstream.socket.deadline.due_ms = u64::MAX;
        }
        self.cx.to_hand_over.push(key);
    }

    /// Writes the PROXY header to a server that wants one, before anything else moves and before the master gets a
    /// copy of the connection. False when the connection does not take it.
    fn introduce_client(&mut self, key: Key<Relay>) -> bool {
        let Some(relay) = self.relays.get(key) else { return true };
        let Some(client) = self.clients.get(relay.client) else { return true };
        let Some(upstream) = relay.upstream.and_then(|key| self.upstreams.get_mut(key)) else { return true };
        let Some(version) = relay.send_proxy else { return true };
        self.cx.out.clear();
        client.write_proxy_header(version, &mut self.cx.out);
        // Far less than the kernel holds for a connection on which nothing has been sent.
        upstream.socket.send(&self.cx.out, &[]) == Io::Moved(self.cx.out.len())
    }

    /// The connection to the server failed or took too long: the next one.
    pub(crate) fn relay_connect_failed(&mut self, key: Key<Relay>, why: Reason) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let place = relay.place;
        relay.tried.push(place.map_or(GONE, Place::server));
        relay.last_failure = Some(why);
        if let Some(place) = place {
            self.cx.pools.failed(place, &why, self.cx.clock.now_ms);
        }
        if let Some(upstream) = relay.upstream.take() {
            if let Some(place) = place {
                self.cx.pools.ended(place);
            }
            self.close_upstream(upstream);
        }
        self.connect_relay(key);
    }

    /// A connection of a relay does not stand in time.
    pub(crate) fn on_relay_connect_timeout(&mut self, key: Key<Relay>) {
        if self.relays.get(key).is_some_and(|relay| relay.delivery.is_some()) {
            return self.on_reply_timeout(key);
        }
        self.relay_connect_failed(key, Reason::Text("timed out connecting to the server"));
    }

    /// An event on a connection of a relay that is not the client's.
    pub(crate) fn on_relay_upstream(&mut self, key: Key<Relay>, upstream: Key<Upstream>) {
        let delivery = self.relays.get(key).and_then(|relay| relay.delivery.as_ref());
        if delivery.is_some_and(|delivery| delivery.connection() == Some(upstream)) {
            return self.on_reply(key, upstream);
        }
        let Some(connection) = self.upstreams.get_mut(upstream) else { return };
        if !connection.connecting {
            return self.drive_relay(key);
        }
        // An error shows in the event: without one the kernel need not be asked.
        if connection.socket.is_gone()
            && let Some(errno) = connection.socket.take_error()
        {
            self.relay_connect_failed(key, Reason::Connect(errno));
        } else if connection.socket.is_writable() {
            self.relay_connected(key);
        }
    }
}
