//! The shared region of one worker: a sealed-size memory file that the master makes and both sides map.
//!
//! ```text
//! page 0        WorkerStats, then a PipeOwner for each pipe
//! page 1 …      one Record per connection
//! then          one OriginCell per connection, untouched where no listener expects PROXY headers
//! then          slots: buffers for requests not yet answered
//! ```
//! The master maps the first two parts only and reads slots of a dead worker through the file. This is the
//! one place with `unsafe` for memory: everything it hands out is atomics, or exclusive by ownership.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::message::Layout;
use crate::origin::OriginCell;
use crate::state::{MAX_PIPES, PipeOwner, Record};
use crate::stats::WorkerStats;

const PAGE: usize = 4096;
/// Where the pipes' owners begin.
const OWNERS: usize = 2048;
const _: () = assert!(size_of::<WorkerStats>() <= OWNERS && size_of::<Record>() == 64);
const _: () =
    assert!(size_of::<OriginCell>() == size_of::<Record>() && align_of::<OriginCell>() <= align_of::<Record>());
const _: () = assert!(OWNERS + MAX_PIPES as usize * size_of::<PipeOwner>() <= PAGE);

/// The most connections, and so records, one worker may be laid out for.
pub const MAX_RECORDS: u32 = 1_000_000;

impl Layout {
    fn control_bytes(&self) -> usize {
        (PAGE + self.records as usize * (size_of::<Record>() + size_of::<OriginCell>())).next_multiple_of(PAGE)
    }

    fn arena_bytes(&self) -> usize {
        self.slots as usize * self.slot_bytes as usize
    }

    fn check(&self) -> io::Result<()> {
        let sound = (1..=MAX_RECORDS).contains(&self.records)
            && (1..=MAX_RECORDS).contains(&self.slots)
            && (PAGE..=1 << 20).contains(&(self.slot_bytes as usize))
            && (self.slot_bytes as usize).is_multiple_of(PAGE);
        sound.then_some(()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "impossible layout"))
    }
}

/// Makes the memory file for a region. Its size can never change, so a mapping of it never faults.
///
/// # Errors
/// When the layout is impossible, or memory or descriptors are short.
pub fn create(layout: &Layout) -> io::Result<OwnedFd> {
    layout.check()?;
    let fd = rustix::fs::memfd_create("pointsman-worker", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, (layout.control_bytes() + layout.arena_bytes()) as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, offset: usize, len: usize) -> io::Result<Mapping> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset as u64,
            )
        }?;
        NonNull::new(base.cast()).map(|base| Mapping { base, len }).ok_or(io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of a mapping that only this value owns.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The counters and records, mapped.
#[derive(Debug)]
pub struct Control {
    mapping: Mapping,
    records: usize,
}

// SAFETY: the mapping is only reached through shared references to atomics.
unsafe impl Send for Control {}

impl Control {
    /// Maps this part of the region.
    ///
    /// # Errors
    /// When the layout is impossible, the file is too short for it, or memory is short.
    pub fn map(fd: impl AsFd, layout: &Layout) -> io::Result<Control> {
        check_size(fd.as_fd(), layout)?;
        let mapping = Mapping::new(fd.as_fd(), 0, layout.control_bytes())?;
        Ok(Control { mapping, records: layout.records as usize })
    }

    /// How many connections have a record.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    /// The worker's counters.
    #[must_use]
    pub fn stats(&self) -> &WorkerStats {
        // SAFETY: the first page is mapped as long as `self` lives, is aligned, zeroed at birth, and holds
        // only atomics, for which every bit pattern is valid and shared access is sound.
        unsafe { self.mapping.base.cast::<WorkerStats>().as_ref() }
    }

    /// Whose bytes pipe `number` holds; `None` from [`MAX_PIPES`] on.
    #[must_use]
    pub fn pipe_owner(&self, number: u16) -> Option<&PipeOwner> {
        if number >= MAX_PIPES {
            return None;
        }
        // SAFETY: within the first page by the check above; otherwise as in `stats`.
        Some(unsafe { self.mapping.base.add(OWNERS).cast::<PipeOwner>().add(usize::from(number)).as_ref() })
    }

    /// The record of connection `id`; `None` beyond the layout.
    #[must_use]
    pub fn record(&self, id: u32) -> Option<&Record> {
        let id = id as usize;
        if id >= self.records {
            return None;
        }
        // SAFETY: within the mapping by the check above; otherwise as in `stats`.
        Some(unsafe { self.mapping.base.add(PAGE).cast::<Record>().add(id).as_ref() })
    }

    /// The place for what a PROXY header says of connection `id`; `None` beyond the layout.
    #[must_use]
    pub fn origin(&self, id: u32) -> Option<&OriginCell> {
        let id = id as usize;
        if id >= self.records {
            return None;
        }
        let start = PAGE + self.records * size_of::<Record>();
        // SAFETY: within the mapping by the check above; otherwise as in `stats`.
        Some(unsafe { self.mapping.base.add(start).cast::<OriginCell>().add(id).as_ref() })
    }
}

/// A file of nothing but words, mapped. See [`crate::ledger`].
#[derive(Debug)]
pub struct Words {
    mapping: Mapping,
    count: usize,
}

// SAFETY: the mapping is only reached through shared references to atomics.
unsafe impl Send for Words {}
// SAFETY: as above; what is shared are atomics.
unsafe impl Sync for Words {}

impl Words {
    /// Makes a file of `count` words, all 0. Its size can never change.
    ///
    /// # Errors
    /// When memory or descriptors are short.
    pub fn create(name: &str, count: usize) -> io::Result<OwnedFd> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, (count * size_of::<AtomicU64>()) as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW)?;
        Ok(fd)
    }

    /// Maps the first `count` words of a file.
    ///
    /// # Errors
    /// When the file is too short, or memory is.
    pub fn map(fd: impl AsFd, count: usize) -> io::Result<Words> {
        let bytes = count * size_of::<AtomicU64>();
        check_file(fd.as_fd(), bytes)?;
        Ok(Words { mapping: Mapping::new(fd.as_fd(), 0, bytes)?, count })
    }

    /// Them.
    #[must_use]
    pub fn all(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped as long as `self` lives, beginning at a page's start; they are atomics, for
        // which every bit pattern is valid and shared access is sound.
        unsafe { std::slice::from_raw_parts(self.mapping.base.cast::<AtomicU64>().as_ptr(), self.count) }
    }
}

fn check_size(fd: BorrowedFd<'_>, layout: &Layout) -> io::Result<()> {
    layout.check()?;
    check_file(fd, layout.control_bytes() + layout.arena_bytes())
}

fn check_file(fd: BorrowedFd<'_>, needed: usize) -> io::Result<()> {
    let size = rustix::fs::fstat(fd)?.st_size;
    let sealed = rustix::fs::fcntl_get_seals(fd)?.contains(SealFlags::SHRINK);
    if !sealed || usize::try_from(size).unwrap_or(0) < needed {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the shared region does not fit its layout"));
    }
    Ok(())
}

/// One buffer of the arena, owned: not `Clone`, and lost for good unless given back.
#[derive(Debug)]
#[must_use = "a slot that is not given back is lost"]
pub struct Slot(u32, ArenaId);

/// Tells arenas apart: the memory file's number, which is not used again while the file is mapped.
type ArenaId = u64;

/// Regions whose arena this process has mapped, and so may not map a second time.
static MAPPED: Mutex<Vec<ArenaId>> = Mutex::new(Vec::new());

impl Slot {
    /// Its number, as recorded in [`crate::state::Image::slot`].
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0
    }
}

/// The slots, mapped by the worker that owns them.
///
/// Freed slots are reused last in, first out, so that memory touched stays near the number in use.
#[derive(Debug)]
pub struct Arena {
    // Never unmapped: the slices given out live as long as their slots, which may outlive this value.
    mapping: ManuallyDrop<Mapping>,
    slot_bytes: usize,
    free: Vec<u32>,
    untouched: u32,
    slots: u32,
    id: ArenaId,
}

impl Arena {
    /// Maps the slots of the region, which a process may do once.
    ///
    /// # Errors
    /// As [`Control::map`], and when this process has mapped them before.
    pub fn map(fd: impl AsFd, layout: &Layout) -> io::Result<Arena> {
        check_size(fd.as_fd(), layout)?;
        let id = rustix::fs::fstat(&fd)?.st_ino;
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        if mapped.contains(&id) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "this process has mapped the region's slots before",
            ));
        }
        mapped.push(id);
        Ok(Arena {
            mapping: ManuallyDrop::new(Mapping::new(fd.as_fd(), layout.control_bytes(), layout.arena_bytes())?),
            slot_bytes: layout.slot_bytes as usize,
            free: Vec::new(),
            untouched: 0,
            slots: layout.slots,
            id,
        })
    }

    /// A free slot; `None` when all are taken.
    pub fn take(&mut self) -> Option<Slot> {
        if let Some(number) = self.free.pop() {
            return Some(Slot(number, self.id));
        }
        if self.untouched == self.slots {
            return None;
        }
        self.untouched += 1;
        Some(Slot(self.untouched - 1, self.id))
    }

    /// Gives a slot back.
    pub fn put(&mut self, slot: Slot) {
        assert_eq!(slot.1, self.id, "a slot goes back to its own arena");
        self.free.push(slot.0);
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes<'a>(&self, slot: &'a Slot) -> &'a [u8] {
        // SAFETY: as in `bytes_mut`; `&Slot` is a shared borrow of the only owner.
        unsafe { std::slice::from_raw_parts(self.start(slot).as_ptr(), self.slot_bytes) }
    }

    /// Its bytes, to write.
    #[must_use]
    pub fn bytes_mut<'a>(&self, slot: &'a mut Slot) -> &'a mut [u8] {
        // SAFETY: slot numbers come only from `take`, are below `slots`, and exist once, so `&mut Slot` is
        // exclusive access to this range of the only mapping in
        // this process, and the arena is never unmapped. The master reads a dead worker's slots through the file, never a live one's.
        unsafe { std::slice::from_raw_parts_mut(self.start(slot).as_ptr(), self.slot_bytes) }
    }

    fn start(&self, slot: &Slot) -> NonNull<u8> {
        let offset = slot.0 as usize * self.slot_bytes;
        assert_eq!(slot.1, self.id, "a slot is used with its own arena");
        assert!(offset + self.slot_bytes <= self.mapping.len);
        // SAFETY: within the mapping, see above.
        unsafe { self.mapping.base.add(offset) }
    }
}

/// Reads `len` bytes at `offset` of slot `number` from the file of a dead worker.
///
/// # Errors
/// When the range does not lie within the slot, or the file cannot be read.
pub fn read_slot(fd: impl AsFd, layout: &Layout, number: u32, offset: u32, len: usize) -> io::Result<Vec<u8>> {
    let end = (offset as usize).checked_add(len).filter(|&end| end <= layout.slot_bytes as usize);
    if number >= layout.slots || end.is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not within a slot"));
    }
    let mut bytes = vec![0; len];
    let mut done = 0;
    let start = layout.control_bytes() + number as usize * layout.slot_bytes as usize + offset as usize;
    while done < len {
        match rustix::io::pread(&fd, &mut bytes[done..], (start + done) as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Image, Phase};

    const LAYOUT: Layout = Layout { records: 100, slots: 3, slot_bytes: 8192 };

    #[test]
    fn both_sides_see_the_same_counters_and_records() {
        let fd = create(&LAYOUT).unwrap();
        let (worker, master) = (Control::map(&fd, &LAYOUT).unwrap(), Control::map(&fd, &LAYOUT).unwrap());
        worker.stats().taken.add(5);
        assert_eq!(master.stats().taken.get(), 5);
        let image = Image { phase: Phase::Open, slot: Some(2), offset: 1, consumed: 2, written: 3 };
        worker.record(99).unwrap().publish(&image);
        assert_eq!(master.record(99).unwrap().read(), Some(image));
        assert!(master.record(100).is_none());
        worker.origin(99).unwrap().publish(28, None);
        assert_eq!(master.origin(99).unwrap().read(), Some((28, None)));
        assert_eq!((master.origin(98).unwrap().read(), master.record(99).unwrap().read()), (None, Some(image)));
        assert!(master.origin(100).is_none());
        worker.pipe_owner(255).unwrap().set(Some((7, crate::state::Direction::ToClient)));
        assert_eq!(master.pipe_owner(255).unwrap().get(), Some((7, crate::state::Direction::ToClient)));
        assert!(master.pipe_owner(256).is_none());
    }

    #[test]
    fn a_slot_can_be_read_through_the_file() {
        let fd = create(&LAYOUT).unwrap();
        let mut arena = Arena::map(&fd, &LAYOUT).unwrap();
        let first = arena.take().unwrap();
        let mut slot = arena.take().unwrap();
        arena.bytes_mut(&mut slot)[10..15].copy_from_slice(b"hello");
        assert_eq!(read_slot(&fd, &LAYOUT, slot.number(), 10, 5).unwrap(), b"hello");
        assert!(read_slot(&fd, &LAYOUT, slot.number(), 8190, 5).is_err());
        assert!(read_slot(&fd, &LAYOUT, 3, 0, 5).is_err());
        let last = arena.take().unwrap();
        assert!(arena.take().is_none());
        assert!(Arena::map(&fd, &LAYOUT).is_err(), "a second mapping would alias the first");
        arena.put(first);
        arena.put(last);
        assert!(arena.take().is_some());
    }

    #[test]
    fn a_file_too_short_or_not_sealed_is_refused() {
        let short = create(&Layout { slots: 2, ..LAYOUT }).unwrap();
        assert!(Control::map(&short, &LAYOUT).is_err());
        let open = rustix::fs::memfd_create("t", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&open, 1 << 20).unwrap();
        assert!(Arena::map(&open, &LAYOUT).is_err());
        assert!(create(&Layout { slot_bytes: 100, ..LAYOUT }).is_err());
    }
}
