//! Where a connection comes from that a proxy in front has passed on with a PROXY header, and its place in shared
//! memory: the header's bytes are gone once they are read, so what they said must outlive the worker otherwise.
//!
//! A worker only looks at the header until it has all of it. Then it writes its [`OriginCell`], and only after that
//! takes the header's bytes from the socket. Whether it came to that is told by the kernel's own count of the bytes
//! taken: with fewer than the header's length a successor reads the header itself, otherwise it is told the origin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::fault;

/// Both ends of a client's connection as a proxy in front knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// Whether a connection begins with a PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Origin {
    /// It does not: its own addresses hold.
    #[default]
    Direct,
    /// It does, and the header has not been read.
    Awaited,
    /// It did; `None` = the header left the connection's own addresses in force.
    Told(Option<Ends>),
}

/// What a header said and how long it was: a cache line for each connection of a worker.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct OriginCell {
    /// Kind (0 = empty), header length, ports; written last.
    word: AtomicU64,
    source: [AtomicU64; 2],
    destination: [AtomicU64; 2],
}

const EMPTY: u64 = 0;
const OWN: u64 = 1;
const V4: u64 = 4;
const V6: u64 = 6;

impl OriginCell {
    /// Makes it hold nothing.
    pub fn clear(&self) {
        self.word.store(EMPTY, Ordering::Release);
    }

    /// Makes it hold what a header of `length` bytes said.
    pub fn publish(&self, length: u16, ends: Option<&Ends>) {
        let (kind, source_port, destination_port) = match ends {
            None => (OWN, 0, 0),
            Some(Ends { source, destination }) => {
                put(&self.source, source.ip());
                put(&self.destination, destination.ip());
                fault::instant();
                let kind = if source.is_ipv4() && destination.is_ipv4() { V4 } else { V6 };
                (kind, source.port(), destination.port())
            }
        };
        let ports = u64::from(source_port) << 32 | u64::from(destination_port) << 48;
        self.word.store(kind | u64::from(length) << 16 | ports, Ordering::Release);
        fault::instant();
    }

    /// The length of the header and what it said; `None` if it holds nothing, or what means nothing.
    #[must_use]
    pub fn read(&self) -> Option<(u16, Option<Ends>)> {
        let word = self.word.load(Ordering::Acquire);
        let [kind, 0, length @ ..] = word.to_le_bytes() else { return None };
        let [low, high, source_low, source_high, destination_low, destination_high] = length;
        let length = u16::from_le_bytes([low, high]);
        let ends = |v4| {
            let port = (
                u16::from_le_bytes([source_low, source_high]),
                u16::from_le_bytes([destination_low, destination_high]),
            );
            Some(Ends {
                source: SocketAddr::new(get(&self.source, v4)?, port.0),
                destination: SocketAddr::new(get(&self.destination, v4)?, port.1),
            })
        };
        match u64::from(kind) {
            OWN => Some((length, None)),
            V4 => Some((length, Some(ends(true)?))),
            V6 => Some((length, Some(ends(false)?))),
            _ => None,
        }
    }
}

fn put(words: &[AtomicU64; 2], ip: IpAddr) {
    let octets = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    for (word, half) in words.iter().zip(octets.octets().as_chunks().0) {
        word.store(u64::from_be_bytes(*half), Ordering::Relaxed);
    }
}

fn get(words: &[AtomicU64; 2], v4: bool) -> Option<IpAddr> {
    let [high, low] = words.each_ref().map(|word| u128::from(word.load(Ordering::Relaxed)));
    let ip = Ipv6Addr::from_bits(high << 64 | low);
    if v4 { ip.to_ipv4_mapped().map(Ipv4Addr::into) } else { Some(ip.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_published_is_read_until_it_is_cleared() {
        let cell = OriginCell::default();
        assert_eq!(cell.read(), None);
        let table = [
            None,
            Some(ends("192.0.2.1:65535", "0.0.0.0:1")),
            Some(ends("[2001:db8::1]:1", "[::]:65535")),
            Some(ends("[::ffff:192.0.2.1]:1", "[::1]:2")),
        ];
        for wanted in table {
            cell.publish(u16::MAX, wanted.as_ref());
            assert_eq!(cell.read(), Some((u16::MAX, wanted)));
        }
        cell.clear();
        assert_eq!(cell.read(), None);
    }

    proptest! {
        #[test]
        fn any_memory_is_an_origin_or_refused(words: [u64; 5]) {
            let cell = OriginCell::default();
            cell.word.store(words[0], Ordering::Relaxed);
            for (word, value) in cell.source.iter().chain(&cell.destination).zip(&words[1..]) {
                word.store(*value, Ordering::Relaxed);
            }
            if let Some((_, Some(read))) = cell.read() {
                cell.publish(1, Some(&read));
                prop_assert_eq!(cell.read(), Some((1, Some(read))));
            }
        }
    }
}
