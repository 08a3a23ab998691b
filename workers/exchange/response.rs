//! The response's way to the client: interim heads, the final head, the body.

use ipc::state::Phase;

use crate::backend::Upstream;
use crate::client::Client;
use crate::ctx::Ctx;
use crate::exchange::request::BROKEN;
use crate::exchange::rewrite::{self, OutFraming, ResponseContext};
use crate::exchange::transfer::{Outgoing, Transfer};
use crate::exchange::{
    CLIENT_GONE, Exchange, Failure, Problem, Reason, RequestSide, ResponseSide, Step, keep_rest, send_or_keep,
    send_pending,
};
use crate::io::socket::{Io, Socket};
use crate::proto::h1::body::BodyReader;
use crate::proto::h1::chunked::Decoder;
use crate::proto::h1::head::{Method, ResponseFraming, Version};
use crate::proto::h1::upgrade::protocol_was_offered;
use crate::proto::h1::write::Persistence;

/// Body bytes moved in one turn at most, so that one download does not hold up the others.
const TURN_BYTES: usize = 512 * 1024;
/// A body with at least so much to come is spliced. Below it, copying costs less than the pipe's extra calls.
const SPLICE_BYTES: u64 = 64 * 1024;
/// Where long answers are to be expected, this much is read along with the head: the rest of the body need not be
/// copied.
const HEAD_BYTES: usize = 4 * 1024;
/// Interim responses (1xx) passed on for one request at most.
const MAX_INTERIM: u8 = 16;

const CUT_SHORT: Reason = Reason::Text("the server closed the connection within the response");

impl Exchange {
    /// Moves the response on.
    pub(super) fn pump_response(&mut self, client: &mut Client, upstream: &mut Upstream, cx: &mut Ctx) -> Step {
        let mut moved = 0;
        loop {
            match send_pending(&mut client.socket, &mut self.to_client, &mut cx.buffers) {
                Ok(true) => {}
                Ok(false) => return self.wait(client, upstream, cx),
                Err(_) => return Step::Cut(CLIENT_GONE),
            }
            if moved >= TURN_BYTES {
                return Step::Again;
            }
            let result = match self.response_side {
                ResponseSide::Received => return Step::Done,
                ResponseSide::Head => self.read_head(client, upstream, cx),
                ResponseSide::Body => self.read_body(client, upstream, cx),
            };
            match result {
                Ok(0) => return self.wait(client, upstream, cx),
                Ok(n) => moved += n,
                Err(step) => return step,
            }
        }
    }

    /// Reads and parses a head; 0 when it has not come whole.
    fn read_head(&mut self, client: &mut Client, upstream: &mut Upstream, cx: &mut Ctx) -> Result<usize, Step> {
        if upstream.connecting {
            return Ok(0);
        }
        let most = if upstream.answers_at_length { HEAD_BYTES } else { cx.scratch.len() };
        let n = match upstream.socket.recv(&mut cx.scratch[..most]) {
            Io::Moved(n) => n,
            Io::Blocked => return Ok(0),
            Io::Eof | Io::Broken(_) => return Err(self.no_response(upstream)),
        };
        if upstream.partial.is_empty() {
            // The scratch buffer is lent to the head's parser and put back, so that `cx` stays usable.
            let scratch = std::mem::take(&mut cx.scratch);
            let result = self.take_heads(&scratch[..n], client, upstream, cx);
            cx.scratch = scratch;
            result?;
        } else {
            let mut bytes = std::mem::take(&mut upstream.partial);
            bytes.extend_from_slice(&cx.scratch[..n]);
            let result = self.take_heads(&bytes, client, upstream, cx);
            cx.buffers.put(bytes);
            result?;
        }
        if self.response_side != ResponseSide::Head {
            upstream.answers_at_length = self.response_body.spliceable().is_some_and(|left| left >= SPLICE_BYTES);
        }
        Ok(n)
    }

    /// Takes every head that `bytes` begins with, up to the final one, and what follows that as body.
    fn take_heads(
        &mut self,
        mut bytes: &[u8],
        client: &mut Client,
        upstream: &mut Upstream,
        cx: &mut Ctx,
    ) -> Result<(), Step> {
        loop {
            let length = match cx.response.parse(bytes, &self.site.head_limits) {
                Ok(Some(length)) => length,
                Ok(None) => {
                    if !bytes.is_empty() {
                        upstream.partial = cx.buffers.take();
                        upstream.partial.extend_from_slice(bytes);
                    }
                    return Ok(());
                }
                Err(error) => return Err(bad_response(Reason::ResponseHead(error))),
            };
            let status = cx.response.status;
            if status == 101 {
                return self.switch_protocols(&bytes[..length], &bytes[length..], client, cx);
            }
            if status < 200 {
                self.pass_interim(&bytes[..length], client, cx)?;
                bytes = &bytes[length..];
                continue;
            }
            return self.take_final_head(&bytes[..length], &bytes[length..], client, cx);
        }
    }

    /// Passes an interim response on, to clients that know them (RFC 9110 section 15.2).
    fn pass_interim(&mut self, head: &[u8], client: &mut Client, cx: &mut Ctx) -> Result<(), Step> {
        self.interim += 1;
        self.awaits_continue &= cx.response.status != 100;
        if self.interim > MAX_INTERIM {
            return Err(bad_response(Reason::Text("the server sent too many interim responses")));
        }
        self.server_keep_alive &= cx.response.keep_alive;
        if self.version == Version::Http10 {
            return Ok(());
        }
        self.write_interim(head, false, cx);
        let repeatable = self.replayable && self.method.is_idempotent();
        let phase = if repeatable { Phase::Open } else { Phase::Committed };
        client.publish_interim(cx.out.len() as u64, phase, cx);
        if self.to_client.is_empty() {
            send_or_keep(&mut client.socket, &mut self.to_client, &cx.out, &[], &mut cx.buffers)
                .map_err(|_| Step::Cut(CLIENT_GONE))
        } else {
            self.to_client.push(&cx.out, &mut cx.buffers);
            Ok(())
        }
    }

    /// Writes a 1xx head, which has no content and leaves the connection as it is, to `cx.out`.
    fn write_interim(&mut self, head: &[u8], switch_protocols: bool, cx: &mut Ctx) {
        let context = ResponseContext {
            framing: OutFraming::None,
            connection: Persistence::Keep,
            switch_protocols,
            pass_trailers: false,
            keep_length: false,
            via: self.forward.is_some().then_some(self.site.via.as_bytes()),
        };
        write_head(head, &context, cx);
        self.head_bytes_out += cx.out.len() as u64;
    }

    /// The server agrees to another protocol: only if the client asked for it, and has sent its whole request.
    fn switch_protocols(&mut self, head: &[u8], rest: &[u8], client: &mut Client, cx: &mut Ctx) -> Result<(), Step> {
        let asked = self.upgrade.is_some_and(|asked| {
            let request = &client.input_from(self.head.0, &cx.arena)[..self.head.1 - self.head.0];
            cx.response.upgrade.is_some_and(|agreed| protocol_was_offered(asked.of(request), agreed.of(head)))
        });
        if !asked || !matches!(self.request_side, RequestSide::Sent { .. }) {
            return Err(bad_response(Reason::Text("the server switched to a protocol that was not asked for")));
        }
        self.note_head(101, cx);
        self.write_interim(head, true, cx);
        self.to_client.push(&cx.out, &mut cx.buffers);
        self.to_client.push(rest, &mut cx.buffers);
        Err(Step::Tunnel)
    }

    fn note_head(&mut self, status: u16, cx: &Ctx) {
        self.status = status;
        self.times.first_us = cx.clock.now_us;
    }

    fn take_final_head(&mut self, head: &[u8], rest: &[u8], client: &mut Client, cx: &mut Ctx) -> Result<(), Step> {
        let framing = cx.response.framing(self.method);
        self.note_head(cx.response.status, cx);
        // A server that answers without the 100 may take the content for the next request (RFC 9110 section 10.1.1 lets
        // it say neither that it reads it nor that it closes).
        self.server_keep_alive &= cx.response.keep_alive && !self.awaits_continue;
        let modern = self.version == Version::Http11;
        let trailers = self.trailers_wanted;
        let chunked = Outgoing::Chunked { trailers };
        let (reader, outgoing, out_framing) = match framing {
            ResponseFraming::None => (BodyReader::None, Outgoing::Plain, OutFraming::None),
            ResponseFraming::Length(n) => (BodyReader::Length(n), Outgoing::Plain, OutFraming::Length(n)),
            ResponseFraming::Chunked if modern => {
                let decoder = Decoder::without(cx.response.nominated(head));
                (BodyReader::Chunked(decoder), chunked, OutFraming::Chunked)
            }
            ResponseFraming::Chunked => (BodyReader::from(framing), Outgoing::Plain, OutFraming::UntilClose),
            ResponseFraming::UntilClose if modern => (BodyReader::from(framing), chunked, OutFraming::Chunked),
            ResponseFraming::UntilClose => (BodyReader::from(framing), Outgoing::Plain, OutFraming::UntilClose),
        };
        self.server_keep_alive &= !matches!(reader, BodyReader::UntilClose { .. });
        // A request still on its way when it is answered: the rest of its body must never be taken for the next
        // request, so this connection ends here.
        self.close |= !self.client_keep_alive
            || out_framing == OutFraming::UntilClose
            || !self.request_body.is_done()
            || (cx.draining && !cx.giving_back);
        if out_framing == OutFraming::UntilClose {
            // Should all processes die within it, the client must not take the end of the connection for its own.
            client.socket.reset_on_close(true);
        }
        self.response_body = Transfer::new(reader, outgoing);
        let context = ResponseContext {
            framing: out_framing,
            connection: self.persistence(),
            switch_protocols: false,
            pass_trailers: trailers && out_framing == OutFraming::Chunked,
            keep_length: self.method == Method::Head || cx.response.status == 304,
            via: self.forward.is_some().then_some(self.site.via.as_bytes()),
        };
        write_head(head, &context, cx);
        let head_bytes = cx.out.len() as u64;
        self.head_bytes_out += head_bytes;
        self.response_side = ResponseSide::Body;
        match self.pass_body(rest, client, cx) {
            // The head is not on its way yet: the client need not see half a response.
            Err(Step::Cut(reason @ Reason::ResponseBody(_))) => {
                self.status = 0;
                self.response_side = ResponseSide::Head;
                self.head_bytes_out -= head_bytes;
                Err(bad_response(reason))
            }
            result => result,
        }
    }

    /// Sends what stands in `cx.out`, and `bytes` of the body behind it.
    fn pass_body(&mut self, bytes: &[u8], client: &mut Client, cx: &mut Ctx) -> Result<(), Step> {
        let fed = match self.response_body.feed(bytes, &mut cx.out) {
            Ok(fed) => fed,
            Err(error) => return Err(Step::Cut(Reason::ResponseBody(error))),
        };
        if fed.used < bytes.len() {
            // Bytes behind the end: whatever they are, they answer no request.
            self.server_keep_alive = false;
        }
        if self.response_body.is_done() {
            self.response_side = ResponseSide::Received;
            self.announce(cx.out.len() + bytes[fed.direct.clone()].len(), client, cx);
        }
        if self.to_client.is_empty() {
            // Where the rest is spliced it follows at once, or the socket is pushed. So does the end of a connection that
            // ends with this: the last bytes and it share a segment.
            let send = match self.response_body.spliceable() {
                Some(SPLICE_BYTES..) => Socket::send_ahead,
                Some(_) | None if self.response_body.is_done() && !self.client_goes_on() => Socket::send_ahead,
                Some(_) | None => Socket::send,
            };
            let io = send(&mut client.socket, &cx.out, &bytes[fed.direct.clone()]);
            keep_rest(io, &mut self.to_client, &cx.out, &bytes[fed.direct], &mut cx.buffers)
                .map_err(|_| Step::Cut(CLIENT_GONE))
        } else {
            self.to_client.push(&cx.out, &mut cx.buffers);
            self.to_client.push(&bytes[fed.direct], &mut cx.buffers);
            Ok(())
        }
    }

    /// Publishes what will hold once all of the answer is written, of which `last` bytes are not even queued.
    pub(super) fn announce(&self, last: usize, client: &Client, cx: &Ctx) {
        let left = (self.to_client.rest().len() + last) as u64;
        if self.client_goes_on() {
            client.publish_answer(self.request_end(), left, cx);
        } else {
            client.publish_last_answer(left, cx);
        }
    }

    /// Reads and sends a stretch of the body; 0 when none is there.
    fn read_body(&mut self, client: &mut Client, upstream: &mut Upstream, cx: &mut Ctx) -> Result<usize, Step> {
        let held = matches!(self.spliced, Some((_, 1..)));
        let fit = |n: u64| held || n >= SPLICE_BYTES && !upstream.socket.is_urgent();
        if let Some(remaining) = self.response_body.spliceable().filter(|&n| fit(n))
            && let Some(moved) = self.splice_body(remaining, client, upstream, cx)?
        {
            return Ok(moved);
        }
        let io = upstream.socket.recv(&mut cx.scratch);
        cx.out.clear();
        match io {
            Io::Moved(n) => {
                let scratch = std::mem::take(&mut cx.scratch);
                let result = self.pass_body(&scratch[..n], client, cx);
                cx.scratch = scratch;
                result.map(|()| n)
            }
            Io::Blocked => {
                // A head sent ahead of what was to be spliced.
                client.socket.push();
                Ok(0)
            }
            Io::Eof => match self.response_body.end_of_file(&mut cx.out) {
                Ok(()) => {
                    self.response_side = ResponseSide::Received;
                    self.announce(cx.out.len(), client, cx);
                    send_or_keep(&mut client.socket, &mut self.to_client, &cx.out, &[], &mut cx.buffers)
                        .map_err(|_| Step::Cut(CLIENT_GONE))?;
                    Ok(1)
                }
                Err(_) => Err(Step::Cut(CUT_SHORT)),
            },
            Io::Broken(_) => Err(Step::Cut(CUT_SHORT)),
        }
    }

    /// Moves a stretch of the body through a pipe; 0 when neither side can move, `None` when there is no
    /// descriptor for a pipe.
    fn splice_body(
        &mut self,
        remaining: u64,
        client: &mut Client,
        upstream: &mut Upstream,
        cx: &mut Ctx,
    ) -> Result<Option<usize>, Step> {
        let (pipe, mut held) = match self.spliced.take() {
            Some(spliced) => spliced,
            None => match cx.take_pipe() {
                Some(pipe) => (pipe, 0),
                None => return Ok(None),
            },
        };
        if held == 0 {
            let most = usize::try_from(remaining).unwrap_or(usize::MAX);
            match upstream.socket.splice_in(&pipe, most) {
                Io::Moved(n) => held = n,
                Io::Blocked => {
                    client.socket.push();
                    cx.pipes.put(pipe);
                    return Ok(Some(0));
                }
                Io::Eof | Io::Broken(_) => {
                    cx.pipes.put(pipe);
                    return Err(Step::Cut(CUT_SHORT));
                }
            }
        }
        if held as u64 == remaining {
            self.announce(held, client, cx);
        }
        let moved = match client.socket.splice_out(&pipe, held, false) {
            Io::Moved(n) => n,
            Io::Blocked | Io::Eof => 0,
            Io::Broken(_) => {
                // Emptied with the exchange.
                self.spliced = Some((pipe, held));
                return Err(Step::Cut(CLIENT_GONE));
            }
        };
        self.response_body.spliced(moved);
        held -= moved;
        if held > 0 {
            self.spliced = Some((pipe, held));
        } else {
            cx.pipes.put(pipe);
        }
        if self.response_body.is_done() {
            self.response_side = ResponseSide::Received;
        }
        Ok(Some(moved))
    }

    /// The connection ended before a whole head came.
    fn no_response(&self, upstream: &Upstream) -> Step {
        if !upstream.partial.is_empty() || self.interim > 0 {
            return bad_response(Reason::Text("the server closed the connection within the response head"));
        }
        Step::Retry(Failure { problem: BROKEN, sent: true })
    }
}

fn bad_response(reason: Reason) -> Step {
    Step::Reply(Problem { status: 502, reason })
}

/// Writes the head of the response that has been read to `cx.out`.
fn write_head(head: &[u8], context: &ResponseContext<'_>, cx: &mut Ctx) {
    cx.out.clear();
    rewrite::response(&mut cx.out, head, &cx.response, context, cx.date.http_date(cx.clock.unix_ms / 1000));
}
