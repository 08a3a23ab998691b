//! Syntax to snapshot: what names refer to, what contradicts what, and the defaults.
//!
//! Every fault goes into the report; a snapshot is handed out only when there is no error in it.

mod forward;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use ipc::forward::RuleSet;
use ipc::snapshot::{
    AccessLog, Address, Dispatch, Endpoint, Group, GroupId, Health, HostMatch, KeepAlive, Limits, Listener, LogFormat,
    LogTarget, Mode, NamedServer, Network, OnRemoval, PathMatch, ProxyProtocol, Route, Server, Snapshot, Target,
    TimeoutOverrides, Timeouts,
};

use super::address::{ServerAddress, conflict, first_of};
use super::report::{Diagnostic, Report, quoted};
use super::suggest::nearest;
use super::syntax::{self, At, File, Given, ProxySource, Span};
use super::system::System;
use super::units::format_duration;
use super::{Control, Loaded, ProcessSettings, Workers};

mod names;

/// The address listened on when none is configured.
pub const DEFAULT_BIND: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// The time limits that hold where none are configured.
pub const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    header_ms: 30_000,
    idle_ms: 75_000,
    body_ms: 30_000,
    write_ms: 30_000,
    connect_ms: 2000,
    response_ms: 60_000,
    server_ms: 60_000,
    tunnel_ms: 3_600_000,
};

/// Connecting to a target that a client names: it may be far away, and a lost packet is sent again after a second.
const DEFAULT_FORWARD_CONNECT_MS: u32 = 10_000;
const DEFAULT_SHUTDOWN_MS: u32 = 30_000;
const DEFAULT_WORKER_TIMEOUT_MS: u32 = 10_000;
const DEFAULT_ORPHAN_TIMEOUT_MS: u32 = 60_000;
/// How long the successor of an upgrade may take to become ready.
const DEFAULT_UPGRADE_TIMEOUT_MS: u32 = 30_000;
/// The kernel lowers it to `net.core.somaxconn`.
const DEFAULT_BACKLOG: u32 = 4096;
const DEFAULT_TRIES: u8 = 3;
/// A worker_timeout below which healthy workers are in danger.
const HASTY_MS: u32 = 1000;

const DEFAULT_KEEPALIVE: KeepAlive = KeepAlive { idle_per_server: 64, idle_timeout_ms: 60_000, max_per_server: None };
const DEFAULT_HEALTH: Health = Health { failures: 3, eject_ms: 5000, eject_max_ms: 60_000 };
const DEFAULT_LIMITS: Limits = Limits {
    head_bytes: 16 * 1024,
    head_fields: 100,
    body_bytes: None,
    connections: None,
    connections_per_address: None,
    min_rate_bytes: 256,
};

/// Checks `file` as a whole and fills in the defaults.
///
/// # Errors
/// `report` with all that was added to it, when an error is among it.
pub fn check(file: File, source: Option<PathBuf>, system: &dyn System, report: Report) -> Result<Loaded, Report> {
    let names = file.groups.iter().zip(0..).map(|(group, id)| (group.name.value.clone(), id)).collect();
    let connect_set = file.timeouts.common.connect_ms.is_some();
    let mut check = Check {
        report,
        system,
        names,
        resolved: HashMap::new(),
        rules: HashMap::new(),
        users_whole: false,
        connect_set,
    };
    let mut process = ProcessSettings { source, ..ProcessSettings::default() };
    check.accounts(&file, &mut process);
    process.control = check.control(&file);
    process.upgrade_timeout_ms = file.upgrade_timeout_ms.unwrap_or(DEFAULT_UPGRADE_TIMEOUT_MS);
    let global = merged(DEFAULT_TIMEOUTS, &file.timeouts);
    let failures = Check::failures(&file);
    let (users_file, users) = check.users(&file);
    check.rule_sets(&file, users_file.is_some().then_some(&users));
    process.users_file = users_file;
    let routed = !file.routes.is_empty();
    let listeners = check.listeners(&file.listen, routed, &global, &mut process.unix_permissions);
    let routes = check.routes(&file.routes);
    check.usage(&file);
    let dns = check.dns(&file, &mut process);
    check.resolve(&file, &dns);
    let mut groups: Vec<Group> = file.groups.iter().map(|group| check.group(group)).collect();
    for (server, number) in groups.iter_mut().flat_map(|group| &mut group.servers).zip(0..) {
        server.number = number;
    }
    check.networks(&file);
    check.access_log(&file);
    check.patience(&file);
    let snapshot = Snapshot {
        generation: 1,
        workers: match file.workers.unwrap_or(Workers::Auto) {
            Workers::Count(count) => count,
            Workers::Auto => u16::try_from(system.cores()).unwrap_or(u16::MAX).clamp(1, 1024),
        },
        dispatch: file.dispatch.unwrap_or(Dispatch::LeastConnections),
        listeners,
        listening: Vec::new(),
        routes,
        groups,
        limits: limits(&file.limits),
        access_log: AccessLog {
            to: file.log_to.map_or(LogTarget::Off, |at| at.value),
            format: file.log_format.unwrap_or(LogFormat::Combined),
        },
        users,
        failures,
        trusted_proxies: file.trusted_proxies.into_iter().map(|at| at.value).collect(),
        shutdown_timeout_ms: file.shutdown_timeout_ms.unwrap_or(DEFAULT_SHUTDOWN_MS),
        on_removal: file.on_removal.unwrap_or(OnRemoval::Keep),
        worker_timeout_ms: file.worker_timeout_ms.unwrap_or(DEFAULT_WORKER_TIMEOUT_MS),
        orphan_timeout_ms: file.orphan_timeout_ms.unwrap_or(DEFAULT_ORPHAN_TIMEOUT_MS),
        dns,
    };
    let mut report = check.report;
    report.sort();
    if report.has_errors() { Err(report) } else { Ok(Loaded { snapshot, process, warnings: report }) }
}

struct Check<'s> {
    report: Report,
    system: &'s dyn System,
    names: HashMap<String, GroupId>,
    /// The sets of rules by their names.
    rules: HashMap<String, RuleSet>,
    /// Whether all of the file of users could be read.
    users_whole: bool,
    /// Whether a time limit for connecting is set for all.
    connect_set: bool,
    /// What the servers' names stand for, or why they stand for nothing.
    resolved: HashMap<Target, Result<Vec<Endpoint>, String>>,
}

impl Check<'_> {
    fn accounts(&mut self, file: &File, process: &mut ProcessSettings) {
        if let Some(user) = &file.user {
            process.user = self.account("user", "getent passwd", user, self.system.user(&user.value));
        }
        if let Some(group) = &file.group {
            process.group = self.account("group", "getent group", group, self.system.group(&group.value));
        }
    }

    fn account<T>(
        &mut self,
        what: &str,
        tool: &str,
        name: &At<String>,
        found: std::io::Result<Option<T>>,
    ) -> Option<T> {
        let diagnostic = match found {
            Ok(Some(account)) => return Some(account),
            Ok(None) => Diagnostic::error(format!("there is no {what} {} on this system", quoted(&name.value)))
                .help(format!("`{tool}` lists those there are")),
            Err(error) => Diagnostic::error(format!("cannot look up the {what} {}: {error}", quoted(&name.value))),
        };
        self.report.push(diagnostic.at(name.span.clone(), ""));
        None
    }

    fn listeners(
        &mut self,
        listen: &[syntax::Listen],
        routed: bool,
        global: &Timeouts,
        unix_permissions: &mut BTreeMap<PathBuf, u32>,
    ) -> Vec<Listener> {
        if listen.is_empty() {
            if !routed {
                self.report.push(
                    Diagnostic::error(format!(
                        "nothing to do with requests to {DEFAULT_BIND}, where HTTP is served by default"
                    ))
                    .help(format!("add a route, as in:\n{}", self.example_route())),
                );
            }
            return vec![Listener {
                bind: Address::Inet(DEFAULT_BIND),
                mode: Mode::Http,
                to: None,
                backlog: DEFAULT_BACKLOG,
                timeouts: *global,
                removed: false,
                proxy_protocol: ProxyProtocol::default(),
                abort_on_close: false,
                forward: None,
            }];
        }
        let mut binds: Vec<&At<Address>> = Vec::new();
        let mut listeners = Vec::new();
        for listen in listen {
            let mode = match &listen.mode {
                Given::Is(mode) => Some(mode.value),
                Given::Absent => Some(Mode::Http),
                Given::Wrong => None,
            };
            let to = self.listener_target(listen, mode, routed);
            let Some(bind) = &listen.bind else { continue };
            if let Some(other) = binds.iter().find(|other| conflict(&other.value, &bind.value)) {
                let same = other.value == bind.value;
                let what = if same { "listens twice on the same address" } else { "is covered by another listener" };
                self.report.push(
                    Diagnostic::error(format!("{} {what}", quoted(&bind.value.to_string())))
                        .at(bind.span.clone(), "")
                        .at(other.span.clone(), "the other one")
                        .help(if same { "remove one of them" } else { "remove one of them, or use another port" }),
                );
            }
            binds.push(bind);
            let mut base = *global;
            if mode == Some(Mode::Forward) && !self.connect_set {
                base.connect_ms = DEFAULT_FORWARD_CONNECT_MS;
            }
            self.unix_listener(bind, listen.permissions.as_ref(), unix_permissions);
            listeners.push(Listener {
                bind: bind.value.clone(),
                mode: mode.unwrap_or(Mode::Http),
                to,
                backlog: listen.backlog.unwrap_or(DEFAULT_BACKLOG),
                timeouts: merged(base, &listen.timeouts),
                removed: false,
                proxy_protocol: self.proxy_protocol(bind, &listen.proxy_protocol),
                abort_on_close: self.abort_on_close(listen, mode),
                forward: self.forward(listen, mode),
            });
        }
        listeners
    }

    fn abort_on_close(&mut self, listen: &syntax::Listen, mode: Option<Mode>) -> bool {
        if listen.abort_on_close.is_some() && mode == Some(Mode::Tcp) {
            self.report.push(
                Diagnostic::error("abort_on_close is for requests, and mode \"tcp\" knows none")
                    .at(listen.span.clone(), "")
                    .help("leave it out: a relay passes the end of one direction on, and the other one goes on"),
            );
        }
        listen.abort_on_close.unwrap_or(false)
    }

    fn listener_target(&mut self, listen: &syntax::Listen, mode: Option<Mode>, routed: bool) -> Option<GroupId> {
        match (&listen.to, mode) {
            (Given::Is(to), Some(Mode::Forward)) => {
                self.report.push(
                    Diagnostic::error("a forward listener goes where its clients say, not to a backend group")
                        .at(to.span.clone(), "")
                        .help("remove `to`; what clients may reach is up to `rules`"),
                );
                return None;
            }
            (Given::Is(to), _) => return self.group_id(to),
            (Given::Absent, Some(Mode::Tcp)) => self.report.push(
                Diagnostic::error("a TCP listener needs to know where its connections go")
                    .at(listen.span.clone(), "")
                    .help(format!("add `to = \"{}\"`, the name of a backend group", self.some_group())),
            ),
            (Given::Absent, Some(Mode::Http)) if !routed => self.report.push(
                Diagnostic::error("nothing to do with requests to this listener: there is no route")
                    .at(listen.span.clone(), "")
                    .help(format!(
                        "add `to = \"{}\"` to it, or a route, as in:\n{}",
                        self.some_group(),
                        self.example_route()
                    )),
            ),
            (Given::Absent, Some(Mode::Http | Mode::Forward) | None) | (Given::Wrong, _) => {}
        }
        None
    }

    fn unix_listener(
        &mut self,
        bind: &At<Address>,
        permissions: Option<&At<u32>>,
        unix_permissions: &mut BTreeMap<PathBuf, u32>,
    ) {
        match (&bind.value, permissions) {
            (Address::Unix(path), permissions) => {
                self.parent_directory(path, "socket", &bind.span);
                if let Some(permissions) = permissions {
                    unix_permissions.insert(path.clone(), permissions.value);
                }
            }
            (Address::Inet(_), Some(permissions)) => self.report.push(
                Diagnostic::error("`permissions` are for Unix sockets only")
                    .at(permissions.span.clone(), "")
                    .help("remove the line, or bind to \"unix:/path\""),
            ),
            (Address::Inet(_), None) => {}
        }
    }

    fn parent_directory(&mut self, path: &Path, what: &str, span: &Span) {
        let parent = path.parent().unwrap_or(path);
        if self.system.is_directory(path) {
            self.report.push(
                Diagnostic::error(format!("{} is a directory", quoted(&path.to_string_lossy())))
                    .at(span.clone(), "")
                    .help(format!("add the name of the {what} to it")),
            );
        } else if !self.system.is_directory(parent) {
            self.report.push(
                Diagnostic::error(format!(
                    "there is no directory {} for the {what}",
                    quoted(&parent.to_string_lossy())
                ))
                .at(span.clone(), "")
                .help("make it, or write another path"),
            );
        }
    }

    fn routes(&mut self, routes: &[syntax::Route]) -> Vec<Route> {
        let mut seen: HashMap<String, Span> = HashMap::new();
        let mut checked = Vec::new();
        for route in routes {
            let to = route.to.as_ref().and_then(|to| self.group_id(to));
            let host = match &route.host {
                Given::Is(host) => host.value.clone(),
                Given::Absent => HostMatch::Any,
                Given::Wrong => continue,
            };
            let path = match &route.path {
                Given::Is(path) => path.value.clone(),
                Given::Absent => PathMatch::Prefix("/".to_owned()),
                Given::Wrong => continue,
            };
            let place = match (&route.path, &route.host) {
                (Given::Is(path), _) => path.span.clone(),
                (_, Given::Is(host)) => host.span.clone(),
                (Given::Absent | Given::Wrong, Given::Absent | Given::Wrong) => route.span.clone(),
            };
            let matched = format!("{} {}", host_text(&host).unwrap_or_default(), path_text(&path));
            if let Some(first) = seen.get(&matched) {
                self.report.push(
                    Diagnostic::error("two routes match the same host and path")
                        .at(place, "")
                        .at(first.clone(), "the first one")
                        .help("remove one of them, or change its host or path; the order of routes does not matter"),
                );
                continue;
            }
            seen.insert(matched, place);
            if let Some(to) = to {
                checked.push(Route { host, path, to });
            }
        }
        checked
    }

    /// Warns of routes that nothing reaches and of groups that nothing uses.
    fn usage(&mut self, file: &File) {
        if self.report.has_errors() {
            return;
        }
        let reaches = |l: &syntax::Listen| {
            !matches!((&l.mode, &l.to), (Given::Is(At { value: Mode::Tcp | Mode::Forward, .. }), _) | (_, Given::Is(_)))
        };
        if let Some(route) = file.routes.first()
            && !file.listen.is_empty()
            && !file.listen.iter().any(reaches)
        {
            self.report.push(
                Diagnostic::warning("no listener uses the routes")
                    .at(route.span.clone(), "")
                    .help("routes are for listeners with mode = \"http\" and without `to`"),
            );
        }
        self.unused_rules(file);
        let listen = file.listen.iter().filter_map(|l| l.to.as_ref());
        let used: std::collections::HashSet<&str> =
            file.routes.iter().filter_map(|r| r.to.as_ref()).chain(listen).map(|to| to.value.as_str()).collect();
        for group in file.groups.iter().filter(|group| !used.contains(group.name.value.as_str())) {
            self.report.push(
                Diagnostic::warning(format!(
                    "no route or listener uses the backend group {}",
                    quoted(&group.name.value)
                ))
                .at(group.name.span.clone(), "")
                .help("remove it, or name it in `to`"),
            );
        }
    }

    fn group_id(&mut self, to: &At<String>) -> Option<GroupId> {
        let name = to.value.as_str();
        if let Some(id) = self.names.get(name) {
            return Some(*id);
        }
        let mut known: Vec<&str> = self.names.keys().map(String::as_str).collect();
        known.sort_unstable();
        let help = match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if name.contains([':', '/']) => {
                "`to` is the name of a group: add [backends.web] with servers = [\"127.0.0.1:9001\"], and to = \"web\" here"
                    .to_owned()
            }
            None if known.is_empty() || known.len() > 20 => {
                format!("add [backends.{}] with its servers", if name.is_empty() { "NAME" } else { name })
            }
            None => format!("the groups are {}; or add [backends.{name}]", known.join(", ")),
        };
        self.report.push(
            Diagnostic::error(format!("there is no backend group {}", quoted(name))).at(to.span.clone(), "").help(help),
        );
        None
    }

    fn group(&mut self, group: &syntax::Group) -> Group {
        let mut servers: Vec<Server> = Vec::new();
        let mut names: Vec<NamedServer> = Vec::new();
        let mut places: HashMap<Address, Span> = HashMap::new();
        let mut targets: HashMap<&Target, Span> = HashMap::new();
        for server in &group.servers {
            let span = server.address.span.clone();
            let (weight, backup) = (server.weight.unwrap_or(1), server.backup.unwrap_or(false));
            let target = match &server.address.value {
                ServerAddress::Literal(address) => {
                    if let Some(first) = places.get(address) {
                        self.report.push(same_server(&address.to_string(), true, span, first.clone()));
                        continue;
                    }
                    places.insert(address.clone(), span);
                    let (name, address) = (server.name.clone(), address.clone());
                    servers.push(Server { number: 0, name, address, weight, backup });
                    continue;
                }
                ServerAddress::Name(target) => target,
            };
            if let Some(first) = targets.insert(target, span.clone()) {
                self.report.push(same_server(&target.to_string(), true, span, first));
                continue;
            }
            let known = self.known(target, server);
            for endpoint in &known {
                let address = Address::Inet(endpoint.address);
                if let Some(first) = places.get(&address) {
                    self.report.push(same_server(&address.to_string(), false, span.clone(), first.clone()));
                } else {
                    places.insert(address, span.clone());
                }
            }
            let (name, target) = (server.name.clone(), target.clone());
            names.push(NamedServer { name, target, weight, backup, known });
        }
        let warning = |text: String| Diagnostic::warning(text);
        if let Some(span) = &group.no_servers {
            let text = format!("the backend group {} has no servers", quoted(&group.name.value));
            self.report.push(warning(text).at(span.clone(), "").help("requests to it are answered with 503"));
        }
        Group {
            name: group.name.value.clone(),
            balance: group.balance.unwrap_or(ipc::snapshot::Balance::RoundRobin),
            servers,
            names,
            timeouts: group.timeouts,
            tries: group.tries.unwrap_or(DEFAULT_TRIES),
            keepalive: KeepAlive {
                idle_per_server: group.keepalive.idle_per_server.unwrap_or(DEFAULT_KEEPALIVE.idle_per_server),
                idle_timeout_ms: group.keepalive.idle_timeout_ms.unwrap_or(DEFAULT_KEEPALIVE.idle_timeout_ms),
                max_per_server: group.keepalive.max_per_server.unwrap_or(DEFAULT_KEEPALIVE.max_per_server),
            },
            health: self.health(&group.health),
            worker_header: group.worker_header.unwrap_or(false),
            removed: false,
            send_proxy: group.send_proxy.flatten(),
        }
    }

    fn health(&mut self, health: &syntax::Health) -> Health {
        let eject_ms = health.eject_ms.unwrap_or(DEFAULT_HEALTH.eject_ms);
        if let Some(max) = &health.eject_max
            && max.value < eject_ms
        {
            let eject = format_duration(eject_ms);
            self.report.push(
                Diagnostic::error(format!("`eject_max` is shorter than `eject`, which is {eject}"))
                    .at(max.span.clone(), "")
                    .help(format!("write {eject} or more, or a shorter `eject`")),
            );
        }
        let eject_max_ms = health.eject_max.as_ref().map(|max| max.value);
        Health {
            failures: health.failures.unwrap_or(DEFAULT_HEALTH.failures),
            eject_ms,
            eject_max_ms: eject_max_ms.unwrap_or(DEFAULT_HEALTH.eject_max_ms.max(eject_ms)),
        }
    }

    /// Warns where workers that are merely busy would be taken for dead.
    fn patience(&mut self, file: &File) {
        if let Some(ms @ ..HASTY_MS) = file.worker_timeout_ms {
            self.report.push(
                Diagnostic::warning(format!("worker_timeout is {}", format_duration(ms)))
                    .help("a worker that is busy, or on a busy machine, may not move for so long; 1s is short"),
            );
        }
    }

    fn control(&mut self, file: &File) -> Control {
        let Some(At { value: control, span }) = &file.control else { return Control::Derived };
        if let Control::At(path) = control {
            self.parent_directory(path, "control socket", span);
        }
        control.clone()
    }

    fn networks(&mut self, file: &File) {
        for At { value: network, span } in &file.trusted_proxies {
            self.whole_network(network, span);
        }
    }

    fn whole_network(&mut self, network: &Network, span: &Span) {
        let first = first_of(*network);
        if first != network.address {
            let text = format!("the address has bits behind its prefix of {}", network.prefix);
            let help = format!("the whole network is meant: \"{first}/{}\"", network.prefix);
            self.report.push(Diagnostic::warning(text).at(span.clone(), "").help(help));
        }
    }

    /// Who may say where a connection comes from: networks for an IP listener, `unix` for a Unix one.
    fn proxy_protocol(&mut self, bind: &At<Address>, written: &[At<ProxySource>]) -> ProxyProtocol {
        let mut checked = ProxyProtocol::default();
        for At { value: source, span } in written {
            match (source, &bind.value) {
                (ProxySource::Network(network), Address::Inet(_)) => {
                    self.whole_network(network, span);
                    if network.prefix == 0 {
                        let text = "every client can claim any address in a PROXY header";
                        let help = "write the addresses of the proxies in front, unless nobody else can connect";
                        self.report.push(Diagnostic::warning(text).at(span.clone(), "").help(help));
                    }
                    checked.from.push(*network);
                }
                (ProxySource::Unix, Address::Unix(_)) => checked.from_unix = true,
                (ProxySource::Network(_), Address::Unix(_)) => self.report.push(
                    Diagnostic::error("clients of a Unix socket have no address")
                        .at(span.clone(), "")
                        .help("write `from = [\"unix\"]`; who may connect is up to the permissions of the socket"),
                ),
                (ProxySource::Unix, Address::Inet(_)) => self.report.push(
                    Diagnostic::error("`unix` stands for the clients of a Unix socket, and this is none")
                        .at(span.clone(), "")
                        .help("write the addresses of the proxies in front, as in `from = [\"10.0.0.0/8\"]`"),
                ),
            }
        }
        checked
    }

    fn access_log(&mut self, file: &File) {
        if let Some(At { value: LogTarget::File(path), span }) = &file.log_to {
            self.parent_directory(path, "access log", span);
        }
    }

    fn some_group(&self) -> &str {
        self.names.iter().min_by_key(|(_, id)| **id).map_or("web", |(name, _)| name)
    }

    fn example_route(&self) -> String {
        let group = self.some_group();
        let route = format!("[[route]]\nto = \"{group}\"");
        if self.names.is_empty() {
            format!("{route}\n[backends.{group}]\nservers = [\"127.0.0.1:9001\"]")
        } else {
            route
        }
    }
}

fn same_server(address: &str, literal: bool, span: Span, first: Span) -> Diagnostic {
    let shown = quoted(address);
    if literal {
        return Diagnostic::error(format!("the server {shown} is in the group twice"))
            .at(span, "")
            .at(first, "the first time")
            .help("to give it a larger share write { address = ..., weight = 2 }");
    }
    Diagnostic::warning(format!("this name stands for {shown}, which is in the group already"))
        .at(span, "")
        .at(first, "the first time")
        .help("it is used once; to give it a larger share write a weight")
}

fn merged(base: Timeouts, over: &syntax::Timeouts) -> Timeouts {
    let common: &TimeoutOverrides = &over.common;
    Timeouts {
        header_ms: over.header_ms.unwrap_or(base.header_ms),
        idle_ms: over.idle_ms.unwrap_or(base.idle_ms),
        ..base.with(common)
    }
}

fn limits(limits: &syntax::Limits) -> Limits {
    Limits {
        head_bytes: limits.head_bytes.unwrap_or(DEFAULT_LIMITS.head_bytes),
        head_fields: limits.head_fields.unwrap_or(DEFAULT_LIMITS.head_fields),
        body_bytes: limits.body_bytes.unwrap_or(DEFAULT_LIMITS.body_bytes),
        connections: limits.connections.unwrap_or(DEFAULT_LIMITS.connections),
        connections_per_address: limits.connections_per_address.unwrap_or(DEFAULT_LIMITS.connections_per_address),
        min_rate_bytes: limits.min_rate_bytes.unwrap_or(DEFAULT_LIMITS.min_rate_bytes),
    }
}

/// A route's host as it is written; `None` = not written.
#[must_use]
pub fn host_text(host: &HostMatch) -> Option<String> {
    match host {
        HostMatch::Any => None,
        HostMatch::Exact(host) => Some(host.clone()),
        HostMatch::Wildcard(suffix) => Some(format!("*{suffix}")),
    }
}

/// A route's path as it is written.
#[must_use]
pub fn path_text(path: &PathMatch) -> String {
    match path {
        PathMatch::Prefix(path) => path.clone(),
        PathMatch::Exact(path) => format!("={path}"),
    }
}
