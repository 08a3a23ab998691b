//! A byte relay between a client and a server: a TCP connection, or a tunnel after a 101.
//!
//! Bytes move by `splice(2)` and never enter this process, but for those that had been read before a tunnel
//! began, and where no pipe is to be had. The end of one direction is passed on when everything before it has
//! been; the other goes on.
//!
//! The master gets a copy of the server's connection before the first byte moves. From then on everything a
//! successor needs lies in the kernel: both sockets, and the pipes with the bytes under way.

mod delivery;
pub(crate) mod flow;
pub(crate) mod line;
mod start;

use ipc::channel::SendError;
use ipc::message::{Relaying, Task, ToMaster};
use ipc::snapshot::ProxyVersion;
use ipc::state::{Direction, Phase};
use std::os::fd::{AsFd, OwnedFd};

use crate::backend::Upstream;
use crate::backend::pool::{Place, PoolId, Remap};
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Owner, SCRATCH_BYTES, Work};
use crate::exchange::CLIENT_GONE;
use crate::exchange::Reason;
use crate::forward::Pass;
use crate::forward::uses::Lease;
use crate::io::socket::Socket;
use crate::proto::dynamic::ErrorCode;
use crate::slab::Key;
use crate::worker::Worker;

use delivery::{Delivery, Outcome};
use flow::{Flow, Moved, TURN_BYTES};
use line::Opened;
pub(crate) use start::{Left, NewTunnel};

/// After how long a relay that was taken for drained is looked at again.
const LOOK_AGAIN_MS: u64 = 50;
/// Relays handed over in one message at most.
const HANDED_AT_ONCE: usize = 64;
/// How long relays may wait for the master to take what they are handed over with. Then they begin without.
const HAND_OVER_MS: u64 = 5000;

/// See the module's description.
#[derive(Debug)]
pub struct Relay {
    client: Key<Client>,
    upstream: Option<Key<Upstream>>,
    /// The group whose server it goes to, while that is configured.
    pool: Option<PoolId>,
    /// The connection that takes what comes from the server, where that is not the client's.
    delivery: Option<Delivery>,
    /// The server it goes to, while that is configured.
    place: Option<Place>,
    /// That server's name, when it is not configured any more.
    gone_server: Option<Box<str>>,
    /// How the server is told of the client.
    send_proxy: Option<ProxyVersion>,
    tried: Vec<u16>,
    /// How many of them this machine has no way to; these do not count as tries.
    passed_over: usize,
    /// What the last server tried led to.
    last_failure: Option<Reason>,
    connect_ms: u32,
    tunnel_ms: u32,
    to_server: Flow,
    to_client: Flow,
    /// Whether bytes may move yet.
    begun: bool,
    /// Whether the master has a copy of the server's connection.
    handed_over: bool,
    /// What the client's record says.
    phase: Phase,
    began_us: u64,
    connected_us: u64,
    /// Whether it is among those to be looked at again.
    queued: bool,
    /// Whether both sockets are to be read although no event came.
    look_again: bool,
    /// Whether it belongs to a TCP listener.
    tcp: bool,
    /// Of a forward listener: what logs and limits know of it.
    pass: Option<Box<Pass>>,
    /// What is logged of the request that it began as.
    opened: Option<Box<Opened>>,
    /// Bytes of ours among those for the client: the heads before a tunnel.
    own_bytes: u64,
    /// Whether another worker began it: when, nobody knows.
    adopted: bool,
}

/// The connections of a relay.
struct Ends<'a> {
    client: &'a mut Client,
    upstream: &'a mut Upstream,
    /// Takes what comes from the server, if the client does not.
    reply: Option<&'a mut Upstream>,
}

impl Relay {
    /// The client's connection.
    pub(crate) fn client(&self) -> Key<Client> {
        self.client
    }

    /// The group whose server it goes to, while that is configured.
    pub(crate) fn pool(&self) -> Option<PoolId> {
        self.pool
    }

    /// Finds its server where a new configuration has it.
    pub(crate) fn relocate(&mut self, remap: &Remap) {
        remap.tried(self.pool, &mut self.tried);
        self.pool = self.pool.and_then(|pool| remap.group(pool));
        (self.place, self.gone_server) = remap.server(self.place, self.gone_server.take());
    }

    /// Makes the client's record say whether a successor could go on.
    fn publish(&mut self, client: &Client, captive: bool, cx: &Ctx) {
        let phase = if self.handed_over && !captive { Phase::Relay } else { Phase::Captive };
        if phase != self.phase {
            self.phase = phase;
            client.publish(phase, cx);
        }
    }

    /// Begins to relay. What came before, the agreement to a tunnel, is written first: with none of it written a
    /// successor runs the request again, with all of it written it goes on with the tunnel.
    fn begin(&mut self, handed_over: bool, client: &mut Client, cx: &mut Ctx) {
        self.begun = true;
        self.handed_over = handed_over;
        if handed_over {
            // What came behind the request.
            self.to_server.stash((client.id, Direction::ToServer), cx);
        }
        if handed_over && self.to_client.is_captive() && !self.to_server.is_captive() {
            // Where nobody can tell how much has been written, this is published when all has.
            if !client.uncounted {
                self.phase = Phase::Relay;
                client.publish_tunnel(self.to_client.early.rest().len() as u64, cx);
            }
            // What came of it shows again when the relay is driven.
            let _ = self.to_client.flush(&mut client.socket, false, cx);
        }
        self.publish(client, self.is_captive(), cx);
    }

    /// Whether bytes under way lie in this process's memory alone.
    fn is_captive(&self) -> bool {
        self.to_server.is_captive() || self.to_client.is_captive()
    }

    /// One direction, with the socket it takes bytes from and the one it gives them to.
    fn flow<'a>(
        &'a mut self,
        direction: Direction,
        ends: &'a mut Ends,
    ) -> (&'a mut Flow, &'a mut Socket, &'a mut Socket) {
        let Ends { client, upstream, reply } = ends;
        match (direction, reply) {
            (Direction::ToServer, _) => (&mut self.to_server, &mut client.socket, &mut upstream.socket),
            (Direction::ToClient, None) => (&mut self.to_client, &mut upstream.socket, &mut client.socket),
            (Direction::ToClient, Some(reply)) => (&mut self.to_client, &mut upstream.socket, &mut reply.socket),
        }
    }

    /// Moves bytes both ways, up to `most` each; what came of it, to the server and to the client.
    fn pump(&mut self, ends: &mut Ends, most: usize, cx: &mut Ctx) -> (Moved, Moved) {
        let id = ends.client.id;
        let mut moved = [Moved::Blocked, Moved::Blocked];
        for direction in [Direction::ToServer, Direction::ToClient] {
            let mut copied = 0;
            if direction == Direction::ToClient && ends.reply.as_ref().is_some_and(|reply| reply.connecting) {
                break;
            }
            moved[direction as usize] = loop {
                let (flow, from, to) = self.flow(direction, ends);
                let result = flow.pump(from, to, (id, direction), most, cx);
                if result != Moved::NoPipe {
                    break result;
                }
                // Bytes pass through this process's memory: the record must say so before the first does.
                self.publish(ends.client, true, cx);
                let (flow, from, to) = self.flow(direction, ends);
                let result = flow.copy(from, to, cx);
                copied += SCRATCH_BYTES;
                if result != Moved::Again || copied >= TURN_BYTES.min(most) {
                    break result;
                }
            };
        }
        // What was held back for an end that has not been passed on yet.
        ends.client.socket.push();
        ends.upstream.socket.push();
        if let Some(reply) = &mut ends.reply {
            reply.socket.push();
        }
        self.publish(ends.client, self.is_captive(), cx);
        let [up, down] = moved;
        (up, down)
    }

    /// What becomes of it when bytes have moved as far as they go; `None` = it goes on.
    fn end(&mut self, moved: (Moved, Moved), ends: &mut Ends) -> Option<Outcome> {
        let Ends { client, upstream, reply } = ends;
        if let Some(reply) = reply {
            return self.settle(moved, client, upstream, reply);
        }
        match moved {
            (Moved::FromBroken, _) | (_, Moved::ToBroken) => {
                Some(Err((ErrorCode::Broken, Reason::Text("the client's connection broke"))))
            }
            (Moved::ToBroken, _) | (_, Moved::FromBroken) => {
                Some(Err((ErrorCode::Broken, Reason::Text("the server's connection broke"))))
            }
            (Moved::Again, _) | (_, Moved::Again) => None,
            (Moved::Blocked | Moved::NoPipe, Moved::Blocked | Moved::NoPipe) => {
                let (up, down) = (&self.to_server, &self.to_client);
                // A peer that has sent its end and is gone since can take nothing more, and no read will tell.
                let nobody_left =
                    client.socket.is_gone() && up.is_ended() || upstream.socket.is_gone() && down.is_ended();
                let done = up.is_passed_on() && down.is_passed_on()
                    || nobody_left && (up.is_passed_on() || down.is_passed_on());
                done.then_some(Ok(()))
            }
        }
    }
}

impl Worker {
    /// Gives the master a copy of the server's connection of every relay that is about to begin, and begins them.
    pub(crate) fn hand_over_relays(&mut self) {
        if self.cx.to_hand_over.is_empty() {
            return;
        }
        let until_ms = *self.cx.hand_over_until_ms.get_or_insert(self.cx.clock.now_ms + HAND_OVER_MS);
        // Without a copy here nothing is gained by one of the other side.
        let (keys, alone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.cx.to_hand_over).into_iter().partition(|&key| {
            let relay = self.relays.get(key);
            let can_be_told = |relay: &&Relay| {
                relay.delivery.is_none() || relay.pass.as_ref().is_some_and(|pass| pass.tunnel().is_some())
            };
            let client = relay.filter(can_be_told).and_then(|relay| self.clients.get(relay.client));
            client.is_some_and(|client| client.protected)
        });
        self.begin_relays(alone, false);
        let mut keys = keys.into_iter();
        loop {
            let chunk: Vec<_> = keys.by_ref().take(HANDED_AT_ONCE).collect();
            if chunk.is_empty() {
                break;
            }
            let mut relaying = Vec::with_capacity(chunk.len());
            let mut fds = Vec::with_capacity(chunk.len());
            for &key in &chunk {
                let Some(relay) = self.relays.get(key) else { continue };
                let upstream = relay.upstream.and_then(|key| self.upstreams.get(key));
                if let (Some(client), Some(upstream)) = (self.clients.get(relay.client), upstream) {
                    let server = relay.place.map(|place| self.cx.pools.server(place).number);
                    let tunnel = relay.pass.as_ref().and_then(|pass| pass.tunnel());
                    let reply = relay.delivery.as_ref().and_then(Delivery::unwatched);
                    relaying.push(Relaying { id: client.id, server, reply: reply.is_some(), tunnel });
                    fds.push(upstream.socket.as_fd());
                    fds.extend(reply.map(AsFd::as_fd));
                }
            }
            match self.cx.channel.send(&ToMaster::Relaying(relaying), &fds) {
                Ok(()) => self.begin_relays(chunk, true),
                // The master is busy: they wait, for a while.
                Err(SendError::Full) if self.cx.clock.now_ms < until_ms => {
                    self.cx.to_hand_over.extend(chunk);
                    self.cx.to_hand_over.extend(keys);
                    return;
                }
                // These do without a successor.
                Err(_) => self.begin_relays(chunk, false),
            }
        }
        self.cx.hand_over_until_ms = None;
    }

    /// Begins relays of whose servers' connections the master has copies, or has none.
    fn begin_relays(&mut self, keys: Vec<Key<Relay>>, handed_over: bool) {
        for key in keys {
            let Some(relay) = self.relays.get_mut(key) else { continue };
            if let Some(client) = self.clients.get_mut(relay.client) {
                relay.begin(handed_over, client, &mut self.cx);
                // From here on there is no request to run again.
                client.release_input(&mut self.cx);
            }
            self.connect_reply(key);
            self.drive_relay(key);
        }
    }

    /// The master could not keep all that a successor needs for these connections.
    pub(crate) fn lose_protection(&mut self, ids: &[u32]) {
        for (_, client) in self.clients.iter_mut().filter(|(_, client)| ids.contains(&client.id)) {
            client.lose_protection();
            if let ClientState::Relay(key) = client.state
                && let Some(relay) = self.relays.get_mut(key)
            {
                relay.handed_over = false;
                relay.publish(client, true, &self.cx);
            }
        }
    }

    /// Moves bytes both ways as far as they go now.
    pub(crate) fn drive_relay(&mut self, key: Key<Relay>) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let Some(client) = self.clients.get_mut(relay.client) else { return };
        let Some(upstream) = relay.upstream else { return };
        let reply = relay.delivery.as_ref().and_then(Delivery::connection);
        let (upstream, reply) = match reply {
            None => (self.upstreams.get_mut(upstream), None),
            Some(reply) => self.upstreams.get_two_mut(upstream, reply).unzip(),
        };
        let Some(upstream) = upstream else { return };
        if relay.begun && relay.delivery.is_some() && reply.is_none() {
            // What comes from the server is for nobody else.
            return;
        }
        if !relay.begun {
            if client.socket.is_gone() {
                self.end_relay(key, Some(CLIENT_GONE));
            }
            return;
        }
        // Should all processes die, neither side may take what it has for all there was.
        client.socket.reset_on_close(true);
        upstream.socket.reset_on_close(true);
        let mut ends = Ends { client, upstream, reply };
        if let Some(reply) = &mut ends.reply {
            reply.socket.reset_on_close(true);
        }
        if std::mem::take(&mut relay.look_again) {
            ends.client.socket.look_again();
            ends.upstream.socket.look_again();
        }
        let lease = relay.pass.as_ref().map_or(Lease::default(), |pass| pass.lease);
        let most = self.forward.allowance(lease, Work::Relay(key), self.cx.clock.now_ms);
        let before = relay.to_server.moved + relay.to_client.moved;
        let moved = relay.pump(&mut ends, most, &mut self.cx);
        let after = relay.to_server.moved + relay.to_client.moved;
        self.forward.uses.moved(lease, after - before, self.cx.clock.now_ms);
        if after != before || ends.client.socket.deadline.due_ms == u64::MAX {
            let ends_ms = relay.pass.as_ref().map_or(u64::MAX, |pass| pass.ends_ms());
            let due_ms = (self.cx.clock.now_ms + u64::from(relay.tunnel_ms)).min(ends_ms);
            self.cx.arm(&mut ends.client.socket, Owner::Client(relay.client), due_ms);
        }
        if std::mem::take(&mut relay.to_server.presumed) | std::mem::take(&mut relay.to_client.presumed)
            && !relay.queued
        {
            relay.queued = true;
            self.presumed.push(key);
        }
        if let Some(outcome) = relay.end(moved, &mut ends) {
            return self.end_with(key, outcome);
        }
        if self.relays.get(key).is_some_and(|relay| self.can_be_given(relay)) {
            return self.give_back_relay(key);
        }
        match moved {
            // It is among those who wait for their allowance to grow.
            _ if most == 0 => {}
            (Moved::Again, _) | (_, Moved::Again) => self.cx.work.push_back(Work::Relay(key)),
            (_, _) => {}
        }
    }

    /// The client's time limit has passed.
    pub(crate) fn on_relay_timeout(&mut self, key: Key<Relay>) {
        let now_ms = self.cx.clock.now_ms;
        let pass = self.relays.get(key).and_then(|relay| relay.pass.as_ref());
        let reason =
            pass.map_or("nothing moved for longer than the tunnel timeout", |pass| pass.timeout_reason(now_ms));
        self.end_with(key, Err((ErrorCode::Timeout, Reason::Text(reason))));
    }

    /// When relays that were taken for drained are to be looked at again; `None` = there are none.
    pub(crate) fn look_again_at(&self) -> Option<u64> {
        (!self.presumed.is_empty()).then_some(self.presumed_since_ms + LOOK_AGAIN_MS)
    }

    /// Looks at relays that were taken for drained, if it is time.
    pub(crate) fn look_again(&mut self) {
        let now_ms = self.cx.clock.now_ms;
        if self.presumed.is_empty() {
            self.presumed_since_ms = now_ms;
        } else if now_ms >= self.presumed_since_ms + LOOK_AGAIN_MS {
            self.presumed_since_ms = now_ms;
            let looked = self.presumed.len();
            // Those that are taken for drained again meanwhile stand behind them.
            for at in 0..looked {
                let key = self.presumed[at];
                let Some(relay) = self.relays.get_mut(key) else { continue };
                (relay.queued, relay.look_again) = (false, true);
                self.drive_relay(key);
            }
            self.presumed.drain(..looked);
        }
    }

    /// Lets go of a relay for another worker to go on with. What lies in its pipes stays there, and theirs.
    fn give_back_relay(&mut self, key: Key<Relay>) {
        let Some(mut relay) = self.relays.remove(key) else { return };
        self.log_given(&relay);
        let Some(mut upstream) = relay.upstream.and_then(|key| self.upstreams.remove(key)) else { return };
        self.cx.forget(&mut upstream.socket);
        if let Some(pass) = &relay.pass {
            self.forward.uses.end(pass.lease);
        }
        let server = relay.place.map(|place| self.cx.pools.server(place).number);
        let mut fds = vec![OwnedFd::from(upstream.socket)];
        let reply = relay.delivery.as_ref().and_then(Delivery::connection).and_then(|key| self.upstreams.remove(key));
        let replies = reply.is_some();
        fds.extend(reply.map(|mut reply| {
            self.cx.forget(&mut reply.socket);
            OwnedFd::from(reply.socket)
        }));
        let before = fds.len();
        // Their owners stand in the region; their numbers are not used again.
        let [to_server, to_client] = [&mut relay.to_server, &mut relay.to_client].map(|flow| {
            let pipe = flow.pipe.take();
            fds.extend(pipe.map(|(pipe, _)| pipe.into_reading_end()));
            fds.len()
        });
        let tunnel = relay.pass.as_ref().and_then(|pass| pass.tunnel());
        let (to_server, to_client) = (to_server > before, to_client > to_server);
        let task = Task::Relay { server, reply: replies, to_server, to_client, tunnel };
        let Some(mut client) = self.clients.remove(relay.client) else { return };
        if let Some(kept) = client.kept {
            self.close_upstream(kept);
        }
        client.socket.release();
        self.cx.deregister(&mut client.socket);
        self.cx.forget(&mut client.socket);
        // Both sockets stay such that the kernel resets them: whoever loses them on their way loses bytes.
        let own = (!client.protected).then(|| task.clone());
        self.let_go(client, Vec::new(), own, Some((task, fds)));
    }

    /// Whether another worker could go on with a relay.
    fn can_be_given(&self, relay: &Relay) -> bool {
        let own = || self.clients.get(relay.client).is_some_and(|client| !client.protected);
        let whole = relay.phase == Phase::Relay || (self.succession.is_succeeded() || own()) && !relay.is_captive();
        self.cx.giving_back && relay.begun && whole
    }

    /// Ends a relay. With a `reason` both connections are reset, so that neither side takes what it has for all.
    pub(crate) fn end_relay(&mut self, key: Key<Relay>, reason: Option<Reason>) {
        self.end_with(key, reason.map_or(Ok(()), |reason| Err((ErrorCode::Broken, reason))));
    }

    fn end_with(&mut self, key: Key<Relay>, outcome: Outcome) {
        if self.relays.get(key).is_some_and(|relay| relay.delivery.is_some()) {
            return self.end_delivery(key, outcome);
        }
        let Some(mut relay) = self.relays.remove(key) else { return };
        let reason = outcome.err().map(|(_, reason)| reason);
        if reason.is_some() {
            if let Some(client) = self.clients.get_mut(relay.client) {
                // Before bytes under way are dropped: nobody must go on without them.
                client.publish(Phase::Captive, &self.cx);
                client.socket.reset();
            }
            if let Some(upstream) = relay.upstream.and_then(|key| self.upstreams.get_mut(key)) {
                upstream.socket.reset();
            }
        }
        if let Some(client) = self.clients.get_mut(relay.client) {
            client.socket.reset_on_close(false);
        }
        relay.to_server.release(&mut self.cx);
        relay.to_client.release(&mut self.cx);
        self.log_relay(&relay, reason);
        if let Some(pass) = &relay.pass {
            self.forward.uses.end(pass.lease);
        }
        if let Some(upstream) = relay.upstream {
            if let Some(place) = relay.place {
                self.cx.pools.ended(place);
            }
            if let Some(connection) = self.upstreams.get_mut(upstream) {
                connection.socket.reset_on_close(false);
                // The master's copy would keep it open otherwise.
                connection.socket.shutdown_both();
            }
            self.close_upstream(upstream);
        }
        self.close_client(relay.client);
    }
}
