//! Protocol cores without I/O: bytes in, events out. Nothing here knows a socket, a clock or a file.

pub mod dynamic;
pub mod endpoint;
pub mod foreign;
pub mod h1;
pub mod path;
pub mod proxy_header;
pub mod socks;

#[cfg(test)]
#[path = "../../fuzz/checks/mutations.rs"]
pub(crate) mod mutations;
