//! Finding who has what this master needs: the workers of a master that has died, or the master that started this
//! one as its successor. Takes listening sockets here; live connections come once this master is ready.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError, SendError};
use ipc::control::{Greeting, Request, Role};
use ipc::handover::{self, ToFormer, ToSuccessor};
use ipc::snapshot::{Address, Snapshot};
use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;

use crate::control::place;

/// Tells a master that its standard input is the channel to the master it succeeds.
pub const SUCCESSOR_VARIABLE: &str = "POINTSMAN_SUCCESSOR";

/// How long somebody behind a control socket may take to greet. Orphans greet at once; where the last one has been
/// asked, nobody does.
const GREET: Duration = Duration::from_millis(300);
/// How long a former side may take to give its listening sockets.
const GIVE: Duration = Duration::from_secs(5);
/// Orphans asked behind one control socket at most.
const ORPHANS: usize = 1024;

/// One that this master succeeds.
#[derive(Debug)]
pub struct Former {
    /// The way to it.
    pub channel: Channel,
    /// What it is, for the log.
    pub name: String,
    /// Its listening sockets, as far as they have not been taken.
    listeners: Vec<(Address, OwnedFd)>,
}

impl Former {
    /// The master that started this one.
    ///
    /// # Errors
    /// When it does not give its listening sockets.
    pub fn master(channel: OwnedFd) -> Result<Former, String> {
        let mut former =
            Former { channel: Channel::from_fd(channel), name: "the former master".to_owned(), listeners: Vec::new() };
        former.take_listeners()?;
        Ok(former)
    }

    /// Says that its connections can be served now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn tell_ready(&mut self) -> Result<(), SendError> {
        self.channel.send(&ToFormer::Ready, &[])
    }

    fn take_listeners(&mut self) -> Result<(), String> {
        let mut fds = Vec::new();
        loop {
            match receive(&mut self.channel, &mut fds, GIVE)? {
                ToSuccessor::Listeners { bound, last } => {
                    self.listeners.extend(bound.into_iter().zip(fds.drain(..)));
                    if last {
                        return Ok(());
                    }
                }
                ToSuccessor::Connections(_) => return Err(format!("{} gives connections unasked", self.name)),
            }
        }
    }
}

/// The workers that a dead master left with listeners that `snapshot` wants. `control` is its own control socket's
/// place, if that is not the usual directory.
pub fn orphans(snapshot: &Snapshot, control: Option<&Path>) -> Vec<Former> {
    let mut paths = place::sockets(&place::directory());
    paths.extend(control.map(Path::to_owned).filter(|path| !paths.contains(path)));
    paths.iter().flat_map(|path| behind(path, snapshot)).collect()
}

fn behind(path: &Path, snapshot: &Snapshot) -> Vec<Former> {
    let mut found = Vec::new();
    for _ in 0..ORPHANS {
        match ask(path) {
            Ok(Some(former)) => {
                let wanted = |address: &Address| snapshot.listeners.iter().any(|listener| listener.bind == *address);
                if !former.listeners.iter().any(|(address, _)| wanted(address)) {
                    // Dropping the channel leaves it as it was.
                    return found;
                }
                info!("{} has listeners of this configuration: taking over from it", former.name);
                found.push(former);
            }
            Ok(None) => return found,
            Err(why) => {
                warn!("{}: {why}; not taken over", path.display());
                return found;
            }
        }
    }
    found
}

/// Asks whoever is behind a control socket; `None` when that is no orphan, or nobody.
fn ask(path: &Path) -> Result<Option<Former>, String> {
    let Ok(fd) = place::connect(path) else { return Ok(None) };
    let mut channel = Channel::from_fd(fd);
    let Ok(greeting) = receive::<Greeting>(&mut channel, &mut Vec::new(), GREET) else { return Ok(None) };
    if greeting.role != Role::Orphan || greeting.version != ipc::control::VERSION {
        return Ok(None);
    }
    let name = format!("{} (pid {})", greeting.config, greeting.pid);
    channel.send(&Request::TakeOver { version: handover::VERSION }, &[]).map_err(|error| error.to_string())?;
    let mut former = Former { channel, name, listeners: Vec::new() };
    former.take_listeners()?;
    Ok(Some(former))
}

/// The listening socket that one of `formers` has bound to `address`.
pub fn listener(formers: &mut [Former], address: &Address) -> Option<OwnedFd> {
    formers.iter_mut().find_map(|former| {
        let at = former.listeners.iter().position(|(bound, _)| bound == address)?;
        Some(former.listeners.swap_remove(at).1)
    })
}

/// Waits for one message.
fn receive<M: DeserializeOwned>(channel: &mut Channel, fds: &mut Vec<OwnedFd>, timeout: Duration) -> Result<M, String> {
    let end = Instant::now() + timeout;
    loop {
        match channel.recv(fds) {
            Ok(message) => return Ok(message),
            Err(RecvError::Empty) => {}
            Err(
                error @ (RecvError::Closed | RecvError::DescriptorsLost | RecvError::Malformed(_) | RecvError::Io(_)),
            ) => return Err(error.to_string()),
        }
        let left = end.checked_duration_since(Instant::now()).ok_or("it does not answer")?;
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&channel.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.to_string()),
        }
    }
}

impl AsFd for Former {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
