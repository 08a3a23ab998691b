//! The name of a server to addresses with ports: a host's addresses, or those of all hosts of a service (RFC 2782).
//!
//! Sans-IO like the resolver, whose answers it is given. Bounds: [`ENDPOINTS_MAX`] addresses for one name.

use std::rc::Rc;

use ipc::snapshot::{Endpoint, Target};
use std::net::SocketAddr;

use crate::dns::answer;
use crate::dns::message::Service;
use crate::dns::resolver::{Answer, DnsError, Lacks, Lookup, Resolver};

/// Addresses that one name of a server may stand for.
pub const ENDPOINTS_MAX: usize = 256;
/// The largest share that a server can have.
const WEIGHT_MAX: u32 = 1000;

/// What a name of a server stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// The addresses, each once, those to be used first in front.
    pub endpoints: Vec<Endpoint>,
    /// Until when this holds, by the clock of those who asked.
    pub expires_ms: u64,
    /// Families of which something may be missing, since no server said.
    pub lacks: Lacks,
}

/// A name on its way to its addresses.
#[derive(Debug)]
pub struct Discovery {
    target: Target,
    service: Option<Rc<Answer>>,
    hosts: Vec<(Service, Option<Result<Rc<Answer>, DnsError>>)>,
}

/// What came of a step: nothing yet, or the end.
pub type Progress = Option<Result<Discovered, DnsError>>;

impl Discovery {
    /// Begins. `waiter` says who waits for the answer to the question with a number, which [`Discovery::answer`]
    /// gets with it.
    pub fn begin<W>(
        target: &Target,
        resolver: &mut Resolver<W>,
        waiter: &dyn Fn(u16) -> W,
        now_ms: u64,
    ) -> (Discovery, Progress) {
        let mut discovery = Discovery { target: target.clone(), service: None, hosts: Vec::new() };
        let looked_up = match target {
            Target::Host { name, .. } => resolver.lookup(name, waiter(0), now_ms),
            Target::Service { name } => resolver.lookup_service(name, waiter(0), now_ms),
        };
        let progress = match looked_up {
            Lookup::Ready(answer) => discovery.answer(0, Ok(answer), resolver, waiter, now_ms),
            Lookup::Refused(error) => Some(Err(error)),
            Lookup::Pending => None,
        };
        (discovery, progress)
    }

    /// The answer to question `number`.
    pub fn answer<W>(
        &mut self,
        number: u16,
        result: Result<Rc<Answer>, DnsError>,
        resolver: &mut Resolver<W>,
        waiter: &dyn Fn(u16) -> W,
        now_ms: u64,
    ) -> Progress {
        if let Target::Host { port, .. } = self.target {
            return Some(result.map(|answer| of_host(&answer, port)));
        }
        match number.checked_sub(1) {
            None => match result {
                Ok(service) => {
                    self.ask_hosts(&service, resolver, waiter, now_ms);
                    self.service = Some(service);
                }
                Err(error) => return Some(Err(error)),
            },
            Some(at) => {
                if let Some((_, answer)) = self.hosts.get_mut(usize::from(at)) {
                    *answer = Some(result);
                }
            }
        }
        let known = self.hosts.iter().all(|(_, answer)| answer.is_some());
        self.service.as_ref().filter(|_| known).map(|service| of_service(service, &self.hosts))
    }

    fn ask_hosts<W>(&mut self, service: &Answer, resolver: &mut Resolver<W>, waiter: &dyn Fn(u16) -> W, now_ms: u64) {
        let mut services = service.services.clone();
        // An empty host says that there is no such service here.
        services.retain(|service| !service.host.is_empty());
        services.sort();
        services.truncate(answer::ADDRESSES_MAX);
        for (number, service) in (1..).zip(services) {
            // What a name server says is taken as it is, without a suffix.
            let answer = match resolver.lookup(&format!("{}.", service.host), waiter(number), now_ms) {
                Lookup::Ready(answer) => Some(Ok(answer)),
                Lookup::Refused(error) => Some(Err(error)),
                Lookup::Pending => None,
            };
            self.hosts.push((service, answer));
        }
    }
}

fn of_host(answer: &Answer, port: u16) -> Discovered {
    let endpoint = |ip: &_| Endpoint { address: SocketAddr::new(*ip, port), weight: None, backup: false };
    let endpoints = answer.addresses.iter().take(ENDPOINTS_MAX).map(endpoint).collect();
    Discovered { endpoints, expires_ms: answer.expires_ms, lacks: answer.lacks }
}

/// Hosts of the lowest priority are used first, all others are backups; shares are those of the records.
fn of_service(
    service: &Answer,
    hosts: &[(Service, Option<Result<Rc<Answer>, DnsError>>)],
) -> Result<Discovered, DnsError> {
    let first = hosts.iter().map(|(service, _)| service.priority).min().unwrap_or(0);
    let most = hosts.iter().map(|(service, _)| u32::from(service.weight)).max().unwrap_or(0);
    let mut found: Vec<Endpoint> = Vec::new();
    let (mut expires_ms, mut lacks, mut unknown) = (service.expires_ms, Lacks::default(), None);
    for (service, answer) in hosts {
        let answer = match answer {
            Some(Ok(answer)) => answer,
            Some(Err(error)) if error.is_definite() => continue,
            Some(Err(error)) => {
                unknown = Some(*error);
                continue;
            }
            None => continue,
        };
        expires_ms = expires_ms.min(answer.expires_ms);
        lacks = Lacks { v4: lacks.v4 | answer.lacks.v4, v6: lacks.v6 | answer.lacks.v6 };
        let weight = u32::from(service.weight);
        let weight = if most > WEIGHT_MAX { weight * WEIGHT_MAX / most } else { weight };
        for &ip in &answer.addresses {
            let endpoint = Endpoint {
                address: SocketAddr::new(ip, service.port),
                weight: Some(u16::try_from(weight.max(1)).unwrap_or(u16::MAX)),
                backup: service.priority > first,
            };
            if service.port != 0
                && found.len() < ENDPOINTS_MAX
                && found.iter().all(|one| one.address != endpoint.address)
            {
                found.push(endpoint);
            }
        }
    }
    match unknown {
        Some(error) if found.is_empty() => Err(error),
        None if found.is_empty() => Err(DnsError::NoAddress),
        Some(_) => Ok(Discovered { endpoints: found, expires_ms, lacks: Lacks { v4: true, v6: true } }),
        None => Ok(Discovered { endpoints: found, expires_ms, lacks }),
    }
}
