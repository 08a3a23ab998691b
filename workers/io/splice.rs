//! Pipes for `splice(2)`: bytes move between two sockets without entering this process.
//!
//! A pipe is taken from the pool only while bytes are on their way, so an idle relay holds none.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

/// Bytes one pipe is asked to hold. Larger ones measured slower (201 against 148 µs of CPU for 1 MiB), smaller
/// ones take more system calls.
const PIPE_BYTES: usize = 256 * 1024;
/// Empty pipes kept for reuse at most.
const KEPT: usize = 64;

/// Both ends of a pipe.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// Segments of the smallest pipe the kernel makes for us when its limits are reached.
    pub const MIN_SEGMENTS: usize = 2;

    fn new() -> Result<Pipe, Errno> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Over the user's pipe limit the pipe stays at its default size, which works too, with more calls.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Pipe { read, write })
    }

    pub(super) fn fill(&self, from: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        rustix::pipe::splice(from, None, &self.write, None, most.min(PIPE_BYTES), flags)
    }

    pub(super) fn drain(&self, to: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        rustix::pipe::splice(&self.read, None, to, None, most, flags)
    }
}

/// Empty pipes waiting to be used again; making one costs about 6 µs.
#[derive(Debug, Default)]
pub struct Pipes {
    free: Vec<Pipe>,
}

impl Pipes {
    /// An empty pipe.
    ///
    /// # Errors
    /// When descriptors are short.
    pub fn take(&mut self) -> Result<Pipe, Errno> {
        self.free.pop().map_or_else(Pipe::new, Ok)
    }

    /// Gives a pipe back, which must be empty: one with bytes in it must be dropped.
    pub fn put(&mut self, pipe: Pipe) {
        if self.free.len() < KEPT {
            self.free.push(pipe);
        }
    }
}
