//! The servers that requests and connections are relayed to.

pub mod connect;
pub mod health;
pub mod names;
pub mod pool;
mod renew;
mod said;
pub mod upstream;

pub use upstream::{Upstream, UpstreamState};
