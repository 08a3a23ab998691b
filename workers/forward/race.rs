//! Connecting to whichever of several addresses answers first (RFC 8305): one begins, and while it does not stand
//! another joins it after a quarter of a second. Decides what comes next; opens and closes nothing.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::backend::Upstream;
use crate::forward::preference;
use crate::slab::Key;

/// How long one attempt is alone before the next begins (RFC 8305 section 5).
pub const DELAY_MS: u64 = 250;
/// Addresses tried at most.
pub const MAX_ADDRESSES: usize = 16;

/// An attempt under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Where to.
    pub address: SocketAddr,
    /// Its connection.
    pub upstream: Key<Upstream>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Race {
    left: VecDeque<SocketAddr>,
    running: Vec<Attempt>,
    next_ms: u64,
    /// Whether every failure so far was that the other side refused.
    pub all_refused: bool,
}

impl Race {
    /// A race to `addresses`, in the order in which name servers gave them. At most [`MAX_ADDRESSES`] take part, those
    /// [to be preferred](preference::order) first; `source_of` says from where this machine would go to one.
    #[must_use]
    pub fn new(
        addresses: impl IntoIterator<Item = SocketAddr>,
        source_of: impl Fn(SocketAddr) -> Option<IpAddr>,
    ) -> Race {
        let mut those: Vec<SocketAddr> = alternating(addresses).take(MAX_ADDRESSES).collect();
        preference::order(&mut those, source_of);
        let left = alternating(those).collect();
        Race { left, running: Vec::new(), next_ms: 0, all_refused: true }
    }

    /// The next address to try, if it is time: nothing runs, or the last attempt has been alone for long enough.
    pub fn next(&mut self, now_ms: u64) -> Option<SocketAddr> {
        if !self.running.is_empty() && now_ms < self.next_ms {
            return None;
        }
        self.left.pop_front()
    }

    /// An attempt began.
    pub fn began(&mut self, attempt: Attempt, now_ms: u64) {
        self.running.push(attempt);
        self.next_ms = now_ms + DELAY_MS;
    }

    /// An attempt failed. The next one need not wait.
    pub fn failed(&mut self, upstream: Key<Upstream>, refused: bool) {
        self.running.retain(|attempt| attempt.upstream != upstream);
        self.next_ms = 0;
        self.all_refused &= refused;
    }

    /// Whether an attempt is under way.
    #[must_use]
    pub fn runs(&self) -> bool {
        !self.running.is_empty()
    }

    /// What runs, to be closed because an attempt that has begun takes its place.
    pub fn replaced(&mut self) -> Vec<Key<Upstream>> {
        self.all_refused &= self.running.is_empty();
        std::mem::take(&mut self.running).into_iter().map(|attempt| attempt.upstream).collect()
    }

    /// When [`Race::next`] is to be asked; `None` when nobody is left to join.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        (!self.left.is_empty()).then_some(self.next_ms)
    }

    /// Whether nothing runs and nobody is left.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.left.is_empty() && self.running.is_empty()
    }

    /// The attempt that `upstream` is.
    #[must_use]
    pub fn attempt(&self, upstream: Key<Upstream>) -> Option<Attempt> {
        self.running.iter().find(|attempt| attempt.upstream == upstream).copied()
    }

    /// Everything that runs, to be closed, but for the winner.
    pub fn others(&mut self, winner: Option<Key<Upstream>>) -> Vec<Key<Upstream>> {
        self.left.clear();
        let running = std::mem::take(&mut self.running);
        running.into_iter().map(|attempt| attempt.upstream).filter(|&upstream| Some(upstream) != winner).collect()
    }
}

/// The addresses in their order, but with the families taking turns: the first one's begins (RFC 8305 section 4).
fn alternating(addresses: impl IntoIterator<Item = SocketAddr>) -> impl Iterator<Item = SocketAddr> {
    let mut seen = Vec::new();
    for address in addresses {
        if !seen.contains(&address) && seen.len() < 4 * MAX_ADDRESSES {
            seen.push(address);
        }
    }
    let first_is_v4 = seen.first().is_some_and(SocketAddr::is_ipv4);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        seen.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    let mut turn = false;
    std::iter::from_fn(move || {
        turn = !turn;
        if turn {
            first.pop_front().or_else(|| second.pop_front())
        } else {
            second.pop_front().or_else(|| first.pop_front())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// On a machine that has a way everywhere.
    fn everywhere(addresses: impl IntoIterator<Item = SocketAddr>) -> Race {
        Race::new(addresses, |address| Some(address.ip()))
    }

    fn key(n: u64) -> Key<Upstream> {
        Key::from_bits(n)
    }

    #[test]
    fn families_take_turns_and_nothing_is_tried_twice() {
        let list = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1", "[::1]:1", "1.0.0.2:1"]);
        let order: Vec<String> = alternating(list).map(|address| address.to_string()).collect();
        assert_eq!(order, ["[::1]:1", "1.0.0.1:1", "[::2]:1", "1.0.0.2:1", "[::3]:1"]);
    }

    #[test]
    fn the_next_joins_after_a_quarter_of_a_second_or_a_failure() {
        let list = addresses(&["1.0.0.1:1", "1.0.0.2:1", "1.0.0.3:1"]);
        let mut race = everywhere(list.clone());
        assert_eq!(race.next(1000), Some(list[0]));
        race.began(Attempt { address: list[0], upstream: key(1) }, 1000);
        assert_eq!((race.next(1249), race.due_ms()), (None, Some(1250)));
        assert_eq!(race.next(1250), Some(list[1]));
        race.began(Attempt { address: list[1], upstream: key(2) }, 1250);
        race.failed(key(1), true);
        assert_eq!(race.next(1260), Some(list[2]));
        race.began(Attempt { address: list[2], upstream: key(3) }, 1260);
        assert_eq!((race.next(9999), race.due_ms()), (None, None));
        assert_eq!(race.attempt(key(2)).unwrap().address, list[1]);
        assert_eq!(race.attempt(key(1)), None);
        assert_eq!(race.others(Some(key(2))), [key(3)]);
    }

    #[test]
    fn an_attempt_may_take_the_place_of_those_before_it() {
        let list = addresses(&["1.0.0.1:1", "1.0.0.2:1"]);
        let mut race = everywhere(list.clone());
        assert_eq!(race.next(0), Some(list[0]));
        assert!(race.replaced().is_empty() && race.all_refused);
        race.began(Attempt { address: list[0], upstream: key(1) }, 0);
        assert_eq!((race.next(DELAY_MS), race.replaced()), (Some(list[1]), vec![key(1)]));
        race.began(Attempt { address: list[1], upstream: key(2) }, DELAY_MS);
        race.failed(key(2), true);
        assert!(race.is_lost() && !race.all_refused, "nobody knows of the first");
    }

    #[test]
    fn a_race_is_lost_when_all_have_failed() {
        let mut race = everywhere(addresses(&["1.0.0.1:1", "1.0.0.2:1"]));
        for n in 1..=2 {
            let address = race.next(0).unwrap();
            race.began(Attempt { address, upstream: key(n) }, 0);
            assert!(!race.is_lost());
            race.failed(key(n), n == 1);
        }
        assert!(race.is_lost() && !race.all_refused);
        assert!(everywhere(Vec::new()).is_lost());
    }

    #[test]
    fn a_family_whose_way_is_worse_comes_second() {
        let list = addresses(&["[2606:4700::1]:1", "[2606:4700::2]:1", "1.0.0.1:1", "1.0.0.2:1"]);
        let from =
            |v6: &'static str| move |to: SocketAddr| Some(if to.is_ipv4() { to.ip() } else { v6.parse().unwrap() });
        assert_eq!(Race::new(list.clone(), from("2a00::1")).next(0), Some(list[0]));
        let local = Race::new(list.clone(), from("fd00::1"));
        assert_eq!(local.left, [list[2], list[0], list[3], list[1]]);
    }

    #[test]
    fn the_number_of_attempts_is_bounded() {
        let many = (0..100).map(|n| SocketAddr::from(([1, 0, 0, n], 1)));
        assert_eq!(everywhere(many).left.len(), MAX_ADDRESSES);
    }
}
