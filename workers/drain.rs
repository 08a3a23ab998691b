//! The end of a worker that is told to finish: requests in progress are answered, idle connections are closed, or
//! given back to the master for another worker, and so are relays.

use std::os::fd::{AsFd, OwnedFd};

use ipc::message::{GivenBack, MAX_CARRIED_BYTES, Task, ToMaster};
use log::{debug, info, warn};

use crate::client::{Client, ClientState};
use crate::ctx::Work;
use crate::slab::Key;
use crate::worker::Worker;

/// Connections given back in one message at most.
const GIVEN_AT_ONCE: usize = 1024;

impl Worker {
    /// Begins to finish: within `timeout_ms`, giving back what can be served elsewhere if `give_back` says so.
    pub(crate) fn begin_drain(&mut self, timeout_ms: u32, give_back: bool) {
        info!("finishing {} connections", self.clients.len());
        self.cx.draining = true;
        self.cx.giving_back = give_back;
        if give_back {
            // Should whoever takes it be killed, the next one takes it from here.
            self.keep_no_listeners();
        } else {
            self.keep_no_longer();
        }
        self.drain_until_ms = self.cx.clock.now_ms + u64::from(timeout_ms);
        let origins = self.cx.origins.take_all();
        for key in self.cx.pools.take_all_idle().into_iter().chain(origins) {
            self.close_upstream(key);
        }
        let keys: Vec<_> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            let Some(client) = self.clients.get(key) else { continue };
            match client.state {
                ClientState::Header if give_back => self.leave(key),
                ClientState::Header => self.read_header(key),
                ClientState::Idle if give_back => self.leave(key),
                // A request that is already here is served; without one this closes the connection.
                ClientState::Idle => self.serve_client(key),
                ClientState::Relay(relay) if give_back => self.cx.work.push_back(Work::Relay(relay)),
                ClientState::Opening(_)
                | ClientState::Delivering(_)
                | ClientState::Relay(_)
                | ClientState::Lingering(_) => {}
                ClientState::Exchange(exchange) => {
                    if let Some(exchange) = self.exchanges.get_mut(exchange)
                        && !give_back
                    {
                        exchange.close_client();
                    }
                }
            }
        }
    }

    /// Lets go of a client between requests: for another worker to serve, or for good.
    pub(crate) fn leave(&mut self, key: Key<Client>) {
        if self.cx.giving_back {
            self.give_back(key);
        } else {
            self.close_client(key);
        }
    }

    /// Lets go of a client without ending its connection. Its record stays as it is: should this process die before
    /// the master has heard, the record says the same.
    pub(crate) fn give_back(&mut self, key: Key<Client>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.socket.release();
        let carried = client.unanswered(&self.cx.arena).to_vec();
        if carried.len() > MAX_CARRIED_BYTES {
            return self.close_client(key);
        }
        let Some(mut client) = self.clients.remove(key) else { return };
        if let Some(kept) = client.kept {
            self.close_upstream(kept);
        }
        self.cx.forget(&mut client.socket);
        client.regain_protection();
        if self.succession.is_succeeded() {
            return self.hand_to_successor(client, carried, None);
        }
        // If it has a slot that is not reused, since this process takes nothing new then.
        self.cx.control.stats().finished.add(1);
        let (own, fds) =
            if client.protected { (None, Vec::new()) } else { (Some(Task::Serve), vec![client.socket.into()]) };
        self.cx.given_back.push((GivenBack { id: client.id, carried, own }, fds));
    }

    /// Tells the master which connections were let go of.
    pub(crate) fn report_given_back(&mut self) {
        while !self.cx.given_back.is_empty() {
            let most = self.cx.descriptors.given_at_once();
            let (mut bytes, mut descriptors) = (0, 0);
            let fits = |(one, own): &&(GivenBack, Vec<OwnedFd>)| {
                bytes += one.carried.len();
                descriptors += own.len();
                bytes <= MAX_CARRIED_BYTES && descriptors <= most
            };
            let given = &mut self.cx.given_back;
            let count = given.iter().take(GIVEN_AT_ONCE).take_while(fits).count().max(1);
            let message = ToMaster::GaveBack(given.iter().take(count).map(|(one, _)| one.clone()).collect());
            let fds: Vec<_> = given.iter().take(count).flat_map(|(_, own)| own.iter().map(AsFd::as_fd)).collect();
            if let Err(error) = self.cx.channel.send(&message, &fds) {
                // Tried again in the next turn; nobody has lost the connections.
                debug!("cannot give connections back: {error}");
                return;
            }
            given.drain(..count);
        }
    }

    /// Whether everything is finished, or the time is over.
    pub(crate) fn is_drained(&self) -> bool {
        let over = self.cx.clock.now_ms >= self.drain_until_ms;
        let empty = self.clients.is_empty() && self.cx.given_back.is_empty() && !self.succession.owes();
        self.cx.draining && (over || empty)
    }

    /// Cuts what is left and reports everything.
    pub(crate) fn end_drain(&mut self) {
        if !self.clients.is_empty() {
            warn!("cutting {} connections that did not finish in time", self.clients.len());
        }
        let keys: Vec<_> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(client) = self.clients.get_mut(key) {
                client.socket.reset();
            }
            self.close_client(key);
        }
        self.report();
        // Of what could be given everything has been.
        self.send_to_successor();
    }
}
