//! One connection to a server.

use ipc::snapshot::GroupId;

use log::warn;

use crate::ctx::{Ctx, Owner};
use crate::exchange::Exchange;
use crate::io::socket::Socket;
use crate::relay::Relay;
use crate::slab::{Key, Slab};

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
    /// Whether it began with a PROXY header, so that it may serve one client's connection only.
    pub private: bool,
    /// A response head that has not come whole; empty otherwise.
    pub partial: Vec<u8>,
}

/// Adds a connection and registers it with epoll; `None` when there is no room for it.
pub fn add(upstreams: &mut Slab<Upstream>, upstream: Upstream, cx: &mut Ctx) -> Option<Key<Upstream>> {
    let (group, server) = (upstream.group, upstream.server);
    let key = upstreams.insert(upstream).ok()?;
    let upstream = upstreams.get_mut(key)?;
    cx.sockets += 1;
    if let Err(error) = cx.register(&mut upstream.socket, Owner::Upstream(key)) {
        warn!("cannot watch a connection to a server: {error}");
        cx.forget(&mut upstream.socket);
        upstreams.remove(key);
        return None;
    }
    cx.pools.opened(group, server);
    Some(key)
}

/// Ends a connection, wherever it is kept.
pub fn close(upstreams: &mut Slab<Upstream>, key: Key<Upstream>, cx: &mut Ctx) {
    let Some(mut upstream) = upstreams.remove(key) else { return };
    if upstream.state == UpstreamState::Idle {
        cx.pools.forget_idle(upstream.group, upstream.server, key);
    }
    cx.pools.closed(upstream.group, upstream.server);
    cx.buffers.put(std::mem::take(&mut upstream.partial));
    cx.forget(&mut upstream.socket);
}
