//! Durations and sizes with their units, read and printed exactly.
//!
//! A number without a unit is refused here, whatever its meaning would be.

use super::report::{Fault, quoted};

/// The longest duration that may be configured: 30 days, in milliseconds.
pub const DURATION_MAX_MS: u32 = 30 * 24 * 3600 * 1000;

const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
/// Binary units first: printing uses those, reading knows the decimal ones too.
const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];
const PRINTED_SIZES: usize = 4;

/// Other spellings that people try, with what they stand for.
const DURATION_ALIASES: [(&str, &str); 20] = [
    ("msec", "ms"),
    ("msecs", "ms"),
    ("millis", "ms"),
    ("milliseconds", "ms"),
    ("millisecond", "ms"),
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("min", "m"),
    ("mins", "m"),
    ("minute", "m"),
    ("minutes", "m"),
    ("hr", "h"),
    ("hrs", "h"),
    ("hour", "h"),
    ("hours", "h"),
    ("day", "d"),
    ("days", "d"),
    ("w", "d"),
];
const SIZE_ALIASES: [(&str, &str); 11] = [
    ("k", "KiB"),
    ("kb", "KB"),
    ("kib", "KiB"),
    ("m", "MiB"),
    ("mb", "MB"),
    ("mib", "MiB"),
    ("g", "GiB"),
    ("gb", "GB"),
    ("gib", "GiB"),
    ("byte", "B"),
    ("bytes", "B"),
];

const DURATION_HELP: &str = "write a whole number and a unit: ms, s, m, h or d";
const SIZE_HELP: &str =
    "write a whole number and a unit: B, KiB, MiB or GiB (powers of 1024), KB, MB or GB (powers of 1000)";

/// Reads a duration such as `500ms` or `2s`: 1 ms to [`DURATION_MAX_MS`].
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_duration(text: &str) -> Result<u32, Fault> {
    let (digits, unit) = split(text);
    if digits.is_empty() {
        return Err(Fault::new(format!("{} is not a duration", quoted(text))).help(DURATION_HELP));
    }
    if unit.is_empty() {
        return Err(Fault::new(format!("the duration {} has no unit", quoted(text)))
            .help(format!("did you mean \"{digits}s\"? units are ms, s, m, h and d")));
    }
    let Some((_, factor)) = DURATIONS.iter().find(|(name, _)| *name == unit) else {
        let fault = Fault::new(format!("{} is not a duration", quoted(text)));
        return Err(match alias(unit, &DURATION_ALIASES) {
            Some("d") if unit == "w" => fault.help("there is no unit for weeks; use days (d)"),
            Some(name) => fault.help(format!("did you mean \"{digits}{name}\"? units are ms, s, m, h and d")),
            None if unit.starts_with('.') => fault.help("fractions are not read; use a smaller unit, as in \"1500ms\""),
            None => fault.help(DURATION_HELP),
        });
    };
    let ms = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)).and_then(|ms| u32::try_from(ms).ok());
    match ms {
        Some(0) => {
            Err(Fault::new("a duration of zero").help("the shortest is 1ms; for the default leave the setting out"))
        }
        Some(ms) if ms <= DURATION_MAX_MS => Ok(ms),
        Some(_) | None => {
            Err(Fault::new(format!("the duration {} is too long", quoted(text))).help("the longest is 30d"))
        }
    }
}

/// Prints a duration so that [`parse_duration`] reads the same again, with the largest unit that is exact.
#[must_use]
pub fn format_duration(ms: u32) -> String {
    print(u64::from(ms), &DURATIONS, "ms")
}

/// Reads a size such as `64KiB`, in bytes.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_size(text: &str) -> Result<u64, Fault> {
    let (digits, unit) = split(text);
    if digits.is_empty() {
        return Err(Fault::new(format!("{} is not a size", quoted(text))).help(SIZE_HELP));
    }
    if unit.is_empty() {
        return Err(Fault::new(format!("the size {} has no unit", quoted(text)))
            .help(format!("did you mean \"{digits}B\" (bytes) or \"{digits}KiB\"?")));
    }
    let Some((_, factor)) = SIZES.iter().find(|(name, _)| *name == unit) else {
        let fault = Fault::new(format!("{} is not a size", quoted(text)));
        return Err(match alias(unit, &SIZE_ALIASES) {
            Some(name) => fault.help(format!("did you mean \"{digits}{name}\"? {SIZE_HELP}")),
            None if unit.starts_with('.') => {
                fault.help("fractions are not read; use a smaller unit, as in \"1536KiB\"")
            }
            None => fault.help(SIZE_HELP),
        });
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)) {
        Some(bytes) => Ok(bytes),
        None => Err(Fault::new(format!("the size {} is too large", quoted(text)))),
    }
}

/// Prints a size so that [`parse_size`] reads the same again, with the largest binary unit that is exact.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    print(bytes, &SIZES[..PRINTED_SIZES], "B")
}

fn print(value: u64, units: &[(&str, u64)], smallest: &str) -> String {
    match units.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => format!("{value}{smallest}"),
    }
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn alias(unit: &str, aliases: &[(&str, &'static str)]) -> Option<&'static str> {
    let lower = unit.trim().to_lowercase();
    let exact = |name: &&str| name.to_lowercase() == lower;
    let known = DURATIONS.iter().map(|(name, _)| *name).filter(|name| aliases.iter().any(|(_, to)| to == name));
    let known =
        known.chain(SIZES.iter().map(|(name, _)| *name).filter(|name| aliases.iter().any(|(_, to)| to == name)));
    aliases.iter().find(|(from, _)| *from == lower).map(|(_, to)| *to).or_else(|| known.into_iter().find(exact))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_duration("500ms").unwrap(), 500);
        assert_eq!(parse_duration("2s").unwrap(), 2000);
        assert_eq!(parse_duration("5m").unwrap(), 300_000);
        assert_eq!(parse_duration("1h").unwrap(), 3_600_000);
        assert_eq!(parse_duration("30d").unwrap(), DURATION_MAX_MS);
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("0B").unwrap(), 0);
        assert_eq!(parse_size("64KiB").unwrap(), 65536);
        assert_eq!(parse_size("64KB").unwrap(), 64000);
        assert_eq!(parse_size("3GiB").unwrap(), 3 << 30);
        assert_eq!(parse_size("2GB").unwrap(), 2_000_000_000);
        assert_eq!(parse_size("18446744073709551615B").unwrap(), u64::MAX);
    }

    #[test]
    fn bad_units_are_refused_with_a_remedy() {
        let help = |fault: Fault| fault.help.unwrap_or_default();
        assert!(help(parse_duration("2").unwrap_err()).contains("\"2s\""));
        assert!(help(parse_duration("2 sec").unwrap_err()).contains("\"2s\""));
        assert!(help(parse_duration("2S").unwrap_err()).contains("\"2s\""));
        assert!(help(parse_duration("0s").unwrap_err()).contains("1ms"));
        assert!(help(parse_duration("31d").unwrap_err()).contains("30d"));
        assert!(help(parse_duration("1.5s").unwrap_err()).contains("1500ms"));
        assert!(help(parse_size("64").unwrap_err()).contains("\"64KiB\""));
        assert!(help(parse_size("64k").unwrap_err()).contains("\"64KiB\""));
        assert!(help(parse_size("64 MB").unwrap_err()).contains("\"64MB\""));
        for text in ["", "s", "-1s", "+1s", "99999999999999999999s", "1s1s", "1 s ", "٣s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in ["", "B", "-1B", "99999999999999999999B", "18446744073709551615KiB", "1.5MiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printed_durations_read_the_same(ms in 1..=DURATION_MAX_MS) {
            prop_assert_eq!(parse_duration(&format_duration(ms)).unwrap(), ms);
        }

        #[test]
        fn printed_whole_seconds_read_the_same(s in 1..=DURATION_MAX_MS / 1000) {
            prop_assert_eq!(parse_duration(&format_duration(s * 1000)).unwrap(), s * 1000);
        }

        #[test]
        fn printed_sizes_read_the_same(bytes: u64, shift in 0..64u32) {
            let bytes = bytes >> shift << (shift / 2);
            prop_assert_eq!(parse_size(&format_size(bytes)).unwrap(), bytes);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9.]{0,22} ?\\PC{0,4}") {
            if let Ok(ms) = parse_duration(&text) {
                prop_assert_eq!(parse_duration(&format_duration(ms)).unwrap(), ms);
            }
            if let Ok(bytes) = parse_size(&text) {
                prop_assert_eq!(parse_size(&format_size(bytes)).unwrap(), bytes);
            }
        }
    }
}
