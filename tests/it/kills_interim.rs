//! Requests that have had an interim response, and nothing more, when their worker is killed.

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::processes::replace_all;
use crate::common::proxy::Proxy;
use crate::common::wait_until;

/// A server that asks for the content with a 100, and answers when the gate opens.
fn asking() -> Backend {
    Backend::serve(|conn| {
        while let Some(mut request) = conn.head() {
            conn.send(b"HTTP/1.1 100 Continue\r\n\r\n");
            if conn.wire.request_body(&mut request).is_err() {
                return;
            }
            conn.gate().pass();
            conn.send(&response("done"));
        }
    })
}

/// A client whose request with `method` has been answered with 100.
fn asked(proxy: &Proxy, method: &str) -> Client {
    let mut client = Client::connect(proxy.addr());
    client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"));
    client.wire.begin();
    assert_eq!(client.wire.response_head().unwrap().status, 100);
    client
}

#[test]
fn what_must_not_be_repeated_is_answered_502() {
    let backend = asking();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut early = asked(&proxy, "POST");
    let mut late = asked(&proxy, "POST");
    late.send("hi");
    replace_all(&mut proxy, 2);
    backend.gate().open();
    for client in [&mut early, &mut late] {
        assert_eq!(client.response().status, 502);
    }
    assert_eq!(late.end(), End::Clean);
    assert_eq!(backend.heads(), 2, "a request was run twice");
}

#[test]
fn what_may_be_repeated_is_run_again() {
    let backend = asking();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let mut client = asked(&proxy, "PUT");
    client.send("hi");
    wait_until("the request is at the backend", || backend.heads() == 1);
    replace_all(&mut proxy, 2);
    client.wire.begin();
    assert_eq!(client.wire.response_head().unwrap().status, 100);
    backend.gate().open();
    assert_eq!(client.response().text(), "done");
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
}
