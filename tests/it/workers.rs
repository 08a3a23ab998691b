//! The processes: signals, respawn, more and fewer workers, stopping, and what clients see meanwhile: nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::common::backend::{Act, Backend, response};
use crate::common::client::{Client, End, describe, get};
use crate::common::conf::Conf;
use crate::common::load::Load;
use crate::common::processes::{alive, kill_all};
use crate::common::proxy::{Launch, Proxy};
use crate::common::{dawdle, wait_for, wait_until};

/// Answers each request once the test opens the gate.
fn gated() -> Backend {
    Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            conn.gate().pass();
            conn.send(&response(&request.target));
        }
    })
}

#[test]
fn killed_worker_is_replaced_at_once() {
    let backend = Backend::ok();
    let mut proxy = Launch::http(&[backend.addr]).workers(2).start();
    let old = proxy.workers()[0];
    let start = Instant::now();
    kill(old, Signal::SIGKILL).unwrap();
    let (_, line) = proxy.wait_for_log(&[&format!("worker 0 (pid {old}) killed by SIGKILL")]);
    assert!(line.contains("starting it again"), "{line}");
    let workers = proxy.wait_for_workers(2);
    assert!(!workers.contains(&old));
    let (ready, _) = proxy.wait_for_log(&[&format!("worker 0 (pid {}) ready", workers[0])]);
    // 100 ms on a quiet machine; this one may be busy.
    assert!(ready - start < Duration::from_secs(2), "{:?}", ready - start);
    assert_eq!(get(proxy.addr(), "/").status, 200);
}

#[test]
fn idle_connections_survive_the_death_of_every_worker() {
    let backend = Backend::echo();
    let mut proxy = Launch::http(&[backend.addr]).workers(2).start();
    let mut clients: Vec<Client> = (0..40).map(|_| Client::connect(proxy.addr())).collect();
    for round in 0..3 {
        for client in &mut clients {
            assert_eq!(client.get(&format!("/{round}")).status, 200);
        }
        kill_all(&proxy);
        proxy.wait_for_log(&["killed by SIGKILL"]);
        if round == 1 {
            proxy.wait_for_workers(2);
        }
    }
    for client in &mut clients {
        assert_eq!(client.get("/last").fields.get("x-target"), Some("/last"));
    }
    proxy.wait_for_workers(2);
}

#[test]
fn connections_on_which_nothing_was_sent_yet_survive() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
    kill_all(&proxy);
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn half_a_request_survives() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    let mut clients: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        assert_eq!(client.get("/first").status, 200);
        client.send("GET /seco");
    }
    kill_all(&proxy);
    for client in &mut clients {
        client.send("nd HTTP/1.1\r\nHo");
    }
    proxy.wait_for_log(&["killed by SIGKILL"]);
    for client in &mut clients {
        client.send("st: a\r\n\r\n");
        assert_eq!(client.response().fields.get("x-target"), Some("/second"));
    }
}

#[test]
fn connections_passed_to_stopped_workers_are_served_after_their_death() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    let workers = proxy.workers();
    for worker in &workers {
        kill(*worker, Signal::SIGSTOP).unwrap();
    }
    let mut clients: Vec<Client> = (0..60).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    for worker in &workers {
        kill(*worker, Signal::SIGKILL).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.response().fields.get("x-target"), Some(format!("/{number}").as_str()));
    }
}

#[test]
fn stopped_workers_that_go_on_lose_nothing() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    for worker in proxy.workers() {
        kill(worker, Signal::SIGSTOP).unwrap();
    }
    let mut clients: Vec<Client> = (0..30).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    for worker in proxy.workers() {
        kill(worker, Signal::SIGCONT).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn safe_request_in_progress_is_run_again() {
    let backend = gated();
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    wait_until("every request is at the backend", || backend.requests().len() == 6);
    kill_all(&proxy);
    wait_until("every request is at the backend again", || backend.requests().len() == 12);
    backend.gate().open();
    for (number, client) in clients.iter_mut().enumerate() {
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, format!("/{number}")));
        client.get("/after");
    }
}

#[test]
fn pipelined_safe_requests_are_run_again_in_order() {
    let backend = gated();
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client
        .send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the first request is at the backend", || backend.requests().len() == 1);
    kill_all(&proxy);
    wait_until("it is there again", || backend.requests().len() == 2);
    backend.gate().open();
    for target in ["/1", "/2", "/3"] {
        assert_eq!(client.response().text(), target);
    }
}

#[test]
fn unsafe_request_in_progress_is_never_run_twice() {
    let backend = gated();
    let mut proxy = Launch::http(&[backend.addr]).workers(2).start();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    }
    wait_until("every request is at the backend", || backend.requests().len() == 6);
    kill_all(&proxy);
    for client in &mut clients {
        assert_eq!(client.response().status, 502);
    }
    proxy.wait_for_workers(2);
    assert_eq!(backend.requests().len(), 6);
    backend.gate().open();
}

#[test]
fn response_in_progress_is_cut_visibly() {
    let backend = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
        Act::Hang,
    ]);
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.wire.begin();
    client.wire.response_head().unwrap();
    assert_eq!(client.wire.take(5).unwrap(), b"hello");
    kill_all(&proxy);
    client.end();
}

#[test]
fn response_in_progress_whose_end_is_the_close_is_reset() {
    // An HTTP/1.0 client takes an orderly end for a whole body.
    let backend = Backend::scripted(vec![Act::Request, Act::send("HTTP/1.1 200 OK\r\n\r\nhello"), Act::Hang]);
    let proxy = Launch::http(&[backend.addr]).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    client.wire.begin();
    client.wire.response_head().unwrap();
    assert_eq!(client.wire.take(5).unwrap(), b"hello");
    kill_all(&proxy);
    assert_eq!(client.end(), End::Reset);
}

#[test]
fn kills_under_load_cost_nothing() {
    for fresh in [false, true] {
        let backend = Backend::echo();
        let mut proxy = Launch::http(&[backend.addr]).workers(4).start();
        let load = Load::start(proxy.addr(), 8, fresh);
        for round in 0..16 {
            let workers = proxy.wait_for_workers(4);
            // Each kill meets other requests: one that two workers died over may be refused.
            load.flow();
            kill(workers[round % 4], Signal::SIGKILL).unwrap();
            wait_until("the worker is gone", || !alive(workers[round % 4]));
        }
        proxy.wait_for_workers(4);
        assert!(load.finish() > 100);
    }
}

#[test]
fn quick_deaths_back_off_and_the_service_goes_on() {
    let backend = Backend::ok();
    let mut proxy = Launch::http(&[backend.addr]).workers(2).start();
    let victim = |proxy: &Proxy| -> Option<Pid> {
        proxy.workers().into_iter().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.replace('\0', " ").contains("worker 0"))
        })
    };
    let start = Instant::now();
    let mut kills = 0;
    while start.elapsed() < Duration::from_secs(2) {
        if let Some(pid) = victim(&proxy) {
            kills += usize::from(kill(pid, Signal::SIGKILL).is_ok() && alive(pid));
        }
        dawdle(Duration::from_millis(5));
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
    assert!(kills > 2);
    let deaths = proxy.log.all().iter().filter(|line| line.contains("worker 0") && line.contains("killed")).count();
    assert!(deaths < 40, "{deaths} respawns within two seconds: no back-off");
    proxy.wait_for_workers(2);
}

#[test]
fn ttin_and_ttou_change_the_number_of_workers() {
    let backend = Backend::echo();
    let mut proxy = Launch::http(&[backend.addr]).workers(2).start();
    let load = Load::start(proxy.addr(), 4, false);
    for (signal, count) in [
        (Signal::SIGTTIN, 3),
        (Signal::SIGTTIN, 4),
        (Signal::SIGTTOU, 3),
        (Signal::SIGTTOU, 2),
        (Signal::SIGTTOU, 1),
        (Signal::SIGTTIN, 2),
    ] {
        proxy.signal(signal);
        proxy.wait_for_workers(count);
        load.flow();
    }
    load.finish();
}

#[test]
fn the_last_worker_stays() {
    let backend = Backend::ok();
    let mut proxy = Launch::http(&[backend.addr]).workers(1).start();
    let lines = proxy.log.all().len();
    proxy.signal(Signal::SIGTTOU);
    proxy.wait_for_log_after(lines, &[""]);
    proxy.wait_for_workers(1);
    assert_eq!(get(proxy.addr(), "/").status, 200);
}

#[test]
fn connections_spread_evenly_over_the_workers() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(4).start();
    let before = proxy.descriptors();
    let _clients = Client::served(proxy.addr(), 80);
    let now = proxy.descriptors();
    let each: Vec<usize> = now.0.iter().zip(&before.0).skip(1).map(|(now, before)| now - before).collect();
    // 20 clients, and between none and a few pooled connections to the backend.
    assert!(each.iter().all(|&count| (19..=24).contains(&count)), "{each:?}");
}

#[test]
fn round_robin_dispatch_takes_the_workers_in_turn() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).top("dispatch = \"round-robin\"").group("worker_header = true");
    let proxy = conf.launch().workers(3).start();
    for _ in 0..30 {
        assert_eq!(get(proxy.addr(), "/").status, 200);
    }
    let counts = served_by(&backend);
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(counts.values().all(|&count| count == 10), "{counts:?}");
}

/// How many requests each worker sent, by the field that names it.
fn served_by(backend: &Backend) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for request in backend.requests() {
        let worker = request.fields.get("x-pointsman-worker").expect("worker_header is set").to_owned();
        *counts.entry(worker).or_default() += 1;
    }
    counts
}

#[test]
fn worker_header_names_the_worker_and_cannot_be_forged() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).group("worker_header = true").launch().workers(2).start();
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Pointsman-Worker: 1\r\n\r\n";
    assert_eq!(Client::connect(proxy.addr()).ask(request).status, 200);
    let workers: Vec<String> = proxy.workers().iter().map(ToString::to_string).collect();
    let counts = served_by(&backend);
    assert!(counts.keys().all(|pid| workers.contains(pid)), "{counts:?}, not {workers:?}");
}

#[test]
fn workers_run_as_the_user_configured() {
    let backend = Backend::ok();
    if !nix::unistd::Uid::effective().is_root() {
        // Anybody may be who the tests run as, but root.
        let output = Conf::http(&[backend.addr]).top("user = \"root\"").launch().run();
        assert!(!output.status.success(), "only root can change the user");
        return;
    }
    let proxy = Conf::http(&[backend.addr]).top("user = \"nobody\"").start();
    assert_eq!(get(proxy.addr(), "/").status, 200);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    for worker in proxy.workers() {
        let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        for (name, id) in [("Uid:", nobody.uid.as_raw()), ("Gid:", nobody.gid.as_raw())] {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line.split_whitespace().skip(1).all(|number| number == id.to_string()), "{line}");
        }
        let groups = status.lines().find(|line| line.starts_with("Groups:")).unwrap();
        let kept = groups.split_whitespace().skip(1).any(|group| group == "0");
        assert!(!kept, "the master's own groups are kept: {groups}");
    }
    // And again after a death.
    let mut proxy = proxy;
    kill_all(&proxy);
    proxy.wait_for_workers(2);
    assert_eq!(get(proxy.addr(), "/").status, 200);
}

#[test]
fn term_and_int_stop_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let backend = Backend::silent();
        let mut proxy = Launch::http(&[backend.addr]).start();
        let mut client = Client::connect(proxy.addr());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("the request is at the backend", || backend.requests().len() == 1);
        let start = Instant::now();
        proxy.check_end(Some(signal));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert!(client.try_response().is_err());
    }
}

#[test]
fn interrupt_of_the_whole_process_group_is_an_orderly_stop() {
    // What a terminal does on ^C, and `timeout` with TERM: every process gets the signal, not the master alone.
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut proxy = Launch::new(&["--listen", "127.0.0.1:0"]).own_group().start();
        assert_eq!(get(proxy.addr(), "/").status, 200);
        killpg(proxy.pid, signal).unwrap();
        proxy.check_end(None);
        let log = proxy.text();
        assert!(!log.contains("starting it again"), "{log}");
    }
}

#[test]
fn quit_finishes_requests_and_closes_the_rest() {
    let backend = gated();
    let mut proxy = Launch::http(&[backend.addr]).workers(2).start();
    let addr = proxy.addr().clone();
    let mut idle = Client::connect(&addr);
    let mut fresh = Client::connect(&addr);
    let mut busy: Vec<Client> = (0..4).map(|_| Client::connect(&addr)).collect();
    for client in &mut busy {
        client.send("POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    }
    wait_until("the requests are at the backend", || backend.requests().len() == 4);
    proxy.signal(Signal::SIGQUIT);
    idle.end();
    fresh.end();
    wait_until("nobody listens any more", || std::net::TcpStream::connect(addr.inet()).is_err());
    backend.gate().open();
    for client in &mut busy {
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "/busy"));
        client.end();
    }
    proxy.check_end(None);
}

#[test]
fn quit_has_a_deadline() {
    let backend = Backend::silent();
    let mut proxy = Conf::http(&[backend.addr]).top("shutdown_timeout = \"400ms\"").start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the request is at the backend", || backend.requests().len() == 1);
    let start = Instant::now();
    proxy.check_end(Some(Signal::SIGQUIT));
    let time = start.elapsed();
    assert!(time > Duration::from_millis(300) && time < Duration::from_secs(8), "{time:?}");
    client.read_to_end();
}

#[test]
fn quit_without_connections_ends_at_once() {
    let backend = Backend::ok();
    let mut proxy = Launch::http(&[backend.addr]).start();
    assert_eq!(get(proxy.addr(), "/").status, 200);
    let start = Instant::now();
    proxy.check_end(Some(Signal::SIGQUIT));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn workers_leave_when_the_master_is_killed() {
    // Where nobody could find them, once they have finished; else when their time is over.
    for how in ["control = \"off\"", "orphan_timeout = \"300ms\""] {
        let backend = Backend::silent();
        let conf = Conf::http(&[backend.addr]).top(how).top("shutdown_timeout = \"300ms\"");
        let mut proxy = conf.launch().workers(2).start();
        let mut client = Client::connect(proxy.addr());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("the request is at the backend", || backend.requests().len() == 1);
        proxy.signal(Signal::SIGKILL);
        assert!(!proxy.wait().success());
        client.read_to_end();
        let port = proxy.addr().inet();
        wait_until("the port is free", || std::net::TcpListener::bind(port).is_ok());
    }
}

#[test]
fn running_out_of_descriptors_delays_and_refuses_nobody() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(1).descriptors(600, 600).start();
    let mut clients: Vec<Client> = (0..900).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    // Whoever has been answered makes room for another; the order is the proxy's.
    let mut answered = 0;
    wait_for("every client is answered", || {
        clients.retain_mut(|client| {
            client.patience(Duration::from_millis(1));
            match client.try_response() {
                Ok(response) => {
                    assert_eq!(response.status, 200);
                    answered += 1;
                    false
                }
                Err(crate::common::h1::Broken::Late(_)) => true,
                Err(broken) => panic!("after {answered} answers: {}", describe(&broken)),
            }
        });
        clients.is_empty().then_some(())
    });
    assert_eq!(answered, 900);
    assert_eq!(get(proxy.addr(), "/").status, 200);
    // A warning each second at most, and no busy loop.
    let warnings = proxy.log.all().iter().filter(|line| line.contains("WARN")).count();
    assert!(warnings < 60, "{warnings} warnings");
}

#[test]
fn requests_leave_no_descriptor_behind() {
    let backend = Backend::echo();
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    for _ in 0..4 {
        get(proxy.addr(), "/");
    }
    let before = proxy.descriptors();
    for _ in 0..5 {
        let mut clients: Vec<Client> = (0..30).map(|_| Client::connect(proxy.addr())).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            match number % 4 {
                0 => assert_eq!(client.get("/").status, 200),
                1 => assert_eq!(client.ask("GET / HTTP/1.1\r\n\r\n").status, 400),
                2 => client.send("GET / HT"),
                _ => client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhell"),
            }
        }
        for (number, client) in clients.into_iter().enumerate() {
            if number % 2 == 0 {
                client.reset();
            }
        }
    }
    backend.cut_all();
    proxy.assert_no_leaks(&before, 0);
}

#[test]
fn workers_hold_no_descriptor_they_do_not_need() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    for worker in proxy.workers() {
        for entry in std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
            let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
            let target = target.to_string_lossy();
            assert!(!target.contains("pointsman.toml") && !target.starts_with("/proc/"), "{target}");
        }
    }
}
