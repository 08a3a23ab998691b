//! Everything one worker process does: HTTP and TCP relaying, balancing, pools, access log.

pub mod access_log;
pub mod backend;
pub mod balance;
pub mod date;
pub mod route;
pub mod slab;
pub mod timers;
