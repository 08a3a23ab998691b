//! The part of a configuration that is about forward listeners: `[rules.NAME]`, `[users]`, and their keys in
//! `[[listen]]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipc::forward::{Action, PortRange, Subject};
use toml::de::{DeTable, DeValue};

use super::super::address::{parse_name_match, parse_network};
use super::super::read::{Schema, Section, Value, entries, integer, type_of};
use super::super::report::{Fault, quoted};
use super::super::suggest::nearest;
use super::super::syntax::{At, Given, Rule, RuleSet, Span, UseLimits, Users};
use super::super::units::parse_duration;
use super::{Parser, check_name};

/// Rule sets, and rules in one of them.
const RULE_SETS_MAX: usize = 1000;
const RULES_MAX: usize = 10_000;
/// Entries in one list of a rule.
const ENTRIES_MAX: usize = 10_000;
/// The least of `rate`: less would not even carry a handshake.
const RATE: RangeInclusive<u64> = 1024..=1 << 40;

pub(super) static RULES: Schema =
    Schema { name: "`[rules.NAME]`", home: "`[rules.NAME]`", keys: &["auth", "lifetime", "limits", "list"] };
pub(super) static RULE: Schema = Schema {
    name: "an entry of `list`",
    home: "an entry of `list` in `[rules.NAME]`, such as `{ action = \"allow\", names = [\"example.com\"] }`",
    keys: &["action", "about", "clients", "users", "names", "networks", "ports"],
};
pub(super) static RULES_LIMITS: Schema =
    Schema { name: "`[rules.NAME.limits]`", home: "`[rules.NAME.limits]`", keys: &["user", "address"] };
pub(super) static USE_LIMITS: Schema = Schema {
    name: "limits of a user or an address",
    home: "`user` or `address` in `[rules.NAME.limits]`",
    keys: &["connections", "connections_per_second", "rate"],
};
pub(super) static USERS: Schema = Schema {
    name: "`[users]`",
    home: "`[users]`",
    keys: &["file", "failures_per_minute", "address_failures_per_minute"],
};

/// The names of protocols, in the order of [`ipc::forward::Protocols::named`].
const PROTOCOLS: [&str; 4] = ["http", "socks5", "socks4a", "dynamic"];

impl Parser {
    /// `[users]`: where they are written, and how often they may be wrong.
    pub(super) fn users(&mut self, top: &Section<'_>) -> Option<Users> {
        const EXAMPLE: &str = "\"/etc/pointsman/users\"";
        let section = self.inner(top, "users", "[users]", &USERS)?;
        let file = section.parsed("file", EXAMPLE, &mut self.report, |text| {
            if text.starts_with('/') && !text.ends_with('/') && !text.contains('\0') {
                return Ok(PathBuf::from(text));
            }
            Err(Fault::new(format!("{} is not the path of a file from the root", quoted(text)))
                .help(format!("write it as in `file = {EXAMPLE}`")))
        });
        if file == Given::Absent {
            section.missing("file", EXAMPLE, &mut self.report);
        }
        let report = &mut self.report;
        let mut count = |key| section.integer_or(key, 1..=1_000_000, "none", None, Some, report).value();
        let (per_minute, per_minute_address) = (count("failures_per_minute"), count("address_failures_per_minute"));
        Some(Users { file: file.at()?, per_minute, per_minute_address })
    }

    /// `protocols` of a listener.
    pub(super) fn protocols(&mut self, listen: &Section<'_>) -> Given<Vec<usize>> {
        const EXAMPLE: &str = "[\"http\", \"socks5\"]";
        let At { value: values, span } = match listen.array("protocols", EXAMPLE, &mut self.report) {
            Given::Is(at) => at,
            Given::Wrong => return Given::Wrong,
            Given::Absent => return Given::Absent,
        };
        if values.is_empty() {
            let fault = Fault::new("no protocol is listed, so that nobody could say anything");
            let all = PROTOCOLS.join("\", \"");
            self.report.push(fault.help(format!("write some of \"{all}\", or leave `protocols` out")).at(span));
            return Given::Wrong;
        }
        let read = self.each(values, "a protocol", |text| {
            let found = PROTOCOLS.iter().position(|known| *known == text);
            found.ok_or_else(|| {
                let fault = Fault::new(format!("there is no protocol {}", quoted(text)));
                let words = PROTOCOLS.map(|word| format!("\"{word}\"")).join(", ");
                match nearest(text, PROTOCOLS.iter().copied()) {
                    Some(near) => fault.help(format!("did you mean \"{near}\"? it is one of {words}")),
                    None => fault.help(format!("it is one of {words}")),
                }
            })
        });
        Given::Is(At { value: read.into_iter().map(|at| at.value).collect(), span })
    }

    /// Every `[rules.NAME]`.
    pub(super) fn rule_sets(&mut self, top: &Section<'_>) -> Vec<RuleSet> {
        let Some((table, span)) = top.table("rules", "[rules.NAME]", &mut self.report) else { return Vec::new() };
        self.bounded(table.len(), RULE_SETS_MAX, "sets of rules", Some(span));
        let mut sets = Vec::new();
        for (name, value) in entries(table) {
            if let DeValue::Table(table) = value.get_ref() {
                sets.push(self.rule_set(name, table, value.span()));
                continue;
            }
            let what = format!("the rules {} must be a table, found {}", quoted(&name.value), type_of(value));
            let fault = Fault::new(what).help("give the rules a name: `[rules.office]`, and the settings below");
            self.report.push(fault.at(name.span.clone()));
        }
        sets
    }

    fn rule_set<'t>(&mut self, name: At<String>, table: &'t DeTable<'t>, span: Span) -> RuleSet {
        if let Err(fault) = check_name(&name.value, "rules") {
            self.report.push(fault.at(name.span.clone()));
        }
        let section = self.section(table, span, &RULES);
        let auth = section.choice("auth", &[("off", false), ("required", true)], &mut self.report).at();
        let lifetime = section.parsed("lifetime", "\"24h\"", &mut self.report, |text| match text {
            "none" => Ok(None),
            text => parse_duration(text).map(Some),
        });
        let (per_user, per_address) = match self.inner(&section, "limits", "[rules.NAME.limits]", &RULES_LIMITS) {
            Some(limits) => (self.use_limits(&limits, "user"), self.use_limits(&limits, "address")),
            None => (None, None),
        };
        let list = section.tables("list", "`list`", &mut self.report);
        self.bounded(list.len(), RULES_MAX, "rules", list.last().map(|(_, span)| span.clone()));
        let rules = list.into_iter().map(|(table, span)| self.rule(table, span)).collect();
        RuleSet { name, auth, lifetime_ms: lifetime.value(), rules, per_user, per_address }
    }

    fn use_limits(&mut self, limits: &Section<'_>, key: &'static str) -> Option<At<UseLimits>> {
        let (table, span) = limits.table(key, "[rules.NAME.limits]", &mut self.report)?;
        let section = self.section(table, span.clone(), &USE_LIMITS);
        let report = &mut self.report;
        let count = 1..=1_000_000;
        let value = UseLimits {
            connections: section.integer_or("connections", count.clone(), "none", None, Some, report).value(),
            connections_per_second: section
                .integer_or("connections_per_second", count, "none", None, Some, report)
                .value(),
            rate_bytes: section.size("rate", RATE, true, report).value(),
        };
        Some(At { value, span })
    }

    fn rule<'t>(&mut self, table: &'t DeTable<'t>, span: Span) -> Rule {
        let section = self.section(table, span, &RULE);
        let actions = [("allow", Action::Allow), ("deny", Action::Deny)];
        let action = section.choice("action", &actions, &mut self.report);
        if action == Given::Absent {
            section.missing("action", "\"allow\"", &mut self.report);
        }
        let subjects = [("targets", Subject::Targets), ("replies", Subject::Replies)];
        let subject = section.choice("about", &subjects, &mut self.report).value();
        let clients = self.list(&section, "clients", "[\"10.0.0.0/8\"]", "a network", parse_network);
        let users = self.list(&section, "users", "[\"ann\"]", "a user", |text| Ok(text.to_owned()));
        let names = self.list(&section, "names", "[\"example.com\"]", "a name", parse_name_match);
        let networks = self.list(&section, "networks", "[\"192.0.2.0/24\"]", "a network", parse_network);
        let ports = self.ports(&section);
        Rule { action: action.value(), subject, clients, users, names, networks, ports }
    }

    /// An array of strings; one without entries is a mistake, since it could be taken for "none" as well as "any".
    fn list<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        example: &str,
        what: &str,
        parse: impl Fn(&str) -> Result<T, Fault>,
    ) -> Vec<At<T>> {
        let Some(values) = self.entries_of(section, key, example) else { return Vec::new() };
        self.each(values, what, parse)
    }

    fn entries_of<'t>(&mut self, section: &Section<'t>, key: &str, example: &str) -> Option<Vec<Value<'t>>> {
        let At { value: values, span } = section.array(key, example, &mut self.report).at()?;
        self.bounded(values.len(), ENTRIES_MAX, "entries in one list", Some(span.clone()));
        if values.is_empty() {
            let fault = Fault::new(format!("`{key}` lists nothing"));
            self.report.push(fault.help(format!("leave `{key}` out where it does not matter")).at(span));
        }
        Some(values)
    }

    fn ports(&mut self, section: &Section<'_>) -> Vec<PortRange> {
        let Some(values) = self.entries_of(section, "ports", "[443, \"8000-8999\"]") else { return Vec::new() };
        let mut ports = Vec::new();
        for value in values {
            let read = match value.get_ref().as_str() {
                Some(text) => parse_ports(text),
                None => integer("ports", value, &(1..=u16::MAX), ", or a range such as \"8000-8999\"")
                    .map(|port| PortRange { first: port, last: port }),
            };
            match read {
                Ok(range) => ports.push(range),
                Err(fault) => self.report.push(fault.at(value.span())),
            }
        }
        ports
    }
}

fn parse_ports(text: &str) -> Result<PortRange, Fault> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|&port| digits && port > 0)
    };
    let help = "write a port, 443, or a range of them, \"8000-8999\"";
    let wrong = || Fault::new(format!("{} are no ports", quoted(text))).help(help);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
        (Some(first), Some(last)) => Err(Fault::new(format!("the range {} is empty", quoted(text)))
            .help(format!("did you mean \"{last}-{first}\"?"))),
        (_, _) => Err(wrong()),
    }
}
