//! The master's loop, and the only owner of its state. It accepts connections, passes them to workers, keeps
//! its copy of each until the worker reports it finished, and replaces workers that die. It never reads a
//! byte from a client or a server.
//!
//! One turn: wait for events; hear the workers; deal with deaths and deadlines; find homes for connections
//! whose worker died; accept; send each worker what it got, in as few messages as possible.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::accept::Accepted;
use ipc::handover::Bound;
use ipc::message::{Layout, MAX_FDS};
use ipc::origin::Origin;
use log::{error, info, warn};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook_mio::v1_0::Signals;

use crate::accept::{self, Gate, Reserve, TurnedAway};
use crate::addresses::Addresses;
use crate::banner;
use crate::config::{Loaded, Names};
use crate::control;
use crate::demo::Demo;
use crate::dispatch::{Candidate, Chooser, Wait};
use crate::hands;
use crate::keeper::Connection;
use crate::listen::{self, Socket};
use crate::moderate::Moderation;
use crate::privilege::{self, Identity};
use crate::process::{Spawn, System};
use crate::reload::{Recipe, Reload};
use crate::signals;
use crate::supervise::{Equipment, Seat, Shared, Worker};
use crate::takeover::Former;
use crate::upgrade::{Program, Successor};

mod deaths;
mod heritage;
mod lifecycle;
#[cfg(test)]
mod model;
mod names;
mod opening;
mod passing;
mod protection;
mod reconfigure;
mod renewal;
mod resolver_files;
mod shortage;
mod succession;
mod watching;

pub use heritage::Heritage;
use opening::{open_access_log, open_control, report_beginning, report_capacity};
use protection::Protection;
use reconfigure::{mode_name, room};
use renewal::Renewal;
use shortage::Plea;
use watching::Ease;

const SIGNALS: Token = Token(0);
const DEMO: Token = Token(1);
const READING: Token = Token(2);
const CONTROL: Token = Token(3);
const FORMERS: Token = Token(4);
const SUCCESSOR: Token = Token(5);
const HEIR: Token = Token(6);
const CLIENTS: usize = 7;
const LISTENERS: usize = CLIENTS + control::CLIENTS;
const WORKERS: usize = LISTENERS + (1 << 16);

/// Buffers for unanswered requests in one worker's region, at most: they cost address space until used.
const MAX_SLOTS: u32 = 65_536;

/// How often copies of carried requests are looked over.
const SWEEP: Duration = Duration::from_secs(1);

/// How a burst of accepting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Burst {
    /// Nobody is waiting any more, or the others have their turn.
    Over,
    /// The workers have no room.
    NoRoom,
    /// Descriptors or memory ran out.
    Exhausted,
}

/// What the master is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Running,
    /// Nothing new is accepted; the workers finish what they have.
    Draining,
    /// The workers are being stopped.
    Stopping,
    /// A successor accepts, and gets every connection.
    HandingOver,
}

/// What was there before this master.
pub struct Before {
    /// The program as it was started.
    pub program: Program,
    /// Those that it takes over from.
    pub formers: Vec<Former>,
    /// The sockets behind which it has looked for them; `None` where it has looked behind none of its own.
    pub doors: Option<control::beside::Sockets>,
    /// Listening sockets of the service manager.
    pub lent: Vec<(Bound, OwnedFd)>,
    /// What starts processes.
    pub spawn: Box<dyn Spawn>,
    /// What becomes of connections in hand if this master is killed.
    pub heritage: Heritage,
}

/// The master process.
pub struct Master {
    poll: Poll,
    signals: Signals,
    sockets: Vec<Socket>,
    next_socket: usize,
    seats: Vec<Seat>,
    chooser: Chooser,
    candidates: Vec<Candidate>,
    /// Connections that lost their worker: at most as many as the workers had.
    homeless: VecDeque<Connection>,
    addresses: Addresses,
    gate: Gate,
    turned_away: TurnedAway,
    moderation: Moderation,
    /// Connections accepted in this turn.
    accepted: u32,
    plea: Plea,
    protection: Protection,
    ease: Ease,
    renewal: Option<Renewal>,
    reserve: Reserve,
    /// Workers have connections under way and no room for more: look again then.
    retry_at: Option<Instant>,
    retry: Wait,
    sweep_at: Option<Instant>,
    /// When to ask the workers to show that they move.
    ping_at: Instant,
    /// The configuration in force. Its snapshot has what is no longer configured and still has connections, too.
    config: Loaded,
    sealed: Rc<OwnedFd>,
    /// What all workers count in.
    shared: Shared,
    /// The machine's files about names.
    resolver_files: resolver_files::ResolverFiles,
    /// How looking up the names of servers goes.
    lookups: names::Lookups,
    access_log: Option<Rc<OwnedFd>>,
    reload: Reload,
    control: Option<control::Server>,
    heritage: Heritage,
    /// The limit of open files.
    nofile: u64,
    identity: Identity,
    layout: Layout,
    batch: usize,
    log_level: Option<String>,
    demo: Option<Demo>,
    course: Course,
    announced: bool,
    /// The service manager was told that the configuration is being read.
    reloading: bool,
    program: Program,
    spawn: Box<dyn Spawn>,
    /// Those that it takes over from, as long as they have something to give.
    formers: Vec<Former>,
    formers_ready: bool,
    /// When to look for others who wait for a master; `None` when there is nobody.
    look_at: Option<Instant>,
    /// Its control socket is still beside its place: how long to wait before that is tried again.
    owes_place: Option<Duration>,
    /// The one that takes over from it.
    successor: Option<Successor>,
    /// When it must have taken everything.
    hand_over_until: Option<Instant>,
}

impl Master {
    /// Binds every listener and prepares everything; workers start with [`Master::run`].
    ///
    /// # Errors
    /// What cannot be had, in words for the operator.
    pub fn start(
        mut config: Loaded,
        recipe: Recipe,
        names: Names,
        demo: Option<Demo>,
        log_level: Option<String>,
        before: &mut Before,
    ) -> Result<Master, String> {
        report_beginning(&recipe);
        let identity = Identity::new(&config.process)?;
        let nofile = privilege::raise_descriptor_limit();
        // Before anything of a former side's is touched: another master may have been faster. A former side is found at
        // its place as long as it is not sure that this master comes up.
        let control = open_control(&config, &recipe, before)?;
        let sockets = succession::listen(&config, before)?;
        config.snapshot.listening = listen::addresses(&sockets);
        let snapshot = &config.snapshot;
        let (layout, batch) = room(nofile, snapshot, sockets.len());
        report_capacity(nofile, layout.records, snapshot);
        if sockets.len() + 1 >= MAX_FDS {
            warn!(
                "with {} listeners or more the workers do not wait for another master if this one is killed",
                MAX_FDS - 1
            );
        }
        let internal = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let poll = Poll::new().map_err(internal("cannot make an epoll instance"))?;
        let mut signals = signals::catch().map_err(internal("cannot catch signals"))?;
        let registry = poll.registry();
        let registered = internal("cannot watch descriptors");
        registry.register(&mut signals, SIGNALS, Interest::READABLE).map_err(registered)?;
        for socket in &sockets {
            let token = Token(LISTENERS + usize::from(socket.id));
            watch(&poll, socket.as_fd(), token, Interest::READABLE).map_err(registered)?;
        }
        if let Some(demo) = &demo {
            watch(&poll, demo.pidfd(), DEMO, Interest::READABLE).map_err(registered)?;
        }
        let waker = Waker::new(registry, READING).map_err(internal("cannot make an eventfd"))?;
        let servers = snapshot.groups.iter().map(|group| group.servers.len() as u64).sum();
        let reload = Reload::new(recipe, names, servers, waker);
        if let Some(control) = &control {
            watch(&poll, control.as_fd(), CONTROL, Interest::READABLE).map_err(registered)?;
        }
        let sealed = ipc::sealed::write(snapshot).map_err(internal("cannot make the workers' configuration"))?;
        let shared = Shared::new().map_err(internal("cannot make the memory that workers share"))?;
        let access_log = open_access_log(&snapshot.access_log.to)?;
        let now = Instant::now();
        before.heritage.watch(&poll).map_err(registered)?;
        let mut master = Master {
            poll,
            signals,
            sockets,
            next_socket: 0,
            seats: (0..snapshot.workers).map(|index| Seat::new(index, now)).collect(),
            chooser: Chooser::new(snapshot.dispatch),
            candidates: Vec::new(),
            homeless: VecDeque::new(),
            addresses: Addresses::new(snapshot.limits.connections_per_address),
            gate: Gate::new(),
            turned_away: TurnedAway::default(),
            moderation: Moderation::new(now),
            accepted: 0,
            plea: Plea::new(),
            protection: Protection::new(nofile, snapshot.workers),
            ease: Ease::default(),
            renewal: None,
            reserve: Reserve::default(),
            retry_at: None,
            retry: Wait::new(Duration::from_millis(1), Duration::from_millis(20)),
            sweep_at: None,
            ping_at: now,
            sealed: Rc::new(sealed),
            shared,
            resolver_files: resolver_files::ResolverFiles::new(now),
            lookups: names::Lookups::default(),
            access_log,
            reload,
            control,
            heritage: std::mem::take(&mut before.heritage),
            nofile,
            identity,
            layout,
            batch,
            log_level,
            demo,
            course: Course::Running,
            announced: false,
            reloading: false,
            program: before.program.clone(),
            spawn: std::mem::replace(&mut before.spawn, Box::new(System)),
            formers: std::mem::take(&mut before.formers),
            formers_ready: false,
            look_at: None,
            owes_place: None,
            successor: None,
            hand_over_until: None,
            config,
        };
        master.reserve.fill();
        for socket in &master.sockets {
            info!("listening on {} ({})", socket.address, mode_name(socket.mode));
        }
        Ok(master)
    }

    /// Runs until told to stop; then every worker has ended and every Unix socket is removed.
    ///
    /// # Errors
    /// When waiting for events fails, which leaves nothing to be done.
    pub fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(1024);
        loop {
            self.fill_seats(Instant::now());
            if self.is_over() {
                self.demo = None;
                if self.successor.is_none() {
                    self.forget_names();
                }
                info!("stopped");
                return Ok(());
            }
            let timeout = self.timeout(Instant::now());
            self.wait(&mut events, timeout)?;
            if let Some(hold) = self.turn(&events, Instant::now()) {
                std::thread::sleep(hold);
            }
        }
    }

    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), String> {
        match self.poll.poll(events, timeout) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(format!("cannot wait for events: {error}")),
        }
    }

    /// Carries out what `events` tell, and whatever else is due; how long connections may gather before the next.
    fn turn(&mut self, events: &Events, now: Instant) -> Option<Duration> {
        for event in events {
            self.note(event, now);
        }
        if let Some(control) = &mut self.control {
            control.accept(self.poll.registry(), now);
        }
        self.take_reading(now);
        self.hear_workers(now);
        self.keep_time(now);
        self.hear_formers();
        self.look_beside(now);
        self.check_successor(now);
        self.tell_reloaded();
        self.send_left(now);
        self.measure(now);
        if self.course == Course::HandingOver {
            self.send_to_successor(now);
        }
        self.rehome();
        let exhausted = self.accept(now);
        self.plead(exhausted, now);
        self.warn_of_unprotected(now);
        self.close_emptied(now);
        self.send(now);
        self.moderation.after_turn(std::mem::take(&mut self.accepted), now)
    }

    fn is_over(&self) -> bool {
        let handed = self.course != Course::HandingOver || self.has_handed_over();
        self.course != Course::Running && handed && self.seats.iter().all(|seat| seat.worker.is_none())
    }

    fn note(&mut self, event: &mio::event::Event, now: Instant) {
        match event.token() {
            SIGNALS => {
                for request in signals::pending(&mut self.signals) {
                    self.obey(request, now);
                }
            }
            DEMO => {
                if let Some(end) = self.demo.as_mut().and_then(Demo::reap) {
                    error!("the demo backends have ended ({end}); requests will be answered 502");
                }
            }
            // What woke the loop is looked for in each turn.
            READING => {}
            FORMERS => self.formers_ready = true,
            SUCCESSOR => self.hear_successor(now),
            HEIR => self.lose_heir(now),
            CONTROL => {
                if let Some(control) = &mut self.control {
                    control.on_ready();
                }
            }
            Token(token) if token < LISTENERS => self.hear_client(token - CLIENTS, now),
            Token(token) if token < WORKERS => {
                let id = token - LISTENERS;
                if let Some(socket) = self.sockets.iter_mut().find(|socket| usize::from(socket.id) == id) {
                    socket.ready = true;
                }
            }
            Token(token) => {
                let (seat, is_pidfd) = ((token - WORKERS) / 2, (token - WORKERS) % 2 == 1);
                let Some(worker) = self.seats.get_mut(seat).and_then(|seat| seat.worker.as_mut()) else { return };
                if is_pidfd {
                    // An event left from the former worker of this seat finds the present one alive.
                    if let Some(end) = worker.reap() {
                        self.bury(seat, end, now);
                    }
                } else {
                    worker.readable = true;
                }
            }
        }
    }

    /// How long nothing needs to be done unless something happens.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let gate = self.gate.closed_until(now);
        let accepting = self.course == Course::Running && gate.is_none() && self.retry_at.is_none();
        let more = accepting && self.homeless.is_empty() && self.has_room() && self.sockets.iter().any(|s| s.ready);
        let holding = self.is_holding();
        let heard = |worker: &Worker| worker.readable && !(holding && worker.is_draining());
        let unheard = self.seats.iter().filter_map(|seat| seat.worker.as_ref()).any(heard);
        let asked = self.control.as_ref().is_some_and(control::Server::is_ready);
        if self.course == Course::HandingOver && self.owes_successor() {
            return Some(Duration::from_millis(1));
        }
        if more || unheard || asked || self.formers_ready && self.may_take_in() {
            return Some(Duration::ZERO);
        }
        let seats = self.seats.iter().filter_map(|seat| match &seat.worker {
            Some(worker) => worker.deadline(),
            None => seat.start_at,
        });
        let leaving = self.sockets.iter().filter_map(|socket| Some(socket.leaving?.next(now)));
        let pending = self.reload.pending.as_ref().map(|pending| pending.deadline);
        let control = self.control.as_ref().and_then(control::Server::deadline);
        let next = seats
            .chain(gate)
            .chain(leaving)
            .chain(pending)
            .chain(control)
            .chain(self.successor.as_ref().and_then(|successor| successor.deadline))
            .chain(self.look_at)
            .chain(self.retry_at)
            .chain(self.sweep_at)
            .chain(self.plea.again_at)
            .chain(self.heritage.again_at())
            .chain(self.resolver_look())
            .chain([self.ping_at])
            .min()?;
        // Rounded up: epoll counts whole milliseconds, and waking early would mean waking again.
        Some(next.saturating_duration_since(now) + Duration::from_micros(999))
    }

    fn has_room(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.room > 0)
    }

    /// Accepts what waits, as far as there is room for it; whether descriptors ran out.
    fn accept(&mut self, now: Instant) -> bool {
        // Connections that have waited longer come first.
        if self.course != Course::Running || !self.homeless.is_empty() || self.gate.closed_until(now).is_some() {
            return false;
        }
        for index in accept::turns(&mut self.next_socket, self.sockets.len()) {
            if !self.sockets[index].ready {
                continue;
            }
            let burst = self.accept_burst(index, now);
            self.send_accepted(now);
            match burst {
                Burst::Over => {}
                Burst::NoRoom => return false,
                Burst::Exhausted => return true,
            }
        }
        false
    }

    /// Closes listeners that are no longer configured, once nobody waits there any more.
    fn close_emptied(&mut self, now: Instant) {
        if self.sockets.iter().any(|socket| socket.leaving.is_some()) {
            for socket in self.sockets.extract_if(.., |socket| socket.is_left(now)) {
                socket.end();
            }
        }
    }

    /// Accepts up to a burst from one listener.
    fn accept_burst(&mut self, index: usize, now: Instant) -> Burst {
        for accepted in 1..=accept::BURST {
            if !self.has_room() {
                return Burst::NoRoom;
            }
            if accepted % accept::IN_HAND == 0 {
                self.send_accepted(now);
            }
            let socket = &mut self.sockets[index];
            match hands::accept(&*socket, socket.id) {
                Accepted::Connection(fd, peer) => {
                    self.gate.succeeded();
                    self.accepted += 1;
                    let mut connection = Connection::new(fd, peer, socket.id);
                    let listener = &self.config.snapshot.listeners[usize::from(socket.id)];
                    if listener.proxy_protocol.is_expected(peer.map(|addr| addr.ip())) {
                        connection.origin = Origin::Awaited;
                    }
                    let counted = connection.counted();
                    if !self.addresses.enter(counted) {
                        self.addresses.leave(counted);
                        connection.task = ipc::message::Task::Refuse;
                        if let (Some(peer), Some(limit)) =
                            (counted, self.config.snapshot.limits.connections_per_address)
                        {
                            self.turned_away.note(peer.ip(), limit, now);
                        }
                    }
                    self.give(connection);
                }
                Accepted::Empty => {
                    socket.ready = false;
                    return Burst::Over;
                }
                Accepted::Exhausted(errno) => {
                    self.gate.exhausted(now, errno);
                    return Burst::Exhausted;
                }
                Accepted::Lost(errno) => {
                    log::debug!("a connection on {} was lost: {}", socket.address, io::Error::from(errno));
                }
            }
        }
        Burst::Over
    }

    fn watch_worker(poll: &Poll, seat: usize, worker: &Worker) -> io::Result<()> {
        let token = WORKERS + 2 * seat;
        // Not for writing: that would be an event for every message a worker takes. Credits keep the channel
        // from being full, and a retry by the clock covers the rest.
        watch(poll, worker.channel.as_fd(), Token(token), Interest::READABLE)?;
        watch(poll, worker.pidfd(), Token(token + 1), Interest::READABLE)
    }

    fn equipment(&self) -> Equipment<'_> {
        Equipment {
            snapshot: self.sealed.as_fd(),
            generation: self.config.snapshot.generation,
            access_log: self.access_log.as_ref().map(|log| log.as_fd()),
            shared: &self.shared,
            layout: self.layout,
            made: self.made(),
            log_level: self.log_level.as_deref(),
        }
    }

    fn announce(&mut self) {
        let is_ready = |seat: &Seat| seat.worker.as_ref().is_some_and(Worker::is_ready);
        if self.announced || !self.seats.iter().filter(|seat| seat.wanted).all(is_ready) {
            return;
        }
        self.announced = true;
        self.begin_succession();
        self.remember_names();
        let pids: Vec<i32> =
            self.seats.iter().filter_map(|seat| Some(seat.worker.as_ref()?.pid.as_raw_nonzero().get())).collect();
        banner::print(&self.sockets, &pids, &self.config, self.demo.as_ref().map(|demo| demo.backends.as_slice()));
    }
}

fn watch(poll: &Poll, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, interest)
}

fn unwatch(poll: &Poll, fd: BorrowedFd<'_>) {
    // Fails only for a descriptor that is not watched, which is what is wanted.
    let _ = poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
}
