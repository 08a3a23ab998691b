//! Requests that are refused, and how.

use super::*;
use crate::proto::h1::head::{HostFault, LengthFault, Span};

use HeadError as E;

#[test]
fn line_discipline() {
    let line1 = |byte| E::MethodByte { byte };
    for (section, raw, want) in [
        ("9112 2.2", b"GET / HTTP/1.1\nHost: a\r\n\r\n".as_slice(), E::BareLf { line: 1 }),
        ("9112 2.2", b"GET / HTTP/1.1\n\n", E::BareLf { line: 1 }),
        ("9112 2.2", b"GET /\n", E::BareLf { line: 1 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\n\r\n", E::BareLf { line: 2 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\n", E::BareLf { line: 3 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n", E::BareLf { line: 3 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\r\nX\n: c\r\n\r\n", E::BareLf { line: 3 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\r\nX:\nY: c\r\n\r\n", E::BareLf { line: 3 }),
        ("9112 2.2", b"GET / HTTP/1.1\rHost: a\r\n\r\n", E::BareCr { line: 1 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\rHost: a\r\n\r\n", E::BareCr { line: 1 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", E::BareCr { line: 2 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", E::BareCr { line: 2 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\rX", E::BareCr { line: 3 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\r\n", E::BareCr { line: 3 }),
        ("9112 2.2", b"\n", E::BareLf { line: 1 }),
        ("9112 2.2", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", E::BareLf { line: 1 }),
        ("9112 2.2", b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", E::BareCr { line: 1 }),
        ("9112 2.2", b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", E::EmptyLineFirst),
        ("9112 2.2", b"\r\n\r", E::EmptyLineFirst),
        ("9112 2.2", b"\r\n\n", line1(b'\n')),
        ("9112 2.2", b"\r\n GET / HTTP/1.1\r\n", line1(b' ')),
        ("9112 2.2", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", line1(b' ')),
        ("9112 2.2", b"\tGET / HTTP/1.1\r\nHost: a\r\n\r\n", line1(b'\t')),
        ("9112 2.2", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", E::LeadingSpace { line: 2 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", E::LeadingSpace { line: 2 }),
        ("9112 2.2", b"GET / HTTP/1.1\r\n \r\n", E::LeadingSpace { line: 2 }),
        ("9112 5.2", b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", E::ObsFold { line: 3 }),
        ("9112 5.2", b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", E::ObsFold { line: 3 }),
        ("9112 5.2", b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n \r\n\r\n", E::ObsFold { line: 4 }),
        ("9112 5.2", b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n", E::Coding { line: 3 }),
        ("9112 5.2", b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n chunked\r\n\r\n", E::ObsFold { line: 4 }),
    ] {
        refused(section, raw, want);
    }
}

#[test]
fn request_line() {
    let version = |major, minor| E::Version { major, minor };
    for (section, raw, want) in [
        ("9112 3", b"GET  / HTTP/1.1\r\n".as_slice(), E::DoubledSpace),
        ("9112 3", b"GET /  HTTP/1.1\r\n", E::DoubledSpace),
        ("9112 3", b"GET\t/ HTTP/1.1\r\n", E::MethodByte { byte: b'\t' }),
        ("9112 3", b"GET \t/ HTTP/1.1\r\n", E::TargetByte { byte: b'\t' }),
        ("9112 3", b"GET /\tHTTP/1.1\r\n", E::TargetByte { byte: b'\t' }),
        ("9112 3", b"GET /\x0bHTTP/1.1\r\n", E::TargetByte { byte: 0x0b }),
        ("9112 3", b"GET /\x0cHTTP/1.1\r\n", E::TargetByte { byte: 0x0c }),
        ("9112 3", b"GET / HTTP/1.1 \r\n", E::VersionForm),
        ("9112 3", b"GET / HTTP/1.1\t\r\n", E::VersionForm),
        ("9112 3", b"GET / HTTP/1.1 x\r\n", E::VersionForm),
        ("9112 3", b"GET / x HTTP/1.1\r\n", E::VersionForm),
        ("9112 3", b"GET /HTTP/1.1\r\n", E::NoVersion),
        ("9112 3", b"GET/ HTTP/1.1\r\n", E::MethodByte { byte: b'/' }),
        ("9112 3", b"GET\r\n", E::NoTarget),
        ("9112 3", b"GET \r\n", E::NoTarget),
        ("9112 3", b"GET HTTP/1.1\r\n", E::NoVersion),
        ("9112 3", b"/ HTTP/1.1\r\n", E::MethodByte { byte: b'/' }),
        ("9112 3", b"GET /\r\n", E::NoVersion),
        ("9112 3", b"GET / \r\n", E::NoVersion),
        ("9110 9.1", b"G(T / HTTP/1.1\r\n", E::MethodByte { byte: b'(' }),
        ("9110 9.1", b"G\x00T / HTTP/1.1\r\n", E::MethodByte { byte: 0 }),
        ("9110 9.1", b"G\xc3T / HTTP/1.1\r\n", E::MethodByte { byte: 0xc3 }),
        ("9110 9.1", b"\"GET\" / HTTP/1.1\r\n", E::MethodByte { byte: b'"' }),
        ("9110 9.1", b"GET: / HTTP/1.1\r\n", E::MethodByte { byte: b':' }),
        ("9110 9.1", b"{GET} / HTTP/1.1\r\n", E::MethodByte { byte: b'{' }),
        ("9110 9.1", b"GE,T / HTTP/1.1\r\n", E::MethodByte { byte: b',' }),
        ("9110 9.1", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", E::MethodByte { byte: 0x16 }),
        ("9110 9.1", b"\x80\x80\x01\x03\x01", E::MethodByte { byte: 0x80 }),
        ("9112 2.3", b"GET / http/1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / Http/1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/11\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/1.\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/1.10\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/1.1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/01.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/1.01\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/1,1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP /1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/ 1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/-1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/1.x\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTPS/1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / FTP/1.1\r\n", E::VersionForm),
        ("9112 2.3", b"GET / HTTP/1.1\x00\r\n", E::VersionForm),
        ("9112 2.3", b"GET / \x00HTTP/1.1\r\n", E::VersionForm),
        ("9110 15.6.6", b"GET / HTTP/2.0\r\n", version(2, 0)),
        ("9110 15.6.6", b"GET / HTTP/3.0\r\n", version(3, 0)),
        ("9110 15.6.6", b"GET / HTTP/0.9\r\n", version(0, 9)),
        ("9110 15.6.6", b"GET / HTTP/1.2\r\n", version(1, 2)),
        ("9110 15.6.6", b"GET / HTTP/1.9\r\n", version(1, 9)),
        ("9110 15.6.6", b"GET / HTTP/9.9\r\n", version(9, 9)),
        ("9113 3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", E::TargetMethod),
    ] {
        refused(section, raw, want);
    }
}

#[test]
fn every_byte_but_a_tchar_is_refused_in_a_method() {
    for byte in 0..=255u8 {
        let raw = [b"G".as_slice(), &[byte], b"T / HTTP/1.1\r\n"].concat();
        if !byte.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~ \r".contains(&byte) {
            refused("9110 9.1", &raw, E::MethodByte { byte });
        }
    }
}

#[test]
fn a_method_of_65_bytes_is_answered_501() {
    let raw = |n: usize| [&b"M".repeat(n), b" / HTTP/1.1\r\nHost: a\r\n\r\n".as_slice()].concat();
    assert!(request(&raw(64)).1.is_ok());
    refused("9112 3", &raw(65), E::MethodTooLong);
    refused("9112 3", &raw(20_000), E::MethodTooLong);
    assert_eq!(E::MethodTooLong.status(), 501);
}

#[test]
fn targets() {
    let byte = |byte| E::TargetByte { byte };
    let host = |fault| E::Host { line: 1, fault };
    for (section, raw, want) in [
        ("9112 3.2", b"GET /a#b HTTP/1.1\r\n".as_slice(), byte(b'#')),
        ("9112 3.2", b"GET /?a#b HTTP/1.1\r\n", byte(b'#')),
        ("9112 3.2", b"GET # HTTP/1.1\r\n", byte(b'#')),
        ("9112 3.2", b"GET /a\\b HTTP/1.1\r\n", byte(b'\\')),
        ("9112 3.2", b"GET /?a\\b HTTP/1.1\r\n", byte(b'\\')),
        ("9112 3.2", b"GET \\ HTTP/1.1\r\n", byte(b'\\')),
        ("9112 3.2", b"GET /a\"b HTTP/1.1\r\n", byte(b'"')),
        ("9112 3.2", b"GET /<script> HTTP/1.1\r\n", byte(b'<')),
        ("9112 3.2", b"GET /a>b HTTP/1.1\r\n", byte(b'>')),
        ("9112 3.2", b"GET /\x00 HTTP/1.1\r\n", byte(0)),
        ("9112 3.2", b"GET /\x01 HTTP/1.1\r\n", byte(1)),
        ("9112 3.2", b"GET /\x1f HTTP/1.1\r\n", byte(0x1f)),
        ("9112 3.2", b"GET /\x7f HTTP/1.1\r\n", byte(0x7f)),
        ("9112 3.2", b"GET /\x80 HTTP/1.1\r\n", byte(0x80)),
        ("9112 3.2", b"GET /\xff HTTP/1.1\r\n", byte(0xff)),
        ("9112 3.2", "GET /é HTTP/1.1\r\n".as_bytes(), byte(0xc3)),
        ("9112 3.2", b"GET /a b HTTP/1.1\r\n", E::VersionForm),
        ("9112 3.2", b"GET /a\rb HTTP/1.1\r\n", E::NoVersion),
        ("9112 3.2", b"GET a HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2", b"GET index.html HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2", b"GET ?a HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2", b"GET ../a HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2", b"GET :80/ HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2", b"GET ** HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2", b"OPTIONS */a HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2", b"OPTIONS ** HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2.4", b"GET * HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.4", b"POST * HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.4", b"options * HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.3", b"GET a:80 HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.3", b"GET example.com:443 HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.3", b"OPTIONS example.com:443 HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.3", b"GET [::1]:80 HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.3", b"CONNECT / HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.3", b"CONNECT * HTTP/1.1\r\n", E::TargetMethod),
        ("9112 3.2.3", b"CONNECT http://a:80/ HTTP/1.1\r\n", host(HostFault::Port)),
        ("9112 3.2.3", b"CONNECT a:80/ HTTP/1.1\r\n", host(HostFault::Port)),
        ("9112 3.2.3", b"CONNECT a HTTP/1.1\r\n", host(HostFault::NoPort)),
        ("9112 3.2.3", b"CONNECT a: HTTP/1.1\r\n", host(HostFault::NoPort)),
        ("9112 3.2.3", b"CONNECT a:0 HTTP/1.1\r\n", host(HostFault::Port)),
        ("9112 3.2.3", b"CONNECT a:65536 HTTP/1.1\r\n", host(HostFault::Port)),
        ("9112 3.2.3", b"CONNECT u@a:80 HTTP/1.1\r\n", host(HostFault::UserInfo)),
        ("9112 3.2.2", b"GET ftp://a/ HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2.2", b"GET ws://a/ HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2.2", b"GET file:///etc/passwd HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2.2", b"GET javascript:a HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2.2", b"GET //a/ HTTP/1.1\r\n\r\n", E::HostMissing),
        ("9112 3.2.2", b"GET http:/a/ HTTP/1.1\r\n", E::TargetForm),
        ("9112 3.2.2", b"GET http:a HTTP/1.1\r\n", E::TargetForm),
        ("9110 4.2.1", b"GET http:// HTTP/1.1\r\n", host(HostFault::Empty)),
        ("9110 4.2.1", b"GET http:/// HTTP/1.1\r\n", host(HostFault::Empty)),
        ("9110 4.2.1", b"GET http://?a HTTP/1.1\r\n", host(HostFault::Empty)),
        ("9110 4.2.1", b"GET http://:80/ HTTP/1.1\r\n", host(HostFault::Empty)),
        ("9110 4.2.4", b"GET http://u@a/ HTTP/1.1\r\n", host(HostFault::UserInfo)),
        ("9110 4.2.4", b"GET http://u:p@a/ HTTP/1.1\r\n", host(HostFault::UserInfo)),
        ("9110 4.2.4", b"GET http://a:80@b/ HTTP/1.1\r\n", host(HostFault::UserInfo)),
        ("3986 3.2.3", b"GET http://a:x/ HTTP/1.1\r\n", host(HostFault::Port)),
        ("3986 3.2.3", b"GET http://a:99999/ HTTP/1.1\r\n", host(HostFault::Port)),
        ("3986 3.2.2", b"GET http://a,b/ HTTP/1.1\r\n", host(HostFault::Byte { byte: b',' })),
        ("3986 3.2.2", b"GET http://a%2fb/ HTTP/1.1\r\n", host(HostFault::Byte { byte: b'%' })),
        ("3986 3.2.2", b"GET http://[::x]/ HTTP/1.1\r\n", host(HostFault::Ipv6)),
        ("3986 2.1", b"GET /% HTTP/1.1\r\n", E::TargetPercent),
        ("3986 2.1", b"GET /%4 HTTP/1.1\r\n", E::TargetPercent),
        ("3986 2.1", b"GET /%zz HTTP/1.1\r\n", E::TargetPercent),
        ("3986 2.1", b"GET /%4g/a HTTP/1.1\r\n", E::TargetPercent),
        ("3986 2.1", b"GET /%4?a HTTP/1.1\r\n", E::TargetPercent),
        ("3986 2.1", b"GET /a%00b HTTP/1.1\r\n", E::TargetPercent),
        ("3986 2.1", b"GET http://a/%x HTTP/1.1\r\n", E::TargetPercent),
    ] {
        refused(section, raw, want);
    }
}

#[test]
fn field_lines() {
    let name = |byte| E::NameByte { line: 3, byte };
    let control = |byte| E::Control { line: 3, byte };
    for (section, line, want) in [
        ("9112 5.1", b"X : a\r\n".as_slice(), E::SpaceBeforeColon { line: 3 }),
        ("9112 5.1", b"X\t: a\r\n", E::SpaceBeforeColon { line: 3 }),
        ("9112 5.1", b"Content-Length : 5\r\n", E::SpaceBeforeColon { line: 3 }),
        ("9112 5.1", b"Transfer-Encoding : chunked\r\n", E::SpaceBeforeColon { line: 3 }),
        ("9112 5.1", b"Transfer Encoding: chunked\r\n", E::SpaceBeforeColon { line: 3 }),
        ("9112 5", b": a\r\n", E::EmptyName { line: 3 }),
        ("9112 5", b":\r\n", E::EmptyName { line: 3 }),
        ("9112 5", b"X\r\n", E::NoColon { line: 3 }),
        ("9112 5", b"GET / HTTP/1.1\r\n", E::SpaceBeforeColon { line: 3 }),
        ("9110 5.1", b"X\x00: a\r\n", name(0)),
        ("9110 5.1", b"\x00X: a\r\n", name(0)),
        ("9110 5.1", b"X(a): a\r\n", name(b'(')),
        ("9110 5.1", b"X[]: a\r\n", name(b'[')),
        ("9110 5.1", b"X@: a\r\n", name(b'@')),
        ("9110 5.1", b"X/Y: a\r\n", name(b'/')),
        ("9110 5.1", b"\"X\": a\r\n", name(b'"')),
        ("9110 5.1", b"X=a\r\n", name(b'=')),
        ("9110 5.1", b"X,Y: a\r\n", name(b',')),
        ("9110 5.1", b"X;Y: a\r\n", name(b';')),
        ("9110 5.1", b"X\x0b: a\r\n", name(0x0b)),
        ("9110 5.1", b"\x0bTransfer-Encoding: chunked\r\n", name(0x0b)),
        ("9110 5.1", b"X\x7f: a\r\n", name(0x7f)),
        ("9110 5.1", b"X\xa0: a\r\n", name(0xa0)),
        ("9110 5.1", b"\xef\xbb\xbfX: a\r\n", name(0xef)),
        ("9110 5.5", b"X: a\x00b\r\n", control(0)),
        ("9110 5.5", b"X: \x00\r\n", control(0)),
        ("9110 5.5", b"X:\x00a\r\n", control(0)),
        ("9110 5.5", b"X: a\x01\r\n", control(1)),
        ("9110 5.5", b"X: a\x08b\r\n", control(8)),
        ("9110 5.5", b"X: a\x0bb\r\n", control(0x0b)),
        ("9110 5.5", b"X: a\x0cb\r\n", control(0x0c)),
        ("9110 5.5", b"X: a\x1bb\r\n", control(0x1b)),
        ("9110 5.5", b"X: a\x1fb\r\n", control(0x1f)),
        ("9110 5.5", b"X: a\x7fb\r\n", control(0x7f)),
        ("9110 5.5", b"X: 1234567\x7fb\r\n", control(0x7f)),
        ("9110 5.5", b"Transfer-Encoding: \x0bchunked\r\n", control(0x0b)),
        ("9110 5.5", b"Transfer-Encoding: chunked\x00\r\n", control(0)),
        ("9110 5.5", b"Content-Length: 5\x00\r\n", control(0)),
    ] {
        refused_field(section, line, want);
    }
}

#[test]
fn every_control_byte_is_refused_in_a_value_at_every_place() {
    for byte in (0..0x20u8).chain([0x7f]).filter(|b| !b"\t\r\n".contains(b)) {
        for before in 0..20 {
            let line = [b"X: ".as_slice(), &b"a".repeat(before), &[byte], b"bcdefghijkl\r\n"].concat();
            refused_field("9110 5.5", &line, E::Control { line: 3, byte });
        }
    }
}

#[test]
fn content_length() {
    let length = |fault| E::Length { line: 3, fault };
    for (line, want) in [
        ("Content-Length:\r\n", length(LengthFault::Empty)),
        ("Content-Length: \t\r\n", length(LengthFault::Empty)),
        ("Content-Length: +5\r\n", length(LengthFault::Digit)),
        ("Content-Length: -5\r\n", length(LengthFault::Digit)),
        ("Content-Length: -0\r\n", length(LengthFault::Digit)),
        ("Content-Length: 0x5\r\n", length(LengthFault::Digit)),
        ("Content-Length: 5a\r\n", length(LengthFault::Digit)),
        ("Content-Length: a\r\n", length(LengthFault::Digit)),
        ("Content-Length: 5 5\r\n", length(LengthFault::Digit)),
        ("Content-Length: 5 \t 5\r\n", length(LengthFault::Digit)),
        ("Content-Length: 5.0\r\n", length(LengthFault::Digit)),
        ("Content-Length: 5e1\r\n", length(LengthFault::Digit)),
        ("Content-Length: 1_0\r\n", length(LengthFault::Digit)),
        ("Content-Length: \"5\"\r\n", length(LengthFault::Digit)),
        ("Content-Length: 5;\r\n", length(LengthFault::Digit)),
        ("Content-Length: 5\u{a0}\r\n", length(LengthFault::Digit)),
        ("Content-Length: \u{661}\r\n", length(LengthFault::Digit)),
        ("Content-Length: 5, 5\r\n", length(LengthFault::List)),
        ("Content-Length: 5,5\r\n", length(LengthFault::List)),
        ("Content-Length: 5,\r\n", length(LengthFault::List)),
        ("Content-Length: ,5\r\n", length(LengthFault::List)),
        ("Content-Length: 5, 6\r\n", length(LengthFault::List)),
        ("Content-Length: 9223372036854775808\r\n", length(LengthFault::TooLarge)),
        ("Content-Length: 18446744073709551615\r\n", length(LengthFault::TooLarge)),
        ("Content-Length: 18446744073709551616\r\n", length(LengthFault::TooLarge)),
        ("Content-Length: 18446744073709551621\r\n", length(LengthFault::TooLarge)),
        ("Content-Length: 99999999999999999999999999999999999999999\r\n", length(LengthFault::TooLarge)),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", E::LengthDoubled { line: 4 }),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", E::LengthDoubled { line: 4 }),
        ("Content-Length: 5\r\ncontent-length: 5\r\n", E::LengthDoubled { line: 4 }),
        ("Content-Length: 0\r\nContent-Length: 0\r\n", E::LengthDoubled { line: 4 }),
        ("Content-Length: 5\r\nX: a\r\nCONTENT-LENGTH: 5\r\n", E::LengthDoubled { line: 5 }),
        ("Content-Length: 5\r\nContent-Length:\r\n", E::LengthDoubled { line: 4 }),
    ] {
        refused_field("9112 6.3", line.as_bytes(), want);
    }
}

#[test]
fn transfer_encoding() {
    let coding = E::Coding { line: 3 };
    for (section, line, want) in [
        ("9112 6.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", E::LengthWithCoding { line: 4 }),
        ("9112 6.1", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", E::LengthWithCoding { line: 4 }),
        ("9112 6.1", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", E::LengthWithCoding { line: 4 }),
        ("9112 6.1", "Content-Length: 0\r\nTransfer-Encoding: identity\r\n", E::LengthWithCoding { line: 4 }),
        ("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", E::CodingDoubled { line: 4 }),
        ("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", E::CodingDoubled { line: 4 }),
        ("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n", E::CodingDoubled { line: 4 }),
        ("9112 6.3", "Transfer-Encoding:\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: identity\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: gzip\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: xchunked\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunkedx\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunk\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunked,\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunked, identity\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunked, gzip\r\n", coding),
        ("9112 6.1", "Transfer-Encoding: chunked, chunked\r\n", coding),
        ("9112 6.1", "Transfer-Encoding: gzip, chunked, chunked\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: ,chunked\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: \"chunked\"\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: 'chunked'\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunked;q=1\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunked;\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chun ked\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunked foo\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: chunked\u{a0}\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: \u{a0}chunked\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: :chunked\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: [chunked]\r\n", coding),
        ("9112 6.3", "Transfer-Encoding: x y, chunked\r\n", coding),
        ("9112 6.1", "Transfer-Encoding: gzip, chunked\r\n", E::CodingUnknown { line: 3 }),
        ("9112 6.1", "Transfer-Encoding: identity, chunked\r\n", E::CodingUnknown { line: 3 }),
        ("9112 6.1", "Transfer-Encoding: cow,chunked\r\n", E::CodingUnknown { line: 3 }),
    ] {
        refused_field(section, line.as_bytes(), want);
    }
    assert_eq!(E::Coding { line: 3 }.status(), 400);
    assert_eq!(E::CodingUnknown { line: 3 }.status(), 501);
    let raw = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    refused("9112 6.1", raw, E::CodingInHttp10 { line: 3 });
    let raw = b"POST / HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
    refused("9112 6.1", raw, E::CodingInHttp10 { line: 3 });
}

#[test]
fn host() {
    let fault = |fault| E::Host { line: 2, fault };
    let byte = |byte| E::Host { line: 2, fault: HostFault::Byte { byte } };
    for (section, raw, want) in [
        ("9112 3.2", "GET / HTTP/1.1\r\n\r\n", E::HostMissing),
        ("9112 3.2", "GET / HTTP/1.1\r\nX: a\r\n\r\n", E::HostMissing),
        ("9112 3.2", "GET http://a/ HTTP/1.1\r\n\r\n", E::HostMissing),
        ("9112 3.2", "CONNECT a:443 HTTP/1.1\r\n\r\n", E::HostMissing),
        ("9112 3.2", "OPTIONS * HTTP/1.1\r\n\r\n", E::HostMissing),
        ("9112 3.2", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", E::HostDoubled { line: 3 }),
        ("9112 3.2", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nhost: b\r\n\r\n", E::HostDoubled { line: 4 }),
        ("9112 3.2", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", E::HostDoubled { line: 3 }),
        ("9112 3.2", "GET / HTTP/1.1\r\nHost: a\r\nHost:\r\n\r\n", E::HostDoubled { line: 3 }),
        ("9110 4.2.1", "GET / HTTP/1.1\r\nHost:\r\n\r\n", fault(HostFault::Empty)),
        ("9110 4.2.1", "GET / HTTP/1.1\r\nHost: \t \r\n\r\n", fault(HostFault::Empty)),
        ("9110 4.2.1", "GET / HTTP/1.0\r\nHost:\r\n\r\n", fault(HostFault::Empty)),
        ("9110 4.2.1", "GET / HTTP/1.1\r\nHost: :80\r\n\r\n", fault(HostFault::Empty)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", byte(b',')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a,\r\n\r\n", byte(b',')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", byte(b' ')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a\tb\r\n\r\n", byte(b'\t')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: http://a\r\n\r\n", fault(HostFault::Port)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", byte(b'/')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", byte(b'?')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a#b\r\n\r\n", byte(b'#')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", byte(b'\\')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: \"a\"\r\n\r\n", byte(b'"')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a%00\r\n\r\n", byte(b'%')),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: é\r\n\r\n", byte(0xc3)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a|b\r\n\r\n", byte(b'|')),
        ("9110 4.2.4", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", fault(HostFault::UserInfo)),
        ("9110 4.2.4", "GET / HTTP/1.1\r\nHost: u:p@a:80\r\n\r\n", fault(HostFault::UserInfo)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n", fault(HostFault::Port)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a:0\r\n\r\n", fault(HostFault::Port)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", fault(HostFault::Port)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a:-80\r\n\r\n", fault(HostFault::Port)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", fault(HostFault::Port)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a: 80\r\n\r\n", fault(HostFault::Port)),
        ("9110 7.2", "GET / HTTP/1.1\r\nHost: a :80\r\n\r\n", byte(b' ')),
        ("3986 3.2.2", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", fault(HostFault::Ipv6)),
        ("3986 3.2.2", "GET / HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n", fault(HostFault::Ipv6)),
        ("3986 3.2.2", "GET / HTTP/1.1\r\nHost: []\r\n\r\n", fault(HostFault::Ipv6)),
        ("3986 3.2.2", "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", fault(HostFault::Empty)),
        ("3986 3.2.2", "GET / HTTP/1.1\r\nHost: a..b\r\n\r\n", fault(HostFault::EmptyLabel)),
        ("9112 3.2.2", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", E::HostMismatch { line: 2 }),
        ("9112 3.2.2", "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", E::HostMismatch { line: 2 }),
        ("9112 3.2.2", "GET http://a/ HTTP/1.1\r\nHost: a:443\r\n\r\n", E::HostMismatch { line: 2 }),
        ("9112 3.2.2", "GET http://a/ HTTP/1.0\r\nHost: b\r\n\r\n", E::HostMismatch { line: 2 }),
        ("9112 3.2.2", "GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n", fault(HostFault::Empty)),
        ("9112 3.2.3", "CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", E::HostMismatch { line: 2 }),
        ("9112 3.2.3", "CONNECT a:443 HTTP/1.1\r\nHost: a:80\r\n\r\n", E::HostMismatch { line: 2 }),
    ] {
        refused(section, raw.as_bytes(), want);
    }
}

#[test]
fn other_fields() {
    let nominates = E::ConnectionNominates { line: 3 };
    for (section, line, want) in [
        ("9110 10.1.1", "Expect: 200-ok\r\n", E::Expect { line: 3 }),
        ("9110 10.1.1", "Expect:\r\n", E::Expect { line: 3 }),
        ("9110 10.1.1", "Expect: 100-continue, x\r\n", E::Expect { line: 3 }),
        ("9110 10.1.1", "Expect: 100-continue;a=b\r\n", E::Expect { line: 3 }),
        ("9110 10.1.1", "Expect: 100-continue\r\nExpect: 100-continue\r\n", E::Expect { line: 4 }),
        ("9110 10.1.1", "Expect: 100 continue\r\n", E::Expect { line: 3 }),
        ("9110 7.6.1", "Connection: a b\r\n", E::Connection { line: 3 }),
        ("9110 7.6.1", "Connection: \"close\"\r\n", E::Connection { line: 3 }),
        ("9110 7.6.1", "Connection: close;a\r\n", E::Connection { line: 3 }),
        ("9110 7.6.1", "Connection: close, \u{e9}\r\n", E::Connection { line: 3 }),
        ("9110 7.6.1", "Connection: host\r\n", nominates),
        ("9110 7.6.1", "Connection: close, Host\r\n", nominates),
        ("9110 7.6.1", "Connection: Content-Length\r\n", nominates),
        ("9110 7.6.1", "Connection: transfer-encoding\r\n", nominates),
        ("9110 7.6.1", "Connection: Content-Type\r\n", nominates),
        ("9110 7.6.1", "Connection: X-Forwarded-For\r\n", nominates),
        ("9110 7.6.1", "Connection: x-forwarded-proto, x-forwarded-host\r\n", nominates),
        ("9110 7.6.1", "Connection: X-Forwarded-Port\r\n", nominates),
        ("9110 7.6.1", "Connection: Forwarded\r\n", nominates),
        ("9110 7.6.1", "Connection: X-Real-IP\r\n", nominates),
        ("9110 7.6.1", "Connection: Via\r\n", nominates),
        ("9110 7.6.1", "Connection: Authorization\r\n", nominates),
        ("9110 7.6.1", "Connection: Cookie\r\n", nominates),
        ("9110 7.6.1", "Connection: Cache-Control\r\n", nominates),
        ("9110 7.6.1", "Connection: Expect\r\n", nominates),
        ("9110 7.6.1", "Connection: Max-Forwards\r\n", nominates),
        ("9110 7.6.1", "Connection: If-Match\r\n", nominates),
        ("9110 7.6.1", "Connection: Range\r\n", nominates),
        ("9110 7.6.1", "Connection: X-Pointsman-Worker\r\n", nominates),
        ("9110 10.1.4", "TE: a b\r\n", E::Te { line: 3 }),
        ("9110 10.1.4", "TE: ;q=1\r\n", E::Te { line: 3 }),
        ("9110 7.8", "Connection: upgrade\r\nUpgrade: a b\r\n", E::Upgrade { line: 4 }),
        ("9110 7.8", "Upgrade: a/\r\n", E::Upgrade { line: 3 }),
        ("9110 7.8", "Upgrade: a/b/c\r\n", E::Upgrade { line: 3 }),
    ] {
        refused_field(section, line.as_bytes(), want);
    }
    let mut many = "Connection: a0".to_string();
    for n in 1..=16 {
        many += &format!(", a{n}");
    }
    refused_field("9110 7.6.1", format!("{many}\r\n").as_bytes(), E::TooManyOptions { line: 3 });
    assert_eq!(E::Expect { line: 3 }.status(), 417);
    for (section, raw, want) in [
        ("9110 7.6.2", "TRACE / HTTP/1.1\r\nMax-Forwards: x\r\n\r\n", E::MaxForwards { line: 2 }),
        ("9110 7.6.2", "TRACE / HTTP/1.1\r\nMax-Forwards:\r\n\r\n", E::MaxForwards { line: 2 }),
        ("9110 7.6.2", "OPTIONS / HTTP/1.1\r\nMax-Forwards: -1\r\n\r\n", E::MaxForwards { line: 2 }),
        ("9110 7.6.2", "OPTIONS / HTTP/1.1\r\nMax-Forwards: 1\r\nMax-Forwards: 1\r\n", E::MaxForwards { line: 3 }),
        ("9110 9.3.8", "TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", E::ContentNotAllowed),
        ("9110 9.3.8", "TRACE / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", E::ContentNotAllowed),
        ("9110 9.3.6", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\n", E::ContentNotAllowed),
        ("9110 9.3.6", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n", E::ContentNotAllowed),
    ] {
        refused(section, raw.as_bytes(), want);
    }
}

#[test]
fn limits() {
    let limits = HeadLimits { bytes: 1024, fields: 8, by_target: false };
    let parse = |raw: &[u8]| RequestHead::default().parse(raw, &limits);
    let large = Err(E::HeadTooLarge { limit: 1024 });
    // A target that alone fills the limit is 414; fields that do are 431 (RFC 9110 15.5.15, RFC 6585 5).
    assert_eq!(parse(&[b"GET /".as_slice(), &b"a".repeat(1019)].concat()), Err(E::TargetTooLong));
    assert_eq!(parse(&[b"GET /".as_slice(), &b"a".repeat(1018)].concat()), Ok(None));
    assert_eq!(parse(&[b"GET /".as_slice(), &b"a".repeat(9000)].concat()), Err(E::TargetTooLong));
    assert_eq!(E::TargetTooLong.status(), 414);
    let start = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".as_slice();
    let room = 1024 - start.len() - 4;
    let exact = [start, &b"a".repeat(room), b"\r\n\r\n"].concat();
    assert_eq!(parse(&exact), Ok(Some(1024)));
    assert_eq!(parse(&[exact.as_slice(), b"GET / HTTP/1.1"].concat()), Ok(Some(1024)));
    assert_eq!(parse(&[start, &b"a".repeat(room + 1), b"\r\n\r\n"].concat()), large);
    assert_eq!(parse(&[start, &b"a".repeat(room + 4)].concat()), large);
    assert_eq!(parse(&[start, &b"a".repeat(room + 3)].concat()), Ok(None));
    assert_eq!(parse(&[b"GET / HTTP/1.1\r\n".as_slice(), &b"N".repeat(2000)].concat()), large);
    assert_eq!(E::HeadTooLarge { limit: 1024 }.status(), 431);
    let fields = |n: usize| [b"GET / HTTP/1.1\r\nHost: a\r\n".as_slice(), &b"X: y\r\n".repeat(n - 1), b"\r\n"].concat();
    assert!(matches!(parse(&fields(8)), Ok(Some(_))));
    assert_eq!(parse(&fields(9)), Err(E::TooManyFields { limit: 8 }));
    assert_eq!(E::TooManyFields { limit: 8 }.status(), 431);
    // What is wrong within the limit is told first.
    assert_eq!(
        parse(&[b"GET / HTTP/1.1\nHost: a\r\nX: ".as_slice(), &b"a".repeat(5000)].concat()),
        Err(E::BareLf { line: 1 })
    );
}

#[test]
fn what_was_understood_before_a_fault_is_known_and_nothing_of_the_head_before() {
    let mut head = RequestHead::default();
    for (raw, method, target, has_line, host) in [
        (&b"PUT http://t.test/a HTTP/1.1\r\nHost: t.test\r\nX y: z\r\n"[..], "PUT", "http://t.test/a", true, "t.test"),
        (b"GET /b HTTP/1.0\r\nHost: a:81\r\nHost: b\r\n\r\n", "GET", "/b", true, "a:81"),
        (b"GET /c HTTP/1.1\r\nX: y\r\nContent-Length: x\r\n", "GET", "/c", true, ""),
        (b"GET /d HTTP/2.0\r\n\r\n", "GET", "/d", false, ""),
        (b"GET /%zz HTTP/1.1\r\n\r\n", "GET", "/%zz", false, ""),
        (b"GET /\"e", "GET", "", false, ""),
        (b"GE\x01T", "", "", false, ""),
        (b"GET /f HTTP/1.1\r\nHost: a\r\nUnfinished: ", "GET", "/f", true, "a"),
        (b"", "", "", false, ""),
    ] {
        assert!(!matches!(head.parse(raw, &LIMITS), Ok(Some(_))), "{}", show(raw));
        let of = |span: Span| String::from_utf8_lossy(span.of(raw)).into_owned();
        let understood = (of(head.method_text), of(head.target.text), of(head.host.unwrap_or_default()));
        assert_eq!(understood, (method.to_owned(), target.to_owned(), host.to_owned()), "{}", show(raw));
        assert_eq!((head.has_line, head.len), (has_line, 0), "{}", show(raw));
        // A whole one between.
        assert!(head.parse(b"POST /other HTTP/1.1\r\nHost: other\r\n\r\n", &LIMITS).is_ok());
    }
}
