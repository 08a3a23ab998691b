//! The servers behind the model's proxy: one for requests, one for streams, which it sends back. They do one small
//! thing at a time, when the schedule says so.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use super::rng::Rng;

/// Byte `at` of what is answered to, or sent on, number `id`.
pub fn byte(id: u64, at: u64) -> u8 {
    u8::try_from((id.wrapping_mul(31).wrapping_add(at.wrapping_mul(7)) ^ at >> 8) & 0xff).unwrap()
}

/// What the servers have seen of one request.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    /// How often it came whole.
    pub runs: u32,
    /// Whether a byte of an answer was sent.
    pub answered: bool,
}

enum State {
    /// Requests, with the answers that are still to be written.
    Http { answers: VecDeque<(u64, Vec<u8>)> },
    /// Everything goes back; `ended` once nothing more comes.
    Echo { ended: bool },
}

struct Conn {
    stream: TcpStream,
    input: Vec<u8>,
    state: State,
}

/// See the module's description.
pub struct Servers {
    http: TcpListener,
    tcp: TcpListener,
    conns: Vec<Conn>,
    seen: HashMap<u64, Seen>,
    /// Requests may be anything; those that make no sense end their connection.
    pub tolerant: bool,
    /// Streams are reset now and then.
    pub breaks: bool,
}

fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// What one read brought: bytes, the end, or nothing now.
pub fn read(stream: &mut TcpStream, into: &mut Vec<u8>, most: usize) -> Result<usize, Option<ErrorKind>> {
    let mut buffer = vec![0; most];
    match stream.read(&mut buffer) {
        Ok(0) => Err(None),
        Ok(n) => {
            into.extend_from_slice(&buffer[..n]);
            Ok(n)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(Some(error.kind())),
    }
}

/// Writes as much as the socket takes, `most` at most; `None` when it is broken.
pub fn write(stream: &mut TcpStream, bytes: &[u8], most: usize) -> Option<usize> {
    match stream.write(&bytes[..most.min(bytes.len())]) {
        Ok(n) => Some(n),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
        Err(_) => None,
    }
}

impl Servers {
    pub fn new() -> Servers {
        Servers {
            http: listener(),
            tcp: listener(),
            conns: Vec::new(),
            seen: HashMap::new(),
            tolerant: false,
            breaks: false,
        }
    }

    pub fn addrs(&self) -> (SocketAddr, SocketAddr) {
        (self.http.local_addr().unwrap(), self.tcp.local_addr().unwrap())
    }

    pub fn seen(&self, id: u64) -> Seen {
        self.seen.get(&id).copied().unwrap_or_default()
    }

    fn accept(&mut self) {
        for (listener, http) in [(&self.http, true), (&self.tcp, false)] {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                stream.set_nodelay(true).unwrap();
                let state = if http { State::Http { answers: VecDeque::new() } } else { State::Echo { ended: false } };
                self.conns.push(Conn { stream, input: Vec::new(), state });
            }
        }
    }

    /// Reads what has come; how many requests have not been answered.
    pub fn asked(&mut self) -> usize {
        self.accept();
        let (seen, tolerant) = (&mut self.seen, self.tolerant);
        self.conns.retain_mut(|conn| step(conn, seen, true, 1 << 20, tolerant));
        let count = |conn: &Conn| match &conn.state {
            State::Http { answers } => answers.len(),
            State::Echo { .. } => 0,
        };
        self.conns.iter().map(count).sum()
    }

    /// One connection reads or writes a little.
    pub fn act(&mut self, rng: &mut Rng) {
        self.accept();
        if self.conns.is_empty() {
            return;
        }
        let at = rng.below(self.conns.len());
        if self.breaks && rng.once_in(6) && matches!(self.conns[at].state, State::Echo { .. }) {
            let conn = self.conns.swap_remove(at);
            return rustix::net::connect_unspec(&conn.stream).unwrap();
        }
        let most = if rng.once_in(3) { 1 + rng.below(200) } else { 64 * 1024 };
        let reads = rng.once_in(2);
        if !step(&mut self.conns[at], &mut self.seen, reads, most, self.tolerant) {
            self.conns.swap_remove(at);
        }
    }

    /// All connections read and write all they can.
    pub fn act_all(&mut self) {
        self.accept();
        let (seen, tolerant) = (&mut self.seen, self.tolerant);
        let mut act = |conn: &mut Conn, reads| step(conn, seen, reads, 1 << 20, tolerant);
        self.conns.retain_mut(|conn| act(conn, true) && act(conn, false));
    }

    /// Ends what nobody needs any more.
    pub fn close(&mut self) {
        self.accept();
        self.conns.clear();
    }
}

/// False when the connection is over.
fn step(conn: &mut Conn, seen: &mut HashMap<u64, Seen>, reads: bool, most: usize, tolerant: bool) -> bool {
    if reads {
        match read(&mut conn.stream, &mut conn.input, most) {
            Ok(_) => {}
            Err(None) => match &mut conn.state {
                State::Http { .. } => return false,
                State::Echo { ended } => *ended = true,
            },
            Err(Some(_)) => return false,
        }
        let understood = take_requests(conn, seen);
        assert!(understood.is_some() || tolerant, "{:?}", String::from_utf8_lossy(&conn.input));
        return understood.is_some();
    }
    match &mut conn.state {
        State::Http { answers } => {
            let Some((id, answer)) = answers.front_mut() else { return true };
            let Some(n) = write(&mut conn.stream, answer, most) else { return false };
            if n > 0 {
                seen.entry(*id).or_default().answered = true;
            }
            answer.drain(..n);
            if answer.is_empty() {
                answers.pop_front();
            }
        }
        State::Echo { ended } => {
            let Some(n) = write(&mut conn.stream, &conn.input, most) else { return false };
            conn.input.drain(..n);
            if *ended && conn.input.is_empty() {
                let _ = conn.stream.shutdown(Shutdown::Write);
                return false;
            }
        }
    }
    true
}

/// `None` when one makes no sense.
fn take_requests(conn: &mut Conn, seen: &mut HashMap<u64, Seen>) -> Option<()> {
    while let State::Http { answers } = &mut conn.state {
        let Some(head) = conn.input.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
            return Some(());
        };
        let text = String::from_utf8(conn.input[..head].to_vec()).ok()?;
        let field = |name: &str| {
            text.lines().find_map(|line| {
                let (field, value) = line.split_once(": ")?;
                field.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let length: usize = field("content-length").map_or(Some(0), |value| value.parse().ok())?;
        if conn.input.len() < head + length {
            return Some(());
        }
        // The target: /ID/SIZE/SOURCE
        let parts: Vec<&str> = text.split(' ').nth(1)?.split('/').collect();
        let [_, id, size, source] = parts[..] else { return None };
        let (id, size): (u64, u64) = (id.parse().ok()?, size.parse().ok()?);
        let body = &conn.input[head..head + length];
        if !(0..).zip(body).all(|(at, &b)| b == byte(id, at)) {
            return None;
        }
        // Whom the PROXY header said that it comes from.
        if !source.is_empty() && field("x-forwarded-for")? != source {
            return None;
        }
        seen.entry(id).or_default().runs += 1;
        if field("upgrade").is_some() {
            let agreement = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
            // Whoever is gone shows when it is read from.
            let _ = conn.stream.write_all(agreement);
            conn.input.drain(..head + length);
            seen.entry(id).or_default().answered = true;
            conn.state = State::Echo { ended: false };
            return Some(());
        }
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        answer.extend((0..size.min(1 << 20)).map(|at| byte(id, at)));
        answers.push_back((id, answer));
        conn.input.drain(..head + length);
    }
    Some(())
}
