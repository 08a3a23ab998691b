//! Passive health of one server as one worker sees it: what its failures and successes lead to.
//!
//! Failures in a row eject the server for a time. After that time one request is let through as a trial; its
//! success brings the server back, its failure ejects it for twice as long. This file counts and decides: it reads
//! no clock, does no I/O, and knows neither the server's address nor how one is chosen.

use ipc::snapshot;

/// A server was ejected just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    /// For how many milliseconds.
    pub for_ms: u32,
    /// After how many failures in a row.
    pub failures: u32,
}

/// The state of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Failures since the last success.
    failures: u32,
    /// The latest ejection's length; 0 = never ejected.
    ejected_ms: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Taking requests.
    Up { since_ms: u64 },
    /// Taking none before `until_ms`, then one at a time.
    Ejected { until_ms: u64, trial: Option<Trial> },
}

/// A request sent to an ejected server, not yet known to have succeeded or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    begun_ms: u64,
}

impl Default for Health {
    fn default() -> Health {
        Health { failures: 0, ejected_ms: 0, state: State::Up { since_ms: 0 } }
    }
}

impl Health {
    /// Whether the server is ejected, its trial included.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        match self.state {
            State::Up { .. } => false,
            State::Ejected { .. } => true,
        }
    }

    /// Whether the server is not ejected and has failed once since it last succeeded.
    #[must_use]
    pub fn has_just_failed(&self) -> bool {
        self.failures == 1 && !self.is_ejected()
    }

    /// Whether a request may go there at `now_ms`: the server is up, or it is time for a trial and none is under
    /// way. A trial of which nothing was heard for as long as the ejection was counts as over: its client may
    /// have gone away.
    #[must_use]
    pub fn takes_requests(&self, now_ms: u64) -> bool {
        match self.state {
            State::Up { .. } => true,
            State::Ejected { until_ms, trial: None } => now_ms >= until_ms,
            State::Ejected { until_ms, trial: Some(trial) } => {
                now_ms >= until_ms
                    && (trial.begun_ms < until_ms
                        || now_ms.saturating_sub(trial.begun_ms) >= u64::from(self.ejected_ms))
            }
        }
    }

    /// A request is being sent there. To an ejected server it is the trial, or, before the ejection is over, an
    /// attempt made because nothing else was left.
    pub fn chosen(&mut self, now_ms: u64) {
        match &mut self.state {
            State::Up { .. } => {}
            State::Ejected { trial, .. } => *trial = Some(Trial { begun_ms: now_ms }),
        }
    }

    /// The last request in progress there has ended, so no trial can be under way.
    pub fn idle(&mut self) {
        match &mut self.state {
            State::Up { .. } => {}
            State::Ejected { trial, .. } => *trial = None,
        }
    }

    /// A request succeeded. An ejected server comes back, unless the request was sent before it was ejected.
    /// Returns whether it came back.
    pub fn succeeded(&mut self) -> bool {
        match self.state {
            State::Up { .. } => {
                self.failures = 0;
                false
            }
            State::Ejected { trial: None, .. } => false,
            State::Ejected { trial: Some(trial), .. } => {
                self.failures = 0;
                self.state = State::Up { since_ms: trial.begun_ms };
                true
            }
        }
    }

    /// A request failed. Ejects the server when `limits.failures` in a row did, or when it was the trial.
    ///
    /// The first ejection lasts `limits.eject_ms`, each further one twice the one before, `limits.eject_max_ms` at
    /// most. A server that stayed up for as long as its last ejection begins anew.
    pub fn failed(&mut self, limits: &snapshot::Health, now_ms: u64) -> Option<Ejected> {
        self.failures = self.failures.saturating_add(1);
        if limits.failures == 0 {
            return None;
        }
        let anew = match self.state {
            State::Up { .. } if self.failures < limits.failures => return None,
            State::Up { since_ms } => now_ms.saturating_sub(since_ms) >= u64::from(self.ejected_ms),
            // A request from before the ejection says nothing new.
            State::Ejected { trial: None, .. } => return None,
            // Nor does one that went there against the ejection, for want of another server: were it to count, a
            // whole group's outage would double every ejection within moments.
            State::Ejected { until_ms, trial: Some(trial) } if trial.begun_ms < until_ms => {
                self.state = State::Ejected { until_ms, trial: None };
                return None;
            }
            State::Ejected { .. } => false,
        };
        let for_ms = if anew || self.ejected_ms == 0 { limits.eject_ms } else { self.ejected_ms.saturating_mul(2) }
            .min(limits.eject_max_ms);
        self.ejected_ms = for_ms;
        self.state = State::Ejected { until_ms: now_ms.saturating_add(u64::from(for_ms)), trial: None };
        Some(Ejected { for_ms, failures: self.failures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: snapshot::Health = snapshot::Health { failures: 3, eject_ms: 1000, eject_max_ms: 5000 };

    fn ejected_at(now_ms: u64) -> Health {
        let mut health = Health::default();
        assert_eq!(health.failed(&LIMITS, now_ms), None);
        assert_eq!(health.failed(&LIMITS, now_ms), None);
        assert_eq!(health.failed(&LIMITS, now_ms), Some(Ejected { for_ms: 1000, failures: 3 }));
        health
    }

    #[test]
    fn only_failures_in_a_row_eject() {
        let mut health = Health::default();
        for now in 0..100 {
            assert_eq!(health.failed(&LIMITS, now), None);
            assert_eq!(health.failed(&LIMITS, now), None);
            assert!(!health.succeeded());
        }
        assert!(health.takes_requests(100));
    }

    #[test]
    fn a_limit_of_zero_never_ejects() {
        let mut health = Health::default();
        for now in 0..1000 {
            assert_eq!(health.failed(&snapshot::Health { failures: 0, ..LIMITS }, now), None);
        }
        assert!(health.takes_requests(1000));
    }

    #[test]
    fn one_trial_at_a_time_brings_it_back() {
        let mut health = ejected_at(10_000);
        assert!(!health.takes_requests(10_999));
        assert!(health.takes_requests(11_000));
        health.chosen(11_000);
        assert!(!health.takes_requests(11_000));
        assert!(health.succeeded());
        assert!(health.takes_requests(11_000));
        assert!(!health.is_ejected());
    }

    #[test]
    fn failed_trials_double_the_ejection_up_to_the_bound() {
        let mut health = ejected_at(10_000);
        let mut now = 11_000;
        for expected in [2000, 4000, 5000, 5000] {
            assert!(health.takes_requests(now));
            health.chosen(now);
            let ejected = health.failed(&LIMITS, now).unwrap();
            assert_eq!(ejected.for_ms, expected);
            assert!(!health.takes_requests(now + u64::from(expected) - 1));
            now += u64::from(expected);
        }
    }

    #[test]
    fn an_ejection_soon_after_coming_back_is_longer_and_later_begins_anew() {
        let back_at = |now: u64| {
            let mut health = ejected_at(10_000);
            health.chosen(11_000);
            assert!(health.succeeded());
            (0..3).filter_map(|_| health.failed(&LIMITS, now)).last().unwrap()
        };
        assert_eq!(back_at(11_500).for_ms, 2000);
        assert_eq!(back_at(12_000).for_ms, 1000);
    }

    #[test]
    fn requests_sent_before_the_ejection_change_nothing() {
        let mut health = ejected_at(10_000);
        assert!(!health.succeeded());
        assert_eq!(health.failed(&LIMITS, 10_500), None);
        assert!(!health.takes_requests(10_999));
        assert!(health.takes_requests(11_000));
    }

    #[test]
    fn an_attempt_for_want_of_another_can_bring_it_back_but_not_eject_it_longer() {
        let mut health = ejected_at(10_000);
        health.chosen(10_200);
        assert_eq!(health.failed(&LIMITS, 10_300), None);
        assert!(health.takes_requests(11_000));
        health.chosen(10_500);
        assert!(health.takes_requests(11_000), "an attempt before the ejection was over is not the trial");
        assert!(health.succeeded());
        assert!(health.takes_requests(10_501));
    }

    #[test]
    fn a_trial_without_an_outcome_does_not_hold_up_the_next() {
        let mut health = ejected_at(10_000);
        health.chosen(11_000);
        assert!(!health.takes_requests(11_999));
        assert!(health.takes_requests(12_000));
        health.idle();
        assert!(health.takes_requests(11_001));
    }
}
