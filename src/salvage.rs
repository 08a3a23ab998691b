//! What becomes of a connection whose worker has died.
//!
//! The dead worker's record says where the connection stood when its current request began; the kernel's
//! counters say how far it has come since. Whatever the record says is checked against the kernel and against
//! bounds before it is used; where the two do not fit, the connection is cut. Decides only: nothing is
//! written to or read from the socket.

use std::io;

use ipc::message::{MAX_CARRIED_BYTES, MAX_LOST_BYTES, Task};
use ipc::state::{Image, Phase};
use ipc::tcp_info::Counters;

use crate::keeper::Base;

/// Deaths over one and the same request after which it is not run again.
pub const MAX_STRIKES: u8 = 2;

/// What is to be done with a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Salvage {
    /// Not taken up by the dead worker: pass it on as it was.
    Again,
    /// Between two requests.
    Serve,
    /// A request, perhaps part of one, was read and nothing of it answered: these bytes.
    Resume(Vec<u8>),
    /// A relay, all of whose bytes lie in the kernel.
    Relay,
    /// A request that must not be run twice, and nothing of it answered.
    Fail,
    /// Part of an answer is lost, or nobody can tell: reset, so that the client sees the truncation.
    Cut,
    /// Finished; only the report was missing.
    Done,
}

/// The dead worker's view of a connection, and ours.
#[derive(Debug)]
pub struct Remains<'a> {
    /// What the record holds; `None` when it holds no image.
    pub image: Option<Image>,
    /// What it held before, if that can still be read.
    pub former: Option<Image>,
    /// What the worker was told to do.
    pub task: &'a Task,
    /// Where its counters began.
    pub base: Base,
    /// The length of a PROXY header that it took from the socket first; 0 = none. No image falls behind that.
    pub header: u16,
    /// The kernel's counters; `None` when there are none (a Unix socket, a connection already reset).
    pub counters: Option<Counters>,
}

impl Remains<'_> {
    /// Decides. `read_slot(number, offset, len)` reads the dead worker's buffers.
    pub fn salvage(&self, read_slot: impl FnOnce(u32, u32, usize) -> io::Result<Vec<u8>>) -> Salvage {
        let Some(image) = self.standing() else { return Salvage::Cut };
        match image.phase {
            Phase::Passed => self.not_taken_up(),
            Phase::Done if self.is_ahead(&image) => Salvage::Cut,
            Phase::Done => Salvage::Done,
            Phase::Captive => Salvage::Cut,
            Phase::Resting => self.at_rest(&image),
            Phase::Relay if self.is_ahead(&image) => Salvage::Cut,
            Phase::Relay => Salvage::Relay,
            Phase::Open | Phase::Committed => match self.unanswered(&image) {
                None => Salvage::Cut,
                Some(_) if matches!(self.task, Task::Fail(_) | Task::Refuse) => Salvage::Again,
                Some(_) if image.phase == Phase::Committed => Salvage::Fail,
                Some(0) => Salvage::Serve,
                Some(bytes) => match image.slot.zip(usize::try_from(bytes).ok().filter(|&n| n <= MAX_CARRIED_BYTES)) {
                    Some((slot, len)) => read_slot(slot, image.offset, len).map_or(Salvage::Fail, Salvage::Resume),
                    None => Salvage::Fail,
                },
            },
        }
    }

    /// Where the beginning of a request lies that is not run again, as far as the record tells: slot, offset and length,
    /// no more than was read of it and [`MAX_LOST_BYTES`]. For the log alone.
    pub fn lost(&self) -> Option<(u32, u32, usize)> {
        let image = self.standing()?;
        let unanswered = match image.phase {
            Phase::Open | Phase::Committed => self.unanswered(&image)?,
            Phase::Passed | Phase::Done | Phase::Captive | Phase::Resting | Phase::Relay => return None,
        };
        let len = usize::try_from(unanswered).unwrap_or(usize::MAX).min(MAX_LOST_BYTES);
        image.slot.filter(|_| len > 0).map(|slot| (slot, image.offset, len))
    }

    /// The image that holds: the last one, unless it tells of an answer, or of a tunnel agreed to, of which nothing
    /// has been written yet. Then the request is where the image before it says.
    pub fn standing(&self) -> Option<Image> {
        let last = self.image?;
        let unwritten = match last.phase {
            Phase::Open | Phase::Committed => self.unanswered(&last).is_none(),
            Phase::Relay | Phase::Done => self.is_ahead(&last),
            Phase::Passed | Phase::Captive | Phase::Resting => false,
        };
        let holds = |former: &Image| {
            matches!(former.phase, Phase::Open | Phase::Committed)
                && former.written < last.written
                && self.unanswered(former).is_some()
        };
        Some(self.former.filter(|former| unwritten && holds(former)).unwrap_or(last))
    }

    /// Where the kernel counts nothing, a worker says so whenever nothing is under way. Where it does, none says that.
    fn at_rest(&self, image: &Image) -> Salvage {
        match self.task {
            _ if self.counters.is_some() || image.slot.is_some() || image.offset != 0 => Salvage::Cut,
            Task::Fail(_) | Task::Refuse => Salvage::Again,
            Task::Serve | Task::Resume(_) | Task::Relay { .. } => Salvage::Serve,
        }
    }

    /// Whether the image tells of more bytes than have been written.
    fn is_ahead(&self, image: &Image) -> bool {
        self.counters.is_some_and(|counters| counters.written < self.base.written.saturating_add(image.written))
    }

    /// A worker publishes that it has taken a connection up before it touches the socket, so the kernel must
    /// not have counted anything. Where the kernel does not count, the record has to do.
    fn not_taken_up(&self) -> Salvage {
        let Some(counters) = self.counters else { return Salvage::Again };
        let carried = match self.task {
            Task::Resume(bytes) => bytes.len() as u64,
            Task::Serve | Task::Fail(_) | Task::Refuse | Task::Relay { .. } => 0,
        };
        let untouched =
            counters.consumed == self.base.consumed.saturating_add(carried) && counters.written == self.base.written;
        if untouched { Salvage::Again } else { Salvage::Cut }
    }

    /// Bytes read since the current request began; `None` when part of its answer has been written, part of
    /// the answer before it has not, our direction is shut down, or the record contradicts the kernel.
    fn unanswered(&self, image: &Image) -> Option<u64> {
        let counters = self.counters?;
        let begun = self.base.consumed.checked_add(image.consumed.max(self.header.into()))?;
        let written = self.base.written.checked_add(image.written)?;
        if counters.shut_down || counters.written != written {
            return None;
        }
        counters.consumed.checked_sub(begun)
    }
}

/// Whether a worker that was to read a PROXY header, and published that it has `length` bytes, took them from the
/// socket: it takes nothing before, and all of them at once.
pub fn header_taken(base: Base, counters: &Counters, length: u16) -> bool {
    length > 0 && counters.consumed.checked_sub(base.consumed).is_some_and(|taken| taken >= length.into())
}

/// Where a successor's counters begin, given the kernel's and the bytes it gets with the connection.
pub fn successor_base(counters: &Counters, carried: usize) -> Base {
    Base { consumed: counters.consumed.saturating_sub(carried as u64), written: counters.written }
}

/// Workers that have died over the request now unanswered: one more than before when it is the same request.
pub fn strikes(before: u8, image: Option<&Image>) -> u8 {
    let same = image.is_none_or(|image| image.consumed == 0);
    if same { before.saturating_add(1) } else { 1 }
}

/// Whether these are the first bytes of an HTTP request, as far as the first of them tells: a method is a token (RFC 9110
/// section 9.1), and an empty line may come before it. Whoever speaks something else cannot be answered in HTTP.
pub fn begins_as_http(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~\r\n".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::message::Lost;

    #[test]
    fn what_other_protocols_begin_with_is_not_http() {
        for (bytes, http) in [
            (&b"GET /"[..], true),
            (b"\r\nGET", true),
            (b"", true),
            (b"\x05\x01\x00", false),
            (b"\x04\x01", false),
            (b"{\"target\"", false),
        ] {
            assert_eq!(begins_as_http(bytes), http, "{bytes:?}");
        }
    }

    const BASE: Base = Base { consumed: 100, written: 50 };

    fn image(phase: Phase, consumed: u64, written: u64) -> Image {
        Image { phase, slot: Some(3), offset: 7, consumed, written }
    }

    fn counters(consumed: u64, written: u64) -> Counters {
        Counters { consumed, written, peer_closed: false, shut_down: false }
    }

    fn salvage(image: Image, counters: Option<Counters>) -> Salvage {
        Remains { image: Some(image), former: None, task: &Task::Serve, base: BASE, header: 0, counters }.salvage(
            |slot, offset, len| {
                assert_eq!((slot, offset), (3, 7));
                Ok(vec![b'x'; len])
            },
        )
    }

    #[test]
    fn a_connection_between_requests_is_served_on() {
        assert_eq!(salvage(image(Phase::Open, 20, 30), Some(counters(120, 80))), Salvage::Serve);
    }

    #[test]
    fn an_unanswered_request_goes_along() {
        assert_eq!(salvage(image(Phase::Open, 20, 30), Some(counters(124, 80))), Salvage::Resume(vec![b'x'; 4]));
    }

    #[test]
    fn an_answer_begun_or_one_before_it_not_all_written_is_cut() {
        for phase in [Phase::Open, Phase::Committed] {
            assert_eq!(salvage(image(phase, 20, 30), Some(counters(124, 81))), Salvage::Cut);
            assert_eq!(salvage(image(phase, 20, 30), Some(counters(124, 79))), Salvage::Cut);
        }
    }

    #[test]
    fn an_answer_announced_is_written_whole_or_not_at_all_or_the_connection_is_cut() {
        for (phase, unwritten) in [(Phase::Open, Salvage::Resume(vec![b'x'; 4])), (Phase::Committed, Salvage::Fail)] {
            let with = |written| Remains {
                image: Some(image(Phase::Open, 24, 40)),
                former: Some(image(phase, 20, 30)),
                task: &Task::Serve,
                base: BASE,
                header: 0,
                counters: Some(counters(124, written)),
            };
            let read = |_, _, len| Ok(vec![b'x'; len]);
            assert_eq!(with(90).salvage(read), Salvage::Serve);
            assert_eq!(with(80).salvage(read), unwritten);
            assert_eq!(with(85).salvage(read), Salvage::Cut);
            assert_eq!(with(91).salvage(read), Salvage::Cut);
        }
    }

    #[test]
    fn a_committed_request_fails_and_a_relay_goes_on_unless_bytes_are_captive() {
        assert_eq!(salvage(image(Phase::Committed, 20, 30), Some(counters(124, 80))), Salvage::Fail);
        assert_eq!(salvage(image(Phase::Relay, 20, 30), Some(counters(120, 80))), Salvage::Relay);
        assert_eq!(salvage(image(Phase::Captive, 20, 30), Some(counters(120, 80))), Salvage::Cut);
    }

    #[test]
    fn a_tunnel_agreed_to_begins_when_all_of_the_agreement_is_written_and_not_before() {
        for (phase, unwritten) in [(Phase::Open, Salvage::Resume(vec![b'x'; 4])), (Phase::Committed, Salvage::Fail)] {
            let with = |consumed, written| Remains {
                image: Some(image(Phase::Relay, 24, 40)),
                former: Some(image(phase, 20, 30)),
                task: &Task::Serve,
                base: BASE,
                header: 0,
                counters: Some(counters(consumed, written)),
            };
            let read = |_, _, len| Ok(vec![b'x'; len]);
            assert_eq!(with(124, 80).salvage(read), unwritten);
            assert_eq!(with(124, 85).salvage(read), Salvage::Cut);
            assert_eq!(with(124, 90).salvage(read), Salvage::Relay);
            assert_eq!(with(999, 999).salvage(read), Salvage::Relay);
            let torn = Remains { former: None, ..with(124, 80) };
            assert_eq!(torn.salvage(read), Salvage::Cut);
            let unknown = Remains { counters: None, ..with(0, 0) };
            assert_eq!(unknown.salvage(read), Salvage::Relay);
        }
    }

    #[test]
    fn of_a_request_that_is_not_run_again_no_more_is_kept_than_was_read_and_may_be_logged() {
        let lost = |phase, task: &Task, read: u64| {
            Remains {
                image: Some(image(phase, 20, 30)),
                former: None,
                task,
                base: BASE,
                header: 0,
                counters: Some(counters(120 + read, 80)),
            }
            .lost()
        };
        for phase in [Phase::Open, Phase::Committed] {
            assert_eq!(lost(phase, &Task::Serve, 99), Some((3, 7, 99)));
            assert_eq!(lost(phase, &Task::Serve, 1 << 40), Some((3, 7, MAX_LOST_BYTES)));
            assert_eq!(lost(phase, &Task::Serve, 0), None);
        }
        for phase in [Phase::Passed, Phase::Relay, Phase::Done, Phase::Captive, Phase::Resting] {
            assert_eq!(lost(phase, &Task::Serve, 99), None);
        }
        let unknown = Remains {
            image: Some(image(Phase::Committed, 20, 30)),
            former: None,
            task: &Task::Serve,
            base: BASE,
            header: 0,
            counters: None,
        };
        assert_eq!(unknown.lost(), None);
    }

    #[test]
    fn what_the_buffer_cannot_hold_fails() {
        let long = MAX_CARRIED_BYTES as u64 + 1;
        assert_eq!(salvage(image(Phase::Open, 20, 30), Some(counters(120 + long, 80))), Salvage::Fail);
        let mut bare = image(Phase::Open, 20, 30);
        bare.slot = None;
        assert_eq!(salvage(bare, Some(counters(121, 80))), Salvage::Fail);
        let remains = Remains {
            image: Some(image(Phase::Open, 20, 30)),
            former: None,
            task: &Task::Serve,
            base: BASE,
            header: 0,
            counters: Some(counters(121, 80)),
        };
        assert_eq!(remains.salvage(|_, _, _| Err(io::ErrorKind::InvalidData.into())), Salvage::Fail);
    }

    #[test]
    fn a_record_that_contradicts_the_kernel_is_cut() {
        assert_eq!(salvage(image(Phase::Open, 21, 30), Some(counters(120, 80))), Salvage::Cut);
        assert_eq!(salvage(image(Phase::Open, u64::MAX, 30), Some(counters(120, 80))), Salvage::Cut);
        assert_eq!(salvage(image(Phase::Open, 20, u64::MAX), Some(counters(120, 80))), Salvage::Cut);
        let remains = Remains {
            image: None,
            former: None,
            task: &Task::Serve,
            base: BASE,
            header: 0,
            counters: Some(counters(100, 50)),
        };
        assert_eq!(remains.salvage(|_, _, _| Ok(Vec::new())), Salvage::Cut);
    }

    #[test]
    fn a_connection_not_taken_up_goes_on_as_it_was_if_the_kernel_agrees() {
        assert_eq!(salvage(image(Phase::Passed, 0, 0), Some(counters(100, 50))), Salvage::Again);
        assert_eq!(salvage(image(Phase::Passed, 0, 0), None), Salvage::Again);
        assert_eq!(salvage(image(Phase::Passed, 0, 0), Some(counters(101, 50))), Salvage::Cut);
        let task = Task::Resume(b"GET".to_vec());
        let with = |consumed| Remains {
            image: Some(image(Phase::Passed, 0, 0)),
            former: None,
            task: &task,
            base: BASE,
            header: 0,
            counters: Some(counters(consumed, 50)),
        };
        assert_eq!(with(103).salvage(|_, _, _| Ok(Vec::new())), Salvage::Again);
        assert_eq!(with(100).salvage(|_, _, _| Ok(Vec::new())), Salvage::Cut);
    }

    #[test]
    fn a_refusal_is_repeated_as_a_refusal() {
        for task in [Task::Fail(Lost { beginning: b"POST".to_vec(), server: None }), Task::Refuse] {
            let remains = Remains {
                image: Some(image(Phase::Open, 0, 0)),
                former: None,
                task: &task,
                base: BASE,
                header: 0,
                counters: Some(counters(140, 50)),
            };
            assert_eq!(remains.salvage(|_, _, _| Ok(Vec::new())), Salvage::Again);
        }
    }

    #[test]
    fn without_counters_an_open_connection_is_cut() {
        assert_eq!(salvage(image(Phase::Open, 0, 0), None), Salvage::Cut);
        let shut = Counters { shut_down: true, ..counters(120, 80) };
        assert_eq!(salvage(image(Phase::Open, 20, 30), Some(shut)), Salvage::Cut);
    }

    #[test]
    fn a_connection_at_rest_is_served_on_only_where_the_kernel_counts_nothing() {
        let mut resting = image(Phase::Resting, 20, 30);
        assert_eq!(salvage(resting, None), Salvage::Cut, "it has a slot");
        resting.slot = None;
        assert_eq!(salvage(resting, None), Salvage::Cut, "it has an offset");
        resting.offset = 0;
        assert_eq!(salvage(resting, None), Salvage::Serve);
        assert_eq!(salvage(resting, Some(counters(120, 80))), Salvage::Cut);
        for phase in [Phase::Open, Phase::Committed, Phase::Captive] {
            assert_eq!(salvage(Image { phase, ..resting }, None), Salvage::Cut);
        }
        let task = Task::Fail(Lost::default());
        let remains =
            Remains { image: Some(resting), former: None, task: &task, base: BASE, header: 0, counters: None };
        assert_eq!(remains.salvage(|_, _, _| Ok(Vec::new())), Salvage::Again);
    }

    #[test]
    fn the_successors_counters_fit_what_it_gets() {
        let kernel = counters(124, 80);
        let base = successor_base(&kernel, 4);
        assert_eq!(base, Base { consumed: 120, written: 80 });
        // It takes the request up and dies at once: the same four bytes are unanswered.
        let remains = Remains {
            image: Some(image(Phase::Open, 0, 0)),
            former: None,
            task: &Task::Serve,
            base,
            header: 0,
            counters: Some(kernel),
        };
        assert_eq!(remains.salvage(|_, _, len| Ok(vec![0; len])), Salvage::Resume(vec![0; 4]));
    }

    #[test]
    fn a_header_counts_as_taken_once_the_kernel_says_so() {
        for (consumed, taken) in [(99, false), (100, false), (127, false), (128, true), (500, true)] {
            assert_eq!(header_taken(BASE, &counters(consumed, 50), 28), taken);
        }
        assert!(!header_taken(BASE, &counters(500, 50), 0));
    }

    #[test]
    fn a_header_taken_is_not_part_of_the_request() {
        let with = |image_consumed, consumed| {
            Remains {
                image: Some(image(Phase::Open, image_consumed, 0)),
                former: None,
                task: &Task::Serve,
                base: BASE,
                header: 28,
                counters: Some(counters(consumed, 50)),
            }
            .salvage(|_, _, len| Ok(vec![b'x'; len]))
        };
        // Taken, and the record not yet moved on; then moved on; then a request behind it.
        assert_eq!(with(0, 128), Salvage::Serve);
        assert_eq!(with(28, 128), Salvage::Serve);
        assert_eq!(with(28, 131), Salvage::Resume(vec![b'x'; 3]));
        assert_eq!(with(40, 140), Salvage::Serve);
    }

    #[test]
    fn a_last_answer_announced_is_over_once_written_and_its_request_stands_until_then() {
        for (phase, unwritten) in [(Phase::Open, Salvage::Resume(vec![b'x'; 4])), (Phase::Committed, Salvage::Fail)] {
            let with = |former: Option<Image>, written: Option<(u64, bool)>| {
                let remains = Remains {
                    image: Some(Image { slot: None, ..image(Phase::Done, 24, 40) }),
                    former,
                    task: &Task::Serve,
                    base: BASE,
                    header: 0,
                    counters: written.map(|(written, shut_down)| Counters { shut_down, ..counters(124, written) }),
                };
                remains.salvage(|_, _, len| Ok(vec![b'x'; len]))
            };
            let former = Some(image(phase, 20, 30));
            assert_eq!(with(former, Some((90, false))), Salvage::Done);
            assert_eq!(with(former, Some((90, true))), Salvage::Done);
            assert_eq!(with(former, None), Salvage::Done, "the connection is gone");
            assert_eq!(with(former, Some((80, false))), unwritten);
            assert_eq!(with(former, Some((81, false))), Salvage::Cut);
            assert_eq!(with(former, Some((89, false))), Salvage::Cut);
            assert_eq!(with(None, Some((80, false))), Salvage::Cut);
        }
    }

    #[test]
    fn deaths_over_another_request_are_not_added_up() {
        assert_eq!(strikes(1, Some(&image(Phase::Open, 0, 0))), 2);
        assert_eq!(strikes(1, Some(&image(Phase::Open, 10, 10))), 1);
        assert_eq!(strikes(u8::MAX, None), u8::MAX);
    }

    proptest::proptest! {
        #[test]
        fn no_record_makes_more_bytes_unanswered_than_were_read(
            phase in 0usize..5, slot: Option<u32>, offset: u32, consumed: u64, written: u64, read: u32, wrote: u32,
        ) {
            let phase = [Phase::Passed, Phase::Open, Phase::Committed, Phase::Relay, Phase::Done][phase];
            let remains = Remains {
                image: Some(Image { phase, slot, offset, consumed, written }),
                former: None,
            task: &Task::Serve,
                base: Base::default(),
                header: 0,
                counters: Some(counters(read.into(), wrote.into())),
            };
            let verdict = remains.salvage(|_, _, len| {
                assert!(len as u64 <= u64::from(read) && len <= MAX_CARRIED_BYTES);
                Ok(vec![0; len])
            });
            if let Salvage::Resume(bytes) = verdict {
                proptest::prop_assert!(!bytes.is_empty() && phase == Phase::Open);
            }
        }
    }
}
