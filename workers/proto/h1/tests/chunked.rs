//! The chunked coding: refused, taken, encoded.

use super::*;
use crate::proto::h1::chunked::{
    ChunkError, Decoder, MAX_EXTENSION_BYTES, MAX_TRAILER_BYTES, MAX_TRAILER_FIELDS, Piece, chunk_head, chunk_tail,
    last_chunk,
};

use ChunkError as C;

/// What a decoder makes of `raw`, given in pieces of `step` bytes: data, trailers, bytes taken, whether it ended.
pub(super) fn decode(raw: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>, usize, bool), ChunkError> {
    decode_with(Decoder::new(), raw, step)
}

fn decode_with(mut decoder: Decoder, raw: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>, usize, bool), ChunkError> {
    let (mut data, mut taken) = (Vec::new(), 0);
    for part in raw.chunks(step.max(1)) {
        let mut at = 0;
        loop {
            let (used, piece) = decoder.next(&part[at..])?;
            taken += used;
            match piece {
                Piece::Data(range) => {
                    assert_eq!(range.end, used, "data reach up to what was taken");
                    data.extend_from_slice(&part[at..][range]);
                }
                Piece::More => {
                    assert_eq!(at + used, part.len(), "all is taken before More");
                    break;
                }
                Piece::End => return Ok((data, decoder.trailers().to_vec(), taken, true)),
            }
            at += used;
        }
    }
    Ok((data, decoder.trailers().to_vec(), taken, false))
}

fn refused(section: &str, raw: &[u8], want: ChunkError) {
    for step in [1, 2, 3, 7, raw.len()] {
        assert_eq!(decode(raw, step), Err(want), "RFC {section}, by {step}: {}", show(raw));
    }
}

fn taken(raw: &[u8], data: &str, trailers: &str) {
    for step in [1, 2, 3, 7, raw.len()] {
        let want = (data.as_bytes().to_vec(), trailers.as_bytes().to_vec(), raw.len(), true);
        assert_eq!(decode(raw, step), Ok(want.clone()), "by {step}: {}", show(raw));
        let more = [raw, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(decode(&more, step), Ok(want), "by {step}, with more behind: {}", show(raw));
    }
    for len in 0..raw.len() {
        assert!(!decode(&raw[..len], raw.len()).unwrap().3, "ended after {len} bytes: {}", show(raw));
    }
}

#[test]
fn sizes_refused() {
    let size = |byte| C::Size { byte };
    for (raw, want) in [
        ("+5\r\nhello\r\n0\r\n\r\n", size(b'+')),
        ("-5\r\nhello\r\n0\r\n\r\n", size(b'-')),
        ("0x5\r\nhello\r\n0\r\n\r\n", size(b'x')),
        ("0X5\r\nhello\r\n0\r\n\r\n", size(b'X')),
        ("5h\r\nhello\r\n", size(b'h')),
        ("g\r\n", size(b'g')),
        (" 5\r\nhello\r\n", size(b' ')),
        ("\t5\r\nhello\r\n", size(b'\t')),
        ("5 \r\nhello\r\n", size(b' ')),
        ("5\t\r\nhello\r\n", size(b'\t')),
        ("5 ;a\r\nhello\r\n", size(b' ')),
        ("5 5\r\nhello\r\n", size(b' ')),
        ("5,5\r\nhello\r\n", size(b',')),
        ("5_0\r\nhello\r\n", size(b'_')),
        ("5.0\r\nhello\r\n", size(b'.')),
        ("\"5\"\r\nhello\r\n", size(b'"')),
        ("\r\nhello\r\n", size(b'\r')),
        ("\n", size(b'\n')),
        (";a\r\n", size(b';')),
        ("\0", size(0)),
        ("5\0\r\n", size(0)),
        ("5\u{0b}\r\n", size(0x0b)),
        ("\u{665}\r\n", size(0xd9)),
        ("0\r\n\r", C::BareCr),
        ("5\r\nhello\r\n\r\n0\r\n\r\n", size(b'\r')),
        ("5\nhello\r\n0\r\n\r\n", C::BareLf),
        ("5\rhello\r\n0\r\n\r\n", C::BareCr),
        ("5\r\rhello", C::BareCr),
        ("0\n\n", C::BareLf),
        ("0\n\r\n", C::BareLf),
        ("8000000000000000\r\n", C::SizeTooLarge),
        ("ffffffffffffffff\r\n", C::SizeTooLarge),
        ("10000000000000000\r\n", C::SizeTooLarge),
        ("10000000000000005\r\nhello", C::SizeTooLarge),
        ("fffffffffffffffffffffffffff\r\n", C::SizeTooLarge),
        ("00000000000000005\r\nhello\r\n", C::SizeTooLarge),
        ("5\r\nhello0\r\n\r\n", C::Terminator { byte: b'0' }),
        ("5\r\nhello\n0\r\n\r\n", C::Terminator { byte: b'\n' }),
        ("5\r\nhello\r0\r\n\r\n", C::Terminator { byte: b'0' }),
        ("5\r\nhello!\r\n0\r\n\r\n", C::Terminator { byte: b'!' }),
        ("5\r\nhelloXX0\r\n\r\n", C::Terminator { byte: b'X' }),
        ("4\r\nhello\r\n0\r\n\r\n", C::Terminator { byte: b'o' }),
    ] {
        // The row of an unfinished final CRLF only shows that CR alone ends nothing.
        if raw == "0\r\n\r" {
            assert!(!decode(raw.as_bytes(), 1).unwrap().3);
            continue;
        }
        refused("9112 7.1", raw.as_bytes(), want);
    }
}

#[test]
fn extensions_refused() {
    let ext = |byte| C::Extension { byte };
    for (raw, want) in [
        ("5;\r\nhello", ext(b'\r')),
        ("5;;a\r\nhello", ext(b';')),
        ("5;a;\r\nhello", ext(b'\r')),
        ("5;=b\r\nhello", ext(b'=')),
        ("5;a=\r\nhello", ext(b'\r')),
        ("5;a=;b\r\nhello", ext(b';')),
        ("5;a=b=c\r\nhello", ext(b'=')),
        ("5; a\r\nhello", ext(b' ')),
        ("5;a b\r\nhello", ext(b' ')),
        ("5;a =b\r\nhello", ext(b' ')),
        ("5;a= b\r\nhello", ext(b' ')),
        ("5;a=b \r\nhello", ext(b' ')),
        ("5;a\nhello", C::BareLf),
        ("5;a=\"b\nc\"\r\nhello", C::BareLf),
        ("5;a=\"b\\\nc\"\r\nhello", C::BareLf),
        ("5;a\rb\r\nhello", C::BareCr),
        ("5;a=\"b\rc\"\r\nhello", ext(b'\r')),
        ("5;a=\"b\r\nhello", ext(b'\r')),
        ("5;a\0\r\nhello", ext(0)),
        ("5;a=\"\0\"\r\nhello", ext(0)),
        ("5;a=\"b\"c\r\nhello", ext(b'c')),
        ("5;a=\"b\x7f\"\r\nhello", ext(0x7f)),
        ("5;a=\u{e9}\r\nhello", ext(0xc3)),
        ("5;\n", C::BareLf),
        ("0;\r\n\r\n", ext(b'\r')),
    ] {
        refused("9112 7.1.1", raw.as_bytes(), want);
    }
}

#[test]
fn extensions_are_bounded_over_the_whole_body() {
    let huge = format!("5;a={}\r\nhello\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSION_BYTES as usize));
    refused("9112 7.1.1", huge.as_bytes(), C::ExtensionsTooLarge);
    let many = "1;a=b\r\nx\r\n".repeat(MAX_EXTENSION_BYTES as usize / 4 + 1);
    refused("9112 7.1.1", many.as_bytes(), C::ExtensionsTooLarge);
    let fits = format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSION_BYTES as usize - 1));
    assert!(decode(fits.as_bytes(), 100).unwrap().3);
}

#[test]
fn bodies_taken() {
    taken(b"0\r\n\r\n", "", "");
    taken(b"000\r\n\r\n", "", "");
    taken(b"0000000000000000\r\n\r\n", "", "");
    taken(b"5\r\nhello\r\n0\r\n\r\n", "hello", "");
    taken(b"0005\r\nhello\r\n0\r\n\r\n", "hello", "");
    taken(b"5\r\n\r\n0\r\n\r\n0\r\n\r\n", "\r\n0\r\n", "");
    taken(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", "");
    taken(b"1;a\r\nx\r\n1;a=b;c=\"d\\\"; \xe9\te\"\r\ny\r\n0;z=\"\"\r\n\r\n", "xy", "");
}

#[test]
fn large_sizes_are_kept_whole() {
    let mut decoder = Decoder::new();
    assert_eq!(decoder.next(b"7fffffffffffffff\r\n"), Ok((18, Piece::More)));
    assert_eq!(decoder.next(b"abc"), Ok((3, Piece::Data(0..3))));
    let mut decoder = Decoder::new();
    assert_eq!(decoder.next(b"100000005\r\nhello"), Ok((16, Piece::Data(11..16))), "more than 32 bits");
    assert_eq!(decoder.next(b"\r\n0\r\n\r\n"), Ok((7, Piece::Data(0..7))));
}

#[test]
fn trailers_kept_and_dropped() {
    taken(b"0\r\nX-A: 1\r\nX-B:2 \r\nx-c:\r\n\r\n", "", "X-A: 1\r\nX-B: 2\r\nx-c: \r\n");
    taken(
        b"1\r\nx\r\n0\r\nContent-Digest: a\r\nETag: \"b\"\r\nServer-Timing: c\r\n\r\n",
        "x",
        "Content-Digest: a\r\nETag: \"b\"\r\nServer-Timing: c\r\n",
    );
    for name in [
        "Transfer-Encoding",
        "Content-Length",
        "Host",
        "Trailer",
        "TE",
        "Connection",
        "Keep-Alive",
        "Upgrade",
        "Proxy-Connection",
        "Proxy-Authorization",
        "Proxy-Authenticate",
        "Authorization",
        "WWW-Authenticate",
        "Cookie",
        "Set-Cookie",
        "Content-Type",
        "Content-Encoding",
        "Content-Range",
        "Content-Location",
        "Cache-Control",
        "Expires",
        "Age",
        "Date",
        "Location",
        "Retry-After",
        "Vary",
        "Warning",
        "Pragma",
        "Expect",
        "Max-Forwards",
        "Range",
        "If-Match",
        "If-None-Match",
        "If-Range",
        "Accept",
        "Accept-Encoding",
        "X-Forwarded-For",
        "X-Forwarded-Whatever",
        "X_Forwarded_For",
        "Content_Length",
        "Forwarded",
        "X-Real-IP",
        "Via",
        "X-Pointsman-Worker",
        "Access-Control-Allow-Origin",
        "Strict-Transport-Security",
    ] {
        let raw = format!("0\r\nX-A: 1\r\n{name}: chunked\r\nX-B: 2\r\n\r\n");
        taken(raw.as_bytes(), "", "X-A: 1\r\nX-B: 2\r\n");
    }
}

#[test]
fn trailers_that_connection_names_are_dropped() {
    let raw = b"2\r\nhi\r\n0\r\nX-A: 1\r\nx-b: 2\r\nX-AB: 3\r\nX-A: 4\r\n\r\n";
    for (names, want) in [
        ("", "X-A: 1\r\nx-b: 2\r\nX-AB: 3\r\nX-A: 4\r\n"),
        ("x-a", "x-b: 2\r\nX-AB: 3\r\n"),
        ("X-B", "X-A: 1\r\nX-AB: 3\r\nX-A: 4\r\n"),
        ("x-c,x-b, X-A", "X-AB: 3\r\n"),
        ("x", "X-A: 1\r\nx-b: 2\r\nX-AB: 3\r\nX-A: 4\r\n"),
    ] {
        for step in [1, 3, raw.len()] {
            let (data, trailers, _, done) = decode_with(Decoder::without(names.as_bytes().into()), raw, step).unwrap();
            let got = String::from_utf8(trailers).unwrap();
            assert_eq!(
                (data.as_slice(), got.as_str(), done),
                (b"hi".as_slice(), want, true),
                "RFC 9110 7.6.1: {names}"
            );
        }
    }
}

#[test]
fn trailers_refused() {
    let line = |why| C::Trailer(why);
    for (section, raw, want) in [
        ("9112 7.1.2", "0\r\nX\r\n\r\n", line(HeadError::NoColon { line: 1 })),
        ("9112 7.1.2", "0\r\n: a\r\n\r\n", line(HeadError::EmptyName { line: 1 })),
        ("9112 7.1.2", "0\r\nX : a\r\n\r\n", line(HeadError::SpaceBeforeColon { line: 1 })),
        ("9112 7.1.2", "0\r\n X: a\r\n\r\n", line(HeadError::LeadingSpace { line: 1 })),
        ("9112 7.1.2", "0\r\nX: a\r\n b\r\n\r\n", line(HeadError::ObsFold { line: 2 })),
        ("9112 7.1.2", "0\r\nX: a\n\r\n", line(HeadError::BareLf { line: 1 })),
        ("9112 7.1.2", "0\r\nX: a\rb\r\n\r\n", line(HeadError::BareCr { line: 1 })),
        ("9112 7.1.2", "0\r\nX: a\0\r\n\r\n", line(HeadError::Control { line: 1, byte: 0 })),
        ("9112 7.1.2", "0\r\nHost: a\r\nX\0: a\r\n\r\n", line(HeadError::NameByte { line: 2, byte: 0 })),
        ("9112 7.1", "0\r\n\n", line(HeadError::BareLf { line: 1 })),
        ("9112 7.1", "0\r\n\rX", line(HeadError::BareCr { line: 1 })),
        ("9112 7.1", "0\r\nX: a\r\n\n", line(HeadError::BareLf { line: 2 })),
        ("9112 7.1", "0\r\nX: a\r\n\rX", line(HeadError::BareCr { line: 2 })),
        ("9112 7.1", "0\r\nGET / HTTP/1.1\r\n\r\n", line(HeadError::SpaceBeforeColon { line: 1 })),
        ("9112 7.1", "0\r\n0\r\n\r\n", line(HeadError::NoColon { line: 1 })),
    ] {
        refused(section, raw.as_bytes(), want);
    }
    let many = format!("0\r\n{}\r\n", "Host: a\r\n".repeat(MAX_TRAILER_FIELDS as usize + 1));
    refused("9110 6.5", many.as_bytes(), C::TrailersTooLarge);
    let long = format!("0\r\nX: {}\r\n\r\n", "a".repeat(MAX_TRAILER_BYTES));
    refused("9110 6.5", long.as_bytes(), C::TrailersTooLarge);
    // Dropped ones count too, and the bound is exact.
    let fill = |n: usize| format!("0\r\nHost: {}\r\n\r\n", "a".repeat(n - 10));
    assert!(decode(fill(MAX_TRAILER_BYTES).as_bytes(), 1).unwrap().3);
    assert!(decode(fill(MAX_TRAILER_BYTES).as_bytes(), usize::MAX).unwrap().3);
    refused("9110 6.5", fill(MAX_TRAILER_BYTES + 1).as_bytes(), C::TrailersTooLarge);
}

#[test]
fn what_is_encoded_is_decoded() {
    let mut out = Vec::new();
    let mut all = Vec::new();
    for len in [1, 9, 10, 15, 16, 255, 256, 4096, 70_000] {
        chunk_head(&mut out, len);
        let data = vec![b'x'; len];
        out.extend_from_slice(&data);
        all.extend_from_slice(&data);
        chunk_tail(&mut out);
    }
    assert!(out.starts_with(b"1\r\nx\r\n9\r\nxxxxxxxxx\r\na\r\n"));
    last_chunk(&mut out, b"X-A: 1\r\n");
    assert_eq!(decode(&out, 1000), Ok((all, b"X-A: 1\r\n".to_vec(), out.len(), true)));
}
