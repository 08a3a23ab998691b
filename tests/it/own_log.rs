//! The proxy's own log, on standard error: a reader that does not read stops nothing, and a misspelt level hides nothing.

use std::io::Read;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::processes::children;
use crate::common::proxy::Addr;
use crate::common::wait_until;

#[test]
fn nobody_waits_for_a_reader_of_the_log() {
    let backend = Backend::ok();
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let server = backend.addr.to_string();
    let path = std::env::temp_dir().join(format!("pointsman-unread-{}.sock", std::process::id()));
    let mut master = Command::new(env!("CARGO_BIN_EXE_master"))
        .args(["--workers", "1", "--listen", &format!("unix:{}", path.display()), "--backend", &server])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(master.id().cast_signed());
    let addr = Addr::Unix(path.clone());
    wait_until("it listens", || path.exists());
    let mut client = Client::connect(&addr);
    // Far more than the pipe holds.
    for _ in 0..200 {
        kill(pid, Signal::SIGUSR1).unwrap();
        assert_eq!(client.get("/").status, 200);
    }
    let workers = children(pid);
    kill(workers[0], Signal::SIGKILL).unwrap();
    wait_until("there is another worker", || children(pid).iter().any(|child| !workers.contains(child)));
    assert_eq!(get(&addr, "/").status, 200);
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(master.wait().unwrap().success());
    let mut text = String::new();
    std::fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert!(text.contains("listening on"), "{text}");
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
