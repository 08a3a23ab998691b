//! Numbers as people read them, in the logs of both sides. Nothing here is read back by a program.

/// A duration of so many milliseconds: `90 s`, and `1500 ms` where it is not whole seconds.
#[must_use]
pub fn duration(ms: u64) -> String {
    if ms > 0 && ms.is_multiple_of(1000) { format!("{} s", ms / 1000) } else { format!("{ms} ms") }
}

/// So many of what `one` is called, with an `s` unless it is one.
#[must_use]
pub fn count(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_unit_that_is_whole() {
        for (ms, text) in [(0, "0 ms"), (500, "500 ms"), (1000, "1 s"), (1500, "1500 ms"), (90_000, "90 s")] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            [count(0, "worker"), count(1, "worker"), count(2, "worker")],
            ["0 workers", "1 worker", "2 workers"]
        );
    }
}
