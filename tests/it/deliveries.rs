//! Exchanges with `reply_to` whose worker is killed, leaves, or gets another master, in each of their phases. The target
//! gets exactly the client's bytes, the address for the reply exactly the target's, each over one connection, and the client
//! one line that says so.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};

use crate::common::backend::Unanswering;
use crate::common::client::reset;
use crate::common::processes::{alive, kill_all};
use crate::common::proxy::{Addr, Launch, Proxy};
use crate::common::succession::replace;
use crate::common::{DEADLINE, pattern_bytes, wait_for, wait_until};
use crate::forward::{LOOPBACK, launch, log, read_exactly, read_line, stream};
use crate::protection::unprotected;

/// What the client sends along with its line.
const EARLY: usize = 5_000;
/// What it sends in all, and what is answered: more than the sockets and the pipe between two programs hold at first.
const LENGTH: usize = 6_000_000;
/// What is left of the answer when the target has closed its connection.
const REST: usize = 150_000;

/// What happens to whoever serves an exchange.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// All workers are killed.
    Death,
    /// A reload replaces them.
    Reload,
    /// The program is replaced.
    Upgrade,
    /// The master is killed, and another one started.
    NextMaster,
    /// The same, and then its workers are killed.
    NextMasterAndDeath,
}

impl Blow {
    fn strike(self, mut proxy: Proxy) -> Proxy {
        match self {
            Blow::Death => {
                let old = proxy.workers();
                kill_all(&proxy);
                wait_until("they are dead", || old.iter().all(|&pid| !alive(pid)));
                proxy.wait_for_workers(2);
                proxy
            }
            Blow::Reload => {
                let text = std::fs::read_to_string(proxy.dir.join("pointsman.toml")).unwrap();
                let text = text.split_once('\n').unwrap().1;
                // With more places they have to be others.
                let (before, after) = text.split_once("connections = ").unwrap();
                let (places, after) = after.split_once('\n').unwrap();
                let text = format!("{before}connections = {}\n{after}", places.parse::<u32>().unwrap() + 10);
                let old = proxy.workers();
                proxy.reload(2, &text);
                wait_until("the former workers are gone", || old.iter().all(|&pid| !alive(pid)));
                proxy
            }
            Blow::Upgrade => {
                proxy.upgrade();
                proxy
            }
            Blow::NextMaster => replace(proxy),
            Blow::NextMasterAndDeath => Blow::Death.strike(replace(proxy)),
        }
    }
}

fn forward(more: &str) -> Launch {
    launch(
        &format!("list = [{LOOPBACK}]"),
        &format!("control = \"unix:{{dir}}/control\"\n{more}\n[limits]\nconnections = 80"),
    )
}

fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// The next connection.
fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = wait_for("somebody connects", || match listener.accept() {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            None
        }
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn ask(proxy: &Proxy, target: SocketAddr, reply_to: SocketAddr, early: &[u8]) -> TcpStream {
    let mut client = stream(proxy);
    let line = format!("{{\"target\":\"{target}\",\"reply_to\":\"{reply_to}\"}}\n");
    client.write_all(&[line.as_bytes(), early].concat()).unwrap();
    client
}

fn outcome(target: SocketAddr, sent: usize, delivered: usize) -> String {
    format!("{{\"ok\":true,\"address\":\"{target}\",\"sent\":{sent},\"delivered\":{delivered}}}\n")
}

/// Sends all of it from a thread of its own.
fn send(stream: &TcpStream, bytes: Vec<u8>) -> JoinHandle<()> {
    let mut stream = stream.try_clone().unwrap();
    thread::spawn(move || stream.write_all(&bytes).unwrap())
}

/// One exchange, and how far it is.
struct Exchange {
    listeners: [TcpListener; 2],
    client: TcpStream,
    target: TcpStream,
    reply: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    got: Vec<u8>,
    replied: Vec<u8>,
    writers: Vec<JoinHandle<()>>,
}

impl Exchange {
    const STEPS: usize = 5;

    /// Both other connections stand, and the target has what came with the line.
    fn begin(proxy: &Proxy) -> Exchange {
        let listeners = [listener(), listener()];
        let [target, reply_to] = listeners.each_ref().map(|one| one.local_addr().unwrap());
        let request = pattern_bytes(LENGTH);
        let answer: Vec<u8> = request.iter().rev().copied().collect();
        let client = ask(proxy, target, reply_to, &request[..EARLY]);
        let (mut target, reply) = (accept(&listeners[0]), accept(&listeners[1]));
        let got = read_exactly(&mut target, EARLY);
        Exchange { listeners, client, target, reply, request, answer, got, replied: Vec::new(), writers: Vec::new() }
    }

    /// `stop` is called before the last of the answer is sent.
    fn step(&mut self, step: usize, stop: impl FnOnce()) {
        match step {
            // The client is sending, and everything on the way to the target is full.
            0 => {
                self.writers.push(send(&self.client, self.request[EARLY..].to_vec()));
                self.got.extend(read_exactly(&mut self.target, LENGTH / 3));
            }
            // It has closed its direction.
            1 => {
                let rest = LENGTH - self.got.len();
                self.got.extend(read_exactly(&mut self.target, rest));
                self.join();
                self.client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(self.target.read(&mut [0; 8]).unwrap(), 0);
            }
            // The target is answering.
            2 => {
                self.writers.push(send(&self.target, self.answer[..LENGTH - REST].to_vec()));
                self.replied.extend(read_exactly(&mut self.reply, LENGTH / 3));
            }
            // It has closed its connection, and a part of the answer is under way.
            3 => {
                self.replied.extend(read_exactly(&mut self.reply, LENGTH - REST - LENGTH / 3));
                self.join();
                stop();
                self.target.write_all(&self.answer[LENGTH - REST..]).unwrap();
                self.target.shutdown(Shutdown::Write).unwrap();
            }
            _ => {
                self.reply.read_to_end(&mut self.replied).unwrap();
                let target = self.listeners[0].local_addr().unwrap();
                assert_eq!(read_line(&mut self.client), outcome(target, LENGTH, LENGTH));
                assert_eq!(self.client.read(&mut [0; 8]).unwrap(), 0);
                assert!(self.got == self.request, "the target got something else");
                assert!(self.replied == self.answer, "what was delivered is not the answer");
            }
        }
    }

    fn join(&mut self) {
        self.writers.drain(..).for_each(|writer| writer.join().unwrap());
    }

    fn check(self) {
        for listener in &self.listeners {
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "connected to twice");
        }
    }
}

/// Has an exchange go through a blow before each of its steps, and one through all of them.
fn each_phase_outlives(blow: Blow) {
    let mut proxy = forward("").start();
    // What has come to its end is in no line if its worker is killed at once.
    let steps = if matches!(blow, Blow::NextMasterAndDeath) { Exchange::STEPS - 1 } else { Exchange::STEPS };
    let deadly: Vec<Vec<usize>> = (0..steps).map(|step| vec![step]).chain([(0..steps).collect()]).collect();
    for (count, deadly) in deadly.iter().enumerate() {
        let mut exchange = Exchange::begin(&proxy);
        for step in 0..Exchange::STEPS {
            if deadly.contains(&step) {
                eprintln!("{blow:?} before step {step}");
                proxy = blow.strike(proxy);
            }
            // A worker that can would move the last of the answer before it dies.
            let stops = matches!(blow, Blow::Death) && deadly.contains(&(step + 1));
            exchange.step(step, || {
                if stops {
                    stop_workers(&proxy);
                }
            });
        }
        exchange.check();
        // What a worker has not written to the log when it dies is lost.
        log(&proxy, count + 1);
    }
    // Whoever ends an exchange logs all of it.
    for line in log(&proxy, deadly.len()) {
        let what = ["status", "bytes_in", "bytes_out"].map(|key| line[key].as_u64().unwrap());
        assert_eq!(what, [200, LENGTH as u64, LENGTH as u64], "{line}");
    }
    assert_eq!(log(&proxy, deadly.len()).len(), deadly.len());
}

#[test]
fn each_phase_outlives_its_worker() {
    each_phase_outlives(Blow::Death);
}

#[test]
fn each_phase_outlives_a_reload_with_other_workers() {
    each_phase_outlives(Blow::Reload);
}

#[test]
fn each_phase_outlives_an_upgrade() {
    each_phase_outlives(Blow::Upgrade);
}

#[test]
fn each_phase_outlives_its_master() {
    each_phase_outlives(Blow::NextMaster);
    each_phase_outlives(Blow::NextMasterAndDeath);
}

/// Ends an exchange that has just come to stand: `got` of the request has been read.
fn finish(mut client: TcpStream, mut target: TcpStream, mut reply: TcpStream, address: SocketAddr, early: &[u8]) {
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    target.read_to_end(&mut got).unwrap();
    assert_eq!(got, early);
    target.write_all(b"answer").unwrap();
    drop(target);
    let mut replied = Vec::new();
    reply.read_to_end(&mut replied).unwrap();
    assert_eq!(replied, b"answer");
    assert_eq!(read_line(&mut client), outcome(address, early.len(), 6));
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn an_exchange_that_is_being_connected_to_its_target_begins_anew() {
    let (unanswering, reply_to) = (Unanswering::new(), listener());
    let mut proxy = forward("timeouts.connect = \"30s\"").start();
    let (target, early) = (unanswering.addr, pattern_bytes(EARLY));
    let client = ask(&proxy, target, reply_to.local_addr().unwrap(), &early);
    wait_until("the target is asked", || unanswering.is_asked());
    proxy = Blow::Death.strike(proxy);
    let listener = unanswering.answer();
    let connection = accept(&listener);
    finish(client, connection, accept(&reply_to), target, &early);
    for listener in [listener, reply_to] {
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "connected to twice");
    }
    drop(proxy);
}

#[test]
fn an_exchange_that_is_being_connected_for_its_answer_goes_on() {
    for blow in [Blow::Death, Blow::Reload, Blow::Upgrade, Blow::NextMaster] {
        let (listener, unanswering) = (listener(), Unanswering::new());
        let mut proxy = forward("timeouts.connect = \"30s\"").start();
        let (target, early) = (listener.local_addr().unwrap(), pattern_bytes(EARLY));
        let client = ask(&proxy, target, unanswering.addr, &early);
        let connection = accept(&listener);
        wait_until("the address for the reply is asked", || unanswering.is_asked());
        proxy = blow.strike(proxy);
        let reply_to = unanswering.answer();
        finish(client, connection, accept(&reply_to), target, &early);
        for listener in [listener, reply_to] {
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "connected to twice");
        }
        drop(proxy);
    }
}

/// Nothing more happens in the workers, though everything else goes on.
fn stop_workers(proxy: &Proxy) {
    proxy.workers().into_iter().for_each(|worker| kill(worker, Signal::SIGSTOP).unwrap());
}

#[test]
fn whoever_has_been_told_is_told_once_and_not_reset() {
    let (listener, reply_to) = (listener(), listener());
    let mut proxy = forward("").start();
    let target = listener.local_addr().unwrap();
    let mut client = ask(&proxy, target, reply_to.local_addr().unwrap(), b"early");
    let (mut connection, mut reply) = (accept(&listener), accept(&reply_to));
    assert_eq!(read_exactly(&mut connection, 5), b"early");
    // It ends its answer before the client has said everything.
    connection.write_all(b"answer").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_exactly(&mut reply, 6), b"answer");
    assert_eq!(reply.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(read_line(&mut client), outcome(target, 5, 6));
    log(&proxy, 1);
    for _ in 0..3 {
        stop_workers(&proxy);
        client.write_all(b"what nobody reads any more").unwrap();
        proxy = Blow::Death.strike(proxy);
    }
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "told twice");
    drop(client);
    wait_until("nothing is left", || connection.read(&mut [0; 64]).is_ok_and(|n| n == 0));
    assert_eq!(log(&proxy, 1).len(), 1);
}

#[test]
fn what_broke_while_nobody_looked_is_told_as_broken() {
    let (listener, reply_to) = (listener(), listener());
    let mut proxy = forward("").start();
    let mut client = ask(&proxy, listener.local_addr().unwrap(), reply_to.local_addr().unwrap(), b"early");
    let (mut connection, mut reply) = (accept(&listener), accept(&reply_to));
    assert_eq!(read_exactly(&mut connection, 5), b"early");
    connection.write_all(b"a part").unwrap();
    assert_eq!(read_exactly(&mut reply, 6), b"a part");
    stop_workers(&proxy);
    reset(connection);
    proxy = Blow::Death.strike(proxy);
    let told: serde_json::Value = serde_json::from_str(&read_line(&mut client)).unwrap();
    assert_eq!((told["ok"].as_bool(), told["error"].as_str()), (Some(false), Some("broken")), "{told}");
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(reply.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(proxy);
}

#[test]
fn what_has_no_copy_is_given_back_with_its_descriptors() {
    const MANY: usize = 60;
    let mut proxy = launch(&format!("list = [{LOOPBACK}]"), "").workers(4).descriptors(256, 256).start();
    let begin = |proxy: &Proxy| {
        let listeners = [listener(), listener()];
        let [target, reply_to] = listeners.each_ref().map(|one| one.local_addr().unwrap());
        let client = ask(proxy, target, reply_to, b"early");
        (client, accept(&listeners[0]), accept(&listeners[1]), target)
    };
    let exchanges: Vec<_> = (0..MANY).map(|_| begin(&proxy)).collect();
    // The first have copies, the last have not.
    let [now, ..] = unprotected(&proxy);
    assert!((10..MANY).contains(&now), "{now}");
    for _ in 0..2 {
        let leaves = proxy.workers().last().copied().unwrap();
        proxy.signal(Signal::SIGTTOU);
        wait_until("a worker has left", || !alive(leaves));
    }
    for (client, target, reply, address) in exchanges {
        finish(client, target, reply, address, b"early");
    }
    assert_eq!(unprotected(&proxy)[2], 0);
    // What has no copy is reset everywhere when its worker dies, and everything else goes on.
    let exchanges: Vec<_> = (0..MANY).map(|_| begin(&proxy)).collect();
    let old = proxy.workers();
    kill_all(&proxy);
    wait_until("they are dead", || old.iter().all(|&pid| !alive(pid)));
    proxy.wait_for_workers(2);
    let [_, _, lost] = unprotected(&proxy);
    let mut reset = 0;
    for (client, target, mut reply, address) in exchanges {
        client.set_nonblocking(true).unwrap();
        let seen = client.peek(&mut [0]).unwrap_err().kind();
        client.set_nonblocking(false).unwrap();
        if seen == ErrorKind::WouldBlock {
            finish(client, target, reply, address, b"early");
            continue;
        }
        reset += 1;
        assert_eq!(seen, ErrorKind::ConnectionReset);
        assert_eq!(reply.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert!(reset == lost && (1..MANY).contains(&lost), "{reset} reset, {lost} lost");
}

#[test]
fn exchanges_of_clients_on_unix_sockets_go_on_too() {
    let replies = "{ action = \"allow\", about = \"replies\", networks = [\"127.0.0.1/32\"] }";
    let text = format!(
        "[[listen]]\nbind = \"unix:{{dir}}/forward.sock\"\nmode = \"forward\"\nrules = \"t\"\n\
         [rules.t]\nlist = [{LOOPBACK}, {replies}]\n"
    );
    let mut proxy = Launch::config(&text).start();
    for _ in 0..3 {
        let Addr::Unix(path) = proxy.addr().clone() else { panic!("{:?}", proxy.addr()) };
        let (targets, replies) = (listener(), listener());
        let address = targets.local_addr().unwrap();
        let reply_to = replies.local_addr().unwrap();
        let mut client = UnixStream::connect(path).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(client, "{{\"target\":\"{address}\",\"reply_to\":\"{reply_to}\"}}\nearly").unwrap();
        let (mut target, mut reply) = (accept(&targets), accept(&replies));
        assert_eq!(read_exactly(&mut target, 5), b"early");
        proxy = Blow::Death.strike(proxy);
        client.write_all(b", and late").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut got = String::new();
        target.read_to_string(&mut got).unwrap();
        assert_eq!(got, ", and late");
        target.write_all(b"answer").unwrap();
        drop(target);
        let mut replied = String::new();
        reply.read_to_string(&mut replied).unwrap();
        assert_eq!(replied, "answer");
        let mut told = String::new();
        client.read_to_string(&mut told).unwrap();
        assert_eq!(told, outcome(address, 15, 6));
    }
}
