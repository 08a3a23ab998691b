//! How many wrong passwords there may be, and who is believed to be more than a guesser.
//!
//! Each name has an allowance at each address, and each address one for all names together, over all workers
//! ([`Share`]). Both have room for a minute's worth. A wrong password takes from them once it has been computed; an attempt
//! is let into the line, and computed, only while there is something left. So right passwords take nothing, however many
//! come at once, and of what workers compute at the same instant no more is wrong than there are workers beyond what may
//! be; that is made up for.
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
#[derive(Debug, Clone, Copy)]
struct Part {
    number: u64,
    grows_ns: u64,
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

    /// Whether there may be one more wrong password.
    ///
    /// # Errors
    /// Which allowance is used up.
    pub fn allow(&self, limits: FailureLimits, source: Source, name: &str, now_ms: u64) -> Result<(), TooMany> {
        let now = ns(now_ms);
        let left = |part: Part| {
            let until = self.share.failures().until(part.number, now);
            until.saturating_add(part.grows_ns) <= now.saturating_add(MINUTE_NS)
        };
        let (of_name, of_source) = self.parts(limits, source, name, now_ms);
        if !of_name.is_none_or(left) {
            return Err(TooMany::OfName);
        }
        if !of_source.is_none_or(left) {
            return Err(TooMany::OfAddress);
        }
        Ok(())
    }

    /// A password was wrong.
    pub fn wrong(&self, limits: FailureLimits, source: Source, name: &str, now_ms: u64) {
        let (of_name, of_source) = self.parts(limits, source, name, now_ms);
        for part in [of_name, of_source].into_iter().flatten() {
            self.share.failures().use_up(part.number, ns(now_ms), part.grows_ns);
        }
    }

    /// What a wrong password for `name` from `source` takes from.
    fn parts(&self, limits: FailureLimits, source: Source, name: &str, now_ms: u64) -> (Option<Part>, Option<Part>) {
        let part = |number, per_minute: u32| Part { number, grows_ns: MINUTE_NS / u64::from(per_minute.max(1)) };
        let of_name = limits.per_minute.map(|most| part(self.name_at(source, name), most));
        let of_source = limits.per_minute_address.filter(|_| !self.is_proved(source, name, now_ms));
        (of_name, of_source.map(|most| part(self.all_at(source), most)))
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

    impl Failures {
        /// An attempt that is wrong, if it is made.
        fn take(&self, limits: FailureLimits, at: Source, name: &str, now_ms: u64) -> Result<(), TooMany> {
            self.allow(limits, at, name, now_ms)?;
            self.wrong(limits, at, name, now_ms);
            Ok(())
        }
    }

    fn at(last: u8) -> Source {
        Source::of(Some([192, 0, 2, last].into()))
    }

    #[test]
    fn failures_of_a_name_at_an_address_are_bounded_and_forgiven_with_time() {
        let failures = failures();
        let fail = |source, name: &str, now_ms| failures.take(LIMITS, source, name, now_ms);
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
    fn what_was_computed_at_the_same_time_and_wrong_is_made_up_for() {
        let failures = failures();
        for _ in 0..5 {
            assert_eq!(failures.allow(LIMITS, at(1), "ann", 0), Ok(()));
        }
        (0..5).for_each(|_| failures.wrong(LIMITS, at(1), "ann", 0));
        assert_eq!(failures.allow(LIMITS, at(1), "ann", 59_999), Err(TooMany::OfName));
        assert_eq!(failures.allow(LIMITS, at(1), "ann", 60_000), Ok(()));
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
