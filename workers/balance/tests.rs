use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use ipc::snapshot::{self, Address, Balance, Group, KeepAlive, TimeoutOverrides};
use proptest::prelude::*;

use super::*;

const POLICIES: [Balance; 5] =
    [Balance::RoundRobin, Balance::LeastConnections, Balance::RandomTwo, Balance::SourceHash, Balance::ConsistentHash];

/// A server for each port given, with its weight; those from port 60,000 are backups.
fn group(balance: Balance, servers: &[(u16, u16)]) -> Group {
    let server = |&(port, weight): &(u16, u16)| snapshot::Server {
        number: u64::from(port),
        name: format!("127.0.0.1:{port}"),
        address: Address::Inet(([127, 0, 0, 1], port).into()),
        weight,
        backup: port >= 60_000,
    };
    Group {
        name: "test".into(),
        balance,
        servers: servers.iter().map(server).collect(),
        names: Vec::new(),
        timeouts: TimeoutOverrides::default(),
        tries: 3,
        keepalive: KeepAlive { idle_per_server: 8, idle_timeout_ms: 1000, max_per_server: None },
        health: snapshot::Health { failures: 2, eject_ms: 1000, eject_max_ms: 8000 },
        worker_header: false,
        removed: false,
        send_proxy: None,
    }
}

fn state(balance: Balance, weights: &[u16], seed: u64) -> GroupState {
    let servers: Vec<_> = (1..).zip(weights.iter().copied()).collect();
    GroupState::new(&group(balance, &servers), seed)
}

fn any_room(_: ServerId) -> bool {
    false
}

/// Chooses with nothing tried and room everywhere.
fn pick(state: &mut GroupState, source: u64, now_ms: u64) -> ServerId {
    state.pick(source, now_ms, &[], any_room).unwrap()
}

fn eject(state: &mut GroupState, server: ServerId, now_ms: u64) {
    while state.failed(server, now_ms).is_none() {}
}

/// Clients' addresses, as many as asked for.
fn sources(n: u32) -> impl Iterator<Item = u64> {
    (0..n).map(|i| source_of(IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + i))))
}

/// What share of `n` clients each server gets, in thousandths.
fn shares(state: &mut GroupState, n: u32) -> Vec<u32> {
    let mut counts = vec![0u32; state.servers.len()];
    sources(n).for_each(|source| counts[usize::from(pick(state, source, 0))] += 1);
    counts.iter().map(|count| (u64::from(*count) * 1000 / u64::from(n)).try_into().unwrap()).collect()
}

#[test]
fn an_empty_group_has_no_server() {
    for balance in POLICIES {
        assert_eq!(state(balance, &[], 1).pick(7, 0, &[], any_room), None);
    }
}

#[test]
fn round_robin_spreads_turns_as_nginx_does() {
    let cycle = [0, 0, 1, 0, 2, 0, 0];
    let mut starts = HashSet::new();
    for seed in 0..100 {
        let mut state = state(Balance::RoundRobin, &[5, 1, 1], seed);
        let seen: Vec<_> = (0..7).map(|_| pick(&mut state, 0, 0)).collect();
        let shift = (0..7).find(|&shift| (0..7).all(|i| seen[i] == cycle[(i + shift) % 7]));
        starts.insert(shift.unwrap_or_else(|| panic!("{seen:?} is no rotation of {cycle:?}")));
    }
    assert_eq!(starts.len(), 7, "workers begin all over the cycle");
}

#[test]
fn workers_do_not_all_begin_with_the_same_server() {
    for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::RandomTwo] {
        let first: HashSet<_> = (0..100).map(|seed| pick(&mut state(balance, &[1; 4], seed), 0, 0)).collect();
        assert_eq!(first.len(), 4, "{balance:?}");
    }
}

#[test]
fn the_turns_of_a_missing_server_are_shared_by_all_others() {
    for weights in [[1, 1, 1, 1], [2, 2, 2, 1]] {
        let mut state = state(Balance::RoundRobin, &weights, 3);
        let mut counts = [0; 4];
        (0..3000).for_each(|_| counts[usize::from(state.pick(0, 0, &[3], any_room).unwrap())] += 1);
        assert_eq!(counts, [1000, 1000, 1000, 0]);
    }
}

#[test]
fn least_connections_fills_servers_by_weight() {
    let mut state = state(Balance::LeastConnections, &[1, 2, 5], 9);
    for _ in 0..80 {
        let server = pick(&mut state, 0, 0);
        state.began(server);
    }
    assert_eq!([0, 1, 2].map(|id| state.active(id)), [10, 20, 50]);
    (0..10).for_each(|_| state.ended(1));
    for _ in 0..10 {
        assert_eq!(pick(&mut state, 0, 0), 1);
        state.began(1);
    }
}

#[test]
fn least_connections_without_load_takes_turns_by_weight() {
    let mut state = state(Balance::LeastConnections, &[3, 1], 2);
    let mut counts = [0; 2];
    for _ in 0..400 {
        let server = pick(&mut state, 0, 0);
        state.began(server);
        state.ended(server);
        counts[usize::from(server)] += 1;
    }
    assert_eq!(counts, [300, 100]);
}

#[test]
fn random_two_never_takes_the_most_loaded_and_follows_weights_without_load() {
    for most in 0..4 {
        let mut loaded = state(Balance::RandomTwo, &[1, 1, 1, 1], 5);
        (0..4).for_each(|id| (0..(id + 3 - most) % 4).for_each(|_| loaded.began(id)));
        let mut seen: Vec<_> = (0..1000).map(|_| pick(&mut loaded, 0, 0)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (0..4).filter(|id| *id != most).collect::<Vec<_>>());
    }

    for (share, expected) in
        shares(&mut state(Balance::RandomTwo, &[10, 20, 70], 5), 30_000).into_iter().zip([100, 200, 700])
    {
        assert!(share.abs_diff(expected) < 20, "{share} instead of {expected}");
    }
}

#[test]
fn hashes_divide_clients_by_weight_and_alike_in_every_worker() {
    for balance in [Balance::SourceHash, Balance::ConsistentHash] {
        for weights in [[100, 100, 100, 100], [10, 20, 30, 340]] {
            let mut one = state(balance, &weights, 1);
            let mut other = state(balance, &weights, 2);
            sources(1000).for_each(|source| assert_eq!(pick(&mut one, source, 0), pick(&mut other, source, 0)));
            let total: u32 = weights.iter().copied().map(u32::from).sum();
            for (share, weight) in shares(&mut one, 30_000).into_iter().zip(weights) {
                let expected = u32::from(weight) * 1000 / total;
                assert!(share.abs_diff(expected) < 20, "{balance:?}: {share} instead of {expected}");
            }
        }
    }
}

#[test]
fn while_a_server_is_away_hashes_move_its_clients_only_and_spread_them() {
    for balance in [Balance::SourceHash, Balance::ConsistentHash] {
        let mut state = state(balance, &[1, 1, 2, 1], 1);
        let mut taken_over = HashMap::new();
        for source in sources(10_000) {
            let before = pick(&mut state, source, 0);
            let after = state.pick(source, 0, &[2], any_room).unwrap();
            assert_eq!(state.pick(source, 0, &[2], any_room), Some(after));
            if before == 2 {
                *taken_over.entry(after).or_insert(0u32) += 1;
            } else {
                assert_eq!(before, after, "{balance:?}");
            }
        }
        assert!([0, 1, 3].iter().all(|id| (1100..1600).contains(&taken_over[id])), "{balance:?}: {taken_over:?}");
    }
}

/// The port that each of 20,000 clients goes to.
fn ports(servers: &[(u16, u16)]) -> Vec<u16> {
    let mut state = GroupState::new(&group(Balance::ConsistentHash, servers), 1);
    sources(20_000).map(|source| servers[usize::from(pick(&mut state, source, 0))].0).collect()
}

#[test]
fn consistent_hash_moves_only_the_share_of_a_server_that_comes_or_goes() {
    let ten: Vec<_> = (1..=10).map(|port| (port, 1)).collect();
    // The new one stands first, so that all others' indices change.
    let eleven: Vec<_> = [(99, 1)].into_iter().chain(ten.iter().copied()).collect();
    let moved: Vec<_> = ports(&ten).into_iter().zip(ports(&eleven)).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(_, after)| *after == 99));
    assert!((20_000 / 11 - 200..20_000 / 11 + 200).contains(&moved.len()), "{}", moved.len());
}

#[test]
fn consistent_hash_moves_only_the_difference_of_a_changed_weight() {
    let before = ports(&[(1, 10), (2, 10), (3, 20)]);
    let after = ports(&[(1, 10), (2, 20), (3, 20)]);
    let moved: Vec<_> = before.into_iter().zip(after).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(_, after)| *after == 2));
    // From a quarter to two fifths.
    assert!((2700..3300).contains(&moved.len()), "{}", moved.len());
}

#[test]
fn backups_serve_only_while_no_primary_can() {
    for balance in POLICIES {
        let mut state = GroupState::new(&group(balance, &[(1, 1), (60_000, 9), (2, 1), (60_001, 9)]), 4);
        let all = |state: &mut GroupState, tried: &[ServerId]| {
            let mut seen: Vec<_> = sources(200).map(|source| state.pick(source, 0, tried, any_room).unwrap()).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(all(&mut state, &[]), [0, 2], "{balance:?}");
        assert_eq!(all(&mut state, &[0, 2]), [1, 3], "{balance:?}");
        assert_eq!(state.pick(0, 0, &[3], |id| id != 1), Some(1), "{balance:?}: the primary servers are full");
        eject(&mut state, 0, 0);
        eject(&mut state, 2, 0);
        assert_eq!(all(&mut state, &[]), [1, 3], "{balance:?}");
        eject(&mut state, 1, 0);
        eject(&mut state, 3, 0);
        assert_eq!(all(&mut state, &[]), [0, 2], "{balance:?}: all ejected, so they are tried anyway");
    }
}

#[test]
fn an_ejected_server_gets_one_trial_and_comes_back_with_it() {
    for balance in POLICIES {
        let mut state = state(balance, &[1, 1], 4);
        eject(&mut state, 0, 0);
        assert!(sources(100).all(|source| pick(&mut state, source, 999) == 1));
        let trials = sources(100).filter(|&source| {
            let chosen = pick(&mut state, source, 1000);
            state.began(chosen);
            chosen == 0
        });
        assert_eq!(trials.count(), 1, "{balance:?}");
        assert!(state.is_ejected(0));
        assert!(state.succeeded(0));
        state.ended(0);
        assert!(!state.is_ejected(0));
        assert!(sources(1000).any(|source| pick(&mut state, source, 1000) == 0));
    }
}

#[test]
fn sources_are_the_same_however_an_address_is_written() {
    let source = |text: &str| source_of(text.parse().unwrap());
    assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
    let different: HashSet<_> =
        ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::1", "::1"].map(source).into();
    assert_eq!(different.len(), 6);
}

#[test]
fn a_number_that_is_no_server_changes_nothing() {
    let mut state = state(Balance::LeastConnections, &[1], 0);
    state.began(7);
    state.ended(7);
    assert!(!state.succeeded(7));
    assert_eq!(state.failed(7, 0), None);
    assert_eq!(state.active(7), 0);
    state.ended(0);
    assert_eq!(state.active(0), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Pick { source: u64, tried: Vec<ServerId>, full: Vec<ServerId> },
    Finish { which: prop::sample::Index, failed: bool, verdict: bool },
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(0u16..8, 0..6);
    prop_oneof![
        4 => (any::<u64>(), some(), some()).prop_map(|(source, tried, full)| Step::Pick { source, tried, full }),
        4 => (any::<prop::sample::Index>(), any::<bool>(), prop::bool::weighted(0.9))
            .prop_map(|(which, failed, verdict)| Step::Finish { which, failed, verdict }),
        1 => (0u64..3000).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn round_robin_is_exact_over_any_cycle(
        weights in prop::collection::vec(1u16..=20, 1..12), seed: u64, skipped in 0u32..50,
    ) {
        let mut state = state(Balance::RoundRobin, &weights, seed);
        for _ in 0..skipped {
            pick(&mut state, 0, 0);
        }
        let mut counts = vec![0u16; weights.len()];
        for _ in 0..weights.iter().sum::<u16>() {
            counts[usize::from(pick(&mut state, 0, 0))] += 1;
        }
        prop_assert_eq!(counts, weights);
    }

    #[test]
    fn every_choice_is_the_best_kind_left(
        policy in 0usize..5,
        servers in prop::collection::vec((1u16..=5, any::<bool>()), 0..8),
        seed: u64,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let servers: Vec<_> =
            (1..).zip(servers).map(|(port, (weight, backup))| (if backup { 60_000 + port } else { port }, weight)).collect();
        let group = group(POLICIES[policy], &servers);
        let mut state = GroupState::new(&group, seed);
        let mut in_progress: Vec<ServerId> = Vec::new();
        let mut now_ms = 0;
        for step in steps {
            match step {
                Step::Pick { source, tried, full } => {
                    // Better kinds have lower numbers.
                    let kinds: Vec<_> = (0..).zip(&group.servers).map(|(id, server)| {
                        let can = !tried.contains(&id) && !full.contains(&id);
                        let healthy = state.servers[usize::from(id)].health.takes_requests(now_ms);
                        can.then_some((!healthy, server.backup))
                    }).collect();
                    let best = kinds.iter().flatten().min_by_key(|(ill, backup)| (*ill, *backup));
                    match state.pick(source, now_ms, &tried, |id| full.contains(&id)) {
                        None => prop_assert_eq!(best, None),
                        Some(chosen) => {
                            let kind = kinds[usize::from(chosen)];
                            let (ill, backup) = kind.expect("neither tried nor full");
                            // With nothing healthy left, health no longer counts.
                            let (best_ill, best_backup) = *best.unwrap();
                            prop_assert_eq!(ill, best_ill);
                            prop_assert_eq!(backup, best_backup);
                            state.began(chosen);
                            in_progress.push(chosen);
                        }
                    }
                }
                Step::Finish { which, failed, verdict } if !in_progress.is_empty() => {
                    let server = in_progress.swap_remove(which.index(in_progress.len()));
                    match (verdict, failed) {
                        (true, true) => _ = state.failed(server, now_ms),
                        (true, false) => _ = state.succeeded(server),
                        (false, _) => {}
                    }
                    state.ended(server);
                }
                Step::Finish { .. } => {}
                Step::Pass(ms) => now_ms += ms,
            }
            for (id, server) in (0..).zip(&state.servers) {
                let expected = in_progress.iter().filter(|other| **other == id).count();
                prop_assert_eq!(server.active as usize, expected);
            }
            let ejected = state.servers.iter().filter(|server| server.health.is_ejected()).count();
            prop_assert_eq!(usize::from(state.ejected), ejected);
        }
    }
}
