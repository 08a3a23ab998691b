//! Names of servers: looked up by the proxy itself, again and again, from name servers that misbehave.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::{Backend, response};
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::dns::{Manner, NameServer};
use crate::common::processes::wait_gone;
use crate::common::proxy::{Addr, Proxy};
use crate::common::{wait_for, wait_until};

/// HTTP backends on 127.0.0.1, 127.0.0.2 and so on, all on the same port, each of which answers with its address.
fn backends(count: u8) -> (u16, Vec<Backend>) {
    let listeners: Vec<TcpListener> = wait_for("a port is free on all addresses", || {
        let first = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        let others = (2..=count).map(|n| TcpListener::bind(SocketAddr::from(([127, 0, 0, n], port))).ok());
        std::iter::once(Some(first)).chain(others).collect()
    });
    let port = listeners[0].local_addr().unwrap().port();
    (port, listeners.into_iter().map(named).collect())
}

fn named(listener: TcpListener) -> Backend {
    let answer = response(&listener.local_addr().unwrap().ip().to_string());
    Backend::serve_on(listener, move |conn| {
        while conn.request().is_some() {
            conn.send(&answer);
        }
    })
}

/// HTTP to `app.test`, which these name servers know.
fn conf(port: u16, servers: &[SocketAddr]) -> Conf {
    Conf::http(&[]).server(format!("\"app.test:{port}\"")).tables(&NameServer::table(servers))
}

/// Who answers: the next `count` requests, each on a connection of its own, so that all workers are asked.
fn answers(addr: &Addr, count: usize) -> Vec<String> {
    let mut answers: Vec<String> = (0..count)
        .map(|_| {
            let response = get(addr, "/");
            if response.status == 200 { response.text() } else { response.status.to_string() }
        })
        .collect();
    answers.sort();
    answers.dedup();
    answers
}

/// Waits until nobody else answers any more, and all these do.
#[track_caller]
fn wait_for_answers(proxy: &Proxy, wanted: &[&str]) {
    wait_until(&format!("{wanted:?} answer"), || answers(proxy.addr(), 12) == wanted);
}

#[test]
fn a_name_is_used_with_all_its_addresses() {
    let (port, _backends, _v6) = wait_for("the port is free for IPv6 too", || {
        let (port, backends) = backends(2);
        Some((port, backends, named(TcpListener::bind(("::1", port)).ok()?)))
    });
    let dns = NameServer::start();
    dns.set("app.test", &["A 60 127.0.0.1", "A 60 127.0.0.2", "AAAA 60 ::1"]);
    let proxy = conf(port, &[dns.addr]).start();
    assert_eq!(answers(proxy.addr(), 12), ["127.0.0.1", "127.0.0.2", "::1"]);
    let asked = dns.asked();
    assert!(
        asked.contains(&"app.test A udp".to_owned()) && asked.contains(&"app.test AAAA udp".to_owned()),
        "{asked:?}"
    );
    // The master and two workers, each once for each family.
    assert!(asked.len() <= 6, "{asked:?}");
}

#[test]
fn new_addresses_join_and_old_ones_drain() {
    let (port, backends) = backends(3);
    let dns = NameServer::start();
    dns.set("app.test", &["A 1 127.0.0.1", "A 1 127.0.0.2"]);
    let proxy = conf(port, &[dns.addr]).start();
    assert_eq!(answers(proxy.addr(), 12), ["127.0.0.1", "127.0.0.2"]);
    wait_until("idle connections are kept", || backends[0].open() > 0 && backends[1].open() > 0);
    let kept = backends[1].connections();
    dns.set("app.test", &["A 1 127.0.0.2", "A 1 127.0.0.3"]);
    wait_for_answers(&proxy, &["127.0.0.2", "127.0.0.3"]);
    wait_until("idle connections to the old one are closed", || backends[0].open() == 0);
    // Those to the one that stayed are used further: at most one for each worker was opened.
    assert!(backends[1].open() > 0 && backends[1].connections() <= kept + 2, "{kept} {}", backends[1].connections());
    proxy.wait_for_log(&["INFO", "app.test", "now stands for 127.0.0.2", "127.0.0.3"]);
    // What fails is named with its address.
    drop(backends);
    answers(proxy.addr(), 12);
    proxy.wait_for_log(&["WARN", "backends.web: app.test", "(127.0.0.3:", "failed 3 times in a row"]);
}

#[test]
fn a_request_in_progress_outlives_its_address() {
    let (port, listeners) = {
        let (port, mut backends) = backends(2);
        let second = backends.pop().unwrap();
        drop(backends);
        (port, second)
    };
    let slow = wait_for("the address is free again", || TcpListener::bind(("127.0.0.1", port)).ok());
    let slow = Backend::serve_on(slow, |conn| {
        if conn.request().is_some() {
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
            conn.gate().pass();
            conn.send(b"half");
        }
    });
    let dns = NameServer::start();
    dns.set("app.test", &["A 1 127.0.0.1"]);
    let proxy = conf(port, &[dns.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the request is there", || slow.heads() == 1);
    dns.set("app.test", &["A 1 127.0.0.2"]);
    proxy.wait_for_log(&["app.test", "now stands for 127.0.0.2"]);
    assert_eq!(answers(proxy.addr(), 3), ["127.0.0.2"]);
    slow.gate().open();
    assert_eq!(client.response().text(), "halfhalf");
    assert_eq!(client.get("/").text(), "127.0.0.2");
    wait_until("its connection is not kept", || slow.open() == 0);
    drop(listeners);
}

#[test]
fn relays_survive_a_change_of_addresses_and_a_death() {
    let (port, backends) = backends(2);
    drop(backends);
    let echo = |n: u8| {
        let addr = SocketAddr::from(([127, 0, 0, n], port));
        let listener = wait_for("the address is free again", || TcpListener::bind(addr).ok());
        Backend::serve_on(listener, move |conn| {
            while let Ok(bytes) = conn.wire.take(5) {
                conn.send(&bytes);
            }
        })
    };
    let (one, two) = (echo(1), echo(2));
    let dns = NameServer::start();
    dns.set("app.test", &["A 1 127.0.0.1"]);
    let conf = Conf::tcp(&[]).server(format!("\"app.test:{port}\"")).tables(&NameServer::table(&[dns.addr]));
    let mut proxy = conf.launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    client.send("first");
    assert_eq!(client.wire.take(5).unwrap(), b"first");
    dns.set("app.test", &["A 1 127.0.0.2"]);
    proxy.wait_for_log(&["app.test", "now stands for 127.0.0.2"]);
    let mut other = Client::connect(proxy.addr());
    other.send("other");
    assert_eq!(other.wire.take(5).unwrap(), b"other");
    assert_eq!((one.open(), two.open()), (1, 1));
    let former = proxy.workers();
    kill(former[0], Signal::SIGKILL).unwrap();
    wait_gone(&former);
    for client in [&mut client, &mut other] {
        client.send("again");
        assert_eq!(client.wire.take(5).unwrap(), b"again");
    }
    proxy.wait_for_workers(1);
    assert_eq!((one.connections(), two.connections()), (1, 1));
}

#[test]
fn a_name_that_comes_to_be_is_found() {
    let (port, _backends) = backends(1);
    let dns = NameServer::start();
    let proxy = conf(port, &[dns.addr]).start();
    proxy.wait_for_log(&["WARN", "app.test", "does not resolve: there is no such name"]);
    assert_eq!(answers(proxy.addr(), 6), ["503"]);
    dns.set("app.test", &["A 60 127.0.0.1"]);
    wait_for_answers(&proxy, &["127.0.0.1"]);
    proxy.wait_for_log(&["app.test", "now stands for 127.0.0.1"]);
}

#[test]
fn a_name_that_is_gone_takes_its_servers_out() {
    let (port, backends) = backends(1);
    let dns = NameServer::start();
    dns.set("app.test", &["A 1 127.0.0.1"]);
    let proxy = conf(port, &[dns.addr]).start();
    assert_eq!(answers(proxy.addr(), 6), ["127.0.0.1"]);
    dns.remove("app.test");
    wait_for_answers(&proxy, &["503"]);
    wait_until("no connection is left", || backends[0].open() == 0);
}

#[test]
fn failing_name_servers_take_no_server_out() {
    let (port, _backends) = backends(2);
    for manner in [Manner::Silent, Manner::Failing] {
        let dns = NameServer::start();
        dns.set("app.test", &["A 1 127.0.0.2"]);
        let mut proxy = conf(port, &[dns.addr]).start();
        dns.set("app.test", &["A 1 127.0.0.1"]);
        wait_for_answers(&proxy, &["127.0.0.1"]);
        dns.behave(manner);
        proxy.wait_for_log(&["WARN", "app.test", "the addresses it had before are used"]);
        assert_eq!(answers(proxy.addr(), 6), ["127.0.0.1"]);
        // A new worker knows what the others know.
        kill(proxy.workers()[0], Signal::SIGKILL).unwrap();
        proxy.wait_for_log(&["killed by SIGKILL"]);
        proxy.wait_for_workers(2);
        assert_eq!(answers(proxy.addr(), 12), ["127.0.0.1"]);
        // A reload changes nothing about it.
        let text = conf(port, &[dns.addr]).text();
        proxy.reload(2, &text);
        assert_eq!(answers(proxy.addr(), 12), ["127.0.0.1"], "{manner:?}");
        dns.behave(Manner::Honest);
        proxy.wait_for_log(&["app.test", "resolves again, to 127.0.0.1"]);
    }
}

#[test]
fn lies_are_not_believed() {
    let (port, _backends) = backends(1);
    let dns = NameServer::start();
    dns.behave(Manner::Lying);
    dns.set("app.test", &["A 1 127.0.0.1"]);
    let proxy = conf(port, &[dns.addr]).start();
    for _ in 0..3 {
        assert_eq!(answers(proxy.addr(), 6), ["127.0.0.1"]);
        dns.wait_for_question("app.test A udp");
    }
    assert!(!proxy.text().contains("127.66.66.66"), "{}", proxy.text());
}

#[test]
fn what_does_not_fit_is_asked_for_over_tcp() {
    let (port, _backends) = backends(2);
    let dns = NameServer::start();
    dns.behave(Manner::Truncating);
    dns.set("app.test", &["A 60 127.0.0.1", "A 60 127.0.0.2"]);
    let proxy = conf(port, &[dns.addr]).start();
    assert_eq!(answers(proxy.addr(), 12), ["127.0.0.1", "127.0.0.2"]);
    assert!(dns.asked().contains(&"app.test A tcp".to_owned()), "{:?}", dns.asked());
}

#[test]
fn a_dead_name_server_is_passed_over_and_named_once() {
    let (port, _backends) = backends(2);
    let (first, second) = (NameServer::start(), NameServer::start());
    first.behave(Manner::Silent);
    second.set("app.test", &["A 1 127.0.0.1"]);
    let proxy = conf(port, &[first.addr, second.addr]).start();
    assert_eq!(answers(proxy.addr(), 6), ["127.0.0.1"]);
    second.set("app.test", &["A 1 127.0.0.2"]);
    wait_for_answers(&proxy, &["127.0.0.2"]);
    second.wait_for_question("app.test A udp");
    let named = |line: &String| line.contains("name server") && line.contains("it does not answer");
    proxy.wait_for_log(&["name server", "it does not answer"]);
    assert_eq!(proxy.log.all().iter().filter(|line| named(line)).count(), 1, "{}", proxy.text());
}

#[test]
fn aliases_are_followed_and_circles_are_not() {
    let (port, _backends) = backends(1);
    let dns = NameServer::start();
    dns.set("app.test", &["CNAME 60 b.test"]);
    dns.set("b.test", &["CNAME 60 c.test"]);
    dns.set("c.test", &["A 60 127.0.0.1"]);
    dns.set("round.test", &["CNAME 60 about.test"]);
    dns.set("about.test", &["CNAME 60 round.test"]);
    let round =
        format!("[backends.round]\nservers = [\"round.test:{port}\"]\n[[route]]\npath = \"/round\"\nto = \"round\"");
    let proxy = conf(port, &[dns.addr]).tables(&round).start();
    assert_eq!(answers(proxy.addr(), 6), ["127.0.0.1"]);
    assert_eq!(get(proxy.addr(), "/round").status, 503);
    proxy.wait_for_log(&["round.test", "does not resolve", "in a circle"]);
}

#[test]
fn service_records_give_ports_weights_and_backups() {
    let (port, mut backends) = backends(3);
    let dns = NameServer::start();
    let record = |priority: u16, weight: u16, host: &str| format!("SRV 1 {priority} {weight} {port} {host}");
    let records = [record(1, 3, "one.test"), record(1, 1, "two.test"), record(2, 9, "three.test")];
    dns.set("_http._tcp.app.test", &records.each_ref().map(String::as_str));
    for (n, host) in (1..).zip(["one.test", "two.test", "three.test"]) {
        dns.set(host, &[&format!("A 1 127.0.0.{n}")]);
    }
    let conf = Conf::http(&[])
        .server("{ srv = \"_http._tcp.app.test\" }".to_owned())
        .group("health = { failures = 1, eject = \"30s\" }")
        .tables(&NameServer::table(&[dns.addr]));
    let proxy = conf.launch().workers(1).start();
    let all: Vec<String> = (0..8).map(|_| get(proxy.addr(), "/").text()).collect();
    let count = |ip: &str| all.iter().filter(|answer| *answer == ip).count();
    assert_eq!((count("127.0.0.1"), count("127.0.0.2")), (6, 2), "{all:?}");
    // With both gone the one of lower priority serves.
    let spare = backends.pop().unwrap();
    drop(backends);
    wait_for_answers(&proxy, &["127.0.0.3"]);
    drop(spare);
}

#[test]
fn hosts_are_known_without_a_name_server() {
    let (port, _backends) = backends(2);
    let hosts = "[dns]\nservers = []\nresolv_conf = \"off\"\nhosts = \"{dir}/hosts\"\n";
    let conf = Conf::http(&[]).server(format!("\"app.test:{port}\"")).tables(hosts);
    let mut proxy = conf.launch().file("hosts", "127.0.0.1 app.test\n").start();
    assert_eq!(answers(proxy.addr(), 6), ["127.0.0.1"]);
    proxy.dir.write("hosts", "127.0.0.2 app.test\n");
    proxy.reload(2, &conf.text());
    assert_eq!(answers(proxy.addr(), 12), ["127.0.0.2"]);
}

#[test]
fn the_effective_configuration_says_what_names_stand_for() {
    let dns = NameServer::start();
    dns.set("app.test", &["A 60 127.0.0.1"]);
    let conf = conf(80, &[dns.addr]).server("\"gone.test:80\"".to_owned());
    let output = conf.launch().arg("dump").run();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("address = \"app.test:80\"") && text.contains("# 127.0.0.1:80\n"), "{output:?}");
    assert!(text.contains("# does not resolve\n") && text.contains(&format!("servers = [\"{}\"]", dns.addr)), "{text}");
}

/// The line of `master status` about a name.
fn status_of(proxy: &Proxy, name: &str) -> String {
    let output = proxy.question("status");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}  ")));
    line.unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn the_status_tells_of_names_their_addresses_and_the_last_failure() {
    let (port, _backends) = backends(2);
    let dns = NameServer::start();
    dns.set("app.test", &["A 1 127.0.0.1", "A 1 127.0.0.2"]);
    let proxy = conf(port, &[dns.addr]).server(format!("\"gone.test:{port}\"")).start();
    let app = format!("app.test:{port}");
    wait_until("an answer is told of", || {
        let line = status_of(&proxy, &app);
        line.contains(&format!("127.0.0.1:{port}, 127.0.0.2:{port} (answered ")) && !line.contains("failure")
    });
    wait_until("a name that is not there is told of", || {
        let line = status_of(&proxy, &format!("gone.test:{port}"));
        line.contains("no address (not answered yet, again in ") && line.contains("ago: there is no such name)")
    });
    dns.behave(Manner::Failing);
    wait_until("a failure is told of, with the addresses used", || {
        let line = status_of(&proxy, &app);
        line.contains(&format!("127.0.0.1:{port}, ")) && line.contains("ago: the name servers fail (SERVFAIL))")
    });
}

#[test]
fn a_successor_knows_what_names_stood_for_when_no_name_server_answers() {
    let (port, _backends) = backends(2);
    let dns = NameServer::start();
    dns.set("app.test", &["A 1 127.0.0.2"]);
    let conf = conf(port, &[dns.addr]).top("control = \"unix:{dir}/control.sock\"");
    let mut proxy = conf.start();
    dns.set("app.test", &["A 1 127.0.0.1"]);
    wait_for_answers(&proxy, &["127.0.0.1"]);
    dns.behave(Manner::Failing);
    proxy.upgrade();
    assert_eq!(answers(proxy.addr(), 12), ["127.0.0.1"]);
    let orphans = proxy.kill_master();
    let next = proxy.again();
    assert_eq!(answers(next.addr(), 12), ["127.0.0.1"]);
    wait_gone(&orphans);
    proxy.check_log();
    let memory = next.dir.join("control.sock.names");
    assert!(memory.exists());
    // Who stops it does not come back to that.
    drop(next);
    assert!(!memory.exists());
    let anew = proxy.again();
    assert_eq!(answers(anew.addr(), 6), ["503"]);
}

#[test]
fn the_hosts_file_and_resolv_conf_hold_as_they_are_now() {
    let (port, _backends) = backends(3);
    let files = "[dns]\nresolv_conf = \"{dir}/resolv.conf\"\nhosts = \"{dir}/hosts\"\n";
    let conf = Conf::http(&[]).server(format!("\"app.test:{port}\"")).tables(files);
    let proxy = conf.launch().file("hosts", "127.0.0.1 app.test\n").file("resolv.conf", "search one\n").start();
    assert_eq!(answers(proxy.addr(), 6), ["127.0.0.1"]);
    proxy.dir.write("hosts", "127.0.0.2 app.test\n");
    wait_for_answers(&proxy, &["127.0.0.2"]);
    proxy.wait_for_log(&["resolv.conf or the hosts file has changed"]);
    // As programs that write it do, a new file in its place; and the other of the two.
    proxy.dir.write("new", "127.0.0.3 app.test\n");
    std::fs::rename(proxy.dir.join("new"), proxy.dir.join("hosts")).unwrap();
    proxy.dir.write("resolv.conf", "search two\n");
    wait_for_answers(&proxy, &["127.0.0.3"]);
    // One that is not there any more is no news, and the other one is read all the same.
    std::fs::remove_file(proxy.dir.join("hosts")).unwrap();
    let changes = || proxy.log.all().iter().filter(|line| line.contains("hosts file has changed")).count();
    let before = changes();
    proxy.dir.write("resolv.conf", "search three\n");
    wait_until("the change is seen", || changes() > before);
    assert_eq!(answers(proxy.addr(), 6), ["127.0.0.3"]);
}

/// Sets how many descriptors process `pid` may have from now on.
fn limit_descriptors(pid: Pid, soft: u64, hard: u64) {
    let status = Command::new("prlimit").args([format!("--pid={pid}"), format!("--nofile={soft}:{hard}")]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_changed_hosts_file_is_not_missed_for_want_of_descriptors() {
    let (port, _backends) = backends(2);
    let files = "[dns]\nresolv_conf = \"off\"\nhosts = \"{dir}/hosts\"\n";
    let conf = Conf::http(&[]).server(format!("\"app.test:{port}\"")).tables(files);
    let proxy = conf.launch().file("hosts", "127.0.0.1 app.test\n").descriptors(4096, 4096).start();
    assert_eq!(answers(proxy.addr(), 6), ["127.0.0.1"]);
    // Whatever the master opens now has a number of 3 at least.
    limit_descriptors(proxy.pid, 3, 4096);
    proxy.dir.write("hosts", "127.0.0.2 app.test\n");
    proxy.wait_for_log(&["cannot read ", "hosts: Too many open files", "trying again"]);
    limit_descriptors(proxy.pid, 4096, 4096);
    wait_for_answers(&proxy, &["127.0.0.2"]);
}
