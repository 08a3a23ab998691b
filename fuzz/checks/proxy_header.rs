//! Any bytes as a PROXY header: splits do not matter, and what is read is written so that it reads the same.

use ipc::snapshot::ProxyVersion;
use workers::proto::proxy_header::{MAX_BYTES, parse, write};

/// Checks that.
///
/// # Panics
/// When it does not hold.
pub fn check(raw: &[u8]) {
    let whole = parse(raw);
    // A prefix may only wait, or say what the whole says.
    for end in 0..raw.len().min(200) {
        let part = parse(&raw[..end]);
        assert!(part == Ok(None) || part == whole, "{part:?} then {whole:?}");
    }
    let Ok(Some(header)) = whole else { return };
    assert!((15..=MAX_BYTES.min(raw.len())).contains(&header.length));
    assert_eq!(parse(&raw[..header.length]), whole);
    assert_eq!(parse(&raw[..header.length - 1]), Ok(None));
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let mut out = Vec::new();
        write(&mut out, version, header.ends.as_ref());
        let again = parse(&out).expect("what we write is valid").expect("and whole");
        assert_eq!(again.length, out.len());
        assert_eq!(again.ends, header.ends);
    }
}
