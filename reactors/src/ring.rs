//! Bounded single-producer, single-consumer rings. (First form: a safe wrapper of `ArrayQueue`.)

use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// The sending end.
#[derive(Debug)]
pub struct Producer<T>(Arc<ArrayQueue<T>>);

/// The receiving end.
#[derive(Debug)]
pub struct Consumer<T>(Arc<ArrayQueue<T>>);

/// Makes a ring with room for `capacity` items.
#[must_use]
pub fn spsc<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let queue = Arc::new(ArrayQueue::new(capacity.max(1)));
    (Producer(queue.clone()), Consumer(queue))
}

impl<T> Producer<T> {
    /// Puts `item` in, or hands it back when the ring is full.
    ///
    /// # Errors
    /// The item itself.
    pub fn push(&mut self, item: T) -> Result<(), T> {
        self.0.push(item)
    }

    /// True once the other end is gone: nobody will ever take what is in here.
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl<T> Consumer<T> {
    /// Takes the oldest item.
    pub fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// True if there is nothing to take now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True once the other end is gone: what is in here is the last there will be.
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}
