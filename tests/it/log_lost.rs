//! What the access log says of requests over which a worker died and that are not run again: operators must find out
//! what a server may have done.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::common::backend::{Act, Backend};
use crate::common::client::Client;
use crate::common::processes::{alive, replace_all};
use crate::common::proxy::Proxy;
use crate::common::wait_until;
use crate::logs::{json, logging};

fn kill_the_worker(proxy: &mut Proxy) {
    let worker = proxy.workers()[0];
    kill(worker, Signal::SIGKILL).unwrap();
    wait_until("it is dead", || !alive(worker));
    proxy.wait_for_workers(1);
}

fn assert_line(line: &Value, method: &str, target: &str, server: Option<&Backend>) {
    for (name, value) in [("method", method), ("target", target), ("version", "HTTP/1.1"), ("host", "shop.test")] {
        assert_eq!(line[name], value, "{line}");
    }
    assert_eq!([&line["referer"], &line["user_agent"]], ["http://r/", "ua"], "{line}");
    assert_eq!((&line["status"], &line["total_us"]), (&502.into(), &Value::Null));
    assert_eq!(line["backend"], server.map_or(Value::Null, |server| server.addr.to_string().into()));
    assert_eq!(line["reason"], "the worker that served the request died");
}

const FIELDS: &str = "Host: shop.test\r\nUser-Agent: ua\r\nReferer: http://r/\r\n";

#[test]
fn a_request_that_must_not_be_repeated_is_in_the_log_and_not_run_again() {
    let backend = Backend::silent();
    let mut proxy = logging("json", &[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send(format!("POST /pay?order=7 HTTP/1.1\r\n{FIELDS}Content-Length: 5\r\n\r\nmoney"));
    wait_until("the server has it", || backend.heads() == 1);
    kill_the_worker(&mut proxy);
    let response = client.response();
    assert_eq!((response.status, response.closes()), (502, true));
    let line = json(&proxy, 1).pop().unwrap();
    assert_line(&line, "POST", "/pay?order=7", Some(&backend));
    assert_eq!(line["bytes_out"], response.body.len());
    assert_eq!((backend.heads(), backend.connections()), (1, 1), "it was run again");
}

#[test]
fn so_is_one_whose_body_has_outgrown_the_workers_memory() {
    const SENT: usize = 200_000;
    let gone = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&gone);
    let backend = Backend::serve(move |conn| {
        let mut at = conn.head().map_or(0, |_| conn.wire.buffer.len());
        while at < SENT {
            at += conn.wire.stream.read(&mut [0; 65536]).unwrap();
            count.store(at, Ordering::SeqCst);
        }
        conn.hang();
    });
    let mut proxy = logging("json", &[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send(format!("PUT /file HTTP/1.1\r\n{FIELDS}Content-Length: 4000000\r\n\r\n"));
    wait_until("the server has the head", || backend.heads() == 1);
    client.send(vec![b'x'; SENT]);
    wait_until("the server has more than a worker keeps", || gone.load(Ordering::SeqCst) >= SENT);
    kill_the_worker(&mut proxy);
    assert_eq!(client.response().status, 502);
    assert_line(&json(&proxy, 1).pop().unwrap(), "PUT", "/file", Some(&backend));
    assert_eq!(backend.connections(), 1, "it was run again");
}

#[test]
fn a_request_over_which_two_workers_died_is_in_the_log() {
    let backend = Backend::silent();
    let mut proxy = logging("json", &[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send(format!("HEAD /deadly HTTP/1.1\r\n{FIELDS}\r\n"));
    for times in 1..=2 {
        wait_until("a server has it", || backend.heads() == times);
        kill_the_worker(&mut proxy);
    }
    // There is no content in an answer to HEAD, also when nobody knows but from what a dead worker left.
    let response = client.response_to("HEAD");
    assert_eq!((response.status, response.body.len(), response.closes()), (502, 0, true));
    let line = json(&proxy, 1).pop().unwrap();
    assert_line(&line, "HEAD", "/deadly", None);
    assert_eq!((&line["bytes_out"], backend.heads()), (&0.into(), 2));
}

#[test]
fn a_request_cut_off_within_its_answer_has_no_line() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
        Act::Hang,
    ]);
    let other = Backend::ok();
    let tables = format!("[backends.other]\nservers = [\"{}\"]\n[[route]]\npath = \"/ok\"\nto = \"other\"", other.addr);
    let mut proxy = logging("json", &[backend.addr]).tables(&tables).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n");
    client.wire.begin();
    client.wire.response_head().unwrap();
    replace_all(&mut proxy, 1);
    assert_eq!(client.read_to_end().0, b"hello");
    // What a worker logs later comes behind whatever it would have logged of that.
    assert_eq!(crate::common::client::get(proxy.addr(), "/ok").status, 200);
    assert_eq!(json(&proxy, 1)[0]["target"], "/ok");
}
