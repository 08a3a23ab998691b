//! HTTP/1 framing as it should be: bodies of every size both ways, answers without one, interim and early answers, trailers.

use std::io::Write;
use std::thread;

use crate::common::backend::{Act, Backend, response, response_with};
use crate::common::client::{Client, get};
use crate::common::h1::Framing;
use crate::common::proxy::Launch;
use crate::common::{check_pattern, pattern_bytes};

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
