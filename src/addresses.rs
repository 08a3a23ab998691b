//! How many connections each client address has, where the configuration bounds them. Holds no connection.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Live connections per client address, where the configuration bounds them.
#[derive(Debug)]
pub struct Addresses {
    limit: Option<u32>,
    // Keyed by what clients choose: the standard hasher resists flooding.
    counts: HashMap<IpAddr, u32>,
}

impl Addresses {
    /// Nobody is connected; at most `limit` from one address.
    pub fn new(limit: Option<u32>) -> Addresses {
        Addresses { limit, counts: HashMap::new() }
    }

    /// Counts a new connection, and says whether its address is within the limit.
    pub fn enter(&mut self, peer: Option<SocketAddr>) -> bool {
        let (Some(limit), Some(peer)) = (self.limit, peer) else { return true };
        let count = self.counts.entry(peer.ip().to_canonical()).or_insert(0);
        *count += 1;
        *count <= limit
    }

    /// Counts a connection's end.
    pub fn leave(&mut self, peer: Option<SocketAddr>) {
        let (Some(_), Some(peer)) = (self.limit, peer) else { return };
        let ip = peer.ip().to_canonical();
        if let Some(count) = self.counts.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_in_and_out() {
        let mut addresses = Addresses::new(Some(2));
        let peer = "192.0.2.1:1".parse().ok();
        let mapped = "[::ffff:192.0.2.1]:2".parse().ok();
        assert!(addresses.enter(peer) && addresses.enter(mapped) && !addresses.enter(peer));
        assert!(addresses.enter("192.0.2.2:1".parse().ok()) && addresses.enter(None));
        addresses.leave(peer);
        addresses.leave(mapped);
        assert!(addresses.enter(peer) && !addresses.enter(peer));
    }
}
