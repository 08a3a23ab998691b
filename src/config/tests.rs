//! Whole configurations and what they come to.

mod command_line;
mod forward;
mod messages;
mod names;

use std::io;
use std::path::Path;

use ipc::snapshot::{Balance, Dns, Endpoint, HostMatch, LogTarget, Mode, PathMatch, ProxyVersion, Snapshot, Target};

use super::check::DEFAULT_TIMEOUTS;
use super::system::System;
use super::{Control, Loaded, OsGroup, OsUser, Report, check_text, dump};

/// Two users with cheap hashes of "secret".
pub const USERS: &str = "ann:$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$u7rDJMrE1ytKEMGSLG7/c9uDXFIlaDHC\n\
                         bob:$2y$04$DtTq..GtZEd.xTa43Bl6Fu/Em2b96F/vC6axcSTaA9jH/L.lUlpSK\n";

/// A user with a hash of cost N.
const BCRYPT: &str = "bN:$2y$N$DtTq..GtZEd.xTa43Bl6Fu/Em2b96F/vC6axcSTaA9jH/L.lUlpSK\n";

/// A machine with 4 cores, a user and a group `www-data`, the directories `/`, `/run` and `/var/log`, and names
/// that begin with `one.` and `two.` for that many addresses.
pub struct TestSystem;

impl System for TestSystem {
    fn resolve(&self, _: &Dns, targets: &[Target]) -> Vec<Result<Vec<Endpoint>, String>> {
        let endpoints = |hosts: &[u8], port: u16| {
            let endpoint = |&n: &u8| Endpoint { address: ([10, 0, 0, n], port).into(), weight: None, backup: false };
            Ok(hosts.iter().map(endpoint).collect())
        };
        let resolve = |target: &Target| match target {
            Target::Host { name, port } => match name.split('.').next() {
                Some("one") => endpoints(&[1], *port),
                Some("two") => endpoints(&[1, 2], *port),
                Some("app") => endpoints(&[3], *port),
                Some("none") => endpoints(&[], *port),
                Some(_) | None => Err("no such host".to_owned()),
            },
            Target::Service { .. } => endpoints(&[7], 77),
        };
        targets.iter().map(resolve).collect()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        match path.to_str() {
            Some("/run/users") => Ok(USERS.to_owned()),
            Some("/run/mixed") => Ok((4..13).map(|cost| BCRYPT.replace("N", &format!("{cost:02}"))).collect()),
            Some("/run/broken") => Ok("ann:nothing\nbob\n".to_owned()),
            Some("/etc/resolv.conf") => Ok("nameserver 10.0.0.9\nsearch test\noptions ndots:2\n".to_owned()),
            Some("/etc/hosts" | "/run/hosts") => Ok("127.0.0.1 localhost\n10.0.0.5 five\n".to_owned()),
            Some(_) | None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn user(&self, name: &str) -> io::Result<Option<OsUser>> {
        Ok((name == "www-data").then(|| OsUser { name: name.to_owned(), uid: 33, gid: 33 }))
    }

    fn group(&self, name: &str) -> io::Result<Option<OsGroup>> {
        Ok((name == "www-data").then(|| OsGroup { name: name.to_owned(), gid: 33 }))
    }

    fn cores(&self) -> usize {
        4
    }

    fn is_directory(&self, path: &Path) -> bool {
        ["/", "/run", "/var/log"].iter().any(|known| path == Path::new(known))
    }
}

pub fn read(text: &str) -> Result<Loaded, Report> {
    check_text("test.toml", text, None, &TestSystem)
}

fn good(text: &str) -> Loaded {
    let loaded = read(text).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(loaded.warnings.to_string(), "");
    loaded
}

/// The findings on `text`, which must be refused.
fn bad(text: &str) -> String {
    read(text).expect_err("a fault should be found").to_string()
}

/// As `bad`, where `text` comes behind a sound beginning of a file.
fn bad_after_sound(text: &str) -> String {
    bad(&format!("route = [{{ to = \"web\" }}]\nbackends.web.servers = [\"127.0.0.1:9001\"]\n{text}"))
}

fn assert_dump_reads_back(loaded: &Loaded) {
    let text = dump(&loaded.snapshot, &loaded.process);
    let again = read(&text).unwrap_or_else(|report| panic!("{report}\n{text}"));
    assert_eq!(again.snapshot, loaded.snapshot, "{text}");
    assert_eq!(again.process.user, loaded.process.user);
    assert_eq!(again.process.group, loaded.process.group);
    assert_eq!(again.process.unix_permissions, loaded.process.unix_permissions);
    assert_eq!(dump(&again.snapshot, &again.process), text);
}

fn minimal() -> Snapshot {
    good(include_str!("../../examples/minimal.toml")).snapshot
}

#[test]
fn minimal_example_gets_the_defaults() {
    let snapshot = minimal();
    assert_eq!(snapshot.workers, 4);
    assert_eq!(snapshot.listeners.len(), 1);
    assert_eq!(snapshot.listeners[0].bind.to_string(), "127.0.0.1:8080");
    assert_eq!(snapshot.listeners[0].mode, Mode::Http);
    assert_eq!(snapshot.listeners[0].backlog, 4096);
    assert_eq!(snapshot.listeners[0].timeouts, DEFAULT_TIMEOUTS);
    assert_eq!(snapshot.routes[0].host, HostMatch::Any);
    assert_eq!(snapshot.routes[0].path, PathMatch::Prefix("/".to_owned()));
    let group = &snapshot.groups[0];
    assert_eq!((group.tries, group.balance), (3, Balance::RoundRobin));
    assert_eq!((group.health.failures, group.health.eject_ms, group.health.eject_max_ms), (3, 5000, 60_000));
    assert_eq!((group.keepalive.idle_per_server, group.keepalive.idle_timeout_ms), (64, 60_000));
    assert_eq!(snapshot.limits.head_bytes, 16384);
    assert_eq!(snapshot.limits.body_bytes, None);
    assert_eq!(snapshot.access_log.to, LogTarget::Off);
    assert_eq!(snapshot.shutdown_timeout_ms, 30_000);
}

#[test]
fn full_example_names_every_key_and_reads_back_from_its_dump() {
    let text = include_str!("../../examples/full.toml");
    let loaded = good(text);
    assert_dump_reads_back(&loaded);
    let dumped = dump(&loaded.snapshot, &loaded.process);
    for key in dumped.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key.trim()) {
        if !key.starts_with("{ ") {
            assert!(text.lines().any(|line| line.trim_start_matches(['#', ' ']).starts_with(key)), "{key}");
        }
    }
}

#[test]
fn user_and_group_are_looked_up() {
    let loaded = good(
        "user = \"www-data\"\ngroup = \"www-data\"\nroute = [{ to = \"a\" }]\nbackends.a.servers = [\"127.0.0.1:9\"]",
    );
    assert_eq!(loaded.process.user.as_ref().map(|user| (user.uid, user.gid)), Some((33, 33)));
    assert_eq!(loaded.process.group.as_ref().map(|group| group.gid), Some(33));
    assert_dump_reads_back(&loaded);
}

#[test]
fn timeouts_come_from_the_nearest_place_that_sets_them() {
    let snapshot = good(
        "[timeouts]\nidle = \"10s\"\nconnect = \"1s\"\n[[listen]]\nbind = \"127.0.0.1:1\"\ntimeouts.idle = \"5s\"\n\
         [[listen]]\nbind = \"127.0.0.1:2\"\n[[route]]\nto = \"a\"\n[backends.a]\nservers = [\"127.0.0.1:9\"]\n\
         timeouts.connect = \"250ms\"\n",
    )
    .snapshot;
    let [first, second] = &snapshot.listeners[..] else { panic!() };
    assert_eq!((first.timeouts.idle_ms, first.timeouts.connect_ms), (5000, 1000));
    assert_eq!((second.timeouts.idle_ms, second.timeouts.connect_ms), (10_000, 1000));
    assert_eq!(second.timeouts.header_ms, DEFAULT_TIMEOUTS.header_ms);
    assert_eq!(first.timeouts.with(&snapshot.groups[0].timeouts).connect_ms, 250);
}

#[test]
fn groups_and_routes_keep_the_order_of_the_file() {
    let text = "[[route]]\nto = \"b\"\n[[route]]\nhost = \"A.de\"\nto = \"a\"\n\
                [backends.b]\nservers = [\"127.0.0.1:9\"]\n[backends.a]\nservers = [\"127.0.0.1:9\"]\n";
    let snapshot = good(text).snapshot;
    assert_eq!(snapshot.groups.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(snapshot.routes.iter().map(|r| r.to).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(snapshot.routes[1].host, HostMatch::Exact("a.de".to_owned()));
}

#[test]
fn a_longer_ejection_raises_the_longest() {
    let text = "route = [{ to = \"a\" }]\n[backends.a]\nservers = [\"127.0.0.1:9\"]\nhealth.eject = \"5m\"";
    assert_eq!(good(text).snapshot.groups[0].health.eject_max_ms, 300_000);
}

#[test]
fn unix_listeners_carry_their_permissions() {
    let loaded = good(
        "listen = [{ bind = \"unix:/run/a.sock\", permissions = \"0660\" }]\nroute = [{ to = \"a\" }]\n\
         backends.a.servers = [\"unix:/run/b.sock\"]",
    );
    assert_eq!(loaded.process.unix_permissions.get(Path::new("/run/a.sock")), Some(&0o660));
    assert_dump_reads_back(&loaded);
}

#[test]
fn what_is_useless_is_warned_of() {
    let base =
        "backends.a.servers = [\"127.0.0.1:9\"]\nlisten = [{ bind = \"127.0.0.1:1\", mode = \"tcp\", to = \"a\" }]\n";
    let warnings = |text: &str| read(&format!("{base}{text}")).unwrap().warnings.to_string();
    assert_eq!(warnings(""), "");
    assert!(warnings("route = [{ to = \"a\" }]").contains("warning: no listener uses the routes"));
    let unused = warnings("backends.b.servers = [\"127.0.0.1:9\"]");
    assert!(unused.contains("warning: no route or listener uses the backend group `b`"), "{unused}");
    assert!(warnings("trusted_proxies = [\"10.1.0.0/8\"]").contains("\"10.0.0.0/8\""));
    assert!(read("route = [{ to = \"a\" }]\nbackends.a.servers = []").unwrap().warnings.to_string().contains("503"));
}

#[test]
fn byte_order_mark_and_crlf_are_read() {
    good("\u{feff}workers = 2\r\n[[route]]\r\nto = \"web\"\r\n[backends.web]\r\nservers = [\"127.0.0.1:9001\"]\r\n");
}

#[test]
fn the_control_socket_is_a_path_or_off() {
    let sound = "route = [{ to = \"web\" }]\nbackends.web.servers = [\"127.0.0.1:9001\"]\n";
    assert_eq!(good(sound).process.control, Control::Derived);
    let at = good(&format!("control = \"unix:/run/x.sock\"\n{sound}"));
    assert_eq!(at.process.control, Control::At("/run/x.sock".into()));
    assert_dump_reads_back(&at);
    assert_eq!(good(&format!("control = \"off\"\n{sound}")).process.control, Control::Off);
    assert!(bad_after_sound("control = \"127.0.0.1:1\"").contains("it is a Unix socket"));
    assert!(bad_after_sound("control = \"unix:/no/such/x.sock\"").contains("there is no directory"));
    // It is found in a file that cannot be used.
    let broken = "control = \"unix:/run/x.sock\"\nworkers = 0\n[[listen\n";
    assert_eq!(super::parse::control_of(broken), Some(Control::At("/run/x.sock".into())));
    assert_eq!(super::parse::control_of("workers = 1"), None);
}

#[test]
fn proxy_headers_are_expected_from_listed_sources_only() {
    let loaded = good(
        "route = [{ to = \"a\" }]\nbackends.a = { servers = [\"127.0.0.1:9\"], send_proxy = \"v2\" }\n\
         backends.b = { servers = [\"127.0.0.1:9\"], send_proxy = \"off\" }\n\
         [[listen]]\nbind = \"127.0.0.1:1\"\nproxy_protocol.from = [\"10.0.0.0/8\", \"2001:db8::1\"]\n\
         [[listen]]\nbind = \"127.0.0.1:2\"\nto = \"b\"\n\
         [[listen]]\nbind = \"unix:/run/s\"\nproxy_protocol = { from = [\"unix\"] }",
    );
    assert_dump_reads_back(&loaded);
    let expects =
        |listener: usize, peer: &str| loaded.snapshot.listeners[listener].proxy_protocol.is_expected(peer.parse().ok());
    assert!(expects(0, "10.255.0.1") && expects(0, "::ffff:10.0.0.1") && expects(0, "2001:db8::1"));
    assert!(!expects(0, "11.0.0.1") && !expects(0, "2001:db8::2") && !expects(0, "unix"));
    assert!(!expects(1, "10.255.0.1") && loaded.snapshot.listeners[1].proxy_protocol.is_off());
    assert!(expects(2, "unix") && !loaded.snapshot.listeners[2].proxy_protocol.is_off());
    assert_eq!(loaded.snapshot.groups[0].send_proxy, Some(ProxyVersion::V2));
    assert_eq!(loaded.snapshot.groups[1].send_proxy, None);
}

const FORWARD: &str = "[[listen]]\nbind = \"127.0.0.1:3128\"\nmode = \"forward\"\n";

/// The same with rules that allow something.
const OPEN: &str = "[[listen]]\nbind = \"127.0.0.1:3128\"\nmode = \"forward\"\nrules = \"o\"\n\
                    [rules.o]\nlist = [{ action = \"allow\", names = [\"a.test\"] }]\n";
