//! The books of both sides compared.

use std::collections::HashMap;

use super::open::{descriptors, inode};
use super::{Life, World, log};
use crate::master::Course;

/// Steps between two counts of all descriptors, which take their time.
const COUNT_EVERY: usize = 16;

/// Who has one connection.
#[derive(Debug, Default)]
struct Owners {
    masters: usize,
    workers: usize,
    orphans: usize,
    /// Copies that workers have of connections they have given back.
    lent: usize,
}

impl World {
    /// Compares what all sides say of the connections, and what they say with the descriptors there are.
    pub(in crate::master::model) fn check(&self) {
        let mut owners: HashMap<u64, Owners> = HashMap::new();
        for slot in &self.masters {
            let tables = slot.master.seats.iter().filter_map(|seat| seat.worker.as_ref());
            let connections =
                tables.flat_map(|worker| worker.table.entries().map(|entry| entry.2)).chain(&slot.master.homeless);
            for connection in connections {
                owners.entry(inode(&connection.fd)).or_default().masters += 1;
            }
        }
        for slot in &self.workers {
            let Life::Running(worker) = &slot.life else { continue };
            let master = self.masters.iter().find(|master| master.number == slot.parent).map(|slot| &slot.master);
            let known = master.and_then(|master| {
                let mut known = master.seats.iter().filter_map(|seat| seat.worker.as_ref());
                known.find(|known| known.pid == slot.handle.pid())
            });
            for fd in worker.lent() {
                owners.entry(inode(fd)).or_default().lent += 1;
            }
            if known.is_none() && worker.is_orphan() {
                for fd in worker.on_their_way() {
                    owners.entry(inode(fd)).or_default().orphans += 1;
                }
            }
            for (id, fd) in worker.connections() {
                let inode = inode(fd);
                let owners = owners.entry(inode).or_default();
                let Some(known) = known else {
                    owners.orphans += 1;
                    continue;
                };
                owners.workers += 1;
                let entry = known.table.entries().find(|entry| entry.0 == id);
                let entry = entry.unwrap_or_else(|| panic!("a worker has {id}, which its master does not know"));
                assert!(entry.1, "a worker has {id}, which its master has not sent");
                assert_eq!(super::open::inode(&entry.2.fd), inode, "{id} is two connections");
            }
            let Some(known) = known else { continue };
            let stats = known.control.stats();
            let (taken, finished) = (stats.taken.get(), stats.finished.get());
            let held = worker.connections().count() as u64;
            assert_eq!(held, taken - finished, "a worker has not what it has taken up and not finished");
            assert!(taken <= known.table.passed(), "a worker has taken up more than it was sent");
            let sent = known.table.entries().filter(|(_, sent, _)| *sent).count() as u64;
            let heard = known.table.passed() - sent;
            assert!(heard <= finished, "a master has heard of the end of more than have ended");
            assert_eq!(known.table.entries().count(), known.table.live() as usize);
        }
        for (inode, owners) in &owners {
            assert!(owners.masters <= 1, "connection {inode} is in a master's books twice: {owners:?}");
            assert!(owners.workers <= 1 && owners.orphans <= 1, "two workers have connection {inode}: {owners:?}");
            assert!(owners.orphans == 0 || owners.masters + owners.workers == 0, "{inode}: {owners:?}");
        }
        log::check();
        self.checks.set(self.checks.get() + 1);
        if self.checks.get().is_multiple_of(COUNT_EVERY) && !self.is_handing_over() {
            let mut open: HashMap<u64, usize> = HashMap::new();
            for target in descriptors() {
                let socket = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
                *open.entry(socket.unwrap_or_default()).or_default() += 1;
            }
            for (inode, owners) in &owners {
                let Owners { masters, workers, orphans, lent } = owners;
                let open = open.get(inode).copied().unwrap_or_default();
                assert_eq!(open, masters + workers + orphans + lent, "descriptors of connection {inode}: {owners:?}");
            }
        }
    }

    /// Whether connections are on their way from one master, or what it left, to another.
    fn is_handing_over(&self) -> bool {
        self.masters.iter().any(|slot| slot.master.course == Course::HandingOver || !slot.master.formers.is_empty())
            || self.workers.iter().any(|slot| self.masters.iter().all(|master| master.number != slot.parent))
    }
}
