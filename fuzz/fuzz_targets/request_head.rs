//! Any bytes as a request head: splits do not matter, both parsers agree, what goes out reads in one way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use workers::exchange::rewrite::{self, RequestContext};
use workers::proto::h1::head::{BodyFraming, HeadLimits, RequestHead};

#[path = "../../workers/proto/h1/tests/oracle.rs"]
#[allow(dead_code)]
mod oracle;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 32, by_target: false };

fn same(ours: BodyFraming, oracle: &oracle::Framing) -> bool {
    match ours {
        BodyFraming::None => *oracle == oracle::Framing::None,
        BodyFraming::Length(n) => *oracle == oracle::Framing::Length(n),
        BodyFraming::Chunked => *oracle == oracle::Framing::Chunked,
    }
}

fuzz_target!(|raw: &[u8]| {
    let mut head = RequestHead::default();
    let whole = head.parse(raw, &LIMITS);
    // A prefix may only wait, or say what the whole says.
    let cut = raw.first().map_or(0, |&byte| usize::from(byte) * raw.len() / 256);
    let part = RequestHead::default().parse(&raw[..cut], &LIMITS);
    assert!(part == Ok(None) || part == whole, "{part:?} then {whole:?}");
    let Ok(Some(len)) = whole else { return };
    let seen = oracle::request(raw).expect("the oracle takes what we take");
    assert_eq!(seen.len, len);
    assert!(same(head.framing, &seen.framing));
    let trusted = raw.len() % 2 == 0;
    let cx = RequestContext {
        peer: Some([192, 0, 2, 1].into()),
        peer_trusted: trusted,
        scheme: "http",
        worker_pid: Some(1),
        default_host: b"default",
        forward: None,
    };
    let mut out = Vec::new();
    rewrite::request(&mut out, raw, &head, &cx);
    let seen = oracle::request(&out).expect("the oracle takes what we write");
    assert_eq!(seen.len, out.len());
    assert!(same(head.framing, &seen.framing));
    assert_eq!(seen.all("host").len(), 1);
    assert_eq!(seen.all("x-pointsman-worker"), [b"1"]);
    let limits = HeadLimits { bytes: usize::MAX, fields: 64, by_target: false };
    let mut again = RequestHead::default();
    assert_eq!(again.parse(&out, &limits), Ok(Some(out.len())));
    assert_eq!(again.framing, head.framing);
});
