//! Heads as they go out: to a server, and to a client. Reads only parsed heads; decides nothing about framing.
//!
//! Fields that end here (RFC 9110 section 7.6.1) are left out, the framing is written from the verdict, and what
//! proxies add is added. Every line is written anew; runs of lines that already are as we would write them are copied
//! in one go.

use std::io::Write as _;
use std::net::IpAddr;

use crate::proto::h1::head::{BodyFraming, Field, FieldName, Method, RequestHead, ResponseHead, Version};
use crate::proto::h1::upgrade::is_tunnel_offer;
use crate::proto::h1::write::{self, Persistence};

/// The pseudonym in Via (RFC 9110 section 7.6.3).
pub const VIA_NAME: &str = "pointsman";

/// What the rewriting of a request depends on, besides the request.
#[derive(Debug, Clone, Copy)]
pub struct RequestContext<'a> {
    /// The client's address; `None` on a Unix socket.
    pub peer: Option<IpAddr>,
    /// The peer is a listed proxy: what it says of the client is believed and appended to.
    pub peer_trusted: bool,
    /// `http` or `https`, as the client came to us.
    pub scheme: &'static str,
    /// Written as X-Pointsman-Worker when given.
    pub worker_pid: Option<u32>,
    /// On a forward listener, this proxy's name in Via: the request is the client's own, and the server is told nothing
    /// of who that is.
    pub forward: Option<&'a [u8]>,
    /// The authority for a request that named none (HTTP/1.0 without Host): our own name or address and port
    /// (RFC 9112 section 3.3).
    pub default_host: &'a [u8],
}

/// The framing of what goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutFraming {
    /// No content.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks. Only to HTTP/1.1.
    Chunked,
    /// All until we close.
    UntilClose,
}

/// What the rewriting of a response depends on, besides the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseContext<'a> {
    /// How the content goes to the client. `None` writes no framing field, except with `keep_length`.
    pub framing: OutFraming,
    /// How the client's connection goes on.
    pub connection: Persistence,
    /// A 101 that is passed on: Upgrade stays.
    pub switch_protocols: bool,
    /// The client takes trailers and the content goes in chunks: Trailer stays.
    pub pass_trailers: bool,
    /// The answer to HEAD, or 304: Content-Length is passed on though there is no content (RFC 9110 section 8.6).
    pub keep_length: bool,
    /// This proxy's name in Via, where the client has chosen to use it (RFC 9110 section 7.6.3).
    pub via: Option<&'a [u8]>,
}

/// Copies field lines, several in one go where they lie together in canonical form.
struct Copier<'a> {
    bytes: &'a [u8],
    start: usize,
    end: usize,
}

impl<'a> Copier<'a> {
    fn new(bytes: &'a [u8]) -> Copier<'a> {
        Copier { bytes, start: 0, end: 0 }
    }

    #[inline]
    fn field(&mut self, out: &mut Vec<u8>, field: &Field) {
        let (name_at, name_end) = (field.name.start as usize, field.name.end as usize);
        let (value_at, value_end) = (field.value.start as usize, field.value.end as usize);
        let canonical = value_at == name_end + 2
            && self.bytes.get(name_end + 1) == Some(&b' ')
            && self.bytes.get(value_end) == Some(&b'\r');
        if canonical {
            if name_at != self.end {
                self.flush(out);
                self.start = name_at;
            }
            self.end = value_end + 2;
        } else {
            self.flush(out);
            write::field(out, field.name.of(self.bytes), field.value.of(self.bytes));
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.bytes.get(self.start..self.end).unwrap_or_default());
        (self.start, self.end) = (0, 0);
    }
}

/// Whether a request field is passed on as it stands.
fn passes(kind: FieldName, head: &RequestHead, cx: &RequestContext<'_>) -> bool {
    match kind {
        FieldName::Other | FieldName::Via | FieldName::Date => true,
        FieldName::MaxForwards => head.max_forwards.is_none(),
        FieldName::ClientIdentity => cx.peer_trusted || cx.forward.is_some(),
        FieldName::XForwardedFor
        | FieldName::XForwardedProto
        | FieldName::XForwardedHost
        | FieldName::Forwarded
        | FieldName::Disguised
            if cx.forward.is_some() =>
        {
            true
        }
        // Written below from what was parsed.
        FieldName::Host
        | FieldName::Expect
        | FieldName::XForwardedFor
        | FieldName::XForwardedProto
        | FieldName::XForwardedHost
        | FieldName::Forwarded => false,
        // End here. Trailers of requests are dropped, so nothing must announce them.
        FieldName::Trailer
        | FieldName::ContentLength
        | FieldName::TransferEncoding
        | FieldName::Connection
        | FieldName::KeepAlive
        | FieldName::ProxyConnection
        | FieldName::ProxyAuth
        | FieldName::Proxy
        | FieldName::Te
        | FieldName::Upgrade
        | FieldName::Http2Settings
        | FieldName::PointsmanWorker
        | FieldName::Disguised
        | FieldName::Nominated => false,
    }
}

/// Writes the head of `head` as it is sent to a server: HTTP/1.1, origin-form.
pub fn request(out: &mut Vec<u8>, bytes: &[u8], head: &RequestHead, cx: &RequestContext<'_>) {
    out.reserve(head.len + 256);
    out.extend_from_slice(head.method_text.of(bytes));
    out.push(b' ');
    head.target.write(out, bytes, head.method);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    let host = head.host.map_or(cx.default_host, |span| span.of(bytes));
    out.extend_from_slice(host);
    out.extend_from_slice(b"\r\n");
    let mut copier = Copier::new(bytes);
    for field in &head.fields {
        if passes(field.kind, head, cx) {
            copier.field(out, field);
        }
    }
    copier.flush(out);
    if cx.forward.is_none() {
        forwarded(out, bytes, head, cx, host);
    }
    let received = match head.version {
        Version::Http10 => b"Via: 1.0 ",
        Version::Http11 => b"Via: 1.1 ",
    };
    out.extend_from_slice(received);
    out.extend_from_slice(cx.forward.unwrap_or(VIA_NAME.as_bytes()));
    out.extend_from_slice(b"\r\n");
    if let Some(hops) = head.max_forwards {
        out.extend_from_slice(b"Max-Forwards: ");
        write::decimal(out, u64::from(hops.saturating_sub(1)));
        out.extend_from_slice(b"\r\n");
    }
    if head.expect_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    if let Some(pid) = cx.worker_pid {
        out.extend_from_slice(b"X-Pointsman-Worker: ");
        write::decimal(out, u64::from(pid));
        out.extend_from_slice(b"\r\n");
    }
    match head.framing {
        BodyFraming::None => {}
        BodyFraming::Length(length) => write::content_length(out, length),
        BodyFraming::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    match (head.upgrade, head.te_trailers) {
        (None, false) => {}
        (None, true) => out.extend_from_slice(b"TE: trailers\r\nConnection: te\r\n"),
        (Some(upgrade), te) => {
            write::field(out, b"Upgrade", upgrade.of(bytes));
            out.extend_from_slice(if te {
                b"TE: trailers\r\nConnection: upgrade, te\r\n".as_slice()
            } else {
                b"Connection: upgrade\r\n"
            });
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes what the server is told of the client. A trusted peer's word is kept and appended to; anyone else's was
/// left out.
fn forwarded(out: &mut Vec<u8>, bytes: &[u8], head: &RequestHead, cx: &RequestContext<'_>, host: &[u8]) {
    let trusted = |kind: FieldName| {
        let fields = if cx.peer_trusted { head.fields.as_slice() } else { &[] };
        fields.iter().filter(move |field| field.kind == kind && !field.value.is_empty()).map(|f| f.value.of(bytes))
    };
    let mut list = trusted(FieldName::XForwardedFor);
    let first = list.next();
    if first.is_some() || cx.peer.is_some() {
        out.extend_from_slice(b"X-Forwarded-For: ");
        let mut separator: &[u8] = b"";
        for hop in first.into_iter().chain(list) {
            out.extend_from_slice(separator);
            out.extend_from_slice(hop);
            separator = b", ";
        }
        if let Some(peer) = cx.peer {
            out.extend_from_slice(separator);
            address(out, peer);
        }
        out.extend_from_slice(b"\r\n");
    }
    let proto = trusted(FieldName::XForwardedProto).next().unwrap_or(cx.scheme.as_bytes());
    write::field(out, b"X-Forwarded-Proto", proto);
    write::field(out, b"X-Forwarded-Host", trusted(FieldName::XForwardedHost).next().unwrap_or(host));
    let mut list = trusted(FieldName::Forwarded).peekable();
    if list.peek().is_some() {
        out.extend_from_slice(b"Forwarded: ");
        for element in list {
            out.extend_from_slice(element);
            out.extend_from_slice(b", ");
        }
        match cx.peer.map(|peer| peer.to_canonical()) {
            Some(IpAddr::V4(ip)) => display(out, format_args!("for={ip}")),
            Some(IpAddr::V6(ip)) => display(out, format_args!("for=\"[{ip}]\"")),
            None => out.extend_from_slice(b"for=unknown"),
        }
        out.extend_from_slice(b";proto=");
        out.extend_from_slice(cx.scheme.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// An address as X-Forwarded-For has it: IPv4-mapped ones as IPv4, IPv6 without brackets.
fn address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            for (octet, dot) in [(a, true), (b, true), (c, true), (d, false)] {
                write::decimal(out, u64::from(octet));
                if dot {
                    out.push(b'.');
                }
            }
        }
        IpAddr::V6(ip) => display(out, format_args!("{ip}")),
    }
}

fn display(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = out.write_fmt(text);
}

/// Writes the head of `head` as it is sent to the client. `date` is the value of a Date field, used when the server
/// sent none (RFC 9110 section 6.6.1).
pub fn response(out: &mut Vec<u8>, bytes: &[u8], head: &ResponseHead, cx: &ResponseContext<'_>, date: &[u8]) {
    out.reserve(head.len + 128);
    write::status_line(out, head.status, head.reason.of(bytes));
    let mut copier = Copier::new(bytes);
    for field in &head.fields {
        let pass = match field.kind {
            FieldName::Trailer => cx.pass_trailers,
            FieldName::Other
            | FieldName::Via
            | FieldName::Date
            | FieldName::Host
            | FieldName::Proxy
            | FieldName::Expect
            | FieldName::MaxForwards
            | FieldName::Forwarded
            | FieldName::XForwardedFor
            | FieldName::XForwardedProto
            | FieldName::XForwardedHost
            | FieldName::ClientIdentity
            | FieldName::PointsmanWorker
            | FieldName::Disguised => true,
            FieldName::ContentLength
            | FieldName::TransferEncoding
            | FieldName::Connection
            | FieldName::KeepAlive
            | FieldName::ProxyConnection
            | FieldName::ProxyAuth
            | FieldName::Te
            | FieldName::Upgrade
            | FieldName::Http2Settings
            | FieldName::Nominated => false,
        };
        if pass {
            copier.field(out, field);
        }
    }
    copier.flush(out);
    if !head.has_date && !head.is_interim() {
        write::field(out, b"Date", date);
    }
    if let Some(name) = cx.via {
        out.extend_from_slice(match head.version {
            Version::Http10 => b"Via: 1.0 ",
            Version::Http11 => b"Via: 1.1 ",
        });
        out.extend_from_slice(name);
        out.extend_from_slice(b"\r\n");
    }
    match (cx.framing, head.content_length) {
        (OutFraming::None, Some(length)) if cx.keep_length => write::content_length(out, length),
        (OutFraming::None | OutFraming::UntilClose, _) => {}
        (OutFraming::Length(length), _) => write::content_length(out, length),
        (OutFraming::Chunked, _) => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    match head.upgrade {
        Some(upgrade) if cx.switch_protocols => {
            write::field(out, b"Upgrade", upgrade.of(bytes));
            out.extend_from_slice(b"Connection: upgrade\r\n");
        }
        // A 426 must say to what (RFC 9110 section 15.5.22). HTTP and TLS are not to be had here, whatever the server
        // offers.
        Some(upgrade) if head.status == 426 && is_tunnel_offer(upgrade.of(bytes)) == Some(true) => {
            write::field(out, b"Upgrade", upgrade.of(bytes));
            cx.connection.write_with(out, b"upgrade");
        }
        Some(_) | None => cx.connection.write(out),
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether Max-Forwards forbids to pass the request on: it must be answered here (RFC 9110 section 7.6.2).
#[must_use]
pub fn ends_here(head: &RequestHead) -> bool {
    head.max_forwards == Some(0) && matches!(head.method, Method::Options | Method::Trace)
}

#[cfg(test)]
mod tests;
