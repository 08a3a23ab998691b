//! The end of a worker that is told to finish: requests in progress are answered, idle connections are closed, or
//! given back to the master for another worker, and so are relays.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc::message::{GivenBack, MAX_CARRIED_BYTES, Task, ToMaster};
use ipc::state::{Phase, Record};
use log::{debug, info, warn};

use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Work};
use crate::orphan::Given;
use crate::slab::Key;
use crate::worker::Worker;

/// Connections given back in one message at most.
const GIVEN_AT_ONCE: usize = 1024;

/// How long to wait before looking again for what the master has passed on.
pub(crate) const RETURNED_MS: u64 = 10;

/// A connection given back to the master. It is kept until the master is about to pass it on: if that is killed before,
/// the next one gets it from here.
#[derive(Debug)]
pub struct Returned {
    /// What the master is told.
    pub(crate) report: GivenBack,
    /// What another master would be given. Its descriptors go to this one, too, where the report says that it has none.
    pub(crate) given: Given,
}

impl Returned {
    /// The client's.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.given.1.first().map(AsFd::as_fd)
    }

    fn sent(&self) -> &[OwnedFd] {
        if self.report.own.is_some() { &self.given.1 } else { &[] }
    }
}

impl Worker {
    /// Begins to finish: within `timeout_ms`, giving back what can be served elsewhere if `give_back` says so.
    pub(crate) fn begin_drain(&mut self, timeout_ms: u32, give_back: bool) {
        info!("finishing {} connections", self.clients.len());
        self.cx.draining = true;
        self.cx.giving_back = give_back;
        // Should whoever takes what is given be killed, the next one takes it from here.
        if !give_back {
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
                ClientState::Opening(_) | ClientState::Relay(_) | ClientState::Lingering(_) => {}
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
        self.cx.deregister(&mut client.socket);
        self.cx.forget(&mut client.socket);
        client.regain_protection();
        let own = (!client.protected).then_some(Task::Serve);
        self.let_go(client, carried, own, None);
    }

    /// Puts a client's connection, already forgotten, among those for the successor or the master. `own` is its task
    /// where the master has no copies; `relay` its task and the descriptors behind the client's where it is one.
    pub(crate) fn let_go(
        &mut self,
        client: Client,
        carried: Vec<u8>,
        own: Option<Task>,
        relay: Option<(Task, Vec<OwnedFd>)>,
    ) {
        let id = client.id;
        let Some(given) = self.given(client, carried.clone(), relay) else { return self.cx.report_finished(id) };
        if self.succession.is_succeeded() {
            return self.succession.give(given);
        }
        // If it has a slot that is not reused, since this process takes nothing new then.
        self.cx.control.stats().finished.add(1);
        self.cx.given_back.push(Returned { report: GivenBack { id, carried, own }, given });
    }

    /// Tells the master which connections were let go of.
    pub(crate) fn report_given_back(&mut self) {
        while !self.cx.given_back.is_empty() {
            let most = self.cx.descriptors.given_at_once();
            let (mut bytes, mut descriptors) = (0, 0);
            let fits = |one: &&Returned| {
                bytes += one.report.carried.len() + one.report.own.as_ref().map_or(0, Task::carried_bytes);
                descriptors += one.sent().len();
                bytes <= MAX_CARRIED_BYTES && descriptors <= most
            };
            let given = &mut self.cx.given_back;
            let count = given.iter().take(GIVEN_AT_ONCE).take_while(fits).count().max(1);
            let message = ToMaster::GaveBack(given.iter().take(count).map(|one| one.report.clone()).collect());
            let fds: Vec<_> = given.iter().take(count).flat_map(|one| one.sent().iter().map(AsFd::as_fd)).collect();
            if let Err(error) = self.cx.channel.send(&message, &fds) {
                // Tried again in the next turn; nobody has lost the connections.
                debug!("cannot give connections back: {error}");
                return;
            }
            self.cx.returned.extend(given.drain(..count));
        }
    }

    /// Lets go of those that the master has passed on.
    pub(crate) fn forget_passed_on(&mut self) {
        while self.cx.returned.front().is_some_and(|one| self.cx.is_passed_on(one.report.id)) {
            self.cx.returned.pop_front();
        }
    }

    /// The master has given the number of a connection to another: it has passed that one on.
    pub(crate) fn forget_returned(&mut self, id: u32) {
        self.cx.returned.retain(|one| one.report.id != id);
    }

    /// The master is dead: what it has not passed on is for the next.
    pub(crate) fn take_returned(&mut self) {
        let left = self.cx.given_back.drain(..).chain(self.cx.returned.drain(..)).collect::<Vec<_>>();
        for one in left {
            if !self.cx.is_passed_on(one.report.id) {
                self.succession.give(one.given);
            }
        }
    }

    /// Whether everything is finished, or the time is over.
    pub(crate) fn is_drained(&self) -> bool {
        let over = self.cx.clock.now_ms >= self.drain_until_ms;
        let empty = self.clients.is_empty()
            && self.cx.given_back.is_empty()
            && self.cx.returned.is_empty()
            && !self.succession.owes();
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

impl Ctx {
    /// Whether the master has said that a connection given back is its own alone.
    pub(crate) fn is_passed_on(&self, id: u32) -> bool {
        let image = self.control.record(id).and_then(Record::read);
        image.is_none_or(|image| matches!(image.phase, Phase::Done | Phase::Passed))
    }
}
