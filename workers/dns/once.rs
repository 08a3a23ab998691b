//! Looking up the names of servers once, for a thread that has nothing else to do meanwhile: when a configuration is
//! read.

use std::time::{Duration, Instant};

use ipc::snapshot::{Dns, Target};
use mio::{Events, Poll, Token};

use crate::dns::discover::{Discovered, Discovery, HOSTS_AT_ONCE};
use crate::dns::lookup::DnsError;
use crate::dns::room;
use crate::dns::sockets::{Resolving, Wire};
use crate::slab::Key;

/// Names asked for at the same time.
const AT_ONCE: usize = 64;
const _: () = assert!(AT_ONCE * HOSTS_AT_ONCE <= room::ALL / 2);
/// Events taken at a time.
const EVENTS: usize = 64;

/// What each of `targets` stands for, in their order. Takes no longer than `within`: what is not known by then is
/// [`DnsError::TooLong`]. Times in the answers are milliseconds from the call on.
#[must_use]
pub fn discover(settings: &Dns, targets: &[Target], within: Duration) -> Vec<Result<Discovered, DnsError>> {
    let mut results: Vec<Option<Result<Discovered, DnsError>>> = targets.iter().map(|_| None).collect();
    let began = Instant::now();
    let now_ms = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let resolving = Poll::new().and_then(|poll| Ok((poll.registry().try_clone()?, poll)));
    if let Ok((registry, mut poll)) = resolving {
        let mut resolving: Resolving<(usize, u16)> = Resolving::new(settings.clone(), registry, token);
        let mut events = Events::with_capacity(EVENTS);
        let mut running: Vec<Option<Discovery>> = targets.iter().map(|_| None).collect();
        let (mut next, mut open) = (0, 0);
        loop {
            while open < AT_ONCE && next < targets.len() {
                let at = next;
                next += 1;
                let (discovery, progress) =
                    Discovery::begin(&targets[at], resolving.resolver(), &|part| (at, part), now_ms());
                open += usize::from(progress.is_none());
                (running[at], results[at]) = (Some(discovery), progress);
            }
            resolving.flush(now_ms());
            while let Some(((at, part), result)) = resolving.next_finished() {
                let Some(discovery) = running[at].as_mut().filter(|_| results[at].is_none()) else { continue };
                results[at] = discovery.answer(part, result, resolving.resolver(), &|part| (at, part), now_ms());
                open -= usize::from(results[at].is_some());
                resolving.flush(now_ms());
            }
            let Some(left) = within.checked_sub(began.elapsed()) else { break };
            if open == 0 {
                if next == targets.len() {
                    break;
                }
                continue;
            }
            let due = resolving.next_deadline().unwrap_or(u64::MAX).saturating_sub(now_ms()).saturating_add(1);
            // Interrupted or not: what is due is done all the same.
            let _ = poll.poll(&mut events, Some(left.min(Duration::from_millis(due))));
            for event in &events {
                resolving.on_event(Key::from_bits(event.token().0 as u64), now_ms());
            }
            resolving.on_time(now_ms());
        }
    }
    results.into_iter().map(|result| result.unwrap_or(Err(DnsError::TooLong))).collect()
}

fn token(key: Key<Wire>) -> Token {
    #[allow(clippy::cast_possible_truncation, reason = "usize has 64 bits on every target with epoll we build for")]
    Token(key.to_bits() as usize)
}
