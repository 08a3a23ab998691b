//! How the limit of open files is shared out. Master and worker must agree on it: a worker that has no descriptors
//! left for a message from the master loses the message.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use sendfd::SendWithFd;

use crate::message::MAX_FDS;

/// Descriptors of the master or a worker that are no connection's and no pipe's: its loop, channel, logs and the
/// like, generously.
pub const OVERHEAD: u64 = 48;

/// Descriptors sent to a worker in one message at most, under a limit of `nofile` open files. A worker keeps as many
/// free.
#[must_use]
pub fn batch(nofile: u64) -> u64 {
    (nofile / 8).clamp(1, MAX_FDS as u64)
}

/// A copy, close-on-exec, of a descriptor of which only the number is known, such as one that a parent process left
/// open. It goes to this process by mail: there is no other way without `unsafe`.
///
/// # Errors
/// When there is no such descriptor, or no room for another.
pub fn duplicate(raw: RawFd) -> io::Result<OwnedFd> {
    let (here, there) = UnixDatagram::pair()?;
    here.send_with_fd(b"x", &[raw])?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(&there, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)?;
    let received = ancillary
        .drain()
        .find_map(|message| if let RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None });
    received.ok_or_else(|| io::Error::other("no room for another descriptor"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_number_becomes_a_descriptor() {
        let file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::empty()).unwrap();
        rustix::io::write(&file, b"abc").unwrap();
        let copy = duplicate(file.as_raw_fd()).unwrap();
        drop(file);
        let mut bytes = [0; 3];
        rustix::io::pread(&copy, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"abc");
        assert!(rustix::io::fcntl_getfd(&copy).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert!(duplicate(1 << 20).is_err());
    }
}
