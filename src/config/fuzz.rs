//! The way in for the fuzz target: any text, on a machine that knows no names. Only in it, and in tests, which run its
//! seeds and mutations of them.

use std::io;
use std::path::Path;

use ipc::snapshot::{Dns, Endpoint, Target};

use super::system::System;
use super::{OsGroup, OsUser, check_text, dump};

struct Nowhere;

impl System for Nowhere {
    fn resolve(&self, _: &Dns, targets: &[Target]) -> Vec<Result<Vec<Endpoint>, String>> {
        targets.iter().map(|_| Err("no names here".to_owned())).collect()
    }

    fn read(&self, _: &Path) -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn user(&self, _: &str) -> io::Result<Option<OsUser>> {
        Ok(None)
    }

    fn group(&self, _: &str) -> io::Result<Option<OsGroup>> {
        Ok(None)
    }

    fn cores(&self) -> usize {
        1
    }

    fn is_directory(&self, _: &Path) -> bool {
        true
    }
}

/// Reads `text`. What is accepted reads back from its dump as the same; what is refused is so with a reason.
///
/// # Panics
/// When that does not hold.
pub fn check(text: &str) {
    match check_text("fuzz.toml", text, None, &Nowhere) {
        Ok(loaded) => {
            let dumped = dump(&loaded.snapshot, &loaded.process);
            let again = check_text("dump.toml", &dumped, None, &Nowhere).expect("a dump is valid");
            assert_eq!(again.snapshot, loaded.snapshot);
        }
        Err(report) => {
            assert!(report.has_errors());
            assert!(report.render(false).contains("error: "));
        }
    }
}

#[cfg(test)]
#[path = "../../fuzz/checks/mutations.rs"]
mod mutations;

#[test]
fn mutated_configurations_are_refused_with_a_reason_or_read_back_the_same() {
    mutations::each("configuration", 250, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            check(text);
        }
    });
}

#[test]
fn the_seeds_are_configurations() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/configuration");
    for entry in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(check_text("seed.toml", &text, None, &Nowhere).is_ok(), "{text}");
    }
}
