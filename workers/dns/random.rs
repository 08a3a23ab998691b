//! Message numbers nobody can guess: from the kernel's generator, fetched a few at a time.

/// See the module's description.
#[derive(Debug, Default)]
pub struct Ids {
    pool: Vec<u8>,
}

/// Bytes fetched at a time; the kernel gives up to 256 without being interrupted (getrandom(2)).
const POOL: usize = 256;

impl Ids {
    /// The next number; `None` when the kernel has none, which it does not say once the machine is up.
    pub fn next(&mut self) -> Option<u16> {
        if self.pool.len() < 2 {
            let mut bytes = [0u8; POOL];
            let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
            self.pool = bytes.get(..got)?.to_vec();
        }
        Some(u16::from_ne_bytes([self.pool.pop()?, self.pool.pop()?]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_never_run_out() {
        let mut ids = Ids::default();
        let numbers: std::collections::HashSet<u16> = (0..1000).map(|_| ids.next().unwrap()).collect();
        assert!(numbers.len() > 900, "{}", numbers.len());
    }
}
