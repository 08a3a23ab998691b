//! What is said of a file that cannot be used, as people see it.

use super::*;

#[test]
fn misspelt_key() {
    assert_eq!(
        bad_after_sound("[timeouts]\nconect = \"2s\"\n"),
        "error: unknown key `conect` in `timeouts`
 --> test.toml:4:1
  |
4 | conect = \"2s\"
  | ^^^^^^
  |
  = help: did you mean `connect`?
"
    );
}

#[test]
fn misplaced_key() {
    assert_eq!(
        bad_after_sound("[backends.web.timeouts]\nheader = \"2s\"\n"),
        "error: unknown key `header` in `[backends.NAME.timeouts]`
 --> test.toml:4:1
  |
4 | header = \"2s\"
  | ^^^^^^
  |
  = help: `header` belongs in `[timeouts]` or `[listen.timeouts]`
"
    );
}

#[test]
fn missing_unit() {
    assert_eq!(
        bad_after_sound("[timeouts]\n  connect = 2 # seconds\n"),
        "error: the duration `2` has no unit
 --> test.toml:4:13
  |
4 |   connect = 2 # seconds
  |             ^
  |
  = help: did you mean \"2s\"? units are ms, s, m, h and d
"
    );
}

#[test]
fn duplicate_listener() {
    assert_eq!(
        bad_after_sound("[[listen]]\nbind = \"127.0.0.1:80\"\n[[listen]]\nbind = \"0.0.0.0:80\"\n"),
        "error: `0.0.0.0:80` is covered by another listener
 --> test.toml:6:8
  |
6 | bind = \"0.0.0.0:80\"
  |        ^^^^^^^^^^^^
  |
 ::: test.toml:4:8
  |
4 | bind = \"127.0.0.1:80\"
  |        -------------- the other one
  |
  = help: remove one of them, or use another port
"
    );
}

#[test]
fn every_fault_is_reported_at_once() {
    let text = "workers = 0\n[[listen]]\nbind = \"8080\"\nto = \"wbe\"\n[backends.web]\nservers = [\"127.0.0.1\"]\ntries = 17\n";
    assert_eq!(
        bad(text),
        "error: `workers` is out of bounds
 --> test.toml:1:11
  |
1 | workers = 0
  |           ^
  |
  = help: it is a whole number from 1 to 1024, or \"auto\"

error: `8080` has no host
 --> test.toml:3:8
  |
3 | bind = \"8080\"
  |        ^^^^^^
  |
  = help: write \"127.0.0.1:8080\" for this machine only, \"0.0.0.0:8080\" for all its IPv4 addresses

error: there is no backend group `wbe`
 --> test.toml:4:6
  |
4 | to = \"wbe\"
  |      ^^^^^
  |
  = help: did you mean `web`?

error: `127.0.0.1` has no port
 --> test.toml:6:12
  |
6 | servers = [\"127.0.0.1\"]
  |            ^^^^^^^^^^^
  |
  = help: write \"127.0.0.1:80\"

error: `tries` is out of bounds
 --> test.toml:7:9
  |
7 | tries = 17
  |         ^^
  |
  = help: it is a whole number from 1 to 16
"
    );
}

#[test]
fn syntax_errors_do_not_hide_independent_faults_nor_cause_others() {
    let text = "dispatch = \"round-robin\nconect = 5\n[[listen]]\nbind = \n[[route]]\nto = \"web\"\n";
    let report = bad(text);
    assert_eq!(report.matches("error: ").count(), 3, "{report}");
    assert!(report.contains("test.toml:1:24") && report.contains("test.toml:4:"), "{report}");
    assert!(report.contains("unknown key `conect`"), "{report}");
    assert!(!report.contains("backend group"), "{report}");
}

/// Text behind a sound beginning, and what its report must say.
#[test]
fn each_fault_has_its_message() {
    let cases = [
        ("[limits]\nhead = \"16\"", "the size `16` has no unit"),
        ("[limits]\nhead = \"16B\"", "it may be from 1KiB to 256KiB"),
        ("[limits]\nfields = 7", "it is a whole number from 8 to 1000"),
        ("[limits]\nfields = 99999999999999999999999999999999999999999", "it is a whole number from 8 to 1000"),
        (
            "[limits]\nconnections = 1.5",
            "`connections` must be a whole number from 1 to 1000000, or \"auto\", found a fraction",
        ),
        ("[limits]\nconnections_per_address = \"no\"", "or \"none\", found a string"),
        ("[timeouts]\nidle = \"0s\"", "a duration of zero"),
        ("[timeouts]\nidle = \"31d\"", "the longest is 30d"),
        ("[timeouts]\nidle = true", "`idle` must be a duration, found a boolean"),
        ("[[timeouts]]", "`timeouts` must be a table, found an array"),
        ("[listen]\nbind = \"127.0.0.1:1\"", "begin each one with `[[listen]]`"),
        ("[[listen]]", "`[[listen]]` has no `bind`"),
        ("[[listen]]\nbind = 8080", "`bind` must be a string, found an integer"),
        ("[[listen]]\nbind = \"unix:/run\"", "`/run` is a directory"),
        ("[[listen]]\nbind = \"unix:/nowhere/a\"", "there is no directory `/nowhere` for the socket"),
        ("[[listen]]\nbind = \"127.0.0.1:1\"\npermissions = \"0660\"", "`permissions` are for Unix sockets only"),
        ("[[listen]]\nbind = \"unix:/run/a\"\npermissions = \"rw\"", "write them in octal"),
        ("[[listen]]\nbind = \"127.0.0.1:1\"\nmode = \"tcp\"", "add `to = \"web\"`"),
        ("[[listen]]\nbind = \"127.0.0.1:1\"\nmode = \"https\"", "did you mean \"http\"?"),
        ("[access_log]\nto = \"log\"", "the access log cannot go to `log`"),
        ("[access_log]\nto = \"/nowhere/log\"", "there is no directory `/nowhere` for the access log"),
        ("[backends.\"a b\"]\nservers = []", "`a b` cannot be the name of a backend group"),
        ("[backends.a]", "`[backends.NAME]` has no `servers`"),
        ("[backends.a]\nservers = [7]", "a server must be a string or a table, found an integer"),
        ("[backends.a]\nservers = [{ weight = 2 }]", "an entry of `servers` has no `address`"),
        ("[backends.a]\nservers = [{ address = \"127.0.0.1:1\", weight = 0 }]", "from 1 to 1000"),
        ("[backends.a]\nservers = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", "is in the group twice"),
        ("[backends.a]\nservers = []\nbalance = \"least_conn\"", "did you mean \"least-connections\"?"),
        ("[backends.a]\nservers = []\nhealth = { eject = \"9s\", eject_max = \"8s\" }", "which is 9s"),
        ("[[listen]]\nbind = \"127.0.0.1:1\"\nto = \"127.0.0.1:9001\"", "`to` is the name of a group"),
    ];
    for (text, message) in cases {
        let report = bad_after_sound(text);
        assert!(report.contains(message), "{text}\n{report}");
        assert_eq!(report.matches("error: ").count(), 1, "{text}\n{report}");
    }
    assert!(bad("backends.servers = []").contains("give the group a name"));
    assert!(bad("user = \"root2\"\nroute = []").contains("there is no user `root2` on this system"));
    assert!(bad("trusted_proxies = [\"10.0.0.0/40\"]").contains("it is a number from 0 to 32"));
}

#[test]
fn something_must_be_done_with_requests() {
    let report = bad("[backends.web]\nservers = [\"127.0.0.1:9001\"]");
    assert_eq!(
        report,
        "error: nothing to do with requests to 127.0.0.1:8080, where HTTP is served by default
help: add a route, as in:
      [[route]]
      to = \"web\"
"
    );
    let report = bad("[[listen]]\nbind = \"127.0.0.1:1\"\n[backends.web]\nservers = [\"127.0.0.1:9001\"]");
    assert!(report.contains("test.toml:1:1") && report.contains("add `to = \"web\"` to it, or a route"), "{report}");
    assert!(bad("").contains("[backends.web]"));
}

#[test]
fn duplicate_routes() {
    for (first, second) in [
        ("", "path = \"/\"\n"),
        ("host = \"A.de\"\n", "host = \"a.DE\"\n"),
        ("host = \"*.a.de\"\npath = \"=/x\"\n", "path = \"=/x\"\nhost = \"*.a.de\"\n"),
    ] {
        let text = format!(
            "[[route]]\n{first}to = \"a\"\n[[route]]\n{second}to = \"a\"\n[backends.a]\nservers = [\"127.0.0.1:9\"]"
        );
        let report = bad(&text);
        assert!(report.contains("two routes match the same host and path"), "{report}");
        assert_eq!(report.matches("error: ").count(), 1, "{report}");
    }
}

#[test]
fn a_report_of_many_faults_is_cut() {
    let text: String = (0..150).map(|i| format!("unknown{i} = 1\n")).collect();
    let report = bad_after_sound(&text);
    assert_eq!(report.matches("error: ").count(), 100);
    assert!(report.ends_with("... and 50 more\n"), "{report}");
}

#[test]
fn control_sequences_do_not_reach_the_terminal() {
    for text in
        ["route = [{ to = \"\\u001b[31m\" }]", "\"\\u001b[31m\" = 1", "dispatch = \"\\u001b[31m\"", "x = \u{1b}"]
    {
        let report = bad(text);
        assert!(!report.contains('\u{1b}'), "{report:?}");
    }
}

#[test]
fn a_finding_for_the_log_is_one_line_with_its_place() {
    let report = read("\nworkers = 0\ndispatch = \"x\\u0007\"\n").unwrap_err();
    let lines: Vec<String> = report.lines().collect();
    assert!(lines[0].starts_with("test.toml:2: `workers` is out of bounds; it is a whole number"), "{lines:?}");
    assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:?}");
}

#[test]
fn wrong_proxy_protocol_says_what_to_write() {
    let listen = |line: &str| bad_after_sound(&format!("[[listen]]\nbind = \"127.0.0.1:1\"\n{line}"));
    let shown = listen("proxy_protocol = true");
    assert!(shown.contains("`proxy_protocol` must be a table, found a boolean"), "{shown}");
    let shown = listen("proxy_protocol = {}");
    assert!(shown.contains("has no `from`") && shown.contains("add `from = [\"10.0.0.0/8\"]`"), "{shown}");
    let shown = listen("proxy_protocol = { from = [] }");
    assert!(shown.contains("nobody is listed") && shown.contains("from = [\"10.0.0.0/8\"]"), "{shown}");
    let shown = listen("proxy_protocol = { from = [\"10.0.0.0/33\", 7] }");
    assert!(shown.contains("`33` is not a prefix length") && shown.contains("found an integer"), "{shown}");
    let shown = listen("proxy_protocol = { from = [\"unix\"] }");
    assert!(shown.contains("the clients of a Unix socket, and this is none"), "{shown}");
    let shown = listen("proxy_protocol = { form = [\"10.0.0.0/8\"] }");
    assert!(shown.contains("did you mean `from`?"), "{shown}");
    let shown = bad_after_sound("[[listen]]\nbind = \"unix:/run/s\"\nproxy_protocol.from = [\"10.0.0.0/8\"]");
    assert!(shown.contains("have no address") && shown.contains("from = [\"unix\"]"), "{shown}");
    let shown = bad("route = [{ to = \"a\" }]\nbackends.a = { servers = [\"127.0.0.1:9\"], send_proxy = \"v3\" }");
    assert!(shown.contains("`send_proxy` cannot be `v3`") && shown.contains("\"off\", \"v1\", \"v2\""), "{shown}");
    let text = "route = [{ to = \"a\" }]\nbackends.a.servers = [\"127.0.0.1:9\"]\n[[listen]]\nbind = \"127.0.0.1:1\"\n";
    let loaded = read(&format!("{text}proxy_protocol.from = [\"0.0.0.0/0\", \"10.0.0.1/8\"]")).unwrap();
    let shown = loaded.warnings.to_string();
    assert!(shown.contains("every client can claim any address") && shown.contains("behind its prefix"), "{shown}");
}

#[test]
fn addresses_that_lack_a_part_are_told_how_to_have_it() {
    let bind = |text: &str| bad_after_sound(&format!("[[listen]]\nbind = \"{text}\""));
    let server = |text: &str| bad_after_sound(&format!("[backends.more]\nservers = [\"{text}\"]"));
    for (shown, parts) in [
        (bind("[::1]"), ["`[::1]` has no port", "write \"[::1]:8080\""]),
        (bind("::1"), ["`::1` has no port", "write \"[::1]:8080\""]),
        (bind("::1:80"), ["`::1:80` has no brackets", "write \"[::1]:80\", or \"[::1:80]:8080\" if all of it"]),
        (bind("80"), ["`80` has no host", "\"0.0.0.0:80\" for all its IPv4 addresses"]),
        (server("80"), ["`80` has no host", "\"127.0.0.1:80\" for a server on this machine"]),
        (server("[2001:db8::5]"), ["has no port", "write \"[2001:db8::5]:80\""]),
    ] {
        for part in parts {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}

#[test]
fn wrong_rules_say_what_to_write() {
    let with = |listen: &str, rest: &str| bad(&format!("{FORWARD}{listen}\n{rest}"));
    let rule = |text: &str| with("rules = \"o\"", &format!("[rules.o]\nlist = [{{ {text} }}]"));
    for (shown, parts) in [
        (with("to = \"web\"", ""), ["goes where its clients say", "remove `to`"]),
        (with("protocols = []", ""), ["no protocol is listed", "leave `protocols` out"]),
        (with("protocols = [\"sock5\"]", ""), ["there is no protocol `sock5`", "did you mean \"socks5\"?"]),
        (with("rules = \"ofice\"", "[rules.office]"), ["there are no rules `ofice`", "did you mean `office`?"]),
        (with("", "[rules.o]\nauth = \"required\""), ["there are no users", "[users]"]),
        (with("", "[rules.o.limits]\nuser = { rate = \"1KiB\" }"), ["not asked who they are", "auth = \"required\""]),
        (with("", "[rules.o.limits]\naddress = { rate = \"1B\" }"), ["`rate` is out of bounds", "from 1KiB"]),
        (rule("names = [\"a.test\"]"), ["has no `action`", "action = \"allow\""]),
        (rule("action = \"allow\", names = [\"*.a.test\"]"), ["has a `*`", "\".a.test\""]),
        (rule("action = \"allow\", names = [\"127.0.0.1\"]"), ["is an address, not a name", "`networks`"]),
        (rule("action = \"allow\", networks = [\"a.test\"]"), ["is not an IP network", "prefix length"]),
        (rule("action = \"allow\", names = []"), ["`names` lists nothing", "leave `names` out"]),
        (rule("action = \"allow\", users = [\"ann\"]"), ["a rule for users", "auth = \"required\""]),
        (rule("action = \"allow\", ports = [0]"), ["`ports` is out of bounds", "1 to 65535"]),
        (rule("action = \"allow\", ports = [\"90-80\"]"), ["the range `90-80` is empty", "\"80-90\""]),
        (rule("action = \"allow\", ports = [\"http\"]"), ["`http` are no ports", "8000-8999"]),
        (rule("action = \"allow\", about = \"replies\", names = [\"a.test\"]"), ["never a host", "`networks`"]),
    ] {
        for part in parts {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
    let shown = bad_after_sound("[[listen]]\nbind = \"127.0.0.1:1\"\nrules = \"o\"\nprotocols = [\"http\"]");
    assert!(shown.contains("`rules` is for forward listeners only"), "{shown}");
    assert!(shown.contains("`protocols` is for forward listeners only"), "{shown}");
}
