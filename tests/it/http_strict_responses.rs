//! Responses at the edge of RFC 9112: what a client gets when the backend is wrong, hostile or cut off.
//!
//! What is broken before its head was sent becomes 502. What breaks later must end so that the client can see
//! it. No byte of one response may ever turn up in another.

mod bench;
mod more_rows;
mod rows;

use crate::common::backend::{Act, Backend, response};
use crate::common::client::{Client, End, get};
use crate::common::conf::Conf;
use crate::common::wait_until;
use crate::http_strict::bench::Over;
use bench::{Bench, GET_1_0, Row, chunked, ok};

/// Every table.
fn all() -> Vec<Row> {
    let tables = [
        rows::status_lines(),
        rows::heads(),
        rows::content_length(),
        rows::transfer_encoding(),
        rows::broken_chunks(),
        rows::early_ends(),
        rows::interim(),
        rows::no_body(),
        rows::after_the_end(),
        more_rows::status_lines(),
        more_rows::framing(),
        more_rows::interim(),
        more_rows::reuse(),
    ];
    tables.into_iter().flatten().collect()
}

#[test]
fn status_lines() {
    Bench::new(Over::V4).run(&rows::status_lines());
}

#[test]
fn heads() {
    Bench::new(Over::V4).run(&rows::heads());
}

#[test]
fn content_length() {
    Bench::new(Over::V4).run(&rows::content_length());
}

#[test]
fn transfer_encoding() {
    Bench::new(Over::V4).run(&rows::transfer_encoding());
}

#[test]
fn broken_chunks_are_never_a_clean_end() {
    Bench::new(Over::V4).run(&rows::broken_chunks());
}

#[test]
fn early_ends_show() {
    Bench::new(Over::V4).run(&rows::early_ends());
}

#[test]
fn interim_responses() {
    Bench::new(Over::V4).run(&rows::interim());
}

#[test]
fn bodies_where_none_may_be() {
    Bench::new(Over::V4).run(&rows::no_body());
}

#[test]
fn bytes_after_the_end_are_dropped_with_their_connection() {
    Bench::new(Over::V4).run(&rows::after_the_end());
}

#[test]
fn more_status_lines() {
    Bench::new(Over::V4).run(&more_rows::status_lines());
}

#[test]
fn more_framing() {
    Bench::new(Over::V4).run(&more_rows::framing());
}

#[test]
fn more_interim_responses() {
    Bench::new(Over::V4).run(&more_rows::interim());
}

#[test]
fn only_sound_connections_are_reused() {
    Bench::new(Over::V4).run(&more_rows::reuse());
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

#[test]
fn early_end_shows_to_http_1_0() {
    early_end_shows_to_http_1_0_too(Over::V4);
}

#[test]
fn early_end_shows_to_http_1_0_over_ipv6() {
    early_end_shows_to_http_1_0_too(Over::V6);
}

#[test]
fn early_end_shows_to_http_1_0_over_a_unix_socket() {
    early_end_shows_to_http_1_0_too(Over::Unix);
    early_end_shows_to_http_1_0_too(Over::UnixHeader);
}

fn early_end_shows_to_http_1_0_too(over: Over) {
    // There the orderly end of the connection means a whole body: a cut must be a reset (RFC 9112 section 8).
    for (answer, then) in [
        (chunked("5\r\nhello\r\n"), Act::Close),
        (chunked("5\r\nhello\r\n"), Act::Reset),
        (chunked("5\r\nhello\r\nzz\r\n"), Act::Hang),
        (ok("", "hello"), Act::Reset),
    ] {
        let bench = Bench::new(over);
        *bench.script.lock().unwrap() = vec![Act::send(answer.clone()), Act::Gate, then.clone()];
        let mut client = over.connect(&bench.proxy);
        client.send(GET_1_0);
        client.wire.begin();
        // Part of the answer is on its way before the end comes, or the whole was held back.
        bench.backend.gate().open();
        let (got, end) = client.read_to_end();
        let text = String::from_utf8_lossy(&got).into_owned();
        assert!(
            end == End::Reset || text.contains(" 502 "),
            "{over:?}, {answer:?} then {then:?}: {end:?} after {text:?}"
        );
    }
}

#[test]
fn bytes_on_an_idle_pooled_connection_are_no_answer() {
    let backend = Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.send(&response("right"));
            // The first connection only: on one in use nobody can tell these bytes from an answer.
            if conn.number == 0 {
                conn.gate().pass();
                conn.send(&response("unasked"));
            }
        }
    });
    let proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").text(), "right");
    backend.gate().open();
    wait_until("the connection is given up", || backend.open() == 0);
    for _ in 0..5 {
        assert_eq!(client.get("/").text(), "right");
        assert_eq!(get(proxy.addr(), "/").text(), "right");
    }
}
