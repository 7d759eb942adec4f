//! What has happened to the service's objects, for whoever asks: the last thousand events, numbered.

use super::shared::Shared;
use serde::Serialize;
use std::collections::VecDeque;

/// Events that are kept; as many as SPDK does.
const NOTICES_MAX: usize = 1024;

/// What may happen; the text is what clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Happening {
    /// A bdev is there.
    BdevRegister,
    /// A bdev has gone.
    BdevUnregister,
    /// A bdev has another size.
    BdevResize,
    /// A cache has another state.
    PmcacheState,
    /// A cache's dirty bytes have passed `dirty_high_percent`.
    PmcacheDirtyHigh,
    /// A cache serves again after it was degraded, or after a load that had a log to replay.
    PmcacheRecovered,
    /// A medium or a backing gave an error that data were lost to.
    MediaError,
    /// A host has connected to an NVMe-oF subsystem.
    NvmfHostConnect,
    /// A host has left.
    NvmfHostDisconnect,
}

impl Happening {
    /// All of them, in the order in which they are told.
    pub(super) const ALL: [Self; 9] = [
        Self::BdevRegister,
        Self::BdevUnregister,
        Self::BdevResize,
        Self::PmcacheState,
        Self::PmcacheDirtyHigh,
        Self::PmcacheRecovered,
        Self::MediaError,
        Self::NvmfHostConnect,
        Self::NvmfHostDisconnect,
    ];
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Notice {
    /// What happened.
    #[serde(rename = "type")]
    pub(super) happening: Happening,
    /// To whom: the object's name, and for a state the state after a blank.
    pub(super) ctx: String,
    /// Its number: events count from 0.
    pub(super) id: u64,
}

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    kept: VecDeque<Notice>,
}

/// The events.
#[derive(Debug, Default)]
pub(super) struct Notices(Shared<Ring>);

impl Notices {
    /// Notes that something has happened; the oldest event makes room.
    pub(super) fn note(&self, happening: Happening, ctx: impl Into<String>) {
        let ctx = ctx.into();
        self.0.with(|ring| {
            let id = ring.next;
            ring.next += 1;
            if ring.kept.len() == NOTICES_MAX {
                ring.kept.pop_front();
            }
            ring.kept.push_back(Notice { happening, ctx, id });
        });
    }

    /// At most `max` events from number `id` on, or from the oldest that is kept.
    pub(super) fn since(&self, id: u64, max: u64) -> Vec<Notice> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        self.0.with(|ring| {
            let from = ring.kept.partition_point(|notice| notice.id < id);
            ring.kept.iter().skip(from).take(max).cloned().collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room_and_numbers_go_on() {
        let notices = Notices::default();
        assert!(notices.since(0, 10).is_empty());
        for number in 0..NOTICES_MAX + 5 {
            notices.note(Happening::BdevRegister, number.to_string());
        }
        let all = notices.since(0, u64::MAX);
        assert_eq!(all.len(), NOTICES_MAX);
        assert_eq!((all[0].id, &*all[0].ctx), (5, "5"));
        let some = notices.since(1000, 2);
        assert_eq!((some.len(), some[0].id), (2, 1000));
        assert!(notices.since(all[NOTICES_MAX - 1].id + 1, 9).is_empty());
        assert!(notices.since(0, 0).is_empty());
    }

    #[test]
    fn types_are_told_as_scripts_know_them() {
        let told = serde_json::to_value(Happening::ALL).unwrap();
        assert_eq!(told[0], "bdev_register");
        assert_eq!(told[8], "nvmf_host_disconnect");
    }
}
