//! Bytes of a simulated medium or disk, of which copies cost next to nothing: pages are shared until
//! one of the copies changes them.

use super::rng::index;
use std::sync::Arc;

const PAGE: usize = 4096;

/// See the module. A clone is a snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    pages: Vec<Arc<[u8; PAGE]>>,
    bytes: u64,
}

impl Pages {
    pub(super) fn zeroed(bytes: u64) -> Self {
        let page = Arc::new([0; PAGE]);
        Self {
            pages: vec![page; index(bytes).div_ceil(PAGE)],
            bytes,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn check(&self, at: u64, len: usize) {
        let end = at.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "{len} bytes at {at:#x} leave the medium of {}",
            self.bytes
        );
    }

    pub(super) fn read(&self, at: u64, dst: &mut [u8]) {
        self.check(at, dst.len());
        let mut at = index(at);
        let mut rest = dst;
        while !rest.is_empty() {
            let from = at % PAGE;
            let len = rest.len().min(PAGE - from);
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&self.pages[at / PAGE][from..from + len]);
            at += len;
            rest = later;
        }
    }

    pub(super) fn get(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; index(len)];
        self.read(at, &mut bytes);
        bytes
    }

    pub(super) fn write(&mut self, at: u64, src: &[u8]) {
        self.check(at, src.len());
        let mut at = index(at);
        let mut rest = src;
        while !rest.is_empty() {
            let from = at % PAGE;
            let len = rest.len().min(PAGE - from);
            let (now, later) = rest.split_at(len);
            Arc::make_mut(&mut self.pages[at / PAGE])[from..from + len].copy_from_slice(now);
            at += len;
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_was_there() {
        let mut pages = Pages::zeroed(10_000);
        pages.write(4000, &[7; 200]);
        let before = pages.clone();
        pages.write(4090, &[9; 10]);
        assert_eq!(before.get(4000, 200), vec![7; 200]);
        assert_eq!(pages.get(4088, 4), vec![7, 7, 9, 9]);
        assert_eq!(pages.get(9_996, 4), vec![0; 4]);
    }
}
