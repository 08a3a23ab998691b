//! The servers of every group as one worker sees them: which to choose, and the idle connections kept to each.
//!
//! It holds keys of connections, never the connections themselves. A [`Place`] says where in the pools a server is,
//! which is also where the present configuration has it. A request in progress may go by an older configuration,
//! whose indices mean something else: a place comes from here only, and a reload gives everybody who holds one
//! another (see [`Remap`]).

use std::collections::HashMap;
use std::rc::Rc;

use ipc::snapshot::{self, Group, GroupId};
use log::{info, warn};

use crate::backend::Upstream;
use crate::backend::health::Ejected;
use crate::backend::names::{self, Names};
use crate::backend::said::Said;
use crate::balance::{GroupState, ServerId};
use crate::ctx::Site;
use crate::slab::Key;

/// A group of the present configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolId(GroupId);

/// A server of the present configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    group: PoolId,
    server: ServerId,
}

impl Place {
    /// The group it is in.
    #[must_use]
    pub fn group(self) -> PoolId {
        self.group
    }

    /// Which of the group's servers it is, as [`Pools::pick`] wants to know it.
    #[must_use]
    pub fn server(self) -> ServerId {
        self.server
    }
}

/// Stands for a server that a reload took out, in lists of those already tried. No server has this index.
pub const GONE: ServerId = ServerId::MAX;

/// One server's connections.
#[derive(Debug, Default)]
struct Server {
    /// Idle, the latest last: the warmest is used first, and those at the front time out.
    idle: Vec<Key<Upstream>>,
    /// Open ones, idle or not.
    open: u32,
    said: Said,
}

#[derive(Debug)]
struct GroupPool {
    /// As configured, with all addresses of its names among the servers.
    settings: Group,
    balance: GroupState,
    servers: Vec<Server>,
    idle_per_server: usize,
    max_per_server: u32,
}

/// See the module's description.
#[derive(Debug)]
pub struct Pools {
    site: Rc<Site>,
    groups: Vec<GroupPool>,
    /// Every server by its number, in order.
    numbers: Vec<(u64, Place)>,
}

impl Pools {
    /// Empty pools for every group of `site`, with what `names` stand for. `seed` differs between workers, so that
    /// they do not all begin with the same server.
    #[must_use]
    pub fn new(site: &Rc<Site>, names: &Names, seed: u64) -> Pools {
        let groups = site.snapshot.groups.iter().map(|group| GroupPool::new(group, names, seed)).collect();
        let mut pools = Pools { groups, site: Rc::clone(site), numbers: Vec::new() };
        pools.number();
        pools
    }

    /// Makes the list of all servers by their numbers.
    fn number(&mut self) {
        let place = |group, server| Place { group: PoolId(group), server };
        self.numbers.clear();
        for (id, group) in (0..).zip(&self.groups) {
            let servers = (0..).zip(&group.settings.servers);
            self.numbers.extend(servers.map(|(at, server)| (server.number, place(id, at))));
        }
        self.numbers.sort_unstable_by_key(|(number, _)| *number);
    }

    /// Takes in what the names of one group stand for now: what is known of servers that stay is kept, as by
    /// [`Pools::inherit`]. `None` when nothing has changed.
    pub fn renew(&mut self, group: GroupId, names: &Names, seed: u64) -> Option<(Remap, Vec<Key<Upstream>>)> {
        let configured = self.site.snapshot.groups.get(usize::from(group))?;
        let pool = self.groups.get_mut(usize::from(group))?;
        if names.servers(configured) == pool.settings.servers {
            return None;
        }
        let new = GroupPool::new(configured, names, seed);
        let old = std::mem::replace(pool, new);
        let numbers = &pool.settings.servers;
        let numbers: HashMap<u64, ServerId> = (0..).zip(numbers).map(|(at, server)| (server.number, at)).collect();
        let servers = old.settings.servers.iter().map(|server| numbers.get(&server.number).copied()).collect();
        let mut surplus = Vec::new();
        let former = Former { group: Some(PoolId(group)), servers, settings: old.settings.clone() };
        pool.inherit(old, &former.servers, &mut surplus);
        self.number();
        Some((Remap::One(PoolId(group), former), surplus))
    }

    /// The pools of a group that `site` names so; `None` when `site` is not the present configuration.
    #[must_use]
    pub fn id(&self, site: &Rc<Site>, group: GroupId) -> Option<PoolId> {
        (Rc::ptr_eq(&self.site, site) && usize::from(group) < self.groups.len()).then_some(PoolId(group))
    }

    /// Where the server with this number is, if it is still configured.
    #[must_use]
    pub fn find(&self, number: u64) -> Option<Place> {
        let at = self.numbers.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.numbers[at].1)
    }

    /// A group's settings, with all addresses of its names among the servers.
    #[must_use]
    pub fn settings(&self, group: PoolId) -> &Group {
        &self.groups[usize::from(group.0)].settings
    }

    /// A server's settings.
    #[must_use]
    pub fn server(&self, place: Place) -> &snapshot::Server {
        &self.settings(place.group).servers[usize::from(place.server)]
    }

    /// What the log calls a server: with its address, where its name stands for several.
    fn shown(&self, place: Place) -> String {
        let server = self.server(place);
        if names::is_of_name(server) { format!("{} ({})", server.name, server.address) } else { server.name.clone() }
    }

    /// The server for a request or connection of `source`; `None` when every one is in `tried` or has no room.
    pub fn pick(&mut self, group: PoolId, source: u64, now_ms: u64, tried: &[ServerId]) -> Option<Place> {
        let GroupPool { balance, servers, max_per_server, .. } = self.groups.get_mut(usize::from(group.0))?;
        let full = |id: ServerId| {
            servers.get(usize::from(id)).is_some_and(|server| server.idle.is_empty() && server.open >= *max_per_server)
        };
        balance.pick(source, now_ms, tried, full).map(|server| Place { group, server })
    }

    /// Why [`Pools::pick`] finds no server though none has been tried: whether one has as many connections as it may.
    #[must_use]
    pub fn is_full(&self, group: PoolId) -> bool {
        let Some(group) = self.groups.get(usize::from(group.0)) else { return false };
        group.servers.iter().any(|server| server.open >= group.max_per_server)
    }

    /// A request or connection to a server began. Each is followed by one [`Pools::ended`].
    pub fn began(&mut self, place: Place) {
        self.balance(place).began(place.server);
    }

    /// A request or connection to a server ended.
    pub fn ended(&mut self, place: Place) {
        self.balance(place).ended(place.server);
    }

    /// A server did what it should.
    pub fn succeeded(&mut self, place: Place) {
        if self.balance(place).succeeded(place.server) && self.connections(place).said.back() {
            info!("backends.{}: {} answers again", self.settings(place.group).name, self.shown(place));
        }
    }

    /// A server failed, and `why`. The log is told of the first failure after a success, and of an ejection.
    pub fn failed(&mut self, place: Place, why: &dyn std::fmt::Display, now_ms: u64) {
        let ejected = self.balance(place).failed(place.server, now_ms);
        if let Some(ejected) = ejected {
            if let Some(left_out) = self.connections(place).said.ejected(now_ms) {
                warn!("{}", self.ejection(place, ejected, left_out, why));
            }
        } else if self.balance(place).has_just_failed(place.server)
            && let Some(left_out) = self.connections(place).said.failed(now_ms)
        {
            warn!("{}", self.first_failure(place, left_out, why));
        }
    }

    /// What the log says of the first failure after a success, when it was not told of `left_out` such.
    fn first_failure(&self, place: Place, left_out: u32, why: &dyn std::fmt::Display) -> String {
        let group = self.settings(place.group);
        let follows = match group.health.failures {
            0 => "requests still go there, since health.failures is 0".to_owned(),
            most if group.servers.len() == 1 => {
                format!(
                    "that is 1 of {most} failures in a row; requests still go there, since the group has no other \
                     server"
                )
            }
            most => format!("that is 1 of {most} failures in a row after which it is passed over"),
        };
        let before = match left_out {
            0 => String::new(),
            _ => format!(" ({left_out} times more, with successes between, since this was last said)"),
        };
        format!("backends.{}: {} failed{before}: {why}; {follows}", group.name, self.shown(place))
    }

    /// What the log says of an ejection, when it was not told of the `left_out` before it.
    fn ejection(&self, place: Place, ejected: Ejected, left_out: u32, why: &dyn std::fmt::Display) -> String {
        let group = self.settings(place.group);
        let Ejected { for_ms, failures } = ejected;
        let follows = if group.servers.len() == 1 {
            "requests still go there, since the group has no other server".to_owned()
        } else {
            format!("it is passed over for {} while others are there", ipc::words::duration(for_ms.into()))
        };
        let before = match left_out {
            0 => String::new(),
            _ => format!(" ({left_out} times more since this was last said)"),
        };
        format!(
            "backends.{}: {} failed {failures} times in a row{before}, the last time because: {why}; {follows}",
            group.name,
            self.shown(place)
        )
    }

    /// An idle connection to a server.
    pub fn take_idle(&mut self, place: Place) -> Option<Key<Upstream>> {
        self.connections(place).idle.pop()
    }

    /// Keeps an idle connection; false when there are enough.
    #[must_use]
    pub fn put_idle(&mut self, place: Place, key: Key<Upstream>) -> bool {
        let most = self.groups[usize::from(place.group.0)].idle_per_server;
        let server = self.connections(place);
        if server.idle.len() >= most {
            return false;
        }
        server.idle.push(key);
        true
    }

    /// An idle connection is being closed.
    pub fn forget_idle(&mut self, place: Place, key: Key<Upstream>) {
        let idle = &mut self.connections(place).idle;
        // Those that time out, or are closed by their server for that, are at the front.
        if let Some(at) = idle.iter().position(|&kept| kept == key) {
            idle.remove(at);
        }
    }

    /// A connection to a server was opened.
    pub fn opened(&mut self, place: Place) {
        self.connections(place).open += 1;
    }

    /// A connection to a server was closed.
    pub fn closed(&mut self, place: Place) {
        let server = self.connections(place);
        server.open = server.open.saturating_sub(1);
    }

    /// All idle connections, to close them.
    pub fn take_all_idle(&mut self) -> Vec<Key<Upstream>> {
        self.groups.iter_mut().flat_map(|group| &mut group.servers).flat_map(|server| server.idle.drain(..)).collect()
    }

    fn balance(&mut self, place: Place) -> &mut GroupState {
        &mut self.groups[usize::from(place.group.0)].balance
    }

    fn connections(&mut self, place: Place) -> &mut Server {
        &mut self.groups[usize::from(place.group.0)].servers[usize::from(place.server)]
    }

    /// Takes over from the pools of the configuration before: health, requests in progress, connections and turns of
    /// the servers that are in both. Says where everything is now, and which idle connections nobody needs any more:
    /// those to servers that are gone, and those beyond a lowered bound. All are still counted as open.
    pub fn inherit(&mut self, old: Pools) -> (Remap, Vec<Key<Upstream>>) {
        let mut surplus = Vec::new();
        let mut groups = Vec::with_capacity(old.groups.len());
        let names: HashMap<&str, GroupId> =
            (0..).zip(&self.site.snapshot.groups).map(|(id, group)| (group.name.as_str(), id)).collect();
        for group in old.groups {
            let settings = group.settings.clone();
            let successor = names.get(settings.name.as_str()).copied();
            let map: Vec<Option<ServerId>> = settings
                .servers
                .iter()
                .map(|server| {
                    let at = self.numbers.binary_search_by_key(&server.number, |(number, _)| *number).ok()?;
                    let place = self.numbers[at].1;
                    (Some(place.group.0) == successor).then_some(place.server)
                })
                .collect();
            match successor.and_then(|id| self.groups.get_mut(usize::from(id))) {
                Some(new) => new.inherit(group, &map, &mut surplus),
                None => surplus.extend(group.servers.into_iter().flat_map(|server| server.idle)),
            }
            groups.push(Former { group: successor.map(PoolId), servers: map, settings });
        }
        (Remap::All(groups), surplus)
    }
}

impl GroupPool {
    fn new(group: &Group, names: &Names, seed: u64) -> GroupPool {
        let settings = Group { servers: names.servers(group), ..group.clone() };
        GroupPool {
            balance: GroupState::new(&settings, seed),
            servers: settings.servers.iter().map(|_| Server::default()).collect(),
            idle_per_server: settings.keepalive.idle_per_server as usize,
            max_per_server: settings.keepalive.max_per_server.unwrap_or(u32::MAX),
            settings,
        }
    }

    /// Takes over from `old`; `map` says for each of its servers which one it is here. Idle connections that are not
    /// kept become `surplus`.
    fn inherit(&mut self, old: GroupPool, map: &[Option<ServerId>], surplus: &mut Vec<Key<Upstream>>) {
        self.balance.inherit(&old.balance, map);
        for (mut connections, at) in old.servers.into_iter().zip(map) {
            let Some(at) = *at else {
                surplus.append(&mut connections.idle);
                continue;
            };
            let kept = self.idle_per_server.min(connections.idle.len());
            // The ones that would time out first.
            surplus.extend(connections.idle.drain(..connections.idle.len() - kept));
            self.servers[usize::from(at)] = connections;
        }
    }
}

/// One group before a change, and where it and its servers are afterwards.
#[derive(Debug)]
pub struct Former {
    group: Option<PoolId>,
    servers: Vec<Option<ServerId>>,
    settings: Group,
}

/// Where groups and servers are after a change.
#[derive(Debug)]
pub enum Remap {
    /// There is another configuration: all groups as they were, by their ids.
    All(Vec<Former>),
    /// One group has other servers; the others are as they were.
    One(PoolId, Former),
}

impl Remap {
    /// What became of a group; `None` when nothing did.
    fn former(&self, old: PoolId) -> Option<&Former> {
        match self {
            Remap::All(groups) => groups.get(usize::from(old.0)),
            Remap::One(id, former) => (*id == old).then_some(former),
        }
    }

    /// The group; `None` when it is gone.
    #[must_use]
    pub fn group(&self, old: PoolId) -> Option<PoolId> {
        self.former(old).map_or(Some(old), |former| former.group)
    }

    /// The server; `None` when it is gone.
    #[must_use]
    pub fn place(&self, old: Place) -> Option<Place> {
        let Some(former) = self.former(old.group) else { return Some(old) };
        let server = former.servers.get(usize::from(old.server)).copied().flatten()?;
        Some(Place { group: former.group?, server })
    }

    /// The server in use, and its name if it is gone; `name` is what was known of one already gone.
    #[must_use]
    pub fn server(&self, old: Option<Place>, name: Option<Box<str>>) -> (Option<Place>, Option<Box<str>>) {
        let Some(old) = old else { return (None, name) };
        match self.place(old) {
            Some(place) => (Some(place), None),
            None => {
                let server = self.former(old.group).and_then(|it| it.settings.servers.get(usize::from(old.server)));
                (None, server.map(|server| server.name.as_str().into()))
            }
        }
    }

    /// Servers of `group` already tried; there are as many afterwards, some of them [`GONE`].
    pub fn tried(&self, group: Option<PoolId>, tried: &mut [ServerId]) {
        for server in tried {
            let place = group.map(|group| Place { group, server: *server });
            *server = place.and_then(|place| self.place(place)).map_or(GONE, Place::server);
        }
    }
}

#[cfg(test)]
mod tests;
