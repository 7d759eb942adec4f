//! Inserts that a load puts off, so that those of one subtree come together.
//!
//! A log of small random writes names another leaf with every key. One by one each insert would wait for
//! its leaf's memory; a subtree's keys in one go find it in the nearest caches. Keys of different subtrees
//! never touch, and those of one subtree stay in order, so the index ends up the same.

use super::key::Key;
use super::key_index::KeyIndex;

/// Keys that a subtree collects before they are inserted.
const KEYS_A_SUBTREE: usize = 1024;
/// Keys that all collect: some 64 MiB.
const KEYS_MAX: usize = 2 << 20;

/// Keys of all lanes that are to be inserted.
#[derive(Debug, Default)]
pub(super) struct BulkInsert {
    /// For each lane, for each of its subtrees.
    late: Vec<Vec<Vec<Key>>>,
    count: usize,
}

impl BulkInsert {
    /// Inserts `key` now or later.
    pub(super) fn push(&mut self, indexes: &mut [KeyIndex], lane: usize, subtree: usize, key: Key) {
        if self.late.len() <= lane {
            self.late.resize_with(lane + 1, Vec::new);
        }
        let subtrees = &mut self.late[lane];
        if subtrees.len() <= subtree {
            subtrees.resize_with(subtree + 1, Vec::new);
        }
        let keys = &mut subtrees[subtree];
        keys.push(key);
        self.count += 1;
        if keys.len() >= KEYS_A_SUBTREE {
            self.count -= keys.len();
            insert_all(&mut indexes[lane], subtree, keys);
        } else if self.count >= KEYS_MAX {
            self.finish(indexes);
        }
    }

    /// Inserts now what was put off for one subtree.
    pub(super) fn settle(&mut self, indexes: &mut [KeyIndex], lane: usize, subtree: usize) {
        if let Some(keys) = self.late.get_mut(lane).and_then(|it| it.get_mut(subtree)) {
            self.count -= keys.len();
            insert_all(&mut indexes[lane], subtree, keys);
        }
    }

    /// Inserts now all that was put off, and gives the memory back.
    pub(super) fn finish(&mut self, indexes: &mut [KeyIndex]) {
        for (index, subtrees) in indexes.iter_mut().zip(std::mem::take(&mut self.late)) {
            for (subtree, mut keys) in subtrees.into_iter().enumerate() {
                insert_all(index, subtree, &mut keys);
            }
        }
        self.count = 0;
    }
}

fn insert_all(index: &mut KeyIndex, subtree: usize, keys: &mut Vec<Key>) {
    for key in keys.drain(..) {
        index.insert(subtree, key);
    }
}
