//! Collects a writeback window from the log.

use super::CacheError;
use super::fault::{self, Fault};
use super::log_reader::{Entry, Incarnations, LogReader, LogView, Stop};
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

struct Collected {
    window: Window,
    epochs: u32,
    /// Sequence at which the last epoch of the window begins, if it is not the first.
    border: Option<u64>,
}

fn collect(
    view: &LogView,
    incarnations: &Incarnations,
    reader: &mut LogReader,
    wish: &WindowWish,
) -> Result<Collected, CacheError> {
    let mut collected = Collected {
        window: Window::default(),
        epochs: 0,
        border: None,
    };
    let mut epoch = None;
    let begin = reader.pos.sequence;
    while reader.pos.sequence <= wish.limit
        && !collected.window.is_full(wish.keys_max, wish.bytes_max)
    {
        let before = reader.mark();
        let kset = match reader.next(view, incarnations) {
            Ok(Entry::Kset(kset)) => kset,
            Ok(Entry::Last { .. }) => continue,
            Err(stop) => {
                reader.return_to(before);
                if before.0.sequence > begin {
                    // What can be read makes a window of its own.
                    break;
                }
                return Err(match stop {
                    Stop::NotThere(damage) => view.damaged(&before.0, damage),
                    Stop::Error(error) => error,
                });
            }
        };
        let ignored = epoch.is_some() && fault::injected(Fault::EpochsIgnored);
        if epoch != Some(kset.header.epoch) && !ignored {
            if epoch.is_some() {
                if !wish.may_span {
                    reader.return_to(before);
                    break;
                }
                collected.border = Some(before.0.sequence);
            }
            collected.epochs += 1;
            epoch = Some(kset.header.epoch);
        }
        for key in kset.keys {
            collected.window.add(view, key, kset.header.sequence);
        }
        if collected.window.ksets == 0 {
            collected.window.first_sequence = kset.header.sequence;
        }
        collected.window.ksets += 1;
    }
    collected.window.end = reader.pos;
    Ok(collected)
}

/// Collects a window from where `reader` stands, which then stands behind it, and says whether it
/// spans epochs. `Ok(None)`: there is nothing within the limit.
///
/// # Errors
/// A kset that must be there and is not, with its position.
pub(crate) fn gather(
    view: &LogView,
    incarnations: &Incarnations,
    reader: &mut LogReader,
    wish: &WindowWish,
) -> Result<Option<(Window, bool)>, CacheError> {
    let begin = reader.mark();
    let mut collected = collect(view, incarnations, reader, wish)?;
    if wish.ends_on_boundary
        && let Some(border) = collected.border
    {
        // The last epoch may go on behind the window: leave it to the next one.
        reader.return_to(begin);
        let whole = WindowWish {
            limit: border - 1,
            keys_max: usize::MAX,
            bytes_max: u64::MAX,
            ..*wish
        };
        collected = collect(view, incarnations, reader, &whole)?;
    }
    if reader.pos.sequence == begin.0.sequence {
        return Ok(None);
    }
    Ok(Some((collected.window, collected.epochs > 1)))
}
