//! What the names of servers stand for, as workers report it. Part of the master's loop; owns only when that was.
//!
//! The master asks no name server while it runs. It keeps the last good answer, so that a worker that is started while
//! the name servers are away knows what its predecessor knew.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use ipc::control::{NAME_ADDRESSES, NameStatus, STATUS_NAMES, bounded};
use ipc::message::{MAX_ENDPOINTS, MAX_TROUBLE_BYTES, Standing};
use ipc::remembered::{self, Remembered};
use ipc::snapshot::{Endpoint, Target};
use log::warn;

use super::Master;

/// What workers have found out about names, in the order of the reports.
pub(super) type Resolved = Vec<Standing>;

/// When names were looked up, and what came of it; no more of them than the configuration has.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    last: HashMap<Target, Last>,
    /// What was left for the next master; `None` = whatever the former one has left.
    remembered: Option<Vec<Remembered>>,
}

/// The last lookup of a name that has come to an end.
#[derive(Debug, Default)]
struct Last {
    /// When there was an answer.
    good: Option<Instant>,
    /// When it is asked for again, by then.
    again: Option<Instant>,
    /// When there was none, the last time, and why.
    trouble: Option<(Instant, String)>,
}

impl Lookups {
    fn note(&mut self, standing: &Standing, now: Instant) {
        let last = self.last.entry(standing.target.clone()).or_default();
        match &standing.trouble {
            None => last.good = Some(now),
            Some(text) => {
                last.trouble = Some((now, text[..text.floor_char_boundary(MAX_TROUBLE_BYTES)].to_owned()));
            }
        }
        last.again = standing.again_ms.and_then(|ms| now.checked_add(std::time::Duration::from_millis(ms)));
    }
}

impl Master {
    /// Has workers that start from now on, and the next reading of the configuration, begin with these answers.
    pub(super) fn learn(&mut self, resolved: Resolved, now: Instant) {
        let mut changed = false;
        for mut standing in resolved {
            standing.endpoints.truncate(MAX_ENDPOINTS);
            let names = self.config.snapshot.groups.iter_mut().flat_map(|group| &mut group.names);
            let mut configured = false;
            for named in names.filter(|named| named.target == standing.target) {
                configured = true;
                changed |= named.known != standing.endpoints;
                named.known.clone_from(&standing.endpoints);
            }
            // Of a name that is not configured any more there is nothing to remember.
            if configured {
                self.lookups.note(&standing, now);
                self.reload.learn(&standing.target, standing.endpoints);
            }
        }
        if !changed {
            return;
        }
        self.remember_names();
        match ipc::sealed::write(&self.config.snapshot) {
            Ok(sealed) => self.sealed = Rc::new(sealed),
            Err(failed) => warn!("cannot note what names of servers stand for: {failed}; new workers begin with less"),
        }
    }

    /// Leaves what names stand for to a master that comes after this one, however this one ends.
    pub(super) fn remember_names(&mut self) {
        let Some(control) = self.control.as_ref().filter(|_| self.reload.recipe().file.is_some()) else { return };
        let names = self.config.snapshot.groups.iter().filter(|group| !group.removed).flat_map(|group| &group.names);
        let known = names.filter(|named| !named.known.is_empty());
        let mut known: Vec<_> = known.map(|named| (named.target.clone(), named.known.clone())).collect();
        known.sort_by(|(one, _), (other, _)| one.cmp(other));
        known.dedup_by(|(one, _), (other, _)| one == other);
        if self.lookups.remembered.as_ref() == Some(&known) {
            return;
        }
        if let Err(failed) = remembered::write(&remembered::path(control.place()), &known) {
            warn!("cannot note what names of servers stand for: {failed}; the next master begins with less");
        }
        self.lookups.remembered = Some(known);
    }

    /// This master ends, and leaves nothing to anybody.
    pub(super) fn forget_names(&mut self) {
        let left = self.lookups.remembered.as_ref().is_some_and(|names| !names.is_empty());
        if let Some(control) = self.control.as_ref().filter(|_| left) {
            let _ = remembered::write(&remembered::path(control.place()), &[]);
        }
    }

    /// Forgets what the configuration in force does not name.
    pub(super) fn forget_lookups(&mut self) {
        let groups = &self.config.snapshot.groups;
        let configured = |target: &Target| groups.iter().any(|group| group.names.iter().any(|n| n.target == *target));
        self.lookups.last.retain(|target, _| configured(target));
    }

    /// Every name of servers once, for people; the first [`STATUS_NAMES`], and how many there are.
    pub(super) fn names_status(&self, now: Instant) -> (Vec<NameStatus>, u32) {
        let mut seen: HashMap<&Target, &[Endpoint]> = HashMap::new();
        let names = self.config.snapshot.groups.iter().filter(|group| !group.removed).flat_map(|group| &group.names);
        let mut shown = Vec::new();
        for named in names {
            if seen.insert(&named.target, &named.known).is_none() && shown.len() < STATUS_NAMES {
                shown.push(self.name_status(&named.target, &named.known, now));
            }
        }
        (shown, u32::try_from(seen.len()).unwrap_or(u32::MAX))
    }

    fn name_status(&self, target: &Target, known: &[Endpoint], now: Instant) -> NameStatus {
        let last = self.lookups.last.get(target);
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        NameStatus {
            name: bounded(target.to_string()),
            addresses: known.iter().take(NAME_ADDRESSES).map(|one| one.address.to_string()).collect(),
            more: u32::try_from(known.len().saturating_sub(NAME_ADDRESSES)).unwrap_or(u32::MAX),
            good_s: last.and_then(|last| last.good).map(ago),
            again_s: last.and_then(|last| last.again).map(|at| at.saturating_duration_since(now).as_secs()),
            trouble: last.and_then(|last| last.trouble.as_ref()).map(|(at, why)| (ago(*at), why.clone())),
        }
    }
}
