//! PROXY headers, accepted and sent: who is believed, what the address is used for, and that no death of a worker
//! loses it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::common::backend::{Backend, Conn, Refusing, response};
use crate::common::client::{Client, End};
use crate::common::h1::Response;
use crate::common::proxy::{Addr, Conf, Launch, Proxy, alive, replace_all};
use crate::common::{dawdle, wait_for, wait_until};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// Version 1, for a client of 203.0.113.7.
const V1: &str = "PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n";

/// Version 2 for the same client, with a field that nobody needs to know.
fn v2() -> Vec<u8> {
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
fn mirror() -> Backend {
    Backend::answering(|request| response(request.fields.get("x-forwarded-for").unwrap_or("none")))
}

/// HTTP for proxies at 127.0.0.1.
fn behind(backend: &Backend) -> Conf {
    Conf::http(&[backend.addr]).listen("proxy_protocol = { from = [\"127.0.0.1\"] }")
}

fn tcp_behind(backend: &Backend) -> Conf {
    Conf::tcp(&[backend.addr]).listen("proxy_protocol = { from = [\"127.0.0.1\"] }")
}

#[track_caller]
fn says(response: &Response, text: &str) {
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

#[test]
fn half_a_header_survives_the_worker() {
    let backend = mirror();
    let mut proxy = behind(&backend).launch().workers(2).start();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&v2()[..number * 5]);
    }
    replace_all(&mut proxy, 2);
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&v2()[number * 5..]);
        says(&client.get("/"), "203.0.113.7");
    }
}

#[test]
fn the_address_survives_worker_after_worker() {
    let backend = mirror();
    let mut proxy = behind(&backend).launch().workers(2).start();
    let mut clients: Vec<Client> = (0..12).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(format!("PROXY TCP4 203.0.113.{number} 192.0.2.1 {number} 80\r\n"));
        match number % 3 {
            // A request done, a request begun, nothing but the header.
            0 => says(&client.get("/"), &format!("203.0.113.{number}")),
            1 => client.send("GET / HT"),
            _ => {}
        }
    }
    for round in 0..2 {
        replace_all(&mut proxy, 2);
        for (number, client) in clients.iter_mut().enumerate() {
            if number % 3 == 1 && round == 0 {
                client.send("TP/1.1\r\nHost: a\r\n\r\n");
                says(&client.response(), &format!("203.0.113.{number}"));
            } else {
                says(&client.get("/"), &format!("203.0.113.{number}"));
            }
        }
    }
}

#[test]
fn a_request_run_again_has_the_same_address() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            conn.gate().pass();
            conn.send(&response(request.fields.get("x-forwarded-for").unwrap_or("none")));
        }
    });
    let mut proxy = behind(&backend).launch().workers(2).start();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send([v2().as_slice(), REQUEST.as_bytes()].concat());
    }
    wait_until("every request is at the backend", || backend.requests().len() == 4);
    replace_all(&mut proxy, 2);
    wait_until("every request is there again", || backend.requests().len() == 8);
    assert!(backend.requests().iter().all(|request| request.fields.get("x-forwarded-for") == Some("203.0.113.7")));
    backend.gate().open();
    for client in &mut clients {
        says(&client.response(), "203.0.113.7");
        says(&client.get("/"), "203.0.113.7");
    }
}

#[test]
fn a_drained_worker_hands_on_header_and_address() {
    let backend = mirror();
    let mut proxy = behind(&backend).launch().workers(3).start();
    let mut clients: Vec<Client> = (0..9).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 0 {
            client.send(V1);
            says(&client.get("/"), "203.0.113.7");
        } else {
            client.send(&V1[..10]);
        }
    }
    for left in [2, 1] {
        proxy.signal(Signal::SIGTTOU);
        proxy.wait_for_workers(left);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 1 {
            client.send(&V1[10..]);
        }
        says(&client.get("/"), "203.0.113.7");
    }
}

#[test]
fn a_relay_with_a_header_survives_the_worker() {
    let backend = Backend::tcp_echo();
    let mut proxy = tcp_behind(&backend).launch().workers(2).start();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 0 {
            client.send([V1, "one "].concat());
            client.wire.begin();
            assert_eq!(client.wire.take(4).unwrap(), b"one ");
        } else {
            client.send(&V1[..7]);
        }
    }
    replace_all(&mut proxy, 2);
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 1 {
            client.send(&V1[7..]);
        }
        client.send("two");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"two".to_vec(), End::Clean));
    }
}

/// The line of version 1 that a connection begins with, without its end.
fn take_line(conn: &mut Conn) -> String {
    conn.wire.begin();
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        match conn.wire.take(1) {
            Ok(byte) => line.extend(byte),
            Err(_) => return String::from_utf8_lossy(&line).into_owned(),
        }
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

/// Takes a line of version 1 off each connection, and answers every request with it and the connection's number.
fn v1_backend() -> Backend {
    Backend::serve(|conn| {
        let line = take_line(conn);
        while conn.request().is_some() {
            conn.send(&response(&format!("{} {line}", conn.number)));
        }
    })
}

fn local(client: &Client) -> SocketAddr {
    client.wire.stream.local_addr().unwrap()
}

#[test]
fn servers_get_each_clients_header_on_a_connection_of_its_own() {
    let backend = v1_backend();
    let proxy = Conf::http(&[backend.addr]).group("send_proxy = \"v1\"").start();
    let port = proxy.addr().inet().port();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    let mut seen = std::collections::HashMap::new();
    for _ in 0..3 {
        for client in &mut clients {
            let text = client.get("/").text();
            let (number, line) = text.split_once(' ').unwrap();
            let own = local(client).port();
            assert_eq!(line, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {own} {port}"));
            let first = seen.entry(number.to_owned()).or_insert(own);
            assert_eq!(*first, own, "a connection served two clients");
        }
    }
    assert_eq!(backend.connections(), 6, "each client's connection is kept for it");
    drop(clients);
    wait_until("they end with their clients", || backend.open() == 0);
}

#[test]
fn a_kept_connection_that_is_over_is_replaced_by_one_with_a_header() {
    // The server closes after each answer, without a word before.
    let backend = Backend::serve(|conn| {
        let line = take_line(conn);
        if conn.request().is_some() {
            conn.send(&response(&line));
        }
    });
    let proxy = Conf::http(&[backend.addr]).group("send_proxy = \"v1\"").start();
    let mut client = Client::connect(proxy.addr());
    let wanted = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}", local(&client).port(), proxy.addr().inet().port());
    for _ in 0..10 {
        says(&client.get("/"), &wanted);
    }
    assert_eq!(backend.connections(), 10);
}

#[test]
fn a_kept_connection_serves_its_own_group_only() {
    let backends = [v1_backend(), v1_backend(), Backend::named("shared")];
    let [a, b, c] = backends.each_ref().map(|backend| backend.addr);
    let groups = format!(
        "[[route]]\npath = \"/a\"\nto = \"a\"\n[[route]]\npath = \"/b\"\nto = \"b\"\n\
         [backends.a]\nservers = [\"{a}\"]\nsend_proxy = \"v1\"\n\
         [backends.b]\nservers = [\"{b}\"]\nsend_proxy = \"v1\""
    );
    let proxy = Conf::http(&[c]).tables(&groups).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..5 {
        for path in ["/a", "/", "/b", "/b", "/", "/a"] {
            let text = client.get(path).text();
            assert_eq!(text == "shared", path == "/", "{path}: {text}");
        }
    }
    assert_eq!(backends.each_ref().map(Backend::heads), [10, 10, 10]);
    // One is kept at a time: of a and b, the one used last.
    assert_eq!(backends.each_ref().map(Backend::connections), [6, 5, 1]);
    wait_until("one is left", || backends[0].open() + backends[1].open() == 1);
    drop(client);
    wait_until("that one ends with its client", || backends[0].open() + backends[1].open() == 0);
}

#[test]
fn version_2_goes_first_to_http_servers() {
    let backend = Backend::serve(|conn| {
        conn.wire.begin();
        let Ok(header) = conn.wire.take(28) else { return };
        let text: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
        while conn.request().is_some() {
            conn.send(&response(&text));
        }
    });
    let proxy = Conf::http(&[backend.addr]).group("send_proxy = \"v2\"").start();
    let mut client = Client::connect_from("127.0.0.3", proxy.addr());
    let text = client.get("/").text();
    let wanted = format!(
        "0d0a0d0a000d0a515549540a2111000c7f0000037f000001{:04x}{:04x}",
        local(&client).port(),
        proxy.addr().inet().port()
    );
    assert_eq!(text, wanted);
}

#[test]
fn a_header_goes_first_in_a_relay_too_and_again_to_the_next_server() {
    let refusing = Refusing::new();
    let backend = Backend::serve(|conn| {
        let line = take_line(conn);
        conn.wire.begin();
        let word = conn.wire.take(5).unwrap_or_default();
        conn.send(&[line.as_bytes(), b"|", &word].concat());
    });
    let proxy = Conf::tcp(&[refusing.addr, backend.addr]).group("send_proxy = \"v1\"").start();
    for _ in 0..4 {
        let mut client = Client::connect(proxy.addr());
        client.send("hello");
        client.shutdown_write();
        let (text, end) = client.read_to_end();
        let (own, port) = (local(&client).port(), proxy.addr().inet().port());
        let wanted = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {own} {port}|hello");
        assert_eq!((String::from_utf8(text).unwrap(), end), (wanted, End::Clean));
    }
}

#[test]
fn a_server_that_speaks_first_has_its_header_before_the_client_sends() {
    let backend = Backend::serve(|conn| {
        let line = take_line(conn);
        conn.send(format!("220 {line}\r\n").as_bytes());
        conn.hang();
    });
    let proxy = tcp_behind(&backend).group("send_proxy = \"v1\"").start();
    let mut client = Client::connect(proxy.addr());
    client.send(v2());
    client.wire.begin();
    let wanted = "220 PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n";
    assert_eq!(client.wire.take(wanted.len()).unwrap(), wanted.as_bytes());
}

#[test]
fn a_relay_goes_on_after_its_workers_death_without_a_second_header() {
    let backend = Backend::serve(|conn| {
        let line = take_line(conn);
        conn.send(format!("{line}\r\n").as_bytes());
        let mut output = conn.wire.stream.try_clone().unwrap();
        let _ = std::io::copy(&mut conn.wire.stream, &mut output);
        let _ = output.shutdown(std::net::Shutdown::Write);
    });
    let mut proxy = Conf::tcp(&[backend.addr]).group("send_proxy = \"v1\"").launch().workers(2).start();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        let line =
            format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", local(client).port(), proxy.addr().inet().port());
        client.wire.begin();
        assert_eq!(client.wire.take(line.len()).unwrap(), line.as_bytes());
    }
    replace_all(&mut proxy, 2);
    for client in &mut clients {
        client.send("after");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"after".to_vec(), End::Clean));
    }
    assert_eq!(backend.connections(), 4);
}

#[test]
fn unix_clients_are_announced_as_unknown() {
    let backend = v1_backend();
    let conf = Conf::http(&[backend.addr]).listen("bind = \"unix:{dir}/s\"").group("send_proxy = \"v1\"");
    let proxy = conf.start();
    let text = Client::connect(proxy.addr()).get("/").text();
    assert_eq!(text.split_once(' ').unwrap().1, "PROXY UNKNOWN");
    let backend = Backend::serve(|conn| {
        conn.wire.begin();
        let header = conn.wire.take(16).unwrap_or_default();
        if header == [SIGNATURE, &[0x20, 0x00, 0, 0]].concat() && conn.request().is_some() {
            conn.send(&response("local"));
        }
    });
    let conf = Conf::http(&[backend.addr]).listen("bind = \"unix:{dir}/s\"").group("send_proxy = \"v2\"");
    let proxy = conf.start();
    says(&Client::connect(proxy.addr()).get("/"), "local");
}

#[test]
fn ipv6_clients_are_announced_as_such() {
    let backend = v1_backend();
    let conf = Conf::http(&[backend.addr]).listen("bind = \"[::1]:0\"").group("send_proxy = \"v1\"");
    let proxy = conf.start();
    let mut client = Client::connect(proxy.addr());
    let text = client.get("/").text();
    let wanted = format!("PROXY TCP6 ::1 ::1 {} {}", local(&client).port(), proxy.addr().inet().port());
    assert_eq!(text.split_once(' ').unwrap().1, wanted);
}

#[test]
fn addresses_pass_through_a_chain_of_proxies() {
    for version in ["v1", "v2"] {
        let backend = mirror();
        let inner = behind(&backend).start();
        let middle = Conf::http(&[inner.addr().inet()]).listen("proxy_protocol = { from = [\"127.0.0.1\"] }");
        let middle = middle.group(&format!("send_proxy = \"{version}\"")).start();
        let outer = Conf::tcp(&[middle.addr().inet()]).group(&format!("send_proxy = \"{version}\"")).start();
        for ip in ["127.0.0.4", "127.0.0.5"] {
            let mut client = Client::connect_from(ip, outer.addr());
            for _ in 0..3 {
                says(&client.get("/"), ip);
            }
        }
    }
}

#[test]
fn a_connection_is_opened_for_each_retry_with_its_own_header() {
    let refusing = Refusing::new();
    let backend = v1_backend();
    let proxy = Conf::http(&[refusing.addr, backend.addr]).group("send_proxy = \"v1\"").start();
    for _ in 0..4 {
        let mut client = Client::connect(proxy.addr());
        let text = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").text();
        let port = local(&client).port().to_string();
        assert!(text.contains("PROXY TCP4") && text.split(' ').any(|word| word == port), "{text}");
    }
}

#[test]
fn kills_under_load_never_lose_or_mix_addresses() {
    let backend = mirror();
    let mut proxy = behind(&backend).launch().workers(2).start();
    let addr: Addr = proxy.addr().clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load: Vec<_> = (1..=6)
        .map(|number| {
            let (addr, stop) = (addr.clone(), std::sync::Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut done = 0;
                let ip = format!("203.0.{number}.1");
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let mut client = Client::connect(&addr);
                    client.send(format!("PROXY TCP4 {ip} 192.0.2.1 1 2\r\n{REQUEST}"));
                    says(&client.response(), &ip);
                    says(&client.get("/"), &ip);
                    done += 2;
                }
                done
            })
        })
        .collect();
    for round in 0..12 {
        let workers = proxy.wait_for_workers(2);
        let before = backend.heads();
        wait_until("requests flow", || backend.heads() > before + 20 || load.iter().any(|t| t.is_finished()));
        kill(workers[round % 2], Signal::SIGKILL).unwrap();
        wait_until("the worker is gone", || !alive(workers[round % 2]));
    }
    proxy.wait_for_workers(2);
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let done: usize = load.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(done > 100, "{done}");
}
