//! A raw HTTP client: the bytes of the test in, a strictly parsed response out.
//!
//! It never repairs, retries or follows anything: what a test sends is what the proxy gets.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::DEADLINE;
use super::h1::{Broken, Response, Wire};
use super::proxy::Addr;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With FIN.
    Clean,
    /// With RST.
    Reset,
}

/// One connection to the proxy.
#[derive(Debug)]
pub struct Client {
    pub wire: Wire,
}

impl Client {
    #[track_caller]
    pub fn connect(addr: &Addr) -> Client {
        let stream = match addr {
            Addr::Inet(addr) => TcpStream::connect_timeout(addr, DEADLINE).unwrap(),
            // Reading, writing and shutting down are the same on every stream socket.
            Addr::Unix(path) => TcpStream::from(OwnedFd::from(UnixStream::connect(path).unwrap())),
        };
        Client { wire: Wire::new(stream, Some(DEADLINE)) }
    }

    /// `count` connections, each of which has had an answer.
    #[track_caller]
    pub fn served(addr: &Addr, count: usize) -> Vec<Client> {
        let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(addr)).collect();
        for client in &mut clients {
            assert_eq!(client.get("/").status, 200);
        }
        clients
    }

    /// Connects with `from` as the source address.
    #[track_caller]
    pub fn connect_from(from: &str, addr: &Addr) -> Client {
        let from = SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0);
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
        connect(fd.as_raw_fd(), &SockaddrStorage::from(addr.inet())).unwrap();
        Client { wire: Wire::new(TcpStream::from(fd), Some(DEADLINE)) }
    }

    /// Connects with a receive buffer as small as the kernel allows, so that a client that does not read is
    /// noticed after kilobytes.
    #[track_caller]
    pub fn connect_narrow(addr: &Addr) -> Client {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&fd, sockopt::RcvBuf, &2048).unwrap();
        connect(fd.as_raw_fd(), &SockaddrStorage::from(addr.inet())).unwrap();
        Client { wire: Wire::new(TcpStream::from(fd), Some(DEADLINE)) }
    }

    /// Sends `bytes`. A peer that has already closed is no error here: what it answered is what counts.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.wire.stream.write_all(bytes.as_ref());
    }

    /// A byte goes to an echo and comes back.
    #[track_caller]
    pub fn echo(&mut self, byte: u8) {
        self.wire.stream.write_all(&[byte]).unwrap();
        let mut back = [0];
        self.wire.stream.read_exact(&mut back).unwrap();
        assert_eq!(back, [byte]);
    }

    /// The response to a request whose method is not HEAD.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Response {
        match self.wire.response(method) {
            Ok(response) => response,
            Err(broken) => panic!("no response: {}", describe(&broken)),
        }
    }

    pub fn try_response(&mut self) -> Result<Response, Broken> {
        self.wire.response("GET")
    }

    /// Sends a whole request and gives the response.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(&request);
        let head = request.as_ref().starts_with(b"HEAD ");
        self.response_to(if head { "HEAD" } else { "GET" })
    }

    #[track_caller]
    pub fn get(&mut self, target: &str) -> Response {
        self.ask(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// Waits for the connection's end, and panics when more bytes come first.
    #[track_caller]
    pub fn end(&mut self) -> End {
        let (rest, end) = self.read_to_end();
        assert!(rest.is_empty(), "bytes before the end: {:?}", String::from_utf8_lossy(&rest));
        end
    }

    /// Everything up to the connection's end, and how it ended.
    #[track_caller]
    pub fn read_to_end(&mut self) -> (Vec<u8>, End) {
        self.wire.begin();
        match self.wire.rest() {
            Ok(rest) => (rest, End::Clean),
            Err(Broken::Reset(rest)) => (rest, End::Reset),
            Err(broken) => panic!("the connection does not end: {}", describe(&broken)),
        }
    }

    /// Asserts that the connection is fit for another request.
    #[track_caller]
    pub fn assert_usable(&mut self) {
        let response = self.get("/still-usable");
        assert!(response.status < 500, "{response:?}");
    }

    /// Asserts that the connection does as the response said: goes on, or ends.
    #[track_caller]
    pub fn assert_as_announced(&mut self, response: &Response) {
        if response.closes() {
            self.end();
        } else {
            self.assert_usable();
        }
    }

    pub fn shutdown_write(&self) {
        let _ = self.wire.stream.shutdown(Shutdown::Write);
    }

    /// Closes with RST instead of FIN.
    pub fn reset(self) {
        reset(self.wire.stream);
    }

    /// How long responses and ends are waited for from now on.
    pub fn patience(&mut self, patience: Duration) {
        self.wire.patience = Some(patience);
    }
}

/// One request on a connection of its own.
#[track_caller]
pub fn get(addr: &Addr, target: &str) -> Response {
    Client::connect(addr).get(target)
}

/// Closes `stream` with RST instead of FIN.
pub fn reset(stream: TcpStream) {
    let _ = setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 });
    drop(stream);
}

/// A broken message in words.
pub fn describe(broken: &Broken) -> String {
    let show = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(600)]));
    match broken {
        Broken::End => "the connection ended".to_owned(),
        Broken::Cut(bytes) => format!("cut after {}", show(bytes)),
        Broken::Reset(bytes) => format!("reset after {}", show(bytes)),
        Broken::Late(bytes) => format!("nothing more came after {}", show(bytes)),
        Broken::Violation(what) => format!("not strictly HTTP/1: {what}"),
    }
}
