//! The names beside a control socket's own place: what has the place is the newest master's, and beside it are the
//! sockets that workers of former masters still wait behind, and that of a master which is not yet ready.
//!
//! The names are in the file system, and not in any process: so whoever comes next finds everybody who waits, however
//! many masters were killed in between. A name goes once nobody listens behind it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use log::debug;
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::{new_socket, place};
use crate::listen::SocketFile;

/// Sockets beside one place at most. Each master that was killed leaves one, as long as a worker of it waits.
pub const MOST: u32 = 64;

/// Between a place's name and the number of a name beside it.
const MARK: &str = ".beside-";

/// A socket by which somebody can be found.
#[derive(Debug, Clone)]
pub struct Found {
    /// It, found again whatever its name becomes.
    pub socket: Rc<OwnedFd>,
    /// It is not in its place but beside it.
    pub beside: bool,
}

/// The sockets in a place and beside it, as they were at one time. As long as this is kept no other can be taken for
/// one of them.
#[derive(Debug)]
pub struct Sockets {
    place: PathBuf,
    found: Vec<Found>,
}

impl Sockets {
    /// Those of this user in the place `control`, and beside it.
    pub fn of(control: &Path) -> Sockets {
        let beside = names(control).into_iter().map(|path| (path, true));
        let found = [(control.to_owned(), false)].into_iter().chain(beside).filter_map(|(path, beside)| {
            let socket = Rc::new(open(&path)?);
            Some(Found { socket, beside })
        });
        Sockets { place: control.to_owned(), found: found.collect() }
    }

    /// The place.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// What was there.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Forgets `file`.
    pub fn leave_out(&mut self, file: &SocketFile) {
        self.found.retain(|found| !file.is_open_as(&found.socket));
    }

    /// Whether somebody listens in the place or beside it now who was not there then. The directory is locked.
    pub fn has_newcomer(&self) -> bool {
        let is_known = |found: &Found| self.found.iter().any(|known| is_same(&known.socket, &found.socket));
        let listens = |found: &Found| matches!(connect(&found.socket), Ok(_) | Err(Errno::AGAIN));
        Sockets::of(&self.place).found.iter().any(|found| !is_known(found) && listens(found))
    }
}

/// The socket at `path`; `None` when there is none, or it is another user's.
fn open(path: &Path) -> Option<OwnedFd> {
    let socket = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&socket).ok()?;
    let is_own = stat.st_uid == rustix::process::geteuid().as_raw();
    (FileType::from_raw_mode(stat.st_mode) == FileType::Socket && is_own).then_some(socket)
}

/// Whether both are the same file.
pub fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let inode = |stat: Stat| (stat.st_dev, stat.st_ino);
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => inode(one) == inode(other),
        (Ok(_) | Err(_), _) => false,
    }
}

/// The names beside `control` that sockets have, in no order.
pub fn names(control: &Path) -> Vec<PathBuf> {
    let is_socket = |path: &PathBuf| {
        rustix::fs::lstat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
    };
    (1..=MOST).map(|number| name(control, number)).filter(is_socket).collect()
}

fn name(control: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(control);
    name.push(format!("{MARK}{number}"));
    name.into()
}

/// The place that `path` is a name beside of, if it is one.
pub fn place_of(path: &Path) -> Option<PathBuf> {
    let text = path.file_name()?.to_str()?;
    let (place, number) = text.rsplit_once(MARK)?;
    number.parse::<u32>().is_ok().then(|| path.with_file_name(place))
}

/// A name that is free.
fn free(control: &Path) -> Result<PathBuf, String> {
    (1..=MOST)
        .map(|number| name(control, number))
        .find(|path| rustix::fs::lstat(path).err() == Some(Errno::NOENT))
        .ok_or_else(|| {
            format!(
                "there are {MOST} sockets beside {} already, of masters that were killed; end their workers",
                control.display()
            )
        })
}

/// Binds `socket` to a free name beside `control`, whose directory is locked.
///
/// # Errors
/// When there is none, or the kernel refuses, in words for the operator.
pub fn bind(socket: &OwnedFd, control: &Path) -> Result<PathBuf, String> {
    let path = free(control)?;
    let failed = |errno: Errno| format!("{}: {}", path.display(), io::Error::from(errno));
    match SocketAddrUnix::new(&path) {
        Ok(address) => rustix::net::bind(socket, &address).map_err(failed)?,
        // Longer by a few bytes than a place may be: reached by its directory.
        Err(_) => {
            let parent = control.parent().unwrap_or(Path::new("/"));
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let directory = rustix::fs::open(parent, flags, rustix::fs::Mode::empty()).map_err(failed)?;
            let through = Path::new("/proc/self/fd")
                .join(directory.as_raw_fd().to_string())
                .join(path.file_name().unwrap_or_default());
            let address = SocketAddrUnix::new(&through).map_err(failed)?;
            rustix::net::bind(socket, &address).map_err(failed)?;
        }
    }
    Ok(path)
}

/// Puts what is at `from` into the place `control`; who is behind the socket that had it is found beside it from then
/// on. At every instant both have a name. The place has a socket all the time if it had one, but for an instant on file
/// systems that cannot exchange two names: if this master is killed in it, both are beside the place, where the next one
/// looks, too. The directory is locked.
///
/// # Errors
/// When the kernel refuses, or something that is no socket has the place, in words for the operator.
pub fn take_place(from: &Path, control: &Path) -> Result<(), String> {
    let failed = |errno: Errno| format!("cannot take the place {}: {}", control.display(), io::Error::from(errno));
    match place::probe(control) {
        place::Found::Nothing | place::Found::Dead => rustix::fs::rename(from, control).map_err(failed),
        place::Found::Alive => match rustix::fs::renameat_with(CWD, from, CWD, control, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(()),
            // Not every file system can exchange two names.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::rename(control, free(control)?).map_err(failed)?;
                rustix::fs::rename(from, control).map_err(failed)
            }
            Err(errno) => Err(failed(errno)),
        },
        place::Found::Other(why) => Err(format!("cannot take the place {}: {why}", control.display())),
    }
}

/// Removes `socket`'s name beside `control`, where nobody listens behind it any more. It stays where another has the
/// directory locked: the next master removes it.
pub fn clear(socket: &OwnedFd, control: &Path) {
    let Ok(_lock) = place::try_lock(control.parent().unwrap_or(Path::new("/"))) else { return };
    let Ok(stat) = rustix::fs::fstat(socket) else { return };
    // It may have been about to listen.
    if connect(socket).err() != Some(Errno::CONNREFUSED) {
        return;
    }
    for path in names(control) {
        if rustix::fs::lstat(&path).is_ok_and(|now| (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino)) {
            debug!("nobody is behind {} any more", path.display());
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Connects to whoever listens on `socket`, opened by its path, whatever its name is now.
///
/// # Errors
/// Whatever the kernel says.
pub fn connect(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    let fd = new_socket()?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd()))?)?;
    Ok(fd)
}
