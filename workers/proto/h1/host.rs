//! Authorities: the Host field's value and the one in a request target (RFC 9110 section 7.2, RFC 3986 section 3.2).

use std::net::Ipv6Addr;

use super::error::HostFault;
use super::lex;
use super::span::Span;

/// The longest host taken, in bytes (RFC 1035 section 2.3.4 allows no longer name).
const MAX_HOST: usize = 255;

/// A checked authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Authority {
    /// Host and port, without the colon of an empty port.
    pub(super) text: Span,
    /// The host alone, without port and without the dot that ends a fully qualified name; brackets included.
    pub(super) name: Span,
    /// The port, when one is given.
    pub(super) port: Option<u16>,
}

/// Checks the authority at `start..end` of `bytes`.
pub(super) fn authority(bytes: &[u8], start: usize, end: usize) -> Result<Authority, HostFault> {
    let text = bytes.get(start..end).unwrap_or_default();
    if text.is_empty() {
        return Err(HostFault::Empty);
    }
    let host_len = if text[0] == b'[' { ipv6_len(text)? } else { name_len(text)? };
    let mut name_len = host_len;
    if text[host_len - 1] == b'.' {
        name_len -= 1;
    }
    let (port, len) = match text.get(host_len..) {
        None | Some([]) => (None, host_len),
        Some([b':']) => (None, host_len),
        Some([b':', digits @ ..]) => (Some(port(digits)?), text.len()),
        Some([b'@', ..]) => return Err(HostFault::UserInfo),
        Some([byte, ..]) => return Err(HostFault::Byte { byte: *byte }),
    };
    Ok(Authority { text: Span::new(start, start + len), name: Span::new(start, start + name_len), port })
}

/// Length of the registered name or IPv4 address that `text` begins with.
fn name_len(text: &[u8]) -> Result<usize, HostFault> {
    let len = text.iter().position(|&byte| !lex::is(byte, lex::HOST)).unwrap_or(text.len());
    let name = &text[..len];
    if len < text.len() && text[len] != b':' || text[len..].contains(&b'@') {
        // `user:password@host` gets to the colon first.
        let fault = if text.contains(&b'@') { HostFault::UserInfo } else { HostFault::Byte { byte: text[len] } };
        return Err(fault);
    }
    if len == 0 {
        return Err(HostFault::Empty);
    }
    if len > MAX_HOST {
        return Err(HostFault::TooLong);
    }
    if name[0] == b'.' || name.windows(2).any(|pair| pair == b"..") {
        return Err(HostFault::EmptyLabel);
    }
    Ok(len)
}

/// Length of the bracketed IPv6 address that `text` begins with. Zones and future versions are refused.
fn ipv6_len(text: &[u8]) -> Result<usize, HostFault> {
    let close = text.iter().take(MAX_HOST).position(|&byte| byte == b']').ok_or(HostFault::Ipv6)?;
    let inner = std::str::from_utf8(&text[1..close]).map_err(|_| HostFault::Ipv6)?;
    inner.parse::<Ipv6Addr>().map_err(|_| HostFault::Ipv6)?;
    Ok(close + 1)
}

fn port(digits: &[u8]) -> Result<u16, HostFault> {
    if digits.len() > 5 {
        return Err(HostFault::Port);
    }
    let number = super::list::number(digits).map_err(|_| HostFault::Port)?;
    u16::try_from(number).ok().filter(|&port| port != 0).ok_or(HostFault::Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(&str, &str, Option<u16>), HostFault> {
        let found = authority(text.as_bytes(), 0, text.len())?;
        let of = |span: Span| std::str::from_utf8(span.of(text.as_bytes())).unwrap();
        Ok((of(found.text), of(found.name), found.port))
    }

    #[test]
    fn authorities_taken() {
        for (text, want) in [
            ("example.com", ("example.com", "example.com", None)),
            ("example.com:8080", ("example.com:8080", "example.com", Some(8080))),
            ("example.com:", ("example.com", "example.com", None)),
            ("example.com.", ("example.com.", "example.com", None)),
            ("example.com.:80", ("example.com.:80", "example.com", Some(80))),
            ("EXAMPLE.com:00080", ("EXAMPLE.com:00080", "EXAMPLE.com", Some(80))),
            ("a_b~c-d", ("a_b~c-d", "a_b~c-d", None)),
            ("127.0.0.1:65535", ("127.0.0.1:65535", "127.0.0.1", Some(65535))),
            ("[::1]", ("[::1]", "[::1]", None)),
            ("[::1]:443", ("[::1]:443", "[::1]", Some(443))),
            ("[::1]:", ("[::1]", "[::1]", None)),
            ("[2001:db8::ffff:192.0.2.1]", ("[2001:db8::ffff:192.0.2.1]", "[2001:db8::ffff:192.0.2.1]", None)),
        ] {
            assert_eq!(check(text), Ok(want), "{text}");
        }
        assert!(check(&"a".repeat(255)).is_ok());
    }

    #[test]
    fn authorities_refused() {
        for (text, want) in [
            ("", HostFault::Empty),
            (":80", HostFault::Empty),
            ("a,b", HostFault::Byte { byte: b',' }),
            ("a b", HostFault::Byte { byte: b' ' }),
            ("a/b", HostFault::Byte { byte: b'/' }),
            ("a%41", HostFault::Byte { byte: b'%' }),
            ("a?b", HostFault::Byte { byte: b'?' }),
            ("a#b", HostFault::Byte { byte: b'#' }),
            ("a\\b", HostFault::Byte { byte: b'\\' }),
            ("a;b", HostFault::Byte { byte: b';' }),
            ("a'b", HostFault::Byte { byte: b'\'' }),
            ("(a)", HostFault::Byte { byte: b'(' }),
            ("<a>", HostFault::Byte { byte: b'<' }),
            ("é", HostFault::Byte { byte: 0xc3 }),
            ("user@a", HostFault::UserInfo),
            ("user:pw@a", HostFault::UserInfo),
            ("a:80@b", HostFault::UserInfo),
            ("@a", HostFault::UserInfo),
            (".", HostFault::EmptyLabel),
            (".a", HostFault::EmptyLabel),
            ("a..b", HostFault::EmptyLabel),
            ("a..", HostFault::EmptyLabel),
            ("a:0", HostFault::Port),
            ("a:65536", HostFault::Port),
            ("a:99999", HostFault::Port),
            ("a:000080", HostFault::Port),
            ("a:+80", HostFault::Port),
            ("a:-1", HostFault::Port),
            ("a: 80", HostFault::Port),
            ("a:80 ", HostFault::Port),
            ("a:8x", HostFault::Port),
            ("a:0x50", HostFault::Port),
            ("a::80", HostFault::Port),
            ("a:80:80", HostFault::Port),
            ("a:80,b", HostFault::Port),
            ("[", HostFault::Ipv6),
            ("[]", HostFault::Ipv6),
            ("[::1", HostFault::Ipv6),
            ("[::g]", HostFault::Ipv6),
            ("[1.2.3.4]", HostFault::Ipv6),
            ("[fe80::1%25eth0]", HostFault::Ipv6),
            ("[v1.a]", HostFault::Ipv6),
            ("[::1]x", HostFault::Byte { byte: b'x' }),
            ("[::1]@a", HostFault::UserInfo),
            ("[::1]:x", HostFault::Port),
            ("::1", HostFault::Empty),
            ("1::2", HostFault::Port),
        ] {
            assert_eq!(check(text), Err(want), "{text}");
        }
        assert_eq!(check(&"a".repeat(256)), Err(HostFault::TooLong));
        let label = "a.".repeat(5000);
        assert_eq!(check(&label), Err(HostFault::TooLong));
    }
}
