//! Growable buffers that are used again, and bytes on their way out of a socket.
//!
//! A connection owns a buffer only while bytes are stuck in it; on the steady path bytes go from the worker's
//! one scratch buffer straight to the other socket.

/// Buffers kept for reuse at most.
const KEPT: usize = 256;
/// A buffer that grew beyond this is freed rather than kept, so that one large response does not stay.
const KEPT_BYTES: usize = 256 * 1024;

/// Empty buffers waiting to be used again.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Vec<Vec<u8>>,
}

impl Buffers {
    /// An empty buffer, perhaps with capacity.
    pub fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn put(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && buffer.capacity() <= KEPT_BYTES && self.free.len() < KEPT {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

/// Bytes that a socket has not taken yet. Holds no memory while empty.
///
/// Bound: callers append only while [`Pending::is_empty`], so it never holds more than one read and its framing.
#[derive(Debug, Default)]
pub struct Pending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    /// Whether nothing is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// What is waiting.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Adds bytes behind those waiting.
    pub fn push(&mut self, bytes: &[u8], pool: &mut Buffers) {
        if bytes.is_empty() {
            return;
        }
        if self.bytes.capacity() == 0 {
            self.bytes = pool.take();
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The socket took `n` bytes.
    pub fn advance(&mut self, n: usize, pool: &mut Buffers) {
        self.sent += n;
        debug_assert!(self.sent <= self.bytes.len());
        if self.is_empty() {
            self.clear(pool);
        }
    }

    /// Drops what is waiting.
    pub fn clear(&mut self, pool: &mut Buffers) {
        pool.put(std::mem::take(&mut self.bytes));
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_holds_memory_only_while_bytes_wait() {
        let mut pool = Buffers::default();
        let mut pending = Pending::default();
        pending.push(b"hello", &mut pool);
        pending.push(b" world", &mut pool);
        pending.advance(6, &mut pool);
        assert_eq!(pending.rest(), b"world");
        pending.advance(5, &mut pool);
        assert!(pending.is_empty());
        assert_eq!(pending.bytes.capacity(), 0);
        assert_eq!(pool.free.len(), 1);
        assert!(pool.take().capacity() >= 11);
    }

    #[test]
    fn a_buffer_grown_large_is_not_kept() {
        let mut pool = Buffers::default();
        pool.put(Vec::with_capacity(KEPT_BYTES + 1));
        assert!(pool.free.is_empty());
    }
}
