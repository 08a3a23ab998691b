//! What the process may use: descriptors. Who the workers are: user and group.

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

/// What the limit `nofile` allows for `workers` workers, each of which may have `wanted` connections, or as many as
/// there can be.
///
/// The master holds one descriptor for each live connection of all workers, two where it is a relay, and one for
/// each pipe. A worker holds two for each connection (the client's and the server's), two for each pipe, and for the
/// case that the master dies its listening sockets.
pub fn capacity(nofile: u64, workers: u16, listeners: usize, wanted: Option<u32>, relays: bool) -> Capacity {
    let batch = ipc::descriptors::batch(nofile);
    let workers = u64::from(workers.max(1));
    let pipes = u64::from(MAX_PIPES).min(nofile / 16 / workers);
    let wanted = wanted.unwrap_or(MAX_AUTO).min(MAX_RECORDS);
    let held = if relays { 2 } else { 1 };
    let master =
        (nofile.saturating_sub(OVERHEAD + listeners as u64 + 4 * workers) / workers).saturating_sub(pipes) / held;
    let worker = nofile.saturating_sub(OVERHEAD + listeners as u64 + batch + 2 * pipes) / 2;
    let records = master.min(worker).min(u64::from(wanted)).max(1);
    Capacity { records: u32::try_from(records).unwrap_or(MAX_RECORDS), batch: usize::try_from(batch).unwrap_or(1) }
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
        assert_eq!(capacity(1 << 20, 4, 2, Some(10_000), false), Capacity { records: 10_000, batch: MAX_FDS });
        assert_eq!(capacity(u64::MAX, 1, 1, Some(u32::MAX), false).records, MAX_RECORDS);
        assert_eq!(capacity(u64::MAX, 1, 1, None, false).records, MAX_AUTO);
    }

    #[test]
    fn the_masters_copies_and_the_workers_sockets_fit_the_limit() {
        for nofile in [100, 256, 1024, 4096, 20_000] {
            for workers in [1u16, 2, 4, 16] {
                for relays in [false, true] {
                    let Capacity { records, batch } = capacity(nofile, workers, 3, None, relays);
                    let (records, batch) = (u64::from(records), batch as u64);
                    let held = if relays { 2 } else { 1 };
                    assert!(records == 1 || records * held * u64::from(workers) + OVERHEAD <= nofile);
                    assert!(records == 1 || records * 2 + batch + OVERHEAD <= nofile);
                    assert!((1..=MAX_FDS as u64).contains(&batch));
                }
            }
        }
    }

    #[test]
    fn impossible_limits_still_give_one() {
        assert_eq!(capacity(0, 1024, 9, Some(5), true), Capacity { records: 1, batch: 1 });
    }
}
