//! Masters are killed at random instants under a load of new connections: nobody notices, not even those whom a master
//! has accepted and not yet sent to a worker at that moment.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::Client;
use crate::common::conf::Conf;
use crate::common::processes::wait_gone;
use crate::common::rng::{Rng, Seed};
use crate::common::{DEADLINE, wait_until};

/// Masters killed; the variable sets another number.
const KILLS: u64 = 40;
const CLIENTS: u64 = 8;

/// One connection with one request: whether it was answered. Without a byte of an answer it is lost.
///
/// # Panics
/// When it is refused, answered in part, or not at all within the deadline.
fn ask(addr: SocketAddr, target: &str) -> bool {
    let mut stream = TcpStream::connect(addr).expect("no connection is refused");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let sent = stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes());
    let mut answer = Vec::new();
    let read = sent.and_then(|()| stream.read_to_end(&mut answer));
    if answer.is_empty() {
        let wrong = read.err().filter(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(wrong.is_none(), "{target} is never answered");
        return false;
    }
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{target}: {answer}");
    assert!(answer.contains(&format!("x-target: {target}\r\n")), "{target}: {answer}");
    true
}

/// Accepted connections on `port` that nobody has ended, by their inodes: those that wait to be accepted have none.
fn accepted(port: u16) -> HashSet<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = rows.filter(|row| row[1].ends_with(&local) && row[3] == "01" && row[9] != "0");
    established.map(|row| format!("socket:[{}]", row[9])).collect()
}

/// What a process has open.
fn open(pid: Pid) -> HashSet<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.filter_map(|entry| Some(std::fs::read_link(entry.ok()?.path()).ok()?.to_str()?.to_owned())).collect()
}

/// Descriptors on their way to a worker.
fn under_way(worker: Pid) -> u64 {
    let entries = std::fs::read_dir(format!("/proc/{worker}/fdinfo")).unwrap();
    // A connection may be closed meanwhile.
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    let counts: Vec<u64> = texts
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("scm_fds:")?.trim().parse().ok()))
        .collect();
    assert!(!counts.is_empty(), "the kernel counts them");
    counts.iter().sum()
}

/// How many connections a master that has been stopped has accepted and not sent to any of its workers.
fn in_hand(port: u16, master: Pid, workers: &[Pid]) -> u64 {
    wait_until("the master is stopped", || {
        std::fs::read_to_string(format!("/proc/{master}/stat")).unwrap().contains(") T ")
    });
    wait_until("the workers have taken up what was sent", || workers.iter().all(|&worker| under_way(worker) == 0));
    let before = accepted(port);
    let theirs: HashSet<String> = workers.iter().flat_map(|&worker| open(worker)).collect();
    let after = accepted(port);
    before.intersection(&after).filter(|&socket| !theirs.contains(socket)).count() as u64
}

#[test]
fn a_killed_master_loses_no_connection() {
    let kills = std::env::var("KILLS").map_or(KILLS, |count| count.parse().expect("KILLS is a number"));
    let seed = Seed::new();
    let mut rng = Rng::new(seed.0);
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let addr = proxy.addr().inet();
    let (answered, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let threads: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
            thread::spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let target = format!("/{client}/{number}");
                    assert!(ask(addr, &target), "{target} was lost");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let served = || answered.load(Ordering::SeqCst);
    // A client that has lost a connection ends, and the test does at its end.
    let flow = || {
        let before = served();
        let is_over = || threads.iter().any(thread::JoinHandle::is_finished);
        wait_until("connections are served", || served() > before + 50 || is_over());
    };
    let (mut held, mut with_any, mut most) = (0, 0, 0);
    for _ in 0..kills {
        flow();
        thread::park_timeout(rng.pause(2000).max(Duration::from_micros(1)));
        kill(proxy.pid, Signal::SIGSTOP).unwrap();
        let now = in_hand(addr.port(), proxy.pid, &proxy.workers());
        (held, with_any, most) = (held + now, with_any + u64::from(now > 0), most.max(now));
        let orphans = proxy.kill_master();
        let next = proxy.again();
        wait_gone(&orphans);
        proxy.check_log();
        proxy = next;
    }
    flow();
    stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().unwrap();
    }
    eprintln!(
        "{kills} masters killed, {} connections served: {with_any} masters had {held} connections in their hands, \
         {most} at most, and none was lost",
        served()
    );
}

#[test]
fn what_was_sent_to_a_worker_is_served_by_it_though_the_master_has_died() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let addr = proxy.addr().inet();
    let workers = proxy.workers();
    for &worker in &workers {
        kill(worker, Signal::SIGSTOP).unwrap();
    }
    let clients: Vec<_> = (0..20).map(|client| thread::spawn(move || ask(addr, &format!("/{client}")))).collect();
    wait_until("some are on their way", || workers.iter().all(|&worker| under_way(worker) >= 5));
    let orphans = proxy.kill_master();
    for &worker in &workers {
        assert!(under_way(worker) >= 5);
        kill(worker, Signal::SIGCONT).unwrap();
    }
    // What is still in the kernel's queue is for this one.
    let _next = proxy.again();
    for client in clients {
        assert!(client.join().unwrap(), "one was lost");
    }
    wait_gone(&orphans);
}

#[test]
fn when_every_process_dies_at_once_what_is_missing_shows() {
    // Nothing but the end of the connection ends these: an answer to HTTP/1.0, and a relay.
    let endless = Backend::serve(|conn| {
        conn.request();
        conn.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nnot all of it");
        conn.hang();
    });
    let conf = Conf::http(&[endless.addr]);
    for conf in [conf, Conf::tcp(&[endless.addr])] {
        let mut proxy = conf.start();
        let mut client = Client::connect(proxy.addr());
        client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
        let mut stream = client.wire.stream.try_clone().unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"not all of it") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        for worker in proxy.kill_master() {
            kill(worker, Signal::SIGKILL).unwrap();
        }
        let end = stream.read(&mut [0; 64]).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    }
}
