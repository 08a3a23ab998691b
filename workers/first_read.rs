//! Whether a connection just taken up is read from at once, or only when an event tells that something has come.
//!
//! Where requests come along with their connections a read at once saves being watched at all. Where they come a little
//! later, as from clients that begin many connections together, it is a call in vain for each.

/// So many of 256 reads in vain and none at once is worth it.
const MOST_IN_VAIN: u32 = 192;
/// Nevertheless one of so many connections is, to see whether that has changed.
const PROBE: u32 = 16;

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct FirstRead {
    /// How many of 256 reads were in vain, smoothed.
    in_vain: u32,
    skipped: u32,
}

impl FirstRead {
    /// Whether the next connection is to be read from at once.
    pub(crate) fn is_worthwhile(&mut self) -> bool {
        self.skipped = (self.skipped + 1) % PROBE;
        self.in_vain < MOST_IN_VAIN || self.skipped == 0
    }

    /// A read at once has brought something, or nothing.
    pub(crate) fn note(&mut self, brought: bool) {
        self.in_vain = (self.in_vain * 7 + if brought { 0 } else { 256 }) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_at_once_are_given_up_where_they_bring_nothing_and_taken_up_again() {
        let mut first = FirstRead::default();
        let mut tried = |brought: bool, times: u32| {
            (0..times)
                .filter(|_| {
                    let tried = first.is_worthwhile();
                    if tried {
                        first.note(brought);
                    }
                    tried
                })
                .count()
        };
        assert_eq!(tried(true, 100), 100);
        let given_up = tried(false, 100);
        assert!((8..24).contains(&given_up), "{given_up}");
        assert_eq!(tried(false, 160), 10, "now and then");
        let again = tried(true, 200);
        assert!(again > 100, "{again}");
        assert_eq!(tried(true, 100), 100);
    }
}
