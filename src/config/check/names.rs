//! Names of servers: how they are looked up, and what they stand for when the configuration is read.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ipc::snapshot::{Dns, Endpoint, Target};

use super::super::address::ServerAddress;
use super::super::report::{Diagnostic, quoted};
use super::super::resolver::{HOSTS, HOSTS_MAX, RESOLV_CONF, Sources};
use super::super::syntax::{self, At, File};
use super::{Check, ProcessSettings};

impl Check<'_> {
    /// Looks up all names of servers, together.
    pub(super) fn resolve(&mut self, file: &File, dns: &Dns) {
        let servers = file.groups.iter().flat_map(|group| &group.servers);
        let targets: BTreeSet<Target> = servers
            .filter_map(|server| match &server.address.value {
                ServerAddress::Literal(_) => None,
                ServerAddress::Name(target) => Some(target.clone()),
            })
            .collect();
        let targets: Vec<Target> = targets.into_iter().collect();
        if !targets.is_empty() {
            let results = self.system.resolve(dns, &targets);
            self.resolved = targets.into_iter().zip(results).collect();
        }
    }

    /// What a server's name stands for at the time.
    pub(super) fn known(&mut self, target: &Target, server: &syntax::Server) -> Vec<Endpoint> {
        let why = match self.resolved.get(target) {
            Some(Ok(endpoints)) if !endpoints.is_empty() => return endpoints.clone(),
            Some(Ok(_)) | None => "it has no addresses".to_owned(),
            Some(Err(error)) => error.clone(),
        };
        let former = self.system.former(target);
        let help = if former.is_empty() {
            "it is looked up again and again; without another server the group answers with 503 until it resolves"
        } else {
            "the addresses it had before are used"
        };
        let name = quoted(&target.to_string());
        self.report.push(
            Diagnostic::warning(format!("the name of the server {name} does not resolve: {why}"))
                .at(server.address.span.clone(), "")
                .help(help),
        );
        former
    }

    /// How names are resolved: what the file says, above what the system's files say.
    pub(super) fn dns(&mut self, file: &File, process: &mut ProcessSettings) -> Dns {
        let syntax::Dns { servers, resolv_conf, hosts, search, ndots, timeout_ms, attempts, rotate } = &file.dns;
        let at = |given: &Option<At<Option<PathBuf>>>, usual: &str| match given {
            Some(At { value, .. }) => value.clone(),
            None => Some(PathBuf::from(usual)),
        };
        process.resolver = Sources {
            resolv_conf: at(resolv_conf, RESOLV_CONF),
            hosts: at(hosts, HOSTS),
            servers: servers.clone(),
            search: search.clone(),
            ndots: *ndots,
            timeout_ms: *timeout_ms,
            attempts: *attempts,
            rotate: *rotate,
        };
        let resolv_conf = self.system_file(resolv_conf.as_ref(), RESOLV_CONF);
        let hosts = self.system_file(hosts.as_ref(), HOSTS);
        let (dns, too_many) = process.resolver.settings(resolv_conf.as_deref(), hosts.as_deref());
        if let (true, Some(path)) = (too_many, &process.resolver.hosts) {
            let text = format!("{} has more than {HOSTS_MAX} names; the others are looked up", path.display());
            self.report.push(Diagnostic::warning(text));
        }
        dns
    }

    /// The text of one of the system's files. One that is not there is as good as empty, unless it was asked for.
    fn system_file(&mut self, given: Option<&At<Option<PathBuf>>>, usual: &str) -> Option<String> {
        let path = match given {
            Some(At { value: None, .. }) => return None,
            Some(At { value: Some(path), .. }) => path.clone(),
            None => PathBuf::from(usual),
        };
        match (self.system.read(&path), given) {
            (Ok(text), _) => Some(text),
            (Err(error), None) if error.kind() == std::io::ErrorKind::NotFound => Some(String::new()),
            (Err(error), given) => {
                let text = format!("cannot read {}: {error}", path.display());
                self.report.push(match given {
                    Some(At { span, .. }) => Diagnostic::error(text).at(span.clone(), ""),
                    None => Diagnostic::warning(text),
                });
                None
            }
        }
    }
}
