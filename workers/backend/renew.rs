//! What names of servers stand for changes while everything goes on: new addresses join, old ones drain.
//!
//! Part of the worker's loop. It also gives out what the resolver has finished, and keeps its one entry in the timer
//! wheel.

use ipc::channel::SendError;
use ipc::message::ToMaster;
use log::{debug, info, warn};

use crate::backend::names::Waiter;
use crate::ctx::{Ctx, Owner};
use crate::dns::servers::Change;
use crate::worker::Worker;

impl Worker {
    /// Gives out finished lookups, asks for names that are due, and puts into force what came of it. At the end of
    /// every turn; costs nothing while there is nothing to do.
    pub(crate) fn serve_names(&mut self) {
        let cx = &mut self.cx;
        let now_ms = cx.clock.now_ms;
        let mut dials = Vec::new();
        loop {
            cx.dns.flush(now_ms);
            let Some((waiter, result)) = cx.dns.next_finished() else { break };
            match waiter {
                Waiter::Server(question) => cx.names.answer(question, result, cx.dns.resolver(), now_ms),
                Waiter::Dial(dial) => dials.push((dial, result)),
            }
        }
        if cx.names.next_due().is_some_and(|due_ms| due_ms <= now_ms) {
            cx.names.advance(cx.dns.resolver(), now_ms);
            cx.dns.flush(now_ms);
        }
        while let Some(change) = cx.dns.next_change() {
            match change {
                // One worker speaks for all.
                Change::Failing(..) if cx.index == 0 => warn!("{change}"),
                Change::Recovered(_) if cx.index == 0 => info!("{change}"),
                Change::Failing(..) | Change::Recovered(_) => debug!("{change}"),
            }
        }
        let due_ms = [cx.dns.next_deadline(), cx.names.next_due()].into_iter().flatten().min();
        if let Some(due_ms) = due_ms {
            cx.dns_timer = Some(cx.timers.rearm(Owner::DnsTimer.to_bits(), cx.dns_timer, due_ms));
        }
        self.tell_names();
        while let Some(group) = self.cx.names.take_changed() {
            let names = &self.cx.names;
            if let Some((remap, surplus)) = self.cx.pools.renew(group, names, self.cx.seed) {
                self.move_connections(&remap, surplus);
            }
        }
        for (dial, result) in dials {
            self.on_name(dial, result);
        }
    }

    /// Tells the master what names stand for now, so that a worker that takes this one's place knows.
    fn tell_names(&mut self) {
        let Ctx { names, channel, clock, .. } = &mut self.cx;
        while let Some(standing) = names.news(clock.now_ms) {
            match channel.send(&ToMaster::Resolved(standing), &[]) {
                Ok(()) => names.told(),
                // Once there is room.
                Err(SendError::Full) => return,
                // The next master's workers ask for themselves.
                Err(error @ (SendError::Closed | SendError::TooLarge | SendError::Io(_))) => {
                    debug!("cannot report: {error}");
                    names.told();
                }
            }
        }
    }
}
