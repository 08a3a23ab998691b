//! What gives way when descriptors or places run short: first the connections to servers that nobody uses, then the
//! client connections that have been idle longest. Never one with a request in progress, and never one on which
//! something has come.
//!
//! While there is room it costs nothing: who has been idle longest is found by a look at all connections, once for a
//! whole batch that is closed then.

use log::warn;
use rustix::io::Errno;

use crate::backend::{Upstream, UpstreamState};
use crate::client::{Client, ClientState};
use crate::ctx::{Ctx, Work};
use crate::slab::Key;
use crate::worker::Worker;

/// Connections closed at a time, at least, when descriptors are short: looking for them costs more than closing them.
pub(crate) const BATCH: usize = 64;
/// A client that has been idle for less than this does not give way: its request may be on its way.
const GRACE_MS: u64 = 500;
/// When nothing idle was found, the next look is taken so much later.
const LOOK_AGAIN_MS: u64 = 10;
/// Warnings come no more often.
const WARN_MS: u64 = 1000;

/// Whether a call failed for want of something that giving way can free, and by nobody's fault but ours.
#[must_use]
pub fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

/// The descriptors this process may have, as far as they are shared out here.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors {
    /// Those for sockets and pipes.
    most: usize,
    /// Those of them that a message from the master may bring.
    batch: usize,
}

impl Descriptors {
    /// Under a limit of `nofile` open files.
    #[must_use]
    pub fn new(nofile: u64) -> Descriptors {
        let whole = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Descriptors {
            most: whole(nofile.saturating_sub(ipc::descriptors::OVERHEAD)),
            batch: whole(ipc::descriptors::batch(nofile)),
        }
    }

    /// Those that go with one message to the master at most, which may be short of them: at least one connection's.
    #[must_use]
    pub fn given_at_once(&self) -> usize {
        (self.batch / 2).max(4)
    }
}

/// What was closed since the last warning.
#[derive(Debug, Clone, Copy, Default)]
pub struct GivenWay {
    clients: u64,
    upstreams: u64,
    waiting: u64,
    warned_ms: Option<u64>,
    /// Nothing idle was found: nothing is looked for before then.
    look_again_ms: u64,
}

impl GivenWay {
    /// When the next warning is due; `None` while there is nothing to say.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        (self.clients + self.upstreams + self.waiting > 0)
            .then(|| self.warned_ms.map_or(0, |warned_ms| warned_ms + WARN_MS))
    }

    /// A request has to wait for a descriptor.
    pub fn note_waiting(&mut self) {
        self.waiting += 1;
    }
}

impl Ctx {
    /// Descriptors that sockets and pipes may still take without taking those of the master's next message.
    #[must_use]
    pub fn descriptors_left(&self) -> usize {
        let Descriptors { most, batch } = self.descriptors;
        most.saturating_sub(batch + self.kept + self.sockets + self.pipes.descriptors() + self.dns.descriptors())
    }

    /// Whether a quarter of the descriptors is left, so that what might help need not give way to what is needed.
    #[must_use]
    pub fn has_descriptors_to_spare(&self) -> bool {
        self.descriptors_left() > self.descriptors.most / 4
    }

    /// Whether a message from the master can be received without losing what comes with it.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        let Descriptors { most, batch } = self.descriptors;
        // Where the limit is so low that not even this fits, nothing is gained by waiting.
        self.sockets == 0
            || self.sockets + self.kept + self.pipes.descriptors() + self.dns.descriptors() + batch <= most
    }

    /// Says how much has given way, once a second at most.
    pub fn warn_of_shortage(&mut self) {
        let now_ms = self.clock.now_ms;
        if self.given_way.due_ms().is_none_or(|due_ms| due_ms > now_ms) {
            return;
        }
        let GivenWay { clients, upstreams, waiting, .. } = self.given_way;
        warn!(
            "room is short: closed {clients} client connections that were idle longest, and {upstreams} idle \
             connections to servers; {waiting} requests had to wait for a descriptor"
        );
        self.given_way = GivenWay { clients: 0, upstreams: 0, waiting: 0, warned_ms: Some(now_ms), ..self.given_way };
    }
}

/// Up to `wanted` of those that have been idle, each with the time since when: the earliest.
fn oldest<T>(mut idle: Vec<(u64, Key<T>)>, wanted: usize) -> Vec<(u64, Key<T>)> {
    if wanted < idle.len() {
        idle.select_nth_unstable_by_key(wanted, |&(since_ms, _)| since_ms);
        idle.truncate(wanted);
    }
    idle
}

impl Worker {
    /// Sees to it that a connection can be opened without taking the descriptors of the master's next message.
    pub(crate) fn make_room(&mut self) {
        if self.cx.descriptors_left() == 0 {
            self.free_descriptors(BATCH);
        }
    }

    /// Frees about `wanted` descriptors, if there is anything idle; how many were freed.
    pub(crate) fn free_descriptors(&mut self, wanted: usize) -> usize {
        if self.cx.clock.now_ms < self.cx.given_way.look_again_ms {
            return 0;
        }
        let pipes = self.cx.pipes.trim(wanted.div_ceil(2));
        let mut freed = 2 * pipes;
        if freed < wanted {
            freed += self.close_idle_upstreams(wanted - freed);
        }
        if freed < wanted {
            freed += self.give_way(wanted - freed);
        }
        if freed == 0 {
            self.cx.given_way.look_again_ms = self.cx.clock.now_ms + LOOK_AGAIN_MS;
        }
        freed
    }

    /// Closes up to `wanted` connections to servers, those that have been idle longest; how many were closed.
    fn close_idle_upstreams(&mut self, wanted: usize) -> usize {
        let pools = &self.cx.pools;
        let since = |upstream: &Upstream| {
            let idle_ms = upstream.place.map_or(0, |place| pools.settings(place.group()).keepalive.idle_timeout_ms);
            upstream.socket.deadline.due_ms.saturating_sub(idle_ms.into())
        };
        let idle = self.upstreams.iter().filter(|(_, upstream)| upstream.state == UpstreamState::Idle);
        let idle = oldest(idle.map(|(key, upstream)| (since(upstream), key)).collect(), wanted);
        for &(_, key) in &idle {
            self.close_upstream(key);
        }
        self.cx.given_way.upstreams += idle.len() as u64;
        idle.len()
    }

    /// The master has no room for those who wait: closes up to `wanted` connections, unless as many have ended that
    /// it has not been told of.
    pub(crate) fn on_plea(&mut self, wanted: usize) {
        self.cx.report_at_once();
        self.give_way(wanted.saturating_sub(self.cx.finished.len()));
    }

    /// Closes up to `wanted` client connections, those that have been idle longest; how many were closed.
    pub(crate) fn give_way(&mut self, wanted: usize) -> usize {
        let idle = self.longest_idle(wanted, GRACE_MS);
        for &key in &idle {
            self.close_client(key);
        }
        self.cx.given_way.clients += idle.len() as u64;
        if !idle.is_empty() {
            self.cx.report_at_once();
        }
        idle.len()
    }

    /// Gives up to `wanted` client connections back, those that have been idle longest: other workers are faster.
    pub(crate) fn ease(&mut self, wanted: usize) {
        if self.cx.draining {
            return;
        }
        for key in self.longest_idle(wanted, 0) {
            self.give_back(key);
        }
    }

    /// Up to `wanted` client connections, those that have been idle longest, and for `at_least_ms`. None on which
    /// something has come.
    fn longest_idle(&mut self, wanted: usize, at_least_ms: u64) -> Vec<Key<Client>> {
        let listeners = &self.cx.site.snapshot.listeners;
        let since = |client: &Client| {
            let idle_ms = listeners.get(usize::from(client.listener)).map_or(0, |listener| listener.timeouts.idle_ms);
            client.socket.deadline.due_ms.saturating_sub(idle_ms.into())
        };
        let is_idle = |client: &Client| {
            client.state == ClientState::Idle && client.input.is_none() && !client.socket.has_been_told_of_input()
        };
        let idle = self.clients.iter().filter(|(_, client)| is_idle(client));
        let latest_ms = self.cx.clock.now_ms.saturating_sub(at_least_ms);
        let idle = idle.map(|(key, client)| (since(client), key)).filter(|&(since_ms, _)| since_ms <= latest_ms);
        let mut keys: Vec<_> = oldest(idle.collect(), wanted).into_iter().map(|(_, key)| key).collect();
        keys.retain(|&key| {
            let has_input = self.clients.get_mut(key).is_none_or(|client| client.socket.has_input());
            if has_input {
                // A request has come of which no event has told yet.
                self.cx.work.push_back(Work::Client(key));
            }
            !has_input
        });
        keys
    }
}
