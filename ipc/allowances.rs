//! Until when each has used up what it may: a table of times that several processes change together.
//!
//! What may be done so often in a while is bounded by the generic cell rate algorithm (ITU-T I.371, the virtual
//! scheduling form): of each there is one time kept, at which its allowance is whole again. Every use moves that on by as
//! long as takes to grow back, and one that would move it further ahead than a whole allowance takes is refused. A use is
//! one compare-and-exchange, so that no process ever waits for another, none leaves anything locked when it is killed,
//! and what a dead one has used stays used.
//!
//! An allowance that is whole again need not be kept: its cell is free. A number can stand in the cells of one bucket
//! only; when all of these are taken, the one that is soonest whole again is forgotten early. In the instant in which a
//! cell becomes another's, one use may count for the wrong one of the two; and should two have taken a place each for the
//! same number, a process killed while it puts them together takes along what one of them said.
//!
//! Times are nanoseconds of the monotonic clock, which is the same in all processes. Every one of them can write all of
//! the table: what it says bounds others, and nothing more is to be believed of it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use crate::fault;

/// A second.
pub const SECOND_NS: u64 = 1_000_000_000;
const DAY_NS: u64 = 24 * 3600 * SECOND_NS;
/// No time that is kept lies further ahead, by far; one that does was written by something gone wrong, and is none.
const AHEAD_MAX_NS: u64 = 7 * DAY_NS;
/// Cells of a bucket.
const CELLS: usize = 8;
/// Words of a bucket: of each cell a number, 0 = none, and its time.
const BUCKET_WORDS: usize = 2 * CELLS;
/// How often somebody begins again whose cell was taken meanwhile. Each time is another's success.
const TRIES: usize = 16;

/// See the module's description. `0` words are a table in which every allowance is whole.
#[derive(Debug, Clone, Copy)]
pub struct Allowances<'a>(&'a [AtomicU64]);

#[derive(Clone, Copy)]
struct Place<'a> {
    number: &'a AtomicU64,
    until: &'a AtomicU64,
}

impl<'a> Allowances<'a> {
    /// A table in these words, which all who share it divide in the same way: as many buckets as there is room for.
    #[must_use]
    pub fn new(words: &'a [AtomicU64]) -> Allowances<'a> {
        Allowances(words)
    }

    /// Until when `number`, which is not 0, has used something up; `now` = its allowance is whole.
    #[must_use]
    pub fn until(&self, number: u64, now: u64) -> u64 {
        self.find(number, now).map_or(now, |place| sound(place.until.load(SeqCst), now))
    }

    /// Uses what takes `grows_ns` to grow back, unless all of it would be whole more than `whole_ns` from now. Whether
    /// it was there. Of all who ask at once no more get it than may.
    #[must_use]
    pub fn take(&self, number: u64, now: u64, grows_ns: u64, whole_ns: u64) -> bool {
        let most = now.saturating_add(whole_ns);
        self.change(number, now, |until| Some(until.saturating_add(grows_ns)).filter(|after| *after <= most))
    }

    /// Uses what takes `grows_ns` to grow back, be it there or not: what is too much has to be made up for, for a day at
    /// most.
    pub fn use_up(&self, number: u64, now: u64, grows_ns: u64) {
        let most = now.saturating_add(DAY_NS);
        self.change(number, now, |until| Some(until.saturating_add(grows_ns).min(until.max(most))));
    }

    /// Gives back what was taken and not used after all.
    pub fn give_back(&self, number: u64, now: u64, grows_ns: u64) {
        if let Some(place) = self.find(number, now) {
            let _ = place.until.fetch_update(SeqCst, SeqCst, |until| Some(until.saturating_sub(grows_ns)));
        }
    }

    /// Has `number` last until `until`, unless it lasts for longer already.
    pub fn keep(&self, number: u64, now: u64, until: u64) {
        self.change(number, now, |found| Some(found.max(until)));
    }

    /// Moves the time of `number` to what `next` makes of it; `None` = it stays. Whether it was moved.
    fn change(&self, number: u64, now: u64, next: impl Fn(u64) -> Option<u64>) -> bool {
        for _ in 0..TRIES {
            let Some(place) = self.find(number, now).or_else(|| self.claim(number, now)) else { continue };
            let mut after = 0;
            let moved = place.until.fetch_update(SeqCst, SeqCst, |until| {
                let next = next(sound(until, now))?;
                after = next;
                Some(next)
            });
            if moved.is_err() {
                return false;
            }
            fault::instant();
            if self.find(number, now).is_some_and(|found| std::ptr::eq(found.until, place.until)) {
                return true;
            }
            // Another place counts by now, or none. Either it has been added there, or is here still and for nothing.
            if place.until.compare_exchange(after, 0, SeqCst, SeqCst).is_err() {
                return true;
            }
        }
        // Each of these times others were faster, more than there are cells: that is more than may be.
        false
    }

    fn places(&self, number: u64) -> impl Iterator<Item = Place<'a>> + use<'a> {
        let buckets = (self.0.len() / BUCKET_WORDS) as u64;
        let bucket = usize::try_from(number.checked_rem(buckets).unwrap_or(0)).unwrap_or(0);
        let words = self.0.get(bucket * BUCKET_WORDS..(bucket + 1) * BUCKET_WORDS).unwrap_or(&[]);
        words.chunks_exact(2).map(|cell| Place { number: &cell[0], until: &cell[1] })
    }

    /// The place of `number`. Several who came first at the same time may have made one each: the first is it, and what
    /// the others say is added there.
    fn find(&self, number: u64, now: u64) -> Option<Place<'a>> {
        let mut places = self.places(number).filter(|place| place.number.load(SeqCst) == number);
        let first = places.next()?;
        for other in places {
            let more = sound(other.until.swap(0, SeqCst), now) - now;
            fault::instant();
            let _ = other.number.compare_exchange(number, 0, SeqCst, SeqCst);
            let add = |until| Some(sound(until, now).saturating_add(more));
            let _ = first.until.fetch_update(SeqCst, SeqCst, add);
        }
        Some(first)
    }

    /// Makes one of the cells that of `number`; `None` = somebody else was faster.
    fn claim(&self, number: u64, now: u64) -> Option<Place<'a>> {
        let soonest = |place: &Place<'_>| match place.number.load(SeqCst) {
            0 => 0,
            _ => sound(place.until.load(SeqCst), now),
        };
        let place = self.places(number).min_by_key(soonest)?;
        // The time is read before and changed before: nobody is to begin with what another has used, and nothing is
        // forgotten of one who has just got the cell and used it.
        let until = place.until.load(SeqCst);
        let was = place.number.load(SeqCst);
        if was == number {
            return Some(place);
        }
        place.until.compare_exchange(until, 0, SeqCst, SeqCst).ok()?;
        fault::instant();
        place.number.compare_exchange(was, number, SeqCst, SeqCst).ok()?;
        self.find(number, now)
    }
}

/// A time that was read, as far as it can be one; `now` at least.
fn sound(until: u64, now: u64) -> u64 {
    if until > now.saturating_add(AHEAD_MAX_NS) { now } else { until.max(now) }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn words(buckets: usize) -> Vec<AtomicU64> {
        (0..buckets * BUCKET_WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    const NOW: u64 = 100 * SECOND_NS;

    #[test]
    fn so_many_at_once_and_then_as_they_grow_back() {
        let words = words(4);
        let table = Allowances::new(&words);
        let third = SECOND_NS / 3;
        let take = |now| table.take(7, now, third, SECOND_NS);
        assert_eq!([take(NOW), take(NOW), take(NOW), take(NOW)], [true, true, true, false]);
        assert!(!take(NOW + third - 2) && take(NOW + third) && !take(NOW + third));
        assert!(table.take(8, NOW, third, SECOND_NS), "another");
        // However long nothing was used, there is no more than all of it.
        let later = NOW + 3600 * SECOND_NS;
        assert_eq!([take(later), take(later), take(later), take(later)], [true, true, true, false]);
        assert_eq!(table.until(9, NOW), NOW);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_no_more_than_that() {
        let words = words(4);
        let table = Allowances::new(&words);
        let take = || table.take(7, NOW, SECOND_NS / 2, SECOND_NS);
        assert_eq!([take(), take(), take()], [true, true, false]);
        table.give_back(7, NOW, SECOND_NS / 2);
        assert_eq!([take(), take()], [true, false]);
        for _ in 0..5 {
            table.give_back(7, NOW, SECOND_NS / 2);
        }
        assert_eq!([take(), take(), take()], [true, true, false]);
        table.give_back(8, NOW, 1);
    }

    #[test]
    fn what_is_too_much_is_made_up_for_within_a_day() {
        let words = words(4);
        let table = Allowances::new(&words);
        table.use_up(7, NOW, 5 * SECOND_NS);
        table.use_up(7, NOW, SECOND_NS);
        assert_eq!(table.until(7, NOW), NOW + 6 * SECOND_NS);
        assert!(!table.take(7, NOW + 5 * SECOND_NS, 1, SECOND_NS) && table.take(7, NOW + 6 * SECOND_NS, 1, SECOND_NS));
        table.use_up(7, NOW, u64::MAX);
        assert_eq!(table.until(7, NOW), NOW + DAY_NS);
        table.use_up(7, NOW, u64::MAX);
        assert_eq!(table.until(7, NOW), NOW + DAY_NS);
        table.keep(9, NOW, NOW + 5);
        table.keep(9, NOW, NOW + 3);
        assert_eq!((table.until(9, NOW), table.until(9, NOW + 6)), (NOW + 5, NOW + 6));
    }

    #[test]
    fn a_full_bucket_forgets_who_is_soonest_whole_again() {
        let words = words(1);
        let table = Allowances::new(&words);
        for number in 1..=8 {
            table.use_up(number, NOW, number * SECOND_NS);
        }
        table.use_up(9, NOW, SECOND_NS);
        assert_eq!((table.until(1, NOW), table.until(2, NOW)), (NOW, NOW + 2 * SECOND_NS));
        assert_eq!(table.until(9, NOW), NOW + SECOND_NS, "it began with nothing used");
        // One that is whole makes room before others are forgotten.
        let later = NOW + 2 * SECOND_NS;
        table.use_up(10, later, SECOND_NS);
        table.use_up(11, later, SECOND_NS);
        assert!((3..=8).all(|number| table.until(number, NOW) == NOW + number * SECOND_NS));
    }

    #[test]
    fn what_cannot_be_a_time_bounds_nobody() {
        let words = words(1);
        for word in &words {
            word.store(u64::MAX, SeqCst);
        }
        let table = Allowances::new(&words);
        assert_eq!(table.until(u64::MAX, NOW), NOW);
        assert!(table.take(u64::MAX, NOW, 1, 1) && !table.take(u64::MAX, NOW, 1, 1));
        assert!(table.take(5, NOW, 1, 1));
        assert_eq!(Allowances::new(&[]).until(1, NOW), NOW);
    }

    #[test]
    fn two_places_for_one_are_made_one_that_says_what_both_said() {
        let words = words(1);
        for (at, ahead) in [(2, 3), (5, 4)] {
            words[2 * at].store(7, SeqCst);
            words[2 * at + 1].store(NOW + ahead, SeqCst);
        }
        let table = Allowances::new(&words);
        assert_eq!(table.until(7, NOW), NOW + 7);
        assert_eq!(words.iter().step_by(2).filter(|number| number.load(SeqCst) == 7).count(), 1);
    }

    #[test]
    fn of_many_at_once_no_more_get_it_than_may() {
        // All begin without a place, so that they compete for that as well.
        for round in 0..1000 {
            let (words, start) = (words(1), Barrier::new(4));
            let taken: u32 = std::thread::scope(|scope| {
                let taker = || {
                    let table = Allowances::new(&words);
                    start.wait();
                    (0..10).map(|_| u32::from(table.take(7, NOW, SECOND_NS / 20, SECOND_NS))).sum::<u32>()
                };
                let takers: Vec<_> = (0..4).map(|_| scope.spawn(taker)).collect();
                takers.into_iter().map(|taker| taker.join().unwrap()).sum()
            });
            assert_eq!(taken, 20, "round {round}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_memory_is_a_table(words: Vec<u64>, number in 1..u64::MAX, now: u64, by: u64, whole: u64) {
            let words: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
            let table = Allowances::new(&words);
            let _ = table.take(number, now, by, whole);
            table.use_up(number, now, by);
            table.keep(number, now, by);
            table.give_back(number, now, by);
            proptest::prop_assert!(table.until(number, now) >= now);
        }
    }
}
