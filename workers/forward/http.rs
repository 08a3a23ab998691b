//! HTTP on a forward listener (RFC 9110 sections 7.3.2 and 9.3.6, RFC 9112 section 3.2.2): CONNECT becomes a tunnel, a
//! request in absolute-form goes to the server that it names.
//!
//! Decides what a request wants; finding the way is [`crate::forward::dial`]'s, the rest the exchange's.

use std::net::SocketAddr;

use ipc::forward::Spoken;

use crate::client::Client;
use crate::ctx::{Ctx, Owner};
use crate::exchange::{Exchange, Problem, Step, rewrite};
use crate::forward::Pass;
use crate::forward::dial::{Dial, Dialed, Purpose, Reached, Want};
use crate::forward::origins::{Kept, Put};
use crate::forward::refusal::Refused;
use crate::forward::rules::Way;
use crate::proto::endpoint::{Endpoint, Host};
use crate::proto::h1::field::FieldName;
use crate::proto::h1::head::{Method, RequestHead, Scheme};
use crate::proto::h1::target::TargetForm;
use crate::slab::Key;
use crate::worker::Worker;

/// What agrees to a tunnel. Neither Content-Length nor Transfer-Encoding may be in it (RFC 9110 section 9.3.6).
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// What a request on a forward listener wants, and how far it has come.
#[derive(Debug)]
pub struct Forwarding {
    /// Where to.
    target: Endpoint,
    /// It is CONNECT.
    tunnel: bool,
    /// It says who the client is in a way that holds for the connection: no other client's request may follow on it.
    private: bool,
    /// Who asks and how that is to be proved.
    credentials: Option<(String, Vec<u8>)>,
    /// The way that is being found.
    dial: Option<Key<Dial>>,
    /// The connection that has been allowed.
    pass: Option<Box<Pass>>,
    /// Why there is none.
    refused: Option<Refused>,
}

impl Forwarding {
    /// Whether the way to the target is still being found.
    #[must_use]
    pub fn is_dialing(&self) -> bool {
        self.dial.is_some()
    }

    /// What it counts against.
    #[must_use]
    pub fn lease(&self) -> crate::forward::uses::Lease {
        self.pass.as_ref().map(|pass| pass.lease).unwrap_or_default()
    }

    /// For the access log: who asked, which rule decided, and where it went.
    #[must_use]
    pub fn logged(&self) -> (Option<&str>, Option<&str>, Option<SocketAddr>) {
        match (&self.pass, &self.refused) {
            (Some(pass), _) => (pass.user.as_deref(), pass.rule.as_deref(), pass.address),
            (None, Some(refused)) => (refused.user.as_deref(), refused.rule.as_deref(), refused.address),
            (None, None) => (None, None, None),
        }
    }
}

/// Reads what a head says of its target. `bytes` are the head's.
fn target_of(head: &RequestHead, bytes: &[u8]) -> Result<Endpoint, Problem> {
    match (head.target.form, head.target.scheme) {
        (TargetForm::Authority, _) | (TargetForm::Absolute, Some(Scheme::Http)) => {}
        (TargetForm::Absolute, Some(Scheme::Https) | None) => {
            return Err(Problem::new(501, "https targets are reached with CONNECT only"));
        }
        (TargetForm::Origin | TargetForm::Asterisk, _) => {
            return Err(Problem::new(400, "a request to a forward proxy names its target in full"));
        }
    }
    let wrong = |_| Problem::new(400, "the target's host is neither a name nor an address in its usual form");
    let authority = head.host.map(|span| span.of(bytes)).unwrap_or_default();
    // With its final dot: behind an address there is none, in whatever protocol.
    let (name, port) = match authority.iter().rposition(|&byte| byte == b':') {
        Some(colon) if authority.last() != Some(&b']') => {
            (&authority[..colon], Endpoint::parse_port(&authority[colon + 1..]).map_err(wrong)?)
        }
        Some(_) | None => (authority, 80),
    };
    Ok(Endpoint { host: Host::parse(name).map_err(wrong)?, port })
}

/// The name and password of a Proxy-Authorization field (RFC 7617); `None` when there is none, or another scheme.
fn credentials_of(head: &RequestHead, bytes: &[u8]) -> Result<Option<(String, Vec<u8>)>, Problem> {
    let is = |name: &[u8]| name.eq_ignore_ascii_case(b"proxy-authorization");
    let mut fields = head.fields.iter().filter(|field| is(field.name.of(bytes)));
    let Some(field) = fields.next() else { return Ok(None) };
    if fields.next().is_some() {
        return Err(Problem::new(400, "two Proxy-Authorization fields"));
    }
    let value = field.value.of(bytes);
    let Some((scheme, rest)) = value.iter().position(|&byte| byte == b' ').map(|at| value.split_at(at)) else {
        return Ok(None);
    };
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Ok(None);
    }
    let malformed = Problem::new(400, "Proxy-Authorization is not as Basic authentication has it");
    let plain = base64(rest.trim_ascii()).ok_or(malformed)?;
    let colon = plain.iter().position(|&byte| byte == b':').ok_or(malformed)?;
    let name = String::from_utf8(plain[..colon].to_vec()).map_err(|_| malformed)?;
    Ok(Some((name, plain[colon + 1..].to_vec())))
}

/// Decodes base64 (RFC 4648 section 4), strictly; `None` when it is none.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| -> Option<u32> {
        Some(u32::from(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    };
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for (index, group) in text.chunks_exact(4).enumerate() {
        let pads = if (index + 1) * 4 == text.len() { padding } else { 0 };
        let mut bits = 0;
        for &byte in &group[..4 - pads] {
            bits = bits << 6 | digit(byte)?;
        }
        bits <<= 6 * pads;
        out.extend_from_slice(&bits.to_be_bytes()[1..4 - pads]);
    }
    Some(out)
}

/// Whether a request has credentials of a scheme that servers take for all that follows on the connection.
fn is_of_connection(head: &RequestHead, bytes: &[u8]) -> bool {
    let is = |name: &[u8]| name.eq_ignore_ascii_case(b"authorization");
    let scheme = |value: &[u8]| {
        // Behind it there is a blank (RFC 9110 section 11.4); some servers take a tab for one.
        let scheme = value.split(|&byte| byte == b' ' || byte == b'\t').next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
    };
    head.fields.iter().any(|field| is(field.name.of(bytes)) && scheme(field.value.of(bytes)))
}

/// Whether a request has come through this proxy before, by its Via (RFC 9110 section 7.6.3).
fn is_loop(head: &RequestHead, bytes: &[u8], via: &[u8]) -> bool {
    let fields = head.fields.iter().filter(|field| field.kind == FieldName::Via);
    let members = fields.flat_map(|field| field.value.of(bytes).split(|&byte| byte == b','));
    let mut names = members.filter_map(|member| {
        let mut words = member.split(|&byte| byte == b' ' || byte == b'\t').filter(|word| !word.is_empty());
        words.next()?;
        words.next()
    });
    names.any(|name| name.eq_ignore_ascii_case(via))
}

impl Exchange {
    /// Takes over what `cx.request` says of the head that is the first `length` unanswered bytes, and what it wants of
    /// a forward proxy.
    ///
    /// # Errors
    /// The answer, when it is ours to give.
    pub fn admit_forward(&mut self, length: usize, client: &Client, cx: &Ctx) -> Result<(), Problem> {
        self.understand(length, client, cx);
        let head = &cx.request;
        let bytes = client.input_from(self.head_range().0, &cx.arena);
        if self.method == Method::Connect && bytes.len() > length {
            // Unless there is a tunnel nobody knows what this is.
            self.close_client();
        }
        let target = target_of(head, bytes)?;
        let credentials = credentials_of(head, bytes)?;
        if is_loop(head, bytes, self.site.via.as_bytes()) {
            self.close_client();
            return Err(Problem::new(502, "the request has come through this proxy before"));
        }
        if self.method == Method::Trace && head.framing.has_content() {
            self.close_client();
            return Err(Problem::new(400, "a TRACE request must not have a body"));
        }
        if rewrite::ends_here(head) {
            return Err(Problem::new(200, "Max-Forwards was 0"));
        }
        self.check_announced(head)?;
        let tunnel = self.method == Method::Connect;
        let private = is_of_connection(head, bytes);
        let forwarding = Forwarding { target, tunnel, private, credentials, dial: None, pass: None, refused: None };
        self.forward = Some(Box::new(forwarding));
        Ok(())
    }
}

impl Worker {
    /// Finds the way to the target of a request. `Ok` = it has its connection.
    pub(crate) fn attach_origin(&mut self, key: Key<Exchange>) -> Result<(), Step> {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Err(Step::Wait) };
        exchange.attempts += 1;
        (exchange.times.connect_us, exchange.times.connected_us) = (self.cx.clock.now_us, 0);
        let (client, method, fresh_only) = (exchange.client, exchange.method, exchange.fresh_only);
        let Some(forwarding) = &mut exchange.forward else { return Err(Step::Wait) };
        if let Some(pass) = forwarding.pass.take() {
            // A kept connection turned out dead.
            self.forward.uses.end(pass.lease);
        }
        let (spoken, way) =
            if forwarding.tunnel { (Spoken::Connect, Way::Connect) } else { (Spoken::Http, Way::Plain) };
        let want = Want {
            spoken,
            target: forwarding.target.clone(),
            way,
            credentials: forwarding.credentials.clone(),
            user: None,
            // What must not be sent twice is not risked on a connection that may be over.
            kept: !forwarding.tunnel && !forwarding.private && !fresh_only && method.is_idempotent(),
            reply_to: None,
        };
        match self.dial(client, Purpose::Exchange(key), want) {
            Ok(dialed) => self.take_dialed(key, dialed),
            Err(dial) => {
                let Some(exchange) = self.exchanges.get_mut(key) else { return Err(Step::Wait) };
                if let Some(forwarding) = &mut exchange.forward {
                    forwarding.dial = Some(dial);
                }
                let due_ms = self.forward.dials.get(dial).map_or(0, Dial::due_ms);
                if let Some(connection) = self.clients.get_mut(client) {
                    self.cx.watch(&mut connection.socket, Owner::Client(client));
                    self.cx.arm(&mut connection.socket, Owner::Client(client), due_ms);
                }
                Err(Step::Wait)
            }
        }
    }

    /// Takes over what a dial came to. `Ok` = the request can be sent.
    fn take_dialed(&mut self, key: Key<Exchange>, dialed: Dialed) -> Result<(), Step> {
        let exchange = self.exchanges.get_mut(key);
        let Some(exchange) = exchange.filter(|exchange| exchange.forward.is_some()) else {
            if let Ok(Reached { upstream, pass }) = dialed {
                self.forward.uses.end(pass.lease);
                self.close_upstream(upstream);
            }
            return Err(Step::Wait);
        };
        let Some(forwarding) = &mut exchange.forward else { return Err(Step::Wait) };
        forwarding.dial = None;
        match dialed {
            Ok(Reached { upstream, pass }) => {
                let tunnel = forwarding.tunnel;
                let connected_us = pass.connected_us;
                forwarding.pass = Some(pass);
                exchange.upstream = Some(upstream);
                if let Some(connection) = self.upstreams.get_mut(upstream) {
                    connection.reused = connection.state == crate::backend::UpstreamState::Idle;
                    connection.state = crate::backend::UpstreamState::Exchange(key);
                    if !connection.reused {
                        exchange.times.connected_us = connected_us;
                    }
                }
                if tunnel {
                    exchange.agree_to_tunnel(ESTABLISHED, &mut self.cx);
                    return Err(Step::Tunnel);
                }
                Ok(())
            }
            Err(refused) => {
                let problem = refused.refusal.problem();
                forwarding.refused = Some(refused);
                Err(Step::Reply(problem))
            }
        }
    }

    /// The way to the target of a request has been found, or there is none.
    pub(crate) fn exchange_dialed(&mut self, key: Key<Exchange>, dialed: Dialed) {
        let step = match self.take_dialed(key, dialed) {
            Ok(()) => {
                let Some(exchange) = self.exchanges.get_mut(key) else { return };
                let Some(client) = self.clients.get_mut(exchange.client) else { return };
                client.socket.deadline.due_ms = u64::MAX;
                // Others have been parsed since.
                match exchange.rewind(client, &mut self.cx) {
                    Ok(()) => self.begin_request(key),
                    Err(step) => step,
                }
            }
            Err(step) => step,
        };
        self.carry_out(key, step);
    }

    /// The way that is being found for an exchange, if one is.
    pub(crate) fn dial_of(&self, key: Key<Exchange>) -> Option<Key<Dial>> {
        self.exchanges.get(key)?.forward.as_ref()?.dial
    }

    /// Keeps the connection of a request that has been answered; false when it is to be closed.
    pub(crate) fn keep_origin(&mut self, key: Key<Exchange>) -> bool {
        let Some(exchange) = self.exchanges.get(key) else { return false };
        let (Some(upstream), Some(forwarding)) = (exchange.upstream, &exchange.forward) else { return false };
        let Some(pass) = &forwarding.pass else { return false };
        let Some(address) = pass.address else { return false };
        let kept = Kept { upstream, address, aliases: pass.aliases.clone() };
        let Some(connection) = self.upstreams.get_mut(upstream) else { return false };
        let clean = !connection.socket.is_gone()
            && !connection.socket.is_read_closed()
            && (!connection.socket.is_readable() || !connection.socket.has_input());
        if !clean || forwarding.private {
            return false;
        }
        let oldest = match self.cx.origins.put(&forwarding.target, kept) {
            Put::Kept => None,
            Put::InPlaceOf(oldest) => Some(oldest),
            Put::Enough => return false,
        };
        connection.state = crate::backend::UpstreamState::Idle;
        let due_ms = self.cx.clock.now_ms + crate::forward::origins::KEEP_MS;
        self.cx.arm(&mut connection.socket, Owner::Upstream(upstream), due_ms);
        if let Some(oldest) = oldest {
            self.close_upstream(oldest);
        }
        true
    }

    /// What a request held here is given back.
    pub(crate) fn drop_forwarding(&mut self, forwarding: Option<Box<Forwarding>>) {
        let Some(forwarding) = forwarding else { return };
        if let Some(dial) = forwarding.dial {
            self.drop_dial(dial);
        }
        if let Some(pass) = forwarding.pass {
            self.forward.uses.end(pass.lease);
        }
    }
}

impl Forwarding {
    /// What becomes the tunnel's.
    pub(crate) fn take_pass(&mut self) -> Option<Box<Pass>> {
        self.pass.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::h1::head::HeadLimits;

    fn parsed(text: &str) -> (RequestHead, Vec<u8>) {
        let mut head = RequestHead::default();
        let limits = HeadLimits { bytes: 16 * 1024, fields: 100, by_target: false };
        assert_eq!(head.parse(text.as_bytes(), &limits), Ok(Some(text.len())), "{text}");
        (head, text.as_bytes().to_vec())
    }

    #[test]
    fn base64_is_read_strictly() {
        for (text, plain) in
            [("", ""), ("YQ==", "a"), ("YWI=", "ab"), ("YWJj", "abc"), ("YW5uOnNlY3JldA==", "ann:secret")]
        {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(plain.as_bytes()), "{text}");
        }
        for text in ["Y", "YQ", "YQ=", "Y===", "====", "YQ==YQ==", "Y Q=", "YQ==\n", "_-__"] {
            assert_eq!(base64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn targets_come_from_the_request_line() {
        let target = |line: &str, host: &str| {
            let (head, bytes) = parsed(&format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            target_of(&head, &bytes).map(|target| target.to_string()).map_err(|problem| problem.status)
        };
        assert_eq!(target("GET http://A.test/x", "a.test").as_deref(), Ok("a.test:80"));
        assert_eq!(target("GET http://a.test:8080/x", "a.test:8080").as_deref(), Ok("a.test:8080"));
        assert_eq!(target("GET http://[::1]/", "[::1]").as_deref(), Ok("[::1]:80"));
        assert_eq!(target("GET http://[::ffff:7f00:1]:81/", "[::ffff:7f00:1]:81").as_deref(), Ok("127.0.0.1:81"));
        assert_eq!(target("CONNECT a.test:443", "a.test:443").as_deref(), Ok("a.test:443"));
        assert_eq!(target("GET http://2130706433/", "2130706433"), Err(400));
        assert_eq!(target("GET http://0x7f.1/", "0x7f.1"), Err(400));
        assert_eq!(target("GET http://127.0.0.1./", "127.0.0.1."), Err(400));
        assert_eq!(target("CONNECT 127.0.0.1.:443", "127.0.0.1.:443"), Err(400));
        assert_eq!(target("GET http://A.test./x", "a.test.").as_deref(), Ok("a.test:80"));
        assert_eq!(target("CONNECT 127.1:443", "127.1:443"), Err(400));
        assert_eq!(target("GET https://a.test/", "a.test"), Err(501));
        assert_eq!(target("GET /", "a.test"), Err(400));
        assert_eq!(target("OPTIONS *", "a.test"), Err(400));
    }

    #[test]
    fn credentials_are_those_of_basic_authentication() {
        let credentials = |field: &str| {
            let (head, bytes) = parsed(&format!("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{field}\r\n"));
            credentials_of(&head, &bytes).map_err(|problem| problem.status)
        };
        let ann = Some(("ann".to_owned(), b"se:cret".to_vec()));
        assert_eq!(credentials(""), Ok(None));
        assert_eq!(credentials("Proxy-Authorization: Basic YW5uOnNlOmNyZXQ=\r\n"), Ok(ann.clone()));
        assert_eq!(credentials("proxy-authorization: bASIC  YW5uOnNlOmNyZXQ=\r\n"), Ok(ann));
        assert_eq!(credentials("Proxy-Authorization: Bearer abc\r\n"), Ok(None));
        assert_eq!(credentials("Proxy-Authorization: Basic YW5u\r\n"), Err(400), "no colon");
        assert_eq!(credentials("Proxy-Authorization: Basic %%%%\r\n"), Err(400));
        let twice = "Proxy-Authorization: Basic YW5uOnNlOmNyZXQ=\r\n".repeat(2);
        assert_eq!(credentials(&twice), Err(400));
    }

    #[test]
    fn schemes_that_hold_for_the_connection_are_known() {
        let private = |field: &str| {
            let (head, bytes) = parsed(&format!("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{field}\r\n"));
            is_of_connection(&head, &bytes)
        };
        assert!(private("Authorization: NTLM TlRM\r\n") && private("authorization: negotiate YII=\r\n"));
        assert!(private("Authorization: NTLM\tTlRM\r\n") && private("Authorization: Negotiate\r\n"));
        assert!(!private("") && !private("Authorization: Basic YTpi\r\n") && !private("X-Authorization: NTLM x\r\n"));
    }

    #[test]
    fn a_request_that_was_here_before_is_known_by_its_via() {
        let seen = |value: &str| {
            let (head, bytes) = parsed(&format!("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nVia: {value}\r\n\r\n"));
            is_loop(&head, &bytes, b"pointsman-1")
        };
        assert!(seen("1.1 pointsman-1") && seen("1.0 a, 1.1\tPointsman-1 (x)"));
        assert!(!seen("1.1 pointsman-2") && !seen("1.1 pointsman") && !seen("1.1 a (1.1 pointsman-1)"));
    }
}
