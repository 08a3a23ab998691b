//! Rows of answers, and what carries them out: over IPv4, IPv6, a Unix socket, or behind a PROXY header.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::backend::{Act, Backend, response};
use crate::common::client::{Client, describe};
use crate::common::conf::Conf;
use crate::common::h1::{Broken, Response};
use crate::common::proxy::Proxy;
use crate::http_strict::bench::{Over, assert_is_section};

/// What the client must get.
#[derive(Debug, Clone, Copy)]
pub enum Want {
    /// A 502 of the proxy's own.
    Bad,
    /// This status and body, framed soundly.
    Good(u16, &'static str),
    /// Either: refused, or repaired to this body.
    BadOr(&'static str),
    /// Not a whole response: 502 when nothing was sent yet, else an end that shows the cut.
    Cut,
}

pub struct Row {
    pub name: String,
    /// The RFC and its section that it rests on.
    section: &'static str,
    request: &'static str,
    answer: Vec<u8>,
    then: Act,
    want: Want,
    /// Whether the backend's connection serves the next request; `None` = either.
    reused: Option<bool>,
}

pub const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
pub const GET_1_0: &str = "GET / HTTP/1.0\r\nHost: a\r\n\r\n";
pub const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";

fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

pub fn row(name: &str, section: &'static str, answer: &str, want: Want) -> Row {
    Row { name: name.to_owned(), section, request: GET, answer: bytes(answer), then: Act::Hang, want, reused: None }
}

pub fn bad(name: &str, section: &'static str, answer: &str) -> Row {
    row(name, section, answer, Want::Bad)
}

impl Row {
    pub fn to(self, request: &'static str) -> Row {
        Row { request, ..self }
    }

    pub fn then(self, then: Act) -> Row {
        Row { then, ..self }
    }

    /// The connection it came on serves the next request.
    pub fn kept(self) -> Row {
        Row { reused: Some(true), ..self }
    }

    /// The connection it came on serves no other request.
    pub fn dropped(self) -> Row {
        Row { reused: Some(false), ..self }
    }
}

/// A 200 with these field lines and these bytes behind the head.
pub fn ok(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}")
}

pub fn chunked(body: &str) -> String {
    ok("Transfer-Encoding: chunked\r\n", body)
}

/// A response with this status line and an empty body.
pub fn status(line: &str) -> String {
    format!("{line}\r\nContent-Length: 0\r\n\r\n")
}

pub struct Bench {
    pub script: Arc<Mutex<Vec<Act>>>,
    pub backend: Backend,
    pub proxy: Proxy,
    over: Over,
}

impl Bench {
    pub fn new(over: Over) -> Bench {
        let script = Arc::new(Mutex::new(Vec::new()));
        let current = Arc::clone(&script);
        let backend = Backend::serve(move |conn| {
            while let Some(request) = conn.request() {
                if request.target == "/sound" {
                    conn.send(&response("sound"));
                    continue;
                }
                let acts: Vec<Act> = current.lock().unwrap().clone();
                let hang = matches!(acts.last(), Some(Act::Hang));
                conn.play(acts.strip_suffix(&[Act::Hang]).unwrap_or(&acts));
                // Hanging means not closing first; a proxy that finds the answer sound may go on here.
                if !hang {
                    return;
                }
            }
        });
        let conf = Conf::http(&[backend.addr])
            .listen(over.listen())
            .group("health = { failures = 0 }")
            .tables("[timeouts]\nresponse = \"3s\"\nserver = \"3s\"");
        let proxy = conf.launch().workers(1).start();
        Bench { script, backend, proxy, over }
    }

    pub fn run(self, rows: &[Row]) {
        let mut wrong = Vec::new();
        for row in rows {
            assert_is_section(row.section);
            if let Err(what) = self.try_row(row) {
                let answer: String = row.answer.iter().take(300).map(|&b| char::from(b)).collect();
                wrong.push(format!("{} (RFC {}): {what}\n      answer {answer:?}", row.name, row.section));
            }
        }
        assert!(wrong.is_empty(), "{} of {} rows, {:?}:\n  {}", wrong.len(), rows.len(), self.over, wrong.join("\n  "));
    }

    fn try_row(&self, row: &Row) -> Result<(), String> {
        *self.script.lock().unwrap() = vec![Act::Send(row.answer.clone()), row.then.clone()];
        let mut client = self.over.connect(&self.proxy);
        client.patience(Duration::from_secs(8));
        client.send(row.request);
        let got = client.wire.response(row.request.split(' ').next().unwrap());
        let shown = |response: &Response| format!("{} {:?}", response.status, response.text());
        match (&got, row.want) {
            (Ok(response), Want::Bad | Want::BadOr(_) | Want::Cut) if response.status == 502 => {}
            (Ok(response), Want::Good(status, body))
                if response.status == status && response.body == body.as_bytes() => {}
            (Ok(response), Want::BadOr(body)) if response.status == 200 && response.body == body.as_bytes() => {}
            (Err(Broken::Cut(_) | Broken::Reset(_)), Want::Cut) => {
                return self.sound(&mut self.over.connect(&self.proxy));
            }
            (Ok(response), want) => return Err(format!("got {} instead of {want:?}", shown(response))),
            (Err(broken), want) => return Err(format!("{} instead of {want:?}", describe(broken))),
        }
        let response = got.map_err(|broken| describe(&broken))?;
        if response.version != "HTTP/1.1" {
            return Err(format!("answered as {}", response.version));
        }
        let violations = self.backend.take_violations();
        if !violations.is_empty() {
            return Err(format!("the backend got what is not strict: {violations:?}"));
        }
        let before = self.backend.connections();
        // Whatever is left of the bad answer must not reach the next request, on this connection or another.
        if !response.closes() && row.request.contains("HTTP/1.1") {
            self.sound(&mut client)?;
        }
        self.sound(&mut self.over.connect(&self.proxy))?;
        let reused = self.backend.connections() == before;
        match row.reused {
            Some(want) if want != reused => Err(format!("the backend's connection was reused: {reused}")),
            Some(_) | None => Ok(()),
        }
    }

    fn sound(&self, client: &mut Client) -> Result<(), String> {
        client.send("GET /sound HTTP/1.1\r\nHost: a\r\n\r\n");
        let next = client.try_response().map_err(|broken| format!("the next request: {}", describe(&broken)))?;
        if next.status == 200 && next.text() == "sound" {
            Ok(())
        } else {
            Err(format!("the next request was answered {} {:?}", next.status, next.text()))
        }
    }
}
