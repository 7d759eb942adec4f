//! The keys of one lane: for every block the newest key that covers it.
//!
//! Invariant: the keys of a subtree are sorted and no two share a block; each lies within one leaf.
//!
//! A subtree (4 MiB) is 64 leaves of 64 KiB; a leaf is a sorted vector of packed keys. A look-up costs
//! two array steps and a search among at most 128 keys that lie together. The search begins where the
//! key is if all keys of the leaf are of one length, so that there it touches one cache line; an
//! overwrite of the same range changes one key in place. Keys longer than a leaf (write-zeroes,
//! placeholders) are stored as one part a leaf.

mod packed;
#[cfg(test)]
mod tests;

use super::key::{Key, KeyIdent};
use super::prefetch::prefetch;
use packed::PackedKey;

/// Bytes of a block in the index: the smallest logical block.
pub(crate) const BLOCK: u64 = 512;
/// Bytes of a subtree.
pub(crate) const SUBTREE_BYTES: u64 = 4 << 20;
/// Bytes of a leaf; no data key crosses a multiple of it.
pub(crate) const LEAF_BYTES: u64 = 64 << 10;
const LEAF_BLOCKS: u16 = 128;
const LEAVES: usize = 64;

/// How many more keys a full leaf gets room for: 4, from where its keys are shorter than 4 KiB a
/// quarter of what it has.
fn growth(capacity: usize) -> usize {
    (capacity / 4).next_multiple_of(4).max(4)
}

#[derive(Clone, Debug, Default)]
struct Leaf {
    keys: Vec<PackedKey>,
}

impl Leaf {
    /// Where the key that covers `block` is if all keys of the leaf are of one length.
    fn guess(&self, block: u16) -> usize {
        self.keys.len() * usize::from(block % LEAF_BLOCKS) / usize::from(LEAF_BLOCKS)
    }

    /// The first key that ends behind `block`.
    fn find(&self, block: u16) -> usize {
        let guess = self.guess(block);
        if let Some(key) = self.keys.get(guess)
            && key.start() <= block
            && block < key.end()
        {
            return guess;
        }
        self.keys.partition_point(|k| k.end() <= block)
    }

    fn put(&mut self, at: usize, key: PackedKey) {
        if self.keys.len() == self.keys.capacity() {
            self.keys.reserve_exact(growth(self.keys.len()));
        }
        self.keys.insert(at, key);
    }

    /// Gives memory back that few keys of it are left in.
    fn shrink(&mut self) {
        let (len, capacity) = (self.keys.len(), self.keys.capacity());
        if capacity > 2 * len + 16 {
            self.keys.shrink_to(len + growth(len));
        }
    }

    /// Makes room for blocks `start..end`: cuts what overlaps, and returns where a key that starts
    /// there belongs.
    fn clear(&mut self, start: u16, end: u16) -> usize {
        let first = self.find(start);
        let behind = first + self.keys[first..].partition_point(|k| k.start() < end);
        if first == behind {
            return first;
        }
        let left = self.keys[first];
        let right = self.keys[behind - 1];
        let keep_left = left.start() < start;
        let keep_right = right.end() > end;
        match (keep_left, keep_right) {
            (true, true) if first + 1 == behind => {
                self.keys[first] = left.before(start);
                self.put(first + 1, right.from(end));
                return first + 1;
            }
            _ => {}
        }
        let mut from = first;
        let mut to = behind;
        if keep_left {
            self.keys[first] = left.before(start);
            from += 1;
        }
        if keep_right {
            self.keys[behind - 1] = right.from(end);
            to -= 1;
        }
        self.keys.drain(from..to);
        from
    }

    fn insert(&mut self, key: Key) {
        let at = self.find(key.start);
        if let Some(old) = self.keys.get_mut(at)
            && old.start() == key.start
            && old.len() == key.len
        {
            *old = PackedKey::new(key);
            return;
        }
        let at = self.clear(key.start, key.end());
        self.put(at, PackedKey::new(key));
        self.shrink();
    }
}

#[derive(Debug)]
struct Subtree {
    leaves: Box<[Leaf; LEAVES]>,
}

impl Default for Subtree {
    fn default() -> Self {
        Self {
            leaves: Box::new(std::array::from_fn(|_| Leaf::default())),
        }
    }
}

/// One step of [`KeyIndex::walk`]: blocks `start..end` and the key over them, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First block.
    pub(crate) start: u16,
    /// Block behind the last.
    pub(crate) end: u16,
    /// The key, which may reach further on both sides; nothing over a gap.
    pub(crate) key: Option<Key>,
}

/// A leaf, on a walk through all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spot {
    /// Within the lane.
    pub(crate) subtree: usize,
    leaf: usize,
}

impl Spot {
    fn step(&mut self) {
        self.leaf += 1;
        if self.leaf == LEAVES {
            self.skip_subtree();
        }
    }

    fn skip_subtree(&mut self) {
        self.subtree += 1;
        self.leaf = 0;
    }
}

/// The keys of a lane. Subtrees are numbered within the lane.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    subtrees: Vec<Option<Subtree>>,
    /// Blocks that are BAD.
    bad_blocks: u64,
}

/// Blocks that a subtree has.
pub(crate) const SUBTREE_BLOCKS: u16 = LEAF_BLOCKS * 64;

fn leaf_of(block: u16) -> usize {
    usize::from(block / LEAF_BLOCKS)
}

fn leaf_end(leaf: usize) -> u16 {
    u16::try_from(leaf + 1).unwrap_or(64) * LEAF_BLOCKS
}

impl KeyIndex {
    fn subtree(&mut self, subtree: usize) -> &mut Subtree {
        if subtree >= self.subtrees.len() {
            self.subtrees.resize_with(subtree + 1, || None);
        }
        self.subtrees[subtree].get_or_insert_with(Subtree::default)
    }

    /// Fetches what an insert or a walk at block `start` will want, while other things are done.
    pub(crate) fn prefetch(&self, subtree: usize, start: u16) {
        if let Some(Some(tree)) = self.subtrees.get(subtree) {
            let leaf = &tree.leaves[leaf_of(start)];
            if let Some(key) = leaf.keys.get(leaf.guess(start)) {
                prefetch(key);
            }
        }
    }

    /// Puts `key` over whatever is there: covered keys go, overlapped ones are trimmed, a containing
    /// one is split. Placeholders are treated alike.
    pub(crate) fn insert(&mut self, subtree: usize, key: Key) {
        debug_assert!(key.len > 0 && key.end() <= SUBTREE_BLOCKS, "{key:?}");
        if self.bad_blocks > 0 {
            self.bad_blocks -= self.bad_within(subtree, key.start, key.end());
        }
        if key.kind.is_bad() {
            self.bad_blocks += u64::from(key.len);
        }
        let tree = self.subtree(subtree);
        let (first, last) = (leaf_of(key.start), leaf_of(key.end() - 1));
        if first == last {
            tree.leaves[first].insert(key);
            return;
        }
        let mut rest = key;
        for leaf in first..last {
            let border = leaf_end(leaf);
            tree.leaves[leaf].insert(rest.before(border));
            rest = rest.from(border);
        }
        tree.leaves[last].insert(rest);
    }

    /// Forgets what covers blocks `start..end`. Of placeholders too: their misses keep nothing of it.
    pub(crate) fn clear(&mut self, subtree: usize, start: u16, end: u16) {
        if self.bad_blocks > 0 {
            self.bad_blocks -= self.bad_within(subtree, start, end);
        }
        let Some(Some(tree)) = self.subtrees.get_mut(subtree) else {
            return;
        };
        for leaf in leaf_of(start)..=leaf_of(end.max(start + 1) - 1) {
            let from = start.max(leaf_end(leaf) - LEAF_BLOCKS);
            tree.leaves[leaf].clear(from, end.min(leaf_end(leaf)));
            tree.leaves[leaf].shrink();
        }
    }

    /// Whether a key of blocks `start..end` is one that `wanted` says.
    pub(crate) fn any(
        &self,
        subtree: usize,
        start: u16,
        end: u16,
        mut wanted: impl FnMut(&Key) -> bool,
    ) -> bool {
        let mut found = false;
        self.walk(subtree, start, end, |piece| {
            found |= piece.key.as_ref().is_some_and(&mut wanted);
        });
        found
    }

    /// How many blocks are BAD.
    pub(crate) fn bad_blocks(&self) -> u64 {
        self.bad_blocks
    }

    fn bad_within(&self, subtree: usize, start: u16, end: u16) -> u64 {
        let mut blocks = 0;
        self.walk(subtree, start, end, |piece| {
            if piece.key.is_some_and(|key| key.kind.is_bad()) {
                blocks += u64::from(piece.end - piece.start);
            }
        });
        blocks
    }

    /// Calls `visit` for the pieces that make up blocks `start..end`, in order.
    pub(crate) fn walk(&self, subtree: usize, start: u16, end: u16, mut visit: impl FnMut(Piece)) {
        let mut at = start;
        let Some(Some(tree)) = self.subtrees.get(subtree) else {
            visit(Piece {
                start,
                end,
                key: None,
            });
            return;
        };
        while at < end {
            let leaf = leaf_of(at);
            let stop = end.min(leaf_end(leaf));
            let keys = &tree.leaves[leaf].keys;
            let first = tree.leaves[leaf].find(at);
            for key in keys[first..].iter().map(|packed| packed.key()) {
                if key.start >= stop {
                    break;
                }
                if key.start > at {
                    visit(Piece {
                        start: at,
                        end: key.start,
                        key: None,
                    });
                    at = key.start;
                }
                let to = key.end().min(stop);
                visit(Piece {
                    start: at,
                    end: to,
                    key: Some(key),
                });
                at = to;
            }
            if at < stop {
                visit(Piece {
                    start: at,
                    end: stop,
                    key: None,
                });
                at = stop;
            }
        }
    }

    /// Forgets the parts within blocks `start..end` for which `wanted` says so.
    fn remove_where(
        &mut self,
        subtree: usize,
        start: u16,
        end: u16,
        mut wanted: impl FnMut(&Key) -> bool,
    ) {
        let Some(Some(tree)) = self.subtrees.get_mut(subtree) else {
            return;
        };
        for leaf in leaf_of(start)..=leaf_of(end.max(start + 1) - 1) {
            let keys = &mut tree.leaves[leaf].keys;
            keys.retain(|k| {
                if k.end() <= start || k.start() >= end {
                    return true;
                }
                let key = k.key();
                let stays = !wanted(&key);
                if !stays && key.kind.is_bad() {
                    self.bad_blocks -= u64::from(key.len);
                }
                stays
            });
            if keys.is_empty() {
                *keys = Vec::new();
            }
            tree.leaves[leaf].shrink();
        }
    }

    /// Forgets what is left of one key of the log, which covered blocks `start..end`.
    pub(crate) fn remove_exact(&mut self, subtree: usize, start: u16, end: u16, ident: &KeyIdent) {
        self.remove_where(subtree, start, end, |k| k.same_original(ident));
    }

    /// Marks the keys of the next `leaves` leaves; true once there are no more.
    pub(crate) fn mark_next(&mut self, spot: &mut Spot, leaves: usize) -> bool {
        for _ in 0..leaves {
            let Some(place) = self.subtrees.get_mut(spot.subtree) else {
                return true;
            };
            match place {
                Some(tree) => {
                    for key in &mut tree.leaves[spot.leaf].keys {
                        *key = key.marked(true);
                    }
                    spot.step();
                }
                None => spot.skip_subtree(),
            }
        }
        spot.subtree >= self.subtrees.len()
    }

    /// Takes the mark from what is left of one key of the log, which covered blocks `start..end`.
    pub(crate) fn unmark(&mut self, subtree: usize, start: u16, end: u16, ident: &KeyIdent) {
        let Some(Some(tree)) = self.subtrees.get_mut(subtree) else {
            return;
        };
        for leaf in leaf_of(start)..=leaf_of(end.max(start + 1) - 1) {
            for key in &mut tree.leaves[leaf].keys {
                let is_there = key.end() > start && key.start() < end;
                if is_there && key.key().same_original(ident) {
                    *key = key.marked(false);
                }
            }
        }
    }

    /// The next marked key within `leaves` leaves, which counts them down to 0; the spot stays at its
    /// leaf, so that it must have gone, or its mark, before this is called again.
    pub(crate) fn next_marked(&self, spot: &mut Spot, leaves: &mut usize) -> Option<Key> {
        while *leaves > 0 {
            let place = self.subtrees.get(spot.subtree)?;
            *leaves -= 1;
            let Some(tree) = place else {
                spot.skip_subtree();
                continue;
            };
            let mut keys = tree.leaves[spot.leaf].keys.iter().map(|key| key.key());
            if let Some(key) = keys.find(|key| key.kind.is_marked()) {
                return Some(key);
            }
            spot.step();
        }
        None
    }

    /// Whether `spot` is behind all keys.
    pub(crate) fn is_end(&self, spot: Spot) -> bool {
        spot.subtree >= self.subtrees.len()
    }

    /// Forgets this very part of a key.
    pub(crate) fn remove_part(&mut self, subtree: usize, part: &Key) {
        self.remove_where(subtree, part.start, part.end(), |k| k == part);
    }

    /// Forgets the placeholders of miss `id` within blocks `start..end`.
    pub(crate) fn remove_placeholders(&mut self, subtree: usize, start: u16, end: u16, id: u64) {
        self.remove_where(subtree, start, end, |k| {
            k.kind.is_placeholder() && k.generation == id
        });
    }

    /// Bytes of memory for the keys.
    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        let keys = |leaf: &Leaf| leaf.keys.capacity() * size_of::<PackedKey>();
        let trees =
            self.subtrees.iter().flatten().map(|tree| {
                size_of::<[Leaf; LEAVES]>() + tree.leaves.iter().map(keys).sum::<usize>()
            });
        trees.sum::<usize>() + self.subtrees.capacity() * size_of::<Option<Subtree>>()
    }

    /// Asserts the invariant.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for tree in self.subtrees.iter().flatten() {
            let mut covered_to = 0;
            for (number, leaf) in tree.leaves.iter().enumerate() {
                for key in leaf.keys.iter().map(|packed| packed.key()) {
                    assert!(key.len > 0, "{key:?} is empty");
                    assert!(
                        key.start >= covered_to,
                        "{key:?} overlaps the key before it"
                    );
                    assert_eq!(leaf_of(key.start), number, "{key:?} in leaf {number}");
                    assert_eq!(
                        leaf_of(key.end() - 1),
                        number,
                        "{key:?} leaves leaf {number}"
                    );
                    assert!(
                        key.trim + key.len <= key.whole,
                        "{key:?} exceeds its original"
                    );
                    covered_to = key.end();
                }
            }
        }
    }
}
