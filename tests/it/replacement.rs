//! `master upgrade` and SIGUSR2: a new master takes over everything from a living one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::{Client, End, get};
use crate::common::conf::Conf;
use crate::common::load::Load;
use crate::common::processes::{alive, children, wait_gone};
use crate::common::proxy::Proxy;
use crate::common::streams::{Busy, tunnel, upgrading};
use crate::common::succession::{Crowd, begin_upgrade, conf, wait_passed};
use crate::common::{TempDir, dawdle, need_packages, stderr, wait_for, wait_until};

const MARK: &str = "not upgraded";

/// Puts `text` in the place of the program at `path`, as a package manager does.
fn install_script(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Puts the program itself at `path`.
fn install(path: &Path) {
    let new = path.with_extension("new");
    std::fs::copy(env!("CARGO_BIN_EXE_master"), &new).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn program_of(pid: Pid) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// The master that was started by `former`, once it is the one that answers.
fn next_master(proxy: &Proxy, former: Pid) -> Pid {
    wait_for("another master answers", || {
        let output = proxy.question("status");
        let worker =
            String::from_utf8_lossy(&output.stdout).lines().last()?.split_whitespace().nth(1)?.parse::<i32>().ok()?;
        let status = std::fs::read_to_string(format!("/proc/{worker}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        (parent != former.as_raw() && parent != 1).then(|| Pid::from_raw(parent))
    })
}

#[test]
fn upgrades_under_load_cost_nothing() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(3).start();
    let kept = Load::start(proxy.addr(), 8, false);
    let fresh = Load::start(proxy.addr(), 3, true);
    for _ in 0..5 {
        kept.flow();
        let took = proxy.upgrade();
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    kept.flow();
    assert!(kept.finish() + fresh.finish() > 100);
}

/// A master with a request that waits for the backend's gate.
fn busy(backend: &Backend) -> (Proxy, Client) {
    let proxy = Conf::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let before = backend.heads();
    client.send("GET /kept HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the request is at the backend", || backend.heads() > before);
    (proxy, client)
}

#[test]
fn a_master_that_is_succeeded_names_the_one_to_ask() {
    let backend = Backend::gated();
    let (mut proxy, mut client) = busy(&backend);
    let next = begin_upgrade(&proxy);
    let instead = format!("another master (pid {next}) is taking over from this one");
    proxy.signal(Signal::SIGHUP);
    proxy.wait_for_log(&["configuration not reloaded", &instead]);
    proxy.signal(Signal::SIGUSR2);
    proxy.wait_for_log(&["not upgraded", &instead]);
    backend.gate().open();
    assert_eq!(client.response().status, 200);
    proxy.succeeded(next);
    proxy.wait_for_log(&["the former master has given everything"]);
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn requests_outlive_a_successor_that_is_killed_beside_the_former_master() {
    let backend = Backend::gated();
    let (mut proxy, mut client) = busy(&backend);
    let next = begin_upgrade(&proxy);
    proxy.forgive("the successor is gone");
    let workers = children(next);
    let orphans = proxy.workers();
    kill(next, Signal::SIGKILL).unwrap();
    proxy.wait_for_log(&["the successor is gone", "the workers wait for another master"]);
    proxy.master_ends(&orphans);
    proxy.wait_for_log(&["the master has died; serving 1 connections on"]);
    let third = proxy.again();
    backend.gate().open();
    assert_eq!(client.response().fields.get("connection"), None);
    wait_gone(&orphans);
    assert_eq!(client.get("/again").text(), "/again 0");
    wait_gone(&workers);
    third.check_log();
}

#[test]
fn requests_outlive_a_former_master_that_is_killed_before_it_has_given_everything() {
    for part in [false, true] {
        let backend = Backend::gated();
        let (mut proxy, mut client) = busy(&backend);
        let mut idle = part.then(|| Client::connect(proxy.addr()));
        wait_passed(&proxy, 1 + u32::from(part));
        let next = begin_upgrade(&proxy);
        // Both workers have been told to give back what they can.
        proxy.wait_for_log_after(1, &["finishing", "connections"]);
        if part {
            wait_passed(&proxy, 1);
        }
        // It waits for the request.
        let orphans = proxy.kill_master();
        proxy.wait_for_log(&["the master has died; serving 1 connections on"]);
        let said = if part {
            "the former master ended before it had given everything: connections that it had in hand are lost"
        } else {
            "the former master has ended and given no connection: it was killed, and what it had in hand is lost, or"
        };
        proxy.wait_for_log(&["WARN", said]);
        backend.gate().open();
        assert_eq!(client.response().fields.get("connection"), None);
        wait_gone(&orphans);
        assert_eq!(client.get("/again").text(), "/again 0");
        if let Some(idle) = &mut idle {
            assert_eq!(idle.get("/idle").text(), "/idle 0");
        }
        let workers = children(next);
        kill(next, Signal::SIGTERM).unwrap();
        wait_gone(&workers);
    }
}

#[test]
fn connections_given_back_to_a_former_master_that_is_killed_are_not_lost() {
    let (web, echoing) = (Backend::echo(), Backend::tcp_echo());
    let mut proxy = conf(&web, &echoing).start();
    let crowd = Crowd::of(&proxy);
    let workers = proxy.workers();
    workers.iter().for_each(|&pid| kill(pid, Signal::SIGSTOP).unwrap());
    let next = begin_upgrade(&proxy);
    // It sleeps again when it has told them to.
    wait_until("the former master has told its workers", || {
        std::fs::read_to_string(format!("/proc/{}/stat", proxy.pid)).unwrap().contains(") S ")
    });
    // It hears nothing any more of what its workers give back.
    proxy.signal(Signal::SIGSTOP);
    workers.iter().for_each(|&pid| kill(pid, Signal::SIGCONT).unwrap());
    proxy.wait_for_log_after(1, &["finishing", "connections"]);
    dawdle(Duration::from_millis(100));
    proxy.kill_master();
    wait_gone(&workers);
    crowd.check();
    let workers = children(next);
    kill(next, Signal::SIGTERM).unwrap();
    wait_gone(&workers);
}

#[test]
fn long_lived_connections_move_and_the_former_processes_are_gone() {
    const LENGTH: u64 = 24 << 20;
    let (web, echoing) = (upgrading(), Backend::tcp_echo());
    let conf = Conf::http(&[web.addr]).tables(&format!(
        "[[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\nservers = [\"{}\"]",
        echoing.addr
    ));
    let mut proxy = conf.start();
    let relay = proxy.addrs()[1].inet();
    let mut tunnels: Vec<TcpStream> = (0..4).map(|_| tunnel(&proxy)).collect();
    let mut halves: Vec<Client> = (0..4).map(|_| Client::connect(&proxy.addrs()[1])).collect();
    for client in &mut halves {
        client.echo(1);
    }
    let busy = Busy::start(relay, 4, LENGTH);
    for round in 1..=3 {
        busy.wait_for_quarters(round);
        let took = proxy.upgrade();
        assert!(took < Duration::from_secs(10), "{took:?}");
        for stream in &mut tunnels {
            stream.write_all(b"through").unwrap();
            let mut back = [0; 7];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"through");
        }
    }
    for mut client in halves {
        client.send("x");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"x".to_vec(), End::Clean));
    }
    busy.finish();
    assert_eq!((web.connections(), echoing.connections()), (4, 8), "a relay was connected again");
}

#[test]
fn requests_in_progress_are_answered_by_the_former_workers_and_run_once() {
    let backend = Backend::gated();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send("POST /once HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    }
    let mut half = Client::connect(proxy.addr());
    half.send("GET /half HT");
    wait_until("the requests are at the backend", || backend.requests().len() == 6);
    let former = proxy.pid;
    proxy.signal(Signal::SIGUSR2);
    let next = next_master(&proxy, former);
    // Once more at once: this one has not got everything yet.
    kill(next, Signal::SIGUSR2).unwrap();
    proxy.wait_for_log(&["not upgraded: this master has not yet taken over everything itself"]);
    backend.gate().open();
    for client in &mut clients {
        assert_eq!(client.response().text(), "/once 2");
        assert_eq!(client.get("/after").text(), "/after 0");
    }
    half.send("TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(half.response().text(), "/half 0");
    proxy.succeeded(next);
    assert_eq!(backend.requests().len(), 6 + 6 + 1);
}

#[test]
fn the_program_now_at_its_place_is_the_one_that_runs() {
    let backend = Backend::ok();
    let place = TempDir::new();
    let (one, two, link) = (place.join("one"), place.join("two"), place.join("link"));
    install(&one);
    install(&two);
    std::os::unix::fs::symlink(&one, &link).unwrap();
    for start in [&one, &link] {
        let mut proxy = Conf::http(&[backend.addr]).launch().binary(start.clone()).start();
        let mut client = Client::connect(proxy.addr());
        assert_eq!(client.get("/").status, 200);
        let before = std::fs::metadata(format!("/proc/{}/exe", proxy.pid)).unwrap().ino();
        let expected = if *start == link {
            std::fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink(&two, &link).unwrap();
            &two
        } else {
            install(&one);
            &one
        };
        proxy.upgrade();
        assert_eq!(program_of(proxy.pid), *expected);
        let now = std::fs::metadata(format!("/proc/{}/exe", proxy.pid)).unwrap().ino();
        assert_ne!(before, now);
        for worker in proxy.workers() {
            assert_eq!(program_of(worker), *expected);
        }
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn a_broken_program_changes_nothing() {
    let backend = Backend::ok();
    let place = TempDir::new();
    let program = place.join("master");
    install(&program);
    let conf = Conf::http(&[backend.addr]).top("upgrade_timeout = \"700ms\"");
    let mut proxy = conf.launch().binary(program.clone()).start();
    proxy.forgive(MARK);
    let (pid, workers) = (proxy.pid, proxy.workers());
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let broken = [
        ("#!/bin/sh\necho something is wrong >&2\nexit 3\n", "the new one ended (exited with status 3)"),
        ("#!/bin/sh\nexec sleep 1000\n", "did not become ready within `upgrade_timeout`"),
        ("#!/bin/sh\nexec <&- sleep 1000\n", "the new one does not speak to this master"),
        ("#!/bin/sh\nkill -SEGV $$\n", "the new one ended (killed by SIGSEGV)"),
        ("#!/no/such/interpreter\n", "cannot start"),
    ];
    for (script, why) in broken {
        install_script(&program, script);
        let output = proxy.question("upgrade");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(why) && stderr(&output).contains("nothing has changed"), "{output:?}");
        assert_eq!(client.get("/").status, 200);
        assert_eq!(get(proxy.addr(), "/").status, 200);
        assert_eq!(proxy.workers(), workers);
        wait_until("nothing is left of it", || children(pid) == workers);
    }
    proxy.wait_for_log(&["something is wrong"]);
    std::fs::remove_file(&program).unwrap();
    assert!(stderr(&proxy.question("upgrade")).contains("No such file"));
    // After all that it works.
    install(&program);
    write_patient(&proxy, &conf);
    assert!(proxy.question("reload").status.success());
    proxy.upgrade();
    assert_ne!(proxy.pid, pid);
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn a_configuration_that_stops_an_upgrade_is_shown_in_full_and_logged_in_one_line() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).start();
    proxy.forgive(MARK);
    proxy.write_config(2, "workrs = 3\n");
    let output = proxy.question("upgrade");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = stderr(&output);
    assert!(said.starts_with("error: unknown key `workrs`") && said.contains("2 | workrs = 3\n"), "{said}");
    assert!(said.ends_with("\nmaster: not upgraded; nothing has changed\n"), "{said}");
    let (_, line) = proxy.wait_for_log(&["not upgraded"]);
    assert!(line.contains(":2:1: unknown key `workrs`") && line.ends_with("; nothing has changed"), "{line}");
}

#[test]
fn a_successor_that_is_gone_when_it_is_heard_to_be_ready_changes_nothing() {
    let backend = Backend::ok();
    let place = TempDir::new();
    let program = place.join("master");
    install(&program);
    let mut proxy = Conf::http(&[backend.addr]).launch().binary(program.clone()).start();
    proxy.forgive(MARK);
    let workers = proxy.workers();
    // The master hears its only word and its end at once.
    let script = format!(
        "#!/bin/sh\nread -r _ _ _ master _ </proc/$PPID/stat\nkill -STOP $master\n\
         until grep -q '^State:.T' /proc/$master/status; do :; done\n\
         printf '\\000\\000\\{:03o}' >&0\n",
        ipc::handover::VERSION
    );
    install_script(&program, &script);
    proxy.signal(Signal::SIGUSR2);
    let successor = wait_for("the successor runs", || successor(&proxy, &workers));
    wait_until("it has ended", || !alive(successor));
    proxy.signal(Signal::SIGCONT);
    proxy.wait_for_log(&["not upgraded", "nothing has changed"]);
    assert_eq!(get(proxy.addr(), "/").status, 200);
    assert_eq!(proxy.workers(), workers);
}

/// The process that is to follow the master: what its only child besides the workers has started.
fn successor(proxy: &Proxy, workers: &[Pid]) -> Option<Pid> {
    let between = children(proxy.pid).into_iter().find(|pid| !workers.contains(pid))?;
    children(between).first().copied()
}

/// The same configuration, with as much time for an upgrade as a busy machine may need.
fn write_patient(proxy: &Proxy, conf: &Conf) {
    proxy.write_config(2, &conf.text().replace("upgrade_timeout = \"700ms\"", "upgrade_timeout = \"30s\""));
}

#[test]
fn a_broken_configuration_changes_nothing_and_is_named() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]);
    let mut proxy = conf.start();
    proxy.forgive(MARK);
    // What the successor itself says stands in the same log.
    proxy.forgive("another process is using this address");
    let workers = proxy.workers();
    let mut client = Client::connect(proxy.addr());
    let taken = TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap();
    let _taken = TcpListener::bind(taken).unwrap();
    let conflict = conf.text().replace("127.0.0.1:0", &taken.to_string());
    for (text, why) in [
        ("listen".to_owned(), "pointsman.toml:1:"),
        ("[[listen]]\nbund = \"x\"".to_owned(), "bund"),
        (conflict, "another process is using this address"),
    ] {
        proxy.dir.write("pointsman.toml", &text);
        let output = proxy.question("upgrade");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(why), "{output:?}");
        assert_eq!(client.get("/").status, 200);
        assert_eq!(proxy.workers(), workers);
    }
    proxy.write_config(2, &conf.text());
    proxy.upgrade();
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn the_successor_goes_by_the_present_configuration() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let mut proxy = Conf::http(&[a.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").text(), "a");
    proxy.write_config(2, &Conf::http(&[b.addr]).text());
    proxy.upgrade();
    assert_eq!(client.get("/").text(), "b");
    assert_eq!(get(proxy.addr(), "/").text(), "b");
}

#[test]
fn a_successor_that_is_killed_is_succeeded_again() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut clients = Client::served(proxy.addr(), 10);
    proxy.upgrade();
    // What is on its way from one master to the other is lost with either.
    proxy.wait_for_log(&["the former master has given everything"]);
    // Whoever answers a question has finished the turn in which the last of it came.
    assert!(proxy.question("status").status.success());
    let orphans = proxy.kill_master();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let mut next = proxy.again();
    wait_gone(&orphans);
    next.upgrade();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn workers_killed_during_upgrades_cost_nothing() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(4).start();
    let load = Load::start(proxy.addr(), 8, false);
    for round in 0..4 {
        load.flow();
        let victim = proxy.workers()[round];
        let killer = thread::spawn(move || {
            // At another instant of the upgrade each time.
            thread::park_timeout(Duration::from_millis(60 * round as u64));
            let _ = kill(victim, Signal::SIGKILL);
        });
        let output = proxy.question("upgrade");
        killer.join().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", proxy.text());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let pid = said.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
        proxy.succeeded(Pid::from_raw(pid));
    }
    load.flow();
    load.finish();
}

#[test]
fn a_master_told_to_stop_takes_its_unready_successor_along() {
    let backend = Backend::ok();
    let place = TempDir::new();
    let program = place.join("master");
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        install(&program);
        let mut proxy = Conf::http(&[backend.addr]).launch().binary(program.clone()).start();
        proxy.forgive(MARK);
        install_script(&program, "#!/bin/sh\nexec sleep 1000\n");
        let workers = proxy.workers();
        proxy.signal(Signal::SIGUSR2);
        let successor = wait_for("the successor runs", || successor(&proxy, &workers));
        proxy.check_end(Some(signal));
        wait_until("the successor is gone", || !alive(successor));
    }
}

#[test]
fn a_successor_of_another_version_gets_the_listening_sockets_and_the_rest_is_finished() {
    need_packages(&["python3"]);
    let backend = Backend::gated();
    let place = TempDir::new();
    let program = place.join("master");
    install(&program);
    let mut proxy = Conf::http(&[backend.addr]).launch().binary(program.clone()).start();
    // Takes the sockets, says that it is ready, in another version, and accepts one client.
    install_script(
        &program,
        r#"#!/usr/bin/env python3
import array, socket
channel = socket.socket(fileno=0)
channel.setblocking(True)
data, control, flags, address = channel.recvmsg(65536, socket.CMSG_SPACE(4 * 253))
fds = array.array("i")
fds.frombytes(control[0][2])
channel.send(bytes([0, 0, 0xf0, 0x07]))
assert channel.recv(65536) == b"", "connections in a version nobody asked for"
listener = socket.socket(fileno=fds[0])
listener.setblocking(True)
client, _ = listener.accept()
client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
client.recv(65536)
"#,
    );
    let mut idle = Client::connect(proxy.addr());
    let mut busy = Client::connect(proxy.addr());
    busy.send("POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    wait_until("the request is at the backend", || backend.requests().len() == 1);
    let output = proxy.question("upgrade");
    assert!(output.status.success(), "{output:?}");
    let mut new = Client::connect(proxy.addr());
    idle.end();
    backend.gate().open();
    assert_eq!(busy.response().text(), "/busy 2");
    busy.end();
    proxy.check_end(None);
    proxy.wait_for_log(&["of another version"]);
    assert_eq!(new.response().text(), "other");
}
