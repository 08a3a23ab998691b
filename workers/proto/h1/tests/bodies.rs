//! Bodies of every framing through one shape.

use crate::proto::h1::body::{BodyError, BodyReader, Piece};
use crate::proto::h1::head::{BodyFraming, ResponseFraming};

#[test]
fn no_body_takes_nothing() {
    for mut body in [
        BodyReader::from(BodyFraming::None),
        BodyReader::from(BodyFraming::Length(0)),
        BodyReader::from(ResponseFraming::None),
    ] {
        assert!(body.is_done());
        assert_eq!(body.next(b"GET / HTTP/1.1\r\n"), Ok((0, Piece::End)));
        assert_eq!(body.on_eof(), Ok(()));
        assert_eq!(body.remaining(), Some(0));
    }
}

#[test]
fn a_length_is_taken_exactly() {
    let mut body = BodyReader::from(BodyFraming::Length(7));
    assert_eq!(body.next(b""), Ok((0, Piece::More)));
    assert_eq!(body.next(b"abc"), Ok((3, Piece::Data(0..3))));
    assert_eq!(body.remaining(), Some(4));
    body.advance(2);
    assert_eq!(body.on_eof(), Err(BodyError::Truncated { missing: Some(2) }));
    assert_eq!(body.next(b"deGET"), Ok((2, Piece::Data(0..2))));
    assert!(body.is_done());
    assert_eq!(body.next(b"GET"), Ok((0, Piece::End)));
    assert_eq!(body.on_eof(), Ok(()));
}

#[test]
fn a_chunked_body_ends_only_with_its_last_chunk() {
    let mut body = BodyReader::from(ResponseFraming::Chunked);
    assert_eq!(body.remaining(), None);
    assert_eq!(body.next(b"3\r\nabc"), Ok((6, Piece::Data(3..6))));
    assert_eq!(body.on_eof(), Err(BodyError::Truncated { missing: None }));
    assert_eq!(body.next(b"\r\n0\r\nX: 1\r\n"), Ok((11, Piece::More)));
    assert_eq!(body.on_eof(), Err(BodyError::Truncated { missing: None }));
    assert_eq!(body.trailers(), b"");
    assert_eq!(body.next(b"\r\nHTTP/1.1"), Ok((2, Piece::End)));
    assert_eq!(body.trailers(), b"X: 1\r\n");
    assert!(body.is_done());
    assert_eq!(body.next(b"HTTP/1.1"), Ok((0, Piece::End)));
    assert_eq!(body.on_eof(), Ok(()));
}

#[test]
fn until_close_ends_with_the_connection() {
    let mut body = BodyReader::from(ResponseFraming::UntilClose);
    assert_eq!(body.next(b"abc"), Ok((3, Piece::Data(0..3))));
    assert!(!body.is_done());
    assert_eq!(body.on_eof(), Ok(()));
    assert!(body.is_done());
    assert_eq!(body.next(b"abc"), Ok((0, Piece::End)));
}

#[test]
fn chunk_errors_come_through() {
    let mut body = BodyReader::from(BodyFraming::Chunked);
    assert!(matches!(body.next(b"0x5\r\n"), Err(BodyError::Chunk(_))));
}
