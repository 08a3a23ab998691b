//! Any bytes as a response head: splits do not matter, both parsers agree, what goes out reads in one way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use workers::exchange::rewrite::{self, OutFraming, ResponseContext};
use workers::proto::h1::head::{HeadLimits, Method, ResponseFraming, ResponseHead};
use workers::proto::h1::write::Persistence;

#[path = "../../workers/proto/h1/tests/oracle.rs"]
#[allow(dead_code)]
mod oracle;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 32, by_target: false };

fuzz_target!(|raw: &[u8]| {
    let mut head = ResponseHead::default();
    let whole = head.parse(raw, &LIMITS);
    let cut = raw.last().map_or(0, |&byte| usize::from(byte) * raw.len() / 256);
    let part = ResponseHead::default().parse(&raw[..cut], &LIMITS);
    assert!(part == Ok(None) || part == whole, "{part:?} then {whole:?}");
    let Ok(Some(len)) = whole else { return };
    let seen = oracle::response(raw).expect("the oracle takes what we take");
    assert_eq!(seen.len, len);
    assert_eq!(head.chunked, seen.framing == oracle::Framing::Chunked);
    let framing = match head.framing(Method::Get) {
        ResponseFraming::None => OutFraming::None,
        ResponseFraming::Length(n) => OutFraming::Length(n),
        ResponseFraming::Chunked => OutFraming::Chunked,
        ResponseFraming::UntilClose => OutFraming::UntilClose,
    };
    let cx = ResponseContext {
        framing,
        connection: Persistence::Keep,
        switch_protocols: head.status == 101,
        pass_trailers: framing == OutFraming::Chunked,
        keep_length: false,
        via: None,
    };
    let mut out = Vec::new();
    rewrite::response(&mut out, raw, &head, &cx, b"Tue, 02 Jan 2024 03:04:05 GMT");
    let seen = oracle::response(&out).expect("the oracle takes what we write");
    assert_eq!(seen.len, out.len());
    let limits = HeadLimits { bytes: usize::MAX, fields: 64, by_target: false };
    let mut again = ResponseHead::default();
    assert_eq!(again.parse(&out, &limits), Ok(Some(out.len())));
    assert_eq!(again.framing(Method::Get), head.framing(Method::Get));
});
