//! One direction of a relay.

use ipc::fault;
use ipc::state::Direction;

use crate::buffer::Pending;
use crate::ctx::Ctx;
use crate::io::socket::{Io, Socket};
use crate::io::splice::Pipe;

/// Bytes moved in one direction in one turn at most.
pub(crate) const TURN_BYTES: usize = 1024 * 1024;
/// Bytes moved into the pipe at a time; the pipe takes less.
const FILL_BYTES: usize = 1024 * 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Flow {
    /// Bytes in this process's memory; they go first.
    pub early: Pending,
    /// A pipe and the bytes in it; `None` while nothing is on its way.
    pub pipe: Option<(Pipe, usize)>,
    /// Bytes moved.
    pub moved: u64,
    /// The sender was taken for drained after a short splice, which is not certain: it is looked at again soon.
    pub presumed: bool,
    /// The sender has sent its last byte.
    ended: bool,
    /// The receiver has been told so.
    passed_on: bool,
    /// The end is not passed on before somebody says so with [`Flow::pass_on`].
    pub holds_end: bool,
}

/// A splice that brought fewer bytes has most probably drained the socket. It has not when the pipe ran out of
/// segments first: when so few bytes came in more pieces than a pipe has segments (64), each of them tiny. Asking
/// the socket each time would cost a third system call for every small message.
const SMALL_BYTES: usize = 4096;

/// What moving one direction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Nothing more can move now.
    Blocked,
    /// It used up its share of this turn.
    Again,
    /// Bytes are there that cannot go through a pipe, or there is none.
    NoPipe,
    /// The connection from the sender is broken.
    FromBroken,
    /// The connection to the receiver is broken.
    ToBroken,
}

impl Flow {
    /// Whether bytes under way lie in this process's memory alone.
    pub fn is_captive(&self) -> bool {
        !self.early.is_empty()
    }

    /// Whether the sender has sent its last byte.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether this direction is over and the receiver knows.
    pub fn is_passed_on(&self) -> bool {
        self.passed_on
    }

    /// Whether everything has been moved but the end.
    pub fn is_at_end(&self) -> bool {
        self.ended && !self.passed_on && self.early.is_empty() && self.pipe.is_none()
    }

    /// Tells the receiver that this was all.
    pub fn pass_on(&mut self, to: &mut Socket) {
        self.passed_on = true;
        to.shutdown_write();
    }

    /// Puts what is in this process's memory into a pipe, where it outlives the process. It stays where it is if there is
    /// no pipe that takes all of it.
    pub fn stash(&mut self, owner: (u32, Direction), cx: &mut Ctx) {
        if self.early.is_empty() || self.pipe.is_some() {
            return;
        }
        let Some(pipe) = cx.take_pipe() else { return };
        claim(&pipe, Some(owner), cx);
        let stored = pipe.store(self.early.rest());
        fault::instant();
        if stored == Ok(self.early.rest().len()) {
            self.pipe = Some((pipe, self.early.rest().len()));
            self.early.clear(&mut cx.buffers);
        } else {
            claim(&pipe, None, cx);
            cx.pipes.empty(pipe, &mut cx.scratch);
        }
    }

    /// Moves bytes as far as they go now, those of `owner`, and takes up to `most` new ones.
    pub fn pump(
        &mut self,
        from: &mut Socket,
        to: &mut Socket,
        owner: (u32, Direction),
        most: usize,
        cx: &mut Ctx,
    ) -> Moved {
        let mut budget = TURN_BYTES.min(most);
        loop {
            let flushed = self.flush(to, from.is_read_closed(), cx);
            if flushed != Moved::Again {
                return flushed;
            }
            if self.ended {
                if !self.passed_on && !self.holds_end {
                    self.pass_on(to);
                }
                return Moved::Blocked;
            }
            if !from.is_readable() {
                return Moved::Blocked;
            }
            if budget == 0 {
                return Moved::Again;
            }
            if from.is_urgent() {
                return Moved::NoPipe;
            }
            let Some(pipe) = cx.take_pipe() else { return Moved::NoPipe };
            claim(&pipe, Some(owner), cx);
            match from.splice_in(&pipe, FILL_BYTES.min(most)) {
                Io::Moved(n) => {
                    budget = budget.saturating_sub(n);
                    self.pipe = Some((pipe, n));
                    if n < SMALL_BYTES && from.is_readable() {
                        from.presume_drained();
                        self.presumed = true;
                    }
                }
                Io::Blocked => {
                    put_back(pipe, cx);
                    return if from.is_urgent() { Moved::NoPipe } else { Moved::Blocked };
                }
                Io::Eof => {
                    put_back(pipe, cx);
                    self.ended = true;
                }
                Io::Broken(_) => {
                    put_back(pipe, cx);
                    return Moved::FromBroken;
                }
            }
        }
    }

    /// Sends what is under way; `Again` when nothing is any more. `ahead`: the end follows at once, or more does.
    pub(super) fn flush(&mut self, to: &mut Socket, ahead: bool, cx: &mut Ctx) -> Moved {
        while !self.early.is_empty() {
            match to.send(self.early.rest(), &[]) {
                Io::Moved(n) => {
                    self.moved += n as u64;
                    self.early.advance(n, &mut cx.buffers);
                }
                Io::Blocked | Io::Eof => return Moved::Blocked,
                Io::Broken(_) => return Moved::ToBroken,
            }
        }
        while let Some((pipe, held)) = &mut self.pipe {
            match to.splice_out(pipe, *held, ahead) {
                Io::Moved(n) => {
                    self.moved += n as u64;
                    *held -= n;
                    if *held == 0
                        && let Some((pipe, _)) = self.pipe.take()
                    {
                        put_back(pipe, cx);
                    }
                }
                Io::Blocked | Io::Eof => return Moved::Blocked,
                Io::Broken(_) => return Moved::ToBroken,
            }
        }
        Moved::Again
    }

    /// Moves bytes through this process's memory, as much as one read brings; `Again` when more may be there.
    pub fn copy(&mut self, from: &mut Socket, to: &mut Socket, cx: &mut Ctx) -> Moved {
        match from.recv(&mut cx.scratch) {
            Io::Moved(n) => {
                self.early.push(&cx.scratch[..n], &mut cx.buffers);
                self.flush(to, false, cx)
            }
            Io::Blocked => Moved::Blocked,
            Io::Eof => {
                self.ended = true;
                Moved::Again
            }
            Io::Broken(_) => Moved::FromBroken,
        }
    }

    /// Gives everything back, with whatever bytes are still in it.
    pub fn release(&mut self, cx: &mut Ctx) {
        self.early.clear(&mut cx.buffers);
        if let Some((pipe, _)) = self.pipe.take() {
            claim(&pipe, None, cx);
            cx.pipes.empty(pipe, &mut cx.scratch);
        }
    }
}

/// Says in shared memory whose bytes the pipe holds.
fn claim(pipe: &Pipe, owner: Option<(u32, Direction)>, cx: &Ctx) {
    if let Some(word) = pipe.number().and_then(|number| cx.control.pipe_owner(number)) {
        word.set(owner);
    }
}

fn put_back(pipe: Pipe, cx: &mut Ctx) {
    claim(&pipe, None, cx);
    cx.pipes.put(pipe);
}
