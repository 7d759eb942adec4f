//! Faults that can be built into the engine on purpose, to see that the crash tests notice them.
//!
//! Each breaks one rule of `docs/architecture.md`, at the place where the code keeps it, and does
//! nothing else. Without the feature `fault-injection`, [`injected`] is constant and the hooks are
//! compiled away; no release is built with it. A fault is injected per thread: a simulation runs on
//! one, and several may run side by side.

use super::shared::Shared;
use super::write::DataSpace;
use std::fmt;
use std::str::FromStr;
#[cfg(feature = "fault-injection")]
use std::sync::atomic::Ordering;

/// A rule of the engine that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A kset closes without a barrier over its data. Breaks: persist order is data, barrier, kset;
    /// a kset that survives a power cut may say where data would be that did not.
    MissingKsetFence,
    /// A kset counts as durable once it is stored. Breaks: the durable sequence follows the barrier
    /// behind the kset; FLUSH and FUA complete too early.
    MissingFlushFence,
    /// Whoever reads the log takes a kset with the right salt and a fitting incarnation whatever its
    /// sequence. Breaks: the next kset is the one with exactly the expected sequence; a leftover of a
    /// tail that a crash before the last one cut off comes back.
    SequenceUnchecked,
    /// A segment is handed out while its raised generation is not durable: it is stored behind the
    /// barrier that it should stand before. Breaks: a segment is used again only when its new
    /// generation is durable; after a power cut its new keys look stale.
    GenerationNotDurable,
    /// Writeback moves the dirty tail without flushing the backing. Breaks: no tail passes what is not
    /// durable; GC drops what the disk then loses.
    DirtyTailBeforeFlush,
    /// GC passes ksets up to the durable sequence. Breaks: the key tail stays behind the durable dirty
    /// tail; keys are dropped that the backing lacks.
    KeyTailPastDirtyTail,
    /// A miss fills its whole range. Breaks: a miss fills only what is left of its placeholder; a write
    /// that came meanwhile is overwritten by older data, in the index and in the log.
    FillOverWrite,
    /// The LAST of a log segment is stored behind the barrier that its kset counts by. Breaks: a kset
    /// is durable once all that leads to it is; replay ends at the missing LAST.
    LastNotDurable,
    /// Writeback takes no notice of epochs. Breaks: with `writeback_order = strict` a window lies
    /// within one epoch.
    EpochsIgnored,
    /// A key that is overwritten as a whole in the index gives its reference up. Breaks: references are
    /// the log's, not the index's; a segment is used again while replay and writeback need it.
    ReferenceDroppedOnOverwrite,
    /// Load empties the staging slots without reading them. Breaks: an acknowledged write survives the
    /// death of the process.
    StagingIgnored,
    /// Replay begins with whatever kset of the segment's salt stands at the key tail's place. Breaks: a
    /// tail says which sequence it expects.
    TailWithoutSequence,
    /// Whoever reads the log takes a kset of any incarnation. Breaks: a kset is of the incarnation that
    /// its sequence belongs to; leftovers of a tail that a crash cut off fit behind new ksets.
    IncarnationUnchecked,
    /// FLUSH closes open ksets and waits for these, and passes over lanes whose ksets are all closing.
    /// Breaks: FLUSH covers every key without a sequence, open or parked.
    FlushSkipsClosing,
    /// FUA completes when the kset of its own lane is durable. Breaks: acknowledgements follow the
    /// durable sequence only; replay stops at another lane's torn kset below.
    AckBeforeDurableSequence,
    /// FLUSH raises the epoch when it begins. Breaks: the epoch is raised after the last kset has its
    /// place; one epoch then holds writes from both sides of a flush.
    EpochRaisedEarly,
    /// A write whose extent ends a segment waits for the next segment before it makes the extent known,
    /// and has no reference to it meanwhile. Breaks: a request never waits while it holds an extent
    /// that is not in the index; GC hands the segment to somebody else.
    ExtentHeldWhileWaiting,
    /// A miss fills the placeholders of other misses too. Breaks: placeholders are matched by miss id;
    /// data from before a write come back for a range that has left the cache since.
    FillByAnotherMiss,
    /// Load goes on without a barrier over what it has read. Breaks: what is taken as truth is durable
    /// before a new run begins behind it.
    LoadWithoutBarrier,
    /// A failed barrier counts as if a second try had succeeded. Breaks: a failed barrier is final;
    /// what it was for is acknowledged and lost.
    FailedBarrierRetried,
    /// Load believes staged keys without a look at their data. Breaks: data that a failed barrier has
    /// lost become BAD; else what stood there before passes for them.
    StagedDataBelieved,
    /// A cache that shrinks gives back a segment that still holds data. Breaks: only what GC has drained
    /// leaves; whoever gets the segment writes over them.
    GivenBackUndrained,
    /// A cache that grows uses segments of which nothing durable says that they are its own. Breaks: infos
    /// are durable before the table counts the resize.
    GrownBeforeDurable,
    /// A load keeps the marks of a resize that was cut off. Breaks: what the table has not counted has not
    /// happened; with the next resize these segments are gone.
    LeavingMarkKept,
    /// A write bypasses the cache whatever older dirty keys of its range are not written back yet. Breaks:
    /// the durable dirty tail is past them first; writeback puts the older data over the newer.
    InvalidBeforeDirtyTail,
    /// A bypassing write goes to the backing while its INVALID, or its data in write-through, is on its way
    /// to the log. Breaks: what the cache would replay is durable first; a crash brings the older data
    /// back, until they are evicted.
    BackingBeforeInvalidDurable,
    /// Reads do not see that a write is on its way past the cache. Breaks: they keep nothing of its range;
    /// what the backing had before is cached.
    BypassWithoutPlaceholder,
    /// A miss that was in flight when a write bypassed the cache fills all the same. Breaks: it loses its
    /// right to; what the backing had before is cached.
    FillDespiteBypass,
    /// What bypassed the cache is cached as clean before the backing has flushed it. Breaks: a clean key
    /// is what the backing has; a power cut makes them two, and eviction shows it.
    AdmitBeforeFlush,
    /// FLUSH does not flush the backing behind bypassing writes. Breaks: what was flushed is durable.
    FlushSkipsBacking,
    /// A bypassing write that must be durable is not told to the backing as such. Breaks: FUA, and
    /// `durability = write`.
    DurableBypassWithoutFua,
    /// A flush of the backing that failed behind bypassing writes is tried again by the next FLUSH. Breaks:
    /// it can't be made good; the next one is acknowledged, and the data are lost.
    FailedBypassFlushForgotten,
    /// A load owes no flush for what bypassed the cache before the process died. Breaks: FLUSH covers
    /// what was acknowledged, by whichever process.
    OwedFlushForgotten,
    /// When a cache begins to be bypassed, nothing counts as dirty that is so from before. Breaks: no mode
    /// forgets dirty data; writeback puts them over what is newer.
    ModeSwitchForgetsDirty,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 34] = [
        Self::MissingKsetFence,
        Self::MissingFlushFence,
        Self::SequenceUnchecked,
        Self::GenerationNotDurable,
        Self::DirtyTailBeforeFlush,
        Self::KeyTailPastDirtyTail,
        Self::FillOverWrite,
        Self::LastNotDurable,
        Self::EpochsIgnored,
        Self::ReferenceDroppedOnOverwrite,
        Self::StagingIgnored,
        Self::TailWithoutSequence,
        Self::IncarnationUnchecked,
        Self::FlushSkipsClosing,
        Self::AckBeforeDurableSequence,
        Self::EpochRaisedEarly,
        Self::ExtentHeldWhileWaiting,
        Self::FillByAnotherMiss,
        Self::LoadWithoutBarrier,
        Self::FailedBarrierRetried,
        Self::StagedDataBelieved,
        Self::GivenBackUndrained,
        Self::GrownBeforeDurable,
        Self::LeavingMarkKept,
        Self::InvalidBeforeDirtyTail,
        Self::BackingBeforeInvalidDurable,
        Self::BypassWithoutPlaceholder,
        Self::FillDespiteBypass,
        Self::AdmitBeforeFlush,
        Self::FlushSkipsBacking,
        Self::DurableBypassWithoutFua,
        Self::FailedBypassFlushForgotten,
        Self::OwedFlushForgotten,
        Self::ModeSwitchForgetsDirty,
    ];

    /// What an operator calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MissingKsetFence => "missing-kset-fence",
            Self::MissingFlushFence => "missing-flush-fence",
            Self::SequenceUnchecked => "sequence-unchecked",
            Self::GenerationNotDurable => "generation-not-durable",
            Self::DirtyTailBeforeFlush => "dirty-tail-before-flush",
            Self::KeyTailPastDirtyTail => "key-tail-past-dirty-tail",
            Self::FillOverWrite => "fill-over-write",
            Self::LastNotDurable => "last-not-durable",
            Self::EpochsIgnored => "epochs-ignored",
            Self::ReferenceDroppedOnOverwrite => "reference-dropped-on-overwrite",
            Self::StagingIgnored => "staging-ignored",
            Self::TailWithoutSequence => "tail-without-sequence",
            Self::IncarnationUnchecked => "incarnation-unchecked",
            Self::FlushSkipsClosing => "flush-skips-closing",
            Self::AckBeforeDurableSequence => "ack-before-durable-sequence",
            Self::EpochRaisedEarly => "epoch-raised-early",
            Self::ExtentHeldWhileWaiting => "extent-held-while-waiting",
            Self::FillByAnotherMiss => "fill-by-another-miss",
            Self::LoadWithoutBarrier => "load-without-barrier",
            Self::FailedBarrierRetried => "failed-barrier-retried",
            Self::StagedDataBelieved => "staged-data-believed",
            Self::GivenBackUndrained => "given-back-undrained",
            Self::GrownBeforeDurable => "grown-before-durable",
            Self::LeavingMarkKept => "leaving-mark-kept",
            Self::InvalidBeforeDirtyTail => "invalid-before-dirty-tail",
            Self::BackingBeforeInvalidDurable => "backing-before-invalid-durable",
            Self::BypassWithoutPlaceholder => "bypass-without-placeholder",
            Self::FillDespiteBypass => "fill-despite-bypass",
            Self::AdmitBeforeFlush => "admit-clean-before-flush",
            Self::FlushSkipsBacking => "flush-skips-backing",
            Self::DurableBypassWithoutFua => "durable-bypass-without-fua",
            Self::FailedBypassFlushForgotten => "failed-bypass-flush-forgotten",
            Self::OwedFlushForgotten => "owed-flush-forgotten",
            Self::ModeSwitchForgetsDirty => "mode-switch-forgets-dirty",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No fault has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no fault is named {name:?}; there are {}", names())]
pub struct UnknownFault {
    /// What was asked for.
    pub name: String,
}

fn names() -> String {
    Fault::ALL.map(Fault::name).join(", ")
}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<Self, UnknownFault> {
        let found = Self::ALL.into_iter().find(|fault| fault.name() == name);
        found.ok_or_else(|| UnknownFault { name: name.into() })
    }
}

#[cfg(feature = "fault-injection")]
thread_local! {
    static INJECTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// From now on engines that run on this thread have this fault, or none.
#[cfg(feature = "fault-injection")]
pub fn inject(fault: Option<Fault>) {
    INJECTED.set(fault);
}

/// Whether the engine has this fault on this thread.
#[cfg(feature = "fault-injection")]
pub(crate) fn injected(fault: Fault) -> bool {
    INJECTED.get() == Some(fault)
}

/// Never, without the feature.
#[cfg(not(feature = "fault-injection"))]
pub(crate) const fn injected(_fault: Fault) -> bool {
    false
}

/// The extent that a waiting request holds under [`Fault::ExtentHeldWhileWaiting`]; without the
/// feature it is nothing, and takes no place.
#[derive(Debug, Default)]
pub(crate) struct Held(#[cfg(feature = "fault-injection")] Option<DataSpace>);

#[cfg(feature = "fault-injection")]
impl Held {
    /// Holds `space`, whose segment is sealed, and gives up its reference.
    pub(crate) fn put(&mut self, shared: &Shared, space: DataSpace) {
        shared.added[space.segment.index()].fetch_sub(1, Ordering::SeqCst);
        self.0 = Some(space);
    }

    /// Takes it out, with a reference if its segment still is what it was.
    pub(crate) fn take(&mut self, shared: &Shared) -> Option<DataSpace> {
        let space = self.0.take()?;
        if shared.is_current(space.segment, space.generation) {
            shared.added[space.segment.index()].fetch_add(1, Ordering::SeqCst);
        }
        Some(space)
    }
}

#[cfg(not(feature = "fault-injection"))]
impl Held {
    pub(crate) const fn put(&mut self, _shared: &Shared, _space: DataSpace) {}

    pub(crate) const fn take(&mut self, _shared: &Shared) -> Option<DataSpace> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_name() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        let mut names = Fault::ALL.map(Fault::name);
        names.sort_unstable();
        assert!(names.is_sorted_by(|a, b| a < b), "a name serves twice");
    }

    #[test]
    fn an_unknown_name_is_repeated_with_those_that_are_known() {
        let error = "no-such".parse::<Fault>().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("\"no-such\"") && text.contains("staging-ignored"),
            "{text}"
        );
    }

    #[cfg(feature = "fault-injection")]
    #[test]
    fn a_fault_is_injected_on_its_thread_only() {
        inject(Some(Fault::EpochsIgnored));
        assert!(injected(Fault::EpochsIgnored) && !injected(Fault::StagingIgnored));
        std::thread::spawn(|| assert!(!injected(Fault::EpochsIgnored)))
            .join()
            .unwrap();
        inject(None);
        assert!(!injected(Fault::EpochsIgnored));
    }
}
