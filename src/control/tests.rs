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
    Server::open(&scratch.socket(), "test".to_owned(), 10, None).map_err(|why| why.to_string())
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
fn there_are_so_many_clients_others_wait_and_silent_ones_are_dropped() {
    let scratch = Scratch::new("many");
    let mut server = open(&scratch).unwrap();
    let poll = mio::Poll::new().unwrap();
    let now = Instant::now();
    let mut clients: Vec<Channel> = (0..=CLIENTS).map(|_| connect(&scratch)).collect();
    server.on_ready();
    server.accept(poll.registry(), now);
    let greeted = |client: &mut Channel| client.recv::<Greeting>(&mut Vec::new()).is_ok();
    assert!(clients[..CLIENTS].iter_mut().all(greeted));
    assert!(matches!(clients[CLIENTS].recv::<Greeting>(&mut Vec::new()), Err(RecvError::Empty)));
    assert!(!server.is_ready(), "it would be looked at again and again");
    server.expire(now);
    assert_eq!(server.deadline(), Some(now + ASK));
    server.expire(now + ASK);
    assert_eq!(server.deadline(), None);
    assert!(
        clients[..CLIENTS].iter_mut().all(|c| matches!(c.recv::<Greeting>(&mut Vec::new()), Err(RecvError::Closed)))
    );
    assert!(server.is_ready());
    server.accept(poll.registry(), now);
    assert!(greeted(&mut clients[CLIENTS]));
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

fn open_beside(scratch: &Scratch) -> Server {
    Server::open_beside(&scratch.socket(), "test".to_owned(), 10, None).unwrap()
}

/// Whether `server` is behind the name `path`.
fn is_behind(server: &Server, path: &Path) -> bool {
    let inode = |path: &Path| rustix::fs::lstat(path).unwrap().st_ino;
    let socket = rustix::fs::fstat(&server.socket).unwrap().st_ino;
    // The name's inode is in another file system than the socket's: they are told apart by who is greeted.
    assert_ne!(inode(path), socket);
    let client = place::connect(path).unwrap();
    rustix::net::accept_with(&server.socket, SocketFlags::CLOEXEC).inspect(|_| drop(client)).is_ok()
}

#[test]
fn whoever_asks_waits_for_one_that_is_about_to_take_the_place() {
    let scratch = Scratch::new("about");
    let place = scratch.socket();
    assert_eq!(ask::reach(&place, || panic!("nobody is there")).unwrap_err(), Errno::NOENT);
    // Left by one that was killed.
    drop(std::os::unix::net::UnixListener::bind(&place).unwrap());
    assert_eq!(ask::reach(&place, || panic!("nobody is there")).unwrap_err(), Errno::CONNREFUSED);
    let mut server = open_beside(&scratch);
    let mut tries = 0;
    let reached = ask::reach(&place, || {
        tries += 1;
        if tries == 3 {
            assert!(server.take_place().unwrap());
        }
    });
    assert!(reached.is_ok());
    assert_eq!(tries, 3);
}

#[test]
fn whoever_takes_the_place_leaves_the_former_one_beside_it() {
    let scratch = Scratch::new("place");
    let first = open(&scratch).unwrap();
    let mut second = open_beside(&scratch);
    assert!(is_behind(&first, &scratch.socket()));
    assert_eq!(beside::names(&scratch.socket()).len(), 1);
    assert!(second.take_place().unwrap());
    assert!(is_behind(&second, &scratch.socket()));
    let names = beside::names(&scratch.socket());
    assert!(matches!(&names[..], [name] if is_behind(&first, name)));
    // Again, and from a former one: its own name is found wherever it has gone.
    let mut first = first;
    assert!(first.take_place().unwrap());
    assert!(is_behind(&first, &scratch.socket()));
    let names = beside::names(&scratch.socket());
    assert!(matches!(&names[..], [name] if is_behind(&second, name)));
    // Each of them knows the other one only.
    let (others, all) = (second.others(), beside::Sockets::of(&scratch.socket()));
    assert!(matches!((others.found(), all.found()), ([one], [_, _]) if !one.beside));
    let beside = names[0].clone();
    // It goes with it, although it was called otherwise when it last looked.
    drop(second);
    assert!(!beside.exists() && scratch.socket().exists());
    drop(first);
    assert!(!scratch.socket().exists());
}

#[test]
fn of_masters_that_start_together_the_second_to_listen_is_refused() {
    let scratch = Scratch::new("together");
    let path = scratch.socket();
    // Whom all of them have found, and what a dead one left.
    let orphan = open(&scratch).unwrap();
    let known = beside::Sockets::of(&path);
    let start = |known: &beside::Sockets| Server::open_beside(&path, "test".to_owned(), 10, Some(known));
    let mut first = start(&known).unwrap();
    assert!(matches!(start(&known), Err(OpenError::AnotherMaster(_))));
    // In whatever place it is by then, and also when nobody else is left.
    assert!(first.take_place().unwrap());
    assert!(matches!(start(&known), Err(OpenError::AnotherMaster(_))));
    drop(orphan);
    assert!(matches!(start(&known), Err(OpenError::AnotherMaster(_))));
    let open = Server::open(&path, "test".to_owned(), 10, Some(&known));
    assert!(matches!(open, Err(OpenError::AnotherMaster(_))));
    // Whoever has found it may follow it.
    let third = start(&beside::Sockets::of(&path)).unwrap();
    drop(third);
    // One that is gone keeps nobody out.
    first.leave();
    start(&known).unwrap();
}

#[test]
fn a_place_that_nobody_has_is_taken_too() {
    let scratch = Scratch::new("empty");
    let mut server = open_beside(&scratch);
    assert!(server.take_place().unwrap());
    assert!(is_behind(&server, &scratch.socket()) && beside::names(&scratch.socket()).is_empty());
    // A closed one takes in nobody, but keeps its name.
    server.close();
    let _client = place::connect(&scratch.socket()).unwrap();
    server.on_ready();
    let poll = mio::Poll::new().unwrap();
    server.accept(poll.registry(), Instant::now());
    assert!(server.clients.iter().all(Option::is_none));
    server.leave();
    assert_eq!(place::probe(&scratch.socket()), place::Found::Dead);
    assert_eq!(place::places(&scratch.0), [scratch.socket()]);
    place::tidy(&scratch.0);
    assert!(!scratch.socket().exists());
}

#[test]
fn a_place_with_a_long_name_has_room_beside_it() {
    let scratch = Scratch::new("long");
    let room = 107 - scratch.0.as_os_str().len() - 1;
    let path = scratch.0.join(format!("{}.sock", "x".repeat(room - 5)));
    let mut server = Server::open_beside(&path, "test".to_owned(), 10, None).unwrap();
    assert_eq!(beside::names(&path).len(), 1);
    assert!(server.take_place().unwrap());
    assert!(is_behind(&server, &path));
    // There are so many names and no more.
    let more: Vec<Server> =
        (0..beside::MOST).map(|_| Server::open_beside(&path, "test".to_owned(), 10, None).unwrap()).collect();
    let full = Server::open_beside(&path, "test".to_owned(), 10, None).unwrap_err();
    assert!(full.to_string().contains("64 sockets"), "{full}");
    drop(more);
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
fn only_masters_of_the_same_user_can_lock() {
    let scratch = Scratch::new("lock");
    let directory = rustix::fs::open(&scratch.0, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut server = open_beside(&scratch);
    // While another master has it nobody waits.
    let lock = place::try_lock(&scratch.0).unwrap();
    assert!(!server.take_place().unwrap());
    drop(lock);
    assert!(server.take_place().unwrap());
    let mut files = std::fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.extension().is_some_and(|extension| extension == "lock")).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // One that others could hold is of no use, nor one that is elsewhere.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(place::try_lock(&scratch.0).unwrap_err(), Errno::PERM);
    std::fs::rename(&file, scratch.0.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(scratch.0.join("elsewhere"), &file).unwrap();
    assert_eq!(place::try_lock(&scratch.0).unwrap_err(), Errno::LOOP);
    let refused = open(&scratch).unwrap_err();
    assert!(refused.contains(&file.display().to_string()), "{refused}");
}

#[test]
fn what_was_remembered_is_kept_for_the_next_master_unless_it_is_old() {
    let scratch = Scratch::new("names");
    let (recent, old) = (scratch.0.join("recent.sock.names"), scratch.0.join("old.sock.names"));
    for path in [&recent, &old] {
        std::fs::write(path, "names").unwrap();
    }
    // All that is left of one whose processes were killed.
    let dead = new_socket().unwrap();
    rustix::net::bind(&dead, &SocketAddrUnix::new(scratch.0.join("recent.sock")).unwrap()).unwrap();
    drop(dead);
    let written = std::time::SystemTime::now() - Duration::from_secs(31 * 24 * 3600);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(written).unwrap();
    place::tidy(&scratch.0);
    assert!(recent.exists() && !old.exists() && !scratch.0.join("recent.sock").exists());
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

#[test]
fn who_cannot_be_taken_in_is_tried_again() {
    let scratch = Scratch::new("again");
    let mut server = open(&scratch).unwrap();
    let poll = mio::Poll::new().unwrap();
    let now = Instant::now();
    // Until it listens nobody can be accepted, as without a descriptor.
    let other = scratch.0.join("other");
    server.socket = new_socket().unwrap();
    rustix::net::bind(&server.socket, &SocketAddrUnix::new(&other).unwrap()).unwrap();
    server.on_ready();
    server.accept(poll.registry(), now);
    assert!(!server.is_ready(), "it would be tried again and again");
    assert_eq!(server.deadline(), Some(now + AGAIN));
    rustix::net::listen(&server.socket, 1).unwrap();
    let mut client = Channel::from_fd(place::connect(&other).unwrap());
    server.accept(poll.registry(), now);
    assert!(matches!(client.recv::<Greeting>(&mut Vec::new()), Err(RecvError::Empty)));
    server.accept(poll.registry(), now + AGAIN);
    let _: Greeting = client.recv(&mut Vec::new()).unwrap();
    assert_eq!(server.deadline(), Some(now + AGAIN + ASK));
}
