//! Addresses that are not on the public Internet, in all the forms in which they can be written.
//!
//! A proxy reaches what its clients cannot: the machine it runs on, the networks behind it, the metadata service of
//! its cloud. So these addresses are denied unless a rule lists them (IANA's special-purpose registries, RFC 6890).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipc::snapshot::{Address, Network, Snapshot};

/// A special range with what it is called in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// What it is.
    pub kind: &'static str,
    /// All of it. A rule opens it by listing a network within.
    pub range: Network,
}

const fn v4(kind: &'static str, [a, b, c, d]: [u8; 4], prefix: u8) -> Special {
    Special { kind, range: Network { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix } }
}

const fn v6(kind: &'static str, bits: u128, prefix: u8) -> Special {
    Special { kind, range: Network { address: IpAddr::V6(Ipv6Addr::from_bits(bits)), prefix } }
}

/// The narrower first, where one lies within another.
static RANGES: [Special; 31] = [
    v4("unspecified", [0, 0, 0, 0], 8),
    v4("private", [10, 0, 0, 0], 8),
    v4("shared (CGNAT)", [100, 64, 0, 0], 10),
    v4("loopback", [127, 0, 0, 0], 8),
    v4("link-local", [169, 254, 0, 0], 16),
    v4("private", [172, 16, 0, 0], 12),
    v4("reserved", [192, 0, 0, 0], 24),
    v4("documentation", [192, 0, 2, 0], 24),
    v4("6to4 relay", [192, 88, 99, 0], 24),
    v4("private", [192, 168, 0, 0], 16),
    // A cloud's own servers, behind an address that only looks public.
    v4("metadata", [168, 63, 129, 16], 32),
    v4("benchmarking", [198, 18, 0, 0], 15),
    v4("documentation", [198, 51, 100, 0], 24),
    v4("documentation", [203, 0, 113, 0], 24),
    v4("multicast", [224, 0, 0, 0], 4),
    v4("broadcast", [255, 255, 255, 255], 32),
    v4("reserved", [240, 0, 0, 0], 4),
    v6("unspecified", 0, 128),
    v6("loopback", 1, 128),
    v6("local-use NAT64", 0x0064_ff9b_0001 << 80, 48),
    v6("discard-only", 0x0100 << 112, 64),
    v6("reserved", 0x0100_0000_0000_0001 << 64, 64),
    v6("Teredo", 0x2001 << 112, 32),
    v6("documentation", 0x2001_0db8 << 96, 32),
    v6("reserved", 0x2001 << 112, 23),
    v6("documentation", 0x3fff << 112, 20),
    v6("reserved", 0x5f00 << 112, 16),
    v6("unique-local", 0xfc00 << 112, 7),
    v6("link-local", 0xfe80 << 112, 10),
    v6("site-local", 0xfec0 << 112, 10),
    v6("multicast", 0xff00 << 112, 8),
];

/// Forms of IPv6 addresses that carry an IPv4 address: their prefix, and at which bit it begins.
const CARRIERS: [(u128, u8); 5] = [
    // IPv4-mapped. None gets here, but one that did would count as what it stands for.
    (0xffff << 32, 96),
    // IPv4-translated (RFC 2765).
    (0xffff << 48, 96),
    // IPv4-compatible (RFC 4291 section 2.5.5.1).
    (0, 96),
    // NAT64 (RFC 6052).
    (0x0064_ff9b << 96, 96),
    // 6to4 (RFC 3056).
    (0x2002 << 112, 16),
];

/// The IPv4 address that an IPv6 address carries, and the prefix in front of it.
#[must_use]
pub fn carried(ip: Ipv6Addr) -> Option<(Ipv4Addr, u8)> {
    let bits = ip.to_bits();
    CARRIERS.iter().find_map(|&(base, prefix)| {
        let mask = u128::MAX << (128 - u32::from(prefix));
        let [a, b, c, d] = u32::try_from(bits << u32::from(prefix) >> 96).ok()?.to_be_bytes();
        ((bits ^ base) & mask == 0).then_some((Ipv4Addr::new(a, b, c, d), prefix))
    })
}

/// The special range that `ip` lies in, if it lies in one.
#[must_use]
pub fn range_of(ip: IpAddr) -> Option<Special> {
    let ip = ip.to_canonical();
    if let Some(special) = RANGES.iter().find(|special| special.range.contains(ip)) {
        return Some(*special);
    }
    let IpAddr::V6(v6) = ip else { return None };
    let (inner, before) = carried(v6)?;
    let special = range_of(IpAddr::V4(inner))?;
    Some(Special { kind: special.kind, range: Network { address: ip, prefix: before + special.range.prefix } })
}

/// Whether all of `inner` lies within `outer`.
#[must_use]
pub fn lies_within(inner: Network, outer: Network) -> bool {
    inner.address.is_ipv4() == outer.address.is_ipv4() && inner.prefix >= outer.prefix && outer.contains(inner.address)
}

/// Where this proxy itself listens.
#[derive(Debug, Default)]
pub struct Own {
    binds: Vec<SocketAddr>,
}

impl Own {
    /// What a configuration names, and what the master has bound under it.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Own {
        let inet = |bind: &Address| match bind {
            Address::Inet(addr) => Some(*addr),
            Address::Unix(_) => None,
        };
        let named = snapshot.listeners.iter().filter_map(|listener| inet(&listener.bind));
        Own { binds: named.chain(snapshot.listening.iter().copied()).collect() }
    }

    /// Whether a connection to `target` would come to this proxy. `here`: the address that the client is connected
    /// to, which is the proxy's too when another address is translated into it on the way. An IPv6 address that carries
    /// an IPv4 address of this proxy leads back here through whatever translates it.
    #[must_use]
    pub fn is(&self, target: SocketAddr, here: Option<SocketAddr>) -> bool {
        let carried = match target.ip() {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => carried(ip).map(|(inner, _)| SocketAddr::new(IpAddr::V4(inner), target.port())),
        };
        self.is_at(target, here) || carried.is_some_and(|inner| self.is_at(inner, here))
    }

    fn is_at(&self, target: SocketAddr, here: Option<SocketAddr>) -> bool {
        let same = |bind: SocketAddr| bind.port() == target.port() && bind.ip().to_canonical() == target.ip();
        let wildcard = |bind: &&SocketAddr| bind.port() == target.port() && bind.ip().is_unspecified();
        here.is_some_and(same)
            || self.binds.iter().copied().any(same)
            || (self.binds.iter().any(|bind| wildcard(&bind)) || here.is_some_and(|here| here.port() == target.port()))
                && is_local(target.ip())
    }
}

/// Whether an address is one of this machine's: only to those can a socket be bound.
fn is_local(ip: IpAddr) -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let bound = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .and_then(|socket| bind(&socket, &SocketAddr::new(ip, 0)));
    // Where nobody can tell, it counts as such.
    !matches!(bound, Err(rustix::io::Errno::ADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Option<&'static str> {
        range_of(text.parse().unwrap()).map(|special| special.kind)
    }

    #[test]
    fn special_addresses_are_known_in_every_form() {
        for (text, wanted) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.0.0.1", "private"),
            ("100.64.0.1", "shared (CGNAT)"),
            ("100.127.255.255", "shared (CGNAT)"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("169.254.169.254", "link-local"),
            ("168.63.129.16", "metadata"),
            ("172.16.0.0", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("192.0.2.1", "documentation"),
            ("198.19.255.255", "benchmarking"),
            ("198.51.100.1", "documentation"),
            ("203.0.113.1", "documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("fc00::1", "unique-local"),
            ("fd00:ec2::254", "unique-local"),
            ("ff02::1", "multicast"),
            ("2001:db8::1", "documentation"),
            ("3fff::1", "documentation"),
            ("100::1", "discard-only"),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"),
            ("64:ff9b:1::1", "local-use NAT64"),
            // IPv4-mapped, -compatible, -translated, NAT64, 6to4.
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:a9fe:a9fe", "link-local"),
            ("::127.0.0.1", "loopback"),
            ("::10.1.2.3", "private"),
            ("::ffff:0:127.0.0.1", "loopback"),
            ("64:ff9b::127.0.0.1", "loopback"),
            ("64:ff9b::a9fe:a9fe", "link-local"),
            ("2002:7f00:1::", "loopback"),
            ("2002:a9fe:a9fe::1", "link-local"),
            ("2002:c0a8:101:1:2:3:4:5", "private"),
        ] {
            assert_eq!(kind(text), Some(wanted), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_not_special() {
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2400::1",
            "2003::1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "::ffff:1.1.1.1",
        ] {
            assert_eq!(kind(text), None, "{text}");
        }
    }

    #[test]
    fn the_range_of_a_carried_address_is_that_of_its_form() {
        let special = range_of("64:ff9b::10.1.2.3".parse().unwrap()).unwrap();
        assert_eq!(special.range.prefix, 96 + 8);
        assert!(special.range.contains("64:ff9b::10.255.0.0".parse().unwrap()));
        assert!(!special.range.contains("64:ff9b::11.0.0.0".parse().unwrap()));
        let special = range_of("2002:a01:203::1".parse().unwrap()).unwrap();
        assert_eq!(special.range.prefix, 16 + 8);
    }

    #[test]
    fn a_network_lies_within_one_that_holds_all_of_it() {
        let net = |text: &str, prefix| Network { address: text.parse().unwrap(), prefix };
        assert!(lies_within(net("10.1.0.0", 16), net("10.0.0.0", 8)));
        assert!(lies_within(net("10.0.0.0", 8), net("10.0.0.0", 8)));
        assert!(!lies_within(net("0.0.0.0", 0), net("10.0.0.0", 8)));
        assert!(!lies_within(net("10.0.0.0", 7), net("10.0.0.0", 8)));
        assert!(!lies_within(net("::", 0), net("10.0.0.0", 8)));
    }

    #[test]
    fn own_listeners_are_known_by_any_address_of_this_machine() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = Own { binds: vec![addr("192.0.2.1:80"), addr("0.0.0.0:3128")] };
        assert!(own.is(addr("192.0.2.1:80"), None));
        assert!(!own.is(addr("192.0.2.1:81"), None));
        assert!(!own.is(addr("192.0.2.2:80"), None));
        // Every address of 127.0.0.0/8 is the machine's, whichever are configured.
        assert!(own.is(addr("127.0.0.1:3128"), None));
        assert!(!own.is(addr("127.0.0.1:3129"), None));
        assert!(!own.is(addr("192.0.2.9:3128"), None), "another machine's");
        assert!(own.is(addr("127.0.0.1:4000"), Some(addr("127.0.0.1:4000"))));
        assert!(own.is(addr("127.0.0.2:4000"), Some(addr("127.0.0.1:4000"))), "perhaps bound to all");
    }

    #[test]
    fn own_listeners_are_known_in_every_form_of_their_address() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = Own { binds: vec![addr("1.2.3.4:80"), addr("0.0.0.0:3128")] };
        for form in ["64:ff9b::1.2.3.4", "2002:102:304::1", "::1.2.3.4", "::ffff:0:1.2.3.4"] {
            assert!(own.is(addr(&format!("[{form}]:80")), None), "{form}");
            assert!(!own.is(addr(&format!("[{form}]:81")), None), "{form}");
        }
        assert!(own.is(addr("[64:ff9b::127.0.0.1]:3128"), None), "where all addresses are bound");
        assert!(own.is(addr("[64:ff9b::1.1.1.1]:4000"), Some(addr("1.1.1.1:4000"))));
        assert!(!own.is(addr("[64:ff9b::192.0.2.9]:3128"), None), "another machine's");
    }
}
