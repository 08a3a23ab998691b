//! Workers that die and leave anything whatever in their shared memory: random bytes, flipped bits, pieces in the
//! wrong place, parts of an earlier state. The master takes over from them as from any other.

use std::os::fd::OwnedFd;

use ipc::message::Layout;
use ipc::shm::Control;
use ipc::state::Image;

use super::rng::Rng;
use super::world::World;
use crate::supervise::Worker;

/// Everything in a worker's shared region.
fn read(worker: &Worker) -> Vec<u8> {
    let length = usize::try_from(rustix::fs::fstat(&worker.region).unwrap().st_size).unwrap();
    let mut image = vec![0; length];
    assert_eq!(rustix::io::pread(&worker.region, &mut image, 0).unwrap(), length);
    image
}

fn write(worker: &Worker, image: &[u8]) {
    assert_eq!(rustix::io::pwrite(&worker.region, image, 0).unwrap(), image.len());
}

/// Where something is that somebody reads: counters, pipes' owners, records, origins or slots, one as often as the
/// other. Most of the region is slots that nobody uses.
fn place(worker: &Worker, image: &[u8], rng: &mut Rng) -> usize {
    let records = usize::try_from(worker.layout.records).unwrap() * 64;
    let slot = usize::try_from(worker.layout.slot_bytes).unwrap();
    let slots = image.len() - usize::try_from(worker.layout.slots).unwrap() * slot;
    match rng.below(6) {
        0 => rng.below(64),
        1 => 2048 + rng.below(64),
        2 | 3 => 4096 + rng.below(records.min(64 * 16)),
        4 => 4096 + records + rng.below(records.min(64 * 16)),
        _ => slots + rng.below(slot * 4),
    }
}

/// Makes something else of the memory. `former` is what it was a while ago.
fn spoil(worker: &Worker, former: &[u8], rng: &mut Rng) {
    let mut image = read(worker);
    let length = image.len();
    for _ in 0..1 + rng.below(3) {
        match rng.below(9) {
            0 => image.iter_mut().for_each(|byte| *byte = u8::try_from(rng.next() & 0xff).unwrap()),
            1 => image.fill(if rng.once_in(2) { 0 } else { 0xff }),
            2 | 3 => {
                for _ in 0..1 + rng.below(40) {
                    let at = place(worker, &image, rng);
                    image[at] ^= 1 << rng.below(8);
                }
            }
            // Small numbers: as a phase, a slot or a pipe's number they mean something more often than not.
            4 => {
                for _ in 0..1 + rng.below(40) {
                    let at = place(worker, &image, rng);
                    image[at] = u8::try_from(rng.below(8)).unwrap();
                }
            }
            // A piece of it somewhere else: a record in another's place, most of all.
            5 => {
                for _ in 0..1 + rng.below(8) {
                    let size = [8, 24, 64][rng.below(3)];
                    let (from, to) = (place(worker, &image, rng) & !7, place(worker, &image, rng) & !7);
                    image.copy_within(from..from + size, to);
                }
            }
            // Two connections with the same slot.
            6 => {
                let record = |id: usize| 4096 + id * size_of::<ipc::state::Record>();
                // The word of the valid image, whose upper half is the slot's number; none has all bits set.
                let word = |id: usize| record(id) + 8 + 24 * usize::from(image[record(id)] & 1);
                let has_slot = |id: &usize| image[word(*id) + 4..word(*id) + 8] != [0xff; 4];
                let with: Vec<usize> =
                    (0..12).filter(|id| image[record(*id) + 8..record(*id + 1)] != [0; 56]).collect();
                let with: Vec<usize> = with.into_iter().filter(has_slot).map(word).collect();
                if with.len() > 1 {
                    let (from, to) = (with[rng.below(with.len())], with[rng.below(with.len())]);
                    image.copy_within(from + 1..from + 8, to + 1);
                }
            }
            // An offset near a slot's end, or beyond it.
            7 => {
                for id in 0..12 {
                    let record = 4096 + id * size_of::<ipc::state::Record>();
                    let word = record + 8 + 24 * usize::from(image[record] & 1);
                    let offset = worker.layout.slot_bytes - 20 + u32::try_from(rng.below(40)).unwrap();
                    image[word + 1..word + 4].copy_from_slice(&offset.to_le_bytes()[..3]);
                }
            }
            // Some of it is as it was, or all up to a point, as if stores had come in another order.
            _ => {
                let at = place(worker, &image, rng) & !7;
                let end = if rng.once_in(2) { length } else { at + 8 };
                image[at..end].copy_from_slice(&former[at..end]);
            }
        }
    }
    write(worker, &image);
}

/// Whether `bytes` lie where the image says that unanswered ones begin, all of them within one slot.
fn lies_at(bytes: &[u8], image: &Image, region: &OwnedFd, layout: &Layout) -> bool {
    let Some(slot) = image.slot.filter(|slot| *slot < layout.slots) else { return false };
    let (slot, offset) = (u64::from(slot), u64::from(image.offset));
    if offset + bytes.len() as u64 > u64::from(layout.slot_bytes) {
        return false;
    }
    let length = rustix::fs::fstat(region).unwrap().st_size.unsigned_abs();
    let slots = length - u64::from(layout.slots) * u64::from(layout.slot_bytes);
    let mut there = vec![0; bytes.len()];
    rustix::io::pread(region, &mut there, slots + slot * u64::from(layout.slot_bytes) + offset).unwrap();
    there == bytes
}

/// Fills what no worker has written to, so that bytes tell where they come from.
fn fill(worker: &Worker, rng: &mut Rng) {
    let mut image = read(worker);
    let used = usize::try_from(worker.layout.slots * worker.layout.slot_bytes).unwrap();
    let start = image.len() - used;
    for eight in image[start..].chunks_exact_mut(8).filter(|eight| **eight == [0; 8]) {
        eight.copy_from_slice(&(rng.next() << 16 | rng.next()).to_ne_bytes());
    }
    write(worker, &image);
}

impl World {
    /// Runs one schedule in which workers die with their memory spoilt.
    pub fn run_images(seed: u64) {
        World::run_by(seed, true, |world| {
            for _ in 0..3 {
                let steps = 40 + world.rng.below(120);
                (0..steps).for_each(|_| world.calm_step());
                world.check();
                let former: Vec<Vec<u8>> = world.known_workers().map(read).collect();
                let steps = world.rng.below(30);
                (0..steps).for_each(|_| world.calm_step());
                let mut rng = Rng::new(world.rng.next());
                for (worker, former) in world.known_workers().zip(&former) {
                    fill(worker, &mut rng);
                    spoil(worker, former, &mut rng);
                }
                // What was not taken up, the master has itself.
                let carried: Vec<Vec<u8>> = world.carried().cloned().collect();
                world.kill_workers_with(|world| world.check_carried(&carried));
            }
            let steps = world.rng.below(200);
            for _ in 0..steps {
                world.calm_step();
                world.check();
            }
            world.abandon_all();
            world.settle();
        });
    }

    /// What a master carries to another worker was in one slot of a dead one, whole.
    fn check_carried(&self, before: &[Vec<u8>]) {
        for bytes in self.carried().filter(|bytes| !before.contains(bytes)) {
            assert!(!bytes.is_empty());
            let found = self.spoilt().iter().any(|(region, layout)| {
                let control = Control::map(region, layout).unwrap();
                let records = (0..layout.records).filter_map(|id| control.record(id));
                let mut images = records.flat_map(|record| [record.read(), record.read_former()]).flatten();
                images.any(|image| lies_at(bytes, &image, region, layout))
            });
            assert!(found, "{} bytes come from no slot that a record names: {bytes:?}", bytes.len());
            // Among so many bytes there is the number that no two requests share, unless nothing was ever written there.
            let written = |bytes: &&[u8]| bytes.iter().any(|byte| *byte != 0);
            let beginning = |bytes: &Vec<u8>| bytes.get(..20).filter(written).map(<[u8]>::to_vec);
            let same = self.carried().filter(|other| beginning(other) == beginning(bytes)).count();
            assert!(same == 1 || beginning(bytes).is_none(), "{same} connections carry the same: {bytes:?}");
        }
    }
}
