//! Which server gets a request: the policies, backups, and what failures lead to.

use std::collections::{HashMap, HashSet};
use std::thread;

use crate::common::backend::{Backend, Refusing};
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::proxy::{Addr, Launch, Proxy};
use crate::common::wait_until;

fn named(names: &[&str]) -> Vec<Backend> {
    names.iter().map(|name| Backend::named(name)).collect()
}

/// How often each name came back over `count` requests on one connection.
fn count(addr: &Addr, count: usize) -> HashMap<String, usize> {
    let mut client = Client::connect(addr);
    let mut counts = HashMap::new();
    for _ in 0..count {
        *counts.entry(client.get("/").text()).or_default() += 1;
    }
    counts
}

fn weighted(policy: &str, backends: &[Backend], weights: &[u16]) -> Proxy {
    let mut conf = Conf::http(&[]).group(&format!("balance = \"{policy}\""));
    for (backend, weight) in backends.iter().zip(weights) {
        conf = conf.server(format!("{{ address = \"{}\", weight = {weight} }}", backend.addr));
    }
    conf.launch().workers(1).start()
}

#[test]
fn round_robin_follows_the_weights_exactly() {
    let backends = named(&["a", "b", "c"]);
    let proxy = weighted("round-robin", &backends, &[5, 1, 1]);
    let counts = count(proxy.addr(), 70);
    assert_eq!((counts["a"], counts["b"], counts["c"]), (50, 10, 10));
}

#[test]
fn round_robin_is_smooth() {
    let backends = named(&["a", "b", "c"]);
    let proxy = weighted("round-robin", &backends, &[5, 1, 1]);
    let mut client = Client::connect(proxy.addr());
    let order: String = (0..14).map(|_| client.get("/").text()).collect();
    // As nginx does it; where in the cycle a worker begins is its own.
    let cycle = "aabacaa".repeat(3);
    assert!(cycle.contains(&order), "{order}");
}

#[test]
fn round_robin_is_the_default_and_even() {
    let backends = named(&["a", "b"]);
    let proxy = Launch::http(&[backends[0].addr, backends[1].addr]).workers(1).start();
    let counts = count(proxy.addr(), 20);
    assert_eq!((counts["a"], counts["b"]), (10, 10));
}

/// Two servers of which the first keeps its requests until the gate opens.
fn slow_and_quick() -> (Backend, Backend) {
    let slow = Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.gate().pass();
            conn.send(&crate::common::backend::response("slow"));
        }
    });
    (slow, Backend::named("quick"))
}

#[test]
fn least_connections_avoids_the_busy_server() {
    let (slow, quick) = slow_and_quick();
    let conf = Conf::http(&[slow.addr, quick.addr]).group("balance = \"least-connections\"");
    let proxy = conf.launch().workers(1).start();
    // One request is caught at the slow server at the latest by the second.
    let mut waiting = Vec::new();
    while slow.requests().is_empty() {
        let mut client = Client::connect(proxy.addr());
        let before = quick.requests().len();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("a server has it", || !slow.requests().is_empty() || quick.requests().len() > before);
        waiting.push(client);
    }
    let counts = count(proxy.addr(), 20);
    assert_eq!(counts["quick"], 20);
    slow.gate().open();
    let last = waiting.pop().unwrap().response();
    assert_eq!(last.text(), "slow");
}

#[test]
fn least_connections_counts_per_weight() {
    let gated = || {
        Backend::serve(|conn| {
            while conn.request().is_some() {
                conn.gate().pass();
                conn.send(&crate::common::backend::response("ok"));
            }
        })
    };
    let backends = [gated(), gated()];
    let proxy = weighted("least-connections", &backends, &[1, 3]);
    let mut clients = Vec::new();
    for sent in 1..=16 {
        let mut client = Client::connect(proxy.addr());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        clients.push(client);
        wait_until("the request has arrived", || backends.iter().map(|b| b.requests().len()).sum::<usize>() == sent);
    }
    assert_eq!((backends[0].requests().len(), backends[1].requests().len()), (4, 12));
    backends.iter().for_each(|backend| backend.gate().open());
}

#[test]
fn random_two_reaches_every_server() {
    let backends = named(&["a", "b", "c"]);
    let proxy = weighted("random-two", &backends, &[1, 1, 1]);
    let counts = count(proxy.addr(), 150);
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(counts.values().all(|&count| count > 20), "{counts:?}");
}

/// The server each of these client addresses is served by, asked three times over fresh connections.
fn by_address(proxy: &Proxy) -> HashMap<String, String> {
    (1..=40)
        .map(|n| {
            let from = format!("127.0.0.{n}");
            let names: HashSet<String> =
                (0..3).map(|_| Client::connect_from(&from, proxy.addr()).get("/").text()).collect();
            assert_eq!(names.len(), 1, "{from} was served by {names:?}");
            (from, names.into_iter().next().unwrap())
        })
        .collect()
}

#[test]
fn hashes_keep_a_client_at_its_server_in_every_worker() {
    for policy in ["source-hash", "consistent-hash"] {
        let backends = named(&["a", "b", "c", "d"]);
        let mut conf = Conf::http(&[]).group(&format!("balance = \"{policy}\""));
        for backend in &backends {
            conf = conf.server(format!("\"{}\"", backend.addr));
        }
        let proxy = conf.launch().workers(2).start();
        let served = by_address(&proxy);
        let used: HashSet<&String> = served.values().collect();
        assert!(used.len() >= 3, "{policy} uses only {used:?}");
    }
}

#[test]
fn consistent_hash_moves_few_clients() {
    let backends = named(&["a", "b", "c", "d"]);
    let start = |backends: &[Backend]| {
        let mut conf = Conf::http(&[]).group("balance = \"consistent-hash\"");
        for backend in backends {
            conf = conf.server(format!("\"{}\"", backend.addr));
        }
        conf.launch().workers(1).start()
    };
    let four = by_address(&start(&backends));
    let three = by_address(&start(&backends[..3]));
    for (client, server) in &four {
        if server != "d" {
            assert_eq!(&three[client], server, "{client} moved although its server stayed");
        }
    }
}

#[test]
fn backup_serves_only_when_no_other_can() {
    let backup = Backend::named("backup");
    let first = Backend::named("first");
    let conf = Conf::http(&[first.addr])
        .server(format!("{{ address = \"{}\", backup = true }}", backup.addr))
        .group("health = { failures = 1, eject = \"200ms\", eject_max = \"200ms\" }");
    let proxy = conf.launch().workers(1).start();
    assert_eq!(count(proxy.addr(), 10)["first"], 10);
    let refusing = first.refuse();
    assert_eq!(count(proxy.addr(), 10)["backup"], 10);
    let _first = refusing.serve_named("first");
    wait_until("the first is back", || get(proxy.addr(), "/").text() == "first");
    wait_until("the backup rests", || count(proxy.addr(), 5).get("first") == Some(&5));
}

#[test]
fn refused_connections_go_to_the_next_server_unseen() {
    let (refusing, backend) = (Refusing::new(), Backend::named("b"));
    let conf = Conf::http(&[refusing.addr, backend.addr]).group("health = { failures = 0 }");
    let proxy = conf.launch().workers(1).start();
    assert_eq!(count(proxy.addr(), 20)["b"], 20);
    // A body that has not been sent anywhere may go elsewhere, whatever the method.
    for _ in 0..6 {
        let response =
            Client::connect(proxy.addr()).ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(response.text(), "b");
    }
}

#[test]
fn failing_server_is_ejected_and_comes_back() {
    let good = Backend::named("good");
    let healthy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let state = std::sync::Arc::clone(&healthy);
    let poor = Backend::serve(move |conn| {
        if !state.load(std::sync::atomic::Ordering::SeqCst) {
            return conn.reset();
        }
        while conn.request().is_some() {
            conn.send(&crate::common::backend::response("poor"));
        }
    });
    let conf = Conf::http(&[good.addr, poor.addr])
        .group("health = { failures = 3, eject = \"300ms\", eject_max = \"300ms\" }");
    let proxy = conf.launch().workers(1).start();
    // Every request is answered, by the second try where the first went to the poor one.
    assert_eq!(count(proxy.addr(), 30)["good"], 30);
    // Three failures eject it; trials may have come on top since, at most one in 300 ms.
    let tried = poor.connections();
    assert!((3..12).contains(&tried), "{tried} connections to a failing server over 30 requests");
    healthy.store(true, std::sync::atomic::Ordering::SeqCst);
    wait_until("it comes back", || get(proxy.addr(), "/").text() == "poor");
    wait_until("it gets its share again", || count(proxy.addr(), 10).get("poor") == Some(&5));
}

#[test]
fn all_ejected_are_tried_anyway() {
    let refusing = Refusing::new();
    let conf = Conf::http(&[refusing.addr]).group("health = { failures = 1, eject = \"60s\", eject_max = \"60s\" }");
    let proxy = conf.launch().workers(1).start();
    for _ in 0..3 {
        assert_eq!(get(proxy.addr(), "/").status, 502);
    }
    let _backend = refusing.serve_named("back");
    assert_eq!(get(proxy.addr(), "/").text(), "back");
}

#[test]
fn tries_are_bounded() {
    let backends: Vec<Backend> = (0..5).map(|_| Backend::resetting()).collect();
    let addrs: Vec<_> = backends.iter().map(|backend| backend.addr).collect();
    let conf = Conf::http(&addrs).group("tries = 2\nhealth = { failures = 0 }");
    let proxy = conf.launch().workers(1).start();
    assert_eq!(get(proxy.addr(), "/").status, 502);
    let tried: usize = backends.iter().map(Backend::connections).sum();
    assert_eq!(tried, 2);
}

#[test]
fn connections_to_a_server_are_bounded() {
    let backend = Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.gate().pass();
            conn.send(&crate::common::backend::response("ok"));
        }
    });
    let conf = Conf::http(&[backend.addr]).group("keepalive = { max_per_server = 3 }");
    let proxy = conf.launch().workers(1).start();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let addr = proxy.addr().clone();
            thread::spawn(move || get(&addr, "/").status)
        })
        .collect();
    wait_until("three requests arrive", || backend.requests().len() >= 3);
    backend.gate().open();
    let statuses: Vec<u16> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(backend.connections() <= 3, "{} connections", backend.connections());
    // Whether the others wait or are told so is the proxy's choice.
    assert!(statuses.iter().all(|status| [200, 502, 503, 504].contains(status)), "{statuses:?}");
    assert!(statuses.iter().filter(|&&status| status == 200).count() >= 3, "{statuses:?}");
}
