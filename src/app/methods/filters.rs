//! Methods about the bdevs that stand on another: delay, error, passthru.

use super::{Name, remove_bdev};
use crate::app::bdevs::{Kind, bdev_error, no_such_device};
use crate::app::config::Recipe;
use crate::app::service::Service;
use crate::bdev::{
    Bdev, BdevError, DelayBdev, DelayKind, DelayLatencies, ErrorBdev, ErrorIo, ErrorKind,
    Injection, PassthruBdev,
};
use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .bdev_method("bdev_delay_create", delay_create)
        .about(
            "Adds time to what another bdev takes, which it owns from then on. An average \
             must not exceed its p99. One I/O in a hundred gets the p99; all but reads count \
             as writes.",
            "The name. −22, −16, −17, −19.",
        );
    registry
        .bdev_method("bdev_delay_delete", delay_delete)
        .about(
            "As `bdev_malloc_delete`; the base is free again.",
            "True. −19 if it is no delay bdev, −16 while in use.",
        );
    registry
        .bdev_method("bdev_delay_update_latency", delay_update_latency)
        .about(
            "Changes a latency, for I/Os to come.",
            "True. −19 if it is no delay bdev.",
        );
    registry
        .bdev_method("bdev_error_create", error_create)
        .about(
            "Makes `EE_<base_name>`, which passes everything on until told otherwise and owns \
             its base.",
            "True.",
        );
    registry
        .bdev_method("bdev_error_delete", error_delete)
        .about(
            "As `bdev_malloc_delete`; the base is free again.",
            "True. −19 if it is no error bdev, −16 while in use.",
        );
    registry
        .bdev_method("bdev_error_inject_error", error_inject)
        .about(
            "Makes I/Os fail. Replaces earlier injections for the same I/Os.",
            "True. −22 for a corruption that changes nothing.",
        );
    registry
        .bdev_method("bdev_error_resume_pending", error_resume)
        .about(
            "Stalled I/Os go on; injections stay.",
            "True. −19 if it is no error bdev.",
        );
    registry
        .bdev_method("bdev_passthru_create", passthru_create)
        .about(
            "A second name for a bdev, which it owns: does what its base does.",
            "The name.",
        );
    registry
        .bdev_method("bdev_passthru_delete", passthru_delete)
        .about(
            "As `bdev_malloc_delete`; the base is free again.",
            "True. −19 if it is no passthru bdev, −16 while in use.",
        );
}

/// A filter that was made: itself by kind and as a bdev, and what is told of it.
type Made = (Kind, Arc<dyn Bdev>, Value);

/// Puts a filter of `name` on the bdev `base`, which it owns from then on.
fn stack(
    service: &Service,
    name: &str,
    base: &str,
    recipe: Recipe,
    make: impl FnOnce(Arc<dyn Bdev>) -> Result<Made, BdevError>,
) -> Result<String, Error> {
    let place = service.bdevs.reserve(name)?;
    let entry = service.bdevs.claim(base, format!("bdev '{name}'"))?;
    match make(entry.bdev) {
        Ok((kind, bdev, specific)) => {
            let base = Some(base.to_owned());
            Ok(place.fill(kind, bdev, specific, base, recipe))
        }
        Err(error) => {
            service.bdevs.release(base);
            Err(bdev_error(&error))
        }
    }
}

/// `bdev_delay_create`: latencies in microseconds, added to what the base takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DelayCreate {
    /// Its name.
    name: String,
    /// The bdev below.
    base_bdev_name: String,
    /// Microseconds.
    avg_read_latency: u64,
    /// Microseconds.
    p99_read_latency: u64,
    /// Microseconds.
    avg_write_latency: u64,
    /// Microseconds.
    p99_write_latency: u64,
    /// Its identity; if not given, derived from the base's, so that it is the same after a restart.
    uuid: Option<Uuid>,
}

fn delay_create(service: &Service, params: DelayCreate) -> Result<String, Error> {
    let latencies = DelayLatencies {
        avg_read_us: params.avg_read_latency,
        p99_read_us: params.p99_read_latency,
        avg_write_us: params.avg_write_latency,
        p99_write_us: params.p99_write_latency,
    };
    let recipe = json!({
        "name": params.name,
        "base_bdev_name": params.base_bdev_name,
        "avg_read_latency": params.avg_read_latency,
        "p99_read_latency": params.p99_read_latency,
        "avg_write_latency": params.avg_write_latency,
        "p99_write_latency": params.p99_write_latency,
        "uuid": params.uuid,
    });
    let recipe = Recipe::new("bdev_delay_create", recipe);
    stack(
        service,
        &params.name,
        &params.base_bdev_name,
        recipe,
        |base| {
            let bdev = DelayBdev::new(params.name.clone(), base, latencies, params.uuid)?;
            let bdev = Arc::new(bdev);
            Ok((Kind::Delay(bdev.clone()), bdev, Value::Null))
        },
    )
}

/// What `bdev_get_bdevs` tells of a delay bdev; its latencies change.
pub(super) fn describe_delay(bdev: &DelayBdev) -> Value {
    let latencies = bdev.latencies();
    json!({"delay": {
        "name": bdev.info().name,
        "base_bdev_name": bdev.base().info().name,
        "uuid": bdev.info().uuid,
        "avg_read_latency": latencies.avg_read_us,
        "p99_read_latency": latencies.p99_read_us,
        "avg_write_latency": latencies.avg_write_us,
        "p99_write_latency": latencies.p99_write_us,
    }})
}

fn delay_delete(service: &Service, params: Name) -> Result<bool, Error> {
    let is_delay = |kind: &Kind| matches!(kind, Kind::Delay(_));
    remove_bdev(service, &params.name, is_delay)
}

/// `bdev_delay_update_latency`: for I/Os to come.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DelayUpdate {
    /// The delay bdev.
    delay_bdev_name: String,
    /// Which.
    latency_type: LatencyType,
    /// Microseconds.
    latency_us: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LatencyType {
    AvgRead,
    P99Read,
    AvgWrite,
    P99Write,
}

fn delay_update_latency(service: &Service, params: DelayUpdate) -> Result<bool, Error> {
    let entry = service.bdevs.get(&params.delay_bdev_name)?;
    let Kind::Delay(bdev) = entry.kind else {
        return Err(no_such_device());
    };
    let (kind, key) = match params.latency_type {
        LatencyType::AvgRead => (DelayKind::AvgRead, "avg_read_latency"),
        LatencyType::P99Read => (DelayKind::P99Read, "p99_read_latency"),
        LatencyType::AvgWrite => (DelayKind::AvgWrite, "avg_write_latency"),
        LatencyType::P99Write => (DelayKind::P99Write, "p99_write_latency"),
    };
    bdev.set_latency_us(kind, params.latency_us);
    let us = params.latency_us.into();
    service.bdevs.amend(&params.delay_bdev_name, key, us);
    Ok(true)
}

/// `bdev_error_create`: makes `EE_<base_name>`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ErrorCreate {
    /// The bdev below.
    base_name: String,
    /// Its identity; if not given, derived from the base's, so that it is the same after a restart.
    uuid: Option<Uuid>,
}

fn error_create(service: &Service, params: ErrorCreate) -> Result<bool, Error> {
    let name = format!("EE_{}", params.base_name);
    let recipe = json!({"base_name": params.base_name, "uuid": params.uuid});
    let recipe = Recipe::new("bdev_error_create", recipe);
    stack(service, &name, &params.base_name, recipe, |base| {
        let bdev = Arc::new(ErrorBdev::new(base, params.uuid)?);
        let specific = json!({"error_disk": {"base_bdev": params.base_name}});
        Ok((Kind::Error(bdev.clone()), bdev, specific))
    })?;
    Ok(true)
}

fn error_delete(service: &Service, params: Name) -> Result<bool, Error> {
    let is_error = |kind: &Kind| matches!(kind, Kind::Error(_));
    remove_bdev(service, &params.name, is_error)
}

fn error_bdev(service: &Service, name: &str) -> Result<Arc<ErrorBdev>, Error> {
    match service.bdevs.get(name)?.kind {
        Kind::Error(bdev) => Ok(bdev),
        _ => Err(no_such_device()),
    }
}

/// `bdev_error_inject_error`: strikes the next `num` I/Os of that type, once `skip` (ours) have
/// passed. `clear` ends all injections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ErrorInject {
    /// The error bdev.
    name: String,
    /// Which I/Os; `clear` ends all injections and lets stalled I/Os go on.
    io_type: IoType,
    /// `failure`, `nvme_failure`: fail; `nomem`: no space; `pending`: stall; `corrupt_data`: change
    /// one byte.
    error_type: ErrorType,
    /// Required with `nvme_failure`, without effect.
    nvme_sct: Option<u32>,
    /// As `nvme_sct`.
    nvme_sc: Option<u32>,
    /// How many are struck, 1 if not given; 4294967295 is without end.
    num: Option<u32>,
    /// Only those that find this many under way.
    #[serde(default)]
    queue_depth: u64,
    /// Which byte of the I/O.
    #[serde(default)]
    corrupt_offset: u64,
    /// What to XOR it with; not 0.
    #[serde(default)]
    corrupt_value: u8,
    /// How many pass first (ours).
    #[serde(default)]
    skip: u32,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum IoType {
    Clear,
    Read,
    Write,
    Unmap,
    Flush,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ErrorType {
    Failure,
    Pending,
    CorruptData,
    Nomem,
    NvmeFailure,
}

fn error_inject(service: &Service, params: ErrorInject) -> Result<bool, Error> {
    let bdev = error_bdev(service, &params.name)?;
    let has_status = params.nvme_sct.is_some() && params.nvme_sc.is_some();
    if params.error_type == ErrorType::NvmeFailure && !has_status {
        return Err(Error::errno(Errno::INVAL.raw_os_error()));
    }
    let io = match params.io_type {
        IoType::Clear => {
            bdev.clear();
            return Ok(true);
        }
        IoType::Read => ErrorIo::Read,
        IoType::Write => ErrorIo::Write,
        IoType::Unmap => ErrorIo::Unmap,
        IoType::Flush => ErrorIo::Flush,
        IoType::All => ErrorIo::All,
    };
    let kind = match params.error_type {
        // Bdevs here have one way to fail; an NVMe status has nowhere to go.
        ErrorType::Failure | ErrorType::NvmeFailure => ErrorKind::Failure,
        ErrorType::Pending => ErrorKind::Pending,
        ErrorType::CorruptData => ErrorKind::Corrupt {
            offset: params.corrupt_offset,
            xor: params.corrupt_value,
        },
        ErrorType::Nomem => ErrorKind::NoMemory,
    };
    let injection = Injection {
        io,
        kind,
        skip: params.skip,
        count: params.num.unwrap_or(1),
        queue_depth: params.queue_depth,
    };
    bdev.inject(&injection).map_err(|e| bdev_error(&e))?;
    Ok(true)
}

fn error_resume(service: &Service, params: Name) -> Result<bool, Error> {
    error_bdev(service, &params.name)?.resume_pending();
    Ok(true)
}

/// `bdev_passthru_create`: `name` does what `base_bdev_name` does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PassthruCreate {
    /// Its name.
    name: String,
    /// The bdev below.
    base_bdev_name: String,
    /// Its identity; if not given, derived from the base's, so that it is the same after a restart.
    uuid: Option<Uuid>,
}

fn passthru_create(service: &Service, params: PassthruCreate) -> Result<String, Error> {
    let specific = json!({"passthru": {
        "name": params.name,
        "base_bdev_name": params.base_bdev_name,
    }});
    let recipe = json!({
        "name": params.name,
        "base_bdev_name": params.base_bdev_name,
        "uuid": params.uuid,
    });
    let recipe = Recipe::new("bdev_passthru_create", recipe);
    stack(
        service,
        &params.name,
        &params.base_bdev_name,
        recipe,
        |base| {
            let bdev = PassthruBdev::new(params.name.clone(), base, params.uuid)?;
            Ok((Kind::Passthru, Arc::new(bdev), specific))
        },
    )
}

fn passthru_delete(service: &Service, params: Name) -> Result<bool, Error> {
    let is_passthru = |kind: &Kind| matches!(kind, Kind::Passthru);
    remove_bdev(service, &params.name, is_passthru)
}
