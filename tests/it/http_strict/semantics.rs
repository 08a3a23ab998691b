//! Rows on what is well-formed and still must not go on as it is (RFC 9110): fields of one hop, the client's identity,
//! expectations, upgrades, trailers, and pipelines in which one request fails.

use super::bench::{Row, Want, bad, chunked, get, good, host, line, one_of, own, post, row};

const GET: &[&str] = &["GET /"];
const POST: &[&str] = &["POST / hello"];

/// Connection, and the fields that end here with or without it.
pub fn fields_of_one_hop() -> Vec<Row> {
    let ends = |line: &str, names| good(line, "9110 7.6.1", &get(&format!("{line}\r\n")), GET).without(names);
    let mut rows = vec![
        ends("Keep-Alive: timeout=5", &["keep-alive"]),
        ends("Proxy-Connection: keep-alive", &["proxy-connection"]),
        ends("Proxy-Connection: close", &["proxy-connection"]),
        ends("Proxy-Authorization: Basic eA==", &["proxy-authorization"]),
        ends("Proxy-Authenticate: Basic", &["proxy-authenticate"]),
        ends("Proxy: http://evil/", &["proxy"]),
        ends("TE: gzip", &["te"]),
        ends("TE: trailers;q=0", &["te"]),
        ends("Upgrade: websocket", &["upgrade"]),
        ends("HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", &["http2-settings"]),
        ends("Trailer: X-Sum", &["trailer"]),
        ends("Connection: keep-alive", &["connection"]),
        ends("Connection:", &["connection"]),
        ends("Connection: , ,", &["connection"]),
        ends("Connection: X-A\r\nX-A: 1", &["x-a", "connection"]),
        ends("Connection: x-a\r\nX-A: 1\r\nx-a: 2", &["x-a"]),
        ends("X-A: 1\r\nConnection: x-A", &["x-a"]),
        ends("Connection: keep-alive,\tX-A ,,x-b\r\nX-A: 1\r\nX-B: 2", &["x-a", "x-b"]),
        ends("Connection: X-A\r\nConnection: X-B\r\nX-A: 1\r\nX-B: 2", &["x-a", "x-b"]),
        ends("Connection: Trailer\r\nTrailer: X-A", &["trailer"]),
        ends("Connection: Proxy\r\nProxy: x", &["proxy"]),
        ends("Connection: Keep-Alive, TE, Proxy-Authorization\r\nProxy-Authorization: x", &["proxy-authorization"]),
        good("a longer name stays", "9110 7.6.1", &get("Connection: X-A\r\nX-AB: 1\r\n"), GET).with(&[("x-ab", "1")]),
        good("TE: trailers goes on", "9110 10.1.4", &get("TE: trailers\r\nConnection: te\r\n"), GET)
            .with(&[("te", "trailers"), ("connection", "te")]),
        row("close", "9112 9.6", &get("Connection: close\r\n"), Want::Last(GET)).without(&["connection"]),
        row("close in capitals", "9112 9.6", &get("Connection: CLOSE\r\n"), Want::Last(GET)),
        row("close beside keep-alive", "9112 9.3", &get("Connection: keep-alive, close\r\n"), Want::Last(GET)),
        row("close in a second field", "9112 9.3", &get("Connection: x-a\r\nConnection: close\r\n"), Want::Last(GET)),
        bad("an option that is no token", "9110 7.6.1", &get("Connection: a b\r\n")),
        bad("a quoted option", "9110 7.6.1", &get("Connection: \"close\"\r\n")),
        bad("an option with a parameter", "9110 7.6.1", &get("Connection: close;x\r\n")),
        bad("an option with a byte above 127", "9110 7.6.1", &get("Connection: clos\u{e9}\r\n")),
        one_of("very many options", "9110 7.6.1", &get(&format!("Connection: {}\r\n", options(500))), &[400, 431]),
    ];
    for name in [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "Forwarded",
        "X-Real-IP",
        "Cookie",
        "Authorization",
        "Range",
        "If-Match",
        "If-None-Match",
        "Expect",
        "Via",
        "Max-Forwards",
        "Cache-Control",
        "Origin",
        "Content-Type",
        "Content-Encoding",
        "Date",
        "Sec-WebSocket-Key",
        "X-Pointsman-Worker",
        "close, hOST",
    ] {
        let title = format!("Connection: {name}");
        rows.push(bad(&title, "9110 7.6.1", &post(&format!("Content-Length: 5\r\n{title}\r\n"), "hello")));
    }
    rows
}

fn options(count: usize) -> String {
    (0..count).map(|n| format!("x-{n}, ")).collect()
}

/// Fields by which a client could pass for another; what is sent in place of X-Forwarded-For is checked in every row.
pub fn who_the_client_is() -> Vec<Row> {
    let mut rows = vec![
        good("several lists", "7239 4", &get("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7, 8.8.8.8\r\n"), GET),
        good("in lower case", "7239 4", &get("x-forwarded-for: 6.6.6.6\r\n"), GET),
        good("empty", "7239 4", &get("X-Forwarded-For:\r\n"), GET),
        good("a scheme", "7239 5.4", &get("X-Forwarded-Proto: https\r\n"), GET).with(&[("x-forwarded-proto", "http")]),
        good("a host", "7239 5.3", &get("X-Forwarded-Host: evil\r\n"), GET).with(&[("x-forwarded-host", "a")]),
        good("a worker's number", "9110 7.6.1", &get("X-Pointsman-Worker: 1\r\n"), GET)
            .without(&["x-pointsman-worker"]),
        good("a harmless underscore", "3875 4.1.18", &get("my_field: x\r\n"), GET).with(&[("my_field", "x")]),
    ];
    let names: [&'static [&'static str]; 24] = [
        &["Forwarded"],
        &["X-Real-IP"],
        &["X-Client-IP"],
        &["Client-IP"],
        &["True-Client-IP"],
        &["CF-Connecting-IP"],
        &["Fastly-Client-IP"],
        &["X-Cluster-Client-IP"],
        &["X-ProxyUser-Ip"],
        &["X-HTTP-Host-Override"],
        &["X-Original-URL"],
        &["X-Rewrite-URL"],
        &["X-Original-Host"],
        &["X-Host"],
        &["Front-End-Https"],
        &["X-Forwarded-Port"],
        &["X-Forwarded-Prefix"],
        &["X-Forwarded"],
        &["X_Forwarded_For"],
        &["X-Forwarded_For"],
        &["X.Forwarded.For"],
        &["X_Real_IP"],
        &["Content_Length"],
        &["Transfer_Encoding"],
    ];
    for without in names {
        let lines = format!("{}: 6.6.6.6\r\n", without[0]);
        rows.push(good(without[0], "7239 8.1", &get(&lines), GET).without(without));
    }
    rows
}

/// Expect, Max-Forwards and the methods that go with it.
pub fn expectations_and_hops() -> Vec<Row> {
    let expect = |lines: &str| post(&format!("Content-Length: 5\r\n{lines}"), "hello");
    let hops = |method: &str, hops: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {hops}\r\n\r\n");
    let mut rows = vec![
        good("100-continue without content", "9110 10.1.1", &get("Expect: 100-continue\r\n"), GET).without(&["expect"]),
        good(
            "100-continue from HTTP/1.0",
            "9110 10.1.1",
            "POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
            POST,
        )
        .without(&["expect"]),
        good("100-continue in capitals", "9110 10.1.1", &expect("Expect: 100-CONTINUE\r\n"), POST)
            .with(&[("expect", "100-continue")]),
        own("an https target on a connection without TLS", "9110 15.5.20", &line("GET https://a/ HTTP/1.1"), 421),
        own("OPTIONS that ends here", "9110 7.6.2", &hops("OPTIONS", "0"), 200),
        own("OPTIONS that ends here, many zeros", "9110 7.6.2", &hops("OPTIONS", "000"), 200),
        own("OPTIONS * that ends here", "9110 7.6.2", "OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", 200),
        own("TRACE that ends here", "9110 7.6.2", &hops("TRACE", "0"), 200),
        good("TRACE that goes on", "9110 7.6.2", &hops("TRACE", "2"), &["TRACE /"]).with(&[("max-forwards", "1")]),
        good("OPTIONS with many hops", "9110 7.6.2", &hops("OPTIONS", "99999999999999999999"), &["OPTIONS /"])
            .with(&[("max-forwards", "4294967294")]),
        good("GET counts no hops", "9110 7.6.2", &hops("GET", "0"), GET).with(&[("max-forwards", "0")]),
        good("GET with hops that are none", "9110 7.6.2", &hops("GET", "x"), GET).with(&[("max-forwards", "x")]),
        good("TRACE with length 0", "9110 9.3.8", "TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", &["TRACE /"]),
        bad("TRACE with a length", "9110 9.3.8", "TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
        bad("TRACE with chunks", "9110 9.3.8", "TRACE / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        bad("two counts of hops", "9110 7.6.2", "TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 1\r\nMax-Forwards: 0\r\n\r\n"),
    ];
    for value in [
        "coffee",
        "100-continue, coffee",
        "100-continu",
        "100-continue2",
        "\"100-continue\"",
        "100-continue=x",
        "200-ok",
    ] {
        let title = format!("Expect: {value}");
        rows.push(one_of(&title, "9110 10.1.1", &expect(&format!("{title}\r\n")), &[417]));
        rows.push(one_of(&format!("GET with {title}"), "9110 10.1.1", &get(&format!("{title}\r\n")), &[417]));
    }
    for value in ["", "-1", "+1", "1.5", "0x1", "1 2", "1,2", "a", "\u{b2}"] {
        for method in ["TRACE", "OPTIONS"] {
            rows.push(bad(&format!("{method} with Max-Forwards: {value}"), "9110 7.6.2", &hops(method, value)));
        }
    }
    rows
}

/// Upgrade and CONNECT: until somebody agrees, what follows is the next request.
pub fn upgrades_and_tunnels() -> Vec<Row> {
    let asks = |value: &str| get(&format!("Connection: Upgrade\r\nUpgrade: {value}\r\n"));
    let next = "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    let both: &'static [&'static str] = &["GET /", "GET /2"];
    let mut rows = vec![
        good("websocket is offered on", "9110 7.8", &asks("websocket"), GET)
            .with(&[("upgrade", "websocket"), ("connection", "upgrade")]),
        good("refused, what follows is a request", "9110 7.8", &(asks("websocket") + next), both),
        good(
            "of a POST, what follows its body is a request",
            "9110 7.8",
            &(post("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n", "hello") + next),
            &["POST / hello", "GET /2"],
        ),
        good(
            "h2c with its settings",
            "9113 3.1",
            &get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
            GET,
        )
        .without(&["upgrade", "http2-settings", "connection"]),
        row(
            "h2c, then its preface",
            "9113 3.1",
            &(asks("h2c") + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            Want::Refuse(GET, &[400, 505]),
        ),
        good("h2c, then a request", "9113 3.1", &(asks("h2c") + next), both).without(&["upgrade"]),
        good(
            "h2c of a POST",
            "9113 3.1",
            &(post("Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n", "hello") + next),
            &["POST / hello", "GET /2"],
        )
        .without(&["upgrade"]),
        good("two fields", "9110 7.8", &get("Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"), GET)
            .without(&["upgrade"]),
        good("not named by Connection", "9110 7.8", &(get("Upgrade: websocket\r\n") + next), both)
            .without(&["upgrade"]),
        row(
            "in HTTP/1.0",
            "9110 7.8",
            "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            Want::Last(GET),
        )
        .without(&["upgrade"]),
        bad("a protocol with a blank", "9110 7.8", &asks("web socket")),
        bad("a protocol with two slashes", "9110 7.8", &asks("a/1/2")),
        bad("a protocol with a parameter", "9110 7.8", &asks("a;b")),
    ];
    for value in [
        "h2c",
        "H2C",
        "h2",
        "h2c-14",
        "h3",
        "HTTP/2.0",
        "http/1.1",
        "TLS/1.0",
        "tls/1.3",
        "websocket, h2c",
        "h2c, websocket",
        "websocket,h2c,x",
    ] {
        rows.push(
            good(&format!("Upgrade: {value}"), "9110 7.8", &asks(value), GET).without(&["upgrade", "connection"]),
        );
    }
    let connect = |target: &str, lines: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{lines}\r\n");
    for (title, send) in [
        ("a name", connect("a:443", "")),
        ("an address", connect("127.0.0.1:80", "")),
        ("an IPv6 address", connect("[::1]:80", "")),
        ("bytes for the tunnel", connect("a:443", "") + "\u{16}\u{3}\u{1}"),
        ("a request for the tunnel", connect("a:80", "") + next),
        ("length 0", connect("a:80", "Content-Length: 0\r\n") + next),
        ("Proxy-Authorization", connect("a:80", "Proxy-Authorization: Basic eA==\r\n")),
        ("in HTTP/1.0", "CONNECT a:80 HTTP/1.0\r\n\r\n".to_owned()),
    ] {
        rows.push(one_of(&format!("CONNECT to a reverse proxy: {title}"), "9110 9.3.6", &send, &[405]));
    }
    for (title, send) in [
        ("without a port", connect("a", "")),
        ("with an empty port", connect("a:", "")),
        ("with port 0", connect("a:0", "")),
        ("with user information", connect("u@a:80", "")),
        ("in absolute form", connect("http://a/", "")),
        ("of another host", "CONNECT a:80 HTTP/1.1\r\nHost: b:80\r\n\r\n".to_owned()),
        ("with chunks", connect("a:80", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n"),
    ] {
        rows.push(bad(&format!("CONNECT {title}"), "9110 9.3.6", &send));
    }
    rows
}

/// HTTP/1.0, and how connections persist.
pub fn versions() -> Vec<Row> {
    let old = |lines: &str| format!("GET / HTTP/1.0\r\n{lines}\r\n");
    vec![
        row("HTTP/1.0 ends its connection", "9112 9.3", &old("Host: a\r\n"), Want::Last(GET))
            .with(&[("via", "1.0 pointsman")]),
        row("without Host", "9112 3.3", &old(""), Want::Last(GET)),
        row("close", "9112 9.3", &old("Connection: close\r\n"), Want::Last(GET)),
        row("close beside keep-alive", "9112 9.3", &old("Connection: keep-alive, close\r\n"), Want::Last(GET)),
        row(
            "Proxy-Connection counts for nothing",
            "9112 9.3",
            &old("Proxy-Connection: keep-alive\r\n"),
            Want::Last(GET),
        ),
        row("pipelined without keep-alive", "9112 9.3.2", &(old("Host: a\r\n") + &old("Host: a\r\n")), Want::Last(GET)),
        good("keep-alive", "9112 9.3", &old("Host: a\r\nConnection: keep-alive\r\n"), GET),
        good("keep-alive in capitals", "9112 9.3", &old("Connection: KEEP-ALIVE\r\n"), GET),
        good(
            "TE: trailers is not for HTTP/1.0",
            "9112 7.1.2",
            &old("Connection: keep-alive, te\r\nTE: trailers\r\n"),
            GET,
        )
        .without(&["te", "connection"]),
        good("absolute form", "9112 3.2.2", "GET http://a/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &["GET /x"])
            .with(&[("host", "a")]),
        row(
            "a body with its length",
            "9112 6.3",
            "POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
            Want::Last(POST),
        ),
        row("a body without one", "9112 6.3", "POST / HTTP/1.0\r\n\r\nhello", Want::Last(&["POST /"])),
        bad("two hosts", "9112 3.2", &old("Host: a\r\nHost: a\r\n")),
        bad("empty host", "9110 4.2.1", &old("Host:\r\n")),
        bad(
            "chunked and kept alive",
            "9112 6.1",
            "POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        bad(
            "chunked and a length",
            "9112 6.1",
            "POST / HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        ),
        bad("another coding", "9112 6.1", "POST / HTTP/1.0\r\nTransfer-Encoding: identity\r\n\r\nhello"),
        bad("two lengths", "9112 6.3", "POST / HTTP/1.0\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        bad("Host is missing in 1.1 only", "9112 3.2", &host("Connection: close\r\n")),
        one_of("HTTP/1.1 with a leading zero", "9112 2.3", &line("GET / HTTP/01.1"), &[400, 505]),
        one_of("HTTP/1.9", "9112 2.3", &line("GET / HTTP/1.9"), &[505]),
        one_of("HTTP/9.9", "9110 15.6.6", &line("GET / HTTP/9.9"), &[505]),
    ]
}

/// Chunk extensions of every kind, and trailers, none of which servers get.
pub fn trailers_and_extensions() -> Vec<Row> {
    let extension = |text: &str| chunked(&format!("5{text}\r\nhello\r\n0\r\n\r\n"));
    let trailer = |lines: &str| chunked(&format!("5\r\nhello\r\n0\r\n{lines}\r\n"));
    let mut rows = Vec::new();
    for text in [
        ";a;b",
        ";a=b;c=\"d\"",
        ";a=\"\"",
        ";a=\"\\\\\"",
        ";a=\"b\tc\"",
        ";a=\"\u{e9}\"",
        ";!#$%&'*+-.^_`|~=x",
        ";a=\"0;1\"",
    ] {
        rows.push(good(&format!("extension {text}"), "9112 7.1.1", &extension(text), POST));
    }
    rows.push(good("4096 bytes of extension", "9112 7.1.1", &extension(&format!(";a={}", "x".repeat(4092))), POST));
    rows.push(bad("8192 bytes of extension", "9112 7.1.1", &extension(&format!(";a={}", "x".repeat(8188)))));
    rows.push(bad(
        "many small extensions",
        "9112 7.1.1",
        &chunked(&("1;a=bcdefgh\r\nx\r\n".repeat(1000) + "0\r\n\r\n")),
    ));
    rows.push(bad(
        "extension of the last chunk, huge",
        "9112 7.1.1",
        &chunked(&format!("0;a={}\r\n\r\n", "x".repeat(9000))),
    ));
    for text in [
        ";",
        ";;a",
        ";=b",
        ";a=",
        ";a=b=c",
        ";a=\"b",
        ";a=\"b\"c",
        ";a b",
        "; a",
        ";a =b",
        ";a= b",
        " ;a",
        "\t;a",
        ";a ",
        ";(",
        ";a=(",
        ";a=\"b\\",
        ";\u{e9}",
        ";a\r",
        ";a\n",
        ",a",
        "=a",
        "\"a\"",
    ] {
        rows.push(bad(&format!("extension {text:?}"), "9112 7.1.1", &extension(text)));
    }
    for byte in (0..0x20u8).filter(|&byte| byte != b'\t' && byte != b'\r').chain([0x7f]) {
        let byte = char::from(byte);
        rows.push(bad(&format!("{byte:?} in an extension's name"), "9112 7.1.1", &extension(&format!(";a{byte}b"))));
        rows.push(bad(&format!("{byte:?} in a quoted extension"), "9112 7.1.1", &extension(&format!(";a=\"{byte}\""))));
        rows.push(bad(
            &format!("{byte:?} escaped in an extension"),
            "9112 7.1.1",
            &extension(&format!(";a=\"\\{byte}\"")),
        ));
        rows.push(bad(
            &format!("{byte:?} in a chunk size"),
            "9112 7.1",
            &chunked(&format!("5{byte}\r\nhello\r\n0\r\n\r\n")),
        ));
        rows.push(bad(&format!("{byte:?} in a trailer"), "9112 7.1.2", &trailer(&format!("X-Sum: a{byte}b\r\n"))));
    }
    let names: [&'static [&'static str]; 9] = [
        &["X-Sum"],
        &["Content-Type"],
        &["Cookie"],
        &["Authorization"],
        &["X-Real-IP"],
        &["Upgrade"],
        &["Expect"],
        &["Max-Forwards"],
        &["X_Forwarded_Host"],
    ];
    for without in names {
        let send = trailer(&format!("{}: 6.6.6.6\r\n", without[0]));
        rows.push(good(&format!("trailer {}", without[0]), "9110 6.5.1", &send, POST).without(without));
    }
    let framing = trailer("Content-Length: 100\r\nTransfer-Encoding: gzip\r\nHost: b\r\nX-Forwarded-For: 6.6.6.6\r\n");
    rows.push(good("trailers that frame and route", "9110 6.5.1", &framing, POST).without(&["content-length"]));
    let named = post(
        "Transfer-Encoding: chunked\r\nConnection: x-sum\r\nTrailer: X-Sum\r\n",
        "5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n",
    );
    rows.push(
        good("trailers, one named by Connection", "9110 7.6.1", &named, POST).without(&["x-sum", "x-b", "trailer"]),
    );
    rows.push(good("64 trailers", "9112 7.1.2", &trailer(&"X: y\r\n".repeat(64)), POST).without(&["x"]));
    rows.push(bad("65 trailers", "9112 7.1.2", &trailer(&"X: y\r\n".repeat(65))));
    rows.push(bad("a trailer of 8 KiB", "9112 7.1.2", &trailer(&format!("X: {}\r\n", "y".repeat(8192)))));
    rows
}

/// One of several requests in one write fails: those before it are answered, none behind it is.
pub fn pipelines() -> Vec<Row> {
    let (first, last) = ("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /3 HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut rows = Vec::new();
    for (title, middle, statuses) in [
        ("a blank before a colon", get("X : a\r\n"), &[400][..]),
        ("length beside chunks", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), &[400]),
        ("two lengths", post("Content-Length: 5\r\nContent-Length: 0\r\n", "hello"), &[400]),
        ("an unknown coding", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), &[501]),
        ("a bad chunk", chunked("5\r\nhelloX\r\n0\r\n\r\n"), &[400]),
        ("a bad trailer", chunked("0\r\nX : a\r\n\r\n"), &[400]),
        ("no host", host(""), &[400]),
        ("two hosts", host("Host: a\r\nHost: a\r\n"), &[400]),
        ("an expectation", get("Expect: coffee\r\n"), &[417]),
        ("too long a target", line(&format!("GET /{} HTTP/1.1", "x".repeat(20_000))), &[414]),
        ("too large a head", get(&format!("X: {}\r\n", "x".repeat(20_000))), &[431]),
        ("too many fields", get(&"X: a\r\n".repeat(101)), &[431]),
        ("too large a body", post("Content-Length: 2000000\r\n", ""), &[413]),
        ("too large a chunk", chunked("1e8480\r\n"), &[413]),
        ("another version", line("GET / HTTP/2.0"), &[505]),
        ("CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".to_owned(), &[405]),
        ("TRACE with a body", "TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_owned(), &[400]),
        ("two empty lines", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), &[400]),
        ("a response", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), &[400]),
    ] {
        rows.push(row(
            &format!("second has {title}"),
            "9112 9.3.2",
            &format!("{first}{middle}{last}"),
            Want::Refuse(&["GET /1"], statuses),
        ));
    }
    rows.push(row(
        "second ends the connection",
        "9112 9.6",
        &format!("{first}{}{last}", get("Connection: close\r\n")),
        Want::Last(&["GET /1", "GET /"]),
    ));
    rows.push(row(
        "a body that is two requests",
        "9112 6.3",
        &format!("{first}{}{last}", post("Content-Length: 58\r\n", &"GET /in HTTP/1.1\r\nHost: b\r\n\r\n".repeat(2))),
        Want::Pass(&["GET /1", "POST / GET /in HTTP/1.1\r\nHost: b\r\n\r\nGET /in HTTP/1.1\r\nHost: b", "GET /3"]),
    ));
    rows.push(row(
        "chunks that are requests",
        "9112 7.1",
        &format!("{first}{}{last}", chunked("1d\r\nGET /in HTTP/1.1\r\nHost: b\r\n\r\n\r\n0\r\n\r\n")),
        Want::Pass(&["GET /1", "POST / GET /in HTTP/1.1\r\nHost: b", "GET /3"]),
    ));
    rows
}
