//! One request and its response, from the client's head to the last body byte.

pub mod rewrite;
