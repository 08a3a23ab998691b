//! Two servers chosen at random by weight, and of these the one with fewer requests in progress per weight.
//!
//! Workers that do not know of one another's requests do not all choose the same least loaded server this way. A
//! choice takes time in proportion to the logarithm of the number of servers while most of them are allowed.

use super::least_connections::load_is_less;
use super::{Member, Random, Server, ServerId};

/// Draws that may hit a server that is not allowed before all servers are looked at.
const DRAWS: usize = 4;

#[derive(Debug)]
pub(super) struct RandomTwo {
    slices: Slices,
}

impl RandomTwo {
    pub(super) fn new(members: &[Member]) -> RandomTwo {
        RandomTwo { slices: Slices::new(members) }
    }

    pub(super) fn pick(
        &mut self,
        servers: &[Server],
        random: &mut Random,
        allowed: impl Fn(ServerId) -> bool,
    ) -> Option<ServerId> {
        let one = self.draw(random, None, &allowed)?;
        let Some(other) = self.draw(random, Some(one), &allowed) else { return Some(self.slices.id(one)) };
        let [one, other] = [one, other].map(|index| self.slices.id(index));
        let is_less = load_is_less(&servers[usize::from(other)], &servers[usize::from(one)]);
        Some(if is_less { other } else { one })
    }

    /// One allowed server other than `not`, each with a probability in proportion to its weight.
    fn draw(&self, random: &mut Random, not: Option<usize>, allowed: &impl Fn(ServerId) -> bool) -> Option<usize> {
        let (gap_start, gap) = not.map_or((0, 0), |index| (self.slices.start(index), self.slices.weight(index)));
        let total = self.slices.total() - gap;
        if total == 0 {
            return None;
        }
        for _ in 0..DRAWS {
            let point = random.below(total);
            let index = self.slices.at(if not.is_some() && point >= gap_start { point + gap } else { point });
            if allowed(self.slices.id(index)) {
                return Some(index);
            }
        }
        let mut found = None;
        let mut seen = 0;
        for index in (0..self.slices.len()).filter(|&index| Some(index) != not && allowed(self.slices.id(index))) {
            let weight = self.slices.weight(index);
            seen += weight;
            if random.below(seen) < weight {
                found = Some(index);
            }
        }
        found
    }
}

/// Servers as adjoining slices of a line, each as long as its weight.
#[derive(Debug)]
pub(super) struct Slices {
    ids: Vec<ServerId>,
    /// Where each slice ends; at most 65,535 × 1000.
    ends: Vec<u32>,
}

impl Slices {
    pub(super) fn new(members: &[Member]) -> Slices {
        let mut end = 0;
        let ends = members.iter().map(|member| {
            end += u32::from(member.weight);
            end
        });
        Slices { ends: ends.collect(), ids: members.iter().map(|member| member.id).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The line's length.
    pub(super) fn total(&self) -> u32 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The index of the slice that holds `point`, which is below [`Slices::total`].
    pub(super) fn at(&self, point: u32) -> usize {
        self.ends.partition_point(|&end| end <= point)
    }

    pub(super) fn id(&self, index: usize) -> ServerId {
        self.ids[index]
    }

    pub(super) fn weight(&self, index: usize) -> u32 {
        self.ends[index] - self.start(index)
    }

    fn start(&self, index: usize) -> u32 {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }
}
