//! What writeback does about dirty data that can't be read: a window that would hold such data ends
//! before their kset, which then makes a window of its own. Its lane is told to log BAD keys, and the
//! window goes on when these are durable.

use super::CacheError;
use super::bad::Answers;
use super::gather::{Gathering, WindowWish};
use super::log_damage::is_damage;
use super::window::{Damage, Window};
use super::writeback::{Ahead, State, Writeback};
use crate::bdev::PmemError;
use reactors::Nanos;
use std::sync::atomic::Ordering;

impl Writeback {
    /// Collects a window from the log; says whether it spans epochs. `Ok(None)`: there is nothing to
    /// write back. If the window has damages it consists of one kset.
    pub(super) fn gather(&mut self, now: Nanos) -> Result<Option<bool>, CacheError> {
        self.begun = self.seed.reader.mark();
        if self.pass_lost() {
            return Ok(Some(true));
        }
        let mut wish = self.wish_from(self.begun.0.sequence, now);
        loop {
            let seed = &mut self.seed;
            let mut gathering = Gathering::new(&seed.reader, wish);
            gathering.collect(&seed.view, &seed.incarnations, &mut seed.reader, usize::MAX)?;
            let Some((mut window, spans)) = gathering.finish() else {
                return Ok(None);
            };
            let data_crc = seed.shared.data_crc;
            window.verify(&seed.view, data_crc, usize::MAX, &mut self.data_bytes);
            self.damages = window.seal();
            let Some(first) = self.damages.first().map(|damage| damage.sequence) else {
                self.window = window;
                return Ok(Some(spans));
            };
            if window.ksets == 1 {
                self.window = window;
                return Ok(Some(false));
            }
            self.seed.reader.return_to(self.begun);
            // The keys of a kset are of one lane, and few enough for the log's reserve.
            let alone = first == window.first_sequence;
            wish = WindowWish {
                limit: if alone { first } else { first - 1 },
                may_span: false,
                ..wish
            };
        }
    }

    /// What a window from sequence `at` on shall be: it ends before what can't be read.
    pub(super) fn wish_from(&self, at: u64, now: Nanos) -> WindowWish {
        let mut wish = self.wish(now);
        if let Some(lost) = self
            .lost
            .iter()
            .map(|lost| lost.from)
            .find(|&from| from > at)
        {
            wish.limit = wish.limit.min(lost - 1);
        }
        wish
    }

    /// Makes a window of nothing but a stretch that can't be read, if one begins here. Its keys have
    /// been logged again, behind what came after them: until those are written back the backing is
    /// between flush boundaries.
    fn pass_lost(&mut self) -> bool {
        let at = self.begun.0.sequence;
        self.lost.retain(|lost| lost.to.0.sequence > at);
        let Some(lost) = self.lost.iter().find(|lost| lost.has(at)) else {
            return false;
        };
        self.seed.reader.return_to(lost.to);
        self.damages.clear();
        self.window = Window::empty(lost.to.0);
        self.seed.window_end = self.seed.window_end.max(lost.settled + 1);
        true
    }

    /// The log can't be read on here: GC finds out what was lost, and has it logged again.
    pub(super) fn ask_about_lost(&mut self, error: &CacheError) {
        let shared = self.seed.shared.clone();
        if !is_damage(error) || !shared.maintenance.lost.ask() {
            return self.halt(error);
        }
        self.window = Window::default();
        self.ahead = Ahead::None;
        self.state = State::Lost;
        shared.maintenance.degraded.store(true, Ordering::SeqCst);
        shared.kick_gc();
    }

    /// While GC does so.
    pub(super) fn follow_lost(&mut self, now: Nanos) -> u32 {
        match self.seed.shared.maintenance.lost.answer() {
            Err(()) => self.halt(&CacheError::Busy("GC has stopped on damage".into())),
            Ok(None) => return 0,
            Ok(Some(lost)) => {
                for lost in &lost {
                    self.flush_all.extend(lost.settled);
                }
                self.lost.extend(lost);
                self.lost.sort_by_key(|lost| lost.from);
                self.state = State::Idle(now);
            }
        }
        1
    }

    /// Tells the lane of the window's kset which data are lost.
    pub(super) fn report_damages(&mut self) {
        let shared = self.seed.shared.clone();
        for Damage { error, post, .. } in &self.damages {
            let stats = &self.seed.stats;
            if matches!(error, CacheError::Medium(_)) {
                stats.unreadable.add(1);
                shared.suspect(post.ident.segment);
            } else {
                stats.crc_errors.add(1);
            }
            tracing::error!(
                cache = %shared.name, range = %post.range, %error,
                "dirty data are lost: unless newer ones replace them, reads fail until they are \
                 overwritten"
            );
        }
        let answers = Answers::default();
        let posts = self.damages.drain(..).map(|damage| damage.post);
        self.outbox.send(&shared, posts, Some(&answers));
        self.state = State::Bad(answers);
    }

    /// While a lane logs BAD keys: the window goes on when they are durable.
    pub(super) fn follow_damages(&mut self) -> u32 {
        self.outbox.pump(&self.seed.shared);
        let answered = matches!(&self.state, State::Bad(answers) if answers.are_in());
        if answered {
            self.begin_writes();
        } else if self.seed.shared.has_failed() {
            // Nothing becomes durable any more.
            self.halt(&CacheError::Busy("the pool is read-only".into()));
        }
        u32::from(answered)
    }

    /// The medium has lost data of this window since they were verified. All of it is issued again,
    /// but collected anew before.
    pub(super) fn note_lost(&self, error: &PmemError) {
        let cache = &self.seed.shared.name;
        tracing::error!(cache = %cache, %error, "data were lost while they were written back");
    }

    /// Before all writes of a window are issued again: if its data can't be read any more, that may be
    /// why they failed, and the window is collected anew.
    pub(super) fn is_window_lost(&mut self) -> bool {
        if self
            .window
            .is_whole(&self.seed.view, self.seed.shared.data_crc)
        {
            return false;
        }
        self.window = Window::default();
        self.ahead = Ahead::None;
        self.seed.reader.return_to(self.begun);
        true
    }
}
