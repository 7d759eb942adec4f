//! The commands of a qpair that are under way.

use super::io::What;
use super::range_lock::{Hold, Member, WriteMark};
use crate::bdev::{IoBuf, IoStatus};
use crate::units::ByteRange;
use crate::wire::nvme::Sqe;

/// What a command under way waits for.
#[derive(Debug)]
pub(super) enum Stage {
    /// Memory for so many bytes.
    Parked(usize, Wants),
    /// Data from the host, of which so many bytes have come; no buffer while the receiver has it.
    Receiving(Option<IoBuf>, usize),
    /// The data of the other half of its fused operation; its own are here.
    Paired(IoBuf),
    /// Its bdev.
    Io(Job),
    /// An event, another try, the other half of its fused operation, or its range.
    Waiting,
}

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// For data that the host shall send.
    HostData,
    /// For data that the bdev reads.
    BdevData,
}

/// What a bdev does for a command.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) what: What,
    pub(super) parts_left: u32,
    pub(super) status: IoStatus,
    /// The host's data, to be compared.
    pub(super) host: Option<IoBuf>,
    /// What it may change.
    pub(super) range: ByteRange,
    /// It may change that, and holds nothing.
    pub(super) mark: Option<WriteMark>,
    /// What it holds.
    pub(super) locked: Option<Box<Locked>>,
}

/// A range that a command holds, and what comes next there.
#[derive(Debug)]
pub(super) struct Locked {
    pub(super) hold: Hold,
    /// The write that follows if the data are equal: its slot and its data.
    pub(super) write: Option<(u16, IoBuf)>,
}

/// The other half of a fused operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partner {
    pub(super) slot: u16,
    /// Whether it is the first, and this one the second.
    pub(super) is_first: bool,
    /// The partner has failed.
    pub(super) has_failed: bool,
}

/// A command under way.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) sqe: Sqe,
    pub(super) stage: Stage,
    /// Bytes of its buffers.
    pub(super) held_bytes: usize,
    /// Some of its data were damaged on their way.
    pub(super) spoilt: bool,
    /// If it is half of a fused operation.
    pub(super) partner: Option<Partner>,
}

impl Slot {
    pub(super) fn new(sqe: Sqe, held_bytes: usize) -> Self {
        Self {
            sqe,
            stage: Stage::Waiting,
            held_bytes,
            spoilt: false,
            partner: None,
        }
    }

    /// Bytes that the host's data are to fill, and other bytes.
    fn bytes(&self) -> (usize, usize) {
        match self.stage {
            Stage::Receiving(..) => (self.held_bytes, 0),
            _ => (0, self.held_bytes),
        }
    }
}

/// All of them; a command's index is the tag of its I/O and of its R2T.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    /// Bytes of buffers that the host's data are to fill …
    receiving_bytes: usize,
    /// … and of all others.
    held_bytes: usize,
}

impl Slots {
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of buffers that go on without the host's doing anything.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Bytes of all buffers.
    pub(super) fn all_bytes(&self) -> usize {
        self.held_bytes + self.receiving_bytes
    }

    fn add(&mut self, (receiving, held): (usize, usize)) {
        self.receiving_bytes += receiving;
        self.held_bytes += held;
    }

    fn take_off(&mut self, (receiving, held): (usize, usize)) {
        self.receiving_bytes -= receiving;
        self.held_bytes -= held;
    }

    /// Enters a command. A queue has at most 4096 entries, so that indices are short.
    pub(super) fn insert(&mut self, slot: Slot) -> u16 {
        self.add(slot.bytes());
        if let Some(index) = self.free.pop() {
            if let Some(place) = self.slots.get_mut(usize::from(index)) {
                *place = Some(slot);
            }
            return index;
        }
        self.slots.push(Some(slot));
        u16::try_from(self.slots.len() - 1).unwrap_or(u16::MAX)
    }

    pub(super) fn get(&self, index: u16) -> Option<&Slot> {
        self.slots.get(usize::from(index))?.as_ref()
    }

    /// Changes a command; nothing if there is none.
    pub(super) fn update<R>(&mut self, index: u16, f: impl FnOnce(&mut Slot) -> R) -> Option<R> {
        let slot = self.slots.get_mut(usize::from(index))?.as_mut()?;
        let before = slot.bytes();
        let result = f(slot);
        let after = slot.bytes();
        self.take_off(before);
        self.add(after);
        Some(result)
    }

    pub(super) fn remove(&mut self, index: u16) -> Option<Slot> {
        let slot = self.slots.get_mut(usize::from(index))?.take()?;
        self.take_off(slot.bytes());
        self.free.push(index);
        Some(slot)
    }

    /// Whether a write of `member` is under way in `range`.
    pub(super) fn has_write_in(&self, member: &Member, range: ByteRange) -> bool {
        let is_there = |slot: &Slot| match &slot.stage {
            Stage::Io(job) => {
                let is_its = job.mark.as_ref().is_some_and(|mark| mark.is_of(member));
                is_its && job.range.overlaps(range)
            }
            _ => false,
        };
        self.slots.iter().flatten().any(is_there)
    }

    /// The command that is called `cid`.
    pub(super) fn find(&self, cid: u16) -> Option<u16> {
        let is_it = |slot: &Option<Slot>| slot.as_ref().is_some_and(|s| s.sqe.cid.get() == cid);
        let at = self.slots.iter().position(is_it)?;
        u16::try_from(at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_by_who_has_to_act() {
        let mut slots = Slots::default();
        let slot = |cid, stage, held_bytes| Slot {
            stage,
            ..Slot::new(Sqe::new(1, cid, 1), held_bytes)
        };
        let first = slots.insert(slot(7, Stage::Receiving(None, 0), 100));
        let second = slots.insert(slot(8, Stage::Waiting, 10));
        assert_eq!((slots.held_bytes(), slots.all_bytes()), (10, 110));
        assert_eq!((slots.find(8), slots.find(9)), (Some(second), None));
        slots.update(first, |slot| slot.stage = Stage::Waiting);
        assert_eq!((slots.held_bytes(), slots.all_bytes()), (110, 110));
        assert!(slots.remove(first).is_some() && slots.remove(first).is_none());
        assert_eq!((slots.count(), slots.all_bytes()), (1, 10));
        assert_eq!(slots.insert(slot(9, Stage::Waiting, 0)), first);
    }
}
