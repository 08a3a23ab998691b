//! The path of a request as routes see it.

use std::borrow::Cow;

/// `path` without dot segments (RFC 3986 section 5.2.4), also where dots are percent-encoded, which means the same
/// (section 2.3). A route must not be got round by `/public/../private/`, which many servers read as `/private/`.
/// Only routing sees the result; the server gets the target as it came. A path without dot segments is not copied.
#[must_use]
pub fn without_dot_segments(path: &[u8]) -> Cow<'_, [u8]> {
    let is_dotted = |segment: &[u8]| matches!(decode_dots(segment), Some(1 | 2));
    if !path.split(|&byte| byte == b'/').any(is_dotted) {
        return Cow::Borrowed(path);
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut segments = path.split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match decode_dots(segment) {
            Some(dots @ (1 | 2)) => {
                // The first one is the empty segment before the leading slash.
                if dots == 2 && kept.len() > 1 {
                    kept.pop();
                }
                if last {
                    kept.push(b"");
                }
            }
            Some(_) | None => kept.push(segment),
        }
    }
    Cow::Owned(kept.join(&b'/'))
}

/// How many dots `segment` consists of; `None` when of anything else, or of more than two.
fn decode_dots(mut segment: &[u8]) -> Option<u8> {
    let mut dots = 0;
    while !segment.is_empty() {
        segment = match segment {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] if dots < 2 => rest,
            _ => return None,
        };
        dots += 1;
    }
    Some(dots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_segments_are_removed_as_in_rfc_3986_5_2_4() {
        for (path, routed) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/c/./../../g", "/a/g"),
            ("/public/../private/x", "/private/x"),
            ("/public/%2e%2E/private/", "/private/"),
            ("/public/.%2e/private/", "/private/"),
            ("/../../a", "/a"),
            ("/..", "/"),
            ("/.", "/"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/...", "/a/..."),
            ("/a/..b", "/a/..b"),
            ("/a//../b", "/a/b"),
            ("*", "*"),
            ("", ""),
        ] {
            let result = without_dot_segments(path.as_bytes());
            assert_eq!(String::from_utf8_lossy(&result), routed, "{path}");
        }
    }

    #[test]
    fn a_path_without_dot_segments_is_not_copied() {
        assert!(matches!(without_dot_segments(b"/a.b/c..d/.e"), Cow::Borrowed(_)));
    }
}
