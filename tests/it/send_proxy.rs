//! PROXY headers sent to servers: what they say, and that each client has a connection of its own behind its header.

use std::net::SocketAddr;

use crate::common::backend::{Backend, Conn, Refusing, response};
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::processes::replace_all;
use crate::common::wait_until;
use crate::proxy_protocol::{SIGNATURE, behind, mirror, says, tcp_behind, v2};

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
