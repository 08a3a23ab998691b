//! Taking a connection off a listening socket's queue: what the master does, and, after its death, its workers.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SocketFlags;

/// What one `accept4` gave. `F` is the connection.
#[derive(Debug)]
pub enum Accepted<F = OwnedFd> {
    /// A connection, with the client's address unless it is a Unix socket.
    Connection(F, Option<SocketAddr>),
    /// Nobody is waiting.
    Empty,
    /// No descriptor, or no memory, is left: the connection still waits in the kernel's queue.
    Exhausted(Errno),
    /// This one failed before it was accepted; the next may be fine.
    Lost(Errno),
}

/// Takes one connection off the queue of `listener`, which does not block: itself non-blocking, close-on-exec.
#[must_use]
pub fn accept(listener: impl AsFd) -> Accepted {
    match rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok((fd, address)) => Accepted::Connection(fd, address.and_then(|address| SocketAddr::try_from(address).ok())),
        Err(Errno::AGAIN) => Accepted::Empty,
        Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => Accepted::Exhausted(errno),
        Err(errno) => Accepted::Lost(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepting_takes_what_waits_and_then_says_empty() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let Accepted::Connection(fd, peer) = accept(&listener) else { panic!("nobody") };
        assert_eq!(peer, client.local_addr().ok());
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert!(rustix::fs::fcntl_getfl(&fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        assert!(matches!(accept(&listener), Accepted::Empty));
    }
}
