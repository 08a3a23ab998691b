//! Peers that want to exhaust the proxy, and days on which everything runs short at once.

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, End, get};
use crate::common::conf::Conf;
use crate::common::processes::{stop, wait_gone};
use crate::common::proxy::{Launch, Proxy};
use crate::common::{dawdle, wait_until};

/// The warnings of the log that have all of `parts`.
fn warnings(proxy: &Proxy, parts: &[&str]) -> usize {
    let all = proxy.log.all();
    all.iter().filter(|line| line.contains("WARN") && parts.iter().all(|part| line.contains(part))).count()
}

#[test]
fn no_warning_at_the_start_without_a_reason() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    assert_eq!(warnings(&proxy, &["open files"]), 0, "{}", proxy.text());
    assert!(proxy.log.find(0, &["room for", "connections in each of 2 workers"]).is_some(), "{}", proxy.text());
}

#[test]
fn a_low_descriptor_limit_is_warned_of() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).descriptors(512, 1024).start();
    assert_eq!(warnings(&proxy, &["the limit of 1024 open files is low"]), 1, "{}", proxy.text());
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 9999");
    let proxy = conf.launch().descriptors(1024, 1024).start();
    assert_eq!(warnings(&proxy, &["instead of the 9999 configured"]), 1, "{}", proxy.text());
}

#[test]
fn the_oldest_idle_connections_give_way_when_all_places_are_taken() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 64");
    let proxy = conf.launch().workers(2).start();
    // Each client asks once and stays idle. Far more than the 128 places are served all the same.
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..300 {
        let mut client = Client::connect(proxy.addr());
        assert_eq!(client.get("/").status, 200);
        clients.push(client);
    }
    // Those that came last are still there, the first are not.
    for client in clients.iter_mut().rev().take(40) {
        assert_eq!(client.get("/").status, 200);
    }
    for client in &mut clients[..120] {
        assert_eq!(client.end(), End::Clean);
    }
    proxy.wait_for_log(&["WARN", "idle longest"]);
    proxy.wait_for_log(&["WARN", "room is short: closed"]);
    assert!(warnings(&proxy, &["room is short"]) < 40, "{}", proxy.text());
}

#[test]
fn clients_that_say_nothing_give_way_too() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 32");
    let mut proxy = conf.launch().workers(1).start();
    let silent: Vec<Client> = (0..80).map(|_| Client::connect(proxy.addr())).collect();
    assert_eq!(Client::connect(proxy.addr()).get("/").status, 200);
    // Without a master, too.
    let orphans = proxy.kill_master();
    let more: Vec<Client> = (0..80).map(|_| Client::connect(proxy.addr())).collect();
    assert_eq!(Client::connect(proxy.addr()).get("/").status, 200);
    let _next = proxy.again();
    wait_gone(&orphans);
    drop((silent, more));
}

#[test]
fn pooled_connections_give_way_before_descriptors_run_out() {
    // Each group in turn leaves 40 idle connections behind: many more than 256 descriptors hold.
    let slow = || {
        Backend::answering(|_| {
            dawdle(Duration::from_millis(100));
            response("ok")
        })
    };
    let backends: Vec<Backend> = (0..8).map(|_| slow()).collect();
    let mut text = "[[listen]]\nbind = \"127.0.0.1:0\"\n".to_owned();
    for (n, backend) in backends.iter().enumerate() {
        text +=
            &format!("[[route]]\npath = \"/{n}\"\nto = \"g{n}\"\n[backends.g{n}]\nservers = [\"{}\"]\n", backend.addr);
    }
    let proxy = Launch::config(&text).workers(1).descriptors(256, 256).start();
    let worker = proxy.workers();
    for n in 0..backends.len() {
        let mut clients: Vec<Client> = (0..40).map(|_| Client::connect(proxy.addr())).collect();
        for client in &mut clients {
            client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    }
    assert_eq!(proxy.workers(), worker, "the worker was replaced\n{}", proxy.text());
    proxy.wait_for_log(&["WARN", "room is short", "idle connections to servers"]);
    assert_eq!(warnings(&proxy, &["failed"]), 0, "a server was blamed\n{}", proxy.text());
}

#[test]
fn requests_in_progress_do_not_give_way() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            if request.target == "/held" {
                conn.gate().pass();
            }
            conn.send(&response("ok"));
        }
    });
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 16");
    let proxy = conf.launch().workers(1).start();
    let mut held: Vec<Client> = (0..12).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut held {
        client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let mut halves: Vec<Client> = (0..3).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut halves {
        client.send("GET /half HT");
    }
    wait_until("all of them are being served", || backend.heads() == 12);
    for _ in 0..4 {
        let mut client = Client::connect(proxy.addr());
        assert_eq!(client.get("/").status, 200);
        std::mem::forget(client);
    }
    backend.gate().open();
    for client in &mut held {
        assert_eq!(client.response().status, 200);
    }
    for client in &mut halves {
        client.send("TP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn a_full_house_of_busy_connections_makes_others_wait_without_spinning() {
    let backend = Backend::serve(|conn| {
        if conn.request().is_some() {
            conn.gate().pass();
            conn.send(&response("ok"));
        }
    });
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 4");
    let proxy = conf.launch().workers(1).start();
    let mut clients: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    }
    wait_until("every place is taken", || backend.heads() == 4);
    let before = cpu_ms(&proxy);
    dawdle(Duration::from_millis(500));
    let spent = cpu_ms(&proxy) - before;
    assert!(spent <= 100, "{spent} ms of CPU time in half a second of waiting\n{}", proxy.text());
    backend.gate().open();
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
}

/// CPU time that the master and its workers have used, in milliseconds.
fn cpu_ms(proxy: &Proxy) -> u64 {
    let of = |pid: i32| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
    };
    std::iter::once(proxy.pid).chain(proxy.workers()).map(|pid| of(pid.as_raw())).sum()
}

#[test]
fn urgent_bytes_are_relayed_in_line_and_stop_nothing() {
    // What lies behind an urgent byte is out of splice's reach until the byte has been read.
    let backend = Backend::serve(|conn| {
        if conn.wire.take(10).is_ok_and(|got| got == b"abcdefghij") {
            conn.send(b"ABC");
            send_urgent(&conn.wire.stream, b"D");
            conn.send(b"EFGH");
            conn.hang();
        }
    });
    let proxy = Launch::tcp(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("abc");
    send_urgent(&client.wire.stream, b"d");
    client.send("efg");
    dawdle(Duration::from_millis(50));
    client.send("hij");
    setsockopt(&client.wire.stream, sockopt::OobInline, &true).unwrap();
    client.wire.begin();
    assert_eq!(client.wire.take(8).unwrap(), b"ABCDEFGH");
}

fn send_urgent(stream: &TcpStream, bytes: &[u8]) {
    assert_eq!(send(stream.as_raw_fd(), bytes, MsgFlags::MSG_OOB).unwrap(), bytes.len());
}

#[test]
fn urgent_byte_within_a_request_does_not_delay_it() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHos");
    send_urgent(&client.wire.stream, b"t");
    client.send(": a\r\n\r\n");
    assert_eq!(client.response().status, 200);
}

#[test]
fn urgent_byte_within_a_long_answer_does_not_stop_it() {
    let backend = Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 400001\r\n\r\n");
            conn.send(&[b'a'; 200_000]);
            send_urgent(&conn.wire.stream, b"b");
            conn.send(&[b'c'; 200_000]);
        }
    });
    let proxy = Launch::http(&[backend.addr]).start();
    let body = get(proxy.addr(), "/").body;
    assert_eq!((body.len(), body.get(200_000)), (400_001, Some(&b'b')));
}

#[test]
fn urgent_bytes_in_front_of_the_end_are_not_taken_for_it_by_a_successor() {
    let backend = Backend::tcp_echo();
    let proxy = Launch::tcp(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.echo(1);
    let worker = proxy.workers()[0];
    stop(worker);
    send_urgent(&client.wire.stream, b"u");
    client.send("rgent");
    client.shutdown_write();
    kill(worker, Signal::SIGKILL).unwrap();
    assert_eq!(client.read_to_end(), (b"urgent".to_vec(), End::Clean));
}

#[test]
fn relay_ends_when_a_client_is_gone_after_its_end() {
    let backend = Backend::serve(|conn| {
        // Has nothing to say, so that only the connection itself can tell that the client is gone.
        while conn.wire.fill().is_ok_and(|more| more) {}
        conn.gate().pass();
    });
    let proxy = Launch::tcp(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("x");
    wait_until("the relay stands", || backend.connections() == 1);
    let before = proxy.descriptors();
    client.shutdown_write();
    dawdle(Duration::from_millis(100));
    assert_eq!(proxy.descriptors(), before, "a half-closed relay was ended");
    client.reset();
    wait_until("the relay is given up", || proxy.descriptors().0.iter().sum::<usize>() < before.0.iter().sum());
    backend.gate().open();
}

#[test]
fn chunked_body_behind_requests_that_fill_the_buffer() {
    // The buffer for unanswered requests has 32 KiB here. The last head ends where the buffer does, or close to it.
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let last = "POST /last HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let get = |length: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".len();
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(length - frame))
    };
    for short in [0, 1, 5, 100] {
        let mut client = Client::connect(proxy.addr());
        let rest = 32 * 1024 - short - last.len() - 2 * 12_000;
        client.send(get(12_000) + &get(12_000) + &get(rest) + last);
        for _ in 0..3 {
            assert_eq!(client.response().status, 200);
        }
        client.send("5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(client.response().text(), "hello", "{short} bytes short of the end");
        client.assert_usable();
    }
}

#[test]
fn answer_is_not_lost_when_more_comes_than_is_read() {
    // RFC 9112 section 9.6: closing with bytes unread would reset the connection.
    let backend = Backend::answering(|_| {
        dawdle(Duration::from_millis(100));
        response(&"x".repeat(100_000))
    });
    let proxy = Launch::http(&[backend.addr]).start();
    for _ in 0..10 {
        let mut client = Client::connect(proxy.addr());
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        dawdle(Duration::from_millis(30));
        client.send("GET /too-late HTTP/1.1\r\nHost: a\r\n\r\n");
        dawdle(Duration::from_millis(150));
        assert_eq!(client.response().body.len(), 100_000);
        client.end();
    }
}

/// What 1,200 slow peers do, all in one thread.
struct Slow {
    clients: Vec<Client>,
    /// Sends this to each of them once in a while.
    drip: &'static [u8],
}

impl Slow {
    fn new(proxy: &Proxy, count: usize, narrow: bool, begin: &str, drip: &'static [u8]) -> Slow {
        let connect = if narrow { Client::connect_narrow } else { Client::connect };
        let clients = (0..count).map(|_| {
            let mut client = connect(proxy.addr());
            client.send(begin);
            client.wire.stream.set_nonblocking(true).unwrap();
            client
        });
        Slow { clients: clients.collect(), drip }
    }

    /// Sends or reads a little; drops those that were given up: answered, or cut while they read.
    fn go_on(&mut self) {
        let drip = self.drip;
        self.clients.retain_mut(|client| {
            client.send(drip);
            let read = client.wire.stream.read(&mut [0; 3]);
            match client.wire.stream.take_error().unwrap().map_or(read, Err) {
                Ok(count) => count > 0 && drip.is_empty(),
                Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            }
        });
    }
}

#[test]
fn slow_peers_are_shed_in_time_and_nobody_else_notices() {
    const COUNT: usize = 400;
    setrlimit(Resource::RLIMIT_NOFILE, 20_000, 20_000).unwrap();
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            conn.forget_requests();
            if request.target == "/large" {
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
                while conn.wire.send(&[b'x'; 65_536]).is_ok() {}
                return;
            }
            conn.send(&response("ok"));
        }
    });
    let limits = "[timeouts]\nheader = \"2s\"\nbody = \"2s\"\nwrite = \"2s\"\nconnect = \"20s\"";
    let proxy = Conf::http(&[backend.addr]).tables(limits).launch().workers(1).start();
    let worker = proxy.workers()[0];
    get(proxy.addr(), "/");
    let memory = Proxy::memory_kib(worker);
    let start = Instant::now();
    let mut slow = [
        Slow::new(&proxy, COUNT, false, "GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x"),
        Slow::new(&proxy, COUNT, false, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", b"x"),
        Slow::new(&proxy, COUNT, true, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    ];
    let begun = start.elapsed();
    let (mut times, mut grown) = (Vec::new(), 0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let mut times = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let start = Instant::now();
                assert_eq!(get(proxy.addr(), "/").status, 200);
                times.push(start.elapsed());
                dawdle(Duration::from_millis(2));
            }
            times
        });
        // Twice the limit, since a period may have begun just before the peer became slow; the rest is for a busy machine,
        // and for a server whose queue was full: it is called again after 1, 3, 7 and 15 seconds.
        while slow.iter().any(|slow| !slow.clients.is_empty()) && start.elapsed() < begun + Duration::from_secs(40) {
            slow.iter_mut().for_each(Slow::go_on);
            grown = grown.max(Proxy::memory_kib(worker).saturating_sub(memory));
            dawdle(Duration::from_millis(200));
        }
        over.store(true, Ordering::SeqCst);
        times = honest.join().unwrap();
    });
    let (left, took) = (slow.each_ref().map(|slow| slow.clients.len()), start.elapsed());
    assert_eq!(left, [0; 3], "heads, bodies and readers not given up after {took:?}, {begun:?} of them to connect");
    times.sort();
    let p99 = times[times.len() * 99 / 100];
    println!(
        "{} honest requests, p99 {p99:?}; {grown} KiB more; all shed after {took:?}, {begun:?} of them to connect",
        times.len()
    );
    assert!(p99 < Duration::from_secs(1), "p99 of an honest client: {p99:?}");
    assert!(grown < 64 * 1024, "{grown} KiB more for {} slow peers", 3 * COUNT);
}

#[test]
fn client_that_never_reads_an_error_is_let_go() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let before = proxy.descriptors();
    let mut client = Client::connect_narrow(proxy.addr());
    // Keeps sending, so that it is neither closed nor idle: only the time limit ends this.
    client.send("BAD REQUEST HERE\r\n\r\n");
    client.wire.stream.set_nonblocking(true).unwrap();
    wait_until("it is let go", || {
        client.send("x");
        dawdle(Duration::from_millis(100));
        proxy.descriptors() == before
    });
}

/// Backends that never stop, each with what must come of it.
#[test]
fn floods_of_a_backend_cost_bounded_memory_and_nobody_else_notices() {
    let flood = |begin: &'static [u8], again: &'static [u8]| {
        Backend::serve(move |conn| {
            if conn.request().is_some() {
                conn.forget_requests();
                conn.send(begin);
                let block = again.repeat(65_536 / again.len());
                while conn.wire.send(&block).is_ok() {}
            }
        })
    };
    let floods = [
        ("fields", Some(502), flood(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n")),
        ("one field", Some(502), flood(b"HTTP/1.1 200 OK\r\nX: ", b"y")),
        ("interim answers", Some(502), flood(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")),
        ("no HTTP at all", Some(502), flood(b"", b"xyz")),
        ("empty lines", Some(502), flood(b"", b"\r\n")),
        ("a chunk size", None, flood(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0")),
        ("a chunk extension", None, flood(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"e")),
        ("trailers", None, flood(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n")),
    ];
    let honest = Backend::ok();
    let mut text = "[[listen]]\nbind = \"127.0.0.1:0\"\n".to_owned();
    for (n, backend) in floods.iter().map(|(_, _, backend)| backend).chain([&honest]).enumerate() {
        text += &format!(
            "[[route]]\npath = \"/{n}\"\nto = \"g{n}\"\n[backends.g{n}]\nservers = [\"{}\"]\nhealth = {{ failures = 0 }}\n",
            backend.addr
        );
    }
    let proxy = Launch::config(&text).workers(1).start();
    let worker = proxy.workers()[0];
    let ok = format!("/{}", floods.len());
    get(proxy.addr(), &ok);
    let memory = Proxy::memory_kib(worker);
    for (n, (what, status, _)) in floods.iter().enumerate() {
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
        for client in &mut clients {
            client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        assert_eq!(get(proxy.addr(), &ok).text(), "ok");
        for client in &mut clients {
            match status {
                Some(status) => assert_eq!(client.response().status, *status, "{what}"),
                // Seen in time it is a 502, otherwise the response is cut.
                None => assert!(client.try_response().map_or(true, |r| r.status == 502), "{what}: a whole response"),
            }
        }
        let grown = Proxy::memory_kib(worker).saturating_sub(memory);
        assert!(grown < 8192, "{what}: {grown} KiB more");
    }
}

#[test]
fn silent_and_resetting_backends_leave_the_others_alone() {
    let (silent, resetting, honest) = (Backend::silent(), Backend::resetting(), Backend::ok());
    let text = format!(
        "[[listen]]\nbind = \"127.0.0.1:0\"\n[timeouts]\nresponse = \"1s\"\n\
         [[route]]\nto = \"ok\"\n[[route]]\npath = \"/silent\"\nto = \"silent\"\n[[route]]\npath = \"/reset\"\nto = \"reset\"\n\
         [backends.ok]\nservers = [\"{}\"]\n[backends.silent]\nservers = [\"{}\"]\n[backends.reset]\nservers = [\"{}\"]\n",
        honest.addr, silent.addr, resetting.addr
    );
    let proxy = Launch::config(&text).start();
    let mut waiting: Vec<Client> = (0..200).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut waiting {
        client.send("POST /silent HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    }
    for _ in 0..50 {
        assert_eq!(get(proxy.addr(), "/").status, 200);
        let status = get(proxy.addr(), "/reset").status;
        assert!(status == 502 || status == 503, "{status}");
    }
    for client in &mut waiting {
        assert_eq!(client.response().status, 504);
    }
    wait_until("no connection to the silent backend is left", || silent.open() == 0);
}

#[test]
fn nothing_spins_while_a_peer_does_nothing() {
    let backend = Backend::serve(|conn| {
        if let Some(request) = conn.head() {
            if request.target == "/flood" {
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
                while conn.wire.send(&[b'x'; 65_536]).is_ok() {}
            }
            conn.gate().pass();
        }
    });
    let limits = "[timeouts]\nheader = \"60s\"\nbody = \"60s\"\nwrite = \"60s\"";
    let proxy = Conf::http(&[backend.addr]).tables(limits).launch().workers(1).start();
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let upload = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n{}", "x".repeat(100_000));
    let states: [(&str, String, bool); 9] = [
        ("connected", String::new(), false),
        ("closed its side", String::new(), true),
        ("half a head", get[..20].to_owned(), false),
        ("asked", get.to_owned(), false),
        ("asked and closed its side", get.to_owned(), true),
        ("pipelined and closed its side", get.repeat(50), true),
        ("does not read", get.replace(" / ", " /flood "), false),
        ("does not read and closed its side", get.replace(" / ", " /flood "), true),
        ("upload that is not read", upload, false),
    ];
    let mut clients = Vec::new();
    for (_, bytes, half_close) in &states {
        let mut client = Client::connect_narrow(proxy.addr());
        client.wire.stream.set_nonblocking(true).unwrap();
        client.send(bytes);
        if *half_close {
            client.shutdown_write();
        }
        clients.push(client);
    }
    wait_until("all requests have arrived", || backend.heads() == 6);
    dawdle(Duration::from_millis(200));
    let before = cpu_ms(&proxy);
    dawdle(Duration::from_millis(600));
    let spent = cpu_ms(&proxy) - before;
    assert!(spent <= 60, "{spent} ms of CPU time in 600 ms of nothing");
    drop(clients);
    backend.gate().open();
}
