//! The kernel's own byte counters of a TCP connection.
//!
//! They tell how far a dead process had come with a socket that is still open elsewhere. It only asks; it
//! never reads, writes or closes the socket. This is the one place with `unsafe` for socket options that
//! the safe wrappers lack.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// States of `tcpi_state` (include/net/tcp_states.h), as far as the counters depend on them.
mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const CLOSING: u8 = 11;
}

/// How often the counters are read again when data arrived in between.
const ATTEMPTS: u32 = 64;

/// Payload bytes that have passed through an accepted socket since it was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that processes have read from it. Peeking does not count.
    pub consumed: u64,
    /// Bytes that processes have written to it, whether or not they have reached the peer.
    pub written: u64,
    /// The peer has closed its direction.
    pub peer_closed: bool,
    /// Our direction has been shut down.
    pub shut_down: bool,
}

/// The counters of the accepted TCP socket `fd`. No other process may be reading or writing it.
///
/// `SO_OOBINLINE` must be set: otherwise urgent bytes are counted by the kernel and not seen by readers.
///
/// # Errors
/// When `fd` is no TCP socket, the connection is already gone, or data kept arriving between the questions.
pub fn counters(fd: impl AsFd) -> io::Result<Counters> {
    let fd = fd.as_fd();
    let mut before = info(fd)?;
    for _ in 0..ATTEMPTS {
        let unread = queue_bytes(fd, libc::FIONREAD)?;
        let unsent = queue_bytes(fd, libc::TIOCOUTQ)?;
        let after = info(fd)?;
        let same = before.tcpi_bytes_received == after.tcpi_bytes_received
            && before.tcpi_bytes_acked == after.tcpi_bytes_acked
            && before.tcpi_state == after.tcpi_state;
        if !same {
            before = after;
            continue;
        }
        let (peer_closed, shut_down) = match after.tcpi_state {
            state::ESTABLISHED => (false, false),
            state::CLOSE_WAIT => (true, false),
            state::FIN_WAIT1 | state::FIN_WAIT2 => (false, true),
            state::LAST_ACK | state::CLOSING => (true, true),
            _ => return Err(io::ErrorKind::NotConnected.into()),
        };
        // A FIN takes one number of the sequence space: the peer's is in bytes_received, ours in
        // bytes_acked or in the queue. SIOCINQ leaves the peer's out.
        let consumed = after.tcpi_bytes_received.checked_sub(unread + u64::from(peer_closed));
        let written = (after.tcpi_bytes_acked + unsent).checked_sub(u64::from(shut_down));
        let (Some(consumed), Some(written)) = (consumed, written) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's byte counters contradict each other"));
        };
        return Ok(Counters { consumed, written, peer_closed, shut_down });
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Bytes written to `fd` that its peer has not acknowledged, sent or not.
///
/// # Errors
/// When `fd` is not a connected socket.
pub fn unacknowledged(fd: impl AsFd) -> io::Result<u64> {
    queue_bytes(fd.as_fd(), libc::TIOCOUTQ)
}

fn info(fd: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: tcp_info is made of integers only; all zero is a value of it.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::tcp_info>();
    let mut len = libc::socklen_t::try_from(size).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`, and the new length to `len`.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < std::mem::offset_of!(libc::tcp_info, tcpi_bytes_received) + 8 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(info)
}

fn queue_bytes(fd: BorrowedFd<'_>, question: libc::Ioctl) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both questions make the kernel write one int to the pointer.
    if unsafe { libc::ioctl(fd.as_raw_fd(), question, &raw mut bytes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    u64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::sockopt::set_socket_oobinline(&listener, true).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Loopback delivers at once, but not in the same instant: asks until the answer is `wanted` or 5 s pass.
    fn assert_soon(socket: &TcpStream, consumed: u64, written: u64, peer_closed: bool, shut_down: bool) {
        let wanted = Counters { consumed, written, peer_closed, shut_down };
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let now = counters(socket).unwrap();
            if now == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{now:?} is not {wanted:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_new_connection_has_consumed_and_written_nothing() {
        let (mut client, server) = pair();
        assert_soon(&server, 0, 0, false, false);
        client.write_all(b"unread").unwrap();
        assert_eq!(server.peek(&mut [0; 6]).unwrap(), 6);
        assert_soon(&server, 0, 0, false, false);
    }

    #[test]
    fn bytes_read_and_written_are_counted_before_and_after_the_peers_fin() {
        let (mut client, mut server) = pair();
        client.write_all(b"0123456789").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        server.write_all(b"abc").unwrap();
        assert_soon(&server, 4, 3, false, false);
        client.shutdown(Shutdown::Write).unwrap();
        assert_soon(&server, 4, 3, true, false);
        server.read_exact(&mut [0; 6]).unwrap();
        assert_soon(&server, 10, 3, true, false);
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        assert_soon(&server, 10, 3, true, false);
        server.write_all(b"de").unwrap();
        assert_soon(&server, 10, 5, true, false);
    }

    #[test]
    fn a_connection_closed_by_both_sides_has_no_counters() {
        let (client, server) = pair();
        client.shutdown(Shutdown::Write).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while counters(&server).is_ok() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn our_own_fin_is_not_a_byte() {
        let (mut client, mut server) = pair();
        server.write_all(b"abc").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_soon(&server, 0, 3, false, true);
        client.write_all(b"12").unwrap();
        server.read_exact(&mut [0; 1]).unwrap();
        assert_soon(&server, 1, 3, false, true);
    }

    #[test]
    fn an_urgent_byte_counts_like_any_other() {
        let (mut client, mut server) = pair();
        client.write_all(b"ab").unwrap();
        rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
        client.write_all(b"cd").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut bytes = [0; 2];
        server.read_exact(&mut bytes).unwrap();
        assert_soon(&server, 2, 0, false, false);
        let mut bytes = [0; 3];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"!cd");
        assert_soon(&server, 5, 0, false, false);
    }

    #[test]
    fn bytes_the_peer_does_not_take_are_written_all_the_same() {
        let (client, mut server) = pair();
        server.set_nonblocking(true).unwrap();
        let mut written = 0;
        let full = loop {
            match server.write(&[7; 65536]) {
                Ok(n) => written += n as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_soon(&server, 0, written, false, false);
        drop(client);
    }

    #[test]
    fn a_connection_that_was_reset_or_is_no_tcp_is_an_error() {
        let (client, mut server) = pair();
        rustix::net::connect_unspec(&client).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!(server.read(&mut [0; 1]).is_err());
        assert!(counters(&server).is_err());
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(counters(&unix).is_err());
    }
}
