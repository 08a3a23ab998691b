//! Child processes of the master: workers, and its successor. How one is started, seen to end, and ended.
//!
//! Behind two traits, so that tests can put something that they drive step by step in a process's place. Nothing
//! here knows what a child is for.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use ipc::write_now::own_terminal;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::launch::Launched;
use crate::signals;
use crate::supervise::Equipment;
use crate::upgrade::Program;

/// One process.
pub trait Process: fmt::Debug + AsFd {
    /// Its number.
    fn pid(&self) -> Pid;

    /// Kills it at once. Its end shows at its descriptor, which is readable then.
    fn kill(&self);

    /// The same, and waits for its end.
    fn end(&self);

    /// How it ended, if it has; it is gone from the system then.
    fn reap(&self) -> Option<End>;

    /// From now on it is nobody's child, so that whoever adopts such processes may look after it; how it ends is not
    /// known any more.
    fn let_go(&self);
}

/// Starts processes. Each gets one end of a channel as its standard input.
pub trait Spawn {
    /// Starts worker `index`.
    ///
    /// # Errors
    /// When no process can be had.
    fn worker(&self, index: u16, channel: OwnedFd, equipment: &Equipment<'_>) -> io::Result<Box<dyn Process>>;

    /// Starts `program` as the successor of this master.
    ///
    /// # Errors
    /// When it cannot be started.
    fn successor(&self, program: &Program, channel: OwnedFd) -> io::Result<Box<dyn Process>>;
}

/// Real processes.
#[derive(Debug)]
pub struct System;

impl Spawn for System {
    fn worker(&self, index: u16, channel: OwnedFd, equipment: &Equipment<'_>) -> io::Result<Box<dyn Process>> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("master").arg("worker").arg(index.to_string()).stdin(Stdio::from(channel));
        // A worker that runs as another user could not open it.
        if let Some(terminal) = own_terminal(rustix::stdio::stderr()) {
            command.stderr(Stdio::from(terminal));
        }
        if let Some(level) = equipment.log_level {
            command.env(crate::LOG_LEVEL_VARIABLE, level);
        }
        if let Some(gid) = equipment.made.identity.gid {
            command.gid(gid);
        }
        if let Some(uid) = equipment.made.identity.uid {
            command.uid(uid);
        }
        Child::start(&mut command)
    }

    fn successor(&self, program: &Program, channel: OwnedFd) -> io::Result<Box<dyn Process>> {
        Ok(Box::new(Launched::start(program, channel)?))
    }
}

/// A child of this process, with a pidfd, by which its end shows.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Box<dyn Process>> {
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        // It cannot be reaped by anybody else meanwhile, so its number is still its own.
        match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => Ok(Box::new(Child { pid, pidfd })),
            Err(errno) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(errno.into())
            }
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Process for Child {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn kill(&self) {
        // Fails only when the process has ended, which the pidfd reports.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn end(&self) {
        self.kill();
        wait(self.as_fd());
    }

    fn reap(&self) -> Option<End> {
        reap(self.as_fd())
    }

    /// A child stays one until it or its parent ends.
    fn let_go(&self) {}
}

/// How the process behind `pidfd`, a child of ours, ended, if it has.
pub fn reap(pidfd: BorrowedFd<'_>) -> Option<End> {
    match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Exited(code),
            (None, Some(signal)) => End::Killed(signal),
            (None, None) => End::Unknown,
        }),
        Ok(None) | Err(rustix::io::Errno::INTR) => None,
        // Not a child of ours any more: nothing can be learnt, but it must not be waited for.
        Err(_) => Some(End::Unknown),
    }
}

/// Waits for the end of a child that has been killed, which takes no longer than the kernel needs.
pub fn wait(pidfd: BorrowedFd<'_>) {
    // A pidfd that does not block cannot be waited for with `waitid` alone.
    while reap(pidfd).is_none() {
        let _ = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None);
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Nobody knows.
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            End::Exited(code) => write!(f, "exited with status {code}"),
            End::Killed(signal) => write!(f, "killed by {}", signals::name(signal)),
            End::Unknown => f.write_str("ended in an unknown way"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(process: &dyn Process) -> End {
        let mut poll = [PollFd::new(&process, PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut poll, Some(&timeout)).unwrap(), 1);
        process.reap().unwrap()
    }

    #[test]
    fn a_childs_end_is_told_with_signal_or_status() {
        for (script, wanted) in [("exit 3", "exited with status 3"), ("kill -KILL $$", "killed by SIGKILL")] {
            let child = Child::start(Command::new("/bin/sh").args(["-c", script])).unwrap();
            assert_eq!(ended(&*child).to_string(), wanted);
            assert_eq!(child.reap(), Some(End::Unknown));
        }
    }

    #[test]
    fn a_child_that_is_ended_is_gone() {
        let child = Child::start(Command::new("/bin/sh").args(["-c", "read -r line"]).stdin(Stdio::piped())).unwrap();
        child.end();
        assert_eq!(child.reap(), Some(End::Unknown));
    }
}
