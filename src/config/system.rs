//! What a configuration is checked against besides itself: names, users, directories, cores.
//!
//! Behind a trait so that tests need no network and no particular machine.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use super::check::USERS_FILE_MAX;
use super::{OsGroup, OsUser};

/// The machine, as far as the check asks it.
pub trait System {
    /// The addresses behind `host:port`.
    fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>>;
    /// The addresses that `host:port` had when the configuration was last read; none = not known.
    fn former(&self, name: &str) -> Vec<SocketAddr> {
        let _ = name;
        Vec::new()
    }
    /// The user of this name, if there is one.
    fn user(&self, name: &str) -> io::Result<Option<OsUser>>;
    /// The group of this name, if there is one.
    fn group(&self, name: &str) -> io::Result<Option<OsGroup>>;
    /// Cores this process may use.
    fn cores(&self) -> usize;
    /// Whether this is a directory.
    fn is_directory(&self, path: &Path) -> bool;
    /// What is in the file of users at `path`.
    fn read(&self, path: &Path) -> io::Result<String>;
}

/// The machine we run on.
pub struct ThisSystem;

impl System for ThisSystem {
    fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(name.to_socket_addrs()?.collect())
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

    fn read(&self, path: &Path) -> io::Result<String> {
        let mut text = String::new();
        let length = std::fs::File::open(path)?.take(USERS_FILE_MAX + 1).read_to_string(&mut text)?;
        if u64::try_from(length).unwrap_or(u64::MAX) > USERS_FILE_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16 MiB"));
        }
        Ok(text)
    }
}

/// What the names of servers stood for when the configuration was last read: as many as that had.
#[derive(Debug, Clone, Default)]
pub struct Names(HashMap<String, Vec<SocketAddr>>);

/// A machine, by someone who has asked it before.
pub(super) struct Remembering<'n> {
    system: &'n dyn System,
    former: &'n HashMap<String, Vec<SocketAddr>>,
    now: RefCell<HashMap<String, Vec<SocketAddr>>>,
}

impl Names {
    pub(super) fn begin<'n>(&'n self, system: &'n dyn System) -> Remembering<'n> {
        Remembering { system, former: &self.0, now: RefCell::default() }
    }
}

impl Remembering<'_> {
    /// What is to be remembered of it.
    pub(super) fn into_names(self) -> Names {
        Names(self.now.into_inner())
    }

    fn note(&self, name: &str, addresses: &[SocketAddr]) {
        if !addresses.is_empty() {
            self.now.borrow_mut().insert(name.to_owned(), addresses.to_vec());
        }
    }
}

impl System for Remembering<'_> {
    fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.system.resolve(name)?;
        self.note(name, &addresses);
        Ok(addresses)
    }

    fn former(&self, name: &str) -> Vec<SocketAddr> {
        let addresses = self.former.get(name).cloned().unwrap_or_default();
        self.note(name, &addresses);
        addresses
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

    fn read(&self, path: &Path) -> io::Result<String> {
        self.system.read(path)
    }
}
