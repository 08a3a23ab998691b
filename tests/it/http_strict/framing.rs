//! Rows on where a request's body ends: Content-Length, Transfer-Encoding, chunks.

use super::bench::{Row, bad, chunked, get, good, one_of, post};

/// Content-Length, alone and beside other framing.
pub fn content_length() -> Vec<Row> {
    let length = |value: &str| post(&format!("Content-Length: {value}\r\n"), "hello");
    vec![
        good("length", "9112 6.2", &length("5"), &["POST / hello"]),
        good("optional blanks around it", "9112 5", &length("  \t5\t "), &["POST / hello"]),
        good("leading zeros", "9112 6.2", &length("0005"), &["POST / hello"]),
        good("zero", "9112 6.2", &post("Content-Length: 0\r\n", ""), &["POST /"]),
        good("none on POST is no body", "9112 6.3", &post("", ""), &["POST /"]),
        good("name in any case", "9112 5.1", &post("cONTENT-lENGTH: 5\r\n", "hello"), &["POST / hello"]),
        bad("with chunked", "9112 6.1", &post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        bad("after chunked", "9112 6.1", &post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")),
        bad("zero with chunked", "9112 6.1", &post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        bad(
            "with an unknown coding",
            "9112 6.1",
            &post("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", "hello"),
        ),
        bad("two that differ", "9112 6.3", &post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        bad("two that agree", "9112 6.3", &post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
        bad("two, the second empty", "9112 6.3", &post("Content-Length: 5\r\nContent-Length:\r\n", "hello")),
        bad("two, far apart", "9112 6.3", &post("Content-Length: 0\r\nA: b\r\ncontent-length: 5\r\n", "hello")),
        bad("list that agrees", "9112 6.3", &length("5, 5")),
        bad("list that differs", "9112 6.3", &length("5, 6")),
        bad("list with an empty element", "9112 6.3", &length("5,")),
        bad("list that begins empty", "9112 6.3", &length(",5")),
        bad("plus sign", "9112 6.2", &length("+5")),
        bad("minus sign", "9112 6.2", &length("-5")),
        bad("minus zero", "9112 6.2", &length("-0")),
        bad("hexadecimal", "9112 6.2", &length("0x5")),
        bad("hexadecimal digit", "9112 6.2", &length("a")),
        bad("blank within", "9112 6.2", &length("5 5")),
        bad("tab within", "9112 6.2", &length("1\t0")),
        bad("empty", "9112 6.2", &length("")),
        bad("only blanks", "9112 6.2", &length(" \t ")),
        bad("decimal point", "9112 6.2", &length("5.0")),
        bad("exponent", "9112 6.2", &length("5e0")),
        bad("underscore", "9112 6.2", &length("0_5")),
        bad("semicolon", "9112 6.2", &length("5;a=b")),
        bad("quoted", "9112 6.2", &length("\"5\"")),
        bad("vertical tab before it", "9112 5.5", &length("\u{b}5")),
        bad("no-break space after it", "9112 6.2", &length("5\u{a0}")),
        bad("digits beyond ASCII", "9112 6.2", &length("\u{b2}5")),
        one_of("2 to the 64th", "9112 6.2", &length("18446744073709551616"), &[400, 413]),
        one_of("wraps to 5 in 64 bits", "9112 6.2", &length("18446744073709551621"), &[400, 413]),
        one_of("negative in 64 bits", "9112 6.2", &length("9223372036854775809"), &[400, 413]),
        one_of("wraps to 5 in 32 bits", "9112 6.2", &length("4294967301"), &[413]),
        one_of("forty digits", "9112 6.2", &length(&"9".repeat(40)), &[400, 413]),
        one_of("many zeros wrap nothing", "9112 6.2", &length(&format!("1{}", "0".repeat(64))), &[400, 413]),
        bad("blank before the colon", "9112 5.1", &post("Content-Length : 5\r\n", "hello")),
        bad("tab before the colon", "9112 5.1", &post("Content-Length\t: 5\r\n", "hello")),
        bad("folded value", "9112 5.2", &post("Content-Length:\r\n 5\r\n", "hello")),
        bad("folded into the field before", "9112 5.2", &post("A: b\r\n Content-Length: 5\r\n", "hello")),
        bad("value cut by NUL", "9112 5.5", &length("5\u{0}0")),
    ]
}

/// Bodies of methods that mostly have none.
pub fn any_method() -> Vec<Row> {
    vec![
        good("GET", "9112 6.3", &get("Content-Length: 5\r\n").replace("\r\n\r\n", "\r\n\r\nhello"), &["GET / hello"]),
        good("HEAD", "9112 6.3", "HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", &["HEAD / hello"]),
        good(
            "DELETE",
            "9112 6.3",
            "DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            &["DELETE / hello"],
        ),
        good(
            "OPTIONS",
            "9112 6.3",
            "OPTIONS / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            &["OPTIONS / hello"],
        ),
        good(
            "unknown method",
            "9112 6.3",
            "BREW / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &["BREW / hello"],
        ),
        good(
            "chunked GET",
            "9112 6.3",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &["GET / hello"],
        ),
        good(
            "body that looks like a request",
            "9112 6.3",
            &post("Content-Length: 32\r\n", "GET /inner HTTP/1.1\r\nHost: b\r\n\r\n"),
            &["POST / GET /inner HTTP/1.1\r\nHost: b"],
        ),
        good(
            "pipelined after a body",
            "9112 9.3.2",
            &(post("Content-Length: 5\r\n", "hello") + "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
            &["POST / hello", "GET /2"],
        ),
        good(
            "pipelined after a chunked body",
            "9112 9.3.2",
            &(chunked("5\r\nhello\r\n0\r\n\r\n") + "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
            &["POST / hello", "GET /2"],
        ),
    ]
}

/// Transfer-Encoding, its disguises, and names that a short length would cut.
pub fn transfer_encoding() -> Vec<Row> {
    let coding = |value: &str| post(&format!("Transfer-Encoding: {value}\r\n"), "5\r\nhello\r\n0\r\n\r\n");
    let one: &'static [&'static str] = &["POST / hello"];
    vec![
        good("chunked", "9112 7.1", &coding("chunked"), one),
        good("in any case", "9110 5.6.6", &coding("cHuNkEd"), one),
        good("optional blanks around it", "9112 5", &coding("\t chunked \t"), one),
        bad("on HTTP/1.0", "9112 6.1", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        bad("chunked twice in a list", "9112 7", &coding("chunked, chunked")),
        bad("chunked twice in two fields", "9112 7", &post(&"Transfer-Encoding: chunked\r\n".repeat(2), "0\r\n\r\n")),
        bad("chunked not last", "9112 6.3", &coding("chunked, gzip")),
        bad("chunked, then identity", "9112 6.3", &coding("chunked, identity")),
        one_of("gzip before chunked", "9112 6.1", &coding("gzip, chunked"), &[400, 501]),
        one_of("identity before chunked", "9112 6.1", &coding("identity, chunked"), &[400, 501]),
        one_of("identity", "9112 6.1", &coding("identity"), &[400, 501]),
        one_of("gzip", "9112 6.1", &coding("gzip"), &[400, 501]),
        one_of("unknown", "9112 6.1", &coding("cow"), &[400, 501]),
        one_of(
            "identity, then chunked in a second field",
            "9112 6.1",
            &post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            &[400, 501],
        ),
        one_of("empty element after", "9112 7", &coding("chunked,"), &[400, 501]),
        one_of("empty element before", "9112 7", &coding(", chunked"), &[400, 501]),
        one_of("prefix", "9112 7", &coding("xchunked"), &[400, 501]),
        one_of("suffix", "9112 7", &coding("chunkedx"), &[400, 501]),
        one_of("parameter", "9112 7", &coding("chunked;q=1"), &[400, 501]),
        one_of("quoted", "9112 7", &coding("\"chunked\""), &[400, 501]),
        one_of("single quotes", "9112 7", &coding("'chunked'"), &[400, 501]),
        one_of("blank within", "9112 7", &coding("chunk ed"), &[400, 501]),
        one_of("empty", "9112 7", &coding(""), &[400, 501]),
        one_of("no-break space", "9112 7", &coding("chunked\u{a0}"), &[400, 501]),
        one_of("vertical tab", "9112 5.5", &coding("\u{b}chunked"), &[400, 501]),
        one_of("form feed", "9112 5.5", &coding("chunked\u{c}"), &[400, 501]),
        one_of("NUL", "9112 5.5", &coding("chunked\u{0}"), &[400, 501]),
        one_of("Kelvin sign for k", "9112 7", &coding("chun\u{e2}\u{84}\u{aa}ed"), &[400, 501]),
        bad("blank before the colon", "9112 5.1", &post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n")),
        bad("NUL in the name", "9112 5.1", &post("Transfer-Encoding\u{0}: chunked\r\n", "0\r\n\r\n")),
        bad("folded value", "9112 5.2", &post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n")),
        bad("folded into the field before", "9112 5.2", &post("A: b\r\n\tTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        bad(
            "as the first line, indented",
            "9112 2.2",
            "POST / HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: a\r\n\r\n",
        ),
        good("underscore makes another name", "9112 5.1", &get("Transfer_Encoding: chunked\r\n"), &["GET /"]),
        good(
            "a name that wraps at 256",
            "9112 5.1",
            &get(&format!("Transfer-Encoding{}: chunked\r\n", "x".repeat(256))),
            &["GET /"],
        ),
        good(
            "a length's name that wraps at 256",
            "9112 5.1",
            &get(&format!("Content-Length{}: 5\r\n", "x".repeat(256))),
            &["GET /"],
        ),
        good(
            "a host's name that wraps at 256",
            "9112 5.1",
            &get(&format!("Host{}: b\r\n", "x".repeat(256))),
            &["GET /"],
        ),
        one_of(
            "a name that wraps at 65536",
            "9112 5.1",
            &get(&format!("Content-Length{}: 5\r\n", "x".repeat(65_536))),
            &[400, 431],
        ),
    ]
}

/// Chunk sizes, extensions, ends and trailers.
pub fn chunks() -> Vec<Row> {
    let size = |size: &str| chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n"));
    let (one, end): (&'static [&'static str], _) = (&["POST / hello"], "0\r\n\r\n");
    vec![
        good("leading zeros", "9112 7.1", &size("0000005"), one),
        good("upper case", "9112 7.1", &chunked(&format!("A\r\n0123456789\r\n{end}")), &["POST / 0123456789"]),
        good("lower case", "9112 7.1", &chunked(&format!("a\r\n0123456789\r\n{end}")), &["POST / 0123456789"]),
        good("extension", "9112 7.1.1", &size("5;a=b"), one),
        good("extension without a value", "9112 7.1.1", &size("5;a"), one),
        good("quoted extension", "9112 7.1.1", &size("5;a=\"b;\\\"c\""), one),
        good("extension of the last chunk", "9112 7.1.1", &chunked("5\r\nhello\r\n0;a=b\r\n\r\n"), one),
        good("last chunk of many zeros", "9112 7.1", &chunked("5\r\nhello\r\n0000\r\n\r\n"), one),
        good("trailers", "9112 7.1.2", &chunked("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), one),
        good(
            "one byte a chunk",
            "9112 7.1",
            &chunked("1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n"),
            one,
        ),
        good("line ends as data", "9112 7.1", &chunked("7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), &["POST / \r\n0"]),
        bad("plus sign", "9112 7.1", &size("+5")),
        bad("minus sign", "9112 7.1", &size("-5")),
        bad("minus zero ends nothing", "9112 7.1", &chunked("-0\r\n\r\n")),
        bad("0x", "9112 7.1", &size("0x5")),
        bad("h at the end", "9112 7.1", &size("5h")),
        bad("blank before", "9112 7.1", &size(" 5")),
        bad("blank after", "9112 7.1", &size("5 ")),
        bad("tab after", "9112 7.1", &size("5\t")),
        bad("blank within", "9112 7.1", &size("0 5")),
        bad("empty size", "9112 7.1", &size("")),
        bad("only an extension", "9112 7.1", &size(";a=b")),
        bad("only a semicolon", "9112 7.1", &chunked(";\r\n\r\n")),
        bad("no digit", "9112 7.1", &size("g")),
        bad("underscore", "9112 7.1", &size("0_5")),
        bad("comma", "9112 7.1", &size("5,5")),
        bad("decimal point", "9112 7.1", &size("5.")),
        one_of("wraps to 5 in 32 bits", "9112 7.1", &size("100000005"), &[400, 413]),
        one_of("wraps to 5 in 64 bits", "9112 7.1", &size("10000000000000005"), &[400, 413]),
        one_of("wraps to 0 in 64 bits", "9112 7.1", &chunked("10000000000000000\r\n\r\n"), &[400, 413]),
        one_of("negative in 64 bits", "9112 7.1", &size("fffffffffffffffb"), &[400, 413]),
        one_of("forty digits", "9112 7.1", &size(&"f".repeat(40)), &[400, 413]),
        bad("bare LF after the size", "9112 2.2", &chunked("5\nhello\r\n0\r\n\r\n")),
        bad("bare CR after the size", "9112 2.2", &chunked("5\rhello\r\n0\r\n\r\n")),
        bad("CR CR LF after the size", "9112 2.2", &chunked("5\r\r\nhello\r\n0\r\n\r\n")),
        bad("no line end after the data", "9112 7.1", &chunked("5\r\nhello0\r\n\r\n")),
        bad("bare LF after the data", "9112 7.1", &chunked("5\r\nhello\n0\r\n\r\n")),
        bad("bare CR after the data", "9112 7.1", &chunked("5\r\nhello\r0\r\n\r\n")),
        bad("two other bytes after the data", "9112 7.1", &chunked("5\r\nhelloXX0\r\n\r\n")),
        bad("LF CR after the data", "9112 7.1", &chunked("5\r\nhello\n\r0\r\n\r\n")),
        bad("more data than its size", "9112 7.1", &chunked("4\r\nhello\r\n0\r\n\r\n")),
        bad("less data than its size", "9112 7.1", &chunked("6\r\nhello\r\n0\r\n\r\n")),
        bad("bare LF in an extension", "9112 7.1.1", &size("5;a\nb")),
        bad("bare CR in an extension", "9112 7.1.1", &size("5;a\rb")),
        bad("NUL in an extension", "9112 7.1.1", &size("5;a=\u{0}")),
        bad("control in an extension", "9112 7.1.1", &size("5;a=\u{1}")),
        one_of("huge extension", "9112 7.1.1", &size(&format!("5;a={}", "x".repeat(100_000))), &[400, 413, 431]),
        one_of("endless zeros", "9112 7.1", &size(&format!("{}5", "0".repeat(100_000))), &[400, 413, 431]),
        bad("bare LF after the last size", "9112 2.2", &chunked("5\r\nhello\r\n0\n\r\n")),
        bad("bare LF at the very end", "9112 2.2", &chunked("5\r\nhello\r\n0\r\n\n")),
        bad("trailer without a colon", "9112 7.1.2", &chunked("5\r\nhello\r\n0\r\nbad\r\n\r\n")),
        bad("trailer with a blank before the colon", "9112 5.1", &chunked("5\r\nhello\r\n0\r\nX-Sum : 1\r\n\r\n")),
        bad("trailer with an empty name", "9112 5.1", &chunked("5\r\nhello\r\n0\r\n: 1\r\n\r\n")),
        bad("trailer folded", "9112 5.2", &chunked("5\r\nhello\r\n0\r\nX-Sum: 1\r\n 2\r\n\r\n")),
        bad("trailer with NUL", "9112 5.5", &chunked("5\r\nhello\r\n0\r\nX-Sum: \u{0}\r\n\r\n")),
        bad("trailer with a bare CR", "9112 2.2", &chunked("5\r\nhello\r\n0\r\nX-Sum: a\rb\r\n\r\n")),
        bad("trailer with a bare LF", "9112 2.2", &chunked("5\r\nhello\r\n0\r\nX-Sum: a\n\r\n")),
        one_of(
            "trailers without end",
            "9112 7.1.2",
            &chunked(&format!("5\r\nhello\r\n0\r\n{}\r\n", "X-Sum: 1\r\n".repeat(20_000))),
            &[400, 413, 431],
        ),
    ]
}

/// Names that begin like those that frame or route, with every length at which a short length would wrap: each frames
/// nothing and arrives as it is.
pub fn names_of_every_length() -> Vec<Row> {
    let mut rows = Vec::new();
    for known in ["Content-Length", "Transfer-Encoding", "Host", "Connection"] {
        for length in [255, 256, 257, 511, 512, 513, 1024, 4096, 8192, 15_000] {
            for length in [length, length + known.len()] {
                let name = format!("{known}{}", "x".repeat(length - known.len()));
                let lines = format!("Content-Length: 5\r\n{name}: chunked\r\n");
                let title = format!("{known} in {length} bytes");
                rows.push(good(&title, "9112 5.1", &post(&lines, "hello"), &["POST / hello"]));
            }
        }
        for length in [65_535, 65_536, 65_537, 65_536 + known.len(), 131_072, 131_072 + known.len()] {
            let name = format!("{known}{}", "x".repeat(length - known.len()));
            let title = format!("{known} in {length} bytes");
            rows.push(one_of(&title, "6585 5", &post(&format!("{name}: 5\r\n"), "hello"), &[431]));
        }
    }
    rows
}
