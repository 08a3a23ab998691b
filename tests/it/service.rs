//! As a service: what systemd is told, and sockets that come from it.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backend::Backend;
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::processes::{alive, children};
use crate::common::proxy::Addr;
use crate::common::{DEADLINE, TempDir, wait_until};

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Manager(socket)
    }

    #[track_caller]
    fn hears(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }
}

#[test]
fn the_service_manager_is_told_of_every_change() {
    let backend = Backend::ok();
    let place = TempDir::new();
    let path = place.join("notify");
    let manager = Manager::at(&path);
    let conf = Conf::http(&[backend.addr]);
    let mut proxy = conf.launch().env("NOTIFY_SOCKET", path.to_str().unwrap()).start();
    assert_eq!(manager.hears(), "READY=1\n");
    let since = || rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
    for broken in [false, true] {
        let before = since();
        if broken {
            proxy.forgive("configuration not reloaded");
            proxy.write_config(2, "listen");
            assert_eq!(proxy.question("reload").status.code(), Some(2));
        } else {
            proxy.signal(Signal::SIGHUP);
        }
        let reloading = manager.hears();
        let micros: i64 = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end().parse().unwrap();
        assert!((before..=since()).contains(&(micros / 1_000_000)), "{reloading}");
        assert_eq!(manager.hears(), "READY=1\n");
    }
    proxy.write_config(2, &conf.text());
    proxy.upgrade();
    // The new one says that it is ready, to a manager that does not listen to it yet; the former one says who it is.
    let mut told = [manager.hears(), manager.hears()];
    told.sort();
    assert_eq!(told, [format!("MAINPID={}\n", proxy.pid), "READY=1\n".to_owned()]);
    proxy.stop();
    assert_eq!(manager.hears(), "STOPPING=1\n");
}

/// The parent of a process.
fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// systemd decides when it is told of a main process whether that is a child of its own. For the end of one that is not
/// it does not wait at a stop, and kills it at once.
#[test]
fn an_upgraded_master_is_no_child_of_the_former_one_when_the_service_manager_is_told() {
    let backend = Backend::silent();
    let place = TempDir::new();
    let path = place.join("notify");
    let manager = Manager::at(&path);
    let mut proxy = Conf::http(&[backend.addr]).launch().env("NOTIFY_SOCKET", path.to_str().unwrap()).start();
    assert_eq!(manager.hears(), "READY=1\n");
    // As long as it is not answered the former master stays.
    let mut client = Client::connect(proxy.addr());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the server has the request", || backend.open() == 1);
    proxy.signal(Signal::SIGUSR2);
    let told = [manager.hears(), manager.hears()];
    let next = told.iter().find_map(|told| told.strip_prefix("MAINPID=")).unwrap().trim_end().parse().unwrap();
    assert!(alive(proxy.pid));
    let parent = parent(next);
    assert_ne!(parent, proxy.pid.as_raw());
    assert!(!children(proxy.pid).contains(&Pid::from_raw(parent)), "nor one of a child of its");
    kill(Pid::from_raw(next), Signal::SIGKILL).unwrap();
    proxy.forgive("the successor is gone");
}

#[test]
fn of_a_service_manager_that_is_not_there_or_does_not_listen_the_log_tells() {
    let backend = Backend::ok();
    let place = TempDir::new();
    let path = place.join("notify");
    let manager = Manager::at(&path);
    for socket in [path.to_str().unwrap(), "/no/such/socket", "@no-such-socket", "", "@", "relative"] {
        // Its queue fills up.
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.send_to(b"x", &path).is_ok() {}
        let proxy = Conf::http(&[backend.addr]).launch().env("NOTIFY_SOCKET", socket).start();
        assert_eq!(get(proxy.addr(), "/").status, 200);
        if !socket.is_empty() {
            proxy.wait_for_log(&["cannot tell the service manager Ready", &format!("NOTIFY_SOCKET={socket}: ")]);
        }
    }
    drop(manager);
}

#[test]
fn a_listening_socket_of_the_service_manager_is_used_and_left_open() {
    let backend = Backend::ok();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // Before there is anybody to accept.
    let mut early = Client::connect(&Addr::Inet(addr));
    let conf = Conf::http(&[backend.addr]).listen(&format!("bind = \"{addr}\""));
    let mut proxy = conf.launch().activated(listener.try_clone().unwrap()).start();
    assert_eq!(*proxy.addr(), Addr::Inet(addr));
    assert_eq!(early.get("/").status, 200);
    proxy.upgrade();
    assert_eq!(early.get("/").status, 200);
    let orphans = proxy.kill_master();
    let next = proxy.launch_with(&conf.text()).start();
    crate::common::processes::wait_gone(&orphans);
    assert_eq!(early.get("/").status, 200);
    next.stop();
    early.end();
    // The manager listens on: who comes now is served by the next.
    let mut late = Client::connect(&Addr::Inet(addr));
    let last = proxy.launch_with(&conf.text()).activated(listener.try_clone().unwrap()).start();
    assert_eq!(late.get("/").status, 200);
    last.stop();
    drop((proxy, listener));
    wait_until("nobody listens", || TcpStream::connect_timeout(&addr, DEADLINE).is_err());
}

#[test]
fn a_unix_socket_of_the_service_manager_keeps_its_file() {
    let backend = Backend::ok();
    let place = TempDir::new();
    let path = place.join("web.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let conf = Conf::http(&[backend.addr]).listen(&format!("bind = \"unix:{}\"", path.display()));
    let mut proxy = conf.launch().activated(listener.try_clone().unwrap()).start();
    assert_eq!(get(proxy.addr(), "/").status, 200);
    proxy.check_end(Some(Signal::SIGQUIT));
    assert!(path.exists());
    let mut waiting = Client::connect(&Addr::Unix(path));
    let next = conf.launch().activated(listener).start();
    assert_eq!(waiting.get("/").status, 200);
    next.stop();
}

#[test]
fn a_socket_that_is_not_configured_is_named() {
    let backend = Backend::ok();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let proxy = Conf::http(&[backend.addr]).launch().activated(listener).start();
    proxy.wait_for_log(&[&format!("the service manager listens on {addr}, which is not configured")]);
    assert_eq!(get(proxy.addr(), "/").status, 200);
}
