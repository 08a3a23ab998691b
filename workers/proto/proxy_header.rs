//! The PROXY protocol's header, versions 1 and 2: what a proxy in front says of a connection, and what we say of
//! one to a server (HAProxy's `proxy-protocol.txt`, quoted as "spec" below).
//!
//! Bytes in, addresses out, and back. It knows no socket, and not whether a peer may be believed.

use std::fmt;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipc::origin::Ends;
use ipc::snapshot::ProxyVersion;

/// A header of version 2 with all its fields may have so many bytes; its own length field would allow 65,551.
pub const MAX_BYTES: usize = 4096;

/// The longest line of version 1, CRLF included (spec 2.1).
const V1_MAX: usize = 107;
const V1_START: &[u8] = b"PROXY ";
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length (spec 2.2).
const V2_FIXED: usize = 16;
/// Type and length of one of the fields behind the addresses (spec 2.2).
const TLV_FIXED: usize = 3;
const TLV_CRC32C: u8 = 3;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How many bytes it has, 15 to [`MAX_BYTES`].
    pub length: usize,
    /// What it says; `None` = nothing that could be used: the addresses of the connection itself hold (version 1
    /// UNKNOWN; version 2 LOCAL, or a family or transport other than TCP).
    pub ends: Option<Ends>,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeaderError {
    /// They begin like neither version.
    NoHeader,
    /// Version 1: no CRLF within the first 107 bytes.
    LineTooLong,
    /// Version 1: a CR or LF alone.
    BareLineEnd,
    /// Version 1: not exactly `PROXY TCP4|TCP6 source destination port port`, or not UNKNOWN.
    Line,
    /// Version 1: not an address of the family that was announced.
    Address,
    /// Version 1: not a port without leading zeros.
    Port,
    /// Version 2's signature with another version behind it.
    Version,
    /// Version 2: a command that is neither LOCAL nor PROXY.
    Command,
    /// Version 2: an unassigned family or transport.
    Family,
    /// Version 2: a length of more than [`MAX_BYTES`] in all.
    TooLong,
    /// Version 2: a length that the addresses do not fit in.
    TooShort,
    /// Version 2: a field behind the addresses that ends beyond the header.
    Field,
    /// Version 2: a checksum that is not right, not of four bytes, or there twice.
    Checksum,
}

impl fmt::Display for ProxyHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyHeaderError::NoHeader => "it does not begin with a PROXY header",
            ProxyHeaderError::LineTooLong => "the PROXY line does not end within 107 bytes",
            ProxyHeaderError::BareLineEnd => "CR or LF alone in the PROXY line",
            ProxyHeaderError::Line => "the PROXY line is not `PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT`",
            ProxyHeaderError::Address => "an address in the PROXY line is not one of its family",
            ProxyHeaderError::Port => "a port in the PROXY line is not a number from 0 to 65535",
            ProxyHeaderError::Version => "the PROXY header has a version other than 1 or 2",
            ProxyHeaderError::Command => "the PROXY header has an unknown command",
            ProxyHeaderError::Family => "the PROXY header has an unknown address family or transport",
            ProxyHeaderError::TooLong => "the PROXY header has more than 4096 bytes",
            ProxyHeaderError::TooShort => "the PROXY header is too short for its addresses",
            ProxyHeaderError::Field => "a field of the PROXY header ends beyond it",
            ProxyHeaderError::Checksum => "the PROXY header's checksum is wrong",
        })
    }
}

/// The header that `bytes` begin with; `Ok(None)` while more are needed. What follows it is not looked at.
///
/// Whatever the bytes still to come are, an error stays the same error and a header the same header.
///
/// # Errors
/// Where the bytes cannot be the beginning of a valid header.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, ProxyHeaderError> {
    if starts(bytes, V1_START) {
        return if bytes.len() < V1_START.len() { Ok(None) } else { parse_v1(bytes) };
    }
    if starts(bytes, &V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    Err(ProxyHeaderError::NoHeader)
}

/// Whether `bytes` begin with `start`, as far as they go.
fn starts(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(byte, wanted)| byte == wanted)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, ProxyHeaderError> {
    // The CR of a line with all its CRLF within the bound is among these.
    let window = &bytes[..bytes.len().min(V1_MAX - 1)];
    let Some(end) = window.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if window.len() < V1_MAX - 1 { Ok(None) } else { Err(ProxyHeaderError::LineTooLong) };
    };
    match (bytes[end], bytes.get(end + 1)) {
        (b'\r', Some(b'\n')) => {}
        (b'\r', None) => return Ok(None),
        _ => return Err(ProxyHeaderError::BareLineEnd),
    }
    let ends = parse_line(&bytes[V1_START.len()..end])?;
    Ok(Some(Header { length: end + 2, ends }))
}

/// A line of version 1 between `PROXY ` and CRLF.
fn parse_line(line: &[u8]) -> Result<Option<Ends>, ProxyHeaderError> {
    let text = str::from_utf8(line).unwrap_or_default();
    // Whatever follows the word is to be ignored, text or not (spec 2.1).
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(None);
    }
    let mut words = text.split(' ');
    let mut word = || words.next().ok_or(ProxyHeaderError::Line);
    let ip: fn(&str) -> Option<IpAddr> = match word()? {
        "TCP4" => |text| text.parse().ok().map(IpAddr::V4),
        // Mapped addresses are taken with their last 32 bits in either notation: senders that use `inet_ntop`
        // write dots.
        "TCP6" => |text| text.parse().ok().map(IpAddr::V6),
        _ => return Err(ProxyHeaderError::Line),
    };
    let (source, destination, source_port, destination_port) = (word()?, word()?, word()?, word()?);
    if words.next().is_some() {
        return Err(ProxyHeaderError::Line);
    }
    let ip = |text| ip(text).ok_or(ProxyHeaderError::Address);
    let (source, destination) = (ip(source)?, ip(destination)?);
    Ok(Some(Ends {
        source: SocketAddr::new(source, parse_port(source_port)?),
        destination: SocketAddr::new(destination, parse_port(destination_port)?),
    }))
}

fn parse_port(text: &str) -> Result<u16, ProxyHeaderError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain).ok_or(ProxyHeaderError::Port)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, ProxyHeaderError> {
    let Some(&version_command) = bytes.get(12) else { return Ok(None) };
    if version_command >> 4 != 2 {
        return Err(ProxyHeaderError::Version);
    }
    let local = match version_command & 0x0f {
        0 => true,
        1 => false,
        _ => return Err(ProxyHeaderError::Command),
    };
    let Some(&family_transport) = bytes.get(13) else { return Ok(None) };
    let (family, transport) = (family_transport >> 4, family_transport & 0x0f);
    // Of LOCAL the family is ignored as well (spec 2.2).
    if !local && (family > 3 || transport > 2) {
        return Err(ProxyHeaderError::Family);
    }
    let Some(&[high, low]) = bytes.get(14..V2_FIXED) else { return Ok(None) };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_BYTES {
        return Err(ProxyHeaderError::TooLong);
    }
    let address_bytes = match (family, transport) {
        _ if local => 0,
        // Nobody can tell how long the addresses are, so neither where other fields begin.
        (0, _) | (_, 0) => 0,
        (1, _) => 12,
        (2, _) => 36,
        _ => 216,
    };
    if length - V2_FIXED < address_bytes {
        return Err(ProxyHeaderError::TooShort);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let (block, fields) = header[V2_FIXED..].split_at(address_bytes);
    if address_bytes > 0 {
        check_fields(header, fields)?;
    }
    let ends = if transport == 1 { stream_ends(block) } else { None };
    Ok(Some(Header { length, ends }))
}

/// The addresses of TCP; `None` for Unix sockets.
fn stream_ends(block: &[u8]) -> Option<Ends> {
    fn pair<const N: usize>(block: &[u8]) -> Option<Ends>
    where
        IpAddr: From<[u8; N]>,
    {
        let (source, rest) = block.split_first_chunk::<N>()?;
        let (destination, ports) = rest.split_first_chunk::<N>()?;
        let (source_port, rest) = ports.split_first_chunk()?;
        let (destination_port, []) = rest.split_first_chunk()? else { return None };
        Some(Ends {
            source: SocketAddr::new((*source).into(), u16::from_be_bytes(*source_port)),
            destination: SocketAddr::new((*destination).into(), u16::from_be_bytes(*destination_port)),
        })
    }
    pair::<4>(block).or_else(|| pair::<16>(block))
}

/// Checks that the fields behind the addresses fill the header exactly, and a checksum if there is one.
fn check_fields(header: &[u8], fields: &[u8]) -> Result<(), ProxyHeaderError> {
    let mut rest = fields;
    let mut checksum = None;
    while !rest.is_empty() {
        let [kind, high, low, ..] = *rest else { return Err(ProxyHeaderError::Field) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let value_at = header.len() - rest.len() + TLV_FIXED;
        let value = rest.get(TLV_FIXED..TLV_FIXED + length).ok_or(ProxyHeaderError::Field)?;
        if kind == TLV_CRC32C {
            let value = <[u8; 4]>::try_from(value).map_err(|_| ProxyHeaderError::Checksum)?;
            if checksum.replace((value_at, value)).is_some() {
                return Err(ProxyHeaderError::Checksum);
            }
        }
        rest = &rest[TLV_FIXED + length..];
    }
    let Some((at, value)) = checksum else { return Ok(()) };
    // It is computed with four zeros in its own place (spec 2.2.3).
    let mut crc = Crc32c::new();
    crc.add(&header[..at]);
    crc.add(&[0; 4]);
    crc.add(&header[at + 4..]);
    if crc.value() == u32::from_be_bytes(value) { Ok(()) } else { Err(ProxyHeaderError::Checksum) }
}

/// CRC-32C (Castagnoli; RFC 9260 appendix A), reflected.
struct Crc32c(u32);

impl Crc32c {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        let mut byte: u32 = 0;
        while index < 256 {
            let mut value = byte;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
            byte += 1;
        }
        table
    };

    fn new() -> Crc32c {
        Crc32c(u32::MAX)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let [low, ..] = self.0.to_le_bytes();
            self.0 = Crc32c::TABLE[usize::from(low ^ byte)] ^ self.0 >> 8;
        }
    }

    fn value(self) -> u32 {
        !self.0
    }
}

/// Writes a header that says `ends`, or, without any, that they are unknown.
///
/// For want of addresses version 2 says LOCAL, which every receiver must accept, rather than PROXY with an
/// unspecified family, which receivers may refuse (spec 2.2).
pub fn write(out: &mut Vec<u8>, version: ProxyVersion, ends: Option<&Ends>) {
    match (version, ends.map(|ends| (ends, ends.source.ip(), ends.destination.ip()))) {
        (ProxyVersion::V1, None) => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        (ProxyVersion::V1, Some((ends, IpAddr::V4(source), IpAddr::V4(destination)))) => {
            line(out, format_args!("TCP4 {source} {destination}"), ends);
        }
        (ProxyVersion::V1, Some((ends, source, destination))) => {
            line(out, format_args!("TCP6 {} {}", Colons(source), Colons(destination)), ends);
        }
        (ProxyVersion::V2, None) => block(out, 0x20, 0x00, &[], None),
        (ProxyVersion::V2, Some((ends, IpAddr::V4(source), IpAddr::V4(destination)))) => {
            block(out, 0x21, 0x11, &[source.octets(), destination.octets()].concat(), Some(ends));
        }
        (ProxyVersion::V2, Some((ends, source, destination))) => {
            block(out, 0x21, 0x21, &[as_v6(source).octets(), as_v6(destination).octets()].concat(), Some(ends));
        }
    }
}

fn line(out: &mut Vec<u8>, ips: fmt::Arguments<'_>, ends: &Ends) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "PROXY {ips} {} {}\r\n", ends.source.port(), ends.destination.port());
}

fn block(out: &mut Vec<u8>, version_command: u8, family_transport: u8, ips: &[u8], ends: Option<&Ends>) {
    let ports = ends.map(|ends| [ends.source.port().to_be_bytes(), ends.destination.port().to_be_bytes()].concat());
    let ports = ports.unwrap_or_default();
    let length = u8::try_from(ips.len() + ports.len()).unwrap_or(0);
    out.extend_from_slice(&V2_SIGNATURE);
    out.extend_from_slice(&[version_command, family_transport, 0, length]);
    out.extend_from_slice(ips);
    out.extend_from_slice(&ports);
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// An address as TCP6 has it: groups of hexadecimal digits only, IPv4-mapped ones too (spec 2.1).
struct Colons(IpAddr);

impl fmt::Display for Colons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = as_v6(self.0);
        match ip.to_ipv4_mapped().map(|ip| ip.octets()) {
            Some([a, b, c, d]) => {
                let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                write!(f, "::ffff:{high:x}:{low:x}")
            }
            None => ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
