//! What comes over the channel from the master, and what goes back: connections to take up, orders, reports of those that
//! are over. What the messages mean stands in `ipc::message`.

use std::io;
use std::os::fd::OwnedFd;

use ipc::channel::{RecvError, SendError};
use ipc::message::{MAX_FDS, Passed, Task, ToMaster, ToWorker};
use ipc::snapshot::{Mode, OnRemoval};
use ipc::state::Phase;
use log::{debug, error};

use crate::client::{Client, ClientState};
use crate::exchange::Problem;
use crate::io::socket::Socket;
use crate::relay::Left;
use crate::slab::Key;
use crate::worker::Worker;

/// Messages taken from the master in one turn at most.
const MESSAGES: usize = 16;
/// Finished connections are reported when so many have come together,
const REPORT_CONNECTIONS: usize = 64;
/// or when the first of them has waited so long.
pub(crate) const REPORT_MS: u64 = 20;

impl Worker {
    /// Takes messages from the master. `Some(true)` when more may be there, `None` when the master is gone.
    pub(crate) fn on_channel(&mut self) -> io::Result<Option<bool>> {
        let mut fds = Vec::new();
        for _ in 0..MESSAGES {
            if !self.can_receive() {
                return Ok(Some(true));
            }
            // What comes after that is the end of the channel.
            if self.stopped {
                return Ok(Some(false));
            }
            match self.cx.channel.recv::<ToWorker>(&mut fds) {
                Ok(message) => self.on_message(message, &mut fds)?,
                Err(RecvError::Empty) => return Ok(Some(false)),
                Err(RecvError::Closed) => return Ok(None),
                Err(RecvError::Malformed(what)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a message from the master: {what}"),
                    ));
                }
                // What was passed is lost here, but not to the master, which finds it another worker.
                Err(lost @ RecvError::DescriptorsLost) => return Err(io::Error::other(lost.to_string())),
                Err(RecvError::Io(error)) => {
                    return Err(io::Error::other(format!("cannot receive from the master: {error}")));
                }
            }
        }
        Ok(Some(true))
    }

    /// Whether there are descriptors for a message from the master, if need be after closing what is idle. If not,
    /// the message waits until something ends.
    pub(crate) fn can_receive(&mut self) -> bool {
        if !self.cx.can_receive() {
            self.free_descriptors(MAX_FDS);
        }
        self.cx.can_receive()
    }

    fn on_message(&mut self, message: ToWorker, fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        match message {
            ToWorker::Pass(passed) if passed.iter().map(|one| one.task.descriptors()).sum::<usize>() == fds.len() => {
                let mut fds = fds.drain(..);
                for passed in passed {
                    let Some(client) = fds.next() else { break };
                    let rest = fds.by_ref().take(passed.task.descriptors() - 1).collect();
                    self.take_up(passed, client, rest);
                }
            }
            ToWorker::Inherit { listeners, perhaps_sent } => {
                self.inherit(&listeners, std::mem::take(fds), perhaps_sent)
            }
            ToWorker::OpenLog if fds.len() == 1 => {
                if let (Some(fd), Some(log)) = (fds.pop(), &mut self.cx.log) {
                    log.replace(fd, self.cx.clock.now_ms);
                }
            }
            ToWorker::Reload { generation } if !fds.is_empty() => {
                let snapshot = fds.remove(0);
                self.reload(generation, &snapshot, fds.pop())?;
            }
            ToWorker::GiveWay { connections } => {
                self.on_plea(usize::try_from(connections).unwrap_or(usize::MAX));
            }
            // Whoever finishes gives nothing to anybody but its master.
            ToWorker::Unkept { ids } => self.lose_protection(&ids),
            ToWorker::Keep { .. } if self.cx.draining && !self.cx.giving_back => {}
            ToWorker::Keep { listeners } => self.cx.kept = self.succession.keep(listeners, std::mem::take(fds)),
            ToWorker::Stop => self.stopped = true,
            ToWorker::Ping { sent_ms } => {
                let stats = self.cx.control.stats();
                stats.lag_ms.set(self.cx.clock.now_ms.saturating_sub(sent_ms));
                stats.pinged_ms.set(sent_ms);
            }
            ToWorker::Ease { connections } => {
                self.ease(usize::try_from(connections).unwrap_or(usize::MAX));
            }
            ToWorker::Drain { timeout_ms, give_back } => self.begin_drain(timeout_ms, give_back),
            ToWorker::Hello { .. } | ToWorker::Pass(_) | ToWorker::OpenLog | ToWorker::Reload { .. } => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a message from the master makes no sense here",
                ));
            }
        }
        Ok(())
    }

    /// Takes up a connection that the master passes.
    pub(crate) fn take_up(&mut self, passed: Passed, fd: OwnedFd, rest: Vec<OwnedFd>) {
        self.cx.control.stats().taken.add(1);
        self.forget_returned(passed.id);
        let Some(listener) = self.cx.site.snapshot.listeners.get(usize::from(passed.listener)) else {
            error!("the master passed a connection of a listener that does not exist");
            return self.cx.report_finished(passed.id);
        };
        let (mode, to) = (listener.mode, listener.to);
        let cut = listener.removed && self.cx.site.snapshot.on_removal == OnRemoval::Cut;
        let socket = if passed.peer.is_some() { Socket::new(fd) } else { Socket::unix(fd) };
        let client = Client::new(socket, passed.id, passed.listener, passed.peer);
        let Ok(key) = self.clients.insert(client) else { return self.cx.report_finished(passed.id) };
        self.cx.sockets += 1;
        let Some(client) = self.clients.get_mut(key) else { return };
        // What comes with unanswered bytes is not taken up before they are in a slot: until then the master has them.
        if !matches!(passed.task, Task::Relay { .. } | Task::Resume(_)) {
            client.publish(Phase::Open, &self.cx);
        }
        if !passed.kept {
            client.lose_protection();
        }
        client.begin(&passed.origin);
        match (passed.task, mode, to) {
            (Task::Relay { .. }, _, _) | (_, Mode::Tcp, _) if cut => {
                client.socket.reset();
                self.close_client(key);
            }
            (Task::Serve, _, _) if client.state == ClientState::Header => self.await_header(key),
            (Task::Relay { server, reply, to_server, to_client, tunnel }, _, _) => {
                let left = Left { server, reply, pipes: [to_server, to_client], tunnel };
                self.adopt_relay(key, left, rest);
            }
            (Task::Serve, Mode::Tcp, Some(group)) => self.begin_relay(key, group),
            (_, Mode::Tcp, _) => {
                client.socket.reset();
                self.close_client(key);
            }
            (Task::Serve, Mode::Http | Mode::Forward, _) => self.serve_new(key),
            (Task::Resume(bytes), Mode::Http | Mode::Forward, _) => {
                if client.resume(&bytes, &mut self.cx) {
                    self.serve_client(key);
                } else {
                    client.publish(Phase::Open, &self.cx);
                    self.answer(key, Problem::new(503, "the worker has no buffer for the request"));
                }
            }
            (Task::Fail(lost), Mode::Http | Mode::Forward, _) => {
                self.answer_lost(key, lost, Problem::new(502, "the worker that served the request died"));
            }
            (Task::Refuse, Mode::Http | Mode::Forward, _) => {
                self.answer(key, Problem::new(503, "the client has too many connections"));
            }
        }
    }

    /// Begins to serve a client that has just been taken up.
    fn serve_new(&mut self, key: Key<Client>) {
        // Who is finishing does not wait for what may be there already.
        if !self.cx.draining && !self.first_read.is_worthwhile() {
            return self.wait_idle(key);
        }
        self.serve_client(key);
        let waits = |client: &Client| client.state == ClientState::Idle && client.input.is_none();
        self.first_read.note(!self.clients.get(key).is_some_and(waits));
    }

    /// Whether every connection that is over counts at once: the master counts those of each address, or has hardly a
    /// place left for others.
    fn is_waited_for(&self) -> bool {
        let records = self.cx.control.records();
        self.cx.site.snapshot.limits.connections_per_address.is_some()
            || self.clients.len() + self.cx.finished.len() >= records - records / 8
    }

    /// Tells the master which connections are finished, in batches.
    pub(crate) fn report(&mut self) {
        self.acknowledge();
        if self.cx.finished.is_empty() {
            return;
        }
        let waited_ms = self.cx.clock.now_ms - self.cx.finished_since_ms;
        let few = self.cx.finished.len() < REPORT_CONNECTIONS && waited_ms < REPORT_MS;
        if few && !self.cx.draining && !self.is_waited_for() {
            return;
        }
        let ids = std::mem::take(&mut self.cx.finished);
        // A record holds far more numbers than this; the rest goes in the next turn.
        const MOST: usize = 8192;
        let now = &ids[..ids.len().min(MOST)];
        match self.cx.channel.send(&ToMaster::Finished(now.to_vec()), &[]) {
            Ok(()) => self.cx.finished = ids[now.len()..].to_vec(),
            // What is never reported the master would keep a copy of for ever.
            Err(SendError::Full | SendError::TooLarge | SendError::Io(_)) => {
                self.cx.finished = ids;
                self.cx.finished_since_ms = self.cx.clock.now_ms;
            }
            // The master's end is noticed as the channel's end of file.
            Err(error @ SendError::Closed) => debug!("cannot report: {error}"),
        }
    }
}
