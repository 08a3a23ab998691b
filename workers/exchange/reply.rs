//! Answers of our own: errors, and the few requests that end here.

use crate::client::Client;
use crate::ctx::Ctx;
use crate::exchange::{Exchange, Problem, RequestSide, ResponseSide};
use crate::proto::h1::head::{Method, RequestHead, Version};
use crate::proto::h1::write::{self, OwnResponse, Persistence};

/// Methods we pass on, for `Allow` (RFC 9110 section 10.2.1).
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";

impl Exchange {
    /// Puts our own answer on the way to the client. The connection goes on only if the whole request has been
    /// read and the client wants to.
    pub fn reply(&mut self, problem: Problem, client: &Client, cx: &mut Ctx) {
        self.discard_body(client, cx);
        self.close |= !self.client_keep_alive || !self.request_body.is_done() || (cx.draining && !cx.giving_back);
        self.status = problem.status;
        self.times.first_us = cx.clock.now_us;
        if problem.status != 200 {
            self.reason = Some(problem.reason);
        }
        self.request_side = RequestSide::Refused { at_ms: cx.clock.now_ms };
        self.response_side = ResponseSide::Received;
        cx.out.clear();
        let trace = problem.status == 200 && self.method == Method::Trace;
        let echo = trace.then(|| trace_body(client.input_from(self.head.0, &cx.arena), &cx.request));
        let options = problem.status == 200 && !trace;
        let allow = [("Allow", ALLOW)];
        let authenticate = [("Proxy-Authenticate", "Basic realm=\"pointsman\", charset=\"UTF-8\"")];
        let head = OwnResponse {
            status: problem.status,
            date: cx.date.http_date(cx.clock.unix_ms / 1000),
            fields: match problem.status {
                407 => &authenticate,
                405 => &allow,
                _ if options => &allow,
                _ => &[],
            },
            content_type: if trace { "message/http" } else { "text/plain" },
            body: if options { Some(&[]) } else { echo.as_deref() },
            head: self.method == Method::Head,
            connection: self.persistence(),
        }
        .write(&mut cx.out);
        self.head_bytes_out += head as u64;
        self.to_client.push(&cx.out, &mut cx.buffers);
        self.announce(0, client, cx);
    }

    /// What the response says of the client's connection.
    pub(super) fn persistence(&self) -> Persistence {
        match (self.close, self.version) {
            (true, _) => Persistence::Close,
            (false, Version::Http10) => Persistence::KeepHttp10,
            (false, Version::Http11) => Persistence::Keep,
        }
    }

    /// Reads the rest of the request's body as far as it has already come, so that the connection can go on.
    fn discard_body(&mut self, client: &Client, cx: &mut Ctx) {
        if self.close || self.request_body.is_done() {
            return;
        }
        cx.out.clear();
        match self.request_body.feed(client.input_from(self.body_at, &cx.arena), &mut cx.out) {
            Ok(fed) => self.body_at += fed.used,
            Err(_) => self.close = true,
        }
    }
}

/// The request as received, for a TRACE that ends here, without what must not be shown (RFC 9110 section 9.3.8).
fn trace_body(bytes: &[u8], head: &RequestHead) -> Vec<u8> {
    const SECRET: [&[u8]; 3] = [b"authorization", b"cookie", b"proxy-authorization"];
    let mut body = Vec::new();
    for part in [head.method_text.of(bytes), b" ", head.target.text.of(bytes), b" HTTP/1.1\r\n"] {
        body.extend_from_slice(part);
    }
    for field in &head.fields {
        let name = field.name.of(bytes);
        if !SECRET.iter().any(|secret| name.eq_ignore_ascii_case(secret)) {
            write::field(&mut body, name, field.value.of(bytes));
        }
    }
    body.extend_from_slice(b"\r\n");
    body
}
