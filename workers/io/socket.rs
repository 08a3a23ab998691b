//! One connected socket, of a client or of a server: its readiness, its byte counts, its deadline.
//!
//! Registration is edge-triggered, so readiness must be remembered until the kernel says it is gone. This is the
//! only place that touches it: a lost wake-up can only come from here. It knows no protocol.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc::fault;
use mio::event::Event;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};

use crate::io::splice::Pipe;
use crate::timers::Armed;

/// What came of one attempt to move bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// So many bytes moved, at least one.
    Moved(usize),
    /// Nothing can move now; an event will come.
    Blocked,
    /// The peer has sent its last byte (reading only).
    Eof,
    /// The connection is broken.
    Broken(Errno),
}

/// The timer wheel's entry for a socket, and the time limit it stands for.
///
/// I/O only moves `due_ms`; the entry stays where it is until it fires and is then put where it belongs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deadline {
    /// When the present state ends, in milliseconds of the worker's clock; `u64::MAX` = never.
    pub due_ms: u64,
    /// The live entry in the wheel.
    pub armed: Option<Armed>,
}

/// A connected, non-blocking stream socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    readable: bool,
    writable: bool,
    /// The peer has shut down its side: a short read is not the end, the end of file is still to come.
    read_closed: bool,
    /// The peer has sent urgent data: a read stops in front of it, so a short one is not the end, and `splice(2)`
    /// does not get past it at all.
    urgent: bool,
    /// Both directions are closed, or an error is pending.
    gone: bool,
    /// Whether the descriptor is registered with epoll and must be deregistered before it is closed.
    pub registered: bool,
    /// Bytes taken from the socket.
    pub bytes_in: u64,
    /// Bytes given to the socket.
    pub bytes_out: u64,
    /// Its time limit.
    pub deadline: Deadline,
}

impl Socket {
    /// Wraps a connected (or connecting) non-blocking socket, taken to be ready until it says otherwise.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Socket {
        Socket {
            fd,
            readable: true,
            writable: true,
            read_closed: false,
            urgent: false,
            gone: false,
            registered: false,
            bytes_in: 0,
            bytes_out: 0,
            deadline: Deadline { due_ms: u64::MAX, armed: None },
        }
    }

    /// Remembers what an event says.
    pub fn on_event(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
        self.read_closed |= event.is_read_closed();
        self.urgent |= event.is_priority();
        self.gone |= event.is_error() || event.is_write_closed();
    }

    /// No events will come for it: it is of no further use.
    pub fn give_up(&mut self) {
        self.gone = true;
    }

    /// Whether a read may bring something.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether a write may be taken.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether the peer is known to have closed both directions, or to have reset the connection.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether urgent data may lie ahead, which only [`Socket::recv`] gets past.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Whether the peer is known to have shut down its sending side.
    #[must_use]
    pub fn is_read_closed(&self) -> bool {
        self.read_closed
    }

    /// Reads into `buffer`, which must not be empty.
    pub fn recv(&mut self, buffer: &mut [u8]) -> Io {
        if !self.readable {
            return Io::Blocked;
        }
        loop {
            let received = rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty());
            fault::instant();
            return match received {
                Ok((_, 0)) => Io::Eof,
                Ok((_, n)) => {
                    // A short read has drained the socket: what comes later raises a new edge.
                    self.readable = n == buffer.len() || self.read_closed || self.urgent;
                    self.bytes_in += n as u64;
                    Io::Moved(n)
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    self.urgent = false;
                    Io::Blocked
                }
                Err(Errno::INTR) => continue,
                Err(errno) => Io::Broken(errno),
            };
        }
    }

    /// Reads into `buffer`, which must not be empty, what the next read will bring again.
    pub fn peek(&mut self, buffer: &mut [u8]) -> Io {
        if !self.readable {
            return Io::Blocked;
        }
        loop {
            return match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::PEEK) {
                Ok((_, 0)) => Io::Eof,
                Ok((_, n)) => Io::Moved(n),
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    Io::Blocked
                }
                Err(Errno::INTR) => continue,
                Err(errno) => Io::Broken(errno),
            };
        }
    }

    /// What was peeked at is not enough: more raises a new edge, though nothing was taken. To be called before the
    /// next wait for events.
    pub fn await_more(&mut self) {
        self.readable = false;
    }

    /// The address that its peer is connected to; `None` when it has none, or on a Unix socket.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(&self.fd).ok().and_then(|address| SocketAddr::try_from(address).ok())
    }

    /// Its peer's address; `None` when it is gone, or on a Unix socket.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        rustix::net::getpeername(&self.fd).ok().flatten().and_then(|address| SocketAddr::try_from(address).ok())
    }

    /// Whether the socket has bytes, an end of file or an error waiting, asked of the kernel without taking any.
    #[must_use]
    pub fn has_input(&mut self) -> bool {
        let mut byte = [0];
        self.readable = !matches!(rustix::net::recv(&self.fd, &mut byte, RecvFlags::PEEK), Err(Errno::AGAIN));
        self.readable
    }

    /// Writes `first` and then `second`, as much as the socket takes.
    pub fn send(&mut self, first: &[u8], second: &[u8]) -> Io {
        if !self.writable {
            return Io::Blocked;
        }
        let wanted = first.len() + second.len();
        if wanted == 0 {
            return Io::Blocked;
        }
        loop {
            let result = match (first, second) {
                (one, []) | ([], one) => rustix::io::write(&self.fd, one),
                (first, second) => rustix::io::writev(&self.fd, &[IoSlice::new(first), IoSlice::new(second)]),
            };
            fault::instant();
            return match result {
                Ok(n) => {
                    self.writable = n == wanted;
                    self.bytes_out += n as u64;
                    Io::Moved(n)
                }
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    Io::Blocked
                }
                Err(Errno::INTR) => continue,
                Err(errno) => Io::Broken(errno),
            };
        }
    }

    /// Moves at most `most` bytes from the socket into an empty pipe.
    pub fn splice_in(&mut self, pipe: &Pipe, most: usize) -> Io {
        if !self.readable {
            return Io::Blocked;
        }
        loop {
            let moved = pipe.fill(self.fd.as_fd(), most);
            fault::instant();
            return match moved {
                Ok(0) => Io::Eof,
                Ok(n) => {
                    // Unlike a short read, a short splice may only mean that the pipe ran out of segments. Each
                    // holds at least one byte, so fewer bytes than segments have surely drained the socket.
                    self.readable = n >= Pipe::MIN_SEGMENTS || n == most || self.read_closed;
                    self.bytes_in += n as u64;
                    Io::Moved(n)
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    Io::Blocked
                }
                Err(Errno::INTR) => continue,
                Err(errno) => Io::Broken(errno),
            };
        }
    }

    /// Takes the socket for drained although that is not certain. The caller looks again later, with
    /// [`Socket::look_again`].
    pub fn presume_drained(&mut self) {
        self.readable = self.read_closed;
    }

    /// A read may bring something after all.
    pub fn look_again(&mut self) {
        self.readable = true;
    }

    /// Moves at most `most` bytes, all of which the pipe holds, into the socket.
    pub fn splice_out(&mut self, pipe: &Pipe, most: usize) -> Io {
        if !self.writable {
            return Io::Blocked;
        }
        loop {
            let moved = pipe.drain(self.fd.as_fd(), most);
            fault::instant();
            return match moved {
                Ok(0) => Io::Blocked,
                Ok(n) => {
                    self.bytes_out += n as u64;
                    Io::Moved(n)
                }
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    Io::Blocked
                }
                Err(Errno::INTR) => continue,
                Err(errno) => Io::Broken(errno),
            };
        }
    }

    /// Tells the peer that nothing more will be sent.
    pub fn shutdown_write(&mut self) {
        // A peer that is gone already answers with an error that changes nothing.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        fault::instant();
    }

    /// Ends the connection for every process that holds it, in order (FIN).
    pub fn shutdown_both(&mut self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
        fault::instant();
    }

    /// Ends the connection for every process that holds it with a reset, so that the peer cannot take what it
    /// received for all there was. Closing with `SO_LINGER` would do nothing while the master holds a duplicate.
    pub fn reset(&mut self) {
        if rustix::net::connect_unspec(&self.fd).is_err() {
            self.shutdown_both();
        }
        fault::instant();
    }

    /// The pending error, as left by a failed connect.
    #[must_use]
    pub fn take_error(&self) -> Option<Errno> {
        match rustix::net::sockopt::socket_error(&self.fd) {
            Ok(Ok(())) => None,
            Ok(Err(errno)) | Err(errno) => Some(errno),
        }
    }

    /// Bytes sent that the peer has not acknowledged; 0 when the kernel does not tell.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        ipc::tcp_info::unacknowledged(&self.fd).unwrap_or(0)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> OwnedFd {
        socket.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Socket, Socket) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        (Socket::new(a), Socket::new(b))
    }

    #[test]
    fn a_short_read_ends_readiness_and_a_full_one_does_not() {
        let (mut a, mut b) = pair();
        assert_eq!(a.send(b"he", b"llo"), Io::Moved(5));
        let mut buffer = [0; 3];
        assert_eq!(b.recv(&mut buffer), Io::Moved(3));
        assert!(b.is_readable());
        assert_eq!(b.recv(&mut buffer), Io::Moved(2));
        assert!(!b.is_readable());
        assert_eq!(b.recv(&mut buffer), Io::Blocked);
        assert_eq!((a.bytes_out, b.bytes_in), (5, 5));
    }

    #[test]
    fn after_the_peer_shut_down_reading_goes_on_to_the_end_of_file() {
        let (mut a, mut b) = pair();
        assert_eq!(a.send(b"x", b""), Io::Moved(1));
        a.shutdown_write();
        b.read_closed = true;
        let mut buffer = [0; 8];
        assert_eq!(b.recv(&mut buffer), Io::Moved(1));
        assert_eq!(b.recv(&mut buffer), Io::Eof);
    }

    #[test]
    fn what_is_peeked_at_stays() {
        let (mut a, mut b) = pair();
        let mut buffer = [0; 8];
        assert_eq!(b.peek(&mut buffer), Io::Blocked);
        b.readable = true;
        assert_eq!(a.send(b"hel", b""), Io::Moved(3));
        assert_eq!(a.send(b"lo", b""), Io::Moved(2));
        assert_eq!((b.peek(&mut buffer), &buffer[..5]), (Io::Moved(5), b"hello".as_slice()));
        b.await_more();
        assert_eq!(b.peek(&mut buffer), Io::Blocked);
        b.readable = true;
        assert_eq!((b.recv(&mut buffer), b.bytes_in), (Io::Moved(5), 5));
        a.shutdown_write();
        (b.read_closed, b.readable) = (true, true);
        assert_eq!(b.peek(&mut buffer), Io::Eof);
        assert_eq!(a.local_addr(), None);
    }

    #[test]
    fn a_full_socket_blocks() {
        let (mut a, _b) = pair();
        let block = vec![0; 1 << 20];
        while let Io::Moved(_) = a.send(&block, &block) {}
        assert!(!a.is_writable());
        assert_eq!(a.send(b"x", b""), Io::Blocked);
    }
}
