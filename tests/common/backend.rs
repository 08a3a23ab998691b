//! Backends: correct ones, and ones that break every rule on purpose.
//!
//! Each counts its connections and requests and records what it received. One that found something ambiguous
//! in what the proxy sent fails the test when it is dropped, whatever the test was about.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt, socket, sockopt,
};

use super::client::reset;
use super::h1::{Broken, Request, Wire};
use super::{DEADLINE, dawdle};

/// What a backend counted and recorded.
#[derive(Debug, Default)]
pub struct Records {
    connections: AtomicUsize,
    open: AtomicUsize,
    heads: AtomicUsize,
    requests: Mutex<Vec<Request>>,
    violations: Mutex<Vec<String>>,
    streams: Mutex<HashMap<usize, TcpStream>>,
    stopping: AtomicBool,
    gate: Gate,
}

/// Holds back handlers until a test opens it.
#[derive(Debug, Default)]
pub struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    /// Waits until the gate is open, at most for [`DEADLINE`].
    pub fn pass(&self) {
        let open = self.open.lock().unwrap();
        drop(self.changed.wait_timeout_while(open, DEADLINE, |open| !*open).unwrap());
    }
}

/// A listening server in threads of the test.
#[derive(Debug)]
pub struct Backend {
    pub addr: SocketAddr,
    records: Arc<Records>,
}

/// One connection at a backend.
#[derive(Debug)]
pub struct Conn {
    pub wire: Wire,
    /// The number of this connection at its backend, from 0.
    pub number: usize,
    records: Arc<Records>,
}

impl Backend {
    /// Runs `handler` in a thread for each connection; its end closes the connection.
    pub fn serve(handler: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
        Backend::serve_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), handler)
    }

    pub fn serve_on(listener: TcpListener, handler: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
        let addr = listener.local_addr().unwrap();
        let records = Arc::new(Records::default());
        let (handler, shared) = (Arc::new(handler), Arc::clone(&records));
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if shared.stopping.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                shared.open.fetch_add(1, Ordering::SeqCst);
                shared.streams.lock().unwrap().insert(number, stream.try_clone().unwrap());
                let (handler, records) = (Arc::clone(&handler), Arc::clone(&shared));
                thread::spawn(move || {
                    let mut conn = Conn { wire: Wire::new(stream, None), number, records: Arc::clone(&records) };
                    if catch_unwind(AssertUnwindSafe(|| handler(&mut conn))).is_err() {
                        records.violations.lock().unwrap().push("a backend's thread panicked".to_owned());
                    }
                    // The copy kept for stopping would hold the connection open.
                    records.streams.lock().unwrap().remove(&number);
                    drop(conn);
                    records.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Backend { addr, records }
    }

    /// Answers every request with what `answer` makes of it.
    pub fn answering(answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Backend {
        Backend::serve(move |conn| {
            while let Some(request) = conn.request() {
                conn.send(&answer(&request));
                if request.fields.lists("connection", "close") {
                    break;
                }
            }
        })
    }

    /// 200 with the body `ok`.
    pub fn ok() -> Backend {
        Backend::named("ok")
    }

    /// 200 with this name as the body.
    pub fn named(name: &str) -> Backend {
        let answer = response(name);
        Backend::answering(move |_| answer.clone())
    }

    /// 200 with the request's body, and `X-Target` and `X-Method`.
    pub fn echo() -> Backend {
        Backend::answering(|request| {
            let extra = format!("X-Method: {}\r\nX-Target: {}\r\n", request.method, request.target);
            let mut answer = response_with(&extra, &request.body);
            if request.method == "HEAD" {
                answer.truncate(answer.len() - request.body.len());
            }
            answer
        })
    }

    /// 200 with the request's target and the length of its body, once the test opens the gate.
    pub fn gated() -> Backend {
        Backend::serve(|conn| {
            while let Some(request) = conn.request() {
                conn.gate().pass();
                conn.send(&response(&format!("{} {}", request.target, request.body.len())));
            }
        })
    }

    /// These bytes for every request, framed rightly or not.
    pub fn fixed(bytes: impl Into<Vec<u8>>) -> Backend {
        let bytes = bytes.into();
        Backend::answering(move |_| bytes.clone())
    }

    /// Reads a request, then does this, once a connection.
    pub fn scripted(script: Vec<Act>) -> Backend {
        Backend::serve(move |conn| conn.play(&script))
    }

    /// Resets each connection as soon as it is accepted.
    pub fn resetting() -> Backend {
        Backend::scripted(vec![Act::Reset])
    }

    /// Accepts, reads and never answers.
    pub fn silent() -> Backend {
        Backend::scripted(vec![Act::Request, Act::Hang])
    }

    /// Echoes bytes; passes the half-close on.
    pub fn tcp_echo() -> Backend {
        Backend::serve(|conn| {
            let mut output = conn.wire.stream.try_clone().unwrap();
            let _ = std::io::copy(&mut conn.wire.stream, &mut output);
            let _ = output.shutdown(Shutdown::Write);
        })
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.records.connections.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.records.open.load(Ordering::SeqCst)
    }

    /// Request heads received so far.
    pub fn heads(&self) -> usize {
        self.records.heads.load(Ordering::SeqCst)
    }

    /// Whole requests received so far.
    pub fn requests(&self) -> Vec<Request> {
        self.records.requests.lock().unwrap().clone()
    }

    /// Whole requests received since the last call.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.records.requests.lock().unwrap())
    }

    /// What was not strictly HTTP/1, since the last call; nothing taken here fails the test later.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut *self.records.violations.lock().unwrap())
    }

    /// The only request received.
    #[track_caller]
    pub fn only_request(&self) -> Request {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests[0].clone()
    }

    /// The gate its handlers may wait at.
    pub fn gate(&self) -> &Gate {
        &self.records.gate
    }

    /// Closes every connection that is open now.
    pub fn cut_all(&self) {
        for stream in self.records.streams.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Stops and gives the address back, refusing connections from then on.
    pub fn refuse(self) -> Refusing {
        let addr = self.addr;
        self.stop();
        drop(self);
        Refusing::bind(addr)
    }

    fn stop(&self) {
        self.records.stopping.store(true, Ordering::SeqCst);
        self.records.gate.open();
        self.cut_all();
        // Wakes the accepting thread; it closes the listener on its way out.
        let _ = TcpStream::connect_timeout(&self.addr, Duration::from_secs(1));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
        let violations = self.take_violations();
        if !thread::panicking() {
            assert!(violations.is_empty(), "the proxy sent what is not strictly HTTP/1: {violations:#?}");
        }
    }
}

/// One step of a scripted backend.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Read a whole request.
    Request,
    /// Read a request's head only.
    Head,
    Send(Vec<u8>),
    /// Send so many bytes of the pattern, at most so many at a time, pausing between.
    Drip(usize, usize, Duration),
    /// Close with FIN both ways.
    Close,
    /// Close with RST.
    Reset,
    /// Close the sending side only.
    HalfClose,
    /// Do nothing until the peer has closed.
    Hang,
    /// Wait until the test opens the gate.
    Gate,
}

impl Act {
    pub fn send(bytes: impl Into<Vec<u8>>) -> Act {
        Act::Send(bytes.into())
    }
}

impl Conn {
    /// The next request, recorded; `None` when there is none, or it is cut or not strictly HTTP/1 (recorded too).
    pub fn request(&mut self) -> Option<Request> {
        let mut request = self.head()?;
        let read = self.wire.request_body(&mut request);
        self.checked(read, Some(&request))?;
        self.records.requests.lock().unwrap().push(request.clone());
        Some(request)
    }

    /// The next request's head.
    pub fn head(&mut self) -> Option<Request> {
        let read = self.wire.request_head();
        let request = self.checked(read, None)?;
        self.records.heads.fetch_add(1, Ordering::SeqCst);
        Some(request)
    }

    fn checked<T>(&self, read: Result<T, Broken>, head: Option<&Request>) -> Option<T> {
        let head = head.map_or(String::new(), |request| format!("{} ... ", request.summary()));
        match read {
            Ok(read) => return Some(read),
            Err(Broken::End | Broken::Cut(_) | Broken::Reset(_) | Broken::Late(_)) => {}
            Err(Broken::Violation(what)) => self.records.violations.lock().unwrap().push(head + &what),
        }
        None
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.wire.send(bytes);
    }

    /// Waits until the peer has closed, reading nothing of what it sends into memory for long.
    pub fn hang(&mut self) {
        while let Ok(true) = self.wire.fill() {
            self.wire.buffer.clear();
        }
    }

    /// Drops what is recorded, for tests with more requests than memory.
    pub fn forget_requests(&self) {
        self.records.requests.lock().unwrap().clear();
    }

    pub fn gate(&self) -> &Gate {
        &self.records.gate
    }

    /// Closes with RST once the handler returns.
    pub fn reset(&mut self) {
        // The copy kept for stopping shares the socket; the last of both sends the RST.
        self.records.streams.lock().unwrap().remove(&self.number);
        let _ = setsockopt(&self.wire.stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 });
        if let Ok(copy) = self.wire.stream.try_clone() {
            reset(copy);
        }
    }

    pub fn play(&mut self, script: &[Act]) {
        for act in script {
            match act {
                Act::Request => {
                    if self.request().is_none() {
                        return;
                    }
                }
                Act::Head => {
                    if self.head().is_none() {
                        return;
                    }
                }
                Act::Send(bytes) => self.send(bytes),
                Act::Drip(total, piece, pause) => {
                    let bytes = super::pattern_bytes(*total);
                    for piece in bytes.chunks(*piece) {
                        if self.wire.send(piece).is_err() {
                            return;
                        }
                        dawdle(*pause);
                    }
                }
                Act::Close => return,
                Act::Reset => return self.reset(),
                Act::HalfClose => {
                    let _ = self.wire.stream.shutdown(Shutdown::Write);
                }
                Act::Hang => self.hang(),
                Act::Gate => self.records.gate.pass(),
            }
        }
    }
}

/// An address that refuses connections and that nobody else can take.
#[derive(Debug)]
pub struct Refusing {
    pub addr: SocketAddr,
    socket: OwnedFd,
}

impl Refusing {
    pub fn new() -> Refusing {
        Refusing::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))
    }

    fn bind(addr: SocketAddr) -> Refusing {
        let socket = super::wait_for("the address is free", || {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
            bind(fd.as_raw_fd(), &SockaddrStorage::from(addr)).ok().map(|()| fd)
        });
        let name: SockaddrStorage = getsockname(socket.as_raw_fd()).unwrap();
        let port = name.as_sockaddr_in().unwrap().port();
        Refusing { addr: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), socket }
    }

    /// Begins to accept here.
    pub fn serve(self, handler: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
        listen(&self.socket, Backlog::new(128).unwrap()).unwrap();
        Backend::serve_on(TcpListener::from(self.socket), handler)
    }

    /// Begins to answer every request here with this name.
    pub fn serve_named(self, name: &str) -> Backend {
        let answer = response(name);
        self.serve(move |conn| {
            while conn.request().is_some() {
                conn.send(&answer);
            }
        })
    }
}

/// An address whose queue is full: connecting to it neither succeeds nor fails.
#[derive(Debug)]
pub struct Unanswering {
    pub addr: SocketAddr,
    queue: (TcpListener, Vec<TcpStream>),
}

impl Unanswering {
    pub fn new() -> Unanswering {
        Unanswering::on(Refusing::new())
    }

    /// The same on every address of this machine.
    pub fn everywhere() -> Unanswering {
        Unanswering::on(Refusing::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)))
    }

    fn on(refusing: Refusing) -> Unanswering {
        listen(&refusing.socket, Backlog::new(0).unwrap()).unwrap();
        let (addr, mut fillers) = (refusing.addr, Vec::new());
        while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
            fillers.push(stream);
        }
        Unanswering { addr, queue: (TcpListener::from(refusing.socket), fillers) }
    }

    /// Answers from now on: a listener that does not wait for those who come to it.
    pub fn answer(self) -> TcpListener {
        let (listener, fillers) = self.queue;
        let count = fillers.len();
        drop(fillers);
        (0..count).for_each(|_| drop(listener.accept().unwrap()));
        listen(&listener, Backlog::new(128).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// Whether somebody is trying to connect: has sent the first packet and waits (`SYN_SENT` in proc(5)).
    pub fn is_asked(&self) -> bool {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let port = format!(":{:04X}", self.addr.port());
        table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|columns| {
            columns.get(2).is_some_and(|remote| remote.ends_with(&port)) && columns.get(3) == Some(&"02")
        })
    }
}

/// A response with this body and its length.
pub fn response(body: &str) -> Vec<u8> {
    response_with("", body.as_bytes())
}

/// The same with further field lines, each ending in CRLF.
pub fn response_with(lines: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{lines}\r\n", body.len());
    [head.as_bytes(), body].concat()
}
