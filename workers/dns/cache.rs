//! What was answered, for as long as it holds. Bounded: the entry that has not been asked for longest gives way.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::dns::lookup::{Answer, DnsError, Subject};

/// Entries kept.
pub const ENTRIES_MAX: usize = 4096;

#[derive(Debug)]
struct Entry {
    result: Result<Rc<Answer>, DnsError>,
    expires_ms: u64,
    used: u64,
}

/// See the module's description. Names come from clients too, so the table resists flooding (SipHash).
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Rc<Subject>, Entry>,
    /// The same by when each was last asked for.
    order: BTreeMap<u64, Rc<Subject>>,
    clock: u64,
}

impl Cache {
    /// What is known of `subject` and still holds.
    pub fn get(&mut self, subject: &Subject, now_ms: u64) -> Option<Result<Rc<Answer>, DnsError>> {
        let entry = self.entries.get_mut(subject)?;
        if entry.expires_ms <= now_ms {
            let used = entry.used;
            self.entries.remove(subject);
            self.order.remove(&used);
            return None;
        }
        let key = self.order.remove(&entry.used)?;
        self.clock += 1;
        entry.used = self.clock;
        self.order.insert(self.clock, key);
        Some(entry.result.clone())
    }

    /// Keeps what is known of `subject` until `expires_ms`.
    pub fn put(&mut self, subject: Subject, result: Result<Rc<Answer>, DnsError>, expires_ms: u64) {
        self.clock += 1;
        let subject = Rc::new(subject);
        let entry = Entry { result, expires_ms, used: self.clock };
        if let Some(old) = self.entries.insert(Rc::clone(&subject), entry) {
            self.order.remove(&old.used);
        }
        self.order.insert(self.clock, subject);
        while self.entries.len() > ENTRIES_MAX {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.entries.remove(&oldest);
        }
    }

    /// How many entries there are, expired ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::lookup::Wanted;

    fn subject(n: usize) -> Subject {
        Subject { name: format!("n{n}"), absolute: true, wanted: Wanted::Host }
    }

    #[test]
    fn the_entry_not_asked_for_longest_gives_way() {
        let mut cache = Cache::default();
        for n in 0..ENTRIES_MAX {
            cache.put(subject(n), Err(DnsError::NoSuchName), 1000);
        }
        assert!(cache.get(&subject(0), 0).is_some());
        cache.put(subject(ENTRIES_MAX), Err(DnsError::NoSuchName), 1000);
        assert_eq!(cache.len(), ENTRIES_MAX);
        assert!(cache.get(&subject(0), 0).is_some());
        assert!(cache.get(&subject(1), 0).is_none());
        assert!(cache.get(&subject(ENTRIES_MAX), 0).is_some());
    }

    #[test]
    fn an_entry_holds_until_it_expires_and_is_then_forgotten() {
        let mut cache = Cache::default();
        cache.put(subject(1), Err(DnsError::NoSuchName), 1000);
        cache.put(subject(1), Err(DnsError::NoAddress), 2000);
        assert_eq!(cache.get(&subject(1), 1999), Some(Err(DnsError::NoAddress)));
        assert_eq!(cache.get(&subject(1), 2000), None);
        assert!(cache.is_empty() && cache.order.is_empty());
    }
}
