//! Closing a listener's door without closing the listener: new handshakes are not answered, those begun go on.
//!
//! A listening socket that is closed resets whoever is in its queue, or completes a handshake just then. With its
//! door closed first, the queue can be emptied to the last one. A client that comes meanwhile tries again by itself
//! after a second, and finds the listener's successor, or none. This is the one place with `unsafe` for socket
//! filters.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Of a segment, which begins with the TCP header: drop it if it has SYN and not ACK, else keep all of it.
const PROGRAM: [libc::sock_filter; 5] = [
    statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 13),
    statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0x12),
    libc::sock_filter { jt: 0, jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0x02) },
    statement(libc::BPF_RET | libc::BPF_K, 0),
    statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
];

#[allow(clippy::cast_possible_truncation, reason = "the codes are all below 256")]
const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Lets nobody new in at the listening TCP socket `fd`.
///
/// # Errors
/// When the kernel refuses.
pub fn close_door(fd: impl AsFd) -> io::Result<()> {
    let mut program = PROGRAM;
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads a sock_fprog, and from the pointer in it as many instructions as it says; both live on
    // this stack until the call is over.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            socklen::<libc::sock_fprog>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets everybody in again.
///
/// # Errors
/// When the kernel refuses; not when the door was open.
pub fn open_door(fd: impl AsFd) -> io::Result<()> {
    let nothing: libc::c_int = 0;
    // SAFETY: the kernel reads at most one int from the pointer.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            (&raw const nothing).cast(),
            socklen::<libc::c_int>(),
        )
    };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        error => Err(error),
    }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn nobody_new_gets_in_and_those_inside_are_not_touched() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let mut inside = TcpStream::connect(address).unwrap();
            open_door(&listener).unwrap();
            close_door(&listener).unwrap();
            let refused = TcpStream::connect_timeout(&address, Duration::from_millis(100)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
            let (mut accepted, _) = listener.accept().unwrap();
            inside.write_all(b"x").unwrap();
            accepted.read_exact(&mut [0]).unwrap();
            listener.set_nonblocking(true).unwrap();
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            open_door(&listener).unwrap();
            let _late = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        }
    }

    #[test]
    fn accepted_connections_carry_bytes_with_any_flags() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        close_door(&listener).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        drop(listener);
        client.write_all(&[7; 100_000]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        accepted.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 100_000);
    }
}
