//! The fuzz targets' seeds, and mutations of them, in every ordinary test run: a short fuzzing without a fuzzer.

use std::path::Path;

use crate::proto::h1::chunked::{Decoder, Piece};
use crate::proto::h1::head::{HeadLimits, RequestHead, ResponseHead};

const LIMITS: HeadLimits = HeadLimits { bytes: 8192, fields: 64 };
/// Mutations of each seed.
const ROUNDS: u64 = 200;

fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    usize::try_from((mixed ^ (mixed >> 27)) >> 16).unwrap()
}

/// Calls `check` with each seed of `target` and with mutations of it, the same in every run.
fn each(target: &str, check: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut seeds = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        check(&seed);
        seeds += 1;
        let mut state = seed.len() as u64;
        for _ in 0..ROUNDS {
            let mut bytes = seed.clone();
            for _ in 0..=next(&mut state) % 3 {
                let at = next(&mut state) % (bytes.len() + 1);
                match next(&mut state) % 4 {
                    0 => bytes.insert(at, b"\r\n\0 :,;\t"[next(&mut state) % 8]),
                    1 if at < bytes.len() => drop(bytes.remove(at)),
                    2 if at < bytes.len() => bytes[at] ^= 1 << (next(&mut state) % 8),
                    _ => bytes.truncate(at),
                }
            }
            check(&bytes);
        }
    }
    assert!(seeds > 0, "no seeds for {target}");
}

#[test]
fn mutated_request_heads_read_the_same_from_any_prefix_on() {
    each("request_head", |bytes| {
        let whole = RequestHead::default().parse(bytes, &LIMITS);
        for end in 0..bytes.len() {
            let part = RequestHead::default().parse(&bytes[..end], &LIMITS);
            assert!(part == Ok(None) || part == whole, "{part:?} then {whole:?}: {}", bytes.escape_ascii());
        }
    });
}

#[test]
fn mutated_response_heads_read_the_same_from_any_prefix_on() {
    each("response_head", |bytes| {
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
    each("chunked", |bytes| {
        let whole = decode(bytes, usize::MAX);
        for size in [1, 2, 7] {
            assert_eq!(decode(bytes, size), whole, "in pieces of {size}: {}", bytes.escape_ascii());
        }
    });
}
