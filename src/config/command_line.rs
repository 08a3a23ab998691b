//! The command line as a configuration: its options laid out as a text of one line, checked like a file.

use std::sync::Arc;

use ipc::snapshot::Mode;

use super::address::{parse_bind, parse_server};
use super::report::{Diagnostic, Report, Source};
use super::syntax::{At, File, Given, Group, Listen, Route, Server, Span, Timeouts};
use super::system::System;
use super::{Loaded, Options, check};

/// The name of the only group.
const GROUP: &str = "default";

/// Makes the configuration that the options describe.
///
/// # Errors
/// Everything that is wrong with them.
pub fn check_options(options: &Options, system: &dyn System) -> Result<Loaded, Report> {
    let mut line = Line::default();
    let listen: Vec<_> = options.listen.iter().map(|text| (text, line.option("--listen", text))).collect();
    let backend: Vec<_> = options.backend.iter().map(|text| (text, line.option("--backend", text))).collect();
    let mut report = Report::of(Arc::new(Source { name: "command line".to_owned(), text: line.0 }));
    if backend.is_empty() {
        report.push(
            Diagnostic::error("no server to pass requests to")
                .help("give one or more with --backend HOST:PORT, or a file with --config FILE"),
        );
    }
    let mode = options.mode.unwrap_or(Mode::Http);
    let mut file = File { workers: options.workers, ..File::default() };
    for (text, span) in listen {
        match parse_bind(text) {
            Ok(bind) => file.listen.push(listener(At { value: bind, span }, mode)),
            Err(fault) => report.push(fault.at(span)),
        }
    }
    if options.listen.is_empty() {
        let bind = ipc::snapshot::Address::Inet(check::DEFAULT_BIND);
        file.listen.push(listener(At { value: bind, span: 0..0 }, mode));
    }
    let mut servers = Vec::new();
    for (text, span) in backend {
        match parse_server(text) {
            Ok(address) => servers.push(Server {
                address: At { value: address, span },
                name: text.clone(),
                weight: None,
                backup: None,
            }),
            Err(fault) => report.push(fault.at(span)),
        }
    }
    if mode == Mode::Http {
        file.routes.push(Route { span: 0..0, host: Given::Absent, path: Given::Absent, to: Some(group_name()) });
    }
    file.groups.push(Group { servers, ..Group::bare(group_name()) });
    check::check(file, None, system, report)
}

/// Refuses the options that have no meaning beside a configuration file.
///
/// # Errors
/// Each such option.
pub fn only_workers(options: &Options) -> Result<(), Report> {
    let given = [
        ("--listen", "[[listen]]", !options.listen.is_empty()),
        ("--backend", "[backends.NAME]", !options.backend.is_empty()),
        ("--mode", "`mode` in [[listen]]", options.mode.is_some()),
    ];
    let mut report = Report::default();
    for (option, key, _) in given.iter().filter(|(_, _, given)| *given) {
        report.push(
            Diagnostic::error(format!("{option} cannot be used together with --config"))
                .help(format!("leave it out and write {key} in the file; only --workers stands above a file")),
        );
    }
    if report.has_errors() { Err(report) } else { Ok(()) }
}

fn listener(bind: At<ipc::snapshot::Address>, mode: Mode) -> Listen {
    let to = match mode {
        Mode::Http | Mode::Forward => Given::Absent,
        Mode::Tcp => Given::Is(group_name()),
    };
    let span = bind.span.clone();
    let mode = Given::Is(At { value: mode, span: span.clone() });
    Listen {
        span,
        bind: Some(bind),
        mode,
        to,
        backlog: None,
        permissions: None,
        timeouts: Timeouts::default(),
        proxy_protocol: Vec::new(),
        abort_on_close: None,
        protocols: Given::Absent,
        rules: Given::Absent,
    }
}

fn group_name() -> At<String> {
    At { value: GROUP.to_owned(), span: 0..0 }
}

/// The options laid out, for messages to point into.
#[derive(Default)]
struct Line(String);

impl Line {
    /// Adds an option; the place of its value.
    fn option(&mut self, name: &str, value: &str) -> Span {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(name);
        self.0.push(' ');
        let start = self.0.len();
        self.0.push_str(value);
        start..self.0.len()
    }
}
