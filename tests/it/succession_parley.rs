//! What a master, its successor and the workers of a dead one say to each other, and to whoever else asks.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use ipc::channel::{Channel, RecvError};
use ipc::control::{Greeting, Request, Role};
use ipc::handover::{ToFormer, ToSuccessor, VERSION};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::{Client, End, get};
use crate::common::conf::Conf;
use crate::common::processes::{alive, wait_gone};
use crate::common::proxy::{Launch, Proxy};
use crate::common::succession::wait_passed;
use crate::common::{stderr, wait_for, wait_until};

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
    let (web, echoing) = (Backend::gated(), Backend::tcp_echo());
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
    goes.echo(1);
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
    relayed.echo(1);
    let orphans = proxy.kill_master();
    let taken = TcpListener::bind("127.0.0.3:0").unwrap();
    for (text, code) in [("listen".to_owned(), 2), (conf(&taken.local_addr().unwrap().to_string()), 1)] {
        let output = proxy.launch_with(&text).run();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(orphans.iter().all(|&pid| alive(pid)));
        assert_eq!(idle.get("/").status, 200);
        relayed.echo(2);
        // Still nobody is refused.
        drop(Client::connect(proxy.addr()));
    }
    let _next = proxy.again();
    wait_gone(&orphans);
    assert_eq!(idle.get("/").status, 200);
    relayed.echo(3);
}

#[test]
fn a_stopped_worker_holds_up_nobody_and_is_taken_over_from_when_it_goes_on() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(3).start();
    let mut clients = Client::served(proxy.addr(), 12);
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

/// A proxy whose worker, once its master is dead, is met behind `control.sock`.
fn with_one_worker(backend: &Backend) -> Proxy {
    let conf = Conf::http(&[backend.addr]).top("control = \"unix:{dir}/control.sock\"");
    conf.launch().workers(1).start()
}

/// Meets one worker of a dead master, as a master of any version would.
fn meet(control: &std::path::Path) -> (Channel, Greeting) {
    let mut channel = knock(control);
    let greeting = hear(&mut channel, &mut Vec::new());
    (channel, greeting)
}

fn knock(control: &std::path::Path) -> Channel {
    let flags = nix::sys::socket::SockFlag::SOCK_NONBLOCK | nix::sys::socket::SockFlag::SOCK_CLOEXEC;
    let (family, kind) = (nix::sys::socket::AddressFamily::Unix, nix::sys::socket::SockType::SeqPacket);
    let fd = nix::sys::socket::socket(family, kind, flags, None).unwrap();
    let address = nix::sys::socket::UnixAddr::new(control).unwrap();
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).unwrap();
    Channel::from_fd(fd)
}

fn hear<M: serde::de::DeserializeOwned>(channel: &mut Channel, fds: &mut Vec<OwnedFd>) -> M {
    wait_for("an answer", || match channel.recv(fds) {
        Ok(message) => Some(message),
        Err(RecvError::Empty) => None,
        Err(error) => panic!("{error}"),
    })
}

#[test]
fn who_comes_while_a_worker_has_no_descriptor_is_let_in_later() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).top("control = \"unix:{dir}/control.sock\"");
    let mut proxy = conf.launch().workers(1).start();
    let orphans = proxy.kill_master();
    let pid = rustix::process::Pid::from_raw(orphans[0].as_raw());
    let limit = |limit| rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
    proxy.wait_for_log(&["the master has died"]);
    let (none, maximum) = (Some(0), rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum);
    let before = limit(rustix::process::Rlimit { current: none, maximum });
    let mut channel = knock(&proxy.dir.join("control.sock"));
    proxy.wait_for_log(&["cannot let in who comes to the control socket"]);
    limit(before);
    let greeting: Greeting = hear(&mut channel, &mut Vec::new());
    assert_eq!(greeting.role, Role::Orphan);
    drop(channel);
    let _next = proxy.again();
    wait_gone(&orphans);
}

#[test]
fn a_successor_of_another_version_gets_the_listening_sockets_and_the_rest_is_finished() {
    let backend = Backend::gated();
    let mut proxy = with_one_worker(&backend);
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

/// Takes over from one worker behind `control` up to its first message with connections, and gives the number of these and
/// their descriptors.
fn take_over_from_one(control: &std::path::Path) -> (Channel, usize, Vec<OwnedFd>) {
    let (mut channel, greeting) = meet(control);
    assert_eq!(greeting.role, Role::Orphan);
    channel.send(&Request::TakeOver, &[]).unwrap();
    let mut fds = Vec::new();
    let listeners: ToSuccessor = hear(&mut channel, &mut fds);
    assert!(matches!(listeners, ToSuccessor::Listeners { .. }));
    channel.send(&ToFormer::Ready { version: VERSION }, &[]).unwrap();
    let given: ToSuccessor = hear(&mut channel, &mut fds);
    let ToSuccessor::Connections(given) = given else { panic!("{given:?}") };
    (channel, given.len(), fds)
}

#[test]
fn what_a_successor_has_not_said_to_have_is_kept_for_the_next() {
    let backend = Backend::echo();
    let mut proxy = with_one_worker(&backend);
    let mut clients = Client::served(proxy.addr(), 10);
    let orphans = proxy.kill_master();
    let control = proxy.dir.join("control.sock");
    // Twice: read and not, as far as this process is concerned, which ends like a master that is killed.
    for _ in 0..2 {
        let (channel, count, fds) = take_over_from_one(&control);
        assert_eq!((count, fds.len()), (10, 10));
        drop((channel, fds));
    }
    let _next = proxy.again();
    wait_gone(&orphans);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn what_a_successor_has_said_to_have_is_given_to_nobody_else() {
    let backend = Backend::echo();
    let mut proxy = with_one_worker(&backend);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let orphans = proxy.kill_master();
    let (mut channel, count, fds) = take_over_from_one(&proxy.dir.join("control.sock"));
    assert_eq!((count, fds.len()), (1, 1));
    channel.send(&ToFormer::Taken, &[]).unwrap();
    wait_gone(&orphans);
    drop(fds);
    client.end();
}

#[test]
fn a_relay_that_is_lost_on_its_way_to_a_successor_does_not_look_whole() {
    let backend = Backend::tcp_echo();
    let conf = Conf::tcp(&[backend.addr]).top("control = \"unix:{dir}/control.sock\"");
    let mut proxy = conf.launch().workers(1).start();
    let relay = |proxy: &Proxy| {
        let mut client = Client::connect(proxy.addr());
        client.echo(1);
        client
    };
    let before = relay(&proxy);
    let orphans = proxy.kill_master();
    proxy.wait_for_log(&["the master has died"]);
    let after = relay(&proxy);
    let (mut channel, count, fds) = take_over_from_one(&proxy.dir.join("control.sock"));
    assert_eq!((count, fds.len()), (2, 4));
    channel.send(&ToFormer::Taken, &[]).unwrap();
    wait_gone(&orphans);
    drop(fds);
    for mut client in [before, after] {
        assert_eq!(client.read_to_end(), (Vec::new(), End::Reset));
    }
}

#[test]
fn visitors_that_talk_nonsense_or_nothing_are_sent_away() {
    let backend = Backend::echo();
    let mut proxy = with_one_worker(&backend);
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
    assert!(ask(65534).contains("cannot be asked"), "{}", ask(65534));
    let orphans = proxy.kill_master();
    assert!(ask(65534).contains("cannot be asked"), "{}", ask(65534));
    assert!(ask(0).contains("the master has died"), "{}", ask(0));
    let next = proxy.again();
    wait_gone(&orphans);
    drop(next);
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
