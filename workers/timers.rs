//! The worker's only timer: a coarse, hierarchical wheel of deadlines.
//!
//! It holds opaque tokens (the caller packs its key into one) and never reads a clock: times are milliseconds of
//! whatever monotonic clock the caller passes in. A deadline never fires early and at most one tick
//! ([`TICK_MS`]) late, provided [`Timers::expire`] is called when [`Timers::next_deadline`] says.
//!
//! It is meant for one entry a connection, re-armed lazily: input and output only move a deadline field of the
//! connection; when the entry fires before that field's time, the connection is armed again for it.
//! [`Timers::rearm`] is that rule: it touches the wheel only when the deadline comes nearer.
//!
//! The wheel has six levels of 64 slots. A slot of level `l` spans 64^l ticks; an entry lies in the level of
//! the highest base-64 digit in which its tick differs from the present one, and moves down a level when the
//! present reaches its slot: at most five times, for a minute's deadline once. Arming, disarming and firing take
//! constant time and allocate only while the number of entries reaches a new maximum.

/// The granularity in milliseconds.
pub const TICK_MS: u64 = 64;

const LEVEL_BITS: u32 = 6;
const SLOTS: usize = 1 << LEVEL_BITS;
const SLOT_MASK: u32 = (1 << LEVEL_BITS) - 1;
/// Six digits of six bits hold any 32-bit tick.
const LEVELS: usize = 6;

/// No entry: the end of a list.
const NIL: u32 = u32::MAX;

/// One entry of the wheel, as [`Timers::schedule`] made it. Ordered by when it fires.
///
/// Two entries that are in the wheel at the same time are never equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Armed {
    tick: u32,
    node: u32,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    token: u64,
    /// When it fires; 0 = vacant, for no entry fires at tick 0.
    tick: u32,
    next: u32,
    /// The entry before it; [`NIL`] = it is the first of `list`.
    prev: u32,
    list: u32,
}

/// The wheel. Bounded by the caller: one entry (24 bytes) for each thing that has a deadline.
///
/// Deadlines more than 2^32 ticks (eight years) after the wheel was made fire then.
#[derive(Debug)]
pub struct Timers {
    /// The time of tick 0.
    base_ms: u64,
    /// All entries before and at this tick have fired.
    now: u32,
    /// For each level, a bit for each slot that is not empty.
    occupied: [u64; LEVELS],
    /// First entry of each slot's list.
    heads: [u32; LEVELS * SLOTS],
    nodes: Vec<Node>,
    vacant: u32,
    len: usize,
}

impl Timers {
    /// An empty wheel that begins at `now_ms`. Allocates nothing yet.
    #[must_use]
    pub fn new(now_ms: u64) -> Timers {
        Timers {
            base_ms: now_ms,
            now: 0,
            occupied: [0; LEVELS],
            heads: [NIL; LEVELS * SLOTS],
            nodes: Vec::new(),
            vacant: NIL,
            len: 0,
        }
    }

    /// How many entries are armed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is armed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Arms an entry for `at_ms`; a time already past fires at the next tick. The same token may be armed more
    /// than once: each entry fires on its own, and the caller knows by [`Armed`] which one it meant.
    pub fn schedule(&mut self, token: u64, at_ms: u64) -> Armed {
        let ticks = at_ms.saturating_sub(self.base_ms).div_ceil(TICK_MS);
        let tick = u32::try_from(ticks).unwrap_or(u32::MAX).max(self.now.saturating_add(1));
        let node = Node { token, tick, next: NIL, prev: NIL, list: 0 };
        let index = match self.nodes.get_mut(self.vacant as usize) {
            Some(vacant) => {
                let index = self.vacant;
                self.vacant = vacant.next;
                *vacant = node;
                index
            }
            None => {
                let index = u32::try_from(self.nodes.len()).expect("2^32 entries of 24 bytes do not fit in memory");
                self.nodes.push(node);
                index
            }
        };
        self.len += 1;
        self.link(index, tick);
        Armed { tick, node: index }
    }

    /// Sees to it that `token` has an entry that fires no later than `at_ms` asks: keeps `armed` if it does,
    /// otherwise takes it out and arms another. The caller remembers what this returns.
    pub fn rearm(&mut self, token: u64, armed: Option<Armed>, at_ms: u64) -> Armed {
        match armed {
            Some(armed) if self.fires_at(armed) <= at_ms.saturating_add(TICK_MS - 1) && self.holds(armed) => armed,
            Some(armed) => {
                self.cancel(armed);
                self.schedule(token, at_ms)
            }
            None => self.schedule(token, at_ms),
        }
    }

    /// Takes an entry out before it fires; `false` if it has fired or was taken out. A caller may as well leave
    /// it and ignore it when it fires, but what has ended should not occupy memory until its deadline.
    pub fn cancel(&mut self, armed: Armed) -> bool {
        if !self.holds(armed) {
            return false;
        }
        let Node { next, prev, list, .. } = self.nodes[armed.node as usize];
        if prev == NIL {
            self.heads[list as usize] = next;
            if next == NIL {
                self.occupied[list as usize / SLOTS] &= !(1 << (list & SLOT_MASK));
            }
        } else {
            self.nodes[prev as usize].next = next;
        }
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        self.release(armed.node);
        true
    }

    /// When `armed` fires, in the caller's milliseconds.
    #[must_use]
    pub fn fires_at(&self, armed: Armed) -> u64 {
        self.time_of(armed.tick)
    }

    /// When [`Timers::expire`] is to be called next, in the caller's milliseconds; `None` = nothing is armed.
    /// It is never later than the first entry to fire, and may be earlier by what it takes to move entries down.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.next_slot().map(|(_, tick)| self.time_of(tick))
    }

    /// Appends every entry due at `now_ms` to `due`, in the order of their ticks, and takes it out of the wheel.
    ///
    /// Takes time in proportion to the entries that fire or move down, however long the last call is ago. A time
    /// before the former call's is taken for that.
    pub fn expire(&mut self, now_ms: u64, due: &mut Vec<(u64, Armed)>) {
        let target = u32::try_from(now_ms.saturating_sub(self.base_ms) / TICK_MS).unwrap_or(u32::MAX);
        while let Some((list, tick)) = self.next_slot().filter(|&(_, tick)| tick <= target) {
            self.now = tick;
            let mut index = std::mem::replace(&mut self.heads[list], NIL);
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
            while index != NIL {
                let Node { token, tick, next, .. } = self.nodes[index as usize];
                if tick <= self.now {
                    due.push((token, Armed { tick, node: index }));
                    self.release(index);
                } else {
                    self.link(index, tick);
                }
                index = next;
            }
        }
        // No entry lies between here and the next slot, so every entry keeps its place.
        self.now = self.now.max(target);
    }

    /// The first slot that is not empty, and the tick it begins at.
    ///
    /// All entries of a level share with the present every digit above that level's and exceed it in that one, so
    /// the lowest level that has any has the first.
    fn next_slot(&self) -> Option<(usize, u32)> {
        let (level, bits) = self.occupied.iter().enumerate().find(|(_, bits)| **bits != 0)?;
        let slot = bits.trailing_zeros();
        let shift = level_shift(level);
        let above = u32::MAX.checked_shl(shift + LEVEL_BITS).unwrap_or(0);
        Some((level * SLOTS + slot as usize, self.now & above | slot << shift))
    }

    /// Puts an entry into the list for `tick`, which is after the present.
    fn link(&mut self, index: u32, tick: u32) {
        let level = ((tick ^ self.now).max(1).ilog2() / LEVEL_BITS) as usize;
        let slot = tick >> level_shift(level) & SLOT_MASK;
        let list = level * SLOTS + slot as usize;
        let next = std::mem::replace(&mut self.heads[list], index);
        if next != NIL {
            self.nodes[next as usize].prev = index;
        }
        self.occupied[level] |= 1 << slot;
        let node = &mut self.nodes[index as usize];
        node.next = next;
        node.prev = NIL;
        node.list = u32::try_from(list).unwrap_or(NIL);
    }

    fn release(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.tick = 0;
        node.next = self.vacant;
        self.vacant = index;
        self.len -= 1;
    }

    fn holds(&self, armed: Armed) -> bool {
        self.nodes.get(armed.node as usize).is_some_and(|node| node.tick == armed.tick)
    }

    fn time_of(&self, tick: u32) -> u64 {
        self.base_ms.saturating_add(u64::from(tick) * TICK_MS)
    }
}

fn level_shift(level: usize) -> u32 {
    // Below 36: there are six levels.
    u32::try_from(level).unwrap_or(0) * LEVEL_BITS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expire(timers: &mut Timers, now_ms: u64) -> Vec<(u64, Armed)> {
        let mut due = Vec::new();
        timers.expire(now_ms, &mut due);
        due
    }

    #[test]
    fn a_deadline_fires_never_early_and_at_most_one_tick_late() {
        let mut timers = Timers::new(1000);
        let armed = timers.schedule(7, 1100);
        assert_eq!(timers.next_deadline(), Some(1128));
        assert_eq!(timers.fires_at(armed), 1128);
        assert_eq!(expire(&mut timers, 1127), []);
        assert_eq!(expire(&mut timers, 1128), [(7, armed)]);
        assert_eq!(timers.next_deadline(), None);
        assert!(timers.is_empty());
    }

    #[test]
    fn a_past_deadline_fires_at_the_next_tick() {
        let mut timers = Timers::new(0);
        assert_eq!(expire(&mut timers, 10_000), []);
        let armed = timers.schedule(1, 5);
        assert!(timers.fires_at(armed) <= 10_000 + TICK_MS);
        assert_eq!(expire(&mut timers, 10_000), []);
        assert_eq!(expire(&mut timers, 10_000 + TICK_MS), [(1, armed)]);
    }

    #[test]
    fn time_running_backwards_is_ignored() {
        let mut timers = Timers::new(5000);
        let armed = timers.schedule(1, 6000);
        assert_eq!(expire(&mut timers, 5500), []);
        assert_eq!(expire(&mut timers, 0), []);
        assert_eq!(expire(&mut timers, 6100), [(1, armed)]);
    }

    #[test]
    fn the_farthest_deadline_is_kept_and_fires() {
        let mut timers = Timers::new(3);
        let never = timers.schedule(1, u64::MAX);
        let soon = timers.schedule(2, 100);
        assert_eq!(expire(&mut timers, u64::from(u32::MAX - 1) * TICK_MS), [(2, soon)]);
        assert_eq!(timers.len(), 1);
        assert_eq!(expire(&mut timers, u64::MAX), [(1, never)]);
        // The end of time: what is armed now fires at once.
        let last = timers.schedule(3, 0);
        assert_eq!(expire(&mut timers, u64::MAX), [(3, last)]);
    }

    #[test]
    fn rearming_for_later_keeps_the_entry_and_for_sooner_moves_it() {
        let mut timers = Timers::new(0);
        let first = timers.rearm(1, None, 10_000);
        assert_eq!(timers.rearm(1, Some(first), 60_000), first);
        assert_eq!(timers.rearm(1, Some(first), 10_000), first);
        let sooner = timers.rearm(1, Some(first), 500);
        assert!(sooner < first);
        assert_eq!(timers.len(), 1);
        assert_eq!(expire(&mut timers, 20_000), [(1, sooner)]);
        // A remembered entry that has fired is not taken for a live one.
        let again = timers.rearm(1, Some(sooner), 30_000);
        assert_eq!(timers.len(), 1);
        assert_eq!(expire(&mut timers, 40_000), [(1, again)]);
    }

    #[test]
    fn steady_use_allocates_no_more_nodes() {
        let mut timers = Timers::new(0);
        let mut due = Vec::new();
        for turn in 0..100_000u64 {
            timers.schedule(turn, turn * 10 + 1 + turn % 7 * 1000);
            due.clear();
            timers.expire(turn * 10, &mut due);
        }
        assert!(timers.nodes.len() < 1200, "{}", timers.nodes.len());
        assert_eq!(size_of::<Node>(), 24);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Schedule(u64),
        Cancel(prop::sample::Index),
        Pass(u64),
        ToNext,
    }

    fn step() -> impl Strategy<Value = Step> {
        let ahead = prop_oneof![0u64..200, 0u64..20_000, 0u64..2_000_000, 0u64..1_000_000_000];
        prop_oneof![
            4 => ahead.clone().prop_map(Step::Schedule),
            1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
            2 => ahead.prop_map(Step::Pass),
            2 => Just(Step::ToNext),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn it_fires_what_a_plain_list_would(base in 0u64..1_000_000, steps in prop::collection::vec(step(), 1..200)) {
            let mut timers = Timers::new(base);
            let mut now = base;
            // Token, deadline, entry. The model knows nothing of slots: only how late each may be.
            let mut model: Vec<(u64, u64, Armed)> = Vec::new();
            for (token, step) in (0u64..).zip(steps) {
                match step {
                    Step::Schedule(ahead) => {
                        let at = now + ahead;
                        let armed = timers.schedule(token, at);
                        prop_assert!(timers.fires_at(armed) >= at);
                        prop_assert!(timers.fires_at(armed) <= at + TICK_MS);
                        prop_assert!(model.iter().all(|entry| entry.2 != armed));
                        model.push((token, at, armed));
                    }
                    Step::Cancel(which) if !model.is_empty() => {
                        let (_, _, armed) = model.swap_remove(which.index(model.len()));
                        prop_assert!(timers.cancel(armed));
                        prop_assert!(!timers.cancel(armed));
                    }
                    Step::Cancel(_) => {}
                    Step::Pass(ms) => now += ms,
                    Step::ToNext => now = timers.next_deadline().map_or(now, |next| next.max(now)),
                }
                let due = expire(&mut timers, now);
                prop_assert!(due.is_sorted_by_key(|(_, armed)| timers.fires_at(*armed)));
                for (token, armed) in due {
                    let index = model.iter().position(|entry| entry.2 == armed);
                    prop_assert!(index.is_some(), "fired twice or after being cancelled");
                    let (expected, at, _) = model.swap_remove(index.unwrap());
                    prop_assert_eq!(token, expected);
                    prop_assert!(at <= now, "early");
                    prop_assert!(!timers.cancel(armed));
                }
                for (_, at, armed) in &model {
                    prop_assert!(timers.fires_at(*armed) > now && *at + TICK_MS > now, "late");
                }
                prop_assert_eq!(timers.len(), model.len());
                let first = model.iter().map(|entry| timers.fires_at(entry.2)).min();
                match (timers.next_deadline(), first) {
                    (Some(next), Some(first)) => prop_assert!(now < next && next <= first),
                    (next, first) => prop_assert_eq!(next, first),
                }
            }
        }
    }
}
