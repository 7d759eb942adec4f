//! What a filter remembers of the requests that its base has.

/// Numbers requests for the base, and keeps what is needed when they come back.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> InFlight<T> {
    /// Keeps `item`; the number is the tag to give to the base.
    pub(super) fn insert(&mut self, item: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(item);
        }
        index as u64
    }

    /// What is kept under `tag`.
    pub(super) fn get(&self, tag: u64) -> Option<&T> {
        self.slots.get(usize::try_from(tag).ok()?)?.as_ref()
    }

    /// What is kept under `tag`, to be changed.
    pub(super) fn get_mut(&mut self, tag: u64) -> Option<&mut T> {
        self.slots.get_mut(usize::try_from(tag).ok()?)?.as_mut()
    }

    /// All that is kept, with its tags.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let kept = (0_u64..).zip(&mut self.slots);
        kept.filter_map(|(tag, slot)| Some((tag, slot.as_mut()?)))
    }

    /// Takes all that is kept.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().flatten()
    }

    /// Takes what was kept under `tag`; nothing if the base made it up.
    pub(super) fn remove(&mut self, tag: u64) -> Option<T> {
        let index = usize::try_from(tag).ok()?;
        let item = self.slots.get_mut(index)?.take()?;
        self.free.push(index);
        Some(item)
    }

    /// How many the base has.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_again_only_after_it_came_back() {
        let mut items = InFlight::default();
        let (a, b) = (items.insert('a'), items.insert('b'));
        assert_ne!(a, b);
        assert_eq!((items.remove(a), items.remove(a)), (Some('a'), None));
        assert_eq!(items.insert('c'), a);
        assert_eq!((items.len(), items.remove(99)), (2, None));
        assert_eq!((items.remove(b), items.remove(a)), (Some('b'), Some('c')));
    }

    #[test]
    fn what_is_kept_can_be_seen_changed_and_taken_at_once() {
        let mut items = InFlight::default();
        let (a, b, c) = (items.insert(1), items.insert(2), items.insert(3));
        assert_eq!(items.remove(b), Some(2));
        for (tag, item) in items.iter_mut() {
            assert!(tag == a || tag == c);
            *item *= 10;
        }
        *items.get_mut(a).unwrap() += 1;
        assert_eq!((items.get(a), items.get(b)), (Some(&11), None));
        assert_eq!(items.drain().collect::<Vec<_>>(), [11, 30]);
        assert_eq!((items.len(), items.insert(4)), (0, 0));
    }
}
