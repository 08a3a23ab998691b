//! One client connection: its socket, the bytes read and not yet answered, and what it is doing.
//!
//! It keeps the connection's record in shared memory true at every instant, so that after this process's death
//! the master can tell what to do with it. It knows no protocol.

use std::net::SocketAddr;

use ipc::shm::{Arena, Slot};
use ipc::snapshot::ListenerId;
use ipc::state::{Image, Phase};

use crate::backend::Upstream;
use crate::ctx::Ctx;
use crate::exchange::Exchange;
use crate::forward::opening::Opening;
use crate::io::socket::{Io, Socket};
use crate::relay::Relay;
use crate::slab::Key;

/// What a client connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientState {
    /// Its PROXY header has not come whole.
    Header,
    /// Between requests, or within a request head.
    Idle,
    /// It says, in another protocol than HTTP, where it wants to go.
    Opening(Key<Opening>),
    /// A request is being served.
    Exchange(Key<Exchange>),
    /// Bytes are being relayed.
    Relay(Key<Relay>),
    /// The last answer has been sent; what still comes is read and dropped, so that closing does not reset the
    /// connection before the client has read it (RFC 9112 section 9.6). Counts the bytes still tolerated.
    Lingering(u32),
}

/// A buffer of the arena with the bytes in it.
#[derive(Debug)]
pub struct Input {
    slot: Slot,
    /// Where the first byte not yet answered lies.
    pub start: usize,
    /// Where the bytes end.
    pub end: usize,
}

/// See the module's description.
#[derive(Debug)]
pub struct Client {
    /// Its socket.
    pub socket: Socket,
    /// The master's number for it, the index of its record.
    pub id: u32,
    /// Where it was accepted.
    pub listener: ListenerId,
    /// Its address, by its PROXY header if there was one; `None` on a Unix listener.
    pub peer: Option<SocketAddr>,
    /// What it connected to, if a PROXY header said so; else it is the socket's own address.
    pub destination: Option<SocketAddr>,
    /// What it is doing.
    pub state: ClientState,
    /// A server's connection that may serve this client only, kept for its next request; it may be over by then.
    pub kept: Option<Key<Upstream>>,
    /// Bytes read and not yet answered; `None` while there are none.
    pub input: Option<Input>,
    /// It is known to speak HTTP; on forward listeners only the first byte tells.
    pub is_http: bool,
    /// On forward listeners, the address that its peer is connected to, once the first byte has come.
    pub here: Option<SocketAddr>,
    /// When the first byte of the present request head came; 0 = none has.
    pub head_since_ms: u64,
    /// Whether the kernel counts no bytes for it, as on a Unix listener. Then the record must say by itself whether
    /// anything is under way.
    pub uncounted: bool,
    /// Whether the master has copies, so that another worker can go on if this one dies.
    pub protected: bool,
    /// The socket's count of bytes sent when the present request began.
    written_before: u64,
    /// Bytes of interim responses to it, sent or about to be.
    interim: u64,
    /// Whether it came on a Unix socket, whatever a PROXY header says.
    unix: bool,
}

impl Client {
    /// A connection just taken up.
    #[must_use]
    pub fn new(socket: Socket, id: u32, listener: ListenerId, peer: Option<SocketAddr>) -> Client {
        Client {
            socket,
            id,
            listener,
            peer,
            destination: None,
            state: ClientState::Idle,
            kept: None,
            input: None,
            is_http: false,
            here: None,
            head_since_ms: 0,
            uncounted: peer.is_none(),
            protected: true,
            written_before: 0,
            interim: 0,
            unix: peer.is_none(),
        }
    }

    /// The master has no copy. If this process dies the kernel closes the connection: with a reset, so that nobody
    /// takes part of an answer for the whole.
    pub(crate) fn lose_protection(&mut self) {
        self.protected = false;
        self.socket.reset_when_closed(true);
    }

    /// The connection is about to be ended in good order, or given away.
    pub(crate) fn regain_protection(&mut self) {
        if !self.protected {
            self.socket.reset_when_closed(false);
        }
    }

    /// Takes over bytes that a former worker had read. They count as read by this one.
    ///
    /// Fails (and leaves the connection as it was) when there is no buffer for them.
    #[must_use]
    pub fn resume(&mut self, bytes: &[u8], cx: &mut Ctx) -> bool {
        let Some(mut slot) = cx.arena.take() else { return false };
        let Some(space) = cx.arena.bytes_mut(&mut slot).get_mut(..bytes.len()) else {
            cx.arena.put(slot);
            return false;
        };
        space.copy_from_slice(bytes);
        self.socket.bytes_in = bytes.len() as u64;
        self.input = Some(Input { slot, start: 0, end: bytes.len() });
        self.publish(Phase::Open, cx);
        true
    }

    /// Publishes where the connection stands: everything before the first unanswered byte is done with.
    pub fn publish(&self, phase: Phase, cx: &Ctx) {
        let Some(record) = cx.control.record(self.id) else { return };
        let (slot, start, end) = match &self.input {
            Some(input) => (Some(input.slot.number()), input.start, input.end),
            None => (None, 0, 0),
        };
        let rests =
            self.uncounted && self.input.is_none() && matches!(self.state, ClientState::Idle | ClientState::Header);
        let phase = if rests && phase == Phase::Open { Phase::Resting } else { phase };
        record.publish(&Image {
            phase,
            slot,
            offset: u32::try_from(start).unwrap_or(0),
            consumed: self.socket.bytes_in - (end - start) as u64,
            written: self.written_before + self.interim,
        });
    }

    /// Publishes, as [`Client::publish`], that `length` bytes of an interim response are written. Comes before they are,
    /// as with [`Client::publish_answer`]. Nothing is answered with them: what may be run again still may be, and what may
    /// not be can still be answered.
    pub fn publish_interim(&mut self, length: u64, phase: Phase, cx: &Ctx) {
        self.interim += length;
        self.publish(phase, cx);
    }

    /// Publishes which server the present request is about to be sent to.
    pub fn note_server(&self, number: Option<u64>, cx: &Ctx) {
        if let Some(record) = cx.control.record(self.id) {
            record.note_server(number);
        }
    }

    /// Publishes where the connection will stand once the last `left` bytes of an answer are written: everything
    /// before slot position `upto` is answered then. Comes before they are written, so that a death right after
    /// finds the request answered; the record's former image tells of the request until then.
    pub fn publish_answer(&self, upto: usize, left: u64, cx: &Ctx) {
        if self.uncounted {
            // Nobody could tell how much of it has been written.
            return;
        }
        let Some(record) = cx.control.record(self.id) else { return };
        let (slot, start, end) = match &self.input {
            Some(input) => (Some(input.slot.number()), upto.min(input.end), input.end),
            None => (None, 0, 0),
        };
        record.publish(&Image {
            phase: Phase::Open,
            slot,
            offset: u32::try_from(start).unwrap_or(0),
            consumed: self.socket.bytes_in - (end - start) as u64,
            written: self.socket.bytes_out + left,
        });
    }

    /// Publishes that the connection is over once the last `left` bytes of its last answer are written. A death right
    /// after that finds nothing left to do but to end it, and the bytes on their way however far they have come.
    pub fn publish_last_answer(&self, left: u64, cx: &Ctx) {
        if self.uncounted {
            return;
        }
        let Some(record) = cx.control.record(self.id) else { return };
        record.publish(&Image {
            phase: Phase::Done,
            slot: None,
            offset: 0,
            consumed: self.socket.bytes_in,
            written: self.socket.bytes_out + left,
        });
    }

    /// Sends `answer` within a negotiation whose bytes all stay in the slot. Once it is written a successor finds their
    /// first byte changed to `mark`, and until then as it was. In another slot, so that both are true at their time.
    /// False when no slot is free, or the client does not take the answer.
    #[must_use]
    pub fn answer_marked(&mut self, mark: u8, answer: &[u8], cx: &mut Ctx) -> bool {
        let Some(input) = self.input.take() else { return false };
        let Some(mut slot) = cx.arena.take() else {
            self.input = Some(input);
            return false;
        };
        let bytes = &cx.arena.bytes(&input.slot)[input.start..input.end];
        cx.arena.bytes_mut(&mut slot)[..bytes.len()].copy_from_slice(bytes);
        cx.arena.bytes_mut(&mut slot)[0] = mark;
        self.input = Some(Input { slot, start: 0, end: input.end - input.start });
        self.publish_answer(0, answer.len() as u64, cx);
        let sent = self.socket.send(answer, &[]) == Io::Moved(answer.len());
        cx.arena.put(input.slot);
        sent
    }

    /// Publishes that the connection is a relay once the last `left` bytes are written, those that agree to it. Until
    /// then the record's former image tells of the request, so that nothing may be read from the client before.
    pub fn publish_tunnel(&self, left: u64, cx: &Ctx) {
        let Some(record) = cx.control.record(self.id) else { return };
        record.publish(&Image {
            phase: Phase::Relay,
            slot: None,
            offset: 0,
            consumed: self.socket.bytes_in,
            written: self.socket.bytes_out + left,
        });
    }

    /// The bytes read and not yet answered.
    #[must_use]
    pub fn unanswered<'a>(&'a self, arena: &Arena) -> &'a [u8] {
        self.input.as_ref().map_or(&[], |input| &arena.bytes(&input.slot)[input.start..input.end])
    }

    /// The slot's bytes from `from` to the end of what was read.
    #[must_use]
    pub fn input_from<'a>(&'a self, from: usize, arena: &Arena) -> &'a [u8] {
        self.input.as_ref().map_or(&[], |input| arena.bytes(&input.slot).get(from..input.end).unwrap_or(&[]))
    }

    /// Whether a request has begun to come: an empty line in front of one, or behind the one before, is none (RFC 9112
    /// section 2.2).
    #[must_use]
    pub fn has_begun(&self, arena: &Arena) -> bool {
        !matches!(self.unanswered(arena), b"" | b"\r" | b"\r\n")
    }

    /// Reads more into the slot behind what is there, taking one first if need be. `Io::Moved(0)` never comes;
    /// `None` means there is no room: the slot is full, or there is no slot to be had.
    pub fn read_more(&mut self, cx: &mut Ctx) -> Option<Io> {
        if self.input.is_none() {
            if !self.socket.is_readable() {
                return Some(Io::Blocked);
            }
            let slot = cx.arena.take()?;
            self.input = Some(Input { slot, start: 0, end: 0 });
            // Before the bytes arrive: a death right after the read must find them.
            self.publish(Phase::Open, cx);
        }
        let input = self.input.as_mut()?;
        let space = &mut cx.arena.bytes_mut(&mut input.slot)[input.end..];
        if space.is_empty() {
            return None;
        }
        // To a client on a Unix socket a reset is only possible with a byte unread, and to one of HTTP/1.0 it may be the
        // only way to show that an answer is cut. Which version it speaks is not known yet.
        let io = if self.unix && self.state == ClientState::Idle {
            self.socket.recv_keeping(space)
        } else {
            self.socket.recv(space)
        };
        if let Io::Moved(n) = io {
            input.end += n;
        }
        Some(io)
    }

    /// Everything before slot position `upto` has been answered. Gives the slot back when nothing is left.
    pub fn answered(&mut self, upto: usize, cx: &mut Ctx) {
        self.head_since_ms = 0;
        (self.written_before, self.interim) = (self.socket.bytes_out, 0);
        let Some(mut input) = self.input.take() else {
            self.publish(Phase::Open, cx);
            return;
        };
        input.start = upto.min(input.end);
        if input.start == input.end {
            self.publish(Phase::Open, cx);
            cx.arena.put(input.slot);
            return;
        }
        self.input = Some(input);
        self.publish(Phase::Open, cx);
    }

    /// Puts `bytes`, read beyond the end of a body, into the slot at `at`, as the beginning of the next request.
    ///
    /// False when they do not fit.
    #[must_use]
    pub fn put_back(&mut self, at: usize, bytes: &[u8], cx: &Ctx) -> bool {
        let Some(input) = self.input.as_mut() else { return false };
        let Some(space) = cx.arena.bytes_mut(&mut input.slot).get_mut(at..at + bytes.len()) else { return false };
        space.copy_from_slice(bytes);
        input.end = at + bytes.len();
        true
    }

    /// Bytes sent to the client since the present request began.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.socket.bytes_out - self.written_before
    }

    /// Gives the slot back, whatever it holds.
    pub fn release_input(&mut self, cx: &mut Ctx) {
        if let Some(input) = self.input.take() {
            cx.arena.put(input.slot);
        }
    }

    /// Moves what is unanswered to the beginning of a slot, to make room behind it. Into another slot, so that
    /// the record's former image stays true until the new one is published. False when no slot is free.
    #[must_use]
    pub fn compact(&mut self, cx: &mut Ctx) -> bool {
        let Some(input) = self.input.take() else { return true };
        if input.start == 0 {
            self.input = Some(input);
            return true;
        }
        let Some(mut slot) = cx.arena.take() else {
            self.input = Some(input);
            return false;
        };
        let bytes = &cx.arena.bytes(&input.slot)[input.start..input.end];
        cx.arena.bytes_mut(&mut slot)[..bytes.len()].copy_from_slice(bytes);
        self.input = Some(Input { slot, start: 0, end: input.end - input.start });
        self.publish(Phase::Open, cx);
        cx.arena.put(input.slot);
        true
    }

    /// Sees to it that behind a head of `length` bytes, the first unanswered ones, the slot has room for what is
    /// read of a body whose end is not known, and may be the next request: behind earlier requests there may be none.
    pub fn make_body_room(&mut self, length: usize, cx: &mut Ctx) {
        const BODY_ROOM: usize = 16 * 1024;
        let Some(input) = &self.input else { return };
        if input.start > 0 && self.slot_room(input.start + length, cx) < BODY_ROOM {
            // Without a free slot it stays where it is.
            let _ = self.compact(cx);
        }
    }

    /// How many bytes the slot holds from position `from` on.
    #[must_use]
    pub fn slot_room(&self, from: usize, cx: &Ctx) -> usize {
        self.input.as_ref().map_or(0, |input| cx.arena.bytes(&input.slot).len().saturating_sub(from))
    }

    /// Whether the slot has no room behind what is there.
    #[must_use]
    pub fn is_full(&self, cx: &Ctx) -> bool {
        self.input.as_ref().is_some_and(|input| input.end == cx.arena.bytes(&input.slot).len())
    }
}
