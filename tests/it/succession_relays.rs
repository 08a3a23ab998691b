//! Relays and tunnels when another master takes over: no byte is lost, and each belongs to its server still.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::backend::Backend;
use crate::common::client::{Client, End};
use crate::common::conf::Conf;
use crate::common::proxy::{Addr, Proxy};
use crate::common::streams::{Busy, reversing, tunnel, upgrading};
use crate::common::succession::replace;
use crate::common::{check_pattern, pattern_bytes, wait_until};

#[test]
fn busy_relays_lose_no_byte() {
    const LENGTH: u64 = 24 << 20;
    let backend = Backend::tcp_echo();
    let mut proxy = Conf::tcp(&[backend.addr]).start();
    let busy = Busy::start(proxy.addr().inet(), 6, LENGTH);
    for round in 1..=3 {
        busy.wait_for_quarters(round);
        proxy = replace(proxy);
    }
    busy.finish();
    assert_eq!(backend.connections(), 6, "a relay was connected again");
}

/// Says its name, then echoes.
fn named_echo(name: &'static [u8; 1]) -> Backend {
    Backend::serve(move |conn| {
        conn.send(name);
        let mut output = conn.wire.stream.try_clone().unwrap();
        let _ = std::io::copy(&mut conn.wire.stream, &mut output);
        let _ = output.shutdown(Shutdown::Write);
    })
}

/// Begins a relay, and gives the name of its server.
#[track_caller]
fn named_relay(addr: &Addr) -> (u8, Client) {
    let mut client = Client::connect(addr);
    let mut name = [0];
    client.wire.stream.read_exact(&mut name).unwrap();
    (name[0], client)
}

/// After `replace` has brought another master, relays still belong to the servers that they go to.
fn relays_belong_to_their_servers_after(replace: impl FnOnce(Proxy) -> Proxy) {
    let (a, b) = (named_echo(b"a"), named_echo(b"b"));
    let conf = Conf::tcp(&[a.addr, b.addr]).group("balance = \"least-connections\"").tables(&format!(
        "[[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"short\"\n\
         [backends.short]\nservers = [\"{}\"]\n[backends.short.timeouts]\ntunnel = \"1s\"",
        a.addr
    ));
    let proxy = conf.launch().workers(1).start();
    let (to_a, mut to_b): (Vec<_>, Vec<_>) =
        (0..8).map(|_| named_relay(proxy.addr())).partition(|&(name, _)| name == b'a');
    assert_eq!((to_a.len(), to_b.len()), (4, 4));
    let (_, mut short) = named_relay(&proxy.addrs()[1]);
    let proxy = replace(proxy);
    // The time limit is the group's; the listener's is an hour.
    short.end();
    drop(to_a);
    wait_until("the relays to one server have ended", || a.open() == 0);
    let more: Vec<_> = (0..4).map(|_| named_relay(proxy.addr())).collect();
    assert!(more.iter().all(|&(name, _)| name == b'a'), "{more:?}");
    for (_, client) in &mut to_b {
        client.echo(7);
    }
}

#[test]
fn relays_belong_to_their_servers_after_a_masters_death() {
    relays_belong_to_their_servers_after(replace);
}

#[test]
fn relays_belong_to_their_servers_after_an_upgrade() {
    relays_belong_to_their_servers_after(|mut proxy| {
        proxy.upgrade();
        proxy
    });
}

#[test]
fn a_relay_whose_pipe_is_full_goes_on() {
    const LENGTH: usize = 40 << 20;
    let backend = Backend::serve(|conn| {
        conn.gate().pass();
        let mut all = Vec::new();
        conn.wire.stream.read_to_end(&mut all).unwrap();
        check_pattern(0, &all);
        conn.send(format!("{}", all.len()).as_bytes());
    });
    let proxy = Conf::tcp(&[backend.addr]).start();
    let stream = TcpStream::connect(proxy.addr().inet()).unwrap();
    // Until nobody takes anything any more: then every buffer on the way is full.
    stream.set_nonblocking(true).unwrap();
    let all = pattern_bytes(LENGTH);
    let (mut at, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
        match (&stream).write(&all[at..]) {
            Ok(count) => (at, since) = (at + count, Instant::now()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert!(at < LENGTH, "the backend takes nothing");
        thread::park_timeout(Duration::from_millis(2));
    }
    stream.set_nonblocking(false).unwrap();
    // Twice: the second time the pipe itself was taken over.
    let proxy = replace(replace(proxy));
    backend.gate().open();
    (&stream).write_all(&all[at..]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    (&stream).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, LENGTH.to_string());
    drop(proxy);
}

#[test]
fn half_closed_relays_and_tunnels_survive() {
    let backend = reversing();
    let echoing = upgrading();
    let conf = Conf::http(&[echoing.addr]).tables(&format!(
        "[[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"other\"\n[backends.other]\nservers = [\"{}\"]",
        backend.addr
    ));
    let proxy = conf.start();
    let mut halves: Vec<Client> = (0..6).map(|_| Client::connect(&proxy.addrs()[1])).collect();
    for client in &mut halves {
        client.send("abc");
        client.shutdown_write();
    }
    wait_until("every relay stands", || backend.open() == 6);
    let mut tunnels: Vec<TcpStream> = (0..6).map(|_| tunnel(&proxy)).collect();
    let proxy = replace(replace(proxy));
    for stream in &mut tunnels {
        stream.write_all(b"through").unwrap();
        let mut back = [0; 7];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"through");
    }
    backend.gate().open();
    for client in &mut halves {
        assert_eq!(client.read_to_end(), (b"cba".to_vec(), End::Clean));
    }
    assert_eq!((backend.connections(), echoing.connections()), (6, 6));
    drop(proxy);
}

#[test]
fn handed_over_connections_leave_no_descriptor_behind() {
    let backend = Backend::tcp_echo();
    let mut proxy = replace(Conf::tcp(&[backend.addr]).start());
    let before = proxy.descriptors();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(proxy.addr())).collect();
    for _ in 0..2 {
        clients.iter_mut().for_each(|client| client.echo(7));
        proxy = replace(proxy);
    }
    for mut client in clients {
        client.send("y");
        client.shutdown_write();
        assert_eq!(client.read_to_end(), (b"y".to_vec(), End::Clean));
    }
    wait_until("every relay has ended", || backend.open() == 0);
    proxy.assert_no_leaks(&before, 4);
}
