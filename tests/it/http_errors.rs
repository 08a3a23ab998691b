//! The proxy's own answers: the status, its fields, and what becomes of the connection.

use crate::common::backend::{Act, Backend, Refusing, Unanswering};
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::h1::Response;
use crate::common::proxy::Launch;
use crate::common::wait_until;

/// What every answer of the proxy's own has.
#[track_caller]
fn assert_own(response: &Response, status: u16) {
    assert_eq!(response.status, status, "{response:?}");
    let date = response.fields.get("date").expect("Date, RFC 9110 section 6.6.1");
    assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
    assert!(response.fields.has("content-length"), "{response:?}");
    assert!(response.head.len() + response.body.len() < 1024, "not small: {response:?}");
    assert!(!response.reason.is_empty());
}

#[test]
fn bad_request_is_400_and_closes() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.1\r\nHost: a b\r\n\r\n");
    assert_own(&response, 400);
    assert!(response.closes());
    assert_eq!(client.end(), End::Clean);
}

#[test]
fn no_route_is_404_and_stays() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr])
        .unrouted()
        .tables("[[route]]\nhost = \"known.example\"\npath = \"/api/\"\nto = \"web\"");
    let proxy = conf.start();
    let mut client = Client::connect(proxy.addr());
    for (host, path) in [("unknown.example", "/api/"), ("known.example", "/"), ("known.example", "/apis")] {
        let response = client.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_own(&response, 404);
        assert!(!response.closes(), "{response:?}");
    }
    assert_eq!(client.ask("GET /api/x HTTP/1.1\r\nHost: KNOWN.example:80\r\n\r\n").status, 200);
    // A body that nobody wants is not the next request.
    client.send("POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 36\r\n\r\nGET /evil HTTP/1.1\r\nHost: known.exam\r\n");
    let response = client.response();
    assert_own(&response, 404);
    assert_eq!(backend.requests().len(), 1);
    if response.closes() {
        client.end();
    } else {
        assert_eq!(client.ask("GET /api/x HTTP/1.1\r\nHost: known.example\r\n\r\n").status, 200);
    }
}

#[test]
fn slow_head_is_408_and_closes() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[timeouts]\nheader = \"300ms\"").start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHo");
    let response = client.response();
    assert_own(&response, 408);
    assert!(response.closes());
    client.end();
}

#[test]
fn slow_body_is_408_and_closes() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[timeouts]\nbody = \"300ms\"").start();
    let mut client = Client::connect(proxy.addr());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    let response = client.response();
    assert_own(&response, 408);
    assert!(response.closes());
    client.end();
    assert!(backend.requests().is_empty());
    wait_until("the half request is given up", || backend.open() == 0);
}

#[test]
fn too_large_a_length_is_413_and_closes() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nbody = \"1000B\"").start();
    let mut client = Client::connect(proxy.addr());
    let fits = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(1000));
    assert_eq!(client.ask(fits).status, 200);
    let response = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n");
    assert_own(&response, 413);
    assert!(response.closes());
    client.end();
    assert_eq!(backend.heads(), 1);
}

#[test]
fn too_large_a_chunked_body_is_413_and_closes() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nbody = \"1000B\"").start();
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask(format!("{head}{chunk}{chunk}0\r\n\r\n")).status, 200);
    client.send(format!("{head}{chunk}{chunk}1\r\nx\r\n0\r\n\r\n"));
    let response = client.response();
    assert_own(&response, 413);
    client.assert_or_end(&response);
    // The end is not known yet.
    let mut client = Client::connect(proxy.addr());
    client.send(format!("{head}{chunk}{chunk}{chunk}"));
    let response = client.response();
    assert_own(&response, 413);
    assert!(response.closes());
    client.end();
    let posts = backend.requests().iter().filter(|request| request.method == "POST").count();
    assert_eq!(posts, 1, "too large a request arrived whole");
}

#[test]
fn too_long_a_target_is_414_and_closes() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nhead = \"2KiB\"").start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(3000)));
    assert_own(&response, 414);
    assert!(response.closes());
    client.end();
}

#[test]
fn unmet_expectation_is_417() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n");
    assert_own(&response, 417);
    client.assert_as_announced(&response);
}

#[test]
fn too_large_a_head_is_431_and_closes() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nhead = \"2KiB\"\nfields = 10").start();
    for lines in [format!("X: {}\r\n", "x".repeat(3000)), "X: y\r\n".repeat(11), "X: y\r\n".repeat(1000)] {
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        assert_own(&response, 431);
        assert!(response.closes());
        client.end();
    }
    assert_eq!(backend.heads(), 0);
}

#[test]
fn unknown_coding_is_501_and_closes() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n");
    assert_own(&response, 501);
    assert!(response.closes(), "RFC 9112 section 6.1");
    client.end();
}

#[test]
fn refused_connection_is_502_and_stays() {
    let refusing = Refusing::new();
    let proxy = Launch::http(&[refusing.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..3 {
        let response = client.get("/");
        assert_own(&response, 502);
        assert!(!response.closes(), "{response:?}");
    }
    let response = client.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((response.status, response.body.len()), (502, 0));
    let response = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert_own(&response, 502);
    client.assert_or_end(&response);
}

impl Client {
    /// The connection goes on or ends as announced; whatever the next answer is, it must be one.
    #[track_caller]
    fn assert_or_end(&mut self, response: &Response) {
        if response.closes() {
            self.end();
        } else {
            self.get("/");
        }
    }
}

#[test]
fn reset_by_the_backend_is_502() {
    let backend = Backend::resetting();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    for request in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"] {
        let response = client.ask(request);
        assert_own(&response, 502);
        if response.closes() {
            client.end();
            client = Client::connect(proxy.addr());
        }
    }
}

#[test]
fn unsafe_request_is_sent_once_when_the_backend_dies() {
    let backends = [(); 2].map(|()| Backend::scripted(vec![Act::Request, Act::Close]));
    let proxy = Launch::http(&[backends[0].addr, backends[1].addr]).start();
    for method in ["POST", "PATCH", "LOCK"] {
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"));
        assert_own(&response, 502);
        let run: usize = backends.iter().map(|backend| backend.take_requests().len()).sum();
        assert_eq!(run, 1, "{method}, RFC 9110 section 9.2.2");
    }
}

#[test]
fn group_without_a_resolved_server_is_503_and_the_others_serve() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr])
        .tables("[backends.lost]\nservers = [\"no-such-host.invalid:80\"]\n[[route]]\npath = \"/lost\"\nto = \"lost\"");
    let proxy = conf.start();
    let mut client = Client::connect(proxy.addr());
    let response = client.get("/lost");
    assert_own(&response, 503);
    assert_eq!(client.get("/").status, 200);
    proxy.wait_for_log(&["no-such-host.invalid"]);
}

#[test]
fn silent_backend_is_504() {
    let backend = Backend::silent();
    let proxy = Conf::http(&[backend.addr]).tables("[timeouts]\nresponse = \"300ms\"").start();
    let mut client = Client::connect(proxy.addr());
    let response = client.get("/");
    assert_own(&response, 504);
    client.assert_or_end(&response);
    wait_until("connections without an answer are given up", || backend.open() == 0);
}

#[test]
fn unanswered_connect_is_504() {
    let backend = Unanswering::new();
    let proxy = Conf::http(&[backend.addr]).tables("[timeouts]\nconnect = \"300ms\"").start();
    let mut client = Client::connect(proxy.addr());
    let response = client.get("/");
    assert!([502, 504].contains(&response.status), "{response:?}");
    assert_own(&response, response.status);
    client.assert_or_end(&response);
}

#[test]
fn unsupported_version_is_505_and_closes() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/2.0\r\nHost: a\r\n\r\n");
    assert_own(&response, 505);
    assert!(response.closes());
    client.end();
}

#[test]
fn errors_to_head_have_no_body() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).unrouted().tables("[[route]]\nhost = \"known\"\nto = \"web\"");
    let proxy = conf.start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..2 {
        assert_eq!(client.ask("HEAD / HTTP/1.1\r\nHost: unknown\r\n\r\n").status, 404);
    }
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: known\r\n\r\n").status, 200);
}

#[test]
fn errors_to_http_1_0_close() {
    let refusing = Refusing::new();
    let proxy = Launch::http(&[refusing.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.0\r\n\r\n");
    assert_own(&response, 502);
    client.end();
}

#[test]
fn routes_choose_the_most_specific() {
    let names = ["exact-host", "wildcard", "any", "exact-path", "prefix", "long-prefix"];
    let backends: Vec<Backend> = names.iter().map(|name| Backend::named(name)).collect();
    let mut tables = String::new();
    for (name, backend) in names.iter().zip(&backends) {
        tables += &format!("[backends.{name}]\nservers = [\"{}\"]\n", backend.addr);
    }
    tables += "[[route]]\nto = \"any\"\n\
        [[route]]\nhost = \"www.example.com\"\nto = \"exact-host\"\n\
        [[route]]\nhost = \"*.example.com\"\nto = \"wildcard\"\n\
        [[route]]\nhost = \"p.example\"\npath = \"=/api\"\nto = \"exact-path\"\n\
        [[route]]\nhost = \"p.example\"\npath = \"/api\"\nto = \"prefix\"\n\
        [[route]]\nhost = \"p.example\"\npath = \"/api/v2/\"\nto = \"long-prefix\"\n";
    let proxy = Conf::http(&[backends[0].addr]).unrouted().tables(&tables).start();
    let mut client = Client::connect(proxy.addr());
    for (host, target, name) in [
        ("www.example.com", "/", "exact-host"),
        ("WWW.Example.COM:8080", "/", "exact-host"),
        ("a.example.com", "/", "wildcard"),
        ("a.b.example.com", "/", "any"),
        ("example.com", "/", "any"),
        ("other", "/", "any"),
        ("p.example", "/api", "exact-path"),
        ("p.example", "/api?x=/api/v2/", "exact-path"),
        ("p.example", "/api/", "prefix"),
        ("p.example", "/api/v2/x", "long-prefix"),
        ("p.example", "/elsewhere", "any"),
    ] {
        let response = client.ask(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(response.text(), name, "{host}{target}");
    }
}

#[test]
fn refused_head_still_coming_does_not_reset_the_answer() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[limits]\nhead = \"4KiB\"").start();
    let mut client = Client::connect(proxy.addr());
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(5000)));
    let response = client.response();
    assert_own(&response, 431);
    // A client that is still writing must not be cut off: it would lose the answer it has not read yet.
    for _ in 0..8 {
        client.send("b".repeat(1000));
    }
    client.shutdown_write();
    assert_eq!(client.end(), End::Clean);
}

#[test]
fn body_broken_right_behind_the_head_is_502() {
    for broken in ["ZZ\r\n", "2\r\nok\r\nZZ\r\n", "2\r\nokXX"] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let backend = Backend::fixed(format!("{head}{broken}"));
        let proxy = Launch::http(&[backend.addr]).start();
        let mut client = Client::connect(proxy.addr());
        let response = client.get("/");
        assert_own(&response, 502);
        assert!(!response.closes());
        assert_own(&client.get("/again"), 502);
    }
}

#[test]
fn refused_head_requests_get_no_content() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    for (bad, status) in [("", 400), ("Host: a\r\nContent-Length: 1, 1\r\n", 400), ("Host: a\r\nExpect: x\r\n", 417)] {
        let mut client = Client::connect(proxy.addr());
        client.send(format!("HEAD / HTTP/1.1\r\n{bad}\r\n"));
        assert_own(&client.response_to("HEAD"), status);
        assert_eq!(client.end(), End::Clean, "content followed the answer to HEAD");
    }
}
