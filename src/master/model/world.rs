//! Everything that exists in one run of the model, and what may happen to it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::fault::{self, Killed};
use ipc::message::{Layout, Task};
use mio::Events;
use workers::worker::Worker;

use super::clients::{Client, Kind, Numbers};
use super::processes::{Cradle, Handle, KILLED, Newborn, Role, Spawner};
use super::rng::Rng;
use super::servers::Servers;
use crate::config::{Names, Options};
use crate::master::{Before, Course, Master};
use crate::process::End;
use crate::reload::Recipe;
use crate::signals::Request;
use crate::takeover::{self, Former};
use crate::upgrade::Program;

/// Things that happen in one run.
const STEPS: usize = 300;
/// Clients at once at most.
const CLIENTS: usize = 14;
/// Rounds in which everything must come to its end, once nothing more happens, and the time that each takes.
const ROUNDS: usize = 2500;
const ROUND: Duration = Duration::from_millis(40);

thread_local! {
    static LOG: RefCell<Vec<(log::Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = (record.level(), record.args().to_string());
        LOG.with(|log| log.borrow_mut().push(line));
    }

    fn flush(&self) {}
}

/// Keeps what is logged.
pub fn listen_to_log() {
    let _ = log::set_boxed_logger(Box::new(Listener));
    log::set_max_level(log::LevelFilter::Debug);
}

/// What must never be logged.
const NEVER: [&str; 6] = ["ignored", "makes no sense", "malformed", "were lost", "cannot be started", "no room for"];
/// Errors that killing brings about.
const EXPECTED: [&str; 3] = ["not upgraded", "the successor is gone", "the successor does not take"];

/// A master.
struct MasterSlot {
    number: usize,
    master: Master,
    /// Its process, when another master started it.
    handle: Option<Rc<Handle>>,
}

enum Life {
    /// It has done nothing yet.
    Newborn(OwnedFd),
    Running(Box<Worker>),
}

struct WorkerSlot {
    parent: usize,
    index: u16,
    handle: Rc<Handle>,
    life: Life,
    /// Its master was killed, and so was the next while it took over: no other finds it, and it goes when its time is
    /// over.
    forgotten: bool,
}

/// See the module's description.
pub struct World {
    pub rng: Rng,
    dir: PathBuf,
    ahead: Duration,
    cradle: Rc<Cradle>,
    masters: Vec<MasterSlot>,
    masters_started: usize,
    workers: Vec<WorkerSlot>,
    successors: Vec<Newborn>,
    servers: Servers,
    clients: Vec<Client>,
    numbers: Numbers,
    /// Places are few.
    pressed: bool,
    /// Memory is not what workers wrote: clients and servers may see anything, but not wait for ever.
    pub hostile: bool,
    /// Descriptors by kind, with one master and its workers and nothing else.
    at_rest: BTreeMap<String, usize>,
    spoilt: Vec<(OwnedFd, Layout)>,
    pub trace: Vec<String>,
}

/// The inode of what is open: the same for every copy of a descriptor.
fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Every descriptor of this process, as `/proc` names it.
fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

/// The ports of clients that wait to be accepted: the kernel has no inode for their connections yet.
fn waiting() -> HashSet<u16> {
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let connections = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields[2].rsplit(':').next()?, 16).ok()?;
        (fields[3] == "01" && fields[9] == "0").then_some(port)
    });
    connections.collect()
}

/// How many there are of each kind. Pipes come and go with the load.
fn kinds() -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for target in descriptors() {
        let kind = if target.contains("memfd") { "memfd" } else { target.split([':']).next().unwrap() };
        // The model's own stand-ins for processes are eventfds.
        if kind != "pipe" && !target.starts_with("/proc") && !target.contains("eventfd") {
            *kinds.entry(format!("{kind}{}", if kind == "anon_inode" { &target[10..] } else { "" })).or_default() += 1;
        }
    }
    kinds
}

/// Runs `step`, killed at the instant that comes after `fault` others; `None` when it was killed.
fn mortal<T>(fault: Option<u64>, step: impl FnOnce() -> T) -> Option<T> {
    fault::kill_after(fault);
    let result = catch_unwind(AssertUnwindSafe(step));
    fault::kill_after(None);
    match result {
        Ok(result) => Some(result),
        Err(panic) if panic.is::<Killed>() => None,
        Err(panic) => resume_unwind(panic),
    }
}

/// One turn of a worker, or its start. How it ended, if it did.
fn turn(slot: &mut WorkerSlot, ahead: Duration, fault: Option<u64>) -> Option<End> {
    if slot.handle.is_killed() {
        return Some(KILLED);
    }
    let index = slot.index;
    let life = &mut slot.life;
    let lived = mortal(fault, || match life {
        Life::Newborn(channel) => {
            let channel = rustix::io::fcntl_dupfd_cloexec(&*channel, 3).unwrap();
            match workers::begin(channel, index) {
                Ok(worker) => {
                    *life = Life::Running(Box::new(worker));
                    None
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => Some(End::Exited(0)),
                Err(error) => panic!("worker {index} does not begin: {error}"),
            }
        }
        Life::Running(worker) => {
            let mut events = Events::with_capacity(64);
            worker.set_clock_ahead(u64::try_from(ahead.as_micros()).unwrap());
            worker.wait(&mut events, Some(Duration::ZERO)).unwrap();
            worker.turn(&events).unwrap().map(|_| End::Exited(0))
        }
    });
    lived.unwrap_or(Some(KILLED))
}

impl World {
    /// Runs one schedule; panics when something is wrong, and says what led to it.
    pub fn run(seed: u64) {
        World::run_by(seed, false, |world| {
            for _ in 0..STEPS {
                world.step();
                world.check();
            }
            world.settle();
        });
    }

    pub(super) fn run_by(seed: u64, hostile: bool, schedule: impl FnOnce(&mut World)) {
        let before = descriptors().len();
        let mut world = World::new(seed, hostile);
        let result = catch_unwind(AssertUnwindSafe(|| schedule(&mut world)));
        if let Err(panic) = result {
            for line in &world.trace[world.trace.len().saturating_sub(150)..] {
                eprintln!("  {line}");
            }
            eprintln!("{}\nto run this schedule again: MODEL_SEED={seed}", world.describe());
            resume_unwind(panic);
        }
        let dir = world.dir.clone();
        drop(world);
        let _ = std::fs::remove_dir_all(dir);
        assert_eq!(descriptors().len(), before, "descriptors leaked; MODEL_SEED={seed}");
    }

    fn new(seed: u64, hostile: bool) -> World {
        let dir = std::env::temp_dir().join(format!("pointsman-model-{}-{seed}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let mut rng = Rng::new(seed);
        let mut world = World {
            pressed: !hostile && rng.once_in(3),
            hostile,
            rng,
            dir,
            ahead: Duration::ZERO,
            cradle: Rc::default(),
            masters: Vec::new(),
            masters_started: 0,
            workers: Vec::new(),
            successors: Vec::new(),
            servers: Servers::new(),
            clients: Vec::new(),
            numbers: Numbers::default(),
            at_rest: BTreeMap::new(),
            spoilt: Vec::new(),
            trace: Vec::new(),
        };
        world.servers.tolerant = hostile;
        world.write_config(2);
        world.start_master(None);
        world.run_all_until(|world| world.is_at_rest(), "the first master is ready");
        world.at_rest = kinds();
        world
    }

    fn write_config(&mut self, workers: usize) {
        let (http, tcp) = self.servers.addrs();
        let places = if self.pressed { 3 } else { 40 };
        let balance = if self.rng.once_in(2) { "round-robin" } else { "least-connections" };
        let text = format!(
            "workers = {workers}\ncontrol = \"unix:{}\"\nshutdown_timeout = \"1h\"\norphan_timeout = \"1h\"\n\
             upgrade_timeout = \"1h\"\nworker_timeout = \"1m\"\n\
             [timeouts]\nheader = \"1h\"\nidle = \"1h\"\nbody = \"1h\"\nwrite = \"1h\"\nresponse = \"1h\"\n\
             server = \"1h\"\n[limits]\nconnections = {places}\nmin_rate = \"0B\"\n\
             [[listen]]\nbind = \"127.0.0.1:0\"\n\
             [[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"streams\"\n\
             [[listen]]\nbind = \"127.0.0.1:0\"\nproxy_protocol = {{ from = [\"127.0.0.1\"] }}\n\
             [[route]]\nto = \"web\"\n\
             [backends.web]\nservers = [\"{http}\"]\nbalance = \"{balance}\"\n\
             [backends.streams]\nservers = [\"{tcp}\"]\n",
            self.control().display()
        );
        std::fs::write(self.dir.join("new"), text).unwrap();
        std::fs::rename(self.dir.join("new"), self.dir.join("pointsman.toml")).unwrap();
    }

    fn control(&self) -> PathBuf {
        self.dir.join("control")
    }

    fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    fn note(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

    // --- masters

    /// The master that accepts, if there is one.
    fn running(&self) -> Option<usize> {
        self.masters.iter().rposition(|slot| slot.master.course == Course::Running)
    }

    fn recipe(&self) -> Recipe {
        Recipe { file: Some(self.dir.join("pointsman.toml")), options: Options::default(), demo: false }
    }

    /// Starts a master: the successor of one that `channel` leads to, or one that follows those that were killed.
    /// It may be killed meanwhile. False when none has come up.
    fn begin_master(&mut self, former: Option<OwnedFd>, handle: Option<Rc<Handle>>, fault: Option<u64>) -> bool {
        let number = self.masters_started;
        self.masters_started += 1;
        let recipe = self.recipe();
        let mut names = Names::default();
        let loaded = recipe.gather(&mut names).unwrap_or_else(|report| panic!("{}", report.render(false)));
        let spawn = Box::new(Spawner { parent: number, cradle: Rc::clone(&self.cradle) });
        let (control, dir) = (self.control(), self.dir.clone());
        let (workers, ahead) = (&mut self.workers, self.ahead);
        let mut turns: Vec<(usize, Vec<u16>, Option<End>)> = Vec::new();
        let started = mortal(fault, || {
            let formers = match former {
                Some(channel) => vec![Former::master(channel)?.with_workers_behind(Some(&control))],
                None => takeover::orphans_in(&dir, &loaded.snapshot, Some(&control), |_, _| {
                    for (at, slot) in workers.iter_mut().enumerate() {
                        if turns.iter().all(|(other, _, end)| *other != at || end.is_none()) {
                            let before: Vec<u16> = ports(slot).collect();
                            turns.push((at, before, turn(slot, ahead, None)));
                        }
                    }
                    Ok(())
                })?,
            };
            let mut before = Before { program: Program::present(), formers, lent: Vec::new(), spawn };
            Master::start(loaded, recipe, names, None, None, &mut before)
        });
        turns.sort_by_key(|(at, _, end)| (end.is_some(), std::cmp::Reverse(*at)));
        for (at, before, end) in turns {
            self.after_turn(at, &before, end);
        }
        match started {
            None => {
                self.note(format!("master {number} killed at its start"));
                false
            }
            Some(Err(why)) => {
                self.note(format!("master {number} does not come up: {why}"));
                if let Some(handle) = handle {
                    handle.die(End::Exited(1));
                }
                false
            }
            Some(Ok(master)) => {
                self.note(format!("master {number} started"));
                self.masters.push(MasterSlot { number, master, handle });
                true
            }
        }
    }

    fn start_master(&mut self, fault: Option<u64>) -> bool {
        self.begin_master(None, None, fault)
    }

    fn start_successor(&mut self, fault: Option<u64>) {
        let newborn = self.successors.remove(0);
        let Role::Successor { channel } = newborn.role else { panic!("a worker is no successor") };
        if newborn.handle.is_killed() {
            return newborn.handle.die(KILLED);
        }
        if !self.begin_master(Some(channel), Some(Rc::clone(&newborn.handle)), fault) && !newborn.handle.has_ended() {
            newborn.handle.die(KILLED);
        }
    }

    /// One turn of a master.
    fn run_master(&mut self, at: usize, fault: Option<u64>) {
        let now = self.now();
        let slot = &mut self.masters[at];
        if slot.handle.as_ref().is_some_and(|handle| handle.is_killed()) {
            return self.bury_master(at, true);
        }
        let lived = mortal(fault, || {
            slot.master.fill_seats(now);
            if slot.master.is_over() {
                return true;
            }
            let mut events = Events::with_capacity(256);
            slot.master.wait(&mut events, Some(Duration::ZERO)).unwrap();
            let _ = slot.master.turn(&events, now);
            false
        });
        self.take_newborn();
        match lived {
            Some(false) => {}
            Some(true) => self.bury_master(at, false),
            None => self.bury_master(at, true),
        }
    }

    fn take_newborn(&mut self) {
        for newborn in self.cradle.take() {
            match newborn.role {
                Role::Worker { index, channel } => self.workers.push(WorkerSlot {
                    parent: newborn.parent,
                    index,
                    handle: newborn.handle,
                    life: Life::Newborn(channel),
                    forgotten: false,
                }),
                Role::Successor { .. } => self.successors.push(newborn),
            }
        }
    }

    /// A master has ended: by itself, or killed.
    fn bury_master(&mut self, at: usize, killed: bool) {
        let MasterSlot { number, mut master, handle } = self.masters.remove(at);
        self.note(format!("master {number} {}", if killed { "killed" } else { "ended" }));
        if killed {
            for socket in &mut master.sockets {
                socket.keep_file();
            }
            if let Some(control) = master.control.take() {
                control.die();
            }
        }
        let succeeds = handle.is_some() && master.announced;
        let takes_over = master.announced && !master.formers.is_empty();
        if takes_over && killed {
            let masters = &self.masters;
            let orphan = |slot: &&mut WorkerSlot| masters.iter().all(|one| one.number != slot.parent);
            for slot in self.workers.iter_mut().filter(|slot| slot.parent != number).filter(orphan) {
                slot.forgotten = true;
            }
        }
        drop(master);
        if let Some(handle) = handle {
            handle.die(if killed { KILLED } else { End::Exited(0) });
        }
        if !killed {
            return;
        }
        // Nobody else takes what a former master has not yet given.
        // It may not have heard yet that it has a successor.
        let former = self.masters.iter().find(|slot| succeeds && slot.master.successor.is_some());
        if let Some(MasterSlot { master, .. }) = former {
            let tables = master.seats.iter().filter_map(|seat| seat.worker.as_ref());
            let connections = tables.flat_map(|worker| worker.table.connections()).chain(&master.homeless);
            let ports: Vec<u16> = connections.filter_map(|connection| Some(connection.peer?.port())).collect();
            self.excuse(&ports, "not yet given to a successor that was killed");
        }
        if takes_over {
            // Those it took over from were told to give everything, and may not have noticed that nobody takes it.
            let orphans = self.workers.iter().filter(|slot| self.masters.iter().all(|one| one.number != slot.parent));
            let ports: Vec<u16> = orphans.flat_map(ports).collect();
            self.excuse(&ports, "about to be given to a master that was killed");
        }
        self.excuse_the_lost("in the hands of a master that was killed");
    }

    // --- workers

    fn run_worker(&mut self, at: usize, fault: Option<u64>) {
        let before: Vec<u16> = ports(&self.workers[at]).collect();
        let end = turn(&mut self.workers[at], self.ahead, fault);
        self.after_turn(at, &before, end);
    }

    fn after_turn(&mut self, at: usize, before: &[u16], end: Option<End>) {
        if let Life::Running(worker) = &self.workers[at].life
            && worker.is_forsaken()
        {
            let mut had = before.to_vec();
            had.extend(ports(&self.workers[at]));
            self.excuse(&had, "its worker finishes without a master");
        }
        if let Some(end) = end {
            self.bury_worker(at, end);
        }
    }

    /// A worker has ended: what it had open is closed, and then its master learns of it.
    fn bury_worker(&mut self, at: usize, end: End) {
        let slot = self.workers.remove(at);
        self.note(format!("worker {} of master {}: {end:?}", slot.index, slot.parent));
        let mut had: Vec<u16> = ports(&slot).collect();
        let parent = self.masters.iter().find(|master| master.number == slot.parent);
        let orphan = parent.is_none();
        if let Some(MasterSlot { master, .. }) = parent {
            let seats = master.seats.iter().filter_map(|seat| seat.worker.as_ref());
            let tables = seats.filter(|worker| worker.pid == slot.handle.pid()).map(|worker| &worker.table);
            had.extend(tables.flat_map(|table| table.connections()).filter_map(|c| Some(c.peer?.port())));
        }
        if end == KILLED && orphan {
            self.excuse(&had, "its worker died without a master");
        } else if end == KILLED {
            for client in self.clients.iter_mut().filter(|client| had.contains(&client.port)) {
                client.on_death();
            }
        }
        drop(slot.life);
        slot.handle.die(end);
        // It may have been the last that kept the listening sockets, too.
        if orphan {
            self.excuse_the_lost("on the way from a worker that ended without a master");
        }
    }

    fn excuse(&mut self, ports: &[u16], why: &'static str) {
        for client in self.clients.iter_mut().filter(|client| ports.contains(&client.port)) {
            client.excuse(why);
        }
    }

    /// Excuses connections that nobody has who lives.
    fn excuse_the_lost(&mut self, why: &'static str) {
        let mut owned: HashSet<u16> = self.workers.iter().flat_map(ports).collect();
        owned.extend(waiting());
        for slot in &self.masters {
            let tables = slot.master.seats.iter().filter_map(|seat| seat.worker.as_ref());
            let connections = tables.flat_map(|worker| worker.table.connections()).chain(&slot.master.homeless);
            owned.extend(connections.filter_map(|connection| Some(connection.peer?.port())));
        }
        for client in &mut self.clients {
            if !owned.contains(&client.port) {
                client.excuse(why);
            }
        }
    }

    // --- what happens

    /// Something happens that is nothing out of the ordinary.
    pub(super) fn calm_step(&mut self) {
        match self.rng.below(10) {
            0..4 => self.client_acts(),
            4..6 => self.servers.act(&mut self.rng),
            6 | 7 if !self.masters.is_empty() => {
                let at = self.rng.below(self.masters.len());
                self.run_master(at, None);
            }
            _ if !self.workers.is_empty() => {
                let at = self.rng.below(self.workers.len());
                self.run_worker(at, None);
            }
            _ => {}
        }
    }

    /// Something happens.
    fn step(&mut self) {
        match self.rng.below(100) {
            0..30 => self.client_acts(),
            30..45 => self.servers.act(&mut self.rng),
            45..60 if !self.masters.is_empty() => {
                let at = self.rng.below(self.masters.len());
                self.run_master(at, None);
            }
            60..84 if !self.workers.is_empty() => {
                let at = self.rng.below(self.workers.len());
                self.run_worker(at, None);
            }
            84..88 => {
                let most = if self.rng.once_in(10) { 5000 } else { 60 };
                let ms = 1 + self.rng.below(most);
                self.ahead += Duration::from_millis(u64::try_from(ms).unwrap());
            }
            88..92 if !self.workers.is_empty() => {
                let at = self.rng.below(self.workers.len());
                let fault = self.fault();
                self.run_worker(at, Some(fault));
            }
            92 if !self.workers.is_empty() => {
                let at = self.rng.below(self.workers.len());
                self.bury_worker(at, KILLED);
            }
            93 if self.rng.once_in(2) && !self.masters.is_empty() => {
                let at = self.rng.below(self.masters.len());
                let fault = self.fault();
                self.run_master(at, Some(fault));
            }
            94 => self.ask(Request::FewerWorkers),
            95 => self.ask(Request::MoreWorkers),
            96 => self.reload(),
            97 => self.ask(Request::Upgrade),
            _ => self.start_something(),
        }
    }

    fn fault(&mut self) -> u64 {
        let most = if self.rng.once_in(3) { 100 } else { 20 };
        u64::try_from(self.rng.below(most)).unwrap()
    }

    fn ask(&mut self, request: Request) {
        let now = self.now();
        if let Some(at) = self.running() {
            self.note(format!("master {}: {request:?}", self.masters[at].number));
            self.masters[at].master.obey(request, now);
            self.take_newborn();
        }
    }

    fn reload(&mut self) {
        let workers = 1 + self.rng.below(4);
        self.write_config(workers);
        let now = self.now();
        let Some(at) = self.running() else { return };
        self.note(format!("master {}: reload with {workers} workers", self.masters[at].number));
        let master = &mut self.masters[at].master;
        let generation = master.config.snapshot.generation;
        master.ask_reload(None);
        // It is read on a thread of its own.
        let end = Instant::now() + Duration::from_secs(20);
        while master.config.snapshot.generation == generation {
            assert!(Instant::now() < end, "the configuration is not read");
            std::thread::yield_now();
            master.take_reading(now);
        }
    }

    /// Starts what has been waiting to be started.
    fn start_something(&mut self) {
        let fault = self.rng.once_in(8).then(|| self.fault());
        if !self.successors.is_empty() {
            self.start_successor(fault);
        } else if self.running().is_none() {
            self.start_master(fault);
        }
    }

    fn client_acts(&mut self) {
        self.clients.retain(|client| !client.is_over());
        if self.clients.len() < CLIENTS && self.rng.once_in(6) {
            return self.connect();
        }
        if self.clients.is_empty() {
            return;
        }
        let at = self.rng.below(self.clients.len());
        if self.rng.once_in(150) {
            return self.clients[at].abandon();
        }
        self.clients[at].act(&self.servers, &mut self.numbers, &mut self.rng);
    }

    /// A client connects, if anybody listens.
    fn connect(&mut self) {
        let Some(at) = self.running() else { return };
        let kind = [Kind::Http, Kind::Http, Kind::Header, Kind::Relay, Kind::Tunnel][self.rng.below(5)];
        let listener = match kind {
            Kind::Http | Kind::Tunnel => 0,
            Kind::Relay => 1,
            Kind::Header => 2,
        };
        let sockets = &self.masters[at].master.sockets;
        let Some(socket) = sockets.iter().find(|socket| socket.id == listener && socket.leaving.is_none()) else {
            return;
        };
        let ipc::snapshot::Address::Inet(addr) = socket.address else { return };
        let mut client = Client::connect(kind, addr, &mut self.numbers, &mut self.rng);
        client.gives_way = self.pressed;
        client.tolerant = self.hostile;
        self.note(format!("connected: {}", client.describe()));
        self.clients.push(client);
    }

    // --- for workers that leave anything in their memory

    /// The workers of the one master, as it knows them, in their order.
    pub(super) fn known_workers(&self) -> impl Iterator<Item = &crate::supervise::Worker> {
        self.masters[0].master.seats.iter().filter_map(|seat| seat.worker.as_ref())
    }

    /// The bytes of requests that the one master carries to its workers.
    pub(super) fn carried(&self) -> impl Iterator<Item = &Vec<u8>> {
        let tables = self.known_workers().flat_map(|worker| worker.table.connections());
        tables.chain(&self.masters[0].master.homeless).filter_map(|connection| match &connection.task {
            Task::Resume(bytes) => Some(bytes),
            Task::Serve | Task::Fail | Task::Refuse | Task::Relay { .. } => None,
        })
    }

    /// Kills all workers, and has the master take over from each; `check` comes before it passes anything on. The
    /// regions of the dead are in `spoilt` then.
    pub(super) fn kill_workers_with(&mut self, check: impl Fn(&World)) {
        let copy = |worker: &crate::supervise::Worker| {
            (rustix::io::fcntl_dupfd_cloexec(&worker.region, 3).unwrap(), worker.layout)
        };
        self.spoilt = self.known_workers().map(copy).collect();
        let now = self.now();
        while let Some(slot) = self.workers.pop() {
            drop(slot.life);
            slot.handle.die(KILLED);
        }
        let master = &mut self.masters[0].master;
        for at in 0..master.seats.len() {
            let end = master.seats[at].worker.as_ref().and_then(|worker| worker.reap());
            if let Some(end) = end {
                master.bury(at, end, now);
            }
        }
        check(self);
        self.check();
        self.spoilt.clear();
    }

    /// Regions of dead workers, as long as they are looked at.
    pub(super) fn spoilt(&self) -> &[(OwnedFd, Layout)] {
        &self.spoilt
    }

    /// All clients go away.
    pub(super) fn abandon_all(&mut self) {
        self.clients.iter_mut().for_each(Client::abandon);
    }

    // --- the end

    /// Runs everything in turn, and lets time pass, until `done`.
    fn run_all_until(&mut self, done: impl Fn(&World) -> bool, what: &str) {
        for _ in 0..ROUNDS {
            if done(self) {
                return;
            }
            if !self.successors.is_empty() {
                self.start_successor(None);
            } else if self.running().is_none() {
                self.start_master(None);
            }
            for at in (0..self.masters.len()).rev() {
                self.run_master(at, None);
            }
            for at in (0..self.workers.len()).rev() {
                self.run_worker(at, None);
            }
            for client in &mut self.clients {
                client.finish(&self.servers);
            }
            self.clients.retain(|client| !client.is_over());
            self.servers.act_all();
            self.ahead += ROUND;
            self.check();
        }
        panic!("this never comes about: {what}");
    }

    /// One master that runs, all its workers ready, and nothing else.
    fn is_at_rest(&self) -> bool {
        let [slot] = &self.masters[..] else { return false };
        let master = &slot.master;
        let ready = |seat: &crate::supervise::Seat| {
            let worker = seat.worker.as_ref();
            if seat.wanted { worker.is_some_and(|worker| worker.is_ready()) } else { worker.is_none() }
        };
        let wanted = master.seats.iter().filter(|seat| seat.wanted).count();
        master.course == Course::Running
            && master.announced
            && master.formers.is_empty()
            && master.homeless.is_empty()
            && master.successor.is_none()
            && master.seats.iter().all(ready)
            && self.workers.len() == wanted
            && self.workers.iter().all(|slot| matches!(slot.life, Life::Running(_)))
            && master.seats.iter().filter_map(|seat| seat.worker.as_ref()).all(|worker| worker.table.live() == 0)
            && self.successors.is_empty()
    }

    /// Nothing more happens to anybody: every connection comes to its end, and nothing is left over.
    pub(super) fn settle(&mut self) {
        self.note("settling");
        self.run_all_until(|world| world.clients.is_empty(), "every client has what it waits for");
        for at in (0..self.workers.len()).rev().filter(|&at| self.workers[at].forgotten).collect::<Vec<_>>() {
            self.bury_worker(at, End::Exited(0));
        }
        self.run_all_until(|world| world.is_at_rest(), "nothing is left but one master and its workers");
        self.write_config(2);
        self.reload_to_rest();
        self.servers.close();
        for _ in 0..3 {
            self.run_all_until(|world| world.is_at_rest(), "everything is at rest");
            for at in 0..self.workers.len() {
                self.run_worker(at, None);
            }
        }
        assert_eq!(kinds(), self.at_rest, "descriptors are left open, or were closed too often");
    }

    fn reload_to_rest(&mut self) {
        let now = self.now();
        let master = &mut self.masters[0].master;
        master.set_workers(2, now);
        self.run_all_until(|world| world.is_at_rest(), "two workers are left");
    }

    pub fn describe(&self) -> String {
        let mut text = format!("{:?} ahead\n", self.ahead);
        for slot in &self.masters {
            let master = &slot.master;
            text += &format!(
                "master {}: {:?}, announced {}, {} homeless, {} formers, successor {}\n",
                slot.number,
                master.course,
                master.announced,
                master.homeless.len(),
                master.formers.len(),
                master.successor.is_some()
            );
            for (seat, worker) in master.seats.iter().filter_map(|seat| Some((seat, seat.worker.as_ref()?))) {
                text += &format!(
                    "  worker {} (wanted {}): {:?}, {} live, {} queued, {} passed, {} taken, {} finished\n",
                    seat.index,
                    seat.wanted,
                    worker.stage,
                    worker.table.live(),
                    worker.table.queued(),
                    worker.table.passed(),
                    worker.control.stats().taken.get(),
                    worker.control.stats().finished.get(),
                );
            }
        }
        for slot in &self.workers {
            let ports: Vec<u16> = ports(slot).collect();
            text += &format!("worker {} of master {}, {:?}: {ports:?}\n", slot.index, slot.parent, slot.handle.pid());
        }
        for client in &self.clients {
            text += &format!("client: {}\n", client.describe());
        }
        LOG.with(|log| {
            let log = log.borrow();
            for (level, line) in &log[log.len().saturating_sub(400)..] {
                text += &format!("log: {level} {line}\n");
            }
        });
        text
    }
}

/// The ports of the clients that a worker has.
fn ports(slot: &WorkerSlot) -> impl Iterator<Item = u16> {
    let ports: Vec<u16> = match &slot.life {
        Life::Newborn(_) => Vec::new(),
        Life::Running(worker) => worker
            .connections()
            .filter_map(|(_, fd)| rustix::net::getpeername(fd).ok()??.try_into().ok())
            .map(|addr: std::net::SocketAddr| addr.port())
            .collect(),
    };
    ports.into_iter()
}

mod books;
