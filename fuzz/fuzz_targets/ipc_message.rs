//! Any bytes as each of the messages between processes.
#![no_main]

#[path = "../checks/ipc_message.rs"]
mod ipc_message;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ipc_message::check(bytes));
