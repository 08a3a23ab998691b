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

use ipc::shm::Words;

/// Descriptors with a note. A higher one is taken for something else, and the connection behind it ends with the
/// master if that is killed just then.
const NOTED: usize = 1 << 20;
/// The word that says where the notes end.
const END: usize = NOTED;
/// The word for what a process that shares the table has opened for this one.
const LEFT: usize = NOTED + 1;
const WORDS: usize = NOTED + 2;

/// What is known of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Nothing: it is free, or something else, or a connection that has been accepted this instant.
    Nothing,
    /// Our copy of something that a worker has, too.
    Kept,
    /// A connection that nobody else has.
    InHand,
    /// A connection under way to the worker at the other end of this channel, who may have it already.
    Sending(RawFd),
    /// The channel of a worker that takes connections.
    Channel,
}

impl Note {
    /// In a word: the kind in the lower half, a descriptor in the upper.
    fn encode(self) -> u64 {
        match self {
            Note::Nothing => 0,
            Note::Kept => 1,
            Note::InHand => 2,
            Note::Sending(channel) => 3 | u64::from(channel.cast_unsigned()) << 32,
            Note::Channel => 4,
        }
    }

    fn decode(word: u64) -> Note {
        let [.., a, b, c, d] = word.to_be_bytes();
        let [e, f, g, h, ..] = word.to_be_bytes();
        match u32::from_be_bytes([a, b, c, d]) {
            1 => Note::Kept,
            2 => Note::InHand,
            3 => Note::Sending(RawFd::from_be_bytes([e, f, g, h])),
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

impl Held {
    /// A connection that has just been accepted.
    pub fn accepted(fd: OwnedFd) -> Held {
        note(fd.as_fd(), Note::InHand);
        Held(fd)
    }

    /// It is about to be sent over this channel.
    pub fn sending(&self, channel: impl AsFd) {
        self.pass(Note::InHand, Note::Sending(channel.as_fd().as_raw_fd()));
    }

    /// It has been sent, and this is our copy.
    pub fn sent(&self) {
        note(self.0.as_fd(), Note::Kept);
    }

    /// Nobody else has it any more, and whoever gets it serves it like a new one.
    pub fn alone(&self) {
        note(self.0.as_fd(), Note::InHand);
    }

    /// From one note to the next; one that others have had is never in our hands alone.
    fn pass(&self, from: Note, to: Note) {
        if let Some(notes) = NOTES.get()
            && notes.read(self.0.as_raw_fd()) == from
        {
            notes.write(self.0.as_raw_fd(), to);
        }
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
        for note in
            [Note::Nothing, Note::Kept, Note::InHand, Note::Sending(0), Note::Sending(RawFd::MAX), Note::Channel]
        {
            assert_eq!(Note::decode(note.encode()), note);
        }
        assert_eq!(Note::decode(u64::MAX), Note::Nothing);
    }

    #[test]
    fn notes_end_behind_the_last_one_and_numbers_beyond_have_none() {
        let notes = Notes::new().unwrap();
        assert_eq!(notes.end(), 0);
        notes.write(7, Note::InHand);
        notes.write(3, Note::Kept);
        notes.write(RawFd::MAX, Note::InHand);
        notes.write(-1, Note::InHand);
        assert_eq!(
            (notes.read(7), notes.read(3), notes.read(4), notes.end()),
            (Note::InHand, Note::Kept, Note::Nothing, 8)
        );
        assert_eq!((notes.read(RawFd::MAX), notes.read(-1)), (Note::Nothing, Note::Nothing));
        notes.leave(0);
        assert_eq!((notes.take_left(), notes.take_left()), (Some(0), None));
    }
}
