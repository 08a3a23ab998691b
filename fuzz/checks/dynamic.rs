//! Any bytes as the line of a dynamic address exchange: splits do not matter, and the line is bounded.
use workers::proto::dynamic::{MAX_BYTES, parse};
use workers::proto::endpoint::Endpoint;

/// Checks that.
///
/// # Panics
/// When it does not hold.
pub fn check(raw: &[u8]) {
    let whole = parse(raw);
    for end in 0..raw.len().min(300) {
        let part = parse(&raw[..end]);
        assert!(part == Ok(None) || part == whole, "{part:?} then {whole:?}");
    }
    if raw.len() >= MAX_BYTES {
        assert_ne!(whole, Ok(None));
    }
    let Ok(Some((request, used))) = whole else { return };
    assert!(used <= MAX_BYTES && raw[used - 1] == b'\n');
    let shown = request.target.to_string();
    assert_eq!(Endpoint::parse(shown.as_bytes()).as_ref(), Ok(&request.target));
}
