//! Responses at the edge of RFC 9112: what a client gets when the backend is wrong, hostile or cut off.
//!
//! What is broken before its head was sent becomes 502. What breaks later must end so that the client can see
//! it. No byte of one response may ever turn up in another.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::backend::{Act, Backend, response};
use crate::common::client::{Client, End, describe, get};
use crate::common::h1::{Broken, Response};
use crate::common::proxy::{Conf, Proxy};
use crate::common::wait_until;

/// What the client must get.
#[derive(Debug, Clone, Copy)]
enum Want {
    /// A 502 of the proxy's own.
    Bad,
    /// This status and body, framed soundly.
    Good(u16, &'static str),
    /// Either: refused, or repaired to this body.
    BadOr(&'static str),
    /// Not a whole response: 502 when nothing was sent yet, else an end that shows the cut.
    Cut,
}

struct Row {
    name: &'static str,
    /// The section of RFC 9112 it rests on, unless it says 9110.
    section: &'static str,
    request: &'static str,
    answer: Vec<u8>,
    then: Act,
    want: Want,
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_1_0: &str = "GET / HTTP/1.0\r\nHost: a\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";

fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

fn row(name: &'static str, section: &'static str, answer: &str, want: Want) -> Row {
    Row { name, section, request: GET, answer: bytes(answer), then: Act::Hang, want }
}

fn bad(name: &'static str, section: &'static str, answer: &str) -> Row {
    row(name, section, answer, Want::Bad)
}

impl Row {
    fn to(self, request: &'static str) -> Row {
        Row { request, ..self }
    }

    fn then(self, then: Act) -> Row {
        Row { then, ..self }
    }
}

/// A 200 with these field lines and these bytes behind the head.
fn ok(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}")
}

fn chunked(body: &str) -> String {
    ok("Transfer-Encoding: chunked\r\n", body)
}

/// A response with this status line and an empty body.
fn status(line: &str) -> String {
    format!("{line}\r\nContent-Length: 0\r\n\r\n")
}

struct Bench {
    script: Arc<Mutex<Vec<Act>>>,
    backend: Backend,
    proxy: Proxy,
}

impl Bench {
    fn new() -> Bench {
        let script = Arc::new(Mutex::new(Vec::new()));
        let current = Arc::clone(&script);
        let backend = Backend::serve(move |conn| {
            while let Some(request) = conn.request() {
                if request.target == "/sound" {
                    conn.send(&response("sound"));
                    continue;
                }
                let acts: Vec<Act> = current.lock().unwrap().clone();
                let hang = matches!(acts.last(), Some(Act::Hang));
                conn.play(acts.strip_suffix(&[Act::Hang]).unwrap_or(&acts));
                // Hanging means not closing first; a proxy that finds the answer sound may go on here.
                if !hang {
                    return;
                }
            }
        });
        let conf = Conf::http(&[backend.addr])
            .group("health = { failures = 0 }")
            .tables("[timeouts]\nresponse = \"3s\"\nserver = \"3s\"");
        let proxy = conf.launch().workers(1).start();
        Bench { script, backend, proxy }
    }

    fn run(self, rows: &[Row]) {
        let mut wrong = Vec::new();
        for row in rows {
            if let Err(what) = self.try_row(row) {
                let answer: String = row.answer.iter().take(300).map(|&b| char::from(b)).collect();
                wrong.push(format!("{} (section {}): {what}\n      answer {answer:?}", row.name, row.section));
            }
        }
        assert!(wrong.is_empty(), "{} of {} rows:\n  {}", wrong.len(), rows.len(), wrong.join("\n  "));
    }

    fn try_row(&self, row: &Row) -> Result<(), String> {
        *self.script.lock().unwrap() = vec![Act::Send(row.answer.clone()), row.then.clone()];
        let mut client = Client::connect(self.proxy.addr());
        client.patience(Duration::from_secs(8));
        client.send(row.request);
        let got = client.wire.response(row.request.split(' ').next().unwrap());
        let shown = |response: &Response| format!("{} {:?}", response.status, response.text());
        match (&got, row.want) {
            (Ok(response), Want::Bad | Want::BadOr(_) | Want::Cut) if response.status == 502 => {}
            (Ok(response), Want::Good(status, body))
                if response.status == status && response.body == body.as_bytes() => {}
            (Ok(response), Want::BadOr(body)) if response.status == 200 && response.body == body.as_bytes() => {}
            (Err(Broken::Cut(_) | Broken::Reset(_)), Want::Cut) => {
                return self.sound(&mut Client::connect(self.proxy.addr()));
            }
            (Ok(response), want) => return Err(format!("got {} instead of {want:?}", shown(response))),
            (Err(broken), want) => return Err(format!("{} instead of {want:?}", describe(broken))),
        }
        let response = got.map_err(|broken| describe(&broken))?;
        if response.version != "HTTP/1.1" {
            return Err(format!("answered as {}", response.version));
        }
        let violations = self.backend.take_violations();
        if !violations.is_empty() {
            return Err(format!("the backend got what is not strict: {violations:?}"));
        }
        // Whatever is left of the bad answer must not reach the next request, on this connection or another.
        if !response.closes() && row.request.contains("HTTP/1.1") {
            self.sound(&mut client)?;
        }
        self.sound(&mut Client::connect(self.proxy.addr()))
    }

    fn sound(&self, client: &mut Client) -> Result<(), String> {
        client.send("GET /sound HTTP/1.1\r\nHost: a\r\n\r\n");
        let next = client.try_response().map_err(|broken| format!("the next request: {}", describe(&broken)))?;
        if next.status == 200 && next.text() == "sound" {
            Ok(())
        } else {
            Err(format!("the next request was answered {} {:?}", next.status, next.text()))
        }
    }
}

#[test]
fn status_lines() {
    Bench::new().run(&[
        row("empty reason", "4", &status("HTTP/1.1 200 "), Want::Good(200, "")),
        row("reason of several words", "4", &status("HTTP/1.1 404 Not  There"), Want::Good(404, "")),
        row("reason with bytes above 127", "4", &status("HTTP/1.1 200 \u{e9}\u{80}"), Want::Good(200, "")),
        row("unknown status", "9110 section 15", &status("HTTP/1.1 599 Odd"), Want::Good(599, "")),
        bad("two digits", "4", &status("HTTP/1.1 20 OK")),
        bad("four digits", "4", &status("HTTP/1.1 2000 OK")),
        bad("no digits", "4", &status("HTTP/1.1 abc OK")),
        bad("one letter", "4", &status("HTTP/1.1 2OO OK")),
        bad("signed", "4", &status("HTTP/1.1 +20 OK")),
        bad("000", "9110 section 15", &status("HTTP/1.1 000 OK")),
        bad("099", "9110 section 15", &status("HTTP/1.1 099 OK")),
        bad("no status", "4", &status("HTTP/1.1")),
        bad("two blanks", "4", &status("HTTP/1.1  200 OK")),
        bad("tab", "4", &status("HTTP/1.1\t200 OK")),
        bad("leading blank", "4", &status(" HTTP/1.1 200 OK")),
        bad("HTTP/2.0", "2.3", &status("HTTP/2.0 200 OK")),
        bad("HTTP/0.9", "2.3", &status("HTTP/0.9 200 OK")),
        bad("lower case", "2.3", &status("http/1.1 200 OK")),
        bad("HTTP/1.10", "2.3", &status("HTTP/1.10 200 OK")),
        bad("HTTP/1", "2.3", &status("HTTP/1 200 OK")),
        bad("another protocol", "2.3", &status("ICY 200 OK")),
        bad("NUL in the reason", "4", &status("HTTP/1.1 200 O\u{0}K")),
        bad("control in the reason", "4", &status("HTTP/1.1 200 O\u{1}K")),
        bad("bare CR in the reason", "2.2", &status("HTTP/1.1 200 O\rK")),
        bad("DEL in the reason", "4", &status("HTTP/1.1 200 O\u{7f}K")),
        bad("not HTTP", "4", "220 mail.example ESMTP\r\n\r\n"),
        bad("HTML alone", "4", "<html>hello</html>\r\n\r\n").then(Act::Close),
        bad("binary", "4", "\u{0}\u{1}\u{2}\u{3}\r\n\r\n"),
        bad("a request", "4", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        bad("nothing", "8", "").then(Act::Close),
        bad("reset at once", "8", "").then(Act::Reset),
    ]);
}

#[test]
fn heads() {
    let with = |line: &str| ok(&format!("{line}\r\nContent-Length: 2\r\n"), "ok");
    Bench::new().run(&[
        row("tab in a value", "5", &with("X: a\tb"), Want::Good(200, "ok")),
        row("bytes above 127 in a value", "9110 section 5.5", &with("X: \u{e9}\u{80}"), Want::Good(200, "ok")),
        row("empty value", "9110 section 5.5", &with("X:"), Want::Good(200, "ok")),
        bad("bare LF everywhere", "2.2", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        bad("bare LF after a field", "2.2", "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok"),
        bad("bare LF as the empty line", "2.2", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok"),
        bad("bare CR in a value", "2.2", &with("X: a\rb")),
        bad("bare CR splits the response", "11.1", &with("X: a\r\rHTTP/1.1 200 OK\r\rb")),
        bad("NUL in a value", "9110 section 5.5", &with("X: a\u{0}b")),
        bad("control in a value", "9110 section 5.5", &with("X: a\u{1}b")),
        bad("DEL in a value", "9110 section 5.5", &with("X: a\u{7f}b")),
        bad("no colon", "5", &with("XYZ")),
        bad("empty name", "5.1", &with(": a")),
        bad("blank in a name", "5.1", &with("X Y: a")),
        bad("NUL in a name", "5.1", &with("X\u{0}: a")),
        bad("byte above 127 in a name", "5.1", &with("X\u{e9}: a")),
        bad("indented first line", "2.2", "HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 2\r\n\r\nok"),
        row("blank before the colon", "5.1", &with("X : a"), Want::BadOr("ok")),
        row("folded", "5.2", &with("X: a\r\n b"), Want::BadOr("ok")),
        bad("too large", "9110 section 5.4", &with(&format!("X: {}", "x".repeat(300_000)))),
        bad("too many fields", "9110 section 5.4", &with("X: a\r\n".repeat(5_000).trim_end())),
        bad("never ends", "8", &format!("HTTP/1.1 200 OK\r\n{}", "X: a\r\n".repeat(100_000))),
    ]);
}

#[test]
fn content_length() {
    let length = |value: &str| ok(&format!("Content-Length: {value}\r\n"), "hello");
    Bench::new().run(&[
        row("length", "6.2", &length("5"), Want::Good(200, "hello")),
        row("optional blanks around it", "5", &length(" \t5 "), Want::Good(200, "hello")),
        bad(
            "with chunked",
            "6.3",
            &ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ),
        bad(
            "after chunked",
            "6.3",
            &ok("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ),
        bad("two that differ", "6.3", &ok("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        row("two that agree", "6.3", &ok("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), Want::BadOr("hello")),
        row("list that agrees", "6.3", &length("5, 5"), Want::BadOr("hello")),
        bad("list that differs", "6.3", &length("5, 6")),
        bad("empty", "6.2", &length("")),
        bad("plus sign", "6.2", &length("+5")),
        bad("minus sign", "6.2", &length("-5")),
        bad("hexadecimal", "6.2", &length("0x5")),
        bad("letters", "6.2", &length("5x")),
        bad("blank within", "6.2", &length("5 5")),
        bad("decimal point", "6.2", &length("5.0")),
        bad("wraps to 5 in 64 bits", "6.2", &length("18446744073709551621")),
        bad("forty digits", "6.2", &length(&"9".repeat(40))),
        row("wraps to 5 in 32 bits", "6.2", &length("4294967301"), Want::Cut).then(Act::Close),
        row("blank before the colon", "5.1", &ok("Content-Length : 5\r\n", "hello"), Want::BadOr("hello")),
    ]);
}

#[test]
fn transfer_encoding() {
    let whole = "5\r\nhello\r\n0\r\n\r\n";
    let coding = |value: &str| ok(&format!("Transfer-Encoding: {value}\r\n"), whole);
    Bench::new().run(&[
        row("chunked", "7.1", &coding("chunked"), Want::Good(200, "hello")),
        row("in any case", "7", &coding("Chunked"), Want::Good(200, "hello")),
        row("extension", "7.1.1", &chunked("5;a=\"b\"\r\nhello\r\n0\r\n\r\n"), Want::Good(200, "hello")),
        row("trailers", "7.1.2", &chunked("5\r\nhello\r\n0\r\nX: a\r\n\r\n"), Want::Good(200, "hello")),
        row("to an HTTP/1.0 client", "6.1", &coding("chunked"), Want::Good(200, "hello")).to(GET_1_0),
        bad("from HTTP/1.0", "6.1", &coding("chunked").replace("HTTP/1.1", "HTTP/1.0")),
        bad("chunked twice", "7", &coding("chunked, chunked")),
        bad("in two fields", "7", &ok(&"Transfer-Encoding: chunked\r\n".repeat(2), whole)),
        bad("gzip before it", "6.1", &coding("gzip, chunked")),
        bad("identity", "7", &coding("identity")).then(Act::Close),
        bad("unknown", "7", &coding("cow")).then(Act::Close),
        bad("empty element", "7", &coding("chunked,")),
        bad("empty", "7", &coding("")).then(Act::Close),
        bad("prefix", "7", &coding("xchunked")).then(Act::Close),
        row("blank before the colon", "5.1", &ok("Transfer-Encoding : chunked\r\n", whole), Want::BadOr("hello")),
    ]);
}

#[test]
fn broken_chunks_are_never_a_clean_end() {
    let cut = |name, body: &str| row(name, "7.1", &chunked(body), Want::Cut);
    Bench::new().run(&[
        cut("no size", "5\r\nhello\r\nzz\r\n"),
        cut("plus sign", "5\r\nhello\r\n+0\r\n\r\n"),
        cut("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        cut("blank before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        cut("empty size", "\r\nhello\r\n0\r\n\r\n"),
        cut("wraps to 5 in 64 bits", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        cut("bare LF after the size", "5\nhello\r\n0\r\n\r\n"),
        cut("bare LF after the data", "5\r\nhello\n0\r\n\r\n"),
        cut("data longer than its size", "4\r\nhello\r\n0\r\n\r\n"),
        cut("no line end after the data", "5\r\nhello0\r\n\r\n"),
        cut("NUL in an extension", "5;\u{0}\r\nhello\r\n0\r\n\r\n"),
        cut("bare LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        cut("endless extension", &format!("5;{}", "x".repeat(200_000))),
        cut("trailer without a colon", "5\r\nhello\r\n0\r\nbad\r\n\r\n"),
        cut("trailer without end", &format!("5\r\nhello\r\n0\r\n{}", "X: a\r\n".repeat(60_000))),
    ]);
}

#[test]
fn early_ends_show() {
    let ends = |name, answer: &str, want| row(name, "8", answer, want);
    let mut rows = Vec::new();
    for then in [Act::Close, Act::Reset] {
        rows.extend([
            ends("within the status line", "HTTP/1.1 200 O", Want::Bad).then(then.clone()),
            ends("within the fields", "HTTP/1.1 200 OK\r\nContent-Le", Want::Bad).then(then.clone()),
            ends("before the empty line", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", Want::Bad).then(then.clone()),
            ends("after 100", "HTTP/1.1 100 Continue\r\n\r\n", Want::Bad).then(then.clone()),
            ends("before any byte of the length", &ok("Content-Length: 5\r\n", ""), Want::Cut).then(then.clone()),
            ends("within the length", &ok("Content-Length: 5\r\n", "hell"), Want::Cut).then(then.clone()),
            ends("before the first chunk", &chunked(""), Want::Cut).then(then.clone()),
            ends("within a size", &chunked("5"), Want::Cut).then(then.clone()),
            ends("after a size", &chunked("5\r\n"), Want::Cut).then(then.clone()),
            ends("within a chunk", &chunked("5\r\nhel"), Want::Cut).then(then.clone()),
            ends("after a chunk's data", &chunked("5\r\nhello"), Want::Cut).then(then.clone()),
            ends("between chunks", &chunked("5\r\nhello\r\n"), Want::Cut).then(then.clone()),
            ends("after the last size", &chunked("5\r\nhello\r\n0\r\n"), Want::Cut).then(then.clone()),
            ends("within the trailers", &chunked("5\r\nhello\r\n0\r\nX: a\r\n"), Want::Cut).then(then.clone()),
        ]);
    }
    rows.push(ends("reset where the end is the frame", &ok("", "hello"), Want::Cut).then(Act::Reset));
    rows.push(ends("closed where the end is the frame", &ok("", "hello"), Want::Good(200, "hello")).then(Act::Close));
    Bench::new().run(&rows);
}

#[test]
fn early_end_shows_to_http_1_0_too() {
    // There the orderly end of the connection means a whole body: a cut must be a reset (RFC 9112 section 8).
    for (answer, then) in [
        (chunked("5\r\nhello\r\n"), Act::Close),
        (chunked("5\r\nhello\r\n"), Act::Reset),
        (chunked("5\r\nhello\r\nzz\r\n"), Act::Hang),
        (ok("", "hello"), Act::Reset),
    ] {
        let bench = Bench::new();
        *bench.script.lock().unwrap() = vec![Act::send(answer.clone()), Act::Gate, then.clone()];
        let mut client = Client::connect(bench.proxy.addr());
        client.send(GET_1_0);
        client.wire.begin();
        // Part of the answer is on its way before the end comes, or the whole was held back.
        bench.backend.gate().open();
        let (got, end) = client.read_to_end();
        let text = String::from_utf8_lossy(&got).into_owned();
        assert!(end == End::Reset || text.contains(" 502 "), "{answer:?} then {then:?}: {end:?} after {text:?}");
    }
}

#[test]
fn interim_responses() {
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    Bench::new().run(&[
        row(
            "100 unasked",
            "9110 section 15.2.1",
            &format!("HTTP/1.1 100 Continue\r\n\r\n{last}"),
            Want::Good(200, "ok"),
        ),
        row("102", "9110 section 15.2", &format!("HTTP/1.1 102 Processing\r\n\r\n{last}"), Want::Good(200, "ok")),
        row(
            "unknown 1xx",
            "9110 section 15.2",
            &format!("HTTP/1.1 199 Odd\r\nX: a\r\n\r\n{last}"),
            Want::Good(200, "ok"),
        ),
        row(
            "three",
            "9110 section 15.2",
            &("HTTP/1.1 103 Early\r\nLink: a\r\n\r\n".repeat(3) + last),
            Want::Good(200, "ok"),
        ),
        row(
            "to HTTP/1.0",
            "9110 section 15.2",
            &("HTTP/1.1 103 Early\r\n\r\n".repeat(3) + last),
            Want::Good(200, "ok"),
        )
        .to(GET_1_0),
        row(
            "with a length",
            "6.3",
            &format!("HTTP/1.1 103 Early\r\nContent-Length: 5\r\n\r\n{last}"),
            Want::BadOr("ok"),
        ),
        bad(
            "101 unasked",
            "9110 section 15.2.2",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        ),
        bad("101 unasked, then 200", "9110 section 15.2.2", &format!("HTTP/1.1 101 Switching\r\n\r\n{last}")),
        bad("1xx without end", "9110 section 15.2", &"HTTP/1.1 100 Continue\r\n\r\n".repeat(100_000)),
    ]);
}

#[test]
fn bodies_where_none_may_be() {
    Bench::new().run(&[
        row("HEAD, with a body", "6.3", &ok("Content-Length: 5\r\n", "hello"), Want::Good(200, "")).to(HEAD),
        row("HEAD, with chunks", "6.3", &chunked("5\r\nhello\r\n0\r\n\r\n"), Want::Good(200, "")).to(HEAD),
        row("HEAD, until the end", "6.3", &ok("", "hello"), Want::Good(200, "")).to(HEAD).then(Act::Close),
        row(
            "HEAD, with a response for a body",
            "6.3",
            &ok("Content-Length: 38\r\n", &status("HTTP/1.1 200 EVIL")),
            Want::Good(200, ""),
        )
        .to(HEAD),
        row("204 with a body", "6.3", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", Want::Good(204, "")),
        row(
            "204 with chunks",
            "6.3",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Want::Good(204, ""),
        ),
        row(
            "304 with a body",
            "6.3",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
            Want::Good(304, ""),
        ),
        row(
            "304 with a response for a body",
            "6.3",
            &("HTTP/1.1 304 Not Modified\r\n\r\n".to_owned() + &status("HTTP/1.1 200 EVIL")),
            Want::Good(304, ""),
        ),
    ]);
}

#[test]
fn bytes_after_the_end_are_dropped_with_their_connection() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    Bench::new().run(&[
        row("after a length", "9.2", &(ok("Content-Length: 2\r\n", "ok") + "more"), Want::Good(200, "ok")),
        row("a response after a length", "11.1", &(ok("Content-Length: 2\r\n", "ok") + evil), Want::Good(200, "ok")),
        row("a response after length 0", "11.1", &(ok("Content-Length: 0\r\n", "") + evil), Want::Good(200, "")),
        row("a response after chunks", "11.1", &(chunked("2\r\nok\r\n0\r\n\r\n") + evil), Want::Good(200, "ok")),
        row("one empty line", "9.2", &(ok("Content-Length: 2\r\n", "ok") + "\r\n"), Want::Good(200, "ok")),
    ]);
}

#[test]
fn bytes_on_an_idle_pooled_connection_are_no_answer() {
    let backend = Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.send(&response("right"));
            // The first connection only: on one in use nobody can tell these bytes from an answer.
            if conn.number == 0 {
                conn.gate().pass();
                conn.send(&response("unasked"));
            }
        }
    });
    let proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").text(), "right");
    backend.gate().open();
    wait_until("the connection is given up", || backend.open() == 0);
    for _ in 0..5 {
        assert_eq!(client.get("/").text(), "right");
        assert_eq!(get(proxy.addr(), "/").text(), "right");
    }
}
