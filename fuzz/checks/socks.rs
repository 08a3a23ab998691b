//! Any bytes as the beginning of a SOCKS connection: splits do not matter, bounds hold, and nobody gets a target
//! without a password where one is asked for.
use workers::proto::socks::{Event, MAX_BYTES, Socks5, request4};

/// Replies, credentials seen, target, error and bytes used.
fn negotiate<'a>(auth: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, bool, String, usize) {
    let mut socks = Socks5::new(auth);
    let (mut replies, mut proved, mut end, mut used, mut all) = (Vec::new(), false, String::new(), 0, Vec::new());
    for piece in pieces {
        all.extend_from_slice(piece);
        while end.is_empty() {
            match socks.next(&all[used..]) {
                Ok(Event::More) => break,
                Ok(Event::Reply { used: n, reply }) => {
                    used += n;
                    replies.extend_from_slice(&reply);
                }
                Ok(Event::Credentials { used: n, .. }) => {
                    used += n;
                    proved = true;
                    replies.extend_from_slice(&socks.verdict(true));
                }
                Ok(Event::Connect { used: n, target, .. }) => {
                    used += n;
                    end = target.to_string();
                }
                Err(error) => {
                    end = error.to_string();
                    socks.farewell(error, &mut replies);
                }
            }
        }
        assert!(!end.is_empty() || all.len() <= MAX_BYTES, "no more than the bound is waited for");
    }
    assert!(!auth || proved || end.is_empty() || replies.ends_with(&[0xff]) || replies.ends_with(&[1]));
    (replies, proved, end, used)
}

/// Checks that.
///
/// # Panics
/// When it does not hold.
pub fn check(raw: &[u8]) {
    for auth in [false, true] {
        assert_eq!(negotiate(auth, [raw]), negotiate(auth, raw.chunks(1)));
    }
    let whole = request4(raw);
    for end in 0..raw.len().min(600) {
        let part = request4(&raw[..end]);
        assert!(part == Ok(Event::More) || part == whole, "{part:?} then {whole:?}");
    }
}
