//! Choosing a server: the state of one backend group within one worker.
//!
//! [`GroupState`] keeps what is common to all policies: how many requests each server has in progress, its health,
//! and the order in which servers are considered. The policies, one file each, choose among the servers they are
//! allowed. Nothing here does I/O or reads a clock, and nothing is shared between workers.

mod hash;
mod least_connections;
mod random_two;
mod round_robin;

use ipc::snapshot::{self, Balance, Group};

use crate::backend::health::{Ejected, Health};

pub use hash::source_of;
use hash::{ConsistentHash, SourceHash};
use least_connections::LeastConnections;
use random_two::RandomTwo;
use round_robin::RoundRobin;

/// Index of a server in [`Group::servers`].
pub type ServerId = u16;

/// One server, as all policies see it.
#[derive(Debug)]
struct Server {
    /// Requests or connections in progress there, from this worker.
    active: u32,
    /// Its share, at least 1.
    weight: u16,
    health: Health,
}

/// One backend group as one worker uses it.
#[derive(Debug)]
pub struct GroupState {
    servers: Vec<Server>,
    primary: Policy,
    backup: Policy,
    limits: snapshot::Health,
    /// How many of `servers` are ejected: while none is, their health need not be looked at.
    ejected: u16,
    random: Random,
}

/// What one policy remembers of its servers: either all primary ones of a group or all its backups.
#[derive(Debug)]
enum Policy {
    RoundRobin(RoundRobin),
    LeastConnections(LeastConnections),
    RandomTwo(RandomTwo),
    SourceHash(SourceHash),
    ConsistentHash(ConsistentHash),
}

impl Policy {
    fn new(group: &Group, backup: bool, random: &mut Random) -> Policy {
        let members: Vec<Member> = (0..ServerId::MAX)
            .zip(&group.servers)
            .filter(|(_, server)| server.backup == backup)
            .map(|(id, server)| Member { id, weight: server.weight.max(1) })
            .collect();
        match group.balance {
            Balance::RoundRobin => Policy::RoundRobin(RoundRobin::new(&members, random)),
            Balance::LeastConnections => Policy::LeastConnections(LeastConnections::new(&members, random)),
            Balance::RandomTwo => Policy::RandomTwo(RandomTwo::new(&members)),
            Balance::SourceHash => Policy::SourceHash(SourceHash::new(&members)),
            Balance::ConsistentHash => {
                Policy::ConsistentHash(ConsistentHash::new(&members, |id| &group.servers[usize::from(id)].address))
            }
        }
    }

    /// Goes on where `old` was, as far as the servers are the same.
    fn inherit(&mut self, old: &Policy, new_id: impl Fn(ServerId) -> Option<ServerId>) {
        match (self, old) {
            (Policy::RoundRobin(new), Policy::RoundRobin(old)) => new.inherit(old, new_id),
            (Policy::LeastConnections(new), Policy::LeastConnections(old)) => new.inherit(old, new_id),
            // The other policies remember nothing.
            (
                Policy::RoundRobin(_)
                | Policy::LeastConnections(_)
                | Policy::RandomTwo(_)
                | Policy::SourceHash(_)
                | Policy::ConsistentHash(_),
                _,
            ) => {}
        }
    }

    fn pick(
        &mut self,
        servers: &[Server],
        source: u64,
        random: &mut Random,
        allowed: impl Fn(ServerId) -> bool,
    ) -> Option<ServerId> {
        match self {
            Policy::RoundRobin(policy) => policy.pick(allowed),
            Policy::LeastConnections(policy) => policy.pick(servers, allowed),
            Policy::RandomTwo(policy) => policy.pick(servers, random, allowed),
            Policy::SourceHash(policy) => policy.pick(source, allowed),
            Policy::ConsistentHash(policy) => policy.pick(source, allowed),
        }
    }
}

/// A server as a policy is made of it.
#[derive(Debug, Clone, Copy)]
struct Member {
    id: ServerId,
    weight: u16,
}

impl GroupState {
    /// The state of a group nothing was sent to yet. `seed` should differ from worker to worker, so that they do
    /// not all begin with the same server.
    #[must_use]
    pub fn new(group: &Group, seed: u64) -> GroupState {
        let mut random = Random::new(seed);
        let servers = group
            .servers
            .iter()
            .map(|server| Server { active: 0, weight: server.weight.max(1), health: Health::default() })
            .collect();
        GroupState {
            servers,
            primary: Policy::new(group, false, &mut random),
            backup: Policy::new(group, true, &mut random),
            limits: group.health,
            ejected: 0,
            random,
        }
    }

    /// Chooses a server for one request or connection, which the caller then reports with [`GroupState::began`].
    ///
    /// `source` stands for the client's address (see [`source_of`]). Servers in `tried` and those that `full` says
    /// have no room are never chosen; `None` means that no other is left. In this order of preference: primary
    /// servers that are not ejected; backups that are not; and when that leaves none, any primary, any backup: an
    /// attempt that may fail is better than a failure.
    ///
    /// An ejected server whose time is over counts as not ejected until it is chosen: that is its trial.
    pub fn pick(
        &mut self,
        source: u64,
        now_ms: u64,
        tried: &[ServerId],
        full: impl Fn(ServerId) -> bool,
    ) -> Option<ServerId> {
        let GroupState { servers, primary, backup, ejected, random, .. } = self;
        let fresh = |id: ServerId| !tried.contains(&id) && !full(id);
        let any_ejected = *ejected > 0;
        let healthy = |id: ServerId| {
            fresh(id) && (!any_ejected || servers.get(usize::from(id)).is_some_and(|s| s.health.takes_requests(now_ms)))
        };
        let mut chosen =
            primary.pick(servers, source, random, healthy).or_else(|| backup.pick(servers, source, random, healthy));
        if chosen.is_none() && any_ejected {
            chosen =
                primary.pick(servers, source, random, fresh).or_else(|| backup.pick(servers, source, random, fresh));
        }
        let server = servers.get_mut(usize::from(chosen?))?;
        server.health.chosen(now_ms);
        chosen
    }

    /// A request or connection to `server` began. Each is to be followed by one [`GroupState::ended`].
    pub fn began(&mut self, server: ServerId) {
        if let Some(server) = self.servers.get_mut(usize::from(server)) {
            server.active = server.active.saturating_add(1);
        }
    }

    /// A request or connection to `server` ended, whatever came of it; report a success or failure before.
    pub fn ended(&mut self, server: ServerId) {
        if let Some(server) = self.servers.get_mut(usize::from(server)) {
            server.active = server.active.saturating_sub(1);
            if server.active == 0 {
                server.health.idle();
            }
        }
    }

    /// How many requests or connections `server` has in progress from this worker.
    #[must_use]
    pub fn active(&self, server: ServerId) -> u32 {
        self.servers.get(usize::from(server)).map_or(0, |server| server.active)
    }

    /// `server` did what a server should: it answered, or a TCP connection to it was made. Returns whether that
    /// brought it back from an ejection.
    pub fn succeeded(&mut self, server: ServerId) -> bool {
        let back = self.servers.get_mut(usize::from(server)).is_some_and(|server| server.health.succeeded());
        self.ejected -= u16::from(back);
        back
    }

    /// `server` failed. When that ejects it, says for how long; the caller logs it.
    pub fn failed(&mut self, server: ServerId, now_ms: u64) -> Option<Ejected> {
        let server = self.servers.get_mut(usize::from(server))?;
        let was_ejected = server.health.is_ejected();
        let ejected = server.health.failed(&self.limits, now_ms)?;
        self.ejected += u16::from(!was_ejected);
        Some(ejected)
    }

    /// Whether `server`, which is not ejected, has failed once since it last succeeded.
    #[must_use]
    pub fn has_just_failed(&self, server: ServerId) -> bool {
        self.servers.get(usize::from(server)).is_some_and(|server| server.health.has_just_failed())
    }

    /// Takes over what `old`, the same group before a reload, knew of the servers that both have: `map` says for
    /// each server of `old` which one it is here.
    pub fn inherit(&mut self, old: &GroupState, map: &[Option<ServerId>]) {
        let pairs = old.servers.iter().zip(map).filter_map(|(server, new)| Some((server, usize::from((*new)?))));
        for (former, new) in pairs {
            if let Some(server) = self.servers.get_mut(new) {
                server.active = former.active;
                // Where servers are no longer ejected at all, none stays so.
                server.health = if self.limits.failures > 0 { former.health } else { Health::default() };
            }
        }
        let ejected = self.servers.iter().filter(|server| server.health.is_ejected()).count();
        self.ejected = u16::try_from(ejected).unwrap_or(u16::MAX);
        let new_id = |id: ServerId| map.get(usize::from(id)).copied().flatten();
        self.primary.inherit(&old.primary, new_id);
        self.backup.inherit(&old.backup, new_id);
        self.random = Random(old.random.0);
    }

    /// Whether `server` is ejected, its trial included.
    #[must_use]
    pub fn is_ejected(&self, server: ServerId) -> bool {
        self.servers.get(usize::from(server)).is_some_and(|server| server.health.is_ejected())
    }
}

/// A small generator (`SplitMix64`) for choices that no one gains from predicting.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; 0 if that is 0.
    fn below(&mut self, bound: u32) -> u32 {
        scale(self.next(), bound)
    }
}

/// `SplitMix64`'s finalizer: a bijection in which every bit of `x` matters to every bit of the result.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Maps a number spread over all of `u64` to one below `bound` (0 if that is 0), in equal shares.
fn scale(x: u64, bound: u32) -> u32 {
    u32::try_from((u128::from(x) * u128::from(bound)) >> 64).unwrap_or(0)
}

#[cfg(test)]
mod tests;
