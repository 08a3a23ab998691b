//! A fuzz target's seeds, and mutations of them, for ordinary test runs: a short fuzzing without a fuzzer. Bounded by
//! the number of mutations, and the same in every run.

use std::path::{Path, PathBuf};

fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    usize::try_from((mixed ^ (mixed >> 27)) >> 16).unwrap()
}

/// Where the seeds of `target` are.
///
/// # Panics
/// When it has none.
pub fn corpus(target: &str) -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.map(|above| above.join("fuzz/corpus").join(target)).find(|path| path.is_dir()).expect("it has a corpus")
}

/// Calls `check` with each seed of `target` and with `rounds` mutations of each.
///
/// # Panics
/// When there are no seeds, or as `check` does.
pub fn each(target: &str, rounds: u32, check: impl Fn(&[u8])) {
    let mut seeds = 0;
    for entry in std::fs::read_dir(corpus(target)).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        check(&seed);
        seeds += 1;
        let mut state = seed.len() as u64;
        for _ in 0..rounds {
            let mut bytes = seed.clone();
            for _ in 0..=next(&mut state) % 3 {
                let at = next(&mut state) % (bytes.len() + 1);
                match next(&mut state) % 5 {
                    0 => bytes.insert(at, b"\r\n\0 :,;\t"[next(&mut state) % 8]),
                    1 if at < bytes.len() => drop(bytes.remove(at)),
                    2 if at < bytes.len() => bytes[at] ^= 1 << (next(&mut state) % 8),
                    3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][next(&mut state) % 5],
                    _ => bytes.truncate(at),
                }
            }
            check(&bytes);
        }
    }
    assert!(seeds > 0, "no seeds for {target}");
}
