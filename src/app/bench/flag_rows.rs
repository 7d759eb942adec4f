//! The rows that flags span, and what rows of flags and of job files share.

use super::args::{BenchArgs, Pattern};
use super::device::{self, Device, Export, NvmeWish, Wish};
use super::row::Row;
use super::stack::{BLOCK_BYTES, StackConfig};
use super::{mib, nanos};
use crate::bdev::{BdevInfo, Supports};
use crate::bench::{Load, Order, Size, Workload};
use crate::cache::CacheOptions;
use crate::units::ByteRange;
use std::error::Error;
use std::sync::Arc;
use uuid::Uuid;

/// Every device with every pattern at every depth.
pub(super) fn of_flags(args: &BenchArgs) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows: Vec<Row> = Vec::new();
    let exports = exports(args.bdev.iter());
    for device in &args.bdev {
        for rw in &args.rw {
            for depth in &args.depth {
                let row = row(args, (device, &exports), *rw, *depth)?;
                if rows.iter().any(|other| other.name == row.name) {
                    return Err(format!("{} is wanted twice", row.name).into());
                }
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

fn row(
    args: &BenchArgs,
    (device, exports): (&Device, &[&Export]),
    rw: Pattern,
    depth: u32,
) -> Result<Row, Box<dyn Error>> {
    let (stack, info) = plan(args, device)?;
    let start = mib(args.offset_mib)?;
    let end = match args.working_set_mib {
        Some(size) => start + mib(size)?,
        None => stack.bytes.max(start),
    };
    let sizes = match &args.bssplit {
        Some(split) => split.0.clone(),
        None => vec![Size {
            bytes: args.block_size,
            weight: 1,
        }],
    };
    let job = Workload {
        read_percent: rw.read_percent(args.rwmixread),
        order: if rw.is_random() {
            args.distribution
        } else {
            Order::Sequential
        },
        sizes,
        depth,
        range: ByteRange::between(start, end),
        load: match args.rate {
            Some(rate) => Load::Open {
                rate,
                arrival: args.arrival.into(),
            },
            None => Load::Closed,
        },
        warmup_ns: nanos(args.warmup)?,
        run_ns: nanos(args.seconds)?,
        requests_max: args.count,
        fua_every: args.fua_every,
        flush_every: args.flush_every,
        seed: args.seed,
        series_ns: args.series_ms.saturating_mul(1_000_000),
        verify: args.verify,
        ..Workload::new(ByteRange::default(), args.block_size)
    };
    job.places(&info)?;
    let name = format!("{}-{}-qd{depth}", device.name(exports), job.rw());
    assemble(args, name, stack, (job, args.jobs))
}

/// The addresses among `devices`, each once.
pub(super) fn exports<'a>(devices: impl Iterator<Item = &'a Device>) -> Vec<&'a Export> {
    let mut found: Vec<&Export> = Vec::new();
    for export in devices.filter_map(Device::export) {
        if !found.contains(&export) {
            found.push(export);
        }
    }
    found
}

/// A row of `jobs` like `job`, with what holds for all rows.
///
/// # Errors
/// If it would write to an export, and nobody has said that it may.
pub(super) fn assemble(
    args: &BenchArgs,
    name: String,
    mut stack: StackConfig,
    (job, jobs): (Workload, u32),
) -> Result<Row, Box<dyn Error>> {
    let export = stack.device.export();
    let fill = args.prefill.unwrap_or(export.is_none());
    let what = match (fill, job.verify, job.read_percent) {
        (true, ..) => Some("--prefill"),
        (_, true, _) => Some("verification"),
        (.., 100) => None,
        _ => Some(job.rw()),
    };
    if let (Some(export), Some(what), false) = (export, what, args.allow_writes) {
        return Err(format!(
            "{what} would overwrite what {export} holds: --allow-writes says that it may"
        )
        .into());
    }
    stack.writes = what.is_some();
    stack.nvme = NvmeWish {
        digests: args.nvme_digests,
        qpairs: args.nvme_qpairs,
    };
    stack.users = u16::try_from(jobs).unwrap_or(u16::MAX);
    Ok(Row {
        name,
        stack,
        job,
        jobs,
        submit: args.submit,
        fill,
        half_rate_of: None,
    })
}

/// How to make `device`, and what it will say of itself: so what can't be measured is refused before
/// anything is.
///
/// # Errors
/// What can't be made; why an export can't be used.
pub(super) fn plan(
    args: &BenchArgs,
    device: &Device,
) -> Result<(StackConfig, BdevInfo), Box<dyn Error>> {
    let cache = &args.cache;
    let info = match device {
        Device::Export(export) => {
            let wish = Wish {
                writes: true,
                users: 1,
                nvme: NvmeWish::default(),
            };
            device::connect(export, wish, None)?.info()
        }
        built => Arc::new(BdevInfo {
            name: built.to_string(),
            product_name: "bench",
            uuid: Uuid::nil(),
            block_size: BLOCK_BYTES,
            blocks: mib(args.size_mib)? / u64::from(BLOCK_BYTES),
            volatile_cache: false,
            read_only: false,
            supports: Supports::default(),
        }),
    };
    let mut stack = StackConfig::of(device.clone(), info.bytes());
    if let Some(pool) = cache.pool_mib {
        stack.pool_bytes = mib(pool)?;
    }
    stack.segment_bytes = mib(cache.segment_mib)?;
    stack.lanes = cache.lanes;
    stack.options = CacheOptions {
        data_crc: cache.data_crc,
        verify_reads: cache.verify_reads,
        durability: cache.durability.into(),
        ..CacheOptions::default()
    };
    stack.options.check()?;
    stack.backing = cache.backing;
    stack.backing_delay_us = cache.backing_delay_us;
    Ok((stack, (*info).clone()))
}
