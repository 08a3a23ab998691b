//! What records come to: following aliases, putting both families together, and how long it all holds.
//!
//! Pure. Bounds: [`CHAIN_MAX`] aliases, [`ADDRESSES_MAX`] addresses or services.

use std::net::IpAddr;

use crate::dns::lookup::DnsError;
use crate::dns::message::{Data, Outcome, Record, Reply, Service};
use crate::dns::name;

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
    /// The aliases that led there.
    pub aliases: Vec<String>,
}

impl Part {
    /// Nothing was found.
    #[must_use]
    pub fn failed(error: DnsError) -> Part {
        Part { found: Err(error), ttl: None, aliases: Vec::new() }
    }
}

/// The way from the name that was asked for through its aliases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trail {
    /// The name, and each that it turned out to be an alias for; at most [`CHAIN_MAX`] of these.
    names: Vec<String>,
    /// The shortest TTL among them.
    ttl: u32,
}

impl Trail {
    /// From this name on.
    #[must_use]
    pub fn new(name: String) -> Trail {
        Trail { names: vec![name], ttl: u32::MAX }
    }

    /// Where it has come to.
    #[must_use]
    pub fn end(&self) -> &str {
        self.names.last().map_or("", String::as_str)
    }

    /// The names behind the first.
    #[must_use]
    pub fn aliases(&self) -> &[String] {
        self.names.get(1..).unwrap_or_default()
    }

    /// One alias further.
    fn step(&mut self, to: &str, ttl: u32) -> Result<(), DnsError> {
        if to.is_empty() || name::is_invalid(to) {
            return Err(DnsError::NoSuchName);
        }
        if !name::may_be_alias_target(to) {
            return Err(DnsError::BadAlias);
        }
        if self.names.len() > usize::from(CHAIN_MAX) || self.names.iter().any(|name| name == to) {
            return Err(DnsError::AliasesTooLong);
        }
        self.names.push(to.to_owned());
        self.ttl = self.ttl.min(ttl);
        Ok(())
    }
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
    /// It is an alias for a name, of which the answer does not tell.
    Ask(Trail),
}

/// Follows the aliases in `reply` from the end of `trail` on.
#[must_use]
pub fn follow(reply: &Reply, mut trail: Trail) -> Meaning {
    let before = trail.names.len();
    loop {
        let (mut addresses, mut services) = (Vec::new(), Vec::new());
        let mut alias: Option<(&str, u32)> = None;
        let mut least = trail.ttl;
        for Record { ttl, data, .. } in reply.records.iter().filter(|record| record.owner == trail.end()) {
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
        let found = match (addresses.is_empty(), services.is_empty()) {
            (false, _) => Some(Found::Addresses(addresses)),
            (true, false) => Some(Found::Services(services)),
            (true, true) => None,
        };
        if let Some(found) = found {
            return Meaning::Done(Part { found: Ok(found), ttl: Some(least), aliases: trail.aliases().to_vec() });
        }
        let Some((to, alias_ttl)) = alias else { break };
        if let Err(error) = trail.step(to, alias_ttl) {
            return Meaning::Done(Part::failed(error));
        }
    }
    let negative = |error| {
        let said = reply.negative_ttl.map(|said| said.min(trail.ttl));
        Meaning::Done(Part { ttl: said, ..Part::failed(error) })
    };
    match reply.outcome {
        // What RFC 2308 section 2.1 says of NXDOMAIN, it says of the last name of the chain.
        Outcome::NoSuchName => negative(DnsError::NoSuchName),
        // Without an SOA record it is not said that the chain's end has no such records (RFC 2308 section 2.2). A name
        // that the answer leads no further from has just been asked for.
        Outcome::Ok if reply.negative_ttl.is_none() && trail.names.len() > before => Meaning::Ask(trail),
        Outcome::Ok => negative(DnsError::NoAddress),
        Outcome::FormatError => Meaning::Done(Part::failed(DnsError::ServerFailure(1))),
        Outcome::Failure(code) => Meaning::Done(Part::failed(DnsError::ServerFailure(code))),
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

    fn from(names: &[&str], ttl: u32) -> Trail {
        Trail { names: names.iter().map(|&name| name.to_owned()).collect(), ttl }
    }

    fn failed(error: DnsError, ttl: Option<u32>) -> Meaning {
        Meaning::Done(Part { ttl, ..Part::failed(error) })
    }

    #[test]
    fn aliases_are_followed_in_any_order_and_strangers_ignored() {
        let reply = reply(
            &[("c", "10.0.0.1"), ("x", "10.6.6.6"), ("b", "c"), ("a", "b"), ("c", "10.0.0.2")],
            Outcome::Ok,
            None,
        );
        let found = Found::Addresses(vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]);
        let part = Part { found: Ok(found), ttl: Some(95), aliases: vec!["b".to_owned(), "c".to_owned()] };
        assert_eq!(follow(&reply, from(&["a"], u32::MAX)), Meaning::Done(part));
    }

    #[test]
    fn a_loop_of_aliases_ends_where_it_closes() {
        let circle = reply(&[("a", "b"), ("b", "a")], Outcome::Ok, None);
        assert_eq!(follow(&circle, from(&["a"], 9)), failed(DnsError::AliasesTooLong, None));
        let back = reply(&[("b", "a")], Outcome::Ok, None);
        assert_eq!(follow(&back, from(&["a", "b"], 9)), failed(DnsError::AliasesTooLong, None));
        let itself = reply(&[("a", "a")], Outcome::Ok, None);
        assert_eq!(follow(&itself, from(&["a"], 9)), failed(DnsError::AliasesTooLong, None));
    }

    #[test]
    fn a_chain_of_aliases_is_bounded() {
        let names: Vec<String> = (0..=usize::from(CHAIN_MAX) + 1).map(|n| format!("n{n}")).collect();
        let links: Vec<(&str, &str)> = names.windows(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
        let long = |links: &[(&str, &str)]| follow(&reply(links, Outcome::Ok, None), from(&["n0"], 9));
        assert!(matches!(long(&links[1..]), Meaning::Done(_)));
        assert_eq!(long(&links), failed(DnsError::AliasesTooLong, None));
        assert!(matches!(long(&links[..usize::from(CHAIN_MAX)]), Meaning::Ask(trail) if trail.end() == "n8"));
    }

    #[test]
    fn aliases_for_numbers_and_for_this_machine_are_refused_at_once() {
        for (to, why) in [
            ("127.1", DnsError::BadAlias),
            ("2130706433", DnsError::BadAlias),
            ("0x7f.1", DnsError::BadAlias),
            ("localhost", DnsError::BadAlias),
            ("a.localhost", DnsError::BadAlias),
            ("a.invalid", DnsError::NoSuchName),
            ("", DnsError::NoSuchName),
        ] {
            let told = reply(&[("a", to), (to, "10.0.0.1")], Outcome::Ok, None);
            assert_eq!(follow(&told, from(&["a"], 9)), failed(why, None), "{to}");
            assert_eq!(follow(&reply(&[("a", to)], Outcome::Ok, None), from(&["a"], 9)), failed(why, None), "{to}");
        }
    }

    #[test]
    fn the_end_of_a_chain_is_asked_for_unless_the_answer_denies_it() {
        let open = reply(&[("a", "b")], Outcome::Ok, None);
        assert_eq!(follow(&open, from(&["z", "a"], 50)), Meaning::Ask(from(&["z", "a", "b"], 50)));
        let denied = reply(&[("a", "b")], Outcome::Ok, Some(7));
        assert_eq!(follow(&denied, from(&["a"], u32::MAX)), failed(DnsError::NoAddress, Some(7)));
        let gone = reply(&[("a", "b")], Outcome::NoSuchName, Some(700));
        assert_eq!(follow(&gone, from(&["a"], u32::MAX)), failed(DnsError::NoSuchName, Some(99)));
        // Records of others lead nowhere: the same question would get the same answer.
        let other = reply(&[("x", "10.0.0.1")], Outcome::Ok, None);
        assert_eq!(follow(&other, from(&["a", "b"], 50)), failed(DnsError::NoAddress, None));
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
