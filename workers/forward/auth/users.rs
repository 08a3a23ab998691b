//! The users of one configuration, and what checking a password against their hashes costs.
//!
//! A wrong password must cost the same whoever was named, or the time that passes would tell who exists, and whose hash
//! is a cheap one. So it costs one hash of each *kind* there is (the algorithm with its settings): the one of the named
//! user, then one of each other kind, whose results are thrown away. A name that nobody has costs the same. A right
//! password costs its own hash alone; who learns of that time has the password already.

use std::collections::HashMap;
use std::sync::Arc;

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use ipc::forward::User;

/// Kinds that each wrong password is computed with, at most: the dearest. Beyond that costs do differ.
pub const KINDS: usize = 8;

/// How a hash was made, as far as the time to compute it depends on that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind<'a> {
    Bcrypt(&'a str),
    /// The version, the settings, and the length of what comes out.
    Argon2(&'a str, &'a str, usize),
}

impl<'a> Kind<'a> {
    fn of(hash: &'a str) -> Kind<'a> {
        if hash.starts_with("$2") {
            return Kind::Bcrypt(hash.get(4..6).unwrap_or_default());
        }
        // $argon2id$v=19$m=65536,t=3,p=4$SALT$HASH
        let mut parts = hash.split('$').skip(2);
        let (version, settings) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        Kind::Argon2(version, settings, hash.rsplit('$').next().map_or(0, str::len))
    }

    /// Roughly what it costs, in microseconds.
    fn cost(&self) -> u64 {
        match self {
            Kind::Bcrypt(cost) => 60 << cost.parse::<u32>().unwrap_or(0).min(31),
            Kind::Argon2(_, settings, _) => {
                let value = |name: &str| {
                    let found = settings.split(',').find_map(|one| one.strip_prefix(name));
                    found.and_then(|value| value.parse::<u64>().ok()).unwrap_or(1)
                };
                value("m=").saturating_mul(value("t="))
            }
        }
    }
}

/// How many kinds of hashes `users` have.
#[must_use]
pub fn kinds(users: &[User]) -> usize {
    let kinds: std::collections::HashSet<Kind<'_>> = users.iter().map(|user| Kind::of(&user.hash)).collect();
    kinds.len()
}

/// What a password is to be checked against.
#[derive(Debug, Clone)]
pub struct Against {
    /// The hash.
    pub hash: Arc<str>,
    /// Whether it is that of a user, so that the password can be right.
    pub known: bool,
    /// What is computed besides when it is not right.
    pub others: Arc<[Arc<str>]>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Users {
    /// The hash of each, with the number of its kind.
    by_name: HashMap<String, (Arc<str>, usize)>,
    /// For each kind, in the order of their numbers, those that stand for all others; the last is for hashes of none of
    /// them, and for names that nobody has.
    others: Vec<Arc<[Arc<str>]>>,
    /// One hash of each kind.
    samples: Vec<Arc<str>>,
}

impl Users {
    /// Makes them findable.
    #[must_use]
    pub fn new(users: &[User]) -> Users {
        let mut by_kind: HashMap<Kind<'_>, &str> = HashMap::new();
        for user in users {
            by_kind.entry(Kind::of(&user.hash)).or_insert(&user.hash);
        }
        let mut kinds: Vec<(Kind<'_>, &str)> = by_kind.into_iter().collect();
        // The dearest first; in the same order in every process.
        kinds.sort_by_key(|(kind, hash)| (std::cmp::Reverse(kind.cost()), *hash));
        kinds.truncate(KINDS);
        let numbers: HashMap<&Kind<'_>, usize> = kinds.iter().zip(0..).map(|((kind, _), at)| (kind, at)).collect();
        let samples: Vec<Arc<str>> = kinds.iter().map(|(_, hash)| Arc::from(*hash)).collect();
        let all_but = |own: usize| -> Arc<[Arc<str>]> {
            samples.iter().zip(0..).filter(|(_, at)| *at != own).map(|(hash, _)| Arc::clone(hash)).collect()
        };
        let by_name = users.iter().map(|user| {
            let kind = numbers.get(&Kind::of(&user.hash)).copied().unwrap_or(kinds.len());
            (user.name.clone(), (user.hash.as_str().into(), kind))
        });
        Users { by_name: by_name.collect(), others: (0..=samples.len()).map(all_but).collect(), samples }
    }

    /// What to check the password of `name` against; `None` when there is no user at all.
    #[must_use]
    pub fn against(&self, name: &str) -> Option<Against> {
        if let Some((hash, kind)) = self.by_name.get(name) {
            let others = self.others.get(*kind).cloned().unwrap_or_default();
            return Some(Against { hash: Arc::clone(hash), known: true, others });
        }
        let others = self.others.first().cloned().unwrap_or_default();
        Some(Against { hash: Arc::clone(self.samples.first()?), known: false, others })
    }

    /// The hash of the user `name`, if there is one.
    #[must_use]
    pub fn hash(&self, name: &str) -> Option<Arc<str>> {
        self.by_name.get(name).map(|(hash, _)| Arc::clone(hash))
    }
}

/// Whether `password` is that of `hash`. Both libraries compare in constant time.
#[must_use]
pub fn verify(hash: &str, password: &[u8]) -> bool {
    if hash.starts_with("$2") {
        let right = bcrypt::verify(password, hash).unwrap_or(false);
        // A NUL would end the password there for other programs that read the same hashes. Looked for last, so that it
        // costs the same with and without.
        return right && !password.contains(&0);
    }
    match PasswordHash::new(hash) {
        Ok(parsed) => Argon2::default().verify_password(password, &parsed).is_ok(),
        Err(_) => false,
    }
}

/// Checks a password with everything that this costs: `verify` is called for one hash of each kind unless it is right.
pub fn check(against: &Against, password: &[u8], mut verify: impl FnMut(&str, &[u8]) -> bool) -> bool {
    let matches = verify(&against.hash, password);
    if matches && against.known {
        return true;
    }
    for other in against.others.iter() {
        verify(other, password);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$u7rDJMrE1ytKEMGSLG7/c9uDXFIlaDHC";
    const CHEAP_TOO: &str = "$argon2id$v=19$m=8,t=1,p=1$b3RoZXJzYWx0$u7rDJMrE1ytKEMGSLG7/c9uDXFIlaDHD";
    const DEAR: &str = "$argon2id$v=19$m=65536,t=3,p=1$c29tZXNhbHQ$u7rDJMrE1ytKEMGSLG7/c9uDXFIlaDHC";
    const BCRYPT: &str = "$2y$04$DtTq..GtZEd.xTa43Bl6Fu/Em2b96F/vC6axcSTaA9jH/L.lUlpSK";
    const BCRYPT_DEAR: &str = "$2b$12$DtTq..GtZEd.xTa43Bl6Fu/Em2b96F/vC6axcSTaA9jH/L.lUlpSK";

    fn users(list: &[(&str, &str)]) -> Users {
        Users::new(&made(list))
    }

    fn made(list: &[(&str, &str)]) -> Vec<User> {
        list.iter().map(|(name, hash)| User { name: (*name).to_owned(), hash: (*hash).to_owned() }).collect()
    }

    /// The kinds that a wrong password for `name` is computed with, sorted.
    fn computed(users: &Users, name: &str) -> Vec<u64> {
        let mut costs = Vec::new();
        check(&users.against(name).unwrap(), b"wrong", |hash, _| {
            costs.push(Kind::of(hash).cost());
            // Whatever a stand-in says.
            hash != users.against(name).unwrap().hash.as_ref()
        });
        costs.sort_unstable();
        costs
    }

    #[test]
    fn a_wrong_password_costs_one_hash_of_each_kind_whoever_is_named() {
        let users = users(&[("ann", CHEAP), ("bob", BCRYPT), ("cy", DEAR), ("dan", CHEAP_TOO), ("eve", BCRYPT_DEAR)]);
        let wanted = computed(&users, "nobody");
        assert_eq!(wanted, [8, 60 << 4, 3 * 65536, 60 << 12]);
        for name in ["ann", "bob", "cy", "dan", "eve", "somebody else", ""] {
            assert_eq!(computed(&users, name), wanted, "{name}");
        }
    }

    #[test]
    fn a_right_password_costs_its_own_hash_and_a_stand_in_is_never_right() {
        let users = users(&[("ann", CHEAP), ("bob", BCRYPT)]);
        let mut count = 0;
        assert!(check(&users.against("ann").unwrap(), b"right", |_, _| {
            count += 1;
            true
        }));
        assert_eq!(count, 1);
        assert!(!check(&users.against("nobody").unwrap(), b"right", |_, _| true));
    }

    #[test]
    fn beyond_the_bound_only_the_dearest_kinds_are_computed() {
        let hashes: Vec<String> = (4..15).map(|cost| BCRYPT.replace("$04$", &format!("${cost:02}$"))).collect();
        let list: Vec<(&str, &str)> = hashes.iter().map(|hash| (hash.as_str(), hash.as_str())).collect();
        let users = users(&list);
        assert_eq!(kinds(&made(&list)), 11);
        assert_eq!(computed(&users, "nobody").len(), KINDS);
        assert_eq!(computed(&users, &hashes[10]), computed(&users, "nobody"));
        assert_eq!(computed(&users, &hashes[0]).len(), KINDS + 1);
    }

    #[test]
    fn kinds_are_told_apart_by_what_costs_time_alone() {
        assert_eq!(Kind::of(CHEAP), Kind::of(CHEAP_TOO));
        assert_eq!(Kind::of(BCRYPT), Kind::of(&BCRYPT.replace("$2y", "$2a")));
        assert_ne!(Kind::of(CHEAP), Kind::of(DEAR));
        assert_ne!(Kind::of(BCRYPT), Kind::of(BCRYPT_DEAR));
        assert_ne!(Kind::of(CHEAP), Kind::of(&format!("{CHEAP}abcd")));
        assert_eq!(kinds(&made(&[("a", CHEAP), ("b", CHEAP_TOO), ("c", BCRYPT)])), 2);
    }

    #[test]
    fn without_users_there_is_nothing_to_compute() {
        assert!(users(&[]).against("ann").is_none());
    }
}
