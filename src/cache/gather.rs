//! Collects a writeback window from the log.

use super::CacheError;
use super::fault::{self, Fault};
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop};
use super::shared::LogPos;
use super::window::Window;

/// What kind of window is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowWish {
    /// No kset above this sequence.
    pub(crate) limit: u64,
    /// About so many keys …
    pub(crate) keys_max: usize,
    /// … and dirty bytes.
    pub(crate) bytes_max: u64,
    /// It may span flush epochs …
    pub(crate) may_span: bool,
    /// … and must then end where one ends.
    pub(crate) ends_on_boundary: bool,
}

/// A window that is being collected: in parts, so that whoever does it can look after other things
/// between them.
#[derive(Debug)]
pub(crate) struct Gathering {
    begin: (LogPos, u64),
    wish: WindowWish,
    window: Window,
    /// Epoch of the last kset, and how many there have been.
    epoch: Option<u64>,
    epochs: u32,
    /// Sequence at which the last epoch of the window begins, if it is not the first.
    border: Option<u64>,
}

impl Gathering {
    /// Begins where `reader` stands.
    pub(crate) fn new(reader: &LogReader, wish: WindowWish) -> Self {
        Self {
            begin: reader.mark(),
            wish,
            window: Window::default(),
            epoch: None,
            epochs: 0,
            border: None,
        }
    }

    /// Collects about `keys` more keys; true once the window has all of its own. `reader` stands behind
    /// them then.
    ///
    /// # Errors
    /// A kset that must be there and is not, with its position; only for the first of the window.
    pub(crate) fn collect(
        &mut self,
        view: &LogView,
        incarnations: &Incarnations,
        reader: &mut LogReader,
        keys: usize,
    ) -> Result<bool, CacheError> {
        let enough = self.window.keys().saturating_add(keys);
        while self.add_kset(view, incarnations, reader)? {
            if self.window.keys() >= enough {
                return Ok(false);
            }
        }
        if self.wish.ends_on_boundary
            && let Some(border) = self.border
        {
            // The last epoch may go on behind the window: leave it to the next one.
            let whole = WindowWish {
                limit: border - 1,
                keys_max: usize::MAX,
                bytes_max: u64::MAX,
                ends_on_boundary: false,
                ..self.wish
            };
            reader.return_to(self.begin);
            *self = Self::new(reader, whole);
            return self.collect(view, incarnations, reader, keys);
        }
        self.window.end = reader.pos;
        Ok(true)
    }

    /// Adds the next kset; false if the window ends before it.
    fn add_kset(
        &mut self,
        view: &LogView,
        incarnations: &Incarnations,
        reader: &mut LogReader,
    ) -> Result<bool, CacheError> {
        let wish = &self.wish;
        if reader.pos.sequence > wish.limit || self.window.is_full(wish.keys_max, wish.bytes_max) {
            return Ok(false);
        }
        let before = reader.mark();
        let kset = match reader.next(view, incarnations) {
            Ok(Entry::Kset(kset)) => kset,
            Ok(Entry::Last { .. }) => return Ok(true),
            Err(stop) => {
                reader.return_to(before);
                if before.0.sequence > self.begin.0.sequence {
                    // What can be read makes a window of its own.
                    return Ok(false);
                }
                return Err(match stop {
                    Stop::NotThere(damage) => view.damaged(&before.0, damage),
                    Stop::Error(error) => error,
                });
            }
        };
        let ignored = self.epoch.is_some() && fault::injected(Fault::EpochsIgnored);
        if self.epoch != Some(kset.header.epoch) && !ignored {
            if self.epoch.is_some() {
                if !wish.may_span {
                    reader.return_to(before);
                    return Ok(false);
                }
                self.border = Some(before.0.sequence);
            }
            self.epochs += 1;
            self.epoch = Some(kset.header.epoch);
        }
        for key in kset.keys {
            self.window.add(view, key, kset.header.sequence);
        }
        if self.window.ksets == 0 {
            self.window.first_sequence = kset.header.sequence;
        }
        self.window.ksets += 1;
        Ok(true)
    }

    /// What has been collected, and whether it spans epochs; nothing if there was nothing within the
    /// limit.
    pub(crate) fn finish(self) -> Option<(Window, bool)> {
        let any = self.window.end.sequence > self.begin.0.sequence;
        any.then_some((self.window, self.epochs > 1))
    }
}
