//! Requests at the edge of RFC 9112: which are refused, which pass, and that nobody is ever led to take one
//! message for two.
//!
//! Each row is sent as it stands, followed by a request that must never be served when the row is refused. The
//! backend parses strictly and fails the test when anything ambiguous reaches it.

use crate::common::backend::Backend;
use crate::common::client::{Client, describe};
use crate::common::proxy::{Conf, Launch, Proxy};

/// What must come of a row.
enum Want {
    /// Exactly these requests reach the backend, each is answered 200, and the connection serves another.
    Pass(&'static [&'static str]),
    /// As `Pass` for these requests, then an answer with one of these statuses, then the connection's end.
    Refuse(&'static [&'static str], &'static [u16]),
}

struct Row {
    name: &'static str,
    /// The section it rests on: of RFC 9112 unless it says 9110.
    section: &'static str,
    send: Vec<u8>,
    want: Want,
}

/// Text to bytes, one for each character, so that rows can have any byte.
fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

fn row(name: &'static str, section: &'static str, send: &str, want: Want) -> Row {
    Row { name, section, send: bytes(send), want }
}

/// The whole request is bad.
fn bad(name: &'static str, section: &'static str, send: &str) -> Row {
    row(name, section, send, Want::Refuse(&[], &[400]))
}

fn one_of(name: &'static str, section: &'static str, send: &str, statuses: &'static [u16]) -> Row {
    row(name, section, send, Want::Refuse(&[], statuses))
}

fn good(name: &'static str, section: &'static str, send: &str, seen: &'static [&'static str]) -> Row {
    row(name, section, send, Want::Pass(seen))
}

/// A GET with these field lines beside Host.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

/// A POST with these field lines beside Host, and these bytes after the head.
fn post(lines: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// A GET with this request line.
fn line(line: &str) -> String {
    format!("{line}\r\nHost: a\r\n\r\n")
}

/// A GET with exactly these field lines.
fn host(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\n{lines}\r\n")
}

struct Bench {
    backend: Backend,
    proxy: Proxy,
}

impl Bench {
    fn new() -> Bench {
        let backend = Backend::ok();
        let proxy = Conf::http(&[backend.addr]).tables("[limits]\nbody = \"1MiB\"").launch().workers(1).start();
        Bench { backend, proxy }
    }

    /// Runs every row and panics with all that went wrong.
    fn run(self, rows: &[Row]) {
        let mut wrong = Vec::new();
        for row in rows {
            if let Err(what) = self.try_row(row) {
                let sent: String = row.send.iter().take(300).map(|&b| char::from(b)).collect();
                wrong.push(format!("{} (section {}): {what}\n      sent {sent:?}", row.name, row.section));
            }
        }
        assert!(wrong.is_empty(), "{} of {} rows:\n  {}", wrong.len(), rows.len(), wrong.join("\n  "));
    }

    fn try_row(&self, row: &Row) -> Result<(), String> {
        let (passed, refused) = match &row.want {
            Want::Pass(passed) => (*passed, None),
            Want::Refuse(passed, statuses) => (*passed, Some(*statuses)),
        };
        let mut client = Client::connect(self.proxy.addr());
        client.patience(std::time::Duration::from_secs(5));
        let outcome = (|| {
            client.send(&row.send);
            if refused.is_some() {
                client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
            }
            for request in passed {
                let response = client.wire.response(method(request)).map_err(|broken| describe(&broken))?;
                if response.status != 200 {
                    return Err(format!("{request} was answered {}", response.status));
                }
            }
            if let Some(statuses) = refused {
                let head = row.send.starts_with(b"HEAD ");
                let response =
                    client.wire.response(if head { "HEAD" } else { "GET" }).map_err(|broken| describe(&broken))?;
                if !statuses.contains(&response.status) {
                    return Err(format!("answered {} instead of {statuses:?}", response.status));
                }
                if !response.closes() {
                    return Err(format!("answered {} without Connection: close", response.status));
                }
                client.wire.begin();
                match client.wire.rest() {
                    Ok(rest) if rest.is_empty() => {}
                    Ok(rest) => return Err(format!("then came {:?}", String::from_utf8_lossy(&rest))),
                    Err(crate::common::h1::Broken::Reset(rest)) if rest.is_empty() => {}
                    Err(broken) => return Err(format!("then {}", describe(&broken))),
                }
            } else {
                client.send("GET /after HTTP/1.1\r\nHost: a\r\n\r\n");
                let response = client.try_response().map_err(|broken| format!("afterwards {}", describe(&broken)))?;
                if response.status != 200 {
                    return Err(format!("the next request was answered {}", response.status));
                }
            }
            Ok(())
        })();
        if outcome.is_err() {
            // What is still on its way belongs to this row, not to the next.
            client.shutdown_write();
            client.patience(std::time::Duration::from_millis(500));
            client.wire.begin();
            let _ = client.wire.rest();
        }
        let seen: Vec<String> = self.backend.take_requests().iter().map(|request| request.summary()).collect();
        let violations = self.backend.take_violations();
        if !violations.is_empty() {
            return Err(format!("the backend got what is not strict: {violations:?}"));
        }
        outcome.map_err(|what| format!("{what}; the backend saw {seen:?}"))?;
        let after = refused.is_none().then_some("GET /after");
        if !seen.iter().map(String::as_str).eq(passed.iter().copied().chain(after)) {
            return Err(format!("the backend saw {seen:?}"));
        }
        Ok(())
    }
}

#[test]
fn a_plain_byte_pipe_fails_these_rows() {
    // The proof that this bench notices: relayed byte for byte, the backend itself has to refuse.
    let backend = Backend::ok();
    let proxy = Launch::tcp(&[backend.addr]).workers(1).start();
    let bench = Bench { backend, proxy };
    for row in [
        bad("length with chunked", "6.1", &post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        bad("two lengths", "6.3", &post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        bad("bare LF", "2.2", "GET / HTTP/1.1\nHost: a\n\n"),
        bad("chunk size with a sign", "7.1", &chunked("+5\r\nhello\r\n0\r\n\r\n")),
        bad("host that is a list", "3.2", &host("Host: a, b\r\n")),
    ] {
        assert!(bench.try_row(&row).is_err(), "{} passed", row.name);
    }
    assert!(bench.try_row(&good("a sound request", "3", &get(""), &["GET /"])).is_ok());
}

fn method(summary: &str) -> &str {
    summary.split(' ').next().unwrap()
}

#[test]
fn content_length() {
    let length = |value: &str| post(&format!("Content-Length: {value}\r\n"), "hello");
    Bench::new().run(&[
        good("length", "6.2", &length("5"), &["POST / hello"]),
        good("optional blanks around it", "5", &length("  \t5\t "), &["POST / hello"]),
        good("leading zeros", "6.2", &length("0005"), &["POST / hello"]),
        good("zero", "6.2", &post("Content-Length: 0\r\n", ""), &["POST /"]),
        good("none on POST is no body", "6.3", &post("", ""), &["POST /"]),
        good("name in any case", "5.1", &post("cONTENT-lENGTH: 5\r\n", "hello"), &["POST / hello"]),
        bad("with chunked", "6.1", &post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        bad("after chunked", "6.1", &post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")),
        bad("zero with chunked", "6.1", &post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        bad("with an unknown coding", "6.1", &post("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", "hello")),
        bad("two that differ", "6.3", &post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        bad("two that agree", "6.3", &post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
        bad("two, the second empty", "6.3", &post("Content-Length: 5\r\nContent-Length:\r\n", "hello")),
        bad("two, far apart", "6.3", &post("Content-Length: 0\r\nA: b\r\ncontent-length: 5\r\n", "hello")),
        bad("list that agrees", "6.3", &length("5, 5")),
        bad("list that differs", "6.3", &length("5, 6")),
        bad("list with an empty element", "6.3", &length("5,")),
        bad("list that begins empty", "6.3", &length(",5")),
        bad("plus sign", "6.2", &length("+5")),
        bad("minus sign", "6.2", &length("-5")),
        bad("minus zero", "6.2", &length("-0")),
        bad("hexadecimal", "6.2", &length("0x5")),
        bad("hexadecimal digit", "6.2", &length("a")),
        bad("blank within", "6.2", &length("5 5")),
        bad("tab within", "6.2", &length("1\t0")),
        bad("empty", "6.2", &length("")),
        bad("only blanks", "6.2", &length(" \t ")),
        bad("decimal point", "6.2", &length("5.0")),
        bad("exponent", "6.2", &length("5e0")),
        bad("underscore", "6.2", &length("0_5")),
        bad("semicolon", "6.2", &length("5;a=b")),
        bad("quoted", "6.2", &length("\"5\"")),
        bad("vertical tab before it", "5.5", &length("\u{b}5")),
        bad("no-break space after it", "6.2", &length("5\u{a0}")),
        bad("digits beyond ASCII", "6.2", &length("\u{b2}5")),
        one_of("2 to the 64th", "6.2", &length("18446744073709551616"), &[400, 413]),
        one_of("wraps to 5 in 64 bits", "6.2", &length("18446744073709551621"), &[400, 413]),
        one_of("negative in 64 bits", "6.2", &length("9223372036854775809"), &[400, 413]),
        one_of("wraps to 5 in 32 bits", "6.2", &length("4294967301"), &[413]),
        one_of("forty digits", "6.2", &length(&"9".repeat(40)), &[400, 413]),
        one_of("many zeros wrap nothing", "6.2", &length(&format!("1{}", "0".repeat(64))), &[400, 413]),
        bad("blank before the colon", "5.1", &post("Content-Length : 5\r\n", "hello")),
        bad("tab before the colon", "5.1", &post("Content-Length\t: 5\r\n", "hello")),
        bad("folded value", "5.2", &post("Content-Length:\r\n 5\r\n", "hello")),
        bad("folded into the field before", "5.2", &post("A: b\r\n Content-Length: 5\r\n", "hello")),
        bad("value cut by NUL", "5.5", &length("5\u{0}0")),
    ]);
}

#[test]
fn bodies_on_any_method_are_framed() {
    Bench::new().run(&[
        good("GET", "6.3", &get("Content-Length: 5\r\n").replace("\r\n\r\n", "\r\n\r\nhello"), &["GET / hello"]),
        good("HEAD", "6.3", "HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", &["HEAD / hello"]),
        good("DELETE", "6.3", "DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", &["DELETE / hello"]),
        good("OPTIONS", "6.3", "OPTIONS / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", &["OPTIONS / hello"]),
        good(
            "unknown method",
            "6.3",
            "BREW / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &["BREW / hello"],
        ),
        good(
            "chunked GET",
            "6.3",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &["GET / hello"],
        ),
        good(
            "body that looks like a request",
            "6.3",
            &post("Content-Length: 32\r\n", "GET /inner HTTP/1.1\r\nHost: b\r\n\r\n"),
            &["POST / GET /inner HTTP/1.1\r\nHost: b"],
        ),
        good(
            "pipelined after a body",
            "9.3.2",
            &(post("Content-Length: 5\r\n", "hello") + "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
            &["POST / hello", "GET /2"],
        ),
        good(
            "pipelined after a chunked body",
            "9.3.2",
            &(chunked("5\r\nhello\r\n0\r\n\r\n") + "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
            &["POST / hello", "GET /2"],
        ),
    ]);
}

#[test]
fn transfer_encoding() {
    let coding = |value: &str| post(&format!("Transfer-Encoding: {value}\r\n"), "5\r\nhello\r\n0\r\n\r\n");
    let one = &["POST / hello"];
    Bench::new().run(&[
        good("chunked", "7.1", &coding("chunked"), one),
        good("in any case", "9110 section 5.6.6", &coding("cHuNkEd"), one),
        good("optional blanks around it", "5", &coding("\t chunked \t"), one),
        bad("on HTTP/1.0", "6.1", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        bad("chunked twice in a list", "7", &coding("chunked, chunked")),
        bad("chunked twice in two fields", "7", &post(&"Transfer-Encoding: chunked\r\n".repeat(2), "0\r\n\r\n")),
        bad("chunked not last", "6.3", &coding("chunked, gzip")),
        bad("chunked, then identity", "6.3", &coding("chunked, identity")),
        one_of("gzip before chunked", "6.1", &coding("gzip, chunked"), &[400, 501]),
        one_of("identity before chunked", "6.1", &coding("identity, chunked"), &[400, 501]),
        one_of("identity", "6.1", &coding("identity"), &[400, 501]),
        one_of("gzip", "6.1", &coding("gzip"), &[400, 501]),
        one_of("unknown", "6.1", &coding("cow"), &[400, 501]),
        one_of(
            "identity, then chunked in a second field",
            "6.1",
            &post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            &[400, 501],
        ),
        one_of("empty element after", "7", &coding("chunked,"), &[400, 501]),
        one_of("empty element before", "7", &coding(", chunked"), &[400, 501]),
        one_of("prefix", "7", &coding("xchunked"), &[400, 501]),
        one_of("suffix", "7", &coding("chunkedx"), &[400, 501]),
        one_of("parameter", "7", &coding("chunked;q=1"), &[400, 501]),
        one_of("quoted", "7", &coding("\"chunked\""), &[400, 501]),
        one_of("single quotes", "7", &coding("'chunked'"), &[400, 501]),
        one_of("blank within", "7", &coding("chunk ed"), &[400, 501]),
        one_of("empty", "7", &coding(""), &[400, 501]),
        one_of("no-break space", "7", &coding("chunked\u{a0}"), &[400, 501]),
        one_of("vertical tab", "5.5", &coding("\u{b}chunked"), &[400, 501]),
        one_of("form feed", "5.5", &coding("chunked\u{c}"), &[400, 501]),
        one_of("NUL", "5.5", &coding("chunked\u{0}"), &[400, 501]),
        one_of("Kelvin sign for k", "7", &coding("chun\u{e2}\u{84}\u{aa}ed"), &[400, 501]),
        bad("blank before the colon", "5.1", &post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n")),
        bad("NUL in the name", "5.1", &post("Transfer-Encoding\u{0}: chunked\r\n", "0\r\n\r\n")),
        bad("folded value", "5.2", &post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n")),
        bad("folded into the field before", "5.2", &post("A: b\r\n\tTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        bad("as the first line, indented", "2.2", "POST / HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: a\r\n\r\n"),
        good("underscore makes another name", "5.1", &get("Transfer_Encoding: chunked\r\n"), &["GET /"]),
        good(
            "a name that wraps at 256",
            "5.1",
            &get(&format!("Transfer-Encoding{}: chunked\r\n", "x".repeat(256))),
            &["GET /"],
        ),
        good(
            "a length's name that wraps at 256",
            "5.1",
            &get(&format!("Content-Length{}: 5\r\n", "x".repeat(256))),
            &["GET /"],
        ),
        good("a host's name that wraps at 256", "5.1", &get(&format!("Host{}: b\r\n", "x".repeat(256))), &["GET /"]),
        one_of(
            "a name that wraps at 65536",
            "5.1",
            &get(&format!("Content-Length{}: 5\r\n", "x".repeat(65_536))),
            &[400, 431],
        ),
    ]);
}

#[test]
fn chunks() {
    let size = |size: &str| chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n"));
    let (one, end) = (&["POST / hello"], "0\r\n\r\n");
    Bench::new().run(&[
        good("leading zeros", "7.1", &size("0000005"), one),
        good("upper case", "7.1", &chunked(&format!("A\r\n0123456789\r\n{end}")), &["POST / 0123456789"]),
        good("lower case", "7.1", &chunked(&format!("a\r\n0123456789\r\n{end}")), &["POST / 0123456789"]),
        good("extension", "7.1.1", &size("5;a=b"), one),
        good("extension without a value", "7.1.1", &size("5;a"), one),
        good("quoted extension", "7.1.1", &size("5;a=\"b;\\\"c\""), one),
        good("extension of the last chunk", "7.1.1", &chunked("5\r\nhello\r\n0;a=b\r\n\r\n"), one),
        good("last chunk of many zeros", "7.1", &chunked("5\r\nhello\r\n0000\r\n\r\n"), one),
        good("trailers", "7.1.2", &chunked("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), one),
        good("one byte a chunk", "7.1", &chunked("1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n"), one),
        good("line ends as data", "7.1", &chunked("7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), &["POST / \r\n0"]),
        bad("plus sign", "7.1", &size("+5")),
        bad("minus sign", "7.1", &size("-5")),
        bad("minus zero ends nothing", "7.1", &chunked("-0\r\n\r\n")),
        bad("0x", "7.1", &size("0x5")),
        bad("h at the end", "7.1", &size("5h")),
        bad("blank before", "7.1", &size(" 5")),
        bad("blank after", "7.1", &size("5 ")),
        bad("tab after", "7.1", &size("5\t")),
        bad("blank within", "7.1", &size("0 5")),
        bad("empty size", "7.1", &size("")),
        bad("only an extension", "7.1", &size(";a=b")),
        bad("only a semicolon", "7.1", &chunked(";\r\n\r\n")),
        bad("no digit", "7.1", &size("g")),
        bad("underscore", "7.1", &size("0_5")),
        bad("comma", "7.1", &size("5,5")),
        bad("decimal point", "7.1", &size("5.")),
        one_of("wraps to 5 in 32 bits", "7.1", &size("100000005"), &[400, 413]),
        one_of("wraps to 5 in 64 bits", "7.1", &size("10000000000000005"), &[400, 413]),
        one_of("wraps to 0 in 64 bits", "7.1", &chunked("10000000000000000\r\n\r\n"), &[400, 413]),
        one_of("negative in 64 bits", "7.1", &size("fffffffffffffffb"), &[400, 413]),
        one_of("forty digits", "7.1", &size(&"f".repeat(40)), &[400, 413]),
        bad("bare LF after the size", "2.2", &chunked("5\nhello\r\n0\r\n\r\n")),
        bad("bare CR after the size", "2.2", &chunked("5\rhello\r\n0\r\n\r\n")),
        bad("CR CR LF after the size", "2.2", &chunked("5\r\r\nhello\r\n0\r\n\r\n")),
        bad("no line end after the data", "7.1", &chunked("5\r\nhello0\r\n\r\n")),
        bad("bare LF after the data", "7.1", &chunked("5\r\nhello\n0\r\n\r\n")),
        bad("bare CR after the data", "7.1", &chunked("5\r\nhello\r0\r\n\r\n")),
        bad("two other bytes after the data", "7.1", &chunked("5\r\nhelloXX0\r\n\r\n")),
        bad("LF CR after the data", "7.1", &chunked("5\r\nhello\n\r0\r\n\r\n")),
        bad("more data than its size", "7.1", &chunked("4\r\nhello\r\n0\r\n\r\n")),
        bad("less data than its size", "7.1", &chunked("6\r\nhello\r\n0\r\n\r\n")),
        bad("bare LF in an extension", "7.1.1", &size("5;a\nb")),
        bad("bare CR in an extension", "7.1.1", &size("5;a\rb")),
        bad("NUL in an extension", "7.1.1", &size("5;a=\u{0}")),
        bad("control in an extension", "7.1.1", &size("5;a=\u{1}")),
        one_of("huge extension", "7.1.1", &size(&format!("5;a={}", "x".repeat(100_000))), &[400, 413, 431]),
        one_of("endless zeros", "7.1", &size(&format!("{}5", "0".repeat(100_000))), &[400, 413, 431]),
        bad("bare LF after the last size", "2.2", &chunked("5\r\nhello\r\n0\n\r\n")),
        bad("bare LF at the very end", "2.2", &chunked("5\r\nhello\r\n0\r\n\n")),
        bad("trailer without a colon", "7.1.2", &chunked("5\r\nhello\r\n0\r\nbad\r\n\r\n")),
        bad("trailer with a blank before the colon", "5.1", &chunked("5\r\nhello\r\n0\r\nX-Sum : 1\r\n\r\n")),
        bad("trailer with an empty name", "5.1", &chunked("5\r\nhello\r\n0\r\n: 1\r\n\r\n")),
        bad("trailer folded", "5.2", &chunked("5\r\nhello\r\n0\r\nX-Sum: 1\r\n 2\r\n\r\n")),
        bad("trailer with NUL", "5.5", &chunked("5\r\nhello\r\n0\r\nX-Sum: \u{0}\r\n\r\n")),
        bad("trailer with a bare CR", "2.2", &chunked("5\r\nhello\r\n0\r\nX-Sum: a\rb\r\n\r\n")),
        bad("trailer with a bare LF", "2.2", &chunked("5\r\nhello\r\n0\r\nX-Sum: a\n\r\n")),
        one_of(
            "trailers without end",
            "7.1.2",
            &chunked(&format!("5\r\nhello\r\n0\r\n{}\r\n", "X-Sum: 1\r\n".repeat(20_000))),
            &[400, 413, 431],
        ),
    ]);
}

#[test]
fn lines_and_fields() {
    Bench::new().run(&[
        good("tab in a value", "5", &get("X: a\tb\r\n"), &["GET /"]),
        good("bytes above 127 in a value", "9110 section 5.5", &get("X: \u{80}\u{e9}\u{ff}\r\n"), &["GET /"]),
        good("empty value", "9110 section 5.5", &get("X:\r\n"), &["GET /"]),
        good("colons in a value", "5", &get("X: a:b::c\r\n"), &["GET /"]),
        good("every token character in a name", "9110 section 5.6.2", &get("!#$%&'*+-.^_`|~9Az: b\r\n"), &["GET /"]),
        bad("only bare LF", "2.2", "GET / HTTP/1.1\nHost: a\n\n"),
        bad("bare LF after the request line", "2.2", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
        bad("bare LF after a field", "2.2", "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
        bad("bare LF as the empty line", "2.2", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
        bad("LF CR LF", "2.2", "GET / HTTP/1.1\r\nHost: a\n\r\n"),
        bad("CR CR LF after a field", "2.2", "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"),
        bad("bare CR after the request line", "2.2", "GET / HTTP/1.1\rHost: a\r\n\r\n"),
        bad("bare CR in a value", "2.2", &get("X: a\rb\r\n")),
        bad("bare CR in a name", "2.2", &get("X\rY: a\r\n")),
        bad("bare CR before the colon", "2.2", &get("X\r: a\r\n")),
        bad("bare CR that hides a field", "2.2", &get("X: a\rContent-Length: 5\r\n")),
        bad("bare LF that hides a field", "2.2", &get("X: a\nContent-Length: 5\r\n")),
        bad("NUL in a value", "9110 section 5.5", &get("X: a\u{0}b\r\n")),
        bad("NUL in a name", "5.1", &get("X\u{0}: a\r\n")),
        bad("control in a value", "9110 section 5.5", &get("X: a\u{1}b\r\n")),
        bad("escape in a value", "9110 section 5.5", &get("X: a\u{1b}b\r\n")),
        bad("vertical tab in a value", "9110 section 5.5", &get("X: a\u{b}b\r\n")),
        bad("form feed in a value", "9110 section 5.5", &get("X: a\u{c}b\r\n")),
        bad("DEL in a value", "9110 section 5.5", &get("X: a\u{7f}b\r\n")),
        bad("folded with a blank", "5.2", &get("X: a\r\n b\r\n")),
        bad("folded with a tab", "5.2", &get("X: a\r\n\tb\r\n")),
        bad("folded to nothing", "5.2", &get("X: a\r\n \r\n")),
        bad("first line indented", "2.2", "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        bad("first line of blanks", "2.2", "GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n"),
        bad("blank before the colon", "5.1", &get("X : a\r\n")),
        bad("tab before the colon", "5.1", &get("X\t: a\r\n")),
        bad("blank in a name", "5.1", &get("X Y: a\r\n")),
        bad("empty name", "5.1", &get(": a\r\n")),
        bad("only a colon", "5.1", &get(":\r\n")),
        bad("no colon", "5", &get("XYZ\r\n")),
        bad("parenthesis in a name", "9110 section 5.6.2", &get("X(Y): a\r\n")),
        bad("quote in a name", "9110 section 5.6.2", &get("X\"Y: a\r\n")),
        bad("slash in a name", "9110 section 5.6.2", &get("X/Y: a\r\n")),
        bad("at sign in a name", "9110 section 5.6.2", &get("X@Y: a\r\n")),
        bad("comma in a name", "9110 section 5.6.2", &get("X,Y: a\r\n")),
        bad("semicolon in a name", "9110 section 5.6.2", &get("X;Y: a\r\n")),
        bad("brackets in a name", "9110 section 5.6.2", &get("X[Y]: a\r\n")),
        bad("brace in a name", "9110 section 5.6.2", &get("X{Y: a\r\n")),
        bad("backslash in a name", "9110 section 5.6.2", &get("X\\Y: a\r\n")),
        bad("byte above 127 in a name", "9110 section 5.6.2", &get("X\u{e9}: a\r\n")),
        bad("DEL in a name", "9110 section 5.6.2", &get("X\u{7f}: a\r\n")),
        bad("NUL for a request", "3", "\u{0}\u{0}\u{0}\u{0}\r\n\r\n"),
        bad("a TLS greeting", "3", "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}\r\n\r\n"),
    ]);
}

#[test]
fn request_lines() {
    let version: &[u16] = &[400, 505];
    Bench::new().run(&[
        good("origin form", "3.2.1", &line("GET /a?b HTTP/1.1"), &["GET /a?b"]),
        good("two slashes begin a path", "3.2.1", &line("GET //evil/x HTTP/1.1"), &["GET //evil/x"]),
        good("absolute form", "3.2.2", &line("GET http://a/x?y HTTP/1.1"), &["GET /x?y"]),
        good("absolute form with a port", "3.2.2", "GET http://a:80/x HTTP/1.1\r\nHost: a:80\r\n\r\n", &["GET /x"]),
        good("asterisk form", "3.2.4", &line("OPTIONS * HTTP/1.1"), &["OPTIONS *"]),
        good(
            "a long method",
            "9110 section 9.1",
            &line(&format!("{} / HTTP/1.1", "M".repeat(20))),
            &["MMMMMMMMMMMMMMMMMMMM /"],
        ),
        bad("two blanks after the method", "3", &line("GET  / HTTP/1.1")),
        bad("two blanks before the version", "3", &line("GET /  HTTP/1.1")),
        bad("tab after the method", "3", &line("GET\t/ HTTP/1.1")),
        bad("tab before the version", "3", &line("GET /\tHTTP/1.1")),
        bad("leading blank", "3", &line(" GET / HTTP/1.1")),
        bad("leading tab", "3", &line("\tGET / HTTP/1.1")),
        bad("trailing blank", "3", &line("GET / HTTP/1.1 ")),
        bad("trailing tab", "3", &line("GET / HTTP/1.1\t")),
        bad("trailing word", "3", &line("GET / HTTP/1.1 x")),
        one_of("no version", "3", &line("GET /"), version),
        one_of("no version, blank", "3", &line("GET / "), version),
        bad("no target", "3", &line("GET HTTP/1.1")),
        bad("no blank after the method", "3", &line("GET/ HTTP/1.1")),
        bad("no blank before the version", "3", &line("GET /HTTP/1.1")),
        bad("no method", "3", &line("/ HTTP/1.1")),
        bad("vertical tab for a blank", "3", &line("GET\u{b}/ HTTP/1.1")),
        bad("form feed for a blank", "3", &line("GET /\u{c}HTTP/1.1")),
        bad("no-break space for a blank", "3", &line("GET\u{a0}/ HTTP/1.1")),
        bad("method is no token: parenthesis", "9110 section 9.1", &line("G(T / HTTP/1.1")),
        bad("method is no token: colon", "9110 section 9.1", &line("GET: / HTTP/1.1")),
        bad("method is no token: quote", "9110 section 9.1", &line("\"GET\" / HTTP/1.1")),
        bad("method is no token: slash", "9110 section 9.1", &line("GET/x / HTTP/1.1")),
        bad("method is no token: byte above 127", "9110 section 9.1", &line("G\u{c9}T / HTTP/1.1")),
        bad("method is no token: NUL", "9110 section 9.1", &line("GE\u{0}T / HTTP/1.1")),
        bad("blank in the target", "3.2", &line("GET /a b HTTP/1.1")),
        bad("tab in the target", "3.2", &line("GET /a\tb HTTP/1.1")),
        bad("NUL in the target", "3.2", &line("GET /a\u{0}b HTTP/1.1")),
        bad("control in the target", "3.2", &line("GET /a\u{1}b HTTP/1.1")),
        bad("bare CR in the target", "2.2", &line("GET /a\rb HTTP/1.1")),
        bad("DEL in the target", "3.2", &line("GET /a\u{7f}b HTTP/1.1")),
        bad("byte above 127 in the target", "3.2", &line("GET /\u{e9} HTTP/1.1")),
        bad("fragment", "3.2.1", &line("GET /a#b HTTP/1.1")),
        bad("empty fragment", "3.2.1", &line("GET /a# HTTP/1.1")),
        bad("backslash", "3.2.1", &line("GET /a\\b HTTP/1.1")),
        bad("backslash first", "3.2.1", &line("GET \\a HTTP/1.1")),
        bad("path without a slash", "3.2", &line("GET a HTTP/1.1")),
        bad("only a query", "3.2", &line("GET ?a HTTP/1.1")),
        bad("asterisk outside OPTIONS", "3.2.4", &line("GET * HTTP/1.1")),
        bad("asterisk and more", "3.2.4", &line("OPTIONS *a HTTP/1.1")),
        bad("authority form outside CONNECT", "3.2.3", &line("GET a:80 HTTP/1.1")),
        bad("absolute form without a host", "9110 section 4.2.1", &line("GET http:///x HTTP/1.1")),
        bad("absolute form with one slash", "3.2.2", &line("GET http:/a HTTP/1.1")),
        bad("absolute form with user information", "9110 section 4.2.4", &line("GET http://u@a/ HTTP/1.1")),
        bad("absolute form with a bad port", "3.2.2", &line("GET http://a:b/ HTTP/1.1")),
        bad("absolute form with a port too large", "3.2.2", &line("GET http://a:65536/ HTTP/1.1")),
        bad("absolute form with a fragment", "3.2.2", &line("GET http://a/#b HTTP/1.1")),
        one_of("absolute form of another scheme", "3.2.2", &line("GET ftp://a/ HTTP/1.1"), &[400, 421]),
        one_of("CONNECT", "9110 section 9.3.6", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", &[400, 405, 501]),
        one_of("CONNECT with a path", "3.2.3", &line("CONNECT / HTTP/1.1"), &[400, 405, 501]),
        one_of(
            "CONNECT with a body",
            "9110 section 9.3.6",
            "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 40\r\n\r\n",
            &[400, 405, 501],
        ),
        one_of("HTTP/0.9 form", "3", "GET /\r\n", version),
        one_of("HTTP/0.9 named", "2.3", &line("GET / HTTP/0.9"), version),
        one_of("HTTP/1.2", "2.3", &line("GET / HTTP/1.2"), version),
        one_of("HTTP/2.0", "2.3", &line("GET / HTTP/2.0"), version),
        one_of("HTTP/2", "2.3", &line("GET / HTTP/2"), version),
        one_of("HTTP/3.0", "2.3", &line("GET / HTTP/3.0"), version),
        one_of("HTTP/1.10", "2.3", &line("GET / HTTP/1.10"), version),
        one_of("HTTP/11.1", "2.3", &line("GET / HTTP/11.1"), version),
        one_of("HTTP/01.1", "2.3", &line("GET / HTTP/01.1"), version),
        one_of("HTTP/1.01", "2.3", &line("GET / HTTP/1.01"), version),
        one_of("HTTP/1.", "2.3", &line("GET / HTTP/1."), version),
        one_of("HTTP/1", "2.3", &line("GET / HTTP/1"), version),
        one_of("HTTP/.1", "2.3", &line("GET / HTTP/.1"), version),
        one_of("HTTP/1,1", "2.3", &line("GET / HTTP/1,1"), version),
        one_of("HTTP/1.1.1", "2.3", &line("GET / HTTP/1.1.1"), version),
        one_of("HTTP/1.x", "2.3", &line("GET / HTTP/1.x"), version),
        one_of("HTTP/+1.1", "2.3", &line("GET / HTTP/+1.1"), version),
        one_of("HTTP/-1.1", "2.3", &line("GET / HTTP/-1.1"), version),
        one_of("lower case", "2.3", &line("GET / http/1.1"), version),
        one_of("mixed case", "2.3", &line("GET / Http/1.1"), version),
        one_of("blank in the version", "2.3", &line("GET / HTTP/ 1.1"), version),
        one_of("another protocol", "2.3", &line("GET / HTTQ/1.1"), version),
        one_of("the slash missing", "2.3", &line("GET / HTTP1.1"), version),
        one_of("the name missing", "2.3", &line("GET / /1.1"), version),
        one_of("HTTP/2 preface", "9.8", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", version),
    ]);
}

#[test]
fn hosts() {
    let value = |value: &str| host(&format!("Host: {value}\r\n"));
    let one = &["GET /"];
    Bench::new().run(&[
        good("a name", "3.2", &value("example.com"), one),
        good("a name with a port", "3.2", &value("example.com:8080"), one),
        good("an address", "3.2", &value("127.0.0.1:80"), one),
        good("an IPv6 address", "3.2", &value("[::1]"), one),
        good("an IPv6 address with a port", "3.2", &value("[2001:db8::1]:80"), one),
        good("in any case", "5.1", &host("hOST: EXAMPLE.com\r\n"), one),
        good("an underscore", "3.2", &value("a_b.example"), one),
        bad("missing", "3.2", &host("")),
        bad("missing beside other fields", "3.2", &host("X: a\r\n")),
        bad("missing with absolute form", "3.2", "GET http://a/ HTTP/1.1\r\n\r\n"),
        bad("doubled", "3.2", &host("Host: a\r\nHost: a\r\n")),
        bad("doubled and differing", "3.2", &host("Host: a\r\nHost: b\r\n")),
        bad("doubled, one empty", "3.2", &host("Host: a\r\nhost:\r\n")),
        bad("empty", "9110 section 4.2.1", &value("")),
        bad("only blanks", "9110 section 4.2.1", &value("  \t")),
        bad("list", "3.2", &value("a, b")),
        bad("comma", "3.2", &value("a,b")),
        bad("user information", "3.2", &value("u@a")),
        bad("user and password", "3.2", &value("u:p@a")),
        bad("port that is no number", "3.2", &value("a:b")),
        bad("port too large", "3.2", &value("a:65536")),
        bad("port that wraps in 16 bits", "3.2", &value("a:65616")),
        bad("port of many digits", "3.2", &value("a:99999999999999999999")),
        bad("port with a sign", "3.2", &value("a:+80")),
        bad("negative port", "3.2", &value("a:-80")),
        bad("two ports", "3.2", &value("a:80:80")),
        bad("only a port", "3.2", &value(":80")),
        bad("blank within", "3.2", &value("a b")),
        bad("tab within", "3.2", &value("a\tb")),
        bad("path", "3.2", &value("a/b")),
        bad("whole URI", "3.2", &value("http://a")),
        bad("query", "3.2", &value("a?b")),
        bad("fragment", "3.2", &value("a#b")),
        bad("backslash", "3.2", &value("a\\b")),
        bad("angle brackets", "3.2", &value("<a>")),
        bad("quotes", "3.2", &value("\"a\"")),
        bad("braces", "3.2", &value("{a}")),
        bad("bracket not closed", "3.2", &value("[::1")),
        bad("bracket not opened", "3.2", &value("::1]")),
        bad("IPv6 without brackets", "3.2", &value("::1")),
        bad("brackets around a name", "3.2", &value("[a]")),
        bad("bytes after the bracket", "3.2", &value("[::1]a")),
        bad("byte above 127", "3.2", &value("a\u{e9}")),
        bad("NUL", "3.2", &value("a\u{0}")),
        bad("control", "3.2", &value("a\u{1}")),
        bad("blank before the colon", "5.1", &host("Host : a\r\n")),
        bad("folded", "5.2", &host("Host:\r\n a\r\n")),
    ]);
}

#[test]
fn sequences() {
    let next = "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    let first: &[&str] = &["GET /"];
    Bench::new().run(&[
        row("good, then bad", "9.3.2", &(get("") + "BAD\r\n\r\n"), Want::Refuse(first, &[400, 505])),
        row("good, then bad, then good", "9.3.2", &(get("") + &get("X : a\r\n") + next), Want::Refuse(first, &[400])),
        row(
            "good, good, then a bad length",
            "9.3.2",
            &(get("") + next + &post("Content-Length: x\r\n", "")),
            Want::Refuse(&["GET /", "GET /2"], &[400]),
        ),
        row(
            "good, then a bad chunk",
            "9.3.2",
            &(get("") + &chunked("5\r\nhello\r\nX\r\n")),
            Want::Refuse(first, &[400]),
        ),
        row(
            "bytes after a body are the next request",
            "9.3.2",
            &post("Content-Length: 5\r\n", "helloX / HTTP/1.1\r\nHost: a\r\n\r\n"),
            Want::Pass(&["POST / hello", "X /"]),
        ),
        row(
            "bytes after a body that are no request",
            "9.3.2",
            &post("Content-Length: 5\r\n", "hello\u{0}\r\n\r\n"),
            Want::Refuse(&["POST / hello"], &[400]),
        ),
        row(
            "a body without any framing is the next request",
            "6.3",
            &post("", "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n"),
            Want::Pass(&["POST /", "GET /inner"]),
        ),
        row("one empty line between requests", "2.2", &(get("") + "\r\n" + next), Want::Pass(&["GET /", "GET /2"])),
        row(
            "trailers that look like framing",
            "7.1.2",
            &(chunked("5\r\nhello\r\n0\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n") + next),
            Want::Pass(&["POST / hello", "GET /2"]),
        ),
    ]);
}
