//! The TCP relay: every byte, in order, both ways, and each half-close.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::backend::{Act, Backend, Refusing, Unanswering};
use crate::common::client::{Client, End, reset};
use crate::common::conf::Conf;
use crate::common::proxy::Launch;
use crate::common::{DEADLINE, PIECE, check_pattern, pattern, pattern_bytes, wait_until};

/// Sends the first `length` bytes of the pattern and closes the sending side.
fn send_pattern(mut stream: TcpStream, length: u64) {
    let mut at = 0;
    while at < length {
        let piece = pattern(at, usize::try_from(length - at).unwrap().min(PIECE));
        stream.write_all(piece).unwrap();
        at += piece.len() as u64;
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end, checks that it is the pattern, gives its length.
fn receive_pattern(mut stream: TcpStream) -> u64 {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut at, mut buffer) = (0, vec![0; PIECE]);
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return at,
            count => {
                check_pattern(at, &buffer[..count]);
                at += count as u64;
            }
        }
    }
}

#[test]
fn every_byte_arrives_both_ways() {
    const LENGTH: u64 = 64 << 20;
    let backend = Backend::tcp_echo();
    let proxy = Launch::tcp(&[backend.addr]).start();
    let client = Client::connect(proxy.addr());
    let sender = client.wire.stream.try_clone().unwrap();
    let writer = thread::spawn(move || send_pattern(sender, LENGTH));
    assert_eq!(receive_pattern(client.wire.stream), LENGTH);
    writer.join().unwrap();
    wait_until("the relay ends on the other side too", || backend.open() == 0);
}

#[test]
fn every_byte_arrives_in_opposite_directions_at_once() {
    const LENGTH: u64 = 16 << 20;
    // Two streams that have nothing to do with each other.
    let backend = Backend::serve(|conn| {
        let sender = conn.wire.stream.try_clone().unwrap();
        let writer = thread::spawn(move || send_pattern(sender, LENGTH));
        assert_eq!(receive_pattern(conn.wire.stream.try_clone().unwrap()), LENGTH);
        writer.join().unwrap();
    });
    let proxy = Launch::tcp(&[backend.addr]).start();
    let client = Client::connect(proxy.addr());
    let sender = client.wire.stream.try_clone().unwrap();
    let writer = thread::spawn(move || send_pattern(sender, LENGTH));
    assert_eq!(receive_pattern(client.wire.stream), LENGTH);
    writer.join().unwrap();
    wait_until("the backend has checked its side", || backend.open() == 0);
}

#[test]
fn half_close_of_the_client_is_passed_on() {
    // The backend answers only once it has seen the end.
    let backend = Backend::serve(|conn| {
        let mut all = Vec::new();
        conn.wire.stream.read_to_end(&mut all).unwrap();
        all.reverse();
        conn.send(&all);
    });
    let proxy = Launch::tcp(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("abc");
    client.shutdown_write();
    assert_eq!(client.read_to_end(), (b"cba".to_vec(), End::Clean));
}

#[test]
fn half_close_of_the_backend_is_passed_on() {
    // The client sends only once it has seen the end.
    let (sender, receiver) = std::sync::mpsc::channel();
    let backend = Backend::serve(move |conn| {
        conn.send(b"bye");
        conn.wire.stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        conn.wire.stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
    });
    let proxy = Launch::tcp(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.read_to_end(), (b"bye".to_vec(), End::Clean));
    client.send("still here");
    client.shutdown_write();
    assert_eq!(receiver.recv_timeout(DEADLINE).unwrap(), b"still here");
}

#[test]
fn backend_that_speaks_first_is_heard() {
    let backend = Backend::scripted(vec![Act::send("220 ready\r\n"), Act::Hang]);
    let proxy = Launch::tcp(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.wire.begin();
    assert_eq!(client.wire.take(11).unwrap(), b"220 ready\r\n");
}

#[test]
fn client_that_sends_and_closes_at_once_loses_nothing() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let backend = Backend::serve(move |conn| {
        let mut all = Vec::new();
        conn.wire.stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
    });
    let proxy = Launch::tcp(&[backend.addr]).start();
    let data = pattern_bytes(200_000);
    for _ in 0..10 {
        let mut client = Client::connect(proxy.addr());
        client.send(&data);
        drop(client);
        assert_eq!(receiver.recv_timeout(DEADLINE).unwrap().len(), data.len());
    }
}

#[test]
fn reset_of_either_side_ends_the_other() {
    let backend = Backend::serve(|conn| conn.hang());
    let proxy = Launch::tcp(&[backend.addr]).start();
    let client = Client::connect(proxy.addr());
    wait_until("the relay stands", || backend.open() == 1);
    client.reset();
    wait_until("the backend's side ends", || backend.open() == 0);

    let backend = Backend::scripted(vec![Act::Gate, Act::Reset]);
    let proxy = Launch::tcp(&[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send("x");
    wait_until("the relay stands", || backend.open() == 1);
    backend.gate().open();
    client.end();
}

#[test]
fn idle_relay_is_closed_after_its_time() {
    let backend = Backend::tcp_echo();
    let proxy = Conf::tcp(&[backend.addr]).tables("[timeouts]\ntunnel = \"400ms\"").start();
    let mut client = Client::connect(proxy.addr());
    client.send("x");
    client.wire.begin();
    assert_eq!(client.wire.take(1).unwrap(), b"x");
    let start = Instant::now();
    client.end();
    assert!(start.elapsed() > Duration::from_millis(300), "{:?}", start.elapsed());
    wait_until("the backend's side is closed too", || backend.open() == 0);
}

#[test]
fn relay_that_moves_one_way_only_is_not_idle() {
    let backend = Backend::scripted(vec![Act::Drip(40, 1, Duration::from_millis(50)), Act::Close]);
    let proxy = Conf::tcp(&[backend.addr]).tables("[timeouts]\ntunnel = \"800ms\"").start();
    let mut client = Client::connect(proxy.addr());
    let (got, end) = client.read_to_end();
    assert_eq!((got.len(), end), (40, End::Clean));
}

#[test]
fn refused_connection_goes_to_the_next_server() {
    let (refusing, backend) = (Refusing::new(), Backend::tcp_echo());
    let proxy = Launch::tcp(&[refusing.addr, backend.addr]).start();
    for _ in 0..6 {
        let mut client = Client::connect(proxy.addr());
        client.send("x");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"x".to_vec(), End::Clean));
    }
}

#[test]
fn unanswered_connect_goes_to_the_next_server() {
    let (unanswering, backend) = (Unanswering::new(), Backend::tcp_echo());
    let conf = Conf::tcp(&[unanswering.addr, backend.addr]).tables("[timeouts]\nconnect = \"300ms\"");
    let proxy = conf.start();
    for _ in 0..4 {
        let mut client = Client::connect(proxy.addr());
        client.send("x");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"x".to_vec(), End::Clean));
    }
}

#[test]
fn connection_without_any_server_is_closed() {
    let refusing = Refusing::new();
    let proxy = Launch::tcp(&[refusing.addr]).start();
    for _ in 0..3 {
        // The end may come before `connect` has returned, which then says so.
        if let Ok(mut stream) = TcpStream::connect(proxy.addr().inet()) {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            match stream.read(&mut [0; 1]) {
                Ok(count) => assert_eq!(count, 0),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
    }
}

#[test]
fn many_connections_at_once() {
    let backend = Backend::tcp_echo();
    let proxy = Launch::tcp(&[backend.addr]).start();
    let mut clients: Vec<Client> = (0..300).map(|_| Client::connect(proxy.addr())).collect();
    for round in 0..3 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(format!("{number:05} {round:05}"));
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.wire.begin();
            assert_eq!(client.wire.take(11).unwrap(), format!("{number:05} {round:05}").as_bytes());
        }
    }
    drop(clients);
    wait_until("every relay ends", || backend.open() == 0);
}

#[test]
fn relays_leave_no_descriptor_behind() {
    let backend = Backend::tcp_echo();
    let proxy = Launch::tcp(&[backend.addr]).workers(1).start();
    let round = || {
        let clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
        for (number, mut client) in clients.into_iter().enumerate() {
            client.send("x");
            client.wire.begin();
            assert_eq!(client.wire.take(1).unwrap(), b"x");
            if number % 3 == 0 {
                reset(client.wire.stream);
            }
        }
        wait_until("every relay ends", || backend.open() == 0);
    };
    // Pipes are kept for the next relays: what one round leaves open, later rounds use again.
    round();
    wait_until("the worker is idle", || backend.open() == 0);
    let before = proxy.descriptors();
    for _ in 0..5 {
        round();
    }
    proxy.assert_no_leaks(&before, 8);
}

#[test]
fn slow_reader_holds_back_the_sender() {
    // Backpressure: with the client not reading, the proxy takes only so much from the backend.
    let (sender, receiver) = std::sync::mpsc::channel();
    let backend = Backend::serve(move |conn| {
        conn.wire.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let (mut sent, data) = (0, pattern_bytes(65_536));
        while let Ok(count) = conn.wire.stream.write(&data) {
            sent += count;
            if sent > 200 << 20 {
                break;
            }
        }
        sender.send(sent).unwrap();
    });
    let proxy = Launch::tcp(&[backend.addr]).start();
    let client = Client::connect(proxy.addr());
    let sent = receiver.recv_timeout(DEADLINE).unwrap();
    assert!(sent < 64 << 20, "{sent} bytes were taken for a client that reads nothing");
    drop(client);
}
