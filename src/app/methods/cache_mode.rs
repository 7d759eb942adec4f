//! How requests pass a cache: its mode, and the words for it.

use crate::app::caches::{self, cache_error, cache_object};
use crate::app::service::Service;
use crate::cache::{Mode, SeqCutoff};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("bdev_pmcache_set_mode", set_mode).about(
        "Changes how requests pass, while they run, and keeps it on media. `wb`: writes go to the \
         cache, misses are kept. `wo`: the same, but misses are not kept. `wt`: writes go to the \
         cache, durably, and to the backing, then complete. `wa`: writes go to the backing and \
         what the cache has of the range is dropped; misses are kept. `pt`: the same, and misses \
         are not kept. Nothing dirty is forgotten: a write over what is not written back yet waits \
         for that in `wt`, and is cached in `wa` and `pt`. In `wt`, `wa` and `pt` a FLUSH flushes \
         the backing, too, which alone has all that was flushed once nothing is dirty that was \
         written in another mode.",
        "The mode. −16 if `flush` is false and anything is dirty that `wt`, `wa` or `pt` would have \
         to write back first; then nothing changes.",
    );
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeName {
    Wb,
    Wt,
    Wa,
    Wo,
    Pt,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Wb => Self::Wb,
            ModeName::Wt => Self::Wt,
            ModeName::Wa => Self::Wa,
            ModeName::Wo => Self::Wo,
            ModeName::Pt => Self::Pt,
        }
    }
}

impl From<Mode> for ModeName {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Wb => Self::Wb,
            Mode::Wt => Self::Wt,
            Mode::Wa => Self::Wa,
            Mode::Wo => Self::Wo,
            Mode::Pt => Self::Pt,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum CutoffName {
    Never,
    Full,
    Always,
}

impl From<CutoffName> for SeqCutoff {
    fn from(name: CutoffName) -> Self {
        match name {
            CutoffName::Never => Self::Never,
            CutoffName::Full => Self::Full,
            CutoffName::Always => Self::Always,
        }
    }
}

impl From<SeqCutoff> for CutoffName {
    fn from(cutoff: SeqCutoff) -> Self {
        match cutoff {
            SeqCutoff::Never => Self::Never,
            SeqCutoff::Full => Self::Full,
            SeqCutoff::Always => Self::Always,
        }
    }
}

/// `bdev_pmcache_set_mode`: `flush` says what becomes of what is dirty when the new mode wants it on
/// the backing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetMode {
    /// The cache.
    name: String,
    /// How requests pass from now on.
    mode: ModeName,
    /// With dirty data, and a mode that wants them on the backing: start to write them back, as
    /// `bdev_pmcache_flush_start` does, and answer at once. True if not given; false: refuse.
    flush: Option<bool>,
}

fn set_mode(service: &Service, params: SetMode) -> Result<ModeName, Error> {
    let cache = caches::find(service, &params.name)?;
    let object = cache_object(&params.name);
    cache
        .set_mode(params.mode.into(), params.flush.unwrap_or(true))
        .map_err(|error| cache_error(&object, &error))?;
    Ok(params.mode)
}
