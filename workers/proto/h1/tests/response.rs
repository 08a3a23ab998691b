//! Responses: refused, taken, framed.

use super::*;
use crate::proto::h1::head::{LengthFault, Method, ResponseFraming, Version};
use crate::proto::h1::upgrade::protocol_was_offered;

use HeadError as E;

fn refused(section: &str, raw: &[u8], want: HeadError) {
    assert_eq!(response(raw).1, Err(want), "RFC {section}: {}", show(raw));
    let first = (0..=raw.len()).map(|len| response(&raw[..len]).1).find(|r| *r != Ok(None));
    assert_eq!(first, Some(Err(want)), "RFC {section}, byte by byte: {}", show(raw));
}

fn taken(raw: &[u8]) -> ResponseHead {
    let (head, result) = response(raw);
    assert_eq!(result, Ok(Some(raw.len())), "{}", show(raw));
    for len in 0..raw.len() {
        assert_eq!(response(&raw[..len]).1, Ok(None), "first {len} bytes of {}", show(raw));
    }
    head
}

#[test]
fn status_lines_refused() {
    for (section, raw, want) in [
        ("9112 4", b"<html>".as_slice(), E::StatusLine),
        ("9112 4", b"\r\nHTTP/1.1 200 OK\r\n", E::StatusLine),
        ("9112 4", b" HTTP/1.1 200 OK\r\n", E::StatusLine),
        ("9112 4", b"ICY 200 OK\r\n", E::StatusLine),
        ("9112 4", b"http/1.1 200 OK\r\n", E::StatusLine),
        ("9112 4", b"HTTP/1.1  200 OK\r\n", E::StatusCode),
        ("9112 4", b"HTTP/1.1\t200 OK\r\n", E::StatusLine),
        ("9112 4", b"HTTP/1.1200 OK\r\n", E::StatusLine),
        ("9112 4", b"HTTP/1.1\r\n", E::StatusLine),
        ("9112 4", b"HTTP/1.x 200 OK\r\n", E::StatusLine),
        ("9112 4", b"HTTP/1.? 200 OK\r\n", E::StatusLine),
        ("9112 4", b"HTTP/1.10 200 OK\r\n", E::StatusLine),
        ("9112 2.3", b"HTTP/1.2 200 OK\r\n", E::Version { major: 1, minor: 2 }),
        ("9112 2.3", b"HTTP/2.0 200 OK\r\n", E::Version { major: 2, minor: 0 }),
        ("9112 2.3", b"HTTP/2 200 OK\r\n", E::Version { major: 2, minor: 0 }),
        ("9112 2.3", b"HTTP/0.9 200 OK\r\n", E::Version { major: 0, minor: 0 }),
        ("9110 15", b"HTTP/1.1 20 OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 20\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 2\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 2000 OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 2xx OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 +20 OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 -20 OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 000 OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 099 OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 600 OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 999 OK\r\n", E::StatusCode),
        ("9110 15", b"HTTP/1.1 OK\r\n", E::StatusCode),
        ("9112 4", b"HTTP/1.1 200\tOK\r\n", E::StatusCode),
        ("9112 4", b"HTTP/1.1 200OK\r\n", E::StatusCode),
        ("9112 4", b"HTTP/1.1 200 O\x00K\r\n", E::Control { line: 1, byte: 0 }),
        ("9112 4", b"HTTP/1.1 200 O\x1bK\r\n", E::Control { line: 1, byte: 0x1b }),
        ("9112 4", b"HTTP/1.1 200 O\x7fK\r\n", E::Control { line: 1, byte: 0x7f }),
        ("9112 4", b"HTTP/1.1 200 O\rK\r\n", E::BareCr { line: 1 }),
        ("9112 2.2", b"HTTP/1.1 200 OK\n\n", E::BareLf { line: 1 }),
        ("9112 2.2", b"HTTP/1.1 200\n\n", E::BareLf { line: 1 }),
    ] {
        refused(section, raw, want);
    }
}

#[test]
fn fields_refused() {
    let length = |fault| E::Length { line: 2, fault };
    for (section, lines, want) in [
        ("9112 2.2", "A: b\nC: d\r\n", E::BareLf { line: 2 }),
        ("9112 2.2", "A: b\rC: d\r\n", E::BareCr { line: 2 }),
        ("9112 2.2", " A: b\r\n", E::LeadingSpace { line: 2 }),
        ("9112 5.2", "A: b\r\n c\r\n", E::ObsFold { line: 3 }),
        ("9112 5.1", "A : b\r\n", E::SpaceBeforeColon { line: 2 }),
        ("9112 5", ": b\r\n", E::EmptyName { line: 2 }),
        ("9112 5", "A\r\n", E::NoColon { line: 2 }),
        ("9110 5.5", "A: \0\r\n", E::Control { line: 2, byte: 0 }),
        ("9110 5.1", "A\0: b\r\n", E::NameByte { line: 2, byte: 0 }),
        ("9112 6.3", "Content-Length: x\r\n", length(LengthFault::Digit)),
        ("9112 6.3", "Content-Length: -1\r\n", length(LengthFault::Digit)),
        ("9112 6.3", "Content-Length: +1\r\n", length(LengthFault::Digit)),
        ("9112 6.3", "Content-Length:\r\n", length(LengthFault::Empty)),
        ("9112 6.3", "Content-Length: 5, 5\r\n", length(LengthFault::List)),
        ("9112 6.3", "Content-Length: 18446744073709551617\r\n", length(LengthFault::TooLarge)),
        ("9112 6.3", "Content-Length: 5\r\nContent-Length: 5\r\n", E::LengthDoubled { line: 3 }),
        ("9112 6.3", "Content-Length: 5\r\nContent-Length: 6\r\n", E::LengthDoubled { line: 3 }),
        ("9112 6.3", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", E::LengthWithCoding { line: 3 }),
        ("9112 6.3", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", E::LengthWithCoding { line: 3 }),
        ("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", E::CodingDoubled { line: 3 }),
        ("9112 6.3", "Transfer-Encoding: identity\r\n", E::Coding { line: 2 }),
        ("9112 6.3", "Transfer-Encoding: chunked, gzip\r\n", E::Coding { line: 2 }),
        ("9112 6.3", "Transfer-Encoding: gzip, chunked\r\n", E::CodingUnknown { line: 2 }),
        ("9112 6.3", "Transfer-Encoding: xchunked\r\n", E::Coding { line: 2 }),
        ("9110 7.6.1", "Connection: a b\r\n", E::Connection { line: 2 }),
    ] {
        refused(section, format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes(), want);
    }
    refused("9112 6.1", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", E::CodingInHttp10 { line: 2 });
}

#[test]
fn limits() {
    let limits = HeadLimits { bytes: 1024, fields: 8, by_target: false };
    let parse = |raw: &[u8]| ResponseHead::default().parse(raw, &limits);
    let start = b"HTTP/1.1 200 OK\r\nX: ".as_slice();
    assert_eq!(parse(&[start, &b"a".repeat(1024 - start.len())].concat()), Err(E::HeadTooLarge { limit: 1024 }));
    assert_eq!(parse(&[start, &b"a".repeat(1023 - start.len())].concat()), Ok(None));
    assert_eq!(parse(&[start, &b"a".repeat(1020 - start.len()), b"\r\n\r\n"].concat()), Ok(Some(1024)));
    let fields = |n: usize| [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"X: y\r\n".repeat(n), b"\r\n"].concat();
    assert!(matches!(parse(&fields(8)), Ok(Some(_))));
    assert_eq!(parse(&fields(9)), Err(E::TooManyFields { limit: 8 }));
    let long_reason = [b"HTTP/1.1 200 ".as_slice(), &b"a".repeat(5000)].concat();
    assert_eq!(parse(&long_reason), Err(E::HeadTooLarge { limit: 1024 }));
}

#[test]
fn a_response_is_taken_apart() {
    let raw = b"HTTP/1.0 404 Not \xc3\xa9\t Found\r\nDate: x\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n";
    let head = taken(raw);
    assert_eq!(
        (head.version, head.status, head.reason.of(raw)),
        (Version::Http10, 404, b"Not \xc3\xa9\t Found".as_slice())
    );
    assert!(head.keep_alive && head.has_date);
    assert_eq!(head.framing(Method::Get), ResponseFraming::Length(7));
    assert_eq!(taken(b"HTTP/1.1 200 \r\n\r\n").reason.len(), 0);
    assert_eq!(taken(b"HTTP/1.1 200\r\n\r\n").reason.len(), 0, "the blank may be missing");
    assert_eq!(taken(b"HTTP/1.1 200  OK\r\n\r\n").reason.len(), 3, "a reason may begin with a blank");
}

#[test]
fn framing() {
    use ResponseFraming::{Chunked, Length, None, UntilClose};
    let chunked = "Transfer-Encoding: chunked\r\n";
    let five = "Content-Length: 5\r\n";
    for (method, status, lines, want) in [
        (Method::Get, 200, "", UntilClose),
        (Method::Get, 200, five, Length(5)),
        (Method::Get, 200, "Content-Length: 0\r\n", Length(0)),
        (Method::Get, 200, chunked, Chunked),
        (Method::Post, 500, "", UntilClose),
        (Method::Get, 205, five, Length(5)),
        (Method::Head, 200, five, None),
        (Method::Head, 200, chunked, None),
        (Method::Head, 404, "", None),
        (Method::Get, 204, "", None),
        (Method::Get, 204, five, None),
        (Method::Get, 204, chunked, None),
        (Method::Get, 304, five, None),
        (Method::Get, 304, chunked, None),
        (Method::Get, 100, "", None),
        (Method::Get, 103, five, None),
        (Method::Get, 101, "", None),
        (Method::Connect, 200, five, None),
        (Method::Connect, 299, chunked, None),
        (Method::Connect, 404, five, Length(5)),
        (Method::Connect, 502, "", UntilClose),
    ] {
        let raw = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
        assert_eq!(taken(raw.as_bytes()).framing(method), want, "RFC 9112 6.3: {method:?} {raw:?}");
    }
}

#[test]
fn persistence() {
    for (raw, want) in [
        ("HTTP/1.1 200 x\r\nContent-Length: 1\r\n\r\n", true),
        ("HTTP/1.1 200 x\r\nContent-Length: 1\r\nConnection: close\r\n\r\n", false),
        ("HTTP/1.1 200 x\r\nContent-Length: 1\r\nConnection: foo, CLOSE\r\n\r\n", false),
        ("HTTP/1.0 200 x\r\nContent-Length: 1\r\n\r\n", false),
        ("HTTP/1.0 200 x\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", true),
        ("HTTP/1.1 204 x\r\n\r\n", true),
        ("HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("HTTP/1.1 103 x\r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.1 103 x\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("HTTP/1.1 103 x\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 103 x\r\nConnection: close\r\n\r\n", false),
        ("HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", true),
    ] {
        assert_eq!(taken(raw.as_bytes()).keep_alive, want, "RFC 9112 9.3: {raw:?}");
    }
}

#[test]
fn protected_fields_stay_though_named_by_connection() {
    let raw = b"HTTP/1.1 200 x\r\nConnection: content-length, x-a, set-cookie\r\nContent-Length: 5\r\nX-A: 1\r\nSet-Cookie: 2\r\n\r\n";
    let head = taken(raw);
    use crate::proto::h1::head::FieldName as F;
    let kinds: Vec<_> = head.fields.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [F::Connection, F::ContentLength, F::Nominated, F::Other]);
    assert_eq!(head.framing(Method::Get), ResponseFraming::Length(5));
}

#[test]
fn names_that_end_here_are_told() {
    for (lines, want) in [
        ("", ""),
        ("Connection: close, keep-alive, te, upgrade\r\n", ""),
        ("Connection: X-A\r\nConnection: close, set-cookie ,\tx-b\r\n", "X-A,x-b"),
        ("Connection: trailer, proxy\r\n", "trailer,proxy"),
    ] {
        let raw = format!("HTTP/1.1 200 x\r\n{lines}\r\n");
        assert_eq!(&*taken(raw.as_bytes()).nominated(raw.as_bytes()), want.as_bytes(), "RFC 9110 7.6.1: {lines:?}");
    }
}

#[test]
fn a_protocol_switched_to_must_have_been_offered() {
    for (offered, chosen, want) in [
        ("websocket", "websocket", true),
        ("websocket", "WebSocket", true),
        ("a, b/2", "b/2", true),
        ("websocket", "h2c", false),
        ("websocket", "websocket, h2c", false),
        ("a, b", "", false),
        ("b/2", "b", false),
    ] {
        assert_eq!(protocol_was_offered(offered.as_bytes(), chosen.as_bytes()), want, "{offered} / {chosen}");
    }
    let raw = b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(taken(raw).upgrade.unwrap().of(raw), b"websocket");
    assert!(taken(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n").upgrade.is_none());
}

#[test]
fn a_head_is_parsed_anew_each_time() {
    let mut head = ResponseHead::default();
    let rich = b"HTTP/1.1 101 x\r\nConnection: close, upgrade, x-y\r\nUpgrade: a\r\nDate: b\r\nContent-Length: 5\r\nX-Y: 1\r\n\r\n";
    assert!(head.parse(rich, &LIMITS).unwrap().is_some());
    let plain = b"HTTP/1.1 200 OK\r\nX-Y: 1\r\nUpgrade: a\r\n\r\n";
    assert_eq!(head.parse(plain, &LIMITS), Ok(Some(plain.len())));
    assert_eq!((head.keep_alive, head.has_date, head.upgrade, head.content_length), (true, false, None, None));
    assert_eq!(head.fields[0].kind, crate::proto::h1::head::FieldName::Other);
}
