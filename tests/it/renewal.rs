//! Reloads that want other processes: the workers are replaced one by one, and nobody notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::common::backend::{Backend, response};
use crate::common::client::Client;
use crate::common::conf::Conf;
use crate::common::load::Load;
use crate::common::processes::{alive, wait_gone};
use crate::common::proxy::Proxy;
use crate::common::rng::{Rng, Seed};
use crate::common::streams::{tunnel, upgrading};
use crate::common::{wait_for, wait_until};

const DONE: &str = "all workers are as the configuration wants them";

/// Reloads, and waits until `count` workers are there of which none was there before.
#[track_caller]
fn renew(proxy: &mut Proxy, count: usize, text: &str) -> Vec<Pid> {
    let before = proxy.workers();
    proxy.write_config(count, text);
    let output = proxy.question("reload");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("can only change with the process: the workers are replaced one by one"), "{said}");
    wait_gone(&before);
    settled(proxy, count)
}

/// Waits until there are `count` workers, with the numbers from 0 on, and gives them.
#[track_caller]
fn settled(proxy: &mut Proxy, count: usize) -> Vec<Pid> {
    let workers = proxy.wait_for_workers(count);
    let names: Vec<String> = proxy.numbered_workers().into_iter().map(|(name, _)| name.trim().to_owned()).collect();
    let wanted: Vec<String> = (0..count).map(|number| format!("master worker {number}")).collect();
    assert_eq!(names, wanted, "{}", proxy.text());
    workers
}

fn long_request() -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(40_000))
}

fn head(conf: Conf, kib: usize) -> String {
    conf.tables(&format!("[limits]\nhead = \"{kib}KiB\"")).text()
}

#[test]
fn a_longer_head_replaces_the_workers_and_loses_nothing() {
    let (web, echoing, upgraded) = (Backend::echo(), Backend::tcp_echo(), upgrading());
    let conf = || {
        Conf::http(&[web.addr]).tables(&format!(
            "[[route]]\npath = \"/up\"\nto = \"up\"\n[backends.up]\nservers = [\"{}\"]\n\
             [[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\nservers = [\"{}\"]",
            upgraded.addr, echoing.addr
        ))
    };
    let mut proxy = conf().launch().workers(3).start();
    let mut idle: Vec<Client> = (0..30).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
    let mut halves: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut halves {
        client.send("GET /half HT");
    }
    let mut relays: Vec<TcpStream> = (0..6).map(|_| TcpStream::connect(proxy.addrs()[1].inet()).unwrap()).collect();
    let echo = |streams: &mut Vec<TcpStream>| {
        for stream in streams {
            let mut back = [0; 5];
            stream.write_all(b"there").unwrap();
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"there");
        }
    };
    echo(&mut relays);
    assert_eq!(Client::connect(proxy.addr()).ask(long_request()).status, 431);
    let (load, fresh) = (Load::start(proxy.addr(), 4, false), Load::start(proxy.addr(), 2, true));
    for kib in [64, 128, 256] {
        load.flow();
        fresh.flow();
        renew(&mut proxy, 3, &head(conf(), kib));
        proxy.wait_for_log(&[DONE]);
        assert_eq!(Client::connect(proxy.addr()).ask(long_request()).status, 200);
    }
    for client in &mut halves {
        client.send("TP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().fields.get("x-target"), Some("/half"));
    }
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
    echo(&mut relays);
    assert_eq!(echoing.connections(), 6, "a relay was connected again");
    assert!(load.finish() > 0 && fresh.finish() > 0);
    // Smaller values need no other process.
    let workers = proxy.workers();
    proxy.reload(3, &head(conf(), 16));
    assert_eq!(Client::connect(proxy.addr()).ask(long_request()).status, 431);
    assert_eq!(proxy.workers(), workers);
}

#[test]
fn requests_and_tunnels_in_progress_end_as_they_began() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            conn.gate().pass();
            conn.send(&response(&request.target));
        }
    });
    let upgraded = upgrading();
    let other =
        format!("[[listen]]\nbind = \"127.0.0.2:0\"\nto = \"slow\"\n[backends.slow]\nservers = [\"{}\"]", backend.addr);
    let conf = || Conf::http(&[upgraded.addr]).tables(&other);
    let mut proxy = conf().start();
    let mut tunnels: Vec<TcpStream> = (0..4).map(|_| tunnel(&proxy)).collect();
    let mut posts: Vec<Client> = (0..8).map(|_| Client::connect(&proxy.addrs()[1])).collect();
    for client in &mut posts {
        client.send("POST /once HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    }
    wait_until("the requests are at the backend", || backend.requests().len() == 8);
    let before = proxy.workers();
    proxy.write_config(2, &head(conf(), 64));
    assert!(proxy.question("reload").status.success());
    wait_until("the first new worker is there", || proxy.workers().len() == 3);
    proxy.wait_for_log(&["worker 0", "finishing 6 connections"]);
    for stream in &mut tunnels {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    assert!(before.iter().all(|&pid| alive(pid)));
    backend.gate().open();
    for client in &mut posts {
        assert_eq!(client.response().text(), "/once");
        assert_eq!(client.get("/again").text(), "/again");
    }
    wait_gone(&before);
    settled(&mut proxy, 2);
    assert_eq!(backend.requests().len(), 16, "every request was run once");
}

#[test]
fn more_connections_than_before_have_room() {
    let backend = Backend::ok();
    let conf = |count: u32| Conf::http(&[backend.addr]).tables(&format!("[limits]\nconnections = {count}"));
    let mut proxy = conf(16).launch().workers(1).start();
    let mut clients = vec![Client::connect(proxy.addr())];
    assert_eq!(clients[0].get("/").status, 200);
    renew(&mut proxy, 1, &conf(200).text());
    clients.extend((0..150).map(|_| Client::connect(proxy.addr())));
    for _ in 0..2 {
        for client in &mut clients {
            assert_eq!(client.get("/").status, 200);
        }
    }
}

#[test]
fn another_user_is_another_process() {
    if !geteuid().is_root() {
        eprintln!("only root can run workers as somebody else");
        return;
    }
    let backend = Backend::echo();
    let conf = || Conf::http(&[backend.addr]);
    let mut proxy = conf().start();
    let mut idle: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
    let load = Load::start(proxy.addr(), 3, false);
    load.flow();
    let uid = |pid: Pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    for worker in renew(&mut proxy, 2, &conf().top("user = \"nobody\"").text()) {
        assert_ne!(uid(worker), "0");
    }
    for worker in renew(&mut proxy, 2, &conf().text()) {
        assert_eq!(uid(worker), "0");
    }
    load.flow();
    assert!(load.finish() > 0);
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn workers_that_die_or_come_and_go_meanwhile_change_nothing() {
    let seed = Seed::new();
    let mut rng = Rng::new(seed.0);
    let backend = Backend::echo();
    let conf = || Conf::http(&[backend.addr]);
    let mut proxy = conf().start();
    let load = Load::start(proxy.addr(), 6, false);
    for round in 0..10 {
        load.flow();
        let before = proxy.workers();
        proxy.write_config(2, &head(conf(), 40 + 8 * round));
        assert!(proxy.question("reload").status.success());
        std::thread::park_timeout(rng.pause(60_000));
        let workers = proxy.workers();
        match round % 5 {
            0 | 1 => {
                let victim = workers[usize::try_from(rng.below(workers.len() as u64)).unwrap()];
                let _ = kill(victim, Signal::SIGKILL);
            }
            2 => proxy.signal(Signal::SIGTTIN),
            3 => {
                proxy.signal(Signal::SIGTTOU);
                std::thread::park_timeout(rng.pause(20_000));
                proxy.signal(Signal::SIGTTIN);
            }
            _ => {
                // Back again, and then once more: some may stay.
                proxy.write_config(2, &conf().text());
                assert!(proxy.question("reload").status.success());
                proxy.write_config(2, &head(conf(), 40 + 8 * round));
                assert!(proxy.question("reload").status.success());
            }
        }
        wait_gone(&before);
        // A reload sets the number that the configuration has.
        proxy.reload(2, &head(conf(), 40 + 8 * round));
        wait_for("two workers are left", || (proxy.workers().len() == 2).then_some(()));
        proxy.wait_for_workers(2);
    }
    load.flow();
    assert!(load.finish() > 0);
}

#[test]
fn a_worker_stays_while_the_one_in_its_place_does_not_come_up() {
    if !geteuid().is_root() {
        eprintln!("only root can run workers as somebody else");
        return;
    }
    let backend = Backend::ok();
    let dir = crate::common::TempDir::new();
    let binary = dir.join("master");
    std::fs::copy(env!("CARGO_BIN_EXE_master"), &binary).unwrap();
    // Nobody but its owner can start it.
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o700)).unwrap();
    let conf = || Conf::http(&[backend.addr]);
    let mut proxy = conf().launch().binary(binary).start();
    let workers = proxy.workers();
    let mut client = Client::connect(proxy.addr());
    proxy.forgive("cannot be started");
    for _ in 0..2 {
        let skip = proxy.log.all().len();
        proxy.write_config(2, &conf().top("user = \"nobody\"").text());
        assert!(proxy.question("reload").status.success());
        for _ in 0..3 {
            proxy.wait_for_log_after(skip, &["worker 0 cannot be started", "trying again"]);
            assert_eq!(client.get("/").status, 200);
            assert_eq!(Client::connect(proxy.addr()).get("/").status, 200);
            assert_eq!(proxy.workers(), workers);
        }
        proxy.reload(2, &conf().text());
        proxy.wait_for_log_after(skip, &[DONE]);
        assert_eq!(proxy.workers(), workers);
    }
    assert_eq!(client.get("/").status, 200);
    // Its number is free again.
    proxy.signal(Signal::SIGTTIN);
    settled(&mut proxy, 3);
}
