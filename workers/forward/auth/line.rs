//! The line of those whose passwords wait to be checked: addresses take turns, so that nobody waits for more than one
//! check of each other address, however many of those wait there.
//!
//! An address is a [`Source`]. Within one, names that have been proved there before go first. It knows no password and
//! no clock; what waits is a key of the caller's.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

/// What waits at one address at most, of proved names and of others each.
pub const EACH: usize = 16;
/// What waits in all at most.
pub const ALL: usize = 1024;

/// Where somebody is: an IPv4 address, or the 64 bits of an IPv6 address that name a network, since whoever has one
/// address there has them all (RFC 6177 section 2). Clients on Unix sockets are in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(Option<IpAddr>);

impl Source {
    /// That of a client at `peer`; `None` = on a Unix socket.
    #[must_use]
    pub fn of(peer: Option<IpAddr>) -> Source {
        Source(peer.map(|ip| match ip.to_canonical() {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        }))
    }

    /// The address, or the first of the network; `None` = the place of Unix sockets.
    #[must_use]
    pub fn address(self) -> Option<IpAddr> {
        self.0
    }
}

/// What waits at one address. Never empty.
#[derive(Debug)]
struct Place<T> {
    proved: VecDeque<T>,
    others: VecDeque<T>,
}

impl<T> Place<T> {
    fn len(&self) -> usize {
        self.proved.len() + self.others.len()
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Line<T> {
    places: HashMap<Source, Place<T>>,
    /// Every place once, in the order of their turns.
    turns: VecDeque<Source>,
    len: usize,
}

impl<T> Default for Line<T> {
    fn default() -> Line<T> {
        Line { places: HashMap::new(), turns: VecDeque::new(), len: 0 }
    }
}

impl<T: Copy + Eq + Hash> Line<T> {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `item` at the end of its place. `Ok(Some(other))`: all room was taken, and the last of the longest place had
    /// to go for it.
    ///
    /// # Errors
    /// When its own place has as much as it may have, or no other has more.
    pub fn push(&mut self, source: Source, proved: bool, item: T) -> Result<Option<T>, T> {
        let (own, queued) = self
            .places
            .get(&source)
            .map_or((0, 0), |place| (place.len(), if proved { place.proved.len() } else { place.others.len() }));
        if queued >= EACH {
            return Err(item);
        }
        let displaced = if self.len >= ALL {
            match self.displace(own) {
                Some(displaced) => Some(displaced),
                None => return Err(item),
            }
        } else {
            None
        };
        let place = self.places.entry(source).or_insert_with(|| {
            self.turns.push_back(source);
            Place { proved: VecDeque::new(), others: VecDeque::new() }
        });
        if proved {
            place.proved.push_back(item)
        } else {
            place.others.push_back(item)
        }
        self.len += 1;
        Ok(displaced)
    }

    /// Takes the last one out of the longest place, if that would be the longer one still.
    fn displace(&mut self, own: usize) -> Option<T> {
        let (source, place) = self.places.iter_mut().max_by_key(|(_, place)| place.len())?;
        if place.len() < own + 2 {
            return None;
        }
        let source = *source;
        let item = place.others.pop_back().or_else(|| place.proved.pop_back())?;
        self.len -= 1;
        self.forget_if_empty(source);
        Some(item)
    }

    /// The next one, if there is one. Its place has its next turn after all others.
    pub fn take(&mut self) -> Option<T> {
        let source = self.turns.pop_front()?;
        let place = self.places.get_mut(&source)?;
        let item = place.proved.pop_front().or_else(|| place.others.pop_front());
        if place.len() == 0 {
            self.places.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        self.len -= usize::from(item.is_some());
        item
    }

    /// Takes `item` out of its place; false when it does not wait.
    pub fn remove(&mut self, source: Source, item: T) -> bool {
        let Some(place) = self.places.get_mut(&source) else { return false };
        let before = place.len();
        place.proved.retain(|one| *one != item);
        place.others.retain(|one| *one != item);
        let removed = before - place.len();
        self.len -= removed;
        self.forget_if_empty(source);
        removed > 0
    }

    fn forget_if_empty(&mut self, source: Source) {
        if self.places.get(&source).is_some_and(|place| place.len() == 0) {
            self.places.remove(&source);
            self.turns.retain(|one| *one != source);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Source {
        Source::of(Some(text.parse().unwrap()))
    }

    fn nth(number: u32) -> Source {
        Source::of(Some(std::net::Ipv4Addr::from_bits(number).into()))
    }

    #[test]
    fn an_address_is_one_of_ipv4_or_a_network_of_ipv6() {
        assert_eq!(at("192.0.2.1"), at("::ffff:192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(Source::of(None), Source::of(None));
    }

    #[test]
    fn addresses_take_turns() {
        let mut line = Line::default();
        for n in 0..5 {
            line.push(nth(1), false, n).unwrap();
        }
        line.push(nth(2), false, 20).unwrap();
        line.push(nth(3), false, 30).unwrap();
        line.push(nth(2), false, 21).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| line.take()).collect();
        assert_eq!(order, [0, 20, 30, 1, 21, 2, 3, 4]);
        assert!(line.is_empty() && line.turns.is_empty() && line.places.is_empty());
    }

    #[test]
    fn of_one_address_proved_names_go_first() {
        let mut line = Line::default();
        line.push(nth(1), false, 1).unwrap();
        line.push(nth(1), true, 2).unwrap();
        assert_eq!([line.take(), line.take(), line.take()], [Some(2), Some(1), None]);
    }

    #[test]
    fn one_address_has_a_bound_of_its_own_and_does_not_use_up_that_of_all() {
        let mut line = Line::default();
        for n in 0..100 {
            assert_eq!(line.push(nth(1), false, n).is_ok(), n < 16, "{n}");
        }
        assert_eq!(line.push(nth(1), true, 200), Ok(None), "strangers do not keep out proved names");
        assert_eq!(line.push(nth(2), false, 300), Ok(None));
    }

    #[test]
    fn when_all_room_is_taken_the_longest_place_makes_some() {
        let mut line = Line::default();
        let places = u32::try_from(ALL / EACH).unwrap();
        for source in 0..places {
            for n in 0..16 {
                line.push(nth(source), false, source * 100 + n).unwrap();
            }
        }
        assert_eq!(line.len(), ALL);
        let displaced = line.push(nth(9999), false, 1).unwrap().unwrap();
        assert_eq!(displaced % 100, 15, "the last of its place");
        assert_eq!(line.len(), ALL);
        // Each with one only: nobody has to go for one more.
        let mut line = Line::default();
        for source in 0..u32::try_from(ALL).unwrap() {
            line.push(nth(source), false, source).unwrap();
        }
        assert_eq!(line.push(nth(9999), false, 9999), Err(9999));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_every_bound_holds(steps in prop::collection::vec((0u32..5, 0u8..4), 0..400)) {
            let mut line = Line::default();
            let mut there: Vec<(u32, usize)> = Vec::new();
            for (number, (source, what)) in steps.into_iter().enumerate() {
                match what {
                    0 | 1 => {
                        if line.push(nth(source), what == 1, number).is_ok() {
                            there.push((source, number));
                        }
                    }
                    2 => {
                        let taken = line.take();
                        prop_assert_eq!(taken.is_some(), !there.is_empty());
                        there.retain(|(_, one)| Some(*one) != taken);
                    }
                    _ => if let Some((source, item)) = there.first().copied() {
                        prop_assert!(line.remove(nth(source), item));
                        prop_assert!(!line.remove(nth(source), item));
                        there.remove(0);
                    },
                }
                prop_assert_eq!(line.len(), there.len());
                prop_assert_eq!(line.turns.len(), line.places.len());
                prop_assert!(line.places.values().all(|place| (1..=2 * EACH).contains(&place.len())));
            }
        }
    }
}
