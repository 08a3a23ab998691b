//! The embedded demo: two small HTTP/1.1 servers, so that a first start without configuration shows something.
//!
//! They run in one child process, which ends with the master and its workers. They answer every request with a few lines of
//! text, or a small page for browsers, and are no more than that: a head of at most 16 KiB, bodies with
//! `Content-Length` are read and thrown away, anything else closes the connection.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Pid, PidfdFlags};

use crate::process::{self, End};

/// The names of the backends.
const NAMES: [&str; 2] = ["A", "B"];
/// The longest request head.
const MAX_HEAD: usize = 16 * 1024;
/// Connections at most, both backends together.
const MAX_CONNECTIONS: usize = 4096;
/// Answers collected before the client must take some.
const MAX_PENDING: usize = 64 * 1024;

/// The running demo, seen from the master. Ends with this value.
#[derive(Debug)]
pub struct Demo {
    /// Where the backends listen.
    pub backends: Vec<SocketAddr>,
    pidfd: OwnedFd,
    // Closing it is what tells the child to end.
    stdin: Option<ChildStdin>,
    ended: bool,
}

impl Demo {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When the process cannot be started or does not say where it listens.
    pub fn start(log_level: Option<&str>) -> io::Result<Demo> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("master").arg("demo").stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(level) = log_level {
            command.env(crate::LOG_LEVEL_VARIABLE, level);
        }
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        // The child writes one line as its first act, or ends, and either ends this read.
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout.take(1024)).read_line(&mut line)?;
        }
        let backends: Vec<SocketAddr> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if backends.len() != NAMES.len() {
            drop(stdin);
            let status = child.wait()?;
            return Err(io::Error::other(format!("the demo process ended at once ({status})")));
        }
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::NONBLOCK)?;
        Ok(Demo { backends, pidfd, stdin, ended: false })
    }

    /// It runs as long as somebody has this open.
    pub fn lifeline(&self) -> Option<BorrowedFd<'_>> {
        self.stdin.as_ref().map(AsFd::as_fd)
    }

    /// Readable when the demo has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, told once.
    pub fn reap(&mut self) -> Option<End> {
        if self.ended {
            return None;
        }
        let end = process::reap(self.pidfd.as_fd());
        self.ended = end.is_some();
        end
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.stdin = None;
        if !self.ended {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
            process::wait(self.pidfd.as_fd());
        }
    }
}

const STDIN: Token = Token(0);
const FIRST_CONNECTION: usize = 1 + NAMES.len();

/// The child: serves until `stdin` ends.
///
/// # Errors
/// When loopback addresses cannot be bound or waiting for events fails.
pub fn serve(stdin: OwnedFd) -> io::Result<()> {
    let mut poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&stdin.as_raw_fd()), STDIN, Interest::READABLE)?;
    let mut listeners = Vec::new();
    for (index, _) in NAMES.iter().enumerate() {
        let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        poll.registry().register(&mut listener, Token(1 + index), Interest::READABLE)?;
        listeners.push(listener);
    }
    let addresses = listeners.iter().map(|l| Ok(l.local_addr()?.to_string())).collect::<io::Result<Vec<_>>>()?;
    println!("{}", addresses.join(" "));
    io::stdout().flush()?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdout(&null)?;

    let mut connections: HashMap<Token, Connection> = HashMap::new();
    let mut next = FIRST_CONNECTION;
    let mut events = Events::with_capacity(256);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for event in &events {
            match event.token() {
                // Nothing is ever written to it: whatever happens is its end.
                STDIN => return Ok(()),
                Token(token) if token < FIRST_CONNECTION => {
                    while let Ok((mut stream, _)) = listeners[token - 1].accept() {
                        let key = Token(next);
                        let both = Interest::READABLE | Interest::WRITABLE;
                        if connections.len() < MAX_CONNECTIONS
                            && poll.registry().register(&mut stream, key, both).is_ok()
                        {
                            let _ = stream.set_nodelay(true);
                            next += 1;
                            connections.insert(key, Connection::new(stream, NAMES[token - 1]));
                        }
                    }
                }
                key => {
                    if connections.get_mut(&key).is_some_and(|connection| connection.turn().is_err()) {
                        connections.remove(&key);
                    }
                }
            }
        }
    }
}

/// One client connection of a demo backend.
struct Connection {
    stream: TcpStream,
    exchange: Exchange,
}

/// Ends a connection, for whatever reason.
struct Over;

impl Connection {
    fn new(stream: TcpStream, name: &'static str) -> Connection {
        Connection { stream, exchange: Exchange::new(name) }
    }

    /// Reads and answers until the socket has nothing more, or takes nothing more.
    fn turn(&mut self) -> Result<(), Over> {
        let mut buffer = [0; 16 * 1024];
        loop {
            self.write()?;
            if !self.exchange.output.is_empty() {
                // The next event comes when the client has taken some.
                return Ok(());
            }
            if self.exchange.closing {
                return Err(Over);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Over),
                Ok(n) => self.exchange.receive(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
    }

    fn write(&mut self) -> Result<(), Over> {
        while !self.exchange.output.is_empty() {
            match self.stream.write(&self.exchange.output) {
                Ok(0) => return Err(Over),
                Ok(n) => {
                    self.exchange.output.drain(..n);
                    self.exchange.answer();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }
}

/// Bytes in, answers out; knows no socket.
struct Exchange {
    name: &'static str,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of a request body still to be thrown away.
    body: u64,
    closing: bool,
}

impl Exchange {
    fn new(name: &'static str) -> Exchange {
        Exchange { name, input: Vec::new(), output: Vec::new(), body: 0, closing: false }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.answer();
    }

    /// Answers the complete requests in the input, as long as there is room for answers.
    fn answer(&mut self) {
        let mut at = 0;
        while !self.closing && self.output.len() < MAX_PENDING {
            let rest = &self.input[at..];
            let skipped = usize::try_from(self.body).unwrap_or(usize::MAX).min(rest.len());
            self.body -= skipped as u64;
            at += skipped;
            let rest = &self.input[at..];
            if self.body > 0 || rest.is_empty() {
                break;
            }
            match rest.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => {
                    match Request::parse(&rest[..end]) {
                        Some(request) => {
                            self.body = request.body;
                            self.closing = !request.keep_alive;
                            request.answer(self.name, &mut self.output);
                        }
                        None => {
                            self.closing = true;
                            let refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                            self.output.extend_from_slice(refusal.as_bytes());
                        }
                    }
                    at += end + 4;
                }
                None if rest.len() > MAX_HEAD => {
                    self.closing = true;
                }
                None => break,
            }
        }
        self.input.drain(..at);
    }
}

/// What the demo wants to know of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    is_head: bool,
    worker: &'a str,
    html: bool,
    body: u64,
    keep_alive: bool,
}

impl<'a> Request<'a> {
    fn parse(head: &'a [u8]) -> Option<Request<'a>> {
        let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
        let mut start = lines.next()?.split(' ');
        let (method, _target, version) = (start.next()?, start.next()?, start.next()?);
        let mut request = Request {
            is_head: method == "HEAD",
            worker: "(unknown)",
            html: false,
            body: 0,
            keep_alive: version == "HTTP/1.1",
        };
        for line in lines {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("x-pointsman-worker") {
                request.worker = value;
            } else if name.eq_ignore_ascii_case("accept") {
                request.html = value.contains("text/html");
            } else if name.eq_ignore_ascii_case("content-length") {
                request.body = value.parse().ok()?;
            } else if name.eq_ignore_ascii_case("transfer-encoding")
                || name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close")
            {
                // A chunked body is not read: the connection ends with the answer.
                request.keep_alive = false;
            }
        }
        if !request.worker.bytes().all(|byte| byte.is_ascii_digit()) {
            request.worker = "(unknown)";
        }
        Some(request)
    }

    fn answer(&self, name: &str, out: &mut Vec<u8>) {
        let worker = self.worker;
        let (kind, body) = if self.html {
            ("text/html; charset=utf-8", page(name, worker))
        } else {
            ("text/plain", format!("Hello from demo backend {name}.\nServed by worker {worker}.\n"))
        };
        let mut head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        if !self.keep_alive {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
        if !self.is_head {
            out.extend_from_slice(body.as_bytes());
        }
    }
}

fn page(name: &str, worker: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Pointsman demo</title>\
         <style>body{{font:1.1rem/1.6 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem}}\
         code{{background:#eee;padding:.1rem .3rem}}</style>\
         <h1>Pointsman demo</h1><p>Hello from demo backend <b>{name}</b>, served by worker <b>{worker}</b>.</p>\
         <p>Kill that worker with <code>kill -9 {worker}</code> and load this page again: another one answers, and \
         the connection is still the same.</p>\
         <p>This is the built-in demonstration. It is not started when a backend or a configuration is given.</p></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(input: &[u8]) -> (String, bool) {
        let mut exchange = Exchange::new("A");
        exchange.receive(input);
        (String::from_utf8(exchange.output).unwrap(), exchange.closing)
    }

    #[test]
    fn the_answer_names_backend_and_worker() {
        let (answer, closing) = answers(b"GET / HTTP/1.1\r\nHost: x\r\nX-Pointsman-Worker: 42\r\n\r\n");
        assert!(answer.ends_with("\r\n\r\nHello from demo backend A.\nServed by worker 42.\n"), "{answer}");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && !closing);
    }

    #[test]
    fn pipelined_requests_and_bodies_are_answered_in_order_however_they_are_cut() {
        let input = b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloHEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n";
        let (whole, closing) = answers(input);
        assert_eq!(whole.matches("200 OK").count(), 3);
        assert_eq!(whole.matches("Hello").count(), 2);
        assert!(closing && whole.contains("Connection: close"));
        let mut exchange = Exchange::new("A");
        input.iter().for_each(|&byte| exchange.receive(&[byte]));
        assert_eq!(exchange.output, whole.as_bytes());
    }

    #[test]
    fn what_is_not_understood_closes_the_connection() {
        assert!(answers(b"nonsense\r\n\r\n").1);
        assert!(answers(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n").1);
        assert!(answers(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").1);
        assert!(answers(&[b'x'; MAX_HEAD + 1]).1);
    }

    #[test]
    fn a_browser_gets_a_page_and_a_made_up_worker_is_not_repeated() {
        let (page, _) = answers(b"GET / HTTP/1.1\r\nAccept: text/html,*/*\r\nX-Pointsman-Worker: <script>\r\n\r\n");
        assert!(page.contains("<!doctype html>") && !page.contains("<script>"));
    }

    #[test]
    fn answers_nobody_takes_are_bounded() {
        let mut exchange = Exchange::new("A");
        exchange.receive(&b"GET / HTTP/1.1\r\n\r\n".repeat(10_000));
        assert!(exchange.output.len() < MAX_PENDING + 1024 && !exchange.input.is_empty());
    }
}
