//! Methods about tracepoints, of which there are none.

use crate::app::service::Service;
use rpc::{Allowed, Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "Tracepoints",
        "There are none: the hot path writes no trace. SPDK's tools are told so. What they would show is in \
         `bdev_pmcache_get_stats`, `bdev_get_iostat` and the latency histograms.",
    );
    registry
        .plain("trace_get_info", |_: &Service| {
            Ok(json!({"tpoint_shm_path": "", "tpoint_group_mask": "0x0"}))
        })
        .allowed(Allowed::Always)
        .about(
            "Where the trace is, and which groups are traced.",
            "`{tpoint_shm_path: \"\", tpoint_group_mask: \"0x0\"}`, and no group.",
        );
    registry
        .plain("trace_get_tpoint_group_mask", |_: &Service| {
            Ok(json!({"tpoint_group_mask": "0x0"}))
        })
        .allowed(Allowed::Always)
        .about(
            "Which groups are traced.",
            "`{tpoint_group_mask: \"0x0\"}`, and no group.",
        );
    for name in ["trace_enable_tpoint_group", "trace_disable_tpoint_group"] {
        registry
            .method(name, |_: &Service, params: Group| {
                Err::<bool, _>(no_such_group(&params.name))
            })
            .allowed(Allowed::Always)
            .about("Refused: there is no group.", "−32602.");
    }
    for name in ["trace_set_tpoint_mask", "trace_clear_tpoint_mask"] {
        registry
            .method(name, |_: &Service, params: Mask| {
                Err::<bool, _>(no_such_group(&params.name))
            })
            .allowed(Allowed::Always)
            .about("Refused: there is no group.", "−32602.");
    }
    registry
        .plain("trace_clear", |_: &Service| Ok(true))
        .about("Empties the trace, which is empty.", "true.");
}

fn no_such_group(name: &str) -> Error {
    Error::invalid_params(format!(
        "Invalid parameters: there is no tracepoint group '{name}', and no other"
    ))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Group {
    /// Of a group.
    name: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Mask {
    /// Of a group.
    name: String,
    /// Which of its tracepoints.
    #[serde(rename = "tpoint_mask")]
    _tpoint_mask: u64,
}
