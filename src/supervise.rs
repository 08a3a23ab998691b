//! Worker processes: starting them, the `Hello`/`Ready` handshake, how they ended, when to start the next.
//!
//! A worker is this program again, by fork and exec, with one end of its channel as standard input
//! (`src/process.rs`). Its death is seen through a pidfd. What becomes of its connections is not decided here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, SendError};
use ipc::ledger::Rows;
use ipc::message::{Layout, ToWorker, VERSION};
use ipc::shm::{self, Control};
use rustix::process::{Pid, Signal};

use crate::hands::Taking;
use crate::keeper::Table;
use crate::pipes::Pipes;
use crate::privilege::Identity;
use crate::process::{End, Process, Spawn};
use crate::watchdog::Watch;

/// How long a worker may take from its start to `Ready`.
pub const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// A worker that dies sooner than this after `Ready` has died quickly.
pub const QUICK: Duration = Duration::from_secs(1);

/// Where a worker process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Started, not yet ready.
    Starting {
        /// Killed if not ready by then.
        deadline: Instant,
    },
    /// Takes connections.
    Ready,
    /// Finishes what it has, then exits.
    Draining {
        /// Killed if still there by then.
        deadline: Instant,
    },
    /// Killed, or told to die: its end is only awaited.
    Dying {
        /// Killed with SIGKILL if still there by then.
        deadline: Instant,
    },
}

impl Stage {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Starting { .. } => "starting",
            Stage::Ready => "ready",
            Stage::Draining { .. } => "draining",
            Stage::Dying { .. } => "dying",
        }
    }
}

/// A log, a configuration or a drain that a worker must be told of when its channel has room.
#[derive(Debug)]
pub struct Errand {
    /// What to say.
    pub message: ToWorker,
    /// The descriptors that go with it.
    pub fds: Vec<Rc<OwnedFd>>,
    /// Not before every connection queued for the worker has been sent.
    pub after_connections: bool,
}

impl Errand {
    /// Says it at once, if the channel has room.
    pub fn is_sent(&self, channel: &mut Channel) -> bool {
        let fds: Vec<_> = self.fds.iter().map(|fd| fd.as_fd()).collect();
        channel.send(&self.message, &fds).is_ok()
    }
}

/// One running worker process and what the master shares with it.
#[derive(Debug)]
pub struct Worker {
    /// Its process's number.
    pub pid: Pid,
    process: Box<dyn Process>,
    /// While it takes connections.
    pub taking: Option<Taking>,
    /// Our end of its channel.
    pub channel: Channel,
    /// Its shared region.
    pub region: OwnedFd,
    /// How that is laid out.
    pub layout: Layout,
    /// The counters and records in it.
    pub control: Rc<Control>,
    /// Its connections.
    pub table: Table,
    /// Whether it still moves.
    pub watch: Watch,
    /// The pipes it relays through.
    pub pipes: Pipes,
    /// Where it stands.
    pub stage: Stage,
    /// The configuration that it is known to go by.
    pub generation: u64,
    /// When it became ready.
    pub ready_since: Option<Instant>,
    /// Messages that wait for room in the channel; the loop keeps them few.
    pub errands: Vec<Errand>,
    /// The channel may hold messages from the worker.
    pub readable: bool,
    /// What it was started with and cannot change.
    pub made: Made,
    /// Its row in the ledger, for as long as this is kept.
    _row: Row,
    /// The channel had no room for what was last to be sent.
    pub blocked: bool,
}

/// What a process is started with and keeps for its life, besides its region's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Whom it runs as.
    pub identity: Identity,
    /// How many connections the configuration then let a worker have.
    pub connections: Option<u32>,
}

/// A row of the ledger that a process has, to be had by another once this is dropped.
#[derive(Debug)]
struct Row {
    rows: Rc<Rows>,
    row: Option<u16>,
}

impl Drop for Row {
    fn drop(&mut self) {
        if let Some(row) = self.row {
            self.rows.release(row);
        }
    }
}

/// The ledger of all workers.
#[derive(Debug)]
pub struct Shared(Rc<Rows>);

impl Shared {
    /// Makes one.
    ///
    /// # Errors
    /// When memory or descriptors are short.
    pub fn new() -> io::Result<Shared> {
        Ok(Shared(Rc::new(Rows::new()?)))
    }
}

/// What every worker gets at its start.
#[derive(Debug)]
pub struct Equipment<'a> {
    /// The sealed configuration.
    pub snapshot: BorrowedFd<'a>,
    /// Which one that is.
    pub generation: u64,
    /// Where the access log goes, when there is one.
    pub access_log: Option<BorrowedFd<'a>>,
    /// What all workers count in.
    pub shared: &'a Shared,
    /// Its shared region's layout.
    pub layout: Layout,
    /// What else it cannot change.
    pub made: Made,
    /// The log level, as `RUST_LOG` has it, when the command line sets one.
    pub log_level: Option<&'a str>,
}

impl Worker {
    /// Starts worker `index` and sends it its `Hello`.
    ///
    /// # Errors
    /// When the process, memory or descriptors cannot be had.
    pub fn start(index: u16, equipment: &Equipment<'_>, spawn: &dyn Spawn, now: Instant) -> io::Result<Worker> {
        let region = shm::create(&equipment.layout)?;
        let control = Rc::new(Control::map(&region, &equipment.layout)?);
        let (mut channel, theirs) = Channel::pair()?;
        let Shared(rows) = equipment.shared;
        let row = Row { rows: Rc::clone(rows), row: rows.claim() };
        let hello = ToWorker::Hello { version: VERSION, index, row: row.row, layout: equipment.layout };
        let mut fds = vec![equipment.snapshot, region.as_fd(), rows.file()];
        fds.extend(equipment.access_log);
        // The end not yet given to anybody queues it: if the child starts at all, it finds it.
        channel.send(&hello, &fds).map_err(|error| match error {
            SendError::Io(error) => error,
            SendError::Full | SendError::Closed | SendError::TooLarge => io::Error::other(error.to_string()),
        })?;
        let process = spawn.worker(index, theirs, equipment)?;
        Ok(Worker {
            pid: process.pid(),
            process,
            taking: None,
            channel,
            region,
            layout: equipment.layout,
            control,
            table: Table::new(equipment.layout.records),
            watch: Watch::new(now),
            pipes: Pipes::default(),
            stage: Stage::Starting { deadline: now + READY_TIMEOUT },
            generation: equipment.generation,
            ready_since: None,
            errands: Vec::new(),
            readable: true,
            made: equipment.made,
            _row: row,
            blocked: false,
        })
    }

    /// A descriptor that is readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Whether it may be given connections.
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// Whether it finishes what it has.
    pub fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining { .. })
    }

    /// When something must be done about it although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Ready => None,
            Stage::Starting { deadline } | Stage::Draining { deadline } | Stage::Dying { deadline } => Some(deadline),
        }
    }

    /// Kills it at once. Its end shows at the pidfd.
    pub fn kill(&mut self, now: Instant) {
        self.process.kill();
        self.stage = Stage::Dying { deadline: now + Duration::from_secs(1) };
    }

    /// Asks it to stop, and kills it a second later.
    pub fn terminate(&mut self, now: Instant) {
        // Its sign to write what its log still holds and go. The end of the channel alone would make it an orphan.
        let _ = self.channel.send(&ToWorker::Stop, &[]);
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Write);
        self.stage = Stage::Dying { deadline: now + Duration::from_secs(1) };
    }

    /// It has closed its channel: it is about to end, and is killed if it does not.
    pub fn hung_up(&mut self, now: Instant) {
        self.readable = false;
        if matches!(self.stage, Stage::Starting { .. } | Stage::Ready) {
            self.stage = Stage::Dying { deadline: now + Duration::from_secs(1) };
        }
    }

    /// How it ended, if it has; the process is gone from the system then.
    pub fn reap(&self) -> Option<End> {
        self.process.reap()
    }

    /// Ends it at once, and waits for that.
    pub fn end(&self) {
        self.process.end();
    }
}

/// How long to wait before a worker is started again.
///
/// Not at all, as a rule: a worker that had been ready for [`QUICK`] is replaced at once, and so is one that
/// died quickly for the first few times in a row. Then the wait doubles from 100 ms, up to a bound by what the death
/// says of the next one: a worker that never became ready will hardly do so now, one that crashed may crash again, and
/// one that was killed from outside would have gone on.
#[derive(Debug, Default)]
pub struct BackOff {
    quick_deaths: u32,
}

impl BackOff {
    const AT_ONCE: u32 = 3;
    const FIRST: Duration = Duration::from_millis(100);
    const NEVER_READY: Duration = Duration::from_secs(10);
    const CRASHED: Duration = Duration::from_secs(1);
    const KILLED: Duration = Self::FIRST;

    /// The wait after a death; `ready_for` is how long the worker had been ready, if it ever was, and `end` how it ended,
    /// if it was started at all.
    pub fn after_death(&mut self, ready_for: Option<Duration>, end: Option<End>) -> Duration {
        let last = match (ready_for, end) {
            (None, _) | (_, None) => Self::NEVER_READY,
            (Some(_), Some(End::Killed(signal))) if signal == Signal::KILL.as_raw() => Self::KILLED,
            (Some(_), Some(End::Killed(_) | End::Exited(_) | End::Unknown)) => Self::CRASHED,
        };
        if ready_for.is_some_and(|time| time >= QUICK) {
            self.quick_deaths = 0;
            return Duration::ZERO;
        }
        self.quick_deaths = self.quick_deaths.saturating_add(1);
        match self.quick_deaths.checked_sub(Self::AT_ONCE + 1) {
            None => Duration::ZERO,
            Some(doublings) => (Self::FIRST * 2u32.pow(doublings.min(7))).min(last),
        }
    }
}

/// A worker's number, with the process that has it now, if any.
#[derive(Debug)]
pub struct Seat {
    /// The number.
    pub index: u16,
    /// The process.
    pub worker: Option<Worker>,
    /// When the next process is to be started, if it is.
    pub start_at: Option<Instant>,
    /// Whether a process that ends is to be followed by another.
    pub wanted: bool,
    /// How long to wait then.
    pub back_off: BackOff,
}

impl Seat {
    /// An empty one, to be filled now.
    pub fn new(index: u16, now: Instant) -> Seat {
        Seat { index, worker: None, start_at: Some(now), wanted: true, back_off: BackOff::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_deaths_back_off_and_a_long_life_forgives_them() {
        let mut back_off = BackOff::default();
        let waits: Vec<u128> = (0..12).map(|_| back_off.after_death(None, None).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        let quick = Some(Duration::from_millis(999));
        let crash = Some(End::Killed(Signal::SEGV.as_raw()));
        let kill = Some(End::Killed(Signal::KILL.as_raw()));
        assert_eq!(back_off.after_death(None, kill), BackOff::NEVER_READY);
        assert_eq!(back_off.after_death(quick, crash), BackOff::CRASHED);
        assert_eq!(back_off.after_death(quick, Some(End::Exited(1))), BackOff::CRASHED);
        assert_eq!(back_off.after_death(quick, kill), BackOff::KILLED);
        assert_eq!(back_off.after_death(Some(QUICK), crash), Duration::ZERO);
        assert_eq!(back_off.after_death(None, None), Duration::ZERO);
    }
}
