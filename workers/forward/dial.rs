//! The way to a target: who asks is proved, the name resolved, each address judged, and those allowed connected to.
//!
//! A dial owns the attempts under way and what the client counts against; whoever began it gets a [`Reached`] or a
//! [`Refused`], at once or in a later turn. Nothing waits: each step goes on when what it needs has come, and all of
//! them together have a deadline.

use std::net::SocketAddr;
use std::rc::Rc;

use ipc::forward::{RuleSet, Spoken};
use ipc::snapshot::{Address, ListenerId};
use log::debug;
use mio::Token;
use rustix::io::Errno;

use crate::backend::{self, Upstream, UpstreamState, connect, upstream};
use crate::client::Client;
use crate::ctx::{Owner, Site};
use crate::dns::{Aliases, Answer, DnsError, Lookup};
use crate::exchange::Exchange;
use crate::forward::Pass;
use crate::forward::auth::line::Source;
use crate::forward::auth::{Check, Claim, Verdict};
use crate::forward::opening::Opening;
use crate::forward::origins::Kept;
use crate::forward::preference;
use crate::forward::race::{Attempt, Race};
use crate::forward::refusal::{Refusal, Refused};
use crate::forward::rules::{self, Asker, By, Named, Way};
use crate::forward::uses::Lease;
use crate::proto::endpoint::{Endpoint, Host};
use crate::room::{self, is_shortage};
use crate::slab::Key;
use crate::worker::Worker;

/// Under which the loop is woken when a password has been checked.
pub(crate) const PASSWORDS: Token = Token(usize::MAX - 3);
/// How long proving and resolving may take together; connecting has the listener's time limit besides.
const BEFORE_MS: u64 = 15_000;

/// On whose behalf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A request of HTTP.
    Exchange(Key<Exchange>),
    /// A connection of another protocol.
    Opening(Key<Opening>),
}

/// Who waits for a password to be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Waiter {
    /// A dial.
    Dial(Key<Dial>),
    /// A negotiation that asks for the password before the target is known.
    Opening(Key<Opening>),
}

/// What is wanted.
#[derive(Debug)]
pub struct Want {
    /// In what it was said.
    pub spoken: Spoken,
    /// Where to.
    pub target: Endpoint,
    /// In which way it was asked for.
    pub way: Way,
    /// Who asks and how that is to be proved.
    pub credentials: Option<(String, Vec<u8>)>,
    /// Who asks, if that has been proved.
    pub user: Option<Box<str>>,
    /// A kept connection will do.
    pub kept: bool,
    /// Where the answer is to go, if not back: it must be allowed, too.
    pub reply_to: Option<SocketAddr>,
}

/// A connection to a target.
#[derive(Debug)]
pub struct Reached {
    /// It.
    pub upstream: Key<Upstream>,
    /// What logs and limits know of it.
    pub pass: Box<Pass>,
}

/// What became of it.
pub type Dialed = Result<Reached, Refused>;

#[derive(Debug)]
enum Stage {
    /// The password is being checked.
    Proving,
    /// The name is being looked up.
    Resolving,
    /// Attempts are under way; each address with what allowed it.
    Racing(Race, Vec<(SocketAddr, By)>),
}

/// See the module's description.
#[derive(Debug)]
pub struct Dial {
    client: Key<Client>,
    purpose: Purpose,
    site: Rc<Site>,
    listener: ListenerId,
    want: Want,
    stage: Stage,
    aliases: Aliases,
    lease: Lease,
    began_us: u64,
    due_ms: u64,
}

impl Dial {
    fn rules(&self) -> Option<&RuleSet> {
        self.site.snapshot.listeners.get(usize::from(self.listener))?.forward.as_ref()?.rules.as_ref()
    }

    fn asker(&self, client: &Client) -> Asker<'_> {
        Asker {
            client: client.peer.map(|peer| peer.ip()),
            user: self.want.user.as_deref(),
            here: client.here,
            way: self.want.way,
        }
    }

    fn rule(&self, by: By) -> Option<Box<str>> {
        self.rules().map(|set| format!("{}:{by}", set.name).into())
    }

    fn refused(&self, refusal: Refusal, by: Option<By>, address: Option<SocketAddr>) -> Refused {
        let rule = refusal.by().or(by).and_then(|by| self.rule(by));
        Refused { refusal, user: self.want.user.clone(), rule, address }
    }

    /// When the client's time limit for it ends.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }
}

impl Worker {
    /// Begins a dial for `client`. `Ok` = it is done, or will be told of under this key.
    pub(crate) fn dial(&mut self, client: Key<Client>, purpose: Purpose, want: Want) -> Result<Dialed, Key<Dial>> {
        let site = Rc::clone(&self.cx.site);
        let now_ms = self.cx.clock.now_ms;
        let listener = self.clients.get(client).map_or(ListenerId::MAX, |client| client.listener);
        let connect_ms = site.snapshot.listeners.get(usize::from(listener)).map_or(0, |one| one.timeouts.connect_ms);
        let dial = Dial {
            client,
            purpose,
            site,
            listener,
            want,
            stage: Stage::Proving,
            aliases: None,
            lease: Lease::default(),
            began_us: self.cx.clock.now_us,
            due_ms: now_ms + BEFORE_MS + u64::from(connect_ms),
        };
        let no_room = Refused { refusal: Refusal::NoRoom, user: None, rule: None, address: None };
        let Ok(key) = self.forward.dials.insert(dial) else { return Ok(Err(no_room)) };
        match self.prove(key) {
            Some(dialed) => {
                self.drop_dial(key);
                Ok(dialed)
            }
            None => Err(key),
        }
    }

    /// Who asks, and whether they may have one more connection.
    fn prove(&mut self, key: Key<Dial>) -> Option<Dialed> {
        let dial = self.forward.dials.get_mut(key)?;
        let Some(set) = dial.rules() else {
            return Some(Err(dial.refused(Refusal::Denied(By::NoRule), None, None)));
        };
        if set.auth && dial.want.user.is_none() {
            let Some((user, password)) = &dial.want.credentials else {
                return Some(Err(dial.refused(Refusal::AuthRequired, None, None)));
            };
            let way = (&self.cx.registry, PASSWORDS);
            let peer = self.clients.get(dial.client).and_then(|client| client.peer);
            let source = Source::of(peer.map(|peer| peer.ip()));
            let claim = Claim { user, password, source };
            let users = (&dial.site.users, dial.site.snapshot.failures);
            match self.forward.auth.check(users, claim, Waiter::Dial(key), self.cx.clock.now_ms, way) {
                Check::Right => {}
                Check::Pending => return None,
                Check::Wrong => return Some(Err(dial.refused(Refusal::AuthFailed, None, None))),
                Check::Busy => return Some(Err(dial.refused(Refusal::AuthBusy, None, None))),
                Check::TooMany(which) => return Some(Err(dial.refused(Refusal::TooManyFailures(which), None, None))),
            }
            dial.want.user = dial.want.credentials.take().map(|(user, _)| user.into());
        }
        self.proved(key)
    }

    fn proved(&mut self, key: Key<Dial>) -> Option<Dialed> {
        let now_ms = self.cx.clock.now_ms;
        let dial = self.forward.dials.get_mut(key)?;
        let client = self.clients.get(dial.client)?;
        let set = dial.site.snapshot.listeners.get(usize::from(dial.listener))?.forward.as_ref()?.rules.as_ref()?;
        let peer = client.peer.map(|peer| peer.ip());
        match self.forward.uses.begin(set, dial.want.user.as_deref(), peer, now_ms) {
            Ok(lease) => dial.lease = lease,
            Err(exceeded) => return Some(Err(dial.refused(Refusal::Limited(exceeded), None, None))),
        }
        let asker = dial.asker(client);
        if let Some(verdict) = rules::refused_unresolved(set, &asker, &dial.want.target.host, dial.want.target.port) {
            return Some(Err(dial.refused(Refusal::Denied(verdict.by), None, None)));
        }
        if let Some(reply_to) = dial.want.reply_to {
            let verdict = rules::decide_reply(set, &dial.site.own, &asker, reply_to);
            if !verdict.allowed {
                return Some(Err(dial.refused(Refusal::ReplyDenied(verdict.by), None, Some(reply_to))));
            }
        }
        if dial.want.kept {
            // The rules are asked about the address that the kept connection goes to.
            let host = &dial.want.target.host;
            while let Some(Kept { upstream, address, aliases }) = self.cx.origins.take(&dial.want.target) {
                let named = Named { host, aliases: aliases.as_deref().unwrap_or_default() };
                let verdict = rules::decide(set, &dial.site.own, &asker, named, address);
                let usable = self.upstreams.get(upstream).is_some_and(|one| !one.socket.is_readable());
                if verdict.allowed && usable {
                    self.forward.dials.get_mut(key)?.aliases = aliases;
                    return Some(Ok(self.reached(key, upstream, address, verdict.by)?));
                }
                upstream::close(&mut self.upstreams, upstream, &mut self.cx);
            }
        }
        match &dial.want.target.host {
            Host::Ip(ip) => {
                let ip = *ip;
                self.judge(key, &[ip], None)
            }
            Host::Name(name) => {
                dial.stage = Stage::Resolving;
                // As it is, without the suffixes that this machine tries for names of its own.
                let waiter = backend::names::Waiter::Dial(key);
                match self.cx.dns.lookup_for(&format!("{name}."), waiter, Source::of(peer), now_ms) {
                    Lookup::Ready(answer) => self.judge(key, &answer.addresses, answer.aliases.clone()),
                    Lookup::Pending => None,
                    Lookup::Refused(error) => self.unresolved(key, error),
                }
            }
        }
    }

    fn unresolved(&mut self, key: Key<Dial>, error: DnsError) -> Option<Dialed> {
        let dial = self.forward.dials.get(key)?;
        debug!("{}: {error}", dial.want.target);
        Some(Err(dial.refused(Refusal::Unresolved(error), None, None)))
    }

    /// Keeps the addresses that may be connected to, and begins with them.
    fn judge(&mut self, key: Key<Dial>, addresses: &[std::net::IpAddr], aliases: Aliases) -> Option<Dialed> {
        let dial = self.forward.dials.get_mut(key)?;
        dial.aliases = aliases;
        let client = self.clients.get(dial.client)?;
        let (set, asker) = (dial.rules()?, dial.asker(client));
        let named = Named { host: &dial.want.target.host, aliases: dial.aliases.as_deref().unwrap_or_default() };
        let (mut allowed, mut first) = (Vec::new(), None);
        for ip in addresses {
            let address = SocketAddr::new(ip.to_canonical(), dial.want.target.port);
            let verdict = rules::decide(set, &dial.site.own, &asker, named, address);
            if verdict.allowed {
                allowed.push((address, verdict.by));
            } else {
                first.get_or_insert((address, verdict.by));
            }
        }
        if allowed.is_empty() {
            return Some(Err(match first {
                Some((address, by)) => dial.refused(Refusal::Denied(by), None, Some(address)),
                None => dial.refused(Refusal::Unresolved(DnsError::NoAddress), None, None),
            }));
        }
        let connect_ms = dial.site.snapshot.listeners.get(usize::from(dial.listener))?.timeouts.connect_ms;
        dial.due_ms = self.cx.clock.now_ms + u64::from(connect_ms);
        let race = Race::new(allowed.iter().map(|(address, _)| *address), preference::source_of);
        dial.stage = Stage::Racing(race, allowed);
        self.race(key)
    }

    /// Begins attempts as far as it is time for them.
    fn race(&mut self, key: Key<Dial>) -> Option<Dialed> {
        self.make_room();
        let now_ms = self.cx.clock.now_ms;
        let mut made_room = false;
        loop {
            let dial = self.forward.dials.get_mut(key)?;
            let due_ms = dial.due_ms;
            let Stage::Racing(race, allowed) = &mut dial.stage else { return None };
            let Some(address) = race.next(now_ms) else {
                if !race.is_lost() {
                    return None;
                }
                let refusal = if race.all_refused { Refusal::Refused } else { Refusal::Unreachable };
                let (address, by) = allowed.last().map_or((None, None), |(address, by)| (Some(*address), Some(*by)));
                return Some(Err(dial.refused(refusal, by, address)));
            };
            let opened = match connect::open(&Address::Inet(address)) {
                Err(errno) if is_shortage(errno) && !made_room => {
                    made_room = true;
                    self.free_descriptors(room::BATCH);
                    connect::open(&Address::Inet(address))
                }
                opened => opened,
            };
            let dial = self.forward.dials.get_mut(key)?;
            let Stage::Racing(race, _) = &mut dial.stage else { return None };
            let connecting = match opened {
                Ok(connecting) => connecting,
                // One is under way, which may do yet.
                Err(errno) if is_shortage(errno) && race.runs() => return None,
                Err(errno) if is_shortage(errno) => return Some(Err(dial.refused(Refusal::NoRoom, None, None))),
                Err(errno) => {
                    debug!("{address}: cannot connect: {errno}");
                    race.all_refused &= errno == Errno::CONNREFUSED;
                    continue;
                }
            };
            if !self.cx.has_descriptors_to_spare() {
                // One attempt at a time: others need the descriptors more.
                for other in race.replaced() {
                    upstream::close(&mut self.upstreams, other, &mut self.cx);
                }
            }
            let done = connecting.done;
            let upstream = Upstream::new(connecting.socket, UpstreamState::Racing(key), !done);
            let Some(upstream) = upstream::add(&mut self.upstreams, upstream, &mut self.cx) else {
                return Some(Err(dial.refused(Refusal::NoRoom, None, None)));
            };
            race.began(Attempt { address, upstream }, now_ms);
            if done {
                return self.won(key, upstream);
            }
            let wake_ms = race.due_ms().unwrap_or(due_ms).min(due_ms);
            if let Some(attempt) = self.upstreams.get_mut(upstream) {
                self.cx.arm(&mut attempt.socket, Owner::Upstream(upstream), wake_ms);
            }
        }
    }

    fn won(&mut self, key: Key<Dial>, upstream: Key<Upstream>) -> Option<Dialed> {
        let dial = self.forward.dials.get_mut(key)?;
        let Stage::Racing(race, allowed) = &mut dial.stage else { return None };
        let address = race.attempt(upstream)?.address;
        let by = allowed.iter().find(|(one, _)| *one == address).map_or(By::NoRule, |(_, by)| *by);
        for other in race.others(Some(upstream)) {
            upstream::close(&mut self.upstreams, other, &mut self.cx);
        }
        Some(Ok(self.reached(key, upstream, address, by)?))
    }

    fn reached(&mut self, key: Key<Dial>, upstream: Key<Upstream>, address: SocketAddr, by: By) -> Option<Reached> {
        let dial = self.forward.dials.get_mut(key)?;
        if let Some(connection) = self.upstreams.get_mut(upstream) {
            connection.connecting = false;
            connection.socket.deadline.due_ms = u64::MAX;
        }
        let pass = Pass {
            spoken: Some(dial.want.spoken),
            target: dial.want.target.to_string().into(),
            user: dial.want.user.take(),
            rule: dial.rule(by),
            address: Some(address),
            reply_to: dial.want.reply_to,
            aliases: dial.aliases.take(),
            lease: std::mem::take(&mut dial.lease),
            began_us: dial.began_us,
            connected_us: self.cx.clock.now_us,
            lifetime_ms: dial.rules().and_then(|set| set.lifetime_ms),
        };
        Some(Reached { upstream, pass: Box::new(pass) })
    }

    /// A step of a dial has come to an end: tells whoever waits, if the dial has.
    fn dialed(&mut self, key: Key<Dial>, dialed: Option<Dialed>) {
        let Some(dialed) = dialed else {
            let Some(dial) = self.forward.dials.get(key) else { return };
            let (client, due_ms) = (dial.client, dial.due_ms);
            if let Some(connection) = self.clients.get_mut(client) {
                self.cx.arm(&mut connection.socket, Owner::Client(client), due_ms);
            }
            return;
        };
        let Some(purpose) = self.forward.dials.get(key).map(|dial| dial.purpose) else { return };
        self.drop_dial(key);
        match purpose {
            Purpose::Exchange(exchange) => self.exchange_dialed(exchange, dialed),
            Purpose::Opening(opening) => self.opening_dialed(opening, dialed),
        }
    }

    /// Ends a dial: its attempts are closed, and what it counted against is given back.
    pub(crate) fn drop_dial(&mut self, key: Key<Dial>) {
        let Some(mut dial) = self.forward.dials.remove(key) else { return };
        self.forward.auth.leave(Waiter::Dial(key));
        if let Stage::Racing(race, _) = &mut dial.stage {
            let winner = |upstream: &Upstream| upstream.state != UpstreamState::Racing(key) || !upstream.connecting;
            for attempt in race.others(None) {
                if !self.upstreams.get(attempt).is_some_and(winner) {
                    upstream::close(&mut self.upstreams, attempt, &mut self.cx);
                }
            }
        }
        self.forward.uses.end(dial.lease);
    }

    /// The client's time limit for a dial has passed.
    pub(crate) fn on_dial_timeout(&mut self, key: Key<Dial>) {
        let Some(dial) = self.forward.dials.get(key) else { return };
        let refused = match &dial.stage {
            Stage::Racing(_, allowed) => {
                let last = allowed.last();
                dial.refused(Refusal::TimedOut, last.map(|(_, by)| *by), last.map(|(address, _)| *address))
            }
            Stage::Resolving => dial.refused(Refusal::Unresolved(DnsError::TooLong), None, None),
            Stage::Proving => dial.refused(Refusal::AuthBusy, None, None),
        };
        self.dialed(key, Some(Err(refused)));
    }

    /// Something happened on the connection of an attempt.
    pub(crate) fn on_racing(&mut self, key: Key<Dial>, upstream: Key<Upstream>) {
        let Some(connection) = self.upstreams.get_mut(upstream) else { return };
        let error = connection.socket.is_gone().then(|| connection.socket.take_error()).flatten();
        let next = match error {
            Some(errno) => {
                self.close_upstream(upstream);
                let Some(dial) = self.forward.dials.get_mut(key) else { return };
                if let Stage::Racing(race, _) = &mut dial.stage {
                    race.failed(upstream, errno == Errno::CONNREFUSED);
                }
                self.race(key)
            }
            None if connection.socket.is_writable() => self.won(key, upstream),
            None => None,
        };
        if next.is_some() {
            self.dialed(key, next);
        }
    }

    /// An attempt has been alone for long enough, or all of them have taken too long.
    pub(crate) fn on_racing_timeout(&mut self, key: Key<Dial>, upstream: Key<Upstream>) {
        let Some(due_ms) = self.forward.dials.get(key).map(Dial::due_ms) else {
            return self.close_upstream(upstream);
        };
        if self.cx.clock.now_ms >= due_ms {
            return self.on_dial_timeout(key);
        }
        if let Some(connection) = self.upstreams.get_mut(upstream) {
            self.cx.arm(&mut connection.socket, Owner::Upstream(upstream), due_ms);
        }
        let next = self.race(key);
        if next.is_some() {
            self.dialed(key, next);
        }
    }

    /// Goes on with those whose passwords have been checked.
    pub(crate) fn on_passwords(&mut self) {
        for (waiter, verdict) in self.forward.auth.finished(self.cx.clock.now_ms) {
            match waiter {
                Waiter::Dial(key) => {
                    let Some(dial) = self.forward.dials.get_mut(key) else { continue };
                    let user = dial.want.credentials.take().map(|(user, _)| user.into());
                    let next = match verdict {
                        Verdict::Right => {
                            dial.want.user = user;
                            self.proved(key)
                        }
                        Verdict::Wrong => Some(Err(dial.refused(Refusal::AuthFailed, None, None))),
                        Verdict::Busy => Some(Err(dial.refused(Refusal::AuthBusy, None, None))),
                        Verdict::TooMany(which) => Some(Err(dial.refused(Refusal::TooManyFailures(which), None, None))),
                    };
                    self.dialed(key, next);
                }
                Waiter::Opening(key) => self.opening_proved(key, verdict),
            }
        }
    }

    /// A name has been looked up.
    pub(crate) fn on_name(&mut self, key: Key<Dial>, result: Result<Rc<Answer>, DnsError>) {
        if !self.forward.dials.get(key).is_some_and(|dial| matches!(dial.stage, Stage::Resolving)) {
            return;
        }
        let next = match result {
            Ok(answer) => self.judge(key, &answer.addresses, answer.aliases.clone()),
            Err(error) => self.unresolved(key, error),
        };
        self.dialed(key, next);
    }
}
