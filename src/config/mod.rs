//! The configuration: TOML text to a checked [`Snapshot`], and back.
//!
//! `parse` turns text into `syntax` with spans, `check` turns that into a snapshot; both report every fault they
//! find, not only the first. The command line goes the same way, as a small text of its own. Nothing here opens a
//! socket or changes the process; it reads the configuration file, resolves the names of servers and looks up users.

mod address;
mod check;
mod command_line;
mod dump;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod parse;
#[cfg(test)]
mod property;
mod read;
mod report;
mod resolver;
mod suggest;
mod syntax;
mod system;
#[cfg(test)]
mod tests;
mod units;
mod users;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ipc::snapshot::{Mode, Snapshot};

pub use report::Report;
use report::{Diagnostic, Source, quoted};
pub use resolver::Sources;
pub use system::Names;
use system::{System, ThisSystem};
pub use units::parse_duration;

/// A usable configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What master and workers work from.
    pub snapshot: Snapshot,
    /// What only the master needs.
    pub process: ProcessSettings,
    /// What is probably not as intended: warnings only, mostly none.
    pub warnings: Report,
}

/// Settings that no worker needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessSettings {
    /// The file it was read from; `None` = the command line.
    pub source: Option<PathBuf>,
    /// The user that workers run as; `None` = the master's own.
    pub user: Option<OsUser>,
    /// The group that workers run as; `None` = the user's own group, or the master's when there is no user.
    pub group: Option<OsGroup>,
    /// Where `master reload` and the like find the master.
    pub control: Control,
    /// How long the successor of an upgrade may take to become ready.
    pub upgrade_timeout_ms: u32,
    /// Permission bits of Unix listeners, by the socket's path; absent = what the umask leaves.
    pub unix_permissions: BTreeMap<PathBuf, u32>,
    /// Where the users of forward listeners are written.
    pub users_file: Option<PathBuf>,
    /// What the settings of the resolver were made of.
    pub resolver: Sources,
}

/// The master's control socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Control {
    /// In the runtime directory, under a name made of the configuration's path.
    #[default]
    Derived,
    /// There is none.
    Off,
    /// Here.
    At(PathBuf),
}

/// A user of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsUser {
    /// As in the configuration.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The number of its own group.
    pub gid: u32,
}

/// A group of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsGroup {
    /// As in the configuration.
    pub name: String,
    /// Its number.
    pub gid: u32,
}

/// How many workers are wanted. Reads from `auto` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// As many as the process may use cores.
    Auto,
    /// So many, 1 to 1024.
    Count(u16),
}

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u16>() {
            _ if text == "auto" => Ok(Workers::Auto),
            Ok(count @ 1..=1024) => Ok(Workers::Count(count)),
            Ok(_) | Err(_) => Err("expected a number from 1 to 1024, or `auto`".to_owned()),
        }
    }
}

/// Reads `http` or `tcp`, for the command line.
pub fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "http" => Ok(Mode::Http),
        "tcp" => Ok(Mode::Tcp),
        _ => Err("expected `http` or `tcp`".to_owned()),
    }
}

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `--workers`; with a file, stands above what the file says.
    pub workers: Option<Workers>,
    /// Each `--listen`; none = 127.0.0.1:8080.
    pub listen: Vec<String>,
    /// Each `--backend`; together they are the group `default`.
    pub backend: Vec<String>,
    /// `--mode`; `None` = HTTP.
    pub mode: Option<Mode>,
}

/// The largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// Where the control socket is said to be in the file at `path`, as far as that can be read: other errors in it do not
/// matter.
#[must_use]
pub fn control_of(path: &Path) -> Control {
    read(path).ok().and_then(|text| parse::control_of(&text)).unwrap_or_default()
}

/// Reads and checks the configuration file at `path`; `workers` stands above what it says.
fn load(path: &Path, workers: Option<Workers>, system: &dyn System) -> Result<Loaded, Report> {
    let text = read(path)?;
    let mut loaded = check_text(&path.display().to_string(), &text, workers, system)?;
    loaded.process.source = Some(path.to_owned());
    Ok(loaded)
}

fn read(path: &Path) -> Result<String, Report> {
    let unreadable = |why: &str, help: &str| {
        let title = format!("cannot read the configuration {}: {why}", quoted(&path.to_string_lossy()));
        Report::single(Diagnostic::error(title).help(help))
    };
    let failed = |error: &io::Error| {
        let kind = error.kind();
        let help = if kind == io::ErrorKind::NotFound {
            "check the path given with --config"
        } else if kind == io::ErrorKind::PermissionDenied {
            "it must be readable for the user that starts the master"
        } else if kind == io::ErrorKind::IsADirectory {
            "it is a directory; give the path of the file in it"
        } else {
            "give another file with --config"
        };
        unreadable(&error.to_string(), help)
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| failed(&error))?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_MAX {
        return Err(unreadable("it is larger than 16 MiB", "is it the right file?"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        unreadable(&format!("line {line} is not UTF-8"), "save it in UTF-8")
    })
}

/// The text of a file of the system.
///
/// # Errors
/// When it cannot be read, or is very long.
pub fn read_system_file(path: &Path) -> io::Result<String> {
    ThisSystem.read(path)
}

/// Checks configuration text; `name` stands for the file in messages.
fn check_text(name: &str, text: &str, workers: Option<Workers>, system: &dyn System) -> Result<Loaded, Report> {
    let source = Arc::new(Source { name: name.to_owned(), text: text.to_owned() });
    let mut report = Report::of(Arc::clone(&source));
    let Some(mut file) = parse::parse(&source, &mut report) else {
        report.sort();
        return Err(report);
    };
    file.workers = workers.or(file.workers);
    check::check(file, None, system, report)
}

/// Reads and checks what a start or a reload uses: the file, with `--workers` above it, or the command line alone,
/// with the defaults that a file has too.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read. `--listen`, `--backend` or `--mode` beside a file are
/// an error, and so is no `--backend` without a file.
pub fn gather(config: Option<&Path>, options: &Options) -> Result<Loaded, Report> {
    gather_on(config, options, &ThisSystem)
}

/// As [`gather`], for a process that does so more than once: a server's name that does not resolve this time stands
/// for the addresses it had before, and so a name service that is away takes no server out.
///
/// # Errors
/// As [`gather`].
pub fn gather_again(config: Option<&Path>, options: &Options, names: &mut Names) -> Result<Loaded, Report> {
    let system = names.begin(&ThisSystem);
    let loaded = gather_on(config, options, &system)?;
    *names = system.into_names();
    Ok(loaded)
}

fn gather_on(config: Option<&Path>, options: &Options, system: &dyn System) -> Result<Loaded, Report> {
    let Some(path) = config else { return command_line::check_options(options, system) };
    command_line::only_workers(options)?;
    load(path, options.workers, system)
}

/// The effective configuration as TOML, every default filled in. Reads back as the same snapshot.
#[must_use]
pub fn dump(snapshot: &Snapshot, process: &ProcessSettings) -> String {
    dump::dump(snapshot, process)
}
