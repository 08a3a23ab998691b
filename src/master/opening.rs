//! What a master opens when it starts, and says of its limits: the control socket and the access log. Owns nothing.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;

use ipc::snapshot::{LogTarget, Snapshot};
use ipc::write_now::own_terminal;
use log::{info, warn};

use super::{Before, CLIENTS};
use crate::config::{Control, Loaded};
use crate::control::{self, OpenError};
use crate::privilege;
use crate::reload::Recipe;

/// With room for fewer connections in all, the limit of open files is so low that somebody must have forgotten it.
const FEW_CONNECTIONS: u64 = 2000;

/// Says which program this is, and what it goes by.
pub(super) fn report_beginning(recipe: &Recipe) {
    let version = env!("CARGO_PKG_VERSION");
    if recipe.demo {
        info!("Pointsman {version}; neither --config nor --backend is given: a demo with two backends of its own");
    } else {
        info!("Pointsman {version}, configuration: {}", recipe.name());
    }
}

/// Says what the limit of open files leaves of the connections asked for.
pub(super) fn report_capacity(nofile: u64, records: u32, snapshot: &Snapshot) {
    let workers = snapshot.workers;
    let mut room = format!(
        "room for {records} connections in {}",
        match workers {
            1 => "the one worker".to_owned(),
            several => format!("each of {several} workers"),
        }
    );
    let kept =
        u64::try_from(privilege::kept(nofile, workers).clients).unwrap_or(0).saturating_sub(ipc::descriptors::OVERHEAD);
    if kept < u64::from(records) * u64::from(workers) {
        room += &format!("; about {kept} of them outlive a worker that dies, the others end with it");
    }
    let remedy = "raise it with `ulimit -n`, or LimitNOFILE= in systemd";
    match snapshot.limits.connections {
        Some(wanted) if records < wanted => {
            warn!("the limit of {nofile} open files is too low: {room}, instead of the {wanted} configured; {remedy}");
        }
        None if u64::from(records) * u64::from(workers) < FEW_CONNECTIONS => {
            warn!("the limit of {nofile} open files is low: {room}; {remedy}");
        }
        Some(_) | None => info!("{room}"),
    }
}

/// The control socket: at its place, or beside it while somebody is taken over from. One that the configuration asks
/// for must be had; without the usual one the master runs too.
pub(super) fn open_control(
    config: &Loaded,
    recipe: &Recipe,
    before: &Before,
) -> Result<Option<control::Server>, String> {
    let (name, known) = (recipe.name(), before.doors.as_ref());
    let open = |path: &Path| {
        if before.formers.is_empty() {
            control::Server::open(path, name, CLIENTS, known)
        } else {
            control::Server::open_beside(path, name, CLIENTS, known)
        }
    };
    match &config.process.control {
        Control::Off => Ok(None),
        Control::At(path) => open(path).map(Some).map_err(|why| why.to_string()),
        Control::Derived => {
            let directory = control::place::directory();
            let opened = control::place::make_directory(&directory).map_err(OpenError::Failed).and_then(|()| {
                control::place::tidy(&directory);
                open(&directory.join(control::place::name(recipe.file.as_deref())))
            });
            match opened {
                Ok(server) => Ok(Some(server)),
                Err(OpenError::AnotherMaster(why)) => Err(why),
                Err(OpenError::Failed(why)) => {
                    warn!(
                        "{why}; `master reload` will not find this master, SIGHUP reloads it; and if it is killed no other \
                         can take over from its workers: name a place with `control`"
                    );
                    Ok(None)
                }
            }
        }
    }
}

pub(super) fn open_access_log(target: &LogTarget) -> Result<Option<Rc<OwnedFd>>, String> {
    match target {
        LogTarget::Off => Ok(None),
        LogTarget::Stdout => own_terminal(rustix::stdio::stdout())
            .map_or_else(|| rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3), Ok)
            .map(|fd| Some(Rc::new(fd)))
            .map_err(|errno| format!("cannot use standard output for the access log: {}", io::Error::from(errno))),
        LogTarget::File(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)
            .map(|file| Some(Rc::new(file.into())))
            .map_err(|error| {
                format!(
                    "cannot open the access log {}: {error}; the user that the master runs as must be able to write there",
                    path.display()
                )
            }),
    }
}
