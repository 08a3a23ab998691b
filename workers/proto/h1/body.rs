//! A body of any framing, read through one shape.

use std::fmt;

use super::chunked::{ChunkError, Decoder};
use super::request::BodyFraming;
use super::response::ResponseFraming;

pub use super::chunked::Piece;

/// Reads one message body.
#[derive(Debug, Clone)]
pub enum BodyReader {
    /// There is none.
    None,
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks.
    Chunked(Decoder),
    /// All until the connection ends; `ended` once it has.
    UntilClose {
        /// Whether the end has come.
        ended: bool,
    },
}

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Bad chunked coding.
    Chunk(ChunkError),
    /// The connection ended first (RFC 9112 section 8).
    Truncated {
        /// Bytes still to come, when known.
        missing: Option<u64>,
    },
}

impl std::error::Error for BodyError {}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Chunk(why) => write!(f, "chunked body: {why}"),
            BodyError::Truncated { missing: Some(n) } => write!(f, "connection ended {n} bytes before the body's end"),
            BodyError::Truncated { missing: None } => f.write_str("connection ended within a chunked body"),
        }
    }
}

impl From<BodyFraming> for BodyReader {
    fn from(framing: BodyFraming) -> BodyReader {
        match framing {
            BodyFraming::None => BodyReader::None,
            BodyFraming::Length(length) => BodyReader::Length(length),
            BodyFraming::Chunked => BodyReader::Chunked(Decoder::new()),
        }
    }
}

impl From<ResponseFraming> for BodyReader {
    fn from(framing: ResponseFraming) -> BodyReader {
        match framing {
            ResponseFraming::None => BodyReader::None,
            ResponseFraming::Length(length) => BodyReader::Length(length),
            ResponseFraming::Chunked => BodyReader::Chunked(Decoder::new()),
            ResponseFraming::UntilClose => BodyReader::UntilClose { ended: false },
        }
    }
}

impl BodyReader {
    /// Takes bytes from `input`: how many, and what they were. `End` as soon as the body is complete, with 0 bytes
    /// taken from then on; `More` when all of `input` is used up and more must come.
    ///
    /// # Errors
    /// [`BodyError::Chunk`].
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, Piece), BodyError> {
        match self {
            BodyReader::None | BodyReader::Length(0) | BodyReader::UntilClose { ended: true } => Ok((0, Piece::End)),
            BodyReader::Length(_) | BodyReader::UntilClose { ended: false } if input.is_empty() => Ok((0, Piece::More)),
            BodyReader::Length(left) => {
                let take = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= take as u64;
                Ok((take, Piece::Data(0..take)))
            }
            BodyReader::Chunked(decoder) => decoder.next(input).map_err(BodyError::Chunk),
            BodyReader::UntilClose { ended: false } => Ok((input.len(), Piece::Data(0..input.len()))),
        }
    }

    /// The connection has ended. Fine only when the body is complete or lasts until then.
    ///
    /// # Errors
    /// [`BodyError::Truncated`]: the recipient must be able to see that the message is cut.
    pub fn on_eof(&mut self) -> Result<(), BodyError> {
        match self {
            BodyReader::None | BodyReader::Length(0) => Ok(()),
            BodyReader::Length(left) => Err(BodyError::Truncated { missing: Some(*left) }),
            BodyReader::Chunked(decoder) if decoder.is_done() => Ok(()),
            BodyReader::Chunked(_) => Err(BodyError::Truncated { missing: None }),
            BodyReader::UntilClose { ended } => {
                *ended = true;
                Ok(())
            }
        }
    }

    /// Whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            BodyReader::None => true,
            BodyReader::Length(left) => *left == 0,
            BodyReader::Chunked(decoder) => decoder.is_done(),
            BodyReader::UntilClose { ended } => *ended,
        }
    }

    /// Bytes still to come of a body of known length; `None` for the other framings.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        match self {
            BodyReader::None => Some(0),
            BodyReader::Length(left) => Some(*left),
            BodyReader::Chunked(_) | BodyReader::UntilClose { .. } => None,
        }
    }

    /// Bytes that are known to come: all of a body of known length, the present chunk of a chunked one.
    #[must_use]
    pub fn announced(&self) -> u64 {
        match self {
            BodyReader::Length(left) => *left,
            BodyReader::Chunked(decoder) => decoder.announced(),
            BodyReader::None | BodyReader::UntilClose { .. } => 0,
        }
    }

    /// Counts `n` bytes of a body of known length, moved without passing through here; at most `remaining`.
    pub fn advance(&mut self, n: u64) {
        if let BodyReader::Length(left) = self {
            debug_assert!(n <= *left, "moved {n} bytes of a body with {left} left");
            *left = left.saturating_sub(n);
        }
    }

    /// Trailer fields to pass on, each as `Name: value` CRLF; empty unless a chunked body is complete and had some.
    #[must_use]
    pub fn trailers(&self) -> &[u8] {
        match self {
            BodyReader::Chunked(decoder) if decoder.is_done() => decoder.trailers(),
            BodyReader::None | BodyReader::Length(_) | BodyReader::Chunked(_) | BodyReader::UntilClose { .. } => &[],
        }
    }
}
