//! HTTP/1 connections as they should be: kept and shared on both sides, pipelined, closed when either side says so, in both
//! versions.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::common::backend::{Act, Backend, response, response_with};
use crate::common::client::{Client, End, get};
use crate::common::conf::Conf;
use crate::common::h1::Framing;
use crate::common::proxy::Launch;
use crate::common::{dawdle, pattern_bytes, wait_until};

#[test]
fn keep_alive_on_both_sides() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..5 {
        let response = client.get("/");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        assert!(!response.closes(), "{response:?}");
    }
    assert_eq!((backend.connections(), backend.requests().len()), (1, 5));
}

#[test]
fn pool_is_shared_by_clients() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    for _ in 0..10 {
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
    assert_eq!((backend.connections(), backend.requests().len()), (1, 10));
}

#[test]
fn pool_is_bounded_and_can_be_off() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).tables("[backends.web.keepalive]\nidle_per_server = 0");
    let proxy = conf.launch().workers(1).start();
    for _ in 0..3 {
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
    assert_eq!(backend.connections(), 3);
    wait_until("no idle connection is kept", || backend.open() == 0);
}

#[test]
fn idle_pooled_connections_are_closed_after_their_time() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).tables("[backends.web.keepalive]\nidle_timeout = \"200ms\"");
    let proxy = conf.launch().workers(1).start();
    assert_eq!(get(proxy.addr(), "/").status, 200);
    wait_until("the idle connection is closed", || backend.open() == 0);
    assert_eq!(get(proxy.addr(), "/").status, 200);
}

#[test]
fn pooled_connection_that_died_is_replaced_unseen() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    for _ in 0..20 {
        assert_eq!(get(proxy.addr(), "/").status, 200);
        // Whether the proxy has noticed the end by the next request is left to chance: it must not matter.
        backend.cut_all();
    }
}

#[test]
fn pooled_connection_closed_on_the_next_request_is_retried() {
    // Closes on the second request of each connection without answering, as a server does whose idle time ran out.
    let backend = Backend::scripted(vec![Act::Request, Act::send(response("ok")), Act::Head, Act::Close]);
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    for _ in 0..6 {
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let mut all = Vec::new();
    for n in 0..40 {
        match n % 3 {
            0 => write!(all, "GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap(),
            1 => write!(all, "POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n{n:04}").unwrap(),
            _ => write!(
                all,
                "PUT /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{n:02}\r\n0\r\n\r\n"
            )
            .unwrap(),
        }
    }
    client.send(&all);
    for n in 0..40 {
        let response = client.response();
        assert_eq!(response.fields.get("x-target"), Some(format!("/{n}").as_str()));
        match n % 3 {
            0 => assert_eq!(response.text(), ""),
            1 => assert_eq!(response.text(), format!("{n:04}")),
            _ => assert_eq!(response.text(), format!("{n:02}")),
        }
    }
}

#[test]
fn close_from_the_client_ends_its_connection_only() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    for option in ["close", "Close", "x, close", "close , x"] {
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {option}\r\n\r\n"));
        assert_eq!(response.status, 200);
        assert!(response.fields.lists("connection", "close"), "{response:?}");
        assert_eq!(client.end(), End::Clean);
    }
    assert_eq!(backend.connections(), 1);
    assert!(backend.requests().iter().all(|request| !request.fields.lists("connection", "close")));
}

#[test]
fn close_from_the_backend_ends_its_connection_only() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"),
        Act::Close,
    ]);
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    for n in 1..4 {
        let response = client.get("/");
        assert_eq!((response.text().as_str(), response.closes()), ("ok", false), "{response:?}");
        assert_eq!(backend.connections(), n);
    }
}

#[test]
fn client_that_closes_its_sending_side_is_answered() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    client.shutdown_write();
    assert_eq!(client.response().text(), "hello");
    assert_eq!(client.end(), End::Clean);
}

#[test]
fn http_1_0_client_gets_1_0_framing() {
    let chunked =
        Backend::fixed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
    let proxy = Launch::http(&[chunked.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.0\r\n\r\n");
    assert!(!response.fields.has("transfer-encoding"), "{response:?}");
    assert_eq!(response.text(), "abcdef");
    if response.framing == Framing::Length {
        client.end();
    }

    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(!response.fields.has("transfer-encoding"), "{response:?}");
    assert_eq!(response.text(), "abcdef");
}

#[test]
fn http_1_0_client_is_closed_unless_it_asks_to_stay() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!(response.text(), "ok");
    assert_eq!(client.end(), End::Clean);

    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(response.text(), "ok");
    // Both are allowed (RFC 9112 section 9.3), silence about it is not.
    if response.fields.lists("connection", "keep-alive") {
        client.assert_usable();
    } else {
        assert_eq!(client.end(), End::Clean);
    }
    // Requests from 1.0 clients are forwarded with the proxy's own version (RFC 9110 section 2.5).
    assert!(backend.requests().iter().all(|request| request.version == "HTTP/1.1"));
}

#[test]
fn http_1_0_backend_is_understood() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.0 200 OK\r\nServer: old\r\n\r\nuntil the end"),
        Act::Close,
    ]);
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.get("/");
    assert_eq!((response.version.as_str(), response.text().as_str()), ("HTTP/1.1", "until the end"));
    client.assert_as_announced(&response);
}

#[test]
fn http_1_0_backend_that_keeps_the_connection_is_reused_or_closed() {
    let backend = Backend::fixed(
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\nok",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..3 {
        let response = client.get("/");
        assert_eq!((response.text().as_str(), response.closes()), ("ok", false));
        assert!(!response.fields.has("keep-alive"), "{response:?}");
    }
}

#[test]
fn many_clients_at_once_each_get_their_own_answers() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let addr = proxy.addr().clone();
    let threads: Vec<_> = (0..50)
        .map(|n| {
            let addr = addr.clone();
            thread::spawn(move || {
                let mut client = Client::connect(&addr);
                for m in 0..20 {
                    let body = format!("client {n} request {m}").repeat(1 + m * 13 % 50);
                    let response = client.ask(format!(
                        "POST /{n}/{m} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ));
                    assert_eq!(response.fields.get("x-target"), Some(format!("/{n}/{m}").as_str()));
                    assert_eq!(response.text(), body);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(backend.requests().len(), 1000);
}

#[test]
fn client_gone_while_waiting_frees_everything() {
    let backend = Backend::silent();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let before = proxy.descriptors();
    for n in 1..=5 {
        let mut client = Client::connect(proxy.addr());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("the request reaches the backend", || backend.requests().len() == n);
        // Not by an orderly close: whoever only ends its sending may be waiting for the answer.
        client.reset();
    }
    wait_until("the connections to the backend are given up", || backend.open() == 0);
    proxy.assert_no_leaks(&before, 0);
}

#[test]
fn what_comes_behind_a_last_request_does_not_cost_its_answer() {
    let backend = Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.gate().pass();
            conn.send(&response_with("", &pattern_bytes(300_000)));
        }
    });
    let proxy = Launch::http(&[backend.addr]).start();
    let last = ["POST / HTTP/1.0\r\nHost: a\r\n", "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"];
    let mut clients: Vec<Client> = last
        .iter()
        .map(|head| {
            let mut client = Client::connect_narrow(proxy.addr());
            client.send(format!("{head}Content-Length: 2\r\n\r\nhi"));
            client
        })
        .collect();
    wait_until("the requests are at the backend", || backend.requests().len() == 2);
    for client in &mut clients {
        client.send("\r\n");
    }
    backend.gate().open();
    // Slow readers: most of the answer is still to be sent when the last copy of the connection is closed.
    dawdle(Duration::from_millis(300));
    for mut client in clients {
        assert_eq!(client.response().body.len(), 300_000);
        assert_eq!(client.end(), End::Clean);
    }
}

/// Two segments would cost each such connection another way through the network.
#[test]
fn the_end_of_a_connection_comes_with_the_last_bytes() {
    const TRIES: usize = 40;
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut together = 0;
    for _ in 0..TRIES {
        let mut stream = TcpStream::connect(proxy.addr().inet()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut fds = [PollFd::new(&stream, PollFlags::IN | PollFlags::RDHUP)];
        poll(&mut fds, None).unwrap();
        together += usize::from(fds[0].revents().contains(PollFlags::IN | PollFlags::RDHUP));
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    }
    // Sent apart they come together, too, where this thread is late, and sent together they come apart where the worker
    // is held up in between for longer than the kernel keeps bytes back.
    assert!(together >= TRIES * 9 / 10, "the end came with the last bytes in {together} of {TRIES} answers");
}
