//! Any bytes as the beginning of a SOCKS connection.
#![no_main]

#[path = "../checks/socks.rs"]
mod socks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| socks::check(bytes));
