//! What tests of one master after another share: how a master is replaced, and a crowd of clients that notices.

use nix::unistd::Pid;

use super::backend::Backend;
use super::client::Client;
use super::conf::Conf;
use super::processes::wait_gone;
use super::proxy::Proxy;
use super::wait_until;

/// Kills the master, starts another, and waits until that has passed on everything.
pub fn replace(mut proxy: Proxy) -> Proxy {
    let addrs = proxy.addrs().to_vec();
    let orphans = proxy.kill_master();
    let next = proxy.again();
    assert_eq!(next.addrs(), addrs);
    wait_taken_over(&next, &orphans);
    proxy.check_log();
    next
}

/// Waits until `next` has passed on everything that the `orphans` had. What a master has in its hands at the moment
/// it is killed is lost.
#[track_caller]
pub fn wait_taken_over(next: &Proxy, orphans: &[Pid]) {
    for pid in orphans {
        next.wait_for_log(&[&format!("(pid {pid}) has given everything")]);
    }
    wait_gone(orphans);
    // Whoever answers a question has finished the turn in which the last of them came.
    let output = next.question("status");
    assert!(output.status.success(), "{output:?}");
}

/// Waits until workers have so many connections. What a master has accepted and not yet passed on is lost with it.
#[track_caller]
pub fn wait_passed(proxy: &Proxy, count: u32) {
    wait_until("the connections are with the workers", || {
        let output = proxy.question("status");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let workers = text.lines().skip_while(|line| !line.starts_with("worker ")).skip(1);
        let column = |line: &str| line.split_whitespace().nth(4).unwrap().parse::<u32>().unwrap();
        workers.map(column).sum::<u32>() == count
    });
}

/// Has another master take over, and gives its number; the former one is still there if it has to wait.
pub fn begin_upgrade(proxy: &Proxy) -> Pid {
    let output = proxy.question("upgrade");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let pid = said.strip_prefix("upgraded: the master with pid ").and_then(|rest| rest.split(' ').next()).unwrap();
    Pid::from_raw(pid.parse().unwrap())
}

/// A configuration of HTTP and relays, with its control socket in the test's own directory.
pub fn conf(web: &Backend, echoing: &Backend) -> Conf {
    Conf::http(&[web.addr]).top("control = \"unix:{dir}/control\"").tables(&format!(
        "[[listen]]\nbind = \"127.0.0.2:0\"\nmode = \"tcp\"\nto = \"echo\"\n[backends.echo]\nservers = [\"{}\"]",
        echoing.addr
    ))
}

/// Clients of one master: idle ones, relays, and one within a head.
pub struct Crowd {
    idle: Vec<Client>,
    relays: Vec<Client>,
    half: Client,
}

impl Crowd {
    pub fn of(proxy: &Proxy) -> Crowd {
        let connect = |index: usize| Client::connect(&proxy.addrs()[index]);
        let mut crowd = Crowd {
            idle: (0..6).map(|_| connect(0)).collect(),
            relays: (0..6).map(|_| connect(1)).collect(),
            half: connect(0),
        };
        crowd.idle.iter_mut().for_each(|client| assert_eq!(client.get("/first").status, 200));
        crowd.relays.iter_mut().for_each(|client| client.echo(1));
        assert_eq!(crowd.half.get("/first").status, 200);
        crowd.half.send("GET /half HT");
        crowd
    }

    pub fn check(mut self) {
        self.idle.iter_mut().for_each(|client| assert_eq!(client.get("/last").status, 200));
        self.relays.iter_mut().for_each(|client| client.echo(2));
        self.half.send("TP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(self.half.response().fields.get("x-target"), Some("/half"));
    }
}
