//! What forward listeners, their rules and users refer to, and what in them contradicts what.

use std::collections::HashMap;
use std::path::PathBuf;

use ipc::forward::{Action, FailureLimits, Forward, Protocols, Rule, RuleSet, Subject, UseLimits, User};
use ipc::snapshot::Mode;
use workers::forward::auth::users::{KINDS, kinds};

use super::super::report::{Diagnostic, quoted};
use super::super::suggest::nearest;
use super::super::syntax::{self, At, File, Given};
use super::super::users;
use super::Check;

/// Faults in it that are shown at most.
const FAULTS_SHOWN: usize = 20;

impl Check<'_> {
    /// How many wrong passwords there may be.
    pub(super) fn failures(file: &File) -> FailureLimits {
        let default = FailureLimits::default();
        file.users.as_ref().map_or(default, |users| FailureLimits {
            per_minute: users.per_minute.unwrap_or(default.per_minute),
            per_minute_address: users.per_minute_address.unwrap_or(default.per_minute_address),
        })
    }

    /// Reads the file of users, if there is one.
    pub(super) fn users(&mut self, file: &File) -> (Option<PathBuf>, Vec<User>) {
        let Some(At { value: path, span }) = file.users.as_ref().map(|users| &users.file) else {
            return (None, Vec::new());
        };
        let shown = path.to_string_lossy();
        let text = match self.system.read(path) {
            Ok(text) => text,
            Err(error) => {
                self.report.push(
                    Diagnostic::error(format!("cannot read the users in {}: {error}", quoted(&shown)))
                        .at(span.clone(), "")
                        .help("it must be readable for the user that starts the master, and have 16 MiB at most"),
                );
                return (Some(path.clone()), Vec::new());
            }
        };
        let (users, faults) = users::parse(&text);
        self.users_whole = faults.is_empty();
        let more = faults.len().saturating_sub(FAULTS_SHOWN);
        for (number, fault) in faults.into_iter().take(FAULTS_SHOWN) {
            let title = format!("{} line {number}: {}", quoted(&shown), fault.what);
            self.report.push(Diagnostic::error(title).at(span.clone(), "").maybe_help(fault.help));
        }
        if more > 0 {
            self.report
                .push(Diagnostic::error(format!("{} has {more} more faults", quoted(&shown))).at(span.clone(), ""));
        }
        let kinds = kinds(&users);
        if kinds > KINDS {
            self.report.push(
                Diagnostic::warning(format!(
                    "the hashes in {} were made with {kinds} different settings: what a wrong password costs tells \
                     some users from others",
                    quoted(&shown)
                ))
                .at(span.clone(), "")
                .help(format!("have them made with the same settings, or with {KINDS} different ones at most")),
            );
        }
        (Some(path.clone()), users)
    }

    /// Checks every set of rules; `users` is `None` when nobody can be known.
    pub(super) fn rule_sets(&mut self, file: &File, users: Option<&[User]>) {
        let known: Option<HashMap<&str, ()>> =
            users.map(|users| users.iter().map(|user| (user.name.as_str(), ())).collect());
        for set in &file.rule_sets {
            let checked = self.rule_set(set, known.as_ref());
            self.rules.insert(set.name.value.clone(), checked);
        }
    }

    fn rule_set(&mut self, set: &syntax::RuleSet, known: Option<&HashMap<&str, ()>>) -> RuleSet {
        let auth = set.auth.as_ref().is_some_and(|auth| auth.value);
        if let (Some(At { value: true, span }), None) = (&set.auth, known) {
            self.report.push(
                Diagnostic::error("clients must prove who they are, but there are no users")
                    .at(span.clone(), "")
                    .help("add, as a table of its own:\n[users]\nfile = \"/etc/pointsman/users\""),
            );
        }
        let rules: Vec<Rule> = set.rules.iter().filter_map(|rule| self.rule(rule, auth, known)).collect();
        let allows = |rule: &Rule| rule.action == Action::Allow && rule.subject == Subject::Targets;
        if !self.report.has_errors() && !rules.iter().any(allows) {
            self.report.push(
                Diagnostic::warning(format!(
                    "no rule of {} allows anything: all will be refused",
                    quoted(&set.name.value)
                ))
                .at(set.name.span.clone(), "")
                .help("add a rule to `list`, such as { action = \"allow\", names = [\".example.com\"] }"),
            );
        }
        let limits = |limits: &Option<At<syntax::UseLimits>>| {
            let limits = limits.as_ref().map(|at| at.value).unwrap_or_default();
            UseLimits {
                connections: limits.connections.flatten(),
                connections_per_second: limits.connections_per_second.flatten(),
                rate_bytes: limits.rate_bytes.flatten(),
            }
        };
        if let (Some(per_user), false) = (&set.per_user, auth) {
            self.report.push(
                Diagnostic::error("limits for each user, but clients are not asked who they are")
                    .at(per_user.span.clone(), "")
                    .help("write `auth = \"required\"`, or limit each `address`"),
            );
        }
        RuleSet {
            name: set.name.value.clone(),
            auth,
            lifetime_ms: set.lifetime_ms.flatten(),
            rules,
            per_user: limits(&set.per_user),
            per_address: limits(&set.per_address),
        }
    }

    fn rule(&mut self, rule: &syntax::Rule, auth: bool, known: Option<&HashMap<&str, ()>>) -> Option<Rule> {
        for At { value: network, span } in rule.clients.iter().chain(&rule.networks) {
            self.whole_network(network, span);
        }
        if let (Some(first), false) = (rule.users.first(), auth) {
            self.report.push(
                Diagnostic::error("a rule for users, but clients are not asked who they are")
                    .at(first.span.clone(), "")
                    .help("write `auth = \"required\"` in this set of rules, or leave `users` out"),
            );
        }
        for At { value: user, span } in &rule.users {
            let Some(known) = known.filter(|known| !known.contains_key(user.as_str())) else { continue };
            if !self.users_whole {
                continue;
            }
            let diagnostic = Diagnostic::error(format!("there is no user {}", quoted(user))).at(span.clone(), "");
            self.report.push(diagnostic.help(match nearest(user, known.keys().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "add a line for it to the file of users".to_owned(),
            }));
        }
        let subject = rule.subject.unwrap_or(Subject::Targets);
        if let (Subject::Replies, Some(name)) = (subject, rule.names.first()) {
            self.report.push(
                Diagnostic::error("clients name an address for the reply, never a host")
                    .at(name.span.clone(), "")
                    .help("write `networks` in a rule about replies"),
            );
        }
        fn values<T: Clone>(list: &[At<T>]) -> Vec<T> {
            list.iter().map(|at| at.value.clone()).collect()
        }
        Some(Rule {
            action: rule.action?,
            subject,
            clients: values(&rule.clients),
            users: values(&rule.users),
            names: values(&rule.names),
            networks: values(&rule.networks),
            ports: rule.ports.clone(),
        })
    }

    /// What a listener forwards, if it does.
    pub(super) fn forward(&mut self, listen: &syntax::Listen, mode: Option<Mode>) -> Option<Box<Forward>> {
        match mode? {
            Mode::Forward => {}
            Mode::Http | Mode::Tcp => {
                let spans = [
                    ("protocols", listen.protocols.as_ref().map(|at| at.span.clone())),
                    ("rules", listen.rules.as_ref().map(|at| at.span.clone())),
                ];
                for (key, span) in spans.into_iter().filter_map(|(key, span)| Some((key, span?))) {
                    self.report.push(
                        Diagnostic::error(format!("`{key}` is for forward listeners only"))
                            .at(span, "")
                            .help(format!("write `mode = \"forward\"`, or remove `{key}`")),
                    );
                }
                return None;
            }
        }
        let protocols = match &listen.protocols {
            Given::Is(At { value: list, .. }) => Protocols {
                http: list.contains(&0),
                socks5: list.contains(&1),
                socks4a: list.contains(&2),
                dynamic: list.contains(&3),
            },
            Given::Absent | Given::Wrong => Protocols::ALL,
        };
        let rules = match &listen.rules {
            Given::Is(name) => self.rules_named(name),
            Given::Absent => {
                self.report.push(
                    Diagnostic::warning("this listener has no rules: everything will be refused")
                        .at(listen.span.clone(), "")
                        .help("add `rules = \"office\"`, and a table [rules.office] with what is allowed"),
                );
                None
            }
            Given::Wrong => None,
        };
        if let (Some(set), true) = (rules.as_ref().filter(|set| set.auth), protocols.socks4a && !protocols.http)
            && !protocols.socks5
            && !protocols.dynamic
        {
            self.report.push(
                Diagnostic::warning(format!("SOCKS4 knows no passwords, which {} asks for", quoted(&set.name)))
                    .at(listen.span.clone(), "")
                    .help("everything will be refused; add \"socks5\" to `protocols`"),
            );
        }
        Some(Box::new(Forward { protocols, rules }))
    }

    fn rules_named(&mut self, name: &At<String>) -> Option<RuleSet> {
        if let Some(set) = self.rules.get(&name.value) {
            return Some(set.clone());
        }
        let mut known: Vec<&str> = self.rules.keys().map(String::as_str).collect();
        known.sort_unstable();
        let help = match nearest(&name.value, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() || known.len() > 20 => "add a table [rules.NAME] with what is allowed".to_owned(),
            None => format!("the sets of rules are {}", known.join(", ")),
        };
        self.report.push(
            Diagnostic::error(format!("there are no rules {}", quoted(&name.value)))
                .at(name.span.clone(), "")
                .help(help),
        );
        None
    }

    /// Warns of sets of rules that no listener goes by.
    pub(super) fn unused_rules(&mut self, file: &File) {
        let uses = |name: &str| file.listen.iter().filter_map(|l| l.rules.as_ref()).any(|rules| rules.value == name);
        for set in file.rule_sets.iter().filter(|set| !uses(&set.name.value)) {
            self.report.push(
                Diagnostic::warning(format!("no listener goes by the rules {}", quoted(&set.name.value)))
                    .at(set.name.span.clone(), "")
                    .help("remove them, or name them in `rules` of a forward listener"),
            );
        }
    }
}
