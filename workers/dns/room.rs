//! Who has begun the lookups under way: names that nobody answers for must not take the room that others need.
//!
//! Half of the room for clients is anybody's. The rest is for those who have few lookups under way, and beyond all that
//! clients can have there is room for the names of servers. A lookup counts for the one who began it, until it ends,
//! whoever waits for it. It looks nothing up and knows no clock.

use std::collections::HashMap;

use crate::forward::auth::line::Source;

/// Lookups under way, all together.
pub const ALL: usize = 256;
/// Those that clients have begun.
pub const OF_CLIENTS: usize = 192;
/// With so many of these, an address begins no more while it has [`FEW`].
pub const ANYBODYS: usize = OF_CLIENTS / 2;
/// See [`ANYBODYS`].
pub const FEW: usize = 16;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Room {
    all: usize,
    of_clients: usize,
    by: HashMap<Source, usize>,
}

impl Room {
    /// A lookup is to begin, for a client at `by`, or for the name of a server. False when there is no room for it.
    #[must_use]
    pub fn take(&mut self, by: Option<Source>) -> bool {
        if self.all >= ALL {
            return false;
        }
        if let Some(source) = by {
            let has = self.by.get(&source).copied().unwrap_or(0);
            if self.of_clients >= OF_CLIENTS || self.of_clients >= ANYBODYS && has >= FEW {
                return false;
            }
            self.of_clients += 1;
            self.by.insert(source, has + 1);
        }
        self.all += 1;
        true
    }

    /// One that was begun so has ended.
    pub fn give_back(&mut self, by: Option<Source>) {
        self.all = self.all.saturating_sub(1);
        let Some(source) = by else { return };
        self.of_clients = self.of_clients.saturating_sub(1);
        if let Some(has) = self.by.get_mut(&source) {
            *has -= 1;
            if *has == 0 {
                self.by.remove(&source);
            }
        }
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all == 0 && self.of_clients == 0 && self.by.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> Option<Source> {
        Some(Source::of(Some([192, 0, 2, n].into())))
    }

    fn take(room: &mut Room, by: Option<Source>) -> usize {
        (0..2 * ALL).filter(|_| room.take(by)).count()
    }

    #[test]
    fn an_address_gets_half_and_leaves_some_for_each_other_one() {
        let mut room = Room::default();
        assert_eq!(take(&mut room, client(1)), ANYBODYS);
        assert_eq!(take(&mut room, client(2)), FEW);
        assert_eq!(take(&mut room, client(3)), FEW);
        assert_eq!(take(&mut room, client(1)), 0);
        room.give_back(client(2));
        assert_eq!((take(&mut room, client(1)), take(&mut room, client(2))), (0, 1));
    }

    #[test]
    fn clients_leave_room_for_the_names_of_servers() {
        let mut room = Room::default();
        let clients: usize = (0..=u8::MAX).map(|n| take(&mut room, client(n))).sum();
        assert_eq!((clients, take(&mut room, None), take(&mut room, client(1))), (OF_CLIENTS, ALL - OF_CLIENTS, 0));
        for _ in 0..ALL - OF_CLIENTS {
            room.give_back(None);
        }
        assert_eq!(take(&mut room, client(255)), 0);
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut room = Room::default();
        for by in [client(1), client(2), client(1), None] {
            assert!(room.take(by));
        }
        for by in [client(1), None, client(2), client(1)] {
            assert!(!room.is_empty());
            room.give_back(by);
        }
        assert!(room.is_empty());
    }
}
