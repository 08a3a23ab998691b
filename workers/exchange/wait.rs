//! What an exchange waits for, how long, and what it means when the wait is over.
//!
//! Every state has a time limit. Against a server a limit runs from the last byte that moved. Against a client
//! it is a period in which at least the minimum rate's worth of bytes must move, so that one byte now and then
//! does not hold a connection for ever.

use crate::backend::Upstream;
use crate::client::Client;
use crate::ctx::{Ctx, Owner};
use crate::exchange::{Exchange, Failure, Problem, Reason, RequestSide, ResponseSide, Step};
use crate::io::socket::Socket;

/// How long a client may be left unwatched while its request is served.
const UNWATCHED_MS: u64 = 1000;

/// What is waited for from one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Waiting {
    /// Nothing: it is the other side's turn.
    #[default]
    Nothing,
    /// The client, for more of the request body.
    RequestBody,
    /// The client, to take more of the response.
    ResponseTaken,
    /// The server, to accept the connection.
    Connect,
    /// The server, to take more of the request.
    RequestTaken,
    /// The server, for a response head.
    ResponseHead,
    /// The server, for more of the response body.
    ResponseBody,
}

/// A wait in progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wait {
    what: Waiting,
    /// The byte count that must change, as it was at the wait's (or period's) beginning.
    bytes: u64,
}

impl Exchange {
    /// Sets both time limits by what is waited for now.
    pub(super) fn wait(&mut self, client: &mut Client, upstream: &mut Upstream, cx: &mut Ctx) -> Step {
        self.wait_for_client(client, cx);
        self.wait_for_server(upstream, cx);
        Step::Wait
    }

    /// Sets the client's time limit.
    pub(super) fn wait_for_client(&mut self, client: &mut Client, cx: &mut Ctx) {
        let what = if !self.to_client.is_empty() || matches!(self.spliced, Some((_, 1..))) {
            Waiting::ResponseTaken
        } else if self.request_side == RequestSide::Sending && self.to_server.is_empty() {
            Waiting::RequestBody
        } else {
            Waiting::Nothing
        };
        if what == self.client_wait.what && what != Waiting::Nothing {
            return;
        }
        self.begin_client_wait(what, client, cx);
    }

    fn begin_client_wait(&mut self, what: Waiting, client: &mut Client, cx: &mut Ctx) {
        self.client_wait = Wait { what, bytes: client_bytes(what, &client.socket) };
        let due_ms = match what {
            Waiting::ResponseTaken => cx.clock.now_ms + u64::from(self.timeouts.write_ms),
            Waiting::RequestBody => cx.clock.now_ms + u64::from(self.timeouts.body_ms),
            Waiting::Nothing
            | Waiting::Connect
            | Waiting::RequestTaken
            | Waiting::ResponseHead
            | Waiting::ResponseBody => u64::MAX,
        };
        let owner = Owner::Client(self.client);
        if due_ms != u64::MAX {
            cx.watch(&mut client.socket, owner);
            cx.arm(&mut client.socket, owner, due_ms);
        } else if client.socket.is_watched() {
            client.socket.deadline.due_ms = u64::MAX;
        } else {
            cx.arm(&mut client.socket, owner, cx.clock.now_ms + UNWATCHED_MS);
        }
    }

    fn wait_for_server(&mut self, upstream: &mut Upstream, cx: &mut Ctx) {
        let now_ms = cx.clock.now_ms;
        let socket = &upstream.socket;
        let what = if upstream.connecting {
            Waiting::Connect
        } else if self.request_side == RequestSide::Sending && !self.to_server.is_empty() {
            Waiting::RequestTaken
        } else if self.response_side == ResponseSide::Head && self.request_side != RequestSide::Sending {
            Waiting::ResponseHead
        } else if self.response_side == ResponseSide::Body && self.client_wait.what != Waiting::ResponseTaken {
            Waiting::ResponseBody
        } else {
            Waiting::Nothing
        };
        let wait = Wait { what, bytes: socket.bytes_in + socket.bytes_out };
        let due_ms = match what {
            Waiting::Connect => self.times.connect_us / 1000 + u64::from(self.timeouts.connect_ms),
            Waiting::ResponseHead => {
                let since_ms = match self.request_side {
                    RequestSide::Sent { at_ms } | RequestSide::Refused { at_ms } => at_ms,
                    RequestSide::Sending => now_ms,
                };
                since_ms + u64::from(self.timeouts.response_ms)
            }
            Waiting::RequestTaken | Waiting::ResponseBody => {
                if self.server_wait.what == what && self.server_wait.bytes == wait.bytes {
                    return;
                }
                now_ms + u64::from(self.timeouts.server_ms)
            }
            Waiting::Nothing | Waiting::RequestBody | Waiting::ResponseTaken => u64::MAX,
        };
        self.server_wait = wait;
        if let Some(key) = self.upstream {
            cx.arm(&mut upstream.socket, Owner::Upstream(key), due_ms);
        }
    }

    /// The client's time limit has passed.
    pub fn on_client_timeout(&mut self, client: &mut Client, cx: &mut Ctx) -> Step {
        let Wait { what, bytes } = self.client_wait;
        if what == Waiting::Nothing {
            // The answer takes long: the client may go away meanwhile.
            cx.watch(&mut client.socket, Owner::Client(self.client));
            client.socket.deadline.due_ms = u64::MAX;
            return Step::Wait;
        }
        let (period_ms, problem) = match what {
            Waiting::RequestBody => {
                (self.timeouts.body_ms, Problem::new(408, "the client sent its request body too slowly or not at all"))
            }
            Waiting::ResponseTaken => {
                (self.timeouts.write_ms, Problem::new(408, "the client took the response too slowly"))
            }
            Waiting::Nothing
            | Waiting::Connect
            | Waiting::RequestTaken
            | Waiting::ResponseHead
            | Waiting::ResponseBody => return Step::Wait,
        };
        let moved = client_bytes(what, &client.socket).saturating_sub(bytes);
        let least = u64::from(self.site.snapshot.limits.min_rate_bytes) * u64::from(period_ms) / 1000;
        if moved >= least.max(1) {
            self.begin_client_wait(what, client, cx);
            return Step::Wait;
        }
        self.close = true;
        self.failed(problem)
    }

    /// The server's time limit has passed.
    pub fn on_server_timeout(&mut self) -> Step {
        match self.server_wait.what {
            Waiting::Connect => {
                Step::Retry(Failure { problem: Problem::new(504, "timed out connecting to the server"), sent: false })
            }
            Waiting::RequestTaken => self.failed(Problem::new(504, "timed out sending the request to the server")),
            Waiting::ResponseHead => self.failed(Problem::new(504, "timed out waiting for the server's response")),
            Waiting::ResponseBody => Step::Cut(Reason::Text("timed out within the server's response")),
            Waiting::Nothing | Waiting::RequestBody | Waiting::ResponseTaken => Step::Wait,
        }
    }
}

/// The client's progress in a wait: bytes it sent, or bytes it has acknowledged.
fn client_bytes(what: Waiting, socket: &Socket) -> u64 {
    match what {
        // What only lies in the kernel's buffer has not been taken by the client; one ioctl tells how much.
        Waiting::ResponseTaken => socket.bytes_out.saturating_sub(socket.unacknowledged()),
        Waiting::Nothing
        | Waiting::RequestBody
        | Waiting::Connect
        | Waiting::RequestTaken
        | Waiting::ResponseHead
        | Waiting::ResponseBody => socket.bytes_in,
    }
}
