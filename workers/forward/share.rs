//! Where all workers count together: what somebody is called there.
//!
//! Names are as long as a head allows and addresses are many, so in the ledger each is a number: a keyed hash under a key
//! that nobody outside knows, the same in every worker. Two have the same one with a probability of 2^-64; then they are
//! counted as one.

use std::net::IpAddr;

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput, KeyInit, Update};
use ipc::allowances::Allowances;
use ipc::ledger::Ledger;

/// See the module's description.
#[derive(Debug)]
pub struct Share {
    ledger: Ledger,
    row: u16,
    key: [u8; 32],
}

impl Share {
    /// In this ledger, in this row of it. Without a row nobody else sees how much this worker has open, but it sees what
    /// others have.
    #[must_use]
    pub fn new(ledger: Ledger, row: Option<u16>) -> Share {
        let key = ledger.key();
        Share { ledger, row: row.unwrap_or(ipc::ledger::ROWS), key }
    }

    /// The number of what `parts` say together, the first of which tells what is counted. Never 0, which is none.
    #[must_use]
    pub fn number(&self, parts: &[&[u8]]) -> u64 {
        // Keys of this length are allowed: there is always one.
        let Ok(mut mac) = Blake2sMac256::new_from_slice(&self.key) else { return 1 };
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        let hash: [u8; 32] = mac.finalize_fixed().into();
        let [a, b, c, d, e, f, g, h, ..] = hash;
        u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
    }

    /// Says that this worker has so many of `number` open.
    pub fn set(&self, number: u64, open: u32) {
        if self.row < ipc::ledger::ROWS {
            self.ledger.set(self.row, number, open);
        }
    }

    /// How many of `number` all others have open.
    #[must_use]
    pub fn elsewhere(&self, number: u64) -> u64 {
        self.ledger.elsewhere(self.row, number)
    }

    /// What each has used up of beginnings and bytes.
    #[must_use]
    pub fn allowances(&self) -> Allowances<'_> {
        self.ledger.allowances()
    }

    /// What each has used up of wrong passwords.
    #[must_use]
    pub fn failures(&self) -> Allowances<'_> {
        self.ledger.failures()
    }

    /// Until when each counts as proved.
    #[must_use]
    pub fn proofs(&self) -> Allowances<'_> {
        self.ledger.proofs()
    }
}

/// An address as a part of [`Share::number`]. Each kind has a length of its own.
#[must_use]
pub fn address_bytes(address: Option<IpAddr>) -> Vec<u8> {
    match address {
        None => Vec::new(),
        Some(IpAddr::V4(v4)) => v4.octets().to_vec(),
        Some(IpAddr::V6(v6)) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ipc::ledger::Rows;

    use super::*;

    /// That of another worker of the same master.
    pub fn share_of(master: &Rows) -> Share {
        Share::new(Ledger::map(master.file()).unwrap(), master.claim())
    }

    /// That of a worker without others.
    pub fn alone() -> Share {
        share_of(&Rows::new().unwrap())
    }

    #[test]
    fn each_has_a_number_of_its_own_that_every_worker_knows() {
        let master = Rows::new().unwrap();
        let (a, b) = (share_of(&master), share_of(&master));
        let parts: [&[&[u8]]; 5] = [
            &[b"open", b"set", b"ann"],
            &[b"open", b"seta", b"nn"],
            &[b"rate", b"set", b"ann"],
            &[b"open", b"setann"],
            &[],
        ];
        for (at, one) in parts.iter().enumerate() {
            assert_eq!(a.number(one), b.number(one));
            assert!(parts[..at].iter().all(|other| a.number(other) != a.number(one)), "{one:?}");
        }
        assert_ne!(a.number(parts[0]), alone().number(parts[0]));
    }

    #[test]
    fn without_a_row_others_are_seen() {
        let master = Rows::new().unwrap();
        let (a, none) = (share_of(&master), Share::new(Ledger::map(master.file()).unwrap(), None));
        a.set(7, 3);
        none.set(7, 5);
        assert_eq!((a.elsewhere(7), none.elsewhere(7)), (0, 3));
    }
}
