//! How far the keys of a lane's subtrees have come: whether all dirty ones are written back, and
//! whether replay can still meet any. Kept only while writes may bypass the cache.
//!
//! A key gets its kset's order when it is appended; its sequence is known when the kset has its place.

/// The last kset with some kind of key.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastKset {
    order: u64,
    /// Once it is placed.
    sequence: u64,
}

impl LastKset {
    /// Keys up to kset `order`, which lies up to `sequence` if it has a place.
    pub(crate) fn new(order: u64, sequence: u64) -> Self {
        Self { order, sequence }
    }

    /// Kset `order` has its place.
    pub(crate) fn place(&mut self, order: u64, sequence: u64) {
        if self.order == order {
            self.sequence = sequence;
        }
    }

    /// Whether it lies before a tail at `tail`; without a place it does not.
    pub(crate) fn is_before(self, placed_order: u64, tail: u64) -> bool {
        self.order <= placed_order && self.sequence < tail
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Subtree {
    /// Dirty keys.
    dirty: LastKset,
    /// All keys but INVALID ones.
    keys: LastKset,
    /// What [`Bypassed::completed`](super::bypassed::Bypassed) was after its last bypassing write.
    unflushed: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    is_kept: bool,
    /// Of all keys from before it was kept.
    floor: LastKset,
    subtrees: Vec<Subtree>,
}

impl Marks {
    /// Nothing is known yet of a log that reaches to `sequence`.
    pub(crate) fn new(sequence: u64) -> Self {
        Self {
            floor: LastKset::new(0, sequence),
            ..Self::default()
        }
    }

    /// Whether keys are marked.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// From now on keys are marked; those before stand in ksets up to `order`, and if that has a place,
    /// up to `sequence`.
    pub(crate) fn keep(&mut self, order: u64, sequence: u64) {
        self.is_kept = true;
        self.floor = LastKset::new(order, sequence);
    }

    /// For a fault only: as if there had been nothing before.
    pub(crate) fn forget_floor(&mut self) {
        self.floor = LastKset::default();
    }

    /// Nobody wants to know any more.
    pub(crate) fn give_up(&mut self) {
        self.is_kept = false;
    }

    fn subtree(&mut self, subtree: usize) -> &mut Subtree {
        if subtree >= self.subtrees.len() {
            self.subtrees.resize(subtree + 1, Subtree::default());
        }
        &mut self.subtrees[subtree]
    }

    /// A key that is not INVALID was appended to kset `order`.
    pub(crate) fn note_key(&mut self, subtree: usize, order: u64, is_dirty: bool) {
        let marks = self.subtree(subtree);
        marks.keys.order = order;
        if is_dirty {
            marks.dirty.order = order;
        }
    }

    /// Kset `order`, with keys of these subtrees, has its place.
    pub(crate) fn place(
        &mut self,
        order: u64,
        sequence: u64,
        subtrees: impl Iterator<Item = usize>,
    ) {
        self.floor.place(order, sequence);
        for subtree in subtrees {
            if let Some(marks) = self.subtrees.get_mut(subtree) {
                marks.keys.place(order, sequence);
                marks.dirty.place(order, sequence);
            }
        }
    }

    fn of(&self, subtree: usize) -> Subtree {
        self.subtrees.get(subtree).copied().unwrap_or_default()
    }

    /// Whether a dirty tail at `tail` is past every dirty key of a subtree.
    pub(crate) fn is_written_back(&self, subtree: usize, placed_order: u64, tail: u64) -> bool {
        let dirty = self.of(subtree).dirty;
        self.is_kept
            && self.floor.is_before(placed_order, tail)
            && dirty.is_before(placed_order, tail)
    }

    /// Whether replay from a key tail at `tail` meets no key of a subtree, but INVALID ones.
    pub(crate) fn is_out_of_log(&self, subtree: usize, placed_order: u64, tail: u64) -> bool {
        let keys = self.of(subtree).keys;
        self.is_kept
            && self.floor.is_before(placed_order, tail)
            && keys.is_before(placed_order, tail)
    }

    /// A write bypassed the cache, as the `number`-th.
    pub(crate) fn note_bypassed(&mut self, subtree: usize, number: u64) {
        self.subtree(subtree).unflushed = number;
    }

    /// Which bypassing write of a subtree was the last.
    pub(crate) fn last_bypassed(&self, subtree: usize) -> u64 {
        self.of(subtree).unflushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_past_a_tail_once_their_kset_is_placed_below_it() {
        let mut marks = Marks::new(40);
        assert!(!marks.is_written_back(0, 0, 41), "nobody has looked");
        marks.keep(2, 50);
        assert!(!marks.is_written_back(0, 1, 1000), "kset 2 has no place");
        marks.place(2, 55, std::iter::empty());
        assert!(marks.is_written_back(0, 2, 56) && !marks.is_written_back(0, 2, 55));
        marks.note_key(7, 3, true);
        assert!(!marks.is_written_back(7, 2, 1000) && marks.is_written_back(6, 2, 1000));
        marks.place(3, 60, [7, 7].into_iter());
        assert!(!marks.is_written_back(7, 3, 60) && marks.is_written_back(7, 3, 61));
        marks.note_key(7, 4, false);
        marks.place(4, 70, [7].into_iter());
        assert!(
            marks.is_written_back(7, 4, 61),
            "a clean key wants no writeback"
        );
        assert!(!marks.is_out_of_log(7, 4, 70) && marks.is_out_of_log(7, 4, 71));
    }

    #[test]
    fn what_was_appended_while_nobody_looked_is_below_the_floor() {
        let mut marks = Marks::new(0);
        marks.keep(0, 0);
        marks.note_key(1, 1, true);
        marks.give_up();
        // Kset 1 is placed as number 9 meanwhile.
        marks.keep(1, 9);
        assert!(!marks.is_written_back(1, 1, 9) && marks.is_written_back(1, 1, 10));
    }
}
