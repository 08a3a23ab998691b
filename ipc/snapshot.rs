//! The checked configuration, as the master hands it to every worker.
//!
//! Everything here has been validated: indices are in range, names are unique, numbers are within their
//! bounds. A worker never sees configuration text. Durations are whole milliseconds, sizes are bytes.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::forward::{FailureLimits, Forward, User};
use crate::handover::ServerName;

/// One complete, checked configuration. Immutable once made; a reload makes a new one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Which configuration of this master it is: 1 at the start, one more with each reload.
    pub generation: u64,
    /// How many workers to run, 1 to 1024. `auto` has been resolved.
    pub workers: u16,
    /// How the master chooses the worker for a new connection.
    pub dispatch: Dispatch,
    /// What to listen on. Index = `ListenerId`.
    pub listeners: Vec<Listener>,
    /// Where the master's sockets really listen, with the ports that the kernel chose: the master fills it in.
    pub listening: Vec<SocketAddr>,
    /// HTTP routes. Their order does not matter: the most specific host wins (exact, then the longest wildcard,
    /// then any), within it the most specific path (exact, then the longest prefix); a host without a matching
    /// path falls back to the next less specific host. No two have the same host and path.
    pub routes: Vec<Route>,
    /// Backend groups. Index = `GroupId`.
    pub groups: Vec<Group>,
    /// Bounds that hold for every listener.
    pub limits: Limits,
    /// Where and how requests are logged.
    pub access_log: AccessLog,
    /// Who may prove to be whom on forward listeners; no two have the same name.
    pub users: Vec<User>,
    /// How many wrong passwords there may be.
    pub failures: FailureLimits,
    /// Peers whose `X-Forwarded-*` and `Forwarded` fields are believed and appended to.
    pub trusted_proxies: Vec<Network>,
    /// How long a graceful stop waits for requests in progress.
    pub shutdown_timeout_ms: u32,
    /// What a reload does with relays whose listener or group it takes out.
    pub on_removal: OnRemoval,
    /// A worker whose loop has not turned for so long is killed and replaced.
    pub worker_timeout_ms: u32,
    /// How long workers whose master has died serve on and wait for another master.
    pub orphan_timeout_ms: u32,
    /// How names are resolved.
    pub dns: Dns,
}

/// Index into [`Snapshot::listeners`]. A listener keeps it through all reloads, and no other gets it while a
/// connection that was accepted there is left.
pub type ListenerId = u16;
/// Index into [`Snapshot::groups`].
pub type GroupId = u16;

/// How the master chooses among workers that have room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dispatch {
    /// The worker with the fewest open connections.
    LeastConnections,
    /// Each worker in turn.
    RoundRobin,
}

/// What becomes of TCP relays and tunnels when a reload takes out their listener or their group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnRemoval {
    /// They go on to their own end.
    Keep,
    /// Both connections are reset.
    Cut,
}

/// A socket address, of either family we speak.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// IPv4 or IPv6 with a port.
    Inet(SocketAddr),
    /// A stream socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(addr) => addr.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An IP network in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Any address within the network.
    pub address: IpAddr,
    /// Prefix length in bits: 0 to 32, or 0 to 128.
    pub prefix: u8,
}

impl Network {
    /// Whether `ip` lies in this network. An IPv4-mapped IPv6 address counts as its IPv4 address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address.to_canonical(), ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
                (net.to_bits() ^ ip.to_bits()) & mask == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix.min(128))).unwrap_or(0);
                (net.to_bits() ^ ip.to_bits()) & mask == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// HTTP/1.0 and HTTP/1.1, routed by [`Snapshot::routes`].
    Http,
    /// Bytes, relayed as they come.
    Tcp,
    /// Whatever [`Listener::forward`] says, to targets that the clients name.
    Forward,
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Where it is bound.
    pub bind: Address,
    /// What is spoken.
    pub mode: Mode,
    /// The group every connection (TCP) or request (HTTP) goes to; `None` = by the routes (HTTP only).
    pub to: Option<GroupId>,
    /// Length of the kernel's queue, 1 to 65535.
    pub backlog: u32,
    /// The effective time limits here, global ones and defaults merged in.
    pub timeouts: Timeouts,
    /// No longer configured: nothing is accepted there any more. What it was is kept for the connections that are
    /// left; an HTTP connection ends with its next response.
    pub removed: bool,
    /// From whom connections begin with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
    /// Whether a request is given up when its client closes its sending side before the answer begins (HTTP).
    pub abort_on_close: bool,
    /// What a forward listener does; `None` exactly with the other modes.
    pub forward: Option<Box<Forward>>,
}

/// Whose connections begin with a PROXY header. Theirs must; those of others must not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProxyProtocol {
    /// Proxies in front, by their addresses.
    pub from: Vec<Network>,
    /// Whoever connects to the Unix socket.
    pub from_unix: bool,
}

impl ProxyProtocol {
    /// Whether a connection from `peer` (`None` = on a Unix socket) begins with a header.
    #[must_use]
    pub fn is_expected(&self, peer: Option<IpAddr>) -> bool {
        match peer {
            Some(ip) => self.from.iter().any(|network| network.contains(ip)),
            None => self.from_unix,
        }
    }

    /// Whether no connection does.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.from.is_empty() && !self.from_unix
    }
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// All time limits, in milliseconds, each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From the first byte of a request head to its last.
    pub header_ms: u32,
    /// A client connection without a request.
    pub idle_ms: u32,
    /// Between two reads of a request body.
    pub body_ms: u32,
    /// Between two writes to a client that does not read.
    pub write_ms: u32,
    /// Connecting to one server.
    pub connect_ms: u32,
    /// From the whole request sent to the response head received.
    pub response_ms: u32,
    /// Between two reads from, or writes to, a server.
    pub server_ms: u32,
    /// A TCP relay or tunnel on which nothing moves, either way.
    pub tunnel_ms: u32,
}

/// The same, where a backend group sets some of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TimeoutOverrides {
    /// See [`Timeouts::body_ms`].
    pub body_ms: Option<u32>,
    /// See [`Timeouts::write_ms`].
    pub write_ms: Option<u32>,
    /// See [`Timeouts::connect_ms`].
    pub connect_ms: Option<u32>,
    /// See [`Timeouts::response_ms`].
    pub response_ms: Option<u32>,
    /// See [`Timeouts::server_ms`].
    pub server_ms: Option<u32>,
    /// See [`Timeouts::tunnel_ms`].
    pub tunnel_ms: Option<u32>,
}

impl Timeouts {
    /// These limits with a group's own put over them.
    #[must_use]
    pub fn with(mut self, over: &TimeoutOverrides) -> Timeouts {
        let put = |slot: &mut u32, value: Option<u32>| *slot = value.unwrap_or(*slot);
        put(&mut self.body_ms, over.body_ms);
        put(&mut self.write_ms, over.write_ms);
        put(&mut self.connect_ms, over.connect_ms);
        put(&mut self.response_ms, over.response_ms);
        put(&mut self.server_ms, over.server_ms);
        put(&mut self.tunnel_ms, over.tunnel_ms);
        self
    }
}

/// One routing rule: where both parts match, the request goes to `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Which hosts.
    pub host: HostMatch,
    /// Which paths.
    pub path: PathMatch,
    /// The group.
    pub to: GroupId,
}

/// Matches the host of a request (RFC 9110 section 7.2), without its port, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMatch {
    /// Every host.
    Any,
    /// This one, in lower case.
    Exact(String),
    /// `*.rest`: exactly one label in front of this suffix; the suffix begins with a dot, in lower case.
    Wildcard(String),
}

/// Matches the path of a request target, the query excluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatch {
    /// Paths that begin so; `/` matches all.
    Prefix(String),
    /// This path only.
    Exact(String),
}

/// How a server is chosen within a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balance {
    /// Smooth weighted round robin, as nginx does it.
    RoundRobin,
    /// The fewest requests in progress per weight.
    LeastConnections,
    /// The better of two chosen at random.
    RandomTwo,
    /// By the client's address: the same client, the same server while the set is unchanged.
    SourceHash,
    /// By the client's address on a ring: few clients move when the set changes.
    ConsistentHash,
}

/// A group of servers that do the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its name in the configuration.
    pub name: String,
    /// How to choose.
    pub balance: Balance,
    /// The servers that are given by their address.
    pub servers: Vec<Server>,
    /// The servers that are given by a name. While none of them has an address and `servers` is empty, requests are
    /// answered with 503.
    pub names: Vec<NamedServer>,
    /// Time limits of its own.
    pub timeouts: TimeoutOverrides,
    /// Servers tried for one request or connection, the first included; 1 to 16.
    pub tries: u8,
    /// Bounds of the kept connections.
    pub keepalive: KeepAlive,
    /// When a server counts as failed.
    pub health: Health,
    /// Adds `X-Pointsman-Worker: <pid>` to requests, to see which worker served one.
    pub worker_header: bool,
    /// No longer configured: kept for connections of a removed listener.
    pub removed: bool,
    /// Begins each connection to a server with a PROXY header; it then serves one client's connection only.
    pub send_proxy: Option<ProxyVersion>,
}

/// One server of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// The same through all reloads for the same address in a group of the same name, and never another's.
    pub number: u64,
    /// As written in the configuration, for logs.
    pub name: String,
    /// Where to connect.
    pub address: Address,
    /// Its share, 1 to 1000.
    pub weight: u16,
    /// Used only while no other server is available.
    pub backup: bool,
}

/// A name that stands for servers of a group: for as many as it has addresses, at the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedServer {
    /// As written in the configuration, for logs.
    pub name: String,
    /// What to ask for.
    pub target: Target,
    /// The share of each address, 1 to 1000. Of no meaning for [`Target::Service`], whose records have their own.
    pub weight: u16,
    /// Used only while no other server is available.
    pub backup: bool,
    /// What it stood for when the configuration was read: workers begin with this.
    pub known: Vec<Endpoint>,
}

/// Marks the numbers of servers given by name; the master counts those of the others up from 0.
pub const NUMBER_OF_NAME: u64 = 1 << 63;

/// The number of a server given by name: the same in every process for the same address in a group of the same name,
/// without anybody handing it out. Two servers have the same one with a probability of 2^-63; then relays are counted
/// for the wrong one.
#[must_use]
pub fn number_of_name(group: &str, address: &SocketAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (group, address).hash(&mut hasher);
    hasher.finish() | NUMBER_OF_NAME
}

/// A name to be looked up, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// A host's addresses, with a port.
    Host {
        /// The host.
        name: String,
        /// The port.
        port: u16,
    },
    /// The hosts and ports of a service (SRV records, RFC 2782).
    Service {
        /// The service's name, such as `_http._tcp.app.internal`.
        name: String,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Host { name, port } => write!(f, "{name}:{port}"),
            Target::Service { name } => f.write_str(name),
        }
    }
}

/// One of the addresses that a [`Target`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// Its share as an SRV record gives it, 1 to 1000; `None` = as the configuration says.
    pub weight: Option<u16>,
    /// Of a priority after others: used only while none of those is available.
    pub backup: bool,
}

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers in the order in which they are asked, at most [`Dns::SERVERS_MAX`]. With none, only
    /// `hosts` is known.
    pub servers: Vec<SocketAddr>,
    /// Suffixes tried for names with fewer dots than `ndots`, at most [`Dns::SEARCH_MAX`], in lower case.
    pub search: Vec<String>,
    /// Dots from which on a name is taken as it is, 0 to 15.
    pub ndots: u8,
    /// How long one server may take, 1 to 30,000.
    pub timeout_ms: u32,
    /// How often each server is asked, 1 to 5.
    pub attempts: u8,
    /// Begins with another server each time.
    pub rotate: bool,
    /// Names with addresses of their own, in lower case, sorted and each once; they are not asked for.
    pub hosts: Vec<(String, Vec<IpAddr>)>,
}

impl Dns {
    /// Name servers at most.
    pub const SERVERS_MAX: usize = 8;
    /// Search suffixes at most.
    pub const SEARCH_MAX: usize = 16;
}

impl Default for Dns {
    fn default() -> Dns {
        Dns {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout_ms: 2000,
            attempts: 2,
            rotate: false,
            hosts: Vec::new(),
        }
    }
}

/// Idle connections to servers, kept by each worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAlive {
    /// At most so many idle connections to one server; 0 = close after each request.
    pub idle_per_server: u32,
    /// How long an idle connection is kept.
    pub idle_timeout_ms: u32,
    /// Open connections to one server at most, idle or not; `None` = no bound of its own.
    pub max_per_server: Option<u32>,
}

/// Passive health: what a server's failures lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Failures in a row that eject a server; 0 = never eject.
    pub failures: u32,
    /// The first ejection's length; it doubles with each further one.
    pub eject_ms: u32,
    /// The longest ejection.
    pub eject_max_ms: u32,
}

/// Bounds on what a client may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// A request or response head, start line included, in bytes; 1 KiB to 256 KiB.
    pub head_bytes: u32,
    /// Fields in one head, 8 to 1000.
    pub head_fields: u16,
    /// A request body in bytes; `None` = no bound.
    pub body_bytes: Option<u64>,
    /// Client connections of one worker, 1 to 1,000,000; `None` = as many as the limit of open files allows.
    pub connections: Option<u32>,
    /// Client connections from one IP address, over all workers; `None` = no bound.
    pub connections_per_address: Option<u32>,
    /// Bytes per second below which a client that is waited for is given up (averaged); 0 = no minimum.
    pub min_rate_bytes: u32,
}

/// Where requests are logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLog {
    /// Off, standard output or a file.
    pub to: LogTarget,
    /// How a line looks.
    pub format: LogFormat,
}

/// The access log's destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// No access log.
    Off,
    /// The master's standard output.
    Stdout,
    /// A file, opened by the master for appending and again on SIGUSR1.
    File(PathBuf),
}

/// The access log's line format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// The combined format of the Apache server, with our fields behind it.
    Combined,
    /// One JSON object a line.
    Json,
}

/// Room for body bytes behind the longest head, in bytes.
const BODY_ROOM: u32 = 16 * 1024;

impl Snapshot {
    /// The name of the server with this number, for another master; `None` when there is none.
    #[must_use]
    pub fn server_name(&self, number: u64) -> Option<ServerName> {
        if number & NUMBER_OF_NAME != 0 {
            return self.groups.iter().find_map(|group| {
                let mut known = group.names.iter().flat_map(|named| &named.known);
                let endpoint = known.find(|one| number_of_name(&group.name, &one.address) == number)?;
                Some(ServerName { group: group.name.clone(), address: Address::Inet(endpoint.address) })
            });
        }
        self.groups.iter().find_map(|group| {
            let server = group.servers.iter().find(|server| server.number == number)?;
            Some(ServerName { group: group.name.clone(), address: server.address.clone() })
        })
    }

    /// The number of the server that another master called `name`: that of the same address in the group of the same
    /// name, if there is one.
    #[must_use]
    pub fn server_number(&self, name: &ServerName) -> Option<u64> {
        let group = self.groups.iter().find(|group| group.name == name.group && !group.removed)?;
        let server = group.servers.iter().find(|server| server.address == name.address).map(|server| server.number);
        match &name.address {
            // Whether it is among them only the workers know; of one that is not they make nothing.
            Address::Inet(address) if !group.names.is_empty() => {
                server.or_else(|| Some(number_of_name(&group.name, address)))
            }
            Address::Inet(_) | Address::Unix(_) => server,
        }
    }

    /// The smallest head buffer that holds any allowed head and still leaves room for body bytes.
    #[must_use]
    pub fn slot_bytes(&self) -> u32 {
        (self.limits.head_bytes + BODY_ROOM).next_multiple_of(4096)
    }

    /// The longest head that buffers of `slot_bytes` have that room for.
    #[must_use]
    pub fn head_bytes_within(slot_bytes: u32) -> u32 {
        slot_bytes.saturating_sub(BODY_ROOM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str, prefix: u8) -> Network {
        Network { address: text.parse().unwrap(), prefix }
    }

    #[test]
    fn numbers_of_names_go_by_group_and_address() {
        let address = |text: &str| text.parse().unwrap();
        let number = number_of_name("g", &address("10.0.0.1:80"));
        assert_eq!(number, number_of_name("g", &address("10.0.0.1:80")));
        assert_ne!(number, number_of_name("h", &address("10.0.0.1:80")));
        assert_ne!(number, number_of_name("g", &address("10.0.0.1:81")));
        assert!(number >= NUMBER_OF_NAME);
    }

    #[test]
    fn networks_contain_their_addresses() {
        let ip = |t: &str| t.parse::<IpAddr>().unwrap();
        assert!(net("10.0.0.0", 8).contains(ip("10.255.1.2")));
        assert!(!net("10.0.0.0", 8).contains(ip("11.0.0.1")));
        assert!(net("0.0.0.0", 0).contains(ip("203.0.113.9")));
        assert!(net("192.0.2.7", 32).contains(ip("192.0.2.7")));
        assert!(!net("192.0.2.7", 32).contains(ip("192.0.2.6")));
        assert!(net("10.0.0.0", 8).contains(ip("::ffff:10.1.1.1")));
        assert!(net("2001:db8::", 32).contains(ip("2001:db8:1::1")));
        assert!(!net("2001:db8::", 32).contains(ip("2001:db9::1")));
        assert!(!net("::", 0).contains(ip("10.0.0.1")));
    }
}
