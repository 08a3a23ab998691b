//! A worker that is slow, and others that are not: it gets no new connections, its idle ones move, and it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::proxy::Proxy;
use crate::common::wait_until;

/// How many connections each worker has, by `master status`.
#[track_caller]
fn connections(proxy: &Proxy) -> Vec<(Pid, usize)> {
    let output = proxy.question("status");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let workers = text.lines().skip_while(|line| !line.starts_with("worker ")).skip(1);
    let column = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap().parse::<i32>().unwrap();
    workers.map(|line| (Pid::from_raw(column(line, 1)), usize::try_from(column(line, 4)).unwrap())).collect()
}

#[track_caller]
fn connections_of(proxy: &Proxy, worker: Pid) -> usize {
    connections(proxy).into_iter().find(|&(pid, _)| pid == worker).map_or(0, |(_, count)| count)
}

/// Keeps a process from running for most of the time.
struct Brake {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Brake {
    fn put_on(pid: Pid) -> Brake {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                for (signal, ms) in [(Signal::SIGSTOP, 200), (Signal::SIGCONT, 10)] {
                    let _ = kill(pid, signal);
                    thread::park_timeout(Duration::from_millis(ms));
                }
            }
        });
        Brake { stop, thread: Some(thread) }
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[test]
fn idle_connections_move_off_a_slow_worker_which_gets_new_ones_when_it_keeps_up_again() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            if request.target == "/held" {
                conn.gate().pass();
            }
            conn.send(&crate::common::backend::response("ok"));
        }
    });
    let proxy = Conf::http(&[backend.addr]).start();
    let mut clients = Client::served(proxy.addr(), 60);
    let mut held: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut held {
        client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    wait_until("the requests are at the backend", || backend.heads() == 70);
    let slow = proxy.workers()[0];
    assert!(connections_of(&proxy, slow) >= 30);
    let brake = Brake::put_on(slow);
    proxy.wait_for_log(&["worker 0 is slow"]);
    // Those with a request stay.
    wait_until("the idle ones have moved", || connections_of(&proxy, slow) <= 5);
    assert_eq!(connections_of(&proxy, slow), 5);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let more: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    assert_eq!(get(proxy.addr(), "/").status, 200);
    assert_eq!(connections_of(&proxy, slow), 5, "it got new ones");
    drop(brake);
    backend.gate().open();
    for client in &mut held {
        assert_eq!(client.response().status, 200);
    }
    proxy.wait_for_log(&["worker 0 keeps up again"]);
    let _more: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    wait_until("it gets new ones", || connections_of(&proxy, slow) >= 10);
    for client in clients.iter_mut().chain(&mut held) {
        assert_eq!(client.get("/").status, 200);
    }
    drop(more);
    assert_eq!(proxy.workers()[0], slow, "it was replaced");
}

#[test]
fn where_all_are_slow_nothing_moves() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).start();
    let mut clients = Client::served(proxy.addr(), 20);
    let before = connections(&proxy);
    let brakes: Vec<Brake> = proxy.workers().into_iter().map(Brake::put_on).collect();
    for worker in 0..2 {
        proxy.wait_for_log(&[&format!("worker {worker} is slow")]);
    }
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(get(proxy.addr(), "/").status, 200);
    let total: usize = connections(&proxy).iter().map(|&(_, count)| count).sum();
    assert!(total >= 20, "{before:?}");
    drop(brakes);
    for worker in 0..2 {
        proxy.wait_for_log(&[&format!("worker {worker} keeps up again")]);
    }
}
