//! What the access log says of an exchange.

use ipc::snapshot::Mode;

use crate::access_log::Entry;
use crate::client::Client;
use crate::ctx::Clock;
use crate::exchange::Exchange;
use crate::proto::h1::head::{Span, Version};

impl Exchange {
    /// Its line in the access log, but for the reason. `head` is the request's head as received, `backend` the server's name.
    #[must_use]
    pub fn log_entry<'a>(
        &'a self,
        client: &Client,
        head: &'a [u8],
        backend: Option<&'a str>,
        clock: &Clock,
        worker: u16,
    ) -> Entry<'a> {
        let text = |span: Option<Span>| span.map(|span| span.of(head)).filter(|text| !text.is_empty());
        let method = text(self.log.method);
        let version = match self.version {
            Version::Http10 => &b"HTTP/1.0"[..],
            Version::Http11 => b"HTTP/1.1",
        };
        let forward = self.site.snapshot.listeners[usize::from(client.listener)].forward.is_some();
        let mode = if forward { Mode::Forward } else { Mode::Http };
        let (user, rule, _) = self.forward.as_ref().map_or((None, None, None), |forward| forward.logged());
        Entry {
            client: client.peer,
            method,
            target: text(self.log.target),
            version: method.map(|_| version),
            host: text(self.log.host),
            referer: method.and_then(|_| field(head, b"referer")),
            user_agent: method.and_then(|_| field(head, b"user-agent")),
            status: (self.status != 0).then_some(self.status),
            bytes_out: client.written().saturating_sub(self.head_bytes_out()),
            bytes_in: self.body_bytes_in(),
            backend,
            connect_us: self.times.connected_us.checked_sub(self.times.connect_us).filter(|&us| us > 0),
            first_byte_us: self.times.first_us.checked_sub(self.times.began_us),
            total_us: Some(clock.now_us.saturating_sub(self.times.began_us)),
            retries: self.retries(),
            user,
            rule,
            ..Entry::new(mode, clock.unix_ms, worker)
        }
    }
}

/// The value of the first field called `name` (lower case) in a head that was parsed before.
fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|&byte| byte == b'\n').skip(1).find_map(|line| {
        let (start, rest) = line.split_at_checked(name.len())?;
        (start.eq_ignore_ascii_case(name) && rest.first() == Some(&b':')).then(|| rest[1..].trim_ascii())
    })
}
