//! What 4 KiB cost on a pmem medium, for each copy kernel of this CPU:
//! `cargo run --release --example copy_kernels [MIB]` (default 256; smaller ones only show that it runs).
//!
//! Nanoseconds per 4 KiB at random pages of anonymous memory, the least of 7 rounds: `store` is
//! copy and fence, `store_crc` has the CRC-32C on top, `load` reads a cold page.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use pmcache::bdev::pmem::{CopyKernel, PmemBdev, PmemConfig};
use pmcache::bdev::{Bdev, BdevError, IoBuf, Pmem};
use reactors::{Clock, MonotonicClock};
use std::sync::Arc;

const PAGE: u64 = 4096;
const ROUNDS: u32 = 7;

/// The least time per call of `work`, over all pages in random order.
fn least_ns(pages: u64, mut work: impl FnMut(u64)) -> f64 {
    let mut least = u64::MAX;
    let mut page = 1_u64;
    for _ in 0..ROUNDS {
        let start = MonotonicClock.now();
        for _ in 0..pages {
            page = page
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            work((page >> 33) % pages * PAGE);
        }
        least = least.min(MonotonicClock.now().since(start));
    }
    least as f64 / pages as f64
}

fn measure(kernel: CopyKernel, mib: u64) -> Result<(), BdevError> {
    let mut config = PmemConfig::new("bench", "anon:");
    config.size = Some(mib << 20);
    config.kernel = Some(kernel);
    let bdev = PmemBdev::open(config)?;
    let Some(medium): Option<Arc<dyn Pmem>> = bdev.pmem() else {
        return Err(BdevError::NotSupported("no medium".into()));
    };
    let pages = medium.bytes() / PAGE;
    let source = IoBuf::copy_of(&[0x5a; 4096]);
    let mut target = IoBuf::zeroed(4096);
    // The medium is RAM and has no bad lines.
    let store = least_ns(pages, |at| {
        let _ = medium.store(at, &source);
    });
    let mut crc = 0;
    let store_crc = least_ns(pages, |at| {
        crc ^= medium.store_data_crc(at, &source).unwrap_or(0);
        let _ = medium.barrier_wait();
    });
    let load = least_ns(pages, |at| {
        let _ = medium.load(at, &mut target);
    });
    std::hint::black_box((crc, &target));
    println!(
        "{:<10} {store:>8.0} {store_crc:>10.0} {load:>8.0}   {}-byte pages",
        format!("{kernel:?}"),
        bdev.page_size()
    );
    Ok(())
}

fn main() -> Result<(), BdevError> {
    let mib = std::env::args().nth(1).map_or(Ok(256), |arg| arg.parse());
    let mib = mib.map_err(|_| BdevError::Invalid("the size is a number of MiB".into()))?;
    println!(
        "{:<10} {:>8} {:>10} {:>8}   (ns per 4 KiB, {mib} MiB)",
        "kernel", "store", "store_crc", "load"
    );
    for kernel in CopyKernel::available() {
        measure(kernel, mib)?;
    }
    Ok(())
}
