//! Serialising heads: the few pieces every writer needs, and whole answers of our own.

/// Writes `n` in decimal.
pub fn decimal(out: &mut Vec<u8>, n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = n;
    loop {
        at -= 1;
        digits[at] = b"0123456789"[(rest % 10) as usize];
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes one field line. Name and value must be valid: both come from a parser or are constants.
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes `Content-Length: n`.
pub fn content_length(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(b"Content-Length: ");
    decimal(out, n);
    out.extend_from_slice(b"\r\n");
}

/// Writes `HTTP/1.1 status reason`. `status` has three digits.
pub fn status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase of a status we answer with ourselves (RFC 9110 section 15); empty for another.
#[must_use]
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// An answer of our own, not a server's.
#[derive(Debug, Clone, Copy)]
pub struct OwnResponse<'a> {
    /// The status, final (200 to 599).
    pub status: u16,
    /// The Date field's value.
    pub date: &'a [u8],
    /// Fields besides Date, Content-Type, Content-Length and Connection; names and values valid.
    pub fields: &'a [(&'a str, &'a str)],
    /// Content-Type of the body.
    pub content_type: &'a str,
    /// The content; `None` = the status and its reason, as plain text.
    pub body: Option<&'a [u8]>,
    /// The request was HEAD: the content is announced, not sent.
    pub head: bool,
    /// How the connection goes on.
    pub connection: Persistence,
}

/// What a response says of its connection (RFC 9112 section 9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Persistence {
    /// It persists, as HTTP/1.1 assumes.
    #[default]
    Keep,
    /// It persists, and an HTTP/1.0 client must be told.
    KeepHttp10,
    /// It is closed after the response.
    Close,
}

impl Persistence {
    /// Writes the Connection field, if one is needed.
    pub fn write(self, out: &mut Vec<u8>) {
        match self {
            Persistence::Keep => {}
            Persistence::KeepHttp10 => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            Persistence::Close => out.extend_from_slice(b"Connection: close\r\n"),
        }
    }

    /// Writes a Connection field with `option` in it.
    pub fn write_with(self, out: &mut Vec<u8>, option: &[u8]) {
        out.extend_from_slice(b"Connection: ");
        out.extend_from_slice(option);
        out.extend_from_slice(match self {
            Persistence::Keep => b"\r\n".as_slice(),
            Persistence::KeepHttp10 => b", keep-alive\r\n",
            Persistence::Close => b", close\r\n",
        });
    }
}

impl<'a> OwnResponse<'a> {
    /// A plain text answer that closes the connection, as errors do unless it is known that the next request can be
    /// read.
    #[must_use]
    pub fn error(status: u16, date: &'a [u8]) -> OwnResponse<'a> {
        OwnResponse {
            status,
            date,
            fields: &[],
            content_type: "text/plain",
            body: None,
            head: false,
            connection: Persistence::Close,
        }
    }

    /// Writes head and content; gives how many bytes of it are head.
    pub fn write(&self, out: &mut Vec<u8>) -> usize {
        let begin = out.len();
        let reason = reason(self.status).as_bytes();
        status_line(out, self.status, reason);
        field(out, b"Date", self.date);
        for (name, value) in self.fields {
            field(out, name.as_bytes(), value.as_bytes());
        }
        if self.status != 204 && self.status != 304 {
            field(out, b"Content-Type", self.content_type.as_bytes());
            let own_len = 3 + 1 + reason.len() + 1;
            content_length(out, self.body.map_or(own_len, <[u8]>::len) as u64);
        }
        self.connection.write(out);
        out.extend_from_slice(b"\r\n");
        let head = out.len() - begin;
        if self.head || self.status == 204 || self.status == 304 {
            return head;
        }
        match self.body {
            Some(body) => out.extend_from_slice(body),
            None => {
                decimal(out, u64::from(self.status));
                out.push(b' ');
                out.extend_from_slice(reason);
                out.push(b'\n');
            }
        }
        head
    }
}

/// The interim response that lets a client send its content (RFC 9110 section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
