//! How connections end here: in order, and so that nobody loses what was sent last.

use ipc::state::Phase;

use crate::backend::{Upstream, upstream};
use crate::client::{Client, ClientState};
use crate::ctx::Owner;
use crate::io::socket::Io;
use crate::slab::Key;
use crate::worker::Worker;

/// Bytes read and dropped from a client that is being let go, and for how long.
const LINGER_BYTES: u32 = 1024 * 1024;
const LINGER_MS: u64 = 5000;

impl Worker {
    /// Lets a client go that may still be sending: everything is said, what still comes is dropped.
    pub(crate) fn linger(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.release_input(&mut self.cx);
        client.publish(Phase::Done, &self.cx);
        self.linger_on(key);
    }

    /// The same for a client whose record says by itself that everything has been said.
    pub(crate) fn linger_on(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.socket.shutdown_write();
        client.state = ClientState::Lingering(LINGER_BYTES);
        self.drop_input(key);
        let Some(client) = self.clients.get_mut(key) else { return };
        let due_ms = self.cx.clock.now_ms + LINGER_MS;
        self.cx.watch(&mut client.socket, Owner::Client(key));
        self.cx.arm(&mut client.socket, Owner::Client(key), due_ms);
    }

    /// Ends the connection of a client that has been answered and is not known to have sent more. If it has, it
    /// lingers: closed with bytes unread the connection would be reset, and the client might lose the answer.
    pub(crate) fn part(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.publish(Phase::Done, &self.cx);
        if !client.socket.is_watched() {
            // Of what has come to one that is not watched only the kernel knows.
            client.socket.look_again();
        }
        match client.socket.recv(&mut self.cx.scratch) {
            Io::Moved(_) => self.linger(key),
            Io::Blocked | Io::Eof | Io::Broken(_) => self.close_client(key),
        }
    }

    /// Reads and drops what a client still sends.
    pub(crate) fn drop_input(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let ClientState::Lingering(mut left) = client.state else { return };
        loop {
            match client.socket.recv(&mut self.cx.scratch) {
                Io::Moved(n) => left = left.saturating_sub(u32::try_from(n).unwrap_or(u32::MAX)),
                Io::Blocked => break,
                Io::Eof | Io::Broken(_) => left = 0,
            }
            if left == 0 {
                return self.close_client(key);
            }
        }
        client.state = ClientState::Lingering(left);
    }

    /// Ends a client's connection: out of epoll, shut down for every holder, closed, reported.
    pub(crate) fn close_client(&mut self, key: Key<Client>) {
        let Some(mut client) = self.clients.remove(key) else { return };
        client.release_input(&mut self.cx);
        if let Some(kept) = client.kept {
            self.close_upstream(kept);
        }
        self.cx.forget(&mut client.socket);
        client.regain_protection();
        client.socket.shutdown_both();
        client.publish(Phase::Done, &self.cx);
        self.cx.report_finished(client.id);
    }

    /// Ends a connection to a server.
    pub(crate) fn close_upstream(&mut self, key: Key<Upstream>) {
        upstream::close(&mut self.upstreams, key, &mut self.cx);
    }
}
