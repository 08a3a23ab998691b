//! The byte classes of RFC 9110 section 5.6 and the one scanner of field lines. Knows no field's meaning.

use super::error::HeadError;
use super::span::Span;

/// `tchar` (RFC 9110 section 5.6.2).
pub(super) const TOKEN: u8 = 1;
/// A byte taken in a request target; see `docs/http-conformance.md` for the ones beyond RFC 3986.
pub(super) const TARGET: u8 = 2;
/// A `tchar` that is neither letter, digit nor `-`: gateways to CGI turn such bytes into `_`.
pub(super) const ODD: u8 = 4;
/// A byte of a registered name in an authority: letters, digits, `-`, `.`, `_`, `~`.
pub(super) const HOST: u8 = 8;
/// `%`, to be followed by two hexadecimal digits in a path.
pub(super) const PERCENT: u8 = 16;

/// The classes of every byte.
pub(super) static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0u8; 256];
    let mut byte = 0u8;
    while byte < 0x7f {
        let mut bits = 0;
        let plain = byte.is_ascii_alphanumeric() || byte == b'-';
        let symbol = matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        );
        if plain || symbol {
            bits |= TOKEN;
        }
        if symbol {
            bits |= ODD;
        }
        if byte > b' ' && !matches!(byte, b'"' | b'#' | b'<' | b'>' | b'\\') {
            bits |= TARGET;
        }
        if plain || matches!(byte, b'.' | b'_' | b'~') {
            bits |= HOST;
        }
        if byte == b'%' {
            bits |= PERCENT;
        }
        table[byte as usize] = bits;
        byte += 1;
    }
    table
}

/// Whether `byte` belongs to the class.
#[inline]
pub(super) fn is(byte: u8, class: u8) -> bool {
    CLASS[usize::from(byte)] & class != 0
}

/// Whether `text` is a `token`.
pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|&b| is(b, TOKEN))
}

/// SP or HTAB, the optional white space of RFC 9110 section 5.6.3.
#[inline]
pub(super) fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The part of `bytes` a head may take: what lies beyond the limit is not looked at.
pub(super) fn window(bytes: &[u8], limit: usize) -> &[u8] {
    let limit = limit.min(u32::MAX as usize - 1);
    bytes.get(..limit).unwrap_or(bytes)
}

/// The first position from `at` on that holds a control byte (below 0x20, or 0x7f) other than HTAB, or the end.
#[inline]
pub(super) fn text_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    loop {
        while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
            // Eight bytes at a time; the lowest marked byte is exact, borrows only spoil those above it.
            let word = u64::from_le_bytes(*chunk);
            let del = word ^ (ONES * 0x7f);
            let low = word.wrapping_sub(ONES * 0x20) & !word;
            let found = (low | (del.wrapping_sub(ONES) & !del)) & HIGH;
            if found != 0 {
                at += (found.trailing_zeros() / 8) as usize;
                break;
            }
            at += 8;
        }
        while let Some(&byte) = bytes.get(at) {
            if byte == b'\t' {
                break;
            }
            if byte < 0x20 || byte == 0x7f {
                return at;
            }
            at += 1;
        }
        if at >= bytes.len() {
            return at;
        }
        at += 1;
    }
}

/// What stands where a field line may begin.
pub(super) enum Line {
    /// Legal so far, but the line's end has not come.
    More,
    /// The empty line; the next byte's position.
    End(usize),
    /// A field line.
    Field(RawField),
}

/// A field line whose bytes are all legal.
pub(super) struct RawField {
    /// The name: a token.
    pub(super) name: Span,
    /// The value without the blanks around it.
    pub(super) value: Span,
    /// Whether the name holds a byte that CGI turns into `_` (`_` itself, `.`, ...).
    pub(super) odd: bool,
    /// Where the next line begins.
    pub(super) next: usize,
}

/// Reads one field line (RFC 9112 section 5) at `at`. `line` is its number, for messages; `first` tells
/// that no field line came before it.
///
/// # Errors
/// The first byte that cannot stand where it stands, also when the line is not complete.
#[inline]
pub(super) fn field_line(bytes: &[u8], at: usize, line: u32, first: bool) -> Result<Line, HeadError> {
    let mut i = at;
    let mut bits = 0;
    let stop = loop {
        let Some(&byte) = bytes.get(i) else { return Ok(Line::More) };
        let class = CLASS[usize::from(byte)];
        if class & TOKEN == 0 {
            break byte;
        }
        bits |= class;
        i += 1;
    };
    if stop != b':' || i == at {
        return no_name(bytes, at, i, line, first);
    }
    let name = Span::new(at, i);
    i += 1;
    while bytes.get(i).copied().is_some_and(is_blank) {
        i += 1;
    }
    let start = i;
    let mut end = text_end(bytes, i);
    let next = match line_end(bytes, end, line)? {
        Some(next) => next,
        None => return Ok(Line::More),
    };
    while end > start && is_blank(bytes[end - 1]) {
        end -= 1;
    }
    Ok(Line::Field(RawField { name, value: Span::new(start, end), odd: bits & ODD != 0, next }))
}

/// The line does not begin with a name and a colon: the empty line, or a fault.
#[cold]
fn no_name(bytes: &[u8], at: usize, stop: usize, line: u32, first: bool) -> Result<Line, HeadError> {
    let begins = stop == at;
    match bytes.get(stop) {
        Some(b'\r') if begins => Ok(line_end(bytes, at, line)?.map_or(Line::More, Line::End)),
        Some(b' ' | b'\t') if begins && first => Err(HeadError::LeadingSpace { line }),
        Some(b' ' | b'\t') if begins => Err(HeadError::ObsFold { line }),
        Some(b' ' | b'\t') => Err(HeadError::SpaceBeforeColon { line }),
        Some(b':') => Err(HeadError::EmptyName { line }),
        Some(b'\n') => Err(HeadError::BareLf { line }),
        Some(b'\r') => Err(HeadError::NoColon { line }),
        Some(&byte) => Err(HeadError::NameByte { line, byte }),
        None => Ok(Line::More),
    }
}

/// Takes CRLF at `at`; `None` when it has not come whole. `bytes[at]`, if any, ends the text of the line.
#[inline]
pub(super) fn line_end(bytes: &[u8], at: usize, line: u32) -> Result<Option<usize>, HeadError> {
    match (bytes.get(at), bytes.get(at + 1)) {
        (Some(b'\r'), Some(b'\n')) => Ok(Some(at + 2)),
        (None, _) | (Some(b'\r'), None) => Ok(None),
        (Some(b'\r'), Some(_)) => Err(HeadError::BareCr { line }),
        (Some(b'\n'), _) => Err(HeadError::BareLf { line }),
        (Some(&byte), _) => Err(HeadError::Control { line, byte }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_at_the_first_control_byte_wherever_it_lies() {
        for byte in 0..=255u8 {
            for len in 0..40 {
                for at in 0..len {
                    let mut text = vec![b'a'; len];
                    text[at] = byte;
                    let control = (byte < 0x20 && byte != b'\t') || byte == 0x7f;
                    assert_eq!(text_end(&text, 0), if control { at } else { len }, "byte {byte:#x} at {at} of {len}");
                    text[len - 1] = b'\n';
                    let want = if control && at < len - 1 { at } else { len - 1 };
                    assert_eq!(text_end(&text, 0), want, "byte {byte:#x} at {at} of {len}, LF last");
                }
            }
        }
    }

    #[test]
    fn token_bytes_are_those_of_rfc_9110_5_6_2() {
        let symbols = b"!#$%&'*+-.^_`|~";
        for byte in 0..=255u8 {
            assert_eq!(is(byte, TOKEN), byte.is_ascii_alphanumeric() || symbols.contains(&byte), "{byte:#x}");
        }
    }

    #[test]
    fn target_bytes_are_visible_ascii_without_the_five() {
        for byte in 0..=255u8 {
            assert_eq!(is(byte, TARGET), byte.is_ascii_graphic() && !b"\"#<>\\".contains(&byte), "{byte:#x}");
        }
    }
}
