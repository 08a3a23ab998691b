//! Workers killed at random instants under every kind of traffic, and what clients may see of it.
//!
//! Each test first runs its traffic without kills and allows nothing, then with kills and allows what is promised
//! for its kind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::backend::{Act, Backend};
use crate::common::client::Client;
use crate::common::conf::Conf;
use crate::common::dawdle;
use crate::common::h1::Broken;
use crate::common::killer::Killer;
use crate::common::proxy::{Addr, Proxy};
use crate::common::rng::{Rng, Seed};
use crate::common::traced::{Call, SENDMSG, kill_when};
use crate::common::traffic::delivery::Delivery;
use crate::common::traffic::http::{Download, Fresh, KeepAlive, Pipelined, Safe, Unsafe};
use crate::common::traffic::server::{self, Ledger, What};
use crate::common::traffic::stream::{Named, Relay, Tunnel};
use crate::common::traffic::{Kind, Peer, Progress, Score, drive, table};

/// Many, since one that dies thrice in quick succession is not started again at once.
const WORKERS: usize = 8;
/// How long traffic runs without kills,
const CONTROL: Duration = Duration::from_millis(700);
/// and with them.
const KILLING: Duration = Duration::from_secs(5);
/// Kills in that time at least, also on a busy machine.
const MIN_KILLS: usize = 8;

/// In the log when a request is not run a third time: what it was, or that it is none of HTTP.
const QUARANTINE: [&str; 2] = ["workers died over its request", "workers died over it; cut"];

/// What came of a test's traffic.
struct Outcome {
    score: Score,
    ledger: Arc<Ledger>,
    /// Requests over which two workers died.
    quarantined: usize,
}

/// A proxy in front of a server for HTTP and one for streams.
struct Bed {
    proxy: Proxy,
    ledger: Arc<Ledger>,
    servers: [Backend; 2],
}

impl Bed {
    fn new() -> Bed {
        Bed::with("")
    }

    /// With more in its configuration.
    fn with(more: &str) -> Bed {
        let ledger = Arc::new(Ledger::default());
        let servers = [server::http(&ledger), server::tcp(&ledger)];
        let tcp = format!(
            "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"streams\"\n[backends.streams]\nservers = [\"{}\"]\n{more}",
            servers[1].addr
        );
        let proxy = Conf::http(&[servers[0].addr]).tables(&tcp).launch().workers(WORKERS).start();
        Bed { proxy, ledger, servers }
    }

    fn kind(
        &self,
        name: &'static str,
        clients: usize,
        make: impl Fn(&Addr, &Addr, &Arc<Ledger>) -> Box<dyn Peer> + Send + Sync + 'static,
    ) -> Kind {
        let (addrs, ledger) = (self.proxy.addrs().to_vec(), Arc::clone(&self.ledger));
        Kind { name, clients, paced: true, make: Box::new(move || make(&addrs[0], &addrs[1], &ledger)) }
    }

    /// Runs traffic of one kind without kills, which must cost nothing, and with kills; what was seen then.
    #[track_caller]
    fn run(mut self, kind: Kind) -> Outcome {
        let seed = Seed::new();
        let mut rng = Rng::new(seed.0);
        let kinds = [kind];
        let before = self.proxy.descriptors();
        let control = drive(&kinds, &mut rng, |_| dawdle(CONTROL));
        assert!(control[0].turns > 0, "no turn within {CONTROL:?}");
        control[0].check(0, 0);
        let mut killer = Killer::new(Rng::new(rng.next()));
        let scores = drive(&kinds, &mut rng, |progress| kill_for(KILLING, &mut killer, &self.proxy, progress));
        eprintln!("{} kills\n{}", killer.kills, table(&scores));
        assert!(killer.kills >= MIN_KILLS, "only {} kills", killer.kills);
        self.proxy.wait_for_workers(WORKERS);
        // Two connections to a server are kept in each worker that has been used, and pipes.
        self.proxy.assert_no_leaks(&before, 16 * kinds[0].clients);
        let quarantined =
            self.proxy.log.all().iter().filter(|line| QUARANTINE.iter().any(|what| line.contains(what))).count();
        let score = scores.into_iter().next().unwrap();
        Outcome { score, ledger: self.ledger, quarantined }
    }
}

fn kill_for(time: Duration, killer: &mut Killer, proxy: &Proxy, progress: &Progress) {
    let start = Instant::now();
    while start.elapsed() < time {
        progress.flow();
        killer.wait(20_000);
        killer.strike(proxy);
    }
    progress.flow();
}

#[test]
fn connections_not_taken_up_lose_nothing() {
    let bed = Bed::new();
    let kind = bed.kind("new connections", 6, |http, _, ledger| {
        Box::new(Fresh { addr: http.clone(), ledger: Arc::clone(ledger) })
    });
    bed.run(kind).score.check(0, 0);
}

#[test]
fn idle_connections_lose_nothing() {
    let bed = Bed::new();
    let kind = bed.kind("idle connections", 6, |http, _, ledger| Box::new(KeepAlive::new(http, ledger, 12)));
    bed.run(kind).score.check(0, 0);
}

#[test]
fn safe_requests_lose_nothing() {
    let bed = Bed::new();
    let kind = bed.kind("safe requests", 8, |http, _, ledger| {
        Box::new(Safe { client: Client::connect(http), ledger: Arc::clone(ledger) })
    });
    bed.run(kind).score.check(0, 0);
}

#[test]
fn pipelined_requests_lose_nothing_and_keep_their_order() {
    let bed = Bed::new();
    let kind = bed.kind("pipelined requests", 6, |http, _, ledger| {
        Box::new(Pipelined { client: Client::connect(http), ledger: Arc::clone(ledger) })
    });
    bed.run(kind).score.check(0, 0);
}

#[test]
fn unsafe_requests_are_run_once_or_answered_502() {
    let bed = Bed::new();
    let kind = bed.kind("unsafe requests", 8, |http, _, ledger| {
        Box::new(Unsafe { addr: http.clone(), client: None, ledger: Arc::clone(ledger) })
    });
    let Outcome { score, ledger, .. } = bed.run(kind);
    score.check(score.turns, 0);
    assert!(score.bad_gateway > 0, "no kill met a request: {score:?}");
    assert!(ledger.most_executions() <= 1, "a request was run {} times", ledger.most_executions());
}

fn downloads(name: &'static str, what: What) {
    let bed = Bed::new();
    let mut kind = bed.kind(name, 6, move |http, _, ledger| {
        Box::new(Download { addr: http.clone(), kind: what, client: None, ledger: Arc::clone(ledger) })
    });
    kind.paced = false;
    let Outcome { score, quarantined, .. } = bed.run(kind);
    score.check(quarantined, score.turns);
    assert!(score.truncated > 0, "no kill met a response: {score:?}");
}

#[test]
fn what_was_held_back_of_an_answer_is_seen_before_the_cut() {
    let start = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegin";
    let backend = Backend::scripted(vec![Act::Request, Act::Send(start.into()), Act::Hang]);
    let proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    // The head waits in the kernel for what is to follow it at once.
    let held_back = |call: &Call| matches!(call, Call::Ended(SENDMSG, written) if *written > start.len() as i64);
    kill_when(proxy.workers()[0], || client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), held_back);
    match client.try_response() {
        Err(Broken::Reset(part)) => assert!(part.ends_with(b"\r\n\r\nbegin"), "{part:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn responses_with_a_length_are_whole_or_visibly_cut() {
    downloads("responses with a length", What::Length);
}

#[test]
fn chunked_responses_are_whole_or_visibly_cut() {
    downloads("chunked responses", What::Chunked);
}

#[test]
fn responses_until_the_close_are_whole_or_visibly_cut() {
    downloads("responses until the close", What::UntilClose);
}

#[test]
fn relays_lose_no_byte_in_any_state() {
    let bed = Bed::new();
    let mut kind =
        bed.kind("relays", 6, |_, tcp, ledger| Box::new(Relay { addr: tcp.clone(), ledger: Arc::clone(ledger) }));
    kind.paced = false;
    bed.run(kind).score.check(0, 0);
}

#[test]
fn tunnels_lose_no_byte_in_any_state() {
    let bed = Bed::new();
    let mut kind =
        bed.kind("tunnels", 6, |http, _, ledger| Box::new(Tunnel { addr: http.clone(), ledger: Arc::clone(ledger) }));
    kind.paced = false;
    let Outcome { score, quarantined, .. } = bed.run(kind);
    score.check(quarantined, 0);
}

/// With a forward listener behind the others.
fn forward_bed() -> Bed {
    let rules = "[rules.t]\nlist = [{ action = \"allow\", networks = [\"127.0.0.0/8\"], ports = [\"1-65535\"] }]";
    Bed::with(&format!("[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nrules = \"t\"\n{rules}"))
}

#[test]
fn tunnels_to_named_targets_lose_no_byte_in_any_state() {
    let bed = forward_bed();
    let (addr, target, ledger) = (bed.proxy.addrs()[2].clone(), bed.servers[1].addr, Arc::clone(&bed.ledger));
    let make = move || -> Box<dyn Peer> { Box::new(Named { addr: addr.clone(), target, ledger: Arc::clone(&ledger) }) };
    let kind = Kind { name: "tunnels to named targets", clients: 6, paced: false, make: Box::new(make) };
    let Outcome { score, quarantined, .. } = bed.run(kind);
    score.check(quarantined, 0);
}

#[test]
fn answers_delivered_elsewhere_lose_no_byte_in_any_state() {
    let bed = forward_bed();
    let (addr, target, ledger) = (bed.proxy.addrs()[2].clone(), bed.servers[1].addr, Arc::clone(&bed.ledger));
    let make =
        move || -> Box<dyn Peer> { Box::new(Delivery { addr: addr.clone(), target, ledger: Arc::clone(&ledger) }) };
    let kind = Kind { name: "answers delivered elsewhere", clients: 6, paced: false, make: Box::new(make) };
    let Outcome { score, quarantined, .. } = bed.run(kind);
    score.check(quarantined, 0);
}
