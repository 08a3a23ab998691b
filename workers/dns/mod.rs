//! Names to addresses, without ever blocking the loop.
//!
//! [`resolver`] is the core: it owns no socket and no clock. [`message`] reads and writes DNS messages, [`answer`]
//! follows aliases, [`cache`] keeps what still holds, [`servers`] knows which name servers fail, [`room`] who may
//! begin another lookup. [`sockets`] is the thin part that sends and receives. [`discover`] turns the names of servers into
//! addresses with ports, and [`once`] does so for a process that has nothing else to do meanwhile.

pub mod answer;
pub mod cache;
pub mod discover;
#[cfg(test)]
#[path = "../../fuzz/checks/dns_message.rs"]
mod fuzz;
pub mod lookup;
pub mod message;
pub mod name;
pub mod once;
mod random;
pub mod resolver;
pub mod room;
pub mod servers;
pub mod sockets;

pub use lookup::{Aliases, Answer, DnsError, Lookup};
pub use sockets::{Resolving, Wire};
