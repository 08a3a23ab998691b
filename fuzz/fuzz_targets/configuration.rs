//! Any text as a configuration.
#![no_main]
#![allow(dead_code, reason = "the module is a part of a program, of which only one way in is used here")]

#[path = "../../src/config/mod.rs"]
mod config;

libfuzzer_sys::fuzz_target!(|text: &str| config::fuzz::check(text));
