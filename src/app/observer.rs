//! Looks at bdevs and caches now and then, on a control thread, and notes what has changed: the hot path
//! tells nobody anything.

use super::bdevs::Kind;
use super::grown::bdev_resized;
use super::notices::{Happening, Notices};
use super::service::Service;
use super::shared::Shared;
use crate::bdev::BdevInfo;
use crate::cache::Cache;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// What of a cache is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CacheLook {
    state: &'static str,
    dirty_high: bool,
    bad_segments: u32,
    bad_bytes: u64,
    /// Its load had something to replay. Never changes.
    replayed: bool,
}

impl CacheLook {
    fn at(cache: &Cache) -> Self {
        let status = cache.status();
        Self {
            state: status.state,
            dirty_high: cache.is_dirty_high(),
            bad_segments: status.segments_bad,
            bad_bytes: cache.bad_bytes(),
            replayed: cache.replay_report().ksets > 0,
        }
    }

    fn is_serving(self) -> bool {
        !matches!(self.state, "degraded" | "read_only" | "stopped")
    }

    /// What is new since `old`, which is none for one that was not there.
    fn note_changes(self, old: Option<Self>, name: &str, notices: &Notices) {
        if old.is_none_or(|old| old.state != self.state) {
            notices.note(Happening::PmcacheState, format!("{name} {}", self.state));
        }
        let recovered = match old {
            Some(old) => !old.is_serving(),
            None => self.replayed,
        };
        if recovered && self.is_serving() {
            notices.note(Happening::PmcacheRecovered, name);
        }
        if self.dirty_high && !old.is_some_and(|old| old.dirty_high) {
            notices.note(Happening::PmcacheDirtyHigh, name);
        }
        // What was bad when it was loaded is news too.
        let (segments, bytes) = old.map_or((0, 0), |old| (old.bad_segments, old.bad_bytes));
        if self.bad_segments > segments || self.bad_bytes > bytes {
            notices.note(Happening::MediaError, name);
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    bytes: BTreeMap<String, u64>,
    caches: BTreeMap<String, CacheLook>,
}

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Observer(Shared<Seen>);

impl Observer {
    /// Has caches follow a namespace that has grown: its controller has said so, and so its operator meant
    /// it. At each look, since a cache may have been busy, or not there, at the last one.
    fn follow(&self, service: &Service, info: &BdevInfo) {
        let Err(error) = bdev_resized(service, &info.name) else {
            return;
        };
        let known = self.0.with(|seen| seen.bytes.get(&info.name).copied());
        if known != Some(info.bytes()) {
            let bdev = &info.name;
            tracing::warn!(bdev, "a cache does not follow its size: {error}");
        }
    }

    /// Looks, and notes what has changed since the last look.
    pub(super) fn look(&self, service: &Service) {
        service.nvmf.look(&service.notices);
        let mut now = Seen::default();
        for entry in service.bdevs.list() {
            let info = entry.bdev.info();
            now.bytes.insert(info.name.clone(), info.bytes());
            if matches!(entry.kind, Kind::Nvme(_)) {
                self.follow(service, &info);
            }
            if let Kind::Cache(cache) = &entry.kind {
                now.caches.insert(info.name.clone(), CacheLook::at(cache));
            }
        }
        self.0.with(|seen| {
            for (name, bytes) in &now.bytes {
                if seen.bytes.get(name).is_some_and(|old| old != bytes) {
                    service.notices.note(Happening::BdevResize, name);
                }
            }
            for (name, look) in &now.caches {
                look.note_changes(seen.caches.get(name).copied(), name, &service.notices);
            }
            *seen = now;
        });
    }
}

/// The thread that looks; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to look.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub(super) fn start(service: Arc<Service>) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("observer".to_owned())
            .spawn(move || {
                while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                    service.observer.look(&service);
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the observer panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: CacheLook = CacheLook {
        state: "running",
        dirty_high: false,
        bad_segments: 0,
        bad_bytes: 0,
        replayed: false,
    };

    fn noted(old: Option<CacheLook>, new: CacheLook) -> Vec<(Happening, String)> {
        let notices = Notices::default();
        new.note_changes(old, "c0", &notices);
        let all = notices.since(0, u64::MAX).into_iter();
        all.map(|notice| (notice.happening, notice.ctx)).collect()
    }

    #[test]
    fn what_changes_is_noted_once() {
        let told = |happening, ctx: &str| (happening, ctx.to_owned());
        let running = told(Happening::PmcacheState, "c0 running");
        assert_eq!(noted(None, CALM), vec![running.clone()]);
        assert_eq!(noted(Some(CALM), CALM), []);
        let replayed = CacheLook {
            replayed: true,
            ..CALM
        };
        let recovered = told(Happening::PmcacheRecovered, "c0");
        assert_eq!(noted(None, replayed), [running.clone(), recovered.clone()]);
        assert_eq!(noted(Some(replayed), replayed), []);

        let state = "degraded";
        let bad = CacheLook {
            state,
            bad_segments: 1,
            ..CALM
        };
        let degraded = told(Happening::PmcacheState, "c0 degraded");
        let media = told(Happening::MediaError, "c0");
        assert_eq!(noted(Some(CALM), bad), [degraded, media.clone()]);
        assert_eq!(noted(Some(bad), bad), []);
        let healed = CacheLook {
            bad_segments: 1,
            ..CALM
        };
        assert_eq!(noted(Some(bad), healed), [running, recovered]);
        let more = CacheLook {
            bad_bytes: 512,
            ..healed
        };
        assert_eq!(noted(Some(healed), more), [media]);

        let high = CacheLook {
            dirty_high: true,
            ..CALM
        };
        assert_eq!(
            noted(Some(CALM), high),
            [told(Happening::PmcacheDirtyHigh, "c0")]
        );
        assert_eq!(noted(Some(high), high), []);
        assert_eq!(noted(Some(high), CALM), []);
    }
}
