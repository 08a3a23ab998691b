//! Watching whether the workers move: who is stuck is killed, who is slow is eased. Part of the master's loop; owns only
//! what it remembers of easing.
//!
//! A slow worker gets no new connections while a faster one has room, and is asked for some of its idle ones at a time.
//! That could go on for ever where one worker's relief is another's burden. So only one is eased at a time, and the
//! next one only some time after.

use std::time::{Duration, Instant};

use ipc::message::ToWorker;
use log::{info, warn};
use rustix::time::{ClockId, clock_gettime};

use super::Master;
use crate::supervise::{Errand, Stage, Worker};

/// Workers are asked to show that they move at least, and at most, so often.
const MIN_PING: Duration = Duration::from_millis(50);
const MAX_PING: Duration = Duration::from_secs(10);
/// So often while it matters whether one is slower than another.
const PACE: Duration = Duration::from_millis(250);

/// Connections that a worker is asked for at a time, at most.
const EASED: u32 = 64;
/// After one worker was eased, no other is for so long.
const REST: Duration = Duration::from_secs(10);

/// Who is being eased.
#[derive(Debug, Default)]
pub(super) struct Ease {
    last: Option<(u16, Instant)>,
}

impl Ease {
    /// Whether worker `index` may be eased now.
    fn admits(&self, index: u16, now: Instant) -> bool {
        self.last.is_none_or(|(last, at)| last == index || now.saturating_duration_since(at) >= REST)
    }
}

/// Milliseconds of the clock that workers use, too.
fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

impl Master {
    /// Kills workers that are stuck, asks the others to show that they are not, and eases one that is slow.
    pub(super) fn watch_workers(&mut self, now: Instant) {
        if now < self.ping_at {
            return;
        }
        let timeout = Duration::from_millis(self.config.snapshot.worker_timeout_ms.into());
        self.ping_at = now + (timeout / 3).clamp(MIN_PING, MAX_PING);
        let now_ms = monotonic_ms();
        for seat in &mut self.seats {
            let Some(worker) = seat.worker.as_mut() else { continue };
            if !matches!(worker.stage, Stage::Ready | Stage::Draining { .. }) {
                continue;
            }
            if worker.watch.is_stuck(worker.control.stats().heartbeat_ms.get(), timeout, now) {
                let (index, pid, seconds) = (seat.index, worker.pid, timeout.as_secs_f32());
                warn!("worker {index} (pid {pid}) has not moved for {seconds} s; killing it");
                worker.kill(now);
                continue;
            }
            note_pace(worker, seat.index, now_ms);
            if has_answered(worker) && !worker.errands.iter().any(|errand| is_ping(&errand.message)) {
                worker.watch.pinged_ms = now_ms;
                let message = ToWorker::Ping { sent_ms: now_ms };
                worker.errands.push(Errand { message, fds: Vec::new(), after_connections: false });
            }
        }
        self.ease(now);
    }

    /// Where workers can be slower than others, and there is something to be slow with, they are asked often.
    pub(super) fn watch_closely(&mut self, now: Instant) {
        let ready = || self.seats.iter().filter_map(|seat| seat.worker.as_ref()).filter(|worker| worker.is_ready());
        if ready().nth(1).is_some() && ready().any(|worker| worker.table.live() > 0) {
            self.ping_at = self.ping_at.min(now + PACE);
        }
    }

    /// Leaves slow workers out of the choice where others have room.
    pub(super) fn prefer_fast(&mut self) {
        let slow = |worker: &Worker| worker.watch.pace.is_slow();
        let seats = || self.seats.iter().map(|seat| seat.worker.as_ref().is_some_and(slow));
        if seats().zip(&self.candidates).any(|(slow, candidate)| !slow && candidate.room > 0) {
            let slow: Vec<usize> = seats().enumerate().filter_map(|(at, slow)| slow.then_some(at)).collect();
            for at in slow {
                self.candidates[at].room = 0;
            }
        }
    }

    /// Asks a slow worker that turns for idle connections, as many as the fast ones have room for.
    fn ease(&mut self, now: Instant) {
        let room =
            |worker: &Worker| if worker.is_ready() && !worker.watch.pace.is_slow() { worker.table.room() } else { 0 };
        let room: u32 =
            self.seats.iter().filter_map(|seat| seat.worker.as_ref()).map(room).fold(0, u32::saturating_add);
        let connections = EASED.min(room / 2);
        if connections == 0 {
            return;
        }
        let eased = self.seats.iter_mut().find_map(|seat| {
            let worker = seat.worker.as_mut()?;
            let slow = worker.is_ready() && worker.watch.pace.is_slow() && worker.table.live() > 0;
            let asked = worker.errands.iter().any(|errand| matches!(errand.message, ToWorker::Ease { .. }));
            (slow && !asked && worker.watch.answered && self.ease.admits(seat.index, now))
                .then_some((seat.index, worker))
        });
        if let Some((index, worker)) = eased {
            let message = ToWorker::Ease { connections };
            worker.errands.push(Errand { message, fds: Vec::new(), after_connections: false });
            self.ease.last = Some((index, now));
        }
    }
}

fn is_ping(message: &ToWorker) -> bool {
    matches!(message, ToWorker::Ping { .. })
}

/// Whether the last ping has arrived.
fn has_answered(worker: &Worker) -> bool {
    worker.watch.pinged_ms == 0 || worker.control.stats().pinged_ms.get() == worker.watch.pinged_ms
}

/// Looks how long the last ping was, or has been, under way.
fn note_pace(worker: &mut Worker, index: u16, now_ms: u64) {
    worker.watch.answered = has_answered(worker);
    if worker.watch.pinged_ms == 0 {
        return;
    }
    let lag_ms = if worker.watch.answered {
        worker.control.stats().lag_ms.get()
    } else {
        now_ms.saturating_sub(worker.watch.pinged_ms)
    };
    if worker.watch.pace.note(lag_ms) {
        if worker.watch.pace.is_slow() {
            info!("worker {index} is slow, its loop is {lag_ms} ms late; others get its new and idle connections");
        } else {
            info!("worker {index} keeps up again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_is_eased_at_a_time_and_the_next_one_later() {
        let start = Instant::now();
        let mut ease = Ease::default();
        assert!(ease.admits(1, start));
        ease.last = Some((1, start));
        assert!(ease.admits(1, start) && !ease.admits(0, start));
        assert!(!ease.admits(0, start + REST / 2) && ease.admits(0, start + REST));
    }
}
