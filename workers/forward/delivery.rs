//! The dynamic address exchange with `reply_to`: what the client writes goes to the target, and the target's answer
//! over a connection of its own to where the client wants it. In the end the client is told what came of it.
//!
//! Three connections, of which the master knows only the client's: such an exchange ends with its worker.

use std::net::SocketAddr;

use ipc::snapshot::{Address, Mode};
use ipc::state::{Direction, Phase};

use crate::access_log::Entry;
use crate::backend::{Upstream, UpstreamState, connect, upstream};
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Owner, SCRATCH_BYTES, Work};
use crate::forward::Pass;
use crate::forward::opening::tell;
use crate::io::socket::Socket;
use crate::proto::dynamic::{Answer, ErrorCode};
use crate::relay::flow::{Flow, Moved, TURN_BYTES};
use crate::slab::Key;
use crate::worker::Worker;

/// See the module's description.
#[derive(Debug)]
pub struct Delivery {
    client: Key<Client>,
    target: Key<Upstream>,
    /// The connection that takes the answer.
    reply: Option<Key<Upstream>>,
    to_target: Flow,
    to_reply: Flow,
    pass: Box<Pass>,
    idle_ms: u32,
    look_again: bool,
}

/// What failed: for programs, and for people.
type Failure = (ErrorCode, &'static str);

const CLIENT_BROKE: Failure = (ErrorCode::Broken, "the client's connection broke");
const TARGET_BROKE: Failure = (ErrorCode::Broken, "the target's connection broke");
const REPLY_BROKE: Failure = (ErrorCode::ReplyFailed, "the connection for the reply broke");
const REPLY_UNREACHABLE: Failure = (ErrorCode::ReplyFailed, "the address for the reply could not be connected to");

/// Moves one direction on, through memory where there is no pipe.
fn pump(
    flow: &mut Flow,
    from: &mut Socket,
    to: &mut Socket,
    owner: (u32, Direction),
    most: usize,
    cx: &mut Ctx,
) -> Moved {
    let mut copied = 0;
    loop {
        let moved = flow.pump(from, to, owner, most, cx);
        if moved != Moved::NoPipe {
            return moved;
        }
        let moved = flow.copy(from, to, cx);
        copied += SCRATCH_BYTES;
        if moved != Moved::Again || copied >= TURN_BYTES.min(most) {
            return moved;
        }
    }
}

impl Worker {
    /// Begins with a target that is connected to. `end` is where in the slot the client's bytes for it begin.
    pub(crate) fn begin_delivery(
        &mut self,
        client_key: Key<Client>,
        target: Key<Upstream>,
        reply_to: SocketAddr,
        end: usize,
        pass: Box<Pass>,
    ) {
        self.make_room();
        let Some(client) = self.clients.get_mut(client_key) else { return self.close_upstream(target) };
        let timeouts = self.cx.site.snapshot.listeners[usize::from(client.listener)].timeouts;
        // From here on a successor could not begin anew.
        client.publish(Phase::Captive, &self.cx);
        let mut to_target = Flow::default();
        to_target.early.push(client.input_from(end, &self.cx.arena), &mut self.cx.buffers);
        client.release_input(&mut self.cx);
        let delivery = Delivery {
            client: client_key,
            target,
            reply: None,
            to_target,
            to_reply: Flow::default(),
            pass,
            idle_ms: timeouts.tunnel_ms,
            look_again: false,
        };
        let Ok(key) = self.forward.deliveries.insert(delivery) else {
            self.close_upstream(target);
            return self.close_client(client_key);
        };
        client.state = ClientState::Delivering(key);
        client.socket.deadline.due_ms = u64::MAX;
        if let Some(connection) = self.upstreams.get_mut(target) {
            connection.state = UpstreamState::Delivering(key);
        }
        let Ok(connecting) = connect::open(&Address::Inet(reply_to)) else {
            return self.end_delivery(key, Err(REPLY_UNREACHABLE));
        };
        let state = UpstreamState::Delivering(key);
        let reply = Upstream::new(connecting.socket, state, !connecting.done);
        let reply = upstream::add(&mut self.upstreams, reply, &mut self.cx);
        let Some(delivery) = self.forward.deliveries.get_mut(key) else { return };
        delivery.reply = reply;
        let Some(connection) = reply.and_then(|reply| self.upstreams.get_mut(reply)) else {
            return self.end_delivery(key, Err((ErrorCode::Busy, "the worker has no room for a connection")));
        };
        if connection.connecting
            && let Some(reply) = reply
        {
            let due_ms = self.cx.clock.now_ms + u64::from(timeouts.connect_ms);
            self.cx.arm(&mut connection.socket, Owner::Upstream(reply), due_ms);
        }
        self.drive_delivery(key);
    }

    /// Moves bytes as far as they go now.
    pub(crate) fn drive_delivery(&mut self, key: Key<Delivery>) {
        let Some(delivery) = self.forward.deliveries.get(key) else { return };
        let lease = delivery.pass.lease;
        let most = self.forward.allowance(lease, Work::Delivery(key), self.cx.clock.now_ms);
        let Some(delivery) = self.forward.deliveries.get_mut(key) else { return };
        let Some(client) = self.clients.get_mut(delivery.client) else { return };
        let (Some(reply), target) = (delivery.reply, delivery.target) else { return };
        let Some((target, reply)) = self.upstreams.get_two_mut(target, reply) else { return };
        if std::mem::take(&mut delivery.look_again) {
            client.socket.look_again();
            target.socket.look_again();
        }
        let before = delivery.to_target.moved + delivery.to_reply.moved;
        let to_server = (client.id, Direction::ToServer);
        let up = pump(&mut delivery.to_target, &mut client.socket, &mut target.socket, to_server, most, &mut self.cx);
        let down = if reply.connecting {
            Moved::Blocked
        } else {
            let to_client = (client.id, Direction::ToClient);
            pump(&mut delivery.to_reply, &mut target.socket, &mut reply.socket, to_client, most, &mut self.cx)
        };
        let after = delivery.to_target.moved + delivery.to_reply.moved;
        if after != before || client.socket.deadline.due_ms == u64::MAX {
            let due_ms = (self.cx.clock.now_ms + u64::from(delivery.idle_ms)).min(delivery.pass.ends_ms());
            self.cx.arm(&mut client.socket, Owner::Client(delivery.client), due_ms);
        }
        let presumed =
            std::mem::take(&mut delivery.to_target.presumed) | std::mem::take(&mut delivery.to_reply.presumed);
        let delivered = delivery.to_reply.is_passed_on();
        let client_gone = client.socket.is_gone() && !delivered;
        if presumed {
            delivery.look_again = true;
        }
        self.forward.uses.moved(lease, after - before);
        match (up, down) {
            _ if delivered => self.end_delivery(key, Ok(())),
            // The target may have answered before it had all of the request.
            (Moved::FromBroken, _) => self.end_delivery(key, Err(CLIENT_BROKE)),
            (_, Moved::FromBroken) => self.end_delivery(key, Err(TARGET_BROKE)),
            (_, Moved::ToBroken) => self.end_delivery(key, Err(REPLY_BROKE)),
            (Moved::ToBroken, _) => self.end_delivery(key, Err(TARGET_BROKE)),
            _ if client_gone => self.end_delivery(key, Err(CLIENT_BROKE)),
            (Moved::Again, _) | (_, Moved::Again) if most > 0 => self.cx.work.push_back(Work::Delivery(key)),
            _ if presumed => self.forward.later(Work::Delivery(key), self.cx.clock.now_ms),
            (Moved::Again | Moved::Blocked | Moved::NoPipe, Moved::Again | Moved::Blocked | Moved::NoPipe) => {}
        }
    }

    /// Something happened on the connection to the target, or on the one for the reply.
    pub(crate) fn on_delivery_upstream(&mut self, key: Key<Delivery>, upstream: Key<Upstream>) {
        let Some(connection) = self.upstreams.get_mut(upstream) else { return };
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
        self.drive_delivery(key);
    }

    /// The address for the reply does not accept the connection.
    pub(crate) fn on_delivery_connect_timeout(&mut self, key: Key<Delivery>) {
        self.end_delivery(key, Err((ErrorCode::ReplyFailed, "timed out connecting to the address for the reply")));
    }

    /// Nothing has moved for too long.
    pub(crate) fn on_delivery_timeout(&mut self, key: Key<Delivery>) {
        let Some(delivery) = self.forward.deliveries.get(key) else { return };
        let reason = delivery.pass.timeout_reason(self.cx.clock.now_ms);
        self.end_delivery(key, Err((ErrorCode::Timeout, reason)));
    }

    /// Ends an exchange and tells the client what came of it. When it failed both other connections are reset, so that
    /// nobody takes what has come for all.
    fn end_delivery(&mut self, key: Key<Delivery>, outcome: Result<(), Failure>) {
        let Some(mut delivery) = self.forward.deliveries.remove(key) else { return };
        let (sent, delivered) = (delivery.to_target.moved, delivery.to_reply.moved);
        delivery.to_target.release(&mut self.cx);
        delivery.to_reply.release(&mut self.cx);
        for upstream in std::iter::once(delivery.target).chain(delivery.reply) {
            if let (Err(_), Some(connection)) = (outcome, self.upstreams.get_mut(upstream)) {
                connection.socket.reset();
            }
            self.close_upstream(upstream);
        }
        self.forward.uses.end(delivery.pass.lease);
        self.log_delivery(&delivery, outcome);
        let mut farewell = Vec::new();
        match (outcome, delivery.pass.address) {
            (Ok(()), Some(address)) => Answer::Delivered { ok: true, address, sent, delivered }.write(&mut farewell),
            (Err((error, message)), _) => Answer::Failed { ok: false, error, message }.write(&mut farewell),
            // There always is an address.
            (Ok(()), None) => {}
        }
        let Some(client) = self.clients.get_mut(delivery.client) else { return };
        if !tell(client, &farewell) {
            client.socket.reset();
            return self.close_client(delivery.client);
        }
        self.linger(delivery.client);
    }

    fn log_delivery(&mut self, delivery: &Delivery, outcome: Result<(), Failure>) {
        let Some(log) = &mut self.cx.log else { return };
        let pass = &delivery.pass;
        let address = pass.address.map(|address| address.to_string());
        let entry = Entry {
            client: self.clients.get(delivery.client).and_then(|client| client.peer),
            method: pass.spoken.map(|spoken| spoken.name().as_bytes()),
            target: Some(pass.target.as_bytes()),
            status: Some(if outcome.is_ok() { 200 } else { 502 }),
            user: pass.user.as_deref(),
            rule: pass.rule.as_deref(),
            backend: address.as_deref(),
            bytes_in: delivery.to_target.moved,
            bytes_out: delivery.to_reply.moved,
            connect_us: pass.connected_us.checked_sub(pass.began_us),
            total_us: Some(self.cx.clock.now_us - pass.began_us),
            reason: outcome.err().map(|(_, reason)| reason),
            ..Entry::new(Mode::Forward, self.cx.clock.unix_ms, self.cx.index)
        };
        log.record(&entry, self.cx.clock.now_ms);
    }
}
