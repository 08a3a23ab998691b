//! What every user and every client address has open and has used up, over all workers: a file that all of them map.
//!
//! What is open: each worker process has a row of its own and writes there alone; whoever wants to know how many there are of
//! something adds up all rows. There is no lock, so nothing is left held by a process that is killed: the master takes
//! its row out, and with it everything it counted.
//!
//! Every worker can write all of the file. What the rows say is only ever added up, so that nobody need trust them for
//! more than that. Which rows are in use the master knows by itself ([`Rows`]); it says so in the file and never reads it
//! there.
//!
//! ```text
//! words 0 to 3    a key under which names are made into numbers, made by the master
//! words 4 to 7    which rows are in use, a bit each, as the master says
//! from 4096 bytes rows: buckets of cells, each a number and its count
//! then            what is used up of beginnings and bytes, see [`crate::allowances`]
//! then            and of wrong passwords, a table of the same kind
//! then            who has been proved where, another
//! ```
//! What has been used up stays so when a process dies; nothing of that is in a row. A number can stand in the cells of one bucket only. When these are taken it is not in the row, and counts for its own
//! worker alone.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fs::FallocateFlags;

use crate::allowances::Allowances;
use crate::fault;
use crate::shm::Words;

/// Worker processes that can have a row at a time. Further ones count for themselves.
pub const ROWS: u16 = 256;
const KEY_WORDS: usize = 4;
const USED_WORDS: usize = ROWS as usize / 64;
const BUCKETS: usize = 1024;
const CELLS: usize = 8;
const ROW_WORDS: usize = BUCKETS * CELLS * 2;
/// A page, so that rows are whole pages.
const HEAD_WORDS: usize = 512;
const _: () = assert!(KEY_WORDS + USED_WORDS <= HEAD_WORDS);
/// Memory is used only where something has been counted or looked for, which takes a page in each row in use: 128 KiB for
/// each worker at most.
const ROWS_END: usize = HEAD_WORDS + ROWS as usize * ROW_WORDS;
/// Of 2 words each: 131,072 who have used something up, 2 MiB of memory at most.
const ALLOWANCE_WORDS: usize = 1 << 18;
/// 65,536 whose passwords have been wrong, 1 MiB at most: nothing else pushes them out.
const FAILURE_WORDS: usize = 1 << 17;
/// 65,536 who have been proved, 1 MiB at most.
const PROOF_WORDS: usize = 1 << 17;
const ALL_WORDS: usize = ROWS_END + ALLOWANCE_WORDS + FAILURE_WORDS + PROOF_WORDS;

/// See the module's description.
#[derive(Debug)]
pub struct Ledger(Words);

/// The master's side: the file, and who has which row.
#[derive(Debug)]
pub struct Rows {
    ledger: Ledger,
    file: OwnedFd,
    /// A bit for each row in use.
    used: Cell<[u64; USED_WORDS]>,
}

impl Rows {
    /// Makes the file, with a fresh key.
    ///
    /// # Errors
    /// When memory, descriptors or random numbers are short.
    pub fn new() -> io::Result<Rows> {
        let file = Words::create("pointsman-ledger", ALL_WORDS)?;
        let ledger = Ledger::map(&file)?;
        for word in &ledger.0.all()[..KEY_WORDS] {
            let mut bytes = [0; 8];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        Ok(Rows { ledger, file, used: Cell::default() })
    }

    /// What workers map.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// An empty row for a new process; `None` = all are in use.
    #[must_use]
    pub fn claim(&self) -> Option<u16> {
        let used = self.used.get();
        let row = (0..ROWS).find(|row| used[usize::from(row / 64)] & 1 << (row % 64) == 0)?;
        self.publish(row, true);
        Some(row)
    }

    /// The process that had `row` is gone: nothing in it counts any more, and its memory is free.
    pub fn release(&self, row: u16) {
        if row >= ROWS {
            return;
        }
        self.publish(row, false);
        let start = HEAD_WORDS + usize::from(row) * ROW_WORDS;
        let (at, len) = ((start * size_of::<u64>()) as u64, (ROW_WORDS * size_of::<u64>()) as u64);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.file, punch, at, len).is_err() {
            // Looking takes memory, too, but the next process must not begin with what this one had.
            for word in &self.ledger.0.all()[start..start + ROW_WORDS] {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Whether `row` is in use from now on. All that the file says of this is written again: a worker may have spoilt it.
    fn publish(&self, row: u16, in_use: bool) {
        let mut used = self.used.get();
        let (word, bit) = (usize::from(row / 64), 1 << (row % 64));
        used[word] = if in_use { used[word] | bit } else { used[word] & !bit };
        self.used.set(used);
        for (place, word) in self.ledger.used().iter().zip(used) {
            place.store(word, Ordering::Release);
        }
    }
}

impl Ledger {
    /// Maps what [`Rows::new`] made.
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

    /// What each has used up of beginnings and bytes.
    #[must_use]
    pub fn allowances(&self) -> Allowances<'_> {
        Allowances::new(&self.0.all()[ROWS_END..ROWS_END + ALLOWANCE_WORDS])
    }

    /// What each has used up of wrong passwords.
    #[must_use]
    pub fn failures(&self) -> Allowances<'_> {
        Allowances::new(&self.0.all()[ROWS_END + ALLOWANCE_WORDS..ALL_WORDS - PROOF_WORDS])
    }

    /// Until when each counts as proved.
    #[must_use]
    pub fn proofs(&self) -> Allowances<'_> {
        Allowances::new(&self.0.all()[ALL_WORDS - PROOF_WORDS..ALL_WORDS])
    }

    fn used(&self) -> &[AtomicU64] {
        &self.0.all()[KEY_WORDS..KEY_WORDS + USED_WORDS]
    }

    /// The bucket of `number` in `row`: cells of a number and a count each.
    fn bucket(&self, row: u16, number: u64) -> &[AtomicU64] {
        let bucket = usize::try_from(number % BUCKETS as u64).unwrap_or(0);
        let start = HEAD_WORDS + usize::from(row % ROWS) * ROW_WORDS + bucket * CELLS * 2;
        &self.0.all()[start..start + CELLS * 2]
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

    fn two() -> (Rows, Ledger) {
        let rows = Rows::new().unwrap();
        let worker = Ledger::map(rows.file()).unwrap();
        (rows, worker)
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
    fn memory_is_used_where_something_is_counted_and_free_when_its_process_is_gone() {
        let (master, worker) = two();
        // In units of 512 bytes; less where the kernel has given more at once.
        let used = || rustix::fs::fstat(master.file()).unwrap().st_blocks;
        let head = used();
        let rows: Vec<u16> = (0..4).filter_map(|_| master.claim()).collect();
        assert!(rows.len() == 4 && used() <= head, "{} beside {head}", used());
        for number in 1..=BUCKETS as u64 {
            worker.set(rows[1], number, 5);
        }
        assert!(used() <= head + 128 * 2, "{} beside {head}", used());
        master.release(rows[1]);
        assert!(used() <= head, "{} beside {head}", used());
        assert_eq!(master.claim(), Some(rows[1]));
        assert_eq!((worker.elsewhere(rows[0], 1), worker.elsewhere(rows[0], 1000)), (0, 0));
        let start = HEAD_WORDS + usize::from(rows[1]) * ROW_WORDS;
        assert!(worker.0.all()[start..start + ROW_WORDS].iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_row_that_is_released_leaves_its_neighbours_as_they_are() {
        let (master, worker) = two();
        let rows: Vec<u16> = (0..3).filter_map(|_| master.claim()).collect();
        for (row, number) in rows.iter().flat_map(|row| (1..=BUCKETS as u64).map(move |number| (*row, number))) {
            worker.set(row, number, 1);
        }
        master.release(rows[1]);
        assert!((1..=BUCKETS as u64).all(|number| worker.elsewhere(ROWS, number) == 2));
    }

    #[test]
    fn whatever_workers_write_every_process_gets_a_row_of_its_own() {
        let (master, worker) = two();
        assert_eq!((master.claim(), master.claim()), (Some(0), Some(1)));
        for spoilt in [0, u64::MAX] {
            for word in worker.used() {
                word.store(spoilt, Ordering::Relaxed);
            }
            let row = master.claim().unwrap();
            assert!(row > 1, "{row}");
            // And it is as it should be again for everybody.
            let used: Vec<u64> = worker.used().iter().map(|word| word.load(Ordering::Relaxed)).collect();
            assert_eq!(used, master.used.get());
        }
        master.release(1);
        assert_eq!(master.claim(), Some(1));
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
        let ((master, a), (_other, other)) = (two(), two());
        assert_eq!(a.key(), Ledger::map(master.file()).unwrap().key());
        assert_ne!(a.key(), other.key());
        assert_ne!(a.key(), [0; 32]);
    }

    #[test]
    fn what_is_used_up_and_who_is_proved_is_the_same_everywhere_and_outlives_a_row() {
        let (master, a) = two();
        let b = Ledger::map(master.file()).unwrap();
        let row = master.claim().unwrap();
        a.set(row, u64::MAX, 1);
        a.allowances().use_up(u64::MAX, 1, 10);
        a.failures().use_up(u64::MAX, 1, 20);
        a.proofs().keep(u64::MAX, 1, 30);
        master.release(row);
        let until = [b.allowances(), b.failures(), b.proofs()].map(|table| table.until(u64::MAX, 1));
        assert_eq!(until, [11, 21, 30]);
    }

    #[test]
    fn another_file_is_refused() {
        let short = Words::create("t", 100).unwrap();
        assert!(Ledger::map(&short).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_memory_adds_up_to_something(words: Vec<u64>, number in 1..100_u64) {
            let (master, ledger) = two();
            for (place, word) in ledger.0.all()[KEY_WORDS..].iter().zip(&words) {
                place.store(*word, Ordering::Relaxed);
            }
            let _ = ledger.elsewhere(0, number);
            let row = master.claim();
            proptest::prop_assert_eq!(row, Some(0));
            ledger.set(0, number, 1);
            master.release(0);
        }
    }
}
