//! Any bytes as the line of a dynamic address exchange.
#![no_main]

#[path = "../checks/dynamic.rs"]
mod dynamic;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dynamic::check(bytes));
