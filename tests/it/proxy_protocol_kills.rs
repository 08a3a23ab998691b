//! PROXY headers accepted: no death of a worker loses what they said, before, in and after the header.

use nix::sys::signal::{Signal, kill};

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, End};
use crate::common::processes::{alive, replace_all};
use crate::common::proxy::Addr;
use crate::common::wait_until;
use crate::proxy_protocol::{REQUEST, V1, behind, mirror, says, tcp_behind, v2};

#[test]
fn half_a_header_survives_the_worker() {
    let backend = mirror();
    let mut proxy = behind(&backend).launch().workers(2).start();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&v2()[..number * 5]);
    }
    replace_all(&mut proxy, 2);
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&v2()[number * 5..]);
        says(&client.get("/"), "203.0.113.7");
    }
}

#[test]
fn the_address_survives_worker_after_worker() {
    let backend = mirror();
    let mut proxy = behind(&backend).launch().workers(2).start();
    let mut clients: Vec<Client> = (0..12).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(format!("PROXY TCP4 203.0.113.{number} 192.0.2.1 {number} 80\r\n"));
        match number % 3 {
            // A request done, a request begun, nothing but the header.
            0 => says(&client.get("/"), &format!("203.0.113.{number}")),
            1 => client.send("GET / HT"),
            _ => {}
        }
    }
    for round in 0..2 {
        replace_all(&mut proxy, 2);
        for (number, client) in clients.iter_mut().enumerate() {
            if number % 3 == 1 && round == 0 {
                client.send("TP/1.1\r\nHost: a\r\n\r\n");
                says(&client.response(), &format!("203.0.113.{number}"));
            } else {
                says(&client.get("/"), &format!("203.0.113.{number}"));
            }
        }
    }
}

#[test]
fn a_request_run_again_has_the_same_address() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            conn.gate().pass();
            conn.send(&response(request.fields.get("x-forwarded-for").unwrap_or("none")));
        }
    });
    let mut proxy = behind(&backend).launch().workers(2).start();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        client.send([v2().as_slice(), REQUEST.as_bytes()].concat());
    }
    wait_until("every request is at the backend", || backend.requests().len() == 4);
    replace_all(&mut proxy, 2);
    wait_until("every request is there again", || backend.requests().len() == 8);
    assert!(backend.requests().iter().all(|request| request.fields.get("x-forwarded-for") == Some("203.0.113.7")));
    backend.gate().open();
    for client in &mut clients {
        says(&client.response(), "203.0.113.7");
        says(&client.get("/"), "203.0.113.7");
    }
}

#[test]
fn a_drained_worker_hands_on_header_and_address() {
    let backend = mirror();
    let mut proxy = behind(&backend).launch().workers(3).start();
    let mut clients: Vec<Client> = (0..9).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 0 {
            client.send(V1);
            says(&client.get("/"), "203.0.113.7");
        } else {
            client.send(&V1[..10]);
        }
    }
    for left in [2, 1] {
        proxy.signal(Signal::SIGTTOU);
        proxy.wait_for_workers(left);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 1 {
            client.send(&V1[10..]);
        }
        says(&client.get("/"), "203.0.113.7");
    }
}

#[test]
fn a_relay_with_a_header_survives_the_worker() {
    let backend = Backend::tcp_echo();
    let mut proxy = tcp_behind(&backend).launch().workers(2).start();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(proxy.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 0 {
            client.send([V1, "one "].concat());
            client.wire.begin();
            assert_eq!(client.wire.take(4).unwrap(), b"one ");
        } else {
            client.send(&V1[..7]);
        }
    }
    replace_all(&mut proxy, 2);
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 1 {
            client.send(&V1[7..]);
        }
        client.send("two");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"two".to_vec(), End::Clean));
    }
}

#[test]
fn kills_under_load_never_lose_or_mix_addresses() {
    let backend = mirror();
    let mut proxy = behind(&backend).launch().workers(2).start();
    let addr: Addr = proxy.addr().clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load: Vec<_> = (1..=6)
        .map(|number| {
            let (addr, stop) = (addr.clone(), std::sync::Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut done = 0;
                let ip = format!("203.0.{number}.1");
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let mut client = Client::connect(&addr);
                    client.send(format!("PROXY TCP4 {ip} 192.0.2.1 1 2\r\n{REQUEST}"));
                    says(&client.response(), &ip);
                    says(&client.get("/"), &ip);
                    done += 2;
                }
                done
            })
        })
        .collect();
    for round in 0..12 {
        let workers = proxy.wait_for_workers(2);
        let before = backend.heads();
        wait_until("requests flow", || backend.heads() > before + 20 || load.iter().any(|t| t.is_finished()));
        kill(workers[round % 2], Signal::SIGKILL).unwrap();
        wait_until("the worker is gone", || !alive(workers[round % 2]));
    }
    proxy.wait_for_workers(2);
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let done: usize = load.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(done > 100, "{done}");
}
