//! The clients of the model's proxy. They do one small thing at a time, when the schedule says so, and know every byte
//! that must come, and how their connection may end.

use std::collections::{HashSet, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::deliveries::Delivery;
use super::rng::Rng;
use super::servers::{Servers, byte, read, write};

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Requests, one after the other or several at once.
    Http,
    /// The same behind a PROXY header.
    Header,
    /// A stream, that comes back.
    Relay,
    /// The same after an upgrade.
    Tunnel,
    /// The same over a connection of its own, and a line in the end that says so.
    Delivery,
}

/// One request not yet answered in full.
#[derive(Debug)]
struct Request {
    id: u64,
    size: u64,
    safe: bool,
    /// Workers that have died while they had it.
    deaths: u32,
    /// Where in all that the client sends it begins.
    begin: u64,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    pub kind: Kind,
    pub port: u16,
    /// How it came about that its connection may end at any time.
    pub excused: Option<&'static str>,
    /// Anything may come to it.
    pub tolerant: bool,
    /// Places are few: idle connections may be ended for others.
    pub gives_way: bool,
    stream: Option<TcpStream>,
    unsent: Vec<u8>,
    /// How much of all that it sends before a stream has been sent.
    told: u64,
    input: Vec<u8>,
    requests: VecDeque<Request>,
    /// It has asked for the connection to end with the last request so far.
    leaving: bool,
    /// An answer said that the connection ends.
    closing: bool,
    /// Where a stream has come to: the number its bytes belong to, and how many have been sent and come back.
    stream_id: u64,
    sent: u64,
    back: u64,
    length: u64,
    ended: bool,
    /// The stream has begun: not before the 101.
    streams: bool,
    /// The source in its PROXY header.
    source: String,
    /// Where the answer comes, and the line that must come in the end.
    delivery: Option<(Delivery, String)>,
    /// Servers break connections: then it must be told so, and not take a part of an answer for all.
    pub breaks: bool,
}

/// Numbers that no two requests share, and ports that no two clients of one run share: by them they are known.
#[derive(Debug, Default)]
pub struct Numbers {
    last: u64,
    ports: HashSet<u16>,
}

impl Numbers {
    /// Connects from a port of its own. Left to itself the kernel gives one port to two that connect to different ones.
    fn connect(&mut self, addr: SocketAddr) -> TcpStream {
        let flags = SocketFlags::CLOEXEC;
        loop {
            let fd = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
            rustix::net::bind(&fd, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            let local = SocketAddr::try_from(rustix::net::getsockname(&fd).unwrap()).unwrap();
            if self.ports.insert(local.port()) {
                rustix::net::connect(&fd, &addr).unwrap();
                return TcpStream::from(fd);
            }
        }
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl Client {
    /// Connects; nothing has been sent.
    pub fn connect(kind: Kind, addr: SocketAddr, target: SocketAddr, numbers: &mut Numbers, rng: &mut Rng) -> Client {
        let stream = numbers.connect(addr);
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        let port = stream.local_addr().unwrap().port();
        let mut client = Client {
            kind,
            port,
            excused: None,
            tolerant: false,
            gives_way: false,
            stream: Some(stream),
            unsent: Vec::new(),
            told: 0,
            input: Vec::new(),
            requests: VecDeque::new(),
            leaving: false,
            closing: false,
            stream_id: numbers.next(),
            sent: 0,
            back: 0,
            length: if rng.once_in(3) { 300_000 } else { 3000 },
            ended: false,
            streams: kind == Kind::Relay,
            source: String::new(),
            delivery: None,
            breaks: false,
        };
        if kind == Kind::Delivery {
            let delivery = Delivery::new();
            client.unsent = delivery.line(target).into_bytes();
            let (id, length) = (client.stream_id, client.length);
            let wanted = format!("{{\"ok\":true,\"address\":\"{target}\",\"sent\":{length},\"delivered\":{length}}}\n");
            client.delivery = Some((delivery, wanted));
            client.requests.push_back(Request { id, size: 0, safe: true, deaths: 0, begin: 0 });
            client.streams = true;
            // Some of what it has to say comes along with the line.
            client.sent = if rng.once_in(2) { u64::try_from(rng.below(3000)).unwrap() } else { 0 };
            client.unsent.extend((0..client.sent).map(|at| byte(id, at)));
        }
        if kind == Kind::Header {
            client.source = format!("192.0.2.{}", 1 + rng.below(250));
            client.unsent = format!("PROXY TCP4 {} 192.0.2.254 7 80\r\n", client.source).into_bytes();
        }
        if kind == Kind::Tunnel {
            let id = client.stream_id;
            client.unsent = format!("GET /{id}/0/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
                .into_bytes();
            client.requests.push_back(Request { id, size: 0, safe: true, deaths: 0, begin: 0 });
        }
        client
    }

    /// Whether its connection has come to its end, rightly.
    pub fn is_over(&self) -> bool {
        let told = |wanted: &str| !self.breaks || self.input == wanted.as_bytes();
        let delivered = |(delivery, wanted): &(Delivery, String)| {
            if told(wanted) { delivery.is_whole() } else { delivery.is_over() }
        };
        self.stream.is_none()
            && (self.excused.is_some() || self.tolerant || self.delivery.as_ref().is_none_or(delivered))
    }

    /// A worker died that had it.
    pub fn on_death(&mut self) {
        self.requests.iter_mut().for_each(|request| request.deaths += 1);
    }

    /// It may end now without a reason that it would know of.
    pub fn excuse(&mut self, why: &'static str) {
        self.excused.get_or_insert(why);
    }

    fn begin_request(&mut self, numbers: &mut Numbers, rng: &mut Rng) {
        let (id, safe) = (numbers.next(), !rng.once_in(3));
        let size = match rng.below(8) {
            0 => 300_000,
            1 | 2 => 0,
            _ => rng.below(4000),
        };
        let target = format!("/{id}/{size}/{}", self.source);
        let begin = self.told + self.unsent.len() as u64;
        self.leaving = rng.once_in(6);
        let last = if self.leaving { "Connection: close\r\n" } else { "" };
        if safe {
            self.unsent.extend(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{last}\r\n").bytes());
        } else {
            let length = if rng.once_in(4) { 60_000 } else { rng.below(2000) };
            let length = u64::try_from(length).unwrap();
            self.unsent
                .extend(format!("POST {target} HTTP/1.1\r\nHost: a\r\n{last}Content-Length: {length}\r\n\r\n").bytes());
            self.unsent.extend((0..length).map(|at| byte(id, at)));
        }
        self.requests.push_back(Request { id, size: u64::try_from(size).unwrap(), safe, deaths: 0, begin });
    }

    /// Sends a small request, or the first half of it.
    pub fn ask(&mut self, numbers: &mut Numbers, whole: bool) {
        let id = numbers.next();
        let begin = self.told + self.unsent.len() as u64;
        let request = format!("GET /{id}/10/{} HTTP/1.1\r\nHost: a\r\n\r\n", self.source);
        self.unsent.extend(request.bytes());
        self.requests.push_back(Request { id, size: 10, safe: true, deaths: 0, begin });
        self.send(if whole { self.unsent.len() } else { request.len() / 2 });
    }

    /// Sends or reads a little.
    pub fn act(&mut self, servers: &Servers, numbers: &mut Numbers, rng: &mut Rng) {
        let most = if rng.once_in(3) { 1 + rng.below(100) } else { 64 * 1024 };
        if rng.once_in(2) {
            return self.receive(servers, most);
        }
        match self.kind {
            Kind::Http | Kind::Header
                if self.requests.len() < 3 && !self.leaving && !self.closing && rng.once_in(2) =>
            {
                self.begin_request(numbers, rng);
            }
            Kind::Http | Kind::Header | Kind::Relay | Kind::Tunnel | Kind::Delivery => {}
        }
        if self.streams && !self.ended && self.sent == self.length && rng.once_in(4) {
            self.end_stream();
        }
        self.send(most);
    }

    /// Goes away, in the middle of whatever it is about.
    pub fn abandon(&mut self) {
        self.stream = None;
        self.delivery = None;
    }

    /// Does all that is left to do, and begins nothing.
    pub fn finish(&mut self, servers: &Servers) {
        self.send(1 << 20);
        if self.streams && self.sent == self.length && !self.ended {
            self.end_stream();
        }
        self.receive(servers, 1 << 20);
        let idle = matches!(self.kind, Kind::Http | Kind::Header) && self.requests.is_empty();
        if idle {
            self.stream = None;
        }
    }

    fn end_stream(&mut self) {
        self.ended = true;
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    fn send(&mut self, most: usize) {
        let Some(stream) = &mut self.stream else { return };
        // What is sent on a connection that has been closed was not there when it was closed.
        if self.gives_way && ipc::tcp_info::counters(&*stream).map_or(true, |counters| counters.peer_closed) {
            return;
        }
        if !self.unsent.is_empty() {
            // A connection that is over shows when it is read from.
            let n = write(stream, &self.unsent, most).unwrap_or(0);
            self.unsent.drain(..n);
            self.told += n as u64;
        } else if self.streams && self.sent < self.length {
            let end = self.length.min(self.sent + u64::try_from(most).unwrap());
            let bytes: Vec<u8> = (self.sent..end).map(|at| byte(self.stream_id, at)).collect();
            self.sent += write(stream, &bytes, most).unwrap_or(0) as u64;
        }
    }

    fn receive(&mut self, servers: &Servers, most: usize) {
        if let Some((delivery, _)) = &mut self.delivery {
            let begun = delivery.has_begun();
            let excused = self.excused.is_some() || self.tolerant || self.breaks;
            delivery.receive((self.stream_id, self.length), self.sent, most, excused);
            if delivery.has_begun() && !begun {
                // From here on it goes on, however many workers die.
                self.requests.clear();
            }
        }
        let Some(stream) = &mut self.stream else { return };
        let ended = match read(stream, &mut self.input, most) {
            Ok(_) => None,
            Err(None) => Some("ended"),
            Err(Some(_)) => Some("was reset"),
        };
        if self.tolerant {
            self.input.clear();
            if ended.is_some() {
                self.stream = None;
            }
            return;
        }
        while !self.streams && self.take_answer(servers) {}
        if let Some((_, wanted)) = &self.delivery {
            let so_far = String::from_utf8_lossy(&self.input);
            let failed = |line: &str| line.starts_with(so_far.as_ref()) || so_far.starts_with(line);
            let failed = self.breaks && failed("{\"ok\":false,");
            assert!(failed || wanted.starts_with(so_far.as_ref()), "{so_far:?}: {}", self.describe());
        } else if self.streams {
            for &b in &self.input {
                assert_eq!(b, byte(self.stream_id, self.back), "byte {} of {self:?}", self.back);
                self.back += 1;
            }
            self.input.clear();
            assert!(self.back <= self.sent, "more has come back than was sent");
        }
        if let Some(how) = ended {
            self.judge_end(how, servers);
            self.stream = None;
        }
    }

    /// Takes one whole answer; false when there is none.
    fn take_answer(&mut self, servers: &Servers) -> bool {
        let Some(head) = self.input.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
            return false;
        };
        let text = String::from_utf8(self.input[..head].to_vec()).unwrap();
        let status: u16 = text.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 101 {
            assert_eq!(self.kind, Kind::Tunnel, "{self:?}");
            self.input.drain(..head);
            self.requests.clear();
            self.streams = true;
            return false;
        }
        let length =
            text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let length: usize = length.unwrap();
        if self.input.len() < head + length {
            return false;
        }
        let body: Vec<u8> = self.input.drain(..head + length).skip(head).collect();
        self.closing |= text.to_ascii_lowercase().contains("connection: close");
        let Some(request) = self.requests.pop_front() else { panic!("an answer to nothing: {text}") };
        let seen = servers.seen(request.id);
        match status {
            200 => {
                let right = (0..).zip(&body).all(|(at, &b)| b == byte(request.id, at));
                assert!(right && body.len() as u64 == request.size, "{request:?}: a wrong body");
                assert!(seen.runs >= 1 && (request.safe || seen.runs == 1), "{request:?}: {seen:?}");
            }
            502 => {
                let most = if request.safe { 2 } else { 1 };
                let may = request.deaths >= most || self.excused.is_some() && request.deaths >= 1;
                assert!(may, "{request:?}: 502 without a reason, {seen:?}");
                assert!(request.safe || seen.runs <= 1, "{request:?}: {seen:?}");
                self.closing = true;
            }
            _ => panic!("{request:?}: {text}"),
        }
        true
    }

    /// Its connection is over: panics unless that is right.
    fn judge_end(&mut self, how: &str, servers: &Servers) {
        for request in &self.requests {
            assert!(request.safe || servers.seen(request.id).runs <= 1, "{request:?} was run more than once");
        }
        if self.excused.is_some() || self.closing {
            return;
        }
        if let Some((_, wanted)) = &self.delivery {
            let told = self.input == wanted.as_bytes() && how == "ended";
            // Nothing of it had begun.
            let may = |request: &Request| request.deaths >= 2 || self.gives_way && self.told == 0;
            let may = self.input.is_empty() && self.requests.front().is_some_and(may);
            assert!(told || may || self.breaks, "an exchange {how} after {:?}: {}", self.input, self.describe());
            if !told && !self.breaks {
                self.delivery = None;
            }
            return;
        }
        if self.streams {
            assert_eq!((self.back, how), (self.length, "ended"), "a stream {how}: {}", self.describe());
            return;
        }
        if self.gives_way && self.requests.front().is_none_or(|request| request.begin >= self.told) {
            return;
        }
        let Some(request) = self.requests.front() else {
            panic!("an idle connection {how}: {}", self.describe());
        };
        let may = request.deaths >= 2 || request.deaths == 1 && servers.seen(request.id).answered;
        assert!(may, "{request:?}, {:?}: the connection {how}", servers.seen(request.id));
        // What is written along with the end is there, or the request is run again. Only the head of a long answer may
        // wait for what follows it.
        let unseen = self.leaving && self.requests.len() == 1 && self.input.is_empty() && request.size < 64 * 1024;
        assert!(!unseen || request.deaths >= 2, "{request:?}: nothing came of its answer, the connection {how}");
    }

    /// In short.
    pub fn describe(&self) -> String {
        format!(
            "{:?} from port {}: requests {:?}, {} unsent, {} of {} sent, {} back, {:?}",
            self.kind,
            self.port,
            self.requests,
            self.unsent.len(),
            self.sent,
            self.length,
            self.back,
            self.excused
        )
    }
}
