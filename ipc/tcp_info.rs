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
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const CLOSE: u8 = 7;
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

/// How far the connection of a socket that was made to be connected has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It never stood: connecting has not begun, or has failed.
    Unconnected,
    /// The peer has not answered.
    Connecting,
    /// It stands.
    Connected,
    /// It stood, and both directions have ended since, in order or not.
    Over,
}

/// What has passed through a socket that this machine has connected. Each end of stream counts as one byte more. Unlike
/// [`Counters`], these hold also when the connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// How far it is.
    pub stage: Stage,
    /// Bytes that have come from the peer, read or not.
    pub received: u64,
    /// Bytes that processes have written to it, whether or not they have reached the peer.
    pub written: u64,
    /// Our direction has been shut down; `None` = the kernel does not tell, since the connection is over.
    pub shut_down: Option<bool>,
}

impl Opened {
    /// Whether all that came from this connection, with an end in order, has been written to `other`. That the end has
    /// been read is known to the caller. A connection that broke looks like one that ended to whoever reads from it
    /// after the error has been told once: but it lacks the end's place among the bytes.
    #[must_use]
    pub fn has_gone_to(&self, other: &Opened) -> bool {
        let (without_end, with_end) =
            (other.written.checked_add(1) == Some(self.received), other.written == self.received);
        match other.shut_down {
            Some(false) => without_end,
            Some(true) => with_end,
            None => without_end || with_end,
        }
    }
}

/// The same as [`counters`] for a TCP socket that was made to be connected. No other process may be using it.
///
/// # Errors
/// When `fd` is no TCP socket, or data kept arriving between the questions.
pub fn opened(fd: impl AsFd) -> io::Result<Opened> {
    let fd = fd.as_fd();
    let mut before = info(fd)?;
    for _ in 0..ATTEMPTS {
        let unacknowledged = queue_bytes(fd, libc::TIOCOUTQ)?;
        let after = info(fd)?;
        if !is_same(&before, &after) {
            before = after;
            continue;
        }
        // The first acknowledgement is of our SYN, which takes a number of the sequence space like an end of stream.
        let stood = after.tcpi_bytes_acked > 0;
        let (stage, shut_down) = match after.tcpi_state {
            state::SYN_SENT | state::SYN_RECV => (Stage::Connecting, Some(false)),
            state::CLOSE if stood => (Stage::Over, None),
            state::CLOSE => (Stage::Unconnected, Some(false)),
            state::ESTABLISHED | state::CLOSE_WAIT => (Stage::Connected, Some(false)),
            _ => (Stage::Connected, Some(true)),
        };
        let written = (after.tcpi_bytes_acked + unacknowledged).saturating_sub(1);
        return Ok(Opened { stage, received: after.tcpi_bytes_received, written, shut_down });
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

fn is_same(before: &libc::tcp_info, after: &libc::tcp_info) -> bool {
    before.tcpi_bytes_received == after.tcpi_bytes_received
        && before.tcpi_bytes_acked == after.tcpi_bytes_acked
        && before.tcpi_state == after.tcpi_state
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
        if !is_same(&before, &after) {
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

    /// As `assert_soon`, of a socket that was connected here.
    fn assert_opened(socket: &TcpStream, stage: Stage, received: u64, written: u64, shut_down: Option<bool>) {
        let wanted = Opened { stage, received, written, shut_down };
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let now = opened(socket).unwrap();
            if now == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{now:?} is not {wanted:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_was_connected_here_counts_ends_and_not_the_beginning() {
        let (mut client, mut server) = pair();
        assert_opened(&client, Stage::Connected, 0, 0, Some(false));
        client.write_all(b"hello").unwrap();
        server.write_all(b"abc").unwrap();
        assert_opened(&client, Stage::Connected, 3, 5, Some(false));
        client.shutdown(Shutdown::Write).unwrap();
        assert_opened(&client, Stage::Connected, 3, 6, Some(true));
        server.read_to_end(&mut Vec::new()).unwrap();
        server.write_all(b"de").unwrap();
        assert_opened(&client, Stage::Connected, 5, 6, Some(true));
        drop(server);
        assert_opened(&client, Stage::Over, 6, 6, None);
        // What is read, and told again to be shut down, changes nothing.
        client.read_to_end(&mut Vec::new()).unwrap();
        let _ = client.shutdown(Shutdown::Both);
        assert_opened(&client, Stage::Over, 6, 6, None);
    }

    #[test]
    fn the_peers_end_counts_before_and_after_ours() {
        let (mut client, mut server) = pair();
        server.write_all(b"abc").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_opened(&client, Stage::Connected, 4, 0, Some(false));
        client.write_all(b"12345").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.read_to_end(&mut Vec::new()).unwrap();
        assert_opened(&client, Stage::Over, 4, 6, None);
    }

    #[test]
    fn a_connection_that_breaks_lacks_an_end() {
        let (mut client, server) = pair();
        let (mut other, _receiver) = pair();
        (&server).write_all(b"abc").unwrap();
        assert_opened(&client, Stage::Connected, 3, 0, Some(false));
        rustix::net::connect_unspec(&server).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        // Whoever reads after that is told of an end.
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        other.write_all(b"abc").unwrap();
        let (broken, other) = (opened(&client).unwrap(), opened(&other).unwrap());
        assert_eq!((broken.stage, broken.received, other.written), (Stage::Over, 3, 3));
        assert!(!broken.has_gone_to(&other));
        assert!(Opened { received: 4, ..broken }.has_gone_to(&other));
    }

    #[test]
    fn a_socket_says_whether_it_was_ever_connected() {
        let flags = rustix::net::SocketFlags::NONBLOCK;
        let (family, kind) = (rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM);
        let fresh = rustix::net::socket_with(family, kind, flags, None).unwrap();
        assert_eq!(opened(&fresh).unwrap().stage, Stage::Unconnected);
        // Bound and never listening: nobody else gets the port, and nobody answers there.
        let refusing = rustix::net::socket_with(family, kind, flags, None).unwrap();
        rustix::net::bind(&refusing, &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap()).unwrap();
        let address = std::net::SocketAddr::try_from(rustix::net::getsockname(&refusing).unwrap()).unwrap();
        let _ = rustix::net::connect(&fresh, &address);
        let deadline = Instant::now() + Duration::from_secs(5);
        while opened(&fresh).unwrap().stage == Stage::Connecting {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert_eq!(opened(&fresh).unwrap().stage, Stage::Unconnected);
    }

    proptest::proptest! {
        #[test]
        fn an_answer_is_whole_with_all_its_bytes_and_its_end_and_else_never(bytes in 0_u64..1 << 40, lost in 0_u64..3) {
            let target = Opened { stage: Stage::Connected, received: bytes + 1, written: 0, shut_down: None };
            for (written, shut_down, whole) in [
                (bytes.wrapping_sub(lost), Some(false), lost == 0),
                ((bytes + 1).wrapping_sub(lost), Some(true), lost == 0),
                (bytes + 2 + lost, None, false),
            ] {
                let reply = Opened { written, shut_down, received: 0, ..target };
                proptest::prop_assert_eq!(target.has_gone_to(&reply), whole);
            }
        }
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
