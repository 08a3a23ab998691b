use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("pointsman-control-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        place::make_directory(&path).unwrap();
        Scratch(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("a.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(scratch: &Scratch) -> Result<Server, String> {
    Server::open(&scratch.socket(), "test".to_owned(), 10)
}

fn connect(scratch: &Scratch) -> Channel {
    Channel::from_fd(place::connect(&scratch.socket()).unwrap())
}

#[test]
fn a_client_is_greeted_asks_once_and_is_answered() {
    let scratch = Scratch::new("talk");
    let mut server = open(&scratch).unwrap();
    let poll = mio::Poll::new().unwrap();
    let now = Instant::now();
    let mut client = connect(&scratch);
    server.on_ready();
    server.accept(poll.registry(), now);
    let greeting: Greeting = client.recv(&mut Vec::new()).unwrap();
    assert_eq!((greeting.version, greeting.config.as_str()), (VERSION, "test"));
    assert_eq!(server.hear(0), None);
    client.send(&Request::Status, &[]).unwrap();
    let (who, request) = server.hear(0).unwrap();
    assert_eq!(request, Request::Status);
    assert_eq!(server.deadline(), None);
    let answer = Answer::Busy { text: "no".to_owned() };
    server.answer(who, &answer);
    assert_eq!(client.recv::<Answer>(&mut Vec::new()).unwrap(), answer);
    // It is gone; a second answer reaches nobody, nor the next client in its place.
    let mut next = connect(&scratch);
    server.on_ready();
    server.accept(poll.registry(), now);
    server.answer(who, &answer);
    let _: Greeting = next.recv(&mut Vec::new()).unwrap();
    assert!(matches!(next.recv::<Answer>(&mut Vec::new()), Err(RecvError::Empty)));
}

#[test]
fn there_are_so_many_clients_and_silent_ones_are_dropped() {
    let scratch = Scratch::new("many");
    let mut server = open(&scratch).unwrap();
    let poll = mio::Poll::new().unwrap();
    let now = Instant::now();
    let mut clients: Vec<Channel> = (0..=CLIENTS).map(|_| connect(&scratch)).collect();
    server.on_ready();
    server.accept(poll.registry(), now);
    let greeted = |client: &mut Channel| client.recv::<Greeting>(&mut Vec::new()).is_ok();
    assert!(clients[..CLIENTS].iter_mut().all(greeted));
    assert!(matches!(clients[CLIENTS].recv::<Greeting>(&mut Vec::new()), Err(RecvError::Closed)));
    server.expire(now);
    assert_eq!(server.deadline(), Some(now + ASK));
    server.expire(now + ASK);
    assert_eq!(server.deadline(), None);
    assert!(
        clients[..CLIENTS].iter_mut().all(|c| matches!(c.recv::<Greeting>(&mut Vec::new()), Err(RecvError::Closed)))
    );
}

#[test]
fn nonsense_ends_the_conversation() {
    let scratch = Scratch::new("nonsense");
    let mut server = open(&scratch).unwrap();
    let poll = mio::Poll::new().unwrap();
    let mut client = connect(&scratch);
    server.on_ready();
    server.accept(poll.registry(), Instant::now());
    let _: Greeting = client.recv(&mut Vec::new()).unwrap();
    client.send(&"what?", &[]).unwrap();
    assert_eq!(server.hear(0), None);
    assert!(matches!(client.recv::<Answer>(&mut Vec::new()), Err(RecvError::Closed)));
}

#[test]
fn a_dead_masters_socket_is_replaced_and_a_live_ones_is_not() {
    let scratch = Scratch::new("stale");
    let server = open(&scratch).unwrap();
    let mode = std::fs::metadata(scratch.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(open(&scratch).unwrap_err().contains("another master"));
    drop(server);
    assert_eq!(place::probe(&scratch.socket()), place::Found::Nothing);
    // As a killed process leaves it: the file without anybody listening.
    let dead = new_socket().unwrap();
    rustix::net::bind(&dead, &SocketAddrUnix::new(scratch.socket()).unwrap()).unwrap();
    drop(dead);
    assert_eq!(place::probe(&scratch.socket()), place::Found::Dead);
    let _server = open(&scratch).unwrap();
    assert_eq!(place::probe(&scratch.socket()), place::Found::Alive);
    place::tidy(&scratch.0);
    assert!(scratch.socket().exists());
}

#[test]
fn what_is_no_socket_of_ours_stays() {
    let scratch = Scratch::new("other");
    std::fs::write(scratch.socket(), "precious").unwrap();
    assert!(open(&scratch).unwrap_err().contains("not a socket"));
    assert_eq!(std::fs::read(scratch.socket()).unwrap(), b"precious");
    std::fs::remove_file(scratch.socket()).unwrap();
    let _stream = std::os::unix::net::UnixListener::bind(scratch.socket()).unwrap();
    assert!(open(&scratch).unwrap_err().contains("another program"));
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let scratch = Scratch::new("open");
    std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(place::make_directory(&scratch.0).is_err());
    std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(place::make_directory(&scratch.0).is_ok());
    let link = scratch.0.join("link");
    std::os::unix::fs::symlink(&scratch.0, &link).unwrap();
    assert!(place::make_directory(&link).is_err());
}

#[test]
fn every_configuration_has_its_own_name() {
    let name = |path: &str| place::name(Some(Path::new(path)));
    assert_eq!(name("/etc/a.toml"), name("/etc/../etc/a.toml"));
    assert_ne!(name("/etc/a.toml"), name("/usr/a.toml"));
    assert!(name("/etc/web.toml").starts_with("web-"));
    assert!(name(&format!("/{}", "x".repeat(500))).len() < 60);
    assert!(place::name(None).contains(&std::process::id().to_string()));
}
