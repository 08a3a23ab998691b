//! The process between a master and its successor. It starts the successor, tells its end, and goes when the master lets
//! go of it: the successor then is nobody's child.
//!
//! systemd decides when it is told of a new main process whether that is a child of its own (service_set_main_pid in its
//! source). At a stop it waits for the end of those only, and kills others at once. A process changes its parent only by
//! that one's end, and the former master has to stay. Nothing here knows what is handed over.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use ipc::channel::{Channel, RecvError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::process::{Child, End, Process};
use crate::takeover::SUCCESSOR_VARIABLE;
use crate::upgrade::Program;

/// How long the process in between may take to start the successor. The master's loop stands still meanwhile.
const START: Duration = Duration::from_secs(2);
/// How long it may take to tell an end.
const TELL: Duration = Duration::from_secs(1);

/// What the master asks for: to start the successor with the descriptor that comes along as its standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Order;

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    /// The successor is this process, whose pidfd comes along.
    Started { pid: i32 },
    /// It could not be started, for this reason in the system's numbers.
    Failed { errno: i32 },
    /// It has ended, with one of these.
    Ended { status: Option<i32>, signal: Option<i32> },
}

/// The process in between: runs the program that `command` begins with, as `channel` orders.
pub fn run(channel: OwnedFd, command: &[OsString]) -> ExitCode {
    let mut channel = Channel::from_fd(channel);
    let mut fds = Vec::new();
    if wait_for::<Order>(&mut channel, &mut fds, START).is_err() {
        return ExitCode::FAILURE;
    }
    let started = start(command, fds.pop());
    let (mut child, pidfd) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = channel.send(&Told::Failed { errno: error.raw_os_error().unwrap_or_default() }, &[]);
            return ExitCode::FAILURE;
        }
    };
    let pid = Pid::from_child(&child).as_raw_nonzero().get();
    if channel.send(&Told::Started { pid }, &[pidfd.as_fd()]).is_err() {
        // Nobody is left who could be succeeded; the channel tells the successor.
        return ExitCode::FAILURE;
    }
    loop {
        let mut either = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&channel, PollFlags::IN)];
        if poll(&mut either, None).is_ok() && !either[1].revents().is_empty() {
            return ExitCode::SUCCESS;
        }
        if let Ok(Some(end)) = child.try_wait() {
            let _ = channel.send(&Told::Ended { status: end.code(), signal: end.signal() }, &[]);
            return ExitCode::SUCCESS;
        }
    }
}

/// Starts the successor. Nobody but itself has its end of the channel then.
fn start(command: &[OsString], channel: Option<OwnedFd>) -> io::Result<(std::process::Child, OwnedFd)> {
    let (Some((program, arguments)), Some(channel)) = (command.split_first(), channel) else {
        return Err(rustix::io::Errno::INVAL.into());
    };
    let mut child =
        Command::new(program).args(arguments).env(SUCCESSOR_VARIABLE, "1").stdin(Stdio::from(channel)).spawn()?;
    match rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::NONBLOCK) {
        Ok(pidfd) => Ok((child, pidfd)),
        Err(errno) => {
            // Nobody could look after it.
            let _ = child.kill();
            Err(errno.into())
        }
    }
}

/// A successor, as long as this master looks after it.
#[derive(Debug)]
pub struct Launched {
    pid: Pid,
    pidfd: OwnedFd,
    /// The process in between and the channel to it, until it is let go.
    between: RefCell<Option<(Box<dyn Process>, Channel)>>,
}

impl Launched {
    /// Starts `program` with `channel` as its standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Program, channel: OwnedFd) -> io::Result<Launched> {
        let (mut ours, theirs) = Channel::pair()?;
        ours.send(&Order, &[channel.as_fd()]).map_err(|error| io::Error::other(error.to_string()))?;
        drop(channel);
        let mut command = Command::new("/proc/self/exe");
        command.arg0("master").args(["launch", "--"]).args(program.words()).stdin(Stdio::from(theirs));
        let between = Child::start(&mut command)?;
        drop(command);
        let mut fds = Vec::new();
        let why = match wait_for(&mut ours, &mut fds, START) {
            Ok(Told::Started { pid }) => {
                if let (Some(pid), Some(pidfd)) = (Pid::from_raw(pid), fds.pop()) {
                    return Ok(Launched { pid, pidfd, between: RefCell::new(Some((between, ours))) });
                }
                io::Error::other("no process came of it")
            }
            Ok(Told::Failed { errno }) => io::Error::from_raw_os_error(errno),
            Ok(Told::Ended { .. }) => io::Error::other("it ended before it had begun"),
            Err(error) => error,
        };
        between.end();
        Err(why)
    }
}

impl AsFd for Launched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Process for Launched {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn kill(&self) {
        // Fails only when the process has ended, which the pidfd reports.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn end(&self) {
        self.kill();
        // As long as the kernel needs, and no longer: it is not asked.
        while poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], None).is_err() {}
        let _ = self.reap();
    }

    fn reap(&self) -> Option<End> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&now)), Ok(1..)) {
            return None;
        }
        let Some((between, mut channel)) = self.between.take() else { return Some(End::Unknown) };
        let told = wait_for(&mut channel, &mut Vec::new(), TELL);
        between.end();
        Some(match told {
            Ok(Told::Ended { status: Some(status), .. }) => End::Exited(status),
            Ok(Told::Ended { signal: Some(signal), .. }) => End::Killed(signal),
            Ok(Told::Ended { .. } | Told::Started { .. } | Told::Failed { .. }) | Err(_) => End::Unknown,
        })
    }

    fn let_go(&self) {
        if let Some((between, _)) = self.between.take() {
            between.end();
        }
    }
}

/// Waits for one record, for so long at most.
fn wait_for<M: serde::de::DeserializeOwned>(
    channel: &mut Channel,
    fds: &mut Vec<OwnedFd>,
    timeout: Duration,
) -> io::Result<M> {
    let end = std::time::Instant::now() + timeout;
    loop {
        match channel.recv(fds) {
            Ok(message) => return Ok(message),
            Err(RecvError::Empty) => {}
            Err(error @ (RecvError::Closed | RecvError::DescriptorsLost | RecvError::Malformed(_))) => {
                return Err(io::Error::other(format!("the process that starts it has failed: {error}")));
            }
            Err(RecvError::Io(error)) => return Err(error),
        }
        let Some(left) = end.checked_duration_since(std::time::Instant::now()) else {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        };
        let left =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::new(&channel.as_fd(), PollFlags::IN)], Some(&left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_channel() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let mut theirs = Channel::from_fd(theirs);
        ours.send(&Order, &[theirs.as_fd()]).unwrap();
        let mut fds = Vec::new();
        wait_for::<Order>(&mut theirs, &mut fds, START).unwrap();
        assert_eq!(fds.len(), 1);
        theirs.send(&Told::Ended { status: None, signal: Some(9) }, &[]).unwrap();
        let told: Told = wait_for(&mut ours, &mut fds, START).unwrap();
        assert!(matches!(told, Told::Ended { status: None, signal: Some(9) }));
        drop(theirs);
        assert!(wait_for::<Told>(&mut ours, &mut fds, START).is_err());
    }
}
