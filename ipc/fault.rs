//! Instants at which a process may be killed, for tests that drive master and workers within one process.
//!
//! [`instant`] stands between any two steps whose order matters to whoever goes on after a death: stores to shared
//! memory, messages, what is done to a socket. Without the feature `faults`, which only tests enable, it is nothing.
//! With it a test chooses an instant by its number, and there the thread unwinds: the process is dead, and what it
//! owned is closed.

/// What a thread that is killed unwinds with.
#[cfg(feature = "faults")]
#[derive(Debug)]
pub struct Killed;

#[cfg(feature = "faults")]
thread_local! {
    static LEFT: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// The process may be killed here.
#[inline]
pub fn instant() {
    #[cfg(feature = "faults")]
    LEFT.with(|left| match left.get() {
        None => {}
        Some(0) => {
            left.set(None);
            // Nothing is wrong with the program: no message.
            std::panic::resume_unwind(Box::new(Killed));
        }
        Some(n) => left.set(Some(n - 1)),
    });
}

/// Has this thread killed at the instant that comes after `n` others. `None` = not at all.
#[cfg(feature = "faults")]
pub fn kill_after(n: Option<u64>) {
    LEFT.with(|left| left.set(n));
}
