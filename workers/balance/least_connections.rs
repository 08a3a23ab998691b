//! The fewest requests in progress per weight; among equals, smooth weighted round robin.
//!
//! Without that second rule a group with little to do would send everything to its first server. A choice takes
//! time in proportion to the number of servers.

use super::round_robin::RoundRobin;
use super::{Member, Random, Server, ServerId};

#[derive(Debug)]
pub(super) struct LeastConnections {
    turns: RoundRobin,
}

impl LeastConnections {
    pub(super) fn new(members: &[Member], random: &mut Random) -> LeastConnections {
        LeastConnections { turns: RoundRobin::new(members, random) }
    }

    pub(super) fn inherit(&mut self, old: &LeastConnections, new_id: impl Fn(ServerId) -> Option<ServerId>) {
        self.turns.inherit(&old.turns, new_id);
    }

    pub(super) fn pick(&mut self, servers: &[Server], allowed: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        let mut least: Option<&Server> = None;
        for id in self.turns.ids() {
            let server = &servers[usize::from(id)];
            if least.is_none_or(|least| load_is_less(server, least)) && allowed(id) {
                least = Some(server);
                if server.active == 0 {
                    break;
                }
            }
        }
        let least = least?;
        self.turns.pick(|id| !load_is_less(least, &servers[usize::from(id)]) && allowed(id))
    }
}

/// Whether `a` has fewer requests in progress per weight than `b`.
pub(super) fn load_is_less(a: &Server, b: &Server) -> bool {
    u64::from(a.active) * u64::from(b.weight) < u64::from(b.active) * u64::from(a.weight)
}
