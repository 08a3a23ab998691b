//! A name server of the tests' own, over UDP and TCP, that lies, truncates and stalls when it is told to.
//!
//! It has a codec of its own, so that a fault in the proxy's is not in both.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::wait_for;

/// How it behaves over UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manner {
    /// As it should.
    #[default]
    Honest,
    /// It says nothing.
    Silent,
    /// Before the right answer come others: with another number, to another question, from another port, and
    /// garbage. Each of them names [`LIE`].
    Lying,
    /// Answers are cut off: the rest is to be had over TCP.
    Truncating,
    /// It cannot answer (SERVFAIL).
    Failing,
}

/// The address that lies name; nothing is at it.
pub const LIE: Ipv4Addr = Ipv4Addr::new(127, 66, 66, 66);

#[derive(Debug, Default)]
struct State {
    /// By name; each record as text, such as `A 1 127.0.0.1`, `CNAME 1 b.test`, `SRV 1 0 5 8080 b.test`.
    zone: HashMap<String, Vec<String>>,
    manner: Manner,
    /// What was asked: name, type, and how.
    asked: Vec<String>,
}

/// A running name server.
#[derive(Debug)]
pub struct NameServer {
    pub addr: SocketAddr,
    state: Arc<Mutex<State>>,
    stopping: Arc<AtomicBool>,
}

impl NameServer {
    pub fn start() -> NameServer {
        let (udp, tcp) = wait_for("a port is free for UDP and TCP", || {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            Some((UdpSocket::bind(tcp.local_addr().unwrap()).ok()?, tcp))
        });
        let addr = udp.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stopping = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (shared, stop) = (Arc::clone(&state), Arc::clone(&stopping));
        thread::spawn(move || serve_udp(&udp, &shared, &stop));
        let (shared, stop) = (Arc::clone(&state), Arc::clone(&stopping));
        thread::spawn(move || serve_tcp(&tcp, &shared, &stop));
        NameServer { addr, state, stopping }
    }

    /// What `name` has from now on; without records it is there all the same.
    pub fn set(&self, name: &str, records: &[&str]) {
        let records = records.iter().map(|&record| record.to_owned()).collect();
        self.state.lock().unwrap().zone.insert(name.to_owned(), records);
    }

    /// `name` is not there any more.
    pub fn remove(&self, name: &str) {
        self.state.lock().unwrap().zone.remove(name);
    }

    pub fn behave(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    /// What was asked so far, such as `app.test A udp`.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Waits until it is asked so once more.
    #[track_caller]
    pub fn wait_for_question(&self, question: &str) {
        let count = || self.asked().iter().filter(|asked| *asked == question).count();
        let before = count();
        wait_for(&format!("{question} is asked"), || (count() > before).then_some(()));
    }

    /// `[dns]` of a configuration that asks these name servers and nobody else.
    pub fn table(servers: &[SocketAddr]) -> String {
        let servers: Vec<String> = servers.iter().map(|server| format!("\"{server}\"")).collect();
        let rest = "resolv_conf = \"off\"\nhosts = \"off\"\ntimeout = \"300ms\"\nattempts = 2";
        format!("[dns]\nservers = [{}]\n{rest}\n", servers.join(", "))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        drop(std::net::TcpStream::connect(self.addr));
    }
}

fn serve_udp(socket: &UdpSocket, state: &Mutex<State>, stopping: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stopping.load(Ordering::SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(question) = Question::parse(&buffer[..length]) else { continue };
        let mut state = state.lock().unwrap();
        state.asked.push(format!("{} {} udp", question.name, question.kind_name()));
        let right = question.answer(&state.zone);
        let send = |bytes: &[u8]| drop(socket.send_to(bytes, from));
        match state.manner {
            Manner::Honest => send(&right),
            Manner::Silent => {}
            Manner::Failing => send(&question.message(2, false, &[])),
            Manner::Truncating => send(&question.message(0, true, &[])),
            Manner::Lying => {
                let lie = question.message(0, false, &[(question.raw.clone(), format!("A 3600 {LIE}"))]);
                let mut other_id = lie.clone();
                other_id[1] ^= 0x55;
                send(&other_id);
                let mut other_name = lie.clone();
                other_name[13] ^= 1;
                send(&other_name);
                send(&lie[..lie.len() - 5]);
                send(b"\0\0");
                let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                drop(other.send_to(&lie, from));
                send(&right);
            }
        }
    }
}

fn serve_tcp(listener: &TcpListener, state: &Mutex<State>, stopping: &AtomicBool) {
    for stream in listener.incoming() {
        if stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(mut stream) = stream else { continue };
        let mut length = [0; 2];
        if stream.set_read_timeout(Some(Duration::from_secs(5))).is_err() || stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut message).is_err() {
            continue;
        }
        let Some(question) = Question::parse(&message) else { continue };
        let mut state = state.lock().unwrap();
        state.asked.push(format!("{} {} tcp", question.name, question.kind_name()));
        let answer = question.answer(&state.zone);
        let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
        // In pieces, as a stream may come.
        for piece in [&length[..1], &length[1..], &answer[..5], &answer[5..]] {
            drop(stream.write_all(piece).and_then(|()| stream.flush()));
        }
    }
}

#[derive(Debug)]
struct Question {
    id: [u8; 2],
    name: String,
    raw: Vec<u8>,
    kind: u16,
}

impl Question {
    fn parse(message: &[u8]) -> Option<Question> {
        let id = message.get(..2)?.try_into().ok()?;
        let (mut at, mut labels) = (12, Vec::new());
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8(message.get(at..at + length)?.to_vec()).ok()?);
            at += length;
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        Some(Question { id, name: labels.join(".").to_lowercase(), raw: message.get(12..at)?.to_vec(), kind })
    }

    fn kind_name(&self) -> &'static str {
        match self.kind {
            1 => "A",
            28 => "AAAA",
            33 => "SRV",
            _ => "?",
        }
    }

    /// The right answer, aliases followed as far as the zone goes.
    fn answer(&self, zone: &HashMap<String, Vec<String>>) -> Vec<u8> {
        let (mut name, mut answers) = (self.name.clone(), Vec::new());
        let mut known = true;
        // A circle is gone round a few times, as careless servers do.
        for _ in 0..4 {
            let Some(records) = zone.get(&name) else {
                known = false;
                break;
            };
            let owner = encode(&name);
            let fits = |record: &&String| record.starts_with(&format!("{} ", self.kind_name()));
            answers.extend(records.iter().filter(fits).map(|record| (owner.clone(), record.clone())));
            let Some(alias) = records.iter().find(|record| record.starts_with("CNAME ")) else { break };
            answers.push((owner, alias.clone()));
            name = alias.split(' ').nth(2).unwrap().to_owned();
        }
        self.message(if known { 0 } else { 3 }, false, &answers)
    }

    fn message(&self, rcode: u8, truncated: bool, answers: &[(Vec<u8>, String)]) -> Vec<u8> {
        let count = u16::try_from(answers.len()).unwrap().to_be_bytes();
        // Only when there is nothing: then for how long.
        let soa = answers.is_empty() && !truncated && matches!(rcode, 0 | 3);
        let flags = 0x81 | if truncated { 2 } else { 0 };
        let mut out =
            vec![self.id[0], self.id[1], flags, 0x80 | rcode, 0, 1, count[0], count[1], 0, u8::from(soa), 0, 0];
        out.extend_from_slice(&self.raw);
        out.extend_from_slice(&[self.kind.to_be_bytes(), 1u16.to_be_bytes()].concat());
        for (owner, record) in answers {
            let mut words = record.split(' ');
            let (kind, ttl) = (words.next().unwrap(), words.next().unwrap().parse::<u32>().unwrap());
            let words: Vec<&str> = words.collect();
            let number = |text: &str| text.parse::<u16>().unwrap().to_be_bytes().to_vec();
            let (kind, data) = match kind {
                "A" | "AAAA" => match words[0].parse::<IpAddr>().unwrap() {
                    IpAddr::V4(ip) => (1u16, ip.octets().to_vec()),
                    IpAddr::V6(ip) => (28, ip.octets().to_vec()),
                },
                "CNAME" => (5, encode(words[0])),
                "SRV" => (33, [number(words[0]), number(words[1]), number(words[2]), encode(words[3])].concat()),
                other => panic!("{other}"),
            };
            push(&mut out, owner, kind, ttl, &data);
        }
        if soa {
            let names = [encode("ns.test"), encode("root.test")].concat();
            push(&mut out, &encode("test"), 6, 1, &[names, [0, 0, 0, 1].repeat(5)].concat());
        }
        out
    }
}

fn push(out: &mut Vec<u8>, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) {
    out.extend_from_slice(owner);
    out.extend_from_slice(&[kind.to_be_bytes(), 1u16.to_be_bytes()].concat());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
    out.extend_from_slice(data);
}

fn encode(name: &str) -> Vec<u8> {
    let label = |label: &str| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat();
    let mut out: Vec<u8> = name.split('.').filter(|label| !label.is_empty()).flat_map(label).collect();
    out.push(0);
    out
}
