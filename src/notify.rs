//! What systemd wants to know of a service of `Type=notify` or `notify-reload` (sd_notify(3)). Without systemd it does
//! nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use log::warn;

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everything runs, with the configuration last read.
    Ready,
    /// The configuration is being read again.
    Reloading,
    /// The end has begun.
    Stopping,
    /// From now on the service is this process.
    MainPid(u32),
}

impl State {
    fn text(self) -> String {
        match self {
            State::Ready => "READY=1\n".to_owned(),
            State::Reloading => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                format!("RELOADING=1\nMONOTONIC_USEC={}{:06}\n", now.tv_sec, now.tv_nsec / 1000)
            }
            State::Stopping => "STOPPING=1\n".to_owned(),
            State::MainPid(pid) => format!("MAINPID={pid}\n"),
        }
    }
}

/// Tells it, if there is somebody to be told. Never waits.
pub fn tell(state: State) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    let told = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(state.text().as_bytes(), &address)
    });
    if let Err(error) = told {
        warn!(
            "cannot tell the service manager {state:?} at NOTIFY_SOCKET={}: {error}; it may take this for a failed start",
            path.display()
        );
    }
}
