//! Tables and properties of the HTTP/1 core. Each row names the section it rests on.

mod bodies;
mod chunked;
mod corpus;
mod oracle;
mod properties;
mod request_accepted;
mod request_refused;
mod response;
mod write;

use super::head::{HeadError, HeadLimits, RequestHead, ResponseHead};

/// Limits that no row means to reach.
const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 100, by_target: false };

/// Parses `raw` whole.
fn request(raw: &[u8]) -> (RequestHead, Result<Option<usize>, HeadError>) {
    let mut head = RequestHead::default();
    let result = head.parse(raw, &LIMITS);
    (head, result)
}

/// Parses `raw` whole.
fn response(raw: &[u8]) -> (ResponseHead, Result<Option<usize>, HeadError>) {
    let mut head = ResponseHead::default();
    let result = head.parse(raw, &LIMITS);
    (head, result)
}

/// Bytes as a message shows them.
fn show(raw: &[u8]) -> String {
    let cut = raw.get(..200).unwrap_or(raw);
    String::from_utf8_lossy(cut).escape_debug().to_string()
}

/// Checks a request row: refused with exactly this fault, whole and byte by byte, and never before its bytes came.
fn refused(section: &str, raw: &[u8], want: HeadError) {
    assert_eq!(request(raw).1, Err(want), "RFC {section}: {}", show(raw));
    let first = (0..=raw.len()).map(|len| request(&raw[..len]).1).find(|r| *r != Ok(None));
    assert_eq!(first, Some(Err(want)), "RFC {section}, byte by byte: {}", show(raw));
}

/// As `refused`, for a field section after a good request line and Host.
fn refused_field(section: &str, line: &[u8], want: HeadError) {
    let mut raw = b"POST / HTTP/1.1\r\nHost: a\r\n".to_vec();
    raw.extend_from_slice(line);
    raw.extend_from_slice(b"\r\n");
    refused(section, &raw, want);
}
