//! SOCKS as a server speaks it: version 5 (RFC 1928) with username and password (RFC 1929), and version 4 with 4a.
//!
//! Bytes in, events out. Only CONNECT is served; BIND and UDP ASSOCIATE are answered "command not supported". Every
//! field has its length in the protocol or a bound here, so that no more than [`MAX_BYTES`] are ever waited for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::endpoint::{Endpoint, EndpointError, Host};

/// The longest beginning of a connection: greeting, password and request of version 5.
pub const MAX_BYTES: usize = (2 + 255) + (3 + 255 + 255) + (4 + 1 + 255 + 2);
/// The longest user id and the longest name of version 4, which have no length of their own.
const TEXT4_MAX: usize = 255;

const NO_AUTHENTICATION: u8 = 0;
const PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// What a client is told in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Connected.
    Succeeded,
    /// It failed here.
    Failed,
    /// The rules do not allow it.
    NotAllowed,
    /// No address of the target could be reached.
    HostUnreachable,
    /// The target refused.
    Refused,
    /// It took too long.
    TimedOut,
    /// Anything but CONNECT.
    Command,
    /// An address of a kind that there is not.
    AddressType,
}

/// The events of a negotiation.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// More must come.
    More,
    /// The first `used` bytes are answered with `reply`, and the negotiation goes on.
    Reply {
        /// Bytes that need not be given again.
        used: usize,
        /// What is sent.
        reply: [u8; 2],
    },
    /// Somebody says who they are. [`Socks5::verdict`] comes next.
    Credentials {
        /// Bytes that need not be given again.
        used: usize,
        /// The name.
        user: &'a [u8],
        /// The password.
        password: &'a [u8],
    },
    /// The target. What comes behind it is the client's first bytes for it.
    Connect {
        /// Bytes that need not be given again.
        used: usize,
        /// Where to.
        target: Endpoint,
        /// A name that nobody proves, of version 4.
        user: &'a [u8],
    },
}

/// Why a negotiation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocksError {
    /// Another version than the one it began with.
    Version,
    /// No method is offered at all, or none that will do.
    Method {
        /// Whether the one that is missing is username and password.
        password: bool,
    },
    /// The name or the password is empty.
    EmptyCredentials,
    /// Not CONNECT.
    Command(u8),
    /// The reserved byte is not zero.
    Reserved,
    /// Not IPv4, a name or IPv6.
    AddressType(u8),
    /// The target is none.
    Target(EndpointError),
    /// A text of version 4 that does not end.
    TooLong,
}

impl fmt::Display for SocksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocksError::Version => f.write_str("the SOCKS version changed within the negotiation"),
            SocksError::Method { password: true } => f.write_str("the client offers no username and password"),
            SocksError::Method { password: false } => f.write_str("the client offers only ways to say who it is"),
            SocksError::EmptyCredentials => f.write_str("an empty username or password"),
            SocksError::Command(command) => write!(f, "SOCKS command {command} is not supported"),
            SocksError::Reserved => f.write_str("the reserved byte of a SOCKS request is not zero"),
            SocksError::AddressType(kind) => write!(f, "there is no SOCKS address type {kind}"),
            SocksError::Target(error) => error.fmt(f),
            SocksError::TooLong => f.write_str("a SOCKS4 text is longer than 255 bytes"),
        }
    }
}

/// What a connection of version 5 waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Credentials,
    Verdict,
    Request,
}

/// A negotiation of version 5.
#[derive(Debug)]
pub struct Socks5 {
    auth: bool,
    stage: Stage,
}

impl Socks5 {
    /// One that has not begun. `auth`: the client must say who it is.
    #[must_use]
    pub fn new(auth: bool) -> Socks5 {
        Socks5 { auth, stage: Stage::Greeting }
    }

    /// Takes `bytes`, all that has come and was not used by an event before.
    ///
    /// # Errors
    /// The client is told [`Socks5::farewell`], and the connection ends.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Event<'a>, SocksError> {
        match self.stage {
            Stage::Greeting => self.greeting(bytes),
            Stage::Credentials => self.credentials(bytes),
            Stage::Verdict => Ok(Event::More),
            Stage::Request => request5(bytes),
        }
    }

    fn greeting<'a>(&mut self, bytes: &'a [u8]) -> Result<Event<'a>, SocksError> {
        let [version, rest @ ..] = bytes else { return Ok(Event::More) };
        if *version != 5 {
            return Err(SocksError::Version);
        }
        let [count, rest @ ..] = rest else { return Ok(Event::More) };
        let Some(methods) = rest.get(..usize::from(*count)) else { return Ok(Event::More) };
        let wanted = if self.auth { PASSWORD } else { NO_AUTHENTICATION };
        if !methods.contains(&wanted) {
            return Err(SocksError::Method { password: self.auth });
        }
        self.stage = if self.auth { Stage::Credentials } else { Stage::Request };
        Ok(Event::Reply { used: 2 + methods.len(), reply: [5, wanted] })
    }

    fn credentials<'a>(&mut self, bytes: &'a [u8]) -> Result<Event<'a>, SocksError> {
        let [version, rest @ ..] = bytes else { return Ok(Event::More) };
        if *version != 1 {
            return Err(SocksError::Version);
        }
        let Some((user, rest)) = counted(rest) else { return Ok(Event::More) };
        let Some((password, _)) = counted(rest) else { return Ok(Event::More) };
        if user.is_empty() || password.is_empty() {
            return Err(SocksError::EmptyCredentials);
        }
        self.stage = Stage::Verdict;
        Ok(Event::Credentials { used: 3 + user.len() + password.len(), user, password })
    }

    /// What the client is told of its password. Only a right one lets it go on.
    #[must_use]
    pub fn verdict(&mut self, right: bool) -> [u8; 2] {
        debug_assert_eq!(self.stage, Stage::Verdict);
        if right {
            self.stage = Stage::Request;
        }
        [1, u8::from(!right)]
    }

    /// Writes what a client is told before its connection is closed for `error`.
    pub fn farewell(&self, error: SocksError, out: &mut Vec<u8>) {
        match self.stage {
            Stage::Greeting => out.extend_from_slice(&[5, NO_METHOD]),
            Stage::Credentials | Stage::Verdict => out.extend_from_slice(&[1, 1]),
            Stage::Request => reply5(
                match error {
                    SocksError::Command(_) => Outcome::Command,
                    SocksError::AddressType(_) => Outcome::AddressType,
                    SocksError::Version
                    | SocksError::Method { .. }
                    | SocksError::EmptyCredentials
                    | SocksError::Reserved
                    | SocksError::Target(_)
                    | SocksError::TooLong => Outcome::Failed,
                },
                None,
                out,
            ),
        }
    }
}

/// What stands behind its length in one byte, and the rest.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&count, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(count))
}

fn request5(bytes: &[u8]) -> Result<Event<'_>, SocksError> {
    match bytes {
        [version, ..] if *version != 5 => return Err(SocksError::Version),
        [_, command, ..] if *command != CONNECT => return Err(SocksError::Command(*command)),
        [_, _, reserved, ..] if *reserved != 0 => return Err(SocksError::Reserved),
        _ => {}
    }
    let Some((&kind, rest)) = bytes.get(3..).and_then(<[u8]>::split_first) else { return Ok(Event::More) };
    let (host, rest) = match kind {
        1 => match rest.split_first_chunk::<4>() {
            Some((ip, rest)) => (Host::ip(IpAddr::V4(Ipv4Addr::from(*ip))), rest),
            None => return Ok(Event::More),
        },
        4 => match rest.split_first_chunk::<16>() {
            Some((ip, rest)) => (Host::ip(IpAddr::V6(Ipv6Addr::from(*ip))), rest),
            None => return Ok(Event::More),
        },
        3 => match counted(rest) {
            Some((name, rest)) => (Host::parse(name).map_err(SocksError::Target)?, rest),
            None => return Ok(Event::More),
        },
        kind => return Err(SocksError::AddressType(kind)),
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else { return Ok(Event::More) };
    let target = endpoint(host, *port)?;
    Ok(Event::Connect { used: bytes.len() - rest.len(), target, user: &[] })
}

fn endpoint(host: Host, port: [u8; 2]) -> Result<Endpoint, SocksError> {
    match u16::from_be_bytes(port) {
        0 => Err(SocksError::Target(EndpointError::Port)),
        port => Ok(Endpoint { host, port }),
    }
}

/// Takes a request of version 4, all of which is one message. `bytes` are all that has come.
///
/// # Errors
/// The client is told that it failed, and the connection ends.
pub fn request4(bytes: &[u8]) -> Result<Event<'_>, SocksError> {
    match bytes {
        [version, ..] if *version != 4 => return Err(SocksError::Version),
        [_, command, ..] if *command != CONNECT => return Err(SocksError::Command(*command)),
        _ => {}
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<8>() else { return Ok(Event::More) };
    let [_, _, high, low, a, b, c, d] = *fixed;
    let Some((user, rest)) = terminated(rest)? else { return Ok(Event::More) };
    let (host, rest) = if [a, b, c] == [0, 0, 0] && d != 0 {
        let Some((name, rest)) = terminated(rest)? else { return Ok(Event::More) };
        (Host::parse(name).map_err(SocksError::Target)?, rest)
    } else {
        (Host::ip(IpAddr::V4(Ipv4Addr::new(a, b, c, d))), rest)
    };
    Ok(Event::Connect { used: bytes.len() - rest.len(), target: endpoint(host, [high, low])?, user })
}

/// A part of the input, and what follows it.
type Split<'a> = (&'a [u8], &'a [u8]);

/// What stands before a NUL, and what behind it; `None` when none has come.
fn terminated(bytes: &[u8]) -> Result<Option<Split<'_>>, SocksError> {
    match memchr::memchr(0, &bytes[..bytes.len().min(TEXT4_MAX + 1)]) {
        Some(at) => Ok(Some((&bytes[..at], &bytes[at + 1..]))),
        None if bytes.len() > TEXT4_MAX => Err(SocksError::TooLong),
        None => Ok(None),
    }
}

/// Writes the answer to a request of version 5 (RFC 1928 section 6). `bound` is our address towards the target.
pub fn reply5(outcome: Outcome, bound: Option<SocketAddr>, out: &mut Vec<u8>) {
    let code = match outcome {
        Outcome::Succeeded => 0,
        Outcome::Failed => 1,
        Outcome::NotAllowed => 2,
        Outcome::HostUnreachable => 4,
        Outcome::Refused => 5,
        Outcome::TimedOut => 6,
        Outcome::Command => 7,
        Outcome::AddressType => 8,
    };
    out.extend_from_slice(&[5, code, 0]);
    let bound = bound.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
    match bound.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(1);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&bound.port().to_be_bytes());
}

/// Writes the answer to a request of version 4: granted or not is all it can say.
pub fn reply4(outcome: Outcome, out: &mut Vec<u8>) {
    let code = match outcome {
        Outcome::Succeeded => 90,
        Outcome::Failed
        | Outcome::NotAllowed
        | Outcome::HostUnreachable
        | Outcome::Refused
        | Outcome::TimedOut
        | Outcome::Command
        | Outcome::AddressType => 91,
    };
    out.extend_from_slice(&[0, code, 0, 0, 0, 0, 0, 0]);
}

#[cfg(test)]
mod tests;
