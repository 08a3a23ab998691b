//! The proxy under test: the real binary, its log, its processes.
//!
//! Stopping it is part of every test: it must exit with 0, have logged no error and no panic, and leave no
//! process behind.

use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::processes::{alive, children, is_worker};
use super::{DEADLINE, TempDir, wait_for};

/// Where the proxy listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addr {
    Inet(SocketAddr),
    Unix(PathBuf),
}

impl Addr {
    #[track_caller]
    pub fn inet(&self) -> SocketAddr {
        match self {
            Addr::Inet(addr) => *addr,
            Addr::Unix(path) => panic!("{} is no IP address", path.display()),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Inet(addr) => addr.fmt(f),
            Addr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Lines a process has written, with the time each was read.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<(Instant, String)>>>);

impl Lines {
    fn read(&self, source: impl Read + Send + 'static) {
        let lines = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).into_owned();
                lines.0.lock().unwrap().push((Instant::now(), line));
            }
        });
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// The first line from `skip` on that has all of `parts`.
    pub fn find(&self, skip: usize, parts: &[&str]) -> Option<(Instant, String)> {
        let lines = self.0.lock().unwrap();
        lines.iter().skip(skip).find(|(_, line)| parts.iter().all(|part| line.contains(part))).cloned()
    }
}

/// How to start the proxy.
#[derive(Debug, Clone)]
pub struct Launch {
    args: Vec<String>,
    config: Option<String>,
    dir: Arc<TempDir>,
    binary: PathBuf,
    env: Vec<(String, String)>,
    socket: Option<Arc<OwnedFd>>,
    workers: usize,
    listeners: usize,
    descriptors: Option<(u64, u64)>,
    own_group: bool,
}

/// Starts a program. One that a test has just written cannot be started as long as a child of another test's thread has
/// it open for writing still, between its fork and its exec.
fn spawn(mut command: Command) -> Child {
    wait_for("the program can be started", || match command.spawn() {
        Ok(child) => Some(child),
        Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None,
        Err(error) => panic!("{command:?}: {error}"),
    })
}

impl Launch {
    /// `master` with these arguments; two workers unless they say otherwise.
    pub fn new(args: &[&str]) -> Launch {
        Launch {
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            config: None,
            dir: Arc::new(TempDir::new()),
            binary: env!("CARGO_BIN_EXE_master").into(),
            env: Vec::new(),
            socket: None,
            workers: 2,
            listeners: args.iter().filter(|&&arg| arg == "--listen").count(),
            descriptors: None,
            own_group: false,
        }
    }

    /// HTTP on a free port, balanced over these backends.
    pub fn http(backends: &[SocketAddr]) -> Launch {
        let mut launch = Launch::new(&["--listen", "127.0.0.1:0"]);
        for backend in backends {
            launch.args.extend(["--backend".to_owned(), backend.to_string()]);
        }
        launch
    }

    /// A TCP relay on a free port to these backends.
    pub fn tcp(backends: &[SocketAddr]) -> Launch {
        let mut launch = Launch::http(backends);
        launch.args.extend(["--mode".to_owned(), "tcp".to_owned()]);
        launch
    }

    /// With this configuration; `{dir}` in it stands for the test's own directory.
    pub fn config(text: &str) -> Launch {
        let mut launch = Launch::new(&[]);
        launch.listeners = text.matches("[[listen]]").count();
        launch.config = Some(text.replace("{dir}", launch.dir.path().to_str().unwrap()));
        launch
    }

    /// With `to` in the place of `from` in its configuration.
    pub fn replace(mut self, from: &str, to: &str) -> Launch {
        self.config = self.config.map(|text| text.replace(from, to));
        self
    }

    /// With this file in the test's own directory.
    pub fn file(self, name: &str, text: &str) -> Launch {
        self.dir.write(name, text);
        self
    }

    /// Started from this file, and not from where it was built.
    pub fn binary(mut self, binary: PathBuf) -> Launch {
        self.binary = binary;
        self
    }

    /// With this environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Launch {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this listening socket, as a service manager gives it.
    pub fn activated(mut self, socket: impl Into<OwnedFd>) -> Launch {
        self.socket = Some(Arc::new(socket.into()));
        self
    }

    pub fn workers(mut self, workers: usize) -> Launch {
        self.workers = workers;
        self
    }

    pub fn arg(mut self, arg: &str) -> Launch {
        self.args.push(arg.to_owned());
        self
    }

    /// In a process group of its own, so that a signal to all of it reaches nobody else.
    pub fn own_group(mut self) -> Launch {
        self.own_group = true;
        self
    }

    /// With these soft and hard limits on descriptors.
    pub fn descriptors(mut self, soft: u64, hard: u64) -> Launch {
        self.descriptors = Some((soft, hard));
        self
    }

    fn command(&self) -> Command {
        let binary = &self.binary;
        let mut command = match self.descriptors {
            None if self.socket.is_some() => {
                // It comes as standard input, and goes to where a service manager puts it.
                let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
                let mut command = Command::new("sh");
                command.args(["-c", script, "sh"]).arg(binary);
                command
            }
            // prlimit replaces itself, so the process number stays the same.
            Some((soft, hard)) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={soft}:{hard}")).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        if let Some(config) = &self.config {
            let text = format!("workers = {}\n{config}", self.workers);
            command.arg("--config").arg(self.dir.write("pointsman.toml", &text));
        } else if !self.args.iter().any(|arg| arg == "--workers") {
            command.args(["--workers", &self.workers.to_string()]);
        }
        command.args(&self.args).env_remove("RUST_LOG").current_dir(self.dir.path());
        if self.own_group {
            command.process_group(0);
        }
        let input = self.socket.as_ref().map_or(Stdio::null(), |socket| socket.try_clone().unwrap().into());
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it and waits until it listens and every worker is ready.
    #[track_caller]
    pub fn start(self) -> Proxy {
        let mut child = spawn(self.command());
        let (log, output) = (Lines::default(), Lines::default());
        log.read(child.stderr.take().unwrap());
        output.read(child.stdout.take().unwrap());
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let mut proxy = Proxy {
            child,
            pid,
            log,
            output,
            addrs: Vec::new(),
            dir: Arc::clone(&self.dir),
            launch: self.clone(),
            seen: Vec::new(),
            over: false,
            adopted: false,
            orphans: Vec::new(),
            forgiven: Vec::new(),
        };
        for _ in 0..self.listeners {
            let addr = proxy.listening(proxy.addrs.len());
            proxy.addrs.push(addr);
        }
        wait_for(&format!("{} workers are ready\n{}", self.workers, proxy.text()), || {
            proxy.running();
            (proxy.ready() >= self.workers && proxy.workers().len() >= self.workers).then_some(())
        });
        proxy.seen = proxy.workers();
        proxy
    }

    /// Starts it, and leaves everything else to the caller.
    #[track_caller]
    pub fn begin(self) -> Child {
        let mut command = self.command();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        spawn(command)
    }

    /// Runs it to its end, for arguments that do not start anything.
    #[track_caller]
    pub fn run(self) -> Output {
        let child = spawn(self.command());
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (done, alarm) = std::sync::mpsc::channel::<()>();
        let guard = thread::spawn(move || {
            if alarm.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(done);
        guard.join().unwrap();
        assert!(output.status.code().is_some(), "the program did not end by itself: {output:?}");
        output
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    pub pid: Pid,
    pub log: Lines,
    /// What it writes to standard output.
    pub output: Lines,
    addrs: Vec<Addr>,
    pub dir: Arc<TempDir>,
    launch: Launch,
    /// Every worker seen so far: none may outlive the master.
    seen: Vec<Pid>,
    over: bool,
    /// Another master has taken the place of the one that was started: it is no child of this process.
    adopted: bool,
    /// Workers that a failed test must not leave behind.
    orphans: Vec<Pid>,
    /// Parts of errors that the test has brought about.
    forgiven: Vec<String>,
}

impl Proxy {
    /// The first listener's address.
    #[track_caller]
    pub fn addr(&self) -> &Addr {
        &self.addrs[0]
    }

    pub fn addrs(&self) -> &[Addr] {
        &self.addrs
    }

    #[track_caller]
    fn listening(&mut self, index: usize) -> Addr {
        wait_for("the proxy listens", || {
            self.running();
            let lines = self.log.all();
            let line = lines.iter().filter(|line| line.contains("listening on ")).nth(index)?;
            let addr = line.split("listening on ").nth(1)?.split_whitespace().next()?;
            Some(match addr.strip_prefix("unix:") {
                Some(path) => Addr::Unix(path.into()),
                None => Addr::Inet(addr.parse().unwrap()),
            })
        })
    }

    #[track_caller]
    fn running(&mut self) {
        if let Some(status) = self.ended() {
            self.over = true;
            panic!("the proxy ended: {status}\n{}", self.text());
        }
    }

    /// Whether it has ended, and how; nobody knows how one ended that is not our child.
    fn ended(&mut self) -> Option<ExitStatus> {
        if self.adopted {
            return (!alive(self.pid)).then(|| ExitStatus::from_raw(0));
        }
        self.child.try_wait().unwrap()
    }

    fn ready(&self) -> usize {
        self.log.all().iter().filter(|line| line.contains("worker ") && line.ends_with(" ready")).count()
    }

    /// The log so far, as one text.
    pub fn text(&self) -> String {
        self.log.all().join("\n")
    }

    /// The numbers of the worker processes alive now, in the order of their numbers as workers.
    pub fn workers(&self) -> Vec<Pid> {
        self.numbered_workers().into_iter().map(|(_, pid)| pid).collect()
    }

    /// The same, each with what `ps` shows of it.
    pub fn numbered_workers(&self) -> Vec<(String, Pid)> {
        let mut workers: Vec<(String, Pid)> = children(self.pid)
            .into_iter()
            .filter_map(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let role = String::from_utf8_lossy(&line).replace('\0', " ");
                role.contains(" worker").then_some((role, pid))
            })
            .collect();
        workers.sort();
        workers
    }

    /// Waits until there are `count` workers and each was logged as ready.
    #[track_caller]
    pub fn wait_for_workers(&mut self, count: usize) -> Vec<Pid> {
        let workers = wait_for(&format!("{count} workers run\n{}", self.text()), || {
            let workers = self.workers();
            let ready = |pid: &Pid| self.log.find(0, &[&format!("(pid {pid}) ready")]).is_some();
            (workers.len() == count && workers.iter().all(ready)).then_some(workers)
        });
        self.seen.extend(&workers);
        workers
    }

    /// Waits until a line has all of `parts`, and gives it with the time it was read.
    #[track_caller]
    pub fn wait_for_log(&self, parts: &[&str]) -> (Instant, String) {
        self.wait_for_log_after(0, parts)
    }

    /// The same, among the lines from `skip` on.
    #[track_caller]
    pub fn wait_for_log_after(&self, skip: usize, parts: &[&str]) -> (Instant, String) {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = self.log.find(skip, parts) {
                return found;
            }
            assert!(Instant::now() < end, "no line with {parts:?} in the log:\n{}", self.text());
            thread::park_timeout(Duration::from_millis(3));
        }
    }

    /// Errors with this in them are what the test is about.
    pub fn forgive(&mut self, part: &str) {
        self.forgiven.push(part.to_owned());
    }

    /// Writes another configuration, for a reload.
    pub fn write_config(&self, workers: usize, text: &str) {
        let text = text.replace("{dir}", self.dir.path().to_str().unwrap());
        // As editors save it, so that nobody reads half of it.
        let new = self.dir.write("pointsman.toml.new", &format!("workers = {workers}\n{text}"));
        std::fs::rename(new, self.dir.join("pointsman.toml")).unwrap();
    }

    /// Runs `master reload`, or another question to the running master, to its end.
    #[track_caller]
    pub fn question(&self, what: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_master"));
        command.arg(what).arg("--config").arg(self.dir.join("pointsman.toml"));
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Writes another configuration and has it taken; panics unless all workers do.
    #[track_caller]
    pub fn reload(&mut self, workers: usize, text: &str) -> String {
        self.write_config(workers, text);
        let output = self.question("reload");
        assert!(output.status.success(), "{output:?}\n{}", self.text());
        self.seen.extend(self.workers());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The addresses of listeners, in the order in which they were begun.
    #[track_caller]
    pub fn wait_for_listener(&mut self, index: usize) -> Addr {
        self.listening(index)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    /// Memory of a worker that is its own (anonymous and shared, not the program's file), in KiB.
    pub fn memory_kib(pid: Pid) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let value = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        value("RssAnon:") + value("RssShmem:")
    }

    /// Waits for its end, however that came about, and gives the status; checks that no worker is left.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.seen.extend(self.workers());
        let status = wait_for(&format!("the master ends\n{}", self.text()), || self.ended());
        self.over = true;
        let mut left = std::mem::take(&mut self.seen);
        wait_for(&format!("its workers {left:?} end\n{}", self.text()), || {
            left.retain(|&pid| alive(pid));
            left.is_empty().then_some(())
        });
        status
    }

    /// Stops it and makes all the checks of its end; gives the log.
    #[track_caller]
    pub fn stop(mut self) -> Vec<String> {
        self.check_end(Some(Signal::SIGTERM));
        self.log.all()
    }

    /// Waits for its end, which the test has brought about, with all the checks.
    #[track_caller]
    pub fn check_end(&mut self, signal: Option<Signal>) {
        self.seen.extend(self.workers());
        if let Some(signal) = signal {
            self.signal(signal);
        }
        let status = self.wait();
        assert!(status.success(), "exit status {status}\n{}", self.text());
        self.check_log();
    }

    /// Panics if the log has an error or a panic.
    #[track_caller]
    pub fn check_log(&self) {
        let bad: Vec<String> =
            self.log.all().into_iter().filter(|line| line.contains("ERROR") || line.contains("panicked")).collect();
        let forgiven = |line: &String| self.forgiven.iter().any(|part| line.contains(part));
        let bad: Vec<String> = bad.into_iter().filter(|line| !forgiven(line)).collect();
        assert!(bad.is_empty(), "errors were logged: {bad:#?}\n{}", self.text());
    }

    /// Kills the master alone; its workers, which are given, serve on.
    #[track_caller]
    pub fn kill_master(&mut self) -> Vec<Pid> {
        let workers = self.workers();
        self.signal(Signal::SIGKILL);
        wait_for("the master is dead", || self.ended());
        self.over = true;
        self.orphans.clone_from(&workers);
        workers
    }

    /// Waits until the master ends by itself; its `workers` serve on.
    #[track_caller]
    pub fn master_ends(&mut self, workers: &[Pid]) {
        wait_for(&format!("the master ends\n{}", self.text()), || self.ended());
        self.over = true;
        self.orphans = workers.to_vec();
    }

    /// Starts another master with the same arguments and configuration.
    #[track_caller]
    pub fn again(&self) -> Proxy {
        self.launch.clone().start()
    }

    /// How this one was started.
    pub fn launch(&self) -> Launch {
        self.launch.clone()
    }

    /// The same with another configuration.
    pub fn launch_with(&self, text: &str) -> Launch {
        let mut launch = Launch::config(text);
        launch.dir = Arc::clone(&self.dir);
        launch.config = Some(text.replace("{dir}", self.dir.path().to_str().unwrap()));
        launch.workers(self.launch.workers)
    }

    /// Replaces the master by `master upgrade`, and waits until nothing is left of the former one; gives how long
    /// that took.
    #[track_caller]
    pub fn upgrade(&mut self) -> Duration {
        let start = Instant::now();
        let output = self.question("upgrade");
        assert!(output.status.success(), "{output:?}\n{}", self.text());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let pid = said.strip_prefix("upgraded: the master with pid ").and_then(|rest| rest.split(' ').next());
        self.succeeded(Pid::from_raw(pid.unwrap_or_else(|| panic!("{said}")).parse().unwrap()));
        start.elapsed()
    }

    /// The master with this number has taken over: waits until nothing is left of the former one.
    #[track_caller]
    pub fn succeeded(&mut self, pid: Pid) {
        let former = std::mem::replace(&mut self.pid, pid);
        self.seen.retain(|&worker| alive(worker));
        let mut left: Vec<Pid> = self.seen.drain(..).collect();
        wait_for(&format!("master {former} and its workers {left:?} end\n{}", self.text()), || {
            left.retain(|&pid| alive(pid));
            let ended = if self.adopted { !alive(former) } else { self.child.try_wait().unwrap().is_some() };
            (ended && left.is_empty()).then_some(())
        });
        if !std::mem::replace(&mut self.adopted, true) {
            assert!(self.child.wait().unwrap().success());
        }
        self.wait_for_workers(self.launch.workers);
    }

    fn put_down(&mut self) {
        let workers = self.workers();
        if self.adopted {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in workers.into_iter().filter(|&pid| alive(pid)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for &pid in self.orphans.iter().filter(|&&pid| thread::panicking() && alive(pid) && is_worker(pid)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if thread::panicking() {
            if !self.over {
                self.put_down();
            }
            eprintln!("--- the proxy's log\n{}\n---", self.text());
        } else if !self.over {
            self.seen.extend(self.workers());
            self.signal(Signal::SIGTERM);
            let end = Instant::now() + DEADLINE;
            while self.ended().is_none() {
                if Instant::now() > end {
                    self.put_down();
                    panic!("the proxy did not stop on SIGTERM\n{}", self.text());
                }
                thread::park_timeout(Duration::from_millis(3));
            }
            self.check_end(None);
        }
    }
}
