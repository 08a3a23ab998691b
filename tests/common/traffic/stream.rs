//! Bytes both ways, each direction ended by itself: through a TCP listener, or after an upgrade.
//!
//! The client begins with a header: the stream's number, how many bytes go up and down, and whether the server waits
//! for the end of the one before it begins with the other. Each side checks every byte, and that the end comes
//! neither too early nor too late.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::server::{Ledger, Order, What};
use super::{Outcome, Peer, Seen, data, is_data};
use crate::common::client::{Client, describe};
use crate::common::h1::{Broken, Wire};
use crate::common::proxy::Addr;
use crate::common::rng::Rng;
use crate::common::{DEADLINE, PIECE, dawdle, wait_for};

pub(super) const HEADER: usize = 32;

/// What goes up belongs to the stream's number, what comes down to this one.
pub(super) fn down_id(id: u64) -> u64 {
    id.wrapping_add(500_000_009)
}

/// More bytes than the sockets between two programs hold.
const LONG: u64 = 6_000_000;

/// Sends `length` bytes of number `id`, with pauses unless they are many, and ends this direction.
pub(super) fn write(mut stream: &TcpStream, id: u64, length: u64, rng: &mut Rng) -> Result<(), String> {
    let bytes = data(id, length as usize);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let most = if length < LONG && rng.once_in(2) { 200 } else { PIECE as u64 };
        let (piece, after) = rest.split_at((1 + rng.below(most) as usize).min(rest.len()));
        stream.write_all(piece).map_err(|error| format!("sending, {} bytes to go: {error}", rest.len()))?;
        rest = after;
        if length < LONG && rng.once_in(4) {
            dawdle(rng.pause(3000));
        }
    }
    stream.shutdown(Shutdown::Write).map_err(|error| format!("ending: {error}"))
}

/// Reads to the end, which must come after exactly `length` bytes of number `id`, of which `early` have been read.
///
/// It may stop reading for a while, so that with a long stream the sockets fill up, and the pipe between them.
pub(super) fn read(mut stream: &TcpStream, early: &[u8], id: u64, length: u64, rng: &mut Rng) -> Result<(), String> {
    let mut buffer = vec![0; PIECE];
    let mut stall = rng.once_in(2).then(|| rng.below(length / 8 + 1));
    let mut at = 0;
    let mut check = |bytes: &[u8]| {
        if !is_data(id, at, bytes) {
            return Err(format!("wrong bytes between {at} and {} of {length}", at + bytes.len() as u64));
        }
        at += bytes.len() as u64;
        if at > length { Err(format!("{at} bytes, not {length}")) } else { Ok(at) }
    };
    let mut read = check(early)?;
    loop {
        if stall.is_some_and(|at| read >= at) {
            stall = None;
            dawdle(Duration::from_millis(20 + rng.below(150)));
        }
        match stream.read(&mut buffer) {
            Ok(0) => {
                let at = check(&[])?;
                return if at == length { Ok(()) } else { Err(format!("the end after {at} bytes of {length}")) };
            }
            Ok(count) => read = check(&buffer[..count])?,
            Err(error) => return Err(format!("after {} bytes of {length}: {error}", check(&[])?)),
        }
    }
}

/// The server's side.
pub fn serve(wire: &mut Wire, ledger: &Ledger) {
    let header = match wire.take(HEADER) {
        Ok(header) => header,
        // A worker died between connecting and relaying, or before the client had the 101.
        Err(Broken::Cut(rest) | Broken::Reset(rest)) if rest.is_empty() => return,
        Err(Broken::End) => return,
        Err(broken) => panic!("a stream's header: {}", describe(&broken)),
    };
    let number = |at: usize| u64::from_be_bytes(header[at * 8..at * 8 + 8].try_into().unwrap());
    let (id, up, down, waits) = (number(0), number(1), number(2), number(3) == 1);
    let early = std::mem::take(&mut wire.buffer);
    let stream = &wire.stream;
    let _ = stream.set_read_timeout(Some(DEADLINE));
    let mut rng = Rng::new(id);
    let result = if waits {
        read(stream, &early, id, up, &mut rng).and_then(|()| write(stream, down_id(id), down, &mut rng))
    } else {
        let mut other = Rng::new(rng.next());
        thread::scope(|scope| {
            let writer = scope.spawn(|| write(stream, down_id(id), down, &mut other));
            let result = read(stream, &early, id, up, &mut rng);
            writer.join().unwrap().and(result)
        })
    };
    ledger.stream_ended(id, result.map_err(|error| format!("at the server: {error}")));
}

/// The client's side of one whole stream on `client`.
fn turn(client: &mut Client, ledger: &Ledger, rng: &mut Rng) -> Outcome {
    let id = ledger.id();
    let mut length = || match rng.below(10) {
        0..2 => rng.below(3),
        2..4 => rng.below(3000),
        4..7 => rng.below(200_000),
        7..9 => rng.below(2_000_000),
        _ => LONG + rng.below(LONG / 2),
    };
    let (up, down) = (length(), length());
    let mode = rng.below(3);
    let early = std::mem::take(&mut client.wire.buffer);
    let stream = &client.wire.stream;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let header: Vec<u8> = [id, up, down, u64::from(mode == 0)].iter().flat_map(|n| n.to_be_bytes()).collect();
    let mut send = stream;
    send.write_all(&header).map_err(|error| format!("sending the header: {error}"))?;
    let mut other = Rng::new(rng.next());
    let result = match mode {
        // The server waits for our end before it begins.
        0 => write(stream, id, up, &mut other).and_then(|()| read(stream, &early, down_id(id), down, rng)),
        // We wait for the server's end before we begin.
        1 => read(stream, &early, down_id(id), down, rng).and_then(|()| write(stream, id, up, &mut other)),
        _ => thread::scope(|scope| {
            let writer = scope.spawn(|| write(stream, id, up, &mut other));
            let result = read(stream, &early, down_id(id), down, rng);
            writer.join().unwrap().and(result)
        }),
    };
    let name = format!("stream {id} (mode {mode}, {up} bytes up, {down} down)");
    result.map_err(|error| format!("{name}: {error}"))?;
    let at_server = wait_for(&format!("{name} ends at the server"), || ledger.stream(id));
    ledger.forget(id);
    at_server.map_err(|error| format!("{name}: {error}")).map(|()| Seen::Whole)
}

/// A new relay for each stream.
#[derive(Debug)]
pub struct Relay {
    pub addr: Addr,
    pub ledger: Arc<Ledger>,
}

impl Peer for Relay {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let mut client = Client::connect(&self.addr);
        dawdle(rng.pause(2000));
        turn(&mut client, &self.ledger, rng)
    }
}

/// A new connection, upgraded, for each stream.
#[derive(Debug)]
pub struct Tunnel {
    pub addr: Addr,
    pub ledger: Arc<Ledger>,
}

impl Peer for Tunnel {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let mut client = Client::connect(&self.addr);
        let order = Order { kind: What::Stream, id: self.ledger.id(), delay: rng.pause(3000), size: 0 };
        let target = order.target();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: soak\r\n\r\n"));
        match client.try_response() {
            Ok(response) if response.status == 101 => {}
            Ok(response) if response.status == 502 => return Ok(Seen::BadGateway),
            Ok(response) => return Err(format!("{target}: {response:?}")),
            Err(broken) => return Err(format!("{target}: {}", describe(&broken))),
        }
        turn(&mut client, &self.ledger, rng)
    }
}

/// A new connection to a target that the client names, for each stream: by CONNECT, SOCKS4, SOCKS5, or a line of JSON.
#[derive(Debug)]
pub struct Named {
    pub addr: Addr,
    pub target: SocketAddr,
    pub ledger: Arc<Ledger>,
}

impl Peer for Named {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let mut client = Client::connect(&self.addr);
        let SocketAddr::V4(target) = self.target else { panic!("{}", self.target) };
        let (request, wanted) = match rng.below(4) {
            0 => (format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").into_bytes(), "HTTP/1.1 200 "),
            1 => {
                let (port, ip) = (target.port().to_be_bytes(), target.ip().octets());
                ([&[4, 1][..], &port, &ip, &[0]].concat(), "\0Z\0\0\0\0\0\0")
            }
            2 => {
                // A question and its answer come before the target.
                client.send([5, 1, 0]);
                client.wire.begin();
                match client.wire.take(2) {
                    Ok(method) if method == [5, 0] => {}
                    Ok(method) if method == b"HT" => return Ok(Seen::BadGateway),
                    other => return Err(format!("the method: {other:?}")),
                }
                dawdle(rng.pause(2000));
                let (port, ip) = (target.port().to_be_bytes(), target.ip().octets());
                ([&[5, 1, 0, 1][..], &ip, &port].concat(), "\u{5}\0\0\u{1}")
            }
            _ => (format!("{{\"target\":\"{target}\"}}\n").into_bytes(), "{\"ok\":true,"),
        };
        // In pieces, so that workers die within it too.
        let (first, rest) = request.split_at(rng.below(request.len() as u64) as usize);
        client.send(first);
        dawdle(rng.pause(2000));
        client.send(rest);
        client.wire.begin();
        let mut answer = Vec::new();
        let whole = |answer: &[u8]| match answer.first() {
            Some(0) => answer.len() == 8,
            Some(5) => answer.len() == 10,
            Some(b'{') => answer.ends_with(b"\n"),
            _ => answer.ends_with(b"\r\n\r\n"),
        };
        while !whole(&answer) {
            match client.wire.take(1) {
                Ok(byte) => answer.extend(byte),
                Err(broken) => return Err(format!("{wanted:?}: {}", describe(&broken))),
            }
        }
        if answer.starts_with(b"HTTP/1.1 502 ") {
            return Ok(Seen::BadGateway);
        }
        if !answer.starts_with(wanted.as_bytes()) {
            return Err(format!("{wanted:?}: {}", String::from_utf8_lossy(&answer)));
        }
        turn(&mut client, &self.ledger, rng)
    }
}
