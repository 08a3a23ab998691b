//! One request and its response, from the parsed head to the last byte.
//!
//! An exchange owns what is known of the request, the bytes stuck on either side, and nothing else: the two
//! connections are handed to it for each step. What must happen to them is returned as a [`Step`], which the
//! worker carries out. [`request`] moves the request towards the server, [`response`] the response towards the
//! client, [`reply`] makes the answers that are our own.

mod awaiting;
pub mod begin;
pub(crate) mod carry;
mod entry;
pub mod reply;
mod request;
mod response;
pub mod rewrite;
mod transfer;
mod wait;

use std::fmt;
use std::rc::Rc;

use ipc::snapshot::{GroupId, Timeouts};
use rustix::io::Errno;

use crate::backend::Upstream;
use crate::backend::connect::SystemError;
use crate::backend::pool::{Place, PoolId};
use crate::buffer::{Buffers, Pending};
use crate::client::Client;
use crate::ctx::{Ctx, Site};
use crate::forward::http::Forwarding;
use crate::io::socket::{Io, Socket};
use crate::io::splice::Pipe;
use crate::proto::h1::body::BodyError;
use crate::proto::h1::head::{HeadError, Method, Span, Version};
use crate::slab::Key;

use transfer::Transfer;
use wait::Wait;

/// Servers tried for one request at most; the configuration's `tries` is bounded by it.
pub const MAX_TRIES: usize = 16;

/// What the worker must do next for an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Wait for events; the time limits are set.
    Wait,
    /// It used up its share of this turn: go on in the next.
    Again,
    /// The server's connection is of no use: close it, and run the request on another one if that is allowed,
    /// or else answer with this status.
    Retry(Failure),
    /// Nothing has been sent to the client: answer so.
    Reply(Problem),
    /// A part of the response has been sent, or the client is gone: cut the client's connection so that it sees it.
    Cut(Reason),
    /// The server switches protocols: relay bytes from now on.
    Tunnel,
    /// The response has been sent whole.
    Done,
}

/// Why a request is answered by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// The status to answer with.
    pub status: u16,
    /// For the access log.
    pub reason: Reason,
}

impl Problem {
    /// No connection to the server could be made.
    #[must_use]
    pub const fn unreachable(errno: Errno) -> Problem {
        Problem { status: 502, reason: Reason::Connect(errno) }
    }

    /// A problem in words of ours.
    #[must_use]
    pub const fn new(status: u16, reason: &'static str) -> Problem {
        Problem { status, reason: Reason::Text(reason) }
    }
}

/// Why a request failed, for the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// In words of ours.
    Text(&'static str),
    /// The request's head is refused.
    RequestHead(HeadError),
    /// The request's body is refused.
    RequestBody(BodyError),
    /// The response's head is refused.
    ResponseHead(HeadError),
    /// The response's body is refused.
    ResponseBody(BodyError),
    /// The system's answer to connecting to the server.
    Connect(Errno),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Text(text) => f.write_str(text),
            Reason::RequestHead(error) => write!(f, "request refused: {error}"),
            Reason::RequestBody(error) => write!(f, "request refused: {error}"),
            Reason::ResponseHead(error) => write!(f, "response refused: {error}"),
            Reason::ResponseBody(error) => write!(f, "response cut: {error}"),
            Reason::Connect(errno) => write!(f, "could not connect to the server: {}", SystemError(*errno)),
        }
    }
}

pub(crate) const CLIENT_GONE: Reason = Reason::Text("the client closed the connection");

/// Why a connection to a server was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What the client is told if there is no other try.
    pub problem: Problem,
    /// Whether the server may have seen the request: it must be safe to repeat then.
    pub sent: bool,
}

/// Where the request is on its way to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestSide {
    /// On its way.
    Sending,
    /// Sent whole, at this time.
    Sent { at_ms: u64 },
    /// Since then the server does not take more of it; it may still answer.
    Refused { at_ms: u64 },
}

/// Where the response is on its way to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseSide {
    /// No final head has come.
    Head,
    /// The body is on its way.
    Body,
    /// All of it has come (and may be stuck on our side).
    Received,
}

/// Parts of the request head that the access log shows, as positions from the head's first byte.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogSpans {
    /// The method.
    pub method: Option<Span>,
    /// The target as received.
    pub target: Option<Span>,
    /// The version is known.
    pub version: bool,
    /// The head is whole and without a fault.
    pub whole: bool,
    /// The host.
    pub host: Option<Span>,
}

/// When things happened, in microseconds of the worker's clock; 0 = not yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// The head was received.
    pub began_us: u64,
    /// A server's connection was asked for.
    pub connect_us: u64,
    /// It stood; 0 for a kept one, too.
    pub connected_us: u64,
    /// The response head was received.
    pub first_us: u64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Exchange {
    /// The client.
    pub client: Key<Client>,
    /// The server's connection, while there is one.
    pub upstream: Option<Key<Upstream>>,
    /// The configuration it began under, and goes by to its end.
    pub site: Rc<Site>,
    /// The group it was routed to, in `site`.
    pub group: Option<GroupId>,
    /// The same group in the present configuration, for choosing servers; `None` when it is gone.
    pub pool: Option<PoolId>,
    /// The server in use, or used last; `None` when there has been none, or it is gone.
    pub place: Option<Place>,
    /// The name of the server in use, if that is gone.
    pub gone_server: Option<Box<str>>,
    /// Servers of `pool` already tried.
    pub tried: Vec<u16>,
    /// How many of them this machine has no way to; these do not count as tries.
    pub passed_over: usize,
    /// The time limits that hold.
    pub timeouts: Timeouts,
    /// The request's method.
    pub method: Method,
    /// The client's version.
    pub version: Version,
    /// Where the head lies in the client's slot.
    head: (usize, usize),
    /// Where the next body byte lies in the client's slot.
    body_at: usize,
    /// Whether the whole request so far is still in the slot, so that it can be sent again.
    replayable: bool,
    /// Whether the client wants to go on after this.
    client_keep_alive: bool,
    /// Whether the client takes trailers.
    trailers_wanted: bool,
    /// The protocols asked for by Upgrade, as a position in the head.
    upgrade: Option<Span>,
    /// The request body on its way.
    request_body: Transfer,
    request_side: RequestSide,
    to_server: Pending,
    /// The response body on its way.
    response_body: Transfer,
    response_side: ResponseSide,
    to_client: Pending,
    /// Interim responses passed on so far.
    interim: u8,
    /// The server was told that its 100 is awaited, and has not sent it.
    awaits_continue: bool,
    /// A pipe with so many bytes of the response body in it.
    spliced: Option<(Pipe, usize)>,
    /// Whether the server's connection can serve another request.
    server_keep_alive: bool,
    /// Whether the client's connection ends with this exchange.
    close: bool,
    /// The response's status; 0 = none yet.
    pub status: u16,
    /// Bytes of heads among those sent to the client.
    head_bytes_out: u64,
    /// Why it failed, for the access log.
    pub reason: Option<Reason>,
    /// For the access log.
    pub log: LogSpans,
    /// For the access log.
    pub times: Times,
    /// What is waited for from the client.
    client_wait: Wait,
    /// What is waited for from the server.
    server_wait: Wait,
    /// Whether a kept connection turned out dead, so that only fresh ones are used from now on.
    pub fresh_only: bool,
    /// Connections to servers asked for, kept ones included.
    pub attempts: u32,
    /// Until when it waits for a descriptor, if it has had to.
    descriptor_by_ms: Option<u64>,
    /// Whether its client is taken for gone when it closes its sending side.
    abort_on_close: bool,
    /// Whether the request was understood. If not, nobody knows how much of it is still to come.
    understood: bool,
    /// The beginning of a request over which a worker died, for the access log: nothing else may come of it.
    pub lost: Option<Box<[u8]>>,
    /// What the last server tried led to.
    pub last_problem: Option<Problem>,
    /// What it wants of a forward listener.
    pub forward: Option<Box<Forwarding>>,
}

impl Exchange {
    /// Moves bytes both ways until neither can move, and says what must happen next.
    pub fn advance(&mut self, client: &mut Client, upstream: Option<&mut Upstream>, cx: &mut Ctx) -> Step {
        let abandoned = self.abort_on_close && client.socket.is_read_closed() && self.is_unanswered();
        if client.socket.is_gone() || abandoned && self.request_is_read() {
            return Step::Cut(CLIENT_GONE);
        }
        if self.forward.as_ref().is_some_and(|forward| forward.is_dialing()) {
            return Step::Wait;
        }
        let Some(upstream) = upstream else {
            return self.flush(client, cx);
        };
        if let Some(step) = self.pump_request(client, upstream, cx) {
            return step;
        }
        self.pump_response(client, upstream, cx)
    }

    /// Sends what is stuck on the way to the client, without a server in play.
    fn flush(&mut self, client: &mut Client, cx: &mut Ctx) -> Step {
        match send_pending(&mut client.socket, &mut self.to_client, &mut cx.buffers) {
            Ok(true) if self.response_side == ResponseSide::Received => Step::Done,
            Ok(_) => {
                self.wait_for_client(client, cx);
                Step::Wait
            }
            Err(_) => Step::Cut(CLIENT_GONE),
        }
    }

    /// Whether nothing of the response has gone to the client, so that it can still be answered otherwise.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.status == 0
    }

    /// Whether the request may be run again after a server may have seen it (RFC 9110 section 9.2.2).
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        self.replayable && self.method.is_idempotent() && self.is_unanswered()
    }

    /// Whether the request may be run on another connection, none having seen it.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        self.replayable && self.is_unanswered()
    }

    /// Whether every byte of the request has been read from the client.
    #[must_use]
    pub fn request_is_read(&self) -> bool {
        self.request_body.is_done()
    }

    /// Whether the client's connection goes on after this exchange.
    #[must_use]
    pub fn client_goes_on(&self) -> bool {
        !self.close && self.request_is_read()
    }

    /// Whether more of the request may come although it has been answered: then closing at once could reset the
    /// connection before the client has read the answer.
    #[must_use]
    pub fn more_may_come(&self) -> bool {
        !self.understood || !self.request_is_read()
    }

    /// Whether the server's connection can be kept after this exchange.
    #[must_use]
    pub fn server_goes_on(&self) -> bool {
        self.server_keep_alive
            && self.response_side == ResponseSide::Received
            && matches!(self.request_side, RequestSide::Sent { .. })
    }

    /// Where the first byte behind the request lies in the client's slot.
    #[must_use]
    pub fn request_end(&self) -> usize {
        self.body_at
    }

    /// The head in the client's slot: its first byte and the one behind its last.
    #[must_use]
    pub fn head_range(&self) -> (usize, usize) {
        self.head
    }

    /// Bytes of the request's body that came from the client.
    #[must_use]
    pub fn body_bytes_in(&self) -> u64 {
        self.request_body.bytes()
    }

    /// Bytes of heads among those sent to the client.
    #[must_use]
    pub fn head_bytes_out(&self) -> u64 {
        self.head_bytes_out
    }

    /// How often the request was sent, or a connection for it asked for, after the first time.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.attempts.saturating_sub(1)
    }

    /// Makes no further use of the client's connection after this exchange.
    pub fn close_client(&mut self) {
        self.close = true;
    }

    /// Agrees to a tunnel: `head` is the first of what the client gets.
    pub fn agree_to_tunnel(&mut self, head: &[u8], cx: &mut Ctx) {
        self.status = 200;
        self.times.first_us = cx.clock.now_us;
        self.head_bytes_out += head.len() as u64;
        self.to_client.push(head, &mut cx.buffers);
    }

    /// What is stuck on the way to the client, for a relay to send first.
    pub fn take_to_client(&mut self) -> Pending {
        std::mem::take(&mut self.to_client)
    }

    /// Gives its buffers back.
    pub fn release(&mut self, cx: &mut Ctx) {
        self.to_server.clear(&mut cx.buffers);
        self.to_client.clear(&mut cx.buffers);
        if let Some((pipe, _)) = self.spliced.take() {
            cx.pipes.empty(pipe, &mut cx.scratch);
        }
    }
}

/// Sends what is stuck; true when nothing is any more.
fn send_pending(socket: &mut Socket, pending: &mut Pending, buffers: &mut Buffers) -> Result<bool, Errno> {
    while !pending.is_empty() {
        match socket.send(pending.rest(), &[]) {
            Io::Moved(n) => pending.advance(n, buffers),
            Io::Blocked | Io::Eof => return Ok(false),
            Io::Broken(errno) => return Err(errno),
        }
    }
    Ok(true)
}

/// Sends `first` and `second`, and keeps what the socket does not take. Nothing may be stuck before.
fn send_or_keep(
    socket: &mut Socket,
    pending: &mut Pending,
    first: &[u8],
    second: &[u8],
    buffers: &mut Buffers,
) -> Result<(), Errno> {
    debug_assert!(pending.is_empty());
    keep_rest(socket.send(first, second), pending, first, second, buffers)
}

/// Keeps what a socket has not taken of `first` and `second`.
fn keep_rest(sent: Io, pending: &mut Pending, first: &[u8], second: &[u8], buffers: &mut Buffers) -> Result<(), Errno> {
    let sent = match sent {
        Io::Moved(n) => n,
        Io::Blocked | Io::Eof => 0,
        Io::Broken(errno) => return Err(errno),
    };
    if sent < first.len() {
        pending.push(&first[sent..], buffers);
        pending.push(second, buffers);
    } else {
        pending.push(&second[sent - first.len()..], buffers);
    }
    Ok(())
}
