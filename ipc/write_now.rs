//! Writing to a log that somebody else reads, without ever waiting for him.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, IoSlice, ReadWriteFlags, pwritev2, write};

/// The most a pipe takes as one piece (Linux's `PIPE_BUF`, pipe(7)).
const PIECE_BYTES: usize = 4096;

/// A terminal once more, as an open file of our own that does not block: of the one we were given the kernel tells only
/// that there is room for a byte, and waits for whoever wants to write more. `None` for everything else, and where it
/// cannot be opened.
#[must_use]
pub fn own_terminal(fd: impl AsFd) -> Option<OwnedFd> {
    if !rustix::termios::isatty(&fd) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// Writes a beginning of `lines`: as many whole ones as a pipe takes in one piece, so that those of several processes do
/// not mix, or the first if it is longer.
///
/// The standard descriptors are open files shared with whoever started this process, so they must not be set to
/// `O_NONBLOCK`: each write says itself that it must not wait. A regular file is for `write`: it has no reader.
///
/// # Errors
/// `AGAIN` when there is no room now; whatever the system says otherwise.
pub fn write_now(fd: impl AsFd, lines: &[u8]) -> Result<usize, Errno> {
    let bytes = whole_lines(lines);
    match pwritev2(&fd, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
        // A terminal, for example, which should be one by [`own_terminal`].
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::SPIPE) => {
            let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
            match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
                0 => Err(Errno::AGAIN),
                _ => write(&fd, bytes),
            }
        }
        result => result,
    }
}

fn whole_lines(bytes: &[u8]) -> &[u8] {
    let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
    let end = memchr::memrchr(b'\n', piece).or_else(|| memchr::memchr(b'\n', bytes));
    end.map_or(bytes, |end| &bytes[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let piece = [b'x'; 4096];
        let mut written = 0;
        let end = loop {
            match write_now(&writer, &piece) {
                Ok(n) => written += n,
                Err(errno) => break errno,
            }
        };
        assert_eq!(end, Errno::AGAIN);
        assert!(written >= 4096);
        let mut piece = [0; 4096];
        assert_eq!(rustix::io::read(&reader, &mut piece), Ok(4096));
        assert_eq!(write_now(&writer, b"more"), Ok(4));
        drop(reader);
        assert_eq!(write_now(&writer, b"more"), Err(Errno::PIPE));
    }
}
