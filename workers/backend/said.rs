//! What the log has been told of one server's failures: each kind of news so seldom that a server which fails and
//! answers by turns, several times a second, does not fill it.
//!
//! It counts what is left out. It reads no clock and writes nothing.

/// The log is told of one server's ejections once in so many milliseconds at most,
const EJECTION_EVERY_MS: u64 = 10_000;
/// and of its first failures after successes once in so many.
const FAILURE_EVERY_MS: u64 = 1000;

/// One kind of news.
#[derive(Debug, Default)]
struct News {
    /// When the log was last told.
    last_ms: Option<u64>,
    /// How often since then it was not.
    left_out: u32,
}

impl News {
    /// It has happened. If the log is to be told, how often it was not told since it last was.
    fn happened(&mut self, now_ms: u64, every_ms: u64) -> Option<u32> {
        if self.last_ms.is_some_and(|last_ms| now_ms.saturating_sub(last_ms) < every_ms) {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.last_ms = Some(now_ms);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Said {
    failures: News,
    ejections: News,
    /// It has been told of an ejection, and not that the server answers again.
    down: bool,
}

impl Said {
    /// A server failed for the first time since it last succeeded. If the log is to be told, of how many of these it
    /// was not told.
    pub(super) fn failed(&mut self, now_ms: u64) -> Option<u32> {
        self.failures.happened(now_ms, FAILURE_EVERY_MS)
    }

    /// A server was ejected. If the log is to be told, how many ejections it was not told of.
    pub(super) fn ejected(&mut self, now_ms: u64) -> Option<u32> {
        let left_out = self.ejections.happened(now_ms, EJECTION_EVERY_MS)?;
        self.down = true;
        Some(left_out)
    }

    /// The server answers again. Whether the log is to be told.
    pub(super) fn back(&mut self) -> bool {
        std::mem::take(&mut self.down)
    }
}
