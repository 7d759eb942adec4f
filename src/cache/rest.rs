//! The end of a group: it gives up what waits, comes to rest, and leaves its reactor; not before its last
//! write to the backing has ended.

use super::backing_flush::FLUSH_TAG;
use super::close::Cause;
use super::group::{Group, GroupCell};
use super::lane::Lane;
use super::pool::Pool;
use reactors::{Cx, PollerId};
use std::sync::Arc;

impl Group {
    /// Closes what is open and gives up what waits, for good; see [`Group::comes_to_rest`].
    pub(crate) fn begin_stop(&mut self, cx: &Cx) {
        self.env.stopping = true;
        if self.env.has_backing_pending() {
            self.env.cancel_backing(cx);
        }
        for lane in &mut self.lanes {
            lane.cancel(&mut self.env, None);
            lane.close(&mut self.env, cx, Cause::Pressure);
        }
        self.leave_queues();
    }

    /// Whether it has come to rest since it was asked last: every key is in a durable kset, and the
    /// backing has nothing of it. The staging slots are empty then. Says so once.
    pub(crate) fn comes_to_rest(&mut self, cx: &Cx) -> bool {
        if self.rested || !self.env.stopping || self.env.has_backing_pending() {
            return false;
        }
        let at_rest = self.lanes.iter().all(Lane::is_at_rest);
        if !at_rest || !self.has_flushed_backing(cx) {
            return false;
        }
        self.rested = true;
        for lane in &mut self.lanes {
            lane.staging.clear();
        }
        true
    }

    /// Ends the group of the cache instance `key`: its poller and reactor-local entries go. If writes to
    /// the backing are under way it stays until they have ended: the cache can't be loaded before, since
    /// one that completed late would put old data over new.
    pub(crate) fn leave(key: u64, pool: Arc<Pool>, cx: &Cx) {
        if let Some(cell) = cx.local::<GroupCell>(key) {
            let group = &mut *cell.0.borrow_mut();
            if group.env.bypass_writes > 0 {
                group.env.shared.bypassed.hold_gate();
                group.leaving = Some(pool);
                return;
            }
        }
        Self::uninstall(key, cx);
    }

    fn uninstall(key: u64, cx: &Cx) {
        if let Some(id) = cx.local::<PollerId>(key) {
            cx.remove_poller(*id);
        }
        cx.remove_local::<PollerId>(key);
        cx.remove_local::<GroupCell>(key);
    }

    /// While it leaves it only waits for the backing; true if so.
    pub(super) fn is_leaving(&mut self, cx: &Cx) -> bool {
        let Some(pool) = &self.leaving else {
            return false;
        };
        if self.env.bypass_writes > 0 {
            return true;
        }
        let shared = &self.env.shared;
        if shared.bypassed.leave_gate() {
            pool.note_unloaded(shared.uuid);
        }
        self.leaving = None;
        Self::uninstall(shared.instance, cx);
        true
    }

    /// Takes what the backing has ended.
    pub(super) fn poll_backing(&mut self, cx: &Cx) -> u32 {
        if !self.env.has_backing_pending() {
            return 0;
        }
        let mut done = std::mem::take(&mut self.completions);
        self.env.poll_backing(cx, &mut done);
        let handled = u32::try_from(done.len()).unwrap_or(u32::MAX);
        for completion in done.drain(..) {
            if completion.tag == FLUSH_TAG {
                self.backing_flush_done(cx, completion.status);
                continue;
            }
            let (number, slot, bypasses) = super::group::Env::told_by(completion.tag);
            let index = number / self.env.shared.runtime.data.len();
            let Some(lane) = self.lanes.get_mut(index) else {
                continue;
            };
            let (status, data) = (completion.status, completion.data);
            if bypasses {
                self.env.bypass_writes -= 1;
                lane.bypass_done(&mut self.env, cx, slot, status, data);
            } else {
                lane.miss_done(&mut self.env, cx, slot, status, data);
            }
        }
        self.completions = done;
        handled
    }
}
