//! What the process may use: descriptors. Who the workers are: user and group.

use std::os::fd::RawFd;

use ipc::descriptors::OVERHEAD;
use ipc::shm::MAX_RECORDS;
use ipc::state::MAX_PIPES;
use rustix::process::{Resource, Rlimit};

use crate::config::ProcessSettings;

/// Connections of one worker at most, unless the configuration says so. Each takes memory that is only given back
/// when the worker ends, and a worker slows down long before.
const MAX_AUTO: u32 = 65_536;

/// Raises the limit of open files to what the kernel lets us, and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// How much each worker can have under a limit of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Connections of one worker.
    pub records: u32,
    /// Connections sent in one message: a worker must have as many descriptors left, or it loses them.
    pub batch: usize,
}

/// What the limit `nofile` allows for each worker, which may have `wanted` connections, or as many as there can be.
///
/// A worker holds, for the case that the master dies, the listening sockets. With relays (`relays`) each connection takes
/// two descriptors from its beginning (the client's and the server's), and each pipe two. Of HTTP clients most are idle,
/// and servers' connections serve one after the other: a fifth of the descriptors is for those and for pipes, and when
/// that is not enough, idle clients give way. The master's copies are no bound: when it can keep no more, it does without
/// ([`kept`]).
pub fn capacity(nofile: u64, listeners: usize, wanted: Option<u32>, relays: bool) -> Capacity {
    let batch = ipc::descriptors::batch(nofile);
    let wanted = wanted.unwrap_or(MAX_AUTO).min(MAX_RECORDS);
    let free = nofile.saturating_sub(OVERHEAD + listeners as u64 + batch);
    let pipes = u64::from(MAX_PIPES).min(nofile / 16);
    let worker = if relays { free.saturating_sub(2 * pipes) / 2 } else { free - free / PART_FOR_SERVERS };
    let records = worker.min(u64::from(wanted)).max(1);
    Capacity { records: u32::try_from(records).unwrap_or(MAX_RECORDS), batch: usize::try_from(batch).unwrap_or(1) }
}

/// The part of a worker's descriptors that is for servers' connections where clients speak HTTP.
const PART_FOR_SERVERS: u64 = 5;

/// Descriptors that the master keeps free for what it has for a moment only, besides one message's;
const MOMENTARY: u64 = 24;
/// and those that belong to each worker, which may have to be started anew when all others are in use.
const FOR_EACH_WORKER: u64 = 4;
/// The part of the others that is for servers' connections and pipes of relays: they come later than their clients.
const PART_FOR_RELAYS: u64 = 8;

/// Which descriptors the master keeps, under its limit of open files. The kernel gives out the lowest number that is
/// free: so one at or above a mark says that all below are in use, and what is not kept there leaves the rest free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Clients' connections below this number.
    pub clients: RawFd,
    /// Everything else below this one.
    pub all: RawFd,
}

/// See [`Kept`].
pub fn kept(nofile: u64, workers: u16) -> Kept {
    let free = ipc::descriptors::batch(nofile) + MOMENTARY + FOR_EACH_WORKER * u64::from(workers);
    let all = nofile.saturating_sub(free);
    let number = |n: u64| RawFd::try_from(n).unwrap_or(RawFd::MAX);
    Kept { clients: number(all - all / PART_FOR_RELAYS), all: number(all) }
}

/// The user and group that workers are started as; `None` = the master's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// User number.
    pub uid: Option<u32>,
    /// Group number.
    pub gid: Option<u32>,
}

impl Identity {
    /// From the settings.
    ///
    /// # Errors
    /// When the master is not root and so cannot start workers as somebody else.
    pub fn new(process: &ProcessSettings) -> Result<Identity, String> {
        let uid = process.user.as_ref().map(|user| user.uid);
        let gid = process.group.as_ref().map(|group| group.gid).or(process.user.as_ref().map(|user| user.gid));
        let foreign = uid.is_some_and(|uid| uid != rustix::process::geteuid().as_raw())
            || gid.is_some_and(|gid| gid != rustix::process::getegid().as_raw());
        if !foreign {
            return Ok(Identity::default());
        }
        if !rustix::process::geteuid().is_root() {
            let name = process.user.as_ref().map(|user| user.name.as_str());
            let name = name.or(process.group.as_ref().map(|group| group.name.as_str())).unwrap_or("another user");
            return Err(format!(
                "cannot run workers as `{name}`: only root can; start as root, or take `user` and `group` out of the \
                 configuration"
            ));
        }
        Ok(Identity { uid, gid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::message::MAX_FDS;

    #[test]
    fn enough_descriptors_give_what_is_wanted() {
        assert_eq!(capacity(1 << 20, 2, Some(10_000), true), Capacity { records: 10_000, batch: MAX_FDS });
        assert_eq!(capacity(u64::MAX, 1, Some(u32::MAX), true).records, MAX_RECORDS);
        assert_eq!(capacity(u64::MAX, 1, None, false).records, MAX_AUTO);
        assert_eq!(kept(u64::MAX, 4).clients, RawFd::MAX);
    }

    #[test]
    fn the_workers_sockets_and_what_the_master_keeps_fit_the_limit() {
        for nofile in [100, 256, 1024, 4096, 20_000] {
            for (relays, each) in [(true, 2), (false, 1)] {
                let Capacity { records, batch } = capacity(nofile, 3, None, relays);
                let (records, batch) = (u64::from(records), batch as u64);
                assert!(records == 1 || records * each + batch + OVERHEAD <= nofile);
                assert!((1..=MAX_FDS as u64).contains(&batch));
            }
            let batch = capacity(nofile, 3, None, true).batch as u64;
            let Kept { clients, all } = kept(nofile, 4);
            assert!(0 < clients && clients < all, "{clients} {all}");
            assert!(u64::try_from(all).unwrap() + batch < nofile);
        }
    }

    #[test]
    fn impossible_limits_still_give_one() {
        assert_eq!(capacity(0, 9, Some(5), false), Capacity { records: 1, batch: 1 });
        assert_eq!(kept(0, 1), Kept { clients: 0, all: 0 });
    }
}
