//! The name of a server to addresses with ports: a host's addresses, or those of all hosts of a service (RFC 2782).
//!
//! Sans-IO like the resolver, whose answers it is given. Bounds: [`ENDPOINTS_MAX`] addresses for one name,
//! [`HOSTS_AT_ONCE`] hosts asked for at a time while there is little room.

use std::rc::Rc;

use ipc::snapshot::{Endpoint, Target};
use std::net::SocketAddr;

use crate::dns::answer;
use crate::dns::lookup::{Answer, DnsError, Lacks, Lookup};
use crate::dns::message::Service;
use crate::dns::resolver::Resolver;
use crate::dns::room;

/// Addresses that one name of a server may stand for.
pub const ENDPOINTS_MAX: usize = ipc::message::MAX_ENDPOINTS;
/// Hosts of a service that are asked for at the same time where half of the room for lookups is taken, so that those of
/// many services find room. Until then all of them are.
pub const HOSTS_AT_ONCE: usize = 2;
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

/// A host of a service, and its addresses once they are known.
type Hosted = (Service, Option<Result<Rc<Answer>, DnsError>>);

/// A name on its way to its addresses.
#[derive(Debug)]
pub struct Discovery {
    target: Target,
    service: Option<Rc<Answer>>,
    hosts: Vec<Hosted>,
    /// How many of these have been asked for, and of how many the answer is to come.
    begun: usize,
    asked: usize,
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
        let mut discovery = Discovery { target: target.clone(), service: None, hosts: Vec::new(), begun: 0, asked: 0 };
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
                    let mut services = service.services.clone();
                    // An empty host says that there is no such service here.
                    services.retain(|service| !service.host.is_empty());
                    services.sort();
                    services.truncate(answer::ADDRESSES_MAX);
                    self.hosts = services.into_iter().map(|service| (service, None)).collect();
                    self.service = Some(service);
                }
                Err(error) => return Some(Err(error)),
            },
            Some(at) => {
                if let Some((_, answer @ None)) = self.hosts.get_mut(usize::from(at)) {
                    *answer = Some(result);
                    self.asked = self.asked.saturating_sub(1);
                }
            }
        }
        self.ask_hosts(resolver, waiter, now_ms);
        let known = self.hosts.iter().all(|(_, answer)| answer.is_some());
        self.service.as_ref().filter(|_| known).map(|service| of_service(service, &self.hosts, now_ms))
    }

    /// Asks for further hosts, as far as there is room.
    fn ask_hosts<W>(&mut self, resolver: &mut Resolver<W>, waiter: &dyn Fn(u16) -> W, now_ms: u64) {
        while (self.asked < HOSTS_AT_ONCE || resolver.outstanding() < room::ALL / 2)
            && let Some((service, answer)) = self.hosts.get_mut(self.begun)
        {
            let number = u16::try_from(self.begun + 1).unwrap_or(u16::MAX);
            // What a name server says is taken as it is, without a suffix.
            let found = resolver.lookup(&format!("{}.", service.host), waiter(number), now_ms);
            if matches!(found, Lookup::Refused(DnsError::Busy)) && self.asked > 0 {
                // With the next answer that comes there is room.
                return;
            }
            self.begun += 1;
            match found {
                Lookup::Ready(found) => *answer = Some(Ok(found)),
                Lookup::Refused(error) => *answer = Some(Err(error)),
                Lookup::Pending => self.asked += 1,
            }
        }
    }
}

fn of_host(answer: &Answer, port: u16) -> Discovered {
    let endpoint = |ip: &_| Endpoint { address: SocketAddr::new(*ip, port), weight: None, backup: false };
    let endpoints = answer.addresses.iter().take(ENDPOINTS_MAX).map(endpoint).collect();
    Discovered { endpoints, expires_ms: answer.expires_ms, lacks: answer.lacks }
}

/// Hosts of the lowest priority are used first, all others are backups; shares are those of the records. That a host is
/// missing holds no longer than it does for a host alone, however long the others do.
fn of_service(service: &Answer, hosts: &[Hosted], now_ms: u64) -> Result<Discovered, DnsError> {
    let first = hosts.iter().map(|(service, _)| service.priority).min().unwrap_or(0);
    let most = hosts.iter().map(|(service, _)| u32::from(service.weight)).max().unwrap_or(0);
    let mut found: Vec<Endpoint> = Vec::new();
    let (mut expires_ms, mut lacks, mut unknown) = (service.expires_ms, Lacks::default(), None);
    for (service, answer) in hosts {
        let answer = match answer {
            Some(Ok(answer)) => answer,
            Some(Err(error)) if error.is_definite() => {
                expires_ms = expires_ms.min(now_ms + answer::NEGATIVE_MAX_MS);
                continue;
            }
            Some(Err(error)) => {
                unknown = Some(*error);
                expires_ms = expires_ms.min(now_ms + answer::LACKING_MAX_MS);
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

#[cfg(test)]
mod tests {
    use ipc::snapshot::Dns;

    use super::*;

    fn service(priority: u16, weight: u16, port: u16, host: &str) -> Service {
        Service { priority, weight, port, host: host.to_owned() }
    }

    fn services(services: &[Service]) -> Rc<Answer> {
        let lacks = Lacks::default();
        Rc::new(Answer { addresses: Vec::new(), services: services.to_vec(), expires_ms: 5000, lacks, aliases: None })
    }

    /// What a service comes to whose hosts are known, or asked for, as these say.
    fn discover(records: &[Service], hosts: &[(&str, Result<&str, DnsError>)]) -> Progress {
        let known = hosts.iter().filter_map(|(name, ip)| Some((*name, (*ip).ok()?)));
        let mut table: Vec<_> = known.map(|(name, ip)| (name.to_owned(), vec![ip.parse().unwrap()])).collect();
        table.sort();
        let server = "127.0.0.1:53".parse().unwrap();
        let mut resolver: Resolver<u16> = Resolver::new(Dns { hosts: table, servers: vec![server], ..Dns::default() });
        let target = Target::Service { name: "_x._tcp.test".to_owned() };
        let (mut discovery, progress) = Discovery::begin(&target, &mut resolver, &|part| part, 0);
        assert_eq!(progress, None);
        let mut progress = discovery.answer(0, Ok(services(records)), &mut resolver, &|part| part, 0);
        let mut sorted = records.to_vec();
        sorted.sort();
        for (number, record) in (1..).zip(sorted.iter().filter(|record| !record.host.is_empty())) {
            if let Some((_, Err(error))) = hosts.iter().find(|(name, _)| *name == record.host) {
                assert_eq!(progress, None, "there is a question left");
                progress = discovery.answer(number, Err(*error), &mut resolver, &|part| part, 0);
            }
        }
        progress
    }

    #[test]
    fn the_lowest_priority_comes_first_and_shares_are_scaled() {
        let records = [service(9, 5, 81, "b.x"), service(1, 60_000, 80, "a.x"), service(1, 0, 80, "c.x")];
        let found = discover(&records, &[("a.x", Ok("10.0.0.1")), ("b.x", Ok("10.0.0.2")), ("c.x", Ok("10.0.0.3"))]);
        let endpoint = |address: &str, weight, backup| Endpoint { address: address.parse().unwrap(), weight, backup };
        let endpoints = vec![
            endpoint("10.0.0.3:80", Some(1), false),
            endpoint("10.0.0.1:80", Some(1000), false),
            endpoint("10.0.0.2:81", Some(1), true),
        ];
        assert_eq!(found, Some(Ok(Discovered { endpoints, expires_ms: 5000, lacks: Lacks::default() })));
    }

    #[test]
    fn a_host_that_is_not_there_is_left_out_and_one_nobody_could_tell_of_is_said_to_lack() {
        let records = [service(1, 1, 80, "a.x"), service(1, 1, 80, "b.x")];
        let lacks = |error| match discover(&records, &[("a.x", Ok("10.0.0.1")), ("b.x", Err(error))]) {
            Some(Ok(found)) => (found.endpoints.len(), found.lacks),
            other => panic!("{other:?}"),
        };
        assert_eq!(lacks(DnsError::NoSuchName), (1, Lacks::default()));
        assert_eq!(lacks(DnsError::ServerFailure(2)), (1, Lacks { v4: true, v6: true }));
    }

    #[test]
    fn hosts_of_many_services_find_room() {
        let settings = Dns { servers: vec!["127.0.0.1:53".parse().unwrap()], ..Dns::default() };
        let mut resolver: Resolver<u16> = Resolver::new(settings);
        let mut running = Vec::new();
        for n in 0..64 {
            let records: Vec<Service> = (0..20).map(|host| service(1, 1, 80, &format!("h{host}.s{n}.x"))).collect();
            let target = Target::Service { name: format!("_x._tcp.s{n}.test") };
            let mut discovery = Discovery { target, service: None, hosts: Vec::new(), begun: 0, asked: 0 };
            assert_eq!(discovery.answer(0, Ok(services(&records)), &mut resolver, &|part| part, 0), None);
            running.push(discovery);
        }
        // Those that have been asked for are to be answered; none was refused for want of room.
        for discovery in &mut running {
            assert!((HOSTS_AT_ONCE..=20).contains(&discovery.begun), "{}", discovery.begun);
            assert!(discovery.hosts.iter().all(|(_, answer)| answer.is_none()));
        }
        assert_eq!((running[0].begun, running[63].begun), (20, HOSTS_AT_ONCE));
        let last = &mut running[63];
        let mut progress = None;
        for number in 1..=20 {
            assert_eq!(progress, None, "before {number}");
            assert!(last.begun >= usize::from(number), "{number} has been asked for");
            let known = Answer::fixed(vec![[10, 0, 0, u8::try_from(number).unwrap()].into()]);
            resolver.on_time(crate::dns::resolver::LOOKUP_MAX_MS * u64::from(number));
            progress = last.answer(number, Ok(known), &mut resolver, &|part| part, 0);
        }
        assert_eq!(progress.unwrap().unwrap().endpoints.len(), 20);
    }

    #[test]
    fn that_a_host_is_missing_does_not_hold_as_long_as_the_others() {
        let records = [service(1, 1, 80, "a.x"), service(1, 1, 80, "b.x")];
        let hosted = |second: Result<&str, DnsError>| {
            let known = |ip: &str| Answer::fixed(vec![ip.parse().unwrap()]);
            let answers = [Ok(known("10.0.0.1")), second.map(known)];
            records.iter().cloned().zip(answers.map(Some)).collect::<Vec<Hosted>>()
        };
        let service = Answer { expires_ms: 3_600_000, ..(*services(&records)).clone() };
        let expires = |second| of_service(&service, &hosted(second), 1000).map(|found| found.expires_ms);
        assert_eq!(expires(Ok("10.0.0.2")), Ok(3_600_000));
        assert_eq!(expires(Err(DnsError::ServerFailure(2))), Ok(1000 + answer::LACKING_MAX_MS));
        assert_eq!(expires(Err(DnsError::NoSuchName)), Ok(1000 + answer::NEGATIVE_MAX_MS));
    }

    #[test]
    fn a_service_without_hosts_has_no_addresses() {
        assert_eq!(discover(&[service(0, 0, 0, "")], &[]), Some(Err(DnsError::NoAddress)));
        let records = [service(1, 1, 80, "a.x")];
        let failed = DnsError::ServerFailure(2);
        assert_eq!(discover(&records, &[("a.x", Err(failed))]), Some(Err(failed)));
        assert_eq!(discover(&records, &[("a.x", Err(DnsError::NoSuchName))]), Some(Err(DnsError::NoAddress)));
    }
}
