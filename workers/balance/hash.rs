//! The two policies that choose by the client's address alone.
//!
//! [`SourceHash`] maps the hash onto a line divided among the servers: quick however many there are, but a changed
//! set moves most clients. [`ConsistentHash`] is weighted rendezvous hashing: every server draws a number for each
//! client, and the best one gets it. A server that goes takes only its own clients along, one that comes takes only
//! its share, a changed weight moves only the difference, and shares are exact. A ring of virtual nodes would
//! give shares off by several per cent at 160 nodes a server and take megabytes for a thousand servers; what the
//! rendezvous costs instead is a look at every server for each choice, as the other policies have it too.
//!
//! Neither remembers anything of what it chose, so all workers and all runs choose the same.

use std::net::IpAddr;

use ipc::snapshot::Address;

use super::random_two::Slices;
use super::{Member, ServerId, mix, scale};

/// The number that stands for a client's address in [`super::GroupState::pick`]: the same in every worker and
/// every run. An IPv4-mapped IPv6 address counts as its IPv4 address. Ports do not matter.
#[must_use]
pub fn source_of(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => mix(u64::from(ip.to_bits())),
        IpAddr::V6(ip) => {
            let [a, b, c, d, e, f, g, h] = ip.segments().map(u64::from);
            mix(mix(a << 48 | b << 32 | c << 16 | d) ^ (e << 48 | f << 32 | g << 16 | h))
        }
    }
}

/// Servers that are not allowed are passed over this often before all are looked at.
const PROBES: u64 = 8;

#[derive(Debug)]
pub(super) struct SourceHash {
    slices: Slices,
}

impl SourceHash {
    pub(super) fn new(members: &[Member]) -> SourceHash {
        SourceHash { slices: Slices::new(members) }
    }

    /// While a server is not allowed only its own clients go elsewhere, each always to the same.
    pub(super) fn pick(&self, source: u64, allowed: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        if self.slices.total() == 0 {
            return None;
        }
        let hash = |probe: u64| mix(source ^ probe.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for probe in 0..PROBES {
            let id = self.slices.id(self.slices.at(scale(hash(probe), self.slices.total())));
            if allowed(id) {
                return Some(id);
            }
        }
        // Divide the line anew among those that are left.
        let left = || (0..self.slices.len()).filter(|&index| allowed(self.slices.id(index)));
        let total = left().map(|index| self.slices.weight(index)).sum();
        let mut point = scale(hash(PROBES), total);
        for index in left() {
            match point.checked_sub(self.slices.weight(index)) {
                Some(rest) => point = rest,
                None => return Some(self.slices.id(index)),
            }
        }
        None
    }
}

#[derive(Debug)]
pub(super) struct ConsistentHash {
    contenders: Vec<Contender>,
    /// All weights are the same.
    uniform: bool,
}

#[derive(Debug)]
struct Contender {
    id: ServerId,
    weight: u16,
    /// Made of the server's address, so that it does not depend on the rest of the configuration.
    salt: u64,
}

impl ConsistentHash {
    pub(super) fn new<'a>(members: &[Member], address: impl Fn(ServerId) -> &'a Address) -> ConsistentHash {
        let contender = |member: &Member| Contender {
            id: member.id,
            weight: member.weight,
            salt: hash_bytes(address(member.id).to_string().as_bytes()),
        };
        ConsistentHash {
            contenders: members.iter().map(contender).collect(),
            uniform: members.windows(2).all(|pair| pair[0].weight == pair[1].weight),
        }
    }

    pub(super) fn pick(&self, source: u64, allowed: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        if self.uniform { self.pick_uniform(source, allowed) } else { self.pick_weighted(source, allowed) }
    }

    /// With equal weights the highest number wins, as it would below.
    fn pick_uniform(&self, source: u64, allowed: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        let mut best: Option<(u64, ServerId)> = None;
        for &Contender { id, salt, .. } in &self.contenders {
            let number = mix(source ^ salt);
            if best.is_none_or(|(best, _)| number > best) && allowed(id) {
                best = Some((number, id));
            }
        }
        best.map(|(_, id)| id)
    }

    /// Each contender's time is an exponential variate with its weight as the rate; the first to arrive is each of
    /// them with a probability in proportion to its weight.
    fn pick_weighted(&self, source: u64, allowed: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        let mut first: Option<(f64, ServerId)> = None;
        for &Contender { id, weight, salt } in &self.contenders {
            // 53 bits, which an f64 holds exactly; above 0 and at most 1.
            let uniform = ((mix(source ^ salt) >> 11) + 1) as f64 / (1u64 << 53) as f64;
            let weight = f64::from(weight);
            // -ln(x) >= 1 - x: nearly all are known to come later without their logarithm.
            if first.is_some_and(|(first, _)| 1.0 - uniform > first * weight) {
                continue;
            }
            let arrival = -uniform.ln() / weight;
            if first.is_none_or(|(first, _)| arrival < first) && allowed(id) {
                first = Some((arrival, id));
            }
        }
        first.map(|(_, id)| id)
    }
}

/// FNV-1a, finished by [`mix`]. Its input is configuration, so nobody can aim at collisions.
fn hash_bytes(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}
