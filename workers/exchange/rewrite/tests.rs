//! Heads as they go out, byte for byte.

use super::*;
use crate::proto::h1::head::HeadLimits;

const LIMITS: HeadLimits = HeadLimits { bytes: 16 * 1024, fields: 100, by_target: false };
const DATE: &[u8] = b"Tue, 02 Jan 2024 03:04:05 GMT";

fn cx(trusted: bool) -> RequestContext<'static> {
    RequestContext {
        peer: Some([192, 0, 2, 1].into()),
        peer_trusted: trusted,
        scheme: "http",
        worker_pid: None,
        forward: None,
        default_host: b"127.0.0.1:8080",
    }
}

fn rewrite(raw: &str, cx: &RequestContext<'_>) -> String {
    let mut head = RequestHead::default();
    assert_eq!(head.parse(raw.as_bytes(), &LIMITS), Ok(Some(raw.len())), "{raw:?}");
    let mut out = Vec::new();
    request(&mut out, raw.as_bytes(), &head, cx);
    String::from_utf8(out).unwrap()
}

/// The outgoing lines of a request with these field lines behind `Host: a`, without those that every one has.
fn lines(field_lines: &str, cx: &RequestContext<'_>) -> Vec<String> {
    let out = rewrite(&format!("POST / HTTP/1.1\r\nHost: a\r\n{field_lines}\r\n"), cx);
    let always = ["POST / HTTP/1.1", "Host: a", "Via: 1.1 pointsman", ""];
    let forwarded = ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: a"];
    out.split("\r\n")
        .filter(|line| !always.contains(line) && (cx.peer_trusted || !forwarded.contains(line)))
        .map(str::to_string)
        .collect()
}

#[test]
fn a_request_as_it_goes_out() {
    let raw = "GET http://Example.com/a?b HTTP/1.1\r\nhost: example.com\r\nUser-Agent: x\r\nAccept:y \r\nConnection: close\r\n\r\n";
    let want = "GET /a?b HTTP/1.1\r\nHost: Example.com\r\nUser-Agent: x\r\nAccept: y\r\nX-Forwarded-For: 192.0.2.1\r\n\
        X-Forwarded-Proto: http\r\nX-Forwarded-Host: Example.com\r\nVia: 1.1 pointsman\r\n\r\n";
    assert_eq!(rewrite(raw, &cx(false)), want);
}

#[test]
fn an_http_1_0_request_becomes_1_1_with_a_host() {
    let want = "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n\
        X-Forwarded-Host: 127.0.0.1:8080\r\nVia: 1.0 pointsman\r\n\r\n";
    assert_eq!(rewrite("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &cx(false)), want, "RFC 9112 3.3");
}

#[test]
fn fields_of_one_hop_end_here() {
    for line in [
        "Connection: close",
        "Connection: keep-alive",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eA==",
        "Proxy-Authenticate: Basic",
        "Proxy: http://evil/",
        "TE: gzip",
        "Upgrade: websocket",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "Trailer: X-A",
        "Expect: 100-continue",
        "X-Pointsman-Worker: 1",
        "X_Pointsman_Worker: 1",
        "Content_Length: 3",
        "Transfer_Encoding: chunked",
        "Connection: upgrade\r\nUpgrade: h2c",
        "Connection: X-A\r\nX-A: 1",
        "Connection: Trailer\r\nTrailer: X-A",
        "Connection: Proxy\r\nProxy: http://evil/",
        "X-A: 1\r\nx-a: 2\r\nConnection: close, x-A",
    ] {
        assert_eq!(lines(&format!("{line}\r\n"), &cx(false)), [""; 0], "RFC 9110 7.6.1: {line}");
    }
}

#[test]
fn all_else_is_passed_on_in_order() {
    let given = "Accept: */*\r\nCookie: a=b\r\nCookie: c=d\r\nX-Empty:\r\nX-Bare:e\r\nX-Wide:  f \r\nX-Tab:\tf\r\nmy_field: g\r\nDate: h\r\nVia: 1.1 i\r\n";
    let want = [
        "Accept: */*",
        "Cookie: a=b",
        "Cookie: c=d",
        "X-Empty: ",
        "X-Bare: e",
        "X-Wide: f",
        "X-Tab: f",
        "my_field: g",
        "Date: h",
        "Via: 1.1 i",
    ];
    assert_eq!(lines(given, &cx(false)), want);
}

#[test]
fn framing_is_written_from_the_verdict() {
    for (given, want) in [
        ("Content-Length:  0005 \r\n", vec!["Content-Length: 5"]),
        ("Content-Length: 0\r\n", vec!["Content-Length: 0"]),
        ("tRANSFER-eNCODING: CHUNKED\r\n", vec!["Transfer-Encoding: chunked"]),
        ("Transfer-Encoding: chunked\r\nTrailer: X-A\r\n", vec!["Transfer-Encoding: chunked"]),
        ("Content-Length: 5\r\nExpect: 100-Continue\r\n", vec!["Expect: 100-continue", "Content-Length: 5"]),
        ("Content_Length: 7\r\nContent-Length: 5\r\n", vec!["Content-Length: 5"]),
    ] {
        assert_eq!(lines(given, &cx(false)), want, "RFC 9112 6.3: {given:?}");
    }
}

#[test]
fn connection_is_written_for_upgrade_and_te_only() {
    for (given, want) in [
        ("TE: trailers, deflate\r\nConnection: te\r\n", vec!["TE: trailers", "Connection: te"]),
        (
            "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n",
            vec!["Upgrade: websocket", "Connection: upgrade"],
        ),
        (
            "TE: trailers\r\nUpgrade: a\r\nConnection: te, upgrade\r\n",
            vec!["Upgrade: a", "TE: trailers", "Connection: upgrade, te"],
        ),
        ("Upgrade: websocket, h2c\r\nConnection: upgrade\r\n", vec![]),
    ] {
        assert_eq!(lines(given, &cx(false)), want, "RFC 9110 7.6.1, 7.8: {given:?}");
    }
}

#[test]
fn an_untrusted_peers_word_on_the_client_is_replaced() {
    for name in [
        "X-Forwarded-For",
        "x-forwarded-for",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded",
        "X-Forwarded-Server",
        "X-Forwarded-Prefix",
        "X_Forwarded_For",
        "X-Forwarded_For",
        "X.Forwarded.For",
        "Forwarded",
        "X-Real-IP",
        "X_Real_IP",
        "X-Client-IP",
        "Client-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "Fastly-Client-IP",
        "X-Cluster-Client-IP",
        "X-Original-Forwarded-For",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Original-Host",
        "X-Host",
        "Front-End-Https",
        "X-Envoy-External-Address",
        "X-ProxyUser-Ip",
        "X-HTTP-Host-Override",
        "X_ProxyUser_Ip",
        "X_HTTP_Host_Override",
    ] {
        let given = format!("{name}: evil\r\n");
        assert_eq!(lines(&given, &cx(false)), [""; 0], "{name}");
    }
}

#[test]
fn a_trusted_peers_word_is_kept_and_appended_to() {
    let given = "X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For:\r\nX-Forwarded-For: 198.51.100.8, 10.0.0.1\r\nX-Forwarded-Proto: https\r\n\
        X-Forwarded-Host: b\r\nX-Real-IP: 198.51.100.7\r\nForwarded: for=198.51.100.7\r\nX_Forwarded_For: evil\r\nX-Forwarded_For: evil\r\n";
    let want = [
        "X-Real-IP: 198.51.100.7",
        "X-Forwarded-For: 198.51.100.7, 198.51.100.8, 10.0.0.1, 192.0.2.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: b",
        "Forwarded: for=198.51.100.7, for=192.0.2.1;proto=http",
    ];
    assert_eq!(lines(given, &cx(true)), want, "RFC 7239 4");
    let want = ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: a"];
    assert_eq!(lines("", &cx(true)), want);
}

#[test]
fn peers_of_every_kind() {
    let with = |peer: Option<&str>| RequestContext { peer: peer.map(|p| p.parse().unwrap()), ..cx(true) };
    let got = |peer| lines("Forwarded: for=a\r\n", &with(peer));
    assert_eq!(got(Some("2001:db8::1"))[0], "X-Forwarded-For: 2001:db8::1");
    assert_eq!(got(Some("2001:db8::1"))[3], "Forwarded: for=a, for=\"[2001:db8::1]\";proto=http");
    assert_eq!(got(Some("::ffff:192.0.2.9"))[0], "X-Forwarded-For: 192.0.2.9");
    assert_eq!(got(Some("::ffff:192.0.2.9"))[3], "Forwarded: for=a, for=192.0.2.9;proto=http");
    assert_eq!(got(None)[0], "X-Forwarded-Proto: http", "a Unix socket's peer has no address to tell");
    assert_eq!(got(None)[2], "Forwarded: for=a, for=unknown;proto=http");
}

#[test]
fn the_workers_pid_is_written_when_wanted() {
    let cx = RequestContext { worker_pid: Some(4242), ..cx(false) };
    assert_eq!(lines("X-Pointsman-Worker: 1\r\n", &cx), ["X-Pointsman-Worker: 4242"]);
}

#[test]
fn max_forwards_counts_down() {
    let out = rewrite("TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 010\r\n\r\n", &cx(false));
    assert!(out.contains("\r\nMax-Forwards: 9\r\n"), "RFC 9110 7.6.2: {out}");
    let out = rewrite("GET / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 10\r\n\r\n", &cx(false));
    assert!(out.contains("\r\nMax-Forwards: 10\r\n"), "{out}");
    for (raw, want) in [
        ("TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", true),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", true),
        ("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 1\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", false),
    ] {
        let mut head = RequestHead::default();
        head.parse(raw.as_bytes(), &LIMITS).unwrap().unwrap();
        assert_eq!(ends_here(&head), want, "{raw:?}");
    }
}

fn respond(raw: &str, cx: &ResponseContext<'_>) -> String {
    let mut head = ResponseHead::default();
    assert_eq!(head.parse(raw.as_bytes(), &LIMITS), Ok(Some(raw.len())), "{raw:?}");
    let mut out = Vec::new();
    response(&mut out, raw.as_bytes(), &head, cx, DATE);
    String::from_utf8(out).unwrap()
}

const PLAIN: ResponseContext<'_> = ResponseContext {
    framing: OutFraming::None,
    connection: Persistence::Keep,
    switch_protocols: false,
    pass_trailers: false,
    keep_length: false,
    via: None,
};

#[test]
fn a_response_as_it_goes_out() {
    let raw = "HTTP/1.0 200 Fine\r\nserver: x\r\nContent-Length: 05\r\nConnection: x-a\r\nKeep-Alive: 5\r\nX-A: 1\r\nX-B:2\r\n\r\n";
    let cx = ResponseContext { framing: OutFraming::Length(5), connection: Persistence::Close, ..PLAIN };
    let want = "HTTP/1.1 200 Fine\r\nserver: x\r\nX-B: 2\r\nDate: Tue, 02 Jan 2024 03:04:05 GMT\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    assert_eq!(respond(raw, &cx), want);
}

#[test]
fn response_framing_is_what_the_context_says() {
    let raw = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\nDate: x\r\n\r\n";
    for (framing, pass_trailers, want) in [
        (OutFraming::Chunked, true, "Trailer: X-A\r\nDate: x\r\nTransfer-Encoding: chunked\r\n"),
        (OutFraming::Chunked, false, "Date: x\r\nTransfer-Encoding: chunked\r\n"),
        (OutFraming::UntilClose, false, "Date: x\r\n"),
        (OutFraming::Length(3), false, "Date: x\r\nContent-Length: 3\r\n"),
    ] {
        let cx = ResponseContext { framing, pass_trailers, ..PLAIN };
        assert_eq!(respond(raw, &cx), format!("HTTP/1.1 200 OK\r\n{want}\r\n"));
    }
    let raw = "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nDate: x\r\n\r\n";
    let cx = ResponseContext { keep_length: true, ..PLAIN };
    assert_eq!(respond(raw, &cx), "HTTP/1.1 304 Not Modified\r\nDate: x\r\nContent-Length: 7\r\n\r\n");
    let raw = "HTTP/1.1 204 x\r\nContent-Length: 0\r\nDate: x\r\n\r\n";
    assert_eq!(respond(raw, &PLAIN), "HTTP/1.1 204 x\r\nDate: x\r\n\r\n", "RFC 9110 8.6");
}

#[test]
fn only_a_101_that_is_passed_on_keeps_upgrade() {
    let raw = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
    let cx = ResponseContext { switch_protocols: true, ..PLAIN };
    let want = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    assert_eq!(respond(raw, &cx), want);
    for status in ["200 x", "101 x", "400 x", "427 x"] {
        let raw = format!("HTTP/1.1 {status}\r\nUpgrade: websocket\r\nConnection: upgrade\r\nDate: x\r\n\r\n");
        assert_eq!(respond(&raw, &PLAIN), format!("HTTP/1.1 {status}\r\nDate: x\r\n\r\n"), "RFC 9110 7.8");
    }
}

#[test]
fn a_426_says_which_protocols_would_do() {
    for (connection, want) in [
        (Persistence::Keep, "upgrade"),
        (Persistence::KeepHttp10, "upgrade, keep-alive"),
        (Persistence::Close, "upgrade, close"),
    ] {
        let raw = "HTTP/1.1 426 x\r\nUpgrade: websocket, IRC/6.9\r\nConnection: upgrade\r\nDate: x\r\n\r\n";
        let want = format!("HTTP/1.1 426 x\r\nDate: x\r\nUpgrade: websocket, IRC/6.9\r\nConnection: {want}\r\n\r\n");
        assert_eq!(respond(raw, &ResponseContext { connection, ..PLAIN }), want, "RFC 9110 15.5.22");
    }
    for upgrade in ["h2c", "TLS/1.3", "HTTP/2.0", "websocket, h2c", "TLS/1.2, websocket", "a b", ""] {
        let raw = format!("HTTP/1.1 426 x\r\nUpgrade: {upgrade}\r\nConnection: upgrade\r\nDate: x\r\n\r\n");
        assert_eq!(respond(&raw, &PLAIN), "HTTP/1.1 426 x\r\nDate: x\r\n\r\n", "RFC 9110 7.8: {upgrade:?}");
    }
    let raw = "HTTP/1.1 426 x\r\nUpgrade: websocket\r\nDate: x\r\n\r\n";
    assert_eq!(respond(raw, &PLAIN), "HTTP/1.1 426 x\r\nDate: x\r\n\r\n", "not named by Connection");
}

#[test]
fn fields_of_a_response_that_connection_names_end_here() {
    for line in ["X-A: 1", "Trailer: X-B", "Proxy: b", "Keep-Alive: timeout=5", "Proxy-Connection: x"] {
        let name = line.split(':').next().unwrap().to_lowercase();
        let raw = format!("HTTP/1.1 200 x\r\n{line}\r\nConnection: close, {name}\r\nDate: x\r\n\r\n");
        let cx = ResponseContext { pass_trailers: true, framing: OutFraming::Chunked, ..PLAIN };
        let want = "HTTP/1.1 200 x\r\nDate: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(respond(&raw, &cx), want, "RFC 9110 7.6.1: {line}");
    }
}

#[test]
fn an_interim_response_gets_no_date() {
    assert_eq!(
        respond("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", &PLAIN),
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    );
}
