//! Forward listeners, rules and users in a configuration.

use ipc::snapshot::Mode;

use super::*;

#[test]
fn a_forward_listener_speaks_everything_and_needs_no_group() {
    let text = format!("{FORWARD}rules = \"o\"\n[rules.o]\nlist = [{{ action = \"allow\", names = [\"A.test\"] }}]\n");
    let loaded = good(&text);
    let listener = &loaded.snapshot.listeners[0];
    let forward = listener.forward.as_ref().unwrap();
    assert_eq!((listener.mode, forward.protocols), (Mode::Forward, ipc::forward::Protocols::ALL));
    assert_eq!(forward.rules.as_ref().unwrap().rules[0].names, [ipc::forward::NameMatch::Exact("a.test".to_owned())]);
    // Targets are farther away than servers of one's own; what is written counts all the same.
    assert_eq!(listener.timeouts.connect_ms, 10_000);
    let set = good(&format!("timeouts.connect = \"3s\"\n{text}")).snapshot;
    assert_eq!(set.listeners[0].timeouts.connect_ms, 3000);
    assert_dump_reads_back(&loaded);
}

#[test]
fn a_forward_listener_that_allows_nothing_is_warned_of() {
    let warnings = |text: &str| read(text).unwrap().warnings.to_string();
    let shown = warnings(FORWARD);
    assert!(shown.contains("this listener has no rules: everything will be refused"), "{shown}");
    let shown = warnings(&format!("{FORWARD}rules = \"o\"\n[rules.o]\nlist = [{{ action = \"deny\" }}]\n[rules.p]\n"));
    assert!(shown.contains("no rule of `o` allows anything"), "{shown}");
    assert!(shown.contains("no listener goes by the rules `p`"), "{shown}");
}

#[test]
fn wrong_passwords_are_bounded_unless_that_is_turned_off() {
    let limits = |more: &str| {
        let loaded = good(&format!("[users]\nfile = \"/run/users\"\n{more}\n{OPEN}"));
        assert_dump_reads_back(&loaded);
        let failures = loaded.snapshot.failures;
        (failures.per_minute, failures.per_minute_address)
    };
    assert_eq!(limits(""), (Some(10), Some(100)));
    assert_eq!(limits("failures_per_minute = 3\naddress_failures_per_minute = \"none\""), (Some(3), None));
    for wrong in ["0", "1_000_001", "\"no\""] {
        let shown = bad(&format!("[users]\nfile = \"/run/users\"\nfailures_per_minute = {wrong}"));
        assert!(shown.contains("`failures_per_minute`"), "{shown}");
    }
}

#[test]
fn hashes_that_cost_too_many_different_times_are_warned_of() {
    let loaded = read(&format!("[users]\nfile = \"/run/mixed\"\n{OPEN}")).unwrap();
    let shown = loaded.warnings.to_string();
    assert!(shown.contains("the hashes in `/run/mixed` were made with 9 different settings"), "{shown}");
}

#[test]
fn users_are_read_with_the_configuration_and_their_faults_have_lines() {
    let with = |file: &str, user: &str| {
        format!(
            "[users]\nfile = \"/run/{file}\"\n{FORWARD}rules = \"o\"\n[rules.o]\nauth = \"required\"\n\
             list = [{{ action = \"allow\", users = [\"{user}\"] }}]"
        )
    };
    let loaded = good(&with("users", "ann"));
    assert_eq!(loaded.snapshot.users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["ann", "bob"]);
    assert_dump_reads_back(&loaded);
    let shown = bad(&with("users", "anne"));
    assert!(shown.contains("there is no user `anne`") && shown.contains("did you mean `ann`?"), "{shown}");
    let shown = bad(&with("broken", "ann"));
    assert!(shown.contains("`/run/broken` line 1: the hash of `ann` is of no kind that is read here"), "{shown}");
    assert!(shown.contains("`/run/broken` line 2: there is no `:`"), "{shown}");
    let shown = bad(&with("missing", "ann"));
    assert!(shown.contains("cannot read the users in `/run/missing`"), "{shown}");
    let shown = bad("[users]\nfile = \"users\"");
    assert!(shown.contains("`users` is not the path of a file from the root"), "{shown}");
}
