//! `[dns]`.

use std::path::PathBuf;

use super::super::read::{Schema, Section};
use super::super::report::{Fault, Report, quoted};
use super::super::resolver::{ATTEMPTS_MAX, NDOTS_MAX, TIMEOUT_MAX_MS, read_server, read_suffix};
use super::super::syntax::{At, Dns};
use super::Parser;

pub(super) static DNS: Schema = Schema {
    name: "`[dns]`",
    home: "`[dns]`",
    keys: &["servers", "resolv_conf", "hosts", "search", "ndots", "timeout", "attempts", "rotate"],
};

impl Parser {
    pub(super) fn dns(&mut self, top: &Section<'_>) -> Dns {
        let Some(section) = self.inner(top, "dns", "[dns]", &DNS) else { return Dns::default() };
        let interface = |name: &str| nix::net::if_::if_nametoindex(name).ok();
        let servers = self.strings(&section, "servers", "[\"10.0.0.2\"]", ipc::snapshot::Dns::SERVERS_MAX, |text| {
            read_server(text, &interface)
        });
        let search = self.strings(&section, "search", "[\"internal\"]", ipc::snapshot::Dns::SEARCH_MAX, read_suffix);
        let report = &mut self.report;
        Dns {
            servers,
            resolv_conf: section.parsed("resolv_conf", "\"/etc/resolv.conf\"", report, read_file_or_off).at(),
            hosts: section.parsed("hosts", "\"/etc/hosts\"", report, read_file_or_off).at(),
            search,
            ndots: section.integer("ndots", 0..=NDOTS_MAX, report).value(),
            timeout_ms: section.read_dns_timeout(report),
            attempts: section.integer("attempts", 1..=ATTEMPTS_MAX, report).value(),
            rotate: section.boolean("rotate", report).value(),
        }
    }

    /// An array of strings, of `most` at most; `None` when it is not written.
    fn strings<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        example: &str,
        most: usize,
        parse: impl Fn(&str) -> Result<T, Fault>,
    ) -> Option<Vec<T>> {
        let At { value: values, span } = section.array(key, example, &mut self.report).at()?;
        self.bounded(values.len(), most, key, Some(span));
        Some(self.each(values, &format!("an entry of `{key}`"), parse).into_iter().map(|at| at.value).collect())
    }
}

fn read_file_or_off(text: &str) -> Result<Option<PathBuf>, Fault> {
    match text {
        "off" => Ok(None),
        _ if text.starts_with('/') && !text.ends_with('/') && !text.contains('\0') => Ok(Some(PathBuf::from(text))),
        _ => Err(Fault::new(format!("{} is not the path of a file", quoted(text)))
            .help("write it from the root, such as \"/etc/hosts\", or \"off\"")),
    }
}

impl Section<'_> {
    fn read_dns_timeout(&self, report: &mut Report) -> Option<u32> {
        let At { value, span } = self.duration("timeout", report).at()?;
        if value > TIMEOUT_MAX_MS {
            let fault = Fault::new("a name server is not waited for so long");
            report.push(fault.help("write 30s or less").at(span));
        }
        Some(value)
    }
}
