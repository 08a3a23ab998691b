//! HTTP/1 as it should be: persistence, framing both ways, fields added, kept and removed.

use std::io::Write;
use std::thread;

use crate::common::backend::{Act, Backend, response, response_with};
use crate::common::client::{Client, End, get};
use crate::common::h1::Framing;
use crate::common::proxy::{Conf, Launch};
use crate::common::{check_pattern, pattern_bytes, wait_until};

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
fn request_byte_by_byte_is_the_same_request() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let request = b"POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0a\r\n0123456789\r\n0\r\n\r\n";
    for _ in 0..2 {
        for byte in request {
            client.send([*byte]);
        }
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "abc0123456789"));
    }
}

#[test]
fn response_byte_by_byte_is_the_same_response() {
    let answer =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n3\r\nabc\r\n0a\r\n0123456789\r\n0\r\n\r\n";
    let backend = Backend::serve(move |conn| {
        while conn.request().is_some() {
            for byte in answer {
                conn.send(&[*byte]);
            }
        }
    });
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!((response.text().as_str(), response.fields.get("x-a")), ("abc0123456789", Some("b")));
    }
}

#[test]
fn head_has_the_length_and_no_body() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            let body: &[u8] = if request.method == "HEAD" { b"" } else { b"12345" };
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
            conn.send(body);
        }
    });
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((response.status, response.fields.get("content-length")), (200, Some("5")));
    assert_eq!(client.get("/").text(), "12345");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn head_of_a_chunked_resource_has_no_body() {
    let backend = Backend::fixed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..2 {
        let response = client.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((response.status, response.closes()), (200, false));
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn responses_204_and_304_have_no_body() {
    for head in [
        "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
        // The length a 200 would have had (RFC 9110 section 8.6).
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n",
    ] {
        let backend = Backend::fixed(head);
        let proxy = Launch::http(&[backend.addr]).workers(1).start();
        let mut client = Client::connect(proxy.addr());
        for _ in 0..2 {
            let response = client.get("/");
            assert_eq!(response.framing, Framing::Empty);
            assert!(!response.fields.has("transfer-encoding"), "{response:?}");
            assert!(response.status != 204 || !response.fields.has("content-length"), "{response:?}");
        }
        assert_eq!(backend.connections(), 1, "{head:?}");
    }
}

#[test]
fn reset_content_is_sent_without_a_body() {
    let backend = Backend::fixed("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n");
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!((response.status, response.body.len()), (205, 0));
    }
}

#[test]
fn early_hints_reach_a_1_1_client_only() {
    let backend = Backend::fixed(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        assert_eq!(response.interim.len(), 1);
        assert_eq!(response.interim[0].0, 103);
        assert!(response.interim[0].1.has("link"), "{response:?}");
    }
    let response = Client::connect(proxy.addr()).ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!((response.status, response.interim.len()), (200, 0), "RFC 9110 section 15.2");
}

#[test]
fn expect_continue_gets_100_before_the_body() {
    let backend = Backend::serve(|conn| {
        while let Some(mut request) = conn.head() {
            if request.fields.lists("expect", "100-continue") {
                conn.send(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            conn.wire.request_body(&mut request).unwrap();
            conn.send(&response_with("", &request.body));
        }
    });
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        client.wire.begin();
        let interim = client.wire.response_head().unwrap();
        assert_eq!(interim.status, 100, "{interim:?}");
        client.send("hello");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "hello"));
        assert!(response.interim.len() <= 1, "{response:?}");
    }
}

#[test]
fn expect_continue_with_a_refusal_needs_no_body() {
    // The backend refuses without having seen the body (RFC 9110 section 10.1.1).
    let backend = Backend::scripted(vec![
        Act::Head,
        Act::send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"),
        Act::HalfClose,
        Act::Hang,
    ]);
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
    // The client may send the body or not: the proxy cannot know, so these bytes must not become a request.
    client.send("GET /");
    client.end();
    assert_eq!(backend.heads(), 1);
}

#[test]
fn expect_continue_from_1_0_is_ignored() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi");
    assert_eq!((response.status, response.interim.len(), response.text().as_str()), (200, 0, "hi"));
}

#[test]
fn bodies_of_every_size_go_both_ways() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for size in [0, 1, 2, 1023, 4096, 16_383, 16_384, 16_385, 65_535, 65_536, 200_000, 3_000_000] {
        let body = pattern_bytes(size);
        // The answer is as large as the request: whoever does not read while sending would lock up here.
        let mut sender = client.wire.stream.try_clone().unwrap();
        let sent = body.clone();
        let writer = thread::spawn(move || {
            write!(sender, "POST /{size} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n").unwrap();
            sender.write_all(&sent).unwrap();
        });
        let response = client.response();
        writer.join().unwrap();
        assert_eq!(response.body.len(), size);
        check_pattern(0, &response.body);
    }
}

#[test]
fn chunked_bodies_of_every_cut_go_both_ways() {
    let backend = Backend::answering(|request| {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in request.body.chunks(7_001) {
            write!(answer, "{:X}\r\n", piece.len()).unwrap();
            answer.extend(piece);
            answer.extend(b"\r\n");
        }
        answer.extend(b"0\r\n\r\n");
        answer
    });
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for (size, cut) in [(0, 1), (1, 1), (100, 1), (1000, 7), (100_000, 333), (1_000_000, 100_000), (70_000, 65_536)] {
        let mut request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in pattern_bytes(size).chunks(cut) {
            write!(request, "{:x}\r\n", piece.len()).unwrap();
            request.extend(piece);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\n\r\n");
        let response = client.ask(&request);
        assert_eq!(response.body.len(), size);
        check_pattern(0, &response.body);
    }
}

#[test]
fn response_trailers_are_for_clients_that_want_them() {
    let backend = Backend::fixed(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let wants = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    let response = client.ask(wants);
    assert_eq!((response.text().as_str(), response.trailers.get("x-sum")), ("ok", Some("42")));
    let response = client.get("/");
    assert_eq!((response.text().as_str(), response.trailers.0.len()), ("ok", 0), "RFC 9110 section 6.5.1");
}

#[test]
fn request_trailers_never_become_header_fields() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Late: 1\r\nHost: b\r\nContent-Length: 5\r\n\r\n",
    );
    assert_eq!(response.status, 200);
    let request = backend.only_request();
    assert!(!request.fields.has("x-late"), "{request:?}");
    assert_eq!(request.fields.get("host"), Some("a"));
    // RFC 9110 section 6.5.1: framing and routing fields have no place in trailers.
    assert!(!request.trailers.has("host") && !request.trailers.has("content-length"), "{request:?}");
    assert_eq!(client.get("/").status, 200);
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
fn body_until_close_ends_cleanly() {
    let body = pattern_bytes(300_000);
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
        Act::send(body.clone()),
        Act::Close,
    ]);
    let proxy = Launch::http(&[backend.addr]).start();
    let response = get(proxy.addr(), "/");
    assert_eq!(response.body.len(), body.len());
    check_pattern(0, &response.body);
}

#[test]
fn hop_by_hop_fields_go_no_further() {
    let backend = Backend::fixed(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Inner, keep-alive\r\nX-Inner: 1\r\nX-Outer: 2\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\r\nok",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Secret , keep-alive,, X-Also\r\nX-Secret: 1\r\nX-Also: 1\r\n\
         X-Public: 1\r\nKeep-Alive: 300\r\nProxy-Connection: close\r\nTE: gzip\r\n\r\n",
    );
    assert_eq!(response.status, 200);
    let request = backend.only_request();
    for name in ["x-secret", "x-also", "keep-alive", "proxy-connection", "te", "upgrade"] {
        assert!(!request.fields.has(name), "{name} was passed on: {request:?}");
    }
    assert_eq!(request.fields.get("x-public"), Some("1"));
    for name in ["x-inner", "keep-alive", "proxy-connection"] {
        assert!(!response.fields.has(name), "{name} was passed back: {response:?}");
    }
    assert_eq!(response.fields.get("x-outer"), Some("2"));
    let mut client = Client::connect(proxy.addr());
    let response = client
        .ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: X-One\r\nX-One: 1\r\nX-Two: 2\r\nConnection: x-two\r\n\r\n");
    assert_eq!(response.status, 200);
    let request = backend.requests().pop().unwrap();
    assert!(!request.fields.has("x-one") && !request.fields.has("x-two"), "RFC 9110 section 7.6.1: {request:?}");
}

#[test]
fn forwarded_fields_of_an_untrusted_client_are_replaced() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.ask(
        "GET / HTTP/1.1\r\nHost: shop.example:81\r\nX-Forwarded-For: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\nForwarded: for=1.2.3.4\r\n\r\n",
    );
    let request = backend.only_request();
    assert_eq!(request.fields.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.fields.get("x-forwarded-proto"), Some("http"));
    assert_eq!(request.fields.get("x-forwarded-host"), Some("shop.example:81"));
    assert_eq!(request.fields.get("host"), Some("shop.example:81"), "the host is kept");
    assert!(!request.fields.all("forwarded").iter().any(|value| value.contains("1.2.3.4")), "{request:?}");
}

#[test]
fn forwarded_fields_of_a_trusted_proxy_are_appended_to() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).top("trusted_proxies = [\"127.0.0.2\", \"10.0.0.0/8\"]");
    let proxy = conf.start();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
                   X-Forwarded-Host: b\r\n\r\n";
    Client::connect_from("127.0.0.2", proxy.addr()).ask(request);
    Client::connect_from("127.0.0.3", proxy.addr()).ask(request);
    let requests = backend.requests();
    let list = |n: usize| requests[n].fields.all("x-forwarded-for").join(", ");
    assert_eq!((list(0).as_str(), list(1).as_str()), ("1.2.3.4, 127.0.0.2", "127.0.0.3"));
    assert_eq!(requests[0].fields.get("x-forwarded-proto"), Some("https"));
    assert_eq!(requests[0].fields.get("x-forwarded-host"), Some("b"));
    assert_eq!(requests[1].fields.get("x-forwarded-proto"), Some("http"));
    assert_eq!(requests[1].fields.get("x-forwarded-host"), Some("a"));
}

#[test]
fn target_and_fields_arrive_as_sent() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let target = "/a//b/%2e%2E/c;p=1/..?x=%20&y[]=*&&z=~'(),!$@:/?";
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(
        [
            format!(
                "GET {target} HTTP/1.1\r\nHost: a\r\nAccept: b\r\naccept:c\r\nX-Empty:\r\nX-Blank:  \t a b \t \r\n"
            )
            .as_bytes(),
            b"X-Bytes: \xc3\xa9\xff\r\nCookie: a=b; c=\"d\"\r\n\r\n",
        ]
        .concat(),
    );
    assert_eq!(response.status, 200);
    let request = backend.only_request();
    assert_eq!(request.target, target);
    assert_eq!(request.fields.all("accept"), ["b", "c"], "order is kept (RFC 9110 section 5.3)");
    assert_eq!(request.fields.get("x-empty"), Some(""));
    assert_eq!(request.fields.get("x-blank"), Some("a b"));
    assert_eq!(request.fields.get("x-bytes"), Some("\u{c3}\u{a9}\u{ff}"));
    assert_eq!(request.fields.get("cookie"), Some("a=b; c=\"d\""));
}

#[test]
fn response_fields_arrive_as_sent_and_dated() {
    let backend = Backend::fixed(
        "HTTP/1.1 299 Quite \u{e9}\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\nSet-Cookie: b=2\r\nServer: s\r\n\r\n",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let response = get(proxy.addr(), "/");
    assert_eq!(response.status, 299);
    assert_eq!(response.fields.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(response.fields.get("server"), Some("s"));
    let date = response.fields.get("date").expect("RFC 9110 section 6.6.1");
    assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");

    let dated = Backend::fixed("HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n");
    let proxy = Launch::http(&[dated.addr]).start();
    assert_eq!(get(proxy.addr(), "/").fields.get("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
}

#[test]
fn absolute_form_is_forwarded_in_origin_form() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    for (line, target) in [
        ("GET http://shop.example/a?b HTTP/1.1", "/a?b"),
        ("GET http://shop.example HTTP/1.1", "/"),
        ("GET HTTP://shop.example?q HTTP/1.1", "/?q"),
        ("OPTIONS http://shop.example HTTP/1.1", "*"),
    ] {
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(format!("{line}\r\nHost: shop.example\r\n\r\n"));
        assert_eq!(response.status, 200, "{line}");
        let request = backend.take_requests().pop().unwrap();
        assert_eq!(request.target, target, "{line}");
        assert_eq!(request.fields.get("host"), Some("shop.example"));
    }
}

#[test]
fn options_asterisk_is_forwarded() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let response = Client::connect(proxy.addr()).ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(response.status, 200);
    assert_eq!(backend.only_request().target, "*");
}

#[test]
fn every_method_is_passed_on() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "M-SEARCH", "get", "X!#$%&'*+.^_`|~"]
    {
        let response = client.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"));
        assert_eq!((response.status, response.fields.get("x-method")), (200, Some(method)));
    }
}

#[test]
fn empty_line_before_a_request_is_skipped() {
    // RFC 9112 section 2.2: at least one; old clients send it after a POST body.
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((client.response().status, client.response().status), (200, 200));
}

#[test]
fn early_answer_is_relayed_and_the_body_never_read_as_a_request() {
    let backend = Backend::serve(|conn| {
        if conn.head().is_some() {
            conn.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
            conn.hang();
        }
    });
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    // What the client still sends looks like requests.
    let inner = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".repeat(4000);
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", inner.len()));
    let mut sender = client.wire.stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        let _ = sender.write_all(inner.as_bytes());
    });
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
    writer.join().unwrap();
    if response.closes() {
        client.read_to_end();
    }
    assert_eq!(backend.heads(), 1);
    assert_eq!(get(proxy.addr(), "/next").status, 413);
    assert_eq!(backend.heads(), 2);
}

#[test]
fn early_answer_on_a_kept_connection_does_not_poison_it() {
    // The backend answers at once and never reads the body: the proxy must not reuse that connection.
    let backend = Backend::serve(|conn| {
        if conn.head().is_some() {
            conn.send(&response("early"));
            conn.hang();
        }
    });
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    for _ in 0..3 {
        let mut client = Client::connect(proxy.addr());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nonly the beginning");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "early"));
    }
    assert_eq!(backend.connections(), 3);
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
