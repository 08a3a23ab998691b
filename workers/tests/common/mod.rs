//! What tests share that put themselves in the master's place: a configuration, and a worker that is greeted and ready.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError};
use ipc::message::{Layout, ToMaster, ToWorker, VERSION};
use ipc::snapshot::{
    AccessLog, Address, Dispatch, Dns, Limits, Listener, LogFormat, LogTarget, Mode, OnRemoval, ProxyProtocol,
    Snapshot, Timeouts,
};

/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing is cut off while a test runs.
pub fn timeouts() -> Timeouts {
    Timeouts {
        header_ms: 60_000,
        idle_ms: 60_000,
        body_ms: 60_000,
        write_ms: 60_000,
        connect_ms: 60_000,
        response_ms: 60_000,
        server_ms: 60_000,
        tunnel_ms: 60_000,
    }
}

/// One listener of this mode; nobody binds it.
pub fn listener(mode: Mode, to: Option<u16>) -> Listener {
    Listener {
        bind: Address::Inet("127.0.0.1:1".parse().unwrap()),
        mode,
        to,
        backlog: 16,
        timeouts: timeouts(),
        removed: false,
        proxy_protocol: ProxyProtocol::default(),
        abort_on_close: false,
        forward: None,
    }
}

/// A configuration with this listener and nothing behind it.
pub fn snapshot(listener: Listener) -> Snapshot {
    Snapshot {
        generation: 1,
        workers: 1,
        dispatch: Dispatch::RoundRobin,
        listeners: vec![listener],
        listening: Vec::new(),
        routes: Vec::new(),
        groups: Vec::new(),
        limits: Limits {
            head_bytes: 16 * 1024,
            head_fields: 100,
            body_bytes: None,
            connections: None,
            connections_per_address: None,
            min_rate_bytes: 0,
        },
        access_log: AccessLog { to: LogTarget::Off, format: LogFormat::Combined },
        users: Vec::new(),
        failures: ipc::forward::FailureLimits::default(),
        trusted_proxies: Vec::new(),
        shutdown_timeout_ms: 1000,
        on_removal: OnRemoval::Keep,
        worker_timeout_ms: 60_000,
        orphan_timeout_ms: 60_000,
        dns: Dns::default(),
    }
}

/// Starts a worker in a thread, where `run` is given its end of the channel, and waits until it is ready.
pub fn start<T: Send + 'static>(
    snapshot: &Snapshot,
    log: Option<BorrowedFd<'_>>,
    run: impl FnOnce(OwnedFd) -> T + Send + 'static,
) -> (Channel, JoinHandle<T>) {
    let layout = Layout { records: 64, slots: 64, slot_bytes: 32 * 1024 };
    let region = ipc::shm::create(&layout).unwrap();
    let sealed = ipc::sealed::write(snapshot).unwrap();
    let ledger = ipc::ledger::Rows::new().unwrap();
    let (mut channel, theirs) = Channel::pair().unwrap();
    let mut fds = vec![sealed.as_fd(), region.as_fd(), ledger.file()];
    fds.extend(log);
    channel.send(&ToWorker::Hello { version: VERSION, index: 0, row: Some(0), layout }, &fds).unwrap();
    let worker = std::thread::spawn(move || run(theirs));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match channel.recv::<ToMaster>(&mut Vec::new()) {
            Ok(ToMaster::Ready) => return (channel, worker),
            Err(RecvError::Empty) => std::thread::yield_now(),
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "the worker is not ready");
    }
}
