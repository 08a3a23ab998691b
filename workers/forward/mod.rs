//! Forward listeners: clients name their targets, and rules say which they may reach.
//!
//! A connection's first byte tells what it speaks. [`http`] serves CONNECT and requests in absolute-form, [`opening`]
//! the beginnings of the other protocols; both have [`dial`] find the way to the target: [`auth`] proves who asks,
//! [`rules`] decides about each address, with [`special`] for those that nobody reaches by chance, [`race`] says which
//! is tried when, after [`preference`], and [`uses`] what everybody may use, of all workers together ([`share`]). What has
//! been connected becomes a relay like any other. [`origins`] keeps connections for further requests.

pub mod auth;
pub mod dial;
pub mod http;
pub mod opening;
pub mod origins;
pub mod preference;
pub mod race;
pub mod refusal;
pub mod rules;
pub mod share;
pub mod special;
pub mod uses;

use std::net::SocketAddr;
use std::rc::Rc;

use ipc::forward::{Delivery, Forward, Protocols, Spoken, Tunnel};
use ipc::snapshot::Mode;

use crate::client::ClientState;
use crate::ctx::Work;
use crate::dns::Aliases;
use crate::forward::auth::Auth;
use crate::forward::dial::{Dial, Waiter};
use crate::forward::opening::{Opening, Protocol};
use crate::forward::share::Share;
use crate::forward::uses::{Lease, Uses};
use crate::slab::{Key, Slab};
use crate::worker::Worker;

/// How often those are looked at who had used up their allowance of bytes.
const THROTTLE_MS: u64 = 20;

/// What logs and limits know of a connection to a target.
#[derive(Debug, Default)]
pub struct Pass {
    /// What the client spoke; `None` when only a former worker knew it.
    pub spoken: Option<Spoken>,
    /// The target as it was named.
    pub target: Box<str>,
    /// Who asked for it, if that was proved.
    pub user: Option<Box<str>>,
    /// The rule that allowed it, as `SET:RULE`.
    pub rule: Option<Box<str>>,
    /// Where it goes.
    pub address: Option<SocketAddr>,
    /// Where the answer goes, if not back.
    pub reply_to: Option<SocketAddr>,
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
    /// For a worker that goes on with it; `None` = there is nothing to tell, or it is longer than it can be.
    #[must_use]
    pub fn tunnel(&self) -> Option<Box<Tunnel>> {
        let tunnel = Tunnel {
            spoken: self.spoken?,
            target: self.target.to_string(),
            user: self.user.as_deref().map(str::to_owned),
            rule: self.rule.as_deref().map(str::to_owned),
            began_us: self.began_us,
            connected_us: self.connected_us,
            lifetime_ms: self.lifetime_ms,
            delivery: self.address.zip(self.reply_to).map(|(target, reply_to)| Delivery { target, reply_to }),
        };
        Some(Box::new(tunnel)).filter(|tunnel| tunnel.is_sound())
    }

    /// What is known of one that a former worker has begun. It may have been anybody who said so: what it says is shown
    /// and counted, and nothing is allowed because of it. Where an answer goes is a question to the rules again, unless
    /// it is on its way there.
    #[must_use]
    pub fn taken_over(tunnel: Option<Box<Tunnel>>, forward: &Forward, now_us: u64) -> Pass {
        let Some(tunnel) = tunnel.filter(|tunnel| tunnel.is_sound()) else {
            let lifetime_ms = forward.rules.as_ref().and_then(|rules| rules.lifetime_ms);
            return Pass { began_us: now_us, connected_us: now_us, lifetime_ms, ..Pass::default() };
        };
        let connected_us = tunnel.connected_us.min(now_us);
        Pass {
            spoken: Some(tunnel.spoken),
            target: tunnel.target.into(),
            user: tunnel.user.map(Into::into),
            rule: tunnel.rule.map(Into::into),
            address: tunnel.delivery.map(|delivery| delivery.target),
            reply_to: tunnel.delivery.map(|delivery| delivery.reply_to),
            aliases: Aliases::default(),
            lease: Lease::default(),
            began_us: tunnel.began_us.min(connected_us),
            connected_us,
            lifetime_ms: tunnel.lifetime_ms,
        }
    }

    /// Whether it counts under the rules `set`: those that allowed it, or any when nobody knows which did.
    #[must_use]
    pub fn is_under(&self, set: &str) -> bool {
        let allowed_by = self.rule.as_deref().and_then(|rule| rule.split_once(':'));
        allowed_by.is_none_or(|(name, _)| name == set)
    }

    /// When it must be over, by the worker's clock.
    #[must_use]
    pub fn ends_ms(&self) -> u64 {
        self.lifetime_ms.map_or(u64::MAX, |ms| (self.connected_us / 1000).saturating_add(u64::from(ms)))
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
#[derive(Debug)]
pub struct Forwarder {
    /// Passwords.
    pub auth: Auth<Waiter>,
    /// What everybody uses.
    pub uses: Uses,
    /// Ways to targets that are being found.
    pub dials: Slab<Dial>,
    /// Connections whose target is not known yet.
    pub openings: Slab<Opening>,
    /// Those who have used up their allowance, and those to be looked at again soon.
    throttled: Vec<Work>,
    throttled_since_ms: u64,
}

impl Forwarder {
    /// Nothing is under way. `share`: where all workers count.
    #[must_use]
    pub fn new(share: &Rc<Share>) -> Forwarder {
        Forwarder {
            auth: Auth::new(Rc::clone(share)),
            uses: Uses::new(Rc::clone(share)),
            dials: Slab::default(),
            openings: Slab::default(),
            throttled: Vec::new(),
            throttled_since_ms: 0,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(target: &str) -> Option<Box<Tunnel>> {
        Some(Box::new(Tunnel {
            spoken: Spoken::Socks5,
            target: target.to_owned(),
            user: Some("ann".to_owned()),
            rule: Some("office:2".to_owned()),
            began_us: 5,
            connected_us: 7,
            lifetime_ms: Some(1000),
            delivery: None,
        }))
    }

    #[test]
    fn where_an_answer_goes_is_told_with_where_it_comes_from() {
        let forward = Forward { protocols: Protocols::ALL, rules: None };
        let (target, reply_to) = ("192.0.2.7:80".parse().unwrap(), "[2001:db8::1]:4000".parse().unwrap());
        let told = tunnel("a.test:80")
            .map(|tunnel| Box::new(Tunnel { delivery: Some(Delivery { target, reply_to }), ..*tunnel }));
        let pass = Pass::taken_over(told.clone(), &forward, 1_000_000);
        assert_eq!((pass.address, pass.reply_to), (Some(target), Some(reply_to)));
        assert_eq!(pass.tunnel(), told);
    }

    #[test]
    fn what_is_told_of_a_tunnel_is_what_is_known_of_it() {
        let forward = Forward { protocols: Protocols::ALL, rules: None };
        let pass = Pass::taken_over(tunnel("a.test:443"), &forward, 1_000_000);
        assert_eq!(pass.tunnel(), tunnel("a.test:443"));
        assert!(pass.is_under("office") && !pass.is_under("offic") && !pass.is_under("other"));
        assert_eq!(pass.ends_ms(), 1000);
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let forward = Forward { protocols: Protocols::ALL, rules: None };
        let long = Pass::taken_over(tunnel(&"x".repeat(5000)), &forward, 9);
        assert_eq!((long.spoken, long.user, long.began_us, long.connected_us), (None, None, 9, 9));
        assert!(Pass::default().is_under("office"), "nobody knows");
        let mut future = tunnel("a.test:443").unwrap();
        (future.began_us, future.connected_us, future.lifetime_ms) = (u64::MAX, u64::MAX, Some(u32::MAX));
        let pass = Pass::taken_over(Some(future), &forward, 1_000_000);
        assert_eq!((pass.began_us, pass.connected_us), (1_000_000, 1_000_000));
        assert_eq!(pass.ends_ms(), 1000 + u64::from(u32::MAX));
    }
}
