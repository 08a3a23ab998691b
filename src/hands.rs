//! Notes of what each of the master's descriptors is, as far as its heir (`crate::heir`) must know: the connections
//! that nobody else has yet, and the channels to workers who could have them.
//!
//! They lie in memory that the heir shares, and are written in such an order that what is true of a descriptor at any
//! instant can be told from them. They are about the process's table of descriptors, of which there is one; so they are
//! found in one place from everywhere. Without a heir nothing is noted.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ipc::accept::Accepted;
use ipc::shm::Words;
use ipc::snapshot::ListenerId;

/// Descriptors with a note. A higher one is taken for something else, and the connection behind it ends with the
/// master if that is killed just then.
const NOTED: usize = 1 << 20;
/// The word that says where the notes end.
const END: usize = NOTED;
/// The word for what a process that shares the table has opened for this one.
const LEFT: usize = NOTED + 1;
/// The word for the listener at which a connection is just being accepted, and 1.
const ACCEPTING: usize = NOTED + 2;
/// The word for whether an heir has taken what was left.
const CLAIMED: usize = NOTED + 3;
const WORDS: usize = NOTED + 4;

/// What is known of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Nothing: it is free, or something else, or a connection that has been accepted this instant.
    Nothing,
    /// Our copy of something that a worker has, too.
    Kept,
    /// A connection that nobody else has, of this listener.
    InHand(ListenerId),
    /// A connection of this listener under way to the worker at the other end of this channel, who may have it already.
    Sending(ListenerId, RawFd),
    /// The channel of a worker that takes connections.
    Channel,
}

impl Note {
    /// In a word: the kind, the listener, and in the upper half a descriptor.
    fn encode(self) -> u64 {
        let of = |kind: u64, listener: ListenerId| kind | u64::from(listener) << 16;
        match self {
            Note::Nothing => 0,
            Note::Kept => 1,
            Note::InHand(listener) => of(2, listener),
            Note::Sending(listener, channel) => of(3, listener) | u64::from(channel.cast_unsigned()) << 32,
            Note::Channel => 4,
        }
    }

    fn decode(word: u64) -> Note {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        let (channel, listener) = (RawFd::from_be_bytes([a, b, c, d]), ListenerId::from_be_bytes([e, f]));
        match u16::from_be_bytes([g, h]) {
            1 => Note::Kept,
            2 => Note::InHand(listener),
            3 => Note::Sending(listener, channel),
            4 => Note::Channel,
            _ => Note::Nothing,
        }
    }
}

/// The notes of all descriptors.
#[derive(Debug)]
pub struct Notes(Words);

static NOTES: OnceLock<Notes> = OnceLock::new();

impl Notes {
    /// Begins to take notes, in memory shared with whatever process is forked from now on.
    ///
    /// # Errors
    /// When memory or descriptors are short.
    pub fn begin() -> io::Result<&'static Notes> {
        let notes = Notes::new()?;
        Ok(NOTES.get_or_init(|| notes))
    }

    fn new() -> io::Result<Notes> {
        let file = Words::create("pointsman-hands", WORDS)?;
        Words::map(file, WORDS).map(Notes)
    }

    fn word(&self, fd: RawFd) -> Option<&AtomicU64> {
        self.0.all()[..NOTED].get(usize::try_from(fd).ok()?)
    }

    fn write(&self, fd: RawFd, note: Note) {
        let Some(word) = self.word(fd) else { return };
        let (end, behind) = (&self.0.all()[END], u64::from(fd.cast_unsigned()) + 1);
        if end.load(Ordering::Relaxed) < behind {
            end.store(behind, Ordering::Release);
        }
        // Before whatever system call comes next.
        word.store(note.encode(), Ordering::Release);
    }

    /// What is known of `fd`.
    pub fn read(&self, fd: RawFd) -> Note {
        self.word(fd).map_or(Note::Nothing, |word| Note::decode(word.load(Ordering::Acquire)))
    }

    /// Beyond all those of which something has ever been known.
    pub fn end(&self) -> RawFd {
        RawFd::try_from(self.0.all()[END].load(Ordering::Acquire)).unwrap_or(0)
    }

    /// A process that shares the table has opened this for the one it belongs to.
    pub fn leave(&self, fd: RawFd) {
        self.0.all()[LEFT].store(u64::from(fd.cast_unsigned()) + 1, Ordering::Release);
    }

    /// The listener at which a connection was just being accepted, which may have no note yet.
    pub fn accepting(&self) -> Option<ListenerId> {
        self.0.all()[ACCEPTING].load(Ordering::Acquire).checked_sub(1).and_then(|listener| listener.try_into().ok())
    }

    fn accepts(&self, at: Option<ListenerId>) {
        self.0.all()[ACCEPTING].store(at.map_or(0, |listener| u64::from(listener) + 1), Ordering::Release);
    }

    /// What the process has had in hand is the caller's to pass on; false when it is somebody else's already.
    pub fn claim(&self) -> bool {
        self.0.all()[CLAIMED].swap(1, Ordering::AcqRel) == 0
    }

    /// What has been left.
    pub fn take_left(&self) -> Option<RawFd> {
        let left = self.0.all()[LEFT].swap(0, Ordering::AcqRel);
        left.checked_sub(1).and_then(|fd| RawFd::try_from(fd).ok())
    }
}

fn note(fd: BorrowedFd<'_>, note: Note) {
    if let Some(notes) = NOTES.get() {
        notes.write(fd.as_raw_fd(), note);
    }
}

/// A descriptor of a client's connection, or of what belongs to it, of which notes are taken until it is closed.
#[derive(Debug)]
pub struct Held(OwnedFd);

/// Takes one connection off the queue of `socket`, as [`ipc::accept::accept`] does, and notes it.
pub fn accept(socket: impl AsFd, listener: ListenerId) -> Accepted<Held> {
    let notes = NOTES.get();
    if let Some(notes) = notes {
        notes.accepts(Some(listener));
    }
    let accepted = match ipc::accept::accept(socket) {
        Accepted::Connection(fd, peer) => {
            let held = Held(fd);
            held.alone(listener);
            Accepted::Connection(held, peer)
        }
        Accepted::Empty => Accepted::Empty,
        Accepted::Exhausted(errno) => Accepted::Exhausted(errno),
        Accepted::Lost(errno) => Accepted::Lost(errno),
    };
    if let Some(notes) = notes {
        notes.accepts(None);
    }
    accepted
}

impl Held {
    /// Nobody else has it, and whoever gets it serves it like a new one of this listener.
    pub fn alone(&self, listener: ListenerId) {
        note(self.0.as_fd(), Note::InHand(listener));
    }

    /// It is about to be sent over this channel. One that others have had is never in our hands alone.
    pub fn sending(&self, channel: impl AsFd) {
        let Some(notes) = NOTES.get() else { return };
        let fd = self.0.as_raw_fd();
        if let Note::InHand(listener) | Note::Sending(listener, _) = notes.read(fd) {
            notes.write(fd, Note::Sending(listener, channel.as_fd().as_raw_fd()));
        }
    }

    /// It has been sent, and this is our copy.
    pub fn sent(&self) {
        note(self.0.as_fd(), Note::Kept);
    }
}

/// A copy of what somebody else has, too.
impl From<OwnedFd> for Held {
    fn from(fd: OwnedFd) -> Held {
        note(fd.as_fd(), Note::Kept);
        Held(fd)
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Held {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for Held {
    /// Before it is closed: its number may be a new connection's right after.
    fn drop(&mut self) {
        note(self.0.as_fd(), Note::Nothing);
    }
}

/// The note that a worker takes connections over a channel, until this is dropped, which must be before the channel is.
#[derive(Debug)]
pub struct Taking(RawFd);

impl Taking {
    /// From now on.
    pub fn over(channel: impl AsFd) -> Taking {
        note(channel.as_fd(), Note::Channel);
        Taking(channel.as_fd().as_raw_fd())
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        if let Some(notes) = NOTES.get() {
            notes.write(self.0, Note::Nothing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_note_reads_back_and_other_words_say_nothing() {
        for note in [
            Note::Nothing,
            Note::Kept,
            Note::InHand(0),
            Note::InHand(ListenerId::MAX),
            Note::Sending(7, 0),
            Note::Sending(ListenerId::MAX, RawFd::MAX),
            Note::Channel,
        ] {
            assert_eq!(Note::decode(note.encode()), note);
        }
        assert_eq!(Note::decode(u64::MAX), Note::Nothing);
    }

    #[test]
    fn notes_end_behind_the_last_one_and_numbers_beyond_have_none() {
        let notes = Notes::new().unwrap();
        assert_eq!(notes.end(), 0);
        notes.write(7, Note::InHand(5));
        notes.write(3, Note::Kept);
        notes.write(RawFd::MAX, Note::InHand(5));
        notes.write(-1, Note::InHand(5));
        assert_eq!(
            (notes.read(7), notes.read(3), notes.read(4), notes.end()),
            (Note::InHand(5), Note::Kept, Note::Nothing, 8)
        );
        assert_eq!((notes.read(RawFd::MAX), notes.read(-1)), (Note::Nothing, Note::Nothing));
        notes.accepts(Some(ListenerId::MAX));
        assert_eq!(notes.accepting(), Some(ListenerId::MAX));
        notes.accepts(None);
        assert_eq!(notes.accepting(), None);
        assert!(notes.claim() && !notes.claim());
        notes.leave(0);
        assert_eq!((notes.take_left(), notes.take_left()), (Some(0), None));
    }
}
