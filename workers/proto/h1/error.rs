//! Every way a message head can be wrong, and the status that answers it.

use std::fmt;

/// Why a head is refused. `line` counts from 1, the start line; the connection is closed after any of these.
#[expect(missing_docs, reason = "`line`, `byte`, `limit` and `fault` are what they are called")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// LF without CR before it (RFC 9112 section 2.2).
    BareLf { line: u32 },
    /// CR without LF after it (RFC 9112 section 2.2).
    BareCr { line: u32 },
    /// A control byte, NUL among them (RFC 9110 section 5.5).
    Control { line: u32, byte: u8 },
    /// More than one empty line, or half of one, before the start line (RFC 9112 section 2.2).
    EmptyLineFirst,
    /// White space before the first field (RFC 9112 section 2.2).
    LeadingSpace { line: u32 },
    /// A folded line (RFC 9112 section 5.2).
    ObsFold { line: u32 },
    /// White space between field name and colon, or within the name (RFC 9112 section 5.1).
    SpaceBeforeColon { line: u32 },
    /// A field line that begins with its colon (RFC 9112 section 5).
    EmptyName { line: u32 },
    /// A line without a colon (RFC 9112 section 5).
    NoColon { line: u32 },
    /// A byte that is none of a token in a field name (RFC 9110 section 5.1).
    NameByte { line: u32, byte: u8 },
    /// A byte that is none of a token in the method (RFC 9110 section 9.1).
    MethodByte { byte: u8 },
    /// A method longer than [`super::method::Method::MAX_BYTES`] (RFC 9112 section 3).
    MethodTooLong,
    /// A request line that ends before its target (RFC 9112 section 3).
    NoTarget,
    /// Two blanks where one belongs in the request line (RFC 9112 section 3).
    DoubledSpace,
    /// A byte that may not stand in a target: control, blank, `#`, `\`, `"`, `<`, `>`, beyond ASCII.
    TargetByte { byte: u8 },
    /// A target of none of the four forms, or with an unknown scheme (RFC 9112 section 3.2).
    TargetForm,
    /// A path with `%` not followed by two hexadecimal digits, or with `%00` (RFC 3986 section 2.1).
    TargetPercent,
    /// `*` with another method than OPTIONS, authority-form with another than CONNECT, or CONNECT without it.
    TargetMethod,
    /// The target alone does not fit the head's limit (RFC 9110 section 15.5.15).
    TargetTooLong,
    /// No version in the request line: HTTP/0.9 (RFC 9112 section 3).
    NoVersion,
    /// A version not of the form `HTTP/1.1` (RFC 9112 section 2.3).
    VersionForm,
    /// A well-formed version other than 1.0 and 1.1 (RFC 9110 section 15.6.6).
    Version { major: u8, minor: u8 },
    /// Not a status line (RFC 9112 section 4).
    StatusLine,
    /// A status that is not three digits from 100 to 599 (RFC 9110 section 15).
    StatusCode,
    /// The head is longer than allowed (RFC 6585 section 5).
    HeadTooLarge { limit: usize },
    /// More field lines than allowed (RFC 6585 section 5).
    TooManyFields { limit: usize },
    /// No Host in an HTTP/1.1 request (RFC 9112 section 3.2).
    HostMissing,
    /// Host twice (RFC 9112 section 3.2).
    HostDoubled { line: u32 },
    /// An authority that is none; line 1 means the target's.
    Host { line: u32, fault: HostFault },
    /// Host names another authority than the target (RFC 9112 section 3.2.2).
    HostMismatch { line: u32 },
    /// A Content-Length that is no length (RFC 9112 section 6.3).
    Length { line: u32, fault: LengthFault },
    /// Content-Length twice, also when equal (RFC 9112 section 6.3).
    LengthDoubled { line: u32 },
    /// Content-Length together with Transfer-Encoding (RFC 9112 section 6.1).
    LengthWithCoding { line: u32 },
    /// A Transfer-Encoding that does not end in one `chunked` (RFC 9112 section 6.3).
    Coding { line: u32 },
    /// Codings before `chunked`, which we do not know (RFC 9112 section 6.1).
    CodingUnknown { line: u32 },
    /// Transfer-Encoding twice (RFC 9112 section 6.1).
    CodingDoubled { line: u32 },
    /// Transfer-Encoding in an HTTP/1.0 message (RFC 9112 section 6.1).
    CodingInHttp10 { line: u32 },
    /// Content with TRACE or CONNECT (RFC 9110 sections 9.3.6 and 9.3.8).
    ContentNotAllowed,
    /// A Connection that is no list of tokens (RFC 9110 section 7.6.1).
    Connection { line: u32 },
    /// Connection names a field that is meant for the recipient beyond us (RFC 9110 section 7.6.1).
    ConnectionNominates { line: u32 },
    /// More Connection options than [`super::field::MAX_NOMINATED`].
    TooManyOptions { line: u32 },
    /// An Expect other than `100-continue` (RFC 9110 section 10.1.1).
    Expect { line: u32 },
    /// A TE that is no list (RFC 9110 section 10.1.4).
    Te { line: u32 },
    /// An Upgrade that is no list of protocols (RFC 9110 section 7.8).
    Upgrade { line: u32 },
    /// A Max-Forwards that is no number, or twice, on TRACE or OPTIONS (RFC 9110 section 7.6.2).
    MaxForwards { line: u32 },
}

/// What is wrong with an authority (RFC 3986 section 3.2, RFC 9110 section 7.2).
#[expect(missing_docs, reason = "`byte` is the offending byte")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFault {
    /// Empty (RFC 9110 section 4.2.1).
    Empty,
    /// `user@` in front (RFC 9110 section 4.2.4).
    UserInfo,
    /// A byte that no name or address has.
    Byte { byte: u8 },
    /// An empty label: a dot first, or two in a row.
    EmptyLabel,
    /// A bracketed literal that is no IPv6 address.
    Ipv6,
    /// A port that is no number from 1 to 65535.
    Port,
    /// CONNECT without a port (RFC 9112 section 3.2.3).
    NoPort,
    /// Longer than 255 bytes.
    TooLong,
}

/// What is wrong with a Content-Length (RFC 9110 section 8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthFault {
    /// Empty.
    Empty,
    /// A list, of equal members or not.
    List,
    /// Something else than a decimal digit.
    Digit,
    /// 2^63 or more.
    TooLarge,
}

impl HeadError {
    /// The status that answers a request with this fault. A response with it becomes 502.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            HeadError::TargetTooLong => 414,
            HeadError::Expect { .. } => 417,
            HeadError::HeadTooLarge { .. } | HeadError::TooManyFields { .. } => 431,
            HeadError::MethodTooLong | HeadError::CodingUnknown { .. } => 501,
            HeadError::Version { .. } => 505,
            HeadError::BareLf { .. }
            | HeadError::BareCr { .. }
            | HeadError::Control { .. }
            | HeadError::EmptyLineFirst
            | HeadError::LeadingSpace { .. }
            | HeadError::ObsFold { .. }
            | HeadError::SpaceBeforeColon { .. }
            | HeadError::EmptyName { .. }
            | HeadError::NoColon { .. }
            | HeadError::NameByte { .. }
            | HeadError::MethodByte { .. }
            | HeadError::NoTarget
            | HeadError::DoubledSpace
            | HeadError::TargetByte { .. }
            | HeadError::TargetForm
            | HeadError::TargetPercent
            | HeadError::TargetMethod
            | HeadError::NoVersion
            | HeadError::VersionForm
            | HeadError::StatusLine
            | HeadError::StatusCode
            | HeadError::HostMissing
            | HeadError::HostDoubled { .. }
            | HeadError::Host { .. }
            | HeadError::HostMismatch { .. }
            | HeadError::Length { .. }
            | HeadError::LengthDoubled { .. }
            | HeadError::LengthWithCoding { .. }
            | HeadError::Coding { .. }
            | HeadError::CodingDoubled { .. }
            | HeadError::CodingInHttp10 { .. }
            | HeadError::ContentNotAllowed
            | HeadError::Connection { .. }
            | HeadError::ConnectionNominates { .. }
            | HeadError::TooManyOptions { .. }
            | HeadError::Te { .. }
            | HeadError::Upgrade { .. }
            | HeadError::MaxForwards { .. } => 400,
        }
    }
}

impl std::error::Error for HeadError {}
impl std::error::Error for HostFault {}
impl std::error::Error for LengthFault {}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeadError::BareLf { line } => write!(f, "line {line}: LF without CR"),
            HeadError::BareCr { line } => write!(f, "line {line}: CR without LF"),
            HeadError::Control { line, byte } => write!(f, "line {line}: control byte {byte:#04x}"),
            HeadError::EmptyLineFirst => f.write_str("more than one empty line before the start line"),
            HeadError::LeadingSpace { line } => write!(f, "line {line}: white space before the first field"),
            HeadError::ObsFold { line } => write!(f, "line {line}: folded field line"),
            HeadError::SpaceBeforeColon { line } => write!(f, "line {line}: white space in or after the field name"),
            HeadError::EmptyName { line } => write!(f, "line {line}: empty field name"),
            HeadError::NoColon { line } => write!(f, "line {line}: no colon in the field line"),
            HeadError::NameByte { line, byte } => write!(f, "line {line}: byte {byte:#04x} in a field name"),
            HeadError::MethodByte { byte } => write!(f, "line 1: byte {byte:#04x} in the method"),
            HeadError::MethodTooLong => {
                write!(f, "line 1: method longer than {} bytes", super::method::Method::MAX_BYTES)
            }
            HeadError::NoTarget => f.write_str("line 1: no request target"),
            HeadError::DoubledSpace => f.write_str("line 1: two blanks where one belongs"),
            HeadError::TargetByte { byte } => write!(f, "line 1: byte {byte:#04x} in the request target"),
            HeadError::TargetForm => f.write_str("line 1: the request target has none of the four forms"),
            HeadError::TargetPercent => f.write_str("line 1: bad percent-encoding in the path"),
            HeadError::TargetMethod => f.write_str("line 1: this form of target does not go with this method"),
            HeadError::TargetTooLong => f.write_str("line 1: request target too long"),
            HeadError::NoVersion => f.write_str("line 1: no HTTP version (HTTP/0.9 is not spoken)"),
            HeadError::VersionForm => f.write_str("line 1: malformed HTTP version"),
            HeadError::Version { major, minor } => write!(f, "line 1: HTTP/{major}.{minor} is not spoken"),
            HeadError::StatusLine => f.write_str("line 1: not an HTTP status line"),
            HeadError::StatusCode => f.write_str("line 1: the status is not three digits from 100 to 599"),
            HeadError::HeadTooLarge { limit } => write!(f, "head longer than {limit} bytes"),
            HeadError::TooManyFields { limit } => write!(f, "more than {limit} fields"),
            HeadError::HostMissing => f.write_str("no Host field"),
            HeadError::HostDoubled { line } => write!(f, "line {line}: second Host field"),
            HeadError::Host { line: 1, fault } => write!(f, "line 1: authority of the target: {fault}"),
            HeadError::Host { line, fault } => write!(f, "line {line}: Host: {fault}"),
            HeadError::HostMismatch { line } => write!(f, "line {line}: Host differs from the request target"),
            HeadError::Length { line, fault } => write!(f, "line {line}: Content-Length: {fault}"),
            HeadError::LengthDoubled { line } => write!(f, "line {line}: second Content-Length"),
            HeadError::LengthWithCoding { line } => {
                write!(f, "line {line}: Content-Length together with Transfer-Encoding")
            }
            HeadError::Coding { line } => write!(f, "line {line}: Transfer-Encoding is not \"chunked\""),
            HeadError::CodingUnknown { line } => write!(f, "line {line}: unsupported transfer coding"),
            HeadError::CodingDoubled { line } => write!(f, "line {line}: second Transfer-Encoding"),
            HeadError::CodingInHttp10 { line } => write!(f, "line {line}: Transfer-Encoding in HTTP/1.0"),
            HeadError::ContentNotAllowed => f.write_str("content where the method allows none"),
            HeadError::Connection { line } => write!(f, "line {line}: Connection is no list of tokens"),
            HeadError::ConnectionNominates { line } => {
                write!(f, "line {line}: Connection names a field that is not for this connection only")
            }
            HeadError::TooManyOptions { line } => write!(f, "line {line}: too many Connection options"),
            HeadError::Expect { line } => write!(f, "line {line}: Expect other than 100-continue"),
            HeadError::Te { line } => write!(f, "line {line}: malformed TE"),
            HeadError::Upgrade { line } => write!(f, "line {line}: malformed Upgrade"),
            HeadError::MaxForwards { line } => write!(f, "line {line}: malformed Max-Forwards"),
        }
    }
}

impl fmt::Display for HostFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostFault::Empty => f.write_str("empty host"),
            HostFault::UserInfo => f.write_str("user information is not allowed"),
            HostFault::Byte { byte } => write!(f, "byte {byte:#04x} in a host name"),
            HostFault::EmptyLabel => f.write_str("empty label in the host name"),
            HostFault::Ipv6 => f.write_str("bad IPv6 literal"),
            HostFault::Port => f.write_str("the port is no number from 1 to 65535"),
            HostFault::NoPort => f.write_str("CONNECT needs a port"),
            HostFault::TooLong => f.write_str("host longer than 255 bytes"),
        }
    }
}

impl fmt::Display for LengthFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LengthFault::Empty => "empty",
            LengthFault::List => "a list, not one number",
            LengthFault::Digit => "not a decimal number",
            LengthFault::TooLarge => "too large",
        })
    }
}
