//! The configuration as written: types and numbers are right, what they refer to is not yet known.
//!
//! Spans are byte ranges of the source text. No defaults here.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;

use ipc::forward::{Action, NameMatch, PortRange, Subject};
use ipc::snapshot::{
    Address, Balance, Dispatch, HostMatch, LogFormat, LogTarget, Mode, Network, OnRemoval, PathMatch, ProxyVersion,
    TimeoutOverrides,
};

use super::address::ServerAddress;
use super::{Control, Workers};

/// A byte range of the source.
pub type Span = Range<usize>;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Span,
}

/// A setting whose absence means something else than its being wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Given<T> {
    /// Not written.
    Absent,
    /// Written, but wrong; it has been reported.
    Wrong,
    /// As wanted.
    Is(At<T>),
}

impl<T> Given<T> {
    /// A look at the value with its place, if there is a right one.
    pub fn as_ref(&self) -> Option<&At<T>> {
        match self {
            Given::Is(at) => Some(at),
            Given::Absent | Given::Wrong => None,
        }
    }

    /// The value with its place, if there is a right one.
    pub fn at(self) -> Option<At<T>> {
        match self {
            Given::Is(at) => Some(at),
            Given::Absent | Given::Wrong => None,
        }
    }

    /// The value, if there is a right one.
    pub fn value(self) -> Option<T> {
        self.at().map(|at| at.value)
    }
}

/// A whole file.
#[derive(Debug, Default)]
pub struct File {
    pub workers: Option<Workers>,
    pub dispatch: Option<Dispatch>,
    pub user: Option<At<String>>,
    pub group: Option<At<String>>,
    pub shutdown_timeout_ms: Option<u32>,
    pub on_removal: Option<OnRemoval>,
    pub control: Option<At<Control>>,
    pub worker_timeout_ms: Option<u32>,
    pub orphan_timeout_ms: Option<u32>,
    pub upgrade_timeout_ms: Option<u32>,
    pub trusted_proxies: Vec<At<Network>>,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub dns: Dns,
    pub log_to: Option<At<LogTarget>>,
    pub log_format: Option<LogFormat>,
    pub listen: Vec<Listen>,
    pub routes: Vec<Route>,
    pub groups: Vec<Group>,
    pub rule_sets: Vec<RuleSet>,
    pub users: Option<Users>,
}

/// Time limits, as far as they are set.
#[derive(Debug, Default)]
pub struct Timeouts {
    pub header_ms: Option<u32>,
    pub idle_ms: Option<u32>,
    /// Those that a backend group may set too.
    pub common: TimeoutOverrides,
}

/// `[limits]`. The inner option is "none", or "auto" for `connections`.
#[derive(Debug, Default)]
pub struct Limits {
    pub head_bytes: Option<u32>,
    pub head_fields: Option<u16>,
    pub body_bytes: Option<Option<u64>>,
    pub connections: Option<Option<u32>>,
    pub connections_per_address: Option<Option<u32>>,
    pub min_rate_bytes: Option<u32>,
}

/// `[dns]`. The inner option of the files is "off".
#[derive(Debug, Default)]
pub struct Dns {
    pub servers: Option<Vec<SocketAddr>>,
    pub resolv_conf: Option<At<Option<PathBuf>>>,
    pub hosts: Option<At<Option<PathBuf>>>,
    pub search: Option<Vec<String>>,
    pub ndots: Option<u8>,
    pub timeout_ms: Option<u32>,
    pub attempts: Option<u8>,
    pub rotate: Option<bool>,
}

/// One `[[listen]]`.
#[derive(Debug)]
pub struct Listen {
    pub span: Span,
    /// `None` = missing or wrong, and reported.
    pub bind: Option<At<Address>>,
    pub mode: Given<Mode>,
    pub to: Given<String>,
    pub backlog: Option<u32>,
    pub permissions: Option<At<u32>>,
    pub timeouts: Timeouts,
    /// `from` of `proxy_protocol`.
    pub proxy_protocol: Vec<At<ProxySource>>,
    pub abort_on_close: Option<bool>,
    /// As numbers in the order of [`ipc::forward::Protocols::named`].
    pub protocols: Given<Vec<usize>>,
    /// The name of a rule set.
    pub rules: Given<String>,
}

/// One `[rules.NAME]`.
#[derive(Debug)]
pub struct RuleSet {
    pub name: At<String>,
    pub auth: Option<At<bool>>,
    /// The inner option is "none".
    pub lifetime_ms: Option<Option<u32>>,
    pub rules: Vec<Rule>,
    pub per_user: Option<At<UseLimits>>,
    pub per_address: Option<At<UseLimits>>,
}

/// One entry of `list`. Lists without entries are not written.
#[derive(Debug)]
pub struct Rule {
    /// `None` = missing or wrong, and reported.
    pub action: Option<Action>,
    pub subject: Option<Subject>,
    pub clients: Vec<At<Network>>,
    pub users: Vec<At<String>>,
    pub names: Vec<At<NameMatch>>,
    pub networks: Vec<At<Network>>,
    pub ports: Vec<PortRange>,
}

/// `[users]`. The inner options are "none".
#[derive(Debug)]
pub struct Users {
    pub file: At<PathBuf>,
    /// Wrong passwords for one name from one address.
    pub per_minute: Option<Option<u32>>,
    /// Wrong passwords from one address.
    pub per_minute_address: Option<Option<u32>>,
}

/// What one user or one address may use. The inner option is "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UseLimits {
    pub connections: Option<Option<u32>>,
    pub connections_per_second: Option<Option<u32>>,
    pub rate_bytes: Option<Option<u64>>,
}

/// From whom PROXY headers are expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxySource {
    Network(Network),
    /// Whoever connects to the Unix socket.
    Unix,
}

/// One `[[route]]`.
#[derive(Debug)]
pub struct Route {
    pub span: Span,
    pub host: Given<HostMatch>,
    pub path: Given<PathMatch>,
    /// `None` = missing or wrong, and reported.
    pub to: Option<At<String>>,
}

/// One `[backends.NAME]`.
#[derive(Debug)]
pub struct Group {
    pub name: At<String>,
    pub balance: Option<Balance>,
    pub servers: Vec<Server>,
    /// Where an empty list of servers stands.
    pub no_servers: Option<Span>,
    pub timeouts: TimeoutOverrides,
    pub tries: Option<u8>,
    pub keepalive: KeepAlive,
    pub health: Health,
    pub worker_header: Option<bool>,
    /// The inner option is "off".
    pub send_proxy: Option<Option<ProxyVersion>>,
}

/// One entry of `servers`.
#[derive(Debug)]
pub struct Server {
    pub address: At<ServerAddress>,
    /// For logs: `name`, else the address as written.
    pub name: String,
    pub weight: Option<u16>,
    pub backup: Option<bool>,
}

/// `keepalive`. The inner option is "none".
#[derive(Debug, Default)]
pub struct KeepAlive {
    pub idle_per_server: Option<u32>,
    pub idle_timeout_ms: Option<u32>,
    pub max_per_server: Option<Option<u32>>,
}

/// `health`.
#[derive(Debug, Default)]
pub struct Health {
    pub failures: Option<u32>,
    pub eject_ms: Option<u32>,
    pub eject_max: Option<At<u32>>,
}
