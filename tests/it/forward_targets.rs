//! What targets a forward listener finds: the proxy's own addresses, names that lead astray, families without a way.

use std::io::Write;
use std::net::SocketAddr;

use crate::common::backend::Backend;
use crate::common::client::Client;
use crate::common::dns::NameServer;
use crate::common::processes::{replace_all, wait_gone};
use crate::common::proxy::{Launch, Proxy};
use crate::forward::{LOOPBACK, connect, launch, log, read_exactly, read_line, stream, try_connect};

/// Asks for tunnels to these, which must be refused because they are the proxy's own; `lines` are those of the log.
#[track_caller]
fn check_own(proxy: &Proxy, targets: &[SocketAddr], lines: &mut usize) {
    for target in targets {
        assert_eq!(try_connect(proxy, target, "").status, 403, "{target}");
    }
    let former = std::mem::replace(lines, *lines + targets.len());
    for line in &log(proxy, *lines)[former..] {
        assert_eq!(line["rule"], "t:own listener", "{line}");
    }
}

#[test]
fn listeners_on_ports_that_the_kernel_chose_are_the_proxys_own() {
    let backend = Backend::ok();
    let listener = |bind: &str| format!("[[listen]]\nbind = \"{bind}:0\"\nto = \"b\"\n");
    let group = format!("[backends.b]\nservers = [\"{}\"]\n", backend.addr);
    let rules = format!("list = [{LOOPBACK}]\n{group}{}{}", listener("127.0.0.2"), listener("0.0.0.0"));
    let mut proxy = launch(&rules, "").start();
    let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
    let text = text.split_once('\n').unwrap().1.to_owned();
    let [one, any] = [1, 2].map(|at| proxy.addrs()[at].inet());
    let mut own = vec![one, ([127, 0, 0, 1], any.port()).into(), ([127, 0, 0, 9], any.port()).into()];
    let mut lines = 0;
    check_own(&proxy, &own, &mut lines);
    replace_all(&mut proxy, 2);
    proxy.reload(2, &format!("{text}{}", listener("127.0.0.3")));
    own.push(proxy.wait_for_listener(3).inet());
    check_own(&proxy, &own, &mut lines);
    replace_all(&mut proxy, 2);
    check_own(&proxy, &own, &mut lines);
    proxy.upgrade();
    check_own(&proxy, &own, &mut lines);
    let orphans = proxy.kill_master();
    let proxy = proxy.again();
    wait_gone(&orphans);
    // It has the first configuration again.
    check_own(&proxy, &own[..3], &mut lines);
    // What is open beside them stays open.
    let mut client = Client::connect(proxy.addr());
    assert_eq!(connect(&mut client, backend.addr, "").status, 200);
}

/// A forward proxy with these entries in its rules, that asks this name server.
fn asking(dns: &NameServer, list: &str) -> Proxy {
    let log = "[access_log]\nto = \"{dir}/access.log\"\nformat = \"json\"";
    let listen = "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"forward\"\nrules = \"t\"";
    Launch::config(&format!("{log}\n{listen}\n{}[rules.t]\nlist = [{list}]", NameServer::table(&[dns.addr]))).start()
}

#[test]
fn aliases_that_lead_to_no_name_are_refused_without_another_question() {
    let backend = Backend::ok();
    let dns = NameServer::start();
    let port = backend.addr.port();
    for (name, alias) in [
        ("number.test", "127.1"),
        ("decimal.test", "2130706433"),
        ("local.test", "localhost"),
        ("below.test", "a.localhost"),
        ("round.test", "about.test"),
        ("about.test", "round.test"),
    ] {
        dns.set(name, &[&format!("CNAME 60 {alias}")]);
    }
    // Some resolvers would find these.
    dns.set("127.1", &["A 60 127.0.0.1"]);
    let proxy = asking(&dns, LOOPBACK);
    for name in ["number.test", "decimal.test", "local.test", "below.test", "round.test"] {
        assert_eq!(try_connect(&proxy, format!("{name}:{port}"), "").status, 502, "{name}");
    }
    assert_eq!(backend.connections(), 0);
    let asked = dns.asked();
    // Each of the names once for each family, and nothing that they lead to.
    assert!(asked.len() == 10 && asked.iter().all(|asked| asked.contains(".test ")), "{asked:?}");
}

#[test]
fn a_name_is_denied_by_what_it_is_an_alias_for() {
    let backend = Backend::ok();
    let dns = NameServer::start();
    let port = backend.addr.port();
    dns.set("first.test", &["CNAME 60 hop.cdn.test"]);
    dns.set("hop.cdn.test", &["CNAME 60 x.ads.test"]);
    dns.set("x.ads.test", &["A 60 127.0.0.1"]);
    dns.set("good.test", &["CNAME 60 www.allowed.test"]);
    dns.set("www.allowed.test", &["A 60 127.0.0.1"]);
    let networks = "networks = [\"127.0.0.1/32\"], ports = [\"1-65535\"]";
    let list = |denied: &str| {
        format!(
            "{{ action = \"deny\", names = [\"{denied}\"] }}, \
             {{ action = \"allow\", names = [\"first.test\", \"good.test\", \".allowed.test\"], {networks} }}"
        )
    };
    let mut proxy = asking(&dns, &list(".ads.test"));
    assert_eq!(try_connect(&proxy, format!("first.test:{port}"), "").status, 403);
    assert_eq!(log(&proxy, 1)[0]["rule"], "t:1");
    let mut client = Client::connect(proxy.addr());
    let get = |client: &mut Client, host: &str| {
        client.ask(format!("GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")).status
    };
    assert_eq!(get(&mut client, "good.test"), 200);
    // Where a name leads opens nothing.
    dns.set("other.test", &["CNAME 60 www.allowed.test"]);
    assert_eq!(get(&mut client, "other.test"), 403);
    // A kept connection is judged by it, too.
    let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
    let text = text.split_once('\n').unwrap().1.replace(".ads.test", ".allowed.test");
    proxy.reload(2, &text);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(get(&mut client, "good.test"), 403);
}

#[test]
fn an_address_with_a_final_dot_is_no_target_in_any_protocol() {
    let backend = Backend::ok();
    let proxy = launch(&format!("list = [{LOOPBACK}]"), "").start();
    let port = backend.addr.port();
    let target = format!("127.0.0.1.:{port}");
    assert_eq!(try_connect(&proxy, &target, "").status, 400);
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask(format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n")).status, 400);
    let mut socks = stream(&proxy);
    socks.write_all(&[&[5, 1, 0, 5, 1, 0, 3, 10], &b"127.0.0.1."[..], &port.to_be_bytes()].concat()).unwrap();
    assert_ne!(read_exactly(&mut socks, 4)[3], 0);
    let mut dynamic = stream(&proxy);
    dynamic.write_all(format!("{{\"target\":\"{target}\"}}\n").as_bytes()).unwrap();
    assert!(read_line(&mut dynamic).contains("\"ok\":false"));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_request_that_becomes_a_tunnel_is_logged_with_its_target() {
    let backend = Backend::serve(|conn| {
        if conn.request().is_some() {
            conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
            while let Ok(bytes) = conn.wire.take(5) {
                conn.send(&bytes);
            }
        }
    });
    let proxy = launch(&format!("list = [{LOOPBACK}]"), "").start();
    let target = format!("origin.test:{}", backend.addr.port());
    let mut client = Client::connect(proxy.addr());
    let fields = "Connection: upgrade\r\nUpgrade: x";
    client.send(format!("GET http://{target}/ws HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n\r\n"));
    client.wire.begin();
    assert_eq!(client.wire.response_head().unwrap().status, 101);
    client.send("hello");
    client.wire.begin();
    assert_eq!(client.wire.take(5).unwrap(), b"hello");
    drop(client);
    let lines = log(&proxy, 1);
    let tunnel = &lines[0];
    assert_eq!((tunnel["bytes_in"].as_u64(), tunnel["status"].as_u64()), (Some(5), Some(101)));
    let url = format!("http://{target}/ws");
    assert_eq!((tunnel["target"].as_str(), tunnel["rule"].as_str()), (Some(url.as_str()), Some("t:1")));
}
