//! Whether somebody may reach an address, and which rule says so.
//!
//! Rules are asked about the very address that is connected to. A name is resolved once, before; what it resolves to
//! later, or elsewhere, does not matter. Pure: nothing here looks anything up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipc::forward::{Action, Rule, RuleSet, Subject};

use crate::forward::special::{self, Own};
use crate::proto::endpoint::Host;

/// In which way a client asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The CONNECT method of HTTP.
    Connect,
    /// Any other, SOCKS and requests in absolute-form among them.
    Plain,
}

impl Way {
    /// Ports that an allowing rule means when it names none.
    fn is_usual(self, port: u16) -> bool {
        match self {
            Way::Connect => port == 443,
            Way::Plain => port == 80 || port == 443,
        }
    }
}

/// Somebody who wants to reach a target.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Where it is; `None` on a Unix socket.
    pub client: Option<IpAddr>,
    /// Who it is, if that has been proved.
    pub user: Option<&'a str>,
    /// The address it is connected to.
    pub here: Option<SocketAddr>,
    /// In which way it asked.
    pub way: Way,
}

/// What a client wants to reach, as it named it.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The name or address.
    pub host: &'a Host,
    /// Names that it is an alias for. They can only be a reason to deny: whoever answers for a name chooses them.
    pub aliases: &'a [String],
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The rule at this index.
    Rule(usize),
    /// No rule allows it.
    NoRule,
    /// It is special, and no rule that would allow it lists it. What it is.
    Special(&'static str),
    /// It is the client's own address, to which an answer may always go.
    OwnAddress,
}

/// A decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may be connected to.
    pub allowed: bool,
    /// What decided.
    pub by: By,
}

impl fmt::Display for By {
    /// As logs have it: rules are counted from 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Rule(index) => write!(f, "{}", index + 1),
            By::NoRule => f.write_str("none"),
            By::Special(kind) => f.write_str(kind),
            By::OwnAddress => f.write_str("own"),
        }
    }
}

/// Whether a name may be looked up at all: `Some` when no address it could have would be allowed. Nobody learns from
/// the resolver about names that they may not reach.
#[must_use]
pub fn refused_unresolved(set: &RuleSet, asker: &Asker<'_>, host: &Host, port: u16) -> Option<Verdict> {
    for (index, rule) in about(set, Subject::Targets) {
        if !concerns(rule, asker, Some(Named { host, aliases: &[] }), port) {
            continue;
        }
        match rule.action {
            Action::Deny if rule.networks.is_empty() => {
                return Some(Verdict { allowed: false, by: By::Rule(index) });
            }
            Action::Deny => {}
            Action::Allow => return None,
        }
    }
    Some(Verdict { allowed: false, by: By::NoRule })
}

/// Whether `asker` may have a connection to `target`, which it named so.
#[must_use]
pub fn decide(set: &RuleSet, own: &Own, asker: &Asker<'_>, named: Named<'_>, target: SocketAddr) -> Verdict {
    judge(set, own, asker, Subject::Targets, Some(named), target)
}

/// Whether an answer to `asker` may be delivered to `address`. To its own address it may, on a port that programs of
/// users listen on.
#[must_use]
pub fn decide_reply(set: &RuleSet, own: &Own, asker: &Asker<'_>, address: SocketAddr) -> Verdict {
    let same = asker.client.is_some_and(|client| client.to_canonical() == address.ip().to_canonical());
    let verdict = judge(set, own, asker, Subject::Replies, None, address);
    match verdict.by {
        // What a rule says stands above this.
        By::Rule(_) => verdict,
        By::NoRule | By::Special(_) | By::OwnAddress if same && address.port() >= 1024 => {
            Verdict { allowed: !own.is(address, asker.here), by: By::OwnAddress }
        }
        By::NoRule | By::Special(_) | By::OwnAddress => verdict,
    }
}

fn about(set: &RuleSet, subject: Subject) -> impl Iterator<Item = (usize, &Rule)> {
    set.rules.iter().enumerate().filter(move |(_, rule)| rule.subject == subject)
}

/// Whether everything in a rule but its networks matches.
fn concerns(rule: &Rule, asker: &Asker<'_>, named: Option<Named<'_>>, port: u16) -> bool {
    let client = |ip: IpAddr| rule.clients.iter().any(|network| network.contains(ip));
    let user = |name: &str| rule.users.iter().any(|user| user == name);
    let listed = |name: &str| rule.names.iter().any(|matched| matched.matches(name));
    let name = |named: Named<'_>| match named.host {
        Host::Name(name) => {
            listed(name) || rule.action == Action::Deny && named.aliases.iter().any(|alias| listed(alias))
        }
        Host::Ip(_) => false,
    };
    let ports = match (rule.ports.is_empty(), rule.action, rule.subject) {
        (false, ..) => rule.ports.iter().any(|range| range.contains(port)),
        (true, Action::Allow, Subject::Targets) => asker.way.is_usual(port),
        (true, Action::Deny, _) | (true, Action::Allow, Subject::Replies) => true,
    };
    ports
        && (rule.clients.is_empty() || asker.client.is_some_and(client))
        && (rule.users.is_empty() || asker.user.is_some_and(user))
        && (rule.names.is_empty() || named.is_some_and(name))
}

fn judge(
    set: &RuleSet,
    own: &Own,
    asker: &Asker<'_>,
    subject: Subject,
    named: Option<Named<'_>>,
    target: SocketAddr,
) -> Verdict {
    let ip = target.ip().to_canonical();
    let special = if own.is(SocketAddr::new(ip, target.port()), asker.here) {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        Some(special::Special { kind: "own listener", range: ipc::snapshot::Network { address: ip, prefix } })
    } else {
        special::range_of(ip)
    };
    let carried = match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => special::carried(ip).map(|(inner, _)| IpAddr::V4(inner)),
    };
    let mut by = By::NoRule;
    for (index, rule) in about(set, subject) {
        if !concerns(rule, asker, named, target.port()) {
            continue;
        }
        match rule.action {
            Action::Deny => {
                // An address is denied in whatever form it is carried.
                let denied = |ip: IpAddr| rule.networks.iter().any(|network| network.contains(ip));
                if rule.networks.is_empty() || denied(ip) || carried.is_some_and(denied) {
                    return Verdict { allowed: false, by: By::Rule(index) };
                }
            }
            Action::Allow => {
                let listed = |network: &ipc::snapshot::Network| match special {
                    Some(special) => special::lies_within(*network, special.range),
                    None => true,
                };
                let mut networks = rule.networks.iter().filter(|network| network.contains(ip)).peekable();
                if !rule.networks.is_empty() && networks.peek().is_none() {
                    continue;
                }
                match special {
                    Some(special) if !networks.any(listed) => by = By::Special(special.kind),
                    Some(_) | None => return Verdict { allowed: true, by: By::Rule(index) },
                }
            }
        }
    }
    Verdict { allowed: false, by }
}

#[cfg(test)]
mod tests;
