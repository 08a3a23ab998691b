//! The master's control socket: takes requests of `master reload` and the like, and gives back answers. It knows who
//! may ask and how many at once; what is asked for is done elsewhere.
//!
//! Only processes of the master's own user, and root's, are heard. Nobody holds up the loop: a client that does not
//! ask, or does not take its answer, is dropped.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError};
use ipc::control::{Answer, Greeting, Request, Role, VERSION};
use log::{debug, warn};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::listen::SocketFile;

pub mod ask;
pub mod beside;
pub mod place;

/// Clients at once at most; further ones wait in the kernel's queue.
pub const CLIENTS: usize = 8;

/// How long a client may take to say what it wants.
const ASK: Duration = Duration::from_secs(5);

/// Connections that wait to be taken at most: a worker that is stopped for long may be the only one behind it.
const BACKLOG: i32 = 1024;

/// How long to wait when a connection cannot be taken in: nothing tells when it can, and it is announced only once.
const AGAIN: Duration = Duration::from_millis(100);

/// Connections taken in one turn at most.
const ACCEPTS: usize = 16;

/// One client, and no later one in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientId {
    slot: usize,
    serial: u64,
}

/// A client that waits for what comes of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// Which.
    pub client: ClientId,
    /// It is at a terminal.
    pub color: bool,
}

#[derive(Debug)]
struct Client {
    channel: Channel,
    serial: u64,
    /// When it must have asked; `None` once it has.
    ask_by: Option<Instant>,
}

/// Why there is no control socket, in words for the operator.
#[derive(Debug)]
pub enum OpenError {
    /// Another master has begun, and both must not go on.
    AnotherMaster(String),
    /// It cannot be made.
    Failed(String),
}

impl From<String> for OpenError {
    fn from(why: String) -> OpenError {
        OpenError::Failed(why)
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::AnotherMaster(why) | OpenError::Failed(why) => f.write_str(why),
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Server {
    socket: OwnedFd,
    name: Name,
    clients: [Option<Client>; CLIENTS],
    first_token: usize,
    serial: u64,
    config: String,
    /// Connections may be waiting.
    ready: bool,
    /// One could not be taken in: it is tried again then.
    again_at: Option<Instant>,
    /// Whoever comes is somebody else's.
    closed: bool,
}

/// Where a socket is found.
#[derive(Debug)]
struct Name {
    /// Where it belongs.
    place: PathBuf,
    /// Its present name. Removed in the end.
    file: SocketFile,
}

impl Name {
    /// Finds out what its name is now: false when it has none.
    fn find(&mut self) -> bool {
        self.file.is_there()
            || [self.place.clone()]
                .into_iter()
                .chain(beside::names(&self.place))
                .any(|path| self.file.has_moved_to(path))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // What is removed is what it is called now.
        self.find();
    }
}

impl Server {
    /// Begins to listen at `path`, in a directory that nobody else can write to. `config` is what the master tells of
    /// itself. A socket that a dead master left is replaced. Clients have the tokens from `first_token` on. `known` is
    /// what there was when this master looked for others.
    ///
    /// # Errors
    /// When a live master has it, or it cannot be made.
    pub fn open(
        path: &Path,
        config: String,
        first_token: usize,
        known: Option<&beside::Sockets>,
    ) -> Result<Server, OpenError> {
        let shown = path.display();
        let failed = |errno: Errno| format!("cannot make the control socket {shown}: {}", io::Error::from(errno));
        let name = SocketAddrUnix::new(path).map_err(failed)?;
        // Two masters that start together must not take a socket just made for a dead one.
        let _lock = place::lock(directory_of(path))?;
        nobody_new(known)?;
        match place::probe(path) {
            place::Found::Nothing => {}
            place::Found::Dead => rustix::fs::unlink(path).map_err(failed)?,
            place::Found::Alive => return Err(format!("another master has the control socket {shown}").into()),
            place::Found::Other(why) => return Err(format!("cannot make the control socket {shown}: {why}").into()),
        }
        Server::make(path, config, first_token, |socket| {
            rustix::net::bind(socket, &name).map_err(failed)?;
            Ok(path.to_owned())
        })
        .map_err(OpenError::Failed)
    }

    /// As [`Server::open`], beside `path`: until [`Server::take_place`] somebody else is found there.
    ///
    /// # Errors
    /// When another master has begun since this one looked for others, or it cannot be made.
    pub fn open_beside(
        path: &Path,
        config: String,
        first_token: usize,
        known: Option<&beside::Sockets>,
    ) -> Result<Server, OpenError> {
        let failed = |why: String| format!("cannot make a control socket beside {}: {why}", path.display());
        let _lock = place::lock(directory_of(path)).map_err(failed)?;
        nobody_new(known)?;
        Server::make(path, config, first_token, |socket| beside::bind(socket, path).map_err(failed))
            .map_err(OpenError::Failed)
    }

    fn make(
        place: &Path,
        config: String,
        first_token: usize,
        bind: impl FnOnce(&OwnedFd) -> Result<PathBuf, String>,
    ) -> Result<Server, String> {
        let failed =
            |errno: Errno| format!("cannot make the control socket {}: {}", place.display(), io::Error::from(errno));
        let socket = new_socket().map_err(failed)?;
        // Before it has a name: at no time can anybody else connect.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600)).map_err(failed)?;
        let file = SocketFile::at(&bind(&socket)?).map_err(failed)?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
        Ok(Server {
            socket,
            name: Name { place: place.to_owned(), file },
            clients: Default::default(),
            first_token,
            serial: 0,
            config,
            ready: false,
            again_at: None,
            closed: false,
        })
    }

    /// Takes the place where it belongs. Whoever had it, a former master and its workers, is found beside it. False when
    /// another master is at work there just now: a little later it can be tried again.
    ///
    /// # Errors
    /// When that cannot be, in words for the operator.
    pub fn take_place(&mut self) -> Result<bool, String> {
        let directory = directory_of(&self.name.place);
        let _lock = match place::try_lock(directory) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            locked => locked.map_err(|errno| place::cannot_lock(directory, errno))?,
        };
        if !self.name.find() {
            return Err(format!(
                "the control socket of this master has been removed from beside {}",
                self.name.place.display()
            ));
        }
        let Name { place, file } = &self.name;
        if file.path() == place {
            return Ok(true);
        }
        beside::take_place(file.path(), place)?;
        self.name.find();
        Ok(true)
    }

    /// Where it belongs.
    pub fn place(&self) -> &Path {
        &self.name.place
    }

    /// All sockets there and beside it but its own.
    pub fn others(&self) -> beside::Sockets {
        let mut sockets = beside::Sockets::of(self.place());
        sockets.leave_out(&self.name.file);
        sockets
    }

    /// Connections may be waiting.
    pub fn on_ready(&mut self) {
        self.ready = true;
    }

    /// Takes in those who wait, if anybody does.
    pub fn accept(&mut self, registry: &Registry, now: Instant) {
        let due = self.again_at.is_some_and(|at| at <= now);
        if !std::mem::take(&mut self.ready) && !due || self.closed {
            return;
        }
        let failed_before = self.again_at.take().is_some();
        for _ in 0..ACCEPTS {
            if self.is_full() {
                break;
            }
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(fd) => {
                    if let Err(why) = self.admit(fd, registry, now) {
                        debug!("control socket: {why}");
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    if !failed_before {
                        warn!("control socket: cannot accept: {}; trying again", io::Error::from(errno));
                    }
                    self.again_at = Some(now + AGAIN);
                    return;
                }
            }
        }
        self.ready = true;
    }

    fn admit(&mut self, fd: OwnedFd, registry: &Registry, now: Instant) -> Result<(), String> {
        let peer = sockopt::socket_peercred(&fd).map_err(|errno| errno.to_string())?;
        if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
            return Err(format!("user {} is not heard", peer.uid.as_raw()));
        }
        let slot = self.clients.iter().position(Option::is_none).ok_or("too many ask at once")?;
        let mut channel = Channel::from_fd(fd);
        let greeting =
            Greeting { version: VERSION, pid: std::process::id(), config: self.config.clone(), role: Role::Master };
        channel.send(&greeting, &[]).map_err(|error| error.to_string())?;
        let token = Token(self.first_token + slot);
        registry
            .register(&mut SourceFd(&channel.as_fd().as_raw_fd()), token, Interest::READABLE)
            .map_err(|error| error.to_string())?;
        self.serial += 1;
        self.clients[slot] = Some(Client { channel, serial: self.serial, ask_by: Some(now + ASK) });
        Ok(())
    }

    /// What the client in `slot` wants, if it has said so. One that has gone, or says what makes no sense, is dropped.
    pub fn hear(&mut self, slot: usize) -> Option<(ClientId, Request)> {
        let client = self.clients.get_mut(slot)?.as_mut()?;
        match client.channel.recv::<Request>(&mut Vec::new()) {
            Ok(request) if client.ask_by.is_some() => {
                client.ask_by = None;
                Some((ClientId { slot, serial: client.serial }, request))
            }
            Err(RecvError::Empty) => None,
            Ok(_)
            | Err(RecvError::Closed | RecvError::DescriptorsLost | RecvError::Malformed(_) | RecvError::Io(_)) => {
                self.clients[slot] = None;
                None
            }
        }
    }

    /// Answers, and lets the client go.
    pub fn answer(&mut self, to: ClientId, answer: &Answer) {
        let slot = &mut self.clients[to.slot];
        if let Some(mut client) = slot.take_if(|client| client.serial == to.serial)
            && let Err(error) = client.channel.send(answer, &[])
        {
            debug!("control socket: cannot answer: {error}");
        }
    }

    /// When somebody has to be dropped, or is tried to be taken in again.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().flatten().filter_map(|client| client.ask_by).chain(self.again_at).min()
    }

    /// Drops those who have not said what they want.
    pub fn expire(&mut self, now: Instant) {
        for slot in &mut self.clients {
            slot.take_if(|client| client.ask_by.is_some_and(|by| by <= now));
        }
    }

    /// Takes in nobody any more: this master has a successor, and whoever comes waits for its workers, should it be
    /// killed.
    pub fn close(&mut self) {
        self.closed = true;
        self.again_at = None;
    }

    /// Lets go of it: its name stays, for workers wait behind it.
    pub fn leave(self) {
        std::mem::forget(self.name);
    }

    /// Whether [`Server::accept`] has more to do.
    pub fn is_ready(&self) -> bool {
        self.ready && !self.is_full()
    }

    fn is_full(&self) -> bool {
        self.clients.iter().all(Option::is_some)
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Of masters that start together each has looked for others before any could be found. Under the lock the first of
/// them to listen is seen by all who come after it.
fn nobody_new(known: Option<&beside::Sockets>) -> Result<(), OpenError> {
    match known.filter(|known| known.has_newcomer()) {
        None => Ok(()),
        Some(known) => Err(OpenError::AnotherMaster(format!(
            "another master with this configuration was started at the same time, and has the control socket {} or one \
             beside it; if that does not come up, start this one again",
            known.place().display()
        ))),
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// A socket for it, not yet connected or bound.
fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

#[cfg(test)]
mod tests;
