//! When to look at which slot next: a heap in which each slot has at most one time, which can be moved. Pure.

#![forbid(unsafe_code)]

use crate::memory::{OutOfMemory, try_grow};
use std::time::Instant;

const NOWHERE: u32 = u32::MAX;

/// Slots by their times, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: Vec<(Instant, u32)>,
    /// Where in the heap each slot is.
    places: Vec<u32>,
}

impl Timers {
    /// Room for `slots` slots, so that nothing else here allocates.
    pub(super) fn reserve(&mut self, slots: usize) -> Result<(), OutOfMemory> {
        try_grow(&mut self.heap, slots)?;
        try_grow(&mut self.places, slots)?;
        if self.places.len() < slots {
            self.places.resize(slots, NOWHERE);
        }
        Ok(())
    }

    pub(super) fn first(&self) -> Option<(Instant, u32)> {
        self.heap.first().copied()
    }

    /// The slot's time, in place of the one that it has.
    pub(super) fn set(&mut self, slot: u32, at: Instant) {
        match self.places[slot as usize] {
            NOWHERE => {
                self.heap.push((at, slot));
                self.rise(self.heap.len() - 1);
            }
            place => self.replace(place as usize, (at, slot)),
        }
    }

    /// The slot's time, unless it has an earlier one: that costs less, and is found to be too early when it comes.
    pub(super) fn set_at_latest(&mut self, slot: u32, at: Instant) {
        let place = self.places[slot as usize];
        if place == NOWHERE || self.heap[place as usize].0 > at {
            self.set(slot, at);
        }
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let place = std::mem::replace(&mut self.places[slot as usize], NOWHERE) as usize;
        let Some(last) = self.heap.len().checked_sub(1).filter(|last| place <= *last) else { return };
        let moved = self.heap[last];
        self.heap.truncate(last);
        if place < last {
            self.replace(place, moved);
        }
    }

    fn replace(&mut self, place: usize, entry: (Instant, u32)) {
        self.heap[place] = entry;
        let place = self.rise(place);
        self.sink(place);
    }

    /// Moves an entry up to where it belongs, and says where that is.
    fn rise(&mut self, mut place: usize) -> usize {
        let entry = self.heap[place];
        while place > 0 {
            let above = (place - 1) / 2;
            if self.heap[above].0 <= entry.0 {
                break;
            }
            self.put(place, self.heap[above]);
            place = above;
        }
        self.put(place, entry);
        place
    }

    fn sink(&mut self, mut place: usize) {
        let entry = self.heap[place];
        loop {
            let mut below = 2 * place + 1;
            if below + 1 < self.heap.len() && self.heap[below + 1].0 < self.heap[below].0 {
                below += 1;
            }
            if below >= self.heap.len() || self.heap[below].0 >= entry.0 {
                break;
            }
            self.put(place, self.heap[below]);
            place = below;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: (Instant, u32)) {
        self.heap[place] = entry;
        self.places[entry.1 as usize] = place as u32; // At most the number of slots, which are u32.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Set(u32, u64),
        AtLatest(u32, u64),
        Remove(u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        let slot = 0..8u32;
        prop_oneof![
            (slot.clone(), 0..20u64).prop_map(|(slot, at)| Act::Set(slot, at)),
            (slot.clone(), 0..20u64).prop_map(|(slot, at)| Act::AtLatest(slot, at)),
            slot.prop_map(Act::Remove),
        ]
    }

    proptest! {
        /// The heap is what a list searched from end to end is.
        #[test]
        fn agrees_with_a_list(acts in prop::collection::vec(act(), 0..60)) {
            let zero = Instant::now();
            let time = |at: u64| zero + Duration::from_millis(at);
            let mut timers = Timers::default();
            timers.reserve(8).unwrap();
            let mut list: Vec<Option<u64>> = vec![None; 8];
            for act in acts {
                match act {
                    Act::Set(slot, at) => {
                        timers.set(slot, time(at));
                        list[slot as usize] = Some(at);
                    }
                    Act::AtLatest(slot, at) => {
                        timers.set_at_latest(slot, time(at));
                        let old = list[slot as usize];
                        list[slot as usize] = Some(old.map_or(at, |old| old.min(at)));
                    }
                    Act::Remove(slot) => {
                        timers.remove(slot);
                        list[slot as usize] = None;
                    }
                }
                let first = list.iter().flatten().min().map(|at| time(*at));
                prop_assert_eq!(timers.first().map(|(at, _)| at), first);
                if let Some((at, slot)) = timers.first() {
                    prop_assert_eq!(list[slot as usize].map(time), Some(at));
                }
            }
        }
    }
}
