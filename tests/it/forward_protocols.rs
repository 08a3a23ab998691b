//! SOCKS and the dynamic address exchange on forward listeners, byte for byte.

#[allow(dead_code, reason = "it is a program of its own, of which a test needs parts")]
#[path = "../../examples/dynamic_client.rs"]
mod dynamic_client;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};

use crate::common::backend::{Backend, Refusing, Unanswering};
use crate::common::proxy::{Launch, Proxy};
use crate::common::{DEADLINE, pattern_bytes, wait_until};
use crate::forward::{LOOPBACK, guarded, launch, log, open, read_exactly, read_line, socks5_request, stream};

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
