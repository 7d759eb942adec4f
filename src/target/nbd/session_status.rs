//! The answer to `BLOCK_STATUS`, from the extents of the bdev.

use super::handshake::Contexts;
use crate::bdev::Extent;
use crate::wire::nbd::{StatusExtent, put_block_status};

/// Extents in one answer; a client asks again behind the last.
const EXTENTS_MAX: usize = 4096;

fn allocation_flags(extent: &Extent) -> u32 {
    u32::from(extent.hole) | (u32::from(extent.zero) << 1)
}

fn cache_flags(extent: &Extent) -> u32 {
    u32::from(extent.cached) | (u32::from(extent.dirty) << 1)
}

/// The extents as one context sees them: neighbours of one nature are one, and none leaves the
/// `asked` bytes. What the bdev left out is data of which nothing is known.
fn view(
    extents: &[Extent],
    asked: u32,
    count_max: usize,
    flags_of: fn(&Extent) -> u32,
) -> Vec<StatusExtent> {
    let unknown = Extent::allocated(u64::from(asked));
    let mut view: Vec<StatusExtent> = vec![];
    let mut left = asked;
    for extent in extents.iter().chain([&unknown]) {
        let len = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        let flags = flags_of(extent);
        if len == 0 {
            continue;
        }
        let count = view.len();
        match view.last_mut() {
            Some(last) if last.flags == flags => last.len += len,
            _ if count == count_max => break,
            _ => view.push(StatusExtent { len, flags }),
        }
        left -= len;
    }
    view
}

/// One chunk per selected context. `one`: a single extent in each.
pub(super) fn put_extents(
    cookie: u64,
    contexts: Contexts,
    extents: &[Extent],
    asked: u32,
    one: bool,
    out: &mut Vec<u8>,
) {
    let count_max = if one { 1 } else { EXTENTS_MAX };
    if contexts.allocation {
        let view = view(extents, asked, count_max, allocation_flags);
        let done = !contexts.cache;
        put_block_status(cookie, done, Contexts::ALLOCATION_ID, &view, out);
    }
    if contexts.cache {
        let view = view(extents, asked, count_max, cache_flags);
        put_block_status(cookie, true, Contexts::CACHE_ID, &view, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(len: u64, hole: bool, dirty: bool) -> Extent {
        Extent {
            hole,
            zero: hole,
            cached: dirty,
            dirty,
            ..Extent::allocated(len)
        }
    }

    #[test]
    fn each_context_merges_what_it_can_not_tell_apart() {
        let extents = [
            extent(512, false, true),
            extent(512, false, false),
            extent(1024, true, false),
        ];
        let status = |len, flags| StatusExtent { len, flags };
        assert_eq!(
            view(&extents, 2048, 9, allocation_flags),
            [status(1024, 0), status(1024, 3)]
        );
        assert_eq!(
            view(&extents, 2048, 9, cache_flags),
            [status(512, 3), status(1536, 0)]
        );
        assert_eq!(view(&extents, 2048, 1, cache_flags), [status(512, 3)]);
    }

    #[test]
    fn answers_stay_inside_the_question() {
        let extents = [extent(u64::MAX, true, false)];
        let all = [StatusExtent { len: 700, flags: 3 }];
        assert_eq!(view(&extents, 700, 9, allocation_flags), all);
        let unknown = [StatusExtent { len: 700, flags: 0 }];
        assert_eq!(view(&[], 700, 9, allocation_flags), unknown);
    }
}
