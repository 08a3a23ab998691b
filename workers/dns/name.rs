//! What may be looked up: names in the form the resolver works with, and what looks like an address.
//!
//! Nothing here asks anybody.

use std::net::IpAddr;

/// The longest name in text, without its last dot (RFC 1035 section 2.3.4).
const NAME_MAX: usize = 253;
/// The longest label.
const LABEL_MAX: usize = 63;

/// What a text stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address, written as such. There is nothing to ask for.
    Address(IpAddr),
    /// A name, in lower case and without its last dot.
    Name {
        /// The name.
        text: String,
        /// It ended with a dot: no search suffix is to be tried.
        absolute: bool,
    },
}

/// Reads a host as clients and configurations write it.
///
/// Addresses are those in the usual notation only: four decimal numbers, or IPv6 without brackets and scope. What
/// other programs may take for an address (`0x7f000001`, `2130706433`, `127.1`) is neither an address nor a name.
///
/// # Errors
/// Why it is neither.
pub fn read(text: &str) -> Result<Host, &'static str> {
    if let Ok(address) = text.parse() {
        return Ok(Host::Address(address));
    }
    let (text, absolute) = match text.strip_suffix('.') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    if text.is_empty() || text.len() > NAME_MAX {
        return Err("a name has 1 to 253 characters");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    for label in text.split('.') {
        if label.is_empty() || label.len() > LABEL_MAX {
            return Err("each part of a name has 1 to 63 characters");
        }
        if !label.bytes().all(allowed) {
            return Err("a name is made of letters, digits, `-`, `_` and dots");
        }
    }
    if text.rsplit('.').next().is_some_and(is_number) {
        return Err("a name does not end with a number");
    }
    Ok(Host::Name { text: text.to_ascii_lowercase(), absolute })
}

/// Whether a last label makes lenient parsers take the whole for an IPv4 address: decimal, octal or hexadecimal (the
/// URL Standard's "ends in a number").
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    label.bytes().all(|byte| byte.is_ascii_digit()) || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether every name server would have to say that this name is the machine itself (RFC 6761 section 6.3).
#[must_use]
pub fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// Whether an alias may lead to this name, as an answer has it. What some resolvers take for an address, or stands for
/// the machine itself, is nothing that a name server has to say of another name.
#[must_use]
pub fn may_be_alias_target(name: &str) -> bool {
    !is_localhost(name) && !name.rsplit('.').next().is_some_and(is_number)
}

/// Whether no name server may know this name (RFC 6761 section 6.4).
#[must_use]
pub fn is_invalid(name: &str) -> bool {
    name == "invalid" || name.ends_with(".invalid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_not_names() {
        assert_eq!(read("127.0.0.1"), Ok(Host::Address([127, 0, 0, 1].into())));
        assert_eq!(read("::1"), Ok(Host::Address(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST))));
        assert_eq!(read("::ffff:127.0.0.1").map(|s| matches!(s, Host::Address(_))), Ok(true));
    }

    #[test]
    fn what_only_looks_like_an_address_is_neither() {
        for text in [
            "0x7f000001",
            "2130706433",
            "127.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "127.0.0.256",
            "1.2.3.4.5",
            "a.0x",
            "a.0xAf",
            "a.1",
            "0",
            "[::1]",
            "fe80::1%lo",
            "0X7F.1",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn aliases_lead_to_names_only() {
        for text in ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "a.0x7f", "localhost", "a.localhost"] {
            assert!(!may_be_alias_target(text), "{text}");
        }
        for text in ["a", "1.b", "0x7f.b", "localhost.b", "a\\032b.c", "_x._tcp.b"] {
            assert!(may_be_alias_target(text), "{text}");
        }
    }

    #[test]
    fn names_are_lowered_and_checked() {
        let name = |text: &str, absolute| Ok(Host::Name { text: text.to_owned(), absolute });
        assert_eq!(read("App.Internal"), name("app.internal", false));
        assert_eq!(read("app.internal."), name("app.internal", true));
        assert_eq!(read("_http._tcp.app"), name("_http._tcp.app", false));
        assert_eq!(read("1a.x2"), name("1a.x2", false));
        assert_eq!(read("0xg"), name("0xg", false));
        for text in ["", ".", "..", "a..b", ".a", "a b", "a/b", "é", "a\0b", "a..", &"a.".repeat(127), &"a".repeat(64)]
        {
            assert!(read(text).is_err() || text == "a.".repeat(127), "{text:?}");
        }
        assert!(read(&"a.".repeat(127)).is_ok());
        assert!(read(&"a.".repeat(128)).is_err());
    }
}
