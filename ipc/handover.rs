//! What passes between a master and its successor, or between the workers of a dead master and its successor:
//! listening sockets first, live connections once the successor is ready.
//!
//! Until the successor has said that it is ready nothing has changed: if it goes away before, the former side goes
//! on as if nothing had been.

use serde::{Deserialize, Serialize};

use crate::message::Passed;
use crate::snapshot::Address;

/// The version of these messages. A former side that is asked in another one gives its listening sockets only, and
/// finishes its connections itself.
pub const VERSION: u16 = 1;

/// Descriptors in one message at most.
pub const MAX_DESCRIPTORS: usize = 200;

/// From the successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToFormer {
    /// It has the listening sockets in use: give the connections, and go.
    Ready,
}

/// From the former side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSuccessor {
    /// Listening sockets, as configured; descriptors in the same order.
    Listeners {
        /// Where each is bound.
        bound: Vec<Address>,
        /// Whether these are the last.
        last: bool,
    },
    /// Connections, each with as many descriptors as its task says. The end of the channel says that there are no more.
    Connections(Vec<Handed>),
}

/// One connection on its way to a successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// The listener it was accepted on, which the two sides may number differently.
    pub listener: Address,
    /// The rest; its id and listener number mean nothing here.
    pub passed: Passed,
}
