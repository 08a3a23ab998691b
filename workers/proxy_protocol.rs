//! PROXY headers on connections: waiting for one from a proxy in front, and writing one to a server.
//!
//! An incoming header is looked at in the socket and stays there until it is whole, so that a successor finds it as
//! it was. Then what it said is put into shared memory, and only after that its bytes are taken: see
//! [`ipc::origin`]. The format is [`crate::proto::proxy_header`]'s; who may send one was decided by the master.

use ipc::origin::{Ends, Origin};
use ipc::snapshot::{Mode, ProxyVersion};
use ipc::state::Phase;
use log::{debug, warn};

use crate::access_log::Entry;
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Owner};
use crate::io::socket::Io;
use crate::proto::proxy_header::{self, Header, MAX_BYTES};
use crate::slab::Key;
use crate::worker::Worker;

/// Refused headers are warned of no more often than this; the rest is counted.
const WARN_MS: u64 = 1000;

/// How often refused headers were warned of.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    warned_ms: Option<u64>,
    silent: u64,
}

/// What looking at a client's first bytes came to.
enum Look {
    /// They are a whole header.
    Whole(Header),
    /// More must come.
    Wait,
    /// The connection is over, and nothing has come on it.
    Gone,
    /// They are no header.
    Refuse(String),
}

fn look(client: &mut Client, cx: &mut Ctx) -> Look {
    let n = match client.socket.peek(&mut cx.scratch[..MAX_BYTES]) {
        Io::Moved(n) => n,
        Io::Blocked => return Look::Wait,
        Io::Eof | Io::Broken(_) => return Look::Gone,
    };
    match proxy_header::parse(&cx.scratch[..n]) {
        Ok(Some(header)) => Look::Whole(header),
        Ok(None) if client.socket.is_read_closed() => Look::Refuse("it ended within the PROXY header".to_owned()),
        Ok(None) => {
            client.socket.await_more();
            Look::Wait
        }
        Err(error) => Look::Refuse(error.to_string()),
    }
}

/// Publishes what the header says, and only then takes it from the socket. False when that is not possible.
fn take(header: &Header, client: &mut Client, cx: &mut Ctx) -> bool {
    let Ok(length) = u16::try_from(header.length) else { return false };
    // One that was accepted without a master has no place there, and nobody who could look.
    if let Some(cell) = cx.control.origin(client.id) {
        cell.publish(length, header.ends.as_ref());
    }
    if client.socket.recv(&mut cx.scratch[..header.length]) != Io::Moved(header.length) {
        return false;
    }
    client.publish(Phase::Open, cx);
    client.set_origin(header.ends.as_ref());
    true
}

impl Client {
    /// From now on the client's address is the one that a PROXY header says, if it says one.
    pub(crate) fn set_origin(&mut self, ends: Option<&Ends>) {
        if let Some(ends) = ends {
            self.peer = Some(ends.source);
            self.destination = Some(ends.destination);
        }
    }

    /// Takes over what the master knows of where the connection comes from.
    pub(crate) fn begin(&mut self, origin: &Origin) {
        match origin {
            Origin::Direct => {}
            Origin::Awaited => self.state = ClientState::Header,
            Origin::Told(ends) => self.set_origin(ends.as_ref()),
        }
    }

    /// Writes the PROXY header that tells a server of this client.
    pub(crate) fn write_proxy_header(&self, version: ProxyVersion, out: &mut Vec<u8>) {
        let destination = self.destination.or_else(|| self.socket.local_addr());
        let ends = self.peer.zip(destination).map(|(source, destination)| Ends { source, destination });
        proxy_header::write(out, version, ends.as_ref());
    }
}

impl Worker {
    /// Begins to wait for a client's PROXY header. The time limit runs from here, whatever comes.
    pub(crate) fn await_header(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let timeouts = &self.cx.site.snapshot.listeners[usize::from(client.listener)].timeouts;
        let due_ms = self.cx.clock.now_ms + u64::from(timeouts.header_ms);
        self.cx.arm(&mut client.socket, Owner::Client(key), due_ms);
        self.read_header(key);
    }

    /// Reads the header if it has come whole, and goes on to what the listener speaks.
    pub(crate) fn read_header(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        match look(client, &mut self.cx) {
            Look::Whole(header) => {
                if !take(&header, client, &mut self.cx) {
                    return self.refuse_header(key, "the PROXY header could not be read in one piece");
                }
                client.state = ClientState::Idle;
                client.socket.deadline.due_ms = u64::MAX;
                let listener = &self.cx.site.snapshot.listeners[usize::from(client.listener)];
                match (listener.mode, listener.to) {
                    (Mode::Http | Mode::Forward, _) => self.serve_client(key),
                    (Mode::Tcp, Some(group)) => self.begin_relay(key, group),
                    (Mode::Tcp, None) => self.close_client(key),
                }
            }
            Look::Wait if self.cx.draining => self.leave(key),
            Look::Wait => {
                self.cx.watch(&mut client.socket, Owner::Client(key));
                if client.socket.is_gone() {
                    self.close_client(key);
                }
            }
            Look::Gone => {
                debug!("a proxy closed its connection without a PROXY header");
                self.close_client(key);
            }
            Look::Refuse(reason) => self.refuse_header(key, &reason),
        }
    }

    /// Resets a connection that did not begin as it must, and says why.
    pub(crate) fn refuse_header(&mut self, key: Key<Client>, reason: &str) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let mode = self.cx.site.snapshot.listeners[usize::from(client.listener)].mode;
        let now_ms = self.cx.clock.now_ms;
        if let Some(log) = &mut self.cx.log {
            let entry = Entry {
                client: client.peer,
                reason: Some(reason),
                ..Entry::new(mode, self.cx.clock.unix_ms, self.cx.index)
            };
            log.record(&entry, now_ms);
        }
        let refusals = &mut self.header_refusals;
        if refusals.warned_ms.is_none_or(|warned_ms| now_ms >= warned_ms + WARN_MS) {
            let from = client.peer.map_or_else(|| "a Unix client".to_owned(), |peer| peer.to_string());
            let others = match std::mem::take(&mut refusals.silent) {
                0 => String::new(),
                n => format!(" (and {n} more since the last warning)"),
            };
            warn!("connection from {from} refused: {reason}; `proxy_protocol` asks for a PROXY header from it{others}");
            refusals.warned_ms = Some(now_ms);
        } else {
            refusals.silent += 1;
        }
        client.socket.reset();
        self.close_client(key);
    }
}
