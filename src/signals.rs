//! Signals to the master, as events of its loop. What each one means is here; what is done is in `master`.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook_mio::v1_0::Signals;

/// What an operator asks for with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// TERM, INT: stop now.
    Stop,
    /// QUIT: finish what is in progress, then stop.
    Drain,
    /// USR1: open the log files anew.
    ReopenLogs,
    /// TTIN: one worker more.
    MoreWorkers,
    /// TTOU: one worker fewer.
    FewerWorkers,
    /// HUP: read the configuration again.
    Reload,
    /// USR2: start the program anew and hand over to it.
    Upgrade,
}

const CAUGHT: [i32; 8] = [SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGHUP, SIGTTIN, SIGTTOU];

/// Begins to catch signals.
///
/// # Errors
/// When descriptors are short.
pub fn catch() -> io::Result<Signals> {
    Signals::new(CAUGHT)
}

/// Everything asked for since the last call.
pub fn pending(signals: &mut Signals) -> Vec<Request> {
    signals.pending().filter_map(request).collect()
}

fn request(signal: i32) -> Option<Request> {
    Some(match signal {
        SIGTERM | SIGINT => Request::Stop,
        SIGQUIT => Request::Drain,
        SIGUSR1 => Request::ReopenLogs,
        SIGTTIN => Request::MoreWorkers,
        SIGTTOU => Request::FewerWorkers,
        SIGHUP => Request::Reload,
        SIGUSR2 => Request::Upgrade,
        _ => return None,
    })
}

/// Makes a worker deaf to what a terminal or an operator sends to the whole process group: the master gets
/// the same signal and decides, and its end is theirs. Only KILL ends a worker alone.
///
/// # Errors
/// When the kernel refuses.
pub fn ignore_in_worker() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGQUIT, SIGUSR1, SIGUSR2, SIGHUP, SIGTTIN, SIGTTOU] {
        // A handler that sets a flag nobody reads: the safe way to ignore.
        signal_hook::flag::register(signal, std::sync::Arc::default())?;
    }
    Ok(())
}

/// Sees to it that a signal that asks a running master for something does not end one that is starting: a reload, or
/// the rotation of logs, may come at any time. What it asks for is done by starting.
///
/// # Errors
/// When the system refuses a handler.
pub fn ignore_while_starting() -> io::Result<()> {
    for signal in [SIGUSR1, SIGUSR2, SIGHUP, SIGTTIN, SIGTTOU] {
        signal_hook::flag::register(signal, std::sync::Arc::default())?;
    }
    Ok(())
}

/// The name of a signal, such as `SIGKILL`.
pub fn name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caught_signal_means_something() {
        assert!(CAUGHT.into_iter().all(|signal| request(signal).is_some()));
        assert_eq!(request(SIGTERM), Some(Request::Stop));
        assert_eq!(request(signal_hook::consts::SIGWINCH), None);
    }

    #[test]
    fn signals_have_names_real_time_ones_too() {
        assert_eq!(name(9), "SIGKILL");
        assert_eq!(name(40), "signal 40");
    }
}
