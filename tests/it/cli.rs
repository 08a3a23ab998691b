//! The command line: what it accepts, what it prints, its exit codes.

use std::net::TcpListener;
use std::process::Output;

use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::proxy::Launch;
use crate::common::{TempDir, wait_for, wait_until};

/// Runs the binary with these arguments only.
fn run(args: &[&str]) -> (i32, String, String) {
    // Naming the workers keeps the launcher from adding them, which subcommands would not take.
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_master")).args(args).output().unwrap();
    parts(&output)
}

fn parts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn check(config: &str) -> (i32, String, String) {
    let dir = TempDir::new();
    let path = dir.write("pointsman.toml", config);
    run(&["check", "--config", path.to_str().unwrap()])
}

#[test]
fn version_is_printed() {
    let (code, out, _) = run(&["--version"]);
    assert_eq!(code, 0);
    assert!(out.contains(env!("CARGO_PKG_VERSION")), "{out}");
}

#[test]
fn help_names_every_option() {
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for option in ["--workers", "--listen", "--backend", "--mode", "--config", "--log-level", "check", "dump"] {
        assert!(out.contains(option), "{option} is missing:\n{out}");
    }
}

#[test]
fn what_the_master_alone_starts_says_so() {
    for role in [&["worker", "0"][..], &["launch", "--", "/bin/true"]] {
        let (code, _, err) = run(role);
        assert_eq!(code, 2);
        assert!(err.contains("is for the master to start; run `master` alone"), "{err}");
    }
}

#[test]
fn bad_usage_exits_with_2_and_says_what() {
    for (args, word) in [
        (&["--no-such-option"][..], "--no-such-option"),
        (&["--workers", "0"], "workers"),
        (&["--workers", "many"], "many"),
        (&["--workers", "1000000"], "workers"),
        (&["--listen", "nonsense"], "nonsense"),
        (&["--listen", "127.0.0.1:99999"], "99999"),
        (&["--backend", "127.0.0.1"], "127.0.0.1"),
        (&["--mode", "smtp"], "smtp"),
        (&["--config", "/nonexistent/pointsman.toml"], "/nonexistent/pointsman.toml"),
        (&["check", "--config", "/nonexistent/pointsman.toml"], "/nonexistent/pointsman.toml"),
    ] {
        let (code, _, err) = run(args);
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(err.contains(word), "{args:?} does not mention {word}: {err}");
        assert!(!err.contains("panicked"), "{err}");
    }
}

#[test]
fn check_accepts_a_good_file() {
    let backend = "127.0.0.1:9001".parse().unwrap();
    let (code, out, err) = check(&Conf::http(&[backend]).text());
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn check_reports_every_error_with_its_line() {
    let (code, out, err) = check(
        "workers = 2\nworkerz = 3\n[[listen]]\nbind = \"127.0.0.1:8080\"\n[[route]]\nto = \"wbe\"\n\
         [backends.web]\nservers = [\"127.0.0.1:9001\"]\n[timeouts]\nidle = 5\n",
    );
    let text = out + &err;
    assert_eq!(code, 2, "{text}");
    for expected in ["workerz", "wbe", "idle", "pointsman.toml"] {
        assert!(text.contains(expected), "{expected} is missing:\n{text}");
    }
    for line in ["2", "6", "10"] {
        assert!(text.contains(&format!(":{line}")), "line {line} is missing:\n{text}");
    }
    assert!(text.contains("web"), "no \"did you mean\":\n{text}");
}

#[test]
fn check_refuses_what_cannot_be_toml() {
    for text in ["workers = ", "[[listen]\n", "\u{0}", "workers = \"\u{7f}\n"] {
        let (code, _, err) = check(text);
        assert_eq!(code, 2, "{text:?}: {err}");
        assert!(!err.contains("panicked"), "{err}");
    }
}

#[test]
fn a_bad_configuration_is_refused_at_start_with_2() {
    let (code, _, err) = parts(&Launch::config("[backends.web]\nservers = 5\n").run());
    assert_eq!(code, 2, "{err}");
}

#[test]
fn dump_gives_a_configuration_that_dumps_to_itself() {
    let dir = TempDir::new();
    let conf = Conf::http(&["127.0.0.1:9001".parse().unwrap()]).group("balance = \"least-connections\"");
    let path = dir.write("a.toml", &conf.text());
    let (code, first, err) = run(&["dump", "--config", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    assert!(first.contains("least-connections") && first.contains("timeouts"), "{first}");
    let path = dir.write("b.toml", &first);
    let (code, second, err) = run(&["dump", "--config", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(first, second);
    let (code, _, err) = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn port_in_use_exits_with_1_and_names_the_setting() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = holder.local_addr().unwrap().to_string();
    let launch = Launch::new(&["--listen", &addr, "--backend", "127.0.0.1:1"]);
    let (code, _, err) = parts(&launch.run());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&addr) && err.contains("--listen"), "{err}");

    let conf = Conf::http(&["127.0.0.1:1".parse().unwrap()]).listen(&format!("bind = \"{addr}\""));
    let (code, _, err) = parts(&conf.launch().run());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&addr) && err.contains("bind"), "{err}");
}

#[test]
fn demo_says_which_backend_and_which_worker_served() {
    let proxy = Launch::new(&["--listen", "127.0.0.1:0"]).start();
    let bodies: Vec<String> = (0..8).map(|_| get(proxy.addr(), "/").text()).collect();
    let workers = proxy.workers();
    for body in &bodies {
        assert!(workers.iter().any(|pid| names(body, *pid)), "none of {workers:?} is named in {body:?}");
    }
    // Two backends, so that balancing can be seen.
    let pids: Vec<String> = workers.iter().map(ToString::to_string).collect();
    let mut kinds: Vec<String> =
        bodies.iter().map(|body| pids.iter().fold(body.clone(), |text, pid| text.replace(pid, "PID"))).collect();
    kinds.sort();
    kinds.dedup();
    assert!(kinds.len() >= 2, "{bodies:?}");
}

fn names(text: &str, pid: Pid) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|word| word == pid.to_string())
}

#[test]
fn demo_does_not_start_beside_a_backend() {
    let backend = Backend::named("mine");
    let proxy = Launch::http(&[backend.addr]).start();
    for _ in 0..4 {
        assert_eq!(get(proxy.addr(), "/").text(), "mine");
    }
    assert!(!proxy.text().to_lowercase().contains("demo"), "{}", proxy.text());
}

#[test]
fn workers_auto_is_the_number_of_cores() {
    let backend = Backend::ok();
    let cores = std::thread::available_parallelism().unwrap().get();
    let proxy = Launch::http(&[backend.addr]).arg("--workers").arg("auto").workers(cores).start();
    assert_eq!(proxy.workers().len(), cores);
}

#[test]
fn processes_show_their_roles() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    let roles: Vec<String> = proxy
        .workers()
        .iter()
        .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().replace('\0', " "))
        .collect();
    assert!(roles[0].contains("worker 0") && roles[1].contains("worker 1"), "{roles:?}");
}

#[test]
fn several_listeners_and_backends_from_the_command_line() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let proxy = Launch::http(&[one.addr, two.addr]).arg("--listen").arg("127.0.0.1:0").workers(1);
    let proxy = proxy.start();
    let first = proxy.addr().clone();
    let second = wait_for("the second listener", || {
        let text = proxy.text();
        let line = text.lines().filter(|line| line.contains("listening on ")).nth(1)?;
        line.split("listening on ").nth(1)?.split_whitespace().next()?.parse().ok()
    });
    let mut bodies: Vec<String> = (0..2).map(|_| get(&first, "/").text()).collect();
    bodies.push(get(&crate::common::proxy::Addr::Inet(second), "/").text());
    assert!(bodies.contains(&"one".to_owned()) && bodies.contains(&"two".to_owned()), "{bodies:?}");
}

#[test]
fn unix_listener_serves_and_its_stale_socket_is_replaced() {
    let backend = Backend::ok();
    let dir = TempDir::new();
    let path = dir.join("front.sock");
    // A socket file without a listener, as a killed proxy leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let conf = Conf::http(&[backend.addr]).listen(&format!("bind = \"unix:{}\"", path.display()));
    let proxy = conf.start();
    assert_eq!(get(proxy.addr(), "/").text(), "ok");
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/").text(), "ok");
    assert_eq!(client.get("/").text(), "ok");

    // One in use, or a file that is no socket, is never removed.
    let (code, _, err) = parts(&conf.launch().run());
    assert_eq!(code, 1, "{err}");
    assert_eq!(get(proxy.addr(), "/").text(), "ok");
    let file = dir.write("file", "precious");
    let (code, _, err) =
        parts(&Conf::http(&[backend.addr]).listen(&format!("bind = \"unix:{}\"", file.display())).launch().run());
    assert_eq!(code, 1, "{err}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    proxy.stop();
    assert!(!path.exists(), "the socket file is left behind");
}

#[test]
fn unix_backend_is_reached() {
    let dir = TempDir::new();
    let path = dir.join("back.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nunix");
        }
    });
    let proxy = Conf::http(&[]).server(format!("\"unix:{}\"", path.display())).start();
    assert_eq!(get(proxy.addr(), "/").text(), "unix");
    assert_eq!(get(proxy.addr(), "/").text(), "unix");
}

#[test]
fn unix_listener_has_the_permissions_configured() {
    use std::os::unix::fs::PermissionsExt;
    let backend = Backend::ok();
    let dir = TempDir::new();
    let path = dir.join("front.sock");
    let proxy = Conf::http(&[backend.addr])
        .listen(&format!("bind = \"unix:{}\"\npermissions = \"0600\"", path.display()))
        .start();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(get(proxy.addr(), "/").text(), "ok");
}

#[test]
fn ipv6_listener_serves() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).arg("--listen").arg("[::1]:0").start();
    let (_, line) = proxy.wait_for_log(&["listening on [::1]:"]);
    let addr = line.split("listening on ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(get(&crate::common::proxy::Addr::Inet(addr), "/").text(), "ok");
    assert_eq!(backend.only_request().fields.get("x-forwarded-for"), Some("::1"));
}

#[test]
fn log_level_is_obeyed() {
    let backend = Backend::ok();
    let proxy = Launch::http(&[backend.addr]).arg("--log-level").arg("debug").start();
    get(proxy.addr(), "/");
    wait_until("something is logged at debug level", || proxy.text().contains("DEBUG"));
}
