//! What stands in a process's place in the model: something whose end the model brings about, and whose killing it
//! learns of.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::EventfdFlags;
use rustix::process::Pid;

use crate::process::{End, Process, Spawn};
use crate::supervise::Equipment;
use crate::upgrade::Program;

/// How those end that are killed.
pub const KILLED: End = End::Killed(9);

/// One process, as the model sees it.
#[derive(Debug)]
pub struct Handle {
    pid: Pid,
    /// Readable once it has ended.
    ended: OwnedFd,
    killed: Cell<bool>,
    end: Cell<Option<End>>,
    /// A master that has let go of it starts no other in its place.
    reaped: Cell<bool>,
}

impl Handle {
    fn new(pid: i32) -> Rc<Handle> {
        Rc::new(Handle {
            pid: Pid::from_raw(pid).unwrap(),
            ended: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
            killed: Cell::new(false),
            end: Cell::new(None),
            reaped: Cell::new(false),
        })
    }

    /// It has ended: everything that it had open is closed.
    pub fn die(&self, end: End) {
        assert_eq!(self.end.replace(Some(end)), None, "a process ends once");
        rustix::io::write(&self.ended, &1u64.to_ne_bytes()).unwrap();
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether somebody has killed it.
    pub fn is_killed(&self) -> bool {
        self.killed.get()
    }

    pub fn has_ended(&self) -> bool {
        self.end.get().is_some()
    }
}

/// A process, as its master sees it.
#[derive(Debug)]
struct Stand(Rc<Handle>);

impl AsFd for Stand {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.ended.as_fd()
    }
}

impl Process for Stand {
    fn pid(&self) -> Pid {
        self.0.pid
    }

    fn kill(&self) {
        self.0.killed.set(true);
    }

    fn end(&self) {
        self.kill();
    }

    fn reap(&self) -> Option<End> {
        let end = self.0.end.get();
        assert!(end.is_none() || !self.0.reaped.replace(true), "a process is reaped once");
        end
    }

    fn let_go(&self) {}
}

/// What a process is started as, with its end of the channel.
#[derive(Debug)]
pub enum Role {
    Worker { index: u16, channel: OwnedFd },
    Successor { channel: OwnedFd },
}

/// A process that a master has started and that has not done anything yet.
#[derive(Debug)]
pub struct Newborn {
    /// The number of the master that started it.
    pub parent: usize,
    pub handle: Rc<Handle>,
    pub role: Role,
}

/// Every process started.
#[derive(Debug, Default)]
pub struct Cradle {
    newborn: RefCell<Vec<Newborn>>,
    count: Cell<i32>,
}

impl Cradle {
    /// Those started since the last time.
    pub fn take(&self) -> Vec<Newborn> {
        self.newborn.take()
    }

    fn start(&self, parent: usize, role: Role) -> Box<dyn Process> {
        self.count.set(self.count.get() + 1);
        let handle = Handle::new(1_000_000 + self.count.get());
        self.newborn.borrow_mut().push(Newborn { parent, handle: Rc::clone(&handle), role });
        Box::new(Stand(handle))
    }
}

/// What one master starts processes with.
#[derive(Debug)]
pub struct Spawner {
    pub parent: usize,
    pub cradle: Rc<Cradle>,
}

impl Spawn for Spawner {
    fn worker(&self, index: u16, channel: OwnedFd, _: &Equipment<'_>) -> io::Result<Box<dyn Process>> {
        Ok(self.cradle.start(self.parent, Role::Worker { index, channel }))
    }

    fn successor(&self, _: &Program, channel: OwnedFd) -> io::Result<Box<dyn Process>> {
        Ok(self.cradle.start(self.parent, Role::Successor { channel }))
    }
}
