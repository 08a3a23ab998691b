//! Opening a connection to a server.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use ipc::snapshot::Address;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::io::socket::Socket;

/// A socket on its way to the server.
#[derive(Debug)]
pub struct Connecting {
    /// The socket.
    pub socket: Socket,
    /// Whether the connection already stands.
    pub done: bool,
}

/// The system's words for an error, without its number.
#[derive(Debug, Clone, Copy)]
pub struct SystemError(pub Errno);

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from(self.0).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

/// Begins to connect to `address` without waiting.
///
/// # Errors
/// What the kernel answers at once: no descriptor, no route, refused (Unix), queue full (Unix: `AGAIN`).
pub fn open(address: &Address) -> Result<Connecting, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (fd, result): (OwnedFd, _) = match address {
        Address::Inet(addr) => {
            let fd = tcp_socket(addr)?;
            let result = rustix::net::connect(&fd, addr);
            (fd, result)
        }
        Address::Unix(path) => {
            let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let result = rustix::net::connect(&fd, &SocketAddrUnix::new(path.as_path())?);
            (fd, result)
        }
    };
    let socket = match address {
        Address::Inet(_) => Socket::new(fd),
        Address::Unix(_) => Socket::unix(fd),
    };
    match result {
        Ok(()) => Ok(Connecting { socket: socket.connecting(), done: true }),
        Err(Errno::INPROGRESS) => Ok(Connecting { socket: socket.connecting(), done: false }),
        Err(errno) => Err(errno),
    }
}

/// A socket that may be connected to `address`.
///
/// # Errors
/// What the kernel answers: no descriptor, no such family.
pub fn tcp_socket(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Heads and bodies are written as they come; waiting for more would only delay them.
    rustix::net::sockopt::set_tcp_nodelay(&fd, true)?;
    // Urgent bytes are bytes of the stream like any other.
    rustix::net::sockopt::set_socket_oobinline(&fd, true)?;
    Ok(fd)
}

/// Begins to connect such a socket.
///
/// # Errors
/// What the kernel answers at once: no route, no port.
pub fn begin(socket: &Socket, address: &SocketAddr) -> Result<(), Errno> {
    match rustix::net::connect(socket, address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Servers passed over for one request or connection at most because this machine has no way to them.
pub const PASSED_OVER_MAX: usize = 64;

/// Whether `errno` says that this machine has no way to `address` at all: then nothing has been tried, and the next
/// server's turn costs nothing. So it is with the IPv6 addresses of a name on a machine without IPv6 (RFC 6724
/// section 5, rule 1).
#[must_use]
pub fn is_without_way(address: &Address, errno: Errno) -> bool {
    let is_v6 = matches!(address, Address::Inet(address) if address.is_ipv6());
    // Of IPv4 it says that the machine has no port left.
    matches!(errno, Errno::NETUNREACH | Errno::AFNOSUPPORT) || is_v6 && errno == Errno::ADDRNOTAVAIL
}
