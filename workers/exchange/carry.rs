//! Carrying out what an exchange asks for: another server, an answer, a tunnel, the end.

use std::io;
use std::net::SocketAddr;

use ipc::snapshot::{GroupId, Snapshot};
use log::{debug, info, warn};

use crate::access_log::Entry;
use crate::backend::connect;
use crate::backend::pool::Pools;
use crate::backend::upstream;
use crate::backend::{Upstream, UpstreamState};
use crate::balance::{self, ServerId};
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Owner, Work};
use crate::exchange::wait::UNREACHABLE;
use crate::exchange::{Exchange, Failure, MAX_TRIES, Problem, Reason, Step};
use crate::room::{self, is_shortage};
use crate::slab::{Key, Slab};
use crate::worker::Worker;

const NO_SERVER: Problem = Problem::new(503, "no server of the group can take the request");

/// The number that stands for a client in the balancing policies that go by it.
#[must_use]
pub(crate) fn source_of(peer: Option<SocketAddr>) -> u64 {
    peer.map_or(0, |addr| balance::source_of(addr.ip()))
}

impl Worker {
    /// Moves an exchange on as far as it goes now.
    pub(crate) fn drive(&mut self, key: Key<Exchange>) {
        let step = self.advance(key);
        self.carry_out(key, step);
    }

    /// Carries out `step` and what follows from it. Bounded: every retry uses up a try or the one kept connection.
    pub(crate) fn carry_out(&mut self, key: Key<Exchange>, mut step: Step) {
        loop {
            step = match step {
                Step::Wait => return,
                Step::Again => return self.cx.work.push_back(Work::Exchange(key)),
                Step::Retry(failure) => self.retry(key, failure),
                Step::Reply(problem) => self.reply(key, problem),
                Step::Cut(reason) => return self.cut(key, reason),
                Step::Tunnel => return self.begin_tunnel(key),
                Step::Done => return self.finish(key),
            };
        }
    }

    fn advance(&mut self, key: Key<Exchange>) -> Step {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        let Some(client) = self.clients.get_mut(exchange.client) else { return Step::Wait };
        let upstream = exchange.upstream.and_then(|key| self.upstreams.get_mut(key));
        exchange.advance(client, upstream, &mut self.cx)
    }

    /// Finds a server for the exchange and begins to send the request, whose head is in `cx.request`.
    pub(crate) fn assign(&mut self, key: Key<Exchange>) -> Step {
        match self.attach_upstream(key) {
            Ok(()) => self.begin_request(key),
            Err(step) => step,
        }
    }

    fn begin_request(&mut self, key: Key<Exchange>) -> Step {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        let Some(client) = self.clients.get_mut(exchange.client) else { return Step::Wait };
        let Some(upstream) = exchange.upstream.and_then(|key| self.upstreams.get_mut(key)) else { return Step::Wait };
        let step = exchange.begin_request(client, upstream, &mut self.cx);
        if step == Step::Wait {
            // The answer cannot be there yet; but what is stuck, and the time limits, must be looked after.
            return exchange.advance(client, Some(upstream), &mut self.cx);
        }
        step
    }

    /// Gives the exchange a kept connection, or a new one to the next server that can be connected to.
    fn attach_upstream(&mut self, key: Key<Exchange>) -> Result<(), Step> {
        self.make_room();
        let mut made_room = false;
        let Some(mut exchange) = self.exchanges.get_mut(key) else { return Err(Step::Wait) };
        let Some(group) = exchange.group else { return Err(Step::Reply(NO_SERVER)) };
        let site = std::rc::Rc::clone(&exchange.site);
        let Some(settings) = site.snapshot.groups.get(usize::from(group)) else { return Err(Step::Reply(NO_SERVER)) };
        let source = source_of(self.clients.get(exchange.client).and_then(|client| client.peer));
        let tries = usize::from(settings.tries).clamp(1, MAX_TRIES);
        if settings.send_proxy.is_some()
            && let Some(kept) = self.clients.get_mut(exchange.client).and_then(|client| client.kept.take())
        {
            let fits = !exchange.fresh_only && self.upstreams.get(kept).is_some_and(|upstream| upstream.group == group);
            exchange.times.connect_us = self.cx.clock.now_us;
            if fits && reuse(kept, &mut self.upstreams, key, exchange, &mut self.cx) {
                return Ok(());
            }
            upstream::close(&mut self.upstreams, kept, &mut self.cx);
        }
        while exchange.tried.len() < tries {
            let Some(server) = self.cx.pools.pick(group, source, self.cx.clock.now_ms, &exchange.tried) else { break };
            exchange.server = Some(server);
            exchange.attempts += 1;
            exchange.times.connect_us = self.cx.clock.now_us;
            while !exchange.fresh_only && settings.send_proxy.is_none() {
                let Some(idle) = self.cx.pools.take_idle(group, server) else { break };
                if reuse(idle, &mut self.upstreams, key, exchange, &mut self.cx) {
                    return Ok(());
                }
            }
            let address = &settings.servers[usize::from(server)].address;
            match connect::open(address) {
                Ok(connecting) => {
                    let upstream = Upstream {
                        socket: connecting.socket,
                        group,
                        server,
                        state: UpstreamState::Exchange(key),
                        connecting: !connecting.done,
                        reused: false,
                        private: settings.send_proxy.is_some(),
                        partial: Vec::new(),
                    };
                    let Some(upstream) = upstream::add(&mut self.upstreams, upstream, &mut self.cx) else {
                        return Err(Step::Reply(Problem::new(503, "the worker has no room for a connection")));
                    };
                    exchange.upstream = Some(upstream);
                    self.cx.pools.balance(group).began(server);
                    return Ok(());
                }
                // None of the server's doing.
                Err(errno) if is_shortage(errno) => {
                    if made_room || self.free_descriptors(room::BATCH) == 0 {
                        return Err(Step::Reply(Problem::new(503, "the worker has no descriptor for a connection")));
                    }
                    made_room = true;
                    exchange = match self.exchanges.get_mut(key) {
                        Some(exchange) => exchange,
                        None => return Err(Step::Wait),
                    };
                }
                Err(errno) => {
                    debug!(
                        "{}: cannot connect to {}: {errno}",
                        settings.name,
                        settings.servers[usize::from(server)].name
                    );
                    exchange.tried.push(server);
                    exchange.last_problem = Some(UNREACHABLE);
                    let why = io::Error::from(errno);
                    report_failure(&mut self.cx.pools, &site.snapshot, (group, server), &why, self.cx.clock.now_ms);
                }
            }
        }
        Err(Step::Reply(exchange.last_problem.unwrap_or(NO_SERVER)))
    }

    /// The server's connection failed: runs the request again where that is allowed.
    fn retry(&mut self, key: Key<Exchange>, failure: Failure) -> Step {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        let reused = exchange.upstream.and_then(|key| self.upstreams.get(key)).is_some_and(|upstream| upstream.reused);
        let allowed = if failure.sent { exchange.is_repeatable() } else { exchange.is_replayable() };
        exchange.last_problem = Some(failure.problem);
        if reused {
            // A kept connection may end at any time; that says nothing about the server.
            exchange.fresh_only = true;
        } else if let (Some(group), Some(server)) = (exchange.group, exchange.server) {
            exchange.tried.push(server);
            let (snapshot, why) = (&exchange.site.snapshot, &failure.problem.reason);
            report_failure(&mut self.cx.pools, snapshot, (group, server), why, self.cx.clock.now_ms);
        }
        self.detach_upstream(key);
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        if !allowed {
            return if exchange.is_unanswered() {
                Step::Reply(failure.problem)
            } else {
                Step::Cut(failure.problem.reason)
            };
        }
        if let Some(client) = self.clients.get(exchange.client) {
            exchange.rewind(client, &mut self.cx);
        }
        self.assign(key)
    }

    /// Closes the server's connection of an exchange that has no further use for it.
    fn detach_upstream(&mut self, key: Key<Exchange>) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if let Some(upstream) = exchange.upstream.take() {
            if let (Some(group), Some(server)) = (exchange.group, exchange.server) {
                self.cx.pools.balance(group).ended(server);
            }
            self.close_upstream(upstream);
        }
    }

    /// Answers the client ourselves.
    fn reply(&mut self, key: Key<Exchange>, problem: Problem) -> Step {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        if let (502 | 504, Some(group), Some(server)) = (problem.status, exchange.group, exchange.server)
            && exchange.upstream.is_some()
        {
            let (snapshot, why) = (&exchange.site.snapshot, &problem.reason);
            report_failure(&mut self.cx.pools, snapshot, (group, server), why, self.cx.clock.now_ms);
        }
        self.detach_upstream(key);
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        let Some(client) = self.clients.get_mut(exchange.client) else { return Step::Wait };
        exchange.reply(problem, client, &mut self.cx);
        exchange.advance(client, None, &mut self.cx)
    }

    /// Cuts the client's connection so that it cannot take what it has for the whole.
    fn cut(&mut self, key: Key<Exchange>, reason: Reason) {
        self.detach_upstream(key);
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        exchange.reason = Some(reason);
        let client = exchange.client;
        self.log_exchange(key);
        self.drop_exchange(key);
        if let Some(client) = self.clients.get_mut(client) {
            client.socket.reset();
        }
        self.close_client(client);
    }

    /// The response has been sent: both connections go on, or end.
    fn finish(&mut self, key: Key<Exchange>) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if let (Some(group), Some(server), Some(upstream)) = (exchange.group, exchange.server, exchange.upstream) {
            report_success(&mut self.cx.pools, &exchange.site.snapshot, group, server);
            if exchange.server_goes_on() && !self.cx.draining {
                exchange.upstream = None;
                let owner = exchange.client_goes_on().then_some(exchange.client);
                self.cx.pools.balance(group).ended(server);
                self.keep_upstream(upstream, owner);
            } else {
                self.detach_upstream(key);
            }
        }
        self.log_exchange(key);
        let Some(exchange) = self.exchanges.get(key) else { return };
        let (client_key, goes_on) = (exchange.client, exchange.client_goes_on());
        let (more_may_come, end) = (exchange.more_may_come(), exchange.request_end());
        self.drop_exchange(key);
        let Some(client) = self.clients.get_mut(client_key) else { return };
        if !goes_on {
            // Closed with bytes unread, the connection would be reset, and the client might lose the answer. Of what
            // has come to one that is not watched only the kernel knows.
            let more = more_may_come
                || client.input.as_ref().is_some_and(|input| input.end > end)
                || client.socket.is_readable()
                || !client.socket.registered && client.socket.has_input();
            return if more { self.linger(client_key) } else { self.close_client(client_key) };
        }
        client.state = ClientState::Idle;
        client.answered(end, &mut self.cx);
        if self.cx.giving_back {
            self.give_back(client_key);
        } else if client.input.is_some() || client.socket.is_readable() {
            self.cx.work.push_back(Work::Client(client_key));
        } else {
            self.wait_idle(client_key);
        }
    }

    /// Keeps a server's connection for the next request, if it is in order: for anyone's, or for `owner`'s if it may
    /// serve that client only.
    fn keep_upstream(&mut self, key: Key<Upstream>, owner: Option<Key<Client>>) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        let (group, server) = (upstream.group, upstream.server);
        // A last read that filled the buffer exactly, or a close already announced: look before keeping it.
        let clean = !upstream.socket.is_gone()
            && !upstream.socket.is_read_closed()
            && (!upstream.socket.is_readable() || !upstream.socket.has_input());
        let keepalive = self.cx.site.snapshot.groups[usize::from(group)].keepalive;
        let kept = match owner.filter(|_| upstream.private).and_then(|owner| self.clients.get_mut(owner)) {
            // Where connections are bounded, one that waits for one client must not keep out the others.
            Some(client) if clean && keepalive.idle_per_server > 0 && keepalive.max_per_server.is_none() => {
                let former = client.kept.replace(key);
                if let Some(former) = former {
                    upstream::close(&mut self.upstreams, former, &mut self.cx);
                }
                true
            }
            Some(_) => false,
            None => clean && !upstream.private && self.cx.pools.put_idle(group, server, key),
        };
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        if !kept {
            return self.close_upstream(key);
        }
        upstream.state = UpstreamState::Idle;
        let due_ms = self.cx.clock.now_ms + u64::from(keepalive.idle_timeout_ms);
        self.cx.arm(&mut upstream.socket, Owner::Upstream(key), due_ms);
    }

    fn drop_exchange(&mut self, key: Key<Exchange>) {
        if let Some(mut exchange) = self.exchanges.remove(key) {
            exchange.release(&mut self.cx);
            self.cx.control.stats().active_requests.set(self.exchanges.len() as u64);
        }
    }

    /// Turns the exchange into a relay of bytes, after a 101.
    fn begin_tunnel(&mut self, key: Key<Exchange>) {
        self.log_exchange(key);
        let Some(mut exchange) = self.exchanges.remove(key) else { return };
        self.cx.control.stats().active_requests.set(self.exchanges.len() as u64);
        let (Some(upstream), Some(group), Some(server)) = (exchange.upstream, exchange.group, exchange.server) else {
            return self.close_client(exchange.client);
        };
        report_success(&mut self.cx.pools, &exchange.site.snapshot, group, server);
        let to_client = exchange.take_to_client();
        let (client, end, tunnel_ms) = (exchange.client, exchange.request_end(), exchange.timeouts.tunnel_ms);
        exchange.release(&mut self.cx);
        self.relay_tunnel(client, upstream, end, to_client, tunnel_ms);
    }

    fn log_exchange(&mut self, key: Key<Exchange>) {
        let Some(exchange) = self.exchanges.get(key) else { return };
        if let Some(reason) = exchange.reason {
            debug!("request failed with {}: {reason}", exchange.status);
        }
        let Some(log) = &mut self.cx.log else { return };
        let Some(client) = self.clients.get(exchange.client) else { return };
        let (start, end) = exchange.head_range();
        let head = client.input_from(start, &self.cx.arena);
        let entry = exchange.log_entry(client, head.get(..end - start).unwrap_or(&[]), &self.cx.clock, self.cx.index);
        let reason = exchange.reason.map(|reason| reason.to_string());
        log.record(&Entry { reason: reason.as_deref(), ..entry }, self.cx.clock.now_ms);
    }
}

/// Gives an exchange a kept connection. False when that is already over; then it is closed.
fn reuse(
    idle: Key<Upstream>,
    upstreams: &mut Slab<Upstream>,
    key: Key<Exchange>,
    exchange: &mut Exchange,
    cx: &mut Ctx,
) -> bool {
    let Some(upstream) = upstreams.get_mut(idle) else { return false };
    // A request that must not be sent twice is not risked on a connection that is already over. Asking costs a
    // call; the others are simply sent again.
    if upstream.socket.is_readable() || (!exchange.method.is_idempotent() && upstream.socket.has_input()) {
        upstream::close(upstreams, idle, cx);
        return false;
    }
    upstream.state = UpstreamState::Exchange(key);
    upstream.reused = true;
    exchange.server = Some(upstream.server);
    exchange.upstream = Some(idle);
    exchange.times.connected_us = cx.clock.now_us;
    cx.pools.balance(upstream.group).began(upstream.server);
    true
}

pub(crate) fn report_success(pools: &mut Pools, snapshot: &Snapshot, group: GroupId, server: ServerId) {
    if pools.balance(group).succeeded(server) {
        let settings = &snapshot.groups[usize::from(group)];
        info!("backends.{}: {} answers again", settings.name, settings.servers[usize::from(server)].name);
    }
}

/// Counts a failure of a server, and says so when it is passed over from now on.
pub(crate) fn report_failure(
    pools: &mut Pools,
    snapshot: &Snapshot,
    (group, server): (GroupId, ServerId),
    why: &dyn std::fmt::Display,
    now_ms: u64,
) {
    if let Some(ejected) = pools.balance(group).failed(server, now_ms) {
        let settings = &snapshot.groups[usize::from(group)];
        warn!(
            "backends.{}: {} failed {} times in a row, the last time because: {why}; it is passed over for {} ms \
             while others are there",
            settings.name,
            settings.servers[usize::from(server)].name,
            ejected.failures,
            ejected.for_ms
        );
    }
}
