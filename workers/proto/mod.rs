//! Protocol cores without I/O: bytes in, events out. Nothing here knows a socket, a clock or a file.

pub mod h1;
pub mod path;
pub mod proxy_header;

#[cfg(test)]
#[path = "../../fuzz/checks/mutations.rs"]
pub(crate) mod mutations;
