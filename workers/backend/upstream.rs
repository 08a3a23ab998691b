//! One connection to a server.

use ipc::snapshot::GroupId;

use crate::exchange::Exchange;
use crate::io::socket::Socket;
use crate::relay::Relay;
use crate::slab::Key;

/// What a connection to a server is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamState {
    /// Kept for the next request.
    Idle,
    /// Serves a request.
    Exchange(Key<Exchange>),
    /// Serves a relay.
    Relay(Key<Relay>),
}

/// See the module's description.
#[derive(Debug)]
pub struct Upstream {
    /// Its socket.
    pub socket: Socket,
    /// Whose server it is connected to.
    pub group: GroupId,
    /// Which of them.
    pub server: u16,
    /// What it is used for.
    pub state: UpstreamState,
    /// Whether the connection does not stand yet.
    pub connecting: bool,
    /// Whether it has served a request before: then its death says nothing about the server.
    pub reused: bool,
    /// A response head that has not come whole; empty otherwise.
    pub partial: Vec<u8>,
}
