//! Processes of the proxy: finding them, killing them, and waiting until they are gone.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::proxy::Proxy;
use super::wait_for;

/// Whether the process is still one of ours: numbers are used again.
pub fn is_worker(pid: Pid) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"master\0worker\0"))
}

/// Stops a process, and waits until it is.
#[track_caller]
pub fn stop(pid: Pid) {
    kill(pid, Signal::SIGSTOP).unwrap();
    super::wait_until("it is stopped", || is_in_state(pid, 'T'));
}

/// Whether a process is in this state of proc_pid_stat(5).
pub fn is_in_state(pid: Pid, state: char) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(state))
}

/// Waits until none of these processes is left.
#[track_caller]
pub fn wait_gone(pids: &[Pid]) {
    wait_for(&format!("{pids:?} end"), || pids.iter().all(|&pid| !alive(pid)).then_some(()));
}

/// The direct children of a process.
pub fn children(pid: Pid) -> Vec<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

/// Kills every worker and waits until others have taken their places.
pub fn replace_all(proxy: &mut Proxy, count: usize) {
    let old = proxy.workers();
    kill_all(proxy);
    super::wait_until("they are dead", || old.iter().all(|&pid| !alive(pid)));
    proxy.wait_for_workers(count);
}

/// Kills every worker at once. They are stopped first: what the master passes from one that is dead to one that is
/// about to be must not count as a second death over the same request.
pub fn kill_all(proxy: &Proxy) {
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for worker in proxy.workers() {
            kill(worker, signal).unwrap();
        }
    }
}

/// Whether the process runs; one that has ended and waits to be reaped does not.
pub fn alive(pid: Pid) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}
