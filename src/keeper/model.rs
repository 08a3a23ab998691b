//! The bookkeeping of master and workers, driven by random schedules: accepting, sending, taking up,
//! finishing, reporting, lying and dying in any order. After each step every connection has one owner.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::{Connection, Table, UnknownId};
use crate::dispatch::{CREDITS, Candidate, Chooser};
use ipc::snapshot::Dispatch;

const WORKERS: usize = 3;
const CAPACITY: u32 = 5;

/// What happens next; numbers choose among what is possible, modulo.
#[derive(Debug, Clone, Copy)]
enum Step {
    Accept,
    Send { worker: usize, most: usize },
    TakeUp { worker: usize },
    Finish { worker: usize, which: usize },
    Report { worker: usize },
    Lie { worker: usize, id: u32 },
    Die { worker: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let worker = 0..WORKERS;
    prop_oneof![
        6 => Just(Step::Accept),
        4 => (worker.clone(), 1..4usize).prop_map(|(worker, most)| Step::Send { worker, most }),
        6 => worker.clone().prop_map(|worker| Step::TakeUp { worker }),
        4 => (worker.clone(), 0..8usize).prop_map(|(worker, which)| Step::Finish { worker, which }),
        3 => worker.clone().prop_map(|worker| Step::Report { worker }),
        1 => (worker.clone(), 0..2 * CAPACITY).prop_map(|(worker, id)| Step::Lie { worker, id }),
        1 => worker.prop_map(|worker| Step::Die { worker }),
    ]
}

/// A worker, and the master's table for it. Sockets are numbers.
struct Worker {
    table: Table<u32>,
    in_channel: VecDeque<(u32, u32)>,
    held: BTreeMap<u32, u32>,
    reports: VecDeque<(u32, u32)>,
    taken: u64,
    finished: u64,
}

impl Worker {
    fn new() -> Worker {
        Worker {
            table: Table::new(CAPACITY),
            in_channel: VecDeque::new(),
            held: BTreeMap::new(),
            reports: VecDeque::new(),
            taken: 0,
            finished: 0,
        }
    }

    /// What it knows of: in the channel, being served, or finished and not yet reported.
    fn knows(&self) -> impl Iterator<Item = (u32, u32)> {
        let held = self.held.iter().map(|(&id, &socket)| (id, socket));
        self.in_channel.iter().copied().chain(held).chain(self.reports.iter().copied())
    }
}

struct World {
    workers: Vec<Worker>,
    homeless: VecDeque<Connection<u32>>,
    chooser: Chooser,
    accepted: u32,
    closed: Vec<u32>,
}

impl World {
    fn new() -> World {
        World {
            workers: (0..WORKERS).map(|_| Worker::new()).collect(),
            homeless: VecDeque::new(),
            chooser: Chooser::new(Dispatch::LeastConnections),
            accepted: 0,
            closed: Vec::new(),
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidate =
            |w: &Worker| Candidate::new(w.table.passed(), w.table.queued(), w.table.room(), w.taken, w.finished);
        self.workers.iter().map(candidate).collect()
    }

    fn rehome(&mut self) {
        let mut candidates = self.candidates();
        while let Some(connection) = self.homeless.pop_front() {
            let Some(worker) = self.chooser.choose(&mut candidates) else {
                return self.homeless.push_front(connection);
            };
            self.workers[worker].table.enqueue(connection).unwrap();
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Accept => {
                self.rehome();
                let has_room = self.candidates().iter().any(|candidate| candidate.room > 0);
                if self.homeless.is_empty() && has_room {
                    self.homeless.push_back(Connection::new(self.accepted, None, 0));
                    self.accepted += 1;
                    self.rehome();
                    assert!(self.homeless.is_empty());
                }
            }
            Step::Send { worker, most } => {
                let worker = &mut self.workers[worker];
                let (passed, sockets) = worker.table.next_batch(most);
                assert!(passed.len() <= most);
                worker.in_channel.extend(passed.iter().map(|p| p.id).zip(sockets.into_iter().copied()));
                worker.table.mark_passed(passed.len());
            }
            Step::TakeUp { worker } => {
                let worker = &mut self.workers[worker];
                if let Some((id, socket)) = worker.in_channel.pop_front() {
                    assert_eq!(worker.held.insert(id, socket), None, "one id, two connections");
                    worker.taken += 1;
                }
            }
            Step::Finish { worker, which } => {
                let worker = &mut self.workers[worker];
                if let Some(&id) = worker.held.keys().nth(which) {
                    worker.reports.push_back((id, worker.held[&id]));
                    worker.held.remove(&id);
                    worker.finished += 1;
                }
            }
            Step::Report { worker } => {
                let worker = &mut self.workers[worker];
                if let Some((id, socket)) = worker.reports.pop_front() {
                    assert_eq!(worker.table.finish(id).unwrap().fd, socket);
                    self.closed.push(socket);
                }
            }
            Step::Lie { worker, id } => {
                let worker = &mut self.workers[worker];
                if worker.knows().all(|(known, _)| known != id) {
                    assert_eq!(worker.table.finish(id), Err(UnknownId(id)));
                }
            }
            Step::Die { worker } => {
                let mut dead = std::mem::replace(&mut self.workers[worker], Worker::new());
                let known: BTreeMap<u32, u32> = dead.knows().collect();
                for (id, was_sent, connection) in dead.table.take_all() {
                    assert_eq!(was_sent, known.contains_key(&id));
                    // Finished, but the report was lost: its record says so.
                    if dead.reports.iter().any(|&(finished, _)| finished == id) {
                        self.closed.push(connection.fd);
                    } else {
                        self.homeless.push_back(connection);
                    }
                }
            }
        }
    }

    /// Every connection is closed, homeless or in one table, and workers know of no other.
    fn check(&mut self) {
        let mut owned: Vec<u32> = self.homeless.iter().map(|c| c.fd).chain(self.closed.iter().copied()).collect();
        for worker in &self.workers {
            let known: BTreeMap<u32, u32> = worker.knows().collect();
            assert_eq!(known.len(), worker.knows().count(), "one id for two connections");
            let table: Vec<_> = worker.table.entries().map(|(id, was_sent, c)| (id, was_sent, c.fd)).collect();
            assert_eq!(u32::try_from(table.len()).unwrap(), worker.table.live());
            assert_eq!(worker.table.live() + worker.table.room(), CAPACITY);
            let sent: BTreeMap<u32, u32> =
                table.iter().filter(|(_, was_sent, _)| *was_sent).map(|&(id, _, socket)| (id, socket)).collect();
            assert_eq!(sent, known, "the worker has something else than it was sent");
            assert!(worker.table.passed() - worker.taken <= u64::from(CREDITS));
            owned.extend(table.into_iter().map(|(_, _, socket)| socket));
        }
        owned.sort_unstable();
        assert_eq!(owned, (0..self.accepted).collect::<Vec<_>>(), "a connection is lost or has two owners");
    }
}

proptest! {
    #[test]
    fn every_connection_has_one_owner_whatever_happens(steps in proptest::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
        // Let everything come to its end: nothing may be left over.
        while world.closed.len() < world.accepted as usize {
            world.rehome();
            for worker in 0..WORKERS {
                for step in [
                    Step::Send { worker, most: 3 },
                    Step::TakeUp { worker },
                    Step::Finish { worker, which: 0 },
                    Step::Report { worker },
                ] {
                    world.step(step);
                    world.check();
                }
            }
        }
    }
}
