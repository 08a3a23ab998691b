//! One end of the `SOCK_SEQPACKET` socket pair between the master and a worker.
//!
//! A record is one message with its descriptors. SEQPACKET because it keeps record boundaries and, unlike
//! a datagram pair, reports the peer's death as end of file.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags, SocketType,
};
use sendfd::SendWithFd;
use serde::{Serialize, de::DeserializeOwned};

use crate::fault;
use crate::message::MAX_FDS;

/// The longest record, in bytes; [`Channel::send`] refuses longer ones.
pub const MAX_RECORD_BYTES: usize = 128 * 1024;

/// One end. Non-blocking, close-on-exec.
#[derive(Debug)]
pub struct Channel {
    // sendfd implements its trait for the standard library's socket types only; a SEQPACKET descriptor
    // wrapped so sends and closes as well as a datagram one.
    socket: UnixDatagram,
    incoming: Box<[u8]>,
    outgoing: Vec<u8>,
    raw_fds: Vec<RawFd>,
}

/// Why a message was not sent.
#[derive(Debug)]
pub enum SendError {
    /// The peer's queue, or the kernel's count of descriptors under way, is full, or the kernel has no memory for the
    /// message: try later. No event tells when.
    Full,
    /// The peer is gone.
    Closed,
    /// The message is longer than [`MAX_RECORD_BYTES`] or has over [`MAX_FDS`] descriptors.
    TooLarge,
    /// Anything else.
    Io(io::Error),
}

/// Why no message was received.
#[derive(Debug)]
pub enum RecvError {
    /// Nothing is there now.
    Empty,
    /// The peer is gone.
    Closed,
    /// A message's descriptors could not be received for want of room for them; the message is lost.
    DescriptorsLost,
    /// The record was cut short, does not decode, or came with another number of descriptors than it says.
    /// The two sides no longer agree; the caller must give the channel up.
    Malformed(&'static str),
    /// Anything else.
    Io(io::Error),
}

impl std::fmt::Display for SendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SendError::Full => f.write_str("the channel is full"),
            SendError::Closed => f.write_str("the other side has closed the channel"),
            SendError::TooLarge => f.write_str("the message is too large"),
            SendError::Io(error) => error.fmt(f),
        }
    }
}

impl std::fmt::Display for RecvError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RecvError::Empty => f.write_str("no message is there"),
            RecvError::Closed => f.write_str("the other side has closed the channel"),
            RecvError::DescriptorsLost => {
                f.write_str("descriptors were lost on the way: the descriptor limit is reached")
            }
            RecvError::Malformed(what) => write!(f, "malformed message: {what}"),
            RecvError::Io(error) => error.fmt(f),
        }
    }
}

impl Channel {
    /// A connected pair: our end, and the one to give to the child.
    ///
    /// # Errors
    /// When the kernel refuses, for want of descriptors usually.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        Ok((Channel::from_fd(ours), theirs))
    }

    /// Wraps the end that a child was started with.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Channel {
        Channel {
            socket: UnixDatagram::from(fd),
            incoming: vec![0; MAX_RECORD_BYTES].into_boxed_slice(),
            outgoing: Vec::new(),
            raw_fds: Vec::new(),
        }
    }

    /// Sends one message with its descriptors, of which the kernel makes copies.
    ///
    /// # Errors
    /// See [`SendError`]; nothing has been sent then.
    pub fn send<M: Serialize>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        let count = u8::try_from(fds.len()).ok().filter(|&n| usize::from(n) <= MAX_FDS);
        let Some(count) = count else { return Err(SendError::TooLarge) };
        self.outgoing.clear();
        self.outgoing.push(count);
        let buffer = std::mem::take(&mut self.outgoing);
        self.outgoing = postcard::to_extend(message, buffer).map_err(|_| SendError::TooLarge)?;
        if self.outgoing.len() > MAX_RECORD_BYTES {
            return Err(SendError::TooLarge);
        }
        self.raw_fds.clear();
        self.raw_fds.extend(fds.iter().map(AsRawFd::as_raw_fd));
        fault::instant();
        loop {
            let sent = self.socket.send_with_fd(&self.outgoing, &self.raw_fds);
            fault::instant();
            let Err(error) = sent else { return Ok(()) };
            return Err(match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::INTR) => continue,
                // The kernel's memory for messages and descriptors under way is short for an instant, or its group's is.
                Some(
                    rustix::io::Errno::AGAIN
                    | rustix::io::Errno::NOBUFS
                    | rustix::io::Errno::NOMEM
                    | rustix::io::Errno::TOOMANYREFS,
                ) => SendError::Full,
                Some(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => SendError::Closed,
                Some(_) | None => SendError::Io(error),
            });
        }
    }

    /// Receives one message; its descriptors, all close-on-exec, replace what `fds` held.
    ///
    /// # Errors
    /// See [`RecvError`].
    pub fn recv<M: DeserializeOwned>(&mut self, fds: &mut Vec<OwnedFd>) -> Result<M, RecvError> {
        fds.clear();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut self.incoming)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            ) {
                Ok(received) => break received,
                // A peer that died with messages unread shows as a reset, once, in front of what it had still sent.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(RecvError::Empty),
                Err(errno) => return Err(RecvError::Io(errno.into())),
            }
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            fds.clear();
            return Err(RecvError::DescriptorsLost);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(RecvError::Malformed("longer than a record may be"));
        }
        fault::instant();
        let Some((&count, body)) = self.incoming[..received.bytes].split_first() else {
            return Err(RecvError::Closed);
        };
        if usize::from(count) != fds.len() {
            return Err(RecvError::Malformed("another number of descriptors than announced"));
        }
        match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            Ok(_) => Err(RecvError::Malformed("bytes after the message's end")),
            Err(_) => Err(RecvError::Malformed("does not decode")),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Passed, Task, ToMaster, ToWorker};
    use crate::origin::Origin;

    fn pair() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel::from_fd(theirs))
    }

    fn passed(id: u32) -> Passed {
        Passed {
            id,
            listener: 0,
            peer: "192.0.2.1:7".parse().ok(),
            origin: Origin::Direct,
            task: Task::Serve,
            kept: true,
        }
    }

    #[test]
    fn a_message_arrives_with_its_descriptors_in_order() {
        let (mut a, mut b) = pair();
        let files: Vec<OwnedFd> =
            (0..MAX_FDS).map(|_| rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap()).collect();
        for (i, file) in files.iter().enumerate() {
            rustix::io::write(file, &i.to_le_bytes()).unwrap();
        }
        let sent = ToWorker::Pass((0..253).map(passed).collect());
        a.send(&sent, &files.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        let mut fds = Vec::new();
        assert_eq!(b.recv::<ToWorker>(&mut fds).unwrap(), sent);
        assert_eq!(fds.len(), MAX_FDS);
        for (i, fd) in fds.iter().enumerate() {
            let mut bytes = [0; 8];
            rustix::io::pread(fd, &mut bytes, 0).unwrap();
            assert_eq!(usize::from_le_bytes(bytes), i);
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn the_peers_death_is_end_of_file() {
        let (mut a, b) = pair();
        drop(b);
        assert!(matches!(a.recv::<ToMaster>(&mut Vec::new()), Err(RecvError::Closed)));
        assert!(matches!(a.send(&ToMaster::Ready, &[]), Err(SendError::Closed)));
    }

    #[test]
    fn what_a_peer_sent_before_its_death_arrives_even_if_it_had_not_read_everything() {
        let (mut a, mut b) = pair();
        b.send(&ToMaster::Ready, &[]).unwrap();
        for id in 0..3 {
            a.send(&ToMaster::Finished(vec![id]), &[]).unwrap();
        }
        drop(a);
        for id in 0..3 {
            assert_eq!(b.recv::<ToMaster>(&mut Vec::new()).unwrap(), ToMaster::Finished(vec![id]));
        }
        assert!(matches!(b.recv::<ToMaster>(&mut Vec::new()), Err(RecvError::Closed)));
    }

    #[test]
    fn nothing_there_is_empty_and_a_full_queue_is_full() {
        let (mut a, mut b) = pair();
        assert!(matches!(b.recv::<ToMaster>(&mut Vec::new()), Err(RecvError::Empty)));
        let mut sent = 0;
        while a.send(&ToMaster::Finished(vec![7]), &[]).is_ok() {
            sent += 1;
            assert!(sent < 1_000_000);
        }
        assert!(matches!(a.send(&ToMaster::Ready, &[]), Err(SendError::Full)));
        for _ in 0..sent {
            assert_eq!(b.recv::<ToMaster>(&mut Vec::new()).unwrap(), ToMaster::Finished(vec![7]));
        }
        assert!(matches!(b.recv::<ToMaster>(&mut Vec::new()), Err(RecvError::Empty)));
    }

    #[test]
    fn too_many_descriptors_or_bytes_are_refused_before_sending() {
        let (mut a, mut b) = pair();
        let file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(matches!(a.send(&ToMaster::Ready, &vec![file.as_fd(); MAX_FDS + 1]), Err(SendError::TooLarge)));
        let long = ToMaster::Finished(vec![u32::MAX; MAX_RECORD_BYTES]);
        assert!(matches!(a.send(&long, &[]), Err(SendError::TooLarge)));
        assert!(matches!(b.recv::<ToMaster>(&mut Vec::new()), Err(RecvError::Empty)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_message_or_malformed(bytes in proptest::collection::vec(0u8.., 1..200)) {
            let (a, mut b) = pair();
            rustix::net::send(&a, &bytes, rustix::net::SendFlags::empty()).unwrap();
            match b.recv::<ToWorker>(&mut Vec::new()) {
                Ok(_) | Err(RecvError::Malformed(_)) => {}
                Err(other) => proptest::prop_assert!(false, "{other}"),
            }
        }
    }
}
