//! Single courses of events that once went wrong, step by step.

use std::time::Duration;

use super::clients::Kind;
use super::world::World;
use crate::signals::Request;

/// Instants within one turn at which somebody is killed, one after the other.
const INSTANTS: u64 = 16;

/// One in which there are places for everybody.
const SEED: u64 = 2;

fn calm(schedule: impl FnOnce(&mut World)) {
    World::run_by(SEED, false, |world| {
        schedule(world);
        world.settle();
    });
}

/// A worker that is not wanted any more before the first ones are ready does not keep a successor from taking over.
pub fn fewer_workers_before_the_first_is_ready() {
    calm(|world| {
        world.ask(Request::Upgrade);
        world.start_successor(None);
        world.run_masters();
        world.ask(Request::FewerWorkers);
    });
}

/// The workers of a master that is killed while its successor comes up are taken over from, connections and all.
pub fn the_former_master_dies_before_its_successor_is_ready() {
    calm(|world| {
        let client = world.add_client(Kind::Http);
        world.request(client, true);
        world.run_until_asked(1);
        world.ask(Request::Upgrade);
        world.start_successor(None);
        world.run_masters();
        world.bury_master(0, true);
    });
}

/// A successor is killed at any instant of the turn in which it becomes ready.
pub fn the_successor_dies_as_it_becomes_ready() {
    for instant in 0..INSTANTS {
        calm(|world| {
            world.ask(Request::Upgrade);
            world.start_successor(None);
            world.run_masters();
            world.run_workers();
            world.run_master(1, Some(instant));
        });
    }
}

/// Several masters are killed as they take over, each at any instant of the turn in which it is ready, each with workers
/// that have clients of their own. The next master finds all of them, and nobody loses anything.
pub fn masters_die_one_after_the_other_as_they_take_over() {
    for instant in 0..INSTANTS {
        calm(|world| {
            world.add_served_clients();
            world.bury_master(0, true);
            for _ in 0..3 {
                world.start_master(None);
                world.run_own_until_served();
                world.run_master(0, Some(instant));
                world.kill_masters();
            }
            assert_eq!(world.workers(), 2 + 3 * 2, "all are there");
            assert_eq!(world.excused(), None);
        });
    }
}

/// An orphan that is stopped is found by the successor of the master that waited for it, and by the next one if both are
/// killed, at any instant of the turn in which the successor is ready.
pub fn a_stopped_orphan_outlives_an_upgrade() {
    for instant in 0..INSTANTS {
        calm(|world| {
            world.add_served_clients();
            world.bury_master(0, true);
            world.start_master(None);
            world.run_while_one_is_stopped(0, 1);
            world.ask(Request::Upgrade);
            world.start_successor(None);
            world.run_own_of(1);
            world.run_master(1, Some(instant));
            world.kill_masters();
            assert_eq!(world.excused(), None);
        });
    }
}

/// Orphans end one after the other, each at another instant of the turn in which it is met.
pub fn orphans_die_as_they_are_met() {
    for instant in 0..INSTANTS {
        calm(|world| {
            (0..3).for_each(|_| world.ask(Request::MoreWorkers));
            (0..4).for_each(|_| world.run_all_but_clients());
            world.bury_master(0, true);
            world.start_master(None);
            (0..2).for_each(|_| world.run_masters());
            let count = world.workers();
            for at in (0..count).rev() {
                world.run_worker(at, Some(instant));
            }
            world.run_masters();
        });
    }
}

/// A part of a request that a worker gives back is not lost with the worker that it is given to, at whatever instant that
/// dies.
pub fn whoever_is_given_a_part_of_a_request_dies() {
    for instant in 0..INSTANTS {
        calm(|world| {
            (0..4).for_each(|_| world.add_request_part());
            (0..6).for_each(|_| world.run_all_but_clients());
            world.ask(Request::FewerWorkers);
            world.run_masters();
            world.run_workers();
            world.run_masters();
            for at in (0..world.workers()).rev() {
                world.run_worker(at, Some(instant));
            }
        });
    }
}

/// A request that waits behind another is not late because the time limit of that one passes with its answer.
pub fn the_time_limit_of_a_request_is_not_the_next_ones() {
    for after in [900, 1000, 1001, 1002, 1010] {
        calm(|world| {
            let client = world.add_client(Kind::Http);
            world.request(client, true);
            world.request(client, true);
            world.run_until_asked(1);
            world.pass(Duration::from_millis(after));
            world.servers_act();
        });
    }
}
