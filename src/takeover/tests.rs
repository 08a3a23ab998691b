use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ipc::control::VERSION;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::*;
use crate::config::{Names, Options};
use crate::reload::Recipe;

/// A directory of control sockets, and a configuration with one listener.
struct Scratch {
    directory: PathBuf,
    snapshot: Snapshot,
}

impl Scratch {
    fn new(name: &str) -> Scratch {
        let directory = std::env::temp_dir().join(format!("pointsman-takeover-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        place::make_directory(&directory).unwrap();
        let file = directory.join("pointsman.toml");
        let text = "workers = 1\n[[listen]]\nbind = \"127.0.0.1:7\"\nmode = \"tcp\"\nto = \"a\"\n\
                    [backends.a]\nservers = [\"127.0.0.1:9\"]\n";
        std::fs::write(&file, text).unwrap();
        let recipe = Recipe { file: Some(file), options: Options::default(), demo: false };
        let loaded = recipe.gather(&mut Names::default()).unwrap_or_else(|report| panic!("{}", report.render(false)));
        Scratch { directory, snapshot: loaded.snapshot }
    }

    fn listen(&self, name: &str) -> OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&fd, &SocketAddrUnix::new(self.directory.join(name)).unwrap()).unwrap();
        rustix::net::listen(&fd, 4).unwrap();
        fd
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn accept(socket: &OwnedFd) -> Channel {
    Channel::from_fd(rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).unwrap())
}

/// Answers as a worker of a dead master does, which listens on nothing.
fn answer_as_orphan(channel: &mut Channel) {
    let greeting = Greeting { version: VERSION, pid: 1, config: "a worker".to_owned(), role: Role::Orphan };
    channel.send(&greeting, &[]).unwrap();
    channel.send(&ToSuccessor::Listeners { bound: Vec::new(), last: true }, &[]).unwrap();
}

#[test]
fn a_silent_stranger_is_not_waited_for_unless_an_address_is_in_use() {
    let scratch = Scratch::new("stranger");
    let _silent = scratch.listen("other.sock");
    let own = scratch.directory.join("own.sock");
    let found = orphans_in(
        &scratch.directory,
        &scratch.snapshot,
        Some(&Sockets::of(&own)),
        |_| false,
        |_, _| panic!("it waits"),
    );
    assert!(found.unwrap().is_empty());
    let asked = Cell::new(0);
    let found = orphans_in(
        &scratch.directory,
        &scratch.snapshot,
        Some(&Sockets::of(&own)),
        |_| true,
        |silent, left| {
            asked.set(asked.get() + 1);
            assert!(silent.len() == 1 && left <= OTHERS);
            if asked.get() == 2 { Err("asked twice".to_owned()) } else { Ok(()) }
        },
    );
    assert_eq!(found.unwrap_err(), "asked twice");
}

#[test]
fn who_is_silent_beside_one_that_answers_is_met_later() {
    let scratch = Scratch::new("beside");
    let (own, path) = (scratch.listen("own.sock"), scratch.directory.join("own.sock"));
    let _silent = scratch.listen("own.sock.beside-3");
    let mut channel = None;
    let wait = |_: &[&Former], _| {
        channel.get_or_insert_with(|| {
            let mut channel = accept(&own);
            answer_as_orphan(&mut channel);
            channel
        });
        Ok(())
    };
    let found = orphans_in(&scratch.directory, &scratch.snapshot, Some(&Sockets::of(&path)), |_| false, wait).unwrap();
    // The one that answers, one that may be behind it, and the silent one.
    assert_eq!(found.iter().map(Former::is_met).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(found.iter().map(Former::is_beside).collect::<Vec<_>>(), [false, false, true]);
    // Whoever comes to know of all but the silent one finds that.
    let known = &found[..2];
    assert!(waiting_beside(&Sockets::of(&path), known.iter()).iter().all(Former::is_beside));
    assert!(waiting_beside(&Sockets::of(&path), found.iter()).is_empty());
}

#[test]
fn who_has_only_greeted_when_the_search_ends_is_not_the_last_behind_its_name() {
    let scratch = Scratch::new("greeted");
    let (own, path) = (scratch.listen("own.sock"), scratch.directory.join("own.sock"));
    let slow = scratch.listen("own.sock.beside-1");
    let mut channels = Vec::new();
    let wait = |_: &[&Former], _| {
        if channels.is_empty() {
            let (mut first, mut second) = (accept(&own), accept(&slow));
            answer_as_orphan(&mut first);
            let greeting = Greeting { version: VERSION, pid: 1, config: "slow".to_owned(), role: Role::Orphan };
            second.send(&greeting, &[]).unwrap();
            channels.extend([first, second]);
        }
        Ok(())
    };
    let found = orphans_in(&scratch.directory, &scratch.snapshot, Some(&Sockets::of(&path)), |_| false, wait).unwrap();
    let behind = |slow: &&Former| slow.is_beside();
    let mut met: Vec<bool> = found.iter().filter(behind).map(Former::is_met).collect();
    met.sort_unstable();
    assert_eq!(met, [false, true]);
}

#[test]
fn nobody_starts_while_it_is_not_known_who_has_its_place() {
    let scratch = Scratch::new("place");
    let _silent = scratch.listen("own.sock");
    let other = scratch.listen("own.sock.beside-1");
    let path = scratch.directory.join("own.sock");
    let (mut channel, mut asked) = (None, 0);
    let wait = |silent: &[&Former], _| {
        asked += 1;
        channel.get_or_insert_with(|| {
            let mut channel = accept(&other);
            answer_as_orphan(&mut channel);
            channel
        });
        if silent.len() == 1 && asked > 3 { Err("still waiting".to_owned()) } else { Ok(()) }
    };
    let found = orphans_in(&scratch.directory, &scratch.snapshot, Some(&Sockets::of(&path)), |_| false, wait);
    assert_eq!(found.unwrap_err(), "still waiting");
}

#[test]
fn a_name_that_nobody_is_behind_is_removed() {
    let scratch = Scratch::new("dead");
    let path = scratch.directory.join("own.sock");
    drop(scratch.listen("own.sock.beside-1"));
    let alive = scratch.listen("own.sock.beside-2");
    assert_eq!(waiting_beside(&Sockets::of(&path), [].iter()).len(), 1);
    assert!(!scratch.directory.join("own.sock.beside-1").exists());
    assert!(scratch.directory.join("own.sock.beside-2").exists());
    drop(alive);
}

#[test]
fn what_is_no_socket_stays() {
    let scratch = Scratch::new("file");
    let (path, file) = (scratch.directory.join("own.sock"), scratch.directory.join("own.sock.beside-3"));
    std::fs::write(&file, "precious").unwrap();
    std::os::unix::fs::symlink(&file, scratch.directory.join("own.sock.beside-4")).unwrap();
    let sockets = Sockets::of(&path);
    assert!(sockets.found().is_empty() && beside::names(&path).is_empty());
    let found = orphans_in(&scratch.directory, &scratch.snapshot, Some(&sockets), |_| false, |_, _| panic!("it waits"));
    assert!(found.unwrap().is_empty() && waiting_beside(&sockets, [].iter()).is_empty());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}
