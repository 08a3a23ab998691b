//! The chunked transfer coding (RFC 9112 section 7.1): a strict decoder, and the encoder's few lines.
//!
//! Chunk extensions are checked, counted and dropped. Trailer fields are checked; those that RFC 9110 section 6.5.1
//! does not allow in a trailer section are dropped, the others are kept for the recipient.

use std::fmt;
use std::ops::Range;

use super::error::HeadError;
use super::field::{self, FieldName};
use super::lex::{self, Line};
use super::list;

/// Bytes of chunk extensions in one body.
pub const MAX_EXTENSION_BYTES: u32 = 4096;
/// Bytes of the trailer section of one body, as received.
pub const MAX_TRAILER_BYTES: usize = 8192;
/// Field lines in the trailer section of one body.
pub const MAX_TRAILER_FIELDS: u32 = 64;
/// Digits of a chunk size: 64 bits.
const MAX_SIZE_DIGITS: u8 = 16;

/// What a step through a body found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Nothing yet: the input is used up.
    More,
    /// Content: this range of the input.
    Data(Range<usize>),
    /// The body is complete; what follows belongs to the next message.
    End,
}

/// Why a chunked body is refused.
#[expect(missing_docs, reason = "`byte` is the offending byte")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkError {
    /// A chunk size without a digit, or a byte that is no hexadecimal digit.
    Size { byte: u8 },
    /// A chunk size of 2^63 or more, or of more than 16 digits.
    SizeTooLarge,
    /// A byte that may not stand in a chunk extension.
    Extension { byte: u8 },
    /// More than [`MAX_EXTENSION_BYTES`] of extensions.
    ExtensionsTooLarge,
    /// CR without LF after the chunk size.
    BareCr,
    /// LF without CR after the chunk size.
    BareLf,
    /// No CRLF after the chunk's data.
    Terminator { byte: u8 },
    /// A bad line in the trailer section; lines count from its beginning.
    Trailer(HeadError),
    /// More than [`MAX_TRAILER_BYTES`] or [`MAX_TRAILER_FIELDS`].
    TrailersTooLarge,
}

impl std::error::Error for ChunkError {}

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChunkError::Size { byte } => write!(f, "byte {byte:#04x} in a chunk size"),
            ChunkError::SizeTooLarge => f.write_str("chunk size too large"),
            ChunkError::Extension { byte } => write!(f, "byte {byte:#04x} in a chunk extension"),
            ChunkError::ExtensionsTooLarge => write!(f, "more than {MAX_EXTENSION_BYTES} bytes of chunk extensions"),
            ChunkError::BareCr => f.write_str("CR without LF after a chunk size"),
            ChunkError::BareLf => f.write_str("LF without CR after a chunk size"),
            ChunkError::Terminator { byte } => write!(f, "byte {byte:#04x} where a chunk's CRLF belongs"),
            ChunkError::Trailer(why) => write!(f, "trailer section, {why}"),
            ChunkError::TrailersTooLarge => {
                write!(f, "trailers over {MAX_TRAILER_BYTES} bytes or {MAX_TRAILER_FIELDS} fields")
            }
        }
    }
}

/// Where the decoder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Before the first digit of a chunk size.
    #[default]
    Start,
    /// Within the digits.
    Size { digits: u8 },
    /// After `;`: an extension's name must begin.
    NameStart,
    /// Within a name.
    Name,
    /// After `=`: a value must begin.
    ValueStart,
    /// Within a token value.
    Value,
    /// Within a quoted value.
    Quoted,
    /// After a backslash in it.
    Escaped,
    /// After its closing quote.
    QuotedEnd,
    /// After the CR of the size line.
    SizeLf,
    /// Within the data, `left` bytes to go.
    Data,
    /// After the data.
    DataCr,
    /// After the CR that follows the data.
    DataLf,
    /// At the first byte after the last chunk.
    TrailerStart,
    /// After a CR there.
    FinalLf,
    /// Within the trailer section.
    Trailer,
    /// After the final CRLF.
    Done,
}

/// Decodes one chunked body. Small while no trailers come.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    state: State,
    /// The chunk size being read, then the bytes of the chunk still to come.
    left: u64,
    /// Extension bytes so far.
    extensions: u32,
    /// Kept trailer lines, then the line being read from `line_at` on.
    trailers: Vec<u8>,
    line_at: usize,
    trailer_bytes: usize,
    trailer_lines: u32,
    /// Names of trailer fields that end here, as a list with commas.
    ended: Box<[u8]>,
}

impl Decoder {
    /// A decoder at the beginning of a body.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// The same, for a body of which trailer fields with these names are dropped: a list with commas, in any case, as
    /// Connection has it (RFC 9110 section 7.6.1).
    #[must_use]
    pub fn without(names: Box<[u8]>) -> Decoder {
        Decoder { ended: names, ..Decoder::default() }
    }

    /// Whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes still to come in the present chunk, as its size announced; 0 between chunks.
    #[must_use]
    pub fn announced(&self) -> u64 {
        if self.state == State::Data { self.left } else { 0 }
    }

    /// The trailer fields that may be passed on, each as `Name: value` CRLF; complete when the body is.
    #[must_use]
    pub fn trailers(&self) -> &[u8] {
        self.trailers.get(..self.line_at).unwrap_or_default()
    }

    /// Takes bytes from `input`: how many, and what they were. Before `More` all of `input` is used up. After `End`
    /// nothing is taken any more.
    ///
    /// # Errors
    /// [`ChunkError`]; the connection must be closed, and a response that was begun must end without its last chunk.
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, Piece), ChunkError> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match self.state {
                State::Data => {
                    let here = input.len() - at;
                    let take = usize::try_from(self.left).map_or(here, |left| left.min(here));
                    self.left -= take as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok((at + take, Piece::Data(at..at + take)));
                }
                State::Done => return Ok((at, Piece::End)),
                State::Trailer => at += self.trailer(input.get(at..).unwrap_or_default())?,
                State::Start
                | State::Size { .. }
                | State::NameStart
                | State::Name
                | State::ValueStart
                | State::Value
                | State::Quoted
                | State::Escaped
                | State::QuotedEnd
                | State::SizeLf
                | State::DataCr
                | State::DataLf
                | State::TrailerStart
                | State::FinalLf => {
                    self.state = self.step(byte)?;
                    if self.state != State::Trailer {
                        at += 1;
                    }
                }
            }
        }
        Ok((at, if self.is_done() { Piece::End } else { Piece::More }))
    }

    /// One byte of a size line, a chunk's CRLF or the final CRLF.
    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        match self.state {
            State::Start => {
                self.left = hex(byte).ok_or(ChunkError::Size { byte })?;
                Ok(State::Size { digits: 1 })
            }
            State::Size { digits } => match byte {
                b'\r' => Ok(State::SizeLf),
                b'\n' => Err(ChunkError::BareLf),
                b';' => Ok(State::NameStart),
                _ => {
                    let digit = hex(byte).ok_or(ChunkError::Size { byte })?;
                    if digits >= MAX_SIZE_DIGITS || self.left >> 59 != 0 {
                        return Err(ChunkError::SizeTooLarge);
                    }
                    self.left = self.left << 4 | digit;
                    Ok(State::Size { digits: digits + 1 })
                }
            },
            State::NameStart
            | State::Name
            | State::ValueStart
            | State::Value
            | State::Quoted
            | State::Escaped
            | State::QuotedEnd => {
                let next = extension(self.state, byte)?;
                self.extensions += 1;
                if self.extensions > MAX_EXTENSION_BYTES {
                    return Err(ChunkError::ExtensionsTooLarge);
                }
                Ok(next)
            }
            State::SizeLf if byte == b'\n' && self.left == 0 => Ok(State::TrailerStart),
            State::SizeLf if byte == b'\n' => Ok(State::Data),
            State::SizeLf => Err(ChunkError::BareCr),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Start),
            State::DataCr | State::DataLf => Err(ChunkError::Terminator { byte }),
            State::TrailerStart if byte == b'\r' => Ok(State::FinalLf),
            State::TrailerStart => Ok(State::Trailer),
            State::FinalLf if byte == b'\n' => Ok(State::Done),
            State::FinalLf => Err(ChunkError::Trailer(HeadError::BareCr { line: 1 })),
            State::Data | State::Trailer | State::Done => Ok(self.state),
        }
    }

    /// Takes bytes of a trailer line up to its LF. A line is looked at from its beginning each time; its length is
    /// bounded by [`MAX_TRAILER_BYTES`].
    fn trailer(&mut self, input: &[u8]) -> Result<usize, ChunkError> {
        let room = MAX_TRAILER_BYTES.saturating_sub(self.trailer_bytes);
        let take = memchr::memchr(b'\n', input).map_or(input.len(), |lf| lf + 1);
        let part = input.get(..take.min(room)).unwrap_or(input);
        self.trailers.extend_from_slice(part);
        self.trailer_bytes += part.len();
        let line = self.trailer_lines.saturating_add(1);
        let start = self.line_at;
        match lex::field_line(&self.trailers, start, line, line == 1).map_err(ChunkError::Trailer)? {
            Line::More if part.len() < take || self.trailer_bytes >= MAX_TRAILER_BYTES => {
                return Err(ChunkError::TrailersTooLarge);
            }
            Line::More => {}
            Line::End(_) => {
                self.trailers.truncate(start);
                self.state = State::Done;
            }
            Line::Field(raw) => {
                self.trailer_lines = line;
                if line > MAX_TRAILER_FIELDS {
                    return Err(ChunkError::TrailersTooLarge);
                }
                let field = field::named(&self.trailers, &raw);
                let text = field.name.of(&self.trailers);
                let ends = list::members(&self.ended).any(|name| name.eq_ignore_ascii_case(text));
                if !ends && is_allowed_trailer(text, field.kind) {
                    let name = field.name.start as usize..field.name.end as usize;
                    let value = field.value.start as usize..field.value.end as usize;
                    // Written anew in place: the canonical line is never longer than needed, blanks may be missing.
                    let text = self.trailers.get(value).unwrap_or_default().to_vec();
                    self.trailers.truncate(name.end);
                    self.trailers.extend_from_slice(b": ");
                    self.trailers.extend_from_slice(&text);
                    self.trailers.extend_from_slice(b"\r\n");
                    self.line_at = self.trailers.len();
                } else {
                    self.trailers.truncate(start);
                }
            }
        }
        Ok(part.len())
    }
}

/// One byte of a chunk extension (RFC 9112 section 7.1.1), without the "bad white space" that the section lets
/// recipients take: no sender writes it.
fn extension(state: State, byte: u8) -> Result<State, ChunkError> {
    let bad = Err(ChunkError::Extension { byte });
    let token = lex::is(byte, lex::TOKEN);
    let control = (byte < 0x20 && byte != b'\t') || byte == 0x7f;
    match (state, byte) {
        (State::NameStart | State::Name, _) if token => Ok(State::Name),
        (State::Name, b'=') => Ok(State::ValueStart),
        (State::ValueStart, b'"') => Ok(State::Quoted),
        (State::ValueStart | State::Value, _) if token => Ok(State::Value),
        (State::Name | State::Value | State::QuotedEnd, b';') => Ok(State::NameStart),
        (State::Name | State::Value | State::QuotedEnd, b'\r') => Ok(State::SizeLf),
        (State::Quoted, b'"') => Ok(State::QuotedEnd),
        (State::Quoted, b'\\') => Ok(State::Escaped),
        (State::Quoted | State::Escaped, _) if !control => Ok(State::Quoted),
        (_, b'\n') => Err(ChunkError::BareLf),
        (_, _) => bad,
    }
}

fn hex(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// Whether a field may stand in a trailer section (RFC 9110 section 6.5.1): none on which framing, routing,
/// authentication, request modifiers, response control or the content's form rest. Content-Digest, Repr-Digest and
/// Content-MD5 are made for it (RFC 9530 section 2).
fn is_allowed_trailer(name: &[u8], kind: FieldName) -> bool {
    const REFUSED: &[&str] = &[
        "age",
        "expires",
        "pragma",
        "retry-after",
        "warning",
        "accept",
        "server",
        "status",
        "refresh",
        "link",
        "alt-svc",
        "clear-site-data",
        "referer",
        "user-agent",
    ];
    let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
    if is("content-digest") || is("content-md5") {
        return true;
    }
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|n| n.eq_ignore_ascii_case(prefix.as_bytes()));
    kind == FieldName::Other
        && (is("etag") || field::may_be_nominated(name))
        && !begins("accept-")
        && !REFUSED.iter().any(|text| is(text))
}

/// Writes the line before a chunk of `len` bytes. `len` must not be 0: that would end the body.
pub fn chunk_head(out: &mut Vec<u8>, len: usize) {
    debug_assert!(len > 0, "a chunk of no bytes is the last one");
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut rest = len;
    while rest > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Writes what follows a chunk's data.
pub fn chunk_tail(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// Writes the last chunk, `trailers` as [`Decoder::trailers`] gives them (or empty), and the final CRLF.
pub fn last_chunk(out: &mut Vec<u8>, trailers: &[u8]) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers);
    out.extend_from_slice(b"\r\n");
}
