//! A configuration snapshot in a sealed memory file: written once by the master, read by any number of workers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};

use crate::snapshot::Snapshot;

/// The longest encoded snapshot that is read, in bytes.
const MAX_SNAPSHOT_BYTES: u64 = 256 * 1024 * 1024;

/// Encodes `snapshot` into a new memory file that nobody can change any more.
///
/// # Errors
/// When memory or descriptors are short.
pub fn write(snapshot: &Snapshot) -> io::Result<OwnedFd> {
    let bytes = postcard::to_stdvec(snapshot).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let fd = rustix::fs::memfd_create("pointsman-snapshot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest)?;
        rest = &rest[n..];
    }
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(fd)
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// When the file is not sealed, too long, or holds anything else.
pub fn read(fd: impl AsFd) -> io::Result<Snapshot> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if !rustix::fs::fcntl_get_seals(&fd)?.contains(SealFlags::WRITE) {
        return Err(invalid("the snapshot is not sealed"));
    }
    let size = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
    if size > MAX_SNAPSHOT_BYTES {
        return Err(invalid("the snapshot is too long"));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(&fd, &mut bytes[done..], done as u64)? {
            0 => return Err(invalid("the snapshot is cut short")),
            n => done += n,
        }
    }
    postcard::from_bytes(&bytes).map_err(|_| invalid("the snapshot does not decode"))
}
