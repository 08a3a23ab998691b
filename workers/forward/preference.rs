//! Which of several addresses is tried first (RFC 6724 section 6), as far as the source address tells that the kernel
//! would choose: it says whether there is a way at all, and whether that way is likely to lead there and back.
//!
//! Rules 1, 2, 5, 6 and 8. The others need what only the kernel's tables have (3, 4, 7), or would have all go to the same
//! one of several servers that name servers take in turns (9). Nothing here connects, and no packet is sent.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, socket_with};

/// The default policy (RFC 6724 section 2.1), the longer prefixes first: what begins with these bits, of which so many
/// count, has a precedence and a label.
const POLICY: [(u128, u8, u8, u8); 9] = [
    (1, 128, 50, 0),
    // IPv4, as IPv4-mapped.
    (0xffff << 32, 96, 35, 4),
    // IPv4-compatible.
    (0, 96, 1, 3),
    // Teredo.
    (0x2001 << 112, 32, 5, 5),
    // 6to4.
    (0x2002 << 112, 16, 30, 2),
    // What was the 6bone.
    (0x3ffe << 112, 16, 1, 12),
    // Site-local.
    (0xfec0 << 112, 10, 1, 11),
    // Unique-local.
    (0xfc00 << 112, 7, 3, 13),
    (0, 0, 40, 1),
];

/// How far an address reaches (RFC 6724 sections 3.1 and 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Link,
    Site,
    Global,
}

/// What the rules compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    scope: Scope,
    precedence: u8,
    label: u8,
}

fn class_of(ip: IpAddr) -> Class {
    let ip = ip.to_canonical();
    let scope = match ip {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_link_local() => Scope::Link,
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unicast_link_local() => Scope::Link,
        IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfec0 => Scope::Site,
        IpAddr::V4(_) | IpAddr::V6(_) => Scope::Global,
    };
    let bits = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .to_bits();
    let begins = |base: u128, prefix: u8| (bits ^ base).leading_zeros() >= u32::from(prefix);
    let found = POLICY.iter().find(|&&(base, prefix, ..)| begins(base, prefix));
    let (precedence, label) = found.map_or((40, 1), |&(_, _, precedence, label)| (precedence, label));
    Class { scope, precedence, label }
}

/// Puts those first that are best tried first, and leaves the rest in its order. `source_of` says from which address the
/// kernel would go to one; it is not asked where all are of one kind, as those of one family mostly are.
pub fn order(addresses: &mut [SocketAddr], source_of: impl Fn(SocketAddr) -> Option<IpAddr>) {
    let mut classes = addresses.iter().map(|address| class_of(address.ip()));
    let first = classes.next();
    if classes.all(|class| Some(class) == first) {
        return;
    }
    addresses.sort_by_cached_key(|&address| {
        let class = class_of(address.ip());
        let source = source_of(address).map(class_of);
        let is = |same: fn(Class, Class) -> bool| source.is_some_and(|source| same(source, class));
        let scope = is(|source, class| source.scope == class.scope);
        let label = is(|source, class| source.label == class.label);
        Reverse((source.is_some(), scope, label, class.precedence, Reverse(class.scope)))
    });
}

/// From which address this machine would go to `address`; `None` = it has no way there.
#[must_use]
pub fn source_of(address: SocketAddr) -> Option<IpAddr> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    // Of a datagram socket this only looks for a route.
    connect(&socket, &address).ok()?;
    let source = SocketAddr::try_from(getsockname(&socket).ok()?).ok()?;
    Some(source.ip()).filter(|ip| *ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of `addresses` on a machine that goes to IPv4 and IPv6 addresses from these.
    fn ordered(addresses: &[&str], v4: Option<&str>, v6: Option<&str>) -> Vec<String> {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut list: Vec<SocketAddr> = addresses.iter().map(|text| SocketAddr::new(parse(text), 443)).collect();
        order(&mut list, |address| if address.is_ipv4() { v4 } else { v6 }.map(parse));
        list.iter().map(|address| address.ip().to_string()).collect()
    }

    const V4: Option<&str> = Some("192.0.2.1");

    #[test]
    fn classes_are_those_of_the_default_policy() {
        for (ip, precedence, label, scope) in [
            ("::1", 50, 0, Scope::Link),
            ("2606:4700::1", 40, 1, Scope::Global),
            ("1.1.1.1", 35, 4, Scope::Global),
            ("::ffff:1.1.1.1", 35, 4, Scope::Global),
            ("10.0.0.1", 35, 4, Scope::Global),
            ("127.0.0.1", 35, 4, Scope::Link),
            ("169.254.1.1", 35, 4, Scope::Link),
            ("2002::1", 30, 2, Scope::Global),
            ("2001::1", 5, 5, Scope::Global),
            ("2001:1::1", 40, 1, Scope::Global),
            ("fd00::1", 3, 13, Scope::Global),
            ("::7.7.7.7", 1, 3, Scope::Global),
            ("fec0::1", 1, 11, Scope::Site),
            ("3ffe::1", 1, 12, Scope::Global),
            ("fe80::1", 40, 1, Scope::Link),
        ] {
            assert_eq!(class_of(ip.parse().unwrap()), Class { scope, precedence, label }, "{ip}");
        }
    }

    #[test]
    fn ipv6_is_first_where_its_way_is_as_good() {
        let both = ["1.1.1.1", "2606:4700::1"];
        assert_eq!(ordered(&both, V4, Some("2a00::1")), ["2606:4700::1", "1.1.1.1"]);
        assert_eq!(ordered(&["127.0.0.1", "::1"], Some("127.0.0.1"), Some("::1")), ["::1", "127.0.0.1"]);
    }

    #[test]
    fn ipv6_is_last_where_its_way_leads_nowhere_or_not_back() {
        let both = ["2606:4700::1", "1.1.1.1"];
        // None at all; local addresses only, as in many a container; a tunnel's; a link's.
        for source in [None, Some("fd00::2"), Some("2002:102:304::1"), Some("2001::5"), Some("fe80::1")] {
            assert_eq!(ordered(&both, V4, source), ["1.1.1.1", "2606:4700::1"], "{source:?}");
        }
        assert_eq!(ordered(&both, None, Some("fd00::2")), both, "there is no other way");
        assert_eq!(ordered(&both, None, None), both);
    }

    #[test]
    fn of_ipv6_addresses_the_native_one_is_first_and_unique_local_ones_come_after_ipv4() {
        let list = ["fd00::1", "2002:102:304::1", "1.1.1.1", "2606:4700::1"];
        let wanted = ["2606:4700::1", "1.1.1.1", "2002:102:304::1", "fd00::1"];
        assert_eq!(ordered(&list, V4, Some("2a00::1")), wanted);
    }

    #[test]
    fn those_of_one_kind_keep_their_order_and_nobody_is_asked() {
        let mut list: Vec<SocketAddr> = ["1.0.0.9:1", "1.0.0.1:1"].map(|text| text.parse().unwrap()).to_vec();
        let before = list.clone();
        order(&mut list, |address| panic!("{address}"));
        assert_eq!(list, before);
    }

    #[test]
    fn the_kernel_says_from_where_it_would_go() {
        let address = "127.0.0.9:1".parse().unwrap();
        assert_eq!(source_of(address), Some("127.0.0.1".parse().unwrap()));
    }
}
