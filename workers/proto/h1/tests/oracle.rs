//! A second parser, written apart from the first: whole messages only, by splitting, with no thought of speed. The
//! properties ask whether both see the same message.

/// How content is framed, as the oracle sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// Names in lower case, and values.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A head, as the oracle sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub start: [Vec<u8>; 3],
    pub fields: Fields,
    pub framing: Framing,
    pub len: usize,
}

impl Message {
    /// The values of a field, by its name in lower case.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        self.fields.iter().filter(|(n, _)| n == name.as_bytes()).map(|(_, v)| v.as_slice()).collect()
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = find(rest, b"\r\n") {
        found.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    found.push(rest);
    found
}

fn token(text: &[u8]) -> bool {
    let no = b"\"(),/:;<=>?@[\\]{}";
    !text.is_empty() && text.iter().all(|b| (0x21..0x7f).contains(b) && !no.contains(b))
}

fn trim(text: &[u8]) -> &[u8] {
    let mut text = text;
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// A field line as lower-case name and value.
fn field(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let colon = line.iter().position(|&b| b == b':')?;
    let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
    let text = value.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f));
    (token(name) && text).then(|| (name.to_ascii_lowercase(), value.to_vec()))
}

fn framing(fields: &[(Vec<u8>, Vec<u8>)], http11: bool) -> Option<Framing> {
    let all = |name: &[u8]| fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
    match (all(b"content-length").as_slice(), all(b"transfer-encoding").as_slice()) {
        ([], []) => Some(Framing::None),
        ([one], []) => {
            let text = String::from_utf8(one.clone()).ok()?;
            let digits = !text.is_empty() && text.chars().all(|c| "0123456789".contains(c));
            let significant = text.trim_start_matches('0');
            if !digits || significant.len() > 19 {
                return None;
            }
            let n: u128 = if significant.is_empty() { 0 } else { significant.parse().ok()? };
            (n < 1 << 63).then(|| Framing::Length(u64::try_from(n).unwrap()))
        }
        ([], [one]) if http11 && one.eq_ignore_ascii_case(b"chunked") => Some(Framing::Chunked),
        _ => None,
    }
}

fn head(bytes: &[u8], skipped: usize) -> Option<(Vec<u8>, Fields, usize)> {
    let text = &bytes[skipped..];
    let end = find(text, b"\r\n\r\n")?;
    let mut lines = lines(&text[..end]).into_iter();
    let start = lines.next()?.to_vec();
    let fields = lines.map(field).collect::<Option<Vec<_>>>()?;
    Some((start, fields, skipped + end + 4))
}

/// The request that `bytes` begin with; `None` when there is none, or it is not fit to be passed on.
pub fn request(bytes: &[u8]) -> Option<Message> {
    let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let (start, fields, len) = head(bytes, skipped)?;
    let parts: Vec<Vec<u8>> = start.split(|&b| b == b' ').map(<[u8]>::to_vec).collect();
    let start: [Vec<u8>; 3] = parts.try_into().ok()?;
    let http11 = match start[2].as_slice() {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return None,
    };
    let target_ok = |b: &u8| (0x21..0x7f).contains(b) && !b"\"#<>\\".contains(b);
    if !token(&start[0]) || start[1].is_empty() || !start[1].iter().all(target_ok) {
        return None;
    }
    let hosts = fields.iter().filter(|(n, _)| n == b"host").count();
    if hosts > 1 || (http11 && hosts == 0) {
        return None;
    }
    let framing = framing(&fields, http11)?;
    Some(Message { start, fields, framing, len })
}

/// The response that `bytes` begin with; the framing is what the fields say, whatever the status.
pub fn response(bytes: &[u8]) -> Option<Message> {
    let (start, fields, len) = head(bytes, 0)?;
    let http11 = match start.get(..9)? {
        b"HTTP/1.1 " => true,
        b"HTTP/1.0 " => false,
        _ => return None,
    };
    let status = start.get(9..12)?;
    let reason = &start[12..];
    let text = reason.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f));
    if !status.iter().all(u8::is_ascii_digit) || !(b'1'..=b'5').contains(&status[0]) || !text {
        return None;
    }
    let reason = match reason {
        [] => reason,
        [b' ', rest @ ..] => rest,
        _ => return None,
    };
    let framing = framing(&fields, http11)?;
    Some(Message { start: [start[..8].to_vec(), status.to_vec(), reason.to_vec()], fields, framing, len })
}

/// A chunked body as the oracle sees it: data, trailer fields, length. `None` when it is incomplete or wrong.
pub fn chunked(bytes: &[u8]) -> Option<(Vec<u8>, Fields, usize)> {
    let mut at = 0;
    let mut data = Vec::new();
    loop {
        let line_len = find(&bytes[at..], b"\r\n")?;
        let line = &bytes[at..at + line_len];
        let size_len = line.iter().position(|&b| b == b';').unwrap_or(line.len());
        let size = std::str::from_utf8(&line[..size_len]).ok()?;
        if size.is_empty() || size.len() > 16 || !size.chars().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        if !extensions(&line[size_len..]) {
            return None;
        }
        let size = usize::try_from(u128::from_str_radix(size, 16).ok()?).ok().filter(|&n| n < 1 << 63)?;
        at += line_len + 2;
        if size == 0 {
            break;
        }
        data.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    let mut trailers = Vec::new();
    loop {
        let line_len = find(&bytes[at..], b"\r\n")?;
        let line = &bytes[at..at + line_len];
        at += line_len + 2;
        if line.is_empty() {
            return Some((data, trailers, at));
        }
        trailers.push(field(line)?);
    }
}

/// Whether `text` is `*( ";" token [ "=" ( token / quoted-string ) ] )`.
fn extensions(text: &[u8]) -> bool {
    let mut rest = text;
    while let [b';', after @ ..] = rest {
        let name = after.iter().position(|b| b";=".contains(b)).unwrap_or(after.len());
        if !token(&after[..name]) {
            return false;
        }
        rest = &after[name..];
        if let [b'=', b'"', quoted @ ..] = rest {
            let mut at = 0;
            loop {
                match quoted.get(at) {
                    Some(b'"') => break,
                    Some(b'\\') if quoted.get(at + 1).is_some_and(|&b| text_byte(b)) => at += 2,
                    Some(&b) if b != b'\\' && text_byte(b) => at += 1,
                    _ => return false,
                }
            }
            rest = &quoted[at + 1..];
        } else if let [b'=', after @ ..] = rest {
            let value = after.iter().position(|&b| b == b';').unwrap_or(after.len());
            if !token(&after[..value]) {
                return false;
            }
            rest = &after[value..];
        }
    }
    rest.is_empty()
}

fn text_byte(b: u8) -> bool {
    b == b'\t' || (b >= b' ' && b != 0x7f)
}
