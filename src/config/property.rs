//! Properties that hold for all configurations: no text panics, and a dump reads back as the same snapshot.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipc::forward::*;
use ipc::snapshot::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::address::conflict;
use super::check::{host_text, path_text};
use super::dump;
use super::resolver::Sources;
use super::tests::{USERS, read};
use super::units::DURATION_MAX_MS;
use super::{Control, OsGroup, OsUser, ProcessSettings};

const FULL: &str = include_str!("../../examples/full.toml");

fn duration() -> impl Strategy<Value = u32> {
    prop_oneof![1..=DURATION_MAX_MS, (1..=DURATION_MAX_MS / 60_000).prop_map(|m| m * 60_000)]
}

fn inet(ports: std::ops::RangeInclusive<u16>) -> impl Strategy<Value = SocketAddr> {
    let ip = any::<IpAddr>().prop_map(|ip| ip.to_canonical());
    (ip, ports).prop_map(SocketAddr::from)
}

fn address(ports: std::ops::RangeInclusive<u16>) -> impl Strategy<Value = Address> {
    let path = "/run/[^/.\\x00][^/\\x00]{0,20}";
    prop_oneof![inet(ports).prop_map(Address::Inet), path.prop_map(|path| Address::Unix(PathBuf::from(path)))]
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    let all = (duration(), duration(), duration(), duration(), duration(), duration(), duration(), duration());
    all.prop_map(|(header_ms, idle_ms, body_ms, write_ms, connect_ms, response_ms, server_ms, tunnel_ms)| Timeouts {
        header_ms,
        idle_ms,
        body_ms,
        write_ms,
        connect_ms,
        response_ms,
        server_ms,
        tunnel_ms,
    })
}

fn overrides() -> impl Strategy<Value = TimeoutOverrides> {
    let some = || option::of(duration());
    (some(), some(), some(), some(), some(), some()).prop_map(
        |(body_ms, write_ms, connect_ms, response_ms, server_ms, tunnel_ms)| TimeoutOverrides {
            body_ms,
            write_ms,
            connect_ms,
            response_ms,
            server_ms,
            tunnel_ms,
        },
    )
}

fn server() -> impl Strategy<Value = Server> {
    let name = option::of("[!-~]{1,20}");
    (address(1..=u16::MAX), name, 1..=1000u16, any::<bool>()).prop_map(|(address, name, weight, backup)| Server {
        number: 0,
        name: name.unwrap_or_else(|| address.to_string()),
        address,
        weight,
        backup,
    })
}

fn group() -> impl Strategy<Value = Group> {
    let balance = prop_oneof![
        Just(Balance::RoundRobin),
        Just(Balance::LeastConnections),
        Just(Balance::RandomTwo),
        Just(Balance::SourceHash),
        Just(Balance::ConsistentHash),
    ];
    let keepalive = (0..=100_000u32, duration(), option::of(1..=1_000_000u32)).prop_map(
        |(idle_per_server, idle_timeout_ms, max_per_server)| KeepAlive {
            idle_per_server,
            idle_timeout_ms,
            max_per_server,
        },
    );
    let health = (0..=1000u32, duration(), duration()).prop_map(|(failures, a, b)| Health {
        failures,
        eject_ms: a.min(b),
        eject_max_ms: a.max(b),
    });
    let send_proxy = prop_oneof![Just(None), Just(Some(ProxyVersion::V1)), Just(Some(ProxyVersion::V2))];
    let upstream = (overrides(), 1..=16u8, keepalive, health, any::<bool>(), send_proxy);
    let parts = ("[a-zA-Z0-9._-]{1,12}", balance, vec(server(), 0..5), vec(named(), 0..3), upstream);
    parts.prop_map(|(name, balance, mut servers, mut names, upstream)| {
        let (timeouts, tries, keepalive, health, worker_header, send_proxy) = upstream;
        let mut seen = std::collections::HashSet::new();
        servers.retain(|server| seen.insert(server.address.clone()));
        let mut seen = std::collections::HashSet::new();
        names.retain(|named| seen.insert(named.target.clone()));
        Group {
            name,
            balance,
            servers,
            names,
            timeouts,
            tries,
            keepalive,
            health,
            worker_header,
            send_proxy,
            removed: false,
        }
    })
}

/// Names that the test's system knows, or not.
fn named() -> impl Strategy<Value = NamedServer> {
    let known = |port| Endpoint { address: ([10, 0, 0, 1], port).into(), weight: None, backup: false };
    let service = Endpoint { address: ([10, 0, 0, 7], 77).into(), weight: None, backup: false };
    let target = prop_oneof![
        ("one[.][a-z_-]{0,5}[a-z]", 1..=u16::MAX)
            .prop_map(move |(name, port)| (Target::Host { name, port }, vec![known(port)])),
        ("[a-z_-]{0,5}x[.][a-z]", 1..=u16::MAX).prop_map(|(name, port)| (Target::Host { name, port }, Vec::new())),
        "_[a-z]{1,3}[.]_tcp[.][a-z]{1,5}".prop_map(move |name| (Target::Service { name }, vec![service])),
    ];
    (target, "[!-~]{1,12}", 1..=1000u16, any::<bool>()).prop_map(|((target, known), name, weight, backup)| {
        let weight = if matches!(target, Target::Service { .. }) { 1 } else { weight };
        NamedServer { name, target, weight, backup, known }
    })
}

fn dns() -> impl Strategy<Value = Dns> {
    let servers = vec((any::<IpAddr>(), 1..=u16::MAX), 0..=Dns::SERVERS_MAX);
    let search = vec("[a-z]{1,5}([.][a-z]{1,5}){0,2}", 0..=Dns::SEARCH_MAX);
    let numbers = (0..=15u8, 1..=30_000u32, 1..=5u8, any::<bool>());
    (servers, search, numbers).prop_map(|(servers, search, (ndots, timeout_ms, attempts, rotate))| {
        let servers = servers.into_iter().filter(|(ip, _)| !ip.is_unspecified()).map(SocketAddr::from).collect();
        Dns { servers, search, ndots, timeout_ms, attempts, rotate, hosts: Vec::new() }
    })
}

fn route(groups: usize) -> impl Strategy<Value = Route> {
    let host = prop_oneof![
        Just(HostMatch::Any),
        "[a-z0-9_-]{1,9}(\\.[a-z]{1,5}){0,2}".prop_map(HostMatch::Exact),
        "(\\.[a-z0-9]{1,5}){1,3}".prop_map(HostMatch::Wildcard),
    ];
    // No dot, written out or as `%2e`: a segment of dots alone is refused.
    let path = prop_oneof![
        "/[!-\"$&-)+-\\-/->@-~]{0,7}(%([013-9a-fA-F][0-9a-fA-F]|2[0-9a-dA-DfF]))?".prop_map(PathMatch::Prefix),
        "/[!-\"$&-\\-/->@-~]{0,7}(%([013-9a-fA-F][0-9a-fA-F]|2[0-9a-dA-DfF]))?".prop_map(PathMatch::Exact),
    ];
    (host, path, 0..groups).prop_map(|(host, path, to)| Route { host, path, to: u16::try_from(to).unwrap() })
}

fn rule() -> impl Strategy<Value = Rule> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let name = prop_oneof![
        "[a-z0-9_-]{1,9}(\\.[a-z]{1,5}){1,2}".prop_map(NameMatch::Exact),
        "(\\.[a-z]{1,5}){1,3}".prop_map(NameMatch::Suffix),
    ];
    let port = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) });
    let users = prop_oneof![Just(vec![]), Just(vec!["ann".to_owned()]), Just(vec!["bob".to_owned(), "ann".to_owned()])];
    let parts =
        (action, any::<bool>(), vec(network(), 0..3), users, vec(name, 0..3), vec(network(), 0..3), vec(port, 0..3));
    parts.prop_map(|(action, replies, clients, users, names, networks, ports)| {
        let subject = if replies { Subject::Replies } else { Subject::Targets };
        let names = if replies { Vec::new() } else { names };
        Rule { action, subject, clients, users, names, networks, ports }
    })
}

fn use_limits() -> impl Strategy<Value = UseLimits> {
    let count = || option::of(1..=1_000_000u32);
    (count(), count(), option::of(1024..=1u64 << 40)).prop_map(|(connections, connections_per_second, rate_bytes)| {
        UseLimits { connections, connections_per_second, rate_bytes }
    })
}

/// One set of rules for all listeners that have some: two of the same name must be the same.
fn rule_set() -> impl Strategy<Value = RuleSet> {
    let parts =
        ("[a-zA-Z0-9._-]{1,12}", any::<bool>(), option::of(duration()), vec(rule(), 0..4), use_limits(), use_limits());
    parts.prop_map(|(name, auth, lifetime_ms, mut rules, per_user, per_address)| {
        if !auth {
            rules.iter_mut().for_each(|rule| rule.users.clear());
        }
        let per_user = if auth { per_user } else { UseLimits::default() };
        RuleSet { name, auth, lifetime_ms, rules, per_user, per_address }
    })
}

fn protocols() -> impl Strategy<Value = Protocols> {
    let some = any::<[bool; 4]>().prop_filter("at least one is on", |on| on.contains(&true));
    some.prop_map(|[http, socks5, socks4a, dynamic]| Protocols { http, socks5, socks4a, dynamic })
}

fn listener(groups: usize) -> impl Strategy<Value = Listener> {
    let id = |to: usize| u16::try_from(to).unwrap();
    let forward = (protocols(), option::of(rule_set()));
    let to = prop_oneof![
        option::of(0..groups).prop_map(move |to| (Mode::Http, to.map(id), None)),
        (0..groups).prop_map(move |to| (Mode::Tcp, Some(id(to)), None)),
        forward.prop_map(|(protocols, rules)| (Mode::Forward, None, Some(Box::new(Forward { protocols, rules })))),
    ];
    let flags = (any::<bool>(), any::<bool>());
    let parts = (address(0..=u16::MAX), to, 1..=65535u32, timeouts(), vec(network(), 0..3), flags);
    parts.prop_map(|(bind, (mode, to, forward), backlog, timeouts, from, (from_unix, abort))| {
        let abort_on_close = abort && mode != Mode::Tcp;
        let proxy_protocol = match &bind {
            Address::Inet(_) => ProxyProtocol { from, from_unix: false },
            Address::Unix(_) => ProxyProtocol { from: Vec::new(), from_unix },
        };
        Listener { bind, mode, to, backlog, timeouts, proxy_protocol, abort_on_close, removed: false, forward }
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let parts = (
        1024..=262_144u32,
        8..=1000u16,
        option::of(any::<u64>()),
        option::of(1..=1_000_000u32),
        option::of(1..=u32::MAX),
        any::<u32>(),
    );
    parts.prop_map(|(head_bytes, head_fields, body_bytes, connections, connections_per_address, min_rate_bytes)| {
        Limits { head_bytes, head_fields, body_bytes, connections, connections_per_address, min_rate_bytes }
    })
}

fn access_log() -> impl Strategy<Value = AccessLog> {
    let to = prop_oneof![
        Just(LogTarget::Off),
        Just(LogTarget::Stdout),
        "/var/log/[^/.\\x00][^/\\x00]{0,20}".prop_map(|path| LogTarget::File(PathBuf::from(path))),
    ];
    let format = prop_oneof![Just(LogFormat::Combined), Just(LogFormat::Json)];
    (to, format).prop_map(|(to, format)| AccessLog { to, format })
}

fn network() -> impl Strategy<Value = Network> {
    (any::<IpAddr>(), 0..=128u8).prop_map(|(address, prefix)| {
        let address = address.to_canonical();
        Network { address, prefix: if address.is_ipv4() { prefix.min(32) } else { prefix } }
    })
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let groups = vec(group(), 1..4).prop_map(|mut groups| {
        let mut seen = std::collections::HashSet::new();
        groups.retain(|group| seen.insert(group.name.clone()));
        groups.iter_mut().flat_map(|group| &mut group.servers).zip(0..).for_each(|(server, n)| server.number = n);
        groups
    });
    groups.prop_flat_map(|groups| {
        let count = groups.len();
        let dispatch = prop_oneof![Just(Dispatch::LeastConnections), Just(Dispatch::RoundRobin)];
        let listeners = vec(listener(count), 1..4);
        let routes = vec(route(count), 1..5);
        let removal = prop_oneof![Just(OnRemoval::Keep), Just(OnRemoval::Cut)];
        let ends = (duration(), removal, duration(), duration());
        let rest = (1..=1024u16, dispatch, limits(), access_log(), vec(network(), 0..3), ends, dns());
        (Just(groups), listeners, routes, rest).prop_map(|(groups, listeners, mut routes, rest)| {
            let (workers, dispatch, limits, access_log, trusted_proxies, ends, dns) = rest;
            let (shutdown_timeout_ms, on_removal, worker_timeout_ms, orphan_timeout_ms) = ends;
            let mut kept: Vec<Listener> = Vec::new();
            for listener in listeners {
                if !kept.iter().any(|other| conflict(&other.bind, &listener.bind)) {
                    kept.push(listener);
                }
            }
            let mut seen = std::collections::HashSet::new();
            routes.retain(|route| seen.insert((host_text(&route.host), path_text(&route.path))));
            let mut listeners = kept;
            let mut sets = std::collections::HashMap::new();
            for set in listeners.iter_mut().filter_map(|listener| listener.forward.as_mut()?.rules.as_mut()) {
                *set = sets.entry(set.name.clone()).or_insert_with(|| set.clone()).clone();
            }
            Snapshot {
                generation: 1,
                workers,
                dispatch,
                listeners,
                listening: Vec::new(),
                routes,
                groups,
                limits,
                access_log,
                users: super::users::parse(USERS).0,
                failures: FailureLimits {
                    per_minute: limits.connections,
                    per_minute_address: limits.body_bytes.is_none().then_some(1),
                },
                trusted_proxies,
                shutdown_timeout_ms,
                on_removal,
                worker_timeout_ms,
                orphan_timeout_ms,
                dns,
            }
        })
    })
}

fn process(snapshot: &Snapshot, bits: u32, accounts: bool) -> ProcessSettings {
    let mut unix_permissions = BTreeMap::new();
    for listener in &snapshot.listeners {
        if let Address::Unix(path) = &listener.bind {
            unix_permissions.insert(path.clone(), bits);
        }
    }
    let name = || "www-data".to_owned();
    let dns = &snapshot.dns;
    ProcessSettings {
        source: None,
        user: accounts.then(|| OsUser { name: name(), uid: 33, gid: 33 }),
        group: accounts.then(|| OsGroup { name: name(), gid: 33 }),
        control: if bits.is_multiple_of(2) { Control::Off } else { Control::At("/run/pointsman.sock".into()) },
        upgrade_timeout_ms: 1 + bits,
        unix_permissions,
        users_file: Some("/run/users".into()),
        resolver: Sources {
            resolv_conf: None,
            hosts: None,
            servers: Some(dns.servers.clone()),
            search: Some(dns.search.clone()),
            ndots: Some(dns.ndots),
            timeout_ms: Some(dns.timeout_ms),
            attempts: Some(dns.attempts),
            rotate: Some(dns.rotate),
        },
    }
}

/// Whatever `text` is, it is read or refused with a report; what is read can be dumped and read again.
fn check_any(text: &str) -> Result<(), TestCaseError> {
    match read(text) {
        Ok(loaded) => {
            prop_assert!(!loaded.warnings.has_errors());
            let dumped = dump(&loaded.snapshot, &loaded.process);
            let again = read(&dumped).map_err(|report| TestCaseError::fail(format!("{report}\n{dumped}")))?;
            prop_assert_eq!(again.snapshot, loaded.snapshot);
        }
        Err(report) => {
            prop_assert!(report.has_errors());
            let shown = report.render(false);
            prop_assert!(shown.contains("error: "));
            prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
            prop_assert!(!report.render(true).is_empty());
        }
    }
    Ok(())
}

/// Pieces that configurations are made of, right and wrong.
fn piece() -> impl Strategy<Value = String> {
    let line = proptest::sample::select(FULL.lines().collect::<Vec<_>>()).prop_map(|line| format!("{line}\n"));
    let odd = proptest::sample::select(vec![
        "[[listen]]\n",
        "[listen]\n",
        "[",
        "]",
        "{",
        "}",
        "=",
        "\"",
        "\"\"\"",
        "'",
        "\n",
        "\r",
        "\t",
        ",",
        "#",
        ".",
        "\0",
        "\u{feff}",
        "\u{202e}",
        "é",
        "😀",
        "\\u0000",
        "\\U00110000",
        "0x",
        "1e999",
        "-0",
        "9999999999999999999999",
        "nan",
        "1979-05-27",
        "[backends.web]\n",
        "backends.web.servers = [[]]\n",
        "to = \"\"\n",
        "unix:",
        "*.",
        "=/",
        "%",
    ]);
    prop_oneof![4 => line, 2 => odd.prop_map(str::to_owned), 1 => "\\PC{0,8}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_dump_reads_back_as_the_same_snapshot(
        (snapshot, bits, accounts) in (snapshot(), 0..=0o777u32, any::<bool>())
    ) {
        let process = process(&snapshot, bits, accounts);
        let text = dump(&snapshot, &process);
        let loaded = read(&text).map_err(|report| TestCaseError::fail(format!("{report}\n{text}")))?;
        prop_assert_eq!(&loaded.snapshot, &snapshot);
        prop_assert_eq!(&loaded.process, &process);
        prop_assert_eq!(dump(&loaded.snapshot, &loaded.process), text);
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        check_any(&text)?;
    }

    #[test]
    fn no_text_of_likely_pieces_panics(pieces in vec(piece(), 0..40)) {
        check_any(&pieces.concat())?;
    }

    #[test]
    fn no_damaged_configuration_panics(
        cuts in vec((any::<prop::sample::Index>(), 0..12usize, piece()), 1..5)
    ) {
        let mut text = FULL.to_owned();
        for (at, length, insert) in cuts {
            let from = text.floor_char_boundary(at.index(text.len() + 1));
            let to = text.ceil_char_boundary((from + length).min(text.len()));
            text.replace_range(from..to, &insert);
        }
        check_any(&text)?;
    }

    #[test]
    fn one_changed_value_never_panics(line in 0..FULL.lines().count(), value in "\\PC{0,12}|\"[^\"]{0,12}\"|[0-9.]{1,24}") {
        let changed: Vec<String> = FULL.lines().enumerate().map(|(number, text)| match text.split_once(" = ") {
            Some((key, _)) if number == line => format!("{key} = {value}"),
            Some(_) | None => text.to_owned(),
        }).collect();
        check_any(&changed.join("\n"))?;
    }
}
