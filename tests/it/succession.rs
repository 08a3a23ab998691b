//! The master is killed: what its clients keep while its workers serve on, and when the next master takes over everything
//! they have.

use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::{Act, Backend, response};
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::load::Load;
use crate::common::processes::{children, wait_gone};
use crate::common::proxy::{Addr, Launch};
use crate::common::succession::{replace, wait_passed, wait_taken_over};
use crate::common::{check_pattern, dawdle, pattern_bytes, wait_until};

#[test]
fn connections_between_requests_and_within_a_head_survive() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut idle: Vec<Client> = (0..30).map(|_| Client::connect(proxy.addr())).collect();
    let mut halves: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    let mut fresh: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut idle {
        assert_eq!(client.get("/first").status, 200);
    }
    for client in &mut halves {
        client.send("GET /half HT");
    }
    wait_passed(&proxy, 50);
    // Twice: the second time those that were handed over are handed over again.
    for round in 0..2 {
        let orphans = proxy.kill_master();
        for client in &mut idle[..15] {
            assert_eq!(client.get("/alone").fields.get("x-target"), Some("/alone"), "without a master");
        }
        for client in &mut halves[round * 2..round * 2 + 2] {
            client.send("TP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().fields.get("x-target"), Some("/half"));
        }
        proxy = proxy.again();
        wait_taken_over(&proxy, &orphans);
    }
    for client in idle.iter_mut().chain(&mut fresh) {
        assert_eq!(client.get("/last").fields.get("x-target"), Some("/last"));
    }
    for client in &mut halves[4..] {
        client.send("TP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().fields.get("x-target"), Some("/half"));
    }
}

#[test]
fn requests_in_progress_are_answered_and_run_once() {
    let backend = Backend::gated();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let addr = proxy.addr().clone();
    let mut clients: Vec<Client> = (0..12).map(|_| Client::connect(&addr)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        match number % 3 {
            0 => client.send("GET /get HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => client.send("POST /post HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo"),
            _ => {
                client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            }
        }
    }
    wait_until("the requests are at the backend", || backend.heads() == 12);
    let orphans = proxy.kill_master();
    let proxy = proxy.again();
    for client in clients.iter_mut().skip(1).step_by(3) {
        client.send("dy");
    }
    wait_until("their bodies are, too", || backend.requests().len() == 12);
    backend.gate().open();
    for (number, client) in clients.iter_mut().enumerate() {
        match number % 3 {
            0 => assert_eq!(client.response().text(), "/get 0"),
            1 => assert_eq!(client.response().text(), "/post 4"),
            _ => {
                assert_eq!(client.response().text(), "/1 0");
                assert_eq!(client.response().text(), "/2 0");
            }
        }
        // Afterwards by the new workers, on the same connection.
        assert_eq!(client.get("/after").text(), "/after 0");
    }
    wait_gone(&orphans);
    assert_eq!(backend.requests().len(), 12 + 4 + 12, "every request was run once");
    proxy.wait_for_log(&["has given everything"]);
}

#[test]
fn a_response_in_progress_comes_whole() {
    const LENGTH: usize = 3 << 20;
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n")),
        Act::send(pattern_bytes(LENGTH / 2)),
        Act::Gate,
        Act::send(pattern_bytes(LENGTH)[LENGTH / 2..].to_vec()),
        Act::Hang,
    ]);
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.wire.begin();
    client.wire.response_head().unwrap();
    let mut body = client.wire.take(1000).unwrap();
    let orphans = proxy.kill_master();
    let _next = proxy.again();
    backend.gate().open();
    client.wire.begin();
    body.extend(client.wire.take(LENGTH - 1000).unwrap());
    check_pattern(0, &body);
    wait_gone(&orphans);
}

#[test]
fn nobody_is_refused_while_there_is_no_master() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let orphans = proxy.kill_master();
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients[..50] {
        client.send("GET /waiting HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let _next = proxy.again();
    for client in &mut clients[..50] {
        assert_eq!(client.response().fields.get("x-target"), Some("/waiting"));
    }
    for client in &mut clients {
        assert_eq!(client.get("/now").status, 200);
    }
    wait_gone(&orphans);
}

#[test]
fn kills_of_the_master_under_load_cost_nothing() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(3).start();
    let load = Load::start(proxy.addr(), 8, false);
    for _ in 0..6 {
        load.flow();
        proxy = replace(proxy);
    }
    load.flow();
    assert!(load.finish() > 100);
}

#[test]
fn what_a_proxy_header_said_is_handed_over() {
    let backend = Backend::answering(|request| response(request.fields.get("x-forwarded-for").unwrap_or("nothing")));
    let conf = Conf::http(&[backend.addr]).listen("proxy_protocol = { from = [\"127.0.0.1\"] }");
    let mut proxy = conf.start();
    let header = "PROXY TCP4 192.0.2.7 192.0.2.8 7 8\r\n";
    let mut told = Client::connect(proxy.addr());
    assert_eq!(told.ask(format!("{header}GET / HTTP/1.1\r\nHost: a\r\n\r\n")).text(), "192.0.2.7");
    let mut awaited = Client::connect(proxy.addr());
    awaited.send(&header[..20]);
    let mut head = Client::connect(proxy.addr());
    head.send(format!("{header}GET / HT"));
    wait_passed(&proxy, 3);
    let orphans = proxy.kill_master();
    let _next = proxy.again();
    wait_gone(&orphans);
    awaited.send(&header[20..]);
    head.send("TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(head.response().text(), "192.0.2.7");
    for client in [&mut told, &mut awaited] {
        assert_eq!(client.get("/").text(), "192.0.2.7");
    }
}

#[test]
fn unix_listeners_and_their_connections_are_taken_over() {
    let backend = Backend::echo();
    let conf = Conf::http(&[backend.addr]).listen("bind = \"unix:{dir}/web.sock\"");
    let mut proxy = conf.start();
    let mut idle = Client::connect(proxy.addr());
    assert_eq!(idle.get("/").status, 200);
    let mut half = Client::connect(proxy.addr());
    half.send("GET /half HT");
    wait_passed(&proxy, 2);
    let orphans = proxy.kill_master();
    let mut waiting = Client::connect(proxy.addr());
    let next = proxy.again();
    wait_gone(&orphans);
    half.send("TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(half.response().fields.get("x-target"), Some("/half"));
    for client in [&mut idle, &mut half, &mut waiting] {
        assert_eq!(client.get("/").status, 200);
    }
    let socket = next.dir.join("web.sock");
    next.stop();
    assert!(!socket.exists(), "its file is removed at the end, as if it had always been this master's");
}

#[test]
fn many_workers_are_taken_over_from() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(24).start();
    let mut clients = Client::served(proxy.addr(), 96);
    let orphans = proxy.kill_master();
    // With fewer workers of its own.
    let text = Conf::http(&[backend.addr]).text();
    let _next = proxy.launch_with(&text).workers(2).start();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    wait_gone(&orphans);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn few_descriptors_are_enough() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().descriptors(200, 200).start();
    // Nearly as many as there are places for.
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(proxy.addr())).collect();
    for _ in 0..2 {
        for client in &mut clients {
            assert_eq!(client.get("/").status, 200);
        }
        proxy = replace(proxy);
    }
    let mut served = 0;
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        served += usize::from(client.try_response().is_ok_and(|response| response.status == 200));
    }
    assert_eq!(served, 100, "{}", proxy.text());
}

#[test]
fn workers_of_a_master_killed_while_it_stops_finish_what_they_have() {
    let backend = Backend::gated();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("POST /last HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    wait_until("the request is at the backend", || backend.requests().len() == 1);
    proxy.signal(Signal::SIGQUIT);
    let port = proxy.addr().inet();
    wait_until("nobody listens any more", || TcpStream::connect(port).is_err());
    proxy.wait_for_log(&["finishing 1 connections"]);
    proxy.wait_for_log(&["finishing 0 connections"]);
    let orphans = proxy.kill_master();
    backend.gate().open();
    assert_eq!(client.response().text(), "/last 2");
    client.end();
    wait_gone(&orphans);
}

#[test]
fn stopping_ends_listening_at_once_although_workers_have_copies() {
    let backend = Backend::gated();
    for signal in [Signal::SIGQUIT, Signal::SIGTERM] {
        let mut proxy = Conf::http(&[backend.addr]).listen("bind = \"unix:{dir}/web.sock\"").start();
        let mut client = Client::connect(proxy.addr());
        let before = backend.heads();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("the request is at the backend", || backend.heads() > before);
        let Addr::Unix(path) = proxy.addr().clone() else { unreachable!() };
        // Reached by another name, which the end of the master does not remove.
        let other = proxy.dir.join("other.sock");
        std::fs::hard_link(&path, &other).unwrap();
        proxy.signal(signal);
        wait_until("nobody listens any more", || std::os::unix::net::UnixStream::connect(&other).is_err());
        backend.gate().open();
        proxy.check_end(None);
    }
}

#[test]
fn requests_outlive_a_successor_that_is_killed_before_it_has_everything() {
    let backend = Backend::gated();
    // With one worker each the second master has met all when it is killed.
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send("POST /kept HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    wait_until("the request is at the backend", || backend.requests().len() == 1);
    let orphans = proxy.kill_master();
    let mut second = proxy.again();
    proxy.wait_for_log(&["another master takes over 1 connections"]);
    let more = second.kill_master();
    proxy.wait_for_log(&["the other master takes no connections any more", "serving 1 on, and 0 wait"]);
    let third = second.again();
    backend.gate().open();
    let response = client.response();
    assert_eq!(response.fields.get("connection"), None);
    assert_eq!(response.text(), "/kept 2");
    wait_gone(&orphans);
    wait_gone(&more);
    assert_eq!(client.get("/again").text(), "/again 0");
    third.check_log();
}

#[test]
fn the_access_log_is_whole() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).tables("[access_log]\nto = \"{dir}/access.log\"");
    let mut proxy = conf.start();
    let mut clients: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.get("/before");
    }
    let orphans = proxy.kill_master();
    for client in &mut clients {
        client.get("/between");
    }
    let next = proxy.again();
    wait_gone(&orphans);
    for client in &mut clients {
        client.get("/after");
    }
    let file = next.dir.join("access.log");
    next.stop();
    let text = std::fs::read_to_string(file).unwrap();
    for what in ["/before", "/between", "/after"] {
        assert_eq!(text.matches(what).count(), 10, "{text}");
    }
}

#[test]
fn a_backend_that_fails_meanwhile_is_answered_for() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let orphans = proxy.kill_master();
    let refusing = backend.refuse();
    assert_eq!(client.get("/").status, 502);
    let backend = refusing.serve_named("again");
    let next = proxy.again();
    wait_gone(&orphans);
    wait_until("it is served again", || get(next.addr(), "/").status == 200);
    client.assert_usable();
    drop(backend);
}

#[test]
fn workers_killed_after_their_master_cost_only_what_they_had() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(3).start();
    let mut clients = Client::served(proxy.addr(), 12);
    let orphans = proxy.kill_master();
    kill(orphans[0], Signal::SIGKILL).unwrap();
    let _next = proxy.again();
    wait_gone(&orphans);
    let served = clients.iter_mut().filter_map(|client| {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_response().ok()
    });
    assert_eq!(served.count(), 8);
}

#[test]
fn the_demo_lives_as_long_as_its_workers() {
    let mut proxy = Launch::new(&["--listen", "127.0.0.1:0"]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let demo: Vec<Pid> = children(proxy.pid).into_iter().filter(|pid| !proxy.workers().contains(pid)).collect();
    assert_eq!(demo.len(), 1);
    let orphans = proxy.kill_master();
    for _ in 0..4 {
        assert_eq!(client.get("/").status, 200);
    }
    for &pid in &orphans {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    wait_gone(&demo);
}

#[test]
fn orphans_that_wait_use_no_processor_time() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let _clients = Client::served(proxy.addr(), 20);
    let orphans = proxy.kill_master();
    let ticks = || -> u64 {
        let of = |pid: &Pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            // utime and stime, by proc_pid_stat(5).
            let behind = stat.rsplit(')').next().unwrap().split_whitespace();
            behind.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>()
        };
        orphans.iter().map(of).sum()
    };
    // Connections that wait in the queue must not wake them for ever.
    let _waiting: Vec<Client> = (0..5).map(|_| Client::connect(proxy.addr())).collect();
    let before = ticks();
    dawdle(Duration::from_secs(2));
    assert!(ticks() - before < 20, "{} ticks of 10 ms in two seconds", ticks() - before);
    let _next = proxy.again();
    wait_gone(&orphans);
}
