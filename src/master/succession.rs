//! One master after another: taking over from those that were there before, and handing over to a successor. Part of
//! the master's loop; owns nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use ipc::channel::{RecvError, SendError};
use ipc::control::Answer;
use ipc::handover::{Handed, MAX_DESCRIPTORS, ToSuccessor};
use ipc::message::{MAX_CARRIED_BYTES, Passed, Task, ToWorker};
use ipc::snapshot::Address;
use ipc::tcp_info;
use log::{error, info, warn};
use mio::Interest;

use super::lifecycle::drain_worker;
use super::{Course, FORMERS, Master, SUCCESSOR, open_control, unwatch, watch};
use crate::control::ClientId;
use crate::keeper::{Connection, Relay};
use crate::notify;
use crate::salvage;
use crate::supervise::Errand;
use crate::takeover::Former;
use crate::upgrade::{News, Successor};

/// Messages heard from one former side in one turn at most.
const HEARD: usize = 64;

impl Master {
    /// Every worker is ready for the first time: those that were there before give their connections.
    pub(super) fn begin_succession(&mut self) {
        notify::tell(&format!("READY=1\nMAINPID={}", std::process::id()));
        if self.formers.is_empty() {
            return;
        }
        match open_control(&self.config, &self.reload, true) {
            Ok(control) => self.control = control,
            Err(why) => warn!("{why}"),
        }
        if let Some(control) = &self.control
            && let Err(error) = watch(&self.poll, control.as_fd(), super::CONTROL, Interest::READABLE)
        {
            warn!("cannot watch the control socket: {error}");
        }
        for former in &mut self.formers {
            if let Err(failed) = former.tell_ready() {
                warn!("{}: {failed}", former.name);
            }
            if let Err(failed) = watch(&self.poll, former.as_fd(), FORMERS, Interest::READABLE) {
                error!("cannot take over from {}: {failed}", former.name);
            }
        }
        self.keep_for_orphans();
    }

    /// Receives connections from those that were there before.
    pub(super) fn hear_formers(&mut self) {
        if !std::mem::take(&mut self.formers_ready) {
            return;
        }
        let mut formers = std::mem::take(&mut self.formers);
        formers.retain_mut(|former| self.hear_former(former));
        self.formers = formers;
    }

    /// Whether it has more to give.
    fn hear_former(&mut self, former: &mut Former) -> bool {
        let mut fds = Vec::new();
        for _ in 0..HEARD {
            match former.channel.recv::<ToSuccessor>(&mut fds) {
                Ok(ToSuccessor::Connections(handed)) => {
                    let mut fds = fds.drain(..);
                    for one in handed {
                        let own = fds.by_ref().take(one.passed.task.descriptors()).collect();
                        self.take_in(one, own);
                    }
                }
                Ok(ToSuccessor::Listeners { .. }) => {}
                Err(RecvError::Empty) => return true,
                Err(RecvError::Closed) => {
                    info!("{} has given everything", former.name);
                    unwatch(&self.poll, former.as_fd());
                    return false;
                }
                Err(lost @ RecvError::DescriptorsLost) => warn!("{}: {lost}; connections were lost", former.name),
                Err(failed @ (RecvError::Malformed(_) | RecvError::Io(_))) => {
                    error!("{}: {failed}; not hearing it any more", former.name);
                    unwatch(&self.poll, former.as_fd());
                    return false;
                }
            }
        }
        self.formers_ready = true;
        true
    }

    /// Takes one connection in, to be passed to a worker.
    fn take_in(&mut self, handed: Handed, fds: Vec<OwnedFd>) {
        let listener = self.config.snapshot.listeners.iter().position(|listener| listener.bind == handed.listener);
        let Some(listener) = listener.and_then(|id| u16::try_from(id).ok()) else {
            return warn!("a connection of {}, which is not configured any more, is closed", handed.listener);
        };
        let Passed { peer, origin, task, .. } = handed.passed;
        let count = fds.len();
        let mut fds = fds.into_iter();
        let Some(fd) = fds.next().filter(|_| count == task.descriptors()) else { return };
        let mut connection = Connection::new(fd, peer, listener);
        connection.origin = origin;
        if let Ok(counters) = tcp_info::counters(&connection.fd) {
            let carried = if let Task::Resume(bytes) = &task { bytes.len() } else { 0 };
            connection.base = salvage::successor_base(&counters, carried);
        }
        if let Task::Relay { to_server, to_client, .. } = &task
            && let Some(server_fd) = fds.next()
        {
            let pipes = [to_server, to_client].map(|there| if *there { fds.next() } else { None });
            connection.relay = Some(Relay { server_fd, server: None, pipes });
        }
        connection.task = match task {
            // Servers are numbered anew by every master.
            Task::Relay { to_server, to_client, .. } => Task::Relay { server: None, to_server, to_client },
            other @ (Task::Serve | Task::Resume(_) | Task::Fail | Task::Refuse) => other,
        };
        self.addresses.enter(connection.counted());
        self.homeless.push_back(connection);
    }

    /// Gives every worker what it is to keep open should this master die.
    pub(super) fn keep_for_orphans(&mut self) {
        for at in 0..self.seats.len() {
            let Some(errand) = self.keep_errand() else { return };
            if let Some(worker) = self.seats[at].worker.as_mut() {
                let is_keep = |errand: &Errand| matches!(errand.message, ToWorker::Keep { .. });
                worker.errands.retain(|errand| !is_keep(errand));
                worker.errands.push(errand);
            }
        }
    }

    /// What a worker is to keep; `None` where nobody could find it again, or it is too much.
    pub(super) fn keep_errand(&self) -> Option<Errand> {
        let control = self.control.as_ref()?;
        let staying: Vec<_> = self.sockets.iter().filter(|socket| socket.leaving.is_none()).collect();
        if staying.len() >= MAX_DESCRIPTORS {
            return None;
        }
        let copy = |fd: std::os::fd::BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3).ok().map(Rc::new);
        let mut fds = staying.iter().map(|socket| copy(socket.as_fd())).collect::<Option<Vec<_>>>()?;
        fds.push(copy(control.as_fd())?);
        let listeners = staying.iter().map(|socket| self.bound(socket.id)).collect();
        Some(Errand { message: ToWorker::Keep { listeners }, fds, after_connections: false })
    }

    /// The address of a listener as configured.
    fn bound(&self, id: u16) -> Address {
        self.config.snapshot.listeners[usize::from(id)].bind.clone()
    }

    /// Starts the program anew, to take over from this master.
    pub(super) fn upgrade(&mut self, asker: Option<ClientId>, now: Instant) {
        if self.course != Course::Running || self.successor.is_some() || !self.formers.is_empty() {
            let text = "the master is stopping, or another upgrade is under way".to_owned();
            warn!("not upgraded: {text}");
            return self.answer(asker, &Answer::Busy { text });
        }
        let listeners: Vec<_> = self
            .sockets
            .iter()
            .filter(|socket| socket.leaving.is_none())
            .map(|socket| (&self.config.snapshot.listeners[usize::from(socket.id)].bind, socket.as_fd()))
            .collect();
        info!("upgrading: starting {}", self.program.path());
        let started = Successor::start(&self.program, &listeners, asker, now).and_then(|successor| {
            watch(&self.poll, successor.as_fd(), SUCCESSOR, Interest::READABLE)?;
            Ok(successor)
        });
        match started {
            Ok(successor) => self.successor = Some(successor),
            Err(failed) => {
                let text = format!("cannot start {}: {failed}", self.program.path());
                error!("not upgraded: {text}");
                self.answer(asker, &Answer::NotUpgraded { text });
            }
        }
    }

    /// Hears what the successor has to say.
    pub(super) fn hear_successor(&mut self, now: Instant) {
        let Some(successor) = &mut self.successor else { return };
        match successor.hear() {
            News::None => {}
            News::Ready if successor.deadline.take().is_some() => {
                let (asker, pid) = (successor.asker, successor.pid);
                self.hand_over(pid, now);
                self.answer(asker, &Answer::Upgraded { pid: pid.cast_signed() });
            }
            News::Ready => {}
            News::Gone(why) if successor.deadline.is_some() => self.give_up_successor(&why),
            News::Gone(why) => {
                error!("the successor is gone: {why}; connections on their way to it are lost");
                self.successor = None;
            }
        }
    }

    /// Gives the successor up when it does not become ready in time.
    pub(super) fn check_successor(&mut self, now: Instant) {
        if self.successor.as_ref().and_then(|successor| successor.deadline).is_some_and(|deadline| deadline <= now) {
            self.give_up_successor("it did not become ready in time");
        }
    }

    fn give_up_successor(&mut self, why: &str) {
        let Some(successor) = self.successor.take() else { return };
        unwatch(&self.poll, successor.as_fd());
        error!("not upgraded: {why}; nothing has changed");
        let asker = successor.asker;
        successor.kill();
        self.answer(asker, &Answer::NotUpgraded { text: why.to_owned() });
    }

    /// The successor is ready: it accepts from now on, and gets every connection.
    fn hand_over(&mut self, pid: u32, now: Instant) {
        info!("another master (pid {pid}) takes over");
        notify::tell(&format!("MAINPID={pid}"));
        self.course = Course::HandingOver;
        for mut socket in self.sockets.drain(..) {
            unwatch(&self.poll, socket.as_fd());
            socket.keep_file();
        }
        let timeout_ms = self.config.snapshot.shutdown_timeout_ms;
        for seat in &mut self.seats {
            seat.start_at = None;
            if let Some(worker) = seat.worker.as_mut() {
                drain_worker(worker, timeout_ms, true, now);
            }
        }
    }

    /// Sends connections without a worker to the successor.
    pub(super) fn send_to_successor(&mut self) {
        let Some(successor) = &mut self.successor else {
            // It is gone, and nobody accepts here any more.
            while let Some(connection) = self.homeless.pop_front() {
                self.cut(connection);
            }
            return;
        };
        while !self.homeless.is_empty() {
            let (mut handed, mut fds, mut bytes) = (Vec::new(), Vec::new(), 0);
            for connection in &self.homeless {
                let more = connection.task.descriptors();
                if let Task::Resume(carried) = &connection.task {
                    bytes += carried.len();
                }
                if !handed.is_empty() && (fds.len() + more > MAX_DESCRIPTORS || bytes > MAX_CARRIED_BYTES) {
                    break;
                }
                fds.extend(connection.descriptors().map(AsFd::as_fd));
                let listener = self.config.snapshot.listeners[usize::from(connection.listener)].bind.clone();
                let passed = Passed {
                    id: 0,
                    listener: 0,
                    peer: connection.peer,
                    origin: connection.origin,
                    task: connection.task.clone(),
                };
                handed.push(Handed { listener, passed });
            }
            let count = handed.len();
            match successor.channel.send(&ToSuccessor::Connections(handed), &fds) {
                Ok(()) => drop(self.homeless.drain(..count)),
                // Tried again in the next turn, which `timeout` brings about.
                Err(SendError::Full) => return,
                Err(failed) => {
                    error!("the successor does not take connections: {failed}");
                    self.successor = None;
                    return;
                }
            }
        }
    }

    fn answer(&mut self, client: Option<ClientId>, answer: &Answer) {
        if let (Some(client), Some(control)) = (client, &mut self.control) {
            control.answer(client, answer);
        }
    }
}
