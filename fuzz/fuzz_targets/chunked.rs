//! Any bytes as a chunked body: splits do not matter and both parsers agree. The first byte sets the split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use workers::proto::h1::chunked::{ChunkError, Decoder, Piece};

#[path = "../../workers/proto/h1/tests/oracle.rs"]
#[allow(dead_code)]
mod oracle;

fn decode(raw: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>, usize, bool), ChunkError> {
    let mut decoder = Decoder::new();
    let (mut data, mut taken) = (Vec::new(), 0);
    for part in raw.chunks(step.max(1)) {
        let mut at = 0;
        loop {
            let (used, piece) = decoder.next(&part[at..])?;
            taken += used;
            match piece {
                Piece::Data(range) => data.extend_from_slice(&part[at..][range]),
                Piece::More => break,
                Piece::End => return Ok((data, decoder.trailers().to_vec(), taken, true)),
            }
            at += used;
        }
    }
    Ok((data, decoder.trailers().to_vec(), taken, false))
}

fuzz_target!(|input: &[u8]| {
    let [step, raw @ ..] = input else { return };
    let whole = decode(raw, raw.len());
    assert_eq!(decode(raw, usize::from(step % 16) + 1), whole);
    match (whole, oracle::chunked(raw)) {
        (Ok((data, trailers, len, true)), Some(seen)) => {
            assert_eq!(data, seen.0);
            assert_eq!(len, seen.2);
            let again = [b"0\r\n".as_slice(), &trailers, b"\r\n"].concat();
            assert_eq!(decode(&again, 3), Ok((Vec::new(), trailers, again.len(), true)), "kept trailers are legal");
        }
        (Ok((.., true)), None) => panic!("only we take it"),
        (Ok((.., false)), seen) => assert!(seen.is_none(), "only we wait for more"),
        (Err(ChunkError::ExtensionsTooLarge | ChunkError::TrailersTooLarge), _) => {}
        (Err(why), seen) => assert!(seen.is_none(), "only we refuse: {why}"),
    }
});
