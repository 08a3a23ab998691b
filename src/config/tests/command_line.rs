//! The command line in place of a file, and beside one.

use std::path::Path;

use ipc::snapshot::{Address, Mode};

use super::super::command_line::check_options;
use super::super::{Options, Workers, gather, load};
use super::*;

#[test]
fn the_command_line_is_a_configuration_too() {
    let options = Options {
        listen: vec!["0.0.0.0:80".to_owned(), "[::]:80".to_owned()],
        backend: vec!["127.0.0.1:9001".to_owned(), "two.x:80".to_owned()],
        ..Options::default()
    };
    let loaded = check_options(&options, &TestSystem).unwrap();
    assert_eq!(loaded.warnings.to_string(), "");
    assert_eq!(loaded.snapshot.workers, 4);
    assert_eq!(loaded.snapshot.listeners.len(), 2);
    assert_eq!(loaded.snapshot.groups[0].name, "default");
    let group = &loaded.snapshot.groups[0];
    assert_eq!((group.servers.len(), group.names.len(), group.names[0].known.len()), (1, 1, 2));
    assert_eq!(loaded.snapshot.routes.len(), 1);
    assert_dump_reads_back(&loaded);

    let file = "route = [{ to = \"default\" }]\nbackends.default.servers = [\"127.0.0.1:9001\"]";
    let backend = vec!["127.0.0.1:9001".to_owned()];
    let plain = check_options(&Options { backend: backend.clone(), ..Options::default() }, &TestSystem).unwrap();
    assert_eq!(plain.snapshot, good(file).snapshot);

    let options = Options { mode: Some(Mode::Tcp), workers: Some(Workers::Count(2)), backend, ..Options::default() };
    let tcp = check_options(&options, &TestSystem).unwrap().snapshot;
    assert_eq!((tcp.workers, tcp.routes.len(), tcp.listeners[0].to), (2, 0, Some(0)));
    assert_eq!(tcp.listeners[0].bind, Address::Inet(([127, 0, 0, 1], 8080).into()));
}

#[test]
fn the_command_line_is_checked_as_a_whole() {
    let options = Options {
        listen: vec!["8080".to_owned()],
        backend: vec!["127.0.0.1".to_owned(), "127.0.0.1:9001".to_owned()],
        ..Options::default()
    };
    assert_eq!(
        check_options(&options, &TestSystem).unwrap_err().to_string(),
        "error: `8080` has no host
 --> command line:1:10
  |
1 | --listen 8080 --backend 127.0.0.1 --backend 127.0.0.1:9001
  |          ^^^^
  |
  = help: write \"127.0.0.1:8080\" for this machine only, \"0.0.0.0:8080\" for all its IPv4 addresses

error: `127.0.0.1` has no port
 --> command line:1:25
  |
1 | --listen 8080 --backend 127.0.0.1 --backend 127.0.0.1:9001
  |                         ^^^^^^^^^
  |
  = help: write \"127.0.0.1:80\"
"
    );
    assert_eq!(
        check_options(&Options::default(), &TestSystem).unwrap_err().to_string(),
        "error: no server to pass requests to
help: give one or more with --backend HOST:PORT, or a file with --config FILE
"
    );
}

#[test]
fn only_workers_stand_above_a_file() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/minimal.toml");
    let options = Options { workers: Some(Workers::Count(7)), ..Options::default() };
    let loaded = gather(Some(&example), &options).unwrap();
    assert_eq!(loaded.snapshot.workers, 7);
    assert_eq!(loaded.process.source.as_deref(), Some(example.as_path()));

    let options = Options { backend: vec!["127.0.0.1:1".to_owned()], mode: Some(Mode::Tcp), ..Options::default() };
    let report = gather(Some(&example), &options).unwrap_err().to_string();
    assert_eq!(report.matches("error: ").count(), 2);
    assert!(report.contains("--backend cannot be used together with --config"), "{report}");
}

#[test]
fn unreadable_files_say_why() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let missing = load(&root.join("examples/no-such-file.toml"), None, &TestSystem).unwrap_err().to_string();
    assert!(missing.contains("No such file") && missing.contains("help: check the path"), "{missing}");
    let directory = load(&root.join("examples"), None, &TestSystem).unwrap_err().to_string();
    assert!(directory.contains("it is a directory"), "{directory}");
}
