//! Whole configurations: what they come to, and the messages as people see them.

use std::io;
use std::path::Path;

use ipc::snapshot::{
    Address, Balance, Dns, Endpoint, HostMatch, LogTarget, Mode, PathMatch, ProxyVersion, Snapshot, Target,
};

use super::check::DEFAULT_TIMEOUTS;
use super::command_line::check_options;
use super::system::System;
use super::{Control, Loaded, Names, Options, OsGroup, OsUser, Report, Workers, check_text, dump, gather, load};

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
fn a_name_is_looked_up_and_kept() {
    let text = "route = [{ to = \"a\" }]\nbackends.a.servers = [{ address = \"two.x:80\", weight = 3 }, \"none.x:1\", \"x:1\", \"one.x:80\"]";
    let loaded = read(text).unwrap();
    let group = &loaded.snapshot.groups[0];
    assert!(group.servers.is_empty());
    let known = |known: &[Endpoint]| known.iter().map(|one| one.address.to_string()).collect::<Vec<_>>();
    let names: Vec<_> = group.names.iter().map(|one| (one.name.as_str(), known(&one.known), one.weight)).collect();
    let two = vec!["10.0.0.1:80".to_owned(), "10.0.0.2:80".to_owned()];
    let one = vec!["10.0.0.1:80".to_owned()];
    assert_eq!(names, [("two.x:80", two, 3), ("none.x:1", vec![], 1), ("x:1", vec![], 1), ("one.x:80", one, 1)]);
    let warnings = loaded.warnings.to_string();
    assert!(!loaded.warnings.has_errors());
    assert!(warnings.contains("the name of the server `none.x:1` does not resolve: it has no addresses"), "{warnings}");
    assert!(warnings.contains("the name of the server `x:1` does not resolve: no such host"), "{warnings}");
    assert!(warnings.contains("this name stands for `10.0.0.1:80`, which is in the group already"), "{warnings}");
    assert_dump_reads_back(&loaded);
}

#[test]
fn a_group_whose_names_do_not_resolve_keeps_them() {
    let loaded = read("route = [{ to = \"a\" }]\nbackends.a.servers = [\"x:1\"]").unwrap();
    assert!(loaded.snapshot.groups[0].servers.is_empty() && loaded.snapshot.groups[0].names.len() == 1);
    assert_dump_reads_back(&loaded);
}

#[test]
fn services_are_looked_up_without_a_port_or_a_weight() {
    let text = |server: &str| format!("route = [{{ to = \"a\" }}]\nbackends.a.servers = [{server}]");
    let loaded = good(&text("{ srv = \"_http._tcp.App\", backup = true, name = \"app\" }"));
    let named = &loaded.snapshot.groups[0].names[0];
    assert_eq!(named.target, Target::Service { name: "_http._tcp.app".to_owned() });
    assert_eq!((named.name.as_str(), named.backup, named.known[0].address.port()), ("app", true, 77));
    assert_dump_reads_back(&loaded);
    let refused = |server: &str| read(&text(server)).expect_err("a fault should be found").to_string();
    assert!(refused("{ srv = \"_http._tcp.app\", weight = 2 }").contains("SRV records have weights of their own"));
    assert!(refused("{ srv = \"a.b\", address = \"127.0.0.1:1\" }").contains("either an `address` or an `srv` name"));
    assert!(refused("{ srv = \"_http._tcp.app:80\" }").contains("leave the port out"));
    assert!(refused("\"one.x:80\", { address = \"ONE.x:80\" }").contains("is in the group twice"));
}

#[test]
fn dns_settings_stand_above_the_files_of_the_system() {
    let sound = "route = [{ to = \"a\" }]\nbackends.a.servers = [\"127.0.0.1:9\"]\n";
    let dns = |text: &str| good(&format!("{sound}{text}")).snapshot.dns;
    let usual = dns("");
    assert_eq!(usual.servers, ["10.0.0.9:53".parse().unwrap()]);
    assert_eq!((usual.search.as_slice(), usual.ndots), (["test".to_owned()].as_slice(), 2));
    assert_eq!(usual.hosts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["five", "localhost"]);
    let own = "[dns]\nservers = [\"127.0.0.1:5353\", \"::1\"]\nhosts = \"off\"\nsearch = []\ntimeout = \"300ms\"\n\
               attempts = 4\nrotate = true\nndots = 1\n";
    let own = dns(own);
    assert_eq!(own.servers, ["127.0.0.1:5353".parse().unwrap(), "[::1]:53".parse().unwrap()]);
    let wanted = Dns { servers: own.servers.clone(), timeout_ms: 300, attempts: 4, rotate: true, ..Dns::default() };
    assert_eq!(own, wanted);
    assert_eq!(dns("[dns]\nresolv_conf = \"off\"\nhosts = \"off\"\n"), Dns::default());
    assert_dump_reads_back(&good(&format!("{sound}[dns]\nhosts = \"/run/hosts\"\nservers = [\"fe80::1%3\"]\n")));
    let refused = |text: &str| read(&format!("{sound}[dns]\n{text}")).expect_err("a fault should be found").to_string();
    assert!(refused("servers = [\"dns.internal\"]").contains("is not the address of a name server"));
    assert!(refused("servers = [5]").contains("an entry of `servers` must be a string"));
    assert!(refused("hosts = \"/no/such\"").contains("cannot read /no/such"));
    assert!(refused("hosts = \"hosts\"").contains("write it from the root"));
    assert!(refused("timeout = \"31s\"").contains("write 30s or less"));
    assert!(refused("search = [\"a b\"]").contains("cannot be a search suffix"));
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
fn misspelt_key() {
    assert_eq!(
        bad_after_sound("[timeouts]\nconect = \"2s\"\n"),
        "error: unknown key `conect` in `timeouts`
 --> test.toml:4:1
  |
4 | conect = \"2s\"
  | ^^^^^^
  |
  = help: did you mean `connect`?
"
    );
}

#[test]
fn misplaced_key() {
    assert_eq!(
        bad_after_sound("[backends.web.timeouts]\nheader = \"2s\"\n"),
        "error: unknown key `header` in `[backends.NAME.timeouts]`
 --> test.toml:4:1
  |
4 | header = \"2s\"
  | ^^^^^^
  |
  = help: `header` belongs in `[timeouts]` or `[listen.timeouts]`
"
    );
}

#[test]
fn missing_unit() {
    assert_eq!(
        bad_after_sound("[timeouts]\n  connect = 2 # seconds\n"),
        "error: the duration `2` has no unit
 --> test.toml:4:13
  |
4 |   connect = 2 # seconds
  |             ^
  |
  = help: did you mean \"2s\"? units are ms, s, m, h and d
"
    );
}

#[test]
fn duplicate_listener() {
    assert_eq!(
        bad_after_sound("[[listen]]\nbind = \"127.0.0.1:80\"\n[[listen]]\nbind = \"0.0.0.0:80\"\n"),
        "error: `0.0.0.0:80` is covered by another listener
 --> test.toml:6:8
  |
6 | bind = \"0.0.0.0:80\"
  |        ^^^^^^^^^^^^
  |
 ::: test.toml:4:8
  |
4 | bind = \"127.0.0.1:80\"
  |        -------------- the other one
  |
  = help: remove one of them, or use another port
"
    );
}

#[test]
fn every_fault_is_reported_at_once() {
    let text = "workers = 0\n[[listen]]\nbind = \"8080\"\nto = \"wbe\"\n[backends.web]\nservers = [\"127.0.0.1\"]\ntries = 17\n";
    assert_eq!(
        bad(text),
        "error: `workers` is out of bounds
 --> test.toml:1:11
  |
1 | workers = 0
  |           ^
  |
  = help: it is a whole number from 1 to 1024, or \"auto\"

error: `8080` has no host
 --> test.toml:3:8
  |
3 | bind = \"8080\"
  |        ^^^^^^
  |
  = help: write \"127.0.0.1:8080\" for this machine only, \"0.0.0.0:8080\" for all its IPv4 addresses

error: there is no backend group `wbe`
 --> test.toml:4:6
  |
4 | to = \"wbe\"
  |      ^^^^^
  |
  = help: did you mean `web`?

error: `127.0.0.1` has no port
 --> test.toml:6:12
  |
6 | servers = [\"127.0.0.1\"]
  |            ^^^^^^^^^^^
  |
  = help: write \"127.0.0.1:80\"

error: `tries` is out of bounds
 --> test.toml:7:9
  |
7 | tries = 17
  |         ^^
  |
  = help: it is a whole number from 1 to 16
"
    );
}

#[test]
fn syntax_errors_do_not_hide_independent_faults_nor_cause_others() {
    let text = "dispatch = \"round-robin\nconect = 5\n[[listen]]\nbind = \n[[route]]\nto = \"web\"\n";
    let report = bad(text);
    assert_eq!(report.matches("error: ").count(), 3, "{report}");
    assert!(report.contains("test.toml:1:24") && report.contains("test.toml:4:"), "{report}");
    assert!(report.contains("unknown key `conect`"), "{report}");
    assert!(!report.contains("backend group"), "{report}");
}

/// Text behind a sound beginning, and what its report must say.
#[test]
fn each_fault_has_its_message() {
    let cases = [
        ("[limits]\nhead = \"16\"", "the size `16` has no unit"),
        ("[limits]\nhead = \"16B\"", "it may be from 1KiB to 256KiB"),
        ("[limits]\nfields = 7", "it is a whole number from 8 to 1000"),
        ("[limits]\nfields = 99999999999999999999999999999999999999999", "it is a whole number from 8 to 1000"),
        (
            "[limits]\nconnections = 1.5",
            "`connections` must be a whole number from 1 to 1000000, or \"auto\", found a fraction",
        ),
        ("[limits]\nconnections_per_address = \"no\"", "or \"none\", found a string"),
        ("[timeouts]\nidle = \"0s\"", "a duration of zero"),
        ("[timeouts]\nidle = \"31d\"", "the longest is 30d"),
        ("[timeouts]\nidle = true", "`idle` must be a duration, found a boolean"),
        ("[[timeouts]]", "`timeouts` must be a table, found an array"),
        ("[listen]\nbind = \"127.0.0.1:1\"", "begin each one with `[[listen]]`"),
        ("[[listen]]", "`[[listen]]` has no `bind`"),
        ("[[listen]]\nbind = 8080", "`bind` must be a string, found an integer"),
        ("[[listen]]\nbind = \"unix:/run\"", "`/run` is a directory"),
        ("[[listen]]\nbind = \"unix:/nowhere/a\"", "there is no directory `/nowhere` for the socket"),
        ("[[listen]]\nbind = \"127.0.0.1:1\"\npermissions = \"0660\"", "`permissions` are for Unix sockets only"),
        ("[[listen]]\nbind = \"unix:/run/a\"\npermissions = \"rw\"", "write them in octal"),
        ("[[listen]]\nbind = \"127.0.0.1:1\"\nmode = \"tcp\"", "add `to = \"web\"`"),
        ("[[listen]]\nbind = \"127.0.0.1:1\"\nmode = \"https\"", "did you mean \"http\"?"),
        ("[access_log]\nto = \"log\"", "the access log cannot go to `log`"),
        ("[access_log]\nto = \"/nowhere/log\"", "there is no directory `/nowhere` for the access log"),
        ("[backends.\"a b\"]\nservers = []", "`a b` cannot be the name of a backend group"),
        ("[backends.a]", "`[backends.NAME]` has no `servers`"),
        ("[backends.a]\nservers = [7]", "a server must be a string or a table, found an integer"),
        ("[backends.a]\nservers = [{ weight = 2 }]", "an entry of `servers` has no `address`"),
        ("[backends.a]\nservers = [{ address = \"127.0.0.1:1\", weight = 0 }]", "from 1 to 1000"),
        ("[backends.a]\nservers = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", "is in the group twice"),
        ("[backends.a]\nservers = []\nbalance = \"least_conn\"", "did you mean \"least-connections\"?"),
        ("[backends.a]\nservers = []\nhealth = { eject = \"9s\", eject_max = \"8s\" }", "which is 9s"),
        ("[[listen]]\nbind = \"127.0.0.1:1\"\nto = \"127.0.0.1:9001\"", "`to` is the name of a group"),
    ];
    for (text, message) in cases {
        let report = bad_after_sound(text);
        assert!(report.contains(message), "{text}\n{report}");
        assert_eq!(report.matches("error: ").count(), 1, "{text}\n{report}");
    }
    assert!(bad("backends.servers = []").contains("give the group a name"));
    assert!(bad("user = \"root2\"\nroute = []").contains("there is no user `root2` on this system"));
    assert!(bad("trusted_proxies = [\"10.0.0.0/40\"]").contains("it is a number from 0 to 32"));
}

#[test]
fn something_must_be_done_with_requests() {
    let report = bad("[backends.web]\nservers = [\"127.0.0.1:9001\"]");
    assert_eq!(
        report,
        "error: nothing to do with requests to 127.0.0.1:8080, where HTTP is served by default
help: add a route, as in:
      [[route]]
      to = \"web\"
"
    );
    let report = bad("[[listen]]\nbind = \"127.0.0.1:1\"\n[backends.web]\nservers = [\"127.0.0.1:9001\"]");
    assert!(report.contains("test.toml:1:1") && report.contains("add `to = \"web\"` to it, or a route"), "{report}");
    assert!(bad("").contains("[backends.web]"));
}

#[test]
fn duplicate_routes() {
    for (first, second) in [
        ("", "path = \"/\"\n"),
        ("host = \"A.de\"\n", "host = \"a.DE\"\n"),
        ("host = \"*.a.de\"\npath = \"=/x\"\n", "path = \"=/x\"\nhost = \"*.a.de\"\n"),
    ] {
        let text = format!(
            "[[route]]\n{first}to = \"a\"\n[[route]]\n{second}to = \"a\"\n[backends.a]\nservers = [\"127.0.0.1:9\"]"
        );
        let report = bad(&text);
        assert!(report.contains("two routes match the same host and path"), "{report}");
        assert_eq!(report.matches("error: ").count(), 1, "{report}");
    }
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
fn the_command_line_is_a_configuration_too() {
    let options = Options {
        listen: vec!["0.0.0.0:80".to_owned(), "[::]:80".to_owned()],
        backend: vec!["127.0.0.1:9001".to_owned(), "two.x:80".to_owned()],
        ..Options::default()
    };
    let loaded = check_options(&options, &TestSystem).unwrap();
    assert_eq!(loaded.warnings.to_string(), "");
    assert_eq!(loaded.snapshot.workers, 4);
    assert_eq!(loaded.snapshot.listeners.len(), 2);
    assert_eq!(loaded.snapshot.groups[0].name, "default");
    let group = &loaded.snapshot.groups[0];
    assert_eq!((group.servers.len(), group.names.len(), group.names[0].known.len()), (1, 1, 2));
    assert_eq!(loaded.snapshot.routes.len(), 1);
    assert_dump_reads_back(&loaded);

    let file = "route = [{ to = \"default\" }]\nbackends.default.servers = [\"127.0.0.1:9001\"]";
    let backend = vec!["127.0.0.1:9001".to_owned()];
    let plain = check_options(&Options { backend: backend.clone(), ..Options::default() }, &TestSystem).unwrap();
    assert_eq!(plain.snapshot, good(file).snapshot);

    let options = Options { mode: Some(Mode::Tcp), workers: Some(Workers::Count(2)), backend, ..Options::default() };
    let tcp = check_options(&options, &TestSystem).unwrap().snapshot;
    assert_eq!((tcp.workers, tcp.routes.len(), tcp.listeners[0].to), (2, 0, Some(0)));
    assert_eq!(tcp.listeners[0].bind, Address::Inet(([127, 0, 0, 1], 8080).into()));
}

#[test]
fn the_command_line_is_checked_as_a_whole() {
    let options = Options {
        listen: vec!["8080".to_owned()],
        backend: vec!["127.0.0.1".to_owned(), "127.0.0.1:9001".to_owned()],
        ..Options::default()
    };
    assert_eq!(
        check_options(&options, &TestSystem).unwrap_err().to_string(),
        "error: `8080` has no host
 --> command line:1:10
  |
1 | --listen 8080 --backend 127.0.0.1 --backend 127.0.0.1:9001
  |          ^^^^
  |
  = help: write \"127.0.0.1:8080\" for this machine only, \"0.0.0.0:8080\" for all its IPv4 addresses

error: `127.0.0.1` has no port
 --> command line:1:25
  |
1 | --listen 8080 --backend 127.0.0.1 --backend 127.0.0.1:9001
  |                         ^^^^^^^^^
  |
  = help: write \"127.0.0.1:80\"
"
    );
    assert_eq!(
        check_options(&Options::default(), &TestSystem).unwrap_err().to_string(),
        "error: no server to pass requests to
help: give one or more with --backend HOST:PORT, or a file with --config FILE
"
    );
}

#[test]
fn only_workers_stand_above_a_file() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/minimal.toml");
    let options = Options { workers: Some(Workers::Count(7)), ..Options::default() };
    let loaded = gather(Some(&example), &options).unwrap();
    assert_eq!(loaded.snapshot.workers, 7);
    assert_eq!(loaded.process.source.as_deref(), Some(example.as_path()));

    let options = Options { backend: vec!["127.0.0.1:1".to_owned()], mode: Some(Mode::Tcp), ..Options::default() };
    let report = gather(Some(&example), &options).unwrap_err().to_string();
    assert_eq!(report.matches("error: ").count(), 2);
    assert!(report.contains("--backend cannot be used together with --config"), "{report}");
}

#[test]
fn unreadable_files_say_why() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let missing = load(&root.join("examples/no-such-file.toml"), None, &TestSystem).unwrap_err().to_string();
    assert!(missing.contains("No such file") && missing.contains("help: check the path"), "{missing}");
    let directory = load(&root.join("examples"), None, &TestSystem).unwrap_err().to_string();
    assert!(directory.contains("it is a directory"), "{directory}");
}

#[test]
fn a_report_of_many_faults_is_cut() {
    let text: String = (0..150).map(|i| format!("unknown{i} = 1\n")).collect();
    let report = bad_after_sound(&text);
    assert_eq!(report.matches("error: ").count(), 100);
    assert!(report.ends_with("... and 50 more\n"), "{report}");
}

#[test]
fn control_sequences_do_not_reach_the_terminal() {
    for text in
        ["route = [{ to = \"\\u001b[31m\" }]", "\"\\u001b[31m\" = 1", "dispatch = \"\\u001b[31m\"", "x = \u{1b}"]
    {
        let report = bad(text);
        assert!(!report.contains('\u{1b}'), "{report:?}");
    }
}

#[test]
fn byte_order_mark_and_crlf_are_read() {
    good("\u{feff}workers = 2\r\n[[route]]\r\nto = \"web\"\r\n[backends.web]\r\nservers = [\"127.0.0.1:9001\"]\r\n");
}

#[test]
fn a_name_that_no_longer_resolves_keeps_the_addresses_it_had() {
    /// The name service is away.
    struct Dark;
    impl System for Dark {
        fn resolve(&self, _: &Dns, targets: &[Target]) -> Vec<Result<Vec<Endpoint>, String>> {
            targets.iter().map(|_| Err("no answer".to_owned())).collect()
        }
        fn read(&self, path: &Path) -> io::Result<String> {
            TestSystem.read(path)
        }
        fn user(&self, name: &str) -> io::Result<Option<OsUser>> {
            TestSystem.user(name)
        }
        fn group(&self, name: &str) -> io::Result<Option<OsGroup>> {
            TestSystem.group(name)
        }
        fn cores(&self) -> usize {
            1
        }
        fn is_directory(&self, path: &Path) -> bool {
            TestSystem.is_directory(path)
        }
    }
    let text = "route = [{ to = \"web\" }]\nbackends.web.servers = [\"two.x:1\", \"127.0.0.1:9\"]\n";
    let mut names = Names::default();
    let mut read = |system: &dyn System| {
        let asked = names.begin(system);
        let loaded = check_text("t", text, None, &asked).unwrap_or_else(|report| panic!("{report}"));
        names = asked.into_names();
        loaded
    };
    let before = read(&TestSystem);
    for _ in 0..2 {
        let after = read(&Dark);
        assert_eq!(after.snapshot.groups, before.snapshot.groups);
        assert!(after.warnings.to_string().contains("the addresses it had before are used"), "{}", after.warnings);
    }
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
fn a_finding_for_the_log_is_one_line_with_its_place() {
    let report = read("\nworkers = 0\ndispatch = \"x\\u0007\"\n").unwrap_err();
    let lines: Vec<String> = report.lines().collect();
    assert!(lines[0].starts_with("test.toml:2: `workers` is out of bounds; it is a whole number"), "{lines:?}");
    assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:?}");
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

#[test]
fn wrong_proxy_protocol_says_what_to_write() {
    let listen = |line: &str| bad_after_sound(&format!("[[listen]]\nbind = \"127.0.0.1:1\"\n{line}"));
    let shown = listen("proxy_protocol = true");
    assert!(shown.contains("`proxy_protocol` must be a table, found a boolean"), "{shown}");
    let shown = listen("proxy_protocol = {}");
    assert!(shown.contains("has no `from`") && shown.contains("add `from = [\"10.0.0.0/8\"]`"), "{shown}");
    let shown = listen("proxy_protocol = { from = [] }");
    assert!(shown.contains("nobody is listed") && shown.contains("from = [\"10.0.0.0/8\"]"), "{shown}");
    let shown = listen("proxy_protocol = { from = [\"10.0.0.0/33\", 7] }");
    assert!(shown.contains("`33` is not a prefix length") && shown.contains("found an integer"), "{shown}");
    let shown = listen("proxy_protocol = { from = [\"unix\"] }");
    assert!(shown.contains("the clients of a Unix socket, and this is none"), "{shown}");
    let shown = listen("proxy_protocol = { form = [\"10.0.0.0/8\"] }");
    assert!(shown.contains("did you mean `from`?"), "{shown}");
    let shown = bad_after_sound("[[listen]]\nbind = \"unix:/run/s\"\nproxy_protocol.from = [\"10.0.0.0/8\"]");
    assert!(shown.contains("have no address") && shown.contains("from = [\"unix\"]"), "{shown}");
    let shown = bad("route = [{ to = \"a\" }]\nbackends.a = { servers = [\"127.0.0.1:9\"], send_proxy = \"v3\" }");
    assert!(shown.contains("`send_proxy` cannot be `v3`") && shown.contains("\"off\", \"v1\", \"v2\""), "{shown}");
    let text = "route = [{ to = \"a\" }]\nbackends.a.servers = [\"127.0.0.1:9\"]\n[[listen]]\nbind = \"127.0.0.1:1\"\n";
    let loaded = read(&format!("{text}proxy_protocol.from = [\"0.0.0.0/0\", \"10.0.0.1/8\"]")).unwrap();
    let shown = loaded.warnings.to_string();
    assert!(shown.contains("every client can claim any address") && shown.contains("behind its prefix"), "{shown}");
}

const FORWARD: &str = "[[listen]]\nbind = \"127.0.0.1:3128\"\nmode = \"forward\"\n";
/// The same with rules that allow something.
const OPEN: &str = "[[listen]]\nbind = \"127.0.0.1:3128\"\nmode = \"forward\"\nrules = \"o\"\n\
                    [rules.o]\nlist = [{ action = \"allow\", names = [\"a.test\"] }]\n";

#[test]
fn a_forward_listener_speaks_everything_and_needs_no_group() {
    let text = format!("{FORWARD}rules = \"o\"\n[rules.o]\nlist = [{{ action = \"allow\", names = [\"A.test\"] }}]\n");
    let loaded = good(&text);
    let listener = &loaded.snapshot.listeners[0];
    let forward = listener.forward.as_ref().unwrap();
    assert_eq!((listener.mode, forward.protocols), (Mode::Forward, ipc::forward::Protocols::ALL));
    assert_eq!(forward.rules.as_ref().unwrap().rules[0].names, [ipc::forward::NameMatch::Exact("a.test".to_owned())]);
    // Targets are farther away than servers of one's own; what is written counts all the same.
    assert_eq!(listener.timeouts.connect_ms, 10_000);
    let set = good(&format!("timeouts.connect = \"3s\"\n{text}")).snapshot;
    assert_eq!(set.listeners[0].timeouts.connect_ms, 3000);
    assert_dump_reads_back(&loaded);
}

#[test]
fn a_forward_listener_that_allows_nothing_is_warned_of() {
    let warnings = |text: &str| read(text).unwrap().warnings.to_string();
    let shown = warnings(FORWARD);
    assert!(shown.contains("this listener has no rules: everything will be refused"), "{shown}");
    let shown = warnings(&format!("{FORWARD}rules = \"o\"\n[rules.o]\nlist = [{{ action = \"deny\" }}]\n[rules.p]\n"));
    assert!(shown.contains("no rule of `o` allows anything"), "{shown}");
    assert!(shown.contains("no listener goes by the rules `p`"), "{shown}");
}

#[test]
fn wrong_rules_say_what_to_write() {
    let with = |listen: &str, rest: &str| bad(&format!("{FORWARD}{listen}\n{rest}"));
    let rule = |text: &str| with("rules = \"o\"", &format!("[rules.o]\nlist = [{{ {text} }}]"));
    for (shown, parts) in [
        (with("to = \"web\"", ""), ["goes where its clients say", "remove `to`"]),
        (with("protocols = []", ""), ["no protocol is listed", "leave `protocols` out"]),
        (with("protocols = [\"sock5\"]", ""), ["there is no protocol `sock5`", "did you mean \"socks5\"?"]),
        (with("rules = \"ofice\"", "[rules.office]"), ["there are no rules `ofice`", "did you mean `office`?"]),
        (with("", "[rules.o]\nauth = \"required\""), ["there are no users", "[users]"]),
        (with("", "[rules.o.limits]\nuser = { rate = \"1KiB\" }"), ["not asked who they are", "auth = \"required\""]),
        (with("", "[rules.o.limits]\naddress = { rate = \"1B\" }"), ["`rate` is out of bounds", "from 1KiB"]),
        (rule("names = [\"a.test\"]"), ["has no `action`", "action = \"allow\""]),
        (rule("action = \"allow\", names = [\"*.a.test\"]"), ["has a `*`", "\".a.test\""]),
        (rule("action = \"allow\", names = [\"127.0.0.1\"]"), ["is an address, not a name", "`networks`"]),
        (rule("action = \"allow\", networks = [\"a.test\"]"), ["is not an IP network", "prefix length"]),
        (rule("action = \"allow\", names = []"), ["`names` lists nothing", "leave `names` out"]),
        (rule("action = \"allow\", users = [\"ann\"]"), ["a rule for users", "auth = \"required\""]),
        (rule("action = \"allow\", ports = [0]"), ["`ports` is out of bounds", "1 to 65535"]),
        (rule("action = \"allow\", ports = [\"90-80\"]"), ["the range `90-80` is empty", "\"80-90\""]),
        (rule("action = \"allow\", ports = [\"http\"]"), ["`http` are no ports", "8000-8999"]),
        (rule("action = \"allow\", about = \"replies\", names = [\"a.test\"]"), ["never a host", "`networks`"]),
    ] {
        for part in parts {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
    let shown = bad_after_sound("[[listen]]\nbind = \"127.0.0.1:1\"\nrules = \"o\"\nprotocols = [\"http\"]");
    assert!(shown.contains("`rules` is for forward listeners only"), "{shown}");
    assert!(shown.contains("`protocols` is for forward listeners only"), "{shown}");
}

#[test]
fn wrong_passwords_are_bounded_unless_that_is_turned_off() {
    let limits = |more: &str| {
        let loaded = good(&format!("[users]\nfile = \"/run/users\"\n{more}\n{OPEN}"));
        assert_dump_reads_back(&loaded);
        let failures = loaded.snapshot.failures;
        (failures.per_minute, failures.per_minute_address)
    };
    assert_eq!(limits(""), (Some(10), Some(100)));
    assert_eq!(limits("failures_per_minute = 3\naddress_failures_per_minute = \"none\""), (Some(3), None));
    for wrong in ["0", "1_000_001", "\"no\""] {
        let shown = bad(&format!("[users]\nfile = \"/run/users\"\nfailures_per_minute = {wrong}"));
        assert!(shown.contains("`failures_per_minute`"), "{shown}");
    }
}

#[test]
fn hashes_that_cost_too_many_different_times_are_warned_of() {
    let loaded = read(&format!("[users]\nfile = \"/run/mixed\"\n{OPEN}")).unwrap();
    let shown = loaded.warnings.to_string();
    assert!(shown.contains("the hashes in `/run/mixed` were made with 9 different settings"), "{shown}");
}

#[test]
fn users_are_read_with_the_configuration_and_their_faults_have_lines() {
    let with = |file: &str, user: &str| {
        format!(
            "[users]\nfile = \"/run/{file}\"\n{FORWARD}rules = \"o\"\n[rules.o]\nauth = \"required\"\n\
             list = [{{ action = \"allow\", users = [\"{user}\"] }}]"
        )
    };
    let loaded = good(&with("users", "ann"));
    assert_eq!(loaded.snapshot.users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["ann", "bob"]);
    assert_dump_reads_back(&loaded);
    let shown = bad(&with("users", "anne"));
    assert!(shown.contains("there is no user `anne`") && shown.contains("did you mean `ann`?"), "{shown}");
    let shown = bad(&with("broken", "ann"));
    assert!(shown.contains("`/run/broken` line 1: the hash of `ann` is of no kind that is read here"), "{shown}");
    assert!(shown.contains("`/run/broken` line 2: there is no `:`"), "{shown}");
    let shown = bad(&with("missing", "ann"));
    assert!(shown.contains("cannot read the users in `/run/missing`"), "{shown}");
    let shown = bad("[users]\nfile = \"users\"");
    assert!(shown.contains("`users` is not the path of a file from the root"), "{shown}");
}
