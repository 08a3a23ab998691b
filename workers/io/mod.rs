//! Moving bytes: one socket's reads and writes, and pipes for `splice(2)`.

pub mod socket;
pub mod splice;
