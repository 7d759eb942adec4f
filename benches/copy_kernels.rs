//! What 4 KiB cost on a pmem medium, for each copy kernel of this CPU, and their CRC-32C by each
//! library: `cargo bench --bench copy_kernels`.
//!
//! Pages of anonymous memory in random order, more of them than caches hold: `store` is copy and
//! fence, `store_crc` has the CRC on top, `load` reads a cold page. `crc_*` are of a page in the cache.
//! Run as a test, everything happens once on a small medium.
#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use pmcache::bdev::pmem::{CopyKernel, PmemBdev, PmemConfig};
use pmcache::bdev::{Bdev, IoBuf, Pmem};
use std::sync::Arc;

const PAGE: u64 = 4096;
/// A page of 0x5a.
const SOURCE: [u8; 4096] = [0x5a; 4096];
const MEDIUM: u64 = if cfg!(debug_assertions) { 4 } else { 256 } << 20;

fn main() {
    divan::main();
}

fn medium(kernel: CopyKernel) -> Arc<dyn Pmem> {
    let mut config = PmemConfig::new("bench", "anon:");
    config.size = Some(MEDIUM);
    config.kernel = Some(kernel);
    let medium = PmemBdev::open(config).unwrap().pmem().unwrap();
    // So that all of it is there.
    let page = IoBuf::zeroed(4096);
    for at in (0..MEDIUM).step_by(4096) {
        medium.store(at, &page).unwrap();
    }
    medium
}

/// Pages one after the other that nothing foresees.
fn pages() -> impl FnMut() -> u64 {
    let mut state = 1_u64;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % (MEDIUM / PAGE) * PAGE
    }
}

#[divan::bench(args = CopyKernel::available(), counters = [BytesCount::new(PAGE)])]
fn store(bencher: Bencher<'_, '_>, kernel: CopyKernel) {
    let (medium, mut page) = (medium(kernel), pages());
    let source = IoBuf::copy_of(&SOURCE);
    bencher.bench_local(|| medium.store(page(), &source).unwrap());
}

#[divan::bench(args = CopyKernel::available(), counters = [BytesCount::new(PAGE)])]
fn store_crc(bencher: Bencher<'_, '_>, kernel: CopyKernel) {
    let (medium, mut page) = (medium(kernel), pages());
    let source = IoBuf::copy_of(&SOURCE);
    bencher.bench_local(|| {
        let crc = medium.store_data_crc(page(), &source).unwrap();
        medium.barrier_wait().unwrap();
        crc
    });
}

#[divan::bench(args = CopyKernel::available(), counters = [BytesCount::new(PAGE)])]
fn load(bencher: Bencher<'_, '_>, kernel: CopyKernel) {
    let (medium, mut page) = (medium(kernel), pages());
    let mut target = IoBuf::zeroed(4096);
    bencher.bench_local(|| medium.load(page(), &mut target).unwrap());
}

/// The one that is used.
#[divan::bench(counters = [BytesCount::new(PAGE)])]
fn crc_of_crc_fast() -> u32 {
    pmcache::media::crc(black_box(&SOURCE))
}

#[divan::bench(counters = [BytesCount::new(PAGE)])]
fn crc_of_crc32c() -> u32 {
    crc32c::crc32c(black_box(&SOURCE))
}
