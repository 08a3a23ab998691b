//! The proxy's own log, on standard error: a reader that does not read stops nothing, and a misspelt level hides nothing.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::processes::children;
use crate::common::proxy::Addr;
use crate::common::wait_until;

/// Has the proxy log far more than `stderr` has room for while nobody reads it.
fn log_to_nobody(stderr: OwnedFd, name: &str) {
    let backend = Backend::ok();
    let server = backend.addr.to_string();
    let path = std::env::temp_dir().join(format!("pointsman-{name}-{}.sock", std::process::id()));
    let mut master = Command::new(env!("CARGO_BIN_EXE_master"))
        .args(["--workers", "1", "--listen", &format!("unix:{}", path.display()), "--backend", &server])
        .args(["--log-level", "debug"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(master.id().cast_signed());
    let addr = Addr::Unix(path.clone());
    wait_until("it listens", || path.exists());
    let mut client = Client::connect(&addr);
    // Signals that come while it starts would ask for nothing.
    assert_eq!(client.get("/").status, 200);
    for _ in 0..400 {
        // A line of the master's, and one of the worker's.
        kill(pid, Signal::SIGUSR1).unwrap();
        assert_eq!(Client::connect(&addr).ask("GET / HTTP/9.9\r\n\r\n").status, 505);
        assert_eq!(client.get("/").status, 200);
    }
    let workers = children(pid);
    kill(workers[0], Signal::SIGKILL).unwrap();
    wait_until("there is another worker", || children(pid).iter().any(|child| !workers.contains(child)));
    assert_eq!(get(&addr, "/").status, 200);
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(master.wait().unwrap().success());
}

#[test]
fn nobody_waits_for_a_reader_of_the_log() {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    log_to_nobody(writer, "pipe");
    let mut text = String::new();
    std::fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert!(text.contains("listening on"), "{text}");
}

#[test]
fn nobody_waits_for_a_terminal() {
    let terminal = nix::pty::openpty(None, None).unwrap();
    log_to_nobody(terminal.slave, "terminal");
}

#[test]
fn a_level_that_is_none_hides_nothing() {
    for filter in ["typo", "", "typo=typo=typo"] {
        let output = Command::new(env!("CARGO_BIN_EXE_master"))
            .args(["--listen", "unix:/nonexistent/web.sock"])
            .env("RUST_LOG", filter)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains("/nonexistent/web.sock"), "{filter:?}: {text}");
    }
}

#[test]
fn signals_that_come_too_early_do_not_end_it() {
    let path = std::env::temp_dir().join(format!("pointsman-early-{}.sock", std::process::id()));
    let backend = Backend::ok();
    let mut master = Command::new(env!("CARGO_BIN_EXE_master"))
        .args(["--workers", "1", "--listen", &format!("unix:{}", path.display())])
        .args(["--backend", &backend.addr.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(master.id().cast_signed());
    // From the first instruction of its own on: before that nobody can ask for anything.
    wait_until("it has begun", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
        caught.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & (1 << 9) != 0)
    });
    while !path.exists() {
        for signal in [Signal::SIGUSR1, Signal::SIGTTOU] {
            kill(pid, signal).unwrap();
        }
    }
    // It is there before anybody listens.
    wait_until("it listens", || UnixStream::connect(&path).is_ok());
    assert_eq!(get(&Addr::Unix(path), "/").status, 200);
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(master.wait().unwrap().success());
}
