//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipc::snapshot::Mode;

use crate::config::{self, Workers};

/// Read when neither `--config` nor `--backend` is given, if it exists.
pub const DEFAULT_CONFIG: &str = "/etc/pointsman/pointsman.toml";

const EXAMPLES: &str = "\
Examples:
  master                                        a demo on 127.0.0.1:8080 with two small backends of its own
  master --backend 127.0.0.1:9001 --backend 127.0.0.1:9002
                                                HTTP on 127.0.0.1:8080, balanced over two servers
  master --mode tcp --listen 127.0.0.1:5433 --backend 127.0.0.1:5432
                                                relay bytes to a database
  master --listen 0.0.0.0:80 --listen [::]:80 --listen unix:/run/web.sock --backend app.internal:8000
  master --config /etc/pointsman/pointsman.toml the whole configuration from a file
  master check --config new.toml                say everything that is wrong with a file
  master dump --config new.toml                 the same configuration with every default filled in
  master reload                                 have the running master read its configuration again
  master upgrade                                replace the running program without losing a connection

Signals to the master:
  TERM, INT  stop now                           TTIN  one worker more
  QUIT       finish requests, then stop         TTOU  one worker fewer
  HUP        read the configuration again       USR1  open log files anew
  USR2       start the program anew and hand everything over to it

Exit status: 0 fine, 1 failed at run time, 2 wrong usage or configuration.
The log goes to standard error; RUST_LOG sets its level too.";

/// Pointsman: a reverse proxy whose connections outlive its processes.
#[derive(Debug, Parser)]
#[command(name = "master", version, about, after_help = EXAMPLES, args_conflicts_with_subcommands = false)]
pub struct Arguments {
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Read the configuration from FILE [default: /etc/pointsman/pointsman.toml if it exists and no --backend is given]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Log from this level on: error, warn, info, debug, trace, or off
    #[arg(long, value_name = "L", value_parser = ["error", "warn", "info", "debug", "trace", "off"])]
    pub log_level: Option<String>,

    /// The configuration in small.
    #[command(flatten)]
    pub small: Small,
}

/// What can be configured without a file.
#[derive(Debug, Args)]
pub struct Small {
    /// Worker processes: a number, or `auto` for one per core [default: auto]
    #[arg(long, value_name = "N|auto")]
    workers: Option<Workers>,

    /// Listen on ADDR: IP:PORT, [IPv6]:PORT or unix:/PATH; may be repeated [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,

    /// Relay to ADDR: HOST:PORT or unix:/PATH; may be repeated [default: the demo]
    #[arg(long, value_name = "ADDR")]
    backend: Vec<String>,

    /// What is spoken: http, or tcp to relay bytes [default: http]
    #[arg(long, value_name = "http|tcp", value_parser = config::parse_mode)]
    mode: Option<Mode>,
}

/// Everything but running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the configuration and print every error in it; exit status 0 or 2
    Check(Given),
    /// Print the effective configuration, with every default filled in
    Dump(Given),
    /// Have the running master read its configuration again; exit status 0, 2 when the configuration is refused
    /// (the former one stays in force then), 1 when there is no master or a worker does not follow
    Reload(Which),
    /// Show the running master and its workers
    Status(Which),
    /// Start the program anew, as it now lies where it was started from, and let it take over every connection; exit
    /// status 0, or 2 when the new one does not come up (nothing has changed then)
    Upgrade(Which),
    /// One worker; started by the master only.
    #[command(hide = true)]
    Worker {
        /// Its number.
        index: u16,
    },
    /// The demo backends; started by the master only.
    #[command(hide = true)]
    Demo,
    /// Starts the master's successor; started by the master only.
    #[command(hide = true)]
    Launch {
        /// The program and its arguments.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

/// A configuration: what stands behind the command, or else before it.
#[derive(Debug, Args)]
pub struct Given {
    /// The file to read
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The configuration in small.
    #[command(flatten)]
    small: Small,
}

impl Given {
    /// The file and the options that are meant.
    pub fn with(&self, arguments: &Arguments) -> (Option<PathBuf>, config::Options) {
        let small = if self.small.is_empty() { &arguments.small } else { &self.small };
        let options = small.options();
        (config_file(self.config.as_deref().or(arguments.config.as_deref()), &options), options)
    }
}

/// The running master that is meant.
#[derive(Debug, Args)]
pub struct Which {
    /// The one that runs with this configuration file [default: the only one there is]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The one behind this control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Wait so long for the answer, such as 90s or 5m; a number alone counts seconds
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = wait)]
    pub timeout: Duration,
}

impl Arguments {
    /// What the command line says about the configuration.
    pub fn options(&self) -> config::Options {
        self.small.options()
    }
}

impl Small {
    fn is_empty(&self) -> bool {
        self.workers.is_none() && self.listen.is_empty() && self.backend.is_empty() && self.mode.is_none()
    }

    fn options(&self) -> config::Options {
        config::Options {
            workers: self.workers,
            listen: self.listen.clone(),
            backend: self.backend.clone(),
            mode: self.mode,
        }
    }
}

/// Reads a time to wait.
///
/// # Errors
/// Says how it is written.
fn wait(text: &str) -> Result<Duration, String> {
    let whole = text.parse::<u32>().ok().map(|seconds| format!("{seconds}s"));
    let ms =
        config::parse_duration(whole.as_deref().unwrap_or(text)).map_err(|_| "write it as 90s or 5m".to_owned())?;
    Ok(Duration::from_millis(u64::from(ms)))
}

/// The file to read: the one named, or the default one when nothing on the command line stands in its place.
pub fn config_file(named: Option<&Path>, options: &config::Options) -> Option<PathBuf> {
    let default = || {
        let free = options.listen.is_empty() && options.backend.is_empty() && options.mode.is_none();
        (free && Path::new(DEFAULT_CONFIG).exists()).then(|| PathBuf::from(DEFAULT_CONFIG))
    };
    named.map(Path::to_path_buf).or_else(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn listen_and_backend_may_be_repeated() {
        let arguments = Arguments::parse_from([
            "master",
            "--workers",
            "2",
            "--listen",
            "[::1]:80",
            "--listen",
            "unix:/x",
            "--backend",
            "a:1",
            "--mode",
            "tcp",
        ]);
        let options = arguments.options();
        assert_eq!(options.workers, Some(Workers::Count(2)));
        assert_eq!(options.listen, ["[::1]:80", "unix:/x"]);
        assert_eq!(options.mode, Some(Mode::Tcp));
    }

    #[test]
    fn options_stand_behind_a_command_too() {
        for line in [["--backend", "a:1", "check"], ["check", "--backend", "a:1"]] {
            let arguments = Arguments::parse_from(["master"].iter().chain(&line));
            let Some(Command::Check(given)) = &arguments.command else { panic!("{line:?}") };
            assert_eq!(given.with(&arguments).1.backend, ["a:1"]);
        }
    }

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        for (text, seconds) in [("5", 5), ("5s", 5), ("2m", 120)] {
            assert_eq!(wait(text), Ok(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in
            [["--workers", "0"], ["--mode", "udp"], ["--log-level", "loud"], ["worker", "x"], ["reload", "--timeout=0"]]
        {
            assert!(Arguments::try_parse_from(["master", wrong[0], wrong[1]]).is_err(), "{wrong:?}");
        }
    }
}
