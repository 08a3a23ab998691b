//! Taking another configuration in place, between two turns of the loop.
//!
//! Requests in progress keep the configuration they began with and are only told where their servers are now; the
//! next request on the same connection goes by the new one. No client's connection is closed, but for relays that
//! the configuration wants cut.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ipc::channel::SendError;
use ipc::message::ToMaster;
use ipc::snapshot::{LogTarget, OnRemoval};
use log::{debug, info};

use crate::access_log::AccessLog;
use crate::backend::names::Names;
use crate::backend::pool::{Pools, Remap};
use crate::backend::{Upstream, UpstreamState};
use crate::ctx::Site;
use crate::exchange::Reason;
use crate::relay::Relay;
use crate::slab::Key;
use crate::worker::Worker;

impl Worker {
    /// Goes by the configuration in `sealed` from now on. `log` is the access log's file, where there is one.
    ///
    /// # Errors
    /// When what the master sent is not what it said.
    pub(crate) fn reload(&mut self, generation: u64, sealed: &OwnedFd, log: Option<OwnedFd>) -> io::Result<()> {
        let snapshot = ipc::sealed::read(sealed)?;
        let wants_log = snapshot.access_log.to != LogTarget::Off;
        if snapshot.generation != generation || wants_log != log.is_some() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the master's new configuration is not as announced",
            ));
        }
        let site = Rc::new(Site::new(snapshot, self.cx.slot_bytes));
        self.cx.dns.resolver().reconfigure(&site.snapshot.dns, self.cx.clock.now_ms);
        self.cx.names = Names::new(&site.snapshot, Some(&self.cx.names), self.cx.index == 0);
        let old_pools = std::mem::replace(&mut self.cx.pools, Pools::new(&site, &self.cx.names, self.cx.seed));
        let former = std::mem::replace(&mut self.cx.site, site);
        let (remap, surplus) = self.cx.pools.inherit(old_pools);
        let removed = self.move_connections(&remap, surplus);
        self.switch_log(&former, log);
        if self.cx.site.snapshot.on_removal == OnRemoval::Cut {
            for key in removed {
                self.end_relay(key, Some(Reason::Text("its listener or backend group was removed")));
            }
        }
        // What is known without asking anybody holds before the next connection is taken up.
        self.serve_names();
        self.cx.reloaded = Some(generation);
        self.acknowledge();
        info!("goes by configuration {generation}");
        Ok(())
    }

    /// Everything in progress finds its server where that is now; idle connections to servers that are gone, and the
    /// `surplus`, are closed. Gives the relays whose listener or group is not configured any more.
    pub(crate) fn move_connections(&mut self, remap: &Remap, surplus: Vec<Key<Upstream>>) -> Vec<Key<Relay>> {
        for (_, upstream) in self.upstreams.iter_mut() {
            upstream.place = upstream.place.and_then(|place| remap.place(place));
        }
        // Those that one client has to itself are in no pool.
        let useless = |key: Key<Upstream>, upstream: &Upstream| {
            upstream.state == UpstreamState::Idle && upstream.place.is_none() && !self.cx.origins.has(key)
        };
        let useless = self.upstreams.iter().filter(|(key, upstream)| useless(*key, upstream)).map(|(key, _)| key);
        for key in useless.chain(surplus).collect::<Vec<_>>() {
            self.close_upstream(key);
        }
        self.move_exchanges(remap);
        self.move_relays(remap)
    }

    /// Requests in progress find their servers where they are now.
    fn move_exchanges(&mut self, remap: &Remap) {
        let listeners = &self.cx.site.snapshot.listeners;
        for (_, exchange) in self.exchanges.iter_mut() {
            remap.tried(exchange.pool, &mut exchange.tried);
            exchange.pool = exchange.pool.and_then(|pool| remap.group(pool));
            (exchange.place, exchange.gone_server) = remap.server(exchange.place, exchange.gone_server.take());
            let client = self.clients.get(exchange.client);
            let removed = client.is_some_and(|client| listeners[usize::from(client.listener)].removed);
            if removed && exchange.is_unanswered() {
                exchange.close_client();
            }
        }
    }

    /// Relays do too. Gives those whose listener or group is not configured any more.
    fn move_relays(&mut self, remap: &Remap) -> Vec<Key<Relay>> {
        let mut removed = Vec::new();
        for (key, relay) in self.relays.iter_mut() {
            let client = self.clients.get(relay.client());
            let listeners = &self.cx.site.snapshot.listeners;
            let listener_gone = client.is_some_and(|client| listeners[usize::from(client.listener)].removed);
            let had_group = relay.pool().is_some();
            relay.relocate(remap);
            let group_gone = match relay.pool() {
                Some(pool) => self.cx.pools.settings(pool).removed,
                None => had_group,
            };
            if listener_gone || group_gone {
                removed.push(key);
            }
        }
        removed
    }

    fn switch_log(&mut self, former: &Site, file: Option<OwnedFd>) {
        let (old, new) = (&former.snapshot.access_log, &self.cx.site.snapshot.access_log);
        let now_ms = self.cx.clock.now_ms;
        self.cx.log = match (self.cx.log.take(), file) {
            (Some(mut log), Some(file)) => {
                if old.to != new.to {
                    log.replace(file, now_ms);
                }
                log.set_format(new.format);
                Some(log)
            }
            (None, Some(file)) => Some(AccessLog::new(file, new.format)),
            (Some(mut log), None) => {
                log.flush(now_ms);
                None
            }
            (None, None) => None,
        };
    }

    /// Tells the master which configuration holds, as soon as its channel has room.
    pub(crate) fn acknowledge(&mut self) {
        let Some(generation) = self.cx.reloaded else { return };
        match self.cx.channel.send(&ToMaster::Reloaded { generation }, &[]) {
            Ok(()) => self.cx.reloaded = None,
            Err(SendError::Full) => {}
            Err(error @ (SendError::Closed | SendError::TooLarge | SendError::Io(_))) => {
                debug!("cannot report: {error}");
                self.cx.reloaded = None;
            }
        }
    }
}
