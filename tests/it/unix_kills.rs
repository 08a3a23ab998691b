//! Clients of a Unix socket whose worker is killed. The kernel counts no bytes there: what is between two requests goes
//! on, what is not certain is cut, and nothing is answered wrongly or twice.

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

use crate::common::backend::{Act, Backend, response};
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::processes::{alive, is_in_state, replace_all, stop};
use crate::common::proxy::{Addr, Proxy};
use crate::common::rng::{Rng, Seed};
use crate::common::streams::upgrading;
use crate::common::{DEADLINE, TempDir, wait_for, wait_until};

fn conf(backend: &Backend) -> Conf {
    Conf::http(&[backend.addr]).listen("bind = \"unix:{dir}/web.sock\"")
}

fn path(proxy: &Proxy) -> PathBuf {
    match proxy.addr() {
        Addr::Unix(path) => path.clone(),
        Addr::Inet(addr) => panic!("{addr}"),
    }
}

/// Whether a process waits for something.
fn sleeps(pid: Pid) -> bool {
    is_in_state(pid, 'S')
}

#[test]
fn idle_connections_survive_the_death_of_every_worker() {
    let backend = Backend::echo();
    let mut proxy = conf(&backend).start();
    let mut fresh: Vec<Client> = (0..5).map(|_| Client::connect(proxy.addr())).collect();
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
    for round in 0..4 {
        for client in &mut idle {
            let target = format!("/{round}");
            assert_eq!(client.get(&target).fields.get("x-target"), Some(target.as_str()));
        }
        // Whoever sleeps behind an answer has done with all that belongs to it.
        wait_until("the workers rest", || proxy.workers().into_iter().all(sleeps));
        replace_all(&mut proxy, 2);
    }
    for client in idle.iter_mut().chain(&mut fresh) {
        assert_eq!(client.get("/last").status, 200);
    }
}

#[test]
fn what_is_under_way_is_cut() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            if request.target == "/held" {
                conn.gate().pass();
            }
            conn.send(&response("ok"));
        }
    });
    let mut proxy = conf(&backend).start();
    let mut held: Vec<Client> = (0..4).map(|_| Client::connect(proxy.addr())).collect();
    let mut halves: Vec<Client> = (0..4).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut held {
        client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    for client in &mut halves {
        // A first request, so that the half of the second is known to have been read.
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /half HT");
        assert_eq!(client.response().status, 200);
    }
    wait_until("the requests are at the backend", || backend.heads() == 8);
    replace_all(&mut proxy, 2);
    backend.gate().open();
    for client in held.iter_mut().chain(&mut halves) {
        assert_eq!(client.end(), End::Clean);
    }
    assert_eq!(backend.requests().len(), 8, "a request was run twice");
}

#[test]
fn an_answer_in_progress_is_cut_and_not_begun_again() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n0123456789"),
        Act::Gate,
        Act::Hang,
    ]);
    let mut proxy = conf(&backend).start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.wire.begin();
    client.wire.response_head().unwrap();
    assert_eq!(client.wire.take(10).unwrap(), b"0123456789");
    replace_all(&mut proxy, 2);
    assert!(client.read_to_end().0.is_empty());
    backend.gate().open();
    assert_eq!(backend.heads(), 1);
}

#[test]
fn tunnels_and_relays_go_on() {
    let (upgraded, echoing) = (upgrading(), Backend::tcp_echo());
    let tcp = format!(
        "[[listen]]\nbind = \"unix:{{dir}}/tcp.sock\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\nservers = [\"{}\"]",
        echoing.addr
    );
    let mut proxy = conf(&upgraded).tables(&tcp).start();
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        assert_eq!(response.status, 101);
    }
    clients.extend((0..5).map(|_| Client::connect(&proxy.addrs()[1])));
    for _ in 0..3 {
        for client in &mut clients {
            client.send("there");
            client.wire.begin();
            assert_eq!(client.wire.take(5).unwrap(), b"there");
        }
        replace_all(&mut proxy, 2);
    }
    assert_eq!((upgraded.connections(), echoing.connections()), (5, 5));
}

/// Sends `bytes` and a descriptor with them: one read brings no more than that.
fn send_with_descriptor(stream: &UnixStream, bytes: &[u8]) {
    let file = std::fs::File::open("/dev/null").unwrap();
    let rights = [ControlMessage::ScmRights(&[file.as_raw_fd()])];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(bytes.len()));
}

#[test]
fn what_comes_with_descriptors_is_read_to_its_end_by_every_worker() {
    let place = TempDir::new();
    let server = UnixListener::bind(place.join("server.sock")).unwrap();
    let conf = Conf::tcp(&[]).server(format!("\"unix:{}\"", place.join("server.sock").display()));
    let mut proxy = conf.launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send("x");
    let mut stream = server.accept().unwrap().0;
    // The second time by a worker that has taken over from another.
    for _ in 0..2 {
        stream.read_exact(&mut [0]).unwrap();
        let worker = proxy.workers()[0];
        stop(worker);
        // Both are there before it looks.
        send_with_descriptor(&stream, b"a");
        send_with_descriptor(&stream, b"b");
        kill(worker, Signal::SIGCONT).unwrap();
        client.wire.begin();
        assert_eq!(client.wire.take(2).unwrap(), b"ab");
        replace_all(&mut proxy, 1);
        client.send("x");
    }
}

#[test]
fn a_proxy_header_is_awaited_told_or_the_connection_is_cut() {
    let backend = Backend::answering(|request| response(request.fields.get("x-forwarded-for").unwrap_or("nothing")));
    let mut proxy = conf(&backend).listen("proxy_protocol = { from = [\"unix\"] }").start();
    let header = "PROXY TCP4 192.0.2.7 192.0.2.8 7 8\r\n";
    let mut told = Client::connect(proxy.addr());
    assert_eq!(told.ask(format!("{header}GET / HTTP/1.1\r\nHost: a\r\n\r\n")).text(), "192.0.2.7");
    let mut awaited = Client::connect(proxy.addr());
    awaited.send(&header[..20]);
    let mut silent = Client::connect(proxy.addr());
    silent.send(header);
    wait_until("it is with a worker", || {
        let output = proxy.question("status");
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("ready")).count() == 2
    });
    for _ in 0..2 {
        replace_all(&mut proxy, 2);
    }
    assert_eq!(told.get("/").text(), "192.0.2.7");
    awaited.send(&header[20..]);
    assert_eq!(awaited.get("/").text(), "192.0.2.7");
    assert_eq!(silent.get("/").text(), "192.0.2.7");
}

/// Requests on one connection until it is cut: whether the answers were the right ones.
fn converse(path: &PathBuf, client: u64, numbers: &AtomicU64, stop: &AtomicBool) -> u64 {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        let target = format!("/{client}/{}", numbers.fetch_add(1, Ordering::SeqCst));
        let method = if answered % 3 == 0 { "POST" } else { "GET" };
        let head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        if stream.write_all(head.as_bytes()).is_err() {
            return answered;
        }
        let wanted = format!("HTTP/1.1 200 OK|{target}");
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => return answered,
                Err(error) => {
                    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{target} is never answered");
                    return answered;
                }
                Ok(count) => text.extend_from_slice(&piece[..count]),
            }
            let text = String::from_utf8_lossy(&text);
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && body.len() >= target.len()
            {
                let status = head.lines().next().unwrap_or_default();
                if status.contains("502") {
                    break;
                }
                assert_eq!(format!("{status}|{body}"), wanted);
                answered += 1;
                break;
            }
            assert!(!text.contains(" 502 ") || text.len() < 4096);
            if text.contains(" 502 ") {
                return answered;
            }
        }
    }
    answered
}

#[test]
fn kills_at_any_instant_make_no_answer_wrong_and_no_request_run_twice() {
    let seed = Seed::new();
    let mut rng = Rng::new(seed.0);
    // A worker that dies quickly too often is waited out: another master begins anew.
    for _ in 0..4 {
        kill_under_load(&mut rng);
    }
}

fn kill_under_load(rng: &mut Rng) {
    let backend = Backend::answering(|request| response(&request.target));
    let mut proxy = conf(&backend).launch().workers(3).start();
    let (path, stop) = (path(&proxy), Arc::<AtomicBool>::default());
    let numbers = Arc::<AtomicU64>::default();
    let answered = Arc::<AtomicU64>::default();
    let threads: Vec<_> = (0..6)
        .map(|client| {
            let (path, stop, numbers, answered) =
                (path.clone(), Arc::clone(&stop), Arc::clone(&numbers), Arc::clone(&answered));
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    answered.fetch_add(converse(&path, client, &numbers, &stop), Ordering::SeqCst);
                }
            })
        })
        .collect();
    for round in 0..11 {
        thread::park_timeout(rng.pause(20_000));
        let workers = wait_for("a worker runs", || Some(proxy.workers()).filter(|workers| !workers.is_empty()));
        let victim = workers[round % workers.len()];
        let _ = kill(victim, Signal::SIGKILL);
        wait_until("it is dead", || !alive(victim));
    }
    proxy.wait_for_workers(3);
    stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(answered.load(Ordering::SeqCst) > 100);
    let mut posts: Vec<String> =
        backend.requests().into_iter().filter(|one| one.method == "POST").map(|one| one.target).collect();
    let count = posts.len();
    posts.sort();
    posts.dedup();
    assert_eq!(posts.len(), count, "an unsafe request was run twice");
}
