//! The master is killed: its workers serve on, and the next master started takes over everything they have.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError};
use ipc::control::{Greeting, Request, Role};
use ipc::handover::{ToFormer, ToSuccessor};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::{Act, Backend, response};
use crate::common::client::{Client, End, get};
use crate::common::load::Load;
use crate::common::proxy::{Addr, Conf, Launch, Proxy, alive, children, wait_gone};
use crate::common::{check_pattern, dawdle, pattern_bytes, wait_for, wait_until};
use crate::continuity::{receive, send, tunnel, upgrading};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Kills the master, starts another, and waits until that has passed on everything.
fn replace(mut proxy: Proxy) -> Proxy {
    let addrs = proxy.addrs().to_vec();
    let orphans = proxy.kill_master();
    let next = proxy.again();
    assert_eq!(next.addrs(), addrs);
    wait_taken_over(&next, &orphans);
    proxy.check_log();
    next
}

/// Waits until `next` has passed on everything that the `orphans` had. What a master has in its hands at the moment
/// it is killed is lost.
#[track_caller]
fn wait_taken_over(next: &Proxy, orphans: &[Pid]) {
    for pid in orphans {
        next.wait_for_log(&[&format!("(pid {pid}) has given everything")]);
    }
    wait_gone(orphans);
    // Whoever answers a question has finished the turn in which the last of them came.
    assert!(next.question("status").status.success());
}

/// Waits until workers have so many connections. What a master has accepted and not yet passed on is lost with it.
#[track_caller]
pub(crate) fn wait_passed(proxy: &Proxy, count: u32) {
    wait_until("the connections are with the workers", || {
        let output = proxy.question("status");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let workers = text.lines().skip_while(|line| !line.starts_with("worker ")).skip(1);
        let column = |line: &str| line.split_whitespace().nth(4).unwrap().parse::<u32>().unwrap();
        workers.map(column).sum::<u32>() == count
    });
}

/// Answers each request with its target, once the test opens the gate.
fn gated() -> Backend {
    Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            conn.gate().pass();
            conn.send(&response(&format!("{} {}", request.target, request.body.len())));
        }
    })
}

/// A byte goes there and back.
#[track_caller]
pub(crate) fn echo(client: &mut Client, byte: u8) {
    client.wire.stream.write_all(&[byte]).unwrap();
    let mut back = [0];
    client.wire.stream.read_exact(&mut back).unwrap();
    assert_eq!(back, [byte]);
}

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
    let backend = gated();
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
    assert!(proxy.text().contains("has given everything"), "{}", proxy.text());
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
fn busy_relays_lose_no_byte() {
    const LENGTH: u64 = 24 << 20;
    let backend = Backend::tcp_echo();
    let mut proxy = Conf::tcp(&[backend.addr]).start();
    let counts: Vec<Arc<AtomicU64>> = (0..6).map(|_| Arc::default()).collect();
    let threads: Vec<_> = counts
        .iter()
        .map(|count| {
            let (stream, count) = (TcpStream::connect(proxy.addr().inet()).unwrap(), Arc::clone(count));
            thread::spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| send(&stream, LENGTH, &AtomicU64::new(0)));
                    receive(&stream, &count);
                });
            })
        })
        .collect();
    for round in 1..=3 {
        wait_until("bytes flow", || counts.iter().all(|count| count.load(Ordering::SeqCst) >= LENGTH * round / 4));
        proxy = replace(proxy);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(counts.iter().all(|count| count.load(Ordering::SeqCst) == LENGTH));
    assert_eq!(backend.connections(), 6, "a relay was connected again");
}

/// Says its name, then echoes.
fn named_echo(name: &'static [u8; 1]) -> Backend {
    Backend::serve(move |conn| {
        conn.send(name);
        let mut output = conn.wire.stream.try_clone().unwrap();
        let _ = std::io::copy(&mut conn.wire.stream, &mut output);
        let _ = output.shutdown(Shutdown::Write);
    })
}

/// Begins a relay, and gives the name of its server.
#[track_caller]
fn named_relay(addr: &Addr) -> (u8, Client) {
    let mut client = Client::connect(addr);
    let mut name = [0];
    client.wire.stream.read_exact(&mut name).unwrap();
    (name[0], client)
}

/// After `replace` has brought another master, relays still belong to the servers that they go to.
fn relays_belong_to_their_servers_after(replace: impl FnOnce(Proxy) -> Proxy) {
    let (a, b) = (named_echo(b"a"), named_echo(b"b"));
    let conf = Conf::tcp(&[a.addr, b.addr]).group("balance = \"least-connections\"").tables(&format!(
        "[[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"short\"\n\
         [backends.short]\nservers = [\"{}\"]\n[backends.short.timeouts]\ntunnel = \"1s\"",
        a.addr
    ));
    let proxy = conf.launch().workers(1).start();
    let (to_a, mut to_b): (Vec<_>, Vec<_>) =
        (0..8).map(|_| named_relay(proxy.addr())).partition(|&(name, _)| name == b'a');
    assert_eq!((to_a.len(), to_b.len()), (4, 4));
    let (_, mut short) = named_relay(&proxy.addrs()[1]);
    let proxy = replace(proxy);
    // The time limit is the group's; the listener's is an hour.
    short.end();
    drop(to_a);
    wait_until("the relays to one server have ended", || a.open() == 0);
    let more: Vec<_> = (0..4).map(|_| named_relay(proxy.addr())).collect();
    assert!(more.iter().all(|&(name, _)| name == b'a'), "{more:?}");
    for (_, client) in &mut to_b {
        echo(client, 7);
    }
}

#[test]
fn relays_belong_to_their_servers_after_a_masters_death() {
    relays_belong_to_their_servers_after(replace);
}

#[test]
fn relays_belong_to_their_servers_after_an_upgrade() {
    relays_belong_to_their_servers_after(|mut proxy| {
        proxy.upgrade();
        proxy
    });
}

#[test]
fn a_relay_whose_pipe_is_full_goes_on() {
    const LENGTH: usize = 40 << 20;
    let backend = Backend::serve(|conn| {
        conn.gate().pass();
        let mut all = Vec::new();
        conn.wire.stream.read_to_end(&mut all).unwrap();
        check_pattern(0, &all);
        conn.send(format!("{}", all.len()).as_bytes());
    });
    let proxy = Conf::tcp(&[backend.addr]).start();
    let stream = TcpStream::connect(proxy.addr().inet()).unwrap();
    // Until nobody takes anything any more: then every buffer on the way is full.
    stream.set_nonblocking(true).unwrap();
    let all = pattern_bytes(LENGTH);
    let (mut at, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
        match (&stream).write(&all[at..]) {
            Ok(count) => (at, since) = (at + count, Instant::now()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert!(at < LENGTH, "the backend takes nothing");
        thread::park_timeout(Duration::from_millis(2));
    }
    stream.set_nonblocking(false).unwrap();
    // Twice: the second time the pipe itself was taken over.
    let proxy = replace(replace(proxy));
    backend.gate().open();
    (&stream).write_all(&all[at..]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    (&stream).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, LENGTH.to_string());
    drop(proxy);
}

#[test]
fn half_closed_relays_and_tunnels_survive() {
    let backend = Backend::serve(|conn| {
        let mut all = Vec::new();
        conn.wire.stream.read_to_end(&mut all).unwrap();
        conn.gate().pass();
        all.reverse();
        conn.send(&all);
    });
    let echoing = upgrading();
    let conf = Conf::http(&[echoing.addr]).tables(&format!(
        "[[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"other\"\n[backends.other]\nservers = [\"{}\"]",
        backend.addr
    ));
    let proxy = conf.start();
    let mut halves: Vec<Client> = (0..6).map(|_| Client::connect(&proxy.addrs()[1])).collect();
    for client in &mut halves {
        client.send("abc");
        client.shutdown_write();
    }
    wait_until("every relay stands", || backend.open() == 6);
    let mut tunnels: Vec<TcpStream> = (0..6).map(|_| tunnel(&proxy)).collect();
    let proxy = replace(replace(proxy));
    for stream in &mut tunnels {
        stream.write_all(b"through").unwrap();
        let mut back = [0; 7];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"through");
    }
    backend.gate().open();
    for client in &mut halves {
        assert_eq!(client.read_to_end(), (b"cba".to_vec(), End::Clean));
    }
    assert_eq!((backend.connections(), echoing.connections()), (6, 6));
    drop(proxy);
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
fn a_second_master_is_refused_while_one_lives() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let output = proxy.launch().run();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let expected = format!("another master (pid {}) runs with this configuration", proxy.pid);
    assert!(stderr(&output).contains(&expected), "{output:?}");
    assert_eq!(client.get("/").status, 200);
    assert_eq!(get(proxy.addr(), "/").status, 200);
}

#[test]
fn a_master_that_is_stopped_is_no_dead_one() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    proxy.signal(Signal::SIGSTOP);
    let output = proxy.launch().run();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("does not answer: a master or its workers, stopped or stuck"), "{output:?}");
    proxy.signal(Signal::SIGCONT);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(get(proxy.addr(), "/").status, 200);
}

#[test]
fn whoever_asks_for_the_master_hears_that_it_has_died() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let orphans = proxy.kill_master();
    for _ in 0..3 {
        for what in ["status", "reload", "upgrade"] {
            let output = proxy.question(what);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(stderr(&output).contains("the master has died, and its workers serve on"), "{output:?}");
        }
    }
    let next = proxy.again();
    wait_gone(&orphans);
    assert_eq!(client.get("/").status, 200);
    assert!(next.question("status").status.success());
}

#[test]
fn a_configuration_without_a_listener_leaves_its_port() {
    let (web, echoing) = (gated(), Backend::tcp_echo());
    let relay = format!(
        "[[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\nservers = [\"{}\"]",
        echoing.addr
    );
    let conf = Conf::http(&[web.addr]);
    let mut proxy = conf.tables(&relay).start();
    let removed = proxy.addrs()[1].inet();
    let mut stays = Client::connect(proxy.addr());
    stays.send("GET /stays HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the request is at the backend", || web.requests().len() == 1);
    let mut goes = Client::connect(&proxy.addrs()[1]);
    echo(&mut goes, 1);
    let orphans = proxy.kill_master();
    let next = proxy.launch_with(&Conf::http(&[web.addr]).text()).start();
    goes.read_to_end();
    // Although a worker of the dead master is still there, with its request.
    wait_until("the port is free", || TcpListener::bind(removed).is_ok());
    assert!(orphans.iter().any(|&pid| alive(pid)));
    web.gate().open();
    assert_eq!(stays.response().text(), "/stays 0");
    assert_eq!(stays.get("/").status, 200);
    wait_gone(&orphans);
    next.wait_for_log(&["closed 1 connections that came over"]);
}

#[test]
fn a_master_that_does_not_come_up_changes_nothing() {
    let (web, echoing) = (Backend::ok(), Backend::tcp_echo());
    let relay = |bind: &str| {
        format!(
            "[[listen]]\nbind = \"{bind}\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\nservers = [\"{}\"]",
            echoing.addr
        )
    };
    let conf = |bind: &str| Conf::http(&[web.addr]).tables(&relay(bind)).text();
    let mut proxy = Launch::config(&conf("127.0.0.2:0")).start();
    let mut idle = Client::connect(proxy.addr());
    assert_eq!(idle.get("/").status, 200);
    let mut relayed = Client::connect(&proxy.addrs()[1]);
    echo(&mut relayed, 1);
    let orphans = proxy.kill_master();
    let taken = TcpListener::bind("127.0.0.3:0").unwrap();
    for (text, code) in [("listen".to_owned(), 2), (conf(&taken.local_addr().unwrap().to_string()), 1)] {
        let output = proxy.launch_with(&text).run();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(orphans.iter().all(|&pid| alive(pid)));
        assert_eq!(idle.get("/").status, 200);
        echo(&mut relayed, 2);
        // Still nobody is refused.
        drop(Client::connect(proxy.addr()));
    }
    let _next = proxy.again();
    wait_gone(&orphans);
    assert_eq!(idle.get("/").status, 200);
    echo(&mut relayed, 3);
}

#[test]
fn a_stopped_worker_holds_up_nobody_and_is_taken_over_from_when_it_goes_on() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(3).start();
    let mut clients: Vec<Client> = (0..12).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let orphans = proxy.kill_master();
    kill(orphans[1], Signal::SIGSTOP).unwrap();
    let mut waiting = Client::connect(proxy.addr());
    let next = proxy.again();
    assert_eq!(waiting.get("/").status, 200);
    wait_gone(&[orphans[0], orphans[2]]);
    for client in &mut clients {
        client.send("GET /stopped HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    assert!(alive(orphans[1]));
    kill(orphans[1], Signal::SIGCONT).unwrap();
    for client in &mut clients {
        assert_eq!(client.response().fields.get("x-target"), Some("/stopped"));
    }
    wait_gone(&orphans);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    next.wait_for_log(&["has come: taking over from it"]);
}

#[test]
fn many_workers_are_taken_over_from() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(24).start();
    let mut clients: Vec<Client> = (0..96).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
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
    let backend = gated();
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
    let backend = gated();
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
    let backend = gated();
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

/// Meets one worker of a dead master, as a master of any version would.
fn meet(control: &std::path::Path) -> (Channel, Greeting) {
    let flags = nix::sys::socket::SockFlag::SOCK_NONBLOCK | nix::sys::socket::SockFlag::SOCK_CLOEXEC;
    let (family, kind) = (nix::sys::socket::AddressFamily::Unix, nix::sys::socket::SockType::SeqPacket);
    let fd = nix::sys::socket::socket(family, kind, flags, None).unwrap();
    let address = nix::sys::socket::UnixAddr::new(control).unwrap();
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).unwrap();
    let mut channel = Channel::from_fd(fd);
    let greeting = hear(&mut channel, &mut Vec::new());
    (channel, greeting)
}

fn hear<M: serde::de::DeserializeOwned>(channel: &mut Channel, fds: &mut Vec<std::os::fd::OwnedFd>) -> M {
    wait_for("an answer", || match channel.recv(fds) {
        Ok(message) => Some(message),
        Err(RecvError::Empty) => None,
        Err(error) => panic!("{error}"),
    })
}

#[test]
fn a_successor_of_another_version_gets_the_listening_sockets_and_the_rest_is_finished() {
    let backend = gated();
    let conf = Conf::http(&[backend.addr]).top("control = \"unix:{dir}/control.sock\"");
    let mut proxy = conf.launch().workers(1).start();
    let mut idle = Client::connect(proxy.addr());
    let mut busy = Client::connect(proxy.addr());
    busy.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    wait_until("the request is at the backend", || backend.requests().len() == 1);
    wait_passed(&proxy, 2);
    let orphans = proxy.kill_master();
    let (mut channel, greeting) = meet(&proxy.dir.join("control.sock"));
    assert_eq!(greeting.role, Role::Orphan);
    channel.send(&Request::TakeOver, &[]).unwrap();
    let mut fds = Vec::new();
    let listeners: ToSuccessor = hear(&mut channel, &mut fds);
    assert!(matches!(listeners, ToSuccessor::Listeners { bound, last: true } if bound.len() == 1));
    let listener = TcpListener::from(fds.remove(0));
    assert_eq!(listener.local_addr().unwrap(), proxy.addr().inet());
    channel.send(&ToFormer::Ready { version: 9999 }, &[]).unwrap();
    idle.end();
    backend.gate().open();
    assert_eq!(busy.response().text(), "/ 2");
    busy.end();
    wait_gone(&orphans);
    assert!(matches!(channel.recv::<ToSuccessor>(&mut Vec::new()), Err(RecvError::Closed)), "no connection");
    // What waits in the queue is the successor's.
    let _client = TcpStream::connect(proxy.addr().inet()).unwrap();
    listener.set_nonblocking(false).unwrap();
    listener.accept().unwrap();
}

#[test]
fn visitors_that_talk_nonsense_or_nothing_are_sent_away() {
    let backend = Backend::echo();
    let conf = Conf::http(&[backend.addr]).top("control = \"unix:{dir}/control.sock\"");
    let mut proxy = conf.launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let orphans = proxy.kill_master();
    let control = proxy.dir.join("control.sock");
    for nonsense in [&[0u8, 200, 1][..], &[9, 9], &[0], &[0, 3, 3]] {
        let (channel, _) = meet(&control);
        nix::sys::socket::send(
            std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&channel)),
            nonsense,
            nix::sys::socket::MsgFlags::empty(),
        )
        .unwrap();
        assert_eq!(client.get("/").status, 200);
    }
    // Asked for everything, then gone, or never ready.
    let (mut gone, _) = meet(&control);
    gone.send(&Request::TakeOver, &[]).unwrap();
    drop(gone);
    let (_silent, _) = meet(&control);
    assert_eq!(client.get("/").status, 200);
    // The silent one is sent away after some seconds; a master that starts meanwhile waits for that.
    let _next = proxy.again();
    wait_gone(&orphans);
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn other_users_are_not_heard() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).top("control = \"unix:{dir}/control.sock\"").start();
    let control = proxy.dir.join("control.sock");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&control, open).unwrap();
    let ask = |uid: u32| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_master"));
        command.args(["status", "--control"]).arg(&control).uid(uid).gid(uid).stdin(Stdio::null());
        stderr(&command.output().unwrap())
    };
    assert!(ask(65534).contains("no master is running"), "{}", ask(65534));
    let orphans = proxy.kill_master();
    assert!(ask(65534).contains("no master is running"), "{}", ask(65534));
    assert!(ask(0).contains("the master has died"), "{}", ask(0));
    let next = proxy.again();
    wait_gone(&orphans);
    drop(next);
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
fn handed_over_connections_leave_no_descriptor_behind() {
    let backend = Backend::tcp_echo();
    let mut proxy = replace(Conf::tcp(&[backend.addr]).start());
    let before = proxy.descriptors();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
    for _ in 0..2 {
        clients.iter_mut().for_each(|client| echo(client, 7));
        proxy = replace(proxy);
    }
    for mut client in clients {
        client.send("y");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"y".to_vec(), End::Clean));
    }
    wait_until("every relay has ended", || backend.open() == 0);
    proxy.assert_no_leaks(&before, 4);
}

#[test]
fn workers_killed_after_their_master_cost_only_what_they_had() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(3).start();
    let mut clients: Vec<Client> = (0..12).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
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
fn a_killed_master_without_any_worker_left_is_replaced_too() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).listen("bind = \"unix:{dir}/web.sock\"").start();
    let orphans: Vec<Pid> = proxy.kill_master();
    for pid in &orphans {
        kill(*pid, Signal::SIGKILL).unwrap();
    }
    wait_gone(&orphans);
    let next = proxy.again();
    assert_eq!(get(next.addr(), "/").status, 200);
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
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
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
