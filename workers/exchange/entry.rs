//! What the access log says of an exchange.

use ipc::shm::Arena;
use ipc::snapshot::Mode;

use crate::access_log::Entry;
use crate::backend::pool::Pools;
use crate::client::Client;
use crate::ctx::Clock;
use crate::exchange::Exchange;
use crate::proto::h1::head::{Span, Version};

impl Exchange {
    /// The request's head as received.
    #[must_use]
    pub fn head<'a>(&'a self, client: &'a Client, arena: &Arena) -> &'a [u8] {
        if let Some(lost) = &self.lost {
            return lost;
        }
        let (start, end) = self.head_range();
        client.input_from(start, arena).get(..end - start).unwrap_or(&[])
    }

    /// The name of the server in use, or used last.
    #[must_use]
    pub fn server_name<'a>(&'a self, pools: &'a Pools) -> Option<&'a str> {
        self.place.map(|place| pools.server(place).name.as_str()).or(self.gone_server.as_deref())
    }

    /// Where a target is that the client has named.
    #[must_use]
    pub fn target_address(&self) -> Option<String> {
        self.forward.as_ref().and_then(|forward| forward.logged().2).map(|to| to.to_string())
    }

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
        // The lines of a head that was refused may be anything.
        let fields = Some(head).filter(|_| method.is_some() && self.log.whole);
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
            version: self.log.version.then_some(version),
            host: text(self.log.host),
            referer: fields.and_then(|head| field(head, b"referer")),
            user_agent: fields.and_then(|head| field(head, b"user-agent")),
            status: (self.status != 0).then_some(self.status),
            bytes_out: client.written().saturating_sub(self.head_bytes_out()),
            bytes_in: self.body_bytes_in(),
            backend,
            // Where no connection was asked for, both are 0.
            connect_us: self
                .times
                .connected_us
                .checked_sub(self.times.connect_us)
                .filter(|_| self.times.connected_us > 0),
            // When a lost one began, its worker knew.
            first_byte_us: self.times.first_us.checked_sub(self.times.began_us).filter(|_| self.lost.is_none()),
            total_us: Some(clock.now_us.saturating_sub(self.times.began_us)).filter(|_| self.lost.is_none()),
            retries: self.retries(),
            user,
            rule,
            ..Entry::new(mode, clock.unix_ms, worker)
        }
    }
}

/// The value of the first field called `name` (lower case) in a head that was parsed before.
fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let lines = head.split(|&byte| byte == b'\n').skip(1).take_while(|line| *line != b"\r");
    lines.into_iter().find_map(|line| {
        let (start, rest) = line.split_at_checked(name.len())?;
        (start.eq_ignore_ascii_case(name) && rest.first() == Some(&b':')).then(|| rest[1..].trim_ascii())
    })
}
