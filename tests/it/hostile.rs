//! Peers that want to exhaust the proxy, and days on which everything runs short at once.

use std::time::Duration;

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, End};
use crate::common::proxy::{Conf, Launch, Proxy};
use crate::common::{dawdle, wait_until};

/// The warnings of the log that have all of `parts`.
fn warnings(proxy: &Proxy, parts: &[&str]) -> usize {
    let all = proxy.log.all();
    all.iter().filter(|line| line.contains("WARN") && parts.iter().all(|part| line.contains(part))).count()
}

#[test]
fn no_warning_at_the_start_without_a_reason() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).start();
    assert_eq!(warnings(&proxy, &["open files"]), 0, "{}", proxy.text());
    assert!(proxy.log.find(0, &["room for", "connections in each of 2 workers"]).is_some(), "{}", proxy.text());
}

#[test]
fn a_low_descriptor_limit_is_warned_of() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).descriptors(512, 1024).start();
    assert_eq!(warnings(&proxy, &["the limit of 1024 open files is low"]), 1, "{}", proxy.text());
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 9999");
    let proxy = conf.launch().descriptors(1024, 1024).start();
    assert_eq!(warnings(&proxy, &["instead of the 9999 configured"]), 1, "{}", proxy.text());
}

#[test]
fn the_oldest_idle_connections_give_way_when_all_places_are_taken() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 64");
    let proxy = conf.launch().workers(2).start();
    // Each client asks once and stays idle. Far more than the 128 places are served all the same.
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..300 {
        let mut client = Client::connect(proxy.addr());
        assert_eq!(client.get("/").status, 200);
        clients.push(client);
    }
    // Those that came last are still there, the first are not.
    for client in clients.iter_mut().rev().take(40) {
        assert_eq!(client.get("/").status, 200);
    }
    for client in &mut clients[..120] {
        assert_eq!(client.end(), End::Clean);
    }
    proxy.wait_for_log(&["WARN", "idle longest"]);
    proxy.wait_for_log(&["WARN", "room is short: closed"]);
    assert!(warnings(&proxy, &["room is short"]) < 40, "{}", proxy.text());
}

#[test]
fn pooled_connections_give_way_before_descriptors_run_out() {
    // Each group in turn leaves 40 idle connections behind: many more than 256 descriptors hold.
    let slow = || {
        Backend::answering(|_| {
            dawdle(Duration::from_millis(100));
            response("ok")
        })
    };
    let backends: Vec<Backend> = (0..8).map(|_| slow()).collect();
    let mut text = "[[listen]]\nbind = \"127.0.0.1:0\"\n".to_owned();
    for (n, backend) in backends.iter().enumerate() {
        text +=
            &format!("[[route]]\npath = \"/{n}\"\nto = \"g{n}\"\n[backends.g{n}]\nservers = [\"{}\"]\n", backend.addr);
    }
    let proxy = Launch::config(&text).workers(1).descriptors(256, 256).start();
    let worker = proxy.workers();
    for n in 0..backends.len() {
        let mut clients: Vec<Client> = (0..40).map(|_| Client::connect(proxy.addr())).collect();
        for client in &mut clients {
            client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    }
    assert_eq!(proxy.workers(), worker, "the worker was replaced\n{}", proxy.text());
    proxy.wait_for_log(&["WARN", "room is short", "idle connections to servers"]);
    assert_eq!(warnings(&proxy, &["failed"]), 0, "a server was blamed\n{}", proxy.text());
}

#[test]
fn requests_in_progress_do_not_give_way() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            if request.target == "/held" {
                conn.gate().pass();
            }
            conn.send(&response("ok"));
        }
    });
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 16");
    let proxy = conf.launch().workers(1).start();
    let mut held: Vec<Client> = (0..12).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut held {
        client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let mut halves: Vec<Client> = (0..3).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut halves {
        client.send("GET /half HT");
    }
    wait_until("all of them are being served", || backend.heads() == 12);
    for _ in 0..20 {
        let mut client = Client::connect(proxy.addr());
        assert_eq!(client.get("/").status, 200);
        std::mem::forget(client);
    }
    backend.gate().open();
    for client in &mut held {
        assert_eq!(client.response().status, 200);
    }
    for client in &mut halves {
        client.send("TP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn a_full_house_of_busy_connections_makes_others_wait_without_spinning() {
    let backend = Backend::serve(|conn| {
        if conn.request().is_some() {
            conn.gate().pass();
            conn.send(&response("ok"));
        }
    });
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 4");
    let proxy = conf.launch().workers(1).start();
    let mut clients: Vec<Client> = (0..10).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    }
    wait_until("every place is taken", || backend.heads() == 4);
    let before = cpu_ms(&proxy);
    dawdle(Duration::from_millis(500));
    let spent = cpu_ms(&proxy) - before;
    assert!(spent <= 100, "{spent} ms of CPU time in half a second of waiting\n{}", proxy.text());
    backend.gate().open();
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
}

/// CPU time that the master and its workers have used, in milliseconds.
fn cpu_ms(proxy: &Proxy) -> u64 {
    let of = |pid: i32| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
    };
    std::iter::once(proxy.pid).chain(proxy.workers()).map(|pid| of(pid.as_raw())).sum()
}
