//! The next window, gathered and verified while the current one is written, so that the backing does
//! not rest between them. In small parts: what the backing completes meanwhile is reaped soon.
//!
//! Nothing of it is written, or made durable, before the dirty tail has passed the current window. It
//! holds no key of that, and elides none. It is given up when the current one has to be collected
//! anew, and when it is not what would be gathered now; damaged data are left to the usual way.

use super::super::gather::Gathering;
use super::super::shared::LogPos;
use super::super::window::Window;
use super::{State, Writeback};
use reactors::Nanos;

/// Keys that are collected or verified at once.
const KEYS_AT_ONCE: usize = 16;

/// A window that is not the current one yet.
#[derive(Debug)]
pub(in crate::cache) struct Made {
    /// Reader's marks at its begin and behind it.
    begin: (LogPos, u64),
    end: (LogPos, u64),
    window: Window,
    spans: bool,
}

/// How far the next window is.
#[derive(Debug)]
pub(in crate::cache) enum Ahead {
    None,
    Collecting((LogPos, u64), Gathering),
    Verifying(Made),
    Ready(Made),
    /// It is nothing for this way.
    Refused,
}

impl Writeback {
    /// Whether the next window can be gathered while the backing is busy.
    fn may_go_ahead(&self) -> bool {
        matches!(
            self.state,
            State::Write { .. } | State::Flush | State::Tail(_)
        )
    }

    /// Whether it is being gathered.
    pub(super) fn is_going_ahead(&self) -> bool {
        let under_way = matches!(self.ahead, Ahead::Collecting(..) | Ahead::Verifying(_));
        under_way && self.may_go_ahead()
    }

    /// Goes on with the next window. Only while somebody suffers if writeback takes its time: else its
    /// keys can as well grow older, and be overwritten.
    pub(super) fn go_ahead(&mut self, now: Nanos) -> u32 {
        if !self.may_go_ahead() {
            return 0;
        }
        if matches!(self.ahead, Ahead::None) && self.is_pressed() {
            return self.begin_ahead(now);
        }
        u32::from(self.advance_ahead(KEYS_AT_ONCE))
    }

    fn begin_ahead(&mut self, now: Nanos) -> u32 {
        let begin = self.seed.reader.mark();
        let at = begin.0.sequence;
        let wish = self.wish_from(at, now);
        if at > wish.limit || self.lost.iter().any(|lost| lost.has(at)) {
            return 0;
        }
        self.end_epoch();
        self.ahead_reader.return_to(begin);
        self.ahead = Ahead::Collecting(begin, Gathering::new(&self.ahead_reader, wish));
        1
    }

    /// Collects or verifies up to about `keys` keys; false if there is nothing left to do.
    fn advance_ahead(&mut self, keys: usize) -> bool {
        let (seed, reader) = (&self.seed, &mut self.ahead_reader);
        self.ahead = match std::mem::replace(&mut self.ahead, Ahead::None) {
            Ahead::Collecting(begin, mut gathering) => {
                match gathering.collect(&seed.view, &seed.incarnations, reader, keys) {
                    Ok(false) => Ahead::Collecting(begin, gathering),
                    Ok(true) => match gathering.finish() {
                        Some((window, spans)) => Ahead::Verifying(Made {
                            begin,
                            end: reader.mark(),
                            window,
                            spans,
                        }),
                        None => Ahead::Refused,
                    },
                    Err(_) => Ahead::Refused,
                }
            }
            Ahead::Verifying(mut made) => {
                let (data_crc, bytes) = (seed.shared.data_crc, &mut self.data_bytes);
                if !made.window.verify(&seed.view, data_crc, keys, bytes) {
                    Ahead::Verifying(made)
                } else if made.window.seal().is_empty() {
                    Ahead::Ready(made)
                } else {
                    Ahead::Refused
                }
            }
            other => {
                self.ahead = other;
                return false;
            }
        };
        true
    }

    /// Makes it the current window if it is what would be gathered now; says whether it spans epochs.
    pub(super) fn take_ahead(&mut self, now: Nanos) -> Option<bool> {
        while self.advance_ahead(usize::MAX) {}
        let Ahead::Ready(made) = std::mem::replace(&mut self.ahead, Ahead::None) else {
            return None;
        };
        let begin = self.seed.reader.mark();
        let wish = self.wish_from(begin.0.sequence, now);
        let fits = made.begin == begin
            && made.window.end.sequence <= wish.limit + 1
            && (wish.may_span || !made.spans);
        if !fits {
            return None;
        }
        self.seed.stats.windows_ahead.add(1);
        self.begun = begin;
        self.seed.reader.return_to(made.end);
        self.damages.clear();
        self.window = made.window;
        Some(made.spans)
    }
}
