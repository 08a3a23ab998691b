//! Streams of the pattern through relays and tunnels, and what is at their ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use super::backend::{Backend, Conn};
use super::client::Client;
use super::proxy::Proxy;
use super::{DEADLINE, PIECE, check_pattern, pattern, wait_until};

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

/// Connections to something that echoes, which send and receive the pattern at once.
pub struct Busy {
    length: u64,
    counts: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// Begins `count` of them, with `length` bytes each.
    pub fn start(addr: SocketAddr, count: usize, length: u64) -> Busy {
        let counts: Vec<Arc<AtomicU64>> = (0..count).map(|_| Arc::default()).collect();
        let start = |count: &Arc<AtomicU64>| {
            let (stream, count) = (TcpStream::connect(addr).unwrap(), Arc::clone(count));
            thread::spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| send(&stream, length, &AtomicU64::new(0)));
                    receive(&stream, &count);
                });
            })
        };
        let threads = counts.iter().map(start).collect();
        Busy { length, counts, threads }
    }

    /// Waits until each has had so many quarters of its bytes back.
    #[track_caller]
    pub fn wait_for_quarters(&self, quarters: u64) {
        let wanted = self.length * quarters / 4;
        wait_until("bytes flow", || self.counts.iter().all(|count| count.load(Ordering::SeqCst) >= wanted));
    }

    /// Waits for their ends: each has had all its bytes back.
    #[track_caller]
    pub fn finish(self) {
        for thread in self.threads {
            thread.join().unwrap();
        }
        assert!(self.counts.iter().all(|count| count.load(Ordering::SeqCst) == self.length));
    }
}

/// Reads to the end, and sends all of it back in the opposite order once its gate is open.
pub fn reversing() -> Backend {
    Backend::serve(|conn: &mut Conn| {
        let mut all = Vec::new();
        conn.wire.stream.read_to_end(&mut all).unwrap();
        conn.gate().pass();
        all.reverse();
        conn.send(&all);
    })
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
