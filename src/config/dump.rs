//! A snapshot as TOML: the effective configuration, every default written out.
//!
//! Reads back as the same snapshot. What names of servers stand for at the time is said in comments.

mod forward;

use std::fmt::Write as _;
use std::path::Path;

use ipc::snapshot::{
    Balance, Dispatch, Dns, Group, HostMatch, Listener, LogFormat, LogTarget, Mode, NamedServer, Network, OnRemoval,
    ProxyVersion, Route, Snapshot, Target, TimeoutOverrides, Timeouts,
};

use super::check::{host_text, path_text};
use super::resolver::HOSTS;
use super::units::{format_duration, format_size};
use super::{Control, ProcessSettings};

/// Writes the configuration as TOML.
#[must_use]
pub fn dump(snapshot: &Snapshot, process: &ProcessSettings) -> String {
    let mut out = Toml(String::new());
    out.plain("workers", snapshot.workers);
    out.text(
        "dispatch",
        match snapshot.dispatch {
            Dispatch::LeastConnections => "least-connections",
            Dispatch::RoundRobin => "round-robin",
        },
    );
    if let Some(user) = &process.user {
        out.text("user", &user.name);
    }
    if let Some(group) = &process.group {
        out.text("group", &group.name);
    }
    out.duration("shutdown_timeout", snapshot.shutdown_timeout_ms);
    out.text(
        "on_removal",
        match snapshot.on_removal {
            OnRemoval::Keep => "keep",
            OnRemoval::Cut => "cut",
        },
    );
    match &process.control {
        Control::Derived => {}
        Control::Off => out.text("control", "off"),
        Control::At(path) => out.text("control", &format!("unix:{}", path.display())),
    }
    out.duration("worker_timeout", snapshot.worker_timeout_ms);
    out.duration("orphan_timeout", snapshot.orphan_timeout_ms);
    out.duration("upgrade_timeout", process.upgrade_timeout_ms);
    let proxies = snapshot.trusted_proxies.iter().map(network);
    out.plain("trusted_proxies", format_args!("[{}]", proxies.collect::<Vec<_>>().join(", ")));
    limits(&mut out, snapshot);
    dns(&mut out, snapshot, process);
    out.head("[access_log]");
    match &snapshot.access_log.to {
        LogTarget::Off => out.text("to", "off"),
        LogTarget::Stdout => out.text("to", "stdout"),
        LogTarget::File(path) => out.text("to", &path.to_string_lossy()),
    }
    out.text(
        "format",
        match snapshot.access_log.format {
            LogFormat::Combined => "combined",
            LogFormat::Json => "json",
        },
    );
    for listen in &snapshot.listeners {
        listener(&mut out, listen, snapshot, process);
    }
    for one in &snapshot.routes {
        route(&mut out, one, snapshot);
    }
    for one in &snapshot.groups {
        group(&mut out, one);
    }
    forward::tables(&mut out, snapshot, process);
    out.0
}

fn network(network: &Network) -> String {
    quote(&format!("{}/{}", network.address, network.prefix))
}

fn limits(out: &mut Toml, snapshot: &Snapshot) {
    let limits = &snapshot.limits;
    out.head("[limits]");
    out.size("head", limits.head_bytes.into());
    out.plain("fields", limits.head_fields);
    match limits.body_bytes {
        Some(bytes) => out.size("body", bytes),
        None => out.text("body", "none"),
    }
    out.count_or("connections", limits.connections, "auto");
    out.count_or("connections_per_address", limits.connections_per_address, "none");
    out.size("min_rate", limits.min_rate_bytes.into());
}

fn dns(out: &mut Toml, snapshot: &Snapshot, process: &ProcessSettings) {
    let Dns { servers, search, ndots, timeout_ms, attempts, rotate, hosts } = &snapshot.dns;
    let list = |texts: Vec<String>| format!("[{}]", texts.join(", "));
    out.head("[dns]");
    out.plain("servers", list(servers.iter().map(|server| quote(&server.to_string())).collect()));
    // All that it says is here.
    out.text("resolv_conf", "off");
    match &process.resolver.hosts {
        // It need not be there, but would have to be if it were written here.
        Some(path) if path == Path::new(HOSTS) && hosts.is_empty() => {
            out.comment(format_args!("hosts = {}, if it is there", quote(HOSTS)));
        }
        Some(path) => out.text("hosts", &path.to_string_lossy()),
        None => out.text("hosts", "off"),
    }
    out.plain("search", list(search.iter().map(|suffix| quote(suffix)).collect()));
    out.plain("ndots", ndots);
    out.duration("timeout", *timeout_ms);
    out.plain("attempts", attempts);
    out.plain("rotate", rotate);
}

fn listener(out: &mut Toml, listener: &Listener, snapshot: &Snapshot, process: &ProcessSettings) {
    out.head("[[listen]]");
    out.text("bind", &listener.bind.to_string());
    out.text(
        "mode",
        match listener.mode {
            Mode::Http => "http",
            Mode::Tcp => "tcp",
            Mode::Forward => "forward",
        },
    );
    if let Some(what) = &listener.forward {
        forward::listener(out, what);
    }
    if let Some(group) = listener.to.and_then(|id| snapshot.groups.get(usize::from(id))) {
        out.text("to", &group.name);
    }
    out.plain("backlog", listener.backlog);
    if let ipc::snapshot::Address::Unix(path) = &listener.bind
        && let Some(bits) = process.unix_permissions.get(path)
    {
        out.text("permissions", &format!("{bits:04o}"));
    }
    let proxies = &listener.proxy_protocol;
    if !proxies.is_off() {
        let from = proxies.from_unix.then(|| quote("unix")).into_iter().chain(proxies.from.iter().map(network));
        out.plain("proxy_protocol", format_args!("{{ from = [{}] }}", from.collect::<Vec<_>>().join(", ")));
    }
    if listener.mode != Mode::Tcp {
        out.plain("abort_on_close", listener.abort_on_close);
    }
    out.head("[listen.timeouts]");
    let Timeouts { header_ms, idle_ms, body_ms, write_ms, connect_ms, response_ms, server_ms, tunnel_ms } =
        listener.timeouts;
    out.duration("header", header_ms);
    out.duration("idle", idle_ms);
    out.duration("body", body_ms);
    out.duration("write", write_ms);
    out.duration("connect", connect_ms);
    out.duration("response", response_ms);
    out.duration("server", server_ms);
    out.duration("tunnel", tunnel_ms);
}

fn route(out: &mut Toml, route: &Route, snapshot: &Snapshot) {
    out.head("[[route]]");
    match (&route.host, host_text(&route.host)) {
        (HostMatch::Any, _) | (_, None) => {}
        (HostMatch::Exact(_) | HostMatch::Wildcard(_), Some(host)) => out.text("host", &host),
    }
    out.text("path", &path_text(&route.path));
    if let Some(group) = snapshot.groups.get(usize::from(route.to)) {
        out.text("to", &group.name);
    }
}

fn group(out: &mut Toml, group: &Group) {
    let key = format!("backends.{}", key(&group.name));
    out.head(&format!("[{key}]"));
    out.text(
        "balance",
        match group.balance {
            Balance::RoundRobin => "round-robin",
            Balance::LeastConnections => "least-connections",
            Balance::RandomTwo => "random-two",
            Balance::SourceHash => "source-hash",
            Balance::ConsistentHash => "consistent-hash",
        },
    );
    let mut servers = String::from("[");
    for server in &group.servers {
        let address = server.address.to_string();
        let name = if server.name == address { String::new() } else { format!("name = {}, ", quote(&server.name)) };
        let address = quote(&address);
        let (weight, backup) = (server.weight, server.backup);
        // Writing to a string cannot fail.
        let _ = write!(servers, "\n    {{ {name}address = {address}, weight = {weight}, backup = {backup} }},");
    }
    for NamedServer { name, target, weight, backup, known } in &group.names {
        let (key, weight) = match target {
            Target::Host { .. } => ("address", format!("weight = {weight}, ")),
            Target::Service { .. } => ("srv", String::new()),
        };
        let target = target.to_string();
        let name = if *name == target { String::new() } else { format!("name = {}, ", quote(name)) };
        let target = quote(&target);
        let _ = write!(servers, "\n    {{ {name}{key} = {target}, {weight}backup = {backup} }},");
        let now: Vec<String> = known.iter().map(|endpoint| endpoint.address.to_string()).collect();
        let _ = write!(servers, " # {}", if now.is_empty() { "does not resolve".to_owned() } else { now.join(" ") });
    }
    servers.push_str(if group.servers.is_empty() && group.names.is_empty() { "]" } else { "\n]" });
    out.plain("servers", servers);
    out.plain("tries", group.tries);
    out.plain("worker_header", group.worker_header);
    out.text(
        "send_proxy",
        match group.send_proxy {
            None => "off",
            Some(ProxyVersion::V1) => "v1",
            Some(ProxyVersion::V2) => "v2",
        },
    );
    if group.timeouts != TimeoutOverrides::default() {
        out.head(&format!("[{key}.timeouts]"));
        let TimeoutOverrides { body_ms, write_ms, connect_ms, response_ms, server_ms, tunnel_ms } = group.timeouts;
        let all = [
            ("body", body_ms),
            ("write", write_ms),
            ("connect", connect_ms),
            ("response", response_ms),
            ("server", server_ms),
            ("tunnel", tunnel_ms),
        ];
        for (key, ms) in all {
            if let Some(ms) = ms {
                out.duration(key, ms);
            }
        }
    }
    out.head(&format!("[{key}.keepalive]"));
    out.plain("idle_per_server", group.keepalive.idle_per_server);
    out.duration("idle_timeout", group.keepalive.idle_timeout_ms);
    out.count_or("max_per_server", group.keepalive.max_per_server, "none");
    out.head(&format!("[{key}.health]"));
    out.plain("failures", group.health.failures);
    out.duration("eject", group.health.eject_ms);
    out.duration("eject_max", group.health.eject_max_ms);
}

/// TOML text in the making.
struct Toml(String);

impl Toml {
    fn head(&mut self, text: &str) {
        self.0.push('\n');
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn plain(&mut self, key: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn comment(&mut self, text: impl std::fmt::Display) {
        let _ = writeln!(self.0, "# {text}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.plain(key, quote(value));
    }

    fn duration(&mut self, key: &str, ms: u32) {
        self.text(key, &format_duration(ms));
    }

    fn size(&mut self, key: &str, bytes: u64) {
        self.text(key, &format_size(bytes));
    }

    fn count_or(&mut self, key: &str, count: Option<u32>, word: &str) {
        match count {
            Some(count) => self.plain(key, count),
            None => self.text(key, word),
        }
    }
}

/// A TOML basic string.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A TOML key: bare where it can be.
fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { quote(name) }
}
