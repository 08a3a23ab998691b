//! Storage for things that refer to one another by key: slots that are reused, and keys that are not.
//!
//! A [`Key`] names one occupant of one slot. Once that occupant is removed the key finds nothing, even when the
//! slot has a new occupant, so a stale readiness event or timer is dropped instead of reaching a stranger.
//! Nothing here knows what is stored, and nothing here does I/O.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

/// Bits of a key's generation: with the 32 bits of the index a packed key leaves the top two bits of a `u64` free.
pub const GENERATION_BITS: u32 = 30;

/// Bits that [`Key::to_bits`] uses; the bits above are always 0 and are the caller's to put a tag in.
pub const KEY_BITS: u32 = 32 + GENERATION_BITS;

const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// Ends the list of vacant slots. No slot has this index.
const NIL: u32 = u32::MAX;

/// Names one value in a [`Slab<T>`], for as long as it is there.
///
/// A slot's generation wraps after 2^30 values; only a key kept for that long could find a stranger.
pub struct Key<T> {
    index: u32,
    generation: u32,
    what: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    fn new(index: u32, generation: u32) -> Key<T> {
        Key { index, generation, what: PhantomData }
    }

    /// The slot's number. Unique among the values present at one time, reused afterwards.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// The key as a number below 2^[`KEY_BITS`].
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key that [`Key::to_bits`] made `bits` of. The top two bits are not looked at; a number that never was
    /// a key gives one that finds nothing, or whatever now has that index and generation.
    #[must_use]
    pub fn from_bits(bits: u64) -> Key<T> {
        let [a, b, c, d, e, f, g, h] = bits.to_le_bytes();
        Key::new(u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]) & GENERATION_MASK)
    }
}

// Written out because a derive would ask the same of `T`.
impl<T> Clone for Key<T> {
    fn clone(&self) -> Key<T> {
        *self
    }
}
impl<T> Copy for Key<T> {}
impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Key<T>) -> bool {
        self.to_bits() == other.to_bits()
    }
}
impl<T> Eq for Key<T> {}
impl<T> Hash for Key<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.to_bits().hash(state);
    }
}
impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.index, self.generation)
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

#[derive(Debug)]
enum Content<T> {
    Occupied(T),
    /// The next vacant slot, or [`NIL`].
    Vacant(u32),
}

/// Values in reusable slots, found by [`Key`]. Every operation but iteration takes constant time.
///
/// Memory is that of the most values ever present at once; [`Slab::insert`] allocates only while it grows.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    vacant: u32,
    len: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab::new()
    }
}

impl<T> Slab<T> {
    /// An empty slab, bounded only by its index: 2^32 - 1 values. Allocates nothing yet.
    #[must_use]
    pub fn new() -> Slab<T> {
        Slab { slots: Vec::new(), vacant: NIL, len: 0 }
    }

    /// How many values are present.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no value is present.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The key that the next value inserted will get; `None` when full. For a value that must know its own key,
    /// or a descriptor that is registered before its value is made.
    #[must_use]
    pub fn next_key(&self) -> Option<Key<T>> {
        match self.slots.get(self.vacant as usize) {
            Some(slot) => Some(Key::new(self.vacant, slot.generation)),
            None => u32::try_from(self.slots.len()).ok().filter(|&index| index < NIL).map(|index| Key::new(index, 0)),
        }
    }

    /// Stores `value`.
    ///
    /// # Errors
    /// Gives `value` back when every index is taken.
    pub fn insert(&mut self, value: T) -> Result<Key<T>, T> {
        let Some(key) = self.next_key() else { return Err(value) };
        match self.slots.get_mut(key.index as usize) {
            Some(slot) => {
                if let Content::Vacant(next) = slot.content {
                    self.vacant = next;
                }
                slot.content = Content::Occupied(value);
            }
            None => self.slots.push(Slot { generation: 0, content: Content::Occupied(value) }),
        }
        self.len += 1;
        Ok(key)
    }

    /// The value, if it is still present.
    #[must_use]
    pub fn get(&self, key: Key<T>) -> Option<&T> {
        match self.slots.get(key.index as usize) {
            Some(Slot { generation, content: Content::Occupied(value) }) if *generation == key.generation => {
                Some(value)
            }
            Some(_) | None => None,
        }
    }

    /// The value, if it is still present.
    #[must_use]
    pub fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        match self.slots.get_mut(key.index as usize) {
            Some(Slot { generation, content: Content::Occupied(value) }) if *generation == key.generation => {
                Some(value)
            }
            Some(_) | None => None,
        }
    }

    /// Two values at once; `None` unless both are there and are two.
    pub fn get_two_mut(&mut self, one: Key<T>, other: Key<T>) -> Option<(&mut T, &mut T)> {
        let [first, second] = self.slots.get_disjoint_mut([one.index as usize, other.index as usize]).ok()?;
        if first.generation != one.generation || second.generation != other.generation {
            return None;
        }
        match (&mut first.content, &mut second.content) {
            (Content::Occupied(first), Content::Occupied(second)) => Some((first, second)),
            (Content::Occupied(_) | Content::Vacant(_), Content::Occupied(_) | Content::Vacant(_)) => None,
        }
    }

    /// Whether the value is still present.
    #[must_use]
    pub fn contains(&self, key: Key<T>) -> bool {
        self.get(key).is_some()
    }

    /// Takes the value out; from now on its key finds nothing.
    pub fn remove(&mut self, key: Key<T>) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize).filter(|slot| slot.generation == key.generation)?;
        if let Content::Vacant(_) = slot.content {
            return None;
        }
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        match std::mem::replace(&mut slot.content, Content::Vacant(self.vacant)) {
            Content::Occupied(value) => {
                self.vacant = key.index;
                self.len -= 1;
                Some(value)
            }
            Content::Vacant(_) => None,
        }
    }

    /// All values with their keys, in the order of their slots. Visits vacant slots too.
    pub fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        (0u32..).zip(&self.slots).filter_map(|(index, slot)| match &slot.content {
            Content::Occupied(value) => Some((Key::new(index, slot.generation), value)),
            Content::Vacant(_) => None,
        })
    }

    /// As [`Slab::iter`], to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key<T>, &mut T)> {
        (0u32..).zip(&mut self.slots).filter_map(|(index, slot)| match &mut slot.content {
            Content::Occupied(value) => Some((Key::new(index, slot.generation), value)),
            Content::Vacant(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stale_key_finds_nothing_in_a_reused_slot() {
        let mut slab = Slab::new();
        let first = slab.insert("first").unwrap();
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second").unwrap();
        assert_eq!(first.index(), second.index());
        assert_ne!(first, second);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn the_generation_wraps_within_its_bits() {
        let mut slab = Slab::new();
        let key = slab.insert(()).unwrap();
        slab.slots[0].generation = GENERATION_MASK;
        let last: Key<()> = Key::new(key.index(), GENERATION_MASK);
        assert_eq!(last.to_bits() >> KEY_BITS, 0);
        assert!(slab.remove(last).is_some());
        assert_eq!(slab.next_key(), Some(key));
    }

    #[test]
    fn an_occupied_slot_of_a_pointer_costs_16_bytes_more_at_most() {
        assert!(size_of::<Slot<Box<u8>>>() <= size_of::<Box<u8>>() + 16);
    }

    proptest! {
        #[test]
        fn bits_give_the_key_back(index: u32, generation in 0..=GENERATION_MASK, tag in 0u64..4) {
            let key: Key<()> = Key::new(index, generation);
            prop_assert_eq!(Key::from_bits(key.to_bits() | tag << KEY_BITS), key);
            prop_assert_eq!(key.to_bits() >> KEY_BITS, 0);
        }

        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..300)) {
            let mut slab = Slab::new();
            let mut model = HashMap::new();
            let (mut keys, mut most) = (Vec::new(), 0);
            for (value, (insert, which)) in steps.into_iter().enumerate() {
                if insert || keys.is_empty() {
                    let expected = slab.next_key();
                    let key = slab.insert(value).unwrap();
                    prop_assert_eq!(Some(key), expected);
                    prop_assert!(model.insert(key, value).is_none());
                    most = most.max(model.len());
                    keys.push(key);
                } else {
                    // Any key ever given out, removed ones included.
                    let key = *which.get(&keys);
                    prop_assert_eq!(slab.remove(key), model.remove(&key));
                }
                prop_assert_eq!(slab.len(), model.len());
                prop_assert_eq!(slab.slots.len(), most);
                for key in &keys {
                    prop_assert_eq!(slab.get(*key), model.get(key));
                    prop_assert_eq!(slab.contains(*key), model.contains_key(key));
                }
                let seen: HashMap<_, _> = slab.iter().map(|(key, value)| (key, *value)).collect();
                prop_assert_eq!(&seen, &model);
            }
        }
    }

    #[test]
    fn two_values_are_had_at_once_unless_they_are_one_or_gone() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert(1).unwrap(), slab.insert(2).unwrap());
        let (one, other) = slab.get_two_mut(a, b).unwrap();
        std::mem::swap(one, other);
        assert_eq!((slab.get(a), slab.get(b)), (Some(&2), Some(&1)));
        assert_eq!(slab.get_two_mut(a, a), None);
        slab.remove(b);
        assert_eq!(slab.get_two_mut(a, b), None);
        slab.insert(3).unwrap();
        assert_eq!(slab.get_two_mut(a, b), None, "somebody else's");
    }
}
