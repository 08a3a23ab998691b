//! Answers of our own: errors, and the few requests that end here.

use crate::client::Client;
use crate::ctx::Ctx;
use crate::exchange::{Exchange, Problem, RequestSide, ResponseSide};
use crate::proto::h1::{FieldName, Method, RequestHead, Version};

/// Methods we pass on, for `Allow` (RFC 9110 section 10.2.1).
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";

/// The reason phrase of a status that we answer with.
#[must_use]
pub fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

impl Exchange {
    /// Puts our own answer on the way to the client. The connection goes on only if the whole request has been
    /// read and the client wants to.
    pub fn reply(&mut self, problem: Problem, client: &Client, cx: &mut Ctx) {
        self.discard_body(client, cx);
        self.close |= !self.client_keep_alive || !self.request_body.is_done() || cx.draining;
        self.status = problem.status;
        self.times.first_us = cx.clock.now_us;
        if problem.status != 200 {
            self.reason = Some(problem.reason);
        }
        self.request_side = RequestSide::Refused { at_ms: cx.clock.now_ms };
        self.response_side = ResponseSide::Received;
        cx.out.clear();
        let body = self.write_head(problem.status, client, cx);
        self.head_bytes_out += cx.out.len() as u64;
        if self.method != Method::Head {
            cx.out.extend_from_slice(&body);
        }
        let out = std::mem::take(&mut cx.out);
        self.to_client.push(&out, &mut cx.buffers);
        cx.out = out;
    }

    /// Writes the head to `cx.out` and gives the body.
    fn write_head(&self, status: u16, client: &Client, cx: &mut Ctx) -> Vec<u8> {
        let (kind, body) = match (status, self.method) {
            (200, Method::Trace) => {
                let bytes = client.input_from(self.head.0, &cx.arena);
                ("message/http", trace_body(bytes, &cx.request))
            }
            (200, _) => ("", Vec::new()),
            (status, _) => ("text/plain; charset=utf-8", format!("{status} {}\n", phrase(status)).into_bytes()),
        };
        let out = &mut cx.out;
        let mut line = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        line(&[b"HTTP/1.1 ", status.to_string().as_bytes(), b" ", phrase(status).as_bytes(), b"\r\n"]);
        line(&[b"Date: ", cx.date.http_date(cx.clock.unix_ms / 1000), b"\r\n"]);
        if !kind.is_empty() {
            line(&[b"Content-Type: ", kind.as_bytes(), b"\r\n"]);
        }
        line(&[b"Content-Length: ", body.len().to_string().as_bytes(), b"\r\n"]);
        if status == 405 || (status == 200 && self.method == Method::Options) {
            line(&[b"Allow: ", ALLOW.as_bytes(), b"\r\n"]);
        }
        if self.close {
            line(&[b"Connection: close\r\n"]);
        } else if self.version == Version::Http10 {
            line(&[b"Connection: keep-alive\r\n"]);
        }
        line(&[b"\r\n"]);
        body
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
    let mut body = Vec::new();
    for part in [head.method_span.of(bytes), b" ", head.target.span.of(bytes), b" HTTP/1.1\r\n"] {
        body.extend_from_slice(part);
    }
    for field in &head.fields {
        let name = field.name.of(bytes);
        let secret = matches!(field.kind, FieldName::Authorization | FieldName::Cookie | FieldName::ProxyAuthorization);
        if !secret {
            for part in [name, b": ", field.value.of(bytes), b"\r\n"] {
                body.extend_from_slice(part);
            }
        }
    }
    body.extend_from_slice(b"\r\n");
    body
}
