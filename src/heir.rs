//! The heir: a process that shares the master's table of descriptors, and does nothing as long as there is a master. When
//! that is killed, it finds in the table what the master had accepted and nobody else had yet, sends it to the workers,
//! and ends. Without it these few connections would end with the master, as nothing but the table holds them.
//!
//! It is forked and never runs another program, which would give it a table of its own. It is nobody's child, so that the
//! master's children are its workers; the system's first process sees it end.
//!
//! This is the one place with `unsafe` for processes and for descriptors that are known by their numbers only.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, SendError};
use ipc::message::{MAX_FDS, ToWorker};
use ipc::snapshot::ListenerId;
use ipc::tcp_info;
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
/// How long to wait before a channel without room is tried again.
const RETRY: Duration = Duration::from_millis(2);

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
                Err(errno) => {
                    // Nobody would know of it.
                    let _ = rustix::process::kill_process(heir, Signal::KILL);
                    let _ = rustix::process::waitpid(Some(heir), WaitOptions::empty());
                    status(errno.raw_os_error())
                }
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
        wait_for(self.process.as_fd(), PollFlags::IN, PATIENCE);
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
    loop {
        match wait_for(master, PollFlags::IN, Duration::MAX) {
            Waited::Ready => break,
            Waited::Late => {}
            // The master has given this heir up.
            Waited::Gone => return 0,
        }
    }
    if !notes.claim() {
        return 0;
    }
    let estate = Estate::find(notes);
    let count = estate.connections.len() + estate.sent.len();
    let left = estate.leave_to_workers();
    match (count, left) {
        (0, _) => {}
        (_, 0) => info!("the master was killed with {count} connections in hand; workers have them now"),
        (_, left) => warn!("the master was killed with {count} connections in hand; {left} of them are lost"),
    }
    0
}

/// What came of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    Ready,
    Late,
    /// The descriptor is closed.
    Gone,
}

/// Waits until `fd` is ready.
fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags, time: Duration) -> Waited {
    let timeout = Timespec::try_from(time).ok();
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(1) if fds[0].revents().contains(PollFlags::NVAL) => Waited::Gone,
        Ok(1) => Waited::Ready,
        Ok(_) | Err(_) => Waited::Late,
    }
}

/// A connection that the master had in hand, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InHand {
    fd: RawFd,
    listener: ListenerId,
}

/// What there is in the table of a dead master.
#[derive(Debug, Default)]
struct Estate {
    /// Those that nobody else has.
    connections: Vec<InHand>,
    /// Those that the worker at the other end of this channel may have.
    sent: Vec<(RawFd, InHand)>,
    /// The channels of workers that take connections.
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
        Some(Local::Unix(PathBuf::from(OsStr::from_bytes(unix.path_bytes()?))))
    }
}

impl Estate {
    fn find(notes: &Notes) -> Estate {
        let mut estate = Estate::default();
        let mut unknown = Vec::new();
        for fd in 0..notes.end().saturating_add(BEYOND) {
            match notes.read(fd) {
                Note::Kept => {}
                Note::InHand(listener) => estate.connections.push(InHand { fd, listener }),
                Note::Sending(listener, channel) => estate.sent.push((channel, InHand { fd, listener })),
                Note::Channel if is_channel(fd) => estate.channels.push(fd),
                Note::Nothing | Note::Channel => unknown.push(fd),
            }
        }
        if let Some(listener) = notes.accepting() {
            estate.connections.extend(accepted_this_instant(&unknown).map(|fd| InHand { fd, listener }));
        }
        estate
    }

    /// Sends the workers everything; how many are left.
    fn leave_to_workers(mut self) -> usize {
        let until = Instant::now() + PATIENCE;
        let mut channels: Vec<(RawFd, Channel)> = Vec::new();
        for &fd in &self.channels {
            // SAFETY: the table is this process's alone since the master has ended, and the number is taken once.
            channels.push((fd, Channel::from_fd(unsafe { OwnedFd::from_raw_fd(fd) })));
        }
        // Whoever may have one gets it again or nobody does: one that has been read from is not like new. What went to a
        // worker that takes nothing any more is that worker's.
        let mut closed = Vec::new();
        for (fd, channel) in &mut channels {
            let theirs: Vec<InHand> = self.sent.iter().filter(|(to, _)| to == fd).map(|(_, one)| *one).collect();
            for batch in theirs.chunks(MAX_FDS) {
                match send(channel, batch, true, until) {
                    Sent::Yes | Sent::Late => {}
                    Sent::Closed => {
                        closed.push(*fd);
                        self.connections.extend(batch.iter().filter(|one| is_untouched(one.fd)));
                    }
                }
            }
        }
        channels.retain(|(fd, _)| !closed.contains(fd));
        // The rest is shared out.
        let mut next = 0;
        while !self.connections.is_empty() && !channels.is_empty() {
            let at = next % channels.len();
            let share = self.connections.len().div_ceil(channels.len() - at).min(MAX_FDS);
            let batch: Vec<InHand> = self.connections[..share].to_vec();
            match send(&mut channels[at].1, &batch, false, until) {
                Sent::Yes => {
                    self.connections.drain(..share);
                    next = at + 1;
                }
                Sent::Closed | Sent::Late => drop(channels.remove(at)),
            }
        }
        self.connections.len()
    }
}

/// What came of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Yes,
    /// The worker is gone.
    Closed,
    /// There was no room in time.
    Late,
}

/// Sends connections over a channel.
fn send(channel: &mut Channel, connections: &[InHand], perhaps_sent: bool, until: Instant) -> Sent {
    let fds: Vec<_> = connections.iter().map(|one| borrow(one.fd)).collect();
    let listeners: Vec<ListenerId> = connections.iter().map(|one| one.listener).collect();
    let message = ToWorker::Inherit { listeners, perhaps_sent };
    loop {
        match channel.send(&message, &fds) {
            Ok(()) => return Sent::Yes,
            Err(SendError::Full) => {
                let left = until.saturating_duration_since(Instant::now());
                // Room for descriptors under way brings no event.
                if left.is_zero() || wait_for(channel.as_fd(), PollFlags::OUT, left.min(RETRY)) == Waited::Gone {
                    return Sent::Late;
                }
                std::thread::sleep(RETRY.min(left));
            }
            Err(SendError::Closed) => return Sent::Closed,
            Err(SendError::TooLarge | SendError::Io(_)) => return Sent::Late,
        }
    }
}

/// Whether nobody has read from a connection, or written to it.
fn is_untouched(fd: RawFd) -> bool {
    tcp_info::counters(borrow(fd)).is_ok_and(|counters| counters.consumed == 0 && counters.written == 0)
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
                let is_everywhere = place.ip().is_unspecified() && place.is_ipv4() == local.is_ipv4();
                place.port() == local.port() && (is_everywhere || place.ip() == local.ip())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_descriptor_that_has_been_closed_is_no_end_of_whom_it_stood_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        // A number that no other test gets meanwhile.
        let high = rustix::io::fcntl_dupfd_cloexec(&read, 900).unwrap();
        let number = high.as_raw_fd();
        let short = Duration::from_millis(1);
        assert_eq!(wait_for(borrow(number), PollFlags::IN, short), Waited::Late);
        rustix::io::write(&write, b"x").unwrap();
        assert_eq!(wait_for(borrow(number), PollFlags::IN, short), Waited::Ready);
        drop(high);
        assert_eq!(wait_for(borrow(number), PollFlags::IN, short), Waited::Gone);
    }
}
