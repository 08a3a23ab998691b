//! A machine that has no way to IPv6 addresses: a network namespace with nothing but loopback.
//!
//! The IPv6 addresses here are those for documentation (RFC 3849). Nothing leaves the namespace, which has no interface
//! that anything could leave by.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::dns::NameServer;
use crate::common::{need_packages, run};
use crate::forward::{connect, echo, launch};

/// Addresses that there is no way to.
const NOWHERE: u8 = 12;

/// Runs `test` on a thread in a network namespace of its own, and so everything that it starts. Not without the right
/// to make one.
fn alone(test: fn()) {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    need_packages(&["iproute2"]);
    let apart = std::thread::spawn(move || {
        match unshare(CloneFlags::CLONE_NEWNET) {
            // Root of a container may not have it.
            Err(nix::errno::Errno::EPERM) => return,
            made => made.unwrap(),
        }
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        test();
    });
    if let Err(panic) = apart.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A name server that knows `both.test` by 127.0.0.1, and by IPv6 addresses that nothing leads to.
fn name_server() -> NameServer {
    let dns = NameServer::start();
    let mut records: Vec<String> = (1..=NOWHERE).map(|n| format!("AAAA 60 2001:db8::{n}")).collect();
    records.push("A 60 127.0.0.1".to_owned());
    dns.set("both.test", &records.iter().map(String::as_str).collect::<Vec<_>>());
    dns
}

#[test]
fn a_tunnel_goes_to_the_family_that_there_is() {
    alone(|| {
        let backend = Backend::tcp_echo();
        let dns = name_server();
        let networks = "networks = [\"127.0.0.0/8\", \"2001:db8::/32\"], ports = [\"1-65535\"]";
        // With a pause after each address the time would not suffice.
        let more = "timeouts.connect = \"2s\"";
        let rules = format!("list = [{{ action = \"allow\", {networks} }}]");
        let proxy = launch(&rules, more);
        let proxy = proxy.replace("[dns]\n", &format!("[dns]\nservers = [\"{}\"]\n", dns.addr)).start();
        let mut client = Client::connect(proxy.addr());
        let target = format!("both.test:{}", backend.addr.port());
        assert_eq!(connect(&mut client, target, "").status, 200);
        echo(&mut client, "over IPv4");
        // Of those that there are none leads anywhere: said at once, too.
        dns.set("six.test", &["AAAA 60 2001:db8::1", "AAAA 60 2001:db8::2"]);
        let mut client = Client::connect(proxy.addr());
        assert_eq!(connect(&mut client, "six.test:443", "").status, 502);
    });
}

#[test]
fn a_server_that_there_is_no_way_to_is_no_try() {
    alone(|| {
        let backend = Backend::named("v4");
        let echo = Backend::tcp_echo();
        let dns = name_server();
        let tables = format!(
            "{}[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\n\
             servers = [\"both.test:{}\"]\nhealth.failures = 0",
            NameServer::table(&[dns.addr]),
            echo.addr.port()
        );
        let server = format!("\"both.test:{}\"", backend.addr.port());
        // They are never passed over for having failed.
        let conf = Conf::http(&[]).server(server).group("health.failures = 0").group("tries = 2").tables(&tables);
        let proxy = conf.start();
        for _ in 0..3 * NOWHERE {
            assert_eq!(get(proxy.addr(), "/").text(), "v4");
        }
        for _ in 0..NOWHERE {
            let mut client = Client::connect(&proxy.addrs()[1]);
            client.send("hello");
            client.wire.begin();
            assert_eq!(client.wire.take(5).unwrap(), b"hello");
        }
    });
}
