//! How the limit of open files is shared out. Master and worker must agree on it: a worker that has no descriptors
//! left for a message from the master loses the message.

use crate::message::MAX_FDS;

/// Descriptors of the master or a worker that are no connection's and no pipe's: its loop, channel, logs and the
/// like, generously.
pub const OVERHEAD: u64 = 48;

/// Descriptors sent to a worker in one message at most, under a limit of `nofile` open files. A worker keeps as many
/// free.
#[must_use]
pub fn batch(nofile: u64) -> u64 {
    (nofile / 8).clamp(1, MAX_FDS as u64)
}
