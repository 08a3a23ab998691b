//! PROXY headers accepted: who is believed, and what the address is used for.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::h1::Response;
use crate::common::proxy::{Launch, Proxy};
use crate::common::{dawdle, wait_for};

pub(crate) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

pub(crate) const REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// Version 1, for a client of 203.0.113.7.
pub(crate) const V1: &str = "PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n";

/// Version 2 for the same client, with a field that nobody needs to know.
pub(crate) fn v2() -> Vec<u8> {
    [
        SIGNATURE,
        &[0x21, 0x11, 0, 19],
        &[203, 0, 113, 7, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb],
        &[0xe0, 0, 4],
        b"blob",
    ]
    .concat()
}

const ACCESS_LOG: &str = "[access_log]\nto = \"{dir}/access.log\"";

/// The lines of the access log, once there are `count`.
#[track_caller]
fn access_log(proxy: &Proxy, count: usize) -> Vec<String> {
    wait_for("the lines are in the log", || {
        let text = std::fs::read_to_string(proxy.dir.join("access.log")).ok()?;
        (text.ends_with('\n') && text.lines().count() == count).then(|| text.lines().map(str::to_owned).collect())
    })
}

/// Answers each request with its X-Forwarded-For.
pub(crate) fn mirror() -> Backend {
    Backend::answering(|request| response(request.fields.get("x-forwarded-for").unwrap_or("none")))
}

/// HTTP for proxies at 127.0.0.1.
pub(crate) fn behind(backend: &Backend) -> Conf {
    Conf::http(&[backend.addr]).listen("proxy_protocol = { from = [\"127.0.0.1\"] }")
}

pub(crate) fn tcp_behind(backend: &Backend) -> Conf {
    Conf::tcp(&[backend.addr]).listen("proxy_protocol = { from = [\"127.0.0.1\"] }")
}

#[track_caller]
pub(crate) fn says(response: &Response, text: &str) {
    assert_eq!((response.status, response.text().as_str()), (200, text));
}

#[test]
fn both_versions_name_the_client_of_every_request() {
    let backend = mirror();
    let proxy = behind(&backend).tables(ACCESS_LOG).start();
    for header in [V1.as_bytes().to_vec(), v2()] {
        let mut client = Client::connect(proxy.addr());
        client.send([&header, REQUEST.as_bytes()].concat());
        says(&client.response(), "203.0.113.7");
        for _ in 0..3 {
            says(&client.get("/"), "203.0.113.7");
        }
    }
    let lines = access_log(&proxy, 8);
    assert!(lines.iter().all(|line| line.starts_with("203.0.113.7 - - ") && line.contains("port=56324")), "{lines:?}");
}

#[test]
fn a_header_may_come_byte_by_byte_and_alone() {
    let backend = mirror();
    let proxy = behind(&backend).start();
    for header in [V1.as_bytes().to_vec(), v2()] {
        let mut client = Client::connect(proxy.addr());
        client.wire.stream.set_nodelay(true).unwrap();
        for byte in header {
            client.send([byte]);
            dawdle(Duration::from_millis(1));
        }
        says(&client.get("/"), "203.0.113.7");
    }
}

#[test]
fn headers_without_an_address_leave_the_proxys_own() {
    let backend = mirror();
    let proxy = behind(&backend).start();
    let unix = [SIGNATURE, &[0x21, 0x31, 0, 216], &[b'/'; 216]].concat();
    let table: [&[u8]; 6] = [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ::1 ::1 1 2\r\n",
        &[SIGNATURE, &[0x20, 0x00, 0, 0]].concat(),
        &[SIGNATURE, &[0x20, 0x11, 0, 12], &[9; 12]].concat(),
        &[SIGNATURE, &[0x21, 0x00, 0, 0]].concat(),
        &unix,
    ];
    for header in table {
        let mut client = Client::connect(proxy.addr());
        client.send(header);
        says(&client.get("/"), "127.0.0.1");
    }
}

#[test]
fn a_listed_proxy_without_a_valid_header_is_cut_off_at_once() {
    let backend = mirror();
    let proxy = behind(&backend).tables(ACCESS_LOG).start();
    let checksum = [SIGNATURE, &[0x21, 0x11, 0, 19], &[1; 12], &[3, 0, 4, 1, 2, 3, 4]].concat();
    let table: [(&[u8], &str); 8] = [
        (REQUEST.as_bytes(), "does not begin with a PROXY header"),
        (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", "does not begin with a PROXY header"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", "CR or LF alone"),
        (b"PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n", "not one of its family"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "a port in the PROXY line"),
        (&[b'P'; 3], "does not begin with a PROXY header"),
        (&[SIGNATURE, &[0x21, 0x11, 0x10, 0]].concat(), "more than 4096 bytes"),
        (&checksum, "checksum is wrong"),
    ];
    for (number, (bytes, reason)) in table.iter().enumerate() {
        let mut client = Client::connect(proxy.addr());
        client.send(bytes);
        assert_eq!(client.end(), End::Reset, "{reason}");
        let line = access_log(&proxy, number + 1).pop().unwrap();
        assert!(line.starts_with("127.0.0.1 ") && line.contains(reason), "{reason}: {line}");
    }
    let (_, line) = proxy.wait_for_log(&["WARN", "connection from 127.0.0.1:", table[0].1, "`proxy_protocol`"]);
    assert!(!line.contains("GET"), "{line}");
    assert_eq!(backend.heads(), 0);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn refused_headers_are_all_in_the_access_log_and_few_in_the_other() {
    let backend = mirror();
    let proxy = behind(&backend).tables(ACCESS_LOG).start();
    for _ in 0..20 {
        let mut client = Client::connect(proxy.addr());
        client.send(REQUEST);
        assert_eq!(client.end(), End::Reset);
    }
    let lines = access_log(&proxy, 20);
    assert!(lines.iter().all(|line| line.contains("does not begin with a PROXY header")), "{lines:?}");
    let warnings = proxy.log.all().iter().filter(|line| line.contains("refused: ")).count();
    assert!(warnings < 20, "{warnings}");
}

#[test]
fn others_are_served_as_usual_and_not_believed() {
    let backend = mirror();
    let proxy = behind(&backend).start();
    let mut client = Client::connect_from("127.0.0.2", proxy.addr());
    says(&client.get("/"), "127.0.0.2");
    for header in [V1.as_bytes().to_vec(), v2()] {
        let mut client = Client::connect_from("127.0.0.2", proxy.addr());
        client.send([&header, REQUEST.as_bytes()].concat());
        assert_eq!(client.response().status, 400);
    }
    assert_eq!(backend.heads(), 1);
}

#[test]
fn a_listener_without_the_setting_believes_nobody() {
    let backend = mirror();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send([V1, REQUEST].concat());
    assert_eq!(client.response().status, 400);
    assert_eq!(backend.heads(), 0);
}

#[test]
fn a_header_that_does_not_come_in_time_ends_the_connection() {
    let backend = mirror();
    let proxy = behind(&backend).tables("[timeouts]\nheader = \"500ms\"").start();
    for first in ["", "PROXY TCP4 1.2.3.4 "] {
        let start = Instant::now();
        let mut client = Client::connect(proxy.addr());
        client.send(first);
        assert_eq!(client.end(), End::Reset);
        assert!(start.elapsed() > Duration::from_millis(400), "{:?}", start.elapsed());
    }
    proxy.wait_for_log(&["WARN", "did not come in time"]);
    // Drops now and then do not make it longer.
    let start = Instant::now();
    let mut client = Client::connect(proxy.addr());
    client.wire.stream.set_nodelay(true).unwrap();
    for byte in "PROXY UNKNOWN ".bytes().chain(std::iter::repeat_n(b'x', 80)) {
        client.send([byte]);
        dawdle(Duration::from_millis(20));
    }
    // The reset may have been noticed in sending already.
    client.end();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_connection_that_ends_before_its_header_is_only_closed() {
    let backend = mirror();
    let proxy = behind(&backend).start();
    let before = proxy.descriptors();
    for _ in 0..10 {
        let mut client = Client::connect(proxy.addr());
        client.shutdown_write();
        assert_eq!(client.end(), End::Clean);
        Client::connect(proxy.addr()).reset();
    }
    proxy.assert_no_leaks(&before, 0);
    assert!(proxy.log.find(0, &["refused: "]).is_none(), "{}", proxy.text());
    let mut client = Client::connect(proxy.addr());
    client.send("PROXY TCP4 1.2");
    client.shutdown_write();
    client.end();
    proxy.wait_for_log(&["WARN", "ended within the PROXY header"]);
}

#[test]
fn the_address_in_the_header_decides_who_is_trusted() {
    let backend = mirror();
    let proxy = behind(&backend).top("trusted_proxies = [\"203.0.113.0/24\"]").start();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.99\r\n\r\n";
    let ask = |header: &str| {
        let mut client = Client::connect(proxy.addr());
        client.send(header);
        client.ask(request).text()
    };
    assert_eq!(ask(V1), "192.0.2.99, 203.0.113.7");
    assert_eq!(ask("PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n"), "2001:db8::7");
    assert_eq!(ask("PROXY UNKNOWN\r\n"), "127.0.0.1");
}

#[test]
fn the_address_in_the_header_chooses_the_server() {
    let backends: Vec<Backend> = ["a", "b", "c", "d"].map(Backend::named).into_iter().collect();
    let addrs: Vec<SocketAddr> = backends.iter().map(|backend| backend.addr).collect();
    let conf = Conf::http(&addrs).listen("proxy_protocol = { from = [\"127.0.0.1\"] }");
    let proxy = conf.group("balance = \"source-hash\"").start();
    let ask = |ip: Ipv4Addr| {
        let mut client = Client::connect(proxy.addr());
        client.send(format!("PROXY TCP4 {ip} 192.0.2.1 1 2\r\n"));
        client.get("/").text()
    };
    let clients = (1..=40).map(|n| Ipv4Addr::new(203, 0, n, n));
    let chosen: Vec<String> = clients.clone().map(ask).collect();
    assert_eq!(clients.map(ask).collect::<Vec<_>>(), chosen);
    let mut servers = chosen;
    servers.sort();
    servers.dedup();
    assert_eq!(servers, ["a", "b", "c", "d"]);
}

#[test]
fn connections_with_a_header_do_not_count_for_the_proxys_address() {
    let backend = mirror();
    let proxy = behind(&backend).tables("[limits]\nconnections_per_address = 2").start();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send(V1);
        says(&client.get("/"), "203.0.113.7");
    }
    let mut others: Vec<Client> = (0..3).map(|_| Client::connect_from("127.0.0.2", proxy.addr())).collect();
    let statuses: Vec<u16> = others.iter_mut().map(|client| client.get("/").status).collect();
    assert_eq!(statuses, [200, 200, 503]);
}

#[test]
fn unix_clients_can_be_believed_too() {
    let backend = mirror();
    let conf = Conf::http(&[backend.addr]).listen("bind = \"unix:{dir}/s\"");
    let proxy = conf.listen("proxy_protocol = { from = [\"unix\"] }").start();
    let mut client = Client::connect(proxy.addr());
    client.send(&v2()[..20]);
    client.send(&v2()[20..]);
    says(&client.get("/"), "203.0.113.7");
    let mut client = Client::connect(proxy.addr());
    client.send("PROXY UNKNOWN\r\n");
    says(&client.get("/"), "none");
    let mut client = Client::connect(proxy.addr());
    client.send(REQUEST);
    client.end();
    proxy.wait_for_log(&["WARN", "a Unix client", "does not begin with a PROXY header"]);
}

#[test]
fn a_relay_begins_behind_the_header() {
    let backend = Backend::tcp_echo();
    let proxy = tcp_behind(&backend).start();
    for header in [V1.as_bytes().to_vec(), v2()] {
        let mut client = Client::connect(proxy.addr());
        client.send([header.as_slice(), b"first"].concat());
        client.send(" and more");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"first and more".to_vec(), End::Clean));
    }
    let mut client = Client::connect(proxy.addr());
    client.send("hello, no header here");
    assert_eq!(client.end(), End::Reset);
    assert_eq!(backend.connections(), 2, "no server is connected to before the header is there");
    let mut client = Client::connect_from("127.0.0.2", proxy.addr());
    client.send(V1);
    client.shutdown_write();
    assert_eq!(client.read_to_end(), (V1.as_bytes().to_vec(), End::Clean));
}
