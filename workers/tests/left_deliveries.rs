//! What a worker does with exchanges with `reply_to` that another one is said to have left: with this test in the master's
//! place, which passes on whatever a dead worker may have told it. Nobody is connected to whom the rules do not allow, and
//! no descriptor is taken for something that it is not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::thread::JoinHandle;

use ipc::channel::Channel;
use ipc::forward::{Delivery, Forward, Protocols, RuleSet, Spoken, Tunnel, UseLimits};
use ipc::message::{Passed, Task, ToWorker};
use ipc::origin::Origin;
use ipc::snapshot::{Listener, Mode, Snapshot};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::common::PATIENCE;

mod common;

fn snapshot() -> Snapshot {
    let none = UseLimits::default();
    let rules = RuleSet {
        name: "t".to_owned(),
        auth: false,
        lifetime_ms: None,
        rules: Vec::new(),
        per_user: none,
        per_address: none,
    };
    let forward = Forward { protocols: Protocols::ALL, rules: Some(rules) };
    common::snapshot(Listener { forward: Some(Box::new(forward)), ..common::listener(Mode::Forward, None) })
}

/// A worker in a thread of its own, and a listener through which its clients come.
struct Bed {
    channel: Channel,
    worker: JoinHandle<ExitCode>,
    front: TcpListener,
    passed: u32,
}

/// One exchange that is passed to it: the ends of the client and of the target.
struct Left {
    client: TcpStream,
    target: TcpStream,
    address: SocketAddr,
}

impl Bed {
    fn new() -> Bed {
        let (channel, worker) = common::start(&snapshot(), None, |theirs| workers::run(theirs, 0));
        Bed { channel, worker, front: TcpListener::bind("127.0.0.1:0").unwrap(), passed: 0 }
    }

    /// Passes an exchange: `reply`, if there is one, is to take the answer, and `reply_to` is what is said of it.
    fn pass(&mut self, reply: Option<&OwnedFd>, reply_to: Option<SocketAddr>) -> Left {
        self.pass_answered(b"", reply, reply_to)
    }

    /// The same with a target that has sent `answer`, and its end if there is one. The worker may end the exchange before
    /// the test could have that sent.
    fn pass_answered(&mut self, answer: &[u8], reply: Option<&OwnedFd>, reply_to: Option<SocketAddr>) -> Left {
        let client = TcpStream::connect(self.front.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, peer) = self.front.accept().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = TcpStream::connect(address).unwrap();
        let (mut target, _) = listener.accept().unwrap();
        if !answer.is_empty() {
            target.write_all(answer).unwrap();
            target.shutdown(Shutdown::Write).unwrap();
        }
        for stream in [&socket, &upstream] {
            stream.set_nonblocking(true).unwrap();
        }
        let tunnel = Tunnel {
            spoken: Spoken::Dynamic,
            target: "a.test:80".to_owned(),
            user: Some("ann".to_owned()),
            rule: Some("t:1".to_owned()),
            began_us: 1,
            connected_us: 2,
            lifetime_ms: None,
            delivery: reply_to.map(|reply_to| Delivery { target: address, reply_to }),
        };
        let tunnel = Some(Box::new(tunnel));
        let task = Task::Relay { server: None, reply: reply.is_some(), to_server: false, to_client: false, tunnel };
        let passed =
            Passed { id: self.passed, listener: 0, peer: Some(peer), origin: Origin::Direct, task, kept: true };
        self.passed += 1;
        let fds: Vec<_> = [socket.as_fd(), upstream.as_fd()].into_iter().chain(reply.map(AsFd::as_fd)).collect();
        self.channel.send(&ToWorker::Pass(vec![passed]), &fds).unwrap();
        Left { client, target, address }
    }

    fn end(mut self) {
        self.channel.send(&ToWorker::Stop, &[]).unwrap();
        assert_eq!(format!("{:?}", self.worker.join().unwrap()), format!("{:?}", ExitCode::SUCCESS));
    }
}

impl Left {
    /// What the client is told, to its end.
    fn told(&mut self) -> String {
        let mut told = String::new();
        self.client.read_to_string(&mut told).unwrap();
        told
    }

    fn is_told(&mut self, error: &str) {
        let told = self.told();
        assert!(told.starts_with(&format!("{{\"ok\":false,\"error\":\"{error}\",")), "{told:?}");
        // The target is not left with something that looks like an end.
        assert_eq!(self.target.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    fn goes_on(mut self, reply_to: &TcpListener) {
        self.client.write_all(b"question").unwrap();
        self.client.shutdown(Shutdown::Write).unwrap();
        let mut question = String::new();
        self.target.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        self.target.write_all(b"answer").unwrap();
        drop(self.target.shutdown(Shutdown::Write));
        let mut answer = String::new();
        reply_to.accept().unwrap().0.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        let address = self.address;
        assert_eq!(self.told(), format!("{{\"ok\":true,\"address\":\"{address}\",\"sent\":8,\"delivered\":6}}\n"));
    }
}

fn socket() -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
}

#[test]
fn nobody_is_connected_to_because_a_former_worker_said_so() {
    let mut bed = Bed::new();
    for (bind, allowed) in [("127.0.0.2:0", false), ("127.0.0.1:0", true)] {
        let reply_to = TcpListener::bind(bind).unwrap();
        let address = reply_to.local_addr().unwrap();
        let mut left = bed.pass(Some(&socket()), Some(address));
        if allowed {
            left.goes_on(&reply_to);
            continue;
        }
        left.is_told("reply-denied");
        reply_to.set_nonblocking(true).unwrap();
        assert_eq!(reply_to.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    // What comes from the target is for somebody else than the client, and that one's connection is not there.
    bed.pass_answered(b"for somebody else", None, Some("127.0.0.1:9".parse().unwrap())).is_told("reply-failed");
    // Nobody says where.
    bed.pass(Some(&socket()), None).is_told("reply-failed");
    bed.end();
}

#[test]
fn what_is_no_connection_for_an_answer_is_not_taken_for_one() {
    let mut bed = Bed::new();
    let reply_to = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reply_to.local_addr().unwrap();
    let (unix, other) = std::os::unix::net::UnixStream::pair().unwrap();
    for reply in [
        OwnedFd::from(unix),
        rustix::pipe::pipe().unwrap().0,
        OwnedFd::from(std::fs::File::open("/dev/null").unwrap()),
        OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()),
    ] {
        let told = bed.pass_answered(b"for somebody else", Some(&reply), Some(address)).told();
        assert!(told.starts_with("{\"ok\":false,\"error\":\"reply-failed\""), "{told:?}");
    }
    drop(other);
    bed.pass(Some(&socket()), Some(address)).goes_on(&reply_to);
    bed.end();
}
