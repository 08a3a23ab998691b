//! Rows that go through whole families of answers: every control byte, every number of digits, every doubtful framing,
//! and whether the backend's connection may be used again.

use super::bench::{GET_1_0, HEAD, Row, Want, bad, chunked, ok, row, status};
use crate::common::backend::Act;

const GET_1_0_KEPT: &str = "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";

/// Numbers of digits, and every byte that may not stand in a reason or a field.
pub fn status_lines() -> Vec<Row> {
    let mut rows = Vec::new();
    for code in [
        "", "2", "20", "2000", "02000", "20000", "0200", "2 00", "200,", "-200", "0x1F4", "1e2", "600", "999",
        "2\u{b2}0",
    ] {
        rows.push(bad(&format!("status {code:?}"), "9112 4", &status(&format!("HTTP/1.1 {code} OK"))).dropped());
    }
    for code in [200, 201, 299, 400, 418, 499, 500, 599] {
        rows.push(
            row(&format!("status {code}"), "9110 15", &status(&format!("HTTP/1.1 {code} X")), Want::Good(code, ""))
                .kept(),
        );
    }
    for byte in (0..0x20u8).filter(|&byte| byte != b'\t').chain([0x7f]) {
        let byte = char::from(byte);
        rows.push(
            bad(&format!("{byte:?} in the reason"), "9112 4", &status(&format!("HTTP/1.1 200 O{byte}K"))).dropped(),
        );
        rows.push(
            bad(&format!("{byte:?} in a value"), "9110 5.5", &ok(&format!("Content-Length: 0\r\nX: a{byte}b\r\n"), ""))
                .dropped(),
        );
    }
    for version in [
        "HTTP/1.2",
        "HTTP/1.",
        "HTTP/1.1x",
        "HTTP/11",
        "HTTP/01.1",
        "HTTP /1.1",
        "HTTPS/1.1",
        "SIP/2.0",
        "RTSP/1.0",
        "",
    ] {
        rows.push(bad(&format!("version {version:?}"), "9112 2.3", &status(&format!("{version} 200 OK"))).dropped());
    }
    rows.push(row("no blank behind the status", "9112 4", &status("HTTP/1.1 200"), Want::Good(200, "")).kept());
    rows.push(bad("an empty line first", "9112 2.2", &format!("\r\n{}", status("HTTP/1.1 200 OK"))).dropped());
    rows.push(bad("a bare LF first", "9112 2.2", &format!("\n{}", status("HTTP/1.1 200 OK"))).dropped());
    rows
}

/// Content-Length and Transfer-Encoding in every doubtful form, and re-framing for HTTP/1.0.
pub fn framing() -> Vec<Row> {
    let whole = "5\r\nhello\r\n0\r\n\r\n";
    let mut rows = Vec::new();
    for value in [
        "5,5",
        "5,",
        ",5",
        "5;5",
        "5 5",
        "5\t5",
        "0x5",
        "5h",
        "\"5\"",
        "5.",
        "+5",
        "-0",
        "9223372036854775808",
        "18446744073709551616",
        "\u{b2}",
        "chunked",
    ] {
        rows.push(
            bad(&format!("Content-Length: {value}"), "9112 6.3", &ok(&format!("Content-Length: {value}\r\n"), "hello"))
                .dropped(),
        );
    }
    for lines in [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nX: y\r\ncontent-length: 6\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 15\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunk ed\r\n",
        "Transfer-Encoding: \u{b}chunked\r\n",
        "Transfer-Encoding: chunked\u{a0}\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
    ] {
        for request in [GET_1_0, HEAD] {
            rows.push(
                bad(&format!("{lines:?} to {}", &request[..4]), "9112 6.3", &ok(lines, whole)).to(request).dropped(),
            );
        }
        rows.push(bad(&format!("{lines:?}"), "9112 6.3", &ok(lines, whole)).dropped());
    }
    for to in [GET_1_0, GET_1_0_KEPT] {
        rows.push(row("chunks to HTTP/1.0", "9112 6.1", &chunked(whole), Want::Good(200, "hello")).to(to).kept());
        rows.push(
            row(
                "chunks with trailers to HTTP/1.0",
                "9112 7.1.2",
                &chunked("5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
                Want::Good(200, "hello"),
            )
            .to(to)
            .kept(),
        );
        rows.push(
            row("until the close, to HTTP/1.0", "9112 6.3", &ok("", "hello"), Want::Good(200, "hello"))
                .to(to)
                .then(Act::Close)
                .dropped(),
        );
        rows.push(
            row("a length to HTTP/1.0", "9112 6.3", &ok("Content-Length: 5\r\n", "hello"), Want::Good(200, "hello"))
                .to(to)
                .kept(),
        );
        rows.push(
            row("a length cut, to HTTP/1.0", "9112 8", &ok("Content-Length: 5\r\n", "hell"), Want::Cut)
                .to(to)
                .then(Act::Close),
        );
    }
    for lines in [
        "Connection: X-A\r\nX-A: b\r\n",
        "Connection: Content-Length\r\n",
        "Keep-Alive: timeout=5\r\n",
        "Upgrade: h2c\r\nConnection: upgrade\r\n",
    ] {
        rows.push(
            row(
                &format!("{lines:?}"),
                "9110 7.6.1",
                &ok(&format!("Content-Length: 5\r\n{lines}"), "hello"),
                Want::Good(200, "hello"),
            )
            .kept(),
        );
    }
    rows
}

/// 1xx: floods, 101 to who did not ask, and what they say of the connection.
pub fn interim() -> Vec<Row> {
    let last = ok("Content-Length: 2\r\n", "ok");
    let good = Want::Good(200, "ok");
    let early = |lines: &str| format!("HTTP/1.1 103 Early\r\n{lines}\r\n{last}");
    let switch = |lines: &str| format!("HTTP/1.1 101 Switching\r\n{lines}\r\n{last}");
    let mut rows = vec![
        row("a good one", "9110 15.2", &early("Link: a\r\n"), good).kept(),
        row("length 0", "9110 8.6", &early("Content-Length: 0\r\n"), good).kept(),
        row("a length", "9110 8.6", &early("Content-Length: 2\r\n"), good).dropped(),
        row("chunks", "9112 6.1", &early("Transfer-Encoding: chunked\r\n"), good).dropped(),
        row("close", "9112 9.6", &early("Connection: close\r\n"), good).dropped(),
        bad("a length twice", "9112 6.3", &early("Content-Length: 0\r\nContent-Length: 0\r\n")).dropped(),
        bad("its announced body", "9112 6.3", &format!("HTTP/1.1 103 Early\r\nContent-Length: 2\r\n\r\nhi{last}"))
            .dropped(),
        bad("a control in it", "9110 5.5", &early("X: \u{1}\r\n")).dropped(),
        bad("two digits", "9112 4", &format!("HTTP/1.1 10 Early\r\n\r\n{last}")).dropped(),
        row("sixteen", "9110 15.2", &("HTTP/1.1 102 X\r\n\r\n".repeat(16) + &last), good).kept(),
        bad("seventeen", "9110 15.2", &("HTTP/1.1 102 X\r\n\r\n".repeat(17) + &last)).dropped(),
        row("sixteen to HTTP/1.0", "9110 15.2", &("HTTP/1.1 102 X\r\n\r\n".repeat(16) + &last), good)
            .to(GET_1_0)
            .kept(),
        bad("a flood to HTTP/1.0", "9110 15.2", &"HTTP/1.1 100 Continue\r\n\r\n".repeat(50_000)).to(GET_1_0).dropped(),
        bad("a flood to HEAD", "9110 15.2", &"HTTP/1.1 100 Continue\r\n\r\n".repeat(50_000)).to(HEAD).dropped(),
        bad("one that never ends", "9110 15.2", &format!("HTTP/1.1 103 Early\r\n{}", "X: y\r\n".repeat(50_000)))
            .dropped(),
        bad("100, then the close, to HTTP/1.0", "9112 8", "HTTP/1.1 100 Continue\r\n\r\n").to(GET_1_0).then(Act::Close),
        bad("half of one, then the close", "9112 8", "HTTP/1.1 103 Early\r\nLink").then(Act::Close),
    ];
    for lines in [
        "",
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
    ] {
        for request in [HEAD, GET_1_0] {
            rows.push(
                bad(&format!("101 unasked with {lines:?} to {}", &request[..4]), "9110 15.2.2", &switch(lines))
                    .to(request)
                    .dropped(),
            );
        }
        rows.push(bad(&format!("101 unasked with {lines:?}"), "9110 15.2.2", &switch(lines)).dropped());
    }
    for (asked, agreed) in [
        ("h2c", "h2c"),
        ("websocket", "h2c"),
        ("websocket", "websocket, h2c"),
        ("websocket", "other"),
        ("a/1", "a/2"),
        ("TLS/1.3", "TLS/1.3"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {asked}\r\n\r\n");
        let answer = switch(&format!("Connection: upgrade\r\nUpgrade: {agreed}\r\n"));
        rows.push(
            bad(&format!("101 to {agreed}, asked for {asked}"), "9110 7.8", &answer).to(request.leak()).dropped(),
        );
    }
    rows
}

/// What makes a connection unfit for another request, and what does not.
pub fn reuse() -> Vec<Row> {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let hello = Want::Good(200, "hello");
    let large = "x".repeat(100_000);
    let mut rows = vec![
        row("a length", "9112 9.3", &ok("Content-Length: 5\r\n", "hello"), hello).kept(),
        row("chunks", "9112 9.3", &chunked("5\r\nhello\r\n0\r\n\r\n"), hello).kept(),
        row("no content", "9112 9.3", "HTTP/1.1 204 X\r\n\r\n", Want::Good(204, "")).kept(),
        row("not modified", "9112 9.3", "HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n", Want::Good(304, "")).kept(),
        row("HEAD", "9112 9.3", &ok("Content-Length: 5\r\n", ""), Want::Good(200, "")).to(HEAD).kept(),
        row("HEAD, chunked", "9112 9.3", &chunked(""), Want::Good(200, "")).to(HEAD).kept(),
        row("close", "9112 9.6", &ok("Content-Length: 5\r\nConnection: close\r\n", "hello"), hello).dropped(),
        row("close among others", "9112 9.6", &ok("Content-Length: 5\r\nConnection: x, CLOSE\r\n", "hello"), hello)
            .dropped(),
        row("HTTP/1.0", "9112 9.3", &ok("Content-Length: 5\r\n", "hello").replace("1.1", "1.0"), hello).dropped(),
        row(
            "HTTP/1.0 kept",
            "9112 9.3",
            &ok("Content-Length: 5\r\nConnection: keep-alive\r\n", "hello").replace("1.1", "1.0"),
            hello,
        )
        .kept(),
        row("204 with a length", "9110 8.6", "HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\n", Want::Good(204, ""))
            .dropped(),
        row("204 with chunks", "9112 6.1", "HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n", Want::Good(204, ""))
            .dropped(),
        row("204, then chunks", "9112 6.3", "HTTP/1.1 204 X\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Want::Good(204, ""))
            .dropped(),
        row("HEAD, then its body", "9112 6.3", &ok("Content-Length: 5\r\n", "hello"), Want::Good(200, ""))
            .to(HEAD)
            .dropped(),
        row("304, then its body", "9112 6.3", "HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\nhello", Want::Good(304, ""))
            .dropped(),
    ];
    for (name, behind) in [
        ("a response", evil),
        ("an empty line", "\r\n"),
        ("a byte", "x"),
        ("a request", "GET / HTTP/1.1\r\n\r\n"),
        ("zeros", "0\r\n\r\n"),
    ] {
        let title = |first: &str| format!("{first}, then {name}");
        rows.push(
            row(&title("a length"), "9112 9.2", &(ok("Content-Length: 5\r\n", "hello") + behind), hello).dropped(),
        );
        rows.push(
            row(&title("length 0"), "9112 9.2", &(ok("Content-Length: 0\r\n", "") + behind), Want::Good(200, ""))
                .dropped(),
        );
        rows.push(row(&title("chunks"), "9112 9.2", &(chunked("5\r\nhello\r\n0\r\n\r\n") + behind), hello).dropped());
        rows.push(
            row(&title("a length to HTTP/1.0"), "9112 9.2", &(ok("Content-Length: 5\r\n", "hello") + behind), hello)
                .to(GET_1_0)
                .dropped(),
        );
        rows.push(
            row(
                &title("a length after 103"),
                "9112 9.2",
                &format!("HTTP/1.1 103 X\r\n\r\n{}{behind}", ok("Content-Length: 5\r\n", "hello")),
                hello,
            )
            .dropped(),
        );
        let long = ok("Content-Length: 100000\r\n", &large) + behind;
        rows.push(row(&title("a long body"), "9112 9.2", &long, Want::Good(200, large.clone().leak())).dropped());
    }
    rows
}
