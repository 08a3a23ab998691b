//! The configuration: TOML text to a checked [`Snapshot`], and back.
//!
//! `parse` turns text into `syntax` with spans, `check` turns that into a snapshot; both report every fault they
//! find, not only the first. The command line goes the same way, as a small text of its own. Nothing here opens a
//! socket or changes the process; it reads the configuration file, resolves the names of servers and looks up users.

mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipc::snapshot::{Mode, Snapshot};

pub use report::Report;

/// A usable configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What master and workers work from.
    pub snapshot: Snapshot,
    /// What only the master needs.
    pub process: ProcessSettings,
    /// What is probably not as intended; without errors, often empty.
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
    /// Permission bits of Unix listeners, by the socket's path; absent = what the umask leaves.
    pub unix_permissions: BTreeMap<PathBuf, u32>,
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

/// Reads and checks the configuration file at `path`.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    let _ = path;
    Err(Report::default())
}

/// Checks configuration text; `name` stands for the file in messages.
///
/// # Errors
/// Everything that is wrong with it.
pub fn from_text(name: &str, text: &str) -> Result<Loaded, Report> {
    let _ = (name, text);
    Err(Report::default())
}

/// Makes a configuration from the command line alone, with the defaults that a file has too.
///
/// # Errors
/// Everything that is wrong with it; no `--backend` at all is.
pub fn from_command_line(options: &Options) -> Result<Loaded, Report> {
    let _ = options;
    Err(Report::default())
}

/// What a start uses: the file, with `--workers` above it, or the command line alone.
///
/// # Errors
/// As [`load`] and [`from_command_line`]; `--listen`, `--backend` or `--mode` beside a file are an error too.
pub fn gather(config: Option<&Path>, options: &Options) -> Result<Loaded, Report> {
    let _ = (config, options);
    Err(Report::default())
}

/// The effective configuration as TOML, every default filled in. Reads back as the same snapshot.
#[must_use]
pub fn dump(snapshot: &Snapshot, process: &ProcessSettings) -> String {
    let _ = (snapshot, process);
    String::new()
}
