//! Forward listeners: clients name their targets, and rules say which they may reach.
//!
//! A connection's first byte tells what it speaks. [`http`] serves CONNECT and requests in absolute-form, [`opening`]
//! the beginnings of the other protocols; both have [`dial`] find the way to the target: [`auth`] proves who asks,
//! [`rules`] decides about each address, with [`special`] for those that nobody reaches by chance, [`race`] says which
//! is tried when, and [`uses`] what everybody may use. What has been connected becomes a relay like any other.
//! [`delivery`] sends answers elsewhere, and [`origins`] keeps connections for further requests.

pub mod auth;
pub mod delivery;
pub mod dial;
pub mod http;
pub mod opening;
pub mod origins;
pub mod race;
pub mod refusal;
pub mod rules;
pub mod special;
pub mod uses;

use std::net::SocketAddr;

use ipc::forward::Protocols;
use ipc::snapshot::Mode;

use crate::client::ClientState;
use crate::ctx::Work;
use crate::dns::Aliases;
use crate::forward::auth::Auth;
use crate::forward::delivery::Delivery;
use crate::forward::dial::{Dial, Waiter};
use crate::forward::opening::{Opening, Protocol};
use crate::forward::uses::{Lease, Uses};
use crate::slab::{Key, Slab};
use crate::worker::Worker;

/// How often those are looked at who had used up their allowance of bytes.
const THROTTLE_MS: u64 = 20;

/// What logs and limits know of a connection to a target.
#[derive(Debug, Default)]
pub struct Pass {
    /// What the client spoke, as the access log has it; empty when a former worker knew it.
    pub protocol: &'static str,
    /// The target as it was named.
    pub target: Box<str>,
    /// Who asked for it, if that was proved.
    pub user: Option<Box<str>>,
    /// The rule that allowed it, as `SET:RULE`.
    pub rule: Option<Box<str>>,
    /// Where it goes.
    pub address: Option<SocketAddr>,
    /// What its name is an alias for.
    pub aliases: Aliases,
    /// What it counts against.
    pub lease: Lease,
    /// When it was asked for.
    pub began_us: u64,
    /// When it stood.
    pub connected_us: u64,
    /// How long it may last from then on; `None` = no bound.
    pub lifetime_ms: Option<u32>,
}

impl Pass {
    /// When it must be over, by the worker's clock.
    #[must_use]
    pub fn ends_ms(&self) -> u64 {
        self.lifetime_ms.map_or(u64::MAX, |ms| self.connected_us / 1000 + u64::from(ms))
    }

    /// Why it is over, when nothing moves or it has lasted for too long.
    #[must_use]
    pub fn timeout_reason(&self, now_ms: u64) -> &'static str {
        if now_ms >= self.ends_ms() {
            "it has lasted as long as the rules let it"
        } else {
            "nothing moved for longer than the tunnel timeout"
        }
    }
}

/// What forward listeners need of a worker.
#[derive(Debug, Default)]
pub struct Forwarder {
    /// Passwords.
    pub auth: Auth<Waiter>,
    /// What everybody uses.
    pub uses: Uses,
    /// Ways to targets that are being found.
    pub dials: Slab<Dial>,
    /// Connections whose target is not known yet.
    pub openings: Slab<Opening>,
    /// Exchanges whose answers go elsewhere.
    pub deliveries: Slab<Delivery>,
    /// Those who have used up their allowance, and those to be looked at again soon.
    throttled: Vec<Work>,
    throttled_since_ms: u64,
}

impl Forwarder {
    /// When something is to be done without an event; `None` = nothing waits for time.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        (!self.throttled.is_empty()).then_some(self.throttled_since_ms + THROTTLE_MS)
    }

    /// How much may be moved on behalf of `lease` now. With nothing left, `work` is taken up again later.
    pub fn allowance(&mut self, lease: Lease, work: Work, now_ms: u64) -> usize {
        let allowance = self.uses.allowance(lease, now_ms);
        if allowance == 0 {
            self.later(work, now_ms);
        }
        allowance
    }

    /// Has `work` taken up again soon.
    pub fn later(&mut self, work: Work, now_ms: u64) {
        if self.throttled.is_empty() {
            self.throttled_since_ms = now_ms;
        }
        self.throttled.push(work);
    }
}

impl Worker {
    /// Has those go on whose allowance may have grown.
    pub(crate) fn look_at_throttled(&mut self) {
        let now_ms = self.cx.clock.now_ms;
        if !self.forward.throttled.is_empty() && now_ms >= self.forward.throttled_since_ms + THROTTLE_MS {
            self.cx.work.extend(self.forward.throttled.drain(..));
        }
    }

    /// Whether what a client speaks is HTTP. If not, it is taken elsewhere, or closed.
    pub(crate) fn is_http(&mut self, key: Key<crate::client::Client>) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        if client.is_http {
            return true;
        }
        let listener = &self.cx.site.snapshot.listeners[usize::from(client.listener)];
        let Some(forward) = listener.forward.as_ref().filter(|_| listener.mode == Mode::Forward) else {
            client.is_http = true;
            return true;
        };
        client.here = client.socket.local_addr();
        let Protocols { http, socks5, socks4a, dynamic } = forward.protocols;
        let auth = forward.rules.as_ref().is_some_and(|rules| rules.auth);
        let first = client.unanswered(&self.cx.arena).first().copied();
        let answered = first.and_then(Protocol::answered).unwrap_or(0);
        let protocol = match first {
            Some(5) if socks5 => Protocol::socks5(auth),
            Some(_) if socks5 && answered > 0 => Protocol::socks5(auth),
            Some(4) if socks4a => Protocol::Socks4,
            Some(b'{') if dynamic => Protocol::Dynamic,
            Some(4 | 5 | b'{') | None => {
                self.refuse_protocol(key);
                return false;
            }
            Some(_) if http => {
                client.is_http = true;
                return true;
            }
            Some(_) => {
                self.refuse_protocol(key);
                return false;
            }
        };
        self.begin_opening(key, protocol, answered);
        false
    }

    fn refuse_protocol(&mut self, key: Key<crate::client::Client>) {
        self.log_refused_opening(key, "", "", 400, "the listener does not speak what the connection begins with", None);
        if let Some(client) = self.clients.get_mut(key) {
            client.state = ClientState::Idle;
            client.socket.reset();
        }
        self.close_client(key);
    }
}
