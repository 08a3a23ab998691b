//! The floor `make bench` compares with: a relay in one thread, one epoll loop, that copies bytes without looking at
//! them. What a proxy costs beyond it is what it does for the traffic.
//!
//! It owns one connection to the backend for each client's. It sets no time limits, counts nothing and survives
//! nothing: do not put it anywhere but into a benchmark.
//!
//! Usage: `bench_relay 127.0.0.1:8080 127.0.0.1:9001`, where to listen and where to connect to.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};

const LISTENER: Token = Token(usize::MAX);
const BUFFER_BYTES: usize = 64 * 1024;
const EVENTS: usize = 256;

/// One end of a relay, and the bytes read from the other end that it has not taken yet.
struct End {
    stream: TcpStream,
    pending: Vec<u8>,
    readable: bool,
    ended: bool,
}

impl End {
    fn new(stream: TcpStream, readable: bool) -> End {
        End { stream, pending: Vec::new(), readable, ended: false }
    }

    fn flush(&mut self) -> io::Result<bool> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Moves what can be moved from one end to the other.
fn pump(from: &mut End, to: &mut End, buffer: &mut [u8]) -> io::Result<()> {
    while to.flush()? && from.readable && !from.ended {
        match from.stream.read(buffer) {
            Ok(0) => {
                from.ended = true;
                to.stream.shutdown(std::net::Shutdown::Write)?;
            }
            Ok(n) => {
                from.readable = n == buffer.len();
                match to.stream.write(&buffer[..n]) {
                    Ok(written) => to.pending.extend_from_slice(&buffer[written..n]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        to.pending.extend_from_slice(&buffer[..n])
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => from.readable = false,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Relays {
    /// Both ends of each: the client's, the backend's. Ends have the tokens 2n and 2n + 1.
    pairs: Vec<Option<(End, End)>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

impl Relays {
    fn accept(&mut self, listener: &TcpListener, backend: SocketAddr, registry: &Registry) -> io::Result<()> {
        loop {
            let (mut client, _) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut server = TcpStream::connect(backend)?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.pairs.push(None);
                self.pairs.len() - 1
            });
            registry.register(&mut client, Token(2 * index), Interest::READABLE | Interest::WRITABLE)?;
            registry.register(&mut server, Token(2 * index + 1), Interest::READABLE | Interest::WRITABLE)?;
            self.pairs[index] = Some((End::new(client, true), End::new(server, false)));
        }
    }

    fn on_event(&mut self, token: usize, readable: bool) {
        let index = token / 2;
        let Some((client, server)) = self.pairs.get_mut(index).and_then(Option::as_mut) else { return };
        let end = if token.is_multiple_of(2) { &mut *client } else { &mut *server };
        end.readable |= readable;
        let result = pump(client, server, &mut self.buffer).and_then(|()| pump(server, client, &mut self.buffer));
        if result.is_err() || client.ended && server.ended {
            self.pairs[index] = None;
            self.free.push(index);
        }
    }
}

fn run(listen: SocketAddr, backend: SocketAddr) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(listen)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut relays = Relays { pairs: Vec::new(), free: Vec::new(), buffer: vec![0; BUFFER_BYTES] };
    let mut events = Events::with_capacity(EVENTS);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            match event.token() {
                LISTENER => relays.accept(&listener, backend, poll.registry())?,
                Token(token) => relays.on_event(token, event.is_readable() || event.is_read_closed()),
            }
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let &[listen, backend] = arguments.as_slice() else {
        eprintln!("bench_relay: give two addresses: bench_relay 127.0.0.1:8080 127.0.0.1:9001");
        return ExitCode::FAILURE;
    };
    match run(listen, backend) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_relay: {listen} to {backend}: {error}");
            ExitCode::FAILURE
        }
    }
}
