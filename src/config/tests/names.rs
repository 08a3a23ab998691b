//! Names of servers in a configuration: what they stand for, and where they are looked up.

use std::io;
use std::path::Path;

use ipc::snapshot::{Dns, Endpoint, Target};

use super::super::system::System;
use super::super::{Names, OsGroup, OsUser, check_text};
use super::*;

#[test]
fn a_name_is_looked_up_and_kept() {
    let text = "route = [{ to = \"a\" }]\nbackends.a.servers = [{ address = \"two.x:80\", weight = 3 }, \"none.x:1\", \"x:1\", \"one.x:80\"]";
    let loaded = read(text).unwrap();
    let group = &loaded.snapshot.groups[0];
    assert!(group.servers.is_empty());
    let known = |known: &[Endpoint]| known.iter().map(|one| one.address.to_string()).collect::<Vec<_>>();
    let names: Vec<_> = group.names.iter().map(|one| (one.name.as_str(), known(&one.known), one.weight)).collect();
    let two = vec!["10.0.0.1:80".to_owned(), "10.0.0.2:80".to_owned()];
    let one = vec!["10.0.0.1:80".to_owned()];
    assert_eq!(names, [("two.x:80", two, 3), ("none.x:1", vec![], 1), ("x:1", vec![], 1), ("one.x:80", one, 1)]);
    let warnings = loaded.warnings.to_string();
    assert!(!loaded.warnings.has_errors());
    assert!(warnings.contains("the name of the server `none.x:1` does not resolve: it has no addresses"), "{warnings}");
    assert!(warnings.contains("the name of the server `x:1` does not resolve: no such host"), "{warnings}");
    assert!(warnings.contains("this name stands for `10.0.0.1:80`, which is in the group already"), "{warnings}");
    assert_dump_reads_back(&loaded);
}

#[test]
fn a_group_whose_names_do_not_resolve_keeps_them() {
    let loaded = read("route = [{ to = \"a\" }]\nbackends.a.servers = [\"x:1\"]").unwrap();
    assert!(loaded.snapshot.groups[0].servers.is_empty() && loaded.snapshot.groups[0].names.len() == 1);
    assert_dump_reads_back(&loaded);
}

#[test]
fn services_are_looked_up_without_a_port_or_a_weight() {
    let text = |server: &str| format!("route = [{{ to = \"a\" }}]\nbackends.a.servers = [{server}]");
    let loaded = good(&text("{ srv = \"_http._tcp.App\", backup = true, name = \"app\" }"));
    let named = &loaded.snapshot.groups[0].names[0];
    assert_eq!(named.target, Target::Service { name: "_http._tcp.app".to_owned() });
    assert_eq!((named.name.as_str(), named.backup, named.known[0].address.port()), ("app", true, 77));
    assert_dump_reads_back(&loaded);
    let refused = |server: &str| read(&text(server)).expect_err("a fault should be found").to_string();
    assert!(refused("{ srv = \"_http._tcp.app\", weight = 2 }").contains("SRV records have weights of their own"));
    assert!(refused("{ srv = \"a.b\", address = \"127.0.0.1:1\" }").contains("either an `address` or an `srv` name"));
    assert!(refused("{ srv = \"_http._tcp.app:80\" }").contains("leave the port out"));
    assert!(refused("\"one.x:80\", { address = \"ONE.x:80\" }").contains("is in the group twice"));
}

#[test]
fn dns_settings_stand_above_the_files_of_the_system() {
    let sound = "route = [{ to = \"a\" }]\nbackends.a.servers = [\"127.0.0.1:9\"]\n";
    let dns = |text: &str| good(&format!("{sound}{text}")).snapshot.dns;
    let usual = dns("");
    assert_eq!(usual.servers, ["10.0.0.9:53".parse().unwrap()]);
    assert_eq!((usual.search.as_slice(), usual.ndots), (["test".to_owned()].as_slice(), 2));
    assert_eq!(usual.hosts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["five", "localhost"]);
    let own = "[dns]\nservers = [\"127.0.0.1:5353\", \"::1\"]\nhosts = \"off\"\nsearch = []\ntimeout = \"300ms\"\n\
               attempts = 4\nrotate = true\nndots = 1\n";
    let own = dns(own);
    assert_eq!(own.servers, ["127.0.0.1:5353".parse().unwrap(), "[::1]:53".parse().unwrap()]);
    let wanted = Dns { servers: own.servers.clone(), timeout_ms: 300, attempts: 4, rotate: true, ..Dns::default() };
    assert_eq!(own, wanted);
    assert_eq!(dns("[dns]\nresolv_conf = \"off\"\nhosts = \"off\"\n"), Dns::default());
    for hosts in ["", "[dns]\nhosts = \"off\"\n", "[dns]\nhosts = \"/etc/hosts\"\n", "[dns]\nhosts = \"/run/hosts\"\n"]
    {
        let loaded = good(&format!("{sound}{hosts}"));
        let again = good(&dump(&loaded.snapshot, &loaded.process));
        assert_eq!(again.process.resolver.hosts, loaded.process.resolver.hosts, "{hosts}");
        assert_eq!(again.snapshot.dns, loaded.snapshot.dns, "{hosts}");
    }
    // Where the usual file is not there, it is not asked for by what is read back, and still looked for.
    let mut loaded = good(sound);
    loaded.snapshot.dns.hosts.clear();
    let text = dump(&loaded.snapshot, &loaded.process);
    assert!(text.contains("\n# hosts = \"/etc/hosts\""), "{text}");
    assert_eq!(good(&text).process.resolver.hosts, loaded.process.resolver.hosts);
    assert_dump_reads_back(&good(&format!("{sound}[dns]\nhosts = \"/run/hosts\"\nservers = [\"fe80::1%3\"]\n")));
    let refused = |text: &str| read(&format!("{sound}[dns]\n{text}")).expect_err("a fault should be found").to_string();
    assert!(refused("servers = [\"dns.internal\"]").contains("is not the address of a name server"));
    assert!(refused("servers = [5]").contains("an entry of `servers` must be a string"));
    assert!(refused("hosts = \"/no/such\"").contains("cannot read /no/such"));
    assert!(refused("hosts = \"hosts\"").contains("write it from the root"));
    assert!(refused("timeout = \"31s\"").contains("write 30s or less"));
    assert!(refused("search = [\"a b\"]").contains("cannot be a search suffix"));
}

#[test]
fn a_name_that_no_longer_resolves_keeps_the_addresses_it_had() {
    /// The name service is away.
    struct Dark;
    impl System for Dark {
        fn resolve(&self, _: &Dns, targets: &[Target]) -> Vec<Result<Vec<Endpoint>, String>> {
            targets.iter().map(|_| Err("no answer".to_owned())).collect()
        }
        fn read(&self, path: &Path) -> io::Result<String> {
            TestSystem.read(path)
        }
        fn user(&self, name: &str) -> io::Result<Option<OsUser>> {
            TestSystem.user(name)
        }
        fn group(&self, name: &str) -> io::Result<Option<OsGroup>> {
            TestSystem.group(name)
        }
        fn cores(&self) -> usize {
            1
        }
        fn is_directory(&self, path: &Path) -> bool {
            TestSystem.is_directory(path)
        }
    }
    let text = "route = [{ to = \"web\" }]\nbackends.web.servers = [\"two.x:1\", \"127.0.0.1:9\"]\n";
    let mut names = Names::default();
    let mut read = |system: &dyn System| {
        let asked = names.begin(system);
        let loaded = check_text("t", text, None, &asked).unwrap_or_else(|report| panic!("{report}"));
        names = asked.into_names();
        loaded
    };
    let before = read(&TestSystem);
    for _ in 0..2 {
        let after = read(&Dark);
        assert_eq!(after.snapshot.groups, before.snapshot.groups);
        assert!(after.warnings.to_string().contains("the addresses it had before are used"), "{}", after.warnings);
    }
}
