//! What is looked up and what comes of it: the vocabulary of the resolver and of those who ask it.

use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use crate::dns::answer;
use crate::dns::message::Service;
use crate::dns::servers::Trouble;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its addresses, in the order in which they are to be tried (RFC 8305 section 4).
    pub addresses: Vec<IpAddr>,
    /// Where a service is, when that was asked for; in no particular order.
    pub services: Vec<Service>,
    /// Until when this holds, by the worker's clock; [`u64::MAX`] = for good.
    pub expires_ms: u64,
    /// Families of which nothing is known, since no server said whether there are any.
    pub lacks: Lacks,
    /// The names that it is an alias for, the last of which has the addresses; in lower case.
    pub aliases: Aliases,
}

/// See [`Answer::aliases`]; `None` when there are none.
pub type Aliases = Option<Rc<[String]>>;

/// See [`Answer::lacks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lacks {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Answer {
    pub(super) fn fixed(addresses: Vec<IpAddr>) -> Rc<Answer> {
        let lacks = Lacks::default();
        Rc::new(Answer { addresses, services: Vec::new(), expires_ms: u64::MAX, lacks, aliases: None })
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsError {
    /// The text is neither a name nor an address.
    NotAName(&'static str),
    /// Too many names are being looked up.
    Busy,
    /// No name server is configured.
    NoServers,
    /// There is no such name (NXDOMAIN).
    NoSuchName,
    /// The name has no addresses, or the service no servers.
    NoAddress,
    /// Every server failed; the last one with this RCODE.
    ServerFailure(u8),
    /// Every server failed, the last one so.
    Trouble(Trouble),
    /// An alias of an alias, and so on, beyond the bound, or in a circle.
    AliasesTooLong,
    /// An alias for an address written as a name, or for the machine itself.
    BadAlias,
    /// It took too long altogether.
    TooLong,
}

impl DnsError {
    /// Whether this is how things are, rather than that nobody could say.
    #[must_use]
    pub fn is_definite(self) -> bool {
        match self {
            DnsError::NotAName(_) | DnsError::NoSuchName | DnsError::NoAddress => true,
            DnsError::Busy
            | DnsError::NoServers
            | DnsError::ServerFailure(_)
            | DnsError::Trouble(_)
            | DnsError::AliasesTooLong
            | DnsError::BadAlias
            | DnsError::TooLong => false,
        }
    }

    /// Whether the name servers have answered, with something that is no answer: asking again soon is of no use, but it
    /// does not mean that there is nothing.
    #[must_use]
    pub fn is_fault_of_zone(self) -> bool {
        match self {
            DnsError::AliasesTooLong | DnsError::BadAlias => true,
            DnsError::NotAName(_)
            | DnsError::Busy
            | DnsError::NoServers
            | DnsError::NoSuchName
            | DnsError::NoAddress
            | DnsError::ServerFailure(_)
            | DnsError::Trouble(_)
            | DnsError::TooLong => false,
        }
    }
}

impl fmt::Display for DnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DnsError::NotAName(why) => f.write_str(why),
            DnsError::Busy => f.write_str("too many names are being looked up already"),
            DnsError::NoServers => f.write_str("no name server is configured"),
            DnsError::NoSuchName => f.write_str("there is no such name"),
            DnsError::NoAddress => f.write_str("it has no addresses"),
            DnsError::ServerFailure(2) => f.write_str("the name servers fail (SERVFAIL)"),
            DnsError::ServerFailure(5) => f.write_str("the name servers refuse (REFUSED)"),
            DnsError::ServerFailure(code) => write!(f, "the name servers fail (RCODE {code})"),
            DnsError::Trouble(Trouble::Silent) => f.write_str("no name server answers"),
            DnsError::Trouble(Trouble::Unreachable) => f.write_str("no name server can be reached"),
            DnsError::Trouble(Trouble::Nonsense) => f.write_str("what the name servers send is no answer"),
            DnsError::AliasesTooLong => write!(f, "it is an alias {} times over, or in a circle", answer::CHAIN_MAX),
            DnsError::BadAlias => f.write_str("it is an alias for an address written as a name, or for localhost"),
            DnsError::TooLong => f.write_str("looking it up took too long"),
        }
    }
}

/// What a lookup came to at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The answer was there.
    Ready(Rc<Answer>),
    /// It will be among [`crate::dns::resolver::Resolver::next_finished`].
    Pending,
    /// There is none; nobody is asked.
    Refused(DnsError),
}

/// What of a name is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Its addresses.
    Host,
    /// Where the service is.
    Service,
}

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The name, in lower case.
    pub name: String,
    /// No search suffix is tried.
    pub absolute: bool,
    /// What of it.
    pub wanted: Wanted,
}
