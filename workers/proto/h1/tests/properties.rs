//! What holds for every input: splits do not matter, both parsers agree, and what goes out can be read in one way.

use proptest::prelude::*;

use super::chunked::decode;
use super::oracle::{self, Framing, Message};
use super::*;
use crate::exchange::rewrite::{self, OutFraming, RequestContext, ResponseContext};
use crate::proto::h1::head::{BodyFraming, Method, ResponseFraming, Version};
use crate::proto::h1::write::Persistence;

const REQUESTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "\r\nGET /a/b?c=%20d HTTP/1.1\r\nHost: example.com:8080\r\nUser-Agent: x/1 (y; z)\r\nAccept: */*\r\n\r\n",
    "POST /p HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n",
    "POST /p HTTP/1.1\r\nHost:a\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\nTE: trailers\r\nConnection: te\r\n\r\n",
    "POST /p HTTP/1.1\r\nContent-Length:  12 \r\nExpect: 100-continue\r\nHost: [::1]:80\r\nConnection: close, x-a\r\nX-A: 1\r\n\r\n",
    "GET http://a.b:80/c HTTP/1.1\r\nHost: a.b\r\nX_Forwarded_For: 1\r\nX-Forwarded-For: 2\r\nForwarded: for=3\r\n\r\n",
    "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nX-Empty:\r\nX-Tab:\t\ta\tb\t\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nVia: 1.1 b\r\nProxy: c\r\nX-Real-IP: d\r\nX-Pointsman-Worker: 1\r\n\r\n",
    "PUT /%e2%82%ac HTTP/1.1\r\nhOST: a\r\nCookie: a=b; c=d\r\nCookie: e=f\r\ncontent-length: 0\r\n\r\n",
];

const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/html\r\nDate: Tue, 02 Jan 2024 03:04:05 GMT\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\nServer: x\r\n\r\n",
    "HTTP/1.0 404 Not Found\r\nConnection: keep-alive, x-a\r\nX-A: 1\r\nKeep-Alive: timeout=5\r\nX_B:2\r\n\r\n",
    "HTTP/1.1 204\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nConnection: close\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length:  7 \r\n\r\n",
];

const BODIES: &[&str] = &[
    "0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "1\r\na\r\n00A\r\n0123456789\r\n0\r\nX-A: 1\r\nHost: b\r\nX-B:2 \r\n\r\n",
    "2;a;b=c;d=\"e\\\"f\"\r\nhi\r\n0;z\r\n\r\n",
    "4\r\n\r\n\r\n\r\n3\r\n0\r\n\r\n0\r\n\r\n",
];

/// What attackers put in.
const NASTY: &[&str] = &[
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    " ",
    "\t",
    "\0",
    ":",
    ",",
    ";",
    "\x0b",
    "\x7f",
    "#",
    "\\",
    "0",
    "1",
    "x",
    "+",
    "-",
    "Content-Length: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Host: b\r\n",
    "chunked",
    "HTTP/1.0",
    "HTTP/1.1",
    "Connection: x-b, close\r\n",
    "Connection: host\r\n",
    "\r\n ",
    " :",
    "_",
    "%",
    "@",
    "[",
    "é",
    "0x",
    "0\r\n\r\n",
    "TE: trailers\r\n",
    "Upgrade: h2c\r\n",
    "Expect: 100-continue\r\n",
    "a",
    "/",
    "?",
    "*",
    "http://",
];

/// Cases of each property.
const CASES: u32 = 1500;

#[derive(Debug, Clone)]
enum Change {
    Insert(prop::sample::Index, usize),
    Replace(prop::sample::Index, u8),
    Delete(prop::sample::Index, usize),
    Copy(prop::sample::Index, prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (index(), 0..NASTY.len()).prop_map(|(at, what)| Change::Insert(at, what)),
        3 => (index(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        2 => (index(), 1..12usize).prop_map(|(at, n)| Change::Delete(at, n)),
        1 => (index(), index(), 1..60usize).prop_map(|(from, to, n)| Change::Copy(from, to, n)),
        1 => index().prop_map(Change::Cut),
    ]
}

/// One of `bases`, changed in up to four places.
fn mutated(bases: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    (0..bases.len(), prop::collection::vec(change(), 0..5)).prop_map(move |(base, changes)| {
        let mut raw = bases[base].as_bytes().to_vec();
        for change in changes {
            let len = raw.len() + 1;
            match change {
                Change::Insert(at, what) => {
                    let at = at.index(len);
                    raw.splice(at..at, NASTY[what].bytes());
                }
                Change::Replace(at, byte) if len > 1 => {
                    let at = at.index(len - 1);
                    raw[at] = byte;
                }
                Change::Replace(..) => {}
                Change::Delete(at, n) => {
                    let at = at.index(len);
                    raw.drain(at..(at + n).min(len - 1));
                }
                Change::Copy(from, to, n) => {
                    let from = from.index(len);
                    let part = raw[from..(from + n).min(len - 1)].to_vec();
                    let to = to.index(len);
                    raw.splice(to..to, part);
                }
                Change::Cut(at) => raw.truncate(at.index(len)),
            }
        }
        raw
    })
}

fn context(trusted: bool) -> RequestContext<'static> {
    RequestContext {
        peer: Some([192, 0, 2, 1].into()),
        peer_trusted: trusted,
        scheme: "http",
        worker_pid: None,
        forward: None,
        default_host: b"default:80",
    }
}

fn same_framing(ours: BodyFraming, oracle: &Framing) -> bool {
    match ours {
        BodyFraming::None => *oracle == Framing::None,
        BodyFraming::Length(n) => *oracle == Framing::Length(n),
        BodyFraming::Chunked => *oracle == Framing::Chunked,
    }
}

/// Faults that the oracle does not look for: what targets, hosts and list-valued fields mean, and limits.
fn beyond_oracle(why: HeadError) -> bool {
    use HeadError as E;
    match why {
        E::MethodTooLong
        | E::TargetForm
        | E::TargetPercent
        | E::TargetMethod
        | E::TargetTooLong
        | E::HeadTooLarge { .. }
        | E::TooManyFields { .. }
        | E::Host { .. }
        | E::HostMismatch { .. }
        | E::ContentNotAllowed
        | E::Connection { .. }
        | E::ConnectionNominates { .. }
        | E::TooManyOptions { .. }
        | E::Expect { .. }
        | E::Te { .. }
        | E::Upgrade { .. }
        | E::MaxForwards { .. } => true,
        E::BareLf { .. }
        | E::BareCr { .. }
        | E::Control { .. }
        | E::EmptyLineFirst
        | E::LeadingSpace { .. }
        | E::ObsFold { .. }
        | E::SpaceBeforeColon { .. }
        | E::EmptyName { .. }
        | E::NoColon { .. }
        | E::NameByte { .. }
        | E::MethodByte { .. }
        | E::NoTarget
        | E::DoubledSpace
        | E::TargetByte { .. }
        | E::NoVersion
        | E::VersionForm
        | E::Version { .. }
        | E::StatusLine
        | E::StatusCode
        | E::HostMissing
        | E::HostDoubled { .. }
        | E::Length { .. }
        | E::LengthDoubled { .. }
        | E::LengthWithCoding { .. }
        | E::Coding { .. }
        | E::CodingUnknown { .. }
        | E::CodingDoubled { .. }
        | E::CodingInHttp10 { .. } => false,
    }
}

/// Names and values of the head's fields, names in lower case.
fn pairs(raw: &[u8], fields: &[crate::proto::h1::head::Field]) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|f| (f.name.of(raw).to_ascii_lowercase(), f.value.of(raw).to_vec())).collect()
}

/// Whether an outgoing request is what any strict server reads in one way.
fn is_unambiguous(out: &[u8], seen: &Message, head: &RequestHead) {
    assert_eq!(seen.len, out.len(), "one head and nothing behind it: {}", show(out));
    assert!(same_framing(head.framing, &seen.framing), "{}", show(out));
    assert_eq!(seen.start[2], b"HTTP/1.1");
    assert_eq!(seen.all("host").len(), 1);
    for name in
        ["keep-alive", "proxy-connection", "proxy", "proxy-authorization", "http2-settings", "x-pointsman-worker"]
    {
        assert!(seen.all(name).is_empty(), "{name} in {}", show(out));
    }
    for value in seen.all("connection") {
        assert!([b"upgrade".as_slice(), b"te", b"upgrade, te"].contains(&value), "{}", show(out));
    }
    assert_eq!(seen.all("x-forwarded-for"), [b"192.0.2.1"]);
    assert_eq!(seen.all("x-forwarded-proto"), [b"http"]);
    assert_eq!(seen.all("x-forwarded-host").len(), 1);
    for name in ["forwarded", "x-real-ip", "x_forwarded_for"] {
        assert!(seen.all(name).is_empty(), "{name} in {}", show(out));
    }
    for value in seen.all("upgrade") {
        assert!(!String::from_utf8_lossy(value).to_lowercase().contains("h2c"), "{}", show(out));
    }
}

/// An outgoing request without what each pass adds anew.
fn without_via(out: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = out.to_vec();
    let mut kept = Vec::new();
    for line in text.split_inclusive(|&b| b == b'\n') {
        let ours = line.starts_with(b"Via: ") && line.ends_with(b" pointsman\r\n");
        if !ours && !line.starts_with(b"Max-Forwards: ") {
            kept.extend_from_slice(line);
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn splits_of_a_request_head_do_not_matter(raw in mutated(REQUESTS), bytes in 16..400usize, fields in 1..8usize) {
        for limits in [LIMITS, HeadLimits { bytes, fields, by_target: false }] {
            let parse = |len: usize| RequestHead::default().parse(&raw[..len], &limits);
            let first = (0..=raw.len()).map(|len| (len, parse(len))).find(|(_, r)| *r != Ok(None));
            if let Some((len, Ok(Some(n)))) = first {
                prop_assert_eq!(n, len, "a head is complete with its last byte");
            }
            prop_assert_eq!(first.map_or(Ok(None), |(_, r)| r), parse(raw.len()));
        }
    }

    #[test]
    fn splits_of_a_response_head_do_not_matter(raw in mutated(RESPONSES), bytes in 16..400usize, fields in 1..8usize) {
        for limits in [LIMITS, HeadLimits { bytes, fields, by_target: false }] {
            let parse = |len: usize| ResponseHead::default().parse(&raw[..len], &limits);
            let first = (0..=raw.len()).map(|len| (len, parse(len))).find(|(_, r)| *r != Ok(None));
            if let Some((len, Ok(Some(n)))) = first {
                prop_assert_eq!(n, len, "a head is complete with its last byte");
            }
            prop_assert_eq!(first.map_or(Ok(None), |(_, r)| r), parse(raw.len()));
        }
    }

    #[test]
    fn splits_of_a_chunked_body_do_not_matter(raw in mutated(BODIES), step in 1..9usize) {
        prop_assert_eq!(decode(&raw, step), decode(&raw, raw.len()));
    }

    #[test]
    fn two_parsers_agree_on_requests(raw in mutated(REQUESTS)) {
        let (head, result) = request(&raw);
        match (result, oracle::request(&raw)) {
            (Ok(Some(len)), Some(seen)) => {
                prop_assert_eq!(len, seen.len);
                prop_assert!(same_framing(head.framing, &seen.framing), "{:?} {:?}", head.framing, seen.framing);
                prop_assert_eq!(head.method_text.of(&raw), seen.start[0].as_slice());
                prop_assert_eq!(head.target.text.of(&raw), seen.start[1].as_slice());
                prop_assert_eq!(head.version == Version::Http11, seen.start[2] == b"HTTP/1.1");
                prop_assert_eq!(pairs(&raw, &head.fields), seen.fields);
            }
            (Ok(Some(_)), None) => prop_assert!(false, "only we take {}", show(&raw)),
            (Ok(None), seen) => prop_assert!(seen.is_none(), "only we wait for more of {}", show(&raw)),
            (Err(why), Some(_)) => prop_assert!(beyond_oracle(why), "only we refuse ({why}) {}", show(&raw)),
            (Err(_), None) => {}
        }
    }

    #[test]
    fn two_parsers_agree_on_responses(raw in mutated(RESPONSES)) {
        let (head, result) = response(&raw);
        match (result, oracle::response(&raw)) {
            (Ok(Some(len)), Some(seen)) => {
                prop_assert_eq!(len, seen.len);
                prop_assert_eq!(head.chunked, seen.framing == Framing::Chunked);
                let length = if let Framing::Length(n) = seen.framing { Some(n) } else { None };
                prop_assert_eq!(head.content_length, length);
                prop_assert_eq!(head.status.to_string().into_bytes(), seen.start[1].clone());
                prop_assert_eq!(head.reason.of(&raw), seen.start[2].as_slice());
                prop_assert_eq!(pairs(&raw, &head.fields), seen.fields);
            }
            (Ok(Some(_)), None) => prop_assert!(false, "only we take {}", show(&raw)),
            (Ok(None), seen) => prop_assert!(seen.is_none(), "only we wait for more of {}", show(&raw)),
            (Err(why), Some(_)) => prop_assert!(beyond_oracle(why), "only we refuse ({why}) {}", show(&raw)),
            (Err(_), None) => {}
        }
    }

    #[test]
    fn two_parsers_agree_on_chunked_bodies(raw in mutated(BODIES)) {
        match (decode(&raw, raw.len()), oracle::chunked(&raw)) {
            (Ok((data, _, len, true)), Some(seen)) => {
                prop_assert_eq!(data, seen.0);
                prop_assert_eq!(len, seen.2);
            }
            (Ok((.., true)), None) => prop_assert!(false, "only we take {}", show(&raw)),
            (Ok((.., false)), seen) => prop_assert!(seen.is_none(), "only we wait for more of {}", show(&raw)),
            (Err(why), seen) => prop_assert!(seen.is_none(), "only we refuse ({why}) {}", show(&raw)),
        }
    }

    #[test]
    fn what_is_sent_to_a_server_reads_in_one_way(raw in mutated(REQUESTS)) {
        let (head, result) = request(&raw);
        if let Ok(Some(_)) = result {
            let mut out = Vec::new();
            rewrite::request(&mut out, &raw, &head, &context(false));
            let seen = oracle::request(&out);
            prop_assert!(seen.is_some(), "{} became {}", show(&raw), show(&out));
            is_unambiguous(&out, &seen.unwrap(), &head);
        }
    }

    #[test]
    fn a_written_request_is_a_fixed_point(raw in mutated(REQUESTS)) {
        let (head, result) = request(&raw);
        if let Ok(Some(_)) = result {
            let mut out = Vec::new();
            rewrite::request(&mut out, &raw, &head, &context(false));
            let (again, result) = request(&out);
            prop_assert_eq!(result, Ok(Some(out.len())), "{} became {}", show(&raw), show(&out));
            prop_assert_eq!(again.framing, head.framing);
            prop_assert_eq!(again.method, head.method);
            prop_assert_eq!(again.te_trailers, head.te_trailers);
            prop_assert_eq!(again.expect_continue, head.expect_continue);
            let mut twice = Vec::new();
            rewrite::request(&mut twice, &out, &again, &context(false));
            prop_assert_eq!(without_via(&twice), without_via(&out));
        }
    }

    #[test]
    fn a_written_response_is_a_fixed_point(raw in mutated(RESPONSES), close in any::<bool>()) {
        let (head, result) = response(&raw);
        if let Ok(Some(_)) = result {
            let framing = match head.framing(Method::Get) {
                ResponseFraming::None => OutFraming::None,
                ResponseFraming::Length(n) => OutFraming::Length(n),
                ResponseFraming::Chunked => OutFraming::Chunked,
                ResponseFraming::UntilClose => OutFraming::UntilClose,
            };
            let cx = ResponseContext {
                framing,
                connection: if close { Persistence::Close } else { Persistence::Keep },
                switch_protocols: head.status == 101,
                pass_trailers: framing == OutFraming::Chunked,
                keep_length: head.status == 304,
                via: None,
            };
            let mut out = Vec::new();
            rewrite::response(&mut out, &raw, &head, &cx, b"Tue, 02 Jan 2024 03:04:05 GMT");
            let seen = oracle::response(&out);
            prop_assert!(seen.is_some_and(|s| s.len == out.len()), "{} became {}", show(&raw), show(&out));
            let (again, result) = response(&out);
            prop_assert_eq!(result, Ok(Some(out.len())));
            prop_assert_eq!(again.framing(Method::Get), head.framing(Method::Get));
            prop_assert!(again.has_date || head.status < 200);
            let mut twice = Vec::new();
            rewrite::response(&mut twice, &out, &again, &cx, b"another date");
            prop_assert_eq!(show(&twice), show(&out));
        }
    }
}
