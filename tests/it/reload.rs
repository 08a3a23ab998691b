//! Another configuration while everything runs: no request fails, no connection is lost, nothing is half in force.

use crate::common::backend::{Backend, Refusing, response_with};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use nix::sys::signal::{Signal, kill};

use crate::common::client::{Client, End, get};
use crate::common::conf::Conf;
use crate::common::load::Load;
use crate::common::proxy::{Addr, Launch, Proxy};
use crate::common::{check_pattern, pattern_bytes, stderr, stdout, wait_for, wait_until};

const MARK: &str = "configuration not reloaded";

fn body(response: &crate::common::h1::Response) -> String {
    String::from_utf8_lossy(&response.body).into_owned()
}

/// A TCP listener for `group`, as a table.
fn tcp_listener(bind: &str, group: &str) -> String {
    format!("[[listen]]\nbind = \"{bind}\"\nmode = \"tcp\"\nto = \"{group}\"")
}

fn group(name: &str, server: SocketAddr) -> String {
    format!("[backends.{name}]\nservers = [\"{server}\"]")
}

/// An address that is free now.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn no_request_fails_through_many_reloads_under_load() {
    let backends = [Backend::echo(), Backend::echo(), Backend::echo()];
    let addrs: Vec<SocketAddr> = backends.iter().map(|backend| backend.addr).collect();
    // Servers come, go and change places; routes, limits, timeouts, policies and listeners change.
    let extra = free_address();
    let confs = [
        Conf::http(&addrs[..1]),
        Conf::http(&[addrs[1], addrs[0]]).group("balance = \"least-connections\""),
        Conf::http(&addrs[1..]).tables(&tcp_listener(&extra, "web")).tables("[limits]\nhead = \"8KiB\""),
        Conf::http(&[addrs[2], addrs[0], addrs[1]])
            .tables(&group("other", addrs[0]))
            .tables("[[route]]\npath = \"/1/\"\nto = \"other\"")
            .group("keepalive = { idle_per_server = 1 }"),
        Conf::http(&addrs[2..]).top("trusted_proxies = [\"127.0.0.1\"]").group("balance = \"consistent-hash\""),
    ];
    let mut proxy = confs[0].launch().workers(2).start();
    let workers = proxy.workers();
    let kept = Load::start(proxy.addr(), 8, false);
    let fresh = Load::start(proxy.addr(), 2, true);
    kept.flow();
    let before = proxy.descriptors();
    for round in 0..40 {
        let said = proxy.reload(2, &confs[(round + 1) % confs.len()].text());
        assert!(said.contains("all 2 workers acknowledged"), "{said}");
        kept.flow();
    }
    assert!(kept.finish() + fresh.finish() > 400);
    assert_eq!(proxy.workers(), workers, "no process is replaced");
    // Two connections to a server in each worker may be open that were not before.
    proxy.assert_no_leaks(&before, 16);
}

#[test]
fn the_next_request_on_the_same_connection_follows_the_new_routes() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let groups = format!("{}\n{}", group("a", a.addr), group("b", b.addr));
    let conf = |to: &str| format!("[[listen]]\nbind = \"127.0.0.1:0\"\n[[route]]\nto = \"{to}\"\n{groups}");
    let mut proxy = Launch::config(&conf("a")).start();
    let addr = proxy.addr().clone();
    let mut client = Client::connect(&addr);
    assert_eq!(body(&client.get("/")), "a");
    for (generation, to) in [(2, "b"), (3, "a"), (4, "b")] {
        let said = proxy.reload(2, &conf(to));
        let expected =
            format!("reloaded: 1 listener, 2 backend groups, generation {generation}; all 2 workers acknowledged\n");
        assert_eq!(said, expected);
        assert_eq!(body(&client.get("/")), to);
        assert_eq!(body(&get(&addr, "/")), to);
    }
}

#[test]
fn a_request_in_progress_ends_under_the_old_configuration() {
    let old = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            conn.gate().pass();
            conn.send(&response_with("", request.body.as_slice()));
        }
    });
    let new = Backend::named("new");
    let conf = |group: &str, server| {
        let head = "[[listen]]\nbind = \"127.0.0.1:0\"\n[[route]]\n";
        format!("{head}to = \"{group}\"\n[backends.{group}]\nservers = [\"{server}\"]")
    };
    let mut proxy = Launch::config(&conf("old", old.addr)).workers(1).start();
    let mut client = Client::connect(proxy.addr());
    let mut sending = Client::connect(proxy.addr());
    client.send("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none");
    // This one's body is not even here yet.
    sending.send("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\ntwo");
    wait_until("both are under way", || old.heads() == 2);
    // Its group and its server are gone now, and bodies may have a byte.
    proxy.reload(1, &format!("{}\n[limits]\nbody = \"1B\"", conf("new", new.addr)));
    sending.send("two");
    old.gate().open();
    assert_eq!(body(&client.response()), "one");
    assert_eq!(body(&sending.response()), "twotwo");
    assert_eq!(body(&client.get("/")), "new");
    let refused = sending.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxx");
    assert_eq!(refused.status, 413);
    wait_until("connections to the server that is gone are not kept", || old.open() == 0);
}

#[test]
fn a_broken_file_changes_nothing_and_says_what_is_wrong() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]);
    let mut proxy = conf.start();
    proxy.forgive(MARK);
    let mut client = Client::connect(proxy.addr());
    for broken in ["listen", "dispatch = \"bogus\"\nworkers = 0"] {
        proxy.dir.write("pointsman.toml", broken);
        let output = proxy.question("reload");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).contains("pointsman.toml:1:") && stderr(&output).contains("error: "), "{output:?}");
        assert_eq!(client.get("/").status, 200);
    }
    proxy.wait_for_log(&["ERROR", MARK, "pointsman.toml:2: `workers` is out of bounds"]);
    // By signal too.
    let lines = proxy.log.all().len();
    proxy.signal(Signal::SIGHUP);
    proxy.wait_for_log_after(lines, &["ERROR", MARK, "`dispatch` cannot be `bogus`"]);
    assert_eq!(client.get("/").status, 200);
    std::fs::remove_file(proxy.dir.join("pointsman.toml")).unwrap();
    let output = proxy.question("reload");
    assert!(output.status.code() == Some(2) && stderr(&output).contains("No such file"), "{output:?}");
    assert!(proxy.reload(2, &conf.text()).contains("generation 2"));
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn what_cannot_be_had_leaves_everything_as_it_was() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut proxy = Conf::http(&[a.addr]).start();
    proxy.forgive(MARK);
    let free = free_address();
    let impossible = [
        Conf::http(&[b.addr])
            .tables(&tcp_listener(&free, "web"))
            .tables(&tcp_listener(&taken.local_addr().unwrap().to_string(), "web"))
            .text(),
        Conf::http(&[b.addr]).tables("[access_log]\nto = \"/proc/no-such-file\"").text(),
    ];
    for text in impossible {
        proxy.write_config(2, &text);
        let output = proxy.question("reload");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains("the former configuration stays in force"), "{output:?}");
        assert_eq!(body(&get(proxy.addr(), "/")), "a");
        assert!(std::net::TcpStream::connect(&free).is_err(), "a listener of a refused configuration");
    }
    proxy.wait_for_log(&["another process is using this address"]);
    // What was refused leaves no trace in the count.
    assert!(proxy.reload(2, &Conf::http(&[b.addr]).text()).contains("generation 2"));
    assert_eq!(body(&get(proxy.addr(), "/")), "b");
}

#[test]
fn listeners_come_and_go_and_those_that_stay_keep_their_port() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]);
    let mut proxy = conf.start();
    let addr = proxy.addr().clone();
    let extra = "[[listen]]\nbind = \"127.0.0.1:0\"\nbacklog = 16\n[[listen]]\nbind = \"unix:{dir}/web.sock\"\npermissions = \"0600\"";
    // In front of the one there is: it must not become another for that.
    let with_extra = format!("{extra}\n{}", conf.text());
    assert!(proxy.reload(2, &with_extra).starts_with("reloaded: 3 listeners"));
    // 127.0.0.1:0 is there twice: the first takes over the port, the other gets a new one.
    let new = [proxy.wait_for_listener(1), proxy.wait_for_listener(2)];
    let is_unix = |addr: &&Addr| matches!(addr, Addr::Unix(_));
    let unix = new.iter().find(is_unix).unwrap().clone();
    let second = new.iter().find(|addr| !is_unix(addr)).unwrap().clone();
    let all = [addr.clone(), second.clone(), unix.clone()];
    assert_eq!(all.iter().map(ToString::to_string).collect::<HashSet<_>>().len(), 3, "{all:?}");
    let mut clients: Vec<Client> = all.iter().map(Client::connect).collect();
    assert!(clients.iter_mut().all(|client| client.get("/").status == 200));
    // The same once more: no port changes.
    proxy.reload(2, &with_extra);
    assert!(all.iter().all(|addr| get(addr, "/").status == 200));

    proxy.reload(2, &conf.text());
    wait_until("the others are closed", || {
        std::net::TcpStream::connect(second.inet()).is_err() && !proxy.dir.join("web.sock").exists()
    });
    assert_eq!(get(&addr, "/").status, 200);
    // Whoever is connected there is answered once more and then let go.
    assert_eq!(clients[0].get("/").fields.get("connection"), None);
    for client in &mut clients[1..] {
        let last = client.get("/");
        assert_eq!((last.status, last.fields.get("connection")), (200, Some("close")));
        assert_eq!(client.end(), End::Clean);
    }
    // And back again.
    proxy.reload(2, &with_extra);
    assert_eq!(get(&unix, "/").status, 200);
}

#[test]
fn a_listener_can_become_wider_and_narrower_on_the_same_port() {
    let backend = Backend::echo();
    let port = free_address().parse::<SocketAddr>().unwrap().port();
    let conf = |host: &str| Conf::http(&[backend.addr]).listen(&format!("bind = \"{host}:{port}\"")).text();
    let mut proxy = Launch::config(&conf("127.0.0.1")).start();
    let load = Load::start(proxy.addr(), 4, true);
    for host in ["0.0.0.0", "127.0.0.1", "0.0.0.0", "127.0.0.1"] {
        load.flow();
        let mut waiting = Client::connect(proxy.addr());
        proxy.reload(2, &conf(host));
        assert_eq!(waiting.get("/").status, 200);
        assert_eq!(get(proxy.addr(), "/").status, 200);
        // Nobody else can have the port meanwhile.
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
    }
    load.finish();
}

#[test]
fn connections_waiting_at_a_removed_listener_are_served() {
    const WAITING: usize = 60;
    let (web, db) = (Backend::echo(), Backend::tcp_echo());
    let (http, tcp) = (free_address(), free_address());
    let base = Conf::http(&[web.addr]);
    let both = Conf::http(&[web.addr])
        .tables(&format!("[[listen]]\nbind = \"{http}\""))
        .tables(&tcp_listener(&tcp, "db"))
        .tables(&group("db", db.addr));
    let mut proxy = both.launch().workers(2).start();
    // Nobody accepts while these connect and send: they are in the kernel's queue when the reload begins.
    proxy.signal(Signal::SIGSTOP);
    let at = |addr: &str| Addr::Inet(addr.parse().unwrap());
    let mut requests: Vec<Client> = (0..WAITING).map(|_| Client::connect(&at(&http))).collect();
    let mut relays: Vec<Client> = (0..WAITING).map(|_| Client::connect(&at(&tcp))).collect();
    for (n, client) in requests.iter_mut().enumerate().take(WAITING / 2) {
        client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    proxy.write_config(2, &base.text());
    proxy.signal(Signal::SIGHUP);
    proxy.signal(Signal::SIGCONT);
    proxy.wait_for_log(&["no longer listening on", &tcp]);
    for (n, client) in requests.iter_mut().enumerate() {
        if n >= WAITING / 2 {
            client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        assert_eq!(client.response().fields.get("x-target"), Some(format!("/{n}").as_str()));
    }
    // Their group is gone with the listener.
    for client in &mut relays {
        client.echo(7);
    }
    wait_until("both are closed", || [&http, &tcp].iter().all(|addr| std::net::TcpStream::connect(addr).is_err()));
    proxy.wait_for_workers(2);
}

#[test]
fn those_who_wait_for_room_at_a_removed_listener_get_it() {
    let (web, db) = (Backend::ok(), Backend::tcp_echo());
    let tcp = free_address();
    let limits = "[limits]\nconnections = 2";
    let base = Conf::http(&[web.addr]).tables(limits);
    let both = Conf::http(&[web.addr]).tables(limits).tables(&tcp_listener(&tcp, "db")).tables(&group("db", db.addr));
    let mut proxy = both.launch().workers(1).start();
    let connect = || Client::connect(&Addr::Inet(tcp.parse().unwrap()));
    let mut first = [connect(), connect()];
    first.iter_mut().for_each(|client| client.echo(1));
    // All places are taken, so that these stay in the kernel's queue.
    let mut waiting = [connect(), connect()];
    proxy.reload(1, &base.text());
    first.iter_mut().for_each(|client| client.echo(2));
    drop(first);
    waiting.iter_mut().for_each(|client| client.echo(3));
    wait_until("the listener is closed", || std::net::TcpStream::connect(&tcp).is_err());
    drop(waiting);
    assert_eq!(get(proxy.addr(), "/").status, 200);
}

#[test]
fn relays_and_tunnels_go_on_whatever_is_reloaded() {
    let db = Backend::tcp_echo();
    let tunnel = Backend::serve(|conn| {
        conn.head();
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = conn.wire.stream.read(&mut buffer) {
            conn.wire.stream.write_all(&buffer[..n]).unwrap();
        }
    });
    let tcp = free_address();
    let before = Conf::http(&[tunnel.addr]).tables(&tcp_listener(&tcp, "db")).tables(&group("db", db.addr));
    let mut proxy = before.launch().workers(2).start();
    let mut relays: Vec<Client> = (0..4).map(|_| Client::connect(&Addr::Inet(tcp.parse().unwrap()))).collect();
    let mut upgraded = Client::connect(proxy.addr());
    upgraded.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(upgraded.response().status, 101);
    relays.push(upgraded);
    for client in &mut relays {
        client.echo(1);
    }
    // Unchanged; with another server first; then their listener, group and servers are gone.
    let web = Backend::ok();
    let moved = format!("[backends.aaa]\nservers = [\"{}\"]\n{}", web.addr, tcp_listener(&tcp, "db"));
    let steps = [
        before.text(),
        Conf::http(&[web.addr, tunnel.addr]).tables(&moved).tables(&group("db", db.addr)).text(),
        Conf::http(&[web.addr]).text(),
        before.text(),
    ];
    for (step, text) in (2..).zip(&steps) {
        proxy.reload(2, text);
        for client in &mut relays {
            client.echo(step);
        }
    }
    // In the middle of a transfer too.
    let mut bulk = relays.remove(0);
    let sent = pattern_bytes(4 << 20);
    let mut sender = bulk.wire.stream.try_clone().unwrap();
    let writer = {
        let sent = sent.clone();
        thread::spawn(move || sender.write_all(&sent).unwrap())
    };
    proxy.reload(2, &steps[2]);
    proxy.reload(2, &steps[0]);
    let mut back = vec![0; sent.len()];
    bulk.wire.stream.read_exact(&mut back).unwrap();
    check_pattern(0, &back);
    writer.join().unwrap();
    // And what was reloaded over survives a death as before.
    for worker in proxy.workers() {
        kill(worker, Signal::SIGKILL).unwrap();
    }
    for client in &mut relays {
        client.echo(9);
    }
    proxy.wait_for_workers(2);
}

#[test]
fn relays_are_cut_on_removal_where_the_configuration_says_so() {
    let (db, other) = (Backend::tcp_echo(), Backend::tcp_echo());
    let (gone, stays) = (free_address(), free_address());
    let web = Backend::ok();
    let base = || Conf::http(&[web.addr]).top("on_removal = \"cut\"");
    let stay = |conf: Conf| conf.tables(&tcp_listener(&stays, "other")).tables(&group("other", other.addr));
    let mut proxy = stay(base()).tables(&tcp_listener(&gone, "db")).tables(&group("db", db.addr)).start();
    let connect = |addr: &str| Client::connect(&Addr::Inet(addr.parse().unwrap()));
    let (mut cut, mut kept) = (connect(&gone), connect(&stays));
    cut.echo(1);
    kept.echo(1);
    proxy.reload(2, &stay(base()).text());
    assert_eq!(cut.end(), End::Reset);
    kept.echo(2);
    // The listener stays, its group does not.
    proxy.reload(2, &base().tables(&tcp_listener(&stays, "new")).tables(&group("new", db.addr)).text());
    assert_eq!(kept.end(), End::Reset);
    connect(&stays).echo(3);
    wait_until("the servers' connections are closed", || other.open() == 0);
}

#[test]
fn a_listener_that_speaks_something_else_keeps_its_port_and_its_clients() {
    let (web, db) = (Backend::ok(), Backend::tcp_echo());
    let bind = free_address();
    let addr = Addr::Inet(bind.parse().unwrap());
    let http = format!(
        "[[listen]]\nbind = \"{bind}\"\n[[route]]\nto = \"web\"\n{}\n{}",
        group("web", web.addr),
        group("db", db.addr)
    );
    let tcp = format!("{}\n{}\n{}", tcp_listener(&bind, "db"), group("web", web.addr), group("db", db.addr));
    let mut proxy = Launch::config(&http).start();
    let mut old = Client::connect(&addr);
    assert_eq!(old.get("/").status, 200);
    proxy.reload(2, &tcp);
    let mut relay = Client::connect(&addr);
    relay.echo(1);
    // Still HTTP for whoever came for HTTP, once more.
    proxy.reload(2, &http);
    let last = old.get("/");
    assert_eq!((last.status, last.fields.get("connection")), (200, Some("close")));
    assert_eq!(get(&addr, "/").status, 200);
    relay.echo(2);
}

#[test]
fn an_ejected_server_stays_so_and_kept_connections_are_kept() {
    let refusing = Refusing::new();
    let backend = Backend::ok();
    let conf = |first, second| {
        Conf::http(&[first, second]).group("health = { failures = 1, eject = \"10m\", eject_max = \"10m\" }")
    };
    let mut proxy = conf(refusing.addr, backend.addr).launch().workers(1).start();
    let mut client = Client::connect(proxy.addr());
    for _ in 0..4 {
        assert_eq!(client.get("/").status, 200);
    }
    proxy.wait_for_log(&[&format!("{} failed 1 times", refusing.addr)]);
    assert_eq!(backend.connections(), 1);
    // It is back, but nobody has tried; and stands at another place in the file.
    let back = refusing.serve_named("back");
    for _ in 0..5 {
        proxy.reload(1, &conf(backend.addr, back.addr).text());
        for _ in 0..4 {
            assert_eq!(body(&client.get("/")), "ok");
        }
    }
    assert_eq!((back.connections(), backend.connections()), (0, 1));
    // Out and in again, it is another server, of which nothing is known.
    proxy.reload(1, &Conf::http(&[backend.addr]).text());
    proxy.reload(1, &conf(backend.addr, back.addr).text());
    wait_until("it is tried again", || body(&client.get("/")) == "back");
}

#[test]
fn a_storm_of_signals_ends_in_the_last_configuration() {
    let (backend, marked) = (Backend::echo(), Backend::named("marked"));
    let conf = |n: usize| {
        let route = format!("[[route]]\nhost = \"host-{n}\"\nto = \"marked\"");
        Conf::http(&[backend.addr]).tables(&route).tables(&group("marked", marked.addr)).text()
    };
    let mut proxy = Launch::config(&conf(0)).workers(2).start();
    let load = Load::start(proxy.addr(), 4, false);
    load.flow();
    let before = proxy.descriptors();
    for n in 1..=300 {
        proxy.write_config(2, &conf(n));
        proxy.signal(Signal::SIGHUP);
    }
    let asks = |host: &str| body(&Client::connect(proxy.addr()).ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")));
    wait_until("the last one is in force", || asks("host-300") == "marked");
    assert_ne!(asks("host-299"), "marked");
    load.flow();
    // A question is answered when what it asks for is in force.
    let said = proxy.reload(2, &conf(301));
    assert!(said.contains("all 2 workers acknowledged"), "{said}");
    let asks = |host: &str| body(&Client::connect(proxy.addr()).ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")));
    assert_eq!(asks("host-301"), "marked");
    load.finish();
    proxy.assert_no_leaks(&before, 8);
}

#[test]
fn a_worker_that_does_not_follow_is_named() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).top("worker_timeout = \"10m\"");
    let mut proxy = conf.launch().workers(2).start();
    let stopped = proxy.workers()[1];
    kill(stopped, Signal::SIGSTOP).unwrap();
    let output = proxy.question("reload");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = stderr(&output);
    assert!(text.contains(&format!("not acknowledged in time by worker 1 (pid {stopped})")), "{text}");
    assert!(text.contains("generation 2"), "{text}");
    proxy.wait_for_log(&["WARN", "not acknowledged in time by worker 1"]);
    kill(stopped, Signal::SIGCONT).unwrap();
    assert!(proxy.reload(2, &conf.text()).contains("generation 3; all 2 workers acknowledged"));
    // One that dies meanwhile is replaced by one that has the newest configuration from the start.
    kill(stopped, Signal::SIGSTOP).unwrap();
    let asking = {
        let config = proxy.dir.join("pointsman.toml");
        thread::spawn(move || {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_master"));
            command.arg("reload").arg("--config").arg(config).output().unwrap()
        })
    };
    wait_until("the others follow", || stdout(&proxy.question("status")).contains("generation  4"));
    kill(stopped, Signal::SIGKILL).unwrap();
    let output = asking.join().unwrap();
    assert!(output.status.success() && stdout(&output).contains("generation 4"), "{output:?}");
    proxy.wait_for_workers(2);
}

#[test]
fn reloads_and_deaths_together_fail_no_request() {
    let backends = [Backend::echo(), Backend::echo()];
    let confs = [Conf::http(&[backends[0].addr, backends[1].addr]), Conf::http(&[backends[1].addr])];
    let mut proxy = confs[0].launch().workers(2).start();
    let load = Load::start(proxy.addr(), 6, false);
    load.flow();
    for round in 0..20 {
        proxy.write_config(2, &confs[round % 2].text());
        proxy.signal(Signal::SIGHUP);
        let workers = proxy.workers();
        if let Some(worker) = workers.get(round % 2) {
            let _ = kill(*worker, Signal::SIGKILL);
        }
        load.flow();
    }
    load.finish();
    proxy.wait_for_workers(2);
    assert!(proxy.reload(2, &confs[0].text()).contains("all 2 workers acknowledged"));
}

#[test]
fn the_number_of_workers_follows() {
    let backend = Backend::echo();
    let conf = Conf::http(&[backend.addr]);
    let mut proxy = conf.launch().workers(1).start();
    let load = Load::start(proxy.addr(), 4, false);
    for count in [3, 2, 4, 1, 2] {
        load.flow();
        proxy.reload(count, &conf.text());
        proxy.wait_for_workers(count);
    }
    load.flow();
    load.finish();
    // Signals count from there, until the next reload.
    proxy.signal(Signal::SIGTTIN);
    proxy.wait_for_workers(3);
    proxy.reload(2, &conf.text());
    proxy.wait_for_workers(2);
}

#[test]
fn the_access_log_goes_where_the_new_configuration_says() {
    let backend = Backend::ok();
    let conf = |log: &str| Conf::http(&[backend.addr]).tables(log);
    let to = |name: &str, format: &str| format!("[access_log]\nto = \"{{dir}}/{name}\"\nformat = \"{format}\"");
    let mut proxy = conf("").start();
    let addr = proxy.addr().clone();
    get(&addr, "/none");
    for (name, format) in [("one.log", "combined"), ("two.log", "combined"), ("two.log", "json"), ("one.log", "json")] {
        proxy.reload(2, &conf(&to(name, format)).text());
        get(&addr, &format!("/{name}/{format}"));
    }
    proxy.reload(2, &conf("").text());
    get(&addr, "/none");
    let lines = |name: &str| std::fs::read_to_string(proxy.dir.join(name)).unwrap_or_default();
    let found = wait_for("both are written", || {
        let (one, two) = (lines("one.log"), lines("two.log"));
        (one.lines().count() == 2 && two.lines().count() == 2).then_some((one, two))
    });
    assert!(found.0.contains("\"GET /one.log/combined HTTP/1.1\"") && found.0.contains("/one.log/json"), "{found:?}");
    assert!(found.1.contains("/two.log/combined") && found.1.lines().any(|line| line.starts_with('{')), "{found:?}");
    assert!(!found.0.contains("/none") && !found.1.contains("/none"));
}

#[test]
fn one_name_that_does_not_resolve_takes_nothing_else_down() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let lost = "[backends.lost]\nservers = [\"no-such-host.invalid:80\"]\n[[route]]\npath = \"/lost\"\nto = \"lost\"";
    proxy.write_config(2, &Conf::http(&[backend.addr]).tables(lost).text());
    let output = proxy.question("reload");
    assert!(output.status.success() && stderr(&output).contains("does not resolve"), "{output:?}");
    assert_eq!((get(proxy.addr(), "/").status, get(proxy.addr(), "/lost").status), (200, 503));
    proxy.wait_for_log(&["WARN", "no-such-host.invalid:80` does not resolve"]);
    proxy.wait_for_workers(2);
}

#[test]
fn a_master_is_found_when_its_file_says_by_now_that_its_control_socket_is_elsewhere() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).start();
    for control in ["unix:{dir}/elsewhere.sock", "off"] {
        let text = Conf::http(&[backend.addr]).top(&format!("control = \"{control}\"")).text();
        assert!(proxy.reload(2, &text).contains("reloaded"));
        let output = proxy.question("status");
        assert!(output.status.success() && stdout(&output).contains(&proxy.pid.to_string()), "{output:?}");
    }
    proxy.check_end(Some(Signal::SIGTERM));
    let output = proxy.question("status");
    assert!(!output.status.success() && stderr(&output).contains("control = \"off\""), "{output:?}");
}

#[test]
fn the_master_is_asked_only_when_there_is_one() {
    let backend = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).start();
    let output = proxy.question("status");
    let text = stdout(&output);
    assert!(output.status.success() && text.contains("generation  1\naccepting   yes\n"), "{output:?}");
    let (master, _) = text.split_once('\n').unwrap();
    let file = master.strip_prefix(&format!("master      pid {}, configuration: ", proxy.pid)).expect(&text);
    assert!(file.starts_with('/') && file.ends_with(".toml"), "{text}");
    proxy.wait_for_log(&["INFO", "Pointsman ", &format!("configuration: {file}")]);
    assert!(text.contains(&proxy.addr().to_string()), "{text}");
    for pid in proxy.workers() {
        assert!(text.lines().any(|line| line.contains(&pid.to_string()) && line.contains("ready")), "{text}");
    }
    proxy.check_end(Some(Signal::SIGTERM));
    let output = proxy.question("reload");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("no master is running behind"), "{output:?}");
}

#[test]
fn a_control_socket_of_its_own_is_found_even_in_a_broken_file() {
    let backend = Backend::ok();
    let conf = Conf::http(&[backend.addr]).top("control = \"unix:{dir}/own.sock\"");
    let mut proxy: Proxy = conf.start();
    proxy.forgive(MARK);
    assert!(proxy.reload(2, &conf.text()).contains("generation 2"));
    proxy.write_config(2, &format!("{}\nbroken", conf.text()));
    assert_eq!(proxy.question("reload").status.code(), Some(2));
    // A killed master's socket is no obstacle to the next one.
    let socket = proxy.dir.join("own.sock");
    assert!(socket.exists());
    proxy.check_end(Some(Signal::SIGTERM));
    assert!(!socket.exists());
}

#[test]
fn bodies_under_way_are_whole_after_any_number_of_reloads() {
    const LENGTH: usize = 8 << 20;
    let backend = Backend::serve(|conn| {
        while conn.request().is_some() {
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes());
            conn.send(&pattern_bytes(LENGTH));
        }
    });
    let other = Backend::ok();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let mut client = Client::connect_narrow(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the response is under way", || backend.heads() == 1);
    proxy.reload(1, &Conf::http(&[other.addr]).text());
    proxy.reload(1, &Conf::http(&[other.addr, backend.addr]).text());
    let whole = client.response();
    assert_eq!(whole.body.len(), LENGTH);
    check_pattern(0, &whole.body);
}
