//! The only crate both the master and its workers know: what passes between them and how.
//!
//! It holds no policy. Nothing here reads a client's bytes.

pub mod accept;
pub mod allowances;
pub mod channel;
pub mod control;
pub mod descriptors;
pub mod fault;
pub mod forward;
pub mod handover;
pub mod ledger;
pub mod message;
pub mod origin;
pub mod remembered;
pub mod sealed;
pub mod shm;
pub mod snapshot;
pub mod state;
pub mod stats;
pub mod syn_filter;
pub mod tcp_info;
pub mod words;
pub mod write_now;

// What is shared with the fuzz targets names this crate as they do.
#[cfg(test)]
extern crate self as ipc;
#[cfg(test)]
mod fuzz;
