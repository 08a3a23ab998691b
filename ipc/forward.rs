//! What a checked configuration says of forward listeners: who may reach what, and how much of it.
//!
//! Everything here has been validated, as in [`crate::snapshot`], whose part it is. Rules are evaluated by the
//! workers alone.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::snapshot::Network;

/// What a listener with [`crate::snapshot::Mode::Forward`] does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// What clients may speak.
    pub protocols: Protocols,
    /// Who may reach what; `None` = nobody anything.
    pub rules: Option<RuleSet>,
}

/// Protocols in which a client names its target. At least one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocols {
    /// HTTP/1: CONNECT, and requests in absolute-form.
    pub http: bool,
    /// SOCKS version 5 (RFC 1928).
    pub socks5: bool,
    /// SOCKS version 4, with the names of 4a.
    pub socks4a: bool,
    /// The dynamic address exchange: a line of JSON.
    pub dynamic: bool,
}

impl Protocols {
    /// All of them.
    pub const ALL: Protocols = Protocols { http: true, socks5: true, socks4a: true, dynamic: true };

    /// Each with its name in the configuration, and whether it is on.
    #[must_use]
    pub fn named(&self) -> [(&'static str, bool); 4] {
        [("http", self.http), ("socks5", self.socks5), ("socks4a", self.socks4a), ("dynamic", self.dynamic)]
    }
}

/// An ordered list of rules under a name: the first that matches decides, and without one everything is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSet {
    /// Its name in the configuration.
    pub name: String,
    /// Whether clients must say who they are, and prove it.
    pub auth: bool,
    /// How long a tunnel may last, however much moves on it; `None` = no bound.
    pub lifetime_ms: Option<u32>,
    /// In the order in which they are asked.
    pub rules: Vec<Rule>,
    /// Bounds for each user.
    pub per_user: UseLimits,
    /// Bounds for each client address.
    pub per_address: UseLimits,
}

/// What a matching rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The connection is made, unless the address is a special one that the rule does not list.
    Allow,
    /// It is refused.
    Deny,
}

/// Which connections a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// Those to targets.
    Targets,
    /// Those that deliver an answer to the address a client has named for it (`reply_to`).
    Replies,
}

/// One rule. Of each list that is not empty something must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What it decides.
    pub action: Action,
    /// What it is about.
    pub subject: Subject,
    /// Where the client is.
    pub clients: Vec<Network>,
    /// Who the client is.
    pub users: Vec<String>,
    /// The target as it was named, in lower case, without a final dot. Nothing matches a target named by an address.
    pub names: Vec<NameMatch>,
    /// The address that is connected to.
    pub networks: Vec<Network>,
    /// The port. Where an allowing rule has none, those that the protocol is for are meant.
    pub ports: Vec<PortRange>,
}

/// Matches a host name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameMatch {
    /// This one, in lower case.
    Exact(String),
    /// Every name that ends so; it begins with a dot, in lower case.
    Suffix(String),
}

impl NameMatch {
    /// Whether `name`, in lower case and without a final dot, is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            NameMatch::Exact(exact) => exact == name,
            NameMatch::Suffix(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
        }
    }
}

impl fmt::Display for NameMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameMatch::Exact(text) | NameMatch::Suffix(text) => f.write_str(text),
        }
    }
}

/// Ports from `first` to `last`, both of them meant; 1 to 65535, `first` not above `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    /// Whether `port` is meant.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// What one user, or one address, may use; `None` = no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UseLimits {
    /// Connections to targets at a time, over all workers, at least 1.
    pub connections: Option<u32>,
    /// Connections to targets begun in a second, over all workers, at least 1.
    pub connections_per_second: Option<u32>,
    /// Bytes relayed in a second, both ways together, over all workers, at least 1024.
    pub rate_bytes: Option<u64>,
}

impl UseLimits {
    /// Whether nothing is bounded.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == UseLimits::default()
    }
}

/// Somebody who may prove to be who they say they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name, without a colon and without control characters.
    pub name: String,
    /// The password's hash: a PHC string of argon2id, or one of bcrypt. It can be read by the libraries for them.
    pub hash: String,
}

/// In what a target was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spoken {
    /// A request in absolute-form.
    Http,
    /// CONNECT of HTTP.
    Connect,
    /// SOCKS version 5.
    Socks5,
    /// SOCKS version 4 or 4a.
    Socks4,
    /// The dynamic address exchange.
    Dynamic,
}

impl Spoken {
    /// As the access log has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Spoken::Http => "HTTP",
            Spoken::Connect => "CONNECT",
            Spoken::Socks5 => "SOCKS5",
            Spoken::Socks4 => "SOCKS4",
            Spoken::Dynamic => "DYNAMIC",
        }
    }
}

/// What a worker that goes on with a tunnel must know of it: for its log, its limits and its end. The master keeps it
/// beside the tunnel's descriptors, and looks at nothing in it but its size. Times are microseconds of the monotonic
/// clock, which all processes of a machine share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// In what it was asked for.
    pub spoken: Spoken,
    /// The target as it was named.
    pub target: String,
    /// Who asked for it, if that was proved.
    pub user: Option<String>,
    /// The rule that allowed it, as `SET:RULE`.
    pub rule: Option<String>,
    /// When it was asked for.
    pub began_us: u64,
    /// When it stood.
    pub connected_us: u64,
    /// How long it may last from then on; `None` = no bound.
    pub lifetime_ms: Option<u32>,
    /// Of an exchange whose answer goes elsewhere: between which addresses.
    pub delivery: Option<Delivery>,
}

/// The two ends of an exchange with `reply_to` besides the client. Everything else about it the kernel knows; of a
/// connection that is over it has forgotten the address, and of one that has not begun it knows none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The address of the target that was connected to.
    pub target: SocketAddr,
    /// Where its answer goes.
    pub reply_to: SocketAddr,
}

impl Tunnel {
    /// What one adds to a message at most: [`Tunnel::bytes`] of one that is sound.
    pub const BYTES_MAX: usize = 1024;

    /// About what it adds to a message, never less.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let delivery = self.delivery.map_or(0, |_| 48);
        48 + delivery + self.target.len() + text(&self.user) + text(&self.rule)
    }

    /// Whether it is no longer than any that a worker makes. One that is longer comes from none that works as it should.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.bytes() <= Self::BYTES_MAX
    }
}

/// How many wrong passwords each worker takes; `None` = any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureLimits {
    /// For one name from one address in a minute, at least 1.
    pub per_minute: Option<u32>,
    /// From one address in a minute, for all names that have not been proved there; at least 1.
    pub per_minute_address: Option<u32>,
}

impl Default for FailureLimits {
    fn default() -> FailureLimits {
        FailureLimits { per_minute: Some(10), per_minute_address: Some(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_is_of_names_below_it_only() {
        let suffix = NameMatch::Suffix(".example.com".to_owned());
        for (name, wanted) in [
            ("www.example.com", true),
            ("a.b.example.com", true),
            ("example.com", false),
            (".example.com", false),
            ("badexample.com", false),
            ("www.example.com.evil.test", false),
        ] {
            assert_eq!(suffix.matches(name), wanted, "{name}");
        }
        assert!(NameMatch::Exact("a.test".to_owned()).matches("a.test"));
        assert!(!NameMatch::Exact("a.test".to_owned()).matches("b.a.test"));
    }

    #[test]
    fn a_tunnel_takes_no_more_room_than_it_says() {
        let text = |length| "x".repeat(length);
        let tunnel = Tunnel {
            spoken: Spoken::Dynamic,
            target: text(259),
            user: Some(text(255)),
            rule: Some(text(300)),
            began_us: u64::MAX,
            connected_us: u64::MAX,
            lifetime_ms: Some(u32::MAX),
            delivery: Some(Delivery {
                target: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
                reply_to: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
            }),
        };
        assert!(tunnel.is_sound());
        assert!(postcard::to_stdvec(&tunnel).unwrap().len() <= tunnel.bytes());
        assert!(!Tunnel { target: text(5000), ..tunnel }.is_sound());
    }

    #[test]
    fn both_ends_of_a_range_belong_to_it() {
        let range = PortRange { first: 80, last: 81 };
        assert_eq!([79, 80, 81, 82].map(|port| range.contains(port)), [false, true, true, false]);
    }
}
