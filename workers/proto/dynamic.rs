//! The dynamic address exchange: a line of JSON by which a client says where its connection goes, and the line that
//! answers it. `docs/dynamic-exchange.md` describes it for those who write clients.
//!
//! Reading is strict: one object, no key twice, no key that is not known, nothing behind it in the line.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::endpoint::{Endpoint, EndpointError};

/// The longest line, its end included.
pub const MAX_BYTES: usize = 4096;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where to.
    pub target: Endpoint,
    /// Where the target's answer is to be delivered; `None` = on this connection, which becomes the relay.
    pub reply_to: Option<SocketAddr>,
    /// Who the client says it is.
    pub user: Option<String>,
    /// How it proves that.
    pub password: Option<String>,
}

/// The object as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    target: std::borrow::Cow<'a, str>,
    reply_to: Option<String>,
    user: Option<String>,
    password: Option<String>,
}

/// Why a line is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DynamicError {
    /// It does not end within [`MAX_BYTES`].
    TooLong,
    /// It is no JSON object of the keys there are.
    Json(String),
    /// `target` is none.
    Target(EndpointError),
    /// `reply_to` is no address with a port.
    ReplyTo,
    /// Only one of `user` and `password` is there, or one is empty.
    Credentials,
}

impl fmt::Display for DynamicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DynamicError::TooLong => write!(f, "the line does not end within {MAX_BYTES} bytes"),
            DynamicError::Json(why) => write!(f, "the line is not as it must be: {why}"),
            DynamicError::Target(error) => error.fmt(f),
            DynamicError::ReplyTo => f.write_str("`reply_to` is not IP:PORT with a port from 1 to 65535"),
            DynamicError::Credentials => f.write_str("`user` and `password` go together, and neither is empty"),
        }
    }
}

/// Reads the line that `bytes` begin with. `Ok(Some((request, n)))`: it is `bytes[..n]`. `Ok(None)`: its end has not
/// come.
///
/// # Errors
/// Why it is refused. The whole line decides, so that it does not matter in how many pieces it comes.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, DynamicError> {
    let window = &bytes[..bytes.len().min(MAX_BYTES)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if bytes.len() >= MAX_BYTES { Err(DynamicError::TooLong) } else { Ok(None) };
    };
    let line: Line<'_> = serde_json::from_slice(&window[..end]).map_err(|error| DynamicError::Json(bounded(&error)))?;
    let target = Endpoint::parse(line.target.as_bytes()).map_err(DynamicError::Target)?;
    let reply_to = match line.reply_to {
        Some(text) => Some(reply_address(&text).ok_or(DynamicError::ReplyTo)?),
        None => None,
    };
    match (&line.user, &line.password) {
        (None, None) => {}
        (Some(user), Some(password)) if !user.is_empty() && !password.is_empty() => {}
        (_, _) => return Err(DynamicError::Credentials),
    }
    let request = Request { target, reply_to, user: line.user, password: line.password };
    Ok(Some((request, end + 1)))
}

/// What is wrong, without what the client wrote: its message may repeat a long text.
fn bounded(error: &serde_json::Error) -> String {
    const MAX: usize = 120;
    let text = error.to_string();
    text[..text.floor_char_boundary(MAX)].chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn reply_address(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    let plain = match address {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(v6) => v6.scope_id() == 0 && v6.flowinfo() == 0,
    };
    (plain && address.port() != 0).then(|| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Why a client does not get what it wants, as the word in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The line is not as it must be.
    Malformed,
    /// The client must say who it is.
    AuthRequired,
    /// It is not who it says.
    AuthFailed,
    /// The rules do not allow the target.
    Denied,
    /// The rules do not allow the address for the reply.
    ReplyDenied,
    /// The user or the address has as much as it may have.
    Limited,
    /// The name has no address.
    Unresolved,
    /// No address of the target could be connected to.
    Unreachable,
    /// The target took too long.
    Timeout,
    /// The target's connection broke.
    Broken,
    /// The address for the reply could not be connected to, or did not take it.
    ReplyFailed,
    /// There is no room for it here now.
    Busy,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer<'a> {
    /// What comes next on the connection is relayed.
    Connected {
        /// Always true.
        ok: bool,
        /// Where it goes.
        address: SocketAddr,
    },
    /// The exchange with `reply_to` is over.
    Delivered {
        /// Always true.
        ok: bool,
        /// Where the request went.
        address: SocketAddr,
        /// Bytes that the target got.
        sent: u64,
        /// Bytes of the answer, all of which went to the address for the reply.
        delivered: u64,
    },
    /// Nothing comes of it.
    Failed {
        /// Always false.
        ok: bool,
        /// A word for programs.
        error: ErrorCode,
        /// A sentence for people.
        message: &'a str,
    },
}

impl Answer<'_> {
    /// Writes it with its line end.
    pub fn write(&self, out: &mut Vec<u8>) {
        // Strings and numbers written to memory: there is nothing that could fail.
        let _ = serde_json::to_writer(&mut *out, self);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests;
