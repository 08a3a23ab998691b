//! From a parsed request head to an exchange: the checks that need no server, and the route.

use std::rc::Rc;

use ipc::snapshot::GroupId;

use crate::buffer::Pending;
use crate::client::Client;
use crate::ctx::Ctx;
use crate::exchange::rewrite;
use crate::exchange::transfer::{Outgoing, Transfer};
use crate::exchange::wait::Wait;
use crate::exchange::{Exchange, LogSpans, Problem, RequestSide, ResponseSide, Step, Times};
use crate::proto::h1::body::BodyReader;
use crate::proto::h1::head::{BodyFraming, HeadLimits, Method, RequestHead, Scheme, Version};
use crate::proto::path::without_dot_segments;
use crate::slab::Key;

impl Exchange {
    /// An exchange with `client` about nothing yet: what is known of its request must be put in, or it is answered
    /// as it stands (a head that could not be parsed) and the connection ends.
    #[must_use]
    pub fn new(key: Key<Client>, client: &Client, cx: &Ctx) -> Exchange {
        let at = client.input.as_ref().map_or((0, 0), |input| (input.start, input.end));
        let site = Rc::clone(&cx.site);
        let listener = &site.snapshot.listeners[usize::from(client.listener)];
        let (timeouts, abort_on_close) = (listener.timeouts, listener.abort_on_close);
        Exchange {
            abort_on_close,
            client: key,
            upstream: None,
            site,
            group: None,
            pool: None,
            place: None,
            gone_server: None,
            tried: Vec::new(),
            passed_over: 0,
            timeouts,
            method: Method::Other,
            version: Version::Http11,
            head: at,
            body_at: at.1,
            replayable: true,
            client_keep_alive: false,
            trailers_wanted: false,
            upgrade: None,
            request_body: Transfer::none(),
            request_side: RequestSide::Sending,
            to_server: Pending::default(),
            response_body: Transfer::none(),
            response_side: ResponseSide::Head,
            to_client: Pending::default(),
            interim: 0,
            awaits_continue: false,
            spliced: None,
            server_keep_alive: true,
            close: true,
            status: 0,
            head_bytes_out: 0,
            reason: None,
            log: LogSpans::default(),
            times: Times { began_us: cx.clock.now_us, ..Times::default() },
            client_wait: Wait::default(),
            server_wait: Wait::default(),
            fresh_only: false,
            attempts: 0,
            descriptor_by_ms: None,
            understood: false,
            lost: None,
            last_problem: None,
            forward: None,
        }
    }

    /// Takes over what `cx.request` says of the head that is the first `length` unanswered bytes, and decides which
    /// group serves it.
    ///
    /// # Errors
    /// The answer, when it is ours to give.
    pub fn admit(&mut self, length: usize, client: &Client, cx: &Ctx) -> Result<GroupId, Problem> {
        self.understand(length, client, cx);
        let head = &cx.request;
        let to = self.site.snapshot.listeners[usize::from(client.listener)].to;
        let bytes = client.input_from(self.head.0, &cx.arena);
        if self.method == Method::Connect {
            // What follows may be meant for a tunnel.
            self.close = true;
            return Err(Problem::new(405, "CONNECT is not enabled here"));
        }
        if self.method == Method::Trace && head.framing.has_content() {
            self.close = true;
            return Err(Problem::new(400, "a TRACE request must not have a body"));
        }
        if rewrite::ends_here(head) {
            return Err(Problem::new(200, "Max-Forwards was 0"));
        }
        self.check_announced(head)?;
        if head.target.scheme == Some(Scheme::Https) {
            return Err(Problem::new(421, "an https target on a connection without TLS"));
        }
        let group = to.or_else(|| {
            let host = head.host_name.map_or(&b""[..], |span| span.of(bytes));
            self.site.router.find(host, &without_dot_segments(head.target.path(bytes)))
        });
        let Some(group) = group else {
            return Err(Problem::new(404, "no route matches"));
        };
        self.group = Some(group);
        self.pool = cx.pools.id(&self.site, group);
        if let Some(settings) = self.site.snapshot.groups.get(usize::from(group)) {
            self.timeouts = self.timeouts.with(&settings.timeouts);
        }
        Ok(group)
    }

    /// Takes over where the head lies and what it says.
    pub fn understand(&mut self, length: usize, client: &Client, cx: &Ctx) {
        self.head.1 = self.head.0 + length;
        self.body_at = self.head.1;
        self.understood = true;
        // Where nothing is accepted any more, the client should go elsewhere.
        self.close = self.site.snapshot.listeners[usize::from(client.listener)].removed;
        self.take_head(&cx.request, cx);
        self.client_keep_alive = cx.request.keep_alive;
    }

    /// Refuses a body that says itself that it is too large.
    ///
    /// # Errors
    /// The answer.
    pub fn check_announced(&mut self, head: &RequestHead) -> Result<(), Problem> {
        if let (BodyFraming::Length(n), Some(most)) = (head.framing, self.site.snapshot.limits.body_bytes)
            && n > most
        {
            self.close = true;
            return Err(Problem::new(413, "the request body is larger than limits.body"));
        }
        Ok(())
    }

    /// Takes over what the head says.
    pub fn take_head(&mut self, head: &RequestHead, cx: &Ctx) {
        self.method = head.method;
        self.version = head.version;
        self.trailers_wanted = head.te_trailers;
        self.awaits_continue = head.expect_continue;
        self.upgrade = head.upgrade;
        let (reader, outgoing) = match head.framing {
            BodyFraming::None | BodyFraming::Length(_) => (BodyReader::from(head.framing), Outgoing::Plain),
            // Servers did not ask for trailers, and some merge them with the fields: they end here.
            BodyFraming::Chunked => (BodyReader::from(head.framing), Outgoing::Chunked { trailers: false }),
        };
        self.request_body = Transfer::new(reader, outgoing);
        self.request_side = RequestSide::Sending;
        self.note_for_log(head, cx);
    }

    /// Takes over what `cx.request` says of a head that is refused, or has not come whole.
    pub fn take_line(&mut self, cx: &Ctx) {
        self.method = cx.request.method;
        self.version = cx.request.version;
        self.note_for_log(&cx.request, cx);
    }

    fn note_for_log(&mut self, head: &RequestHead, cx: &Ctx) {
        if cx.log.is_some() {
            let (method, target) = (Some(head.method_text), Some(head.target.text));
            self.log = LogSpans { method, target, version: head.has_line, whole: head.len > 0, host: head.host };
        }
    }

    /// Makes the exchange ready to send its request once more, from its first byte. Only while it is replayable.
    ///
    /// # Errors
    /// When it cannot be read again, which does not happen: the same bytes have been read before.
    pub fn rewind(&mut self, client: &Client, cx: &mut Ctx) -> Result<(), Step> {
        let bytes = client.input_from(self.head.0, &cx.arena);
        let length = self.head.1 - self.head.0;
        let limits = HeadLimits { by_target: self.forward.is_some(), ..self.site.head_limits };
        if !matches!(cx.request.parse(&bytes[..length], &limits), Ok(Some(n)) if n == length) {
            self.replayable = false;
            return Err(Step::Reply(Problem::new(500, "the request could not be read once more")));
        }
        self.body_at = self.head.1;
        self.to_server.clear(&mut cx.buffers);
        self.server_keep_alive = true;
        self.close = cx.site.snapshot.listeners[usize::from(client.listener)].removed;
        self.server_wait = Wait::default();
        let head = std::mem::take(&mut cx.request);
        self.take_head(&head, cx);
        cx.request = head;
        Ok(())
    }
}
