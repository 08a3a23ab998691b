//! The other side of the control socket: `master reload` and `master status` find the running master, ask it, and
//! print what it says.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ipc::channel::{Channel, RecvError};
use ipc::control::{Answer, Greeting, Reloaded, Request, Status, Unprotected, VERSION, Who};
use ipc::words::{count, duration};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use super::{beside, place};
use crate::config::Control;
use crate::{FAILED, UNUSABLE, config};

/// How long a master may take to greet.
const GREET: Duration = Duration::from_secs(5);
/// How long one that is ready may take to put its socket in its place.
const PLACED: Duration = Duration::from_secs(1);

/// A master that listens.
struct Running {
    channel: Channel,
    greeting: Greeting,
}

/// Which master is meant.
#[derive(Debug)]
pub struct Which<'a> {
    /// The socket itself, when it is given.
    pub socket: Option<&'a Path>,
    /// The configuration file, when it is known.
    pub config: Option<&'a Path>,
    /// The file was named, and no other master will do.
    pub named: bool,
}

/// Asks the running master and prints the answer; waits `timeout` at most.
pub fn run(which: &Which<'_>, request: &Request, timeout: Duration) -> ExitCode {
    match ask(which, request, timeout) {
        Ok((answer, greeting)) => print(answer, &greeting),
        Err(message) => crate::fail(message),
    }
}

fn ask(which: &Which<'_>, request: &Request, timeout: Duration) -> Result<(Answer, Greeting), String> {
    let Running { mut channel, greeting } = find(which, timeout.min(GREET))?;
    let pid = greeting.pid;
    if greeting.version != VERSION {
        return Err(format!(
            "the running master (pid {pid}) is of another version; ask it with its own program, or send it SIGHUP"
        ));
    }
    channel.send(request, &[]).map_err(|error| format!("cannot ask the master (pid {pid}): {error}"))?;
    let answer = receive(&mut channel, timeout).map_err(|why| match why {
        Some(why) => format!("no answer from the master (pid {pid}): {why}"),
        None => {
            format!("no answer from the master (pid {pid}) within {} s; it may still come to it", timeout.as_secs())
        }
    })?;
    Ok((answer, greeting))
}

/// Waits for one record; `None` as the error when it does not come in time.
fn receive<M: DeserializeOwned>(channel: &mut Channel, timeout: Duration) -> Result<M, Option<String>> {
    let end = Instant::now() + timeout;
    loop {
        match channel.recv(&mut Vec::new()) {
            Ok(message) => return Ok(message),
            Err(RecvError::Empty) => {}
            Err(RecvError::Closed) => return Err(Some("it has closed the connection".to_owned())),
            Err(error @ (RecvError::DescriptorsLost | RecvError::Malformed(_) | RecvError::Io(_))) => {
                return Err(Some(error.to_string()));
            }
        }
        let left = end.checked_duration_since(Instant::now()).ok_or(None)?;
        let left = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: 1_000_000 };
        match poll(&mut [PollFd::new(&channel.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Some(io::Error::from(errno).to_string())),
        }
    }
}

/// Says hello to whoever is behind `path`, and waits so long for the answer at most.
///
/// # Errors
/// Why not, as a sentence: that nobody is there, or that somebody is who cannot be asked, which is not the same to whoever
/// would start another.
fn greet(path: &Path, timeout: Duration) -> Result<Running, String> {
    let shown = path.display();
    let fd = reach(path, || std::thread::sleep(Duration::from_millis(5))).map_err(|errno| match errno {
        Errno::CONNREFUSED => format!("no master is running behind {shown}"),
        Errno::NOENT => format!(
            "no master is running behind {shown}: there is no such socket (a master whose socket was removed follows \
             signals)"
        ),
        Errno::ACCESS | Errno::PERM => format!("{shown} may not be used by this user: ask as the master's, or as root"),
        errno => format!("cannot ask the master behind {shown}: {}", io::Error::from(errno)),
    })?;
    let mut channel = Channel::from_fd(fd);
    let greeting = receive(&mut channel, timeout).map_err(|why| match why {
        Some(why) => format!("the master behind {shown} cannot be asked: {why}; it hears its own user and root only"),
        None => format!(
            "the master behind {shown} runs and has not answered within {}: it may be stopped or very busy",
            duration(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
        ),
    })?;
    Ok(Running { channel, greeting })
}

/// Connects to whoever is behind `path`. Where somebody waits beside it the place may be about to be taken: then it is
/// tried for a while, with a `pause` in between.
pub(super) fn reach(path: &Path, mut pause: impl FnMut()) -> Result<OwnedFd, Errno> {
    let end = Instant::now() + PLACED;
    loop {
        match place::connect(path) {
            Err(Errno::CONNREFUSED | Errno::NOENT) if Instant::now() < end && !beside::names(path).is_empty() => {
                pause()
            }
            connected => return connected,
        }
    }
}

fn find(which: &Which<'_>, timeout: Duration) -> Result<Running, String> {
    if let Some(path) = which.socket {
        return greet(path, timeout);
    }
    let directory = place::directory();
    if let Some(config) = which.config {
        let shown = config.display();
        let derived = directory.join(place::name(Some(config)));
        // A master keeps the socket that it was started with, whatever the file says by now.
        let found = match config::control_of(config) {
            Control::At(path) => greet(&path, timeout).or_else(|why| {
                let place = format!("where {shown} says it is; one started with another `control` needs --control");
                greet(&derived, timeout).map_err(|_| format!("{why} ({place})"))
            }),
            Control::Off => match greet(&derived, timeout) {
                Ok(running) => Ok(running),
                Err(_) => return Err(format!("{shown} says control = \"off\"; send the master SIGHUP instead")),
            },
            Control::Derived => greet(&derived, timeout)
                .map_err(|why| format!("{why} (the place of configuration {shown}){}", others())),
        };
        match found {
            Ok(running) => return Ok(running),
            Err(why) if which.named => return Err(why),
            Err(_) => {}
        }
    }
    only(&directory, timeout)
}

/// Where a master is sought depends on the user, which is to be said to those who are not root.
fn others() -> &'static str {
    if rustix::process::geteuid().is_root() {
        ""
    } else {
        "; one that another user has started is asked as that user, or as root"
    }
}

/// The one master that is running.
fn only(directory: &Path, timeout: Duration) -> Result<Running, String> {
    let sockets: Vec<PathBuf> = place::sockets(directory);
    let (mut running, mut silent) = (Vec::new(), Vec::new());
    for path in sockets {
        match greet(&path, timeout) {
            Ok(one) => running.push((path, one)),
            Err(why) if place::probe(&path) == place::Found::Alive => silent.push(why),
            Err(_) => {}
        }
    }
    match running.len() {
        0 if !silent.is_empty() => Err(silent.join("\n")),
        0 => Err(format!(
            "no master is running that has its control socket in {}; with --control PATH others can be asked{}",
            directory.display(),
            others()
        )),
        1 => running.pop().map(|(_, running)| running).ok_or_else(String::new),
        count => {
            let mut text = format!("{count} masters are running; say which one is meant:");
            for (path, running) in running {
                let _ = write!(
                    text,
                    "\n  --control {}  (pid {}, {})",
                    path.display(),
                    running.greeting.pid,
                    running.greeting.config
                );
            }
            Err(text)
        }
    }
}

fn print(answer: Answer, greeting: &Greeting) -> ExitCode {
    match answer {
        Answer::Reloaded(reloaded) => {
            note(&reloaded.notes);
            println!("{}; {}", summary(&reloaded), acknowledged(reloaded.workers));
            ExitCode::SUCCESS
        }
        Answer::Refused { text } => {
            eprintln!("{}", text.trim_end());
            eprintln!("master: not reloaded; the former configuration stays in force");
            ExitCode::from(UNUSABLE)
        }
        Answer::Stuck { reloaded, workers } => {
            note(&reloaded.notes);
            eprintln!("master: {}; {}", summary(&reloaded), stuck(&workers));
            ExitCode::from(FAILED)
        }
        Answer::Busy { text } => crate::fail(text),
        Answer::NotUpgraded { text } => {
            // A report on a configuration has lines of its own.
            match text.trim_end().contains('\n') {
                true => eprintln!("{}\nmaster: not upgraded; nothing has changed", text.trim_end()),
                false => eprintln!("master: not upgraded: {text}; nothing has changed"),
            }
            ExitCode::from(UNUSABLE)
        }
        Answer::Upgraded { pid } => {
            println!("upgraded: the master with pid {pid} has taken over");
            ExitCode::SUCCESS
        }
        Answer::Status(status) => {
            println!("master      pid {}, configuration: {}", greeting.pid, greeting.config);
            print!("{}", table(&status));
            ExitCode::SUCCESS
        }
    }
}

fn note(notes: &str) {
    if !notes.is_empty() {
        eprintln!("{}", notes.trim_end());
    }
}

/// A configuration in force in one line.
pub fn summary(reloaded: &Reloaded) -> String {
    let Reloaded { listeners, groups, generation, .. } = reloaded;
    let (listeners, groups) = (count((*listeners).into(), "listener"), count((*groups).into(), "backend group"));
    format!("reloaded: {listeners}, {groups}, generation {generation}")
}

/// That so many workers go by it: all.
pub fn acknowledged(workers: u32) -> String {
    match workers {
        1 => "the one worker acknowledged".to_owned(),
        workers => format!("all {workers} workers acknowledged"),
    }
}

/// Which workers do not go by it.
pub fn stuck(workers: &[Who]) -> String {
    let names: Vec<String> = workers.iter().map(|who| format!("worker {} (pid {})", who.index, who.pid)).collect();
    format!("not acknowledged in time by {}, still on the former configuration", names.join(", "))
}

fn table(status: &Status) -> String {
    let mut out = format!("generation  {}\n", status.generation);
    let _ = writeln!(out, "accepting   {}", if status.accepting { "yes" } else { "no" });
    for (at, listener) in status.listeners.iter().enumerate() {
        let _ = writeln!(out, "{}  {listener}", if at == 0 { "listening " } else { "          " });
    }
    let Unprotected { now, total, lost } = status.unprotected;
    let _ = writeln!(out, "unprotected {now} now, {total} in all, {lost} lost");
    let _ = writeln!(out, "\nworker      pid  stage      generation  connections  in progress  requests");
    for worker in &status.workers {
        let Who { index, pid } = worker.who;
        let _ = writeln!(
            out,
            "{index:>6}  {pid:>7}  {:<9}  {:>10}  {:>11}  {:>11}  {:>8}",
            worker.stage, worker.generation, worker.connections, worker.active_requests, worker.requests
        );
    }
    names(status, &mut out);
    out
}

/// What names of servers stand for, each with how old that is, when it is looked up again, and what went wrong.
fn names(status: &Status, out: &mut String) {
    for (at, name) in status.names.iter().enumerate() {
        if at == 0 {
            let _ = writeln!(out, "\nname");
        }
        let more = if name.more > 0 { format!(" and {} more", name.more) } else { String::new() };
        let addresses = if name.addresses.is_empty() { "no address".to_owned() } else { name.addresses.join(", ") };
        let good = name.good_s.map_or_else(|| "not answered yet".to_owned(), |s| format!("answered {s} s ago"));
        let again = name.again_s.map(|s| format!(", again in {s} s")).unwrap_or_default();
        let trouble = name.trouble.as_ref();
        let trouble = trouble.map(|(s, why)| format!("; last failure {s} s ago: {why}")).unwrap_or_default();
        let _ = writeln!(out, "{}  {addresses}{more} ({good}{again}{trouble})", name.name);
    }
    let shown = u32::try_from(status.names.len()).unwrap_or(u32::MAX);
    if status.names_in_all > shown {
        let _ = writeln!(out, "and {} more names", status.names_in_all - shown);
    }
}
