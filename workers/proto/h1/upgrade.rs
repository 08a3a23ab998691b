//! The Upgrade field (RFC 9110 section 7.8): which protocols may be offered through this proxy, and whether the one that
//! a server chose was. Decides only; removing and writing the field is for the rewriting of heads.

use super::{lex, list};

/// Whether an Upgrade value offers only protocols that may be tunnelled; `None` when it is malformed. HTTP and TLS in
/// any version, h2c included, are protocols this proxy would have to speak itself: a tunnel would carry requests past
/// it.
#[must_use]
pub fn is_tunnel_offer(value: &[u8]) -> Option<bool> {
    let mut tunnel = false;
    for protocol in list::members(value) {
        let mut parts = protocol.splitn(2, |&byte| byte == b'/');
        let name = parts.next().unwrap_or_default();
        if !lex::is_token(name) || !parts.next().is_none_or(lex::is_token) {
            return None;
        }
        let begins = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|n| n.eq_ignore_ascii_case(prefix));
        if begins(b"h2") || begins(b"h3") || begins(b"http") || begins(b"tls") {
            return Some(false);
        }
        tunnel = true;
    }
    Some(tunnel)
}

/// Whether the protocol that a 101 response switched to is among those the request offered (RFC 9110 section 7.8).
/// Names and versions are compared without regard to case; exactly one protocol must have been chosen.
#[must_use]
pub fn protocol_was_offered(offered: &[u8], chosen: &[u8]) -> bool {
    let mut chosen = list::members(chosen);
    match (chosen.next(), chosen.next()) {
        (Some(one), None) => list::members(offered).any(|protocol| protocol.eq_ignore_ascii_case(one)),
        (None, _) | (Some(_), Some(_)) => false,
    }
}
