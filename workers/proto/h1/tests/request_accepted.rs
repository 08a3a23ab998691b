//! Requests that are taken, and what is understood.

use super::*;
use crate::proto::h1::head::{BodyFraming, FieldName, Method, Scheme, TargetForm, Version};

/// A head that must be taken, whole and not before its last byte came.
fn taken(raw: &[u8]) -> RequestHead {
    let (head, result) = request(raw);
    assert_eq!(result, Ok(Some(raw.len())), "{}", show(raw));
    for len in 0..raw.len() {
        assert_eq!(request(&raw[..len]).1, Ok(None), "first {len} bytes of {}", show(raw));
    }
    let with_more = [raw, b"GET /smuggled HTTP/1.1\r\n"].concat();
    assert_eq!(request(&with_more).1, Ok(Some(raw.len())), "{}", show(raw));
    head
}

/// A POST with these field lines behind Host.
fn with(lines: &str) -> (Vec<u8>, RequestHead) {
    let raw = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes();
    let head = taken(&raw);
    (raw, head)
}

#[test]
fn a_request_is_taken_apart() {
    let raw = b"GET /a/b?c=d HTTP/1.1\r\nHost: Example.com:8080\r\nX-Empty:\r\nX-Bare:v\r\nX-Wide: \t a b \t \r\n\r\n";
    let head = taken(raw);
    assert_eq!((head.method, head.version, head.len), (Method::Get, Version::Http11, raw.len()));
    assert_eq!(head.method_text.of(raw), b"GET");
    assert_eq!(head.target.form, TargetForm::Origin);
    assert_eq!(head.target.text.of(raw), b"/a/b?c=d");
    assert_eq!(head.target.path(raw), b"/a/b");
    assert_eq!(head.target.query(raw), Some(b"c=d".as_slice()));
    assert_eq!(head.host.unwrap().of(raw), b"Example.com:8080");
    assert_eq!(head.host_name.unwrap().of(raw), b"Example.com");
    let fields: Vec<_> = head.fields.iter().map(|f| (f.name.of(raw), f.value.of(raw))).collect();
    let want: [(&[u8], &[u8]); 4] =
        [(b"Host", b"Example.com:8080"), (b"X-Empty", b""), (b"X-Bare", b"v"), (b"X-Wide", b"a b")];
    assert_eq!(fields, want);
    assert_eq!(head.framing, BodyFraming::None);
    assert!(head.keep_alive);
}

#[test]
fn one_empty_line_before_a_request_is_skipped() {
    let raw = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = taken(raw);
    assert_eq!(head.len, raw.len());
    assert_eq!(head.method_text.of(raw), b"GET");
}

#[test]
fn targets_of_the_four_forms() {
    type Row<'a> = (&'a str, TargetForm, &'a str, Option<&'a str>, &'a str);
    let rows: [Row<'_>; 22] = [
        ("GET /", TargetForm::Origin, "/", None, "/"),
        ("GET /?", TargetForm::Origin, "/", Some(""), "/?"),
        ("GET /??a", TargetForm::Origin, "/", Some("?a"), "/??a"),
        ("GET /a%2Fb%20c", TargetForm::Origin, "/a%2Fb%20c", None, "/a%2Fb%20c"),
        ("GET /a?100%", TargetForm::Origin, "/a", Some("100%"), "/a?100%"),
        ("GET /a?%zz%00", TargetForm::Origin, "/a", Some("%zz%00"), "/a?%zz%00"),
        ("GET //a/b", TargetForm::Origin, "//a/b", None, "//a/b"),
        (
            "GET /a:b@c;d=e,f!g$h&i'j(k)l*m+n-o.p_q~r",
            TargetForm::Origin,
            "/a:b@c;d=e,f!g$h&i'j(k)l*m+n-o.p_q~r",
            None,
            "/a:b@c;d=e,f!g$h&i'j(k)l*m+n-o.p_q~r",
        ),
        ("GET /[a]{b}|c^d`e", TargetForm::Origin, "/[a]{b}|c^d`e", None, "/[a]{b}|c^d`e"),
        ("GET /http://b/", TargetForm::Origin, "/http://b/", None, "/http://b/"),
        ("GET http://a", TargetForm::Absolute, "/", None, "/"),
        ("GET http://a/", TargetForm::Absolute, "/", None, "/"),
        ("GET http://a/b/c?d", TargetForm::Absolute, "/b/c", Some("d"), "/b/c?d"),
        ("GET http://a?d", TargetForm::Absolute, "/", Some("d"), "/?d"),
        ("GET http://a?d/e", TargetForm::Absolute, "/", Some("d/e"), "/?d/e"),
        ("GET HTTP://A:80/b", TargetForm::Absolute, "/b", None, "/b"),
        ("GET http://a:/b", TargetForm::Absolute, "/b", None, "/b"),
        ("GET https://a:80/b", TargetForm::Absolute, "/b", None, "/b"),
        ("OPTIONS *", TargetForm::Asterisk, "*", None, "*"),
        ("OPTIONS http://a", TargetForm::Absolute, "/", None, "*"),
        ("OPTIONS http://a/", TargetForm::Absolute, "/", None, "/"),
        ("OPTIONS /", TargetForm::Origin, "/", None, "/"),
    ];
    for (start, form, path, query, sent) in rows {
        let raw = format!("{start} HTTP/1.1\r\nHost: a:80\r\n\r\n").into_bytes();
        let head = taken(&raw);
        let mut out = Vec::new();
        head.target.write(&mut out, &raw, head.method);
        assert_eq!((head.target.form, head.target.path(&raw)), (form, path.as_bytes()), "{start}");
        assert_eq!(head.target.query(&raw), query.map(str::as_bytes), "{start}");
        assert_eq!(out, sent.as_bytes(), "{start}");
    }
}

#[test]
fn authority_form_with_connect() {
    let raw = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n";
    let head = taken(raw);
    assert_eq!((head.method, head.target.form), (Method::Connect, TargetForm::Authority));
    assert_eq!(head.host.unwrap().of(raw), b"example.com:443");
    assert_eq!(head.host_name.unwrap().of(raw), b"example.com");
    let raw = b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]\r\n\r\n";
    assert_eq!(taken(raw).host_name.unwrap().of(raw), b"[::1]");
}

#[test]
fn the_target_names_the_host_when_it_has_one() {
    let raw = b"GET HTTP://Example.com/x HTTP/1.1\r\nHost: example.COM:80\r\n\r\n";
    let head = taken(raw);
    assert_eq!(head.host.unwrap().of(raw), b"Example.com");
    assert_eq!(head.target.scheme, Some(Scheme::Http));
    let raw = b"GET http://a:81/x HTTP/1.0\r\n\r\n";
    let head = taken(raw);
    assert_eq!(head.host.unwrap().of(raw), b"a:81");
    assert_eq!(head.host_name.unwrap().of(raw), b"a");
}

#[test]
fn for_a_proxy_the_target_alone_names_the_host() {
    let mut head = RequestHead::default();
    let by_target = HeadLimits { by_target: true, ..LIMITS };
    for (raw, host) in [
        (&b"GET http://a:81/x HTTP/1.1\r\nHost: b\r\n\r\n"[..], &b"a:81"[..]),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", b"a:443"),
        (b"GET /x HTTP/1.1\r\nHost: b\r\n\r\n", b"b"),
    ] {
        assert_eq!(head.parse(raw, &by_target), Ok(Some(raw.len())));
        assert_eq!(head.host.unwrap().of(raw), host);
        assert_eq!(head.parse(raw, &LIMITS).is_ok(), host == b"b");
    }
    for wrong in ["", "Host: b/c\r\n", "Host: a\r\nHost: a\r\n"] {
        let raw = format!("GET http://a/ HTTP/1.1\r\n{wrong}\r\n");
        assert!(head.parse(raw.as_bytes(), &by_target).is_err(), "{raw}");
    }
}

#[test]
fn http_1_0_needs_no_host() {
    let head = taken(b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!((head.host, head.host_name, head.version), (None, None, Version::Http10));
    assert!(!head.keep_alive);
}

#[test]
fn framing_verdicts() {
    for (lines, want) in [
        ("", BodyFraming::None),
        ("Content-Length: 0\r\n", BodyFraming::Length(0)),
        ("Content-Length: 5\r\n", BodyFraming::Length(5)),
        ("Content-Length:5\r\n", BodyFraming::Length(5)),
        ("Content-Length: \t 5 \t \r\n", BodyFraming::Length(5)),
        ("cOnTeNt-LeNgTh: 0005\r\n", BodyFraming::Length(5)),
        ("Content-Length: 9223372036854775807\r\n", BodyFraming::Length(9_223_372_036_854_775_807)),
        ("Content-Length: 00000000000000000000000000000000000001\r\n", BodyFraming::Length(1)),
        ("Transfer-Encoding: chunked\r\n", BodyFraming::Chunked),
        ("Transfer-Encoding:chunked\r\n", BodyFraming::Chunked),
        ("Transfer-Encoding: \t Chunked \t\r\n", BodyFraming::Chunked),
        ("tRANSFER-eNCODING: CHUNKED\r\n", BodyFraming::Chunked),
        // Names that only look alike frame nothing.
        ("X-Content-Length: 5\r\n", BodyFraming::None),
        ("Content-Lengthy: 5\r\n", BodyFraming::None),
        ("Content_Length: 5\r\n", BodyFraming::None),
        ("Transfer_Encoding: chunked\r\n", BodyFraming::None),
        ("TransferEncoding: chunked\r\n", BodyFraming::None),
    ] {
        assert_eq!(with(lines).1.framing, want, "{lines:?}");
    }
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "PURGE"] {
        let raw = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n");
        assert_eq!(taken(raw.as_bytes()).framing, BodyFraming::Length(3), "{method}");
        let raw = format!("{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(taken(raw.as_bytes()).framing, BodyFraming::Chunked, "{method}");
    }
}

#[test]
fn long_names_do_not_wrap() {
    // A length kept in 8 or 16 bits would take these for Content-Length or Transfer-Encoding.
    let limits = HeadLimits { bytes: 256 * 1024, fields: 100, by_target: false };
    for pad in [256 - 14, 256, 65536 - 14, 65536] {
        let name = format!("Content-Length{}", "x".repeat(pad));
        let raw = format!("POST / HTTP/1.1\r\nHost: a\r\n{name}: 5\r\nContent-Length: 7\r\n\r\n");
        let mut head = RequestHead::default();
        assert_eq!(head.parse(raw.as_bytes(), &limits), Ok(Some(raw.len())));
        assert_eq!(head.framing, BodyFraming::Length(7));
        assert_eq!(head.fields[1].name.len(), 14 + pad);
    }
}

#[test]
fn persistence() {
    for (version, line, want) in [
        ("1.1", "", true),
        ("1.1", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Close\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.1", "Connection: foo,,close,\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.1", "Connection: xclose\r\n", true),
        ("1.1", "Connection:\r\n", true),
        ("1.1", "Proxy-Connection: close\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
        ("1.0", "Proxy-Connection: keep-alive\r\n", false),
    ] {
        let raw = format!("GET / HTTP/{version}\r\nHost: a\r\n{line}\r\n");
        assert_eq!(taken(raw.as_bytes()).keep_alive, want, "RFC 9112 9.3: {raw:?}");
    }
}

#[test]
fn expectations() {
    for (raw, want) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", true),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", false),
        ("POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", false),
    ] {
        assert_eq!(taken(raw.as_bytes()).expect_continue, want, "RFC 9110 10.1.1: {raw:?}");
    }
}

#[test]
fn upgrades_offered() {
    for (lines, want) in [
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", Some("websocket")),
        ("Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n", Some("websocket")),
        ("Connection: upgrade\r\nUpgrade: a/1, b\r\n", Some("a/1, b")),
        ("Upgrade: websocket\r\n", None),
        ("Connection: upgrade\r\n", None),
        ("Connection: upgrade\r\nUpgrade:\r\n", None),
        ("Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: foo\r\n", None),
        ("Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n", None),
        ("Connection: upgrade\r\nUpgrade: H2C\r\n", None),
        ("Connection: upgrade\r\nUpgrade: h2\r\n", None),
        ("Connection: upgrade\r\nUpgrade: h2c/1\r\n", None),
        ("Connection: upgrade\r\nUpgrade: websocket, h2c\r\n", None),
        ("Connection: upgrade\r\nUpgrade: ,h2c\r\n", None),
        ("Connection: upgrade\r\nUpgrade: HTTP/2.0\r\n", None),
        ("Connection: upgrade\r\nUpgrade: TLS/1.3\r\n", None),
    ] {
        let (raw, head) = with(lines);
        let got = head.upgrade.map(|span| span.of(&raw).to_vec());
        assert_eq!(got, want.map(|w| w.as_bytes().to_vec()), "RFC 9110 7.8: {lines:?}");
    }
    let raw = b"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(taken(raw).upgrade, None, "RFC 9110 7.8: not in HTTP/1.0");
}

#[test]
fn a_trace_may_say_that_it_has_no_content() {
    let raw = b"TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let (head, parsed) = request(raw);
    assert_eq!((parsed, head.framing), (Ok(Some(raw.len())), BodyFraming::Length(0)), "RFC 9110 9.3.8");
}

#[test]
fn trailers_asked_for() {
    for (lines, want) in [
        ("", false),
        ("TE: trailers\r\n", true),
        ("TE: Trailers\r\nConnection: te\r\n", true),
        ("TE: deflate;q=0.5, trailers\r\n", true),
        ("TE: gzip\r\nTE: trailers\r\n", true),
        ("TE:\r\n", false),
        ("TE: xtrailers\r\n", false),
        ("TE: trailers;q=0\r\n", false),
        ("TE: gzip\r\n", false),
    ] {
        assert_eq!(with(lines).1.te_trailers, want, "RFC 9110 10.1.4: {lines:?}");
    }
    let raw = b"GET / HTTP/1.0\r\nTE: trailers\r\nConnection: te\r\n\r\n";
    let (head, parsed) = request(raw);
    assert_eq!(parsed, Ok(Some(raw.len())));
    assert!(!head.te_trailers, "HTTP/1.0 has no trailers (RFC 9112 7.1.2)");
}

#[test]
fn max_forwards_of_trace_and_options() {
    for (start, value, want) in [
        ("TRACE /", "0", Some(0)),
        ("OPTIONS *", "7", Some(7)),
        ("OPTIONS /", "007", Some(7)),
        ("TRACE /", "99999999999999999999999", Some(u32::MAX)),
        ("GET /", "0", None),
        ("GET /", "x", None),
    ] {
        let raw = format!("{start} HTTP/1.1\r\nHost: a\r\nMax-Forwards: {value}\r\n\r\n");
        assert_eq!(taken(raw.as_bytes()).max_forwards, want, "RFC 9110 7.6.2: {raw:?}");
    }
}

#[test]
fn fields_named_by_connection_are_marked() {
    let (raw, head) = with("X-A: 1\r\nX-B: 2\r\nConnection: close, x-a\r\nKeep-Alive: 5\r\nx-A: 3\r\n");
    let kinds: Vec<_> = head.fields.iter().map(|f| (f.name.of(&raw), f.kind)).collect();
    let want: [(&[u8], FieldName); 6] = [
        (b"Host", FieldName::Host),
        (b"X-A", FieldName::Nominated),
        (b"X-B", FieldName::Other),
        (b"Connection", FieldName::Connection),
        (b"Keep-Alive", FieldName::KeepAlive),
        (b"x-A", FieldName::Nominated),
    ];
    assert_eq!(kinds, want);
}

#[test]
fn disguised_names_are_found_out() {
    for (name, want) in [
        ("X_Forwarded_For", FieldName::Disguised),
        ("x-forwarded_for", FieldName::Disguised),
        ("X.Forwarded.For", FieldName::Disguised),
        ("X_Forwarded_Anything_Of_Whatever_Length_It_May_Be", FieldName::Disguised),
        ("X_Real_IP", FieldName::Disguised),
        ("Content_Length", FieldName::Disguised),
        ("Transfer_Encoding", FieldName::Disguised),
        ("X_Pointsman_Worker", FieldName::Disguised),
        ("Keep_Alive", FieldName::Disguised),
        ("X_Custom", FieldName::Other),
        ("my_header", FieldName::Other),
        ("X-Forwarded-For", FieldName::XForwardedFor),
        ("X-Forwarded-Port", FieldName::ClientIdentity),
        ("x-forwarded", FieldName::ClientIdentity),
        ("X-Forwarder", FieldName::Other),
        ("Proxy", FieldName::Proxy),
    ] {
        let (_, head) = with(&format!("{name}: 1\r\n"));
        assert_eq!(head.fields[1].kind, want, "{name}");
    }
}

#[test]
fn obs_text_and_tabs_stand_in_values() {
    let raw = b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\t\xff!\"#\x80\r\n\r\n";
    assert_eq!(taken(raw).fields[1].value.of(raw), b"\xe9\t\xff!\"#\x80");
}

#[test]
fn a_head_is_parsed_anew_each_time() {
    let mut head = RequestHead::default();
    let rich = b"POST http://b/x HTTP/1.1\r\nHost: b\r\nExpect: 100-continue\r\nTE: trailers\r\nConnection: close, x-y, upgrade\r\n\
        Upgrade: foo\r\nContent-Length: 9\r\nX-Y: 1\r\n\r\n";
    assert!(head.parse(rich, &LIMITS).unwrap().is_some());
    let plain = b"GET / HTTP/1.1\r\nHost: a\r\nX-Y: 1\r\n\r\n";
    assert_eq!(head.parse(plain, &LIMITS), Ok(Some(plain.len())));
    assert_eq!((head.framing, head.keep_alive, head.expect_continue), (BodyFraming::None, true, false));
    assert_eq!((head.te_trailers, head.upgrade, head.target.scheme), (false, None, None));
    assert_eq!(head.fields[1].kind, FieldName::Other);
    assert_eq!(head.host.unwrap().of(plain), b"a");
}
