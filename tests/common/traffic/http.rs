//! HTTP clients, by what a worker's death may cost them.

use std::sync::Arc;

use super::server::{Ledger, Order, What};
use super::{Outcome, Peer, Seen, data, is_data};
use crate::common::client::{Client, describe};
use crate::common::dawdle;
use crate::common::h1::{Broken, Response};
use crate::common::proxy::Addr;
use crate::common::rng::Rng;

fn get(order: &Order) -> String {
    format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", order.target())
}

/// A small request, answered after up to `delay_us`.
fn small(ledger: &Ledger, rng: &mut Rng, delay_us: u64) -> Order {
    Order { kind: What::Small, id: ledger.id(), delay: rng.pause(delay_us), size: rng.below(3000) as usize }
}

/// Checks the answer to a safe request: whole and right, or 502.
fn judge(order: &Order, answer: Result<Response, Broken>) -> Outcome {
    match answer {
        Ok(response) if response.status == 200 && response.body == data(order.id, order.size) => Ok(Seen::Whole),
        Ok(response) if response.status == 502 => Ok(Seen::BadGateway),
        Ok(Response { status, fields, body, .. }) => {
            Err(format!("{}: status {status}, {fields:?}, {} bytes, not those expected", order.target(), body.len()))
        }
        Err(broken) => Err(format!("{}: {}", order.target(), describe(&broken))),
    }
}

/// A new connection for each request: what waits in the kernel's queue, or was passed and is not taken up.
#[derive(Debug)]
pub struct Fresh {
    pub addr: Addr,
    pub ledger: Arc<Ledger>,
}

impl Peer for Fresh {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let mut client = Client::connect(&self.addr);
        if rng.once_in(2) {
            dawdle(rng.pause(4000));
        }
        let order = small(&self.ledger, rng, 100);
        // Its last request, too, and whether it says so or not.
        let last = if rng.once_in(2) { "Connection: close\r\n" } else { "" };
        client.send(format!("GET {} HTTP/1.1\r\nHost: a\r\n{last}\r\n", order.target()));
        judge(&order, client.try_response())
    }
}

/// Several connections, all of them idle but for the one whose turn it is. None may ever have to be opened again.
#[derive(Debug)]
pub struct KeepAlive {
    clients: Vec<Client>,
    ledger: Arc<Ledger>,
    turns: usize,
}

impl KeepAlive {
    pub fn new(addr: &Addr, ledger: &Arc<Ledger>, clients: usize) -> KeepAlive {
        let clients = (0..clients).map(|_| Client::connect(addr)).collect();
        KeepAlive { clients, ledger: Arc::clone(ledger), turns: 0 }
    }
}

impl Peer for KeepAlive {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        self.turns += 1;
        let count = self.clients.len();
        let client = &mut self.clients[self.turns % count];
        let order = small(&self.ledger, rng, 100);
        let request = get(&order);
        if rng.once_in(2) {
            dawdle(rng.pause(2000));
        }
        // Sometimes the head comes in two parts.
        let (first, rest) = request.split_at(if rng.once_in(4) { rng.below(request.len() as u64) as usize } else { 0 });
        client.send(first);
        if !first.is_empty() {
            dawdle(rng.pause(3000));
        }
        client.send(rest);
        judge(&order, client.try_response())
    }
}

/// One connection with one request after the other, each of which the server takes its time for.
#[derive(Debug)]
pub struct Safe {
    pub client: Client,
    pub ledger: Arc<Ledger>,
}

impl Peer for Safe {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let order = small(&self.ledger, rng, 15_000);
        self.client.send(get(&order));
        judge(&order, self.client.try_response())
    }
}

/// Several requests at once.
#[derive(Debug)]
pub struct Pipelined {
    pub client: Client,
    pub ledger: Arc<Ledger>,
}

impl Peer for Pipelined {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let orders: Vec<Order> = (0..2 + rng.below(8)).map(|_| small(&self.ledger, rng, 4000)).collect();
        let requests: String = orders.iter().map(get).collect();
        self.client.send(requests);
        for (at, order) in orders.iter().enumerate() {
            let seen = judge(order, self.client.try_response())
                .map_err(|error| format!("{} of {} pipelined, {error}", at + 1, orders.len()))?;
            if seen != Seen::Whole {
                return Ok(seen);
            }
        }
        Ok(Seen::Whole)
    }
}

/// Requests that must never be run twice.
#[derive(Debug)]
pub struct Unsafe {
    pub addr: Addr,
    pub client: Option<Client>,
    pub ledger: Arc<Ledger>,
}

impl Peer for Unsafe {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let mut client = self.client.take().unwrap_or_else(|| Client::connect(&self.addr));
        let order = small(&self.ledger, rng, 8000);
        let length = match rng.below(4) {
            0 => rng.below(200_000),
            _ => rng.below(2000),
        };
        let body = data(order.id, length as usize);
        let head = format!("POST {} HTTP/1.1\r\nHost: a\r\n", order.target());
        let request = if rng.once_in(2) {
            [format!("{head}Content-Length: {length}\r\n\r\n").as_bytes(), &body].concat()
        } else if body.is_empty() {
            format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n").into_bytes()
        } else {
            let before = format!("{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
            [before.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()
        };
        let (first, rest) = request.split_at(if rng.once_in(3) { rng.below(request.len() as u64) as usize } else { 0 });
        client.send(first);
        if !first.is_empty() {
            dawdle(rng.pause(2000));
        }
        client.send(rest);
        let answer = client.wire.response("POST");
        let closes = answer.as_ref().map_or(true, Response::closes);
        let seen = match &answer {
            Err(Broken::Cut(part) | Broken::Reset(part)) if !part.is_empty() => Ok(Seen::Truncated),
            Ok(_) | Err(_) => judge(&order, answer),
        }?;
        let executions = self.ledger.executions(order.id);
        let right = if seen == Seen::BadGateway { executions <= 1 } else { executions == 1 };
        if !right {
            return Err(format!(
                "{}: run {executions} times at the server, and {seen:?} at the client",
                order.target()
            ));
        }
        if !closes && seen != Seen::Truncated {
            self.client = Some(client);
        }
        Ok(seen)
    }
}

/// Responses that take their time.
#[derive(Debug)]
pub struct Download {
    pub addr: Addr,
    pub kind: What,
    pub client: Option<Client>,
    pub ledger: Arc<Ledger>,
}

impl Peer for Download {
    fn turn(&mut self, rng: &mut Rng) -> Outcome {
        let size = if rng.once_in(2) { rng.below(20_000) } else { rng.below(700_000) } as usize;
        let order = Order { kind: self.kind, id: self.ledger.id(), delay: rng.pause(500), size };
        let mut client = self.client.take().unwrap_or_else(|| Client::connect(&self.addr));
        // Only for HTTP/1.0 is the close the end.
        let version = if self.kind == What::UntilClose { "1.0" } else { "1.1" };
        client.send(format!("GET {} HTTP/{version}\r\nHost: a\r\n\r\n", order.target()));
        let part = match client.try_response() {
            Err(Broken::Cut(part)) if !part.is_empty() && self.kind != What::UntilClose => part,
            Err(Broken::Reset(part)) if !part.is_empty() => part,
            answer => {
                let closes = answer.as_ref().map_or(true, Response::closes);
                let seen = judge(&order, answer)?;
                self.client = Some(client).filter(|_| !closes);
                return Ok(seen);
            }
        };
        let head = part.windows(4).position(|four| four == b"\r\n\r\n").map_or(part.len(), |at| at + 4);
        // A chunk's size that was not read whole stands at the end.
        let slack = if self.kind == What::Chunked { 8 } else { 0 };
        let body = &part[head..];
        if is_data(order.id, 0, &body[..body.len().saturating_sub(slack)]) {
            Ok(Seen::Truncated)
        } else {
            Err(format!("{}: wrong bytes before the cut", order.target()))
        }
    }
}
