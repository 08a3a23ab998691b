//! Any bytes as the answer to a question.
#![no_main]

#[path = "../checks/dns_message.rs"]
mod dns_message;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dns_message::check(bytes));
