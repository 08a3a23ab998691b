//! A master that is killed while it has connections in hand: accepted, and not yet anybody else's. Its heir gives them to
//! workers. To see it killed at the very instant, the test traces its system calls.

use std::os::unix::process::ExitStatusExt;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::load::Load;
use crate::common::processes::{alive, wait_gone};
use crate::common::proxy::{Addr, Launch, Proxy};
use crate::common::traced::{Call, GETSOCKOPT, RECVMSG, SENDMSG, SHUTDOWN, kill_when};
use crate::common::{TempDir, wait_for, wait_until};

/// Where the master is with a new connection when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instant {
    /// The kernel has given it the connection, and it has not seen it yet.
    Accepted,
    /// It is about to send it to a worker.
    Sending,
    /// The worker has been sent it, and the master does not know yet.
    Sent,
}

const ACCEPT4: i64 = 288;
/// A message with several connections is longer, and no other that a new master gets.
const CONNECTIONS: i64 = 100;

/// Whether that is a connection to the control socket, such as other tests' that look for running masters.
fn asks(pid: Pid, fd: i64) -> bool {
    const SEQPACKET: &str = "0005";
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().to_string_lossy().into_owned();
    let inode = link.trim_start_matches("socket:[").trim_end_matches(']');
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.any(|row| row.get(6) == Some(&inode) && row[4] == SEQPACKET)
}

/// Kills the master with the next connection in hand, at this instant.
fn kill_at(instant: Instant, pid: Pid, connect: impl FnOnce()) {
    let mut accepted = false;
    kill_when(pid, connect, |call| {
        accepted |= matches!(call, Call::Ended(ACCEPT4, fd) if *fd >= 0 && !asks(pid, *fd));
        match instant {
            Instant::Accepted => accepted,
            Instant::Sending => accepted && *call == Call::Begins(SENDMSG),
            Instant::Sent => accepted && matches!(call, Call::Ended(SENDMSG, bytes) if *bytes > 0),
        }
    });
}

fn killed_with_one_in_hand(mut proxy: Proxy, instant: Instant) -> Proxy {
    let addr = proxy.addr().clone();
    let mut others: Vec<Client> = (0..8).map(|_| Client::connect(&addr)).collect();
    others.iter_mut().for_each(|other| assert_eq!(other.get("/before").fields.get("x-target"), Some("/before")));
    let mut asked = None;
    let orphans = proxy.workers();
    kill_at(instant, proxy.pid, || {
        let addr = addr.clone();
        asked = Some(thread::spawn(move || {
            let mut client = Client::connect(&addr);
            for _ in 0..3 {
                assert_eq!(client.get("/in-hand").fields.get("x-target"), Some("/in-hand"));
            }
            client
        }));
    });
    let mut client = asked.unwrap().join().unwrap();
    proxy.master_ends(&orphans);
    proxy.wait_for_log(&["the master was killed with 1 connections in hand; workers have them now"]);
    let next = proxy.again();
    wait_gone(&orphans);
    for client in others.iter_mut().chain([&mut client]) {
        assert_eq!(client.get("/next").fields.get("x-target"), Some("/next"));
    }
    // Each once: a worker that has a connection twice gives it to the next master twice.
    assert_eq!(connections(&next), others.len() + 1);
    next
}

/// How many connections its workers have, by what it says itself.
pub fn connections(proxy: &Proxy) -> usize {
    let status = proxy.question("status");
    let text = String::from_utf8_lossy(&status.stdout);
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let at = lines
        .find_map(|words| words.iter().position(|word| *word == "connections"))
        .unwrap_or_else(|| panic!("{text}"));
    lines.filter_map(|words| words.get(at)?.parse::<usize>().ok()).sum()
}

#[test]
fn a_connection_just_accepted_goes_to_a_worker() {
    let backend = Backend::echo();
    let conf = Conf::http(&[backend.addr]);
    killed_with_one_in_hand(conf.start(), Instant::Accepted);
}

#[test]
fn a_connection_about_to_be_sent_goes_to_a_worker() {
    let backend = Backend::echo();
    killed_with_one_in_hand(Conf::http(&[backend.addr]).start(), Instant::Sending);
}

#[test]
fn a_connection_already_sent_is_served_once() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).start();
    for _ in 0..3 {
        proxy = killed_with_one_in_hand(proxy, Instant::Sent);
    }
}

#[test]
fn a_connection_that_has_been_served_meanwhile_is_not_served_again() {
    let backend = Backend::tcp_echo();
    let mut proxy = Conf::tcp(&[backend.addr]).start();
    let (addr, orphans) = (proxy.addr().clone(), proxy.workers());
    let mut asked = None;
    let mut accepted = false;
    let pid = proxy.pid;
    let connect = || {
        asked = Some(thread::spawn(move || {
            let mut client = Client::connect(&addr);
            client.echo(b'a');
            client.shutdown_write();
            client.end();
        }));
    };
    let mut sent = false;
    kill_when(pid, connect, |call| {
        accepted |= matches!(call, Call::Ended(ACCEPT4, fd) if *fd >= 0 && !asks(pid, *fd));
        sent |= accepted && matches!(call, Call::Ended(SENDMSG, bytes) if *bytes > 0);
        if sent {
            // The master does not move, and so does not note what it has sent.
            wait_until("the worker has served it", || backend.connections() == 1 && backend.open() == 0);
        }
        sent
    });
    asked.unwrap().join().unwrap();
    proxy.master_ends(&orphans);
    wait_gone_after_next(&proxy, &orphans);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn unix_listeners_and_listeners_on_all_addresses_are_known_by_their_connections() {
    let backend = Backend::echo();
    let dir = TempDir::new();
    let path = dir.join("front");
    let mut conf = Conf::http(&[backend.addr]);
    conf = conf.tables(&format!("[[listen]]\nbind = \"unix:{}\"\n", path.display()));
    let mut proxy = conf.start();
    assert_eq!(proxy.addrs()[1], Addr::Unix(path.clone()));
    let orphans = proxy.workers();
    let mut asked = None;
    kill_at(Instant::Accepted, proxy.pid, || {
        asked = Some(thread::spawn(move || get(&Addr::Unix(path), "/unix").fields.get("x-target").map(str::to_owned)));
    });
    assert_eq!(asked.unwrap().join().unwrap().as_deref(), Some("/unix"));
    proxy.master_ends(&orphans);
    wait_gone_after_next(&proxy, &orphans);

    let mut proxy = Conf::http(&[backend.addr]).launch().replace("127.0.0.1:0", "0.0.0.0:0").start();
    let orphans = proxy.workers();
    let addr = Addr::Inet(([127, 0, 0, 1], proxy.addr().inet().port()).into());
    let mut asked = None;
    kill_at(Instant::Accepted, proxy.pid, || {
        asked = Some(thread::spawn(move || get(&addr, "/all").fields.get("x-target").map(str::to_owned)));
    });
    assert_eq!(asked.unwrap().join().unwrap().as_deref(), Some("/all"));
    proxy.master_ends(&orphans);
    wait_gone_after_next(&proxy, &orphans);
}

#[test]
fn both_families_of_one_port_keep_their_listeners() {
    let (four, six) = (Backend::named("four"), Backend::named("six"));
    let conf = |port: u16| {
        format!(
            "[[listen]]\nbind = \"[::]:{port}\"\nto = \"six\"\n[[listen]]\nbind = \"0.0.0.0:{port}\"\nto = \"four\"\n\
             [backends.six]\nservers = [\"{}\"]\n[backends.four]\nservers = [\"{}\"]",
            six.addr, four.addr
        )
    };
    // A port that both have free: that of a listener on all addresses which is closed again.
    let port = std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let mut proxy = Launch::config(&conf(port)).start();
    let orphans = proxy.workers();
    let mut asked = None;
    kill_at(Instant::Accepted, proxy.pid, || {
        asked = Some(thread::spawn(move || get(&Addr::Inet(([127, 0, 0, 1], port).into()), "/").text()));
    });
    assert_eq!(asked.unwrap().join().unwrap(), "four");
    proxy.master_ends(&orphans);
    wait_gone_after_next(&proxy, &orphans);
}

#[test]
fn without_a_control_socket_one_in_hand_is_served_too() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).top("control = \"off\"").start();
    let (addr, orphans) = (proxy.addr().clone(), proxy.workers());
    let mut asked = None;
    kill_at(Instant::Sending, proxy.pid, || {
        asked = Some(thread::spawn(move || get(&addr, "/last").fields.get("x-target").map(str::to_owned)));
    });
    assert_eq!(asked.unwrap().join().unwrap().as_deref(), Some("/last"));
    proxy.master_ends(&orphans);
    wait_gone(&orphans);
}

#[test]
fn idle_connections_that_a_worker_has_just_given_back_go_to_others() {
    let backend = Backend::echo();
    for given_back in 1..4 {
        let mut proxy = Conf::http(&[backend.addr]).launch().workers(2).start();
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/a").fields.get("x-target"), Some("/a")));
        let orphans = proxy.workers();
        // It looks at each of the four in turn, with the one before in hand.
        let mut looked_at = 0;
        kill_when(
            proxy.pid,
            || proxy.signal(Signal::SIGTTOU),
            |call| {
                looked_at += usize::from(*call == Call::Begins(GETSOCKOPT));
                looked_at > given_back
            },
        );
        proxy.master_ends(&orphans);
        // Those it had not looked at wait for it with the worker that gave them back.
        let next = proxy.again();
        wait_gone(&orphans);
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/c").fields.get("x-target"), Some("/c")));
        assert_eq!(connections(&next), clients.len());
    }
}

#[test]
fn connections_that_a_master_is_just_given_by_orphans_are_not_taken_for_new_ones() {
    let backend = Backend::tcp_echo();
    let mut proxy = Conf::tcp(&[backend.addr]).start();
    let mut relayed: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
    relayed.iter_mut().for_each(|client| client.echo(b'a'));
    let mut orphans = proxy.kill_master();
    // Each is killed with the first of them just received.
    for _ in 0..4 {
        let mut master = proxy.launch().begin();
        let pid = Pid::from_raw(master.id().cast_signed());
        let mut received = 0;
        let started = || wait_until("it has begun", || std::fs::read(format!("/proc/{pid}/cmdline")).unwrap() != b"");
        kill_when(pid, started, |call| {
            received += u32::from(matches!(call, Call::Ended(RECVMSG, bytes) if *bytes > CONNECTIONS));
            received == 1
        });
        let status = master.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{status}");
    }
    let next = proxy.again();
    orphans.retain(|&pid| alive(pid));
    wait_gone(&orphans);
    relayed.iter_mut().for_each(|client| client.echo(b'b'));
    assert_eq!(backend.connections(), 8);
    next.stop();
}

#[test]
fn a_heir_that_is_stopped_holds_up_nobody_for_long() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().own_group().start();
    let heir = wait_for("an heir", || heir(proxy.pid));
    kill(heir, Signal::SIGSTOP).unwrap();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/a").fields.get("x-target"), Some("/a"));
    let orphans = proxy.kill_master();
    assert_eq!(client.get("/b").fields.get("x-target"), Some("/b"));
    assert_eq!(get(proxy.addr(), "/new").fields.get("x-target"), Some("/new"));
    let next = proxy.again();
    wait_gone(&orphans);
    assert_eq!(client.get("/c").fields.get("x-target"), Some("/c"));
    kill(heir, Signal::SIGCONT).unwrap();
    wait_gone(&[heir]);
    assert_eq!(client.get("/d").fields.get("x-target"), Some("/d"));
    assert_eq!(connections(&next), 1);
}

/// Another master takes over from those, so that none is left of the test.
fn wait_gone_after_next(proxy: &Proxy, orphans: &[Pid]) {
    let _next = proxy.again();
    wait_gone(orphans);
}

/// The heir of this master, which leads its group of processes.
fn heir(master: Pid) -> Option<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    pids.find(|&pid| {
        let is_heir =
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"master heir\0"));
        is_heir && alive(pid) && getpgid(Some(pid)) == Ok(master)
    })
}

#[test]
fn the_heir_is_followed_by_another_and_is_gone_when_the_master_is() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().own_group().start();
    let master = proxy.pid;
    let first = wait_for("an heir", || heir(master));
    kill(first, Signal::SIGKILL).unwrap();
    let second = wait_for("another heir", || heir(master).filter(|&heir| heir != first));
    // What is for the whole group is for the master to obey.
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGTERM] {
        kill(second, signal).unwrap();
    }
    assert_eq!(get(proxy.addr(), "/").status, 200);
    assert!(alive(second));
    let orphans = proxy.kill_master();
    wait_gone(&[second]);
    let next = proxy.again();
    wait_gone(&orphans);
    let (master, third) = (next.pid, wait_for("the next master's heir", || heir(next.pid)));
    next.stop();
    wait_gone(&[third]);
    assert_eq!(heir(master), None);
}

#[test]
fn listeners_that_a_killed_master_had_begun_to_end_are_bound_anew() {
    let backend = Backend::ok();
    // None of its listeners, the first, both.
    for ended in 0..3 {
        let conf = Conf::http(&[backend.addr]).top("control = \"unix:{dir}/control\"");
        let mut proxy = conf.tables("[[listen]]\nbind = \"unix:{dir}/front\"\n").start();
        let orphans = proxy.workers();
        let mut calls = 0;
        kill_when(
            proxy.pid,
            || proxy.signal(Signal::SIGTERM),
            |call| {
                calls += usize::from(matches!(call, Call::Ended(SHUTDOWN, 0)));
                calls == ended
            },
        );
        proxy.master_ends(&orphans);
        let next = proxy.again();
        wait_gone(&orphans);
        for addr in next.addrs() {
            assert_eq!(get(addr, "/").status, 200, "{addr:?}, {ended} of them ended");
        }
    }
}

#[test]
fn no_request_of_a_load_of_new_connections_is_lost_with_a_master() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(2).start();
    let load = Load::start(proxy.addr(), 8, true);
    for _ in 0..12 {
        load.flow();
        let orphans = proxy.kill_master();
        load.flow();
        proxy = proxy.again();
        wait_gone(&orphans);
    }
    assert!(load.finish() > 24);
}

#[test]
fn the_address_is_free_for_the_next_when_all_have_been_killed_at_once() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let port = proxy.addr().inet().port();
    for _ in 0..10 {
        let workers = proxy.workers();
        proxy.kill_master();
        workers.iter().for_each(|&pid| kill(pid, Signal::SIGKILL).unwrap());
        proxy = Conf::http(&[backend.addr]).launch().replace("127.0.0.1:0", &format!("127.0.0.1:{port}")).start();
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
}
