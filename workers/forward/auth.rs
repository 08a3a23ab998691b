//! Whether somebody is who they say they are: passwords against the hashes of the configuration.
//!
//! Such a hash takes long on purpose, so it is computed in a thread of its own, one at a time, and the loop is woken
//! when one is done. What waits is bounded; beyond that the answer is "not now". A right password is remembered for a
//! minute, not as itself but as a keyed hash under a key that dies with the process.
//!
//! An unknown user takes as long as a known one: some other user's hash is computed, and the result is thrown away.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput, KeyInit, Update};
use ipc::forward::User;
use log::{error, warn};
use mio::{Registry, Token, Waker};
use subtle::ConstantTimeEq;

/// Different passwords that wait to be checked at most.
const QUEUE: usize = 64;
/// Those who wait for the same one, at most.
const SHARED: usize = 256;
/// How long a right password is remembered.
const REMEMBER_MS: u64 = 60_000;
/// So many are remembered at most.
const REMEMBERED: usize = 10_000;
/// The longest password that is looked at; bcrypt itself ends at 72 bytes.
const PASSWORD_MAX: usize = 1024;

/// A keyed hash of a name, a password and the hash it is checked against.
type Mark = [u8; 32];

/// The users of one configuration.
#[derive(Debug, Default)]
pub struct Users {
    by_name: HashMap<String, usize>,
    hashes: Vec<Arc<str>>,
    /// Chooses the hash that stands in for that of an unknown user: always the same for the same name.
    stand_in: RandomState,
}

impl Users {
    /// Makes them findable.
    #[must_use]
    pub fn new(users: &[User]) -> Users {
        Users {
            by_name: users.iter().enumerate().map(|(at, user)| (user.name.clone(), at)).collect(),
            hashes: users.iter().map(|user| user.hash.as_str().into()).collect(),
            stand_in: RandomState::new(),
        }
    }

    /// The hash to check the password of `name` against, and whether there is such a user; `None` when there is none
    /// at all.
    fn hash(&self, name: &str) -> Option<(Arc<str>, bool)> {
        if let Some(&at) = self.by_name.get(name) {
            return Some((Arc::clone(self.hashes.get(at)?), true));
        }
        let at = usize::try_from(self.stand_in.hash_one(name)).unwrap_or(0).checked_rem(self.hashes.len())?;
        Some((Arc::clone(self.hashes.get(at)?), false))
    }
}

/// What asking came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It is known already to be right.
    Right,
    /// It cannot be right.
    Wrong,
    /// It will be among [`Auth::finished`].
    Pending,
    /// Too many wait.
    Busy,
}

struct Job {
    mark: Mark,
    hash: Arc<str>,
    password: Vec<u8>,
}

impl Drop for Job {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.password);
    }
}

struct Done {
    mark: Mark,
    right: bool,
}

/// What is known of a password that is being checked.
struct Waiting<W> {
    user: String,
    known: bool,
    waiters: Vec<W>,
}

struct Remembered {
    mark: Mark,
    until_ms: u64,
}

/// The thread, and the way to and from it.
struct Thread {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
}

/// See the module's description. `W` says who waits.
pub struct Auth<W> {
    key: [u8; 32],
    thread: Option<Thread>,
    waiting: HashMap<Mark, Waiting<W>>,
    /// The last right password of each user.
    remembered: HashMap<String, Remembered>,
}

impl<W> fmt::Debug for Auth<W> {
    /// Without anything about passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl<W> Default for Auth<W> {
    fn default() -> Auth<W> {
        Auth::new()
    }
}

impl<W> Auth<W> {
    /// Nobody is known yet. The thread begins with the first password.
    #[must_use]
    pub fn new() -> Auth<W> {
        let mut key = [0; 32];
        for piece in key.chunks_mut(8) {
            // The standard library's keys come from the system's random numbers.
            piece.copy_from_slice(&RandomState::new().hash_one(()).to_le_bytes());
        }
        Auth { key, thread: None, waiting: HashMap::new(), remembered: HashMap::new() }
    }

    /// Whether `password` is that of `user`. The thread wakes the loop under `token` of `registry`.
    pub fn check(
        &mut self,
        users: &Users,
        (user, password): (&str, &[u8]),
        waiter: W,
        now_ms: u64,
        (registry, token): (&Registry, Token),
    ) -> Check {
        if password.len() > PASSWORD_MAX {
            return Check::Wrong;
        }
        let Some((hash, known)) = users.hash(user) else { return Check::Wrong };
        let mark = self.mark(user, password, &hash);
        if let Some(remembered) = self.remembered.get(user).filter(|_| known)
            && remembered.until_ms > now_ms
            && bool::from(remembered.mark.ct_eq(&mark))
        {
            return Check::Right;
        }
        if let Some(waiting) = self.waiting.get_mut(&mark) {
            if waiting.waiters.len() >= SHARED {
                return Check::Busy;
            }
            waiting.waiters.push(waiter);
            return Check::Pending;
        }
        if self.waiting.len() >= QUEUE {
            return Check::Busy;
        }
        if self.thread.is_none() {
            match start(registry, token) {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => {
                    error!("cannot check passwords: {error}");
                    return Check::Busy;
                }
            }
        }
        let Some(thread) = &self.thread else { return Check::Busy };
        match thread.jobs.try_send(Job { mark, hash, password: password.to_vec() }) {
            Ok(()) => {
                self.waiting.insert(mark, Waiting { user: user.to_owned(), known, waiters: vec![waiter] });
                Check::Pending
            }
            Err(TrySendError::Full(_)) => Check::Busy,
            Err(TrySendError::Disconnected(_)) => {
                // The next one starts another thread.
                self.thread = None;
                Check::Busy
            }
        }
    }

    /// Who waited for what has been checked since, and whether they are who they say they are.
    pub fn finished(&mut self, now_ms: u64) -> Vec<(W, bool)> {
        let mut finished = Vec::new();
        let Some(thread) = &self.thread else { return finished };
        for Done { mark, right } in thread.done.try_iter() {
            let Some(waiting) = self.waiting.remove(&mark) else { continue };
            let right = right && waiting.known;
            if right {
                if self.remembered.len() >= REMEMBERED {
                    self.remembered.retain(|_, remembered| remembered.until_ms > now_ms);
                }
                if self.remembered.len() >= REMEMBERED {
                    self.remembered.clear();
                }
                self.remembered.insert(waiting.user, Remembered { mark, until_ms: now_ms + REMEMBER_MS });
            }
            finished.extend(waiting.waiters.into_iter().map(|waiter| (waiter, right)));
        }
        finished
    }

    /// The hash that is checked against is part of it: with another one in the configuration nothing is remembered.
    fn mark(&self, user: &str, password: &[u8], hash: &str) -> Mark {
        let Ok(mut mac) = Blake2sMac256::new_from_slice(&self.key) else {
            // The key has a length that is allowed; without a mark nothing is ever remembered as right.
            return [0; 32];
        };
        for part in [user.as_bytes(), password, hash.as_bytes()] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize_fixed().into()
    }
}

fn start(registry: &Registry, token: Token) -> io::Result<Thread> {
    let waker = Waker::new(registry, token)?;
    let (jobs, work) = sync_channel::<Job>(QUEUE);
    let (results, done) = channel::<Done>();
    std::thread::Builder::new().name("passwords".to_owned()).spawn(move || verify_all(&work, &results, &waker))?;
    Ok(Thread { jobs, done })
}

/// The thread's life: until the worker drops its end.
fn verify_all(work: &Receiver<Job>, results: &Sender<Done>, waker: &Waker) {
    while let Ok(job) = work.recv() {
        let right = catch_unwind(AssertUnwindSafe(|| verify(&job.hash, &job.password))).unwrap_or_else(|_| {
            warn!("checking a password failed");
            false
        });
        if results.send(Done { mark: job.mark, right }).is_err() {
            return;
        }
        // Without being woken the loop finds it with its next event.
        let _ = waker.wake();
    }
}

/// Both libraries compare in constant time.
fn verify(hash: &str, password: &[u8]) -> bool {
    if hash.starts_with("$2") {
        // A NUL would end the password there for other programs that read the same hashes.
        return !password.contains(&0) && bcrypt::verify(password, hash).unwrap_or(false);
    }
    match PasswordHash::new(hash) {
        Ok(parsed) => Argon2::default().verify_password(password, &parsed).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use argon2::password_hash::{PasswordHasher, SaltString};
    use argon2::{Algorithm, Params, Version};
    use mio::{Events, Poll};

    use super::*;

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

    struct Bench {
        poll: Poll,
        auth: Auth<u32>,
        users: Users,
        now_ms: u64,
    }

    impl Bench {
        fn new(list: &[(&str, String)]) -> Bench {
            Bench { poll: Poll::new().unwrap(), auth: Auth::new(), users: users(list), now_ms: 1000 }
        }

        fn check(&mut self, user: &str, password: &str, waiter: u32) -> Check {
            let way = (self.poll.registry(), Token(7));
            self.auth.check(&self.users, (user, password.as_bytes()), waiter, self.now_ms, way)
        }

        /// Waits for the loop to be woken until `count` have finished.
        fn finished(&mut self, count: usize) -> Vec<(u32, bool)> {
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
            self.finished(1) == [(1, true)]
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
    }

    #[test]
    fn an_unknown_user_is_checked_all_the_same_and_never_right() {
        let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
        // The stand-in is ann's hash, so that the password is right but for the name.
        assert!(!bench.verdict("eve", "secret"));
        assert!(!bench.verdict("eve", "secret"), "nor is it remembered");
        let mut nobody = Bench::new(&[]);
        assert_eq!(nobody.check("ann", "secret", 1), Check::Wrong);
    }

    #[test]
    fn a_right_password_is_remembered_for_a_minute_and_under_its_hash_only() {
        let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
        assert!(bench.verdict("ann", "secret"));
        assert_eq!(bench.check("ann", "secret", 1), Check::Right);
        assert!(!bench.verdict("ann", "other"));
        assert_eq!(bench.check("ann", "secret", 1), Check::Right, "a wrong one changes nothing");
        bench.now_ms += REMEMBER_MS;
        assert!(bench.verdict("ann", "secret"));
        assert_eq!(bench.check("ann", "secret", 1), Check::Right);
        bench.users = users(&[("ann", argon2id("changed"))]);
        assert!(!bench.verdict("ann", "secret"));
        assert!(bench.verdict("ann", "changed"));
    }

    #[test]
    fn who_asks_the_same_waits_together_and_too_many_are_told_so() {
        let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
        for waiter in 0..5 {
            assert!(matches!(bench.check("ann", "secret", waiter), Check::Pending));
        }
        let mut finished = bench.finished(5);
        finished.sort_unstable();
        assert_eq!(finished, (0..5).map(|waiter| (waiter, true)).collect::<Vec<_>>());
        // Nobody takes results meanwhile: those who asked wait, whether checked already or not.
        for waiter in 0..u32::try_from(QUEUE).unwrap() {
            assert_eq!(bench.check("ann", &format!("wrong {waiter}"), waiter), Check::Pending);
        }
        assert_eq!(bench.check("ann", "one more", 0), Check::Busy);
        assert_eq!(bench.check("ann", "secret", 0), Check::Right, "what is known needs no room");
        assert!(bench.finished(QUEUE).iter().all(|(_, right)| !right));
        assert_eq!(bench.check("ann", "one more", 0), Check::Pending);
        bench.finished(1);
    }

    #[test]
    fn too_long_a_password_is_not_looked_at() {
        let mut bench = Bench::new(&[("ann", argon2id("secret"))]);
        assert_eq!(bench.check("ann", &"x".repeat(PASSWORD_MAX + 1), 1), Check::Wrong);
    }
}
