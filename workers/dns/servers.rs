//! The name servers: which to ask first, and which have failed. Says so once when that changes.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;

/// Failures in a row after which a server is asked last.
const FAILURES: u32 = 2;
/// After so long one question goes to it first again.
const RETRY_MS: u64 = 30_000;
/// That a server fails is said no more often.
const SAID_MS: u64 = 10_000;
/// Changes remembered for the log at most.
const CHANGES_MAX: usize = 64;

/// What went wrong with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It did not answer in time.
    Silent,
    /// It cannot be reached, or closed the connection.
    Unreachable,
    /// What it sent is no answer.
    Nonsense,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trouble::Silent => "it does not answer",
            Trouble::Unreachable => "it cannot be reached",
            Trouble::Nonsense => "what it sends is no answer",
        })
    }
}

/// Something that whoever keeps the log should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This server is asked last from now on.
    Failing(SocketAddr, Trouble),
    /// It answers again.
    Recovered(SocketAddr),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Failing(address, why) => write!(f, "name server {address}: {why}; others are asked before it"),
            Change::Recovered(address) => write!(f, "name server {address}: it answers again"),
        }
    }
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    failures: u32,
    /// It is failing; then it is to be tried first at this time.
    retry_ms: Option<u64>,
    /// When it was last said to be failing, and whether that is the last thing said of it.
    said_ms: Option<u64>,
    is_said: bool,
}

/// See the module's description.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<Server>,
    rotate: bool,
    turn: usize,
    changes: VecDeque<Change>,
}

impl Servers {
    /// These, in this order; with `rotate` each question begins with the next one.
    #[must_use]
    pub fn new(addresses: &[SocketAddr], rotate: bool) -> Servers {
        let server =
            |&address: &SocketAddr| Server { address, failures: 0, retry_ms: None, said_ms: None, is_said: false };
        Servers { servers: addresses.iter().map(server).collect(), rotate, turn: 0, changes: VecDeque::new() }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// In which order they are asked one question: those that fail come last, but for one that is due for another
    /// try, which this question is.
    pub fn order(&mut self, now_ms: u64) -> Vec<usize> {
        let count = self.servers.len();
        let first = if self.rotate && count > 0 { self.turn % count } else { 0 };
        self.turn = self.turn.wrapping_add(1);
        let (mut good, mut failing) = (Vec::new(), Vec::new());
        for at in (0..count).map(|n| (first + n) % count) {
            match &mut self.servers[at].retry_ms {
                Some(retry_ms) if *retry_ms > now_ms => failing.push(at),
                Some(retry_ms) => {
                    *retry_ms = now_ms + RETRY_MS;
                    good.push(at);
                }
                None => good.push(at),
            }
        }
        good.extend(failing);
        good
    }

    /// A server's address.
    #[must_use]
    pub fn address(&self, server: usize) -> Option<SocketAddr> {
        self.servers.get(server).map(|server| server.address)
    }

    /// It answered, whatever it said.
    pub fn answered(&mut self, server: usize) {
        let Some(server) = self.servers.get_mut(server) else { return };
        server.failures = 0;
        if server.retry_ms.take().is_some() && std::mem::take(&mut server.is_said) {
            let change = Change::Recovered(server.address);
            self.note(change);
        }
    }

    /// It failed.
    pub fn failed(&mut self, server: usize, why: Trouble, now_ms: u64) {
        let Some(server) = self.servers.get_mut(server) else { return };
        server.failures = server.failures.saturating_add(1);
        if server.failures < FAILURES {
            return;
        }
        server.retry_ms = Some(now_ms + RETRY_MS);
        // One that answers for some names and not for others, which clients choose, fails and recovers all the time.
        if !server.is_said && server.said_ms.is_none_or(|said_ms| now_ms >= said_ms + SAID_MS) {
            (server.is_said, server.said_ms) = (true, Some(now_ms));
            let change = Change::Failing(server.address, why);
            self.note(change);
        }
    }

    /// What is to be logged.
    pub fn take_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    fn note(&mut self, change: Change) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push_back(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(rotate: bool) -> Servers {
        let address = |n: u8| SocketAddr::from(([127, 0, 0, n], 53));
        Servers::new(&[address(1), address(2), address(3)], rotate)
    }

    #[test]
    fn a_failing_server_is_asked_last_and_said_so_once() {
        let mut servers = servers(false);
        servers.failed(0, Trouble::Silent, 0);
        assert_eq!((servers.order(0), servers.take_change()), (vec![0, 1, 2], None));
        for _ in 0..3 {
            servers.failed(0, Trouble::Silent, 0);
        }
        let address = servers.address(0).unwrap();
        assert_eq!(servers.take_change(), Some(Change::Failing(address, Trouble::Silent)));
        assert_eq!((servers.order(1), servers.take_change()), (vec![1, 2, 0], None));
        // One question tries it again.
        assert_eq!(servers.order(RETRY_MS), [0, 1, 2]);
        assert_eq!(servers.order(RETRY_MS), [1, 2, 0]);
        servers.answered(0);
        servers.answered(0);
        assert_eq!((servers.take_change(), servers.take_change()), (Some(Change::Recovered(address)), None));
        assert_eq!(servers.order(RETRY_MS), [0, 1, 2]);
    }

    #[test]
    fn a_server_that_fails_and_recovers_all_the_time_is_said_to_now_and_then() {
        let mut servers = servers(false);
        let address = servers.address(0).unwrap();
        let mut said = Vec::new();
        for now_ms in (0..30_000).step_by(100) {
            for _ in 0..2 {
                servers.failed(0, Trouble::Silent, now_ms);
            }
            said.extend(servers.take_change());
            servers.answered(0);
            said.extend(servers.take_change());
        }
        let each = [Change::Failing(address, Trouble::Silent), Change::Recovered(address)];
        assert_eq!(said, [each.clone(), each.clone(), each].concat());
        // One that goes on failing is said to in the end.
        for now_ms in [29_950, 30_000] {
            for _ in 0..2 {
                servers.failed(0, Trouble::Silent, now_ms);
            }
        }
        assert_eq!(servers.take_change(), Some(Change::Failing(address, Trouble::Silent)));
    }

    #[test]
    fn rotation_begins_with_the_next_each_time() {
        let mut servers = servers(true);
        assert_eq!(
            (servers.order(0), servers.order(0), servers.order(0)),
            (vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1])
        );
        assert!(Servers::new(&[], true).order(0).is_empty());
    }
}
