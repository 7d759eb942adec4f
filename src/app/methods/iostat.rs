//! What bdevs have done: counters, queue depth, latency histograms.

use super::Name;
use super::reactor::TICK_RATE;
use crate::app::bdevs::Entry;
use crate::app::config::Recipe;
use crate::app::service::Service;
use crate::bdev::{
    BdevError, HistogramCounts, HistogramIo, HistogramOptions, IoFigures, IoStatus, KindFigures,
    MeteredBdev, ResetFigures,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// What `bdev_get_iostat` answers.
const GET_IOSTAT_RESULT: &str = "- `tick_rate`: 1 000 000 000, ticks are nanoseconds; `ticks`, the time now;
- `bdevs`, by name: `name`; what succeeded: `bytes_read`, `num_read_ops`, `bytes_written`, `num_write_ops`
  (write-zeroes among them), `bytes_unmapped`, `num_unmap_ops` (discards), `bytes_copied`, `num_copy_ops` (0);
  `read_latency_ticks` in all, `max_read_latency_ticks`, `min_read_latency_ticks` (0 without any), the same for
  `write`, `unmap` and `copy`; `io_error`: how many failed in which way (`failed`, `aio_error`, `aborted`, `nomem`),
  as far as some did; while the queue depth is sampled, `queue_depth_polling_period` (µs), `queue_depth` (as seen
  last), `io_time` and `weighted_io_time` (µs);
- with `per_channel`, in place of `bdevs`: `name`, and `channels`, one for each reactor that has ever opened the bdev:
  the same with `thread_id` (`id` in `framework_get_reactors`).

−19 for an unknown name, −22 if `per_channel` has not exactly one.

Latency runs from the beginning of the round of the reactor in which a request came to the beginning of that in which
its end was seen; what rate limits held it back is part of it. Of requests that end in the round in which they came,
one in 16 is timed by the clock and counts for all; while there is a histogram, all are. A pool stores in its pmem bdev
without a channel: that is not counted.";

/// What `bdev_get_histogram` answers.
const GET_HISTOGRAM_RESULT: &str = "- `histogram`: the counts, little-endian 64-bit numbers in base64; `tsc_rate`: 1 000 000 000;
- `granularity`, `min_range`, `max_range`: there are 2^granularity buckets for each range. Those of ranges 0 and 1 are
  one tick wide, range 1 beginning at 2^granularity; from there each range begins where the one before ends, with
  buckets of twice the width. The first and the last bucket also have what lies outside.

−19 without such a bdev, −32603 \"Bad address\" without a histogram.";

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.bdev_method("bdev_get_iostat", get_iostat).about(
        "What has passed each bdev since it was made, or its figures were reset.",
        GET_IOSTAT_RESULT,
    );
    registry
        .bdev_method("bdev_reset_iostat", reset_iostat)
        .about(
            "Lets the figures of all bdevs, or of one, begin anew.",
            "True. −19 without such a bdev.",
        );
    registry
        .bdev_method("bdev_set_qd_sampling_period", set_qd_sampling_period)
        .about(
            "Looks at the queue depth of a bdev at regular times; `bdev_get_iostat` tells.",
            "True. −19 without such a bdev, −11 if a reactor does not answer.",
        );
    registry
        .bdev_method("bdev_enable_histogram", enable_histogram)
        .about(
            "Begins an empty histogram of the latencies of a bdev, or ends the one there is. \
             Meanwhile the clock is read whenever requests end.",
            "True. −19 without such a bdev, −22 for bounds that make no sense, −32603 \"Invalid Io \
             type\".",
        );
    registry
        .bdev_method("bdev_get_histogram", get_histogram)
        .about("The histogram of a bdev.", GET_HISTOGRAM_RESULT);
    registry
        .bdev_method("bdev_get_histogram_borders", get_histogram_borders)
        .about(
            "How many requests took at most so long, by the histogram of a bdev.",
            "`borders_count`: for each border how many there are up to it, all of its bucket included; \
             then how many there are in all. Errors as `bdev_get_histogram`.",
        );
}

/// How long a reactor may take to answer.
const ASK_WAIT: Duration = Duration::from_secs(2);
/// Most names in one call.
const NAMES_MAX: usize = 1024;
/// Most borders in one call.
const BORDERS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ResetMode {
    All,
    Maxmin,
    Error,
    #[default]
    None,
}

impl From<ResetMode> for ResetFigures {
    fn from(mode: ResetMode) -> Self {
        match mode {
            ResetMode::All => Self::All,
            ResetMode::Maxmin => Self::Extremes,
            ResetMode::Error => Self::Errors,
            ResetMode::None => Self::Nothing,
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetIostat {
    /// At most 1024; all if not given.
    names: Option<Vec<String>>,
    /// Tell each reactor's figures of the one bdev that is named.
    #[serde(default)]
    per_channel: bool,
    /// What begins anew once it has been read: everything, the longest and shortest latencies, the
    /// errors, nothing.
    #[serde(default)]
    reset_mode: ResetMode,
}

fn get_iostat(service: &Service, params: GetIostat) -> Result<Value, Error> {
    let names = params.names.as_deref();
    if names.is_some_and(|names| names.len() > NAMES_MAX) {
        return Err(too_many("names", NAMES_MAX));
    }
    if params.per_channel && names.is_none_or(|names| names.len() != 1) {
        return Err(Error::errno(Errno::INVAL.raw_os_error()));
    }
    let entries = match names {
        None => service.bdevs.list(),
        Some(names) => {
            let found = names.iter().map(|name| service.bdevs.get(name));
            found.collect::<Result<_, _>>()?
        }
    };
    let reset = params.reset_mode.into();
    let mut answer = json!({"tick_rate": TICK_RATE, "ticks": service.now().0});
    let Some(members) = answer.as_object_mut() else {
        return Ok(answer);
    };
    if params.per_channel
        && let [entry] = entries.as_slice()
    {
        members.insert("name".to_owned(), entry.bdev.info().name.clone().into());
        members.insert("channels".to_owned(), channels(entry, reset));
        return Ok(answer);
    }
    let bdevs = entries.iter().map(|entry| of_bdev(entry, reset)).collect();
    members.insert("bdevs".to_owned(), bdevs);
    Ok(answer)
}

fn too_many(what: &str, most: usize) -> Error {
    let text = format!("spdk_json_decode_object failed: more than {most} {what}");
    Error::new(Error::INTERNAL_ERROR, text)
}

fn channels(entry: &Entry, reset: ResetFigures) -> Value {
    let product = entry.bdev.info().product_name;
    let figures = entry.meter.figures(reset).into_iter();
    let shown = figures.map(|(reactor, figures)| {
        let mut shown = Map::new();
        // As `framework_get_reactors` numbers them.
        let thread = u64::from(reactor.0) + 1;
        shown.insert("thread_id".to_owned(), thread.into());
        show(&mut shown, &figures, product);
        Value::Object(shown)
    });
    shown.collect()
}

fn of_bdev(entry: &Entry, reset: ResetFigures) -> Value {
    let info = entry.bdev.info();
    let mut sum = IoFigures::default();
    for (_, figures) in entry.meter.figures(reset) {
        sum.add(&figures);
    }
    let mut shown = Map::new();
    shown.insert("name".to_owned(), info.name.clone().into());
    show(&mut shown, &sum, info.product_name);
    if let Some(depth) = entry.meter.depth() {
        for (key, value) in [
            ("queue_depth_polling_period", depth.period_us),
            ("queue_depth", depth.depth),
            ("io_time", depth.busy_us),
            ("weighted_io_time", depth.weighted_us),
        ] {
            shown.insert(key.to_owned(), value.into());
        }
    }
    Value::Object(shown)
}

fn show(shown: &mut Map<String, Value>, figures: &IoFigures, product: &str) {
    let kinds = [
        ("read", "read", figures.read),
        ("written", "write", figures.write),
        ("unmapped", "unmap", figures.unmap),
        ("copied", "copy", KindFigures::default()),
    ];
    for (done, kind, figures) in kinds {
        shown.insert(format!("bytes_{done}"), figures.bytes.into());
        shown.insert(format!("num_{kind}_ops"), figures.ops.into());
    }
    for (_, kind, figures) in kinds {
        for (key, ns) in [
            ("", figures.latency_ns),
            ("max_", figures.longest_ns.unwrap_or(0)),
            ("min_", figures.shortest_ns.unwrap_or(0)),
        ] {
            shown.insert(format!("{key}{kind}_latency_ticks"), ns.into());
        }
    }
    shown.insert("io_error".to_owned(), errors(figures, product));
}

/// Failures by SPDK's names for them, as far as there were some.
fn errors(figures: &IoFigures, product: &str) -> Value {
    let mut counts = Map::new();
    let device = if product == "AIO disk" {
        "aio_error"
    } else {
        "failed"
    };
    for (status, name) in [
        (IoStatus::IoError, device),
        (IoStatus::Aborted, "aborted"),
        (IoStatus::NoSpace, "nomem"),
        (IoStatus::Corrupt, "failed"),
        (IoStatus::OutOfRange, "failed"),
        (IoStatus::Unaligned, "failed"),
        (IoStatus::Invalid, "failed"),
        (IoStatus::ReadOnly, "failed"),
        (IoStatus::NotSupported, "failed"),
    ] {
        let count = figures.failed(status);
        if count > 0 {
            let before = counts.get(name).and_then(Value::as_u64).unwrap_or(0);
            counts.insert(name.to_owned(), (before + count).into());
        }
    }
    Value::Object(counts)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResetIostat {
    /// Only this one.
    name: Option<String>,
    /// What begins anew, as in `bdev_get_iostat`; everything if not given.
    mode: Option<ResetMode>,
}

fn reset_iostat(service: &Service, params: ResetIostat) -> Result<bool, Error> {
    let entries = match &params.name {
        None => service.bdevs.list(),
        Some(name) => vec![service.bdevs.get(name)?],
    };
    let mode = params.mode.unwrap_or(ResetMode::All);
    for entry in entries {
        drop(entry.meter.figures(mode.into()));
    }
    Ok(true)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetQdSamplingPeriod {
    /// The bdev.
    name: String,
    /// How often to look, in microseconds; 0 to look no more.
    period: u64,
}

fn set_qd_sampling_period(service: &Service, params: SetQdSamplingPeriod) -> Result<bool, Error> {
    let meter = service.bdevs.get(&params.name)?.meter;
    // The last does GC's work, the first writeback's: neither is on the path of a request.
    let handles = service.reactors().handles();
    let busy = || Error::errno(Errno::AGAIN.raw_os_error());
    let handle = handles.last().ok_or_else(busy)?;
    let asked = handle.call(ASK_WAIT, move |cx| meter.sample_depth(cx, params.period));
    asked.map_err(|_| busy())?;
    Ok(true)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EnableHistogram {
    /// The bdev.
    name: String,
    /// Begin a histogram, or end it.
    enable: bool,
    /// Of which requests: `read`, `write`, `unmap`, `flush` or `write_zeroes`; of all if not given.
    opc: Option<String>,
    /// Each power of two is cut in 2^this buckets; 0 to 12, 7 if not
    /// given.
    granularity: Option<u8>,
    /// Shortest latency that is told from shorter ones, in nanoseconds; 0 if not
    /// given.
    min_nsec: Option<u64>,
    /// Latency from which on all are alike, in nanoseconds; none if not
    /// given.
    max_nsec: Option<u64>,
}

fn io_type(opc: &str) -> Result<HistogramIo, Error> {
    let invalid = || Error::new(Error::INTERNAL_ERROR, "Invalid Io type");
    HistogramIo::named(opc).ok_or_else(invalid)
}

/// The call that begins the histogram of a bdev again, empty; nothing without one.
pub(super) fn setting(entry: &Entry) -> Option<Recipe> {
    let options = entry.meter.histogram_options()?;
    let params = json!({
        "name": entry.bdev.info().name,
        "enable": true,
        "opc": options.io.map(HistogramIo::name),
        "granularity": options.granularity,
        "min_nsec": options.min_ns,
        "max_nsec": options.max_ns,
    });
    Some(Recipe::new("bdev_enable_histogram", params))
}

fn enable_histogram(service: &Service, params: EnableHistogram) -> Result<bool, Error> {
    let meter = service.bdevs.get(&params.name)?.meter;
    let default = HistogramOptions::default();
    let options = HistogramOptions {
        io: params.opc.as_deref().map(io_type).transpose()?,
        granularity: params.granularity.unwrap_or(default.granularity),
        min_ns: params.min_nsec.unwrap_or(default.min_ns),
        max_ns: params.max_nsec.unwrap_or(default.max_ns),
    };
    let set = meter.set_histogram(params.enable.then_some(options));
    set.map_err(|error: BdevError| {
        let errno = Errno::INVAL.raw_os_error();
        let strerror = Error::errno(errno).message;
        Error::errno_with(errno, format!("{strerror}: {error}"))
    })?;
    Ok(true)
}

fn histogram_of(service: &Service, name: &str) -> Result<HistogramCounts, Error> {
    let meter: Arc<MeteredBdev> = service.bdevs.get(name)?.meter;
    let none = || Error::new(Error::INTERNAL_ERROR, "Bad address");
    meter.histogram().ok_or_else(none)
}

fn get_histogram(service: &Service, params: Name) -> Result<Value, Error> {
    let counts = histogram_of(service, &params.name)?;
    let bytes: Vec<u8> = counts
        .buckets()
        .iter()
        .flat_map(|count| count.to_le_bytes())
        .collect();
    let (min_range, max_range) = counts.ranges();
    Ok(json!({
        "histogram": BASE64_STANDARD.encode(bytes),
        "granularity": counts.granularity(),
        "min_range": min_range,
        "max_range": max_range,
        "tsc_rate": TICK_RATE,
    }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetHistogramBorders {
    /// The bdev.
    name: String,
    /// Latencies in microseconds, at most 256.
    borders: Vec<u64>,
}

fn get_histogram_borders(service: &Service, params: GetHistogramBorders) -> Result<Value, Error> {
    if params.borders.len() > BORDERS_MAX {
        return Err(too_many("borders", BORDERS_MAX));
    }
    let counts = histogram_of(service, &params.name)?;
    let up_to = |us: &u64| counts.up_to(us.saturating_mul(1000));
    let mut borders: Vec<u64> = params.borders.iter().map(up_to).collect();
    borders.push(counts.total());
    Ok(json!({"borders_count": borders}))
}
