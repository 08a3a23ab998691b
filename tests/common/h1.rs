//! A strict reader of HTTP/1 messages for both ends of a test (RFC 9112).
//!
//! It refuses everything on which two parties could disagree: other line ends than CRLF, Content-Length beside
//! Transfer-Encoding, repeated lengths, chunk extensions. What the proxy sends must pass here. It is written
//! apart from the proxy's own parser on purpose and must not share code with it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Why no message could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The peer closed orderly before the first byte.
    End,
    /// The peer closed orderly within the message; what had arrived.
    Cut(Vec<u8>),
    /// The peer reset the connection; what had arrived of the message.
    Reset(Vec<u8>),
    /// The deadline passed; what had arrived of the message.
    Late(Vec<u8>),
    /// The message is not strictly HTTP/1.
    Violation(String),
}

impl Broken {
    /// With `before` in front of what had arrived.
    fn after(self, before: &[u8]) -> Broken {
        match self {
            Broken::Cut(rest) => Broken::Cut([before, &rest].concat()),
            Broken::Reset(rest) => Broken::Reset([before, &rest].concat()),
            Broken::Late(rest) => Broken::Late([before, &rest].concat()),
            Broken::End => Broken::End,
            Broken::Violation(what) => Broken::Violation(what),
        }
    }
}

fn violation<T>(what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken::Violation(what.into()))
}

/// Header or trailer fields, in order. Values are Latin-1 so that every byte shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// Every value of `name`, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// The only value of `name`; panics when there are several.
    #[track_caller]
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} more than once: {all:?}");
        all.first().copied()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// Whether the list-valued field `name` has the element `token`.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).iter().flat_map(|v| v.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
    }
}

/// A request as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub version: String,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// The head, byte for byte, the empty line included.
    pub head: Vec<u8>,
}

impl Request {
    /// `METHOD target body`, for comparing whole sequences.
    pub fn summary(&self) -> String {
        format!("{} {} {}", self.method, self.target, String::from_utf8_lossy(&self.body)).trim_end().to_owned()
    }
}

/// How the end of a response body was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body is possible.
    Empty,
    Length,
    Chunked,
    /// The connection's orderly end.
    Close,
}

/// A response as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub version: String,
    pub reason: String,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    pub framing: Framing,
    /// The heads of the 1xx responses before it.
    pub interim: Vec<(u16, Fields)>,
    /// The head, byte for byte, the empty line included.
    pub head: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the connection must close after this response (RFC 9112 section 9.3).
    pub fn closes(&self) -> bool {
        let options = &self.fields;
        self.framing == Framing::Close
            || options.lists("connection", "close")
            || self.version == "HTTP/1.0" && !options.lists("connection", "keep-alive")
    }
}

/// A connection with what was read from it and not yet used.
#[derive(Debug)]
pub struct Wire {
    pub stream: TcpStream,
    pub buffer: Vec<u8>,
    /// How long one message may take; `None` = until the connection ends.
    pub patience: Option<Duration>,
    until: Option<Instant>,
}

impl Wire {
    pub fn new(stream: TcpStream, patience: Option<Duration>) -> Wire {
        let _ = stream.set_nodelay(true);
        Wire { stream, buffer: Vec::new(), patience, until: None }
    }

    /// Starts the clock for the next message.
    pub fn begin(&mut self) {
        self.until = self.patience.map(|patience| Instant::now() + patience);
    }

    /// Reads once into the buffer; false at the orderly end.
    pub fn fill(&mut self) -> Result<bool, Broken> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(until) = self.until {
                let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                    return Err(Broken::Late(self.buffer.clone()));
                };
                self.stream.set_read_timeout(Some(left)).unwrap();
            } else {
                self.stream.set_read_timeout(None).unwrap();
            }
            match self.stream.read(&mut chunk) {
                Ok(count) => {
                    self.buffer.extend_from_slice(&chunk[..count]);
                    return Ok(count > 0);
                }
                Err(error) => {
                    let again = [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
                    let gone = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
                    if gone.contains(&error.kind()) {
                        return Err(Broken::Reset(self.buffer.clone()));
                    }
                    assert!(again.contains(&error.kind()), "read: {error}");
                }
            }
        }
    }

    fn more(&mut self) -> Result<(), Broken> {
        if self.fill()? { Ok(()) } else { Err(Broken::Cut(self.buffer.clone())) }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Exactly `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<Vec<u8>, Broken> {
        while self.buffer.len() < length {
            self.more()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// One line without its CRLF.
    fn line(&mut self) -> Result<Vec<u8>, Broken> {
        loop {
            if let Some(at) = self.buffer.iter().position(|&b| b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=at).collect();
                line.pop();
                if line.pop() != Some(b'\r') || line.contains(&b'\r') {
                    return violation(format!("bare LF or CR in line {:?}", String::from_utf8_lossy(&line)));
                }
                return Ok(line);
            }
            self.more()?;
        }
    }

    /// Lines up to the empty one, and the bytes they were.
    fn block(&mut self) -> Result<(Vec<Vec<u8>>, Vec<u8>), Broken> {
        let (mut lines, mut raw) = (Vec::new(), Vec::new());
        loop {
            // What came before belongs to the cut message too.
            let line = self.line().map_err(|broken| broken.after(&raw))?;
            raw.extend_from_slice(&line);
            raw.extend_from_slice(b"\r\n");
            if line.is_empty() {
                return Ok((lines, raw));
            }
            lines.push(line);
        }
    }

    fn head(&mut self) -> Result<(Vec<Vec<u8>>, Vec<u8>), Broken> {
        if self.buffer.is_empty() && !self.fill()? {
            return Err(Broken::End);
        }
        self.block()
    }

    /// A request head, checked.
    pub fn request_head(&mut self) -> Result<Request, Broken> {
        self.begin();
        let (lines, head) = self.head()?;
        let Some((first, rest)) = lines.split_first() else { return violation("empty request line") };
        let first = latin1(first);
        let parts: Vec<&str> = first.split(' ').collect();
        let [method, target, version] = parts[..] else { return violation(format!("request line {first:?}")) };
        if !is_token(method) || target.is_empty() || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return violation(format!("request line {first:?}"));
        }
        if version != "HTTP/1.1" && version != "HTTP/1.0" {
            return violation(format!("version in {first:?}"));
        }
        let fields = fields(rest)?;
        if fields.all("host").len() != 1 && version == "HTTP/1.1" {
            return violation(format!("Host fields: {:?}", fields.all("host")));
        }
        let request = Request {
            method: method.to_owned(),
            target: target.to_owned(),
            version: version.to_owned(),
            fields,
            body: Vec::new(),
            trailers: Fields::default(),
            head,
        };
        framing(&request.fields, &request.version)?;
        Ok(request)
    }

    /// The body of a request whose head was read.
    pub fn request_body(&mut self, request: &mut Request) -> Result<(), Broken> {
        match framing(&request.fields, &request.version)? {
            Some(Body::Length(length)) => request.body = self.take(length)?,
            Some(Body::Chunked) => (request.body, request.trailers) = self.chunked()?,
            None => {}
        }
        Ok(())
    }

    /// A whole response to a request with `method`, and the interim ones before it.
    pub fn response(&mut self, method: &str) -> Result<Response, Broken> {
        self.begin();
        let mut interim = Vec::new();
        loop {
            let mut response = self.response_head()?;
            if response.status < 200 && response.status != 101 {
                interim.push((response.status, response.fields));
                continue;
            }
            response.interim = interim;
            let body = framing(&response.fields, &response.version)?;
            let empty = method == "HEAD" || matches!(response.status, 101 | 204 | 304);
            let read = match (empty, body) {
                (true, _) => Ok((Framing::Empty, Vec::new(), Fields::default())),
                (false, Some(Body::Length(n))) => self.take(n).map(|body| (Framing::Length, body, Fields::default())),
                (false, Some(Body::Chunked)) => self.chunked().map(|(body, t)| (Framing::Chunked, body, t)),
                (false, None) => self.rest().map(|body| (Framing::Close, body, Fields::default())),
            };
            (response.framing, response.body, response.trailers) =
                read.map_err(|broken| broken.after(&response.head))?;
            return Ok(response);
        }
    }

    /// A response head, checked.
    pub fn response_head(&mut self) -> Result<Response, Broken> {
        let (lines, head) = self.head()?;
        let Some((first, rest)) = lines.split_first() else { return violation("empty status line") };
        let first = latin1(first);
        let mut parts = first.splitn(3, ' ');
        let (Some(version), Some(code), Some(reason)) = (parts.next(), parts.next(), parts.next()) else {
            return violation(format!("status line {first:?}"));
        };
        let digits = code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit());
        let clean = reason.bytes().all(|b| b == b'\t' || b >= b' ' && b != 0x7f);
        if !digits || !clean || version != "HTTP/1.1" && version != "HTTP/1.0" {
            return violation(format!("status line {first:?}"));
        }
        Ok(Response {
            status: code.parse().unwrap(),
            version: version.to_owned(),
            reason: reason.to_owned(),
            fields: fields(rest)?,
            body: Vec::new(),
            trailers: Fields::default(),
            framing: Framing::Empty,
            interim: Vec::new(),
            head,
        })
    }

    /// Everything up to the orderly end.
    pub fn rest(&mut self) -> Result<Vec<u8>, Broken> {
        while self.fill()? {}
        Ok(std::mem::take(&mut self.buffer))
    }

    fn chunked(&mut self) -> Result<(Vec<u8>, Fields), Broken> {
        let mut body = Vec::new();
        loop {
            let line = latin1(&self.line().map_err(|broken| broken.after(&body))?);
            let hex = !line.is_empty() && line.len() <= 16 && line.bytes().all(|b| b.is_ascii_hexdigit());
            if !hex {
                return violation(format!("chunk size {line:?}"));
            }
            let size = usize::from_str_radix(&line, 16).unwrap();
            if size == 0 {
                let (lines, _) = self.block().map_err(|broken| broken.after(&body))?;
                return Ok((body, fields(&lines)?));
            }
            body.extend(self.take(size).map_err(|broken| broken.after(&body))?);
            if self.take(2).map_err(|broken| broken.after(&body))? != b"\r\n" {
                return violation("no CRLF after a chunk");
            }
        }
    }
}

enum Body {
    Length(usize),
    Chunked,
}

fn framing(fields: &Fields, version: &str) -> Result<Option<Body>, Broken> {
    let (lengths, codings) = (fields.all("content-length"), fields.all("transfer-encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(None),
        ([], ["chunked"]) if version == "HTTP/1.1" => Ok(Some(Body::Chunked)),
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => match length.parse() {
            Ok(length) => Ok(Some(Body::Length(length))),
            Err(_) => violation(format!("Content-Length {length}")),
        },
        _ => violation(format!("{version} with Content-Length {lengths:?} and Transfer-Encoding {codings:?}")),
    }
}

fn fields(lines: &[Vec<u8>]) -> Result<Fields, Broken> {
    let mut fields = Vec::new();
    for line in lines {
        let line = latin1(line);
        let Some((name, value)) = line.split_once(':') else { return violation(format!("field line {line:?}")) };
        if !is_token(name) || value.chars().any(|c| c < ' ' && c != '\t' || c == '\x7f') {
            return violation(format!("field line {line:?}"));
        }
        fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
    Ok(Fields(fields))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}
