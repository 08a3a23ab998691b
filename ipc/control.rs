//! What is said on the master's control socket: `master reload` and `master status` ask, the running master answers.
//!
//! A private Unix `SOCK_SEQPACKET` socket, each record as on [`crate::channel`]. The master speaks first, with a
//! [`Greeting`]; the other side then sends one [`Request`] and gets one [`Answer`]. Who may connect is not decided
//! here.

use serde::{Deserialize, Serialize};

/// The version of [`Request`] and [`Answer`]. A side that finds another one in the greeting says so and goes.
pub const VERSION: u16 = 3;

/// Text in one record at most, in bytes; longer text is cut.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;

/// The master's first record. Its form must never change: it is how two versions find out that they differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`].
    pub version: u16,
    /// The master's process.
    pub pid: u32,
    /// Its configuration file, or what stands for it.
    pub config: String,
    /// Who it is.
    pub role: Role,
}

/// Who answers on a control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A running master.
    Master,
    /// A worker whose master has died, waiting for another master.
    Orphan,
}

/// What is asked of the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Read the configuration again, and say what came of it.
    Reload {
        /// With colours for a terminal.
        color: bool,
    },
    /// Say how things are.
    Status,
    /// Start the program anew and let it take everything over.
    Upgrade,
    /// Only to an [`Role::Orphan`], of whatever version: give what you have. What follows is [`crate::handover`]. Its
    /// form must never change.
    TakeOver,
}

/// What the master says to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Everything goes by the new configuration.
    Reloaded(Reloaded),
    /// The new configuration cannot be used; nothing has changed.
    Refused {
        /// Everything that is wrong with it, for people.
        text: String,
    },
    /// The new configuration holds, but not everywhere.
    Stuck {
        /// What holds.
        reloaded: Reloaded,
        /// Workers that have not taken it in time.
        workers: Vec<Who>,
    },
    /// The master does something that excludes it, and says what.
    Busy {
        /// For people.
        text: String,
    },
    /// How things are.
    Status(Status),
    /// No successor came up; nothing has changed.
    NotUpgraded {
        /// Why, for people.
        text: String,
    },
    /// Another master has taken everything over.
    Upgraded {
        /// Its process.
        pid: i32,
    },
}

/// A configuration in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Its number.
    pub generation: u64,
    /// Listeners it has.
    pub listeners: u32,
    /// Backend groups it has.
    pub groups: u32,
    /// Workers that go by it.
    pub workers: u32,
    /// What is to be known about it, warnings for instance; may be empty.
    pub notes: String,
}

/// One worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Its number.
    pub index: u16,
    /// Its process.
    pub pid: i32,
}

/// The master at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The configuration in force.
    pub generation: u64,
    /// Whether it accepts connections.
    pub accepting: bool,
    /// Where it listens, the first [`STATUS_LISTENERS`].
    pub listeners: Vec<String>,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
    /// Connections that do not outlive their worker.
    pub unprotected: Unprotected,
    /// What names of servers stand for, the first [`STATUS_NAMES`].
    pub names: Vec<NameStatus>,
    /// How many names there are.
    pub names_in_all: u32,
}

/// A name of servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameStatus {
    /// As configured.
    pub name: String,
    /// What it stands for, the first [`NAME_ADDRESSES`].
    pub addresses: Vec<String>,
    /// How many more.
    pub more: u32,
    /// How many seconds ago that was last answered; `None` = not since this master runs.
    pub good_s: Option<u64>,
    /// In how many seconds it is asked for again; `None` = when the configuration is read again, or nobody has said.
    pub again_s: Option<u64>,
    /// How many seconds ago there was no answer, the last time, and why.
    pub trouble: Option<(u64, String)>,
}

/// Connections of which the master kept no copy, because descriptors were short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unprotected {
    /// There are now.
    pub now: u64,
    /// There have been since the master's start.
    pub total: u64,
    /// Those of them that ended with a worker that died.
    pub lost: u64,
}

/// Listeners named in a [`Status`] at most.
pub const STATUS_LISTENERS: usize = 100;

/// Names of servers in a [`Status`] at most, and addresses of each.
pub const STATUS_NAMES: usize = 64;
/// See [`STATUS_NAMES`].
pub const NAME_ADDRESSES: usize = 6;

/// One worker at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Which.
    pub who: Who,
    /// `ready` and the like.
    pub stage: String,
    /// The configuration it goes by.
    pub generation: u64,
    /// Connections it has.
    pub connections: u32,
    /// Requests it has begun, all together.
    pub requests: u64,
    /// Requests it has in progress.
    pub active_requests: u64,
}

/// `text`, cut to what a record may have.
#[must_use]
pub fn bounded(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.push_str("\n(and more)\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;

    #[test]
    fn the_longest_answers_fit_into_a_record() {
        let (mut a, mut b) = Channel::pair().map(|(a, b)| (a, Channel::from_fd(b))).unwrap();
        let text = bounded("\u{e9}".repeat(MAX_TEXT_BYTES));
        assert!(text.ends_with("(and more)\n"));
        let refused = Answer::Refused { text };
        a.send(&refused, &[]).unwrap();
        assert_eq!(b.recv::<Answer>(&mut Vec::new()).unwrap(), refused);
        let worker = WorkerStatus {
            who: Who { index: u16::MAX, pid: i32::MAX },
            stage: "starting".to_owned(),
            generation: u64::MAX,
            connections: u32::MAX,
            requests: u64::MAX,
            active_requests: u64::MAX,
        };
        let name = NameStatus {
            name: "x".repeat(260),
            addresses: vec![format!("[{}]:65535", "ffff:".repeat(7) + "ffff"); NAME_ADDRESSES],
            more: u32::MAX,
            good_s: Some(u64::MAX),
            again_s: Some(u64::MAX),
            trouble: Some((u64::MAX, "x".repeat(crate::message::MAX_TROUBLE_BYTES))),
        };
        let status = Answer::Status(Status {
            generation: u64::MAX,
            accepting: true,
            listeners: vec![format!("unix:{}", "x".repeat(107)); STATUS_LISTENERS],
            workers: vec![worker; 1024],
            unprotected: Unprotected { now: u64::MAX, total: u64::MAX, lost: u64::MAX },
            names: vec![name; STATUS_NAMES],
            names_in_all: u32::MAX,
        });
        a.send(&status, &[]).unwrap();
        assert_eq!(b.recv::<Answer>(&mut Vec::new()).unwrap(), status);
    }

    #[test]
    fn the_greeting_keeps_its_form() {
        let (mut a, b) = Channel::pair().unwrap();
        a.send(&Greeting { version: 1, pid: 300, config: "x".to_owned(), role: Role::Master }, &[]).unwrap();
        let mut bytes = [0; 16];
        let (_, length) = rustix::net::recv(&b, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
        assert_eq!(bytes[..length], [0, 1, 0xac, 2, 1, b'x', 0]);
    }
}
