//! What the names of servers stand for, as workers report it. Part of the master's loop; owns nothing.
//!
//! The master asks no name server while it runs. It keeps the last good answer, so that a worker that is started while
//! the name servers are away knows what its predecessor knew.

use std::rc::Rc;

use ipc::message::MAX_ENDPOINTS;
use ipc::snapshot::{Endpoint, Target};
use log::warn;

use super::Master;

/// Names with what they stand for now, in the order of the reports.
pub(super) type Resolved = Vec<(Target, Vec<Endpoint>)>;

impl Master {
    /// Has workers that start from now on, and the next reading of the configuration, begin with these answers.
    pub(super) fn learn(&mut self, resolved: Resolved) {
        let mut changed = false;
        for (target, mut endpoints) in resolved {
            endpoints.truncate(MAX_ENDPOINTS);
            let names = self.config.snapshot.groups.iter_mut().flat_map(|group| &mut group.names);
            let mut configured = false;
            for named in names.filter(|named| named.target == target) {
                configured = true;
                changed |= named.known != endpoints;
                named.known.clone_from(&endpoints);
            }
            // Of a name that is not configured any more there is nothing to remember.
            if configured {
                self.reload.learn(&target, endpoints);
            }
        }
        if !changed {
            return;
        }
        match ipc::sealed::write(&self.config.snapshot) {
            Ok(sealed) => self.sealed = Rc::new(sealed),
            Err(failed) => warn!("cannot note what names of servers stand for: {failed}; new workers begin with less"),
        }
    }
}
