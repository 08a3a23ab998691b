//! Points in time as text, in UTC: for the `Date` field and for the access log.
//!
//! No clock and no time zone database: seconds since 1970 come in, bytes go out. Seconds beyond the year 9999 count
//! as its last one. Leap seconds do not exist in Unix time.

const DAY_NAMES: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
const MONTH_NAMES: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

/// The texts of one second, made when the second changes.
#[derive(Debug, Clone)]
pub struct DateCache {
    second: u64,
    http: [u8; 29],
    log: [u8; 28],
    iso: [u8; 24],
}

impl Default for DateCache {
    fn default() -> DateCache {
        DateCache::new()
    }
}

impl DateCache {
    /// A cache that holds 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn new() -> DateCache {
        let mut cache = DateCache { second: u64::MAX, http: [0; 29], log: [0; 28], iso: [0; 24] };
        cache.advance(0);
        cache
    }

    /// The IMF-fixdate of RFC 9110 section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
    pub fn http_date(&mut self, unix_seconds: u64) -> &[u8; 29] {
        self.advance(unix_seconds);
        &self.http
    }

    /// The time of the combined log format: `[06/Nov/1994:08:49:37 +0000]`.
    pub fn log_date(&mut self, unix_seconds: u64) -> &[u8; 28] {
        self.advance(unix_seconds);
        &self.log
    }

    /// The time of RFC 3339 with milliseconds: `1994-11-06T08:49:37.123Z`.
    pub fn iso_date(&mut self, unix_ms: u64) -> &[u8; 24] {
        self.advance(unix_ms / 1000);
        put(&mut self.iso[20..23], unix_ms % 1000);
        &self.iso
    }

    fn advance(&mut self, unix_seconds: u64) {
        let second = unix_seconds.min(LAST_SECOND);
        if second == self.second {
            return;
        }
        self.second = second;
        let days = second / 86_400;
        let (year, month, day) = date_of(days);
        let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
        let month_name = MONTH_NAMES[index(month - 1)];

        self.http = *b"Thu, 01 Jan 1970 00:00:00 GMT";
        self.http[..3].copy_from_slice(DAY_NAMES[index(days % 7)]);
        put(&mut self.http[5..7], day);
        self.http[8..11].copy_from_slice(month_name);
        put(&mut self.http[12..16], year);
        put_time(&mut self.http[17..25], hour, minute, second);

        self.log = *b"[01/Jan/1970:00:00:00 +0000]";
        put(&mut self.log[1..3], day);
        self.log[4..7].copy_from_slice(month_name);
        put(&mut self.log[8..12], year);
        put_time(&mut self.log[13..21], hour, minute, second);

        self.iso = *b"1970-01-01T00:00:00.000Z";
        put(&mut self.iso[..4], year);
        put(&mut self.iso[5..7], month);
        put(&mut self.iso[8..10], day);
        put_time(&mut self.iso[11..19], hour, minute, second);
    }
}

/// Writes `value` in decimal, with leading zeros, over all of `to`; higher digits are left out.
fn put(to: &mut [u8], mut value: u64) {
    for digit in to.iter_mut().rev() {
        *digit = b"0123456789"[index(value % 10)];
        value /= 10;
    }
}

/// Writes `hh:mm:ss`, the colons being there.
fn put_time(to: &mut [u8], hour: u64, minute: u64, second: u64) {
    put(&mut to[..2], hour);
    put(&mut to[3..5], minute);
    put(&mut to[6..8], second);
}

fn index(small: u64) -> usize {
    usize::try_from(small).unwrap_or(0)
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are taken to begin in March, so that the leap day is the last: then the months' lengths follow a line, and
/// 400 years always have 146,097 days.
fn date_of(days: u64) -> (u64, u64, u64) {
    // Since 0000-03-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(unix_ms: u64) -> [String; 3] {
        let mut cache = DateCache::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        [text(cache.http_date(unix_ms / 1000)), text(cache.log_date(unix_ms / 1000)), text(cache.iso_date(unix_ms))]
    }

    #[test]
    fn known_dates_are_written_right() {
        // The first is RFC 9110's own example.
        for (unix_ms, http, log, iso) in [
            (
                784_111_777_000,
                "Sun, 06 Nov 1994 08:49:37 GMT",
                "[06/Nov/1994:08:49:37 +0000]",
                "1994-11-06T08:49:37.000Z",
            ),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT", "[01/Jan/1970:00:00:00 +0000]", "1970-01-01T00:00:00.000Z"),
            (
                951_782_400_007,
                "Tue, 29 Feb 2000 00:00:00 GMT",
                "[29/Feb/2000:00:00:00 +0000]",
                "2000-02-29T00:00:00.007Z",
            ),
            (
                1_795_156_532_999,
                "Fri, 20 Nov 2026 06:35:32 GMT",
                "[20/Nov/2026:06:35:32 +0000]",
                "2026-11-20T06:35:32.999Z",
            ),
            (
                4_107_542_399_000,
                "Sun, 28 Feb 2100 23:59:59 GMT",
                "[28/Feb/2100:23:59:59 +0000]",
                "2100-02-28T23:59:59.000Z",
            ),
            (
                4_107_542_400_000,
                "Mon, 01 Mar 2100 00:00:00 GMT",
                "[01/Mar/2100:00:00:00 +0000]",
                "2100-03-01T00:00:00.000Z",
            ),
        ] {
            assert_eq!(texts(unix_ms), [http, log, iso]);
        }
        assert_eq!(texts(u64::MAX)[0], "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn every_day_of_eight_centuries_follows_the_one_before() {
        let mut expected = (1970, 1, 1);
        for day in 0..292_194 {
            assert_eq!(date_of(day), expected);
            let (year, month, date) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [31, 28 + u64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][index(month - 1)];
            expected = match (date == length, month == 12) {
                (false, _) => (year, month, date + 1),
                (true, false) => (year, month + 1, 1),
                (true, true) => (year + 1, 1, 1),
            };
        }
    }

    #[test]
    fn the_cache_follows_time_in_both_directions() {
        let mut cache = DateCache::new();
        assert_eq!(cache.iso_date(1999), b"1970-01-01T00:00:01.999Z");
        assert_eq!(cache.iso_date(1000), b"1970-01-01T00:00:01.000Z");
        assert_eq!(cache.http_date(86_400), b"Fri, 02 Jan 1970 00:00:00 GMT");
        assert_eq!(cache.http_date(5), b"Thu, 01 Jan 1970 00:00:05 GMT");
    }
}
