//! The thread that computes password hashes, one at a time, so that the loop does not have to wait for them.
//!
//! It knows nobody who waits: it gets a job, and wakes the loop when that is done. It gets the next one only then, so
//! that what is not worth computing any more never reaches it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use log::warn;
use mio::{Registry, Token, Waker};
use zeroize::Zeroizing;

use super::users::{self, Against};

/// One check.
#[derive(Debug)]
pub struct Job {
    /// What against.
    pub against: Against,
    /// What is checked.
    pub password: Zeroizing<Vec<u8>>,
}

/// The way to the thread and from it. It ends when this is dropped, after what it is computing.
#[derive(Debug)]
pub struct Thread {
    jobs: SyncSender<Job>,
    done: Receiver<bool>,
}

impl Thread {
    /// Starts it. It wakes the loop under `token` of `registry`.
    ///
    /// # Errors
    /// When the system lets us have no thread or no descriptor.
    pub fn start(registry: &Registry, token: Token) -> io::Result<Thread> {
        let waker = Waker::new(registry, token)?;
        let (jobs, work) = sync_channel(1);
        let (results, done) = channel();
        std::thread::Builder::new().name("passwords".to_owned()).spawn(move || compute(&work, &results, &waker))?;
        Ok(Thread { jobs, done })
    }

    /// Gives it `job`. False when it has another, or is gone.
    pub fn give(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }

    /// Whether the password of the job it had was right; `None` = it is not done.
    #[must_use]
    pub fn take(&self) -> Option<bool> {
        self.done.try_recv().ok()
    }
}

fn compute(work: &Receiver<Job>, results: &Sender<bool>, waker: &Waker) {
    while let Ok(job) = work.recv() {
        let checked = catch_unwind(AssertUnwindSafe(|| users::check(&job.against, &job.password, users::verify)));
        let right = checked.unwrap_or_else(|_| {
            warn!("checking a password failed");
            false
        });
        if results.send(right).is_err() {
            return;
        }
        // Without being woken the loop finds it with its next event.
        let _ = waker.wake();
    }
}
