//! Reading the configuration again while everything goes on: when, how often, and who wants to know what came of it.
//!
//! The file is read on a thread of its own, because names of servers are looked up then, which can take as long as
//! it likes; the loop goes on accepting. At most one reading is under way. What is asked for meanwhile is one more
//! reading after it, however often it is asked. What a new configuration changes is worked out in [`plan`]; it is put
//! into force by the master.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use ipc::control::Reloaded;
use ipc::snapshot::{Endpoint, Target};
use mio::Waker;

use crate::config::{self, Loaded, Names, Options, Report};
use crate::control::Asker;

pub mod plan;

/// How long workers may take to go by a new configuration, before they are said to be stuck.
pub const ACKNOWLEDGE: Duration = Duration::from_secs(10);

/// Where the configuration comes from, each time it is read.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The command line's part.
    pub options: Options,
    /// The servers are those of the demo.
    pub demo: bool,
}

impl Recipe {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn gather(&self, names: &mut Names) -> Result<Loaded, Report> {
        let mut loaded = config::gather_again(self.file.as_deref(), &self.options, names)?;
        if self.demo {
            for group in &mut loaded.snapshot.groups {
                group.name = "demo".to_owned();
                group.worker_header = true;
            }
        }
        Ok(loaded)
    }

    /// The file's path from the root, or what stands for it.
    pub fn name(&self) -> String {
        let path = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
        self.file.as_ref().map_or_else(|| "the command line".to_owned(), path)
    }
}

/// What the thread hands back.
type Reading = (Result<Loaded, Report>, Names);

/// What a reading came to.
#[derive(Debug)]
pub struct Outcome {
    /// The configuration, or why there is none.
    pub loaded: Result<Loaded, Refusal>,
    /// Who asked for it.
    pub asked: Vec<Asker>,
}

/// Why a configuration cannot be put into force.
#[derive(Debug)]
pub enum Refusal {
    /// It is wrong.
    Report(Report),
    /// Something it needs cannot be had.
    Text(String),
}

impl Refusal {
    /// For a terminal, or for a file.
    pub fn render(&self, color: bool) -> String {
        match self {
            Refusal::Report(report) => report.render(color),
            Refusal::Text(text) => format!("error: {text}\n"),
        }
    }

    /// For the log.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Refusal::Report(report) => report.lines().collect(),
            Refusal::Text(text) => vec![text.clone()],
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Reload {
    recipe: Arc<Recipe>,
    waker: Arc<Waker>,
    names: Names,
    reading: Option<Receiver<Reading>>,
    /// Asked for since the reading began: the file may have changed after it was read.
    again: bool,
    /// Who waits for the reading under way, and who for the next.
    asked: [Vec<Asker>; 2],
    /// A configuration in force that some worker does not go by yet.
    pub pending: Option<Pending>,
    /// The next server that was never configured before gets this number.
    pub next_number: u64,
}

/// See [`Reload::pending`].
#[derive(Debug)]
pub struct Pending {
    /// What to say when all is done.
    pub reloaded: Reloaded,
    /// When that should be.
    pub deadline: Instant,
    /// Who wants to hear it.
    pub asked: Vec<Asker>,
}

impl Reload {
    /// For a configuration that has been read once, with these `names` and `servers` in it.
    pub fn new(recipe: Recipe, names: Names, servers: u64, waker: Waker) -> Reload {
        Reload {
            recipe: Arc::new(recipe),
            waker: Arc::new(waker),
            names,
            reading: None,
            again: false,
            asked: Default::default(),
            pending: None,
            next_number: servers,
        }
    }

    /// Where the configuration comes from.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// What a name of servers stands for now: should it not resolve when the configuration is read again, it is this.
    pub fn learn(&mut self, target: &Target, endpoints: Vec<Endpoint>) {
        self.names.learn(target, endpoints);
    }

    /// Begins to read the configuration, or to read it once more after the reading under way. `who` wants to know
    /// what comes of it.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn ask(&mut self, who: Option<Asker>) -> io::Result<()> {
        if self.reading.is_some() {
            self.again = true;
            self.asked[1].extend(who);
            return Ok(());
        }
        self.asked[0].extend(who);
        self.begin()
    }

    fn begin(&mut self) -> io::Result<()> {
        let (sender, receiver) = sync_channel(1);
        let wake = WakeAtEnd(Arc::clone(&self.waker));
        let (recipe, mut names) = (Arc::clone(&self.recipe), self.names.clone());
        std::thread::Builder::new().name("configuration".to_owned()).spawn(move || {
            let _wake = wake;
            let loaded = recipe.gather(&mut names);
            // Nobody waits for it any more when the master stops.
            let _ = sender.send((loaded, names));
        })?;
        self.reading = Some(receiver);
        Ok(())
    }

    /// Whether no reading is under way or asked for, and every worker goes by what was read, or is given up on.
    pub fn is_over(&self) -> bool {
        self.reading.is_none() && self.pending.is_none()
    }

    /// What the reading under way came to, once it is over, and who asked for it. Begins the next one if there is to
    /// be one.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        let reading = match self.reading.as_ref()?.try_recv() {
            Ok(reading) => Some(reading),
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => None,
        };
        self.reading = None;
        let mut asked = std::mem::take(&mut self.asked[0]);
        self.asked.swap(0, 1);
        if std::mem::take(&mut self.again)
            && let Err(error) = self.begin()
        {
            log::error!("the configuration cannot be read once more: {error}");
            asked.append(&mut self.asked[0]);
        }
        let loaded = match reading {
            Some((Ok(loaded), names)) => {
                self.names = names;
                Ok(loaded)
            }
            Some((Err(report), _)) => Err(Refusal::Report(report)),
            None => Err(Refusal::Text("reading the configuration failed within the program".to_owned())),
        };
        Some(Outcome { loaded, asked })
    }
}

/// Wakes the loop when the thread that holds it ends, however that comes about.
struct WakeAtEnd(Arc<Waker>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        let _ = self.0.wake();
    }
}
