//! Masters that come and go beside workers of former ones that are stopped: whoever waits is found, by however late a
//! master.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::get;
use crate::common::processes::{alive, children, wait_gone};
use crate::common::proxy::Proxy;
use crate::common::succession::{Crowd, conf};
use crate::common::{stderr, wait_for, wait_until};

/// The names beside the control socket.
fn beside(proxy: &Proxy) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(proxy.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_str().unwrap().contains("/control.")).collect()
}

fn signal_all(pids: &[Pid], signal: Signal) {
    pids.iter().for_each(|&pid| kill(pid, signal).unwrap());
}

#[test]
fn several_generations_of_stopped_workers_are_found() {
    let (web, echoing) = (Backend::echo(), Backend::tcp_echo());
    let mut proxy = conf(&web, &echoing).start();
    let (mut crowds, mut stopped) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        crowds.push(Crowd::of(&proxy));
        let orphans = proxy.kill_master();
        // One gives its listening sockets. The other has not been met when the next master is killed.
        kill(orphans[1], Signal::SIGSTOP).unwrap();
        stopped.push(orphans[1]);
        proxy = proxy.again();
        wait_gone(&orphans[..1]);
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
    assert_eq!(beside(&proxy).len(), 4);
    let newest = proxy.kill_master();
    let last = proxy.again();
    signal_all(&stopped, Signal::SIGCONT);
    wait_gone(&stopped);
    wait_gone(&newest);
    crowds.into_iter().for_each(Crowd::check);
    wait_until("no name is left beside the control socket", || beside(&last).is_empty());
    last.check_log();
}

#[test]
fn a_stopped_worker_is_found_by_the_successor_of_the_master_that_waits_for_it() {
    let (web, echoing) = (Backend::echo(), Backend::tcp_echo());
    let mut proxy = conf(&web, &echoing).start();
    let crowd = Crowd::of(&proxy);
    let orphans = proxy.kill_master();
    kill(orphans[1], Signal::SIGSTOP).unwrap();
    let mut next = proxy.again();
    wait_gone(&orphans[..1]);
    next.upgrade();
    next.upgrade();
    assert!(alive(orphans[1]));
    kill(orphans[1], Signal::SIGCONT).unwrap();
    wait_gone(&orphans);
    crowd.check();
    wait_until("no name is left beside the control socket", || beside(&next).is_empty());
    next.check_log();
}

#[test]
fn of_masters_started_together_one_stays() {
    let (web, echoing) = (Backend::echo(), Backend::tcp_echo());
    let mut proxy = conf(&web, &echoing).launch().workers(4).start();
    let mut orphans = proxy.kill_master();
    for round in 0..6 {
        let mut masters = [proxy.launch().begin(), proxy.launch().begin()];
        let ended = wait_for("one of the masters has ended", || {
            masters.iter_mut().position(|master| master.try_wait().unwrap().is_some())
        });
        let stays = &mut masters[1 - ended];
        let pid = Pid::from_raw(i32::try_from(stays.id()).unwrap());
        wait_gone(&orphans);
        wait_until("it has its workers", || children(pid).len() == 4);
        assert_eq!(get(proxy.addr(), "/").status, 200);
        assert!(proxy.question("status").status.success());
        assert!(stays.try_wait().unwrap().is_none(), "neither has stayed");
        orphans = children(pid);
        let signal = if round == 5 { Signal::SIGTERM } else { Signal::SIGKILL };
        kill(pid, signal).unwrap();
        stays.wait().unwrap();
    }
    wait_gone(&orphans);
    assert!(beside(&proxy).is_empty(), "{:?}", beside(&proxy));
}

#[test]
fn a_place_that_cannot_be_taken_is_taken_later() {
    let (web, echoing) = (Backend::echo(), Backend::tcp_echo());
    let mut proxy = conf(&web, &echoing).start();
    let orphans = proxy.kill_master();
    let place = proxy.dir.join("control");
    std::fs::rename(&place, proxy.dir.join("control.beside-1")).unwrap();
    std::fs::write(&place, "precious").unwrap();
    let next = proxy.again();
    wait_gone(&orphans);
    next.wait_for_log(&["cannot take the place", "trying again"]);
    assert_eq!(std::fs::read(&place).unwrap(), b"precious");
    assert!(!next.question("status").status.success());
    std::fs::remove_file(&place).unwrap();
    next.wait_for_log(&["the control socket has its place now"]);
    assert!(next.question("status").status.success());
    wait_until("no name is left beside the control socket", || beside(&next).is_empty());
    next.check_log();
}

#[test]
fn a_living_master_beside_the_place_is_waited_for() {
    let (web, echoing) = (Backend::echo(), Backend::tcp_echo());
    let living = conf(&web, &echoing).start();
    let (place, elsewhere) = (living.dir.join("control"), living.dir.join("elsewhere"));
    std::fs::rename(&place, &elsewhere).unwrap();
    let mut killed = living.again();
    let orphans = killed.kill_master();
    // As one that comes up, while there is an orphan that gives all that is needed.
    living.signal(Signal::SIGSTOP);
    std::fs::rename(&elsewhere, living.dir.join("control.beside-1")).unwrap();
    let output = living.launch().run();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("does not answer: a master or its workers, stopped or stuck"), "{output:?}");
    living.signal(Signal::SIGCONT);
    let output = living.launch().run();
    assert!(stderr(&output).contains(&format!("another master (pid {}) runs", living.pid)), "{output:?}");
    signal_all(&orphans, Signal::SIGKILL);
    wait_gone(&orphans);
    assert_eq!(get(living.addr(), "/").status, 200);
}
