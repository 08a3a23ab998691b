//! Requests that are well-formed and still must not be forwarded as they are: what a peer may nominate, limit,
//! expect or leave unfinished (RFC 9110).

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, End};
use crate::common::h1::Broken;
use crate::common::proxy::Launch;
use crate::common::wait_until;

#[test]
fn connection_cannot_nominate_what_carries_meaning() {
    // RFC 9110 section 7.6.1: a field that is for all recipients must not be nominated.
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    for nominated in [
        "Host",
        "Content-Length",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "close, Host",
        "Content-Length, X-Forwarded-For, Host",
    ] {
        let mut client = Client::connect(proxy.addr());
        let response = client
            .ask(format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nConnection: {nominated}\r\n\r\nhello"));
        if response.status == 400 {
            assert!(backend.take_requests().is_empty(), "{nominated}");
            continue;
        }
        assert_eq!((response.status, response.text().as_str()), (200, "hello"), "{nominated}");
        let request = backend.take_requests().pop().unwrap();
        assert_eq!(request.fields.get("host"), Some("shop"), "{nominated}");
        assert_eq!(request.fields.get("x-forwarded-for"), Some("127.0.0.1"), "{nominated}");
        assert_eq!(request.fields.get("x-forwarded-proto"), Some("http"), "{nominated}");
        assert_eq!(request.fields.get("x-forwarded-host"), Some("shop"), "{nominated}");
    }
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n\r\n\
         5\r\nhello\r\n0\r\n\r\n",
    );
    assert!(response.status == 400 || response.text() == "hello", "{response:?}");
}

#[test]
fn backend_cannot_nominate_its_framing_away() {
    let backend = Backend::fixed("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Content-Length\r\n\r\nhello");
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.get("/");
    assert!(response.status == 502 || response.text() == "hello", "{response:?}");
    client.assert_as_announced(&response);
}

#[test]
fn absolute_form_overrides_host() {
    // RFC 9112 section 3.2.2: the host of the target counts; refusing the contradiction is as good.
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET http://right.example/x HTTP/1.1\r\nHost: wrong.example\r\n\r\n");
    if response.status == 200 {
        let request = backend.only_request();
        assert_eq!(request.fields.get("host"), Some("right.example"));
        assert_eq!(request.fields.get("x-forwarded-host"), Some("right.example"));
    } else {
        assert_eq!(response.status, 400);
        assert!(backend.requests().is_empty());
    }
}

#[test]
fn expectations_other_than_continue_are_417() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    for value in
        ["coffee", "100-continue, coffee", "coffee, 100-continue", "100-continu", "100-continue2", "\"100-continue\""]
    {
        let mut client = Client::connect(proxy.addr());
        let response =
            client.ask(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: {value}\r\n\r\nhello"));
        assert_eq!(response.status, 417, "Expect: {value}");
        client.assert_as_announced(&response);
        assert!(backend.requests().iter().all(|request| request.method == "GET"), "RFC 9110 section 10.1.1");
    }
}

#[test]
fn max_forwards_zero_is_answered_here() {
    // RFC 9110 section 7.6.2.
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    for method in ["TRACE", "OPTIONS"] {
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"));
        assert!([200, 204, 405].contains(&response.status), "{method}: {response:?}");
        assert!(backend.requests().is_empty(), "{method} was forwarded");
        client.assert_as_announced(&response);
        backend.take_requests();
    }
}

#[test]
fn max_forwards_is_counted_down() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 5\r\n\r\n");
    assert_eq!(response.status, 200);
    assert_eq!(backend.only_request().fields.get("max-forwards"), Some("4"));
}

#[test]
fn max_forwards_does_not_matter_elsewhere() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let response = Client::connect(proxy.addr()).ask("GET / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n");
    assert_eq!(response.status, 200);
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn trace_with_a_body_is_never_passed_on_with_it() {
    // RFC 9110 section 9.3.8: no content in a TRACE request.
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    if response.status == 200 {
        assert_eq!(backend.only_request().body, b"hello", "the body was lost but announced");
    }
    client.assert_as_announced(&response);
}

#[test]
fn request_cut_within_its_body_never_arrives_whole() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n",
        "GET / HTTP/1.1\r\nHost: a",
        "GE",
    ] {
        let mut client = Client::connect(proxy.addr());
        client.send(request);
        client.shutdown_write();
        match client.try_response() {
            Ok(response) => assert!(matches!(response.status, 400 | 408), "{request:?}: {response:?}"),
            Err(Broken::End | Broken::Reset(_)) => {}
            Err(broken) => panic!("{request:?}: {broken:?}"),
        }
        client.end();
        assert!(backend.requests().is_empty(), "{request:?} arrived whole");
    }
    wait_until("no half request is kept", || backend.open() == 0);
}

#[test]
fn client_that_resets_within_its_body_leaves_nothing_behind() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    for n in 1..=5 {
        let mut client = Client::connect(proxy.addr());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
        wait_until("the backend has the head", || backend.heads() == n);
        client.reset();
    }
    wait_until("no half request is kept", || backend.open() == 0);
    assert!(backend.requests().is_empty());
    assert_eq!(crate::common::client::get(proxy.addr(), "/").status, 200);
}

#[test]
fn answers_to_pipelined_requests_keep_their_order_when_one_fails() {
    // The second request is refused at once while the first is still waiting.
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            if request.target == "/slow" {
                conn.gate().pass();
            }
            conn.send(&response(&request.target));
        }
    });
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /y HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the first request has arrived", || backend.requests().len() == 1);
    backend.gate().open();
    let first = client.response();
    assert_eq!((first.status, first.text().as_str()), (200, "/slow"));
    assert_eq!(client.response().status, 400);
    client.end();
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn refusals_are_received_although_the_client_keeps_sending() {
    // RFC 9112 section 9.6: closing with unread data would reset and destroy the answer.
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    for _ in 0..10 {
        let mut client = Client::connect(proxy.addr());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: nonsense\r\n\r\n");
        client.send(vec![b'x'; 300_000]);
        assert_eq!(client.response().status, 400);
        client.end();
    }
}

#[test]
fn clean_end_follows_a_refusal() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask("GET / HTTP/1.1\r\n\r\n").status, 400);
    assert_eq!(client.end(), End::Clean);
}

#[test]
fn trailers_that_connection_names_end_here_and_the_others_go_on() {
    // RFC 9110 section 7.6.1.
    let backend = Backend::fixed(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-one\r\nX-One: head\r\nTrailer: X-One, X-Two\r\n\r\n\
         2\r\nok\r\n0\r\nX-One: 1\r\nX-Two: 2\r\nContent-Length: 3\r\n\r\n",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for (te, want) in [("TE: trailers\r\nConnection: te\r\n", vec![("X-Two", "2")]), ("", vec![])] {
        let response = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{te}\r\n"));
        assert_eq!(response.text(), "ok");
        assert!(!response.fields.has("x-one"), "{response:?}");
        let trailers: Vec<(&str, &str)> =
            response.trailers.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(trailers, want, "{te:?}");
    }
}

#[test]
fn a_426_says_what_to_upgrade_to() {
    // RFC 9110 section 15.5.22; HTTP and TLS are not to be had here (section 7.8).
    for (upgrade, want) in [("websocket", Some("websocket")), ("h2c", None), ("TLS/1.3, websocket", None)] {
        let backend = Backend::fixed(format!(
            "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\nContent-Length: 0\r\n\r\n"
        ));
        let proxy = Launch::http(&[backend.addr]).start();
        let mut client = Client::connect(proxy.addr());
        let response = client.get("/");
        assert_eq!((response.status, response.fields.get("upgrade")), (426, want));
        assert_eq!(response.fields.lists("connection", "upgrade"), want.is_some(), "{response:?}");
        // It is no agreement: what follows is a request.
        assert_eq!(client.get("/").status, 426);
    }
}
