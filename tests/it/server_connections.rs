//! Connections to servers at the edge: bytes that nobody asked for on a kept one, and a request of which a part is
//! sent already.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;

use crate::common::backend::{Backend, response};
use crate::common::client::Client;
use crate::common::conf::Conf;
use crate::common::wait_until;

/// Answers `right`; on its first connection it then says something more, once the gate is open.
fn talkative() -> Backend {
    Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.send(&response("right"));
            if conn.number == 0 {
                conn.gate().pass();
                conn.send(&response("unasked"));
                // What the test waits for; the proxy sees only the bytes.
                conn.hang();
                return;
            }
        }
    })
}

/// Stops a process while it sleeps, that is once it has done all there was to do, and waits until it is stopped.
fn stop(pid: Pid) {
    let is = |state| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(state))
    };
    wait_until("the worker sleeps", || is('S'));
    kill(pid, Signal::SIGSTOP).unwrap();
    wait_until("the worker is stopped", || is('T'));
}

/// Bytes that the proxy's socket to `peer` has received and not read.
fn unread_from(peer: SocketAddr) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let peer = format!("0100007F:{:04X}", peer.port());
    let queues = table.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.get(2) == Some(&peer.as_str())).then(|| columns[4].split(':').nth(1).unwrap())
    });
    queues.map(|bytes| u64::from_str_radix(bytes, 16).unwrap()).max().unwrap_or(0)
}

/// A request comes while the worker is stopped, then bytes on the kept connection, with `others` events between them:
/// the request must not get these bytes for its answer.
fn unasked_bytes_are_no_answer(method: &str, others: usize) {
    let backend = talkative();
    let proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let worker = proxy.workers()[0];
    let mut crowd: Vec<Client> = (0..others).map(|_| Client::connect(proxy.addr())).collect();
    for one in &mut crowd {
        one.send("GET / HT");
    }
    // They are known to the worker once one that came later is answered.
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").text(), "right");
    stop(worker);
    client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
    for one in &mut crowd {
        one.send("TP");
    }
    backend.gate().open();
    wait_until("the bytes have come", || unread_from(backend.addr) > 0);
    kill(worker, Signal::SIGCONT).unwrap();
    let answer = client.response_to(method);
    assert_eq!((answer.status, answer.fields.get("content-length")), (200, Some("5")), "{method}: {answer:?}");
    assert!(method == "HEAD" || answer.text() == "right", "{method}: {answer:?}");
}

#[test]
fn bytes_that_came_before_the_turn_of_a_request_are_no_answer_to_it() {
    for method in ["GET", "HEAD", "PUT", "POST"] {
        unasked_bytes_are_no_answer(method, 0);
    }
}

#[test]
fn nor_are_they_behind_more_events_than_a_turn_looks_at() {
    unasked_bytes_are_no_answer("GET", 560);
}

/// A server whose connections take very little: tiny segments, and a receive buffer of the least size. It never reads.
fn narrow_server() -> (SocketAddr, TcpListener) {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::RcvBuf, &1).unwrap();
    setsockopt(&fd, sockopt::TcpMaxSeg, &100).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))).unwrap();
    listen(&fd, Backlog::new(16).unwrap()).unwrap();
    let listener = TcpListener::from(fd);
    (listener.local_addr().unwrap(), listener)
}

#[test]
fn a_post_of_which_a_part_was_sent_goes_to_no_second_server() {
    // The first write is tried while the connection may be on its way. This one is more than the kernel takes for such a
    // server, and nothing follows.
    let (narrow, listener) = narrow_server();
    let second = Backend::ok();
    let conf = Conf::http(&[narrow, second.addr])
        .group("health = { failures = 0 }")
        .tables("[limits]\nhead = \"128KiB\"")
        .tables("[timeouts]\nconnect = \"300ms\"\nserver = \"300ms\"\nresponse = \"300ms\"");
    let proxy = conf.launch().workers(1).start();
    let worker = proxy.workers()[0];
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{}", "x".repeat(60_000));
    let (mut answered, mut given_up) = (0, 0);
    for _ in 0..4 {
        // All of it is there when the worker reads, so that one write has all of it.
        stop(worker);
        let mut client = Client::connect(proxy.addr());
        client.send(&request);
        let own = client.wire.stream.local_addr().unwrap();
        wait_until("all of the request has come", || unread_from(own) == request.len() as u64);
        kill(worker, Signal::SIGCONT).unwrap();
        match client.response().status {
            200 => answered += 1,
            504 => given_up += 1,
            status => panic!("{status}"),
        }
    }
    assert_eq!((answered, given_up, second.heads()), (2, 2, 2), "each server has its turns, and no other's");
    drop(listener);
}

#[test]
fn a_server_that_answers_without_the_100_it_was_asked_for_is_not_asked_on_that_connection_again() {
    // It refuses on the head alone and says neither that it closes nor that it has read the content (RFC 9110 section
    // 10.1.1): what it makes of the content, nobody knows.
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            let refused = request.fields.lists("expect", "100-continue");
            let status = if refused { "417 Expectation Failed" } else { "200 OK" };
            let number = conn.number;
            conn.send(format!("HTTP/1.1 {status}\r\nContent-Length: 1\r\n\r\n{number}").as_bytes());
        }
    });
    let proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    let body = "GET /smuggled HTTP/1.1\r\nX-Ign: ";
    let length = body.len();
    let expecting = "Expect: 100-continue\r\n";
    for (field, number) in [("", "0"), (expecting, "0"), ("", "1"), ("", "1")] {
        let response =
            client.ask(format!("POST / HTTP/1.1\r\nHost: a\r\n{field}Content-Length: {length}\r\n\r\n{body}"));
        assert_eq!(response.text(), number, "{field:?}");
    }
}
