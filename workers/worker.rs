//! The worker's loop, and the only owner of its connections.
//!
//! One turn: wait for events, carry each out as far as it goes, then timers, then what had used up its share, and
//! at the end the reports to the master and the log. Nothing in a turn blocks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use ipc::channel::SendError;
use ipc::message::{Lost, MAX_LOST_BYTES, ToMaster};
use ipc::state::Phase;
use log::warn;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::accepting::Accepting;
use crate::access_log::AccessLog;
use crate::backend::pool::Place;
use crate::backend::{Upstream, UpstreamState};
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Owner, Work};
use crate::drain::{RETURNED_MS, Returned};
use crate::exchange::{Exchange, Problem, Reason, Step};
use crate::first_read::FirstRead;
use crate::forward::Forwarder;
use crate::forward::dial::PASSWORDS;
use crate::io::socket::Io;
use crate::messages::REPORT_MS;
use crate::orphan::{CONTROL, MASTER, Succession, VISITOR};
use crate::proto::foreign;
use crate::proto::h1::head::{BodyFraming, Version};
use crate::proxy_protocol::Refusals;
use crate::relay::Relay;
use crate::slab::{Key, Slab};
use crate::timers::Armed;

const CHANNEL: Token = Token(usize::MAX);
/// Events taken in one turn at most.
const EVENTS: usize = 512;

/// How the worker's life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was drained: every connection is finished.
    Drained,
    /// The master said so.
    Stopped,
}

/// See the module's description.
#[derive(Debug)]
pub struct Worker {
    pub(crate) poll: Poll,
    /// Client connections.
    pub(crate) clients: Slab<Client>,
    /// Connections to servers.
    pub(crate) upstreams: Slab<Upstream>,
    /// Requests being served.
    pub(crate) exchanges: Slab<Exchange>,
    /// Relays.
    pub(crate) relays: Slab<Relay>,
    /// Relays that were taken for drained.
    pub(crate) presumed: Vec<Key<Relay>>,
    /// Since when the first of them waits.
    pub(crate) presumed_since_ms: u64,
    /// What they share.
    pub(crate) cx: Ctx,
    /// When draining must be over.
    pub(crate) drain_until_ms: u64,
    /// Whether the master said to stop.
    pub(crate) stopped: bool,
    /// Whether a message from the master may be there.
    channel_ready: bool,
    /// Timers that have fired: kept for its memory only.
    due: Vec<(u64, Armed)>,
    /// What becomes of the connections when the master dies.
    pub(crate) succession: Succession,
    /// Where it accepts while there is none.
    pub(crate) accepting: Accepting,
    /// Whether connections are read from as soon as they are taken up.
    pub(crate) first_read: FirstRead,
    /// Warnings of PROXY headers.
    pub(crate) header_refusals: Refusals,
    /// What forward listeners need.
    pub(crate) forward: Forwarder,
}

impl Worker {
    /// A worker that has its configuration and has told the master so.
    ///
    /// # Errors
    /// When the channel cannot be watched or the master is gone.
    pub fn new(poll: Poll, cx: Ctx) -> io::Result<Worker> {
        let fd = cx.channel.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), CHANNEL, Interest::READABLE)?;
        let forward = Forwarder::new(&cx.share);
        let mut worker = Worker {
            poll,
            clients: Slab::new(),
            upstreams: Slab::new(),
            exchanges: Slab::new(),
            relays: Slab::new(),
            presumed: Vec::new(),
            presumed_since_ms: 0,
            cx,
            drain_until_ms: u64::MAX,
            stopped: false,
            // A message may have come before the channel was watched.
            channel_ready: true,
            due: Vec::new(),
            succession: Succession::new(),
            accepting: Accepting::default(),
            first_read: FirstRead::default(),
            header_refusals: Refusals::default(),
            forward,
        };
        // What the master gives every worker before it passes connections.
        worker.on_channel()?.ok_or_else(crate::master_is_gone)?;
        worker.serve_names();
        worker.cx.channel.send(&ToMaster::Ready, &[]).map_err(|error| match error {
            SendError::Closed => crate::master_is_gone(),
            SendError::Full | SendError::TooLarge | SendError::Io(_) => io::Error::other(error.to_string()),
        })?;
        Ok(worker)
    }

    /// Runs until drained, or told to stop.
    ///
    /// # Errors
    /// When events cannot be waited for, or the master's messages are malformed.
    pub fn run(&mut self) -> io::Result<End> {
        let end = self.turn_until_the_end();
        if let Some(log) = &mut self.cx.log {
            log.flush(self.cx.clock.now_ms);
        }
        end
    }

    fn turn_until_the_end(&mut self) -> io::Result<End> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let timeout = self.timeout();
            self.wait(&mut events, timeout)?;
            if let Some(end) = self.turn(&events)? {
                return Ok(end);
            }
        }
    }

    /// Its clients' connections: the master's number for each, and its socket.
    pub fn connections(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.clients.iter().map(|(_, client)| (client.id, client.socket.as_fd()))
    }

    /// The sockets of clients that it has let go of and that nobody else has yet.
    pub fn on_their_way(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let left = self.returned().filter(|one| !self.cx.is_passed_on(one.report.id));
        self.succession.given().chain(left.filter_map(Returned::socket))
    }

    /// The sockets of clients that it has sent to another master, which has not yet taken them.
    pub fn untaken(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.succession.untaken()
    }

    /// Hears what a successor has said so far to have taken from it.
    pub fn hear_taken(&mut self) {
        let _ = self.succession.hear_taken();
    }

    /// The sockets of clients that it has given to a master, or another, as far as it still keeps them.
    pub fn lent(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.returned().filter_map(Returned::socket).chain(self.succession.untaken())
    }

    fn returned(&self) -> impl Iterator<Item = &Returned> {
        self.cx.given_back.iter().chain(&self.cx.returned)
    }

    /// Whether it knows that its master has died.
    pub fn is_orphan(&self) -> bool {
        self.succession.is_orphan()
    }

    /// Whether its master has died, and it finishes without another.
    pub fn is_forsaken(&self) -> bool {
        self.succession.is_forsaken()
    }

    /// Lets its clock go `ahead_us` microseconds ahead of the system's.
    pub fn set_clock_ahead(&mut self, ahead_us: u64) {
        self.cx.clock.ahead_us = ahead_us;
    }

    /// Carries out what `events` tell, and whatever else is due; how its life ends, if it does.
    ///
    /// # Errors
    /// When the master's messages are malformed.
    pub fn turn(&mut self, events: &Events) -> io::Result<Option<End>> {
        self.cx.clock.read();
        self.cx.control.stats().heartbeat_ms.set(self.cx.clock.now_ms);
        // Servers' readiness first: what came on an idle connection before this turn must not be taken for the
        // answer to a request that this turn sends on it.
        let mut taken = 0;
        for event in events {
            taken += 1;
            if let Some(Owner::Upstream(key)) = Owner::from_bits(event.token().0 as u64)
                && let Some(upstream) = self.upstreams.get_mut(key)
            {
                upstream.socket.on_event(event);
            }
        }
        self.cx.events_left = taken >= EVENTS;
        for event in events {
            match (event.token(), Owner::from_bits(event.token().0 as u64)) {
                (CHANNEL, _) => self.channel_ready = true,
                (CONTROL, _) => self.on_control(),
                (VISITOR, _) => self.on_visitor(),
                (MASTER, _) => self.on_masters_end(),
                (PASSWORDS, _) => self.on_passwords(),
                (_, Some(Owner::Client(key))) => {
                    if let Some(client) = self.clients.get_mut(key) {
                        client.socket.on_event(event);
                        self.on_client(key);
                    }
                }
                (_, Some(Owner::Upstream(key))) => {
                    if self.upstreams.contains(key) {
                        self.on_upstream(key);
                    }
                }
                (_, Some(Owner::Dns(key))) => self.cx.dns.on_event(key, self.cx.clock.now_ms),
                (_, Some(Owner::DnsTimer)) => {}
                (token, None) => self.accepting.on_event(token),
            }
        }
        if self.channel_ready && !self.succession.is_orphan() && self.can_receive() {
            match self.on_channel()? {
                Some(more) => self.channel_ready = more,
                None => {
                    self.become_orphan();
                    self.channel_ready = false;
                }
            }
            if self.stopped {
                return Ok(Some(End::Stopped));
            }
        }
        if self.cx.clock.now_ms >= self.succession.due_ms() {
            self.on_succession_timeout();
        }
        self.accept_in_masters_place();
        let mut due = std::mem::take(&mut self.due);
        self.cx.timers.expire(self.cx.clock.now_ms, &mut due);
        for (token, armed) in due.drain(..) {
            self.on_timer(token, armed);
        }
        self.due = due;
        for _ in 0..self.cx.work.len() {
            match self.cx.work.pop_front() {
                Some(Work::Client(key)) => self.serve_client(key),
                Some(Work::Exchange(key)) => self.drive(key),
                Some(Work::Relay(key)) => self.drive_relay(key),
                None => {}
            }
        }
        self.serve_awaiting();
        self.look_again();
        self.look_at_throttled();
        self.serve_names();
        self.hand_over_relays();
        self.report();
        self.report_given_back();
        self.forget_passed_on();
        self.send_to_successor();
        self.cx.warn_of_shortage();
        if let Some(log) = &mut self.cx.log
            && log.deadline().is_some_and(|due_ms| due_ms <= self.cx.clock.now_ms)
        {
            log.flush(self.cx.clock.now_ms);
        }
        if self.is_drained() {
            self.end_drain();
            return Ok(Some(End::Drained));
        }
        Ok(None)
    }

    /// How long nothing needs to be done unless something happens; `None` = for ever.
    fn timeout(&self) -> Option<Duration> {
        let now_ms = self.cx.clock.now_ms;
        let more = self.channel_ready && !self.succession.is_orphan() && self.cx.can_receive();
        let report = (!self.cx.finished.is_empty()).then_some(self.cx.finished_since_ms + REPORT_MS);
        let acknowledge = self.cx.reloaded.map(|_| now_ms + REPORT_MS);
        let drain = self.cx.draining.then_some(self.drain_until_ms);
        let log = self.cx.log.as_ref().and_then(AccessLog::deadline);
        let orphan = Some(self.succession.due_ms()).filter(|&at| at != u64::MAX);
        let returned = (!self.cx.returned.is_empty()).then_some(now_ms + RETURNED_MS);
        let accept = self.accepting.due_ms();
        let others =
            [returned, self.look_again_at(), self.awaiting_at(), self.cx.given_way.due_ms(), acknowledge, orphan];
        let others = others.into_iter().chain([self.forward.due_ms(), accept]);
        let deadlines = [self.cx.timers.next_deadline(), log, report, drain].into_iter().chain(others);
        let last_word = self.clients.is_empty() && self.succession.owes_last_word();
        let unsent = !self.cx.given_back.is_empty() || self.succession.has_given() || last_word;
        if unsent || !self.cx.to_hand_over.is_empty() {
            Some(Duration::from_millis(1))
        } else if more || !self.cx.work.is_empty() || accept.is_some_and(|due_ms| due_ms <= now_ms) {
            Some(Duration::ZERO)
        } else {
            // One millisecond more than the difference, since the clock's milliseconds are rounded down.
            deadlines.flatten().min().map(|at| Duration::from_millis((at + 1).saturating_sub(now_ms)))
        }
    }

    /// Waits for events, for `timeout` at most.
    ///
    /// # Errors
    /// When they cannot be waited for.
    pub fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }

    fn on_client(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        match client.state {
            ClientState::Header => self.read_header(key),
            ClientState::Idle => self.serve_client(key),
            ClientState::Opening(opening) => self.drive_opening(opening),
            ClientState::Exchange(exchange) => self.drive(exchange),
            ClientState::Relay(relay) => self.drive_relay(relay),
            ClientState::Lingering(_) => self.drop_input(key),
        }
    }

    fn on_upstream(&mut self, key: Key<Upstream>) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        match upstream.state {
            UpstreamState::Idle => {
                // Nothing may come on it: it has ended, or answers what was not asked.
                if upstream.socket.is_readable() || upstream.socket.is_gone() {
                    self.close_upstream(key);
                }
            }
            UpstreamState::Exchange(exchange) => self.drive(exchange),
            UpstreamState::Relay(relay) => self.on_relay_upstream(relay, key),
            UpstreamState::Racing(dial) => self.on_racing(dial, key),
        }
    }

    fn on_timer(&mut self, token: u64, armed: Armed) {
        match Owner::from_bits(token) {
            Some(Owner::Client(key)) => {
                let Some(client) = self.clients.get_mut(key) else { return };
                if self.cx.is_due(&mut client.socket, Owner::Client(key), armed) {
                    self.on_client_timeout(key);
                }
            }
            Some(Owner::Upstream(key)) => {
                let Some(upstream) = self.upstreams.get_mut(key) else { return };
                if self.cx.is_due(&mut upstream.socket, Owner::Upstream(key), armed) {
                    self.on_upstream_timeout(key);
                }
            }
            Some(Owner::DnsTimer) if self.cx.dns_timer == Some(armed) => {
                self.cx.dns_timer = None;
                self.cx.dns.on_time(self.cx.clock.now_ms);
            }
            Some(Owner::Dns(_) | Owner::DnsTimer) | None => {}
        }
    }

    fn on_client_timeout(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        match client.state {
            ClientState::Header => self.refuse_header(key, "the PROXY header did not come in time"),
            ClientState::Idle if client.has_begun(&self.cx.arena) => {
                self.answer(key, Problem::new(408, "the client sent its request head too slowly"));
            }
            ClientState::Idle | ClientState::Lingering(_) => self.close_client(key),
            ClientState::Opening(opening) => self.on_opening_timeout(opening),
            ClientState::Exchange(exchange_key) => {
                if let Some(dial) = self.dial_of(exchange_key) {
                    return self.on_dial_timeout(dial);
                }
                let Some(client) = self.clients.get_mut(key) else { return };
                let Some(exchange) = self.exchanges.get_mut(exchange_key) else { return };
                let step = exchange.on_client_timeout(client, &mut self.cx);
                self.carry_out(exchange_key, step);
            }
            ClientState::Relay(relay) => self.on_relay_timeout(relay),
        }
    }

    fn on_upstream_timeout(&mut self, key: Key<Upstream>) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        match upstream.state {
            UpstreamState::Idle => self.close_upstream(key),
            UpstreamState::Exchange(exchange_key) => {
                let Some(exchange) = self.exchanges.get_mut(exchange_key) else { return };
                let step = exchange.on_server_timeout();
                self.carry_out(exchange_key, step);
            }
            UpstreamState::Relay(relay) => self.on_relay_connect_timeout(relay),
            UpstreamState::Racing(dial) => self.on_racing_timeout(dial, key),
        }
    }

    /// Reads a client's next request and begins to serve it.
    pub(crate) fn serve_client(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.state != ClientState::Idle {
            return;
        }
        loop {
            let Some(client) = self.clients.get_mut(key) else { return };
            if client.input.is_some() {
                if !client.is_http {
                    if !self.is_http(key) {
                        return;
                    }
                    continue;
                }
                let bytes = client.unanswered(&self.cx.arena);
                match self.cx.request.parse(bytes, &self.cx.site.request_limits(client.listener)) {
                    Ok(Some(length)) => return self.begin_exchange(key, length),
                    Ok(None) => client.socket.release(),
                    Err(error) => {
                        let reason = foreign::reason(bytes).map_or(Reason::RequestHead(error), Reason::Text);
                        client.socket.release();
                        return self.answer_parsed(key, Problem { status: error.status(), reason });
                    }
                }
            }
            let begun = client.has_begun(&self.cx.arena);
            match client.read_more(&mut self.cx) {
                Some(Io::Moved(_)) => {
                    if !begun {
                        client.head_since_ms = self.cx.clock.now_ms;
                    }
                }
                Some(Io::Blocked) => return self.wait_idle(key),
                Some(Io::Eof | Io::Broken(_)) => {
                    if !client.has_begun(&self.cx.arena) {
                        return self.close_client(key);
                    }
                    return self
                        .answer(key, Problem::new(400, "the client closed the connection within the request head"));
                }
                // The slot's end is reached: what is there begins further on, or the head would have been refused.
                None if client.is_full(&self.cx) && client.compact(&mut self.cx) => {}
                None => {
                    warn!("no buffer is free for a request");
                    return self.close_client(key);
                }
            }
        }
    }

    /// Nothing can be read from a client between requests, or within a head: sets the time limit for it.
    pub(crate) fn wait_idle(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.input.as_ref().is_some_and(|input| input.start == input.end) {
            client.answered(usize::MAX, &mut self.cx);
        }
        let timeouts = &self.cx.site.snapshot.listeners[usize::from(client.listener)].timeouts;
        let due_ms = if client.input.is_some() {
            if client.head_since_ms == 0 {
                client.head_since_ms = self.cx.clock.now_ms;
            }
            client.head_since_ms + u64::from(timeouts.header_ms)
        } else if self.cx.draining {
            return self.leave(key);
        } else {
            self.cx.clock.now_ms + u64::from(timeouts.idle_ms)
        };
        if client.socket.bytes_in == 0 && client.socket.bytes_out == 0 {
            self.cx.watch_once(&mut client.socket, Owner::Client(key));
        } else {
            self.cx.watch(&mut client.socket, Owner::Client(key));
        }
        if client.socket.is_gone() {
            return self.close_client(key);
        }
        self.cx.arm(&mut client.socket, Owner::Client(key), due_ms);
    }

    /// Serves the request whose head, in `cx.request`, is the first `length` unanswered bytes.
    fn begin_exchange(&mut self, client_key: Key<Client>, length: usize) {
        let Some(client) = self.clients.get_mut(client_key) else { return };
        if self.cx.request.version == Version::Http11 {
            // Its answers are framed: what is cut shows.
            client.socket.release();
        }
        if self.cx.request.framing == BodyFraming::Chunked {
            client.make_body_room(length, &mut self.cx);
        }
        let mut exchange = Exchange::new(client_key, client, &self.cx);
        let forward = self.cx.site.snapshot.listeners[usize::from(client.listener)].forward.is_some();
        let admitted = if forward {
            exchange.admit_forward(length, client, &self.cx)
        } else {
            exchange.admit(length, client, &self.cx).map(drop)
        };
        self.cx.control.stats().requests.add(1);
        let Some(key) = self.add_exchange(client_key, exchange) else { return };
        let step = match admitted {
            Ok(()) => self.assign(key),
            Err(problem) => Step::Reply(problem),
        };
        self.carry_out(key, step);
    }

    /// Answers whatever the client has sent with an error, and ends the connection.
    pub(crate) fn answer(&mut self, client_key: Key<Client>, problem: Problem) {
        let Some(client) = self.clients.get(client_key) else { return };
        // What can be understood of it, others having been parsed since.
        let limits = self.cx.site.request_limits(client.listener);
        let _ = self.cx.request.parse(client.unanswered(&self.cx.arena), &limits);
        self.answer_parsed(client_key, problem);
    }

    /// The same where `cx.request` holds what was understood of it. To HEAD there is no content.
    fn answer_parsed(&mut self, client_key: Key<Client>, problem: Problem) {
        self.answer_with(client_key, None, None, problem);
    }

    /// The same for a request that is lost: `lost` is what was found of it, of which no word is to be believed, and
    /// which is for the log alone.
    pub(crate) fn answer_lost(&mut self, client_key: Key<Client>, lost: Lost, problem: Problem) {
        let Lost { mut beginning, server } = lost;
        beginning.truncate(MAX_LOST_BYTES);
        let Some(client) = self.clients.get(client_key) else { return };
        if let Ok(Some(length)) = self.cx.request.parse(&beginning, &self.cx.site.request_limits(client.listener)) {
            beginning.truncate(length);
        }
        let server = server.and_then(|number| self.cx.pools.find(number));
        self.answer_with(client_key, Some(beginning.into()), server, problem);
    }

    fn answer_with(
        &mut self,
        client_key: Key<Client>,
        lost: Option<Box<[u8]>>,
        server: Option<Place>,
        problem: Problem,
    ) {
        let Some(client) = self.clients.get(client_key) else { return };
        let mut exchange = Exchange::new(client_key, client, &self.cx);
        exchange.take_line(&self.cx);
        (exchange.lost, exchange.place) = (lost, server);
        let Some(key) = self.add_exchange(client_key, exchange) else { return };
        self.carry_out(key, Step::Reply(problem));
    }

    fn add_exchange(&mut self, client_key: Key<Client>, exchange: Exchange) -> Option<Key<Exchange>> {
        let Ok(key) = self.exchanges.insert(exchange) else {
            self.close_client(client_key);
            return None;
        };
        if let Some(client) = self.clients.get_mut(client_key) {
            client.state = ClientState::Exchange(key);
            if client.uncounted {
                // An answer of our own may need no bytes read.
                client.publish(Phase::Open, &self.cx);
            }
            client.socket.deadline.due_ms = u64::MAX;
        }
        self.cx.control.stats().active_requests.set(self.exchanges.len() as u64);
        Some(key)
    }
}
