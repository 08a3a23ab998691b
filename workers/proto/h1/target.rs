//! The four forms of a request target (RFC 9112 section 3.2).

use super::error::{HeadError, HostFault};
use super::host::{self, Authority};
use super::lex;
use super::method::Method;
use super::span::Span;

/// Which of the four forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetForm {
    /// `/path?query`.
    #[default]
    Origin,
    /// `http://host/path?query`.
    Absolute,
    /// `host:port`, with CONNECT only.
    Authority,
    /// `*`, with OPTIONS only.
    Asterisk,
}

/// The scheme of an absolute-form target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

/// A checked request target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Target {
    /// Its form.
    pub form: TargetForm,
    /// All of it, as received.
    pub text: Span,
    /// Path and query as the origin-form has them. Of an absolute-form the path may be empty: use
    /// [`Target::path`] and [`Target::write`]. Empty for authority-form, `*` for asterisk-form.
    pub path_and_query: Span,
    /// The path alone: `path_and_query` up to its `?`.
    pub path: Span,
    /// The scheme, of an absolute-form.
    pub scheme: Option<Scheme>,
}

impl Target {
    /// The path for routing, never empty: `/` where the target has none, `*` for asterisk-form.
    #[must_use]
    pub fn path<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        if self.path.is_empty() { b"/" } else { self.path.of(bytes) }
    }

    /// The query without its `?`; `None` when there is no `?`.
    #[must_use]
    pub fn query<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.path_and_query.of(bytes).get(self.path.len()..)?.strip_prefix(b"?")
    }

    /// Writes the target as it is sent to an origin server: origin-form (RFC 9112 section 3.2.1), `*` for OPTIONS
    /// without a path (section 3.2.4), authority-form for CONNECT.
    pub fn write(&self, out: &mut Vec<u8>, bytes: &[u8], method: Method) {
        match self.form {
            TargetForm::Origin | TargetForm::Asterisk => out.extend_from_slice(self.path_and_query.of(bytes)),
            TargetForm::Authority => out.extend_from_slice(self.text.of(bytes)),
            TargetForm::Absolute => {
                if self.path_and_query.is_empty() && method == Method::Options {
                    out.push(b'*');
                } else if self.path.is_empty() {
                    out.push(b'/');
                    out.extend_from_slice(self.path_and_query.of(bytes));
                } else {
                    out.extend_from_slice(self.path_and_query.of(bytes));
                }
            }
        }
    }
}

/// Checks the target at `start..end`, all of whose bytes are of `lex::TARGET`; `bits` are their classes together.
pub(super) fn target(
    bytes: &[u8],
    start: usize,
    end: usize,
    bits: u8,
    method: Method,
) -> Result<(Target, Option<Authority>), HeadError> {
    let text = bytes.get(start..end).unwrap_or_default();
    if method == Method::Connect {
        let found = host::authority(bytes, start, end).map_err(|fault| match fault {
            // `CONNECT /path`: the form is wrong, not the host.
            HostFault::Byte { .. } | HostFault::Empty => HeadError::TargetMethod,
            HostFault::UserInfo
            | HostFault::EmptyLabel
            | HostFault::Ipv6
            | HostFault::Port
            | HostFault::NoPort
            | HostFault::TooLong => HeadError::Host { line: 1, fault },
        })?;
        if found.port.is_none() {
            return Err(HeadError::Host { line: 1, fault: HostFault::NoPort });
        }
        let whole = Span::new(start, end);
        let none = Span::new(end, end);
        let target =
            Target { form: TargetForm::Authority, text: whole, path_and_query: none, path: none, scheme: None };
        return Ok((target, Some(found)));
    }
    match text {
        [b'/', ..] => {
            let path_end = path_end(bytes, start, end, bits)?;
            let whole = Span::new(start, end);
            let path = Span::new(start, path_end);
            Ok((Target { form: TargetForm::Origin, text: whole, path_and_query: whole, path, scheme: None }, None))
        }
        [b'*'] if method == Method::Options => {
            let whole = Span::new(start, end);
            let form = TargetForm::Asterisk;
            Ok((Target { form, text: whole, path_and_query: whole, path: whole, scheme: None }, None))
        }
        [b'*'] => Err(HeadError::TargetMethod),
        _ => absolute(bytes, start, end, bits),
    }
}

fn absolute(bytes: &[u8], start: usize, end: usize, bits: u8) -> Result<(Target, Option<Authority>), HeadError> {
    let text = bytes.get(start..end).unwrap_or_default();
    let begins = |prefix: &str| text.get(..prefix.len()).is_some_and(|t| t.eq_ignore_ascii_case(prefix.as_bytes()));
    let (scheme, skip) = if begins("http://") {
        (Scheme::Http, 7)
    } else if begins("https://") {
        (Scheme::Https, 8)
    } else if host::authority(bytes, start, end).is_ok_and(|found| found.port.is_some()) {
        return Err(HeadError::TargetMethod);
    } else {
        return Err(HeadError::TargetForm);
    };
    let host_at = start + skip;
    let rest = text.get(skip..).unwrap_or_default();
    let host_end = rest.iter().position(|&b| b == b'/' || b == b'?').map_or(end, |at| host_at + at);
    let found = host::authority(bytes, host_at, host_end).map_err(|fault| HeadError::Host { line: 1, fault })?;
    let path_end = path_end(bytes, host_end, end, bits)?;
    let target = Target {
        form: TargetForm::Absolute,
        text: Span::new(start, end),
        path_and_query: Span::new(host_end, end),
        path: Span::new(host_end, path_end),
        scheme: Some(scheme),
    };
    Ok((target, Some(found)))
}

/// Where the path that begins at `start` ends: at `?` or the end. Its percent-encoding must be whole, and no NUL:
/// a server that stops there sees another path than the one routed by.
fn path_end(bytes: &[u8], start: usize, end: usize, bits: u8) -> Result<usize, HeadError> {
    let text = bytes.get(start..end).unwrap_or_default();
    let len = memchr::memchr(b'?', text).unwrap_or(text.len());
    if bits & lex::PERCENT != 0 {
        let path = &text[..len];
        for at in memchr::memchr_iter(b'%', path) {
            match path.get(at + 1..at + 3) {
                Some(b"00") => return Err(HeadError::TargetPercent),
                Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => {}
                Some(_) | None => return Err(HeadError::TargetPercent),
            }
        }
    }
    Ok(start + len)
}
