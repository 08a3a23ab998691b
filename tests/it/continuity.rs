//! Byte relays whose worker is killed: they go on, byte-exact, half-closed ones included.

use crate::common::backend::Backend;
use crate::common::conf::Conf;
use crate::common::h1::Broken;
use crate::common::processes::{alive, kill_all, replace_all};
use crate::common::proxy::{Launch, Proxy};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::common::client::{Client, End};
use crate::common::streams::{receive, reversing, send, tunnel, upgrading};
use crate::common::{DEADLINE, check_pattern, pattern, pattern_bytes, wait_for, wait_until};

/// Workers that take turns in being killed.
const WORKERS: usize = 4;

/// Pushes the pattern through an echo and kills a worker each time another part of it has come back.
fn echo_under_kills(proxy: &mut Proxy, clients: Vec<TcpStream>, length: u64, kills: u64) {
    let counts: Vec<Arc<AtomicU64>> = clients.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
    let threads: Vec<_> = clients
        .into_iter()
        .zip(&counts)
        .map(|(stream, count)| {
            let count = Arc::clone(count);
            thread::spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| send(&stream, length, &AtomicU64::new(0)));
                    receive(&stream, &count);
                });
                count.load(Ordering::SeqCst)
            })
        })
        .collect();
    for round in 1..=kills {
        wait_until("bytes flow", || {
            counts.iter().zip(&threads).all(|(count, thread)| {
                count.load(Ordering::SeqCst) >= length * round / (kills + 1) || thread.is_finished()
            })
        });
        // One after the other: quick deaths of the same worker would be waited out.
        // While others are being started there may be none.
        let workers = wait_for("a worker runs", || Some(proxy.workers()).filter(|workers| !workers.is_empty()));
        let victim = workers[usize::try_from(round).unwrap() % workers.len()];
        kill(victim, Signal::SIGKILL).unwrap();
        wait_until("it is dead", || !alive(victim));
    }
    proxy.wait_for_workers(WORKERS);
    for thread in threads {
        assert_eq!(thread.join().unwrap(), length);
    }
}

#[test]
fn idle_relays_survive_the_death_of_every_worker() {
    let backend = Backend::tcp_echo();
    let mut proxy = Launch::tcp(&[backend.addr]).workers(2).start();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
    for round in 0..3 {
        for client in &mut clients {
            client.send(format!("round {round}"));
            client.wire.begin();
            assert_eq!(client.wire.take(7).unwrap(), format!("round {round}").as_bytes());
        }
        replace_all(&mut proxy, 2);
    }
    for mut client in clients {
        client.send("end");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"end".to_vec(), End::Clean));
    }
    assert_eq!(backend.connections(), 20, "a relay was connected again");
}

#[test]
fn busy_relays_lose_no_byte() {
    let backend = Backend::tcp_echo();
    let mut proxy = Launch::tcp(&[backend.addr]).workers(WORKERS).start();
    let clients = (0..8).map(|_| TcpStream::connect(proxy.addr().inet()).unwrap()).collect();
    echo_under_kills(&mut proxy, clients, 16 << 20, 12);
    assert_eq!(backend.connections(), 8, "a relay was connected again");
}

#[test]
fn half_closed_relays_survive() {
    // The backend answers only when the gate opens, long after the client has closed its sending side.
    let backend = reversing();
    let mut proxy = Launch::tcp(&[backend.addr]).workers(2).start();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send("abc");
        client.shutdown_write();
    }
    wait_until("every relay stands", || backend.open() == 6);
    replace_all(&mut proxy, 2);
    replace_all(&mut proxy, 2);
    backend.gate().open();
    for client in &mut clients {
        assert_eq!(client.read_to_end(), (b"cba".to_vec(), End::Clean));
    }
}

#[test]
fn relay_closed_by_the_backend_while_no_worker_ran_ends() {
    let backend = Backend::serve(|conn| {
        conn.send(b"last words");
        conn.gate().pass();
    });
    let proxy = Launch::tcp(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.wire.begin();
    assert_eq!(client.wire.take(10).unwrap(), b"last words");
    kill_all(&proxy);
    backend.gate().open();
    client.shutdown_write();
    client.end();
    wait_until("both sides are closed", || backend.open() == 0);
}

#[test]
fn bytes_sent_while_the_worker_is_stopped_and_killed_arrive() {
    let backend = Backend::tcp_echo();
    let proxy = Launch::tcp(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send("x");
    client.wire.begin();
    assert_eq!(client.wire.take(1).unwrap(), b"x");
    let worker = proxy.workers()[0];
    kill(worker, Signal::SIGSTOP).unwrap();
    client.send("sent to nobody");
    client.shutdown_write();
    kill(worker, Signal::SIGKILL).unwrap();
    assert_eq!(client.read_to_end(), (b"sent to nobody".to_vec(), End::Clean));
}

#[test]
fn tunnels_after_an_upgrade_lose_no_byte() {
    let backend = upgrading();
    let mut proxy = Launch::http(&[backend.addr]).workers(WORKERS).start();
    let clients = (0..8).map(|_| tunnel(&proxy)).collect();
    echo_under_kills(&mut proxy, clients, 8 << 20, 8);
    assert_eq!(backend.connections(), 8);
}

#[test]
fn downloads_that_fail_cost_no_pipe() {
    // More of them than a worker has pipes; half are cut by the server, half by the client.
    let length = 400_000;
    let downloads = Backend::serve(move |conn| {
        let Some(request) = conn.request() else { return };
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes());
        let cut = request.target == "/cut";
        conn.send(&pattern_bytes(if cut { length / 2 } else { length }));
        conn.forget_requests();
    });
    let streams = Backend::serve(|conn| {
        conn.send(&pattern_bytes(STREAM));
        let _ = conn.wire.stream.shutdown(Shutdown::Write);
        conn.hang();
    });
    let tcp = format!(
        "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"streams\"\n\
         [backends.streams]\nservers = [\"{}\"]",
        streams.addr
    );
    let conf = Conf::http(&[downloads.addr]).group("health = { failures = 0 }").tables(&tcp);
    let mut proxy = conf.launch().workers(1).start();
    for number in 0..2 * (usize::from(ipc::state::MAX_PIPES) + 20) {
        let mut client = Client::connect(proxy.addr());
        if number % 2 == 0 {
            client.send("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(client.try_response().is_err());
        } else {
            client.send("GET /whole HTTP/1.1\r\nHost: a\r\n\r\n");
            client.wire.begin();
            client.wire.response_head().unwrap();
            client.reset();
        }
    }
    // Bytes that a client does not read lie in a pipe, not in the worker's memory: the relay goes on.
    let mut client = Client::connect_narrow(&proxy.addrs()[1]);
    wait_until("the relay stands", || streams.open() == 1);
    client.wire.begin();
    assert_eq!(client.wire.take(10).unwrap(), pattern(0, 10));
    replace_all(&mut proxy, 1);
    client.shutdown_write();
    let (rest, end) = client.read_to_end();
    check_pattern(10, &rest);
    assert_eq!((rest.len(), end), (STREAM - 10, End::Clean));
}

/// Far more than the sockets between two programs hold.
const STREAM: usize = 24 << 20;

#[test]
fn relays_that_survived_leave_no_descriptor_behind() {
    let backend = Backend::tcp_echo();
    let mut proxy = Launch::tcp(&[backend.addr]).workers(2).start();
    let round = |proxy: &mut Proxy| {
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
        for client in &mut clients {
            client.send("x");
            client.wire.begin();
            assert_eq!(client.wire.take(1).unwrap(), b"x");
        }
        replace_all(proxy, 2);
        for mut client in clients {
            client.send("y");
            client.shutdown_write();
            assert_eq!(client.read_to_end(), (b"y".to_vec(), End::Clean));
        }
        wait_until("every relay has ended", || backend.open() == 0);
    };
    round(&mut proxy);
    let before = proxy.descriptors();
    for _ in 0..2 {
        round(&mut proxy);
    }
    // Pipes are kept for later relays.
    proxy.assert_no_leaks(&before, 8);
}

#[test]
fn a_tunnel_waits_until_the_master_has_room_for_what_protects_it() {
    const MOST: usize = 600;
    let backend = upgrading();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let clients: Vec<Client> = (0..MOST).map(|_| Client::connect(proxy.addr())).collect();
    // Whoever answers a question has passed on what it accepted.
    wait_until("the worker has them", || {
        String::from_utf8_lossy(&proxy.question("status").stdout).contains(&format!("  {MOST}  "))
    });
    proxy.signal(Signal::SIGSTOP);
    // Each tells the master something, until the channel is full.
    let mut tunnels = Vec::new();
    let mut waiting = None;
    for mut client in clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        client.patience(Duration::from_millis(500));
        match client.try_response() {
            Ok(response) => assert_eq!(response.status, 101),
            Err(Broken::Late(_)) => {
                waiting = Some(client);
                break;
            }
            Err(broken) => panic!("{broken:?}"),
        }
        client.patience(DEADLINE);
        tunnels.push(client);
    }
    proxy.signal(Signal::SIGCONT);
    let mut client = waiting.unwrap_or_else(|| panic!("{} tunnels do not fill the channel", tunnels.len()));
    client.patience(DEADLINE);
    assert_eq!(client.response().status, 101);
    tunnels.push(client);
    replace_all(&mut proxy, 1);
    for client in &mut tunnels {
        client.send("still");
        client.wire.begin();
        assert_eq!(client.wire.take(5).unwrap(), b"still");
    }
}
