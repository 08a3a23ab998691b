//! The kernel refuses a system call for want of memory: what depends on it is tried again, or ends; nothing else does.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::thread;

use nix::errno::Errno;

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::proxy::Addr;
use crate::common::traced::{EPOLL_CTL, RECVFROM, RECVMSG, SENDMSG, fail_one};
use crate::common::{DEADLINE, wait_until};
use crate::in_hand::connections;

/// `EPOLL_CTL_ADD`.
const ADD: u64 = 1;

#[test]
fn the_master_keeps_a_worker_that_it_could_not_send_a_connection_at_once() {
    let backend = Backend::echo();
    let proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let workers = proxy.workers();
    let mut idle = Client::connect(proxy.addr());
    assert_eq!(idle.get("/").status, 200);
    let (addr, mut asked) = (proxy.addr().clone(), None);
    let begin = || asked = Some(thread::spawn(move || get(&addr, "/").status));
    // Its other messages, to the master's own successor or a question, do not come here.
    fail_one(proxy.pid, Errno::ENOMEM, begin, |number, _| number == SENDMSG);
    assert_eq!(asked.unwrap().join().unwrap(), 200);
    assert_eq!(proxy.workers(), workers, "{}", proxy.text());
    assert_eq!(idle.get("/").status, 200);
}

#[test]
fn a_worker_says_what_is_over_though_it_could_not_at_once() {
    let backend = Backend::tcp_echo();
    let proxy = Conf::tcp(&[backend.addr]).launch().workers(1).start();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(proxy.addr())).collect();
    clients.iter_mut().for_each(|client| client.echo(b'a'));
    assert_eq!(connections(&proxy), 8);
    // With these connections idle its next message is that they are over.
    fail_one(proxy.workers()[0], Errno::ENOMEM, || drop(clients), |number, _| number == SENDMSG);
    wait_until("the master knows", || connections(&proxy) == 0);
}

#[test]
fn a_relay_whose_client_cannot_be_watched_ends() {
    let backend = Backend::tcp_echo();
    let proxy = Conf::tcp(&[backend.addr]).launch().workers(1).start();
    let mut other = Client::connect(proxy.addr());
    other.echo(b'a');
    let (addr, mut asked) = (proxy.addr().clone(), None);
    let begin = || asked = Some(thread::spawn(move || end_of_new(&addr)));
    fail_one(proxy.workers()[0], Errno::ENOMEM, begin, |number, operation| number == EPOLL_CTL && operation == ADD);
    assert_eq!(asked.unwrap().join().unwrap(), Err(ErrorKind::ConnectionReset), "{}", proxy.text());
    proxy.wait_for_log(&["WARN", "cannot watch a connection"]);
    other.echo(b'b');
    drop(other);
    wait_until("nothing is left", || connections(&proxy) == 0 && backend.open() == 0);
}

#[test]
fn a_worker_that_cannot_hear_the_master_says_so_and_another_goes_on() {
    let backend = Backend::echo();
    let mut proxy = Conf::http(&[backend.addr]).launch().workers(1).start();
    let mut idle = Client::connect(proxy.addr());
    assert_eq!(idle.get("/").status, 200);
    let (addr, mut asked) = (proxy.addr().clone(), None);
    let begin = || asked = Some(thread::spawn(move || get(&addr, "/").status));
    fail_one(proxy.workers()[0], Errno::ENOMEM, begin, |number, _| number == RECVMSG);
    assert_eq!(asked.unwrap().join().unwrap(), 200);
    assert_eq!(idle.get("/").status, 200);
    proxy.wait_for_log(&["ERROR", "cannot receive from the master: Cannot allocate memory"]);
    proxy.forgive("cannot receive from the master");
}

#[test]
fn a_signal_does_not_bring_a_byte_twice() {
    let backend = Backend::echo();
    let conf = Conf::http(&[backend.addr]).tables("[[listen]]\nbind = \"unix:{dir}/front\"\n");
    let proxy = conf.launch().workers(1).start();
    let (addr, mut asked) = (proxy.addrs()[1].clone(), None);
    let begin = || {
        asked = Some(thread::spawn(move || {
            let mut client = Client::connect(&addr);
            [client.get("/").status, client.get("/").status]
        }));
    };
    // The byte kept of a head that is not known yet.
    fail_one(proxy.workers()[0], Errno::EINTR, begin, |number, _| number == RECVFROM);
    assert_eq!(asked.unwrap().join().unwrap(), [200, 200]);
}

/// What reading from a new connection comes to, which may be reset before anything else can be done with it.
fn end_of_new(addr: &Addr) -> Result<usize, ErrorKind> {
    let mut stream = TcpStream::connect(addr.inet()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.read(&mut [0]).map_err(|error| error.kind())
}
