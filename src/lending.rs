//! Connections that a worker has given back and still keeps, in case the master is killed before it has passed them on.
//!
//! What the master has said of one stands in the worker's memory: so it is said at once, never waits for room in a
//! channel, and outlives the master.

use std::cell::Cell;
use std::rc::Rc;

use ipc::shm::Control;
use ipc::state::{Image, Phase};

/// A worker that keeps its own copies of a connection that it has given back, until its record says [`Phase::Done`].
#[derive(Debug)]
pub struct Lender {
    control: Rc<Control>,
    id: u32,
    released: Cell<bool>,
}

impl Lender {
    /// The worker with this memory, where the connection has this number. Nobody else has the number until
    /// [`Lender::release`].
    pub fn new(control: Rc<Control>, id: u32) -> Lender {
        Lender { control, id, released: Cell::new(false) }
    }

    /// It is to be passed on: from now on it is this process's alone.
    pub fn release(&self) {
        self.released.set(true);
        if let Some(record) = self.control.record(self.id) {
            record.publish(&Image { phase: Phase::Done, slot: None, offset: 0, consumed: 0, written: 0 });
        }
    }
}

impl Lender {
    /// Whether the worker still has it.
    pub fn keeps(&self) -> bool {
        !self.released.get()
    }
}

impl PartialEq for Lender {
    fn eq(&self, other: &Lender) -> bool {
        Rc::ptr_eq(&self.control, &other.control) && self.id == other.id
    }
}

impl Eq for Lender {}
