//! Pipes for `splice(2)`: bytes move between two sockets without entering this process.
//!
//! A pipe is taken from the pool only while bytes are on their way, so an idle relay holds none. The master has a
//! copy of every pipe's reading end, and the shared region says whose bytes it holds: so they outlive this process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc::state::MAX_PIPES;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

/// Bytes one pipe is asked to hold. Larger ones measured slower (201 against 148 µs of CPU for 1 MiB), smaller
/// ones take more system calls.
const PIPE_BYTES: usize = 256 * 1024;

/// A pipe, or the reading end of one that a former worker filled.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: Option<OwnedFd>,
    number: Option<u16>,
}

impl Pipe {
    /// Segments of the smallest pipe the kernel makes for us when its limits are reached.
    pub const MIN_SEGMENTS: usize = 2;

    fn new(number: u16) -> Result<Pipe, Errno> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Over the user's pipe limit the pipe stays at its default size, which works too, with more calls.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Pipe { read, write: Some(write), number: Some(number) })
    }

    /// The reading end of a former worker's pipe, to be emptied and dropped, with the number of bytes in it.
    ///
    /// # Errors
    /// When it is no pipe.
    fn inherited(read: OwnedFd) -> Result<(Pipe, usize), Errno> {
        let held = rustix::io::ioctl_fionread(&read)?;
        Ok((Pipe { read, write: None, number: None }, usize::try_from(held).unwrap_or(0)))
    }

    /// Its number in the shared region; `None` for an inherited one.
    #[must_use]
    pub fn number(&self) -> Option<u16> {
        self.number
    }

    /// The end that bytes come out of.
    #[must_use]
    pub fn reading_end(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// The end that bytes come out of, for somebody else.
    #[must_use]
    pub fn into_reading_end(self) -> OwnedFd {
        self.read
    }

    /// Puts `bytes` in; gives how many.
    ///
    /// # Errors
    /// When there is no room, or it is a former worker's.
    pub fn store(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let Some(write) = &self.write else { return Err(Errno::BADF) };
        rustix::io::write(write, bytes)
    }

    pub(super) fn fill(&self, from: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
        let Some(write) = &self.write else { return Err(Errno::BADF) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        rustix::pipe::splice(from, None, write, None, most.min(PIPE_BYTES), flags)
    }

    pub(super) fn drain(&self, to: BorrowedFd<'_>, most: usize, more_follows: bool) -> Result<usize, Errno> {
        let more = if more_follows { SpliceFlags::MORE } else { SpliceFlags::empty() };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK | more;
        rustix::pipe::splice(&self.read, None, to, None, most, flags)
    }
}

/// The worker's pipes, at most [`MAX_PIPES`].
#[derive(Debug, Default)]
pub struct Pipes {
    free: Vec<Pipe>,
    numbers: Vec<u16>,
    made: u16,
    inherited: usize,
}

impl Pipes {
    /// An empty pipe that has been used before.
    pub fn take(&mut self) -> Option<Pipe> {
        self.free.pop()
    }

    /// A new pipe, which costs about 6 µs and must be made known to the master before it is used.
    ///
    /// # Errors
    /// When descriptors are short, or all numbers are in use.
    pub fn make(&mut self) -> Result<Pipe, Errno> {
        let number = match self.numbers.pop() {
            Some(number) => number,
            None if self.made < MAX_PIPES => {
                self.made += 1;
                self.made - 1
            }
            None => return Err(Errno::MFILE),
        };
        Pipe::new(number).inspect_err(|_| self.numbers.push(number))
    }

    /// Takes over a former worker's pipe, see [`Pipe::inherited`].
    ///
    /// # Errors
    /// When it is no pipe.
    pub fn inherit(&mut self, read: OwnedFd) -> Result<(Pipe, usize), Errno> {
        let inherited = Pipe::inherited(read)?;
        self.inherited += 1;
        Ok(inherited)
    }

    /// Gives a pipe back that is empty.
    pub fn put(&mut self, pipe: Pipe) {
        if pipe.number.is_some() {
            self.free.push(pipe);
        } else {
            self.discard(pipe);
        }
    }

    /// Gives a pipe back with bytes in it that nobody wants. They are read and dropped: the master has the reading
    /// end too, and would keep them as long as the pipe's number is not used again.
    pub fn empty(&mut self, pipe: Pipe, scratch: &mut [u8]) {
        for _ in 0..=PIPE_BYTES.div_ceil(scratch.len().max(1)) {
            match rustix::io::read(&pipe.read, &mut *scratch) {
                Ok(1..) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return self.put(pipe),
                Ok(0) | Err(_) => break,
            }
        }
        self.discard(pipe);
    }

    /// Closes a pipe, with whatever is in it.
    pub fn discard(&mut self, pipe: Pipe) {
        match pipe.number {
            Some(number) => self.numbers.push(number),
            None => self.inherited = self.inherited.saturating_sub(1),
        }
    }

    /// Closes up to `most` pipes that are not in use; how many were closed.
    pub fn trim(&mut self, most: usize) -> usize {
        let from = self.free.len().saturating_sub(most);
        let closed = self.free.drain(from..).filter_map(|pipe| pipe.number);
        let before = self.numbers.len();
        self.numbers.extend(closed);
        self.numbers.len() - before
    }

    /// Descriptors that the pipes take.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        2 * (usize::from(self.made) - self.numbers.len()) + self.inherited
    }
}
