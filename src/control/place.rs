//! Where control sockets are, and who is behind one.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::{beside, new_socket};

/// How long what a master remembers is kept when it is gone with all its workers.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long another master may have the directory locked.
const LOCKED: Duration = Duration::from_secs(1);

/// The directory of all control sockets of this user that have no place of their own.
pub fn directory() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return "/run/pointsman".into();
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    runtime
        .map_or_else(|| PathBuf::from(format!("/tmp/pointsman-{}", user.as_raw())), |runtime| runtime.join("pointsman"))
}

/// Makes it if it is not there.
///
/// # Errors
/// When it cannot be made, or somebody else could put something there.
pub fn make_directory(directory: &Path) -> Result<(), String> {
    let shown = directory.display();
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(format!("cannot make the directory {shown} for the control socket: {error}")),
    }
    is_ours(directory)
}

/// Whether nobody but this user can put something into `directory`.
///
/// # Errors
/// When somebody can, or it is not there.
pub fn is_ours(directory: &Path) -> Result<(), String> {
    let shown = directory.display();
    // Not through a symbolic link, which in /tmp could be anybody's.
    let stat = rustix::fs::lstat(directory).map_err(|errno| format!("{shown}: {}", io::Error::from(errno)))?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if !is_directory || stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
        return Err(format!("{shown} is not a directory that only this user can write to"));
    }
    Ok(())
}

/// The name of the socket of the master with this configuration file; without a file, that of this process.
pub fn name(config: Option<&Path>) -> String {
    let Some(config) = config else { return format!("pid-{}.sock", std::process::id()) };
    let path = absolute(config);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let stem: String = stem.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(24).collect();
    // FNV-1a: the same in every build.
    let hash = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{stem}-{hash:016x}.sock")
}

/// The path from the root. A symbolic link at its end stays one: it may point elsewhere by the time of a reload.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        (Some(_) | None, _) => path,
    }
}

/// Keeps other masters of this user out of `directory` as long as it is held. Waits, which only a master that does not
/// serve yet may do.
///
/// # Errors
/// When the directory is not there, or stays locked, in words for the operator.
pub fn lock(directory: &Path) -> Result<OwnedFd, String> {
    let end = Instant::now() + LOCKED;
    loop {
        match try_lock(directory) {
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            locked => return locked.map_err(|errno| cannot_lock(directory, errno)),
        }
    }
}

/// Why a directory cannot be locked, in words for the operator.
pub fn cannot_lock(directory: &Path, errno: Errno) -> String {
    let file = lock_file(directory);
    format!("cannot lock {}: {}", file.display(), io::Error::from(errno))
}

/// What is locked: no directory, which anybody can lock who may look into it.
fn lock_file(directory: &Path) -> PathBuf {
    directory.join(format!(".pointsman-{}.lock", rustix::process::geteuid().as_raw()))
}

/// As [`lock`], without waiting.
///
/// # Errors
/// When the directory is not there, or is locked; `PERM` when others could lock it for as long as they like.
pub fn try_lock(directory: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(lock_file(directory), flags, Mode::from_raw_mode(0o600))?;
    let stat = rustix::fs::fstat(&fd)?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Err(Errno::PERM);
    }
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
    Ok(fd)
}

/// What is at the place of a control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// The socket of a master that is no more.
    Dead,
    /// Somebody listens.
    Alive,
    /// Something that cannot be replaced.
    Other(String),
}

/// Looks what is at `path`.
pub fn probe(path: &Path) -> Found {
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Found::Nothing,
        Err(errno) => return Found::Other(io::Error::from(errno).to_string()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Found::Other(
                "there is a file that is not a socket; move it away or choose another path".to_owned(),
            );
        }
        Ok(_) => {}
    }
    match connect(path) {
        Ok(_) | Err(Errno::AGAIN) => Found::Alive,
        Err(Errno::CONNREFUSED) => Found::Dead,
        Err(Errno::NOENT) => Found::Nothing,
        Err(Errno::PROTOTYPE) => Found::Other("there is another program's socket; choose another path".to_owned()),
        Err(errno) => Found::Other(format!("there is a socket that cannot be tried: {}", io::Error::from(errno))),
    }
}

/// Connects to the master behind `path`.
///
/// # Errors
/// Whatever the kernel says.
pub fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let fd = new_socket()?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

/// Removes what masters that were killed left in `directory` and nobody needs. Nothing is lost when that fails.
pub fn tidy(directory: &Path) {
    let Ok(_lock) = lock(directory) else { return };
    for path in entries(directory).filter(|path| is_place(path) || beside::place_of(path).is_some()).take(1000) {
        if probe(&path) == Found::Dead {
            let _ = std::fs::remove_file(path);
        }
    }
    let entries = std::fs::read_dir(directory).into_iter().flatten().take(1000);
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        // Meant for the next master with that configuration, which may never come.
        let control = ipc::remembered::control(&path);
        if control.is_some_and(|control| matches!(probe(&control), Found::Dead | Found::Nothing)) && is_old(&path) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn is_old(path: &Path) -> bool {
    let age = rustix::fs::lstat(path).ok().and_then(|stat| {
        let written = Duration::from_secs(u64::try_from(stat.st_mtime).ok()?);
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH.checked_add(written)?).ok()
    });
    age.is_some_and(|age| age > REMEMBERED)
}

/// Everything in `directory` that could be a control socket in its place, at most a thousand.
pub fn sockets(directory: &Path) -> Vec<PathBuf> {
    entries(directory).filter(|path| is_place(path)).take(1000).collect()
}

/// As [`sockets`], with the places that nothing has, but that something is beside.
pub fn places(directory: &Path) -> Vec<PathBuf> {
    let place = |path: PathBuf| if is_place(&path) { Some(path) } else { beside::place_of(&path) };
    let mut places: Vec<PathBuf> = entries(directory).filter_map(place).filter(|path| is_place(path)).collect();
    places.sort();
    places.dedup();
    places.truncate(1000);
    places
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    // A bound for directories that others fill.
    std::fs::read_dir(directory).into_iter().flatten().take(100_000).filter_map(|entry| Some(entry.ok()?.path()))
}

fn is_place(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "sock")
}
