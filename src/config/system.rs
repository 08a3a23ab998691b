//! What a configuration is checked against besides itself: names, users, directories, cores.
//!
//! Behind a trait so that tests need no network and no particular machine.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use super::{OsGroup, OsUser};

/// The machine, as far as the check asks it.
pub trait System {
    /// The addresses behind `host:port`.
    fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>>;
    /// The user of this name, if there is one.
    fn user(&self, name: &str) -> io::Result<Option<OsUser>>;
    /// The group of this name, if there is one.
    fn group(&self, name: &str) -> io::Result<Option<OsGroup>>;
    /// Cores this process may use.
    fn cores(&self) -> usize;
    /// Whether this is a directory.
    fn is_directory(&self, path: &Path) -> bool;
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
}
