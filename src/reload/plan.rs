//! What a new configuration means for the listeners, groups and servers there are. Pure: it binds and closes nothing.
//!
//! The snapshot that workers get is not quite the one that was read: listeners keep their numbers, servers keep
//! theirs, and what is no longer configured stays in it, marked as removed, while connections of it are left.

use std::collections::HashMap;

use ipc::snapshot::{Address, GroupId, Listener, ListenerId, Snapshot};

/// What is left of a listener when the plan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Its socket is open.
    pub socket: bool,
    /// Connections accepted there are open.
    pub connections: bool,
}

/// What is to be done about one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The listener's socket stays. Its backlog and permissions may be others.
    Keep(ListenerId),
    /// The socket of `from` becomes that of another listener, on which something else is spoken.
    Turn {
        /// Whose it was.
        from: ListenerId,
        /// Whose it is.
        to: ListenerId,
    },
    /// There is none yet.
    Bind(ListenerId),
    /// It is closed once its queue is empty.
    Close(ListenerId),
}

/// See the module's description.
#[derive(Debug)]
pub struct Plan {
    /// For the workers, and for the next plan.
    pub snapshot: Snapshot,
    /// For the sockets, each open or wanted one once.
    pub changes: Vec<Change>,
    /// The next number for a server.
    pub next_number: u64,
}

/// How `new`, as it was read, follows `old`, as [`plan`] made it. `left` says what is left of each old listener;
/// `next_number` is above every number that a server ever had.
///
/// # Errors
/// When there are more listeners and groups with connections than can be numbered, in words for the operator.
pub fn plan(
    old: &Snapshot,
    mut new: Snapshot,
    left: impl Fn(ListenerId) -> Left,
    mut next_number: u64,
) -> Result<Plan, String> {
    let numbers: HashMap<(&str, &Address), u64> = old
        .groups
        .iter()
        .flat_map(|group| group.servers.iter().map(|server| ((group.name.as_str(), &server.address), server.number)))
        .collect();
    for group in &mut new.groups {
        for server in &mut group.servers {
            server.number = numbers.get(&(group.name.as_str(), &server.address)).copied().unwrap_or_else(|| {
                next_number += 1;
                next_number - 1
            });
        }
    }
    let left: Vec<Left> = (0..).zip(&old.listeners).map(|(id, _)| left(id)).collect();
    let mut changes = Vec::new();
    let mut slots: Vec<Option<Listener>> = old.listeners.iter().map(|_| None).collect();
    let mut taken = vec![false; old.listeners.len()];
    // Those that need a number, with the one whose socket they get.
    let mut unnumbered: Vec<(Option<ListenerId>, Listener)> = Vec::new();
    for listener in std::mem::take(&mut new.listeners) {
        let same = |at: &usize| left[*at].socket && !taken[*at] && old.listeners[*at].bind == listener.bind;
        let Some(at) = (0..old.listeners.len()).find(same) else {
            unnumbered.push((None, listener));
            continue;
        };
        taken[at] = true;
        let id = number(at)?;
        if old.listeners[at].mode == listener.mode {
            slots[at] = Some(listener);
            changes.push(Change::Keep(id));
        } else {
            unnumbered.push((Some(id), listener));
        }
    }
    let mut retained: HashMap<String, GroupId> =
        (0..).zip(&new.groups).map(|(id, group)| (group.name.clone(), id)).collect();
    for (at, former) in old.listeners.iter().enumerate().filter(|(at, _)| slots[*at].is_none()).collect::<Vec<_>>() {
        let closing = left[at].socket && !taken[at];
        if closing {
            changes.push(Change::Close(number(at)?));
        }
        if closing || left[at].connections {
            let to = former.to.and_then(|id| old.groups.get(usize::from(id)));
            let to = match to {
                Some(group) => Some(match retained.get(&group.name) {
                    Some(id) => *id,
                    None => {
                        let id = GroupId::try_from(new.groups.len()).map_err(|_| too_many("backend groups"))?;
                        let mut group = group.clone();
                        group.removed = true;
                        retained.insert(group.name.clone(), id);
                        new.groups.push(group);
                        id
                    }
                }),
                None => None,
            };
            slots[at] = Some(Listener { to, removed: true, ..former.clone() });
        }
    }
    for (from, listener) in unnumbered {
        let at = slots.iter().position(Option::is_none).unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        let id = number(at)?;
        slots[at] = Some(listener);
        changes.push(from.map_or(Change::Bind(id), |from| Change::Turn { from, to: id }));
    }
    while slots.last().is_some_and(Option::is_none) {
        slots.pop();
    }
    // A number that nobody has: what stands there is never looked at.
    let nobody = |at: usize| Listener { to: None, removed: true, ..old.listeners[at].clone() };
    new.listeners = slots.into_iter().enumerate().map(|(at, slot)| slot.unwrap_or_else(|| nobody(at))).collect();
    new.generation = old.generation + 1;
    Ok(Plan { snapshot: new, changes, next_number })
}

fn number(at: usize) -> Result<ListenerId, String> {
    ListenerId::try_from(at).map_err(|_| too_many("listeners"))
}

fn too_many(what: &str) -> String {
    format!("there are too many {what} that were removed and still have connections; try again when some have ended")
}

#[cfg(test)]
mod tests;
