//! Finding who has what this master needs: the workers of a master that has died, or the master that started this
//! one as its successor.
//!
//! Listening sockets come before this master starts, live connections once it is ready. Every worker of a dead master
//! has all of its listening sockets, so one of them is enough to begin with; the others are met while this master
//! runs. So one that is stopped, or slow, holds up nobody, and is taken over from when it moves again.
//!
//! Nothing that comes from them is believed further than it can be checked: it may be another version, and workers
//! may be less trusted than their master.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError, SendError};
use ipc::control::{Greeting, Request, Role};
use ipc::handover::{self, Bound, Handed, ToFormer, ToSuccessor};
use ipc::snapshot::{Address, Snapshot};
use log::{debug, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;

use crate::control::place;

/// Tells a master that its standard input is the channel to the master it succeeds.
pub const SUCCESSOR_VARIABLE: &str = "POINTSMAN_SUCCESSOR";

/// How long somebody behind this configuration's control socket may take to answer: without him it cannot start.
const OWN: Duration = Duration::from_secs(8);
/// How long anybody else may.
const OTHERS: Duration = Duration::from_secs(1);
/// How long a former side may take to give its listening sockets once it has been asked.
const GIVE: Duration = Duration::from_secs(5);
/// Those behind one control socket that may end one after the other between connecting and answering.
const MISSED: u32 = 1024;
/// Listening sockets taken from one former side at most.
const LISTENERS: usize = 4096;

/// A control socket, found again even when its name belongs to another.
#[derive(Debug)]
struct Door {
    path: PathBuf,
    place: OwnedFd,
    /// It is where the control socket of this configuration belongs.
    own: bool,
}

impl Door {
    /// `None` when there is nothing, or it is somebody else's.
    fn at(path: PathBuf, own: bool) -> Option<Rc<Door>> {
        let place = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&place).ok()?;
        (stat.st_uid == rustix::process::geteuid().as_raw()).then(|| Rc::new(Door { path, place, own }))
    }

    fn knock(self: &Rc<Door>) -> Option<Former> {
        let path = format!("/proc/self/fd/{}", self.place.as_raw_fd());
        let channel = Channel::from_fd(place::connect(Path::new(&path)).ok()?);
        let name = self.path.display().to_string();
        let door = Some(Rc::clone(self));
        Some(Former { channel, name, stage: Stage::Knocked, listeners: Vec::new(), door, is_master: false, missed: 0 })
    }
}

/// How far it has come with one that this master succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody has said who he is.
    Knocked,
    /// It gives its listening sockets.
    Asked,
    /// It has given them, and waits for this master to be ready.
    Waiting,
    /// It gives its connections.
    Told,
    /// It has given some.
    Giving,
    /// It has said that there are no more.
    Done,
}

/// One that this master succeeds, or may come to succeed.
#[derive(Debug)]
pub struct Former {
    channel: Channel,
    /// What it is, for the log.
    pub name: String,
    stage: Stage,
    /// Its listening sockets, as far as they have not been taken.
    listeners: Vec<(Bound, OwnedFd)>,
    door: Option<Rc<Door>>,
    is_master: bool,
    /// How many in front of it, one after the other, have ended without an answer.
    missed: u32,
}

/// What a former side has said.
#[derive(Debug)]
pub enum News {
    /// Nothing yet.
    None,
    /// A living master, of this process.
    Master(u32),
    /// It is one of several, perhaps: the next can be knocked for.
    Met,
    /// Some of its listening sockets.
    More,
    /// It has given all its listening sockets, and waits.
    Waiting,
    /// Connections, and as many descriptors as they say.
    Connections(Vec<Handed>, Vec<OwnedFd>),
    /// Connections were lost for want of descriptors.
    Lost,
    /// It is gone: what it had given by then [`Former::end`] says.
    Gone,
    /// What it says makes no sense.
    Broken(String),
}

/// What a former side had given when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All that could be given.
    Everything,
    /// Some connections; it was about to give more.
    Part,
    /// No connection, and it has not said that it had none.
    Nothing,
}

impl Former {
    /// The master that started this one.
    ///
    /// # Errors
    /// When it does not give its listening sockets.
    pub fn master(channel: OwnedFd) -> Result<Former, String> {
        let name = "the former master".to_owned();
        let channel = Channel::from_fd(channel);
        let mut former = Former {
            channel,
            name,
            stage: Stage::Asked,
            listeners: Vec::new(),
            door: None,
            is_master: true,
            missed: 0,
        };
        let end = Instant::now() + GIVE;
        loop {
            match former.hear() {
                News::Waiting => return Ok(former),
                News::More => {}
                News::None => {
                    let left = end.checked_duration_since(Instant::now());
                    wait(&[&former], left.ok_or("it does not give its listening sockets")?)?;
                }
                News::Broken(why) => return Err(why),
                other @ (News::Master(_) | News::Met | News::Connections(..) | News::Lost | News::Gone) => {
                    return Err(format!("it gives no listening sockets ({other:?})"));
                }
            }
        }
    }

    /// Should it be killed, its workers wait behind `control`, its control socket.
    pub fn with_workers_behind(mut self, control: Option<&Path>) -> Former {
        self.door = control.and_then(|path| Door::at(path.to_owned(), true));
        self
    }

    /// Whether it may have connections to give.
    pub fn is_met(&self) -> bool {
        self.stage != Stage::Knocked
    }

    /// Now that it is gone: what became of its connections.
    pub fn end(&self) -> End {
        match self.stage {
            Stage::Done => End::Everything,
            Stage::Giving => End::Part,
            Stage::Knocked | Stage::Asked | Stage::Waiting | Stage::Told => End::Nothing,
        }
    }

    /// Says that its connections can be served now, if it waits for that.
    ///
    /// # Errors
    /// When it is gone.
    pub fn tell_ready(&mut self) -> Result<(), SendError> {
        if self.stage != Stage::Waiting {
            return Ok(());
        }
        self.listeners.clear();
        self.stage = Stage::Told;
        self.channel.send(&ToFormer::Ready { version: handover::VERSION }, &[])
    }

    /// Says that nothing comes of it.
    pub fn tell_failed(&mut self, mut why: String) {
        why.truncate(why.floor_char_boundary(handover::MAX_TEXT_BYTES));
        // Whoever is gone does not want to know.
        let _ = self.channel.send(&ToFormer::Failed { why }, &[]);
    }

    /// One for the next behind the same control socket; `None` when there is nobody left, or too many have ended
    /// between connecting and answering.
    pub fn knock_again(&self) -> Option<Former> {
        let missed = if self.is_met() { 0 } else { self.missed + 1 };
        (missed <= MISSED).then_some(())?;
        Some(Former { missed, ..self.door.as_ref()?.knock()? })
    }

    /// One for the next, if this one has ended and may have been in front of others: it has not answered, or it is the
    /// master whose workers they are.
    pub fn knock_past(&self) -> Option<Former> {
        if self.is_met() && !self.is_master { None } else { self.knock_again() }
    }

    /// Hears what it has to say, one message.
    pub fn hear(&mut self) -> News {
        let mut fds = Vec::new();
        let heard = match self.stage {
            Stage::Knocked => self.receive(&mut fds).and_then(|greeting| self.greeted(greeting)),
            Stage::Asked => self.receive(&mut fds).and_then(|message| self.asked(message, fds)),
            Stage::Waiting | Stage::Told | Stage::Giving | Stage::Done => {
                self.receive(&mut fds).and_then(|message| self.told(message, fds))
            }
        };
        heard.unwrap_or_else(|news| news)
    }

    fn receive<M: DeserializeOwned>(&mut self, fds: &mut Vec<OwnedFd>) -> Result<M, News> {
        self.channel.recv(fds).map_err(|error| match error {
            RecvError::Empty => News::None,
            RecvError::Closed => News::Gone,
            RecvError::DescriptorsLost if matches!(self.stage, Stage::Told | Stage::Giving) => {
                // Only connections are that many.
                self.stage = Stage::Giving;
                News::Lost
            }
            RecvError::DescriptorsLost | RecvError::Malformed(_) | RecvError::Io(_) => News::Broken(error.to_string()),
        })
    }

    fn greeted(&mut self, greeting: Greeting) -> Result<News, News> {
        match greeting.role {
            Role::Master => return Ok(News::Master(greeting.pid)),
            Role::Orphan => self.name = format!("{} (pid {})", greeting.config, greeting.pid),
        }
        // Whatever its version: this much every version understands.
        self.channel.send(&Request::TakeOver, &[]).map_err(|error| match error {
            SendError::Closed => News::Gone,
            SendError::Full | SendError::TooLarge | SendError::Io(_) => News::Broken(error.to_string()),
        })?;
        self.stage = Stage::Asked;
        Ok(News::Met)
    }

    fn asked(&mut self, message: ToSuccessor, fds: Vec<OwnedFd>) -> Result<News, News> {
        let (bound, last) = match message {
            ToSuccessor::Listeners { bound, last } if bound.len() == fds.len() => (bound, last),
            ToSuccessor::Listeners { .. } => return Err(News::Broken("listening sockets are missing".to_owned())),
            ToSuccessor::Connections(_) | ToSuccessor::Everything => {
                return Err(News::Broken("it gives connections unasked".to_owned()));
            }
        };
        self.listeners.extend(bound.into_iter().zip(fds));
        if self.listeners.len() > LISTENERS {
            return Err(News::Broken(format!("it gives more than {LISTENERS} listening sockets")));
        }
        if !last {
            return Ok(News::More);
        }
        self.stage = Stage::Waiting;
        // Port 0 is any port: nobody but who runs with the same configuration means the same by it.
        if self.door.as_ref().is_some_and(|door| !door.own) {
            self.listeners.retain(|(bound, _)| is_fixed(&bound.address));
        }
        Ok(News::Waiting)
    }

    fn told(&mut self, message: ToSuccessor, fds: Vec<OwnedFd>) -> Result<News, News> {
        match message {
            ToSuccessor::Connections(handed) if matches!(self.stage, Stage::Told | Stage::Giving) => {
                self.stage = Stage::Giving;
                if handed.iter().map(|one| one.passed.task.descriptors()).sum::<usize>() != fds.len() {
                    return Err(News::Broken("connections come with too many or too few descriptors".to_owned()));
                }
                Ok(News::Connections(handed, fds))
            }
            ToSuccessor::Everything if matches!(self.stage, Stage::Told | Stage::Giving) => {
                self.stage = Stage::Done;
                Ok(News::More)
            }
            ToSuccessor::Connections(_) | ToSuccessor::Everything => {
                Err(News::Broken("it gives connections unasked".to_owned()))
            }
            ToSuccessor::Listeners { .. } => Err(News::Broken("it gives listening sockets unasked".to_owned())),
        }
    }

    fn is_wanted(&self, snapshot: &Snapshot) -> bool {
        let configured = |address: &Address| snapshot.listeners.iter().any(|listener| listener.bind == *address);
        self.is_own() || self.listeners.iter().any(|(bound, _)| configured(&bound.address))
    }

    fn is_own(&self) -> bool {
        self.door.as_ref().is_some_and(|door| door.own)
    }
}

impl AsFd for Former {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

fn is_fixed(address: &Address) -> bool {
    match address {
        Address::Inet(address) => address.port() != 0,
        Address::Unix(_) => true,
    }
}

/// One of those behind this configuration's control socket; `None` when there is nobody.
pub fn behind(control: &Path) -> Option<Former> {
    Door::at(control.to_owned(), true)?.knock()
}

/// Workers that a dead master left with listeners that `snapshot` wants: of each such master the first that answers,
/// and one not yet met. `own` is where this configuration's control socket belongs.
///
/// # Errors
/// When a master with this configuration lives, or somebody does not answer who could have what it needs.
pub fn orphans(snapshot: &Snapshot, own: Option<&Path>) -> Result<Vec<Former>, String> {
    orphans_in(&place::directory(), snapshot, own, wait)
}

/// As [`orphans`], where all control sockets but this configuration's are in `directory`, and with another way to wait
/// until one of those asked says something, or the time is over.
pub fn orphans_in(
    directory: &Path,
    snapshot: &Snapshot,
    own: Option<&Path>,
    mut wait: impl FnMut(&[&Former], Duration) -> Result<(), String>,
) -> Result<Vec<Former>, String> {
    let mut paths = if place::is_ours(directory).is_ok() { place::sockets(directory) } else { Vec::new() };
    paths.extend(own.map(Path::to_owned).filter(|path| !paths.contains(path)));
    let doors = paths.into_iter().filter_map(|path| Door::at(path.clone(), own == Some(&path)));
    let start = Instant::now();
    let patience = |former: &Former| if former.is_own() { OWN } else { OTHERS };
    let mut waiting: Vec<Former> = doors.filter_map(|door| door.knock()).collect();
    let mut found = Vec::new();
    while !waiting.is_empty() {
        for mut former in std::mem::take(&mut waiting) {
            match former.hear() {
                News::None if start.elapsed() < patience(&former) => waiting.push(former),
                News::None if former.is_own() => return Err(silent(&former)),
                News::None => debug!("{}: nobody answers", former.name),
                News::Met | News::More => waiting.push(former),
                News::Master(pid) if former.is_own() => {
                    return Err(format!(
                        "another master (pid {pid}) runs with this configuration; `master reload` has it read the \
                         file again, `master upgrade` puts a new one in its place"
                    ));
                }
                News::Master(_) => {}
                // Others may be behind it.
                News::Gone => {
                    waiting.extend(former.knock_again().filter(|_| start.elapsed() < patience(&former)));
                }
                News::Waiting if former.is_wanted(snapshot) => {
                    info!("{} has listeners of this configuration: taking over from it", former.name);
                    found.extend(former.knock_again());
                    found.push(former);
                }
                // Dropping the channel leaves it as it was.
                News::Waiting => {}
                News::Broken(why) => {
                    warn!("{}: {why}; not taken over", former.name);
                    // The next one may do better.
                    waiting.extend(former.knock_again().filter(|_| start.elapsed() < patience(&former)));
                }
                News::Connections(..) | News::Lost => {}
            }
        }
        if let Some(left) = waiting.iter().map(|former| patience(former).saturating_sub(start.elapsed())).min() {
            wait(&waiting.iter().collect::<Vec<_>>(), left)?;
        }
    }
    Ok(found)
}

fn silent(former: &Former) -> String {
    let path = former.door.as_ref().map(|door| door.path.display().to_string()).unwrap_or_default();
    format!(
        "somebody has the control socket {path} and does not answer: a master or its workers, stopped or stuck; end \
         them first"
    )
}

/// The listening socket that one of `formers` has bound to `address`, and whether the service manager has it too.
pub fn listener(formers: &mut [Former], address: &Address) -> Option<(OwnedFd, bool)> {
    formers.iter_mut().find_map(|former| {
        let at = former.listeners.iter().position(|(bound, _)| bound.address == *address)?;
        let (bound, fd) = former.listeners.remove(at);
        Some((fd, bound.lent))
    })
}

/// Waits until one of `formers` has something to say, or `timeout` has passed.
fn wait(formers: &[&Former], timeout: Duration) -> Result<(), String> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let mut fds: Vec<_> = formers.iter().map(|former| PollFd::new(*former, PollFlags::IN)).collect();
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.to_string()),
    }
}
