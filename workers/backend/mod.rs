//! The servers that requests and connections are relayed to.

pub mod health;
