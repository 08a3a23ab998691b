//! Everything at once, for as long as one likes: all kinds of traffic while workers are killed, the configuration is
//! reloaded, the number of workers changes, the program is replaced, and masters are killed and followed by others.
//! `make soak SECONDS=60`.
//!
//! In the first fifth of the time nobody is killed: then not one failure is allowed, of whatever kind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::common::client::Client;
use crate::common::conf::Conf;
use crate::common::killer::Killer;
use crate::common::processes::wait_gone;
use crate::common::proxy::Proxy;
use crate::common::rng::{Rng, Seed};
use crate::common::traffic::delivery::Delivery;
use crate::common::traffic::http::{Download, Fresh, KeepAlive, Pipelined, Safe, Unsafe};
use crate::common::traffic::server::{self, Ledger, What};
use crate::common::traffic::stream::{Relay, Tunnel};
use crate::common::traffic::{Kind, Peer, Progress, Score, drive, table};
use crate::common::{DEADLINE, wait_until};

/// How long, unless `SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 60;
/// Workers by the configuration; signals make it between two fewer and two more.
const WORKERS: usize = 6;
/// Connections that may be lost with each master that is killed: those between two workers with something under way.
/// Most masters have none at that moment.
const LOST_WITH_A_MASTER: usize = 2;

/// Exchanges with `reply_to`. Where nothing of one has begun a reset says no more than a 502 would.
const ELSEWHERE: &str = "answers delivered elsewhere";

fn kinds(proxy: &Proxy, ledger: &Arc<Ledger>, target: SocketAddr) -> Vec<Kind> {
    fn kind(
        name: &'static str,
        clients: usize,
        paced: bool,
        make: impl Fn() -> Box<dyn Peer> + Send + Sync + 'static,
    ) -> Kind {
        Kind { name, clients, paced, make: Box::new(make) }
    }
    let (http, tcp) = (proxy.addrs()[0].clone(), proxy.addrs()[1].clone());
    let download = |name, what| {
        let (addr, ledger) = (http.clone(), Arc::clone(ledger));
        kind(name, 2, false, move || {
            Box::new(Download { addr: addr.clone(), kind: what, client: None, ledger: Arc::clone(&ledger) })
        })
    };
    let with = || (http.clone(), Arc::clone(ledger));
    vec![
        {
            let (addr, ledger) = with();
            kind("new connections", 2, true, move || {
                Box::new(Fresh { addr: addr.clone(), ledger: Arc::clone(&ledger) })
            })
        },
        {
            let (addr, ledger) = with();
            kind("idle connections", 2, true, move || Box::new(KeepAlive::new(&addr, &ledger, 32)))
        },
        {
            let (addr, ledger) = with();
            kind("safe requests", 3, true, move || {
                Box::new(Safe { client: Client::connect(&addr), ledger: Arc::clone(&ledger) })
            })
        },
        {
            let (addr, ledger) = with();
            kind("pipelined requests", 2, true, move || {
                Box::new(Pipelined { client: Client::connect(&addr), ledger: Arc::clone(&ledger) })
            })
        },
        {
            let (addr, ledger) = with();
            kind("unsafe requests", 3, false, move || {
                Box::new(Unsafe { addr: addr.clone(), client: None, ledger: Arc::clone(&ledger) })
            })
        },
        download("responses with a length", What::Length),
        download("chunked responses", What::Chunked),
        download("responses until the close", What::UntilClose),
        {
            let (addr, ledger) = (tcp.clone(), Arc::clone(ledger));
            kind("relays", 3, false, move || Box::new(Relay { addr: addr.clone(), ledger: Arc::clone(&ledger) }))
        },
        {
            let (addr, ledger) = with();
            kind("tunnels", 2, false, move || Box::new(Tunnel { addr: addr.clone(), ledger: Arc::clone(&ledger) }))
        },
        {
            let (addr, ledger) = (proxy.addrs()[2].clone(), Arc::clone(ledger));
            kind(ELSEWHERE, 2, false, move || {
                Box::new(Delivery { addr: addr.clone(), target, ledger: Arc::clone(&ledger) })
            })
        },
    ]
}

/// The master's descriptors by what they are. Its copies of the pipes of living workers come and go with the load.
fn descriptors(pid: Pid) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let kind = target.split([':', '[']).next().unwrap_or_default();
        let kind = if target.contains("memfd") { "memfd" } else { kind };
        if kind != "pipe" {
            *counts.entry(kind.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Requests over which two workers died.
fn quarantined(proxy: &Proxy) -> usize {
    proxy.log.all().iter().filter(|line| line.contains("workers died over it")).count()
}

/// Every process that works in `dir`: the masters of this test and their workers.
fn processes(dir: &Path) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap());
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir))
        .map(Pid::from_raw)
        .collect()
}

/// What was done to the proxy.
#[derive(Debug, Default)]
struct Done {
    kills: usize,
    reloads: usize,
    more: usize,
    fewer: usize,
    upgrades: usize,
    masters_killed: usize,
    /// Requests over which two workers died, with masters that are gone.
    quarantined: usize,
}

/// Does this and that at random instants.
struct Trouble {
    proxy: Proxy,
    rng: Rng,
    killer: Killer,
    confs: [String; 2],
    /// How many workers there should be, relative to the configuration.
    extra: i32,
    done: Done,
}

impl Trouble {
    fn one(&mut self, kills: bool, progress: &Progress) {
        match self.rng.below(60) {
            0..5 => self.reload(),
            5..10 if self.extra < 2 => {
                self.extra += 1;
                self.done.more += 1;
                self.proxy.signal(Signal::SIGTTIN);
            }
            10..15 if self.extra > -2 => {
                self.extra -= 1;
                self.done.fewer += 1;
                self.proxy.signal(Signal::SIGTTOU);
            }
            15 | 16 => self.upgrade(kills),
            17 | 18 if kills => self.kill_master(progress),
            _ if kills => self.done.kills += self.killer.strike(&self.proxy),
            _ => {}
        }
        self.killer.wait(60_000);
    }

    fn reload(&mut self) {
        self.done.reloads += 1;
        self.proxy.write_config(WORKERS, &self.confs[self.done.reloads % 2]);
        self.proxy.signal(Signal::SIGHUP);
        self.extra = 0;
    }

    /// Has the program replaced, while workers of the former master are killed.
    fn upgrade(&mut self, kills: bool) {
        if self.rng.once_in(3) {
            self.reload();
        }
        let skip = self.proxy.log.all().len();
        self.proxy.signal(Signal::SIGUSR2);
        let end = Instant::now() + DEADLINE;
        let pid = loop {
            if let Some((_, line)) = self.proxy.log.find(skip, &["another master (pid ", ") takes over"]) {
                let pid = line.split("(pid ").nth(1).and_then(|rest| rest.split(')').next());
                break Pid::from_raw(pid.unwrap().parse().unwrap());
            }
            // It was asked for too soon after the last one.
            if self.proxy.log.find(skip, &["WARN", "not upgraded: "]).is_some() {
                return;
            }
            assert!(Instant::now() < end, "no upgrade\n{}", self.proxy.text());
            if kills && self.rng.once_in(3) {
                self.done.kills += self.killer.strike(&self.proxy);
            }
            self.killer.wait(5000);
        };
        self.done.upgrades += 1;
        self.extra = 0;
        self.proxy.succeeded(pid);
    }

    /// Kills the master, and sooner or later starts another.
    fn kill_master(&mut self, progress: &Progress) {
        // Not before it has dealt with the workers killed last: nobody else has their connections.
        progress.flow();
        progress.interregnum(|| {
            let orphans = self.proxy.kill_master();
            self.killer.wait(100_000);
            let next = self.proxy.again();
            assert_eq!(next.addrs(), self.proxy.addrs());
            let former = std::mem::replace(&mut self.proxy, next);
            wait_gone(&orphans);
            former.check_log();
            self.done.quarantined += quarantined(&former);
        });
        self.done.masters_killed += 1;
        self.extra = 0;
    }
}

#[test]
#[ignore = "takes as long as one likes: make soak SECONDS=60"]
fn soak() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let time = Duration::from_secs(seconds);
    let seed = Seed::new();
    let mut rng = Rng::new(seed.0);
    let ledger = Arc::new(Ledger::default());
    let servers = [server::http(&ledger), server::http(&ledger), server::tcp(&ledger), server::tcp(&ledger)];
    let conf = |group: &str, http: [usize; 2], tcp: usize| {
        let tables = format!(
            "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"streams\"\n\
             [[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nrules = \"t\"\n\
             [rules.t]\nlist = [{{ action = \"allow\", networks = [\"127.0.0.0/8\"], ports = [\"1-65535\"] }}]\n\
             [backends.streams]\nservers = [\"{}\"]",
            servers[tcp].addr
        );
        Conf::http(&http.map(|n| servers[n].addr)).group(group).tables(&tables).text()
    };
    let confs =
        [conf("balance = \"least-connections\"", [0, 1], 2), conf("keepalive = { idle_per_server = 2 }", [1, 0], 3)];
    let proxy = crate::common::proxy::Launch::config(&confs[0]).workers(WORKERS).start();
    let kinds = kinds(&proxy, &ledger, servers[2].addr);
    let before = descriptors(proxy.pid);
    let killer = Killer::new(Rng::new(rng.next()));
    let trouble_rng = Rng::new(rng.next());
    let mut trouble = Trouble { proxy, rng: trouble_rng, killer, confs, extra: 0, done: Done::default() };

    let calm = drive(&kinds, &mut rng, |progress| {
        let start = Instant::now();
        while start.elapsed() < time / 5 {
            progress.flow();
            trouble.one(false, progress);
        }
    });
    println!("\nWithout kills, {} s: {:?}\n{}", seconds / 5, trouble.done, table(&calm));
    let rough = drive(&kinds, &mut rng, |progress| {
        let start = Instant::now();
        while start.elapsed() < time - time / 5 {
            progress.flow();
            trouble.one(true, progress);
        }
    });
    let Trouble { done, mut proxy, .. } = trouble;
    println!("With kills, {} s: {done:?} in all\n{}", seconds - seconds / 5, table(&rough));

    // Back to the configured number, so that what is left can be compared.
    proxy.reload(WORKERS, &conf("", [0, 1], 2));
    proxy.wait_for_workers(WORKERS);
    wait_until("every connection to the servers but those kept has ended", || {
        servers[2].open() + servers[3].open() == 0
    });
    wait_until(&format!("the master has no more descriptors than before: {before:?}"), || {
        let now = descriptors(proxy.pid);
        now.iter().all(|(kind, count)| *count <= before.get(kind).copied().unwrap_or(0))
    });
    println!(
        "the master's descriptors before: {before:?}\n                         after: {:?}",
        descriptors(proxy.pid)
    );

    // The master, its heir and the workers.
    wait_until("nothing is left of former masters", || processes(proxy.dir.path()).len() == 2 + WORKERS);

    let quarantined = done.quarantined + quarantined(&proxy);
    println!("requests over which two workers died: {quarantined}");
    judge(&calm, &rough, quarantined, LOST_WITH_A_MASTER * done.masters_killed);
    let lost: usize = rough.iter().map(|score| score.lost).sum();
    println!("connections lost with {} masters that were killed: {lost}", done.masters_killed);
    assert!(lost <= LOST_WITH_A_MASTER * done.masters_killed, "{lost} connections were lost with masters");
    assert!(ledger.most_executions() <= 1, "an unsafe request was run {} times", ledger.most_executions());
}

/// Panics if there was a failure that is not allowed.
fn judge(calm: &[Score], rough: &[Score], quarantined: usize, lost: usize) {
    for score in calm {
        score.check(0, 0);
    }
    for score in rough {
        let response = score.name.contains("responses");
        let bad_gateway = match score.name {
            name if name.starts_with("unsafe") => score.turns,
            ELSEWHERE => quarantined + lost,
            _ => quarantined,
        };
        score.check(bad_gateway, if response { score.turns } else { 0 });
    }
}
