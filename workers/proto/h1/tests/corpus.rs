//! The fuzz targets' seeds, and mutations of them, in every ordinary test run: a short fuzzing without a fuzzer.

use crate::proto::h1::chunked::{Decoder, Piece};
use crate::proto::h1::head::{HeadLimits, RequestHead, ResponseHead};
use crate::proto::mutations::each;

const LIMITS: HeadLimits = HeadLimits { bytes: 8192, fields: 64, by_target: false };
/// Mutations of each seed.
const ROUNDS: u32 = 200;

#[test]
fn mutated_request_heads_read_the_same_from_any_prefix_on() {
    each("request_head", ROUNDS, |bytes| {
        let whole = RequestHead::default().parse(bytes, &LIMITS);
        for end in 0..bytes.len() {
            let part = RequestHead::default().parse(&bytes[..end], &LIMITS);
            assert!(part == Ok(None) || part == whole, "{part:?} then {whole:?}: {}", bytes.escape_ascii());
        }
    });
}

#[test]
fn mutated_response_heads_read_the_same_from_any_prefix_on() {
    each("response_head", ROUNDS, |bytes| {
        let whole = ResponseHead::default().parse(bytes, &LIMITS);
        for end in 0..bytes.len() {
            let part = ResponseHead::default().parse(&bytes[..end], &LIMITS);
            assert!(part == Ok(None) || part == whole, "{part:?} then {whole:?}: {}", bytes.escape_ascii());
        }
    });
}

/// What a body decodes to when it comes in pieces of `size`, and whether it ended.
fn decode(bytes: &[u8], size: usize) -> Result<(Vec<u8>, bool), String> {
    let (mut decoder, mut data) = (Decoder::new(), Vec::new());
    for piece in bytes.chunks(size) {
        let mut rest = piece;
        loop {
            let (taken, what) = decoder.next(rest).map_err(|error| error.to_string())?;
            if let Piece::Data(range) = &what {
                data.extend_from_slice(&rest[range.clone()]);
            }
            rest = &rest[taken..];
            match what {
                Piece::End => return Ok((data, true)),
                Piece::More => break,
                Piece::Data(_) => {}
            }
        }
    }
    Ok((data, decoder.is_done()))
}

#[test]
fn mutated_chunked_bodies_decode_the_same_in_any_pieces() {
    each("chunked", ROUNDS, |bytes| {
        let whole = decode(bytes, usize::MAX);
        for size in [1, 2, 7] {
            assert_eq!(decode(bytes, size), whole, "in pieces of {size}: {}", bytes.escape_ascii());
        }
    });
}
