//! Forward listeners: CONNECT, requests in absolute-form, and what real clients make of them.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

use crate::common::backend::{Backend, Refusing, Unanswering, response};
use crate::common::client::{Client, End};
use crate::common::proxy::{Launch, Proxy};
use crate::common::{DEADLINE, need_packages, pattern_bytes, run, wait_for, wait_until};

/// Rules that open the loopback network, as tests need it.
pub const LOOPBACK: &str = "{ action = \"allow\", networks = [\"127.0.0.0/8\"], ports = [\"1-65535\"] }";

/// A forward proxy under these rules, with a JSON access log and a few names.
pub fn launch(rules: &str, more: &str) -> Launch {
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

pub fn open() -> Launch {
    launch(&format!("list = [{LOOPBACK}]"), "")
}

/// A hash that takes no time to check.
pub fn hash(password: &str) -> String {
    hash_with(password, 8, 1)
}

/// A hash that takes so many KiB and passes to check.
pub fn hash_with(password: &str, kib: u32, passes: u32) -> String {
    let salt = SaltString::from_b64("c29tZXNhbHQ").unwrap();
    let params = Params::new(kib, passes, 1, None).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password(password.as_bytes(), &salt).unwrap().to_string()
}

/// A proxy where `ann` with the password `secret` may reach the loopback network, and nobody else anything.
pub fn guarded(more: &str) -> Launch {
    let rules =
        format!("auth = \"required\"\n{more}\nlist = [{{ users = [\"ann\"], {}]", LOOPBACK.trim_start_matches("{ "));
    launch(&rules, "[users]\nfile = \"{dir}/users\"")
        .file("users", &format!("# staff\nann:{}\nbob:{}\n", hash("secret"), hash("pw")))
}

/// The lines of the access log, once there are `count`.
pub fn log(proxy: &Proxy, count: usize) -> Vec<serde_json::Value> {
    wait_for("the access log is written", || {
        let text = std::fs::read_to_string(proxy.dir.join("access.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.len() >= count).then_some(lines)
    })
}

pub fn connect(client: &mut Client, target: impl std::fmt::Display, fields: &str) -> crate::common::h1::Response {
    client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n"));
    client.wire.begin();
    client.wire.response_head().unwrap()
}

/// Asks for a tunnel on a connection of its own: after a refusal that ends.
pub fn try_connect(proxy: &Proxy, target: impl std::fmt::Display, fields: &str) -> crate::common::h1::Response {
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n"));
    assert!(response.status == 200 || response.closes(), "{response:?}");
    response
}

/// Sends through a tunnel that echoes, and checks what comes back.
pub fn echo(client: &mut Client, text: &str) {
    client.send(text);
    client.wire.begin();
    assert_eq!(client.wire.take(text.len()).unwrap(), text.as_bytes());
}

pub fn stream(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addr().inet()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

pub fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

pub fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.extend(read_exactly(stream, 1));
    }
    String::from_utf8(line).unwrap()
}

/// A request of SOCKS5 for an IPv4 address.
pub fn socks5_request(to: SocketAddr) -> Vec<u8> {
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
fn bytes_that_come_while_a_connect_is_still_to_fail_are_no_request_either() {
    let (backend, unanswering) = (Backend::ok(), Unanswering::new());
    let proxy = launch(&format!("list = [{LOOPBACK}]"), "timeouts.connect = \"500ms\"").start();
    let mut client = Client::connect(proxy.addr());
    client.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", unanswering.addr));
    // The head is read once the proxy connects.
    wait_until("the proxy connects", || unanswering.is_asked());
    client.send(format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n", backend.addr));
    let response = client.response();
    assert!(response.status == 504 && response.closes(), "{response:?}");
    assert_eq!(client.end(), End::Clean);
    assert_eq!(backend.heads(), 0);
}

#[test]
fn targets_that_cannot_be_reached_are_told_so() {
    let (refusing, unanswering) = (Refusing::new(), Unanswering::new());
    let proxy = launch(
        &format!("list = [{LOOPBACK}, {{ action = \"allow\", names = [\"none.test\"] }}]"),
        "timeouts.connect = \"300ms\"",
    )
    .workers(1)
    .start();
    let status = |target: String| try_connect(&proxy, target, "").status;
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
    let ask = |fields: &str| try_connect(&proxy, backend.addr, fields);
    let response = ask("");
    assert_eq!(response.status, 407);
    assert!(response.fields.get("proxy-authenticate").unwrap().starts_with("Basic realm="));
    // ann:wrong, eve:secret, bob:pw; then ann:secret.
    assert_eq!(ask("Proxy-Authorization: Basic YW5uOndyb25n\r\n").status, 407);
    assert_eq!(ask("Proxy-Authorization: Basic ZXZlOnNlY3JldA==\r\n").status, 407);
    assert_eq!(ask("Proxy-Authorization: Basic Ym9iOnB3\r\n").status, 403);
    let right = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, right).status, 200);
    echo(&mut client, "in");
    drop(client);
    let lines = log(&proxy, 5);
    let find = |status: u64| lines.iter().filter(|line| line["status"] == status).collect::<Vec<_>>();
    assert_eq!((find(407).len(), find(403)[0]["user"].as_str()), (3, Some("bob")));
    assert_eq!((find(200)[0]["user"].as_str(), find(200)[0]["rule"].as_str()), (Some("ann"), Some("t:1")));
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
        ("GET http://a.test/ HTTP/1.1\r\nHost: b.test/c\r\n\r\n", 400),
        ("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n", 400),
        ("GET http://a.test/ HTTP/1.1\r\n\r\n", 400),
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
fn the_target_says_where_a_request_goes_whatever_host_says() {
    let backend = Backend::ok();
    let proxy = open().start();
    let target = backend.addr;
    let mut client = Client::connect(proxy.addr());
    // Over a new connection, and over the one kept from that.
    for _ in 0..2 {
        let fields = "Host: other.test\r\nX-Hop: 1\r\nX-End: 2\r\nConnection: x-hop\r\nContent-Length: 4";
        assert_eq!(client.ask(format!("PUT http://{target}/a HTTP/1.1\r\n{fields}\r\n\r\nbody")).status, 200);
    }
    client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: other.test:443\r\n\r\n"));
    client.wire.begin();
    assert_eq!(client.wire.response_head().unwrap().status, 200);
    let requests = backend.take_requests();
    assert_eq!(requests.len(), 2);
    for request in &requests {
        assert_eq!((request.fields.all("host"), &request.body[..]), (vec![target.to_string().as_str()], &b"body"[..]));
        assert_eq!((request.fields.get("x-end"), request.fields.get("x-hop")), (Some("2"), None));
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
