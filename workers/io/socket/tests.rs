//! Sockets and what is known of them, on real ones.

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
fn a_unix_socket_with_a_byte_kept_is_reset_by_closing_it() {
    for (keep, want) in [(true, Io::Broken(Errno::CONNRESET)), (false, Io::Eof)] {
        let (mut a, mut b) = pair();
        let mut buffer = [0; 8];
        assert_eq!(a.send(b"hel", b""), Io::Moved(3));
        assert_eq!((b.recv_keeping(&mut buffer), &buffer[..3]), (Io::Moved(3), b"hel".as_slice()));
        b.readable = true;
        assert_eq!(b.recv(&mut buffer), Io::Blocked, "what is kept does not come again");
        b.readable = true;
        assert_eq!(a.send(b"lo", b""), Io::Moved(2));
        assert_eq!((b.recv(&mut buffer), &buffer[..2]), (Io::Moved(2), b"lo".as_slice()));
        b.readable = true;
        assert_eq!(a.send(b"!", b""), Io::Moved(1));
        assert_eq!((b.recv(&mut buffer[..1]), &buffer[..1], b.bytes_in), (Io::Moved(1), b"!".as_slice(), 6));
        assert_eq!(b.send(b"x", b""), Io::Moved(1));
        if !keep {
            b.release();
            assert!(!b.has_input());
        }
        b.reset();
        b.shutdown_both();
        drop(b);
        assert_eq!((a.recv(&mut buffer), a.recv(&mut buffer)), (Io::Moved(1), Io::Blocked));
        (a.readable, a.read_closed) = (true, true);
        assert_eq!(a.recv(&mut buffer), want, "kept: {keep}");
    }
}

#[test]
fn behind_a_byte_kept_the_end_of_file_is_seen() {
    let (mut a, mut b) = pair();
    let mut buffer = [0; 8];
    assert_eq!(a.send(b"x", b""), Io::Moved(1));
    assert_eq!(b.recv_keeping(&mut buffer), Io::Moved(1));
    a.shutdown_write();
    (b.read_closed, b.readable) = (true, true);
    assert_eq!(b.recv(&mut buffer), Io::Eof);
    b.release();
    assert_eq!(b.recv(&mut buffer), Io::Eof);
}

#[test]
fn what_was_sent_ahead_waits_for_more_or_for_the_push_or_for_the_end() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut socket = Socket::new(listener.accept().unwrap().0.into());
    let arrived = || rustix::io::ioctl_fionread(&peer).unwrap();
    assert_eq!(socket.send_ahead(b"he", b"llo"), Io::Moved(5));
    // Without the push the kernel would keep it for a fifth of a second.
    socket.push();
    assert_eq!(arrived(), 5);
    assert_eq!(socket.send_ahead(b"a", b"b"), Io::Moved(2));
    assert_eq!(socket.send(b"c", b""), Io::Moved(1));
    assert_eq!(arrived(), 8);
    // The end takes it along.
    assert_eq!(socket.send_ahead(b"d", b"e"), Io::Moved(2));
    socket.shutdown_write();
    assert!(!socket.held_back);
    assert_eq!(arrived(), 10);
}

#[test]
fn urgent_data_in_front_of_the_end_are_not_taken_for_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_oobinline(&listener, true).unwrap();
    let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut socket = Socket::new(listener.accept().unwrap().0.into());
    rustix::net::send(&peer, b"u", SendFlags::OOB).unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while !ipc::tcp_info::counters(&socket).unwrap().peer_closed {
        assert!(std::time::Instant::now() < deadline);
    }
    let pipe = crate::io::splice::Pipes::default().make().unwrap();
    assert_eq!((socket.splice_in(&pipe, 8), socket.is_urgent()), (Io::Blocked, true));
    assert_eq!((socket.recv(&mut [0; 8]), socket.bytes_in), (Io::Moved(1), 1));
    assert_eq!(socket.splice_in(&pipe, 8), Io::Eof);
}

#[test]
fn both_ends_of_stream_are_to_be_exchanged_before_a_socket_is_over() {
    let (mut a, mut b) = pair();
    a.shutdown_write();
    b.read_closed = true;
    assert_eq!(b.recv(&mut [0; 8]), Io::Eof);
    assert!(!a.is_over() && !b.is_over());
    b.shutdown_write();
    assert!(b.is_over());
    assert_eq!(a.recv(&mut [0; 8]), Io::Eof);
    assert!(a.is_over());
}

#[test]
fn what_stands_behind_descriptors_on_a_unix_socket_is_read_too() {
    use rustix::net::SendAncillaryMessage;
    let (mut a, b) = pair();
    let mut b = Socket::unix(b.into());
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let own = [a.as_fd()];
    assert!(rights.push(SendAncillaryMessage::ScmRights(&own)));
    let part = [IoSlice::new(b"GET / ")];
    assert_eq!(rustix::net::sendmsg(&a, &part, &mut rights, SendFlags::empty()), Ok(6));
    assert_eq!(a.send(b"HTTP/1.1", b""), Io::Moved(8));
    let mut buffer = [0; 64];
    let (first, second) = (b.recv(&mut buffer), b.recv(&mut buffer[6..]));
    // Whether the kernel ends the first read there is its own affair.
    let Io::Moved(n) = first else { panic!("{first:?}") };
    assert!(n == 14 || second == Io::Moved(14 - n), "{first:?} {second:?}");
    assert_eq!(b.recv(&mut buffer), Io::Blocked);
    assert!(!b.is_readable());
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
