//! Protocols that clients speak by mistake where HTTP/1 is spoken, known by their first bytes. Only names them: whether
//! the bytes are refused is the HTTP parser's verdict.

/// What HTTP/2 begins with (RFC 9113 section 3.4), as far as HTTP/1 reads it before it refuses it.
const HTTP2: &[u8] = b"PRI * ";
/// The record that TLS begins with: a handshake, of any version since SSL 3 (RFC 8446 section 5.1).
const TLS: &[u8] = &[0x16, 3];

/// Why a request is refused that begins with these bytes, if they are another protocol's.
#[must_use]
pub fn reason(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(HTTP2) {
        Some("HTTP/2 without TLS is not spoken here")
    } else if bytes.starts_with(TLS) {
        Some("TLS on a listener that speaks plain HTTP")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_protocols_are_known_by_their_first_bytes() {
        assert_eq!(reason(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some("HTTP/2 without TLS is not spoken here"));
        assert_eq!(reason(b"\x16\x03\x01\x02\x00\x01"), Some("TLS on a listener that speaks plain HTTP"));
        for other in [&b""[..], b"\x16", b"\x16\x02", b"PRI *", b"PRI /x HTTP/1.1\r\n", b"GET * HTTP/1.1"] {
            assert_eq!(reason(other), None, "{other:?}");
        }
    }
}
