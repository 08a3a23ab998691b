//! Carrying out what an exchange asks for: another server, an answer, a tunnel, the end.

use std::net::SocketAddr;

use log::debug;
use rustix::io::Errno;

use crate::access_log::Entry;
use crate::backend::connect;
use crate::backend::pool::{GONE, Place};
use crate::backend::upstream;
use crate::backend::{Upstream, UpstreamState};
use crate::balance;
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Owner, Work};
use crate::exchange::{Exchange, Failure, MAX_TRIES, Problem, Reason, Step};
use crate::proto::h1::head::Method;
use crate::relay::NewTunnel;
use crate::relay::line::Opened;
use crate::room::{self, is_shortage};
use crate::slab::{Key, Slab};
use crate::worker::Worker;

const NO_SERVER: Problem = Problem::new(503, "no server of the group can take the request");
const FULL: Problem = Problem::new(503, "the group's servers have as many connections as max_per_server allows");

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
        let mut upstream = exchange.upstream.and_then(|key| self.upstreams.get_mut(key));
        let Some(forward) = &exchange.forward else { return exchange.advance(client, upstream, &mut self.cx) };
        let lease = forward.lease();
        if self.forward.allowance(lease, Work::Exchange(key), self.cx.clock.now_ms) == 0 {
            return Step::Wait;
        }
        let moved = |upstream: &Option<&mut Upstream>| {
            upstream.as_ref().map_or(0, |upstream| upstream.socket.bytes_in + upstream.socket.bytes_out)
        };
        let before = moved(&upstream);
        let step = exchange.advance(client, upstream.as_deref_mut(), &mut self.cx);
        self.forward.uses.moved(lease, moved(&upstream).saturating_sub(before), self.cx.clock.now_ms);
        step
    }

    /// Finds a server for the exchange and begins to send the request, whose head is in `cx.request`.
    pub(crate) fn assign(&mut self, key: Key<Exchange>) -> Step {
        match self.attach_upstream(key) {
            Ok(()) => self.begin_request(key),
            Err(step) => step,
        }
    }

    pub(crate) fn begin_request(&mut self, key: Key<Exchange>) -> Step {
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
        if self.exchanges.get(key).is_some_and(|exchange| exchange.forward.is_some()) {
            return self.attach_origin(key);
        }
        let mut made_room = false;
        let Some(mut exchange) = self.exchanges.get_mut(key) else { return Err(Step::Wait) };
        let nobody = exchange.last_problem.unwrap_or(NO_SERVER);
        // A group that is gone since the request began has no servers to go on with.
        let (Some(group), Some(pool)) = (exchange.group, exchange.pool) else { return Err(Step::Reply(nobody)) };
        let source = source_of(self.clients.get(exchange.client).and_then(|client| client.peer));
        let settings = &exchange.site.snapshot.groups[usize::from(group)];
        let tries = usize::from(settings.tries).clamp(1, MAX_TRIES);
        let private = settings.send_proxy.is_some();
        if private && let Some(kept) = self.clients.get_mut(exchange.client).and_then(|client| client.kept.take()) {
            let place = self.upstreams.get(kept).and_then(|upstream| upstream.place);
            (exchange.times.connect_us, exchange.times.connected_us) = (self.cx.clock.now_us, 0);
            if let Some(place) = place.filter(|place| place.group() == pool && !exchange.fresh_only)
                && reuse((kept, place), &mut self.upstreams, key, exchange, &mut self.cx)
            {
                return Ok(());
            }
            upstream::close(&mut self.upstreams, kept, &mut self.cx);
        }
        while exchange.tried.len() < tries + exchange.passed_over {
            let Some(place) = self.cx.pools.pick(pool, source, self.cx.clock.now_ms, &exchange.tried) else { break };
            exchange.place = Some(place);
            exchange.gone_server = None;
            exchange.attempts += 1;
            (exchange.times.connect_us, exchange.times.connected_us) = (self.cx.clock.now_us, 0);
            while !exchange.fresh_only && !private {
                let Some(idle) = self.cx.pools.take_idle(place) else { break };
                if reuse((idle, place), &mut self.upstreams, key, exchange, &mut self.cx) {
                    return Ok(());
                }
            }
            // What is left is for the master's next message. With a limit so low that it never is, nothing is waited for.
            let short = self.cx.descriptors_left() == 0 && !self.upstreams.is_empty();
            let opened = if short { Err(Errno::MFILE) } else { connect::open(&self.cx.pools.server(place).address) };
            match opened {
                Ok(connecting) => {
                    let upstream = Upstream {
                        socket: connecting.socket,
                        place: Some(place),
                        state: UpstreamState::Exchange(key),
                        connecting: !connecting.done,
                        reused: false,
                        private,
                        partial: Vec::new(),
                        answers_at_length: false,
                    };
                    let Some(upstream) = upstream::add(&mut self.upstreams, upstream, &mut self.cx) else {
                        return Err(Step::Reply(Problem::new(503, "the worker has no room for a connection")));
                    };
                    exchange.upstream = Some(upstream);
                    if connecting.done {
                        exchange.times.connected_us = self.cx.clock.now_us;
                    }
                    self.cx.pools.began(place);
                    return Ok(());
                }
                // None of the server's doing.
                Err(errno) if is_shortage(errno) => {
                    if made_room || self.free_descriptors(room::BATCH) == 0 {
                        return Err(self.await_descriptor(key));
                    }
                    made_room = true;
                    exchange = match self.exchanges.get_mut(key) {
                        Some(exchange) => exchange,
                        None => return Err(Step::Wait),
                    };
                }
                Err(errno) => {
                    debug!("cannot connect to {}: {errno}", self.cx.pools.server(place).name);
                    exchange.tried.push(place.server());
                    if connect::is_without_way(&self.cx.pools.server(place).address, errno)
                        && exchange.passed_over < connect::PASSED_OVER_MAX
                    {
                        exchange.passed_over += 1;
                    }
                    let problem = Problem::unreachable(errno);
                    exchange.last_problem = Some(problem);
                    self.cx.pools.failed(place, &problem.reason, self.cx.clock.now_ms);
                }
            }
        }
        let nobody = if self.cx.pools.is_full(pool) { FULL } else { NO_SERVER };
        Err(Step::Reply(exchange.last_problem.unwrap_or(nobody)))
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
        } else {
            exchange.tried.push(exchange.place.map_or(GONE, Place::server));
            if let Some(place) = exchange.place {
                self.cx.pools.failed(place, &failure.problem.reason, self.cx.clock.now_ms);
            }
        }
        self.detach_upstream(key);
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        // A target that a client has named has no other server to try.
        if !allowed || exchange.forward.is_some() && !reused {
            return if exchange.is_unanswered() {
                Step::Reply(failure.problem)
            } else {
                Step::Cut(failure.problem.reason)
            };
        }
        let Some(client) = self.clients.get(exchange.client) else { return Step::Wait };
        match exchange.rewind(client, &mut self.cx) {
            Ok(()) => self.assign(key),
            Err(step) => step,
        }
    }

    /// Closes the server's connection of an exchange that has no further use for it.
    fn detach_upstream(&mut self, key: Key<Exchange>) {
        let Some(exchange) = self.exchanges.get_mut(key) else { return };
        if let Some(upstream) = exchange.upstream.take() {
            if let Some(place) = exchange.place {
                self.cx.pools.ended(place);
            }
            self.close_upstream(upstream);
        }
    }

    /// Answers the client ourselves.
    fn reply(&mut self, key: Key<Exchange>, problem: Problem) -> Step {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        if let (502 | 504, Some(place), Some(_)) = (problem.status, exchange.place, exchange.upstream) {
            self.cx.pools.failed(place, &problem.reason, self.cx.clock.now_ms);
        }
        self.detach_upstream(key);
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        let Some(client) = self.clients.get_mut(exchange.client) else { return Step::Wait };
        if exchange.method == Method::Connect {
            // What comes behind a refused CONNECT may be meant for the tunnel: it must not become a request.
            exchange.close_client();
        }
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
        if let Some(upstream) = exchange.upstream {
            if let Some(place) = exchange.place {
                self.cx.pools.succeeded(place);
            }
            match exchange.place {
                Some(place) if exchange.server_goes_on() && !self.cx.draining => {
                    exchange.upstream = None;
                    let owner = exchange.client_goes_on().then_some(exchange.client);
                    self.cx.pools.ended(place);
                    self.keep_upstream(upstream, place, owner);
                }
                None if exchange.forward.is_some() && exchange.server_goes_on() && !self.cx.draining => {
                    if self.keep_origin(key) {
                        if let Some(exchange) = self.exchanges.get_mut(key) {
                            exchange.upstream = None;
                        }
                    } else {
                        self.detach_upstream(key);
                    }
                }
                Some(_) | None => self.detach_upstream(key),
            }
        }
        self.log_exchange(key);
        let Some(exchange) = self.exchanges.get(key) else { return };
        let (client_key, goes_on) = (exchange.client, exchange.client_goes_on());
        let (more_may_come, end) = (exchange.more_may_come(), exchange.request_end());
        self.drop_exchange(key);
        let Some(client) = self.clients.get_mut(client_key) else { return };
        if !goes_on {
            client.socket.release();
            client.socket.reset_on_close(false);
            let more = more_may_come || client.input.as_ref().is_some_and(|input| input.end > end);
            return if more { self.linger(client_key) } else { self.part(client_key) };
        }
        client.state = ClientState::Idle;
        // The time limit was this request's; the next one is not late because of it.
        client.socket.deadline.due_ms = u64::MAX;
        client.answered(end, &mut self.cx);
        if client.input.is_none() {
            client.socket.release();
        }
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
    fn keep_upstream(&mut self, key: Key<Upstream>, place: Place, owner: Option<Key<Client>>) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        // A last read that filled the buffer exactly, or a close already announced: look before keeping it.
        let clean = !upstream.socket.is_gone()
            && !upstream.socket.is_read_closed()
            && (!upstream.socket.is_readable() || !upstream.socket.has_input());
        let keepalive = self.cx.pools.settings(place.group()).keepalive;
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
            None => clean && !upstream.private && self.cx.pools.put_idle(place, key),
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
            self.drop_forwarding(exchange.forward.take());
        }
    }

    /// Turns the exchange into a relay of bytes, after a 101, or a 200 to CONNECT. It is logged at its end.
    fn begin_tunnel(&mut self, key: Key<Exchange>) {
        let opened = self.opened(key);
        let Some(mut exchange) = self.exchanges.remove(key) else { return };
        self.cx.control.stats().active_requests.set(self.exchanges.len() as u64);
        let Some(upstream) = exchange.upstream else { return self.close_client(exchange.client) };
        if let Some(place) = exchange.place {
            self.cx.pools.succeeded(place);
        }
        let to_client = exchange.take_to_client();
        let pass = exchange.forward.as_mut().and_then(|forward| forward.take_pass());
        // Nothing but heads has been written yet, if anything has.
        let written = self.clients.get(exchange.client).map_or(0, Client::written);
        let tunnel = NewTunnel {
            request_end: exchange.request_end(),
            to_client,
            own_bytes: exchange.head_bytes_out().saturating_sub(written),
            tunnel_ms: exchange.timeouts.tunnel_ms,
            pass,
            opened,
        };
        exchange.release(&mut self.cx);
        self.relay_tunnel(exchange.client, upstream, tunnel);
    }

    /// What the line of a tunnel says of the request that it began as.
    fn opened(&self, key: Key<Exchange>) -> Option<Box<Opened>> {
        self.cx.log.as_ref()?;
        let exchange = self.exchanges.get(key)?;
        let client = self.clients.get(exchange.client)?;
        let (head, address) = (exchange.head(client, &self.cx.arena), exchange.target_address());
        let server = exchange.server_name(&self.cx.pools).or(address.as_deref());
        let entry = exchange.log_entry(client, head, server, &self.cx.clock, self.cx.index);
        Some(Opened::new(&entry, exchange.times.began_us))
    }

    fn log_exchange(&mut self, key: Key<Exchange>) {
        let Some(exchange) = self.exchanges.get(key) else { return };
        if let Some(reason) = exchange.reason {
            debug!("request failed with {}: {reason}", exchange.status);
        }
        let Some(log) = &mut self.cx.log else { return };
        let Some(client) = self.clients.get(exchange.client) else { return };
        let (head, address) = (exchange.head(client, &self.cx.arena), exchange.target_address());
        let server = exchange.server_name(&self.cx.pools).or(address.as_deref());
        let entry = exchange.log_entry(client, head, server, &self.cx.clock, self.cx.index);
        let reason = exchange.reason.map(|reason| reason.to_string());
        log.record(&Entry { reason: reason.as_deref(), ..entry }, self.cx.clock.now_ms);
    }
}

/// Gives an exchange a kept connection. False when that is already over; then it is closed.
fn reuse(
    (idle, place): (Key<Upstream>, Place),
    upstreams: &mut Slab<Upstream>,
    key: Key<Exchange>,
    exchange: &mut Exchange,
    cx: &mut Ctx,
) -> bool {
    let Some(upstream) = upstreams.get_mut(idle) else { return false };
    // What has come on it is no answer to this request, and the turn began with looking at what came. Only when there
    // was more to look at than fits into a turn must the kernel be asked. So it is for a request that must not be sent
    // twice: it is not risked on a connection that is already over. Asking costs a call.
    let ask = cx.events_left || !exchange.method.is_idempotent();
    if upstream.socket.is_readable() || (ask && upstream.socket.has_input()) {
        upstream::close(upstreams, idle, cx);
        return false;
    }
    upstream.state = UpstreamState::Exchange(key);
    upstream.reused = true;
    exchange.place = Some(place);
    exchange.gone_server = None;
    exchange.upstream = Some(idle);
    cx.pools.began(place);
    true
}
