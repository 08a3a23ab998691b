//! One connected socket, of a client or of a server: its readiness, its byte counts, its deadline.
//!
//! Registration is edge-triggered, so readiness must be remembered until the kernel says it is gone. This is the
//! only place that touches it: a lost wake-up can only come from here. It knows no protocol.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ipc::fault;
use mio::event::Event;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

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

/// How epoll watches a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Not at all.
    Off,
    /// One event will come, when something can be read.
    Once,
    /// That event has come: it is still entered, and no more will come.
    Spent,
    /// An event comes for each change.
    On,
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
    /// On a Unix socket a read ends where descriptors came along with the bytes: a short one is never the end.
    unix: bool,
    /// See [`Socket::reset_on_close`].
    resets: bool,
    /// Both directions are closed, or an error is pending.
    gone: bool,
    /// The last byte read lies in the kernel's queue still: see [`Socket::recv_keeping`].
    kept: bool,
    /// A read has brought the end of file.
    received_end: bool,
    /// Our sending side is shut down.
    sent_end: bool,
    /// Something written may wait for more.
    held_back: bool,
    /// Whether and how epoll watches it.
    pub watch: Watch,
    /// Bytes taken from the socket.
    pub bytes_in: u64,
    /// Bytes given to the socket.
    pub bytes_out: u64,
    /// Its time limit.
    pub deadline: Deadline,
}

impl Socket {
    /// Wraps a connected non-blocking socket, taken to be ready until it says otherwise.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Socket {
        Socket {
            fd,
            readable: true,
            writable: true,
            read_closed: false,
            urgent: false,
            unix: false,
            resets: false,
            gone: false,
            kept: false,
            received_end: false,
            sent_end: false,
            held_back: false,
            watch: Watch::Off,
            bytes_in: 0,
            bytes_out: 0,
            deadline: Deadline { due_ms: u64::MAX, armed: None },
        }
    }

    /// The same for a Unix socket.
    #[must_use]
    pub fn unix(fd: OwnedFd) -> Socket {
        Socket { unix: true, ..Socket::new(fd) }
    }

    /// The same for a socket of which it is not known whether it is a Unix socket: the kernel knows.
    #[must_use]
    pub fn of_either_kind(fd: OwnedFd) -> Socket {
        let unix = rustix::net::sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX);
        Socket { unix, ..Socket::new(fd) }
    }

    /// The same for a socket on its way to its peer. It is about to be registered, so that whatever comes brings an
    /// event; asking before that would be in vain.
    #[must_use]
    pub fn connecting(self) -> Socket {
        Socket { readable: false, ..self }
    }

    /// Remembers what an event says.
    pub fn on_event(&mut self, event: &Event) {
        if self.watch == Watch::Once {
            self.watch = Watch::Spent;
        }
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
        self.read_closed |= event.is_read_closed();
        self.urgent |= event.is_priority();
        self.gone |= event.is_error() || event.is_write_closed();
    }

    /// Whether events will come.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        matches!(self.watch, Watch::Once | Watch::On)
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

    /// Whether something is known to have come that has not been read. Of a socket that was never read, and has brought no
    /// event, nothing is.
    #[must_use]
    pub fn has_been_told_of_input(&self) -> bool {
        self.readable && self.watch != Watch::Once
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
        if self.kept {
            return self.recv_keeping(buffer);
        }
        if !self.readable {
            return Io::Blocked;
        }
        let io = attempt(|| rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty()).map(|(_, n)| n));
        // A short read has drained the socket: what comes later raises a new edge.
        self.urgent &= io != Io::Blocked;
        self.took(io, |n, socket| n == buffer.len() || socket.urgent)
    }

    /// As [`Socket::recv`], but leaves the last byte in the kernel's queue, where it counts as read, until more is read
    /// or [`Socket::release`].
    ///
    /// A Unix socket knows no reset but one: its peer gets it when the last descriptor is closed while something is
    /// unread. The byte is for that.
    pub fn recv_keeping(&mut self, buffer: &mut [u8]) -> Io {
        if !self.readable {
            return Io::Blocked;
        }
        let lead = usize::from(self.kept);
        match self.recv_behind(buffer, RecvFlags::PEEK) {
            Ok(0) => Io::Eof,
            Ok(n) if n <= lead && self.read_closed => Io::Eof,
            Ok(n) if n <= lead => {
                self.readable = false;
                Io::Blocked
            }
            Ok(n) => {
                let new = n - lead;
                // All but the last of what was seen is there to be taken, at once.
                let taken = if n == 1 { Ok(0) } else { self.recv_behind(&mut buffer[..new - 1], RecvFlags::empty()) };
                match taken {
                    Ok(taken) if taken == n - 1 => {
                        self.kept = true;
                        self.bytes_in += new as u64;
                        Io::Moved(new)
                    }
                    Ok(_) => Io::Broken(Errno::IO),
                    Err(errno) => Io::Broken(errno),
                }
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Io::Blocked
            }
            Err(errno) => Io::Broken(errno),
        }
    }

    /// Reads the byte that was kept, if one was, and then into `buffer`; gives the count of both.
    fn recv_behind(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        let mut first = [0];
        let mut parts = [IoSliceMut::new(&mut first), IoSliceMut::new(buffer)];
        let parts = if self.kept { &mut parts[..] } else { &mut parts[1..] };
        let mut none = RecvAncillaryBuffer::default();
        loop {
            let result = rustix::net::recvmsg(&self.fd, parts, &mut none, flags);
            fault::instant();
            match result {
                Err(Errno::INTR) => {}
                result => return result.map(|message| message.bytes),
            }
        }
    }

    /// Takes the byte that was kept: the connection may end in order, or be read by somebody else.
    pub fn release(&mut self) {
        if std::mem::take(&mut self.kept) {
            // It is there, so that this does not block. Were it left there, the next read would bring it again.
            let _ = rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut [0], RecvFlags::empty()));
            fault::instant();
        }
    }

    /// Reads into `buffer`, which must not be empty, what the next read will bring again.
    pub fn peek(&mut self, buffer: &mut [u8]) -> Io {
        if !self.readable {
            return Io::Blocked;
        }
        let io = attempt(|| rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::PEEK).map(|(_, n)| n));
        self.readable = io != Io::Blocked;
        io
    }

    /// Remembers what reading came to. `more`: whether there may be more after so many bytes.
    fn took(&mut self, io: Io, more: impl Fn(usize, &Socket) -> bool) -> Io {
        match io {
            Io::Moved(n) => {
                self.readable = self.read_closed || self.unix || more(n, self);
                self.bytes_in += n as u64;
            }
            Io::Blocked => self.readable = false,
            Io::Eof => self.received_end = true,
            Io::Broken(_) => {}
        }
        io
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

    /// Whether the socket has bytes, an end of file or an error waiting, asked of the kernel without taking any. Not
    /// while a byte is kept.
    #[must_use]
    pub fn has_input(&mut self) -> bool {
        debug_assert!(!self.kept);
        let mut byte = [0];
        self.readable = !matches!(rustix::net::recv(&self.fd, &mut byte, RecvFlags::PEEK), Err(Errno::AGAIN));
        self.readable
    }

    /// Whether bytes wait in the kernel's queue, asked of the kernel without taking any: an end of file is none.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        let mut byte = [0];
        rustix::net::recv(&self.fd, &mut byte, RecvFlags::PEEK).is_ok_and(|(read, _)| read > 0)
    }

    /// Writes `first` and then `second`, as much as the socket takes.
    pub fn send(&mut self, first: &[u8], second: &[u8]) -> Io {
        self.write(first, second, |fd| match (first, second) {
            (one, []) | ([], one) => rustix::io::write(fd, one),
            (first, second) => rustix::io::writev(fd, &[IoSlice::new(first), IoSlice::new(second)]),
        })
    }

    /// The same where more follows at once, or the end: what is too little for a segment waits for that. If it does not
    /// follow, [`Socket::push`] sends it on its way.
    pub fn send_ahead(&mut self, first: &[u8], second: &[u8]) -> Io {
        self.held_back = true;
        self.write(first, second, |fd| {
            let parts = [IoSlice::new(first), IoSlice::new(second)];
            rustix::net::sendmsg(fd, &parts, &mut SendAncillaryBuffer::default(), SendFlags::MORE)
        })
    }

    /// Sends on its way what waits behind [`Socket::send_ahead`] for more.
    pub fn push(&mut self) {
        if std::mem::take(&mut self.held_back) {
            // It is set already; setting it again pushes (tcp(7)). A Unix socket holds nothing back.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&self.fd, true);
        }
    }

    fn write(&mut self, first: &[u8], second: &[u8], call: impl Fn(&OwnedFd) -> Result<usize, Errno>) -> Io {
        let wanted = first.len() + second.len();
        if !self.writable || wanted == 0 {
            return Io::Blocked;
        }
        let io = attempt(|| call(&self.fd));
        match io {
            Io::Moved(n) => {
                self.writable = n == wanted;
                self.bytes_out += n as u64;
            }
            Io::Blocked | Io::Eof => self.writable = false,
            Io::Broken(_) => {}
        }
        io
    }

    /// Moves at most `most` bytes from the socket into an empty pipe. Where urgent data block it, [`Socket::is_urgent`]
    /// says so, or an event will.
    pub fn splice_in(&mut self, pipe: &Pipe, most: usize) -> Io {
        if !self.readable {
            return Io::Blocked;
        }
        let io = attempt(|| pipe.fill(self.fd.as_fd(), most));
        // In front of urgent data behind which the end has come, splice(2) says end of file. The event that tells of the
        // end tells of such data, too: so they are looked for only where it has not come.
        if io == Io::Eof && !self.read_closed && !self.unix && self.has_bytes() {
            self.urgent = true;
            return Io::Blocked;
        }
        // Unlike a short read, a short splice may only mean that the pipe ran out of segments. Each holds at least
        // one byte, so fewer bytes than segments have surely drained the socket.
        self.took(io, |n, _| n >= Pipe::MIN_SEGMENTS || n == most)
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

    /// Moves at most `most` bytes, all of which the pipe holds, into the socket. With `ahead` as [`Socket::send_ahead`].
    pub fn splice_out(&mut self, pipe: &Pipe, most: usize, ahead: bool) -> Io {
        if !self.writable {
            return Io::Blocked;
        }
        let io = attempt(|| pipe.drain(self.fd.as_fd(), most, ahead));
        match io {
            Io::Moved(n) => {
                self.held_back = ahead;
                self.bytes_out += n as u64;
                io
            }
            Io::Blocked => {
                self.writable = false;
                io
            }
            Io::Eof => Io::Blocked,
            Io::Broken(_) => io,
        }
    }

    /// Whether the kernel is to reset the connection when its last holder closes or dies, rather than end it in order:
    /// for while an end in order would say that nothing is missing. A Unix socket has no such thing.
    pub fn reset_on_close(&mut self, reset: bool) {
        if !self.unix && reset != self.resets {
            self.resets = reset;
            let _ = rustix::net::sockopt::set_socket_linger(&self.fd, reset.then_some(Duration::ZERO));
        }
    }

    /// Tells the peer that nothing more will be sent.
    pub fn shutdown_write(&mut self) {
        self.sent_end = true;
        self.held_back = false;
        // A peer that is gone already answers with an error that changes nothing.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        fault::instant();
    }

    /// Whether both ends of stream have been exchanged: nothing is left to be ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.sent_end && self.received_end
    }

    /// Ends the connection for every process that holds it, in order (FIN); or with its last descriptor, not in order,
    /// while a byte is kept.
    pub fn shutdown_both(&mut self) {
        if !self.kept && !self.is_over() {
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
            fault::instant();
        }
    }

    /// Ends the connection for every process that holds it with a reset, so that the peer cannot take what it
    /// received for all there was. Closing with `SO_LINGER` would do nothing while the master holds a duplicate. On a
    /// Unix socket it is reset only if a byte is kept, and ends in order otherwise.
    pub fn reset(&mut self) {
        if rustix::net::connect_unspec(&self.fd).is_err() {
            self.shutdown_both();
        }
        fault::instant();
    }

    /// Whether the last process that closes the connection resets it.
    pub fn reset_when_closed(&mut self, reset: bool) {
        let _ = rustix::net::sockopt::set_socket_linger(&self.fd, reset.then_some(std::time::Duration::ZERO));
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

/// Calls until no signal interrupts. Nothing moved is the end of file.
fn attempt(mut call: impl FnMut() -> Result<usize, Errno>) -> Io {
    loop {
        let result = call();
        fault::instant();
        return match result {
            Ok(0) => Io::Eof,
            Ok(n) => Io::Moved(n),
            Err(Errno::AGAIN) => Io::Blocked,
            Err(Errno::INTR) => continue,
            Err(errno) => Io::Broken(errno),
        };
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
mod tests;
