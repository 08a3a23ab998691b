use std::net::IpAddr;

use ipc::snapshot::{Balance, Dns, Health, KeepAlive, NamedServer, TimeoutOverrides};

use super::*;
use crate::dns::lookup::Lacks;

fn endpoint(text: &str) -> Endpoint {
    Endpoint { address: text.parse().unwrap(), weight: None, backup: false }
}

pub(crate) fn named(name: &str, known: &[&str]) -> NamedServer {
    NamedServer {
        name: name.to_owned(),
        target: Target::Host { name: name.to_owned(), port: 80 },
        weight: 3,
        backup: false,
        known: known.iter().map(|text| endpoint(text)).collect(),
    }
}

pub(crate) fn group(name: &str, literal: &[&str], names: Vec<NamedServer>) -> Group {
    let server = |text: &&str| Server {
        number: text.bytes().map(u64::from).sum(),
        name: (*text).to_owned(),
        address: Address::Inet(text.parse().unwrap()),
        weight: 1,
        backup: false,
    };
    Group {
        name: name.to_owned(),
        balance: Balance::RoundRobin,
        servers: literal.iter().map(server).collect(),
        names,
        timeouts: TimeoutOverrides::default(),
        tries: 1,
        keepalive: KeepAlive { idle_per_server: 1, idle_timeout_ms: 1, max_per_server: None },
        health: Health { failures: 0, eject_ms: 1, eject_max_ms: 1 },
        worker_header: false,
        removed: false,
        send_proxy: None,
    }
}

fn names(groups: &[Group], former: Option<&Names>) -> Names {
    let mut names = Names::of(groups, former, false);
    names.generation = former.map_or(1, |former| former.generation + 1);
    names
}

fn addresses(servers: &[Server]) -> Vec<String> {
    servers.iter().map(|server| server.address.to_string()).collect()
}

/// The names of these groups, as the master knows them.
pub(crate) fn known_names(groups: &[Group]) -> Names {
    names(groups, None)
}

/// A resolver that knows these hosts and asks nobody.
fn resolver(hosts: &[(&str, &[&str])]) -> Resolver<Waiter> {
    let ips = |ips: &&[&str]| ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect();
    let mut hosts: Vec<_> = hosts.iter().map(|(name, all)| ((*name).to_owned(), ips(all))).collect();
    hosts.sort();
    Resolver::new(Dns { hosts, ..Dns::default() })
}

#[test]
fn an_address_is_one_server_whoever_names_it() {
    let group =
        group("g", &["10.0.0.1:80"], vec![named("a", &["10.0.0.1:80", "10.0.0.2:80"]), named("b", &["10.0.0.2:80"])]);
    let servers = names(std::slice::from_ref(&group), None).servers(&group);
    assert_eq!(addresses(&servers), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!((servers[0].weight, servers[1].name.as_str(), servers[1].weight), (1, "a", 3));
}

#[test]
fn numbers_go_by_group_and_address_and_are_never_the_masters() {
    let one = group("one", &[], vec![named("a", &["10.0.0.1:80", "10.0.0.2:80"])]);
    let again = group("one", &[], vec![named("x", &["10.0.0.2:80"])]);
    let other = group("two", &[], vec![named("a", &["10.0.0.2:80"])]);
    let number = |group: &Group| names(std::slice::from_ref(group), None).servers(group).pop().unwrap().number;
    assert_eq!(number(&one), number(&again));
    assert_ne!(number(&one), number(&other));
    assert!(number(&one) >= NUMBER_OF_NAME);
}

#[test]
fn what_is_found_replaces_what_was_known_and_says_whose_groups_change() {
    let groups = [
        group("g", &[], vec![named("a", &["10.0.0.1:80"]), named("b", &["10.0.0.9:80"])]),
        group("h", &[], vec![named("a", &["10.0.0.1:80"])]),
        group("i", &[], vec![named("b", &["10.0.0.9:80"])]),
    ];
    let mut names = names(&groups, None);
    let mut resolver = resolver(&[("a", &["10.0.0.2", "10.0.0.3"]), ("b", &["10.0.0.9"])]);
    assert_eq!(names.next_due(), Some(0));
    names.advance(&mut resolver, 5);
    // `b` stands for what it did.
    assert_eq!((names.take_changed(), names.take_changed(), names.take_changed()), (Some(0), Some(1), None));
    assert_eq!(addresses(&names.servers(&groups[1])), ["10.0.0.2:80", "10.0.0.3:80"]);
    // What hosts say holds for good.
    assert_eq!(names.next_due(), None);
}

#[test]
fn the_next_configuration_begins_with_what_the_master_found() {
    let groups = [group("g", &[], vec![named("a", &["10.0.0.1:80"])])];
    let mut first = names(&groups, None);
    first.advance(&mut resolver(&[("a", &["10.0.0.2"])]), 0);
    let second = names(&groups, Some(&first));
    assert_eq!(addresses(&second.servers(&groups[0])), ["10.0.0.1:80"]);
    assert_eq!(second.next_due(), Some(0));
    // Unless the master found nothing.
    let groups = [group("g", &[], vec![named("a", &[])])];
    assert_eq!(addresses(&names(&groups, Some(&first)).servers(&groups[0])), ["10.0.0.2:80"]);
}

#[test]
fn failures_keep_what_is_known_and_denials_do_not() {
    let groups = [group("g", &[], vec![named("a", &["10.0.0.1:80"])])];
    let mut names = names(&groups, None);
    let question = |names: &Names| Question { generation: names.generation, entry: 0, part: 0 };
    let mut asked = Resolver::new(Dns { servers: vec!["127.0.0.1:53".parse().unwrap()], ..Dns::default() });
    let mut now_ms = 0;
    for pause_ms in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
        names.advance(&mut asked, now_ms);
        assert_eq!(names.next_due(), None);
        names.answer(question(&names), Err(DnsError::ServerFailure(2)), &mut asked, now_ms);
        assert_eq!((names.take_changed(), names.next_due()), (None, Some(now_ms + pause_ms)));
        now_ms += pause_ms;
    }
    names.advance(&mut asked, now_ms);
    // An answer to a question of the configuration before is nobody's.
    let stale = Question { generation: 0, ..question(&names) };
    names.answer(stale, Err(DnsError::NoSuchName), &mut asked, now_ms);
    assert_eq!(names.take_changed(), None);
    names.answer(question(&names), Err(DnsError::NoSuchName), &mut asked, now_ms);
    assert_eq!(names.take_changed(), Some(0));
    assert!(names.servers(&groups[0]).is_empty());
}

#[test]
fn a_family_nobody_could_tell_of_stays() {
    let found = |lacks| Discovered { endpoints: vec![endpoint("10.0.0.2:80")], expires_ms: 0, lacks };
    let former = [endpoint("10.0.0.1:80"), endpoint("[::1]:80")];
    let shown =
        |lacks| with_former(found(lacks), &former).iter().map(|one| one.address.to_string()).collect::<Vec<_>>();
    assert_eq!(shown(Lacks::default()), ["10.0.0.2:80"]);
    assert_eq!(shown(Lacks { v4: false, v6: true }), ["10.0.0.2:80", "[::1]:80"]);
    assert_eq!(shown(Lacks { v4: true, v6: true }), ["10.0.0.2:80", "10.0.0.1:80", "[::1]:80"]);
}
