//! The resolver without its sockets: names and answers' bytes in, questions' bytes and answers out.
//!
//! It is told the time (milliseconds of the worker's clock) and owns no socket. Whoever does carries out
//! [`Resolver::next_command`], brings what comes back ([`Resolver::on_message`], [`Resolver::on_failed`]) and calls
//! [`Resolver::on_time`] when [`Resolver::next_deadline`] says. One lookup of a name serves all who wait for it.
//!
//! Bounds: [`ALL`](crate::dns::room::ALL) lookups at a time with at most two questions each, [`WAITERS_MAX`] who wait,
//! [`LOOKUP_MAX_MS`] for a lookup, `attempts` questions to each server for one name and kind, [`answer::CHAIN_MAX`]
//! aliases, [`WRONG_MAX`] messages that are no answer before a server is given up for a question.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use ipc::snapshot::Dns;

use crate::dns::answer::{self, Found, Meaning, Part, Trail};
use crate::dns::cache::Cache;
use crate::dns::lookup::{Answer, DnsError, Lacks, Lookup, Subject, Wanted};
use crate::dns::message::{self, Kind, Outcome, Question};
use crate::dns::name::{self, Host};
use crate::dns::random::Ids;
use crate::dns::room::Room;
use crate::dns::servers::{Change, Servers, Trouble};
use crate::forward::auth::line::Source;
use crate::slab::{Key, Slab};

/// Who may wait for them, all together.
pub const WAITERS_MAX: usize = 65_536;
/// And for one name. Who has left counts until the lookup ends, so that one client can have as many as it likes.
pub const WAITERS_OF_ONE: usize = 8192;
/// How long a lookup may take, however many servers and suffixes there are to be tried.
pub const LOOKUP_MAX_MS: u64 = 30_000;
/// Messages to one question that are no answer to it, until the next server is asked.
pub const WRONG_MAX: u8 = 32;
/// How long one family's addresses are held back for the other's (RFC 8305 section 3).
pub const RESOLUTION_DELAY_MS: u64 = 50;
/// How long those who keep an answer given before the other family's had come may use it before they ask again.
const PARTIAL_MS: u64 = 1000;

/// The RCODE of a server that does not know this kind of question (RFC 1035 section 4.1.1).
const NOT_IMPLEMENTED: u8 = 4;

/// What is to be done with sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send `message` to `server` on a new socket, in place of the one `query` had.
    Send {
        /// Whose it is.
        query: Key<Query>,
        /// To whom.
        server: SocketAddr,
        /// Over TCP, or else UDP.
        tcp: bool,
        /// The question.
        message: Vec<u8>,
    },
    /// Nothing more is wanted on this one's socket.
    Close(Key<Query>),
}

/// A question under way.
#[derive(Debug)]
pub struct Query {
    lookup: Key<Flight>,
    part: usize,
    question: Question,
    /// Aliases followed.
    trail: Trail,
    /// Which servers, in which order; how many of them have failed, over all attempts.
    order: Vec<usize>,
    tries: usize,
    tcp: bool,
    edns: bool,
    wrong: u8,
    /// For want of a socket it has not been sent: that is not the server's fault.
    unsent: bool,
    due_ms: u64,
}

#[derive(Debug)]
enum PartState {
    Unused,
    Running(Key<Query>),
    Done(Part),
}

/// A lookup under way.
#[derive(Debug)]
struct Flight {
    subject: Subject,
    /// The client it was begun for; `None` = it is the name of a server.
    by: Option<Source>,
    /// The names to be tried, in this order, and which of them is.
    names: Vec<String>,
    at: usize,
    /// IPv6 and IPv4; or SRV alone.
    parts: [PartState; 2],
    ends_ms: u64,
    /// When one family's addresses are given out without the other's; [`u64::MAX`] = not.
    partial_ms: u64,
    partial: Option<Rc<Answer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Query,
    Partial,
    End,
}

/// See the module's description. `W` says who waits.
#[derive(Debug)]
pub struct Resolver<W> {
    settings: Dns,
    servers: Servers,
    cache: Cache,
    flights: Slab<Flight>,
    by_subject: HashMap<Subject, Key<Flight>>,
    waiters: HashMap<Key<Flight>, Vec<W>>,
    waiting: usize,
    room: Room,
    queries: Slab<Query>,
    due: BTreeSet<(u64, Due, u64)>,
    commands: VecDeque<Command>,
    finished: VecDeque<(W, Result<Rc<Answer>, DnsError>)>,
    ids: Ids,
}

impl<W> Resolver<W> {
    /// A resolver that knows nothing yet.
    #[must_use]
    pub fn new(settings: Dns) -> Resolver<W> {
        Resolver {
            servers: Servers::new(&settings.servers, settings.rotate),
            settings,
            cache: Cache::default(),
            flights: Slab::new(),
            by_subject: HashMap::new(),
            waiters: HashMap::new(),
            waiting: 0,
            room: Room::default(),
            queries: Slab::new(),
            due: BTreeSet::new(),
            commands: VecDeque::new(),
            finished: VecDeque::new(),
            ids: Ids::default(),
        }
    }

    /// Goes by other settings from now on. Names being looked up are asked for anew.
    pub fn reconfigure(&mut self, settings: &Dns, now_ms: u64) {
        if *settings == self.settings {
            return;
        }
        self.settings = settings.clone();
        self.servers = Servers::new(&settings.servers, settings.rotate);
        self.cache = Cache::default();
        let keys: Vec<_> = self.flights.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.stop_queries(key);
            if let Some(flight) = self.flights.get_mut(key) {
                flight.names = candidates(&flight.subject, &self.settings);
                flight.at = 0;
                flight.partial = None;
                let partial_ms = std::mem::replace(&mut flight.partial_ms, u64::MAX);
                self.due.remove(&(partial_ms, Due::Partial, key.to_bits()));
                self.begin(key, now_ms);
            }
        }
    }

    /// The addresses of `name`, which may be an address itself. Asks for both families together.
    pub fn lookup(&mut self, name: &str, waiter: W, now_ms: u64) -> Lookup {
        self.look_up(name, Wanted::Host, waiter, None, now_ms)
    }

    /// The same for a client at `by`, which has no more than its share of the [`room`](crate::dns::room).
    pub fn lookup_for(&mut self, name: &str, waiter: W, by: Source, now_ms: u64) -> Lookup {
        self.look_up(name, Wanted::Host, waiter, Some(by), now_ms)
    }

    /// Where the service `name` is (RFC 2782).
    pub fn lookup_service(&mut self, name: &str, waiter: W, now_ms: u64) -> Lookup {
        self.look_up(name, Wanted::Service, waiter, None, now_ms)
    }

    fn look_up(&mut self, name: &str, wanted: Wanted, waiter: W, by: Option<Source>, now_ms: u64) -> Lookup {
        let (name, absolute) = match (name::read(name), wanted) {
            (Ok(Host::Address(ip)), Wanted::Host) => return Lookup::Ready(Answer::fixed(vec![ip])),
            (Ok(Host::Address(_)), Wanted::Service) => {
                return Lookup::Refused(DnsError::NotAName("an address is not a service"));
            }
            (Ok(Host::Name { text, absolute }), _) => (text, absolute),
            (Err(why), _) => return Lookup::Refused(DnsError::NotAName(why)),
        };
        if wanted == Wanted::Host
            && let Some(addresses) = self.local(&name)
        {
            return Lookup::Ready(Answer::fixed(addresses));
        }
        if name::is_invalid(&name) {
            return Lookup::Refused(DnsError::NoSuchName);
        }
        let subject = Subject { name, absolute, wanted };
        match self.cache.get(&subject, now_ms) {
            Some(Ok(answer)) => return Lookup::Ready(answer),
            Some(Err(error)) => return Lookup::Refused(error),
            None => {}
        }
        if self.servers.is_empty() {
            return Lookup::Refused(DnsError::NoServers);
        }
        if let Some(&key) = self.by_subject.get(&subject) {
            if let Some(partial) = self.flights.get_mut(key).and_then(|flight| flight.partial.as_mut()) {
                // For as long as the lookup goes on, whatever its TTL: where one family is never answered, all would
                // else wait for the end of each lookup.
                Rc::make_mut(partial).expires_ms = now_ms + PARTIAL_MS;
                return Lookup::Ready(Rc::clone(partial));
            }
            return self.wait(key, waiter, by);
        }
        if by.is_some() && self.waiting >= WAITERS_MAX || !self.room.take(by) {
            return Lookup::Refused(DnsError::Busy);
        }
        let flight = Flight {
            names: candidates(&subject, &self.settings),
            subject: subject.clone(),
            by,
            at: 0,
            parts: [PartState::Unused, PartState::Unused],
            ends_ms: now_ms + LOOKUP_MAX_MS,
            partial_ms: u64::MAX,
            partial: None,
        };
        let Ok(key) = self.flights.insert(flight) else {
            self.room.give_back(by);
            return Lookup::Refused(DnsError::Busy);
        };
        self.by_subject.insert(subject, key);
        self.due.insert((now_ms + LOOKUP_MAX_MS, Due::End, key.to_bits()));
        self.wait(key, waiter, by);
        self.begin(key, now_ms);
        Lookup::Pending
    }

    fn wait(&mut self, key: Key<Flight>, waiter: W, by: Option<Source>) -> Lookup {
        let waiters = self.waiters.entry(key).or_default();
        if by.is_some() && (self.waiting >= WAITERS_MAX || waiters.len() >= WAITERS_OF_ONE) {
            return Lookup::Refused(DnsError::Busy);
        }
        self.waiting += 1;
        waiters.push(waiter);
        Lookup::Pending
    }

    /// Addresses of a name that are not asked for.
    fn local(&self, name: &str) -> Option<Vec<IpAddr>> {
        let hosts = &self.settings.hosts;
        if let Ok(at) = hosts.binary_search_by(|(known, _)| known.as_str().cmp(name)) {
            let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = hosts[at].1.iter().partition(|ip| ip.is_ipv6());
            return Some(answer::interleave(&v6, &v4));
        }
        let own = [IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)];
        name::is_localhost(name).then(|| own.to_vec())
    }

    /// What is to be done with sockets next.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The next lookup that has come to an end, and who waited for it.
    pub fn next_finished(&mut self) -> Option<(W, Result<Rc<Answer>, DnsError>)> {
        self.finished.pop_front()
    }

    /// What is to be logged of the name servers.
    pub fn next_change(&mut self) -> Option<Change> {
        self.servers.take_change()
    }

    /// When [`Resolver::on_time`] is to be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _, _)| *due_ms)
    }

    /// Names being looked up.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.flights.len()
    }

    /// Does what is due.
    pub fn on_time(&mut self, now_ms: u64) {
        while let Some((_, what, bits)) = self.due.first().filter(|(due_ms, ..)| *due_ms <= now_ms).copied() {
            self.due.pop_first();
            match what {
                Due::Query => self.trouble(Key::from_bits(bits), Trouble::Silent, now_ms),
                Due::Partial => self.give_partial(Key::from_bits(bits), now_ms),
                Due::End => self.give_up(Key::from_bits(bits), now_ms),
            }
        }
    }

    /// `bytes` came on the socket of `query`, from the server it was sent to.
    pub fn on_message(&mut self, key: Key<Query>, bytes: &[u8], now_ms: u64) {
        let Some(query) = self.queries.get_mut(key) else { return };
        let server = query.order.get(query.tries % query.order.len().max(1)).copied().unwrap_or(0);
        let reply = match message::read(bytes, &query.question) {
            Ok(reply) if reply.truncated && query.tcp => return self.trouble(key, Trouble::Nonsense, now_ms),
            Ok(reply) => reply,
            Err(_) => {
                // It may come from somebody else: the answer may still follow.
                query.wrong = query.wrong.saturating_add(1);
                if query.tcp || query.wrong >= WRONG_MAX {
                    self.trouble(key, Trouble::Nonsense, now_ms);
                }
                return;
            }
        };
        self.servers.answered(server);
        if reply.truncated {
            query.tcp = true;
            return self.send(key, now_ms);
        }
        match reply.outcome {
            // Servers that do not know EDNS say either (RFC 6891 section 7).
            Outcome::FormatError | Outcome::Failure(NOT_IMPLEMENTED) if query.edns => {
                query.edns = false;
                return self.send(key, now_ms);
            }
            Outcome::FormatError => return self.next_server(key, DnsError::ServerFailure(1), now_ms),
            Outcome::Failure(code) => return self.next_server(key, DnsError::ServerFailure(code), now_ms),
            Outcome::Ok | Outcome::NoSuchName => {}
        }
        match answer::follow(&reply, query.trail.clone()) {
            Meaning::Done(part) => self.end_query(key, part, now_ms),
            Meaning::Ask(trail) => {
                trail.end().clone_into(&mut query.question.name);
                query.trail = trail;
                (query.tries, query.tcp, query.edns) = (0, false, true);
                self.send(key, now_ms);
            }
        }
    }

    /// The socket of `query` failed: no connection, or it ended early.
    pub fn on_failed(&mut self, key: Key<Query>, now_ms: u64) {
        self.trouble(key, Trouble::Unreachable, now_ms);
    }

    /// There was no socket for `query`: it is as if its message had been lost on the way.
    pub fn on_unsent(&mut self, key: Key<Query>) {
        if let Some(query) = self.queries.get_mut(key) {
            query.unsent = true;
        }
    }

    /// Begins to ask for the present one of a lookup's names.
    fn begin(&mut self, key: Key<Flight>, now_ms: u64) {
        let Some(flight) = self.flights.get(key) else { return };
        let Some(name) = flight.names.get(flight.at).cloned() else { return };
        let kinds: &[Kind] = match flight.subject.wanted {
            Wanted::Host => &[Kind::Aaaa, Kind::A],
            Wanted::Service => &[Kind::Srv],
        };
        let mut begun = Vec::new();
        for (part, &kind) in kinds.iter().enumerate() {
            let query = Query {
                lookup: key,
                part,
                question: Question { id: 0, name: name.clone(), kind },
                trail: Trail::new(name.clone()),
                order: self.servers.order(now_ms),
                tries: 0,
                tcp: false,
                edns: true,
                wrong: 0,
                unsent: false,
                due_ms: u64::MAX,
            };
            let Ok(query) = self.queries.insert(query) else { continue };
            if let Some(flight) = self.flights.get_mut(key) {
                flight.parts[part] = PartState::Running(query);
            }
            begun.push(query);
        }
        for query in begun {
            self.send(query, now_ms);
        }
    }

    /// Sends a question to the server whose turn it is.
    fn send(&mut self, key: Key<Query>, now_ms: u64) {
        let id = self.ids.next();
        let Some(query) = self.queries.get_mut(key) else { return };
        let server = query.order.get(query.tries % query.order.len().max(1)).copied();
        let Some(server) = server.and_then(|server| self.servers.address(server)) else {
            return self.end_query(key, Part::failed(DnsError::NoServers), now_ms);
        };
        let Some(id) = id else {
            return self.end_query(key, Part::failed(DnsError::Busy), now_ms);
        };
        query.question.id = id;
        (query.wrong, query.unsent) = (0, false);
        let Some(message) = message::write(&query.question, query.edns) else {
            let why = "it cannot be asked for";
            return self.end_query(key, Part::failed(DnsError::NotAName(why)), now_ms);
        };
        self.due.remove(&(query.due_ms, Due::Query, key.to_bits()));
        query.due_ms = now_ms + u64::from(self.settings.timeout_ms);
        self.due.insert((query.due_ms, Due::Query, key.to_bits()));
        self.commands.push_back(Command::Send { query: key, server, tcp: query.tcp, message });
    }

    fn trouble(&mut self, key: Key<Query>, why: Trouble, now_ms: u64) {
        let Some(query) = self.queries.get(key) else { return };
        if let Some(&server) = query.order.get(query.tries % query.order.len().max(1))
            && !query.unsent
        {
            self.servers.failed(server, why, now_ms);
        }
        self.next_server(key, DnsError::Trouble(why), now_ms);
    }

    /// A server failed at a question: the next one, or the end of it.
    fn next_server(&mut self, key: Key<Query>, error: DnsError, now_ms: u64) {
        let Some(query) = self.queries.get_mut(key) else { return };
        query.tries += 1;
        (query.tcp, query.edns) = (false, true);
        if query.tries >= query.order.len() * usize::from(self.settings.attempts.max(1)) {
            return self.end_query(key, Part::failed(error), now_ms);
        }
        self.send(key, now_ms);
    }

    fn drop_query(&mut self, key: Key<Query>) -> Option<Query> {
        let query = self.queries.remove(key)?;
        self.due.remove(&(query.due_ms, Due::Query, key.to_bits()));
        self.commands.push_back(Command::Close(key));
        Some(query)
    }

    fn end_query(&mut self, key: Key<Query>, part: Part, now_ms: u64) {
        let Some(query) = self.drop_query(key) else { return };
        let Some(flight) = self.flights.get_mut(query.lookup) else { return };
        flight.parts[query.part] = PartState::Done(part);
        self.settle(query.lookup, now_ms);
    }

    /// A part of a lookup has ended: perhaps all of it has.
    fn settle(&mut self, key: Key<Flight>, now_ms: u64) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        let running = flight.parts.iter().any(|part| matches!(part, PartState::Running(_)));
        let found = |part: &PartState| matches!(part, PartState::Done(Part { found: Ok(_), .. }));
        if running {
            if flight.parts.iter().any(found) && flight.partial_ms == u64::MAX {
                flight.partial_ms = now_ms + RESOLUTION_DELAY_MS;
                self.due.insert((flight.partial_ms, Due::Partial, key.to_bits()));
            }
            return;
        }
        let (result, holds_ms) = combine(&flight.parts, now_ms);
        let denied = matches!(result, Err(DnsError::NoSuchName | DnsError::NoAddress));
        if denied && flight.at + 1 < flight.names.len() {
            flight.at += 1;
            flight.parts = [PartState::Unused, PartState::Unused];
            return self.begin(key, now_ms);
        }
        self.finish(key, &result, holds_ms, now_ms);
    }

    fn finish(&mut self, key: Key<Flight>, result: &Result<Rc<Answer>, DnsError>, holds_ms: u64, now_ms: u64) {
        self.stop_queries(key);
        let Some(flight) = self.flights.remove(key) else { return };
        self.room.give_back(flight.by);
        self.due.remove(&(flight.ends_ms, Due::End, key.to_bits()));
        self.due.remove(&(flight.partial_ms, Due::Partial, key.to_bits()));
        self.by_subject.remove(&flight.subject);
        self.cache.put(flight.subject, result.clone(), now_ms + holds_ms);
        self.tell(key, result);
    }

    fn tell(&mut self, key: Key<Flight>, result: &Result<Rc<Answer>, DnsError>) {
        let waiters = self.waiters.remove(&key).unwrap_or_default();
        self.waiting -= waiters.len();
        self.finished.extend(waiters.into_iter().map(|waiter| (waiter, result.clone())));
    }

    fn stop_queries(&mut self, key: Key<Flight>) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        let parts = std::mem::replace(&mut flight.parts, [PartState::Unused, PartState::Unused]);
        for part in parts {
            if let PartState::Running(query) = part {
                self.drop_query(query);
            }
        }
    }

    /// The other family's answer has not come in time: those who wait get what there is.
    fn give_partial(&mut self, key: Key<Flight>, now_ms: u64) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        let (Ok(answer), _) = combine(&flight.parts, now_ms) else { return };
        let answer = Rc::new(Answer { expires_ms: now_ms + PARTIAL_MS, ..(*answer).clone() });
        flight.partial = Some(Rc::clone(&answer));
        self.tell(key, &Ok(answer));
    }

    /// A lookup has taken too long.
    fn give_up(&mut self, key: Key<Flight>, now_ms: u64) {
        let Some(flight) = self.flights.get(key) else { return };
        let (result, holds_ms) = match combine(&flight.parts, now_ms) {
            (Ok(answer), holds_ms) => (Ok(answer), holds_ms),
            (Err(_), _) => (Err(DnsError::TooLong), answer::FAILURE_MS),
        };
        self.finish(key, &result, holds_ms, now_ms);
    }
}

/// The full names to be tried for a subject (resolver(5), `search` and `ndots`). A name with fewer dots than `ndots`
/// is tried with each suffix first; any other one only as it is, so that none is looked up where it was not meant.
fn candidates(subject: &Subject, settings: &Dns) -> Vec<String> {
    let dots = subject.name.bytes().filter(|&byte| byte == b'.').count();
    let mut names = Vec::new();
    if !subject.absolute && dots < usize::from(settings.ndots) {
        let full = settings.search.iter().map(|suffix| format!("{}.{suffix}", subject.name));
        names.extend(full.filter(|name| name::read(name).is_ok()));
    }
    names.push(subject.name.clone());
    names
}

/// What the parts of a lookup come to, and for how long. What is still running counts as not known.
fn combine(parts: &[PartState; 2], now_ms: u64) -> (Result<Rc<Answer>, DnsError>, u64) {
    let (mut v6, mut v4, mut services) = (Vec::new(), Vec::new(), Vec::new());
    // Both families have the same, but for servers that lie.
    let mut aliases = BTreeSet::new();
    let mut lacks = Lacks::default();
    let mut holds_ms = answer::TTL_MAX_MS;
    let mut denied_ms = answer::NEGATIVE_MAX_MS;
    let (mut unknown, mut denied) = (None, None);
    for (at, part) in parts.iter().enumerate() {
        let error = match part {
            PartState::Unused => continue,
            PartState::Running(_) => DnsError::Trouble(Trouble::Silent),
            PartState::Done(Part { found: Ok(found), ttl, aliases: led }) => {
                aliases.extend(led.iter().cloned());
                holds_ms = holds_ms.min(ttl.map_or(answer::TTL_MIN_MS, answer::holds_ms));
                match found {
                    Found::Addresses(addresses) if at == 0 => v6.clone_from(addresses),
                    Found::Addresses(addresses) => v4.clone_from(addresses),
                    Found::Services(found) => services.clone_from(found),
                }
                continue;
            }
            PartState::Done(Part { found: Err(error), ttl, .. }) if error.is_definite() => {
                holds_ms = holds_ms.min(ttl.map_or(u64::MAX, answer::holds_ms));
                denied_ms = denied_ms.min(answer::negative_ms(*ttl));
                // That the name exists is said by whichever says so.
                denied = Some(if denied == Some(DnsError::NoAddress) { DnsError::NoAddress } else { *error });
                continue;
            }
            PartState::Done(Part { found: Err(error), .. }) => *error,
        };
        // Some servers cannot answer for a family (RFC 4074 section 4): that is as good as none.
        let nobody = matches!(error, DnsError::Trouble(_) | DnsError::TooLong);
        lacks.v6 |= at == 0 && nobody;
        lacks.v4 |= at == 1 && nobody;
        unknown = Some(error);
    }
    let addresses = answer::interleave(&v6, &v4);
    if addresses.is_empty() && services.is_empty() {
        return match (unknown, denied) {
            (Some(error), _) => (Err(error), answer::FAILURE_MS),
            (None, denied) => (Err(denied.unwrap_or(DnsError::NoAddress)), denied_ms),
        };
    }
    if unknown.is_some() {
        holds_ms = holds_ms.min(answer::LACKING_MAX_MS);
    }
    let aliases = (!aliases.is_empty()).then(|| aliases.into_iter().collect());
    (Ok(Rc::new(Answer { addresses, services, expires_ms: now_ms + holds_ms, lacks, aliases })), holds_ms)
}

#[cfg(test)]
mod tests;
