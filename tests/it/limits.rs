//! Bounds on what one client may use, and that others do not notice.

use std::time::{Duration, Instant};

use crate::common::backend::{Act, Backend};
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::{dawdle, wait_for, wait_until};

#[test]
fn head_just_within_the_limit_passes() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nhead = \"4KiB\"").start();
    let request = |size: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(size - frame))
    };
    for (size, status) in [(4000, 200), (4096, 200), (4097, 431), (5000, 431), (40_000, 431)] {
        let response = Client::connect(proxy.addr()).ask(request(size));
        assert_eq!(response.status, status, "a head of {size} bytes");
    }
}

#[test]
fn number_of_fields_just_within_the_limit_passes() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nfields = 20").start();
    for (fields, status) in [(20, 200), (21, 431)] {
        let lines = "X: y\r\n".repeat(fields - 1);
        let response = Client::connect(proxy.addr()).ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!(response.status, status, "{fields} fields");
    }
}

#[test]
fn connections_of_one_address_are_bounded() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nconnections_per_address = 3").start();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect_from("127.0.0.5", proxy.addr())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let mut fourth = Client::connect_from("127.0.0.5", proxy.addr());
    let response = fourth.get("/");
    assert_eq!((response.status, response.closes()), (503, true), "{response:?}");
    fourth.end();
    drop(fourth);
    // Another address is not touched, and a place given back is free again.
    assert_eq!(Client::connect_from("127.0.0.6", proxy.addr()).get("/").status, 200);
    clients.pop();
    wait_until("a place is free again", || Client::connect_from("127.0.0.5", proxy.addr()).get("/").status == 200);
}

#[test]
fn connections_that_are_over_do_not_count() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections_per_address = 2");
    let proxy = conf.launch().workers(1).start();
    for number in 0..200 {
        let end = if number % 2 == 0 { "Connection: close\r\n" } else { "" };
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{end}\r\n"));
        assert_eq!(response.status, 200, "{number}: one connection is open at a time");
    }
    // Whoever is refused is named in the log.
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.get("/");
    }
    proxy.wait_for_log(&["refused 1 connections, the last from 127.0.0.1: an address may have 2"]);
}

#[test]
fn connections_of_one_address_are_bounded_in_tcp_mode() {
    let backend = Backend::tcp_echo();
    let proxy = Conf::tcp(&[backend.addr]).tables("[limits]\nconnections_per_address = 2").start();
    let mut clients: Vec<Client> = (0..2).map(|_| Client::connect_from("127.0.0.5", proxy.addr())).collect();
    for client in &mut clients {
        client.send("x");
        client.wire.begin();
        assert_eq!(client.wire.take(1).unwrap(), b"x");
    }
    Client::connect_from("127.0.0.5", proxy.addr()).end();
    drop(clients);
    wait_until("a place is free again", || {
        let mut client = Client::connect_from("127.0.0.5", proxy.addr());
        client.send("x");
        client.wire.begin();
        client.wire.take(1).is_ok()
    });
}

#[test]
fn connections_of_a_worker_are_bounded_by_the_queue() {
    // More than the workers may hold wait in the kernel's queue; none is refused.
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 4").launch().workers(2).start();
    let mut holders: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut holders {
        assert_eq!(client.get("/").status, 200);
    }
    let mut waiting = Client::connect(proxy.addr());
    waiting.send("GET /waiting HTTP/1.1\r\nHost: a\r\n\r\n");
    holders.remove(0);
    assert_eq!(waiting.response().status, 200);
}

#[test]
fn dripped_head_is_given_up() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr])
        .tables("[limits]\nmin_rate = \"1KiB\"")
        .tables("[timeouts]\nheader = \"1s\"\nbody = \"1s\"\nidle = \"60s\"");
    let proxy = conf.start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ");
    drip(&mut client, Duration::from_millis(50));
    assert_eq!(backend.heads(), 0);
}

#[test]
fn dripped_body_is_given_up() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr])
        .tables("[limits]\nmin_rate = \"1KiB\"")
        .tables("[timeouts]\nheader = \"1s\"\nbody = \"1s\"\nidle = \"60s\"");
    let proxy = conf.start();
    let mut client = Client::connect(proxy.addr());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    drip(&mut client, Duration::from_millis(50));
    assert!(backend.requests().is_empty());
    wait_until("the half request is given up", || backend.open() == 0);
}

/// Sends a byte each `pause` until the proxy answers or closes; panics when it never does.
#[track_caller]
fn drip(client: &mut Client, pause: Duration) {
    client.patience(pause);
    wait_for("the dripping client is given up", || {
        client.send("x");
        match client.try_response() {
            Ok(response) => {
                assert_eq!(response.status, 408, "{response:?}");
                Some(())
            }
            Err(crate::common::h1::Broken::Late(_)) => None,
            Err(_) => Some(()),
        }
    });
}

#[test]
fn dripping_reader_is_given_up() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"),
        Act::Drip(100_000_000, 1_000_000, Duration::ZERO),
        Act::Hang,
    ]);
    let conf = Conf::http(&[backend.addr])
        .tables("[limits]\nmin_rate = \"100KiB\"")
        .tables("[timeouts]\nwrite = \"1s\"\nserver = \"60s\"");
    let proxy = conf.start();
    let mut client = Client::connect_narrow(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the request arrives", || backend.requests().len() == 1);
    wait_for("the slow reader is given up", || {
        use std::io::Read;
        let _ = client.wire.stream.read(&mut [0; 10]);
        (backend.open() == 0).then_some(())
    });
}

#[test]
fn honest_clients_do_not_notice_the_drippers() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[timeouts]\nheader = \"1s\"\nbody = \"1s\"").start();
    let mut drippers: Vec<Client> = (0..200)
        .map(|n| {
            let mut client = Client::connect(proxy.addr());
            client.send(match n % 2 {
                0 => "GET / HTTP/1.1\r\nHost: a\r\nX: ",
                _ => "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n",
            });
            client
        })
        .collect();
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "100 requests took {:?}", start.elapsed());
    for client in &mut drippers {
        assert_eq!(client.response().status, 408);
        client.end();
    }
    wait_until("no half request is kept", || backend.open() <= 4);
}

#[test]
fn flooding_backend_costs_bounded_memory() {
    use crate::common::proxy::Proxy;
    let backend = Backend::serve(|conn| {
        let data = vec![b'x'; 1 << 20];
        while conn.wire.send(&data).is_ok() {}
    });
    let proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let worker = proxy.workers()[0];
    get(proxy.addr(), "/");
    let before = Proxy::memory_kib(worker);
    for _ in 0..10 {
        assert_eq!(get(proxy.addr(), "/").status, 502);
    }
    let grown = Proxy::memory_kib(worker).saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more");
}

#[test]
fn body_over_the_limit_ends_the_connection_wherever_the_limit_is_passed() {
    // In each row the read that passes the limit also ends the body, and what looks like a request follows or lies in
    // it: nobody may run it.
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\nX-Pad: ";
    let in_chunk = format!("{smuggled}{}\r\n\r\n", "p".repeat(500 - smuggled.len() - 4));
    let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = |count: usize, size: usize| format!("{size:x}\r\n{}\r\n", "y".repeat(size)).repeat(count);
    let rows = [
        (
            "limits.body = \"1KiB\"",
            vec![
                format!("{head}3e8\r\n{}", "A".repeat(500)),
                format!("{in_chunk}\r\n64\r\n{}\r\n0\r\n\r\n", "C".repeat(100)),
            ],
        ),
        (
            "limits = { body = \"64KiB\", head = \"1KiB\" }",
            vec![
                format!("{head}{}", chunks(1, 65_000)),
                format!("{}0\r\n\r\n{smuggled}x\r\n\r\n", chunks(1, 600)),
                format!("{smuggled}x\r\n\r\n"),
            ],
        ),
        (
            "limits = { body = \"64KiB\", head = \"1KiB\" }",
            vec![format!("{head}{}0\r\n\r\n{smuggled}x\r\n\r\n", chunks(66, 1000))],
        ),
        ("limits.body = \"1KiB\"", vec![format!("{head}{}0\r\n\r\n{smuggled}x\r\n\r\n", chunks(3, 500))]),
    ];
    for (limits, pieces) in rows {
        let backend = Backend::ok();
        let proxy = Conf::http(&[backend.addr]).top(limits).start();
        let mut client = Client::connect(proxy.addr());
        for piece in &pieces {
            client.send(piece);
            // In a read of its own.
            dawdle(Duration::from_millis(50));
        }
        let response = client.response();
        assert_eq!(response.status, 413, "{limits}");
        assert!(response.closes(), "{limits}: {response:?}");
        let (rest, _) = client.read_to_end();
        assert!(rest.is_empty(), "{limits}: more came: {}", rest.escape_ascii());
        assert!(backend.requests().iter().all(|request| !request.target.contains("smuggled")), "{limits}");
    }
}
