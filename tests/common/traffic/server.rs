//! The server behind all traffic: does what the request's target says, and counts how often.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{data, stream};
use crate::common::backend::{Backend, Conn, response_with};
use crate::common::dawdle;
use crate::common::rng::Rng;

/// Numbers given out, and what became of them at the server.
#[derive(Debug, Default)]
pub struct Ledger {
    next: AtomicU64,
    executions: Mutex<HashMap<u64, usize>>,
    streams: Mutex<HashMap<u64, Result<(), String>>>,
}

impl Ledger {
    /// A number that nobody else has.
    pub fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    /// How often the server has run this request.
    pub fn executions(&self, id: u64) -> usize {
        self.executions.lock().unwrap().get(&id).copied().unwrap_or(0)
    }

    /// The most often that any request was run.
    pub fn most_executions(&self) -> usize {
        self.executions.lock().unwrap().values().copied().max().unwrap_or(0)
    }

    /// What the server saw of a stream, once that has ended.
    pub fn stream(&self, id: u64) -> Option<Result<(), String>> {
        self.streams.lock().unwrap().get(&id).cloned()
    }

    pub fn stream_ended(&self, id: u64, result: Result<(), String>) {
        let former = self.streams.lock().unwrap().insert(id, result);
        if former.is_some() {
            self.streams.lock().unwrap().insert(id, Err("it reached the server twice".to_owned()));
        }
    }

    /// Forgets what is settled, for runs with more numbers than memory.
    pub fn forget(&self, id: u64) {
        self.executions.lock().unwrap().remove(&id);
        self.streams.lock().unwrap().remove(&id);
    }
}

/// What a target asks for.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    pub kind: What,
    pub id: u64,
    /// Before the answer.
    pub delay: Duration,
    /// Of the answer's body.
    pub size: usize,
}

/// How the answer is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// In one write.
    Small,
    /// Piece by piece, with its length.
    Length,
    /// Piece by piece, chunked.
    Chunked,
    /// Piece by piece, until the connection is closed.
    UntilClose,
    /// A switch to the protocol of [`stream`].
    Stream,
}

const NAMES: [(What, &str); 5] = [
    (What::Small, "small"),
    (What::Length, "length"),
    (What::Chunked, "chunked"),
    (What::UntilClose, "close"),
    (What::Stream, "stream"),
];

impl Order {
    pub fn target(&self) -> String {
        let name = NAMES.iter().find(|(what, _)| *what == self.kind).unwrap().1;
        format!("/{name}/{}/{}/{}", self.id, self.delay.as_micros(), self.size)
    }

    fn of(target: &str) -> Order {
        let parts: Vec<&str> = target.split('/').collect();
        let number = |at: usize| parts[at].parse::<u64>().unwrap();
        Order {
            kind: NAMES.iter().find(|(_, name)| *name == parts[1]).unwrap().0,
            id: number(2),
            delay: Duration::from_micros(number(3)),
            size: number(4) as usize,
        }
    }
}

/// Serves all HTTP kinds.
pub fn http(ledger: &Arc<Ledger>) -> Backend {
    let ledger = Arc::clone(ledger);
    Backend::serve(move |conn| {
        while let Some(request) = conn.request() {
            conn.forget_requests();
            let order = Order::of(&request.target);
            if !request.method.starts_with("GET") {
                *ledger.executions.lock().unwrap().entry(order.id).or_default() += 1;
                assert_eq!(request.body, data(order.id, request.body.len()), "a request's body is not what was sent");
            }
            dawdle(order.delay);
            match order.kind {
                What::Small => conn.send(&response_with("", &data(order.id, order.size))),
                What::Stream => {
                    conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: soak\r\n\r\n");
                    return stream::serve(&mut conn.wire, &ledger);
                }
                What::Length | What::Chunked | What::UntilClose => {
                    if !drip(conn, &order) || order.kind == What::UntilClose {
                        return;
                    }
                }
            }
            if request.fields.lists("connection", "close") {
                return;
            }
        }
    })
}

/// Serves streams.
pub fn tcp(ledger: &Arc<Ledger>) -> Backend {
    let ledger = Arc::clone(ledger);
    Backend::serve(move |conn| stream::serve(&mut conn.wire, &ledger))
}

/// Sends the answer piece by piece, or sometimes at once; false when the proxy does not take it.
fn drip(conn: &mut Conn, order: &Order) -> bool {
    let mut rng = Rng::new(order.id);
    let framing = match order.kind {
        What::Length => format!("Content-Length: {}\r\n", order.size),
        What::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        What::UntilClose => "Connection: close\r\n".to_owned(),
        What::Small | What::Stream => return true,
    };
    let mut out = format!("HTTP/1.1 200 OK\r\n{framing}\r\n").into_bytes();
    let body = data(order.id, order.size);
    let mut rest = &body[..];
    let at_once = rng.once_in(3);
    loop {
        let most = if rng.once_in(2) { 1 << 10 } else { 40 << 10 };
        let length = if at_once { rest.len() } else { (1 + rng.below(most) as usize).min(rest.len()) };
        let (piece, after) = rest.split_at(length);
        rest = after;
        if order.kind == What::Chunked && length > 0 {
            out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        } else {
            out.extend_from_slice(piece);
        }
        if rest.is_empty() && order.kind == What::Chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        if conn.wire.send(&out).is_err() {
            return false;
        }
        out.clear();
        if rest.is_empty() {
            return true;
        }
        if rng.once_in(3) {
            dawdle(rng.pause(1500));
        }
    }
}
