//! Configurations for the proxy under test, put together from parts.

use std::net::SocketAddr;

use super::proxy::{Launch, Proxy};

/// A configuration put together from its parts.
#[derive(Debug, Default)]
pub struct Conf {
    top: String,
    listen: String,
    group: String,
    tables: String,
    servers: Vec<String>,
    unrouted: bool,
}

impl Conf {
    /// One HTTP listener, one group `web` of these servers.
    pub fn http(servers: &[SocketAddr]) -> Conf {
        let servers = servers.iter().map(|server| format!("\"{server}\"")).collect();
        Conf { servers, ..Conf::default() }
    }

    /// One TCP listener, one group `web` of these servers.
    pub fn tcp(servers: &[SocketAddr]) -> Conf {
        let mut conf = Conf::http(servers).listen("mode = \"tcp\"").listen("to = \"web\"");
        conf.unrouted = true;
        conf
    }

    /// Leaves out the route that takes everything; [`Conf::tables`] gives others.
    pub fn unrouted(mut self) -> Conf {
        self.unrouted = true;
        self
    }

    /// Another server of the group, as TOML.
    pub fn server(mut self, toml: String) -> Conf {
        self.servers.push(toml);
        self
    }

    /// A line at the top level.
    pub fn top(mut self, line: &str) -> Conf {
        self.top += &format!("{line}\n");
        self
    }

    /// A line of the listener.
    pub fn listen(mut self, line: &str) -> Conf {
        self.listen += &format!("{line}\n");
        self
    }

    /// A line of the group.
    pub fn group(mut self, line: &str) -> Conf {
        self.group += &format!("{line}\n");
        self
    }

    /// Further tables.
    pub fn tables(mut self, text: &str) -> Conf {
        self.tables += &format!("{text}\n");
        self
    }

    pub fn text(&self) -> String {
        let route = if self.unrouted { "" } else { "[[route]]\nto = \"web\"\n" };
        let bind = if self.listen.contains("bind") { "" } else { "bind = \"127.0.0.1:0\"\n" };
        format!(
            "{}[[listen]]\n{bind}{}\n{route}[backends.web]\nservers = [{}]\n{}\n{}",
            self.top,
            self.listen,
            self.servers.join(", "),
            self.group,
            self.tables
        )
    }

    pub fn launch(&self) -> Launch {
        Launch::config(&self.text())
    }

    #[track_caller]
    pub fn start(&self) -> Proxy {
        self.launch().start()
    }
}
