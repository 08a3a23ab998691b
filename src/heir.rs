//! The heir: a process that shares the master's table of descriptors, and does nothing as long as there is a master. When
//! that is killed, it finds in the table what the master had accepted and nobody else had yet, sends it to the workers,
//! and ends. Without it these few connections would end with the master, as nothing but the table holds them.
//!
//! It is forked and never runs another program, which would give it a table of its own. It is nobody's child, so that the
//! master's children are its workers; the system's first process sees it end.
//!
//! This is the one place with `unsafe` for processes and for descriptors that are known by their numbers only.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, SendError};
use ipc::message::{MAX_FDS, ToWorker};
use log::{info, warn};
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use rustix::time::Timespec;

use crate::hands::{Note, Notes};

/// Of each of the two processes that are forked.
const STACK_BYTES: usize = 256 * 1024;
/// How long what is left may take, when a worker's channel is full.
const PATIENCE: Duration = Duration::from_secs(1);
/// Descriptors looked at beyond those that notes were ever taken of: a new one has the lowest free number.
const BEYOND: RawFd = 1024;

/// The heir of this process.
#[derive(Debug)]
pub struct Heir {
    process: OwnedFd,
    /// Of this process: the heir waits for its end. Under the same number, in the table that they share.
    _master: OwnedFd,
}

impl Heir {
    /// Starts one.
    ///
    /// # Errors
    /// When no process, memory or descriptors can be had, or this process has several threads: what others hold locked
    /// would stay locked in the heir.
    pub fn start() -> io::Result<Heir> {
        if std::fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let notes = Notes::begin()?;
        let master = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        let mut stacks = [vec![0; STACK_BYTES], vec![0; STACK_BYTES]];
        let [of_parent, of_heir] = &mut stacks;
        let wait = || live(notes, master.as_fd());
        // Signals to the whole group of processes are for the master.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // The heir is the child of one that ends at once.
        let parent = fork(of_parent, || match fork(of_heir, wait) {
            Ok(heir) => match rustix::process::pidfd_open(heir, PidfdFlags::empty()) {
                Ok(pidfd) => {
                    notes.leave(pidfd.into_raw_fd());
                    0
                }
                Err(errno) => status(errno.raw_os_error()),
            },
            Err(error) => status(error.raw_os_error().unwrap_or(0)),
        });
        mask.thread_set_mask()?;
        let ended = rustix::process::waitpid(Some(parent?), WaitOptions::empty())?;
        let Some(left) = notes.take_left() else {
            let errno = ended.and_then(|(_, status)| status.exit_status());
            return Err(errno.map_or_else(|| io::ErrorKind::Other.into(), io::Error::from_raw_os_error));
        };
        // SAFETY: opened above in the table that is also this process's, for it alone.
        let process = unsafe { OwnedFd::from_raw_fd(left) };
        Ok(Heir { process, _master: master })
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

impl Drop for Heir {
    /// Nothing is left to it by a master that ends of itself.
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
        // The sockets are open as long as it is there.
        let _ = wait_for(self.process.as_fd(), PollFlags::IN, PATIENCE);
        let _ = crate::process::reap(self.process.as_fd());
    }
}

/// Starts a process with a copy of this one's memory and with the same table of descriptors. It ends when `body` does.
fn fork(stack: &mut [u8], mut body: impl FnMut() -> isize) -> io::Result<Pid> {
    // SAFETY: memory is not shared, so that the stack and all else are the new process's own; this process has one thread,
    // so that no lock is held by another; the body does not unwind, and nothing is dropped behind it.
    let pid = unsafe { clone(Box::new(&mut body), stack, CloneFlags::CLONE_FILES, Some(Signal::CHILD.as_raw())) }?;
    Pid::from_raw(pid.as_raw()).ok_or_else(|| io::ErrorKind::Other.into())
}

/// As an exit status.
fn status(errno: i32) -> isize {
    isize::try_from(errno).unwrap_or(1)
}

/// What the heir does, all its life.
fn live(notes: &Notes, master: BorrowedFd<'_>) -> isize {
    set_title();
    while !wait_for(master, PollFlags::IN, Duration::MAX) {}
    let estate = Estate::find(notes);
    let count = estate.connections.len();
    let left = estate.leave_to_workers();
    match (count, left) {
        (0, _) => {}
        (_, 0) => info!("the master was killed with {count} connections in hand; workers have them now"),
        (_, left) => warn!("the master was killed with {count} connections in hand; {left} of them are lost"),
    }
    0
}

/// Waits until `fd` is ready; false when it is not in time.
fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags, time: Duration) -> bool {
    let timeout = Timespec::try_from(time).ok();
    matches!(rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, flags)], timeout.as_ref()), Ok(1))
}

/// A connection that the master had in hand, by its number.
#[derive(Debug, PartialEq, Eq)]
struct InHand {
    fd: RawFd,
    /// The worker at the other end of this channel may have it already.
    sent_over: Option<RawFd>,
}

/// What there is in the table of a dead master.
#[derive(Debug)]
struct Estate {
    connections: Vec<InHand>,
    /// Those of workers that take connections.
    channels: Vec<RawFd>,
}

/// Where a socket is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Local {
    Inet(SocketAddr),
    Unix(PathBuf),
}

impl Local {
    fn of(fd: BorrowedFd<'_>) -> Option<Local> {
        let address = rustix::net::getsockname(fd).ok()?;
        if let Ok(inet) = SocketAddr::try_from(address.clone()) {
            return Some(Local::Inet(inet));
        }
        let unix = rustix::net::SocketAddrUnix::try_from(address).ok()?;
        Some(Local::Unix(PathBuf::from(std::ffi::OsString::from(unix.path()?.to_string_lossy().into_owned()))))
    }
}

impl Estate {
    fn find(notes: &Notes) -> Estate {
        let mut estate = Estate { connections: Vec::new(), channels: Vec::new() };
        let mut unknown = Vec::new();
        for fd in 0..notes.end().saturating_add(BEYOND) {
            match notes.read(fd) {
                Note::Kept => {}
                Note::InHand => estate.connections.push(InHand { fd, sent_over: None }),
                Note::Sending(channel) => estate.connections.push(InHand { fd, sent_over: Some(channel) }),
                Note::Channel if is_channel(fd) => estate.channels.push(fd),
                Note::Nothing | Note::Channel => unknown.push(fd),
            }
        }
        estate.connections.extend(accepted_this_instant(&unknown).map(|fd| InHand { fd, sent_over: None }));
        estate
    }

    /// Sends the workers everything; how many are left.
    fn leave_to_workers(mut self) -> usize {
        let until = Instant::now() + PATIENCE;
        for (at, &channel) in self.channels.iter().enumerate() {
            // SAFETY: the table is this process's alone since the master has ended, and the number is taken once.
            let mut to = Channel::from_fd(unsafe { OwnedFd::from_raw_fd(channel) });
            let is_last = at + 1 == self.channels.len();
            for perhaps_sent in [true, false] {
                // Whoever may have one gets it again or nobody does. The others are shared out.
                let (count, workers) = (self.connections.len(), self.channels.len() - at);
                let share = if is_last { count } else { count.div_ceil(workers) };
                let sent_over = perhaps_sent.then_some(channel);
                let mut mine = Vec::new();
                self.connections.retain(|one| {
                    let take =
                        one.sent_over == sent_over && (perhaps_sent || mine.len() < share) && mine.len() < MAX_FDS;
                    if take {
                        mine.push(one.fd);
                    }
                    !take
                });
                if !mine.is_empty() && !send(&mut to, &mine, perhaps_sent, until) {
                    self.connections.extend(mine.into_iter().map(|fd| InHand { fd, sent_over }));
                }
            }
        }
        self.connections.len()
    }
}

/// Sends connections over a channel; false when it cannot be done in time.
fn send(channel: &mut Channel, connections: &[RawFd], perhaps_sent: bool, until: Instant) -> bool {
    let fds: Vec<_> = connections.iter().map(|&fd| borrow(fd)).collect();
    loop {
        match channel.send(&ToWorker::Inherit { perhaps_sent }, &fds) {
            Ok(()) => return true,
            Err(SendError::Full) => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() || !wait_for(channel.as_fd(), PollFlags::OUT, left) {
                    return false;
                }
            }
            Err(SendError::Closed | SendError::TooLarge | SendError::Io(_)) => return false,
        }
    }
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: not -1, and nobody closes anything in the table of a process that has ended. What is not open is answered
    // with EBADF by whatever call is made with it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn is_channel(fd: RawFd) -> bool {
    sockopt::socket_domain(borrow(fd)) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(borrow(fd)) == Ok(SocketType::SEQPACKET)
}

/// Those of `fds` that are connections to a listening socket among them: between the system call that accepts one and
/// the note of it, the process may have been killed.
fn accepted_this_instant(fds: &[RawFd]) -> impl Iterator<Item = RawFd> {
    let streams = fds.iter().filter(|&&fd| sockopt::socket_type(borrow(fd)) == Ok(SocketType::STREAM));
    let (listening, others): (Vec<RawFd>, Vec<RawFd>) =
        streams.partition(|&&fd| sockopt::socket_acceptconn(borrow(fd)) == Ok(true));
    let places: Vec<Local> = listening.into_iter().filter_map(|fd| Local::of(borrow(fd))).collect();
    let is_theirs = move |local: &Local| {
        places.iter().any(|place| match (place, local) {
            (Local::Inet(place), Local::Inet(local)) => {
                place.port() == local.port() && (place.ip().is_unspecified() || place.ip() == local.ip())
            }
            (place, local) => place == local,
        })
    };
    others.into_iter().filter(move |&fd| {
        rustix::net::getpeername(borrow(fd)).is_ok() && Local::of(borrow(fd)).is_some_and(|local| is_theirs(&local))
    })
}

/// Shows what it is in lists of processes, where it would look like a second master. Only for people: what cannot be
/// done is left.
fn set_title() {
    let _ = rustix::thread::set_name(c"heir");
    const TITLE: &[u8] = b"master heir";
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    let Some((_, fields)) = stat.rsplit_once(')') else { return };
    // Numbers 48 to 51 of proc_pid_stat(5); the two before the parenthesis are gone.
    let mut places = fields.split_ascii_whitespace().skip(48 - 3).map_while(|field| field.parse::<u64>().ok());
    let (Some(start), Some(end)) = (places.next(), places.next()) else { return };
    let Some(environment_end) = places.nth(1) else { return };
    let room = |until: u64| usize::try_from(until.saturating_sub(start)).unwrap_or(0);
    // Behind the arguments lies the environment, which this process has no use for.
    if start == 0 || room(environment_end) <= TITLE.len() {
        return;
    }
    let mut text = TITLE.to_vec();
    text.resize(room(end).max(TITLE.len() + 1), 0);
    if let Ok(memory) = std::fs::OpenOptions::new().write(true).open("/proc/self/mem") {
        let _ = memory.write_all_at(&text, start);
    }
}
