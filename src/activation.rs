//! Listening sockets from the service manager: socket activation as in sd_listen_fds(3).

use std::os::fd::OwnedFd;

use ipc::descriptors::duplicate;
use ipc::handover::Bound;
use log::warn;

use crate::listen;

/// The first descriptor passed.
const FIRST: i32 = 3;
/// Sockets taken at most.
const MOST: i32 = 4096;

/// Which descriptors were passed to this process, by the environment. The variables stay set, for children that know
/// by the process number that they are not meant.
pub fn passed() -> std::ops::Range<i32> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let count = number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(std::process::id()));
    let count = count.and_then(|count| i32::try_from(count).ok()).unwrap_or(0).clamp(0, MOST);
    FIRST..FIRST + count
}

/// Takes them over: our own copies, to be closed with the program that this one starts.
pub fn take() -> Vec<(Bound, OwnedFd)> {
    let mut taken = Vec::new();
    for raw in passed() {
        let copy = duplicate(raw);
        let _ = nix::unistd::close(raw);
        match copy.and_then(|fd| Ok((listen::bound_to(&fd)?, fd))) {
            Ok((Some(address), fd)) => taken.push((Bound { address, lent: true }, fd)),
            Ok((None, _)) => warn!("descriptor {raw} of the service manager is no socket that can be listened on"),
            Err(error) => warn!("descriptor {raw} of the service manager: {error}"),
        }
    }
    taken
}
