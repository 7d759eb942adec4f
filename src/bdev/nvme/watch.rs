//! The descriptor for which a sleeping reactor wakes, of one who waits for one at a time.

use reactors::{Cx, Interest};
use std::os::fd::RawFd;

/// What is watched now.
#[derive(Debug, Default)]
pub(super) struct Watched(Option<(RawFd, Interest)>);

impl Watched {
    /// Watches what is `wanted` and nothing else.
    pub(super) fn set(&mut self, cx: &Cx, wanted: Option<(RawFd, Interest)>) {
        if self.0 == wanted {
            return;
        }
        if let Some((fd, _)) = self.0
            && wanted.is_none_or(|(new, _)| new != fd)
        {
            cx.unwatch(fd);
        }
        if let Some((fd, interest)) = wanted {
            cx.watch_for(fd, interest);
        }
        self.0 = wanted;
    }
}
