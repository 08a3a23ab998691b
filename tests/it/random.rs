//! Random requests against random answers: every framing, split and size, pipelined or not, compared byte by byte.
//!
//! Everything follows from a seed, which a failure names. `POINTSMAN_ROUNDS` (connections, 300 unless it says
//! otherwise) and `POINTSMAN_SEED` make longer and other runs.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::backend::{Backend, Conn};
use crate::common::client::{Client, describe};
use crate::common::h1::{Framing, Request};
use crate::common::proxy::Launch;
use crate::common::{dawdle, pattern_bytes};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A body's length: mostly small, often at a buffer's or a pipe's edge.
    fn length(&mut self) -> usize {
        const EDGES: [usize; 9] =
            [0, 4096, 16 * 1024, 32 * 1024, 65_521, 64 * 1024, 128 * 1024, 256 * 1024, 512 * 1024];
        match self.below(10) {
            0..=4 => self.below(300),
            5..=7 => (self.pick(&EDGES) + self.below(5)).saturating_sub(2),
            8 => self.below(20_000),
            _ => self.below(700_000),
        }
    }

    /// A chunked body. With small chunks only where the body is small: what counts is where the edges lie.
    fn chunked(&mut self, body: &[u8], trailer: &str) -> Vec<u8> {
        let most =
            if body.len() < 2000 { self.pick(&[1, 7, 300]) } else { self.pick(&[5000, 65_536, 70_000, 300_000]) };
        let mut out = Vec::with_capacity(body.len() + 64);
        let mut rest = body;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(1 + self.below(most)));
            let size = match self.below(3) {
                0 => format!("{:x}", piece.len()),
                1 => format!("{:X}", piece.len()),
                _ => format!("000{:x}", piece.len()),
            };
            out.extend_from_slice(format!("{size}\r\n").as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
            rest = after;
        }
        out.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
        out
    }

    /// Sends `bytes` in random pieces; false when the peer is gone.
    fn send(&mut self, stream: &mut TcpStream, bytes: &[u8]) -> bool {
        // In few pieces of any size, or the first and last bytes one by one, where heads and terminators are.
        let style = self.below(4);
        let mut rest = bytes;
        while !rest.is_empty() {
            let near_edge = bytes.len() - rest.len() < 40 || rest.len() <= 12;
            let length = match style {
                0 => rest.len(),
                1 if near_edge => 1,
                1 => rest.len() - 12,
                2 => 1 + self.below(rest.len()),
                _ => 1 + self.below(rest.len().min(70_000)),
            };
            let (piece, after) = rest.split_at(length);
            if stream.write_all(piece).is_err() {
                return false;
            }
            rest = after;
            if self.chance(5) {
                dawdle(Duration::from_micros(300));
            }
        }
        true
    }
}

/// What the answer to a request is, as the seed in its target says.
struct Answer {
    status: u16,
    body: Vec<u8>,
    framing: Framing,
    trailer: bool,
    interim: usize,
    close: bool,
}

impl Answer {
    fn new(random: &mut Random, method: &str) -> Answer {
        let status = random.pick(&[200, 200, 200, 200, 200, 404, 500, 204, 304]);
        let empty = method == "HEAD" || status == 204 || status == 304;
        let length = random.length();
        let framing =
            random.pick(&[Framing::Length, Framing::Length, Framing::Chunked, Framing::Chunked, Framing::Close]);
        let framing = if empty { Framing::Empty } else { framing };
        Answer {
            status,
            body: if empty { Vec::new() } else { pattern_bytes(length) },
            framing,
            trailer: framing == Framing::Chunked && random.chance(30),
            interim: if random.chance(10) { 1 + random.below(3) } else { 0 },
            close: framing == Framing::Close || random.chance(10),
        }
    }

    fn bytes(&self, random: &mut Random) -> Vec<u8> {
        let mut out = Vec::new();
        for n in 0..self.interim {
            out.extend_from_slice(format!("HTTP/1.1 103 Early Hints\r\nLink: </{n}>\r\n\r\n").as_bytes());
        }
        let mut head = format!("HTTP/1.1 {} Whatever\r\nX-Sent: {}\r\n", self.status, self.body.len());
        if self.close {
            head += "Connection: close\r\n";
        }
        match self.framing {
            Framing::Length => head += &format!("Content-Length: {}\r\n", self.body.len()),
            Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
            Framing::Empty | Framing::Close => {}
        }
        out.extend_from_slice(format!("{head}\r\n").as_bytes());
        match self.framing {
            Framing::Chunked => {
                let trailer = if self.trailer { "X-Trailer: t\r\n" } else { "" };
                out.extend(random.chunked(&self.body, trailer));
            }
            Framing::Length | Framing::Close | Framing::Empty => out.extend_from_slice(&self.body),
        }
        out
    }
}

/// One request, as its seed says, and what must come back.
struct Planned {
    method: &'static str,
    bytes: Vec<u8>,
    answer: Answer,
    trailers: bool,
    old: bool,
    last: bool,
}

fn plan(random: &mut Random, number: u64, last: bool) -> Planned {
    let method = random.pick(&["GET", "GET", "GET", "POST", "POST", "PUT", "PUT", "HEAD", "DELETE"]);
    let old = last && random.chance(10);
    let seed = random.next();
    let framing = match method {
        "GET" | "HEAD" => {
            if random.chance(90) {
                0
            } else {
                1
            }
        }
        _ => random.below(3),
    };
    let framing = if old { framing.min(1) } else { framing };
    let body = if framing == 0 { Vec::new() } else { pattern_bytes(random.length()) };
    let trailers = !old && random.chance(30);
    let mut head = format!("{method} /{number}/{seed:x}/{} HTTP/1.{}\r\nHost: test\r\n", body.len(), u8::from(!old));
    if trailers {
        head += "TE: trailers\r\nConnection: TE\r\n";
    }
    if random.chance(10) {
        head += &format!("X-Long: {}\r\n", "y".repeat(random.below(12_000)));
    }
    let close = last && random.chance(30);
    if close {
        head += "Connection: close\r\n";
    }
    match framing {
        0 => {}
        1 => head += &format!("Content-Length: {}\r\n", body.len()),
        _ => head += "Transfer-Encoding: chunked\r\n",
    }
    let mut bytes = format!("{head}\r\n").into_bytes();
    match framing {
        2 => {
            let trailer = if random.chance(20) { "X-Trailer: dropped\r\n" } else { "" };
            bytes.extend(random.chunked(&body, trailer));
        }
        _ => bytes.extend_from_slice(&body),
    }
    let answer = Answer::new(&mut Random(seed), method);
    Planned { method, bytes, answer, trailers, old, last: close || old }
}

/// Checks the request and answers it, both as its target says; whether the connection goes on.
fn answer(conn: &mut Conn, request: &Request) -> bool {
    let mut parts = request.target.split('/').skip(2);
    let seed = u64::from_str_radix(parts.next().unwrap(), 16).unwrap();
    let length: usize = parts.next().unwrap().parse().unwrap();
    assert_eq!(request.body.len(), length, "{} {}", request.method, request.target);
    assert!(request.body == pattern_bytes(length), "{} {}: another body", request.method, request.target);
    assert!(request.trailers.0.is_empty(), "{:?}", request.trailers);
    let mut random = Random(seed);
    let answer = Answer::new(&mut random, &request.method);
    let bytes = answer.bytes(&mut random);
    random.send(&mut conn.wire.stream, &bytes) && !answer.close
}

fn connection(addr: &crate::common::proxy::Addr, seed: u64) {
    let mut random = Random(seed);
    let count = 1 + random.below(6);
    let plans: Vec<Planned> = (0..count).map(|n| plan(&mut random, n as u64, n + 1 == count)).collect();
    let mut client = if random.chance(10) { Client::connect_narrow(addr) } else { Client::connect(addr) };
    let pipelined = random.chance(50);
    let half_close = random.chance(30);
    let (next, go) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let mut stream = client.wire.stream.try_clone().unwrap();
        let plans = &plans;
        scope.spawn(move || {
            let mut random = Random(!seed);
            if pipelined && random.chance(50) {
                // As one stream of bytes, so that pieces lie across the requests' edges.
                let all: Vec<u8> = plans.iter().flat_map(|plan| plan.bytes.clone()).collect();
                random.send(&mut stream, &all);
            } else {
                for plan in plans {
                    if !random.send(&mut stream, &plan.bytes) {
                        return;
                    }
                    if !pipelined && go.recv().is_err() {
                        return;
                    }
                }
            }
            if half_close {
                let _ = stream.shutdown(Shutdown::Write);
            }
        });
        for (n, plan) in plans.iter().enumerate() {
            let at = || {
                format!(
                    "seed {seed}, request {n} of {count}: {:?}",
                    String::from_utf8_lossy(&plan.bytes[..plan.bytes.len().min(80)])
                )
            };
            let response = match client.wire.response(plan.method) {
                Ok(response) => response,
                Err(broken) => {
                    let _ = client.wire.stream.shutdown(Shutdown::Both);
                    panic!("{}: {}", at(), describe(&broken));
                }
            };
            assert_eq!(response.status, plan.answer.status, "{}: {response:?}", at());
            assert_eq!(response.body.len(), plan.answer.body.len(), "{}", at());
            assert!(response.body == plan.answer.body, "{}: another body", at());
            assert_eq!(response.interim.len(), if plan.old { 0 } else { plan.answer.interim }, "{}", at());
            let trailers = usize::from(plan.trailers && plan.answer.trailer);
            assert_eq!(response.trailers.0.len(), trailers, "{}: {:?}", at(), response.trailers);
            assert_eq!(response.closes(), plan.last, "{}: {:?}", at(), response.fields);
            let _ = next.send(());
        }
        if plans.last().unwrap().last || half_close {
            client.end();
        } else {
            let _ = client.wire.stream.shutdown(Shutdown::Both);
        }
        drop(next);
    });
}

#[test]
fn random_exchanges_arrive_byte_by_byte() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (rounds, first) = (number("POINTSMAN_ROUNDS", 300), number("POINTSMAN_SEED", 1));
    let backend = Backend::serve(|conn| {
        while let Some(request) = conn.request() {
            conn.forget_requests();
            if !answer(conn, &request) {
                return;
            }
        }
    });
    let proxy = Launch::http(&[backend.addr]).start();
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + rounds {
                        return;
                    }
                    connection(proxy.addr(), seed);
                }
            });
        }
    });
}
