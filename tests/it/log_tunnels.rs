//! The access log's lines of relays and tunnels: one at the end of each, with every byte, whichever workers served it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::Value;

use crate::common::DEADLINE;
use crate::common::backend::Backend;
use crate::common::client::Client;
use crate::common::conf::Conf;
use crate::common::processes::replace_all;
use crate::common::proxy::Proxy;
use crate::common::streams::upgrading;
use crate::forward::{connect, open};
use crate::logs::{json, logging};

const LOG: &str = "[access_log]\nto = \"{dir}/access.log\"\nformat = \"json\"";

/// Sends a text through an echo and has it back.
fn echo(mut stream: &TcpStream, text: &[u8]) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

/// Closes the sending side and waits for the other end to follow.
fn end(mut stream: TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
}

/// A tunnel to an echo, asked for with a few fields.
fn tunnel(proxy: &Proxy) -> TcpStream {
    let mut client = Client::connect(proxy.addr());
    let response = client.ask(
        "GET /chat?room=1 HTTP/1.1\r\nHost: chat.test\r\nUser-Agent: ua\r\nReferer: http://r/\r\n\
         Connection: Upgrade\r\nUpgrade: echo\r\n\r\n",
    );
    assert_eq!(response.status, 101);
    client.wire.stream
}

fn assert_bytes(line: &Value, count: usize) {
    assert_eq!([&line["bytes_in"], &line["bytes_out"]], [&Value::from(count), &Value::from(count)], "{line}");
}

#[test]
fn a_tunnel_after_an_upgrade_is_logged_at_its_end_with_its_bytes() {
    let backend = upgrading();
    let proxy = logging("json", &[backend.addr]).start();
    let stream = tunnel(&proxy);
    echo(&stream, b"hello");
    echo(&stream, &[7; 100_000]);
    end(stream);
    let line = json(&proxy, 1).pop().unwrap();
    assert_bytes(&line, 100_005);
    for (name, value) in [
        ("mode", "http"),
        ("method", "GET"),
        ("target", "/chat?room=1"),
        ("version", "HTTP/1.1"),
        ("host", "chat.test"),
        ("user_agent", "ua"),
        ("referer", "http://r/"),
        ("backend", &backend.addr.to_string()),
    ] {
        assert_eq!(line[name], value, "{line}");
    }
    assert_eq!((&line["status"], &line["reason"]), (&101.into(), &Value::Null));
    for name in ["connect_us", "first_byte_us", "total_us"] {
        assert!(line[name].is_u64(), "{name}: {line}");
    }
}

#[test]
fn a_tunnel_that_another_worker_went_on_with_is_logged_with_what_is_known_there() {
    let backend = upgrading();
    let mut proxy = logging("json", &[backend.addr]).launch().workers(2).start();
    let stream = tunnel(&proxy);
    echo(&stream, b"before");
    replace_all(&mut proxy, 2);
    echo(&stream, b"afterwards");
    end(stream);
    let line = json(&proxy, 1).pop().unwrap();
    assert_bytes(&line, 10);
    assert_eq!((&line["mode"], &line["status"]), (&"http".into(), &101.into()));
    assert_eq!(line["backend"], backend.addr.to_string());
    for name in ["method", "target", "connect_us", "total_us"] {
        assert_eq!(line[name], Value::Null, "{name}: {line}");
    }
}

#[test]
fn a_tunnel_that_is_handed_over_is_logged_by_both_workers() {
    let backend = upgrading();
    let mut proxy = logging("json", &[backend.addr]).launch().workers(2).start();
    let stream = tunnel(&proxy);
    echo(&stream, b"before");
    proxy.upgrade();
    echo(&stream, b"afterwards");
    end(stream);
    let lines = json(&proxy, 2);
    assert_bytes(&lines[0], 6);
    assert_eq!(lines[0]["target"], "/chat?room=1");
    assert_eq!(lines[0]["reason"], "given to another worker, which logs what follows");
    assert_bytes(&lines[1], 10);
    assert_eq!((&lines[1]["target"], &lines[1]["reason"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_tcp_relay_is_logged_once_with_all_its_bytes_whoever_served_it() {
    let backend = Backend::tcp_echo();
    let mut proxy = Conf::tcp(&[backend.addr]).tables(LOG).launch().workers(2).start();
    let stream = TcpStream::connect(proxy.addr().inet()).unwrap();
    echo(&stream, &[1; 70_000]);
    replace_all(&mut proxy, 2);
    echo(&stream, b"one");
    replace_all(&mut proxy, 2);
    echo(&stream, b"two");
    proxy.upgrade();
    echo(&stream, b"three");
    end(stream);
    let line = json(&proxy, 1).pop().unwrap();
    assert_bytes(&line, 70_011);
    assert_eq!((&line["mode"], &line["total_us"], &line["connect_us"]), (&"tcp".into(), &Value::Null, &Value::Null));
}

#[test]
fn what_agrees_to_a_connect_tunnel_is_not_among_its_bytes() {
    let backend = Backend::tcp_echo();
    let proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    echo(&client.wire.stream, b"hello");
    end(client.wire.stream);
    let line = json(&proxy, 1).pop().unwrap();
    assert_bytes(&line, 5);
    assert_eq!((&line["method"], &line["target"]), (&"CONNECT".into(), &backend.addr.to_string().into()));
}

#[test]
fn a_connect_tunnel_that_is_handed_over_is_logged_by_both_workers() {
    let backend = Backend::tcp_echo();
    let mut proxy = open().start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
    echo(&client.wire.stream, b"before");
    proxy.upgrade();
    echo(&client.wire.stream, b"afterwards");
    end(client.wire.stream);
    let lines = json(&proxy, 2);
    assert_bytes(&lines[0], 6);
    assert_bytes(&lines[1], 10);
    for line in &lines {
        assert_eq!((&line["rule"], &line["target"]), (&"t:1".into(), &backend.addr.to_string().into()));
        assert!(line["total_us"].is_u64(), "each knows when it began: {line}");
    }
}
