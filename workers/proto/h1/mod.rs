//! HTTP/1.0 and HTTP/1.1 messages (RFC 9110, RFC 9112): heads, framing, chunked bodies, serialising.
//!
//! One verdict on framing is made once, in the head parsers; whatever is ambiguous is refused, and what goes out is
//! written anew from the parsed parts, so that no recipient can read a message differently from us.

pub mod body;
pub mod chunked;
pub mod error;
pub mod field;
pub mod head;
mod host;
mod lex;
pub mod list;
pub mod method;
pub mod request;
pub mod response;
pub mod span;
pub mod target;
pub mod upgrade;
pub mod write;

#[cfg(test)]
mod tests;
