//! The calls of subsystem `bdev`, in an order in which they can be made again.
//!
//! Pmem, then other bdevs, then pools, then caches; and what stands on a cache after it, again in that
//! order. Among their like the ones below come first, and then names decide, so that it makes no
//! difference in which order they were made or came up.

use super::call::Call;
use super::object::{NVME_ATTACH, Object, VHOST_COALESCING};
use crate::app::bdevs::{Entry, Kind};
use crate::app::methods;
use crate::app::service::Service;
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Pmem,
    Other,
    Pool,
    Cache,
}

/// A call and what decides about its place.
#[derive(Debug)]
struct Step {
    class: Class,
    /// What tells it from others of its class.
    name: String,
    /// The bdev that it stands on.
    base: Option<String>,
    call: Call,
}

impl Step {
    fn of_entry(entry: &Entry) -> Self {
        Self {
            class: match &entry.kind {
                Kind::Pmem(_) => Class::Pmem,
                Kind::Cache(_) => Class::Cache,
                _ => Class::Other,
            },
            name: entry.bdev.info().name.clone(),
            base: entry.base.clone(),
            call: entry.recipe.call(),
        }
    }

    /// The step of a call that has not made its object yet.
    fn to_come(object: Object, call: Call) -> Option<Self> {
        let bases = ["base_bdev_name", "base_name", "backing_bdev", "bdev_name"];
        let base = bases.iter().find_map(|key| call.text(key));
        let (class, name) = match object {
            Object::Bdev(name) if call.method == "bdev_pmem_create" => (Class::Pmem, name),
            Object::Bdev(name) => (Class::Other, name),
            // What it will be called, if it has one namespace.
            Object::NvmeController(name) => (Class::Other, format!("{name}n1")),
            Object::PoolOn(bdev) => (Class::Pool, bdev),
            Object::Cache(name) => (Class::Cache, name),
            _ => return None,
        };
        Some(Self {
            class,
            name,
            base,
            call,
        })
    }

    /// How many caches are below it, and how many other bdevs below it are above these.
    fn height(&self, bdevs: &BTreeMap<&str, &Self>) -> (usize, usize) {
        let (mut caches, mut others) = (0, 0);
        let mut below = self.base.as_deref();
        // The calls of a bad file may go in circles.
        for _ in 0..bdevs.len() {
            let Some(step) = below.and_then(|name| bdevs.get(name)) else {
                break;
            };
            match (step.class, caches) {
                (Class::Cache, _) => caches += 1,
                (_, 0) => others += 1,
                _ => {}
            }
            below = step.base.as_deref();
        }
        (caches, others)
    }
}

/// The steps' calls, each after what it needs.
fn in_order(steps: &[Step]) -> Vec<Call> {
    let is_bdev = |step: &&Step| step.class != Class::Pool;
    let bdevs = steps.iter().filter(is_bdev);
    let bdevs: BTreeMap<&str, &Step> = bdevs.map(|step| (&*step.name, step)).collect();
    let mut placed: Vec<_> = steps
        .iter()
        .map(|step| {
            let (caches, others) = step.height(&bdevs);
            ((caches, step.class, others, &step.name), &step.call)
        })
        .collect();
    placed.sort_by(|a, b| a.0.cmp(&b.0));
    let mut calls: Vec<Call> = Vec::new();
    for (_, call) in placed {
        // One call may make several bdevs: where the first of them stands.
        let same = |made: &Call| made.method == call.method && made.value() == call.value();
        if call.method != NVME_ATTACH || !calls.iter().any(same) {
            calls.push(call.clone());
        }
    }
    calls
}

/// All calls of the subsystem.
pub(super) fn bdev(service: &Service) -> Vec<Call> {
    let entries = service.bdevs.list();
    let mut steps: Vec<Step> = entries.iter().map(Step::of_entry).collect();
    steps.extend(service.caches.pools().into_iter().map(|pool| Step {
        class: Class::Pool,
        name: pool.bdev_name.clone(),
        call: Call::new("pool_load", &json!({"bdev_name": pool.bdev_name})),
        base: Some(pool.bdev_name),
    }));
    let set = entries.iter().flat_map(methods::settings);
    let mut settings: Vec<Call> = set.map(|recipe| recipe.call()).collect();
    for (object, call) in service.unresolved.calls(service) {
        match object {
            None if call.method == VHOST_COALESCING => {}
            None => settings.push(call),
            Some(object) => steps.extend(Step::to_come(object, call)),
        }
    }
    // By bdev, so that it makes no difference which of them are there already.
    settings.sort_by_key(|call| (call.text("name"), call.method.clone()));
    let mut calls = in_order(&steps);
    calls.extend(settings);
    calls.push(Call::new("bdev_wait_for_examine", &json!(null)));
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(class: Class, name: &str, base: Option<&str>) -> Step {
        Step {
            class,
            name: name.to_owned(),
            base: base.map(str::to_owned),
            call: Call::new(name, &json!(null)),
        }
    }

    fn order(steps: &[Step]) -> Vec<String> {
        let calls = in_order(steps).into_iter();
        calls.map(|call| call.method).collect()
    }

    #[test]
    fn everything_comes_after_what_it_needs() {
        let mut steps = vec![
            step(Class::Cache, "a_top", Some("a_filter")),
            step(Class::Other, "a_filter", Some("cache")),
            step(Class::Cache, "cache", Some("b_filter")),
            step(Class::Other, "b_filter", Some("c_filter")),
            step(Class::Other, "c_filter", Some("disk")),
            step(Class::Other, "disk", None),
            step(Class::Other, "a_disk", None),
            step(Class::Pool, "z_pmem", Some("z_pmem")),
            step(Class::Pmem, "z_pmem", None),
        ];
        let expected = [
            "z_pmem", "a_disk", "disk", "c_filter", "b_filter", "z_pmem", "cache", "a_filter",
            "a_top",
        ];
        assert_eq!(order(&steps), expected);
        steps.reverse();
        assert_eq!(order(&steps), expected);
    }

    #[test]
    fn circles_and_strangers_end() {
        let steps = [
            step(Class::Other, "a", Some("b")),
            step(Class::Other, "b", Some("a")),
            step(Class::Other, "c", Some("nobody")),
        ];
        assert_eq!(order(&steps).len(), 3);
    }
}
