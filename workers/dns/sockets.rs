//! The resolver's sockets: a new one for each question, connected to its server, so that the kernel chooses a port
//! nobody can guess and drops what comes from anywhere else (RFC 5452 section 9).
//!
//! It decides nothing: see [`Resolver`]. There are at most two sockets for each lookup under way.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use ipc::snapshot::Dns;
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;

use crate::dns::lookup::{Answer, DnsError, Lookup};
use crate::dns::resolver::{Command, Query, Resolver};
use crate::dns::servers::Change;
use crate::forward::auth::line::Source;
use crate::room::is_shortage;
use crate::slab::{Key, Slab};

/// Longer datagrams than we say we take are cut off, and then are no answers.
const DATAGRAM_MAX: usize = 4096;
/// A message over TCP, its length in front (RFC 1035 section 4.2.2).
const STREAM_MAX: usize = 2 + 65_535;

/// A socket for one question.
#[derive(Debug)]
pub struct Wire {
    query: Key<Query>,
    io: Io,
}

#[derive(Debug)]
enum Io {
    Udp(UdpSocket),
    Tcp { stream: TcpStream, output: Vec<u8>, input: Vec<u8> },
}

/// See the module's description. `W` says who waits for an answer.
#[derive(Debug)]
pub struct Resolving<W> {
    resolver: Resolver<W>,
    wires: Slab<Wire>,
    by_query: HashMap<Key<Query>, Key<Wire>>,
    registry: Registry,
    token: fn(Key<Wire>) -> Token,
    buffer: Box<[u8]>,
}

impl<W> Resolving<W> {
    /// A resolver whose sockets are registered with `registry` under what `token` gives.
    #[must_use]
    pub fn new(settings: Dns, registry: Registry, token: fn(Key<Wire>) -> Token) -> Resolving<W> {
        Resolving {
            resolver: Resolver::new(settings),
            wires: Slab::new(),
            by_query: HashMap::new(),
            registry,
            token,
            buffer: vec![0; DATAGRAM_MAX].into_boxed_slice(),
        }
    }

    /// See [`Resolver::lookup_for`].
    pub fn lookup_for(&mut self, name: &str, waiter: W, by: Source, now_ms: u64) -> Lookup {
        self.resolver.lookup_for(name, waiter, by, now_ms)
    }

    /// The core.
    pub fn resolver(&mut self) -> &mut Resolver<W> {
        &mut self.resolver
    }

    /// See [`Resolver::next_finished`].
    pub fn next_finished(&mut self) -> Option<(W, Result<Rc<Answer>, DnsError>)> {
        self.resolver.next_finished()
    }

    /// See [`Resolver::next_change`].
    pub fn next_change(&mut self) -> Option<Change> {
        self.resolver.next_change()
    }

    /// See [`Resolver::next_deadline`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.resolver.next_deadline()
    }

    /// Descriptors in use.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.wires.len()
    }

    /// Does what is due.
    pub fn on_time(&mut self, now_ms: u64) {
        self.resolver.on_time(now_ms);
        self.flush(now_ms);
    }

    /// Sends what the resolver wants sent. To be called once after lookups were begun, at the end of the turn.
    /// Bounded: what fails at once uses up one of its question's tries.
    pub fn flush(&mut self, now_ms: u64) {
        while let Some(command) = self.resolver.next_command() {
            match command {
                Command::Close(query) => self.close(query),
                Command::Send { query, server, tcp, message } => {
                    self.close(query);
                    match self.send(query, server, tcp, &message) {
                        Ok(()) => {}
                        Err(error) if Errno::from_io_error(&error).is_some_and(is_shortage) => {
                            self.resolver.on_unsent(query);
                        }
                        Err(_) => self.resolver.on_failed(query, now_ms),
                    }
                }
            }
        }
    }

    /// Something happened on a socket.
    pub fn on_event(&mut self, key: Key<Wire>, now_ms: u64) {
        // Until nothing is left, since no other event will come; the resolver ends it when too much is no answer.
        while let Some(wire) = self.wires.get_mut(key) {
            let query = wire.query;
            match wire.receive(&mut self.buffer) {
                Ok(message) => self.resolver.on_message(query, message, now_ms),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.resolver.on_failed(query, now_ms),
            }
            self.flush(now_ms);
        }
    }

    fn send(&mut self, query: Key<Query>, server: SocketAddr, tcp: bool, message: &[u8]) -> io::Result<()> {
        let io = if tcp {
            let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut output = length.to_be_bytes().to_vec();
            output.extend_from_slice(message);
            Io::Tcp { stream: TcpStream::connect(server)?, output, input: Vec::new() }
        } else {
            let any = match server {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            Io::Udp(socket)
        };
        if let Io::Udp(socket) = &io {
            // A full buffer loses the datagram, as any queue on the way might: it is sent again.
            match socket.send(message) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let key = self.wires.insert(Wire { query, io }).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let Some(wire) = self.wires.get_mut(key) else { return Ok(()) };
        let token = (self.token)(key);
        let registered = match &mut wire.io {
            Io::Udp(socket) => self.registry.register(socket, token, Interest::READABLE),
            Io::Tcp { stream, .. } => self.registry.register(stream, token, Interest::READABLE | Interest::WRITABLE),
        };
        if let Err(error) = registered {
            self.wires.remove(key);
            return Err(error);
        }
        self.by_query.insert(query, key);
        Ok(())
    }

    /// Nobody has a copy of the socket: closing it takes it out of epoll.
    fn close(&mut self, query: Key<Query>) {
        if let Some(key) = self.by_query.remove(&query) {
            self.wires.remove(key);
        }
    }
}

impl Wire {
    /// The next message.
    fn receive<'b>(&'b mut self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        match &mut self.io {
            Io::Udp(socket) => {
                let length = socket.recv(buffer)?;
                Ok(&buffer[..length])
            }
            Io::Tcp { stream, output, input } => {
                if let Some(error) = stream.take_error()? {
                    return Err(error);
                }
                while !output.is_empty() {
                    match stream.write(output) {
                        Ok(sent) => drop(output.drain(..sent)),
                        // Not connected yet.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                            return Err(io::ErrorKind::WouldBlock.into());
                        }
                        Err(error) => return Err(error),
                    }
                }
                loop {
                    if let [high, low, rest @ ..] = input.as_slice() {
                        let length = usize::from(u16::from_be_bytes([*high, *low]));
                        if rest.len() >= length {
                            let end = 2 + length;
                            return Ok(&self.io.input()[2..end]);
                        }
                    }
                    let room = buffer.len().min(STREAM_MAX - input.len());
                    match stream.read(&mut buffer[..room]) {
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(length) => input.extend_from_slice(&buffer[..length]),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
}

impl Io {
    fn input(&self) -> &[u8] {
        match self {
            Io::Udp(_) => &[],
            Io::Tcp { input, .. } => input,
        }
    }
}
