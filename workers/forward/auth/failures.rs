//! How many wrong passwords there may be, and who is believed to be more than a guesser.
//!
//! Each name has an allowance at each address, and each address one for all names together, over all workers
//! ([`Share`]). Both have room for a minute's worth. An attempt takes from them when it gets into the line and gives back
//! what it took when it was right or never computed, so that attempts at the same time do not exceed them either. One
//! whose worker is killed has been wrong.
//!
//! Many people may share one address. So a name that has been proved at an address within a day does not draw on what
//! all names have together there: guesses at other names do not lock it out. One client that goes on with an old password
//! uses up its own name's allowance, and is then refused before it takes anything from the others.
//!
//! An allowance that is whole needs no room, and of those that are not the one that is soonest whole is forgotten first
//! ([`ipc::allowances`]). It knows no password and reads no clock.

use std::rc::Rc;

use ipc::allowances::SECOND_NS;
use ipc::forward::FailureLimits;

use super::super::share::{Share, address_bytes};
use super::line::Source;

/// After so long without a failure an allowance is whole again.
const MINUTE_NS: u64 = 60 * SECOND_NS;
/// How long a proved name is known at an address.
const PROVED_NS: u64 = 24 * 60 * MINUTE_NS;
/// It is written again only when so much of that is over, since many prove themselves with each request.
const PROVE_AGAIN_NS: u64 = MINUTE_NS;

/// An allowance, and how long what an attempt takes from it takes to grow back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    number: u64,
    grows_ns: u64,
}

/// What an attempt has taken: to be given back with [`Failures::give_back`] unless the attempt was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    name: Option<Part>,
    source: Option<Part>,
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
    share: Rc<Share>,
}

impl Failures {
    /// Those of all workers.
    #[must_use]
    pub fn new(share: Rc<Share>) -> Failures {
        Failures { share }
    }

    /// Whether `name` has been proved at `source` within a day.
    #[must_use]
    pub fn is_proved(&self, source: Source, name: &str, now_ms: u64) -> bool {
        let now = ns(now_ms);
        self.share.proofs().until(self.name_at(source, name), now) > now
    }

    /// `name` has been proved at `source`.
    pub fn prove(&self, source: Source, name: &str, now_ms: u64) {
        let (now, number, proofs) = (ns(now_ms), self.name_at(source, name), self.share.proofs());
        if proofs.until(number, now) < now.saturating_add(PROVED_NS - PROVE_AGAIN_NS) {
            proofs.keep(number, now, now.saturating_add(PROVED_NS));
        }
    }

    /// Takes what an attempt needs, or nothing.
    ///
    /// # Errors
    /// Which allowance is used up.
    pub fn take(&self, limits: FailureLimits, source: Source, name: &str, now_ms: u64) -> Result<Charge, TooMany> {
        let number = self.name_at(source, name);
        let part = |number, per_minute: u32| Part { number, grows_ns: MINUTE_NS / u64::from(per_minute.max(1)) };
        let of_name = limits.per_minute.map(|most| part(number, most));
        let of_source = limits.per_minute_address.filter(|_| !self.is_proved(source, name, now_ms));
        let of_source = of_source.map(|most| part(self.all_at(source), most));
        let charge = Charge { name: of_name, source: None };
        if !of_name.is_none_or(|part| self.take_part(part, now_ms)) {
            return Err(TooMany::OfName);
        }
        if !of_source.is_none_or(|part| self.take_part(part, now_ms)) {
            self.give_back(charge, now_ms);
            return Err(TooMany::OfAddress);
        }
        Ok(Charge { source: of_source, ..charge })
    }

    /// An attempt for which this was taken was right, or has not been computed.
    pub fn give_back(&self, charge: Charge, now_ms: u64) {
        for part in [charge.name, charge.source].into_iter().flatten() {
            self.share.allowances().give_back(part.number, ns(now_ms), part.grows_ns);
        }
    }

    fn take_part(&self, part: Part, now_ms: u64) -> bool {
        self.share.allowances().take(part.number, ns(now_ms), part.grows_ns, MINUTE_NS)
    }

    /// What a name at an address is called where all workers count.
    fn name_at(&self, source: Source, name: &str) -> u64 {
        self.share.number(&[b"password of", &address_bytes(source.address()), name.as_bytes()])
    }

    /// What all names at an address are called there.
    fn all_at(&self, source: Source) -> u64 {
        self.share.number(&[b"passwords from", &address_bytes(source.address())])
    }
}

fn ns(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use ipc::ledger::Rows;

    use super::super::super::share::tests::{alone, share_of};
    use super::*;

    const LIMITS: FailureLimits = FailureLimits { per_minute: Some(3), per_minute_address: Some(5) };

    fn failures() -> Failures {
        Failures::new(Rc::new(alone()))
    }

    fn at(last: u8) -> Source {
        Source::of(Some([192, 0, 2, last].into()))
    }

    #[test]
    fn failures_of_a_name_at_an_address_are_bounded_and_forgiven_with_time() {
        let failures = failures();
        let fail = |source, name: &str, now_ms| failures.take(LIMITS, source, name, now_ms).map(|_| ());
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
        let failures = failures();
        failures.prove(at(1), "ann", 0);
        for name in ["a", "b", "c", "d", "e"] {
            failures.take(LIMITS, at(1), name, 0).unwrap();
        }
        assert_eq!(failures.take(LIMITS, at(1), "f", 0), Err(TooMany::OfAddress));
        assert!(failures.take(LIMITS, at(1), "ann", 0).is_ok(), "it has been here before");
        assert!(failures.take(LIMITS, at(2), "f", 0).is_ok());
        failures.prove(at(2), "g", 0);
        assert_eq!(failures.take(LIMITS, at(1), "g", 0), Err(TooMany::OfAddress), "it was proved elsewhere");
    }

    #[test]
    fn one_name_alone_does_not_use_up_what_the_address_has() {
        let failures = failures();
        for _ in 0..100 {
            let _ = failures.take(LIMITS, at(1), "ann", 0);
        }
        assert!(failures.take(LIMITS, at(1), "bob", 0).is_ok());
        assert!(failures.take(LIMITS, at(1), "bob", 0).is_ok());
    }

    #[test]
    fn what_was_right_costs_nothing() {
        let failures = failures();
        for _ in 0..100 {
            let charge = failures.take(LIMITS, at(1), "ann", 0).unwrap();
            failures.give_back(charge, 0);
        }
        // Nor does giving back make more than there was.
        for _ in 0..3 {
            failures.take(LIMITS, at(1), "ann", 0).unwrap();
        }
        assert_eq!(failures.take(LIMITS, at(1), "ann", 0), Err(TooMany::OfName));
    }

    #[test]
    fn what_was_computed_at_the_same_time_by_many_and_given_back_makes_nobody_forgotten() {
        let failures = failures();
        for _ in 0..3 {
            failures.take(LIMITS, at(1), "ann", 0).unwrap();
        }
        for n in 0..70_000_u32 {
            let charge = failures.take(LIMITS, at(1), &n.to_string(), 0).unwrap();
            failures.give_back(charge, 0);
        }
        assert_eq!(failures.take(LIMITS, at(1), "ann", 0), Err(TooMany::OfName));
    }

    #[test]
    fn all_workers_count_together_and_a_dead_one_has_counted() {
        let master = Rows::new().unwrap();
        let worker = || Failures::new(Rc::new(share_of(&master)));
        let (a, b) = (worker(), worker());
        for one in [&a, &b, &a] {
            one.take(LIMITS, at(1), "ann", 0).unwrap();
        }
        assert_eq!(b.take(LIMITS, at(1), "ann", 0), Err(TooMany::OfName));
        drop(a);
        master.release(0);
        let c = worker();
        assert_eq!(c.take(LIMITS, at(1), "ann", 0), Err(TooMany::OfName));
        for name in ["bob", "cy"] {
            c.take(LIMITS, at(1), name, 0).unwrap();
        }
        assert_eq!(b.take(LIMITS, at(1), "dan", 0), Err(TooMany::OfAddress));
        // What was refused for the address has not been taken from the name.
        c.prove(at(1), "dan", 0);
        for _ in 0..3 {
            b.take(LIMITS, at(1), "dan", 0).unwrap();
        }
        assert_eq!(c.take(LIMITS, at(1), "dan", 0), Err(TooMany::OfName));
    }

    #[test]
    fn a_proof_holds_for_a_day() {
        let failures = failures();
        const DAY_MS: u64 = 24 * 3600 * 1000;
        failures.prove(at(1), "ann", 5);
        assert!(failures.is_proved(at(1), "ann", DAY_MS + 4) && !failures.is_proved(at(1), "ann", DAY_MS + 5));
        assert!(!failures.is_proved(at(2), "ann", 6) && !failures.is_proved(at(1), "bob", 6));
        failures.prove(at(1), "ann", 70_000);
        assert!(failures.is_proved(at(1), "ann", DAY_MS + 69_999));
    }
}
