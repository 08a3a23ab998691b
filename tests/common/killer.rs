//! Kills workers, as often as the master starts them again at once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::processes::alive;
use super::proxy::Proxy;
use super::rng::Rng;
use super::{dawdle, wait_until};

/// A worker that lived so long may be killed without its successor being held back.
const LONG: Duration = Duration::from_millis(1100);
/// Deaths after which those that died quickly are held back.
const QUICK_DEATHS: u32 = 3;

/// See the module's description.
#[derive(Debug)]
pub struct Killer {
    rng: Rng,
    /// When each was seen to be ready.
    ready: HashMap<Pid, Instant>,
    /// Quick deaths in a row, by the worker's number.
    quick: HashMap<String, u32>,
    pub kills: usize,
}

impl Killer {
    pub fn new(rng: Rng) -> Killer {
        Killer { rng, ready: HashMap::new(), quick: HashMap::new(), kills: 0 }
    }

    /// Kills a worker, or two at once, if any may be killed now and another is left that is ready; how many.
    pub fn strike(&mut self, proxy: &Proxy) -> usize {
        let now = Instant::now();
        let workers = proxy.numbered_workers();
        for &(_, pid) in &workers {
            if !self.ready.contains_key(&pid) && proxy.log.find(0, &[&format!("(pid {pid}) ready")]).is_some() {
                self.ready.insert(pid, now);
            }
        }
        let quick = |number: &String, at: &Instant| {
            now - *at < LONG && self.quick.get(number).copied().unwrap_or(0) >= QUICK_DEATHS
        };
        let ready: Vec<&(String, Pid)> = workers.iter().filter(|(_, pid)| self.ready.contains_key(pid)).collect();
        let mut victims: Vec<(String, Pid)> =
            ready.iter().filter(|(number, pid)| !quick(number, &self.ready[pid])).map(|&one| one.clone()).collect();
        let most = if self.rng.once_in(6) { 2 } else { 1 };
        let count = victims.len().min(most).min(ready.len().saturating_sub(1));
        let mut chosen = Vec::new();
        for _ in 0..count {
            let at = self.rng.below(victims.len() as u64) as usize;
            chosen.push(victims.swap_remove(at));
        }
        // What is passed from one that is dead to one that is about to be would count as a second death over the
        // same request. One that stands still is also found with connections that it has not taken up.
        if count > 1 || self.rng.once_in(3) {
            for (_, pid) in &chosen {
                let _ = kill(*pid, Signal::SIGSTOP);
            }
            dawdle(self.rng.pause(15_000));
        }
        for (number, pid) in &chosen {
            let _ = kill(*pid, Signal::SIGKILL);
            let deaths = self.quick.entry(number.clone()).or_default();
            *deaths = if now - self.ready[pid] < LONG { *deaths + 1 } else { 0 };
        }
        for (_, pid) in &chosen {
            wait_until("it is dead", || !alive(*pid));
            self.ready.remove(pid);
        }
        self.kills += count;
        count
    }

    /// Lets a random time pass.
    pub fn wait(&mut self, most_us: u64) {
        dawdle(self.rng.pause(most_us));
    }
}
