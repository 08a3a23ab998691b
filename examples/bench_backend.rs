//! The backend `make bench` puts behind every proxy: HTTP/1.1, one thread, one `read` and one `writev` a request.
//!
//! It owns nothing but the answer's size, taken from the request target: `GET /128` is answered with 128 bytes. It is
//! made to cost so little that the proxy in front of it is what is measured, and it never reads a request body and
//! checks no more of a request than it needs to find its end: do not put it anywhere but behind a benchmark.
//!
//! Usage: `bench_backend 127.0.0.1:0`; the first line on standard output says where it listens.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);
/// A request head that has no end within this many bytes closes the connection.
const HEAD_MAX: usize = 8 * 1024;
/// The largest answer, 1 GiB: a larger number in the target closes the connection.
const BODY_MAX: usize = 1 << 30;
/// Bodies are sent from one shared block of this many bytes, repeated.
const BLOCK: usize = 1 << 20;

/// One accepted connection: what was read and not yet answered, and what is left to send of the current answer.
struct Conn {
    stream: TcpStream,
    input: Vec<u8>,
    head: Vec<u8>,
    head_sent: usize,
    body_left: usize,
    close_after: bool,
    readable: bool,
    writable: bool,
    peer_closed: bool,
}

/// What a request asks for: the length of its head, the size of the answer and whether to close after it.
struct Request {
    head_len: usize,
    body: usize,
    close: bool,
}

/// Why a connection ends. All of them are silent: the load generator counts what it misses.
struct Closed;

impl Conn {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: Vec::with_capacity(HEAD_MAX),
            head: Vec::with_capacity(256),
            head_sent: 0,
            body_left: 0,
            close_after: false,
            readable: false,
            writable: true,
            peer_closed: false,
        }
    }

    fn note(&mut self, event: &Event) {
        self.readable |= event.is_readable();
        self.writable |= event.is_writable();
        self.peer_closed |= event.is_read_closed() || event.is_error();
    }

    /// Answers all that can be answered now.
    fn advance(&mut self, block: &[u8]) -> Result<(), Closed> {
        loop {
            self.send(block)?;
            if self.head_sent < self.head.len() || self.body_left > 0 {
                return Ok(());
            }
            if self.close_after {
                return Err(Closed);
            }
            if let Some(request) = parse(&self.input)? {
                self.input.drain(..request.head_len);
                self.answer(&request);
            } else if !self.fill()? {
                return Ok(());
            }
        }
    }

    /// Reads once; false when nothing was there. A short read means the socket is drained, so it saves a second call.
    fn fill(&mut self) -> Result<bool, Closed> {
        if !self.readable && !self.peer_closed {
            return Ok(false);
        }
        let mut buffer = [0_u8; HEAD_MAX];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(Closed),
            Ok(count) => {
                self.readable = count == buffer.len();
                self.input.extend_from_slice(&buffer[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(_) => Err(Closed),
        }
    }

    /// The date is fixed: it is there because a real backend sends one, and no proxy under test reads it.
    fn answer(&mut self, request: &Request) {
        self.head.clear();
        self.head_sent = 0;
        self.body_left = request.body;
        self.close_after = request.close;
        let connection = if request.close { "Connection: close\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/octet-stream\r\n\
             {connection}Content-Length: {}\r\n\r\n",
            request.body
        );
        self.head.extend_from_slice(head.as_bytes());
    }

    /// Sends head and body together until they are out or the socket is full.
    fn send(&mut self, block: &[u8]) -> Result<(), Closed> {
        while self.writable && (self.head_sent < self.head.len() || self.body_left > 0) {
            let head = &self.head[self.head_sent..];
            let body = &block[..self.body_left.min(block.len())];
            match self.stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
                Ok(count) => {
                    let of_head = count.min(head.len());
                    self.head_sent += of_head;
                    self.body_left -= count - of_head;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }
}

/// Finds one whole request head; `None` when more bytes are needed.
fn parse(input: &[u8]) -> Result<Option<Request>, Closed> {
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if input.len() >= HEAD_MAX { Err(Closed) } else { Ok(None) };
    };
    let head = &input[..end];
    let digits = head.strip_prefix(b"GET /").ok_or(Closed)?;
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let body = std::str::from_utf8(&digits[..count]).ok().and_then(|text| text.parse().ok()).ok_or(Closed)?;
    if body > BODY_MAX {
        return Err(Closed);
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let close = line.ends_with(b"HTTP/1.0")
        || head
            .split(|byte| *byte == b'\n')
            .any(|field| field.trim_ascii_end().eq_ignore_ascii_case(b"connection: close"));
    Ok(Some(Request { head_len: end + 4, body, close }))
}

/// Accepts until the queue is empty. A failed accept (descriptors, an aborted connection) is left for the next turn.
fn accept_all(listener: &TcpListener, poll: &Poll, conns: &mut Vec<Option<Conn>>, free: &mut Vec<usize>) {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let slot = free.pop().unwrap_or_else(|| {
                    conns.push(None);
                    conns.len() - 1
                });
                let interest = Interest::READABLE | Interest::WRITABLE;
                let ready = stream
                    .set_nodelay(true)
                    .and_then(|()| poll.registry().register(&mut stream, Token(slot), interest));
                match ready {
                    Ok(()) => conns[slot] = Some(Conn::new(stream)),
                    Err(_) => free.push(slot),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn serve(address: SocketAddr) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(address)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("listening on {}", listener.local_addr()?);
    let block = vec![b'x'; BLOCK];
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut free = Vec::new();
    let mut events = Events::with_capacity(256);
    loop {
        match poll.poll(&mut events, None) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        for event in &events {
            if event.token() == LISTENER {
                accept_all(&listener, &poll, &mut conns, &mut free);
                continue;
            }
            let slot = event.token().0;
            let Some(Some(conn)) = conns.get_mut(slot) else { continue };
            conn.note(event);
            if conn.advance(&block).is_err() {
                conns[slot] = None;
                free.push(slot);
            }
        }
    }
}

fn main() -> ExitCode {
    let Some(address) = std::env::args().nth(1).and_then(|text| text.parse().ok()) else {
        eprintln!("usage: bench_backend ADDRESS:PORT (port 0 = any free port)");
        return ExitCode::from(2);
    };
    match serve(address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_backend: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}
