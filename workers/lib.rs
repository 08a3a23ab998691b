//! Everything one worker process does: it takes connections from the master and relays them to backends.
//!
//! [`run`] is the way in. The worker listens nowhere, and accepts only when its master has died.

mod accepting;
pub mod access_log;
pub mod backend;
pub mod balance;
pub mod buffer;
pub mod client;
pub mod ctx;
pub mod date;
pub mod dns;
mod drain;
pub mod exchange;
mod first_read;
pub mod forward;
pub mod io;
mod messages;
mod orphan;
mod parting;
pub mod proto;
pub mod proxy_protocol;
pub mod relay;
mod reload;
pub mod room;
pub mod route;
pub mod slab;
pub mod timers;
pub mod worker;

// What is shared with the fuzz targets names this crate as they do.
#[cfg(test)]
extern crate self as workers;

use std::collections::VecDeque;
use std::io as stdio;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;

use ipc::channel::{Channel, RecvError};
use ipc::ledger::Ledger;
use ipc::message::{ToWorker, VERSION};
use ipc::shm::{Arena, Control};
use ipc::snapshot::LogTarget;
use log::error;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::ctx::{Clock, Ctx, SCRATCH_BYTES, Site};
use crate::worker::{End, Worker};

/// Serves connections that come over `channel` until the master says otherwise or is gone.
#[must_use]
pub fn run(channel: OwnedFd, index: u16) -> ExitCode {
    let began = begin(channel, index).map(|mut worker| {
        worker.watch_master();
        worker
    });
    match began.and_then(|mut worker| worker.run()) {
        Ok(End::Drained | End::Stopped) => ExitCode::SUCCESS,
        // It was stopped before this worker had begun.
        Err(error) if error.kind() == stdio::ErrorKind::ConnectionAborted => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What to do when the region cannot be mapped, which takes address space and not yet memory.
fn mapping(error: &stdio::Error, layout: &ipc::message::Layout) -> stdio::Error {
    let text = format!(
        "cannot map the memory for {} connections: {error}; lower limits.connections or limits.head, or raise the limit \
         on address space (`ulimit -v`, or LimitAS= in systemd)",
        layout.records
    );
    stdio::Error::new(error.kind(), text)
}

/// Makes worker `index`, once its master has greeted it over `channel`.
///
/// # Errors
/// When the greeting makes no sense, the master is gone, or memory or descriptors are short.
pub fn begin(channel: OwnedFd, index: u16) -> stdio::Result<Worker> {
    let mut channel = Channel::from_fd(channel);
    let poll = Poll::new()?;
    let (message, mut fds) = first_message(&mut channel)?;
    let invalid = |what: &str| stdio::Error::new(stdio::ErrorKind::InvalidData, what.to_owned());
    let ToWorker::Hello { version, layout, row, .. } = message else {
        return Err(invalid("the master's first message is no greeting"));
    };
    if version != VERSION {
        return Err(invalid("the master speaks another version of the protocol; restart it"));
    }
    let log_fd = if fds.len() == 4 { fds.pop() } else { None };
    let (Some(ledger), Some(region), Some(sealed)) = (fds.pop(), fds.pop(), fds.pop()) else {
        return Err(invalid("descriptors are missing from the master's greeting"));
    };
    let snapshot = ipc::sealed::read(&sealed)?;
    if (snapshot.access_log.to != LogTarget::Off) != log_fd.is_some() {
        return Err(invalid("the access log is missing from the master's greeting"));
    }
    let pid = std::process::id();
    let seed = u64::from(pid).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(index);
    let site = Rc::new(Site::new(snapshot, layout.slot_bytes));
    let names = backend::names::Names::new(&site.snapshot, None, index == 0);
    let token = |key| ctx::Owner::Dns(key).token();
    let cx = Ctx {
        index,
        pid,
        seed,
        slot_bytes: layout.slot_bytes,
        pools: backend::pool::Pools::new(&site, &names, seed),
        origins: forward::origins::Origins::default(),
        names,
        dns: dns::Resolving::new(site.snapshot.dns.clone(), poll.registry().try_clone()?, token),
        dns_timer: None,
        share: Rc::new(forward::share::Share::new(Ledger::map(&ledger)?, row)),
        control: Control::map(&region, &layout)?,
        arena: Arena::map(&region, &layout).map_err(|error| mapping(&error, &layout))?,
        channel,
        registry: poll.registry().try_clone()?,
        timers: timers::Timers::new(Clock::new().now_ms),
        clock: Clock::new(),
        date: date::DateCache::new(),
        scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        out: Vec::with_capacity(SCRATCH_BYTES),
        request: proto::h1::head::RequestHead::default(),
        response: proto::h1::head::ResponseHead::default(),
        buffers: buffer::Buffers::default(),
        pipes: io::splice::Pipes::default(),
        log: log_fd.map(|fd| access_log::AccessLog::new(fd, site.snapshot.access_log.format)),
        descriptors: room::Descriptors::new(descriptor_limit()),
        sockets: 0,
        events_left: false,
        kept: 0,
        given_way: room::GivenWay::default(),
        awaiting: VecDeque::new(),
        work: VecDeque::new(),
        finished: Vec::new(),
        finished_since_ms: 0,
        to_hand_over: Vec::new(),
        hand_over_until_ms: None,
        draining: false,
        orphan: false,
        giving_back: false,
        given_back: Vec::new(),
        returned: VecDeque::new(),
        reloaded: None,
        site,
    };
    Worker::new(poll, cx)
}

fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn master_is_gone() -> stdio::Error {
    stdio::Error::new(stdio::ErrorKind::ConnectionAborted, "the master is gone")
}

/// Waits for the master's greeting.
fn first_message(channel: &mut Channel) -> stdio::Result<(ToWorker, Vec<OwnedFd>)> {
    let mut poll = Poll::new()?;
    let fd = channel.as_fd().as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
    let mut events = Events::with_capacity(1);
    let mut fds = Vec::new();
    loop {
        match channel.recv(&mut fds) {
            Ok(message) => return Ok((message, fds)),
            Err(RecvError::Empty) => {}
            Err(RecvError::Io(error)) => return Err(error),
            Err(RecvError::Closed) => return Err(master_is_gone()),
            Err(error @ (RecvError::DescriptorsLost | RecvError::Malformed(_))) => {
                return Err(stdio::Error::other(format!("no greeting from the master: {error}")));
            }
        }
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != stdio::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}
