//! Counting the open descriptors of the proxy's processes, to see that none is left over.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::proxy::Proxy;
use super::{DEADLINE, wait_until};

/// How many descriptors the master has open, and then each worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptors(pub Vec<usize>);

impl Proxy {
    /// Open descriptors of the master and of each worker, once every worker holds the listening sockets, which is the
    /// last that it is given before any connection.
    #[track_caller]
    pub fn descriptors(&self) -> Descriptors {
        let listening = listening_sockets();
        let wanted = sockets(self.pid).filter(|socket| listening.contains(socket)).collect::<HashSet<_>>();
        wait_until("every worker holds the listening sockets", || {
            self.workers().iter().all(|&pid| wanted.is_subset(&sockets(pid).collect()))
        });
        self.count_descriptors()
    }

    /// Waits until a worker has the connection that came from `client` (over IPv4): a master that is killed takes with it
    /// what it has accepted and not sent.
    #[track_caller]
    pub fn wait_taken_up(&self, client: SocketAddr) {
        let remote = format!(":{:04X}", client.port());
        wait_until("a worker has the connection", || {
            let ours = table("tcp", |columns| columns.get(2).is_some_and(|address| address.ends_with(&remote)), 9);
            self.workers().iter().any(|&pid| sockets(pid).any(|socket| ours.contains(&socket)))
        });
    }

    fn count_descriptors(&self) -> Descriptors {
        let count = |pid: Pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Descriptors(std::iter::once(self.pid).chain(self.workers()).map(count).collect())
    }

    /// Waits until no process has more descriptors than `before`, `slack` aside.
    #[track_caller]
    pub fn assert_no_leaks(&self, before: &Descriptors, slack: usize) {
        let end = Instant::now() + DEADLINE;
        loop {
            let now = self.count_descriptors();
            if now.0.len() == before.0.len() && now.0.iter().zip(&before.0).all(|(now, old)| *now <= old + slack) {
                return;
            }
            assert!(Instant::now() < end, "descriptors leaked: {before:?} before, {now:?} now\n{}", self.text());
            thread::park_timeout(Duration::from_millis(3));
        }
    }
}

/// The inodes of a process's sockets.
fn sockets(pid: Pid) -> impl Iterator<Item = u64> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|link| {
        let target = fs::read_link(link.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// The inodes of all listening stream sockets.
fn listening_sockets() -> HashSet<u64> {
    // The columns of the state and of the inode, and how a state of listening is written (proc(5)).
    [("tcp", 3, "0A", 9), ("tcp6", 3, "0A", 9), ("unix", 3, "00010000", 6)]
        .into_iter()
        .flat_map(|(name, state, listening, inode)| {
            table(name, |columns| columns.get(state) == Some(&listening), inode)
        })
        .collect()
}

/// The inodes, in column `inode`, of the sockets that a table of the kernel's lists and `wanted` picks.
fn table(name: &str, wanted: impl Fn(&[&str]) -> bool, inode: usize) -> HashSet<u64> {
    let text = fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let rows = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|columns| wanted(columns)).filter_map(|columns| columns.get(inode)?.parse().ok()).collect()
}
