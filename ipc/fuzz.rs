//! The fuzz target's seeds, and mutations of them, in every ordinary test run. Nothing else.

#[path = "../fuzz/checks/ipc_message.rs"]
mod ipc_message;
#[path = "../fuzz/checks/mutations.rs"]
mod mutations;

use serde::Serialize;

use crate::control::{Answer, Greeting, NameStatus, Role, Status, Unprotected, Who, WorkerStatus};
use crate::forward::{Delivery, Spoken, Tunnel};
use crate::handover::{Bound, Handed, ServerName, ToSuccessor};
use crate::message::{GivenBack, Kept, Layout, Lost, Passed, Relaying, Standing, Task, ToMaster, ToWorker, VERSION};
use crate::origin::{Ends, Origin};
use crate::snapshot::{Address, Endpoint, Target};

#[test]
fn mutated_messages_are_refused_or_read_as_written() {
    mutations::each("ipc_message", 30_000, ipc_message::check);
}

/// A message of each kind that is more than a number, by the name of its seed.
fn tunnel() -> Tunnel {
    Tunnel {
        spoken: Spoken::Socks5,
        target: "example.com:443".to_owned(),
        user: Some("ann".to_owned()),
        rule: Some("office:2".to_owned()),
        began_us: 1_000_000,
        connected_us: 1_020_000,
        lifetime_ms: Some(86_400_000),
        delivery: None,
    }
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    fn sample(name: &'static str, message: &impl Serialize) -> (&'static str, Vec<u8>) {
        (name, postcard::to_stdvec(message).unwrap())
    }
    let address = "127.0.0.1:4711".parse().unwrap();
    let passed = |id, task, origin| Passed { id, listener: 1, peer: Some(address), origin, task, kept: id % 2 == 0 };
    let known = Some(Box::new(tunnel()));
    let relay = Task::Relay { server: Some(3), reply: false, to_server: true, to_client: false, tunnel: known };
    let elsewhere = Delivery { target: "[::1]:7".parse().unwrap(), reply_to: address };
    let delivering = Some(Box::new(Tunnel { spoken: Spoken::Dynamic, delivery: Some(elsewhere), ..tunnel() }));
    let delivery =
        Task::Relay { server: None, reply: true, to_server: false, to_client: true, tunnel: delivering.clone() };
    let lost = Lost { beginning: b"POST /pay".to_vec(), server: Some(5) };
    let told = Origin::Told(Some(Ends { source: address, destination: "[::1]:80".parse().unwrap() }));
    let bound = || vec![Bound { address: Address::Inet(address), lent: true }];
    let handed = Handed {
        listener: Address::Unix("/run/web.sock".into()),
        passed: passed(0, relay.clone(), Origin::Direct),
        server: Some(ServerName { group: "web".to_owned(), address: Address::Inet(address) }),
    };
    let worker = WorkerStatus {
        who: Who { index: 0, pid: 12 },
        stage: "ready".to_owned(),
        generation: 3,
        connections: 4,
        requests: 5,
        active_requests: 1,
    };
    let name = NameStatus {
        name: "app.test:80".to_owned(),
        addresses: vec!["[::1]:80".to_owned()],
        more: 1,
        good_s: Some(3),
        again_s: None,
        trouble: Some((300, "no name server answers".to_owned())),
    };
    let status = Status {
        generation: 3,
        accepting: true,
        listeners: vec!["127.0.0.1:80".to_owned()],
        workers: vec![worker],
        unprotected: Unprotected { now: 1, total: 300, lost: 0 },
        names: vec![name],
        names_in_all: 1,
    };
    let greeting = Greeting { version: 1, pid: 4711, config: "/etc/pointsman.toml".to_owned(), role: Role::Master };
    vec![
        sample(
            "hello",
            &ToWorker::Hello {
                row: Some(3),
                version: VERSION,
                index: 1,
                layout: Layout { records: 512, slots: 64, slot_bytes: 32768 },
            },
        ),
        sample(
            "pass",
            &ToWorker::Pass(vec![
                passed(7, Task::Resume(b"GET /".to_vec()), told),
                passed(8, relay.clone(), Origin::Awaited),
            ]),
        ),
        sample("pass-delivery", &ToWorker::Pass(vec![passed(10, delivery, Origin::Direct)])),
        sample("pass-lost", &ToWorker::Pass(vec![passed(9, Task::Fail(lost), Origin::Direct)])),
        sample(
            "keep",
            &ToWorker::Keep { listeners: bound().into_iter().map(|bound| Kept { listener: 2, bound }).collect() },
        ),
        sample("inherit", &ToWorker::Inherit { listeners: vec![0, 300], perhaps_sent: true }),
        sample("unkept", &ToWorker::Unkept { ids: vec![1, 70_000] }),
        sample("drain", &ToWorker::Drain { timeout_ms: 30_000, give_back: true }),
        sample("finished", &ToMaster::Finished(vec![1, 200, 70_000])),
        sample(
            "gave-back",
            &ToMaster::GaveBack(vec![GivenBack { id: 5, carried: b"GET / HT".to_vec(), own: Some(relay) }]),
        ),
        sample(
            "relaying",
            &ToMaster::Relaying(vec![
                Relaying { id: 9, server: Some(70_000), reply: false, tunnel: None },
                Relaying { id: 10, server: None, reply: false, tunnel: Some(Box::new(tunnel())) },
                Relaying { id: 11, server: None, reply: true, tunnel: delivering },
            ]),
        ),
        sample(
            "resolved",
            &ToMaster::Resolved(Standing {
                target: Target::Host { name: "app.test".to_owned(), port: 80 },
                endpoints: vec![Endpoint { address: "[::1]:80".parse().unwrap(), weight: Some(7), backup: true }],
                trouble: Some("no name server answers".to_owned()),
                again_ms: Some(2000),
            }),
        ),
        sample("listeners", &ToSuccessor::Listeners { bound: bound(), last: true }),
        sample("connections", &ToSuccessor::Connections(vec![handed])),
        sample("everything", &ToSuccessor::Everything),
        sample("status", &Answer::Status(status)),
        sample("refused", &Answer::Refused { text: "error: no such key".to_owned() }),
        sample("greeting", &greeting),
    ]
}

#[test]
fn the_seeds_are_messages_as_they_are_today() {
    let corpus = mutations::corpus("ipc_message");
    for (name, bytes) in samples() {
        let seed = std::fs::read(corpus.join(name)).unwrap_or_default();
        assert_eq!(
            seed, bytes,
            "{name}: messages have changed; `cargo test -p pointsman-ipc -- --ignored seeds` writes it anew"
        );
    }
}

#[test]
#[ignore = "writes the seeds of the fuzz target anew, after a change of the messages"]
fn write_seeds() {
    let corpus = mutations::corpus("ipc_message");
    for (name, bytes) in samples() {
        std::fs::write(corpus.join(name), bytes).unwrap();
    }
}
