//! The response head (RFC 9112 sections 4 to 6): one pass, as strict as for requests.

use super::error::HeadError;
use super::field::{self, Field, FieldName, Framing, Options};
use super::head::{HeadLimits, Version};
use super::lex::{self, Line};
use super::method::Method;
use super::span::Span;

/// How a response's content is framed (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseFraming {
    /// No content, whatever the fields say.
    None,
    /// So many bytes; at most 2^63 - 1.
    Length(u64),
    /// Chunks.
    Chunked,
    /// All until the server closes.
    UntilClose,
}

/// A parsed response head. Reusable, as [`super::request::RequestHead`].
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    /// The version.
    pub version: Version,
    /// The status, 100 to 599.
    pub status: u16,
    /// The reason phrase; may be empty.
    pub reason: Span,
    /// The fields in their order.
    pub fields: Vec<Field>,
    /// Whether the server keeps the connection (RFC 9112 section 9.3), and nothing in the head puts its framing in
    /// doubt: a 1xx or 204 that announces content does. Content until close ends the connection all the same.
    pub keep_alive: bool,
    /// The Upgrade field, when there is exactly one and Connection names it.
    pub upgrade: Option<Span>,
    /// Content-Length, also where it frames nothing (HEAD, 304).
    pub content_length: Option<u64>,
    /// `Transfer-Encoding: chunked` was there.
    pub chunked: bool,
    /// A Date was there (RFC 9110 section 6.6.1).
    pub has_date: bool,
    /// Length of the head in bytes.
    pub len: usize,
    options: Options,
}

impl ResponseHead {
    /// Parses the head that `bytes` begin with; results as of [`super::request::RequestHead::parse`]. No empty line
    /// before it is skipped.
    ///
    /// # Errors
    /// The first fault from the left. The connection it came on must not be used again.
    pub fn parse(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
        self.reset();
        let window = lex::window(bytes, limits.bytes);
        let end = match self.status_line(window)? {
            Some(at) => self.field_lines(window, at, limits.fields)?,
            None => None,
        };
        match end {
            Some(end) => {
                self.len = end;
                Ok(Some(end))
            }
            None if window.len() >= limits.bytes => Err(HeadError::HeadTooLarge { limit: limits.bytes }),
            None => Ok(None),
        }
    }

    fn reset(&mut self) {
        self.fields.clear();
        self.options.clear();
        (self.status, self.len) = (0, 0);
        (self.upgrade, self.content_length) = (None, None);
        (self.keep_alive, self.chunked, self.has_date) = (false, false, false);
    }

    /// How the content of this response to a request with `method` is framed (RFC 9112 section 6.3). Faults were
    /// found by `parse` already.
    #[must_use]
    pub fn framing(&self, method: Method) -> ResponseFraming {
        let tunnel = method == Method::Connect && (200..300).contains(&self.status);
        if method == Method::Head || self.is_interim() || matches!(self.status, 204 | 304) || tunnel {
            ResponseFraming::None
        } else if self.chunked {
            ResponseFraming::Chunked
        } else {
            self.content_length.map_or(ResponseFraming::UntilClose, ResponseFraming::Length)
        }
    }

    /// The names of fields that Connection ends here, with commas between them (RFC 9110 section 7.6.1): trailers may
    /// be among them. `bytes` are the head.
    #[must_use]
    pub fn nominated(&self, bytes: &[u8]) -> Box<[u8]> {
        self.options.nominated(bytes)
    }

    /// Whether another response follows to the same request: 1xx (RFC 9110 section 15.2). 101 is one too, and what
    /// follows it is the new protocol.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Takes `HTTP/1.x SP 3DIGIT [SP reason] CRLF`. The blank before an absent reason may be missing, as many servers
    /// leave it out.
    fn status_line(&mut self, bytes: &[u8]) -> Result<Option<usize>, HeadError> {
        for (at, want) in b"HTTP/1.".iter().enumerate() {
            match bytes.get(at) {
                None => return Ok(None),
                Some(byte) if byte == want => {}
                Some(&byte) if at == 5 && byte.is_ascii_digit() => {
                    return Err(HeadError::Version { major: byte - b'0', minor: 0 });
                }
                Some(_) => return Err(HeadError::StatusLine),
            }
        }
        self.version = match bytes.get(7) {
            None => return Ok(None),
            Some(b'0') => Version::Http10,
            Some(b'1') => Version::Http11,
            Some(&byte) if byte.is_ascii_digit() => return Err(HeadError::Version { major: 1, minor: byte - b'0' }),
            Some(_) => return Err(HeadError::StatusLine),
        };
        match bytes.get(8) {
            None => return Ok(None),
            Some(b' ') => {}
            Some(_) => return Err(HeadError::StatusLine),
        }
        self.status = 0;
        for at in 9..12 {
            match bytes.get(at) {
                None => return Ok(None),
                Some(&byte) if byte.is_ascii_digit() => self.status = self.status * 10 + u16::from(byte - b'0'),
                Some(_) => return Err(HeadError::StatusCode),
            }
            if at == 9 && !(1..=5).contains(&self.status) {
                return Err(HeadError::StatusCode);
            }
        }
        let start = match bytes.get(12) {
            None => return Ok(None),
            Some(b' ') => 13,
            Some(b'\r') => 12,
            Some(b'\n') => return Err(HeadError::BareLf { line: 1 }),
            Some(_) => return Err(HeadError::StatusCode),
        };
        let end = lex::text_end(bytes, start);
        self.reason = Span::new(start, end);
        lex::line_end(bytes, end, 1)
    }

    fn field_lines(&mut self, bytes: &[u8], mut at: usize, max: usize) -> Result<Option<usize>, HeadError> {
        let mut line = 2;
        let mut framing = Framing::default();
        let mut upgrades = 0u32;
        let http11 = self.version == Version::Http11;
        loop {
            let raw = match lex::field_line(bytes, at, line, line == 2)? {
                Line::More => return Ok(None),
                Line::End(next) => {
                    self.finish(bytes, framing, upgrades);
                    return Ok(Some(next));
                }
                Line::Field(raw) => raw,
            };
            if self.fields.len() >= max {
                return Err(HeadError::TooManyFields { limit: max });
            }
            let field = field::named(bytes, &raw);
            match field.kind {
                FieldName::Other => {}
                FieldName::ContentLength => framing.take_length(field.value.of(bytes), line)?,
                FieldName::TransferEncoding => framing.take_coding(field.value.of(bytes), http11, line)?,
                FieldName::Connection => self.options.take(bytes, field.value, line, false)?,
                FieldName::Upgrade => {
                    upgrades += 1;
                    self.upgrade = Some(field.value);
                }
                FieldName::Date => self.has_date = true,
                FieldName::Host
                | FieldName::KeepAlive
                | FieldName::ProxyConnection
                | FieldName::ProxyAuth
                | FieldName::Proxy
                | FieldName::Te
                | FieldName::Trailer
                | FieldName::Http2Settings
                | FieldName::Expect
                | FieldName::MaxForwards
                | FieldName::Via
                | FieldName::Forwarded
                | FieldName::XForwardedFor
                | FieldName::XForwardedProto
                | FieldName::XForwardedHost
                | FieldName::ClientIdentity
                | FieldName::PointsmanWorker
                | FieldName::Disguised
                | FieldName::Nominated => {}
            }
            self.fields.push(field);
            at = raw.next;
            line = line.saturating_add(1);
        }
    }

    fn finish(&mut self, bytes: &[u8], framing: Framing, upgrades: u32) {
        self.content_length = framing.length;
        self.chunked = framing.chunked;
        self.options.mark(bytes, &mut self.fields);
        if upgrades != 1 || !self.options.upgrade {
            self.upgrade = None;
        }
        // RFC 9110 section 8.6 and RFC 9112 section 6.1 forbid these; whether content follows cannot be known.
        let doubtful = (self.is_interim() || self.status == 204)
            && (framing.chunked || framing.length.is_some_and(|length| length > 0));
        self.keep_alive = self.options.persists(self.version == Version::Http11) && !doubtful;
    }
}
