//! One master after another: taking over from those that were there before, and handing over to a successor. Part of
//! the master's loop; owns nothing.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::channel::SendError;
use ipc::control::Answer;
use ipc::handover::{self, Bound, Handed, MAX_DESCRIPTORS, ToSuccessor};
use ipc::message::{Kept, Lost, MAX_CARRIED_BYTES, MAX_FDS, Passed, Task, ToWorker};
use ipc::snapshot::{Address, ListenerId};
use ipc::tcp_info;
use log::{error, info, warn};
use mio::Interest;

use super::lifecycle::drain_worker;
use super::reconfigure::permissions;
use super::{Before, Course, FORMERS, Master, SUCCESSOR, unwatch, watch};
use crate::config::Loaded;
use crate::control::{ClientId, beside};
use crate::demo::Demo;
use crate::hands::Held;
use crate::keeper::{Connection, Relay};
use crate::lending::Lender;
use crate::listen::{self, Socket};
use crate::notify;
use crate::salvage;
use crate::supervise::Errand;
use crate::takeover::{self, End, Former};
use crate::upgrade::{News, Successor};

/// Messages heard from one former side in one turn at most.
const HEARD: usize = 64;
/// With so many connections without a worker no more are taken from former sides: these can keep them.
const HOMELESS: usize = 1024;
/// How often to look for those who wait and are not heard of.
const LOOK: Duration = Duration::from_secs(10);
/// How long an address that is in use may take to be free when the master starts.
const RELEASED: Duration = Duration::from_secs(1);
/// How long to wait until the place of the control socket is tried to be taken again: another master is at work there for an
/// instant.
const SOON: Duration = Duration::from_millis(50);
/// The same, when it cannot be taken, and somebody must do something about it.
const LATER: Duration = Duration::from_secs(1);
/// How much longer than its workers a former master may take to be rid of its connections.
const HAND_OVER_GRACE: Duration = Duration::from_secs(10);

/// A listening socket for every listener: one that was there before, or a new one.
pub(super) fn listen(config: &Loaded, before: &mut Before) -> Result<Vec<Socket>, String> {
    let mut sockets = Vec::new();
    for (id, listener) in (0..).zip(&config.snapshot.listeners) {
        let permissions = permissions(&config.process, &listener.bind);
        let lent = before.lent.iter().position(|(bound, _)| bound.address == listener.bind);
        // After a death both may have it: the same one.
        let lent = lent.map(|at| before.lent.swap_remove(at)).map(|(_, fd)| (fd, true));
        let left = takeover::listener(&mut before.formers, &listener.bind).or(lent);
        let inherited = left.and_then(|(fd, lent)| {
            let inherited = Socket::inherit(fd, id, listener, permissions, lent);
            inherited.map_err(|why| warn!("{why}; listening anew")).ok()
        });
        sockets.push(match inherited {
            Some(socket) => socket,
            None => {
                wait_released(&listener.bind);
                listen::bind(id, listener, permissions)?
            }
        });
    }
    for (bound, _) in before.lent.drain(..) {
        warn!("the service manager listens on {}, which is not configured: nobody is served there", bound.address);
    }
    Ok(sockets)
}

/// Waits for a while until nobody listens on `address`: processes that have just been killed hold their sockets for
/// another instant. Not for a Unix socket: who is behind it would be called again and again.
fn wait_released(address: &Address) {
    let until = Instant::now() + RELEASED;
    while matches!(address, Address::Inet(_)) && listen::is_taken(address) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Master {
    /// Every worker is ready for the first time: those that were there before give their connections.
    pub(super) fn begin_succession(&mut self) {
        if !self.formers.is_empty() {
            self.take_place();
            let mut formers = std::mem::take(&mut self.formers);
            formers.retain_mut(|former| self.follow(former));
            self.formers = formers;
            self.formers_ready = true;
        }
        notify::tell(notify::State::Ready);
    }

    /// Hears a former side from now on; false when that cannot be.
    fn follow(&self, former: &mut Former) -> bool {
        if let Err(failed) = former.tell_ready(&self.config.snapshot) {
            warn!("{}: {failed}", former.name);
        }
        match watch(&self.poll, former.as_fd(), FORMERS, Interest::READABLE) {
            Ok(()) => true,
            Err(failed) => {
                error!("cannot take over from {}: {failed}", former.name);
                false
            }
        }
    }

    /// Hears another one, too, if there is one.
    fn follow_next(&mut self, next: Option<Former>) {
        if let Some(mut next) = next
            && self.follow(&mut next)
        {
            self.formers.push(next);
        }
    }

    /// Receives connections from those that were there before, as far as there are places for them.
    pub(super) fn hear_formers(&mut self) {
        if !self.announced || !self.formers_ready || !self.may_take_in() {
            return;
        }
        self.formers_ready = false;
        for mut former in std::mem::take(&mut self.formers) {
            if self.hear_former(&mut former) {
                self.formers.push(former);
            } else {
                unwatch(&self.poll, former.as_fd());
            }
        }
    }

    /// Whether connections of former sides find a place soon.
    pub(super) fn may_take_in(&self) -> bool {
        self.homeless.is_empty() || self.homeless.len() < HOMELESS && self.has_room()
    }

    /// Whether it has more to give.
    fn hear_former(&mut self, former: &mut Former) -> bool {
        for _ in 0..HEARD {
            if !self.may_take_in() {
                break;
            }
            match former.hear() {
                takeover::News::None => return true,
                takeover::News::More => {}
                takeover::News::Met => {
                    info!("{} has come: taking over from it", former.name);
                    self.follow_next(former.knock_again());
                }
                takeover::News::Waiting if !former.is_wanted(&self.config.snapshot) => return false,
                takeover::News::Waiting => {
                    if let Err(failed) = former.tell_ready(&self.config.snapshot) {
                        warn!("{}: {failed}", former.name);
                        return false;
                    }
                }
                takeover::News::Connections(handed, fds) => {
                    if let Err(failed) = former.tell_taken() {
                        warn!("{}: {failed}; its connections stay there for now", former.name);
                        return false;
                    }
                    self.take_all_in(handed, fds);
                }
                takeover::News::Lost if former.keeps() => {
                    warn!(
                        "{}: no descriptors for its connections, which stay there for now; raise the limit with \
                         `ulimit -n`",
                        former.name
                    );
                    return false;
                }
                takeover::News::Lost => {
                    warn!("{}: connections were lost for want of descriptors; raise the limit", former.name);
                }
                takeover::News::Gone => {
                    match former.end() {
                        End::Everything => info!("{} has given everything", former.name),
                        End::Part => warn!(
                            "{} ended before it had given everything: connections that it had in hand are lost",
                            former.name
                        ),
                        End::Nothing if former.is_met() => warn!(
                            "{} has ended and given no connection: it was killed, and what it had in hand is lost, or it is of \
                             another version and has finished what it had",
                            former.name
                        ),
                        End::Nothing => {}
                    }
                    self.follow_next(former.knock_past());
                    return false;
                }
                takeover::News::Master(pid) => {
                    info!("{}: a master (pid {pid}) is there, where workers of a dead one were", former.name);
                    return false;
                }
                takeover::News::Broken(why) => {
                    error!("{}: {why}; not hearing it any more", former.name);
                    self.follow_next(former.knock_past());
                    return false;
                }
            }
        }
        self.formers_ready = true;
        true
    }

    fn take_all_in(&mut self, handed: Vec<Handed>, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        let mut closed = 0;
        for one in handed {
            let own = fds.by_ref().take(one.passed.task.descriptors()).collect();
            closed += usize::from(!self.take_in(one, own));
        }
        if closed > 0 {
            warn!("closed {closed} connections that came over, of listeners that are not configured any more");
        }
    }

    /// Takes one connection in, to be passed to a worker; false when its listener is not configured.
    fn take_in(&mut self, handed: Handed, fds: Vec<OwnedFd>) -> bool {
        let Passed { peer, origin, task, .. } = handed.passed;
        let mut fds = fds.into_iter().map(Held::from);
        let Some(fd) = fds.next() else { return false };
        let Some(listener) = self.listener_of(&handed.listener, &fd) else { return false };
        let mut connection = Connection::new(fd, peer, listener);
        connection.origin = origin;
        if let Ok(counters) = tcp_info::counters(&connection.fd) {
            let carried = if let Task::Resume(bytes) = &task { bytes.len() } else { 0 };
            connection.base = salvage::successor_base(&counters, carried);
        }
        connection.relay = Relay::new(&task, &mut fds);
        // Servers are numbered anew by every master.
        let server = handed.server.and_then(|name| self.config.snapshot.server_number(&name));
        if let Some(relay) = &mut connection.relay {
            relay.server = server;
        }
        connection.task = match task {
            Task::Relay { reply, to_server, to_client, tunnel, .. } => {
                let tunnel = tunnel.filter(|tunnel| tunnel.is_sound());
                Task::Relay { server, reply, to_server, to_client, tunnel }
            }
            Task::Fail(lost) => Task::Fail(Lost { server: None, ..lost }),
            other @ (Task::Serve | Task::Resume(_) | Task::Refuse) => other,
        };
        self.addresses.enter(connection.counted());
        self.homeless.push_back(connection);
        true
    }

    /// The listener with this address in the configuration. Of several on port 0 it is the one that the connection
    /// came to.
    fn listener_of(&self, address: &Address, connection: &Held) -> Option<ListenerId> {
        let named = || {
            let listeners = (0..).zip(&self.config.snapshot.listeners);
            listeners.filter(|(_, listener)| listener.bind == *address).map(|(id, _)| id)
        };
        let port = rustix::net::getsockname(connection)
            .ok()
            .and_then(|local| SocketAddr::try_from(local).ok())
            .map(|local| local.port());
        let came_to = |id: &ListenerId| {
            self.sockets.iter().any(|socket| {
                socket.id == *id && matches!(&socket.address, Address::Inet(bound) if Some(bound.port()) == port)
            })
        };
        named().find(came_to).or_else(|| named().next())
    }

    /// Gives every worker what it is to keep open should this master die.
    pub(super) fn keep_for_orphans(&mut self) {
        let Some(Errand { message, fds, after_connections }) = self.keep_errand() else { return };
        for worker in self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut()) {
            worker.errands.retain(|errand| !matches!(errand.message, ToWorker::Keep { .. }));
            worker.errands.push(Errand { message: message.clone(), fds: fds.clone(), after_connections });
        }
    }

    /// What a worker is to keep; `None` where nobody could find it again, or it is too much.
    pub(super) fn keep_errand(&self) -> Option<Errand> {
        let control = self.control.as_ref()?;
        let staying: Vec<_> = self.sockets.iter().filter(|socket| socket.leaving.is_none()).collect();
        if staying.len() + 1 >= MAX_FDS {
            return None;
        }
        let copy = |fd: std::os::fd::BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3).ok().map(Rc::new);
        let mut fds = staying.iter().map(|socket| copy(socket.as_fd())).collect::<Option<Vec<_>>>()?;
        fds.push(copy(control.as_fd())?);
        if let Some(lifeline) = self.demo.as_ref().and_then(Demo::lifeline) {
            fds.push(copy(lifeline)?);
        }
        let kept = |socket: &&Socket| Kept { listener: socket.id, bound: self.bound(socket) };
        let listeners = staying.iter().map(kept).collect();
        Some(Errand { message: ToWorker::Keep { listeners }, fds, after_connections: false })
    }

    /// What another master must know of a listener.
    fn bound(&self, socket: &Socket) -> Bound {
        let address = self.config.snapshot.listeners[usize::from(socket.id)].bind.clone();
        Bound { address, lent: socket.lent }
    }

    /// Starts the program anew, to take over from this master.
    pub(super) fn upgrade(&mut self, asker: Option<ClientId>) {
        if let Some(text) = self.not_now() {
            warn!("not upgraded: {text}");
            return self.answer(asker, &Answer::Busy { text });
        }
        let listeners: Vec<_> = self
            .sockets
            .iter()
            .filter(|socket| socket.leaving.is_none())
            .map(|socket| (self.bound(socket), socket.as_fd()))
            .collect();
        info!("upgrading: starting {}", self.program.path());
        let timeout = Duration::from_millis(self.config.process.upgrade_timeout_ms.into());
        let started = Successor::start(&self.program, &*self.spawn, &listeners, asker, timeout).and_then(|successor| {
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

    /// Why there can be no upgrade now; `None` when there can.
    fn not_now(&self) -> Option<String> {
        let text = if let Some(leaving) = self.leaving() {
            return Some(leaving);
        } else if self.successor.is_some() {
            "another upgrade is under way"
        } else if !self.announced || self.formers.iter().any(Former::is_met) {
            "this master has not yet taken over everything itself; try again when the former one is gone"
        } else if std::process::id() == 1 {
            "this master is process 1, whose end is that of its container"
        } else {
            return None;
        };
        Some(text.to_owned())
    }

    /// Why nothing new is begun: this master is about to end. `None` while it is not.
    pub(super) fn leaving(&self) -> Option<String> {
        match (self.course, &self.successor) {
            (Course::Running, _) => None,
            (Course::HandingOver | Course::Draining, Some(Successor { pid, .. })) => Some(format!(
                "another master (pid {pid}) is taking over from this one (pid {}); ask that one",
                std::process::id()
            )),
            (Course::HandingOver | Course::Draining | Course::Stopping, _) => Some("the master is stopping".to_owned()),
        }
    }

    /// Hears what the successor has to say, to the last: of what is left no event would tell. One that has ended by the
    /// time it is heard to be ready is not handed over to.
    pub(super) fn hear_successor(&mut self, now: Instant) {
        let mut ready = None;
        loop {
            let Some(successor) = &mut self.successor else { return };
            match successor.hear() {
                News::None => break,
                News::Ready(version) if ready.is_none() => ready = Some(version),
                News::Ready(_) => return self.miss_successor("it says more than once that it is ready"),
                News::Gone(why) => return self.miss_successor(&why),
            }
        }
        if let (Some(version), Some(successor)) = (ready, &mut self.successor)
            && successor.deadline.take().is_some()
        {
            let (asker, pid) = (successor.asker, successor.pid);
            let gives = version == handover::VERSION;
            self.hand_over(pid, gives, now);
            self.answer(asker, &Answer::Upgraded { pid: pid.cast_signed() });
            // Where its workers give nothing nobody needs to find them.
            self.control.take_if(|_| !gives);
        }
    }

    /// The successor is gone. What that means depends on whether it has been handed over to.
    fn miss_successor(&mut self, why: &str) {
        if self.successor.as_ref().is_some_and(|successor| successor.deadline.is_some()) {
            return self.give_up_successor(why);
        }
        error!(
            "the successor is gone: {why}; connections on their way to it are lost, and the workers wait for another \
             master"
        );
        self.lose_successor();
    }

    /// The successor takes nothing more: this master ends, and its workers wait for the next one, like those of a master
    /// that was killed.
    fn lose_successor(&mut self) {
        self.successor = None;
        self.formers.clear();
        while let Some(connection) = self.homeless.pop_front() {
            // One that its worker still keeps goes to the next master from there.
            if !connection.lender.as_ref().is_some_and(Lender::keeps) {
                self.cut(connection);
            }
        }
        if let Some(control) = self.control.take() {
            control.leave();
        }
        self.seats.clear();
        self.course = Course::Stopping;
    }

    /// Gives the successor up when it does not become ready in time.
    pub(super) fn check_successor(&mut self, now: Instant) {
        if self.successor.as_ref().and_then(|successor| successor.deadline).is_some_and(|deadline| deadline <= now) {
            self.give_up_successor("the new one did not become ready within `upgrade_timeout`");
        }
    }

    /// Tells the service manager once a reload it knows of is over.
    pub(super) fn tell_reloaded(&mut self) {
        if self.reloading && self.reload.is_over() {
            self.reloading = false;
            notify::tell(notify::State::Ready);
        }
    }

    pub(super) fn give_up_successor(&mut self, why: &str) {
        let Some(successor) = self.successor.take() else { return };
        unwatch(&self.poll, successor.as_fd());
        error!("not upgraded: {}; nothing has changed", in_a_line(why));
        let asker = successor.asker;
        successor.kill();
        self.answer(asker, &Answer::NotUpgraded { text: why.to_owned() });
        self.succeed_successor();
    }

    /// Puts its control socket in the place of whoever had it, and finds out who else waits beside it.
    fn take_place(&mut self) {
        self.put_in_place();
        if let Some(control) = &self.control {
            self.formers.extend(takeover::waiting_beside(&control.others(), self.formers.iter()));
            self.look_at = Some(Instant::now() + self.owes_place.unwrap_or(Duration::ZERO));
        }
    }

    /// Puts its control socket in the place of whoever had it, if that can be.
    fn put_in_place(&mut self) {
        let Some(control) = &mut self.control else { return };
        match control.take_place() {
            Ok(true) if self.owes_place.take() == Some(LATER) => info!("the control socket has its place now"),
            Ok(true) => {}
            Ok(false) => {
                self.owes_place.get_or_insert(SOON);
            }
            Err(why) => {
                if self.owes_place.replace(LATER) != Some(LATER) {
                    warn!(
                        "{why}; trying again: until then `master reload` will not find this master, SIGHUP reloads it"
                    );
                }
            }
        }
    }

    /// Looks from time to time whether anybody waits whom nothing is heard of: one that has sent this master away because it
    /// was slow, for example, waits for the next to knock.
    pub(super) fn look_beside(&mut self, now: Instant) {
        if self.look_at.take_if(|at| *at <= now).is_none() || self.course != Course::Running {
            return;
        }
        // While a successor comes up the place is left to it.
        if self.owes_place.is_some() && self.successor.is_none() {
            self.put_in_place();
        }
        let Some(control) = &self.control else { return };
        let asked = self.formers.iter().filter(|former| !former.leaves_room());
        let more = takeover::waiting_beside(&control.others(), asked);
        let somebody = || (!beside::names(control.place()).is_empty()).then_some(LOOK);
        self.look_at = self.owes_place.or_else(somebody).map(|pause| now + pause);
        for next in more {
            self.follow_next(Some(next));
        }
    }

    /// A successor that has ended before it was ready may have put its control socket in the place of this one, and its
    /// workers may have connections already: this master takes over from them.
    fn succeed_successor(&mut self) {
        let known = self.formers.len();
        self.take_place();
        for next in self.formers.split_off(known) {
            self.follow_next(Some(next));
        }
        self.formers_ready = true;
    }

    /// The successor is ready: it accepts from now on, and gets every connection, if it understands them.
    fn hand_over(&mut self, pid: u32, gives: bool, now: Instant) {
        // Before the service manager is told, which looks whose child it is.
        if let Some(successor) = &self.successor {
            successor.let_go();
        }
        notify::tell(notify::State::MainPid(pid));
        if let Some(control) = &mut self.control {
            control.close();
        }
        if gives {
            info!("another master (pid {pid}) takes over");
            self.course = Course::HandingOver;
            let timeout = Duration::from_millis(self.config.snapshot.shutdown_timeout_ms.into());
            self.hand_over_until = Some(now + timeout + HAND_OVER_GRACE);
            // The successor finds those that have not been met.
            self.formers.retain(Former::is_met);
        } else {
            warn!("another master (pid {pid}), of another version, takes over the listeners; finishing the rest here");
            self.course = Course::Draining;
        }
        for mut socket in self.sockets.drain(..) {
            unwatch(&self.poll, socket.as_fd());
            socket.keep_file();
        }
        if !gives {
            self.formers.clear();
            while let Some(connection) = self.homeless.pop_front() {
                self.cut(connection);
            }
        }
        let timeout_ms = self.config.snapshot.shutdown_timeout_ms;
        for seat in &mut self.seats {
            seat.start_at = None;
            if let Some(worker) = seat.worker.as_mut() {
                drain_worker(worker, timeout_ms, gives, now);
            }
        }
    }

    /// Sends connections without a worker to the successor.
    pub(super) fn send_to_successor(&mut self, now: Instant) {
        if self.successor.is_some() && self.hand_over_until.is_some_and(|until| until <= now) {
            error!("the successor does not take connections; {} are cut", self.homeless.len());
            self.lose_successor();
        }
        let Some(successor) = &mut self.successor else { return };
        while !self.homeless.is_empty() {
            let (mut handed, mut fds, mut bytes) = (Vec::new(), Vec::new(), 0);
            for connection in &self.homeless {
                let more = connection.task.descriptors();
                bytes += connection.task.carried_bytes();
                if !handed.is_empty()
                    && (fds.len() + more > MAX_DESCRIPTORS.min(self.batch) || bytes > MAX_CARRIED_BYTES)
                {
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
                    kept: true,
                };
                let server = connection.relay.as_ref().and_then(|relay| relay.server);
                let server = server.and_then(|number| self.config.snapshot.server_name(number));
                handed.push(Handed { listener, passed, server });
            }
            let count = handed.len();
            // Before anybody else can have them.
            self.homeless.iter().take(count).filter_map(|one| one.lender.as_ref()).for_each(Lender::release);
            // The successor's from here on: what is sent to it is not lost with this process.
            self.homeless.iter().take(count).for_each(|one| one.fd.sent());
            match successor.channel.send(&ToSuccessor::Connections(handed), &fds) {
                Ok(()) => drop(self.homeless.drain(..count)),
                // Tried again in the next turn, which `timeout` brings about.
                Err(SendError::Full) => return,
                Err(failed) => {
                    error!("the successor does not take connections: {failed}");
                    return self.lose_successor();
                }
            }
        }
        let all = self.has_given_all();
        if let Some(successor) = &mut self.successor
            && all
            && !successor.told_all
        {
            match successor.channel.send(&ToSuccessor::Everything, &[]) {
                // Tried again in the next turn.
                Err(SendError::Full) => {}
                // Whoever is gone does not want to know.
                Ok(()) | Err(SendError::Closed | SendError::TooLarge | SendError::Io(_)) => successor.told_all = true,
            }
        }
    }

    /// Whether there is nothing more that it could give to a successor.
    fn has_given_all(&self) -> bool {
        self.homeless.is_empty() && self.formers.is_empty() && self.seats.iter().all(|seat| seat.worker.is_none())
    }

    /// Whether a successor has everything, and knows it.
    pub(super) fn has_handed_over(&self) -> bool {
        self.has_given_all() && self.successor.as_ref().is_none_or(|successor| successor.told_all)
    }

    /// Whether the successor is to be sent something that it has not taken.
    pub(super) fn owes_successor(&self) -> bool {
        !self.homeless.is_empty() || self.has_given_all() && !self.has_handed_over()
    }

    fn answer(&mut self, client: Option<ClientId>, answer: &Answer) {
        if let (Some(client), Some(control)) = (client, &mut self.control) {
            control.answer(client, answer);
        }
    }
}

/// What a successor that could not begin has said, for one line of the log: of a report on its configuration the first error
/// and its place. The whole has been printed by the successor itself.
fn in_a_line(why: &str) -> String {
    let begin = why.lines().position(|line| line.starts_with("error: ")).unwrap_or(0);
    let mut lines = why.lines().skip(begin);
    let title = lines.next().unwrap_or_default();
    let title = title.strip_prefix("error: ").unwrap_or(title);
    match lines.next().and_then(|line| line.trim_start().strip_prefix("--> ")) {
        Some(place) => format!("{place}: {title}"),
        None => title.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::in_a_line;

    #[test]
    fn a_report_becomes_one_line() {
        let report = "warning: odd\n --> a.toml:1:1\n  |\n\nerror: no such key\n  --> a.toml:12:3\n   |\n12 | x\n";
        assert_eq!(in_a_line(report), "a.toml:12:3: no such key");
        assert_eq!(in_a_line("error: cannot read\nhelp: look there"), "cannot read");
        assert_eq!(in_a_line("the new one ended"), "the new one ended");
    }
}
