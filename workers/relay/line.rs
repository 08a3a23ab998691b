//! What the access log says of a relay: one line, at its end, with the bytes and the time of all of it.
//!
//! A relay of a TCP listener knows everything itself. A tunnel that began as a request brings along what its line is to
//! say of that ([`Opened`]), one that a forward listener allowed what it is to say of that ([`Pass`]). Of a relay that
//! another worker began only that is known which the kernel tells.

use ipc::snapshot::Mode;
use ipc::tcp_info;

use crate::access_log::Entry;
use crate::client::Client;
use crate::exchange::Reason;
use crate::forward::Pass;
use crate::relay::Relay;
use crate::worker::Worker;

/// Why the line of a tunnel ends where its connections go on.
const GIVEN: Reason = Reason::Text("given to another worker, which logs what follows");

/// The longest text that is kept of a request: more is not shown of any.
const MAX_TEXT: usize = 4096;

/// What the line of a tunnel says of the request that it began as.
#[derive(Debug)]
pub(crate) struct Opened {
    mode: Mode,
    method: Option<Box<[u8]>>,
    target: Option<Box<[u8]>>,
    version: Option<Box<[u8]>>,
    host: Option<Box<[u8]>>,
    referer: Option<Box<[u8]>>,
    user_agent: Option<Box<[u8]>>,
    status: Option<u16>,
    bytes_in: u64,
    backend: Option<Box<str>>,
    connect_us: Option<u64>,
    first_byte_us: Option<u64>,
    began_us: u64,
    retries: u32,
    user: Option<Box<str>>,
    rule: Option<Box<str>>,
}

impl Opened {
    /// From the line that the request would have at this moment.
    pub(crate) fn new(entry: &Entry<'_>, began_us: u64) -> Box<Opened> {
        let bytes = |text: Option<&[u8]>| text.map(|text| text[..text.len().min(MAX_TEXT + 1)].into());
        Box::new(Opened {
            mode: entry.mode,
            method: bytes(entry.method),
            target: bytes(entry.target),
            version: bytes(entry.version),
            host: bytes(entry.host),
            referer: bytes(entry.referer),
            user_agent: bytes(entry.user_agent),
            status: entry.status,
            bytes_in: entry.bytes_in,
            backend: entry.backend.map(Into::into),
            connect_us: entry.connect_us,
            first_byte_us: entry.first_byte_us,
            began_us,
            retries: entry.retries,
            user: entry.user.map(Into::into),
            rule: entry.rule.map(Into::into),
        })
    }

    fn entry(&self) -> Entry<'_> {
        Entry {
            method: self.method.as_deref(),
            target: self.target.as_deref(),
            version: self.version.as_deref(),
            host: self.host.as_deref(),
            referer: self.referer.as_deref(),
            user_agent: self.user_agent.as_deref(),
            status: self.status,
            bytes_in: self.bytes_in,
            backend: self.backend.as_deref(),
            connect_us: self.connect_us,
            first_byte_us: self.first_byte_us,
            retries: self.retries,
            user: self.user.as_deref(),
            rule: self.rule.as_deref(),
            ..Entry::new(self.mode, 0, 0)
        }
    }
}

impl Pass {
    fn entry<'a>(&'a self, address: Option<&'a str>) -> Entry<'a> {
        let text = |text: &'a str| Some(text.as_bytes()).filter(|text| !text.is_empty());
        Entry {
            method: self.spoken.and_then(|spoken| text(spoken.name())),
            target: text(&self.target),
            status: Some(200),
            user: self.user.as_deref(),
            rule: self.rule.as_deref(),
            backend: address,
            connect_us: self.connected_us.checked_sub(self.began_us),
            ..Entry::new(Mode::Forward, 0, 0)
        }
    }
}

impl Relay {
    /// Counts what went through a relay of a TCP listener before this worker took it over, as the kernel counted it at
    /// the client's socket. What lies in a pipe has been taken from there, and is counted when it gets further.
    pub(super) fn count_former(&mut self, client: &Client) {
        if !self.tcp {
            return;
        }
        if let Ok(counters) = tcp_info::counters(&client.socket) {
            let held = self.to_server.pipe.as_ref().map_or(0, |(_, held)| *held as u64);
            self.to_server.moved = counters.consumed.saturating_sub(held);
            self.to_client.moved = counters.written;
        }
    }

    /// Connections to servers tried before the one in use; of none in use, before the last.
    fn retries(&self) -> u32 {
        let others = self.tried.len().saturating_sub(usize::from(self.upstream.is_none()));
        u32::try_from(others).unwrap_or(u32::MAX)
    }
}

impl Worker {
    /// The line of a relay that has ended.
    pub(super) fn log_relay(&mut self, relay: &Relay, reason: Option<Reason>) {
        let Some(log) = &mut self.cx.log else { return };
        let clock = &self.cx.clock;
        let address = relay.pass.as_ref().and_then(|pass| pass.address).map(|address| address.to_string());
        let (entry, began_us) = match (&relay.opened, &relay.pass) {
            (Some(opened), _) => (opened.entry(), opened.began_us),
            (None, Some(pass)) => (pass.entry(address.as_deref()), pass.began_us),
            (None, None) => {
                let server = relay.place.map(|place| self.cx.pools.server(place).name.as_str());
                let entry = Entry {
                    status: (!relay.tcp).then_some(101),
                    backend: server.or(relay.gone_server.as_deref()),
                    connect_us: relay.connected_us.checked_sub(relay.began_us),
                    retries: relay.retries(),
                    ..Entry::new(if relay.tcp { Mode::Tcp } else { Mode::Http }, 0, 0)
                };
                (entry, relay.began_us)
            }
        };
        // Of tunnels that the rules allowed each worker tells the next.
        let since_when = !relay.adopted || relay.pass.as_ref().is_some_and(|pass| pass.spoken.is_some());
        let reason = reason.map(|reason| reason.to_string());
        let entry = Entry {
            status: if relay.delivery.is_some() && reason.is_some() { Some(502) } else { entry.status },
            unix_ms: clock.unix_ms,
            worker: self.cx.index,
            client: self.clients.get(relay.client).and_then(|client| client.peer),
            bytes_in: entry.bytes_in + relay.to_server.moved,
            bytes_out: relay.to_client.moved.saturating_sub(relay.own_bytes),
            connect_us: entry.connect_us.filter(|_| since_when),
            total_us: Some(clock.now_us.saturating_sub(began_us)).filter(|_| since_when),
            reason: reason.as_deref(),
            ..entry
        };
        log.record(&entry, clock.now_ms);
    }

    /// The line of a relay that another worker is to go on with. Where the kernel counts its bytes, as it does of a
    /// connection of TCP and of an answer that goes elsewhere, the other logs them all, and there is none here.
    pub(super) fn log_given(&mut self, relay: &Relay) {
        let uncounted = self.clients.get(relay.client).is_some_and(|client| client.uncounted);
        if relay.delivery.is_none() && (!relay.tcp || uncounted) {
            self.log_relay(relay, Some(GIVEN));
        }
    }
}
