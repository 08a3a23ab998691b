//! DNS messages (RFC 1035 section 4): the questions we send, and what of an answer concerns us.
//!
//! Bytes in, values out. Whatever comes is bounded: at most [`RECORDS_MAX`] records of an answer are looked at, and
//! compressed names are followed by the codec, which does not loop.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr as _;

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::{Message, MessageBuilder, Name, ParsedName, Rtype};
use domain::rdata::{A, Aaaa, Cname, Soa, Srv};

/// Records of a section looked at.
pub const RECORDS_MAX: usize = 256;
/// What we take over UDP, in bytes: it passes every usual path unfragmented (RFC 9715 section 3).
pub const UDP_MAX: u16 = 1232;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses (RFC 3596).
    Aaaa,
    /// Where a service is (RFC 2782).
    Srv,
}

impl Kind {
    fn rtype(self) -> Rtype {
        match self {
            Kind::A => Rtype::A,
            Kind::Aaaa => Rtype::AAAA,
            Kind::Srv => Rtype::SRV,
        }
    }
}

/// One question, in class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The message's number.
    pub id: u16,
    /// The name, in lower case and without its last dot.
    pub name: String,
    /// What of it.
    pub kind: Kind,
}

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Lower ones first.
    pub priority: u16,
    /// The share among those of the same priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host, in lower case and without its last dot; empty = the service is not offered.
    pub host: String,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name to be looked up instead.
    Cname(String),
    /// Where a service is.
    Srv(Service),
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose it is, in lower case and without its last dot.
    pub owner: String,
    /// For how long it holds, in seconds.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// What the server made of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The records are the answer.
    Ok,
    /// There is no such name.
    NoSuchName,
    /// It did not understand the question.
    FormatError,
    /// It cannot or does not want to answer; this is its RCODE.
    Failure(u8),
}

/// An answer to our question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What the server made of it.
    pub outcome: Outcome,
    /// The rest did not fit: ask over TCP.
    pub truncated: bool,
    /// Records of the kind asked for, and aliases.
    pub records: Vec<Record>,
    /// For how long there is nothing more, in seconds, when the answer says so (RFC 2308 section 5).
    pub negative_ttl: Option<u32>,
}

/// Why a message is not the answer to our question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// It is not an answer, or one to something else.
    NotOurs,
    /// It cannot be read.
    Malformed,
}

/// Writes a question. `None` for a name that cannot be in one.
///
/// With `edns` it says how much we take over UDP (RFC 6891); some old servers do not understand that.
#[must_use]
pub fn write(question: &Question, edns: bool) -> Option<Vec<u8>> {
    let name: Name<Vec<u8>> = Name::from_str(&question.name).ok()?;
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(question.id);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((&name, question.kind.rtype())).ok()?;
    let mut builder = builder.additional();
    if edns {
        let opt = builder.opt(|opt| {
            opt.set_udp_payload_size(UDP_MAX);
            Ok(())
        });
        opt.ok()?;
    }
    Some(builder.finish())
}

/// Reads a message as the answer to `question`.
///
/// # Errors
/// Why it is not.
pub fn read(bytes: &[u8], question: &Question) -> Result<Reply, Mismatch> {
    let message = Message::from_octets(bytes).map_err(|_| Mismatch::NotOurs)?;
    let header = message.header();
    if header.id() != question.id || !header.qr() || header.opcode() != Opcode::QUERY {
        return Err(Mismatch::NotOurs);
    }
    let rcode = header.rcode();
    let outcome = if rcode == Rcode::NOERROR {
        Outcome::Ok
    } else if rcode == Rcode::NXDOMAIN {
        Outcome::NoSuchName
    } else if rcode == Rcode::FORMERR {
        Outcome::FormatError
    } else {
        Outcome::Failure(rcode.to_int())
    };
    let mut reply = Reply { outcome, truncated: header.tc(), records: Vec::new(), negative_ttl: None };
    // Servers that did not understand the question may leave it out.
    if outcome == Outcome::FormatError && message.header_counts().qdcount() == 0 {
        return Ok(reply);
    }
    let asked = message.sole_question().map_err(|_| Mismatch::NotOurs)?;
    // Servers may return the name in other letters than it was asked in.
    if text_of(asked.qname()) != question.name || asked.qtype() != question.kind.rtype() || asked.qclass() != Class::IN
    {
        return Err(Mismatch::NotOurs);
    }
    if reply.truncated || matches!(outcome, Outcome::FormatError | Outcome::Failure(_)) {
        return Ok(reply);
    }
    for record in message.answer().map_err(|_| Mismatch::Malformed)?.take(RECORDS_MAX) {
        let record = record.map_err(|_| Mismatch::Malformed)?;
        if record.class() != Class::IN {
            continue;
        }
        let malformed = |_| Mismatch::Malformed;
        let data = if record.rtype() == Rtype::CNAME {
            let data = record.to_record::<Cname<ParsedName<&[u8]>>>().map_err(malformed)?;
            data.map(|cname| Data::Cname(text_of(cname.data().cname())))
        } else if record.rtype() != question.kind.rtype() {
            None
        } else {
            match question.kind {
                Kind::A => record.to_record::<A>().map_err(malformed)?.map(|a| Data::A(a.data().addr())),
                Kind::Aaaa => record.to_record::<Aaaa>().map_err(malformed)?.map(|a| Data::Aaaa(a.data().addr())),
                Kind::Srv => record.to_record::<Srv<ParsedName<&[u8]>>>().map_err(malformed)?.map(|srv| {
                    Data::Srv(Service {
                        priority: srv.data().priority(),
                        weight: srv.data().weight(),
                        port: srv.data().port(),
                        host: text_of(srv.data().target()),
                    })
                }),
            }
        };
        if let Some(data) = data {
            reply.records.push(Record { owner: text_of(&record.owner()), ttl: seconds(record.ttl().as_secs()), data });
        }
    }
    reply.negative_ttl = negative_ttl(&message);
    Ok(reply)
}

/// The smaller of the SOA record's own TTL and its last field (RFC 2308 section 5).
fn negative_ttl(message: &Message<&[u8]>) -> Option<u32> {
    for record in message.authority().ok()?.take(RECORDS_MAX) {
        let record = record.ok()?;
        if record.rtype() == Rtype::SOA && record.class() == Class::IN {
            let soa = record.to_record::<Soa<ParsedName<&[u8]>>>().ok()??;
            return Some(seconds(soa.ttl().as_secs()).min(seconds(soa.data().minimum().as_secs())));
        }
    }
    None
}

/// A TTL with its highest bit set counts as 0 (RFC 2181 section 8).
fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX.unsigned_abs() { 0 } else { ttl }
}

fn text_of<Octs: AsRef<[u8]>>(name: &ParsedName<Octs>) -> String {
    let mut text = name.to_string();
    if text == "." {
        text.clear();
    }
    text.make_ascii_lowercase();
    text
}
