//! Tables of rules and of the ways round them that have been tried elsewhere.

use ipc::forward::{NameMatch, PortRange, UseLimits};
use ipc::snapshot::Network;
use proptest::prelude::*;

use super::*;
use crate::proto::endpoint::Endpoint;

fn net(text: &str) -> Network {
    let (ip, prefix) = text.split_once('/').unwrap();
    Network { address: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

fn rule(action: Action) -> Rule {
    Rule {
        action,
        subject: Subject::Targets,
        clients: vec![],
        users: vec![],
        names: vec![],
        networks: vec![],
        ports: vec![],
    }
}

fn allow() -> Rule {
    rule(Action::Allow)
}

fn deny() -> Rule {
    rule(Action::Deny)
}

fn networks(list: &[&str]) -> Vec<Network> {
    list.iter().map(|text| net(text)).collect()
}

fn ports(first: u16, last: u16) -> Vec<PortRange> {
    vec![PortRange { first, last }]
}

fn set(rules: Vec<Rule>) -> RuleSet {
    let none = UseLimits::default();
    RuleSet { name: "test".to_owned(), auth: false, lifetime_ms: None, rules, per_user: none, per_address: none }
}

const ANYBODY: Asker<'static> = Asker { client: None, user: None, here: None, way: Way::Connect };

/// `named` is what the client wrote, `target` the address it is now to be connected to.
fn ask(rules: &[Rule], asker: &Asker<'_>, named: &str, target: &str) -> Verdict {
    ask_alias(rules, asker, named, &[], target)
}

/// The same where the name is an alias.
fn ask_alias(rules: &[Rule], asker: &Asker<'_>, named: &str, aliases: &[&str], target: &str) -> Verdict {
    let host = Endpoint::parse(format!("{named}:1").as_bytes()).unwrap().host;
    let aliases: Vec<String> = aliases.iter().map(|&alias| alias.to_owned()).collect();
    let named = Named { host: &host, aliases: &aliases };
    decide(&set(rules.to_vec()), &Own::default(), asker, named, target.parse().unwrap())
}

fn yes(index: usize) -> Verdict {
    Verdict { allowed: true, by: By::Rule(index) }
}

fn no(by: By) -> Verdict {
    Verdict { allowed: false, by }
}

#[test]
fn without_a_rule_that_allows_it_nothing_is_reached() {
    assert_eq!(ask(&[], &ANYBODY, "a.test", "1.1.1.1:443"), no(By::NoRule));
    assert_eq!(ask(&[deny()], &ANYBODY, "a.test", "1.1.1.1:443"), no(By::Rule(0)));
    assert_eq!(ask(&[allow()], &ANYBODY, "a.test", "1.1.1.1:443"), yes(0));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let named = |mut rule: Rule, name: NameMatch| {
        rule.names.push(name);
        rule
    };
    let suffix = || NameMatch::Suffix(".b.test".to_owned());
    let rules =
        [named(deny(), suffix()), named(allow(), NameMatch::Exact("a.test".to_owned())), named(allow(), suffix())];
    assert_eq!(ask(&rules, &ANYBODY, "A.test.", "1.1.1.1:443"), yes(1));
    assert_eq!(ask(&rules, &ANYBODY, "x.b.test", "1.1.1.1:443"), no(By::Rule(0)));
    assert_eq!(ask(&rules[1..], &ANYBODY, "x.b.test", "1.1.1.1:443"), yes(1));
    assert_eq!(ask(&rules, &ANYBODY, "x.a.test", "1.1.1.1:443"), no(By::NoRule));
    assert_eq!(ask(&rules, &ANYBODY, "1.1.1.1", "1.1.1.1:443"), no(By::NoRule), "an address has no name");
}

#[test]
fn an_alias_is_a_reason_to_deny_and_none_to_allow() {
    // Rules are built in place: handed to a closure twice, an optimised build by rustc 1.95 frees one of them twice
    // (rust-lang/rust#155241).
    let of = |action, suffix: &str| Rule { names: vec![NameMatch::Suffix(suffix.to_owned())], ..rule(action) };
    let (allow, deny) = (Action::Allow, Action::Deny);
    let rules = [of(deny, ".ads.test"), of(allow, ".b.test")];
    let to = |named: &str, aliases: &[&str]| ask_alias(&rules, &ANYBODY, named, aliases, "1.1.1.1:443");
    assert_eq!(to("x.b.test", &["cdn.c.test"]), yes(1));
    assert_eq!(to("x.b.test", &["cdn.c.test", "x.ads.test", "y.c.test"]), no(By::Rule(0)));
    assert_eq!(to("x.c.test", &["x.b.test"]), no(By::NoRule));
    assert_eq!(
        ask_alias(&[of(allow, ".b.test"), of(deny, ".ads.test")], &ANYBODY, "x.b.test", &["x.ads.test"], "1.1.1.1:443"),
        yes(0)
    );
}

#[test]
fn clients_users_networks_and_ports_narrow_a_rule() {
    let rules = [Rule {
        clients: networks(&["10.1.0.0/16"]),
        users: vec!["ann".to_owned()],
        networks: networks(&["1.1.1.0/24"]),
        ports: ports(8000, 8001),
        ..allow()
    }];
    let ann = Asker { client: Some("10.1.2.3".parse().unwrap()), user: Some("ann"), ..ANYBODY };
    assert_eq!(ask(&rules, &ann, "a.test", "1.1.1.9:8001"), yes(0));
    assert_eq!(ask(&rules, &ann, "a.test", "1.1.2.9:8001"), no(By::NoRule));
    assert_eq!(ask(&rules, &ann, "a.test", "1.1.1.9:8002"), no(By::NoRule));
    assert_eq!(ask(&rules, &Asker { user: Some("bob"), ..ann }, "a.test", "1.1.1.9:8001"), no(By::NoRule));
    assert_eq!(ask(&rules, &Asker { user: None, ..ann }, "a.test", "1.1.1.9:8001"), no(By::NoRule));
    let elsewhere = Some("10.2.2.3".parse().unwrap());
    assert_eq!(ask(&rules, &Asker { client: elsewhere, ..ann }, "a.test", "1.1.1.9:8001"), no(By::NoRule));
    assert_eq!(ask(&rules, &Asker { client: None, ..ann }, "a.test", "1.1.1.9:8001"), no(By::NoRule));
    let mapped = Some("::ffff:10.1.2.3".parse().unwrap());
    assert_eq!(ask(&rules, &Asker { client: mapped, ..ann }, "a.test", "1.1.1.9:8001"), yes(0));
}

#[test]
fn without_ports_the_usual_ones_are_allowed_and_all_are_denied() {
    let plain = Asker { way: Way::Plain, ..ANYBODY };
    assert_eq!(ask(&[allow()], &ANYBODY, "a.test", "1.1.1.1:80"), no(By::NoRule));
    assert_eq!(ask(&[allow()], &plain, "a.test", "1.1.1.1:80"), yes(0));
    assert_eq!(ask(&[allow()], &plain, "a.test", "1.1.1.1:443"), yes(0));
    assert_eq!(ask(&[allow()], &plain, "a.test", "1.1.1.1:22"), no(By::NoRule));
    assert_eq!(ask(&[deny(), allow()], &plain, "a.test", "1.1.1.1:22"), no(By::Rule(0)));
}

#[test]
fn special_addresses_need_a_network_of_their_own() {
    let any = Rule { ports: ports(1, 65535), ..allow() };
    let everything = Rule { networks: networks(&["0.0.0.0/0", "::/0"]), ..any.clone() };
    let named = Rule { names: vec![NameMatch::Exact("db.test".to_owned())], ..any.clone() };
    for target in
        ["127.0.0.1:80", "[::1]:80", "169.254.169.254:80", "10.0.0.1:80", "[fd00::1]:80", "[64:ff9b::7f00:1]:80"]
    {
        for rules in [[any.clone()], [everything.clone()], [named.clone()]] {
            let verdict = ask(&rules, &ANYBODY, "db.test", target);
            assert!(!verdict.allowed && matches!(verdict.by, By::Special(_)), "{target} {verdict:?}");
        }
    }
    // One that lists it, in whatever place, opens it, and only that.
    let rules = [any.clone(), Rule { networks: networks(&["10.1.0.0/16"]), ..named }];
    assert_eq!(ask(&rules, &ANYBODY, "db.test", "10.1.2.3:80"), yes(1));
    assert_eq!(ask(&rules, &ANYBODY, "db.test", "10.2.2.3:80"), no(By::Special("private")));
    assert_eq!(ask(&rules, &ANYBODY, "other.test", "10.1.2.3:80"), no(By::Special("private")));
    // A network that reaches beyond the special range does not.
    let wide = Rule { networks: networks(&["10.0.0.0/7"]), ..any };
    assert_eq!(ask(&[wide], &ANYBODY, "a.test", "10.1.2.3:80"), no(By::Special("private")));
}

#[test]
fn an_address_denied_is_denied_in_every_form() {
    let rules = [Rule { networks: networks(&["1.1.1.0/24"]), ..deny() }, allow()];
    for target in ["1.1.1.1:443", "[::ffff:1.1.1.1]:443", "[64:ff9b::1.1.1.1]:443", "[2002:101:101::1]:443"] {
        assert_eq!(ask(&rules, &ANYBODY, "a.test", target), no(By::Rule(0)), "{target}");
    }
    assert_eq!(ask(&rules, &ANYBODY, "a.test", "[64:ff9b::1.1.2.1]:443"), yes(1));
}

#[test]
fn the_proxy_itself_is_reached_only_where_its_very_address_is_listed() {
    let here = "1.1.1.1:443".parse().ok();
    let asker = Asker { here, ..ANYBODY };
    assert_eq!(ask(&[allow()], &asker, "a.test", "1.1.1.1:443"), no(By::Special("own listener")));
    let wide = Rule { networks: networks(&["1.1.1.0/24"]), ..allow() };
    assert_eq!(ask(&[wide], &asker, "a.test", "1.1.1.1:443"), no(By::Special("own listener")));
    let exact = Rule { networks: networks(&["1.1.1.1/32"]), ..allow() };
    assert_eq!(ask(&[exact], &asker, "a.test", "1.1.1.1:443"), yes(0));
}

#[test]
fn of_several_addresses_only_those_allowed_remain() {
    // What a name that lies resolves to: a public address in front, and what it is really after behind.
    let answer = ["1.1.1.1:443", "127.0.0.1:443", "[::1]:443", "[2606:4700::1]:443", "169.254.169.254:443"];
    let tried: Vec<&str> =
        answer.into_iter().filter(|target| ask(&[allow()], &ANYBODY, "rebind.test", target).allowed).collect();
    assert_eq!(tried, ["1.1.1.1:443", "[2606:4700::1]:443"]);
}

#[test]
fn names_that_nobody_may_reach_are_not_looked_up() {
    let host = |text: &str| Host::Name(text.into());
    let named = |rule: Rule, name: &str| Rule { names: vec![NameMatch::Exact(name.to_owned())], ..rule };
    let rules = set(vec![
        named(deny(), "bad.test"),
        Rule { networks: networks(&["1.0.0.0/8"]), ..deny() },
        named(allow(), "good.test"),
    ]);
    let refused = |name: &str, port: u16| refused_unresolved(&rules, &ANYBODY, &host(name), port);
    assert_eq!(refused("good.test", 443), None);
    assert_eq!(refused("good.test", 22), Some(no(By::NoRule)));
    assert_eq!(refused("bad.test", 443), Some(no(By::Rule(0))));
    assert_eq!(refused("other.test", 443), Some(no(By::NoRule)));
}

#[test]
fn answers_go_to_the_clients_own_address_or_where_a_rule_says() {
    let client = Asker { client: "192.0.2.9".parse().ok(), here: "192.0.2.1:3128".parse().ok(), ..ANYBODY };
    let ask =
        |rules: &[Rule], to: &str| decide_reply(&set(rules.to_vec()), &Own::default(), &client, to.parse().unwrap());
    let own = |allowed| Verdict { allowed, by: By::OwnAddress };
    assert_eq!(ask(&[], "192.0.2.9:9000"), own(true));
    assert_eq!(ask(&[], "[::ffff:192.0.2.9]:9000"), own(true));
    assert_eq!(ask(&[], "192.0.2.9:22"), no(By::NoRule), "not where services of the system are");
    assert_eq!(ask(&[], "1.1.1.1:9000"), no(By::NoRule));
    assert_eq!(ask(&[Rule { ports: ports(1, 65535), ..allow() }], "1.1.1.1:9000"), no(By::NoRule), "about targets");
    let replies = |rule: Rule| Rule { subject: Subject::Replies, ..rule };
    assert_eq!(ask(&[replies(allow())], "1.1.1.1:9000"), yes(0));
    assert_eq!(ask(&[replies(allow())], "127.0.0.1:9000"), no(By::Special("loopback")));
    assert_eq!(ask(&[replies(deny())], "192.0.2.9:9000"), no(By::Rule(0)));
    let itself = Asker { client: "192.0.2.1".parse().ok(), ..client };
    let verdict = decide_reply(&set(vec![]), &Own::default(), &itself, "192.0.2.1:3128".parse().unwrap());
    assert_eq!(verdict, own(false), "the proxy does not answer itself");
}

proptest! {
    /// Whatever address it is, and however it is written: a rule that lists no special network opens none.
    #[test]
    fn no_special_address_is_reached_by_a_rule_that_lists_none(bits in any::<u128>(), four in any::<u32>(), form in 0..6u8) {
        let ip = match form {
            0 => IpAddr::V4(four.into()),
            1 => IpAddr::V6((0xffff_u128 << 32 | u128::from(four)).into()),
            2 => IpAddr::V6(u128::from(four).into()),
            3 => IpAddr::V6((0x0064_ff9b_u128 << 96 | u128::from(four)).into()),
            4 => IpAddr::V6((0x2002_u128 << 112 | u128::from(four) << 80 | bits >> 48).into()),
            _ => IpAddr::V6(bits.into()),
        };
        let open = Rule { networks: networks(&["0.0.0.0/0", "::/0"]), ports: ports(1, 65535), ..allow() };
        let host = Host::ip(ip);
        let named = Named { host: &host, aliases: &[] };
        let verdict = decide(&set(vec![open]), &Own::default(), &ANYBODY, named, SocketAddr::new(ip, 80));
        let four = std::net::Ipv4Addr::from(four);
        let bad = four.is_loopback() || four.is_private() || four.is_link_local() || four.is_multicast()
            || four.is_broadcast() || four.is_unspecified() || four.is_documentation();
        if form <= 4 && bad {
            prop_assert!(!verdict.allowed, "{}", ip);
        }
        prop_assert_eq!(verdict.allowed, special::range_of(ip).is_none());
    }
}
