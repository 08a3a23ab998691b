//! Sees to it that the master has an heir (`crate::heir`), and another when that ends. Part of the master's loop.

use std::io;
use std::time::{Duration, Instant};

use log::{info, warn};
use mio::{Interest, Poll};

use super::{HEIR, Master, unwatch, watch};
use crate::heir::Heir;
use crate::privilege;

/// How long to wait before another is started, when one has ended or could not be started.
const WAIT: Duration = Duration::from_secs(1);
/// The same, while another thread runs.
const BUSY: Duration = Duration::from_millis(100);

/// The heir, or when there is to be one.
#[derive(Debug, Default)]
pub struct Heritage {
    heir: Option<Heir>,
    again_at: Option<Instant>,
    warned: bool,
}

impl Heritage {
    /// With an heir, if one can be had.
    pub fn begin() -> Heritage {
        // What a process may have under way to others is bounded by its own limit.
        privilege::raise_descriptor_limit();
        let mut heritage = Heritage::default();
        heritage.start(Instant::now());
        heritage
    }

    fn start(&mut self, now: Instant) {
        match Heir::start() {
            Ok(heir) => *self = Heritage { heir: Some(heir), again_at: None, warned: false },
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => self.again_at = Some(now + BUSY),
            Err(error) => {
                self.again_at = Some(now + WAIT);
                if !std::mem::replace(&mut self.warned, true) {
                    warn!(
                        "no process can be had that would pass on what the master has just accepted if it is killed \
                         ({error}): such connections end with it; trying again every second"
                    );
                }
            }
        }
    }

    /// Watches it.
    pub(super) fn watch(&self, poll: &Poll) -> io::Result<()> {
        self.heir.as_ref().map_or(Ok(()), |heir| watch(poll, heir.pidfd(), HEIR, Interest::READABLE))
    }

    /// When another is to be started.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.again_at
    }
}

impl Master {
    /// The heir has ended.
    pub(super) fn lose_heir(&mut self, now: Instant) {
        if let Some(heir) = self.heritage.heir.take() {
            unwatch(&self.poll, heir.pidfd());
            info!(
                "the heir has ended, which would pass on what this master has just accepted if it were killed; starting \
                 another in {} s",
                WAIT.as_secs()
            );
            self.heritage.again_at = Some(now + WAIT);
        }
    }

    /// Starts another heir when it is due.
    pub(super) fn follow_heir(&mut self, now: Instant) {
        if self.heritage.again_at.is_none_or(|at| at > now) {
            return;
        }
        self.heritage.start(now);
        if let Err(error) = self.heritage.watch(&self.poll) {
            warn!("the heir cannot be watched: {error}; there will be no other when it ends");
        }
    }
}
