//! What a person at a terminal sees once everything runs: what listens where, and what to try next.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipc::snapshot::{Address, Group, Mode};

use crate::config::Loaded;
use crate::listen::Socket;

/// Server names shown at most.
const SHOWN: usize = 8;

/// Prints it, if standard output is a terminal.
pub fn print(sockets: &[Socket], pids: &[i32], config: &Loaded, demo: Option<&[SocketAddr]>) {
    if !rustix::termios::isatty(rustix::stdio::stdout()) {
        return;
    }
    let listeners: Vec<(Address, Mode)> = sockets.iter().map(|socket| (socket.address.clone(), socket.mode)).collect();
    let servers: Vec<String> = match demo {
        Some(backends) => backends.iter().map(ToString::to_string).collect(),
        None => {
            let names = |group: &Group| -> Vec<String> {
                let names = group.names.iter().map(|named| named.name.clone());
                group.servers.iter().map(|server| server.name.clone()).chain(names).collect()
            };
            config.snapshot.groups.iter().flat_map(names).collect()
        }
    };
    // Nothing is lost when it cannot be shown.
    let _ = std::io::stdout().write_all(text(&listeners, pids, &servers, demo.is_some()).as_bytes());
}

fn text(listeners: &[(Address, Mode)], pids: &[i32], servers: &[String], demo: bool) -> String {
    let mut out = format!("\n  Pointsman {}\n\n", env!("CARGO_PKG_VERSION"));
    for (address, mode) in listeners {
        let _ = match mode {
            Mode::Http => writeln!(out, "  listening   {}", url(address)),
            Mode::Tcp => writeln!(out, "  listening   {address} (tcp)"),
            Mode::Forward => writeln!(out, "  listening   {address} (forward proxy)"),
        };
    }
    let pids_shown: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let _ = writeln!(out, "  workers     {} (pids {})", pids.len(), pids_shown.join(" "));
    let more = if servers.len() > SHOWN { format!(" and {} more", servers.len() - SHOWN) } else { String::new() };
    let label = if demo { "demo        two built-in backends: " } else { "servers     " };
    let _ = writeln!(out, "  {label}{}{more}", servers[..servers.len().min(SHOWN)].join(" "));
    if demo {
        out.push_str("              (no demo once --backend or --config is given)\n");
    }
    let http = listeners.iter().find(|(_, mode)| *mode == Mode::Http).map(|(address, _)| address);
    if let Some(address) = http {
        out.push_str("\n  Try, in another terminal:\n\n");
        match address {
            Address::Inet(_) => {
                let _ = writeln!(out, "    curl {}", url(address));
                let _ = writeln!(out, "    wrk -t2 -c64 -d10s {}", url(address));
            }
            Address::Unix(path) => {
                let _ = writeln!(out, "    curl --unix-socket {} http://localhost/", path.display());
            }
        }
        if let Some(pid) = pids.first() {
            let _ = writeln!(out, "    kill -9 {pid}    # a worker; another takes its place and its connections");
        }
    }
    out.push_str("\n  Stop with Ctrl-C.\n\n");
    out
}

/// An address that a client on this host can use: the unspecified one stands for loopback.
fn url(address: &Address) -> String {
    match address {
        Address::Inet(address) => {
            let ip = match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
                ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
            };
            format!("http://{}/", SocketAddr::new(ip, address.port()))
        }
        Address::Unix(_) => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_to_try_is_complete() {
        let listeners = [(Address::Inet("0.0.0.0:8080".parse().unwrap()), Mode::Http)];
        let text = text(&listeners, &[11, 12], &["127.0.0.1:9001".to_owned()], true);
        for line in ["curl http://127.0.0.1:8080/\n", "kill -9 11 ", "wrk -t2 -c64 -d10s http://127.0.0.1:8080/\n"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.contains("demo ") && text.contains("workers     2 (pids 11 12)"));
    }

    #[test]
    fn a_relay_alone_has_nothing_for_curl() {
        let listeners = [(Address::Inet("[::1]:5433".parse().unwrap()), Mode::Tcp)];
        let text = text(&listeners, &[11], &vec!["db".to_owned(); 20], false);
        assert!(!text.contains("curl") && text.contains("[::1]:5433 (tcp)") && text.contains("and 12 more"));
    }
}
