use std::collections::{BTreeMap, HashSet};

use ipc::snapshot::*;
use proptest::prelude::*;

use super::*;

/// A configuration as small as it can be written: listeners (port, TCP, group) and groups (name, servers' ports).
#[derive(Debug, Clone)]
struct Small {
    listeners: Vec<(u16, bool, u8)>,
    groups: BTreeMap<u8, Vec<u16>>,
}

fn small() -> impl Strategy<Value = Small> {
    let listeners = prop::collection::btree_map(1..7u16, (any::<bool>(), any::<u8>()), 1..5);
    let groups = prop::collection::btree_map(0..5u8, prop::collection::btree_set(1..5u16, 0..4), 1..4);
    (listeners, groups, any::<prop::sample::Index>()).prop_map(|(listeners, groups, first)| {
        let names: Vec<u8> = groups.keys().copied().collect();
        let mut listeners: Vec<_> = listeners
            .into_iter()
            .map(|(port, (tcp, group))| (port, tcp, names[usize::from(group) % names.len()]))
            .collect();
        // In any order.
        let at = first.index(listeners.len());
        listeners.rotate_left(at);
        Small {
            listeners,
            groups: groups.into_iter().map(|(name, ports)| (name, ports.into_iter().collect())).collect(),
        }
    })
}

impl Small {
    fn snapshot(&self) -> Snapshot {
        let address = |port: u16| Address::Inet(([127, 0, 0, 1], port).into());
        let timeouts = Timeouts {
            header_ms: 1,
            idle_ms: 1,
            body_ms: 1,
            write_ms: 1,
            connect_ms: 1,
            response_ms: 1,
            server_ms: 1,
            tunnel_ms: 1,
        };
        let id = |name: u8| GroupId::try_from(self.groups.keys().position(|&other| other == name).unwrap()).unwrap();
        let mut groups: Vec<Group> = self
            .groups
            .iter()
            .map(|(name, ports)| Group {
                name: format!("g{name}"),
                balance: Balance::RoundRobin,
                servers: ports
                    .iter()
                    .map(|&port| Server {
                        number: 0,
                        name: port.to_string(),
                        address: address(port),
                        weight: 1,
                        backup: false,
                    })
                    .collect(),
                names: Vec::new(),
                timeouts: TimeoutOverrides::default(),
                tries: 1,
                keepalive: KeepAlive { idle_per_server: 1, idle_timeout_ms: 1, max_per_server: None },
                health: Health { failures: 0, eject_ms: 1, eject_max_ms: 1 },
                worker_header: false,
                send_proxy: None,
                removed: false,
            })
            .collect();
        groups.iter_mut().flat_map(|group| &mut group.servers).zip(0..).for_each(|(server, n)| server.number = n);
        Snapshot {
            generation: 1,
            workers: 1,
            dispatch: Dispatch::RoundRobin,
            listening: Vec::new(),
            listeners: self
                .listeners
                .iter()
                .map(|&(port, tcp, group)| Listener {
                    bind: address(port),
                    mode: if tcp { Mode::Tcp } else { Mode::Http },
                    to: Some(id(group)),
                    backlog: 1,
                    timeouts,
                    removed: false,
                    proxy_protocol: ProxyProtocol::default(),
                    abort_on_close: false,
                    forward: None,
                })
                .collect(),
            routes: Vec::new(),
            groups,
            limits: Limits {
                head_bytes: 1024,
                head_fields: 8,
                body_bytes: None,
                connections: None,
                connections_per_address: None,
                min_rate_bytes: 0,
            },
            access_log: AccessLog { to: LogTarget::Off, format: LogFormat::Json },
            users: Vec::new(),
            failures: ipc::forward::FailureLimits::default(),
            trusted_proxies: Vec::new(),
            shutdown_timeout_ms: 1,
            worker_timeout_ms: 1,
            orphan_timeout_ms: 60_000,
            dns: Dns::default(),
            on_removal: OnRemoval::Keep,
        }
    }
}

/// What a listener is to somebody connected there: address, what is spoken, and the group's name.
fn rules(snapshot: &Snapshot, id: ListenerId) -> (Address, Mode, String) {
    let listener = &snapshot.listeners[usize::from(id)];
    let group = &snapshot.groups[usize::from(listener.to.unwrap())];
    (listener.bind.clone(), listener.mode, group.name.clone())
}

proptest! {
    #[test]
    fn numbers_hold_through_any_number_of_reloads(
        first in small(), steps in prop::collection::vec((small(), any::<u64>(), any::<u64>()), 1..8),
    ) {
        let mut present = first.snapshot();
        let mut next_number = present.groups.iter().map(|group| group.servers.len() as u64).sum();
        let mut sockets: HashSet<ListenerId> = (0..).zip(&present.listeners).map(|(id, _)| id).collect();
        let mut numbers: HashMap<u64, (String, Address)> = HashMap::new();
        // Listeners with connections, and what these were promised.
        let mut connected: BTreeMap<ListenerId, (Address, Mode)> = BTreeMap::new();
        for (small, ended, drained) in steps {
            // Somebody connects everywhere; then some go, and some closed sockets run dry.
            for &id in &sockets {
                let (bind, mode, _) = rules(&present, id);
                connected.insert(id, (bind, mode));
            }
            connected.retain(|id, _| ended >> (id % 64) & 1 == 1);
            let dry = |id: &ListenerId| present.listeners[usize::from(*id)].removed && drained >> (id % 64) & 1 == 1;
            sockets.retain(|id| !dry(id));
            let wanted = small.snapshot();
            let left = |id| Left { socket: sockets.contains(&id), connections: connected.contains_key(&id) };
            let Plan { snapshot, changes, next_number: next } = plan(&present, wanted.clone(), left, next_number).unwrap();
            prop_assert!(next >= next_number);
            next_number = next;
            prop_assert_eq!(snapshot.generation, present.generation + 1);

            // Sockets: each that is open is accounted for once.
            let mut now = HashSet::new();
            let mut open: HashSet<ListenerId> = sockets.clone();
            for change in &changes {
                let (from, to) = match *change {
                    Change::Keep(id) | Change::Close(id) => (Some(id), id),
                    Change::Turn { from, to } => (Some(from), to),
                    Change::Bind(id) => (None, id),
                };
                prop_assert!(from.is_none_or(|from| open.remove(&from)), "{:?}", change);
                prop_assert!(now.insert(to));
                let closing = matches!(change, Change::Close(_));
                prop_assert_eq!(snapshot.listeners[usize::from(to)].removed, closing);
                if let Some(from) = from {
                    prop_assert_eq!(&present.listeners[usize::from(from)].bind, &snapshot.listeners[usize::from(to)].bind);
                }
                // A number changes hands only when nobody is connected under it.
                if !matches!(change, Change::Keep(_) | Change::Close(_)) {
                    prop_assert!(!connected.contains_key(&to));
                }
            }
            prop_assert!(open.is_empty());
            sockets = now;

            // What was read is in force, and nothing else.
            let live = |snapshot: &Snapshot| {
                let ids = (0..).zip(&snapshot.listeners).filter(|(_, listener)| !listener.removed);
                let mut rules: Vec<_> = ids.map(|(id, _)| format!("{:?}", rules(snapshot, id))).collect();
                rules.sort();
                rules
            };
            prop_assert_eq!(live(&snapshot), live(&wanted));
            for (group, wanted) in snapshot.groups.iter().zip(&wanted.groups) {
                prop_assert_eq!(&group.name, &wanted.name);
                prop_assert!(!group.removed);
            }
            prop_assert!(snapshot.groups[wanted.groups.len()..].iter().all(|group| group.removed));
            prop_assert!(snapshot.listeners.iter().filter(|l| !l.removed).all(|l| usize::from(l.to.unwrap()) < wanted.groups.len()));
            let names: HashSet<&str> = snapshot.groups.iter().map(|group| group.name.as_str()).collect();
            prop_assert_eq!(names.len(), snapshot.groups.len());

            // Whoever is connected finds the listener as it was.
            for (&id, promised) in &connected {
                let (bind, mode, _) = rules(&snapshot, id);
                prop_assert_eq!(&(bind, mode), promised);
                if snapshot.listeners[usize::from(id)].removed {
                    prop_assert_eq!(rules(&snapshot, id).2, rules(&present, id).2);
                }
            }

            // A number is one server's for ever.
            let mut seen = HashSet::new();
            for group in &snapshot.groups {
                for server in &group.servers {
                    prop_assert!(seen.insert(server.number));
                    let identity = (group.name.clone(), server.address.clone());
                    let first = numbers.entry(server.number).or_insert_with(|| identity.clone());
                    prop_assert_eq!(&*first, &identity);
                    let before = present.groups.iter().find(|old| old.name == group.name);
                    let before = before.and_then(|old| old.servers.iter().find(|old| old.address == server.address));
                    prop_assert!(before.is_none_or(|before| before.number == server.number));
                }
            }
            present = snapshot;
        }
    }
}

#[test]
fn the_same_configuration_again_changes_nothing_but_the_generation() {
    let small = Small { listeners: vec![(1, false, 0), (2, true, 0)], groups: BTreeMap::from([(0, vec![1, 2])]) };
    let old = small.snapshot();
    let made = plan(&old, small.snapshot(), |_| Left { socket: true, connections: true }, 2).unwrap();
    assert_eq!(made.changes, [Change::Keep(0), Change::Keep(1)]);
    assert_eq!(made.snapshot, Snapshot { generation: 2, ..old });
    assert_eq!(made.next_number, 2);
}

#[test]
fn a_removed_listener_and_its_group_stay_while_somebody_is_connected() {
    let old =
        Small { listeners: vec![(1, false, 0), (2, true, 1)], groups: BTreeMap::from([(0, vec![1]), (1, vec![2])]) };
    let new = Small { listeners: vec![(1, false, 0)], groups: BTreeMap::from([(0, vec![1])]) };
    let open = Left { socket: true, connections: true };
    let first = plan(&old.snapshot(), new.snapshot(), |_| open, 2).unwrap();
    assert_eq!(first.changes, [Change::Keep(0), Change::Close(1)]);
    assert_eq!(rules(&first.snapshot, 1).2, "g1");
    assert!(first.snapshot.groups[1].removed && first.snapshot.groups[1].servers[0].number == 1);
    // Its queue is empty, its last connection has ended: gone without a trace.
    let left = |id| if id == 0 { open } else { Left::default() };
    let second = plan(&first.snapshot, new.snapshot(), left, 2).unwrap();
    assert_eq!((second.snapshot.listeners.len(), second.snapshot.groups.len()), (1, 1));
    // Back again: its server is known no longer, and nobody else's number is given to it.
    let third = plan(&second.snapshot, old.snapshot(), left, second.next_number).unwrap();
    assert_eq!(third.changes, [Change::Keep(0), Change::Bind(1)]);
    assert_eq!(third.snapshot.groups[1].servers[0].number, 2);
}

#[test]
fn a_socket_still_being_emptied_is_taken_up_again() {
    let both = Small { listeners: vec![(1, false, 0), (2, false, 0)], groups: BTreeMap::from([(0, vec![1])]) };
    let one = Small { listeners: vec![(1, false, 0)], groups: BTreeMap::from([(0, vec![1])]) };
    let left = |_| Left { socket: true, connections: false };
    let first = plan(&both.snapshot(), one.snapshot(), left, 1).unwrap();
    let second = plan(&first.snapshot, both.snapshot(), left, 1).unwrap();
    assert_eq!(second.changes, [Change::Keep(0), Change::Keep(1)]);
    assert!(!second.snapshot.listeners[1].removed);
}
