//! Traffic of every kind that continuity is promised for, with clients and a server that know every byte that must
//! come. Each client says of each turn what it saw; what it may have seen is for the test to say.

pub mod delivery;
pub mod http;
pub mod server;
pub mod stream;

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::rng::Rng;
use super::{PIECE, pattern, wait_until};

/// What a client saw of one turn, when it was nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Everything, byte for byte.
    Whole,
    /// A whole 502.
    BadGateway,
    /// A part of a response, right as far as it goes, that cannot be taken for the whole.
    Truncated,
}

/// Or what was wrong with it.
pub type Outcome = Result<Seen, String>;

/// One client.
pub trait Peer {
    /// One request, one connection, one transfer: what its kind is about.
    fn turn(&mut self, rng: &mut Rng) -> Outcome;
}

/// Clients of one kind.
pub struct Kind {
    pub name: &'static str,
    pub clients: usize,
    /// Whether a turn may be hit by one kill only: a safe request over which two workers died is not run a third time.
    pub paced: bool,
    pub make: Box<dyn Fn() -> Box<dyn Peer> + Send + Sync>,
}

/// What the clients of one kind saw.
#[derive(Debug, Default)]
pub struct Score {
    pub name: &'static str,
    pub turns: usize,
    pub bad_gateway: usize,
    pub truncated: usize,
    /// Connections that ended while there was no master, or while one took over: see [`Progress::interregnum`].
    pub lost: usize,
    pub wrong: Vec<String>,
}

impl Score {
    fn note(&mut self, outcome: Outcome, interregnum: bool) {
        self.turns += 1;
        match outcome {
            Err(what) if interregnum && ENDED.iter().any(|end| what.contains(end)) => {
                eprintln!("lost with a master: {what}");
                self.lost += 1;
            }
            Ok(Seen::Whole) => {}
            Ok(Seen::BadGateway) => self.bad_gateway += 1,
            Ok(Seen::Truncated) => self.truncated += 1,
            Err(what) => self.wrong.push(what),
        }
    }

    fn add(&mut self, other: Score) {
        self.turns += other.turns;
        self.bad_gateway += other.bad_gateway;
        self.truncated += other.truncated;
        self.lost += other.lost;
        self.wrong.extend(other.wrong);
    }

    /// Panics unless everything was right and whole, with up to so many exceptions.
    #[track_caller]
    pub fn check(&self, bad_gateway: usize, truncated: usize) {
        assert!(
            self.wrong.is_empty(),
            "{}: {} wrong of {}: {:#?}",
            self.name,
            self.wrong.len(),
            self.turns,
            self.wrong
        );
        assert!(self.bad_gateway <= bad_gateway, "{} answers were 502: {self:?}", self.bad_gateway);
        assert!(self.truncated <= truncated, "{} responses were cut: {self:?}", self.truncated);
    }
}

/// What clients say when their connection has ended and nothing else was wrong.
const ENDED: [&str; 6] =
    ["the connection ended", "reset after", "cut after", "the end after", "Connection reset by peer", "Broken pipe"];

/// A table of scores.
pub fn table(scores: &[Score]) -> String {
    let mut text = format!("{:<28}{:>10}{:>8}{:>11}{:>8}{:>8}\n", "kind", "turns", "502", "truncated", "lost", "wrong");
    for score in scores {
        let Score { name, turns, bad_gateway, truncated, lost, wrong } = score;
        let _ = writeln!(text, "{name:<28}{turns:>10}{bad_gateway:>8}{truncated:>11}{lost:>8}{:>8}", wrong.len());
    }
    text
}

/// Wrong turns after which a client gives up.
const MAX_WRONG: usize = 10;

/// How far the clients are.
#[derive(Debug)]
pub struct Progress {
    turns: Vec<AtomicUsize>,
    over: Vec<AtomicBool>,
    paced: Vec<bool>,
    stop: AtomicBool,
    /// Odd while there is no master, or one has not taken over everything.
    interregna: AtomicUsize,
}

impl Progress {
    /// The master is killed within `during`, and another takes over: connections that were in its hands may be lost.
    pub fn interregnum<T>(&self, during: impl FnOnce() -> T) -> T {
        self.interregna.fetch_add(1, Ordering::SeqCst);
        let result = during();
        // Whoever lost its connection may find out with its next turn only.
        self.flow();
        self.interregna.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// Turns so far, by client.
    fn turns(&self) -> Vec<usize> {
        self.turns.iter().map(|turns| turns.load(Ordering::SeqCst)).collect()
    }

    /// Waits until every paced client has begun and ended another turn.
    #[track_caller]
    pub fn flow(&self) {
        let before = self.turns();
        wait_until("every client gets on", || {
            let now = self.turns();
            (0..now.len()).all(|n| !self.paced[n] || now[n] > before[n] + 1 || self.over[n].load(Ordering::SeqCst))
        });
    }
}

/// Ends the clients also when the test fails meanwhile.
struct Stop<'a>(&'a Progress);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// Has all clients take turns while `during` runs, and gives what each kind saw.
pub fn drive(kinds: &[Kind], rng: &mut Rng, during: impl FnOnce(&Progress)) -> Vec<Score> {
    let clients: Vec<&Kind> = kinds.iter().flat_map(|kind| std::iter::repeat_n(kind, kind.clients)).collect();
    let progress = Progress {
        turns: clients.iter().map(|_| AtomicUsize::new(0)).collect(),
        over: clients.iter().map(|_| AtomicBool::new(false)).collect(),
        paced: clients.iter().map(|kind| kind.paced).collect(),
        stop: AtomicBool::new(false),
        interregna: AtomicUsize::new(0),
    };
    let mut scores: Vec<Score> = kinds.iter().map(|kind| Score { name: kind.name, ..Score::default() }).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(n, kind)| {
                let (mut rng, progress) = (Rng::new(rng.next()), &progress);
                scope.spawn(move || client(n, kind, &mut rng, progress))
            })
            .collect();
        {
            let _stop = Stop(&progress);
            during(&progress);
        }
        for thread in threads {
            let score = thread.join().unwrap();
            scores.iter_mut().find(|sum| sum.name == score.name).unwrap().add(score);
        }
    });
    scores
}

fn client(n: usize, kind: &Kind, rng: &mut Rng, progress: &Progress) -> Score {
    let mut score = Score { name: kind.name, ..Score::default() };
    let mut peer = None;
    while !progress.stop.load(Ordering::SeqCst) && score.wrong.len() < MAX_WRONG {
        let before = progress.interregna.load(Ordering::SeqCst);
        let turn = || peer.get_or_insert_with(|| (kind.make)()).turn(rng);
        let outcome = catch_unwind(AssertUnwindSafe(turn)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(format!("the client panicked: {}", text.unwrap_or("?")))
        });
        // Behind a 502 the connection is usually closed.
        if !matches!(outcome, Ok(Seen::Whole | Seen::Truncated)) {
            peer = None;
        }
        let after = progress.interregna.load(Ordering::SeqCst);
        score.note(outcome, before != after || before % 2 == 1);
        progress.turns[n].fetch_add(1, Ordering::SeqCst);
    }
    progress.over[n].store(true, Ordering::SeqCst);
    score
}

/// Where in the pattern the bytes of number `id` begin.
fn offset(id: u64) -> u64 {
    id.wrapping_mul(7919) % 1_000_003
}

/// The bytes that belong to number `id`.
pub fn data(id: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        bytes.extend_from_slice(pattern(offset(id) + bytes.len() as u64, (length - bytes.len()).min(PIECE)));
    }
    bytes
}

/// Whether `bytes` are those of number `id` from position `at` on.
pub fn is_data(id: u64, at: u64, bytes: &[u8]) -> bool {
    let pieces = bytes.chunks(PIECE).enumerate();
    pieces.into_iter().all(|(n, piece)| pattern(offset(id) + at + (n * PIECE) as u64, piece.len()) == piece)
}
