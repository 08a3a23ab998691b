//! What passes between a master and its successor, or between the workers of a dead master and its successor:
//! listening sockets first, live connections once the successor is ready.
//!
//! Until the successor has said that it is ready nothing has changed: if it goes away before, the former side goes
//! on as if nothing had been.

use serde::{Deserialize, Serialize};

use crate::message::Passed;
use crate::snapshot::Address;

/// The version of [`ToSuccessor::Connections`], all in it, and what follows it. A former side that hears of another one from its
/// successor has given its listening sockets by then, and finishes its connections itself. The form of everything else
/// here must never change, and what is added comes last: it is how two versions find out that they differ.
pub const VERSION: u16 = 5;

/// Text in [`ToFormer::Failed`] at most, in bytes.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Descriptors in one message at most.
pub const MAX_DESCRIPTORS: usize = 200;

/// From the successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToFormer {
    /// It has the listening sockets in use: give the connections, and go.
    Ready {
        /// Its [`VERSION`].
        version: u16,
    },
    /// It does not come up.
    Failed {
        /// Why, for people; [`MAX_TEXT_BYTES`] at most.
        why: String,
    },
    /// It is about to serve the connections of the next [`ToSuccessor::Connections`] that it has not said this of: an
    /// orphan keeps them until then. Of those that a living master gives it is not said.
    Taken,
}

/// From the former side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSuccessor {
    /// Listening sockets, as configured; descriptors in the same order.
    Listeners {
        /// Where each is bound.
        bound: Vec<Bound>,
        /// Whether these are the last.
        last: bool,
    },
    /// Connections, each with as many descriptors as its task says.
    Connections(Vec<Handed>),
    /// The last word: there are no more connections. Without it the end of the channel says that this side has died,
    /// or that it is of another version and gives none.
    Everything,
}

/// Where a listening socket is bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// As configured: with port 0 where the kernel was to choose one.
    pub address: Address,
    /// The service manager has it too, and goes on listening when this side stops.
    pub lent: bool,
}

/// One connection on its way to a successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// The listener it was accepted on, which the two sides may number differently.
    pub listener: Address,
    /// The rest; its id, its listener's and its server's numbers mean nothing here.
    pub passed: Passed,
    /// Of a relay, the server it goes to, where that is configured.
    pub server: Option<ServerName>,
}

/// A server, as two masters that number theirs differently both know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerName {
    /// Its group's name.
    pub group: String,
    /// Its address.
    pub address: Address,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;

    #[test]
    fn what_two_versions_say_to_each_other_keeps_its_form() {
        let (mut a, b) = Channel::pair().unwrap();
        let mut sent = |message: &dyn Fn(&mut Channel)| {
            message(&mut a);
            let mut bytes = [0; 64];
            let (_, length) = rustix::net::recv(&b, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
            bytes[..length].to_vec()
        };
        assert_eq!(sent(&|a| a.send(&crate::control::Request::TakeOver, &[]).unwrap()), [0, 3]);
        assert_eq!(sent(&|a| a.send(&ToFormer::Ready { version: 300 }, &[]).unwrap()), [0, 0, 0xac, 2]);
        let failed = ToFormer::Failed { why: "x".to_owned() };
        assert_eq!(sent(&|a| a.send(&failed, &[]).unwrap()), [0, 1, 1, b'x']);
        let address = Address::Unix("/x".into());
        let listeners = ToSuccessor::Listeners { bound: vec![Bound { address, lent: true }], last: true };
        assert_eq!(sent(&|a| a.send(&listeners, &[]).unwrap()), [0, 0, 1, 1, 2, b'/', b'x', 1, 1]);
        let address = Address::Inet("127.0.0.1:80".parse().unwrap());
        let listeners = ToSuccessor::Listeners { bound: vec![Bound { address, lent: false }], last: false };
        assert_eq!(sent(&|a| a.send(&listeners, &[]).unwrap()), [0, 0, 1, 0, 0, 127, 0, 0, 1, 80, 0, 0]);
    }
}
