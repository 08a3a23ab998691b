//! One line of the access log: what it says of a request, and how.
//!
//! # The combined format
//!
//! That of the Apache server, then fields of the form `name=value`, all on one line:
//!
//! ```text
//! 192.0.2.7 - - [20/Nov/2026:06:35:32 +0000] "GET /a?b HTTP/1.1" 200 1234 "https://example.com/" "curl/8.5.0"
//!   host="www.example.com" mode=http backend="127.0.0.1:9001" worker=2 port=51234 connect_us=153 first_byte_us=2210
//!   total_us=2390 bytes_in=0 retries=0 reason="-"
//! ```
//!
//! What is not known is `-`. Within quotes every byte that is not printable ASCII, and `"` and `\`, is `\xHH`: a
//! quote always ends a field, a line end always ends a line, and a line is plain ASCII.
//!
//! # The JSON format
//!
//! One object a line with the same values under the same names; what is not known is `null`. Text that is UTF-8
//! stays as it is but for `"`, `\`, control characters and those that change the direction of text; a byte that is
//! not UTF-8 is written as the character of that number (`\u00HH`).
//!
//! # Lengths
//!
//! Each text has a greatest length in the line, after escaping; what is cut off is replaced by `...`. So no line is
//! longer than [`MAX_LINE_BYTES`].

use std::io::Write;
use std::net::SocketAddr;

use ipc::snapshot::{LogFormat, Mode};

use crate::date::DateCache;

/// The longest line, its end included.
pub const MAX_LINE_BYTES: usize = 8 * 1024;

const MAX_METHOD: usize = 64;
const MAX_TARGET: usize = 4096;
const MAX_VERSION: usize = 16;
const MAX_HOST: usize = 512;
const MAX_REFERER: usize = 1024;
const MAX_USER_AGENT: usize = 1024;
const MAX_BACKEND: usize = 256;
const MAX_REASON: usize = 256;
const MAX_USER: usize = 64;
const MAX_RULE: usize = 96;

/// Fields' names, numbers and dates come to less than this.
const MAX_REST: usize = 768;
const _: () = assert!(
    MAX_METHOD
        + MAX_TARGET
        + MAX_VERSION
        + MAX_HOST
        + MAX_REFERER
        + MAX_USER_AGENT
        + MAX_BACKEND
        + MAX_REASON
        + MAX_USER
        + MAX_RULE
        + MAX_REST
        <= MAX_LINE_BYTES
);

/// One finished request, or one finished connection of a TCP listener.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// When it ended, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The listener's mode.
    pub mode: Mode,
    /// The number of the worker that served it.
    pub worker: u16,
    /// The client; `None` on a Unix listener.
    pub client: Option<SocketAddr>,
    /// The request's method; `None` if no request line was understood, and for TCP. So are target and version.
    pub method: Option<&'a [u8]>,
    /// The request's target as received.
    pub target: Option<&'a [u8]>,
    /// The request's version, as `HTTP/1.1`.
    pub version: Option<&'a [u8]>,
    /// The host asked for.
    pub host: Option<&'a [u8]>,
    /// The request's `Referer`.
    pub referer: Option<&'a [u8]>,
    /// The request's `User-Agent`.
    pub user_agent: Option<&'a [u8]>,
    /// The status sent to the client.
    pub status: Option<u16>,
    /// Bytes of the body sent to the client; for TCP, all bytes.
    pub bytes_out: u64,
    /// Bytes of the body received from the client; for TCP, all bytes.
    pub bytes_in: u64,
    /// The address of the server that answered, or that was tried last.
    pub backend: Option<&'a str>,
    /// How long connecting to it took, in microseconds; `None` if an idle connection was used.
    pub connect_us: Option<u64>,
    /// From the request's first byte to the response's, in microseconds.
    pub first_byte_us: Option<u64>,
    /// From the request's first byte to its end, in microseconds.
    pub total_us: Option<u64>,
    /// How many other servers or connections were tried before.
    pub retries: u32,
    /// Why it failed; `None` if it did not.
    pub reason: Option<&'a str>,
    /// Who asked for it, where that was proved.
    pub user: Option<&'a str>,
    /// The rule that decided, as `SET:RULE`, on forward listeners.
    pub rule: Option<&'a str>,
}

impl<'a> Entry<'a> {
    /// An entry of which nothing else is known.
    #[must_use]
    pub fn new(mode: Mode, unix_ms: u64, worker: u16) -> Entry<'a> {
        Entry {
            unix_ms,
            mode,
            worker,
            client: None,
            method: None,
            target: None,
            version: None,
            host: None,
            referer: None,
            user_agent: None,
            status: None,
            bytes_out: 0,
            bytes_in: 0,
            backend: None,
            connect_us: None,
            first_byte_us: None,
            total_us: None,
            retries: 0,
            reason: None,
            user: None,
            rule: None,
        }
    }
}

/// Appends the line for `entry`, its end included.
pub(super) fn append(out: &mut Vec<u8>, entry: &Entry<'_>, format: LogFormat, dates: &mut DateCache) {
    let mut line = Line { out };
    match format {
        LogFormat::Combined => line.combined(entry, dates),
        LogFormat::Json => line.json(entry, dates),
    }
}

/// The end of a buffer, being written. Writing to memory does not fail, so `write!`'s results are not looked at.
struct Line<'b> {
    out: &'b mut Vec<u8>,
}

impl Line<'_> {
    fn combined(&mut self, entry: &Entry<'_>, dates: &mut DateCache) {
        match entry.client {
            Some(client) => _ = write!(self.out, "{}", client.ip().to_canonical()),
            None => self.raw("-"),
        }
        self.raw(" - ");
        match entry.user {
            Some(user) => self.user(user),
            None => self.raw("-"),
        }
        self.raw(" ");
        self.out.extend_from_slice(dates.log_date(entry.unix_ms / 1000));
        self.raw(" \"");
        if entry.method.is_none() && entry.target.is_none() {
            self.raw("-");
        } else {
            self.ascii(entry.method.unwrap_or(b"-"), MAX_METHOD);
            self.raw(" ");
            self.ascii(entry.target.unwrap_or(b"-"), MAX_TARGET);
            self.raw(" ");
            self.ascii(entry.version.unwrap_or(b"-"), MAX_VERSION);
        }
        self.raw("\" ");
        self.number_or_dash("", entry.status);
        self.number_or_dash(" ", Some(entry.bytes_out));
        self.ascii_field(" ", entry.referer, MAX_REFERER);
        self.ascii_field(" ", entry.user_agent, MAX_USER_AGENT);
        self.ascii_field(" host=", entry.host, MAX_HOST);
        self.raw(" mode=");
        self.raw(mode_name(entry.mode));
        self.ascii_field(" backend=", entry.backend.map(str::as_bytes), MAX_BACKEND);
        self.number_or_dash(" worker=", Some(entry.worker));
        self.number_or_dash(" port=", entry.client.map(|client| client.port()));
        self.number_or_dash(" connect_us=", entry.connect_us);
        self.number_or_dash(" first_byte_us=", entry.first_byte_us);
        self.number_or_dash(" total_us=", entry.total_us);
        self.number_or_dash(" bytes_in=", Some(entry.bytes_in));
        self.number_or_dash(" retries=", Some(entry.retries));
        self.ascii_field(" reason=", entry.reason.map(str::as_bytes), MAX_REASON);
        if entry.mode == Mode::Forward {
            self.ascii_field(" rule=", entry.rule.map(str::as_bytes), MAX_RULE);
        }
        self.raw("\n");
    }

    fn json(&mut self, entry: &Entry<'_>, dates: &mut DateCache) {
        self.raw("{\"time\":\"");
        self.out.extend_from_slice(dates.iso_date(entry.unix_ms));
        self.raw("\",\"client\":");
        match entry.client {
            Some(client) => _ = write!(self.out, "\"{}\"", client.ip().to_canonical()),
            None => self.raw("null"),
        }
        self.number_or_null("port", entry.client.map(|client| client.port()));
        self.text_field("mode", Some(mode_name(entry.mode).as_bytes()), usize::MAX);
        self.text_field("method", entry.method, MAX_METHOD);
        self.text_field("target", entry.target, MAX_TARGET);
        self.text_field("version", entry.version, MAX_VERSION);
        self.text_field("host", entry.host, MAX_HOST);
        self.number_or_null("status", entry.status);
        self.number_or_null("bytes_out", Some(entry.bytes_out));
        self.number_or_null("bytes_in", Some(entry.bytes_in));
        self.text_field("referer", entry.referer, MAX_REFERER);
        self.text_field("user_agent", entry.user_agent, MAX_USER_AGENT);
        self.text_field("backend", entry.backend.map(str::as_bytes), MAX_BACKEND);
        self.number_or_null("worker", Some(entry.worker));
        self.number_or_null("connect_us", entry.connect_us);
        self.number_or_null("first_byte_us", entry.first_byte_us);
        self.number_or_null("total_us", entry.total_us);
        self.number_or_null("retries", Some(entry.retries));
        self.text_field("reason", entry.reason.map(str::as_bytes), MAX_REASON);
        if entry.mode == Mode::Forward {
            self.text_field("user", entry.user.map(str::as_bytes), MAX_USER);
            self.text_field("rule", entry.rule.map(str::as_bytes), MAX_RULE);
        }
        self.raw("}\n");
    }

    /// A name where the combined format has no quotes: blanks in it must not begin another field.
    fn user(&mut self, name: &str) {
        let from = self.out.len();
        self.ascii(name.as_bytes(), MAX_USER);
        self.out[from..].iter_mut().filter(|byte| **byte == b' ').for_each(|byte| *byte = b'_');
    }

    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Decimal digits; much of a line is numbers, and `write!` takes several times as long for one.
    fn number(&mut self, mut number: u64) {
        let mut digits = [b'0'; 20];
        let mut begin = digits.len();
        loop {
            begin -= 1;
            digits[begin] += u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&digits[begin..]);
    }

    fn number_or_dash(&mut self, name: &str, number: Option<impl Into<u64>>) {
        self.raw(name);
        match number {
            Some(number) => self.number(number.into()),
            None => self.raw("-"),
        }
    }

    fn number_or_null(&mut self, name: &str, number: Option<impl Into<u64>>) {
        self.raw(",\"");
        self.raw(name);
        self.raw("\":");
        match number {
            Some(number) => self.number(number.into()),
            None => self.raw("null"),
        }
    }

    fn ascii_field(&mut self, name: &str, bytes: Option<&[u8]>, max: usize) {
        self.raw(name);
        self.raw("\"");
        self.ascii(bytes.unwrap_or(b"-"), max);
        self.raw("\"");
    }

    fn text_field(&mut self, name: &str, bytes: Option<&[u8]>, max: usize) {
        self.raw(",\"");
        self.raw(name);
        self.raw("\":");
        match bytes {
            Some(bytes) => {
                self.raw("\"");
                self.text(bytes, max);
                self.raw("\"");
            }
            None => self.raw("null"),
        }
    }

    /// `bytes` within quotes of the combined format, in at most `max` bytes.
    fn ascii(&mut self, bytes: &[u8], max: usize) {
        if bytes.len() <= max && all_plain(bytes) {
            return self.out.extend_from_slice(bytes);
        }
        let mut cut = Cut::new(self.out, max);
        for byte in bytes {
            if is_plain(*byte) {
                self.out.push(*byte);
            } else {
                _ = write!(self.out, "\\x{byte:02X}");
            }
            if !cut.goes_on(self.out) {
                break;
            }
        }
    }

    /// `bytes` within quotes of JSON (RFC 8259 section 7), in at most `max` bytes.
    fn text(&mut self, bytes: &[u8], max: usize) {
        if bytes.len() <= max && all_plain(bytes) {
            return self.out.extend_from_slice(bytes);
        }
        let mut cut = Cut::new(self.out, max);
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                if matches!(c, '"' | '\\') || must_not_be_shown(c) {
                    // None of these lies outside the basic plane.
                    _ = write!(self.out, "\\u{:04x}", u32::from(c));
                } else {
                    self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                if !cut.goes_on(self.out) {
                    return;
                }
            }
            for byte in chunk.invalid() {
                _ = write!(self.out, "\\u{byte:04x}");
                if !cut.goes_on(self.out) {
                    return;
                }
            }
        }
    }
}

/// Whether a byte may stand within the quotes of either format as it is.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// Looks at all bytes, without stopping at the first that is not plain, so that it can be done many at a time.
fn all_plain(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |plain, byte| plain & is_plain(*byte))
}

/// Characters that could do something to a terminal or hide what stands in a line: controls (C0, DEL, C1), the
/// separators of lines, and the marks that turn the direction of text.
fn must_not_be_shown(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Keeps a text within its length, cutting between two characters.
struct Cut {
    /// Where the dots go when the text turns out too long.
    dots_at: usize,
    end: usize,
    room: usize,
}

const DOTS: &[u8] = b"...";

impl Cut {
    fn new(out: &[u8], max: usize) -> Cut {
        Cut { dots_at: out.len(), end: out.len() + max, room: out.len() + max.saturating_sub(DOTS.len()) }
    }

    /// To be asked after each character; cuts the text when that was one too many.
    fn goes_on(&mut self, out: &mut Vec<u8>) -> bool {
        if out.len() <= self.room {
            self.dots_at = out.len();
        }
        if out.len() <= self.end {
            return true;
        }
        out.truncate(self.dots_at);
        out.extend_from_slice(DOTS);
        false
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Http => "http",
        Mode::Tcp => "tcp",
        Mode::Forward => "forward",
    }
}
