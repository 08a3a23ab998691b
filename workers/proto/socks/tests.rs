//! Tables of both versions' messages, and properties over any bytes.

use proptest::prelude::*;

use super::*;
use crate::proto::mutations::each;

#[path = "../../../fuzz/checks/socks.rs"]
mod checks;

#[test]
fn mutations_of_the_seeds_keep_what_must_hold() {
    each("socks", 4000, checks::check);
}

/// What a whole input comes to, the replies that a server would send included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Seen {
    replies: Vec<u8>,
    credentials: Option<(Vec<u8>, Vec<u8>)>,
    target: Option<(Endpoint, Vec<u8>)>,
    error: Option<SocksError>,
    /// Bytes used by events.
    used: usize,
}

/// Feeds a negotiation with `pieces`, one after the other; every password is right.
fn negotiate<'a>(auth: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut socks = Socks5::new(auth);
    let (mut seen, mut all) = (Seen::default(), Vec::new());
    for piece in pieces {
        all.extend_from_slice(piece);
        loop {
            if seen.target.is_some() || seen.error.is_some() {
                break;
            }
            match socks.next(&all[seen.used..]) {
                Ok(Event::More) => break,
                Ok(Event::Reply { used, reply }) => {
                    seen.used += used;
                    seen.replies.extend_from_slice(&reply);
                }
                Ok(Event::Credentials { used, user, password }) => {
                    seen.credentials = Some((user.to_vec(), password.to_vec()));
                    seen.used += used;
                    seen.replies.extend_from_slice(&socks.verdict(true));
                }
                Ok(Event::Connect { used, target, user }) => {
                    seen.target = Some((target, user.to_vec()));
                    seen.used += used;
                }
                Err(error) => {
                    seen.error = Some(error);
                    socks.farewell(error, &mut seen.replies);
                }
            }
        }
    }
    seen
}

fn whole(auth: bool, bytes: &[u8]) -> Seen {
    let seen = negotiate(auth, [bytes]);
    assert_eq!(negotiate(auth, bytes.chunks(1)), seen, "byte by byte");
    seen
}

#[test]
fn an_address_is_asked_for_without_authentication() {
    let seen = whole(false, b"\x05\x02\x02\x00\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbbearly");
    assert_eq!(seen.replies, [5, 0]);
    assert_eq!(seen.target.unwrap().0.to_string(), "192.0.2.7:443");
    assert_eq!(seen.used, 14);
}

#[test]
fn names_and_ipv6_addresses_are_targets_too() {
    let seen = whole(false, b"\x05\x01\x00\x05\x01\x00\x03\x0bExample.COM\x00\x50");
    assert_eq!(seen.target.unwrap().0.to_string(), "example.com:80");
    let ip = b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01";
    let seen = whole(false, &[b"\x05\x01\x00\x05\x01\x00\x04", &ip[..], b"\x00\x50"].concat());
    assert_eq!(seen.target.unwrap().0.to_string(), "127.0.0.1:80", "a mapped address is what it stands for");
}

#[test]
fn a_name_and_a_password_are_asked_for_where_they_must_be() {
    let seen = whole(true, b"\x05\x02\x00\x02\x01\x03ann\x06secret\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb");
    assert_eq!(seen.replies, [5, 2, 1, 0]);
    assert_eq!(seen.credentials.unwrap(), (b"ann".to_vec(), b"secret".to_vec()));
    assert!(seen.target.is_some());
}

#[test]
fn nothing_follows_a_wrong_password() {
    let mut socks = Socks5::new(true);
    assert!(matches!(socks.next(b"\x05\x01\x02"), Ok(Event::Reply { used: 3, .. })));
    assert!(matches!(socks.next(b"\x01\x01a\x01b"), Ok(Event::Credentials { used: 5, .. })));
    assert_eq!(socks.next(b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb"), Ok(Event::More), "before the verdict");
    assert_eq!(socks.verdict(false), [1, 1]);
    assert_eq!(socks.next(b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb"), Ok(Event::More));
}

#[test]
fn what_is_not_served_is_told_so() {
    let refused = |auth: bool, bytes: &[u8]| {
        let seen = whole(auth, bytes);
        (seen.error.unwrap(), seen.replies)
    };
    let after = |request: &[u8]| {
        let (error, replies) = refused(false, &[b"\x05\x01\x00", request].concat());
        (error, replies[3])
    };
    assert_eq!(refused(false, b"\x05\x00"), (SocksError::Method { password: false }, vec![5, 0xff]));
    assert_eq!(refused(false, b"\x05\x01\x02"), (SocksError::Method { password: false }, vec![5, 0xff]));
    assert_eq!(refused(true, b"\x05\x02\x00\x01"), (SocksError::Method { password: true }, vec![5, 0xff]));
    assert_eq!(refused(true, b"\x05\x01\x02\x01\x00\x00"), (SocksError::EmptyCredentials, vec![5, 2, 1, 1]));
    assert_eq!(refused(true, b"\x05\x01\x02\x05\x01"), (SocksError::Version, vec![5, 2, 1, 1]));
    assert_eq!(after(b"\x05\x02"), (SocksError::Command(2), 7));
    assert_eq!(after(b"\x05\x03"), (SocksError::Command(3), 7));
    assert_eq!(after(b"\x05\x01\x01"), (SocksError::Reserved, 1));
    assert_eq!(after(b"\x05\x01\x00\x02"), (SocksError::AddressType(2), 8));
    assert_eq!(after(b"\x04"), (SocksError::Version, 1));
    assert_eq!(after(b"\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x00"), (SocksError::Target(EndpointError::Port), 1));
    assert_eq!(after(b"\x05\x01\x00\x03\x00"), (SocksError::Target(EndpointError::Name), 1));
    assert_eq!(after(b"\x05\x01\x00\x03\x05127.1\x00\x50"), (SocksError::Target(EndpointError::Ipv4), 1));
    assert_eq!(after(b"\x05\x01\x00\x03\x03a\0b\x00\x50"), (SocksError::Target(EndpointError::Name), 1));
}

#[test]
fn version_4_names_addresses_and_4a_names() {
    let connect = |bytes: &[u8]| match request4(bytes) {
        Ok(Event::Connect { used, target, user }) => (used, target.to_string(), user.to_vec()),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        connect(b"\x04\x01\x01\xbb\xc0\x00\x02\x07ann\0early"),
        (12, "192.0.2.7:443".to_owned(), b"ann".to_vec())
    );
    assert_eq!(connect(b"\x04\x01\x00\x50\x00\x00\x00\x01\0a.Test\0x"), (16, "a.test:80".to_owned(), Vec::new()));
    assert_eq!(connect(b"\x04\x01\x00\x50\x00\x00\x00\x00\0").1, "0.0.0.0:80");
    let refused = |bytes: &[u8]| request4(bytes).unwrap_err();
    assert_eq!(refused(b"\x04\x02"), SocksError::Command(2));
    assert_eq!(refused(&[b"\x04\x01\x00\x50\x01\x02\x03\x04", &[b'x'; 256][..]].concat()), SocksError::TooLong);
    assert_eq!(refused(b"\x04\x01\x00\x00\x01\x02\x03\x04\0"), SocksError::Target(EndpointError::Port));
    assert_eq!(refused(&[b"\x04\x01\x00\x50\x00\x00\x00\x01\0", &[b'x'; 256][..]].concat()), SocksError::TooLong);
}

#[test]
fn replies_have_the_form_of_their_version() {
    let five = |outcome, bound: Option<&str>| {
        let mut out = Vec::new();
        reply5(outcome, bound.map(|text| text.parse().unwrap()), &mut out);
        out
    };
    assert_eq!(five(Outcome::Succeeded, Some("192.0.2.1:258")), [5, 0, 0, 1, 192, 0, 2, 1, 1, 2]);
    assert_eq!(five(Outcome::NotAllowed, None), [5, 2, 0, 1, 0, 0, 0, 0, 0, 0]);
    let six = five(Outcome::Succeeded, Some("[2001:db8::1]:80"));
    assert_eq!((six.len(), &six[..6]), (22, &[5, 0, 0, 4, 0x20, 0x01][..]));
    let mut out = Vec::new();
    reply4(Outcome::Succeeded, &mut out);
    reply4(Outcome::NotAllowed, &mut out);
    assert_eq!(out, [0, 90, 0, 0, 0, 0, 0, 0, 0, 91, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_longest_beginning_fits_the_bound() {
    let text = |n: usize| [&[u8::try_from(n).unwrap()][..], &vec![b'a'; n]].concat();
    let mut bytes = vec![5];
    bytes.extend([&[255][..], &[2; 255]].concat());
    bytes.push(1);
    bytes.extend([text(255), text(255)].concat());
    let before = bytes.len();
    bytes.extend([b"\x05\x01\x00\x03".to_vec(), text(255), vec![0, 80]].concat());
    assert_eq!(bytes.len(), MAX_BYTES);
    // That name is too long for one, but no more is waited for.
    assert_eq!(whole(true, &bytes).error, Some(SocksError::Target(EndpointError::Name)));
    assert_eq!(whole(true, &bytes[..before]).error, None);
}

/// Beginnings as clients send them, right and wrong.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\x05\x01\x00".to_vec()),
        Just(b"\x05\x01\x02".to_vec()),
        Just(b"\x05\x02\x00\x02".to_vec()),
        Just(b"\x01\x03ann\x03key".to_vec()),
        Just(b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb".to_vec()),
        Just(b"\x05\x01\x00\x03\x06a.test\x01\xbb".to_vec()),
        Just(b"\x05\x02\x00\x01".to_vec()),
        prop::collection::vec(any::<u8>(), 0..8),
        prop::collection::vec(0..6u8, 0..8),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn splits_do_not_matter(auth in any::<bool>(), bytes in input(), cuts in prop::collection::vec(0..64usize, 0..6)) {
        let seen = negotiate(auth, [&bytes[..]]);
        prop_assert_eq!(&negotiate(auth, bytes.chunks(1)), &seen);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain(std::iter::once(bytes.len()));
        let pieces: Vec<&[u8]> = starts.zip(ends).map(|(from, to)| &bytes[from..to]).collect();
        prop_assert_eq!(&negotiate(auth, pieces), &seen);
        if auth {
            prop_assert!(seen.target.is_none() || seen.credentials.is_some());
        }
    }

    #[test]
    fn a_part_of_version_4_waits_or_says_what_the_whole_says(mut bytes in input()) {
        if let Some(first) = bytes.first_mut() {
            *first = 4;
        }
        let whole = request4(&bytes);
        for end in 0..bytes.len() {
            let part = request4(&bytes[..end]);
            prop_assert!(part == Ok(Event::More) || part == whole, "{:?} then {:?}", part, whole);
        }
    }
}
