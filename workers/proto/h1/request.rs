//! The request head (RFC 9112 sections 3, 5 and 6): one pass, one verdict.

use super::error::HeadError;
use super::field::{self, Field, FieldName, Framing, Options};
use super::head::{HeadLimits, Version};
use super::host::{self, Authority};
use super::lex::{self, Line};
use super::list;
use super::method::Method;
use super::span::Span;
use super::target::{self, Scheme, Target, TargetForm};
use super::upgrade;

/// How a request's content is framed (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyFraming {
    /// No framing field: no content.
    #[default]
    None,
    /// So many bytes; may be 0. At most 2^63 - 1.
    Length(u64),
    /// Chunks.
    Chunked,
}

impl BodyFraming {
    /// Whether content bytes may follow.
    #[must_use]
    pub fn has_content(self) -> bool {
        match self {
            BodyFraming::None | BodyFraming::Length(0) => false,
            BodyFraming::Length(_) | BodyFraming::Chunked => true,
        }
    }
}

/// A parsed request head. Reusable: its memory is kept from one parse to the next.
///
/// Everything is valid only after `parse` returned `Ok(Some(_))`, and only with the same bytes. After any other verdict
/// the method's name, the target's text, `has_line` and `host` are what was understood until then, for logs; what was
/// not is empty.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Its name.
    pub method_text: Span,
    /// The target.
    pub target: Target,
    /// The version.
    pub version: Version,
    /// The whole request line was understood.
    pub has_line: bool,
    /// The effective authority, host and port: the target's, else Host's. `None` only for HTTP/1.0 without Host.
    pub host: Option<Span>,
    /// The host of that without port and final dot, as received (not in lower case); an IPv6 literal keeps its
    /// brackets.
    pub host_name: Option<Span>,
    /// The fields in their order.
    pub fields: Vec<Field>,
    /// How the content is framed.
    pub framing: BodyFraming,
    /// Whether the client wants the connection kept (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// The client waits for 100 before it sends the content (RFC 9110 section 10.1.1). Only with content, and not in
    /// HTTP/1.0.
    pub expect_continue: bool,
    /// The protocols offered: one Upgrade field that Connection names, in HTTP/1.1, without any form of HTTP or TLS
    /// among them (RFC 9110 section 7.8).
    pub upgrade: Option<Span>,
    /// The client reads trailers (`TE: trailers`, RFC 9110 section 10.1.4).
    pub te_trailers: bool,
    /// Max-Forwards of TRACE and OPTIONS (RFC 9110 section 7.6.2); capped at 2^32 - 1.
    pub max_forwards: Option<u32>,
    /// Length of the head in bytes, a skipped leading empty line included.
    pub len: usize,
    options: Options,
    /// Host need not agree with the target.
    by_target: bool,
}

/// What is known of a request line.
struct Start {
    authority: Option<Authority>,
    next: usize,
}

/// Singletons seen so far.
#[derive(Default)]
struct Seen {
    host: Option<Authority>,
    expect: bool,
    upgrades: u32,
    max_forwards: bool,
    forwards: Option<u32>,
}

impl RequestHead {
    /// Parses the head that `bytes` begin with. `Ok(Some(n))`: it is `bytes[..n]`. `Ok(None)`: not complete, legal so
    /// far. At most one empty line before it is skipped (RFC 9112 section 2.2).
    ///
    /// Each call begins anew; a caller that reads in small pieces may wait for an LF before it asks again.
    ///
    /// # Errors
    /// The first fault from the left, also in a line that is not complete. What follows must not be read as a
    /// request.
    pub fn parse(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
        self.reset();
        self.by_target = limits.by_target;
        let window = lex::window(bytes, limits.bytes);
        let full = window.len() >= limits.bytes;
        let limit = HeadError::HeadTooLarge { limit: limits.bytes };
        let start = match window {
            [] => return Ok(None),
            [b'\r', b'\n', rest @ ..] => match rest.first() {
                Some(b'\r') => return Err(HeadError::EmptyLineFirst),
                Some(_) => 2,
                None => return if full { Err(limit) } else { Ok(None) },
            },
            [b'\r'] => return if full { Err(limit) } else { Ok(None) },
            [b'\r', ..] => return Err(HeadError::BareCr { line: 1 }),
            [b'\n', ..] => return Err(HeadError::BareLf { line: 1 }),
            [_, ..] => 0,
        };
        let Some(line) = self.request_line(window, start, full)? else {
            return if full { Err(limit) } else { Ok(None) };
        };
        match self.field_lines(window, &line, limits.fields)? {
            Some(end) => {
                self.len = end;
                Ok(Some(end))
            }
            None if full => Err(limit),
            None => Ok(None),
        }
    }

    fn reset(&mut self) {
        self.method = Method::Other;
        (self.method_text, self.target, self.has_line) = (Span::default(), Target::default(), false);
        self.fields.clear();
        self.options.clear();
        (self.host, self.host_name) = (None, None);
        self.framing = BodyFraming::None;
        (self.expect_continue, self.te_trailers, self.keep_alive) = (false, false, false);
        (self.upgrade, self.max_forwards) = (None, None);
        self.len = 0;
    }

    fn request_line(&mut self, bytes: &[u8], start: usize, full: bool) -> Result<Option<Start>, HeadError> {
        let mut at = start;
        loop {
            match bytes.get(at) {
                None => return Ok(None),
                Some(&byte) if lex::is(byte, lex::TOKEN) => at += 1,
                Some(b' ') if at > start => break,
                Some(b'\r') if at > start => return Err(HeadError::NoTarget),
                Some(&byte) => return Err(HeadError::MethodByte { byte }),
            }
            if at - start > Method::MAX_BYTES {
                return Err(HeadError::MethodTooLong);
            }
        }
        self.method_text = Span::new(start, at);
        self.method = Method::of(&bytes[start..at]);
        let begin = at + 1;
        at = begin;
        let mut bits = 0;
        let stop = loop {
            let Some(&byte) = bytes.get(at) else {
                return if full { Err(HeadError::TargetTooLong) } else { Ok(None) };
            };
            let class = lex::CLASS[usize::from(byte)];
            if class & lex::TARGET == 0 {
                break byte;
            }
            bits |= class;
            at += 1;
        };
        match stop {
            b' ' if at > begin => {}
            b' ' => return Err(HeadError::DoubledSpace),
            b'\r' if at > begin => return Err(HeadError::NoVersion),
            b'\r' => return Err(HeadError::NoTarget),
            b'\n' => return Err(HeadError::BareLf { line: 1 }),
            byte => return Err(HeadError::TargetByte { byte }),
        }
        self.target.text = Span::new(begin, at);
        let (target, authority) = target::target(bytes, begin, at, bits, self.method)?;
        self.target = target;
        self.host = authority.as_ref().map(|authority| authority.text);
        match version(bytes, at + 1)? {
            Some((version, next)) => {
                self.version = version;
                self.has_line = true;
                Ok(Some(Start { authority, next }))
            }
            None => Ok(None),
        }
    }

    fn field_lines(&mut self, bytes: &[u8], start: &Start, max: usize) -> Result<Option<usize>, HeadError> {
        let mut at = start.next;
        let mut line = 2;
        let mut framing = Framing::default();
        let mut seen = Seen::default();
        loop {
            let raw = match lex::field_line(bytes, at, line, line == 2)? {
                Line::More => return Ok(None),
                Line::End(next) => {
                    self.finish(bytes, start, framing, &seen)?;
                    return Ok(Some(next));
                }
                Line::Field(raw) => raw,
            };
            if self.fields.len() >= max {
                return Err(HeadError::TooManyFields { limit: max });
            }
            let field = field::named(bytes, &raw);
            if field.kind != FieldName::Other {
                self.meaning(bytes, &field, line, start, &mut framing, &mut seen)?;
            }
            self.fields.push(field);
            at = raw.next;
            line = line.saturating_add(1);
        }
    }

    fn meaning(
        &mut self,
        bytes: &[u8],
        field: &Field,
        line: u32,
        start: &Start,
        framing: &mut Framing,
        seen: &mut Seen,
    ) -> Result<(), HeadError> {
        let value = field.value.of(bytes);
        match field.kind {
            FieldName::Host => {
                if seen.host.is_some() {
                    return Err(HeadError::HostDoubled { line });
                }
                let found = host::authority(bytes, field.value.start as usize, field.value.end as usize)
                    .map_err(|fault| HeadError::Host { line, fault })?;
                self.same_authority(bytes, &found, start, line)?;
                self.host = self.host.or(Some(found.text));
                seen.host = Some(found);
            }
            FieldName::ContentLength => framing.take_length(value, line)?,
            FieldName::TransferEncoding => framing.take_coding(value, self.version == Version::Http11, line)?,
            FieldName::Connection => self.options.take(bytes, field.value, line, true)?,
            FieldName::Expect => {
                if seen.expect || !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::Expect { line });
                }
                seen.expect = true;
            }
            FieldName::Te => {
                for member in list::members(value) {
                    let coding = list::without_parameters(member);
                    if !lex::is_token(coding) {
                        return Err(HeadError::Te { line });
                    }
                    self.te_trailers |= member.eq_ignore_ascii_case(b"trailers");
                }
            }
            FieldName::Upgrade => {
                seen.upgrades += 1;
                let tunnel = upgrade::is_tunnel_offer(value).ok_or(HeadError::Upgrade { line })?;
                self.upgrade = tunnel.then_some(field.value);
            }
            FieldName::MaxForwards if self.method == Method::Options || self.method == Method::Trace => {
                let hops = list::number(value);
                if seen.max_forwards || matches!(hops, Err(list::NumberFault::Empty | list::NumberFault::Digit)) {
                    return Err(HeadError::MaxForwards { line });
                }
                seen.max_forwards = true;
                seen.forwards = Some(hops.ok().and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX));
            }
            FieldName::MaxForwards
            | FieldName::Other
            | FieldName::KeepAlive
            | FieldName::ProxyConnection
            | FieldName::ProxyAuth
            | FieldName::Proxy
            | FieldName::Trailer
            | FieldName::Http2Settings
            | FieldName::Via
            | FieldName::Date
            | FieldName::Forwarded
            | FieldName::XForwardedFor
            | FieldName::XForwardedProto
            | FieldName::XForwardedHost
            | FieldName::ClientIdentity
            | FieldName::PointsmanWorker
            | FieldName::Disguised
            | FieldName::Nominated => {}
        }
        Ok(())
    }

    /// Refuses a Host that names another authority than the target does. RFC 9112 section 3.2.2 lets the target win;
    /// no client of a server has a reason to send both differing, so we do not guess which of them is meant.
    fn same_authority(&self, bytes: &[u8], host: &Authority, start: &Start, line: u32) -> Result<(), HeadError> {
        let Some(target) = start.authority.as_ref().filter(|_| !self.by_target) else { return Ok(()) };
        let default = match self.target.scheme {
            Some(Scheme::Http) => Some(80),
            Some(Scheme::Https) => Some(443),
            None => target.port,
        };
        if target.name.of(bytes).eq_ignore_ascii_case(host.name.of(bytes))
            && target.port.or(default) == host.port.or(default)
        {
            Ok(())
        } else {
            Err(HeadError::HostMismatch { line })
        }
    }

    /// What can be judged only when all fields are known.
    fn finish(&mut self, bytes: &[u8], start: &Start, framing: Framing, seen: &Seen) -> Result<(), HeadError> {
        let http11 = self.version == Version::Http11;
        if http11 && seen.host.is_none() {
            return Err(HeadError::HostMissing);
        }
        if let Some(authority) = start.authority.or(seen.host) {
            self.host = Some(authority.text);
            self.host_name = Some(authority.name);
        }
        self.framing = match (framing.chunked, framing.length) {
            (true, _) => BodyFraming::Chunked,
            (false, Some(length)) => BodyFraming::Length(length),
            (false, None) => BodyFraming::None,
        };
        if self.framing.has_content() && matches!(self.method, Method::Trace | Method::Connect) {
            return Err(HeadError::ContentNotAllowed);
        }
        self.options.mark(bytes, &mut self.fields);
        self.keep_alive = self.options.persists(http11);
        // Without chunks there is no place for trailers (RFC 9112 section 7.1.2).
        self.te_trailers &= http11;
        self.expect_continue = seen.expect && http11 && self.framing.has_content();
        self.max_forwards = seen.forwards;
        if !http11 || !self.options.upgrade || seen.upgrades != 1 || self.target.form == TargetForm::Authority {
            self.upgrade = None;
        }
        Ok(())
    }
}

/// Takes `HTTP/1.x` CRLF at `at`.
fn version(bytes: &[u8], at: usize) -> Result<Option<(Version, usize)>, HeadError> {
    match bytes.get(at..at + 10) {
        Some(b"HTTP/1.1\r\n") => Ok(Some((Version::Http11, at + 10))),
        Some(b"HTTP/1.0\r\n") => Ok(Some((Version::Http10, at + 10))),
        Some(_) | None => odd_version(bytes.get(at..).unwrap_or_default()),
    }
}

/// The version is incomplete or wrong: the first byte that cannot be decides.
#[cold]
fn odd_version(text: &[u8]) -> Result<Option<(Version, usize)>, HeadError> {
    let digit = |at: usize| text.get(at).copied().unwrap_or_default().wrapping_sub(b'0');
    for (at, &byte) in text.iter().enumerate() {
        let fits = match at {
            0..5 => byte == b"HTTP/"[at],
            5 | 7 => byte.is_ascii_digit(),
            6 => byte == b'.',
            8 => byte == b'\r',
            _ if byte != b'\n' => return Err(HeadError::BareCr { line: 1 }),
            _ => return Err(HeadError::Version { major: digit(5), minor: digit(7) }),
        };
        if !fits {
            return Err(match byte {
                b' ' if at == 0 => HeadError::DoubledSpace,
                b'\n' => HeadError::BareLf { line: 1 },
                b'\r' if at == 0 => HeadError::NoVersion,
                _ => HeadError::VersionForm,
            });
        }
    }
    Ok(None)
}
