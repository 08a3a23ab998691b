//! The dynamic address exchange with `reply_to`: a relay whose answer goes elsewhere. What the client writes goes to the
//! target, and the target's answer over a connection of its own to where the client wants it. In the end the client is
//! told what came of it.
//!
//! It is a relay in everything but where that one direction leads, and how it ends. Whoever goes on with it needs nothing
//! beyond what the kernel has: how far the connection for the reply is, how much the target was sent and has answered,
//! and whether the client has been told are asked of the sockets, so that it does not matter how many processes had a part
//! in it.

use std::net::SocketAddr;

use ipc::forward::RuleSet;
use ipc::state::Phase;
use ipc::tcp_info::{self, Stage};

use crate::backend::{Upstream, UpstreamState, connect, upstream};
use crate::client::Client;
use crate::ctx::Owner;
use crate::exchange::Reason;
use crate::forward::opening::tell;
use crate::forward::rules::{self, Asker, Way};
use crate::io::socket::Socket;
use crate::proto::dynamic::{Answer, ErrorCode};
use crate::relay::Relay;
use crate::relay::flow::{Flow, Moved};
use crate::room::is_shortage;
use crate::slab::{Key, Slab};
use crate::worker::Worker;

/// The connection that takes the answer.
#[derive(Debug)]
pub(super) enum Delivery {
    /// There is none to be had, and why.
    Nowhere(Failure),
    /// The master is to have a copy of it before it is connected, so that nobody connects a second time.
    Unwatched(Socket),
    /// It is on its way, or stands.
    Connection(Key<Upstream>),
}

/// What failed: for programs, and for people.
pub(super) type Failure = (ErrorCode, Reason);

/// How a relay ends.
pub(super) type Outcome = Result<(), Failure>;

const CLIENT_BROKE: Failure = (ErrorCode::Broken, Reason::Text("the client's connection broke"));
const TARGET_BROKE: Failure = (ErrorCode::Broken, Reason::Text("the target's connection broke"));
const REPLY_BROKE: Failure = (ErrorCode::ReplyFailed, Reason::Text("the connection for the reply broke"));
const REPLY_UNREACHABLE: Failure =
    (ErrorCode::ReplyFailed, Reason::Text("the address for the reply could not be connected to"));
const REPLY_DENIED: Failure =
    (ErrorCode::ReplyDenied, Reason::Text("the rules do not allow the address for the reply any more"));
const REPLY_TIMED_OUT: Failure =
    (ErrorCode::ReplyFailed, Reason::Text("timed out connecting to the address for the reply"));

const NO_ROOM: Failure = (ErrorCode::Busy, Reason::Text("the worker has no room for a connection"));

/// Ends a connection in order, for every process that has it.
fn end_in_order(socket: &mut Socket) {
    socket.reset_when_closed(false);
    socket.shutdown_both();
}

impl Delivery {
    /// To an address, with a socket of its own.
    pub(super) fn to(address: &SocketAddr) -> Delivery {
        match connect::tcp_socket(address) {
            Ok(fd) => Delivery::through(Socket::new(fd)),
            Err(errno) if is_shortage(errno) => Delivery::Nowhere(NO_ROOM),
            Err(_) => Delivery::Nowhere(REPLY_UNREACHABLE),
        }
    }

    /// Through a socket that may not be connected yet. Should nobody be left to go on with it, it is to be reset: nobody
    /// may take a part for all.
    fn through(mut socket: Socket) -> Delivery {
        socket.reset_on_close(true);
        Delivery::Unwatched(socket)
    }

    /// What a former worker left, if the answer was to go elsewhere.
    pub(super) fn left(socket: Option<Socket>, reply_to: Option<SocketAddr>) -> Option<Delivery> {
        let lost = || reply_to.map(|_| Delivery::Nowhere(REPLY_BROKE));
        socket.map(Delivery::through).or_else(lost)
    }

    /// The connection, once there is one.
    pub(super) fn connection(&self) -> Option<Key<Upstream>> {
        match self {
            Delivery::Connection(key) => Some(*key),
            Delivery::Nowhere(_) | Delivery::Unwatched(_) => None,
        }
    }

    /// The socket that is not connected yet.
    pub(super) fn unwatched(&self) -> Option<&Socket> {
        match self {
            Delivery::Unwatched(socket) => Some(socket),
            Delivery::Nowhere(_) | Delivery::Connection(_) => None,
        }
    }
}

impl Relay {
    /// What becomes of an exchange when bytes have moved as far as they go; `None` = it goes on.
    pub(super) fn settle(
        &mut self,
        moved: (Moved, Moved),
        client: &Client,
        target: &Upstream,
        reply: &mut Upstream,
    ) -> Option<Outcome> {
        if self.to_client.is_at_end() {
            // Another worker may have been told that the target's connection broke, and died: this one sees an end.
            if let (Ok(from), Ok(to)) = (tcp_info::opened(&target.socket), tcp_info::opened(&reply.socket))
                && !from.has_gone_to(&to)
            {
                return Some(Err(TARGET_BROKE));
            }
            self.to_client.pass_on(&mut reply.socket);
        }
        match moved {
            // The target may have answered before it had all of the request.
            _ if self.to_client.is_passed_on() => Some(Ok(())),
            (Moved::FromBroken, _) => Some(Err(CLIENT_BROKE)),
            (_, Moved::FromBroken) => Some(Err(TARGET_BROKE)),
            (_, Moved::ToBroken) => Some(Err(REPLY_BROKE)),
            (Moved::ToBroken, _) => Some(Err(TARGET_BROKE)),
            _ if client.socket.is_gone() => Some(Err(CLIENT_BROKE)),
            (Moved::Again | Moved::Blocked | Moved::NoPipe, Moved::Again | Moved::Blocked | Moved::NoPipe) => None,
        }
    }

    /// Counts what went to the target, and from there to where the answer is wanted, whoever moved it.
    fn count_all(&mut self, upstreams: &Slab<Upstream>, outcome: &Outcome) {
        let opened = |key: Option<Key<Upstream>>| {
            let connection = key.and_then(|key| upstreams.get(key))?;
            tcp_info::opened(&connection.socket).ok()
        };
        let end = |flow: &Flow| u64::from(flow.is_passed_on());
        let target = opened(self.upstream);
        if let Some(target) = &target {
            self.to_server.moved = target.written.saturating_sub(end(&self.to_server));
        }
        match (outcome, target, opened(self.delivery.as_ref().and_then(Delivery::connection))) {
            // Of the connection for the reply nothing may be known any more.
            (Ok(()), Some(target), _) => self.to_client.moved = target.received.saturating_sub(1),
            (Err(_), _, Some(reply)) => self.to_client.moved = reply.written,
            (Ok(()), None, _) | (Err(_), _, None) => {}
        }
    }
}

impl Worker {
    /// Connects the socket that takes the answer, or goes on where a former worker was with that.
    pub(super) fn connect_reply(&mut self, key: Key<Relay>) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let Some(delivery) = relay.delivery.take_if(|delivery| delivery.connection().is_none()) else { return };
        relay.delivery = Some(Delivery::Nowhere(NO_ROOM));
        let mut socket = match delivery {
            Delivery::Unwatched(socket) => socket,
            Delivery::Nowhere(failure) => return self.end_delivery(key, Err(failure)),
            Delivery::Connection(_) => return,
        };
        let stage = tcp_info::opened(&socket).map_or(Stage::Unconnected, |opened| opened.stage);
        let connecting = match stage {
            Stage::Unconnected => {
                if let Err(failure) = self.begin_reply(key, &socket) {
                    return self.end_delivery(key, Err(failure));
                }
                true
            }
            Stage::Connecting => true,
            Stage::Connected | Stage::Over => false,
        };
        if connecting {
            socket = socket.connecting();
        }
        let reply = Upstream::new(socket, UpstreamState::Relay(key), connecting);
        let Some(reply) = upstream::add(&mut self.upstreams, reply, &mut self.cx) else {
            return self.end_delivery(key, Err(NO_ROOM));
        };
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.delivery = Some(Delivery::Connection(reply));
        let Some(client) = self.clients.get(relay.client) else { return };
        let timeouts = self.cx.site.snapshot.listeners[usize::from(client.listener)].timeouts;
        if let Some(connection) = self.upstreams.get_mut(reply).filter(|_| connecting) {
            let due_ms = self.cx.clock.now_ms + u64::from(timeouts.connect_ms);
            self.cx.arm(&mut connection.socket, Owner::Upstream(reply), due_ms);
        }
    }

    /// Begins to connect a socket to where the answer is wanted, if the rules allow that: who says so may have been a
    /// former worker.
    fn begin_reply(&self, key: Key<Relay>, socket: &Socket) -> Result<(), Failure> {
        let pass = self.relays.get(key).and_then(|relay| Some((relay.client, relay.pass.as_ref()?)));
        let known = pass.and_then(|(client, pass)| Some((self.clients.get(client)?, pass, pass.reply_to?)));
        let Some((client, pass, reply_to)) = known else { return Err(REPLY_UNREACHABLE) };
        let listener = &self.cx.site.snapshot.listeners[usize::from(client.listener)];
        let asker = Asker {
            client: client.peer.map(|peer| peer.ip()),
            user: pass.user.as_deref(),
            here: client.here.or_else(|| client.socket.local_addr()),
            way: Way::Plain,
        };
        let allows = |set: &RuleSet| rules::decide_reply(set, &self.cx.site.own, &asker, reply_to).allowed;
        if !listener.forward.as_ref().and_then(|forward| forward.rules.as_ref()).is_some_and(allows) {
            return Err(REPLY_DENIED);
        }
        connect::begin(socket, &reply_to).map_err(|_| REPLY_UNREACHABLE)
    }

    /// Something happened on the connection for the reply.
    pub(super) fn on_reply(&mut self, key: Key<Relay>, reply: Key<Upstream>) {
        let Some(connection) = self.upstreams.get_mut(reply) else { return };
        if connection.connecting {
            if connection.socket.is_gone() && connection.socket.take_error().is_some() {
                return self.end_delivery(key, Err(REPLY_UNREACHABLE));
            }
            if !connection.socket.is_writable() {
                return;
            }
            connection.connecting = false;
            connection.socket.deadline.due_ms = u64::MAX;
        }
        self.drive_relay(key);
    }

    /// The address for the reply does not accept the connection.
    pub(super) fn on_reply_timeout(&mut self, key: Key<Relay>) {
        self.end_delivery(key, Err(REPLY_TIMED_OUT));
    }

    /// Ends an exchange and tells the client what came of it. When it failed both other connections are reset, so that
    /// nobody takes what has come for all.
    ///
    /// A worker that dies before the client has been told leaves everything as it found it: the next one finds the same
    /// ends, and the same counts. What could be taken for bytes still to be moved is dropped after that only.
    pub(super) fn end_delivery(&mut self, key: Key<Relay>, outcome: Outcome) {
        let Some(mut relay) = self.relays.remove(key) else { return };
        relay.count_all(&self.upstreams, &outcome);
        let reply = relay.delivery.as_ref().and_then(Delivery::connection);
        let connections = || relay.upstream.into_iter().chain(reply);
        let uncounted = self.clients.get(relay.client).is_some_and(|client| client.uncounted);
        if outcome.is_err() || uncounted {
            // What is reset nobody can go on with; nor could anybody tell whether the client has been told, where the
            // kernel does not.
            if let Some(client) = self.clients.get_mut(relay.client) {
                client.publish(Phase::Captive, &self.cx);
            }
        }
        if outcome.is_err() {
            for upstream in connections() {
                if let Some(connection) = self.upstreams.get_mut(upstream) {
                    connection.socket.reset();
                }
            }
        }
        let told = self.tell_outcome(&relay, &outcome);
        for upstream in connections() {
            if let Some(connection) = self.upstreams.get_mut(upstream) {
                end_in_order(&mut connection.socket);
            }
            self.close_upstream(upstream);
        }
        relay.to_server.release(&mut self.cx);
        relay.to_client.release(&mut self.cx);
        if let Some(pass) = &relay.pass {
            self.forward.uses.end(pass.lease);
        }
        self.log_relay(&relay, outcome.err().map(|(_, reason)| reason));
        let Some(client) = self.clients.get_mut(relay.client) else { return };
        client.socket.reset_when_closed(false);
        if !told {
            client.socket.reset();
            return self.close_client(relay.client);
        }
        if outcome.is_err() || uncounted {
            return self.linger(relay.client);
        }
        self.linger_told(relay.client);
    }

    /// Says to the client what came of it; false when that is not possible.
    fn tell_outcome(&mut self, relay: &Relay, outcome: &Outcome) -> bool {
        let Some(client) = self.clients.get_mut(relay.client) else { return false };
        let mut farewell = Vec::new();
        match (outcome, relay.pass.as_ref().and_then(|pass| pass.address)) {
            (Ok(()), Some(address)) => {
                let (sent, delivered) = (relay.to_server.moved, relay.to_client.moved);
                Answer::Delivered { ok: true, address, sent, delivered }.write(&mut farewell);
            }
            (Err((error, reason)), _) => {
                Answer::Failed { ok: false, error: *error, message: &reason.to_string() }.write(&mut farewell);
            }
            // There always is an address.
            (Ok(()), None) => return false,
        }
        tell(client, &farewell)
    }

    /// Whether a former worker has told a client what came of its exchange: nothing else is ever written to it.
    pub(super) fn has_been_told(&self, client: Key<Client>) -> bool {
        let counters = self.clients.get(client).map(|client| tcp_info::counters(&client.socket));
        counters.is_some_and(|counters| counters.is_ok_and(|counters| counters.written > 0))
    }

    /// Ends what a former worker left of an exchange whose client has been told.
    pub(super) fn end_told(&mut self, client: Key<Client>, target: Socket, reply: Socket) {
        for mut socket in [target, reply] {
            end_in_order(&mut socket);
        }
        if let Some(connection) = self.clients.get_mut(client) {
            connection.socket.reset_when_closed(false);
        }
        self.linger_told(client);
    }

    /// Lets a client go that has been told. Its record says as before what it is: whoever goes on with it finds it
    /// told, and does not end it before the client can have read that.
    fn linger_told(&mut self, key: Key<Client>) {
        if let Some(client) = self.clients.get_mut(key) {
            client.publish(Phase::Relay, &self.cx);
        }
        self.linger_on(key);
    }
}
