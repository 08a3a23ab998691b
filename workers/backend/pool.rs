//! The servers of every group as one worker sees them: which to choose, and the idle connections kept to each.
//!
//! It holds keys of connections, never the connections themselves.

use ipc::snapshot::{Group, GroupId, Snapshot};

use crate::backend::Upstream;
use crate::balance::{GroupState, ServerId};
use crate::slab::Key;

/// One server's connections.
#[derive(Debug, Default)]
struct Server {
    /// Idle, the latest last: the warmest is used first, and those at the front time out.
    idle: Vec<Key<Upstream>>,
    /// Open ones, idle or not.
    open: u32,
}

#[derive(Debug)]
struct GroupPool {
    balance: GroupState,
    servers: Vec<Server>,
    idle_per_server: usize,
    max_per_server: u32,
}

/// See the module's description. Indices are those of the snapshot.
#[derive(Debug)]
pub struct Pools {
    groups: Vec<GroupPool>,
}

impl Pools {
    /// Empty pools for every group of `snapshot`. `seed` differs between workers, so that they do not all begin
    /// with the same server.
    #[must_use]
    pub fn new(snapshot: &Snapshot, seed: u64) -> Pools {
        let group = |group: &Group| GroupPool {
            balance: GroupState::new(group, seed),
            servers: group.servers.iter().map(|_| Server::default()).collect(),
            idle_per_server: group.keepalive.idle_per_server as usize,
            max_per_server: group.keepalive.max_per_server.unwrap_or(u32::MAX),
        };
        Pools { groups: snapshot.groups.iter().map(group).collect() }
    }

    /// The server for a request or connection of `source`; `None` when every one is in `tried` or has no room.
    pub fn pick(&mut self, group: GroupId, source: u64, now_ms: u64, tried: &[ServerId]) -> Option<ServerId> {
        let GroupPool { balance, servers, max_per_server, .. } = self.groups.get_mut(usize::from(group))?;
        let full = |id: ServerId| {
            servers.get(usize::from(id)).is_some_and(|server| server.idle.is_empty() && server.open >= *max_per_server)
        };
        balance.pick(source, now_ms, tried, full)
    }

    /// Server choice and health of a group.
    pub fn balance(&mut self, group: GroupId) -> &mut GroupState {
        &mut self.groups[usize::from(group)].balance
    }

    /// An idle connection to a server.
    pub fn take_idle(&mut self, group: GroupId, server: ServerId) -> Option<Key<Upstream>> {
        self.server(group, server).idle.pop()
    }

    /// Keeps an idle connection; false when there are enough.
    #[must_use]
    pub fn put_idle(&mut self, group: GroupId, server: ServerId, key: Key<Upstream>) -> bool {
        let most = self.groups[usize::from(group)].idle_per_server;
        let server = self.server(group, server);
        if server.idle.len() >= most {
            return false;
        }
        server.idle.push(key);
        true
    }

    /// An idle connection is being closed.
    pub fn forget_idle(&mut self, group: GroupId, server: ServerId, key: Key<Upstream>) {
        let idle = &mut self.server(group, server).idle;
        // Those that time out, or are closed by their server for that, are at the front.
        if let Some(at) = idle.iter().position(|&kept| kept == key) {
            idle.remove(at);
        }
    }

    /// A connection to a server was opened.
    pub fn opened(&mut self, group: GroupId, server: ServerId) {
        self.server(group, server).open += 1;
    }

    /// A connection to a server was closed.
    pub fn closed(&mut self, group: GroupId, server: ServerId) {
        let server = self.server(group, server);
        server.open = server.open.saturating_sub(1);
    }

    /// All idle connections, to close them.
    pub fn take_all_idle(&mut self) -> Vec<Key<Upstream>> {
        self.groups.iter_mut().flat_map(|group| &mut group.servers).flat_map(|server| server.idle.drain(..)).collect()
    }

    fn server(&mut self, group: GroupId, server: ServerId) -> &mut Server {
        &mut self.groups[usize::from(group)].servers[usize::from(server)]
    }
}
