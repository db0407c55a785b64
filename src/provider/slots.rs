//! A bounded number of slots, lent in the order in which they were asked for.

use std::collections::VecDeque;

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

/// The slots of one provider. Whoever waits for one belongs to a party, whose waiting can be ended as a whole.
#[derive(Debug)]
pub(crate) struct Slots {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: VecDeque<Waiting>,
    next_party: u64,
    /// Those that may ask: few, for each is a call that lasts.
    open: Vec<u64>,
}

#[derive(Debug)]
struct Waiting {
    party: u64,
    tell: Sender<()>,
}

impl Slots {
    pub(crate) fn new(slots: usize) -> Self {
        let state = State { free: slots, waiting: VecDeque::new(), next_party: 0, open: Vec::new() };
        Self { state: Mutex::new(state) }
    }

    /// Lets somebody in.
    pub(crate) fn open(&self) -> Party<'_> {
        let mut state = self.state.lock();
        let id = state.next_party;
        state.next_party += 1;
        state.open.push(id);
        Party { slots: self, id }
    }

    fn give_back(&self) {
        let mut state = self.state.lock();
        // The slot goes to the one who has waited longest, past whoever asks at this moment: else a party that never
        // pauses would keep all slots to itself.
        while let Some(waiting) = state.waiting.pop_front() {
            if waiting.tell.send(()).is_ok() {
                return;
            }
        }
        state.free += 1;
    }
}

/// Those who ask for slots together. Once it is closed, none of them waits or gets one.
#[derive(Debug)]
pub(crate) struct Party<'s> {
    slots: &'s Slots,
    id: u64,
}

impl<'s> Party<'s> {
    /// Waits for a slot. None if the party is closed.
    pub(crate) fn take(&self) -> Option<Slot<'s>> {
        let told = {
            let mut state = self.slots.state.lock();
            if !state.open.contains(&self.id) {
                return None;
            }
            if state.free > 0 {
                state.free -= 1;
                return Some(Slot { slots: self.slots });
            }
            let (tell, told) = bounded(1);
            state.waiting.push_back(Waiting { party: self.id, tell });
            told
        };
        told.recv().ok().map(|()| Slot { slots: self.slots })
    }

    pub(crate) fn close(&self) {
        let mut state = self.slots.state.lock();
        state.open.retain(|open| *open != self.id);
        state.waiting.retain(|waiting| waiting.party != self.id);
    }
}

impl Drop for Party<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

/// A slot, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot<'s> {
    slots: &'s Slots,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until so many wait for a slot.
    fn until_waiting(slots: &Slots, count: usize) {
        while slots.state.lock().waiting.len() < count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_slot_that_comes_back_goes_to_who_has_waited_longest() {
        let slots = Slots::new(1);
        let (first, second) = (slots.open(), slots.open());
        let held = first.take();
        assert!(held.is_some());
        std::thread::scope(|scope| {
            let (tell, told) = bounded(2);
            for (count, (name, party)) in [("second", &second), ("first", &first)].into_iter().enumerate() {
                let tell = tell.clone();
                scope.spawn(move || {
                    let slot = party.take();
                    tell.send((name, slot.is_some())).expect("a receiver");
                });
                until_waiting(&slots, count + 1);
            }
            drop(held);
            assert_eq!([told.recv(), told.recv()], [Ok(("second", true)), Ok(("first", true))]);
        });
        assert_eq!(slots.state.lock().free, 1);
    }

    #[test]
    fn a_party_that_closes_waits_no_more_and_leaves_the_others_alone() {
        let slots = Slots::new(1);
        let (closing, other) = (slots.open(), slots.open());
        let held = other.take();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| closing.take().is_some());
            until_waiting(&slots, 1);
            let others = scope.spawn(|| other.take().is_some());
            until_waiting(&slots, 2);
            closing.close();
            assert!(!waits.join().expect("no panic"));
            drop(held);
            assert!(others.join().expect("no panic"));
        });
        assert!(closing.take().is_none(), "it stays closed though a slot is free");
        assert!(other.take().is_some());
    }

    #[test]
    fn a_party_that_is_gone_leaves_nothing_behind() {
        let slots = Slots::new(1);
        drop(slots.open());
        let state = slots.state.lock();
        assert_eq!((state.free, state.open.len(), state.waiting.len()), (1, 0, 0));
    }
}
