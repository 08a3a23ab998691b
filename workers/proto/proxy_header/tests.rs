//! Tables of the specification's rules, and properties over any bytes.

use proptest::prelude::*;

use super::*;
use crate::proto::mutations::each;

#[path = "../../../fuzz/checks/proxy_header.rs"]
mod fuzz;

const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];

fn ends(source: &str, destination: &str) -> Ends {
    Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

/// A header of version 2, its length computed.
fn v2(version_command: u8, family_transport: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[version_command, family_transport], &length, block].concat()
}

const V4_BLOCK: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb];

fn v6_block() -> Vec<u8> {
    let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    [&ip("2001:db8::1")[..], &ip("2001:db8::2"), &[0x00, 0x01, 0xff, 0xff]].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind][..], &length, value].concat()
}

/// CRC-32C by polynomial division, bit by bit: the definition, apart from the table above.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        for bit in 0..8 {
            let mix = crc & 1 ^ u32::from(byte >> bit & 1);
            crc = crc >> 1 ^ if mix == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// The header with a right checksum behind its addresses, before `rest`.
fn with_checksum(block: &[u8], family_transport: u8, rest: &[u8]) -> Vec<u8> {
    let blank = [block, &tlv(3, &[0; 4]), rest].concat();
    let crc = crc32c(&v2(0x21, family_transport, &blank)).to_be_bytes();
    v2(0x21, family_transport, &[block, &tlv(3, &crc), rest].concat())
}

fn parsed(bytes: &[u8]) -> Option<Ends> {
    let header = parse(bytes).unwrap().unwrap();
    assert_eq!(header.length, bytes.len());
    let more = [bytes, b"GET / HTTP/1.1\r\n"].concat();
    assert_eq!(parse(&more), Ok(Some(header)), "what follows is not looked at");
    header.ends
}

#[test]
fn lines_of_version_1_give_their_addresses() {
    let table = [
        ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", ends("192.168.0.1:56324", "192.168.0.11:443")),
        ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", ends("255.255.255.255:65535", "0.0.0.0:0")),
        ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", ends("[2001:db8::1]:1", "[::1]:2")),
        ("PROXY TCP6 2001:DB8:0:0:0:0:0:A :: 1 2\r\n", ends("[2001:db8::a]:1", "[::]:2")),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n", ends("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2")),
    ];
    for (line, wanted) in table {
        assert_eq!(parsed(line.as_bytes()), Some(wanted), "{line}");
    }
    let longest = format!("PROXY TCP6 {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
    assert_eq!(longest.len(), 104);
    assert!(parsed(longest.as_bytes()).is_some());
}

#[test]
fn unknown_says_nothing_whatever_follows_the_word() {
    for rest in ["", " ", " ffff::1 ::1 65535 65535", " \x00\u{e9} ", &" x".repeat(46)] {
        assert_eq!(parsed(format!("PROXY UNKNOWN{rest}\r\n").as_bytes()), None, "{rest:?}");
    }
    assert_eq!(parsed(b"PROXY UNKNOWN \xff\xfe\r\n"), None);
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
    assert_eq!(longest.len(), 107);
    assert_eq!(parsed(longest.as_bytes()), None);
    let longer = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    assert_eq!(parse(longer.as_bytes()), Err(ProxyHeaderError::LineTooLong));
}

#[test]
fn lines_that_are_not_exactly_so_are_refused() {
    use ProxyHeaderError::{Address, BareLineEnd, Line, LineTooLong, NoHeader, Port};
    let table = [
        ("GET / HTTP/1.1\r\n", NoHeader),
        ("proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", NoHeader),
        ("PROXY\tTCP4 1.2.3.4 1.2.3.4 1 2\r\n", NoHeader),
        (" PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", NoHeader),
        ("PROXY\r\n", NoHeader),
        ("PROXY \r\n", Line),
        ("PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", Line),
        ("PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", Line),
        ("PROXY TCP4  1.2.3.4 1.2.3.4 1\r\n", Address),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1  2\r\n", Line),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", Line),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", Line),
        ("PROXY TCP4 1.2.3.4\t1.2.3.4 1 2\r\n", Line),
        ("PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n", Line),
        ("PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", Line),
        ("PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", Line),
        ("PROXY UNKNOWNX\r\n", Line),
        ("PROXY unknown\r\n", Line),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", BareLineEnd),
        ("PROXY TCP4 1.2.3.4\n1.2.3.4 1 2\r\n", BareLineEnd),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r1\n", BareLineEnd),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n", BareLineEnd),
        ("PROXY UNKNOWN x\ny\r\n", BareLineEnd),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 00\r\n", Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 0x2\r\n", Port),
        ("PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", Address),
        ("PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", Address),
        ("PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", Address),
        ("PROXY TCP4 1.2.3.4.5 1.2.3.4 1 2\r\n", Address),
        ("PROXY TCP4 ::1 1.2.3.4 1 2\r\n", Address),
        ("PROXY TCP4 1.2.3.4 ::1 1 2\r\n", Address),
        ("PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", Address),
        ("PROXY TCP6 ::1 1::2::3 1 2\r\n", Address),
        ("PROXY TCP6 ::1 1:2:3:4:5:6:7 1 2\r\n", Address),
        ("PROXY TCP6 ::1 12345::1 1 2\r\n", Address),
        ("PROXY TCP6 ::1 fe80::1%1 1 2\r\n", Address),
        ("PROXY TCP6 [::1] ::1 1 2\r\n", Address),
        ("PROXY TCP4 1.2.3.\u{664} 1.2.3.4 1 2\r\n", Address),
    ];
    for (line, wanted) in table {
        assert_eq!(parse(line.as_bytes()), Err(wanted), "{line:?}");
    }
    assert_eq!(parse(b"PROXY TCP4 1.2.3.\xff 1.2.3.4 1 2\r\n"), Err(Line));
    assert_eq!(parse(&[b"PROXY ".as_slice(), &[b'x'; 100]].concat()), Err(LineTooLong));
    assert_eq!(parse(&[b"PROXY ".as_slice(), &[b'x'; 99]].concat()), Ok(None));
}

#[test]
fn headers_of_version_2_give_their_addresses() {
    let v4 = ends("192.0.2.1:56324", "198.51.100.7:443");
    let v6 = ends("[2001:db8::1]:1", "[2001:db8::2]:65535");
    let extra = [tlv(1, b"h2"), tlv(4, b""), tlv(0xee, &[7; 300])].concat();
    assert_eq!(parsed(&v2(0x21, 0x11, &V4_BLOCK)), Some(v4));
    assert_eq!(parsed(&v2(0x21, 0x21, &v6_block())), Some(v6));
    assert_eq!(parsed(&v2(0x21, 0x11, &[&V4_BLOCK[..], &extra].concat())), Some(v4));
    assert_eq!(parsed(&v2(0x21, 0x21, &[v6_block(), extra].concat())), Some(v6));
}

#[test]
fn headers_without_addresses_of_tcp_leave_the_connections_own() {
    let unix = [b'/'; 216];
    let table = [
        v2(0x20, 0x00, &[]),
        v2(0x20, 0x11, &V4_BLOCK),
        // LOCAL: the block and the family are not looked at.
        v2(0x20, 0x11, &[1, 2, 3]),
        v2(0x20, 0xff, &[9; 40]),
        v2(0x21, 0x00, &[]),
        v2(0x21, 0x00, &[9; 40]),
        v2(0x21, 0x01, &[9; 40]),
        v2(0x21, 0x10, &[]),
        v2(0x21, 0x12, &V4_BLOCK),
        v2(0x21, 0x22, &v6_block()),
        v2(0x21, 0x31, &unix),
        v2(0x21, 0x32, &unix),
    ];
    for header in table {
        assert_eq!(parsed(&header), None, "{header:02x?}");
    }
}

#[test]
fn wrong_headers_of_version_2_are_refused() {
    use ProxyHeaderError::{Command, Family, Field, NoHeader, TooLong, TooShort, Version};
    let block = V4_BLOCK.as_slice();
    let mut unsigned = v2(0x21, 0x11, block);
    unsigned[11] = b'\r';
    let table = [
        (unsigned, NoHeader),
        (v2(0x11, 0x11, block), Version),
        (v2(0x31, 0x11, block), Version),
        (v2(0x01, 0x11, block), Version),
        (v2(0x22, 0x11, block), Command),
        (v2(0x2f, 0x11, block), Command),
        (v2(0x21, 0x41, block), Family),
        (v2(0x21, 0xf1, block), Family),
        (v2(0x21, 0x13, block), Family),
        (v2(0x21, 0x0f, block), Family),
        (v2(0x21, 0x11, &block[..11]), TooShort),
        (v2(0x21, 0x12, &[]), TooShort),
        (v2(0x21, 0x21, &v6_block()[..35]), TooShort),
        (v2(0x21, 0x31, &[b'/'; 215]), TooShort),
        (v2(0x21, 0x11, &[block, &[4]].concat()), Field),
        (v2(0x21, 0x11, &[block, &[4, 0]].concat()), Field),
        (v2(0x21, 0x11, &[block, &[4, 0, 1]].concat()), Field),
        (v2(0x21, 0x11, &[block, &tlv(4, b"abc")[..5]].concat()), Field),
        (v2(0x21, 0x11, &[block, &tlv(4, b"abc"), &[0xff; 3]].concat()), Field),
        (v2(0x21, 0x11, &[0; MAX_BYTES - 15]), TooLong),
        (v2(0x20, 0x00, &[0; 65535]), TooLong),
    ];
    for (header, wanted) in table {
        assert_eq!(parse(&header), Err(wanted), "{:02x?}", &header[..header.len().min(80)]);
    }
    let longest = [block, &tlv(4, &[0; MAX_BYTES - 16 - 12 - 3])].concat();
    assert!(parsed(&v2(0x21, 0x11, &longest)).is_some());
}

#[test]
fn a_length_that_cannot_be_is_refused_before_the_rest_has_come() {
    let whole = v2(0x20, 0x00, &[0; 65535]);
    assert_eq!(parse(&whole[..15]), Ok(None));
    assert_eq!(parse(&whole[..16]), Err(ProxyHeaderError::TooLong));
}

#[test]
fn checksums_are_verified_where_there_is_one() {
    // The check value of CRC-32C.
    let mut crc = Crc32c::new();
    crc.add(b"12345");
    crc.add(b"6789");
    assert_eq!(crc.value(), 0xe306_9283);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);

    for rest in [Vec::new(), tlv(0x20, &[1, 0, 0, 0, 0])] {
        let good = with_checksum(&V4_BLOCK, 0x11, &rest);
        assert_eq!(parsed(&good), Some(ends("192.0.2.1:56324", "198.51.100.7:443")));
        assert_eq!(parsed(&with_checksum(&V4_BLOCK, 0x12, &rest)), None);
        for at in 16..good.len() {
            let mut wrong = good.clone();
            wrong[at] ^= 1;
            // The type of the checksum's field: it is then one that nobody knows.
            assert_eq!(parse(&wrong).is_err(), at != 28, "byte {at}");
        }
    }
    let twice = with_checksum(&V4_BLOCK, 0x11, &tlv(3, &[0; 4]));
    let long = v2(0x21, 0x11, &[&V4_BLOCK[..], &tlv(3, &[0; 5])].concat());
    let short = v2(0x21, 0x11, &[&V4_BLOCK[..], &tlv(3, &[])].concat());
    for wrong in [twice, long, short] {
        assert_eq!(parse(&wrong), Err(ProxyHeaderError::Checksum));
    }
}

#[test]
fn what_is_written_is_as_specified() {
    let write = |version, ends: Option<Ends>| {
        let mut out = b"before".to_vec();
        super::write(&mut out, version, ends.as_ref());
        out.split_off(6)
    };
    let v4 = ends("192.0.2.1:56324", "198.51.100.7:443");
    let v6 = ends("[2001:db8::1]:1", "[2001:db8::2]:65535");
    let mixed = ends("[2001:db8::1]:1", "192.0.2.1:2");
    assert_eq!(write(ProxyVersion::V1, Some(v4)), b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n");
    assert_eq!(write(ProxyVersion::V1, Some(v6)), b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n");
    assert_eq!(write(ProxyVersion::V1, Some(mixed)), b"PROXY TCP6 2001:db8::1 ::ffff:c000:201 1 2\r\n");
    assert_eq!(write(ProxyVersion::V1, None), b"PROXY UNKNOWN\r\n");
    assert_eq!(write(ProxyVersion::V2, Some(v4)), v2(0x21, 0x11, &V4_BLOCK));
    assert_eq!(write(ProxyVersion::V2, Some(v6)), v2(0x21, 0x21, &v6_block()));
    assert_eq!(write(ProxyVersion::V2, None), v2(0x20, 0x00, &[]));
}

/// The outcome when the bytes come `step` at a time.
fn parse_in_steps(bytes: &[u8], step: usize) -> Result<Option<Header>, ProxyHeaderError> {
    let mut outcome = parse(&[]);
    let mut come = 0;
    while outcome == Ok(None) && come < bytes.len() {
        come = (come + step).min(bytes.len());
        outcome = parse(&bytes[..come]);
    }
    outcome
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let mapped = any::<[u8; 4]>().prop_map(|ip| IpAddr::V6(std::net::Ipv4Addr::from(ip).to_ipv6_mapped()));
    (prop_oneof![any::<IpAddr>(), mapped], any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

/// Bytes that are a header, nearly one, or none.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("TCP4".to_owned()),
        Just("TCP6".to_owned()),
        Just("UNKNOWN".to_owned()),
        any::<IpAddr>().prop_map(|ip| ip.to_string()),
        any::<u32>().prop_map(|n| (n % 70_000).to_string()),
        "[ -~]{0,8}",
    ];
    let line = (prop::collection::vec(word, 0..7), prop_oneof![Just("\r\n"), Just("\n"), Just("\r"), Just("")])
        .prop_map(|(words, end)| format!("PROXY {}{end}", words.join(" ")).into_bytes());
    let family = prop_oneof![Just(0x11), Just(0x21), Just(0x31), any::<u8>()];
    let fields = prop::collection::vec((0u8..6, prop::collection::vec(any::<u8>(), 0..6)), 0..4)
        .prop_map(|fields| fields.iter().flat_map(|(kind, value)| tlv(*kind, value)).collect::<Vec<u8>>());
    let block = prop::collection::vec(any::<u8>(), 0..40);
    let binary = (prop_oneof![Just(0x20), Just(0x21), any::<u8>()], family, block, fields)
        .prop_map(|(command, family, block, fields)| v2(command, family, &[block, fields].concat()));
    let checked = any::<[u8; 12]>().prop_map(|block| with_checksum(&block, 0x11, &[]));
    let tail = prop::collection::vec(any::<u8>(), 0..20);
    let whole = prop_oneof![line, binary, checked, prop::collection::vec(any::<u8>(), 0..150)];
    (whole, tail).prop_map(|(whole, tail)| [whole, tail].concat())
}

proptest! {
    #[test]
    fn however_the_bytes_are_split_the_outcome_is_the_same(bytes in any_bytes(), step in 1usize..40) {
        let whole = parse(&bytes);
        prop_assert_eq!(parse_in_steps(&bytes, step), whole);
        prop_assert_eq!(parse_in_steps(&bytes, 1), whole);
        if let Ok(Some(header)) = whole {
            prop_assert!(header.length >= 15 && header.length <= bytes.len().min(MAX_BYTES));
            prop_assert_eq!(parse(&bytes[..header.length]), whole);
            prop_assert_eq!(parse(&bytes[..header.length - 1]), Ok(None));
        }
    }

    #[test]
    fn what_is_written_reads_back(source in any_address(), destination in any_address(), known: bool) {
        let ends = known.then_some(Ends { source, destination });
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let mut bytes = Vec::new();
            write(&mut bytes, version, ends.as_ref());
            let header = parse(&bytes).unwrap().unwrap();
            prop_assert_eq!(header.length, bytes.len());
            let mut again = Vec::new();
            write(&mut again, version, header.ends.as_ref());
            prop_assert_eq!(&again, &bytes);
            let canonical = |a: Ends| {
                [a.source, a.destination].map(|addr| (addr.ip().to_canonical(), addr.port()))
            };
            prop_assert_eq!(header.ends.map(canonical), ends.map(canonical));
            if version == ProxyVersion::V1 {
                prop_assert!(bytes.len() <= 104 && bytes.is_ascii());
                prop_assert!(!bytes.starts_with(b"PROXY TCP6") || !bytes.contains(&b'.'));
            }
        }
    }
}

#[test]
fn mutated_headers_read_the_same_from_any_prefix_on_and_as_written() {
    each("proxy_header", 5000, fuzz::check);
}
