//! Tunnels after 101, and everything that must not become one (RFC 9110 section 7.8).

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use tungstenite::Message;

use crate::common::backend::{Act, Backend, Conn, response};
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::proxy::{Addr, Launch};
use crate::common::{DEADLINE, check_pattern, pattern_bytes, wait_until};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

/// Echoes what the connection brings, then passes the half-close on.
fn echo(conn: &mut Conn) {
    let early = std::mem::take(&mut conn.wire.buffer);
    conn.send(&early);
    let mut output = conn.wire.stream.try_clone().unwrap();
    let _ = std::io::copy(&mut conn.wire.stream, &mut output);
    let _ = output.shutdown(Shutdown::Write);
}

/// Agrees to `Upgrade: echo`, refuses everything else.
fn echo_server() -> Backend {
    Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            if request.fields.lists("upgrade", "echo") {
                assert!(request.fields.lists("connection", "upgrade"));
                conn.send(AGREE.as_bytes());
                return echo(conn);
            }
            conn.send(&response("no upgrade"));
        }
    })
}

fn websocket_server() -> Backend {
    Backend::serve(|conn| {
        let stream = conn.wire.stream.try_clone().unwrap();
        let Ok(mut socket) = tungstenite::accept(stream) else { return };
        while let Ok(message) = socket.read() {
            if message.is_text() || message.is_binary() {
                socket.send(message).unwrap();
            }
        }
    })
}

fn websocket(addr: &Addr) -> tungstenite::WebSocket<TcpStream> {
    let stream = TcpStream::connect(addr.inet()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    tungstenite::client(format!("ws://{addr}/chat"), stream).unwrap().0
}

#[test]
fn websocket_echoes() {
    let backend = websocket_server();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut socket = websocket(proxy.addr());
    for text in ["hello", "", "h\u{e9}llo w\u{f6}rld"] {
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(text));
    }
    for size in [1, 125, 126, 65_535, 65_536, 1_000_000] {
        let data = pattern_bytes(size);
        socket.send(Message::binary(data.clone())).unwrap();
        assert_eq!(socket.read().unwrap().into_data(), data);
    }
    socket.send(Message::Ping(vec![1, 2, 3].into())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong(vec![1, 2, 3].into()));
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    wait_until("the tunnel ends on both sides", || backend.open() == 0);
}

#[test]
fn many_websockets_at_once() {
    let backend = websocket_server();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut sockets: Vec<_> = (0..40).map(|_| websocket(proxy.addr())).collect();
    for round in 0..5 {
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.send(Message::text(format!("{number}.{round}"))).unwrap();
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            assert_eq!(socket.read().unwrap(), Message::text(format!("{number}.{round}")));
        }
    }
}

#[test]
fn tunnel_is_byte_exact_and_passes_half_closes() {
    let backend = echo_server();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(ASK);
    assert_eq!(response.status, 101);
    assert_eq!(response.fields.get("upgrade"), Some("echo"));
    assert!(response.fields.lists("connection", "upgrade"), "{response:?}");
    let data = pattern_bytes(3_000_000);
    let mut sender = client.wire.stream.try_clone().unwrap();
    let sent = data.clone();
    let writer = thread::spawn(move || {
        sender.write_all(&sent).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let (got, end) = client.read_to_end();
    writer.join().unwrap();
    assert_eq!((got.len(), end), (data.len(), End::Clean));
    check_pattern(0, &got);
}

#[test]
fn bytes_sent_before_101_reach_the_tunnel_after_it() {
    let backend = Backend::serve(|conn| {
        if conn.request().is_some() {
            // Nothing may follow the request before it was agreed to.
            conn.gate().pass();
            assert!(conn.wire.buffer.is_empty(), "bytes came before 101");
            conn.wire.stream.set_nonblocking(true).unwrap();
            let early = conn.wire.stream.read(&mut [0; 1]);
            assert!(early.is_err(), "bytes came before 101");
            conn.wire.stream.set_nonblocking(false).unwrap();
            conn.send(AGREE.as_bytes());
            echo(conn);
        }
    });
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send([ASK, "early bytes"].concat());
    wait_until("the request arrives", || backend.requests().len() == 1);
    backend.gate().open();
    assert_eq!(client.response().status, 101);
    client.send(" and late ones");
    client.shutdown_write();
    assert_eq!(String::from_utf8_lossy(&client.read_to_end().0), "early bytes and late ones");
}

#[test]
fn bytes_of_the_backend_with_its_101_are_not_lost() {
    let backend =
        Backend::scripted(vec![Act::Request, Act::send([AGREE, "greeting"].concat()), Act::HalfClose, Act::Hang]);
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask(ASK).status, 101);
    assert_eq!(client.wire.take(8).unwrap(), b"greeting");
    client.shutdown_write();
    assert_eq!(client.end(), End::Clean);
}

#[test]
fn refused_upgrade_stays_http() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    // What follows the refused request is the next request, not the tunnel's first bytes.
    client.send([ASK, "GET /next HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
    for target in ["/chat", "/next"] {
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{target}");
        assert!(!response.fields.has("upgrade"), "{response:?}");
    }
    let seen: Vec<String> = backend.requests().iter().map(|request| request.target.clone()).collect();
    assert_eq!(seen, ["/chat", "/next"]);
}

#[test]
fn refused_upgrade_with_a_status_of_its_own() {
    let backend = Backend::fixed(
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nno",
    );
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(ASK);
    assert_eq!((response.status, response.text().as_str()), (426, "no"));
    client.assert_as_announced(&response);
}

#[test]
fn upgrade_to_another_protocol_than_asked_is_502() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let backend = Backend::scripted(vec![Act::Request, Act::send(answer), Act::Hang]);
        let proxy = Launch::http(&[backend.addr]).start();
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(ASK);
        assert_eq!(response.status, 502, "{answer:?}");
        client.read_to_end_if(response.closes());
    }
}

impl Client {
    #[track_caller]
    fn read_to_end_if(&mut self, closes: bool) {
        if closes {
            self.end();
        }
    }
}

#[test]
fn upgrade_without_connection_is_no_upgrade() {
    // RFC 9110 section 7.8: the option must be named, so that a middleman who does not know it drops it.
    let backend = echo_server();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\n\r\n");
    assert_eq!((response.status, response.text().as_str()), (200, "no upgrade"));
    assert!(!backend.only_request().fields.has("upgrade"));
}

#[test]
fn upgrade_from_http_1_0_is_ignored() {
    // RFC 9110 section 7.8.
    let backend = echo_server();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(ASK.replace("HTTP/1.1", "HTTP/1.0"));
    assert_eq!((response.status, response.text().as_str()), (200, "no upgrade"));
}

#[test]
fn h2c_is_never_tunnelled() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: H2C\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
    ] {
        let mut client = Client::connect(proxy.addr());
        let response = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        if response.status == 400 {
            continue;
        }
        assert_eq!(response.status, 200);
        let request = backend.take_requests().pop().unwrap();
        assert!(!request.fields.lists("upgrade", "h2c"), "{request:?}");
        assert!(!request.fields.has("http2-settings"), "{request:?}");
        client.assert_usable();
        backend.take_requests();
    }
}

#[test]
fn h2c_agreed_by_the_backend_is_502() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
        Act::Hang,
    ]);
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n");
    assert!([400, 502].contains(&response.status), "{response:?}");
}

#[test]
fn upgrade_with_a_body_is_sound() {
    let backend = echo_server();
    let proxy = Launch::http(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    let response = client
        .ask("POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\nContent-Length: 5\r\n\r\nhello");
    if response.status == 101 {
        assert_eq!(backend.only_request().body, b"hello");
        client.send("tunnel");
        client.shutdown_write();
        assert_eq!(client.read_to_end().0, b"tunnel");
    } else {
        client.assert_as_announced(&response);
    }
}

#[test]
fn idle_tunnel_is_closed_after_its_time() {
    let backend = echo_server();
    let proxy = Conf::http(&[backend.addr]).tables("[timeouts]\ntunnel = \"400ms\"").start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask(ASK).status, 101);
    client.send("x");
    assert_eq!(client.wire.take(1).unwrap(), b"x");
    let start = std::time::Instant::now();
    client.end();
    assert!(start.elapsed() >= std::time::Duration::from_millis(300), "{:?}", start.elapsed());
    wait_until("the backend's side is closed too", || backend.open() == 0);
}
