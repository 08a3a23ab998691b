//! Lines as clients write them, right and wrong, and properties over any bytes.

use proptest::prelude::*;

use super::*;
use crate::proto::mutations::each;

#[path = "../../../fuzz/checks/dynamic.rs"]
mod checks;

#[test]
fn mutations_of_the_seeds_keep_what_must_hold() {
    each("dynamic", 4000, checks::check);
}

fn read(line: &str) -> Result<Option<(Request, usize)>, DynamicError> {
    parse(line.as_bytes())
}

fn refused(line: &str) -> DynamicError {
    read(&format!("{line}\n")).unwrap_err()
}

#[test]
fn a_target_is_enough() {
    let (request, used) = read("{\"target\":\"Example.com:443\"}\nearly").unwrap().unwrap();
    assert_eq!((request.target.to_string().as_str(), used), ("example.com:443", 29));
    assert_eq!((request.reply_to, request.user, request.password), (None, None, None));
    // Blanks, an escape, a CR before the line end: all of it is JSON.
    let (request, _) = read(" { \"target\" : \"\\u0061.test:80\" } \r\n").unwrap().unwrap();
    assert_eq!(request.target.to_string(), "a.test:80");
}

#[test]
fn the_rest_may_be_there() {
    let line = "{\"reply_to\":\"[::ffff:192.0.2.1]:9000\",\"target\":\"[2001:db8::1]:80\",\"user\":\"ann\",\"password\":\"k\\\"y\"}\n";
    let (request, used) = read(line).unwrap().unwrap();
    assert_eq!(used, line.len());
    assert_eq!(request.reply_to, Some("192.0.2.1:9000".parse().unwrap()));
    assert_eq!((request.user.as_deref(), request.password.as_deref()), (Some("ann"), Some("k\"y")));
}

#[test]
fn other_lines_are_refused() {
    for line in [
        "{}",
        "{\"target\":\"a:1\",\"target\":\"b:1\"}",
        "{\"target\":\"a:1\",\"user\":\"x\",\"user\":\"y\"}",
        "{\"target\":\"a:1\",\"timeout\":1}",
        "{\"Target\":\"a:1\"}",
        "{\"target\":1}",
        "{\"target\":null}",
        "{\"target\":[\"a:1\"]}",
        "[\"a:1\"]{",
        "{\"target\":\"a:1\"",
        "{\"target\":\"a:1\"} x",
        "{\"target\":\"a:1\"}{\"target\":\"a:1\"}",
        "{\"target\":\"a:1\",}",
        "{'target':'a:1'}",
        "{\"target\":\"\\ud800:1\"}",
    ] {
        assert!(matches!(refused(line), DynamicError::Json(_)), "{line}");
    }
    assert_eq!(refused("{\"target\":\"a\"}"), DynamicError::Target(EndpointError::NoPort));
    assert_eq!(refused("{\"target\":\"0x7f.1:80\"}"), DynamicError::Target(EndpointError::Ipv4));
    for reply in ["a.test:80", "192.0.2.1", "192.0.2.1:0", "[fe80::1%1]:80", ""] {
        assert_eq!(refused(&format!("{{\"target\":\"a:1\",\"reply_to\":\"{reply}\"}}")), DynamicError::ReplyTo);
    }
    for rest in ["\"user\":\"a\"", "\"password\":\"a\"", "\"user\":\"\",\"password\":\"a\""] {
        assert_eq!(refused(&format!("{{\"target\":\"a:1\",{rest}}}")), DynamicError::Credentials);
    }
    assert!(matches!(parse(b"{\"target\":\"\xff:1\"}\n"), Err(DynamicError::Json(_))));
}

#[test]
fn a_line_has_an_end_or_a_bound() {
    let line = |blanks: usize| format!("{{\"target\":\"a:1\"{}}}\n", " ".repeat(blanks));
    let room = MAX_BYTES - line(0).len();
    assert!(read(&line(room)).unwrap().is_some());
    assert_eq!(read(&line(room + 1)), Err(DynamicError::TooLong));
    assert_eq!(parse(&[b'{'; MAX_BYTES - 1]), Ok(None));
    assert_eq!(parse(&[b'{'; MAX_BYTES]), Err(DynamicError::TooLong));
    // Deep nesting must not take the stack.
    assert!(matches!(refused(&"[".repeat(4000)), DynamicError::Json(_)));
}

#[test]
fn answers_are_one_line() {
    let shown = |answer: Answer<'_>| {
        let mut out = Vec::new();
        answer.write(&mut out);
        String::from_utf8(out).unwrap()
    };
    let address = "192.0.2.7:443".parse().unwrap();
    assert_eq!(shown(Answer::Connected { ok: true, address }), "{\"ok\":true,\"address\":\"192.0.2.7:443\"}\n");
    assert_eq!(
        shown(Answer::Failed { ok: false, error: ErrorCode::AuthRequired, message: "say\nwho" }),
        "{\"ok\":false,\"error\":\"auth-required\",\"message\":\"say\\nwho\"}\n"
    );
    assert_eq!(
        shown(Answer::Delivered { ok: true, address, sent: 1, delivered: 2 }),
        "{\"ok\":true,\"address\":\"192.0.2.7:443\",\"sent\":1,\"delivered\":2}\n"
    );
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    let piece = proptest::sample::select(vec![
        "{",
        "}",
        "\"target\"",
        "\"reply_to\"",
        "\"user\"",
        "\"password\"",
        ":",
        ",",
        "\"a.test:80\"",
        "\"192.0.2.1:9\"",
        "\"x\"",
        "null",
        " ",
        "\n",
        "\r\n",
        "\\",
        "[",
        "]",
        "1",
        "\u{fc}",
    ]);
    let likely = prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes());
    prop_oneof![likely, prop::collection::vec(any::<u8>(), 0..64)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_part_waits_or_says_what_the_whole_says(bytes in input()) {
        let whole = parse(&bytes);
        for end in 0..bytes.len() {
            let part = parse(&bytes[..end]);
            prop_assert!(part == Ok(None) || part == whole, "{:?} then {:?}", part, whole);
        }
        if let Ok(Some((_, used))) = whole {
            prop_assert_eq!(bytes[used - 1], b'\n');
        }
    }
}
