//! Idle connections to the targets of requests, kept for the next one to the same host and port. Where there are too many,
//! the one kept longest gives way: a client with many targets does not keep those of others from being kept.
//!
//! Holds keys of connections, with what the rules are asked about again for each request.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;

use crate::backend::Upstream;
use crate::dns::Aliases;
use crate::proto::endpoint::Endpoint;
use crate::slab::Key;

/// Connections kept to one target, and in all.
const PER_ORIGIN: usize = 64;
const IN_ALL: usize = 512;
/// Targets that are remembered; more only while each has a connection.
const TARGETS: usize = 2 * IN_ALL;
/// How long one is kept.
pub const KEEP_MS: u64 = 60_000;

/// A connection that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// It.
    pub upstream: Key<Upstream>,
    /// Where it goes.
    pub address: SocketAddr,
    /// What its name was an alias for.
    pub aliases: Aliases,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Origins {
    /// By target; those without a connection stay for the next one, until there are many.
    idle: HashMap<Rc<Endpoint>, Vec<Kept>>,
    targets: HashMap<Key<Upstream>, (Rc<Endpoint>, u64)>,
    /// The same by when each was kept.
    order: BTreeMap<u64, Key<Upstream>>,
    turn: u64,
}

/// What comes of an attempt to keep a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is kept.
    Kept,
    /// It is, and this one is to be closed for it.
    InPlaceOf(Key<Upstream>),
    /// There are enough to its target.
    Enough,
}

impl Origins {
    /// The connection kept last for `target`.
    pub fn take(&mut self, target: &Endpoint) -> Option<Kept> {
        let idle = self.idle.get_mut(target)?;
        let found = idle.pop();
        if let Some(kept) = &found
            && let Some((_, turn)) = self.targets.remove(&kept.upstream)
        {
            self.order.remove(&turn);
        }
        found
    }

    /// Keeps a connection, unless there are enough.
    #[must_use]
    pub fn put(&mut self, target: &Endpoint, kept: Kept) -> Put {
        let (target, known) = match self.idle.get_key_value(target) {
            Some((target, idle)) if idle.len() < PER_ORIGIN => (Rc::clone(target), true),
            Some(_) => return Put::Enough,
            None => (Rc::new(target.clone()), false),
        };
        if !known && self.idle.len() >= TARGETS {
            self.idle.retain(|_, idle| !idle.is_empty());
        }
        let oldest = self.order.first_key_value().filter(|_| self.targets.len() >= IN_ALL).map(|(_, key)| *key);
        if let Some(oldest) = oldest {
            self.forget(oldest);
        }
        self.turn += 1;
        self.order.insert(self.turn, kept.upstream);
        self.targets.insert(kept.upstream, (Rc::clone(&target), self.turn));
        self.idle.entry(target).or_default().push(kept);
        oldest.map_or(Put::Kept, Put::InPlaceOf)
    }

    /// Whether it is kept here.
    #[must_use]
    pub fn has(&self, key: Key<Upstream>) -> bool {
        self.targets.contains_key(&key)
    }

    /// A connection is being closed.
    pub fn forget(&mut self, key: Key<Upstream>) {
        let Some((target, turn)) = self.targets.remove(&key) else { return };
        self.order.remove(&turn);
        if let Some(idle) = self.idle.get_mut(&target) {
            idle.retain(|kept| kept.upstream != key);
        }
    }

    /// All of them, to be closed.
    pub fn take_all(&mut self) -> Vec<Key<Upstream>> {
        self.idle.clear();
        self.order.clear();
        self.targets.drain().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warmest_is_used_first_and_bounds_hold() {
        let (a, b) = (Endpoint::parse(b"a.test:80").unwrap(), Endpoint::parse(b"a.test:81").unwrap());
        let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let kept = |n: u64| Kept { upstream: Key::from_bits(n), address, aliases: None };
        let mut origins = Origins::default();
        for n in 0..PER_ORIGIN as u64 {
            assert_eq!(origins.put(&a, kept(n)), Put::Kept);
        }
        assert_eq!(origins.put(&a, kept(99)), Put::Enough);
        assert_eq!(origins.put(&b, kept(100)), Put::Kept);
        assert_eq!(origins.take(&a), Some(kept(PER_ORIGIN as u64 - 1)));
        origins.forget(Key::from_bits(100));
        assert_eq!(origins.take(&b), None);
        for n in 0..2 * IN_ALL as u64 {
            let target = Endpoint::parse(format!("h{n}.test:80").as_bytes()).unwrap();
            let _ = origins.put(&target, kept(1000 + n));
        }
        assert_eq!((origins.take_all().len(), origins.idle.len()), (IN_ALL, 0));
        for n in 0..3 * TARGETS as u64 {
            let target = Endpoint::parse(format!("h{n}.test:80").as_bytes()).unwrap();
            assert_eq!(origins.put(&target, kept(n)), Put::Kept);
            assert_eq!(origins.take(&target), Some(kept(n)));
        }
        assert!(origins.idle.len() <= TARGETS && origins.targets.is_empty() && origins.order.is_empty());
    }

    #[test]
    fn the_one_kept_longest_gives_way() {
        let target = |n: u64| Endpoint::parse(format!("h{n}.test:80").as_bytes()).unwrap();
        let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let kept = |n: u64| Kept { upstream: Key::from_bits(n), address, aliases: None };
        let mut origins = Origins::default();
        for n in 0..IN_ALL as u64 {
            assert_eq!(origins.put(&target(n), kept(n)), Put::Kept);
        }
        assert_eq!(origins.take(&target(0)), Some(kept(0)));
        assert_eq!(origins.put(&target(0), kept(0)), Put::Kept);
        let new = IN_ALL as u64;
        assert_eq!(origins.put(&target(new), kept(new)), Put::InPlaceOf(Key::from_bits(1)));
        assert_eq!((origins.take(&target(1)), origins.has(Key::from_bits(1))), (None, false));
        assert_eq!((origins.take(&target(0)), origins.take(&target(new))), (Some(kept(0)), Some(kept(new))));
        assert_eq!((origins.targets.len(), origins.order.len()), (IN_ALL - 2, IN_ALL - 2));
    }
}
