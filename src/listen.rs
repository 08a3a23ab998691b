//! Listening sockets: bound at the start, closed at the end. Accepts nothing itself.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipc::snapshot::{Address, Listener, ListenerId, Mode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// One listening socket. A Unix listener removes its file when dropped, unless another has taken its place.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Its index in the configuration.
    pub id: ListenerId,
    /// What is spoken on it.
    pub mode: Mode,
    /// Where it really is: with the port that the kernel chose for port 0.
    pub address: Address,
    /// Connections may be waiting: set by the loop, cleared when the queue was found empty.
    pub ready: bool,
    /// It is no longer configured, and is being emptied.
    pub leaving: Option<Leaving>,
    /// The service manager has it too, and listens when this master does not.
    pub lent: bool,
    file: Option<SocketFile>,
}

/// When a listener that is no longer configured is closed: when its queue is empty, but neither before handshakes
/// under way can have come to their end nor long after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    not_before: Instant,
    at_last: Instant,
}

impl Leaving {
    /// When it must be looked at next.
    pub fn next(&self, now: Instant) -> Instant {
        if now < self.not_before { self.not_before } else { self.at_last }
    }
}

/// How long a client may take to complete a handshake that it has begun with a listener about to be closed: the time
/// of a round trip to almost anywhere.
const HANDSHAKE: Duration = Duration::from_millis(300);

/// How long the queue of a listener about to be closed may take to be emptied.
const EMPTIED: Duration = Duration::from_secs(5);

/// A socket in the file system, identified by its inode; removed when dropped, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The one now at `path`.
    ///
    /// # Errors
    /// When there is nothing, or it cannot be looked at.
    pub fn at(path: &Path) -> Result<SocketFile, Errno> {
        let stat = rustix::fs::lstat(path)?;
        Ok(SocketFile { path: path.to_owned(), device: stat.st_dev, inode: stat.st_ino })
    }
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still there, and no other in its place.
    pub fn is_there(&self) -> bool {
        self.is(&self.path)
    }

    fn is(&self, path: &Path) -> bool {
        rustix::fs::lstat(path).is_ok_and(|now| (now.st_dev, now.st_ino) == (self.device, self.inode))
    }

    /// Whether `fd` is this file, opened.
    pub fn is_open_as(&self, fd: impl AsFd) -> bool {
        rustix::fs::fstat(fd).is_ok_and(|now| (now.st_dev, now.st_ino) == (self.device, self.inode))
    }

    /// Whether it is at `path` now, which then is where it is.
    pub fn has_moved_to(&mut self, path: PathBuf) -> bool {
        let moved = self.is(&path);
        if moved {
            self.path = path;
        }
        moved
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Where these listen, those that have an address that others connect to over IP.
pub fn addresses<'s>(sockets: impl IntoIterator<Item = &'s Socket>) -> Vec<SocketAddr> {
    let inet = |socket: &Socket| match &socket.address {
        Address::Inet(address) => Some(*address),
        Address::Unix(_) => None,
    };
    sockets.into_iter().filter_map(inet).collect()
}

/// Binds `listener`. `permissions` are those of a Unix socket's file, where set.
///
/// # Errors
/// What went wrong, in words for the operator, the address included.
pub fn bind(id: ListenerId, listener: &Listener, permissions: Option<u32>) -> Result<Socket, String> {
    bind_beside(id, listener, permissions, &[])
}

/// As [`bind`], where `leaving` are listeners that this one follows: the wildcard address of one does not keep out
/// a single address of the other, nor the other way round, although both listen for a moment.
///
/// # Errors
/// As [`bind`].
pub fn bind_beside(
    id: ListenerId,
    listener: &Listener,
    permissions: Option<u32>,
    leaving: &[&Socket],
) -> Result<Socket, String> {
    let port = |address: &Address| match address {
        Address::Inet(address) => Some(address.port()).filter(|&port| port != 0),
        Address::Unix(_) => None,
    };
    let wanted = port(&listener.bind);
    let beside: Vec<&&Socket> =
        leaving.iter().filter(|former| wanted.is_some() && port(&former.address) == wanted).collect();
    // Both must allow it. Afterwards neither does, so that no other process can join them.
    let share = |share| beside.iter().try_for_each(|former| sockopt::set_socket_reuseport(former, share));
    let failed = |errno: Errno| format!("cannot listen on {}: {}", listener.bind, io::Error::from(errno));
    share(true).map_err(failed)?;
    let bound = bind_alone(id, listener, permissions, !beside.is_empty());
    share(false).map_err(failed)?;
    bound
}

fn bind_alone(id: ListenerId, listener: &Listener, permissions: Option<u32>, share: bool) -> Result<Socket, String> {
    let failed = |errno: Errno| format!("cannot listen on {}: {}", listener.bind, explain(&listener.bind, errno));
    match &listener.bind {
        Address::Inet(address) => {
            let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            let fd = socket(family).map_err(failed)?;
            let bound = (|| {
                sockopt::set_socket_reuseaddr(&fd, true)?;
                sockopt::set_socket_reuseport(&fd, share)?;
                if address.is_ipv6() {
                    // `[::]` and `0.0.0.0` are two addresses, whatever net.ipv6.bindv6only says.
                    sockopt::set_ipv6_v6only(&fd, true)?;
                }
                // Accepted sockets inherit both. Urgent bytes read in line keep the kernel's count of consumed
                // bytes equal to the worker's.
                sockopt::set_tcp_nodelay(&fd, true)?;
                sockopt::set_socket_oobinline(&fd, true)?;
                rustix::net::bind(&fd, address)?;
                rustix::net::listen(&fd, backlog(listener))?;
                sockopt::set_socket_reuseport(&fd, false)?;
                rustix::net::getsockname(&fd)
            })()
            .map_err(failed)?;
            let address = SocketAddr::try_from(bound).map_err(failed)?;
            Ok(Socket {
                fd,
                id,
                mode: listener.mode,
                address: Address::Inet(address),
                ready: true,
                leaving: None,
                lent: false,
                file: None,
            })
        }
        Address::Unix(path) => {
            let name = SocketAddrUnix::new(path).map_err(failed)?;
            remove_stale(path, &name).map_err(|reason| format!("cannot listen on {}: {reason}", listener.bind))?;
            let fd = socket(AddressFamily::UNIX).map_err(failed)?;
            let bound = (|| {
                rustix::net::bind(&fd, &name)?;
                let file = SocketFile::at(path)?;
                if let Some(bits) = permissions {
                    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(bits))?;
                }
                rustix::net::listen(&fd, backlog(listener))?;
                Ok(file)
            })()
            .map_err(failed)?;
            let address = listener.bind.clone();
            let (mode, file) = (listener.mode, Some(bound));
            Ok(Socket { fd, id, mode, address, ready: true, leaving: None, lent: false, file })
        }
    }
}

impl Socket {
    /// Goes on as `listener`, `id`: with its queue's length and its file's `permissions`.
    ///
    /// # Errors
    /// What could not be changed; it listens all the same.
    pub fn adopt(&mut self, id: ListenerId, listener: &Listener, permissions: Option<u32>) -> Result<(), String> {
        (self.id, self.mode, self.leaving, self.ready) = (id, listener.mode, None, true);
        let failed = |errno: Errno| format!("{}: {}", self.address, io::Error::from(errno));
        if matches!(self.address, Address::Inet(_)) {
            ipc::syn_filter::open_door(&self.fd).map_err(|error| format!("{}: {error}", self.address))?;
        }
        rustix::net::listen(&self.fd, backlog(listener)).map_err(failed)?;
        if let (Address::Unix(path), Some(bits)) = (&self.address, permissions) {
            rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(bits)).map_err(failed)?;
        }
        Ok(())
    }

    /// Ends listening for every process of ours that has a copy of the socket, and closes it.
    pub fn end(self) {
        if !self.lent {
            let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
        }
    }

    /// Leaves its file where it is: somebody else listens there.
    pub fn keep_file(&mut self) {
        if let Some(file) = self.file.take() {
            std::mem::forget(file);
        }
    }

    /// One that another process has bound for `listener`; `lent` by the service manager, or one that is ours now.
    ///
    /// # Errors
    /// When it is no listening socket, or not where it should be.
    pub fn inherit(
        fd: OwnedFd,
        id: ListenerId,
        listener: &Listener,
        permissions: Option<u32>,
        lent: bool,
    ) -> Result<Socket, String> {
        let failed = |errno: Errno| format!("{}: {}", listener.bind, io::Error::from(errno));
        let is_listening = sockopt::socket_acceptconn(&fd).map_err(failed)?
            && sockopt::socket_type(&fd).map_err(failed)? == SocketType::STREAM
            && !is_ended(&fd).map_err(failed)?;
        if !is_listening {
            return Err(format!("{}: what was left for it is no listening socket", listener.bind));
        }
        let bound = bound_to(&fd).map_err(failed)?;
        let is_there = match (&listener.bind, &bound) {
            (Address::Inet(wanted), Some(Address::Inet(bound))) if wanted.port() == 0 => wanted.ip() == bound.ip(),
            (wanted, Some(bound)) => wanted == bound,
            (_, None) => false,
        };
        let Some(address) = bound.filter(|_| is_there) else {
            return Err(format!("{}: what was left for it listens elsewhere", listener.bind));
        };
        rustix::io::ioctl_fionbio(&fd, true).map_err(failed)?;
        let file = match &address {
            Address::Unix(path) if !lent => Some(SocketFile::at(path).map_err(failed)?),
            Address::Unix(_) => None,
            Address::Inet(_) => {
                // Its maker may have been another program.
                sockopt::set_tcp_nodelay(&fd, true).map_err(failed)?;
                sockopt::set_socket_oobinline(&fd, true).map_err(failed)?;
                None
            }
        };
        let mut socket = Socket { fd, id, mode: listener.mode, address, ready: true, leaving: None, lent, file };
        socket.adopt(id, listener, permissions.filter(|_| !lent))?;
        Ok(socket)
    }

    /// Lets nobody new in. Who is in the queue already is still accepted; see [`Leaving`].
    pub fn leave(&mut self, now: Instant) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(Leaving { not_before: now + HANDSHAKE, at_last: now + EMPTIED });
        self.ready = true;
        // Nobody finds a Unix socket without its file.
        self.file = None;
        if self.lent {
            return;
        }
        if matches!(self.address, Address::Inet(_))
            && let Err(failed) = ipc::syn_filter::close_door(&self.fd)
        {
            log::debug!("{}: {failed}; its queue is kept short instead", self.address);
            let _ = rustix::net::listen(&self.fd, 0);
        }
    }

    /// Whether it is to be closed now: whoever was in the queue is accepted, or has waited too long.
    pub fn is_left(&mut self, now: Instant) -> bool {
        let Some(Leaving { not_before, at_last }) = self.leaving else { return false };
        if now < not_before || self.ready && now < at_last {
            return false;
        }
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let anyone = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1);
        if anyone && now < at_last {
            self.ready = true;
            return false;
        }
        if anyone {
            log::warn!("{}: connections that waited there are refused: nobody had room for them", self.address);
        }
        true
    }

    /// Whether another configuration can take it up again.
    pub fn can_stay(&self) -> bool {
        self.leaving.is_none() || matches!(self.address, Address::Inet(_))
    }
}

/// Where a socket is bound; `None` where no configuration could have it bound.
///
/// # Errors
/// When the kernel does not say.
pub fn bound_to(fd: &OwnedFd) -> Result<Option<Address>, Errno> {
    let name = rustix::net::getsockname(fd)?;
    if let Ok(address) = std::net::SocketAddr::try_from(name.clone()) {
        return Ok(Some(Address::Inet(address)));
    }
    let path = SocketAddrUnix::try_from(name).ok();
    let path = path.as_ref().and_then(SocketAddrUnix::path_bytes).map(|bytes| PathBuf::from(OsStr::from_bytes(bytes)));
    Ok(path.map(Address::Unix))
}

fn socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn backlog(listener: &Listener) -> i32 {
    i32::try_from(listener.backlog).unwrap_or(i32::MAX)
}

fn explain(address: &Address, errno: Errno) -> String {
    match errno {
        Errno::ADDRINUSE => "another process is using this address; stop it, or choose another address with \
                             `--listen` or `bind` in the configuration file"
            .to_owned(),
        Errno::ACCESS if matches!(address, Address::Inet(_)) => {
            "permission denied; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE, or choose another \
             address with `--listen` or `bind` in the configuration file"
                .to_owned()
        }
        Errno::ADDRNOTAVAIL => "this host has no such address; choose another with `--listen` or `bind` in the \
                                configuration file"
            .to_owned(),
        Errno::ACCESS | Errno::PERM | Errno::ROFS if matches!(address, Address::Unix(_)) => format!(
            "{}; the user that the master runs as must be able to write to the directory, or choose another path",
            io::Error::from(errno)
        ),
        Errno::NOENT => format!("{}; make the directory, or choose another path", io::Error::from(errno)),
        other => io::Error::from(other).to_string(),
    }
}

/// Whether some process has `address`, as far as can be told without taking it.
pub fn is_taken(address: &Address) -> bool {
    match address {
        Address::Inet(address) => {
            let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            let tried = socket(family).and_then(|fd| {
                sockopt::set_socket_reuseaddr(&fd, true)?;
                if address.is_ipv6() {
                    sockopt::set_ipv6_v6only(&fd, true)?;
                }
                rustix::net::bind(&fd, address)
            });
            tried == Err(Errno::ADDRINUSE)
        }
        Address::Unix(path) => {
            let tried = SocketAddrUnix::new(path).and_then(|name| {
                let fd = socket(AddressFamily::UNIX)?;
                rustix::net::connect(&fd, &name)
            });
            matches!(tried, Ok(()) | Err(Errno::AGAIN))
        }
    }
}

/// Removes a socket that nobody listens on any more. Everything else at `path` stays and is an error.
fn remove_stale(path: &Path, name: &SocketAddrUnix) -> Result<(), String> {
    let stat = match rustix::fs::lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(io::Error::from(errno).to_string()),
    };
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Socket {
        return Err("there is a file that is not a socket; move it away or choose another path".to_owned());
    }
    let probe = socket(AddressFamily::UNIX).map_err(|errno| io::Error::from(errno).to_string())?;
    match rustix::net::connect(&probe, name) {
        Err(Errno::CONNREFUSED) => {
            std::fs::remove_file(path).map_err(|error| format!("removing the stale socket: {error}"))
        }
        Err(Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN) => Err(explain(&Address::Unix(path.to_owned()), Errno::ADDRINUSE)),
        Err(errno) => Err(format!("there is a socket that cannot be tried: {}", io::Error::from(errno))),
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a master that stopped has ended it, and was killed before its workers were gone. A Unix socket that is shut down
/// still says of itself that it listens, and refuses everybody.
fn is_ended(fd: &OwnedFd) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(fd, PollFlags::RDHUP)];
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
    Ok(fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::snapshot::{ProxyProtocol, Timeouts};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn listener(bind: Address) -> Listener {
        let timeouts = Timeouts {
            header_ms: 1,
            idle_ms: 1,
            body_ms: 1,
            write_ms: 1,
            connect_ms: 1,
            response_ms: 1,
            server_ms: 1,
            tunnel_ms: 1,
        };
        let proxy_protocol = ProxyProtocol::default();
        Listener {
            bind,
            mode: Mode::Http,
            to: None,
            backlog: 16,
            timeouts,
            proxy_protocol,
            abort_on_close: false,
            removed: false,
            forward: None,
        }
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("pointsman-{name}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Scratch(path)
        }

        fn listener(&self) -> Listener {
            listener(Address::Unix(self.0.clone()))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn port_0_becomes_a_real_port_and_a_second_bind_names_the_settings() {
        let first = bind(0, &listener(Address::Inet("127.0.0.1:0".parse().unwrap())), None).unwrap();
        let Address::Inet(address) = first.address.clone() else { unreachable!() };
        assert_ne!(address.port(), 0);
        let error = bind(1, &listener(first.address.clone()), None).unwrap_err();
        assert!(
            error.contains(&address.to_string()) && error.contains("--listen") && error.contains("`bind`"),
            "{error}"
        );
    }

    #[test]
    fn accepted_sockets_inherit_nodelay_and_inline_urgent_bytes() {
        let socket = bind(0, &listener(Address::Inet("127.0.0.1:0".parse().unwrap())), None).unwrap();
        let Address::Inet(address) = socket.address.clone() else { unreachable!() };
        let _client = std::net::TcpStream::connect(address).unwrap();
        let accepted = rustix::net::accept(&socket).unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap() && sockopt::socket_oobinline(&accepted).unwrap());
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_removed_at_the_end() {
        let scratch = Scratch::new("stale");
        drop(UnixListener::bind(&scratch.0).unwrap());
        assert!(scratch.0.exists());
        let socket = bind(0, &scratch.listener(), Some(0o600)).unwrap();
        assert!(UnixStream::connect(&scratch.0).is_ok());
        assert_eq!(rustix::fs::lstat(&scratch.0).unwrap().st_mode & 0o777, 0o600);
        drop(socket);
        assert!(!scratch.0.exists());
    }

    #[test]
    fn a_live_unix_socket_and_a_plain_file_stay() {
        let scratch = Scratch::new("live");
        let live = UnixListener::bind(&scratch.0).unwrap();
        assert!(bind(0, &scratch.listener(), None).unwrap_err().contains("another process"));
        assert!(UnixStream::connect(&scratch.0).is_ok());
        drop(live);
        std::fs::remove_file(&scratch.0).unwrap();
        std::fs::write(&scratch.0, "precious").unwrap();
        assert!(bind(0, &scratch.listener(), None).unwrap_err().contains("not a socket"));
        assert_eq!(std::fs::read(&scratch.0).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_took_our_place_stays() {
        let scratch = Scratch::new("replaced");
        let socket = bind(0, &scratch.listener(), None).unwrap();
        // Made before ours is removed, so that it cannot get the same inode number.
        let other = Scratch::new("replacing");
        let _successor = UnixListener::bind(&other.0).unwrap();
        std::fs::rename(&other.0, &scratch.0).unwrap();
        drop(socket);
        assert!(scratch.0.exists());
    }
}
