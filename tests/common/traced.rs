//! Another process's system calls, seen and changed with `ptrace(2)`: it is killed at one of them, or one of them fails.

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The numbers of system calls on this architecture.
pub const SENDMSG: i64 = 46;
/// See [`SENDMSG`].
pub const RECVFROM: i64 = 45;
/// See [`SENDMSG`].
pub const RECVMSG: i64 = 47;
/// See [`SENDMSG`].
pub const SHUTDOWN: i64 = 48;
/// See [`SENDMSG`].
pub const GETSOCKOPT: i64 = 55;
/// See [`SENDMSG`].
pub const EPOLL_CTL: i64 = 233;

/// What the process is stopped at: a system call that begins or, with its result, one that has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    Begins(i64),
    Ended(i64, i64),
}

#[cfg(target_arch = "x86_64")]
fn call(pid: Pid) -> Call {
    let registers = ptrace::getregs(pid).unwrap();
    let (number, result) = (registers.orig_rax.cast_signed(), registers.rax.cast_signed());
    if result == missing() { Call::Begins(number) } else { Call::Ended(number, result) }
}

fn missing() -> i64 {
    -i64::from(nix::errno::Errno::ENOSYS as i32)
}

/// Lets the process run to its next system call's beginning or end.
fn step(pid: Pid) {
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal).unwrap();
        let status = waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        if matches!(status, WaitStatus::PtraceSyscall(_)) {
            return;
        }
        signal = if let WaitStatus::Stopped(_, signal) = status { Some(signal) } else { None };
    }
}

/// Traces the process; it stands still.
fn seize(pid: Pid) {
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
}

/// Kills the process when `reached` says so of one of its system
/// calls. What is to bring that about begins when the process is traced.
pub fn kill_when(pid: Pid, begin: impl FnOnce(), mut reached: impl FnMut(&Call) -> bool) {
    seize(pid);
    begin();
    loop {
        step(pid);
        if reached(&call(pid)) {
            kill(pid, Signal::SIGKILL).unwrap();
            return see_out(pid);
        }
    }
}

/// Takes note of the end of a process that is traced: its parent hears of it only then. A child's is left to whoever
/// started it.
fn see_out(pid: Pid) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
    while parent.is_some_and(|parent| parent != std::process::id().to_string())
        && !matches!(waitpid(pid, Some(WaitPidFlag::__WALL)), Ok(WaitStatus::Signaled(..)) | Err(_))
    {}
}

/// Has the process's next system call that `which` says so of, by its number and second argument, fail, without its being
/// made. What is to bring it about begins when the process is traced.
#[cfg(target_arch = "x86_64")]
pub fn fail_one(pid: Pid, errno: Errno, begin: impl FnOnce(), which: impl Fn(i64, u64) -> bool) {
    seize(pid);
    begin();
    loop {
        step(pid);
        let Call::Begins(number) = call(pid) else { continue };
        let mut registers = ptrace::getregs(pid).unwrap();
        if !which(number, registers.rsi) {
            continue;
        }
        // No call has this number: nothing is done.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(pid, registers).unwrap();
        step(pid);
        registers = ptrace::getregs(pid).unwrap();
        registers.rax = (-i64::from(errno as i32)).cast_unsigned();
        ptrace::setregs(pid, registers).unwrap();
        return ptrace::detach(pid, None).unwrap();
    }
}
