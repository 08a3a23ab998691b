//! Programs that people use, through the proxy.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::backend::Backend;
use crate::common::conf::Conf;
use crate::common::proxy::Launch;
use crate::common::{TempDir, need_packages, pattern_bytes, run, wait_until};

/// A child process that ends with its test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves the files below `root`, as a plain web server does.
pub fn file_server(root: &Path) -> Backend {
    let root = root.to_owned();
    Backend::answering(move |request| {
        let path = request.target.split('?').next().unwrap().trim_start_matches('/');
        match std::fs::read(root.join(path)) {
            Ok(body) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let body: &[u8] = if request.method == "HEAD" { &[] } else { &body };
                [head.as_bytes(), body].concat()
            }
            Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        }
    })
}

#[test]
fn curl_downloads_and_uploads() {
    need_packages(&["curl"]);
    let dir = TempDir::new();
    let data = pattern_bytes(2_000_000);
    let file = dir.join("data");
    std::fs::write(&file, &data).unwrap();
    let files = file_server(dir.path());
    let proxy = Launch::http(&[files.addr]).start();
    let copy = dir.join("copy");
    let url = format!("http://{}/data", proxy.addr());
    run(Command::new("curl").args(["-sSf", "--max-time", "20", "-o"]).arg(&copy).args([
        &url,
        "--next",
        "-sSf",
        "-o",
        "/dev/null",
        &url,
    ]));
    assert_eq!(std::fs::read(&copy).unwrap(), data);
    let head = run(Command::new("curl").args(["-sSfI", "--max-time", "20", &url]));
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: 2000000"), "{head}");
    let old = run(Command::new("curl").args(["-sSf0I", "--max-time", "20", &url]));
    assert!(old.contains(" 200"), "{old}");

    let echo = Backend::echo();
    let proxy = Launch::http(&[echo.addr]).start();
    let url = format!("http://{}/", proxy.addr());
    // curl sends `Expect: 100-continue` with a body this large.
    for extra in [&[][..], &["-H", "Transfer-Encoding: chunked"], &["-H", "Expect: 100-continue"]] {
        run(Command::new("curl")
            .args(["-sSf", "--max-time", "20", "-o"])
            .arg(&copy)
            .args(extra)
            .arg("--data-binary")
            .arg(format!("@{}", file.display()))
            .arg(&url));
        assert_eq!(std::fs::read(&copy).unwrap(), data, "{extra:?}");
    }
    let back = run(Command::new("curl").args(["-sSf", "--max-time", "20", "-F", "field=value", &url]));
    assert!(back.contains("name=\"field\""), "{back}");
}

#[test]
fn git_clones_over_http() {
    need_packages(&["git"]);
    let dir = TempDir::new();
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
        run(command.current_dir(dir.path()).args(args))
    };
    git(&["init", "-q", "work"]);
    for n in 0..30 {
        dir.write(&format!("work/file{n}"), &format!("contents {n}\n").repeat(1000 * n));
    }
    git(&["-C", "work", "add", "."]);
    git(&["-C", "work", "commit", "-qm", "first"]);
    git(&["clone", "-q", "--bare", "work", "bare.git"]);
    git(&["-C", "bare.git", "update-server-info"]);
    let files = file_server(dir.path());
    let proxy = Launch::http(&[files.addr]).start();
    git(&["clone", "-q", &format!("http://{}/bare.git", proxy.addr()), "copy"]);
    let tree = |name: &str| git(&["-C", name, "rev-parse", "HEAD^{tree}"]);
    assert_eq!(tree("copy"), tree("work"));
    git(&["-C", "copy", "fsck", "--strict"]);
}

#[test]
fn redis_works_through_a_tcp_relay() {
    need_packages(&["redis-server"]);
    let dir = TempDir::new();
    // The port is free a moment before; if another takes it, redis says so and the test fails.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _server = Running(server);
    let direct = format!("127.0.0.1:{port}").parse().unwrap();
    wait_until("redis listens", || std::net::TcpStream::connect(direct).is_ok());
    let proxy = Launch::tcp(&[direct]).start();
    let through = proxy.addr().inet().port().to_string();
    let redis = |args: &[&str]| run(Command::new("redis-cli").args(["-p", &through]).args(args));
    assert_eq!(redis(&["SET", "key", "value"]).trim(), "OK");
    assert_eq!(redis(&["GET", "key"]).trim(), "value");
    let mut batch = String::new();
    for n in 0..20_000 {
        batch += &format!("SET key{n} {n}\r\n");
    }
    let mut loader = Command::new("redis-cli")
        .args(["-p", &through, "--pipe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    loader.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    let mut said = String::new();
    loader.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(loader.wait().unwrap().success(), "{said}");
    assert!(said.contains("replies: 20000") && said.contains("errors: 0"), "{said}");
    assert_eq!(redis(&["DBSIZE"]).trim(), "20001");
}

#[test]
fn http_and_tcp_listen_side_by_side() {
    let (web, echo) = (Backend::named("web"), Backend::tcp_echo());
    let proxy = Conf::http(&[web.addr])
        .tables(&format!(
            "[[listen]]\nbind = \"127.0.0.1:0\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\nservers = [\"{}\"]",
            echo.addr
        ))
        .start();
    assert_eq!(crate::common::client::get(&proxy.addrs()[0], "/").text(), "web");
    let mut client = crate::common::client::Client::connect(&proxy.addrs()[1]);
    client.send("x");
    client.shutdown_write();
    assert_eq!(client.read_to_end().0, b"x");
}
