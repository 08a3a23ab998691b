//! Requests at the edge of RFC 9112: which are refused, which pass, and that nobody is ever led to take one
//! message for two.
//!
//! Each row is sent as it stands, followed by a request that must never be served when the row is refused. The
//! backend parses strictly and fails the test when anything ambiguous reaches it.

pub mod bench;
mod framing;
mod lines;
mod semantics;

use bench::{Bench, Over, Row, bad, chunked, get, good, host, post};

#[test]
fn a_plain_byte_pipe_fails_these_rows() {
    // The proof that this bench notices: relayed byte for byte, the backend itself has to refuse.
    let bench = Bench::relay();
    for row in [
        bad(
            "length with chunked",
            "9112 6.1",
            &post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ),
        bad("two lengths", "9112 6.3", &post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        bad("bare LF", "9112 2.2", "GET / HTTP/1.1\nHost: a\n\n"),
        bad("chunk size with a sign", "9112 7.1", &chunked("+5\r\nhello\r\n0\r\n\r\n")),
        bad("host that is a list", "9112 3.2", &host("Host: a, b\r\n")),
    ] {
        assert!(bench.try_row(&row).is_err(), "{} passed", row.name);
    }
    assert!(bench.try_row(&good("a sound request", "9112 3", &get(""), &["GET /"])).is_ok());
}

/// Every table.
fn all() -> Vec<Row> {
    let tables = [
        framing::content_length(),
        framing::any_method(),
        framing::transfer_encoding(),
        framing::chunks(),
        framing::names_of_every_length(),
        lines::lines_and_fields(),
        lines::request_lines(),
        lines::hosts(),
        lines::sequences(),
        semantics::fields_of_one_hop(),
        semantics::who_the_client_is(),
        semantics::expectations_and_hops(),
        semantics::upgrades_and_tunnels(),
        semantics::versions(),
        semantics::trailers_and_extensions(),
        semantics::pipelines(),
    ];
    tables.into_iter().flatten().collect()
}

#[test]
fn content_length() {
    Bench::new(Over::V4).run(&framing::content_length());
}

#[test]
fn bodies_on_any_method_are_framed() {
    Bench::new(Over::V4).run(&framing::any_method());
}

#[test]
fn transfer_encoding() {
    Bench::new(Over::V4).run(&framing::transfer_encoding());
}

#[test]
fn chunks() {
    Bench::new(Over::V4).run(&framing::chunks());
}

#[test]
fn names_of_every_length_are_themselves() {
    Bench::new(Over::V4).run(&framing::names_of_every_length());
}

#[test]
fn lines_and_fields() {
    Bench::new(Over::V4).run(&lines::lines_and_fields());
}

#[test]
fn request_lines() {
    Bench::new(Over::V4).run(&lines::request_lines());
}

#[test]
fn hosts() {
    Bench::new(Over::V4).run(&lines::hosts());
}

#[test]
fn sequences() {
    Bench::new(Over::V4).run(&lines::sequences());
}

#[test]
fn fields_of_one_hop() {
    Bench::new(Over::V4).run(&semantics::fields_of_one_hop());
}

#[test]
fn who_the_client_is() {
    Bench::new(Over::V4).run(&semantics::who_the_client_is());
}

#[test]
fn expectations_and_hops() {
    Bench::new(Over::V4).run(&semantics::expectations_and_hops());
}

#[test]
fn upgrades_and_tunnels() {
    Bench::new(Over::V4).run(&semantics::upgrades_and_tunnels());
}

#[test]
fn versions() {
    Bench::new(Over::V4).run(&semantics::versions());
}

#[test]
fn trailers_and_extensions() {
    Bench::new(Over::V4).run(&semantics::trailers_and_extensions());
}

#[test]
fn pipelines() {
    Bench::new(Over::V4).run(&semantics::pipelines());
}

#[test]
fn all_of_it_over_ipv6() {
    Bench::new(Over::V6).run(&all());
}

#[test]
fn all_of_it_over_a_unix_socket() {
    Bench::new(Over::Unix).run(&all());
}

#[test]
fn all_of_it_behind_a_proxy_header() {
    Bench::new(Over::Header).run(&all());
}
