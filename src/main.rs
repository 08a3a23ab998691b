//! Arguments to a role, and errors to exit codes. Every role of Pointsman is this one program: the master,
//! and, started again by it, each worker and the demo backends.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ipc::control::Request;

mod accept;
mod activation;
mod addresses;
mod banner;
mod cli;
mod config;
mod control;
mod demo;
mod dispatch;
mod hands;
mod heir;
mod keeper;
mod launch;
mod lending;
mod listen;
mod logging;
mod master;
mod moderate;
mod notify;
mod pipes;
mod privilege;
mod process;
mod reload;
mod salvage;
mod signals;
mod supervise;
mod takeover;
mod upgrade;
mod watchdog;

/// How the master tells its children the level of `--log-level`.
pub const LOG_LEVEL_VARIABLE: &str = "POINTSMAN_LOG_LEVEL";

/// Failed at run time.
const FAILED: u8 = 1;
/// Wrong usage or configuration.
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    close_strays(if arguments.command.is_none() { activation::passed() } else { 0..0 });
    match arguments.command {
        Some(cli::Command::Worker { index }) => worker(index),
        Some(cli::Command::Demo) => demo_child(),
        Some(cli::Command::Launch { ref command }) => launch(command),
        Some(cli::Command::Check(ref given)) => check(given.with(&arguments)),
        Some(cli::Command::Dump(ref given)) => dump(given.with(&arguments)),
        Some(cli::Command::Reload(ref which)) => {
            let color = rustix::termios::isatty(rustix::stdio::stderr());
            ask(which, &arguments, &Request::Reload { color })
        }
        Some(cli::Command::Status(ref which)) => ask(which, &arguments, &Request::Status),
        Some(cli::Command::Upgrade(ref which)) => ask(which, &arguments, &Request::Upgrade),
        None => run(&arguments),
    }
}

/// Closes what an untidy parent left open, so that no child of ours inherits it. Nothing of ours is open yet
/// beyond the three standard descriptors, and those that are `passed` on purpose.
fn close_strays(passed: std::ops::Range<i32>) {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !passed.contains(fd)) {
        // The directory's own descriptor is among them and closed already: EBADF then.
        let _ = nix::unistd::close(fd);
    }
}

/// Takes the descriptor that the parent gave as standard input, and puts /dev/null in its place.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(taken)
}

/// Refuses to be what the master alone starts, when somebody else has: a channel comes as standard input.
fn need_channel(role: &str) -> Result<(), ExitCode> {
    match rustix::net::sockopt::socket_type(rustix::stdio::stdin()) {
        Ok(rustix::net::SocketType::SEQPACKET) => Ok(()),
        Ok(_) | Err(_) => {
            eprintln!("master: `{role}` is for the master to start; run `master` alone, or see `master --help`");
            Err(ExitCode::from(UNUSABLE))
        }
    }
}

fn fail(message: impl std::fmt::Display) -> ExitCode {
    eprintln!("master: {message}");
    ExitCode::from(FAILED)
}

fn worker(index: u16) -> ExitCode {
    if let Err(code) = need_channel("master worker") {
        return code;
    }
    logging::start(&format!("worker {index}"), None);
    let _ = rustix::thread::set_name(c"master");
    if let Err(error) = signals::ignore_in_worker() {
        return fail(format_args!("worker {index}: {error}"));
    }
    match take_stdin() {
        Ok(channel) => workers::run(channel, index),
        Err(error) => fail(format_args!("worker {index}: cannot take over its channel: {error}")),
    }
}

fn demo_child() -> ExitCode {
    logging::start("demo", None);
    let _ = rustix::thread::set_name(c"master");
    let served = signals::ignore_in_worker().and_then(|()| take_stdin()).and_then(demo::serve);
    served.map_or_else(|error| fail(format_args!("demo: {error}")), |()| ExitCode::SUCCESS)
}

fn launch(command: &[std::ffi::OsString]) -> ExitCode {
    if let Err(code) = need_channel("master launch") {
        return code;
    }
    let _ = rustix::thread::set_name(c"master");
    if let Err(error) = signals::ignore_while_starting() {
        return fail(format_args!("cannot set signal handlers: {error}"));
    }
    match take_stdin() {
        Ok(channel) => launch::run(channel, command),
        Err(error) => fail(format_args!("cannot take over the master's channel: {error}")),
    }
}

/// Asks the running master.
fn ask(which: &cli::Which, arguments: &cli::Arguments, request: &Request) -> ExitCode {
    let named = which.config.as_deref().or(arguments.config.as_deref());
    let config = cli::config_file(named, &arguments.options());
    let which_one =
        control::ask::Which { socket: which.control.as_deref(), config: config.as_deref(), named: named.is_some() };
    control::ask::run(&which_one, request, which.timeout)
}

fn check((file, options): (Option<PathBuf>, config::Options)) -> ExitCode {
    match config::gather(file.as_deref(), &options) {
        Ok(loaded) => {
            report(&loaded.warnings);
            let source = loaded.process.source.as_ref().map(|path| path.display().to_string());
            println!("{}: no errors", source.as_deref().unwrap_or("the command line"));
            ExitCode::SUCCESS
        }
        Err(errors) => {
            report(&errors);
            ExitCode::from(UNUSABLE)
        }
    }
}

fn dump((file, options): (Option<PathBuf>, config::Options)) -> ExitCode {
    match config::gather(file.as_deref(), &options) {
        Ok(loaded) => {
            report(&loaded.warnings);
            print!("{}", config::dump(&loaded.snapshot, &loaded.process));
            ExitCode::SUCCESS
        }
        Err(errors) => {
            report(&errors);
            ExitCode::from(UNUSABLE)
        }
    }
}

/// Prints what was found to standard error, in colours on a terminal.
fn report(report: &config::Report) {
    let text = report.render(rustix::termios::isatty(rustix::stdio::stderr()));
    if !text.is_empty() {
        eprintln!("{}", text.trim_end());
    }
}

/// The master that this one is to succeed, when it was started by one.
fn former() -> Result<Option<takeover::Former>, String> {
    if std::env::var_os(takeover::SUCCESSOR_VARIABLE).is_none() {
        return Ok(None);
    }
    take_stdin().map_err(|error| error.to_string()).and_then(takeover::Former::master).map(Some)
}

fn run(arguments: &cli::Arguments) -> ExitCode {
    logging::start("master", arguments.log_level.as_deref());
    if let Err(error) = signals::ignore_while_starting() {
        return fail(format_args!("cannot catch signals: {error}"));
    }
    // While little memory would be copied, and before there are other threads.
    let heritage = master::Heritage::begin();
    let program = upgrade::Program::present();
    let formers = match former() {
        Ok(former) => former.into_iter().collect(),
        Err(why) => return fail(format_args!("cannot succeed the former master: {why}")),
    };
    let _ = rustix::thread::set_name(c"master");
    let spawn = Box::new(process::System);
    let mut before = master::Before { program, formers, doors: None, lent: activation::take(), spawn, heritage };
    match prepare(arguments, &mut before) {
        Ok(master) => {
            // What it has looked behind is not kept open for good.
            drop(before);
            match master.run() {
                Ok(()) => ExitCode::SUCCESS,
                Err(message) => {
                    log::error!("{message}");
                    ExitCode::from(FAILED)
                }
            }
        }
        Err((text, code)) => {
            // Whoever started this one as its successor has somebody to tell.
            before.formers.iter_mut().for_each(|former| former.tell_failed(text.clone()));
            code
        }
    }
}

/// What the names of servers stood for when the former master with this configuration file was killed, or is replaced.
fn names_left(file: Option<&std::path::Path>) -> config::Names {
    let control = file.and_then(|file| match config::control_of(file) {
        config::Control::At(path) => Some(path),
        config::Control::Derived => Some(control::place::directory().join(control::place::name(Some(file)))),
        config::Control::Off => None,
    });
    let left = control.map(|control| ipc::remembered::read(&ipc::remembered::path(&control)));
    config::Names::remembered(left.unwrap_or_default())
}

/// Everything up to the loop. Errors have been said, and come with the exit status.
fn prepare(arguments: &cli::Arguments, before: &mut master::Before) -> Result<master::Master, (String, ExitCode)> {
    let mut options = arguments.options();
    let file = cli::config_file(arguments.config.as_deref(), &options);
    let demo = if file.is_none() && options.backend.is_empty() {
        let demo = demo::Demo::start(arguments.log_level.as_deref()).map_err(|error| {
            let text = format!("cannot start the demo backends: {error}");
            (text.clone(), fail(text))
        })?;
        options.backend = demo.backends.iter().map(ToString::to_string).collect();
        Some(demo)
    } else {
        None
    };
    let recipe = reload::Recipe { file, options, demo: demo.is_some() };
    let mut names = names_left(recipe.file.as_deref());
    let loaded = recipe.gather(&mut names).map_err(|errors| {
        report(&errors);
        (errors.render(false).trim_end().to_owned(), ExitCode::from(UNUSABLE))
    })?;
    report(&loaded.warnings);
    let failed = |message: String| {
        log::error!("{message}");
        (message, ExitCode::from(FAILED))
    };
    let control = match &loaded.process.control {
        config::Control::At(path) => Some(path.clone()),
        config::Control::Derived => {
            Some(control::place::directory().join(control::place::name(recipe.file.as_deref())))
        }
        config::Control::Off => None,
    };
    before.doors = control.as_deref().map(control::beside::Sockets::of);
    let doors = before.doors.as_ref();
    before.formers = match std::mem::take(&mut before.formers) {
        none if none.is_empty() => takeover::orphans(&loaded.snapshot, doors, &before.lent).map_err(failed)?,
        formers => formers.into_iter().map(|former| former.with_workers_behind(doors)).collect(),
    };
    master::Master::start(loaded, recipe, names, demo, arguments.log_level.clone(), before).map_err(failed)
}
