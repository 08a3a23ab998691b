//! Rows of answers as a backend sends them.

use super::bench::{GET_1_0, HEAD, Row, Want, bad, chunked, ok, row, status};
use crate::common::backend::Act;

/// Status lines.
pub fn status_lines() -> Vec<Row> {
    vec![
        row("empty reason", "9112 4", &status("HTTP/1.1 200 "), Want::Good(200, "")),
        row("reason of several words", "9112 4", &status("HTTP/1.1 404 Not  There"), Want::Good(404, "")),
        row("reason with bytes above 127", "9112 4", &status("HTTP/1.1 200 \u{e9}\u{80}"), Want::Good(200, "")),
        row("unknown status", "9110 15", &status("HTTP/1.1 599 Odd"), Want::Good(599, "")),
        bad("two digits", "9112 4", &status("HTTP/1.1 20 OK")),
        bad("four digits", "9112 4", &status("HTTP/1.1 2000 OK")),
        bad("no digits", "9112 4", &status("HTTP/1.1 abc OK")),
        bad("one letter", "9112 4", &status("HTTP/1.1 2OO OK")),
        bad("signed", "9112 4", &status("HTTP/1.1 +20 OK")),
        bad("000", "9110 15", &status("HTTP/1.1 000 OK")),
        bad("099", "9110 15", &status("HTTP/1.1 099 OK")),
        bad("no status", "9112 4", &status("HTTP/1.1")),
        bad("two blanks", "9112 4", &status("HTTP/1.1  200 OK")),
        bad("tab", "9112 4", &status("HTTP/1.1\t200 OK")),
        bad("leading blank", "9112 4", &status(" HTTP/1.1 200 OK")),
        bad("HTTP/2.0", "9112 2.3", &status("HTTP/2.0 200 OK")),
        bad("HTTP/0.9", "9112 2.3", &status("HTTP/0.9 200 OK")),
        bad("lower case", "9112 2.3", &status("http/1.1 200 OK")),
        bad("HTTP/1.10", "9112 2.3", &status("HTTP/1.10 200 OK")),
        bad("HTTP/1", "9112 2.3", &status("HTTP/1 200 OK")),
        bad("another protocol", "9112 2.3", &status("ICY 200 OK")),
        bad("NUL in the reason", "9112 4", &status("HTTP/1.1 200 O\u{0}K")),
        bad("control in the reason", "9112 4", &status("HTTP/1.1 200 O\u{1}K")),
        bad("bare CR in the reason", "9112 2.2", &status("HTTP/1.1 200 O\rK")),
        bad("DEL in the reason", "9112 4", &status("HTTP/1.1 200 O\u{7f}K")),
        bad("not HTTP", "9112 4", "220 mail.example ESMTP\r\n\r\n"),
        bad("HTML alone", "9112 4", "<html>hello</html>\r\n\r\n").then(Act::Close),
        bad("binary", "9112 4", "\u{0}\u{1}\u{2}\u{3}\r\n\r\n"),
        bad("a request", "9112 4", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        bad("nothing", "9112 8", "").then(Act::Close),
        bad("reset at once", "9112 8", "").then(Act::Reset),
    ]
}

/// Field lines, and heads without end.
pub fn heads() -> Vec<Row> {
    let with = |line: &str| ok(&format!("{line}\r\nContent-Length: 2\r\n"), "ok");
    vec![
        row("tab in a value", "9112 5", &with("X: a\tb"), Want::Good(200, "ok")),
        row("bytes above 127 in a value", "9110 5.5", &with("X: \u{e9}\u{80}"), Want::Good(200, "ok")),
        row("empty value", "9110 5.5", &with("X:"), Want::Good(200, "ok")),
        bad("bare LF everywhere", "9112 2.2", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        bad("bare LF after a field", "9112 2.2", "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok"),
        bad("bare LF as the empty line", "9112 2.2", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok"),
        bad("bare CR in a value", "9112 2.2", &with("X: a\rb")),
        bad("bare CR splits the response", "9112 11.1", &with("X: a\r\rHTTP/1.1 200 OK\r\rb")),
        bad("NUL in a value", "9110 5.5", &with("X: a\u{0}b")),
        bad("control in a value", "9110 5.5", &with("X: a\u{1}b")),
        bad("DEL in a value", "9110 5.5", &with("X: a\u{7f}b")),
        bad("no colon", "9112 5", &with("XYZ")),
        bad("empty name", "9112 5.1", &with(": a")),
        bad("blank in a name", "9112 5.1", &with("X Y: a")),
        bad("NUL in a name", "9112 5.1", &with("X\u{0}: a")),
        bad("byte above 127 in a name", "9112 5.1", &with("X\u{e9}: a")),
        bad("indented first line", "9112 2.2", "HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 2\r\n\r\nok"),
        row("blank before the colon", "9112 5.1", &with("X : a"), Want::BadOr("ok")),
        row("folded", "9112 5.2", &with("X: a\r\n b"), Want::BadOr("ok")),
        bad("too large", "9110 5.4", &with(&format!("X: {}", "x".repeat(300_000)))),
        bad("too many fields", "9110 5.4", &with("X: a\r\n".repeat(5_000).trim_end())),
        bad("never ends", "9112 8", &format!("HTTP/1.1 200 OK\r\n{}", "X: a\r\n".repeat(100_000))),
    ]
}

/// Content-Length.
pub fn content_length() -> Vec<Row> {
    let length = |value: &str| ok(&format!("Content-Length: {value}\r\n"), "hello");
    vec![
        row("length", "9112 6.2", &length("5"), Want::Good(200, "hello")),
        row("optional blanks around it", "9112 5", &length(" \t5 "), Want::Good(200, "hello")),
        bad(
            "with chunked",
            "9112 6.3",
            &ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ),
        bad(
            "after chunked",
            "9112 6.3",
            &ok("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ),
        bad("two that differ", "9112 6.3", &ok("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        row(
            "two that agree",
            "9112 6.3",
            &ok("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
            Want::BadOr("hello"),
        ),
        row("list that agrees", "9112 6.3", &length("5, 5"), Want::BadOr("hello")),
        bad("list that differs", "9112 6.3", &length("5, 6")),
        bad("empty", "9112 6.2", &length("")),
        bad("plus sign", "9112 6.2", &length("+5")),
        bad("minus sign", "9112 6.2", &length("-5")),
        bad("hexadecimal", "9112 6.2", &length("0x5")),
        bad("letters", "9112 6.2", &length("5x")),
        bad("blank within", "9112 6.2", &length("5 5")),
        bad("decimal point", "9112 6.2", &length("5.0")),
        bad("wraps to 5 in 64 bits", "9112 6.2", &length("18446744073709551621")),
        bad("forty digits", "9112 6.2", &length(&"9".repeat(40))),
        row("wraps to 5 in 32 bits", "9112 6.2", &length("4294967301"), Want::Cut).then(Act::Close),
        row("blank before the colon", "9112 5.1", &ok("Content-Length : 5\r\n", "hello"), Want::BadOr("hello")),
    ]
}

/// Transfer-Encoding.
pub fn transfer_encoding() -> Vec<Row> {
    let whole = "5\r\nhello\r\n0\r\n\r\n";
    let coding = |value: &str| ok(&format!("Transfer-Encoding: {value}\r\n"), whole);
    vec![
        row("chunked", "9112 7.1", &coding("chunked"), Want::Good(200, "hello")),
        row("in any case", "9112 7", &coding("Chunked"), Want::Good(200, "hello")),
        row("extension", "9112 7.1.1", &chunked("5;a=\"b\"\r\nhello\r\n0\r\n\r\n"), Want::Good(200, "hello")),
        row("trailers", "9112 7.1.2", &chunked("5\r\nhello\r\n0\r\nX: a\r\n\r\n"), Want::Good(200, "hello")),
        row("to an HTTP/1.0 client", "9112 6.1", &coding("chunked"), Want::Good(200, "hello")).to(GET_1_0),
        bad("from HTTP/1.0", "9112 6.1", &coding("chunked").replace("HTTP/1.1", "HTTP/1.0")),
        bad("chunked twice", "9112 7", &coding("chunked, chunked")),
        bad("in two fields", "9112 7", &ok(&"Transfer-Encoding: chunked\r\n".repeat(2), whole)),
        bad("gzip before it", "9112 6.1", &coding("gzip, chunked")),
        bad("identity", "9112 7", &coding("identity")).then(Act::Close),
        bad("unknown", "9112 7", &coding("cow")).then(Act::Close),
        bad("empty element", "9112 7", &coding("chunked,")),
        bad("empty", "9112 7", &coding("")).then(Act::Close),
        bad("prefix", "9112 7", &coding("xchunked")).then(Act::Close),
        row("blank before the colon", "9112 5.1", &ok("Transfer-Encoding : chunked\r\n", whole), Want::BadOr("hello")),
    ]
}

/// Chunks that break within the body.
pub fn broken_chunks() -> Vec<Row> {
    let cut = |name, body: &str| row(name, "9112 7.1", &chunked(body), Want::Cut);
    vec![
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
    ]
}

/// Ends in every place where one is too early.
pub fn early_ends() -> Vec<Row> {
    let ends = |name, answer: &str, want| row(name, "9112 8", answer, want);
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
    rows
}

/// 1xx.
pub fn interim() -> Vec<Row> {
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    vec![
        row("100 unasked", "9110 15.2.1", &format!("HTTP/1.1 100 Continue\r\n\r\n{last}"), Want::Good(200, "ok")),
        row("102", "9110 15.2", &format!("HTTP/1.1 102 Processing\r\n\r\n{last}"), Want::Good(200, "ok")),
        row("unknown 1xx", "9110 15.2", &format!("HTTP/1.1 199 Odd\r\nX: a\r\n\r\n{last}"), Want::Good(200, "ok")),
        row("three", "9110 15.2", &("HTTP/1.1 103 Early\r\nLink: a\r\n\r\n".repeat(3) + last), Want::Good(200, "ok")),
        row("to HTTP/1.0", "9110 15.2", &("HTTP/1.1 103 Early\r\n\r\n".repeat(3) + last), Want::Good(200, "ok"))
            .to(GET_1_0),
        row(
            "with a length",
            "9112 6.3",
            &format!("HTTP/1.1 103 Early\r\nContent-Length: 5\r\n\r\n{last}"),
            Want::BadOr("ok"),
        ),
        bad(
            "101 unasked",
            "9110 15.2.2",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        ),
        bad("101 unasked, then 200", "9110 15.2.2", &format!("HTTP/1.1 101 Switching\r\n\r\n{last}")),
        bad("1xx without end", "9110 15.2", &"HTTP/1.1 100 Continue\r\n\r\n".repeat(100_000)),
    ]
}

/// Bodies for HEAD, 204 and 304.
pub fn no_body() -> Vec<Row> {
    vec![
        row("HEAD, with a body", "9112 6.3", &ok("Content-Length: 5\r\n", "hello"), Want::Good(200, "")).to(HEAD),
        row("HEAD, with chunks", "9112 6.3", &chunked("5\r\nhello\r\n0\r\n\r\n"), Want::Good(200, "")).to(HEAD),
        row("HEAD, until the end", "9112 6.3", &ok("", "hello"), Want::Good(200, "")).to(HEAD).then(Act::Close),
        row(
            "HEAD, with a response for a body",
            "9112 6.3",
            &ok("Content-Length: 38\r\n", &status("HTTP/1.1 200 EVIL")),
            Want::Good(200, ""),
        )
        .to(HEAD),
        row(
            "204 with a body",
            "9112 6.3",
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
            Want::Good(204, ""),
        ),
        row(
            "204 with chunks",
            "9112 6.3",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Want::Good(204, ""),
        ),
        row(
            "304 with a body",
            "9112 6.3",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
            Want::Good(304, ""),
        ),
        row(
            "304 with a response for a body",
            "9112 6.3",
            &("HTTP/1.1 304 Not Modified\r\n\r\n".to_owned() + &status("HTTP/1.1 200 EVIL")),
            Want::Good(304, ""),
        ),
    ]
}

/// Bytes behind a whole response.
pub fn after_the_end() -> Vec<Row> {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    vec![
        row("after a length", "9112 9.2", &(ok("Content-Length: 2\r\n", "ok") + "more"), Want::Good(200, "ok")),
        row(
            "a response after a length",
            "9112 11.1",
            &(ok("Content-Length: 2\r\n", "ok") + evil),
            Want::Good(200, "ok"),
        ),
        row("a response after length 0", "9112 11.1", &(ok("Content-Length: 0\r\n", "") + evil), Want::Good(200, "")),
        row("a response after chunks", "9112 11.1", &(chunked("2\r\nok\r\n0\r\n\r\n") + evil), Want::Good(200, "ok")),
        row("one empty line", "9112 9.2", &(ok("Content-Length: 2\r\n", "ok") + "\r\n"), Want::Good(200, "ok")),
    ]
}
