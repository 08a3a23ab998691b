//! Starting the program anew as this master's successor: from the file it was started from, with the same arguments.
//!
//! Until the successor says that it is ready, nothing has changed here.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError, SendError};
use ipc::handover::{Bound, MAX_DESCRIPTORS, ToFormer, ToSuccessor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::ClientId;
use crate::process::{End, Process, Spawn};

/// How long a process that has closed its channel may take to end, before that is all that is said of it.
const END: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// The program as it was started.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// This process's. To be asked at its start: later the file may be another one, which is the point.
    pub fn present() -> Program {
        let file = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let mut arguments = std::env::args_os();
        let path = arguments.next().and_then(|name| called(&name, &file)).unwrap_or(file);
        Program { path, arguments: arguments.collect() }
    }

    /// To start it again: its path, and its arguments.
    pub fn words(&self) -> impl Iterator<Item = &OsStr> {
        std::iter::once(self.path.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str))
    }

    /// Where it lies.
    pub fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }
}

/// The path by which this program was called, symbolic links and all: a later version may be where they point then.
/// `None` when that is not known; a caller can make a program believe what it likes.
fn called(name: &OsString, file: &Path) -> Option<PathBuf> {
    let is_it = |path: &PathBuf| match (std::fs::metadata(path), std::fs::metadata(file)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    };
    let name = Path::new(name);
    if name.components().count() > 1 {
        return std::path::absolute(name).ok().filter(is_it);
    }
    let search = std::env::var_os("PATH")?;
    std::env::split_paths(&search).map(|directory| directory.join(name)).find(|path| path.is_absolute() && is_it(path))
}

/// A successor that has been started.
#[derive(Debug)]
pub struct Successor {
    /// The way to it.
    pub channel: Channel,
    /// Its process's number.
    pub pid: u32,
    process: Box<dyn Process>,
    /// It is given up if not ready by then; `None` once it is.
    pub deadline: Option<Instant>,
    /// Who asked for it.
    pub asker: Option<ClientId>,
    /// It was told that it has been given everything.
    pub told_all: bool,
}

/// What a successor has said.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing yet.
    None,
    /// It is ready, and understands connections in this version of the handover.
    Ready(u16),
    /// It is gone.
    Gone(String),
}

impl Successor {
    /// Starts `program` and offers it `listeners`. It is to be ready within `timeout`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        program: &Program,
        spawn: &dyn Spawn,
        listeners: &[(Bound, BorrowedFd<'_>)],
        asker: Option<ClientId>,
        timeout: Duration,
    ) -> io::Result<Successor> {
        let (mut channel, theirs) = Channel::pair()?;
        let process = spawn.successor(program, theirs)?;
        // Only then: one that has begun and is not known of gets nothing, and ends.
        match offer(&mut channel, listeners) {
            // One that has ended already is heard of like one that ends later.
            Ok(()) | Err(SendError::Closed) => {}
            Err(error @ (SendError::Full | SendError::TooLarge | SendError::Io(_))) => {
                process.end();
                return Err(io::Error::other(error.to_string()));
            }
        }
        let pid = process.pid().as_raw_nonzero().get().unsigned_abs();
        Ok(Successor { channel, pid, process, deadline: Some(Instant::now() + timeout), asker, told_all: false })
    }

    /// Hears what it says.
    pub fn hear(&mut self) -> News {
        match self.channel.recv::<ToFormer>(&mut Vec::<OwnedFd>::new()) {
            Ok(ToFormer::Ready { version }) => News::Ready(version),
            Ok(ToFormer::Failed { why }) => News::Gone(why),
            Ok(ToFormer::Taken) => News::None,
            Err(RecvError::Empty) => News::None,
            Err(RecvError::Closed) => News::Gone(match self.end() {
                // Once it has been let go nobody tells how.
                Some(End::Unknown) => "the new one ended; what it said is in the master's log".to_owned(),
                Some(end @ (End::Exited(_) | End::Killed(_))) => {
                    format!("the new one ended ({end}); what it said is in the master's log")
                }
                None => "the new one does not speak to this master".to_owned(),
            }),
            Err(error @ (RecvError::DescriptorsLost | RecvError::Malformed(_) | RecvError::Io(_))) => {
                News::Gone(format!("the new one makes no sense: {error}"))
            }
        }
    }

    /// How it ended, if it has or is about to.
    fn end(&mut self) -> Option<End> {
        let _ = poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&END));
        self.process.reap()
    }

    /// From now on the service manager looks after it, if there is one.
    pub fn let_go(&self) {
        self.process.let_go();
    }

    /// Ends it, before it is ready.
    pub fn kill(self) {
        self.process.end();
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Sends the listening sockets, as many in each message as there may be.
fn offer(channel: &mut Channel, listeners: &[(Bound, BorrowedFd<'_>)]) -> Result<(), SendError> {
    let mut chunks = listeners.chunks(MAX_DESCRIPTORS).peekable();
    if chunks.peek().is_none() {
        return channel.send(&ToSuccessor::Listeners { bound: Vec::new(), last: true }, &[]);
    }
    while let Some(chunk) = chunks.next() {
        let bound = chunk.iter().map(|(bound, _)| bound.clone()).collect();
        let fds: Vec<_> = chunk.iter().map(|(_, fd)| *fd).collect();
        let last = chunks.peek().is_none();
        channel.send(&ToSuccessor::Listeners { bound, last }, &fds)?;
    }
    Ok(())
}
