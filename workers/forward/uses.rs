//! What each user and each client address uses, and whether it may have more.
//!
//! All of it is counted over all workers ([`Share`]). Of connections that are open each worker says how many it has, and
//! adds up what the others say. What is begun and moved is taken from an allowance that all share and that grows with
//! time ([`ipc::allowances`]).
//!
//! Who has used up the allowance of bytes is not read from until it has grown again: nobody is ever made to wait within
//! the loop. Workers that look at the same instant may each move what there is; what was too much is made up for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use ipc::allowances::SECOND_NS;
use ipc::forward::{RuleSet, UseLimits};

use super::share::{Share, address_bytes};
use crate::slab::{Key, Slab};

/// After so many more have come, those who have nothing open are looked for.
const SWEEP: usize = 1024;

/// Whose use is bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    User(Box<str>),
    Address(IpAddr),
}

/// What one of them has here, and what it is called in the ledger.
#[derive(Debug)]
pub struct Use {
    limits: UseLimits,
    /// Connections now, of this worker.
    open: u32,
    open_number: u64,
    begun_number: u64,
    moved_number: u64,
}

impl Use {
    fn new(share: &Share, set: &str, who: &Who, limits: UseLimits) -> Use {
        let (kind, name): (&[u8], _) = match who {
            Who::User(name) => (b"user", name.as_bytes().to_vec()),
            Who::Address(ip) => (b"address", address_bytes(Some(*ip))),
        };
        let number = |what: &[u8]| share.number(&[what, set.as_bytes(), kind, &name]);
        Use {
            limits,
            open: 0,
            open_number: number(b"open"),
            begun_number: number(b"begun"),
            moved_number: number(b"moved"),
        }
    }

    /// How long what one more connection uses takes to grow back; `None` = that is not bounded.
    fn begin_ns(&self) -> Option<u64> {
        self.limits.connections_per_second.map(|most| SECOND_NS / u64::from(most.max(1)))
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
#[derive(Debug)]
pub struct Uses {
    uses: Slab<Use>,
    /// By the set of rules and who it is: each set has its own bounds.
    keys: HashMap<(Box<str>, Who), Key<Use>>,
    sweep_at: usize,
    share: Rc<Share>,
}

impl Uses {
    /// Nobody uses anything here yet.
    #[must_use]
    pub fn new(share: Rc<Share>) -> Uses {
        Uses { uses: Slab::default(), keys: HashMap::new(), sweep_at: SWEEP, share }
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
        let lease = self.lease(set, user, address);
        self.count(lease);
        let begun = self.take_beginning(lease, ns(now_ms));
        if begun.is_err() {
            self.end(lease);
        }
        begun.map(|()| lease)
    }

    /// Takes a beginning for what has been counted, from all it counts against or from none.
    fn take_beginning(&self, lease: Lease, now_ns: u64) -> Result<(), Exceeded> {
        if self.exceeds(lease.user) {
            return Err(Exceeded::UserConnections);
        }
        if self.exceeds(lease.address) {
            return Err(Exceeded::AddressConnections);
        }
        let allowances = self.share.allowances();
        let bounded = |key: Option<Key<Use>>| {
            let one = key.and_then(|key| self.uses.get(key))?;
            one.begin_ns().map(|grows_ns| (one.begun_number, grows_ns))
        };
        let take = |(number, grows_ns)| allowances.take(number, now_ns, grows_ns, SECOND_NS);
        let user = bounded(lease.user);
        if !user.is_none_or(take) {
            return Err(Exceeded::UserRate);
        }
        if !bounded(lease.address).is_none_or(take) {
            if let Some((number, grows_ns)) = user {
                allowances.give_back(number, now_ns, grows_ns);
            }
            return Err(Exceeded::AddressRate);
        }
        Ok(())
    }

    /// Counts a connection that another worker has begun, whatever is bounded: it is there.
    pub fn take_over(&mut self, set: &RuleSet, user: Option<&str>, address: Option<IpAddr>) -> Lease {
        let lease = self.lease(set, user, address);
        self.count(lease);
        lease
    }

    /// What a connection of theirs counts against. Nothing is counted yet.
    fn lease(&mut self, set: &RuleSet, user: Option<&str>, address: Option<IpAddr>) -> Lease {
        // Not in between: one that has been found and has nothing open yet would be forgotten.
        if self.keys.len() >= self.sweep_at {
            self.sweep();
        }
        let user = user.filter(|_| !set.per_user.is_none()).map(|user| Who::User(user.into()));
        let address = address.filter(|_| !set.per_address.is_none()).map(|ip| Who::Address(ip.to_canonical()));
        let user = user.and_then(|who| self.find(set, who, set.per_user));
        let address = address.and_then(|who| self.find(set, who, set.per_address));
        Lease { user, address }
    }

    fn count(&mut self, lease: Lease) {
        for key in [lease.user, lease.address].into_iter().flatten() {
            if let Some(one) = self.uses.get_mut(key) {
                one.open += 1;
                self.share.set(one.open_number, one.open);
            }
        }
    }

    /// Whether there are more than there may be, over all workers.
    fn exceeds(&self, key: Option<Key<Use>>) -> bool {
        let Some(one) = key.and_then(|key| self.uses.get(key)) else { return false };
        let Some(most) = one.limits.connections else { return false };
        u64::from(one.open).saturating_add(self.share.elsewhere(one.open_number)) > u64::from(most)
    }

    fn find(&mut self, set: &RuleSet, who: Who, limits: UseLimits) -> Option<Key<Use>> {
        let name = (set.name.as_str().into(), who);
        if let Some(&key) = self.keys.get(&name) {
            if let Some(one) = self.uses.get_mut(key) {
                // A reload may have changed them.
                one.limits = limits;
            }
            return Some(key);
        }
        let key = self.uses.insert(Use::new(&self.share, &name.0, &name.1, limits)).ok()?;
        self.keys.insert(name, key);
        Some(key)
    }

    /// A connection has ended.
    pub fn end(&mut self, lease: Lease) {
        for key in [lease.user, lease.address].into_iter().flatten() {
            if let Some(one) = self.uses.get_mut(key) {
                one.open = one.open.saturating_sub(1);
                self.share.set(one.open_number, one.open);
            }
        }
    }

    /// Whose bytes are bounded, and to how many in a second.
    fn rates(&self, lease: Lease) -> impl Iterator<Item = (u64, u64)> {
        let uses = [lease.user, lease.address].into_iter().flatten().filter_map(|key| self.uses.get(key));
        uses.filter_map(|one| Some((one.moved_number, one.limits.rate_bytes?.max(1))))
    }

    /// How many bytes a connection may move now; 0 = it must wait, [`usize::MAX`] = nothing bounds it.
    #[must_use]
    pub fn allowance(&self, lease: Lease, now_ms: u64) -> usize {
        let now_ns = ns(now_ms);
        let left = |(number, rate): (u64, u64)| {
            let ahead_ns = self.share.allowances().until(number, now_ns).saturating_sub(now_ns);
            let bytes = u128::from(SECOND_NS.saturating_sub(ahead_ns)) * u128::from(rate) / u128::from(SECOND_NS);
            usize::try_from(bytes).unwrap_or(usize::MAX)
        };
        self.rates(lease).map(left).min().unwrap_or(usize::MAX)
    }

    /// A connection has moved so many.
    pub fn moved(&self, lease: Lease, bytes: u64, now_ms: u64) {
        if bytes == 0 {
            return;
        }
        for (number, rate) in self.rates(lease) {
            let grows_ns = (u128::from(bytes) * u128::from(SECOND_NS)).div_ceil(u128::from(rate));
            self.share.allowances().use_up(number, ns(now_ms), u64::try_from(grows_ns).unwrap_or(u64::MAX));
        }
    }

    /// Forgets those who have nothing open: what they have used up is not here.
    fn sweep(&mut self) {
        let uses = &mut self.uses;
        self.keys.retain(|_, key| {
            let keep = uses.get(*key).is_some_and(|one| one.open > 0);
            if !keep {
                uses.remove(*key);
            }
            keep
        });
        self.sweep_at = 2 * self.keys.len() + SWEEP;
    }
}

fn ns(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use ipc::ledger::Rows;

    use super::super::share::tests::{alone, share_of};
    use super::*;

    fn uses() -> Uses {
        Uses::new(Rc::new(alone()))
    }

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
        let mut uses = uses();
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
        let master = Rows::new().unwrap();
        let worker = || Uses::new(Rc::new(share_of(&master)));
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
        let taken = a.take_over(&set, Some("ann"), ip(4));
        a.take_over(&set, Some("ann"), ip(4));
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
        let mut uses = uses();
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
        let mut uses = uses();
        let ann = uses.begin(&set, Some("ann"), ip(1), 0).unwrap();
        let bob = uses.begin(&set, Some("bob"), ip(1), 0).unwrap();
        assert_eq!((uses.allowance(ann, 0), uses.allowance(bob, 0)), (2000, 2000));
        uses.moved(ann, 4000, 0);
        assert_eq!((uses.allowance(ann, 0), uses.allowance(bob, 0)), (0, 1000));
        assert_eq!(uses.allowance(ann, 1000), 0, "what was too much is made up for");
        assert_eq!(uses.allowance(ann, 1500), 1000);
        assert_eq!(uses.allowance(Lease::default(), 0), usize::MAX);
    }

    #[test]
    fn what_is_begun_and_moved_is_bounded_over_all_workers_and_the_dead_have_used_theirs() {
        let master = Rows::new().unwrap();
        let worker = || Uses::new(Rc::new(share_of(&master)));
        let (mut a, mut b) = (worker(), worker());
        let limits = UseLimits { connections_per_second: Some(3), rate_bytes: Some(1000), ..NONE };
        let set = set(limits, UseLimits { connections_per_second: Some(4), ..NONE });
        let ann = a.begin(&set, Some("ann"), ip(1), 5000).unwrap();
        b.begin(&set, Some("ann"), ip(1), 5000).unwrap();
        master.release(0);
        b.begin(&set, Some("bob"), ip(1), 5000).unwrap();
        a.begin(&set, Some("ann"), ip(1), 5000).unwrap();
        for one in [&mut a, &mut b] {
            assert_eq!(one.begin(&set, Some("ann"), ip(2), 5000), Err(Exceeded::UserRate));
            // What was refused for one's sake has not been taken from the other's.
            for _ in 0..3 {
                assert_eq!(one.begin(&set, Some("cy"), ip(1), 5000), Err(Exceeded::AddressRate));
            }
        }
        for _ in 0..3 {
            b.begin(&set, Some("cy"), ip(3), 5000).unwrap();
        }
        a.moved(ann, 600, 5000);
        let there = b.begin(&set, Some("ann"), ip(2), 6000).unwrap();
        assert_eq!(b.allowance(there, 6000), 1000);
        a.moved(ann, 600, 6000);
        assert_eq!((a.allowance(ann, 6000), b.allowance(there, 6000)), (400, 400));
        b.moved(there, 600, 6000);
        assert_eq!((a.allowance(ann, 6199), a.allowance(ann, 6200), a.allowance(ann, 6300)), (0, 0, 100));
    }

    #[test]
    fn nothing_is_counted_where_nothing_is_bounded() {
        let mut uses = uses();
        assert_eq!(uses.begin(&set(NONE, NONE), Some("ann"), ip(1), 0), Ok(Lease::default()));
        assert!(uses.keys.is_empty());
    }

    #[test]
    fn whoever_begins_is_not_forgotten_for_the_address_it_begins_from() {
        let limits = UseLimits { connections: Some(1), ..NONE };
        let (set, mut uses) = (set(limits, limits), uses());
        for n in 0..5000_u32 {
            let address = Some(std::net::Ipv4Addr::from_bits(n).into());
            let lease = uses.begin(&set, Some("ann"), address, 0).unwrap();
            assert_eq!(uses.begin(&set, Some("ann"), ip(1), 0), Err(Exceeded::UserConnections), "{n}");
            uses.end(lease);
        }
    }

    #[test]
    fn those_who_use_nothing_are_forgotten() {
        let set = set(UseLimits { connections: Some(1), ..NONE }, NONE);
        let mut uses = uses();
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
