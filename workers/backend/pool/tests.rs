use std::collections::HashMap;

use ipc::snapshot::*;
use proptest::prelude::*;

use super::*;
use crate::backend::names::tests::{group as named_group, known_names, named};
use crate::slab::Slab;

const TIMEOUTS: TimeoutOverrides = TimeoutOverrides {
    body_ms: None,
    write_ms: None,
    connect_ms: None,
    response_ms: None,
    server_ms: None,
    tunnel_ms: None,
};

/// A configuration of these groups: name and servers, each with its number and weight.
fn site(balance: Balance, idle_per_server: u32, groups: &[(u8, Vec<(u64, u16)>)]) -> Rc<Site> {
    let server = |&(number, weight): &(u64, u16)| snapshot::Server {
        number,
        name: format!("server-{number}"),
        address: Address::Unix(format!("/{number}").into()),
        weight,
        backup: number % 5 == 4,
    };
    let group = |(name, servers): &(u8, Vec<(u64, u16)>)| Group {
        name: format!("group-{name}"),
        balance,
        servers: servers.iter().map(server).collect(),
        names: Vec::new(),
        timeouts: TIMEOUTS,
        tries: 3,
        keepalive: KeepAlive { idle_per_server, idle_timeout_ms: 1, max_per_server: None },
        health: Health { failures: 1, eject_ms: 1000, eject_max_ms: 1000 },
        worker_header: false,
        send_proxy: None,
        removed: false,
    };
    let limits = Limits {
        head_bytes: 16384,
        head_fields: 100,
        body_bytes: None,
        connections: None,
        connections_per_address: None,
        min_rate_bytes: 0,
    };
    let snapshot = Snapshot {
        generation: 1,
        workers: 1,
        dispatch: Dispatch::RoundRobin,
        listeners: Vec::new(),
        listening: Vec::new(),
        routes: Vec::new(),
        groups: groups.iter().map(group).collect(),
        limits,
        access_log: AccessLog { to: LogTarget::Off, format: LogFormat::Json },
        users: Vec::new(),
        failures: ipc::forward::FailureLimits::default(),
        trusted_proxies: Vec::new(),
        shutdown_timeout_ms: 1,
        worker_timeout_ms: 1,
        orphan_timeout_ms: 60_000,
        dns: Dns::default(),
        on_removal: OnRemoval::Keep,
    };
    Rc::new(Site::new(snapshot, 32768))
}

fn fresh(site: &Rc<Site>, seed: u64) -> Pools {
    Pools::new(site, &Names::new(&site.snapshot, None, false), seed)
}

fn balance() -> impl Strategy<Value = Balance> {
    prop_oneof![
        Just(Balance::RoundRobin),
        Just(Balance::LeastConnections),
        Just(Balance::RandomTwo),
        Just(Balance::SourceHash),
        Just(Balance::ConsistentHash)
    ]
}

/// Some of five groups in any order, each with some of seven servers, in any order. A server's number says which
/// group it is in, as it does for the master.
fn groups() -> impl Strategy<Value = Vec<(u8, Vec<(u64, u16)>)>> {
    let weight = prop_oneof![Just(1u16), 1..4u16];
    let servers = prop::collection::hash_map(0..7u64, weight, 0..6);
    prop::collection::hash_map(0..5u8, servers, 0..5).prop_map(|groups| {
        let servers = |name: u8, servers: HashMap<u64, u16>| {
            servers.into_iter().map(|(server, weight)| (u64::from(name) * 10 + server, weight)).collect()
        };
        groups.into_iter().map(|(name, of)| (name, servers(name, of))).collect()
    })
}

/// What a server is known by: the name of its group and its own.
type Identity = (String, String);

/// What was counted at a server: requests in progress, idle connections, open ones, and whether it is ejected.
type Count = (u32, Vec<Key<Upstream>>, u32, bool);

fn identity(pools: &Pools, place: Place) -> Identity {
    (pools.settings(place.group()).name.clone(), pools.server(place).name.clone())
}

fn places(pools: &Pools) -> Vec<Place> {
    pools.numbers.iter().map(|(_, place)| *place).collect()
}

proptest! {
    #[test]
    fn a_server_keeps_its_counts_and_health_wherever_it_moves(
        first in groups(), next in prop::collection::vec((groups(), balance(), 0..4u32), 1..4), policy in balance(),
        uses in prop::collection::vec((any::<prop::sample::Index>(), 0..3u32, 0..4usize, any::<bool>()), 0..12),
    ) {
        let mut slab: Slab<u8> = Slab::new();
        let mut pools = fresh(&site(policy, 8, &first), 7);
        let all = places(&pools);
        // What is held: a place, a name, and what was counted there.
        let mut held: Vec<(Option<Place>, Identity)> = Vec::new();
        let mut counts: HashMap<Identity, Count> = HashMap::new();
        for (which, active, idle, fails) in uses.iter().filter(|_| !all.is_empty()) {
            let place = *which.get(&all);
            let who = identity(&pools, place);
            held.push((Some(place), who.clone()));
            let count = counts.entry(who).or_default();
            for _ in 0..*active {
                pools.began(place);
                count.0 += 1;
            }
            for _ in 0..*idle {
                let key = Key::from_bits(slab.insert(0).unwrap().to_bits());
                pools.opened(place);
                count.2 += 1;
                if pools.put_idle(place, key) {
                    count.1.push(key);
                }
            }
            if *fails {
                pools.failed(place, &"it refused", 1000);
                count.3 = true;
            }
        }
        for (groups, policy, most) in next {
            let present = site(policy, most, &groups);
            let mut new = fresh(&present, 7);
            let before = places(&pools);
            let names: Vec<_> = before.iter().map(|&place| identity(&pools, place)).collect();
            let (remap, surplus) = new.inherit(std::mem::replace(&mut pools, fresh(&present, 7)));
            pools = new;
            let mut expected_surplus = Vec::new();
            for (&old, name) in before.iter().zip(&names) {
                let now = places(&pools).into_iter().find(|&place| identity(&pools, place) == *name);
                prop_assert_eq!(remap.place(old), now);
                let group = |pools: &Pools, place: Place| pools.settings(place.group()).name.clone();
                if let Some(moved) = remap.group(old.group()) {
                    prop_assert_eq!(&pools.settings(moved).name, &name.0);
                }
                let mut tried = [old.server(), GONE];
                remap.tried(Some(old.group()), &mut tried);
                prop_assert_eq!(tried, [now.map_or(GONE, Place::server), GONE]);
                let (place, gone) = remap.server(Some(old), None);
                prop_assert_eq!(place, now);
                prop_assert_eq!(gone.as_deref(), now.is_none().then_some(name.1.as_str()));
                match now {
                    Some(now) => prop_assert_eq!(group(&pools, now), name.0.clone()),
                    None => {
                        let gone = counts.remove(name).unwrap_or_default();
                        expected_surplus.extend(gone.1);
                    }
                }
            }
            for (place, _) in &mut held {
                *place = place.and_then(|place| remap.place(place));
            }
            for (place, name) in &held {
                match place {
                    Some(place) => prop_assert_eq!(&identity(&pools, *place), name),
                    None => prop_assert!(!counts.contains_key(name)),
                }
            }
            for (name, (active, idle, open, ejected)) in &mut counts {
                let place = places(&pools).into_iter().find(|&place| identity(&pools, place) == *name).unwrap();
                let kept = idle.len().min(most as usize);
                expected_surplus.extend(idle.drain(..idle.len() - kept));
                prop_assert_eq!(&pools.connections(place).idle, idle);
                prop_assert_eq!(pools.connections(place).open, *open);
                prop_assert_eq!(pools.balance(place).active(place.server()), *active);
                prop_assert_eq!(pools.balance(place).is_ejected(place.server()), *ejected);
            }
            let by_bits = |keys: Vec<Key<Upstream>>| -> Vec<u64> {
                let mut bits: Vec<u64> = keys.into_iter().map(Key::to_bits).collect();
                bits.sort_unstable();
                bits
            };
            prop_assert_eq!(by_bits(surplus), by_bits(expected_surplus));
            // Whatever was inherited, choosing still works.
            for (id, group) in (0..).zip(&present.snapshot.groups) {
                let pool = pools.id(&present, id).unwrap();
                let place = pools.pick(pool, 1, 1001, &[]);
                prop_assert_eq!(place.is_some(), !group.servers.is_empty());
            }
        }
    }

    #[test]
    fn an_unchanged_group_goes_on_with_its_turns(
        policy in balance(), servers in prop::collection::hash_map(0..7u64, 1..4u16, 1..6), turns in 0..20usize,
    ) {
        let groups = vec![(0u8, servers.into_iter().collect::<Vec<_>>())];
        let (one, other) = (site(policy, 8, &groups), site(policy, 8, &groups));
        let (mut undisturbed, mut reloaded) = (fresh(&one, 3), fresh(&one, 3));
        let pick = |pools: &mut Pools, site: &Rc<Site>, n: usize| -> Vec<ServerId> {
            let pool = pools.id(site, 0).unwrap();
            (0..n).map(|i| pools.pick(pool, i as u64, 0, &[]).unwrap().server()).collect()
        };
        prop_assert_eq!(pick(&mut undisturbed, &one, turns), pick(&mut reloaded, &one, turns));
        // Another seed, so that it is not by chance the same.
        let mut after = fresh(&other, 99);
        let _ = after.inherit(reloaded);
        prop_assert_eq!(pick(&mut undisturbed, &one, 20), pick(&mut after, &other, 20));
    }
}

#[test]
fn a_group_of_another_configuration_has_no_pools_here() {
    let groups = vec![(0, vec![(1, 1)])];
    let (one, other) = (site(Balance::RoundRobin, 1, &groups), site(Balance::RoundRobin, 1, &groups));
    let pools = fresh(&one, 1);
    assert!(pools.id(&one, 0).is_some());
    assert!(pools.id(&one, 1).is_none());
    assert!(pools.id(&other, 0).is_none());
}

/// A change of a name's addresses is to the servers that stay as if nothing had happened.
#[test]
fn renewed_names_keep_health_counts_and_connections_of_what_stays() {
    let addresses = |known: &[&str]| vec![named_group("g", &["10.0.0.9:80"], vec![named("a", known)]), other()];
    fn other() -> Group {
        named_group("other", &["10.0.0.8:80"], Vec::new())
    }
    let before = addresses(&["10.0.0.1:80", "10.0.0.2:80"]);
    let mut snapshot = site(Balance::RoundRobin, 8, &[]).snapshot.clone();
    snapshot.groups.clone_from(&before);
    let site = Rc::new(Site::new(snapshot, 32768));
    let mut pools = Pools::new(&site, &known_names(&before), 1);
    let find = |pools: &Pools, group: usize, address: &str| {
        let id = pools.id(&site, GroupId::try_from(group).unwrap()).unwrap();
        let at = pools.settings(id).servers.iter().position(|server| server.address.to_string() == address)?;
        pools.find(pools.settings(id).servers[at].number)
    };
    let (gone, stays) = (find(&pools, 0, "10.0.0.1:80").unwrap(), find(&pools, 0, "10.0.0.2:80").unwrap());
    let elsewhere = find(&pools, 1, "10.0.0.8:80");
    let mut keys = Slab::new();
    let mut idle = |pools: &mut Pools, place| {
        let key = keys.insert(()).unwrap();
        let key = Key::from_bits(key.to_bits());
        pools.opened(place);
        assert!(pools.put_idle(place, key));
        key
    };
    let (closed, kept) = (idle(&mut pools, gone), idle(&mut pools, stays));
    pools.began(stays);
    assert!(pools.renew(0, &known_names(&before), 1).is_none(), "nothing has changed");
    let (remap, surplus) = pools.renew(0, &known_names(&addresses(&["10.0.0.2:80", "10.0.0.3:80"])), 1).unwrap();
    assert_eq!(surplus, [closed]);
    assert_eq!(remap.place(gone), None);
    assert_eq!(remap.server(Some(gone), None).1.as_deref(), Some("a"));
    let moved = remap.place(stays).unwrap();
    assert_ne!(moved, stays, "it is another's place now");
    assert_eq!(Some(moved), find(&pools, 0, "10.0.0.2:80"));
    assert_eq!((pools.balance(moved).active(moved.server()), pools.connections(moved).open), (1, 1));
    assert_eq!(pools.take_idle(moved), Some(kept));
    // Nobody else is touched.
    assert_eq!(
        (elsewhere.and_then(|place| remap.place(place)), find(&pools, 1, "10.0.0.8:80")),
        (elsewhere, elsewhere)
    );
    let mut tried = [gone.server(), stays.server()];
    remap.tried(Some(gone.group()), &mut tried);
    assert_eq!(tried, [GONE, moved.server()]);
}

#[test]
fn a_server_that_flaps_is_in_the_log_once_in_ten_seconds() {
    let mut said = Said::default();
    let mut lines = Vec::new();
    for now_ms in (0..25_000).step_by(50) {
        if let Some(left_out) = said.ejected(now_ms) {
            lines.push((now_ms, left_out));
        }
        assert_eq!(said.back(), lines.last().is_some_and(|(at, _)| *at == now_ms), "{now_ms}");
    }
    assert_eq!(lines, [(0, 0), (10_000, 199), (20_000, 199)]);
}

#[test]
fn first_failures_are_in_the_log_once_a_second() {
    let mut said = Said::default();
    let told: Vec<_> =
        (0..2500).step_by(100).filter_map(|now_ms| said.failed(now_ms).map(|left_out| (now_ms, left_out))).collect();
    assert_eq!(told, [(0, 0), (1000, 9), (2000, 9)]);
    assert_eq!(said.ejected(2500), Some(0), "ejections are told by their own measure");
}

#[test]
fn the_log_says_what_a_first_failure_means() {
    let with = |failures, servers: &[(u64, u16)]| {
        let mut snapshot = site(Balance::RoundRobin, 1, &[(0, servers.to_vec())]).snapshot.clone();
        snapshot.groups[0].health.failures = failures;
        let pools = fresh(&Rc::new(Site::new(snapshot, 32768)), 1);
        pools.first_failure(pools.find(1).unwrap(), u32::from(failures == 3) * 4, &"no")
    };
    assert_eq!(
        with(3, &[(1, 1), (2, 1)]),
        "backends.group-0: server-1 failed (4 times more, with successes between, since this was last said): no; that \
         is 1 of 3 failures in a row after which it is passed over"
    );
    assert_eq!(
        with(2, &[(1, 1)]),
        "backends.group-0: server-1 failed: no; that is 1 of 2 failures in a row; requests still go there, since the \
         group has no other server"
    );
    assert_eq!(
        with(0, &[(1, 1)]),
        "backends.group-0: server-1 failed: no; requests still go there, since health.failures is 0"
    );
}

#[test]
fn only_the_first_failure_after_a_success_is_news() {
    let mut snapshot = site(Balance::RoundRobin, 1, &[(0, vec![(1, 1), (2, 1)])]).snapshot.clone();
    for failures in [0, 3] {
        snapshot.groups[0].health.failures = failures;
        let mut pools = fresh(&Rc::new(Site::new(snapshot.clone(), 32768)), 1);
        let place = pools.find(1).unwrap();
        let mut news = |fails: bool| {
            if fails {
                pools.failed(place, &"no", 0)
            } else {
                pools.succeeded(place)
            }
            fails && pools.balance(place).has_just_failed(place.server())
        };
        let seen = [true, true, false, true, true, true, true].map(&mut news);
        assert_eq!(seen, [true, false, false, true, false, false, false]);
    }
}

#[test]
fn the_log_does_not_speak_of_other_servers_where_there_are_none() {
    let ejected = Ejected { for_ms: 500, failures: 3 };
    let two = fresh(&site(Balance::RoundRobin, 1, &[(0, vec![(1, 1), (2, 1)])]), 1);
    assert_eq!(
        two.ejection(two.find(1).unwrap(), ejected, 7, &"no"),
        "backends.group-0: server-1 failed 3 times in a row (7 times more since this was last said), the last time \
         because: no; it is passed over for 500 ms while others are there"
    );
    let one = fresh(&site(Balance::RoundRobin, 1, &[(0, vec![(1, 1)])]), 1);
    assert_eq!(
        one.ejection(one.find(1).unwrap(), ejected, 0, &"no"),
        "backends.group-0: server-1 failed 3 times in a row, the last time because: no; requests still go there, since \
         the group has no other server"
    );
}
