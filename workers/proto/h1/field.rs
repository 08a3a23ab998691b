//! Field names that mean something to a proxy, and the Connection field's options.

use super::error::HeadError;
use super::lex::{self, RawField};
use super::list;
use super::span::Span;

/// How many field names Connection may nominate in one message.
pub const MAX_NOMINATED: usize = 16;

/// One field line of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The name as received: a token.
    pub name: Span,
    /// The value without surrounding blanks; may be empty. No control bytes but HTAB.
    pub value: Span,
    /// What it means to us.
    pub kind: FieldName,
}

/// What a field means to a proxy. Names are compared without regard to case (RFC 9110 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldName {
    /// Nothing: relayed as it stands.
    Other,
    /// Host.
    Host,
    /// Content-Length.
    ContentLength,
    /// Transfer-Encoding.
    TransferEncoding,
    /// Connection.
    Connection,
    /// Keep-Alive.
    KeepAlive,
    /// Proxy-Connection.
    ProxyConnection,
    /// Proxy-Authorization, Proxy-Authenticate, Proxy-Authentication-Info: between a client and a forward proxy.
    ProxyAuth,
    /// Proxy: never a field of HTTP, but CGI makes the variable `HTTP_PROXY` of it.
    Proxy,
    /// TE.
    Te,
    /// Trailer.
    Trailer,
    /// Upgrade.
    Upgrade,
    /// HTTP2-Settings (RFC 7540 section 3.2.1).
    Http2Settings,
    /// Expect.
    Expect,
    /// Max-Forwards.
    MaxForwards,
    /// Via.
    Via,
    /// Date.
    Date,
    /// Forwarded (RFC 7239).
    Forwarded,
    /// X-Forwarded-For.
    XForwardedFor,
    /// X-Forwarded-Proto.
    XForwardedProto,
    /// X-Forwarded-Host.
    XForwardedHost,
    /// Any other field by which proxies tell a client's address, or the URL it asked for: X-Real-IP and the like.
    ClientIdentity,
    /// X-Pointsman-Worker, which only we write.
    PointsmanWorker,
    /// A name that becomes one of the above when CGI turns its odd bytes into `_` (`X_Forwarded_For`,
    /// `Content_Length`).
    Disguised,
    /// Named by Connection, so it ends here (RFC 9110 section 7.6.1).
    Nominated,
}

impl FieldName {
    /// What the field `name` means.
    #[must_use]
    pub fn of(name: &[u8]) -> FieldName {
        let known: &[(&str, FieldName)] = match name.len() {
            2 => &[("te", FieldName::Te)],
            3 => &[("via", FieldName::Via)],
            4 => &[("host", FieldName::Host), ("date", FieldName::Date)],
            5 => &[("proxy", FieldName::Proxy)],
            6 => &[("expect", FieldName::Expect), ("x-host", FieldName::ClientIdentity)],
            7 => &[("upgrade", FieldName::Upgrade), ("trailer", FieldName::Trailer)],
            8 => &[("x-scheme", FieldName::ClientIdentity)],
            9 => &[
                ("forwarded", FieldName::Forwarded),
                ("x-real-ip", FieldName::ClientIdentity),
                ("client-ip", FieldName::ClientIdentity),
            ],
            10 => &[("connection", FieldName::Connection), ("keep-alive", FieldName::KeepAlive)],
            11 => &[("x-client-ip", FieldName::ClientIdentity), ("x-remote-ip", FieldName::ClientIdentity)],
            12 => &[("max-forwards", FieldName::MaxForwards), ("x-url-scheme", FieldName::ClientIdentity)],
            13 => &[
                ("forwarded-for", FieldName::ClientIdentity),
                ("x-remote-addr", FieldName::ClientIdentity),
                ("x-rewrite-url", FieldName::ClientIdentity),
            ],
            14 => &[
                ("content-length", FieldName::ContentLength),
                ("http2-settings", FieldName::Http2Settings),
                ("true-client-ip", FieldName::ClientIdentity),
                ("x-original-url", FieldName::ClientIdentity),
                ("x-proxyuser-ip", FieldName::ClientIdentity),
            ],
            15 => &[
                ("x-forwarded-for", FieldName::XForwardedFor),
                ("x-original-host", FieldName::ClientIdentity),
                ("front-end-https", FieldName::ClientIdentity),
                ("proxy-client-ip", FieldName::ClientIdentity),
            ],
            16 => &[
                ("proxy-connection", FieldName::ProxyConnection),
                ("x-forwarded-host", FieldName::XForwardedHost),
                ("cf-connecting-ip", FieldName::ClientIdentity),
                ("fastly-client-ip", FieldName::ClientIdentity),
                ("x-originating-ip", FieldName::ClientIdentity),
                ("x-azure-clientip", FieldName::ClientIdentity),
            ],
            17 => {
                &[("transfer-encoding", FieldName::TransferEncoding), ("x-forwarded-proto", FieldName::XForwardedProto)]
            }
            18 => &[
                ("proxy-authenticate", FieldName::ProxyAuth),
                ("x-pointsman-worker", FieldName::PointsmanWorker),
                ("wl-proxy-client-ip", FieldName::ClientIdentity),
                ("cf-connecting-ipv6", FieldName::ClientIdentity),
            ],
            19 => &[
                ("proxy-authorization", FieldName::ProxyAuth),
                ("x-cluster-client-ip", FieldName::ClientIdentity),
                ("x-appengine-user-ip", FieldName::ClientIdentity),
            ],
            20 => &[("x-http-host-override", FieldName::ClientIdentity)],
            24 => &[
                ("x-original-forwarded-for", FieldName::ClientIdentity),
                ("x-envoy-external-address", FieldName::ClientIdentity),
            ],
            25 => &[("proxy-authentication-info", FieldName::ProxyAuth)],
            _ => &[],
        };
        // Most names differ in their first letter from all known ones of their length.
        let first = name.first().map_or(0, u8::to_ascii_lowercase);
        for (text, kind) in known {
            if text.as_bytes().first() == Some(&first) && name.eq_ignore_ascii_case(text.as_bytes()) {
                return *kind;
            }
        }
        if first == b'x' && name.get(..11).is_some_and(|head| head.eq_ignore_ascii_case(b"x-forwarded")) {
            return FieldName::ClientIdentity;
        }
        FieldName::Other
    }

    /// What the field `name` means, names in disguise found out. `odd` tells that the name holds such bytes.
    #[inline]
    pub(super) fn classify(name: &[u8], odd: bool) -> FieldName {
        // No known name holds an odd byte, so one that does is a disguise or nothing.
        match odd {
            false => FieldName::of(name),
            true if is_disguise(name) => FieldName::Disguised,
            true => FieldName::Other,
        }
    }
}

/// Whether `name` becomes a known one when its odd bytes are read as `-`, as CGI's variables make no difference.
fn is_disguise(name: &[u8]) -> bool {
    let mut plain = [0u8; 32];
    // No known name is longer; of a longer one the beginning tells the family.
    let len = name.len().min(plain.len());
    for (to, &from) in plain.iter_mut().zip(name) {
        *to = if from.is_ascii_alphanumeric() { from } else { b'-' };
    }
    FieldName::of(plain.get(..len).unwrap_or_default()) != FieldName::Other
}

/// Whether Connection may name this field: not those on which framing, routing, identity or conditions rest, nor
/// those that RFC 9110 section 7.6.1 calls intended for all recipients.
pub(super) fn may_be_nominated(name: &[u8]) -> bool {
    const PROTECTED: &[&str] = &[
        "authorization",
        "cookie",
        "set-cookie",
        "origin",
        "range",
        "location",
        "vary",
        "etag",
        "allow",
        "www-authenticate",
        "cache-control",
        "strict-transport-security",
    ];
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|n| n.eq_ignore_ascii_case(prefix.as_bytes()));
    match FieldName::of(name) {
        FieldName::Host
        | FieldName::ContentLength
        | FieldName::TransferEncoding
        | FieldName::Expect
        | FieldName::MaxForwards
        | FieldName::Via
        | FieldName::Date
        | FieldName::Forwarded
        | FieldName::XForwardedFor
        | FieldName::XForwardedProto
        | FieldName::XForwardedHost
        | FieldName::ClientIdentity
        | FieldName::PointsmanWorker
        | FieldName::Disguised => false,
        FieldName::Connection
        | FieldName::KeepAlive
        | FieldName::ProxyConnection
        | FieldName::ProxyAuth
        | FieldName::Proxy
        | FieldName::Te
        | FieldName::Trailer
        | FieldName::Upgrade
        | FieldName::Http2Settings
        | FieldName::Nominated => true,
        FieldName::Other => {
            !begins("content-")
                && !begins("if-")
                && !begins("sec-")
                && !begins("access-control-")
                && !PROTECTED.iter().any(|text| name.eq_ignore_ascii_case(text.as_bytes()))
        }
    }
}

/// What the Connection fields of one message say.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    nominated: Vec<Span>,
}

impl Options {
    /// Forgets all, keeps the memory.
    pub(super) fn clear(&mut self) {
        (self.close, self.keep_alive, self.upgrade) = (false, false, false);
        self.nominated.clear();
    }

    /// Takes one Connection field. A protected name is an error when `strict`, else it is passed over: the field
    /// stays.
    pub(super) fn take(&mut self, bytes: &[u8], value: Span, line: u32, strict: bool) -> Result<(), HeadError> {
        let mut at = value.start as usize;
        for part in value.of(bytes).split(|&byte| byte == b',') {
            let next = at + part.len() + 1;
            let option = list::trim(part);
            if !option.is_empty() {
                let lead = part.iter().take_while(|&&byte| lex::is_blank(byte)).count();
                self.option(option, Span::new(at + lead, at + lead + option.len()), line, strict)?;
            }
            at = next;
        }
        Ok(())
    }

    fn option(&mut self, option: &[u8], span: Span, line: u32, strict: bool) -> Result<(), HeadError> {
        if !lex::is_token(option) {
            return Err(HeadError::Connection { line });
        }
        if option.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        } else if option.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        } else if !may_be_nominated(option) {
            if strict {
                return Err(HeadError::ConnectionNominates { line });
            }
        } else if ends_only_when_nominated(FieldName::of(option)) {
            // Every other known kind that may be nominated ends here anyway.
            if self.nominated.len() >= MAX_NOMINATED {
                return Err(HeadError::TooManyOptions { line });
            }
            self.nominated.push(span);
        }
        Ok(())
    }

    /// Marks the fields that are named here.
    pub(super) fn mark(&self, bytes: &[u8], fields: &mut [Field]) {
        if self.nominated.is_empty() {
            return;
        }
        for field in fields {
            let named = |option: &Span| option.of(bytes).eq_ignore_ascii_case(field.name.of(bytes));
            if ends_only_when_nominated(field.kind) && self.nominated.iter().any(named) {
                field.kind = FieldName::Nominated;
            }
        }
    }

    /// What is named beyond what is known to end here: names with commas between them; empty, and then without
    /// memory, when there are none.
    pub(super) fn nominated(&self, bytes: &[u8]) -> Box<[u8]> {
        let names: Vec<&[u8]> = self.nominated.iter().map(|name| name.of(bytes)).collect();
        names.join(b",".as_slice()).into_boxed_slice()
    }

    /// Whether the connection persists after the message (RFC 9112 section 9.3).
    pub(super) fn persists(&self, http11: bool) -> bool {
        !self.close && (http11 || self.keep_alive)
    }
}

/// Whether a field of this kind goes on unless Connection names it.
fn ends_only_when_nominated(kind: FieldName) -> bool {
    matches!(kind, FieldName::Other | FieldName::Trailer | FieldName::Proxy)
}

/// What the framing fields of one message say, checked as they come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

impl Framing {
    /// Takes a Content-Length (RFC 9110 section 8.6, RFC 9112 section 6.3).
    pub(super) fn take_length(&mut self, value: &[u8], line: u32) -> Result<(), HeadError> {
        use super::error::LengthFault;
        if self.chunked {
            return Err(HeadError::LengthWithCoding { line });
        }
        if self.length.is_some() {
            return Err(HeadError::LengthDoubled { line });
        }
        let fault = |fault| HeadError::Length { line, fault };
        let length = list::number(value).map_err(|why| {
            fault(match why {
                list::NumberFault::Empty => LengthFault::Empty,
                list::NumberFault::Digit if value.contains(&b',') => LengthFault::List,
                list::NumberFault::Digit => LengthFault::Digit,
                list::NumberFault::TooLarge => LengthFault::TooLarge,
            })
        })?;
        if length > i64::MAX.unsigned_abs() {
            return Err(fault(LengthFault::TooLarge));
        }
        self.length = Some(length);
        Ok(())
    }

    /// Takes a Transfer-Encoding (RFC 9112 sections 6.1 and 6.3): one field, one coding, `chunked`.
    pub(super) fn take_coding(&mut self, value: &[u8], http11: bool, line: u32) -> Result<(), HeadError> {
        if !http11 {
            return Err(HeadError::CodingInHttp10 { line });
        }
        if self.length.is_some() {
            return Err(HeadError::LengthWithCoding { line });
        }
        if self.chunked {
            return Err(HeadError::CodingDoubled { line });
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(if codings_before_chunked(value) {
                HeadError::CodingUnknown { line }
            } else {
                HeadError::Coding { line }
            });
        }
        self.chunked = true;
        Ok(())
    }
}

/// Whether `value` is a well-formed list of other codings and then `chunked`, which 501 answers; anything else has
/// no final chunked coding, which 400 answers.
fn codings_before_chunked(value: &[u8]) -> bool {
    let mut parts = value.split(|&byte| byte == b',').map(list::trim).rev();
    parts.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"))
        && parts.all(|coding| lex::is_token(coding) && !coding.eq_ignore_ascii_case(b"chunked"))
}

/// The raw line as a field of its kind.
#[inline]
pub(super) fn named(bytes: &[u8], raw: &RawField) -> Field {
    Field { name: raw.name, value: raw.value, kind: FieldName::classify(raw.name.of(bytes), raw.odd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_known() {
        for (kind, names) in [
            (FieldName::Host, "Host"),
            (FieldName::ContentLength, "Content-Length"),
            (FieldName::TransferEncoding, "Transfer-Encoding"),
            (FieldName::Connection, "Connection"),
            (FieldName::KeepAlive, "Keep-Alive"),
            (FieldName::ProxyConnection, "Proxy-Connection"),
            (FieldName::ProxyAuth, "Proxy-Authorization Proxy-Authenticate Proxy-Authentication-Info"),
            (FieldName::Proxy, "Proxy"),
            (FieldName::Te, "TE"),
            (FieldName::Trailer, "Trailer"),
            (FieldName::Upgrade, "Upgrade"),
            (FieldName::Http2Settings, "HTTP2-Settings"),
            (FieldName::Expect, "Expect"),
            (FieldName::MaxForwards, "Max-Forwards"),
            (FieldName::Via, "Via"),
            (FieldName::Date, "Date"),
            (FieldName::Forwarded, "Forwarded"),
            (FieldName::XForwardedFor, "X-Forwarded-For"),
            (FieldName::XForwardedProto, "X-Forwarded-Proto"),
            (FieldName::XForwardedHost, "X-Forwarded-Host"),
            (
                FieldName::ClientIdentity,
                "X-Host X-Scheme X-Real-IP Client-IP X-Client-IP X-Remote-IP X-Url-Scheme Forwarded-For X-Remote-Addr \
                 X-Rewrite-URL True-Client-IP X-Original-URL X-Original-Host Front-End-Https Proxy-Client-IP \
                 CF-Connecting-IP Fastly-Client-IP X-Originating-IP X-Azure-ClientIP WL-Proxy-Client-IP \
                 CF-Connecting-IPv6 X-Cluster-Client-IP X-Appengine-User-IP X-Original-Forwarded-For \
                 X-Envoy-External-Address X-ProxyUser-Ip X-HTTP-Host-Override X-Forwarded X-Forwarded-Port X-Forwarded-Ssl X-ForwardedFor",
            ),
            (FieldName::PointsmanWorker, "X-Pointsman-Worker"),
            (FieldName::Other, "Accept Cookie X-Forward X-Custom Content-Type Hosts T Viae Authorization"),
        ] {
            for name in names.split_whitespace() {
                assert_eq!(FieldName::of(name.as_bytes()), kind, "{name}");
                assert_eq!(FieldName::of(name.to_uppercase().as_bytes()), kind, "{name}");
                let disguised = name.replace('-', "_");
                if disguised != name && kind != FieldName::Other {
                    assert_eq!(FieldName::classify(disguised.as_bytes(), true), FieldName::Disguised, "{disguised}");
                }
            }
        }
    }
}
