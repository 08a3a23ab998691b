//! Forward listeners: clients name their targets, and rules say which they may reach.
//!
//! [`special`] knows the addresses that nobody reaches by chance, [`rules`] decides about one address.

pub mod auth;
pub mod race;
pub mod rules;
pub mod special;
pub mod uses;
