//! Serialising.

use super::*;
use crate::proto::h1::write::{OwnResponse, Persistence, decimal};

const DATE: &[u8] = b"Tue, 02 Jan 2024 03:04:05 GMT";

#[test]
fn decimals() {
    for n in [0, 7, 10, 99, 100, 65535, 18_446_744_073_709_551_615] {
        let mut out = Vec::new();
        decimal(&mut out, n);
        assert_eq!(out, n.to_string().into_bytes());
    }
}

#[test]
fn an_answer_of_our_own() {
    let mut out = Vec::new();
    OwnResponse::error(404, DATE).write(&mut out);
    let want = "HTTP/1.1 404 Not Found\r\nDate: Tue, 02 Jan 2024 03:04:05 GMT\r\nContent-Type: text/plain\r\n\
        Content-Length: 14\r\nConnection: close\r\n\r\n404 Not Found\n";
    assert_eq!(String::from_utf8(out).unwrap(), want);
}

#[test]
fn our_answers_are_framed_as_they_say() {
    for status in [200, 204, 304, 400, 404, 408, 413, 414, 417, 431, 499, 500, 501, 502, 503, 504, 505] {
        for head in [false, true] {
            let mut out = Vec::new();
            let fields = [("Retry-After", "1")];
            let connection = Persistence::KeepHttp10;
            OwnResponse { head, connection, fields: &fields, ..OwnResponse::error(status, DATE) }.write(&mut out);
            let (parsed, result) = response(&out);
            let end = result.unwrap().unwrap();
            assert_eq!(parsed.status, status);
            assert!(parsed.has_date && parsed.keep_alive);
            let bodiless = head || status == 204 || status == 304;
            let want = if bodiless { 0 } else { parsed.content_length.unwrap() };
            assert_eq!((out.len() - end) as u64, want, "{status} {head}");
            assert_eq!(parsed.content_length.is_none(), status == 204 || status == 304);
        }
    }
}

#[test]
fn every_status_a_refusal_uses_has_a_reason() {
    for status in [400, 408, 413, 414, 417, 431, 501, 502, 503, 504, 505] {
        assert!(!crate::proto::h1::write::reason(status).is_empty(), "{status}");
    }
}
