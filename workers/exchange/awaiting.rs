//! Requests that wait for a descriptor: all are in use, nothing idle is left to give way, and none has been sent.
//!
//! They are served in the order they came, as others end. Their number is bounded by the worker's places.

use crate::exchange::{Exchange, Problem, Step};
use crate::slab::Key;
use crate::worker::Worker;

/// How long a request waits at most.
const WAIT_MS: u64 = 5000;
/// How soon the first of them is looked at again, though nothing has happened.
const LOOK_AGAIN_MS: u64 = 10;

const NO_DESCRIPTOR: Problem = Problem::new(503, "the worker has no descriptor for a connection");

impl Worker {
    /// Lets an exchange wait that needs a new connection to a server.
    pub(super) fn await_descriptor(&mut self, key: Key<Exchange>) -> Step {
        let Some(exchange) = self.exchanges.get_mut(key) else { return Step::Wait };
        // That was none.
        exchange.attempts = exchange.attempts.saturating_sub(1);
        exchange.place = None;
        if exchange.descriptor_by_ms.is_none() {
            exchange.descriptor_by_ms = Some(self.cx.clock.now_ms + WAIT_MS);
            self.cx.given_way.note_waiting();
        }
        self.cx.awaiting.push_back(key);
        Step::Wait
    }

    /// When the first that waits is to be looked at; `None` = nobody waits.
    pub(crate) fn awaiting_at(&self) -> Option<u64> {
        (!self.cx.awaiting.is_empty()).then_some(self.cx.clock.now_ms + LOOK_AGAIN_MS)
    }

    /// Goes on with those that wait, as far as there are descriptors.
    pub(crate) fn serve_awaiting(&mut self) {
        for _ in 0..self.cx.awaiting.len() {
            let Some(key) = self.cx.awaiting.pop_front() else { return };
            let Some(exchange) = self.exchanges.get_mut(key) else { continue };
            let Some(client) = self.clients.get(exchange.client) else { continue };
            let late = exchange.descriptor_by_ms.is_some_and(|by_ms| by_ms <= self.cx.clock.now_ms);
            if late {
                self.carry_out(key, Step::Reply(NO_DESCRIPTOR));
                continue;
            }
            let step = match exchange.rewind(client, &mut self.cx) {
                Ok(()) => self.assign(key),
                Err(step) => step,
            };
            if self.cx.awaiting.back() == Some(&key) {
                // Still none. Those behind it need one too.
                self.cx.awaiting.rotate_right(1);
                return;
            }
            self.carry_out(key, step);
        }
    }
}
