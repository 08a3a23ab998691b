//! Who gets where through a forward listener: special addresses, names that lie, bounds, reloads.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, End};
use crate::common::dns::{Manner, NameServer};
use crate::common::processes::kill_all;
use crate::common::proxy::{Launch, Proxy};
use crate::common::{pattern_bytes, wait_until};
use crate::forward::{LOOPBACK, connect, echo, guarded, hash, launch, log, open, try_connect};

/// A forward proxy that asks this name server, and allows 127.0.0.1 alone.
fn asking(dns: &NameServer) -> Proxy {
    let rules = "list = [{ action = \"allow\", networks = [\"127.0.0.1/32\"], ports = [\"1-65535\"] }]";
    let listen = "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nrules = \"t\"";
    Launch::config(&format!("{listen}\n{}[rules.t]\n{rules}", NameServer::table(&[dns.addr]))).start()
}

#[test]
fn what_the_rules_do_not_open_stays_closed_whatever_it_is_called() {
    let backend = Backend::ok();
    let port = backend.addr.port();
    // Everything is allowed, which opens nothing special.
    let rules = "list = [{ action = \"allow\", networks = [\"0.0.0.0/0\", \"::/0\"], ports = [\"1-65535\"] }, \
                 { action = \"allow\", ports = [\"1-65535\"] }]";
    let proxy = launch(rules, "").workers(1).start();
    let mut client = Client::connect(proxy.addr());
    for host in [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "0.0.0.0",
        "[::]",
        "localhost",
        "rebind.test",
        "REBIND.test.",
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "[fe80::1]",
        "[fd00::1]",
        "224.0.0.1",
        "255.255.255.255",
        "100.64.0.1",
    ] {
        let response = try_connect(&proxy, format!("{host}:{port}"), "");
        assert_eq!(response.status, 403, "CONNECT {host}");
        let response = client.ask(format!("GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
        assert_eq!(response.status, 403, "GET {host}");
    }
    for host in ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1"] {
        let response = client.ask(format!("GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
        assert_eq!(response.status, 400, "{host}");
    }
    let lines = log(&proxy, 43);
    assert_eq!(
        (lines[0]["rule"].as_str(), lines[0]["backend"].as_str()),
        (Some("t:loopback"), Some(format!("127.0.0.1:{port}").as_str()))
    );
    assert_eq!(backend.connections(), 0);
}

#[test]
fn without_rules_everything_is_refused() {
    let backend = Backend::ok();
    let proxy = Launch::config("[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"").start();
    proxy.wait_for_log(&["this listener has no rules: everything will be refused"]);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask(format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n", backend.addr)).status, 403);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn the_proxy_does_not_connect_to_itself() {
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    let own = proxy.addr().inet();
    assert_eq!(client.ask(format!("CONNECT {own} HTTP/1.1\r\nHost: {own}\r\n\r\n")).status, 403);
    assert_eq!(log(&proxy, 1)[0]["rule"], "t:own listener");
}

#[test]
fn connect_without_ports_in_the_rule_reaches_443_only() {
    let backend = Backend::tcp_echo();
    let proxy = launch("list = [{ action = \"allow\", networks = [\"127.0.0.0/8\"] }]", "").start();
    for port in [80, 22, backend.addr.port()] {
        assert_eq!(try_connect(&proxy, format!("127.0.0.1:{port}"), "").status, 403);
    }
    // Nobody listens there, but it was tried.
    assert_eq!(try_connect(&proxy, "127.0.0.9:443", "").status, 502);
}

#[test]
fn names_are_resolved_and_their_addresses_judged() {
    let backend = Backend::tcp_echo();
    let port = backend.addr.port();
    let rules = "list = [{ action = \"allow\", names = [\"origin.test\", \"second.test\"], networks = [\"127.0.0.1/32\"], ports = [\"1-65535\"] }]";
    let proxy = launch(rules, "").start();
    let status = |host: &str| try_connect(&proxy, format!("{host}:{port}"), "").status;
    assert_eq!(status("second.test"), 403, "another address");
    assert_eq!(status("rebind.test"), 403, "another name");
    assert_eq!(status("127.0.0.1"), 403, "no name");
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, format!("origin.test:{port}"), "").status, 200);
    echo(&mut client, "found");
}

#[test]
fn of_what_a_name_server_says_only_what_is_allowed_is_tried() {
    let (good, bad) = (Backend::tcp_echo(), TcpListener::bind("127.0.0.2:0").unwrap());
    let dns = NameServer::start();
    // A private address, the proxy's own machine by another name, a mapped one, and the right one in between.
    let port = good.addr.port();
    dns.set(
        "mixed.test",
        &["A 60 127.0.0.2", "A 60 10.0.0.1", "A 60 127.0.0.1", "AAAA 60 ::1", "AAAA 60 ::ffff:127.0.0.2"],
    );
    dns.set("inside.test", &["A 60 127.0.0.2", "AAAA 60 ::1"]);
    let proxy = asking(&dns);
    for _ in 0..5 {
        let mut client = Client::connect(proxy.addr());
        assert_eq!(connect(&mut client, format!("mixed.test:{port}"), "").status, 200);
        echo(&mut client, "the right one");
    }
    let mut client = Client::connect(proxy.addr());
    let inside = format!("inside.test:{}", bad.local_addr().unwrap().port());
    assert_eq!(client.ask(format!("CONNECT {inside} HTTP/1.1\r\nHost: {inside}\r\n\r\n")).status, 403);
    bad.set_nonblocking(true).unwrap();
    assert_eq!(bad.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
}

#[test]
fn a_name_that_points_elsewhere_with_each_answer_gains_nothing() {
    let good = Backend::answering(|_| response("good"));
    let port = good.addr.port();
    let bad = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let dns = NameServer::start();
    let proxy = asking(&dns);
    let mut client = Client::connect(proxy.addr());
    for round in 0..20 {
        let (address, status) = if round % 2 == 0 { ("A 0 127.0.0.1", 200) } else { ("A 0 127.0.0.2", 403) };
        // Another name each time: nothing is remembered, and no connection is kept.
        dns.set(&format!("n{round}.test"), &[address]);
        let host = format!("n{round}.test:{port}");
        assert_eq!(client.ask(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")).status, status, "{host}");
    }
    dns.set("flips.test", &["A 0 127.0.0.1"]);
    let host = format!("flips.test:{port}");
    let ask = |client: &mut Client| {
        client.ask(format!("POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"))
    };
    assert_eq!(ask(&mut client).status, 200);
    dns.set("flips.test", &["A 0 127.0.0.2"]);
    wait_until("the new address is seen, and refused", || ask(&mut client).status == 403);
    bad.set_nonblocking(true).unwrap();
    assert_eq!(bad.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
}

#[test]
fn name_servers_that_fail_are_told_as_such() {
    let dns = NameServer::start();
    dns.set("empty.test", &[]);
    let proxy = asking(&dns);
    let status = |host: &str| try_connect(&proxy, format!("{host}:443"), "").status;

    assert_eq!((status("missing.test"), status("empty.test")), (502, 502));
    dns.behave(Manner::Silent);
    assert_eq!(status("other.test"), 504);
    assert_eq!(try_connect(&proxy, "[::1]:443", "").status, 403);
}

#[test]
fn names_that_nobody_answers_for_keep_no_other_client_waiting() {
    let dns = NameServer::start();
    dns.set("good.test", &["A 60 127.0.0.1"]);
    dns.behave(Manner::Silent);
    let backend = Backend::ok();
    let port = backend.addr.port();
    // None of the lookups ends before this test does.
    let table = NameServer::table(&[dns.addr]).replace("300ms", "30s");
    let text = format!("[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nrules = \"t\"\n{table}");
    let proxy = Launch::config(&format!("{text}[rules.t]\nlist = [{LOOPBACK}]")).workers(1).start();
    let connect = |client: &mut Client, target: String| {
        client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
    };
    // More than all lookups there may be; the room for one client ends before.
    let mut flood = Vec::new();
    for n in 0..300 {
        let mut client = Client::connect(proxy.addr());
        connect(&mut client, format!("n{n}.test:443"));
        flood.push(client);
    }
    assert_eq!(flood.last_mut().unwrap().response().status, 503);
    dns.behave(Manner::Honest);
    let mut other = Client::connect_from("127.0.0.2", proxy.addr());
    assert_eq!(
        other.ask(format!("GET http://good.test:{port}/ HTTP/1.1\r\nHost: good.test:{port}\r\n\r\n")).status,
        200
    );
}

#[test]
fn connections_of_a_user_are_bounded() {
    let backend = Backend::tcp_echo();
    let proxy = guarded("limits = { user = { connections = 2 } }").workers(1).start();
    let right = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(proxy.addr())).collect();
    assert_eq!(connect(&mut clients[0], backend.addr, right).status, 200);
    assert_eq!(connect(&mut clients[1], backend.addr, right).status, 200);
    let target = backend.addr;
    let mut third = || clients[2].ask(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{right}\r\n")).status;
    assert_eq!(third(), 429);
    clients.remove(0);
    wait_until("the first relay is over", || backend.open() == 1);
    wait_until("there is room again", || {
        let mut next = Client::connect(proxy.addr());
        connect(&mut next, backend.addr, right).status == 200
    });
}

#[test]
fn connections_of_a_user_are_bounded_over_all_workers_and_forgotten_with_a_dead_one() {
    let backend = Backend::tcp_echo();
    let mut proxy =
        guarded("limits = { user = { connections = 3 }, address = { connections = 9 } }").workers(4).start();
    let right = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";
    let mut clients: Vec<Client> = (0..12).map(|_| Client::connect(proxy.addr())).collect();
    let target = backend.addr;
    let statuses: Vec<u16> = clients.iter_mut().map(|client| connect(client, target, right).status).collect();
    // The connections go to all four workers, three to each.
    let workers: std::collections::HashSet<_> = log(&proxy, 9).iter().map(|line| line["worker"].as_u64()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");
    assert!(workers.len() >= 3, "{workers:?}");
    // Whatever a worker counted goes with it, and its tunnels are counted where they go on.
    kill_all(&proxy);
    proxy.wait_for_workers(4);
    let mut open: Vec<Client> =
        clients.into_iter().zip(statuses).filter(|(_, status)| *status == 200).map(|(client, _)| client).collect();
    for client in &mut open {
        echo(client, "still there");
    }
    assert_eq!(try_connect(&proxy, target, right).status, 429);
    open.pop();
    wait_until("a place is free", || {
        let mut next = Client::connect(proxy.addr());
        connect(&mut next, target, right).status == 200
    });
}

#[test]
fn connections_in_a_second_are_bounded_over_all_workers() {
    let backend = Backend::tcp_echo();
    let limits = "limits = { address = { connections_per_second = 1 } }";
    let proxy = launch(&format!("{limits}\nlist = [{LOOPBACK}]"), "").workers(4).start();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
    let target = backend.addr;
    let start = Instant::now();
    let statuses: Vec<u16> = clients.iter_mut().map(|client| connect(client, target, "").status).collect();
    let most = 1 + usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
    let begun = statuses.iter().filter(|status| **status == 200).count();
    assert!((1..=most).contains(&begun) && statuses.contains(&429), "{statuses:?}");
    let workers: std::collections::HashSet<_> =
        log(&proxy, 8 - begun).iter().map(|line| line["worker"].as_u64()).collect();
    assert!(workers.len() >= 3, "{workers:?}");
}

#[test]
fn bytes_in_a_second_are_bounded_over_all_workers_without_losing_any() {
    let data = pattern_bytes(400_000);
    let body = data.clone();
    let backend = Backend::serve(move |conn| {
        let _ = conn.wire.stream.write_all(&body);
    });
    let limits = "limits = { address = { rate = \"400KB\" } }";
    let proxy = launch(&format!("{limits}\nlist = [{LOOPBACK}]"), "").workers(4).start();
    // All are there before the first is served, so that they are spread over the workers.
    let clients: Vec<Client> = (0..3).map(|_| Client::connect(proxy.addr())).collect();
    let start = Instant::now();
    for mut client in clients {
        assert_eq!(connect(&mut client, backend.addr, "").status, 200);
        let (received, end) = client.read_to_end();
        assert_eq!((received == data, end), (true, End::Clean));
    }
    // A second's worth at once, the rest as time goes: this is a lower bound that no slow machine breaks.
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    let workers: std::collections::HashSet<_> = log(&proxy, 3).iter().map(|line| line["worker"].as_u64()).collect();
    assert!(workers.len() >= 2, "{workers:?}");
}

#[test]
fn rules_and_users_change_with_a_reload() {
    let backend = Backend::tcp_echo();
    let mut proxy = guarded("").start();
    let right = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";
    let mut kept = Client::connect(proxy.addr());
    assert_eq!(connect(&mut kept, backend.addr, right).status, 200);
    proxy.dir.write("users", &format!("ann:{}\nbob:{}\n", hash("other"), hash("pw")));
    let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
    let text = text.split_once('\n').unwrap().1.to_owned();
    proxy.reload(2, &text);
    let target = backend.addr;
    assert_eq!(try_connect(&proxy, target, right).status, 407);
    let mut client = Client::connect(proxy.addr());
    // ann:other
    assert_eq!(connect(&mut client, target, "Proxy-Authorization: Basic YW5uOm90aGVy\r\n").status, 200);
    echo(&mut kept, "what is connected stays so");
    proxy.forgive("configuration not reloaded");
    proxy.dir.write("users", "ann:nothing\n");
    proxy.write_config(2, &text);
    let output = proxy.question("reload");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("line 1: the hash of `ann`"), "{said}");
    echo(&mut kept, "x");
}
