//! Everything one worker process does: HTTP and TCP relaying, balancing, pools, access log.

pub mod exchange;
pub mod proto;
