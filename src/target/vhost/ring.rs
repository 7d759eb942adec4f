//! The split virtqueue's two rings, as the device sees them.
//!
//! ```text
//! avail: flags u16 | idx u16 | ring [u16; n] | used_event u16
//! used:  flags u16 | idx u16 | ring [{id u32, len u32}; n] | avail_event u16
//! ```

use super::guest_mem::{MemoryFault, Window};
use crate::wire::virtio::{AVAIL_NO_INTERRUPT, USED_NO_NOTIFY};
use std::cell::Cell;
use std::sync::atomic::{Ordering, fence};

/// Why a ring is not followed any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum RingFault {
    #[error("{available} requests available in a ring of {entries}")]
    Overrun { available: u16, entries: u16 },
    #[error("head {head} in a ring of {entries}")]
    Head { head: u16, entries: u16 },
    #[error("head {0} made available while it is under way")]
    Twice(u16),
    #[error(transparent)]
    Memory(#[from] MemoryFault),
}

/// Where a ring's parts are.
#[derive(Clone, Debug)]
pub(super) struct RingPlaces {
    /// A power of two, up to [`super::RING_ENTRIES_MAX`].
    pub(super) entries: u16,
    pub(super) desc: Window,
    pub(super) avail: Window,
    pub(super) used: Window,
}

impl RingPlaces {
    pub(super) fn desc_bytes(entries: u16) -> u64 {
        16 * u64::from(entries)
    }

    pub(super) fn avail_bytes(entries: u16) -> u64 {
        6 + 2 * u64::from(entries)
    }

    pub(super) fn used_bytes(entries: u16) -> u64 {
        6 + 8 * u64::from(entries)
    }
}

/// One virtqueue's rings.
#[derive(Debug)]
pub(super) struct Ring {
    places: RingPlaces,
    event_idx: bool,
    /// How far requests have been taken.
    taken: u16,
    /// How far the driver has made them available, when last seen.
    seen: u16,
    /// How far answers have been written.
    written: u16,
    /// How far the driver may see them.
    published: u16,
    /// Up to where the driver has been told; unknown at the start.
    told: Option<u16>,
    /// The driver rings for new requests.
    armed: Cell<bool>,
}

impl Ring {
    /// Goes on behind the `taken`-th request.
    pub(super) fn new(places: RingPlaces, event_idx: bool, taken: u16) -> Result<Self, RingFault> {
        let written = places.used.load(2, Ordering::Acquire)?;
        let written = u16::from_le(written);
        Ok(Self {
            places,
            event_idx,
            taken,
            seen: taken,
            written,
            published: written,
            told: None,
            armed: Cell::new(true),
        })
    }

    pub(super) fn places(&self) -> &RingPlaces {
        &self.places
    }

    pub(super) fn entries(&self) -> u16 {
        self.places.entries
    }

    /// How far requests have been taken.
    pub(super) fn taken(&self) -> u16 {
        self.taken
    }

    /// How far the driver may see answers.
    pub(super) fn published(&self) -> u16 {
        self.published
    }

    fn slot(&self, at: u16) -> usize {
        usize::from(at & (self.places.entries - 1))
    }

    /// How far the driver has made requests available. With it, all that it wrote before.
    fn available(&self) -> Result<u16, RingFault> {
        let seen = self.places.avail.load(2, Ordering::Acquire)?;
        let seen = u16::from_le(seen);
        let available = seen.wrapping_sub(self.taken);
        let entries = self.places.entries;
        if available > entries {
            return Err(RingFault::Overrun { available, entries });
        }
        Ok(seen)
    }

    /// Takes the next request's head, which is inside the ring.
    pub(super) fn take(&mut self) -> Result<Option<u16>, RingFault> {
        if self.seen == self.taken {
            self.seen = self.available()?;
            if self.seen == self.taken {
                return Ok(None);
            }
            self.disarm()?;
        }
        let at = 4 + 2 * self.slot(self.taken);
        let head = self.places.avail.load(at, Ordering::Relaxed)?;
        let head = u16::from_le(head);
        let entries = self.places.entries;
        if head >= entries {
            return Err(RingFault::Head { head, entries });
        }
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(head))
    }

    /// Writes an answer; the driver does not see it before [`Ring::publish`].
    pub(super) fn answer(&mut self, head: u16, bytes: u32) -> Result<(), RingFault> {
        let id = u64::from(head) | u64::from(bytes) << 32;
        let at = 4 + 8 * self.slot(self.written);
        self.places.used.write(at, &id.to_le_bytes())?;
        self.written = self.written.wrapping_add(1);
        Ok(())
    }

    /// Lets the driver see what has been written.
    pub(super) fn publish(&mut self) -> Result<(), RingFault> {
        let written = self.written.to_le();
        self.places.used.store(2, written, Ordering::Release)?;
        self.published = self.written;
        Ok(())
    }

    /// Whether the driver wants to be told of what was published since it was told last.
    pub(super) fn wants_call(&mut self) -> Result<bool, RingFault> {
        if self.told == Some(self.published) {
            return Ok(false);
        }
        // Either we see what the driver has asked for, or it sees what we have published.
        fence(Ordering::SeqCst);
        let told = self.told.replace(self.published);
        let avail = &self.places.avail;
        if !self.event_idx {
            let flags = u16::from_le(avail.load(0, Ordering::Relaxed)?);
            return Ok(flags & AVAIL_NO_INTERRUPT == 0);
        }
        let at = 4 + 2 * usize::from(self.places.entries);
        let event = u16::from_le(avail.load(at, Ordering::Relaxed)?);
        Ok(told.is_none_or(|told| passes(event, self.published, told)))
    }

    /// Asks the driver to ring for new requests; then looks whether there are any. Before a sleep.
    pub(super) fn arm(&self) -> Result<bool, RingFault> {
        let used = &self.places.used;
        if self.event_idx {
            let at = 4 + 8 * usize::from(self.places.entries);
            used.store(at, self.taken.to_le(), Ordering::Relaxed)?;
        } else if !self.armed.get() {
            used.store(0, 0_u16, Ordering::Relaxed)?;
        }
        self.armed.set(true);
        // Either the driver sees that, and rings, or we see what it has made available.
        fence(Ordering::SeqCst);
        Ok(self.available()? != self.taken)
    }

    /// Asks it not to, while we look ourselves. With `EVENT_IDX` the index that it rings for is one
    /// that is past, and need not be touched.
    fn disarm(&self) -> Result<(), RingFault> {
        if self.armed.replace(false) && !self.event_idx {
            let flags = USED_NO_NOTIFY.to_le();
            self.places.used.store(0, flags, Ordering::Relaxed)?;
        }
        Ok(())
    }
}

/// Whether an index that moved from `old` to `new` has passed `event`.
fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
