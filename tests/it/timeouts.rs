//! Every state has a deadline: a peer that falls silent in it is given up, neither early nor never.

use std::io::Read;
use std::time::{Duration, Instant};

use crate::common::backend::{Act, Backend, Unanswering, response};
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::proxy::Proxy;
use crate::common::{dawdle, pattern_bytes, wait_until};

/// A little less than the limits of 400 ms set here: what ends sooner ended for another reason.
const SOON: Duration = Duration::from_millis(300);

/// With this one limit at 400 ms and all others far away.
fn with(limit: &str, backend: std::net::SocketAddr) -> Proxy {
    let names = ["header", "idle", "body", "write", "connect", "response", "server", "tunnel"];
    assert!(names.contains(&limit));
    let lines: String =
        names.iter().map(|&name| format!("{name} = \"{}\"\n", if name == limit { "400ms" } else { "60s" })).collect();
    Conf::http(&[backend])
        .tables(&format!("[timeouts]\n{lines}"))
        .tables("[limits]\nmin_rate = \"0B\"")
        .launch()
        .workers(1)
        .start()
}

#[track_caller]
fn took(start: Instant) {
    let time = start.elapsed();
    assert!(time >= SOON, "ended after {time:?}, before its time");
}

#[test]
fn header_limit_holds_from_the_first_byte() {
    let backend = Backend::ok();
    let proxy = with("header", backend.addr);
    let mut client = Client::connect(proxy.addr());
    // Bytes that keep coming do not move the limit.
    let start = Instant::now();
    let mut status = None;
    client.patience(Duration::from_millis(50));
    for byte in "GET / HTTP/1.1\r\nHost: a\r\nX: ".bytes().chain(std::iter::repeat_n(b'x', 400)) {
        client.send([byte]);
        if let Ok(response) = client.try_response() {
            status = Some(response.status);
            break;
        }
        if start.elapsed() > Duration::from_secs(15) {
            break;
        }
    }
    assert_eq!(status, Some(408));
    took(start);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn header_limit_holds_for_the_second_request_too() {
    let backend = Backend::ok();
    let proxy = with("header", backend.addr);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let start = Instant::now();
    client.send("GET / HT");
    assert_eq!(client.response().status, 408);
    took(start);
    client.end();
}

#[test]
fn idle_connection_is_closed_without_a_word() {
    // RFC 9112 section 9.5: a 408 on a connection without a request would answer the next one.
    let backend = Backend::ok();
    let proxy = with("idle", backend.addr);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    let start = Instant::now();
    assert_eq!(client.end(), End::Clean);
    took(start);
}

#[test]
fn an_empty_line_is_no_request_and_is_not_answered() {
    // RFC 9112 section 2.2: some clients send one behind a body. What it is answered would answer the next request.
    let backend = Backend::ok();
    let proxy = with("header", backend.addr);
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    for behind in ["\r\n", "\r"] {
        let mut client = Client::connect(proxy.addr());
        assert_eq!(client.ask(format!("{post}{behind}")).status, 200);
        assert_eq!(client.read_to_end(), (Vec::new(), End::Clean), "its time is over");
        let mut client = Client::connect(proxy.addr());
        assert_eq!(client.ask(format!("{post}{behind}")).status, 200);
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (Vec::new(), End::Clean), "it ends");
    }
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask(format!("{post}\r\n")).status, 200);
    assert_eq!(client.ask(post).status, 200);
    client.send("\r\nG");
    client.shutdown_write();
    assert_eq!(client.response().status, 400);
}

#[test]
fn connection_without_any_request_is_closed() {
    let backend = Backend::ok();
    let proxy = with("idle", backend.addr);
    let start = Instant::now();
    let mut client = Client::connect(proxy.addr());
    let (_, end) = client.read_to_end();
    assert_eq!(end, End::Clean);
    took(start);
}

#[test]
fn idle_time_begins_again_with_each_request() {
    let backend = Backend::ok();
    let proxy = with("idle", backend.addr);
    let mut client = Client::connect(proxy.addr());
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
        dawdle(Duration::from_millis(150));
    }
}

#[test]
fn idle_limit_does_not_cut_a_long_request() {
    let backend = Backend::serve(|conn| {
        if conn.request().is_some() {
            dawdle(Duration::from_millis(1000));
            conn.send(&response("late"));
        }
    });
    let proxy = with("idle", backend.addr);
    assert_eq!(crate::common::client::get(proxy.addr(), "/").text(), "late");
}

#[test]
fn body_that_stalls_is_408() {
    let backend = Backend::ok();
    let proxy = with("body", backend.addr);
    let mut client = Client::connect(proxy.addr());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe");
    let start = Instant::now();
    assert_eq!(client.response().status, 408);
    took(start);
    client.end();
    wait_until("the backend's connection is given up", || backend.open() == 0);
    assert!(backend.requests().is_empty());
}

#[test]
fn body_that_keeps_coming_is_not_cut() {
    let backend = Backend::echo();
    let proxy = with("body", backend.addr);
    let mut client = Client::connect(proxy.addr());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    for _ in 0..10 {
        dawdle(Duration::from_millis(100));
        client.send("x");
    }
    assert_eq!(client.response().text(), "xxxxxxxxxx");
}

#[test]
fn client_that_does_not_read_is_cut() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"),
        Act::Drip(100_000_000, 1_000_000, Duration::ZERO),
        Act::Hang,
    ]);
    let proxy = with("write", backend.addr);
    let mut client = Client::connect_narrow(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let start = Instant::now();
    wait_until("the backend's connection is given up", || backend.connections() == 1 && backend.open() == 0);
    took(start);
    let mut all = Vec::new();
    let _ = client.wire.stream.read_to_end(&mut all);
    assert!(all.len() < 100_000_000, "it was sent all the same");
}

#[test]
fn connect_limit_gives_an_error() {
    let backend = Unanswering::new();
    let proxy = with("connect", backend.addr);
    let start = Instant::now();
    let response = crate::common::client::get(proxy.addr(), "/");
    assert!([502, 504].contains(&response.status), "{response:?}");
    took(start);
}

#[test]
fn response_limit_is_504() {
    let backend = Backend::silent();
    let proxy = with("response", backend.addr);
    let mut client = Client::connect(proxy.addr());
    let start = Instant::now();
    assert_eq!(client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").status, 504);
    took(start);
    assert_eq!(backend.requests().len(), 1, "a request that may have been carried out is not repeated");
}

#[test]
fn response_limit_counts_from_the_whole_request() {
    let backend = Backend::echo();
    let proxy = with("response", backend.addr);
    let mut client = Client::connect(proxy.addr());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nh");
    dawdle(Duration::from_millis(800));
    client.send("i");
    assert_eq!(client.response().text(), "hi");
}

#[test]
fn response_head_that_stalls_is_504() {
    let backend = Backend::scripted(vec![Act::Request, Act::send("HTTP/1.1 200 OK\r\nConte"), Act::Hang]);
    let proxy = with("response", backend.addr);
    let start = Instant::now();
    let response = crate::common::client::get(proxy.addr(), "/");
    assert!([502, 504].contains(&response.status), "{response:?}");
    took(start);
}

#[test]
fn interim_responses_do_not_hold_a_request_for_ever() {
    let backend = Backend::serve(|conn| {
        if conn.request().is_some() {
            while conn.wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n").is_ok() {
                dawdle(Duration::from_millis(100));
            }
        }
    });
    let proxy = with("response", backend.addr);
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.response();
    assert!([502, 504].contains(&response.status), "{response:?}");
}

#[test]
fn server_that_stalls_within_the_body_is_cut_visibly() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
        Act::Hang,
    ]);
    let proxy = with("server", backend.addr);
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let start = Instant::now();
    assert!(client.try_response().is_err(), "a cut response looks whole");
    took(start);
}

#[test]
fn server_that_is_slow_but_alive_is_not_cut() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        Act::Drip(10, 1, Duration::from_millis(100)),
        Act::Hang,
    ]);
    let proxy = with("server", backend.addr);
    assert_eq!(crate::common::client::get(proxy.addr(), "/").body, pattern_bytes(10));
}

#[test]
fn server_that_does_not_read_is_given_up() {
    let backend = Backend::serve(|conn| {
        if conn.head().is_some() {
            conn.gate().pass();
        }
    });
    let proxy = with("server", backend.addr);
    let mut client = Client::connect(proxy.addr());
    let mut sender = client.wire.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        use std::io::Write;
        let _ = sender.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
        let _ = sender.write_all(&pattern_bytes(100_000_000));
    });
    let start = Instant::now();
    let response = client.response();
    assert!([502, 504].contains(&response.status), "{response:?}");
    took(start);
    drop(client);
    backend.gate().open();
    writer.join().unwrap();
}

#[test]
fn groups_and_listeners_have_limits_of_their_own() {
    let (silent, patient) = (
        Backend::silent(),
        Backend::serve(|conn| {
            if conn.request().is_some() {
                dawdle(Duration::from_millis(1000));
                conn.send(&response("late"));
            }
        }),
    );
    let proxy = Conf::http(&[silent.addr])
        .listen("timeouts = { response = \"10s\" }")
        .group("timeouts = { response = \"300ms\" }")
        .tables(&format!(
            "[backends.slow]\nservers = [\"{}\"]\n[[route]]\npath = \"/slow\"\nto = \"slow\"",
            patient.addr
        ))
        .tables("[timeouts]\nresponse = \"200ms\"")
        .start();
    let start = Instant::now();
    assert_eq!(crate::common::client::get(proxy.addr(), "/").status, 504);
    assert!(start.elapsed() < Duration::from_secs(8));
    assert_eq!(crate::common::client::get(proxy.addr(), "/slow").text(), "late");
}

#[test]
fn a_request_is_given_up_with_its_client_where_that_is_wanted() {
    let backend = Backend::silent();
    let conf = Conf::http(&[backend.addr]).listen("abort_on_close = true");
    let proxy = conf.tables("[access_log]\nto = \"{dir}/access.log\"").start();
    let mut client = Client::connect(proxy.addr());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    wait_until("the request is at the backend", || backend.requests().len() == 1);
    drop(client);
    wait_until("it is given up", || backend.open() == 0);
    let mut half = Client::connect(proxy.addr());
    half.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    half.shutdown_write();
    half.end();
    wait_until("the log says why", || {
        let text = std::fs::read_to_string(proxy.dir.join("access.log")).unwrap_or_default();
        text.matches("the client closed the connection").count() == 2
    });
}
