//! The fuzz target's seeds, and mutations of them, in every ordinary test run. Nothing else.

#[path = "../fuzz/checks/ipc_message.rs"]
mod ipc_message;
#[path = "../fuzz/checks/mutations.rs"]
mod mutations;

#[test]
fn mutated_messages_are_refused_or_read_as_written() {
    mutations::each("ipc_message", 30_000, ipc_message::check);
}

#[test]
fn the_seeds_are_messages() {
    let read = |name: &str| {
        std::fs::read(format!("{}/../fuzz/corpus/ipc_message/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    for name in ["pass", "keep", "hello", "drain"] {
        assert!(postcard::from_bytes::<crate::message::ToWorker>(&read(name)).is_ok(), "{name}");
    }
    for name in ["gave-back", "relaying", "finished"] {
        assert!(postcard::from_bytes::<crate::message::ToMaster>(&read(name)).is_ok(), "{name}");
    }
    for name in ["status", "refused"] {
        assert!(postcard::from_bytes::<crate::control::Answer>(&read(name)).is_ok(), "{name}");
    }
    assert!(postcard::from_bytes::<crate::control::Greeting>(&read("greeting")).is_ok());
}
