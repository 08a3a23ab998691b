//! Everything that exists in one run of the model, and what may happen to it.

mod books;
mod lives;
mod log;
mod open;
mod rest;
mod spoilt;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::message::Layout;
use workers::worker::Worker;

use super::clients::{Client, Kind, Numbers};
use super::processes::{Cradle, Handle, KILLED, Newborn};
use super::rng::Rng;
use super::servers::Servers;
use crate::master::Master;
use crate::signals::Request;

pub use log::listen_to_log;
use open::{descriptors, kinds};

/// Things that happen in one run.
const STEPS: usize = 300;
/// What clients speak.
const KINDS: &[Kind] = &[Kind::Http, Kind::Http, Kind::Header, Kind::Relay, Kind::Tunnel];
/// The same where it is mostly about exchanges with `reply_to`.
const DELIVERIES: &[Kind] = &[Kind::Delivery, Kind::Delivery, Kind::Delivery, Kind::Tunnel, Kind::Http];
/// The same where targets break.
const BREAKING: &[Kind] = &[Kind::Delivery];
/// Clients at once at most.
const CLIENTS: usize = 14;

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
    /// What clients speak.
    spoken: &'static [Kind],
    /// Descriptors by kind, with one master and its workers and nothing else.
    at_rest: BTreeMap<String, usize>,
    spoilt: Vec<(OwnedFd, Layout)>,
    /// How often the books were compared.
    checks: Cell<usize>,
    pub trace: Vec<String>,
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

    /// The same with exchanges whose answers go elsewhere.
    pub fn run_deliveries(seed: u64) {
        World::run_kinds(seed, false, DELIVERIES, |world| {
            for _ in 0..STEPS {
                world.step();
                world.check();
            }
            world.settle();
        });
    }

    /// The same where targets break their connections: nobody may take a part of an answer for all.
    pub fn run_breaking(seed: u64) {
        World::run_kinds(seed, false, BREAKING, |world| {
            world.servers.breaks = true;
            for _ in 0..STEPS {
                world.step();
                world.check();
            }
            world.servers.breaks = false;
            world.settle();
        });
    }

    pub(super) fn run_by(seed: u64, hostile: bool, schedule: impl FnOnce(&mut World)) {
        World::run_kinds(seed, hostile, KINDS, schedule);
    }

    fn run_kinds(seed: u64, hostile: bool, spoken: &'static [Kind], schedule: impl FnOnce(&mut World)) {
        let before = descriptors().len();
        let mut world = World::new(seed, hostile, spoken);
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

    fn new(seed: u64, hostile: bool, spoken: &'static [Kind]) -> World {
        log::forget();
        let dir = std::env::temp_dir().join(format!("pointsman-model-{}-{seed}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let mut rng = Rng::new(seed);
        let mut world = World {
            pressed: !hostile && rng.once_in(3),
            hostile,
            spoken,
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
            checks: Cell::new(0),
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
        // With another number of places, workers are replaced.
        let places = if self.pressed { 3 } else { [40, 60][self.rng.below(2)] };
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
        let forward = "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nrules = \"t\"\n\
             timeouts = { header = \"1h\", connect = \"1h\", tunnel = \"1h\" }\n\
             [rules.t]\nlist = [{ action = \"allow\", networks = [\"127.0.0.0/8\"], ports = [\"1-65535\"] }]\n";
        let text = if self.spoken.contains(&Kind::Delivery) { text + forward } else { text };
        std::fs::write(self.dir.join("new"), text).unwrap();
        std::fs::rename(self.dir.join("new"), self.dir.join("pointsman.toml")).unwrap();
    }

    fn control(&self) -> PathBuf {
        self.dir.join("control")
    }

    pub(in crate::master::model) fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    fn note(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

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

    pub(in crate::master::model) fn ask(&mut self, request: Request) {
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

    /// Connects a client; its number.
    pub(in crate::master::model) fn add_client(&mut self, kind: Kind) -> usize {
        let count = self.clients.len();
        while self.clients.len() == count || self.clients[count].kind != kind {
            self.clients.truncate(count);
            self.connect();
        }
        count
    }

    /// Connects clients, one of each kind, and has workers of the one master serve them: some wait for an answer, some for
    /// the next request.
    pub(in crate::master::model) fn add_served_clients(&mut self) {
        let asked = self.servers.asked();
        for kind in [Kind::Http, Kind::Header, Kind::Relay, Kind::Tunnel, Kind::Http] {
            let client = self.add_client(kind);
            match kind {
                Kind::Http | Kind::Header => self.request(client, true),
                Kind::Relay | Kind::Tunnel | Kind::Delivery => {
                    self.clients[client].act(&self.servers, &mut self.numbers, &mut self.rng)
                }
            }
        }
        for _ in 0..50 {
            self.run_own_of(0);
            if self.servers.asked() >= asked + 3 {
                return;
            }
        }
        panic!("no request comes to the servers");
    }

    /// Runs the one master and its own workers until it is ready, then until they serve clients of theirs.
    pub(in crate::master::model) fn run_own_until_served(&mut self) {
        for _ in 0..50 {
            if self.masters[0].master.announced {
                return self.add_served_clients();
            }
            self.run_own_of(0);
        }
        panic!("the master does not become ready");
    }

    /// Why any client may lose its connection; `None` when none may.
    pub(in crate::master::model) fn excused(&self) -> Option<&'static str> {
        self.clients.iter().find_map(|client| client.excused)
    }

    /// A client sends a request.
    pub(in crate::master::model) fn request(&mut self, client: usize, whole: bool) {
        self.clients[client].ask(&mut self.numbers, whole);
    }

    /// Another client sends a part of a request.
    pub(in crate::master::model) fn add_request_part(&mut self) {
        let client = self.add_client(Kind::Http);
        self.request(client, false);
    }

    /// Lets time pass.
    pub(in crate::master::model) fn pass(&mut self, time: Duration) {
        self.ahead += time;
    }

    /// The servers do all that they can.
    pub(in crate::master::model) fn servers_act(&mut self) {
        self.servers.act_all();
    }

    /// Runs masters and workers until the servers have so many requests, none of which they answer.
    pub(in crate::master::model) fn run_until_asked(&mut self, count: usize) {
        for _ in 0..50 {
            self.run_all_but_clients();
            if self.servers.asked() >= count {
                return;
            }
        }
        panic!("no request comes to the servers");
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
        let kind = self.spoken[self.rng.below(self.spoken.len())];
        let listener = match kind {
            Kind::Http | Kind::Tunnel => 0,
            Kind::Relay => 1,
            Kind::Header => 2,
            Kind::Delivery => 3,
        };
        let sockets = &self.masters[at].master.sockets;
        let Some(socket) = sockets.iter().find(|socket| socket.id == listener && socket.leaving.is_none()) else {
            return;
        };
        let ipc::snapshot::Address::Inet(addr) = socket.address else { return };
        let target = self.servers.addrs().1;
        let mut client = Client::connect(kind, addr, target, &mut self.numbers, &mut self.rng);
        client.gives_way = self.pressed;
        client.tolerant = self.hostile;
        client.breaks = self.servers.breaks;
        self.note(format!("connected: {}", client.describe()));
        self.clients.push(client);
    }
}
