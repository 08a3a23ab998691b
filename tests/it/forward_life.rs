//! How long connections through a forward listener live: deaths, reloads, upgrades, time limits, and what is left open.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use crate::common::backend::{Backend, Refusing, Unanswering};
use crate::common::client::{Client, End};
use crate::common::processes::kill_all;
use crate::common::wait_until;
use crate::forward::{
    LOOPBACK, connect, echo, guarded, launch, log, open, read_exactly, read_line, socks5_request, stream,
};

/// Connections to `to` on this machine that have not been answered, as the kernel lists them.
fn syn_sent(to: SocketAddr) -> usize {
    let SocketAddr::V4(v4) = to else { panic!("{to}") };
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let waits = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&wanted) && words.next() == Some("02")
    };
    table.lines().filter(waits).count()
}

#[test]
fn tunnels_of_every_protocol_outlive_their_workers() {
    let backend = Backend::tcp_echo();
    let mut proxy = open().start();
    let mut tunnels = Vec::new();
    let mut http = Client::connect(proxy.addr());
    assert_eq!(connect(&mut http, backend.addr, "").status, 200);
    let mut socks = stream(&proxy);
    socks.write_all(&[&[5, 1, 0], &socks5_request(backend.addr)[..]].concat()).unwrap();
    assert_eq!(read_exactly(&mut socks, 12)[3], 0);
    let mut dynamic = stream(&proxy);
    dynamic.write_all(format!("{{\"target\":\"{}\"}}\n", backend.addr).as_bytes()).unwrap();
    read_line(&mut dynamic);
    tunnels.extend([http.wire.stream.try_clone().unwrap(), socks, dynamic]);
    for round in 0..3 {
        for tunnel in &mut tunnels {
            let text = format!("round {round}");
            tunnel.write_all(text.as_bytes()).unwrap();
            assert_eq!(read_exactly(tunnel, text.len()), text.as_bytes());
        }
        kill_all(&proxy);
        proxy.wait_for_workers(2);
    }
    assert_eq!(backend.connections(), 3);
    for mut tunnel in tunnels {
        tunnel.shutdown(Shutdown::Write).unwrap();
        assert_eq!(tunnel.read(&mut [0; 8]).unwrap(), 0);
    }
}

#[test]
fn whose_a_tunnel_is_stays_known_whoever_goes_on_with_it() {
    let backend = Backend::tcp_echo();
    let mut proxy = guarded("").start();
    let target = backend.addr;
    let mut http = Client::connect(proxy.addr());
    assert_eq!(connect(&mut http, target, "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n").status, 200);
    let mut socks = stream(&proxy);
    socks.write_all(&[&[5, 1, 2][..], b"\x01\x03ann\x06secret", &socks5_request(target)].concat()).unwrap();
    assert_eq!(read_exactly(&mut socks, 14)[5], 0);
    let mut dynamic = stream(&proxy);
    let line = format!("{{\"target\":\"{target}\",\"user\":\"ann\",\"password\":\"secret\"}}\n");
    dynamic.write_all(line.as_bytes()).unwrap();
    assert!(read_line(&mut dynamic).contains("\"ok\":true"));
    let mut tunnels = [http.wire.stream.try_clone().unwrap(), socks, dynamic];
    let mut echo_all = || {
        for tunnel in &mut tunnels {
            tunnel.write_all(b"hello").unwrap();
            assert_eq!(read_exactly(tunnel, 5), b"hello");
        }
    };
    // A death, a worker that gives back what it has, another master, and a death under that.
    kill_all(&proxy);
    proxy.wait_for_workers(2);
    echo_all();
    proxy.upgrade();
    echo_all();
    kill_all(&proxy);
    proxy.wait_for_workers(2);
    echo_all();
    drop((tunnels, http));
    let lines = log(&proxy, 3);
    let mut methods: Vec<_> = lines.iter().filter_map(|line| line["method"].as_str()).collect();
    methods.sort_unstable();
    assert_eq!(methods, ["CONNECT", "DYNAMIC", "SOCKS5"]);
    for line in &lines {
        assert_eq!((line["user"].as_str(), line["rule"].as_str()), (Some("ann"), Some("t:1")), "{line}");
        assert_eq!(line["target"], target.to_string());
        assert_eq!(line["backend"], target.to_string());
    }
}

#[test]
fn the_life_of_a_tunnel_does_not_begin_anew_with_each_worker() {
    let backend = Backend::tcp_echo();
    let mut proxy = launch(&format!("lifetime = \"2s\"\nlist = [{LOOPBACK}]"), "").workers(1).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    // No worker lives for so long.
    wait_until("the tunnel ends", || {
        kill_all(&proxy);
        proxy.wait_for_workers(1);
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            client.send("x");
            client.wire.begin();
            if client.wire.take(1).is_err() {
                return true;
            }
        }
        false
    });
    assert_eq!(log(&proxy, 1)[0]["reason"], "it has lasted as long as the rules let it");
}

#[test]
fn a_request_for_a_tunnel_that_is_under_way_is_run_again() {
    // The target answers only once it is let: until then its queue is full.
    let unanswering = Unanswering::new();
    let mut proxy = launch(&format!("list = [{LOOPBACK}]"), "timeouts.connect = \"20s\"").workers(1).start();
    let mut http = Client::connect(proxy.addr());
    http.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", unanswering.addr));
    let mut dynamic = stream(&proxy);
    dynamic.write_all(format!("{{\"target\":\"{}\"}}\n", unanswering.addr).as_bytes()).unwrap();
    let takes_reply = Backend::silent();
    let mut delivery = stream(&proxy);
    let line = format!("{{\"target\":\"{}\",\"reply_to\":\"{}\"}}\n", unanswering.addr, takes_reply.addr);
    delivery.write_all(line.as_bytes()).unwrap();
    wait_until("all are under way", || syn_sent(unanswering.addr) >= 3);
    kill_all(&proxy);
    proxy.wait_for_workers(1);
    wait_until("all are under way again", || syn_sent(unanswering.addr) >= 3);
    drop((http, dynamic, delivery));
}

#[test]
fn a_socks_negotiation_outlives_a_worker_after_each_of_its_steps() {
    let backend = Backend::tcp_echo();
    let mut proxy = guarded("").workers(1).start();
    let request = socks5_request(backend.addr);
    // What is sent, and what comes back; a worker dies behind one of them.
    let steps: [(&[u8], &[u8]); 6] = [
        (&[5, 2, 0], &[]),
        (&[2], &[5, 2]),
        (b"\x01\x03ann\x06sec", &[]),
        (b"ret", &[1, 0]),
        (&request[..4], &[]),
        (&request[4..], &[5, 0, 0, 1]),
    ];
    for deadly in 0..steps.len() {
        let mut client = stream(&proxy);
        for (step, (sent, answer)) in steps.iter().enumerate() {
            client.write_all(sent).unwrap();
            assert_eq!(&read_exactly(&mut client, answer.len()), answer, "step {step}, death in {deadly}");
            if step == deadly {
                kill_all(&proxy);
                proxy.wait_for_workers(1);
            }
        }
        read_exactly(&mut client, 6);
        client.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&mut client, 5), b"hello");
    }
    assert_eq!(backend.connections(), steps.len());
}

#[test]
fn nobody_gets_in_by_claiming_to_have_been_answered() {
    let backend = Backend::tcp_echo();
    let proxy = guarded("").start();
    for mark in [0x85, 0x86] {
        let mut client = stream(&proxy);
        let request = socks5_request(backend.addr);
        client.write_all(&[&[mark, 1, 2], &b"\x01\x03ann\x05wrong"[..], &request].concat()).unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert!(!answer.starts_with(&[5, 0]), "{answer:?}");
        let mut client = stream(&proxy);
        client.write_all(&[&[mark, 1, 0], &request[..]].concat()).unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert_eq!(answer, [5, 0xff]);
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn tunnels_outlive_reloads_and_upgrades() {
    let backend = Backend::tcp_echo();
    let mut proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    echo(&mut client, "before");
    proxy.upgrade();
    echo(&mut client, "after the upgrade");
    let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
    let text = text.split_once('\n').unwrap().1.replace("rules = \"t\"", "rules = \"t\"\nprotocols = [\"socks5\"]");
    proxy.reload(2, &text);
    echo(&mut client, "after the reload");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_tunnel_lasts_no_longer_than_the_rules_let_it() {
    let backend = Backend::tcp_echo();
    let proxy = launch(&format!("lifetime = \"400ms\"\nlist = [{LOOPBACK}]"), "").start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    // It is never idle, and ends all the same.
    wait_until("the tunnel ends", || {
        client.send("x");
        client.wire.begin();
        client.wire.take(1).is_err()
    });
    assert_eq!(log(&proxy, 1)[0]["reason"], "it has lasted as long as the rules let it");
    let idle = launch(&format!("list = [{LOOPBACK}]"), "timeouts.tunnel = \"200ms\"").start();
    let mut client = Client::connect(idle.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    assert_eq!(client.end(), End::Reset);
    assert_eq!(log(&idle, 1)[0]["reason"], "nothing moved for longer than the tunnel timeout");
}

#[test]
fn slow_and_silent_clients_are_let_go() {
    let proxy = launch(&format!("list = [{LOOPBACK}]"), "timeouts.header = \"300ms\"").start();
    for begin in [&b"\x05"[..], b"\x05\x01\x00", b"\x04\x01", b"{\"target\"", b"CONNECT a"] {
        let mut client = stream(&proxy);
        client.write_all(begin).unwrap();
        let mut rest = Vec::new();
        // Whether something is said before, the connection ends.
        let _ = client.read_to_end(&mut rest);
    }
}

#[test]
fn targets_with_many_dead_addresses_take_no_descriptors_from_others() {
    const CLIENTS: usize = 100;
    let (dead, backend) = (Unanswering::everywhere(), Backend::ok());
    let port = dead.addr.port();
    let hosts: String = (1..=16).map(|n| format!("127.0.1.{n} dead.test\n")).collect();
    // With all of its addresses at once each client would take 17 of them.
    let proxy = open().file("hosts", &hosts).workers(1).descriptors(600, 600).start();
    let request = format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n", backend.addr);
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut idle {
        assert_eq!(client.ask(&request).status, 200);
    }
    let mut flood = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(proxy.addr());
        client.send(format!("CONNECT dead.test:{port} HTTP/1.1\r\nHost: dead.test:{port}\r\n\r\n"));
        flood.push(client);
    }
    let last = SocketAddr::from(([127, 0, 1, 16], port));
    wait_until("the last address is tried for each", || syn_sent(last) == CLIENTS);
    for client in &mut idle {
        assert_eq!(client.ask(&request).status, 200, "those who were idle are still connected");
    }
    assert_eq!(Client::connect(proxy.addr()).ask(&request).status, 200);
    assert!(!proxy.text().contains("room is short"), "{}", proxy.text());
}

#[test]
fn nothing_is_left_open_by_what_fails() {
    let (refusing, backend) = (Refusing::new(), Backend::tcp_echo());
    let proxy = open().workers(1).start();
    let round = || {
        for target in [refusing.addr.to_string(), "10.0.0.1:443".to_owned(), backend.addr.to_string()] {
            let mut client = Client::connect(proxy.addr());
            client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
            client.wire.begin();
            client.wire.response_head().unwrap();
            let mut dynamic = stream(&proxy);
            dynamic.write_all(format!("{{\"target\":\"{target}\"}}\n").as_bytes()).unwrap();
            read_line(&mut dynamic);
            let mut socks = stream(&proxy);
            socks.write_all(&[5, 1, 0, 5, 1]).unwrap();
        }
        wait_until("every relay ends", || backend.open() == 0);
    };
    round();
    let before = proxy.descriptors();
    for _ in 0..5 {
        round();
    }
    proxy.assert_no_leaks(&before, 8);
}
