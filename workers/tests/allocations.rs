//! A worker under a steady load allocates nothing: not for a request, not for bytes relayed.
//!
//! The whole worker runs in a thread of its own, whose allocations are counted from its beginning to its end, with
//! this test in the master's place. A run with many turns must not need more than one with few. The bound is not zero
//! because tables and buffers grow to their final size at moments that depend on timing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use ipc::message::{Passed, Task, ToWorker};
use ipc::origin::Origin;
use ipc::snapshot::{
    Address, Balance, Group, Health, HostMatch, KeepAlive, LogTarget, Mode, PathMatch, Route, Server, Snapshot,
    TimeoutOverrides,
};

use crate::common::PATIENCE;

mod common;

/// Clients at a time.
const CLIENTS: usize = 4;
/// Turns of each client in the shorter run.
const FEW: usize = 200;
/// And in the longer one.
const MANY: usize = 2200;
/// A longer run may need so many allocations more, for all clients together: far fewer than one in a hundred turns.
const SLACK: u64 = 16;

/// What the clients do.
#[derive(Debug, Clone, Copy)]
struct Load {
    mode: Mode,
    /// What a client sends in each turn.
    request: &'static [u8],
    /// What the server answers to each request, whatever it is.
    response: &'static [u8],
    /// Whether there is an access log.
    logged: bool,
}

fn snapshot(server: SocketAddr, load: Load) -> Snapshot {
    let listener = common::listener(load.mode, (load.mode == Mode::Tcp).then_some(0));
    let group = Group {
        name: "group".to_owned(),
        balance: Balance::RoundRobin,
        servers: vec![Server {
            number: 1,
            name: server.to_string(),
            address: Address::Inet(server),
            weight: 1,
            backup: false,
        }],
        names: Vec::new(),
        timeouts: TimeoutOverrides::default(),
        tries: 2,
        keepalive: KeepAlive { idle_per_server: 64, idle_timeout_ms: 60_000, max_per_server: None },
        health: Health { failures: 3, eject_ms: 1000, eject_max_ms: 1000 },
        worker_header: true,
        send_proxy: None,
        removed: false,
    };
    let mut snapshot = common::snapshot(listener);
    snapshot.routes = vec![Route { host: HostMatch::Any, path: PathMatch::Prefix("/".to_owned()), to: 0 }];
    snapshot.groups = vec![group];
    if load.logged {
        snapshot.access_log.to = LogTarget::File(PathBuf::from("/dev/null"));
    }
    snapshot
}

/// Answers every request on every connection.
fn serve(listener: &TcpListener, load: Load) {
    for stream in listener.incoming().take(CLIENTS) {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            let mut length = 0;
            while let Ok(n @ 1..) = stream.read(&mut buffer[length..]) {
                length += n;
                // An HTTP request grows on its way, and ends with an empty line; relayed bytes come as they are.
                let whole = match load.mode {
                    Mode::Http => buffer[..length].ends_with(b"\r\n\r\n"),
                    Mode::Tcp | Mode::Forward => length == load.request.len(),
                };
                if whole {
                    length = 0;
                    stream.write_all(load.response).unwrap();
                }
            }
        });
    }
}

/// Has a worker serve [`CLIENTS`] clients with `turns` turns each; how many allocations it made, ever.
fn allocations(load: Load, turns: usize) -> u64 {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = backend.local_addr().unwrap();
    std::thread::spawn(move || serve(&backend, load));

    let log = load.logged.then(|| OwnedFd::from(std::fs::File::options().append(true).open("/dev/null").unwrap()));
    let (mut channel, worker) = common::start(&snapshot(server, load), log.as_ref().map(AsFd::as_fd), |theirs| {
        let mut outcome = ExitCode::FAILURE;
        let counted = allocation_counter::measure(|| outcome = workers::run(theirs, 0));
        assert_eq!(format!("{outcome:?}"), format!("{:?}", ExitCode::SUCCESS));
        counted.count_total
    });

    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|id| {
            let client = TcpStream::connect(front.local_addr().unwrap()).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let (socket, peer) = front.accept().unwrap();
            socket.set_nonblocking(true).unwrap();
            let passed = Passed {
                id: u32::try_from(id).unwrap(),
                listener: 0,
                peer: Some(peer),
                origin: Origin::Direct,
                task: Task::Serve,
                kept: true,
            };
            channel.send(&ToWorker::Pass(vec![passed]), &[socket.as_fd()]).unwrap();
            client
        })
        .map(|client| std::thread::spawn(move || take_turns(client, load, turns)))
        .collect();
    // They stay open to the end, so that the worker's end is the same whatever came before.
    let clients: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    channel.send(&ToWorker::Stop, &[]).unwrap();
    let counted = worker.join().unwrap();
    drop(clients);
    counted
}

fn take_turns(mut client: TcpStream, load: Load, turns: usize) -> TcpStream {
    let end = &load.response[load.response.len() - 5..];
    let mut answer = vec![0; 64 * 1024];
    for _ in 0..turns {
        client.write_all(load.request).unwrap();
        let mut length = 0;
        // A response's head grows on its way, its end does not change.
        while length < load.response.len() || !answer[..length].ends_with(end) {
            let n = client.read(&mut answer[length..]).unwrap();
            assert!(n > 0, "closed");
            length += n;
        }
        assert!(load.mode == Mode::Tcp || answer.starts_with(b"HTTP/1.1 200 "));
    }
    client
}

fn assert_steady(load: Load) {
    let few = allocations(load, FEW);
    let many = allocations(load, MANY);
    let turns = CLIENTS * (MANY - FEW);
    assert!(many <= few + SLACK, "{few} allocations, and {many} with {turns} more turns: {load:?}");
}

const GET: &[u8] = b"GET /path?query HTTP/1.1\r\nHost: example.com\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Type: text/plain\r\n\r\nend of body\n";

#[test]
fn keep_alive_requests() {
    assert_steady(Load { mode: Mode::Http, request: GET, response: OK, logged: false });
}

#[test]
fn keep_alive_requests_with_an_access_log() {
    assert_steady(Load { mode: Mode::Http, request: GET, response: OK, logged: true });
}

#[test]
fn chunked_responses() {
    let response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\nend of body\n\r\n0\r\n\r\n";
    assert_steady(Load { mode: Mode::Http, request: GET, response, logged: false });
}

#[test]
fn relayed_bytes() {
    assert_steady(Load { mode: Mode::Tcp, request: &[b'q'; 100], response: &[b'a'; 1000], logged: false });
}
