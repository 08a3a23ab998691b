//! How many wrong passwords there may be, and who is believed to be more than a guesser.
//!
//! Each name has an allowance at each address, and each address one for all names together. Both are token buckets with
//! room for a minute's worth. An attempt takes from them when it gets into the line and gives back what it took when it
//! was right or never computed, so that attempts at the same time do not exceed them either.
//!
//! Many people may share one address. So a name that has been proved at an address within a day or so does not draw on
//! what all names have together there: guesses at other names do not lock it out. One client that goes on with an old
//! password uses up its own name's allowance, and is then refused before it takes anything from the others.
//!
//! All tables are bounded, and an allowance that is whole again by what is given back has no entry. So nothing fills them
//! but attempts that wait and attempts that were computed and wrong: whoever wants a wrong password forgotten early has
//! to have [`MOST`] others computed, but for those that may wait, within a minute. It knows no password and reads no
//! clock.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};

use ipc::forward::FailureLimits;

use super::line::Source;

/// Entries of one generation of a table, at most; each table has two generations.
const MOST: usize = 32_768;
/// After so long without a failure an allowance is whole again.
const MINUTE_MS: u64 = 60_000;
/// How long a proved name is known at an address at least, unless more than [`MOST`] others are proved meanwhile.
const PROVED_MS: u64 = 24 * 60 * MINUTE_MS;

/// A table whose entries are forgotten when they have not been touched for a while. The older half goes at once when the
/// younger is full.
#[derive(Debug)]
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    turned_ms: u64,
    keep_ms: u64,
}

impl<K: Copy + Eq + Hash, V: Copy> Recent<K, V> {
    fn new(keep_ms: u64) -> Recent<K, V> {
        Recent { young: HashMap::new(), old: HashMap::new(), turned_ms: 0, keep_ms }
    }

    /// What is known of `key`. Nothing is touched by it.
    fn get(&self, key: K) -> Option<V> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn put(&mut self, key: K, value: V, now_ms: u64) {
        let late = now_ms >= self.turned_ms.saturating_add(self.keep_ms);
        if late || self.young.len() >= MOST && !self.young.contains_key(&key) {
            let older = now_ms >= self.turned_ms.saturating_add(2 * self.keep_ms);
            self.old = std::mem::take(&mut self.young);
            if older {
                self.old.clear();
            }
            self.turned_ms = now_ms;
        }
        self.young.insert(key, value);
    }

    fn remove(&mut self, key: K) {
        self.young.remove(&key);
        self.old.remove(&key);
    }
}

/// What is left of an allowance: failures in sixty-thousandths, so that it grows by its size with each millisecond.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u64,
    at_ms: u64,
}

const ONE: u64 = MINUTE_MS;

impl Bucket {
    fn new(per_minute: u32, now_ms: u64) -> Bucket {
        Bucket { left: u64::from(per_minute) * ONE, at_ms: now_ms }
    }

    fn grown(self, per_minute: u32, now_ms: u64) -> Bucket {
        let grown = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(per_minute));
        Bucket { left: self.left.saturating_add(grown).min(u64::from(per_minute) * ONE), at_ms: now_ms }
    }
}

/// A table of allowances.
#[derive(Debug)]
struct Buckets<K>(Recent<K, Bucket>);

impl<K: Copy + Eq + Hash> Buckets<K> {
    fn now(&self, key: K, per_minute: u32, now_ms: u64) -> Bucket {
        self.0.get(key).map_or(Bucket::new(per_minute, now_ms), |bucket| bucket.grown(per_minute, now_ms))
    }

    fn has_one(&self, key: K, per_minute: u32, now_ms: u64) -> bool {
        self.now(key, per_minute, now_ms).left >= ONE
    }

    fn take(&mut self, key: K, per_minute: u32, now_ms: u64) {
        let bucket = self.now(key, per_minute, now_ms);
        self.0.put(key, Bucket { left: bucket.left.saturating_sub(ONE), ..bucket }, now_ms);
    }

    fn give_back(&mut self, key: K, per_minute: u32, now_ms: u64) {
        // Without an entry it is whole.
        let Some(bucket) = self.0.get(key).map(|bucket| bucket.grown(per_minute, now_ms)) else { return };
        let left = bucket.left.saturating_add(ONE);
        if left >= u64::from(per_minute) * ONE {
            self.0.remove(key);
        } else {
            self.0.put(key, Bucket { left, ..bucket }, now_ms);
        }
    }
}

/// What an attempt takes, and how much of it there is in a minute. Once it has been taken it is to be given back with
/// [`Failures::give_back`] unless the attempt was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    name: Option<((Source, u64), u32)>,
    source: Option<(Source, u32)>,
}

/// Which allowance is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// That of the name at the address.
    OfName,
    /// That of the address.
    OfAddress,
}

impl TooMany {
    /// In words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            TooMany::OfName => "too many wrong passwords for this user from this address",
            TooMany::OfAddress => "too many wrong passwords from this address",
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Failures {
    /// Names are kept as a keyed hash: they may be as long as a head allows.
    hasher: RandomState,
    of_names: Buckets<(Source, u64)>,
    of_addresses: Buckets<Source>,
    proved: Recent<(Source, u64), ()>,
}

impl Default for Failures {
    fn default() -> Failures {
        Failures {
            hasher: RandomState::new(),
            of_names: Buckets(Recent::new(MINUTE_MS)),
            of_addresses: Buckets(Recent::new(MINUTE_MS)),
            proved: Recent::new(PROVED_MS),
        }
    }
}

impl Failures {
    /// Whether `name` has been proved at `source` before.
    #[must_use]
    pub fn is_proved(&self, source: Source, name: &str) -> bool {
        self.proved.get((source, self.hasher.hash_one(name))).is_some()
    }

    /// `name` has been proved at `source`.
    pub fn prove(&mut self, source: Source, name: &str, now_ms: u64) {
        self.proved.put((source, self.hasher.hash_one(name)), (), now_ms);
    }

    /// What an attempt needs. Nothing is taken yet.
    ///
    /// # Errors
    /// Which allowance is used up.
    pub fn charge(&self, limits: FailureLimits, source: Source, name: &str, now_ms: u64) -> Result<Charge, TooMany> {
        let key = (source, self.hasher.hash_one(name));
        let name = limits.per_minute.map(|most| (key, most));
        let source = limits.per_minute_address.filter(|_| self.proved.get(key).is_none()).map(|most| (source, most));
        if name.is_some_and(|(key, most)| !self.of_names.has_one(key, most, now_ms)) {
            return Err(TooMany::OfName);
        }
        if source.is_some_and(|(source, most)| !self.of_addresses.has_one(source, most, now_ms)) {
            return Err(TooMany::OfAddress);
        }
        Ok(Charge { name, source })
    }

    /// Takes it, at the same time at which it was found to be there.
    pub fn take(&mut self, charge: Charge, now_ms: u64) {
        if let Some((key, most)) = charge.name {
            self.of_names.take(key, most, now_ms);
        }
        if let Some((source, most)) = charge.source {
            self.of_addresses.take(source, most, now_ms);
        }
    }

    /// An attempt for which this was taken was right, or has not been computed.
    pub fn give_back(&mut self, charge: Charge, now_ms: u64) {
        if let Some((key, most)) = charge.name {
            self.of_names.give_back(key, most, now_ms);
        }
        if let Some((source, most)) = charge.source {
            self.of_addresses.give_back(source, most, now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FailureLimits = FailureLimits { per_minute: Some(3), per_minute_address: Some(5) };

    impl Failures {
        fn begin(&mut self, limits: FailureLimits, at: Source, name: &str, now_ms: u64) -> Result<Charge, TooMany> {
            let charge = self.charge(limits, at, name, now_ms)?;
            self.take(charge, now_ms);
            Ok(charge)
        }
    }

    fn at(last: u8) -> Source {
        Source::of(Some([192, 0, 2, last].into()))
    }

    #[test]
    fn failures_of_a_name_at_an_address_are_bounded_and_forgiven_with_time() {
        let mut failures = Failures::default();
        let mut fail = |source, name: &str, now_ms| failures.begin(LIMITS, source, name, now_ms).map(|_| ());
        for _ in 0..3 {
            assert_eq!(fail(at(1), "ann", 0), Ok(()));
        }
        assert_eq!(fail(at(1), "ann", 0), Err(TooMany::OfName));
        assert_eq!(fail(at(1), "bob", 0), Ok(()), "another name");
        assert_eq!(fail(at(2), "ann", 0), Ok(()), "another address");
        assert_eq!(fail(at(1), "ann", 19_999), Err(TooMany::OfName));
        assert_eq!(fail(at(1), "ann", 20_000), Ok(()));
        assert_eq!(fail(at(1), "ann", 20_001), Err(TooMany::OfName));
    }

    #[test]
    fn failures_of_an_address_are_bounded_but_not_for_names_proved_there() {
        let mut failures = Failures::default();
        failures.prove(at(1), "ann", 0);
        for name in ["a", "b", "c", "d", "e"] {
            failures.begin(LIMITS, at(1), name, 0).unwrap();
        }
        assert_eq!(failures.begin(LIMITS, at(1), "f", 0), Err(TooMany::OfAddress));
        assert!(failures.begin(LIMITS, at(1), "ann", 0).is_ok(), "it has been here before");
        assert!(failures.begin(LIMITS, at(2), "f", 0).is_ok());
        failures.prove(at(2), "g", 0);
        assert_eq!(failures.begin(LIMITS, at(1), "g", 0), Err(TooMany::OfAddress), "it was proved elsewhere");
    }

    #[test]
    fn one_name_alone_does_not_use_up_what_the_address_has() {
        let mut failures = Failures::default();
        for _ in 0..100 {
            let _ = failures.begin(LIMITS, at(1), "ann", 0);
        }
        assert!(failures.begin(LIMITS, at(1), "bob", 0).is_ok());
        assert!(failures.begin(LIMITS, at(1), "bob", 0).is_ok());
    }

    #[test]
    fn what_was_right_costs_nothing() {
        let mut failures = Failures::default();
        for _ in 0..100 {
            let charge = failures.begin(LIMITS, at(1), "ann", 0).unwrap();
            failures.give_back(charge, 0);
        }
        // Nor does giving back make more than there was.
        for _ in 0..3 {
            failures.begin(LIMITS, at(1), "ann", 0).unwrap();
        }
        assert_eq!(failures.begin(LIMITS, at(1), "ann", 0), Err(TooMany::OfName));
    }

    #[test]
    fn what_is_given_back_leaves_no_entry_and_makes_nobody_forgotten() {
        let mut failures = Failures::default();
        for _ in 0..3 {
            failures.begin(LIMITS, at(1), "ann", 0).unwrap();
        }
        for n in 0..70_000_u32 {
            let charge = failures.begin(LIMITS, at(1), &n.to_string(), 0).unwrap();
            failures.give_back(charge, 0);
        }
        assert_eq!(failures.begin(LIMITS, at(1), "ann", 0), Err(TooMany::OfName));
        assert_eq!((failures.of_names.0.young.len(), failures.of_names.0.old.len()), (1, 0));
        // Nor does anything come up again that was known before the generations turned.
        let first = failures.begin(LIMITS, at(2), "bob", 0).unwrap();
        failures.begin(LIMITS, at(3), "cy", 60_000).unwrap();
        failures.begin(LIMITS, at(2), "bob", 60_000).unwrap();
        failures.give_back(first, 60_000);
        assert_eq!((failures.of_names.0.young.len(), failures.of_names.0.old.len()), (1, 1), "cy and ann");
    }

    #[test]
    fn without_limits_nothing_is_kept() {
        let mut failures = Failures::default();
        let none = FailureLimits { per_minute: None, per_minute_address: None };
        for _ in 0..100 {
            assert!(failures.begin(none, at(1), "ann", 0).is_ok());
        }
        assert!(failures.of_names.0.young.is_empty() && failures.of_addresses.0.young.is_empty());
    }

    #[test]
    fn tables_are_bounded_and_nobody_is_forgotten_within_a_minute() {
        let mut failures = Failures::default();
        for _ in 0..3 {
            failures.begin(LIMITS, at(1), "ann", 0).unwrap();
        }
        let none = FailureLimits { per_minute: Some(3), per_minute_address: None };
        for n in 0..40_000_u32 {
            let source = Source::of(Some(std::net::Ipv4Addr::from_bits(n).into()));
            failures.begin(none, source, "x", 0).unwrap();
            failures.prove(source, "x", 0);
        }
        assert_eq!(failures.begin(LIMITS, at(1), "ann", 0), Err(TooMany::OfName), "in the older generation");
        for n in 0..200_000_u32 {
            failures.begin(none, at(1), &n.to_string(), 0).unwrap();
            failures.prove(at(1), &n.to_string(), 0);
        }
        let of_names = &failures.of_names.0;
        assert!(of_names.young.len() <= MOST && of_names.old.len() <= MOST);
        assert!(failures.proved.young.len() <= MOST && failures.proved.old.len() <= MOST);
        // Turned by time: what was touched less than a minute before is still there.
        let mut failures = Failures::default();
        for _ in 0..3 {
            failures.begin(LIMITS, at(1), "ann", 59_999).unwrap();
        }
        failures.begin(LIMITS, at(1), "bob", 60_000).unwrap();
        assert_eq!(failures.begin(LIMITS, at(1), "ann", 60_000), Err(TooMany::OfName));
    }
}
