//! What each user and each client address uses, and whether it may have more.
//!
//! Connections are counted over all workers: each says in a [`Ledger`] how many it has of what, and adds up what the
//! others say. What is begun and moved in a second is counted by each worker for itself.
//!
//! Bytes are counted against an allowance that grows with time. Who has used theirs up is not read from until it has
//! grown again: nobody is ever made to wait within the loop.

use std::collections::HashMap;
use std::net::IpAddr;

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput, KeyInit, Update};
use ipc::forward::{RuleSet, UseLimits};
use ipc::ledger::Ledger;

use crate::slab::{Key, Slab};

/// How long somebody is remembered who uses nothing: until then bursts are bounded.
const FORGET_MS: u64 = 2000;
/// After so many more have come, those who use nothing are looked for.
const SWEEP: usize = 1024;

/// Whose use is bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    User(Box<str>),
    Address(IpAddr),
}

/// Where this worker counts together with the others.
#[derive(Debug)]
pub struct Share {
    ledger: Ledger,
    row: u16,
    key: [u8; 32],
}

impl Share {
    /// In this ledger, in this row of it. Without a row nobody else sees what is counted here, but all is seen that
    /// others count.
    #[must_use]
    pub fn new(ledger: Ledger, row: Option<u16>) -> Share {
        let key = ledger.key();
        Share { ledger, row: row.unwrap_or(ipc::ledger::ROWS), key }
    }

    /// The number that stands for `who` under the rules `set`, the same in every worker. Two have the same one with a
    /// probability of 2^-64; then they are counted as one.
    fn number(&self, set: &str, who: &Who) -> u64 {
        let Ok(mut mac) = Blake2sMac256::new_from_slice(&self.key) else { return 1 };
        mac.update(&(set.len() as u64).to_le_bytes());
        mac.update(set.as_bytes());
        match who {
            Who::User(name) => {
                mac.update(b"user");
                mac.update(name.as_bytes());
            }
            Who::Address(IpAddr::V4(v4)) => mac.update(&[b"four", &v4.octets()[..]].concat()),
            Who::Address(IpAddr::V6(v6)) => mac.update(&[b"six ", &v6.octets()[..]].concat()),
        }
        let hash: [u8; 32] = mac.finalize_fixed().into();
        let [a, b, c, d, e, f, g, h, ..] = hash;
        // 0 is none.
        u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
    }

    fn set(&self, number: u64, open: u32) {
        if self.row < ipc::ledger::ROWS {
            self.ledger.set(self.row, number, open);
        }
    }
}

/// What one of them uses.
#[derive(Debug)]
pub struct Use {
    limits: UseLimits,
    /// Connections now, of this worker.
    open: u32,
    /// What stands for it where all workers count.
    number: u64,
    /// Connections that may still begin, in thousandths; grows up to a second's worth.
    beginnings: u64,
    /// Bytes that may still be moved, in thousandths; below zero after more than that was moved at once.
    bytes: i128,
    grown_ms: u64,
}

impl Use {
    fn new(limits: UseLimits, number: u64, now_ms: u64) -> Use {
        let beginnings = u64::from(limits.connections_per_second.unwrap_or(0)) * 1000;
        let bytes = i128::from(limits.rate_bytes.unwrap_or(0)) * 1000;
        Use { limits, open: 0, number, beginnings, bytes, grown_ms: now_ms }
    }

    fn grow(&mut self, now_ms: u64) {
        let ms = now_ms.saturating_sub(self.grown_ms);
        self.grown_ms = now_ms;
        let per_second = u64::from(self.limits.connections_per_second.unwrap_or(0));
        self.beginnings = self.beginnings.saturating_add(per_second.saturating_mul(ms)).min(per_second * 1000);
        let rate = i128::from(self.limits.rate_bytes.unwrap_or(0));
        self.bytes = (self.bytes + rate * i128::from(ms)).min(rate * 1000);
    }
}

/// What a connection counts against. To be given back with [`Uses::end`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lease {
    user: Option<Key<Use>>,
    address: Option<Key<Use>>,
}

/// Why somebody may not have another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// The user has too many.
    UserConnections,
    /// The user begins too many in a second.
    UserRate,
    /// The address has too many.
    AddressConnections,
    /// The address begins too many in a second.
    AddressRate,
}

impl Exceeded {
    /// In words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Exceeded::UserConnections => "the user has too many connections",
            Exceeded::UserRate => "the user begins too many connections in a second",
            Exceeded::AddressConnections => "the client's address has too many connections",
            Exceeded::AddressRate => "the client's address begins too many connections in a second",
        }
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Uses {
    uses: Slab<Use>,
    /// By the set of rules and who it is: each set has its own bounds.
    keys: HashMap<(Box<str>, Who), Key<Use>>,
    sweep_at: usize,
    /// `None` = there are no other workers.
    share: Option<Share>,
}

impl Uses {
    /// Nobody uses anything yet. `share`: where other workers count, if there are any.
    #[must_use]
    pub fn new(share: Option<Share>) -> Uses {
        Uses { share, ..Uses::default() }
    }

    /// Counts a connection that begins, if there may be one more. Where two workers ask at the same instant for the last
    /// one that may be had, it can be that neither gets it, but never that both do.
    ///
    /// # Errors
    /// Which bound it would exceed; then nothing is counted.
    pub fn begin(
        &mut self,
        set: &RuleSet,
        user: Option<&str>,
        address: Option<IpAddr>,
        now_ms: u64,
    ) -> Result<Lease, Exceeded> {
        let lease = self.lease(set, user, address, now_ms);
        self.may_begin(lease.user, now_ms, Exceeded::UserConnections, Exceeded::UserRate)?;
        self.may_begin(lease.address, now_ms, Exceeded::AddressConnections, Exceeded::AddressRate)?;
        self.count(lease);
        let both = [(lease.user, Exceeded::UserConnections), (lease.address, Exceeded::AddressConnections)];
        for (key, too_many) in both {
            if self.exceeds(key) {
                self.end(lease);
                return Err(too_many);
            }
        }
        for key in [lease.user, lease.address].into_iter().flatten() {
            if let Some(one) = self.uses.get_mut(key) {
                one.beginnings = one.beginnings.saturating_sub(1000);
            }
        }
        Ok(lease)
    }

    /// Counts a connection that another worker has begun, whatever is bounded: it is there.
    pub fn take_over(&mut self, set: &RuleSet, user: Option<&str>, address: Option<IpAddr>, now_ms: u64) -> Lease {
        let lease = self.lease(set, user, address, now_ms);
        self.count(lease);
        lease
    }

    /// What a connection of theirs counts against. Nothing is counted yet.
    fn lease(&mut self, set: &RuleSet, user: Option<&str>, address: Option<IpAddr>, now_ms: u64) -> Lease {
        let user = user.filter(|_| !set.per_user.is_none()).map(|user| Who::User(user.into()));
        let address = address.filter(|_| !set.per_address.is_none()).map(|ip| Who::Address(ip.to_canonical()));
        let user = user.and_then(|who| self.find(set, who, set.per_user, now_ms));
        let address = address.and_then(|who| self.find(set, who, set.per_address, now_ms));
        Lease { user, address }
    }

    fn count(&mut self, lease: Lease) {
        for key in [lease.user, lease.address].into_iter().flatten() {
            if let Some(one) = self.uses.get_mut(key) {
                one.open += 1;
                if let Some(share) = &self.share {
                    share.set(one.number, one.open);
                }
            }
        }
    }

    /// Whether there are more than there may be, over all workers.
    fn exceeds(&self, key: Option<Key<Use>>) -> bool {
        let Some(one) = key.and_then(|key| self.uses.get(key)) else { return false };
        let Some(most) = one.limits.connections else { return false };
        let elsewhere = self.share.as_ref().map_or(0, |share| share.ledger.elsewhere(share.row, one.number));
        u64::from(one.open).saturating_add(elsewhere) > u64::from(most)
    }

    fn find(&mut self, set: &RuleSet, who: Who, limits: UseLimits, now_ms: u64) -> Option<Key<Use>> {
        let name = (set.name.as_str().into(), who);
        if let Some(&key) = self.keys.get(&name) {
            if let Some(one) = self.uses.get_mut(key) {
                // A reload may have changed them.
                one.limits = limits;
            }
            return Some(key);
        }
        if self.keys.len() >= self.sweep_at {
            self.sweep(now_ms);
        }
        let number = self.share.as_ref().map_or(1, |share| share.number(&name.0, &name.1));
        let key = self.uses.insert(Use::new(limits, number, now_ms)).ok()?;
        self.keys.insert(name, key);
        Some(key)
    }

    fn may_begin(
        &mut self,
        key: Option<Key<Use>>,
        now_ms: u64,
        too_many: Exceeded,
        too_fast: Exceeded,
    ) -> Result<(), Exceeded> {
        let Some(one) = key.and_then(|key| self.uses.get_mut(key)) else { return Ok(()) };
        one.grow(now_ms);
        if one.limits.connections.is_some_and(|most| one.open >= most) {
            return Err(too_many);
        }
        if one.limits.connections_per_second.is_some() && one.beginnings < 1000 {
            return Err(too_fast);
        }
        Ok(())
    }

    /// A connection has ended.
    pub fn end(&mut self, lease: Lease) {
        for key in [lease.user, lease.address].into_iter().flatten() {
            if let Some(one) = self.uses.get_mut(key) {
                one.open = one.open.saturating_sub(1);
                if let Some(share) = &self.share {
                    share.set(one.number, one.open);
                }
            }
        }
    }

    /// How many bytes a connection may move now; 0 = it must wait, [`usize::MAX`] = nothing bounds it.
    pub fn allowance(&mut self, lease: Lease, now_ms: u64) -> usize {
        let mut least = usize::MAX;
        for key in [lease.user, lease.address].into_iter().flatten() {
            let Some(one) = self.uses.get_mut(key) else { continue };
            if one.limits.rate_bytes.is_some() {
                one.grow(now_ms);
                least = least.min(usize::try_from(one.bytes.max(0) / 1000).unwrap_or(usize::MAX));
            }
        }
        least
    }

    /// A connection has moved so many.
    pub fn moved(&mut self, lease: Lease, bytes: u64) {
        for key in [lease.user, lease.address].into_iter().flatten() {
            if let Some(one) = self.uses.get_mut(key).filter(|one| one.limits.rate_bytes.is_some()) {
                one.bytes -= i128::from(bytes) * 1000;
            }
        }
    }

    /// Forgets those who use nothing and have not for a while.
    fn sweep(&mut self, now_ms: u64) {
        let uses = &mut self.uses;
        self.keys.retain(|_, key| {
            let keep = uses.get(*key).is_some_and(|one| one.open > 0 || now_ms < one.grown_ms + FORGET_MS);
            if !keep {
                uses.remove(*key);
            }
            keep
        });
        self.sweep_at = 2 * self.keys.len() + SWEEP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(per_user: UseLimits, per_address: UseLimits) -> RuleSet {
        RuleSet { name: "o".to_owned(), auth: true, lifetime_ms: None, rules: vec![], per_user, per_address }
    }

    const NONE: UseLimits = UseLimits { connections: None, connections_per_second: None, rate_bytes: None };

    fn ip(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn connections_at_a_time_are_bounded_for_each() {
        let set = set(UseLimits { connections: Some(2), ..NONE }, UseLimits { connections: Some(3), ..NONE });
        let mut uses = Uses::default();
        let first = uses.begin(&set, Some("ann"), ip(1), 0).unwrap();
        uses.begin(&set, Some("ann"), ip(1), 0).unwrap();
        assert_eq!(uses.begin(&set, Some("ann"), ip(2), 0), Err(Exceeded::UserConnections));
        uses.begin(&set, Some("bob"), ip(1), 0).unwrap();
        assert_eq!(uses.begin(&set, Some("cy"), ip(1), 0), Err(Exceeded::AddressConnections));
        assert_eq!(uses.begin(&set, Some("cy"), "::ffff:192.0.2.1".parse().ok(), 0), Err(Exceeded::AddressConnections));
        uses.end(first);
        uses.begin(&set, Some("ann"), ip(1), 0).unwrap();
    }

    #[test]
    fn connections_are_bounded_over_all_workers() {
        let master = ipc::ledger::Rows::new().unwrap();
        let worker = || Uses::new(Some(Share::new(Ledger::map(master.file()).unwrap(), master.claim())));
        let (mut a, mut b) = (worker(), worker());
        let set = set(UseLimits { connections: Some(2), ..NONE }, UseLimits { connections: Some(3), ..NONE });
        let first = a.begin(&set, Some("ann"), ip(1), 0).unwrap();
        b.begin(&set, Some("ann"), ip(2), 0).unwrap();
        for one in [&mut a, &mut b] {
            assert_eq!(one.begin(&set, Some("ann"), ip(3), 0), Err(Exceeded::UserConnections));
        }
        // What was refused counts nowhere, for the address no more than for the user.
        for _ in 0..3 {
            b.begin(&set, Some("bob"), ip(3), 0).map(|lease| b.end(lease)).unwrap();
        }
        a.end(first);
        let again = b.begin(&set, Some("ann"), ip(1), 0).unwrap();
        assert_eq!(a.begin(&set, Some("ann"), ip(1), 0), Err(Exceeded::UserConnections));
        // Those of another set of rules have bounds of their own.
        let other = RuleSet { name: "p".to_owned(), ..set.clone() };
        a.begin(&other, Some("ann"), ip(1), 0).unwrap();
        b.end(again);
        // One that is there already is counted, and keeps others out.
        let taken = a.take_over(&set, Some("ann"), ip(4), 0);
        a.take_over(&set, Some("ann"), ip(4), 0);
        assert_eq!(b.begin(&set, Some("ann"), ip(5), 0), Err(Exceeded::UserConnections));
        a.end(taken);
        assert_eq!(b.begin(&set, Some("ann"), ip(5), 0), Err(Exceeded::UserConnections));
        // A dead worker's are gone with its row.
        master.release(0);
        b.begin(&set, Some("ann"), ip(5), 0).unwrap();
    }

    #[test]
    fn connections_in_a_second_are_bounded_and_come_back_with_time() {
        let set = set(NONE, UseLimits { connections_per_second: Some(2), ..NONE });
        let mut uses = Uses::default();
        let mut begin = |now_ms| uses.begin(&set, None, ip(1), now_ms).map(|_| ());
        assert_eq!([begin(0), begin(0), begin(0)], [Ok(()), Ok(()), Err(Exceeded::AddressRate)]);
        assert_eq!(
            [begin(499), begin(500), begin(501)],
            [Err(Exceeded::AddressRate), Ok(()), Err(Exceeded::AddressRate)]
        );
        assert_eq!([begin(60_000), begin(60_000), begin(60_000)], [Ok(()), Ok(()), Err(Exceeded::AddressRate)]);
    }

    #[test]
    fn bytes_in_a_second_are_bounded_by_the_narrower_of_both() {
        let rate = |bytes| UseLimits { rate_bytes: Some(bytes), ..NONE };
        let set = set(rate(2000), rate(5000));
        let mut uses = Uses::default();
        let ann = uses.begin(&set, Some("ann"), ip(1), 0).unwrap();
        let bob = uses.begin(&set, Some("bob"), ip(1), 0).unwrap();
        assert_eq!((uses.allowance(ann, 0), uses.allowance(bob, 0)), (2000, 2000));
        uses.moved(ann, 4000);
        assert_eq!((uses.allowance(ann, 0), uses.allowance(bob, 0)), (0, 1000));
        assert_eq!(uses.allowance(ann, 1000), 0, "what was too much is made up for");
        assert_eq!(uses.allowance(ann, 1500), 1000);
        assert_eq!(uses.allowance(Lease::default(), 0), usize::MAX);
    }

    #[test]
    fn nothing_is_counted_where_nothing_is_bounded() {
        let mut uses = Uses::default();
        assert_eq!(uses.begin(&set(NONE, NONE), Some("ann"), ip(1), 0), Ok(Lease::default()));
        assert!(uses.keys.is_empty());
    }

    #[test]
    fn those_who_use_nothing_are_forgotten() {
        let set = set(UseLimits { connections: Some(1), ..NONE }, NONE);
        let mut uses = Uses::default();
        for n in 0..10_000 {
            let lease = uses.begin(&set, Some(&n.to_string()), None, n * 1000).unwrap();
            if n > 0 {
                uses.end(lease);
            }
        }
        assert!(uses.keys.len() < 4000, "{}", uses.keys.len());
        assert_eq!(uses.begin(&set, Some("0"), None, 1 << 40), Err(Exceeded::UserConnections));
    }
}
