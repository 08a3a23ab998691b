//! Masters and workers, as they are, within one process: real sockets, channels and shared memory, but one turn of one
//! loop at a time, in an order that a seed chooses. In between workers and masters are killed, at any instant within
//! a turn, workers become more and fewer, configurations change, masters are upgraded and followed by others, and
//! time goes by. After each step the books of both sides are compared.
//!
//! An ordinary run takes the same schedules each time. `MODEL_SEED=…` runs one again, `MODEL_SECONDS=…` looks for others
//! for so long.

mod clients;
mod deliveries;
mod images;
mod processes;
mod rng;
mod scenarios;
mod servers;
mod world;

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use world::World;

/// Schedules in one process: the memory of its workers is not given back before its end.
const BATCH: u64 = 40;

/// How long schedules are run at most, and how many, unless `MODEL_SECONDS` says otherwise.
const SECONDS: u64 = 5;
const MOST: u64 = 80;

/// Seeds of schedules that once went wrong.
const PINNED: [u64; 6] = [67_071_897, 226_522_796, 253_784_776, 177_889_183, 658_830_642, 896_686_246];

/// The variable that has a batch begin with this seed, within the process that runs it.
const FIRST: &str = "MODEL_FIRST";
const COUNT: &str = "MODEL_COUNT";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs schedules in processes of their own, by the ignored test `batch`, until the time is over.
fn run_batches(batch: &str) {
    run_for(batch, Duration::from_secs(number("MODEL_SECONDS").unwrap_or(SECONDS)));
}

fn run_for(batch: &str, time: Duration) {
    let seed = number("MODEL_SEED");
    // The same in every ordinary run, which is there to show what has changed; new ones are looked for when asked to.
    let search = number("MODEL_SECONDS").is_some();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut first = seed.unwrap_or(if search { u64::from(now.subsec_nanos()) } else { 0 });
    let start = Instant::now();
    let mut schedules = 0;
    loop {
        let count = if seed.is_some() { 1 } else { BATCH };
        run_batch(batch, first, count);
        schedules += count;
        first += count;
        if seed.is_some() || start.elapsed() >= time || !search && schedules >= MOST {
            break;
        }
    }
    println!("{schedules} schedules");
}

fn run_batch(batch: &str, first: u64, count: u64) {
    // Descriptors are counted there, and no other test opens any.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "--test-threads", "1", batch])
        .env(FIRST, first.to_string())
        .env(COUNT, count.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{}", output.status);
}

/// The seeds of this process.
fn seeds() -> impl Iterator<Item = u64> {
    world::listen_to_log();
    let first = number(FIRST).unwrap_or(0);
    first..first + number(COUNT).unwrap_or(1)
}

#[test]
fn whatever_happens_every_connection_has_one_owner_and_comes_to_its_end() {
    run_batches("master::model::batch");
}

#[test]
fn schedules_that_once_went_wrong_go_well() {
    PINNED.into_iter().for_each(|seed| run_batch("master::model::batch", seed, 1));
}

#[test]
#[ignore = "part of the tests above, which run it in processes of their own"]
fn batch() {
    seeds().for_each(World::run);
}

#[test]
fn answers_that_go_elsewhere_come_whole_whatever_happens() {
    run_batches("master::model::deliveries_batch");
}

#[test]
#[ignore = "part of the test above, which runs it in processes of its own"]
fn deliveries_batch() {
    seeds().for_each(World::run_deliveries);
}

#[test]
fn a_part_of_an_answer_is_never_taken_for_all() {
    run_batches("master::model::breaking");
}

#[test]
#[ignore = "part of the test above, which runs it in processes of its own"]
fn breaking() {
    seeds().for_each(World::run_breaking);
}

#[test]
fn any_memory_of_a_dead_worker_is_adopted_safely_or_refused() {
    run_batches("master::model::images");
}

#[test]
#[ignore = "part of the test above, which runs it in processes of its own"]
fn images() {
    seeds().for_each(World::run_images);
}

#[test]
fn single_courses_of_events_go_well() {
    run_for("master::model::courses", Duration::ZERO);
}

#[test]
#[ignore = "part of the test above, which runs it in a process of its own"]
fn courses() {
    world::listen_to_log();
    scenarios::fewer_workers_before_the_first_is_ready();
    scenarios::the_former_master_dies_before_its_successor_is_ready();
    scenarios::the_successor_dies_as_it_becomes_ready();
    scenarios::orphans_die_as_they_are_met();
    scenarios::masters_die_one_after_the_other_as_they_take_over();
    scenarios::a_stopped_orphan_outlives_an_upgrade();
    scenarios::whoever_is_given_a_part_of_a_request_dies();
    scenarios::the_time_limit_of_a_request_is_not_the_next_ones();
}
