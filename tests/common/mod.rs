//! What every integration test stands on: the proxy as a process, backends that misbehave on purpose, a raw
//! client, and the one place that waits.
//!
//! Nothing here may sleep to let something happen: whoever waits names the condition and has a deadline.

pub mod backend;
pub mod client;
pub mod conf;
pub mod descriptors;
pub mod dns;
pub mod h1;
pub mod killer;
pub mod load;
pub mod processes;
pub mod proxy;
pub mod rng;
pub mod streams;
pub mod succession;
pub mod traced;
pub mod traffic;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything that must happen may take. Generous, because tests share two cores with other work.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Polls `ready` until it gives something, and panics with `what` when [`DEADLINE`] has passed.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < end, "within {DEADLINE:?} this did not come about: {what}");
        std::thread::park_timeout(Duration::from_millis(3));
    }
}

/// Polls `ready` until it holds.
#[track_caller]
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    wait_for(what, || ready().then_some(()));
}

/// Lets `time` pass: for a peer that is slow on purpose, never to wait for something to happen.
pub fn dawdle(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

/// A directory of its own for one test, removed at the end.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pointsman-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes `text` to the file `name` in it, and gives its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The endless byte sequence that transfers are checked against. Its period is a prime, so that a lost or
/// doubled buffer of any usual size shows.
pub fn pattern(offset: u64, length: usize) -> &'static [u8] {
    let start = usize::try_from(offset % PERIOD as u64).unwrap();
    &pattern_block()[start..start + length]
}

/// The longest piece that [`pattern`] gives.
pub const PIECE: usize = 64 * 1024;
const PERIOD: usize = 65_521;

fn pattern_block() -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[3]
        };
        let once: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
        once.iter().chain(&once).chain(&once).copied().collect()
    })
}

/// The first `length` bytes of the pattern.
pub fn pattern_bytes(length: usize) -> Vec<u8> {
    let block = &pattern_block()[..PERIOD];
    block.iter().cycle().take(length).copied().collect()
}

/// Checks that `bytes` are the pattern from `offset` on.
#[track_caller]
pub fn check_pattern(offset: u64, bytes: &[u8]) {
    for (index, piece) in bytes.chunks(PIECE).enumerate() {
        let at = offset + (index * PIECE) as u64;
        let expected = pattern(at, piece.len());
        if piece != expected {
            let wrong = piece.iter().zip(expected).position(|(a, b)| a != b).unwrap();
            panic!("byte {} differs from what was sent", at + wrong as u64);
        }
    }
}

/// Installs Debian packages a test needs, or fails with the line that says which.
#[track_caller]
pub fn need_packages(packages: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packages.sh");
    let output = Command::new(script).args(packages).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a command to its end within the deadline and gives its output; panics unless it succeeded.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program has printed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program has said on its standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
