//! Streams of the pattern through relays and tunnels, and what is at their ends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use super::backend::{Backend, Conn};
use super::client::Client;
use super::proxy::Proxy;
use super::{DEADLINE, PIECE, check_pattern, pattern};

/// Sends the pattern's first `length` bytes and counts them.
pub fn send(mut stream: &TcpStream, length: u64, count: &AtomicU64) {
    let mut at = 0;
    while at < length {
        let piece = pattern(at, usize::try_from(length - at).unwrap().min(PIECE));
        stream.write_all(piece).unwrap();
        at += piece.len() as u64;
        count.store(at, Ordering::SeqCst);
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads the pattern to its end and counts it.
pub fn receive(mut stream: &TcpStream, count: &AtomicU64) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut at, mut buffer) = (0, vec![0; PIECE]);
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return,
            length => {
                check_pattern(at, &buffer[..length]);
                at += length as u64;
                count.store(at, Ordering::SeqCst);
            }
        }
    }
}

/// Agrees to any upgrade and echoes.
pub fn upgrading() -> Backend {
    Backend::serve(|conn: &mut Conn| {
        if conn.request().is_some() {
            conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
            let mut output = conn.wire.stream.try_clone().unwrap();
            let early = std::mem::take(&mut conn.wire.buffer);
            let _ = output.write_all(&early);
            let _ = std::io::copy(&mut conn.wire.stream, &mut output);
            let _ = output.shutdown(Shutdown::Write);
        }
    })
}

/// Begins a tunnel.
pub fn tunnel(proxy: &Proxy) -> TcpStream {
    let mut client = Client::connect(proxy.addr());
    let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(response.status, 101);
    assert!(client.wire.buffer.is_empty());
    client.wire.stream
}
