//! Finding who has what this master needs: the workers of a master that has died, or the master that started this
//! one as its successor.
//!
//! Listening sockets come before this master starts, live connections once it is ready. Every worker of a dead master
//! has all of its listening sockets, so one of them is enough to begin with; the others are met while this master
//! runs. So one that is stopped, or slow, holds up nobody, and is taken over from when it moves again.
//!
//! Nothing that comes from them is believed further than it can be checked: it may be another version, and workers
//! may be less trusted than their master.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError, SendError};
use ipc::control::{Greeting, Request, Role};
use ipc::handover::{self, Bound, Handed, ToFormer, ToSuccessor};
use ipc::snapshot::{Address, Snapshot};
use log::{info, warn};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use crate::control::beside::{self, Found, Sockets};
use crate::control::place;
use crate::listen::is_taken;

/// Tells a master that its standard input is the channel to the master it succeeds.
pub const SUCCESSOR_VARIABLE: &str = "POINTSMAN_SUCCESSOR";

/// How long somebody behind this configuration's control socket may take to answer: without him it cannot start.
const OWN: Duration = Duration::from_secs(8);
/// How long anybody else may, when an address of this configuration is in use: it may be his.
const OTHERS: Duration = Duration::from_secs(1);
/// How long a former side may take to give its listening sockets once it has been asked.
const GIVE: Duration = Duration::from_secs(5);
/// Those behind one control socket that may end one after the other between connecting and answering.
const MISSED: u32 = 1024;
/// Listening sockets taken from one former side at most.
const LISTENERS: usize = 4096;

/// A control socket, found again whatever its name has become.
#[derive(Debug)]
struct Door {
    /// The place that it has, had, or is beside of.
    control: PathBuf,
    socket: Rc<OwnedFd>,
    /// It belongs to this configuration.
    own: bool,
    /// It is not in its place but beside it: a former master's, or one's that is not yet ready.
    beside: bool,
}

impl Door {
    /// The one in a place, and those beside it.
    fn all(sockets: &Sockets, own: bool) -> impl Iterator<Item = Rc<Door>> {
        sockets.found().iter().map(move |Found { socket, beside }| {
            let (control, socket) = (sockets.place().to_owned(), Rc::clone(socket));
            Rc::new(Door { control, socket, own, beside: *beside })
        })
    }

    /// `None` when nobody is behind it.
    fn knock(self: &Rc<Door>) -> Option<Former> {
        let fd = beside::connect(&self.socket).inspect_err(|&errno| {
            if errno == Errno::CONNREFUSED {
                beside::clear(&self.socket, &self.control);
            }
        });
        let fd = fd.ok()?;
        // Of whoever began to listen: the master, also when it is its workers that answer.
        let listened = getsockopt(&fd, PeerCredentials).ok().map(|peer| peer.pid());
        let (channel, name) = (Channel::from_fd(fd), self.control.display().to_string());
        let (stage, door) = (Stage::Knocked, Some(Rc::clone(self)));
        Some(Former { channel, name, stage, listeners: Vec::new(), door, listened, is_master: false, missed: 0 })
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
    /// The process that made the socket at which it was knocked for.
    listened: Option<i32>,
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
            listened: None,
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

    /// Should it be killed, its workers wait behind its control socket, which of `sockets` has the place.
    pub fn with_workers_behind(mut self, sockets: Option<&Sockets>) -> Former {
        self.door = sockets.and_then(|sockets| Door::all(sockets, true).find(|door| !door.beside));
        self
    }

    /// Whether it may have connections to give.
    pub fn is_met(&self) -> bool {
        self.stage != Stage::Knocked
    }

    /// Whether another of those behind the same socket may be had by knocking there: nobody is about to answer.
    pub fn leaves_room(&self) -> bool {
        self.is_met() && !self.is_master
    }

    /// Now that it is gone: what became of its connections.
    pub fn end(&self) -> End {
        match self.stage {
            Stage::Done => End::Everything,
            Stage::Giving => End::Part,
            Stage::Knocked | Stage::Asked | Stage::Waiting | Stage::Told => End::Nothing,
        }
    }

    /// Says that its connections can be served now, if it waits for that. Nobody listens any more where `snapshot` has no
    /// listener, although its side keeps the sockets until its end.
    ///
    /// # Errors
    /// When it is gone.
    pub fn tell_ready(&mut self, snapshot: &Snapshot) -> Result<(), SendError> {
        if self.stage != Stage::Waiting {
            return Ok(());
        }
        let is_configured = |bound: &Bound| snapshot.listeners.iter().any(|listener| listener.bind == bound.address);
        for (_, fd) in self.listeners.drain(..).filter(|(bound, _)| !bound.lent && !is_configured(bound)) {
            // One that does not listen any more is what is wanted.
            let _ = rustix::net::shutdown(&fd, rustix::net::Shutdown::Both);
        }
        self.stage = Stage::Told;
        self.channel.send(&ToFormer::Ready { version: handover::VERSION }, &[])
    }

    /// Says that it has the connections last heard of, if its side keeps them until then.
    ///
    /// # Errors
    /// When that cannot be said: then they are not this master's.
    pub fn tell_taken(&mut self) -> Result<(), SendError> {
        match self.keeps().then(|| self.channel.send(&ToFormer::Taken, &[])) {
            // Who has ended does not keep them.
            None | Some(Ok(()) | Err(SendError::Closed)) => Ok(()),
            Some(Err(failed @ (SendError::Full | SendError::TooLarge | SendError::Io(_)))) => Err(failed),
        }
    }

    /// Whether its side keeps what it gives until it is told that it has been taken, or that this side has ended.
    pub fn keeps(&self) -> bool {
        !self.is_master
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

    /// Whether it has listeners of this configuration, or is found only by those that run with it.
    pub fn is_wanted(&self, snapshot: &Snapshot) -> bool {
        self.is_own() || snapshot.listeners.iter().any(|listener| self.has(&listener.bind))
    }

    fn has(&self, address: &Address) -> bool {
        self.listeners.iter().any(|(bound, _)| bound.address == *address)
    }

    fn is_own(&self) -> bool {
        self.door.as_ref().is_some_and(|door| door.own)
    }

    fn is_beside(&self) -> bool {
        self.door.as_ref().is_some_and(|door| door.beside)
    }

    /// Whether the master that made the socket behind which it is still runs. One that comes up beside its place looks
    /// like workers that are stopped, until it answers.
    fn has_living_master(&self) -> bool {
        let own = i32::try_from(std::process::id()).ok();
        self.listened.filter(|&pid| pid > 0 && Some(pid) != own).is_some_and(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The number may be another program's by now. A zombie has ended.
            let state = stat.split_once(" (master) ").and_then(|(_, rest)| rest.chars().next());
            state.is_some_and(|state| !"ZX".contains(state))
        })
    }

    /// Whether both are of one configuration.
    fn is_akin_to(&self, other: &Former) -> bool {
        let control = |former: &Former| former.door.as_ref().map(|door| door.control.clone());
        control(self) == control(other)
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

/// One of those behind each of `sockets` that is beside the place of this configuration's control socket, but for those
/// sockets that one of `known` is behind.
pub fn waiting_beside<'a>(sockets: &Sockets, known: impl Iterator<Item = &'a Former>) -> Vec<Former> {
    let known: Vec<_> = known.filter_map(|former| former.door.as_ref()).collect();
    let is_known = |door: &Door| known.iter().any(|known| beside::is_same(&known.socket, &door.socket));
    Door::all(sockets, true).filter(|door| door.beside && !is_known(door)).filter_map(|door| door.knock()).collect()
}

/// Workers that dead masters left with listeners that `snapshot` wants: of each such master the first that answers, and
/// one not yet met. `own` are the sockets where this configuration's control socket belongs; `lent` are listening sockets
/// that are there already.
///
/// # Errors
/// When a master with this configuration lives, or somebody does not answer who could have what it needs.
pub fn orphans(snapshot: &Snapshot, own: Option<&Sockets>, lent: &[(Bound, OwnedFd)]) -> Result<Vec<Former>, String> {
    let is_missing = |address: &Address| lent.iter().all(|(bound, _)| bound.address != *address) && is_taken(address);
    orphans_in(&place::directory(), snapshot, own, is_missing, wait)
}

/// As [`orphans`], where all control sockets but this configuration's are in `directory`. `is_missing` says whether
/// somebody has an address; and there is another way to wait until one of those asked says something, or the time is
/// over.
pub fn orphans_in(
    directory: &Path,
    snapshot: &Snapshot,
    own: Option<&Sockets>,
    is_missing: impl Fn(&Address) -> bool,
    mut wait: impl FnMut(&[&Former], Duration) -> Result<(), String>,
) -> Result<Vec<Former>, String> {
    let mut places = if place::is_ours(directory).is_ok() { place::places(directory) } else { Vec::new() };
    places.retain(|path| own.is_none_or(|own| own.place() != path));
    let mut doors: Vec<_> = own.into_iter().flat_map(|own| Door::all(own, true)).collect();
    for path in places {
        doors.extend(Door::all(&Sockets::of(&path), false));
    }
    let mut search = Search { snapshot, start: Instant::now(), waiting: Vec::new(), found: Vec::new() };
    search.waiting = doors.iter().filter_map(Door::knock).collect();
    loop {
        search.hear()?;
        let Some(left) = search.patience(&is_missing)? else { break };
        wait(&search.waiting.iter().collect::<Vec<_>>(), left)?;
    }
    let Search { waiting, mut found, .. } = search;
    // Those that have not answered have what others of their configuration have: they are met later.
    let akin = waiting.into_iter().filter(|silent| silent.is_own() || found.iter().any(|one| one.is_akin_to(silent)));
    for silent in akin.collect::<Vec<_>>() {
        // Behind one that has greeted there may be others.
        found.extend(silent.is_met().then(|| silent.knock_again()).flatten());
        found.push(silent);
    }
    // The newest master knew best what its listeners were.
    found.sort_by_key(Former::is_beside);
    Ok(found)
}

/// A search for orphans.
struct Search<'a> {
    snapshot: &'a Snapshot,
    start: Instant,
    /// Those that have not said enough.
    waiting: Vec<Former>,
    /// Those that this master takes over from.
    found: Vec<Former>,
}

impl Search<'_> {
    /// Hears whoever has something to say.
    fn hear(&mut self) -> Result<(), String> {
        let mut heard = std::mem::take(&mut self.waiting);
        // Whoever answers in the place of one that has ended is heard, too.
        let next = |former: &Former| former.knock_again().filter(|_| self.start.elapsed() < OWN);
        while let Some(mut former) = heard.pop() {
            match former.hear() {
                News::None => self.waiting.push(former),
                News::Met | News::More => heard.push(former),
                News::Master(pid) if former.is_own() => {
                    return Err(format!(
                        "another master (pid {pid}) runs with this configuration; `master reload` has it read the \
                         file again, `master upgrade` puts a new one in its place"
                    ));
                }
                News::Master(_) => {}
                // Others may be behind it.
                News::Gone => heard.extend(next(&former)),
                News::Waiting if former.is_wanted(self.snapshot) => {
                    info!("{} has listeners of this configuration: taking over from it", former.name);
                    self.found.extend(former.knock_again());
                    self.found.push(former);
                }
                // Dropping the channel leaves it as it was.
                News::Waiting => {}
                News::Broken(why) => {
                    warn!("{}: {why}; not taken over", former.name);
                    // The next one may do better.
                    heard.extend(next(&former));
                }
                News::Connections(..) | News::Lost => {}
            }
        }
        Ok(())
    }

    /// How long to wait for those that have not answered; `None` when nothing of theirs is needed before this master
    /// starts.
    fn patience(&self, is_missing: impl Fn(&Address) -> bool) -> Result<Option<Duration>, String> {
        let passed = self.start.elapsed();
        let given = self.found.iter().any(|former| former.is_own() && former.stage == Stage::Waiting);
        let may_wait = |former: &Former| former.is_beside() && given && !former.has_living_master();
        let needed = |former: &&Former| former.is_own() && !may_wait(former);
        if let Some(silent) = self.waiting.iter().find(needed) {
            return OWN.checked_sub(passed).filter(|left| !left.is_zero()).map(Some).ok_or_else(|| silent_text(silent));
        }
        // Anybody else who has an address of this configuration has it in use.
        let addresses = || self.snapshot.listeners.iter().map(|listener| &listener.bind);
        let is_found = |address: &Address| self.found.iter().any(|former| former.has(address));
        let others = self.waiting.iter().any(|former| !former.is_own());
        if !others || !addresses().any(|address| is_fixed(address) && !is_found(address) && is_missing(address)) {
            return Ok(None);
        }
        Ok(OTHERS.checked_sub(passed).filter(|left| !left.is_zero()))
    }
}

fn silent_text(former: &Former) -> String {
    let path = former.door.as_ref().map(|door| door.control.display().to_string()).unwrap_or_default();
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

#[cfg(test)]
mod tests;
