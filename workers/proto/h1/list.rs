//! Comma-separated lists (RFC 9110 section 5.6.1), as far as tokens without quoted strings go.

use super::lex;

/// The members of the list `value`: blanks around them trimmed, empty ones skipped.
pub fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|member| !member.is_empty())
}

/// `text` without the SP and HTAB around it.
#[must_use]
pub fn trim(text: &[u8]) -> &[u8] {
    let Some(start) = text.iter().position(|&byte| !lex::is_blank(byte)) else { return &[] };
    let end = text.iter().rposition(|&byte| !lex::is_blank(byte)).map_or(start, |last| last + 1);
    text.get(start..end).unwrap_or_default()
}

/// `member` up to its first `;`, trimmed: the name of a coding or media range without its parameters.
#[must_use]
pub fn without_parameters(member: &[u8]) -> &[u8] {
    trim(member.split(|&byte| byte == b';').next().unwrap_or_default())
}

/// A non-empty run of decimal digits as a number.
///
/// # Errors
/// [`NumberFault`], by what is wrong.
pub fn number(text: &[u8]) -> Result<u64, NumberFault> {
    if text.is_empty() {
        return Err(NumberFault::Empty);
    }
    let mut value = 0u64;
    let mut overflow = false;
    for &byte in text {
        if !byte.is_ascii_digit() {
            return Err(NumberFault::Digit);
        }
        match value.checked_mul(10).and_then(|v| v.checked_add(u64::from(byte - b'0'))) {
            Some(v) => value = v,
            None => overflow = true,
        }
    }
    if overflow { Err(NumberFault::TooLarge) } else { Ok(value) }
}

/// Why a text is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberFault {
    /// No byte at all.
    Empty,
    /// A byte that is no decimal digit.
    Digit,
    /// More than 64 bits.
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_skip_empty_members() {
        let got = |text: &'static str| members(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(got(" , a\t,,b , "), [b"a", b"b"]);
        assert!(got("").is_empty());
        assert!(got(" ,\t, ").is_empty());
        assert_eq!(got("a b"), [b"a b"]);
    }

    #[test]
    fn numbers_are_decimal_digits_only() {
        assert_eq!(number(b"007"), Ok(7));
        assert_eq!(number(b"18446744073709551615"), Ok(u64::MAX));
        assert_eq!(number(b"18446744073709551616"), Err(NumberFault::TooLarge));
        assert_eq!(number(b"99999999999999999999x"), Err(NumberFault::Digit));
        for bad in ["+1", "-1", " 1", "1 ", "0x1", "1,1", "1.0", "1_0"] {
            assert_eq!(number(bad.as_bytes()), Err(NumberFault::Digit), "{bad}");
        }
    }
}
