//! Starting the program anew as this master's successor: from the file it was started from, with the same arguments.
//!
//! Until the successor says that it is ready, nothing has changed here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError, SendError};
use ipc::handover::{MAX_DESCRIPTORS, ToFormer, ToSuccessor};
use ipc::snapshot::Address;

use crate::control::ClientId;
use crate::takeover::SUCCESSOR_VARIABLE;

/// How long the successor may take to become ready.
const READY: Duration = Duration::from_secs(30);

/// The program as it was started.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<std::ffi::OsString>,
}

impl Program {
    /// This process's. To be asked at its start: later the file may be another one, which is the point.
    pub fn present() -> Program {
        let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        Program { path, arguments: std::env::args_os().skip(1).collect() }
    }

    /// Where it lies.
    pub fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }
}

/// A successor that has been started.
#[derive(Debug)]
pub struct Successor {
    /// The way to it.
    pub channel: Channel,
    /// Its process.
    pub pid: u32,
    child: std::process::Child,
    /// It is given up if not ready by then; `None` once it is.
    pub deadline: Option<Instant>,
    /// Who asked for it.
    pub asker: Option<ClientId>,
}

/// What a successor has said.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing yet.
    None,
    /// It is ready.
    Ready,
    /// It is gone.
    Gone(String),
}

impl Successor {
    /// Starts `program` and offers it `listeners`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        program: &Program,
        listeners: &[(&Address, BorrowedFd<'_>)],
        asker: Option<ClientId>,
        now: Instant,
    ) -> io::Result<Successor> {
        let (mut channel, theirs) = Channel::pair()?;
        let other = |error: SendError| io::Error::other(error.to_string());
        let mut chunks = listeners.chunks(MAX_DESCRIPTORS).peekable();
        if chunks.peek().is_none() {
            channel.send(&ToSuccessor::Listeners { bound: Vec::new(), last: true }, &[]).map_err(other)?;
        }
        while let Some(chunk) = chunks.next() {
            let bound = chunk.iter().map(|(address, _)| (*address).clone()).collect();
            let fds: Vec<_> = chunk.iter().map(|(_, fd)| *fd).collect();
            let last = chunks.peek().is_none();
            channel.send(&ToSuccessor::Listeners { bound, last }, &fds).map_err(other)?;
        }
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .env(SUCCESSOR_VARIABLE, "1")
            .stdin(Stdio::from(theirs))
            .spawn()?;
        Ok(Successor { channel, pid: child.id(), child, deadline: Some(now + READY), asker })
    }

    /// Hears what it says.
    pub fn hear(&mut self) -> News {
        match self.channel.recv::<ToFormer>(&mut Vec::<OwnedFd>::new()) {
            Ok(ToFormer::Ready) => News::Ready,
            Err(RecvError::Empty) => News::None,
            Err(RecvError::Closed) => News::Gone(match self.child.try_wait() {
                Ok(Some(status)) => format!("it ended with {status}; what it said stands above"),
                Ok(None) | Err(_) => "it hung up".to_owned(),
            }),
            Err(error @ (RecvError::DescriptorsLost | RecvError::Malformed(_) | RecvError::Io(_))) => {
                News::Gone(error.to_string())
            }
        }
    }

    /// Ends it, before it is ready.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
