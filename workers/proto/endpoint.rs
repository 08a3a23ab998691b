//! A target as a client names it: a host and a port.
//!
//! One reading only: an IPv4 address is four decimal numbers, and what resolvers of some systems would take for one
//! besides (`127.1`, `0x7f.1`, `2130706433`, `0177.0.0.1`) is neither an address nor a name. What is a name is put
//! into one form, so that rules about names cannot be got round by its spelling.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest name (RFC 1035 section 2.3.4), and its longest label.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address. An IPv4-mapped one has been made the IPv4 address that it stands for.
    Ip(IpAddr),
    /// A name, in lower case, without its final dot.
    Name(Box<str>),
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

/// Why something is no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointError {
    /// It is not `HOST:PORT`.
    NoPort,
    /// The port is not a number from 1 to 65535.
    Port,
    /// The host is empty, too long, or has bytes that names do not have.
    Name,
    /// It looks like an IPv4 address, but is not four decimal numbers.
    Ipv4,
    /// What stands within brackets is no IPv6 address.
    Ipv6,
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndpointError::NoPort => "the target has no port",
            EndpointError::Port => "the target's port is not a number from 1 to 65535",
            EndpointError::Name => "the target's host is not a name",
            EndpointError::Ipv4 => "the target's host is like an IPv4 address, but not four decimal numbers",
            EndpointError::Ipv6 => "the target's host is not an IPv6 address",
        })
    }
}

impl Host {
    /// Reads a host: an IPv4 address, an IPv6 address (within brackets or not), or a name.
    ///
    /// # Errors
    /// Why it is none of these.
    pub fn parse(text: &[u8]) -> Result<Host, EndpointError> {
        if let Some(inner) = text.strip_prefix(b"[") {
            let inner = inner.strip_suffix(b"]").and_then(|inner| std::str::from_utf8(inner).ok());
            let ip = inner.and_then(|inner| inner.parse::<Ipv6Addr>().ok()).ok_or(EndpointError::Ipv6)?;
            return Ok(Host::ip(IpAddr::V6(ip)));
        }
        let text = std::str::from_utf8(text).map_err(|_| EndpointError::Name)?;
        if text.contains(':') {
            return text.parse::<Ipv6Addr>().map(|ip| Host::ip(IpAddr::V6(ip))).map_err(|_| EndpointError::Ipv6);
        }
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Host::Ip(IpAddr::V4(ip)));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(EndpointError::Name);
        }
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let label = |label: &str| (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(good);
        if !name.split('.').all(label) {
            return Err(EndpointError::Name);
        }
        let last = name.rsplit('.').next().unwrap_or(name);
        if is_number(last) {
            return Err(EndpointError::Ipv4);
        }
        Ok(Host::Name(name.to_ascii_lowercase().into()))
    }

    /// An address.
    #[must_use]
    pub fn ip(ip: IpAddr) -> Host {
        Host::Ip(ip.to_canonical())
    }
}

/// Whether resolvers may take a label for a number: digits, or hexadecimal digits behind `0x`. A name with such a last
/// label is an address to them, or nothing.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

impl Endpoint {
    /// Reads a port.
    ///
    /// # Errors
    /// When it is not a number from 1 to 65535.
    pub fn parse_port(text: &[u8]) -> Result<u16, EndpointError> {
        parse_port(text)
    }

    /// Reads `HOST:PORT`. An IPv6 address stands within brackets.
    ///
    /// # Errors
    /// Why it is not that.
    pub fn parse(text: &[u8]) -> Result<Endpoint, EndpointError> {
        let colon = text.iter().rposition(|&byte| byte == b':').ok_or(EndpointError::NoPort)?;
        let (host, port) = (&text[..colon], &text[colon + 1..]);
        if !host.starts_with(b"[") && host.contains(&b':') {
            return Err(EndpointError::Ipv6);
        }
        Ok(Endpoint { port: parse_port(port)?, host: Host::parse(host)? })
    }
}

fn parse_port(text: &[u8]) -> Result<u16, EndpointError> {
    let digits = (1..=5).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| text.parse::<u16>().ok());
    number.filter(|&port| port > 0).ok_or(EndpointError::Port)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Host::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Result<String, EndpointError> {
        Endpoint::parse(text.as_bytes()).map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn names_and_addresses_have_one_form() {
        for (text, wanted) in [
            ("example.com:443", "example.com:443"),
            ("EXAMPLE.Com.:0443", "example.com:443"),
            ("a:1", "a:1"),
            ("_x.a-b.test:65535", "_x.a-b.test:65535"),
            ("192.0.2.7:80", "192.0.2.7:80"),
            ("[2001:DB8::1]:80", "[2001:db8::1]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("[::FFFF:7F00:1]:80", "127.0.0.1:80"),
            ("0x7f.example:80", "0x7f.example:80"),
            ("1.2.3.4.example:80", "1.2.3.4.example:80"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn other_spellings_of_ipv4_addresses_are_no_targets() {
        for host in [
            "2130706433",
            "127.1",
            "127.0.1",
            "0177.0.0.1",
            "0x7f.0.0.1",
            "0x7f000001",
            "0X7F000001",
            "017700000001",
            "127.0.0.01",
            "127.0.0.0x1",
            "127.0.0.256",
            "1.2.3.4.5",
            "127.0.0.1.",
            "0x",
            "example.0x7f",
            "example.1",
        ] {
            assert_eq!(shown(&format!("{host}:80")), Err(EndpointError::Ipv4), "{host}");
        }
    }

    #[test]
    fn what_is_no_target_says_why() {
        use EndpointError::{Ipv6, Name, NoPort, Port};
        for (text, wanted) in [
            ("", NoPort),
            ("a", NoPort),
            ("a:", Port),
            ("a:0", Port),
            ("a:65536", Port),
            ("a:+1", Port),
            ("a:000080", Port),
            ("a: 80", Port),
            (":80", Name),
            (".:80", Name),
            ("a..b:80", Name),
            (".a:80", Name),
            ("a b:80", Name),
            ("a/b:80", Name),
            ("a@b:80", Name),
            ("a%2e:80", Name),
            ("b\u{fc}cher.test:80", Name),
            ("\u{ff11}.test:80", Name),
            ("::1:80", Ipv6),
            ("[::1:80", Ipv6),
            ("[::1%lo]:80", Ipv6),
            ("[fe80::1%1]:80", Ipv6),
            ("[127.0.0.1]:80", Ipv6),
            ("[]:80", Ipv6),
        ] {
            assert_eq!(shown(text), Err(wanted), "{text}");
        }
        assert_eq!(shown(&format!("{}:80", "a".repeat(64))), Err(Name));
        assert_eq!(shown(&format!("{}a:80", "a.".repeat(127))), Err(Name));
        assert_eq!(Endpoint::parse(b"\xff:80"), Err(Name));
    }

    proptest! {
        #[test]
        fn what_is_read_reads_the_same_as_it_is_shown(text in "[a-zA-Z0-9_.:\\[\\]x-]{0,24}") {
            if let Ok(endpoint) = Endpoint::parse(text.as_bytes()) {
                prop_assert_eq!(Endpoint::parse(endpoint.to_string().as_bytes()), Ok(endpoint));
            }
        }
    }
}
