//! TOML text to syntax: every key known, every value of the right type and within its bounds.
//!
//! What values refer to, and which defaults stand in for absent ones, is not decided here.

mod forward;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use ipc::snapshot::{
    Address, Balance, Dispatch, LogFormat, LogTarget, Mode, OnRemoval, ProxyVersion, TimeoutOverrides,
};
use toml::de::{DeTable, DeValue};

use super::address::{ServerAddress, parse_bind, parse_host, parse_network, parse_path, parse_server, parse_service};
use super::read::{Schema, Section, Value, entries, type_of};
use super::report::{Diagnostic, Fault, Report, Source, quoted};
use super::syntax::{
    At, File, Given, Group, Health, KeepAlive, Limits, Listen, ProxySource, Route, Server, Span, Timeouts,
};
use super::{Control, Workers};

mod dns;

/// Bounds on how much may be configured.
const LISTENERS_MAX: usize = 1000;
const ROUTES_MAX: usize = 100_000;
const GROUPS_MAX: usize = 20_000;
const SERVERS_MAX: usize = 1000;
const NETWORKS_MAX: usize = 1000;
/// The longest name of a group or server, in characters.
const NAME_MAX: usize = 255;

static TOP: Schema = Schema {
    name: "the top level",
    home: "the top of the file, above the first `[`",
    keys: &[
        "workers",
        "dispatch",
        "user",
        "group",
        "shutdown_timeout",
        "on_removal",
        "control",
        "worker_timeout",
        "orphan_timeout",
        "upgrade_timeout",
        "trusted_proxies",
        "timeouts",
        "limits",
        "dns",
        "access_log",
        "listen",
        "route",
        "backends",
        "rules",
        "users",
    ],
};
static LISTEN: Schema = Schema {
    name: "`[[listen]]`",
    home: "`[[listen]]`",
    keys: &[
        "bind",
        "mode",
        "to",
        "backlog",
        "permissions",
        "timeouts",
        "proxy_protocol",
        "abort_on_close",
        "protocols",
        "rules",
    ],
};
static PROXY_PROTOCOL: Schema =
    Schema { name: "[listen.proxy_protocol]", home: "`[listen.proxy_protocol]`", keys: &["from"] };
static ROUTE: Schema = Schema { name: "`[[route]]`", home: "`[[route]]`", keys: &["host", "path", "to"] };
static GROUP: Schema = Schema {
    name: "`[backends.NAME]`",
    home: "`[backends.NAME]`",
    keys: &["balance", "servers", "tries", "timeouts", "keepalive", "health", "worker_header", "send_proxy"],
};
static SERVER: Schema = Schema {
    name: "an entry of `servers`",
    home: "an entry of `servers`, such as `{ address = \"127.0.0.1:9001\", weight = 2 }`",
    keys: &["address", "srv", "name", "weight", "backup"],
};
static TIMEOUTS: Schema = Schema {
    name: "`timeouts`",
    home: "`[timeouts]` or `[listen.timeouts]`",
    keys: &["header", "idle", "body", "write", "connect", "response", "server", "tunnel"],
};
static GROUP_TIMEOUTS: Schema = Schema {
    name: "`[backends.NAME.timeouts]`",
    home: "`[backends.NAME.timeouts]`",
    keys: &["body", "write", "connect", "response", "server", "tunnel"],
};
static LIMITS: Schema = Schema {
    name: "`[limits]`",
    home: "`[limits]`",
    keys: &["head", "fields", "body", "connections", "connections_per_address", "min_rate"],
};
static ACCESS_LOG: Schema = Schema { name: "`[access_log]`", home: "`[access_log]`", keys: &["to", "format"] };
static KEEPALIVE: Schema = Schema {
    name: "`[backends.NAME.keepalive]`",
    home: "`[backends.NAME.keepalive]`",
    keys: &["idle_per_server", "idle_timeout", "max_per_server"],
};
static HEALTH: Schema = Schema {
    name: "`[backends.NAME.health]`",
    home: "`[backends.NAME.health]`",
    keys: &["failures", "eject", "eject_max"],
};
static ALL: [&Schema; 17] = [
    &TOP,
    &LISTEN,
    &PROXY_PROTOCOL,
    &ROUTE,
    &GROUP,
    &SERVER,
    &TIMEOUTS,
    &LIMITS,
    &dns::DNS,
    &ACCESS_LOG,
    &KEEPALIVE,
    &HEALTH,
    &forward::RULES,
    &forward::RULE,
    &forward::RULES_LIMITS,
    &forward::USE_LIMITS,
    &forward::USERS,
];

/// Reads `source` as far as it can be read; `None` where it is not TOML, which leaves nothing to be checked
/// further. Findings go into `report`.
pub fn parse(source: &Arc<Source>, report: &mut Report) -> Option<File> {
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    let mut parser = Parser { report: Report::of(Arc::clone(source)) };
    let file = parser.file(document.get_ref(), document.span());
    let mut seen = BTreeSet::new();
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        if seen.insert((span.start, error.message().to_owned())) {
            report.push(syntax_error(&source.text, error.message(), span));
        }
    }
    if errors.is_empty() {
        report.add(parser.report);
        return Some(file);
    }
    report.add_independent(parser.report);
    None
}

/// The TOML parser's message, with a remedy for the commonest slips.
fn syntax_error(text: &str, message: &str, span: Span) -> Diagnostic {
    let rest = text.get(span.start..).unwrap_or_default();
    let help = match message {
        _ if message.starts_with("string values must be quoted")
            && rest.trim_start_matches(' ').starts_with(['\r', '\n']) =>
        {
            Some("write a value behind `=`")
        }
        _ if message.starts_with("string values must be quoted") => Some("write it within double quotes: \"...\""),
        "duplicate key" => Some("it was given before in the same table; remove one, or begin another table"),
        _ => None,
    };
    Diagnostic::error(format!("not valid TOML: {message}")).at(span, "").maybe_help(help.map(str::to_owned))
}

struct Parser {
    report: Report,
}

impl Parser {
    fn section<'t>(&mut self, table: &'t DeTable<'t>, span: Span, schema: &'static Schema) -> Section<'t> {
        Section::new(table, span, schema, &ALL, &mut self.report)
    }

    fn inner<'t>(
        &mut self,
        outer: &Section<'t>,
        key: &str,
        shown: &str,
        schema: &'static Schema,
    ) -> Option<Section<'t>> {
        let (table, span) = outer.table(key, shown, &mut self.report)?;
        Some(self.section(table, span, schema))
    }

    /// Says when there are more of something than there may be; they are read all the same.
    fn bounded(&mut self, count: usize, max: usize, what: &str, span: Option<Span>) {
        if let (true, Some(span)) = (count > max, span) {
            let fault = Fault::new(format!("{count} {what}"));
            self.report.push(fault.help(format!("there may be {max} at most")).at(span));
        }
    }

    fn file<'t>(&mut self, table: &'t DeTable<'t>, span: Span) -> File {
        let top = self.section(table, span, &TOP);
        let report = &mut self.report;
        let workers = top.integer_or("workers", 1..=1024, "auto", Workers::Auto, Workers::Count, report).value();
        let dispatch = [("least-connections", Dispatch::LeastConnections), ("round-robin", Dispatch::RoundRobin)];
        let dispatch = top.choice("dispatch", &dispatch, report).value();
        let user = top.string("user", "\"www-data\"", report).at();
        let group = top.string("group", "\"www-data\"", report).at();
        let shutdown_timeout_ms = top.duration("shutdown_timeout", report).value();
        let on_removal =
            top.choice("on_removal", &[("keep", OnRemoval::Keep), ("cut", OnRemoval::Cut)], report).value();
        let control = top.parsed("control", "\"unix:/run/pointsman/web.sock\"", report, read_control).at();
        let worker_timeout_ms = top.duration("worker_timeout", report).value();
        let orphan_timeout_ms = top.duration("orphan_timeout", report).value();
        let upgrade_timeout_ms = top.duration("upgrade_timeout", report).value();
        let trusted_proxies = self.networks(&top);
        let timeouts = self.timeouts(&top, "[timeouts]");
        let limits = self.limits(&top);
        let dns = self.dns(&top);
        let (log_to, log_format) = self.access_log(&top);
        let listen = top.tables("listen", "`listen`", &mut self.report);
        self.bounded(listen.len(), LISTENERS_MAX, "listeners", listen.last().map(|(_, span)| span.clone()));
        let listen = listen.into_iter().map(|(table, span)| self.listen(table, span)).collect();
        let routes = top.tables("route", "`route`", &mut self.report);
        self.bounded(routes.len(), ROUTES_MAX, "routes", routes.last().map(|(_, span)| span.clone()));
        let routes = routes.into_iter().map(|(table, span)| self.route(table, span)).collect();
        let groups = self.groups(&top);
        let rule_sets = self.rule_sets(&top);
        let users = self.users(&top);
        File {
            workers,
            dispatch,
            user,
            group,
            shutdown_timeout_ms,
            on_removal,
            control,
            worker_timeout_ms,
            orphan_timeout_ms,
            upgrade_timeout_ms,
            trusted_proxies,
            timeouts,
            limits,
            dns,
            log_to,
            log_format,
            listen,
            routes,
            groups,
            rule_sets,
            users,
        }
    }

    fn networks(&mut self, top: &Section<'_>) -> Vec<At<ipc::snapshot::Network>> {
        let array = top.array("trusted_proxies", "[\"10.0.0.0/8\"]", &mut self.report);
        let Some(At { value: values, span }) = array.at() else { return Vec::new() };
        self.bounded(values.len(), NETWORKS_MAX, "networks", Some(span));
        self.each(values, "a network", parse_network)
    }

    fn timeouts(&mut self, outer: &Section<'_>, shown: &str) -> Timeouts {
        let Some(section) = self.inner(outer, "timeouts", shown, &TIMEOUTS) else { return Timeouts::default() };
        Timeouts {
            header_ms: section.duration("header", &mut self.report).value(),
            idle_ms: section.duration("idle", &mut self.report).value(),
            common: self.common_timeouts(&section),
        }
    }

    fn common_timeouts(&mut self, section: &Section<'_>) -> TimeoutOverrides {
        let mut read = |key| section.duration(key, &mut self.report).value();
        TimeoutOverrides {
            body_ms: read("body"),
            write_ms: read("write"),
            connect_ms: read("connect"),
            response_ms: read("response"),
            server_ms: read("server"),
            tunnel_ms: read("tunnel"),
        }
    }

    fn limits(&mut self, top: &Section<'_>) -> Limits {
        let Some(section) = self.inner(top, "limits", "[limits]", &LIMITS) else { return Limits::default() };
        let report = &mut self.report;
        let small = |size: Given<Option<u64>>| size.value().map(|n| u32::try_from(n.unwrap_or(0)).unwrap_or(u32::MAX));
        Limits {
            head_bytes: small(section.size("head", 1 << 10..=256 << 10, false, report)),
            head_fields: section.integer("fields", 8..=1000, report).value(),
            body_bytes: section.size("body", 0..=u64::MAX, true, report).value(),
            connections: section.integer_or("connections", 1..=1_000_000, "auto", None, Some, report).value(),
            connections_per_address: section
                .integer_or("connections_per_address", 1..=u32::MAX, "none", None, Some, report)
                .value(),
            min_rate_bytes: small(section.size("min_rate", 0..=u64::from(u32::MAX), true, report)),
        }
    }

    fn access_log(&mut self, top: &Section<'_>) -> (Option<At<LogTarget>>, Option<LogFormat>) {
        let Some(section) = self.inner(top, "access_log", "[access_log]", &ACCESS_LOG) else { return (None, None) };
        let to = section.parsed("to", "\"stdout\"", &mut self.report, |text| match text {
            "off" => Ok(LogTarget::Off),
            "stdout" => Ok(LogTarget::Stdout),
            _ if text.starts_with('/') && !text.ends_with('/') && !text.contains('\0') => {
                Ok(LogTarget::File(PathBuf::from(text)))
            }
            _ => Err(Fault::new(format!("the access log cannot go to {}", quoted(text))).help(
                "it is \"off\", \"stdout\" or the path of a file from the root, such as \"/var/log/pointsman.log\"",
            )),
        });
        let formats = [("combined", LogFormat::Combined), ("json", LogFormat::Json)];
        (to.at(), section.choice("format", &formats, &mut self.report).value())
    }

    fn listen<'t>(&mut self, table: &'t DeTable<'t>, span: Span) -> Listen {
        let section = self.section(table, span.clone(), &LISTEN);
        let report = &mut self.report;
        let bind = section.read_bind(report);
        let mode =
            section.choice("mode", &[("http", Mode::Http), ("tcp", Mode::Tcp), ("forward", Mode::Forward)], report);
        let to = section.string("to", "\"web\"", report);
        let backlog = section.integer("backlog", 1..=65535, report).value();
        let permissions = section.parsed("permissions", "\"0660\"", report, |text| {
            let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
            match u32::from_str_radix(text, 8) {
                Ok(bits @ 0..=0o777) if digits => Ok(bits),
                Ok(_) | Err(_) => Err(Fault::new(format!("{} are no permissions", quoted(text)))
                    .help("write them in octal, as for chmod: \"0660\"")),
            }
        });
        let abort_on_close = section.boolean("abort_on_close", report).value();
        let timeouts = self.timeouts(&section, "[listen.timeouts]");
        let proxy_protocol = self.proxy_protocol(&section);
        let protocols = self.protocols(&section);
        let rules = section.string("rules", "\"office\"", &mut self.report);
        let permissions = permissions.at();
        Listen {
            span,
            bind,
            mode,
            to,
            backlog,
            permissions,
            timeouts,
            proxy_protocol,
            abort_on_close,
            protocols,
            rules,
        }
    }

    fn proxy_protocol(&mut self, listen: &Section<'_>) -> Vec<At<ProxySource>> {
        const EXAMPLE: &str = "[\"10.0.0.0/8\"]";
        let shown = "[listen.proxy_protocol]";
        let Some(section) = self.inner(listen, "proxy_protocol", shown, &PROXY_PROTOCOL) else { return Vec::new() };
        let At { value: values, span } = match section.array("from", EXAMPLE, &mut self.report) {
            Given::Is(at) => at,
            Given::Wrong => return Vec::new(),
            Given::Absent => {
                section.missing("from", EXAMPLE, &mut self.report);
                return Vec::new();
            }
        };
        self.bounded(values.len(), NETWORKS_MAX, "networks", Some(span.clone()));
        if values.is_empty() {
            let fault = Fault::new("nobody is listed whose connections begin with a PROXY header");
            self.report.push(fault.help(format!("write the proxies in front, as in `from = {EXAMPLE}`")).at(span));
            return Vec::new();
        }
        self.each(values, "a network", |text| match text {
            "unix" => Ok(ProxySource::Unix),
            _ => parse_network(text).map(ProxySource::Network),
        })
    }

    /// Reads strings, each of which stands for `what`.
    fn each<T>(&mut self, values: Vec<Value<'_>>, what: &str, parse: impl Fn(&str) -> Result<T, Fault>) -> Vec<At<T>> {
        let mut read = Vec::new();
        for value in values {
            let parsed = match value.get_ref().as_str() {
                Some(text) => parse(text),
                None => Err(Fault::new(format!("{what} must be a string, found {}", type_of(value)))),
            };
            match parsed {
                Ok(parsed) => read.push(At { value: parsed, span: value.span() }),
                Err(fault) => self.report.push(fault.at(value.span())),
            }
        }
        read
    }

    fn route<'t>(&mut self, table: &'t DeTable<'t>, span: Span) -> Route {
        let section = self.section(table, span.clone(), &ROUTE);
        let report = &mut self.report;
        let host = section.parsed("host", "\"www.example.com\"", report, parse_host);
        let path = section.parsed("path", "\"/api/\"", report, parse_path);
        let to = section.string("to", "\"web\"", report);
        if to == Given::Absent {
            section.missing("to", "\"web\"", report);
        }
        Route { span, host, path, to: to.at() }
    }

    fn groups(&mut self, top: &Section<'_>) -> Vec<Group> {
        let Some((table, span)) = top.table("backends", "[backends.NAME]", &mut self.report) else {
            return Vec::new();
        };
        self.bounded(table.len(), GROUPS_MAX, "backend groups", Some(span));
        let mut groups = Vec::new();
        for (name, value) in entries(table) {
            if let DeValue::Table(table) = value.get_ref() {
                groups.push(self.group(name, table, value.span()));
                continue;
            }
            let fault = Fault::new(format!(
                "the backend group {} must be a table, found {}",
                quoted(&name.value),
                type_of(value)
            ));
            let help = if GROUP.keys.contains(&name.value.as_str()) {
                "give the group a name: `[backends.web]`, and its settings below".to_owned()
            } else {
                "begin each group with `[backends.NAME]`, once".to_owned()
            };
            self.report.push(fault.help(help).at(name.span.clone()));
            groups.push(Group::bare(name));
        }
        groups
    }

    fn group<'t>(&mut self, name: At<String>, table: &'t DeTable<'t>, span: Span) -> Group {
        if let Err(fault) = check_name(&name.value, "a backend group") {
            self.report.push(fault.at(name.span.clone()));
        }
        let section = self.section(table, span, &GROUP);
        let report = &mut self.report;
        let balance = [
            ("round-robin", Balance::RoundRobin),
            ("least-connections", Balance::LeastConnections),
            ("random-two", Balance::RandomTwo),
            ("source-hash", Balance::SourceHash),
            ("consistent-hash", Balance::ConsistentHash),
        ];
        let balance = section.choice("balance", &balance, report).value();
        let tries = section.integer("tries", 1..=16, report).value();
        let worker_header = section.boolean("worker_header", report).value();
        let versions = [("off", None), ("v1", Some(ProxyVersion::V1)), ("v2", Some(ProxyVersion::V2))];
        let send_proxy = section.choice("send_proxy", &versions, report).value();
        let (servers, no_servers) = self.servers(&section);
        let timeouts = match self.inner(&section, "timeouts", "[backends.NAME.timeouts]", &GROUP_TIMEOUTS) {
            Some(section) => self.common_timeouts(&section),
            None => TimeoutOverrides::default(),
        };
        let keepalive = self.keepalive(&section);
        let health = self.health(&section);
        Group { name, balance, servers, no_servers, timeouts, tries, keepalive, health, worker_header, send_proxy }
    }

    fn servers(&mut self, section: &Section<'_>) -> (Vec<Server>, Option<Span>) {
        const EXAMPLE: &str = "[\"127.0.0.1:9001\"]";
        let At { value: values, span } = match section.array("servers", EXAMPLE, &mut self.report) {
            Given::Is(at) => at,
            Given::Wrong => return (Vec::new(), None),
            Given::Absent => {
                section.missing("servers", EXAMPLE, &mut self.report);
                return (Vec::new(), None);
            }
        };
        self.bounded(values.len(), SERVERS_MAX, "servers in one group", Some(span.clone()));
        let none = values.is_empty().then_some(span);
        (values.into_iter().filter_map(|value| self.server(value)).collect(), none)
    }

    fn server(&mut self, value: Value<'_>) -> Option<Server> {
        let report = &mut self.report;
        match value.get_ref() {
            DeValue::String(text) => match parse_server(text) {
                Ok(address) => Some(Server {
                    address: At { value: address, span: value.span() },
                    name: text.to_string(),
                    weight: None,
                    backup: None,
                }),
                Err(fault) => {
                    report.push(fault.at(value.span()));
                    None
                }
            },
            DeValue::Table(table) => {
                let section = self.section(table, value.span(), &SERVER);
                let report = &mut self.report;
                let example = "\"127.0.0.1:9001\"";
                let address = section.parsed("address", example, report, |t| Ok((parse_server(t)?, t.to_owned())));
                let service = section.parsed("srv", "\"_http._tcp.app.internal\"", report, |t| {
                    Ok((ServerAddress::Name(parse_service(t)?), t.to_owned()))
                });
                let is_service = service.as_ref().is_some();
                let address = match (address, service) {
                    (Given::Is(_), Given::Is(At { span, .. })) => {
                        let fault = Fault::new("a server has either an `address` or an `srv` name");
                        report.push(fault.help("remove one of them").at(span));
                        return None;
                    }
                    (Given::Absent, Given::Absent) => {
                        section.missing("address", example, report);
                        Given::Absent
                    }
                    (Given::Absent, service) => service,
                    (address, _) => address,
                };
                let name = section.parsed("name", "\"web-1\"", report, |t| check_server_name(t).map(|()| t.to_owned()));
                let weight = section.integer("weight", 1..=1000, report).value();
                let backup = section.boolean("backup", report).value();
                if is_service && weight.is_some() {
                    let fault = Fault::new("`weight` has no meaning beside `srv`");
                    report.push(fault.help("leave it out: SRV records have weights of their own").at(value.span()));
                }
                let At { value: (address, written), span } = address.at()?;
                let name = name.value().unwrap_or(written);
                Some(Server { address: At { value: address, span }, name, weight, backup })
            }
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => {
                let fault = Fault::new(format!("a server must be a string or a table, found {}", type_of(value)));
                let help = "write \"127.0.0.1:9001\" or { address = \"127.0.0.1:9001\", weight = 3 }";
                report.push(fault.help(help).at(value.span()));
                None
            }
        }
    }

    fn keepalive(&mut self, group: &Section<'_>) -> KeepAlive {
        let shown = "[backends.NAME.keepalive]";
        let Some(section) = self.inner(group, "keepalive", shown, &KEEPALIVE) else { return KeepAlive::default() };
        let report = &mut self.report;
        KeepAlive {
            idle_per_server: section.integer("idle_per_server", 0..=100_000, report).value(),
            idle_timeout_ms: section.duration("idle_timeout", report).value(),
            max_per_server: section.integer_or("max_per_server", 1..=1_000_000, "none", None, Some, report).value(),
        }
    }

    fn health(&mut self, group: &Section<'_>) -> Health {
        let shown = "[backends.NAME.health]";
        let Some(section) = self.inner(group, "health", shown, &HEALTH) else { return Health::default() };
        let report = &mut self.report;
        Health {
            failures: section.integer("failures", 0..=1000, report).value(),
            eject_ms: section.duration("eject", report).value(),
            eject_max: section.duration("eject_max", report).at(),
        }
    }
}

impl Section<'_> {
    fn read_bind(&self, report: &mut Report) -> Option<At<ipc::snapshot::Address>> {
        let bind = self.parsed("bind", "\"127.0.0.1:8080\"", report, parse_bind);
        if bind == Given::Absent {
            self.missing("bind", "\"127.0.0.1:8080\"", report);
        }
        bind.at()
    }
}

impl Group {
    /// A group of which nothing but the name is known.
    pub(super) fn bare(name: At<String>) -> Self {
        Group {
            name,
            balance: None,
            servers: Vec::new(),
            no_servers: None,
            timeouts: TimeoutOverrides::default(),
            tries: None,
            keepalive: KeepAlive::default(),
            health: Health::default(),
            worker_header: None,
            send_proxy: None,
        }
    }
}

fn read_control(text: &str) -> Result<Control, Fault> {
    if text == "off" {
        return Ok(Control::Off);
    }
    match parse_bind(text) {
        Ok(Address::Unix(path)) => Ok(Control::At(path)),
        Ok(Address::Inet(_)) => Err(Fault::new(format!("the control socket cannot be {}", quoted(text)))
            .help("it is a Unix socket: \"unix:/run/pointsman/web.sock\", or \"off\"")),
        Err(_) if !text.starts_with("unix:") => Err(Fault::new(format!("{} is no control socket", quoted(text)))
            .help("it is a Unix socket: \"unix:/run/pointsman/web.sock\", or \"off\"")),
        Err(fault) => Err(fault),
    }
}

/// What a file says of the control socket, as far as it can be read, errors elsewhere aside.
pub fn control_of(text: &str) -> Option<Control> {
    let (document, _) = DeTable::parse_recoverable(text);
    read_control(document.get_ref().get("control")?.get_ref().as_str()?).ok()
}

fn check_name(name: &str, of: &str) -> Result<(), Fault> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(allowed) {
        return Err(Fault::new(format!("{} cannot be the name of {of}", quoted(name)))
            .help("names are made of letters, digits, `-`, `_` and `.`"));
    }
    Ok(())
}

fn check_server_name(name: &str) -> Result<(), Fault> {
    if name.is_empty() || name.chars().count() > NAME_MAX || !name.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Fault::new(format!("{} cannot be the name of a server", quoted(name)))
            .help("names are made of visible ASCII characters, without blanks"));
    }
    Ok(())
}
