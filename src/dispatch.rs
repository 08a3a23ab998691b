//! Which worker gets a connection, and how many each may get. Pure: the numbers come in, a choice goes out.

use std::time::Duration;

use ipc::snapshot::Dispatch;

/// Connections sent to a worker that it has not taken up yet, at most. Keeps the descriptors under way within
/// what the kernel allows an unprivileged sender (its descriptor limit), and the queue short that a slow
/// worker builds up while others are idle.
pub const CREDITS: u32 = 512;

/// A worker as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Candidate {
    /// Connections it has or is about to get.
    pub load: u64,
    /// How many more it may get now; 0 for one that is not ready.
    pub room: u32,
}

impl Candidate {
    /// From the master's own counts (`passed`, `queued`, `free` places) and the worker's (`taken`,
    /// `finished`), which are believed only as far as they are possible.
    pub fn new(passed: u64, queued: usize, free: u32, taken: u64, finished: u64) -> Candidate {
        let queued = u64::try_from(queued).unwrap_or(u64::MAX);
        let under_way = passed.saturating_sub(taken).saturating_add(queued);
        let credits = CREDITS.saturating_sub(u32::try_from(under_way).unwrap_or(u32::MAX));
        Candidate { load: passed.saturating_sub(finished).saturating_add(queued), room: credits.min(free) }
    }
}

/// Chooses by the configured policy.
#[derive(Debug)]
pub struct Chooser {
    policy: Dispatch,
    next: usize,
}

impl Chooser {
    /// Begins with the first worker.
    pub fn new(policy: Dispatch) -> Chooser {
        Chooser { policy, next: 0 }
    }

    /// The index of the worker for one more connection, whose room and load are updated; `None` when none
    /// has room. Equal loads take turns.
    pub fn choose(&mut self, candidates: &mut [Candidate]) -> Option<usize> {
        let count = candidates.len();
        let start = if self.next < count { self.next } else { 0 };
        let mut turn = (start..count).chain(0..start).filter(|&i| candidates[i].room > 0);
        let chosen = match self.policy {
            Dispatch::LeastConnections => turn.min_by_key(|&i| candidates[i].load),
            Dispatch::RoundRobin => turn.next(),
        }?;
        self.next = chosen + 1;
        let candidate = &mut candidates[chosen];
        candidate.room -= 1;
        candidate.load = candidate.load.saturating_add(1);
        Some(chosen)
    }
}

/// A wait that doubles from `first` up to `last`, until [`Wait::reset`].
#[derive(Debug)]
pub struct Wait {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Wait {
    /// Begins with `first`.
    pub const fn new(first: Duration, last: Duration) -> Wait {
        Wait { first, last, next: first }
    }

    /// How long to wait this time.
    pub fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.last);
        now
    }

    /// It went well: begin with the first wait again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(loads: &[u64], room: u32) -> Vec<Candidate> {
        loads.iter().map(|&load| Candidate { load, room }).collect()
    }

    #[test]
    fn the_least_loaded_worker_is_chosen_and_equals_take_turns() {
        let mut chooser = Chooser::new(Dispatch::LeastConnections);
        let mut three = candidates(&[5, 3, 3], 100);
        let chosen: Vec<_> = (0..5).filter_map(|_| chooser.choose(&mut three)).collect();
        assert_eq!(chosen, [1, 2, 1, 2, 0]);
        assert_eq!(three.iter().map(|c| c.load).collect::<Vec<_>>(), [6, 5, 5]);
    }

    #[test]
    fn round_robin_ignores_load_and_skips_full_workers() {
        let mut chooser = Chooser::new(Dispatch::RoundRobin);
        let mut three = candidates(&[9, 0, 0], 10);
        three[1].room = 0;
        let chosen: Vec<_> = (0..4).filter_map(|_| chooser.choose(&mut three)).collect();
        assert_eq!(chosen, [0, 2, 0, 2]);
    }

    #[test]
    fn nobody_is_chosen_when_all_are_full_or_gone() {
        let mut chooser = Chooser::new(Dispatch::LeastConnections);
        let mut two = candidates(&[0, 0], 1);
        assert!(chooser.choose(&mut two).is_some() && chooser.choose(&mut two).is_some());
        assert_eq!(chooser.choose(&mut two), None);
        assert_eq!(chooser.choose(&mut []), None);
    }

    #[test]
    fn room_is_what_credits_and_places_leave() {
        assert_eq!(Candidate::new(0, 0, 1000, 0, 0), Candidate { load: 0, room: CREDITS });
        assert_eq!(Candidate::new(600, 2, 1000, 590, 500), Candidate { load: 102, room: CREDITS - 12 });
        assert_eq!(Candidate::new(600, 0, 3, 600, 500).room, 3);
        assert_eq!(Candidate::new(10_000, 0, 1000, 0, 0).room, 0);
        // Counters no worker can truly have do not underflow.
        assert_eq!(Candidate::new(1, 0, 9, u64::MAX, u64::MAX), Candidate { load: 0, room: 9 });
    }

    #[test]
    fn a_wait_doubles_up_to_its_bound() {
        let ms = Duration::from_millis;
        let mut wait = Wait::new(ms(1), ms(20));
        let waits: Vec<_> = (0..7).map(|_| wait.next()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 20, 20].map(ms));
        wait.reset();
        assert_eq!(wait.next(), ms(1));
    }
}
