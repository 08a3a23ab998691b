use std::str::FromStr as _;

use domain::base::iana::Rcode;
use domain::base::{Message, MessageBuilder, Name, Ttl};
use domain::rdata::{A, Aaaa, Cname, Soa, Srv};
use proptest::prelude::*;

use super::*;
use crate::dns::message::Service;
use crate::dns::room;

fn server(n: u8) -> SocketAddr {
    ([127, 0, 0, n], 53).into()
}

fn settings(servers: u8) -> Dns {
    Dns { servers: (1..=servers).map(server).collect(), timeout_ms: 1000, attempts: 2, ..Dns::default() }
}

fn resolver(servers: u8) -> Resolver<u32> {
    Resolver::new(settings(servers))
}

fn name(text: &str) -> Name<Vec<u8>> {
    Name::from_str(text).unwrap()
}

/// A record as text: `name ttl A|AAAA|CNAME|SRV|SOA data`.
type Line<'t> = &'t str;

/// An answer to `message` with these records; SOA records go where they belong.
fn answer(message: &[u8], rcode: Rcode, truncated: bool, lines: &[Line<'_>]) -> Vec<u8> {
    let question = Message::from_octets(message).unwrap();
    let mut builder = MessageBuilder::new_vec().start_answer(&question, rcode).unwrap();
    builder.header_mut().set_tc(truncated);
    let split = |line: &&str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for words in lines.iter().map(split).filter(|words| words[2] != "SOA") {
        let (owner, ttl, data) = (name(&words[0]), Ttl::from_secs(words[1].parse().unwrap()), words[3].as_str());
        match words[2].as_str() {
            "A" => builder.push((owner, ttl, A::from_str(data).unwrap())).unwrap(),
            "AAAA" => builder.push((owner, ttl, Aaaa::from_str(data).unwrap())).unwrap(),
            "CNAME" => builder.push((owner, ttl, Cname::new(name(data)))).unwrap(),
            "SRV" => {
                let n: Vec<u16> = data.split('/').take(3).map(|n| n.parse().unwrap()).collect();
                let host = name(data.split('/').nth(3).unwrap());
                builder.push((owner, ttl, Srv::new(n[0], n[1], n[2], host))).unwrap();
            }
            other => panic!("{other}"),
        }
    }
    let mut builder = builder.authority();
    for words in lines.iter().map(split).filter(|words| words[2] == "SOA") {
        let ttl = Ttl::from_secs(words[1].parse().unwrap());
        let minimum = Ttl::from_secs(words[3].parse().unwrap());
        let soa = Soa::new(name("ns.x"), name("root.x"), 1u32.into(), ttl, ttl, ttl, minimum);
        builder.push((name(&words[0]), ttl, soa)).unwrap();
    }
    builder.finish()
}

#[derive(Debug, Clone)]
struct Sent {
    query: Key<Query>,
    server: SocketAddr,
    tcp: bool,
    message: Vec<u8>,
    question: String,
}

/// What was sent since the last time.
fn sent(resolver: &mut Resolver<u32>) -> Vec<Sent> {
    let mut all = Vec::new();
    while let Some(command) = resolver.next_command() {
        if let Command::Send { query, server, tcp, message } = command {
            let parsed = Message::from_octets(message.as_slice()).unwrap();
            assert!(parsed.header().rd() && !parsed.header().qr());
            let asked = parsed.sole_question().unwrap();
            let question = format!("{} {}", asked.qname(), asked.qtype());
            all.push(Sent { query, server, tcp, message, question });
        }
    }
    all
}

/// Answers everything sent at `now_ms` by the records whose owner and type were asked for, aliases included.
fn serve(resolver: &mut Resolver<u32>, now_ms: u64, zone: &[Line<'_>]) -> Vec<String> {
    let mut asked = Vec::new();
    loop {
        let batch = sent(resolver);
        if batch.is_empty() {
            return asked;
        }
        for one in batch {
            let (owner, kind) = one.question.split_once(' ').unwrap();
            let fits = |line: &&str| {
                let words: Vec<&str> = line.split(' ').collect();
                words[0] == owner && (words[2] == kind || words[2] == "CNAME" || words[2] == "SOA")
            };
            let lines: Vec<&str> = zone.iter().copied().filter(fits).collect();
            let known = zone.iter().any(|line| line.split(' ').next() == Some(owner));
            let rcode = if known { Rcode::NOERROR } else { Rcode::NXDOMAIN };
            let bytes = answer(&one.message, rcode, false, &lines);
            asked.push(one.question.clone());
            resolver.on_message(one.query, &bytes, now_ms);
        }
    }
}

fn finished(resolver: &mut Resolver<u32>) -> Vec<(u32, Result<Vec<String>, DnsError>)> {
    let mut all = Vec::new();
    while let Some((waiter, result)) = resolver.next_finished() {
        all.push((waiter, result.map(|answer| answer.addresses.iter().map(ToString::to_string).collect())));
    }
    all
}

fn ips(texts: &[&str]) -> Result<Vec<String>, DnsError> {
    Ok(texts.iter().map(|&text| text.to_owned()).collect())
}

fn ready(lookup: Lookup) -> Vec<String> {
    let Lookup::Ready(answer) = lookup else { panic!("{lookup:?}") };
    answer.addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn both_families_are_asked_for_together_and_one_lookup_serves_all() {
    let mut resolver = resolver(1);
    assert_eq!(resolver.lookup("App.X", 1, 0), Lookup::Pending);
    assert_eq!(resolver.lookup("app.x", 2, 0), Lookup::Pending);
    let zone = ["app.x 60 A 10.0.0.1", "app.x 30 AAAA ::1", "app.x 60 A 10.0.0.2"];
    assert_eq!(serve(&mut resolver, 5, &zone), ["app.x AAAA", "app.x A"]);
    let all = ips(&["::1", "10.0.0.1", "10.0.0.2"]);
    assert_eq!(finished(&mut resolver), [(1, all.clone()), (2, all.clone())]);
    // The shorter of both TTLs holds.
    assert_eq!(ready(resolver.lookup("app.x", 3, 30_004)), all.unwrap());
    assert_eq!(resolver.lookup("app.x", 3, 30_005), Lookup::Pending);
    assert_eq!(resolver.outstanding(), 1);
}

#[test]
fn addresses_hosts_and_localhost_are_never_asked_for() {
    let mut dns = settings(1);
    dns.hosts = vec![("five".to_owned(), vec![[10, 0, 0, 5].into(), Ipv6Addr::LOCALHOST.into()])];
    let mut resolver: Resolver<u32> = Resolver::new(dns);
    assert_eq!(ready(resolver.lookup("10.0.0.1", 1, 0)), ["10.0.0.1"]);
    assert_eq!(ready(resolver.lookup("2001:db8::1", 1, 0)), ["2001:db8::1"]);
    assert_eq!(ready(resolver.lookup("FIVE", 1, 0)), ["::1", "10.0.0.5"]);
    assert_eq!(ready(resolver.lookup("a.localhost.", 1, 0)), ["::1", "127.0.0.1"]);
    assert_eq!(resolver.lookup("a.invalid", 1, 0), Lookup::Refused(DnsError::NoSuchName));
    for text in ["0x7f000001", "2130706433", "127.1", "a b", ""] {
        assert!(matches!(resolver.lookup(text, 1, 0), Lookup::Refused(DnsError::NotAName(_))), "{text}");
    }
    assert!(sent(&mut resolver).is_empty() && resolver.next_deadline().is_none());
    assert_eq!(Resolver::new(settings(0)).lookup("a.x", 1, 0), Lookup::Refused(DnsError::NoServers));
}

#[test]
fn what_is_not_our_answer_is_passed_over() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("app.x", 1, 0);
    let zone = ["app.x 60 A 10.0.0.1"];
    for one in sent(&mut resolver) {
        let right = answer(&one.message, Rcode::NOERROR, false, &zone);
        let mut other_id = right.clone();
        other_id[0] ^= 1;
        let mut other_name = right.clone();
        other_name[13] ^= 1;
        let mut other_kind = right.clone();
        // Behind the name `app.x`: type and class.
        other_kind[20] ^= 1;
        let mut other_class = right.clone();
        other_class[22] ^= 2;
        let mut no_answer = right.clone();
        no_answer[2] &= 0x7f;
        for wrong in [&other_id, &other_name, &other_kind, &other_class, &no_answer, &vec![], &right[..20].to_vec()] {
            resolver.on_message(one.query, wrong, 1);
            assert!(finished(&mut resolver).is_empty() && sent(&mut resolver).is_empty());
        }
        let mut other_case = right.clone();
        other_case[13] ^= 0x20;
        resolver.on_message(one.query, &other_case, 1);
    }
    assert_eq!(finished(&mut resolver), [(1, ips(&["10.0.0.1"]))]);
}

#[test]
fn a_flood_of_wrong_answers_moves_the_question_to_another_server() {
    let mut resolver = resolver(2);
    let _ = resolver.lookup("app.x", 1, 0);
    let first = sent(&mut resolver).remove(0);
    for _ in 0..WRONG_MAX {
        resolver.on_message(first.query, &[0; 20], 1);
    }
    let again = sent(&mut resolver);
    assert_eq!((again.len(), again[0].query, again[0].server), (1, first.query, server(2)));
    assert_ne!(again[0].message[..2], first.message[..2], "the number should be another");
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("app.x", 1, 0);
    for one in sent(&mut resolver) {
        resolver.on_message(one.query, &answer(&one.message, Rcode::NOERROR, true, &[]), 1);
    }
    let over_tcp = sent(&mut resolver);
    assert!(over_tcp.len() == 2 && over_tcp.iter().all(|one| one.tcp && one.server == server(1)));
    for one in over_tcp {
        resolver.on_message(one.query, &answer(&one.message, Rcode::NOERROR, false, &["app.x 9 A 10.0.0.1"]), 1);
    }
    assert_eq!(finished(&mut resolver), [(1, ips(&["10.0.0.1"]))]);
}

#[test]
fn servers_are_asked_one_after_the_other_and_again() {
    let mut resolver = resolver(2);
    let _ = resolver.lookup("app.x", 1, 0);
    let mut asked: Vec<SocketAddr> = Vec::new();
    let mut now_ms = 0;
    while finished_count(&resolver) == 0 {
        asked.extend(sent(&mut resolver).iter().filter(|one| one.question.ends_with(" A")).map(|one| one.server));
        now_ms = resolver.next_deadline().unwrap();
        resolver.on_time(now_ms);
    }
    assert_eq!((asked, now_ms), (vec![server(1), server(2), server(1), server(2)], 4000));
    assert_eq!(finished(&mut resolver), [(1, Err(DnsError::Trouble(Trouble::Silent)))]);
    assert!(matches!(resolver.next_change(), Some(Change::Failing(..))));
    // That nobody answered holds for a second, and then they are asked again.
    assert!(matches!(resolver.lookup("app.x", 2, 4999), Lookup::Refused(DnsError::Trouble(_))));
    assert_eq!(resolver.lookup("app.x", 2, 5000), Lookup::Pending);
}

fn finished_count(resolver: &Resolver<u32>) -> usize {
    resolver.finished.len()
}

#[test]
fn a_server_that_fails_or_is_unreachable_is_followed_by_the_next() {
    let mut resolver = resolver(3);
    let _ = resolver.lookup("app.x", 1, 0);
    for one in sent(&mut resolver) {
        resolver.on_failed(one.query, 0);
    }
    for one in sent(&mut resolver) {
        assert_eq!(one.server, server(2));
        resolver.on_message(one.query, &answer(&one.message, Rcode::SERVFAIL, false, &[]), 0);
    }
    for one in sent(&mut resolver) {
        assert_eq!(one.server, server(3));
        resolver.on_message(one.query, &answer(&one.message, Rcode::NOERROR, false, &["app.x 9 A 10.0.0.1"]), 0);
    }
    assert_eq!(finished(&mut resolver), [(1, ips(&["10.0.0.1"]))]);
    // The one that cannot be reached comes last from now on.
    let _ = resolver.lookup("b.x", 1, 0);
    assert!(sent(&mut resolver).iter().all(|one| one.server == server(2)));
}

#[test]
fn for_want_of_a_socket_no_server_is_blamed() {
    let mut resolver = resolver(1);
    for n in 0..3u64 {
        let _ = resolver.lookup(&format!("n{n}.x"), 1, n * 10_000);
        while let Some(due_ms) = resolver.next_deadline() {
            for one in sent(&mut resolver) {
                resolver.on_unsent(one.query);
            }
            resolver.on_time(due_ms);
        }
    }
    assert_eq!(resolver.next_change(), None);
    assert!(finished(&mut resolver).iter().all(|(_, result)| *result == Err(DnsError::Trouble(Trouble::Silent))));
}

#[test]
fn a_server_that_does_not_know_edns_is_asked_without() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("app.x", 1, 0);
    for one in sent(&mut resolver) {
        // A header alone.
        let mut bytes = answer(&one.message, Rcode::FORMERR, false, &[]);
        bytes.truncate(12);
        bytes[5] = 0;
        resolver.on_message(one.query, &bytes, 0);
    }
    let again = sent(&mut resolver);
    assert!(again.iter().all(|one| one.message[11] == 0), "no additional record");
    for one in again {
        resolver.on_message(one.query, &answer(&one.message, Rcode::NOERROR, false, &["app.x 9 A 10.0.0.1"]), 0);
    }
    assert_eq!(finished(&mut resolver), [(1, ips(&["10.0.0.1"]))]);
}

#[test]
fn a_server_that_takes_edns_for_another_kind_of_question_is_asked_without() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("app.x", 1, 0);
    // Two attempts, each of which begins with it.
    for additional in [1, 0, 1, 0] {
        let asked = sent(&mut resolver);
        assert!(asked.len() == 2 && asked.iter().all(|one| one.message[11] == additional), "{asked:?}");
        for one in asked {
            resolver.on_message(one.query, &answer(&one.message, Rcode::NOTIMP, false, &[]), 0);
        }
    }
    assert_eq!(finished(&mut resolver), [(1, Err(DnsError::ServerFailure(4)))]);
}

#[test]
fn aliases_are_followed_over_answers_and_end() {
    let mut one = resolver(1);
    let _ = one.lookup("a.x", 1, 0);
    let zone = ["a.x 60 CNAME b.x", "b.x 60 CNAME c.x", "c.x 60 A 10.0.0.1"];
    serve(&mut one, 0, &zone);
    assert_eq!(finished(&mut one), [(1, ips(&["10.0.0.1"]))]);
    let mut circle = resolver(1);
    let _ = circle.lookup("a.x", 1, 0);
    let asked = serve(&mut circle, 0, &["a.x 60 CNAME b.x", "b.x 60 CNAME a.x"]);
    assert_eq!(finished(&mut circle), [(1, Err(DnsError::AliasesTooLong))]);
    assert_eq!(asked, ["a.x AAAA", "a.x A", "b.x AAAA", "b.x A"], "where it closes, it ends");
}

#[test]
fn an_alias_for_a_number_is_asked_of_nobody() {
    for to in ["127.1", "localhost"] {
        let mut resolver = resolver(1);
        let _ = resolver.lookup("a.x", 1, 0);
        let alias = format!("a.x 60 CNAME {to}");
        assert_eq!(serve(&mut resolver, 0, &[&alias]), ["a.x AAAA", "a.x A"]);
        assert_eq!(finished(&mut resolver), [(1, Err(DnsError::BadAlias))]);
    }
}

#[test]
fn what_an_alias_leads_to_is_asked_for_once_though_the_answer_is_about_another() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("a.x", 1, 0);
    for (zone, asked) in [("a.x 60 CNAME b.x", "a.x"), ("other.x 60 CNAME c.x", "b.x")] {
        for one in sent(&mut resolver) {
            assert!(one.question.starts_with(asked), "{}", one.question);
            resolver.on_message(one.query, &answer(&one.message, Rcode::NOERROR, false, &[zone]), 0);
        }
    }
    assert!(sent(&mut resolver).is_empty());
    assert_eq!(finished(&mut resolver), [(1, Err(DnsError::NoAddress))]);
}

#[test]
fn an_answer_says_what_led_to_it() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("a.x", 1, 0);
    serve(&mut resolver, 0, &["a.x 60 CNAME b.x", "b.x 60 CNAME c.x", "c.x 60 A 10.0.0.1"]);
    let (_, answer) = resolver.next_finished().unwrap();
    assert_eq!(answer.unwrap().aliases.as_deref(), Some(&["b.x".to_owned(), "c.x".to_owned()][..]));
}

#[test]
fn that_there_is_nothing_is_remembered_as_long_as_it_holds() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("gone.x", 1, 0);
    for one in sent(&mut resolver) {
        resolver.on_message(one.query, &answer(&one.message, Rcode::NXDOMAIN, false, &["x 100 SOA 7"]), 0);
    }
    assert_eq!(finished(&mut resolver), [(1, Err(DnsError::NoSuchName))]);
    assert_eq!(resolver.lookup("gone.x", 1, 6999), Lookup::Refused(DnsError::NoSuchName));
    assert_eq!(resolver.lookup("gone.x", 1, 7000), Lookup::Pending);
    serve(&mut resolver, 7000, &["gone.x 60 SOA 100000"]);
    assert_eq!(finished(&mut resolver), [(1, Err(DnsError::NoAddress))]);
    assert_eq!(resolver.lookup("gone.x", 1, 36_999), Lookup::Refused(DnsError::NoAddress));
    assert_eq!(resolver.lookup("gone.x", 1, 37_000), Lookup::Pending);
}

#[test]
fn suffixes_are_tried_for_names_with_few_dots_only() {
    let dns = Dns { search: vec!["one.x".to_owned(), "two.x".to_owned()], ..settings(1) };
    let asked = |text: &str, zone: &[Line<'_>]| {
        let mut resolver: Resolver<u32> = Resolver::new(dns.clone());
        let _ = resolver.lookup(text, 1, 0);
        let asked = serve(&mut resolver, 0, zone);
        let asked = asked.iter().filter(|question| question.ends_with(" A")).cloned().collect::<Vec<_>>();
        (asked, finished(&mut resolver).remove(0).1)
    };
    let found = ips(&["10.0.0.1"]);
    assert_eq!(asked("app", &["app.one.x 9 A 10.0.0.1"]), (vec!["app.one.x A".to_owned()], found.clone()));
    let all = ["app.one.x A", "app.two.x A", "app A"].map(str::to_owned).to_vec();
    assert_eq!(asked("app", &["app 9 A 10.0.0.1"]), (all, found));
    let none = Err(DnsError::NoSuchName);
    assert_eq!(asked("app.", &[]), (vec!["app A".to_owned()], none.clone()));
    assert_eq!(asked("app.b", &[]), (vec!["app.b A".to_owned()], none));
}

#[test]
fn one_family_does_not_wait_long_for_the_other() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("app.x", 1, 0);
    let both = sent(&mut resolver);
    let (v6, v4) = (both[0].clone(), both[1].clone());
    resolver.on_message(v4.query, &answer(&v4.message, Rcode::NOERROR, false, &["app.x 99 A 10.0.0.1"]), 10);
    assert!(finished(&mut resolver).is_empty());
    assert_eq!(resolver.next_deadline(), Some(10 + RESOLUTION_DELAY_MS));
    resolver.on_time(10 + RESOLUTION_DELAY_MS);
    let (waiter, result) = resolver.next_finished().unwrap();
    let partial = result.unwrap();
    assert_eq!((waiter, partial.lacks), (1, Lacks { v4: false, v6: true }));
    assert_eq!(ready(resolver.lookup("app.x", 2, 100)), ["10.0.0.1"]);
    resolver.on_message(v6.query, &answer(&v6.message, Rcode::NOERROR, false, &["app.x 99 AAAA ::2"]), 200);
    assert_eq!(ready(resolver.lookup("app.x", 2, 200)), ["::2", "10.0.0.1"]);
    assert!(finished(&mut resolver).is_empty());
}

#[test]
fn while_one_family_is_not_answered_nobody_waits_for_it_again() {
    let mut resolver = resolver(2);
    let _ = resolver.lookup("app.x", 1, 0);
    let v4 = sent(&mut resolver).remove(1);
    resolver.on_message(v4.query, &answer(&v4.message, Rcode::NOERROR, false, &["app.x 1 A 10.0.0.1"]), 10);
    resolver.on_time(10 + RESOLUTION_DELAY_MS);
    assert!(resolver.next_finished().is_some());
    // Two servers with two attempts of a second each.
    for now_ms in (500..4000).step_by(500) {
        resolver.on_time(now_ms);
        let Lookup::Ready(partial) = resolver.lookup("app.x", 2, now_ms) else { panic!("has to wait at {now_ms}") };
        assert!(partial.expires_ms > now_ms && partial.expires_ms <= now_ms + 1000, "{now_ms}");
        assert_eq!(partial.lacks, Lacks { v4: false, v6: true });
    }
    resolver.on_time(4000);
    assert_eq!((resolver.outstanding(), ready(resolver.lookup("app.x", 3, 4000))), (0, vec!["10.0.0.1".to_owned()]));
}

#[test]
fn services_come_with_their_records() {
    let mut resolver = resolver(1);
    assert_eq!(resolver.lookup_service("_http._tcp.x", 1, 0), Lookup::Pending);
    let asked = serve(&mut resolver, 0, &["_http._tcp.x 9 SRV 1/2/80/A.x", "_http._tcp.x 9 SRV 0/5/81/b.x"]);
    assert_eq!(asked, ["_http._tcp.x SRV"]);
    let services = resolver.next_finished().unwrap().1.unwrap().services.clone();
    let service = |priority, weight, port, host: &str| Service { priority, weight, port, host: host.to_owned() };
    assert_eq!(services, [service(1, 2, 80, "a.x"), service(0, 5, 81, "b.x")]);
}

#[test]
fn there_is_a_bound_on_lookups() {
    let mut resolver = resolver(1);
    for n in 0..room::ALL {
        assert_eq!(resolver.lookup(&format!("n{n}.x"), 1, 0), Lookup::Pending);
    }
    assert_eq!(resolver.lookup("one.more", 1, 0), Lookup::Refused(DnsError::Busy));
    assert_eq!(resolver.lookup("n0.x", 2, 0), Lookup::Pending);
}

#[test]
fn names_that_nobody_answers_for_take_no_room_from_others() {
    let mut resolver = resolver(1);
    let client = |n: u8| Source::of(Some([192, 0, 2, n].into()));
    let begun = |n: usize, lookup: Lookup| match lookup {
        Lookup::Pending => true,
        Lookup::Refused(DnsError::Busy) => false,
        Lookup::Ready(_) | Lookup::Refused(_) => panic!("{n}: {lookup:?}"),
    };
    let mut flood = 0..2 * room::ALL;
    let count = |resolver: &mut Resolver<u32>, range: &mut std::ops::Range<usize>, by| {
        range.filter(|&n| begun(n, resolver.lookup_for(&format!("n{n}.x"), 1, by, 0))).count()
    };
    assert_eq!(count(&mut resolver, &mut flood, client(1)), room::ANYBODYS);
    // To wait with others for what has begun takes no room.
    assert_eq!(resolver.lookup_for("n0.x", 2, client(1), 0), Lookup::Pending);
    assert_eq!(resolver.lookup_for("good.x", 2, client(2), 0), Lookup::Pending);
    assert_eq!(resolver.lookup("server.x", 3, 0), Lookup::Pending);
    resolver.on_time(LOOKUP_MAX_MS);
    assert!(resolver.room.is_empty());
}

#[test]
fn other_servers_are_asked_after_a_change_of_settings() {
    let mut resolver = resolver(1);
    let _ = resolver.lookup("app.x", 1, 0);
    let former = sent(&mut resolver);
    resolver.reconfigure(&Dns { servers: vec![server(9)], ..settings(0) }, 5);
    resolver.on_message(former[0].query, &answer(&former[0].message, Rcode::NXDOMAIN, false, &[]), 5);
    let again = sent(&mut resolver);
    assert!(again.len() == 2 && again.iter().all(|one| one.server == server(9)));
    for one in again {
        resolver.on_message(one.query, &answer(&one.message, Rcode::NOERROR, false, &["app.x 9 A 10.0.0.1"]), 6);
    }
    assert_eq!(finished(&mut resolver), [(1, ips(&["10.0.0.1"]))]);
}

#[test]
fn half_an_answer_is_forgotten_with_a_change_of_settings() {
    let mut resolver = resolver(1);
    for (now_ms, servers) in [(0, 2), (1000, 1)] {
        let lookup = resolver.lookup("app.x", 1, now_ms);
        assert_eq!(lookup, Lookup::Pending, "the former servers' half is not used");
        let v4 = sent(&mut resolver).pop().unwrap();
        resolver.on_message(v4.query, &answer(&v4.message, Rcode::NOERROR, false, &["app.x 99 A 10.0.0.1"]), now_ms);
        resolver.on_time(now_ms + RESOLUTION_DELAY_MS);
        assert!(finished(&mut resolver).iter().all(|(_, result)| result.is_ok()), "{servers}");
        assert_eq!(ready(resolver.lookup("app.x", 2, now_ms + 100)), ["10.0.0.1"], "{servers}");
        resolver.reconfigure(&settings(servers), now_ms + 200);
    }
}

#[test]
fn any_bytes_are_an_answer_or_none() {
    crate::proto::mutations::each("dns_message", 2000, crate::dns::fuzz::check);
}

#[derive(Debug, Clone)]
enum Event {
    Lookup(u8),
    /// An answer to the n-th outstanding question, with this RCODE, truncated or not, an alias or an address.
    Answer(prop::sample::Index, u8, bool, bool),
    Garbage(prop::sample::Index, Vec<u8>),
    /// A right answer with one byte changed.
    Bent(prop::sample::Index, prop::sample::Index, u8),
    Fail(prop::sample::Index),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        3 => (0..6u8).prop_map(Event::Lookup),
        4 => (which(), 0..6u8, any::<bool>(), any::<bool>()).prop_map(|(n, code, tc, alias)| Event::Answer(n, code, tc, alias)),
        1 => (which(), prop::collection::vec(any::<u8>(), 0..80)).prop_map(|(n, bytes)| Event::Garbage(n, bytes)),
        2 => (which(), which(), any::<u8>()).prop_map(|(n, at, with)| Event::Bent(n, at, with)),
        1 => which().prop_map(Event::Fail),
        2 => (0..3000u64).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Whatever comes and whenever: everybody who waits is answered once, in time, and nothing is left over.
    #[test]
    fn everybody_is_answered_once(servers in 0..4u8, events in prop::collection::vec(event(), 1..120)) {
        let mut resolver = resolver(servers);
        let mut now_ms = 0;
        let mut open: HashMap<Key<Query>, Sent> = HashMap::new();
        let mut waiting: HashMap<u32, u64> = HashMap::new();
        let mut next = 0;
        let mut sends = 0usize;
        let mut lookups = 0usize;
        for event in events {
            let pick = |n: &prop::sample::Index| {
                let mut all: Vec<_> = open.values().cloned().collect();
                all.sort_by_key(|one| one.query.to_bits());
                (!all.is_empty()).then(|| n.get(&all).clone())
            };
            match event {
                Event::Lookup(n) => {
                    next += 1;
                    let by = Source::of(Some([192, 0, 2, n % 2].into()));
                    if resolver.lookup_for(&format!("n{n}.x"), next, by, now_ms) == Lookup::Pending {
                        waiting.insert(next, now_ms + LOOKUP_MAX_MS);
                        lookups += 1;
                    }
                }
                Event::Answer(n, code, truncated, alias) => if let Some(one) = pick(&n) {
                    let (owner, kind) = one.question.split_once(' ').unwrap();
                    let line = match (alias, kind) {
                        (true, _) => format!("{owner} 5 CNAME c.{owner}"),
                        (false, "A") => format!("{owner} 5 A 10.0.0.1"),
                        (false, _) => format!("{owner} 5 AAAA ::1"),
                    };
                    // A bent alias may have a blank in it, which lines cannot.
                    let lines: &[Line<'_>] = if owner.contains('\\') { &[] } else { &[&line] };
                    let bytes = answer(&one.message, Rcode::masked_from_int(code), truncated, lines);
                    resolver.on_message(one.query, &bytes, now_ms);
                },
                Event::Garbage(n, bytes) => if let Some(one) = pick(&n) {
                    resolver.on_message(one.query, &bytes, now_ms);
                },
                Event::Bent(n, at, with) => if let Some(one) = pick(&n) {
                    let owner = one.question.split(' ').next().unwrap().to_owned();
                    let lines = [format!("{owner} 5 CNAME c.{owner}"), format!("c.{owner} 5 A 10.0.0.1")];
                    let lines: &[Line<'_>] = if owner.contains('\\') { &[] } else { &[&lines[0], &lines[1]] };
                    let mut bytes = answer(&one.message, Rcode::NOERROR, false, lines);
                    let at = at.index(bytes.len());
                    bytes[at] = with;
                    resolver.on_message(one.query, &bytes, now_ms);
                },
                Event::Fail(n) => if let Some(one) = pick(&n) {
                    resolver.on_failed(one.query, now_ms);
                },
                Event::Pass(ms) => {
                    now_ms += ms;
                    resolver.on_time(now_ms);
                }
            }
            while let Some(command) = resolver.next_command() {
                match command {
                    Command::Close(query) => drop(open.remove(&query)),
                    Command::Send { query, server, tcp, message } => {
                        sends += 1;
                        let parsed = Message::from_octets(message.as_slice()).unwrap();
                        let asked = parsed.sole_question().unwrap();
                        let question = format!("{} {}", asked.qname(), asked.qtype());
                        open.insert(query, Sent { query, server, tcp, message, question });
                    }
                }
            }
            while let Some((waiter, _)) = resolver.next_finished() {
                prop_assert!(waiting.remove(&waiter).is_some(), "answered twice, or never asked");
            }
            prop_assert!(waiting.values().all(|&until| until > now_ms), "too late");
            prop_assert_eq!(waiting.is_empty() || resolver.next_deadline().is_some(), true);
            prop_assert!(open.len() <= 2 * resolver.outstanding());
        }
        // Each name is asked for at most so often: aliases, servers, attempts, once more without EDNS and over TCP.
        let most = 2 * (usize::from(answer::CHAIN_MAX) + 1) * usize::from(servers) * 2 * 3;
        prop_assert!(sends <= lookups * most.max(1), "{sends} for {lookups}");
        now_ms += LOOKUP_MAX_MS;
        resolver.on_time(now_ms);
        while let Some((waiter, _)) = resolver.next_finished() {
            prop_assert!(waiting.remove(&waiter).is_some());
        }
        while resolver.next_command().is_some() {}
        prop_assert!(waiting.is_empty());
        prop_assert!(resolver.room.is_empty());
        prop_assert_eq!((resolver.outstanding(), resolver.queries.len(), resolver.due.len(), resolver.waiting), (0, 0, 0, 0));
    }
}
