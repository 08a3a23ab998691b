//! Flat memory: neither large bodies nor many idle connections cost what grows with them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::proxy::{Launch, Proxy};
use crate::common::{PIECE, check_pattern, pattern, wait_until};

const GIB: u64 = 1 << 30;

fn send_pattern(stream: &mut TcpStream, length: u64) {
    let mut at = 0;
    while at < length {
        let piece = pattern(at, usize::try_from(length - at).unwrap().min(PIECE));
        stream.write_all(piece).unwrap();
        at += piece.len() as u64;
    }
}

fn receive_pattern(stream: &mut TcpStream, early: &[u8], length: u64) {
    check_pattern(0, early);
    let (mut at, mut buffer) = (early.len() as u64, vec![0; PIECE]);
    while at < length {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the body ends after {at} bytes");
        check_pattern(at, &buffer[..count]);
        at += count as u64;
    }
}

/// The largest growth of a worker's memory while `work` runs, in KiB.
fn growth(proxy: &Proxy, work: impl FnOnce() + Send) -> u64 {
    let worker = proxy.workers()[0];
    let before = Proxy::memory_kib(worker);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let highest = scope.spawn(|| {
            let mut highest = before;
            while !done.load(Ordering::SeqCst) {
                highest = highest.max(Proxy::memory_kib(worker));
                thread::park_timeout(std::time::Duration::from_millis(5));
            }
            highest
        });
        work();
        done.store(true, Ordering::SeqCst);
        highest.join().unwrap() - before
    })
}

#[test]
fn a_gibibyte_to_the_client_costs_less_than_a_mebibyte() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            if request.target == "/small" {
                conn.send(&crate::common::backend::response("ok"));
                continue;
            }
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n").as_bytes());
            send_pattern(&mut conn.wire.stream, GIB);
        }
    });
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    get(proxy.addr(), "/small");
    let grown = growth(&proxy, || {
        let mut client = Client::connect(proxy.addr());
        client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
        client.wire.begin();
        client.wire.response_head().unwrap();
        let early = std::mem::take(&mut client.wire.buffer);
        receive_pattern(&mut client.wire.stream, &early, GIB);
        client.assert_small();
    });
    assert!(grown < 1024, "{grown} KiB");
}

#[test]
fn a_gibibyte_to_the_backend_costs_less_than_a_mebibyte() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.head() {
            if request.method == "POST" {
                let early = std::mem::take(&mut conn.wire.buffer);
                receive_pattern(&mut conn.wire.stream, &early, GIB);
            }
            conn.send(&crate::common::backend::response("ok"));
        }
    });
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    get(proxy.addr(), "/small");
    let grown = growth(&proxy, || {
        let mut client = Client::connect(proxy.addr());
        client.send(format!("POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: {GIB}\r\n\r\n"));
        send_pattern(&mut client.wire.stream, GIB);
        assert_eq!(client.response().status, 200);
        client.assert_small();
    });
    assert!(grown < 1024, "{grown} KiB");
}

impl Client {
    fn assert_small(&mut self) {
        assert_eq!(self.get("/small").text(), "ok");
    }
}

#[test]
fn a_slow_client_of_a_fast_backend_costs_little() {
    // The backend offers far more than the client reads: the difference must stay in the kernel.
    let backend = Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n").as_bytes());
            let mut at = 0;
            while at < GIB && conn.wire.send(pattern(at, PIECE)).is_ok() {
                at += PIECE as u64;
            }
        }
    });
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let grown = growth(&proxy, || {
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect_narrow(proxy.addr())).collect();
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        wait_until("every request is answered", || backend.requests().len() == 20);
        for client in &mut clients {
            client.wire.begin();
            client.wire.take(4096).unwrap();
        }
    });
    assert!(grown < 20 * 256, "{grown} KiB for 20 connections");
}

#[test]
fn idle_connections_hold_no_buffers() {
    const COUNT: usize = 1000;
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let round = || Client::served(proxy.addr(), COUNT);
    get(proxy.addr(), "/");
    let worker = proxy.workers()[0];
    let before = Proxy::memory_kib(worker);
    let clients = round();
    let grown = Proxy::memory_kib(worker).saturating_sub(before);
    assert!(grown < 2 * COUNT as u64, "{grown} KiB for {COUNT} idle connections");
    drop(clients);
    // What they used is used again: a second round adds next to nothing.
    let after = Proxy::memory_kib(worker);
    let clients = round();
    let more = Proxy::memory_kib(worker).saturating_sub(after);
    assert!(more < 512, "{more} KiB more in the second round");
    drop(clients);
}
