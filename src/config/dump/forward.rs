//! Forward listeners, their rules and users as TOML.

use std::collections::BTreeSet;

use ipc::forward::{Action, Forward, Rule, RuleSet, Subject, UseLimits};
use ipc::snapshot::Snapshot;

use super::super::ProcessSettings;
use super::super::units::format_size;
use super::{Toml, key, network, quote};

/// What a listener forwards.
pub(super) fn listener(out: &mut Toml, forward: &Forward) {
    let on = forward.protocols.named().into_iter().filter(|(_, on)| *on).map(|(name, _)| quote(name));
    out.plain("protocols", list(on));
    if let Some(set) = &forward.rules {
        out.text("rules", &set.name);
    }
}

/// Where the users are, and every set of rules that a listener goes by.
pub(super) fn tables(out: &mut Toml, snapshot: &Snapshot, process: &ProcessSettings) {
    if let Some(path) = &process.users_file {
        out.head("[users]");
        out.text("file", &path.to_string_lossy());
        out.count_or("failures_per_minute", snapshot.failures.per_minute, "none");
        out.count_or("address_failures_per_minute", snapshot.failures.per_minute_address, "none");
    }
    let mut seen = BTreeSet::new();
    let forwards = snapshot.listeners.iter().filter_map(|listener| listener.forward.as_ref());
    for set in forwards.filter_map(|forward| forward.rules.as_ref()) {
        if seen.insert(set.name.as_str()) {
            rule_set(out, set);
        }
    }
}

fn rule_set(out: &mut Toml, set: &RuleSet) {
    let key = format!("rules.{}", key(&set.name));
    out.head(&format!("[{key}]"));
    out.text("auth", if set.auth { "required" } else { "off" });
    match set.lifetime_ms {
        Some(ms) => out.duration("lifetime", ms),
        None => out.text("lifetime", "none"),
    }
    let rules: String = set.rules.iter().map(|one| format!("\n    {},", rule(one))).collect();
    out.plain("list", format_args!("[{rules}{}]", if set.rules.is_empty() { "" } else { "\n" }));
    if set.per_user.is_none() && set.per_address.is_none() {
        return;
    }
    out.head(&format!("[{key}.limits]"));
    // Without users there are no limits of theirs.
    if set.auth {
        out.plain("user", use_limits(&set.per_user));
    }
    out.plain("address", use_limits(&set.per_address));
}

fn use_limits(limits: &UseLimits) -> String {
    let count = |count: Option<u32>| count.map_or_else(|| quote("none"), |count| count.to_string());
    let rate = limits.rate_bytes.map_or_else(|| "none".to_owned(), format_size);
    format!(
        "{{ connections = {}, connections_per_second = {}, rate = {} }}",
        count(limits.connections),
        count(limits.connections_per_second),
        quote(&rate)
    )
}

fn rule(rule: &Rule) -> String {
    let mut parts = vec![format!(
        "action = \"{}\"",
        match rule.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        }
    )];
    if rule.subject == Subject::Replies {
        parts.push("about = \"replies\"".to_owned());
    }
    let mut add = |key: &str, entries: Vec<String>| {
        if !entries.is_empty() {
            parts.push(format!("{key} = {}", list(entries)));
        }
    };
    add("clients", rule.clients.iter().map(network).collect());
    add("users", rule.users.iter().map(|user| quote(user)).collect());
    add("names", rule.names.iter().map(|name| quote(&name.to_string())).collect());
    add("networks", rule.networks.iter().map(network).collect());
    let port = |range: &ipc::forward::PortRange| match range.first == range.last {
        true => range.first.to_string(),
        false => quote(&format!("{}-{}", range.first, range.last)),
    };
    add("ports", rule.ports.iter().map(port).collect());
    format!("{{ {} }}", parts.join(", "))
}

fn list(entries: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", entries.into_iter().collect::<Vec<_>>().join(", "))
}
