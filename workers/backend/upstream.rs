//! One connection to a server.

use log::warn;

use crate::backend::pool::Place;
use crate::ctx::{Ctx, Owner};
use crate::exchange::Exchange;
use crate::forward::dial::Dial;
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
    /// Races with others to a target that a client has named.
    Racing(Key<Dial>),
}

/// See the module's description.
#[derive(Debug)]
pub struct Upstream {
    /// Its socket.
    pub socket: Socket,
    /// The server it is connected to; `None` when that is not configured (any more): then the connection is not
    /// counted, and not kept for another request.
    pub place: Option<Place>,
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
    /// Whether its last answer was one to be moved without being read, as its next may well be.
    pub answers_at_length: bool,
}

impl Upstream {
    /// A connection to an address that is no configured server's.
    #[must_use]
    pub fn new(socket: Socket, state: UpstreamState, connecting: bool) -> Upstream {
        Upstream {
            socket,
            place: None,
            state,
            connecting,
            reused: false,
            private: false,
            partial: Vec::new(),
            answers_at_length: false,
        }
    }
}

/// Adds a connection and registers it with epoll; `None` when there is no room for it.
pub fn add(upstreams: &mut Slab<Upstream>, upstream: Upstream, cx: &mut Ctx) -> Option<Key<Upstream>> {
    let place = upstream.place;
    let key = upstreams.insert(upstream).ok()?;
    let upstream = upstreams.get_mut(key)?;
    cx.sockets += 1;
    if let Err(error) = cx.register(&mut upstream.socket, Owner::Upstream(key)) {
        warn!("cannot watch a connection to a server: {error}");
        cx.forget(&mut upstream.socket);
        upstreams.remove(key);
        return None;
    }
    if let Some(place) = place {
        cx.pools.opened(place);
    }
    Some(key)
}

/// Ends a connection, wherever it is kept.
pub fn close(upstreams: &mut Slab<Upstream>, key: Key<Upstream>, cx: &mut Ctx) {
    let Some(mut upstream) = upstreams.remove(key) else { return };
    if let Some(place) = upstream.place {
        if upstream.state == UpstreamState::Idle {
            cx.pools.forget_idle(place, key);
        }
        cx.pools.closed(place);
    } else if upstream.state == UpstreamState::Idle {
        cx.origins.forget(key);
    }
    cx.buffers.put(std::mem::take(&mut upstream.partial));
    match upstream.state {
        UpstreamState::Relay(_) => cx.forget(&mut upstream.socket),
        UpstreamState::Idle | UpstreamState::Exchange(_) | UpstreamState::Racing(_) => {
            cx.forget_own(&mut upstream.socket)
        }
    }
}
