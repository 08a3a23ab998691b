//! The process's own log, on standard error: one line an event, the same format in every role.
//!
//! Nobody waits for who reads it: a terminal that is stopped, or a pager at its first page, must not stop the proxy.
//! What cannot be written is kept, up to a bound, until the next line is logged; what is beyond the bound is counted.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use env_logger::{Builder, Target, WriteStyle};
use ipc::write_now::{own_terminal, write_now};
use rustix::fs::FileType;
use rustix::io::Errno;

/// Bytes kept for a reader that does not keep up.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// Starts logging as `role`. The default level is info; `level` (or what the master passed on) replaces it,
/// and what `RUST_LOG` says stands above both.
pub fn start(role: &str, level: Option<&str>) {
    let inherited = std::env::var(crate::LOG_LEVEL_VARIABLE).ok();
    let level = level.or(inherited.as_deref()).unwrap_or("info");
    let role = format!("{role}[{}]", std::process::id());
    let mut builder = Builder::new();
    // A level for everything, so that a misspelt RUST_LOG adds a rule that fits nothing and silences nothing.
    builder.parse_filters(level);
    if let Ok(filters) = std::env::var("RUST_LOG") {
        builder.parse_filters(&filters);
    }
    if let Ok(style) = std::env::var("RUST_LOG_STYLE") {
        builder.parse_write_style(&style);
    } else if is_colored() {
        builder.write_style(WriteStyle::Always);
    }
    let terminal = own_terminal(rustix::stdio::stderr());
    let lines = Lines { role: role.clone(), terminal, ..Lines::default() };
    builder
        .target(Target::Pipe(Box::new(lines)))
        .format(move |out, record| {
            let time = out.timestamp_millis();
            let style = out.default_level_style(record.level());
            writeln!(out, "{time} {style}{:<5}{style:#} {role}: {}", record.level(), record.args())
        })
        .init();
}

/// Whether standard error shows colours, and they are wanted (<https://no-color.org>).
fn is_colored() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    !unwanted && !dumb && rustix::termios::isatty(rustix::stdio::stderr())
}

/// Where lines go.
#[derive(Debug, Default)]
struct Lines {
    role: String,
    /// Standard error, if it is a terminal.
    terminal: Option<OwnedFd>,
    /// Not yet written.
    kept: Vec<u8>,
    /// Lines for which there was no room.
    dropped: u64,
}

impl Lines {
    /// Writes what is kept, as far as there is room for it.
    fn write_kept(&mut self) {
        let stderr = self.terminal.as_ref().map_or(rustix::stdio::stderr(), AsFd::as_fd);
        let is_file =
            rustix::fs::fstat(stderr).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        while !self.kept.is_empty() {
            let kept = &self.kept;
            let written = if is_file { rustix::io::write(stderr, kept) } else { write_now(stderr, kept) };
            match written {
                Ok(n @ 1..) => drop(self.kept.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody will read it.
                Ok(0) | Err(_) => self.kept.clear(),
            }
        }
    }
}

impl Write for Lines {
    /// Takes one line, which may be dropped.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_kept();
        if self.dropped > 0 && self.kept.is_empty() {
            let (role, dropped) = (&self.role, self.dropped);
            let time = String::from_utf8_lossy(line.split(|&byte| byte == b' ').next().unwrap_or_default());
            let text = "lines of this log were dropped: nobody read them";
            self.kept = format!("{time} WARN  {role}: {dropped} {text}\n").into();
            self.dropped = 0;
        }
        if self.kept.len() + line.len() <= MAX_KEPT_BYTES {
            self.kept.extend_from_slice(line);
            self.write_kept();
        } else {
            self.dropped += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
