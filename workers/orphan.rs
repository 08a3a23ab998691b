//! What a worker does when its master has died: it serves on, keeps the listening sockets open, and waits on the
//! control socket for another master, to which it gives everything it has.
//!
//! When the successor ends before it has everything, what is left waits for the next: the socket by which this worker
//! is found keeps a name, whatever becomes of masters. Without a successor it finishes and leaves when the configured
//! time is over.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ipc::channel::{Channel, RecvError, SendError};
use ipc::control::{Answer, Greeting, Request, Role};
use ipc::handover::{self, Handed, MAX_DESCRIPTORS, ToFormer, ToSuccessor};
use ipc::message::{Kept, MAX_CARRIED_BYTES, Passed, Task};
use ipc::origin::{Ends, Origin};
use log::{info, warn};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};
use rustix::process::PidfdFlags;

use crate::client::{Client, ClientState};
use crate::worker::Worker;

/// The control socket's token.
pub(crate) const CONTROL: Token = Token(usize::MAX - 1);
/// The token of who has connected to it.
pub(crate) const VISITOR: Token = Token(usize::MAX - 2);
/// The token of the master's process.
pub(crate) const MASTER: Token = Token(usize::MAX - 4);

/// How long the heir of a dead master may take, which gives up a second after it has begun.
const GIVEN_UP_MS: u64 = 1500;

/// How long to wait when somebody cannot be let in: nothing tells when he can, and he is announced only once.
const AGAIN_MS: u64 = 100;
/// How long somebody who has connected to the control socket may take to say what he wants.
const ASK_MS: u64 = 5_000;
/// How long a successor that has the listening sockets may take to become ready. Meanwhile this worker stays, even if
/// its time is over.
const READY_MS: u64 = 60_000;

/// A connection given to a successor, with its descriptors.
pub(crate) type Given = (Handed, Vec<OwnedFd>);

/// How far the succession has come.
#[derive(Debug)]
enum State {
    /// The master lives.
    Ward,
    /// It has died; nobody has asked yet.
    Orphan,
    /// Somebody has connected, and has not said what he wants, or is not ready.
    Visited {
        channel: Channel,
        /// The listening sockets were given.
        asked: bool,
        /// He is sent away if he has said nothing more by then.
        until_ms: u64,
    },
    /// It has died, and this worker finishes without a successor.
    Forsaken,
    /// A successor takes the connections, or, being of another version, only the listening sockets.
    Succeeded {
        channel: Channel,
        /// It has yet to be told that there are no more.
        owes_last_word: bool,
    },
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Succession {
    /// The listening sockets.
    pub(crate) listeners: Vec<(Kept, OwnedFd)>,
    control: Option<OwnedFd>,
    /// What ends with the last process that has it open.
    rest: Vec<OwnedFd>,
    state: State,
    /// When an orphan gives up.
    until_ms: u64,
    /// Somebody could not be let in: it is tried again then. `u64::MAX` = nobody.
    again_ms: u64,
    /// The master's process, as far as it can be watched.
    master: Option<OwnedFd>,
    /// Its channel is given up then, if it has not ended by itself. `u64::MAX` = the process lives.
    given_up_ms: u64,
    /// Connections on their way to the successor, or to the next.
    given: Vec<Given>,
    /// Those sent, message by message, that the successor has not yet said to have: if it ends before, they go to the next.
    untaken: VecDeque<Vec<Given>>,
}

impl Succession {
    /// The master lives, and nothing is kept.
    pub(crate) fn new() -> Succession {
        Succession {
            listeners: Vec::new(),
            control: None,
            rest: Vec::new(),
            state: State::Ward,
            until_ms: u64::MAX,
            again_ms: u64::MAX,
            master: None,
            given_up_ms: u64::MAX,
            given: Vec::new(),
            untaken: VecDeque::new(),
        }
    }

    /// Keeps these open from now on: a listening socket for each place, the control socket, and the rest. Gives the
    /// number of descriptors.
    pub(crate) fn keep(&mut self, listeners: Vec<Kept>, fds: Vec<OwnedFd>) -> usize {
        let count = fds.len();
        let mut fds = fds.into_iter();
        self.listeners = listeners.into_iter().zip(fds.by_ref()).collect();
        self.control = fds.next();
        self.rest = fds.collect();
        count
    }

    /// Whether the master has died.
    pub(crate) fn is_orphan(&self) -> bool {
        !matches!(self.state, State::Ward)
    }

    /// Whether connections go to a successor.
    pub(crate) fn is_succeeded(&self) -> bool {
        matches!(self.state, State::Succeeded { .. })
    }

    /// Whether something is still to be sent to the successor.
    pub(crate) fn owes(&self) -> bool {
        match self.state {
            State::Succeeded { owes_last_word, .. } => owes_last_word || self.has_given() || !self.untaken.is_empty(),
            State::Ward | State::Orphan | State::Visited { .. } | State::Forsaken => false,
        }
    }

    /// Whether it is only the successor's channel that lets the last word wait.
    pub(crate) fn owes_last_word(&self) -> bool {
        matches!(self.state, State::Succeeded { owes_last_word: true, .. })
    }

    /// Whether there is a connection that it sends as soon as the successor takes it.
    pub(crate) fn has_given(&self) -> bool {
        self.is_succeeded() && !self.given.is_empty()
    }

    /// Sends a connection as soon as a successor takes it.
    pub(crate) fn give(&mut self, given: Given) {
        self.given.push(given);
    }

    /// The sockets of clients on their way to a successor, not yet sent.
    pub(crate) fn given(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.given.iter().filter_map(|(_, fds)| fds.first().map(AsFd::as_fd))
    }

    /// The sockets of clients that were sent to a successor which has not said that it has them.
    pub(crate) fn untaken(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.untaken.iter().flatten().filter_map(|(_, fds)| fds.first().map(AsFd::as_fd))
    }

    /// Hears what a successor has taken; how it ends, if it does.
    pub(crate) fn hear_taken(&mut self) -> Option<RecvError> {
        let State::Succeeded { channel, .. } = &mut self.state else { return None };
        loop {
            match channel.recv::<ToFormer>(&mut Vec::new()) {
                Ok(ToFormer::Taken) => drop(self.untaken.pop_front()),
                Ok(ToFormer::Ready { .. } | ToFormer::Failed { .. }) => {}
                Err(RecvError::Empty) => return None,
                Err(end) => return Some(end),
            }
        }
    }

    /// Whether the master has died, and no other is waited for.
    pub(crate) fn is_forsaken(&self) -> bool {
        matches!(self.state, State::Forsaken)
    }

    /// When it gives up what it waits for; `u64::MAX` = it waits for nothing.
    pub(crate) fn due_ms(&self) -> u64 {
        match self.state {
            State::Orphan => self.until_ms.min(self.again_ms),
            State::Visited { until_ms, .. } => until_ms,
            State::Ward => self.given_up_ms,
            State::Forsaken | State::Succeeded { .. } => u64::MAX,
        }
    }
}

impl Worker {
    /// Watches the process that has started this one. Its descriptors, and so the channel, outlive it in its heir: for an
    /// instant as a rule, and for ever if somebody has stopped that.
    pub(crate) fn watch_master(&mut self) {
        let Some(parent) = rustix::process::getppid() else { return };
        let Ok(pidfd) = rustix::process::pidfd_open(parent, PidfdFlags::empty()) else { return };
        let watched = self.poll.registry().register(&mut SourceFd(&pidfd.as_raw_fd()), MASTER, Interest::READABLE);
        self.succession.master = watched.ok().map(|()| pidfd);
    }

    /// The process that has started this one has ended: what it had in hand may still come over the channel.
    pub(crate) fn on_masters_end(&mut self) {
        if let Some(pidfd) = self.succession.master.take() {
            let _ = self.poll.registry().deregister(&mut SourceFd(&pidfd.as_raw_fd()));
            self.succession.given_up_ms = self.cx.clock.now_ms + GIVEN_UP_MS;
        }
    }

    /// The master has died.
    pub(crate) fn become_orphan(&mut self) {
        let channel = self.cx.channel.as_fd().as_raw_fd();
        let _ = self.poll.registry().deregister(&mut SourceFd(&channel));
        self.cx.orphan = true;
        if self.cx.draining && !self.cx.giving_back {
            warn!("the master has died; finishing {} connections", self.clients.len());
            return self.forsake(self.drain_until_ms.saturating_sub(self.cx.clock.now_ms));
        }
        self.take_returned();
        if self.wait_for_another() {
            warn!(
                "the master has died; serving {} connections on, and new ones, for {} at most unless another is started",
                self.clients.len(),
                ipc::words::duration(self.cx.site.snapshot.orphan_timeout_ms.into())
            );
        } else {
            warn!("the master has died, and no other could find this worker; finishing {}", self.clients.len());
            self.forsake(self.cx.site.snapshot.shutdown_timeout_ms.into());
        }
    }

    /// Serves on, also what was about to be given to somebody, until another master comes; false when none could find
    /// this worker.
    fn wait_for_another(&mut self) -> bool {
        if !self.watch_control() {
            return false;
        }
        self.cx.draining = false;
        self.cx.giving_back = false;
        self.succession.state = State::Orphan;
        self.succession.until_ms = self.cx.clock.now_ms + u64::from(self.cx.site.snapshot.orphan_timeout_ms);
        self.accepting.start(&self.succession.listeners, &self.cx.site.snapshot, self.poll.registry());
        true
    }

    fn watch_control(&self) -> bool {
        self.succession.control.as_ref().is_some_and(|control| {
            let fd = control.as_raw_fd();
            self.poll.registry().register(&mut SourceFd(&fd), CONTROL, Interest::READABLE).is_ok()
        })
    }

    /// Finishes within `timeout_ms`: there is nobody to give anything to.
    fn forsake(&mut self, timeout_ms: u64) {
        self.succession.state = State::Forsaken;
        // Nobody will have them.
        self.cx.given_back.clear();
        self.cx.returned.clear();
        self.succession.given.clear();
        self.succession.untaken.clear();
        self.begin_drain(u32::try_from(timeout_ms).unwrap_or(u32::MAX), false);
    }

    /// Closes what it kept for a successor.
    pub(crate) fn keep_no_longer(&mut self) {
        let registry = self.poll.registry();
        self.accepting.stop(&self.succession.listeners, registry);
        self.succession.listeners.clear();
        if let Some(control) = self.succession.control.take() {
            // Others have copies, for which `close` would leave it watched.
            let _ = registry.deregister(&mut SourceFd(&control.as_raw_fd()));
        }
        self.cx.kept = self.succession.rest.len();
    }

    /// Somebody connects to the control socket.
    pub(crate) fn on_control(&mut self) {
        let failed_before = std::mem::replace(&mut self.succession.again_ms, u64::MAX) != u64::MAX;
        loop {
            let Some(control) = &self.succession.control else { return };
            let fd = match rustix::net::accept_with(control, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(fd) => fd,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    if !failed_before {
                        let why = std::io::Error::from(errno);
                        warn!("cannot let in who comes to the control socket: {why}; trying again");
                    }
                    self.succession.again_ms = self.cx.clock.now_ms + AGAIN_MS;
                    return;
                }
            };
            let known = sockopt::socket_peercred(&fd)
                .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid());
            if !known || !matches!(self.succession.state, State::Orphan) {
                continue;
            }
            let mut channel = Channel::from_fd(fd);
            let config = format!("worker {} of a master that has died", self.cx.index);
            let greeting = Greeting { version: ipc::control::VERSION, pid: self.cx.pid, config, role: Role::Orphan };
            let watched =
                self.poll.registry().register(&mut SourceFd(&channel.as_fd().as_raw_fd()), VISITOR, Interest::READABLE);
            if channel.send(&greeting, &[]).is_ok() && watched.is_ok() {
                // Others must reach the workers that have not been asked.
                let _ = self.poll.registry().deregister(&mut SourceFd(&control.as_raw_fd()));
                let until_ms = self.cx.clock.now_ms + ASK_MS;
                self.succession.state = State::Visited { channel, asked: false, until_ms };
                return;
            }
        }
    }

    /// Who has connected says something, or goes.
    pub(crate) fn on_visitor(&mut self) {
        loop {
            if self.succession.is_succeeded() {
                // From one that gets nothing anyway there is nothing to lose.
                if self.succession.hear_taken().is_some() && self.succession.owes() {
                    self.lose_successor(&"it has ended");
                }
                return;
            }
            let State::Visited { channel, asked, until_ms } = &mut self.succession.state else { return };
            if *asked {
                match channel.recv::<ToFormer>(&mut Vec::new()) {
                    Ok(ToFormer::Ready { version }) => {
                        self.succeed(version == handover::VERSION);
                        // Its end may be there already, and would not be told of again.
                        continue;
                    }
                    Err(RecvError::Empty) => return,
                    Ok(ToFormer::Taken) => return self.wait_again(),
                    Ok(ToFormer::Failed { why }) => {
                        let why = why.lines().next().unwrap_or_default();
                        info!("the master that was started does not come up: {why}; waiting for another");
                        return self.wait_again();
                    }
                    // One with other listeners, mostly.
                    Err(
                        RecvError::Closed | RecvError::DescriptorsLost | RecvError::Malformed(_) | RecvError::Io(_),
                    ) => return self.wait_again(),
                }
            }
            match channel.recv::<Request>(&mut Vec::new()) {
                Ok(Request::TakeOver) => {
                    *asked = true;
                    *until_ms = self.cx.clock.now_ms + READY_MS;
                    if !give_listeners(channel, &self.succession.listeners) {
                        return self.wait_again();
                    }
                }
                Ok(Request::Reload { .. } | Request::Status | Request::Upgrade) => {
                    let text = "the master has died, and its workers serve on and wait for another; start it";
                    let _ = channel.send(&Answer::Busy { text: text.to_owned() }, &[]);
                    return self.wait_again();
                }
                Err(RecvError::Empty) => return,
                Err(RecvError::Closed | RecvError::DescriptorsLost | RecvError::Malformed(_) | RecvError::Io(_)) => {
                    return self.wait_again();
                }
            }
        }
    }

    /// What it waited for has not come in time.
    pub(crate) fn on_succession_timeout(&mut self) {
        match self.succession.state {
            State::Visited { .. } => self.wait_again(),
            State::Orphan if self.cx.clock.now_ms < self.succession.until_ms => self.on_control(),
            State::Orphan => {
                warn!("no other master was started; finishing {} connections", self.clients.len());
                self.forsake(self.cx.site.snapshot.shutdown_timeout_ms.into());
            }
            State::Ward => {
                warn!("the master's process has ended and its channel has not: somebody holds it open");
                self.become_orphan();
            }
            State::Forsaken | State::Succeeded { .. } => {}
        }
    }

    fn wait_again(&mut self) {
        self.succession.state = State::Orphan;
        self.watch_control();
        self.on_control();
    }

    /// A successor is ready: it gets everything, or, if it would not understand, it has the listening sockets and
    /// this worker finishes alone.
    fn succeed(&mut self, gives: bool) {
        let State::Visited { channel, .. } = std::mem::replace(&mut self.succession.state, State::Orphan) else {
            return;
        };
        self.accepting.stop(&self.succession.listeners, self.poll.registry());
        let count = self.clients.len();
        if gives {
            info!("another master takes over {count} connections");
        } else {
            info!("another master, of another version, takes over the listeners");
        }
        self.succession.state = State::Succeeded { channel, owes_last_word: gives };
        self.begin_drain(self.cx.site.snapshot.shutdown_timeout_ms, gives);
    }

    /// The successor takes nothing more, and `why`. What it has not been sent is for the next.
    fn lose_successor(&mut self, why: &dyn std::fmt::Display) {
        // What it had not read when it ended nobody will ever read; of one that lives that cannot be known.
        if !matches!(self.succession.hear_taken(), Some(RecvError::Closed)) {
            self.succession.untaken.clear();
        }
        let State::Succeeded { channel, .. } = std::mem::replace(&mut self.succession.state, State::Forsaken) else {
            return;
        };
        let _ = self.poll.registry().deregister(&mut SourceFd(&channel.as_fd().as_raw_fd()));
        let untaken = std::mem::take(&mut self.succession.untaken).into_iter().flatten();
        self.succession.given.extend(untaken);
        let (left, unsent) = (self.clients.len(), self.succession.given.len());
        if self.wait_for_another() {
            warn!(
                "the other master takes no connections any more: {why}; serving {left} on, and {unsent} wait, for {} \
                 at most unless another is started",
                ipc::words::duration(self.cx.site.snapshot.orphan_timeout_ms.into())
            );
            self.on_control();
        } else {
            warn!(
                "the other master takes no connections any more: {why}; {unsent} on their way are lost, {left} are \
                 finished here"
            );
            self.forsake(self.drain_until_ms.saturating_sub(self.cx.clock.now_ms));
        }
    }

    /// What another master is given of a client's connection: `relay` is its task and the descriptors that it needs
    /// besides the client's. `None` when its listener is not known.
    pub(crate) fn given(&self, client: Client, carried: Vec<u8>, relay: Option<(Task, Vec<OwnedFd>)>) -> Option<Given> {
        let snapshot = &self.cx.site.snapshot;
        let listener = snapshot.listeners.get(usize::from(client.listener))?.bind.clone();
        let origin = client.origin();
        let peer = client.socket.peer_addr();
        let (task, rest) = match relay {
            Some(relay) => relay,
            None if carried.is_empty() => (Task::Serve, Vec::new()),
            None => (Task::Resume(carried), Vec::new()),
        };
        let server = match &task {
            Task::Relay { server: Some(number), .. } => snapshot.server_name(*number),
            Task::Relay { server: None, .. } | Task::Serve | Task::Resume(_) | Task::Fail(_) | Task::Refuse => None,
        };
        let mut fds = vec![OwnedFd::from(client.socket)];
        fds.extend(rest);
        let passed = Passed { id: 0, listener: 0, peer, origin, task, kept: true };
        Some((Handed { listener, passed, server }, fds))
    }

    /// Sends what is for the successor, as much as it takes now; after everything else, that this was all.
    pub(crate) fn send_to_successor(&mut self) {
        while !self.succession.given.is_empty() {
            let State::Succeeded { channel, .. } = &mut self.succession.state else { return };
            let count = batch(&self.succession.given);
            let handed = self.succession.given.iter().take(count).map(|(handed, _)| handed.clone()).collect();
            let fds: Vec<_> =
                self.succession.given.iter().take(count).flat_map(|(_, fds)| fds.iter().map(AsFd::as_fd)).collect();
            match channel.send(&ToSuccessor::Connections(handed), &fds) {
                Ok(()) => {
                    let sent = self.succession.given.drain(..count).collect();
                    self.succession.untaken.push_back(sent);
                }
                Err(error @ SendError::Closed) => return self.lose_successor(&error),
                // Tried again in the next turn, as long as there is time.
                Err(SendError::Full | SendError::TooLarge | SendError::Io(_)) => return,
            }
        }
        let State::Succeeded { channel, owes_last_word } = &mut self.succession.state else { return };
        if *owes_last_word && self.cx.draining && self.clients.is_empty() {
            match channel.send(&ToSuccessor::Everything, &[]) {
                Ok(()) => *owes_last_word = false,
                Err(error @ SendError::Closed) => self.lose_successor(&error),
                Err(SendError::Full | SendError::TooLarge | SendError::Io(_)) => {}
            }
        }
    }
}

/// How many of the first connections fit into one message.
pub(crate) fn batch(given: &[Given]) -> usize {
    let (mut fds, mut bytes) = (0, 0);
    let fits = |(handed, more): &&Given| {
        fds += more.len();
        bytes += handed.passed.task.carried_bytes();
        fds <= MAX_DESCRIPTORS && bytes <= MAX_CARRIED_BYTES
    };
    given.iter().take_while(fits).count().max(1)
}

/// Sends the listening sockets; false when that fails.
fn give_listeners(channel: &mut Channel, listeners: &[(Kept, OwnedFd)]) -> bool {
    let count = listeners.chunks(MAX_DESCRIPTORS).len();
    if count == 0 {
        return channel.send(&ToSuccessor::Listeners { bound: Vec::new(), last: true }, &[]).is_ok();
    }
    listeners.chunks(MAX_DESCRIPTORS).enumerate().all(|(at, chunk)| {
        let bound = chunk.iter().map(|(kept, _)| kept.bound.clone()).collect();
        let fds: Vec<_> = chunk.iter().map(|(_, fd)| fd.as_fd()).collect();
        channel.send(&ToSuccessor::Listeners { bound, last: at + 1 == count }, &fds).is_ok()
    })
}

impl Client {
    /// What the successor must be told of where the connection comes from.
    fn origin(&self) -> Origin {
        match (self.state, self.peer.zip(self.destination)) {
            (ClientState::Header, _) => Origin::Awaited,
            (_, Some((source, destination))) => Origin::Told(Some(Ends { source, destination })),
            (_, None) => Origin::Direct,
        }
    }
}
