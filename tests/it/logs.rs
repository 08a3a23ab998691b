//! The access log: its two formats, its targets, its reopening, and the reason when something failed.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::backend::{Act, Backend, Refusing, response};
use crate::common::client::{Client, get};
use crate::common::conf::Conf;
use crate::common::proxy::{Launch, Proxy};
use crate::common::{wait_for, wait_until};

pub fn logging(format: &str, backends: &[std::net::SocketAddr]) -> Conf {
    Conf::http(backends).tables(&format!("[access_log]\nto = \"{{dir}}/access.log\"\nformat = \"{format}\""))
}

/// The lines of a log, once there are `count`.
pub fn lines(path: &Path, count: usize) -> Vec<String> {
    wait_for("the lines are in the log", || {
        let text = std::fs::read_to_string(path).ok()?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert!(lines.len() <= count, "too many lines: {lines:#?}");
        (lines.len() == count && text.ends_with('\n')).then_some(lines)
    })
}

pub fn json(proxy: &Proxy, count: usize) -> Vec<Value> {
    lines(&proxy.dir.join("access.log"), count)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Whether any value in the object, however deep, is this text.
fn says(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string.contains(text),
        Value::Number(number) => number.to_string() == text,
        Value::Array(items) => items.iter().any(|item| says(item, text)),
        Value::Object(map) => map.values().any(|item| says(item, text)),
        Value::Null | Value::Bool(_) => false,
    }
}

#[test]
fn combined_format_is_the_usual_one() {
    let backend = Backend::named("hello");
    let proxy = logging("combined", &[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.ask("GET /a?b=\"c HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut client = Client::connect(proxy.addr());
    client.ask("GET /a?b HTTP/1.1\r\nHost: x\r\nUser-Agent: test \"1\"\r\nReferer: http://r/\r\n\r\n");
    let path = proxy.dir.join("access.log");
    let all = wait_for("both lines", || {
        let text = std::fs::read_to_string(&path).ok()?;
        (text.lines().count() == 2).then_some(text)
    });
    let line = all.lines().find(|line| line.contains("/a?b HTTP/1.1")).unwrap();
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains("] \"GET /a?b HTTP/1.1\" 200 5 \"http://r/\" \"test "), "{line}");
    // A quote of the client's must not end the field.
    assert!(!line.contains("\"test \"1\"\""), "{line}");
    assert!(line.contains(&backend.addr.to_string()), "{line}");
}

#[test]
fn json_lines_have_every_fact() {
    let backend = Backend::named("hello");
    let proxy = logging("json", &[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.ask("POST /p?q=1 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\nUser-Agent: ua\r\n\r\nabc");
    let line = json(&proxy, 1).pop().unwrap();
    for fact in ["127.0.0.1", "POST", "/p?q=1", "200", "5", "shop.example", "ua", &backend.addr.to_string()] {
        assert!(says(&line, fact), "{fact} is missing: {line}");
    }
    let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
    for key in ["worker", "connect", "first_byte", "total"] {
        assert!(keys.iter().any(|name| name.contains(key)), "no {key} among {keys:?}");
    }
}

#[test]
fn hostile_bytes_cannot_break_a_line() {
    let backend = Backend::ok();
    let proxy = logging("json", &[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    client.send(b"GET /?\"\\}{ HTTP/1.1\r\nHost: a\r\n\r\n");
    let _ = client.try_response();
    let mut client = Client::connect(proxy.addr());
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: \"\\\t\xff\xc3\xa9 \x80\r\n\r\n");
    assert_eq!(client.response().status, 200);
    let path = proxy.dir.join("access.log");
    wait_for("two lines", || {
        let bytes = std::fs::read(&path).ok()?;
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&b| b == b'\n').collect();
        for line in &lines {
            serde_json::from_slice::<Value>(line).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(line)));
        }
        (lines.len() == 2).then_some(())
    });
}

#[test]
fn failures_are_logged_with_their_reason() {
    let refusing = Refusing::new();
    let silent = Backend::silent();
    let garbage = Backend::scripted(vec![Act::Request, Act::send("garbage\r\n\r\n"), Act::Close]);
    let cut = Backend::scripted(vec![
        Act::Request,
        Act::send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
        Act::Close,
    ]);
    let tables = [("refusing", refusing.addr), ("silent", silent.addr), ("garbage", garbage.addr), ("cut", cut.addr)]
        .iter()
        .map(|(name, addr)| {
            format!("[backends.{name}]\nservers = [\"{addr}\"]\n[[route]]\npath = \"/{name}\"\nto = \"{name}\"\n")
        })
        .collect::<String>();
    let proxy = logging("json", &[refusing.addr]).tables(&tables).tables("[timeouts]\nresponse = \"300ms\"").start();
    let mut without = None;
    for (count, target) in ["/refusing", "/silent", "/garbage", "/cut"].into_iter().enumerate() {
        let mut client = Client::connect(proxy.addr());
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let _ = client.try_response();
        let line = json(&proxy, count + 1).pop().unwrap();
        assert!(says(&line, target), "{line}");
        // The reason is a field that a request without a failure leaves out or empty.
        let reason = ["error", "reason", "failure"]
            .iter()
            .find_map(|key| line.get(key).and_then(Value::as_str))
            .unwrap_or_else(|| panic!("no reason in {line}"));
        assert!(reason.len() > 3, "{line}");
        assert_ne!(without.replace(reason.to_owned()), Some(reason.to_owned()), "the same reason for another failure");
    }
}

#[test]
fn refused_requests_are_logged_too() {
    let backend = Backend::ok();
    let proxy = logging("json", &[backend.addr]).start();
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.ask("GET / HTTP/1.1\r\n\r\n").status, 400);
    assert!(says(&json(&proxy, 1)[0], "400"));
}

#[test]
fn log_goes_to_standard_output() {
    let backend = Backend::ok();
    let proxy = Conf::http(&[backend.addr]).tables("[access_log]\nto = \"stdout\"").start();
    get(proxy.addr(), "/seen");
    wait_until("the line is there", || proxy.output.find(0, &["GET /seen HTTP/1.1", " 200 "]).is_some());
}

#[test]
fn usr1_reopens_the_log_after_it_was_moved() {
    let backend = Backend::ok();
    let proxy = logging("combined", &[backend.addr]).launch().workers(2).start();
    let (path, moved) = (proxy.dir.join("access.log"), proxy.dir.join("access.log.1"));
    get(proxy.addr(), "/before");
    lines(&path, 1);
    std::fs::rename(&path, &moved).unwrap();
    proxy.signal(Signal::SIGUSR1);
    wait_until("the file is there again", || path.exists());
    // Each worker changes over by itself; requests reach both sooner or later.
    let mut sent = 0;
    wait_until("requests are in the new file", || {
        get(proxy.addr(), "/after");
        sent += 1;
        std::fs::read_to_string(&path).unwrap().lines().count() >= 4
    });
    // Whatever a worker had not yet changed over went to the old file: no line is lost.
    wait_until("every line is in one of them", || {
        let count = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
        count(&path) + count(&moved) == sent + 1
    });
}

#[test]
fn lines_of_all_workers_are_whole() {
    let backend = Backend::ok();
    let proxy = logging("json", &[backend.addr]).launch().workers(4).start();
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let addr = proxy.addr().clone();
            std::thread::spawn(move || {
                let mut client = Client::connect(&addr);
                for m in 0..100 {
                    assert_eq!(client.get(&format!("/{n}/{m}/{}", "x".repeat(m))).status, 200);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let mut targets: Vec<String> = json(&proxy, 800)
        .iter()
        .map(|line| {
            let keys = ["target", "uri", "path", "request"];
            keys.iter().find_map(|key| line.get(key)).unwrap().as_str().unwrap().to_owned()
        })
        .collect();
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), 800);
}

#[test]
fn log_is_written_to_the_last_line_when_stopping() {
    let backend = Backend::ok();
    let proxy = logging("combined", &[backend.addr]).start();
    // The directory must outlive the proxy for the log to be read.
    let copy = crate::common::TempDir::new();
    let kept = copy.join("access.log");
    std::fs::hard_link(proxy.dir.write("empty", ""), copy.join("probe")).unwrap();
    for _ in 0..20 {
        get(proxy.addr(), "/");
    }
    wait_until("the file exists", || proxy.dir.join("access.log").exists());
    std::fs::hard_link(proxy.dir.join("access.log"), &kept).unwrap();
    proxy.stop();
    assert_eq!(std::fs::read_to_string(&kept).unwrap().lines().count(), 20);
}

#[test]
fn life_cycle_is_logged() {
    let backend = Backend::fixed(response("x"));
    let proxy = Launch::http(&[backend.addr]).workers(2).start();
    let pid = proxy.pid;
    let lines = proxy.stop();
    assert!(lines.iter().any(|line| line.contains(&format!("master[{pid}]"))), "{lines:#?}");
    assert!(lines.last().unwrap().contains("stopped"), "{lines:#?}");
}
