//! Who gets in through a forward listener while others guess, who goes, and what a reload changes for those who have
//! proved who they are.

use std::io::{Read, Write};
use std::net::SocketAddr;

use crate::common::backend::Backend;
use crate::common::client::Client;
use crate::common::processes::kill_all;
use crate::common::proxy::{Launch, Proxy};
use crate::common::wait_for;
use crate::forward::{
    LOOPBACK, connect, echo, guarded, hash, hash_with, launch, log, read_exactly, read_line, socks5_request, stream,
    try_connect,
};

/// `ann` with the password `secret`, as Basic authentication has it.
const ANN: &str = "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n";

/// A field with these credentials.
fn basic(user: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let plain = format!("{user}:{password}");
    let mut text = String::new();
    for group in plain.as_bytes().chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    format!("Proxy-Authorization: Basic {text}\r\n")
}

/// `ann` with `secret` may reach the loopback network; `users` says more of `[users]`.
fn limited(users: &str, hash: &str) -> Launch {
    let rules = format!("auth = \"required\"\nlist = [{LOOPBACK}]");
    launch(&rules, &format!("[users]\nfile = \"{{dir}}/users\"\n{users}"))
        .file("users", &format!("ann:{hash}\n"))
        .workers(1)
}

/// A hash that takes long enough for others to come meanwhile.
fn dear(password: &str) -> String {
    hash_with(password, 16 * 1024, 2)
}

/// Asks for a tunnel, and does not wait for the answer.
fn begin(proxy: &Proxy, from: &str, target: SocketAddr, fields: &str) -> Client {
    let mut client = Client::connect_from(from, proxy.addr());
    client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n"));
    client
}

/// The configuration of a running proxy, to write it again.
fn config(proxy: &Proxy) -> String {
    let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
    text.split_once('\n').unwrap().1.to_owned()
}

#[test]
fn basic_is_as_others_write_it() {
    assert_eq!(basic("ann", "secret"), ANN);
    assert!(basic("a", "").ends_with("YTo=\r\n") && basic("a", "b").ends_with("YTpi\r\n"));
}

#[test]
fn wrong_passwords_are_bounded_in_every_protocol() {
    let backend = Backend::tcp_echo();
    let proxy = limited("failures_per_minute = 3", &hash("secret")).start();
    let target = backend.addr;
    for n in 0..3 {
        assert_eq!(try_connect(&proxy, target, &basic("ann", &format!("wrong {n}"))).status, 407);
    }
    // Right or wrong, it is not even looked at from there.
    assert_eq!(try_connect(&proxy, target, ANN).status, 429);
    let mut socks = stream(&proxy);
    socks.write_all(&[&[5, 1, 2][..], b"\x01\x03ann\x06secret"].concat()).unwrap();
    assert_eq!(read_exactly(&mut socks, 4), [5, 2, 1, 1]);
    let mut dynamic = stream(&proxy);
    dynamic
        .write_all(format!("{{\"target\":\"{target}\",\"user\":\"ann\",\"password\":\"secret\"}}\n").as_bytes())
        .unwrap();
    assert!(read_line(&mut dynamic).contains("\"error\":\"limited\""));
    for line in &log(&proxy, 6)[3..] {
        assert_eq!(line["status"], 429, "{line}");
        assert_eq!(line["reason"], "too many wrong passwords for this user from this address");
    }
    // From elsewhere she gets in; other names are not hers.
    let mut elsewhere = begin(&proxy, "127.0.0.2", target, ANN);
    elsewhere.wire.begin();
    assert_eq!(elsewhere.wire.response_head().unwrap().status, 200);
    assert_eq!(try_connect(&proxy, target, &basic("bob", "x")).status, 407);
    // She is remembered: nothing keeps her out any more, wherever she is.
    let mut again = Client::connect(proxy.addr());
    assert_eq!(connect(&mut again, target, ANN).status, 200);
    echo(&mut again, "let in");
}

#[test]
fn wrong_passwords_are_bounded_over_all_workers_and_count_when_they_are_dead() {
    let backend = Backend::tcp_echo();
    let mut proxy = limited("failures_per_minute = 3", &hash("secret")).workers(4).start();
    let target = backend.addr;
    // Connections that stay are spread over the workers.
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
    let guess = |(n, client): (usize, &mut Client)| {
        let wrong = basic("ann", &format!("wrong {n}"));
        client.ask(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{wrong}\r\n")).status
    };
    let statuses: Vec<u16> = clients.iter_mut().enumerate().map(guess).collect();
    assert_eq!(statuses, [407, 407, 407, 429, 429, 429, 429, 429]);
    let workers: std::collections::HashSet<_> = log(&proxy, 8).iter().map(|line| line["worker"].as_u64()).collect();
    assert!(workers.len() >= 3, "{workers:?}");
    kill_all(&proxy);
    proxy.wait_for_workers(4);
    assert_eq!(try_connect(&proxy, target, ANN).status, 429);
}

#[test]
fn guesses_at_other_names_do_not_lock_out_who_has_been_there() {
    let backend = Backend::tcp_echo();
    let mut proxy = limited("address_failures_per_minute = 5\nfailures_per_minute = 2", &hash("secret")).start();
    let target = backend.addr;
    let mut first = Client::connect(proxy.addr());
    assert_eq!(connect(&mut first, target, ANN).status, 200);
    for n in 0..5 {
        assert_eq!(try_connect(&proxy, target, &basic(&format!("guess{n}"), "x")).status, 407);
    }
    let refused = try_connect(&proxy, target, &basic("guess6", "x"));
    assert_eq!(refused.status, 429);
    assert_eq!(log(&proxy, 6)[5]["reason"], "too many wrong passwords from this address");
    // What she is remembered by does not hold for another hash: she is checked, and may be.
    proxy.dir.write("users", &format!("ann:{}\n", hash("other")));
    let text = config(&proxy);
    proxy.reload(1, &text);
    let mut second = Client::connect(proxy.addr());
    assert_eq!(connect(&mut second, target, &basic("ann", "other")).status, 200);
}

#[test]
fn who_knows_the_password_gets_in_while_another_address_floods() {
    let backend = Backend::tcp_echo();
    let none = "failures_per_minute = \"none\"\naddress_failures_per_minute = \"none\"";
    let proxy = limited(none, &dear("secret")).start();
    let target = backend.addr;
    let mut flood: Vec<Client> =
        (0..100).map(|n| begin(&proxy, "127.0.0.2", target, &basic("ann", &format!("wrong {n}")))).collect();
    // As many are waiting as may, or the flood's own would not be sent away.
    assert_eq!(flood[99].response_to("CONNECT").status, 503);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, target, ANN).status, 200);
    echo(&mut client, "let in");
    let checked = log(&proxy, 0).iter().filter(|line| line["status"] == 407).count();
    assert!(checked < 16, "{checked} of the others were checked before");
    drop(flood);
}

#[test]
fn checks_for_those_who_have_gone_are_not_made() {
    let backend = Backend::tcp_echo();
    let none = "failures_per_minute = \"none\"\naddress_failures_per_minute = \"none\"";
    let proxy = limited(none, &dear("secret")).start();
    let target = backend.addr;
    let mut waiting: Vec<Client> =
        (0..40).map(|n| begin(&proxy, "127.0.0.2", target, &basic("ann", &format!("wrong {n}")))).collect();
    assert_eq!(waiting[39].response_to("CONNECT").status, 503, "their place is full");
    // All of them go with a reset. What is not checked has a line of its own.
    for client in &waiting {
        nix::sys::socket::setsockopt(
            &client.wire.stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .unwrap();
    }
    drop(waiting);
    let lines = wait_for("each is accounted for", || {
        let lines = log(&proxy, 0);
        (lines.len() >= 40).then_some(lines)
    });
    let checked = lines.iter().filter(|line| line["status"] == 407).count();
    assert!(checked < 16, "{checked} of 17 were checked");
    // There is room at their address at once.
    let mut client = begin(&proxy, "127.0.0.2", target, &basic("ann", "one more"));
    assert_eq!(client.response_to("CONNECT").status, 407);
}

#[test]
fn who_closes_within_a_socks_negotiation_is_not_waited_for() {
    let proxy = limited("failures_per_minute = \"none\"", &dear("secret")).start();
    let negotiate = |n: u8| {
        let mut socks = stream(&proxy);
        socks.write_all(&[&[5, 1, 2][..], b"\x01\x03ann\x01", &[n]].concat()).unwrap();
        assert_eq!(read_exactly(&mut socks, 2), [5, 2]);
        socks
    };
    let waiting: Vec<_> = (0..12).map(negotiate).collect();
    // Nothing more will come from those: no request can follow.
    drop(waiting);
    let lines = log(&proxy, 12);
    let reason = "the client closed the connection before it named a target";
    let left = lines.iter().filter(|line| line["reason"] == reason).count();
    assert!(left >= 6, "{lines:?}");
}

#[test]
fn who_waits_too_long_for_a_check_is_told_so() {
    let users = "[users]\nfile = \"{dir}/users\"\nfailures_per_minute = \"none\"";
    let rules = format!("auth = \"required\"\nlist = [{LOOPBACK}]");
    let hash = hash_with("secret", 32 * 1024, 3);
    let proxy = launch(&rules, &format!("timeouts.header = \"200ms\"\n{users}"));
    let proxy = proxy.file("users", &format!("ann:{hash}\n")).workers(1).start();
    let mut clients: Vec<_> = (0..16)
        .map(|n| {
            let mut socks = stream(&proxy);
            socks.write_all(&[&[5, 1, 2][..], b"\x01\x03ann\x01", &[n]].concat()).unwrap();
            socks
        })
        .collect();
    // Checked or not, each has its answer.
    for client in &mut clients {
        assert_eq!(read_exactly(client, 4), [5, 2, 1, 1]);
    }
    let lines = log(&proxy, 16);
    let busy = |line: &&serde_json::Value| line["reason"] == "too many passwords wait to be checked";
    assert!(lines.iter().filter(busy).all(|line| line["status"] == 503));
    assert!(lines.iter().any(|line| busy(&line)), "{lines:?}");
}

#[test]
fn who_was_proved_before_a_reload_is_checked_again() {
    let backend = Backend::tcp_echo();
    let mut proxy = guarded("").workers(1).start();
    let text = config(&proxy);
    let prove = |proxy: &Proxy| {
        let mut client = stream(proxy);
        client.write_all(&[&[5, 1, 2][..], b"\x01\x03ann\x06secret"].concat()).unwrap();
        assert_eq!(read_exactly(&mut client, 4), [5, 2, 1, 0]);
        client
    };
    let (mut kept, mut late) = (prove(&proxy), prove(&proxy));
    // The same password, hashed anew: nothing changes for who knows it.
    let bob = hash("pw");
    proxy.dir.write("users", &format!("ann:{}\nbob:{bob}\n", hash_with("secret", 16, 1)));
    proxy.reload(1, &text);
    kept.write_all(&socks5_request(backend.addr)).unwrap();
    assert_eq!(read_exactly(&mut kept, 10)[..2], [5, 0]);
    kept.write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&mut kept, 5), b"hello");
    // Another password.
    proxy.dir.write("users", &format!("ann:{}\nbob:{bob}\n", hash("changed")));
    proxy.reload(1, &text);
    late.write_all(&socks5_request(backend.addr)).unwrap();
    let mut answer = Vec::new();
    late.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[..2], [5, 2], "not allowed");
    let line = &log(&proxy, 1)[0];
    assert_eq!((line["status"].as_u64(), line["reason"].as_str()), (Some(407), Some("wrong user or password")));
    kept.write_all(b"what is connected stays so").unwrap();
    assert_eq!(read_exactly(&mut kept, 26), b"what is connected stays so");
    assert_eq!(backend.connections(), 1);
}
