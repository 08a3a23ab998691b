//! The master's copies of the pipes that one worker relays through, and whose bytes they hold after its death.
//!
//! Only reading ends are held, and nothing is read from them.

use std::collections::HashMap;

use ipc::shm::Control;
use ipc::state::{Direction, MAX_PIPES};

use crate::hands::Held;

/// The reading ends, by the worker's numbers.
#[derive(Debug, Default)]
pub struct Pipes {
    ends: Vec<Option<Held>>,
}

/// A pipe's number and our copy of its reading end.
type Numbered = (u16, Option<Held>);

/// What a worker left in its pipes.
#[derive(Debug, Default)]
pub struct Leftovers {
    ends: HashMap<(u32, Direction), Vec<Numbered>>,
}

/// Two pipes claim the same place in a stream, or one with bytes in it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction;

impl Pipes {
    /// The worker uses pipe `number` from now on. A number out of bounds is ignored: such a pipe is never looked for.
    pub fn put(&mut self, number: u16, end: Held) {
        if number >= MAX_PIPES {
            return;
        }
        let number = usize::from(number);
        if self.ends.len() <= number {
            self.ends.resize_with(number + 1, || None);
        }
        self.ends[number] = Some(end);
    }

    /// The worker uses pipe `number` from now on, and no copy is kept.
    pub fn forget(&mut self, number: u16) {
        if let Some(end) = self.ends.get_mut(usize::from(number)) {
            *end = None;
        }
    }

    /// The worker announced a pipe, and its descriptor was lost: none of the copies can be relied on.
    pub fn lose(&mut self) {
        self.ends.clear();
    }

    /// Takes back what was not taken from `left`: the worker goes on using it.
    pub fn put_back(&mut self, left: Leftovers) {
        for (number, end) in left.ends.into_values().flatten() {
            if let Some(end) = end {
                self.put(number, end);
            }
        }
    }

    /// Sorts what the worker left by connection and direction, as the shared region says.
    pub fn leftovers(&mut self, control: &Control) -> Leftovers {
        let mut left = Leftovers::default();
        for number in 0..MAX_PIPES {
            let Some(owner) = control.pipe_owner(number).and_then(ipc::state::PipeOwner::get) else { continue };
            let end = self.ends.get_mut(usize::from(number)).and_then(Option::take);
            left.ends.entry(owner).or_default().push((number, end));
        }
        left
    }
}

impl Leftovers {
    /// The pipe with bytes of connection `id` on their way in `direction`, if any. `former` is a pipe of an earlier
    /// death that may not have been emptied.
    ///
    /// # Errors
    /// When it cannot be known which bytes come next: the connection must be cut.
    pub fn take(&mut self, id: u32, direction: Direction, former: Option<Held>) -> Result<Option<Held>, Contradiction> {
        let mut found = None;
        let left = self.ends.remove(&(id, direction)).unwrap_or_default();
        for end in left.into_iter().map(|(_, end)| end).chain(former.map(Some)) {
            let end = end.ok_or(Contradiction)?;
            let bytes = rustix::io::ioctl_fionread(&end).map_err(|_| Contradiction)?;
            if bytes > 0 && found.replace(end).is_some() {
                return Err(Contradiction);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::message::Layout;

    fn pipe(bytes: &[u8]) -> Held {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, bytes).unwrap();
        read.into()
    }

    fn control() -> Control {
        let layout = Layout { records: 1, slots: 1, slot_bytes: 4096 };
        Control::map(ipc::shm::create(&layout).unwrap(), &layout).unwrap()
    }

    const WAY: Direction = Direction::ToServer;

    #[test]
    fn a_pipe_goes_to_the_connection_that_owns_it() {
        let (mut pipes, control) = (Pipes::default(), control());
        pipes.put(3, pipe(b"abc"));
        pipes.put(5, pipe(b""));
        control.pipe_owner(3).unwrap().set(Some((7, WAY)));
        control.pipe_owner(5).unwrap().set(Some((8, WAY)));
        let mut left = pipes.leftovers(&control);
        assert!(left.take(7, Direction::ToClient, None).unwrap().is_none());
        assert_eq!(rustix::io::ioctl_fionread(left.take(7, WAY, None).unwrap().unwrap()).unwrap(), 3);
        assert!(left.take(8, WAY, None).unwrap().is_none());
        assert!(left.take(9, WAY, None).unwrap().is_none());
    }

    #[test]
    fn an_earlier_pipe_still_full_comes_first_and_two_full_ones_contradict() {
        let (mut pipes, control) = (Pipes::default(), control());
        pipes.put(0, pipe(b""));
        pipes.put(1, pipe(b"x"));
        control.pipe_owner(0).unwrap().set(Some((7, WAY)));
        control.pipe_owner(1).unwrap().set(Some((8, WAY)));
        let mut left = pipes.leftovers(&control);
        assert_eq!(rustix::io::ioctl_fionread(left.take(7, WAY, Some(pipe(b"ab"))).unwrap().unwrap()).unwrap(), 2);
        assert_eq!(left.take(8, WAY, Some(pipe(b"ab"))).unwrap_err(), Contradiction);
    }

    #[test]
    fn a_pipe_in_use_that_we_do_not_hold_contradicts() {
        let (mut pipes, control) = (Pipes::default(), control());
        pipes.put(1, pipe(b"x"));
        pipes.lose();
        pipes.put(MAX_PIPES, pipe(b"x"));
        control.pipe_owner(1).unwrap().set(Some((7, WAY)));
        assert_eq!(pipes.leftovers(&control).take(7, WAY, None).unwrap_err(), Contradiction);
    }
}
