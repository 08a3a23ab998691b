//! The servers that a configuration gives by name: what each name stands for now, and when to ask again.
//!
//! Every name is asked for anew when its answer expires. What the last good answer said holds until there is another:
//! that name servers fail takes no server out. That a name is gone does. Nothing here chooses or connects.
//!
//! Bounds: [`ASKED_MAX`] names asked for at a time; between two questions for one at least [`AGAIN_MIN_MS`].

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;

use ipc::message::{MAX_TROUBLE_BYTES, Standing};
use ipc::snapshot::{Address, Endpoint, Group, GroupId, NUMBER_OF_NAME, Server, Snapshot, Target, number_of_name};
use log::{info, warn};

use crate::balance::ServerId;
use crate::dns::discover::{Discovered, Discovery, ENDPOINTS_MAX, HOSTS_AT_ONCE, Progress};
use crate::dns::resolver::Resolver;
use crate::dns::room;
use crate::dns::{Answer, DnsError};
use crate::forward::dial::Dial;
use crate::slab::Key;

/// Names asked for at the same time.
const ASKED_MAX: usize = 32;
// Whatever clients of forward listeners have looked up, there is room for these, unless services of many hosts have it: of
// such a one the rest is asked for as answers come.
const _: () = assert!(ASKED_MAX * HOSTS_AT_ONCE <= room::ALL - room::OF_CLIENTS);
/// A name is asked for no more often.
const AGAIN_MIN_MS: u64 = 1000;
/// After a failure the next question comes after twice the time, until it is this.
const AGAIN_MAX_MS: u64 = 30_000;
/// Addresses named in one line of the log.
const SHOWN: usize = 8;

/// Who waits for an answer of the resolver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiter {
    /// The name of a server.
    Server(Question),
    /// The way to a target that a client has named.
    Dial(Key<Dial>),
}

/// A question about a name of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Which configuration's names.
    generation: u64,
    /// Which of them.
    entry: usize,
    /// Which question about it.
    part: u16,
}

#[derive(Debug)]
struct Entry {
    target: Target,
    /// Groups that use it.
    groups: Vec<GroupId>,
    endpoints: Vec<Endpoint>,
    discovery: Option<Discovery>,
    /// Why the last question was not answered.
    trouble: Option<DnsError>,
    /// How long to wait after the next failure.
    pause_ms: u64,
    /// When it is asked for again; [`u64::MAX`] = with the next configuration.
    again_ms: u64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Names {
    generation: u64,
    entries: Vec<Entry>,
    by_target: HashMap<Target, usize>,
    /// When each is to be asked for; those being asked for are not in it.
    due: BTreeSet<(u64, usize)>,
    asked: usize,
    /// Groups whose servers have changed.
    changed: BTreeSet<GroupId>,
    /// Names that the master is to be told of.
    news: BTreeSet<usize>,
    /// Whether changes are logged here, and the master told of every answer: one worker is enough.
    speaks: bool,
}

impl Names {
    /// The names in `snapshot`. Each stands for what the master found, or else for what it did in `former`. All are
    /// due at once.
    #[must_use]
    pub fn new(snapshot: &Snapshot, former: Option<&Names>, speaks: bool) -> Names {
        Names { generation: snapshot.generation, ..Names::of(&snapshot.groups, former, speaks) }
    }

    fn of(groups: &[Group], former: Option<&Names>, speaks: bool) -> Names {
        let mut names = Names {
            generation: 0,
            entries: Vec::new(),
            by_target: HashMap::new(),
            due: BTreeSet::new(),
            asked: 0,
            changed: BTreeSet::new(),
            news: BTreeSet::new(),
            speaks,
        };
        for (id, group) in (0..).zip(groups) {
            for named in &group.names {
                let next = names.entries.len();
                let at = *names.by_target.entry(named.target.clone()).or_insert(next);
                if at == next {
                    let old = former.and_then(|old| Some(&old.entries[*old.by_target.get(&named.target)?]));
                    names.entries.push(Entry {
                        target: named.target.clone(),
                        groups: Vec::new(),
                        endpoints: match old {
                            Some(old) if named.known.is_empty() => old.endpoints.clone(),
                            Some(_) | None => named.known.clone(),
                        },
                        discovery: None,
                        trouble: old.and_then(|old| old.trouble),
                        pause_ms: AGAIN_MIN_MS,
                        again_ms: 0,
                    });
                    names.due.insert((0, at));
                }
                let groups = &mut names.entries[at].groups;
                if groups.last() != Some(&id) {
                    groups.push(id);
                }
            }
        }
        names
    }

    /// All servers of a group: those given by their address, and one for each address of its names. An address that
    /// two of them give is used once, as the first says.
    #[must_use]
    pub fn servers(&self, group: &Group) -> Vec<Server> {
        if group.names.is_empty() {
            return group.servers.clone();
        }
        let mut servers = group.servers.clone();
        let mut seen: std::collections::HashSet<SocketAddr> = group.servers.iter().filter_map(inet).collect();
        for named in &group.names {
            let entry = self.by_target.get(&named.target).and_then(|&at| self.entries.get(at));
            for endpoint in entry.map_or(&named.known, |entry| &entry.endpoints) {
                // The last number stands for none.
                if servers.len() < usize::from(ServerId::MAX) && seen.insert(endpoint.address) {
                    servers.push(Server {
                        number: number_of_name(&group.name, &endpoint.address),
                        name: named.name.clone(),
                        address: Address::Inet(endpoint.address),
                        weight: endpoint.weight.unwrap_or(named.weight),
                        backup: named.backup || endpoint.backup,
                    });
                }
            }
        }
        servers
    }

    /// When [`Names::advance`] is to be called next.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().filter(|_| self.asked < ASKED_MAX).map(|(due_ms, _)| *due_ms)
    }

    /// Asks for what is due.
    pub fn advance(&mut self, resolver: &mut Resolver<Waiter>, now_ms: u64) {
        while self.next_due().is_some_and(|due_ms| due_ms <= now_ms) {
            let Some((_, at)) = self.due.pop_first() else { return };
            let waiter = waiter(self.generation, at);
            let (discovery, progress) = Discovery::begin(&self.entries[at].target, resolver, &waiter, now_ms);
            self.entries[at].discovery = Some(discovery);
            self.asked += 1;
            self.take(at, progress, now_ms);
        }
    }

    /// An answer of the resolver.
    pub fn answer(
        &mut self,
        question: Question,
        result: Result<Rc<Answer>, DnsError>,
        resolver: &mut Resolver<Waiter>,
        now_ms: u64,
    ) {
        let Question { generation, entry: at, part } = question;
        if generation != self.generation {
            return;
        }
        let Some(discovery) = self.entries.get_mut(at).and_then(|entry| entry.discovery.as_mut()) else { return };
        let progress = discovery.answer(part, result, resolver, &waiter(generation, at), now_ms);
        self.take(at, progress, now_ms);
    }

    /// A group whose servers have changed since it was last asked.
    pub fn take_changed(&mut self) -> Option<GroupId> {
        self.changed.pop_first()
    }

    /// What the master is to be told of a name, until [`Names::told`].
    #[must_use]
    pub fn news(&self, now_ms: u64) -> Option<Standing> {
        let entry = self.entries.get(*self.news.first()?)?;
        let trouble = entry.trouble.map(|error| {
            let mut text = error.to_string();
            text.truncate(text.floor_char_boundary(MAX_TROUBLE_BYTES));
            text
        });
        Some(Standing {
            target: entry.target.clone(),
            endpoints: entry.endpoints.clone(),
            trouble,
            again_ms: (entry.again_ms != u64::MAX).then(|| entry.again_ms.saturating_sub(now_ms)),
        })
    }

    /// The master has been told of what [`Names::news`] gave.
    pub fn told(&mut self) {
        self.news.pop_first();
    }

    fn take(&mut self, at: usize, progress: Progress, now_ms: u64) {
        let Some(result) = progress else { return };
        self.asked -= 1;
        let entry = &mut self.entries[at];
        entry.discovery = None;
        let before = entry.trouble;
        let (endpoints, again_ms) = match result {
            Ok(found) => {
                (entry.trouble, entry.pause_ms) = (None, AGAIN_MIN_MS);
                let expires_ms = found.expires_ms;
                (Some(with_former(found, &entry.endpoints)), expires_ms.max(now_ms + AGAIN_MIN_MS))
            }
            Err(error) => {
                entry.trouble = Some(error);
                let pause_ms = entry.pause_ms;
                entry.pause_ms = (pause_ms * 2).min(AGAIN_MAX_MS);
                (error.is_definite().then(Vec::new), now_ms + pause_ms)
            }
        };
        entry.again_ms = again_ms;
        // What a hosts file says holds until the next reload.
        if again_ms != u64::MAX {
            self.due.insert((again_ms, at));
        }
        let changed = endpoints.filter(|new| !same(new, &entry.endpoints));
        let is_changed = changed.is_some();
        if let Some(new) = changed {
            entry.endpoints = new;
            self.changed.extend(&entry.groups);
        }
        if is_changed || self.speaks {
            self.news.insert(at);
        }
        if self.speaks {
            entry.log(before, is_changed);
        }
    }
}

impl Entry {
    /// Says what has changed, once.
    fn log(&self, before: Option<DnsError>, changed: bool) {
        let target = &self.target;
        match self.trouble {
            Some(error) if before != self.trouble && self.endpoints.is_empty() => {
                warn!("the name of servers {target} does not resolve: {error}; it stands for none");
            }
            Some(error) if before != self.trouble => {
                warn!("the name of servers {target} does not resolve: {error}; the addresses it had before are used");
            }
            None if changed => info!("the name of servers {target} now stands for {}", self.shown()),
            None if before.is_some() => info!("the name of servers {target} resolves again, to {}", self.shown()),
            Some(_) | None => {}
        }
    }

    fn shown(&self) -> String {
        let mut text = String::new();
        for Endpoint { address, .. } in self.endpoints.iter().take(SHOWN) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{}{address}", if text.is_empty() { "" } else { ", " });
        }
        match self.endpoints.len().checked_sub(SHOWN) {
            Some(more @ 1..) => format!("{text} and {more} more"),
            Some(0) | None => text,
        }
    }
}

fn waiter(generation: u64, entry: usize) -> impl Fn(u16) -> Waiter {
    move |part| Waiter::Server(Question { generation, entry, part })
}

/// What was found, and of a family of which nobody could say anything what was known before.
fn with_former(found: Discovered, former: &[Endpoint]) -> Vec<Endpoint> {
    let lacks = found.lacks;
    let mut endpoints = found.endpoints;
    for old in former {
        let unknown = if old.address.is_ipv4() { lacks.v4 } else { lacks.v6 };
        let room = endpoints.len() < ENDPOINTS_MAX;
        if unknown && room && endpoints.iter().all(|new| new.address != old.address) {
            endpoints.push(*old);
        }
    }
    endpoints
}

/// Servers change the order of their answers all the time.
fn same(a: &[Endpoint], b: &[Endpoint]) -> bool {
    a.len() == b.len() && a.iter().all(|one| b.contains(one))
}

fn inet(server: &Server) -> Option<SocketAddr> {
    match &server.address {
        Address::Inet(address) => Some(*address),
        Address::Unix(_) => None,
    }
}

/// Whether a server is one of the addresses of a name.
#[must_use]
pub fn is_of_name(server: &Server) -> bool {
    server.number & NUMBER_OF_NAME != 0
}

#[cfg(test)]
pub(crate) mod tests;
