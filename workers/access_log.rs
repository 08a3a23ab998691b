//! The access log of one worker: lines gathered in a buffer and written whole.
//!
//! Each worker writes to the same file, opened for appending, with one `write` for some hundred lines, so that lines
//! of different workers never mix. To a pipe it writes whole lines of at most 4096 bytes at a time, which the kernel
//! does not take apart (pipe(7), `PIPE_BUF`); only a single longer line can be.
//!
//! Logging must never hold up the loop, grow without bound or bring the worker down: a reader that does not keep up,
//! a full disk or a closed pipe costs lines, which are counted and warned of, and nothing else. A worker that is
//! killed takes the lines of its last second along.

mod line;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};

use ipc::snapshot::LogFormat;
use ipc::write_now::write_now;
use log::warn;
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, write};

use crate::date::DateCache;
pub use line::{Entry, MAX_LINE_BYTES};

/// So many bytes are written at once, without waiting for [`FLUSH_MS`].
pub const FLUSH_BYTES: usize = 64 * 1024;
/// A line waits no longer than this for others.
pub const FLUSH_MS: u64 = 1000;
/// What is kept for a reader that does not keep up; beyond it new lines are dropped.
pub const MAX_KEPT_BYTES: usize = 256 * 1024;
/// How long a reader that does not keep up is left alone.
const RETRY_MS: u64 = 100;
/// Dropped lines are warned of no more often.
const WARN_MS: u64 = 10_000;
/// The access log as one worker writes it. All times are the caller's monotonic milliseconds, but for
/// [`Entry::unix_ms`].
#[derive(Debug)]
pub struct AccessLog {
    fd: OwnedFd,
    is_file: bool,
    format: LogFormat,
    dates: DateCache,
    /// Lines not yet written; the first may be the rest of one that was written in part.
    buffer: Vec<u8>,
    /// What was written last did not end with a line's end.
    torn: bool,
    /// The buffer begins with a line end that stands for the dropped rest of a torn line.
    patched: bool,
    /// The reader does not keep up: nothing is tried before `due_ms`.
    jammed: bool,
    due_ms: Option<u64>,
    dropped: u64,
    warned_dropped: u64,
    warned_ms: Option<u64>,
}

impl AccessLog {
    /// A log that writes to `fd`: a file opened for appending, or whatever standard output is.
    #[must_use]
    pub fn new(fd: OwnedFd, format: LogFormat) -> AccessLog {
        AccessLog {
            is_file: is_file(&fd),
            fd,
            format,
            dates: DateCache::new(),
            buffer: Vec::new(),
            torn: false,
            patched: false,
            jammed: false,
            due_ms: None,
            dropped: 0,
            warned_dropped: 0,
            warned_ms: None,
        }
    }

    /// Adds a line. Writes only when [`FLUSH_BYTES`] have gathered.
    pub fn record(&mut self, entry: &Entry<'_>, now_ms: u64) {
        if self.buffer.len() >= MAX_KEPT_BYTES {
            self.dropped += 1;
            self.warn("its reader does not keep up", now_ms);
            return;
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(FLUSH_BYTES + MAX_LINE_BYTES);
        }
        line::append(&mut self.buffer, entry, self.format, &mut self.dates);
        self.due_ms.get_or_insert(now_ms.saturating_add(FLUSH_MS));
        if self.buffer.len() >= FLUSH_BYTES && !self.jammed {
            self.flush(now_ms);
        }
    }

    /// When [`AccessLog::flush`] is to be called; `None` while there is nothing to write.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.due_ms
    }

    /// How many lines were dropped in all.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes what has gathered. What a reader has no room for is kept for another attempt; what cannot be written
    /// for another reason is dropped.
    pub fn flush(&mut self, now_ms: u64) {
        self.due_ms = None;
        self.jammed = false;
        let mut written = 0;
        while written < self.buffer.len() {
            match self.write_some(&self.buffer[written..]) {
                Ok(0) => return self.drop_kept(written, Errno::IO, now_ms),
                Ok(n) => written = (written + n).min(self.buffer.len()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.jammed = true;
                    self.due_ms = Some(now_ms.saturating_add(RETRY_MS));
                    break;
                }
                Err(error) => return self.drop_kept(written, error, now_ms),
            }
        }
        self.forget(written);
    }

    /// Lines look so from now on.
    pub fn set_format(&mut self, format: LogFormat) {
        self.format = format;
    }

    /// Writes to `fd` from now on. What the former one has room for is written there first.
    pub fn replace(&mut self, fd: OwnedFd, now_ms: u64) {
        self.flush(now_ms);
        if self.torn {
            // The rest of a line whose beginning is in the old file.
            let end = memchr::memchr(b'\n', &self.buffer).map_or(self.buffer.len(), |end| end + 1);
            self.buffer.drain(..end);
            self.dropped += u64::from(!self.patched);
            (self.torn, self.patched) = (false, false);
        }
        self.is_file = is_file(&fd);
        self.fd = fd;
        self.jammed = false;
        self.due_ms = (!self.buffer.is_empty()).then_some(now_ms);
    }

    /// One attempt at a beginning of `bytes`, which never waits for a reader.
    fn write_some(&self, bytes: &[u8]) -> Result<usize, Errno> {
        if self.is_file {
            return write(&self.fd, bytes);
        }
        write_now(&self.fd, bytes)
    }

    /// Takes `written` bytes off the buffer's beginning.
    fn forget(&mut self, written: usize) {
        if let Some(last) = written.checked_sub(1) {
            self.torn = self.buffer[last] != b'\n';
            self.patched = false;
            self.buffer.drain(..written);
        }
        if self.buffer.is_empty() {
            self.buffer.shrink_to(FLUSH_BYTES + MAX_LINE_BYTES);
        }
    }

    /// Drops everything after the `written` bytes.
    fn drop_kept(&mut self, written: usize, error: Errno, now_ms: u64) {
        self.forget(written);
        let lines = memchr::memchr_iter(b'\n', &self.buffer).count() - usize::from(self.patched);
        self.dropped += u64::try_from(lines).unwrap_or(u64::MAX);
        self.buffer.clear();
        if self.torn {
            // What is written next must not continue the torn line.
            self.buffer.push(b'\n');
            self.patched = true;
        }
        self.warn(error, now_ms);
    }

    fn warn(&mut self, why: impl std::fmt::Display, now_ms: u64) {
        if self.warned_ms.is_none_or(|warned_ms| now_ms.saturating_sub(warned_ms) >= WARN_MS) {
            let lines = self.dropped - self.warned_dropped;
            warn!("access log: {lines} lines dropped: {why}; requests go on being served, new lines are still tried");
            self.warned_ms = Some(now_ms);
            self.warned_dropped = self.dropped;
        }
    }
}

fn is_file(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}
