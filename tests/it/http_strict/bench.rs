//! Rows of raw requests, and what carries them out: over IPv4, IPv6, a Unix socket, or behind a PROXY header.

use std::time::Duration;

use crate::common::backend::Backend;
use crate::common::client::{Client, describe};
use crate::common::conf::Conf;
use crate::common::h1::Broken;
use crate::common::proxy::{Launch, Proxy};

/// What must come of a row.
pub enum Want {
    /// Exactly these requests reach the backend, each is answered 200, and the connection serves another.
    Pass(&'static [&'static str]),
    /// As `Pass`, but the connection ends then, and what follows is not served.
    Last(&'static [&'static str]),
    /// As `Pass` for these requests, then an answer with one of these statuses, then the connection's end.
    Refuse(&'static [&'static str], &'static [u16]),
    /// Nothing reaches the backend, the answer has this status, and the connection serves another.
    Own(u16),
}

/// A request as raw bytes, and what must come of it.
pub struct Row {
    pub name: String,
    /// The RFC and its section that it rests on.
    pub section: &'static str,
    send: Vec<u8>,
    want: Want,
    /// Fields that the first request must have at the backend, with exactly this value.
    with: &'static [(&'static str, &'static str)],
    /// Fields that no request may have there.
    without: &'static [&'static str],
}

impl Row {
    /// The first request that reaches the backend has these fields.
    pub fn with(self, with: &'static [(&'static str, &'static str)]) -> Row {
        Row { with, ..self }
    }

    /// No request that reaches the backend has any of these fields.
    pub fn without(self, without: &'static [&'static str]) -> Row {
        Row { without, ..self }
    }
}

/// Text to bytes, one for each character, so that rows can have any byte.
fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

pub fn row(name: &str, section: &'static str, send: &str, want: Want) -> Row {
    Row { name: name.to_owned(), section, send: bytes(send), want, with: &[], without: &[] }
}

/// The whole request is bad.
pub fn bad(name: &str, section: &'static str, send: &str) -> Row {
    row(name, section, send, Want::Refuse(&[], &[400]))
}

pub fn one_of(name: &str, section: &'static str, send: &str, statuses: &'static [u16]) -> Row {
    row(name, section, send, Want::Refuse(&[], statuses))
}

/// Answered here, without the backend.
pub fn own(name: &str, section: &'static str, send: &str, status: u16) -> Row {
    row(name, section, send, Want::Own(status))
}

pub fn good(name: &str, section: &'static str, send: &str, seen: &'static [&'static str]) -> Row {
    row(name, section, send, Want::Pass(seen))
}

/// A GET with these field lines beside Host.
pub fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

/// A POST with these field lines beside Host, and these bytes after the head.
pub fn post(lines: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}")
}

pub fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// A GET with this request line.
pub fn line(line: &str) -> String {
    format!("{line}\r\nHost: a\r\n\r\n")
}

/// A GET with exactly these field lines.
pub fn host(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\n{lines}\r\n")
}

/// How clients reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    V4,
    V6,
    Unix,
    /// IPv4, with a PROXY header in front of each connection.
    Header,
    /// A Unix socket, with a PROXY header in front of each connection.
    UnixHeader,
}

impl Over {
    /// The listener's lines.
    pub fn listen(self) -> &'static str {
        match self {
            Over::V4 => "",
            Over::V6 => "bind = \"[::1]:0\"",
            Over::Unix => "bind = \"unix:{dir}/listener\"",
            Over::UnixHeader => "bind = \"unix:{dir}/listener\"\nproxy_protocol = { from = [\"unix\"] }",
            Over::Header => "proxy_protocol = { from = [\"127.0.0.0/8\"] }",
        }
    }

    /// What the backend is told of the client.
    fn forwarded_for(self) -> Option<&'static str> {
        match self {
            Over::V4 => Some("127.0.0.1"),
            Over::V6 => Some("::1"),
            Over::Unix => None,
            Over::Header | Over::UnixHeader => Some("192.0.2.7"),
        }
    }

    pub fn connect(self, proxy: &Proxy) -> Client {
        let mut client = Client::connect(proxy.addr());
        if matches!(self, Over::Header | Over::UnixHeader) {
            client.send("PROXY TCP4 192.0.2.7 192.0.2.8 4711 80\r\n");
        }
        client
    }
}

pub struct Bench {
    backend: Backend,
    proxy: Proxy,
    /// `None` for a proxy that writes no heads.
    over: Option<Over>,
}

impl Bench {
    pub fn new(over: Over) -> Bench {
        let backend = Backend::ok();
        let conf = Conf::http(&[backend.addr]).listen(over.listen()).tables("[limits]\nbody = \"1MiB\"");
        Bench { proxy: conf.launch().workers(1).start(), backend, over: Some(over) }
    }

    /// A plain relay of bytes instead.
    pub fn relay() -> Bench {
        let backend = Backend::ok();
        Bench { proxy: Launch::tcp(&[backend.addr]).workers(1).start(), backend, over: None }
    }

    /// Runs every row and panics with all that went wrong.
    pub fn run(self, rows: &[Row]) {
        let mut wrong = Vec::new();
        for row in rows {
            assert_is_section(row.section);
            if let Err(what) = self.try_row(row) {
                let sent: String = row.send.iter().take(300).map(|&b| char::from(b)).collect();
                wrong.push(format!("{} (RFC {}): {what}\n      sent {sent:?}", row.name, row.section));
            }
        }
        assert!(wrong.is_empty(), "{} of {} rows, {:?}:\n  {}", wrong.len(), rows.len(), self.over, wrong.join("\n  "));
    }

    pub fn try_row(&self, row: &Row) -> Result<(), String> {
        let mut client = self.over.unwrap_or(Over::V4).connect(&self.proxy);
        client.patience(Duration::from_secs(5));
        let outcome = converse(row, &mut client);
        if outcome.is_err() {
            // What is still on its way belongs to this row, not to the next.
            client.shutdown_write();
            client.patience(Duration::from_millis(500));
            client.wire.begin();
            let _ = client.wire.rest();
        }
        let requests = self.backend.take_requests();
        let seen: Vec<String> = requests.iter().map(|request| request.summary()).collect();
        let violations = self.backend.take_violations();
        if !violations.is_empty() {
            return Err(format!("the backend got what is not strict: {violations:?}"));
        }
        outcome.map_err(|what| format!("{what}; the backend saw {seen:?}"))?;
        let (passed, after) = match row.want {
            Want::Pass(passed) => (passed, Some("GET /after")),
            Want::Last(passed) | Want::Refuse(passed, _) => (passed, None),
            Want::Own(_) => (&[][..], Some("GET /after")),
        };
        if !seen.iter().map(String::as_str).eq(passed.iter().copied().chain(after)) {
            return Err(format!("the backend saw {seen:?}"));
        }
        let Some(over) = self.over else { return Ok(()) };
        for request in &requests {
            let told = request.fields.all("x-forwarded-for");
            if told != over.forwarded_for().into_iter().collect::<Vec<_>>() {
                return Err(format!("X-Forwarded-For was {told:?}"));
            }
            if let Some(name) = row.without.iter().find(|name| request.fields.has(name) || request.trailers.has(name)) {
                return Err(format!("the backend got {name}: {:?}", request.fields.all(name)));
            }
        }
        for (name, value) in row.with {
            let got = requests.first().map_or(Vec::new(), |request| request.fields.all(name));
            if got != [*value] {
                return Err(format!("the backend got {name}: {got:?}"));
            }
        }
        Ok(())
    }
}

/// Sends a row and what must not, or must, be served after it, and compares the answers.
fn converse(row: &Row, client: &mut Client) -> Result<(), String> {
    let expect = |client: &mut Client, method: &str, statuses: &[u16]| {
        let response = client.wire.response(method).map_err(|broken| describe(&broken))?;
        if statuses.contains(&response.status) {
            Ok(response)
        } else {
            Err(format!("answered {} instead of {statuses:?}", response.status))
        }
    };
    let first = if row.send.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
    client.send(&row.send);
    let (passed, last) = match row.want {
        Want::Pass(passed) => (passed, None),
        Want::Last(passed) => (passed, Some(None)),
        Want::Refuse(passed, statuses) => (passed, Some(Some(statuses))),
        Want::Own(status) => {
            expect(client, first, &[status])?;
            (&[][..], None)
        }
    };
    if last.is_some() {
        client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let mut closes = false;
    for request in passed {
        let response = expect(client, method(request), &[200]).map_err(|what| format!("{request} was {what}"))?;
        closes = response.closes();
    }
    let Some(refused) = last else {
        client.send("GET /after HTTP/1.1\r\nHost: a\r\n\r\n");
        expect(client, "GET", &[200]).map_err(|what| format!("the next request: {what}"))?;
        return Ok(());
    };
    if let Some(statuses) = refused {
        closes = expect(client, first, statuses)?.closes();
    }
    if !closes {
        return Err("the last answer did not say Connection: close".to_owned());
    }
    client.wire.begin();
    match client.wire.rest() {
        Ok(rest) if rest.is_empty() => Ok(()),
        Ok(rest) => Err(format!("then came {:?}", String::from_utf8_lossy(&rest))),
        Err(Broken::Reset(rest)) if rest.is_empty() => Ok(()),
        Err(broken) => Err(format!("then {}", describe(&broken))),
    }
}

/// Panics unless `section` is one of RFC 9110, 9112 or another, as `9112 6.3`.
#[track_caller]
pub fn assert_is_section(section: &str) {
    let (rfc, number) = section.split_once(' ').unwrap_or_default();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    assert!(rfc.len() == 4 && digits(rfc) && number.split('.').all(digits), "no section: {section:?}");
}

fn method(summary: &str) -> &str {
    summary.split(' ').next().unwrap()
}
