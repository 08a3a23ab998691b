//! The request's way to the server: head first, then the body as it comes.

use ipc::state::Phase;
use rustix::io::Errno;

use crate::backend::Upstream;
use crate::client::Client;
use crate::ctx::Ctx;
use crate::exchange::rewrite::{self, RequestContext};
use crate::exchange::{Exchange, Failure, Problem, Reason, RequestSide, Step, send_or_keep, send_pending};
use crate::io::socket::Io;
use crate::proto::h1::body::BodyError;

/// Body bytes moved in one turn at most, so that one upload does not hold up the others.
const TURN_BYTES: usize = 256 * 1024;

/// The server's connection broke before anything of the response came.
pub(super) const BROKEN: Problem = Problem::new(502, "the server closed the connection before answering");

impl Exchange {
    /// Writes the head for the server, and what has already come of the body behind it. The connection may still
    /// be on its way: the first write is tried at once all the same, since on a fast network it stands by now.
    pub fn begin_request(&mut self, client: &mut Client, upstream: &mut Upstream, cx: &mut Ctx) -> Step {
        client.note_server(self.place.map(|place| cx.pools.server(place).number), cx);
        if !self.method.is_idempotent() {
            // From here on a server may see it: a successor must not run it again.
            client.publish(Phase::Committed, cx);
        }
        let group = self.group.and_then(|group| self.site.snapshot.groups.get(usize::from(group)));
        let worker_pid = group.filter(|group| group.worker_header).map(|_| cx.pid);
        let peer = client.peer.map(|addr| addr.ip().to_canonical());
        let trusted = peer.is_some_and(|ip| self.site.snapshot.trusted_proxies.iter().any(|net| net.contains(ip)));
        let context = RequestContext {
            peer,
            peer_trusted: trusted,
            scheme: "http",
            worker_pid,
            forward: self.forward.is_some().then_some(self.site.via.as_bytes()),
            default_host: self.site.listener_names[usize::from(client.listener)].as_bytes(),
        };
        cx.out.clear();
        if upstream.socket.bytes_out == 0
            && let Some(version) = group.and_then(|group| group.send_proxy)
        {
            client.write_proxy_header(version, &mut cx.out);
        }
        let bytes = client.input_from(self.head.0, &cx.arena);
        rewrite::request(&mut cx.out, &bytes[..self.head.1 - self.head.0], &cx.request, &context);
        let body = client.input_from(self.body_at, &cx.arena);
        let direct = match self.request_body.feed(body, &mut cx.out) {
            Ok(fed) => {
                let direct = self.body_at + fed.direct.start..self.body_at + fed.direct.end;
                self.body_at += fed.used;
                direct
            }
            Err(error) => return self.body_error(error),
        };
        if let Some(step) = self.check_body_limit() {
            return step;
        }
        let direct = &client.input_from(0, &cx.arena)[direct];
        match send_or_keep(&mut upstream.socket, &mut self.to_server, &cx.out, direct, &mut cx.buffers) {
            Ok(()) => {
                // A server that took anything is connected to, and may have seen the request.
                if upstream.connecting && upstream.socket.bytes_out > 0 {
                    self.connected(upstream, cx);
                }
                Step::Wait
            }
            Err(errno) if upstream.connecting => not_connected(errno),
            // Nothing was taken, so nothing was seen.
            Err(_) => Step::Retry(Failure { problem: BROKEN, sent: false }),
        }
    }

    /// The server's connection stands.
    pub fn connected(&mut self, upstream: &mut Upstream, cx: &Ctx) {
        upstream.connecting = false;
        self.times.connected_us = cx.clock.now_us;
    }

    /// Moves the request on; `Some` when something other than waiting must follow.
    pub(super) fn pump_request(&mut self, client: &mut Client, upstream: &mut Upstream, cx: &mut Ctx) -> Option<Step> {
        if self.request_side != RequestSide::Sending {
            return None;
        }
        let mut moved = 0;
        loop {
            let sent = send_pending(&mut upstream.socket, &mut self.to_server, &mut cx.buffers);
            if upstream.connecting && upstream.socket.bytes_out > 0 {
                self.connected(upstream, cx);
            }
            match sent {
                Ok(true) => {}
                Ok(false) => return None,
                Err(errno) => return self.refused(upstream, errno, cx),
            }
            if self.request_body.is_done() {
                self.request_side = RequestSide::Sent { at_ms: cx.clock.now_ms };
                return None;
            }
            if moved >= TURN_BYTES {
                return Some(Step::Again);
            }
            match self.move_body(client, upstream, cx) {
                Ok(0) => return None,
                Ok(n) => moved += n,
                Err(step) => return Some(step),
            }
        }
    }

    /// Reads and sends a stretch of the body; 0 when none is there.
    fn move_body(&mut self, client: &mut Client, upstream: &mut Upstream, cx: &mut Ctx) -> Result<usize, Step> {
        cx.out.clear();
        if self.replayable && client.is_full(cx) {
            // The slot cannot hold all of it: from here on what has been sent is forgotten, and a successor
            // could not send it again.
            self.replayable = false;
            client.publish(Phase::Committed, cx);
        }
        if self.replayable || !client.input_from(self.body_at, &cx.arena).is_empty() {
            if client.input_from(self.body_at, &cx.arena).is_empty() {
                match client.read_more(cx) {
                    Some(Io::Moved(_)) => {}
                    Some(Io::Blocked) | None => return Ok(0),
                    Some(Io::Eof | Io::Broken(_)) => return Err(self.body_cut_short()),
                }
            }
            let body = client.input_from(self.body_at, &cx.arena);
            let fed = self.request_body.feed(body, &mut cx.out).map_err(|e| self.body_error(e))?;
            if let Some(step) = self.check_body_limit() {
                return Err(step);
            }
            self.body_at += fed.used;
            let direct = &body[fed.direct];
            match send_or_keep(&mut upstream.socket, &mut self.to_server, &cx.out, direct, &mut cx.buffers) {
                Ok(()) => return Ok(fed.used),
                Err(errno) => return self.refused(upstream, errno, cx).map_or(Ok(0), Err),
            }
        }
        let room = self.read_room(client, cx);
        if room == 0 {
            return Err(self.failed(Problem::new(503, "the worker has no buffer for the request body")));
        }
        let n = match client.socket.recv(&mut cx.scratch[..room]) {
            Io::Moved(n) => n,
            Io::Blocked => return Ok(0),
            Io::Eof | Io::Broken(_) => return Err(self.body_cut_short()),
        };
        let fed = self.request_body.feed(&cx.scratch[..n], &mut cx.out).map_err(|e| self.body_error(e))?;
        if let Some(step) = self.check_body_limit() {
            return Err(step);
        }
        if fed.used < n {
            // The beginning of the next request. It fits, by the choice of `room`.
            let rest = cx.scratch[fed.used..n].to_vec();
            if !client.put_back(self.head.1, &rest, cx) {
                self.close = true;
            }
            self.body_at = self.head.1;
        } else if self.request_body.is_done() {
            // Nothing is left over.
            self.body_at = usize::MAX;
        }
        match send_or_keep(&mut upstream.socket, &mut self.to_server, &cx.out, &cx.scratch[fed.direct], &mut cx.buffers)
        {
            Ok(()) => Ok(n),
            Err(errno) => self.refused(upstream, errno, cx).map_or(Ok(0), Err),
        }
    }

    /// How much may be read from the client past the slot, so that what follows the body, if anything does, fits
    /// into the slot behind the head.
    fn read_room(&self, client: &Client, cx: &Ctx) -> usize {
        match self.request_body.spliceable() {
            Some(remaining) => usize::try_from(remaining).unwrap_or(usize::MAX).min(cx.scratch.len()),
            None => client.slot_room(self.head.1, cx).min(cx.scratch.len()),
        }
    }

    /// The server closed or reset its connection while the request was being sent. It may have answered before.
    fn refused(&mut self, upstream: &Upstream, errno: Errno, cx: &Ctx) -> Option<Step> {
        if upstream.connecting {
            return Some(not_connected(errno));
        }
        self.request_side = RequestSide::Refused { at_ms: cx.clock.now_ms };
        self.server_keep_alive = false;
        self.close = true;
        None
    }

    fn check_body_limit(&mut self) -> Option<Step> {
        let limit = self.site.snapshot.limits.body_bytes?;
        if self.request_body.announced() <= limit {
            return None;
        }
        // Where the next request would begin is not known: not all that was looked at has been accounted for.
        self.close = true;
        Some(self.failed(Problem::new(413, "the request body is larger than limits.body")))
    }

    fn body_error(&mut self, error: BodyError) -> Step {
        self.close = true;
        self.failed(body_problem(error))
    }

    fn body_cut_short(&mut self) -> Step {
        self.close = true;
        self.failed(Problem::new(400, "the client closed the connection within the request body"))
    }

    /// Answers so if nothing has been answered yet, and cuts the connection otherwise.
    pub(super) fn failed(&self, problem: Problem) -> Step {
        if self.is_unanswered() { Step::Reply(problem) } else { Step::Cut(problem.reason) }
    }
}

/// The connection could not be made, so that nothing was seen of the request.
fn not_connected(errno: Errno) -> Step {
    Step::Retry(Failure { problem: Problem::unreachable(errno), sent: false })
}

fn body_problem(error: BodyError) -> Problem {
    Problem { status: 400, reason: Reason::RequestBody(error) }
}
