//! More connections than the master's descriptors hold copies of: all are served, those without a copy end with their
//! worker and no others do, and it is said how many they are.

use std::io::{Read, Write};

use nix::sys::signal::{Signal, kill};

use crate::common::backend::{Act, Backend};
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::processes::{alive, kill_all};
use crate::common::proxy::Proxy;
use crate::common::streams::{tunnel, upgrading};
use crate::common::{wait_for, wait_until};

/// Under this limit 4 workers have places for about 280 connections, and the master keeps about 140.
const DESCRIPTORS: u64 = 256;
const WORKERS: usize = 4;
const MANY: usize = 240;

/// What `master status` says of unprotected connections: now, in all, lost.
#[track_caller]
pub fn unprotected(proxy: &Proxy) -> [usize; 3] {
    let output = proxy.question("status");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("unprotected ")).unwrap_or_else(|| panic!("{output:?}"));
    let numbers: Vec<usize> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{line}"))
}

/// Idle connections, each of which has been answered once.
#[track_caller]
fn idle(proxy: &Proxy, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/first").status, 200);
    }
    clients
}

/// The same on another listener.
#[track_caller]
fn idle_at(proxy: &Proxy, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(&proxy.addrs()[1])).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    clients
}

/// Asks everybody once more, and gives those that are still there.
fn survivors(clients: Vec<Client>) -> Vec<Client> {
    let ask = |mut client: Client| {
        client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_response().is_ok_and(|response| response.status == 200).then_some(client)
    };
    clients.into_iter().filter_map(ask).collect()
}

#[test]
fn without_a_shortage_everything_is_protected() {
    let backend = Backend::echo();
    let proxy = Conf::http(&[backend.addr]).start();
    let clients = idle(&proxy, 100);
    assert_eq!(unprotected(&proxy), [0, 0, 0]);
    assert_eq!(survivors(clients).len(), 100);
}

#[test]
fn more_clients_than_the_master_keeps_are_served_and_only_the_surplus_is_lost_with_a_worker() {
    let backend = Backend::echo();
    let conf = Conf::http(&[backend.addr]);
    let mut proxy = conf.launch().workers(WORKERS).descriptors(DESCRIPTORS, DESCRIPTORS).start();
    let clients = idle(&proxy, MANY);
    let [now, total, lost] = unprotected(&proxy);
    assert!((50..MANY).contains(&now) && total == now && lost == 0, "{now} {total} {lost}\n{}", proxy.text());
    proxy.wait_for_log(&["WARN", "descriptors are short: of ", "no copy was kept"]);
    assert!(proxy.text().matches("descriptors are short").count() < 30, "{}", proxy.text());
    // One worker, then all.
    let victim = proxy.workers()[1];
    kill(victim, Signal::SIGKILL).unwrap();
    wait_until("it is dead", || !alive(victim));
    proxy.wait_for_workers(WORKERS);
    let left = survivors(clients);
    let [after, _, lost] = unprotected(&proxy);
    assert!(lost > 5 && now - lost >= 30, "{now} {lost} {after}");
    assert_eq!(left.len(), MANY - lost, "{}", proxy.text());
    kill_all(&proxy);
    wait_until("they are taken over from", || unprotected(&proxy)[2] == now);
    proxy.wait_for_workers(WORKERS);
    let left = survivors(left);
    assert_eq!(left.len(), MANY - now, "{}", proxy.text());
    // The descriptors are free again once the others have ended.
    let total = unprotected(&proxy)[1];
    let before = proxy.descriptors().0[0];
    drop(left);
    wait_until("their descriptors are free", || proxy.descriptors().0[0] + 100 < before);
    let more = idle(&proxy, 20);
    assert_eq!(unprotected(&proxy), [0, total, now]);
    proxy.wait_for_log(&["every connection outlives its worker again"]);
    kill_all(&proxy);
    proxy.wait_for_workers(WORKERS);
    assert_eq!(survivors(more).len(), 20, "{}", proxy.text());
}

#[test]
fn what_has_no_copy_is_given_back_with_its_descriptors() {
    let (echoing, upgraded) = (Backend::tcp_echo(), upgrading());
    let plain = Backend::echo();
    let third = format!(
        "[[listen]]\nbind = \"127.0.0.3:0\"\nto = \"plain\"\n[backends.plain]\nservers = [\"{}\"]\n",
        plain.addr
    );
    let conf = Conf::http(&[upgraded.addr]).tables(&format!(
        "{third}[[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\nservers = [\"{}\"]",
        echoing.addr
    ));
    let mut proxy = conf.launch().workers(WORKERS).descriptors(DESCRIPTORS, DESCRIPTORS).start();
    // The first are protected, the last are not.
    let mut relays = Vec::new();
    let mut tunnels = Vec::new();
    let echo = |client: &mut Client| {
        client.send("there");
        client.wire.begin();
        assert_eq!(client.wire.take(5).unwrap(), b"there");
    };
    for _ in 0..60 {
        let mut relay = Client::connect(&proxy.addrs()[2]);
        echo(&mut relay);
        relays.push(relay);
        tunnels.push(tunnel(&proxy));
    }
    let mut clients = idle_at(&proxy, 10);
    let mut halves = idle_at(&proxy, 6);
    for client in &mut halves {
        client.send("GET /half HT");
    }
    let [now, ..] = unprotected(&proxy);
    assert!((20..120).contains(&now), "{now}");
    // Each worker in turn gives everything to the others.
    for _ in 0..WORKERS - 2 {
        let leaves = proxy.workers().last().copied().unwrap();
        proxy.signal(Signal::SIGTTOU);
        wait_until("a worker has left", || !alive(leaves));
    }
    for relay in &mut relays {
        echo(relay);
    }
    for stream in &mut tunnels {
        stream.write_all(b"through").unwrap();
        let mut back = [0; 7];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"through");
    }
    assert_eq!((echoing.connections(), upgraded.connections()), (60, 60), "connected again");
    for client in &mut halves {
        client.send("TP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(unprotected(&proxy)[2], 0);
    // What has a copy still goes on after a death.
    kill_all(&proxy);
    let lost = wait_for("it is known how many are lost", || {
        let [now, _, lost] = unprotected(&proxy);
        (now == 0 && lost > 0).then_some(lost)
    });
    proxy.wait_for_workers(2);
    let mut left = 0;
    for relay in &mut relays {
        relay.send("there");
        relay.wire.begin();
        left += usize::from(relay.wire.take(5).is_ok());
    }
    for stream in &mut tunnels {
        left += usize::from(stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok());
    }
    left += survivors(clients).len() + survivors(halves).len();
    assert!(left >= 20 && left <= 136 - lost, "{left} left, {lost} lost\n{}", proxy.text());
}

#[test]
fn an_answer_cut_with_its_worker_can_be_seen_to_be_cut() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart of it"),
        Act::Gate,
        Act::Hang,
    ]);
    let conf = Conf::http(&[backend.addr]);
    let proxy = conf.launch().workers(WORKERS).descriptors(DESCRIPTORS, DESCRIPTORS).start();
    let mut clients: Vec<Client> = (0..MANY).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients[MANY - 20..] {
        client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
        client.wire.begin();
        client.wire.response_head().unwrap();
        client.wire.take(10).unwrap();
    }
    assert!(unprotected(&proxy)[0] >= 50);
    kill_all(&proxy);
    for client in &mut clients[MANY - 20..] {
        let (rest, end) = client.read_to_end();
        assert_eq!((rest.len(), end), (0, End::Reset));
    }
    backend.gate().open();
}
