//! How names are resolved: the machine's own files (resolv.conf and hosts, resolver(5) and hosts(5)), and what the
//! configuration says above them.
//!
//! Pure: text in, settings out. What cannot be understood in those files is passed over, as everybody does.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use ipc::snapshot::Dns;
use workers::dns::name::{self, Host};

use super::report::{Fault, quoted};

/// Where the system's files are.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As above.
pub const HOSTS: &str = "/etc/hosts";

/// The port of name servers.
const PORT: u16 = 53;
/// Name servers that are read from resolv.conf (`MAXNS`).
const NAMESERVERS: usize = 3;
/// Bounds that resolver(5) gives.
pub const NDOTS_MAX: u8 = 15;
pub const ATTEMPTS_MAX: u8 = 5;
const TIMEOUT_MAX_S: u32 = 30;
pub const TIMEOUT_MAX_MS: u32 = TIMEOUT_MAX_S * 1000;
/// Names taken from a hosts file, and addresses for one of them.
pub const HOSTS_MAX: usize = 20_000;
const HOST_ADDRESSES_MAX: usize = 64;

/// Where the settings of the resolver come from. The machine's files may change while the configuration does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The resolv.conf; `None` = none is read.
    pub resolv_conf: Option<PathBuf>,
    /// The hosts file; `None` = none is read.
    pub hosts: Option<PathBuf>,
    /// What the configuration says stands above both; see [`Dns`] for each.
    pub servers: Option<Vec<SocketAddr>>,
    /// As above.
    pub search: Option<Vec<String>>,
    /// As above.
    pub ndots: Option<u8>,
    /// As above.
    pub timeout_ms: Option<u32>,
    /// As above.
    pub attempts: Option<u8>,
    /// As above.
    pub rotate: Option<bool>,
}

impl Sources {
    /// What they come to, with the texts of both files; `None` = it is not read, or cannot be. True when the hosts file
    /// has more than [`HOSTS_MAX`] names.
    #[must_use]
    pub fn settings(&self, resolv_conf: Option<&str>, hosts: Option<&str>) -> (Dns, bool) {
        let interface = |name: &str| nix::net::if_::if_nametoindex(name).ok();
        let base = resolv_conf.map(|text| read_resolv_conf(text, &interface)).unwrap_or_default();
        let (hosts, too_many) = hosts.map(read_hosts).unwrap_or_default();
        let dns = Dns {
            servers: self.servers.clone().unwrap_or(base.servers),
            search: self.search.clone().unwrap_or(base.search),
            ndots: self.ndots.unwrap_or(base.ndots),
            timeout_ms: self.timeout_ms.unwrap_or(base.timeout_ms),
            attempts: self.attempts.unwrap_or(base.attempts),
            rotate: self.rotate.unwrap_or(base.rotate),
            hosts,
        };
        (dns, too_many)
    }
}

/// What a resolv.conf says, as far as it does. `interface` gives the number of a network interface by its name.
#[must_use]
pub fn read_resolv_conf(text: &str, interface: &dyn Fn(&str) -> Option<u32>) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") if dns.servers.len() < NAMESERVERS => {
                dns.servers.extend(words.next().and_then(|text| read_ip(text, PORT, interface)));
            }
            // The last of these lines holds.
            Some("search" | "domain") => {
                dns.search = words.filter_map(|text| read_suffix(text).ok()).take(Dns::SEARCH_MAX).collect();
            }
            Some("options") => words.for_each(|option| read_option(option, &mut dns)),
            Some(_) | None => {}
        }
    }
    if dns.servers.is_empty() {
        // As resolver(5) has it.
        dns.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    dns
}

fn read_option(option: &str, dns: &mut Dns) {
    let number = |text: &str| text.parse::<u32>().ok();
    match option.split_once(':') {
        Some(("ndots", n)) => {
            dns.ndots = number(n).map_or(dns.ndots, |n| u8::try_from(n).unwrap_or(u8::MAX).min(NDOTS_MAX));
        }
        Some(("timeout", n)) => {
            dns.timeout_ms = number(n).map_or(dns.timeout_ms, |n| n.clamp(1, TIMEOUT_MAX_S) * 1000);
        }
        Some(("attempts", n)) => {
            let most = |n: u32| u8::try_from(n).unwrap_or(u8::MAX).clamp(1, ATTEMPTS_MAX);
            dns.attempts = number(n).map_or(dns.attempts, most);
        }
        None if option == "rotate" => dns.rotate = true,
        Some(_) | None => {}
    }
}

/// An IP address, IPv6 with a scope if need be (`fe80::1%eth0`).
fn read_ip(text: &str, port: u16, interface: &dyn Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((address, scope)) = text.split_once('%') else {
        return text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    };
    let scope = scope.parse().ok().or_else(|| interface(scope))?;
    Some(SocketAddrV6::new(address.parse().ok()?, port, 0, scope).into())
}

/// Reads a name server as the configuration gives it: an address, with a port unless that is 53.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn read_server(text: &str, interface: &dyn Fn(&str) -> Option<u32>) -> Result<SocketAddr, Fault> {
    let bracketed = || {
        let (host, port) = text.strip_prefix('[')?.split_once(']')?;
        let port = port.strip_prefix(':')?.parse().ok()?;
        read_ip(host, port, interface)
    };
    let found = read_ip(text, PORT, interface).or_else(|| text.parse().ok()).or_else(bracketed);
    found.filter(|address| address.port() != 0 && !address.ip().is_unspecified()).ok_or_else(|| {
        Fault::new(format!("{} is not the address of a name server", quoted(text))).help(
            "write an IP address, with a port unless that is 53: \"10.0.0.2\", \"127.0.0.1:5353\", \"[::1]:5353\"",
        )
    })
}

/// Reads a search suffix.
///
/// # Errors
/// Says what is wrong with the text.
pub fn read_suffix(text: &str) -> Result<String, Fault> {
    let wrong = |why: &str| Fault::new(format!("{} cannot be a search suffix: {why}", quoted(text)));
    match name::read(text) {
        Ok(Host::Name { text, .. }) => Ok(text),
        Ok(Host::Address(_)) => Err(wrong("it is an address").help("write a domain, such as \"internal\"")),
        Err(why) => Err(wrong(why)),
    }
}

/// What a hosts file says: names with their addresses, sorted. True when there are more than [`HOSTS_MAX`].
#[must_use]
pub fn read_hosts(text: &str) -> (Vec<(String, Vec<IpAddr>)>, bool) {
    let mut hosts: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    let mut too_many = false;
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next().and_then(|text| text.parse::<IpAddr>().ok()) else { continue };
        for word in words {
            let Ok(Host::Name { text, .. }) = name::read(word) else { continue };
            if hosts.len() >= HOSTS_MAX && !hosts.contains_key(&text) {
                too_many = true;
                continue;
            }
            let addresses = hosts.entry(text).or_default();
            if addresses.len() < HOST_ADDRESSES_MAX && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    (hosts.into_iter().collect(), too_many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str) -> Option<u32> {
        (name == "eth0").then_some(7)
    }

    #[test]
    fn a_resolv_conf_is_read_as_everybody_does() {
        let text = "# c\nnameserver 10.0.0.1\nnameserver fe80::1%eth0 ; c\nnameserver nonsense\nnameserver 10.0.0.3\n\
                    nameserver 10.0.0.4\ndomain Old.\nsearch a.Internal b.x 10.0.0.1\n\
                    options ndots:3 timeout:99 attempts:0 rotate edns0 ndots:x\nsortlist 1\n";
        let dns = read_resolv_conf(text, &interface);
        let servers: Vec<_> = dns.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fe80::1%7]:53", "10.0.0.3:53"]);
        assert_eq!(dns.search, ["a.internal", "b.x"]);
        assert_eq!((dns.ndots, dns.timeout_ms, dns.attempts, dns.rotate), (3, 30_000, 1, true));
    }

    #[test]
    fn without_a_name_server_the_machine_itself_is_asked() {
        let dns = read_resolv_conf("\n", &interface);
        assert_eq!(dns.servers, ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(Dns { servers: Vec::new(), ..dns }, Dns::default());
    }

    #[test]
    fn hosts_are_read_and_sorted() {
        let text = "127.0.0.1 localhost LOCALHOST.localdomain # c\n::1 localhost\nnonsense x\n10.0.0.1\tb a b 1.2\n";
        let (hosts, more) = read_hosts(text);
        let shown: Vec<_> = hosts.iter().map(|(name, ips)| format!("{name}={ips:?}")).collect();
        assert_eq!(
            shown,
            ["a=[10.0.0.1]", "b=[10.0.0.1]", "localhost=[127.0.0.1, ::1]", "localhost.localdomain=[127.0.0.1]"]
        );
        assert!(!more);
    }

    #[test]
    fn name_servers_are_addresses() {
        let read = |text| read_server(text, &interface).map(|address| address.to_string()).ok();
        assert_eq!(read("10.0.0.1").unwrap(), "10.0.0.1:53");
        assert_eq!(read("10.0.0.1:5353").unwrap(), "10.0.0.1:5353");
        assert_eq!(read("::1").unwrap(), "[::1]:53");
        assert_eq!(read("[::1]:54").unwrap(), "[::1]:54");
        assert_eq!(read("fe80::1%eth0").unwrap(), "[fe80::1%7]:53");
        assert_eq!(read("[fe80::1%eth0]:54").unwrap(), "[fe80::1%7]:54");
        for text in ["", "dns.internal", "10.0.0.1:0", "0.0.0.0", "fe80::1%none", "10.0.0.1:x", "[::1]"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
