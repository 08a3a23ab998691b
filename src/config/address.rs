//! The small languages within strings: addresses, networks, hosts, paths.
//!
//! No name is resolved here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipc::forward::NameMatch;
use ipc::snapshot::{Address, HostMatch, Network, PathMatch, Target};
use workers::dns::name::{self, Host};

use super::report::{Fault, quoted};

/// The longest path of a Unix socket, in bytes (`sun_path` less its NUL, unix(7)).
const UNIX_PATH_MAX: usize = 107;
/// The longest host name (RFC 1035 section 2.3.4), and its longest label.
const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;
/// The longest path of a route, in bytes.
const PATH_MAX: usize = 4096;

/// Where a server is, before names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// Known from the text alone.
    Literal(Address),
    /// A name, to be looked up again and again.
    Name(Target),
}

/// Reads the address of a listener. The port may be 0: the kernel chooses.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_bind(text: &str) -> Result<Address, Fault> {
    let (host, port) = match parse_endpoint(text, &LISTENING)? {
        Endpoint::Unix(path) => return Ok(Address::Unix(path)),
        Endpoint::Inet(SocketAddr::V6(addr)) if addr.ip().to_ipv4_mapped().is_some() => {
            let plain = SocketAddr::new(addr.ip().to_canonical(), addr.port());
            return Err(Fault::new(format!("{} is an IPv4 address in IPv6 form", quoted(text)))
                .help(format!("write \"{plain}\"")));
        }
        Endpoint::Inet(addr) => return Ok(Address::Inet(addr)),
        Endpoint::Name(host, port) => (host, port),
    };
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(Address::Inet((Ipv4Addr::LOCALHOST, port).into()));
    }
    Err(Fault::new(format!("a listener is bound to an address, not to a name such as {}", quoted(host))).help(format!(
        "write \"127.0.0.1:{port}\" for this machine only, \"0.0.0.0:{port}\" for all its IPv4 addresses, \
         \"[::]:{port}\" for all its IPv6 addresses"
    )))
}

/// Reads the address of a server.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_server(text: &str) -> Result<ServerAddress, Fault> {
    let (address, port) = match parse_endpoint(text, &SERVING)? {
        Endpoint::Unix(path) => return Ok(ServerAddress::Literal(Address::Unix(path))),
        Endpoint::Inet(addr) => (ServerAddress::Literal(Address::Inet(addr)), addr.port()),
        Endpoint::Name(host, port) => (ServerAddress::Name(Target::Host { name: parse_name(host)?, port }), port),
    };
    if port == 0 {
        return Err(Fault::new("a server cannot have port 0").help("write the port it listens on, 1 to 65535"));
    }
    Ok(address)
}

/// Reads the name of a service (RFC 2782), into lower case.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_service(text: &str) -> Result<Target, Fault> {
    if text.contains(':') {
        return Err(
            Fault::new(format!("{} has a port", quoted(text))).help("leave the port out: SRV records say which it is")
        );
    }
    parse_name(text).map(|name| Target::Service { name })
}

/// Reads a name that can be looked up.
fn parse_name(text: &str) -> Result<String, Fault> {
    match name::read(text) {
        Ok(Host::Name { text, .. }) => Ok(text),
        Ok(Host::Address(_)) => Err(Fault::new(format!("{} is an address, not a name", quoted(text)))),
        Err(why) => Err(Fault::new(format!("{} cannot be looked up: {why}", quoted(text)))),
    }
}

enum Endpoint<'t> {
    Inet(SocketAddr),
    Unix(PathBuf),
    Name(&'t str, u16),
}

/// What to write where a part is missing.
struct Advice {
    /// For a port.
    port: &'static str,
    /// For a host, with this port.
    host: fn(u16) -> String,
}

const LISTENING: Advice = Advice {
    port: "8080",
    host: |port| {
        format!("write \"127.0.0.1:{port}\" for this machine only, \"0.0.0.0:{port}\" for all its IPv4 addresses")
    },
};
const SERVING: Advice = Advice {
    port: "80",
    host: |port| format!("write \"127.0.0.1:{port}\" for a server on this machine, or the address or name of another"),
};

fn parse_endpoint<'t>(text: &'t str, advice: &Advice) -> Result<Endpoint<'t>, Fault> {
    let port_example = advice.port;
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_unix(path).map(Endpoint::Unix);
    }
    if let Ok(addr) = text.parse() {
        return Ok(Endpoint::Inet(addr));
    }
    if let Some((_, rest)) = text.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return Err(Fault::new(format!("{} is a URL, not an address", quoted(text)))
            .help(format!("write the host and port alone, such as \"{}\"", plain(authority))));
    }
    if text.starts_with('/') || text.starts_with("./") {
        return Err(Fault::new(format!("{} is a path, not an address", quoted(text)))
            .help(format!("for a Unix socket write \"unix:{}\"", plain(text))));
    }
    if let Some((ip, port)) = text.rsplit_once(':').filter(|(ip, port)| is_ipv6(ip) && port.parse::<u16>().is_ok()) {
        return Err(Fault::new(format!("{} has no brackets around its IPv6 address", quoted(text)))
            .help(format!("write \"[{ip}]:{port}\", or \"[{text}]:{port_example}\" if all of it is the address")));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Err(Fault::new(format!("{} has no port", quoted(text)))
            .help(format!("write \"{}:{port_example}\"", bracketed(ip))));
    }
    if let Some(ip) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|ip| is_ipv6(ip)) {
        return Err(
            Fault::new(format!("{} has no port", quoted(text))).help(format!("write \"[{ip}]:{port_example}\""))
        );
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => ("", text),
        None => {
            let fault = Fault::new(format!("{} has no port", quoted(text)));
            return Err(match check_host(text) {
                Ok(()) => fault.help(format!("write \"{}:{port_example}\"", plain(text))),
                Err(_) => fault.help("write HOST:PORT, [IPv6]:PORT or unix:/path"),
            });
        }
    };
    let Some(number) = port.parse::<u16>().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit())) else {
        return Err(Fault::new(format!("{} is not a port", quoted(port))).help("a port is a number up to 65535"));
    };
    match host {
        "" => Err(Fault::new(format!("{} has no host", quoted(text))).help((advice.host)(number))),
        "*" => Err(Fault::new("`*` is not an address")
            .help(format!("write \"0.0.0.0:{number}\" for IPv4 or \"[::]:{number}\" for IPv6"))),
        _ if host.contains(['[', ']', ':']) => Err(Fault::new(format!("{} is not an IPv6 address", quoted(host)))
            .help("write IPv6 addresses within brackets, such as \"[::1]:8080\"")),
        _ if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            Err(Fault::new(format!("{} is not an IPv4 address", quoted(host)))
                .help("it is made of four numbers from 0 to 255, such as 127.0.0.1"))
        }
        _ => check_host(host).map(|()| Endpoint::Name(host, number)),
    }
}

fn is_ipv6(text: &str) -> bool {
    text.parse::<std::net::Ipv6Addr>().is_ok()
}

fn parse_unix(path: &str) -> Result<PathBuf, Fault> {
    if path.starts_with('@') {
        return Err(
            Fault::new("abstract Unix sockets are not supported").help("write a path, as in \"unix:/run/app.sock\"")
        );
    }
    if !path.starts_with('/') {
        return Err(Fault::new(format!("the path of the Unix socket is not absolute: {}", quoted(path)))
            .help("write it from the root, as in \"unix:/run/app.sock\""));
    }
    if path.contains('\0') || path.ends_with('/') {
        return Err(Fault::new(format!("{} cannot be the path of a socket", quoted(path))));
    }
    if path.len() > UNIX_PATH_MAX {
        return Err(Fault::new(format!("the path of the Unix socket has {} bytes", path.len()))
            .help(format!("the kernel allows {UNIX_PATH_MAX}; use a shorter directory")));
    }
    Ok(PathBuf::from(path))
}

fn check_host(host: &str) -> Result<(), Fault> {
    let wrong = |why: &str| Fault::new(format!("{} is not a host name: {why}", quoted(host)));
    if host.is_empty() || host.len() > HOST_MAX {
        return Err(wrong("it must have 1 to 253 characters"));
    }
    if !host.is_ascii() {
        return Err(wrong("it has characters outside ASCII").help("write its ASCII form, `xn--...`"));
    }
    if host.ends_with('.') {
        return Err(wrong("it ends with a dot").help("leave out the last dot"));
    }
    for label in host.split('.') {
        if label.is_empty() || label.len() > LABEL_MAX {
            return Err(wrong("each part between dots must have 1 to 63 characters"));
        }
        if let Some(c) = label.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-' && *c != '_') {
            return Err(wrong(&format!("it may not contain {}", quoted(&c.to_string()))));
        }
    }
    Ok(())
}

/// Reads the host of a route, into lower case.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_host(text: &str) -> Result<HostMatch, Fault> {
    let lower = text.to_ascii_lowercase();
    if lower.is_empty() || lower == "*" {
        return Err(Fault::new(format!("{} is not a host", quoted(text))).help("to match any host leave `host` out"));
    }
    if lower.contains("://") || lower.contains('/') {
        return Err(Fault::new(format!("{} is more than a host", quoted(text)))
            .help("write the host name alone here, and the path as `path`"));
    }
    if let Some(inner) = lower.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(_) => Ok(HostMatch::Exact(lower)),
            Err(_) => Err(Fault::new(format!("{} is not an IPv6 address", quoted(inner)))),
        };
    }
    if lower.parse::<Ipv6Addr>().is_ok() {
        return Err(Fault::new(format!("{} lacks brackets", quoted(text))).help(format!("write \"[{lower}]\"")));
    }
    if let Some((host, port)) = lower.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(Fault::new(format!("{} has a port", quoted(text)))
            .help(format!("routes match the host without its port: write \"{}\"", plain(host))));
    }
    match lower.strip_prefix("*.") {
        Some(rest) if rest.contains('*') => Err(star(text)),
        Some(rest) => check_host(rest).map(|()| HostMatch::Wildcard(format!(".{rest}"))),
        None if lower.contains('*') => Err(star(text)),
        None => check_host(&lower).map(|()| HostMatch::Exact(lower)),
    }
}

fn star(text: &str) -> Fault {
    Fault::new(format!("{} has a `*` where it has no meaning", quoted(text)))
        .help("`*` stands for the whole first label only, as in \"*.example.com\"")
}

/// Reads the path of a route: a prefix, or behind `=` an exact path.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_path(text: &str) -> Result<PathMatch, Fault> {
    let (exact, path) = match text.strip_prefix('=') {
        Some(path) => (true, path),
        None => (false, text),
    };
    if !path.starts_with('/') {
        let sign = if exact { "=" } else { "" };
        return Err(Fault::new(format!("the path {} does not begin with `/`", quoted(text)))
            .help(format!("did you mean \"{sign}/{}\"?", plain(path))));
    }
    if path.len() > PATH_MAX {
        return Err(Fault::new(format!("the path has more than {PATH_MAX} bytes")));
    }
    if path.contains(['?', '#']) {
        return Err(
            Fault::new("routes match the path alone").help("leave out the query and fragment, from `?` or `#` on")
        );
    }
    if !exact && path.contains('*') {
        return Err(Fault::new("`*` has no meaning in a path")
            .help("a path matches all that begin with it: \"/api/\" matches \"/api/users\""));
    }
    if let Some(segment) = dotted_segment(path, exact) {
        return Err(Fault::new(format!("no request has a path with the segment {}", quoted(segment)))
            .help("`.` and `..` are resolved before routes are looked at: write what is left then"));
    }
    let broken = |rest: &str| !rest.chars().take(2).all(|c| c.is_ascii_hexdigit()) || exact && rest.len() < 2;
    if path.split('%').skip(1).any(broken) {
        return Err(Fault::new("a `%` in a path stands before two hexadecimal digits")
            .help("requests with another are refused; for the sign itself write `%25`"));
    }
    if let Some(c) = path.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(Fault::new(format!("a path in a request cannot contain {}", quoted(&c.to_string())))
            .help("write it percent-encoded, as clients send it: a blank is `%20`"));
    }
    let path = path.to_owned();
    Ok(if exact { PathMatch::Exact(path) } else { PathMatch::Prefix(path) })
}

/// A segment of `path` that is resolved away, in whichever way its dots are written. The last one of a prefix may be the
/// beginning of another.
fn dotted_segment(path: &str, exact: bool) -> Option<&str> {
    let mut segments: Vec<&str> = path.split('/').collect();
    if !exact {
        segments.pop();
    }
    let is_dotted = |segment: &&str| matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    segments.into_iter().find(is_dotted)
}

/// Reads the name of a target in a rule, into lower case: exact, or behind a dot a suffix.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_name_match(text: &str) -> Result<NameMatch, Fault> {
    let lower = text.to_ascii_lowercase();
    if let Some(rest) = lower.strip_prefix("*.") {
        return Err(Fault::new(format!("{} has a `*`", quoted(text)))
            .help(format!("names below a domain are written \".{}\"", plain(rest))));
    }
    if lower.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() || lower.contains('/') {
        return Err(Fault::new(format!("{} is an address, not a name", quoted(text))).help("write it under `networks`"));
    }
    match lower.strip_prefix('.') {
        Some(rest) => check_host(rest).map(|()| NameMatch::Suffix(lower.clone())),
        None => check_host(&lower).map(|()| NameMatch::Exact(lower)),
    }
}

/// Reads a network in CIDR form, or a single address.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_network(text: &str) -> Result<Network, Fault> {
    let (ip, prefix) = match text.split_once('/') {
        Some((ip, prefix)) => (ip, Some(prefix)),
        None => (text, None),
    };
    let Ok(address) = ip.parse::<IpAddr>() else {
        let fault = Fault::new(format!("{} is not an IP network", quoted(text)));
        return Err(fault.help("write an address and a prefix length, such as \"10.0.0.0/8\" or \"2001:db8::/32\""));
    };
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(Fault::new(format!("{} is an IPv4 address in IPv6 form", quoted(ip)))
            .help(format!("write it as IPv4: \"{}\"", v6.to_canonical())));
    }
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    let Some(prefix) = prefix else { return Ok(Network { address, prefix: bits }) };
    match prefix.parse::<u8>() {
        Ok(prefix) if prefix <= bits => Ok(Network { address, prefix }),
        Ok(_) | Err(_) => Err(Fault::new(format!("{} is not a prefix length", quoted(prefix)))
            .help(format!("it is a number from 0 to {bits}"))),
    }
}

/// The address with all bits behind the prefix cleared.
#[must_use]
pub fn first_of(network: Network) -> IpAddr {
    match network.address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(network.prefix.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

/// Whether the kernel would refuse to bind one while the other is bound. IPv6 listeners take IPv6 only.
#[must_use]
pub fn conflict(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Unix(a), Address::Unix(b)) => a == b,
        (Address::Inet(a), Address::Inet(b)) => {
            a.port() == b.port()
                && a.port() != 0
                && a.is_ipv4() == b.is_ipv4()
                && (a.ip() == b.ip() && scope(a) == scope(b) || a.ip().is_unspecified() || b.ip().is_unspecified())
        }
        (Address::Unix(_), Address::Inet(_)) | (Address::Inet(_), Address::Unix(_)) => false,
    }
}

fn scope(addr: &SocketAddr) -> u32 {
    match addr {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(addr) => addr.scope_id(),
    }
}

fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// As [`quoted`], without the backticks.
fn plain(text: &str) -> String {
    quoted(text).trim_matches('`').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(text: &str) -> Result<String, String> {
        parse_bind(text).map(|a| a.to_string()).map_err(|f| f.help.unwrap_or_default())
    }

    #[test]
    fn binds_are_addresses_with_a_port() {
        for text in ["127.0.0.1:8080", "0.0.0.0:0", "[::1]:80", "[fe80::1%2]:80", "unix:/run/a b.sock"] {
            assert_eq!(bind(text).unwrap(), text);
        }
        assert_eq!(bind("LocalHost:81").unwrap(), "127.0.0.1:81");
        assert!(bind("8080").unwrap_err().contains("\"127.0.0.1:8080\""));
        assert!(bind(":8080").unwrap_err().contains("\"0.0.0.0:8080\""));
        assert!(bind("*:80").unwrap_err().contains("\"0.0.0.0:80\""));
        assert!(bind("127.0.0.1").unwrap_err().contains("\"127.0.0.1:8080\""));
        assert!(bind("::1").unwrap_err().contains("\"[::1]:8080\""));
        assert!(bind("[::ffff:10.0.0.1]:80").unwrap_err().contains("\"10.0.0.1:80\""));
        assert!(bind("example.com:80").unwrap_err().contains("\"0.0.0.0:80\""));
        assert!(bind("http://127.0.0.1:9001/x").unwrap_err().contains("\"127.0.0.1:9001\""));
        assert!(bind("/run/a.sock").unwrap_err().contains("\"unix:/run/a.sock\""));
        for text in [
            "",
            ":",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "127.0.0.1:+80",
            "1.2.3:80",
            "[::1:80",
            "unix:",
            "unix:a",
            "a b:1",
        ] {
            assert!(bind(text).is_err(), "{text}");
        }
        assert!(parse_bind(&format!("unix:/{}", "x".repeat(107))).is_err());
        assert!(parse_bind(&format!("unix:/{}", "x".repeat(106))).is_ok());
    }

    #[test]
    fn servers_may_be_named() {
        let target = Target::Host { name: "db.internal".to_owned(), port: 5432 };
        assert_eq!(parse_server("DB.internal:5432").unwrap(), ServerAddress::Name(target));
        for text in ["0x7f000001:80", "db.0x7f:80", "db.1:80"] {
            assert!(parse_server(text).unwrap_err().what.contains("does not end with a number"), "{text}");
        }
        let target = Target::Service { name: "_http._tcp.db.internal".to_owned() };
        assert_eq!(parse_service("_http._tcp.DB.internal").unwrap(), target);
        assert!(parse_service("_http._tcp.db:80").is_err() && parse_service("127.0.0.1").is_err());
        assert!(matches!(parse_server("[::1]:9001").unwrap(), ServerAddress::Literal(Address::Inet(_))));
        assert!(matches!(parse_server("unix:/a").unwrap(), ServerAddress::Literal(Address::Unix(_))));
        for text in ["db", "db:0", "127.0.0.1:0", "db_1 :80", "dé:80", "a..b:80", "-"] {
            assert!(parse_server(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_are_exact_or_have_a_wildcard_label() {
        assert_eq!(parse_host("Example.COM").unwrap(), HostMatch::Exact("example.com".to_owned()));
        assert_eq!(parse_host("*.Example.com").unwrap(), HostMatch::Wildcard(".example.com".to_owned()));
        assert_eq!(parse_host("[::1]").unwrap(), HostMatch::Exact("[::1]".to_owned()));
        let bad = [
            "",
            "*",
            "*.",
            "a.*.b",
            "*a.b",
            "*.*.b",
            "a:80",
            "http://a",
            "a/b",
            "::1",
            "[x]",
            "a.",
            "bücher.de",
            "a b",
        ];
        for text in bad {
            assert!(parse_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_are_prefixes_or_exact() {
        assert_eq!(parse_path("/api/").unwrap(), PathMatch::Prefix("/api/".to_owned()));
        assert_eq!(parse_path("=/").unwrap(), PathMatch::Exact("/".to_owned()));
        for text in ["", "=", "api", "=api", "/a?b", "/a#b", "/a b", "/é", "/a/*", "/\u{7f}"] {
            assert!(parse_path(text).is_err(), "{text}");
        }
        // What no request has when routes are looked at.
        for text in ["/../x", "/a/./b", "/a/%2E/", "=/a/..", "/%zz", "/a%2", "=/a%2"] {
            assert_eq!(parse_path(text).is_err(), text != "/a%2", "{text}");
        }
        for text in ["/.well-known/", "/a/..", "/a%20b", "=/a/..b"] {
            assert!(parse_path(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn networks_are_cidr() {
        assert_eq!(parse_network("10.0.0.1").unwrap().prefix, 32);
        assert_eq!(parse_network("2001:db8::/32").unwrap().prefix, 32);
        assert_eq!(first_of(parse_network("10.1.2.3/8").unwrap()).to_string(), "10.0.0.0");
        assert_eq!(first_of(parse_network("2001:db8:1::1/0").unwrap()).to_string(), "::");
        for text in ["", "x", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "::/129", "10.0.0/8", "::ffff:10.0.0.0/104"] {
            assert!(parse_network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn wildcards_conflict_with_specific_addresses_of_their_family() {
        let both = |a: &str, b: &str| {
            let (a, b) = (parse_bind(a).unwrap(), parse_bind(b).unwrap());
            assert_eq!(conflict(&a, &b), conflict(&b, &a));
            conflict(&a, &b)
        };
        assert!(both("127.0.0.1:80", "127.0.0.1:80"));
        assert!(both("0.0.0.0:80", "127.0.0.1:80"));
        assert!(both("[::]:80", "[::1]:80"));
        assert!(both("unix:/a", "unix:/a"));
        assert!(!both("0.0.0.0:80", "[::]:80"));
        assert!(!both("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!both("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!both("unix:/a", "unix:/b"));
    }
}
