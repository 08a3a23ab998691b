//! A body on its way from one framing into another: Content-Length, chunked, or until close.

use std::ops::Range;

use crate::proto::h1::body::{BodyError, BodyReader, Piece};
use crate::proto::h1::chunked;

/// How the body goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// As it is: the head says how long it is, or its end is the connection's.
    Plain,
    /// In chunks, followed by trailers if the receiver takes them.
    Chunked {
        /// Whether it takes them.
        trailers: bool,
    },
}

/// See the module's description.
#[derive(Debug)]
pub struct Transfer {
    reader: BodyReader,
    outgoing: Outgoing,
    bytes: u64,
}

/// What one call of [`Transfer::feed`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Fed {
    /// Bytes of the input that were used.
    pub used: usize,
    /// A part of the input that is to be sent behind what was appended to `out`.
    pub direct: Range<usize>,
}

impl Transfer {
    /// A body read by `reader` and sent as `outgoing`.
    #[must_use]
    pub fn new(reader: BodyReader, outgoing: Outgoing) -> Transfer {
        Transfer { reader, outgoing, bytes: 0 }
    }

    /// No body at all.
    #[must_use]
    pub fn none() -> Transfer {
        Transfer::new(BodyReader::None, Outgoing::Plain)
    }

    /// Whether it has come whole.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Bytes of the body that have come, framing not counted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that have come and that are known to come.
    #[must_use]
    pub fn announced(&self) -> u64 {
        self.bytes.saturating_add(self.reader.announced())
    }

    /// Bytes still to come, when they can be moved without being looked at.
    #[must_use]
    pub fn spliceable(&self) -> Option<u64> {
        match self.outgoing {
            Outgoing::Plain => self.reader.remaining(),
            Outgoing::Chunked { .. } => None,
        }
    }

    /// So many bytes were moved without being looked at.
    pub fn spliced(&mut self, n: usize) {
        self.bytes += n as u64;
        self.reader.advance(n as u64);
    }

    /// Takes what `input` holds of the body and appends what must be written to `out`, but for one long stretch
    /// that need not be copied. All of `input` is used unless the body ends in it.
    ///
    /// # Errors
    /// When the framing is broken.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Fed, BodyError> {
        let mut used = 0;
        while used < input.len() || self.reader.is_done() {
            if self.reader.is_done() {
                break;
            }
            let (taken, piece) = self.reader.next(&input[used..])?;
            let from = used;
            used += taken;
            match piece {
                Piece::More => {
                    if taken == 0 {
                        break;
                    }
                }
                Piece::End => self.finish(out),
                Piece::Data(range) => {
                    let data = from + range.start..from + range.end;
                    self.bytes += data.len() as u64;
                    match self.outgoing {
                        Outgoing::Plain if used == input.len() || self.reader.is_done() => {
                            return Ok(Fed { used, direct: data });
                        }
                        Outgoing::Plain => out.extend_from_slice(&input[data]),
                        Outgoing::Chunked { .. } => {
                            chunked::chunk_head(out, data.len());
                            out.extend_from_slice(&input[data]);
                            out.extend_from_slice(b"\r\n");
                            if self.reader.is_done() {
                                self.finish(out);
                            }
                        }
                    }
                }
            }
        }
        Ok(Fed { used, direct: 0..0 })
    }

    /// The sender closed its side. Appends the end to `out` when that is how this body ends.
    ///
    /// # Errors
    /// When the body was not complete: the receiver must be made to see it.
    pub fn end_of_file(&mut self, out: &mut Vec<u8>) -> Result<(), BodyError> {
        let was_done = self.reader.is_done();
        self.reader.on_eof()?;
        if !was_done {
            self.finish(out);
        }
        Ok(())
    }

    fn finish(&self, out: &mut Vec<u8>) {
        match self.outgoing {
            Outgoing::Plain => {}
            Outgoing::Chunked { trailers: true } => chunked::last_chunk(out, self.reader.trailers()),
            Outgoing::Chunked { trailers: false } => chunked::last_chunk(out, &[]),
        }
    }
}
