use std::net::IpAddr;
use std::time::{Duration, Instant};

use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use ipc::forward::User;
use mio::{Events, Poll};

use super::super::share::tests::alone;
use super::*;

const NO_LIMITS: FailureLimits = FailureLimits { per_minute: None, per_minute_address: None };

fn argon2id(password: &str) -> String {
    let cheap = Params::new(8, 1, 1, None).unwrap();
    let salt = SaltString::from_b64("c29tZXNhbHQ").unwrap();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, cheap)
        .hash_password(password.as_bytes(), &salt)
        .unwrap()
        .to_string()
}

fn users(list: &[(&str, String)]) -> Users {
    let user = |(name, hash): &(&str, String)| User { name: (*name).to_owned(), hash: hash.clone() };
    Users::new(&list.iter().map(user).collect::<Vec<_>>())
}

/// Address 1 unless another is said.
const HERE: u8 = 1;

struct Bench {
    poll: Poll,
    auth: Auth<u32>,
    users: Users,
    limits: FailureLimits,
    now_ms: u64,
}

impl Bench {
    fn new(list: &[(&str, String)]) -> Bench {
        let poll = Poll::new().unwrap();
        Bench { poll, auth: Auth::new(Rc::new(alone())), users: users(list), limits: NO_LIMITS, now_ms: 1000 }
    }

    fn check_at(&mut self, address: u8, user: &str, password: &str, waiter: u32) -> Check {
        let source = Source::of(Some(IpAddr::from([192, 0, 2, address])));
        let way = (self.poll.registry(), Token(7));
        let claim = Claim { user, password: password.as_bytes(), source };
        self.auth.check((&self.users, self.limits), claim, waiter, self.now_ms, way)
    }

    fn check(&mut self, user: &str, password: &str, waiter: u32) -> Check {
        self.check_at(HERE, user, password, waiter)
    }

    /// Waits for the loop to be woken until `count` have finished. In the order in which they did.
    fn finished(&mut self, count: usize) -> Vec<(u32, Verdict)> {
        let (mut all, mut events) = (Vec::new(), Events::with_capacity(4));
        let end = Instant::now() + Duration::from_secs(20);
        while all.len() < count {
            assert!(Instant::now() < end, "{} of {count}", all.len());
            self.poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
            assert!(events.iter().all(|event| event.token() == Token(7)));
            all.extend(self.auth.finished(self.now_ms));
        }
        all
    }

    fn verdict(&mut self, user: &str, password: &str) -> bool {
        assert_eq!(self.check(user, password, 1), Check::Pending);
        match self.finished(1)[..] {
            [(1, Verdict::Right)] => true,
            [(1, Verdict::Wrong)] => false,
            ref other => panic!("{other:?}"),
        }
    }

    fn is_at_rest(&self) -> bool {
        self.auth.waiting.is_empty()
            && self.auth.asked.is_empty()
            && self.auth.line.is_empty()
            && self.auth.computing.is_none()
    }
}

#[test]
fn right_passwords_are_right_and_others_are_not() {
    let bcrypt = bcrypt::hash("pw", 4).unwrap();
    let mut bench = Bench::new(&[("ann", argon2id("secret")), ("bob", bcrypt)]);
    assert!(!bench.verdict("ann", "Secret"));
    assert!(!bench.verdict("ann", ""));
    assert!(!bench.verdict("ann", "pw"));
    assert!(!bench.verdict("bob", "secret"));
    assert!(bench.verdict("ann", "secret"));
    assert!(bench.verdict("bob", "pw"));
    assert!(!bench.verdict("bob", "pw\0"));
    assert!(bench.is_at_rest());
}

#[test]
fn an_unknown_user_is_checked_all_the_same_and_never_right() {
    let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
    // What is computed for eve is ann's hash, so that the password is right but for the name.
    assert!(!bench.verdict("eve", "secret"));
    assert!(!bench.verdict("eve", "secret"), "nor is it remembered");
    let mut nobody = Bench::new(&[]);
    assert_eq!(nobody.check("ann", "secret", 1), Check::Wrong);
}

#[test]
fn a_right_password_is_remembered_while_it_is_used_and_under_its_hash_only() {
    let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
    assert!(bench.verdict("ann", "secret"));
    assert_eq!(bench.check("ann", "secret", 1), Check::Right);
    assert!(!bench.verdict("ann", "other"));
    for _ in 0..3 {
        bench.now_ms += REMEMBER_MS - 1;
        assert_eq!(bench.check("ann", "secret", 1), Check::Right, "a wrong one changes nothing");
    }
    bench.now_ms += REMEMBER_MS;
    assert!(bench.verdict("ann", "secret"));
    assert_eq!(bench.check("ann", "secret", 1), Check::Right);
    bench.users = users(&[("ann", argon2id("changed"))]);
    assert!(!bench.verdict("ann", "secret"));
    assert!(bench.verdict("ann", "changed"));
    bench.users = users(&[("bob", argon2id("changed"))]);
    assert!(!bench.verdict("ann", "changed"), "ann is none any more, though the hash is the same");
}

#[test]
fn who_asks_the_same_waits_together() {
    let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
    bench.limits.per_minute = Some(1);
    for waiter in 0..5 {
        assert_eq!(bench.check("ann", "secret", waiter), Check::Pending);
    }
    let mut finished = bench.finished(5);
    finished.sort_unstable_by_key(|(waiter, _)| *waiter);
    assert_eq!(finished, (0..5).map(|waiter| (waiter, Verdict::Right)).collect::<Vec<_>>());
    assert!(bench.is_at_rest());
}

#[test]
fn one_address_fills_its_own_place_only() {
    // Nothing but the first is computed before results are taken.
    let mut bench = Bench::new(&[("ann", argon2id("secret")), ("bob", argon2id("x"))]);
    assert!(bench.verdict("ann", "secret"));
    for waiter in 0..40 {
        let wanted = if waiter <= 16 { Check::Pending } else { Check::Busy };
        assert_eq!(bench.check_at(2, "bob", &format!("wrong {waiter}"), waiter), wanted, "{waiter}");
    }
    // Whoever is remembered does not wait, and another address has room, and the next turn but one.
    assert_eq!(bench.check_at(2, "ann", "secret", 90), Check::Right);
    assert_eq!(bench.check_at(3, "bob", "x", 91), Check::Pending);
    let finished = bench.finished(3);
    let place = finished.iter().position(|one| *one == (91, Verdict::Right));
    assert!(place.is_some_and(|place| place <= 2), "{finished:?}");
}

#[test]
fn what_nobody_waits_for_any_more_is_not_computed() {
    let mut bench = Bench::new(&[("bob", argon2id("x"))]);
    bench.limits.per_minute = Some(20);
    for waiter in 0..17 {
        assert_eq!(bench.check("bob", &format!("wrong {waiter}"), waiter), Check::Pending);
    }
    for waiter in 0..17 {
        bench.auth.leave(waiter);
    }
    assert_eq!(bench.auth.waiting.len(), 1, "what is being computed already");
    assert_eq!(bench.check("bob", "x", 99), Check::Pending);
    assert_eq!(bench.finished(1), [(99, Verdict::Right)]);
    assert!(bench.is_at_rest());
    // Nor does it count: of twenty failures there has been one.
    for n in 0..19 {
        assert_eq!(bench.check_at(HERE, "bob", "another", n), Check::Pending);
        bench.finished(1);
    }
    assert_eq!(bench.check("bob", "one more", 1), Check::TooMany(TooMany::OfName));
}

#[test]
fn names_for_which_there_is_no_room_do_not_make_a_wrong_password_forgotten() {
    let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
    bench.limits = FailureLimits { per_minute: Some(1), per_minute_address: Some(100) };
    assert!(!bench.verdict("ann", "wrong"));
    // Nothing but the first is computed before results are taken.
    for waiter in 0..17 {
        assert_eq!(bench.check(&format!("waiting {waiter}"), "x", waiter), Check::Pending);
    }
    for n in 0..70_000 {
        assert_eq!(bench.check(&format!("guess {n}"), "x", 99), Check::Busy);
    }
    assert_eq!(bench.check("ann", "another", 99), Check::TooMany(TooMany::OfName));
}

#[test]
fn wrong_passwords_are_bounded_and_right_ones_that_are_remembered_do_not_notice() {
    let mut bench = Bench::new(&[("ann", argon2id("secret")), ("bob", argon2id("pw"))]);
    bench.limits = FailureLimits { per_minute: Some(3), per_minute_address: Some(5) };
    assert!(bench.verdict("ann", "secret"));
    for n in 0..3 {
        assert!(!bench.verdict("ann", &format!("wrong {n}")));
    }
    assert_eq!(bench.check("ann", "wrong again", 1), Check::TooMany(TooMany::OfName));
    assert_eq!(bench.check("ann", "secret", 1), Check::Right);
    // Ann has been proved here: what the address has for names that have not is still whole.
    for n in 0..3 {
        assert!(!bench.verdict("bob", &format!("wrong {n}")));
    }
    for n in 0..2 {
        assert!(!bench.verdict("nobody", &format!("wrong {n}")));
    }
    assert_eq!(bench.check("cy", "wrong", 1), Check::TooMany(TooMany::OfAddress));
    assert_eq!(bench.check_at(2, "bob", "pw", 1), Check::Pending, "elsewhere bob gets in");
    assert_eq!(bench.finished(1), [(1, Verdict::Right)]);
    assert_eq!(bench.check("bob", "pw", 1), Check::Right);
    bench.now_ms += 60_000;
    assert!(!bench.verdict("cy", "wrong"));
}

#[test]
fn attempts_that_wait_are_computed_as_long_as_there_may_be_one_more_wrong() {
    let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
    bench.limits = FailureLimits { per_minute: Some(3), per_minute_address: None };
    for waiter in 0..5 {
        assert_eq!(bench.check("ann", &format!("wrong {waiter}"), waiter), Check::Pending);
    }
    let wrong = [0, 1, 2].map(|waiter| (waiter, Verdict::Wrong));
    let many = [3, 4].map(|waiter| (waiter, Verdict::TooMany(TooMany::OfName)));
    assert_eq!(bench.finished(5), [&wrong[..], &many].concat());
    assert!(bench.is_at_rest());
}

#[test]
fn too_long_a_password_or_name_is_not_looked_at() {
    let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
    assert_eq!(bench.check(&"x".repeat(NAME_MAX + 1), "secret", 1), Check::Wrong);
    assert_eq!(bench.check(&"x".repeat(NAME_MAX), "secret", 1), Check::Pending);
    bench.finished(1);
    assert_eq!(bench.check("ann", &"x".repeat(PASSWORD_MAX + 1), 1), Check::Wrong);
}
