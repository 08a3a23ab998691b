//! Masters and workers, as they are, within one process: real sockets, channels and shared memory, but one turn of one
//! loop at a time, in an order that a seed chooses. In between workers and masters are killed, at any instant within
//! a turn, workers become more and fewer, configurations change, masters are upgraded and followed by others, and
//! time goes by. After each step the books of both sides are compared.
//!
//! `MODEL_SEED=…` runs one schedule again, `MODEL_SECONDS=…` goes on for so long with others.

mod clients;
mod processes;
mod rng;
mod servers;
mod world;

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use world::World;

/// Schedules in one process: the memory of its workers is not given back before its end.
const BATCH: u64 = 40;

/// How long schedules are run unless `MODEL_SECONDS` says otherwise.
const SECONDS: u64 = 4;

/// The variable that has a batch begin with this seed, within the process that runs it.
const FIRST: &str = "MODEL_FIRST";
const COUNT: &str = "MODEL_COUNT";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn whatever_happens_every_connection_has_one_owner_and_comes_to_its_end() {
    let seed = number("MODEL_SEED");
    let time = Duration::from_secs(number("MODEL_SECONDS").unwrap_or(SECONDS));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut first = seed.unwrap_or(u64::from(now.subsec_nanos()));
    let start = Instant::now();
    let mut schedules = 0;
    loop {
        let count = if seed.is_some() { 1 } else { BATCH };
        // In a process of its own: descriptors are counted, and no other test opens any there.
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "--test-threads", "1", "master::model::batch"])
            .env(FIRST, first.to_string())
            .env(COUNT, count.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{}", output.status);
        schedules += count;
        first += count;
        if seed.is_some() || start.elapsed() >= time {
            break;
        }
    }
    println!("{schedules} schedules");
}

#[test]
#[ignore = "part of the test above, which runs it in a process of its own"]
fn batch() {
    let first = number(FIRST).unwrap_or(0);
    world::listen_to_log();
    for seed in first..first + number(COUNT).unwrap_or(1) {
        World::run(seed);
    }
}
