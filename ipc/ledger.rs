//! What every user and every client address has open, over all workers: a file of counters that all of them map.
//!
//! Each worker process has a row of its own and writes there alone; whoever wants to know how many there are of
//! something adds up all rows. There is no lock, so nothing is left held by a process that is killed: the master takes
//! its row out, and with it everything it counted. What the rows say is only ever added up, so that nobody need trust
//! them for more than that.
//!
//! ```text
//! words 0 to 3    a key under which names are made into numbers, made by the master
//! words 4 to 7    which rows are in use, a bit each
//! then            rows: buckets of cells, each a number and its count
//! ```
//! A number can stand in the cells of one bucket only. When these are taken it is not in the row, and counts for its own
//! worker alone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::fault;
use crate::shm::Words;

/// Worker processes that can have a row at a time. Further ones count for themselves.
pub const ROWS: u16 = 256;
const KEY_WORDS: usize = 4;
const USED_WORDS: usize = ROWS as usize / 64;
const BUCKETS: usize = 1024;
const CELLS: usize = 8;
const ROW_WORDS: usize = BUCKETS * CELLS * 2;
const HEAD_WORDS: usize = KEY_WORDS + USED_WORDS;
/// Memory is used only where something has been counted: 128 KiB for each worker at most.
const ALL_WORDS: usize = HEAD_WORDS + ROWS as usize * ROW_WORDS;

/// See the module's description.
#[derive(Debug)]
pub struct Ledger(Words);

/// Makes the file, with a fresh key.
///
/// # Errors
/// When memory, descriptors or random numbers are short.
pub fn create() -> io::Result<OwnedFd> {
    let fd = Words::create("pointsman-ledger", ALL_WORDS)?;
    let words = Words::map(&fd, ALL_WORDS)?;
    for word in &words.all()[..KEY_WORDS] {
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    Ok(fd)
}

impl Ledger {
    /// Maps what [`create`] made.
    ///
    /// # Errors
    /// When the file is another, or memory is short.
    pub fn map(fd: impl AsFd) -> io::Result<Ledger> {
        Words::map(fd, ALL_WORDS).map(Ledger)
    }

    /// What names are made into numbers under, so that nobody outside can choose two with the same one.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip(self.0.all()) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        key
    }

    fn used(&self) -> &[AtomicU64] {
        &self.0.all()[KEY_WORDS..HEAD_WORDS]
    }

    /// The bucket of `number` in `row`: cells of a number and a count each.
    fn bucket(&self, row: u16, number: u64) -> &[AtomicU64] {
        let bucket = usize::try_from(number % BUCKETS as u64).unwrap_or(0);
        let start = HEAD_WORDS + usize::from(row % ROWS) * ROW_WORDS + bucket * CELLS * 2;
        &self.0.all()[start..start + CELLS * 2]
    }

    /// An empty row for a new process; `None` = all are in use. Only the master may call this.
    #[must_use]
    pub fn claim(&self) -> Option<u16> {
        let free = |row: &u16| self.used()[usize::from(row / 64)].load(Ordering::Relaxed) & 1 << (row % 64) == 0;
        let row = (0..ROWS).find(free)?;
        let start = HEAD_WORDS + usize::from(row) * ROW_WORDS;
        for word in self.0.all()[start..start + ROW_WORDS].iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
            word.store(0, Ordering::Relaxed);
        }
        self.used()[usize::from(row / 64)].fetch_or(1 << (row % 64), Ordering::Release);
        Some(row)
    }

    /// The process that had `row` is gone: nothing in it counts any more. Only the master may call this.
    pub fn release(&self, row: u16) {
        if row < ROWS {
            self.used()[usize::from(row / 64)].fetch_and(!(1 << (row % 64)), Ordering::Release);
        }
    }

    /// Says in `row` that there are `count` of `number`, which is not 0. Only the process that has the row may call this.
    pub fn set(&self, row: u16, number: u64, count: u32) {
        let bucket = self.bucket(row, number);
        let mut free = None;
        for cell in bucket.chunks_exact(2) {
            match cell[0].load(Ordering::Relaxed) {
                found if found == number => {
                    cell[1].store(count.into(), Ordering::SeqCst);
                    fault::instant();
                    if count == 0 {
                        cell[0].store(0, Ordering::SeqCst);
                    }
                    return;
                }
                0 => free = free.or(Some(cell)),
                _ => {}
            }
        }
        if let Some(cell) = free.filter(|_| count > 0) {
            cell[1].store(count.into(), Ordering::SeqCst);
            fault::instant();
            cell[0].store(number, Ordering::SeqCst);
        }
    }

    /// How many there are of `number` in all rows but `own`. Of two processes that have said how many they have and then
    /// ask this, one at least sees what the other said.
    #[must_use]
    pub fn elsewhere(&self, own: u16, number: u64) -> u64 {
        fence(Ordering::SeqCst);
        let mut sum = 0_u64;
        for (at, used) in (0u16..).zip(self.used()) {
            let mut used = used.load(Ordering::SeqCst);
            while used != 0 {
                let bit = u16::try_from(used.trailing_zeros()).unwrap_or(0);
                used &= used - 1;
                let row = at * 64 + bit;
                if row == own {
                    continue;
                }
                for cell in self.bucket(row, number).chunks_exact(2) {
                    if cell[0].load(Ordering::SeqCst) != number {
                        continue;
                    }
                    let count = cell[1].load(Ordering::SeqCst);
                    // Unless it has become another's meanwhile. What cannot be a count is none.
                    if cell[0].load(Ordering::SeqCst) == number {
                        sum = sum.saturating_add(if count > u64::from(u32::MAX) { 0 } else { count });
                    }
                }
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Ledger, Ledger) {
        let fd = create().unwrap();
        (Ledger::map(&fd).unwrap(), Ledger::map(&fd).unwrap())
    }

    #[test]
    fn all_rows_are_added_up_and_those_of_the_dead_are_not() {
        let (master, worker) = two();
        let (a, b, c) = (master.claim().unwrap(), master.claim().unwrap(), master.claim().unwrap());
        assert_eq!([a, b, c], [0, 1, 2]);
        worker.set(a, 7, 2);
        worker.set(b, 7, 3);
        worker.set(c, 8, 9);
        assert_eq!((worker.elsewhere(a, 7), worker.elsewhere(b, 7), worker.elsewhere(c, 7)), (3, 2, 5));
        worker.set(b, 7, 1);
        assert_eq!(worker.elsewhere(c, 7), 3);
        master.release(a);
        assert_eq!(worker.elsewhere(c, 7), 1);
        // Its successor begins with nothing.
        assert_eq!(master.claim(), Some(a));
        assert_eq!(worker.elsewhere(c, 7), 1);
        worker.set(b, 7, 0);
        assert_eq!(worker.elsewhere(c, 7), 0);
    }

    #[test]
    fn rows_are_bounded_and_found_again() {
        let (master, _) = two();
        for row in 0..ROWS {
            assert_eq!(master.claim(), Some(row));
        }
        assert_eq!(master.claim(), None);
        master.release(200);
        assert_eq!(master.claim(), Some(200));
        master.release(ROWS);
    }

    #[test]
    fn a_full_bucket_takes_no_more_until_there_is_room() {
        let (master, worker) = two();
        let (own, other) = (master.claim().unwrap(), master.claim().unwrap());
        let number = |at: u64| 5 + at * BUCKETS as u64;
        for at in 0..=8 {
            worker.set(own, number(at), 1);
        }
        assert_eq!((worker.elsewhere(other, number(7)), worker.elsewhere(other, number(8))), (1, 0));
        worker.set(own, number(3), 0);
        worker.set(own, number(8), 4);
        assert_eq!((worker.elsewhere(other, number(3)), worker.elsewhere(other, number(8))), (0, 4));
    }

    #[test]
    fn both_sides_have_the_same_key_and_every_ledger_another() {
        let ((a, b), (other, _)) = (two(), two());
        assert_eq!(a.key(), b.key());
        assert_ne!(a.key(), other.key());
        assert_ne!(a.key(), [0; 32]);
    }

    #[test]
    fn another_file_is_refused() {
        let short = Words::create("t", 100).unwrap();
        assert!(Ledger::map(&short).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_memory_adds_up_to_something(words: Vec<u64>, number in 1..100_u64) {
            let (ledger, _) = two();
            for (place, word) in ledger.0.all()[KEY_WORDS..].iter().zip(&words) {
                place.store(*word, Ordering::Relaxed);
            }
            let _ = ledger.elsewhere(0, number);
            let row = ledger.claim();
            ledger.set(row.unwrap_or(ROWS), number, 1);
        }
    }
}
