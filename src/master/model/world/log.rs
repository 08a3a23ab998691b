//! What masters and workers log in one run, and what they must never say.

use std::cell::{Cell, RefCell};

use ::log::Level;

thread_local! {
    /// How much of it has been looked at.
    static CHECKED: Cell<usize> = const { Cell::new(0) };
    pub(super) static LOG: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Listener;

impl ::log::Log for Listener {
    fn enabled(&self, _: &::log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &::log::Record<'_>) {
        let line = (record.level(), record.args().to_string());
        LOG.with(|log| log.borrow_mut().push(line));
    }

    fn flush(&self) {}
}

/// Keeps what is logged.
pub fn listen_to_log() {
    let _ = ::log::set_boxed_logger(Box::new(Listener));
    ::log::set_max_level(::log::LevelFilter::Debug);
}

/// Forgets what earlier runs have logged.
pub(super) fn forget() {
    LOG.with(|log| log.borrow_mut().clear());
    CHECKED.set(0);
}

/// What must never be logged.
const NEVER: [&str; 6] = ["ignored", "makes no sense", "malformed", "were lost", "cannot be started", "no room for"];
/// Errors that killing brings about.
const EXPECTED: [&str; 3] = ["not upgraded", "the successor is gone", "the successor does not take"];

/// Panics if something was logged that must never be.
pub(super) fn check() {
    LOG.with(|log| {
        let log = log.borrow();
        for (level, line) in &log[CHECKED.replace(log.len())..] {
            let never = *level <= Level::Info && NEVER.iter().any(|part| line.contains(part))
                || *level == Level::Error && !EXPECTED.iter().any(|part| line.contains(part));
            assert!(!never, "logged: {level} {line}");
        }
    });
}
