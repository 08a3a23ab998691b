//! Forward listeners: CONNECT, SOCKS, the dynamic address exchange, and who gets where.

#[allow(dead_code, reason = "it is a program of its own, of which a test needs parts")]
#[path = "../../examples/dynamic_client.rs"]
mod dynamic_client;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

use crate::common::backend::{Backend, Refusing, Unanswering, response};
use crate::common::client::{Client, End};
use crate::common::dns::{Manner, NameServer};
use crate::common::proxy::{Launch, Proxy, kill_all};
use crate::common::{DEADLINE, need_packages, pattern_bytes, run, wait_for, wait_until};

/// Rules that open the loopback network, as tests need it.
const LOOPBACK: &str = "{ action = \"allow\", networks = [\"127.0.0.0/8\"], ports = [\"1-65535\"] }";

/// A forward proxy under these rules, with a JSON access log and a few names.
fn launch(rules: &str, more: &str) -> Launch {
    let text = format!(
        "{more}\n[access_log]\nto = \"{{dir}}/access.log\"\nformat = \"json\"\n\
         [[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nrules = \"t\"\n\
         [dns]\nresolv_conf = \"{{dir}}/resolv.conf\"\nhosts = \"{{dir}}/hosts\"\n\
         [rules.t]\n{rules}\n"
    );
    Launch::config(&text)
        .file("resolv.conf", "")
        .file("hosts", "127.0.0.1 origin.test\n127.0.0.2 second.test\n127.0.0.1 rebind.test\n")
}

fn open() -> Launch {
    launch(&format!("list = [{LOOPBACK}]"), "")
}

/// A hash that takes no time to check.
fn hash(password: &str) -> String {
    let salt = SaltString::from_b64("c29tZXNhbHQ").unwrap();
    let cheap = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
    cheap.hash_password(password.as_bytes(), &salt).unwrap().to_string()
}

/// A proxy where `ann` with the password `secret` may reach the loopback network, and nobody else anything.
fn guarded(more: &str) -> Launch {
    let rules =
        format!("auth = \"required\"\n{more}\nlist = [{{ users = [\"ann\"], {}]", LOOPBACK.trim_start_matches("{ "));
    launch(&rules, "[users]\nfile = \"{dir}/users\"")
        .file("users", &format!("# staff\nann:{}\nbob:{}\n", hash("secret"), hash("pw")))
}

/// The lines of the access log, once there are `count`.
fn log(proxy: &Proxy, count: usize) -> Vec<serde_json::Value> {
    wait_for("the access log is written", || {
        let text = std::fs::read_to_string(proxy.dir.join("access.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.len() >= count).then_some(lines)
    })
}

fn connect(client: &mut Client, target: impl std::fmt::Display, fields: &str) -> crate::common::h1::Response {
    client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n"));
    client.wire.begin();
    client.wire.response_head().unwrap()
}

/// Sends through a tunnel that echoes, and checks what comes back.
fn echo(client: &mut Client, text: &str) {
    client.send(text);
    client.wire.begin();
    assert_eq!(client.wire.take(text.len()).unwrap(), text.as_bytes());
}

fn stream(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addr().inet()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.extend(read_exactly(stream, 1));
    }
    String::from_utf8(line).unwrap()
}

/// A request of SOCKS5 for an IPv4 address.
fn socks5_request(to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    [&[5, 1, 0, 1], &to.ip().octets()[..], &to.port().to_be_bytes()].concat()
}

#[test]
fn connect_is_a_tunnel_with_half_close() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    let response = connect(&mut client, backend.addr, "");
    assert_eq!(
        (response.status, response.fields.has("content-length"), response.fields.has("transfer-encoding")),
        (200, false, false)
    );
    echo(&mut client, "through the tunnel");
    client.send("the rest");
    client.shutdown_write();
    assert_eq!(client.read_to_end(), (b"the rest".to_vec(), End::Clean));
    let line = &log(&proxy, 1)[0];
    assert_eq!(line["mode"], "forward");
    assert_eq!(line["method"], "CONNECT");
    assert_eq!(line["target"], backend.addr.to_string());
    assert_eq!(line["backend"], backend.addr.to_string());
    assert_eq!((line["bytes_in"].as_u64(), line["status"].as_u64()), (Some(26), Some(200)));
    assert_eq!((line["rule"].as_str(), line["user"].as_str()), (Some("t:1"), None));
}

#[test]
fn bytes_behind_the_head_belong_to_the_tunnel() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    client.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nGET / HTTP/1.1\r\n\r\n", backend.addr));
    client.wire.begin();
    assert_eq!(client.wire.response_head().unwrap().status, 200);
    assert_eq!(client.wire.take(18).unwrap(), b"GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn bytes_behind_a_connect_that_fails_are_no_request() {
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    client.send("CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: 10.0.0.1:443\r\n\r\nGET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let response = client.response();
    assert!(response.status == 403 && response.closes());
    assert_eq!(client.end(), End::Clean);
}

#[test]
fn a_connection_goes_on_after_a_connect_that_fails() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask("CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: 10.0.0.1:443\r\n\r\n").status, 403);
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    echo(&mut client, "x");
}

#[test]
fn what_the_rules_do_not_open_stays_closed_whatever_it_is_called() {
    let backend = Backend::ok();
    let port = backend.addr.port();
    // Everything is allowed, which opens nothing special.
    let rules = "list = [{ action = \"allow\", networks = [\"0.0.0.0/0\", \"::/0\"], ports = [\"1-65535\"] }, \
                 { action = \"allow\", ports = [\"1-65535\"] }]";
    let proxy = launch(rules, "").start();
    let mut client = Client::connect(proxy.addr());
    for host in [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "0.0.0.0",
        "[::]",
        "localhost",
        "rebind.test",
        "REBIND.test.",
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "[fe80::1]",
        "[fd00::1]",
        "224.0.0.1",
        "255.255.255.255",
        "100.64.0.1",
    ] {
        let response = client.ask(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
        assert_eq!(response.status, 403, "CONNECT {host}");
        let response = client.ask(format!("GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
        assert_eq!(response.status, 403, "GET {host}");
    }
    for host in ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1"] {
        let response = client.ask(format!("GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
        assert_eq!(response.status, 400, "{host}");
    }
    let lines = log(&proxy, 43);
    assert_eq!(
        (lines[0]["rule"].as_str(), lines[0]["backend"].as_str()),
        (Some("t:loopback"), Some(format!("127.0.0.1:{port}").as_str()))
    );
    assert_eq!(backend.connections(), 0);
}

#[test]
fn without_rules_everything_is_refused() {
    let backend = Backend::ok();
    let proxy = Launch::config("[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"").start();
    proxy.wait_for_log(&["this listener has no rules: everything will be refused"]);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask(format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n", backend.addr)).status, 403);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn the_proxy_does_not_connect_to_itself() {
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    let own = proxy.addr().inet();
    assert_eq!(client.ask(format!("CONNECT {own} HTTP/1.1\r\nHost: {own}\r\n\r\n")).status, 403);
    assert_eq!(log(&proxy, 1)[0]["rule"], "t:own listener");
}

#[test]
fn connect_without_ports_in_the_rule_reaches_443_only() {
    let backend = Backend::tcp_echo();
    let proxy = launch("list = [{ action = \"allow\", networks = [\"127.0.0.0/8\"] }]", "").start();
    let mut client = Client::connect(proxy.addr());
    for port in [80, 22, backend.addr.port()] {
        let response = client.ask(format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"));
        assert_eq!(response.status, 403);
    }
    // Nobody listens there, but it was tried.
    assert_eq!(client.ask("CONNECT 127.0.0.9:443 HTTP/1.1\r\nHost: 127.0.0.9:443\r\n\r\n").status, 502);
}

#[test]
fn names_are_resolved_and_their_addresses_judged() {
    let backend = Backend::tcp_echo();
    let port = backend.addr.port();
    let rules = "list = [{ action = \"allow\", names = [\"origin.test\", \"second.test\"], networks = [\"127.0.0.1/32\"], ports = [\"1-65535\"] }]";
    let proxy = launch(rules, "").start();
    let mut client = Client::connect(proxy.addr());
    let status = |client: &mut Client, host: &str| {
        client.ask(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")).status
    };
    assert_eq!(status(&mut client, "second.test"), 403, "another address");
    assert_eq!(status(&mut client, "rebind.test"), 403, "another name");
    assert_eq!(status(&mut client, "127.0.0.1"), 403, "no name");
    assert_eq!(connect(&mut client, format!("origin.test:{port}"), "").status, 200);
    echo(&mut client, "found");
}

#[test]
fn targets_that_cannot_be_reached_are_told_so() {
    let (refusing, unanswering) = (Refusing::new(), Unanswering::new());
    let proxy = launch(
        &format!("list = [{LOOPBACK}, {{ action = \"allow\", names = [\"none.test\"] }}]"),
        "timeouts.connect = \"300ms\"",
    )
    .start();
    let mut client = Client::connect(proxy.addr());
    let mut status = |target: String| client.ask(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).status;
    assert_eq!(status(refusing.addr.to_string()), 502);
    assert_eq!(status(unanswering.addr.to_string()), 504);
    // There is no name server here.
    assert!(matches!(status("none.test:443".to_owned()), 502 | 504));
    let reasons: Vec<String> = log(&proxy, 3).iter().map(|line| line["reason"].as_str().unwrap().to_owned()).collect();
    assert_eq!(reasons[..2], ["the target refused the connection", "timed out connecting to the target"]);
}

#[test]
fn passwords_are_asked_for_and_checked() {
    let backend = Backend::tcp_echo();
    let proxy = guarded("").start();
    let mut client = Client::connect(proxy.addr());
    let ask = |client: &mut Client, fields: &str| {
        client.ask(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n{fields}\r\n", backend.addr))
    };
    let response = ask(&mut client, "");
    assert_eq!(response.status, 407);
    assert!(response.fields.get("proxy-authenticate").unwrap().starts_with("Basic realm="));
    // ann:wrong, eve:secret, bob:pw; then ann:secret.
    assert_eq!(ask(&mut client, "Proxy-Authorization: Basic YW5uOndyb25n\r\n").status, 407);
    assert_eq!(ask(&mut client, "Proxy-Authorization: Basic ZXZlOnNlY3JldA==\r\n").status, 407);
    assert_eq!(ask(&mut client, "Proxy-Authorization: Basic Ym9iOnB3\r\n").status, 403);
    let right = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";
    assert_eq!(connect(&mut client, backend.addr, right).status, 200);
    echo(&mut client, "in");
    drop(client);
    let lines = log(&proxy, 5);
    let find = |status: u64| lines.iter().filter(|line| line["status"] == status).collect::<Vec<_>>();
    assert_eq!((find(407).len(), find(403)[0]["user"].as_str()), (3, Some("bob")));
    assert_eq!((find(200)[0]["user"].as_str(), find(200)[0]["rule"].as_str()), (Some("ann"), Some("t:1")));
}

#[test]
fn socks5_connects_with_and_without_a_password() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let mut client = stream(&proxy);
    client.write_all(&[5, 1, 0]).unwrap();
    assert_eq!(read_exactly(&mut client, 2), [5, 0]);
    client.write_all(&socks5_request(backend.addr)).unwrap();
    assert_eq!(read_exactly(&mut client, 10)[..4], [5, 0, 0, 1]);
    client.write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&mut client, 5), b"hello");

    let guarded = guarded("").start();
    for (password, right) in [("secret", true), ("Secret", false)] {
        let mut client = stream(&guarded);
        // All at once: nothing waits for anything.
        let credentials = [&[1, 3], &b"ann"[..], &[6], password.as_bytes()].concat();
        client.write_all(&[&[5, 2, 0, 2], &credentials[..], &socks5_request(backend.addr)].concat()).unwrap();
        assert_eq!(read_exactly(&mut client, 2), [5, 2]);
        assert_eq!(read_exactly(&mut client, 2), [1, u8::from(!right)]);
        if right {
            assert_eq!(read_exactly(&mut client, 10)[..2], [5, 0]);
            client.write_all(b"hello").unwrap();
            assert_eq!(read_exactly(&mut client, 5), b"hello");
        } else {
            assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        }
    }
    let mut client = stream(&guarded);
    client.write_all(&[5, 1, 0]).unwrap();
    assert_eq!(read_exactly(&mut client, 2), [5, 0xff]);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn socks_says_what_it_does_not_do() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let answer = |request: &[u8]| {
        let mut client = stream(&proxy);
        client.write_all(&[&[5, 1, 0], request].concat()).unwrap();
        let answer = read_exactly(&mut client, 12)[3];
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        answer
    };
    let mut bind = socks5_request(backend.addr);
    bind[1] = 2;
    assert_eq!(answer(&bind), 7);
    bind[1] = 3;
    assert_eq!(answer(&bind), 7);
    assert_eq!(answer(&socks5_request("10.0.0.1:80".parse().unwrap())), 2);
    assert_eq!(answer(&socks5_request(Refusing::new().addr)), 5);
    assert_eq!(answer(b"\x05\x01\x00\x03\x09127.0.0.1\x00\x50"), 5, "an address written as a name is one");
    assert_eq!(answer(b"\x05\x01\x00\x03\x060x7f.1\x00\x50"), 1);
}

#[test]
fn socks4_and_4a_connect() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let port = backend.addr.port().to_be_bytes();
    for request in [
        [&[4, 1], &port[..], &[127, 0, 0, 1], b"ann\0"].concat(),
        [&[4, 1], &port[..], &[0, 0, 0, 1], b"\0origin.test\0"].concat(),
    ] {
        let mut client = stream(&proxy);
        for byte in request {
            client.write_all(&[byte]).unwrap();
        }
        assert_eq!(read_exactly(&mut client, 8)[..2], [0, 90]);
        client.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&mut client, 5), b"hello");
    }
    let mut client = stream(&proxy);
    client.write_all(&[&[4, 1], &port[..], &[10, 0, 0, 1, 0]].concat()).unwrap();
    assert_eq!(read_exactly(&mut client, 8)[..2], [0, 91]);
}

#[test]
fn the_dynamic_exchange_becomes_the_relay() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let mut client = stream(&proxy);
    client.write_all(format!("{{\"target\":\"origin.test:{}\"}}\nearly", backend.addr.port()).as_bytes()).unwrap();
    assert_eq!(read_line(&mut client), format!("{{\"ok\":true,\"address\":\"{}\"}}\n", backend.addr));
    client.write_all(b" and late").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "early and late");

    let answer = |proxy: &Proxy, line: &str| {
        let mut client = stream(proxy);
        client.write_all(line.as_bytes()).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&read_line(&mut client)).unwrap();
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(answer["ok"], false);
        answer["error"].as_str().unwrap().to_owned()
    };
    assert_eq!(answer(&proxy, "{\"target\":\"10.0.0.1:80\"}\n"), "denied");
    assert_eq!(answer(&proxy, "{\"target\":\"a\"}\n"), "malformed");
    assert_eq!(answer(&proxy, "{\"target\":\"a:1\",\"target\":\"b:1\"}\n"), "malformed");
    assert_eq!(answer(&proxy, &format!("{{{}", " ".repeat(4096))), "malformed");
    assert_eq!(answer(&proxy, &format!("{{\"target\":\"{}\"}}\n", Refusing::new().addr)), "unreachable");
    let guarded = guarded("").start();
    let target = format!("\"target\":\"{}\"", backend.addr);
    assert_eq!(answer(&guarded, &format!("{{{target}}}\n")), "auth-required");
    assert_eq!(answer(&guarded, &format!("{{{target},\"user\":\"ann\",\"password\":\"x\"}}\n")), "auth-failed");
    let mut client = stream(&guarded);
    client.write_all(format!("{{{target},\"user\":\"ann\",\"password\":\"secret\"}}\n").as_bytes()).unwrap();
    assert!(read_line(&mut client).starts_with("{\"ok\":true"));
}

#[test]
fn protocols_that_are_off_are_not_spoken() {
    let backend = Backend::tcp_echo();
    for (protocols, begins) in [
        ("\"http\"", &b"\x05\x01\x00"[..]),
        ("\"http\"", b"{"),
        ("\"socks5\"", b"\x04\x01"),
        ("\"dynamic\"", b"GET / HTTP/1.1\r\n\r\n"),
    ] {
        let text = format!(
            "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nprotocols = [{protocols}]\nrules = \"t\"\n[rules.t]\nlist = [{LOOPBACK}]"
        );
        let proxy = Launch::config(&text).start();
        let mut client = stream(&proxy);
        client.write_all(begins).unwrap();
        assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)), "{protocols}");
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn requests_in_absolute_form_reach_their_origin_without_what_is_of_this_hop() {
    let backend = Backend::answering(|request| response(&request.target));
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    let port = backend.addr.port();
    let fields = "Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic YTpi\r\nConnection: x-hop, te\r\nX-Hop: 1\r\n\
                  TE: gzip\r\nX-Forwarded-For: 192.0.2.1\r\nVia: 1.0 first\r\nX-End: 2\r\n";
    for n in 0..3 {
        let answer = client
            .ask(format!("GET http://origin.test:{port}/a?{n} HTTP/1.1\r\nHost: origin.test:{port}\r\n{fields}\r\n"));
        assert_eq!((answer.status, answer.text()), (200, format!("/a?{n}")));
        assert!(answer.fields.get("via").unwrap().starts_with("1.1 pointsman-"));
    }
    let requests = backend.take_requests();
    for request in &requests {
        for gone in ["proxy-connection", "proxy-authorization", "x-hop", "te", "connection"] {
            assert!(!request.fields.has(gone), "{gone}: {}", request.summary());
        }
        assert_eq!(request.fields.get("host"), Some(format!("origin.test:{port}").as_str()));
        assert_eq!(request.fields.get("x-forwarded-for"), Some("192.0.2.1"), "it is the client's own word");
        assert_eq!((request.fields.get("x-end"), request.fields.all("via").len()), (Some("2"), 2));
    }
    assert_eq!((requests.len(), backend.connections()), (3, 1), "the connection to the origin is used again");
    let line = &log(&proxy, 3)[2];
    assert_eq!((line["method"].as_str(), line["rule"].as_str()), (Some("GET"), Some("t:1")));
    assert_eq!(line["backend"], backend.addr.to_string());
}

#[test]
fn uploads_pass_and_a_kept_connection_that_died_is_replaced() {
    let backend = Backend::echo();
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    let data = pattern_bytes(300_000);
    for _ in 0..2 {
        let head =
            format!("POST http://{0}/ HTTP/1.1\r\nHost: {0}\r\nContent-Length: {1}\r\n\r\n", backend.addr, data.len());
        let answer = client.ask([head.as_bytes(), &data].concat());
        assert_eq!((answer.status, answer.body == data), (200, true));
    }
    assert_eq!(client.ask(format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n", backend.addr)).status, 200);
    backend.cut_all();
    assert_eq!(client.ask(format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n", backend.addr)).status, 200);
}

#[test]
fn requests_that_are_not_for_a_proxy_are_refused() {
    let proxy = open().start();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 501),
        ("GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n", 400),
        ("GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
        ("GET http://a@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
        (
            "POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        ("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nContent-Length: 3\r\n\r\nabc", 400),
    ] {
        assert_eq!(Client::connect(proxy.addr()).ask(request).status, status, "{request}");
    }
}

#[test]
fn a_request_that_comes_back_is_a_loop() {
    let backend = Backend::ok();
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    let ask = |client: &mut Client, via: &str| {
        client.ask(format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nVia: {via}\r\n\r\n", backend.addr))
    };
    let answer = ask(&mut client, "1.1 other");
    let own = answer.fields.get("via").unwrap().split(' ').nth(1).unwrap().to_owned();
    assert_eq!(ask(&mut client, &format!("1.0 x, 1.1 {own}")).status, 502);
    assert_eq!(backend.heads(), 1);
}

#[test]
fn connections_of_a_user_are_bounded() {
    let backend = Backend::tcp_echo();
    let proxy = guarded("limits = { user = { connections = 2 } }").workers(1).start();
    let right = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(proxy.addr())).collect();
    assert_eq!(connect(&mut clients[0], backend.addr, right).status, 200);
    assert_eq!(connect(&mut clients[1], backend.addr, right).status, 200);
    let target = backend.addr;
    let mut third = || clients[2].ask(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{right}\r\n")).status;
    assert_eq!(third(), 429);
    clients.remove(0);
    wait_until("the first relay is over", || backend.open() == 1);
    wait_until("there is room again", || {
        let mut next = Client::connect(proxy.addr());
        connect(&mut next, backend.addr, right).status == 200
    });
}

#[test]
fn bytes_in_a_second_are_bounded_without_losing_any() {
    let data = pattern_bytes(600_000);
    let body = data.clone();
    let backend = Backend::serve(move |conn| {
        let _ = conn.wire.stream.write_all(&body);
    });
    let limits = "limits = { address = { rate = \"400KB\" } }";
    let proxy = launch(&format!("{limits}\nlist = [{LOOPBACK}]"), "").start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    let start = std::time::Instant::now();
    let (received, end) = client.read_to_end();
    assert_eq!((received == data, end), (true, End::Clean));
    // A second's worth at once, the rest as time goes: this is a lower bound that no slow machine breaks.
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
}

#[test]
fn tunnels_of_every_protocol_outlive_their_workers() {
    let backend = Backend::tcp_echo();
    let mut proxy = open().start();
    let mut tunnels = Vec::new();
    let mut http = Client::connect(proxy.addr());
    assert_eq!(connect(&mut http, backend.addr, "").status, 200);
    let mut socks = stream(&proxy);
    socks.write_all(&[&[5, 1, 0], &socks5_request(backend.addr)[..]].concat()).unwrap();
    assert_eq!(read_exactly(&mut socks, 12)[3], 0);
    let mut dynamic = stream(&proxy);
    dynamic.write_all(format!("{{\"target\":\"{}\"}}\n", backend.addr).as_bytes()).unwrap();
    read_line(&mut dynamic);
    tunnels.extend([http.wire.stream.try_clone().unwrap(), socks, dynamic]);
    for round in 0..3 {
        for tunnel in &mut tunnels {
            let text = format!("round {round}");
            tunnel.write_all(text.as_bytes()).unwrap();
            assert_eq!(read_exactly(tunnel, text.len()), text.as_bytes());
        }
        kill_all(&proxy);
        proxy.wait_for_workers(2);
    }
    assert_eq!(backend.connections(), 3);
    for mut tunnel in tunnels {
        tunnel.shutdown(Shutdown::Write).unwrap();
        assert_eq!(tunnel.read(&mut [0; 8]).unwrap(), 0);
    }
}

#[test]
fn a_request_for_a_tunnel_that_is_under_way_is_run_again() {
    // The target answers only once it is let: until then its queue is full.
    let unanswering = Unanswering::new();
    let mut proxy = launch(&format!("list = [{LOOPBACK}]"), "timeouts.connect = \"20s\"").workers(1).start();
    let mut http = Client::connect(proxy.addr());
    http.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", unanswering.addr));
    let mut dynamic = stream(&proxy);
    dynamic.write_all(format!("{{\"target\":\"{}\"}}\n", unanswering.addr).as_bytes()).unwrap();
    wait_until("both are under way", || syn_sent(unanswering.addr) >= 2);
    kill_all(&proxy);
    proxy.wait_for_workers(1);
    wait_until("both are under way again", || syn_sent(unanswering.addr) >= 2);
    drop((http, dynamic));
}

/// Connections to `to` on this machine that have not been answered, as the kernel lists them.
fn syn_sent(to: SocketAddr) -> usize {
    let SocketAddr::V4(v4) = to else { panic!("{to}") };
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let waits = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&wanted) && words.next() == Some("02")
    };
    table.lines().filter(waits).count()
}

#[test]
fn slow_and_silent_clients_are_let_go() {
    let proxy = launch(&format!("list = [{LOOPBACK}]"), "timeouts.header = \"300ms\"").start();
    for begin in [&b"\x05"[..], b"\x05\x01\x00", b"\x04\x01", b"{\"target\"", b"CONNECT a"] {
        let mut client = stream(&proxy);
        client.write_all(begin).unwrap();
        let mut rest = Vec::new();
        // Whether something is said before, the connection ends.
        let _ = client.read_to_end(&mut rest);
    }
}

#[test]
fn nothing_is_left_open_by_what_fails() {
    let (refusing, backend) = (Refusing::new(), Backend::tcp_echo());
    let proxy = open().workers(1).start();
    let round = || {
        for target in [refusing.addr.to_string(), "10.0.0.1:443".to_owned(), backend.addr.to_string()] {
            let mut client = Client::connect(proxy.addr());
            client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
            client.wire.begin();
            client.wire.response_head().unwrap();
            let mut dynamic = stream(&proxy);
            dynamic.write_all(format!("{{\"target\":\"{target}\"}}\n").as_bytes()).unwrap();
            read_line(&mut dynamic);
            let mut socks = stream(&proxy);
            socks.write_all(&[5, 1, 0, 5, 1]).unwrap();
        }
        wait_until("every relay ends", || backend.open() == 0);
    };
    round();
    let before = proxy.descriptors();
    for _ in 0..5 {
        round();
    }
    proxy.assert_no_leaks(&before, 8);
}

#[test]
fn rules_and_users_change_with_a_reload() {
    let backend = Backend::tcp_echo();
    let mut proxy = guarded("").start();
    let right = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";
    let mut kept = Client::connect(proxy.addr());
    assert_eq!(connect(&mut kept, backend.addr, right).status, 200);
    proxy.dir.write("users", &format!("ann:{}\nbob:{}\n", hash("other"), hash("pw")));
    let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
    let text = text.split_once('\n').unwrap().1.to_owned();
    proxy.reload(2, &text);
    let mut client = Client::connect(proxy.addr());
    let target = backend.addr;
    assert_eq!(client.ask(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{right}\r\n")).status, 407);
    // ann:other
    assert_eq!(connect(&mut client, target, "Proxy-Authorization: Basic YW5uOm90aGVy\r\n").status, 200);
    echo(&mut kept, "what is connected stays so");
    proxy.forgive("configuration not reloaded");
    proxy.dir.write("users", "ann:nothing\n");
    proxy.write_config(2, &text);
    let output = proxy.question("reload");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("line 1: the hash of `ann`"), "{said}");
    echo(&mut kept, "x");
}

#[test]
fn curl_goes_through_every_protocol() {
    need_packages(&["curl", "openssl"]);
    let backend = Backend::answering(|request| response(&request.target));
    let proxy = guarded("").start();
    let through = proxy.addr().inet();
    let url = |host: &str| format!("http://{host}:{}/path", backend.addr.port());
    let curl = |proxy: String, url: String| {
        run(Command::new("curl").args(["-sS", "--fail", "--max-time", "20", "--noproxy", "", "-x", &proxy, &url]))
    };
    for scheme in ["http", "socks5", "socks5h"] {
        let host = if scheme == "socks5" { "127.0.0.1" } else { "origin.test" };
        assert_eq!(curl(format!("{scheme}://ann:secret@{through}"), url(host)), "/path", "{scheme}");
    }
    let open = open().start();
    for scheme in ["socks4", "socks4a"] {
        let host = if scheme == "socks4" { "127.0.0.1" } else { "origin.test" };
        assert_eq!(curl(format!("{scheme}://{}", open.addr().inet()), url(host)), "/path", "{scheme}");
    }
    let tunnel = run(Command::new("curl")
        .args(["-sS", "--fail", "--max-time", "20", "-p", "-x"])
        .args([format!("http://ann:secret@{through}"), url("origin.test")]));
    assert_eq!(tunnel, "/path", "CONNECT");
}

#[test]
fn curl_speaks_tls_through_connect() {
    need_packages(&["curl", "openssl"]);
    let proxy = open().start();
    let dir = &proxy.dir;
    let (key, certificate) = (dir.join("key.pem"), dir.join("cert.pem"));
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=origin.test"])
        .args(["-addext", "subjectAltName=DNS:origin.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate));
    // The port is free a moment before; if another takes it, the server says so and the test fails.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl")
        .args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{port}"), "-key"])
        .arg(&key)
        .arg("-cert")
        .arg(&certificate)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the TLS server listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "--max-time", "20", "--cacert"]).arg(&certificate);
    curl.args(["-x", &format!("http://{}", proxy.addr().inet()), &format!("https://origin.test:{port}/")]);
    let output = curl.output().unwrap();
    let _ = server.kill();
    let _ = server.wait();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("Ciphers"), "{output:?}");
}

/// A listener for one reply, and what it received once its sender was done.
fn reply_listener() -> (SocketAddr, std::thread::JoinHandle<Result<Vec<u8>, std::io::ErrorKind>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).map(|_| received).map_err(|error| error.kind())
    });
    (address, receiver)
}

/// Opens an exchange with `reply_to`, sends `data`, half-closes, and gives the outcome.
fn exchange(proxy: &Proxy, target: SocketAddr, reply_to: SocketAddr, data: &[u8]) -> serde_json::Value {
    let mut client = stream(proxy);
    client.write_all(format!("{{\"target\":\"{target}\",\"reply_to\":\"{reply_to}\"}}\n").as_bytes()).unwrap();
    // It may be refused before all of it is there.
    let _ = client.write_all(data);
    let _ = client.shutdown(Shutdown::Write);
    let outcome = serde_json::from_str(&read_line(&mut client)).unwrap();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    outcome
}

#[test]
fn an_answer_is_delivered_where_the_client_listens() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    for length in [0, 5, 3_000_000] {
        let data = pattern_bytes(length);
        let (reply_to, receiver) = reply_listener();
        let outcome = exchange(&proxy, backend.addr, reply_to, &data);
        assert_eq!(outcome["ok"], true, "{outcome}");
        assert_eq!(
            (outcome["sent"].as_u64(), outcome["delivered"].as_u64()),
            (Some(length as u64), Some(length as u64))
        );
        assert!(receiver.join().unwrap().unwrap() == data);
    }
    let lines = log(&proxy, 3);
    let whole = |line: &serde_json::Value| line["method"] == "DYNAMIC" && line["bytes_out"] == 3_000_000;
    assert!(lines.iter().any(whole), "{lines:?}");
    wait_until("nothing is left", || backend.open() == 0);
}

#[test]
fn an_answer_goes_to_nobody_else() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let error = |reply_to: &str| exchange(&proxy, backend.addr, reply_to.parse().unwrap(), b"x")["error"].clone();
    assert_eq!(error("127.0.0.2:9000"), "reply-denied", "another address");
    assert_eq!(error("10.0.0.1:9000"), "reply-denied");
    assert_eq!(error("127.0.0.1:22"), "reply-denied", "a port of the system");
    assert_eq!(error(&proxy.addr().to_string()), "reply-denied", "the proxy itself");
    assert_eq!(backend.connections(), 0);
    // A rule about replies allows more.
    let replies = "{ action = \"allow\", about = \"replies\", networks = [\"127.0.0.2/32\"] }";
    let proxy = launch(&format!("list = [{LOOPBACK}, {replies}]"), "").start();
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let reply_to = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    assert_eq!(exchange(&proxy, backend.addr, reply_to, b"hello")["ok"], true);
    assert_eq!(receiver.join().unwrap(), b"hello");
}

#[test]
fn what_fails_in_a_delivery_has_an_error_of_its_own() {
    let (refusing, unanswering, echo) = (Refusing::new(), Unanswering::new(), Backend::tcp_echo());
    let proxy = launch(&format!("list = [{LOOPBACK}]"), "timeouts.connect = \"300ms\"").start();
    let error = |target: SocketAddr, reply_to: SocketAddr| exchange(&proxy, target, reply_to, b"x")["error"].clone();
    assert_eq!(error(echo.addr, refusing.addr), "reply-failed");
    assert_eq!(error(echo.addr, unanswering.addr), "reply-failed");
    assert_eq!(error(refusing.addr, echo.addr), "unreachable");
    assert_eq!(error(unanswering.addr, echo.addr), "timeout");
    // A target that breaks off: whoever gets the answer sees that it is not whole.
    let broken = Backend::serve(|conn| {
        let _ = conn.wire.stream.write_all(b"half");
        let mut byte = [0];
        let _ = conn.wire.stream.read(&mut byte);
        conn.reset();
    });
    let (reply_to, receiver) = reply_listener();
    assert_eq!(exchange(&proxy, broken.addr, reply_to, b"x")["error"], "broken");
    assert_eq!(receiver.join().unwrap(), Err(std::io::ErrorKind::ConnectionReset));
    wait_until("nothing is left", || echo.open() == 0);
}

#[test]
fn a_tunnel_lasts_no_longer_than_the_rules_let_it() {
    let backend = Backend::tcp_echo();
    let proxy = launch(&format!("lifetime = \"400ms\"\nlist = [{LOOPBACK}]"), "").start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    // It is never idle, and ends all the same.
    wait_until("the tunnel ends", || {
        client.send("x");
        client.wire.begin();
        client.wire.take(1).is_err()
    });
    assert_eq!(log(&proxy, 1)[0]["reason"], "it has lasted as long as the rules let it");
    let idle = launch(&format!("list = [{LOOPBACK}]"), "timeouts.tunnel = \"200ms\"").start();
    let mut client = Client::connect(idle.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    assert_eq!(client.end(), End::Reset);
    assert_eq!(log(&idle, 1)[0]["reason"], "nothing moved for longer than the tunnel timeout");
}

#[test]
fn the_example_client_speaks_both_forms() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let (through, target) = (proxy.addr().to_string(), backend.addr.to_string());
    let mut relay = dynamic_client::relay(&through, &target).unwrap();
    relay.write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&mut relay, 5), b"hello");
    let own = "127.0.0.1".parse().unwrap();
    assert_eq!(dynamic_client::deliver(&through, &target, own, b"hello").unwrap(), b"hello");
    let refused = dynamic_client::relay(&through, "10.0.0.1:80").unwrap_err();
    assert_eq!(refused.to_string(), "denied: the rules do not allow the target");
}

/// A forward proxy that asks this name server, and allows 127.0.0.1 alone.
fn asking(dns: &NameServer) -> Proxy {
    let rules = "list = [{ action = \"allow\", networks = [\"127.0.0.1/32\"], ports = [\"1-65535\"] }]";
    let listen = "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nrules = \"t\"";
    Launch::config(&format!("{listen}\n{}[rules.t]\n{rules}", NameServer::table(&[dns.addr]))).start()
}

#[test]
fn of_what_a_name_server_says_only_what_is_allowed_is_tried() {
    let (good, bad) = (Backend::tcp_echo(), TcpListener::bind("127.0.0.2:0").unwrap());
    let dns = NameServer::start();
    // A private address, the proxy's own machine by another name, a mapped one, and the right one in between.
    let port = good.addr.port();
    dns.set(
        "mixed.test",
        &["A 60 127.0.0.2", "A 60 10.0.0.1", "A 60 127.0.0.1", "AAAA 60 ::1", "AAAA 60 ::ffff:127.0.0.2"],
    );
    dns.set("inside.test", &["A 60 127.0.0.2", "AAAA 60 ::1"]);
    let proxy = asking(&dns);
    for _ in 0..5 {
        let mut client = Client::connect(proxy.addr());
        assert_eq!(connect(&mut client, format!("mixed.test:{port}"), "").status, 200);
        echo(&mut client, "the right one");
    }
    let mut client = Client::connect(proxy.addr());
    let inside = format!("inside.test:{}", bad.local_addr().unwrap().port());
    assert_eq!(client.ask(format!("CONNECT {inside} HTTP/1.1\r\nHost: {inside}\r\n\r\n")).status, 403);
    bad.set_nonblocking(true).unwrap();
    assert_eq!(bad.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
}

#[test]
fn a_name_that_points_elsewhere_with_each_answer_gains_nothing() {
    let good = Backend::answering(|_| response("good"));
    let port = good.addr.port();
    let bad = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let dns = NameServer::start();
    let proxy = asking(&dns);
    let mut client = Client::connect(proxy.addr());
    for round in 0..20 {
        let (address, status) = if round % 2 == 0 { ("A 0 127.0.0.1", 200) } else { ("A 0 127.0.0.2", 403) };
        // Another name each time: nothing is remembered, and no connection is kept.
        dns.set(&format!("n{round}.test"), &[address]);
        let host = format!("n{round}.test:{port}");
        assert_eq!(client.ask(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")).status, status, "{host}");
    }
    dns.set("flips.test", &["A 0 127.0.0.1"]);
    let host = format!("flips.test:{port}");
    let ask = |client: &mut Client| {
        client.ask(format!("POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"))
    };
    assert_eq!(ask(&mut client).status, 200);
    dns.set("flips.test", &["A 0 127.0.0.2"]);
    wait_until("the new address is seen, and refused", || ask(&mut client).status == 403);
    bad.set_nonblocking(true).unwrap();
    assert_eq!(bad.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
}

#[test]
fn name_servers_that_fail_are_told_as_such() {
    let dns = NameServer::start();
    dns.set("empty.test", &[]);
    let proxy = asking(&dns);
    let mut client = Client::connect(proxy.addr());
    let mut status = |host: &str| client.ask(format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n")).status;

    assert_eq!((status("missing.test"), status("empty.test")), (502, 502));
    dns.behave(Manner::Silent);
    assert_eq!(status("other.test"), 504);
    assert_eq!(client.ask("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n").status, 403);
}

#[test]
fn tunnels_outlive_reloads_and_upgrades() {
    let backend = Backend::tcp_echo();
    let mut proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    echo(&mut client, "before");
    proxy.upgrade();
    echo(&mut client, "after the upgrade");
    let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
    let text = text.split_once('\n').unwrap().1.replace("rules = \"t\"", "rules = \"t\"\nprotocols = [\"socks5\"]");
    proxy.reload(2, &text);
    echo(&mut client, "after the reload");
    assert_eq!(backend.connections(), 1);
}
