//! How a connection begins that speaks SOCKS or the dynamic address exchange: from its first byte to the relay.
//!
//! The bytes stay in the client's slot until the relay begins, so that a successor begins anew with all of them. How many
//! answers have been sent within the negotiation (SOCKS5) is told by the first of them, which is changed with each: the
//! successor goes through the same steps, checks the same password, and only does not answer again.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use ipc::forward::Spoken;
use ipc::snapshot::Mode;
use ipc::state::Phase;

use crate::access_log::Entry;
use crate::buffer::Pending;
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Owner};
use crate::forward::Pass;
use crate::forward::auth::line::Source;
use crate::forward::auth::{Check, Claim, Verdict};
use crate::forward::dial::{Dial, Dialed, PASSWORDS, Purpose, Reached, Waiter, Want};
use crate::forward::refusal::{Refusal, Refused};
use crate::forward::rules::Way;
use crate::io::socket::Io;
use crate::proto::dynamic::{self, Answer, ErrorCode};
use crate::proto::endpoint::Endpoint;
use crate::proto::socks::{self, Event, Outcome, Socks5};
use crate::relay::NewTunnel;
use crate::slab::Key;
use crate::worker::Worker;

/// The first byte in a slot after this many answers, less that number. No protocol begins so, and nobody gains anything by
/// it: whoever sends such a byte gets fewer answers.
const MARK: u8 = 0x84;

/// What is spoken.
#[derive(Debug)]
pub enum Protocol {
    /// SOCKS version 5.
    Socks5(Socks5),
    /// SOCKS version 4 or 4a.
    Socks4,
    /// The dynamic address exchange.
    Dynamic,
}

impl Protocol {
    /// SOCKS version 5; `auth`: the client must say who it is.
    #[must_use]
    pub fn socks5(auth: bool) -> Protocol {
        Protocol::Socks5(Socks5::new(auth))
    }

    /// How many answers the first byte in a slot tells of; `None` when it tells of none.
    #[must_use]
    pub fn answered(first: u8) -> Option<u8> {
        matches!(first, 0x85 | 0x86).then(|| first - MARK)
    }

    /// For logs and limits.
    fn spoken(&self) -> Spoken {
        match self {
            Protocol::Socks5(_) => Spoken::Socks5,
            Protocol::Socks4 => Spoken::Socks4,
            Protocol::Dynamic => Spoken::Dynamic,
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Opening {
    client: Key<Client>,
    protocol: Protocol,
    /// Bytes of the slot, from the first unanswered one, that need not be looked at again.
    used: usize,
    /// Answers that a former worker has sent.
    answered: u8,
    /// Answers so far, those included.
    answers: u8,
    /// Who asks, as has been proved.
    user: Option<Box<str>>,
    /// The hash that was proved against; `None` = there is none of that name.
    proof: Option<Arc<str>>,
    /// The name that is being proved.
    claimed: Option<Box<str>>,
    target: Option<Endpoint>,
    dial: Option<Key<Dial>>,
}

/// What the bytes so far come to.
enum Found {
    More,
    Reply {
        used: usize,
        reply: [u8; 2],
    },
    Credentials {
        used: usize,
        user: Vec<u8>,
        password: Vec<u8>,
    },
    Target {
        used: usize,
        target: Endpoint,
        credentials: Option<(String, Vec<u8>)>,
        reply_to: Option<SocketAddr>,
    },
    /// What the client is told, and what the log.
    Wrong {
        farewell: Vec<u8>,
        reason: String,
    },
}

impl Opening {
    fn look(&mut self, bytes: &[u8]) -> Found {
        match &mut self.protocol {
            Protocol::Socks5(socks) => match socks.next(bytes) {
                Ok(event) => found(event),
                Err(error) => {
                    let mut farewell = Vec::new();
                    socks.farewell(error, &mut farewell);
                    Found::Wrong { farewell, reason: error.to_string() }
                }
            },
            Protocol::Socks4 => match socks::request4(bytes) {
                Ok(event) => found(event),
                Err(error) => {
                    let mut farewell = Vec::new();
                    socks::reply4(Outcome::Failed, &mut farewell);
                    Found::Wrong { farewell, reason: error.to_string() }
                }
            },
            Protocol::Dynamic => match dynamic::parse(bytes) {
                Ok(None) => Found::More,
                Ok(Some((request, used))) => {
                    let credentials =
                        request.user.zip(request.password).map(|(user, password)| (user, password.into_bytes()));
                    Found::Target { used, target: request.target, credentials, reply_to: request.reply_to }
                }
                Err(error) => {
                    let reason = error.to_string();
                    Found::Wrong { farewell: failure(ErrorCode::Malformed, &reason), reason }
                }
            },
        }
    }

    /// Answers within the negotiation, unless a former worker has. False when that is not possible.
    fn answer(&mut self, client: &mut Client, reply: &[u8], cx: &mut Ctx) -> bool {
        self.answers += 1;
        self.answers <= self.answered || client.answer_marked(MARK + self.answers, reply, cx)
    }

    /// Whether what was proved has to be proved again: the user has another hash by now, or is none any more.
    fn is_outdated(&self, client: &Client, cx: &Ctx) -> bool {
        let Some(user) = &self.user else { return false };
        let listener = &cx.site.snapshot.listeners[usize::from(client.listener)];
        let rules = listener.forward.as_ref().and_then(|forward| forward.rules.as_ref());
        rules.is_some_and(|rules| rules.auth) && (self.proof.is_none() || cx.site.users.hash(user) != self.proof)
    }

    /// Begins again with the bytes there are, as a successor does: nothing is answered twice.
    fn begin_anew(&mut self) {
        self.protocol = Protocol::socks5(true);
        self.answered = self.answered.max(self.answers);
        (self.used, self.answers) = (0, 0);
        (self.user, self.proof, self.claimed) = (None, None, None);
    }

    /// What the client is told of a refusal.
    fn farewell(&self, refusal: Refusal) -> Vec<u8> {
        let mut out = Vec::new();
        match &self.protocol {
            Protocol::Socks5(_) => socks::reply5(refusal.outcome(), None, &mut out),
            Protocol::Socks4 => socks::reply4(refusal.outcome(), &mut out),
            Protocol::Dynamic => out = failure(refusal.code(), refusal.text()),
        }
        out
    }

    /// What the client is told of a connection.
    fn welcome(&self, pass: &Pass, bound: Option<SocketAddr>) -> Vec<u8> {
        let mut out = Vec::new();
        match (&self.protocol, pass.address) {
            // It is told in the end.
            _ if pass.reply_to.is_some() => {}
            (Protocol::Socks5(_), _) => socks::reply5(Outcome::Succeeded, bound, &mut out),
            (Protocol::Socks4, _) => socks::reply4(Outcome::Succeeded, &mut out),
            (Protocol::Dynamic, Some(address)) => Answer::Connected { ok: true, address }.write(&mut out),
            // There always is one.
            (Protocol::Dynamic, None) => {}
        }
        out
    }
}

fn found(event: Event<'_>) -> Found {
    match event {
        Event::More => Found::More,
        Event::Reply { used, reply } => Found::Reply { used, reply },
        Event::Credentials { used, user, password } => {
            Found::Credentials { used, user: user.to_vec(), password: password.to_vec() }
        }
        // The name in version 4 is nobody's proof.
        Event::Connect { used, target, .. } => Found::Target { used, target, credentials: None, reply_to: None },
    }
}

fn failure(error: ErrorCode, message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    Answer::Failed { ok: false, error, message }.write(&mut out);
    out
}

/// Sends a few bytes to a client that has taken all others: far less than the kernel holds for it. False when it does
/// not take them.
pub(crate) fn tell(client: &mut Client, bytes: &[u8]) -> bool {
    client.socket.send(bytes, &[]) == Io::Moved(bytes.len())
}

impl Worker {
    /// Begins with a client whose first bytes are in its slot. So many answers have been sent to it by a former worker.
    pub(crate) fn begin_opening(&mut self, client: Key<Client>, protocol: Protocol, answered: u8) {
        let opening = Opening {
            client,
            protocol,
            used: 0,
            answered,
            answers: 0,
            user: None,
            proof: None,
            claimed: None,
            target: None,
            dial: None,
        };
        let Ok(key) = self.forward.openings.insert(opening) else { return self.close_client(client) };
        let Some(connection) = self.clients.get_mut(client) else { return };
        connection.state = ClientState::Opening(key);
        // What has been read is not to be read again with what follows.
        connection.socket.release();
        let listener = &self.cx.site.snapshot.listeners[usize::from(connection.listener)];
        // All of it has the time that a request's head has.
        let due_ms = self.cx.clock.now_ms + u64::from(listener.timeouts.header_ms);
        self.cx.watch(&mut connection.socket, Owner::Client(client));
        self.cx.arm(&mut connection.socket, Owner::Client(client), due_ms);
        self.drive_opening(key);
    }

    /// Goes on as far as there are bytes.
    pub(crate) fn drive_opening(&mut self, key: Key<Opening>) {
        loop {
            let Some(opening) = self.forward.openings.get_mut(key) else { return };
            let Some(client) = self.clients.get_mut(opening.client) else { return };
            if client.socket.is_gone() {
                return self.abandon_opening(key, "the client closed the connection");
            }
            let unread = client.unanswered(&self.cx.arena).len() > opening.used;
            if opening.claimed.is_some() && client.socket.is_read_closed() && !unread && !client.socket.has_bytes() {
                // The target comes after the password, and nothing comes any more.
                return self.abandon_opening(key, "the client closed the connection before it named a target");
            }
            if opening.dial.is_some() || opening.claimed.is_some() {
                return;
            }
            let mut bytes = Cow::Borrowed(client.unanswered(&self.cx.arena).get(opening.used..).unwrap_or_default());
            if opening.used == 0 && opening.answered > 0 {
                // Its first byte is the mark.
                bytes = [&[5], bytes.get(1..).unwrap_or_default()].concat().into();
            }
            match opening.look(&bytes) {
                Found::More => match client.read_more(&mut self.cx) {
                    Some(Io::Moved(_)) => {}
                    Some(Io::Blocked) => return,
                    Some(Io::Eof | Io::Broken(_)) => {
                        return self.abandon_opening(key, "the client closed the connection before it named a target");
                    }
                    // A slot has room for any beginning.
                    None => return self.abandon_opening(key, "the worker has no buffer for the request"),
                },
                Found::Reply { used, reply } => {
                    opening.used += used;
                    if !opening.answer(client, &reply, &mut self.cx) {
                        return self.abandon_opening(key, "the client takes no answer");
                    }
                }
                Found::Credentials { used, user, password } => {
                    opening.used += used;
                    self.check_credentials(key, &user, &password);
                }
                Found::Target { .. } if opening.is_outdated(client, &self.cx) => opening.begin_anew(),
                Found::Target { used, target, credentials, reply_to } => {
                    opening.used += used;
                    opening.target = Some(target.clone());
                    let user = opening.user.clone();
                    let (spoken, client) = (opening.protocol.spoken(), opening.client);
                    let want = Want { spoken, target, way: Way::Plain, credentials, user, kept: false, reply_to };
                    return match self.dial(client, Purpose::Opening(key), want) {
                        Ok(dialed) => self.opening_dialed(key, dialed),
                        Err(dial) => self.opening_waits(key, dial),
                    };
                }
                Found::Wrong { farewell, reason } => return self.end_opening(key, &farewell, 400, &reason, None),
            }
        }
    }

    fn opening_waits(&mut self, key: Key<Opening>, dial: Key<Dial>) {
        let Some(opening) = self.forward.openings.get_mut(key) else { return };
        opening.dial = Some(dial);
        let due_ms = self.forward.dials.get(dial).map_or(0, Dial::due_ms);
        if let Some(client) = self.clients.get_mut(opening.client) {
            self.cx.arm(&mut client.socket, Owner::Client(opening.client), due_ms);
        }
    }

    /// A name and a password that come before the target.
    fn check_credentials(&mut self, key: Key<Opening>, user: &[u8], password: &[u8]) {
        let Some(opening) = self.forward.openings.get_mut(key) else { return };
        let name = String::from_utf8_lossy(user);
        opening.claimed = Some(name.as_ref().into());
        opening.proof = self.cx.site.users.hash(&name);
        let peer = self.clients.get(opening.client).and_then(|client| client.peer);
        let claim = Claim { user: &name, password, source: Source::of(peer.map(|peer| peer.ip())) };
        let way = (&self.cx.registry, PASSWORDS);
        let (users, now_ms) = ((&self.cx.site.users, self.cx.site.snapshot.failures), self.cx.clock.now_ms);
        match self.forward.auth.check(users, claim, Waiter::Opening(key), now_ms, way) {
            Check::Pending => {}
            Check::Right => self.opening_verdict(key, Ok(())),
            Check::Wrong => self.opening_verdict(key, Err(Refusal::AuthFailed)),
            Check::Busy => self.opening_verdict(key, Err(Refusal::AuthBusy)),
            Check::TooMany(which) => self.opening_verdict(key, Err(Refusal::TooManyFailures(which))),
        }
    }

    /// The password of a client has been checked.
    pub(crate) fn opening_proved(&mut self, key: Key<Opening>, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Right => Ok(()),
            Verdict::Wrong => Err(Refusal::AuthFailed),
            Verdict::Busy => Err(Refusal::AuthBusy),
            Verdict::TooMany(which) => Err(Refusal::TooManyFailures(which)),
        };
        self.opening_verdict(key, verdict);
        self.drive_opening(key);
    }

    fn opening_verdict(&mut self, key: Key<Opening>, verdict: Result<(), Refusal>) {
        let Some(opening) = self.forward.openings.get_mut(key) else { return };
        let Protocol::Socks5(socks) = &mut opening.protocol else { return };
        let reply = socks.verdict(verdict.is_ok());
        let user = opening.claimed.take();
        match verdict {
            Ok(()) => {
                opening.user = user;
                if let Some(client) = self.clients.get_mut(opening.client)
                    && !opening.answer(client, &reply, &mut self.cx)
                {
                    self.abandon_opening(key, "the client takes no answer");
                }
            }
            Err(refusal) => {
                // Who has been told yes before waits for the answer to the request that comes next.
                let told = opening.answers < opening.answered;
                let farewell = if told { opening.farewell(refusal) } else { reply.to_vec() };
                self.end_opening(key, &farewell, refusal.status(), refusal.text(), None);
            }
        }
    }

    /// The way to the target has been found, or there is none.
    pub(crate) fn opening_dialed(&mut self, key: Key<Opening>, dialed: Dialed) {
        let Some(opening) = self.forward.openings.get_mut(key) else {
            if let Ok(Reached { upstream, pass }) = dialed {
                self.forward.uses.end(pass.lease);
                self.close_upstream(upstream);
            }
            return;
        };
        opening.dial = None;
        let Reached { upstream, pass } = match dialed {
            Ok(reached) => reached,
            Err(refused) => {
                let farewell = opening.farewell(refused.refusal);
                let (status, text) = (refused.refusal.status(), refused.refusal.text());
                return self.end_opening(key, &farewell, status, text, Some(&refused));
            }
        };
        let bound = self.upstreams.get(upstream).and_then(|one| one.socket.local_addr());
        let welcome = opening.welcome(&pass, bound);
        let Some(opening) = self.forward.openings.remove(key) else { return };
        if pass.reply_to.is_some() {
            self.make_room();
        }
        let Some(client) = self.clients.get_mut(opening.client) else { return };
        let end = client.input.as_ref().map_or(0, |input| input.start) + opening.used;
        let tunnel_ms = self.cx.site.snapshot.listeners[usize::from(client.listener)].timeouts.tunnel_ms;
        let mut to_client = Pending::default();
        to_client.push(&welcome, &mut self.cx.buffers);
        let own_bytes = welcome.len() as u64;
        let tunnel = NewTunnel { request_end: end, to_client, own_bytes, tunnel_ms, pass: Some(pass), opened: None };
        self.relay_tunnel(opening.client, upstream, tunnel);
    }

    /// The client's time limit has passed.
    pub(crate) fn on_opening_timeout(&mut self, key: Key<Opening>) {
        let Some(opening) = self.forward.openings.get(key) else { return };
        match opening.dial {
            Some(dial) => self.on_dial_timeout(dial),
            None if opening.claimed.is_some() => self.opening_verdict(key, Err(Refusal::AuthBusy)),
            None => self.abandon_opening(key, "the client named its target too slowly"),
        }
    }

    /// Ends a negotiation without another word.
    fn abandon_opening(&mut self, key: Key<Opening>, reason: &str) {
        self.end_opening(key, &[], 408, reason, None);
    }

    /// Tells the client why nothing comes of it, and lets it go.
    fn end_opening(
        &mut self,
        key: Key<Opening>,
        farewell: &[u8],
        status: u16,
        reason: &str,
        refused: Option<&Refused>,
    ) {
        let Some(opening) = self.forward.openings.remove(key) else { return };
        self.forward.auth.leave(Waiter::Opening(key));
        if let Some(dial) = opening.dial {
            self.drop_dial(dial);
        }
        let target = opening.target.as_ref().map(ToString::to_string).unwrap_or_default();
        let name = opening.protocol.spoken().name();
        self.log_refused_opening(opening.client, name, &target, status, reason, refused);
        let Some(client) = self.clients.get_mut(opening.client) else { return };
        // Before anything is said: nobody is to begin it anew.
        client.publish(Phase::Captive, &self.cx);
        client.state = ClientState::Idle;
        if farewell.is_empty() || !tell(client, farewell) {
            client.socket.reset();
            return self.close_client(opening.client);
        }
        self.linger(opening.client);
    }

    /// A line in the access log for a connection that led nowhere.
    pub(crate) fn log_refused_opening(
        &mut self,
        client: Key<Client>,
        protocol: &str,
        target: &str,
        status: u16,
        reason: &str,
        refused: Option<&Refused>,
    ) {
        let Some(log) = &mut self.cx.log else { return };
        let address = refused.and_then(|refused| refused.address).map(|address| address.to_string());
        let entry = Entry {
            client: self.clients.get(client).and_then(|client| client.peer),
            method: Some(protocol.as_bytes()).filter(|text| !text.is_empty()),
            target: Some(target.as_bytes()).filter(|text| !text.is_empty()),
            status: Some(status),
            backend: address.as_deref(),
            user: refused.and_then(|refused| refused.user.as_deref()),
            rule: refused.and_then(|refused| refused.rule.as_deref()),
            reason: Some(reason),
            ..Entry::new(Mode::Forward, self.cx.clock.unix_ms, self.cx.index)
        };
        log.record(&entry, self.cx.clock.now_ms);
    }
}
