//! Beginning and end of workers and of the master itself: starts, deaths, deadlines, what signals ask for.
//! Part of the master's loop; owns nothing.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::message::ToWorker;
use ipc::snapshot::LogTarget;
use ipc::words;
use log::{debug, error, info, warn};

use super::opening::open_access_log;
use super::{Course, Master, unwatch};
use crate::notify;
use crate::process::End;
use crate::signals::Request;
use crate::supervise::{Errand, Seat, Stage, Worker};

/// The most workers that signals can make.
const MAX_WORKERS: u16 = 1024;

/// How much longer than told a draining worker may take to exit.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Bursts accepted from every listener before it is closed for good.
const LAST_BURSTS: usize = 64;

impl Master {
    /// Starts the workers that are due.
    pub(super) fn fill_seats(&mut self, now: Instant) {
        if self.course != Course::Running {
            return;
        }
        for at in 0..self.seats.len() {
            let seat = &self.seats[at];
            if seat.worker.is_some() || seat.start_at.is_none_or(|start| start > now) {
                continue;
            }
            let index = seat.index;
            self.reserve.release();
            let started = Worker::start(index, &self.equipment(), &*self.spawn, now);
            let watched = started.and_then(|worker| match Master::watch_worker(&self.poll, at, &worker) {
                Ok(()) => Ok(worker),
                Err(error) => {
                    worker.end();
                    Err(error)
                }
            });
            self.reserve.fill();
            let seat = &mut self.seats[at];
            seat.start_at = None;
            match watched {
                Ok(worker) => {
                    debug!("worker {index} (pid {}) started", worker.pid);
                    seat.worker = Some(worker);
                    let keep = self.keep_errand();
                    if let Some(worker) = self.seats[at].worker.as_mut() {
                        // It finds it behind its greeting.
                        worker.errands.extend(keep.filter(|keep| !keep.is_sent(&mut worker.channel)));
                    }
                }
                Err(failed) => {
                    let wait = seat.back_off.after_death(None, None).max(Duration::from_millis(100));
                    error!("worker {index} cannot be started: {failed}; trying again in {} ms", wait.as_millis());
                    seat.start_at = Some(now + wait);
                }
            }
        }
    }

    /// A worker has ended and is reaped: its connections are taken over, and it is replaced when it is to be.
    pub(super) fn bury(&mut self, at: usize, end: End, now: Instant) {
        let Some(mut worker) = self.seats[at].worker.take() else { return };
        unwatch(&self.poll, worker.channel.as_fd());
        unwatch(&self.poll, worker.pidfd());
        let seat = &mut self.seats[at];
        let (index, pid) = (seat.index, worker.pid);
        let was_draining = matches!(worker.stage, Stage::Draining { .. });
        if self.course == Course::Running && seat.wanted {
            let ready_for = worker.ready_since.map(|since| now.saturating_duration_since(since));
            let wait = if was_draining { Duration::ZERO } else { seat.back_off.after_death(ready_for, Some(end)) };
            seat.start_at = Some(now + wait);
            if was_draining && end == End::Exited(0) {
                info!("worker {index} (pid {pid}) finished; starting it again");
            } else if wait.is_zero() {
                warn!("worker {index} (pid {pid}) {end}; starting it again");
            } else {
                warn!("worker {index} (pid {pid}) {end}; starting it again in {} ms", wait.as_millis());
            }
        } else if self.course == Course::Stopping {
            debug!("worker {index} (pid {pid}) {end}");
        } else if was_draining && end == End::Exited(0) {
            info!("worker {index} (pid {pid}) finished");
        } else {
            warn!("worker {index} (pid {pid}) {end} before it had finished");
        }
        self.take_over(index, &mut worker, now);
    }

    /// Does what is due by the clock.
    pub(super) fn keep_time(&mut self, now: Instant) {
        for seat in &mut self.seats {
            let Some(worker) = seat.worker.as_mut() else { continue };
            if worker.deadline().is_none_or(|deadline| deadline > now) {
                continue;
            }
            let (index, pid) = (seat.index, worker.pid);
            match worker.stage {
                Stage::Starting { .. } => warn!("worker {index} (pid {pid}) did not become ready in time; killing it"),
                Stage::Draining { .. } => warn!("worker {index} (pid {pid}) did not finish in time; killing it"),
                Stage::Dying { .. } => debug!("worker {index} (pid {pid}) has not ended; killing it"),
                Stage::Ready => continue,
            }
            worker.kill(now);
        }
        self.sweep(now);
        self.check_stuck(now);
        if let Some(control) = &mut self.control {
            control.expire(now);
        }
        self.watch_workers(now);
        self.watch_resolver_files(now);
        self.renew(now);
        self.follow_heir(now);
    }

    /// Does what a signal asks for.
    pub(super) fn obey(&mut self, request: Request, now: Instant) {
        match request {
            Request::Stop => self.stop(now),
            Request::Drain => self.drain(now),
            Request::Reload => self.ask_reload(None),
            Request::ReopenLogs => self.reopen_logs(),
            Request::MoreWorkers => self.more_workers(now),
            Request::FewerWorkers => self.fewer_workers(now),
            Request::Upgrade => self.upgrade(None),
        }
    }

    fn stop(&mut self, now: Instant) {
        if self.course == Course::Stopping {
            return;
        }
        info!("stopping");
        self.tell_stopping();
        self.course = Course::Stopping;
        self.forget_successor();
        self.end_listening();
        self.homeless.clear();
        for seat in &mut self.seats {
            seat.start_at = None;
            if let Some(worker) = seat.worker.as_mut() {
                worker.terminate(now);
            }
        }
    }

    /// The connections that already wait in the kernel's queues are still accepted: closing a listener resets
    /// them.
    fn drain(&mut self, now: Instant) {
        if self.course != Course::Running {
            return;
        }
        let timeout_ms = self.config.snapshot.shutdown_timeout_ms;
        self.tell_stopping();
        info!(
            "stopping when the requests in progress are finished, in {} at the latest",
            words::duration(timeout_ms.into())
        );
        for socket in &mut self.sockets {
            socket.ready = true;
        }
        self.measure(now);
        self.rehome();
        for _ in 0..LAST_BURSTS {
            if !self.sockets.iter().any(|socket| socket.ready) || !self.has_room() {
                break;
            }
            let _ = self.accept(now);
        }
        self.course = Course::Draining;
        self.forget_successor();
        self.end_listening();
        while let Some(connection) = self.homeless.pop_front() {
            self.cut(connection);
        }
        for seat in &mut self.seats {
            seat.start_at = None;
            if let Some(worker) = seat.worker.as_mut() {
                drain_worker(worker, timeout_ms, false, now);
            }
        }
    }

    /// Nobody is to succeed a master that was told to stop.
    fn forget_successor(&mut self) {
        if self.successor.as_ref().is_some_and(|successor| successor.deadline.is_some()) {
            self.give_up_successor("the master is stopping");
        }
    }

    /// Tells the service manager, unless another master goes on with the service.
    fn tell_stopping(&self) {
        if self.course == Course::Running {
            notify::tell(notify::State::Stopping);
        }
    }

    /// Closes every listener, for the workers that keep copies, too.
    fn end_listening(&mut self) {
        for socket in self.sockets.drain(..) {
            socket.end();
        }
    }

    fn reopen_logs(&mut self) {
        let target = &self.config.snapshot.access_log.to;
        if !matches!(target, LogTarget::File(_)) {
            info!("no log file to open anew");
            return;
        }
        match open_access_log(target) {
            Ok(file) => self.access_log = file,
            Err(reason) => {
                error!("{reason}; the former file stays in use");
                return;
            }
        }
        let Some(log) = &self.access_log else { return };
        for worker in self.seats.iter_mut().filter_map(|seat| seat.worker.as_mut()) {
            worker.errands.retain(|errand| errand.message != ToWorker::OpenLog);
            let message = ToWorker::OpenLog;
            worker.errands.push(Errand { message, fds: vec![Rc::clone(log)], after_connections: false });
        }
        info!("log files opened anew");
    }

    fn more_workers(&mut self, now: Instant) {
        if self.course != Course::Running {
            return;
        }
        let next = self.free_index();
        let free = (0..self.seats.len()).find(|&at| !self.seats[at].wanted && !self.is_renewing(at));
        match (free, next) {
            (Some(at), _) => {
                let seat = &mut self.seats[at];
                seat.wanted = true;
                if seat.worker.is_none() {
                    seat.start_at = Some(now);
                }
            }
            (None, Some(index)) if self.wanted() < usize::from(MAX_WORKERS) => self.seats.push(Seat::new(index, now)),
            (None, _) => return warn!("there are {MAX_WORKERS} workers already, as many as there can be"),
        }
        info!("one worker more: {}", self.wanted());
    }

    fn fewer_workers(&mut self, now: Instant) {
        if self.course != Course::Running {
            return;
        }
        if self.wanted() == 1 {
            return warn!("the last worker stays; SIGQUIT stops everything");
        }
        let timeout_ms = self.config.snapshot.shutdown_timeout_ms;
        if let Some(seat) = self.seats.iter_mut().rfind(|seat| seat.wanted) {
            seat.wanted = false;
            seat.start_at = None;
            if let Some(worker) = seat.worker.as_mut() {
                drain_worker(worker, timeout_ms, true, now);
            }
        }
        info!("one worker fewer: {}", self.wanted());
    }

    /// Has so many workers from now on.
    pub(super) fn set_workers(&mut self, count: u16, now: Instant) {
        while self.wanted() < usize::from(count) {
            let before = self.wanted();
            self.more_workers(now);
            if self.wanted() == before {
                return;
            }
        }
        while self.wanted() > usize::from(count.max(1)) {
            self.fewer_workers(now);
        }
    }

    fn wanted(&self) -> usize {
        self.seats.iter().filter(|seat| seat.wanted).count()
    }
}

/// Has a worker finish and exit. With `give_back`, other workers serve its idle connections and relays.
pub(super) fn drain_worker(worker: &mut Worker, timeout_ms: u32, give_back: bool, now: Instant) {
    match worker.stage {
        // It has nothing yet that it could finish.
        Stage::Starting { .. } => worker.terminate(now),
        Stage::Ready => {
            let deadline = now + Duration::from_millis(timeout_ms.into()) + DRAIN_GRACE;
            worker.stage = Stage::Draining { deadline };
            let message = ToWorker::Drain { timeout_ms, give_back };
            worker.errands.push(Errand { message, fds: Vec::new(), after_connections: true });
        }
        Stage::Draining { .. } | Stage::Dying { .. } => {}
    }
}
