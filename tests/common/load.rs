//! Clients that keep a proxy busy while something happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::client::{Client, describe};
use super::proxy::Addr;
use super::wait_until;

/// Clients that send requests without a break until told to stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    /// Answers, by client.
    done: Arc<Vec<AtomicUsize>>,
    threads: Vec<thread::JoinHandle<Result<(), String>>>,
}

impl Load {
    /// So many `clients`, each with a new connection for every request if `fresh`. They expect `X-Target`.
    pub fn start(addr: &Addr, clients: usize, fresh: bool) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let done: Arc<Vec<AtomicUsize>> = Arc::new((0..clients).map(|_| AtomicUsize::new(0)).collect());
        let threads = (0..clients)
            .map(|n| {
                let (addr, stop, done) = (addr.clone(), Arc::clone(&stop), Arc::clone(&done));
                thread::spawn(move || {
                    let mut client = Client::connect(&addr);
                    for m in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        if fresh {
                            client = Client::connect(&addr);
                        }
                        let target = format!("/{n}/{m}");
                        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
                        let answer =
                            client.try_response().map_err(|broken| format!("{target}: {}", describe(&broken)))?;
                        if answer.status != 200 || answer.fields.get("x-target") != Some(&target) {
                            return Err(format!("{target}: {answer:?}"));
                        }
                        done[n].fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            })
            .collect();
        Load { stop, done, threads }
    }

    pub fn done(&self) -> Vec<usize> {
        self.done.iter().map(|done| done.load(Ordering::SeqCst)).collect()
    }

    /// Waits until every client has had another two answers, those that have failed aside.
    #[track_caller]
    pub fn flow(&self) {
        let before = self.done();
        wait_until("requests flow", || {
            let now = self.done();
            (0..now.len()).all(|n| now[n] > before[n] + 1 || self.threads[n].is_finished())
        });
    }

    /// Stops and gives the number of answers; panics when a client failed.
    #[track_caller]
    pub fn finish(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let failed: Vec<String> = self.threads.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect();
        assert!(failed.is_empty(), "{} clients failed: {failed:#?}", failed.len());
        self.done.iter().map(|done| done.load(Ordering::SeqCst)).sum()
    }
}
