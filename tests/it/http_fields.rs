//! What of a request line and of header fields arrives, what is added, kept and removed.

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::proxy::Launch;

#[test]
fn hop_by_hop_fields_go_no_further() {
    let backend = Backend::fixed(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Inner, keep-alive\r\nX-Inner: 1\r\nX-Outer: 2\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\r\nok",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Secret , keep-alive,, X-Also\r\nX-Secret: 1\r\nX-Also: 1\r\n\
         X-Public: 1\r\nKeep-Alive: 300\r\nProxy-Connection: close\r\nTE: gzip\r\n\r\n",
    );
    assert_eq!(response.status, 200);
    let request = backend.only_request();
    for name in ["x-secret", "x-also", "keep-alive", "proxy-connection", "te", "upgrade"] {
        assert!(!request.fields.has(name), "{name} was passed on: {request:?}");
    }
    assert_eq!(request.fields.get("x-public"), Some("1"));
    for name in ["x-inner", "keep-alive", "proxy-connection"] {
        assert!(!response.fields.has(name), "{name} was passed back: {response:?}");
    }
    assert_eq!(response.fields.get("x-outer"), Some("2"));
    let mut client = Client::connect(proxy.addr());
    let response = client
        .ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: X-One\r\nX-One: 1\r\nX-Two: 2\r\nConnection: x-two\r\n\r\n");
    assert_eq!(response.status, 200);
    let request = backend.requests().pop().unwrap();
    assert!(!request.fields.has("x-one") && !request.fields.has("x-two"), "RFC 9110 section 7.6.1: {request:?}");
}

#[test]
fn forwarded_fields_of_an_untrusted_client_are_replaced() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.ask(
        "GET / HTTP/1.1\r\nHost: shop.example:81\r\nX-Forwarded-For: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\nForwarded: for=1.2.3.4\r\n\r\n",
    );
    let request = backend.only_request();
    assert_eq!(request.fields.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.fields.get("x-forwarded-proto"), Some("http"));
    assert_eq!(request.fields.get("x-forwarded-host"), Some("shop.example:81"));
    assert_eq!(request.fields.get("host"), Some("shop.example:81"), "the host is kept");
    assert!(!request.fields.all("forwarded").iter().any(|value| value.contains("1.2.3.4")), "{request:?}");
}

#[test]
fn forwarded_fields_of_a_trusted_proxy_are_appended_to() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).top("trusted_proxies = [\"127.0.0.2\", \"10.0.0.0/8\"]");
    let proxy = conf.start();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
                   X-Forwarded-Host: b\r\n\r\n";
    Client::connect_from("127.0.0.2", proxy.addr()).ask(request);
    Client::connect_from("127.0.0.3", proxy.addr()).ask(request);
    let requests = backend.requests();
    let list = |n: usize| requests[n].fields.all("x-forwarded-for").join(", ");
    assert_eq!((list(0).as_str(), list(1).as_str()), ("1.2.3.4, 127.0.0.2", "127.0.0.3"));
    assert_eq!(requests[0].fields.get("x-forwarded-proto"), Some("https"));
    assert_eq!(requests[0].fields.get("x-forwarded-host"), Some("b"));
    assert_eq!(requests[1].fields.get("x-forwarded-proto"), Some("http"));
    assert_eq!(requests[1].fields.get("x-forwarded-host"), Some("a"));
}

#[test]
fn target_and_fields_arrive_as_sent() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let target = "/a//b/%2e%2E/c;p=1/..?x=%20&y[]=*&&z=~'(),!$@:/?";
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(
        [
            format!(
                "GET {target} HTTP/1.1\r\nHost: a\r\nAccept: b\r\naccept:c\r\nX-Empty:\r\nX-Blank:  \t a b \t \r\n"
            )
            .as_bytes(),
            b"X-Bytes: \xc3\xa9\xff\r\nCookie: a=b; c=\"d\"\r\n\r\n",
        ]
        .concat(),
    );
    assert_eq!(response.status, 200);
    let request = backend.only_request();
    assert_eq!(request.target, target);
    assert_eq!(request.fields.all("accept"), ["b", "c"], "order is kept (RFC 9110 section 5.3)");
    assert_eq!(request.fields.get("x-empty"), Some(""));
    assert_eq!(request.fields.get("x-blank"), Some("a b"));
    assert_eq!(request.fields.get("x-bytes"), Some("\u{c3}\u{a9}\u{ff}"));
    assert_eq!(request.fields.get("cookie"), Some("a=b; c=\"d\""));
}

#[test]
fn response_fields_arrive_as_sent_and_dated() {
    let backend = Backend::fixed(
        "HTTP/1.1 299 Quite \u{e9}\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\nSet-Cookie: b=2\r\nServer: s\r\n\r\n",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let response = get(proxy.addr(), "/");
    assert_eq!(response.status, 299);
    assert_eq!(response.fields.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(response.fields.get("server"), Some("s"));
    let date = response.fields.get("date").expect("RFC 9110 section 6.6.1");
    assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");

    let dated = Backend::fixed("HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n");
    let proxy = Launch::http(&[dated.addr]).start();
    assert_eq!(get(proxy.addr(), "/").fields.get("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
}

#[test]
fn absolute_form_is_forwarded_in_origin_form() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    for (line, target) in [
        ("GET http://shop.example/a?b HTTP/1.1", "/a?b"),
        ("GET http://shop.example HTTP/1.1", "/"),
        ("GET HTTP://shop.example?q HTTP/1.1", "/?q"),
        ("OPTIONS http://shop.example HTTP/1.1", "*"),
    ] {
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(format!("{line}\r\nHost: shop.example\r\n\r\n"));
        assert_eq!(response.status, 200, "{line}");
        let request = backend.take_requests().pop().unwrap();
        assert_eq!(request.target, target, "{line}");
        assert_eq!(request.fields.get("host"), Some("shop.example"));
    }
}

#[test]
fn options_asterisk_is_forwarded() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let response = Client::connect(proxy.addr()).ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(response.status, 200);
    assert_eq!(backend.only_request().target, "*");
}

#[test]
fn every_method_is_passed_on() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "M-SEARCH", "get", "X!#$%&'*+.^_`|~"]
    {
        let response = client.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"));
        assert_eq!((response.status, response.fields.get("x-method")), (200, Some(method)));
    }
}

#[test]
fn empty_line_before_a_request_is_skipped() {
    // RFC 9112 section 2.2: at least one; old clients send it after a POST body.
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((client.response().status, client.response().status), (200, 200));
}
