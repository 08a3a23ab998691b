//! Integration tests: the real binary, real sockets, real signals. One module a subject.
//!
//! One crate rather than one a file, so that the binary is linked once.

// Tests say what went wrong by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod balance;
mod chosen_ports;
mod cli;
mod continuity;
mod deliveries;
mod dns;
mod forward;
mod forward_auth;
mod forward_clients;
mod forward_life;
mod forward_protocols;
mod forward_rules;
mod forward_targets;
mod generations;
mod hostile;
mod http_bodies;
mod http_connections;
mod http_errors;
mod http_fields;
mod http_semantics;
mod http_strict;
mod http_strict_responses;
mod in_hand;
mod kills;
mod kills_interim;
mod limits;
mod log_facts;
mod log_lost;
mod log_tunnels;
mod logs;
mod master_kills;
mod memory;
mod no_ipv6;
mod own_log;
mod pace;
mod protection;
mod proxy_protocol;
mod proxy_protocol_kills;
mod random;
mod real_clients;
mod refused_calls;
mod reload;
mod renewal;
mod replacement;
mod send_proxy;
mod server_connections;
mod service;
mod soak;
mod succession;
mod succession_parley;
mod succession_relays;
mod tcp;
mod timeouts;
mod unix_kills;
mod upgrade;
mod without_master;
mod workers;
