//! What a configuration is checked against besides itself: names, users, directories, cores.
//!
//! Behind a trait so that tests need no network and no particular machine.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use ipc::remembered::Remembered;
use ipc::snapshot::{Dns, Endpoint, Target};

use super::{OsGroup, OsUser};

/// The machine, as far as the check asks it.
pub trait System {
    /// What each of `targets` stands for, or why it stands for nothing.
    fn resolve(&self, dns: &Dns, targets: &[Target]) -> Vec<Result<Vec<Endpoint>, String>>;
    /// What `target` stood for when the configuration was last read; none = not known.
    fn former(&self, target: &Target) -> Vec<Endpoint> {
        let _ = target;
        Vec::new()
    }
    /// The text of a file of the system.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The user of this name, if there is one.
    fn user(&self, name: &str) -> io::Result<Option<OsUser>>;
    /// The group of this name, if there is one.
    fn group(&self, name: &str) -> io::Result<Option<OsGroup>>;
    /// Cores this process may use.
    fn cores(&self) -> usize;
    /// Whether this is a directory.
    fn is_directory(&self, path: &Path) -> bool;
}

/// How long all names of a configuration together may take to be looked up when it is read. What is not known by
/// then is left to the workers.
const RESOLVE_TIME: Duration = Duration::from_secs(10);
/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// The machine we run on.
pub struct ThisSystem;

impl System for ThisSystem {
    fn resolve(&self, dns: &Dns, targets: &[Target]) -> Vec<Result<Vec<Endpoint>, String>> {
        let found = workers::dns::once::discover(dns, targets, RESOLVE_TIME);
        found.into_iter().map(|one| one.map(|one| one.endpoints).map_err(|error| error.to_string())).collect()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(io::Error::other("it has more than 16 MiB"));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn user(&self, name: &str) -> io::Result<Option<OsUser>> {
        let user = nix::unistd::User::from_name(name)?;
        Ok(user.map(|user| OsUser { name: name.to_owned(), uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
    }

    fn group(&self, name: &str) -> io::Result<Option<OsGroup>> {
        let group = nix::unistd::Group::from_name(name)?;
        Ok(group.map(|group| OsGroup { name: name.to_owned(), gid: group.gid.as_raw() }))
    }

    fn cores(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }
}

/// What the names of servers stood for when the configuration was last read: as many as that had.
#[derive(Debug, Clone, Default)]
pub struct Names(HashMap<Target, Vec<Endpoint>>);

/// A machine, by someone who has asked it before.
pub(super) struct Remembering<'n> {
    system: &'n dyn System,
    former: &'n HashMap<Target, Vec<Endpoint>>,
    now: RefCell<HashMap<Target, Vec<Endpoint>>>,
}

impl Names {
    /// A name of the configuration stands for these now.
    pub fn learn(&mut self, target: &Target, endpoints: Vec<Endpoint>) {
        if endpoints.is_empty() {
            self.0.remove(target);
        } else if let Some(known) = self.0.get_mut(target) {
            *known = endpoints;
        } else {
            self.0.insert(target.clone(), endpoints);
        }
    }

    /// What a former master has left.
    pub fn remembered(names: impl IntoIterator<Item = Remembered>) -> Names {
        Names(names.into_iter().filter(|(_, endpoints)| !endpoints.is_empty()).collect())
    }

    pub(super) fn begin<'n>(&'n self, system: &'n dyn System) -> Remembering<'n> {
        Remembering { system, former: &self.0, now: RefCell::default() }
    }
}

impl Remembering<'_> {
    /// What is to be remembered of it.
    pub(super) fn into_names(self) -> Names {
        Names(self.now.into_inner())
    }

    fn note(&self, target: &Target, endpoints: &[Endpoint]) {
        if !endpoints.is_empty() {
            self.now.borrow_mut().insert(target.clone(), endpoints.to_vec());
        }
    }
}

impl System for Remembering<'_> {
    fn resolve(&self, dns: &Dns, targets: &[Target]) -> Vec<Result<Vec<Endpoint>, String>> {
        let results = self.system.resolve(dns, targets);
        for (target, result) in targets.iter().zip(&results) {
            if let Ok(endpoints) = result {
                self.note(target, endpoints);
            }
        }
        results
    }

    fn former(&self, target: &Target) -> Vec<Endpoint> {
        let endpoints = self.former.get(target).cloned().unwrap_or_default();
        self.note(target, &endpoints);
        endpoints
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        self.system.read(path)
    }

    fn user(&self, name: &str) -> io::Result<Option<OsUser>> {
        self.system.user(name)
    }

    fn group(&self, name: &str) -> io::Result<Option<OsGroup>> {
        self.system.group(name)
    }

    fn cores(&self) -> usize {
        self.system.cores()
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.system.is_directory(path)
    }
}
