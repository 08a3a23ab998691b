//! Whether somebody is who they say they are: passwords against the hashes of the configuration.
//!
//! Such a hash takes long on purpose, so it is computed in a [`thread`] of its own, one at a time, and the loop is woken
//! when one is done. Those who wait stand in a [`line`] in which addresses take turns, and leave it when they go. How many
//! wrong passwords there may be is bounded ([`failures`]). What is computed does not tell who exists ([`users`]).
//!
//! A right password is remembered while it is used, not as itself but as a keyed hash under a key that dies with the
//! process: it is known at once, whatever waits and whatever others got wrong.

pub mod failures;
pub mod line;
#[cfg(test)]
mod tests;
pub mod thread;
pub mod users;

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::rc::Rc;

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput, KeyInit, Update};
use ipc::forward::FailureLimits;
use log::error;
use mio::{Registry, Token};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::share::Share;
use failures::{Failures, TooMany};
use line::{Line, Source};
use thread::{Job, Thread};
use users::{Against, Users};

/// Those who wait for the same password from the same address, at most.
const SHARED: usize = 256;
/// How long a right password is remembered after it was last used. What it is checked against is part of what is
/// remembered, so that it holds no longer than that.
const REMEMBER_MS: u64 = 10 * 60_000;
/// So many are remembered at most: as many as there can be users.
const REMEMBERED: usize = 100_000;
/// The longest password that is looked at; bcrypt itself ends at 72 bytes.
const PASSWORD_MAX: usize = 1024;
/// The longest name that a user can have.
const NAME_MAX: usize = 255;

/// A keyed hash of a name, a password and the hash it is checked against.
type Mark = [u8; 32];

/// What is waited for: the same password from the same address is checked once for all.
type Ticket = (Mark, Source);

/// Who says to be whom, and from where.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// The name.
    pub user: &'a str,
    /// What is to prove it.
    pub password: &'a [u8],
    /// Where the client is.
    pub source: Source,
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
    /// Too many have been wrong.
    TooMany(TooMany),
}

/// What waiting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They are who they say they are.
    Right,
    /// They are not.
    Wrong,
    /// Nobody knows: others had to go first.
    Busy,
    /// Nobody knows: too many have been wrong meanwhile.
    TooMany(TooMany),
}

/// A password that waits to be checked, or is being checked.
struct Waiting<W> {
    user: Box<str>,
    password: Zeroizing<Vec<u8>>,
    against: Against,
    limits: FailureLimits,
    waiters: Vec<W>,
}

struct Remembered {
    mark: Mark,
    until_ms: u64,
}

/// See the module's description. `W` says who waits.
pub struct Auth<W> {
    key: [u8; 32],
    thread: Option<Thread>,
    waiting: HashMap<Ticket, Waiting<W>>,
    line: Line<Ticket>,
    computing: Option<Ticket>,
    asked: HashMap<W, Ticket>,
    /// Those who had to leave the line for others.
    displaced: Vec<W>,
    failures: Failures,
    /// The last right password of each user.
    remembered: HashMap<Box<str>, Remembered>,
}

impl<W> fmt::Debug for Auth<W> {
    /// Without anything about passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl<W: Copy + Eq + Hash> Auth<W> {
    /// Nobody is known yet. The thread begins with the first password. `share`: where all workers count wrong ones.
    #[must_use]
    pub fn new(share: Rc<Share>) -> Auth<W> {
        let mut key = [0; 32];
        for piece in key.chunks_mut(8) {
            // The standard library's keys come from the system's random numbers.
            piece.copy_from_slice(&RandomState::new().hash_one(()).to_le_bytes());
        }
        Auth {
            key,
            thread: None,
            waiting: HashMap::new(),
            line: Line::default(),
            computing: None,
            asked: HashMap::new(),
            displaced: Vec::new(),
            failures: Failures::new(share),
            remembered: HashMap::new(),
        }
    }

    /// Whether what `claim` says is so. `waiter` waits for one claim at a time. The thread wakes the loop under `token`
    /// of `registry`.
    pub fn check(
        &mut self,
        (users, limits): (&Users, FailureLimits),
        claim: Claim<'_>,
        waiter: W,
        now_ms: u64,
        (registry, token): (&Registry, Token),
    ) -> Check {
        let Claim { user, password, source } = claim;
        if password.len() > PASSWORD_MAX || user.len() > NAME_MAX {
            return Check::Wrong;
        }
        let Some(against) = users.against(user) else { return Check::Wrong };
        let Some(mark) = self.mark(user, password, &against) else { return Check::Wrong };
        if against.known && self.recall(user, &mark, now_ms) {
            self.failures.prove(source, user, now_ms);
            return Check::Right;
        }
        let ticket = (mark, source);
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            if waiting.waiters.len() >= SHARED {
                return Check::Busy;
            }
            waiting.waiters.push(waiter);
            self.asked.insert(waiter, ticket);
            return Check::Pending;
        }
        if let Err(too_many) = self.failures.allow(limits, source, user, now_ms) {
            return Check::TooMany(too_many);
        }
        if !self.stand_in_line(ticket, user, now_ms, (registry, token)) {
            return Check::Busy;
        }
        let password = Zeroizing::new(password.to_vec());
        let waiting = Waiting { user: user.into(), password, against, limits, waiters: vec![waiter] };
        self.waiting.insert(ticket, waiting);
        self.asked.insert(waiter, ticket);
        // Where nothing is computed it is the only one in the line.
        if self.computing.is_none()
            && let Some(ticket) = self.line.take()
        {
            self.give(ticket);
        }
        Check::Pending
    }

    /// Puts `ticket` into the line, and starts the thread if it does not run. `false` = there is no room, or no thread.
    fn stand_in_line(&mut self, ticket: Ticket, user: &str, now_ms: u64, way: (&Registry, Token)) -> bool {
        if self.thread.is_none() {
            self.give_up();
            match Thread::start(way.0, way.1) {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => {
                    error!("cannot check passwords: {error}");
                    return false;
                }
            }
        }
        let source = ticket.1;
        let Ok(displaced) = self.line.push(source, self.failures.is_proved(source, user, now_ms), ticket) else {
            return false;
        };
        if let Some(waiting) = displaced.and_then(|displaced| self.forget(displaced)) {
            self.displaced.extend(waiting.waiters);
        }
        true
    }

    /// Whether `mark` is that of the last right password of `user`. If so it is remembered for longer.
    fn recall(&mut self, user: &str, mark: &Mark, now_ms: u64) -> bool {
        let Some(remembered) = self.remembered.get_mut(user) else { return false };
        let same = remembered.until_ms > now_ms && bool::from(remembered.mark.ct_eq(mark));
        if same {
            remembered.until_ms = now_ms + REMEMBER_MS;
        }
        same
    }

    fn remember(&mut self, user: Box<str>, mark: Mark, now_ms: u64) {
        if self.remembered.len() >= REMEMBERED {
            self.remembered.retain(|_, remembered| remembered.until_ms > now_ms);
        }
        if self.remembered.len() < REMEMBERED || self.remembered.contains_key(&user) {
            self.remembered.insert(user, Remembered { mark, until_ms: now_ms + REMEMBER_MS });
        }
    }

    /// `waiter` does not wait any more, if it did. What nobody else waits for is not computed.
    pub fn leave(&mut self, waiter: W) {
        let Some(ticket) = self.asked.remove(&waiter) else { return };
        let Some(waiting) = self.waiting.get_mut(&ticket) else { return };
        waiting.waiters.retain(|one| *one != waiter);
        if waiting.waiters.is_empty() && self.line.remove(ticket.1, ticket) {
            self.forget(ticket);
        }
    }

    /// What waited under `ticket` and will not be computed.
    fn forget(&mut self, ticket: Ticket) -> Option<Waiting<W>> {
        let waiting = self.waiting.remove(&ticket)?;
        for waiter in &waiting.waiters {
            self.asked.remove(waiter);
        }
        Some(waiting)
    }

    /// Gives the thread what is next; what may not be wrong any more is not computed.
    fn give_next(&mut self, now_ms: u64, finished: &mut Vec<(W, Verdict)>) {
        while self.computing.is_none()
            && let Some(ticket) = self.line.take()
        {
            let Some(waiting) = self.waiting.get(&ticket) else { continue };
            match self.failures.allow(waiting.limits, ticket.1, &waiting.user, now_ms) {
                Ok(()) => self.give(ticket),
                Err(too_many) => {
                    let waiting = self.forget(ticket).map_or_else(Vec::new, |waiting| waiting.waiters);
                    finished.extend(waiting.into_iter().map(|waiter| (waiter, Verdict::TooMany(too_many))));
                }
            }
        }
    }

    /// Gives the thread what waits under `ticket`.
    fn give(&mut self, ticket: Ticket) {
        let Some(waiting) = self.waiting.get_mut(&ticket) else { return };
        let job = Job { against: waiting.against.clone(), password: std::mem::take(&mut waiting.password) };
        self.computing = Some(ticket);
        if !self.thread.as_ref().is_some_and(|thread| thread.give(job)) {
            // The next one who asks starts another.
            self.thread = None;
        }
    }

    /// Who waited for what has been checked since, and what came of it.
    pub fn finished(&mut self, now_ms: u64) -> Vec<(W, Verdict)> {
        let mut finished = Vec::new();
        while let Some(right) = self.thread.as_ref().and_then(Thread::take) {
            let Some(ticket) = self.computing.take() else { continue };
            self.finish(ticket, right, now_ms, &mut finished);
            self.give_next(now_ms, &mut finished);
        }
        if self.thread.is_none() {
            self.give_up();
        }
        finished.extend(self.displaced.drain(..).map(|waiter| (waiter, Verdict::Busy)));
        finished
    }

    /// The thread is gone: nobody's turn comes any more.
    fn give_up(&mut self) {
        for ticket in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.line.remove(ticket.1, ticket);
            if let Some(waiting) = self.forget(ticket) {
                self.displaced.extend(waiting.waiters);
            }
        }
        self.computing = None;
    }

    fn finish(&mut self, ticket: Ticket, right: bool, now_ms: u64, finished: &mut Vec<(W, Verdict)>) {
        let Some(waiting) = self.waiting.remove(&ticket) else { return };
        let verdict = if right {
            self.failures.prove(ticket.1, &waiting.user, now_ms);
            self.remember(waiting.user, ticket.0, now_ms);
            Verdict::Right
        } else {
            self.failures.wrong(waiting.limits, ticket.1, &waiting.user, now_ms);
            Verdict::Wrong
        };
        for waiter in &waiting.waiters {
            self.asked.remove(waiter);
        }
        finished.extend(waiting.waiters.into_iter().map(|waiter| (waiter, verdict)));
    }

    /// What it is checked against is part of it: with another hash in the configuration nothing is remembered.
    fn mark(&self, user: &str, password: &[u8], against: &Against) -> Option<Mark> {
        // Keys of this length are allowed: there is always one.
        let mut mac = Blake2sMac256::new_from_slice(&self.key).ok()?;
        mac.update(&[u8::from(against.known)]);
        for part in [user.as_bytes(), password, against.hash.as_bytes()] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        Some(mac.finalize_fixed().into())
    }
}
