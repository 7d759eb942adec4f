//! A medium of which a salvaged cache is read: nothing of it is ever changed.

use crate::bdev::{Barrier, BdevError, MemView, Persistence, Pmem, PmemError};
use reactors::Cx;
use std::sync::Arc;

/// Another medium, to be looked at only.
#[derive(Debug)]
pub(crate) struct LookOnly {
    below: Arc<dyn Pmem>,
}

impl LookOnly {
    pub(crate) fn new(below: Arc<dyn Pmem>) -> Self {
        Self { below }
    }
}

impl Pmem for LookOnly {
    fn bytes(&self) -> u64 {
        self.below.bytes()
    }

    fn persistence(&self) -> Persistence {
        self.below.persistence()
    }

    /// # Panics
    /// Always: whoever stores here has our own bug, and would destroy what is to be salvaged.
    fn store(&self, at: u64, src: &[u8]) -> Result<(), PmemError> {
        unreachable!("{} bytes for {at:#x} of a salvaged medium", src.len());
    }

    fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError> {
        self.below.load(at, dst)
    }

    fn view(&self, at: u64, len: usize) -> Result<MemView, PmemError> {
        self.below.view(at, len)
    }

    fn check(&self, at: u64, len: usize) -> Result<(), PmemError> {
        self.below.check(at, len)
    }

    /// Nothing: what is read is not made durable, only shown.
    fn write_back(&self, _at: u64, _len: u64) {}

    fn open_barrier(&self, cx: &Cx) -> Result<Box<dyn Barrier>, BdevError> {
        self.below.open_barrier(cx)
    }

    /// Nothing was stored.
    fn barrier_wait(&self) -> Result<(), PmemError> {
        Ok(())
    }
}
