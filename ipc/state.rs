//! The record of one connection in shared memory: what a worker was doing with it, readable after its death.
//!
//! A worker publishes with plain stores; there is no lock that a killed process could leave held. A record
//! holds two images and the number of the valid one: the writer fills the other image and then flips the
//! number in a single store, so that a death between any two instructions leaves one whole image. The image
//! before it stays readable until the next one is begun.
//!
//! Before the last bytes of an answer are written, the writer publishes where the connection will stand once
//! they are. The kernel's count of written bytes then tells which of the two images holds: with all of the
//! answer written the new one, with none of it the one before.
//!
//! The images do not count bytes as they flow. They say where the connection stood when the current request
//! began; how far it has come since is read from the kernel's own counters (`TCP_INFO`, `SIOCINQ`,
//! `SIOCOUTQ`), which a kill cannot make wrong.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::fault;

/// What a worker is doing with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Passed by the master, not yet taken up.
    Passed = 0,
    /// Taken up. What has been read and not answered lies in the slot; it may be run again elsewhere.
    Open = 1,
    /// As `Open`, but part of the request is no longer there or must not be run twice.
    Committed = 2,
    /// A byte relay all of whose bytes under way lie in the kernel, in objects the master holds too: it can be
    /// gone on with elsewhere.
    Relay = 3,
    /// Finished here.
    Done = 4,
    /// A byte relay with bytes under way in the worker's own memory, or a server's connection that the master does
    /// not hold: it ends with the worker.
    Captive = 5,
    /// Between two requests, with all before answered in full and nothing read since; without a slot. Only on
    /// connections for which the kernel counts no bytes: published before anything is read or written next, another
    /// phase takes its place. So it holds by itself, where `Open` needs the kernel's counters.
    Resting = 6,
}

impl Phase {
    fn from_bits(bits: u64) -> Option<Phase> {
        [Phase::Passed, Phase::Open, Phase::Committed, Phase::Relay, Phase::Done, Phase::Captive, Phase::Resting]
            .into_iter()
            .find(|&phase| phase as u64 == bits)
    }
}

/// One image of a connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// What is being done.
    pub phase: Phase,
    /// The buffer that holds unanswered bytes, if any.
    pub slot: Option<u32>,
    /// Where in the slot the first unanswered byte lies; below 2^24.
    pub offset: u32,
    /// Bytes taken from the client's socket by this worker before that first byte.
    pub consumed: u64,
    /// Bytes written to the client's socket by this worker before the answer to that request.
    pub written: u64,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Cell {
    word: AtomicU64,
    consumed: AtomicU64,
    written: AtomicU64,
}

/// One connection's record: a cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Record {
    valid: AtomicU32,
    cells: [Cell; 2],
    server: AtomicU64,
}

const NO_SLOT: u64 = u32::MAX as u64;
const NO_SERVER: u64 = u64::MAX;

/// In `valid`, beside the image's number: the other image is being written, or never was.
const OTHER_TORN: u32 = 2;

impl Record {
    /// Publishes `image`. Only the process that owns the connection may call this.
    pub fn publish(&self, image: &Image) {
        fault::instant();
        let current = self.valid.load(Ordering::Relaxed) & 1;
        let next = current ^ 1;
        self.valid.store(current | OTHER_TORN, Ordering::Relaxed);
        fault::instant();
        fence(Ordering::Release);
        let cell = &self.cells[next as usize];
        let slot = image.slot.map_or(NO_SLOT, u64::from);
        cell.word
            .store(image.phase as u64 | u64::from(image.offset & 0x00ff_ffff) << 8 | slot << 32, Ordering::Relaxed);
        fault::instant();
        cell.consumed.store(image.consumed, Ordering::Relaxed);
        cell.written.store(image.written, Ordering::Relaxed);
        fault::instant();
        self.valid.store(next, Ordering::Release);
        fault::instant();
    }

    /// Notes the number of the server that the request under way is about to be sent to, before anything of it is, and
    /// before [`Phase::Committed`] is published for that; `None` = one without a number.
    pub fn note_server(&self, number: Option<u64>) {
        fault::instant();
        self.server.store(number.unwrap_or(NO_SERVER), Ordering::Release);
        fault::instant();
    }

    /// The number noted last. It is the present request's while that is [`Phase::Committed`], and may be a former one's
    /// otherwise.
    #[must_use]
    pub fn server(&self) -> Option<u64> {
        Some(self.server.load(Ordering::Acquire)).filter(|&number| number != NO_SERVER)
    }

    /// The last image published; `None` if the memory holds none.
    #[must_use]
    pub fn read(&self) -> Option<Image> {
        let valid = self.valid.load(Ordering::Acquire);
        if valid > 1 | OTHER_TORN {
            return None;
        }
        self.cells[(valid & 1) as usize].read()
    }

    /// The image published before the last one; `None` if it has been overwritten, or the memory holds none.
    #[must_use]
    pub fn read_former(&self) -> Option<Image> {
        let valid = self.valid.load(Ordering::Acquire);
        if valid > 1 {
            return None;
        }
        self.cells[(valid ^ 1) as usize].read()
    }
}

impl Cell {
    fn read(&self) -> Option<Image> {
        let word = self.word.load(Ordering::Relaxed);
        let slot = word >> 32;
        Some(Image {
            phase: Phase::from_bits(word & 0xff)?,
            slot: u32::try_from(slot).ok().filter(|_| slot != NO_SLOT),
            offset: u32::try_from(word >> 8 & 0x00ff_ffff).unwrap_or(0),
            consumed: self.consumed.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
        })
    }
}

/// Pipes of one worker that the master knows, at most. Each holds up to 256 KiB of kernel memory while in use; the
/// kernel lets an unprivileged user have 64 MiB of it.
pub const MAX_PIPES: u16 = 256;

/// The way bytes go in a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// Whose bytes a pipe holds: a word for each pipe of a worker, written before the first byte goes in and after the
/// last has come out.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct PipeOwner(AtomicU64);

impl PipeOwner {
    /// The pipe is about to hold bytes of connection `id`; `None` = it holds nothing that matters.
    pub fn set(&self, owner: Option<(u32, Direction)>) {
        let word = match owner {
            None => 0,
            Some((id, Direction::ToServer)) => 1 | u64::from(id) << 32,
            Some((id, Direction::ToClient)) => 2 | u64::from(id) << 32,
        };
        fault::instant();
        self.0.store(word, Ordering::Release);
        fault::instant();
    }

    /// Whose bytes it holds; `None` also for a word that means nothing.
    #[must_use]
    pub fn get(&self) -> Option<(u32, Direction)> {
        let word = self.0.load(Ordering::Acquire);
        let direction = match word & 0xffff_ffff {
            1 => Direction::ToServer,
            2 => Direction::ToClient,
            _ => return None,
        };
        u32::try_from(word >> 32).ok().map(|id| (id, direction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_has_the_owner_it_was_given() {
        let owner = PipeOwner::default();
        assert_eq!(owner.get(), None);
        for direction in [Direction::ToServer, Direction::ToClient] {
            owner.set(Some((u32::MAX, direction)));
            assert_eq!(owner.get(), Some((u32::MAX, direction)));
        }
        owner.0.store(3 | 7 << 32, Ordering::Relaxed);
        assert_eq!(owner.get(), None);
        owner.set(None);
        assert_eq!(owner.get(), None);
    }

    #[test]
    fn what_is_published_is_read() {
        let record = Record::default();
        for (phase, slot, offset) in
            [(Phase::Open, Some(7), 0), (Phase::Committed, None, 0x00ff_ffff), (Phase::Done, Some(0), 1)]
        {
            let image = Image { phase, slot, offset, consumed: u64::MAX, written: 3 };
            record.publish(&image);
            assert_eq!(record.read(), Some(image));
        }
    }

    #[test]
    fn the_server_noted_last_is_known_and_images_do_not_touch_it() {
        let record = Record::default();
        for number in [Some(7), None, Some(1 << 63)] {
            record.note_server(number);
            record.publish(&Image { phase: Phase::Committed, slot: None, offset: 0, consumed: u64::MAX, written: 0 });
            assert_eq!(record.server(), number);
        }
    }

    #[test]
    fn a_death_between_two_stores_leaves_the_former_image() {
        let record = Record::default();
        let image = Image { phase: Phase::Open, slot: Some(1), offset: 2, consumed: 3, written: 4 };
        record.publish(&image);
        let current = record.valid.load(Ordering::Relaxed);
        let other = 1 ^ current as usize;
        record.valid.store(current | OTHER_TORN, Ordering::Relaxed);
        record.cells[other].word.store(u64::MAX, Ordering::Relaxed);
        record.cells[other].consumed.store(99, Ordering::Relaxed);
        assert_eq!(record.read(), Some(image));
        assert_eq!(record.read_former(), None);
    }

    #[test]
    fn the_image_before_the_last_can_be_read_too() {
        let record = Record::default();
        let image = |written| Image { phase: Phase::Open, slot: Some(1), offset: 2, consumed: 3, written };
        for written in 0..5 {
            record.publish(&image(written));
            record.publish(&image(written + 1));
            assert_eq!((record.read(), record.read_former()), (Some(image(written + 1)), Some(image(written))));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_memory_is_an_image_or_refused(valid: u32, word: u64) {
            let record = Record::default();
            record.valid.store(valid, Ordering::Relaxed);
            for cell in &record.cells {
                cell.word.store(word, Ordering::Relaxed);
            }
            let image = record.read();
            proptest::prop_assert_eq!(image.is_some(), valid < 4 && word & 0xff <= 6);
            proptest::prop_assert_eq!(record.read_former().is_some(), valid < 2 && word & 0xff <= 6);
        }
    }
}
