//! What records come to: following aliases, putting both families together, and how long it all holds.
//!
//! Pure. Bounds: [`CHAIN_MAX`] aliases, [`ADDRESSES_MAX`] addresses or services.

use std::net::IpAddr;

use crate::dns::lookup::DnsError;
use crate::dns::message::{Data, Outcome, Record, Reply, Service};

/// Aliases followed for one name, over all answers.
pub const CHAIN_MAX: u8 = 8;
/// Addresses of each family, or services, taken from an answer.
pub const ADDRESSES_MAX: usize = 64;
/// An answer holds for no less: a TTL of 0 would mean a question for every request.
pub const TTL_MIN_MS: u64 = 1000;
/// And for no longer.
pub const TTL_MAX_MS: u64 = 24 * 3600 * 1000;
/// That there is nothing holds for no longer (RFC 2308 section 5 allows three hours).
pub const NEGATIVE_MAX_MS: u64 = 30_000;
/// That nobody could say holds so long (RFC 9520 section 3.2).
pub const FAILURE_MS: u64 = 1000;
/// An answer that lacks a family because its servers failed holds for no longer.
pub const LACKING_MAX_MS: u64 = 5000;

/// What the records of one kind came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The addresses or services, or why there are none.
    pub found: Result<Found, DnsError>,
    /// How long that holds, in seconds; `None` = nobody said.
    pub ttl: Option<u32>,
}

/// Records of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Of A or AAAA records.
    Addresses(Vec<IpAddr>),
    /// Of SRV records.
    Services(Vec<Service>),
}

/// What an answer means for the question about `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// It is answered.
    Done(Part),
    /// It is an alias for this name, of which the answer does not tell. So many aliases were followed, and the
    /// shortest TTL among them is this.
    Ask(String, u8, u32),
}

/// Follows the aliases in `reply`, from `name` on, of which `hops` have been followed before.
#[must_use]
pub fn follow(reply: &Reply, name: &str, mut hops: u8, mut ttl: u32) -> Meaning {
    let failed = |error| Meaning::Done(Part { found: Err(error), ttl: None });
    let mut name = name;
    loop {
        let (mut addresses, mut services) = (Vec::new(), Vec::new());
        let mut alias: Option<(&str, u32)> = None;
        let mut least = ttl;
        for Record { ttl, data, .. } in reply.records.iter().filter(|record| record.owner == name) {
            match data {
                Data::A(ip) => addresses.push(IpAddr::V4(*ip)),
                Data::Aaaa(ip) => addresses.push(IpAddr::V6(*ip)),
                Data::Srv(service) => services.push(service.clone()),
                Data::Cname(to) => {
                    alias = alias.or(Some((to.as_str(), *ttl)));
                    continue;
                }
            }
            least = least.min(*ttl);
        }
        addresses.truncate(ADDRESSES_MAX);
        services.truncate(ADDRESSES_MAX);
        if !addresses.is_empty() {
            return Meaning::Done(Part { found: Ok(Found::Addresses(addresses)), ttl: Some(least) });
        }
        if !services.is_empty() {
            return Meaning::Done(Part { found: Ok(Found::Services(services)), ttl: Some(least) });
        }
        let Some((to, alias_ttl)) = alias else { break };
        hops += 1;
        if hops > CHAIN_MAX {
            return failed(DnsError::AliasesTooLong);
        }
        if to.is_empty() {
            return failed(DnsError::NoSuchName);
        }
        (name, ttl) = (to, ttl.min(alias_ttl));
    }
    let negative = |error| {
        let said = reply.negative_ttl.map(|said| said.min(ttl));
        Meaning::Done(Part { found: Err(error), ttl: said })
    };
    match reply.outcome {
        // What RFC 2308 section 2.1 says of NXDOMAIN, it says of the last name of the chain.
        Outcome::NoSuchName => negative(DnsError::NoSuchName),
        // Without an SOA record it is not said that the chain's end has no such records (RFC 2308 section 2.2).
        Outcome::Ok if !reply.records.is_empty() && reply.negative_ttl.is_none() && hops > 0 => {
            Meaning::Ask(name.to_owned(), hops, ttl)
        }
        Outcome::Ok => negative(DnsError::NoAddress),
        Outcome::FormatError => failed(DnsError::ServerFailure(1)),
        Outcome::Failure(code) => failed(DnsError::ServerFailure(code)),
    }
}

/// Addresses in the order in which they are to be tried: alternately of each family, IPv6 first (RFC 8305
/// section 4). Within a family the order is the server's.
#[must_use]
pub fn interleave(v6: &[IpAddr], v4: &[IpAddr]) -> Vec<IpAddr> {
    let mut all = Vec::with_capacity(v6.len() + v4.len());
    for at in 0..v6.len().max(v4.len()) {
        for address in [v6.get(at), v4.get(at)].into_iter().flatten() {
            if !all.contains(address) {
                all.push(*address);
            }
        }
    }
    all
}

/// How long an answer with this TTL holds.
#[must_use]
pub fn holds_ms(ttl: u32) -> u64 {
    (u64::from(ttl) * 1000).clamp(TTL_MIN_MS, TTL_MAX_MS)
}

/// How long it holds that there is nothing.
#[must_use]
pub fn negative_ms(ttl: Option<u32>) -> u64 {
    ttl.map_or(TTL_MIN_MS, holds_ms).min(NEGATIVE_MAX_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(records: &[(&str, &str)], outcome: Outcome, negative_ttl: Option<u32>) -> Reply {
        let data = |text: &str| match text.parse() {
            Ok(IpAddr::V4(ip)) => Data::A(ip),
            Ok(IpAddr::V6(ip)) => Data::Aaaa(ip),
            Err(_) => Data::Cname(text.to_owned()),
        };
        let mut ttl = 100;
        let mut record = |&(owner, text): &(&str, &str)| {
            ttl -= 1;
            Record { owner: owner.to_owned(), ttl, data: data(text) }
        };
        let records = records.iter().map(&mut record).collect();
        Reply { outcome, truncated: false, records, negative_ttl }
    }

    fn found(addresses: &[[u8; 4]], ttl: u32) -> Meaning {
        let addresses = addresses.iter().map(|&ip| ip.into()).collect();
        Meaning::Done(Part { found: Ok(Found::Addresses(addresses)), ttl: Some(ttl) })
    }

    #[test]
    fn aliases_are_followed_in_any_order_and_strangers_ignored() {
        let reply = reply(
            &[("c", "10.0.0.1"), ("x", "10.6.6.6"), ("b", "c"), ("a", "b"), ("c", "10.0.0.2")],
            Outcome::Ok,
            None,
        );
        assert_eq!(follow(&reply, "a", 0, u32::MAX), found(&[[10, 0, 0, 1], [10, 0, 0, 2]], 95));
    }

    #[test]
    fn a_loop_of_aliases_ends() {
        let reply = reply(&[("a", "b"), ("b", "a")], Outcome::Ok, None);
        assert!(matches!(
            follow(&reply, "a", 0, u32::MAX),
            Meaning::Done(Part { found: Err(DnsError::AliasesTooLong), .. })
        ));
    }

    #[test]
    fn the_end_of_a_chain_is_asked_for_unless_the_answer_denies_it() {
        let open = reply(&[("a", "b")], Outcome::Ok, None);
        assert_eq!(follow(&open, "a", 1, 50), Meaning::Ask("b".to_owned(), 2, 50));
        let denied = reply(&[("a", "b")], Outcome::Ok, Some(7));
        let part = |error, ttl| Meaning::Done(Part { found: Err(error), ttl });
        assert_eq!(follow(&denied, "a", 0, u32::MAX), part(DnsError::NoAddress, Some(7)));
        let gone = reply(&[("a", "b")], Outcome::NoSuchName, Some(700));
        assert_eq!(follow(&gone, "a", 0, u32::MAX), part(DnsError::NoSuchName, Some(99)));
    }

    #[test]
    fn families_alternate_and_ipv6_begins() {
        let v6: Vec<IpAddr> = ["::1", "::2", "::3"].iter().map(|ip| ip.parse().unwrap()).collect();
        let v4: Vec<IpAddr> = vec![[10, 0, 0, 1].into()];
        assert_eq!(interleave(&v6, &v4), [v6[0], v4[0], v6[1], v6[2]]);
        assert_eq!(interleave(&[], &v4), v4);
    }

    #[test]
    fn times_are_clamped() {
        assert_eq!((holds_ms(0), holds_ms(30), holds_ms(u32::MAX)), (TTL_MIN_MS, 30_000, TTL_MAX_MS));
        assert_eq!((negative_ms(None), negative_ms(Some(3600)), negative_ms(Some(5))), (1000, NEGATIVE_MAX_MS, 5000));
    }
}
