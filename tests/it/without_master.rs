//! While there is no master its workers accept and serve new connections themselves, and the next master takes those over
//! like all others.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use nix::sys::signal::{Signal, kill};

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, End, get};
use crate::common::conf::Conf;
use crate::common::load::Load;
use crate::common::processes::wait_gone;
use crate::common::proxy::Launch;
use crate::common::wait_until;

/// A byte goes to the server and back.
#[track_caller]
fn echo(client: &mut Client, byte: u8) {
    client.wire.stream.write_all(&[byte]).unwrap();
    let mut back = [0];
    client.wire.stream.read_exact(&mut back).unwrap();
    assert_eq!(back, [byte]);
}

#[test]
fn new_connections_are_served_and_go_on_under_the_next_master() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(3).start();
    // The second time by workers that have taken over from others.
    for _ in 0..2 {
        let orphans = proxy.kill_master();
        let mut clients: Vec<Client> = (0..60).map(|_| Client::connect(proxy.addr())).collect();
        for client in &mut clients {
            assert_eq!(client.get("/alone").fields.get("x-target"), Some("/alone"));
        }
        for client in &mut clients[..20] {
            client.send("GET /half HT");
        }
        proxy = proxy.again();
        for client in &mut clients[..20] {
            client.send("TP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().fields.get("x-target"), Some("/half"));
        }
        wait_gone(&orphans);
        for client in &mut clients {
            assert_eq!(client.get("/after").fields.get("x-target"), Some("/after"));
        }
    }
}

#[test]
fn a_load_of_new_connections_goes_on_and_none_is_lost_on_the_way_to_the_next_master() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(3).start();
    for _ in 0..4 {
        let orphans = proxy.kill_master();
        let load = Load::start(proxy.addr(), 8, true);
        load.flow();
        proxy = proxy.again();
        wait_gone(&orphans);
        load.flow();
        assert!(load.finish() > 16);
    }
}

#[test]
fn relays_begin_without_a_master_and_outlive_the_next_change() {
    let backend = Backend::tcp_echo();
    let mut proxy = Conf::tcp(&[backend.addr]).start();
    let orphans = proxy.kill_master();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut clients {
        echo(client, b'a');
    }
    let mut proxy = proxy.again();
    wait_gone(&orphans);
    for client in &mut clients {
        echo(client, b'b');
    }
    // Now there are copies of them.
    crate::common::processes::replace_all(&mut proxy, 2);
    for client in &mut clients {
        echo(client, b'c');
    }
}

#[test]
fn each_listener_is_served_as_configured() {
    let backend = Backend::answering(|request| response(request.fields.get("x-forwarded-for").unwrap_or("nothing")));
    let streams = Backend::tcp_echo();
    // All on ports that the kernel chooses: they look the same in the configuration.
    let text = format!(
        "[[listen]]\nbind = \"127.0.0.1:0\"\nproxy_protocol = {{ from = [\"127.0.0.1\"] }}\n\
         [[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"streams\"\n\
         [[listen]]\nbind = \"127.0.0.1:0\"\n\
         [[listen]]\nbind = \"unix:{{dir}}/web.sock\"\n\
         [[route]]\nto = \"web\"\n[backends.web]\nservers = [\"{}\"]\n[backends.streams]\nservers = [\"{}\"]\n",
        backend.addr, streams.addr
    );
    let mut proxy = Launch::config(&text).start();
    let orphans = proxy.kill_master();
    let mut told = Client::connect(&proxy.addrs()[0]);
    let header = "PROXY TCP4 192.0.2.7 192.0.2.8 7 8\r\n";
    assert_eq!(told.ask(format!("{header}GET / HTTP/1.1\r\nHost: a\r\n\r\n")).text(), "192.0.2.7");
    let mut bare = Client::connect(&proxy.addrs()[0]);
    bare.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let (answer, _) = bare.read_to_end();
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "without the header that is due");
    echo(&mut Client::connect(&proxy.addrs()[1]), b'x');
    assert_eq!(get(&proxy.addrs()[2], "/").text(), "127.0.0.1");
    let mut unix = UnixStream::connect(proxy.dir.join("web.sock")).unwrap();
    unix.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    unix.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("nothing"), "{answer}");
    let _next = proxy.again();
    wait_gone(&orphans);
    assert_eq!(told.get("/").text(), "192.0.2.7");
}

#[test]
fn the_bounds_on_connections_hold() {
    let backend = Backend::echo();
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections_per_address = 3");
    let mut proxy = conf.launch().workers(1).start();
    let orphans = proxy.kill_master();
    let mut clients = Client::served(proxy.addr(), 3);
    assert_eq!(get(proxy.addr(), "/").status, 503);
    drop(clients.pop());
    wait_until("there is room again", || get(proxy.addr(), "/").status == 200);
    let _next = proxy.again();
    wait_gone(&orphans);
}

#[test]
fn who_finds_no_place_waits_for_one() {
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            if request.target == "/slow" {
                conn.gate().pass();
            }
            conn.send(&response("done"));
        }
    });
    let conf = Conf::http(&[backend.addr]).tables("[limits]\nconnections = 2");
    let mut proxy = conf.launch().workers(1).start();
    let orphans = proxy.kill_master();
    let mut busy: Vec<Client> = (0..2).map(|_| Client::connect(proxy.addr())).collect();
    for client in &mut busy {
        client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    wait_until("both are at the backend", || backend.heads() == 2);
    let mut third = Client::connect(proxy.addr());
    third.send("GET /third HTTP/1.1\r\nHost: a\r\n\r\n");
    proxy.wait_for_log(&["all the connections that it can have"]);
    backend.gate().open();
    for client in &mut busy {
        assert_eq!(client.response().status, 200);
    }
    // One of them gives way to it.
    assert_eq!(third.response().status, 200);
    let _next = proxy.again();
    wait_gone(&orphans);
}

#[test]
fn a_worker_that_dies_takes_only_what_it_has_with_it() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(2).start();
    let orphans = proxy.kill_master();
    kill(orphans[0], Signal::SIGKILL).unwrap();
    wait_gone(&orphans[..1]);
    let mut clients = Client::served(proxy.addr(), 20);
    kill(orphans[1], Signal::SIGKILL).unwrap();
    wait_gone(&orphans);
    for client in &mut clients {
        assert_eq!(client.end(), End::Reset, "an end that shows");
    }
    let next = proxy.again();
    assert_eq!(get(next.addr(), "/").status, 200);
}

#[test]
fn without_another_master_they_stop_accepting_in_the_end() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).top("orphan_timeout = \"300ms\"").start();
    let orphans = proxy.kill_master();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").status, 200);
    proxy.wait_for_log(&["no other master was started"]);
    wait_gone(&orphans);
    client.read_to_end();
    let refused = TcpStream::connect(proxy.addr().inet()).map_err(|error| error.kind());
    assert_eq!(refused.unwrap_err(), ErrorKind::ConnectionRefused);
}
