//! Smooth weighted round robin: each server in turn, by its weight, its turns spread evenly over the cycle.
//!
//! The algorithm is nginx's: each choice adds its weight to every candidate's credit, takes the candidate with the
//! most, and subtracts from that one what was added in all. Over a cycle each server is chosen exactly as often as
//! its weight says, and weights 5, 1, 1 give `a a b a c a a` rather than `a a a a a b c`. A choice takes time in
//! proportion to the number of servers; with equal weights the same order comes of a cursor alone.

use super::{Member, Random, ServerId};

/// Choices made ahead by [`RoundRobin::new`] at most, to begin at a random place of the cycle.
const MAX_HEAD_START: u32 = 1024;

#[derive(Debug)]
pub(super) struct RoundRobin {
    turns: Vec<Turn>,
    /// All weights are the same.
    uniform: bool,
    /// With uniform weights: where the next choice begins to look.
    next: usize,
}

#[derive(Debug)]
struct Turn {
    id: ServerId,
    weight: u16,
    credit: i64,
}

impl RoundRobin {
    pub(super) fn new(members: &[Member], random: &mut Random) -> RoundRobin {
        let turns = members.iter().map(|member| Turn { id: member.id, weight: member.weight, credit: 0 }).collect();
        let uniform = members.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let mut this = RoundRobin { turns, uniform, next: 0 };
        if uniform {
            this.next = random.below(u32::try_from(members.len()).unwrap_or(0)) as usize;
        } else {
            let cycle: u32 = members.iter().map(|member| u32::from(member.weight)).sum();
            for _ in 0..random.below(cycle.min(MAX_HEAD_START)) {
                this.pick(|_| true);
            }
        }
        this
    }

    /// Those that are not allowed neither gain nor lose credit, so what they miss is shared by all others.
    pub(super) fn pick(&mut self, allowed: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        if self.uniform {
            let (passed, ahead) = self.turns.split_at(self.next);
            let found = ahead.iter().chain(passed).position(|turn| allowed(turn.id))?;
            let index = (self.next + found) % self.turns.len();
            self.next = (index + 1) % self.turns.len();
            return Some(self.turns[index].id);
        }
        let mut total = 0;
        let mut best: Option<&mut Turn> = None;
        for turn in self.turns.iter_mut().filter(|turn| allowed(turn.id)) {
            let weight = i64::from(turn.weight);
            turn.credit += weight;
            total += weight;
            if best.as_ref().is_none_or(|best| turn.credit > best.credit) {
                best = Some(turn);
            }
        }
        let best = best?;
        best.credit -= total;
        Some(best.id)
    }

    /// Goes on where `old` was. With equal weights the next server is the one whose turn it was, or the first behind
    /// it that is still there; with others the credits are kept if nothing else has changed: those of another set
    /// of weights mean nothing.
    pub(super) fn inherit(&mut self, old: &RoundRobin, new_id: impl Fn(ServerId) -> Option<ServerId>) {
        if self.uniform && old.uniform {
            let (passed, ahead) = old.turns.split_at(old.next.min(old.turns.len()));
            let mut successors = ahead.iter().chain(passed).filter_map(|turn| new_id(turn.id));
            let next = successors.find_map(|id| self.turns.iter().position(|turn| turn.id == id));
            self.next = next.unwrap_or(self.next);
            return;
        }
        let same = |(new, old): (&Turn, &Turn)| new_id(old.id) == Some(new.id) && new.weight == old.weight;
        if self.turns.len() == old.turns.len() && self.turns.iter().zip(&old.turns).all(same) {
            for (new, old) in self.turns.iter_mut().zip(&old.turns) {
                new.credit = old.credit;
            }
        }
    }

    /// All servers, in the order of the configuration.
    pub(super) fn ids(&self) -> impl Iterator<Item = ServerId> {
        self.turns.iter().map(|turn| turn.id)
    }
}
