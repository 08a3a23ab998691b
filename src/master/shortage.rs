//! What the master does when somebody waits to be accepted and there is no room: it asks the workers to close the
//! connections that have been idle longest. Part of the master's loop; owns nothing else.

use std::time::{Duration, Instant};

use ipc::message::ToWorker;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Course, Master};
use crate::accept::BURST;
use crate::dispatch::Wait;
use crate::supervise::{Errand, Seat, Stage};

/// Warnings come no more often.
const WARN: Duration = Duration::from_secs(1);

/// A worker gives way at most this part of its places at a time: with few places, one is enough.
const PART: u32 = 16;

/// When the workers are asked to give way.
#[derive(Debug)]
pub(super) struct Plea {
    /// Not before then.
    pub(super) again_at: Option<Instant>,
    wait: Wait,
    warned: Option<Instant>,
}

impl Plea {
    pub(super) fn new() -> Plea {
        let wait = Wait::new(Duration::from_millis(10), Duration::from_millis(160));
        Plea { again_at: None, wait, warned: None }
    }
}

impl Master {
    /// Asks the workers to give way if that would let somebody in who waits. `exhausted`: accepting failed for want
    /// of descriptors.
    pub(super) fn plead(&mut self, exhausted: bool, now: Instant) {
        if self.course != Course::Running || !(exhausted || self.places_are_taken(now) && self.is_anyone_waiting()) {
            self.plea.again_at = self.plea.again_at.filter(|&at| at > now);
            if self.has_room() {
                self.plea.wait.reset();
            }
            return;
        }
        if self.plea.again_at.is_some_and(|at| at > now) {
            return;
        }
        self.plea.again_at = Some(now + self.plea.wait.next());
        let records = self.layout.records;
        if !exhausted && self.plea.warned.is_none_or(|warned| now.duration_since(warned) >= WARN) {
            self.plea.warned = Some(now);
            let remedy = match self.config.snapshot.limits.connections {
                Some(wanted) if wanted <= records => "raise limits.connections",
                Some(_) | None => "raise the limit of open files (`ulimit -n`, or LimitNOFILE= in systemd)",
            };
            warn!(
                "all {records} places of every worker are taken, and connections wait; those that are idle longest \
                 give way; {remedy}"
            );
        }
        let burst = u32::try_from(BURST).unwrap_or(u32::MAX);
        let connections = (records / PART).clamp(1, burst);
        for worker in self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut()) {
            let asked = worker.errands.iter().any(|errand| matches!(errand.message, ToWorker::GiveWay { .. }));
            if worker.is_ready() && worker.table.live() > 0 && !asked {
                let message = ToWorker::GiveWay { connections };
                worker.errands.push(Errand { message, fds: Vec::new(), after_connections: false });
            }
        }
    }

    /// Whether every worker that takes connections has as many as it may have, and no other is about to take some.
    fn places_are_taken(&self, now: Instant) -> bool {
        let starts = |seat: &Seat| match &seat.worker {
            Some(worker) => matches!(worker.stage, Stage::Starting { .. }),
            None => seat.start_at.is_some_and(|at| at <= now),
        };
        if self.seats.iter().any(starts) {
            return false;
        }
        let mut ready = self.seats.iter().filter_map(|seat| seat.worker.as_ref()).filter(|w| w.is_ready()).peekable();
        ready.peek().is_some() && ready.all(|worker| worker.table.room() == 0)
    }

    fn is_anyone_waiting(&self) -> bool {
        !self.homeless.is_empty()
            || self.sockets.iter().filter(|socket| socket.ready).any(|socket| {
                let mut fds = [PollFd::new(socket, PollFlags::IN)];
                poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1)
            })
    }
}
